//! Prefixes of one family, and the trie that they make.
//!
//! A stride-8 trie in which every entry is an identity or a child: prefixes are pushed down to the entries that they cover. A
//! prefix that comes or goes is written where it lies: its own entries and what is inside of it. Children have higher
//! numbers than their parents; nodes that nothing leads to any more are zeros and are given out again.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        layout::{TRIE_CHILD, TrieNode},
        table::Table,
    },
    BuildError,
};

/// An address, most significant byte first, and a length: in order of address, a prefix before those inside it.
type Key = ([u8; 16], u8);

/// What says whose addresses are that no prefix holds.
const NO_OWNER: u32 = 0;

/// Prefixes with their identities.
#[derive(Default)]
pub(super) struct Prefixes {
    known: BTreeMap<Key, u32>,
    /// Those whose place in the trie is not written yet.
    changed: BTreeSet<Key>,
    /// Nodes that nothing leads to.
    free: BTreeSet<u32>,
}

impl Prefixes {
    /// Says whose a prefix is. `bits` are those of its address; the ones past its length do not matter.
    pub(super) fn insert(&mut self, bits: u128, length: u8, identity: u32) {
        let key = key(bits, length);
        if self.known.insert(key, identity) != Some(identity) {
            self.changed.insert(key);
        }
    }

    /// Takes a prefix out. Answers the identity that it had.
    pub(super) fn remove(&mut self, bits: u128, length: u8) -> Option<u32> {
        let key = key(bits, length);
        let gone = self.known.remove(&key);
        if gone.is_some() {
            self.changed.insert(key);
        }
        gone
    }

    /// Brings a trie up to date that was written last by this.
    pub(super) fn write(&mut self, trie: &mut Table<TrieNode>) -> Result<(), BuildError> {
        if trie.len() == 0 {
            trie.push(EMPTY);
        }
        let mut changed = std::mem::take(&mut self.changed);
        if changed.len() > self.known.len() / 8 + 64 {
            changed = BTreeSet::from([key(0, 0)]);
        }
        let mut outer: Option<Key> = None;
        for key in changed {
            // What is inside another one is written with it.
            if !outer.is_some_and(|outer| holds(&outer, &key)) {
                self.write_prefix(trie, &key)?;
                outer = Some(key);
            }
        }
        Ok(())
    }

    /// Writes the entries of a prefix and all that is inside of it.
    fn write_prefix(&mut self, trie: &mut Table<TrieNode>, prefix: &Key) -> Result<(), BuildError> {
        let (bytes, length) = prefix;
        // From the root to the node that has the prefix among its entries.
        let mut path = vec![0];
        for byte in bytes.iter().take(usize::from(length.saturating_sub(1)) / 8) {
            let at = path.last().copied().unwrap_or(0);
            let Some(mut node) = trie.get(at as usize).copied() else {
                return Ok(());
            };
            let entry = &mut node.entries[usize::from(*byte)];
            let child = match *entry & TRIE_CHILD {
                0 => {
                    let child = self.node(
                        trie,
                        at,
                        TrieNode {
                            entries: [*entry; 256],
                        },
                    )?;
                    *entry = child | TRIE_CHILD;
                    trie.set(at as usize, node);
                    child
                }
                _ => *entry & !TRIE_CHILD,
            };
            path.push(child);
        }
        let depth = path.len() - 1;
        let at = path.last().copied().unwrap_or(0);
        let identity = self.identity_of(prefix);
        self.write_node(trie, at, depth, prefix, identity)?;
        // Nodes that tell nothing apart any more.
        for (depth, pair) in path.windows(2).enumerate().rev() {
            let [parent, child] = pair else { break };
            let byte = bytes[depth];
            let of_child = cut(bytes, (depth as u8 + 1) * 8);
            let inside = self.inside(&of_child).any(|(key, _)| key.1 > of_child.1);
            if inside {
                break;
            }
            if let Some(mut node) = trie.get(*parent as usize).copied() {
                node.entries[usize::from(byte)] = self.identity_of(&of_child);
                trie.set(*parent as usize, node);
            }
            self.release(trie, *child);
        }
        Ok(())
    }

