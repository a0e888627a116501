//! What the points and traps of the checklist for these kinds come to in the lowered form, each by its number, and that
//! nothing in an object makes decoding stop or widen.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ringwall_policy::{Action, Conditions, Object, Operator, Peer, Protocol, Requirement, TieredRule};
use serde_json::json;

use super::{
    super::{
        DecodeError, Decoded, decode, decode_served,
        tests::{anything, at, places},
    },
    rules::is_domain_name,
    *,
};

fn cluster(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": spec,
    })
}

fn admin(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
        "metadata": {"name": "p"}, "spec": spec,
    })
}

fn baseline(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"}, "spec": spec,
    })
}

/// A spec of every kind but for what a change to it says.
fn spec(kind: fn(Value) -> Value, direction: &str, rules: Value) -> Value {
    let mut spec = json!({"subject": {"namespaces": {}}});
    spec[direction] = rules;
    let whole = kind(spec);
    let places: &[(&str, Value)] = match whole["kind"].as_str() {
        Some("ClusterNetworkPolicy") => &[("tier", json!("Admin")), ("priority", json!(5))],
        Some("AdminNetworkPolicy") => &[("priority", json!(5))],
        _ => &[],
    };
    let mut whole = whole;
    for (key, value) in places {
        whole["spec"][key] = value.clone();
    }
    whole
}

fn decoded(value: &Value) -> Result<Decoded, DecodeError> {
    decode(value).map(|mut all| all.remove(0))
}

/// A decoded policy, which these kinds have one selection of pods in; without rules it has no part in a direction.
struct Policy {
    tier: String,
    priority: f64,
    namespaces: Selector,
    pods: Selector,
    ingress: Vec<TieredRule>,
    egress: Vec<TieredRule>,
    faults: Vec<Fault>,
    unevaluated: BTreeSet<String>,
}

fn policy_of(value: &Value) -> Policy {
    let Object::Tiered(mut policy) = decoded(value).unwrap().object else {
        panic!("{value} is no such policy");
    };
    let subjects = policy.subjects.remove(0);
    assert!(policy.subjects.is_empty());
    let rules = |rules: Option<Vec<TieredRule>>| {
        assert!(!rules.as_ref().is_some_and(Vec::is_empty));
        rules.unwrap_or_default()
    };
    Policy {
        tier: policy.tier,
        priority: policy.order.number(),
        namespaces: subjects.namespaces,
        pods: subjects.pods,
        ingress: rules(policy.ingress),
        egress: rules(policy.egress),
        faults: policy.faults,
        unevaluated: policy.unevaluated,
    }
}

/// The path of what keeps an object from being decoded.
fn error(value: &Value) -> String {
    decoded(value).unwrap_err().fault.path
}

fn paths(faults: &[Fault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.path.as_str()).collect()
}

/// One rule of egress, alone in its policy, with the paths of its faults within it.
fn egress(kind: fn(Value) -> Value, rule: Value) -> (TieredRule, Vec<String>) {
    one_rule(kind, "egress", rule)
}

fn one_rule(kind: fn(Value) -> Value, direction: &str, rule: Value) -> (TieredRule, Vec<String>) {
    let mut policy = policy_of(&spec(kind, direction, json!([rule])));
    let within = format!("spec.{direction}[0]");
    let faults = policy
        .faults
        .iter()
        .map(|fault| match fault.path.strip_prefix(&within) {
            Some(rest) => rest.trim_start_matches('.').to_owned(),
            None => panic!("{fault:?} is elsewhere"),
        })
        .collect();
    let mut rules = match direction {
        "ingress" => std::mem::take(&mut policy.ingress),
        _ => std::mem::take(&mut policy.egress),
    };
    assert_eq!(rules.len(), 1);
    (rules.remove(0), faults)
}

fn all() -> Selector {
    Selector::default()
}

fn label(key: &str, value: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: key.to_owned(),
            operator: Operator::In(BTreeSet::from([value.to_owned()])),
        }],
    }
}

fn pods_of(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: Some(namespaces),
        pods,
    }
}

fn block(text: &str) -> Peer {
    Peer::Block {
        cidr: text.parse().unwrap(),
        except: Vec::new(),
    }
}

fn range(protocol: Protocol, lo: u16, hi: u16) -> PortMatch {
    PortMatch::Range { protocol, lo, hi }
}

fn named_port(name: &str) -> Vec<PortMatch> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .map(|protocol| PortMatch::Named {
            protocol,
            name: name.to_owned(),
        })
        .to_vec()
}

const NOTHING: TieredRule = TieredRule {
    continues: false,
    action: Action::Allow,
    peers: Some(Vec::new()),
    ports: None,
    conditions: Conditions::NONE,
};

const DENY_ALL: TieredRule = TieredRule {
    continues: false,
    action: Action::Deny,
    peers: None,
    ports: None,
    conditions: Conditions::NONE,
};

/// A rule of egress with these fields besides its action is not understood, whatever it does.
fn not_understood(kind: fn(Value) -> Value, fields: &Value, path: &str) {
    let actions = match kind(json!({}))["kind"].as_str() {
        Some("ClusterNetworkPolicy") => vec![("Accept", NOTHING), ("Deny", DENY_ALL), ("Pass", DENY_ALL)],
        Some("AdminNetworkPolicy") => vec![("Allow", NOTHING), ("Deny", DENY_ALL), ("Pass", DENY_ALL)],
        _ => vec![("Allow", NOTHING), ("Deny", DENY_ALL)],
    };
    for (action, wanted) in actions {
        let mut rule = fields.clone();
        rule["action"] = action.into();
        let (rule, faults) = egress(kind, rule);
        assert_eq!(
            (rule, faults),
            (wanted, vec![path.to_owned()]),
            "{action} {fields}"
        );
    }
}

const ALL_PODS: &str = r#"{"namespaces": {}}"#;

fn all_pods() -> Value {
    serde_json::from_str(ALL_PODS).unwrap()
}

#[test]
fn a_valid_policy_of_each_kind_is_lowered() {
    let rules = json!([
        {"name": "first", "action": "Deny", "to": [{"pods": {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}}}]},
        {"action": "Deny", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"namespaces": {}}]},
    ]);
    let places = [
        (
            cluster as fn(Value) -> Value,
            PolicyKind::ClusterNetworkPolicy,
            "p",
            KUBE_ADMIN,
            5,
        ),
        (admin, PolicyKind::AdminNetworkPolicy, "p", KUBE_ADMIN, 5),
        (
            baseline,
            PolicyKind::BaselineAdminNetworkPolicy,
            "default",
            KUBE_BASELINE,
            1000,
        ),
    ];
    for (kind, id, name, tier, priority) in places {
        let mut value = spec(kind, "egress", rules.clone());
        value["metadata"]["uid"] = "u".into();
        for decoded in [decoded(&value).unwrap(), decode_served(&value).unwrap().remove(0)] {
            assert_eq!(decoded.label, format!("{} {name}", id.name()));
            assert_eq!((decoded.notes, decoded.unevaluated), (vec![], vec![]));
            let wanted = TieredPolicy {
                uid: "u".to_owned(),
                egress: Some(vec![
                    TieredRule {
                        continues: false,
                        action: Action::Deny,
                        peers: Some(vec![pods_of(label("a", "b"), all())]),
                        ports: None,
                        conditions: Conditions::NONE,
                    },
                    TieredRule {
                        continues: false,
                        action: Action::Deny,
                        peers: Some(vec![
                            block("10.0.0.0/8"),
                            block("fd00::/8"),
                            pods_of(all(), all()),
                        ]),
                        ports: None,
                        conditions: Conditions::NONE,
                    },
                ]),
                ..TieredPolicy::new(id, name, tier, Order::of_priority(priority))
            };
            assert_eq!(decoded.object, Object::Tiered(wanted));
        }
    }
}

