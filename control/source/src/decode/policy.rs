//! A `networking.k8s.io/v1` NetworkPolicy: read strictly, defaulted, validated as an API server does.

use std::collections::BTreeSet;

use ipnet::IpNet;
use ringwall_policy::{
    Fault, NetworkPolicy, ObjectKey, Operator, Peer, PortMatch, Protocol, Requirement, Rule, Selector,
};
use serde_json::Value;

use super::{
    Origin,
    field::{
        Fields, NO_FIELDS, bad_label_key, bad_label_value, bad_port_name, cidr, dns_label, dns_subdomain,
        fault, item, join, kind_of, list, mapping, only, only_hinting, present, string, whole, wrong_type,
    },
    identity::time,
};

/// Collects what is wrong and what is merely odd.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) faults: Vec<Fault>,
    pub(super) notes: Vec<Fault>,
    /// What is valid and not evaluated yet.
    pub(super) unevaluated: Vec<Fault>,
}

impl Findings {
    /// More entries than an API server takes mean what they say, and are a fault.
    pub(super) fn at_most(&mut self, number: usize, most: usize, what: &str, at: &str) {
        if number > most {
            let message = format!("{number} {what} are too many: an API server accepts at most {most}");
            self.faults.push(fault(at, message));
        }
    }

    /// The entries of a list; None where there are none, or it is no list. `what` they are, in words.
    pub(super) fn entries<'f>(
        &mut self,
        fields: &'f Fields,
        at: &str,
        key: &str,
        most: usize,
        what: &str,
    ) -> Option<&'f [Value]> {
        match list(fields, at, key) {
            Ok([]) => None,
            Ok(entries) => {
                self.at_most(entries.len(), most, what, &join(at, key));
                Some(entries)
            }
            Err(wrong) => {
                self.faults.push(wrong);
                None
            }
        }
    }
}

/// What an API server makes of a label without value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nulls {
    /// In kinds that it has built in, the empty value.
    Empty,
    /// In kinds that a definition adds, nothing: it drops the label (TIERS 72.7).
    Dropped,
}

/// Which directions a policy isolates.
#[derive(Clone, Copy)]
struct Directions {
    ingress: bool,
    egress: bool,
    written: bool,
}

const BOTH: Directions = Directions {
    ingress: true,
    egress: true,
    written: false,
};

/// Reads a policy. It always comes out as something: with faults, as what it isolates.
pub(super) fn network_policy(
    root: &Fields,
    at: &str,
    key: ObjectKey,
    uid: String,
    origin: Origin,
    findings: &mut Findings,
) -> NetworkPolicy {
    if origin == Origin::Folder {
        only(
            root,
            at,
            &["apiVersion", "kind", "metadata", "spec", "status"],
            &mut findings.faults,
        );
        metadata(root, at, Some(&key.namespace), &key.name, findings);
    }
    let spec_at = join(at, "spec");
    let spec = match root.get("spec") {
        Some(Value::Object(spec)) => spec,
        None | Some(Value::Null) => {
            findings.notes.push(fault(
                &spec_at,
                "no spec: every pod of the namespace is isolated for ingress",
            ));
            &NO_FIELDS
        }
        Some(other) => {
            findings
                .faults
                .push(fault(&spec_at, wrong_type(other, "a mapping")));
            return isolating(key, uid, None, BOTH, findings);
        }
    };
    only(
        spec,
        &spec_at,
        &["podSelector", "ingress", "egress", "policyTypes"],
        &mut findings.faults,
    );

    let subjects = selector(spec, &spec_at, "podSelector", Nulls::Empty, findings);
    let directions = policy_types(spec, &spec_at, findings);
    let ingress = rules(spec, &spec_at, "ingress", "from", findings);
    let egress = rules(spec, &spec_at, "egress", "to", findings);
    if !findings.faults.is_empty() {
        return isolating(key, uid, subjects, directions, findings);
    }
    NetworkPolicy {
        key,
        uid,
        subjects: subjects.unwrap_or_default(),
        ingress: directions.ingress.then_some(ingress),
        egress: directions.egress.then_some(egress),
        types_written: directions.written,
        answer: None,
        faults: Vec::new(),
    }
}

