//! A packet's whole life.

use crate::{
    frame::Frame,
    io::{BURST, Burst, PacketIo},
    plane::Seat,
    time::Nanos,
    verdict::DropReason,
    wire::Packet,
};

/// A frame on its way to the worker that owns its flow.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) frame: Frame,
    pub(crate) packet: Packet,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Frames received or taken over; 0 means that the worker may sleep.
    pub frames: usize,
    /// Workers that frames were handed over to, by bit: wake those that sleep.
    pub handed_to: u64,
    /// Whether packets wait for a neighbour: a sleep should be short then.
    pub holds: bool,
}

/// One worker: owns its ports' queues and its shards.
#[derive(Debug)]
pub struct Worker<Io> {
    io: Io,
    seat: Seat,
}

impl<Io: PacketIo> Worker<Io> {
    /// A worker of its seat and its `PacketIo`.
    pub fn new(seat: Seat, io: Io) -> Self {
        Self { io, seat }
    }

    /// One turn: what others handed over, then a burst of every source, then a little housekeeping, then the
    /// doorbells. `now` never goes back.
    pub fn run_once(&mut self, _now: Nanos) -> Turn {
        let mut turn = Turn::default();
        let stats = &self.seat.stats.counters;
        stats.turns.add(1);
        stats.generation.set(
            self.seat
                .snapshots
                .adopt()
                .map_or(0, |(_, snapshot)| snapshot.generation().0),
        );
        let mut burst = Burst::new();
        for source in 0..self.io.sources() {
            self.io.receive(source, &mut burst);
            debug_assert!(burst.len() <= BURST);
            for frame in burst.drain(..) {
                turn.frames += 1;
                stats.received.add(1);
                stats.drops.count(DropReason::NoSnapshot);
                self.io.release(frame);
            }
        }
        self.io.flush();
        turn
    }

    /// Whether others' frames or a question wait for this worker: look right before sleeping.
    pub fn has_work(&self) -> bool {
        let shared = &self.seat.shared;
        !shared.handover[self.seat.index].is_empty() || !shared.asked[self.seat.index].is_empty()
    }

    /// Says that the worker is about to sleep, so that publication does not wait for it. The next turn brings it back.
    pub fn offline(&mut self) {
        self.seat.snapshots.offline();
        self.seat.forwarding.offline();
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.seat.index
    }

    /// Its ports' queues, to be serviced between turns.
    pub fn io(&mut self) -> &mut Io {
        &mut self.io
    }
}
