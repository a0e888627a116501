//! Address blocks: which of the ipBlocks and address sets that policies name hold an address, and what its place in the
//! cluster is.
//!
//! An address set is one block that begins at each of its members, so that a change of members is no change of policies.
//!
//! The borders of all blocks, exceptions, pod and Service networks cut each family's addresses into ranges; within a
//! range every address is in the same blocks. Prefixes nest, so one walk in order finds all ranges; and what begins or
//! ceases at a prefix concerns the prefixes inside it alone, so that only those are walked again.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use hashbrown::{HashMap, HashSet};
use imbl::OrdMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringwall_dataplane::addr::Addr;
use ringwall_policy::{AddressSet, Cluster};

/// What rules name by addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Block {
    /// An ipBlock.
    Cidr {
        cidr: IpNet,
        /// Sorted, without duplicates.
        except: Vec<IpNet>,
    },
    /// An address set, by its name.
    Set(String),
}

impl Block {
    pub(super) fn new(cidr: IpNet, except: &[IpNet]) -> Self {
        let mut except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        except.sort_unstable();
        except.dedup();
        Self::Cidr {
            cidr: cidr.trunc(),
            except,
        }
    }

    /// Where it begins, and where its exceptions do.
    fn prefixes<'a>(&'a self, sets: &'a AddressSets) -> (Vec<IpNet>, &'a [IpNet]) {
        match self {
            // An exception may take the whole block away.
            Self::Cidr { cidr, except } if except.iter().any(|except| except.contains(cidr)) => {
                (Vec::new(), &[])
            }
            Self::Cidr { cidr, except } => (vec![*cidr], except),
            Self::Set(name) => {
                let members = sets.get(name).into_iter().flat_map(|set| set.iter());
                (members.copied().collect(), &[])
            }
        }
    }
}

/// Address sets by name.
pub(super) type AddressSets = OrdMap<String, Arc<AddressSet>>;

/// What blocks that came, went or have other members begin or cease to hold, by their numbers.
#[derive(Debug, Default)]
pub(super) struct BlockChanges {
    begin: Vec<(u32, IpNet, bool)>,
    end: Vec<(u32, IpNet, bool)>,
    placed: Vec<(u32, bool)>,
}

impl BlockChanges {
    /// A block begins or ceases to cut the ranges; `sets` are those that it does it with.
    pub(super) fn block(&mut self, number: u32, block: &Block, comes: bool, sets: &AddressSets) {
        let (begin, end) = block.prefixes(sets);
        self.begin
            .extend(begin.into_iter().map(|net| (number, net, comes)));
        self.end.extend(end.iter().map(|net| (number, *net, comes)));
        self.placed.push((number, comes));
    }

    /// An address set that cuts the ranges has one member more or less.
    pub(super) fn member(&mut self, number: u32, net: IpNet, comes: bool) {
        self.begin.push((number, net, comes));
    }
}

/// What an address is that no host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Unowned {
    Outside,
    Service,
    PodNetwork,
}

/// What holds for addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Content {
    pub place: Unowned,
    /// Index of the set of blocks.
    pub set: u32,
}

/// What holds outside of everything.
const NOWHERE: Content = Content {
    place: Unowned::Outside,
    set: 0,
};

/// From this address on, to the first of the next range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub first: u128,
    pub content: Content,
}

/// Addresses of one family, as numbers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub v4: bool,
    pub first: u128,
    pub last: u128,
}

impl Span {
    /// All addresses of a family.
    pub(super) fn family(v4: bool) -> Self {
        Self {
            v4,
            first: 0,
            last: if v4 { u128::from(u32::MAX) } else { u128::MAX },
        }
    }

    fn of(net: &IpNet) -> Self {
        Self {
            v4: matches!(net, IpNet::V4(_)),
            first: number(net.network()),
            last: number(net.broadcast()),
        }
    }

    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.v4 == address.is_ipv4() && (self.first..=self.last).contains(&number(address))
    }

    /// How many addresses it has, or the most that can be said.
    pub(super) fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4;
        (self.first..=self.last).map(move |number| address(v4, number))
    }
}

