//! What of a cluster is enforced here: each pod, namespace and policy, or why not.
//!
//! Pure: from the state and what the configuration says about the place where this firewall stands. It says what ringwall can
//! see and judge, not what the policies allow: a pod that no policy selects is enforced, and open.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use ringwall_policy::{
    Cluster, NetworkPolicy, Pod, TieredPolicy,
    tiers::{TierFacts, Tiers},
};
use serde::{Deserialize, Serialize};

use crate::explain::conditions::{is_subject, unmet};

/// Where this firewall stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FirewallPosition {
    /// A gateway sees only what crosses it; None where no configuration says what it is.
    pub gateway: Option<bool>,
    /// `cluster.podCIDRs` of the configuration; None where there is none.
    pub pod_cidrs: Option<Vec<IpNet>>,
}

/// How much of something is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it.
    Enforced,
    /// Some of its traffic, or some of what it says.
    Partly,
    /// Nothing.
    Not,
    /// There is nothing to enforce (now).
    Idle,
}

/// Why something is not enforced, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A pod on its node's network.
    HostNetwork,
    /// A pod that has finished.
    Finished,
    /// A pod without an address, or a workload's template.
    NoAddress,
    /// A pod in a namespace that has not been seen.
    UnknownNamespace,
    /// A pod whose address a newer one has.
    AddressTaken,
    /// A pod whose address lies in no pod network.
    OutsidePodNetworks,
    /// A pod that shares its node with others, behind a gateway.
    SameNode,
    /// A policy that selects no pod.
    SelectsNobody,
    /// A policy that selects only pods that are not enforced.
    SelectsUnenforced,
    /// A policy that cannot be evaluated.
    Invalid,
    /// A policy whose rules decide in order, of which not every rule is understood.
    NotUnderstood,
}

impl Reason {
    /// Every one, in order.
    pub const ALL: [Self; 11] = [
        Self::HostNetwork,
        Self::Finished,
        Self::NoAddress,
        Self::UnknownNamespace,
        Self::AddressTaken,
        Self::OutsidePodNetworks,
        Self::SameNode,
        Self::SelectsNobody,
        Self::SelectsUnenforced,
        Self::Invalid,
        Self::NotUnderstood,
    ];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host-network",
            Self::Finished => "finished",
            Self::NoAddress => "no-address",
            Self::UnknownNamespace => "unknown-namespace",
            Self::AddressTaken => "address-taken",
            Self::OutsidePodNetworks => "outside-pod-networks",
            Self::SameNode => "same-node",
            Self::SelectsNobody => "selects-nobody",
            Self::SelectsUnenforced => "selects-unenforced",
            Self::Invalid => "invalid",
            Self::NotUnderstood => "not-understood",
        }
    }

    /// What it means, and what can be done.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::HostNetwork => {
                "on its node's network: it has the node's address, and no policy applies to it; use the node's own firewall"
            }
            Self::Finished => "has finished and has no address any more",
            Self::NoAddress => "has no address yet; it is enforced as soon as it has one",
            Self::UnknownNamespace => {
                "its Namespace is missing, so its address counts as unknown: denied unless unknownEndpoints is allow"
            }
            Self::AddressTaken => "a newer pod has the same address, and its traffic counts as that pod's",
            Self::OutsidePodNetworks => {
                "its address is outside all pod networks: ports do not treat it as a pod's, and it is not denied after the pod is gone; add its network to cluster.podCIDRs"
            }
            Self::SameNode => {
                "shares its node with other pods: traffic between them does not cross a gateway; a firewall of kind Node sees it"
            }
            Self::SelectsNobody => "selects no pod; it applies as soon as one matches: check the labels",
            Self::SelectsUnenforced => "selects only pods that are not enforced here",
            Self::Invalid => {
                "invalid: it isolates the pods that it selects, and its rules are ignored; see `ringwall check`"
            }
            Self::NotUnderstood => {
                "one of its rules is not understood: an allow rule then allows nothing, a deny or pass rule denies everything; see \
                 `ringwall check`"
            }
        }
    }

    /// How much is left of what it is about.
    fn state(self) -> State {
        match self {
            Self::HostNetwork | Self::UnknownNamespace | Self::AddressTaken | Self::SelectsUnenforced => {
                State::Not
            }
            Self::OutsidePodNetworks | Self::SameNode | Self::Invalid | Self::NotUnderstood => State::Partly,
            Self::Finished | Self::NoAddress | Self::SelectsNobody => State::Idle,
        }
    }
}

/// The state that some reasons leave: the worst of theirs, where having nothing to enforce is worse than anything.
fn worst(reasons: &[Reason]) -> State {
    reasons
        .iter()
        .map(|reason| reason.state())
        .max()
        .unwrap_or(State::Enforced)
}

