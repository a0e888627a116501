//! The node's maps that workers and publisher write by memory: the flow cache, its epochs, the pulse.
#![allow(unsafe_code)] // maps memory that the kernel's programs read; see `Area`

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

use super::{
    MAX_ASK_QUEUES,
    layout::{DEVICE_BYTES, DEVICE_INDEX, DEVICE_KIND, DEVICE_STATE, DEVICE_VERSION},
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
    /// `struct rw_ask_queue`, [`ASK_QUEUE_BYTES`] each, [`MAX_ASK_QUEUES`](super::MAX_ASK_QUEUES) of them.
    pub ask_queues: Area,
    /// `struct rw_node_device`, by index of the device modulo their number. Locked by who writes.
    places: Mutex<Area>,
}

/// Number of epochs.
pub const EPOCHS: u32 = 65_536;
/// Bytes of `struct rw_ask_queue`.
const ASK_QUEUE_BYTES: usize = 128;
/// Where it has the newest ticket that a worker has dealt with; at its begin is the newest one that was issued.
const ASK_QUEUE_TAKEN: usize = 64;
/// Number of places of devices.
const DEVICE_PLACES: u32 = 16_384;

impl NodeMemory {
    /// Maps the arrays of a cache with that many buckets.
    pub(super) fn map(arrays: [BorrowedFd<'_>; 7], bucket_count: u32) -> io::Result<Self> {
        let [buckets, entries, usage, epochs, pulse, places, ask_queues] = arrays;
        let bucket_count = bucket_count as usize;
        let area = |map, bytes: usize| Area::map(map, bytes.next_multiple_of(4096));
        Ok(Self {
            buckets: area(buckets, bucket_count * 32)?,
            entries: area(entries, bucket_count * 8 * 128)?,
            usage: area(usage, bucket_count * 8 * 64)?,
            epochs: area(epochs, EPOCHS as usize * 8)?,
            pulse: area(pulse, 16)?,
            ask_queues: area(ask_queues, MAX_ASK_QUEUES * ASK_QUEUE_BYTES)?,
            places: Mutex::new(area(places, DEVICE_PLACES as usize * DEVICE_BYTES)?),
        })
    }

    /// Writes what a device is into its place, or takes it out, while `change` does the same in the hash of devices. Until both are
    /// done, and where `change` fails, the programs read the hash. A place that another device has stays as it is.
    pub(super) fn change_place<E>(
        &self,
        ifindex: u32,
        device: Option<&[u8; DEVICE_BYTES]>,
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (ifindex % DEVICE_PLACES) as usize * DEVICE_BYTES;
        let word = |at: usize| places.word(begin + at);
        let read = |at: usize| word(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let is_taken = read(DEVICE_KIND) != 0;
        let is_its_own = is_taken && read(DEVICE_INDEX) == ifindex;
        let Some(version) = word(DEVICE_VERSION).filter(|_| is_its_own || !is_taken) else {
            return change();
        };
        // Odd, as it stays where this process ends half-way.
        let odd = version.load(Ordering::Relaxed) | 1;
        version.store(odd, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        change()?;
        let bytes = device.unwrap_or(&[0; DEVICE_BYTES]);
        for (offset, value) in (0..).step_by(4).zip(bytes.as_chunks::<4>().0) {
            // What the programs have noted of a device stays as long as the device does.
            let is_state = DEVICE_STATE.contains(&offset) && is_its_own && device.is_some();
            if let Some(word) = word(offset).filter(|_| offset != DEVICE_VERSION && !is_state) {
                word.store(u32::from_ne_bytes(*value), Ordering::Relaxed);
            }
        }
        version.store(odd.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes every ask that was put on a queue of the ask pair for dealt with.
    pub(super) fn forget_asks(&self, queue: u16) {
        let begin = usize::from(queue) * ASK_QUEUE_BYTES;
        if let (Some(issued), Some(taken)) = (
            self.ask_queues.word(begin),
            self.ask_queues.word(begin + ASK_QUEUE_TAKEN),
        ) {
            taken.store(issued.load(Ordering::Relaxed), Ordering::Relaxed);
        }
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
