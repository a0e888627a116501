//! The state of the cluster as ringwall knows it: plain values, no kube types, no I/O.
//!
//! Sources (`ringwall_source`) build it; the reference evaluator and the compiler read it.
#![forbid(unsafe_code)]

mod judgement;
mod object;
mod policy;
pub mod services;
mod tiered;
pub mod tiers;
mod unplaced;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
pub use judgement::{Decider, PASS, STAGED, policy_words, tier_denial};
pub use object::{NAMESPACE_NAME_LABEL, Object, ObjectRef};
pub use policy::{
    DenialAnswer, Fault, Label, NetworkPolicy, Operator, Part, Peer, PortMatch, Protocol, Requirement, Rule,
    Selector,
};
pub use tiered::{
    Action, Condition, Conditions, DEFAULT_TIER, KUBE_ADMIN, KUBE_BASELINE, Order, PodSelection, Tier,
    TierDefault, TieredPolicy, TieredRule,
};
pub use unplaced::{PodNetworks, Unplaced};

/// Stands among the unevaluated kinds where it is not known which there are.
pub const UNKNOWN_KINDS: &str = "unknown";

/// Begins the keys under which a pod has the labels of its service account; no label of a pod can have such a key.
pub const ACCOUNT_LABEL: &str = "serviceaccount:";

/// Addresses that rules name together, as prefixes with their host bits masked. Prefixes may lie inside each other.
pub type AddressSet = OrdSet<IpNet>;

/// Labels of an object, by key.
pub type Labels = BTreeMap<String, String>;

/// Name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`, of the Admin tier.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`, of the Baseline tier.
    BaselineAdminNetworkPolicy,
    /// `projectcalico.org/v3`, of a namespace.
    CalicoNetworkPolicy,
    /// `projectcalico.org/v3`, of the whole cluster.
    GlobalNetworkPolicy,
}

impl PolicyKind {
    /// Those whose rules decide in order.
    pub const TIERED: [Self; 5] = [
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::CalicoNetworkPolicy,
        Self::GlobalNetworkPolicy,
    ];

    /// Whether it is one of Calico's.
    pub const fn is_calico(self) -> bool {
        matches!(self, Self::CalicoNetworkPolicy | Self::GlobalNetworkPolicy)
    }

    /// The object's `kind`; with its group where another group has a kind of this name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::CalicoNetworkPolicy => "NetworkPolicy.projectcalico.org",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        }
    }

    /// The kind in [`PolicyId::tie`]: Calico's names (TIERS 93, 94).
    const fn tie(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "KubernetesNetworkPolicy",
            Self::ClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "KubernetesAdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "KubernetesBaselineAdminNetworkPolicy",
            Self::CalicoNetworkPolicy => "NetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        }
    }
}

