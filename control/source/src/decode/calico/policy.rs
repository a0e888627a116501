//! NetworkPolicy and GlobalNetworkPolicy of Calico, and their staged forms.

use std::collections::BTreeSet;

use ringwall_policy::{
    Action, DEFAULT_TIER, Fault, Object, ObjectKey, Order, PolicyId, PolicyKind, TieredPolicy, TieredRule,
};
use serde_json::Value;

use super::{
    super::{
        Origin,
        field::{
            Fields, boolean, dns_label, dns_subdomain, fault, item, join, list, present, string, wrong_type,
        },
        policy::{self, Findings},
    },
    Direction, Input, Kind, ObjectText, PolicyInput, Read, StagedAction, StagedInput, StagedPolicyInput,
    objects::{known, order},
    rules::{Globals, Rules, expression, kind_name, nulls, too_many_terms},
    selector::Expression,
    terms::{self, NAMESPACE, OF_ACCOUNT, OF_NAMESPACE},
};

/// Fields of every policy.
const FIELDS: [&str; 8] = [
    "tier",
    "order",
    "selector",
    "serviceAccountSelector",
    "types",
    "ingress",
    "egress",
    "performanceHints",
];

/// Those of the policies of the whole cluster alone.
const GLOBAL_FIELDS: [&str; 4] = ["namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward"];

const STAGED_ACTION: &str = "stagedAction";

/// A policy, lowered as far as it goes by itself.
struct Lowered {
    policy: TieredPolicy,
    input: PolicyInput,
    /// What it is for, where pods are none of it (TIERS 98.2).
    beside_pods: Option<&'static str>,
}

/// Reads a policy, in force or staged.
///
/// # Errors
/// It cannot be read whom it is for, where it stands or what is a rule of it (TIERS 72.5). Not of a staged one, of which
/// nothing is enforced.
pub(in super::super) fn policy(
    kind: Kind,
    place: ObjectText<'_>,
    uid: String,
    findings: &mut Findings,
) -> Result<Read, Fault> {
    let Some((policy_kind, enforced)) = kind.policy() else {
        return Ok(Read::ignored(kind));
    };
    let action = match enforced {
        true => StagedAction::Set,
        false => staged_action(place, findings),
    };
    let lowered = match lowered(policy_kind, enforced, place, uid, findings) {
        Ok(lowered) => lowered,
        Err(wrong) if enforced => return Err(wrong),
        Err(wrong) => {
            findings.faults.push(wrong);
            return Ok(Read::ignored(kind));
        }
    };
    if !enforced {
        // Nothing of it is in force, so nothing is incomplete.
        findings.unevaluated.clear();
        if action == StagedAction::Delete {
            deletes_alone(place, &FIELDS, findings);
        }
        return Ok(Read::input(
            kind,
            Input::Staged(Box::new(StagedInput {
                kind: kind.name(),
                key: ObjectKey {
                    namespace: lowered.policy.id.namespace.clone(),
                    name: lowered.policy.id.name.clone(),
                },
                action,
                policy: StagedPolicyInput::Calico(lowered.policy, lowered.input),
            })),
        ));
    }
    let Lowered {
        mut policy,
        input,
        beside_pods,
    } = lowered;
    Ok(match beside_pods {
        Some(what) => Read {
            object: Object::Unevaluated {
                kind: format!("{what} {}", kind_name(policy_kind)),
            },
            input: None,
        },
        None => {
            policy.faults = std::mem::take(&mut findings.faults);
            Read {
                object: Object::Tiered(policy),
                input: Some(Input::Policy(input)),
            }
        }
    })
}

/// `stagedAction`; absent is Set.
fn staged_action(place: ObjectText<'_>, findings: &mut Findings) -> StagedAction {
    let read = place
        .spec()
        .and_then(|(spec, at)| Ok((string(spec, &at, STAGED_ACTION)?, at)));
    match read {
        Ok((None | Some("Set"), _)) => StagedAction::Set,
        Ok((Some("Delete"), _)) => StagedAction::Delete,
        Ok((Some("Learn"), _)) => StagedAction::Learn,
        Ok((Some("Ignore"), _)) => StagedAction::Ignore,
        Ok((Some(other), at)) => {
            let message = format!("{other:?} is not a staged action: write Set, Delete, Learn or Ignore");
            findings.faults.push(fault(join(&at, STAGED_ACTION), message));
            StagedAction::Set
        }
        Err(wrong) => {
            findings.faults.push(wrong);
            StagedAction::Set
        }
    }
}

/// A staged deletion says nothing else than of which tier it is.
fn deletes_alone(place: ObjectText<'_>, fields: &[&str], findings: &mut Findings) {
    let Ok((spec, at)) = place.spec() else { return };
    let fields = fields.iter().chain(&GLOBAL_FIELDS).filter(|key| **key != "tier");
    for key in fields.filter(|key| present(spec, key).is_some_and(|value| !is_zero(value))) {
        findings.faults.push(fault(
            join(&at, key),
            "cannot be combined with stagedAction: Delete: leave it out",
        ));
    }
}

