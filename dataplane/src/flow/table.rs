//! A shard of the flow table: two directional keys lead to one entry.
//!
//! The index has buckets of eight slots, one cache line each, and at least four slots per entry (two keys each, half
//! full at most). A key has two buckets to be in; it goes where more room is, and is looked for in sixteen slots at
//! most. Entries that may be thrown out stand in one of two lists, oldest first. Index, lists and free places are private
//! and are built from the entries when the shard is opened.

use zerocopy::{FromBytes, FromZeros, IntoBytes, KnownLayout};

use super::{
    FlowConfig, FlowRecord, Timeouts,
    entry::{Entry, Stamp},
    fragments::Fragments,
    hash::{KeyHash, Seed},
    memory::{FlowMemory, ShardMemory},
    rate::TokenBucket,
    state::{Direction, Standing, State},
};
use crate::{prefetch::prefetch, time::Nanos, wire::FlowKey};

const SLOTS: usize = 8;
const NONE: u32 = u32::MAX;

/// Slots hold a tag in the upper half and, in the lower, 0 for nothing or twice (1 + the entry's number) + direction.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
struct Bucket([u64; SLOTS]);

impl Bucket {
    /// The slots with a tag, by bit. Without a branch: where in its bucket a key lies cannot be predicted.
    #[inline]
    fn tagged(&self, tag: u32) -> u32 {
        let mut found = 0;
        for (nth, slot) in self.0.iter().enumerate() {
            found |= u32::from((*slot >> 32) as u32 == tag) << nth;
        }
        found
    }

    fn room(&self) -> usize {
        self.0.iter().filter(|slot| **slot as u32 == 0).count()
    }
}

/// Where the entry of a key seems to be: the lower half of a slot, or 0. Only a hint: the table may have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint(u32);

impl Hint {
    pub(crate) const NONE: Self = Self(0);

    /// The entry and the direction that a slot's lower half names.
    #[inline]
    fn place(self) -> Option<(usize, Direction)> {
        let direction = if self.0 & 1 == 0 {
            Direction::Original
        } else {
            Direction::Reply
        };
        Some(((self.0 as usize >> 1).checked_sub(1)?, direction))
    }
}

/// An entry's place in its list; means nothing for one that is in none.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    prev: u32,
    next: u32,
    /// When it got there.
    since: Nanos,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    length: usize,
}

const EMPTY_LIST: List = List {
    oldest: NONE,
    newest: NONE,
    length: 0,
};

/// Why there is no place for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Every place is taken by an entry that may not be thrown out.
    Full,
    /// Too many half-open entries, all of them young.
    HalfOpen,
}

/// What a shard did since it was asked last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) created: u64,
    pub(crate) expired: u64,
    pub(crate) evicted: u64,
    pub(crate) inherited: u64,
}

/// One shard: its flows, its fragmented datagrams, its limits. What every lookup reads shares its first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Shard {
    entries: &'static mut [Entry],
    buckets: &'static mut [Bucket],
    mask: usize,
    /// Places of entries that were used once.
    free: Vec<u32>,
    /// Places from here on have never been used.
    fresh: usize,
    /// `fresh`, for a successor.
    reached: &'static mut u32,
    links: Box<[Link]>,
    half_open: List,
    closed: List,
    half_open_limit: usize,
    half_open_grace: Nanos,
    timeouts: Timeouts,
    /// Where the sweep goes on.
    sweep: usize,
    seed: Seed,
    pub(crate) deeds: Deeds,
    pub(crate) fragments: Fragments,
    /// A flow was cut here: from then on nothing is picked up in the middle, or the rest of that flow would be.
    pub(crate) has_revoked: bool,
    /// ICMP errors let through.
    pub(crate) icmp_passed: TokenBucket,
    /// ICMP errors sent.
    pub(crate) icmp_sent: TokenBucket,
}

impl FlowMemory {
    /// Builds the shards: what a predecessor left is checked entry by entry, and the index is made anew.
    pub(crate) fn into_shards(self, config: &FlowConfig, icmp_sent: super::RateLimit) -> Vec<Shard> {
        let (seed, now) = (self.seed, self.now);
        let each = bucket_count(self.shards.first().map_or(0, |shard| shard.entries.len()));
        let buckets = buckets(each * self.shards.len());
        self.shards
            .into_iter()
            .zip(buckets.chunks_exact_mut(each))
            .enumerate()
            .map(|(number, (memory, buckets))| {
                Shard::open(memory, buckets, number, seed, config, icmp_sent, now)
            })
            .collect()
    }
}

