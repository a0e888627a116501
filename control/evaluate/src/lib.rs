//! The literal evaluator: policy semantics straight from the objects, slow and plain. Shares no code with the model,
//! the compiler or the dataplane, so that agreeing with it means something.
//!
//! Numbers in comments are the points of the semantics (`docs/semantics.md`), as in the names of the tests (`tests/semantics.rs`).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{
    Action, Cluster, Condition, Labels, NetworkPolicy, ObjectKey, Operator, Part, Peer, Pod, PolicyId,
    PolicyKind, PortMatch, Requirement, Rule, Selector, TierDefault, TieredPolicy, TieredRule, Unplaced,
};

/// Who an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// A live pod on the pod network, or the template of a workload.
    Pod(&'a Pod),
    /// An address of a node, by the node's name where that is known.
    Node(Option<&'a str>),
    /// Outside of the cluster, Service addresses included.
    External,
    /// An address of a pod network that no known pod or node has.
    Unknown,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// Who it is.
    pub identity: Identity<'a>,
    /// Its address; None for a pod or template that has none, which no ipBlock matches.
    pub address: Option<IpAddr>,
}

/// What is asked besides the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; of ICMP and ICMPv6, 256 times the type plus the code. None for a protocol without ports, and where
    /// it is not known.
    pub port: Option<u16>,
    /// Source port, likewise.
    pub source_port: Option<u16>,
}

/// Why a direction is decided as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A rule allows it: of NetworkPolicies, the first in order of namespace, name and index.
    Rule {
        /// The tier of the policy that holds it, by name.
        tier: String,
        /// That policy.
        policy: PolicyId,
        /// Its index in the policy's list of the direction.
        index: usize,
    },
    /// A rule denies it.
    Denied {
        /// The tier of the policy that holds it, by name.
        tier: String,
        /// That policy.
        policy: PolicyId,
        /// Its index in the policy's list of the direction.
        index: usize,
    },
    /// These policies of one tier select the pod, none of their rules matches, and the tier denies the rest; in the order
    /// in which they are asked.
    Isolated {
        /// The tier, by name.
        tier: String,
        /// The policies.
        policies: Vec<PolicyId>,
    },
    /// No policy applies to the pod in the direction, or the end is no pod.
    Open,
    /// Policies apply to the pod in the direction, but no tier decides: its profile allows what is left (79.4).
    Profile,
    /// A pod to its own address.
    SelfTraffic,
    /// A pod and the node that hosts it.
    HostingNode,
    /// No known pod or node has the address.
    Unknown,
}

/// The decision of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Whether it allows the flow.
    pub allow: bool,
    /// Why.
    pub cause: Cause,
}

/// The decision about a new flow; it passes where both directions allow it (3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// At the destination.
    pub ingress: Direction,
    /// At the source.
    pub egress: Direction,
}

impl Verdict {
    /// Whether the flow passes.
    pub fn allow(&self) -> bool {
        self.ingress.allow && self.egress.allow
    }
}

/// A rule that passed a flow on to the next tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The tier of the policy that holds it, by name.
    pub tier: String,
    /// That policy.
    pub policy: PolicyId,
    /// Its index in the policy's list of the direction.
    pub index: usize,
}

/// The decision about a new flow, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The decision.
    pub verdict: Verdict,
    /// The rules that passed it on at the destination, in order.
    pub passed_ingress: Vec<Passed>,
    /// Those at the source.
    pub passed_egress: Vec<Passed>,
}

