//! Sources and destinations, and their classes.

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::{
    addr::Addr,
    classify::{Identity, IdentityKind, Judgement, L4, NONE, NodeExemption, Row},
};
use ringwall_policy::{Cluster, ObjectKey, Pod};

use super::{
    Compiled, Family,
    addresses::{self, Cuts},
};

/// What an end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A pod or workload template, by name.
    Endpoint(ObjectKey),
    /// Addresses `first..=last`, but for those that are a pod's on any side. A node's address is a range of its own.
    Range {
        /// First address.
        first: IpAddr,
        /// Last address, of the same family.
        last: IpAddr,
    },
}

/// Who an end is on one side, over one family.
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    /// In the words of that side's snapshot.
    pub identity: Identity,
    /// Its address, or one of the range's; None for an endpoint that has none.
    pub address: Option<IpAddr>,
}

/// A source or destination that every side knows.
#[derive(Clone, Debug)]
pub struct End<const N: usize> {
    /// What it is.
    pub what: What,
    /// Whether it can be its own peer: a template stands for several pods. A pod to itself always passes.
    pub meets_itself: bool,
    /// By family: who it is on each side; None where some side does not have it over that family.
    pub resolved: [Option<[Resolved; N]>; 2],
    /// Its class.
    pub class: u32,
    /// Ranges: position among the ranges of the family that have an address.
    ordinal: u32,
}

/// What decides about ends that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowsAndClass {
    /// Row for what comes in.
    pub ingress: Row,
    /// Row for what goes out.
    pub egress: Row,
    /// Column in the rows of others.
    pub peer_class: u32,
}

/// Ends that no side can tell apart.
#[derive(Clone, Debug)]
pub struct Class<const N: usize> {
    /// By family.
    pub rows_and_classes: [Option<[RowsAndClass; N]>; 2],
    /// Indices of its ends, in order.
    pub members: Vec<u32>,
}

/// An endpoint that only one of two sides has, or has over a family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OneSided {
    /// Its name.
    pub key: ObjectKey,
    /// The side that has it.
    pub side: usize,
    /// The family; None for all that it has.
    pub family: Option<Family>,
}

/// An endpoint and an address of a node that hosts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hosted<const N: usize> {
    /// Index of the endpoint.
    pub endpoint: u32,
    /// Index of the node's address.
    pub node: u32,
    /// On which sides it does.
    pub sides: [bool; N],
}

/// The ends that all of `N` compiled clusters know, and their common classes.
#[derive(Debug)]
pub struct Ends<'a, const N: usize> {
    /// The clusters.
    pub sides: [&'a Compiled<'a>; N],
    /// Endpoints by name, then IPv4 ranges, then IPv6 ranges in order.
    pub all: Vec<End<N>>,
    /// Numbered by their first ends.
    pub classes: Vec<Class<N>>,
    /// Endpoints that are not the same on all sides, in order.
    pub one_sided: Vec<OneSided>,
    /// Pods and the addresses of their nodes, in order.
    pub hosted: Vec<Hosted<N>>,
}

/// An endpoint on one side.
struct View {
    resolved: [Option<Resolved>; 2],
    template: bool,
}

impl<'a, const N: usize> Ends<'a, N> {
    /// Finds the ends. `cuts`: further networks whose borders no range may cross.
    pub fn of(sides: [&'a Compiled<'a>; N], cuts: &[IpNet]) -> Self {
        let mut this = Self {
            sides,
            all: Vec::new(),
            classes: Vec::new(),
            one_sided: Vec::new(),
            hosted: Vec::new(),
        };
        this.endpoints();
        for family in Family::BOTH {
            this.ranges(family, cuts);
        }
        this.classify();
        this.host();
        this
    }

    fn endpoints(&mut self) {
        let mut names: Vec<&ObjectKey> = self
            .sides
            .iter()
            .flat_map(|side| side.cluster.pods.keys())
            .collect();
        names.sort_unstable();
        names.dedup();
        for key in names {
            let views = self.sides.map(|side| view(side, key));
            self.note_one_sided(key, &views);
            let resolved = Family::BOTH.map(|family| {
                let resolved = views
                    .each_ref()
                    .map(|view| view.as_ref().and_then(|view| view.resolved[family as usize]));
                all(resolved)
            });
            if resolved.iter().all(Option::is_none) {
                continue;
            }
            self.all.push(End {
                what: What::Endpoint(key.clone()),
                meets_itself: views.iter().flatten().all(|view| view.template),
                resolved,
                class: 0,
                ordinal: 0,
            });
        }
    }