/// Fields of an object's metadata that are strings besides its names.
const STRINGS: &[&str] = &["uid", "resourceVersion", "selfLink", "clusterName"];

/// Those that are times.
const TIMES: &[&str] = &["creationTimestamp", "deletionTimestamp"];

/// Those that are numbers.
const NUMBERS: &[&str] = &["generation", "deletionGracePeriodSeconds"];

/// Those that are lists.
const LISTS: &[&str] = &["ownerReferences", "finalizers", "managedFields"];

fn number(fields: &Fields, at: &str, key: &str) -> Result<(), Fault> {
    match present(fields, key) {
        Some(value) if whole(value).is_none() => {
            Err(fault(join(at, key), wrong_type(value, "a whole number")))
        }
        _ => Ok(()),
    }
}

/// Fields of an object's metadata.
const METADATA: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "selfLink",
    "clusterName",
];

/// Most bytes that annotations may have together.
const MOST_ANNOTATIONS: usize = 256 * 1024;

/// Names, labels and annotations. A misspelt `namespace` would put the policy into another one; None where it is
/// cluster-scoped.
pub(super) fn metadata(
    root: &Fields,
    at: &str,
    namespace: Option<&str>,
    name: &str,
    findings: &mut Findings,
) {
    let at = join(at, "metadata");
    // That it is a mapping with a name has been seen before.
    let Some(Value::Object(fields)) = root.get("metadata") else {
        return;
    };
    only(fields, &at, METADATA, &mut findings.faults);
    type Read = fn(&Fields, &str, &str) -> Result<(), Fault>;
    let read_as: [(&[&str], Read); 4] = [
        (STRINGS, |fields, at, key| string(fields, at, key).map(drop)),
        (TIMES, |fields, at, key| time(fields, at, key).map(drop)),
        (NUMBERS, number),
        (LISTS, |fields, at, key| list(fields, at, key).map(drop)),
    ];
    for (keys, read) in read_as {
        let wrong = keys.iter().filter_map(|key| read(fields, &at, key).err());
        findings.faults.extend(wrong);
    }
    if let Some(namespace) = namespace.filter(|namespace| !dns_label(namespace)) {
        findings.faults.push(fault(
            join(&at, "namespace"),
            format!(
                "{namespace:?} is not the name of a namespace: write 1 to 63 lower case letters, digits and '-', a \
                 letter or digit at both ends"
            ),
        ));
    }
    // What `generateName` begins, the server goes on.
    let written = match present(fields, "name").and_then(Value::as_str) {
        None | Some("") => "generateName",
        Some(_) => "name",
    };
    if !dns_subdomain(name.trim_end_matches('-')) || (name.ends_with('-') && written == "name") {
        findings.faults.push(fault(
            join(&at, written),
            format!(
                "{name:?} is not a name: write at most 253 lower case letters, digits, '-' and '.', a letter or digit \
                 at both ends"
            ),
        ));
    }
    match mapping(fields, &at, "labels") {
        Err(wrong) => findings.faults.push(wrong),
        Ok(labels) => {
            let labels_at = join(&at, "labels");
            for (key, value) in labels {
                let at = join(&labels_at, key);
                findings
                    .faults
                    .extend(bad_label_key(key).map(|wrong| fault(&at, wrong)));
                label_value(value, &at, Nulls::Empty, findings);
            }
        }
    }
    annotations(fields, &at, findings);
}

fn annotations(metadata: &Fields, at: &str, findings: &mut Findings) {
    let annotations = match mapping(metadata, at, "annotations") {
        Ok(annotations) => annotations,
        Err(wrong) => return findings.faults.push(wrong),
    };
    let at = join(at, "annotations");
    let mut size = 0;
    for (key, value) in annotations {
        let here = join(&at, key);
        // Keys are compared without regard to case, unlike those of labels.
        let wrong = bad_label_key(&key.to_ascii_lowercase());
        findings
            .faults
            .extend(wrong.map(|wrong| fault(&here, wrong.replace("a label", "an annotation"))));
        match value {
            Value::Null => {}
            Value::String(text) => size += key.len() + text.len(),
            other => findings.faults.push(fault(here, wrong_type(other, "a string"))),
        }
    }
    if size > MOST_ANNOTATIONS {
        findings.faults.push(fault(
            at,
            format!(
                "{size} bytes of annotations are too many: an API server accepts at most {MOST_ANNOTATIONS}"
            ),
        ));
    }
}

