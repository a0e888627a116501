//! The flow cache: decisions that the kernel applies to the packets of known flows without asking.
//!
//! ```text
//! key (zone, protocol, original tuple) ─> two buckets of eight signatures ─> entry, and what its flow has sent
//!                                                                              │ three slots, and their epochs
//!                                                                              v
//!                                                                            epochs: equal, or it does not hold
//! ```
//! **Who reads.** Programs in the kernel, at any time, on any CPU: signature, version (even), the whole key, the reply tuple,
//! the epochs, the expiry, version again. Whatever is not as expected is a miss, and a miss asks a worker. An entry whose
//! epoch is one ahead of its slot holds as well: it was renewed for the bump that comes.
//!
//! **Who writes.** Workers entries, each under the lock of its bucket, which lies in this process's memory; the publisher
//! epochs, and entries that it renews. The kernel adds to usage alone. The order of a writer: the signature goes first if
//! another key takes the place; the version becomes odd; a full fence; the body; the version even again (release); the
//! signature (release). So a reader sees a body and a version that belong together, or an odd or changed version.
//!
//! **What lies in it** is a cache: whatever happens to it costs questions, never a verdict.
#![allow(unsafe_code)] // memory that the kernel shares

use std::{
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        fence,
    },
};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{
    ask::Tuple,
    epochs::{SLOTS, SlotSet},
};
use crate::{flow::FlowId, time::Nanos, verdict::DropReason};

/// Entries of a bucket.
pub const WAYS: usize = 8;
/// Bytes of a bucket, an entry, what is counted of one, and an epoch.
pub const BUCKET_BYTES: usize = size_of::<Bucket>();
/// See [`BUCKET_BYTES`].
pub const ENTRY_BYTES: usize = size_of::<EntryBody>();
/// See [`BUCKET_BYTES`].
pub const USAGE_BYTES: usize = size_of::<UsageCell>();
/// See [`BUCKET_BYTES`].
pub const EPOCH_BYTES: usize = size_of::<EpochCell>();

/// What an entry decides.
pub mod action {
    /// It is not in use.
    pub const NONE: u8 = 0;
    /// Packets pass.
    pub const ALLOW: u8 = 1;
    /// Packets drop, for [`super::EntryBody::reason`].
    pub const DENY: u8 = 2;
}

/// Flags of an entry, besides [`super::ask::flag::SRC_LOCAL`] and [`super::ask::flag::DST_LOCAL`].
pub mod flag {
    /// Enforcement would drop the flow; audit mode lets it pass.
    pub const AUDITED: u8 = 4;
    /// Connection tracking has the flow: of what it does not take for a packet of it, TCP flags do not count.
    pub const TRACKED: u8 = 8;
}

/// An entry as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryBody {
    /// Odd while it is being written.
    pub version: u32,
    /// See [`action`].
    pub action: u8,
    /// A [`DropReason`] as a number, of an entry that denies.
    pub reason: u8,
    /// Of connection tracking.
    pub zone: u16,
    /// IP protocol.
    pub protocol: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// The key, with zone and protocol.
    pub original: Tuple,
    /// What connection tracking has to say of the other direction.
    pub reply: Tuple,
    /// What it depends on.
    pub slots: [u32; 3],
    /// The epochs of these when it was decided.
    pub epochs: [u32; 3],
    /// Of an entry that denies: who decided, in the snapshot in force. Of one that allows: the device where packets of the original
    /// direction come in, 0 where that is not known. The kernel looks no further whose such a packet's source is.
    pub provenance: u32,
    /// When it ends, in nanoseconds of CLOCK_MONOTONIC; 0 is never.
    pub expires: u64,
    /// The flow's name in the worker's table; 0 is none. The kernel ignores it.
    pub flow: u64,
}
const _: () = assert!(size_of::<EntryBody>() == 128);
const _: () = assert!(std::mem::offset_of!(EntryBody, original) == 12);
const _: () = assert!(std::mem::offset_of!(EntryBody, reply) == 48);
const _: () = assert!(std::mem::offset_of!(EntryBody, slots) == 84);
const _: () = assert!(std::mem::offset_of!(EntryBody, expires) == 112);

impl EntryBody {
    fn has_key_of(&self, other: &Self) -> bool {
        self.zone == other.zone && self.protocol == other.protocol && self.original == other.original
    }

    fn is_of(&self, flow: FlowId) -> bool {
        self.flow == flow.0 && self.action == action::ALLOW
    }

