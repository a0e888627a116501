//! The policies of `policy.networking.k8s.io`: ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy.
//!
//! Read as strictly as a NetworkPolicy. A rule of which anything is not understood is lowered as a whole, by what it does
//! ([`TieredRule::not_understood`], TIERS 72, 107). What only an API server minds is a fault, too: it would refuse the
//! whole object, so that nothing may pass because of it ([`close`]). Where it cannot be read whom a policy is for, where it stands in the order or what rules
//! it has, the object is an error (TIERS 72.5): to deny everything to every pod would cut off the cluster itself.

pub(super) mod nodes;
mod ports;
mod rules;
#[cfg(test)]
mod tests;

use ports::{port_entry, protocol_entry};
use ringwall_policy::{
    Action, Fault, KUBE_ADMIN, KUBE_BASELINE, Order, PodSelection, PolicyId, PolicyKind, PortMatch, Selector,
    TieredPolicy, TieredRule,
};
use rules::{Direction, List, Rules};
use serde_json::Value;

use super::{
    Origin,
    calico::PolicyInput,
    field::{Fields, fault, join, kind_of, mapping, only_hinting, present, string, whole, wrong_type},
    policy::{Findings, Nulls, metadata, selector},
};

/// The API group of these kinds.
pub(super) const GROUP: &str = "policy.networking.k8s.io";

/// API groups of others that have a kind of one of these names.
pub(super) const OTHER_GROUPS: [&str; 2] = ["crd.antrea.io", "security.antrea.tanzu.vmware.com"];

/// How one of the kinds writes what all of them say.
pub(super) struct Dialect {
    kind: PolicyKind,
    api_version: &'static str,
    /// The name that every policy of the kind has; None where they are named as one likes.
    name: Option<&'static str>,
    /// Where they stand; None where `spec` says so.
    tier: Option<&'static str>,
    priority: Option<u16>,
    /// The action that allows.
    allow: &'static str,
    /// Whether rules can pass.
    passes: bool,
    /// The field of a rule with its ports, and what reads an entry of it.
    ports: &'static str,
    port: fn(&Fields, &str, &mut List<PortMatch>, &mut Findings),
    /// The fields of a peer of egress.
    egress_peers: &'static [&'static str],
    /// Most rules of a direction, peers and ports of a rule.
    most: usize,
    /// Whether who selects pods has to select their namespaces, too.
    both_selectors: bool,
}

const CLUSTER: Dialect = Dialect {
    kind: PolicyKind::ClusterNetworkPolicy,
    api_version: "policy.networking.k8s.io/v1alpha2",
    name: None,
    tier: None,
    priority: None,
    allow: "Accept",
    passes: true,
    ports: "protocols",
    port: protocol_entry,
    egress_peers: &["namespaces", "pods", "networks", "nodes", "domainNames"],
    most: 25,
    both_selectors: false,
};

const ADMIN: Dialect = Dialect {
    kind: PolicyKind::AdminNetworkPolicy,
    api_version: "policy.networking.k8s.io/v1alpha1",
    tier: Some(KUBE_ADMIN),
    allow: "Allow",
    ports: "ports",
    port: port_entry,
    most: 100,
    both_selectors: true,
    ..CLUSTER
};

const BASELINE: Dialect = Dialect {
    kind: PolicyKind::BaselineAdminNetworkPolicy,
    name: Some("default"),
    tier: Some(KUBE_BASELINE),
    // TIERS 86.6
    priority: Some(1000),
    passes: false,
    egress_peers: &["namespaces", "pods", "networks", "nodes"],
    ..ADMIN
};

static DIALECTS: [Dialect; 3] = [CLUSTER, ADMIN, BASELINE];

/// The fields of a subject and of a peer of ingress.
const PODS: &[&str] = &["namespaces", "pods"];

/// The greatest priority.
const MOST_PRIORITY: u16 = 1000;

/// What a kind is: one that is decoded, one that was meant to be; None for another.
pub(super) fn dialect(kind: &str, api_version: &str, at: &str) -> Option<Result<&'static Dialect, Fault>> {
    let lower = kind.trim().to_ascii_lowercase();
    let singular = match lower.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => lower,
    };
    let dialect = DIALECTS
        .iter()
        .find(|it| it.kind.name().to_ascii_lowercase() == singular)?;
    let name = dialect.kind.name();
    Some(if kind != name {
        let message = format!("there is no {kind:?}: write {name}");
        Err(fault(join(at, "kind"), message))
    } else if api_version != dialect.api_version {
        let message = format!("{api_version:?} has no {name}: write {}", dialect.api_version);
        Err(fault(join(at, "apiVersion"), message))
    } else {
        Ok(dialect)
    })
}

