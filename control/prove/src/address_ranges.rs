//! The space of addresses, cut at every border that the objects draw.

use std::{collections::BTreeSet, net::IpAddr};

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_policy::{AddressSet, Cluster};

use super::{
    matching::{self, number, span},
    rules::Block,
    sets::Sets,
};

/// What an address is that no pod and no node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Unowned {
    /// In a pod network, but without an owner (SEMANTICS 53).
    PodNetwork,
    /// In a Service network.
    Service,
    Outside,
}

/// Addresses from `first` to the next range's, which no border divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// As a number of the family.
    pub first: u128,
    pub place: Unowned,
    /// The set of blocks that hold it.
    pub blocks: u32,
}

/// Both families' ranges, ascending; the first begins at 0.
#[derive(Debug, Default)]
pub(super) struct AddressRanges {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

/// What begins or ends at a border.
#[derive(Clone, Copy)]
enum Event {
    Pods(i32),
    Services(i32),
    Block(u32, i32),
    Except(u32, i32),
}

impl AddressRanges {
    /// Cuts; `sets` takes the sets of blocks.
    pub(super) fn of(cluster: &Cluster, blocks: &[Block], sets: &mut Sets) -> Self {
        let family = |v4: bool, sets: &mut Sets| {
            let mut events = Vec::new();
            let mut add = |block: &IpNet, event: &dyn Fn(i32) -> Event| {
                if matches!(block, IpNet::V4(_)) != v4 {
                    return;
                }
                let (first, last) = span(block);
                events.push((first, event(1)));
                let end = if v4 { u128::from(u32::MAX) } else { u128::MAX };
                if last < end {
                    events.push((last + 1, event(-1)));
                }
            };
            let of_nodes = cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
            for block in of_nodes.chain(&cluster.settings.pod_cidrs) {
                add(block, &Event::Pods);
            }
            for block in &cluster.settings.service_cidrs {
                add(block, &Event::Services);
            }
            for (block, index) in blocks.iter().zip(0..) {
                for prefix in block.prefixes(cluster) {
                    add(&prefix, &|by| Event::Block(index, by));
                }
                for hole in block.holes() {
                    add(hole, &|by| Event::Except(index, by));
                }
            }
            sweep(events, sets)
        };
        Self {
            v4: family(true, sets),
            v6: family(false, sets),
        }
    }

    /// Cuts again within a prefix that came into an address set or left it; `members` are those of now.
    pub(super) fn change_set(&mut self, set: u32, prefix: &IpNet, members: &AddressSet, sets: &mut Sets) {
        let v4 = matches!(prefix, IpNet::V4(_));
        let (first, last) = span(prefix);
        let mut borders = BTreeSet::from([first]);
        let from = members.range(IpNet::new(matching::address(v4, first), 0).unwrap_or(*prefix)..);
        let inside = from.take_while(|net| matches!(net, IpNet::V4(_)) == v4 && span(net).0 <= last);
        for (begin, end) in inside
            .map(span)
            .filter(|(begin, end)| *begin >= first && *end <= last)
        {
            borders.insert(begin);
            borders.extend(end.checked_add(1));
        }
        let ranges = if v4 { &mut self.v4 } else { &mut self.v6 };
        let begin = ranges.partition_point(|range| range.first <= first) - 1;
        let end = ranges.partition_point(|range| range.first <= last);
        let after = last
            .checked_add(1)
            .filter(|after| !v4 || *after <= u128::from(u32::MAX));
        borders.extend(
            ranges[begin..end]
                .iter()
                .map(|range| range.first)
                .filter(|it| *it > first),
        );
        let mut cut: Vec<Range> = Vec::new();
        let mut put = |range: Range| {
            let same = |last: &Range| (last.place, last.blocks) == (range.place, range.blocks);
            if !cut.last().is_some_and(same) {
                cut.push(range);
            }
        };
        if ranges[begin].first < first {
            put(ranges[begin]);
        }
        for border in borders.into_iter().filter(|border| *border <= last) {
            let was = ranges[begin..end].partition_point(|range| range.first <= border) - 1;
            let was = ranges[begin + was];
            let mut blocks = sets.members(was.blocks).to_vec();
            blocks.retain(|block| *block != set);
            if holds(members, v4, border) {
                blocks.insert(blocks.partition_point(|block| *block < set), set);
            }
            put(Range {
                first: border,
                blocks: sets.number(blocks),
                ..was
            });
        }
        // What comes after is what it was.
        let mut end = end;
        if let Some(after) = after {
            match ranges.get(end) {
                Some(next) if next.first == after => {
                    put(*next);
                    end += 1;
                }
                _ => put(Range {
                    first: after,
                    ..ranges[end - 1]
                }),
            }
        }
        // What is before it may go on.
        let mut begin = begin;
        while let (Some(before), Some(next)) = (begin.checked_sub(1).map(|at| ranges[at]), cut.first())
            && (before.place, before.blocks) == (next.place, next.blocks)
        {
            cut[0].first = before.first;
            begin -= 1;
        }
        ranges.splice(begin..end, cut);
    }

