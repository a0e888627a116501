//! One queue of one port: its socket and four rings, owned by one worker.
#![allow(unsafe_code)] // ring calls of xsk-rs, whose contract is that a frame is in one place

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ringwall_dataplane::{
    frame::Frame,
    io::{BURST, Burst},
    port::PortId,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::{
    chain::{Assembly, MAX_PIECES, Pieces, Progress},
    pool::{FrameNumber, Pool, receiving, sending},
    sockets::QueueStats,
    syscall,
};

/// Kicks of one flush, at most: with 32 packets each, more than a ring.
const MAX_KICKS: u32 = 128;
/// Kicks in a row that moved nothing before the rest is left for the next flush.
const MAX_IDLE_KICKS: u32 = 2;
/// The descriptor is not the last of its packet (`XDP_PKT_CONTD` of `linux/if_xdp.h`).
const CONTINUED: u32 = 1;
const _: () = assert!(MAX_PIECES <= BURST);
/// The shortest frame that the kernel takes: an Ethernet header.
const MIN_PACKET: usize = 14;

/// What a worker publishes of a queue, once per burst.
#[derive(Debug, Default)]
pub(crate) struct QueueCounts {
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    tx_full: AtomicU64,
    tx_lost: AtomicU64,
    tx_invalid: AtomicU64,
    port_lost: AtomicU64,
    bad_descriptors: AtomicU64,
}

impl QueueCounts {
    pub(crate) fn read(&self) -> QueueStats {
        QueueStats {
            rx_frames: self.rx_frames.load(Relaxed),
            rx_bytes: self.rx_bytes.load(Relaxed),
            tx_frames: self.tx_frames.load(Relaxed),
            tx_bytes: self.tx_bytes.load(Relaxed),
            tx_full: self.tx_full.load(Relaxed),
            tx_lost: self.tx_lost.load(Relaxed),
            tx_invalid: self.tx_invalid.load(Relaxed),
            port_lost: self.port_lost.load(Relaxed),
            bad_descriptors: self.bad_descriptors.load(Relaxed),
            ..QueueStats::default()
        }
    }
}

/// A queue and everything bound to it.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) port: PortId,
    /// Number in the places of frames.
    pub(crate) slot: u16,
    fd: RawFd,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames to be kept in the fill and RX rings.
    fill_target: u32,
    /// Frames in the fill and RX rings.
    pub(crate) receiving: u32,
    /// Frames in the TX and completion rings.
    pub(crate) sending: u32,
    /// Places on the TX ring.
    tx_size: u32,
    /// Free places on the TX ring, less those that `pending` will take.
    tx_room: u32,
    /// To be put on the TX ring together.
    pending: arrayvec::ArrayVec<FrameDesc, BURST>,
    /// A packet whose last descriptor has not come yet.
    assembly: Assembly,
    /// There are packets on the TX ring that the kernel has not taken.
    needs_kick: bool,
    /// The device is down.
    down: bool,
    /// The device is gone: the socket is dead.
    gone: bool,
    /// Counts of this worker's own; published once per burst, where `is_unpublished`.
    local_counts: QueueStats,
    is_unpublished: bool,
    pub(crate) counts: Arc<QueueCounts>,
    /// What the kernel writes descriptors into. Kept, as making it anew is 2 KiB of zeros for every look at a ring.
    scratch: Box<[FrameDesc; BURST]>,
}

/// The parts that xsk-rs gives for a socket.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) fill: FillQueue,
    pub(crate) completion: CompQueue,
}

