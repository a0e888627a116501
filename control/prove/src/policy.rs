//! A policy of any kind as something that decides: its place in the order, whom it selects, its rules.

use std::{collections::BTreeMap, sync::Arc};

use ringwall_dataplane::classify::PolicyName;
use ringwall_policy::{
    Action, Cluster, Condition, DenialAnswer, Labels, NetworkPolicy, Order, Peer, PolicyId, PolicyKind,
    PortMatch, Selector, TierDefault, TieredPolicy,
};

use super::{matching::matches, rules::Direction};

/// The tiers of a cluster, in the order in which they are asked (TIERS 79.2, 101), as the checker reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tiers {
    tiers: Vec<RankedTier>,
    numbers: BTreeMap<String, u32>,
    /// Whether other policies stand at the order of NetworkPolicies, so that their order among themselves matters.
    between: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RankedTier {
    /// In reasons (TIERS 105).
    name: String,
    denies: bool,
}

impl Tiers {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let mut exist: BTreeMap<String, (Order, bool)> = BTreeMap::new();
        for tier in cluster.tiers.values() {
            exist.insert(tier.name.clone(), (tier.order, tier.default != TierDefault::Pass));
        }
        // TIERS 79.1: fixed, whatever an object says.
        for (name, order, denies) in [
            ("kube-admin", 1000.0, false),
            ("default", 1_000_000.0, true),
            ("kube-baseline", 10_000_000.0, false),
        ] {
            let order = Order::new(order).unwrap_or(Order::LAST);
            exist.insert(name.to_owned(), (order, denies));
        }
        let mut sorted: Vec<(Order, String, bool)> = exist
            .iter()
            .map(|(name, (order, denies))| (*order, name.clone(), *denies))
            .collect();
        sorted.sort();
        let missing: BTreeMap<&str, ()> = cluster
            .tiered
            .values()
            .filter(|policy| !exist.contains_key(&policy.tier))
            .map(|policy| (policy.tier.as_str(), ()))
            .collect();
        sorted.extend(missing.keys().map(|name| (Order::LAST, (*name).to_owned(), true)));
        let by_calico = |id: &PolicyId| {
            matches!(
                id.kind,
                PolicyKind::CalicoNetworkPolicy | PolicyKind::GlobalNetworkPolicy
            )
        };
        let calico = !cluster.tiers.is_empty() || cluster.tiered.keys().any(by_calico);
        let mut this = Self::default();
        for (_, name, denies) in sorted {
            let shown = match name.as_str() {
                "kube-admin" if !calico => "Admin",
                "default" if !calico => NETWORK_POLICY,
                "kube-baseline" if !calico => "Baseline",
                name => name,
            };
            this.tiers.push(RankedTier {
                name: shown.to_owned(),
                denies,
            });
            this.numbers.insert(name, this.tiers.len() as u32 - 1);
        }
        let mut others = cluster.tiered.values();
        this.between = others.any(|policy| policy.tier == "default" && policy.order.number() == 1000.0);
        this
    }

    /// The number of a policy's tier.
    pub(super) fn tier_of(&self, policy: &Policy) -> u32 {
        let name = match policy {
            Policy::Network(_) => "default",
            Policy::Tiered(policy) => &policy.tier,
        };
        self.numbers.get(name).copied().unwrap_or(u32::MAX)
    }

    /// Whether a tier denies what the policies in it that select a pod say nothing about.
    pub(super) fn denies(&self, tier: u32) -> bool {
        self.tiers.get(tier as usize).is_some_and(|tier| tier.denies)
    }

    /// Where a policy stands: by tier, order and the bytes of `name/namespace/kind` (TIERS 83, 93, 94).
    pub(super) fn place(&self, policy: &Policy) -> (u32, Order, Vec<u8>) {
        let order = match policy {
            Policy::Network(_) => Order::NETWORK_POLICY,
            Policy::Tiered(policy) => policy.order,
        };
        // NetworkPolicies allow alone: among themselves their order only says which is named.
        let tie = match policy {
            Policy::Network(policy) if !self.between => policy.key.name.clone(),
            _ => [policy.name(), policy.namespace(), policy.kind_in_ties()].join("/"),
        };
        (self.tier_of(policy), order, tie.into_bytes())
    }

    /// How reasons name a policy.
    pub(super) fn named<'a>(&'a self, policy: &'a Policy) -> PolicyName<'a> {
        let tier = self.tiers.get(self.tier_of(policy) as usize);
        PolicyName {
            tier: tier.map_or("", |tier| &tier.name),
            kind: policy.kind().name(),
            namespace: policy.namespace(),
            name: policy.name(),
        }
    }
}

/// Tier and kind of NetworkPolicies in reasons.
const NETWORK_POLICY: &str = "NetworkPolicy";

/// One policy.
#[derive(Clone, Debug)]
pub(super) enum Policy {
    /// Selects pods of its namespace, allows, and denies to them what none of its tier allows.
    Network(Arc<NetworkPolicy>),
    /// Selects pods by labels of theirs and of their namespaces; its rules decide in order.
    Tiered(Arc<TieredPolicy>),
}

