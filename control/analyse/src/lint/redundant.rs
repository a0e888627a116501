//! Rules that allow nothing that others do not allow already, whatever pods there are.
//!
//! A rule is redundant if each of its flows is allowed by another rule: every choice of subject and peer that it could
//! match has to be matched by rules that together allow all of its ports. What a selector can match is decided from
//! its requirements, not by the pods of today: the rule that matters tomorrow is not reported. That what is reported can
//! be taken out without a change of any verdict is tested on random clusters (`super::tests`).

use std::collections::BTreeSet;

use ipnet::IpNet;
use ringwall_policy::{
    Labels, NAMESPACE_NAME_LABEL, Operator, Peer, PortMatch, Protocol, Requirement, Rule, Selector,
};

use super::{
    draft::{Ask, Draft},
    rules,
    subject::{DIRECTIONS, Direction, PlacedRule, Policy, Subject, selector_of},
    witnesses::Witnesses,
};

/// Into how many selectors one is split at its `In` lists; one with more combinations stays whole.
const MOST_VARIANTS: usize = 16;

/// A rule with its policy.
type Candidate<'s, 'a> = (&'s Policy<'a>, PlacedRule<'a>);

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for policies in subject.policies.chunk_by(|a, b| a.namespace() == b.namespace()) {
        for direction in DIRECTIONS {
            let rules: Vec<Candidate<'_, 'a>> = policies
                .iter()
                .flat_map(|policy| policy.all_rules().map(move |rule| (policy, rule)))
                .filter(|(_, rule)| rule.direction == direction)
                .collect();
            let Some(own) = policies
                .first()
                .map(|policy| own_namespace(subject, policy.namespace()))
            else {
                continue;
            };
            // The last first: of two that say the same, the first stays.
            let mut stays = vec![true; rules.len()];
            for index in (0..rules.len()).rev() {
                let others: Vec<Candidate<'_, 'a>> = rules
                    .iter()
                    .zip(&stays)
                    .enumerate()
                    .filter(|(other, (_, stays))| *other != index && **stays)
                    .map(|(_, (rule, _))| *rule)
                    .collect();
                let Some((policy, placed)) = rules.get(index).copied() else {
                    continue;
                };
                if let Some(by) = covered(policy, placed.rule, &others, &own) {
                    if let Some(stays) = stays.get_mut(index) {
                        *stays = false;
                    }
                    drafts.extend(draft(direction, policy, placed, &by, witnesses));
                }
            }
        }
    }
}

fn draft<'a>(
    direction: Direction,
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    by: &BTreeSet<String>,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let own = policy.namespace();
    let us = witnesses.subject(own, &policy.it.subjects)?;
    let peer = placed
        .rule
        .peers
        .iter()
        .flatten()
        .find_map(|peer| witnesses.peer(own, peer));
    let peer = peer.or_else(|| witnesses.outsiders().next())?;
    let names: Vec<&str> = by.iter().map(String::as_str).collect();
    let message = format!("redundant: {} already allows all of it", names.join(" and "));
    Some(
        Draft::of(
            rules::REDUNDANT_RULE,
            policy,
            placed.path(),
            message,
            "remove it; if it was meant to be narrower, remove or narrow the others",
        )
        .asking([Ask::new(
            direction,
            &us,
            &peer,
            placed.some_port(80),
            true,
            "the same without this rule",
        )]),
    )
}

/// The policy's own namespace as a selector: its labels, of which the name never changes.
pub(super) fn own_namespace(subject: &Subject<'_>, name: &str) -> Selector {
    let mut labels = subject
        .cluster
        .namespaces
        .get(name)
        .map_or_else(Labels::new, |namespace| namespace.labels.clone());
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
    selector_of(&labels)
}

/// Whether `others` allow together all that a rule allows; which of them it takes.
fn covered(
    policy: &Policy<'_>,
    rule: &Rule,
    others: &[Candidate<'_, '_>],
    own: &Selector,
) -> Option<BTreeSet<String>> {
    let mut by = BTreeSet::new();
    for subjects in variants(&policy.it.subjects) {
        let here: Vec<&Candidate<'_, '_>> = others
            .iter()
            .filter(|(other, _)| implies(&subjects, &other.it.subjects))
            .collect();
        let rules: Vec<&Rule> = here.iter().map(|(_, other)| other.rule).collect();
        let needed = covering(rule, own, &rules)?;
        let needed = needed.iter().filter_map(|index| here.get(*index));
        by.extend(needed.map(|(policy, other)| format!("rule {} of {}", other.index, policy.it.key)));
    }
    (!by.is_empty()).then_some(by)
}

