//! The change of a policy or label that turns a verdict round and changes the least besides.
//!
//! What an API server refuses is no change, and neither is what takes a pod out of its policies: it works, and leaves the pod
//! open.
//!
//! Candidates are made from where the rules fail or match, then each is tried: applied to the state and judged again, in
//! both directions, by the reference evaluator. Trying happens on what the verdict depends on alone (both pods, their
//! namespaces and these namespaces' policies); what is answered has been tried on the whole state as well.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use ringwall_evaluate::{Cause, End, Identity, Service, Trace, holds, selects};
use ringwall_policy::{
    Cluster, DEFAULT_TIER, Labels, NAMESPACE_NAME_LABEL, NetworkPolicy, ObjectKey, Operator, Peer, Pod,
    PolicyId, PolicyKind, PortMatch, Protocol, Requirement, Rule, Selector,
};

use super::{
    Direction,
    conditions::{PeerMiss, is_subject, peer, policies_of, port},
    edit::{Edit, Labelled, RulePlace},
    effects::Bystanders,
    report::{self, SideEffects},
    trace::{Case, rule_words, selecting},
};
use crate::{hypothetical::HypotheticalStates, refine::RefineError};

/// As many changes are answered.
const SHOWN: usize = 3;
/// As many are compared by what else they change, and as many of those that touch one thing.
const COMPARED: usize = 9;
const COMPARED_OF_ONE: usize = 3;
/// As many changes of one direction are combined with those of the other.
const COMBINED: usize = 12;
/// As many labels are tried on one object.
const MOST_LABELS: usize = 64;
/// As many of a pod's labels are tried in a selector.
const MOST_KEYS: usize = 3;

/// A change that turns the verdict round.
#[derive(Clone, Debug)]
pub struct Change {
    /// What to do, in this order.
    pub edits: Vec<Edit>,
    /// How much is written or taken away.
    pub size: usize,
    /// What else changes.
    pub side_effects: SideEffects,
    records: Vec<report::EditRecord>,
}

impl Change {
    /// The state after it.
    pub fn applied(&self, cluster: &Cluster) -> Cluster {
        applied(cluster, &self.edits)
    }

    pub(super) fn record(&self) -> report::Change {
        report::Change {
            size: self.size,
            edits: self.records.clone(),
            side_effects: self.side_effects,
        }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub enum Found {
    /// The changes that change least besides, and of those the smallest first; at least one.
    Changes(Vec<Change>),
    /// None, for this reason.
    None(String),
}

/// Finds small changes of policies and labels after which the flow would be decided the other way. `states` compiles what
/// is compared.
///
/// # Errors
/// The cluster does not compile, or its snapshot contradicts itself.
pub fn smallest_changes(
    cluster: &Cluster,
    states: &HypotheticalStates,
    src: &End<'_>,
    dst: &End<'_>,
    service: Service,
) -> Result<Found, RefineError> {
    let allowed = ringwall_evaluate::judge(cluster, src, dst, service).allow();
    let search = Search::new(cluster, src, dst, service, allowed);
    if let Some(reason) = search.hopeless() {
        return Ok(Found::None(reason));
    }
    let mut changes = search.best(states)?;
    if changes.is_empty() {
        return Ok(Found::None(search.decided_by_tiers().unwrap_or_else(|| {
            "no change of a few policies or labels was found that would flip the verdict".to_owned()
        })));
    }
    changes.truncate(SHOWN);
    Ok(Found::Changes(changes))
}

fn applied(cluster: &Cluster, edits: &[Edit]) -> Cluster {
    let mut changed = cluster.clone();
    for edit in edits {
        edit.apply(&mut changed);
    }
    changed
}

/// Steps that go together.
type Candidate = Vec<Edit>;

struct Search<'a> {
    whole: &'a Cluster,
    /// What the verdict depends on.
    part: Cluster,
    src: End<'a>,
    dst: End<'a>,
    service: Service,
    allowed: bool,
}

impl<'a> Search<'a> {
    fn new(whole: &'a Cluster, src: &End<'a>, dst: &End<'a>, service: Service, allowed: bool) -> Self {
        // Policies of other kinds stay, all of them: they select by labels, which a change may give.
        let mut part = Cluster {
            namespaces: Default::default(),
            nodes: Default::default(),
            pods: Default::default(),
            policies: Default::default(),
            ..whole.clone()
        };
        for end in [src, dst] {
            let Identity::Pod(pod) = end.identity else {
                continue;
            };
            part.pods.insert(pod.key.clone(), Arc::new(pod.clone()));
            let name = &pod.key.namespace;
            if let Some(namespace) = whole.namespaces.get(name) {
                part.namespaces.insert(name.clone(), Arc::clone(namespace));
            }
            for policy in policies_of(whole, name) {
                part.policies.insert(policy.key.clone(), Arc::new(policy.clone()));
            }
        }
        Self {
            whole,
            part,
            src: *src,
            dst: *dst,
            service,
            allowed,
        }
    }

