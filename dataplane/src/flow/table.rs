//! The flow table of one worker: two directional keys lead to one entry.
//!
//! The index has buckets of eight slots, one cache line each, and at least four slots per entry (two keys each, half
//! full at most). A key has two buckets to be in; it goes where more room is, and is looked for in sixteen slots at
//! most. Entries that may be thrown out stand in one of two lists, oldest first. Index, lists and free places are private
//! and are built from the entries when the table is opened.
//!
//! All flows share the entries. [`QuotaSketch`] limits how many flows one endpoint may begin; when the table is full,
//! flows of the endpoints that hold most are evicted for those of endpoints that hold less.

mod cached;

use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, IntoBytes, KnownLayout};

use super::{
    FlowConfig, FlowRecord, RateLimit, Timeouts,
    entry::{DecisionStamp, Entry},
    hash::{KeyHash, Seed},
    memory::{FlowMemory, TableMemory},
    quota::QuotaSketch,
    rate::TokenBucket,
    state::{EvictionClass, FlowDirection, State},
};
use crate::{node::cache::FlowCache, prefetch::prefetch, time::Nanos, verdict::DropReason, wire::FlowKey};

const SLOTS: usize = 8;
const NONE: u32 = u32::MAX;

/// Slots. Tags and places lie apart, so that the compiler compares all tags at once.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u32; SLOTS],
    /// 0 for nothing, else twice (1 + the entry's number) + direction.
    places: [u32; SLOTS],
}

impl Bucket {
    /// The slots with a tag, by bit; empty ones may be among them. Without a branch: where in its bucket a key lies cannot
    /// be predicted.
    #[inline]
    fn tagged(&self, tag: u32) -> u32 {
        let mut found = 0;
        for (nth, other) in self.tags.iter().enumerate() {
            found |= u32::from(*other == tag) << nth;
        }
        found
    }

    /// The place in a slot that [`Self::tagged`] found, of the lowest bit of what it found.
    #[inline]
    fn first_place(&self, found: u32) -> Hint {
        Hint(self.places[found.trailing_zeros() as usize % SLOTS])
    }

    fn free_slots(&self) -> usize {
        self.places.iter().filter(|place| **place == 0).count()
    }

    /// Whether there was room.
    fn insert(&mut self, tag: u32, place: u32) -> bool {
        match self.places.iter().position(|place| *place == 0) {
            Some(slot) => {
                (self.tags[slot], self.places[slot]) = (tag, place);
                true
            }
            None => false,
        }
    }

    /// Empties the slots of an entry.
    fn remove(&mut self, index: usize) {
        for (tag, place) in self.tags.iter_mut().zip(&mut self.places) {
            if *place >> 1 == index as u32 + 1 {
                (*tag, *place) = (0, 0);
            }
        }
    }
}

/// Where the entry of a key probably is: the place in a slot. The table may have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint(u32);

impl Hint {
    pub(crate) const NONE: Self = Self(0);

    /// The entry and the direction that it names.
    #[inline]
    fn decode(self) -> Option<(usize, FlowDirection)> {
        let direction = if self.0 & 1 == 0 {
            FlowDirection::Original
        } else {
            FlowDirection::Reply
        };
        Some(((self.0 as usize >> 1).checked_sub(1)?, direction))
    }
}

/// An entry's links in its eviction list; meaningless for an entry that is in none.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    prev: u32,
    next: u32,
    /// When it was linked.
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

/// Why a flow cannot be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// Every entry is in use and may not be evicted.
    Full,
    /// Too many half-open entries, all of them young.
    HalfOpen,
    /// Its source has begun as many flows as one endpoint may.
    Quota,
}

