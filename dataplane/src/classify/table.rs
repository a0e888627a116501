//! Tables of plain records in chunks that successive images share.
//!
//! A table is a directory of chunks of [`CHUNK_BYTES`]; a clone copies the directory alone. Writing to a record copies
//! its chunk first if another table has it too, so what was cloned before never changes. Reading costs one load more
//! than an array: the chunk's place.

use std::sync::{Arc, OnceLock};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::layout::{
    BucketV4, BucketV6, EndpointRecord, IdentityRecord, IntervalRecord, NameSlot, PageRecord, Pattern,
    PolicyRecord, PortMapRecord, ProvenanceRecord, RowRecord, StringRecord, TrieNode,
};

use crate::prefetch::prefetch;

/// Bytes of a chunk. What one changed record costs each side is a copy and a hash of this; what each snapshot costs is
/// a reference for every chunk.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;

/// What a table may hold: plain data whose size divides a chunk.
pub(super) trait Record:
    Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Send + Sync + 'static
{
    /// A chunk full of it.
    type Records: Copy + FromBytes + IntoBytes + Immutable + AsRef<[Self]> + AsMut<[Self]> + Send + Sync;
    /// Records in a chunk; a power of two.
    const PER_CHUNK: usize = CHUNK_BYTES / size_of::<Self>();
}

macro_rules! records {
    ($($record:ty),* $(,)?) => {$(
        impl Record for $record {
            type Records = [$record; CHUNK_BYTES / size_of::<$record>()];
        }
        const _: () = assert!(size_of::<$record>().is_power_of_two());
    )*};
}

records!(
    u8,
    u32,
    BucketV4,
    BucketV6,
    EndpointRecord,
    IdentityRecord,
    IntervalRecord,
    NameSlot,
    PageRecord,
    Pattern,
    PolicyRecord,
    PortMapRecord,
    ProvenanceRecord,
    RowRecord,
    StringRecord,
    TrieNode,
);

#[repr(C, align(64))]
struct Chunk<T: Record> {
    records: T::Records,
    /// Hash of the records, once somebody asked.
    hash: OnceLock<[u8; 32]>,
}

impl<T: Record> Chunk<T> {
    fn zeroed() -> Self {
        Self {
            records: T::Records::new_zeroed(),
            hash: OnceLock::new(),
        }
    }
}

impl<T: Record> Clone for Chunk<T> {
    fn clone(&self) -> Self {
        Self {
            records: self.records,
            hash: OnceLock::new(), // a copy is made to be changed
        }
    }
}

/// Records by index. Those of the last chunk past the length are zero.
pub(super) struct Table<T: Record> {
    chunks: Vec<Arc<Chunk<T>>>,
    len: usize,
}

