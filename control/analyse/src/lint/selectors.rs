//! Selectors that match nothing, something else, or more than their author thought of; names of ports that no pod has.

use ringwall_policy::{Labels, NAMESPACE_NAME_LABEL, Operator, Peer, Pod, PortMatch, Protocol, Selector};

use super::{
    Severity,
    draft::{Ask, Draft, Shown},
    rules,
    selecting::{holds, keys_not_in, matches, words},
    subject::{Direction, PlacedRule, Policy, Subject},
    witnesses::{NamespaceFilter, Witnesses},
};
use crate::flow::EndName;

/// How alike two words are that may be one with a typing error, of 1.
const ALIKE: f64 = 0.84;

/// How many pods are tried as witnesses at most.
const MOST_WITNESSES: usize = 16;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    for policy in &subject.policies {
        policy_selects_nothing(subject, policy, witnesses, drafts);
        host_network_only(policy, witnesses, drafts);
        absent_keys(policy, witnesses, drafts);
        for (placed, index, peer) in policy.all_peers() {
            peer_selects_nothing(subject, policy, placed, index, peer, witnesses, drafts);
        }
        for placed in policy.all_rules() {
            unknown_named_ports(policy, placed, witnesses, drafts);
        }
    }
}

fn end_of(pod: &Pod) -> EndName {
    EndName::Pod(pod.key.clone())
}

/// The pod whose labels come closest to a selector that it does not match, and the label to correct.
fn nearest<'p>(selector: &Selector, pods: impl Iterator<Item = &'p Pod>) -> Option<(&'p Pod, String)> {
    let best = pods
        .filter_map(|pod| {
            let (worth, label) = near(selector, &pod.labels)?;
            Some((worth, pod, label))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.key.cmp(&a.1.key)))?;
    Some((best.1, best.2))
}

/// How close labels come to a selector, and the one that would have to read differently. None where more than one thing
/// is wrong, or it is not a matter of spelling.
fn near(selector: &Selector, labels: &Labels) -> Option<(f64, String)> {
    let mut wrong = selector.requirements.iter().filter(|it| !holds(it, labels));
    let (Some(first), None) = (wrong.next(), wrong.next()) else {
        return None;
    };
    let Operator::In(values) = &first.operator else {
        return None;
    };
    let value = values.first()?;
    let alike = |a: &str, b: &str| {
        if a.eq_ignore_ascii_case(b) {
            return 1.0;
        }
        // In short words one letter is a large part, and usually meant.
        if a.len().min(b.len()) < 4 {
            0.0
        } else {
            strsim::jaro_winkler(a, b).min(1.0)
        }
    };
    labels
        .iter()
        .filter_map(|(key, there)| {
            let worth = if *key == first.key {
                alike(value, there)
            } else if there == value {
                // The right value under another key: `name: kube-system`, `k8s-app: web`.
                if values.len() == 1 {
                    alike(&first.key, key).max(0.9)
                } else {
                    0.0
                }
            } else {
                0.0
            };
            (worth >= ALIKE).then(|| (worth, format!("{key}={there}")))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
}

/// How bad it is that no pod is selected: kinds that are passed over may make the pods that are meant.
fn severity(subject: &Subject<'_>) -> Severity {
    match subject.foreign.is_empty() {
        true => Severity::Warning,
        false => Severity::Note,
    }
}

/// What may make the pods that are not there, to be added to a message.
fn perhaps_made(subject: &Subject<'_>) -> String {
    let kinds: Vec<&str> = subject.foreign.iter().map(String::as_str).take(4).collect();
    match kinds.is_empty() {
        true => String::new(),
        false => format!(" (pods that {} may make are not known here)", kinds.join(", ")),
    }
}

fn policy_selects_nothing<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let own = policy.namespace();
    let selector = &policy.it.subjects;
    if selector.requirements.is_empty()
        || witnesses
            .pods_of(own)
            .iter()
            .any(|pod| policy.selects(&pod.labels))
    {
        return;
    }
    let direction = match policy.it.ingress {
        Some(_) => Direction::Ingress,
        None => Direction::Egress,
    };
    let elsewhere: Vec<&Pod> = witnesses
        .all()
        .filter(|pod| matches(selector, &pod.labels))
        .collect();
    let (place, asked) = match direction {
        Direction::Ingress => ("open", "what the policy says of ingress"),
        Direction::Egress => ("open", "what the policy says of egress"),
    };
    let asks = |witnesses: &Witnesses<'_>, pod: &Pod| -> Vec<Ask> {
        let us = end_of(pod);
        let wanted = format!("{asked}; it does not apply to this pod, which is {place}");
        witnesses
            .outsiders()
            .map(|end| Ask::new(direction, &us, &end, (Protocol::Tcp, 22), true, wanted.clone()))
            .collect()
    };
    if let Some(first) = elsewhere.first() {
        // Labels such as `app: web` are everywhere; the policy is in the wrong place if its own says nothing of them.
        let spaces: std::collections::BTreeSet<&str> =
            elsewhere.iter().map(|pod| pod.key.namespace.as_str()).collect();
        let names: Vec<&str> = spaces.into_iter().collect();
        let written = policy.metadata.get("namespace").is_some();
        let message = format!(
            "selects no pod of namespace {own}{}, but {} in {} {} these labels",
            if written {
                ""
            } else {
                " (none is written, so default is meant)"
            },
            first.key.name,
            names.join(", "),
            if elsewhere.len() == 1 {
                "has"
            } else {
                "and others have"
            },
        );
        drafts.push(
            Draft::of(
                rules::WRONG_NAMESPACE,
                policy,
                if written { "metadata.namespace" } else { "metadata" },
                message,
                format!("write `namespace: {}` in metadata", names.first().unwrap_or(&own)),
            )
            .shown(Shown::Itself)
            .asking(asks(witnesses, first)),
        );
        return;
    }
    let pods = witnesses.pods_of(own);
    if pods.is_empty() {
        return;
    }
    let near = nearest(selector, witnesses.live(own));
    let message = match &near {
        Some((pod, label)) => format!(
            "selects no pod of namespace {own}; {} has {label}: is that what {} should be?",
            pod.key.name,
            words(selector)
        ),
        None => format!("selects no pod of namespace {own}: none has {}", words(selector)),
    };
    let message = message + &perhaps_made(subject);
    let witness = near.map(|(pod, _)| pod).or_else(|| witnesses.live(own).next());
    let draft = Draft::of(
        rules::POLICY_SELECTS_NOTHING,
        policy,
        "spec.podSelector",
        message,
        "correct the labels, or remove the policy",
    )
    .severity(severity(subject))
    .shown(Shown::Itself)
    .asking(witness.map(|pod| asks(witnesses, pod)).unwrap_or_default());
    drafts.push(draft);
}