/// What a table did since the gauges were last updated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activity {
    pub(crate) created: u64,
    pub(crate) expired: u64,
    pub(crate) evicted: u64,
    pub(crate) inherited: u64,
    /// Packets that the kernel let through in audit mode, by the reason for which enforcement would have dropped them.
    pub(crate) audited: [u64; DropReason::ALL.len()],
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            created: 0,
            expired: 0,
            evicted: 0,
            inherited: 0,
            audited: [0; DropReason::ALL.len()],
        }
    }
}

/// Entries examined to find one to evict: of a list from its oldest on, of the table from where the last search
/// ended.
const EVICTION_SCAN: usize = 32;

/// What asking the flow cache about an entry costs, in looks at entries.
const LOOKS_PER_REFRESH: usize = 4;

/// Limit on searches for flows to evict.
const EVICTION_SEARCH_LIMIT: RateLimit = RateLimit {
    per_second: 2000,
    burst: 256,
};

/// The flows of one worker. What every lookup reads shares its first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct FlowTable {
    entries: &'static mut [Entry],
    buckets: &'static mut [Bucket],
    mask: usize,
    /// Entries that were used and freed.
    free: Vec<u32>,
    /// Entries from here on have never been used.
    next_unused: usize,
    /// `fresh`, for a successor: by segment, of so many entries each.
    high_water: &'static mut [u32],
    segment_entries: usize,
    links: Box<[Link]>,
    half_open: List,
    closed: List,
    limits: Limits,
    timeouts: Timeouts,
    /// Whether packets may have passed unseen before this process began.
    unseen: bool,
    /// Flows by the endpoints at both their ends, and the half-open ones among them.
    flows: QuotaSketch,
    half_open_flows: QuotaSketch,
    /// Where the sweep and the search for idle flows continue.
    sweep: usize,
    idle: usize,
    /// Limits searches for idle flows, which would be most of the work under a flood. Searches among an endpoint's
    /// own flows have a separate limit.
    searches: TokenBucket,
    own_searches: TokenBucket,
    seed: Seed,
    pub(crate) activity: Activity,
    /// On a node: where the kernel finds the flows' decisions, and counts their packets.
    cache: Option<Arc<FlowCache>>,
    /// The half-open entry that is asked about next, and when all of them had been.
    next_half_open: u32,
    asked_half_open: Nanos,
}

/// How many entries there may be of each kind.
#[derive(Clone, Copy, Debug)]
struct Limits {
    half_open: usize,
    /// Flows that one endpoint may have begun.
    endpoint: u32,
    /// Half-open flows of one endpoint.
    endpoint_half_open: u32,
    half_open_grace: Nanos,
    idle_grace: Nanos,
}

impl Limits {
    fn new(entries: usize, config: &FlowConfig) -> Self {
        let share = |of: usize, share: u16| (of * usize::from(share) / 256).max(1);
        let half_open = share(entries, config.half_open_share.into());
        Self {
            half_open,
            endpoint: match config.endpoint_share {
                256.. => u32::MAX,
                part => share(entries, part) as u32,
            },
            endpoint_half_open: share(half_open, config.endpoint_half_open_share) as u32,
            half_open_grace: config.half_open_grace,
            idle_grace: config.idle_grace,
        }
    }
}

impl FlowMemory {
    /// Builds the tables of so many workers: what a predecessor left is checked entry by entry, and the index is made
    /// anew. A flow that another worker owns now moves to its table.
    pub(crate) fn into_tables(
        self,
        workers: usize,
        config: &FlowConfig,
        cache: Option<&Arc<FlowCache>>,
    ) -> Vec<FlowTable> {
        let (seed, now) = (self.seed, self.now);
        let mut strays = Vec::new();
        let mut tables: Vec<FlowTable> = self
            .split(workers)
            .into_iter()
            .enumerate()
            .map(|(worker, memory)| {
                let owned = |shard: u8| usize::from(shard) % workers == worker;
                FlowTable::open(memory, owned, seed, config, cache, now, &mut strays)
            })
            .collect();
        for stray in strays {
            let shard = seed.key(&stray.key()).shard();
            tables[usize::from(shard) % workers].insert_inherited(stray, now);
        }
        tables
    }
}

