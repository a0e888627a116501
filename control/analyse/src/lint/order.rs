//! Every policy, of all kinds, in the order in which they decide.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ringwall_evaluate::{Direction as Decision, End, Service, identify, judge, named};
use ringwall_policy::{
    Action, Cluster, Conditions, Labels, Operator, Pod, PodSelection, PolicyId, PolicyKind, PortMatch,
    Protocol, Requirement, Rule, Selector, TieredRule,
    tiers::{Rank, TierFacts, Tiers},
};

use super::{
    draft::Ask,
    redundant::{covering, implied, implies, own_namespace, variants},
    selecting::matches,
    subject::{Direction, Subject},
    witnesses::Witnesses,
};
use crate::flow::EndName;

/// How many peers of a rule are tried as witnesses.
pub(super) const MOST_PEERS: usize = 4;

/// A policy and its place in the order.
pub(super) struct Ranked<'a> {
    pub(super) id: PolicyId,
    pub(super) tier: Arc<TierFacts>,
    pub(super) rank: Rank,
    pub(super) subjects: Vec<PodSelection>,
    ingress: Option<Vec<RankedRule<'a>>>,
    egress: Option<Vec<RankedRule<'a>>>,
}

/// A rule of such a policy.
pub(super) struct RankedRule<'a> {
    /// Its index in the object; alternatives of one rule have the same.
    pub(super) index: usize,
    pub(super) action: Action,
    /// Whom and which ports it matches.
    pub(super) rule: Cow<'a, Rule>,
    /// Whether it asks for more than that, so that it matches less.
    pub(super) conditional: bool,
}

/// Pods of one namespace with the same labels.
pub(super) struct Group<'a> {
    pub(super) pod: &'a Pod,
    /// The policies that select them, in order.
    pub(super) policies: Vec<usize>,
}

/// All policies, in the order in which they decide.
pub(super) struct Ordered<'a> {
    pub(super) tiers: Tiers,
    pub(super) policies: Vec<Ranked<'a>>,
}

impl<'a> Ordered<'a> {
    pub(super) fn of(subject: &Subject<'a>) -> Self {
        let cluster = subject.cluster;
        let tiers = Tiers::of(cluster);
        let mut policies: Vec<Ranked<'a>> = Vec::new();
        for policy in cluster.policies.values() {
            let rules = |rules: &'a Option<Vec<Rule>>| {
                let rules = rules.as_deref()?;
                // An invalid policy only isolates.
                let rules = if policy.faults.is_empty() { rules } else { &[] };
                let ranked = rules.iter().enumerate().map(|(index, rule)| RankedRule {
                    conditional: false,
                    index,
                    action: Action::Allow,
                    rule: Cow::Borrowed(rule),
                });
                Some(ranked.collect())
            };
            policies.push(Ranked {
                id: PolicyId::network_policy(&policy.key),
                tier: Arc::clone(tiers.network_policies()),
                rank: tiers.rank_of_network_policy(&policy.key),
                subjects: vec![PodSelection {
                    namespaces: own_namespace(subject, &policy.key.namespace),
                    pods: policy.subjects.clone(),
                }],
                ingress: rules(&policy.ingress),
                egress: rules(&policy.egress),
            });
        }
        for policy in cluster.tiered.values() {
            policies.push(Ranked {
                id: policy.id.clone(),
                tier: Arc::clone(tiers.named(&policy.tier)),
                rank: Rank {
                    order: policy.order,
                    tie: policy.id.tie(),
                },
                subjects: policy.subjects.clone(),
                ingress: policy.ingress.as_deref().map(ranked_rules),
                egress: policy.egress.as_deref().map(ranked_rules),
            });
        }
        policies.sort_by(|a, b| (a.tier.number, &a.rank).cmp(&(b.tier.number, &b.rank)));
        Self { tiers, policies }
    }

    /// The pods that policies know, by namespace and labels, with the policies that select them.
    pub(super) fn groups<'p>(&self, cluster: &Cluster, witnesses: &Witnesses<'p>) -> Vec<Group<'p>> {
        let mut of_namespace: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut of_cluster = Vec::new();
        for (index, policy) in self.policies.iter().enumerate() {
            match policy.is_network_policy() {
                true => of_namespace.entry(&policy.id.namespace).or_default().push(index),
                false => of_cluster.push(index),
            }
        }
        let mut seen: HashSet<(&str, &Labels)> = HashSet::new();
        let mut groups = Vec::new();
        for pod in witnesses.all() {
            let namespace = pod.key.namespace.as_str();
            let Some(labels) = cluster.namespaces.get(namespace).map(|it| &it.labels) else {
                continue;
            };
            if !seen.insert((namespace, &pod.labels)) {
                continue;
            }
            let own = of_namespace.get(namespace).into_iter().flatten();
            let mut policies: Vec<usize> = own
                .chain(&of_cluster)
                .copied()
                .filter(|index| {
                    let policy = self.policies.get(*index);
                    policy.is_some_and(|policy| {
                        let mut subjects = policy.subjects.iter();
                        subjects.any(|it| {
                            // A NetworkPolicy of the namespace need not be asked for the namespace.
                            (policy.is_network_policy() || matches(&it.namespaces, labels))
                                && matches(&it.pods, &pod.labels)
                        })
                    })
                })
                .collect();
            policies.sort_unstable();
            groups.push(Group { pod, policies });
        }
        groups
    }
}