impl Queue {
    pub(crate) fn new(port: PortId, slot: u16, fd: RawFd, rings: Rings, target: u32) -> Self {
        let Rings {
            rx,
            mut tx,
            fill,
            completion,
        } = rings;
        Self {
            port,
            slot,
            fd,
            rx,
            tx_size: tx.nb_free_exact(),
            tx_room: tx.nb_free_exact(),
            tx,
            fill,
            completion,
            fill_target: target,
            receiving: 0,
            sending: 0,
            pending: arrayvec::ArrayVec::new(),
            assembly: Assembly::default(),
            needs_kick: false,
            down: false,
            gone: false,
            local_counts: QueueStats::default(),
            is_unpublished: false,
            counts: Arc::default(),
            scratch: Box::new([FrameDesc::default(); BURST]),
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) fn gone(&self) -> bool {
        self.gone
    }

    pub(crate) fn set_gone(&mut self) {
        self.gone = true;
    }

    /// Takes up to a burst of received packets. Frames whose packet cannot be used go to `free`. Answers how many frames the
    /// packets have.
    #[inline]
    pub(crate) fn receive(&mut self, pool: &Pool, burst: &mut Burst, free: &mut Vec<FrameNumber>) -> usize {
        let room = burst.remaining_capacity().min(BURST);
        // SAFETY: the descriptors that come are of frames of this UMEM, given on this queue's fill ring;
        // `Pool::complete` checks it before any is used.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        if count == 0 {
            return 0;
        }
        self.is_unpublished = true;
        let (mut bytes, mut frames) = (0, 0);
        for nth in 0..count {
            let descriptor = self.scratch[nth];
            if descriptor.has_more_frames() || self.assembly.is_open() {
                if let Some((frame, pieces)) = self.receive_piece(pool, descriptor, free) {
                    bytes += frame.len() as u64;
                    frames += pieces;
                    self.local_counts.rx_frames += 1;
                    burst.push(frame);
                }
                continue;
            }
            let Some(number) = pool.complete(descriptor.addr(), receiving(self.slot)) else {
                self.local_counts.bad_descriptors += 1;
                continue;
            };
            self.receiving -= 1;
            let length = descriptor.lengths().data();
            match pool.received(number, descriptor.addr(), length, self.port) {
                Some(frame) => {
                    bytes += length as u64;
                    frames += 1;
                    self.local_counts.rx_frames += 1;
                    burst.push(frame);
                }
                None => {
                    self.local_counts.bad_descriptors += 1;
                    free.push(number);
                }
            }
        }
        self.local_counts.rx_bytes += bytes;
        frames
    }

    /// Takes a descriptor of a packet of several. Answers the packet, if this is its last, and how many frames it has.
    #[cold]
    fn receive_piece(
        &mut self,
        pool: &Pool,
        descriptor: FrameDesc,
        free: &mut Vec<FrameNumber>,
    ) -> Option<(Frame, usize)> {
        let length = descriptor.lengths().data();
        let mut piece = None;
        match pool.complete(descriptor.addr(), receiving(self.slot)) {
            // A pool that keeps no links is of sockets whose packets have one frame each.
            Some(number) if pool.is_multi_buffer() && pool.settle(number, descriptor.addr(), length) => {
                piece = Some((number, length as u32));
            }
            Some(number) => {
                self.receiving -= 1;
                free.push(number);
            }
            None => {}
        }
        let already = free.len();
        let progress = self.assembly.add(piece, descriptor.has_more_frames(), free);
        self.receiving -= (free.len() - already) as u32;
        match progress {
            Progress::More => None,
            Progress::Complete(pieces) => {
                self.receiving -= pieces.len() as u32;
                let frame = pool.chain(&pieces, self.port);
                if frame.is_none() {
                    free.extend(pieces.iter().map(|(number, _)| *number));
                    self.local_counts.bad_descriptors += 1;
                }
                frame.map(|frame| (frame, pieces.len()))
            }
            Progress::Broken(pieces) => {
                self.receiving -= pieces.len() as u32;
                free.extend(pieces.iter().map(|(number, _)| *number));
                self.local_counts.bad_descriptors += 1;
                None
            }
        }
    }

    /// Queues a packet. Gives the frame back where it cannot be, which counts as `tx-full` where the sender is told, and
    /// as lost where the packet was `accepted` before, for another worker.
    #[inline]
    pub(crate) fn send(
        &mut self,
        pool: &Pool,
        frame: Frame,
        accepted: bool,
        free: &mut Vec<FrameNumber>,
    ) -> Result<(), FrameNumber> {
        if frame.is_chain() {
            return self.send_chain(pool, &pool.pieces(&frame), accepted, free);
        }
        let Some((number, length)) = pool.consume(frame) else {
            return Ok(()); // of no pool of ours; there is nothing to give back
        };
        self.is_unpublished = true;
        let fits = (MIN_PACKET..=pool.capacity()).contains(&length);
        if fits && !self.gone && (self.tx_room == 0 || self.pending.is_full()) {
            self.submit();
            if self.tx_room == 0 {
                self.kick(pool, free);
            }
        }
        // A device that is down takes nothing: what waits for it stays, and no more of the pool goes there.
        let stuck = self.down && self.sending > 0;
        if !fits || self.gone || self.tx_room == 0 || stuck {
            self.local_counts.tx_invalid += u64::from(!fits);
            match accepted {
                true => self.local_counts.tx_lost += 1,
                false => self.local_counts.tx_full += 1,
            }
            return Err(number);
        }
        let Some(descriptor) = pool.packet_descriptor(number, length) else {
            return Err(number);
        };
        pool.set_location(number, sending(self.slot));
        self.pending.push(descriptor);
        self.tx_room -= 1;
        self.sending += 1;
        self.local_counts.tx_frames += 1;
        self.local_counts.tx_bytes += length as u64;
        Ok(())
    }