    fn note_one_sided(&mut self, key: &ObjectKey, views: &[Option<View>; N]) {
        for (side, view) in views.iter().enumerate() {
            let Some(view) = view else { continue };
            let others = || views.iter().enumerate().filter(|(other, _)| *other != side);
            if others().any(|(_, other)| other.is_none()) {
                self.one_sided.push(OneSided {
                    key: key.clone(),
                    side,
                    family: None,
                });
                continue;
            }
            for family in Family::BOTH {
                let has = |view: &View| view.resolved[family as usize].is_some();
                if has(view) && others().any(|(_, other)| !other.as_ref().is_some_and(has)) {
                    self.one_sided.push(OneSided {
                        key: key.clone(),
                        side,
                        family: Some(family),
                    });
                }
            }
        }
    }

    fn ranges(&mut self, family: Family, more: &[IpNet]) {
        let mut cuts = Cuts::new(family);
        let mut taken = Vec::new();
        more.iter().for_each(|net| cuts.net(net));
        for side in self.sides {
            cut(side.cluster, &mut cuts);
            for pod in side.cluster.pods.values().filter(|pod| lives(pod)) {
                let own = pod
                    .addresses
                    .iter()
                    .filter(|address| Family::of(**address) == family);
                taken.extend(own.copied().map(addresses::number));
            }
        }
        taken.sort_unstable();
        taken.dedup();
        let slots = cuts.slots(&taken);
        let used = slots.iter().filter_map(|slot| Some((slot, slot.example?)));
        for ((slot, example), ordinal) in used.zip(0..) {
            let address = family.address(example);
            let mut resolved = [None; 2];
            resolved[family as usize] = Some(self.sides.map(|side| Resolved {
                identity: side.snapshot.identify(Addr::from(address)),
                address: Some(address),
            }));
            self.all.push(End {
                what: What::Range {
                    first: family.address(slot.first),
                    last: family.address(slot.last),
                },
                meets_itself: true,
                resolved,
                class: 0,
                ordinal,
            });
        }
    }

    fn classify(&mut self) {
        let mut known = HashMap::new();
        for (end, index) in self.all.iter_mut().zip(0..) {
            let mut rows_and_classes = [None; 2];
            for (rows_and_classes, resolved) in rows_and_classes.iter_mut().zip(&end.resolved) {
                let Some(resolved) = resolved else { continue };
                let mut own = [RowsAndClass {
                    ingress: Row::Open,
                    egress: Row::Open,
                    peer_class: 0,
                }; N];
                for ((sight, face), side) in own.iter_mut().zip(resolved).zip(self.sides) {
                    let (ingress, egress) = side.snapshot.rows_of(&face.identity);
                    *sight = RowsAndClass {
                        ingress,
                        egress,
                        peer_class: face.identity.peer_class,
                    };
                }
                *rows_and_classes = Some(own);
            }
            end.class = *known.entry(rows_and_classes).or_insert_with(|| {
                self.classes.push(Class {
                    rows_and_classes,
                    members: Vec::new(),
                });
                self.classes.len() as u32 - 1
            });
            if let Some(class) = self.classes.get_mut(end.class as usize) {
                class.members.push(index);
            }
        }
    }

