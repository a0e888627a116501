//! The space of addresses, cut at every border that the objects draw.

use std::{collections::BTreeSet, net::IpAddr};

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_policy::Cluster;

use super::{
    matching::{number, span},
    rules::Block,
    sets::Sets,
};

/// What an address is that no pod and no node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// In a pod network, but nobody's (SEMANTICS 53).
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
    pub place: Place,
    /// The set of blocks that hold it.
    pub blocks: u32,
}

/// Both families' ranges, ascending; the first begins at 0.
#[derive(Debug, Default)]
pub(super) struct Space {
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

impl Space {
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
                add(&block.cidr, &|by| Event::Block(index, by));
                for hole in &block.except {
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

    pub(super) fn family(&self, v4: bool) -> &[Range] {
        if v4 { &self.v4 } else { &self.v6 }
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
                (true, _) => Place::PodNetwork,
                (false, true) => Place::Service,
                (false, false) => Place::Outside,
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