/// Whether `others` match together, for a pod that all of them are about, whatever a rule matches; which of them it takes.
/// `own` is the namespace of a peer that names none.
pub(super) fn covering(rule: &Rule, own: &Selector, others: &[&Rule]) -> Option<BTreeSet<usize>> {
    let mut by = BTreeSet::new();
    let atoms: Vec<Atom<'_>> = match &rule.peers {
        None => vec![Atom::Everyone],
        Some(peers) => peers.iter().flat_map(|peer| atoms(peer, own)).collect(),
    };
    for atom in atoms {
        let matching: Vec<(usize, &Rule)> = others
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, other)| atom.inside(other, own))
            .collect();
        let rules: Vec<&Rule> = matching.iter().map(|(_, other)| *other).collect();
        if !ports_covered(rule, &rules) {
            return None;
        }
        // One that suffices alone is enough to name.
        let alone = matching.iter().find(|(_, other)| ports_covered(rule, &[other]));
        match alone {
            Some((index, _)) => drop(by.insert(*index)),
            None => by.extend(matching.iter().map(|(index, _)| *index)),
        }
    }
    Some(by)
}

/// A part of who a rule matches that no other rule can divide by a list of values.
enum Atom<'a> {
    Everyone,
    Pods { namespaces: Selector, pods: Selector },
    Block { cidr: &'a IpNet, except: &'a [IpNet] },
    Addresses(&'a str),
}

fn atoms<'p>(peer: &'p Peer, own: &Selector) -> Vec<Atom<'p>> {
    match peer {
        Peer::Block { cidr, except } => vec![Atom::Block { cidr, except }],
        Peer::Addresses(set) => vec![Atom::Addresses(set)],
        Peer::Pods { namespaces, pods } => {
            let spaces = variants(namespaces.as_ref().unwrap_or(own));
            let pods = variants(pods);
            spaces
                .iter()
                .flat_map(|namespaces| {
                    pods.iter().map(|pods| Atom::Pods {
                        namespaces: namespaces.clone(),
                        pods: pods.clone(),
                    })
                })
                .collect()
        }
    }
}

impl Atom<'_> {
    /// Whether a rule's peers match all of it.
    fn inside(&self, rule: &Rule, own: &Selector) -> bool {
        let Some(peers) = &rule.peers else { return true };
        match self {
            Self::Everyone => false,
            Self::Pods { namespaces, pods } => peers.iter().any(|peer| match peer {
                Peer::Block { .. } | Peer::Addresses(_) => false,
                Peer::Pods {
                    namespaces: theirs,
                    pods: others,
                } => {
                    let there = match theirs {
                        Some(theirs) => implies(namespaces, theirs),
                        None => own
                            .requirements
                            .iter()
                            .filter(|it| it.key == NAMESPACE_NAME_LABEL)
                            .all(|it| implied(namespaces, it)),
                    };
                    there && implies(pods, others)
                }
            }),
            // Whatever it holds.
            Self::Addresses(set) => peers
                .iter()
                .any(|peer| matches!(peer, Peer::Addresses(other) if other == set)),
            Self::Block { cidr, except } => {
                let touches = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
                let blocks = || {
                    peers.iter().filter_map(|peer| match peer {
                        Peer::Block { cidr, except } => Some((cidr, except)),
                        Peer::Pods { .. } | Peer::Addresses(_) => None,
                    })
                };
                let whole: Vec<IpNet> = blocks()
                    .filter(|(_, holes)| holes.is_empty())
                    .map(|(cidr, _)| *cidr)
                    .collect();
                let holds = |(wide, holes): (&IpNet, &Vec<IpNet>)| {
                    wide.contains(*cidr)
                        && holes
                            .iter()
                            .all(|hole| !touches(hole, cidr) || except.iter().any(|own| own.contains(hole)))
                };
                blocks().any(holds) || IpNet::aggregate(&whole).iter().any(|it| it.contains(*cidr))
            }
        }
    }
}

