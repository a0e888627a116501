//! Hash tables of the image that are changed in place: hosts by address, endpoints by name.

use crate::classify::{
    BuildError,
    bucket::{self, Bucket},
    layout::{MAX_REACH, NameSlot, name_home},
    table::Table,
};

/// How often a table is laid out anew, each time half as large again, before it is given up: it is then five times as
/// large as its hosts need, which is the fault of the seed or of whoever knows it.
const MAX_REBUILDS: usize = 4;

/// Where a host lies: bucket and slot.
type SlotRef = (usize, usize);

/// Fills a host table. The table is the image's; this counts what is in it.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    count: usize,
}

impl Hosts {
    /// Makes room for so many hosts at once.
    pub(super) fn reserve<B: Bucket>(
        &self,
        table: &mut Table<B>,
        seed: u64,
        hosts: usize,
    ) -> Result<(), BuildError> {
        // Two thirds full: most keys sit in their home bucket.
        let buckets = (hosts * 3 / 2).div_ceil(B::SLOTS);
        if buckets > table.len() {
            self.rebuild(table, seed, buckets)?;
        }
        Ok(())
    }

    /// Adds a host or says whose it is from now on.
    pub(super) fn insert<B: Bucket>(
        &mut self,
        table: &mut Table<B>,
        seed: u64,
        key: B::Key,
        identity: u32,
    ) -> Result<(), BuildError> {
        if let Some((at, slot)) = find(table, seed, key) {
            if let Some(mut bucket) = table.get(at).copied() {
                bucket.set_slot(slot, key, identity);
                table.set(at, bucket);
            }
            return Ok(());
        }
        // Four fifths full at most, so that few hosts lie outside of their home bucket.
        if (self.count + 1) * 5 > table.len() * B::SLOTS * 4 {
            self.rebuild(table, seed, (table.len() * 3 / 2).max(1))?;
        }
        for _ in 0..=MAX_REBUILDS {
            if place(table, seed, key, identity) {
                self.count += 1;
                return Ok(());
            }
            // Never much larger than its hosts need, whatever they are.
            let needed = ((self.count + 1) * 3 / 2).div_ceil(B::SLOTS);
            if table.len() > needed * 8 + 8 {
                break;
            }
            self.rebuild(table, seed, table.len() * 3 / 2 + 1)?;
        }
        Err(BuildError::Hosts {
            family: B::FAMILY,
            hosts: self.count + 1,
        })
    }

    /// Takes a host out and answers whose it was.
    pub(super) fn remove<B: Bucket>(&mut self, table: &mut Table<B>, seed: u64, key: B::Key) -> Option<u32> {
        let (at, slot) = find(table, seed, key)?;
        let mut bucket = *table.get(at)?;
        let (_, identity) = bucket.slot(slot);
        let last = bucket.used() - 1;
        let (moved, whose) = bucket.slot(last);
        bucket.set_slot(slot, moved, whose);
        bucket.clear_slot(last);
        bucket.set_used(last);
        table.set(at, bucket);
        self.count -= 1;
        Some(identity)
    }

    /// Lays all hosts out anew, in so many buckets or more.
    fn rebuild<B: Bucket>(&self, table: &mut Table<B>, seed: u64, buckets: usize) -> Result<(), BuildError> {
        let hosts: Vec<(B::Key, u32)> = table.iter().flat_map(B::hosts).collect();
        let mut count = buckets;
        for _ in 0..MAX_REBUILDS {
            let mut fresh = Table::sharing(&vec![B::EMPTY; count], &Table::default());
            if hosts
                .iter()
                .all(|(key, identity)| place(&mut fresh, seed, *key, *identity))
            {
                *table = fresh;
                return Ok(());
            }
            count = count * 3 / 2 + 1;
        }
        Err(BuildError::Hosts {
            family: B::FAMILY,
            hosts: hosts.len(),
        })
    }
}

fn find<B: Bucket>(table: &Table<B>, seed: u64, key: B::Key) -> Option<SlotRef> {
    let (at, _) = bucket::find(table, seed, key)?;
    let slot = table.get(at)?.hosts().position(|(host, _)| host == key)?;
    Some((at, slot))
}

/// Puts a key that is not there into the first free slot from its home on. Whether there was one within reach.
fn place<B: Bucket>(table: &mut Table<B>, seed: u64, key: B::Key, identity: u32) -> bool {
    let buckets = table.len();
    if buckets == 0 {
        return false;
    }
    let home = B::home(key, seed, buckets);
    for step in 0..usize::from(MAX_REACH).min(buckets) {
        let at = (home + step) % buckets;
        let Some(mut bucket) = table.get(at).copied() else {
            return false;
        };
        if bucket.used() == B::SLOTS {
            continue;
        }
        bucket.set_slot(bucket.used(), key, identity);
        bucket.set_used(bucket.used() + 1);
        table.set(at, bucket);
        if let Some(mut bucket) = table.get(home).copied()
            && usize::from(bucket.reach()) <= step
        {
            bucket.set_reach(step as u16 + 1);
            table.set(home, bucket);
        }
        return true;
    }
    false
}

/// Fills the table of endpoints by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    count: usize,
}

