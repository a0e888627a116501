//! Nothing that stands in a document makes decoding stop or widen. What single fields mean is tested in
//! `tests/semantics.rs`.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::prelude::*;
use ringwall_policy::{DenialAnswer, NetworkPolicy, Peer};
use serde_json::{Map, Value, json};

use super::*;

/// Values that are right somewhere and wrong elsewhere.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (0u32..70_000).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "app",
            "web",
            "In",
            "NotIn",
            "Exists",
            "TCP",
            "UDP",
            "ICMP",
            "http",
            "Ingress",
            "Egress",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "::/0",
            "::ffff:1.2.3.4/120",
            "010.1.1.1/33",
            "Accept",
            "Allow",
            "Deny",
            "Pass",
            "Admin",
            "*.x.io",
            "\u{1f980}",
        ])
        .prop_map(Value::from),
    ]
}

const KEYS: &[&str] = &[
    "podSelector",
    "namespaceSelector",
    "ipBlock",
    "cidr",
    "except",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ingress",
    "egress",
    "from",
    "to",
    "ports",
    "port",
    "endPort",
    "protocol",
    "policyTypes",
    "spec",
    "metadata",
    "labels",
    "status",
    "app",
    "surprise",
    "tier",
    "priority",
    "subject",
    "namespaces",
    "pods",
    "networks",
    "nodes",
    "domainNames",
    "action",
    "protocols",
    "tcp",
    "destinationPort",
    "number",
    "range",
    "start",
    "end",
    "destinationNamedPort",
    "portNumber",
    "portRange",
    "namedPort",
];

pub(super) fn anything() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 64, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(KEYS.to_vec()), inner), 0..4).prop_map(|pairs| {
                Value::Object(
                    pairs
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

fn valid_policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"namespaceSelector": {}, "podSelector": {"matchExpressions": [
                        {"key": "app", "operator": "In", "values": ["x", "y"]}]}},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                ],
                "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}, {"port": "http"}],
            }],
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}],
        },
    })
}

/// Every place of a value, as the keys and indices that lead there.
pub(super) fn places(value: &Value, here: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    out.push(here.clone());
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (step, child) in children {
        here.push(step);
        places(child, here, out);
        here.pop();
    }
}

pub(super) fn at<'a>(mut value: &'a mut Value, place: &[String]) -> &'a mut Value {
    for step in place {
        value = match value {
            Value::Object(map) => map.get_mut(step).unwrap(),
            Value::Array(items) => items.get_mut(step.parse::<usize>().unwrap()).unwrap(),
            _ => unreachable!("a scalar has no places"),
        };
    }
    value
}

