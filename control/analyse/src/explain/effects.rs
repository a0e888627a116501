//! What else a change would change: other pairs of endpoints, counted.
//!
//! Endpoints that every policy treats alike are counted together, so that large clusters can be counted exactly; where
//! even that is too much, counting stops and says so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use ringwall_evaluate::{End, Identity, Service};
use ringwall_policy::{
    Cluster, Labels, NamedPort, NetworkPolicy, ObjectKey, Peer, Pod, PortMatch, Protocol, TieredRule,
};

use super::{
    Direction,
    conditions::{policies_of, unmet},
    edit::{Edit, Labelled},
    report::SideEffects,
    trace::{Case, selecting},
};

/// The most pairs of groups that are looked at for counting the effects of one change, and the most judgements of single
/// ports where rules differ.
const MOST_PAIRS: usize = 200_000;
const MOST_JUDGED: usize = 20_000;
/// The most blocks by which addresses are told apart; more are not counted.
const MOST_BLOCKS: usize = 512;

/// Endpoints that every policy treats alike.
#[derive(Clone)]
struct Group<'a> {
    /// The pods; empty for an end that is no pod.
    pods: Vec<&'a Pod>,
    /// The end that is no pod.
    other: Option<End<'a>>,
}

impl<'a> Group<'a> {
    fn namespace(&self) -> &'a str {
        self.pods.first().map_or("", |pod| pod.key.namespace.as_str())
    }

    fn first_address(&self, nth: usize, v4: bool) -> Option<IpAddr> {
        match self.other {
            Some(end) => end.address.filter(|address| address.is_ipv4() == v4),
            None => address_of(self.pods.get(nth)?, v4),
        }
    }

    fn is_nameless(&self) -> bool {
        match self.other {
            Some(end) => end.address.is_none(),
            None => self.pods.first().is_none_or(|pod| pod.addresses.is_empty()),
        }
    }

    /// The nth member before a change and after it, when its labels may be others; `after` are the pods then.
    fn ends<'b>(&self, nth: usize, v4: bool, after: [Option<&'b Pod>; 2]) -> Option<[End<'b>; 2]>
    where
        'a: 'b,
    {
        if let Some(end) = self.other {
            return Some([end; 2]);
        }
        let address = self.first_address(nth, v4);
        let end = |pod: &'b Pod| End {
            identity: Identity::Pod(pod),
            address,
        };
        Some([end(self.pods.get(nth)?), end((*after.get(nth)?)?)])
    }
}

fn address_of(pod: &Pod, v4: bool) -> Option<IpAddr> {
    pod.addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv4() == v4)
}

/// What every policy can know of a pod.
type Signature<'a> = (
    &'a str,
    &'a Labels,
    &'a [NamedPort],
    bool,
    [Option<Vec<usize>>; 2],
);

/// The endpoints of a cluster besides a flow.
pub(super) struct Bystanders<'a> {
    cluster: &'a Cluster,
    src: End<'a>,
    dst: End<'a>,
    service: Service,
    /// By what policies can know; those of the flow's own pods are not taken out.
    groups: Vec<Vec<&'a Pod>>,
    /// Numbers that pods give to a port name.
    named: BTreeMap<(Protocol, &'a str), BTreeSet<u16>>,
    /// Whether `groups` tells everything apart that a policy could.
    complete: bool,
}

/// Protocol, first and last port; None for every protocol without ports.
type Span = (Service, Option<(u16, u16)>);

impl<'a> Bystanders<'a> {
    pub(super) fn of(cluster: &'a Cluster, src: &End<'a>, dst: &End<'a>, service: Service) -> Self {
        let mut blocks = BTreeSet::new();
        for peer in cluster.named_peers() {
            if let Peer::Block { cidr, except } = peer {
                blocks.insert(*cidr);
                blocks.extend(except);
            }
        }
        let complete = blocks.len() <= MOST_BLOCKS;
        let blocks: Vec<IpNet> = blocks.into_iter().take(MOST_BLOCKS).collect();
        let owners = owners(cluster);
        let mut groups: Vec<Vec<&Pod>> = Vec::new();
        let mut by_signature: BTreeMap<Signature<'_>, usize> = BTreeMap::new();
        let mut named: BTreeMap<(Protocol, &str), BTreeSet<u16>> = BTreeMap::new();
        for pod in cluster.pods.values().map(AsRef::as_ref) {
            for port in &pod.named_ports {
                let numbers = named.entry((port.protocol, port.name.as_str())).or_default();
                numbers.insert(port.number);
            }
            if !is_endpoint(cluster, &owners, pod) {
                continue;
            }
            let memberships = [true, false].map(|v4| {
                let address = address_of(pod, v4)?;
                let inside = blocks
                    .iter()
                    .enumerate()
                    .filter(|(_, block)| block.contains(&address));
                Some(inside.map(|(index, _)| index).collect())
            });
            let signature = (
                pod.key.namespace.as_str(),
                &pod.labels,
                pod.named_ports.as_slice(),
                pod.template_of.is_some(),
                memberships,
            );
            let index = *by_signature.entry(signature).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(index) {
                group.push(pod);
            }
        }
        Self {
            cluster,
            src: *src,
            dst: *dst,
            service,
            groups,
            named,
            complete,
        }
    }