impl FlowTable {
    fn open(
        memory: TableMemory,
        owned: impl Fn(u8) -> bool,
        seed: Seed,
        config: &FlowConfig,
        cache: Option<&Arc<FlowCache>>,
        now: Nanos,
        strays: &mut Vec<Entry>,
    ) -> Self {
        let TableMemory {
            entries,
            high_water: reached,
            segment_entries: segment,
        } = memory;
        let count = entries.len();
        let buckets = buckets(bucket_count(count));
        let used: Vec<usize> = reached
            .iter()
            .map(|reached| segment.min(*reached as usize))
            .collect();
        let last = used.iter().rposition(|used| *used > 0);
        let fresh = last.map_or(0, |last| last * segment + used[last]);
        let mut table = Self {
            entries,
            mask: buckets.len() - 1,
            buckets,
            free: Vec::with_capacity(count),
            next_unused: fresh,
            high_water: reached,
            segment_entries: segment,
            links: zeroed(count),
            half_open: EMPTY_LIST,
            closed: EMPTY_LIST,
            limits: Limits::new(count, config),
            timeouts: config.timeouts.clone(),
            unseen: config.unseen,
            flows: QuotaSketch::new(),
            half_open_flows: QuotaSketch::new(),
            sweep: 0,
            idle: 0,
            searches: TokenBucket::new(EVICTION_SEARCH_LIMIT),
            own_searches: TokenBucket::new(EVICTION_SEARCH_LIMIT),
            seed,
            activity: Activity::default(),
            cache: cache.cloned(),
            next_half_open: NONE,
            asked_half_open: Nanos(0),
        };
        // From the end, so entries are allocated from the beginning.
        for index in (0..fresh).rev() {
            if index % segment < used[index / segment] {
                table.open_entry(index, &owned, now, strays);
            } else {
                table.entries[index].free();
                table.free.push(index as u32);
            }
        }
        table
    }

    fn open_entry(&mut self, index: usize, owned: impl Fn(u8) -> bool, now: Nanos, strays: &mut Vec<Entry>) {
        let seed = self.seed;
        let entry = &mut self.entries[index];
        if entry.state().is_some() {
            let key = entry.key();
            let charged = [key.src, key.dst].map(|addr| seed.account(addr));
            let is_node = self.cache.is_some();
            if entry.inherit(|key| check(&seed, key), charged, self.unseen, is_node, now) {
                let hash = seed.key(&key);
                if !owned(hash.shard()) {
                    strays.push(*entry);
                } else if self.find(hash, &key).is_none() && self.index_both(index, &key) {
                    // A flow that is there twice was not written by ringwall.
                    self.charge_accounts(index);
                    self.link(index, now);
                    self.activity.inherited += 1;
                    return;
                }
            }
        }
        self.entries[index].free();
        self.free.push(index as u32);
    }

    /// Inserts a flow from another table's memory.
    fn insert_inherited(&mut self, stray: Entry, now: Nanos) {
        let (key, Some(state)) = (stray.key(), stray.state()) else {
            return;
        };
        if self.find(self.seed.key(&key), &key).is_some() {
            return;
        }
        let Some(index) = self.allocate() else { return };
        self.entries[index] = stray;
        self.entries[index].free();
        if self.index_both(index, &key) {
            self.mark_used(index, state, now);
            self.activity.inherited += 1;
        }
    }

    /// The two buckets of a hash and its tag.
    #[inline]
    fn bucket_pair(&self, hash: KeyHash) -> (usize, usize, u32) {
        let tag = (hash.directed >> 32) as u32;
        let first = hash.directed as usize & self.mask;
        let second = first ^ ((tag as usize).wrapping_mul(0x9e37_79b1) | 1) & self.mask;
        (first, second, tag)
    }

