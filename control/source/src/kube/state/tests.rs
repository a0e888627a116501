//! The rules of SEMANTICS 54 and 55, event by event.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod calico;

use serde_json::{Value, json};

use super::*;
use crate::kube::object;

/// An object of a kind, as the first of its APIs delivers it.
fn item(kind: Kind, object: Value) -> Result<Item, String> {
    object::item(kind, kind.api(), object)
}

fn namespace(name: &str, uid: &str, terminating: bool) -> Value {
    let mut object =
        json!({"metadata": {"name": name, "uid": uid, "labels": {"kubernetes.io/metadata.name": name}}});
    if terminating {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}

fn pod(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

fn policy(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

fn policy_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn reference(kind: Kind, key: ObjectKey) -> Reference {
    Reference::new(kind, key)
}

/// What can happen. Kept apart from the state's methods so that it can be shuffled.
#[derive(Clone, Debug)]
enum Step {
    Apply(Kind, Value),
    Delete(Reference),
}

fn synced(objects: &[(Kind, Value)]) -> State {
    let mut state = State::new(Settings::default());
    for kind in Kind::all() {
        let items = objects
            .iter()
            .filter(|(of, _)| *of == kind)
            .map(|(kind, object)| item(*kind, object.clone()).unwrap())
            .collect();
        state.listed(kind, items);
    }
    state.set_unevaluated(BTreeSet::new());
    assert!(state.complete());
    state
}

fn take(state: &mut State, step: &Step) {
    match step {
        Step::Apply(kind, object) => state.applied(item(*kind, object.clone()).unwrap()),
        Step::Delete(reference) => state.deleted(reference),
    };
}

fn a_live_namespace() -> State {
    synced(&[
        (Kind::NAMESPACE, namespace("a", "1", false)),
        (Kind::POD, pod("a", "p")),
        (Kind::NETWORK_POLICY, policy("a", "deny")),
    ])
}

fn has_policy(state: &State) -> bool {
    state.cluster().policies.contains_key(&policy_key("a", "deny"))
}

#[test]
fn a_policy_deleted_in_a_live_namespace_goes_once_the_server_confirms_that_it_lives() {
    let mut state = a_live_namespace();
    assert!(!state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny"))));
    assert_eq!(state.questions(), ["a"]);
    assert!(state.questions().is_empty(), "one question at a time");
    assert!(has_policy(&state), "until the answer");
    assert!(state.answered("a", &NamespaceNow::Live { uid: "1".to_owned() }));
    assert!(!has_policy(&state));
    assert_eq!(state.held().count(), 0);
}

#[test]
fn semantics_54_a_policy_deleted_before_the_end_of_its_namespace_is_seen_holds_until_its_last_pod_is_gone() {
    let mut state = a_live_namespace();
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny")));
    state.questions();
    assert!(!state.answered("a", &NamespaceNow::Ending));
    assert!(has_policy(&state));
    state.applied(item(Kind::NAMESPACE, namespace("a", "1", true)).unwrap());
    assert!(has_policy(&state));
    state.deleted(&reference(Kind::NAMESPACE, policy_key("", "a")));
    assert!(has_policy(&state), "its pod is still there");
    assert!(state.deleted(&reference(Kind::POD, policy_key("a", "p"))));
    assert!(!has_policy(&state));
}

#[test]
fn semantics_54_a_policy_deleted_while_its_namespace_terminates_needs_no_question() {
    let mut state = a_live_namespace();
    state.applied(item(Kind::NAMESPACE, namespace("a", "1", true)).unwrap());
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny")));
    assert!(state.questions().is_empty());
    assert!(has_policy(&state));
    // A list fetched again does not have it either.
    state.listed(Kind::NETWORK_POLICY, Vec::new());
    assert!(has_policy(&state));
}

#[test]
fn semantics_54_a_deletion_during_the_question_is_asked_for_again() {
    let mut state = synced(&[
        (Kind::NAMESPACE, namespace("a", "1", false)),
        (Kind::POD, pod("a", "p")),
        (Kind::NETWORK_POLICY, policy("a", "deny")),
        (Kind::NETWORK_POLICY, policy("a", "late")),
    ]);
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny")));
    assert_eq!(state.questions(), ["a"]);
    // The answer may be older than this.
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "late")));
    assert!(state.questions().is_empty());
    state.answered("a", &NamespaceNow::Live { uid: "1".to_owned() });
    assert!(!has_policy(&state));
    assert!(state.cluster().policies.contains_key(&policy_key("a", "late")));
    assert_eq!(state.questions(), ["a"]);
    state.answered("a", &NamespaceNow::Ending);
    assert!(state.cluster().policies.contains_key(&policy_key("a", "late")));
}

#[test]
fn a_namespace_that_came_again_does_not_inherit_held_policies() {
    let mut state = a_live_namespace();
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny")));
    state.questions();
    // It ended and came again between the deletion and the question.
    state.answered("a", &NamespaceNow::Live { uid: "2".to_owned() });
    assert!(has_policy(&state), "the old pods may still be there");
    assert!(state.applied(item(Kind::NAMESPACE, namespace("a", "2", false)).unwrap()));
    assert!(!has_policy(&state));
}

#[test]
fn a_policy_that_came_again_is_not_held_any_more() {
    let mut state = a_live_namespace();
    state.deleted(&reference(Kind::NETWORK_POLICY, policy_key("a", "deny")));
    state.questions();
    state.applied(item(Kind::NETWORK_POLICY, policy("a", "deny")).unwrap());
    assert!(!state.answered("a", &NamespaceNow::Live { uid: "1".to_owned() }));
    assert!(has_policy(&state));
}

#[test]
fn semantics_54_a_pod_whose_namespace_was_not_seen_stays_without_it() {
    let state = synced(&[(Kind::POD, pod("unseen", "p"))]);
    assert_eq!(state.cluster().pods.len(), 1);
    assert!(
        state.cluster().namespaces.is_empty(),
        "never supplied: the pod is unknown"
    );
}

/// Every order of `steps` that keeps the order within a kind.
fn interleavings(steps: &[Vec<Step>]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for (index, of_kind) in steps.iter().enumerate() {
        if let Some((first, rest)) = of_kind.split_first() {
            let mut left = steps.to_vec();
            left[index] = rest.to_vec();
            for mut order in interleavings(&left) {
                order.insert(0, first.clone());
                all.push(order);
            }
        }
    }
    if all.is_empty() { vec![Vec::new()] } else { all }
}

#[test]
fn semantics_54_every_order_of_the_watches_gives_the_same_state() {
    let node = |name: &str| json!({"metadata": {"name": name, "uid": name}});
    let by_kind = [
        vec![
            Step::Apply(Kind::NAMESPACE, namespace("a", "1", true)),
            Step::Delete(reference(Kind::NAMESPACE, policy_key("", "a"))),
            Step::Apply(Kind::NAMESPACE, namespace("a", "2", false)),
        ],
        vec![Step::Apply(Kind::NODE, node("n"))],
        vec![
            Step::Delete(reference(Kind::POD, policy_key("a", "p"))),
            Step::Apply(Kind::POD, pod("a", "q")),
        ],
        vec![
            Step::Delete(reference(Kind::NETWORK_POLICY, policy_key("a", "deny"))),
            Step::Apply(Kind::NETWORK_POLICY, policy("a", "new")),
        ],
    ];
    let orders = interleavings(&by_kind);
    assert_eq!(orders.len(), 1680);
    let mut states = BTreeSet::new();
    for order in orders {
        let mut state = a_live_namespace();
        let mut pod_seen_open = false;
        for step in &order {
            take(&mut state, step);
            for name in state.questions() {
                // What the server says after all of it.
                state.answered(&name, &NamespaceNow::Live { uid: "2".to_owned() });
            }
            // The old pod is never without its policy as long as its namespace is the old one.
            let old_namespace = state.namespace_uids.get("a").is_none_or(|uid| uid == "1");
            let old_pod = state.cluster().pods.contains_key(&policy_key("a", "p"));
            pod_seen_open |= old_namespace && old_pod && !has_policy(&state);
        }
        assert!(!pod_seen_open, "{order:?}");
        assert_eq!(state.held().count(), 0, "{order:?}");
        states.insert(format!("{:?}", state.cluster()));
    }
    assert_eq!(states.len(), 1, "{states:#?}");
}

#[test]
fn semantics_55_a_list_replaces_everything_of_its_kind_at_once() {
    let mut state = synced(&[
        (Kind::NAMESPACE, namespace("a", "1", false)),
        (Kind::POD, pod("a", "old")),
        (Kind::POD, pod("a", "kept")),
    ]);
    let items = ["kept", "new"].map(|name| item(Kind::POD, pod("a", name)).unwrap());
    assert!(state.listed(Kind::POD, items.to_vec()));
    let names: Vec<&str> = state.cluster().pods.keys().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["kept", "new"]);
    assert!(!state.listed(Kind::POD, items.to_vec()), "nothing new");
}