    /// Whether this many epochs ahead of their slots or fewer.
    fn holds(&self, epochs: [u32; 3], now: Nanos) -> bool {
        let current = self
            .epochs
            .iter()
            .zip(epochs)
            .all(|(stamped, now)| stamped.wrapping_sub(now) <= 1);
        self.action != action::NONE && current && (self.expires == 0 || self.expires > now.0)
    }
}

/// Words of an entry. It is read and written word by word: another CPU may be at it.
const WORDS: usize = ENTRY_BYTES / 4;

#[derive(Debug, FromZeros)]
#[repr(C, align(32))]
struct Bucket([AtomicU32; WAYS]);

#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct EntryCell([AtomicU32; WORDS]);

#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct UsageCell {
    packets: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    /// CLOCK_MONOTONIC, coarse.
    last_seen: AtomicU64,
    tcp_flags: [AtomicU8; 2],
    reserved: [AtomicU8; 22],
}
const _: () = assert!(USAGE_BYTES == 64);
const _: () = assert!(std::mem::offset_of!(UsageCell, tcp_flags) == 40);

#[derive(Debug, FromZeros)]
#[repr(C, align(8))]
struct EpochCell {
    epoch: AtomicU32,
    reserved: AtomicU32,
}

impl EntryCell {
    /// As a program in the kernel reads: None while it is being written.
    fn read(&self) -> Option<EntryBody> {
        self.read_by(Self::peek)
    }

    /// The same, where `peek` reads: tests write in the midst of it.
    fn read_by(&self, peek: impl FnOnce(&Self) -> EntryBody) -> Option<EntryBody> {
        let before = self.0[0].load(Acquire);
        if before & 1 != 0 {
            return None;
        }
        let body = peek(self);
        fence(Acquire);
        (self.0[0].load(Relaxed) == before).then_some(body)
    }

    /// For who holds the lock.
    fn peek(&self) -> EntryBody {
        let mut words = [0_u32; WORDS];
        for (word, cell) in words.iter_mut().zip(&self.0) {
            *word = cell.load(Relaxed);
        }
        zerocopy::transmute!(words)
    }

    /// For who holds the lock.
    fn write(&self, body: &EntryBody) {
        self.write_through(body, |_| {});
    }

    /// The same; tests read in the midst of it.
    fn write_through(&self, body: &EntryBody, midway: impl FnOnce(&Self)) {
        let version = self.0[0].load(Relaxed) | 1;
        self.0[0].store(version, Relaxed);
        fence(SeqCst);
        let words: [u32; WORDS] = zerocopy::transmute!(*body);
        let (first, second) = words.split_at(WORDS / 2);
        for (word, cell) in first.iter().zip(&self.0).skip(1) {
            cell.store(*word, Relaxed);
        }
        midway(self);
        for (word, cell) in second.iter().zip(&self.0[WORDS / 2..]) {
            cell.store(*word, Relaxed);
        }
        self.0[0].store(version.wrapping_add(1), Release);
    }
}

/// What a flow has sent since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Packets by direction of the tuple: original, reply.
    pub packets: [u64; 2],
    /// Bytes of their IP packets.
    pub bytes: [u64; 2],
    /// When the last one came.
    pub last_seen: Nanos,
    /// TCP flags seen, of each direction.
    pub tcp_flags: [u8; 2],
}

impl UsageCell {
    fn take(&self) -> Usage {
        Usage {
            packets: [0, 1].map(|way| take_u64(&self.packets[way])),
            bytes: [0, 1].map(|way| take_u64(&self.bytes[way])),
            last_seen: Nanos(self.last_seen.load(Relaxed)),
            tcp_flags: [0, 1].map(|way| {
                let flags: &AtomicU8 = &self.tcp_flags[way];
                match flags.load(Relaxed) {
                    0 => 0,
                    _ => flags.swap(0, Relaxed),
                }
            }),
        }
    }

    fn put(&self, usage: &Usage) {
        for way in [0, 1] {
            self.packets[way].store(usage.packets[way], Relaxed);
            self.bytes[way].store(usage.bytes[way], Relaxed);
            self.tcp_flags[way].store(usage.tcp_flags[way], Relaxed);
        }
        self.last_seen.store(usage.last_seen.0, Relaxed);
    }
}