    /// Why no policy and no label can turn the verdict round.
    fn hopeless(&self) -> Option<String> {
        let case = self.case();
        match case.exemption() {
            Some(Cause::SelfTraffic) => {
                return Some(
                    "a pod always reaches its own address: no policy or label changes that".to_owned(),
                );
            }
            Some(_) => {
                return Some(
                    "a pod and the node that hosts it always reach each other: no policy or label changes that"
                        .to_owned(),
                );
            }
            None => {}
        }
        // Where another tier decides, a label may change that.
        if case.sender_to_own_node().is_some() && self.decided_by_tiers().is_none() {
            return Some(
                "NetworkPolicies do not govern what a pod sends to the node that hosts it: no policy or label changes that"
                    .to_owned(),
            );
        }
        let ends = [self.src, self.dst];
        let unknown = ends.iter().find(|end| end.identity == Identity::Unknown);
        if let Some(end) = unknown
            && !self.allowed
            && !self.whole.settings.allow_unknown
        {
            let who = end
                .address
                .map_or("one end".to_owned(), |address| address.to_string());
            return Some(format!(
                "{who} is an unknown endpoint: no policy or label can allow it. It passes as soon as its pod is \
                 known and policies allow it, or with unknownEndpoints: allow"
            ));
        }
        let pods = ends.iter().any(|end| matches!(end.identity, Identity::Pod(_)));
        (self.allowed && !pods).then(|| "neither end is a pod, and policies select only pods".to_owned())
    }

    fn case(&self) -> Case<'_> {
        Case {
            cluster: &self.part,
            src: self.src,
            dst: self.dst,
            service: self.service,
        }
    }

    /// The directions that must change: every one that denies, or any one that could.
    fn directions(&self) -> Vec<Direction> {
        [Direction::Egress, Direction::Ingress]
            .into_iter()
            .filter(|direction| self.allowed || !self.case().lets(*direction))
            .collect()
    }

    /// That rules of ordered kinds decide, or pass the flow on beyond NetworkPolicies, so no change of those flips the verdict; None
    /// where none does.
    fn decided_by_tiers(&self) -> Option<String> {
        let Trace {
            verdict,
            passed_ingress,
            passed_egress,
        } = ringwall_evaluate::trace(self.whole, &self.src, &self.dst, self.service);
        let rules: Vec<String> = [
            (Direction::Egress, &verdict.egress, &passed_egress),
            (Direction::Ingress, &verdict.ingress, &passed_ingress),
        ]
        .into_iter()
        .filter_map(|(direction, decided, passed)| {
            if decided.allow != self.allowed {
                return None;
            }
            match &decided.cause {
                Cause::Rule { tier, policy, index } | Cause::Denied { tier, policy, index }
                    if policy.kind != PolicyKind::NetworkPolicy =>
                {
                    let verb = if decided.allow { "allows" } else { "denies" };
                    let rule = rule_words(policy, tier, *index);
                    Some(format!("{rule} that {verb} its {direction}"))
                }
                Cause::Isolated { tier, policies } => {
                    let other = policies.iter().find(|it| it.kind != PolicyKind::NetworkPolicy)?;
                    Some(format!(
                        "tier {tier} that denies its {direction}, since none of its policies that select it, as {}, has a \
                         rule about this",
                        other.label()
                    ))
                }
                Cause::Profile => {
                    // Of the tier of NetworkPolicies, those after it are not asked.
                    let is_theirs = |policy: &PolicyId| {
                        let policy = self.whole.tiered.get(policy);
                        policy.is_some_and(|policy| policy.tier == DEFAULT_TIER)
                    };
                    let passed = passed.iter().find(|passed| is_theirs(&passed.policy))?;
                    let rule = rule_words(&passed.policy, &passed.tier, passed.index);
                    Some(format!("{rule} that passes its {direction} on beyond NetworkPolicies"))
                }
                _ => None,
            }
        })
        .collect();
        let what = match rules.len() {
            0 => return None,
            1 => "that policy",
            _ => "those policies",
        };
        Some(format!("it is {}: change {what}", rules.join(" and ")))
    }

