//! One test or more for every point of the semantics (`docs/semantics.md`) that concerns policy and identity; the number is in the
//! name. Every verdict is asked of the reference evaluator and of the compiled snapshot, which must agree in effect,
//! policy and rule as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::net::IpAddr;

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{DirectionVerdict, Effect, Generation, Identity, L4, NodeExemption, Provenance, Snapshot},
};
use ringwall_evaluate::{Cause, Direction, Verdict};
use ringwall_policy::{Cluster, Object, ObjectKey, PolicyId};
use ringwall_source::decode::decode;
use serde_json::{Value, json};

struct World {
    cluster: Cluster,
    snapshot: Snapshot,
}

impl World {
    fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut cluster = Cluster::default();
        for object in objects {
            for decoded in decode(&object).unwrap() {
                cluster.insert(decoded.object);
            }
        }
        cluster.supply_namespaces();
        Self::of(cluster)
    }

    fn of(cluster: Cluster) -> Self {
        let image = compile(&cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
        let snapshot = Snapshot::open(&image.bytes).unwrap();
        Self { cluster, snapshot }
    }

    /// Changes the state and compiles it again.
    fn after(&self, change: impl FnOnce(&mut Cluster)) -> Self {
        let mut cluster = self.cluster.clone();
        change(&mut cluster);
        Self::of(cluster)
    }

    fn end(&self, name: &str) -> (ringwall_evaluate::End<'_>, Identity) {
        if let Some(key) = key_of(name) {
            let addresses = self.cluster.pods.get(&key).unwrap().addresses.clone();
            let Some(address) = addresses.first() else {
                let endpoint = self.snapshot.find_endpoint(&key.namespace, &key.name).unwrap();
                return (
                    ringwall_evaluate::named(&self.cluster, &key).unwrap(),
                    endpoint.identity,
                );
            };
            return self.end(&address.to_string());
        }
        let address: IpAddr = name.parse().unwrap();
        (
            ringwall_evaluate::identify(&self.cluster, address),
            self.snapshot.identify(Addr::from(address)),
        )
    }

    fn judge(&self, src: &str, dst: &str, service: &str) -> Verdict {
        let service = match service.split_once('/') {
            Some((port, protocol)) => ringwall_evaluate::Service {
                protocol: number(protocol),
                port: Some(port.parse().unwrap()),
                source_port: None,
            },
            None => ringwall_evaluate::Service {
                protocol: number(service),
                port: None,
                source_port: None,
            },
        };
        let ((a, src_id), (b, dst_id)) = (self.end(src), self.end(dst));
        let verdict = ringwall_evaluate::judge(&self.cluster, &a, &b, service);
        let l4 = L4::of(service.protocol, service.port, 0);
        let same = match (a.address, b.address) {
            (None, None) => src == dst && self.cluster.pods[&key_of(src).unwrap()].template_of.is_none(),
            (x, y) => x == y,
        };
        let compiled = self
            .snapshot
            .judge_ends(&src_id, &dst_id, same, l4, NodeExemption::Trusted);
        let what = format!("{src} -> {dst} {service:?}");
        self.same(&verdict.ingress, compiled.ingress, &format!("{what} ingress"));
        self.same(&verdict.egress, compiled.egress, &format!("{what} egress"));
        verdict
    }

    fn same(&self, wanted: &Direction, got: DirectionVerdict, what: &str) {
        let (effect, policies, rule) = match &wanted.cause {
            Cause::Rule { policy, index, .. } => {
                (Effect::Allow, vec![policy.to_string()], Some(*index as u32))
            }
            Cause::Denied { policy, index, .. } => {
                (Effect::Deny, vec![policy.to_string()], Some(*index as u32))
            }
            Cause::Isolated { policies, .. } => (
                Effect::Isolated,
                policies.iter().map(ToString::to_string).collect(),
                None,
            ),
            Cause::Open => (Effect::Open, vec![], None),
            Cause::Profile => (Effect::Profile, vec![], None),
            Cause::SelfTraffic => (Effect::SelfTraffic, vec![], None),
            Cause::HostingNode => (Effect::Node, vec![], None),
            Cause::Unknown => (Effect::Unknown, vec![], None),
        };
        let (got_policies, got_rule) = match self.snapshot.provenance(got.provenance) {
            None => (vec![], None),
            Some(Provenance::Rule { policy, rule }) => (vec![policy.to_string()], Some(rule)),
            Some(Provenance::Isolating(policies)) => {
                (policies.iter().map(ToString::to_string).collect(), None)
            }
        };
        assert_eq!(
            (got.allow, got.effect, got_policies, got_rule),
            (wanted.allow, effect, policies, rule),
            "snapshot against reference: {what}"
        );
    }

    fn open(&self, src: &str, dst: &str, service: &str) -> bool {
        self.judge(src, dst, service).allow()
    }
}

fn key_of(name: &str) -> Option<ObjectKey> {
    let (namespace, name) = name.split_once('/')?;
    Some(ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        "ICMP" => 1,
        "ICMPv6" => 58,
        other => other.parse().unwrap(),
    }
}

/// Labels as `k=v,k=v`.
fn labels(text: &str) -> Value {
    let pairs = text
        .split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap());
    Value::Object(pairs.map(|(key, value)| (key.to_owned(), value.into())).collect())
}

fn namespace(name: &str, with: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(with)}})
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Value {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses}})
}

fn pod(name: &str, ips: &[&str], with: &str, spec: Value) -> Value {
    let key = key_of(name).unwrap();
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": key.namespace, "name": key.name, "labels": labels(with)},
        "spec": spec, "status": {"phase": "Running", "podIPs": ips}})
}

fn ports(list: Value) -> Value {
    json!({"containers": [{"name": "main", "ports": list}]})
}

fn policy(name: &str, spec: Value) -> Value {
    let key = key_of(name).unwrap();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": key.namespace, "name": key.name}, "spec": spec})
}

/// Two namespaces, four pods: a/web (app=web, empty=, on n1), a/db (app=db), b/web (app=web), b/bare (no labels).
fn base() -> Vec<Value> {
    vec![
        namespace("a", "team=red"),
        namespace("b", "team=blue"),
        pod(
            "a/web",
            &["10.0.0.1"],
            "app=web,empty=",
            json!({"nodeName": "n1"}),
        ),
        pod("a/db", &["10.0.0.2"], "app=db", json!({"nodeName": "n1"})),
        pod("b/web", &["10.0.1.1"], "app=web", json!({"nodeName": "n2"})),
        pod("b/bare", &["10.0.1.2"], "", json!({"nodeName": "n2"})),
    ]
}

const OUTSIDE: &str = "203.0.113.9";

fn with(spec: Value) -> World {
    World::new(base().into_iter().chain([policy("a/p", spec)]))
}

/// A policy on all of `a` whose single ingress rule has these peers.
fn from(peers: Value) -> World {
    with(json!({"podSelector": {}, "ingress": [{"from": peers}]}))
}

fn sources(world: &World) -> Vec<&'static str> {
    ["a/web", "a/db", "b/web", "b/bare", OUTSIDE]
        .into_iter()
        .filter(|src| *src != "a/db" && world.open(src, "a/db", "80/TCP"))
        .collect()
}