/// What is left of an invalid policy: isolation of what it selects, of its whole namespace where not even that can be
/// read.
fn isolating(
    key: ObjectKey,
    uid: String,
    subjects: Option<Selector>,
    directions: Directions,
    findings: &mut Findings,
) -> NetworkPolicy {
    NetworkPolicy {
        key,
        uid,
        subjects: subjects.unwrap_or_default(),
        ingress: directions.ingress.then(Vec::new),
        egress: directions.egress.then(Vec::new),
        types_written: directions.written,
        answer: None,
        faults: std::mem::take(&mut findings.faults),
    }
}

fn policy_types(spec: &Fields, at: &str, findings: &mut Findings) -> Directions {
    let path = join(at, "policyTypes");
    let types = match list(spec, at, "policyTypes") {
        Ok(types) => types,
        Err(wrong) => {
            findings.faults.push(wrong);
            return BOTH;
        }
    };
    if types.is_empty() {
        // Defaulting (SEMANTICS 22). A misspelt `egress` or `policyTypes` may have meant egress too: then both.
        let misspelt = spec.keys().any(|key| {
            let known = ["podSelector", "ingress", "egress", "policyTypes"].contains(&key.as_str());
            let lower = key.to_ascii_lowercase();
            !known && (lower.contains("egres") || lower.contains("engres") || lower.contains("type"))
        });
        let egress = match present(spec, "egress") {
            None => false,
            Some(Value::Array(rules)) => !rules.is_empty(),
            Some(_) => true,
        };
        return Directions {
            ingress: true,
            egress: egress || misspelt,
            written: false,
        };
    }
    let mut read = Directions {
        ingress: false,
        egress: false,
        written: true,
    };
    let mut unreadable = false;
    for (index, entry) in types.iter().enumerate() {
        match entry.as_str() {
            Some("Ingress") => read.ingress = true,
            Some("Egress") => read.egress = true,
            _ => {
                unreadable = true;
                findings.faults.push(fault(
                    item(&path, index),
                    match entry.as_str().map(str::to_ascii_lowercase).as_deref() {
                        Some("ingress") => format!("{entry} is not a policy type: write Ingress"),
                        Some("egress") => format!("{entry} is not a policy type: write Egress"),
                        _ => format!("{entry} is not a policy type: write Ingress or Egress"),
                    },
                ));
            }
        }
    }
    if types.len() > 2 {
        findings.faults.push(fault(
            &path,
            "may not name more than two policy types: write Ingress, Egress or both, each once",
        ));
    }
    // A type that cannot be read may have been either.
    if unreadable {
        Directions {
            written: true,
            ..BOTH
        }
    } else {
        read
    }
}

