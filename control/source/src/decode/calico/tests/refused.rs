//! What an API server, or Calico's own validation, refuses: each has a path, and lets nothing through.

use proptest::prelude::*;
use ringwall_policy::{Action, Fault};

use super::*;
use crate::decode::tests::{anything, at, places};

/// What is wrong with an object, whether it can be read or not, and whether that is a refusal of all of it.
fn faults(value: &Value) -> (Vec<Fault>, bool) {
    match decoded(value) {
        Err(wrong) => (vec![wrong.fault], true),
        Ok(decoded) => {
            let own = match &decoded.object {
                Object::Tiered(policy) => policy.faults.clone(),
                _ => decoded.faults,
            };
            (own, false)
        }
    }
}

#[track_caller]
fn refused(value: &Value, path: &str) {
    let (faults, _) = faults(value);
    assert!(
        faults.iter().any(|fault| fault.path == path),
        "{path} of {value}: {faults:?}"
    );
}

/// What Calico's CRDs refuse besides, by an API server's own answers.
#[test]
fn what_the_crds_refuse_of_other_objects_is_refused() {
    let of = |kind: &str, spec: &Value| {
        let namespace = matches!(kind, "NetworkSet" | "StagedKubernetesNetworkPolicy").then_some("a");
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "x", "namespace": namespace}, "spec": spec})
    };
    for kind in [
        "Tier",
        "NetworkSet",
        "GlobalNetworkSet",
        "StagedKubernetesNetworkPolicy",
    ] {
        let mut without = of(kind, &Value::Null);
        refused(&without, "spec");
        without.as_object_mut().unwrap().remove("spec");
        refused(&without, "spec");
    }
    let port = |port: Value| json!({"node": "n", "interfaceName": "*", "ports": [port]});
    for (path, spec) in [
        (
            "spec.ports[0].port",
            port(json!({"name": "h", "protocol": "TCP"})),
        ),
        (
            "spec.ports[0].port",
            port(json!({"name": "h", "protocol": "TCP", "port": 0})),
        ),
        (
            "spec.ports[0].port",
            port(json!({"name": "h", "protocol": "TCP", "port": 65536})),
        ),
        (
            "spec.ports[0].port",
            port(json!({"name": "h", "protocol": "TCP", "port": "80"})),
        ),
        ("spec.ports[0].protocol", port(json!({"name": "h", "port": 80}))),
        (
            "spec.ports[0].protocol",
            port(json!({"name": "h", "port": 80, "protocol": {}})),
        ),
        (
            "spec.ports[0].name",
            port(json!({"name": "a b", "port": 80, "protocol": "TCP"})),
        ),
        (
            "spec.profiles[1]",
            json!({"node": "n", "interfaceName": "*", "profiles": ["p", "p"]}),
        ),
        (
            "spec.profiles[0]",
            json!({"node": "n", "interfaceName": "*", "profiles": [5]}),
        ),
    ] {
        refused(&of("HostEndpoint", &spec), path);
    }
    for (path, spec) in [
        ("spec.policyTypes", json!({"podSelector": {}, "policyTypes": []})),
        (
            "spec.policyTypes[1]",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"]}),
        ),
        ("spec.ingress[0]", json!({"podSelector": {}, "ingress": [null]})),
        (
            "spec.ingress[0].ports[0]",
            json!({"podSelector": {}, "ingress": [{"ports": [null]}]}),
        ),
    ] {
        refused(&of("StagedKubernetesNetworkPolicy", &spec), path);
    }
}

/// Names that no port of a pod can have (TIERS 99.7): host endpoints' ports may.
#[test]
fn ports_have_names_of_up_to_128_letters() {
    for name in ["UPPER", "a_b.c", "--", "a".repeat(128).as_str()] {
        let rule = json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": [name]}});
        let (faults, _) = faults(&global(&json!({"ingress": [rule]})));
        assert!(faults.is_empty(), "{name}: {faults:?}");
    }
}