    pub(super) fn family(&self, v4: bool) -> &[Range] {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// Where ranges begin, from a first to a last address, as numbers of the family.
    pub(super) fn borders(&self, v4: bool, first: u128, last: u128) -> Vec<u128> {
        let ranges = self.family(v4);
        let from = ranges.partition_point(|range| range.first < first);
        let inside = ranges[from..].iter().take_while(|range| range.first <= last);
        inside.map(|range| range.first).collect()
    }

    /// Whether a range begins at an address, given as a number of its family.
    pub(super) fn is_border(&self, v4: bool, number: u128) -> bool {
        let ranges = self.family(v4);
        ranges.binary_search_by_key(&number, |range| range.first).is_ok()
    }

    /// The range that holds an address.
    pub(super) fn find(&self, address: IpAddr) -> Range {
        self.find_number(address.is_ipv4(), number(address))
    }

    /// The range that holds an address, given as a number of its family.
    pub(super) fn find_number(&self, v4: bool, number: u128) -> Range {
        let ranges = self.family(v4);
        let above = ranges.partition_point(|range| range.first <= number);
        ranges[above - 1]
    }
}

/// Whether a set holds an address, given as a number of its family.
fn holds(members: &AddressSet, v4: bool, number: u128) -> bool {
    let address = matching::address(v4, number);
    let lengths = 0..=if v4 { 32 } else { 128 };
    let mut prefixes = lengths.filter_map(|length| IpNet::new(address, length).ok());
    prefixes.any(|prefix| members.contains(&prefix.trunc()))
}

/// Goes through the borders in order and keeps count of what is open.
fn sweep(mut events: Vec<(u128, Event)>, sets: &mut Sets) -> Vec<Range> {
    events.sort_by_key(|(at, _)| *at);
    let (mut pods, mut services) = (0, 0);
    // Of each block: how often it and how many of its exceptions are open.
    let mut open: HashMap<u32, (i32, i32)> = HashMap::new();
    let mut holding: BTreeSet<u32> = BTreeSet::new();
    let mut ranges: Vec<Range> = Vec::new();
    let mut at = 0;
    let mut events = events.into_iter().peekable();
    loop {
        while let Some((_, event)) = events.next_if(|(first, _)| *first == at) {
            match event {
                Event::Pods(by) => pods += by,
                Event::Services(by) => services += by,
                Event::Block(index, by) | Event::Except(index, by) => {
                    let counts = open.entry(index).or_default();
                    if matches!(event, Event::Block(..)) {
                        counts.0 += by;
                    } else {
                        counts.1 += by;
                    }
                    // An exception takes the address out of this block and of no other one (SEMANTICS 37).
                    if counts.0 > 0 && counts.1 == 0 {
                        holding.insert(index);
                    } else {
                        holding.remove(&index);
                    }
                }
            }
        }
        let range = Range {
            first: at,
            place: match (pods > 0, services > 0) {
                (true, _) => Unowned::PodNetwork,
                (false, true) => Unowned::Service,
                (false, false) => Unowned::Outside,
            },
            blocks: sets.number(holding.iter().copied().collect()),
        };
        let same = |last: &Range| (last.place, last.blocks) == (range.place, range.blocks);
        if !ranges.last().is_some_and(same) {
            ranges.push(range);
        }
        match events.peek() {
            Some((next, _)) => at = *next,
            None => return ranges,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Numbers that look random.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % bound
        }

        fn net(&mut self) -> IpNet {
            let text = match self.below(6) {
                0 => format!(
                    "fd00::{:x}/{}",
                    self.below(16),
                    [0, 64, 125, 127, 128][self.below(5) as usize]
                ),
                1 => format!("255.255.255.{}/{}", 240 + self.below(16), 28 + self.below(5)),
                _ => format!(
                    "0.0.0.{}/{}",
                    self.below(16),
                    [0, 28, 29, 30, 31, 32, 32][self.below(7) as usize]
                ),
            };
            text.parse::<IpNet>().unwrap().trunc()
        }
    }

    /// Where each range begins and what holds there, in words.
    fn ranges(space: &AddressRanges, sets: &Sets) -> Vec<(bool, u128, Unowned, Vec<u32>)> {
        let of = |v4: bool| {
            let ranges = space.family(v4).iter();
            ranges.map(move |range| (v4, range.first, range.place, sets.members(range.blocks).to_vec()))
        };
        of(true).chain(of(false)).collect()
    }

    #[test]
    fn changed_members_cut_as_all_of_them_do() {
        for seed in 0..400 {
            let numbers = &mut Numbers(seed);
            let mut cluster = Cluster::default();
            cluster.settings.pod_cidrs = vec!["0.0.0.8/30".parse().unwrap()];
            let blocks = [
                Block::Set("a".to_owned()),
                Block::Cidr {
                    cidr: numbers.net(),
                    except: vec![numbers.net()],
                },
                Block::Set("b".to_owned()),
            ];
            let mut sets = Sets::new(blocks.len());
            let mut space = AddressRanges::of(&cluster, &blocks, &mut sets);
            for step in 0..30 {
                let (name, number) = [("a", 0), ("b", 2)][numbers.below(2) as usize];
                let before = cluster.address_sets.get(name).cloned().unwrap_or_default();
                let net = numbers.net();
                let members = match before.contains(&net) {
                    true => before.without(&net),
                    false => before.update(net),
                };
                cluster.set_addresses(name, Some(&members));
                space.change_set(number, &net, &members, &mut sets);
                let anew = AddressRanges::of(&cluster, &blocks, &mut sets);
                assert_eq!(
                    ranges(&space, &sets),
                    ranges(&anew, &sets),
                    "seed {seed}, step {step}: {net} of {name}"
                );
            }
        }
    }
}
