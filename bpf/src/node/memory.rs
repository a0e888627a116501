//! The node's maps that workers and publisher write by memory: the flow cache, its epochs, the pulse.
#![allow(unsafe_code)] // maps memory that the kernel's programs read; see `Area`

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// A mapped BPF array. The programs read, and of the usage write, while user space does: whoever looks inside uses atomics
/// or volatile reads.
#[derive(Debug)]
pub struct Area {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a range of mapped memory that stays where it is until the value drops; whoever reads and writes it orders that.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps a BPF array of `length` bytes.
    fn map(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, nothing else is touched; the answer is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, length }),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Where it begins, at a page's boundary. Valid while the value lives.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The word of 4 bytes at an offset, a multiple of 4.
    pub(super) fn word(&self, offset: usize) -> Option<&AtomicU32> {
        (offset.is_multiple_of(4) && offset.checked_add(4)? <= self.length).then(|| {
            // SAFETY: within the mapping, aligned; the mapping outlives `self`, and atomics may be shared with the kernel.
            unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
        })
    }

    /// The word of 8 bytes at an offset, a multiple of 8.
    fn long(&self, offset: usize) -> Option<&AtomicU64> {
        (offset.is_multiple_of(8) && offset.checked_add(8)? <= self.length).then(|| {
            // SAFETY: as in `word`.
            unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
        })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range that `map` was given, which nobody can have any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// What a node's programs share with workers and publisher. Layouts are in `bpf/src/c/node.h`.
#[derive(Debug)]
pub struct NodeMemory {
    /// `struct rw_flow_bucket`, 32 bytes each.
    pub buckets: Area,
    /// `struct rw_flow_entry`, 128 bytes each, 8 for a bucket.
    pub entries: Area,
    /// `struct rw_flow_usage`, 64 bytes each, as many as entries.
    pub usage: Area,
    /// 32 bits in slots of 8 bytes.
    pub epochs: Area,
    /// `struct rw_node_pulse`.
    pub pulse: Area,
}

/// Number of epochs.
pub const EPOCHS: u32 = 65_536;

impl NodeMemory {
    /// Maps the arrays of a cache with that many buckets.
    pub(super) fn map(arrays: [BorrowedFd<'_>; 5], bucket_count: u32) -> io::Result<Self> {
        let [buckets, entries, usage, epochs, pulse] = arrays;
        let bucket_count = bucket_count as usize;
        let area = |map, bytes: usize| Area::map(map, bytes.next_multiple_of(4096));
        Ok(Self {
            buckets: area(buckets, bucket_count * 32)?,
            entries: area(entries, bucket_count * 8 * 128)?,
            usage: area(usage, bucket_count * 8 * 64)?,
            epochs: area(epochs, EPOCHS as usize * 8)?,
            pulse: area(pulse, 16)?,
        })
    }

    /// Says that the workers are alive: CLOCK_MONOTONIC, ns.
    pub fn beat(&self, now: u64) {
        if let Some(workers) = self.pulse.long(0) {
            workers.store(now, Ordering::Relaxed);
        }
    }

    /// The workers' newest tick.
    pub fn last_beat(&self) -> u64 {
        self.pulse
            .long(0)
            .map_or(0, |workers| workers.load(Ordering::Relaxed))
    }

    /// Until when cached decisions count: CLOCK_MONOTONIC, ns; None: for ever.
    pub fn set_lease(&self, until: Option<u64>) {
        if let Some(lease) = self.pulse.long(8) {
            lease.store(until.map_or(0, |until| until.max(1)), Ordering::Relaxed);
        }
    }

    /// The epoch of a slot; 0 for slots that are not there.
    pub fn epoch(&self, slot: u32) -> u32 {
        self.epochs
            .word(slot as usize * 8)
            .map_or(0, |epoch| epoch.load(Ordering::Acquire))
    }

    /// Ends every cached decision of a slot. Slot 0 never changes.
    pub fn bump(&self, slot: u32) {
        if slot != 0
            && let Some(epoch) = self.epochs.word(slot as usize * 8)
        {
            epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Ends every cached decision that has any slot but 0, and with it those of a predecessor. Two ahead, so that none
    /// that was written for a coming bump holds either.
    pub fn bump_all(&self) {
        for slot in 1..EPOCHS {
            if let Some(epoch) = self.epochs.word(slot as usize * 8) {
                epoch.fetch_add(2, Ordering::AcqRel);
            }
        }
    }
}