/// What begins and ends at a prefix.
#[derive(Debug, Default)]
struct Marks {
    /// Blocks, in ascending order.
    begin: Vec<u32>,
    /// Blocks of which this is an exception, in ascending order.
    end: Vec<u32>,
    service: bool,
    /// How often it is a network of pods.
    pods: u32,
    content: Option<Content>,
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.begin.is_empty() && self.end.is_empty() && !self.service && self.pods == 0
    }
}

/// A prefix after which no longer one names an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    pub net: IpNet,
    pub content: Content,
    /// That of the prefix which holds it; None for the whole family.
    pub outer: Option<Content>,
}

/// All blocks of a snapshot.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Distinct sets of blocks, each in ascending order; 0 is empty. They stay when no address has one any more.
    pub sets: Vec<Vec<u32>>,
    known: HashMap<Vec<u32>, u32>,
    /// How many members all sets together have.
    members: u64,
    /// Blocks that cut the ranges, or hold nothing.
    placed: HashSet<u32>,
    /// In order: IPv4 before IPv6, a prefix before those inside it. Both families' roots are always there.
    marks: BTreeMap<IpNet, Marks>,
    /// In order, neighbours of different contents.
    ranges_v4: Vec<Range>,
    ranges_v6: Vec<Range>,
}

impl Blocks {
    /// `limit`: the most members that all sets together may have. None where there are more.
    pub(super) fn of(cluster: &Cluster, blocks: &[Block], limit: u64) -> Option<Self> {
        let sets = &cluster.address_sets;
        let mut marks: HashMap<IpNet, Marks> = HashMap::new();
        for root in roots() {
            marks.entry(root).or_default();
        }
        for (block, number) in blocks.iter().zip(0..) {
            let (begin, end) = block.prefixes(sets);
            for net in begin {
                marks.entry(net).or_default().begin.push(number);
            }
            for net in end {
                marks.entry(*net).or_default().end.push(number);
            }
        }
        let nodes = cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
        for net in nodes.chain(&cluster.settings.pod_cidrs) {
            marks.entry(net.trunc()).or_default().pods += 1;
        }
        for net in &cluster.settings.service_cidrs {
            marks.entry(net.trunc()).or_default().service = true;
        }
        let mut this = Self {
            sets: vec![Vec::new()],
            known: HashMap::from([(Vec::new(), 0)]),
            members: 0,
            placed: (0..blocks.len() as u32).collect(),
            marks: marks.into_iter().collect(),
            ranges_v4: Vec::new(),
            ranges_v6: Vec::new(),
        };
        for root in roots() {
            this.walk(root, limit)?;
        }
        Some(this)
    }

    /// Blocks that changed, and networks of pods that came and went. Answers the spans in which something may be otherwise;
    /// None where the sets have more than `limit` members.
    pub(super) fn change(
        &mut self,
        blocks: &BlockChanges,
        networks: &[(IpNet, bool)],
        limit: u64,
    ) -> Option<Vec<Span>> {
        for (number, comes) in &blocks.placed {
            if *comes {
                self.placed.insert(*number);
            } else {
                self.placed.remove(number);
            }
        }
        let mut touched: Vec<IpNet> = Vec::new();
        for (number, net, comes) in &blocks.begin {
            mark(&mut self.marks.entry(*net).or_default().begin, *number, *comes);
            touched.push(*net);
        }
        for (number, net, comes) in &blocks.end {
            mark(&mut self.marks.entry(*net).or_default().end, *number, *comes);
            touched.push(*net);
        }
        for (net, comes) in networks {
            let net = net.trunc();
            let marks = self.marks.entry(net).or_default();
            marks.pods = if *comes {
                marks.pods + 1
            } else {
                marks.pods.saturating_sub(1)
            };
            touched.push(net);
        }
        touched.sort_unstable();
        touched.dedup();
        for net in &touched {
            if net.prefix_len() > 0 && self.marks.get(net).is_some_and(Marks::is_empty) {
                self.marks.remove(net);
            }
        }
        // What is inside another one is walked with it.
        let mut outermost: Vec<IpNet> = Vec::new();
        for net in touched {
            if !outermost.last().is_some_and(|outer| outer.contains(&net)) {
                outermost.push(net);
            }
        }
        for net in &outermost {
            self.walk(*net, limit)?;
        }
        Some(outermost.iter().map(Span::of).collect())
    }