/// Nothing can be said of a policy of which these are wrong, so its last good version stays (TIERS 72.5).
#[test]
fn whom_a_policy_is_for_and_where_it_stands_has_to_be_read() {
    let long = format!("has({})", "a".repeat(1100));
    for (path, spec) in [
        ("spec.selector", json!({"selector": "a = 'b'"})),
        ("spec.selector", json!({"selector": "a == 'b'\n"})),
        ("spec.selector", json!({"selector": "x == 'global('"})),
        ("spec.selector", json!({"selector": {"matchLabels": {}}})),
        ("spec.selector", json!({"selector": long})),
        (
            "spec.serviceAccountSelector",
            json!({"serviceAccountSelector": "global()"}),
        ),
        ("spec.namespaceSelector", json!({"namespaceSelector": "global()"})),
        ("spec.namespaceSelector", json!({"namespaceSelector": "team"})),
        ("spec.order", json!({"order": "10"})),
        ("spec.order", json!({"order": true})),
        ("spec.tier", json!({"tier": 5})),
        ("spec.tier", json!({"tier": "Default"})),
        ("spec.tier", json!({"tier": "a.b"})),
        ("spec.types", json!({"types": []})),
        ("spec.types", json!({"types": "Ingress"})),
        ("spec.types[0]", json!({"types": ["ingress"]})),
        ("spec.types[1]", json!({"types": ["Ingress", null]})),
        ("spec.ingress", json!({"ingress": {"action": "Allow"}})),
        ("spec.podSelector", json!({"podSelector": {}})),
        ("spec.policyTypes", json!({"policyTypes": ["Ingress"]})),
        ("spec.Selector", json!({"Selector": "all()"})),
        ("spec.doNotTrack", json!({"doNotTrack": "true"})),
        ("spec.stagedAction", json!({"stagedAction": "Set"})),
    ] {
        let (faults, whole) = faults(&global(&spec));
        assert!(whole, "{spec}");
        assert_eq!(faults[0].path, path, "{spec}: {faults:?}");
    }
    for key in ["namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward"] {
        refused(&namespaced(&json!({key: null})), &format!("spec.{key}"));
    }
    let mut beside = global(&json!({}));
    beside["ingress"] = json!([]);
    refused(&beside, "ingress");
    beside["spec"] = Value::Null;
    refused(&beside, "ingress");
    for spec in [json!(null), json!([]), json!("x")] {
        refused(&global(&spec), "spec");
    }
}

#[test]
fn what_is_wrong_with_the_whole_policy_lets_nothing_pass() {
    let allow = json!([{"action": "Allow"}, {"action": "Pass"}, {"action": "Log"}]);
    for (path, spec) in [
        ("spec.types[1]", json!({"types": ["Ingress", "Ingress"]})),
        ("spec.performanceHints[0]", json!({"performanceHints": ["Fast"]})),
        (
            "spec.performanceHints[1]",
            json!({"performanceHints": ["AssumeNeededOnEveryNode", "AssumeNeededOnEveryNode"]}),
        ),
    ] {
        let mut spec = spec;
        spec["ingress"] = allow.clone();
        for value in [global(&spec), namespaced(&spec)] {
            refused(&value, path);
            let rules = lowered(&value).ingress.unwrap();
            let words: Vec<String> = rules.iter().map(words).collect();
            assert_eq!(words, [NOTHING, EVERYTHING, "Log anyone at anywhere"], "{spec}");
        }
    }
    for (name, global) in [
        ("a.b.c", true),
        ("A", true),
        ("knp.default.x.y", true),
        ("a.b.c", false),
    ] {
        let kind = if global {
            "GlobalNetworkPolicy"
        } else {
            "NetworkPolicy"
        };
        refused(&object(kind, name, &json!({})), "metadata.name");
    }
    for (name, global) in [
        ("a.b", true),
        ("a", true),
        ("a.b", false),
        ("knp.default.x.y", false),
        ("ossg.default.x", false),
    ] {
        let kind = if global {
            "GlobalNetworkPolicy"
        } else {
            "NetworkPolicy"
        };
        assert_eq!(
            faults(&object(kind, name, &json!({}))),
            (Vec::new(), false),
            "{name}"
        );
    }
    for (path, spec) in [
        (
            "spec.preDNAT",
            json!({"preDNAT": true, "doNotTrack": true, "applyOnForward": true}),
        ),
        ("spec.applyOnForward", json!({"preDNAT": true})),
        (
            "spec.applyOnForward",
            json!({"doNotTrack": true, "applyOnForward": false}),
        ),
        (
            "spec.egress",
            json!({"preDNAT": true, "applyOnForward": true, "egress": allow}),
        ),
        (
            "spec.types",
            json!({"preDNAT": true, "applyOnForward": true, "types": ["Egress"]}),
        ),
    ] {
        refused(&global(&spec), path);
    }
    let rules = vec![json!({"action": "Deny"}); 1025];
    refused(&namespaced(&json!({"ingress": rules})), "spec.ingress");
}

