//! Buckets of the host tables, one cache line each: addresses of one family, and whose they are.

use zerocopy::transmute_ref;

use super::{
    layout::{BucketV4, BucketV6, MAX_REACH, hash_v4, hash_v6},
    table::{Record, Table},
};
use crate::addr::Addr;

/// A bucket of hosts.
pub(super) trait Bucket: Record {
    type Key: Copy + Eq;
    const FAMILY: &'static str;
    const SLOTS: usize;
    const EMPTY: Self;
    fn addr(key: Self::Key) -> Addr;
    /// The bucket where the search for a host begins.
    fn home(key: Self::Key, seed: u64, buckets: usize) -> usize;
    /// Index of the identity of a host that lies here: all slots at once. For many lookups side by side, where a branch
    /// that is not foretold stops all of them.
    fn find_branchless(&self, key: Self::Key) -> Option<u32>;
    /// As [`Self::find_branchless`], slot by slot. For one lookup, whose next step need not wait for the comparisons where
    /// the branch is foretold.
    fn find(&self, key: Self::Key) -> Option<u32>;
    /// Whether a slot says that it is occupied where it is, and only there.
    fn is_consistent(&self) -> bool;
    fn used(&self) -> usize;
    fn set_used(&mut self, used: usize);
    /// Buckets that a search which begins here may read.
    fn reach(&self) -> u16;
    fn set_reach(&mut self, reach: u16);
    /// An occupied slot's host and the index of its identity.
    fn slot(&self, slot: usize) -> (Self::Key, u32);
    fn set_slot(&mut self, slot: usize, key: Self::Key, identity: u32);
    fn clear_slot(&mut self, slot: usize);

    /// The hosts that lie here, with the indices of their identities.
    #[inline]
    fn hosts(&self) -> impl Iterator<Item = (Self::Key, u32)> {
        (0..self.used()).map(|slot| self.slot(slot))
    }
}

macro_rules! bucket {
    ($bucket:ty, $key:ty, $family:literal, $empty:expr, $hash:ident, $addr:expr) => {
        impl Bucket for $bucket {
            type Key = $key;
            const FAMILY: &'static str = $family;
            const SLOTS: usize = Self::EMPTY.keys.len();
            const EMPTY: Self = $empty;

            fn addr(key: $key) -> Addr {
                $addr(key)
            }

            #[inline]
            fn home(key: $key, seed: u64, buckets: usize) -> usize {
                $hash(key, seed, buckets)
            }

            #[inline]
            fn find_branchless(&self, key: $key) -> Option<u32> {
                self.find_number(key).checked_sub(1)
            }

            #[inline]
            fn find(&self, key: $key) -> Option<u32> {
                let slot = self.keys.iter().position(|candidate| *candidate == key)?;
                self.identities[slot].checked_sub(1)
            }

            fn is_consistent(&self) -> bool {
                let used = usize::from(self.used);
                let mut slots = self.identities.iter().enumerate();
                used <= Self::SLOTS && slots.all(|(slot, number)| (*number != 0) == (slot < used))
            }

            #[inline]
            fn used(&self) -> usize {
                usize::from(self.used).min(Self::SLOTS)
            }

            fn set_used(&mut self, used: usize) {
                self.used = used as u16;
            }

            #[inline]
            fn reach(&self) -> u16 {
                self.reach
            }

            fn set_reach(&mut self, reach: u16) {
                self.reach = reach;
            }

            #[inline]
            fn slot(&self, slot: usize) -> ($key, u32) {
                (self.keys[slot], self.identities[slot].wrapping_sub(1))
            }

            fn set_slot(&mut self, slot: usize, key: $key, identity: u32) {
                self.keys[slot] = key;
                self.identities[slot] = identity.wrapping_add(1);
            }

            fn clear_slot(&mut self, slot: usize) {
                self.keys[slot] = Self::EMPTY.keys[slot];
                self.identities[slot] = 0;
            }
        }
    };
}

bucket!(
    BucketV4,
    u32,
    "IPv4",
    Self {
        keys: [0; 7],
        used: 0,
        reach: 1,
        identities: [0; 8],
    },
    hash_v4,
    |key: u32| Addr::v4(key.to_be_bytes())
);
bucket!(
    BucketV6,
    [u8; 16],
    "IPv6",
    Self {
        keys: [[0; 16]; 3],
        identities: [0; 3],
        used: 0,
        reach: 1,
    },
    hash_v6,
    Addr::v6
);

impl BucketV4 {
    #[inline]
    fn find_number(&self, key: u32) -> u32 {
        // As eight and eight numbers, which two vector registers hold; the eighth of the first is the counts, which
        // might look like the key, of the second 0.
        let [keys, numbers]: &[[u32; 8]; 2] = transmute_ref!(self);
        let slots = keys.iter().zip(numbers);
        slots.fold(0, |found, (candidate, number)| {
            found | if *candidate == key { *number } else { 0 }
        })
    }
}

impl BucketV6 {
    #[inline]
    fn find_number(&self, key: [u8; 16]) -> u32 {
        let slots = self.keys.iter().zip(&self.identities);
        slots.fold(0, |found, (candidate, number)| {
            found | if *candidate == key { *number } else { 0 }
        })
    }
}

/// The bucket where the search for a host begins; None where the table is empty.
#[inline]
pub(super) fn home<B: Bucket>(hosts: &Table<B>, seed: u64, key: B::Key) -> Option<&B> {
    hosts.get(B::home(key, seed, hosts.len()))
}

/// Bucket and identity of a host.
#[inline]
pub(super) fn find<B: Bucket>(hosts: &Table<B>, seed: u64, key: B::Key) -> Option<(usize, u32)> {
    let mut at = B::home(key, seed, hosts.len());
    for _ in 0..hosts.get(at)?.reach().min(MAX_REACH) {
        if let Some(identity) = hosts.get(at)?.find(key) {
            return Some((at, identity));
        }
        at = if at + 1 == hosts.len() { 0 } else { at + 1 };
    }
    None
}