/// A pod or a workload's template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCoverage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How much of it is enforced.
    pub state: State,
    /// Why not all.
    pub reasons: Vec<Reason>,
    /// Whether some policy isolates what comes to it.
    pub ingress_isolated: bool,
    /// Whether some policy isolates what it sends.
    pub egress_isolated: bool,
    /// Whether policies of other kinds than NetworkPolicy select it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tiered: bool,
    /// The tiers with policies that select it, in the order in which they decide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<String>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCoverage {
    /// Its kind; None for a NetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its tier, as reasons name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Its namespace; empty for a cluster-wide one.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How much of it is enforced.
    pub state: State,
    /// Why not all.
    pub reasons: Vec<Reason>,
    /// How many pods and templates it selects.
    pub selects: usize,
}

/// A namespace, or all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Pods and templates.
    pub pods: usize,
    /// Of these, enforced.
    pub enforced: usize,
    /// Of these, partly enforced.
    pub partly: usize,
    /// Of these, not enforced.
    pub not: usize,
    /// Of these, with nothing to enforce.
    pub idle: usize,
    /// Pods that are (partly) enforced and isolated for ingress.
    pub ingress_isolated: usize,
    /// Pods that are (partly) enforced and isolated for egress.
    pub egress_isolated: usize,
    /// Pods that are (partly) enforced and that policies of other kinds than NetworkPolicy select.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tiered: usize,
    /// Policies.
    pub policies: usize,
    /// Policies that are not, or not all, enforced.
    pub policies_not: usize,
    /// Policies that select no pod.
    pub policies_idle: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A tier that has policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierCoverage {
    /// Its name, as reasons have it.
    pub name: String,
    /// `deny` or `pass`: what becomes of traffic that its policies select and no rule matches.
    pub default: String,
    /// How many policies it has.
    pub policies: usize,
    /// How many pods and templates they select.
    pub pods: usize,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// Generation of the snapshot that it is about; None offline.
    pub generation: Option<u64>,
    /// By namespace.
    pub namespaces: BTreeMap<String, Tally>,
    /// Everything together.
    pub total: Tally,
    /// Pods and templates, in order.
    pub pods: Vec<PodCoverage>,
    /// Policies, in order.
    pub policies: Vec<PolicyCoverage>,
    /// The tiers that have policies, in the order in which they decide.
    #[serde(default)]
    pub tiers: Vec<TierCoverage>,
    /// Kinds of policy that are there and not evaluated: none of them is enforced.
    pub unevaluated_kinds: BTreeSet<String>,
    /// What cannot be known from objects.
    pub notes: Vec<String>,
}

impl Coverage {
    /// Looks at a cluster from a place.
    pub fn of(cluster: &Cluster, place: &FirewallPosition) -> Self {
        let mut coverage = Self {
            generation: None,
            namespaces: cluster
                .namespaces
                .keys()
                .map(|name| (name.clone(), Tally::default()))
                .collect(),
            total: Tally::default(),
            pods: Vec::with_capacity(cluster.pods.len()),
            policies: Vec::with_capacity(cluster.policies.len()),
            tiers: Vec::new(),
            unevaluated_kinds: cluster.unevaluated_kinds.clone(),
            notes: notes(place),
        };
        let view = View::of(cluster, place);
        for pod in cluster.pods.values() {
            coverage.pods.push(view.pod(pod));
        }
        let enforced: HashSet<(&str, &str)> = coverage
            .pods
            .iter()
            .filter(|pod| pod.state != State::Not)
            .map(|pod| (pod.namespace.as_str(), pod.name.as_str()))
            .collect();
        for policy in cluster.policies.values() {
            coverage.policies.push(view.policy(policy, &enforced));
        }
        for policy in cluster.tiered.values() {
            coverage.policies.push(view.tiered(policy, &enforced));
        }
        for tier in view.tiers.in_order() {
            let policies = coverage.policies.iter();
            let policies = policies.filter(|it| it.tier.as_ref() == Some(&tier.name)).count();
            if policies > 0 {
                coverage.tiers.push(TierCoverage {
                    name: tier.name.clone(),
                    default: if tier.isolates { "deny" } else { "pass" }.to_owned(),
                    policies,
                    pods: coverage
                        .pods
                        .iter()
                        .filter(|pod| pod.tiers.contains(&tier.name))
                        .count(),
                });
            }
        }
        coverage.count();
        coverage
    }