#[test]
fn rules_that_are_refused_fail_closed() {
    let nets: Vec<String> = (0..257)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    let ports: Vec<u32> = (1..52).collect();
    let methods: Vec<String> = (0..21).map(|n| format!("M{n}")).collect();
    let long = format!("has({})", "a".repeat(1020));
    let many: Vec<String> = (0..9).map(|n| format!("(has(a{n})||has(b{n}))")).collect();
    for (path, rule) in [
        ("action", json!({"action": "allow"})),
        ("from", json!({"from": []})),
        ("ports", json!({"ports": [80]})),
        ("selector", json!({"selector": "all()"})),
        ("ipVersion", json!({"ipVersion": 5})),
        ("ipVersion", json!({"ipVersion": "4"})),
        ("protocol", json!({"protocol": "tcp"})),
        ("protocol", json!({"protocol": 0})),
        ("protocol", json!({"protocol": 256})),
        ("protocol", json!({"protocol": "IGMP"})),
        ("notProtocol", json!({"notProtocol": "Tcp"})),
        ("protocol", json!({"protocol": "ICMP", "ipVersion": 6})),
        ("protocol", json!({"protocol": 58, "ipVersion": 4})),
        ("notProtocol", json!({"notProtocol": "ICMPv6", "ipVersion": 4})),
        ("icmp", json!({"icmp": {"type": 8}})),
        ("icmp", json!({"protocol": "TCP", "icmp": {"type": 8}})),
        ("notICMP", json!({"notICMP": {"type": 8}})),
        ("icmp.type", json!({"protocol": "ICMP", "icmp": {"type": 255}})),
        ("icmp.type", json!({"protocol": "ICMP", "icmp": {"type": -1}})),
        (
            "icmp.code",
            json!({"protocol": "ICMP", "icmp": {"type": 0, "code": 256}}),
        ),
        ("icmp.code", json!({"protocol": "ICMP", "icmp": {"code": 0}})),
        ("icmp.typ", json!({"protocol": "ICMP", "icmp": {"typ": 0}})),
        ("http", json!({"http": {"methods": ["GET"]}, "protocol": "UDP"})),
        ("http.methods[1]", json!({"http": {"methods": ["GET", "GET"]}})),
        ("http.methods", json!({"http": {"methods": methods}})),
        ("http.paths[0]", json!({"http": {"paths": [{}]}})),
        (
            "http.paths[0]",
            json!({"http": {"paths": [{"exact": "/a", "prefix": "/b"}]}}),
        ),
        ("http.paths[0]", json!({"http": {"paths": [{"exact": "a"}]}})),
        ("http.paths[0]", json!({"http": {"paths": [{"prefix": "/a?b"}]}})),
        ("metadata.name", json!({"metadata": {"name": "x"}})),
        ("source", json!({"source": []})),
        ("source.podSelector", json!({"source": {"podSelector": {}}})),
        ("source.selector", json!({"source": {"selector": "a = 'b'"}})),
        ("source.selector", json!({"source": {"selector": "global()"}})),
        (
            "source.selector",
            json!({"source": {"selector": "a == 'global('"}}),
        ),
        ("source.selector", json!({"source": {"selector": long}})),
        ("source", json!({"source": {"selector": many.join(" && ")}})),
        (
            "source.notSelector",
            json!({"source": {"notSelector": "has (a)"}}),
        ),
        (
            "source.namespaceSelector",
            json!({"source": {"namespaceSelector": "!global()"}}),
        ),
        (
            "source.namespaceSelector",
            json!({"source": {"namespaceSelector": "global() || has(a)"}}),
        ),
        (
            "source.namespaceSelector",
            json!({"source": {"namespaceSelector": "all ()"}}),
        ),
        (
            "source.serviceAccounts.name",
            json!({"source": {"serviceAccounts": {"name": "x"}}}),
        ),
        (
            "source.serviceAccounts.selector",
            json!({"source": {"serviceAccounts": {"selector": "x"}}}),
        ),
        (
            "source.serviceAccounts.names[0]",
            json!({"source": {"serviceAccounts": {"names": ["x', 'y"]}}}),
        ),
        (
            "source.serviceAccounts.names[1]",
            json!({"source": {"serviceAccounts": {"names": ["x", "x"]}}}),
        ),
        ("source.nets[0]", json!({"source": {"nets": ["10.0.0.0"]}})),
        (
            "source.nets[1]",
            json!({"source": {"nets": ["10.0.0.0/8", "10.0.0.0/8"]}}),
        ),
        ("source.nets[0]", json!({"source": {"nets": [10]}})),
        ("source.nets", json!({"source": {"nets": nets}})),
        (
            "source.nets",
            json!({"source": {"nets": ["10.0.0.0/8", "fd00::/8"]}}),
        ),
        (
            "source.notNets",
            json!({"source": {"nets": ["10.0.0.0/8"], "notNets": ["fd00::/8"]}}),
        ),
        (
            "destination.nets",
            json!({"source": {"nets": ["10.0.0.0/8"]}, "destination": {"nets": ["fd00::/8"]}}),
        ),
        (
            "source.nets",
            json!({"ipVersion": 6, "source": {"nets": ["10.0.0.0/8"]}}),
        ),
        ("source.notNets[0]", json!({"source": {"notNets": ["0.0.0.0/0"]}})),
        ("source.notNets[0]", json!({"source": {"notNets": ["::/0"]}})),
        ("destination.ports", json!({"destination": {"ports": [80]}})),
        (
            "destination.ports",
            json!({"protocol": "ICMP", "destination": {"ports": ["x"]}}),
        ),
        (
            "destination.notPorts",
            json!({"protocol": 1, "destination": {"notPorts": ["x"]}}),
        ),
        ("source.ports", json!({"source": {"ports": [80]}})),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": [0]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": [65536]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": ["90:80"]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": ["0:80"]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": ["two words"]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": ["a b"]}}),
        ),
        (
            "destination.ports[0]",
            json!({"protocol": "TCP", "destination": {"ports": [null]}}),
        ),
        (
            "destination.ports",
            json!({"protocol": "TCP", "destination": {"ports": ports}}),
        ),
        (
            "source.services.name",
            json!({"source": {"services": {"namespace": "a"}}}),
        ),
        (
            "source.services.name",
            json!({"source": {"services": {"name": "a b"}}}),
        ),
        (
            "source.services.port",
            json!({"source": {"services": {"name": "a", "port": 1}}}),
        ),
        (
            "source.selector",
            json!({"source": {"services": {"name": "a"}, "selector": "all()"}}),
        ),
        (
            "source.namespaceSelector",
            json!({"source": {"services": {"name": "a"}, "namespaceSelector": "all()"}}),
        ),
        (
            "source.serviceAccounts",
            json!({"source": {"services": {"name": "a"}, "serviceAccounts": {}}}),
        ),
        (
            "source.nets",
            json!({"source": {"services": {"name": "a"}, "nets": ["10.0.0.0/8"]}}),
        ),
        (
            "destination.services",
            json!({"destination": {"services": {"name": "a"}}}),
        ),
    ] {
        for (action, comes_to) in [
            ("Allow", NOTHING),
            ("Deny", EVERYTHING),
            ("Pass", EVERYTHING),
            ("Log", "Log  at anywhere"),
        ] {
            let mut rule = rule.clone();
            if path == "action" {
                if action != "Allow" {
                    continue;
                }
            } else {
                rule["action"] = json!(action);
            }
            let (read, policy) = self::rule(false, "ingress", &rule);
            assert_eq!(words(&read), comes_to, "{rule}");
            let wanted = format!("spec.ingress[0].{path}");
            assert!(
                policy.faults.iter().any(|fault| fault.path == wanted),
                "{wanted}: {rule}: {:?}",
                policy.faults
            );
        }
    }
    for rule in [
        json!(null),
        json!([]),
        json!("Allow"),
        json!({}),
        json!({"action": "Drop"}),
        json!({"action": 1}),
    ] {
        assert_eq!(
            words(&self::rule(false, "ingress", &rule).0),
            EVERYTHING,
            "{rule}"
        );
    }
    for (action, comes_to) in [
        ("Accept", NOTHING),
        ("deny", EVERYTHING),
        ("next-tier", EVERYTHING),
        ("log", "Log  at anywhere"),
    ] {
        assert_eq!(
            words(&self::rule(false, "ingress", &json!({"action": action})).0),
            comes_to,
            "{action}"
        );
    }
    // Only of egress.
    let http = json!({"action": "Allow", "http": {"methods": ["GET"]}});
    let source = json!({"action": "Allow", "source": {"services": {"name": "a"}}});
    let ports = json!({"action": "Allow", "protocol": "TCP", "destination": {"services": {"name": "a"}, "ports": [80]}});
    for (path, rule) in [
        ("http", http),
        ("source.services", source),
        ("destination.ports", ports),
    ] {
        let (read, policy) = self::rule(false, "egress", &rule);
        assert_eq!(words(&read), NOTHING);
        assert_eq!(policy.faults[0].path, format!("spec.egress[0].{path}"));
    }
    for (path, action) in [("http", "Deny"), ("http", "Log")] {
        let rule = json!({"action": action, "http": {"methods": ["GET"]}});
        refused(
            &namespaced(&json!({"ingress": [rule]})),
            &format!("spec.ingress[0].{path}"),
        );
    }
    // A cluster-wide policy has no namespace of its own.
    let service = json!({"action": "Allow", "source": {"services": {"name": "a"}}});
    refused(
        &global(&json!({"ingress": [service]})),
        "spec.ingress[0].source.services.namespace",
    );
}