// Selection

#[test]
fn s01_no_policy_is_open() {
    let world = World::new(base());
    assert_eq!(sources(&world), ["a/web", "b/web", "b/bare", OUTSIDE]);
    let verdict = world.judge("b/web", "a/db", "80/TCP");
    assert_eq!(
        (verdict.ingress.cause, verdict.egress.cause),
        (Cause::Open, Cause::Open)
    );
    // A policy on others leaves a pod open, and so does one of the other direction.
    let world = with(json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}));
    assert!(world.open("b/web", "a/db", "80/TCP"));
    assert!(world.open("a/web", "b/web", "80/TCP"));
    assert!(!world.open("b/web", "a/web", "80/TCP"));
}

#[test]
fn s02_several_policies_are_a_union_whatever_their_order() {
    let one = policy(
        "a/one",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
    );
    let two = policy(
        "a/two",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 81}]}]}),
    );
    for pair in [[one.clone(), two.clone()], [two, one]] {
        let world = World::new(base().into_iter().chain(pair));
        assert!(world.open("b/web", "a/web", "80/TCP"));
        assert!(world.open("b/web", "a/web", "81/TCP"));
        let denied = world.judge("b/web", "a/web", "82/TCP");
        let both = ["a/one", "a/two"].map(|name| key_of(name).unwrap()).to_vec();
        assert_eq!(denied.ingress.cause, isolated(&both));
    }
}

#[test]
fn s03_both_directions_must_allow() {
    let world = World::new(base().into_iter().chain([
        policy(
            "a/in",
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
        ),
        policy("b/out", json!({"podSelector": {}, "policyTypes": ["Egress"]})),
    ]));
    let verdict = world.judge("b/web", "a/web", "80/TCP");
    assert!(verdict.ingress.allow && !verdict.egress.allow && !verdict.allow());
}

#[test]
fn s04_empty_or_absent_pod_selector_is_the_whole_namespace() {
    for spec in [
        json!({"podSelector": {}}),
        json!({"policyTypes": ["Ingress"]}),
        json!({"podSelector": null}),
    ] {
        let world = with(spec);
        assert!(!world.open("b/web", "a/web", "80/TCP"));
        assert!(!world.open("b/web", "a/db", "80/TCP"));
        assert!(world.open("a/web", "b/web", "80/TCP"));
    }
}

#[test]
fn s05_namespace_selector_alone_is_every_pod_there() {
    assert_eq!(
        sources(&from(
            json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}])
        )),
        ["b/web", "b/bare"]
    );
    let empty = json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {}}]);
    assert_eq!(sources(&from(empty)), ["b/web", "b/bare"]);
}

#[test]
fn s06_pod_selector_alone_is_the_policys_own_namespace() {
    assert_eq!(
        sources(&from(json!([{"podSelector": {"matchLabels": {"app": "web"}}}]))),
        ["a/web"]
    );
    assert_eq!(sources(&from(json!([{"podSelector": {}}]))), ["a/web"]);
    // A null namespaceSelector is none.
    assert_eq!(
        sources(&from(json!([{"podSelector": {}, "namespaceSelector": null}]))),
        ["a/web"]
    );
}

#[test]
fn s07_empty_namespace_selector_is_every_pod_and_nothing_outside() {
    assert_eq!(
        sources(&from(json!([{"namespaceSelector": {}}]))),
        ["a/web", "b/web", "b/bare"]
    );
}

#[test]
fn s08_selectors_of_one_peer_are_anded_peers_are_ored() {
    let blue = json!({"matchLabels": {"team": "blue"}});
    let web = json!({"matchLabels": {"app": "web"}});
    assert_eq!(
        sources(&from(json!([{"namespaceSelector": blue, "podSelector": web}]))),
        ["b/web"]
    );
    let apart = json!([{"namespaceSelector": blue}, {"podSelector": web}]);
    assert_eq!(sources(&from(apart)), ["a/web", "b/web", "b/bare"]);
}

fn matching(expressions: Value) -> Vec<&'static str> {
    sources(&from(
        json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": expressions}}]),
    ))
}

#[test]
fn s09_not_in_and_does_not_exist_match_an_absent_key() {
    assert_eq!(
        matching(json!([{"key": "app", "operator": "NotIn", "values": ["web"]}])),
        ["b/bare"]
    );
    assert_eq!(
        matching(json!([{"key": "app", "operator": "NotIn", "values": ["db"]}])),
        ["a/web", "b/web", "b/bare"]
    );
    assert_eq!(
        matching(json!([{"key": "app", "operator": "DoesNotExist"}])),
        ["b/bare"]
    );
    assert_eq!(
        matching(json!([{"key": "app", "operator": "In", "values": ["web", "x"]}])),
        ["a/web", "b/web"]
    );
    assert_eq!(
        matching(json!([{"key": "app", "operator": "Exists"}])),
        ["a/web", "b/web"]
    );
    // Of namespaces, too.
    let peers = json!([{"namespaceSelector": {"matchExpressions": [{"key": "gone", "operator": "NotIn", "values": ["x"]}]}}]);
    assert_eq!(sources(&from(peers)), ["a/web", "b/web", "b/bare"]);
}

#[test]
fn s10_an_empty_value_needs_the_key() {
    let peers = |labels: Value| json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}]);
    assert_eq!(sources(&from(peers(json!({"empty": ""})))), ["a/web"]);
    assert_eq!(sources(&from(peers(json!({"gone": ""})))), [""; 0]);
    // Go reads null as the empty string.
    assert_eq!(sources(&from(peers(json!({"empty": null})))), ["a/web"]);
}

#[test]
fn s11_all_requirements_must_hold_several_on_one_key_too() {
    let two = json!([
        {"key": "app", "operator": "In", "values": ["web", "db"]},
        {"key": "app", "operator": "NotIn", "values": ["db"]}
    ]);
    assert_eq!(matching(two), ["a/web", "b/web"]);
    let contradiction =
        json!([{"key": "app", "operator": "Exists"}, {"key": "app", "operator": "DoesNotExist"}]);
    assert_eq!(matching(contradiction), [""; 0]);
    let peers = json!([{"namespaceSelector": {}, "podSelector": {
        "matchLabels": {"app": "web"}, "matchExpressions": [{"key": "empty", "operator": "Exists"}]}}]);
    assert_eq!(sources(&from(peers)), ["a/web"]);
}

fn faults(world: &World) -> Vec<String> {
    let policy = &world.cluster.policies[&key_of("a/p").unwrap()];
    policy
        .faults
        .iter()
        .map(|fault| format!("{}: {}", fault.path, fault.message))
        .collect()
}

/// The policy is invalid, for a reason at this path, and isolates `a` for ingress alone.
fn isolates(spec: Value, path: &str) {
    let world = with(spec.clone());
    let faults = faults(&world);
    assert!(
        faults.iter().any(|fault| fault.starts_with(&format!("{path}: "))),
        "{spec}: {faults:?}"
    );
    assert_eq!(sources(&world), [""; 0], "{spec} must isolate");
    assert!(
        world.open("a/web", "b/web", "80/TCP"),
        "{spec} must leave egress open"
    );
}

