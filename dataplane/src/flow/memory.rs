//! The entries of all workers in one piece of memory that may be a file mapping and outlive the process.
//!
//! ```text
//! header (4096 bytes) | segment 0: entries of 192 bytes | segment 1 | ... | segment 255
//! ```
//! Each worker has some of the segments, one after the other; another number of workers shares them out anew. The header
//! says for each segment how many of its entries were ever used, so that a successor reads only those.
//! Only the entries lie there; whatever leads to them (index, lists, free places) is private and built again from them.
//! So what a predecessor left, or anybody wrote into the file, is believed entry by entry or not at all. A process may
//! be killed at any moment: an entry is marked used last when it is made and unmarked first when it goes, and a
//! check sum over its key finds one that was torn.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    entry::{ENTRY_BYTES, Entry},
    hash::Seed,
};
use crate::time::Nanos;

const MAGIC: [u8; 8] = *b"RWFLOW\r\n";
/// Raised with every change of the header or of an entry.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "neighbour") { 1005 } else { 5 };
const HEADER_BYTES: usize = 4096;
/// Parts of the memory that are never divided between workers.
pub(crate) const SEGMENTS: usize = 256;
/// Below this a worker of many cannot hold half-open and established flows at once in any useful number.
const MIN_PER_SEGMENT: usize = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    segments: u32,
    /// Entries of one segment.
    per_segment: u64,
    /// Chooses the shard of a key.
    seed: u64,
    /// By segment: entries from here on have never been used, whatever they hold.
    reached: [u32; SEGMENTS],
}
const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);

/// A worker's part of the memory.
#[derive(Debug)]
pub(super) struct TableMemory {
    pub(super) entries: &'static mut [Entry],
    /// By segment: entries from here on have never been used. Raised before such an entry is; believed only as far as it
    /// saves reading.
    pub(super) high_water: &'static mut [u32],
    /// Entries of one segment.
    pub(super) segment_entries: usize,
}

/// Why memory cannot hold a flow table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowMemoryError {
    /// Too short for the entries.
    #[error("the flow table needs {needed} bytes for its entries, but its memory has {have}")]
    TooShort {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        have: usize,
    },
    /// Not aligned.
    #[error("the memory of the flow table must begin at a multiple of 8 bytes")]
    Misaligned,
    /// More than an index can name.
    #[error("{entries} flow entries are more than the {most} that can be indexed")]
    TooMany {
        /// Entries asked for.
        entries: usize,
        /// The most.
        most: usize,
    },
}

/// The entries of every worker, ready to be given to them.
#[derive(Debug)]
pub struct FlowMemory {
    entries: &'static mut [Entry],
    reached: &'static mut [u32],
    pub(crate) seed: Seed,
    inherited: bool,
    pub(super) now: Nanos,
}

const CACHE_LINE: usize = 64;
const _: () = assert!(HEADER_BYTES.is_multiple_of(CACHE_LINE) && ENTRY_BYTES.is_multiple_of(CACHE_LINE));

/// Entries per segment for a total.
fn per_segment(entries: usize) -> usize {
    entries.div_ceil(SEGMENTS).max(MIN_PER_SEGMENT)
}

/// The most entries: an index slot has 31 bits for them.
const MAX_ENTRIES: usize = 1 << 30;

impl FlowMemory {
    /// Bytes that [`Self::open`] needs for a number of entries: a multiple of 256 of them, 4,096 at least.
    pub fn required_bytes(entries: usize) -> usize {
        HEADER_BYTES + SEGMENTS * per_segment(entries.min(MAX_ENTRIES)) * ENTRY_BYTES
    }

    /// Takes memory over. Where it holds the table of a predecessor with the same layout and number of entries, its
    /// flows are kept (each is checked when the tables are built); anything else is wiped. `seed` is random and used
    /// for a new table; a predecessor's is kept. `now` is on the clock that the workers will be given, and that the
    /// predecessor was given.
    pub fn open(
        memory: &'static mut [u8],
        entries: usize,
        seed: u64,
        now: Nanos,
    ) -> Result<Self, FlowMemoryError> {
        Self::take_over(memory, entries, seed, now, false)
    }

