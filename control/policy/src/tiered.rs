//! Policies of kinds whose rules decide in order, as `ClusterNetworkPolicy` (TIERS 66 to 78, 86) and those of Calico
//! (TIERS 79 to 100), and the tiers that they are in.

use std::{cmp::Ordering, collections::BTreeSet};

use super::{DenialAnswer, Fault, Peer, PolicyId, PolicyKind, PortMatch, Selector};

/// The tier of cluster-wide policies before NetworkPolicies.
pub const KUBE_ADMIN: &str = "kube-admin";
/// The tier of NetworkPolicies.
pub const DEFAULT_TIER: &str = "default";
/// The tier of cluster-wide policies after NetworkPolicies.
pub const KUBE_BASELINE: &str = "kube-baseline";

/// Where something stands among its like: the smaller first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order(f64);

impl Order {
    /// After every number.
    pub const LAST: Self = Self(f64::INFINITY);
    /// That of NetworkPolicies in their tier (TIERS 94).
    pub const NETWORK_POLICY: Self = Self(1000.0);

    /// None for what is no number.
    pub fn new(order: f64) -> Option<Self> {
        // -0 is 0.
        (!order.is_nan()).then_some(Self(order + 0.0))
    }

    /// Of a priority.
    pub fn of_priority(priority: u16) -> Self {
        Self(f64::from(priority))
    }

    /// As a number; infinite for [`Self::LAST`].
    pub fn number(self) -> f64 {
        self.0
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl std::hash::Hash for Order {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::LAST {
            f.write_str("none")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// What becomes of a packet that the policies of a tier which select the pod say nothing about (TIERS 79.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TierDefault {
    /// It is denied.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A tier: policies that decide together, before or after those of other tiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Where it stands; equal ones by name.
    pub order: Order,
    /// What it does with what its policies say nothing about.
    pub default: TierDefault,
}

impl Tier {
    /// The tiers that are always there (TIERS 79.1).
    pub fn built_in() -> [Self; 3] {
        [
            (KUBE_ADMIN, 1000.0, TierDefault::Pass),
            (DEFAULT_TIER, 1_000_000.0, TierDefault::Deny),
            (KUBE_BASELINE, 10_000_000.0, TierDefault::Pass),
        ]
        .map(|(name, order, default)| Self {
            name: name.to_owned(),
            order: Order(order),
            default,
        })
    }
}

/// Pods by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodSelection {
    /// Labels of their namespaces.
    pub namespaces: Selector,
    /// Their own labels.
    pub pods: Selector,
}

/// A policy of a kind whose rules decide in order, validated and lowered.
///
/// What cannot be understood is lowered as TIERS 72 and 107 say and has a fault: a rule that allows matches nothing, one
/// that denies or passes denies everything at its place. So consumers evaluate every rule as it stands here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredPolicy {
    /// Its kind and name; the namespace is empty for a cluster-scoped one.
    pub id: PolicyId,
    /// `metadata.uid`; empty in manifests.
    pub uid: String,
    /// Name of its tier. One that does not exist comes after all others and denies by default (TIERS 79.2).
    pub tier: String,
    /// Where it stands in its tier; equal ones by [`PolicyId::tie`].
    pub order: Order,
    /// The pods that it selects: those of any of these.
    pub subjects: Vec<PodSelection>,
    /// What the sender of a packet gets that it denies; None where it leaves that to the configuration.
    pub answer: Option<DenialAnswer>,
    /// The ingress rules, in the order in which they decide; None where it has no part in ingress, empty where it selects
    /// pods so that the tier's default applies to them.
    pub ingress: Option<Vec<TieredRule>>,
    /// The egress rules, likewise.
    pub egress: Option<Vec<TieredRule>>,
    /// What of it is not understood; empty for a valid one.
    pub faults: Vec<Fault>,
    /// What of it is valid and not evaluated yet, as it stands among the unevaluated kinds of the state. Its rules are
    /// lowered as ones that are not understood.
    pub unevaluated: BTreeSet<String>,
}

impl TieredPolicy {
    /// A cluster-scoped policy that selects every pod and has a part in neither direction.
    pub fn new(kind: PolicyKind, name: &str, tier: &str, order: Order) -> Self {
        Self {
            id: PolicyId {
                kind,
                namespace: String::new(),
                name: name.to_owned(),
            },
            uid: String::new(),
            tier: tier.to_owned(),
            order,
            subjects: vec![PodSelection::default()],
            answer: None,
            ingress: None,
            egress: None,
            faults: Vec::new(),
            unevaluated: BTreeSet::new(),
        }
    }