    /// Counts what a change changes besides the flow; `changed` is the state after it.
    pub(super) fn count(&self, edits: &[Edit], changed: &Cluster) -> SideEffects {
        let groups = self.groups_apart(edits);
        let mut counting = Counting {
            bystanders: self,
            changed,
            groups: &groups,
            members: groups.iter().map(|group| group.first_two_in(changed)).collect(),
            relabels_namespaces: edits.iter().any(|edit| {
                matches!(
                    edit,
                    Edit::Label {
                        of: Labelled::Namespace(_),
                        ..
                    }
                )
            }),
            selected: groups.iter().map(|_| None).collect(),
            cuts: HashMap::new(),
            pairs: 0,
            judged: 0,
        };
        let asked = [self.src, self.dst].map(|end| groups.iter().position(|group| group.is_of(&end)));
        let roles: Vec<[bool; 2]> = groups.iter().map(|group| self.touched(group, edits)).collect();
        let touched = |index: usize, role: usize| roles.get(index).is_some_and(|roles| roles[role]);
        let mut effects = SideEffects {
            pairs: 0,
            other_ports: false,
            exact: self.complete,
        };
        for (s, src) in groups.iter().enumerate() {
            for (d, dst) in groups.iter().enumerate() {
                if !touched(s, 0) && !touched(d, 1) {
                    continue;
                }
                if counting.is_tired() {
                    effects.exact = false;
                    return effects;
                }
                if asked == [Some(s), Some(d)] {
                    effects.other_ports = counting.other_ports(s, d);
                } else if counting.changes(s, d) {
                    effects.pairs += pairs(src, dst, s == d);
                }
            }
        }
        effects
    }

    /// The groups, with the flow's ends and every pod that the change relabels apart.
    fn groups_apart(&self, edits: &[Edit]) -> Vec<Group<'a>> {
        let mut apart: BTreeSet<&ObjectKey> = edits
            .iter()
            .filter_map(|edit| match edit {
                Edit::Label {
                    of: Labelled::Pod(key),
                    ..
                } => Some(key),
                _ => None,
            })
            .collect();
        for end in [&self.src, &self.dst] {
            if let Identity::Pod(pod) = end.identity {
                apart.insert(&pod.key);
            }
        }
        let mut groups = Vec::new();
        for pods in &self.groups {
            let (single, together): (Vec<&Pod>, Vec<&Pod>) =
                pods.iter().partition(|pod| apart.contains(&pod.key));
            groups.extend(single.into_iter().map(|pod| Group {
                pods: vec![pod],
                other: None,
            }));
            if !together.is_empty() {
                groups.push(Group {
                    pods: together,
                    other: None,
                });
            }
        }
        for end in [self.src, self.dst] {
            if !matches!(end.identity, Identity::Pod(_)) && !groups.iter().any(|group| group.is_of(&end)) {
                groups.push(Group {
                    pods: Vec::new(),
                    other: Some(end),
                });
            }
        }
        groups
    }

    /// Whether a change can matter to a group as source, and as destination.
    fn touched(&self, group: &Group<'_>, edits: &[Edit]) -> [bool; 2] {
        let Some(pod) = group.pods.first() else {
            return [false; 2];
        };
        let mut roles = [false; 2];
        for edit in edits {
            let (policy, direction) = match edit {
                Edit::Label {
                    of: Labelled::Pod(key),
                    ..
                } => {
                    if *key == pod.key {
                        return [true; 2];
                    }
                    continue;
                }
                Edit::Label {
                    of: Labelled::Namespace(name),
                    ..
                } => {
                    if *name == pod.key.namespace {
                        return [true; 2];
                    }
                    continue;
                }
                Edit::AddRule(policy, direction, _) => (policy, Some(*direction)),
                Edit::AddPolicy(policy) => (&policy.key, None),
                Edit::RemovePolicy(policy) => (policy, None),
                Edit::AddPeer(place, _)
                | Edit::AddPort(place, _)
                | Edit::AddExcept(place, ..)
                | Edit::RemovePeer(place, _)
                | Edit::RemovePort(place, _)
                | Edit::RemoveRule(place)
                | Edit::RemoveExcept(place, ..) => (&place.policy, Some(place.direction)),
            };
            let subjects = match edit {
                Edit::AddPolicy(policy) => Some(&policy.subjects),
                _ => self.cluster.policies.get(policy).map(|policy| &policy.subjects),
            };
            let selected = policy.namespace == pod.key.namespace
                && subjects.is_some_and(|subjects| unmet(subjects, &pod.labels).is_none());
            if selected {
                roles[0] |= direction != Some(Direction::Ingress);
                roles[1] |= direction != Some(Direction::Egress);
            }
        }
        roles
    }
}

