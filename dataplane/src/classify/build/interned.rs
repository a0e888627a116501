//! Things that are kept once however often they are asked for, and counted; and the places that freed ones leave.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash},
};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::classify::{
    BuildError,
    image::Tables,
    layout::{NONE, StringRecord},
    table::{CHUNK_BYTES, Record, Table},
};

/// What is kept once, by content; numbers are the caller's.
#[derive(Debug)]
pub(super) struct InternTable<K> {
    /// Numbers by content.
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// By number: content and how many hold it.
    held: Vec<(Option<K>, u32)>,
}

impl<K> Default for InternTable<K> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            held: Vec::new(),
        }
    }
}

impl<K: Hash> InternTable<K> {
    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        let (held, hasher) = (&self.held, &self.hasher);
        self.index.reserve(more, |number| hash_of(held, hasher, *number));
        self.held.reserve(more);
    }

    pub(super) fn find<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<u32>
    where
        K: Borrow<Q>,
    {
        let is = |number: &u32| self.get(*number).is_some_and(|known| known.borrow() == key);
        self.index.find(self.hasher.hash_one(key), is).copied()
    }

    /// Notes a new one without holders.
    pub(super) fn insert(&mut self, number: u32, key: K) {
        let hash = self.hasher.hash_one(&key);
        let at = number as usize;
        if self.held.len() <= at {
            self.held.resize_with(at + 1, || (None, 0));
        }
        if let Some(place) = self.held.get_mut(at) {
            *place = (Some(key), 0);
        }
        let (held, hasher) = (&self.held, &self.hasher);
        self.index
            .insert_unique(hash, number, |number| hash_of(held, hasher, *number));
    }

    #[inline]
    pub(super) fn hold(&mut self, number: u32) {
        if let Some((_, count)) = self.held.get_mut(number as usize) {
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<&K> {
        self.held.get(number as usize)?.0.as_ref()
    }

    /// Answers the content when its last holder is gone: its number is free then.
    pub(super) fn release(&mut self, number: u32) -> Option<K> {
        let (key, count) = self.held.get_mut(number as usize)?;
        *count = count.saturating_sub(1);
        if *count > 0 {
            return None;
        }
        let key = key.take()?;
        let hash = self.hasher.hash_one(&key);
        if let Ok(entry) = self.index.find_entry(hash, |known| *known == number) {
            entry.remove();
        }
        Some(key)
    }
}

fn hash_of<K: Hash>(held: &[(Option<K>, u32)], hasher: &DefaultHashBuilder, number: u32) -> u64 {
    let key = held.get(number as usize).and_then(|(key, _)| key.as_ref());
    key.map_or(0, |key| hasher.hash_one(key))
}

/// Numbers of single records in a table.
#[derive(Debug, Default)]
pub(super) struct RecordAllocator {
    free: Vec<u32>,
}

impl RecordAllocator {
    /// Writes a record to a free place, or to a new one.
    pub(super) fn put<T: Record>(&mut self, table: &mut Table<T>, record: T) -> u32 {
        match self.free.pop() {
            Some(number) => {
                table.set(number as usize, record);
                number
            }
            None => table.push(record) as u32,
        }
    }

    pub(super) fn free(&mut self, number: u32) {
        self.free.push(number);
    }

    /// The number that is given out next, where a free one is.
    pub(super) fn next(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// Free places.
    pub(super) fn count(&self) -> usize {
        self.free.len()
    }
}

/// Consecutive records in a table, by length.
#[derive(Debug, Default)]
pub(super) struct RunAllocator {
    free: HashMap<usize, Vec<u32>>,
    /// Records in free runs.
    count: usize,
}

impl RunAllocator {
    /// Writes records to a free place of their length, or to a new one: one that lies in one chunk if `whole` and they
    /// are not more than fit one. What is left over in the chunk before is filled with `filler`.
    pub(super) fn put<T: Record>(&mut self, table: &mut Table<T>, records: &[T], whole: Option<T>) -> u32 {
        let at = match self.free.get_mut(&records.len()).and_then(Vec::pop) {
            Some(at) => {
                self.count -= records.len();
                at as usize
            }
            None => {
                let mut at = table.len();
                let left = T::PER_CHUNK - at % T::PER_CHUNK;
                if let Some(filler) = whole
                    && records.len() > left
                    && records.len() <= T::PER_CHUNK
                {
                    table.resize(at + left);
                    table.write(at, &vec![filler; left]);
                    self.count += left;
                    at += left;
                }
                table.resize(at + records.len());
                at
            }
        };
        table.write(at, records);
        at as u32
    }

    pub(super) fn free(&mut self, at: u32, length: usize) {
        self.count += length;
        self.free.entry(length).or_default().push(at);
    }

    /// Records in free places.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// Names, each once.
#[derive(Debug, Default)]
pub(super) struct StringTable {
    known: InternTable<Box<str>>,
    numbers: RecordAllocator,
    places: RunAllocator,
    padded: Vec<u8>,
}

impl StringTable {
    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        self.known.reserve(more);
    }

    /// The number of a string; counts.
    pub(super) fn hold(&mut self, tables: &mut Tables, string: &str) -> Result<u32, BuildError> {
        if let Some(number) = self.known.find(string) {
            self.known.hold(number);
            return Ok(number);
        }
        if string.len() > CHUNK_BYTES {
            return Err(BuildError::NameLength {
                length: string.len(),
                most: CHUNK_BYTES,
            });
        }
        // Places of few lengths are used again more often.
        self.padded.clear();
        self.padded.extend_from_slice(string.as_bytes());
        self.padded.resize(string.len().next_multiple_of(16), 0);
        let record = StringRecord {
            offset: self.places.put(&mut tables.text, &self.padded, Some(0)),
            length: string.len() as u32,
        };
        let number = self.numbers.put(&mut tables.strings, record);
        self.known.insert(number, string.into());
        self.known.hold(number);
        Ok(number)
    }

    /// A string by its number.
    pub(super) fn get(&self, number: u32) -> Option<&str> {
        self.known.get(number).map(AsRef::as_ref)
    }

    pub(super) fn release(&mut self, tables: &mut Tables, number: u32) {
        if number == NONE {
            return;
        }
        let Some(string) = self.known.release(number) else {
            return;
        };
        if let Some(record) = tables.strings.get(number as usize) {
            self.places.free(record.offset, string.len().next_multiple_of(16));
        }
        let empty = StringRecord { offset: 0, length: 0 };
        tables.strings.set(number as usize, empty);
        self.numbers.free(number);
    }

    /// Bytes of text that are not used.
    pub(super) fn waste(&self) -> usize {
        self.places.count()
    }
}