/// Who owns an address.
pub fn identify(cluster: &Cluster, address: IpAddr) -> End<'_> {
    let end = |identity| End {
        identity,
        address: Some(address),
    };

    // 46: a pod in the node's network namespace has no address of its own. 50: a finished one has none any more.
    let claimants = cluster
        .pods
        .values()
        .filter(|pod| !pod.host_network && !pod.finished && pod.addresses.contains(&address));
    // 50, 54: of several, the newest that is not going away; then the greatest UID; the name only settles what manifests
    // leave open.
    if let Some(pod) = claimants.max_by_key(|pod| (!pod.terminating, pod.created, &pod.uid, &pod.key)) {
        // 54: which selectors match a pod is unknown while its Namespace is missing.
        let has_namespace = cluster.namespaces.contains_key(&pod.key.namespace);
        return end(if has_namespace {
            Identity::Pod(pod)
        } else {
            Identity::Unknown
        });
    }

    // 47; 46: the address of a pod on the host network is its node's.
    let listed = cluster
        .nodes
        .values()
        .filter(|node| node.addresses.contains(&address))
        .map(|node| node.name.as_str());
    let hosted = cluster
        .pods
        .values()
        .filter(|pod| pod.host_network && !pod.finished && pod.addresses.contains(&address))
        .filter_map(|pod| pod.node.as_deref());
    if let Some(name) = listed.min().or_else(|| hosted.min()) {
        return end(Identity::Node(Some(name)));
    }

    // 53
    let settings = &cluster.settings;
    let mut pod_networks = cluster
        .nodes
        .values()
        .flat_map(|node| &node.pod_cidrs)
        .chain(&settings.pod_cidrs);
    if pod_networks.any(|network| inside(network, address)) {
        return end(Identity::Unknown);
    }
    end(Identity::External)
}

/// A pod or template by name, apart from any address. None where it is not there, has finished, or is on the host
/// network (46), where only its address says who it is.
pub fn named<'a>(cluster: &'a Cluster, key: &ObjectKey) -> Option<End<'a>> {
    let pod = cluster
        .pods
        .get(key)
        .filter(|pod| !pod.host_network && !pod.finished)?;
    let has_namespace = cluster.namespaces.contains_key(&key.namespace);
    Some(End {
        identity: if has_namespace {
            Identity::Pod(pod)
        } else {
            Identity::Unknown
        },
        address: None,
    })
}

/// Judges a new flow.
pub fn judge(cluster: &Cluster, src: &End<'_>, dst: &End<'_>, service: Service) -> Verdict {
    trace(cluster, src, dst, service).verdict
}

/// Judges a new flow, and says how that comes about.
pub fn trace(cluster: &Cluster, src: &End<'_>, dst: &End<'_>, service: Service) -> Trace {
    let both = |cause: Cause| Trace {
        verdict: Verdict {
            ingress: Direction {
                allow: true,
                cause: cause.clone(),
            },
            egress: Direction { allow: true, cause },
        },
        passed_ingress: Vec::new(),
        passed_egress: Vec::new(),
    };
    if let (Identity::Pod(a), Identity::Pod(b)) = (src.identity, dst.identity)
        && a.key == b.key
        // 48. A template stands for many pods, which are not each other.
        && src.address == dst.address
        && a.template_of.is_none()
    {
        return both(Cause::SelfTraffic);
    }
    // 47
    if let (Identity::Pod(pod), Identity::Node(Some(node))) | (Identity::Node(Some(node)), Identity::Pod(pod)) =
        (src.identity, dst.identity)
        && pod.node.as_deref() == Some(node)
    {
        let mut trace = both(Cause::HostingNode);
        // 85: NetworkPolicies do not govern what goes to the own node; all others do.
        if let Identity::Pod(pod) = src.identity {
            let asked = DirectionQuery {
                cluster,
                own: src,
                peer: dst,
                dst,
                service,
                direction: Way::Egress,
            };
            let decided = asked.judge_pod(pod, false, &mut trace.passed_egress);
            if !matches!(decided.cause, Cause::Open | Cause::Profile) {
                trace.verdict.egress = decided;
            }
        }
        return trace;
    }
    let (mut passed_ingress, mut passed_egress) = (Vec::new(), Vec::new());
    let ask = |own, peer, direction| DirectionQuery {
        cluster,
        own,
        peer,
        dst,
        service,
        direction,
    };
    Trace {
        verdict: Verdict {
            ingress: ask(dst, src, Way::Ingress).judge_end(dst, &mut passed_ingress),
            egress: ask(src, dst, Way::Egress).judge_end(src, &mut passed_egress),
        },
        passed_ingress,
        passed_egress,
    }
}

/// Which rules of a policy count.
#[derive(Clone, Copy)]
enum Way {
    Ingress,
    Egress,
}