/// Reads a policy, and what its rules await of nodes.
///
/// # Errors
/// It cannot be read whom it is for, where it stands, or what is a rule of it.
pub(super) fn policy(
    dialect: &Dialect,
    root: &Fields,
    at: &str,
    name: &str,
    uid: String,
    origin: Origin,
    findings: &mut Findings,
) -> Result<(TieredPolicy, Option<PolicyInput>), Fault> {
    if origin == Origin::Folder {
        // Rules that stand beside `spec` would be lost.
        known(root, at, &["apiVersion", "kind", "metadata", "spec", "status"])?;
        metadata(root, at, None, name, findings);
        let namespace = root
            .get("metadata")
            .and_then(|metadata| metadata.get("namespace"));
        if namespace.is_some_and(|namespace| !namespace.is_null()) {
            findings.notes.push(fault(
                join(&join(at, "metadata"), "namespace"),
                format!(
                    "a {} has no namespace, and this one has no effect: remove it",
                    dialect.kind.name()
                ),
            ));
        }
    }
    if let Some(only) = dialect.name.filter(|only| *only != name) {
        findings.faults.push(fault(
            join(&join(at, "metadata"), "name"),
            format!("{name:?} is refused by an API server, which allows only one such policy: write {only}"),
        ));
    }
    let spec_at = join(at, "spec");
    let spec = match present(root, "spec") {
        Some(Value::Object(spec)) => spec,
        None => {
            return Err(fault(
                spec_at,
                "is missing: write the subject of the policy and its rules",
            ));
        }
        Some(other) => return Err(fault(spec_at, wrong_type(other, "a mapping"))),
    };
    let places = [
        ("tier", dialect.tier.is_none()),
        ("priority", dialect.priority.is_none()),
    ];
    let places = places.into_iter().filter(|(_, said)| *said).map(|(key, _)| key);
    let fields: Vec<&str> = places.chain(["subject", "ingress", "egress"]).collect();
    known(spec, &spec_at, &fields)?;
    let tier = match dialect.tier {
        Some(tier) => tier,
        None => tier(spec, &spec_at)?,
    };
    let priority = match dialect.priority {
        Some(priority) => priority,
        None => priority(spec, &spec_at)?,
    };
    let (namespaces, pods) = subject(spec, &spec_at, dialect, findings)?;
    let mut rules = Rules::of(dialect, findings);
    let mut ingress = rules.read(spec, &spec_at, Direction::Ingress)?;
    let mut egress = rules.read(spec, &spec_at, Direction::Egress)?;
    let (unevaluated, of_rules, mut nodes) = (rules.unevaluated, rules.not_understood, rules.nodes);
    // An API server would refuse it as a whole: nothing passes because of it.
    if findings.faults.len() > of_rules {
        ingress.iter_mut().chain(&mut egress).for_each(close);
        nodes.retain(|peer| {
            egress
                .get(peer.rule)
                .is_some_and(|rule| rule.action != Action::Allow)
        });
        if let Some(first) = findings.faults.first_mut() {
            first.message.push_str(
                "; as it stands, an API server refuses the policy, so its rules allow nothing and deny what they would pass",
            );
        }
    }
    // Without rules it has no part in a direction (TIERS 71).
    let part = |rules: Vec<TieredRule>| Some(rules).filter(|rules| !rules.is_empty());
    let awaits = Some(PolicyInput::of_nodes(nodes)).filter(PolicyInput::awaits);
    let policy = TieredPolicy {
        id: PolicyId {
            kind: dialect.kind,
            namespace: String::new(),
            name: name.to_owned(),
        },
        uid,
        tier: tier.to_owned(),
        order: Order::of_priority(priority),
        answer: None,
        subjects: vec![PodSelection { namespaces, pods }],
        ingress: part(ingress),
        egress: part(egress),
        faults: std::mem::take(&mut findings.faults),
        unevaluated,
    };
    Ok((policy, awaits))
}

/// Makes of a rule that is understood one that lets nothing pass: its object is refused for something else.
fn close(rule: &mut TieredRule) {
    match rule.action {
        Action::Allow => *rule = TieredRule::not_understood(Action::Allow),
        Action::Pass => rule.action = Action::Deny,
        Action::Deny | Action::Log => {}
    }
}

/// Refuses fields that may have been meant as anything.
fn known(fields: &Fields, at: &str, known: &[&str]) -> Result<(), Fault> {
    let mut faults = Vec::new();
    only_hinting(fields, at, known, &mut faults, |key| match key {
        "ingress" | "egress" | "subject" | "tier" | "priority" if !known.contains(&"subject") => {
            Some("it belongs in spec, one level deeper")
        }
        "tier" => Some("this kind belongs to one tier: remove it, or write a ClusterNetworkPolicy"),
        "priority" => Some("only one such policy exists: remove it"),
        "policyTypes" => Some("a direction without rules is not affected: remove it"),
        "podSelector" => Some("write subject: {pods: {namespaceSelector: {}, podSelector: ...}}"),
        "from" | "to" | "action" => Some("it belongs in a rule of ingress or egress, one level deeper"),
        "namespaces" | "pods" => Some("it belongs in subject, one level deeper"),
        _ => None,
    });
    faults.into_iter().next().map_or(Ok(()), Err)
}