#[test]
fn tiers_66_2_actions_by_their_names_in_each_kind() {
    for (kind, name, wanted) in [
        (cluster as fn(Value) -> Value, "Accept", Some(Action::Allow)),
        (cluster, "Deny", Some(Action::Deny)),
        (cluster, "Pass", Some(Action::Pass)),
        (admin, "Allow", Some(Action::Allow)),
        (admin, "Pass", Some(Action::Pass)),
        (baseline, "Allow", Some(Action::Allow)),
        (baseline, "Deny", Some(Action::Deny)),
        (cluster, "Allow", None),
        (cluster, "accept", None),
        (admin, "Accept", None),
        (baseline, "Pass", None),
        (cluster, "Log", None),
        (cluster, "", None),
    ] {
        let (rule, faults) = egress(kind, json!({"action": name, "to": [all_pods()]}));
        match wanted {
            Some(action) => assert_eq!((rule.action, faults), (action, vec![]), "{name}"),
            // What says in other words that it allows must not deny, and what might deny must.
            None if ["accept", "allow"].contains(&name.to_ascii_lowercase().as_str()) => {
                assert_eq!((rule, faults), (NOTHING, vec!["action".to_owned()]), "{name}");
            }
            None => assert_eq!((rule, faults), (DENY_ALL, vec!["action".to_owned()]), "{name}"),
        }
    }
    for action in [
        json!({"to": [all_pods()]}),
        json!({"action": 1, "to": [all_pods()]}),
    ] {
        assert_eq!(egress(cluster, action), (DENY_ALL, vec!["action".to_owned()]));
    }
    for rule in [Value::Null, json!("Accept"), json!([])] {
        assert_eq!(egress(cluster, rule), (DENY_ALL, vec![String::new()]));
    }
}

#[test]
fn tiers_66_3_the_kinds_by_group_and_version() {
    let at = |api: &str, kind: &str| {
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": "default"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}})
    };
    let good = at("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
    assert_eq!(policy_of(&good).faults, []);
    for (api, kind, path) in [
        (
            "policy.networking.k8s.io/v1alpha1",
            "ClusterNetworkPolicy",
            "apiVersion",
        ),
        (
            "policy.networking.k8s.io/v1alpha2",
            "AdminNetworkPolicy",
            "apiVersion",
        ),
        (
            "policy.networking.k8s.io/v1alpha2",
            "BaselineAdminNetworkPolicy",
            "apiVersion",
        ),
        (
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicies",
            "kind",
        ),
        ("policy.networking.k8s.io/v1alpha1", "adminNetworkPolicy", "kind"),
        (
            "policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicy ",
            "kind",
        ),
        ("policy.networking.k8s.io", "ClusterNetworkPolicy", "apiVersion"),
        ("v1alpha2", "ClusterNetworkPolicy", "apiVersion"),
        ("", "AdminNetworkPolicy", "apiVersion"),
        (
            "Policy.networking.k8s.io/v1alpha2",
            "ClusterNetworkPolicy",
            "apiVersion",
        ),
        (
            "policy.networking.x-k8s.io/v1alpha2",
            "ClusterNetworkPolicy",
            "apiVersion",
        ),
        ("networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "apiVersion"),
    ] {
        assert_eq!(error(&at(api, kind)), path, "{api} {kind}");
    }
    // No policy of a kind that is not known disappears, and Antrea's is another one.
    for (api, kind) in [
        ("policy.networking.k8s.io/v1", "TenantNetworkPolicy"),
        ("policy.networking.k8s.io/v1", "CNP"),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
    ] {
        let object = decoded(&at(api, kind)).unwrap().object;
        assert!(matches!(object, Object::Unevaluated { .. }), "{api} {kind}");
    }
    let list = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicyList",
        "items": [{"metadata": {"name": "x"}, "spec": {"tier": "Admin", "priority": 1}}]});
    assert_eq!(error(&list), "items[0].spec.subject");
}

#[test]
fn tiers_66_4_tiers_are_spelt_as_they_are() {
    for (tier, wanted) in [
        (json!("Admin"), Some(KUBE_ADMIN)),
        (json!("Baseline"), Some(KUBE_BASELINE)),
        (json!("admin"), None),
        (json!("NetworkPolicy"), None),
        (json!(""), None),
        (json!(1), None),
        (Value::Null, None),
    ] {
        let mut value = spec(cluster, "egress", json!([]));
        value["spec"]["tier"] = tier;
        match wanted {
            Some(tier) => assert_eq!(policy_of(&value).tier, tier),
            None => assert_eq!(error(&value), "spec.tier"),
        }
    }
}

#[test]
fn trap_34_priorities_from_0_to_1000() {
    for kind in [cluster, admin] {
        for (priority, wanted) in [
            (json!(0), Some(0.0)),
            (json!(1000), Some(1000.0)),
            (json!(7.0), Some(7.0)),
            (json!(1001), None),
            (json!(-1), None),
            (json!(1.5), None),
            (json!(65537), None),
            (json!("5"), None),
            (Value::Null, None),
        ] {
            let mut value = spec(kind, "egress", json!([]));
            value["spec"]["priority"] = priority.clone();
            match wanted {
                Some(number) => assert_eq!(policy_of(&value).priority, number),
                None => assert_eq!(error(&value), "spec.priority", "{priority}"),
            }
        }
    }
    let mut value = spec(baseline, "egress", json!([]));
    value["spec"]["priority"] = 3.into();
    assert_eq!(error(&value), "spec.priority");
}

#[test]
fn trap_32_an_admin_network_policy_of_priority_100_is_valid() {
    let mut value = spec(admin, "egress", json!([]));
    value["spec"]["priority"] = 100.into();
    let policy = policy_of(&value);
    assert_eq!((policy.priority, policy.faults), (100.0, vec![]));
}