    /// Whether a block cuts the ranges, as far as it holds anything.
    pub(super) fn is_placed(&self, block: u32) -> bool {
        self.placed.contains(&block)
    }

    /// What holds around a prefix.
    fn outer(&self, net: &IpNet) -> Option<Content> {
        let mut outer = *net;
        loop {
            outer = outer.supernet()?;
            if let Some(marks) = self.marks.get(&outer) {
                return marks.content;
            }
        }
    }

    /// Walks through a prefix and those inside it, and finds its ranges. None where the sets have more than `limit` members.
    fn walk(&mut self, within: IpNet, limit: u64) -> Option<()> {
        let around = self.outer(&within).unwrap_or(NOWHERE);
        let span = Span::of(&within);
        let mut ranges: Vec<Range> = Vec::new();
        begin(&mut ranges, span.first, around);
        // Prefixes that hold the one looked at, the innermost last.
        let mut open: Vec<(Span, Content)> = vec![(span, around)];
        let inside = self
            .marks
            .range_mut(within..)
            .take_while(|(net, _)| within.contains(*net));
        for (net, marks) in inside {
            let own = Span::of(net);
            close(&mut open, &mut ranges, own.first);
            let outer = open.last().map_or(around, |(_, content)| *content);
            let mut place = outer.place;
            if marks.service {
                place = place.max(Unowned::Service);
            }
            if marks.pods > 0 {
                place = Unowned::PodNetwork;
            }
            let set = if marks.begin.is_empty() && marks.end.is_empty() {
                outer.set
            } else {
                let inherited = self.sets.get(outer.set as usize).into_iter().flatten();
                let inherited = inherited.filter(|block| marks.end.binary_search(block).is_err());
                let mut set: Vec<u32> = inherited.chain(&marks.begin).copied().collect();
                set.sort_unstable();
                // Members of an address set may lie inside each other.
                set.dedup();
                let (sets, members) = (&mut self.sets, &mut self.members);
                *self.known.entry(set).or_insert_with_key(|set| {
                    *members += set.len() as u64;
                    sets.push(set.clone());
                    sets.len() as u32 - 1
                })
            };
            if self.members > limit {
                return None;
            }
            let content = Content { place, set };
            marks.content = Some(content);
            begin(&mut ranges, own.first, content);
            open.push((own, content));
        }
        close(&mut open, &mut ranges, span.last);
        self.replace(span, ranges);
        Some(())
    }

    /// Puts other ranges into a span.
    fn replace(&mut self, span: Span, mut ranges: Vec<Range>) {
        let all = if span.v4 {
            &mut self.ranges_v4
        } else {
            &mut self.ranges_v6
        };
        let from = all.partition_point(|range| range.first < span.first);
        let to = all.partition_point(|range| range.first <= span.last);
        // What comes after the span is what it was.
        let after = to.checked_sub(1).and_then(|last| all.get(last)).copied();
        if let (Some(next), Some(after)) = (span.last.checked_add(1), after)
            && next <= Span::family(span.v4).last
            && all.get(to).is_none_or(|range| range.first != next)
        {
            begin(&mut ranges, next, after.content);
        }
        let before = from.checked_sub(1).and_then(|before| all.get(before));
        let joined =
            before.is_some_and(|before| ranges.first().is_some_and(|it| it.content == before.content));
        let skip = usize::from(joined);
        let last = ranges.last().map(|range| range.content);
        let to = match all.get(to) {
            Some(next) if last == Some(next.content) => to + 1,
            _ => to,
        };
        all.splice(from..to, ranges.into_iter().skip(skip));
    }