/// Of what the kernel adds to. Idle flows cost no write.
fn take_u64(number: &AtomicU64) -> u64 {
    match number.load(Relaxed) {
        0 => 0,
        _ => number.swap(0, Relaxed),
    }
}

/// Memory of this process, or of a map.
#[derive(Debug)]
pub(super) enum Memory<T: 'static> {
    Mapped(&'static [T]),
    Private(Box<[T]>),
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Private(memory) => memory,
        }
    }
}

impl<T: FromZeros> Memory<T> {
    pub(super) fn private(count: usize) -> Self {
        Self::Private(zeroed(count))
    }

    /// # Safety
    /// As of [`FlowCache::from_raw`].
    pub(super) unsafe fn mapped(
        map: MappedMemory,
        count: usize,
        name: &'static str,
    ) -> Result<Self, CacheError> {
        let needed = count * size_of::<T>();
        if map.bytes < needed {
            let have = map.bytes;
            return Err(CacheError::TooShort { name, needed, have });
        }
        if !map.begin.cast::<T>().is_aligned() {
            return Err(CacheError::Misaligned { name });
        }
        // SAFETY: aligned and long enough as just checked; mapped for the rest of the process and shared with nobody but
        // through atomics and the kernel, as the caller promises; every bit pattern is a value of these types.
        Ok(Self::Mapped(unsafe {
            std::slice::from_raw_parts(map.begin.cast::<T>().as_ptr(), count)
        }))
    }
}

/// Where a map is mapped.
#[derive(Clone, Copy, Debug)]
pub struct MappedMemory {
    /// First byte.
    pub begin: NonNull<u8>,
    /// Bytes.
    pub bytes: usize,
}

/// The maps of a flow cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheMaps {
    /// `flow_buckets`
    pub buckets: MappedMemory,
    /// `flow_entries`
    pub entries: MappedMemory,
    /// `flow_usage`
    pub usage: MappedMemory,
    /// `flow_epochs`
    pub epochs: MappedMemory,
}

/// Why memory cannot be a flow cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The number of buckets.
    #[error("a flow cache has a power of two of buckets, at most {most}, not {buckets}")]
    Buckets {
        /// Asked for.
        buckets: usize,
        /// The most.
        most: usize,
    },
    /// A map has another size.
    #[error("map {name} has {have} bytes, and the flow cache needs {needed} of it")]
    TooShort {
        /// Which.
        name: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        have: usize,
    },
    /// A map is mapped at an odd address.
    #[error("map {name} is not mapped at the begin of a page")]
    Misaligned {
        /// Which.
        name: &'static str,
    },
}

/// The place of an entry: bucket times [`WAYS`] plus way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheIndex(pub u32);

/// Where a key may lie, as the kernel has hashed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheHash {
    /// Never 0.
    pub signature: u32,
    /// Both may be the same.
    pub buckets: [u32; 2],
}

/// A decision for the cache.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// Whether packets pass; else why they drop, and who decided.
    pub verdict: Result<FlowId, (DropReason, u32)>,
    /// Of connection tracking.
    pub zone: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Flags of the entry.
    pub flags: u8,
    /// The key, with zone and protocol.
    pub original: Tuple,
    /// The other direction.
    pub reply: Tuple,
    /// What it depends on: [`super::epochs::slots`].
    pub slots: [u32; 3],
    /// The device where the original direction comes in, as far as it is known; else 0.
    pub in_ifindex: u32,
}

/// How long a denial is cached.
pub const DENIAL_TIME: Nanos = Nanos::from_secs(1);

const MAX_BUCKETS: usize = 1 << 24;

/// The flow cache of a node. Workers and the publisher share it.
#[derive(Debug)]
pub struct FlowCache {
    buckets: Memory<Bucket>,
    entries: Memory<EntryCell>,
    usage: Memory<UsageCell>,
    epochs: Memory<EpochCell>,
    /// By bucket: whether somebody writes to one of its entries.
    locks: Box<[AtomicBool]>,
    /// By bucket, under its lock: what the flow has sent that gave way last. Private memory, which is touched when one does.
    leftovers: Box<[Leftover]>,
}

/// What a flow had sent when another took its place, until its worker asks.
#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Leftover {
    usage: UsageCell,
    flow: AtomicU64,
}

/// The lock of a bucket, until it is dropped.
struct BucketLock<'a>(&'a AtomicBool);

impl Drop for BucketLock<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

