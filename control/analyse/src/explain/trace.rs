//! One direction of a flow, step by step: which policies select the pod, and what each rule of theirs asks for.

use ringwall_evaluate::{Cause, End, Identity, Passed, Service, Trace};
use ringwall_policy::{
    Action, Cluster, Condition, Fault, Labels, NetworkPolicy, Peer, Pod, PodSelection, PolicyId, PolicyKind,
    PortMatch, Rule, TieredPolicy, TieredRule, Unplaced, tier_denial,
    tiers::{Rank, Tiers},
};

use super::{
    Direction,
    conditions::{
        PeerMiss, PortMiss, has_words, is_subject, name_miss_words, namespace_labels, peer, peer_miss_words,
        peer_words, policies_of, port, port_miss_words, port_words, requirement_words, selector_words,
        source_port_words, unmet,
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
    /// What is known of its source port.
    pub(super) source: String,
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
                |policy: &TieredPolicy| policy.egress.is_some() && is_subject(self.cluster, policy, pod);
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

    /// Whether a direction lets the flow pass.
    pub(super) fn lets(&self, direction: Direction) -> bool {
        self.decision(direction).allow
    }

    /// The decision of a direction.
    fn decision(&self, direction: Direction) -> ringwall_evaluate::Direction {
        let verdict = self.trace().verdict;
        match direction {
            Direction::Egress => verdict.egress,
            Direction::Ingress => verdict.ingress,
        }
    }

    pub(super) fn trace(&self) -> Trace {
        ringwall_evaluate::trace(self.cluster, &self.src, &self.dst, self.service)
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

    /// Whether a rule's blocks match an end whose address is not known.
    fn blocks_match_unplaced(&self, peers: &[Peer], other: &End<'_>) -> bool {
        self.unplaced(other)
            .is_some_and(|unplaced| unplaced.matches(self.cluster, peers))
    }

    /// How blocks are read for an end, where that is a pod whose address is not known.
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
                format!("{name} is an unknown endpoint, and unknownEndpoints is allow"),
            ),
            Identity::Unknown => plain(
                false,
                Cause::Unknown,
                format!("{name} is an unknown endpoint, so no policy can allow it"),
            ),
            Identity::Node(_) => plain(
                true,
                Cause::Open,
                format!("{name} is a node; policies select only pods"),
            ),
            Identity::External => plain(
                true,
                Cause::Open,
                format!("{name} is outside of the cluster; policies select only pods"),
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
        let tiers = Tiers::of(self.cluster);
        let own_node = self.sender_to_own_node().is_some();
        let mut policies = self.policies_in_order(direction, pod, words, &tiers, own_node);
        let trace = self.trace();
        let (decision, passed) = match direction {
            Direction::Egress => (trace.verdict.egress, trace.passed_egress),
            Direction::Ingress => (trace.verdict.ingress, trace.passed_ingress),
        };
        let mut steps: Vec<String> = Vec::new();
        for Passed { tier, policy, index } in &passed {
            if let Some(rule) = rule_of(&mut policies, policy, *index) {
                rule.passes = true;
            }
            let next = next_tier(&tiers, tier);
            let further = next.map_or_else(
                || format!("passes it, and {tier} is the last tier"),
                |next| match next.as_str() {
                    "NetworkPolicy" => "passes it on to NetworkPolicies".to_owned(),
                    next => format!("passes it on to {next}"),
                },
            );
            steps.push(format!("{} {further}", rule_words(policy, tier, *index)));
        }
        steps.push(match &decision.cause {
            Cause::Rule { tier, policy, index } | Cause::Denied { tier, policy, index } => {
                let rule = rule_of(&mut policies, policy, *index);
                let may_pass = rule.as_ref().is_some_and(|rule| rule.action.as_deref() == Some("pass"));
                if let Some(rule) = rule {
                    rule.decides = true;
                }
                let what = match (may_pass, decision.allow) {
                    // It is not known whether it matches, nor what decides then.
                    (true, _) => "may pass it",
                    (false, true) => "allows it",
                    (false, false) => "denies it",
                };
                format!("{} {what}", rule_words(policy, tier, *index))
            }
            Cause::Isolated { tier, policies } => {
                let names: Vec<String> = policies.iter().map(PolicyId::label).collect();
                let (verb, whose) = match names.len() {
                    1 => ("isolates", "no rule of it matches"),
                    _ => ("isolate", "no rule of theirs matches"),
                };
                let by_tier = policies.iter().any(|id| id.kind != PolicyKind::NetworkPolicy);
                match by_tier {
                    false => format!("{} {verb} {name} for {direction}, and {whose}", names.join(" and ")),
                    true => format!(
                        "tier {tier} denies what its policies that select {name} for {direction} ({}) do not decide",
                        names.join(", ")
                    ),
                }
            }
            Cause::HostingNode => {
                "NetworkPolicies do not govern what a pod sends to the node that hosts it".to_owned()
            }
            _ => {
                let concerned = policies.iter().any(|it| it.tier.is_some() && !it.rules.is_empty());
                match (passed.is_empty(), concerned) {
                    (true, true) => format!(
                        "no rule of the {} tiers matches, and no NetworkPolicy isolates {name} for {direction}, so \
                         everything else passes",
                        other_tiers(&policies).join(" and ")
                    ),
                    _ => format!("no policy isolates {name} for {direction}, so everything passes"),
                }
            }
        });
        let side = Side {
            verdict: Word::of(decision.allow),
            effect: effect(&decision.cause).to_owned(),
            subject: name.to_owned(),
            why: steps.join(", and "),
            policies,
        };
        (side, decision)
    }

    /// What each policy has to do with a direction of the flow, in the order in which they decide: of NetworkPolicies all of
    /// the pod's namespace, of other kinds all.
    fn policies_in_order(
        &self,
        direction: Direction,
        pod: &Pod,
        words: &Words,
        tiers: &Tiers,
        own_node: bool,
    ) -> Vec<PolicyTrace> {
        let networks = policies_of(self.cluster, &pod.key.namespace).filter(|_| !own_node);
        let networks = networks.map(|policy| {
            let place = (
                tiers.network_policies().number,
                tiers.rank_of_network_policy(&policy.key),
            );
            (place, self.policy(policy, direction, pod, words))
        });
        let tiered = self.cluster.tiered.values().map(|policy| {
            let tier = tiers.named(&policy.tier);
            let rank = Rank {
                order: policy.order,
                tie: policy.id.tie(),
            };
            let trace = self.tiered(policy, &tier.name, direction, pod, words);
            ((tier.number, rank), trace)
        });
        let mut all: Vec<_> = networks.chain(tiered).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all.into_iter().map(|(_, trace)| trace).collect()
    }

    fn tiered(
        &self,
        policy: &TieredPolicy,
        tier: &str,
        direction: Direction,
        pod: &Pod,
        words: &Words,
    ) -> PolicyTrace {
        let missing = subject_miss(self.cluster, policy, pod);
        let selects = missing.is_none();
        let rules = TieredRule::numbered(direction.tiered(policy).unwrap_or_default());
        let (_, other) = self.ends(direction);
        let unplaced = self.unplaced(&other);
        let rules = rules.map(|(index, rule)| {
            let held = rule.peers.as_ref().zip(unplaced);
            let held =
                held.is_some_and(|(peers, it)| it.hold(self.cluster, peers, it.reads_possibly(rule.action)));
            let conditions = self.conditions(rule, direction, words);
            let trace = self.rule(
                index,
                ("", rule.peers.as_ref(), held),
                rule.ports.as_ref(),
                direction,
                words,
            );
            let fails = conditions.iter().any(|condition| !condition.matches);
            RuleTrace {
                action: Some(action_word(rule.action).to_owned()),
                matches: trace.matches && !fails,
                failed_at: trace.failed_at.or_else(|| fails.then(|| "conditions".to_owned())),
                conditions,
                ..trace
            }
        });
        PolicyTrace {
            policy: policy.id.to_string(),
            kind: policy.id.kind.name().to_owned(),
            tier: Some(tier.to_owned()),
            priority: match policy.id.kind.is_calico() {
                true => None,
                false => Some(policy.order.number() as u16),
            },
            order: policy.id.kind.is_calico().then(|| policy.order.to_string()),
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
            order: None,
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

    /// What a rule of an ordered kind asks for besides its peers and ports.
    fn conditions(&self, rule: &TieredRule, direction: Direction, words: &Words) -> Vec<EntryTrace> {
        let unplaced = self.cluster.unplaced.as_deref();
        let possibly = unplaced.is_some_and(|unplaced| unplaced.reads_possibly(rule.action));
        let (own, other) = self.ends(direction);
        let (own_name, other_name) = match direction {
            Direction::Egress => (&words.src, &words.dst),
            Direction::Ingress => (&words.dst, &words.src),
        };
        let trace = |condition: &Condition, whose: &str, end: &End<'a>, name: &str| {
            let negated = condition.negated;
            let blocks_hold =
                |unplaced: &Unplaced| unplaced.hold(self.cluster, &condition.any, possibly != negated);
            let mut misses = condition
                .any
                .iter()
                .map(|entry| peer(self.cluster, "", entry, end).err());
            let is_one = misses.any(|miss| miss.is_none()) || self.unplaced(end).is_some_and(blocks_hold);
            let words: Vec<String> = condition.any.iter().map(peer_words).collect();
            let entries = match words.is_empty() {
                true => "one of an empty list".to_owned(),
                false => words.join(" or "),
            };
            let what = if negated { "must not be" } else { "must be" };
            let why = match negated {
                true => format!("{name} is"),
                false => format!("{name} is not"),
            };
            EntryTrace {
                entry: format!("{whose} {what} {entries}"),
                matches: is_one != negated,
                why: (is_one == negated).then_some(why),
            }
        };
        let conditions = &rule.conditions;
        let of_peer = conditions.peer.iter();
        let of_own = conditions.own.iter();
        let mut traces: Vec<EntryTrace> = of_peer
            .map(|condition| trace(condition, "the peer", &other, other_name))
            .chain(of_own.map(|condition| trace(condition, "the selected pod", &own, own_name)))
            .collect();
        // A source port's name is the source's.
        let from = Service {
            port: self.service.source_port,
            ..self.service
        };
        traces.extend(conditions.source_ports.iter().map(|ports| {
            let misses: Vec<PortMiss> = ports
                .iter()
                .filter_map(|entry| port(entry, &self.src, from).err())
                .collect();
            let matches = misses.len() < ports.len();
            // Why a name does not match says more than which port the flow is from.
            let of_name = misses.iter().find_map(|miss| name_miss_words(miss, &words.src));
            EntryTrace {
                entry: format!("from port {}", source_port_words(ports)),
                matches,
                why: (!matches).then(|| match of_name {
                    Some(of_name) => format!("{}, and {of_name}", words.source),
                    None => words.source.clone(),
                }),
            }
        }));
        if !conditions.not_source_ports.is_empty() {
            let ports = &conditions.not_source_ports;
            let is = ports.iter().any(|entry| port(entry, &self.src, from).is_ok());
            traces.push(EntryTrace {
                entry: format!("not from port {}", source_port_words(ports)),
                matches: !is,
                why: is.then(|| words.source.clone()),
            });
        }
        traces.extend(conditions.not_ports.iter().map(|entry| {
            let is = port(entry, &self.dst, self.service).is_ok();
            EntryTrace {
                entry: format!("not {}", port_words(entry)),
                matches: !is,
                why: is.then(|| format!("the flow is {}", words.service)),
            }
        }));
        traces
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
            conditions: Vec::new(),
        }
    }
}

/// The trace of a rule.
fn rule_of<'p>(
    policies: &'p mut [PolicyTrace],
    policy: &PolicyId,
    index: usize,
) -> Option<&'p mut RuleTrace> {
    let (kind, name) = (policy.kind.name(), policy.to_string());
    let named = policies
        .iter_mut()
        .find(|trace| trace.kind == kind && trace.policy == name)?;
    // Of several alternatives that are one rule, the first that matches.
    let is_it = |rule: &RuleTrace| rule.rule == index;
    let matching = named.rules.iter().position(|rule| is_it(rule) && rule.matches);
    let at = matching.or_else(|| named.rules.iter().position(is_it))?;
    named.rules.get_mut(at)
}