/// What an API server refuses for another reason than its rules lets nothing pass; what it denies, it denies.
#[test]
fn tiers_68_1_beyond_the_limits_nothing_is_allowed_or_passed_on() {
    let many = |entry: Value, number: usize| Value::Array(vec![entry; number]);
    let rule = json!({"action": "Accept", "to": [all_pods()]});
    for (kind, allow, most) in [
        (cluster as fn(Value) -> Value, "Accept", 25),
        (admin, "Allow", 100),
    ] {
        let mut rule = rule.clone();
        rule["action"] = allow.into();
        for (number, faults) in [(most, vec![]), (most + 1, vec!["spec.egress"])] {
            let policy = policy_of(&spec(kind, "egress", many(rule.clone(), number)));
            assert_eq!(policy.egress.len(), number);
            let refused = number > most;
            assert!(policy.egress.iter().all(|it| (*it == NOTHING) == refused));
            assert_eq!(paths(&policy.faults), faults);
        }
        let mut peers = rule.clone();
        peers["to"] = many(all_pods(), most + 1);
        let (read, faults) = egress(kind, peers);
        assert_eq!((read, faults), (NOTHING, vec!["to".to_owned()]));
    }
    let number = json!({"tcp": {"destinationPort": {"number": 80}}});
    let ports = json!({"action": "Accept", "to": [all_pods()], "protocols": many(number, 26)});
    let (read, faults) = egress(cluster, ports);
    assert_eq!((read, faults), (NOTHING, vec!["protocols".to_owned()]));
    let networks: Vec<String> = (0..26).map(|n| format!("10.{n}.0.0/16")).collect();
    let (read, faults) = egress(cluster, json!({"action": "Deny", "to": [{"networks": networks}]}));
    assert_eq!(
        (read.action, read.peers.unwrap().len(), faults),
        (Action::Deny, 26, vec!["to[0].networks".to_owned()])
    );
    let twice = json!({"action": "Deny", "to": [{"networks": ["10.0.0.0/8", "10.0.0.0/8"]}]});
    let (read, faults) = egress(cluster, twice);
    assert_eq!(
        (read.peers.unwrap().len(), faults),
        (2, vec!["to[0].networks[1]".to_owned()])
    );
    // Characters, not bytes.
    for (name, bad) in [
        (json!("ü".repeat(100)), false),
        (json!("x".repeat(101)), true),
        (json!(7), true),
    ] {
        let (read, faults) = egress(
            cluster,
            json!({"name": name, "action": "Pass", "to": [all_pods()]}),
        );
        assert_eq!(read.action, if bad { Action::Deny } else { Action::Pass });
        assert_ne!(read.peers, None, "what it denies is what it would have passed on");
        assert_eq!(faults, if bad { vec!["name".to_owned()] } else { vec![] });
    }
}

#[test]
fn tiers_71_1_a_direction_without_rules_has_none() {
    for rules in [json!([]), Value::Null] {
        let policy = policy_of(&spec(cluster, "ingress", rules));
        assert_eq!(
            (policy.ingress, policy.egress, policy.faults),
            (vec![], vec![], vec![])
        );
    }
}

/// Trap 13, 14, 15, and that the fault says what the rule comes to.
#[test]
fn tiers_72_1_trap_13_14_15_a_peer_without_known_field_spoils_its_whole_rule() {
    not_understood(cluster, &json!({"to": [{}]}), "to[0]");
    not_understood(cluster, &json!({"to": [all_pods(), {}]}), "to[1]");
    not_understood(
        cluster,
        &json!({"to": [all_pods(), {"services": {}}]}),
        "to[1].services",
    );
    not_understood(
        cluster,
        &json!({"to": [all_pods(), {"namespaces": null}]}),
        "to[1]",
    );
    let port = json!([{"tcp": {"destinationPort": {"number": 80}}}]);
    not_understood(
        cluster,
        &json!({"to": [all_pods(), {}], "protocols": port}),
        "to[1]",
    );
    for (action, words) in [
        ("Accept", "matches nothing"),
        ("Pass", "denies everything in its direction"),
    ] {
        let policy = policy_of(&spec(cluster, "egress", json!([{"action": action, "to": [{}]}])));
        let message = &policy.faults[0].message;
        assert!(
            message.ends_with(&format!("as it stands, the rule {words}")),
            "{message}"
        );
    }
}

#[test]
fn tiers_72_2_one_bad_rule_leaves_the_others_and_their_numbers() {
    let rules = json!([
        {"action": "Accept", "from": [{}]},
        {"action": "Accept", "from": [all_pods()]},
        {"action": "Pass", "from": [{"nobody": 1}]},
    ]);
    let policy = policy_of(&spec(cluster, "ingress", rules));
    let good = TieredRule {
        continues: false,
        action: Action::Allow,
        peers: Some(vec![pods_of(all(), all())]),
        ports: None,
        conditions: Conditions::NONE,
    };
    assert_eq!(policy.ingress, [NOTHING, good, DENY_ALL]);
    assert_eq!(
        paths(&policy.faults),
        ["spec.ingress[0].from[0]", "spec.ingress[2].from[0].nobody"]
    );
}

#[test]
fn tiers_72_3_trap_16_an_empty_protocol_is_not_understood() {
    let with = |entry: Value| json!({"to": [all_pods()], "protocols": [{"tcp": {"destinationPort": {"number": 1}}}, entry]});
    not_understood(cluster, &with(json!({})), "protocols[1]");
    not_understood(cluster, &with(Value::Null), "protocols[1]");
    not_understood(cluster, &with(json!({"icmp": {}})), "protocols[1].icmp");
    not_understood(
        cluster,
        &json!({"to": [all_pods()], "protocols": []}),
        "protocols",
    );
    not_understood(
        cluster,
        &json!({"to": [all_pods()], "protocols": "tcp"}),
        "protocols",
    );
    not_understood(admin, &json!({"to": [all_pods()], "ports": [{}]}), "ports[0]");
    not_understood(admin, &json!({"to": [all_pods()], "ports": []}), "ports");
}

