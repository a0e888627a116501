//! Packets that wait for the Ethernet address of their next hop.

use std::collections::VecDeque;

use super::ResolveRequest;
use crate::{frame::Frame, time::Nanos, wire::Packet};

/// A packet that was judged and is ready to go, but for its Ethernet addresses.
#[derive(Debug)]
pub(crate) struct Held {
    /// Copied aside: its buffer is from [`crate::io::PacketIo::allocate`], not from a ring that must be refilled.
    pub(crate) frame: Frame,
    /// Its headers.
    pub(crate) packet: Packet,
    /// Whom it waits for.
    pub(crate) next: ResolveRequest,
    until: Nanos,
}

/// What one worker holds: few packets, each for a short time, oldest first.
#[derive(Debug)]
pub(crate) struct Hold {
    waiting: VecDeque<Held>,
    limit: usize,
    each: usize,
    patience: Nanos,
}

/// A neighbour may have this many packets waiting: as many as Linux kept before it counted bytes.
const EACH: usize = 3;

impl Hold {
    /// Room for `limit` packets that wait up to `patience`.
    pub(crate) fn new(limit: usize, patience: Nanos) -> Self {
        Self {
            waiting: VecDeque::with_capacity(limit),
            limit,
            each: EACH,
            patience,
        }
    }

    /// Whether a packet for this neighbour may wait: ask before copying it aside.
    pub(crate) fn has_room(&self, next: ResolveRequest) -> bool {
        self.waiting.len() < self.limit
            && self.waiting.iter().filter(|held| held.next == next).count() < self.each
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lets a packet wait. Only after [`Self::has_room`].
    pub(crate) fn push(&mut self, frame: Frame, packet: Packet, next: ResolveRequest, now: Nanos) {
        debug_assert!(self.has_room(next));
        self.waiting.push_back(Held {
            frame,
            packet,
            next,
            until: now.after(self.patience),
        });
    }

    /// The oldest packet that has waited too long.
    pub(crate) fn pop_expired(&mut self, now: Nanos) -> Option<Held> {
        if self.waiting.front()?.until > now {
            return None;
        }
        self.waiting.pop_front()
    }

    /// The oldest packet whose neighbour `is_known` now.
    pub(crate) fn pop_ready(&mut self, mut is_known: impl FnMut(ResolveRequest) -> bool) -> Option<Held> {
        let index = self.waiting.iter().position(|held| is_known(held.next))?;
        self.waiting.remove(index)
    }
}