/// The tier after one, by their names in reasons.
fn next_tier(tiers: &Tiers, name: &str) -> Option<String> {
    let in_order = tiers.in_order();
    let at = in_order.iter().position(|tier| tier.name == name)?;
    in_order.get(at + 1).map(|tier| tier.name.clone())
}

/// The tiers of policies that are no NetworkPolicies, in order.
fn other_tiers(policies: &[PolicyTrace]) -> Vec<&str> {
    let mut names: Vec<&str> = policies.iter().filter_map(|it| it.tier.as_deref()).collect();
    names.dedup();
    if names.len() == 1 && matches!(names.first(), Some(&("Admin" | "Baseline"))) {
        names = vec!["Admin", "Baseline"];
    }
    names
}

/// Why a policy of an ordered kind does not select a pod; None where it does.
fn subject_miss(cluster: &Cluster, policy: &TieredPolicy, pod: &Pod) -> Option<String> {
    let Some(labels) = namespace_labels(cluster, pod) else {
        return Some(format!("the Namespace {} has not been seen", pod.key.namespace));
    };
    let mut misses = Vec::new();
    for subjects in &policy.subjects {
        misses.push(selection_miss(subjects, labels, pod)?);
    }
    match misses.len() {
        0 => Some("it selects no pod".to_owned()),
        _ => Some(format!("its subject is {}", misses.join("; or "))),
    }
}

