//! One direction of a flow, step by step: which policies select the pod, and what each rule of theirs asks for.

use ringwall_evaluate::{Cause, End, Identity, Service};
use ringwall_policy::{
    Action, Cluster, ClusterTier, Fault, NetworkPolicy, ObjectKey, Peer, Pod, PolicyId, PortMatch, Rule,
    TieredPolicy, TieredRule, Unplaced,
};

use super::{
    Direction,
    conditions::{
        PeerMiss, has_words, is_subject, namespace_labels, peer, peer_miss_words, peer_words, policies_of,
        port, port_miss_words, port_words, requirement_words, selector_words, unmet,
    },
    report::{EntryTrace, FaultTrace, PolicyTrace, RuleTrace, Side, Word},
};

/// A flow between two ends, and what to call them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) src: End<'a>,
    pub(super) dst: End<'a>,
    pub(super) service: Service,
}

/// What to call the parts of a flow in sentences.
pub(super) struct Words {
    pub(super) src: String,
    pub(super) dst: String,
    pub(super) service: String,
}

impl<'a> Case<'a> {
    /// The end whose policies decide a direction, and the other one.
    pub(super) fn ends(&self, direction: Direction) -> (End<'a>, End<'a>) {
        match direction {
            Direction::Egress => (self.src, self.dst),
            Direction::Ingress => (self.dst, self.src),
        }
    }

    /// What decides before any policy: the same pod at both ends, or a pod and its own node, unless policies that no
    /// NetworkPolicy is are about what the pod sends there.
    pub(super) fn exemption(&self) -> Option<Cause> {
        if let Some(pod) = self.sender_to_own_node() {
            let mut policies = self.cluster.tiered.values();
            let concerns =
                |policy: &TieredPolicy| !policy.egress.is_empty() && is_subject(self.cluster, policy, pod);
            return (!policies.any(|policy| concerns(policy))).then_some(Cause::HostingNode);
        }
        match (self.src.identity, self.dst.identity) {
            (Identity::Pod(src), Identity::Pod(dst)) => {
                let one = src.key == dst.key && self.src.address == self.dst.address;
                // A template stands for pods that are not each other.
                (one && src.template_of.is_none()).then_some(Cause::SelfTraffic)
            }
            (Identity::Pod(pod), Identity::Node(node)) | (Identity::Node(node), Identity::Pod(pod)) => {
                (node.is_some() && pod.node.as_deref() == node).then_some(Cause::HostingNode)
            }
            _ => None,
        }
    }