/// Whether a value is what an absent one reads as.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(it) => !it,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A StagedKubernetesNetworkPolicy: a NetworkPolicy that is not enforced.
pub(super) fn staged_kubernetes(place: ObjectText<'_>, uid: String, findings: &mut Findings) -> Read {
    let action = staged_action(place, findings);
    if action == StagedAction::Delete {
        deletes_alone(
            place,
            &["podSelector", "ingress", "egress", "policyTypes"],
            findings,
        );
    }
    let at = join(place.at, "spec");
    match present(place.root, "spec") {
        Some(Value::Object(spec)) => stricter_than_kubernetes(spec, &at, findings),
        Some(_) => {}
        None => findings
            .faults
            .push(fault(&at, "is missing: an API server refuses that; write it")),
    }
    let mut root = place.root.clone();
    if let Some(Value::Object(spec)) = root.get_mut("spec") {
        spec.remove(STAGED_ACTION);
    }
    let mut own = Findings::default();
    // Metadata has been read.
    let network_policy =
        policy::network_policy(&root, place.at, place.key.clone(), uid, Origin::Server, &mut own);
    findings.notes.append(&mut own.notes);
    findings.faults.extend(network_policy.faults.iter().cloned());
    Read::input(
        Kind::StagedKubernetesNetworkPolicy,
        Input::Staged(Box::new(StagedInput {
            kind: Kind::StagedKubernetesNetworkPolicy.name(),
            key: place.key.clone(),
            action,
            policy: StagedPolicyInput::Kubernetes(network_policy),
        })),
    )
}

/// What the CRD refuses and a NetworkPolicy may have.
fn stricter_than_kubernetes(spec: &Fields, at: &str, findings: &mut Findings) {
    let mut refuse = |at: String, why: &str| findings.faults.push(fault(at, why));
    if let Some(Value::Array(types)) = spec.get("policyTypes") {
        let at = join(at, "policyTypes");
        if types.is_empty() {
            refuse(
                at.clone(),
                "is empty: write Ingress, Egress or both, or leave it out",
            );
        }
        for (index, kind) in types.iter().enumerate() {
            if types.iter().take(index).any(|before| before == kind) {
                refuse(item(&at, index), "is listed twice: an API server refuses that");
            }
        }
    }
    let list = |fields: &Fields, key: &str| match fields.get(key) {
        Some(Value::Array(items)) => items.clone(),
        _ => Vec::new(),
    };
    for direction in ["ingress", "egress"] {
        for (index, rule) in list(spec, direction).iter().enumerate() {
            let at = item(&join(at, direction), index);
            let Value::Object(rule) = rule else {
                if rule.is_null() {
                    refuse(at, "is null: write a rule, or {} for everything");
                }
                continue;
            };
            for (index, port) in list(rule, "ports").iter().enumerate() {
                if port.is_null() {
                    refuse(
                        item(&join(&at, "ports"), index),
                        "is null: write a port, or leave it out",
                    );
                }
            }
        }
    }
}

/// A NetworkPolicy that an annotation stages.
pub(crate) fn staged_by_annotation(network_policy: ringwall_policy::NetworkPolicy) -> Input {
    Input::Staged(Box::new(StagedInput {
        kind: "NetworkPolicy",
        key: network_policy.key.clone(),
        action: StagedAction::Set,
        policy: StagedPolicyInput::Kubernetes(network_policy),
    }))
}