#[test]
fn an_object_that_cannot_be_decoded_keeps_its_last_good_content() {
    let mut state = a_live_namespace();
    let mut broken = pod("a", "p");
    broken["status"]["podIPs"] = json!([{"ip": "not an address"}]);
    assert!(state.applied(item(Kind::POD, broken.clone()).unwrap()));
    assert_eq!(state.cluster().pods[&policy_key("a", "p")].addresses.len(), 1);
    assert_eq!(state.problems().iter().count(), 1, "{:?}", state.problems());
    assert_eq!(state.problems().iter().next().unwrap().object, "a/p");
    assert!(
        !state.applied(item(Kind::POD, broken.clone()).unwrap()),
        "the same once more"
    );
    // A list with it in it does not remove it.
    state.listed(Kind::POD, vec![item(Kind::POD, broken).unwrap()]);
    assert_eq!(state.cluster().pods.len(), 1);
    assert!(state.applied(item(Kind::POD, pod("a", "p")).unwrap()));
    assert!(state.problems().is_empty());
}

#[test]
fn a_policy_that_cannot_be_understood_isolates() {
    let mut state = a_live_namespace();
    for spec in [
        json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "nonsense"}}]}]}),
        json!({"podSelector": {"matchLabels": 5}}),
        json!("nonsense"),
    ] {
        let mut broken = policy("a", "deny");
        broken["spec"] = spec.clone();
        state.applied(item(Kind::NETWORK_POLICY, broken).unwrap());
        let policy = &state.cluster().policies[&policy_key("a", "deny")];
        assert_eq!(policy.ingress.as_deref(), Some(&[][..]), "{spec}");
        assert!(!policy.faults.is_empty(), "{spec}");
        assert!(!state.problems().is_empty(), "{spec}");
    }
}

#[test]
fn what_changes_nothing_that_matters_is_no_change() {
    let mut state = a_live_namespace();
    let mut heartbeat = pod("a", "p");
    heartbeat["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    heartbeat["metadata"]["annotations"] = json!({"some/thing": "else"});
    assert!(!state.applied(item(Kind::POD, heartbeat).unwrap()));
    let mut relabelled = pod("a", "p");
    relabelled["metadata"]["labels"] = json!({"app": "web"});
    assert!(state.applied(item(Kind::POD, relabelled).unwrap()));
}