    /// The source, where it is a pod and the destination the node that hosts it: NetworkPolicies do not govern that.
    pub(super) fn sender_to_own_node(&self) -> Option<&'a Pod> {
        match (self.src.identity, self.dst.identity) {
            (Identity::Pod(pod), Identity::Node(Some(node))) if pod.node.as_deref() == Some(node) => {
                Some(pod)
            }
            _ => None,
        }
    }

    /// Whether the flow passes: the decision without the explanation.
    pub(super) fn passes(&self) -> bool {
        self.exemption().is_some()
            || [Direction::Egress, Direction::Ingress]
                .into_iter()
                .all(|direction| self.lets(direction))
    }

    /// Whether a direction lets the flow pass, where nothing exempts it.
    pub(super) fn lets(&self, direction: Direction) -> bool {
        let (subject, _) = self.ends(direction);
        let pod = match subject.identity {
            Identity::Pod(pod) => pod,
            Identity::Unknown => return self.cluster.settings.allow_unknown,
            Identity::Node(_) | Identity::External => return true,
        };
        if let Some(allow) = self.tier_lets(ClusterTier::Admin, pod, direction) {
            return allow;
        }
        let mut isolated = false;
        let governed = self.sender_to_own_node().is_none();
        for policy in selecting(self.cluster, pod, direction).filter(|_| governed) {
            isolated = true;
            let rules = direction.rules(policy).unwrap_or_default();
            if rules.iter().any(|rule| self.matches(policy, rule, direction)) {
                return true;
            }
        }
        !isolated
            && self
                .tier_lets(ClusterTier::Baseline, pod, direction)
                .unwrap_or(true)
    }

    /// What the first rule of a tier that matches decides; None where none does, or it passes.
    fn tier_lets(&self, tier: ClusterTier, pod: &Pod, direction: Direction) -> Option<bool> {
        match self.first_of(tier, pod, direction)?.action {
            Action::Allow => Some(true),
            Action::Deny => Some(false),
            Action::Pass => None,
        }
    }

    /// The first rule of a tier that matches.
    fn first_of(&self, tier: ClusterTier, pod: &Pod, direction: Direction) -> Option<Hit<'a>> {
        let policies = tier_of(self.cluster, tier);
        let policies = policies
            .into_iter()
            .filter(|policy| is_subject(self.cluster, policy, pod));
        policies
            .flat_map(|policy| {
                let rules = direction.tiered(policy).iter().enumerate();
                rules.map(move |(index, rule)| (policy, index, rule))
            })
            .find_map(|(policy, index, rule)| {
                Some(Hit {
                    policy,
                    index,
                    rule,
                    action: self.does(rule, direction)?,
                })
            })
    }

    /// What a rule of an ordered kind does with the flow; None where it does not match.
    fn does(&self, rule: &TieredRule, direction: Direction) -> Option<Action> {
        let (_, other) = self.ends(direction);
        let by_peers = match &rule.peers {
            None => Some(rule.action),
            Some(peers) if peers.iter().any(|it| peer(self.cluster, "", it, &other).is_ok()) => {
                Some(rule.action)
            }
            Some(peers) => self
                .unplaced(&other)
                .and_then(|unplaced| unplaced.action(rule.action, peers)),
        };
        by_peers.filter(|_| self.ports_match(rule.ports.as_ref()))
    }

    /// Whether a rule matches the flow.
    pub(super) fn matches(&self, policy: &NetworkPolicy, rule: &Rule, direction: Direction) -> bool {
        self.peers_match(policy, rule, direction) && self.ports_match(rule.ports.as_ref())
    }

    /// Whether one of a rule's peers matches.
    pub(super) fn peers_match(&self, policy: &NetworkPolicy, rule: &Rule, direction: Direction) -> bool {
        let (_, other) = self.ends(direction);
        rule.peers.as_ref().is_none_or(|peers| {
            self.blocks_match_unplaced(peers, &other)
                || peers
                    .iter()
                    .any(|entry| peer(self.cluster, &policy.key.namespace, entry, &other).is_ok())
        })
    }

    /// Whether a rule's blocks match an end whose address nobody knows.
    fn blocks_match_unplaced(&self, peers: &[Peer], other: &End<'_>) -> bool {
        self.unplaced(other)
            .is_some_and(|unplaced| unplaced.matches(peers))
    }

    /// How blocks are read for an end, where that is a pod whose address nobody knows.
    fn unplaced(&self, other: &End<'_>) -> Option<&'a Unplaced> {
        let unplaced = self.cluster.unplaced.as_deref();
        unplaced.filter(|_| is_unplaced(other))
    }

    /// Whether one of a rule's ports matches.
    pub(super) fn ports_match(&self, ports: Option<&Vec<PortMatch>>) -> bool {
        ports.is_none_or(|ports| {
            ports
                .iter()
                .any(|entry| port(entry, &self.dst, self.service).is_ok())
        })
    }

    /// A direction in steps, and the decision that they come to.
    pub(super) fn side(&self, direction: Direction, words: &Words) -> (Side, ringwall_evaluate::Direction) {
        let (subject, _) = self.ends(direction);
        let name = match direction {
            Direction::Egress => &words.src,
            Direction::Ingress => &words.dst,
        };
        let plain = |allow: bool, cause: Cause, why: String| {
            let side = Side {
                verdict: Word::of(allow),
                effect: effect(&cause).to_owned(),
                subject: name.clone(),
                why,
                policies: Vec::new(),
            };
            (side, ringwall_evaluate::Direction { allow, cause })
        };
        match self.exemption() {
            Some(cause @ Cause::SelfTraffic) => {
                return plain(true, cause, "a pod may always reach its own address".to_owned());
            }
            Some(cause) => {
                return plain(
                    true,
                    cause,
                    "a pod and the node that hosts it may always reach each other".to_owned(),
                );
            }
            None => {}
        }
        match subject.identity {
            Identity::Node(_) if self.sender_to_own_node().is_some() => plain(
                true,
                Cause::HostingNode,
                format!("{name} is the node that hosts {}", words.src),
            ),
            Identity::Pod(pod) => self.pod_side(direction, pod, words, name),
            Identity::Unknown if self.cluster.settings.allow_unknown => plain(
                true,
                Cause::Open,
                format!("nobody known owns {name}, and unknownEndpoints is allow"),
            ),
            Identity::Unknown => plain(
                false,
                Cause::Unknown,
                format!("nobody known owns {name}, so that no policy can say what it may do"),
            ),
            Identity::Node(_) => plain(
                true,
                Cause::Open,
                format!("{name} is a node, and policies select pods"),
            ),
            Identity::External => plain(
                true,
                Cause::Open,
                format!("{name} is outside of the cluster, and policies select pods"),
            ),
        }
    }

    fn pod_side(
        &self,
        direction: Direction,
        pod: &Pod,
        words: &Words,
        name: &str,
    ) -> (Side, ringwall_evaluate::Direction) {
        let trace_of = |tier| {
            let traces = tier_of(self.cluster, tier);
            let traces = traces
                .into_iter()
                .map(|policy| self.tiered(policy, direction, pod, words));
            traces.collect::<Vec<PolicyTrace>>()
        };
        let mut policies = trace_of(ClusterTier::Admin);
        let admin = self.first_of(ClusterTier::Admin, pod, direction);
        let own_node = self.sender_to_own_node().is_some();
        if !own_node {
            policies.extend(
                policies_of(self.cluster, &pod.key.namespace)
                    .map(|policy| self.policy(policy, direction, pod, words)),
            );
        }
        policies.extend(trace_of(ClusterTier::Baseline));
        let mut passed = Vec::new();
        let (decision, why) = self
            .by_tier(admin, ClusterTier::Admin, &mut policies, &mut passed)
            .or_else(|| match own_node {
                true => None,
                false => self.by_network_policies(direction, pod, name, &mut policies),
            })
            .or_else(|| {
                let baseline = self.first_of(ClusterTier::Baseline, pod, direction);
                self.by_tier(baseline, ClusterTier::Baseline, &mut policies, &mut passed)
            })
            .unwrap_or_else(|| {
                if own_node {
                    let node = ringwall_evaluate::Direction {
                        allow: true,
                        cause: Cause::HostingNode,
                    };
                    let why = "NetworkPolicies do not govern what a pod sends to the node that hosts it";
                    return (node, why.to_owned());
                }
                let concerned = policies.iter().any(|it| it.tier.is_some() && !it.rules.is_empty());
                let why = match (passed.is_empty(), concerned) {
                    (true, true) => format!(
                        "no rule of the Admin and Baseline tiers matches, and no NetworkPolicy isolates {name} for \
                         {direction}, so that everything else passes"
                    ),
                    _ => format!("no policy isolates {name} for {direction}, so that everything passes"),
                };
                let open = ringwall_evaluate::Direction {
                    allow: true,
                    cause: Cause::Open,
                };
                (open, why)
            });
        passed.push(why);
        let side = Side {
            verdict: Word::of(decision.allow),
            effect: effect(&decision.cause).to_owned(),
            subject: name.to_owned(),
            why: passed.join(", and "),
            policies,
        };
        (side, decision)
    }

    /// What the first rule of a tier that matches decides, which is marked. One that passes is said in `passed`.
    fn by_tier(
        &self,
        hit: Option<Hit<'_>>,
        tier: ClusterTier,
        policies: &mut [PolicyTrace],
        passed: &mut Vec<String>,
    ) -> Option<(ringwall_evaluate::Direction, String)> {
        let Hit {
            policy,
            index,
            rule,
            action,
        } = hit?;
        let named = policies
            .iter_mut()
            .find(|trace| trace.kind == policy.id.kind.name() && trace.policy == policy.id.to_string());
        let mut marked = named.and_then(|trace| trace.rules.iter_mut().find(|it| it.rule == index));
        if let Some(marked) = &mut marked {
            marked.decides = action != Action::Pass;
            marked.passes = action == Action::Pass;
        }
        let name = rule_words(policy, index);
        let further = match tier {
            ClusterTier::Admin => "passes it on to NetworkPolicies",
            ClusterTier::Baseline => "passes it, and Baseline is the last tier",
        };
        let what = match (action, rule.action) {
            (Action::Pass, _) => {
                passed.push(format!("{name} {further}"));
                return None;
            }
            // It is not known whether it matches, nor what decides then.
            (_, Action::Pass) => "may pass it",
            (Action::Allow, _) => "allows it",
            (Action::Deny, _) => "denies it",
        };
        let (tier, policy) = (tier.name(), policy.id.clone());
        let allow = action == Action::Allow;
        let cause = match allow {
            true => Cause::Rule { tier, policy, index },
            false => Cause::Denied { tier, policy, index },
        };
        Some((
            ringwall_evaluate::Direction { allow, cause },
            format!("{name} {what}"),
        ))
    }

    /// What NetworkPolicies decide, and the rule of theirs that does is marked; None where none isolates the pod.
    fn by_network_policies(
        &self,
        direction: Direction,
        pod: &Pod,
        name: &str,
        policies: &mut [PolicyTrace],
    ) -> Option<(ringwall_evaluate::Direction, String)> {
        let traces = policies.iter_mut().filter(|trace| trace.tier.is_none());
        let mut isolating: Vec<ObjectKey> = Vec::new();
        for (trace, policy) in traces.zip(policies_of(self.cluster, &pod.key.namespace)) {
            if let Some(rule) = trace.rules.iter_mut().find(|rule| rule.matches) {
                rule.decides = true;
                let index = rule.rule;
                let why = format!("rule {index} of {} allows it", policy.key);
                let cause = Cause::Rule {
                    tier: "NetworkPolicy",
                    policy: PolicyId::network_policy(&policy.key),
                    index,
                };
                return Some((ringwall_evaluate::Direction { allow: true, cause }, why));
            }
            if trace.isolates {
                isolating.push(policy.key.clone());
            }
        }
        let names: Vec<String> = isolating.iter().map(ObjectKey::to_string).collect();
        let (verb, whose) = match names.len() {
            0 => return None,
            1 => ("isolates", "no rule of it matches"),
            _ => ("isolate", "no rule of theirs matches"),
        };
        let why = format!(
            "{} {verb} {name} for {direction}, and {whose}",
            names.join(" and ")
        );
        let cause = Cause::Isolated(isolating);
        Some((ringwall_evaluate::Direction { allow: false, cause }, why))
    }

    fn tiered(&self, policy: &TieredPolicy, direction: Direction, pod: &Pod, words: &Words) -> PolicyTrace {
        let missing = subject_miss(self.cluster, policy, pod);
        let selects = missing.is_none();
        let rules = direction.tiered(policy).iter().enumerate();
        let (_, other) = self.ends(direction);
        let unplaced = self.unplaced(&other);
        let rules = rules.map(|(index, rule)| {
            let held = rule.peers.as_ref().zip(unplaced);
            let held = held.is_some_and(|(peers, it)| it.action(rule.action, peers).is_some());
            RuleTrace {
                action: Some(action_word(rule.action).to_owned()),
                ..self.rule(
                    index,
                    ("", rule.peers.as_ref(), held),
                    rule.ports.as_ref(),
                    direction,
                    words,
                )
            }
        });
        PolicyTrace {
            policy: policy.id.to_string(),
            kind: policy.id.kind.name().to_owned(),
            tier: Some(policy.tier.name().to_owned()),
            priority: Some(policy.priority),
            selects,
            selection: missing.unwrap_or_else(|| subject_words(policy)),
            isolates: false,
            isolation: None,
            faults: faults(&policy.faults),
            rules: if selects { rules.collect() } else { Vec::new() },
        }
    }

    fn policy(&self, policy: &NetworkPolicy, direction: Direction, pod: &Pod, words: &Words) -> PolicyTrace {
        let missing = unmet(&policy.subjects, &pod.labels);
        let selects = missing.is_none();
        let isolates = selects && direction.rules(policy).is_some();
        let (_, other) = self.ends(direction);
        let rules = if isolates {
            direction
                .rules(policy)
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(index, rule)| {
                    let peers = rule.peers.as_ref();
                    let held = peers.is_some_and(|it| self.blocks_match_unplaced(it, &other));
                    let peers = (policy.key.namespace.as_str(), peers, held);
                    self.rule(index, peers, rule.ports.as_ref(), direction, words)
                })
                .collect()
        } else {
            Vec::new()
        };
        PolicyTrace {
            policy: policy.key.to_string(),
            kind: "NetworkPolicy".to_owned(),
            tier: None,
            priority: None,
            selects,
            selection: match missing {
                Some(requirement) => format!(
                    "its podSelector wants {}, {}",
                    requirement_words(requirement),
                    has_words("the pod", requirement, &pod.labels)
                ),
                None if policy.subjects.requirements.is_empty() => {
                    "its podSelector is empty and selects every pod of the namespace".to_owned()
                }
                None => format!("its podSelector wants {}", selector_words(&policy.subjects)),
            },
            isolates,
            isolation: selects.then(|| isolation(policy, direction)),
            faults: faults(&policy.faults),
            rules,
        }
    }

    /// `held`: whether the rule's blocks count as holding an end without address.
    fn rule(
        &self,
        index: usize,
        (namespace, peers, held): (&str, Option<&Vec<Peer>>, bool),
        ports: Option<&Vec<PortMatch>>,
        direction: Direction,
        words: &Words,
    ) -> RuleTrace {
        let (_, other) = self.ends(direction);
        let who = match direction {
            Direction::Egress => &words.dst,
            Direction::Ingress => &words.src,
        };
        let peers: Option<Vec<EntryTrace>> = peers.map(|peers| {
            let trace = |entry| {
                let missed = peer(self.cluster, namespace, entry, &other).err();
                let (mut words, mut matches) = (peer_words(entry), missed.is_none());
                let mut why = missed
                    .as_ref()
                    .map(|miss| peer_miss_words(self.cluster, miss, who, &other));
                if let (Some(PeerMiss::NoAddress), Some(unplaced)) = (missed, self.unplaced(&other)) {
                    matches = held;
                    why = (!held).then(|| {
                        format!(
                            "{who} has no address yet, and no address that it may have is sure to be in it"
                        )
                    });
                    words.push_str(match (held, unplaced.possibly) {
                        (true, _) if namespace.is_empty() => " (addresses that it may have are in it)",
                        (true, true) => " (some addresses that it may have are in it)",
                        (true, false) => " (every address that it may have is in the blocks of this rule)",
                        (false, _) => "",
                    });
                }
                EntryTrace {
                    entry: words,
                    matches,
                    why,
                }
            };
            peers.iter().map(trace).collect()
        });
        let ports: Option<Vec<EntryTrace>> = ports.map(|ports| {
            let trace = |entry| {
                let missed = port(entry, &self.dst, self.service).err();
                EntryTrace {
                    entry: port_words(entry),
                    matches: missed.is_none(),
                    why: missed.map(|miss| port_miss_words(&miss, &words.dst, &words.service)),
                }
            };
            ports.iter().map(trace).collect()
        });
        let matched = |entries: &Option<Vec<EntryTrace>>| {
            entries
                .as_ref()
                .is_none_or(|entries| entries.iter().any(|entry| entry.matches))
        };
        let failed_at = match (matched(&peers), matched(&ports)) {
            (false, _) => Some("peers".to_owned()),
            (true, false) => Some("ports".to_owned()),
            (true, true) => None,
        };
        RuleTrace {
            rule: index,
            action: None,
            matches: failed_at.is_none(),
            decides: false,
            passes: false,
            failed_at,
            peers,
            ports,
        }
    }
}