    /// Queues a packet of several frames, all of them or none: as [`Self::send`]. Where it cannot be queued, all but its first
    /// frame are freed here.
    #[cold]
    fn send_chain(
        &mut self,
        pool: &Pool,
        pieces: &Pieces,
        accepted: bool,
        free: &mut Vec<FrameNumber>,
    ) -> Result<(), FrameNumber> {
        let Some((&(first, first_length), further)) = pieces.split_first() else {
            return Ok(()); // of no pool of ours; there is nothing to give back
        };
        self.is_unpublished = true;
        let wanted = pieces.len() as u32;
        let fits = first_length as usize >= MIN_PACKET;
        if fits && !self.gone && (self.tx_room < wanted || self.pending.remaining_capacity() < pieces.len()) {
            self.submit();
            if self.tx_room < wanted {
                self.kick(pool, free);
            }
        }
        let stuck = self.down && self.sending > 0;
        let full = self.tx_room < wanted || self.pending.remaining_capacity() < pieces.len();
        let descriptors: arrayvec::ArrayVec<FrameDesc, MAX_PIECES> = pieces
            .iter()
            .filter_map(|(number, length)| pool.packet_descriptor(*number, *length as usize))
            .collect();
        if !fits || self.gone || full || stuck || descriptors.len() < pieces.len() {
            self.local_counts.tx_invalid += u64::from(!fits);
            match accepted {
                true => self.local_counts.tx_lost += 1,
                false => self.local_counts.tx_full += 1,
            }
            free.extend(further.iter().map(|(number, _)| *number));
            return Err(first);
        }
        for (nth, (mut descriptor, (number, length))) in descriptors.into_iter().zip(pieces).enumerate() {
            if nth + 1 < pieces.len() {
                descriptor.set_options(CONTINUED);
            }
            pool.set_location(*number, sending(self.slot));
            self.pending.push(descriptor);
            self.local_counts.tx_bytes += u64::from(*length);
        }
        self.tx_room -= wanted;
        self.sending += wanted;
        self.local_counts.tx_frames += 1;
        Ok(())
    }

