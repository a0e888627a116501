//! Which addresses a snapshot tells apart: for those who ask about all of them at once. Cold.

use super::{Snapshot, walk_trie};
use crate::{
    addr::Addr,
    classify::{
        bucket::Bucket,
        layout::{TRIE_CHILD, TrieNode},
        table::Table,
    },
};

impl Snapshot {
    /// Every address that the host tables hold, in no order. Any other address is looked up among the ranges alone.
    pub fn hosts(&self) -> impl Iterator<Item = Addr> + '_ {
        let tables = &self.image.parts.tables;
        let v4 = addresses(&tables.hosts_v4);
        v4.chain(addresses(&tables.hosts_v6))
    }

    /// Whether the host tables hold an address.
    pub fn is_host(&self, addr: Addr) -> bool {
        self.lookup_host(addr).is_some()
    }

    /// The first address of each range of addresses that a lookup which finds no host tells apart, ascending, as
    /// numbers of the family (IPv4: below 2^32): those from `first` to `last`, and the first itself. Neighbours may have one
    /// identity under two numbers. None where ranges share their tables, which no compiler writes, since there may be more
    /// of them than can be counted.
    pub fn range_borders(&self, v4: bool, first: u128, last: u128) -> Option<Vec<u128>> {
        let (trie, bits) = self.trie(v4);
        let mut walk = Borders {
            trie,
            within: (first, last),
            nodes: 0,
            last: None,
            borders: Vec::new(),
        };
        walk.node(0, 0, bits)?;
        Some(walk.borders)
    }

    /// Whether such a range begins at an address, given as a number of its family.
    pub fn is_range_border(&self, v4: bool, number: u128) -> bool {
        let identity = |number| walk_trie(self.trie(v4).0, &bytes_of(v4, number)[..if v4 { 4 } else { 16 }]);
        number
            .checked_sub(1)
            .is_none_or(|before| identity(before) != identity(number))
    }

    fn trie(&self, v4: bool) -> (&Table<TrieNode>, u32) {
        let tables = &self.image.parts.tables;
        if v4 {
            (&tables.trie_v4, 32)
        } else {
            (&tables.trie_v6, 128)
        }
    }
}

/// The bytes of a number of a family, from the first.
fn bytes_of(v4: bool, number: u128) -> [u8; 16] {
    (if v4 { number << 96 } else { number }).to_be_bytes()
}

/// Where in the address space the nodes of a snapshot's tries lie: kept from one snapshot to the next, it says which
/// addresses a changed node is about, without a look at all others.
#[derive(Debug)]
pub struct RangeNodes {
    v4: Parents,
    v6: Parents,
}

/// By node: the node and the entry of it that lead to this one; itself where none does.
type Parents = Vec<(u32, u8)>;

impl RangeNodes {
    /// Those of a snapshot. None where nodes share their children, which no compiler writes.
    pub fn of(snapshot: &Snapshot) -> Option<Self> {
        let tables = &snapshot.image.parts.tables;
        let of = |trie: &Table<TrieNode>| {
            let mut parents = Parents::new();
            follow_nodes(&mut parents, &Table::default(), trie, (0..trie.len()).collect())?;
            Some(parents)
        };
        Some(Self {
            v4: of(&tables.trie_v4)?,
            v6: of(&tables.trie_v6)?,
        })
    }