/// What is asked of the policies of a pod.
struct DirectionQuery<'a> {
    cluster: &'a Cluster,
    /// The end whose policies count.
    own: &'a End<'a>,
    peer: &'a End<'a>,
    dst: &'a End<'a>,
    service: Service,
    direction: Way,
}

/// A policy that selects the pod and has a part in the direction.
enum Member<'a> {
    Network(&'a NetworkPolicy, &'a [Rule]),
    Ordered(&'a TieredPolicy, &'a [TieredRule]),
}

impl Member<'_> {
    /// The index in the object of the rule at a place: alternatives of one rule have the same.
    fn number_of(&self, place: usize) -> usize {
        match self {
            Self::Network(..) => place,
            Self::Ordered(_, rules) => {
                let others = rules.iter().take(place + 1).skip(1);
                others.filter(|rule| !rule.continues).count()
            }
        }
    }

    fn id(&self) -> PolicyId {
        match self {
            Self::Network(policy, _) => PolicyId::network_policy(&policy.key),
            Self::Ordered(policy, _) => policy.id.clone(),
        }
    }
}

/// What a tier says about a packet.
enum TierOutcome {
    /// This is the decision.
    Decided(Direction),
    /// By this rule, the next tier decides.
    Passed(Passed),
    /// Nothing: the next tier decides.
    Nothing,
}

impl<'a> DirectionQuery<'a> {
    /// Judges one direction, at the end whose policies count.
    fn judge_end(&self, subject: &End<'_>, passed: &mut Vec<Passed>) -> Direction {
        let pod = match subject.identity {
            Identity::Pod(pod) => pod,
            Identity::Unknown if !self.cluster.settings.allow_unknown => {
                return Direction {
                    allow: false,
                    cause: Cause::Unknown,
                };
            }
            Identity::Unknown | Identity::Node(_) | Identity::External => {
                return Direction {
                    allow: true,
                    cause: Cause::Open,
                };
            }
        };
        self.judge_pod(pod, true, passed)
    }

    /// What the policies decide about a pod (66, 79). Without NetworkPolicies where they do not govern (85).
    fn judge_pod(&self, pod: &Pod, network_policies: bool, passed: &mut Vec<Passed>) -> Direction {
        let mut governed = false;
        for (name, denies) in tiers(self.cluster) {
            let members = self.members(&name, pod, network_policies);
            governed |= !members.is_empty();
            match self.judge_tier(&name, denies, &members) {
                TierOutcome::Decided(decision) => return decision,
                TierOutcome::Passed(rule) => passed.push(rule),
                TierOutcome::Nothing => {}
            }
        }
        // 1; a pod's profile allows what is left (79.4).
        Direction {
            allow: true,
            cause: if governed { Cause::Profile } else { Cause::Open },
        }
    }

    /// The policies of a tier that select a pod, in the order in which they are asked.
    fn members(&self, tier: &str, pod: &Pod, network_policies: bool) -> Vec<Member<'a>> {
        let cluster = self.cluster;
        let Some(namespace) = cluster.namespaces.get(&pod.key.namespace) else {
            return Vec::new();
        };
        // Order and tie (67, 83, 93).
        let mut members: Vec<(f64, String, Member<'a>)> = Vec::new();
        let tie = |id: &PolicyId, kind: &str| format!("{}/{}/{kind}", id.name, id.namespace);
        for policy in cluster.tiered.values().filter(|policy| policy.tier == tier) {
            // 73, 98
            let selects = policy.subjects.iter().any(|subjects| {
                selects(&subjects.namespaces, &namespace.labels) && selects(&subjects.pods, &pod.labels)
            });
            let rules = match self.direction {
                Way::Ingress => &policy.ingress,
                Way::Egress => &policy.egress,
            };
            if let Some(rules) = rules.as_ref().filter(|_| selects) {
                let kind = match policy.id.kind {
                    PolicyKind::NetworkPolicy => "KubernetesNetworkPolicy",
                    PolicyKind::ClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
                    PolicyKind::AdminNetworkPolicy => "KubernetesAdminNetworkPolicy",
                    PolicyKind::BaselineAdminNetworkPolicy => "KubernetesBaselineAdminNetworkPolicy",
                    PolicyKind::CalicoNetworkPolicy => "NetworkPolicy",
                    PolicyKind::GlobalNetworkPolicy => "GlobalNetworkPolicy",
                };
                let member = Member::Ordered(policy, rules);
                members.push((policy.order.number(), tie(&policy.id, kind), member));
            }
        }
        // 94, 102
        if tier == "default" && network_policies {
            // Where another policy may stand between them, their order decides; else they all allow, and it only says
            // which of them is named.
            let mixed = cluster
                .tiered
                .values()
                .any(|policy| policy.tier == "default" && policy.order.number() == 1000.0);
            for policy in cluster.policies.values() {
                let rules = match self.direction {
                    Way::Ingress => policy.ingress.as_deref(),
                    Way::Egress => policy.egress.as_deref(),
                };
                let Some(rules) = rules else { continue };
                if policy.key.namespace == pod.key.namespace && selects(&policy.subjects, &pod.labels) {
                    let tie = match mixed {
                        true => tie(&PolicyId::network_policy(&policy.key), "KubernetesNetworkPolicy"),
                        false => policy.key.name.clone(),
                    };
                    members.push((1000.0, tie, Member::Network(policy, rules)));
                }
            }
        }
        members.sort_by(|one, other| one.0.total_cmp(&other.0).then_with(|| one.1.cmp(&other.1)));
        members.into_iter().map(|(_, _, member)| member).collect()
    }