#[test]
fn s12_bad_operators_do_not_widen() {
    let peers = |expression: Value| json!({"ingress": [{"from": [{"podSelector": {"matchExpressions": [expression]}}]}]});
    let at = "spec.ingress[0].from[0].podSelector.matchExpressions[0]";
    isolates(
        peers(json!({"key": "app", "operator": "Is", "values": ["web"]})),
        &format!("{at}.operator"),
    );
    isolates(
        peers(json!({"key": "app", "operator": "in", "values": ["web"]})),
        &format!("{at}.operator"),
    );
    isolates(
        peers(json!({"key": "app", "operator": "In"})),
        &format!("{at}.values"),
    );
    isolates(
        peers(json!({"key": "app", "operator": "NotIn", "values": []})),
        &format!("{at}.values"),
    );
    isolates(
        peers(json!({"key": "app", "operator": "Exists", "values": ["x"]})),
        &format!("{at}.values"),
    );
    isolates(
        peers(json!({"key": "-bad", "operator": "Exists"})),
        &format!("{at}.key"),
    );
    isolates(peers(json!({"operator": "Exists"})), &format!("{at}.key"));
    isolates(
        peers(json!({"key": "app", "operator": "In", "values": ["no spaces"]})),
        &format!("{at}.values[0]"),
    );
}

#[test]
fn s13_every_namespace_carries_its_name() {
    let peers = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}]);
    assert_eq!(sources(&from(peers.clone())), ["b/web", "b/bare"]);
    // Also one that no manifest describes, and one whose manifest lies.
    let bare = base().into_iter().filter(|object| object["kind"] != "Namespace");
    let world = World::new(bare.chain([
        policy("a/p", json!({"ingress": [{"from": peers}]})),
        namespace("b", "kubernetes.io/metadata.name=c"),
    ]));
    assert_eq!(sources(&world), ["b/web", "b/bare"]);
}

#[test]
fn s14_relabelling_counts_at_once() {
    let world = from(
        json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"app": "web"}}}]),
    );
    assert_eq!(sources(&world), ["b/web"]);
    let relabelled = world.after(|cluster| {
        for decoded in decode(&pod("b/bare", &["10.0.1.2"], "app=web", json!({}))).unwrap() {
            cluster.insert(decoded.object);
        }
    });
    assert_eq!(sources(&relabelled), ["b/web", "b/bare"]);
    let renamed = relabelled.after(|cluster| {
        for decoded in decode(&namespace("b", "team=green")).unwrap() {
            cluster.insert(decoded.object);
        }
    });
    assert_eq!(sources(&renamed), [""; 0]);
}

#[test]
fn s15_no_namespace_is_default() {
    let mut homeless = pod("x/y", &["10.0.9.9"], "", json!({}));
    homeless["metadata"].as_object_mut().unwrap().remove("namespace");
    let mut lost = policy("x/deny", json!({}));
    lost["metadata"].as_object_mut().unwrap().remove("namespace");
    let world = World::new(base().into_iter().chain([homeless, lost]));
    let verdict = world.judge("a/web", "default/y", "80/TCP");
    assert_eq!(
        verdict.ingress.cause,
        isolated(&[key_of("default/deny").unwrap()])
    );
}

#[test]
fn s16_only_metadata_labels_count() {
    let mut pod = pod("b/odd", &["10.0.1.9"], "", json!({"selector": {"app": "web"}}));
    pod["labels"] = json!({"app": "web"});
    pod["metadata"]["annotations"] = json!({"app": "web"});
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]);
    let world = World::new(
        base()
            .into_iter()
            .chain([pod, policy("a/p", json!({"ingress": [{"from": peers}]}))]),
    );
    assert!(!world.open("b/odd", "a/db", "80/TCP"));
}

// Rules

#[test]
fn s17_no_rules_deny_all_an_empty_rule_allows_all() {
    for spec in [
        json!({"policyTypes": ["Ingress"]}),
        json!({"ingress": []}),
        json!({"ingress": null}),
    ] {
        assert_eq!(sources(&with(spec)), [""; 0]);
    }
    for spec in [json!({"ingress": [{}]}), json!({"ingress": [null]})] {
        let world = with(spec);
        assert_eq!(sources(&world), ["a/web", "b/web", "b/bare", OUTSIDE]);
        let cause = world.judge("b/web", "a/db", "80/TCP").ingress.cause;
        assert_eq!(
            cause,
            Cause::Rule {
                tier: "NetworkPolicy".to_owned(),
                policy: PolicyId::network_policy(&key_of("a/p").unwrap()),
                index: 0
            }
        );
    }
}

#[test]
fn s18_empty_lists_restrict_nothing() {
    for rule in [
        json!({"from": [], "ports": []}),
        json!({"from": null}),
        json!({"ports": []}),
    ] {
        let world = with(json!({"ingress": [rule]}));
        assert_eq!(sources(&world), ["a/web", "b/web", "b/bare", OUTSIDE]);
        assert!(world.open("b/web", "a/db", "ICMP"));
        assert!(world.open("b/web", "a/db", "0/UDP"));
    }
}

#[test]
fn s19_a_rule_is_ports_and_peers() {
    let world = with(
        json!({"ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "203.0.113.0/24"}}],
        "ports": [{"port": 80}, {"port": 81}]}]}),
    );
    assert!(world.open("a/web", "a/db", "80/TCP"));
    assert!(world.open(OUTSIDE, "a/db", "81/TCP"));
    assert!(!world.open("a/web", "a/db", "82/TCP"));
    assert!(!world.open("b/web", "a/db", "80/TCP"));
    // The second of two rules is named by its index.
    let world = with(json!({"ingress": [{"ports": [{"port": 1}]}, {"ports": [{"port": 80}]}]}));
    let cause = world.judge("b/web", "a/db", "80/TCP").ingress.cause;
    assert_eq!(
        cause,
        Cause::Rule {
            tier: "NetworkPolicy".to_owned(),
            policy: PolicyId::network_policy(&key_of("a/p").unwrap()),
            index: 1
        }
    );
}

#[test]
fn s20_an_empty_peer_is_invalid_and_matches_nothing() {
    isolates(json!({"ingress": [{"from": [{}]}]}), "spec.ingress[0].from[0]");
    isolates(json!({"ingress": [{"from": [null]}]}), "spec.ingress[0].from[0]");
    isolates(
        json!({"ingress": [{"from": [{"podSelector": null}]}]}),
        "spec.ingress[0].from[0]",
    );
}

#[test]
fn s21_ip_block_beside_a_selector_is_invalid() {
    let peer = json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}});
    isolates(
        json!({"ingress": [{"from": [peer]}]}),
        "spec.ingress[0].from[0].ipBlock",
    );
}