    /// The verdict after a candidate, on the part.
    fn after(&self, candidate: &[Edit]) -> ringwall_evaluate::Verdict {
        let changed = applied(&self.part, candidate);
        let (src, dst) = (again(&self.src, &changed), again(&self.dst, &changed));
        ringwall_evaluate::judge(&changed, &src, &dst, self.service)
    }

    fn size(&self, candidate: &[Edit]) -> usize {
        candidate.iter().map(|edit| edit.size(&self.part)).sum()
    }

    fn sort(&self, candidates: &mut Vec<Candidate>) {
        let mut sized: Vec<(usize, usize, Candidate)> = candidates
            .drain(..)
            .map(|candidate| (self.size(&candidate), candidate.len(), candidate))
            .collect();
        sized.sort_by_key(|(size, steps, _)| (*size, *steps));
        for (_, _, candidate) in sized {
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
    }

    /// The smallest changes with distinct effects, verified on the whole state.
    fn best(&self, states: &HypotheticalStates) -> Result<Vec<Change>, RefineError> {
        let directions = self.directions();
        let by_direction: Vec<Vec<Candidate>> = directions
            .iter()
            .map(|direction| {
                let mut candidates = if self.allowed {
                    self.to_deny(*direction)
                } else {
                    self.to_allow(*direction)
                };
                self.sort(&mut candidates);
                candidates
            })
            .collect();
        let mut candidates: Vec<Candidate> = by_direction.concat();
        if !self.allowed
            && let [egress, ingress] = by_direction.as_slice()
        {
            candidates.extend(self.combined(egress, ingress));
        }
        self.sort(&mut candidates);
        let mut kept: Vec<(Vec<String>, Candidate)> = Vec::new();
        for candidate in candidates {
            let touches: Vec<String> = candidate.iter().map(Edit::touches).collect();
            let alike = kept.iter().filter(|(other, _)| *other == touches).count();
            // Smaller ones come first: what holds one of them does more than it needs to.
            let more_than_needed = kept
                .iter()
                .any(|(_, other)| other.iter().all(|edit| candidate.contains(edit)));
            if alike < COMPARED_OF_ONE
                && !more_than_needed
                && self.after(&candidate).allow() != self.allowed
                && self.is_harmless(&candidate)
            {
                kept.push((touches, candidate));
                if kept.len() == COMPARED {
                    break;
                }
            }
        }
        self.compared(states, kept)
    }

    /// Changes of both directions, where each alone would not do.
    fn combined(&self, egress: &[Candidate], ingress: &[Candidate]) -> Vec<Candidate> {
        let good = |candidates: &[Candidate], direction: Direction| -> Vec<Candidate> {
            candidates
                .iter()
                .filter(|candidate| {
                    let after = self.after(candidate);
                    match direction {
                        Direction::Egress => after.egress.allow,
                        Direction::Ingress => after.ingress.allow,
                    }
                })
                .filter(|candidate| self.is_harmless(candidate))
                .take(COMBINED)
                .cloned()
                .collect()
        };
        let (egress, ingress) = (good(egress, Direction::Egress), good(ingress, Direction::Ingress));
        let mut both = Vec::new();
        for first in &egress {
            for second in &ingress {
                both.push(in_order([first.as_slice(), second.as_slice()].concat()));
            }
        }
        both
    }

    /// Counts what else each change changes; of those that touch one thing the one with the least.
    fn compared(
        &self,
        states: &HypotheticalStates,
        kept: Vec<(Vec<String>, Candidate)>,
    ) -> Result<Vec<Change>, RefineError> {
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let bystanders = Bystanders::of(self.whole, states, &self.src, &self.dst, self.service)?;
        let mut changes: Vec<(Vec<String>, Change)> = Vec::new();
        for (touches, edits) in kept {
            let changed = applied(self.whole, &edits);
            let ends = [&self.src, &self.dst].map(|end| found_again(end, &changed));
            let [Some(src), Some(dst)] = ends else { continue };
            if ringwall_evaluate::judge(&changed, &src, &dst, self.service).allow() == self.allowed {
                continue;
            }
            let side_effects = match bystanders.count(&changed) {
                Ok(side_effects) => side_effects,
                // It cannot be applied.
                Err(RefineError::Compile(_)) => continue,
                Err(error) => return Err(error),
            };
            let change = Change {
                size: self.size(&edits),
                side_effects,
                records: edits.iter().map(|edit| edit.record(self.whole)).collect(),
                edits,
            };
            changes.push((touches, change));
        }
        changes.sort_by_key(|(_, change)| {
            let effects = &change.side_effects;
            (
                effects.pairs,
                effects.other_ports,
                change.size,
                change.edits.len(),
            )
        });
        let mut seen = BTreeSet::new();
        changes.retain(|(touches, _)| seen.insert(touches.clone()));
        Ok(changes.into_iter().map(|(_, change)| change).collect())
    }

    /// Ways to have a direction that denies let the flow pass.
    fn to_allow(&self, direction: Direction) -> Vec<Candidate> {
        let (subject, other) = self.case().ends(direction);
        let Identity::Pod(pod) = subject.identity else {
            return Vec::new();
        };
        let mut out = self.labels();
        let policies: Vec<&NetworkPolicy> = selecting(&self.part, pod, direction).collect();
        for policy in policies.iter().filter(|policy| policy.faults.is_empty()) {
            let rules = direction.rules(policy).unwrap_or_default();
            for (index, rule) in rules.iter().enumerate() {
                let place = RulePlace {
                    policy: policy.key.clone(),
                    direction,
                    rule: index,
                };
                for peers in self.peer_fixes(&place, policy, rule, &other) {
                    for ports in self.port_fixes(&place, rule) {
                        out.push([peers.as_slice(), ports.as_slice()].concat());
                    }
                }
            }
            out.extend(
                self.rules_for(&policy.key.namespace, &other)
                    .into_iter()
                    .map(|rule| vec![Edit::AddRule(policy.key.clone(), direction, rule)]),
            );
        }
        // A policy of its own, which adds to what the others allow, valid or not.
        for rule in self.rules_for(&pod.key.namespace, &other) {
            let of = |wanted: Direction| (direction == wanted).then(|| vec![rule.clone()]);
            out.extend(selectors_of(&pod.labels).into_iter().map(|subjects| {
                vec![Edit::AddPolicy(NetworkPolicy {
                    key: self.free_name("allow", &pod.key, direction),
                    uid: String::new(),
                    subjects,
                    ingress: of(Direction::Ingress),
                    egress: of(Direction::Egress),
                    types_written: true,
                    answer: None,
                    faults: Vec::new(),
                })]
            }));
        }
        out
    }

    /// Ways to have a rule's peers match; one that does nothing where they do.
    fn peer_fixes(
        &self,
        place: &RulePlace,
        policy: &NetworkPolicy,
        rule: &Rule,
        other: &End<'_>,
    ) -> Vec<Candidate> {
        let Some(peers) = &rule.peers else {
            return vec![Vec::new()];
        };
        if self.case().peers_match(policy, rule, place.direction) {
            return vec![Vec::new()];
        }
        let mut out: Vec<Candidate> = self
            .entries_for(&policy.key.namespace, other)
            .into_iter()
            .map(|entry| vec![Edit::AddPeer(place.clone(), entry)])
            .collect();
        for (index, entry) in peers.iter().enumerate() {
            match entry {
                Peer::Block { except, .. } => {
                    let missed = peer(&self.part, &policy.key.namespace, entry, other);
                    if let (Err(PeerMiss::Except(_)), Some(address)) = (missed, other.address) {
                        out.push(
                            except
                                .iter()
                                .filter(|hole| hole.contains(&address))
                                .map(|hole| Edit::RemoveExcept(place.clone(), index, *hole))
                                .collect(),
                        );
                    }
                }
                // A NetworkPolicy names none.
                Peer::Addresses(_) => {}
                Peer::Pods { namespaces, pods } => {
                    if let Identity::Pod(pod) = other.identity {
                        out.extend(self.relabelled(policy, namespaces.as_ref(), pods, pod));
                    }
                }
            }
        }
        out
    }

    /// Labels with which a pod would match selectors; None where no label helps.
    fn relabelled(
        &self,
        policy: &NetworkPolicy,
        namespaces: Option<&Selector>,
        pods: &Selector,
        pod: &Pod,
    ) -> Option<Candidate> {
        let mut edits = Vec::new();
        match namespaces {
            None if pod.key.namespace != policy.key.namespace => return None,
            None => {}
            Some(selector) => {
                let labels = &self.part.namespaces.get(&pod.key.namespace)?.labels;
                for requirement in missing(selector, labels) {
                    if requirement.key == NAMESPACE_NAME_LABEL {
                        return None;
                    }
                    let of = Labelled::Namespace(pod.key.namespace.clone());
                    edits.push(label(of, satisfy(requirement).into_iter().next()?));
                }
            }
        }
        for requirement in missing(pods, &pod.labels) {
            let of = Labelled::Pod(pod.key.clone());
            edits.push(label(of, satisfy(requirement).into_iter().next()?));
        }
        Some(edits)
    }

    /// Ways to have a rule's ports match; one that does nothing where they do.
    fn port_fixes(&self, place: &RulePlace, rule: &Rule) -> Vec<Candidate> {
        if self.case().ports_match(rule.ports.as_ref()) {
            return vec![Vec::new()];
        }
        self.port_entry()
            .map(|entry| vec![Edit::AddPort(place.clone(), entry)])
            .into_iter()
            .collect()
    }

    /// What matches the flow's port; None where it has none that a rule could name.
    fn port_entry(&self) -> Option<PortMatch> {
        let number = self.service.port?;
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == self.service.protocol)?;
        Some(match number {
            0 => PortMatch::All(protocol),
            number => PortMatch::Range {
                protocol,
                lo: number,
                hi: number,
            },
        })
    }