    /// Whether anything is not, or not all, enforced, apart from what is accepted.
    pub fn lacks(&self, accepted: &[Reason]) -> bool {
        let lacking = |reasons: &[Reason]| {
            reasons
                .iter()
                .any(|reason| reason.state() != State::Idle && !accepted.contains(reason))
        };
        !self.unevaluated_kinds.is_empty()
            || self.pods.iter().any(|pod| lacking(&pod.reasons))
            || self.policies.iter().any(|policy| lacking(&policy.reasons))
    }

    fn count(&mut self) {
        let mut count = |namespace: &str, change: &dyn Fn(&mut Tally)| {
            // Cluster-wide policies are of no namespace.
            if !namespace.is_empty() {
                change(self.namespaces.entry(namespace.to_owned()).or_default());
            }
            change(&mut self.total);
        };
        for pod in &self.pods {
            count(&pod.namespace, &|tally| {
                tally.pods += 1;
                match pod.state {
                    State::Enforced => tally.enforced += 1,
                    State::Partly => tally.partly += 1,
                    State::Not => tally.not += 1,
                    State::Idle => tally.idle += 1,
                }
                if matches!(pod.state, State::Enforced | State::Partly) {
                    tally.ingress_isolated += usize::from(pod.ingress_isolated);
                    tally.egress_isolated += usize::from(pod.egress_isolated);
                    tally.tiered += usize::from(pod.tiered);
                }
            });
        }
        for policy in &self.policies {
            count(&policy.namespace, &|tally| {
                tally.policies += 1;
                tally.policies_not += usize::from(matches!(policy.state, State::Partly | State::Not));
                tally.policies_idle += usize::from(policy.state == State::Idle);
            });
        }
    }
}

fn notes(place: &FirewallPosition) -> Vec<String> {
    let mut notes = Vec::new();
    if place.gateway == Some(true) {
        notes.push(
            "Masqueraded traffic arrives at a gateway with the node's address and is judged as the node's, not the pod's: keep pod \
             addresses on the way to the gateway."
                .to_owned(),
        );
        notes.push(
            "A gateway cannot judge traffic that is encrypted before it arrives (WireGuard, IPsec)."
                .to_owned(),
        );
    }
    if place.gateway.is_none() {
        notes.push("Without --config, traffic that stays on a node is not considered.".to_owned());
    }
    notes
}

/// What is looked up again and again.
struct View<'a> {
    cluster: &'a Cluster,
    place: &'a FirewallPosition,
    /// Whose an address is.
    owners: HashMap<IpAddr, &'a Pod>,
    policies: HashMap<&'a str, Vec<&'a NetworkPolicy>>,
    pods: HashMap<&'a str, Vec<&'a Pod>>,
    /// Pods with an address of their own, by node.
    on_node: HashMap<&'a str, usize>,
    networks: Vec<IpNet>,
    tiers: Tiers,
}

impl<'a> View<'a> {
    fn of(cluster: &'a Cluster, place: &'a FirewallPosition) -> Self {
        let mut view = Self {
            cluster,
            place,
            owners: HashMap::new(),
            policies: HashMap::new(),
            pods: HashMap::new(),
            on_node: HashMap::new(),
            tiers: Tiers::of(cluster),
            networks: match &place.pod_cidrs {
                Some(networks) => networks.clone(),
                None => cluster
                    .nodes
                    .values()
                    .flat_map(|node| &node.pod_cidrs)
                    .chain(&cluster.settings.pod_cidrs)
                    .copied()
                    .collect(),
            },
        };
        for policy in cluster.policies.values() {
            view.policies
                .entry(&policy.key.namespace)
                .or_default()
                .push(policy);
        }
        for pod in cluster.pods.values() {
            view.pods.entry(&pod.key.namespace).or_default().push(pod);
            if pod.host_network || pod.finished || pod.addresses.is_empty() {
                continue;
            }
            if let Some(node) = &pod.node {
                *view.on_node.entry(node).or_default() += 1;
            }
            for address in &pod.addresses {
                let owner = view.owners.entry(*address).or_insert(pod);
                if rank(pod) > rank(owner) {
                    *owner = pod;
                }
            }
        }
        view
    }