    /// The rules of both directions.
    pub fn rules(&self) -> impl Iterator<Item = &TieredRule> {
        self.ingress.iter().chain(&self.egress).flatten()
    }
}

/// What a rule does with what it matches (TIERS 66.2, 81).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It passes, in this direction.
    Allow,
    /// It does not.
    Deny,
    /// The next tier decides.
    Pass,
    /// Nothing: it is written down, and the next rule decides.
    Log,
}

/// One rule, or one of several alternatives that are one rule of the object: it matches what any of them does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TieredRule {
    /// Whether it is another alternative of the rule before it, which does the same.
    pub continues: bool,
    /// What it does.
    pub action: Action,
    /// Who, any of them; None for everyone. Pods name their namespaces by selector, never [`Peer::Pods`] of the "own".
    pub peers: Option<Vec<Peer>>,
    /// Where to, any of them; None for every protocol and port (TIERS 75).
    pub ports: Option<Vec<PortMatch>>,
    /// What has to hold besides.
    pub conditions: Conditions,
}

/// What a rule asks for besides its peers and ports: all of it has to hold (TIERS 99).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Of the peer.
    pub peer: Vec<Condition>,
    /// Of the pod that the policy selects.
    pub own: Vec<Condition>,
    /// Protocols and ports that the rule does not match.
    pub not_ports: Vec<PortMatch>,
    /// Source ports, any of them; None for all. What has no source port does not match. Names are those of the source.
    pub source_ports: Option<Vec<PortMatch>>,
    /// Source ports that the rule does not match.
    pub not_source_ports: Vec<PortMatch>,
}

impl Conditions {
    /// Nothing.
    pub const NONE: Self = Self {
        peer: Vec::new(),
        own: Vec::new(),
        not_ports: Vec::new(),
        source_ports: None,
        not_source_ports: Vec::new(),
    };

    /// Every source port that they name, those that the rule does not match among them.
    pub fn named_source_ports(&self) -> impl Iterator<Item = &PortMatch> {
        self.source_ports.iter().flatten().chain(&self.not_source_ports)
    }

    /// Those of both ends.
    pub fn of_ends(&self) -> impl Iterator<Item = &Condition> {
        self.peer.iter().chain(&self.own)
    }
}

/// What one end of a flow has to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Whether it has to be none of these instead.
    pub negated: bool,
    /// One of these.
    pub any: Vec<Peer>,
}

impl TieredRule {
    /// Rules in their order, each with the index of the rule of the object that it is.
    pub fn numbered(rules: &[Self]) -> impl Iterator<Item = (usize, &Self)> {
        let mut begun = 0_usize;
        rules.iter().map(move |rule| {
            begun += usize::from(begun == 0 || !rule.continues);
            (begun - 1, rule)
        })
    }

    /// Every peer that it names, those of its conditions among them.
    pub fn named_peers(&self) -> impl Iterator<Item = &Peer> {
        let conditions = self.conditions.of_ends().flat_map(|condition| &condition.any);
        self.peers.iter().flatten().chain(conditions)
    }

    /// Every protocol and port that it names, those that it does not match among them.
    pub fn named_ports(&self) -> impl Iterator<Item = &PortMatch> {
        self.ports.iter().flatten().chain(&self.conditions.not_ports)
    }

    /// What a rule comes to that is not understood (TIERS 72.1, 107).
    pub fn not_understood(action: Action) -> Self {
        match action {
            Action::Allow | Action::Log => Self {
                continues: false,
                action,
                peers: Some(Vec::new()),
                ports: None,
                conditions: Conditions::NONE,
            },
            Action::Deny | Action::Pass => Self {
                continues: false,
                action: Action::Deny,
                peers: None,
                ports: None,
                conditions: Conditions::NONE,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn orders_are_numbers_and_none_comes_last() {
        let order = |number| Order::new(number).unwrap();
        let mut orders = [
            Order::LAST,
            order(10.5),
            order(-3.0),
            order(0.0),
            Order::of_priority(10),
            order(1e300),
        ];
        orders.sort_unstable();
        let texts: Vec<String> = orders.iter().take(4).map(ToString::to_string).collect();
        assert_eq!(texts, ["-3", "0", "10", "10.5"]);
        assert_eq!(orders.last(), Some(&Order::LAST));
        assert_eq!(order(-0.0), order(0.0));
        assert_eq!(Order::new(f64::NAN), None);
    }
}