/// A selector as alternatives without lists of values; itself where there would be too many.
pub(super) fn variants(selector: &Selector) -> Vec<Selector> {
    let mut out = vec![Selector::default()];
    for requirement in &selector.requirements {
        let choices: Vec<Requirement> = match &requirement.operator {
            Operator::In(values) if out.len() * values.len() <= MOST_VARIANTS => values
                .iter()
                .map(|value| Requirement {
                    key: requirement.key.clone(),
                    operator: Operator::In([value.clone()].into()),
                })
                .collect(),
            _ => vec![requirement.clone()],
        };
        out = out
            .iter()
            .flat_map(|before| {
                choices.iter().map(|choice| {
                    let mut selector = before.clone();
                    selector.requirements.push(choice.clone());
                    selector
                })
            })
            .collect();
    }
    out
}

/// Whether everything that `narrow` selects is selected by `wide`.
pub(super) fn implies(narrow: &Selector, wide: &Selector) -> bool {
    wide.requirements.iter().all(|it| implied(narrow, it))
}

/// Whether everything that a selector selects satisfies a requirement.
pub(super) fn implied(selector: &Selector, wanted: &Requirement) -> bool {
    let mut present = false;
    let mut absent = false;
    let mut among: Option<BTreeSet<&String>> = None;
    let mut never: BTreeSet<&String> = BTreeSet::new();
    for it in selector.requirements.iter().filter(|it| it.key == wanted.key) {
        match &it.operator {
            Operator::In(values) => {
                present = true;
                let values: BTreeSet<&String> = values.iter().collect();
                among = Some(match among {
                    None => values,
                    Some(before) => before.intersection(&values).copied().collect(),
                });
            }
            Operator::NotIn(values) => never.extend(values),
            Operator::Exists => present = true,
            Operator::DoesNotExist => absent = true,
            Operator::Like { negated, .. } => present |= !negated,
        }
    }
    let among = among.map(|values| values.difference(&never).copied().collect::<BTreeSet<_>>());
    match &wanted.operator {
        Operator::In(values) => among.is_some_and(|among| among.iter().all(|it| values.contains(*it))),
        Operator::Exists => present,
        Operator::DoesNotExist => absent,
        Operator::Like { .. } => selector.requirements.contains(wanted),
        Operator::NotIn(values) => {
            absent
                || values.iter().all(|it| never.contains(it))
                || among.is_some_and(|among| !among.iter().any(|it| values.contains(*it)))
        }
    }
}

/// Whether rules allow together all ports of one.
fn ports_covered(rule: &Rule, others: &[&Rule]) -> bool {
    if others.iter().any(|other| other.ports.is_none()) {
        return true;
    }
    let Some(ports) = &rule.ports else { return false };
    let there: Vec<&PortMatch> = others
        .iter()
        .flat_map(|other| other.ports.iter().flatten())
        .collect();
    let all = |wanted: Protocol| {
        there
            .iter()
            .any(|it| matches!(it, PortMatch::All(it) if *it == wanted))
    };
    ports.iter().all(|port| match port {
        PortMatch::All(protocol) => all(*protocol),
        PortMatch::Range { protocol, lo, hi } => all(*protocol) || range_covered(&there, *protocol, *lo, *hi),
        PortMatch::Named { protocol, .. } => {
            all(*protocol) || there.contains(&port) || range_covered(&there, *protocol, 1, u16::MAX)
        }
        PortMatch::Icmp { protocol, kind, .. } => {
            let of_type = PortMatch::Icmp {
                protocol: *protocol,
                kind: *kind,
                code: None,
            };
            [port, &of_type, &PortMatch::IpProtocol(*protocol)]
                .iter()
                .any(|it| there.contains(it))
        }
        PortMatch::IpProtocol(_) => there.contains(&port),
    })
}

fn range_covered(there: &[&PortMatch], wanted: Protocol, lo: u16, hi: u16) -> bool {
    let mut ranges: Vec<(u16, u16)> = there
        .iter()
        .filter_map(|it| match it {
            PortMatch::Range { protocol, lo, hi } if *protocol == wanted => Some((*lo, *hi)),
            _ => None,
        })
        .collect();
    ranges.sort_unstable();
    // The first port that is not covered yet; None when there is none left.
    let mut next = Some(lo);
    for (from, to) in ranges {
        match next {
            Some(port) if from <= port && port <= to => next = to.checked_add(1),
            _ => {}
        }
    }
    next.is_none_or(|port| port > hi)
}