/// Which of the labels that a selection asks for a pod does not have; None where it has them all.
fn selection_miss(subjects: &PodSelection, of_namespace: &Labels, pod: &Pod) -> Option<String> {
    if let Some(requirement) = unmet(&subjects.namespaces, of_namespace) {
        let who = format!("namespace {}", pod.key.namespace);
        return Some(format!(
            "in namespaces with {}, {}",
            requirement_words(requirement),
            has_words(&who, requirement, of_namespace)
        ));
    }
    let requirement = unmet(&subjects.pods, &pod.labels)?;
    Some(format!(
        "pods with {}, {}",
        requirement_words(requirement),
        has_words("the pod", requirement, &pod.labels)
    ))
}

/// Which pods a policy of an ordered kind selects.
fn subject_words(policy: &TieredPolicy) -> String {
    let words: Vec<String> = policy.subjects.iter().map(selection_words).collect();
    match words.is_empty() {
        true => "it selects no pod".to_owned(),
        false => format!("its subject is {}", words.join(", or ")),
    }
}

fn selection_words(subjects: &PodSelection) -> String {
    let everybody = |selector: &ringwall_policy::Selector| selector.requirements.is_empty();
    match (everybody(&subjects.pods), everybody(&subjects.namespaces)) {
        (true, true) => "every pod".to_owned(),
        (true, false) => format!(
            "every pod of namespaces with {}",
            selector_words(&subjects.namespaces)
        ),
        (false, true) => format!("pods with {}", selector_words(&subjects.pods)),
        (false, false) => format!(
            "pods with {} in namespaces with {}",
            selector_words(&subjects.pods),
            selector_words(&subjects.namespaces)
        ),
    }
}

