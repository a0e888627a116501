//! Lists, dashes and indentation: what the shape of a policy does.

use ringwall_policy::{Peer, PortMatch, Protocol, Rule};
use serde_json::Value;

use super::{
    Severity,
    draft::{Ask, Draft, Shown},
    rules,
    selecting::{matches, words},
    subject::{DIRECTIONS, Direction, PlacedRule, Policy, Subject},
    witnesses::{NamespaceFilter, Witnesses},
};
use crate::flow::EndName;

/// A port that stands for "any other".
const OTHER_PORT: (Protocol, u16) = (Protocol::Tcp, 8080);

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for policy in &subject.policies {
        ports_of_their_own(policy, witnesses, drafts);
        or_where_and(policy, witnesses, drafts);
        egress_type_missing(policy, witnesses, drafts);
        ingress_by_default(subject, policy, witnesses, drafts);
        ignored_rules(policy, witnesses, drafts);
        empty_lists(policy, witnesses, drafts);
    }
    for policy in &subject.invalid {
        ports_among_peers(policy, witnesses, drafts);
    }
}

fn outside_or_strangers(policy: &Policy<'_>, witnesses: &mut Witnesses<'_>) -> Vec<EndName> {
    let mut ends: Vec<EndName> = witnesses.stranger(policy.namespace()).into_iter().collect();
    ends.extend(witnesses.outsiders());
    ends
}

/// `- from: [...]` followed by `- ports: [...]`: two rules, each wider than the one that was meant.
fn ports_of_their_own<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for direction in DIRECTIONS {
        let rules = policy.rules(direction).unwrap_or_default();
        for (index, pair) in rules.windows(2).enumerate() {
            let [who, what] = pair else { continue };
            if !torn_apart(who, what) {
                continue;
            }
            let placed = PlacedRule {
                direction,
                index: index + 1,
                rule: what,
            };
            let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
                continue;
            };
            let port = placed.some_port(80);
            let others = outside_or_strangers(policy, witnesses);
            let (peers, key) = (direction.peers_key(), direction.key());
            let wanted = "deny: the ports were meant for the peers of the rule above";
            drafts.push(
                Draft::of(
                    rules::MIS_INDENTED_PORTS,
                    policy,
                    placed.path(),
                    format!(
                        "these ports are a rule of their own, which allows them for everyone, while rule {index} allows \
                         its {peers} every port"
                    ),
                    format!("write `ports` beside `{peers}`, without a dash: one rule of `{key}` with both"),
                )
                .asking(others.iter().map(|end| Ask::new(direction, &us, end, port, true, wanted))),
            );
        }
    }
}

/// Whether two rules look like one whose `ports` got a dash too many. "Everything within the namespace, and DNS" and
/// "everything within the namespace, and a port for the world" look alike and are meant.
fn torn_apart(who: &Rule, what: &Rule) -> bool {
    let (Some(peers), None, None, Some(ports)) = (&who.peers, &who.ports, &what.peers, &what.ports) else {
        return false;
    };
    let dns = |port: &PortMatch| matches!(port, PortMatch::Range { lo: 53, hi: 53, .. });
    let own_namespace =
        |peer: &Peer| matches!(peer, Peer::Pods { namespaces: None, pods } if pods.requirements.is_empty());
    !ports.iter().all(dns) && !peers.iter().all(own_namespace)
}

/// `ports` where the API knows none: refused or, read leniently, dropped.
fn ports_among_peers<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let mut places: Vec<(Direction, String, &Value)> = Vec::new();
    if let Some(ports) = policy.spec.get("ports") {
        let direction = match policy.it.ingress {
            Some(_) => Direction::Ingress,
            None => Direction::Egress,
        };
        places.push((direction, "spec.ports".to_owned(), ports));
    }
    for direction in DIRECTIONS {
        let rules = policy.spec.get(direction.key()).and_then(Value::as_array);
        for (index, rule) in rules.into_iter().flatten().enumerate() {
            let peers = rule.get(direction.peers_key()).and_then(Value::as_array);
            for (peer, ports) in peers
                .into_iter()
                .flatten()
                .enumerate()
                .filter_map(|(index, peer)| Some((index, peer.get("ports")?)))
            {
                let at = format!(
                    "spec.{}[{index}].{}[{peer}].ports",
                    direction.key(),
                    direction.peers_key()
                );
                places.push((direction, at, ports));
            }
        }
    }
    for (direction, at, ports) in places {
        // Reported even where no pod could be selected: it is an error.
        let us = witnesses.subject(policy.namespace(), &policy.it.subjects);
        let number = ports
            .pointer("/0/port")
            .and_then(Value::as_u64)
            .and_then(|it| u16::try_from(it).ok());
        let service = (Protocol::Tcp, number.unwrap_or(80));
        let peer = witnesses.pod(NamespaceFilter::Named(policy.namespace()), &[], &|_| true);
        let others: Vec<EndName> = peer
            .into_iter()
            .chain(outside_or_strangers(policy, witnesses))
            .collect();
        let peers = direction.peers_key();
        let fix = if at == "spec.ports" {
            format!("move `ports` into the rule it belongs to, beside its `{peers}`")
        } else {
            format!("write `ports` one level higher, in line with `{peers}`")
        };
        let wanted = "allow for the peers of the rule; meanwhile the policy is invalid and allows nothing. Where fields \
                      that are unknown are dropped, every port would be open instead";
        drafts.push(
            Draft::of(
                rules::MIS_INDENTED_PORTS,
                policy,
                at,
                "`ports` has no place here: an API server refuses it or drops it, and with it the restriction to ports",
                fix,
            )
            .severity(Severity::Error)
            .shown(Shown::Itself)
            .asking(us.iter().flat_map(|us| {
                let ask = |end| Ask::new(direction, us, end, service, false, wanted);
                others.iter().map(ask).collect::<Vec<_>>()
            })),
        );
    }
}