    /// Entries of peers that match an end, in a policy of a namespace; the narrow ones may be larger.
    fn entries_for(&self, namespace: &str, end: &End<'_>) -> Vec<Peer> {
        let Identity::Pod(pod) = end.identity else {
            return end
                .address
                .map(|address| Peer::Block {
                    cidr: IpNet::from(address),
                    except: Vec::new(),
                })
                .into_iter()
                .collect();
        };
        let namespaces = (pod.key.namespace != namespace).then(|| Selector {
            requirements: vec![equals(NAMESPACE_NAME_LABEL, &pod.key.namespace)],
        });
        selectors_of(&pod.labels)
            .into_iter()
            .map(|pods| Peer::Pods {
                namespaces: namespaces.clone(),
                pods,
            })
            .collect()
    }

    /// Rules that match the flow and little else.
    fn rules_for(&self, namespace: &str, other: &End<'_>) -> Vec<Rule> {
        let ports = self.port_entry().map(|entry| vec![entry]);
        let entries = self.entries_for(namespace, other);
        if entries.is_empty() {
            // An end without address and labels: nothing but everybody matches it.
            return vec![Rule { peers: None, ports }];
        }
        entries
            .into_iter()
            .map(|entry| Rule {
                peers: Some(vec![entry]),
                ports: ports.clone(),
            })
            .collect()
    }