    /// Goes on from the snapshot that this is of to another one. Answers the addresses whose lookup among the ranges can end
    /// elsewhere, as numbers of a family (whether IPv4), first to last; None where nodes share their children.
    pub fn follow(&mut self, older: &Snapshot, newer: &Snapshot) -> Option<Vec<(bool, u128, u128)>> {
        let mut found = Vec::new();
        let families = [(true, &mut self.v4), (false, &mut self.v6)];
        for (v4, parents) in families {
            let ((old, bits), (new, _)) = (older.trie(v4), newer.trie(v4));
            let mut changed = Vec::new();
            new.differing(old, &mut changed);
            // Where an entry differs of a node that was on the way. What is under new nodes is under such an entry.
            for at in &changed {
                let Some((first, free)) = place(parents, *at, bits) else {
                    continue;
                };
                let (Some(was), Some(is), Some(below)) = (old.get(*at), new.get(*at), free.checked_sub(8))
                else {
                    continue;
                };
                let entries = was.entries.iter().zip(&is.entries).zip(0_u128..);
                let differ = entries.filter(|((was, is), _)| was != is);
                found.extend(differ.map(|(_, byte)| {
                    let from = first | byte << below;
                    (v4, from, from | ((1 << below) - 1))
                }));
            }
            changed.extend(old.len()..new.len());
            follow_nodes(parents, old, new, changed)?;
        }
        Some(found)
    }
}

/// Takes over what changed nodes lead to. None where a node has two parents then, or comes before its parent.
fn follow_nodes(
    parents: &mut Parents,
    old: &Table<TrieNode>,
    new: &Table<TrieNode>,
    changed: Vec<usize>,
) -> Option<()> {
    let children = |trie: &Table<TrieNode>, at: usize| -> Vec<(usize, u8)> {
        let entries = trie
            .get(at)
            .into_iter()
            .flat_map(|node| node.entries.iter().zip(0..=u8::MAX));
        let children = entries.filter(|(entry, _)| **entry & TRIE_CHILD != 0);
        children
            .map(|(entry, byte)| ((entry & !TRIE_CHILD) as usize, byte))
            .collect()
    };
    let known = parents.len() as u32;
    parents.extend((known..new.len() as u32).map(|node| (node, 0)));
    for at in &changed {
        for (child, _) in children(old, *at) {
            *parents.get_mut(child)? = (child as u32, 0);
        }
    }
    for at in changed {
        for (child, byte) in children(new, at) {
            let parent = parents.get_mut(child)?;
            if child <= at || parent.0 != child as u32 {
                return None;
            }
            *parent = (at as u32, byte);
        }
    }
    Some(())
}

/// The first address of a node, and how many bits are free in it; None where nothing leads to it.
fn place(parents: &Parents, node: usize, bits: u32) -> Option<(u128, u32)> {
    let mut path = Vec::new();
    let mut at = node;
    while at != 0 {
        let (parent, byte) = *parents.get(at)?;
        if parent as usize >= at {
            return None;
        }
        path.push(byte);
        at = parent as usize;
    }
    let mut free = bits;
    let mut first = 0;
    for byte in path.into_iter().rev() {
        free = free.checked_sub(8)?;
        first |= u128::from(byte) << free;
    }
    Some((first, free))
}

fn addresses<B: Bucket>(hosts: &Table<B>) -> impl Iterator<Item = Addr> + '_ {
    hosts.iter().flat_map(B::hosts).map(|(key, _)| B::addr(key))
}

struct Borders<'a> {
    trie: &'a Table<TrieNode>,
    /// The addresses that are asked about, first and last.
    within: (u128, u128),
    /// Nodes visited.
    nodes: usize,
    /// Identity of the range that is being walked through.
    last: Option<u32>,
    borders: Vec<u128>,
}

impl Borders<'_> {
    /// Walks through the node whose addresses begin at `first` and have `bits` free.
    fn node(&mut self, index: usize, first: u128, bits: u32) -> Option<()> {
        self.nodes += 1;
        if self.nodes > self.trie.len() {
            return None;
        }
        let trie = self.trie;
        let below = bits.checked_sub(8)?;
        for (entry, number) in trie.get(index)?.entries.iter().zip(0_u128..) {
            let from = first | (number << below);
            let to = from | ((1 << below) - 1);
            if to < self.within.0 || from > self.within.1 {
                continue;
            }
            if entry & TRIE_CHILD != 0 {
                self.node((entry & !TRIE_CHILD) as usize, from, below)?;
            } else if self.last != Some(*entry) {
                self.last = Some(*entry);
                self.borders.push(from.max(self.within.0));
            }
        }
        Some(())
    }
}