fn policy_of(value: &Value) -> NetworkPolicy {
    match decode(value).unwrap().remove(0).object {
        Object::NetworkPolicy(policy) => policy,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn the_valid_policy_is_valid() {
    let policy = policy_of(&valid_policy());
    assert_eq!(policy.faults, []);
    let peers = policy.ingress.unwrap().remove(0).peers.unwrap();
    assert!(matches!(
        peers.as_slice(),
        [Peer::Pods { .. }, Peer::Block { .. }]
    ));
}

proptest! {
    #[test]
    fn a_spec_of_anything_isolates_or_is_valid(spec in anything()) {
        let mut value = valid_policy();
        value["spec"] = spec;
        let policy = policy_of(&value);
        let rules = policy.ingress.iter().chain(&policy.egress).flatten().count();
        prop_assert!(policy.faults.is_empty() || rules == 0);
        prop_assert!(policy.ingress.is_some() || policy.egress.is_some(), "no policy leaves both directions open");
    }

    #[test]
    fn a_document_of_anything_is_decoded_or_refused(document in anything(), kind in prop::sample::select(vec![
        ("v1", "Pod"), ("v1", "Node"), ("v1", "Namespace"), ("apps/v1", "Deployment"), ("batch/v1", "CronJob"), ("v1", "List"),
    ])) {
        let mut root = match document { Value::Object(map) => map, other => Map::from_iter([("spec".to_owned(), other)]) };
        root.insert("apiVersion".to_owned(), kind.0.into());
        root.insert("kind".to_owned(), kind.1.into());
        if root.get("metadata").is_none_or(|it| !it.is_object()) {
            root.insert("metadata".to_owned(), json!({"name": "x"}));
        }
        // Either outcome will do; a panic will not.
        let _ = decode(&Value::Object(root));
    }

    #[test]
    fn an_unknown_field_anywhere_in_a_spec_is_found(pick in any::<prop::sample::Index>()) {
        let mut value = valid_policy();
        let mut all = Vec::new();
        places(&value["spec"], &mut vec!["spec".to_owned()], &mut all);
        all.retain(|place| at(&mut value, place).is_object() && place.last().is_none_or(|last| last != "matchLabels"));
        let place = pick.get(&all);
        at(&mut value, place)["surprise"] = 1.into();
        let policy = policy_of(&value);
        prop_assert!(policy.faults.iter().any(|fault| fault.path.ends_with("surprise")), "{place:?}");
        prop_assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
        prop_assert_eq!(policy.subjects.requirements.len(), usize::from(place.get(1).is_none_or(|it| it != "podSelector")));
    }
}

#[test]
fn a_pod_that_is_being_deleted_says_so_from_either_source() {
    for (since, terminating) in [(json!("2025-01-01T00:00:00Z"), true), (Value::Null, false)] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "a", "deletionTimestamp": since},
            "spec": {"containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        for decoded in [decode(&pod).unwrap(), decode_served(&pod).unwrap()] {
            assert!(matches!(&decoded[0].object, Object::Pod(pod) if pod.terminating == terminating));
        }
    }
}

#[test]
fn what_is_unknown_around_a_policy_is_a_fault_in_a_folder_and_none_from_a_server() {
    let policy = |spec: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "a", "shard": {"key": 7}}, "observed": [],
            "spec": spec,
        })
    };
    let faults = |decoded: Vec<Decoded>| match &decoded[0].object {
        Object::NetworkPolicy(policy) => policy.faults.iter().map(|it| it.path.clone()).collect(),
        _ => Vec::new(),
    };
    let good = policy(json!({"podSelector": {}}));
    assert_eq!(faults(decode(&good).unwrap()), ["observed", "metadata.shard"]);
    assert!(faults(decode_served(&good).unwrap()).is_empty());
    let strange = policy(json!({"podSelector": {}, "unless": true}));
    assert_eq!(faults(decode_served(&strange).unwrap()), ["spec.unless"]);
}

#[test]
fn a_policy_of_any_kind_may_say_what_it_answers() {
    let network = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}}});
    let cluster_wide = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": []}});
    let calico = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "p"}, "spec": {"selector": "all()"}});
    for policy in [network, cluster_wide, calico] {
        for (word, wanted, notes) in [
            (json!("drop"), Some(DenialAnswer::Drop), 0),
            (json!("reset"), Some(DenialAnswer::Reset), 0),
            (json!("prohibited"), Some(DenialAnswer::Prohibited), 0),
            // Silence is safe, and somebody is told.
            (json!("Reset"), Some(DenialAnswer::Drop), 1),
            (Value::Null, None, 0),
        ] {
            let mut policy = policy.clone();
            if !word.is_null() {
                policy["metadata"]["annotations"] = json!({"ringwall.io/denied": word});
            }
            for decoded in [decode(&policy).unwrap(), decode_served(&policy).unwrap()] {
                let answer = match &decoded[0].object {
                    Object::NetworkPolicy(policy) => policy.answer,
                    Object::Tiered(policy) => policy.answer,
                    other => unreachable!("{other:?}"),
                };
                assert_eq!(answer, wanted, "{policy}");
                let mut paths = decoded[0].notes.iter().map(|note| note.path.as_str());
                let named = paths.any(|path| path == "metadata.annotations[ringwall.io/denied]");
                assert_eq!(named, notes == 1, "{policy}: {:?}", decoded[0].notes);
            }
        }
    }
}