    /// Every single label, on either pod or namespace, that some policy of the two namespaces could notice.
    fn labels(&self) -> Vec<Candidate> {
        let mut out: Vec<Candidate> = Vec::new();
        for end in [&self.src, &self.dst] {
            let Identity::Pod(pod) = end.identity else {
                continue;
            };
            let (mut for_pods, mut for_namespaces) = (Vec::new(), Vec::new());
            for policy in self.part.policies.values() {
                if policy.key.namespace == pod.key.namespace {
                    for_pods.extend(&policy.subjects.requirements);
                }
                let rules = policy.ingress.iter().chain(&policy.egress).flatten();
                for entry in rules.flat_map(|rule| rule.peers.iter().flatten()) {
                    if let Peer::Pods { namespaces, pods } = entry {
                        for_pods.extend(&pods.requirements);
                        for_namespaces.extend(namespaces.iter().flat_map(|selector| &selector.requirements));
                    }
                }
            }
            out.extend(labels_for(
                &Labelled::Pod(pod.key.clone()),
                &pod.labels,
                &for_pods,
            ));
            if let Some(namespace) = self.part.namespaces.get(&pod.key.namespace) {
                for_namespaces.retain(|requirement| requirement.key != NAMESPACE_NAME_LABEL);
                let of = Labelled::Namespace(namespace.name.clone());
                out.extend(labels_for(&of, &namespace.labels, &for_namespaces));
            }
        }
        out
    }

