//! Policies of kinds whose rules allow, deny and pass in order, as `ClusterNetworkPolicy` (TIERS 66 to 78, 86).

use std::collections::BTreeSet;

use super::{Fault, Peer, PolicyId, PortMatch, Selector};

/// Before or after NetworkPolicies (TIERS 66.1, 66.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterTier {
    /// Before them.
    Admin,
    /// After them, for pods that none of them isolates in the direction.
    Baseline,
}

impl ClusterTier {
    /// Its name in reasons (TIERS 105).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

/// A policy of a cluster-wide kind, validated and lowered.
///
/// What cannot be understood is lowered as TIERS 72 and 107 say and has a fault: a rule that allows matches nothing, one
/// that denies or passes denies everything at its place. So consumers evaluate every rule as it stands here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredPolicy {
    /// Its kind and name; cluster-scoped.
    pub id: PolicyId,
    /// `metadata.uid`; empty in manifests.
    pub uid: String,
    /// Where it stands: by tier, then by priority, the smaller first, then by [`tie`](Self::tie).
    pub tier: ClusterTier,
    /// 0 to 1000.
    pub priority: u16,
    /// Labels of the namespaces of the pods that it selects.
    pub namespaces: Selector,
    /// Labels of those pods.
    pub pods: Selector,
    /// The ingress rules, in the order in which they decide. Without rules it has no part in a direction (TIERS 71).
    pub ingress: Vec<TieredRule>,
    /// The egress rules, likewise.
    pub egress: Vec<TieredRule>,
    /// What of it is not understood; empty for a valid one.
    pub faults: Vec<Fault>,
    /// What of it is valid and not evaluated yet, as it stands among the unevaluated kinds of the state. Its rules are
    /// lowered as ones that are not understood.
    pub unevaluated: BTreeSet<String>,
}

impl TieredPolicy {
    /// Orders policies of one tier and priority, by bytes (TIERS 93).
    pub fn tie(&self) -> String {
        let PolicyId {
            kind,
            namespace,
            name,
        } = &self.id;
        format!("{name}/{namespace}/{}", kind.name())
    }
}

/// What a rule does with what it matches (TIERS 66.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// It passes, in this direction.
    Allow,
    /// It does not.
    Deny,
    /// The next tier decides.
    Pass,
}

/// One rule; its index in the list is that of the object's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TieredRule {
    /// What it does.
    pub action: Action,
    /// Who, any of them; None for everyone. Pods name their namespaces by selector, never [`Peer::Pods`] of the "own".
    pub peers: Option<Vec<Peer>>,
    /// Where to, any of them; None for every protocol and port (TIERS 75).
    pub ports: Option<Vec<PortMatch>>,
}

impl TieredRule {
    /// What a rule comes to that is not understood (TIERS 72.1, 107).
    pub fn not_understood(action: Action) -> Self {
        match action {
            Action::Allow => Self {
                action,
                peers: Some(Vec::new()),
                ports: None,
            },
            Action::Deny | Action::Pass => Self {
                action: Action::Deny,
                peers: None,
                ports: None,
            },
        }
    }
}
