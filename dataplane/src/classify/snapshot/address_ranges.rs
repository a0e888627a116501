//! Which addresses a snapshot tells apart: for those who ask about all of them at once. Cold.

use super::Snapshot;
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
    /// numbers of the family (IPv4: below 2^32). Neighbours may have one identity under two numbers. None where ranges
    /// share their tables, which no compiler writes, since there may be more of them than can be counted.
    pub fn range_borders(&self, v4: bool) -> Option<Vec<u128>> {
        let (trie, bits) = if v4 {
            (&self.image.parts.tables.trie_v4, 32)
        } else {
            (&self.image.parts.tables.trie_v6, 128)
        };
        let mut walk = Borders {
            trie,
            nodes: 0,
            last: None,
            borders: Vec::new(),
        };
        walk.node(0, 0, bits)?;
        Some(walk.borders)
    }
}

fn addresses<B: Bucket>(hosts: &Table<B>) -> impl Iterator<Item = Addr> + '_ {
    hosts.iter().flat_map(B::hosts).map(|(key, _)| B::addr(key))
}

struct Borders<'a> {
    trie: &'a Table<TrieNode>,
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
            if entry & TRIE_CHILD != 0 {
                self.node((entry & !TRIE_CHILD) as usize, from, below)?;
            } else if self.last != Some(*entry) {
                self.last = Some(*entry);
                self.borders.push(from);
            }
        }
        Some(())
    }
}