    fn pod(&self, pod: &Pod) -> PodCoverage {
        let mut isolated = (false, false);
        // The tiers of the policies that select it.
        let mut tiers: BTreeMap<u32, &TierFacts> = BTreeMap::new();
        let own = self.policies.get(pod.key.namespace.as_str());
        for policy in own.into_iter().flatten() {
            if !pod.host_network && unmet(&policy.subjects, &pod.labels).is_none() {
                isolated.0 |= policy.ingress.is_some();
                isolated.1 |= policy.egress.is_some();
                let tier = self.tiers.network_policies();
                tiers.insert(tier.number, tier);
            }
        }
        let mut tiered = false;
        for policy in self.cluster.tiered.values().filter(|_| !pod.host_network) {
            let rules = policy.ingress.is_some() || policy.egress.is_some();
            if rules && is_subject(self.cluster, policy, pod) {
                tiered = true;
                let tier = self.tiers.named(&policy.tier);
                isolated.0 |= tier.isolates && policy.ingress.is_some();
                isolated.1 |= tier.isolates && policy.egress.is_some();
                tiers.insert(tier.number, tier);
            }
        }
        let reasons = self.pod_reasons(pod);
        PodCoverage {
            namespace: pod.key.namespace.clone(),
            name: pod.key.name.clone(),
            state: worst(&reasons),
            reasons,
            ingress_isolated: isolated.0,
            egress_isolated: isolated.1,
            tiered,
            tiers: tiers.values().map(|tier| tier.name.clone()).collect(),
        }
    }

    fn pod_reasons(&self, pod: &Pod) -> Vec<Reason> {
        // The first of these leaves nothing else to say.
        if pod.finished {
            return vec![Reason::Finished];
        }
        if pod.host_network {
            return vec![Reason::HostNetwork];
        }
        if !self.cluster.namespaces.contains_key(&pod.key.namespace) {
            return vec![Reason::UnknownNamespace];
        }
        if pod.addresses.is_empty() {
            return vec![Reason::NoAddress];
        }
        let mut reasons = Vec::new();
        let taken = |address: &IpAddr| self.owners.get(address).is_some_and(|owner| owner.key != pod.key);
        if pod.addresses.iter().any(taken) {
            reasons.push(Reason::AddressTaken);
        }
        let inside = |address: &IpAddr| self.networks.iter().any(|network| network.contains(address));
        if !self.networks.is_empty() && !pod.addresses.iter().all(inside) {
            reasons.push(Reason::OutsidePodNetworks);
        }
        let others = pod
            .node
            .as_deref()
            .and_then(|node| self.on_node.get(node))
            .copied()
            .unwrap_or(0);
        if self.place.gateway == Some(true) && others > 1 {
            reasons.push(Reason::SameNode);
        }
        reasons
    }

    /// `enforced` are namespace and name of the pods that are not beyond reach.
    fn policy(&self, policy: &NetworkPolicy, enforced: &HashSet<(&str, &str)>) -> PolicyCoverage {
        let pods = self.pods.get(policy.key.namespace.as_str()).into_iter().flatten();
        let selected: Vec<&Pod> = pods
            .copied()
            .filter(|pod| unmet(&policy.subjects, &pod.labels).is_none())
            .collect();
        let mut reasons = selects(&selected, enforced);
        if !policy.faults.is_empty() {
            reasons.push(Reason::Invalid);
        }
        PolicyCoverage {
            kind: None,
            tier: Some(self.tiers.network_policies().name.clone()),
            namespace: policy.key.namespace.clone(),
            name: policy.key.name.clone(),
            state: worst(&reasons),
            reasons,
            selects: selected.len(),
        }
    }

    /// Likewise, of another kind.
    fn tiered(&self, policy: &TieredPolicy, enforced: &HashSet<(&str, &str)>) -> PolicyCoverage {
        let pods = self.cluster.pods.values().map(AsRef::as_ref);
        let selected: Vec<&Pod> = pods.filter(|pod| is_subject(self.cluster, policy, pod)).collect();
        let mut reasons = selects(&selected, enforced);
        if !policy.faults.is_empty() {
            reasons.push(Reason::NotUnderstood);
        }
        PolicyCoverage {
            kind: Some(policy.id.kind.name().to_owned()),
            tier: Some(self.tiers.named(&policy.tier).name.clone()),
            namespace: policy.id.namespace.clone(),
            name: policy.id.name.clone(),
            state: worst(&reasons),
            reasons,
            selects: selected.len(),
        }
    }
}

/// Why a policy that selects these pods comes to nothing.
fn selects(selected: &[&Pod], enforced: &HashSet<(&str, &str)>) -> Vec<Reason> {
    let within = |pod: &&Pod| enforced.contains(&(pod.key.namespace.as_str(), pod.key.name.as_str()));
    if selected.is_empty() {
        vec![Reason::SelectsNobody]
    } else if !selected.iter().any(within) {
        vec![Reason::SelectsUnenforced]
    } else {
        Vec::new()
    }
}

/// Of several pods with an address the greatest has it.
fn rank(pod: &Pod) -> (bool, Option<i64>, &str, &ringwall_policy::ObjectKey) {
    (!pod.terminating, pod.created, &pod.uid, &pod.key)
}