#[test]
fn s22_policy_types_default_from_the_rules() {
    let egress = |world: &World| world.judge("a/web", "b/web", "80/TCP").egress.allow;
    let ingress = |world: &World| world.judge("b/web", "a/web", "80/TCP").ingress.allow;
    let only_ingress = with(json!({"podSelector": {}}));
    assert!(!ingress(&only_ingress) && egress(&only_ingress));
    let both = with(json!({"egress": [{"ports": [{"port": 53}]}]}));
    assert!(!ingress(&both) && !egress(&both));
    // An empty egress list alone does not isolate egress; nor do empty policyTypes say anything.
    let surprise = with(json!({"egress": [], "policyTypes": []}));
    assert!(!ingress(&surprise) && egress(&surprise));
}

#[test]
fn s23_rules_of_a_type_that_is_not_named_are_ignored() {
    let world = with(json!({"policyTypes": ["Egress"], "ingress": [{"ports": [{"port": 1}]}]}));
    assert!(world.open("b/web", "a/web", "80/TCP"));
    assert!(!world.open("a/web", "b/web", "80/TCP"));
}

#[test]
fn s24_duplicate_policy_types_are_fine_three_are_not() {
    assert_eq!(
        faults(&with(json!({"policyTypes": ["Ingress", "Ingress"]}))),
        [""; 0]
    );
    let three = with(json!({"policyTypes": ["Ingress", "Ingress", "Ingress"], "ingress": [{}]}));
    assert!(faults(&three)[0].starts_with("spec.policyTypes: "));
    assert_eq!(sources(&three), [""; 0]);
}

#[test]
fn s25_an_unknown_field_isolates_instead_of_opening() {
    let misplaced = json!({"ingress": [{"from": [{"podSelector": {}, "ports": [{"port": 80}]}]}]});
    isolates(misplaced, "spec.ingress[0].from[0].ports");
    isolates(json!({"ingress": [{}], "ports": [{"port": 80}]}), "spec.ports");
    isolates(json!({"ingress": [{"form": []}]}), "spec.ingress[0].form");
    isolates(
        json!({"ingress": [{"to": [{"podSelector": {}}]}]}),
        "spec.ingress[0].to",
    );
    isolates(
        json!({"ingress": [{"ports": [{"Port": 80}]}]}),
        "spec.ingress[0].ports[0].Port",
    );
    isolates(
        json!({"ingress": [{}], "podSelector": {"matchLabel": {"app": "db"}}}),
        "spec.podSelector.matchLabel",
    );
    let mut outside = policy("a/p", json!({"podSelector": {}}));
    outside["ingress"] = json!([{}]);
    let world = World::new(base().into_iter().chain([outside]));
    assert!(faults(&world)[0].starts_with("ingress: "));
    assert_eq!(sources(&world), [""; 0]);
}

#[test]
fn s25_an_invalid_policy_isolates_what_it_selects_in_the_directions_it_names() {
    let db = json!({"matchLabels": {"app": "db"}});
    let world = with(json!({"podSelector": db, "policyTypes": ["Egress"], "egress": [{"oops": 1}]}));
    assert!(!world.open("a/db", "b/web", "80/TCP"));
    assert!(world.open("b/web", "a/db", "80/TCP"));
    assert!(
        world.open("a/web", "b/web", "80/TCP"),
        "the selector could be read: others are not touched"
    );
    // Types that cannot be read: both. A selector that cannot be read: the namespace.
    let world = with(json!({"podSelector": db, "policyTypes": ["egress"]}));
    assert!(!world.open("a/db", "b/web", "80/TCP") && !world.open("b/web", "a/db", "80/TCP"));
    let world = with(json!({"podSelector": ["app"], "policyTypes": ["Ingress"], "ingress": [{}]}));
    assert!(!world.open("b/web", "a/db", "80/TCP") && !world.open("b/web", "a/web", "80/TCP"));
    let world = with(json!("deny everything"));
    assert!(!world.open("a/db", "b/web", "80/TCP") && !world.open("b/web", "a/db", "80/TCP"));
    let world = with(json!({"policytypes": ["Egress"], "podSelector": db}));
    assert!(
        !world.open("a/db", "b/web", "80/TCP"),
        "a misspelt policyTypes may have meant egress"
    );
}

// Ports and protocols

fn to_ports(list: Value) -> World {
    with(json!({"ingress": [{"ports": list}]}))
}

fn reachable(world: &World, services: &[&'static str]) -> Vec<&'static str> {
    services
        .iter()
        .copied()
        .filter(|service| world.open("b/web", "a/db", service))
        .collect()
}

#[test]
fn s26_protocol_defaults_to_tcp_for_named_ports_too() {
    assert_eq!(
        reachable(&to_ports(json!([{"port": 80}])), &["80/TCP", "80/UDP", "80/SCTP"]),
        ["80/TCP"]
    );
    let server = ports(json!([
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns", "containerPort": 5353}
    ]));
    let world = World::new([
        pod("a/dns", &["10.0.0.9"], "", server),
        pod("b/x", &["10.0.1.9"], "", json!({})),
        policy("a/p", json!({"ingress": [{"ports": [{"port": "dns"}]}]})),
    ]);
    assert!(world.open("b/x", "a/dns", "5353/TCP"));
    assert!(!world.open("b/x", "a/dns", "53/UDP"));
}

#[test]
fn s27_protocol_without_port_is_all_its_ports() {
    let world = to_ports(json!([{"protocol": "UDP"}]));
    assert_eq!(
        reachable(&world, &["0/UDP", "1/UDP", "65535/UDP", "80/TCP", "ICMP"]),
        ["0/UDP", "1/UDP", "65535/UDP"]
    );
    assert_eq!(reachable(&to_ports(json!([{}])), &["9/TCP", "9/UDP"]), ["9/TCP"]);
}

#[test]
fn s28_a_rule_for_udp_isolates_tcp() {
    let world = to_ports(json!([{"protocol": "UDP", "port": 53}, {"protocol": "SCTP", "port": 7}]));
    assert_eq!(
        reachable(&world, &["53/TCP", "53/UDP", "7/SCTP", "53/SCTP"]),
        ["53/UDP", "7/SCTP"]
    );
}

#[test]
fn s29_an_unsupported_protocol_is_neither_tcp_nor_any() {
    for protocol in ["ICMP", "tcp", "", "ANY"] {
        let rule = json!({"ingress": [{"ports": [{"protocol": protocol, "port": 80}]}]});
        isolates(rule, "spec.ingress[0].ports[0].protocol");
    }
    isolates(
        json!({"ingress": [{"ports": [{"protocol": 6}]}]}),
        "spec.ingress[0].ports[0].protocol",
    );
}

#[test]
fn s30_end_port_is_inclusive_and_checked() {
    let world = to_ports(
        json!([{"port": 100, "endPort": 102}, {"port": 65535, "endPort": 65535, "protocol": "UDP"}]),
    );
    let asked = [
        "99/TCP",
        "100/TCP",
        "101/TCP",
        "102/TCP",
        "103/TCP",
        "65535/UDP",
        "65534/UDP",
    ];
    assert_eq!(
        reachable(&world, &asked),
        ["100/TCP", "101/TCP", "102/TCP", "65535/UDP"]
    );
    let at = |field: &str| format!("spec.ingress[0].ports[0].{field}");
    let rule = |port: Value| json!({"ingress": [{"ports": [port]}]});
    isolates(rule(json!({"port": 100, "endPort": 99})), &at("endPort"));
    isolates(rule(json!({"port": 100, "endPort": 65536})), &at("endPort"));
    isolates(rule(json!({"port": "http", "endPort": 99})), &at("endPort"));
    isolates(rule(json!({"endPort": 99})), &at("endPort"));
    isolates(rule(json!({"port": 0})), &at("port"));
    isolates(rule(json!({"port": 65536})), &at("port"));
    isolates(rule(json!({"port": -1})), &at("port"));
    isolates(rule(json!({"port": 80.5})), &at("port"));
    isolates(rule(json!({"port": true})), &at("port"));
    isolates(rule(json!({"port": "80"})), &at("port"));
    isolates(rule(json!({"port": "HTTP"})), &at("port"));
    isolates(rule(json!({"port": "much-too-long-name"})), &at("port"));
}

fn named_port_world(egress: bool) -> World {
    let spec = if egress {
        json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]})
    } else {
        json!({"ingress": [{"ports": [{"port": "http"}]}]})
    };
    World::new([
        pod(
            "a/one",
            &["10.0.0.1"],
            "",
            ports(json!([{"name": "http", "containerPort": 8080}])),
        ),
        pod(
            "a/two",
            &["10.0.0.2"],
            "",
            ports(json!([{"name": "http", "containerPort": 9090}])),
        ),
        pod(
            "a/none",
            &["10.0.0.3"],
            "",
            ports(json!([{"containerPort": 8080}])),
        ),
        pod(
            "a/udp",
            &["10.0.0.4"],
            "",
            ports(json!([{"name": "http", "containerPort": 8080, "protocol": "UDP"}])),
        ),
        policy("a/p", spec),
    ])
}