fn tier(spec: &Fields, at: &str) -> Result<&'static str, Fault> {
    let both = "Admin (before NetworkPolicies) or Baseline (after them)";
    match string(spec, at, "tier")? {
        Some("Admin") => Ok(KUBE_ADMIN),
        Some("Baseline") => Ok(KUBE_BASELINE),
        None => Err(fault(join(at, "tier"), format!("is missing: write {both}"))),
        Some(other) => {
            let meant = ["Admin", "Baseline"]
                .into_iter()
                .find(|it| it.eq_ignore_ascii_case(other));
            let write = meant.unwrap_or(both);
            let message = format!("{other:?} is not a tier: write {write}");
            Err(fault(join(at, "tier"), message))
        }
    }
}

fn priority(spec: &Fields, at: &str) -> Result<u16, Fault> {
    let wanted = format!("write a number from 0 to {MOST_PRIORITY}; the smallest comes first");
    let wrong = |what: String| fault(join(at, "priority"), format!("{what}: {wanted}"));
    let Some(value) = present(spec, "priority") else {
        return Err(wrong("is missing".to_owned()));
    };
    whole(value)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number <= MOST_PRIORITY)
        .ok_or_else(|| match value {
            Value::Number(_) => wrong(format!("{value} is not a priority")),
            other => wrong(format!("must be a whole number, not {}", kind_of(other))),
        })
}

/// Labels of the namespaces and of the pods that a policy is for.
fn subject(
    spec: &Fields,
    at: &str,
    dialect: &Dialect,
    findings: &mut Findings,
) -> Result<(Selector, Selector), Fault> {
    let path = join(at, "subject");
    let fields = mapping(spec, at, "subject")?;
    let mut own = Findings::default();
    only_hinting(fields, &path, PODS, &mut own.faults, |key| match key {
        "podSelector" | "namespaceSelector" => Some("it belongs in pods, one level deeper"),
        "matchLabels" | "matchExpressions" => Some("it belongs in namespaces, one level deeper"),
        _ => None,
    });
    let wrong = |message: &str| Err(fault(path.clone(), message));
    let read = match (own.faults.pop(), given(fields, PODS).as_slice()) {
        (Some(unknown), _) => return Err(unknown),
        (None, []) => {
            return wrong(
                "selects nothing: write namespaces: {} for every pod of the cluster, or a selector",
            );
        }
        (None, [one]) => pods(fields, &path, one, dialect, &mut own),
        (None, _) => {
            return wrong("has namespaces and pods: write one of them; pods has a namespaceSelector, too");
        }
    };
    findings.notes.append(&mut own.notes);
    match (own.faults.into_iter().next(), read) {
        (None, Some(selectors)) => Ok(selectors),
        (Some(wrong), _) => Err(wrong),
        (None, None) => wrong("cannot be read"),
    }
}

/// Which of some fields are there.
fn given<'a>(fields: &Fields, of: &[&'a str]) -> Vec<&'a str> {
    of.iter()
        .copied()
        .filter(|key| present(fields, key).is_some())
        .collect()
}

/// Selectors of namespaces and of pods in them, from the field `namespaces` or `pods`. None, with a fault, where one of
/// them cannot be read.
fn pods(
    fields: &Fields,
    at: &str,
    key: &str,
    dialect: &Dialect,
    findings: &mut Findings,
) -> Option<(Selector, Selector)> {
    if key == "namespaces" {
        let namespaces = selector(fields, at, key, Nulls::Dropped, findings)?;
        return Some((namespaces, Selector::default()));
    }
    let path = join(at, key);
    let fields = match mapping(fields, at, key) {
        Ok(fields) => fields,
        Err(wrong) => {
            findings.faults.push(wrong);
            return None;
        }
    };
    let before = findings.faults.len();
    only_hinting(
        fields,
        &path,
        &["namespaceSelector", "podSelector"],
        &mut findings.faults,
        |key| match key {
            "namespaces" => Some("write namespaceSelector, with what the selector in it has"),
            "matchLabels" | "matchExpressions" => Some("it belongs in podSelector, one level deeper"),
            _ => None,
        },
    );
    let mut required = vec![("podSelector", "every pod of these namespaces")];
    if dialect.both_selectors {
        required.push(("namespaceSelector", "every namespace"));
    }
    for (key, all) in required {
        if present(fields, key).is_none() {
            let message = format!("is missing: write {key}: {{}} for {all}, or a selector");
            findings.faults.push(fault(join(&path, key), message));
        }
    }
    // Both are read, so that the faults of both are told.
    let namespaces = selector(fields, &path, "namespaceSelector", Nulls::Dropped, findings);
    let pods = selector(fields, &path, "podSelector", Nulls::Dropped, findings);
    (findings.faults.len() == before).then_some((namespaces?, pods?))
}