impl Group<'_> {
    /// The first two pods in another state.
    fn first_two_in<'c>(&self, cluster: &'c Cluster) -> [Option<&'c Pod>; 2] {
        [0, 1].map(|nth| cluster.pods.get(&self.pods.get(nth)?.key).map(AsRef::as_ref))
    }

    fn is_of(&self, end: &End<'_>) -> bool {
        match (self.other, end.identity) {
            (None, Identity::Pod(pod)) => {
                self.pods.len() == 1 && self.pods.iter().any(|it| it.key == pod.key)
            }
            (Some(other), _) => other == *end,
            (None, _) => false,
        }
    }
}

/// Which pod owns which address.
fn owners(cluster: &Cluster) -> HashMap<IpAddr, &Pod> {
    let mut owners: HashMap<IpAddr, &Pod> = HashMap::new();
    for pod in cluster.pods.values().map(AsRef::as_ref) {
        if pod.host_network || pod.finished {
            continue;
        }
        for address in &pod.addresses {
            let owner = owners.entry(*address).or_insert(pod);
            if rank(owner) < rank(pod) {
                *owner = pod;
            }
        }
    }
    owners
}

/// Of several pods with an address the greatest has it.
fn rank(pod: &Pod) -> (bool, Option<i64>, &str, &ObjectKey) {
    (!pod.terminating, pod.created, &pod.uid, &pod.key)
}

fn is_endpoint(cluster: &Cluster, owners: &HashMap<IpAddr, &Pod>, pod: &Pod) -> bool {
    let owns = |address: &IpAddr| owners.get(address).is_some_and(|owner| owner.key == pod.key);
    !pod.host_network
        && !pod.finished
        && cluster.namespaces.contains_key(&pod.key.namespace)
        && pod.addresses.iter().all(owns)
}

/// How many pairs two groups make.
fn pairs(src: &Group<'_>, dst: &Group<'_>, same: bool) -> u64 {
    let (many, others) = (src.pods.len().max(1) as u64, dst.pods.len().max(1) as u64);
    if !same {
        return many * others;
    }
    // A pod to itself always passes; a template stands for pods that are not each other.
    let template = src.pods.first().is_some_and(|pod| pod.template_of.is_some());
    if template { many * many } else { many * (many - 1) }
}

/// The cut points of ports, by protocol.
type Cuts = BTreeMap<Protocol, BTreeSet<u16>>;

/// The policies that isolate the pods of a group, by direction.
type Selected<'c> = [Vec<&'c NetworkPolicy>; 2];