    fn judge_tier(&self, tier: &str, denies: bool, members: &[Member<'_>]) -> TierOutcome {
        for member in members {
            let rules = match member {
                Member::Network(_, rules) => rules.len(),
                Member::Ordered(_, rules) => rules.len(),
            };
            for index in 0..rules {
                let Some(action) = self.rule_of(member, index) else {
                    continue;
                };
                let tier = shown(self.cluster, tier);
                let policy = member.id();
                let index = member.number_of(index);
                return match action {
                    Action::Allow => TierOutcome::Decided(Direction {
                        allow: true,
                        cause: Cause::Rule { tier, policy, index },
                    }),
                    Action::Deny => TierOutcome::Decided(Direction {
                        allow: false,
                        cause: Cause::Denied { tier, policy, index },
                    }),
                    Action::Pass => TierOutcome::Passed(Passed { tier, policy, index }), // 69, 79.5
                    Action::Log => continue,                                             // 81.1
                };
            }
        }
        // 2, 79.3: a tier none of whose policies selects the pod in the direction is passed over.
        if members.is_empty() || !denies {
            return TierOutcome::Nothing;
        }
        TierOutcome::Decided(Direction {
            allow: false,
            cause: Cause::Isolated {
                tier: shown(self.cluster, tier),
                policies: members.iter().map(Member::id).collect(),
            },
        })
    }

    /// What a rule does with the packet; None where it does not match.
    fn rule_of(&self, member: &Member<'_>, index: usize) -> Option<Action> {
        let Self {
            cluster,
            peer,
            dst,
            service,
            ..
        } = *self;
        match member {
            Member::Network(policy, rules) => {
                let rule = rules.get(index)?;
                rule_matches(cluster, policy, rule, peer, dst, service).then_some(Action::Allow)
            }
            Member::Ordered(_, rules) => {
                let rule = rules.get(index)?;
                // What one alternative surely passes on, another that only may pass it on does not change.
                let continues = |rule: &TieredRule| rule.continues && rule.action == Action::Pass;
                let before = index.checked_sub(1).and_then(|before| rules.get(before));
                if continues(rule) && before.is_some_and(|before| before.action == Action::Pass) {
                    return None; // looked at with the first
                }
                let others = rules.iter().skip(index + 1).take_while(|it| continues(it));
                let others = others.filter(|_| rule.action == Action::Pass);
                let matches = |possibly: bool| {
                    let mut alternatives = [rule].into_iter().chain(others.clone());
                    alternatives.any(|it| self.ends_match(it, possibly) && self.ports_match(it))
                };
                // 68, 99
                match cluster.unplaced.as_deref() {
                    None => matches(false).then_some(rule.action),
                    Some(unplaced) => unplaced.action(rule.action, matches),
                }
            }
        }
    }

    /// Whether the ports at both ends are what a rule asks for (99.7).
    fn ports_match(&self, rule: &TieredRule) -> bool {
        let Self { dst, service, .. } = *self;
        let conditions = &rule.conditions;
        let to = |ports: &[PortMatch]| ports.iter().any(|it| port_matches(it, dst, service));
        // A source port's name is the source's.
        let src = match self.direction {
            Way::Ingress => self.peer,
            Way::Egress => self.own,
        };
        let from = |ports: &[PortMatch]| {
            let port = service.source_port;
            ports
                .iter()
                .any(|it| port_matches(it, src, Service { port, ..service }))
        };
        rule.ports.as_deref().is_none_or(to)
            && !to(&conditions.not_ports)
            && conditions.source_ports.as_deref().is_none_or(from)
            && !from(&conditions.not_source_ports)
    }

    /// Whether both ends are what a rule asks for; where blocks are read for ends without address: possibly, or surely.
    fn ends_match(&self, rule: &TieredRule, possibly: bool) -> bool {
        let is_one_of = |entries: &[Peer], end: &End<'_>, possibly| {
            entries.iter().any(|it| peer_matches(self.cluster, "", it, end))
                || unplaced(self.cluster, end).is_some_and(|it| it.hold(self.cluster, entries, possibly))
        };
        let hold = |conditions: &[Condition], end: &End<'_>| {
            conditions.iter().all(|condition| match condition.negated {
                false => is_one_of(&condition.any, end, possibly),
                true => !is_one_of(&condition.any, end, !possibly),
            })
        };
        let peers = rule.peers.as_deref();
        peers.is_none_or(|peers| is_one_of(peers, self.peer, possibly))
            && hold(&rule.conditions.peer, self.peer)
            && hold(&rule.conditions.own, self.own)
    }
}