/// A rule of a tier that matches.
#[derive(Clone, Copy, Debug)]
struct Hit<'a> {
    policy: &'a TieredPolicy,
    index: usize,
    rule: &'a TieredRule,
    /// What it does with the flow: that of the rule, unless it is one that passes and nobody knows whether it matches.
    action: Action,
}

/// The policies of a tier, in the order in which they decide.
fn tier_of(cluster: &Cluster, tier: ClusterTier) -> Vec<&TieredPolicy> {
    let policies = cluster.tiered.values().map(AsRef::as_ref);
    let mut policies: Vec<&TieredPolicy> = policies
        .filter(|policy: &&TieredPolicy| policy.tier == tier)
        .collect();
    policies.sort_by_cached_key(|policy| (policy.priority, policy.tie()));
    policies
}

/// Why a policy of an ordered kind does not select a pod; None where it does.
fn subject_miss(cluster: &Cluster, policy: &TieredPolicy, pod: &Pod) -> Option<String> {
    let Some(labels) = namespace_labels(cluster, pod) else {
        return Some(format!("the Namespace {} has not been seen", pod.key.namespace));
    };
    if let Some(requirement) = unmet(&policy.namespaces, labels) {
        let who = format!("namespace {}", pod.key.namespace);
        return Some(format!(
            "its subject is in namespaces with {}, {}",
            requirement_words(requirement),
            has_words(&who, requirement, labels)
        ));
    }
    let requirement = unmet(&policy.pods, &pod.labels)?;
    Some(format!(
        "its subject is pods with {}, {}",
        requirement_words(requirement),
        has_words("the pod", requirement, &pod.labels)
    ))
}