impl FlowCache {
    /// Of memory of this process alone: for tests, benchmarks and fuzzing.
    pub fn private(buckets: usize) -> Result<Self, CacheError> {
        check_buckets(buckets)?;
        Ok(Self {
            buckets: Memory::private(buckets),
            entries: Memory::private(buckets * WAYS),
            usage: Memory::private(buckets * WAYS),
            epochs: Memory::private(SLOTS),
            locks: unlocked(buckets),
            leftovers: zeroed(buckets),
        })
    }

    /// Of maps that programs in the kernel read. What lies in them stays.
    ///
    /// # Safety
    /// The maps stay mapped, readable and writable, for the rest of the process's life, and this process reaches their
    /// memory through this value alone.
    pub unsafe fn from_raw(maps: &CacheMaps, buckets: usize) -> Result<Self, CacheError> {
        check_buckets(buckets)?;
        let entries = buckets * WAYS;
        // SAFETY: the caller's promises are the ones asked for.
        let cache = unsafe {
            Self {
                buckets: Memory::mapped(maps.buckets, buckets, "flow_buckets")?,
                entries: Memory::mapped(maps.entries, entries, "flow_entries")?,
                usage: Memory::mapped(maps.usage, entries, "flow_usage")?,
                epochs: Memory::mapped(maps.epochs, SLOTS, "flow_epochs")?,
                locks: unlocked(buckets),
                leftovers: zeroed(buckets),
            }
        };
        // A predecessor may have gone between renewing entries and the bump that they were renewed for.
        cache.renew(&SlotSet::all(), |_| false);
        Ok(cache)
    }

    /// Entries that fit.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Entries in use, those that do not hold any more included. Reads every bucket.
    pub fn used(&self) -> usize {
        let signatures = self.buckets.iter().flat_map(|bucket| &bucket.0);
        signatures
            .filter(|signature| signature.load(Relaxed) != 0)
            .count()
    }

    fn lock(&self, bucket: usize) -> Option<BucketLock<'_>> {
        let lock = self.locks.get(bucket)?;
        // A holder writes a few lines and goes. On a machine of one core it has to get there first.
        let mut waited = 0_u32;
        while lock.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            waited += 1;
            match waited.is_multiple_of(1024) {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
        Some(BucketLock(lock))
    }

    /// The present epochs of slots. Read them before the decision that they are to vouch for can be out of date: in the
    /// turn in which a worker judges, since the publisher bumps after every worker has finished it.
    pub fn epochs(&self, slots: [u32; 3]) -> [u32; 3] {
        slots.map(|slot| {
            let cell = self.epochs.get(slot as usize);
            cell.map_or(0, |cell| cell.epoch.load(Acquire))
        })
    }

    /// Caches a decision. None where there is no room: live flows do not give way to denials. An entry with the same key is
    /// overwritten; else the place is a free one, one that does not hold any more, a denial's, or of 16 flows the one that
    /// has been silent for the longest.
    pub fn insert(&self, hash: CacheHash, decision: &Decision, now: Nanos) -> Option<CacheIndex> {
        let [one, other] = hash.buckets.map(|bucket| bucket as usize);
        let (low, high) = (one.min(other), one.max(other));
        if hash.signature == 0 || high >= self.buckets.len() {
            return None;
        }
        let _low = self.lock(low)?;
        let _high = if high == low { None } else { Some(self.lock(high)?) };
        let slots = decision.slots;
        let mut body = EntryBody {
            version: 0,
            action: action::ALLOW,
            reason: 0,
            zone: decision.zone,
            protocol: decision.protocol,
            flags: decision.flags,
            reserved: [0; 2],
            original: decision.original,
            reply: decision.reply,
            slots,
            epochs: self.epochs(slots),
            provenance: decision.in_ifindex,
            expires: 0,
            flow: 0,
        };
        match decision.verdict {
            Ok(flow) => body.flow = flow.0,
            Err((reason, provenance)) => {
                body.action = action::DENY;
                body.reason = reason as u8;
                body.provenance = provenance;
                body.expires = now.after(DENIAL_TIME).0;
            }
        }
        let index = self.place(hash, &body, now)?;
        self.write(index, hash.signature, &body, now);
        Some(CacheIndex(index as u32))
    }