    /// Finds out which node's addresses are exempt for which pods.
    fn host(&mut self) {
        // By side and node: the addresses.
        let mut nodes: HashMap<(usize, u32), Vec<u32>> = HashMap::new();
        for (end, index) in self.all.iter().zip(0..) {
            for (side, face) in end
                .resolved
                .iter()
                .flatten()
                .flat_map(|resolved| resolved.iter().enumerate())
            {
                if face.identity.kind == IdentityKind::Node {
                    nodes.entry((side, face.identity.node)).or_default().push(index);
                }
            }
        }
        let mut hosted = HashMap::new();
        for (end, endpoint) in self.all.iter().zip(0..) {
            for (family, resolved) in end.resolved.iter().enumerate() {
                for (side, face) in resolved.iter().flatten().enumerate() {
                    let Identity { kind, node, .. } = face.identity;
                    if kind != IdentityKind::Pod || node == NONE {
                        continue;
                    }
                    for address in nodes.get(&(side, node)).into_iter().flatten() {
                        let same_family = self
                            .all
                            .get(*address as usize)
                            .is_some_and(|end| end.resolved.get(family).is_some_and(Option::is_some));
                        let sides: &mut [bool; N] = if same_family {
                            hosted.entry((endpoint, *address)).or_insert([false; N])
                        } else {
                            continue;
                        };
                        if let Some(hosts) = sides.get_mut(side) {
                            *hosts = true;
                        }
                    }
                }
            }
        }
        self.hosted = hosted
            .into_iter()
            .map(|((endpoint, node), sides)| Hosted {
                endpoint,
                node,
                sides,
            })
            .collect();
        self.hosted.sort_unstable();
    }

    /// On which sides a pair is a pod and its node, whichever way round.
    pub fn hosts(&self, a: u32, b: u32) -> [bool; N] {
        let find = |endpoint, node| {
            let at = self
                .hosted
                .binary_search_by_key(&(endpoint, node), |pair| (pair.endpoint, pair.node))
                .ok()?;
            Some(self.hosted.get(at)?.sides)
        };
        find(a, b).or_else(|| find(b, a)).unwrap_or([false; N])
    }

    /// Whether an end to itself is never a question: a pod's traffic to its own address always passes.
    pub fn is_itself(&self, src: u32, dst: u32) -> bool {
        src == dst && self.all.get(src as usize).is_some_and(|end| !end.meets_itself)
    }

    /// What one side decides about a packet between two ends; None where they do not have the family in common.
    pub fn judge(&self, side: usize, (src, dst): (u32, u32), family: Family, l4: L4) -> Option<Judgement> {
        let face = |end: u32| {
            let resolved = self
                .all
                .get(end as usize)?
                .resolved
                .get(family as usize)?
                .as_ref()?;
            resolved.get(side)
        };
        let (from, to) = (face(src)?, face(dst)?);
        let snapshot = &self.sides.get(side)?.snapshot;
        let same = self.is_itself(src, dst);
        Some(snapshot.judge_ends(&from.identity, &to.identity, same, l4, NodeExemption::Trusted))
    }

    /// The end of an endpoint's name.
    pub fn endpoint(&self, key: &ObjectKey) -> Option<u32> {
        let at = self
            .all
            .binary_search_by(|end| match &end.what {
                What::Endpoint(name) => name.cmp(key),
                What::Range { .. } => std::cmp::Ordering::Greater,
            })
            .ok()?;
        u32::try_from(at).ok()
    }

    /// The range that holds an address, whether or not a pod has it on some side.
    pub fn range(&self, address: IpAddr) -> Option<u32> {
        let wanted = (Family::of(address), addresses::number(address));
        let after = self.all.partition_point(|end| match &end.what {
            What::Endpoint(_) => true,
            What::Range { first, .. } => (Family::of(*first), addresses::number(*first)) <= wanted,
        });
        let at = after.checked_sub(1)?;
        match &self.all.get(at)?.what {
            What::Range { last, .. } if (Family::of(*last), addresses::number(*last)) >= wanted => {
                u32::try_from(at).ok()
            }
            _ => None,
        }
    }

    /// The end that an address is on the first side: a pod's, or its range's.
    pub fn of_address(&self, address: IpAddr) -> Option<u32> {
        let snapshot = &self.sides.first()?.snapshot;
        let identity = snapshot.identify(Addr::from(address));
        match snapshot.endpoint(identity.endpoint) {
            Some(endpoint) if identity.kind == IdentityKind::Pod => self.endpoint(&ObjectKey {
                namespace: endpoint.namespace.to_owned(),
                name: endpoint.name.to_owned(),
            }),
            _ => self.range(address),
        }
    }

