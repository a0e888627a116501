//! From an object of the API server to one of the cluster.

use std::sync::Arc;

use ringwall_policy::{Fault, NetworkPolicy, Object, ObjectKey, Selector};
use serde_json::{Map, Value, json};

use super::{
    kind::{Api, Kind, Objects, Reference},
    state::Item,
};
use crate::decode::{DENIAL_ANSWER, Decoded, STAGING, calico::STORED_METADATA, decode_served};

/// Name and uid of an object; else what is wrong with it.
pub(super) fn identify(kind: Kind, object: &Value) -> Result<(Reference, String), String> {
    let text = |field: &str| {
        object
            .pointer(&format!("/metadata/{field}"))
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let name = text("name").ok_or("has no metadata.name")?;
    let namespace = match kind.namespaced() {
        true => text("namespace").ok_or("has no metadata.namespace")?,
        false => String::new(),
    };
    let reference = Reference::new(kind, ObjectKey { namespace, name });
    Ok((reference, text("uid").unwrap_or_default()))
}

/// Decodes an object; the error says that it cannot even be named.
pub(super) fn item(kind: Kind, api: &Api, mut object: Value) -> Result<Item, String> {
    let (reference, uid) = identify(kind, &object)?;
    // Items of a list do not say what they are.
    if let Value::Object(fields) = &mut object {
        fields.insert("apiVersion".to_owned(), api.api_version().into());
        fields.insert("kind".to_owned(), kind.name().into());
    }
    let problem = |fault: &Fault| reference.problem(fault);
    let mut problems = Vec::new();
    let decoded = match decode_served(&object) {
        Ok(decoded) => decoded.into_iter().find(|it| is_of(kind, it)),
        Err(error) => {
            problems.push(problem(&error.fault));
            None
        }
    };
    let kept = source(kind, api, &object, &uid);
    let (mut input, mut service) = (None, None);
    let object = match (decoded, kind.objects()) {
        (Some(decoded), _) => {
            problems.extend(decoded.notes.iter().chain(&decoded.unevaluated).map(problem));
            problems.extend(decoded.faults.iter().map(problem));
            if let Object::Unevaluated { kind } = &decoded.object {
                problems.push(problem(&Fault {
                    path: String::new(),
                    message: format!(
                        "policies of kind {kind} are not evaluated: every verdict is incomplete"
                    ),
                }));
            }
            (input, service) = (decoded.input, decoded.service);
            let faults = match &decoded.object {
                Object::NetworkPolicy(policy) => policy.faults.as_slice(),
                Object::Tiered(policy) => policy.faults.as_slice(),
                _ => &[],
            };
            problems.extend(faults.iter().map(problem));
            Some(decoded.object)
        }
        (None, Objects::NetworkPolicies) => {
            // Not even its selector is known: it isolates its namespace.
            if problems.is_empty() {
                problems.push(problem(&Fault {
                    path: String::new(),
                    message: "it cannot be decoded; its whole namespace is isolated".to_owned(),
                }));
            }
            let faults = problems
                .iter()
                .map(|it| Fault {
                    path: it.path.clone(),
                    message: it.message.clone(),
                })
                .collect();
            Some(Object::NetworkPolicy(NetworkPolicy {
                key: reference.key.clone(),
                uid: uid.clone(),
                subjects: Selector::default(),
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
                types_written: false,
                answer: None,
                faults,
            }))
        }
        (None, _) => {
            if problems.is_empty() {
                problems.push(problem(&Fault {
                    path: String::new(),
                    message: "its content does not match its name".to_owned(),
                }));
            }
            None
        }
    };
    // Of what cannot be read, the last good version is kept; of what is staged, none is in force.
    let in_force = object
        .as_ref()
        .is_some_and(|it| it.reference().is_some() || kind.objects() == Objects::SpokenOf);
    let source = kept.filter(|_| in_force);
    Ok(Item {
        reference,
        uid,
        object,
        input,
        service,
        problems,
        source,
    })
}

/// Whether a decoded object is what its kind says.
fn is_of(kind: Kind, decoded: &Decoded) -> bool {
    match (kind.objects(), &decoded.object) {
        (Objects::Namespaces, Object::Namespace(_))
        | (Objects::Nodes, Object::Node(_))
        | (Objects::Pods, Object::Pod(_))
        | (Objects::NetworkPolicies, Object::NetworkPolicy(_))
        // For hosts and not for pods.
        | (Objects::Tiered(_), Object::Tiered(_) | Object::Unevaluated { .. })
        | (Objects::Tiers, Object::Tier(_))
        | (Objects::SpokenOf | Objects::Staged, _) => true,
        // Staged.
        (Objects::NetworkPolicies, _) => decoded.input.is_some(),
        _ => false,
    }
}

/// Annotations that change what an object means.
const MEANINGFUL: [&str; 3] = [STORED_METADATA, STAGING, DENIAL_ANSWER];

/// As much of a policy, tier, network set or host endpoint as has to be kept to know it again after a restart.
fn source(kind: Kind, api: &Api, object: &Value, uid: &str) -> Option<Arc<str>> {
    let kept = || {
        let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
        let annotations: Map<String, Value> = annotations
            .into_iter()
            .flatten()
            .filter(|(key, _)| MEANINGFUL.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        json!({
            "apiVersion": api.api_version(),
            "kind": kind.name(),
            "metadata": {
                "name": object.pointer("/metadata/name"),
                "namespace": object.pointer("/metadata/namespace"),
                "uid": uid,
                "annotations": annotations,
                // Policies select sets and host endpoints by their labels, and never policies.
                "labels": object.pointer("/metadata/labels").filter(|_| kind.objects() == Objects::SpokenOf),
            },
            "spec": object.get("spec"),
        })
    };
    kind.is_kept().then(|| kept().to_string().into())
}