    /// Ways to have a direction deny the flow.
    fn to_deny(&self, direction: Direction) -> Vec<Candidate> {
        let (subject, other) = self.case().ends(direction);
        let Identity::Pod(pod) = subject.identity else {
            return Vec::new();
        };
        let mut out = self.labels();
        let mut isolated = false;
        let (mut every, mut smallest, mut policies) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut single: Vec<Vec<Candidate>> = Vec::new();
        for policy in selecting(&self.part, pod, direction) {
            isolated = true;
            let rules = direction.rules(policy).unwrap_or_default();
            for (index, rule) in rules.iter().enumerate() {
                if !self.case().matches(policy, rule, direction) {
                    continue;
                }
                let place = RulePlace {
                    policy: policy.key.clone(),
                    direction,
                    rule: index,
                };
                let mut ways = self.breaks(&place, policy, rule, &other);
                self.sort(&mut ways);
                every.push(Edit::RemoveRule(place));
                smallest.extend(ways.first().cloned().unwrap_or_default());
                policies.insert(policy.key.clone());
                single.push(ways);
            }
        }
        if isolated {
            if let [only] = single.as_slice() {
                out.extend(only.iter().cloned());
            }
            out.push(in_order(every));
            out.push(in_order(smallest));
            out.push(policies.into_iter().map(Edit::RemovePolicy).collect());
        } else {
            out.extend(self.isolating(pod, direction, &other));
        }
        out.retain(|candidate| !candidate.is_empty());
        out
    }

    /// Ways to have a rule that matches match no more.
    fn breaks(
        &self,
        place: &RulePlace,
        policy: &NetworkPolicy,
        rule: &Rule,
        other: &End<'_>,
    ) -> Vec<Candidate> {
        let mut out = vec![vec![Edit::RemoveRule(place.clone())]];
        if let Some(peers) = &rule.peers {
            let matching: Vec<(usize, &Peer)> = peers
                .iter()
                .enumerate()
                .filter(|(_, entry)| peer(&self.part, &policy.key.namespace, entry, other).is_ok())
                .collect();
            // The last peer may not go: a rule without peers matches everybody.
            if matching.len() < peers.len() {
                let remove = |(index, _): &(usize, &Peer)| Edit::RemovePeer(place.clone(), *index);
                out.push(matching.iter().rev().map(remove).collect());
            }
            let avoided: Option<Candidate> = matching
                .iter()
                .map(|(index, entry)| self.avoided(place, *index, entry, other))
                .collect();
            out.extend(avoided);
        }
        if let Some(ports) = &rule.ports {
            let matching: Vec<usize> = ports
                .iter()
                .enumerate()
                .filter(|(_, entry)| port(entry, &self.dst, self.service).is_ok())
                .map(|(index, _)| index)
                .collect();
            if matching.len() < ports.len() {
                let remove = |index: &usize| Edit::RemovePort(place.clone(), *index);
                out.push(matching.iter().rev().map(remove).collect());
            }
        }
        out
    }

    /// A step after which a peer entry does not match any more, while it stays.
    fn avoided(&self, place: &RulePlace, index: usize, entry: &Peer, other: &End<'_>) -> Option<Edit> {
        match (entry, other.identity) {
            (Peer::Block { cidr, .. }, _) => {
                let hole = IpNet::from(other.address?);
                let strictly = hole.prefix_len() > cidr.prefix_len();
                strictly.then(|| Edit::AddExcept(place.clone(), index, hole))
            }
            (Peer::Pods { pods, .. }, Identity::Pod(pod)) => {
                let requirement = pods.requirements.first()?;
                Some(label(Labelled::Pod(pod.key.clone()), violate(requirement)))
            }
            (Peer::Pods { .. } | Peer::Addresses(_), _) => None,
        }
    }

    /// Policies that isolate a pod which no policy isolates.
    fn isolating(&self, pod: &Pod, direction: Direction, other: &End<'_>) -> Vec<Candidate> {
        let mut rules = vec![Vec::new()];
        if let (Some(address), false) = (other.address, matches!(other.identity, Identity::Pod(_))) {
            rules.push(vec![everybody_but(address.into())]);
        }
        let mut out = Vec::new();
        for subjects in selectors_of(&pod.labels) {
            for rules in &rules {
                let of = |wanted: Direction| (direction == wanted).then(|| rules.clone());
                out.push(vec![Edit::AddPolicy(NetworkPolicy {
                    key: self.free_name("isolate", &pod.key, direction),
                    uid: String::new(),
                    subjects: subjects.clone(),
                    ingress: of(Direction::Ingress),
                    egress: of(Direction::Egress),
                    types_written: true,
                    answer: None,
                    faults: Vec::new(),
                })]);
            }
        }
        out
    }