fn ranked_rules<'a>(rules: &[TieredRule]) -> Vec<RankedRule<'a>> {
    let ranked = TieredRule::numbered(rules).map(|(index, rule)| {
        let TieredRule {
            continues: _,
            action,
            peers,
            ports,
            conditions,
        } = rule.clone();
        RankedRule {
            index,
            action,
            conditional: conditions != Conditions::NONE,
            rule: Cow::Owned(Rule { peers, ports }),
        }
    });
    ranked.collect()
}

impl<'a> Ranked<'a> {
    pub(super) fn is_network_policy(&self) -> bool {
        self.id.kind == PolicyKind::NetworkPolicy
    }

    /// The rules of a direction; None where it has no part in it.
    pub(super) fn rules(&self, direction: Direction) -> Option<&[RankedRule<'a>]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// `Kind namespace/name`, as the object's text is found by.
    pub(super) fn label(&self) -> String {
        format!("{} {}", self.id.kind.name(), self.id)
    }

    /// `ClusterNetworkPolicy open (Admin)`.
    pub(super) fn words(&self) -> String {
        match self.is_network_policy() {
            true => self.label(),
            false => format!("{} ({})", self.label(), self.tier.name),
        }
    }

    /// `rule 0 of ClusterNetworkPolicy open (Admin)`.
    pub(super) fn rule_words(&self, rule: &RankedRule<'_>) -> String {
        format!("rule {} of {}", rule.index, self.words())
    }

    /// Whether it selects every pod that others select, whatever pods there are.
    pub(super) fn selects_all_of(&self, others: &[PodSelection]) -> bool {
        others.iter().all(|other| self.selects_whole(other))
    }

    fn selects_whole(&self, other: &PodSelection) -> bool {
        self.subjects
            .iter()
            .any(|own| implies(&other.namespaces, &own.namespaces) && implies(&other.pods, &own.pods))
    }

    /// Whether no pod can be selected by it and by others.
    pub(super) fn is_apart_from(&self, others: &[PodSelection]) -> bool {
        self.subjects.iter().all(|own| {
            others
                .iter()
                .all(|other| disjoint(&own.namespaces, &other.namespaces) || disjoint(&own.pods, &other.pods))
        })
    }
}

/// A rule with its policy.
pub(super) type PolicyRule<'r, 'a> = (&'r Ranked<'a>, &'r RankedRule<'a>);

/// The rules of `earlier` that together match whatever a rule matches, for every pod that its policy can select. None where
/// something may be left.
pub(super) fn matched_by<'r, 'a>(
    own: &Selector,
    (policy, rule): PolicyRule<'r, 'a>,
    earlier: &[PolicyRule<'r, 'a>],
) -> Option<Vec<PolicyRule<'r, 'a>>> {
    let mut by: Vec<usize> = Vec::new();
    for subjects in &policy.subjects {
        for namespaces in variants(&subjects.namespaces) {
            for pods in variants(&subjects.pods) {
                let one = PodSelection {
                    namespaces: namespaces.clone(),
                    pods,
                };
                let here: Vec<usize> = (0..earlier.len())
                    .filter(|index| {
                        let earlier = earlier.get(*index);
                        earlier.is_some_and(|(policy, rule)| !rule.conditional && policy.selects_whole(&one))
                    })
                    .collect();
                let rules = here
                    .iter()
                    .filter_map(|index| Some(&*earlier.get(*index)?.1.rule));
                let rules: Vec<&Rule> = rules.collect();
                let needed = covering(&rule.rule, own, &rules)?;
                by.extend(needed.iter().filter_map(|index| here.get(*index)));
            }
        }
    }
    by.sort_unstable();
    by.dedup();
    let by: Vec<PolicyRule<'r, 'a>> = by
        .iter()
        .filter_map(|index| earlier.get(*index).copied())
        .collect();
    (!by.is_empty()).then_some(by)
}

/// Whether nothing can satisfy both selectors.
fn disjoint(a: &Selector, b: &Selector) -> bool {
    b.requirements.iter().any(|it| {
        let operator = match &it.operator {
            Operator::In(values) => Operator::NotIn(values.clone()),
            Operator::NotIn(values) => Operator::In(values.clone()),
            Operator::Exists => Operator::DoesNotExist,
            Operator::DoesNotExist => Operator::Exists,
            Operator::Like { .. } => return false,
        };
        let key = it.key.clone();
        implied(a, &Requirement { key, operator })
    })
}

/// A protocol and port that a rule matches; `otherwise` where it restricts none.
pub(super) fn some_port(rule: &Rule, otherwise: u16) -> (Protocol, u16) {
    let ports = rule.ports.iter().flatten();
    let found = ports.into_iter().find_map(|port| match port {
        PortMatch::Range { protocol, lo, .. } => Some((*protocol, *lo)),
        PortMatch::All(protocol) => Some((*protocol, otherwise)),
        PortMatch::Named { .. } | PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => None,
    });
    found.unwrap_or((Protocol::Tcp, otherwise))
}

/// Ends that a rule matches, at most `most` of its peers tried; without peers, some that are not in the cluster and one
/// that is.
pub(super) fn some_peers(own: &str, rule: &Rule, most: usize, witnesses: &mut Witnesses<'_>) -> Vec<EndName> {
    match &rule.peers {
        Some(peers) => peers
            .iter()
            .take(most)
            .filter_map(|it| witnesses.peer(own, it))
            .collect(),
        None => {
            let mut ends: Vec<EndName> = witnesses.outsiders().collect();
            ends.extend(witnesses.stranger(own));
            ends
        }
    }
}

/// Packets that rules of a policy match, at a pod that it selects, each as it is decided; then some from outside of the cluster, if
/// `outsiders`. None where it selects no pod, or enough packets have been looked for.
pub(super) fn packets_as_decided<'w>(
    policy: &Ranked<'_>,
    rules: &[&RankedRule<'_>],
    outsiders: bool,
    (direction, wanted): (Direction, &'static str),
    witnesses: &'w mut Witnesses<'_>,
) -> impl Iterator<Item = Ask> + use<'w> {
    let pod = policy.subjects.iter().find_map(|it| witnesses.selected(it));
    let mut packets: Vec<(EndName, (Protocol, u16))> = Vec::new();
    for rule in rules.iter().filter(|_| pod.is_some()) {
        let others = some_peers(&policy.id.namespace, &rule.rule, MOST_PEERS, witnesses);
        let port = some_port(&rule.rule, 80);
        packets.extend(others.into_iter().map(|other| (other, port)));
    }
    if outsiders {
        packets.extend(witnesses.outsiders().map(|other| (other, (Protocol::Tcp, 80))));
    }
    let witnesses: &'w Witnesses<'_> = witnesses;
    packets.into_iter().filter_map(move |(other, port)| {
        let pod = pod.as_ref()?;
        let cluster = witnesses.with_synthetic();
        let decided = witnesses
            .may_ask()
            .then(|| decision(cluster, direction, pod, &other, port))??;
        Some(Ask::new(direction, pod, &other, port, decided.allow, wanted))
    })
}

/// What the evaluator decides about a packet to or from a pod, at that pod.
pub(super) fn decision(
    cluster: &Cluster,
    direction: Direction,
    pod: &EndName,
    other: &EndName,
    (protocol, port): (Protocol, u16),
) -> Option<Decision> {
    let (own, theirs) = (end(cluster, pod)?, end(cluster, other)?);
    let (src, dst) = match direction {
        Direction::Ingress => (theirs, own),
        Direction::Egress => (own, theirs),
    };
    let service = Service {
        protocol: protocol.number(),
        port: Some(port),
        source_port: None,
    };
    let verdict = judge(cluster, &src, &dst, service);
    Some(match direction {
        Direction::Ingress => verdict.ingress,
        Direction::Egress => verdict.egress,
    })
}

/// Who an end is to the evaluator.
pub(super) fn end<'c>(cluster: &'c Cluster, name: &EndName) -> Option<End<'c>> {
    match name {
        EndName::Address(address) => Some(identify(cluster, *address)),
        EndName::Service(_) => None,
        EndName::Pod(key) => match cluster.pods.get(key)?.addresses.first() {
            Some(address) => Some(identify(cluster, *address)),
            None => named(cluster, key),
        },
    }
}