    /// Names of the endpoints among ends, in order of the ends.
    pub fn names<'s>(&'s self, ends: &'s [u32]) -> impl Iterator<Item = &'s ObjectKey> {
        let ends = ends.iter().filter_map(|end| self.all.get(*end as usize));
        ends.filter_map(|end| match &end.what {
            What::Endpoint(key) => Some(key),
            What::Range { .. } => None,
        })
    }

    /// The ranges among ends, which are in order, as the fewest networks. Addresses of pods inside are not meant; ranges
    /// that only pods have are filled in where both their neighbours are there.
    pub fn networks(&self, ends: &[u32]) -> Vec<IpNet> {
        let mut out = Vec::new();
        let mut run: Option<(u32, IpAddr, IpAddr)> = None;
        let close = |run: Option<(u32, IpAddr, IpAddr)>, out: &mut Vec<IpNet>| {
            if let Some((_, first, last)) = run {
                let number = addresses::number;
                addresses::networks(Family::of(first), number(first), number(last), out);
            }
        };
        for end in ends.iter().filter_map(|end| self.all.get(*end as usize)) {
            let What::Range { first, last } = &end.what else {
                continue;
            };
            run = match run {
                Some((ordinal, begin, _))
                    if ordinal + 1 == end.ordinal && Family::of(begin) == Family::of(*first) =>
                {
                    Some((end.ordinal, begin, *last))
                }
                before => {
                    close(before, &mut out);
                    Some((end.ordinal, *first, *last))
                }
            };
        }
        close(run, &mut out);
        out
    }
}

/// All or nothing.
fn all<T: Copy, const N: usize>(items: [Option<T>; N]) -> Option<[T; N]> {
    let first = *items.first()?.as_ref()?;
    let mut out = [first; N];
    for (place, item) in out.iter_mut().zip(items) {
        *place = item?;
    }
    Some(out)
}

/// Whether a pod has a place in the policy by its name.
fn lives(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}

/// Who an endpoint is on one side: by its first address of each family that is its own; by name alone, over both
/// families, where it has no address. None where it is not there or newer pods have all its addresses.
fn view(side: &Compiled<'_>, key: &ObjectKey) -> Option<View> {
    let pod = side.cluster.pods.get(key).filter(|pod| lives(pod))?;
    let endpoint = side.snapshot.find_endpoint(&key.namespace, &key.name)?;
    let template = endpoint.template;
    if pod.addresses.is_empty() {
        let face = Resolved {
            identity: endpoint.identity,
            address: None,
        };
        return Some(View {
            resolved: [Some(face); 2],
            template,
        });
    }
    let resolved = Family::BOTH.map(|family| {
        let own = pod
            .addresses
            .iter()
            .filter(|address| Family::of(**address) == family);
        own.map(|address| Resolved {
            identity: side.snapshot.identify(Addr::from(*address)),
            address: Some(*address),
        })
        .find(|face| match face.identity.kind {
            IdentityKind::Pod => face.identity.endpoint == endpoint.number,
            // A pod of a namespace that has not been seen.
            kind => kind == IdentityKind::Unknown && endpoint.identity.kind == IdentityKind::Unknown,
        })
    });
    resolved
        .iter()
        .any(Option::is_some)
        .then_some(View { resolved, template })
}

/// Cuts address space wherever a cluster may treat neighbours differently.
fn cut(cluster: &Cluster, cuts: &mut Cuts) {
    for node in cluster.nodes.values() {
        node.pod_cidrs.iter().for_each(|net| cuts.net(net));
        node.addresses.iter().for_each(|address| cuts.address(*address));
    }
    // Their addresses are their nodes'.
    for pod in cluster
        .pods
        .values()
        .filter(|pod| pod.host_network && !pod.finished)
    {
        pod.addresses.iter().for_each(|address| cuts.address(*address));
    }
    let settings = &cluster.settings;
    for net in settings.pod_cidrs.iter().chain(&settings.service_cidrs) {
        cuts.net(net);
    }
    for peer in cluster.named_peers() {
        for (cidr, except) in cluster.blocks_of(peer) {
            cuts.net(&cidr);
            except.iter().for_each(|net| cuts.net(net));
        }
    }
}