fn host_network_only<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let pods: Vec<&Pod> = witnesses
        .pods_of(policy.namespace())
        .iter()
        .copied()
        .filter(|pod| policy.selects(&pod.labels))
        .collect();
    if pods.is_empty() || pods.iter().any(|pod| !pod.host_network) {
        return;
    }
    let (direction, name) = match policy.it.ingress {
        Some(_) => (Direction::Ingress, "ingress"),
        None => (Direction::Egress, "egress"),
    };
    let wanted = format!("what the policy says of {name}; it does not apply to the addresses of nodes");
    let asks: Vec<Ask> = pods
        .iter()
        .take(MOST_WITNESSES)
        .flat_map(|pod| {
            witnesses
                .outsiders()
                .map(|end| (end_of(pod), end))
                .collect::<Vec<_>>()
        })
        .map(|(us, end)| Ask::new(direction, &us, &end, (Protocol::Tcp, 22), true, wanted.clone()))
        .collect();
    let named: Vec<&str> = pods.iter().take(3).map(|pod| pod.key.name.as_str()).collect();
    drafts.push(
        Draft::of(
            rules::HOST_NETWORK_ONLY,
            policy,
            "spec.podSelector",
            format!(
                "does nothing: every pod that it selects is on its node's network ({}{})",
                named.join(", "),
                if pods.len() > 3 { ", ..." } else { "" }
            ),
            "protect nodes by other means; NetworkPolicy does not apply to pods with hostNetwork",
        )
        .shown(Shown::Itself)
        .asking(asks),
    );
}

