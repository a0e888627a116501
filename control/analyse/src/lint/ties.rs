//! Policies of one tier and priority that disagree: which comes first is up to their names.

use std::{collections::BTreeMap, sync::Arc};

use ringwall_policy::{Cluster, Order, PortMatch, Protocol, TieredPolicy, TieredRule};

use super::{
    draft::{Ask, Draft},
    order::decision,
    rules,
    subject::{DIRECTIONS, Direction, Subject, selector_of},
    witnesses::Witnesses,
};
use crate::{explain::conditions::is_subject, flow::EndName};

/// As many pairs of policies are looked at.
const MOST_PAIRS: usize = 500;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    let mut tied: BTreeMap<(&str, Order), Vec<&TieredPolicy>> = BTreeMap::new();
    for policy in subject.cluster.tiered.values() {
        let place = (policy.tier.as_str(), policy.order);
        tied.entry(place).or_default().push(policy);
    }
    let mut pairs = 0;
    for policies in tied.values_mut() {
        policies.sort_by_cached_key(|policy| policy.id.tie());
        for (index, first) in policies.iter().enumerate() {
            for second in policies.iter().skip(index + 1) {
                pairs += 1;
                if pairs > MOST_PAIRS {
                    return;
                }
                drafts.extend(DIRECTIONS.into_iter().find_map(|direction| {
                    let ask = disagreement(first, second, direction, witnesses)?;
                    Some(draft(subject, first, second, ask))
                }));
            }
        }
    }
}

fn draft<'a>(subject: &Subject<'a>, first: &TieredPolicy, second: &TieredPolicy, ask: Ask) -> Draft<'a> {
    let (first_label, label) = (first.id.label(), second.id.label());
    let message = format!(
        "has the same tier and priority as {first_label}, and they disagree: only their names put {first_label} first"
    );
    Draft::about(
        rules::EQUAL_PRIORITY,
        subject.written(&label),
        "spec.priority",
        message,
        "give each policy of a tier its own priority, the smaller one to the policy that should come first",
    )
    .asking([ask])
    .of_any_tier()
}

/// A packet that is decided otherwise if the second comes first.
fn disagreement(
    first: &TieredPolicy,
    second: &TieredPolicy,
    direction: Direction,
    witnesses: &mut Witnesses<'_>,
) -> Option<Ask> {
    let rules: Vec<&TieredRule> = [first, second]
        .into_iter()
        .flat_map(|policy| match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        })
        .flatten()
        .collect();
    // Rules that all do the same do it in any order.
    let action = rules.first()?.action;
    if rules.iter().all(|rule| rule.action == action) {
        return None;
    }
    let both = |cluster: &Cluster, pod: &ringwall_policy::Pod| {
        [first, second]
            .into_iter()
            .all(|policy| is_subject(cluster, policy, pod))
    };
    let pod = witnesses
        .all()
        .find(|pod| both(witnesses.with_synthetic(), pod))?;
    let us = witnesses.subject(&pod.key.namespace, &selector_of(&pod.labels))?;
    let mut others: Vec<EndName> = Vec::new();
    for peer in rules.iter().flat_map(|rule| rule.named_peers()) {
        others.extend(witnesses.peer("", peer));
    }
    others.extend(witnesses.stranger(&pod.key.namespace));
    others.extend(witnesses.outsiders());
    let mut ports = vec![(Protocol::Tcp, 80)];
    for port in rules.iter().flat_map(|rule| rule.named_ports()) {
        if let PortMatch::Range { protocol, lo, .. } = port {
            ports.push((*protocol, *lo));
        }
    }
    let now = witnesses.with_synthetic();
    let turned = turned(now, second);
    others.iter().find_map(|other| {
        ports.iter().find_map(|port| {
            let of = |cluster| Some(decision(cluster, direction, &us, other, *port)?.allow);
            let (expect, otherwise) = (of(now)?, of(&turned)?);
            let wanted = match otherwise {
                true => "allow, if the other policy should come first",
                false => "deny, if the other policy should come first",
            };
            (expect != otherwise).then(|| Ask::new(direction, &us, other, *port, expect, wanted))
        })
    })
}

/// The cluster with a policy before the others of its priority.
fn turned(cluster: &Cluster, policy: &TieredPolicy) -> Cluster {
    let mut turned = cluster.clone();
    for other in cluster.tiered.values() {
        if other.tier == policy.tier && other.order == policy.order && other.id != policy.id {
            // After it, and before whatever was after it.
            let after = Order::new(other.order.number().next_up()).unwrap_or(other.order);
            let other = TieredPolicy {
                order: after,
                ..TieredPolicy::clone(other)
            };
            turned.tiered.insert(other.id.clone(), Arc::new(other));
        }
    }
    turned
}