#[test]
fn s31_a_named_port_is_the_destinations_own() {
    for world in [named_port_world(false), named_port_world(true)] {
        assert!(world.open("a/two", "a/one", "8080/TCP"));
        assert!(!world.open("a/two", "a/one", "9090/TCP"));
        assert!(world.open("a/one", "a/two", "9090/TCP"));
        assert!(!world.open("a/one", "a/two", "8080/TCP"));
        assert!(
            !world.open("a/one", "a/udp", "8080/UDP"),
            "name and protocol must both match"
        );
    }
}

#[test]
fn s32_a_name_the_destination_lacks_matches_nothing() {
    for world in [named_port_world(false), named_port_world(true)] {
        assert!(!world.open("a/one", "a/none", "8080/TCP"));
        assert!(!world.open("a/one", "a/none", "0/TCP"));
        assert!(!world.open("a/one", "a/none", "ICMP"));
    }
    let world = named_port_world(true);
    assert!(!world.open("a/one", OUTSIDE, "8080/TCP"));
    assert!(!world.open("a/one", OUTSIDE, "0/TCP"));
}

#[test]
fn s33_one_name_per_protocol_the_first_container_wins() {
    let spec = json!({
        "initContainers": [
            {"name": "setup", "ports": [{"name": "http", "containerPort": 1}, {"name": "setup", "containerPort": 2}]},
            {"name": "sidecar", "restartPolicy": "Always",
             "ports": [{"name": "http", "containerPort": 3}, {"name": "metrics", "containerPort": 4}]},
        ],
        "containers": [
            {"name": "main", "ports": [{"name": "http", "containerPort": 8080}]},
            {"name": "other", "ports": [{"name": "http", "containerPort": 8081},
                                        {"name": "http", "containerPort": 8082, "protocol": "UDP"}]},
        ],
    });
    let allowed = json!([{"port": "http"}, {"port": "http", "protocol": "UDP"}, {"port": "metrics"}, {"port": "setup"}]);
    let world = World::new([
        pod("a/db", &["10.0.0.2"], "", spec),
        pod("b/web", &["10.0.1.1"], "", json!({})),
        policy("a/p", json!({"ingress": [{"ports": allowed}]})),
    ]);
    let asked = [
        "1/TCP", "2/TCP", "3/TCP", "4/TCP", "8080/TCP", "8081/TCP", "8082/UDP", "8080/UDP",
    ];
    assert_eq!(reachable(&world, &asked), ["4/TCP", "8080/TCP", "8082/UDP"]);
}

#[test]
fn s35_rules_with_ports_match_no_portless_protocol() {
    let asked = ["ICMP", "2", "50", "51", "47", "80/TCP"];
    assert_eq!(
        reachable(
            &to_ports(json!([{"protocol": "TCP"}, {"protocol": "UDP"}])),
            &asked
        ),
        ["80/TCP"]
    );
    assert_eq!(
        reachable(&from(json!([{"namespaceSelector": {}}])), &asked),
        asked
    );
}

#[test]
fn s36_port_zero_matches_only_rules_without_a_number() {
    assert!(!to_ports(json!([{"port": 1, "endPort": 65535}])).open("b/web", "a/db", "0/TCP"));
    assert!(to_ports(json!([{"protocol": "TCP"}])).open("b/web", "a/db", "0/TCP"));
    assert!(with(json!({"ingress": [{}]})).open("b/web", "a/db", "0/TCP"));
}

// ipBlock

fn block(cidr: &str, except: &[&str]) -> Value {
    json!({"ipBlock": {"cidr": cidr, "except": except}})
}

#[test]
fn s37_except_limits_its_own_peer_alone() {
    let alone = from(json!([block("203.0.0.0/16", &["203.0.113.0/24"])]));
    assert!(!alone.open(OUTSIDE, "a/db", "80/TCP"));
    assert!(alone.open("203.0.112.1", "a/db", "80/TCP"));
    let two = from(json!([
        block("203.0.0.0/16", &["203.0.113.0/24"]),
        block("203.0.113.8/30", &[])
    ]));
    assert!(two.open(OUTSIDE, "a/db", "80/TCP"));
    assert!(!two.open("203.0.113.1", "a/db", "80/TCP"));
}

#[test]
fn s38_ip_block_applies_to_pods() {
    let world = from(json!([block("10.0.1.0/24", &["10.0.1.2/32"])]));
    assert_eq!(sources(&world), ["b/web"]);
}

#[test]
fn s39_except_must_be_strictly_inside() {
    for except in ["10.0.0.0/8", "11.0.0.0/16", "0.0.0.0/0", "fd00::/64"] {
        isolates(
            json!({"ingress": [{"from": [block("10.0.0.0/8", &[except])]}]}),
            "spec.ingress[0].from[0].ipBlock.except[0]",
        );
    }
    assert_eq!(
        faults(&from(json!([block("10.0.0.0/8", &["10.0.0.0/9"])]))),
        [""; 0]
    );
}

#[test]
fn s40_host_bits_are_masked() {
    let world = from(json!([block("203.0.113.77/24", &["203.0.113.9/31"])]));
    assert!(world.open("203.0.113.1", "a/db", "80/TCP"));
    assert!(!world.open(OUTSIDE, "a/db", "80/TCP"));
    assert!(!world.open("203.0.113.8", "a/db", "80/TCP"));
}

