//! What an answer leaves out: policies that are not evaluated or not valid, pods that no policy is about.

use std::collections::BTreeSet;

use ringwall_analyse::{
    explain::conditions::{is_subject, unmet},
    flow::EndName,
    judge::{End, Judge},
};
use ringwall_policy::{Cluster, NetworkPolicy, ObjectKey, TieredPolicy};

use super::count;

/// What answers about a state leave out.
pub(super) struct Gaps<'a> {
    cluster: &'a Cluster,
    /// Kinds of policies that exist and are not evaluated.
    pub(super) incomplete: Vec<&'a str>,
    /// Policies that an API server refuses: here they isolate and allow nothing.
    invalid: Vec<&'a NetworkPolicy>,
    /// Policies of ordered kinds of which some rule is not understood.
    unclear: Vec<&'a TieredPolicy>,
    /// Live pods on their nodes' network, to which no policy applies.
    pub(super) host_network: Vec<&'a ObjectKey>,
}

impl<'a> Gaps<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let on_node = cluster
            .pods
            .values()
            .filter(|pod| pod.host_network && !pod.finished);
        let policies = cluster.policies.values().map(AsRef::as_ref);
        let tiered = cluster.tiered.values().map(AsRef::as_ref);
        Self {
            cluster,
            incomplete: cluster.unevaluated_kinds.iter().map(String::as_str).collect(),
            invalid: policies
                .filter(|policy: &&NetworkPolicy| !policy.faults.is_empty())
                .collect(),
            unclear: tiered
                .filter(|policy: &&TieredPolicy| !policy.faults.is_empty())
                .collect(),
            host_network: on_node.map(|pod| &pod.key).collect(),
        }
    }

    /// Every invalid policy.
    pub(super) fn invalid(&self) -> Vec<String> {
        let own = self.invalid.iter().map(|policy| policy.key.to_string());
        own.chain(self.unclear.iter().map(|policy| policy.id.label()))
            .collect()
    }

    /// The invalid policies that select one of some pods.
    pub(super) fn invalid_for(&self, pods: &[&ObjectKey]) -> BTreeSet<String> {
        if self.invalid.is_empty() && self.unclear.is_empty() {
            return BTreeSet::new();
        }
        let mut names = BTreeSet::new();
        for pod in pods.iter().filter_map(|key| self.cluster.pods.get(*key)) {
            let own = self.invalid.iter().filter(|policy| {
                policy.key.namespace == pod.key.namespace && unmet(&policy.subjects, &pod.labels).is_none()
            });
            names.extend(own.map(|policy| policy.key.to_string()));
            let tiered = self
                .unclear
                .iter()
                .filter(|policy| is_subject(self.cluster, policy, pod));
            names.extend(tiered.map(|policy| policy.id.label()));
        }
        names
    }

    /// The invalid policies that select an end of a flow.
    pub(super) fn invalid_at(&self, judge: &Judge, ends: [(&EndName, &End); 2]) -> BTreeSet<String> {
        if self.invalid.is_empty() && self.unclear.is_empty() {
            return BTreeSet::new();
        }
        let keys: Vec<ObjectKey> = ends
            .into_iter()
            .filter_map(|(name, end)| match name {
                EndName::Pod(key) => Some(key.clone()),
                EndName::Service(_) => None,
                EndName::Address(_) => judge.pod(end),
            })
            .collect();
        self.invalid_for(&keys.iter().collect::<Vec<_>>())
    }

    /// Which policy kinds are left out, if any.
    pub(super) fn incomplete_words(&self) -> Option<String> {
        let kinds = self.incomplete.join(", ");
        (!kinds.is_empty()).then(|| format!("Incomplete: {kinds} are not evaluated."))
    }

    /// All of it in sentences, one a line.
    pub(super) fn words(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.incomplete_words().into_iter().collect();
        lines.extend(invalid_words(&self.invalid()));
        if !self.host_network.is_empty() {
            let (verb, whose) = match self.host_network.len() {
                1 => ("is", "its node's"),
                _ => ("are", "their nodes'"),
            };
            lines.push(format!(
                "{} {verb} on {whose} network, where no policy applies: not shown.",
                count(self.host_network.len(), "pod")
            ));
        }
        lines
    }
}

/// What is to be said of invalid policies.
pub(super) fn invalid_words(invalid: &[String]) -> Option<String> {
    // Cluster-wide ones are called by kind and name.
    let (tiered, own): (Vec<String>, Vec<String>) =
        invalid.iter().cloned().partition(|name| name.contains(' '));
    let tiered = (!tiered.is_empty()).then(|| {
        format!(
            "Not understood: {}; a rule that is not understood allows nothing, and denies everything where it denies or \
             passes.",
            tiered.join(", ")
        )
    });
    let own = match own.as_slice() {
        [] => None,
        [one] => Some(format!(
            "Invalid: {one}, which an API server refuses; here it isolates and allows nothing."
        )),
        many => Some(format!(
            "Invalid: {}, which an API server refuses; here they isolate and allow nothing.",
            many.join(", ")
        )),
    };
    let both: Vec<String> = own.into_iter().chain(tiered).collect();
    (!both.is_empty()).then(|| both.join(" "))
}