    /// Asks for the bucket of a key.
    #[inline]
    pub(crate) fn prefetch_buckets(&self, hash: KeyHash) {
        prefetch(&self.buckets[hash.directed as usize & self.mask]);
    }

    /// Asks for the entry that the buckets of a key seem to lead to, and says which that is.
    #[inline]
    pub(crate) fn prefetch_entry(&self, hash: KeyHash) -> Hint {
        let (first, second, tag) = self.bucket_pair(hash);
        let mut slots = &self.buckets[first];
        let mut found = slots.tagged(tag);
        if found == 0 {
            slots = &self.buckets[second];
            found = slots.tagged(tag);
        }
        if found == 0 {
            return Hint::NONE;
        }
        let hint = slots.first_place(found);
        if let Some((index, _)) = hint.decode()
            && let Some(entry) = self.entries.get(index)
        {
            entry.prefetch();
        }
        hint
    }

    /// As [`Self::find`], if the hint is still right. A key has at most one entry, so an entry in use with this key
    /// is the one.
    #[inline(always)]
    pub(crate) fn find_hinted(&self, key: &FlowKey, hint: Hint) -> Option<(usize, FlowDirection)> {
        let (index, direction) = hint.decode()?;
        let entry = self.entries.get(index)?;
        (entry.state().is_some() && entry.matches(key, direction)).then_some((index, direction))
    }

    /// The entry of a key and which of its directions the key is.
    #[inline(never)]
    pub(crate) fn find(&self, hash: KeyHash, key: &FlowKey) -> Option<(usize, FlowDirection)> {
        let (first, second, tag) = self.bucket_pair(hash);
        self.find_in(first, tag, key)
            .or_else(|| self.find_in(second, tag, key))
    }