#[test]
fn s41_trap_12_leading_zeros_are_decimal() {
    let world = from(json!([block("010.0.1.0/24", &[])]));
    assert_eq!(sources(&world), ["b/web", "b/bare"]);
    let decoded = decode(&policy(
        "a/p",
        json!({"ingress": [{"from": [block("010.0.1.0/24", &[])]}]}),
    ))
    .unwrap();
    assert_eq!(decoded[0].notes[0].path, "spec.ingress[0].from[0].ipBlock.cidr");
}

#[test]
fn s42_mapped_blocks_are_ipv4() {
    let world = from(json!([block(
        "::ffff:203.0.113.0/120",
        &["::ffff:203.0.113.8/125"]
    )]));
    assert!(world.open("203.0.113.1", "a/db", "80/TCP"));
    assert!(!world.open(OUTSIDE, "a/db", "80/TCP"));
    assert!(!world.open("203.0.112.1", "a/db", "80/TCP"));
    assert!(!world.open("2001:db8::1", "a/db", "80/TCP"));
    isolates(
        json!({"ingress": [{"from": [block("::ffff:1.2.3.0/24", &[])]}]}),
        "spec.ingress[0].from[0].ipBlock.cidr",
    );
}

#[test]
fn s42_bad_blocks_are_invalid() {
    for cidr in [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.256/8",
        "fd00::/129",
        "10.0.0.0/-1",
        "10.0.0.0/ 8",
        "x",
    ] {
        isolates(
            json!({"ingress": [{"from": [block(cidr, &[])]}]}),
            "spec.ingress[0].from[0].ipBlock.cidr",
        );
    }
    isolates(
        json!({"ingress": [{"from": [{"ipBlock": {}}]}]}),
        "spec.ingress[0].from[0].ipBlock.cidr",
    );
    isolates(
        json!({"ingress": [{"from": [{"ipBlock": "10.0.0.0/8"}]}]}),
        "spec.ingress[0].from[0].ipBlock",
    );
}

fn dual() -> Vec<Value> {
    vec![
        pod("a/both", &["10.0.0.1", "fd00::1"], "app=both", json!({})),
        pod("a/six", &["fd00::2"], "app=six", json!({})),
    ]
}

#[test]
fn s43_families_do_not_mix() {
    let four = World::new(dual().into_iter().chain([policy(
        "a/p",
        json!({"ingress": [{"from": [block("0.0.0.0/0", &[])]}]}),
    )]));
    assert!(four.open(OUTSIDE, "10.0.0.1", "80/TCP"));
    assert!(!four.open("2001:db8::1", "fd00::1", "80/TCP"));
    assert!(!four.open("fd00::2", "fd00::1", "80/TCP"));
    let six = World::new(dual().into_iter().chain([policy(
        "a/p",
        json!({"ingress": [{"from": [block("::/0", &[])]}]}),
    )]));
    assert!(!six.open(OUTSIDE, "10.0.0.1", "80/TCP"));
    assert!(six.open("2001:db8::1", "fd00::1", "80/TCP"));
    assert!(six.open("fd00::2", "fd00::1", "ICMPv6"));
}

#[test]
fn s44_overlapping_blocks_are_a_union() {
    let world = with(json!({"ingress": [
        {"from": [block("203.0.0.0/16", &[])], "ports": [{"port": 80}]},
        {"from": [block("203.0.113.0/24", &[])], "ports": [{"port": 81}]},
    ]}));
    assert!(
        world.open(OUTSIDE, "a/db", "80/TCP"),
        "the longer prefix must not hide the shorter"
    );
    assert!(world.open(OUTSIDE, "a/db", "81/TCP"));
    assert!(!world.open("203.0.1.1", "a/db", "81/TCP"));
}

// Identity and life cycle

#[test]
fn s46_host_network_pods_are_neither_subject_nor_peer() {
    let host = |node: Value| {
        pod(
            "a/agent",
            &["192.168.0.2"],
            "app=web",
            json!({"hostNetwork": true, "nodeName": node}),
        )
    };
    let peers = json!([{"podSelector": {"matchLabels": {"app": "web"}}}, block("192.168.0.7/32", &[])]);
    let objects = |name: &str| {
        base().into_iter().chain([
            node("n1", &["192.168.0.1"], &[]),
            node("n2", &["192.168.0.2"], &[]),
            host(name.into()),
            policy("a/p", json!({"ingress": [{"from": peers.clone()}], "egress": []})),
        ])
    };
    let world = World::new(objects("n2"));
    assert!(world.open("b/web", "a/agent", "80/TCP"), "no policy isolates it");
    assert!(!world.open("a/agent", "a/db", "80/TCP"), "no selector matches it");
    // ipBlock may match it.
    let block = World::new(objects("n2").chain([policy(
        "a/q",
        json!({"ingress": [{"from": [block("192.168.0.2/32", &[])]}]}),
    )]));
    assert!(block.open("a/agent", "a/db", "80/TCP"));
    // Its address is its node's, also of a node without a Node object.
    let world = World::new(base().into_iter().chain([
        pod(
            "b/agent",
            &["192.168.0.9"],
            "",
            json!({"hostNetwork": true, "nodeName": "n1"}),
        ),
        policy("a/p", json!({})),
    ]));
    assert_eq!(
        world.judge("b/agent", "a/db", "80/TCP").ingress.cause,
        Cause::HostingNode
    );
}

#[test]
fn s47_a_pod_and_its_own_node_always_talk() {
    let deny = [
        policy("a/p", json!({"policyTypes": ["Ingress", "Egress"]})),
        policy("b/p", json!({"policyTypes": ["Ingress", "Egress"]})),
    ];
    let world = World::new(base().into_iter().chain(deny).chain([
        node(
            "n1",
            &["192.168.0.1", "host.example", "fd00:192::1"],
            &["10.0.0.0/24"],
        ),
        node("n2", &["192.168.0.2"], &["10.0.1.0/24"]),
    ]));
    for service in ["10250/TCP", "53/UDP", "ICMP", "50"] {
        assert!(world.open("192.168.0.1", "a/db", service));
        assert!(world.open("a/db", "192.168.0.1", service));
        assert!(!world.open("192.168.0.2", "a/db", service), "not any node");
        assert!(!world.open("a/db", "192.168.0.2", service));
    }
    assert_eq!(
        world.judge("192.168.0.1", "a/db", "1/TCP").ingress.cause,
        Cause::HostingNode
    );
}

#[test]
fn s47_tunnel_and_flannel_addresses_are_the_nodes() {
    let mut calico = node("n1", &["192.168.0.1"], &["10.0.0.0/24"]);
    calico["metadata"]["annotations"] = json!({
        "projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.64",
        "projectcalico.org/IPv4IPIPTunnelAddr": "10.0.0.65",
        "projectcalico.org/IPv6VXLANTunnelAddr": "fd00::64",
        "projectcalico.org/IPv4Address": "172.16.0.1/24",
    });
    let mut flannel = node("n2", &["192.168.0.2"], &["10.0.1.0/24"]);
    flannel["metadata"]["annotations"] = json!({"flannel.alpha.coreos.com/backend-type": "vxlan"});
    let mut pods = base();
    pods.retain(|object| object["kind"] != "Pod" || object["metadata"]["name"] == "db");
    let world = World::new(pods.into_iter().chain([
        calico,
        flannel,
        pod("b/x", &["10.0.1.7"], "", json!({"nodeName": "n2"})),
        policy("a/p", json!({})),
        policy("b/p", json!({})),
    ]));
    for address in ["10.0.0.64", "10.0.0.65", "172.16.0.1"] {
        assert!(world.open(address, "a/db", "80/TCP"), "{address}");
    }
    assert!(world.open("10.0.1.0", "b/x", "80/TCP"));
    assert!(world.open("10.0.1.1", "b/x", "80/TCP"));
    assert!(!world.open("10.0.1.2", "b/x", "80/TCP"));
    assert!(!world.open("10.0.0.1", "a/db", "80/TCP"), "n1 is no Flannel node");
}