    /// A name for a policy about a pod, as an API server takes it.
    fn free_name(&self, what: &str, pod: &ObjectKey, direction: Direction) -> ObjectKey {
        let plain = |c: char| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => c,
            _ => '-',
        };
        let about: String = pod.name.chars().take(200).map(plain).collect();
        let mut key = ObjectKey {
            namespace: pod.namespace.clone(),
            name: format!("{what}-{about}-{direction}"),
        };
        while self.whole.policies.contains_key(&key) {
            key.name.push_str("-2");
        }
        key
    }

    /// Whether a change is one that can be asked for: an API server takes it, and it takes no pod out of its policies.
    ///
    /// Labels that a pod has stay: the selector of its workload may ask for them, and then an API server refuses a template
    /// without them, and a controller gives up a pod without them.
    fn is_harmless(&self, candidate: &[Edit]) -> bool {
        let keeps_labels = |edit: &Edit| match edit {
            Edit::Label {
                of: Labelled::Pod(pod),
                key,
                ..
            } => !self
                .part
                .pods
                .get(pod)
                .is_some_and(|pod| pod.labels.contains_key(key)),
            _ => true,
        };
        let removed = |key: &ObjectKey| candidate.contains(&Edit::RemovePolicy(key.clone()));
        let stays_isolated = |edit: &Edit| {
            let Edit::RemovePolicy(key) = edit else {
                return true;
            };
            let Some(policy) = self.whole.policies.get(key) else {
                return true;
            };
            let mut pods = self.whole.pods.values().filter(|pod| {
                pod.key.namespace == key.namespace && missing(&policy.subjects, &pod.labels).next().is_none()
            });
            pods.all(|pod| {
                DIRECTIONS.into_iter().all(|direction| {
                    direction.rules(policy).is_none()
                        || selecting(self.whole, pod, direction).any(|other| !removed(&other.key))
                })
            })
        };
        if !candidate
            .iter()
            .all(|edit| keeps_labels(edit) && stays_isolated(edit))
        {
            return false;
        }
        let changed = applied(&self.part, candidate);
        // Of a namespace that is labelled otherwise, neither are its other pods.
        let mut namespaces = self.part.namespaces.iter();
        let stay = namespaces.all(|(name, before)| {
            let after = changed.namespaces.get(name);
            let mut subjects = self.part.tiered.values().flat_map(|policy| &policy.subjects);
            subjects.all(|subjects| {
                !selects(&subjects.namespaces, &before.labels)
                    || after.is_some_and(|after| selects(&subjects.namespaces, &after.labels))
            })
        });
        stay && [self.src, self.dst].iter().all(|end| {
            let (Identity::Pod(before), Identity::Pod(after)) = (end.identity, again(end, &changed).identity)
            else {
                return true;
            };
            let tiered = self.part.tiered.values();
            let mut tiered = tiered.filter(|policy| is_subject(&self.part, policy, before));
            let stays = tiered.all(|policy| is_subject(&changed, policy, after));
            stays
                && DIRECTIONS.into_iter().all(|direction| {
                    let still = |policy: &NetworkPolicy| {
                        removed(&policy.key)
                            || selecting(&changed, after, direction).any(|other| other.key == policy.key)
                    };
                    selecting(&self.part, before, direction).all(still)
                })
        })
    }
}

/// Both.
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// A rule that matches everybody but one address.
fn everybody_but(hole: IpNet) -> Rule {
    let blocks = [
        IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(ipnet::Ipv6Net::default()),
    ];
    let mut peers = vec![Peer::Pods {
        namespaces: Some(Selector::default()),
        pods: Selector::default(),
    }];
    peers.extend(blocks.map(|cidr| Peer::Block {
        cidr,
        except: if cidr.contains(&hole) {
            vec![hole]
        } else {
            Vec::new()
        },
    }));
    Rule {
        peers: Some(peers),
        ports: None,
    }
}

/// The same end in a changed state; where the pod has other labels now, with those.
fn again<'b>(end: &End<'b>, changed: &'b Cluster) -> End<'b> {
    match end.identity {
        Identity::Pod(pod) => End {
            identity: changed
                .pods
                .get(&pod.key)
                .map_or(end.identity, |pod| Identity::Pod(pod)),
            address: end.address,
        },
        _ => *end,
    }
}

/// An end of a changed state, found anew as the reference evaluator finds it.
fn found_again<'b>(end: &End<'_>, changed: &'b Cluster) -> Option<End<'b>> {
    match (end.address, end.identity) {
        (Some(address), _) => Some(ringwall_evaluate::identify(changed, address)),
        (None, Identity::Pod(pod)) => ringwall_evaluate::named(changed, &pod.key),
        (None, Identity::Unknown) => Some(End {
            identity: Identity::Unknown,
            address: None,
        }),
        (None, _) => None,
    }
}