/// Whatever else of a rule cannot be read.
#[test]
fn tiers_72_4_rules_that_are_not_understood() {
    let ports = |entry: Value| json!({"to": [all_pods()], "protocols": [entry]});
    let tcp = |port: Value| ports(json!({"tcp": {"destinationPort": port}}));
    for (fields, path) in [
        (json!({}), "to"),
        (json!({"to": []}), "to"),
        (json!({"to": null}), "to"),
        (json!({"to": all_pods()}), "to"),
        (json!({"to": [null]}), "to[0]"),
        (json!({"to": [all_pods()], "from": [all_pods()]}), "from"),
        (
            json!({"to": [all_pods()], "ports": [{"portNumber": {"port": 1}}]}),
            "ports",
        ),
        (json!({"to": [all_pods()], "log": true}), "log"),
        (
            json!({"to": [{"namespaces": {}, "pods": {"podSelector": {}}}]}),
            "to[0]",
        ),
        (json!({"to": [{"namespaces": []}]}), "to[0].namespaces"),
        (
            json!({"to": [{"namespaces": {"app": "x"}}]}),
            "to[0].namespaces.app",
        ),
        (
            json!({"to": [{"namespaces": {"matchLabels": {"app": 1}}}]}),
            "to[0].namespaces.matchLabels.app",
        ),
        (
            json!({"to": [{"namespaces": {"matchLabels": {"app": "-"}}}]}),
            "to[0].namespaces.matchLabels.app",
        ),
        (json!({"to": [{"pods": {}}]}), "to[0].pods.podSelector"),
        (
            json!({"to": [{"pods": {"podSelector": null}}]}),
            "to[0].pods.podSelector",
        ),
        (
            json!({"to": [{"pods": {"podSelector": {}, "matchLabels": {}}}]}),
            "to[0].pods.matchLabels",
        ),
        (json!({"to": [{"podSelector": {}}]}), "to[0].podSelector"),
        (
            json!({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}),
            "to[0].ipBlock",
        ),
        (json!({"to": [{"networks": []}]}), "to[0].networks"),
        (json!({"to": [{"networks": "10.0.0.0/8"}]}), "to[0].networks"),
        (
            json!({"to": [{"networks": ["10.0.0.0/8", "10.0.0.0"]}]}),
            "to[0].networks[1]",
        ),
        (json!({"to": [{"networks": [null]}]}), "to[0].networks[0]"),
        (tcp(json!({})), "protocols[0].tcp.destinationPort"),
        (
            tcp(json!({"number": 0})),
            "protocols[0].tcp.destinationPort.number",
        ),
        (
            tcp(json!({"number": 65536})),
            "protocols[0].tcp.destinationPort.number",
        ),
        (
            tcp(json!({"number": "80"})),
            "protocols[0].tcp.destinationPort.number",
        ),
        (
            tcp(json!({"number": 1, "range": {"start": 1, "end": 2}})),
            "protocols[0].tcp.destinationPort",
        ),
        (tcp(json!({"port": 80})), "protocols[0].tcp.destinationPort.port"),
        (tcp(json!(80)), "protocols[0].tcp.destinationPort"),
        (
            tcp(json!({"range": {"start": 1}})),
            "protocols[0].tcp.destinationPort.range.end",
        ),
        (
            tcp(json!({"range": {"start": 0, "end": 1}})),
            "protocols[0].tcp.destinationPort.range.start",
        ),
        (
            tcp(json!({"range": {"start": 1, "end": 2, "step": 1}})),
            "protocols[0].tcp.destinationPort.range.step",
        ),
        (tcp(json!({"range": 7})), "protocols[0].tcp.destinationPort.range"),
        (
            ports(json!({"tcp": {"flags": ["syn"]}})),
            "protocols[0].tcp.flags",
        ),
        (ports(json!({"tcp": 80})), "protocols[0].tcp"),
        (
            ports(
                json!({"tcp": {"destinationPort": {"number": 1}}, "udp": {"destinationPort": {"number": 1}}}),
            ),
            "protocols[0]",
        ),
        (ports(json!(80)), "protocols[0]"),
    ] {
        not_understood(cluster, &fields, path);
    }
}

/// An object of which the rest cannot be placed is refused with its file.
#[test]
fn tiers_72_5_subject_place_and_shape_that_cannot_be_read_are_errors() {
    let at = |path: &str, value: Value| {
        let mut whole = spec(
            cluster,
            "ingress",
            json!([{"action": "Accept", "from": [all_pods()]}]),
        );
        *whole.pointer_mut(path).unwrap() = value;
        whole
    };
    for (subject, path) in [
        (Value::Null, "spec.subject"),
        (json!({}), "spec.subject"),
        (json!("all"), "spec.subject"),
        (
            json!({"namespaces": {}, "pods": {"podSelector": {}}}),
            "spec.subject",
        ),
        (json!({"namespaces": {}, "except": 1}), "spec.subject.except"),
        (json!({"podSelector": {}}), "spec.subject.podSelector"),
        (json!({"matchLabels": {}}), "spec.subject.matchLabels"),
        (json!({"pods": {}}), "spec.subject.pods.podSelector"),
        (
            json!({"pods": {"namespaceSelector": {}}}),
            "spec.subject.pods.podSelector",
        ),
        (json!({"namespaces": []}), "spec.subject.namespaces"),
        (
            json!({"namespaces": {"matchExpressions": [{"key": "a", "operator": "notIn", "values": ["b"]}]}}),
            "spec.subject.namespaces.matchExpressions[0].operator",
        ),
        (
            json!({"pods": {"podSelector": {"matchLabels": {"a": true}}}}),
            "spec.subject.pods.podSelector.matchLabels.a",
        ),
    ] {
        assert_eq!(error(&at("/spec/subject", subject.clone())), path, "{subject}");
    }
    assert_eq!(
        error(&at("/spec/ingress", json!({"action": "Deny"}))),
        "spec.ingress"
    );
    assert_eq!(error(&at("/spec", Value::Null)), "spec");
    assert_eq!(error(&at("/spec", json!([]))), "spec");
    // Rules that would be lost.
    for (place, key, path) in [
        ("/spec", "ingres", "spec.ingres"),
        ("/spec", "policyTypes", "spec.policyTypes"),
        ("", "egress", "egress"),
    ] {
        let mut whole = at("/spec/tier", json!("Admin"));
        whole.pointer_mut(place).unwrap()[key] = json!([]);
        assert_eq!(error(&whole), path);
    }
    let mut tier = spec(admin, "egress", json!([]));
    tier["spec"]["tier"] = "Admin".into();
    assert_eq!(error(&tier), "spec.tier");
}

#[test]
fn tiers_72_6_trap_26_27_selectors_that_an_api_server_does_not_check() {
    let with = |operator: &str, values: Value| json!({"to": [{"namespaces": {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}}]});
    let at = "to[0].namespaces.matchExpressions[0]";
    not_understood(cluster, &with("notIn", json!(["b"])), &format!("{at}.operator"));
    not_understood(cluster, &with("In", json!([])), &format!("{at}.values"));
    not_understood(cluster, &with("NotIn", Value::Null), &format!("{at}.values"));
    not_understood(cluster, &with("Exists", json!(["b"])), &format!("{at}.values"));
    not_understood(cluster, &with("In", json!([null])), &format!("{at}.values[0]"));
}

#[test]
fn tiers_72_7_trap_28_a_label_without_value_is_dropped() {
    for (peer, namespaces, pods) in [
        (json!({"namespaces": {"matchLabels": {"k": null}}}), all(), all()),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"k": null, "a": "b"}}, "podSelector": {"matchLabels": {"k": ""}}}}),
            label("a", "b"),
            label("k", ""),
        ),
    ] {
        let value = spec(cluster, "egress", json!([{"action": "Deny", "to": [peer]}]));
        let decoded = decoded(&value).unwrap();
        assert!(
            decoded.notes[0].path.ends_with("matchLabels.k"),
            "{:?}",
            decoded.notes
        );
        let policy = policy_of(&value);
        assert_eq!(
            (policy.egress[0].peers.as_deref(), policy.faults),
            (Some(&[pods_of(namespaces, pods)][..]), vec![])
        );
    }
    let network_policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
        "spec": {"podSelector": {"matchLabels": {"k": null}}},
    });
    let Object::NetworkPolicy(policy) = decode(&network_policy).unwrap().remove(0).object else {
        panic!("a NetworkPolicy");
    };
    assert_eq!(policy.subjects, label("k", ""));
}