#[test]
fn s48_a_pod_reaches_itself() {
    let world = World::new(
        dual()
            .into_iter()
            .chain([policy("a/p", json!({"policyTypes": ["Ingress", "Egress"]}))]),
    );
    for address in ["10.0.0.1", "fd00::1"] {
        let verdict = world.judge(address, address, "80/TCP");
        assert!(verdict.allow());
        assert_eq!(verdict.ingress.cause, Cause::SelfTraffic);
    }
    assert!(!world.open("fd00::1", "fd00::2", "80/TCP"));
}

#[test]
fn s50_finished_pods_let_go_of_their_address_and_the_newest_holds_it() {
    let job = |name: &str, phase: &str, created: &str, app: &str| {
        let mut pod = pod(name, &["10.0.0.7"], app, json!({}));
        pod["status"]["phase"] = phase.into();
        pod["metadata"]["creationTimestamp"] = created.into();
        pod
    };
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "new"}}}]);
    let allow = policy("a/p", json!({"ingress": [{"from": peers}]}));
    for phase in ["Succeeded", "Failed"] {
        let world = World::new(base().into_iter().chain([
            allow.clone(),
            job("b/old", phase, "2025-02-01T00:00:00Z", "app=old"),
            job("b/new", "Running", "2025-01-01T00:00:00Z", "app=new"),
        ]));
        assert!(world.open("10.0.0.7", "a/db", "80/TCP"), "{phase}");
    }
    let world = World::new(base().into_iter().chain([
        allow,
        job("b/one", "Running", "2025-02-01T00:00:00Z", "app=new"),
        job("b/two", "Running", "2025-01-01T00:00:00Z", "app=old"),
    ]));
    assert!(world.open("10.0.0.7", "a/db", "80/TCP"), "the newest live pod");
}

#[test]
fn s50_a_pod_without_status_is_live_and_known_by_name() {
    let mut bare = pod("b/plain", &[], "app=web", json!({}));
    bare.as_object_mut().unwrap().remove("status");
    let world = World::new(base().into_iter().chain([
        bare,
        policy("a/p", json!({"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}, block("0.0.0.0/0", &["10.0.0.0/8"])]}]})),
        policy("b/p", json!({"podSelector": {"matchLabels": {"app": "web"}}})),
    ]));
    assert!(world.open("b/plain", "a/db", "80/TCP"));
    assert!(!world.open("a/web", "b/plain", "80/TCP"));
    assert_eq!(
        world.judge("b/plain", "b/plain", "80/TCP").ingress.cause,
        Cause::SelfTraffic
    );
}

#[test]
fn s51_a_terminating_pod_keeps_its_policy() {
    let mut leaving = pod("a/leaving", &["10.0.0.8"], "app=db", json!({}));
    leaving["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z".into();
    let world = World::new(base().into_iter().chain([
        leaving,
        policy("a/p", json!({"podSelector": {"matchLabels": {"app": "db"}}})),
    ]));
    assert!(!world.open("b/web", "a/leaving", "80/TCP"));
}

#[test]
fn s51_a_terminating_pod_gives_its_address_to_a_pod_that_stays() {
    let at = |name: &str, created: &str, app: &str, leaves: bool| {
        let mut pod = pod(name, &["10.0.0.8"], app, json!({}));
        pod["metadata"]["creationTimestamp"] = created.into();
        if leaves {
            pod["metadata"]["deletionTimestamp"] = "2025-06-01T00:00:00Z".into();
        }
        pod
    };
    let (early, late) = ("2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z");
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "granted"}}}]);
    let allow = policy("a/p", json!({"ingress": [{"from": peers}]}));
    let opens = |pods: [Value; 2]| {
        let world = World::new(base().into_iter().chain([allow.clone()]).chain(pods));
        world.open("10.0.0.8", "a/db", "80/TCP")
    };
    // The younger one is on its way out, on a node that died: the older one was given the address later.
    assert!(!opens([
        at("b/leaving", late, "app=granted", true),
        at("b/staying", early, "app=other", false),
    ]));
    assert!(opens([
        at("b/leaving", late, "app=other", true),
        at("b/staying", early, "app=granted", false),
    ]));
    // Of two that leave, or two that stay, the younger.
    for leave in [false, true] {
        assert!(opens([
            at("b/x", late, "app=granted", leave),
            at("b/y", early, "app=other", leave),
        ]));
    }
}