impl Shard {
    fn open(
        memory: ShardMemory,
        buckets: &'static mut [Bucket],
        number: usize,
        seed: Seed,
        config: &FlowConfig,
        icmp_sent: super::RateLimit,
        now: Nanos,
    ) -> Self {
        let ShardMemory { entries, reached } = memory;
        let count = entries.len();
        let fresh = count.min(*reached as usize);
        let links = zeroed(count);
        let mut shard = Self {
            entries,
            mask: buckets.len() - 1,
            buckets,
            free: Vec::with_capacity(count),
            fresh,
            reached,
            links,
            half_open: EMPTY_LIST,
            closed: EMPTY_LIST,
            half_open_limit: (count * usize::from(config.half_open_share) / 256).max(1),
            half_open_grace: config.half_open_grace,
            timeouts: config.timeouts.clone(),
            sweep: 0,
            seed,
            deeds: Deeds::default(),
            fragments: Fragments::new(config.fragmented, config.fragment_timeout),
            has_revoked: false,
            icmp_passed: TokenBucket::new(config.icmp_errors),
            icmp_sent: TokenBucket::new(icmp_sent),
        };
        // From the end, so that places are given out from the begin.
        for index in (0..fresh).rev() {
            shard.open_entry(index, number, now);
        }
        shard
    }

    fn open_entry(&mut self, index: usize, number: usize, now: Nanos) {
        let seed = self.seed;
        let entry = &mut self.entries[index];
        if entry.state().is_some() && entry.adopt(|key| check(&seed, key), now) {
            let key = entry.key();
            let hash = seed.key(&key);
            // A flow twice, or in a shard that is not its own, is not of our writing.
            let fits = usize::from(hash.shard()) == number && self.find(hash, &key).is_none();
            if fits && self.index_both(index, &key) {
                self.enlist(index, now);
                self.deeds.inherited += 1;
                return;
            }
        }
        self.entries[index].free();
        self.free.push(index as u32);
    }

    /// The two buckets of a hash and its tag.
    #[inline]
    fn places(&self, hash: KeyHash) -> (usize, usize, u32) {
        let tag = (hash.directed >> 32) as u32;
        let first = hash.directed as usize & self.mask;
        let second = first ^ ((tag as usize).wrapping_mul(0x9e37_79b1) | 1) & self.mask;
        (first, second, tag)
    }

    /// Asks for the bucket of a key.
    #[inline]
    pub(crate) fn expect(&self, hash: KeyHash) {
        prefetch(&self.buckets[hash.directed as usize & self.mask]);
    }

    /// Asks for the entry that the buckets of a key seem to lead to, and says which that is.
    #[inline]
    pub(crate) fn expect_entry(&self, hash: KeyHash) -> Hint {
        let (first, second, tag) = self.places(hash);
        let mut slots = &self.buckets[first];
        let mut found = slots.tagged(tag);
        if found == 0 {
            slots = &self.buckets[second];
            found = slots.tagged(tag);
        }
        if found == 0 {
            return Hint::NONE;
        }
        let hint = Hint(slots.0[found.trailing_zeros() as usize % SLOTS] as u32);
        if let Some((index, _)) = hint.place()
            && let Some(entry) = self.entries.get(index)
        {
            entry.expect();
        }
        hint
    }

    /// What [`Self::find`] would answer, if the hint still leads there. A key has one entry at most: an entry in use with
    /// this key is the one.
    #[inline(always)]
    pub(crate) fn find_hinted(&self, key: &FlowKey, hint: Hint) -> Option<(usize, Direction)> {
        let (index, direction) = hint.place()?;
        let entry = self.entries.get(index)?;
        (entry.state().is_some() && entry.is(key, direction)).then_some((index, direction))
    }

    /// The entry of a key and which of its directions the key is.
    #[inline(never)]
    pub(crate) fn find(&self, hash: KeyHash, key: &FlowKey) -> Option<(usize, Direction)> {
        let (first, second, tag) = self.places(hash);
        self.find_in(first, tag, key)
            .or_else(|| self.find_in(second, tag, key))
    }

    #[inline]
    fn find_in(&self, bucket: usize, tag: u32, key: &FlowKey) -> Option<(usize, Direction)> {
        let slots = &self.buckets[bucket];
        let mut found = slots.tagged(tag);
        while found != 0 {
            let slot = slots.0[found.trailing_zeros() as usize % SLOTS];
            found &= found - 1;
            if let Some((index, direction)) = Hint(slot as u32).place()
                && self.entries[index].is(key, direction)
            {
                return Some((index, direction));
            }
        }
        None
    }