/// The tiers in the order in which they decide, by name, and whether each denies by default (79.1, 79.2, 101).
fn tiers(cluster: &Cluster) -> Vec<(String, bool)> {
    // Missing, order, name, denies.
    let mut tiers = vec![
        (false, 1000.0, "kube-admin".to_owned(), false),
        (false, 1_000_000.0, "default".to_owned(), true),
        (false, 10_000_000.0, "kube-baseline".to_owned(), false),
    ];
    for tier in cluster.tiers.values() {
        if !tiers.iter().any(|(_, _, known, _)| *known == tier.name) {
            let denies = tier.default == TierDefault::Deny;
            tiers.push((false, tier.order.number(), tier.name.clone(), denies));
        }
    }
    for policy in cluster.tiered.values() {
        if !tiers.iter().any(|(_, _, known, _)| *known == policy.tier) {
            tiers.push((true, 0.0, policy.tier.clone(), true));
        }
    }
    tiers.sort_by(|one, other| {
        let by_order = one.1.total_cmp(&other.1);
        one.0
            .cmp(&other.0)
            .then(by_order)
            .then_with(|| one.2.cmp(&other.2))
    });
    tiers
        .into_iter()
        .map(|(_, _, name, denies)| (name, denies))
        .collect()
}

/// What reasons call a tier (105).
fn shown(cluster: &Cluster, tier: &str) -> String {
    let calico = [PolicyKind::CalicoNetworkPolicy, PolicyKind::GlobalNetworkPolicy];
    let has_calico =
        !cluster.tiers.is_empty() || cluster.tiered.keys().any(|policy| calico.contains(&policy.kind));
    match tier {
        "kube-admin" if !has_calico => "Admin",
        "default" if !has_calico => "NetworkPolicy",
        "kube-baseline" if !has_calico => "Baseline",
        name => name,
    }
    .to_owned()
}

/// 19: ports AND peers; absent lists restrict nothing (18).
fn rule_matches(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    rule: &Rule,
    peer: &End<'_>,
    dst: &End<'_>,
    service: Service,
) -> bool {
    let peers = match &rule.peers {
        None => true,
        Some(peers) => {
            peers
                .iter()
                .any(|entry| peer_matches(cluster, &policy.key.namespace, entry, peer))
                || unplaced(cluster, peer).is_some_and(|unplaced| unplaced.matches(cluster, peers))
        }
    };
    let ports = match &rule.ports {
        None => true,
        Some(ports) => ports.iter().any(|entry| port_matches(entry, dst, service)),
    };
    peers && ports
}