#[test]
fn s52_all_addresses_are_the_pod() {
    let world = World::new(dual().into_iter().chain([
        pod("b/client", &["10.0.1.1", "fd00:1::1"], "app=client", json!({})),
        policy("a/p", json!({"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}]}]})),
    ]));
    assert!(world.open("10.0.1.1", "10.0.0.1", "80/TCP"));
    assert!(world.open("fd00:1::1", "fd00::1", "80/TCP"));
    assert!(world.open("fd00:1::1", "fd00::2", "80/TCP"));
    assert!(!world.open("2001:db8::1", "fd00::2", "80/TCP"));
    // status.podIP alone will do.
    let mut old = pod("b/old", &[], "app=client", json!({}));
    old["status"] = json!({"podIP": "10.0.1.9"});
    let world = world.after(|cluster| {
        for decoded in decode(&old).unwrap() {
            cluster.insert(decoded.object);
        }
    });
    assert!(world.open("10.0.1.9", "10.0.0.1", "80/TCP"));
}

#[test]
fn s53_an_address_of_a_pod_network_without_an_owner_is_unknown() {
    let world = World::new(base().into_iter().chain([node(
        "n1",
        &["10.0.0.250"],
        &["10.0.0.0/24", "fd00::/64"],
    )]));
    let verdict = world.judge("10.0.0.77", "b/web", "80/TCP");
    assert_eq!(
        (verdict.egress.allow, verdict.egress.cause),
        (false, Cause::Unknown)
    );
    assert!(verdict.ingress.allow);
    assert!(!world.open("b/web", "fd00::9", "80/TCP"));
    assert!(
        world.open("10.0.0.250", "b/web", "80/TCP"),
        "a node's address is known"
    );
    assert!(
        world.open("10.0.2.77", "b/web", "80/TCP"),
        "never inferred from the pods"
    );
    let by_config = world.after(|cluster| cluster.settings.pod_cidrs.push("10.0.2.0/24".parse().unwrap()));
    assert!(!by_config.open("10.0.2.77", "b/web", "80/TCP"));
    let allowing = by_config.after(|cluster| cluster.settings.allow_unknown = true);
    assert!(allowing.open("10.0.2.77", "b/web", "80/TCP"));
}

#[test]
fn s53_service_addresses_are_not_unknown_but_pod_networks_come_first() {
    let world = World::new(base()).after(|cluster| {
        cluster.settings.pod_cidrs.push("10.0.0.0/8".parse().unwrap());
        cluster
            .settings
            .service_cidrs
            .push("172.20.0.0/16".parse().unwrap());
        cluster
            .settings
            .service_cidrs
            .push("10.96.0.0/12".parse().unwrap());
    });
    assert!(world.open("a/web", "172.20.0.1", "80/TCP"));
    assert!(
        !world.open("a/web", "10.96.0.1", "80/TCP"),
        "inside of both: unknown"
    );
    assert!(!world.open("a/web", "10.200.0.1", "80/TCP"));
}

#[test]
fn s54_a_pod_whose_namespace_has_not_been_seen_is_unknown() {
    let world = World::new(base()).after(|cluster| {
        cluster.namespaces.remove("b");
    });
    let verdict = world.judge("b/web", "a/db", "80/TCP");
    assert_eq!(verdict.egress.cause, Cause::Unknown);
    assert!(!verdict.allow());
}

#[test]
fn s54_a_reused_address_goes_by_age_then_uid() {
    let rival = |name: &str, uid: &str, app: &str| {
        let mut pod = pod(name, &["10.0.0.7"], app, json!({}));
        pod["metadata"]["uid"] = uid.into();
        pod["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z".into();
        pod
    };
    let allow = policy(
        "a/p",
        json!({"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "new"}}}]}]}),
    );
    let world = World::new(base().into_iter().chain([
        allow.clone(),
        rival("b/x", "2", "app=new"),
        rival("b/y", "1", "app=old"),
    ]));
    assert!(world.open("10.0.0.7", "a/db", "80/TCP"));
    let world = World::new(base().into_iter().chain([
        allow,
        rival("b/x", "1", "app=new"),
        rival("b/y", "2", "app=old"),
    ]));
    assert!(!world.open("10.0.0.7", "a/db", "80/TCP"));
}

#[test]
fn templates_are_endpoints_without_address() {
    let template = |kind: &str, group: &str| {
        let mut pod_template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {}});
        pod_template["spec"] = ports(json!([{"name": "http", "containerPort": 8080}]));
        let spec = match kind {
            "CronJob" => json!({"jobTemplate": {"spec": {"template": pod_template}}}),
            _ => json!({"template": pod_template}),
        };
        json!({"apiVersion": format!("{group}/v1"), "kind": kind,
            "metadata": {"namespace": "b", "name": kind.to_lowercase()}, "spec": spec})
    };
    let kinds = [
        ("Deployment", "apps"),
        ("StatefulSet", "apps"),
        ("DaemonSet", "apps"),
        ("ReplicaSet", "apps"),
        ("Job", "batch"),
        ("CronJob", "batch"),
    ];
    let world = World::new(base().into_iter().chain(kinds.map(|(kind, group)| template(kind, group))).chain([
        policy("a/p", json!({"ingress": [
            {"from": [block("0.0.0.0/0", &[]), block("::/0", &[])], "ports": [{"port": 1}]},
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 2}]}]})),
        policy("b/p", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": "http"}]}]})),
    ]));
    for (kind, _) in kinds {
        let name = format!("b/{}", kind.to_lowercase());
        assert!(world.open(&name, "a/db", "2/TCP"), "{kind}: selectors match");
        assert!(!world.open(&name, "a/db", "1/TCP"), "{kind}: no ipBlock does");
        assert!(world.open("a/web", &name, "8080/TCP"), "{kind}: named ports");
        assert!(!world.open("a/web", &name, "80/TCP"), "{kind}: isolated");
        assert!(
            !world.open(&name, &name, "80/TCP"),
            "{kind}: replicas are not each other"
        );
    }
}

#[test]
fn objects_that_are_not_policy_are_ignored_other_policies_are_named() {
    let other = |api: &str, kind: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": "x", "namespace": "a"}, "spec": {}});
    let world = World::new([
        other("v1", "Service"),
        other("projectcalico.org/v3", "Profile"),
        other("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
        other("policy.networking.k8s.io/v1", "TenantNetworkPolicy"),
        other("cilium.io/v2", "CiliumNetworkPolicy"),
        other("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
        other("projectcalico.org/v3", "StagedNetworkPolicy"),
        other("networking.k8s.io/v1", "Ingress"),
    ]);
    let kinds: Vec<&str> = world
        .cluster
        .unevaluated_kinds
        .iter()
        .map(String::as_str)
        .collect();
    assert_eq!(
        kinds,
        [
            "CiliumClusterwideNetworkPolicy.cilium.io",
            "CiliumNetworkPolicy.cilium.io",
            "ClusterNetworkPolicy.crd.antrea.io",
            "Profile.projectcalico.org",
            "TenantNetworkPolicy.policy.networking.k8s.io",
        ]
    );
    let cluster = &world.cluster;
    assert!(cluster.policies.is_empty() && cluster.tiered.is_empty() && cluster.pods.is_empty());
}

#[test]
fn a_misnamed_network_policy_isolates_instead_of_vanishing() {
    for (api, kind) in [
        ("extensions/v1beta1", "NetworkPolicy"),
        ("networking.k8s.io/v1beta1", "NetworkPolicy"),
        ("v1", "NetworkPolicy"),
        ("networking.k8s.io/v1", "networkpolicy"),
        ("networking.k8s.io/v1", "NetworkPolicies"),
    ] {
        let mut policy = policy("a/p", json!({"ingress": [{}]}));
        policy["apiVersion"] = api.into();
        policy["kind"] = kind.into();
        let world = World::new(base().into_iter().chain([policy]));
        assert_eq!(sources(&world), [""; 0], "{api} {kind}");
        assert_eq!(faults(&world).len(), 1, "{api} {kind}");
    }
}

#[test]
fn lists_are_unfolded() {
    let mut typed: Vec<Value> = base()
        .into_iter()
        .filter(|object| object["kind"] == "Pod")
        .collect();
    for item in &mut typed {
        item.as_object_mut().unwrap().remove("kind");
        item.as_object_mut().unwrap().remove("apiVersion");
    }
    let objects = decode(&json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "PodList", "items": typed},
        namespace("a", ""),
    ]}))
    .unwrap();
    let pods = objects
        .iter()
        .filter(|decoded| matches!(decoded.object, Object::Pod(_)))
        .count();
    assert_eq!((objects.len(), pods), (5, 4));
    assert_eq!(objects[1].prefix, "items[0].items[1]");
    let error =
        decode(&json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod", "apiVersion": "v1"}]}))
            .unwrap_err();
    assert_eq!(error.fault.path, "items[0].metadata.name");
}

fn isolated(policies: &[ObjectKey]) -> Cause {
    Cause::Isolated {
        tier: "NetworkPolicy".to_owned(),
        policies: policies.iter().map(PolicyId::network_policy).collect(),
    }
}
