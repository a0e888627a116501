//! From an object of the API server to one of the cluster.

use ringwall_messages::ObjectProblem;
use ringwall_policy::{Fault, NetworkPolicy, Object, ObjectKey, ObjectRef, Selector};
use serde_json::{Value, json};

use super::state::{Item, Kind};
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
    let key = |name: String| {
        let namespace = text("namespace").ok_or("has no metadata.namespace")?;
        Ok::<_, String>(ObjectKey { namespace, name })
    };
    let reference = match kind {
        Kind::Namespace => ObjectRef::Namespace(name),
        Kind::Node => ObjectRef::Node(name),
        Kind::Pod => ObjectRef::Pod(key(name)?),
        Kind::NetworkPolicy => ObjectRef::NetworkPolicy(key(name)?),
    };
    Ok((reference, text("uid").unwrap_or_default()))
}

/// Decodes an object; the error says that it cannot even be named.
pub(super) fn item(kind: Kind, mut object: Value) -> Result<Item, String> {
    let (reference, uid) = identify(kind, &object)?;
    // Items of a list do not say what they are.
    if let Value::Object(fields) = &mut object {
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.name().into());
    }
    let source = (kind == Kind::NetworkPolicy).then(|| {
        json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": {
                "name": object.pointer("/metadata/name"),
                "namespace": object.pointer("/metadata/namespace"),
                "uid": uid,
            },
            "spec": object.get("spec"),
        })
        .to_string()
        .into()
    });
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
    let object = match (decoded, &reference) {
        (Some(decoded), _) => {
            problems.extend(decoded.notes.iter().map(problem));
            if let Object::NetworkPolicy(policy) = &decoded.object {
                problems.extend(policy.faults.iter().map(problem));
            }
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
    Ok(Item {
        reference,
        uid,
        object,
        problems,
        source,
    })
}