fn lowered(
    kind: PolicyKind,
    enforced: bool,
    place: ObjectText<'_>,
    uid: String,
    findings: &mut Findings,
) -> Result<Lowered, Fault> {
    let global = kind == PolicyKind::GlobalNetworkPolicy;
    name(global, place, findings);
    let spec_at = join(place.at, "spec");
    let spec = match present(place.root, "spec") {
        Some(Value::Object(spec)) => spec,
        None => {
            return Err(fault(
                spec_at,
                "is missing: write the selector of the policy and its rules",
            ));
        }
        Some(other) => return Err(fault(spec_at, wrong_type(other, "a mapping"))),
    };
    let mut fields = FIELDS.to_vec();
    fields.extend(GLOBAL_FIELDS.into_iter().filter(|_| global));
    fields.extend((!enforced).then_some(STAGED_ACTION));
    known(spec, &spec_at, &fields)?;
    nulls(spec, &spec_at, &mut findings.notes);
    let namespace = (!global).then_some(place.key.namespace.as_str());
    let tier = tier(spec, &spec_at)?;
    let order = order(spec, &spec_at)?.unwrap_or(Order::LAST);
    let subject = subject(spec, &spec_at, namespace)?;
    let Ok(subjects) = terms::pods(&subject) else {
        return Err(too_many_terms(&spec_at));
    };
    let flags = Flags::read(spec, &spec_at, findings)?;
    hints(spec, &spec_at, findings);
    let mut rules = Rules {
        kind,
        namespace,
        findings,
        unevaluated: BTreeSet::new(),
        awaiting: Vec::new(),
        accounts: subjects
            .iter()
            .any(|subject| terms::asks_for_accounts(&subject.pods)),
        not_understood: 0,
    };
    let mut ingress = rules.read(spec, &spec_at, Direction::Ingress)?;
    let mut egress = rules.read(spec, &spec_at, Direction::Egress)?;
    let Rules {
        mut unevaluated,
        mut awaiting,
        accounts,
        not_understood,
        ..
    } = rules;
    let types = Types::read(spec, &spec_at, &ingress, &egress, findings)?;
    // Of a direction that the policy has no part in, nothing is in force.
    awaiting.retain(|it| types.has(it.direction));
    if flags.apply_on_forward && enforced {
        let what = format!("applyOnForward of {}", kind_name(kind));
        unevaluated.insert(what);
        findings.unevaluated.push(fault(
            join(&spec_at, "applyOnForward"),
            "traffic forwarded through host endpoints is not evaluated: every verdict is incomplete",
        ));
    }
    // An API server would refuse it as a whole: nothing passes because of it.
    if findings.faults.len() > not_understood {
        awaiting.retain(|it| {
            let rules = match it.direction {
                Direction::Ingress => &ingress,
                Direction::Egress => &egress,
            };
            rules
                .get(it.rule)
                .is_some_and(|rule| rule.action != Action::Allow)
        });
        ingress.iter_mut().chain(&mut egress).for_each(close);
        if let Some(first) = findings.faults.first_mut() {
            first.message.push_str(
                "; as it stands, an API server refuses the policy, so its rules allow nothing and deny what they would pass",
            );
        }
    }
    let id = PolicyId {
        kind,
        namespace: namespace.unwrap_or_default().to_owned(),
        name: place.key.name.clone(),
    };
    Ok(Lowered {
        policy: TieredPolicy {
            id,
            uid,
            tier,
            order,
            answer: None,
            subjects,
            ingress: types.ingress.then_some(ingress),
            egress: types.egress.then_some(egress),
            faults: Vec::new(),
            unevaluated,
        },
        input: PolicyInput {
            subject: global.then_some(subject),
            rules: awaiting,
            accounts,
        },
        beside_pods: flags.beside_pods,
    })
}

/// Makes of a rule that is understood one that lets nothing pass: its object is refused for something else.
fn close(rule: &mut TieredRule) {
    match rule.action {
        Action::Allow => *rule = TieredRule::not_understood(Action::Allow),
        Action::Pass => rule.action = Action::Deny,
        Action::Deny | Action::Log => {}
    }
}

/// Names have at most one dot; Calico's own of Kubernetes' policies have more.
fn name(global: bool, place: ObjectText<'_>, findings: &mut Findings) {
    let name = place.key.name.as_str();
    let simple = |name: &str| match name.split_once('.') {
        Some((tier, rest)) => dns_label_of_any_length(tier) && dns_label_of_any_length(rest),
        None => dns_label_of_any_length(name),
    };
    let of_kubernetes = ["knp.default.", "ossg.default."]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(dns_subdomain));
    if !simple(name) && (global || !of_kubernetes) {
        findings.faults.push(fault(
            join(&join(place.at, "metadata"), "name"),
            format!("{name:?} is not the name of a policy of Calico: write lower case letters, digits and '-', with one '.' at most"),
        ));
    }
}

fn dns_label_of_any_length(text: &str) -> bool {
    !text.contains('.') && dns_subdomain(text)
}

/// The name of a policy's tier; absent or empty is the default one.
fn tier(spec: &Fields, at: &str) -> Result<String, Fault> {
    match string(spec, at, "tier")? {
        None | Some("") => Ok(DEFAULT_TIER.to_owned()),
        Some(name) if dns_label(name) => Ok(name.to_owned()),
        Some(other) => Err(fault(
            join(at, "tier"),
            format!("{other:?} is not the name of a tier: write lower case letters, digits and '-'"),
        )),
    }
}