#[test]
fn other_objects_are_refused_with_a_path() {
    for (kind, path, spec) in [
        ("Tier", "spec.order", json!({"order": "1"})),
        ("Tier", "spec.defaultAction", json!({"defaultAction": "Allow"})),
        ("Tier", "spec.priority", json!({"priority": 1})),
        ("NetworkSet", "spec.nets[0]", json!({"nets": ["x"]})),
        ("NetworkSet", "spec.nets[0]", json!({"nets": [1]})),
        (
            "NetworkSet",
            "spec.nets[1]",
            json!({"nets": ["10.0.0.0/8", "10.0.0.0/8"]}),
        ),
        ("GlobalNetworkSet", "spec.net", json!({"net": []})),
        ("HostEndpoint", "spec.node", json!({"interfaceName": "eth0"})),
        ("HostEndpoint", "spec", json!({"node": "n"})),
        (
            "HostEndpoint",
            "spec.interfaceName",
            json!({"node": "n", "interfaceName": "a b"}),
        ),
        (
            "HostEndpoint",
            "spec.expectedIPs[0]",
            json!({"node": "n", "expectedIPs": ["10.0.0.0/8"]}),
        ),
        (
            "StagedNetworkPolicy",
            "spec.stagedAction",
            json!({"stagedAction": "set"}),
        ),
        ("StagedNetworkPolicy", "spec.selector", json!({"selector": "a"})),
        (
            "StagedNetworkPolicy",
            "spec.order",
            json!({"stagedAction": "Delete", "order": 1}),
        ),
        (
            "StagedGlobalNetworkPolicy",
            "spec.ingress[0].action",
            json!({"ingress": [{}]}),
        ),
        (
            "StagedKubernetesNetworkPolicy",
            "spec.podSelector.x",
            json!({"podSelector": {"x": 1}}),
        ),
        (
            "StagedKubernetesNetworkPolicy",
            "spec.podSelector",
            json!({"stagedAction": "Delete", "podSelector": {"matchLabels": {"a": "b"}}}),
        ),
    ] {
        refused(&object(kind, "p", &spec), path);
    }
    for name in ["a.b", "A", &"a".repeat(64)] {
        refused(&object("Tier", name, &json!({})), "metadata.name");
    }
    let mut set = object("NetworkSet", "s", &json!({}));
    set["metadata"]["namspace"] = json!("a");
    refused(&set, "metadata.namspace");
}