#[test]
fn tiers_73_1_trap_29_subjects_and_pods_without_namespace_selector_are_of_all_namespaces() {
    let both =
        json!({"namespaceSelector": {"matchLabels": {"n": "x"}}, "podSelector": {"matchLabels": {"p": "y"}}});
    for (pods, namespaces, of_pods) in [
        (json!({"podSelector": {}}), all(), all()),
        (
            json!({"namespaceSelector": null, "podSelector": {}}),
            all(),
            all(),
        ),
        (
            json!({"podSelector": {"matchLabels": {"p": "y"}}}),
            all(),
            label("p", "y"),
        ),
        (both, label("n", "x"), label("p", "y")),
    ] {
        let mut value = spec(
            cluster,
            "ingress",
            json!([{"action": "Pass", "from": [{"pods": pods}]}]),
        );
        value["spec"]["subject"] = json!({"pods": pods});
        let policy = policy_of(&value);
        assert_eq!(policy.faults, []);
        assert_eq!((&policy.namespaces, &policy.pods), (&namespaces, &of_pods));
        assert_eq!(policy.ingress[0].peers, Some(vec![pods_of(namespaces, of_pods)]));
    }
    let mut value = spec(cluster, "ingress", json!([]));
    value["spec"]["subject"] = json!({"namespaces": {"matchLabels": {"n": "x"}}});
    let policy = policy_of(&value);
    assert_eq!((policy.namespaces, policy.pods), (label("n", "x"), all()));
}

#[test]
fn tiers_73_3_peers_of_ingress_are_pods_alone() {
    for (peer, path) in [
        (json!({"networks": ["0.0.0.0/0"]}), "from[0].networks"),
        (json!({"nodes": {}}), "from[0].nodes"),
        (json!({"domainNames": ["a.b"]}), "from[0].domainNames"),
    ] {
        for (action, wanted) in [("Accept", NOTHING), ("Deny", DENY_ALL)] {
            let rule = json!({"action": action, "from": [peer]});
            let read = one_rule(cluster, "ingress", rule);
            assert_eq!(read, (wanted, vec![path.to_owned()]));
        }
    }
}

/// Trap 10 and 11: the blocks of these kinds are read more strictly than those of a NetworkPolicy.
#[test]
fn tiers_73_5_trap_10_11_networks() {
    for (text, wanted) in [
        ("10.0.0.5/8", Some("10.0.0.0/8")),
        ("fd00::1/8", Some("fd00::/8")),
        ("64:ff9b::1.2.3.4/96", Some("64:ff9b::/96")),
        ("0.0.0.0/0", Some("0.0.0.0/0")),
        ("::/0", Some("::/0")),
        ("010.0.0.0/8", None),
        ("10.0.0.0/08", None),
        ("::ffff:0:0/96", None),
        ("::ffff:10.0.0.0/104", None),
        ("fe80::1%eth0/64", None),
        ("10.0.0.0", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/+8", None),
        ("10.0/8", None),
        (" 10.0.0.0/8", None),
        ("0000:0000:0000:0000:0000:0000:255.255.255.255/128", None),
        ("", None),
    ] {
        let fields = json!({"to": [{"networks": [text]}]});
        match wanted {
            None => not_understood(cluster, &fields, "to[0].networks[0]"),
            Some(wanted) => {
                let value = spec(
                    cluster,
                    "egress",
                    json!([{"action": "Deny", "to": [{"networks": [text]}]}]),
                );
                let notes = decoded(&value).unwrap().notes;
                let policy = policy_of(&value);
                assert_eq!(
                    (&policy.egress[0].peers, &*policy.faults),
                    (&Some(vec![block(wanted)]), &[][..])
                );
                assert_eq!(notes.is_empty(), !text.contains(['5', '1']), "{text}: {notes:?}");
            }
        }
    }
    // The example that both traps turn on: a NetworkPolicy takes it.
    assert_eq!(
        super::super::field::cidr("010.0.0.0/8").unwrap().0.to_string(),
        "10.0.0.0/8"
    );
}

/// Whether a policy awaits nodes.
fn awaits(value: &Value) -> bool {
    decoded(value).unwrap().input.is_some()
}

#[test]
fn tiers_73_6_peers_by_nodes_await_the_nodes_unless_their_rule_is_not_understood() {
    for (kind, allow) in [
        (cluster as fn(Value) -> Value, "Accept"),
        (admin, "Allow"),
        (baseline, "Allow"),
    ] {
        for (action, to, wanted) in [
            (allow, json!([{"nodes": {}}]), true),
            (
                "Deny",
                json!([all_pods(), {"nodes": {"matchLabels": {"a": "b"}}}]),
                true,
            ),
            (allow, json!([all_pods()]), false),
            (allow, json!([{"nodes": {}}, {}]), false),
            ("Deny", json!([{"nodes": {}}, {}]), false),
        ] {
            let value = spec(kind, "egress", json!([{"action": action, "to": to}]));
            assert_eq!(awaits(&value), wanted, "{value}");
            assert_eq!(decoded(&value).unwrap().unevaluated, []);
        }
        // An API server refuses the object, or the rule's name: nothing is allowed because of it.
        let named = |action: &str| {
            let rule = json!({"action": action, "name": "n".repeat(101), "to": [{"nodes": {}}]});
            spec(kind, "egress", json!([rule]))
        };
        assert!(!awaits(&named(allow)) && awaits(&named("Deny")));
        let labelled = |action: &str| {
            let rule = json!({"action": action, "to": [{"nodes": {}}]});
            let mut value = spec(kind, "egress", json!([rule]));
            value["metadata"]["labels"] = json!({"-": "x"});
            value
        };
        assert!(!awaits(&labelled(allow)) && awaits(&labelled("Deny")));
    }
}

/// Peers that are valid and not evaluated yet.
#[test]
fn tiers_77_3_domain_names_are_told_as_not_evaluated() {
    for (kind, allow, name) in [
        (cluster as fn(Value) -> Value, "Accept", "ClusterNetworkPolicy"),
        (admin, "Allow", "AdminNetworkPolicy"),
        (baseline, "Allow", "BaselineAdminNetworkPolicy"),
    ] {
        let mut rows = Vec::new();
        if name != "BaselineAdminNetworkPolicy" {
            rows.push((
                json!({"domainNames": ["*.example.org", "a.b."]}),
                allow,
                "domainNames",
                NOTHING,
            ));
        }
        for (peer, action, what, wanted) in rows {
            let value = spec(
                kind,
                "egress",
                json!([{"action": action, "to": [all_pods(), peer]}]),
            );
            let read = decoded(&value).unwrap();
            assert_eq!(paths(&read.unevaluated), [format!("spec.egress[0].to[1].{what}")]);
            let policy = policy_of(&value);
            assert_eq!((policy.egress, policy.faults), (vec![wanted], vec![]));
            let text = format!("{what} peers of {name}.policy.networking.k8s.io");
            assert_eq!(policy.unevaluated, BTreeSet::from([text]));
        }
    }
    // One that cannot be read is a fault as any other.
    not_understood(
        cluster,
        &json!({"to": [{"nodes": {"zone": "a"}}]}),
        "to[0].nodes.zone",
    );
    not_understood(
        baseline,
        &json!({"to": [{"domainNames": ["a.b"]}]}),
        "to[0].domainNames",
    );
}

#[test]
fn tiers_74_1_protocols_with_a_port_or_a_range() {
    let rule = json!({"action": "Accept", "to": [all_pods()], "protocols": [
        {"tcp": {"destinationPort": {"number": 80}}},
        {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}},
        {"sctp": {"destinationPort": {"number": 65535, "range": null}}, "tcp": null},
    ]});
    let (rule, faults) = egress(cluster, rule);
    let wanted = [
        range(Protocol::Tcp, 80, 80),
        range(Protocol::Udp, 1, 65535),
        range(Protocol::Sctp, 65535, 65535),
    ];
    assert_eq!((rule.ports.as_deref(), faults), (Some(&wanted[..]), vec![]));
    for protocol in ["tcp", "udp", "sctp"] {
        let mut entry = json!({});
        entry[protocol] = json!({});
        let fields = json!({"to": [all_pods()], "protocols": [entry]});
        not_understood(cluster, &fields, &format!("protocols[0].{protocol}"));
    }
}