fn peer_selects_nothing<'a>(
    subject: &Subject<'a>,
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    index: usize,
    peer: &Peer,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let Peer::Pods { namespaces, pods } = peer else {
        return;
    };
    let own = policy.namespace();
    let place = namespaces
        .as_ref()
        .map_or(NamespaceFilter::Named(own), NamespaceFilter::Matching);
    let spaces = witnesses.namespaces(place);
    let path = placed.peer_path(index);
    let found = if spaces.is_empty() {
        namespaces
            .as_ref()
            .and_then(|selector| no_namespace(subject, selector, witnesses))
    } else {
        let scope: Vec<&Pod> = spaces.iter().flat_map(|name| witnesses.live(name)).collect();
        no_pod(&scope, pods, witnesses, namespaces.is_none().then_some(own))
    };
    let Some((message, near)) = found else { return };
    // A namespace that is meant by its name and is not here is somewhere else.
    let elsewhere = spaces.is_empty()
        && near.is_empty()
        && namespaces
            .iter()
            .flat_map(|selector| &selector.requirements)
            .any(|it| it.key == NAMESPACE_NAME_LABEL && matches!(it.operator, Operator::In(_)));
    let (message, worst) = match elsewhere {
        true => (
            format!("{message}; it is not in these manifests, so nothing can be said of its pods"),
            Severity::Note,
        ),
        false => (message + &perhaps_made(subject), severity(subject)),
    };
    let Some(us) = witnesses.subject(own, &policy.it.subjects) else {
        return;
    };
    let port = placed.some_port(80);
    let close = near.iter().take(MOST_WITNESSES).map(|end| {
        Ask::new(
            placed.direction,
            &us,
            end,
            port,
            false,
            "allow, if the peer was to match it",
        )
    });
    let mut asks: Vec<Ask> = close.collect();
    asks.extend(witnesses.peer(own, peer).map(|end| {
        Ask::new(
            placed.direction,
            &us,
            &end,
            port,
            true,
            "the same for some pod that exists",
        )
    }));
    let draft = Draft::of(
        rules::PEER_SELECTS_NOTHING,
        policy,
        path,
        message,
        "correct the selector, or remove the peer",
    );
    drafts.push(draft.severity(worst).shown(Shown::Itself).asking(asks));
}

/// Why a selector of namespaces matches none, and whom it may have meant.
fn no_namespace(
    subject: &Subject<'_>,
    selector: &Selector,
    witnesses: &Witnesses<'_>,
) -> Option<(String, Vec<EndName>)> {
    // Namespaces that only pods and policies name have no labels that are known.
    let described = |name: &str| subject.written(&format!("Namespace {name}")).is_some();
    let names: Vec<&str> = subject.cluster.namespaces.keys().map(String::as_str).collect();
    if !names.iter().any(|name| described(name)) {
        return None;
    }
    let by_name = selector.requirements.iter().find_map(|it| match &it.operator {
        Operator::In(values) if it.key != NAMESPACE_NAME_LABEL => names
            .iter()
            .find(|name| values.contains(**name))
            .map(|name| (&it.key, *name)),
        _ => None,
    });
    let near = subject.cluster.namespaces.values().find_map(|namespace| {
        near(selector, &namespace.labels).map(|(_, label)| (namespace.name.as_str(), label))
    });
    let (message, meant) = match (by_name, near) {
        (Some((key, name)), _) => (
            format!(
                "matches no namespace: {name} has no label {key}={name}; every namespace has \
                 {NAMESPACE_NAME_LABEL}, so write {NAMESPACE_NAME_LABEL}: {name}"
            ),
            Some(name),
        ),
        (None, Some((name, label))) => (
            format!(
                "matches no namespace; {name} has {label}: is that what {} should be?",
                words(selector)
            ),
            Some(name),
        ),
        (None, None) => (
            format!("matches no namespace: none has {}", words(selector)),
            None,
        ),
    };
    let pods = meant
        .into_iter()
        .flat_map(|name| witnesses.live(name))
        .map(end_of)
        .collect();
    Some((message, pods))
}

/// Why a selector matches none of these pods, and whom it may have meant.
fn no_pod(
    scope: &[&Pod],
    selector: &Selector,
    witnesses: &Witnesses<'_>,
    own: Option<&str>,
) -> Option<(String, Vec<EndName>)> {
    if scope.is_empty() || scope.iter().any(|pod| matches(selector, &pod.labels)) {
        return None;
    }
    if let Some((pod, label)) = nearest(selector, scope.iter().copied()) {
        let message = format!(
            "matches no pod; {} has {label}: is that what {} should be?",
            pod.key,
            words(selector)
        );
        return Some((message, vec![end_of(pod)]));
    }
    if let Some(own) = own
        && let Some(pod) = witnesses.all().find(|pod| matches(selector, &pod.labels))
    {
        let message = format!(
            "matches no pod of namespace {own}, which is all that a podSelector alone looks at; {} has these labels: \
             add a namespaceSelector to the same entry",
            pod.key
        );
        return Some((message, vec![end_of(pod)]));
    }
    let message = format!("matches no pod: none has {}", words(selector));
    Some((message, scope.iter().copied().map(end_of).collect()))
}