/// `- namespaceSelector` and `- podSelector` beside each other: either, where both were likely meant.
fn or_where_and<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for placed in policy.all_rules() {
        let peers = placed.rule.peers.as_deref().unwrap_or_default();
        for (index, pair) in peers.windows(2).enumerate() {
            let [first, second] = pair else { continue };
            let (spaces, pods) = match (namespaces_alone(first), own_pods(second)) {
                (Some(spaces), Some(pods)) => (spaces, pods),
                _ => match (namespaces_alone(second), own_pods(first)) {
                    (Some(spaces), Some(pods)) => (spaces, pods),
                    _ => continue,
                },
            };
            let own = policy.namespace();
            let covers_own = witnesses
                .namespaces(NamespaceFilter::Named(own))
                .into_iter()
                .any(|own| {
                    witnesses
                        .namespaces(NamespaceFilter::Matching(spaces))
                        .contains(&own)
                });
            let ours = witnesses
                .live(own)
                .filter(|pod| matches(pods, &pod.labels))
                .count();
            let theirs = witnesses
                .namespaces(NamespaceFilter::Matching(spaces))
                .into_iter()
                .flat_map(|name| witnesses.live(name))
                .filter(|pod| matches(pods, &pod.labels))
                .count();
            let none_known = witnesses.live(own).next().is_none() && theirs == 0;
            let severity = match (covers_own, ours, theirs, none_known) {
                (true, ..) | (false, 0, 1.., _) => Severity::Warning,
                (false, _, _, true) => Severity::Note,
                _ => continue,
            };
            let Some(us) = witnesses.subject(own, &policy.it.subjects) else {
                continue;
            };
            let end = witnesses.pod(NamespaceFilter::Matching(spaces), &[], &|labels| {
                !matches(pods, labels)
            });
            let wanted = format!("deny: of those namespaces, only pods with {}", words(pods));
            let port = placed.some_port(80);
            let ask = end.map(|end| Ask::new(placed.direction, &us, &end, port, true, wanted));
            let all = match spaces.requirements.is_empty() {
                true => "every pod of every namespace".to_owned(),
                false => format!("every pod of the namespaces with {}", words(spaces)),
            };
            let message = format!("two alternatives: {all}, and pods of {own} with {}", words(pods));
            drafts.push(
                Draft::of(
                    rules::OR_WHERE_AND,
                    policy,
                    placed.peer_path(index + 1),
                    message,
                    "if both have to hold, write both selectors in one entry: no dash before the second",
                )
                .severity(severity)
                .asking(ask),
            );
        }
    }
}

fn namespaces_alone(peer: &Peer) -> Option<&ringwall_policy::Selector> {
    match peer {
        Peer::Pods {
            namespaces: Some(namespaces),
            pods,
        } if pods.requirements.is_empty() => Some(namespaces),
        _ => None,
    }
}

fn own_pods(peer: &Peer) -> Option<&ringwall_policy::Selector> {
    match peer {
        Peer::Pods {
            namespaces: None,
            pods,
        } if !pods.requirements.is_empty() => Some(pods),
        _ => None,
    }
}

fn types_absent(policy: &Policy<'_>) -> bool {
    match policy.spec.get("policyTypes") {
        None | Some(Value::Null) => true,
        Some(Value::Array(types)) => types.is_empty(),
        Some(_) => false,
    }
}

