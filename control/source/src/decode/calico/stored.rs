//! `crd.projectcalico.org/v1`: objects as Calico stores them, with their own metadata in an annotation (TIERS 96.6).

use std::borrow::Cow;

use ringwall_policy::Fault;
use serde_json::Value;

use super::super::field::{Fields, fault, join, mapping};

/// The annotation that has the metadata which the object was written with, as JSON.
pub(crate) const METADATA: &str = "projectcalico.org/metadata";

/// An object with the metadata that it was written with.
///
/// # Errors
/// The annotation is there and cannot be read: whose labels and name the object has is not known.
pub(in super::super) fn restored<'a>(root: &'a Fields, at: &str) -> Result<Cow<'a, Fields>, Fault> {
    let metadata_at = join(at, "metadata");
    let metadata = mapping(root, at, "metadata")?;
    let annotations = mapping(metadata, &metadata_at, "annotations")?;
    let Some(text) = annotations.get(METADATA) else {
        return Ok(Cow::Borrowed(root));
    };
    let wrong = || {
        fault(
            join(&join(&metadata_at, "annotations"), METADATA),
            "is not the metadata of an object as JSON: take the object as Calico stored it, or write it as \
             projectcalico.org/v3",
        )
    };
    let read = text.as_str().and_then(|text| serde_json::from_str(text).ok());
    let Some(Value::Object(own)) = read else {
        return Err(wrong());
    };
    let mut annotations = annotations.clone();
    annotations.remove(METADATA);
    let mut merged = metadata.clone();
    merged.insert("annotations".to_owned(), Value::Object(annotations));
    for (key, value) in own {
        match (key.as_str(), value) {
            ("name", Value::String(name)) if !name.is_empty() => {
                merged.insert(key, Value::String(name));
            }
            ("labels" | "annotations", Value::Object(more)) => {
                match merged.entry(key).or_insert_with(|| Value::Object(Fields::new())) {
                    Value::Object(fields) => fields.extend(more),
                    other => *other = Value::Object(more),
                }
            }
            // What is null was not written; times, owners and the like say nothing about policy.
            ("name" | "labels" | "annotations", Value::Null) => {}
            ("name" | "labels" | "annotations", _) => return Err(wrong()),
            _ => {}
        }
    }
    let mut root = root.clone();
    root.insert("metadata".to_owned(), Value::Object(merged));
    Ok(Cow::Owned(root))
}
