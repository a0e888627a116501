//! Policies of Calico and what they speak of.

use crate::staged::Staged;

use super::*;

/// A kind by the name that its objects have.
fn kind(name: &str) -> Kind {
    Kind::discovered()
        .find(|kind| kind.name() == name)
        .or_else(|| Kind::all().find(|kind| kind.name() == name))
        .unwrap()
}

fn object(namespace: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": spec});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn labelled(mut object: Value, labels: Value) -> Value {
    object["metadata"]["labels"] = labels;
    object
}

/// A policy for every pod that allows from whom a selector says.
fn global(name: &str, selector: &str) -> Value {
    let rule = json!({"action": "Allow", "source": {"selector": selector}});
    object("", name, json!({"ingress": [rule]}))
}

/// One that denies what goes to a service.
fn to_service(service: &str) -> Value {
    let destination = json!({"services": {"name": service, "namespace": "a"}});
    object(
        "",
        "p",
        json!({"egress": [{"action": "Deny", "destination": destination}]}),
    )
}

fn slice(name: &str, service: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "a", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}],
    })
}

fn set(name: &str, labels: Value, net: &str) -> Value {
    labelled(object("", name, json!({"nets": [net]})), labels)
}

fn apply(state: &mut State, name: &str, object: Value) -> bool {
    state.applied(item(kind(name), object).unwrap())
}

fn delete(state: &mut State, name: &str, namespace: &str, object: &str) -> bool {
    state.deleted(&reference(kind(name), policy_key(namespace, object)))
}

/// The blocks of all rules, in order.
fn blocks(state: &State) -> Vec<String> {
    let cluster = state.cluster();
    let blocks = cluster.named_peers().flat_map(|peer| cluster.blocks_of(peer));
    blocks.map(|(cidr, _)| cidr.to_string()).collect()
}

fn incomplete(state: &State) -> Vec<&str> {
    let kinds = state.cluster().unevaluated_kinds.iter();
    kinds.map(String::as_str).collect()
}