impl<T: Record> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<T: Record> Default for Table<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T: Record> Table<T> {
    /// Records.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A record.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        let chunk = self.chunks.get(index / T::PER_CHUNK)?;
        chunk.records.as_ref().get(index % T::PER_CHUNK)
    }

    /// A record, whose cache line is on its way from now on.
    #[inline]
    pub(super) fn get_prefetched(&self, index: usize) -> Option<&T> {
        let record = self.get(index)?;
        prefetch(record);
        Some(record)
    }

    /// Consecutive records, if they are all there and in one chunk.
    #[inline]
    pub(super) fn slice(&self, from: usize, to: usize) -> Option<&[T]> {
        if to > self.len {
            return None;
        }
        let chunk = self.chunks.get(from / T::PER_CHUNK)?;
        let first = from % T::PER_CHUNK;
        chunk
            .records
            .as_ref()
            .get(first..first.checked_add(to.checked_sub(from)?)?)
    }

    /// All records, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> + '_ {
        let records = self.chunks.iter().flat_map(|chunk| chunk.records.as_ref());
        records.take(self.len)
    }

    /// Indices of the records that both tables have and that are not the same. What they share costs a comparison of
    /// pointers for each chunk.
    pub(super) fn differing(&self, older: &Self, into: &mut Vec<usize>) {
        let both = self.len.min(older.len);
        for (number, (chunk, old)) in self.chunks.iter().zip(&older.chunks).enumerate() {
            if Arc::ptr_eq(chunk, old) {
                continue;
            }
            let first = number * T::PER_CHUNK;
            let records = chunk.records.as_ref().iter().zip(old.records.as_ref());
            let differ = records
                .enumerate()
                .filter(|(_, (a, b))| a.as_bytes() != b.as_bytes());
            into.extend(differ.map(|(at, _)| first + at).take_while(|index| *index < both));
        }
    }

    /// Writes a record that is there. One that is as it should be costs no copy.
    pub(super) fn set(&mut self, index: usize, record: T) {
        if index >= self.len {
            return;
        }
        let Some(chunk) = self.chunks.get_mut(index / T::PER_CHUNK) else {
            return;
        };
        let at = index % T::PER_CHUNK;
        let is = chunk.records.as_ref().get(at);
        if is.is_some_and(|is| is.as_bytes() == record.as_bytes()) {
            return;
        }
        let chunk = Arc::make_mut(chunk);
        chunk.hash.take();
        if let Some(place) = chunk.records.as_mut().get_mut(at) {
            *place = record;
        }
    }

    /// Writes consecutive records that are there.
    pub(super) fn write(&mut self, from: usize, records: &[T]) {
        let (mut at, mut rest) = (from, records);
        while !rest.is_empty() {
            let first = at % T::PER_CHUNK;
            let (now, later) = rest.split_at(rest.len().min(T::PER_CHUNK - first));
            let Some(chunk) = self.chunks.get_mut(at / T::PER_CHUNK) else {
                return;
            };
            let chunk = Arc::make_mut(chunk);
            chunk.hash.take();
            if let Some(places) = chunk.records.as_mut().get_mut(first..first + now.len()) {
                places.copy_from_slice(now);
            }
            (at, rest) = (at + now.len(), later);
        }
    }

    /// Puts the chunks into another order; None is a chunk of zeros. The length is that of whole chunks.
    pub(super) fn rearrange(&mut self, order: impl Iterator<Item = Option<usize>>) {
        let zeros = Arc::new(Chunk::zeroed());
        let chunks: Vec<_> = order
            .map(|from| {
                from.and_then(|from| self.chunks.get(from))
                    .unwrap_or(&zeros)
                    .clone()
            })
            .collect();
        self.len = chunks.len() * T::PER_CHUNK;
        self.chunks = chunks;
    }

    /// Adds a record and answers its index.
    pub(super) fn push(&mut self, record: T) -> usize {
        let index = self.len;
        self.resize(index + 1);
        self.write(index, &[record]);
        index
    }

    /// Changes the length; new records are zero. Never less than before.
    pub(super) fn resize(&mut self, len: usize) {
        let chunks = len.div_ceil(T::PER_CHUNK);
        if chunks > self.chunks.len() {
            // One chunk of zeros for all: it is copied where it is written to.
            self.chunks.resize(chunks, Arc::new(Chunk::zeroed()));
        }
        self.len = self.len.max(len);
    }

    /// A table of these records that shares with `old` every chunk that is the same in both.
    pub(super) fn sharing(records: &[T], old: &Self) -> Self {
        let chunks = records.chunks(T::PER_CHUNK).zip(0..).map(|(records, number)| {
            let mut chunk = Chunk::<T>::zeroed();
            if let Some(places) = chunk.records.as_mut().get_mut(..records.len()) {
                places.copy_from_slice(records);
            }
            match old.chunks.get(number) {
                Some(old) if old.records.as_bytes() == chunk.records.as_bytes() => Arc::clone(old),
                _ => Arc::new(chunk),
            }
        });
        Self {
            chunks: chunks.collect(),
            len: records.len(),
        }
    }
}

/// A table whatever it holds: for reading, writing, hashing and comparing images.
pub(super) trait Section {
    /// Bytes of a record.
    fn record_bytes(&self) -> usize;
    /// Records.
    fn records(&self) -> usize;
    /// Chunks.
    fn chunks(&self) -> usize;
    /// A chunk's records, zeros at the end of the last included.
    fn chunk(&self, number: usize) -> Option<&[u8]>;
    /// blake3 of [`Self::chunk`].
    fn hash(&self, number: usize) -> Option<[u8; 32]>;
    /// A chunk's records, to be changed.
    fn chunk_mut(&mut self, number: usize) -> Option<&mut [u8]>;
    /// As [`Table::resize`].
    fn grow(&mut self, records: usize);
}

impl<T: Record> Section for Table<T> {
    fn record_bytes(&self) -> usize {
        size_of::<T>()
    }

    fn records(&self) -> usize {
        self.len
    }

    fn chunks(&self) -> usize {
        self.chunks.len()
    }

    fn chunk(&self, number: usize) -> Option<&[u8]> {
        self.chunks.get(number).map(|chunk| chunk.records.as_bytes())
    }

    fn hash(&self, number: usize) -> Option<[u8; 32]> {
        let chunk = self.chunks.get(number)?;
        let hash = || *blake3::hash(chunk.records.as_bytes()).as_bytes();
        Some(*chunk.hash.get_or_init(hash))
    }

    fn chunk_mut(&mut self, number: usize) -> Option<&mut [u8]> {
        let chunk = Arc::make_mut(self.chunks.get_mut(number)?);
        chunk.hash.take();
        Some(chunk.records.as_mut_bytes())
    }

    fn grow(&mut self, records: usize) {
        self.resize(records);
    }
}