/// `rule 1 of ClusterNetworkPolicy x (Admin)`, or `rule 0 of shop/db`.
pub(super) fn rule_words(policy: &PolicyId, tier: &str, index: usize) -> String {
    match policy.kind {
        PolicyKind::NetworkPolicy => format!("rule {index} of {policy}"),
        kind => format!("rule {index} of {} {policy} ({tier})", kind.name()),
    }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
        Action::Log => "log",
    }
}

fn faults(faults: &[Fault]) -> Vec<FaultTrace> {
    let faults = faults.iter().map(|fault| FaultTrace {
        path: fault.path.clone(),
        message: fault.message.clone(),
    });
    faults.collect()
}

/// Whether an end is a pod whose address is not known.
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
            "policyTypes is absent and means [{}], because {why}",
            named.join(", ")
        )
    } else {
        format!("it is invalid and counts as policyTypes [{}]", named.join(", "))
    };
    match direction.rules(policy) {
        Some(_) => format!("isolates for {direction}: {types}"),
        None => format!("does not apply to {direction}: {types}"),
    }
}

/// The name of a cause in `query`'s words.
pub(super) fn effect(cause: &Cause) -> &'static str {
    match cause {
        Cause::Rule { .. } => "allow",
        Cause::Denied { .. } => "deny",
        Cause::Isolated { policies, .. } => tier_denial(policies.iter().map(|id| id.kind.name())),
        Cause::Open => "open",
        Cause::Profile => "profile",
        Cause::SelfTraffic => "self",
        Cause::HostingNode => "node",
        Cause::Unknown => "unknown",
    }
}