/// How blocks are read for an end whose address is not known yet: manifests alone leave open which hold it.
fn unplaced<'a>(cluster: &'a Cluster, peer: &End<'_>) -> Option<&'a Unplaced> {
    let nameless = peer.address.is_none() && matches!(peer.identity, Identity::Pod(_));
    cluster.unplaced.as_deref().filter(|_| nameless)
}

/// `own` is the namespace of the policy.
fn peer_matches(cluster: &Cluster, own: &str, entry: &Peer, peer: &End<'_>) -> bool {
    match entry {
        // 38: pods' addresses too. 43: families do not mix.
        Peer::Block { cidr, except } => peer
            .address
            .is_some_and(|address| inside(cidr, address) && !except.iter().any(|hole| inside(hole, address))),
        // 96: as a block of each of its prefixes.
        Peer::Addresses(set) => peer.address.is_some_and(|address| {
            let members = cluster.address_sets.get(set).into_iter();
            members.flat_map(|set| set.iter()).any(|net| inside(net, address))
        }),
        Peer::Pods { namespaces, pods } => {
            let Identity::Pod(pod) = peer.identity else {
                return false;
            }; // 7, 46
            let in_namespace = match namespaces {
                None => pod.key.namespace == own, // 6
                Some(selector) => cluster
                    .namespaces
                    .get(&pod.key.namespace)
                    .is_some_and(|namespace| selects(selector, &namespace.labels)),
            };
            in_namespace && selects(pods, &pod.labels) // 8
        }
    }
}

/// `whose` is the end that the port is of: the destination, or the source of a source port.
fn port_matches(entry: &PortMatch, whose: &End<'_>, service: Service) -> bool {
    if let PortMatch::IpProtocol(protocol) = entry {
        return service.protocol == *protocol;
    }
    let Some(port) = service.port else { return false }; // 35
    match entry {
        PortMatch::IpProtocol(_) => false,
        PortMatch::Icmp { protocol, kind, code } => {
            // 99.9
            let (asked_kind, asked_code) = (port / 256, port % 256);
            service.protocol == *protocol
                && asked_kind == u16::from(*kind)
                && code.is_none_or(|code| asked_code == u16::from(code))
        }
        PortMatch::All(protocol) => service.protocol == protocol.number(), // 27
        PortMatch::Range { protocol, lo, hi } => {
            service.protocol == protocol.number() && *lo <= port && port <= *hi // 30, 36
        }
        PortMatch::Named { protocol, name } => {
            // 31, 32, 33
            let Identity::Pod(pod) = whose.identity else {
                return false;
            };
            service.protocol == protocol.number()
                && pod
                    .named_ports
                    .iter()
                    .find(|port| port.name == *name && port.protocol == *protocol)
                    .is_some_and(|found| found.number == port)
        }
    }
}

/// Whether a selector selects what has these labels (11): every requirement holds; none selects everything.
pub fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector
        .requirements
        .iter()
        .all(|requirement| holds(requirement, labels))
}

/// Whether labels meet a requirement.
pub fn holds(requirement: &Requirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    match &requirement.operator {
        Operator::In(values) => value.is_some_and(|value| values.contains(value)),
        Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)), // 9
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::Like { part, text, negated } => {
            let has = value.is_some_and(|value| match part {
                Part::Anywhere => value.contains(text),
                Part::Start => value.starts_with(text),
                Part::End => value.ends_with(text),
            });
            has != *negated // 97.2
        }
    }
}

/// Whether a block holds an address, by comparing bits.
fn inside(block: &IpNet, address: IpAddr) -> bool {
    match (block, address) {
        (IpNet::V4(block), IpAddr::V4(address)) => {
            let host_bits = 32 - u32::from(block.prefix_len());
            u64::from(u32::from(block.addr())) >> host_bits == u64::from(u32::from(address)) >> host_bits
        }
        (IpNet::V6(block), IpAddr::V6(address)) => match 128 - u32::from(block.prefix_len()) {
            128 => true,
            host_bits => u128::from(block.addr()) >> host_bits == u128::from(address) >> host_bits,
        },
        _ => false,
    }
}