/// `NotIn` where the key may be absent.
fn absent_keys<'a>(policy: &Policy<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let own = policy.namespace();
    for key in keys_not_in(&policy.it.subjects) {
        let lacking = |labels: &Labels| !labels.contains_key(key);
        let Some((us, severity)) = lacking_pod(
            NamespaceFilter::Named(own),
            &policy.it.subjects,
            &lacking,
            witnesses,
        ) else {
            continue;
        };
        let direction = match policy.it.ingress {
            Some(_) => Direction::Ingress,
            None => Direction::Egress,
        };
        let mut ends: Vec<EndName> = witnesses.stranger(own).into_iter().collect();
        ends.extend(witnesses.outsiders());
        let wanted = format!("allow, if only pods with a label {key} were to be isolated");
        drafts.push(
            absent_key(policy, "spec.podSelector".to_owned(), key, "selects")
                .severity(severity)
                .asking(
                    ends.iter()
                        .map(|end| Ask::new(direction, &us, end, (Protocol::Tcp, 22), false, wanted.clone())),
                ),
        );
    }
    for (placed, index, peer) in policy.all_peers() {
        let Peer::Pods { namespaces, pods } = peer else {
            continue;
        };
        let place = namespaces
            .as_ref()
            .map_or(NamespaceFilter::Named(own), NamespaceFilter::Matching);
        let path = placed.peer_path(index);
        let Some(us) = witnesses.subject(own, &policy.it.subjects) else {
            continue;
        };
        let mut found: Vec<(String, &str, EndName, Severity)> = Vec::new();
        for key in keys_not_in(pods) {
            let lacking = |labels: &Labels| !labels.contains_key(key);
            let pod = lacking_pod(place, pods, &lacking, witnesses);
            found.extend(pod.map(|(pod, severity)| (format!("{path}.podSelector"), key, pod, severity)));
        }
        for key in namespaces
            .iter()
            .flat_map(keys_not_in)
            .filter(|key| *key != NAMESPACE_NAME_LABEL)
        {
            let pod = lacking_namespace(place, pods, key, witnesses);
            found
                .extend(pod.map(|(pod, severity)| (format!("{path}.namespaceSelector"), key, pod, severity)));
        }
        for (field, key, end, severity) in found {
            let port = placed.some_port(80);
            let wanted = format!("deny, if {key} was expected to be there");
            drafts.push(
                absent_key(policy, field, key, "matches")
                    .severity(severity)
                    .asking([Ask::new(placed.direction, &us, &end, port, true, wanted)]),
            );
        }
    }
}

fn absent_key<'a>(policy: &Policy<'a>, field: String, key: &str, does: &str) -> Draft<'a> {
    let whose = if field.ends_with("namespaceSelector") {
        "namespaces"
    } else {
        "pods"
    };
    Draft::of(
        rules::ABSENT_KEY,
        policy,
        field,
        format!("NotIn also {does} {whose} that have no label {key} at all, those of other teams among them"),
        format!("add `{{key: {key}, operator: Exists}}`, or name the values that are meant with In"),
    )
}

/// A pod without the key that the selector matches: one of the cluster, or an imagined one where no pods are known.
fn lacking_pod(
    place: NamespaceFilter<'_>,
    selector: &Selector,
    lacking: &dyn Fn(&Labels) -> bool,
    witnesses: &mut Witnesses<'_>,
) -> Option<(EndName, Severity)> {
    let spaces = witnesses.namespaces(place);
    let known = spaces.iter().any(|name| witnesses.live(name).next().is_some());
    let end = witnesses.pod(place, &[selector], lacking)?;
    match (known, witnesses.is_synthetic(&end)) {
        (true, true) => None,
        (false, true) => Some((end, Severity::Note)),
        (_, false) => Some((end, Severity::Warning)),
    }
}

/// A pod in a namespace without the key.
fn lacking_namespace(
    place: NamespaceFilter<'_>,
    pods: &Selector,
    key: &str,
    witnesses: &mut Witnesses<'_>,
) -> Option<(EndName, Severity)> {
    let spaces = witnesses.namespaces(place);
    let lacking = spaces.iter().find_map(|name| {
        let labels = &witnesses.with_synthetic().namespaces.get(*name)?.labels;
        let pod = witnesses.live(name).find(|pod| matches(pods, &pod.labels))?;
        (!labels.contains_key(key)).then(|| end_of(pod))
    });
    if let Some(end) = lacking {
        return Some((end, Severity::Warning));
    }
    if witnesses.all().next().is_some() {
        return None;
    }
    let end = witnesses.pod(place, &[pods], &|_| true)?;
    Some((end, Severity::Note))
}

