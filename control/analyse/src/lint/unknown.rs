//! Names that nothing has, and parts of rules that nothing evaluates.

use std::collections::BTreeSet;

use ringwall_policy::{KUBE_ADMIN, PolicyKind, TieredPolicy};
use ringwall_source::decode::join;
use serde_json::Value;

use super::{
    draft::{Ask, Draft, Shown},
    order::{Ordered, Ranked, packets_as_decided},
    rules,
    subject::{DIRECTIONS, Direction, Subject},
    witnesses::Witnesses,
};

pub(super) fn lint<'a>(subject: &Subject<'a>, witnesses: &mut Witnesses<'_>, drafts: &mut Vec<Draft<'a>>) {
    if subject.cluster.tiered.is_empty() {
        return;
    }
    let ordered = Ordered::of(subject);
    for policy in &ordered.policies {
        if let Some(it) = subject.cluster.tiered.get(&policy.id) {
            drafts.extend(tier(subject, policy, it, witnesses));
            if policy.id.kind.is_calico() {
                http(subject, policy, witnesses, drafts);
                accounts(subject, policy, witnesses, drafts);
            }
            labels_without_value(subject, policy, witnesses, drafts);
        }
    }
}

/// Packets that show what becomes of the pods of a policy, in one direction: each as it is decided.
fn packets(
    policy: &Ranked<'_>,
    direction: Direction,
    rule: Option<usize>,
    wanted: &'static str,
    witnesses: &mut Witnesses<'_>,
) -> Vec<Ask> {
    let rules = policy.rules(direction).unwrap_or_default().iter();
    let rules: Vec<_> = rules
        .filter(|it| rule.is_none_or(|rule| it.index == rule))
        .collect();
    packets_as_decided(policy, &rules, true, (direction, wanted), witnesses).collect()
}

/// A tier that is not there: its policies come last, and deny the rest.
fn tier<'a>(
    subject: &Subject<'a>,
    policy: &Ranked<'_>,
    it: &TieredPolicy,
    witnesses: &mut Witnesses<'_>,
) -> Option<Draft<'a>> {
    let built_in = ringwall_policy::Tier::built_in();
    let known: Vec<&str> = built_in
        .iter()
        .map(|tier| tier.name.as_str())
        .chain(subject.cluster.tiers.keys().map(String::as_str))
        .collect();
    if known.contains(&it.tier.as_str()) {
        return None;
    }
    let near = known
        .iter()
        .map(|known| (strsim::jaro_winkler(known, &it.tier), *known))
        .filter(|(alike, known)| *alike > 0.8 && *known != KUBE_ADMIN)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let near = near.map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"));
    let message = format!(
        "no Tier is called {}: the policy is enforced after all other tiers, and denies to its pods what it does not match{near}",
        it.tier
    );
    let wanted = "to be decided in the tier's own place";
    let asks: Vec<Ask> = DIRECTIONS
        .into_iter()
        .filter(|direction| policy.rules(*direction).is_some())
        .flat_map(|direction| packets(policy, direction, None, wanted, witnesses))
        .collect();
    Some(
        Draft::about(
            rules::UNKNOWN_TIER,
            subject.written(&policy.label()),
            "spec.tier",
            message,
            "create the Tier, or correct the name; `calicoctl` refuses a policy of a tier that does not exist, kubectl does not",
        )
        .asking(asks)
        .shown(Shown::Itself)
        .of_any_tier(),
    )
}

/// A rule as written, with its direction and index.
type WrittenRule = (Direction, usize, Value);

fn written_rules(subject: &Subject<'_>, policy: &Ranked<'_>) -> Vec<WrittenRule> {
    let Some(written) = subject.written(&policy.label()) else {
        return Vec::new();
    };
    let value = written.value();
    let mut out = Vec::new();
    for direction in DIRECTIONS {
        let rules = value.pointer(&format!("/spec/{}", direction.key()));
        let rules = rules.and_then(Value::as_array).into_iter().flatten();
        out.extend(
            rules
                .enumerate()
                .map(|(index, rule)| (direction, index, rule.clone())),
        );
    }
    out
}

