//! Pods that no policy speaks of, where others are protected.

use ringwall_policy::{Action, Pod, Protocol, TieredPolicy};

use super::{
    draft::{Ask, Draft},
    rules,
    subject::{DIRECTIONS, Direction, Subject},
    witnesses::Witnesses,
};
use crate::{explain::conditions::is_subject, flow::EndName};

/// How many pods are named.
const NAMED: usize = 3;

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    // Without any policy there is nothing to check, and that is no surprise.
    if subject.cluster.policies.is_empty() && subject.cluster.tiered.is_empty() {
        return;
    }
    for name in subject.cluster.namespaces.keys() {
        for direction in DIRECTIONS {
            let isolates = |labels| {
                subject
                    .selecting(name, labels)
                    .any(|policy| policy.rules(direction).is_some())
                    || subject.invalid.iter().any(|policy| {
                        policy.namespace() == name
                            && policy.selects(labels)
                            && policy.rules(direction).is_some()
                    })
            };
            // Rules of other tiers restrict, too, where they deny.
            let denies = |policy: &TieredPolicy| {
                let rules = match direction {
                    Direction::Ingress => &policy.ingress,
                    Direction::Egress => &policy.egress,
                };
                rules.iter().flatten().any(|rule| rule.action == Action::Deny)
            };
            let denied = |pod: &Pod| {
                let mut policies = subject.cluster.tiered.values();
                policies.any(|policy| denies(policy) && is_subject(subject.cluster, policy, pod))
            };
            let (closed, open): (Vec<&Pod>, Vec<&Pod>) = witnesses
                .live(name)
                .partition(|pod| isolates(&pod.labels) || denied(pod));
            // Most clusters restrict egress nowhere; in a namespace that does, whoever is left out is worth a word.
            if open.is_empty() || (direction == Direction::Egress && closed.is_empty()) {
                continue;
            }
            let Some(pod) = open.first() else { continue };
            let us = EndName::Pod(pod.key.clone());
            let asks: Vec<Ask> = witnesses
                .outsiders()
                .map(|end| {
                    let ssh = (Protocol::Tcp, 22);
                    Ask::new(
                        direction,
                        &us,
                        &end,
                        ssh,
                        true,
                        "deny, unless this pod is meant to be public",
                    )
                })
                .collect();
            let names: Vec<&str> = open.iter().take(NAMED).map(|pod| pod.key.name.as_str()).collect();
            let more = if open.len() > NAMED { ", ..." } else { "" };
            let all = open.len() + closed.len();
            let message = format!(
                "no policy restricts {} of {} of the {all} pods of namespace {name} ({}{more})",
                direction.key(),
                open.len(),
                names.join(", "),
            );
            let written = subject
                .written(&format!("Namespace {name}"))
                .or_else(|| subject.written(&format!("Pod {}", pod.key)))
                .or_else(|| {
                    let kind = pod.template_of.as_deref()?;
                    subject.written(&format!("{kind} {}", pod.key))
                });
            let fix = format!(
                "a policy with `podSelector: {{}}` and `policyTypes: [{}]` closes the namespace; others then open what is needed",
                direction.policy_type()
            );
            drafts
                .push(Draft::about(rules::UNPROTECTED, written, "metadata.name", message, fix).asking(asks));
        }
    }
}
