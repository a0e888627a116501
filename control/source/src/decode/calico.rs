//! The policies of Calico and what they speak of: `projectcalico.org/v3`, and `crd.projectcalico.org/v1` as they are
//! stored (TIERS 79 to 100).
//!
//! A policy is decoded and lowered as far as it goes by itself. What its rules need of other objects (network sets, host
//! endpoints, services) and what pods need of their service accounts stays as an [`Input`], and is put in where the state
//! of a source is put together ([`lower`]).

pub(crate) mod lower;
mod objects;
mod policy;
mod ports;
mod rules;
mod selector;
mod stored;
mod terms;
#[cfg(test)]
mod tests;

pub(super) use self::policy::staged_by_annotation;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
pub(super) use objects::{Support, readable_labels, support};
pub(super) use policy::policy;
use ringwall_policy::{
    Labels, NetworkPolicy, ObjectKey, Peer, PolicyKind, PortMatch, Protocol, Selector, TieredPolicy,
    TieredRule,
};
use selector::Expression;
pub(crate) use stored::METADATA as STORED_METADATA;
pub(super) use stored::restored;

use super::{
    Origin,
    field::{Fields, fault, join},
    policy::Findings,
    tiered::nodes::{Node, NodesPeer},
};
use ringwall_policy::{Fault, Object};

/// The API group of these kinds.
pub(super) const GROUP: &str = "projectcalico.org";
/// That in which they are stored.
pub(super) const STORED_GROUP: &str = "crd.projectcalico.org";

/// A kind of these groups that has a part in policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tier,
    NetworkPolicy,
    GlobalNetworkPolicy,
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    NetworkSet,
    GlobalNetworkSet,
    HostEndpoint,
    Profile,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Tier,
        Self::NetworkPolicy,
        Self::GlobalNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
        Self::NetworkSet,
        Self::GlobalNetworkSet,
        Self::HostEndpoint,
        Self::Profile,
    ];

    /// The object's `kind`.
    const fn name(self) -> &'static str {
        match self {
            Self::Tier => "Tier",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::NetworkSet => "NetworkSet",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::HostEndpoint => "HostEndpoint",
            Self::Profile => "Profile",
        }
    }

    /// What messages call it: with its group where another group has a kind of this name.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::NetworkPolicy => PolicyKind::CalicoNetworkPolicy.name(),
            _ => self.name(),
        }
    }

    /// Whether its objects are in namespaces.
    pub(super) const fn namespaced(self) -> bool {
        match self {
            Self::NetworkPolicy
            | Self::StagedNetworkPolicy
            | Self::StagedKubernetesNetworkPolicy
            | Self::NetworkSet => true,
            Self::Tier
            | Self::GlobalNetworkPolicy
            | Self::StagedGlobalNetworkPolicy
            | Self::GlobalNetworkSet
            | Self::HostEndpoint
            | Self::Profile => false,
        }
    }

    /// What becomes of its rules: those of which policy, and whether they are enforced.
    const fn policy(self) -> Option<(PolicyKind, bool)> {
        match self {
            Self::NetworkPolicy => Some((PolicyKind::CalicoNetworkPolicy, true)),
            Self::GlobalNetworkPolicy => Some((PolicyKind::GlobalNetworkPolicy, true)),
            Self::StagedNetworkPolicy => Some((PolicyKind::CalicoNetworkPolicy, false)),
            Self::StagedGlobalNetworkPolicy => Some((PolicyKind::GlobalNetworkPolicy, false)),
            _ => None,
        }
    }
}

/// What a kind of these groups is: one that is decoded, one that was meant to be; None for one without a part in policy.
pub(super) fn kind(kind: &str, group: &str, api_version: &str, at: &str) -> Option<Result<Kind, Fault>> {
    let version = match group {
        GROUP => "projectcalico.org/v3",
        STORED_GROUP => "crd.projectcalico.org/v1",
        _ => return None,
    };
    let lower = kind.trim().to_ascii_lowercase();
    let singular = match lower.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => lower,
    };
    let found = Kind::ALL
        .into_iter()
        .find(|it| it.name().to_ascii_lowercase() == singular);
    let Some(found) = found else {
        // A policy must not vanish because its kind is misspelt.
        return singular.ends_with("policy").then(|| {
            let message = format!(
                "{group} has no {kind:?}: write NetworkPolicy, GlobalNetworkPolicy, or one of them with Staged before it"
            );
            Err(fault(join(at, "kind"), message))
        });
    };
    Some(if kind != found.name() {
        let message = format!("there is no {kind:?}: write {}", found.name());
        Err(fault(join(at, "kind"), message))
    } else if api_version != version {
        let message = format!("{api_version:?} has no {}: write {version}", found.name());
        Err(fault(join(at, "apiVersion"), message))
    } else {
        Ok(found)
    })
}