/// A selector by value or pointer; None, with a fault, where it cannot be read. Absent reads as empty.
pub(super) fn selector(
    fields: &Fields,
    at: &str,
    key: &str,
    nulls: Nulls,
    findings: &mut Findings,
) -> Option<Selector> {
    let path = join(at, key);
    let before = findings.faults.len();
    let selector = match mapping(fields, at, key) {
        Ok(it) => it,
        Err(wrong) => {
            findings.faults.push(wrong);
            return None;
        }
    };
    only_hinting(
        selector,
        &path,
        &["matchLabels", "matchExpressions"],
        &mut findings.faults,
        |key| match key {
            // As AdminNetworkPolicy had it at first.
            "namespaceSelector" if nulls == Nulls::Dropped => {
                Some("write what is in it here, one level higher")
            }
            "sameLabels" | "notSameLabels" if nulls == Nulls::Dropped => {
                Some("it was removed from the API; write a rule with a selector for each group of namespaces")
            }
            _ => None,
        },
    );
    let mut requirements = Vec::new();
    let labels_at = join(&path, "matchLabels");
    match mapping(selector, &path, "matchLabels") {
        Err(wrong) => findings.faults.push(wrong),
        Ok(labels) => {
            for (key, value) in labels {
                let value_at = join(&labels_at, key);
                if let Some(wrong) = bad_label_key(key) {
                    findings.faults.push(fault(&value_at, wrong));
                }
                if value.is_null() && nulls == Nulls::Dropped {
                    findings.notes.push(fault(
                        value_at,
                        "has no value, so an API server drops it and the selector does not ask for it: write a value, \
                         \"\" for the empty one, or leave it out",
                    ));
                } else if let Some(value) = label_value(value, &value_at, nulls, findings) {
                    requirements.push(Requirement {
                        key: key.clone(),
                        operator: Operator::In(BTreeSet::from([value])),
                    });
                }
            }
        }
    }
    match list(selector, &path, "matchExpressions") {
        Err(wrong) => findings.faults.push(wrong),
        Ok(expressions) => {
            for (index, expression) in expressions.iter().enumerate() {
                let at = item(&join(&path, "matchExpressions"), index);
                requirements.extend(requirement(expression, &at, nulls, findings));
            }
        }
    }
    (findings.faults.len() == before).then_some(Selector { requirements })
}

/// A label's value as a string; in a kind that is built in, null is the empty one, as Go decodes it.
fn label_value(value: &Value, at: &str, nulls: Nulls, findings: &mut Findings) -> Option<String> {
    let text = match value {
        Value::Null if nulls == Nulls::Empty => "",
        Value::String(text) => text,
        other => {
            findings.faults.push(fault(at, wrong_type(other, "a string")));
            return None;
        }
    };
    if let Some(wrong) = bad_label_value(text) {
        findings.faults.push(fault(at, wrong));
        return None;
    }
    Some(text.to_owned())
}

fn requirement(expression: &Value, at: &str, nulls: Nulls, findings: &mut Findings) -> Option<Requirement> {
    let Value::Object(fields) = expression else {
        findings.faults.push(fault(
            at,
            wrong_type(expression, "a mapping with key, operator and values"),
        ));
        return None;
    };
    only(fields, at, &["key", "operator", "values"], &mut findings.faults);
    let key = match string(fields, at, "key") {
        Ok(key) => key.unwrap_or_default(),
        Err(wrong) => {
            findings.faults.push(wrong);
            return None;
        }
    };
    if let Some(wrong) = bad_label_key(key) {
        findings.faults.push(fault(join(at, "key"), wrong));
    }
    let operator = match string(fields, at, "operator") {
        Ok(operator) => operator.unwrap_or_default(),
        Err(wrong) => {
            findings.faults.push(wrong);
            return None;
        }
    };
    let values_at = join(at, "values");
    let values: BTreeSet<String> = match list(fields, at, "values") {
        Err(wrong) => {
            findings.faults.push(wrong);
            return None;
        }
        Ok(values) => values
            .iter()
            .enumerate()
            .filter_map(|(index, value)| label_value(value, &item(&values_at, index), nulls, findings))
            .collect(),
    };
    let given = list(fields, at, "values").is_ok_and(|values| !values.is_empty());
    let operator = match operator {
        "In" | "NotIn" if !given => {
            findings.faults.push(fault(
                values_at,
                format!("{operator} needs at least one value: write them, or Exists or DoesNotExist"),
            ));
            return None;
        }
        "Exists" | "DoesNotExist" if given => {
            findings.faults.push(fault(
                values_at,
                format!("{operator} takes no values: leave them out, or write In or NotIn"),
            ));
            return None;
        }
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            findings.faults.push(fault(
                join(at, "operator"),
                match other {
                    "" => "is missing: write In, NotIn, Exists or DoesNotExist".to_owned(),
                    other => format!("{other:?} is not an operator: write In, NotIn, Exists or DoesNotExist"),
                },
            ));
            return None;
        }
    };
    Some(Requirement {
        key: key.to_owned(),
        operator,
    })
}