impl Names {
    /// Makes room for so many endpoints at once.
    pub(super) fn reserve(&self, table: &mut Table<NameSlot>, endpoints: usize) {
        let mut slots = table.len().max(16);
        // As if they came one by one.
        while endpoints * 4 > slots * 3 {
            slots *= 2;
        }
        if slots > table.len() {
            rebuild_names(table, slots);
        }
    }

    /// Adds an endpoint, unless one of its name is there.
    pub(super) fn insert(
        &mut self,
        table: &mut Table<NameSlot>,
        tag: u32,
        endpoint: u32,
        has_name: impl Fn(u32) -> bool,
    ) -> bool {
        let slots = table.len();
        let there = (0..slots)
            .map_while(|step| table.get((name_home(tag, slots) + step) % slots))
            .map_while(|slot| Some((slot.tag, slot.endpoint.checked_sub(1)?)))
            .any(|(known, endpoint)| known == tag && has_name(endpoint));
        if there {
            return false;
        }
        // Three quarters full at most.
        if (self.count + 1) * 4 > table.len() * 3 {
            let slots = (table.len() * 2).max(16);
            rebuild_names(table, slots);
        }
        let slot = NameSlot {
            tag,
            endpoint: endpoint + 1,
        };
        put(table, slot);
        self.count += 1;
        true
    }

    /// Takes an endpoint out, and moves up those that its slot had been in the way of.
    pub(super) fn remove(&mut self, table: &mut Table<NameSlot>, tag: u32, endpoint: u32) {
        let slots = table.len();
        let gone = NameSlot {
            tag,
            endpoint: endpoint + 1,
        };
        let steps = (0..slots).map(|step| (name_home(tag, slots) + step) % slots);
        let found = steps
            .take_while(|at| table.get(*at).is_some_and(|slot| slot.endpoint != 0))
            .find(|at| table.get(*at) == Some(&gone));
        let Some(mut hole) = found else {
            return;
        };
        self.count -= 1;
        let mut at = hole;
        loop {
            at = (at + 1) % slots;
            let Some(slot) = table.get(at).copied().filter(|slot| slot.endpoint != 0) else {
                break;
            };
            // It may move to the hole unless its search begins after that.
            let home = name_home(slot.tag, slots);
            if (at + slots - home) % slots >= (at + slots - hole) % slots {
                table.set(hole, slot);
                hole = at;
            }
        }
        let empty = NameSlot { tag: 0, endpoint: 0 };
        table.set(hole, empty);
    }
}

/// Lays all names out anew, in so many slots.
fn rebuild_names(table: &mut Table<NameSlot>, slots: usize) {
    let mut fresh = Table::default();
    fresh.resize(slots);
    for slot in table.iter().filter(|slot| slot.endpoint != 0) {
        put(&mut fresh, *slot);
    }
    *table = fresh;
}

fn put(table: &mut Table<NameSlot>, slot: NameSlot) {
    let slots = table.len();
    let home = name_home(slot.tag, slots);
    let free = (0..slots)
        .map(|step| (home + step) % slots)
        .find(|at| table.get(*at).is_some_and(|slot| slot.endpoint == 0));
    if let Some(at) = free {
        table.set(at, slot);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;
    use crate::classify::layout::{BucketV6, hash_v6};

    /// Addresses whose search begins in the same bucket by `seed`, in a table of up to 1,024 buckets.
    fn colliding(seed: u64, count: usize) -> Vec<[u8; 16]> {
        (0_u128..)
            .map(|number| ((0xfd00_u128 << 112) + number).to_be_bytes())
            .filter(|key| hash_v6(*key, seed, 1024) == 7)
            .take(count)
            .collect()
    }

    fn fill(seed: u64, keys: &[[u8; 16]]) -> (Result<(), BuildError>, usize) {
        let (mut hosts, mut table) = (Hosts::default(), Table::<BucketV6>::default());
        let mut insert = |key: &[u8; 16]| hosts.insert(&mut table, seed, *key, 1);
        let done = keys.iter().try_for_each(&mut insert);
        (done, table.len())
    }

    #[test]
    fn addresses_that_were_chosen_to_collide_are_an_error_and_no_endless_table() {
        let keys = colliding(5, 64);
        let (done, buckets) = fill(5, &keys);
        assert!(
            matches!(done, Err(BuildError::Hosts { family: "IPv6", hosts }) if hosts > 12),
            "{done:?}"
        );
        assert!(buckets < 200, "{buckets} buckets");
        // Who chose them did not know this one.
        let (done, buckets) = fill(6, &keys);
        assert!(done.is_ok() && buckets < 200, "{done:?}, {buckets} buckets");
    }

    #[test]
    fn a_table_of_many_hosts_stays_as_large_as_they_need() {
        let keys: Vec<[u8; 16]> = (0..20_000_u128)
            .map(|number| ((0xfd00_u128 << 112) + number).to_be_bytes())
            .collect();
        let (done, buckets) = fill(6, &keys);
        assert!(done.is_ok(), "{done:?}");
        assert!(buckets < 5 * keys.len() / BucketV6::SLOTS, "{buckets} buckets");
    }
}