/// What a policy selects (TIERS 98).
fn subject(spec: &Fields, at: &str, namespace: Option<&str>) -> Result<Expression, Fault> {
    let mut own = Findings::default();
    let mut read = |key| expression(spec, at, key, Globals::Refused, &mut own);
    let selector = read("selector");
    let namespaces = read("namespaceSelector");
    let accounts = read("serviceAccountSelector");
    if let Some(wrong) = own.faults.into_iter().next() {
        return Err(wrong);
    }
    let none = Expression::Global;
    let mut parts = Vec::new();
    parts.extend(namespace.map(|namespace| Expression::is(NAMESPACE, namespace)));
    // TIERS 98.1
    parts.extend(namespaces.map(|it| it.prefixed(OF_NAMESPACE, &Expression::has(NAMESPACE), &none)));
    parts.extend(accounts.map(|it| {
        let all = match namespace {
            Some(_) => Expression::All,
            None => Expression::has(terms::ACCOUNT),
        };
        it.prefixed(OF_ACCOUNT, &all, &none)
    }));
    parts.extend(selector);
    Ok(Expression::And(parts))
}

/// Which directions a policy has a part in.
struct Types {
    ingress: bool,
    egress: bool,
}

impl Types {
    /// `types`; absent, by the rules that there are (TIERS 80.1).
    fn read(
        spec: &Fields,
        at: &str,
        ingress: &[TieredRule],
        egress: &[TieredRule],
        findings: &mut Findings,
    ) -> Result<Self, Fault> {
        let path = join(at, "types");
        if present(spec, "types").is_none() {
            return Ok(Self {
                ingress: egress.is_empty() || !ingress.is_empty(),
                egress: !egress.is_empty(),
            });
        }
        let entries = list(spec, at, "types")?;
        if entries.is_empty() {
            return Err(fault(
                path,
                "is empty: write Ingress, Egress or both, or leave it out",
            ));
        }
        let mut types = Self {
            ingress: false,
            egress: false,
        };
        for (index, entry) in entries.iter().enumerate() {
            let direction = match entry.as_str() {
                Some("Ingress") => &mut types.ingress,
                Some("Egress") => &mut types.egress,
                _ => {
                    let message = format!("{entry} is not a type of policy: write Ingress or Egress");
                    return Err(fault(item(&path, index), message));
                }
            };
            if std::mem::replace(direction, true) {
                let message = format!("{entry} is listed twice: an API server refuses that");
                findings.faults.push(fault(item(&path, index), message));
            }
        }
        for (direction, rules) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            if !rules.is_empty() && !types.has(direction) {
                let message = "has no effect, since types does not name this direction";
                findings.notes.push(fault(join(at, direction.key()), message));
            }
        }
        Ok(types)
    }

    fn has(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// Which of a host's traffic a policy of the whole cluster is for.
struct Flags {
    /// What it is for instead of pods.
    beside_pods: Option<&'static str>,
    apply_on_forward: bool,
}

impl Flags {
    fn read(spec: &Fields, at: &str, findings: &mut Findings) -> Result<Self, Fault> {
        let [untracked, pre_dnat, apply_on_forward] =
            ["doNotTrack", "preDNAT", "applyOnForward"].map(|key| boolean(spec, at, key));
        let (untracked, pre_dnat, apply_on_forward) = (untracked?, pre_dnat?, apply_on_forward?);
        let egress = list(spec, at, "egress").is_ok_and(|rules| !rules.is_empty());
        let of_egress =
            list(spec, at, "types").is_ok_and(|types| types.iter().any(|it| it.as_str() == Some("Egress")));
        let wrong = [
            (
                untracked && pre_dnat,
                "preDNAT",
                "cannot be true together with doNotTrack",
            ),
            (
                pre_dnat && egress,
                "egress",
                "cannot be combined with preDNAT: true",
            ),
            (
                pre_dnat && of_egress,
                "types",
                "cannot have Egress beside preDNAT: true",
            ),
            (
                (untracked || pre_dnat) && !apply_on_forward,
                "applyOnForward",
                "must be true beside doNotTrack: true and preDNAT: true",
            ),
        ];
        let wrong = wrong.into_iter().filter(|(wrong, ..)| *wrong);
        findings
            .faults
            .extend(wrong.map(|(_, key, message)| fault(join(at, key), message)));
        Ok(Self {
            beside_pods: match (untracked, pre_dnat) {
                (true, _) => Some("doNotTrack"),
                (false, true) => Some("preDNAT"),
                (false, false) => None,
            },
            apply_on_forward,
        })
    }
}

/// `performanceHints` change no verdict.
fn hints(spec: &Fields, at: &str, findings: &mut Findings) {
    const HINT: &str = "AssumeNeededOnEveryNode";
    let path = join(at, "performanceHints");
    match list(spec, at, "performanceHints") {
        Ok(hints) => {
            for (index, hint) in hints.iter().enumerate() {
                let wrong = match hint.as_str() {
                    Some(HINT) if index == 0 => continue,
                    Some(HINT) => "is listed twice: an API server refuses that".to_owned(),
                    _ => format!("{hint} is not a hint: write {HINT}, or leave it out"),
                };
                findings.faults.push(fault(item(&path, index), wrong));
            }
        }
        Err(wrong) => findings.faults.push(wrong),
    }
}