    #[inline]
    pub(crate) fn entry(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    #[inline]
    pub(crate) fn entry_mut(&mut self, index: usize) -> &mut Entry {
        &mut self.entries[index]
    }

    /// Whether an entry has outlived its time.
    #[inline]
    pub(crate) fn is_expired(&self, index: usize, now: Nanos) -> bool {
        let entry = &self.entries[index];
        entry
            .state()
            .is_none_or(|state| now.since(entry.last_seen()) > state.timeout(&self.timeouts))
    }

    /// Moves an entry to a state.
    #[inline]
    pub(crate) fn set_state(&mut self, index: usize, state: State, now: Nanos) {
        let Some(old) = self.entries[index].state() else {
            return;
        };
        if old == state {
            return;
        }
        if old.standing() == state.standing() {
            self.entries[index].set_state(state);
        } else {
            self.delist(index);
            self.entries[index].set_state(state);
            self.enlist(index, now);
        }
    }

    /// Makes an entry for a flow that has none. Throws out closed entries first, then half-open ones.
    pub(crate) fn insert(
        &mut self,
        key: &FlowKey,
        state: State,
        stamp: &Stamp,
        trusted: bool,
        now: Nanos,
    ) -> Result<usize, NoPlace> {
        let half_open = state.standing() == Standing::HalfOpen;
        if half_open && self.half_open.length >= self.half_open_limit && !self.evict_half_open(now) {
            return Err(NoPlace::HalfOpen);
        }
        if self.next_free().is_none() && !self.evict_closed() && !self.evict_half_open(now) {
            return Err(NoPlace::Full);
        }
        let index = self.next_free().ok_or(NoPlace::Full)?;
        // Marked used last (see `memory`): a process killed before leaves a free place.
        let mut entry = Entry::new(key, state, check(&self.seed, key), stamp, trusted, now);
        entry.free();
        self.entries[index] = entry;
        if !self.index_both(index, key) {
            return Err(NoPlace::Full);
        }
        if self.free.pop().is_none() {
            self.fresh = index + 1;
            *self.reached = self.fresh as u32;
        }
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        self.entries[index].set_state(state);
        self.enlist(index, now);
        self.deeds.created += 1;
        Ok(index)
    }

    /// The place that the next entry gets: used ones first, so that a successor has little to read.
    fn next_free(&self) -> Option<usize> {
        match self.free.last() {
            Some(index) => Some(*index as usize),
            None => (self.fresh < self.entries.len()).then_some(self.fresh),
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, index: usize) {
        if self.entries[index].state().is_none() {
            return;
        }
        self.delist(index);
        let key = self.entries[index].key();
        self.entries[index].free();
        for key in [key, key.reversed()] {
            let (first, second, _) = self.places(self.seed.key(&key));
            for bucket in [first, second] {
                for slot in &mut self.buckets[bucket].0 {
                    if *slot as u32 >> 1 == index as u32 + 1 {
                        *slot = 0;
                    }
                }
            }
        }
        self.free.push(index as u32);
    }

    fn index_both(&mut self, index: usize, key: &FlowKey) -> bool {
        let back = key.reversed();
        if !self.index_one(index, key, Direction::Original) {
            return false;
        }
        // A flow from an address and port to itself has one key.
        if back == *key || self.index_one(index, &back, Direction::Reply) {
            return true;
        }
        let (first, second, _) = self.places(self.seed.key(key));
        for bucket in [first, second] {
            for slot in &mut self.buckets[bucket].0 {
                if *slot as u32 >> 1 == index as u32 + 1 {
                    *slot = 0;
                }
            }
        }
        false
    }

    fn index_one(&mut self, index: usize, key: &FlowKey, direction: Direction) -> bool {
        let (first, second, tag) = self.places(self.seed.key(key));
        let bucket = if self.buckets[second].room() > self.buckets[first].room() {
            second
        } else {
            first
        };
        let low = (index as u32 + 1) << 1 | direction as u32;
        match self.buckets[bucket].0.iter_mut().find(|slot| **slot as u32 == 0) {
            Some(slot) => {
                *slot = u64::from(tag) << 32 | u64::from(low);
                true
            }
            None => false,
        }
    }

    fn list(&mut self, index: usize) -> Option<&mut List> {
        match self.entries[index].state()?.standing() {
            Standing::Kept => None,
            Standing::HalfOpen => Some(&mut self.half_open),
            Standing::Closed => Some(&mut self.closed),
        }
    }

    /// Puts an entry at the end of the list that its state belongs to.
    fn enlist(&mut self, index: usize, now: Nanos) {
        let Some(list) = self.list(index) else {
            return;
        };
        let before = std::mem::replace(&mut list.newest, index as u32);
        if before == NONE {
            list.oldest = index as u32;
        }
        list.length += 1;
        self.links[index] = Link {
            prev: before,
            next: NONE,
            since: now,
        };
        if before != NONE {
            self.links[before as usize].next = index as u32;
        }
    }

    /// Takes an entry out of the list that its state belongs to.
    fn delist(&mut self, index: usize) {
        let Link { prev, next, .. } = self.links[index];
        let Some(list) = self.list(index) else {
            return;
        };
        if prev == NONE {
            list.oldest = next;
        }
        if next == NONE {
            list.newest = prev;
        }
        list.length -= 1;
        if prev != NONE {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
    }

    fn evict_closed(&mut self) -> bool {
        self.evict(self.closed.oldest)
    }

    fn evict_half_open(&mut self, now: Nanos) -> bool {
        let oldest = self.half_open.oldest;
        oldest != NONE
            && now.since(self.links[oldest as usize].since) >= self.half_open_grace
            && self.evict(oldest)
    }

    fn evict(&mut self, index: u32) -> bool {
        if index == NONE {
            return false;
        }
        self.remove(index as usize);
        self.deeds.evicted += 1;
        true
    }

    /// Looks at the next few entries and takes out those that have outlived their time.
    pub(crate) fn sweep(&mut self, budget: usize, now: Nanos) {
        for _ in 0..budget.min(self.fresh) {
            let index = self.sweep;
            self.sweep = (self.sweep + 1) % self.fresh;
            if self.entries[index].state().is_some() && self.is_expired(index, now) {
                self.remove(index);
                self.deeds.expired += 1;
            }
        }
    }

    /// Entries in use, that fit, half-open, and how many of those may be.
    pub(crate) fn fill(&self) -> [u64; 4] {
        let capacity = self.entries.len();
        [
            self.fresh - self.free.len(),
            capacity,
            self.half_open.length,
            self.half_open_limit,
        ]
        .map(|n| n as u64)
    }

    /// How many entries were ever used, and all of them.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> (u32, Vec<u8>) {
        use zerocopy::IntoBytes;
        (*self.reached, self.entries.as_bytes().to_vec())
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Copies entries from `from` on into `records` up to its capacity, looking at `looks` places at most, which it
    /// counts down; answers where to go on, None at the end.
    pub(crate) fn dump(
        &self,
        from: usize,
        looks: &mut usize,
        records: &mut Vec<FlowRecord>,
    ) -> Option<usize> {
        for (index, entry) in self.entries.iter().enumerate().take(self.fresh).skip(from) {
            if records.len() == records.capacity() || *looks == 0 {
                return Some(index);
            }
            *looks -= 1;
            records.extend(entry.record(&self.seed));
        }
        None
    }
}

/// Buckets of a shard with so many entries.
fn bucket_count(entries: usize) -> usize {
    (entries * 4).div_ceil(SLOTS).next_power_of_two()
}

/// So many empty buckets, for the rest of the process's life. The system zeroes them where they are first touched: all at
/// once, they would be most of a restart. It does so for one large allocation of words, not for what the allocator has to
/// align to cache lines.
fn buckets(count: usize) -> &'static mut [Bucket] {
    let words = Box::leak(vec![0_u64; (count + 1) * SLOTS].into_boxed_slice());
    let skip = words.as_ptr().align_offset(align_of::<Bucket>());
    let lines = words.get_mut(skip..skip + count * SLOTS).unwrap_or_default();
    <[Bucket]>::mut_from_bytes(lines.as_mut_bytes())
        .unwrap_or_else(|_| unreachable!("aligned, and of whole buckets"))
}

/// So many records of zeros.
fn zeroed<T: FromZeros>(count: usize) -> Box<[T]> {
    // Errors where the size overflows or memory is out, as `vec![]` would abort there.
    <[T]>::new_box_zeroed_with_elems(count)
        .unwrap_or_else(|_| std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>()))
}

/// Over the key of an entry.
fn check(seed: &Seed, key: &FlowKey) -> u32 {
    seed.key(key).directed as u32 ^ 0x5a5a_5a5a
}

#[cfg(test)]
mod tests;
