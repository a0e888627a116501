//! Policies that are staged: nothing is enforced of them (TIERS 95).

use ringwall_policy::{Cluster, Object};

pub use crate::decode::calico::{
    StagedAction,
    lower::{Staged, StagedPolicy},
};

impl StagedAction {
    /// `set` or `delete`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Set | Self::Learn | Self::Ignore => "set",
        }
    }
}

/// The state as it would be if these were enforced.
#[must_use]
pub fn pending<'s>(cluster: &Cluster, staged: impl IntoIterator<Item = &'s Staged>) -> Cluster {
    let mut cluster = cluster.clone();
    for staged in staged {
        let object = match &staged.policy {
            StagedPolicy::Calico(policy) => Object::Tiered(policy.clone()),
            StagedPolicy::Kubernetes(policy) => Object::NetworkPolicy(policy.clone()),
        };
        let deletes = staged.action == StagedAction::Delete;
        match object.reference().filter(|_| deletes) {
            Some(reference) => drop(cluster.remove(&reference)),
            None => cluster.insert(object),
        }
    }
    cluster
}