    /// Writes those entries of a node that lie in a prefix; `identity` has what no longer one holds.
    fn write_node(
        &mut self,
        trie: &mut Table<TrieNode>,
        at: u32,
        depth: usize,
        within: &Key,
        identity: u32,
    ) -> Result<(), BuildError> {
        let Some(mut node) = trie.get(at as usize).copied() else {
            return Ok(());
        };
        let above = depth as u8 * 8;
        let (first, count) = entries_of(within, depth);
        let before = node.entries;
        node.entries[first..first + count].fill(identity);
        // The prefixes of this node, a shorter one before those inside it; and where longer ones are.
        let mut deeper: BTreeSet<u8> = BTreeSet::new();
        let own: Vec<(Key, u32)> = self
            .inside(within)
            .map(|(key, identity)| (*key, *identity))
            .collect();
        for (key, identity) in own {
            if key.1 > above + 8 {
                deeper.insert(key.0[depth]);
            } else {
                let (first, count) = entries_of(&key, depth);
                node.entries[first..first + count].fill(identity);
            }
        }
        for (byte, was) in (0..=u8::MAX).zip(before).skip(first).take(count) {
            let old = (was & TRIE_CHILD != 0).then_some(was & !TRIE_CHILD);
            let entry = usize::from(byte);
            if deeper.contains(&byte) {
                let child = match old {
                    Some(child) => child,
                    None => self.node(trie, at, EMPTY)?,
                };
                let mut bytes = cut(&within.0, above).0;
                bytes[depth] = byte;
                let inside = (bytes, above + 8);
                self.write_node(trie, child, depth + 1, &inside, node.entries[entry])?;
                node.entries[entry] = child | TRIE_CHILD;
            } else if let Some(child) = old {
                self.release(trie, child);
            }
        }
        trie.set(at as usize, node);
        Ok(())
    }

    /// The prefixes inside another one, itself among them.
    fn inside<'a>(&'a self, outer: &Key) -> impl Iterator<Item = (&'a Key, &'a u32)> + use<'a> {
        let outer = *outer;
        let from = self.known.range((outer.0, 0)..);
        from.skip_while(move |(key, _)| key.0 == outer.0 && key.1 < outer.1)
            .take_while(move |(key, _)| holds(&outer, key))
    }

    /// Whose the addresses of a prefix are that no longer one holds.
    fn identity_of(&self, prefix: &Key) -> u32 {
        let mut lengths = (0..=prefix.1).rev();
        let found = lengths.find_map(|length| self.known.get(&cut(&prefix.0, length)));
        found.copied().unwrap_or(NO_OWNER)
    }

    /// Adds a node under another one.
    fn node(&mut self, trie: &mut Table<TrieNode>, parent: u32, node: TrieNode) -> Result<u32, BuildError> {
        if let Some(free) = self.free.range(parent + 1..).next().copied() {
            self.free.remove(&free);
            trie.set(free as usize, node);
            return Ok(free);
        }
        if trie.len() >= TRIE_CHILD as usize {
            return Err(BuildError::TooMany { table: "trie nodes" });
        }
        Ok(trie.push(node) as u32)
    }

    /// Gives back a node and those under it.
    fn release(&mut self, trie: &mut Table<TrieNode>, node: u32) {
        let Some(known) = trie.get(node as usize).copied() else {
            return;
        };
        for entry in known.entries.iter().filter(|entry| **entry & TRIE_CHILD != 0) {
            self.release(trie, entry & !TRIE_CHILD);
        }
        trie.set(node as usize, EMPTY);
        self.free.insert(node);
    }
}

/// A node that tells nothing.
const EMPTY: TrieNode = TrieNode {
    entries: [NO_OWNER; 256],
};

fn key(bits: u128, length: u8) -> Key {
    cut(&bits.to_be_bytes(), length)
}

/// A prefix of an address.
fn cut(bytes: &[u8; 16], length: u8) -> Key {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    ((u128::from_be_bytes(*bytes) & mask).to_be_bytes(), length)
}

/// Whether a prefix is inside another one, or the same.
fn holds(outer: &Key, inner: &Key) -> bool {
    outer.1 <= inner.1 && cut(&inner.0, outer.1) == *outer
}