    fn family(&self, v4: bool) -> &[Range] {
        if v4 { &self.ranges_v4 } else { &self.ranges_v6 }
    }

    /// The ranges that begin in a span, in order, and the one after it; and what holds before them.
    pub(super) fn ranges(&self, span: Span) -> (Option<Content>, &[Range]) {
        let all = self.family(span.v4);
        let from = all.partition_point(|range| range.first < span.first);
        let to = all.partition_point(|range| range.first <= span.last);
        let before = from.checked_sub(1).and_then(|before| all.get(before));
        let ranges = all.get(from..(to + 1).min(all.len()));
        (before.map(|range| range.content), ranges.unwrap_or_default())
    }

    /// The prefixes inside a span, in order.
    pub(super) fn prefixes(&self, span: Span) -> Vec<Prefix> {
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut open: Vec<(u128, Content)> = Vec::new();
        let from = network(span.v4, span.first);
        let inside = from.into_iter().flat_map(|from| self.marks.range(from..));
        for (net, marks) in inside {
            let own = Span::of(net);
            if own.v4 != span.v4 || own.first > span.last {
                break;
            }
            if own.last > span.last {
                continue; // around it
            }
            while open.last().is_some_and(|(last, _)| *last < own.first) {
                open.pop();
            }
            let content = marks.content.unwrap_or(NOWHERE);
            let outer = match open.last() {
                Some((_, outer)) => Some(*outer),
                None => self.outer(net),
            };
            prefixes.push(Prefix {
                net: *net,
                content,
                outer,
            });
            open.push((own.last, content));
        }
        prefixes
    }

    /// Whether anything begins or ends at a prefix.
    pub(super) fn is_marked(&self, net: &IpNet) -> bool {
        self.marks.contains_key(net)
    }

    /// The set of blocks that hold an address.
    pub(super) fn set_of(&self, address: IpAddr) -> u32 {
        let (ranges, number) = (self.family(address.is_ipv4()), number(address));
        let after = ranges.partition_point(|range| range.first <= number);
        let range = after.checked_sub(1).and_then(|index| ranges.get(index));
        range.map_or(0, |range| range.content.set)
    }
}

/// From `first` on something else holds; a later word on the same address counts.
fn begin(ranges: &mut Vec<Range>, first: u128, content: Content) {
    if ranges.last().is_some_and(|last| last.first == first) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.content != content) {
        ranges.push(Range { first, content });
    }
}

/// Ends the prefixes, but for the outermost, that end before an address.
fn close(open: &mut Vec<(Span, Content)>, ranges: &mut Vec<Range>, before: u128) {
    while let [.., (_, outer), (inner, _)] = open[..] {
        if inner.last >= before {
            return;
        }
        open.pop();
        begin(ranges, inner.last + 1, outer);
    }
}

/// Notes that a block begins or ends at a prefix, or no longer does.
fn mark(numbers: &mut Vec<u32>, number: u32, comes: bool) {
    match (numbers.binary_search(&number), comes) {
        (Err(at), true) => numbers.insert(at, number),
        (Ok(at), false) => drop(numbers.remove(at)),
        _ => {}
    }
}

/// The prefixes of all addresses of each family.
fn roots() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// An address as a number of its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number of a family.
pub(super) fn address(v4: bool, number: u128) -> IpAddr {
    if v4 {
        IpAddr::from((number as u32).to_be_bytes())
    } else {
        IpAddr::from(number.to_be_bytes())
    }
}

/// As the tables write it.
pub(super) fn in_tables(v4: bool, number: u128) -> Addr {
    address(v4, number).into()
}