    /// Puts what waits on the TX ring.
    fn submit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // SAFETY: these frames are of this UMEM; their place says that they are on this ring and nowhere else.
        let sent = unsafe { self.tx.produce(&self.pending) };
        if sent == self.pending.len() {
            self.pending.clear();
            self.needs_kick = true;
        } // else they wait: `room` counts places, so this does not happen
    }

    /// Makes the kernel send what is on the TX ring, as far as it can now.
    fn kick(&mut self, pool: &Pool, free: &mut Vec<FrameNumber>) {
        if !self.needs_kick || self.gone {
            return;
        }
        let mut idle = 0;
        self.down = false;
        if self.tx.needs_wakeup() {
            for _ in 0..MAX_KICKS {
                let before = self.tx.nb_free_exact();
                let answer = syscall::kick(self.fd);
                self.reap(pool, free);
                let moved = self.tx.nb_free_exact() != before;
                match answer {
                    Ok(()) => break,
                    Err(libc::EBUSY) => {
                        self.local_counts.tx_lost += 1; // the kernel took that packet and lost it
                        self.is_unpublished = true;
                    }
                    Err(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => {} // it is kept
                    Err(libc::ENETDOWN) => {
                        self.down = true; // it may come up again
                        break;
                    }
                    Err(_) => {
                        self.gone = true;
                        break;
                    }
                }
                idle = if moved { 0 } else { idle + 1 };
                if idle > MAX_IDLE_KICKS {
                    break;
                }
            }
        }
        let room = self.tx.nb_free_exact();
        self.needs_kick = room < self.tx_size;
        self.tx_room = room.saturating_sub(self.pending.len() as u32);
    }

    /// Takes frames that were sent.
    fn reap(&mut self, pool: &Pool, free: &mut Vec<FrameNumber>) {
        if self.sending == 0 {
            return;
        }
        loop {
            // SAFETY: the descriptors that come are of frames of this UMEM, sent on this queue's TX ring;
            // `Pool::complete` checks it before any is used.
            let count = unsafe { self.completion.consume(self.scratch.as_mut_slice()) };
            for descriptor in &self.scratch[..count] {
                match pool.complete(descriptor.addr(), sending(self.slot)) {
                    Some(number) => {
                        self.sending -= 1;
                        free.push(number);
                    }
                    None => {
                        self.local_counts.bad_descriptors += 1;
                        self.is_unpublished = true;
                    }
                }
            }
            if count < BURST {
                return;
            }
        }
    }

    /// Fills the fill ring up from `free`.
    fn refill(&mut self, pool: &Pool, free: &mut Vec<FrameNumber>) {
        while self.receiving < self.fill_target {
            let mut batch = arrayvec::ArrayVec::<FrameDesc, BURST>::new();
            let want = ((self.fill_target - self.receiving) as usize)
                .min(BURST)
                .min(free.len());
            for _ in 0..want {
                let Some(number) = free.pop() else { break };
                if let Some(descriptor) = pool.descriptor(number) {
                    pool.set_location(number, receiving(self.slot));
                    batch.push(descriptor);
                }
            }
            if batch.is_empty() {
                return;
            }
            // SAFETY: these frames are of this UMEM and were free; their place says that they are on this ring. The
            // ring has room: `target` is at most its size.
            let given = unsafe { self.fill.produce(&batch) };
            if given < batch.len() {
                for descriptor in &batch {
                    free.extend(pool.complete(descriptor.addr(), receiving(self.slot)));
                }
                return;
            }
            self.receiving += given as u32;
        }
        if self.fill.needs_wakeup() {
            syscall::wake_receive(self.fd);
        }
    }

    /// Sends what is queued and takes back what was sent.
    #[inline]
    pub(crate) fn transmit(&mut self, pool: &Pool, freed: &mut Vec<FrameNumber>) {
        if self.gone {
            return;
        }
        self.submit();
        self.kick(pool, freed);
        self.reap(pool, freed);
    }

    /// Makes room for packets to come, and publishes the counts.
    #[inline]
    pub(crate) fn prepare(&mut self, pool: &Pool, free: &mut Vec<FrameNumber>) {
        if !self.gone {
            self.refill(pool, free);
        }
        if self.is_unpublished {
            self.is_unpublished = false;
            self.publish();
        }
    }

    /// Whether packets wait for the kernel to take them.
    pub(crate) fn busy(&self) -> bool {
        self.needs_kick && !self.gone && !self.down
    }

    /// Gives back what was queued and not put on the ring: before the queue is closed.
    pub(crate) fn take_pending(&mut self, pool: &Pool, free: &mut Vec<FrameNumber>) {
        for descriptor in self.pending.drain(..) {
            if let Some(number) = pool.complete(descriptor.addr(), sending(self.slot)) {
                self.sending -= 1;
                self.local_counts.port_lost += u64::from(!descriptor.has_more_frames());
                free.push(number);
            }
        }
        self.receiving -= self.assembly.frames() as u32;
        free.extend(self.assembly.abandon().iter().map(|(number, _)| *number));
        self.publish();
    }

    fn publish(&self) {
        let counts = &self.counts;
        counts.rx_frames.store(self.local_counts.rx_frames, Relaxed);
        counts.rx_bytes.store(self.local_counts.rx_bytes, Relaxed);
        counts.tx_frames.store(self.local_counts.tx_frames, Relaxed);
        counts.tx_bytes.store(self.local_counts.tx_bytes, Relaxed);
        counts.tx_full.store(self.local_counts.tx_full, Relaxed);
        counts.tx_lost.store(self.local_counts.tx_lost, Relaxed);
        counts.tx_invalid.store(self.local_counts.tx_invalid, Relaxed);
        counts.port_lost.store(self.local_counts.port_lost, Relaxed);
        counts
            .bad_descriptors
            .store(self.local_counts.bad_descriptors, Relaxed);
    }
}