/// Which pods a policy of an ordered kind selects.
fn subject_words(policy: &TieredPolicy) -> String {
    let everybody = |selector: &ringwall_policy::Selector| selector.requirements.is_empty();
    match (everybody(&policy.pods), everybody(&policy.namespaces)) {
        (true, true) => "its subject is every pod".to_owned(),
        (true, false) => format!(
            "its subject is every pod of namespaces with {}",
            selector_words(&policy.namespaces)
        ),
        (false, true) => format!("its subject is pods with {}", selector_words(&policy.pods)),
        (false, false) => format!(
            "its subject is pods with {} in namespaces with {}",
            selector_words(&policy.pods),
            selector_words(&policy.namespaces)
        ),
    }
}

/// `rule 1 of ClusterNetworkPolicy x (Admin)`.
pub(super) fn rule_words(policy: &TieredPolicy, index: usize) -> String {
    let PolicyId { kind, name, .. } = &policy.id;
    format!("rule {index} of {} {name} ({})", kind.name(), policy.tier.name())
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
    }
}

fn faults(faults: &[Fault]) -> Vec<FaultTrace> {
    let faults = faults.iter().map(|fault| FaultTrace {
        path: fault.path.clone(),
        message: fault.message.clone(),
    });
    faults.collect()
}

/// Whether an end is a pod whose address nobody knows.
fn is_unplaced(end: &End<'_>) -> bool {
    end.address.is_none() && matches!(end.identity, Identity::Pod(_))
}