/// Named ports that no destination has.
fn unknown_named_ports<'a>(
    policy: &Policy<'a>,
    placed: PlacedRule<'a>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let own = policy.namespace();
    for (index, port) in placed.rule.ports.iter().flatten().enumerate() {
        let PortMatch::Named { protocol, name } = port else {
            continue;
        };
        let destinations: Vec<&Pod> = match (placed.direction, &placed.rule.peers) {
            (Direction::Ingress, _) => witnesses
                .live(own)
                .filter(|pod| policy.selects(&pod.labels))
                .collect(),
            (Direction::Egress, None) => witnesses.all().collect(),
            (Direction::Egress, Some(peers)) => peers
                .iter()
                .flat_map(|peer| witnesses.peer_pods(own, peer))
                .collect(),
        };
        let blocks_alone = placed.direction == Direction::Egress
            && placed
                .rule
                .peers
                .as_ref()
                .is_some_and(|peers| peers.iter().all(|peer| matches!(peer, Peer::Block { .. })));
        let has = |pod: &&Pod| {
            pod.named_ports
                .iter()
                .any(|it| it.name == *name && it.protocol == *protocol)
        };
        if (destinations.is_empty() && !blocks_alone) || destinations.iter().any(has) {
            continue;
        }
        let others = destinations
            .iter()
            .flat_map(|pod| pod.named_ports.iter().map(move |it| (pod, it)));
        let near = others
            .map(|(pod, it)| (strsim::jaro_winkler(&it.name, name), pod, it))
            .filter(|(alike, ..)| *alike >= ALIKE)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, pod, it)| (pod, it));
        let protocol_name = |protocol| match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        let hint = match near {
            _ if blocks_alone => "addresses outside of the cluster have no names for their ports".to_owned(),
            Some((pod, it)) => {
                format!(
                    "{} calls {}/{} {:?}",
                    pod.key,
                    it.number,
                    protocol_name(it.protocol),
                    it.name
                )
            }
            None => match destinations.first() {
                Some(pod) if pod.named_ports.is_empty() => format!("{} has no named ports", pod.key),
                Some(pod) => {
                    let names: Vec<&str> = pod.named_ports.iter().map(|it| it.name.as_str()).collect();
                    format!("{} has {}", pod.key, names.join(", "))
                }
                None => "there is none".to_owned(),
            },
        };
        let number = near.map_or(80, |(_, it)| it.number);
        let mut asks = Vec::new();
        let peer = placed
            .rule
            .peers
            .iter()
            .flatten()
            .find_map(|peer| witnesses.peer(own, peer));
        let peer = peer.or_else(|| witnesses.stranger(own));
        if let (Some(us), Some(peer)) = (witnesses.subject(own, &policy.it.subjects), peer) {
            let wanted = "allow: the name was to stand for this port or its like";
            asks.push(Ask::new(
                placed.direction,
                &us,
                &peer,
                (*protocol, number),
                false,
                wanted,
            ));
        }
        drafts.push(
            Draft::of(
                rules::UNKNOWN_NAMED_PORT,
                policy,
                placed.port_path(index),
                format!(
                    "no pod that this rule matches has a {} port named {name:?}, so the rule matches nothing; {hint}",
                    protocol_name(*protocol)
                ),
                "write the name as in the pod's container ports, or the number",
            )
            .shown(Shown::Itself)
            .asking(asks),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn wants(pairs: &[(&str, &str)]) -> Selector {
        super::super::subject::selector_of(&labels(pairs))
    }

    #[test]
    fn a_typing_error_is_near_and_another_word_is_not() {
        let near = |wanted: &[(&str, &str)], there: &[(&str, &str)]| {
            near(&wants(wanted), &labels(there)).map(|(_, label)| label)
        };
        assert_eq!(
            near(&[("app", "fronted")], &[("app", "frontend")]).as_deref(),
            Some("app=frontend")
        );
        assert_eq!(
            near(&[("app", "Web")], &[("app", "web")]).as_deref(),
            Some("app=web")
        );
        assert_eq!(
            near(&[("name", "api")], &[("app", "api")]).as_deref(),
            Some("app=api")
        );
        assert_eq!(near(&[("app", "db")], &[("app", "web")]), None);
        assert_eq!(near(&[("app", "backend")], &[("app", "frontend")]), None);
        // Two things wrong are no typing error.
        assert_eq!(
            near(&[("app", "fronted"), ("tier", "x")], &[("app", "frontend")]),
            None
        );
    }
}
