//! One direction of a flow, step by step: which policies select the pod, and what each rule of theirs asks for.

use ringwall_evaluate::{Cause, End, Identity, Service};
use ringwall_policy::{Cluster, NetworkPolicy, ObjectKey, Peer, Pod, PolicyId, Rule};

use super::{
    Direction,
    conditions::{
        PeerMiss, has_words, peer, peer_miss_words, peer_words, policies_of, port, port_miss_words,
        port_words, requirement_words, selector_words, unmet,
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

    /// What decides before any policy: the same pod at both ends, or a pod and its own node.
    pub(super) fn exemption(&self) -> Option<Cause> {
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
        let mut isolated = false;
        for policy in selecting(self.cluster, pod, direction) {
            isolated = true;
            let rules = direction.rules(policy).unwrap_or_default();
            if rules.iter().any(|rule| self.matches(policy, rule, direction)) {
                return true;
            }
        }
        !isolated
    }

    /// Whether a rule matches the flow.
    pub(super) fn matches(&self, policy: &NetworkPolicy, rule: &Rule, direction: Direction) -> bool {
        self.peers_match(policy, rule, direction) && self.ports_match(rule)
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
        let unplaced = self.cluster.unplaced.as_ref();
        is_unplaced(other) && unplaced.is_some_and(|unplaced| unplaced.matches(peers))
    }

    /// Whether one of a rule's ports matches.
    pub(super) fn ports_match(&self, rule: &Rule) -> bool {
        rule.ports.as_ref().is_none_or(|ports| {
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
        let mut policies: Vec<PolicyTrace> = policies_of(self.cluster, &pod.key.namespace)
            .map(|policy| self.policy(policy, direction, pod, words))
            .collect();
        let first = policies
            .iter_mut()
            .zip(policies_of(self.cluster, &pod.key.namespace))
            .find_map(|(trace, policy)| {
                let rule = trace.rules.iter_mut().find(|rule| rule.matches)?;
                rule.decides = true;
                Some((policy.key.clone(), rule.rule))
            });
        let isolating: Vec<ObjectKey> = policies
            .iter()
            .zip(policies_of(self.cluster, &pod.key.namespace))
            .filter(|(trace, _)| trace.isolates)
            .map(|(_, policy)| policy.key.clone())
            .collect();
        let (allow, cause, why) = match first {
            Some((policy, index)) => {
                let why = format!("rule {index} of {policy} allows it");
                let cause = Cause::Rule {
                    tier: "NetworkPolicy",
                    policy: PolicyId::network_policy(&policy),
                    index,
                };
                (true, cause, why)
            }
            None if isolating.is_empty() => {
                let why = format!("no policy isolates {name} for {direction}, so that everything passes");
                (true, Cause::Open, why)
            }
            None => {
                let names: Vec<String> = isolating.iter().map(ObjectKey::to_string).collect();
                let (verb, whose) = match names.len() {
                    1 => ("isolates", "no rule of it matches"),
                    _ => ("isolate", "no rule of theirs matches"),
                };
                let why = format!(
                    "{} {verb} {name} for {direction}, and {whose}",
                    names.join(" and ")
                );
                (false, Cause::Isolated(isolating), why)
            }
        };
        let side = Side {
            verdict: Word::of(allow),
            effect: effect(&cause).to_owned(),
            subject: name.to_owned(),
            why,
            policies,
        };
        (side, ringwall_evaluate::Direction { allow, cause })
    }

    fn policy(&self, policy: &NetworkPolicy, direction: Direction, pod: &Pod, words: &Words) -> PolicyTrace {
        let missing = unmet(&policy.subjects, &pod.labels);
        let selects = missing.is_none();
        let isolates = selects && direction.rules(policy).is_some();
        let rules = if isolates {
            direction
                .rules(policy)
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(index, rule)| self.rule(policy, index, rule, direction, words))
                .collect()
        } else {
            Vec::new()
        };
        PolicyTrace {
            policy: policy.key.to_string(),
            kind: "NetworkPolicy".to_owned(),
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
            faults: policy
                .faults
                .iter()
                .map(|fault| FaultTrace {
                    path: fault.path.clone(),
                    message: fault.message.clone(),
                })
                .collect(),
            rules,
        }
    }

    fn rule(
        &self,
        policy: &NetworkPolicy,
        index: usize,
        rule: &Rule,
        direction: Direction,
        words: &Words,
    ) -> RuleTrace {
        let (_, other) = self.ends(direction);
        let who = match direction {
            Direction::Egress => &words.dst,
            Direction::Ingress => &words.src,
        };
        let peers: Option<Vec<EntryTrace>> = rule.peers.as_ref().map(|peers| {
            let unplaced = self.cluster.unplaced.as_ref();
            let held = self.blocks_match_unplaced(peers, &other);
            let trace = |entry| {
                let missed = peer(self.cluster, &policy.key.namespace, entry, &other).err();
                let (mut words, mut matches) = (peer_words(entry), missed.is_none());
                let mut why = missed
                    .as_ref()
                    .map(|miss| peer_miss_words(self.cluster, miss, who, &other));
                if let (Some(PeerMiss::NoAddress), Some(unplaced), true) =
                    (missed, unplaced, is_unplaced(&other))
                {
                    matches = held;
                    why = (!held).then(|| {
                        format!(
                            "{who} has no address yet, and no address that it may have is sure to be in it"
                        )
                    });
                    words.push_str(match (held, unplaced.possibly) {
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
        let ports: Option<Vec<EntryTrace>> = rule.ports.as_ref().map(|ports| {
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
            matches: failed_at.is_none(),
            decides: false,
            failed_at,
            peers,
            ports,
        }
    }
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
