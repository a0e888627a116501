//! Publication of immutable values to workers that never wait: quiescent-state-based reclamation (QSBR).
//!
//! **Who writes.** One [`Publisher`] swaps a pointer to the newest version and remembers the versions before it. It
//! alone frees them, on its own thread, when [`Publisher::publish`] or [`Publisher::reclaim`] finds that no reader can
//! still read them.
//!
//! **Who reads.** Each worker has one [`Subscriber`]. [`Subscriber::adopt`], once per burst, loads the pointer and
//! notes the version's number in the worker's slot. The reference that it returns borrows the subscriber mutably, so
//! the compiler shows that none outlives the burst: calling `adopt` again *is* the quiescent state. A worker that is
//! about to sleep calls [`Subscriber::offline`]; `adopt` brings it back.
//!
//! **The two orders that carry the weight.**
//! 1. *Online before the look.* Coming back, a subscriber stores "online, holding nothing newer than 0" in its slot,
//!    then loads the pointer. The publisher stores the pointer, then loads the slots. A SeqCst fence lies between the
//!    two steps on both sides, so at least one sees the other: either the subscriber gets the new version, or the
//!    publisher finds it online and frees nothing.
//! 2. *Done before the note.* A subscriber notes version n with Release only after its last read of an older version;
//!    the publisher loads the note with Acquire before it frees the older version.
//!
//! | access | by | order | against |
//! |---|---|---|---|
//! | `current` swap | publisher | AcqRel | a reader that sees the pointer sees the version's content |
//! | `current` load | subscriber | Acquire | as above |
//! | slot store of n | subscriber | Release | order 2 |
//! | slot load | publisher | Acquire | order 2 |
//! | slot store of "online" | subscriber | Relaxed + SeqCst fence | order 1 |
//! | fence after the swap | publisher | SeqCst | order 1 |
//! | slot store of "offline" | subscriber | Release | order 2 |
//!
//! **What the model check covers** (`RUSTFLAGS="--cfg loom" cargo test -p ringwall-dataplane --lib --release rcu`): one publisher, one
//! or two subscribers, two publications, going offline and coming back. Not covered: more of each, and a publisher
//! that is dropped first (then what is left is freed with the last handle, at shutdown).
#![allow(unsafe_code)] // a version is reached by raw pointer: reference counts would be written on every burst

#[cfg(loom)]
use loom::sync::{
    Arc, Mutex,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

use crossbeam::utils::CachePadded;

/// Slot of a subscriber that reads nothing and will look at the newest version before it reads again.
const OFFLINE: u64 = 0;
/// Slot of a subscriber that is about to look: it may come to hold any version that is not freed.
const ONLINE_UNKNOWN: u64 = 1;

struct Version<T> {
    /// 1 for the first version that is published.
    sequence: u64,
    value: T,
}

struct Shared<T> {
    /// Newest version; null before the first.
    current: AtomicPtr<Version<T>>,
    /// By subscriber: [`OFFLINE`], or 1 + the sequence of the oldest version that it may read.
    slots: Box<[CachePadded<AtomicU64>]>,
    /// What a dropped publisher could not free yet.
    leftover: Mutex<Vec<Box<Version<T>>>>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Acquire);
        if !current.is_null() {
            // SAFETY: made by `Box::into_raw` in `publish`; publisher and subscribers are gone, so nothing reads it
            // and nothing else frees it.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

/// The writing side. Not `Clone`: there is one.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    sequence: u64,
    /// Replaced versions that somebody may still read, oldest first.
    retired: Vec<*mut Version<T>>,
}

// SAFETY: the raw pointers are owned boxes; `channel` asks for `T: Send + Sync`.
unsafe impl<T: Send + Sync> Send for Publisher<T> {}

/// The reading side of one worker.
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    index: usize,
    /// What the slot holds.
    slot_value: u64,
}

/// One publisher and `subscribers` subscribers, numbered from 0, all offline; nothing is published yet.
pub fn channel<T: Send + Sync>(subscribers: usize) -> (Publisher<T>, Vec<Subscriber<T>>) {
    let shared = Arc::new(Shared {
        current: AtomicPtr::new(std::ptr::null_mut()),
        slots: (0..subscribers)
            .map(|_| CachePadded::new(AtomicU64::new(OFFLINE)))
            .collect(),
        leftover: Mutex::new(Vec::new()),
    });
    let readers = (0..subscribers)
        .map(|index| Subscriber {
            shared: Arc::clone(&shared),
            index,
            slot_value: OFFLINE,
        })
        .collect();
    let publisher = Publisher {
        shared,
        sequence: 0,
        retired: Vec::new(),
    };
    (publisher, readers)
}