/// Steps in an order in which indices stay right: what takes entries away goes from the last to the first, whole rules
/// last of all.
fn in_order(mut edits: Candidate) -> Candidate {
    let mut distinct = Candidate::new();
    for edit in edits.drain(..) {
        if !distinct.contains(&edit) {
            distinct.push(edit);
        }
    }
    distinct.sort_by_key(|edit| match edit {
        Edit::RemovePeer(place, index) | Edit::RemovePort(place, index) => {
            (1, std::cmp::Reverse(place.rule), std::cmp::Reverse(*index))
        }
        Edit::RemoveRule(place) => (2, std::cmp::Reverse(place.rule), std::cmp::Reverse(0)),
        Edit::RemovePolicy(_) => (3, std::cmp::Reverse(0), std::cmp::Reverse(0)),
        _ => (0, std::cmp::Reverse(0), std::cmp::Reverse(0)),
    });
    distinct
}

/// A label to be set, or taken away.
type LabelChange = (String, Option<String>);

fn label(of: Labelled, (key, value): LabelChange) -> Edit {
    Edit::Label { of, key, value }
}

/// The requirements of a selector that labels do not meet.
fn missing<'s>(selector: &'s Selector, labels: &'s Labels) -> impl Iterator<Item = &'s Requirement> {
    selector
        .requirements
        .iter()
        .filter(|requirement| !holds(requirement, labels))
}

/// Labels that meet a requirement.
fn satisfy(requirement: &Requirement) -> Vec<LabelChange> {
    let key = || requirement.key.clone();
    match &requirement.operator {
        Operator::In(values) => values.iter().map(|value| (key(), Some(value.clone()))).collect(),
        Operator::Exists => vec![(key(), Some("true".to_owned()))],
        Operator::NotIn(_) | Operator::DoesNotExist | Operator::Like { negated: true, .. } => {
            vec![(key(), None)]
        }
        Operator::Like {
            text, negated: false, ..
        } => vec![(key(), Some(text.clone()))],
    }
}

/// A label that does not meet a requirement.
fn violate(requirement: &Requirement) -> LabelChange {
    let value = match &requirement.operator {
        Operator::In(_) | Operator::Exists | Operator::Like { negated: false, .. } => None,
        Operator::Like {
            text, negated: true, ..
        } => Some(text.clone()),
        Operator::NotIn(values) => values.first().cloned(),
        Operator::DoesNotExist => Some("true".to_owned()),
    };
    (requirement.key.clone(), value)
}

/// Single labels on an object that could change what requirements say about it.
fn labels_for(of: &Labelled, labels: &Labels, requirements: &[&Requirement]) -> Vec<Candidate> {
    let mut wanted: Vec<LabelChange> = Vec::new();
    for requirement in requirements {
        for change in satisfy(requirement).into_iter().chain([violate(requirement)]) {
            let (key, value) = &change;
            if labels.get(key) != value.as_ref() && !wanted.contains(&change) {
                wanted.push(change);
            }
        }
    }
    wanted.truncate(MOST_LABELS);
    wanted
        .into_iter()
        .map(|change| vec![label(of.clone(), change)])
        .collect()
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement {
        key: key.to_owned(),
        operator: Operator::In(BTreeSet::from([value.to_owned()])),
    }
}

/// Selectors that match labels: by one that says what a pod is, by others, by all of them; all pods where there are none.
fn selectors_of(labels: &Labels) -> Vec<Selector> {
    /// What people name pods by, best first.
    const TELLING: &[&str] = &[
        "app.kubernetes.io/name",
        "app",
        "k8s-app",
        "name",
        "component",
        "tier",
        "role",
    ];
    /// What controllers write, and what changes with every rollout.
    const FLEETING: &[&str] = &[
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "batch.kubernetes.io/controller-uid",
        "controller-uid",
    ];
    let mut keys: Vec<&String> = labels
        .keys()
        .filter(|key| !FLEETING.contains(&key.as_str()))
        .collect();
    if keys.is_empty() {
        return vec![Selector {
            requirements: labels.iter().map(|(key, value)| equals(key, value)).collect(),
        }];
    }
    keys.sort_by_key(|key| {
        TELLING
            .iter()
            .position(|telling| telling == key)
            .unwrap_or(TELLING.len())
    });
    let of = |keys: &[&String]| Selector {
        requirements: keys
            .iter()
            .filter_map(|key| Some(equals(key, labels.get(*key)?)))
            .collect(),
    };
    let mut selectors: Vec<Selector> = keys.chunks(1).take(MOST_KEYS).map(of).collect();
    if keys.len() > 1 {
        selectors.push(of(&keys));
    }
    selectors
}