/// Methods and paths, which nothing looks at.
fn http<'a>(
    subject: &Subject<'a>,
    policy: &Ranked<'_>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    for (direction, index, rule) in written_rules(subject, policy) {
        let some = |key: &str| {
            let list = rule.pointer(&format!("/http/{key}")).and_then(Value::as_array);
            list.is_some_and(|list| !list.is_empty())
        };
        if direction != Direction::Ingress || !(some("methods") || some("paths")) {
            continue;
        }
        let wanted = "be allowed for these methods and paths alone";
        let asks = packets(policy, direction, Some(index), wanted, witnesses);
        drafts.push(
            Draft::about(
                rules::HTTP_RULE,
                subject.written(&policy.label()),
                format!("spec.{}[{index}].http", direction.key()),
                "methods and paths are not evaluated: the rule matches every connection to its ports, and every verdict is \
                 incomplete",
                "leave `http` out and restrict peers and ports; check requests in the service itself or in a proxy",
            )
            .asking(asks)
            .shown(Shown::Itself)
            .of_any_tier(),
        );
    }
}

/// Service accounts that no pod has.
fn accounts<'a>(
    subject: &Subject<'a>,
    policy: &Ranked<'_>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    for (direction, index, rule) in written_rules(subject, policy) {
        for side in ["source", "destination"] {
            let names = rule.pointer(&format!("/{side}/serviceAccounts/names"));
            let names: Vec<&str> = names
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if names.is_empty() {
                continue;
            }
            let elsewhere = rule.pointer(&format!("/{side}/namespaceSelector")).is_some();
            let own = (policy.id.kind == PolicyKind::CalicoNetworkPolicy && !elsewhere)
                .then_some(policy.id.namespace.as_str());
            let known = subject.accounts(own);
            // Unknown without pods and accounts.
            if subject.accounts(None).is_empty() {
                continue;
            }
            for (place, name) in names
                .iter()
                .enumerate()
                .filter(|(_, name)| !known.contains(**name))
            {
                drafts.push(account(
                    subject,
                    policy,
                    (direction, index),
                    &format!("{side}.serviceAccounts.names[{place}]"),
                    (name, own, &known),
                    witnesses,
                ));
            }
        }
    }
}

fn account<'a>(
    subject: &Subject<'a>,
    policy: &Ranked<'_>,
    (direction, index): (Direction, usize),
    field: &str,
    (name, own, known): (&str, Option<&str>, &BTreeSet<String>),
    witnesses: &mut Witnesses<'_>,
) -> Draft<'a> {
    let near = known
        .iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(alike, _)| *alike > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let near = near.map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"));
    let whose = own.map_or_else(String::new, |own| format!(" of namespace {own}"));
    let message = format!(
        "no pod{whose} runs as ServiceAccount {name}, and there is no such account: the name matches nothing{near}"
    );
    let asks = packets(
        policy,
        direction,
        None,
        "match the pods of the account",
        witnesses,
    );
    Draft::about(
        rules::UNKNOWN_SERVICE_ACCOUNT,
        subject.written(&policy.label()),
        format!("spec.{}[{index}].{field}", direction.key()),
        message,
        "correct the name, or name the namespace of the account by a namespaceSelector",
    )
    .asking(asks)
    .shown(Shown::Itself)
    .of_any_tier()
}

/// `matchLabels: {role: }` in a cluster-wide policy: an API server removes the label, and the selector matches everything.
fn labels_without_value<'a>(
    subject: &Subject<'a>,
    policy: &Ranked<'_>,
    witnesses: &mut Witnesses<'_>,
    drafts: &mut Vec<Draft<'a>>,
) {
    let Some(written) = subject
        .written(&policy.label())
        .filter(|_| !policy.id.kind.is_calico())
    else {
        return;
    };
    let mut found = Vec::new();
    nulls(
        written.value().get("spec").unwrap_or(&Value::Null),
        "spec",
        &mut found,
    );
    for (path, key) in found {
        let message = format!(
            "label {key} has no value, so an API server removes it from the selector, which then matches whatever value the \
             label has"
        );
        let wanted = "depend on the label";
        let asks: Vec<Ask> = DIRECTIONS
            .into_iter()
            .filter(|direction| policy.rules(*direction).is_some())
            .flat_map(|direction| packets(policy, direction, None, wanted, witnesses))
            .collect();
        drafts.push(
            Draft::about(
                rules::NULL_LABEL,
                Some(written),
                path.clone(),
                message,
                "write the value, \"\" for an empty one, or `matchExpressions` with `operator: Exists` for any",
            )
            .asking(asks)
            .shown(Shown::Itself)
            .of_any_tier(),
        );
    }
}

/// The labels of selectors that have no value: where, and their keys.
fn nulls(value: &Value, at: &str, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = join(at, key);
                if value.is_null() && at.ends_with(".matchLabels") {
                    out.push((path, key.clone()));
                } else {
                    nulls(value, &path, out);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                nulls(item, &format!("{at}[{index}]"), out);
            }
        }
        _ => {}
    }
}