/// The policies that select a pod and isolate it in a direction.
pub(super) fn selecting<'a>(
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = &'a NetworkPolicy> + 'a {
    policies_of(cluster, &pod.key.namespace).filter(move |policy| {
        direction.rules(policy).is_some() && unmet(&policy.subjects, &pod.labels).is_none()
    })
}

/// Which policyTypes make a policy isolate in a direction, or not.
fn isolation(policy: &NetworkPolicy, direction: Direction) -> String {
    let named: Vec<&str> = [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")]
        .into_iter()
        .filter(|(direction, _)| direction.rules(policy).is_some())
        .map(|(_, name)| name)
        .collect();
    let types = if policy.types_written {
        format!("policyTypes [{}]", named.join(", "))
    } else if policy.faults.is_empty() {
        let why = match named.len() {
            1 => "it has no egress rules",
            _ => "it has egress rules",
        };
        format!(
            "policyTypes is not written and means [{}], since {why}",
            named.join(", ")
        )
    } else {
        format!("it is invalid and taken for policyTypes [{}]", named.join(", "))
    };
    match direction.rules(policy) {
        Some(_) => format!("isolates for {direction}: {types}"),
        None => format!("has no part in {direction}: {types}"),
    }
}

/// The name of a cause in `query`'s words.
pub(super) fn effect(cause: &Cause) -> &'static str {
    match cause {
        Cause::Rule { .. } => "allow",
        Cause::Denied { .. } => "deny",
        Cause::Isolated(_) => "isolated",
        Cause::Open => "open",
        Cause::SelfTraffic => "self",
        Cause::HostingNode => "node",
        Cause::Unknown => "unknown",
    }
}