#[test]
fn tiers_74_2_trap_17_18_named_ports_are_of_every_protocol() {
    let named = |name: Value| json!({"to": [all_pods()], "protocols": [{"destinationNamedPort": name}]});
    let mut rule = named(json!("web"));
    rule["action"] = "Deny".into();
    let (rule, faults) = egress(cluster, rule);
    assert_eq!((rule.ports, faults), (Some(named_port("web")), vec![]));
    not_understood(cluster, &named(json!("")), "protocols[0].destinationNamedPort");
    not_understood(cluster, &named(json!(80)), "protocols[0].destinationNamedPort");
    // The schema takes any name; one that no container can have matches nothing, and is told.
    let value = spec(
        cluster,
        "ingress",
        json!([{"action": "Deny", "from": [all_pods()], "protocols": [{"destinationNamedPort": "Web_1"}]}]),
    );
    assert_eq!(
        paths(&decoded(&value).unwrap().notes),
        ["spec.ingress[0].protocols[0].destinationNamedPort"]
    );
    assert_eq!(policy_of(&value).ingress[0].ports, Some(named_port("Web_1")));
}

#[test]
fn tiers_74_3_a_named_port_may_not_stand_beside_addresses() {
    let networks = json!({"networks": ["10.0.0.0/8"]});
    let fields = json!({"to": [all_pods(), networks], "protocols": [
        {"tcp": {"destinationPort": {"number": 1}}}, {"destinationNamedPort": "web"}]});
    not_understood(cluster, &fields, "protocols[1].destinationNamedPort");
    let fields = json!({"to": [all_pods(), networks], "ports": [{"namedPort": "web"}]});
    not_understood(admin, &fields, "ports[0].namedPort");
    not_understood(baseline, &fields, "ports[0].namedPort");
    let nodes = json!({"to": [{"nodes": {}}], "protocols": [{"destinationNamedPort": "web"}]});
    not_understood(cluster, &nodes, "protocols[0].destinationNamedPort");
}

#[test]
fn tiers_75_1_without_protocols_a_rule_is_for_all() {
    for rule in [
        json!({"action": "Accept", "to": [all_pods()]}),
        json!({"action": "Accept", "to": [all_pods()], "protocols": null}),
    ] {
        assert_eq!(egress(cluster, rule).0.ports, None);
    }
}

#[test]
fn tiers_76_1_a_range_begins_below_its_end() {
    for (start, end, good) in [(80, 81, true), (80, 80, false), (81, 80, false)] {
        let of_cluster = json!({"to": [all_pods()], "protocols": [
            {"tcp": {"destinationPort": {"range": {"start": start, "end": end}}}}]});
        let of_admin = json!({"to": [all_pods()], "ports": [{"portRange": {"start": start, "end": end}}]});
        if good {
            for (kind, mut rule) in [(cluster as fn(Value) -> Value, of_cluster), (admin, of_admin)] {
                rule["action"] = "Deny".into();
                assert_eq!(
                    egress(kind, rule).0.ports,
                    Some(vec![range(Protocol::Tcp, 80, 81)])
                );
            }
        } else {
            not_understood(cluster, &of_cluster, "protocols[0].tcp.destinationPort.range.end");
            not_understood(admin, &of_admin, "ports[0].portRange.end");
        }
    }
}

#[test]
fn tiers_77_1_domain_names() {
    for (name, good) in [
        ("kubernetes.io", true),
        ("*.kubernetes.io", true),
        ("a.b.kubernetes.io.", true),
        ("_dmarc.x.io", true),
        ("a-b_c.x1.0", true),
        ("*.com", false),
        ("localhost", false),
        ("localhost.", false),
        ("*", false),
        ("*.", false),
        ("a.*.io", false),
        ("*a.x.io", false),
        ("a..io", false),
        (".x.io", false),
        ("-a.io", false),
        ("a-.io", false),
        ("a_.io", false),
        ("", false),
        ("ä.io", false),
    ] {
        assert_eq!(is_domain_name(name), good, "{name}");
        let rule = json!({"action": "Accept", "to": [{"domainNames": [name]}]});
        let wanted: &[&str] = if good { &[] } else { &["to[0].domainNames[0]"] };
        let (rule, faults) = egress(cluster, rule);
        assert_eq!(
            (rule, faults.iter().map(String::as_str).collect()),
            (NOTHING, wanted.to_vec())
        );
    }
}

#[test]
fn tiers_77_2_trap_25_domain_names_that_are_not_allowed_deny_all() {
    for action in ["Deny", "Pass"] {
        let rule = json!({"action": action, "to": [{"domainNames": ["x.io"]}]});
        assert_eq!(
            egress(cluster, rule),
            (DENY_ALL, vec!["to[0].domainNames".to_owned()])
        );
    }
}

#[test]
fn trap_31_a_baseline_policy_is_called_default() {
    let mut value = spec(
        baseline,
        "egress",
        json!([{"action": "Deny", "to": [all_pods()]}]),
    );
    assert_eq!(policy_of(&value).faults, []);
    value["metadata"]["name"] = "other".into();
    value["spec"]["egress"]
        .as_array_mut()
        .unwrap()
        .push(json!({"action": "Allow", "to": [all_pods()]}));
    let policy = policy_of(&value);
    assert_eq!(paths(&policy.faults), ["metadata.name"]);
    assert_eq!(policy.egress[0].action, Action::Deny);
    assert_eq!(policy.egress[1], NOTHING, "a refused policy allows nothing");
}