/// Counting the effects of one change.
struct Counting<'c, 'a> {
    bystanders: &'c Bystanders<'a>,
    changed: &'c Cluster,
    groups: &'c [Group<'a>],
    /// By group: its first two pods after the change.
    members: Vec<[Option<&'c Pod>; 2]>,
    relabels_namespaces: bool,
    /// By group, once they are needed: before and after the change.
    selected: Vec<Option<[Selected<'c>; 2]>>,
    /// By namespace: where its policies, before or after, may change their mind.
    cuts: HashMap<String, Cuts>,
    pairs: usize,
    judged: usize,
}

/// What lets something through in a direction: the ports of every rule whose peers match; None where all passes.
type Offer<'c> = Option<Vec<&'c Option<Vec<PortMatch>>>>;

impl<'c, 'a> Counting<'c, 'a>
where
    'a: 'c,
{
    fn is_tired(&self) -> bool {
        self.pairs > MOST_PAIRS || self.judged > MOST_JUDGED
    }

    /// Whether anything changes between two groups.
    fn changes(&mut self, s: usize, d: usize) -> bool {
        let Some([before, after]) = self.pair(s, d) else {
            return false;
        };
        self.offers_differ(s, d, &before, &after)
            && self
                .spans(s, d)
                .into_iter()
                .any(|(service, _)| self.differs(&before, &after, service))
    }

    /// Whether anything but the flow itself changes between its ends.
    fn other_ports(&mut self, s: usize, d: usize) -> bool {
        let Some([before, after]) = self.pair(s, d) else {
            return false;
        };
        let asked = self.bystanders.service;
        self.spans(s, d).into_iter().any(|(service, ports)| {
            let own = match (asked.port, ports) {
                (Some(port), Some((lo, hi))) => {
                    service.protocol == asked.protocol && (lo..=hi).contains(&port)
                }
                (None, None) => true,
                _ => false,
            };
            let alone = own && ports.is_some_and(|(lo, hi)| lo == hi);
            !alone && self.differs(&before, &after, service)
        })
    }

    /// Two members, before and after the change; None where they cannot talk or always may.
    fn pair(&mut self, s: usize, d: usize) -> Option<[Case<'c>; 2]> {
        self.pairs += 1;
        let (src, dst) = (self.groups.get(s)?, self.groups.get(d)?);
        // Two different members, where there are.
        let second = usize::from(s == d && dst.pods.len() > 1);
        let common = |v4: bool| {
            (src.is_nameless() || src.first_address(0, v4).is_some())
                && (dst.is_nameless() || dst.first_address(second, v4).is_some())
        };
        let v4 = [true, false].into_iter().find(|v4| common(*v4))?;
        let ends = |index: usize, group: &Group<'a>, nth| group.ends(nth, v4, *self.members.get(index)?);
        let ([src, src_after], [dst, dst_after]) = (ends(s, src, 0)?, ends(d, dst, second)?);
        let service = self.bystanders.service;
        let case = |cluster, src, dst| Case {
            cluster,
            src,
            dst,
            service,
        };
        let before = case(self.bystanders.cluster, src, dst);
        let after = case(self.changed, src_after, dst_after);
        before.exemption().is_none().then_some([before, after])
    }

    /// Whether other rules let something through after the change than before: else no port need be looked at.
    fn offers_differ(&mut self, s: usize, d: usize, before: &Case<'c>, after: &Case<'c>) -> bool {
        // What matches a policy's peers is the same before and after, unless somebody is labelled otherwise.
        let same = |before: &End<'_>, after: &End<'_>| match (before.identity, after.identity) {
            (Identity::Pod(before), Identity::Pod(after)) => std::ptr::eq(before, after),
            (before, after) => before == after,
        };
        let relabelled =
            self.relabels_namespaces || !same(&before.src, &after.src) || !same(&before.dst, &after.dst);
        // Rules of other tiers may match somebody else, too.
        if relabelled && !self.changed.tiered.is_empty() {
            return true;
        }
        [(Direction::Egress, s), (Direction::Ingress, d)]
            .into_iter()
            .any(|(direction, subject)| {
                let [first, second] = self.selected(subject);
                let [first, second] = [first, second].map(|selected| match direction {
                    Direction::Egress => selected[0].as_slice(),
                    Direction::Ingress => selected[1].as_slice(),
                });
                if relabelled {
                    return offer(before, direction, first) != offer(after, direction, second);
                }
                // So only those that are not the same let other things through.
                let others =
                    |own: &[&'c NetworkPolicy], others: &[&NetworkPolicy]| -> Vec<&'c NetworkPolicy> {
                        let shared =
                            |policy: &NetworkPolicy| others.iter().any(|other| std::ptr::eq(*other, policy));
                        own.iter().copied().filter(|policy| !shared(policy)).collect()
                    };
                let offered =
                    |case, own: &[&'c NetworkPolicy]| offer(case, direction, own).unwrap_or_default();
                first.is_empty() != second.is_empty()
                    || offered(before, &others(first, second)) != offered(after, &others(second, first))
            })
    }

    /// The policies that isolate a group's pods.
    fn selected(&mut self, group: usize) -> &[Selected<'c>; 2] {
        const NOBODY: &[Selected<'_>; 2] = &[[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        let pod = self.groups.get(group).and_then(|group| group.pods.first());
        let (Some(pod), Some(known)) = (pod, self.selected.get_mut(group)) else {
            return NOBODY;
        };
        known.get_or_insert_with(|| {
            [self.bystanders.cluster, self.changed].map(|cluster| {
                let pod = cluster.pods.get(&pod.key);
                [Direction::Egress, Direction::Ingress].map(|direction| {
                    pod.map_or(Vec::new(), |pod| selecting(cluster, pod, direction).collect())
                })
            })
        })
    }

    fn differs(&mut self, before: &Case<'c>, after: &Case<'c>, service: Service) -> bool {
        self.judged += 1;
        let [before, after] = [before, after].map(|case| Case { service, ..*case }.passes());
        before != after
    }

    /// The ports, cut where the policies of two namespaces may change their mind, and what has no ports.
    fn spans(&mut self, s: usize, d: usize) -> Vec<Span> {
        let [one, other] = [s, d].map(|group| self.groups.get(group).map_or("", Group::namespace));
        let mut cuts = self.cuts_of(one);
        for (protocol, more) in self.cuts_of(other) {
            cuts.entry(protocol).or_default().extend(more);
        }
        let mut spans = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let mut starts = cuts.remove(&protocol).unwrap_or_default();
            starts.insert(0);
            let ends: Vec<u16> = starts
                .iter()
                .skip(1)
                .map(|next| next - 1)
                .chain([u16::MAX])
                .collect();
            spans.extend(starts.iter().zip(ends).map(|(lo, hi)| {
                let service = Service {
                    protocol: protocol.number(),
                    port: Some(*lo),
                };
                (service, Some((*lo, hi)))
            }));
        }
        // No rule tells protocols without ports apart.
        let portless = Service {
            protocol: 1,
            port: None,
        };
        spans.push((portless, None));
        spans
    }

    fn cuts_of(&mut self, namespace: &str) -> Cuts {
        if let Some(known) = self.cuts.get(namespace) {
            return known.clone();
        }
        let mut cuts = Cuts::new();
        for cluster in [self.bystanders.cluster, self.changed] {
            for policy in policies_of(cluster, namespace) {
                for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                    for port in rule.ports.iter().flatten() {
                        self.cut(port, &mut cuts);
                    }
                }
            }
        }
        // No change is of these.
        for port in tiered_rules(self.changed).flat_map(TieredRule::named_ports) {
            self.cut(port, &mut cuts);
        }
        // The flow's own port, so that what happens to it is told from what happens to others.
        if let Some(port) = self.bystanders.service.port {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                if protocol.number() == self.bystanders.service.protocol {
                    let cuts = cuts.entry(protocol).or_default();
                    cuts.insert(port);
                    cuts.extend(port.checked_add(1));
                }
            }
        }
        self.cuts.insert(namespace.to_owned(), cuts.clone());
        cuts
    }

    fn cut(&self, port: &PortMatch, cuts: &mut Cuts) {
        match port {
            PortMatch::All(_) | PortMatch::IpProtocol(_) => {}
            PortMatch::Range { protocol, lo, hi } => {
                let cuts = cuts.entry(*protocol).or_default();
                cuts.insert(*lo);
                cuts.extend(hi.checked_add(1));
            }
            PortMatch::Named { protocol, name } => {
                let numbers = self.bystanders.named.get(&(*protocol, name.as_str()));
                let cuts = cuts.entry(*protocol).or_default();
                for number in numbers.into_iter().flatten() {
                    cuts.insert(*number);
                    cuts.extend(number.checked_add(1));
                }
            }
        }
    }
}

/// Every rule of the policies of ordered kinds.
fn tiered_rules(cluster: &Cluster) -> impl Iterator<Item = &TieredRule> {
    let policies = cluster.tiered.values();
    policies.flat_map(|policy| policy.rules())
}

/// What lets something through in a direction, by the policies that isolate its subject.
fn offer<'c>(case: &Case<'c>, direction: Direction, selected: &[&'c NetworkPolicy]) -> Offer<'c> {
    if selected.is_empty() {
        return None;
    }
    let mut ports = Vec::new();
    for policy in selected {
        for rule in direction.rules(policy).unwrap_or_default() {
            if case.peers_match(policy, rule, direction) {
                ports.push(&rule.ports);
            }
        }
    }
    Some(ports)
}