/// Rules of every field.
fn valid() -> Value {
    global(&json!({
        "tier": "platform", "order": 5, "selector": "has(a)", "namespaceSelector": "has(b)", "types": ["Egress"],
        "egress": [
            {"action": "Allow", "protocol": "TCP", "source": {"selector": "all()"},
             "destination": {"selector": "x == 'y'", "namespaceSelector": "all()", "ports": [80, "web", "1:2"]}},
            {"action": "Deny", "protocol": "TCP", "notProtocol": "UDP", "destination": {"nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"]},
             "metadata": {"annotations": {"a": "b"}}},
            {"action": "Pass", "protocol": "ICMP", "icmp": {}, "ipVersion": 4},
            {"action": "Allow", "destination": {"serviceAccounts": {"names": ["s"], "selector": "has(t)"}}},
            {"action": "Log", "destination": {"services": {"name": "s", "namespace": "n"}}},
        ],
    }))
}

#[test]
fn the_valid_policy_is_valid() {
    let policy = lowered(&valid());
    assert_eq!(policy.faults, []);
    assert!(policy.unevaluated.is_empty());
}

proptest! {
    #[test]
    fn rules_of_anything_allow_nothing_or_are_valid(rules in prop::collection::vec(anything(), 0..4), global in any::<bool>()) {
        let number = rules.len();
        let spec = json!({"types": ["Ingress"], "ingress": rules});
        let policy = lowered(&if global { super::global(&spec) } else { namespaced(&spec) });
        let read = policy.ingress.unwrap();
        prop_assert_eq!(read.len(), number);
        for rule in read {
            prop_assert!(rule.action == Action::Deny || rule.peers.is_some_and(|peers| peers.is_empty()));
        }
    }

    #[test]
    fn a_spec_of_anything_is_read_or_refused(spec in anything(), kind in prop::sample::select(crate::decode::calico::Kind::ALL.to_vec())) {
        let value = object(kind.name(), "p", &spec);
        // Either outcome will do; a panic will not.
        let _ = decode(&value);
        let _ = decode_served(&value);
    }

    /// Nothing unknown is passed over.
    #[test]
    fn an_unknown_field_anywhere_in_a_spec_is_found(pick in any::<prop::sample::Index>()) {
        let mut value = valid();
        let mut all = Vec::new();
        places(&value["spec"], &mut vec!["spec".to_owned()], &mut all);
        all.retain(|place| at(&mut value, place).is_object() && place.last().is_none_or(|last| last != "annotations"));
        let place = pick.get(&all);
        at(&mut value, place)["surprise"] = 1.into();
        let (faults, whole) = faults(&value);
        prop_assert!(faults.iter().any(|fault| fault.path.ends_with("surprise")), "{place:?}");
        prop_assert_eq!(whole, place.len() == 1);
        if let Some(index) = place.get(2) {
            let index: usize = index.parse().unwrap();
            let rule = &lowered(&value).egress.unwrap()[index];
            let wanted = [NOTHING, EVERYTHING, EVERYTHING, NOTHING, "Log  at anywhere"];
            prop_assert_eq!(words(rule), wanted[index]);
        }
    }

    /// Whatever stands in one place, the other rules stay as they are.
    #[test]
    fn one_bad_value_does_not_touch_the_other_rules(pick in any::<prop::sample::Index>(), bad in anything()) {
        let whole = valid();
        let mut value = whole.clone();
        let mut all = Vec::new();
        places(&value["spec"]["egress"], &mut vec!["spec".to_owned(), "egress".to_owned()], &mut all);
        all.retain(|place| place.len() > 2);
        let place = pick.get(&all);
        *at(&mut value, place) = bad;
        let (good, policy) = (lowered(&whole), lowered(&value));
        let index: usize = place[2].parse().unwrap();
        for (number, (before, now)) in good.egress.unwrap().iter().zip(policy.egress.unwrap()).enumerate() {
            prop_assert!(number == index || *before == now);
        }
    }
}