#[test]
fn tiers_86_2_trap_19_ports_of_the_older_kinds() {
    for (entry, wanted) in [
        (
            json!({"portNumber": {"port": 80}}),
            vec![range(Protocol::Tcp, 80, 80)],
        ),
        (
            json!({"portNumber": {"protocol": "UDP", "port": 53}}),
            vec![range(Protocol::Udp, 53, 53)],
        ),
        (
            json!({"portRange": {"protocol": "SCTP", "start": 1, "end": 9}}),
            vec![range(Protocol::Sctp, 1, 9)],
        ),
        (json!({"namedPort": "web"}), named_port("web")),
    ] {
        for kind in [admin, baseline] {
            let (rule, faults) = egress(
                kind,
                json!({"action": "Deny", "to": [all_pods()], "ports": [entry]}),
            );
            assert_eq!((rule.ports, faults), (Some(wanted.clone()), vec![]));
        }
    }
    for (entry, path) in [
        (
            json!({"portNumber": {"protocol": "ICMP", "port": 1}}),
            "ports[0].portNumber.protocol",
        ),
        (
            json!({"portNumber": {"protocol": "tcp", "port": 1}}),
            "ports[0].portNumber.protocol",
        ),
        (
            json!({"portNumber": {"protocol": 6, "port": 1}}),
            "ports[0].portNumber.protocol",
        ),
        (json!({"portNumber": {}}), "ports[0].portNumber.port"),
        (json!({"portNumber": 80}), "ports[0].portNumber"),
        (
            json!({"portNumber": {"port": 1, "endPort": 2}}),
            "ports[0].portNumber.endPort",
        ),
        (json!({"portRange": {"end": 2}}), "ports[0].portRange.start"),
        (
            json!({"portRange": {"start": 1, "end": 65536}}),
            "ports[0].portRange.end",
        ),
        (json!({"portNumber": {"port": 1}, "namedPort": "x"}), "ports[0]"),
        (json!({"namedPort": ""}), "ports[0].namedPort"),
        (json!({"port": 80}), "ports[0].port"),
        (json!({"tcp": {}}), "ports[0].tcp"),
    ] {
        not_understood(admin, &json!({"to": [all_pods()], "ports": [entry]}), path);
        not_understood(baseline, &json!({"to": [all_pods()], "ports": [entry]}), path);
    }
    let foreign = json!({"to": [all_pods()], "protocols": [{"tcp": {"destinationPort": {"number": 1}}}]});
    not_understood(admin, &foreign, "protocols");
}

#[test]
fn tiers_86_3_pods_of_the_older_kinds_name_their_namespaces() {
    for kind in [admin, baseline] {
        let fields = json!({"to": [{"pods": {"podSelector": {}}}]});
        not_understood(kind, &fields, "to[0].pods.namespaceSelector");
        let mut value = spec(kind, "egress", json!([]));
        value["spec"]["subject"] = json!({"pods": {"podSelector": {}}});
        assert_eq!(error(&value), "spec.subject.pods.namespaceSelector");
    }
}

/// Under the later schema each of these would select all namespaces.
#[test]
fn tiers_86_4_86_5_trap_30_peers_of_the_first_form_are_not_understood() {
    for kind in [cluster, admin, baseline] {
        for (peer, path) in [
            (
                json!({"namespaces": {"namespaceSelector": {"matchLabels": {"a": "b"}}}}),
                "to[0].namespaces.namespaceSelector",
            ),
            (
                json!({"namespaces": {"sameLabels": ["tenant"]}}),
                "to[0].namespaces.sameLabels",
            ),
            (
                json!({"namespaces": {"notSameLabels": ["tenant"]}}),
                "to[0].namespaces.notSameLabels",
            ),
            (
                json!({"pods": {"namespaces": {"namespaceSelector": {}}, "namespaceSelector": {}, "podSelector": {}}}),
                "to[0].pods.namespaces",
            ),
        ] {
            not_understood(kind, &json!({"to": [peer]}), path);
        }
    }
}

#[test]
fn metadata_is_read_as_that_of_a_network_policy() {
    let mut value = spec(
        cluster,
        "egress",
        json!([{"action": "Accept", "to": [all_pods()]}]),
    );
    value["metadata"] = json!({"name": "No", "labels": {"a": 1}, "shard": 1, "namespace": "x"});
    value["status"] = json!({"conditions": []});
    let policy = policy_of(&value);
    assert_eq!(
        paths(&policy.faults),
        ["metadata.shard", "metadata.name", "metadata.labels.a"]
    );
    assert_eq!(policy.egress, [NOTHING]);
    assert_eq!(paths(&decoded(&value).unwrap().notes), ["metadata.namespace"]);
    value["metadata"] = json!({"name": "p", "shard": 1});
    value["observed"] = json!(1);
    let Object::Tiered(served) = decode_served(&value).unwrap().remove(0).object else {
        panic!("a policy");
    };
    assert_eq!(served.faults, []);
}

/// The examples of the network-policy-api project (pkg/crdtest/testdata and site-src/user-story-examples at 0eec1b0,
/// Apache-2.0), as data, in JSON; but for those of story 4, which are no YAML and cannot be put into effect yet.
fn examples() -> BTreeMap<&'static str, Value> {
    let sensitive = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "sensitive-ns"}}});
    let of = |tier: &str, priority: u16, subject: &Value, rest: Value| {
        let mut value = cluster(json!({"tier": tier, "priority": priority, "subject": subject}));
        for (key, rules) in rest.as_object().unwrap() {
            value["spec"][key] = rules.clone();
        }
        value
    };
    let everyone =
        json!({"pods": {"namespaceSelector": {"matchLabels": {}}, "podSelector": {"matchLabels": {}}}});
    let name = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    BTreeMap::from([
        (
            "invalid-ingress-action",
            of(
                "Admin",
                10,
                &sensitive,
                json!({"ingress": [
                {"action": "Invalid", "from": [{"namespaces": {"namespaceSelector": {}}}], "name": "select-all-deny-all"}]}),
            ),
        ),
        (
            "cluster-wide-deny",
            of(
                "Admin",
                0,
                &sensitive,
                json!({"ingress": [
                {"action": "Deny", "name": "select-all-deny-all", "from": [everyone]}]}),
            ),
        ),
        (
            "deny-with-ports",
            of(
                "Admin",
                0,
                &sensitive,
                json!({"ingress": [
                {"action": "Deny", "name": "select-all-deny-all", "from": [everyone], "protocols": [
                    {"tcp": {"destinationPort": {"number": 8080}}},
                    {"tcp": {"destinationPort": {"range": {"start": 8080, "end": 9090}}}},
                    {"udp": {"destinationPort": {"number": 8080}}},
                    {"udp": {"destinationPort": {"number": 9090}}},
                    {"destinationNamedPort": "http"},
                    {"destinationNamedPort": "monitoring"}]}]}),
            ),
        ),
        (
            "user-story-1",
            of(
                "Admin",
                10,
                &sensitive,
                json!({"ingress": [
                {"action": "Deny", "from": [{"namespaces": {"matchLabels": {}}}], "name": "select-all-deny-all"}]}),
            ),
        ),
        (
            "user-story-2",
            of(
                "Admin",
                30,
                &all_pods(),
                json!({
                "ingress": [{"action": "Accept", "name": "allow-monitoring-ns-ingress",
                    "from": [{"namespaces": name("monitoring-ns")}]}],
                "egress": [{"action": "Accept", "name": "allow-kube-dns-egress", "to": [
                    {"pods": {"namespaceSelector": name("kube-system"), "podSelector": {"matchLabels": {"app": "kube-dns"}}}}]}]}),
            ),
        ),
        (
            "user-story-3",
            of(
                "Admin",
                20,
                &all_pods(),
                json!({"egress": [{"action": "Pass",
                "to": [{"pods": {"namespaceSelector": name("bar-ns-1"), "podSelector": {"matchLabels": {"app": "svc-pub"}}}}],
                "protocols": [
                    {"tcp": {"destinationPort": {"number": 8080}}},
                    {"destinationNamedPort": "web-alt"},
                    {"udp": {"destinationPort": {"number": 53}}}]}]}),
            ),
        ),
        (
            "user-story-5",
            of(
                "Baseline",
                10,
                &all_pods(),
                json!({"ingress": [{"action": "Deny", "from": [all_pods()]}]}),
            ),
        ),
    ])
}