/// What a host endpoint comes to at which policies decide about the host's own traffic: what stands among the kinds that
/// are not evaluated, and what is said of it.
pub(crate) fn governed_host() -> (String, Fault) {
    let message = "policies for the host itself are not evaluated: every verdict is incomplete";
    (
        format!("{}.{GROUP}", Kind::HostEndpoint.name()),
        fault("spec", message),
    )
}

/// What the state needs of an object besides what it is by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Of a policy in force: its lowered form is the object.
    Policy(PolicyInput),
    /// A policy that is staged: nothing is enforced of it.
    Staged(Box<StagedInput>),
    /// Addresses with labels.
    Set(Set),
    /// A network interface of a node.
    HostEndpoint(HostEndpoint),
    /// The labels of a service account.
    Account(ServiceAccount),
    /// A service by what selects its pods.
    Service(Service),
    /// Addresses and ports of a service.
    Slice(EndpointSlice),
    /// What a Node is to rules that speak of nodes.
    Node(Arc<Node>),
}

impl Input {
    /// That of a policy whose rules hold all that they need.
    pub(crate) fn settled(policy: &TieredPolicy) -> Self {
        let peers = policy.rules().flat_map(TieredRule::named_peers);
        let of_peers = peers.filter_map(|peer| match peer {
            Peer::Pods { pods, .. } => Some(pods),
            Peer::Block { .. } | Peer::Addresses(_) => None,
        });
        let selectors = policy
            .subjects
            .iter()
            .map(|subject| &subject.pods)
            .chain(of_peers);
        Self::Policy(PolicyInput {
            subject: None,
            rules: Vec::new(),
            accounts: selectors.into_iter().any(terms::asks_for_accounts),
        })
    }

    /// What objects are known by that the state itself does not hold; None for those that it does, and where it does not
    /// matter if there are two.
    pub(crate) fn name(&self) -> Option<(&'static str, ObjectKey)> {
        let cluster = |name: &str| ObjectKey {
            namespace: String::new(),
            name: name.to_owned(),
        };
        Some(match self {
            Self::Policy(_) | Self::Account(_) | Self::Service(_) | Self::Slice(_) | Self::Node(_) => {
                return None;
            }
            Self::Staged(staged) => (staged.kind, staged.key.clone()),
            Self::Set(Set { namespace, name, .. }) => match namespace {
                Some(namespace) => (
                    Kind::NetworkSet.name(),
                    ObjectKey {
                        namespace: namespace.clone(),
                        name: name.clone(),
                    },
                ),
                None => (Kind::GlobalNetworkSet.name(), cluster(name)),
            },
            Self::HostEndpoint(endpoint) => (Kind::HostEndpoint.name(), cluster(&endpoint.name)),
        })
    }
}

/// What a policy needs of other objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PolicyInput {
    /// What it selects, where host endpoints can be among it.
    subject: Option<Expression>,
    /// Its rules that other objects have a part in.
    rules: Vec<Awaiting>,
    /// Whether it speaks of service accounts.
    accounts: bool,
}

impl PolicyInput {
    /// That of a policy with such peers.
    pub(super) fn of_nodes(peers: Vec<NodesPeer>) -> Self {
        let rules = peers.into_iter().map(|peer| Awaiting {
            direction: Direction::Egress,
            rule: peer.rule,
            path: peer.path,
            wanted: Wanted::Nodes(peer.nodes),
        });
        Self {
            rules: rules.collect(),
            ..Self::default()
        }
    }

    /// Whether a rule awaits other objects.
    pub(super) fn awaits(&self) -> bool {
        !self.rules.is_empty()
    }
}

/// A rule that other objects have a part in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Awaiting {
    direction: Direction,
    /// Its index in the direction.
    rule: usize,
    /// Where it stands, relative to the document.
    path: String,
    wanted: Wanted,
}