fn rules(spec: &Fields, at: &str, key: &str, peers_key: &str, findings: &mut Findings) -> Vec<Rule> {
    let path = join(at, key);
    let items = match list(spec, at, key) {
        Ok(items) => items,
        Err(wrong) => {
            findings.faults.push(wrong);
            return Vec::new();
        }
    };
    let mut rules = Vec::with_capacity(items.len());
    for (index, value) in items.iter().enumerate() {
        let at = item(&path, index);
        let fields = match value {
            Value::Object(fields) => fields,
            // An API server reads an empty list item as an empty rule, which allows everything.
            Value::Null => &NO_FIELDS,
            other => {
                findings.faults.push(fault(&at, wrong_type(other, "a mapping")));
                continue;
            }
        };
        only(fields, &at, &["ports", peers_key], &mut findings.faults);
        let peers = entries(fields, &at, peers_key, findings, peer);
        let ports = entries(fields, &at, "ports", findings, port);
        rules.push(Rule { peers, ports });
    }
    rules
}

/// A list of which absent and empty mean the same: no restriction (SEMANTICS 18).
fn entries<T>(
    fields: &Fields,
    at: &str,
    key: &str,
    findings: &mut Findings,
    read: fn(&Fields, &str, &mut Findings) -> Option<T>,
) -> Option<Vec<T>> {
    let path = join(at, key);
    let items = match list(fields, at, key) {
        Ok([]) => return None,
        Ok(items) => items,
        Err(wrong) => {
            findings.faults.push(wrong);
            return Some(Vec::new());
        }
    };
    let mut out = Vec::with_capacity(items.len());
    for (index, value) in items.iter().enumerate() {
        let at = item(&path, index);
        match value {
            Value::Object(fields) => out.extend(read(fields, &at, findings)),
            Value::Null => out.extend(read(&NO_FIELDS, &at, findings)),
            other => findings.faults.push(fault(at, wrong_type(other, "a mapping"))),
        }
    }
    Some(out)
}

fn peer(fields: &Fields, at: &str, findings: &mut Findings) -> Option<Peer> {
    let before = findings.faults.len();
    only(
        fields,
        at,
        &["podSelector", "namespaceSelector", "ipBlock"],
        &mut findings.faults,
    );
    let namespaces = present(fields, "namespaceSelector").is_some();
    let pods = present(fields, "podSelector").is_some();
    if let Some(block) = present(fields, "ipBlock") {
        if namespaces || pods {
            findings.faults.push(fault(
                join(at, "ipBlock"),
                "may not be combined with a selector: make it a separate list entry; entries are alternatives",
            ));
        }
        return ip_block(block, &join(at, "ipBlock"), findings);
    }
    if !namespaces && !pods {
        // With an unknown field this is the field's fault, which has been reported.
        if findings.faults.len() == before {
            findings.faults.push(fault(
                at,
                "an empty peer: write podSelector, namespaceSelector or ipBlock; podSelector: {} is every pod of \
                 the namespace",
            ));
        }
        return None;
    }
    // Both are read, so that the faults of both are told.
    let of_namespaces = selector(fields, at, "namespaceSelector", Nulls::Empty, findings);
    let pods = selector(fields, at, "podSelector", Nulls::Empty, findings);
    Some(Peer::Pods {
        namespaces: if namespaces { Some(of_namespaces?) } else { None },
        pods: pods?,
    })
}

fn ip_block(value: &Value, at: &str, findings: &mut Findings) -> Option<Peer> {
    let Value::Object(fields) = value else {
        findings
            .faults
            .push(fault(at, wrong_type(value, "a mapping with cidr")));
        return None;
    };
    only(fields, at, &["cidr", "except"], &mut findings.faults);
    let block = match string(fields, at, "cidr") {
        Ok(Some(text)) if !text.is_empty() => block_of(text, &join(at, "cidr"), findings),
        Ok(_) => {
            findings.faults.push(fault(
                join(at, "cidr"),
                "is missing: write a block such as 10.0.0.0/8",
            ));
            None
        }
        Err(wrong) => {
            findings.faults.push(wrong);
            None
        }
    };
    let items = match list(fields, at, "except") {
        Ok(items) => items,
        Err(wrong) => {
            findings.faults.push(wrong);
            &[]
        }
    };
    let mut except = Vec::with_capacity(items.len());
    for (index, value) in items.iter().enumerate() {
        let at = item(&join(at, "except"), index);
        let Value::String(text) = value else {
            findings.faults.push(fault(at, wrong_type(value, "a string")));
            continue;
        };
        let Some(hole) = block_of(text, &at, findings) else {
            continue;
        };
        if let Some(whole) = block
            && !(whole.contains(&hole) && whole.prefix_len() < hole.prefix_len())
        {
            findings.faults.push(fault(
                at,
                match hole == whole {
                    true => format!(
                        "{hole} is the whole block: write a smaller part of it, or leave the peer out"
                    ),
                    false => format!("{hole} is not strictly inside {whole}: write a part of it"),
                },
            ));
        }
        except.push(hole);
    }
    Some(Peer::Block { cidr: block?, except })
}