#[test]
fn upstream_examples_are_valid_or_not_as_they_say() {
    for (name, value) in examples() {
        match name {
            "invalid-ingress-action" => {
                let policy = policy_of(&value);
                assert_eq!(
                    paths(&policy.faults),
                    [
                        "spec.ingress[0].action",
                        "spec.ingress[0].from[0].namespaces.namespaceSelector"
                    ]
                );
                assert_eq!(policy.ingress, [DENY_ALL]);
            }
            _ => assert_eq!(policy_of(&value).faults, [], "{name}"),
        }
    }
    let all_examples = examples();
    let ports = policy_of(&all_examples["deny-with-ports"])
        .ingress
        .remove(0)
        .ports
        .unwrap();
    let wanted = [
        range(Protocol::Tcp, 8080, 8080),
        range(Protocol::Tcp, 8080, 9090),
        range(Protocol::Udp, 8080, 8080),
        range(Protocol::Udp, 9090, 9090),
    ];
    let wanted: Vec<PortMatch> = wanted
        .into_iter()
        .chain(named_port("http"))
        .chain(named_port("monitoring"))
        .collect();
    assert_eq!(ports, wanted);
    let dns = policy_of(&all_examples["user-story-2"]).egress.remove(0);
    let kube_system = label("kubernetes.io/metadata.name", "kube-system");
    assert_eq!(
        dns.peers,
        Some(vec![pods_of(kube_system, label("app", "kube-dns"))])
    );
}

fn valid() -> [Value; 3] {
    let pods = json!({"pods": {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {"matchExpressions": [
        {"key": "app", "operator": "In", "values": ["x", "y"]}]}}});
    let older = json!([{"name": "r", "action": "Allow", "to": [pods, all_pods()],
        "ports": [{"portNumber": {"port": 80}}, {"portRange": {"protocol": "UDP", "start": 1, "end": 2}}, {"namedPort": "web"}]}]);
    let newer = json!([
        {"name": "r", "action": "Accept", "to": [pods, all_pods()], "protocols": [
            {"tcp": {"destinationPort": {"number": 80}}}, {"udp": {"destinationPort": {"range": {"start": 1, "end": 2}}}},
            {"destinationNamedPort": "web"}]},
        {"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]},
        {"action": "Pass", "to": [all_pods()]}]);
    let mut newest = spec(cluster, "egress", newer);
    newest["spec"]["subject"] = pods;
    [
        newest,
        spec(admin, "egress", older.clone()),
        spec(baseline, "egress", older),
    ]
}

#[test]
fn the_valid_policies_are_valid() {
    for value in valid() {
        assert_eq!(policy_of(&value).faults, []);
    }
}

proptest! {
    /// Nothing panics, each rule stays at its place, and what is not understood allows nothing.
    #[test]
    fn rules_of_anything_allow_nothing_or_are_valid(
        rules in prop::collection::vec(anything(), 0..4), kind in 0usize..3, direction in prop::sample::select(vec!["ingress", "egress"]),
    ) {
        let mut value = valid()[kind].clone();
        value["spec"]["egress"] = Value::Null;
        let number = rules.len();
        value["spec"][direction] = Value::Array(rules);
        let policy = policy_of(&value);
        prop_assert_eq!(policy.ingress.len() + policy.egress.len(), number);
        for rule in policy.ingress.iter().chain(&policy.egress) {
            let open = rule.action != Action::Deny && rule.peers.as_ref().is_none_or(|it| !it.is_empty());
            prop_assert!(!open || rule.peers.is_some(), "no rule that is read is for everyone");
        }
    }

    #[test]
    fn a_spec_of_anything_is_read_or_refused(spec in anything(), kind in 0usize..3) {
        let mut value = valid()[kind].clone();
        value["spec"] = spec;
        // Either outcome will do; a panic will not.
        let _ = decode(&value);
        let _ = decode_served(&value);
    }

    /// Traps of all kinds: nothing unknown is passed over.
    #[test]
    fn an_unknown_field_anywhere_in_a_spec_is_found(pick in any::<prop::sample::Index>(), kind in 0usize..3) {
        let mut value = valid()[kind].clone();
        let mut all = Vec::new();
        places(&value["spec"], &mut vec!["spec".to_owned()], &mut all);
        all.retain(|place| at(&mut value, place).is_object() && place.last().is_none_or(|last| last != "matchLabels"));
        let place = pick.get(&all);
        at(&mut value, place)["surprise"] = 1.into();
        match decoded(&value) {
            Err(error) => {
                prop_assert!(error.fault.path.ends_with("surprise"), "{error}");
                prop_assert!(place.get(1).is_none_or(|it| it == "subject"), "{place:?}");
            }
            Ok(_) => {
                let policy = policy_of(&value);
                prop_assert!(policy.faults.iter().any(|fault| fault.path.ends_with("surprise")), "{place:?}");
                let index: usize = place[2].parse().unwrap();
                let wanted = [NOTHING, DENY_ALL, DENY_ALL];
                prop_assert_eq!(&policy.egress[index], &wanted[index]);
            }
        }
    }

    /// Whatever stands in one place, the other rules stay as they are, and the one it is in is no wider: a rule that
    /// allows has the peers and ports that can be read, or matches nothing.
    #[test]
    fn one_bad_value_does_not_touch_the_other_rules(pick in any::<prop::sample::Index>(), bad in anything()) {
        let whole = valid()[0].clone();
        let mut value = whole.clone();
        let mut all = Vec::new();
        places(&value["spec"]["egress"], &mut vec!["spec".to_owned(), "egress".to_owned()], &mut all);
        all.retain(|place| place.len() > 2);
        let place = pick.get(&all);
        *at(&mut value, place) = bad;
        let (good, policy) = (policy_of(&whole), policy_of(&value));
        let index: usize = place[2].parse().unwrap();
        for (number, (before, now)) in good.egress.iter().zip(&policy.egress).enumerate() {
            prop_assert!(number == index || before == now);
        }
        let now = &policy.egress[index];
        prop_assert!(now.action != Action::Allow || now.peers.is_some());
    }
}