    #[inline]
    fn find_in(&self, bucket: usize, tag: u32, key: &FlowKey) -> Option<(usize, FlowDirection)> {
        let slots = &self.buckets[bucket];
        let mut found = slots.tagged(tag);
        while found != 0 {
            let place = slots.first_place(found);
            found &= found - 1;
            if let Some((index, direction)) = place.decode()
                && self.entries[index].matches(key, direction)
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

    /// Whether an entry has timed out.
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
        if old.eviction_class() == state.eviction_class() {
            self.entries[index].set_state(state);
        } else {
            self.unlink(index);
            self.entries[index].set_state(state);
            self.link(index, now);
        }
    }

    /// Creates an entry for a flow that has none. Evicts closed entries first, then half-open ones, then idle ones of
    /// endpoints that hold more than this flow's. `charged`: the quota accounts of its source and destination.
    pub(crate) fn insert(
        &mut self,
        key: &FlowKey,
        state: State,
        charged: [u32; 2],
        stamp: &DecisionStamp,
        now: Nanos,
    ) -> Result<usize, InsertError> {
        if state.eviction_class() == EvictionClass::HalfOpen {
            self.admit_half_open(charged, now)?;
        }
        if self.flows.estimate(charged[0]) >= self.limits.endpoint && !self.evict_own(charged[0], now) {
            return Err(InsertError::Quota);
        }
        if self.allocate().is_none()
            && !self.evict_closed(now)
            && !self.evict_half_open(now)
            && !self.evict_idle(charged, now)
        {
            return Err(InsertError::Full);
        }
        let index = self.allocate().ok_or(InsertError::Full)?;
        // Marked used last (see `memory`): a process killed before leaves a free place.
        let mut entry = Entry::new(key, state, check(&self.seed, key), charged, stamp, now);
        entry.free();
        self.entries[index] = entry;
        if !self.index_both(index, key) {
            return Err(InsertError::Full);
        }
        self.mark_used(index, state, now);
        self.activity.created += 1;
        Ok(index)
    }

    /// Marks an entry used that is written and indexed.
    fn mark_used(&mut self, index: usize, state: State, now: Nanos) {
        if self.free.pop().is_none() {
            self.next_unused = index + 1;
        }
        let (segment, within) = (index / self.segment_entries, index % self.segment_entries);
        if let Some(reached) = self.high_water.get_mut(segment) {
            *reached = (*reached).max(within as u32 + 1);
        }
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        self.entries[index].set_state(state);
        self.charge_accounts(index);
        self.link(index, now);
    }

    fn charge_accounts(&mut self, index: usize) {
        for account in self.entries[index].accounts() {
            self.flows.add(account);
        }
    }

    /// Whether one more half-open flow may be, after others have given way.
    fn admit_half_open(&mut self, charged: [u32; 2], now: Nanos) -> Result<(), InsertError> {
        for account in charged {
            if self.half_open_flows.estimate(account) >= self.limits.endpoint_half_open
                && !self.evict_half_open_of(account, now)
            {
                return Err(InsertError::HalfOpen);
            }
        }
        if self.half_open.length >= self.limits.half_open && !self.evict_half_open(now) {
            return Err(InsertError::HalfOpen);
        }
        Ok(())
    }

    /// The place that the next entry gets: used ones first, so that a successor has little to read.
    fn allocate(&self) -> Option<usize> {
        match self.free.last() {
            Some(index) => Some(*index as usize),
            None => (self.next_unused < self.entries.len()).then_some(self.next_unused),
        }
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, index: usize) {
        if self.entries[index].state().is_none() {
            return;
        }
        if self.entries[index].is_cached() {
            self.remove_cached(index);
        }
        self.unlink(index);
        for account in self.entries[index].accounts() {
            self.flows.remove(account);
        }
        let key = self.entries[index].key();
        self.entries[index].free();
        for key in [key, key.reversed()] {
            let (first, second, _) = self.bucket_pair(self.seed.key(&key));
            for bucket in [first, second] {
                self.buckets[bucket].remove(index);
            }
        }
        self.free.push(index as u32);
    }

    fn index_both(&mut self, index: usize, key: &FlowKey) -> bool {
        let back = key.reversed();
        if !self.index_one(index, key, FlowDirection::Original) {
            return false;
        }
        // A flow from an address and port to itself has one key.
        if back == *key || self.index_one(index, &back, FlowDirection::Reply) {
            return true;
        }
        let (first, second, _) = self.bucket_pair(self.seed.key(key));
        for bucket in [first, second] {
            self.buckets[bucket].remove(index);
        }
        false
    }

    fn index_one(&mut self, index: usize, key: &FlowKey, direction: FlowDirection) -> bool {
        let (first, second, tag) = self.bucket_pair(self.seed.key(key));
        let bucket = if self.buckets[second].free_slots() > self.buckets[first].free_slots() {
            second
        } else {
            first
        };
        self.buckets[bucket].insert(tag, (index as u32 + 1) << 1 | direction as u32)
    }

    fn list(&mut self, index: usize) -> Option<&mut List> {
        match self.entries[index].state()?.eviction_class() {
            EvictionClass::Open => None,
            EvictionClass::HalfOpen => Some(&mut self.half_open),
            EvictionClass::Closed => Some(&mut self.closed),
        }
    }

    /// Puts an entry at the end of the list that its state belongs to.
    fn link(&mut self, index: usize, now: Nanos) {
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
        if self.is_half_open(index) {
            for account in self.entries[index].accounts() {
                self.half_open_flows.add(account);
            }
        }
    }

    fn is_half_open(&self, index: usize) -> bool {
        let state = self.entries[index].state();
        state.is_some_and(|state| state.eviction_class() == EvictionClass::HalfOpen)
    }

    /// Takes an entry out of the list that its state belongs to.
    fn unlink(&mut self, index: usize) {
        let Link { prev, next, .. } = self.links[index];
        if self.next_half_open == index as u32 {
            self.next_half_open = next;
        }
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
        if self.is_half_open(index) {
            for account in self.entries[index].accounts() {
                self.half_open_flows.remove(account);
            }
        }
    }

    fn evict_closed(&mut self, now: Nanos) -> bool {
        self.refresh_oldest(EvictionClass::Closed, now);
        self.evict(self.closed.oldest)
    }

    fn evict_half_open(&mut self, now: Nanos) -> bool {
        self.refresh_oldest(EvictionClass::HalfOpen, now);
        let oldest = self.half_open.oldest;
        oldest != NONE
            && now.since(self.links[oldest as usize].since) >= self.limits.half_open_grace
            && self.evict(oldest)
    }

    /// The oldest half-open flow of an endpoint gives way to another of its own. Who fills a share has most of the
    /// oldest, too.
    fn evict_half_open_of(&mut self, account: u32, now: Nanos) -> bool {
        let mut at = self.half_open.oldest;
        for _ in 0..EVICTION_SCAN {
            if at == NONE || now.since(self.links[at as usize].since) < self.limits.half_open_grace {
                return false;
            }
            let next = self.links[at as usize].next;
            if self.entries[at as usize].accounts().contains(&account) {
                self.refresh(at as usize, now);
                if self.is_half_open(at as usize) {
                    return self.evict(at);
                }
            }
            at = next;
        }
        false
    }

    /// What of the table the endpoint at its heavier end holds.
    fn endpoint_load(&self, charged: [u32; 2]) -> u32 {
        self.flows
            .estimate(charged[0])
            .max(self.flows.estimate(charged[1]))
    }

    /// The longest idle of a few open flows that a source has begun gives way to its own next one.
    fn evict_own(&mut self, account: u32, now: Nanos) -> bool {
        let grace = self.limits.idle_grace;
        self.own_searches.take(now)
            && self.evict_longest_idle(now, |_, entry, idle| {
                idle >= grace && entry.accounts()[0] == account
            })
    }

    /// The longest idle of a few open flows of endpoints that hold more than those of a new one. Who holds as much as one
    /// endpoint may have begun keeps others out even where all of it is in use: many who agree can begin flows with one.
    fn evict_idle(&mut self, charged: [u32; 2], now: Nanos) -> bool {
        let weight = self.endpoint_load(charged);
        let Limits {
            endpoint, idle_grace, ..
        } = self.limits;
        if weight >= endpoint {
            // Few endpoints hold more: evict one of its own.
            let heavier = charged
                .into_iter()
                .max_by_key(|account| self.flows.estimate(*account));
            return self.own_searches.take(now)
                && self.evict_longest_idle(now, |_, entry, idle| {
                    idle >= idle_grace
                        && entry
                            .accounts()
                            .into_iter()
                            .any(|account| Some(account) == heavier)
                });
        }
        if !self.searches.take(now) {
            return false;
        }
        self.evict_longest_idle(now, |table, entry, idle| {
            let other = table.endpoint_load(entry.accounts());
            other > weight + 1 && (idle >= idle_grace || other >= endpoint)
        })
    }

    #[cold]
    fn evict_longest_idle(&mut self, now: Nanos, may_go: impl Fn(&Self, &Entry, Nanos) -> bool) -> bool {
        if self.next_unused == 0 {
            return false;
        }
        let mut found: Option<(u32, Nanos)> = None;
        for _ in 0..EVICTION_SCAN.min(self.next_unused) {
            self.idle = if self.idle + 1 < self.next_unused {
                self.idle + 1
            } else {
                0
            };
            self.refresh(self.idle, now);
            let entry = &self.entries[self.idle];
            let idle = now.since(entry.last_seen());
            if entry.state().is_some()
                && found.is_none_or(|(_, longest)| idle > longest)
                && may_go(self, entry, idle)
            {
                found = Some((self.idle as u32, idle));
            }
        }
        found.is_some_and(|(index, _)| self.evict(index))
    }

    fn evict(&mut self, index: u32) -> bool {
        if index == NONE {
            return false;
        }
        self.remove(index as usize);
        self.activity.evicted += 1;
        true
    }

    /// Checks the next few entries and removes those that have timed out.
    pub(crate) fn sweep(&mut self, budget: usize, now: Nanos) {
        for _ in 0..budget.min(self.next_unused) {
            let index = self.sweep;
            self.sweep = (self.sweep + 1) % self.next_unused;
            self.refresh(index, now);
            if self.entries[index].state().is_some() && self.is_expired(index, now) {
                self.remove(index);
                self.activity.expired += 1;
            }
        }
    }

    /// Entries in use, that fit, half-open, and how many of those may be.
    pub(crate) fn occupancy(&self) -> [u64; 4] {
        let capacity = self.entries.len();
        [
            self.next_unused - self.free.len(),
            capacity,
            self.half_open.length,
            self.limits.half_open,
        ]
        .map(|n| n as u64)
    }

    /// How many entries of each segment were ever used, and all entries.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> (Vec<u32>, Vec<u8>) {
        use zerocopy::IntoBytes;
        (self.high_water.to_vec(), self.entries.as_bytes().to_vec())
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Copies entries from `from` on into `records` up to its capacity, looking at `looks` places at most, which it
    /// counts down; answers where to go on, None at the end.
    pub(crate) fn dump(
        &mut self,
        from: usize,
        looks: &mut usize,
        records: &mut Vec<FlowRecord>,
        now: Nanos,
    ) -> Option<usize> {
        for index in from..self.next_unused {
            if records.len() == records.capacity() || *looks == 0 {
                return Some(index);
            }
            *looks -= 1;
            if self.refresh(index, now) {
                *looks = looks.saturating_sub(LOOKS_PER_REFRESH);
            }
            records.extend(self.entries[index].record(&self.seed));
        }
        None
    }
}

/// Buckets of a table with so many entries.
fn bucket_count(entries: usize) -> usize {
    (entries * 4).div_ceil(SLOTS).next_power_of_two()
}

/// So many empty buckets, for the rest of the process's life. The system zeroes them where they are first touched: all at
/// once, they would be most of a restart. It does so for one large allocation of words, not for what the allocator has to
/// align to cache lines.
fn buckets(count: usize) -> &'static mut [Bucket] {
    #[cfg(feature = "fuzzing")]
    if let Some(buckets) = reuse::take(count) {
        return buckets;
    }
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

/// Writes the check sum of an entry's key anew.
#[cfg(feature = "fuzzing")]
pub(crate) fn seal(seed: &Seed, entry: &mut [u8; super::entry::ENTRY_BYTES]) {
    if let Ok(entry) = <Entry as zerocopy::FromBytes>::mut_from_bytes(entry) {
        entry.seal(|key| check(seed, key));
    }
}

/// A process makes its tables once and keeps them. A fuzz target makes thousands: each takes over the buckets of one
/// before it.
#[cfg(feature = "fuzzing")]
mod reuse {
    use std::cell::RefCell;

    use super::{Bucket, FlowTable, SLOTS};

    thread_local! {
        static SPARE: RefCell<Vec<&'static mut [Bucket]>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take(count: usize) -> Option<&'static mut [Bucket]> {
        let buckets = SPARE.with_borrow_mut(|spare| {
            let at = spare.iter().position(|buckets| buckets.len() == count)?;
            Some(spare.swap_remove(at))
        })?;
        for bucket in buckets.iter_mut() {
            (bucket.tags, bucket.places) = ([0; SLOTS], [0; SLOTS]);
        }
        Some(buckets)
    }

    impl Drop for FlowTable {
        fn drop(&mut self) {
            let buckets = std::mem::take(&mut self.buckets);
            SPARE.with_borrow_mut(|spare| spare.push(buckets));
        }
    }
}

#[cfg(test)]
mod tests;
