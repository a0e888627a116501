//! A policy of any kind as something that decides: its place in the order, whom it selects, its rules.

use std::sync::Arc;

use ringwall_dataplane::classify::PolicyName;
use ringwall_policy::{
    Action, ClusterTier, Labels, NetworkPolicy, Peer, PolicyKind, PortMatch, Selector, TieredPolicy,
};

use super::{matching::matches, rules::Direction};

/// Policies of a tier are asked together, one tier after the other (TIERS 66.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    Admin,
    Network,
    Baseline,
}

impl Tier {
    /// Its name in reasons (TIERS 105).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Network => NETWORK_POLICY,
            Self::Baseline => "Baseline",
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
    /// Selects pods of all namespaces; its rules decide in order.
    Tiered(Arc<TieredPolicy>),
}

/// One rule of a policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub action: Action,
    pub peers: Option<&'a [Peer]>,
    pub ports: Option<&'a [PortMatch]>,
}

impl Policy {
    pub(super) fn tier(&self) -> Tier {
        match self {
            Self::Network(_) => Tier::Network,
            Self::Tiered(policy) => match policy.tier {
                ClusterTier::Admin => Tier::Admin,
                ClusterTier::Baseline => Tier::Baseline,
            },
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

    /// How reasons name it.
    pub(super) fn named(&self) -> PolicyName<'_> {
        PolicyName {
            tier: self.tier().name(),
            kind: self.kind().name(),
            namespace: self.namespace(),
            name: self.name(),
        }
    }

    /// Whether it is the same object, perhaps with other contents.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.kind(), self.namespace(), self.name()) == (other.kind(), other.namespace(), other.name())
    }

    /// Orders tiered policies: by tier, priority (TIERS 67.1) and the bytes of `name/namespace/kind` (TIERS 93).
    pub(super) fn place(&self) -> (Tier, u16, Vec<u8>) {
        let priority = match self {
            Self::Network(_) => 0,
            Self::Tiered(policy) => policy.priority,
        };
        let tie = [self.name(), self.namespace(), self.kind().name()].join("/");
        (self.tier(), priority, tie.into_bytes())
    }

    /// The labels that it asks of its pods.
    pub(super) fn pods(&self) -> &Selector {
        match self {
            Self::Network(policy) => &policy.subjects,
            Self::Tiered(policy) => &policy.pods,
        }
    }

    /// Whether it selects pods of a namespace, by name and labels.
    pub(super) fn selects_in(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Network(policy) => policy.key.namespace == name,
            Self::Tiered(policy) => matches(&policy.namespaces, labels), // TIERS 73.1
        }
    }

    /// Whether it has a part in a direction: NetworkPolicies isolate without rules, too (SEMANTICS 18), others do
    /// nothing without (TIERS 71.1).
    pub(super) fn governs(&self, direction: Direction) -> bool {
        match self {
            Self::Network(policy) => direction.rules(policy).is_some(),
            Self::Tiered(policy) => !direction.ordered_rules(policy).is_empty(),
        }
    }

    /// How many rules it has for a direction.
    pub(super) fn len(&self, direction: Direction) -> u32 {
        let rules = match self {
            Self::Network(policy) => direction.rules(policy).map_or(0, <[_]>::len),
            Self::Tiered(policy) => direction.ordered_rules(policy).len(),
        };
        rules as u32
    }

    /// A rule of a direction.
    pub(super) fn part(&self, direction: Direction, index: u32) -> Option<Part<'_>> {
        let index = index as usize;
        match self {
            Self::Network(policy) => direction.rules(policy)?.get(index).map(|rule| Part {
                action: Action::Allow,
                peers: rule.peers.as_deref(),
                ports: rule.ports.as_deref(),
            }),
            Self::Tiered(policy) => direction.ordered_rules(policy).get(index).map(|rule| Part {
                action: rule.action,
                peers: rule.peers.as_deref(),
                ports: rule.ports.as_deref(),
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