/// Which entries a prefix has in a node so deep that is on its way, or all.
fn entries_of(prefix: &Key, depth: usize) -> (usize, usize) {
    let above = depth as u8 * 8;
    let own = prefix.1.saturating_sub(above).min(8);
    let count = 1_usize << (8 - own);
    let byte = usize::from(prefix.0.get(depth).copied().unwrap_or(0));
    (byte & !(count - 1), count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    /// Numbers that look random.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % bound
        }

        fn prefix(&mut self) -> (u128, u8) {
            let length = [0, 1, 7, 8, 9, 14, 16, 17, 23, 24, 25, 31, 32][self.below(13) as usize];
            let byte = |numbers: &mut Self| [0_u128, 1, 128, 255][numbers.below(4) as usize];
            let address = (0..4).fold(0, |address, _| address << 8 | byte(self));
            (address << 96, length)
        }
    }

    fn looked_up(trie: &Table<TrieNode>, address: u32) -> u32 {
        let mut at = 0;
        for byte in address.to_be_bytes() {
            let entry = trie.get(at).unwrap().entries[usize::from(byte)];
            if entry & TRIE_CHILD == 0 {
                return entry;
            }
            let child = (entry & !TRIE_CHILD) as usize;
            assert!(child > at, "a child before its parent");
            at = child;
        }
        panic!("an address that does not end");
    }

    /// What each node leads to: nodes that are reached, each once, and the free ones are all.
    fn check_nodes(prefixes: &Prefixes, trie: &Table<TrieNode>) {
        let mut open = vec![0];
        let mut reached = BTreeSet::new();
        while let Some(at) = open.pop() {
            assert!(reached.insert(at), "node {at} is reached twice");
            let node = trie.get(at as usize).unwrap();
            let children = node.entries.iter().filter(|entry| **entry & TRIE_CHILD != 0);
            open.extend(children.map(|entry| entry & !TRIE_CHILD));
        }
        for free in &prefixes.free {
            assert!(reached.insert(*free), "node {free} is free and in use");
            assert_eq!(trie.get(*free as usize).unwrap().entries, EMPTY.entries);
        }
        assert_eq!(reached.len(), trie.len());
    }

    #[test]
    fn changes_lead_to_what_the_longest_prefix_says() {
        for seed in 0..200 {
            let numbers = &mut Numbers(seed);
            let (mut prefixes, mut trie) = (Prefixes::default(), Table::default());
            let mut model: BTreeMap<(u8, u128), u32> = BTreeMap::new();
            for step in 0..60 {
                // Now and then so many that all is written anew.
                let many = numbers.below(20) == 0;
                for _ in 0..if many { 120 } else { 1 + numbers.below(3) } {
                    let (bits, length) = numbers.prefix();
                    let kept = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                    if numbers.below(3) == 0 {
                        let gone = model.remove(&(length, bits & kept));
                        assert_eq!(prefixes.remove(bits, length), gone);
                    } else {
                        let identity = 1 + numbers.below(5) as u32;
                        prefixes.insert(bits, length, identity);
                        model.insert((length, bits & kept), identity);
                    }
                }
                prefixes.write(&mut trie).unwrap();
                check_nodes(&prefixes, &trie);
                for _ in 0..200 {
                    let address = (numbers.prefix().0 >> 96) as u32 ^ numbers.below(2) as u32;
                    let bits = u128::from(address) << 96;
                    let longest = model.iter().rev().find(|((length, prefix), _)| {
                        let kept = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
                        bits & kept == *prefix
                    });
                    let wanted = longest.map_or(NO_OWNER, |(_, identity)| *identity);
                    assert_eq!(
                        looked_up(&trie, address),
                        wanted,
                        "seed {seed}, step {step}, {address:x}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_goes_leaves_no_nodes_behind() {
        let (mut prefixes, mut trie) = (Prefixes::default(), Table::default());
        for address in 0..1000_u128 {
            prefixes.insert(address << 106 | 1 << 96, 32, 1);
            prefixes.write(&mut trie).unwrap();
        }
        let nodes = trie.len();
        for address in 0..1000_u128 {
            prefixes.remove(address << 106 | 1 << 96, 32);
            prefixes.write(&mut trie).unwrap();
        }
        assert_eq!(prefixes.free.len(), nodes - 1, "all but the root are free");
        for address in 0..1000_u128 {
            prefixes.insert(address << 106 | 1 << 96, 32, 1);
            prefixes.write(&mut trie).unwrap();
        }
        assert!(trie.len() <= nodes + nodes / 4, "{} of {nodes}", trie.len());
    }
}
