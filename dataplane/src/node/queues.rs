//! The queues by which the kernel asks: how far workers have got with them.
//!
//! ```text
//! program: issued += 1, ticket in the header ──> queue, in this order ──> worker: judges, taken = ticket
//! ```
//! From the two numbers the programs know how many asks wait, and let none of a pod wait that has its share of the places there already. A frame that is lost on the
//! way is covered by the ticket of the next one that arrives, so nothing is owed for it.
//!
//! **Who writes.** Programs the ticket that was issued last; the one worker that has the queue's socket what it has taken. Both numbers
//! wrap. Orders are relaxed: a number that is read late makes a pod wait, or lets one more frame wait.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use zerocopy::FromZeros;

use super::cache::{CacheError, MappedMemory, Memory};

/// `struct rw_ask_queue`: each number on a cache line of its own.
#[derive(Debug, FromZeros)]
#[repr(C, align(128))]
struct AskQueue {
    issued: AtomicU32,
    unused: [u32; 15],
    taken: AtomicU32,
    unused_too: [u32; 15],
}
const _: () = assert!(size_of::<AskQueue>() == 128);
const _: () = assert!(std::mem::offset_of!(AskQueue, taken) == 64);

/// Every queue by its number.
#[derive(Debug)]
pub struct AskQueues(Memory<AskQueue>);

impl AskQueues {
    /// In memory of this process: no program reads it.
    pub fn private(queues: usize) -> Self {
        Self(Memory::private(queues))
    }

    /// Of a map that programs in the kernel read.
    ///
    /// # Errors
    /// The map is too short for that many queues.
    ///
    /// # Safety
    /// As of [`FlowCache::from_raw`](super::cache::FlowCache::from_raw).
    #[allow(unsafe_code)] // memory that the kernel shares
    pub unsafe fn from_raw(map: MappedMemory, queues: usize) -> Result<Self, CacheError> {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { Memory::mapped(map, queues, "ask_queues") }.map(Self)
    }

    /// Notes that a queue's asks up to a ticket have been dealt with. An older ticket, which came late, changes nothing.
    pub fn take(&self, queue: u32, ticket: u32) {
        let Some(queue) = self.0.get(queue as usize) else {
            return;
        };
        let ahead = ticket.wrapping_sub(queue.taken.load(Relaxed));
        if ahead <= u32::MAX / 2 {
            queue.taken.store(ticket, Relaxed);
        }
    }

    /// The newest ticket of a queue that was dealt with; 0 for queues that are not there.
    pub fn taken(&self, queue: u32) -> u32 {
        self.0
            .get(queue as usize)
            .map_or(0, |queue| queue.taken.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_go_on_across_their_wrap_and_never_back() {
        let queues = AskQueues::private(2);
        for (ticket, taken) in [
            (7, 7),
            (5, 7),
            (0x7fff_ffff, 0x7fff_ffff),
            (u32::MAX - 1, u32::MAX - 1),
            (3, 3),
            (u32::MAX, 3),
        ] {
            queues.take(1, ticket);
            assert_eq!(queues.taken(1), taken, "after {ticket:#x}");
        }
        assert_eq!(queues.taken(0), 0);
        queues.take(2, 1);
        assert_eq!(queues.taken(2), 0, "there is no third one");
    }
}
