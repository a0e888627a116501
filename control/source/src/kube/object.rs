//! From an object of the API server to one of the cluster.

use std::sync::Arc;

use ringwall_messages::ObjectProblem;
use ringwall_policy::{Fault, NetworkPolicy, Object, ObjectRef, Selector};
use serde_json::{Value, json};

use super::{
    kind::{Api, Kind},
    state::Item,
};
use crate::decode::decode_served;

/// Name and uid of an object; else what is wrong with it.
pub(super) fn identify(kind: Kind, object: &Value) -> Result<(ObjectRef, String), String> {
    let text = |field: &str| {
        object
            .pointer(&format!("/metadata/{field}"))
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let name = text("name").ok_or("has no metadata.name")?;
    let reference = kind
        .reference(text("namespace"), name)
        .ok_or("has no metadata.namespace")?;
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
    let problem = |fault: &Fault| ObjectProblem {
        kind: kind.name().to_owned(),
        object: match &reference {
            ObjectRef::Namespace(name) | ObjectRef::Node(name) | ObjectRef::Tier(name) => name.clone(),
            ObjectRef::Pod(key) | ObjectRef::NetworkPolicy(key) => key.to_string(),
            ObjectRef::Tiered(id) => id.to_string(),
        },
        path: fault.path.clone(),
        message: fault.message.clone(),
    };
    let mut problems = Vec::new();
    let decoded = match decode_served(&object) {
        Ok(decoded) => decoded
            .into_iter()
            .find(|it| it.object.reference().as_ref() == Some(&reference)),
        Err(error) => {
            problems.push(problem(&error.fault));
            None
        }
    };
    let kept = source(kind, api, &object, &uid);
    let object = match (decoded, &reference) {
        (Some(decoded), _) => {
            problems.extend(decoded.notes.iter().chain(&decoded.unevaluated).map(problem));
            let faults = match &decoded.object {
                Object::NetworkPolicy(policy) => policy.faults.as_slice(),
                Object::Tiered(policy) => policy.faults.as_slice(),
                _ => &[],
            };
            problems.extend(faults.iter().map(problem));
            Some(decoded.object)
        }
        (None, ObjectRef::NetworkPolicy(key)) => {
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
                key: key.clone(),
                uid: uid.clone(),
                subjects: Selector::default(),
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
                types_written: false,
                faults,
            }))
        }
        (None, _) => {
            if problems.is_empty() {
                problems.push(problem(&Fault {
                    path: String::new(),
                    message: "it is not what its name says".to_owned(),
                }));
            }
            None
        }
    };
    // Of what cannot be read, the last good version is kept.
    let source = kept.filter(|_| object.is_some());
    Ok(Item {
        reference,
        uid,
        object,
        problems,
        source,
    })
}

/// As much of a policy as has to be kept to know it again after a restart.
fn source(kind: Kind, api: &Api, object: &Value, uid: &str) -> Option<Arc<str>> {
    let kept = || {
        json!({
            "apiVersion": api.api_version(),
            "kind": kind.name(),
            "metadata": {
                "name": object.pointer("/metadata/name"),
                "namespace": object.pointer("/metadata/namespace"),
                "uid": uid,
            },
            "spec": object.get("spec"),
        })
    };
    kind.is_kept().then(|| kept().to_string().into())
}