/// `egress: []` alone.
fn egress_type_missing<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    if !types_absent(policy) || policy.it.egress.is_some() || policy.spec.get("egress").is_none() {
        return;
    }
    let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
        return;
    };
    let asks: Vec<Ask> = witnesses
        .outsiders()
        .map(|end| {
            let https = (Protocol::Tcp, 443);
            Ask::new(
                Direction::Egress,
                &us,
                &end,
                https,
                true,
                "deny: an empty `egress` is meant to allow nothing out",
            )
        })
        .collect();
    drafts.push(
        Draft::of(
            rules::EGRESS_TYPE_MISSING,
            policy,
            "spec.egress",
            "does not restrict egress: without policyTypes, an empty `egress` counts as absent, and only ingress is isolated",
            "add `policyTypes: [Egress]`, or `[Ingress, Egress]` to keep ingress closed as it is now",
        )
        .asking(asks),
    );
}

/// Egress rules without policyTypes: the policy isolates ingress, too.
fn ingress_by_default<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let egress = policy.rules(Direction::Egress).unwrap_or_default();
    if !types_absent(policy) || egress.is_empty() || policy.spec.get("ingress").is_some() {
        return;
    }
    let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
        return;
    };
    // Where another policy says something about ingress of the same pods, it has been thought of.
    let EndName::Pod(key) = &us else { return };
    let Some(pod) = witnesses.with_synthetic().pods.get(key).cloned() else {
        return;
    };
    let others = subject
        .selecting(policy.namespace(), &pod.labels)
        .filter(|other| other.it.ingress.is_some())
        .count();
    if others > 1 {
        return;
    }
    let ends = outside_or_strangers(policy, witnesses);
    let wanted = "allow: the policy speaks of egress alone";
    drafts.push(
        Draft::of(
            rules::INGRESS_BY_DEFAULT,
            policy,
            "spec.egress",
            "also denies all ingress: without policyTypes, a policy with egress rules isolates both directions",
            "add `policyTypes: [Egress]`, or `ingress: []` to deny ingress on purpose",
        )
        .asking(
            ends.iter()
                .map(|end| Ask::new(Direction::Ingress, &us, end, (Protocol::Tcp, 80), false, wanted)),
        ),
    );
}

/// Rules of a direction that policyTypes leaves out.
fn ignored_rules<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for direction in DIRECTIONS {
        let written = policy.spec.get(direction.key()).and_then(Value::as_array);
        if policy.rules(direction).is_some() || written.is_none_or(Vec::is_empty) {
            continue;
        }
        let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
            continue;
        };
        let ends = outside_or_strangers(policy, witnesses);
        let name = direction.policy_type();
        let open = "deny what the rules do not allow";
        let closed = "whatever the rules say";
        let asks = ends.iter().flat_map(|end| {
            [(true, open), (false, closed)]
                .map(|(expect, wanted)| Ask::new(direction, &us, end, (Protocol::Tcp, 22), expect, wanted))
        });
        drafts.push(
            Draft::of(
                rules::IGNORED_RULES,
                policy,
                format!("spec.{}", direction.key()),
                format!("ignored: policyTypes does not name {name}"),
                format!("add {name} to policyTypes, or remove the rules"),
            )
            .asking(asks),
        );
    }
}

/// `from: []`, `from:` with nothing below, `ports: []`, and `-` alone: all of them allow everything.
fn empty_lists<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    for placed in policy.all_rules() {
        let direction = placed.direction;
        let pointer = format!("/{}/{}", direction.key(), placed.index);
        let Some(rule) = policy.spec.pointer(&pointer) else {
            continue;
        };
        let mut found: Vec<(String, String)> = Vec::new();
        if rule.is_null() {
            let fix = "write `- {}` to allow everything, or what was meant to stand here".to_owned();
            found.push((placed.path(), fix));
        }
        for key in [direction.peers_key(), "ports"] {
            if rule.get(key).is_some_and(empty) {
                let fix = format!(
                    "remove `{key}` to allow all of them, or the rule to allow none, or write what was meant to stand here"
                );
                found.push((format!("{}.{key}", placed.path()), fix));
            }
        }
        for (field, fix) in found {
            let Some(us) = witnesses.subject(policy.namespace(), &policy.it.subjects) else {
                continue;
            };
            let mut ends = outside_or_strangers(policy, witnesses);
            for peer in placed.rule.peers.iter().flatten() {
                ends.extend(witnesses.peer(policy.namespace(), peer));
            }
            let port = if field.ends_with("ports") {
                OTHER_PORT
            } else {
                placed.some_port(OTHER_PORT.1)
            };
            let what = field.rsplit('.').next().unwrap_or_default();
            let message = if rule.is_null() {
                "an empty rule, which allows everything".to_owned()
            } else {
                format!("an empty `{what}` restricts nothing: it allows all of them")
            };
            let wanted = "deny: an empty list looks as if it allowed nothing";
            drafts.push(
                Draft::of(rules::EMPTY_LIST, policy, field, message, fix).asking(
                    ends.iter()
                        .map(|end| Ask::new(direction, &us, end, port, true, wanted)),
                ),
            );
        }
    }
}