/// The prefix of a family's number that comes before all others which begin there.
fn network(v4: bool, first: u128) -> Option<IpNet> {
    IpNet::new(address(v4, first), 0).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ringwall_policy::{Node, Object};

    use super::*;

    /// Numbers that look random.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % bound
        }

        fn net(&mut self) -> IpNet {
            let length = [0, 24, 28, 29, 30, 31, 32][self.below(7) as usize];
            let address = address(true, u128::from(0x0a00_0000 + self.below(32)));
            IpNet::new(address, length).unwrap().trunc()
        }
    }

    /// What holds, with the blocks themselves.
    fn contents(blocks: &Blocks) -> Vec<(u128, Unowned, Vec<u32>)> {
        let ranges = blocks.ranges_v4.iter();
        let found = ranges.map(|range| {
            let set = &blocks.sets[range.content.set as usize];
            (range.first, range.content.place, set.clone())
        });
        found.collect()
    }

    fn prefixes(blocks: &Blocks, span: Span) -> Vec<(IpNet, Unowned, Vec<u32>)> {
        let prefixes = blocks.prefixes(span).into_iter().map(|prefix| {
            let set = &blocks.sets[prefix.content.set as usize];
            (prefix.net, prefix.content.place, set.clone())
        });
        prefixes.collect()
    }

    #[test]
    fn changes_lead_to_what_is_found_from_nothing() {
        for seed in 0..300 {
            let numbers = &mut Numbers(seed);
            let mut cluster = Cluster::default();
            // The last ones are address sets.
            let all: Vec<Block> = (0..12)
                .map(|number| {
                    let except: Vec<IpNet> = (0..numbers.below(3)).map(|_| numbers.net()).collect();
                    match number {
                        0..9 => Block::new(numbers.net(), &except),
                        _ => Block::Set(format!("s{number}")),
                    }
                })
                .collect();
            let nothing = Block::Cidr {
                cidr: roots()[0],
                except: vec![roots()[0]],
            };
            let mut there = vec![false; all.len()];
            let as_they_are = |there: &[bool]| -> Vec<Block> {
                let each = all.iter().zip(there);
                each.map(|(block, there)| if *there { block.clone() } else { nothing.clone() })
                    .collect()
            };
            let mut blocks = Blocks::of(&cluster, &[], u64::MAX).unwrap();
            for step in 0..20 {
                let number = numbers.below(12) as u32;
                let comes = !there[number as usize];
                there[number as usize] = comes;
                let mut networks = Vec::new();
                if numbers.below(2) == 0 {
                    let name = format!("n{}", numbers.below(3));
                    if let Some(node) = cluster.nodes.remove(&name) {
                        networks.extend(node.pod_cidrs.iter().map(|net| (*net, false)));
                    } else {
                        let net = numbers.net();
                        networks.push((net, true));
                        cluster.insert(Object::Node(Node {
                            name,
                            addresses: Vec::new(),
                            pod_cidrs: vec![net],
                        }));
                    }
                }
                let mut changes = BlockChanges::default();
                let sets = cluster.address_sets.clone();
                changes.block(number, &all[number as usize], comes, &sets);
                for number in 9..12_u32 {
                    let name = format!("s{number}");
                    let before = cluster.address_sets.get(&name);
                    let mut members = before.map_or_else(AddressSet::new, |set| AddressSet::clone(set));
                    let net = numbers.net();
                    let gone = members.remove(&net).is_some();
                    if !gone {
                        members.insert(net);
                    }
                    cluster.set_addresses(&name, Some(&members));
                    if there[number as usize] {
                        changes.member(number, net, !gone);
                    }
                }
                blocks.change(&changes, &networks, u64::MAX).unwrap();
                let full = Blocks::of(&cluster, &as_they_are(&there), u64::MAX).unwrap();
                assert_eq!(contents(&blocks), contents(&full), "seed {seed}, step {step}");
                let span = Span::family(true);
                assert_eq!(
                    prefixes(&blocks, span),
                    prefixes(&full, span),
                    "seed {seed}, step {step}"
                );
            }
        }
    }
}
