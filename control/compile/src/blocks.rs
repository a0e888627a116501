//! Address blocks: which of the ipBlocks in force hold an address, and what its place in the cluster is.
//!
//! The borders of all blocks, exceptions, pod and Service networks cut each family's addresses into ranges; within a
//! range every address is in the same blocks. Prefixes nest, so one walk in order finds all ranges.

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::addr::Addr;
use ringwall_policy::Cluster;

/// An ipBlock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Block {
    pub cidr: IpNet,
    /// Sorted, without duplicates.
    pub except: Vec<IpNet>,
}

impl Block {
    pub(super) fn new(cidr: IpNet, except: &[IpNet]) -> Self {
        let mut except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        except.sort_unstable();
        except.dedup();
        Self {
            cidr: cidr.trunc(),
            except,
        }
    }

    /// Whether an exception takes the whole block away.
    fn is_empty(&self) -> bool {
        self.except.iter().any(|except| except.contains(&self.cidr))
    }
}

/// What an address that is no host's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Outside,
    Service,
    PodNetwork,
}

/// A prefix after which no longer one names an address.
#[derive(Clone, Debug)]
pub(super) struct Prefix {
    pub net: IpNet,
    pub place: Place,
    /// Index of the set of blocks.
    pub set: u32,
    /// The prefix that holds it; None for the whole family.
    pub outer: Option<u32>,
}

/// The first address of a range that reaches to the next one's, and the prefix that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub first: u128,
    pub prefix: u32,
}

/// All blocks of a snapshot.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Distinct sets of blocks, each in ascending order; 0 is empty.
    pub sets: Vec<Vec<u32>>,
    /// In order: IPv4 before IPv6, a prefix before those inside it.
    pub prefixes: Vec<Prefix>,
    ranges_v4: Vec<Range>,
    ranges_v6: Vec<Range>,
}

#[derive(Default)]
struct Marks {
    begin: Vec<u32>,
    end: Vec<u32>,
    service: bool,
    pods: bool,
}

impl Blocks {
    /// `limit`: the most members that all sets together may have. None where there are more.
    pub(super) fn of(cluster: &Cluster, blocks: &[Block], limit: u64) -> Option<Self> {
        let mut marks: HashMap<IpNet, Marks> = HashMap::new();
        for root in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            if let Ok(root) = IpNet::new(root, 0) {
                marks.entry(root).or_default();
            }
        }
        for (block, number) in blocks.iter().zip(0..) {
            if !block.is_empty() {
                marks.entry(block.cidr).or_default().begin.push(number);
                for except in &block.except {
                    marks.entry(*except).or_default().end.push(number);
                }
            }
        }
        let nodes = cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
        for net in nodes.chain(&cluster.settings.pod_cidrs) {
            marks.entry(net.trunc()).or_default().pods = true;
        }
        for net in &cluster.settings.service_cidrs {
            marks.entry(net.trunc()).or_default().service = true;
        }
        let mut marks: Vec<(IpNet, Marks)> = marks.into_iter().collect();
        // By first address, the shorter prefix before those inside it; IPv4 first.
        marks.sort_unstable_by_key(|(net, _)| (matches!(net, IpNet::V6(_)), first(net), net.prefix_len()));

        let mut this = Self {
            sets: vec![Vec::new()],
            prefixes: Vec::with_capacity(marks.len()),
            ranges_v4: Vec::new(),
            ranges_v6: Vec::new(),
        };
        let mut known: HashMap<Vec<u32>, u32> = HashMap::from([(Vec::new(), 0)]);
        let mut members = 0;
        // Prefixes that hold the one looked at, the innermost last.
        let mut open: Vec<u32> = Vec::new();
        for (net, marks) in marks {
            while let Some(outer) = open.last().copied() {
                let Some(prefix) = this.prefixes.get(outer as usize) else {
                    break;
                };
                if prefix.net.contains(&net) {
                    break;
                }
                open.pop();
                let after = last(&prefix.net).checked_add(1);
                let v4 = matches!(prefix.net, IpNet::V4(_));
                if let (Some(after), Some(outer)) = (after, open.last()) {
                    this.begin(v4, after, *outer);
                }
            }
            let within = open.last().copied();
            let outer = within.and_then(|outer| this.prefixes.get(outer as usize));
            let (mut place, outer_set) = outer.map_or((Place::Outside, 0), |outer| (outer.place, outer.set));
            if marks.service {
                place = place.max(Place::Service);
            }
            if marks.pods {
                place = Place::PodNetwork;
            }
            let set = if marks.begin.is_empty() && marks.end.is_empty() {
                outer_set
            } else {
                let outer = this
                    .sets
                    .get(outer_set as usize)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                let inherited = outer
                    .iter()
                    .filter(|block| marks.end.binary_search(block).is_err());
                let mut set: Vec<u32> = inherited.copied().chain(marks.begin).collect();
                set.sort_unstable();
                *known.entry(set).or_insert_with_key(|set| {
                    members += set.len() as u64;
                    this.sets.push(set.clone());
                    this.sets.len() as u32 - 1
                })
            };
            if members > limit {
                return None;
            }
            let index = this.prefixes.len() as u32;
            let v4 = matches!(net, IpNet::V4(_));
            this.begin(v4, first(&net), index);
            this.prefixes.push(Prefix {
                net,
                place,
                set,
                outer: within,
            });
            open.push(index);
        }
        while let Some(inner) = open.pop() {
            let Some(prefix) = this.prefixes.get(inner as usize) else {
                break;
            };
            let v4 = matches!(prefix.net, IpNet::V4(_));
            if let (Some(after), Some(outer)) = (last(&prefix.net).checked_add(1), open.last()) {
                this.begin(v4, after, *outer);
            }
        }
        Some(this)
    }

    /// From `first` on, addresses are in `prefix`; a later word on the same address counts.
    fn begin(&mut self, v4: bool, first: u128, prefix: u32) {
        let ranges = if v4 {
            &mut self.ranges_v4
        } else {
            &mut self.ranges_v6
        };
        if ranges.last().is_some_and(|last| last.first == first) {
            ranges.pop();
        }
        ranges.push(Range { first, prefix });
    }

    /// The ranges of both families in order, each with the first address.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (Addr, u32)> {
        let v4 = self.ranges_v4.iter().filter_map(|range| {
            let first = u32::try_from(range.first).ok()?; // the end of the family begins no range
            Some((Addr::v4(first.to_be_bytes()), range.prefix))
        });
        let v6 = self
            .ranges_v6
            .iter()
            .map(|range| (Addr::v6(range.first.to_be_bytes()), range.prefix));
        v4.chain(v6)
    }

    /// The set of blocks that hold an address.
    pub(super) fn set_of(&self, address: IpAddr) -> u32 {
        let (ranges, number) = match address {
            IpAddr::V4(address) => (&self.ranges_v4, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.ranges_v6, u128::from(address)),
        };
        let after = ranges.partition_point(|range| range.first <= number);
        let range = after.checked_sub(1).and_then(|index| ranges.get(index));
        let prefix = range.and_then(|range| self.prefixes.get(range.prefix as usize));
        prefix.map_or(0, |prefix| prefix.set)
    }
}

/// The first address of a prefix as a number of its family.
fn first(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => u128::from(u32::from(net.network())),
        IpNet::V6(net) => u128::from(net.network()),
    }
}

/// The last address of a prefix as a number of its family.
fn last(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => u128::from(u32::from(net.broadcast())),
        IpNet::V6(net) => u128::from(net.broadcast()),
    }
}