impl<T: Send + Sync> Publisher<T> {
    /// Makes `value` the newest version and answers its sequence number (1, 2, ...). Frees what can be freed.
    pub fn publish(&mut self, value: T) -> u64 {
        self.sequence += 1;
        let version = Box::into_raw(Box::new(Version {
            sequence: self.sequence,
            value,
        }));
        let old = self.shared.current.swap(version, Ordering::AcqRel);
        if !old.is_null() {
            self.retired.push(old);
        }
        self.reclaim();
        self.sequence
    }

    /// Frees every replaced version that no subscriber can read any more; answers how many are left.
    pub fn reclaim(&mut self) -> usize {
        if self.retired.is_empty() {
            return 0;
        }
        fence(Ordering::SeqCst); // order 1
        let oldest = self
            .shared
            .slots
            .iter()
            .map(|slot| slot.load(Ordering::Acquire))
            .filter(|note| *note != OFFLINE)
            .map(|note| note - 1)
            .min()
            .unwrap_or(u64::MAX);
        self.retired.retain(|version| {
            // SAFETY: retired versions are valid until freed right here, and this is the only place that frees them.
            let kept = unsafe { (**version).sequence } >= oldest;
            if !kept {
                // SAFETY: from `Box::into_raw`; no longer reachable through `current`, and every online subscriber
                // has noted a newer version after its last read of this one (order 2).
                drop(unsafe { Box::from_raw(*version) });
            }
            kept
        });
        self.retired.len()
    }

    /// Sequence of the newest version; 0 for none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The sequence that a subscriber adopted last; None while it is offline (it adopts the newest before it reads
    /// again).
    pub fn adopted(&self, subscriber: usize) -> Option<u64> {
        match self.shared.slots.get(subscriber)?.load(Ordering::Acquire) {
            OFFLINE => None,
            note => Some(note - 1),
        }
    }

    /// Whether no subscriber can decide by anything older than `sequence` any more.
    pub fn all_adopted(&self, sequence: u64) -> bool {
        fence(Ordering::SeqCst); // order 1: an offline subscriber that returns sees what was published before this
        self.shared.slots.iter().all(|slot| {
            let note = slot.load(Ordering::Acquire);
            note == OFFLINE || note > sequence
        })
    }

    /// The newest version, for the publishing side's own use.
    pub fn current(&self) -> Option<&T> {
        let current = self.shared.current.load(Ordering::Acquire);
        // SAFETY: null, or a version that only `publish` and `reclaim` (both `&mut self`) could retire and free.
        unsafe { current.as_ref() }.map(|version| &version.value)
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        if let Ok(mut left) = self.shared.leftover.lock() {
            for version in self.retired.drain(..) {
                // SAFETY: an owned box; `left` is dropped only with the last subscriber, until when it stays valid.
                left.push(unsafe { Box::from_raw(version) });
            }
        }
    }
}

impl<T> std::fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("sequence", &self.sequence)
            .field("retired", &self.retired.len())
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync> Subscriber<T> {
    /// Moves to the newest version and answers it with its sequence; None before the first publication. Everything
    /// read through an earlier answer is over by then.
    #[inline]
    pub fn adopt(&mut self) -> Option<(u64, &T)> {
        if self.slot_value == OFFLINE {
            self.come_online();
        }
        let current = self.shared.current.load(Ordering::Acquire);
        // SAFETY: null, or a version that stays allocated: this subscriber's slot is online with a note that is not
        // newer (order 1), and only a call that needs `&mut self` changes the note.
        let version = unsafe { current.as_ref() };
        let note = version.map_or(ONLINE_UNKNOWN, |version| version.sequence + 1);
        if note != self.slot_value {
            self.slot().store(note, Ordering::Release); // order 2
            self.slot_value = note;
        }
        version.map(|version| (version.sequence, &version.value))
    }

    #[cold]
    fn come_online(&mut self) {
        self.slot().store(ONLINE_UNKNOWN, Ordering::Relaxed);
        fence(Ordering::SeqCst); // order 1
        self.slot_value = ONLINE_UNKNOWN;
    }

    /// Says that this subscriber reads nothing until it calls [`Self::adopt`] again. Call before sleeping.
    pub fn offline(&mut self) {
        self.slot().store(OFFLINE, Ordering::Release); // order 2
        self.slot_value = OFFLINE;
    }
}

impl<T> Subscriber<T> {
    fn slot(&self) -> &AtomicU64 {
        &self.shared.slots[self.index]
    }
}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.slot().store(OFFLINE, Ordering::Release);
    }
}

impl<T> std::fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber")
            .field("index", &self.index)
            .field("noted", &self.slot_value)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
