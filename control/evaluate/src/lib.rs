//! The literal evaluator: policy semantics straight from the objects, slow and plain. Shares no code with the model,
//! the compiler or the dataplane, so that agreeing with it means something.
//!
//! Numbers in comments are the points of the semantics (`docs/semantics.md`), as in the names of the tests (`tests/semantics.rs`).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{
    Action, Cluster, ClusterTier, Labels, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PolicyId, PortMatch,
    Rule, Selector, TieredPolicy, TieredRule, Unplaced,
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
    /// An address of a pod network that belongs to nobody who is known.
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
    /// Destination port; None for a protocol without ports.
    pub port: Option<u16>,
}

/// Why a direction is decided as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A rule allows it: of NetworkPolicies, the first in order of namespace, name and index.
    Rule {
        /// The tier of the policy that holds it, by name.
        tier: &'static str,
        /// That policy.
        policy: PolicyId,
        /// Its index in the policy's list of the direction.
        index: usize,
    },
    /// A rule denies it.
    Denied {
        /// The tier of the policy that holds it, by name.
        tier: &'static str,
        /// That policy.
        policy: PolicyId,
        /// Its index in the policy's list of the direction.
        index: usize,
    },
    /// These policies isolate the pod and none of their rules matches; in order of namespace and name.
    Isolated(Vec<ObjectKey>),
    /// No policy decides about the pod, or the end is no pod.
    Open,
    /// A pod to its own address.
    SelfTraffic,
    /// A pod and the node that hosts it.
    HostingNode,
    /// The end belongs to nobody who is known.
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
        // 54: nobody can say which selectors match a pod whose namespace has not been seen.
        let seen = cluster.namespaces.contains_key(&pod.key.namespace);
        return end(if seen {
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
    let seen = cluster.namespaces.contains_key(&key.namespace);
    Some(End {
        identity: if seen {
            Identity::Pod(pod)
        } else {
            Identity::Unknown
        },
        address: None,
    })
}

/// Judges a new flow.
pub fn judge(cluster: &Cluster, src: &End<'_>, dst: &End<'_>, service: Service) -> Verdict {
    let both = |cause: Cause| Verdict {
        ingress: Direction {
            allow: true,
            cause: cause.clone(),
        },
        egress: Direction { allow: true, cause },
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
        let mut verdict = both(Cause::HostingNode);
        // 85: NetworkPolicies do not govern what goes to the own node; all others do.
        if let Identity::Pod(pod) = src.identity {
            let tier = |tier| judge_tier(cluster, tier, pod, dst, dst, service, EGRESS.tiered);
            let decided = tier(ClusterTier::Admin).or_else(|| tier(ClusterTier::Baseline));
            verdict.egress = decided.unwrap_or(verdict.egress);
        }
        return verdict;
    }
    Verdict {
        ingress: judge_end(cluster, dst, src, dst, service, &INGRESS),
        egress: judge_end(cluster, src, dst, dst, service, &EGRESS),
    }
}

/// The rules of a direction.
struct RulesOf {
    network_policy: fn(&NetworkPolicy) -> Option<&[Rule]>,
    tiered: fn(&TieredPolicy) -> &[TieredRule],
}

const INGRESS: RulesOf = RulesOf {
    network_policy: |policy| policy.ingress.as_deref(),
    tiered: |policy| &policy.ingress,
};

const EGRESS: RulesOf = RulesOf {
    network_policy: |policy| policy.egress.as_deref(),
    tiered: |policy| &policy.egress,
};

/// Judges one direction: `subject` is the end whose policies count, `peer` the other one.
fn judge_end(
    cluster: &Cluster,
    subject: &End<'_>,
    peer: &End<'_>,
    dst: &End<'_>,
    service: Service,
    rules: &RulesOf,
) -> Direction {
    let pod = match subject.identity {
        Identity::Pod(pod) => pod,
        Identity::Unknown if !cluster.settings.allow_unknown => {
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
    // 66: Admin, NetworkPolicies, Baseline.
    let tier = |tier| judge_tier(cluster, tier, pod, peer, dst, service, rules.tiered);
    if let Some(decided) = tier(ClusterTier::Admin) {
        return decided;
    }
    if let Some(decided) = judge_network_policies(cluster, pod, peer, dst, service, rules.network_policy) {
        return decided;
    }
    tier(ClusterTier::Baseline).unwrap_or(Direction {
        allow: true,
        cause: Cause::Open, // 1
    })
}

/// What the policies of a tier decide about a pod; None where none of their rules matches, or one passes (66, 69).
fn judge_tier(
    cluster: &Cluster,
    tier: ClusterTier,
    pod: &Pod,
    peer: &End<'_>,
    dst: &End<'_>,
    service: Service,
    rules: fn(&TieredPolicy) -> &[TieredRule],
) -> Option<Direction> {
    let labels = &cluster.namespaces.get(&pod.key.namespace)?.labels;
    // 73
    let selecting = cluster.tiered.values().filter(|policy| {
        policy.tier == tier && selects(&policy.namespaces, labels) && selects(&policy.pods, &pod.labels)
    });
    let mut selecting: Vec<&TieredPolicy> = selecting.map(AsRef::as_ref).collect();
    // 67, 93
    selecting.sort_by_key(|policy| {
        let tie = format!("{}//{}", policy.id.name, policy.id.kind.name());
        (policy.priority, tie)
    });
    for policy in selecting {
        for (index, rule) in rules(policy).iter().enumerate() {
            // 68
            let action = match &rule.peers {
                None => Some(rule.action),
                Some(peers) if peers.iter().any(|it| peer_matches(cluster, "", it, peer)) => {
                    Some(rule.action)
                }
                Some(peers) => unplaced(cluster, peer).and_then(|it| it.action(rule.action, peers)),
            };
            let ports = rule.ports.as_ref();
            let ports = ports.is_none_or(|ports| ports.iter().any(|it| port_matches(it, dst, service)));
            let Some(action) = action.filter(|_| ports) else {
                continue;
            };
            let policy = policy.id.clone();
            return match action {
                Action::Allow => Some(Direction {
                    allow: true,
                    cause: Cause::Rule {
                        tier: tier.name(),
                        policy,
                        index,
                    },
                }),
                Action::Deny => Some(Direction {
                    allow: false,
                    cause: Cause::Denied {
                        tier: tier.name(),
                        policy,
                        index,
                    },
                }),
                Action::Pass => None,
            };
        }
    }
    None
}

/// What NetworkPolicies decide about a pod; None where none isolates it.
fn judge_network_policies(
    cluster: &Cluster,
    pod: &Pod,
    peer: &End<'_>,
    dst: &End<'_>,
    service: Service,
    rules: fn(&NetworkPolicy) -> Option<&[Rule]>,
) -> Option<Direction> {
    let mut isolating = Vec::new();
    for policy in cluster.policies.values() {
        let Some(rules) = rules(policy) else { continue };
        if policy.key.namespace != pod.key.namespace || !selects(&policy.subjects, &pod.labels) {
            continue;
        }
        for (index, rule) in rules.iter().enumerate() {
            if rule_matches(cluster, policy, rule, peer, dst, service) {
                return Some(Direction {
                    allow: true,
                    cause: Cause::Rule {
                        tier: "NetworkPolicy",
                        policy: PolicyId::network_policy(&policy.key),
                        index,
                    },
                });
            }
        }
        isolating.push(policy.key.clone());
    }
    if isolating.is_empty() {
        return None;
    }
    Some(Direction {
        allow: false,
        cause: Cause::Isolated(isolating),
    }) // 2
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
                || unplaced(cluster, peer).is_some_and(|unplaced| unplaced.matches(peers))
        }
    };
    let ports = match &rule.ports {
        None => true,
        Some(ports) => ports.iter().any(|entry| port_matches(entry, dst, service)),
    };
    peers && ports
}

/// How blocks are read for an end whose address nobody knows yet: manifests alone leave open which hold it.
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

fn port_matches(entry: &PortMatch, dst: &End<'_>, service: Service) -> bool {
    let Some(port) = service.port else { return false }; // 35
    match entry {
        PortMatch::All(protocol) => service.protocol == protocol.number(), // 27
        PortMatch::Range { protocol, lo, hi } => {
            service.protocol == protocol.number() && *lo <= port && port <= *hi // 30, 36
        }
        PortMatch::Named { protocol, name } => {
            // 31, 32, 33
            let Identity::Pod(pod) = dst.identity else {
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

/// 11: every requirement; none selects everything.
fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|requirement| {
        let value = labels.get(&requirement.key);
        match &requirement.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)), // 9
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    })
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