/// A list of peers of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RulePlace {
    /// Its peers.
    Peers,
    /// Those of a condition of the peer, by index.
    OfPeer(usize),
    /// Those of a condition of the pod itself, by index.
    OfOwn(usize),
    /// Those of a condition of the peer that the rule does not have: it is for others, too.
    PeerBesides,
}

/// Ports of a rule: a name is that of the end whose port it is (TIERS 99.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortsOf {
    Source,
    Destination,
}

/// What a rule is also for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// Addresses of network sets and host endpoints with these labels.
    Objects {
        expression: Expression,
        /// Where they belong.
        place: RulePlace,
        /// The only family that the rule is for.
        family: Option<Family>,
        /// The ports of theirs that the rule matches or excludes by name.
        by_name: Option<PortsOf>,
    },
    /// Addresses of the nodes with these labels (TIERS 73.6).
    Nodes(Selector),
    /// The endpoints of a service.
    Service {
        key: ObjectKey,
        family: Option<Family>,
        /// Whether their ports are the rule's.
        ports: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The field of `spec`.
    const fn key(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(block: &IpNet) -> Self {
        match block {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Every address.
    const fn whole(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
        }
    }
}

/// A policy that is staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StagedInput {
    kind: &'static str,
    key: ObjectKey,
    action: StagedAction,
    policy: StagedPolicyInput,
}

/// What would be enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StagedPolicyInput {
    Calico(TieredPolicy, PolicyInput),
    Kubernetes(NetworkPolicy),
}

/// What becomes of the policy of the same name if a staged one is enforced (TIERS 95).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagedAction {
    /// The staged one replaces it.
    Set,
    /// It goes.
    Delete,
    /// As `Set`, of a policy that is still being written.
    Learn,
    /// As `Set`.
    Ignore,
}

/// A NetworkSet or a GlobalNetworkSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    /// None for a GlobalNetworkSet.
    namespace: Option<String>,
    name: String,
    labels: Labels,
    blocks: Vec<IpNet>,
}

/// A HostEndpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostEndpoint {
    name: String,
    labels: Labels,
    addresses: Vec<IpAddr>,
    /// Names, protocols and numbers of its ports.
    ports: Vec<(String, Protocol, u16)>,
    /// Whether a profile of it allows what no policy decides.
    open: bool,
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    key: ObjectKey,
    labels: Labels,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    key: ObjectKey,
    /// Labels of its pods.
    pods: Selector,
    /// Ports at these.
    ports: Vec<PortMatch>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    service: ObjectKey,
    addresses: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
}

/// An object of these groups, decoded.
pub(super) struct Read {
    pub(super) object: Object,
    pub(super) input: Option<Input>,
}

/// Where an object stands that is decoded.
#[derive(Clone, Copy)]
pub(super) struct ObjectText<'a> {
    pub(super) root: &'a Fields,
    pub(super) at: &'a str,
    pub(super) key: &'a ObjectKey,
    pub(super) origin: Origin,
}

/// Reads an object that is no policy, or a policy.
///
/// # Errors
/// It cannot be read what it is (a tier's order), or whom it is for.
pub(super) fn object(
    kind: Kind,
    place: ObjectText<'_>,
    uid: String,
    findings: &mut Findings,
) -> Result<Read, Fault> {
    if place.origin == Origin::Folder {
        place.metadata(kind, findings)?;
    }
    match kind {
        Kind::Tier => objects::tier(place).map(|tier| Read {
            object: Object::Tier(tier),
            input: None,
        }),
        Kind::NetworkSet | Kind::GlobalNetworkSet => {
            let set = objects::set(kind, place, findings)?;
            Ok(Read::input(kind, Input::Set(set)))
        }
        Kind::HostEndpoint => {
            let endpoint = objects::host_endpoint(place, findings)?;
            Ok(Read::input(kind, Input::HostEndpoint(endpoint)))
        }
        Kind::Profile => Ok(objects::profile(place)),
        Kind::StagedKubernetesNetworkPolicy => Ok(policy::staged_kubernetes(place, uid, findings)),
        _ => policy(kind, place, uid, findings),
    }
}

impl Read {
    /// An object that the state holds nothing of by itself.
    fn input(kind: Kind, input: Input) -> Self {
        Self {
            object: Object::Ignored {
                kind: kind.name().to_owned(),
            },
            input: Some(input),
        }
    }

    fn ignored(kind: Kind) -> Self {
        Self {
            object: Object::Ignored {
                kind: kind.name().to_owned(),
            },
            input: None,
        }
    }
}