    /// Where a decision goes. The buckets are locked.
    fn place(&self, hash: CacheHash, body: &EntryBody, now: Nanos) -> Option<usize> {
        let [one, other] = hash.buckets.map(|bucket| bucket as usize);
        let candidates = [one, other].into_iter().take(if one == other { 1 } else { 2 });
        let mut best: Option<(u64, usize)> = None;
        for bucket in candidates {
            let signatures = &self.buckets.get(bucket)?.0;
            let free = signatures.iter().filter(|way| way.load(Relaxed) == 0).count() as u64;
            // A signature occurs once in a bucket, so that the kernel compares one key.
            let twin = signatures
                .iter()
                .position(|way| way.load(Relaxed) == hash.signature);
            for (way, signature) in signatures.iter().enumerate() {
                let index = bucket * WAYS + way;
                let taken = signature.load(Relaxed) != 0;
                let found = self.entries.get(index)?.peek();
                if taken && twin == Some(way) && found.has_key_of(body) {
                    return Some(index);
                }
                if twin.is_some_and(|twin| twin != way) {
                    continue;
                }
                // What costs least, lowest first: a free place where most are free, what does not hold, a denial, the
                // flow that has been silent for the longest.
                let cost = if !taken {
                    WAYS as u64 - free
                } else if !found.holds(self.epochs(found.slots), now) {
                    0x100
                } else if found.action == action::DENY {
                    0x101
                } else if body.action == action::DENY {
                    continue;
                } else {
                    let seen = self.usage.get(index)?.last_seen.load(Relaxed);
                    (1 << 63) | (seen >> 1)
                };
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, index));
                }
            }
        }
        best.map(|(_, index)| index)
    }

    fn write(&self, index: usize, signature: u32, body: &EntryBody, now: Nanos) {
        let (Some(bucket), Some(entry), Some(usage)) = (
            self.buckets.get(index / WAYS),
            self.entries.get(index),
            self.usage.get(index),
        ) else {
            return;
        };
        let cell = &bucket.0[index % WAYS];
        let before = entry.peek();
        if cell.load(Relaxed) != signature || !before.has_key_of(body) {
            cell.store(0, Relaxed);
        }
        if before.flow != body.flow || before.flow == 0 {
            let sent = usage.take();
            if before.flow != 0
                && sent.packets != [0; 2]
                && let Some(leftover) = self.leftovers.get(index / WAYS)
            {
                leftover.flow.store(before.flow, Relaxed);
                leftover.usage.put(&sent);
            }
            usage.last_seen.store(now.0, Relaxed);
        }
        entry.write(body);
        cell.store(signature, Release);
    }

    /// Takes the entry of a flow out, and answers what the flow has sent since it was last asked. None where the place is
    /// another's by now and nothing is left of the flow.
    pub fn remove(&self, index: CacheIndex, flow: FlowId) -> Option<Usage> {
        let at = index.0 as usize;
        let _lock = self.lock(at / WAYS)?;
        let usage = self.take_usage_locked(at, flow)?;
        if let (Some(bucket), Some(entry)) = (self.buckets.get(at / WAYS), self.entries.get(at))
            && entry.peek().is_of(flow)
        {
            bucket.0[at % WAYS].store(0, Relaxed);
            entry.write(&EntryBody::new_zeroed());
        }
        Some(usage)
    }

    /// What a flow has sent since it was last asked. None where the place is another's by now and nothing is left of the
    /// flow: of what gives way, that is kept until another gives way in the same bucket.
    pub fn take_usage(&self, index: CacheIndex, flow: FlowId) -> Option<Usage> {
        let at = index.0 as usize;
        let _lock = self.lock(at / WAYS)?;
        self.take_usage_locked(at, flow)
    }

    fn take_usage_locked(&self, index: usize, flow: FlowId) -> Option<Usage> {
        if self.entries.get(index)?.peek().is_of(flow) {
            return self.usage.get(index).map(UsageCell::take);
        }
        let leftover = self.leftovers.get(index / WAYS)?;
        if leftover.flow.load(Relaxed) != flow.0 {
            return None;
        }
        leftover.flow.store(0, Relaxed);
        Some(leftover.usage.take())
    }

    /// Renews entries for the bump of these slots that follows: an entry that depends on one of them and holds gets epochs
    /// that hold before it and after it if `stands` says so. Any other ends with the bump, whatever it was renewed for
    /// before. Answers how many are of each kind. For the publisher alone, which reads every entry in use.
    pub(super) fn renew(&self, changed: &SlotSet, stands: impl Fn(&EntryBody) -> bool) -> (usize, usize) {
        let (mut renewed, mut ended) = (0, 0);
        for (bucket, signatures) in self.buckets.iter().enumerate() {
            if signatures.0.iter().all(|way| way.load(Relaxed) == 0) {
                continue;
            }
            let _lock = self.lock(bucket);
            for (way, signature) in signatures.0.iter().enumerate() {
                let Some(cell) = self.entries.get(bucket * WAYS + way) else {
                    continue;
                };
                let entry = cell.peek();
                let now = self.epochs(entry.slots);
                // Of denials nothing has to go on: they end within a second.
                let concerned = signature.load(Relaxed) != 0
                    && entry.action == action::ALLOW
                    && changed.ends(entry.slots)
                    && entry.holds(now, Nanos(0));
                if !concerned {
                    continue;
                }
                let goes_on = stands(&entry);
                let mut epochs = entry.epochs;
                for (nth, slot) in entry.slots.into_iter().enumerate() {
                    if changed.contains(slot) {
                        epochs[nth] = now[nth].wrapping_add(u32::from(goes_on));
                    }
                }
                match goes_on {
                    true => renewed += 1,
                    false => ended += 1,
                }
                if epochs != entry.epochs {
                    cell.write(&EntryBody { epochs, ..entry });
                }
            }
        }
        (renewed, ended)
    }

    /// Ends every decision that depends on one of these slots. Call it when every worker has adopted the snapshot that
    /// decides otherwise.
    pub fn bump(&self, slots: &SlotSet) {
        for slot in slots.iter() {
            if let Some(cell) = self.epochs.get(slot as usize) {
                cell.epoch.fetch_add(1, Release);
            }
        }
    }

    /// The entry that decides about a packet, as a program in the kernel finds it: for tests.
    pub fn find(
        &self,
        hash: CacheHash,
        (zone, protocol): (u16, u8),
        original: &Tuple,
        reply: &Tuple,
        now: Nanos,
    ) -> Option<(CacheIndex, EntryBody)> {
        for bucket in hash.buckets {
            let signatures = &self.buckets.get(bucket as usize)?.0;
            for (way, signature) in signatures.iter().enumerate() {
                let index = bucket as usize * WAYS + way;
                if signature.load(Acquire) != hash.signature {
                    continue;
                }
                let Some(entry) = self.entries.get(index)?.read() else {
                    continue;
                };
                if (entry.zone, entry.protocol) == (zone, protocol)
                    && entry.original == *original
                    && entry.reply == *reply
                    && entry.holds(self.epochs(entry.slots), now)
                {
                    return Some((CacheIndex(index as u32), entry));
                }
            }
        }
        None
    }

    /// The entries in use: for tests and for people.
    pub fn entries_in_use(&self) -> impl Iterator<Item = (CacheIndex, EntryBody)> + '_ {
        let signatures = self.buckets.iter().flat_map(|bucket| &bucket.0);
        let taken = signatures.zip(self.entries.iter()).zip(0..);
        taken.filter_map(|((signature, entry), index)| {
            let taken = signature.load(Acquire) != 0;
            taken.then(|| Some((CacheIndex(index), entry.read()?)))?
        })
    }

    /// Counts a packet as a program in the kernel does: for tests.
    pub fn count(&self, index: CacheIndex, direction: usize, bytes: u64, tcp_flags: u8, now: Nanos) {
        let Some(usage) = self.usage.get(index.0 as usize) else {
            return;
        };
        let (Some(packets), Some(sum), Some(flags)) = (
            usage.packets.get(direction),
            usage.bytes.get(direction),
            usage.tcp_flags.get(direction),
        ) else {
            return;
        };
        packets.fetch_add(1, Relaxed);
        sum.fetch_add(bytes, Relaxed);
        flags.fetch_or(tcp_flags, Relaxed);
        usage.last_seen.store(now.0, Relaxed);
    }
}

fn check_buckets(buckets: usize) -> Result<(), CacheError> {
    if !buckets.is_power_of_two() || buckets > MAX_BUCKETS {
        let most = MAX_BUCKETS;
        return Err(CacheError::Buckets { buckets, most });
    }
    Ok(())
}

/// So many records of zeros.
fn zeroed<T: FromZeros>(count: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(count)
        .unwrap_or_else(|_| std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>()))
}

fn unlocked(buckets: usize) -> Box<[AtomicBool]> {
    (0..buckets).map(|_| AtomicBool::new(false)).collect()
}

#[cfg(test)]
mod tests;
