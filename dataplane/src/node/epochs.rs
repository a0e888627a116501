//! Which cached decisions end with a snapshot.
//!
//! Every end of a flow has a *slot*, whose epoch is part of each decision about it. A pod's slot follows from its number, so
//! all its addresses share one; that of any other end follows from its address, and the decision depends on the slot of all
//! ranges of addresses besides. Several ends may share a slot: then one's changes cost the other's flows a question.
//!
//! ```text
//! publish the snapshot ─> wait until every worker has adopted it ─> bump the slots of what changed
//! ```
//! A decision is stamped with the epochs that hold in the turn in which it is made, so what was decided by the older snapshot
//! has the older epochs.

use crate::{
    addr::Addr,
    classify::{Identity, IdentityKind, NONE, Snapshot},
};

/// Slots of a cache.
pub const SLOTS: usize = 65_536;
/// The slot that never changes.
pub const CONSTANT_SLOT: u32 = 0;
/// The slot of the ranges of addresses.
pub const RANGES_SLOT: u32 = 1;
/// The first slot of an end.
const FIRST_END: u64 = 2;

/// The slot of an end: of what an address is in the snapshot that decides.
pub fn slot_of_end(identity: &Identity, addr: Addr) -> u32 {
    if is_endpoint(identity) {
        return slot_of_number(u64::from(identity.endpoint));
    }
    let value = addr.to_u128();
    slot_of_number(scrambled((value >> 64) as u64).wrapping_add(value as u64))
}

/// The slots that a decision about two ends depends on.
pub fn slots(src: (&Identity, Addr), dst: (&Identity, Addr)) -> [u32; 3] {
    let both_are_endpoints = is_endpoint(src.0) && is_endpoint(dst.0);
    [
        slot_of_end(src.0, src.1),
        slot_of_end(dst.0, dst.1),
        if both_are_endpoints {
            CONSTANT_SLOT
        } else {
            RANGES_SLOT
        },
    ]
}

fn is_endpoint(identity: &Identity) -> bool {
    identity.kind == IdentityKind::Pod && identity.endpoint != NONE
}

fn slot_of_number(number: u64) -> u32 {
    (FIRST_END + scrambled(number) % (SLOTS as u64 - FIRST_END)) as u32
}

/// splitmix64. Not secret: who finds an address that shares a slot gains questions about the flows there.
fn scrambled(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Slots to be bumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet(Box<[u64]>);

impl SlotSet {
    /// No slot.
    pub fn empty() -> Self {
        Self(vec![0; SLOTS / 64].into_boxed_slice())
    }

    /// Every slot but the constant one: where nothing is known of what was in force before.
    pub fn all() -> Self {
        let mut all = Self(vec![u64::MAX; SLOTS / 64].into_boxed_slice());
        all.0[0] &= !1;
        all
    }

    /// Adds a slot.
    pub fn insert(&mut self, slot: u32) {
        if slot != CONSTANT_SLOT
            && let Some(word) = self.0.get_mut(slot as usize / 64)
        {
            *word |= 1 << (slot % 64);
        }
    }

    /// Whether a slot is in it.
    pub fn contains(&self, slot: u32) -> bool {
        let word = self.0.get(slot as usize / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    /// Whether a decision that depends on these slots ends.
    pub fn ends(&self, slots: [u32; 3]) -> bool {
        slots.into_iter().any(|slot| self.contains(slot))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.0).flat_map(|(nth, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left = left.checked_sub(1)? & left;
                Some(nth * 64 + bit)
            })
        })
    }
}

/// The slots of everything that a snapshot decides otherwise than an older one: of each end whose identity, and with it its
/// epoch, differs. What an end's epoch covers ([`Identity::epoch`]) needs no look at rows and rules.
pub fn changed_slots(snapshot: &Snapshot, older: &Snapshot) -> SlotSet {
    let Some(changes) = snapshot.changes_since(older) else {
        return SlotSet::all();
    };
    let mut changed = SlotSet::empty();
    for was in &changes.identities {
        match is_endpoint(was) {
            true => changed.insert(slot_of_number(u64::from(was.endpoint))),
            false => changed.insert(RANGES_SLOT),
        }
    }
    for addr in changes.hosts {
        let was = older.identify(addr);
        if was != snapshot.identify(addr) {
            changed.insert(slot_of_end(&was, addr));
        }
    }
    if changes.ranges || snapshot.allow_unknown() != older.allow_unknown() {
        changed.insert(RANGES_SLOT);
    }
    changed
}

#[cfg(test)]
mod tests;