fn block_of(text: &str, at: &str, findings: &mut Findings) -> Option<IpNet> {
    match cidr(text) {
        Ok((block, odd)) => {
            findings.notes.extend(odd.map(|odd| fault(at, odd)));
            Some(block)
        }
        Err(wrong) => {
            findings.faults.push(fault(at, wrong));
            None
        }
    }
}

fn port(fields: &Fields, at: &str, findings: &mut Findings) -> Option<PortMatch> {
    only(fields, at, &["protocol", "port", "endPort"], &mut findings.faults);
    let protocol = match present(fields, "protocol") {
        None => Some(Protocol::Tcp),
        Some(value) => match value.as_str() {
            Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            _ => {
                findings.faults.push(fault(
                    join(at, "protocol"),
                    match value.as_str().map(str::to_ascii_uppercase).as_deref() {
                        Some(name @ ("TCP" | "UDP" | "SCTP")) => format!("{value} is not a protocol: write {name}"),
                        Some("ICMP" | "ICMPV6") => format!(
                            "{value} has no ports and no rule can name it: write TCP, UDP or SCTP; a rule without \
                             ports allows it"
                        ),
                        _ => format!("{value} is not supported here: write TCP, UDP or SCTP"),
                    },
                ));
                None
            }
        },
    };
    let end = match present(fields, "endPort") {
        None => None,
        Some(value) => match port_number(value) {
            Some(number) => Some(number),
            None => {
                findings
                    .faults
                    .push(fault(join(at, "endPort"), bad_port_number(value)));
                return None;
            }
        },
    };
    let end_at = || join(at, "endPort");
    match present(fields, "port") {
        None => {
            if end.is_some() {
                findings.faults.push(fault(
                    end_at(),
                    "needs a port: write the first port of the range as port",
                ));
                return None;
            }
            Some(PortMatch::All(protocol?))
        }
        Some(Value::String(name)) => {
            let bad_name = bad_port_name(name).map(|wrong| fault(join(at, "port"), wrong));
            let bad_end = end.map(|_| {
                fault(
                    end_at(),
                    format!("needs a numeric port, not the name {name:?}: write the first number of the range as port"),
                )
            });
            if bad_name.is_some() || bad_end.is_some() {
                findings.faults.extend(bad_name.into_iter().chain(bad_end));
                return None;
            }
            Some(PortMatch::Named {
                protocol: protocol?,
                name: name.clone(),
            })
        }
        Some(value) => {
            let Some(lo) = port_number(value) else {
                findings
                    .faults
                    .push(fault(join(at, "port"), bad_port_number(value)));
                return None;
            };
            let hi = end.unwrap_or(lo);
            if hi < lo {
                findings.faults.push(fault(
                    end_at(),
                    format!("{hi} is below port {lo}: write {lo} or more"),
                ));
                return None;
            }
            Some(PortMatch::Range {
                protocol: protocol?,
                lo,
                hi,
            })
        }
    }
}

pub(super) fn port_number(value: &Value) -> Option<u16> {
    whole(value)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
}

pub(super) fn bad_port_number(value: &Value) -> String {
    match value {
        Value::Number(_) => format!("{value} is not a port: write a number from 1 to 65535"),
        other => format!("must be a number from 1 to 65535, not {}", kind_of(other)),
    }
}