    /// As [`Self::open`]. `blank`: all of it is zeros and need not be written, which would make the system find memory for
    /// entries that are never used.
    fn take_over(
        memory: &'static mut [u8],
        entries: usize,
        seed: u64,
        now: Nanos,
        blank: bool,
    ) -> Result<Self, FlowMemoryError> {
        if entries > MAX_ENTRIES {
            return Err(FlowMemoryError::TooMany {
                entries,
                most: MAX_ENTRIES,
            });
        }
        let needed = Self::required_bytes(entries);
        let have = memory.len();
        let (Some(memory), true) = (memory.get_mut(..needed), have >= needed) else {
            return Err(FlowMemoryError::TooShort { needed, have });
        };
        let (head, body) = memory.split_at_mut(HEADER_BYTES);
        let (header, _) = Header::mut_from_prefix(head).map_err(|_| FlowMemoryError::Misaligned)?;
        let per_segment = per_segment(entries);
        let known = header.magic == MAGIC
            && header.version == LAYOUT_VERSION
            && header.segments == SEGMENTS as u32
            && header.per_segment == per_segment as u64;
        if !known {
            // The magic goes first and comes last: a process killed in between leaves nothing to believe.
            header.magic = [0; 8];
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
            if !blank {
                body.fill(0);
            }
            header.version = LAYOUT_VERSION;
            header.segments = SEGMENTS as u32;
            header.per_segment = per_segment as u64;
            header.seed = seed;
            header.reached = [0; SEGMENTS];
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
            header.magic = MAGIC;
        }
        let seed = Seed::new(header.seed);
        let entries = <[Entry]>::mut_from_bytes(body).map_err(|_| FlowMemoryError::Misaligned)?;
        Ok(Self {
            entries,
            reached: &mut header.reached,
            seed,
            inherited: known,
            now,
        })
    }

    /// For memory that was opened ahead of time: `now` is when its use begins.
    pub fn begin_at(self, now: Nanos) -> Self {
        Self { now, ..self }
    }

    /// Memory of this process alone, which goes with it: for tests, benchmarks and replays.
    pub fn private(entries: usize, seed: u64) -> Result<Self, FlowMemoryError> {
        if entries > MAX_ENTRIES {
            return Err(FlowMemoryError::TooMany {
                entries,
                most: MAX_ENTRIES,
            });
        }
        // Entries begin with a cache line, as in a mapping; what the allocator gives begins 16 bytes behind one.
        let bytes = Self::required_bytes(entries);
        let words = Box::leak(vec![0u64; (bytes + CACHE_LINE).div_ceil(8)].into_boxed_slice());
        let memory = words.as_mut_bytes();
        let skip = memory.as_ptr().align_offset(CACHE_LINE);
        let memory = memory.get_mut(skip..skip + bytes).unwrap_or_default();
        Self::take_over(memory, entries, seed, Nanos(0), true)
    }

    /// Entries that fit.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Shares the segments out to workers, evenly and in order.
    pub(super) fn split(self, workers: usize) -> Vec<TableMemory> {
        let segment = self.entries.len() / SEGMENTS;
        let (mut entries, mut reached) = (self.entries, self.reached);
        let mut begin = 0;
        (1..=workers)
            .map(|nth| {
                let end = SEGMENTS * nth / workers;
                let (own, rest) = std::mem::take(&mut entries).split_at_mut((end - begin) * segment);
                let (own_reached, rest_reached) = std::mem::take(&mut reached).split_at_mut(end - begin);
                (entries, reached, begin) = (rest, rest_reached, end);
                TableMemory {
                    entries: own,
                    high_water: own_reached,
                    segment_entries: segment,
                }
            })
            .collect()
    }

    /// Whether it holds a predecessor's table (which may be empty).
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }
}

/// What memory would hold of tables, given how many of their segments' entries were ever used: for tests of restarts.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn image(seed: u64, per_segment: usize, tables: &[(Vec<u32>, Vec<u8>)]) -> Vec<u8> {
    let mut reached = [0; SEGMENTS];
    for (to, from) in reached
        .iter_mut()
        .zip(tables.iter().flat_map(|(reached, _)| reached))
    {
        *to = *from;
    }
    let header = Header {
        magic: MAGIC,
        version: LAYOUT_VERSION,
        segments: SEGMENTS as u32,
        per_segment: per_segment as u64,
        seed,
        reached,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(tables.iter().flat_map(|(_, entries)| entries));
    bytes
}