#[test]
fn a_set_that_comes_or_goes_changes_the_policies_that_speak_of_it_and_its_members_none() {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", global("p", "role == 'db'"));
    apply(&mut state, "GlobalNetworkPolicy", global("q", "role == 'web'"));
    assert_eq!(blocks(&state), [""; 0]);
    assert!(apply(
        &mut state,
        "GlobalNetworkSet",
        set("s", json!({"role": "db"}), "192.0.2.0/24")
    ));
    assert_eq!(blocks(&state), ["192.0.2.0/24"]);
    let before: Vec<_> = state.cluster().tiered.values().cloned().collect();
    assert_eq!(
        state.cluster().address_sets.keys().collect::<Vec<_>>(),
        [r#"network sets and host endpoints with role in {"db"}"#]
    );
    assert!(apply(
        &mut state,
        "GlobalNetworkSet",
        set("s", json!({"role": "db"}), "198.51.100.0/24")
    ));
    let after: Vec<_> = state.cluster().tiered.values().cloned().collect();
    assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
    assert_eq!(blocks(&state), ["198.51.100.0/24"]);
    // The same once more is no change.
    assert!(!apply(
        &mut state,
        "GlobalNetworkSet",
        set("s", json!({"role": "db"}), "198.51.100.0/24")
    ));
    assert!(delete(&mut state, "GlobalNetworkSet", "", "s"));
    assert_eq!(blocks(&state), [""; 0]);
    assert!(state.cluster().address_sets.is_empty());
}

#[test]
fn t96_3_a_set_has_the_labels_of_its_namespace_as_they_are() {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", global("p", "pcns.team == 'x'"));
    apply(
        &mut state,
        "NetworkSet",
        object("a", "s", json!({"nets": ["192.0.2.0/24"]})),
    );
    assert_eq!(blocks(&state), [""; 0]);
    let of_team = labelled(namespace("a", "1", false), json!({"team": "x"}));
    assert!(state.applied(item(Kind::NAMESPACE, of_team).unwrap()));
    assert_eq!(blocks(&state), ["192.0.2.0/24"]);
    state.applied(item(Kind::NAMESPACE, namespace("a", "1", false)).unwrap());
    assert_eq!(blocks(&state), [""; 0]);
}

#[test]
fn what_is_not_spoken_of_is_not_asked_for() {
    let mut state = a_live_namespace();
    let asked = |state: &State| -> Vec<&str> {
        let asked = state.asked_for().filter(|(_, asked)| *asked);
        asked.map(|(kind, _)| kind.name()).collect()
    };
    // Lists that are not wanted hold nothing up, those that are do.
    for kind in [Kind::SERVICE_ACCOUNT, Kind::SERVICE, Kind::ENDPOINT_SLICE] {
        state.read(kind, Reading::Absent);
    }
    assert!(asked(&state).is_empty() && state.complete());
    apply(&mut state, "GlobalNetworkPolicy", to_service("s"));
    assert_eq!(asked(&state), ["Service", "EndpointSlice"]);
    assert!(!state.complete());
    state.listed(Kind::SERVICE, Vec::new());
    assert!(!state.complete());
    state.listed(
        Kind::ENDPOINT_SLICE,
        vec![item(Kind::ENDPOINT_SLICE, slice("x", "s", "10.0.0.7")).unwrap()],
    );
    assert!(state.complete());
    assert_eq!(blocks(&state), ["10.0.0.7/32"]);
    apply(&mut state, "GlobalNetworkPolicy", global("p", "pcsa.team == 'x'"));
    assert_eq!(asked(&state), ["ServiceAccount"]);
    assert!(!state.complete());
    delete(&mut state, "GlobalNetworkPolicy", "", "p");
    assert!(asked(&state).is_empty() && state.complete());
}

#[test]
fn a_service_follows_its_slices_and_nothing_else_changes() {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", to_service("s"));
    let put = |state: &mut State, object| state.applied(item(Kind::ENDPOINT_SLICE, object).unwrap());
    assert!(put(&mut state, slice("x", "s", "10.0.0.7")));
    assert!(put(&mut state, slice("y", "s", "10.0.0.8")));
    assert_eq!(blocks(&state), ["10.0.0.7/32", "10.0.0.8/32"]);
    let before = Arc::clone(state.cluster().tiered.values().next().unwrap());
    put(&mut state, slice("z", "other", "10.0.0.9"));
    assert!(Arc::ptr_eq(
        &before,
        state.cluster().tiered.values().next().unwrap()
    ));
    // It becomes one of another service.
    put(&mut state, slice("y", "other", "10.0.0.8"));
    assert_eq!(blocks(&state), ["10.0.0.7/32"]);
    delete(&mut state, "EndpointSlice", "a", "x");
    assert_eq!(blocks(&state), [""; 0]);
}

#[test]
fn s107_a_rule_about_services_that_cannot_be_read_fails_closed() {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", to_service("s"));
    let everyone = |state: &State| {
        let mut policies = state.cluster().tiered.values();
        policies.any(|policy| policy.rules().any(|rule| rule.peers.is_none()))
    };
    assert!(!everyone(&state));
    state.read(
        Kind::ENDPOINT_SLICE,
        Reading::Unread("EndpointSlice.discovery.k8s.io".to_owned()),
    );
    assert!(everyone(&state), "the Deny denies everything");
    assert_eq!(
        incomplete(&state),
        [
            "EndpointSlice.discovery.k8s.io",
            "services of GlobalNetworkPolicy.projectcalico.org"
        ]
    );
    assert_eq!(state.problems().iter().count(), 1, "{:?}", state.problems());
    state.listed(Kind::ENDPOINT_SLICE, Vec::new());
    state.read(Kind::ENDPOINT_SLICE, Reading::Current);
    assert!(!everyone(&state));
    assert_eq!(incomplete(&state), [""; 0]);
    assert!(state.problems().is_empty());
    // What was read before stays in force.
    state.applied(item(Kind::ENDPOINT_SLICE, slice("x", "s", "10.0.0.7")).unwrap());
    state.read(
        Kind::ENDPOINT_SLICE,
        Reading::Unread("EndpointSlice.discovery.k8s.io".to_owned()),
    );
    assert_eq!(blocks(&state), ["10.0.0.7/32"]);
}

#[test]
fn t96_1_pods_have_the_labels_of_their_service_accounts_while_policies_ask() {
    let mut state = a_live_namespace();
    let account = |labels: Value| labelled(object("a", "default", json!(null)), labels);
    let of_pod = |state: &State| -> Vec<String> {
        let labels = state.cluster().pods[&policy_key("a", "p")].labels.clone();
        labels
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    };
    assert_eq!(of_pod(&state), [""; 0]);
    assert!(apply(
        &mut state,
        "GlobalNetworkPolicy",
        global("p", "pcsa.team == 'x'")
    ));
    let name = "serviceaccount:projectcalico.org/name=default";
    assert_eq!(of_pod(&state), [name]);
    assert!(apply(&mut state, "ServiceAccount", account(json!({"team": "x"}))));
    assert_eq!(of_pod(&state), [name, "serviceaccount:team=x"]);
    let watched = state.watched();
    let again = item(Kind::POD, pod("a", "p")).unwrap();
    assert!(watched.has(&again), "a full list has pods without these labels");
    assert!(!state.applied(again), "no change");
    assert!(apply(&mut state, "ServiceAccount", account(json!({"team": "y"}))));
    assert_eq!(of_pod(&state), [name, "serviceaccount:team=y"]);
    assert!(delete(&mut state, "ServiceAccount", "a", "default"));
    assert_eq!(of_pod(&state), [name]);
    assert!(delete(&mut state, "GlobalNetworkPolicy", "", "p"));
    assert_eq!(of_pod(&state), [""; 0]);
}

#[test]
fn s72_5_what_becomes_unreadable_keeps_its_last_good_version_and_goes_on_following() {
    let mut state = a_live_namespace();
    apply(&mut state, "Tier", object("", "t", json!({"order": 5})));
    apply(&mut state, "GlobalNetworkPolicy", global("p", "role == 'db'"));
    apply(
        &mut state,
        "GlobalNetworkSet",
        set("s", json!({"role": "db"}), "192.0.2.0/24"),
    );
    let good = state.cluster().clone();
    apply(&mut state, "Tier", object("", "t", json!({"order": "high"})));
    let mut unplaced = global("p", "role == 'db'");
    unplaced["spec"]["selector"] = json!("a = 'b'");
    apply(&mut state, "GlobalNetworkPolicy", unplaced);
    let claiming = set("s", json!({"pcns.team": "x"}), "192.0.2.0/24");
    apply(&mut state, "GlobalNetworkSet", claiming);
    assert_eq!(state.cluster(), &good);
    let unreadable: Vec<(String, bool)> = state
        .unreadable()
        .map(|(reference, _, kept)| (reference.to_string(), kept))
        .collect();
    let names = ["GlobalNetworkPolicy p", "Tier t", "GlobalNetworkSet s"];
    assert_eq!(unreadable, names.map(|name| (name.to_owned(), true)));
    assert_eq!(state.problems().iter().count(), 3);
    apply(
        &mut state,
        "GlobalNetworkSet",
        set("s", json!({"role": "db"}), "198.51.100.0/24"),
    );
    assert_eq!(blocks(&state), ["198.51.100.0/24"]);
    // Those that never had any.
    apply(&mut state, "Tier", object("", "u", json!({"order": "high"})));
    apply(
        &mut state,
        "NetworkSet",
        labelled(object("a", "u", json!({})), json!({"pcns.team": "x"})),
    );
    assert_eq!(
        incomplete(&state),
        ["NetworkSet.projectcalico.org", "Tier.projectcalico.org"]
    );
    delete(&mut state, "Tier", "", "u");
    delete(&mut state, "NetworkSet", "a", "u");
    assert_eq!(incomplete(&state), [""; 0]);
}

#[test]
fn what_is_not_evaluated_is_named_as_long_as_it_is_there() {
    let mut state = a_live_namespace();
    let beside_pods = object(
        "",
        "p",
        json!({"doNotTrack": true, "applyOnForward": true, "ingress": [{"action": "Deny"}]}),
    );
    // It was for pods before.
    apply(&mut state, "GlobalNetworkPolicy", global("p", "all()"));
    assert_eq!(state.cluster().tiered.len(), 1);
    assert!(apply(&mut state, "GlobalNetworkPolicy", beside_pods));
    assert!(state.cluster().tiered.is_empty());
    apply(&mut state, "Profile", object("", "mine", json!({})));
    apply(&mut state, "Profile", object("", "kns.a", json!({})));
    let host = object("", "h", json!({"node": "n", "interfaceName": "eth0"}));
    apply(&mut state, "HostEndpoint", host);
    let named = [
        "HostEndpoint.projectcalico.org",
        "Profile.projectcalico.org",
        "doNotTrack GlobalNetworkPolicy.projectcalico.org",
    ];
    assert_eq!(incomplete(&state), named);
    let of: Vec<String> = state.problems().iter().map(|it| it.object.clone()).collect();
    // applyOnForward, too.
    assert_eq!(of, ["p", "p", "h", "mine"]);
    delete(&mut state, "GlobalNetworkPolicy", "", "p");
    delete(&mut state, "Profile", "", "mine");
    delete(&mut state, "HostEndpoint", "", "h");
    assert_eq!(incomplete(&state), [""; 0]);
    assert!(state.problems().is_empty(), "{:?}", state.problems());
}

#[test]
fn a_host_endpoint_is_named_while_a_policy_is_for_it() {
    let mut state = a_live_namespace();
    let host = object(
        "",
        "h",
        json!({"node": "n", "interfaceName": "eth0", "profiles": ["projectcalico-default-allow"]}),
    );
    apply(&mut state, "HostEndpoint", host.clone());
    assert_eq!(incomplete(&state), [""; 0]);
    assert!(apply(&mut state, "GlobalNetworkPolicy", global("p", "all()")));
    assert_eq!(incomplete(&state), ["HostEndpoint.projectcalico.org"]);
    // Another version of it is named like the one before.
    let other = object("", "h", json!({"node": "n", "interfaceName": "eth1"}));
    apply(&mut state, "HostEndpoint", other);
    let named: Vec<String> = state.problems().iter().map(|it| it.object.clone()).collect();
    assert_eq!(named, ["h"]);
    apply(&mut state, "HostEndpoint", host);
    let mut of_pods = global("p", "all()");
    of_pods["spec"]["namespaceSelector"] = json!("all()");
    apply(&mut state, "GlobalNetworkPolicy", of_pods);
    assert_eq!(incomplete(&state), [""; 0]);
}

#[test]
fn semantics_54_a_policy_of_calico_holds_while_its_namespace_ends_like_a_networkpolicy() {
    let mut state = a_live_namespace();
    let in_namespace = object("a", "deny", json!({"ingress": [{"action": "Deny"}]}));
    let deny = Kind::CALICO_NETWORK_POLICY;
    state.applied(item(deny, in_namespace).unwrap());
    let has = |state: &State| !state.cluster().tiered.is_empty();
    state.deleted(&reference(deny, policy_key("a", "deny")));
    assert_eq!(state.questions(), ["a"]);
    assert_eq!(
        state.unanswered().collect::<Vec<_>>(),
        ["NetworkPolicy.projectcalico.org a/deny"]
    );
    state.answered("a", &NamespaceNow::Ending);
    assert!(has(&state));
    state.deleted(&reference(Kind::NAMESPACE, policy_key("", "a")));
    assert!(has(&state), "its pod is still there");
    assert!(state.deleted(&reference(Kind::POD, policy_key("a", "p"))));
    assert!(!has(&state));
    // One of the whole cluster is in no namespace.
    apply(&mut state, "GlobalNetworkPolicy", global("p", "all()"));
    assert!(delete(&mut state, "GlobalNetworkPolicy", "", "p"));
    assert!(!has(&state) && state.questions().is_empty());
}

#[test]
fn semantics_54_a_networkset_holds_while_its_namespace_ends_and_over_a_restart() {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", global("p", "role == 'db'"));
    let set = || {
        labelled(
            object("a", "s", json!({"nets": ["192.0.2.0/24"]})),
            json!({"role": "db"}),
        )
    };
    apply(&mut state, "NetworkSet", set());
    assert_eq!(blocks(&state), ["192.0.2.0/24"]);
    let gone = reference(Kind::NETWORK_SET, policy_key("a", "s"));
    state.deleted(&gone);
    assert_eq!(blocks(&state), ["192.0.2.0/24"]);
    assert_eq!(state.questions(), ["a"]);
    state.answered("a", &NamespaceNow::Ending);
    state.deleted(&reference(Kind::NAMESPACE, policy_key("", "a")));
    assert_eq!(blocks(&state), ["192.0.2.0/24"], "its pod is still there");
    assert!(state.deleted(&reference(Kind::POD, policy_key("a", "p"))));
    assert_eq!(blocks(&state), [""; 0]);

    // Somebody deletes one whose namespace lives.
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", global("p", "role == 'db'"));
    apply(&mut state, "NetworkSet", set());
    state.deleted(&gone);
    let (questions, uid) = (state.questions(), state.namespace_uids["a"].clone());
    assert_eq!(questions, ["a"]);
    assert!(state.answered("a", &NamespaceNow::Live { uid }));
    assert_eq!(blocks(&state), [""; 0]);
}

#[test]
fn s72_5_a_set_or_host_endpoint_that_is_unreadable_at_a_restart_keeps_its_last_good_version() {
    let host_endpoint = |address: &str| {
        let spec = json!({"node": "n", "interfaceName": "eth0", "expectedIPs": [address]});
        labelled(
            json!({"apiVersion": "projectcalico.org/v3", "metadata": {"name": "h"}, "spec": spec}),
            json!({"role": "db"}),
        )
    };
    let good = set("s", json!({"role": "db"}), "192.0.2.0/24");
    let claiming = set("s", json!({"pcns.team": "x"}), "198.51.100.0/24");
    keeps_its_last_good_version("GlobalNetworkSet", good, claiming, "192.0.2.0/24");
    let (good, no_address) = (host_endpoint("192.0.2.7"), host_endpoint("everywhere"));
    keeps_its_last_good_version("HostEndpoint", good, no_address, "192.0.2.7/32");
}

/// `network`: what `good` adds to a policy for everything with its label.
fn keeps_its_last_good_version(
    of: &str,
    good: serde_json::Value,
    unreadable: serde_json::Value,
    network: &str,
) {
    let mut state = a_live_namespace();
    apply(&mut state, "GlobalNetworkPolicy", global("p", "role == 'db'"));
    let name = good["metadata"]["name"].as_str().unwrap().to_owned();
    apply(&mut state, of, good);
    assert_eq!(blocks(&state), [network]);
    let kept: Vec<serde_json::Value> = state
        .policy_sources()
        .iter()
        .map(|(_, text)| serde_json::from_str(text).unwrap())
        .collect();
    let kept = kept.into_iter().map(|object| {
        let text = |field: &str| object[field].as_str().unwrap().to_owned();
        let (kind, api) = Kind::named(&text("kind"), &text("apiVersion")).unwrap();
        crate::kube::object::item(kind, api, object).unwrap()
    });
    // The next process: the object has become unreadable in the meantime.
    let mut next = State::new(ringwall_policy::Settings::default());
    next.remember(kept.collect());
    let kind = kind(of);
    next.listed(kind, vec![item(kind, unreadable).unwrap()]);
    assert_eq!(blocks(&next), [network]);
    let alarms: Vec<(String, bool)> = next
        .unreadable()
        .map(|(reference, _, kept)| (reference.to_string(), kept))
        .collect();
    assert_eq!(alarms, [(format!("{of} {name}"), true)]);
    // And one that is gone is gone.
    next.listed(kind, Vec::new());
    assert_eq!(blocks(&next), [""; 0]);
    let is_of_kind = |(reference, _): (&Reference, _)| reference.kind == kind;
    assert!(!next.policy_sources().iter().any(is_of_kind));
}

#[test]
fn a_networkpolicy_that_is_staged_is_not_enforced_and_not_remembered() {
    let mut state = a_live_namespace();
    let staged = |mode: &str| {
        let mut staged = policy("a", "deny");
        staged["metadata"]["annotations"] = json!({"ringwall.io/mode": mode});
        item(Kind::NETWORK_POLICY, staged).unwrap()
    };
    let names = |state: &State| -> Vec<String> { state.staged().iter().map(Staged::name).collect() };
    assert_eq!(state.policy_sources().len(), 1);
    assert!(names(&state).is_empty());
    assert!(state.applied(staged("staged")));
    assert!(!has_policy(&state));
    assert_eq!(names(&state), ["a/deny"]);
    assert!(state.policy_sources().is_empty());
    assert_eq!(state.counts()[Kind::NETWORK_POLICY.number()], 1);
    let watched = state.watched();
    assert!(watched.has(&staged("staged")) && !watched.has(&staged("enforced")));
    assert_eq!(watched.references(Kind::NETWORK_POLICY).count(), 1);
    assert!(!state.applied(staged("staged")), "the same once more");
    assert!(state.applied(staged("enforced")));
    assert!(has_policy(&state) && names(&state).is_empty());
    state.applied(staged("staged"));
    assert_eq!(names(&state), ["a/deny"]);
    let gone = reference(Kind::NETWORK_POLICY, policy_key("a", "deny"));
    assert!(state.deleted(&gone));
    assert!(names(&state).is_empty());
    assert_eq!((state.held().count(), state.questions().len()), (0, 0));
    // A word that is no mode enforces, and is said.
    assert!(state.applied(staged("stagd")));
    assert!(has_policy(&state) && !state.problems().is_empty());
}

#[test]
fn t96_6_two_stored_objects_of_one_name_are_one_policy_in_every_order() {
    let api = &kind("GlobalNetworkPolicy").apis()[1];
    let stored = |name: &str, selector: &str| {
        let mut stored = global(name, selector);
        stored["metadata"]["annotations"] = json!({"projectcalico.org/metadata": "{\"name\": \"p\"}"});
        object::item(kind("GlobalNetworkPolicy"), api, stored).unwrap()
    };
    let mut states = Vec::new();
    for turned in [false, true] {
        let mut state = a_live_namespace();
        let mut both = [stored("default.p", "has(x)"), stored("p", "has(y)")];
        if turned {
            both.reverse();
        }
        for item in both {
            state.applied(item);
        }
        assert_eq!(state.cluster().tiered.len(), 1);
        assert_eq!(state.problems().iter().next().unwrap().object, "p");
        states.push(state.cluster().clone());
        assert!(delete(&mut state, "GlobalNetworkPolicy", "", "default.p"));
        assert_eq!(state.cluster().tiered.len(), 1, "the other one is left");
        assert!(state.problems().is_empty());
        assert!(delete(&mut state, "GlobalNetworkPolicy", "", "p"));
        assert!(state.cluster().tiered.is_empty());
    }
    assert_eq!(states[0], states[1]);
}

#[test]
fn s73_6_peers_by_nodes_follow_the_nodes_and_fail_closed_while_one_cannot_be_read() {
    let mut state = a_live_namespace();
    let node = |name: &str, zone: &str, address: &str| {
        let mut node = labelled(object("", name, json!({})), json!({"zone": zone}));
        node["status"] = json!({"addresses": [{"type": "InternalIP", "address": address}]});
        item(Kind::NODE, node).unwrap()
    };
    let policy = object(
        "",
        "p",
        json!({
            "tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": [{"nodes": {"matchLabels": {"zone": "a"}}}]}],
        }),
    );
    state.applied(node("n1", "a", "192.0.2.1"));
    apply(&mut state, "ClusterNetworkPolicy", policy);
    assert_eq!(blocks(&state), ["192.0.2.1/32"]);
    assert!(state.applied(node("n2", "a", "192.0.2.2")));
    assert_eq!(blocks(&state), ["192.0.2.1/32", "192.0.2.2/32"]);
    let heartbeat = node("n2", "a", "192.0.2.2");
    assert!(state.watched().has(&heartbeat) && !state.watched().has(&node("n2", "b", "192.0.2.2")));
    assert!(!state.applied(heartbeat), "no change");
    assert!(state.applied(node("n2", "b", "192.0.2.2")));
    assert_eq!(blocks(&state), ["192.0.2.1/32"]);
    assert_eq!(incomplete(&state), [""; 0]);
    // A node that never could be read is unknown.
    let mut unreadable = labelled(object("", "n3", json!({"podCIDRs": 5})), json!({"zone": "a"}));
    unreadable["status"] = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]});
    state.applied(item(Kind::NODE, unreadable.clone()).unwrap());
    let denies_all = |state: &State| {
        let mut policies = state.cluster().tiered.values();
        policies.any(|policy| policy.rules().any(|rule| rule.peers.is_none()))
    };
    assert!(denies_all(&state));
    assert_eq!(
        incomplete(&state),
        ["nodes peers of ClusterNetworkPolicy.policy.networking.k8s.io"]
    );
    state.applied(node("n3", "a", "192.0.2.3"));
    assert_eq!(blocks(&state), ["192.0.2.1/32", "192.0.2.3/32"]);
    // One that could keeps what it was.
    state.applied(item(Kind::NODE, unreadable).unwrap());
    assert_eq!(blocks(&state), ["192.0.2.1/32", "192.0.2.3/32"]);
    for name in ["n1", "n3"] {
        state.deleted(&reference(Kind::NODE, policy_key("", name)));
    }
    assert!(blocks(&state).is_empty() && !denies_all(&state));
    state.deleted(&reference(Kind::NODE, policy_key("", "n2")));
    assert!(denies_all(&state), "no node at all");
}
