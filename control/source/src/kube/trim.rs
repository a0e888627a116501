//! Reads an object of the API server without the parts that have no say in policy.
//!
//! Two thirds of a usual Pod are who set which field when, volumes, environments, conditions. They are scanned, not
//! kept: that is time and memory at every event and, at a list, memory for every object.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::kind::Kind;

/// Reads one object.
///
/// # Errors
/// It is not JSON.
pub(super) fn read(kind: Kind, text: &str) -> serde_json::Result<Value> {
    let mut input = serde_json::Deserializer::from_str(text);
    let value = Part { kind, parent: "" }.deserialize(&mut input)?;
    input.end()?;
    Ok(value)
}

/// Whether the field `key` of the mapping `parent` (or of the mappings in the list `parent`) is passed over. Of a
/// policy everything is read but its history: an unknown field there may be a misspelt one.
fn passed_over(kind: Kind, parent: &str, key: &str) -> bool {
    match (kind, parent) {
        (_, "metadata") => key == "managedFields",
        (Kind::POD, "spec") => matches!(key, "volumes" | "tolerations" | "affinity"),
        (Kind::POD, "containers" | "initContainers" | "ephemeralContainers") => matches!(
            key,
            "args"
                | "command"
                | "env"
                | "envFrom"
                | "lifecycle"
                | "livenessProbe"
                | "readinessProbe"
                | "resources"
                | "securityContext"
                | "startupProbe"
                | "volumeMounts"
        ),
        (Kind::POD, "status") => matches!(
            key,
            "conditions" | "containerStatuses" | "ephemeralContainerStatuses" | "initContainerStatuses"
        ),
        (Kind::NODE, "status") => matches!(
            key,
            "allocatable" | "capacity" | "conditions" | "images" | "volumesAttached" | "volumesInUse"
        ),
        (Kind::ENDPOINT_SLICE, "endpoints") => !matches!(
            key,
            "addresses" | "conditions" | "nodeName" | "targetRef" | "hints"
        ),
        (Kind::SERVICE, "status") => key != "loadBalancer",
        (Kind::SERVICE_ACCOUNT, "") => matches!(key, "secrets" | "imagePullSecrets"),
        _ => false,
    }
}

/// A value on its way from text to tree.
struct Part<'a> {
    kind: Kind,
    /// The key under which it stands; that of the list for the items of one.
    parent: &'a str,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Part { ..self })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            if passed_over(self.kind, self.parent, &key) {
                fields.next_value::<IgnoredAny>()?;
            } else {
                let part = Part {
                    kind: self.kind,
                    parent: &key,
                };
                let value = fields.next_value_seed(part)?;
                map.insert(key, value);
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::object::item;

    /// As kubectl shows one, shortened.
    fn pod() -> Value {
        json!({
            "metadata": {
                "name": "p", "namespace": "a", "uid": "u", "resourceVersion": "7",
                "labels": {"env": "prod", "status": "x", "conditions": "good", "managedFields": "yes"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {
                "nodeName": "n1",
                "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "c", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                }],
                "initContainers": [{
                    "name": "i", "restartPolicy": "Always", "ports": [{"name": "dns", "containerPort": 53}],
                }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "restartCount": 3, "ready": true, "usage": 0.5, "low": -1}],
            },
        })
    }

    #[test]
    fn what_is_passed_over_has_no_say() {
        let whole = pod();
        let read = read(Kind::POD, &whole.to_string()).unwrap();
        for gone in [
            "/metadata/managedFields",
            "/spec/volumes",
            "/spec/containers/0/env",
            "/status/conditions",
            "/status/containerStatuses",
        ] {
            assert!(
                whole.pointer(gone).is_some() && read.pointer(gone).is_none(),
                "{gone}"
            );
        }
        assert_eq!(read["metadata"]["labels"], whole["metadata"]["labels"]);
        let (a, b) = (
            item(Kind::POD, Kind::POD.api(), whole).unwrap(),
            item(Kind::POD, Kind::POD.api(), read).unwrap(),
        );
        assert!(a.object.is_some());
        assert_eq!((a.object, a.problems), (b.object, b.problems));
    }

    #[test]
    fn of_a_policy_everything_is_read_but_its_history() {
        let whole = json!({
            "metadata": {"name": "p", "namespace": "a", "annotations": {"x": null}},
            "spec": {"podSelector": {}, "volumes": [1, -2, 1.5, true, "x", null], "status": {"conditions": []}},
        });
        assert_eq!(read(Kind::NETWORK_POLICY, &whole.to_string()).unwrap(), whole);
    }

    #[test]
    fn text_that_is_no_json_is_refused() {
        for text in ["", "{", "{} {}", "{\"a\":}", "nul"] {
            assert!(read(Kind::POD, text).is_err(), "{text:?}");
        }
    }
}