/// Names a policy among those of all kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; empty where it is cluster-scoped.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PolicyId {
    /// What it is called in lists of policies of all kinds: see [`policy_label`].
    pub fn label(&self) -> String {
        policy_label(self.kind.name(), &self.to_string())
    }

    /// Orders policies of one tier and order, by bytes (TIERS 93).
    pub fn tie(&self) -> String {
        format!("{}/{}/{}", self.name, self.namespace, self.kind.tie())
    }

    /// That of a NetworkPolicy.
    pub fn network_policy(key: &ObjectKey) -> Self {
        Self {
            kind: PolicyKind::NetworkPolicy,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

impl std::fmt::Display for PolicyId {
    /// `namespace/name`, or the name alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What a policy is called in lists of policies of all kinds: a NetworkPolicy by `namespace/name`, others by kind and name.
pub fn policy_label(kind: &str, policy: &str) -> String {
    if kind == PolicyKind::NetworkPolicy.name() {
        policy.to_owned()
    } else {
        format!("{kind} {policy}")
    }
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels; `kubernetes.io/metadata.name` is always there (SEMANTICS 13).
    pub labels: Labels,
    /// Whether it is being deleted (SEMANTICS 54).
    pub terminating: bool,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Every address that counts as the node's (SEMANTICS 47): status.addresses, tunnel addresses, `.0` and `.1` of a
    /// Flannel podCIDR.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A Pod, or a workload template that stands for pods without addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty in manifests.
    pub uid: String,
    /// `metadata.creationTimestamp` in seconds since 1970; None in manifests.
    pub created: Option<i64>,
    /// Its labels, and under [`ACCOUNT_LABEL`] keys those of its service account where policies ask for them.
    pub labels: Labels,
    /// The name of its service account.
    pub service_account: String,
    /// All of `status.podIPs` (SEMANTICS 52).
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Whether it uses the node's network namespace (SEMANTICS 46).
    pub host_network: bool,
    /// Whether its phase is Succeeded or Failed (SEMANTICS 50).
    pub finished: bool,
    /// Whether it is being deleted: it keeps its policy (SEMANTICS 51), but not its address where a pod that stays has
    /// it, too.
    pub terminating: bool,
    /// Named container ports, in the order that decides (SEMANTICS 33).
    pub named_ports: Vec<NamedPort>,
    /// The kind of the workload whose template this is (`Deployment`, ...); None for a Pod.
    pub template_of: Option<String>,
}

impl Pod {
    /// A pod of which nothing but the name is known: without labels, ports, node or address.
    pub fn new(key: ObjectKey) -> Self {
        Self {
            key,
            uid: String::new(),
            created: None,
            labels: Labels::new(),
            service_account: String::new(),
            addresses: Vec::new(),
            node: None,
            host_network: false,
            finished: false,
            terminating: false,
            named_ports: Vec::new(),
            template_of: None,
        }
    }
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// The port's name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// What the administrator says about the cluster, from configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Pod CIDRs besides those of the nodes (SEMANTICS 53).
    pub pod_cidrs: Vec<IpNet>,
    /// Node networks, for failsafe rules.
    pub node_cidrs: Vec<IpNet>,
    /// Service networks: `service-unsupported`.
    pub service_cidrs: Vec<IpNet>,
    /// Whether traffic of unknown endpoints is allowed (`unknownEndpoints: allow`); denied by default.
    pub allow_unknown: bool,
}

/// The whole state. A clone costs a few pointers, and a change after it copies one path of one map: two successive
/// states share all else. What differs between them is found by [`OrdMap::diff`], which passes over shared subtrees by
/// pointer, in time of the difference alone.
///
/// What the objects mean for an address, in this order; reference and compiler each implement it:
/// 1. Of the pods that are neither finished nor on the host network and list the address, one that is not being deleted
///    owns it before one that is; of several, the greatest by `(created, uid, key)`. Is its Namespace not in the state, the address is unknown (SEMANTICS 54).
/// 2. A node that lists it owns it; of several the first by name. Else the node that a live pod on the host network
///    with this address names (SEMANTICS 46), whether or not there is such a Node; of several the first by name.
/// 3. Inside a pod CIDR of a node or of the settings: unknown. Else: a Service address, or outside.
///
/// A template (`template_of`) and a pod without address are endpoints by name alone; see [`Unplaced`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: OrdMap<String, Arc<Namespace>>,
    /// Nodes by name.
    pub nodes: OrdMap<String, Arc<Node>>,
    /// Pods and workload templates.
    pub pods: OrdMap<ObjectKey, Arc<Pod>>,
    /// NetworkPolicies, the invalid ones as far as they can be understood.
    pub policies: OrdMap<ObjectKey, Arc<NetworkPolicy>>,
    /// Policies of kinds whose rules decide in order, lowered.
    pub tiered: OrdMap<PolicyId, Arc<TieredPolicy>>,
    /// Tiers besides the [built-in](Tier::built_in) ones.
    pub tiers: OrdMap<String, Arc<Tier>>,
    /// Addresses that rules name as [`Peer::Addresses`], by name. Policies stay what they are when members change.
    pub address_sets: OrdMap<String, Arc<AddressSet>>,
    /// Policy kinds that were met and are not evaluated yet (`"incomplete"` on every verdict), as `kind.group`.
    pub unevaluated_kinds: BTreeSet<String>,
    /// Configuration.
    pub settings: Settings,
    /// How ipBlocks are read for pods whose address is not known; None: no block holds them, as in a running firewall.
    pub unplaced: Option<Arc<Unplaced>>,
}

impl Cluster {
    /// Says what an address set holds; nothing where it is not there any more. Shares with the set that was there all that is
    /// in both, so that what follows costs as much as differs. Answers whether the state changed.
    pub fn set_addresses(&mut self, name: &str, members: Option<&AddressSet>) -> bool {
        let Some(members) = members else {
            return self.address_sets.remove(name).is_some();
        };
        debug_assert!(members.iter().all(|net| *net == net.trunc()));
        let set = match self.address_sets.get(name) {
            Some(before) => {
                let set = object::addresses_turned_into(before, members);
                if Arc::ptr_eq(before, &set) {
                    return false;
                }
                set
            }
            None => Arc::new(members.clone()),
        };
        self.address_sets.insert(name.to_owned(), set);
        true
    }

    /// The blocks that an entry of a rule's peers names, each with its exceptions; those of an address set where it names one.
    pub fn blocks_of<'a>(&'a self, peer: &'a Peer) -> impl Iterator<Item = (IpNet, &'a [IpNet])> {
        let (block, set) = match peer {
            Peer::Pods { .. } => (None, None),
            Peer::Block { cidr, except } => (Some((*cidr, except.as_slice())), None),
            Peer::Addresses(name) => (None, self.address_sets.get(name)),
        };
        let members = set.into_iter().flat_map(|set| set.iter());
        block.into_iter().chain(members.map(|net| (*net, &[][..])))
    }

    /// Every peer that a rule of any kind of policy names.
    pub fn named_peers(&self) -> impl Iterator<Item = &Peer> {
        let network_policies = self.policies.values().flat_map(|policy| {
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            rules.flat_map(|rule| rule.peers.iter().flatten())
        });
        let tiered = self.tiered.values().flat_map(|policy| policy.rules());
        network_policies.chain(tiered.flat_map(TieredRule::named_peers))
    }

    /// Every port that a rule of any kind of policy names.
    pub fn named_ports(&self) -> impl Iterator<Item = &PortMatch> {
        let network_policies = self.policies.values().flat_map(|policy| {
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            rules.flat_map(|rule| rule.ports.iter().flatten())
        });
        let tiered = self.tiered.values().flat_map(|policy| policy.rules());
        network_policies.chain(tiered.flat_map(TieredRule::named_ports))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    #[test]
    fn a_state_put_together_anew_shares_what_is_equal() {
        let pod = |name: &str, uid: &str| {
            Object::Pod(Pod {
                uid: uid.to_owned(),
                ..Pod::new(ObjectKey {
                    namespace: "a".to_owned(),
                    name: name.to_owned(),
                })
            })
        };
        let state = |pods: &[(&str, &str)]| {
            let mut cluster = Cluster::default();
            for (name, uid) in pods {
                cluster.insert(pod(name, uid));
            }
            cluster.unevaluated_kinds.insert(format!("{}.x", pods.len()));
            cluster
        };
        let old = state(&[("one", "1"), ("two", "2"), ("three", "3")]);
        let wanted = state(&[("one", "1"), ("two", "new"), ("four", "4"), ("five", "5")]);
        let new = old.turned_into(wanted.clone());
        assert_eq!(new, wanted);
        for ((key, before), shared) in old.pods.iter().zip([true, false, false]) {
            let same = new.pods.get(key).is_some_and(|now| Arc::ptr_eq(before, now));
            assert_eq!(same, shared, "{key}");
        }
    }

    /// Counts how often it is compared.
    #[derive(Clone, Debug)]
    struct Counted(u32);

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    /// Everything that follows a change relies on this property of the map.
    #[test]
    fn what_two_states_share_is_not_compared() {
        let mut map: OrdMap<u32, Counted> = (0..100_000).map(|n| (n, Counted(n))).collect();
        for (round, n) in (0..100_000).step_by(997).enumerate() {
            let before = map.clone();
            match round % 3 {
                0 => drop(map.insert(n, Counted(n + 1))),
                1 => drop(map.remove(&n)),
                _ => drop(map.insert(200_000 + n, Counted(n))),
            }
            COMPARED.set(0);
            assert_eq!(before.diff(&map).count(), 1);
            assert!(COMPARED.get() < 200, "round {round}: {} compared", COMPARED.get());
        }
    }
}