/// One rule of a policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Whether it is one rule of the object with the part before it.
    pub continues: bool,
    pub action: Action,
    pub peers: Option<&'a [Peer]>,
    pub ports: Option<&'a [PortMatch]>,
    /// What has to hold of the peer, and of the pod that the policy selects.
    pub demands: [&'a [Condition]; 2],
    pub not_ports: &'a [PortMatch],
    /// Source ports, one of these; None for all.
    pub source_ports: Option<&'a [PortMatch]>,
    /// And none of these.
    pub not_source_ports: &'a [PortMatch],
}

impl Policy {
    pub(super) fn is_network_policy(&self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// What the sender of a packet gets that it denies, if it says so.
    pub(super) fn answer(&self) -> Option<DenialAnswer> {
        match self {
            Self::Network(policy) => policy.answer,
            Self::Tiered(policy) => policy.answer,
        }
    }

    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Network(policy) => &policy.key.namespace,
            Self::Tiered(policy) => &policy.id.namespace,
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Network(policy) => &policy.key.name,
            Self::Tiered(policy) => &policy.id.name,
        }
    }

    fn kind(&self) -> PolicyKind {
        match self {
            Self::Network(_) => PolicyKind::NetworkPolicy,
            Self::Tiered(policy) => policy.id.kind,
        }
    }

    /// Its kind where equal orders are settled (TIERS 93, 94).
    fn kind_in_ties(&self) -> &'static str {
        match self.kind() {
            PolicyKind::NetworkPolicy => "KubernetesNetworkPolicy",
            PolicyKind::ClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
            PolicyKind::AdminNetworkPolicy => "KubernetesAdminNetworkPolicy",
            PolicyKind::BaselineAdminNetworkPolicy => "KubernetesBaselineAdminNetworkPolicy",
            PolicyKind::CalicoNetworkPolicy => "NetworkPolicy",
            PolicyKind::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        }
    }

    /// Whether it is the same object, perhaps with other contents.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.kind(), self.namespace(), self.name()) == (other.kind(), other.namespace(), other.name())
    }

    /// The labels that it asks of its pods, one selector for each alternative.
    pub(super) fn pods(&self) -> Vec<&Selector> {
        match self {
            Self::Network(policy) => vec![&policy.subjects],
            Self::Tiered(policy) => policy.subjects.iter().map(|subjects| &subjects.pods).collect(),
        }
    }

    /// Whether it may select pods of a namespace, by its name and labels.
    pub(super) fn selects_in(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Network(policy) => policy.key.namespace == name,
            Self::Tiered(policy) => {
                let mut alternatives = policy.subjects.iter();
                alternatives.any(|subjects| matches(&subjects.namespaces, labels)) // TIERS 73.1
            }
        }
    }

    /// Whether it selects pods with these labels in a namespace of this name and these labels.
    pub(super) fn selects(&self, name: &str, of_namespace: &Labels, of_pod: &Labels) -> bool {
        match self {
            Self::Network(policy) => policy.key.namespace == name && matches(&policy.subjects, of_pod),
            Self::Tiered(policy) => policy.subjects.iter().any(|subjects| {
                matches(&subjects.pods, of_pod) && matches(&subjects.namespaces, of_namespace)
            }),
        }
    }

    /// Whether it has a part in a direction.
    pub(super) fn governs(&self, direction: Direction) -> bool {
        match self {
            Self::Network(policy) => direction.rules(policy).is_some(),
            Self::Tiered(policy) => direction.ordered_rules(policy).is_some(),
        }
    }

    /// How many rules it has for a direction.
    pub(super) fn len(&self, direction: Direction) -> u32 {
        let rules = match self {
            Self::Network(policy) => direction.rules(policy).map_or(0, <[_]>::len),
            Self::Tiered(policy) => direction.ordered_rules(policy).map_or(0, <[_]>::len),
        };
        rules as u32
    }

    /// A rule of a direction.
    pub(super) fn part(&self, direction: Direction, index: u32) -> Option<Part<'_>> {
        let index = index as usize;
        match self {
            Self::Network(policy) => direction.rules(policy)?.get(index).map(|rule| Part {
                continues: false,
                action: Action::Allow,
                peers: rule.peers.as_deref(),
                ports: rule.ports.as_deref(),
                demands: [&[], &[]],
                not_ports: &[],
                source_ports: None,
                not_source_ports: &[],
            }),
            Self::Tiered(policy) => direction.ordered_rules(policy)?.get(index).map(|rule| Part {
                continues: rule.continues,
                action: rule.action,
                peers: rule.peers.as_deref(),
                ports: rule.ports.as_deref(),
                demands: [&rule.conditions.peer, &rule.conditions.own],
                not_ports: &rule.conditions.not_ports,
                source_ports: rule.conditions.source_ports.as_deref(),
                not_source_ports: &rule.conditions.not_source_ports,
            }),
        }
    }
}

/// A policy in words: `namespace/name` of a NetworkPolicy; of others all that can tell two apart.
pub(super) fn in_words(policy: &PolicyName<'_>) -> String {
    match (policy.tier, policy.kind) {
        (NETWORK_POLICY, NETWORK_POLICY) => policy.to_string(),
        (tier, kind) => format!("{kind} {policy} of tier {tier}"),
    }
}
