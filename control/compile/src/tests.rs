//! Cases by hand: what a snapshot costs, and what leaves it unchanged. That it decides rightly is held against the
//! evaluator in `tests/compile_vs_reference`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

use std::{collections::BTreeSet, net::IpAddr};

use ringwall_dataplane::classify::{Effect, L4, NodeExemption, Snapshot};
use ringwall_policy::{
    Action, Condition, Conditions, DEFAULT_TIER, NAMESPACE_NAME_LABEL, NamedPort, Namespace, NetworkPolicy,
    Node, Object, ObjectKey, Operator, Order, Pod, PodSelection, PolicyKind, PortMatch, Protocol,
    Requirement, Rule, Selector, TieredPolicy, TieredRule,
};

use super::*;

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn pod(namespace: &str, name: &str, address: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        uid: format!("uid-{name}"),
        created: Some(1),
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        addresses: address
            .split(' ')
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().unwrap())
            .collect(),
        node: Some("n1".to_owned()),
        ..Pod::new(key(namespace, name))
    }
}

fn cluster(pods: Vec<Pod>) -> Cluster {
    let mut cluster = Cluster::default();
    for name in ["a", "b"] {
        cluster.insert(Object::Namespace(Namespace {
            name: name.to_owned(),
            labels: [(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())].into(),
            terminating: false,
        }));
    }
    for name in ["n1", "n2"] {
        cluster.insert(Object::Node(Node {
            name: name.to_owned(),
            addresses: vec![format!("192.168.0.{}", &name[1..]).parse().unwrap()],
            pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
        }));
    }
    for pod in pods {
        cluster.insert(Object::Pod(pod));
    }
    cluster
}

fn having(label: &str, value: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: label.to_owned(),
            operator: Operator::In(BTreeSet::from([value.to_owned()])),
        }],
    }
}

fn pods_with(label: &str, value: &str) -> ringwall_policy::Peer {
    ringwall_policy::Peer::Pods {
        namespaces: Some(Selector::default()),
        pods: having(label, value),
    }
}

/// An ingress policy of namespace a.
fn policy(name: &str, subjects: Selector, ingress: Vec<Rule>) -> Object {
    Object::NetworkPolicy(NetworkPolicy {
        key: key("a", name),
        uid: String::new(),
        subjects,
        ingress: Some(ingress),
        egress: None,
        types_written: false,
        answer: None,
        faults: Vec::new(),
    })
}

fn from(peers: Vec<ringwall_policy::Peer>) -> Rule {
    Rule {
        peers: Some(peers),
        ports: None,
    }
}

fn image(cluster: &Cluster) -> CompiledImage {
    compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap()
}

fn open(cluster: &Cluster) -> Snapshot {
    Snapshot::open(&image(cluster).bytes).unwrap()
}

fn allows(snapshot: &Snapshot, from: &str, to: &str, port: u16) -> bool {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let (src, dst) = (snapshot.identify(from.into()), snapshot.identify(to.into()));
    let l4 = L4::Port {
        protocol: 6,
        port,
        source: 0,
    };
    snapshot
        .judge(&src, &dst, from.into(), to.into(), l4, NodeExemption::Trusted)
        .allow()
}

fn epoch(snapshot: &Snapshot, name: &str) -> u64 {
    ["a", "b"]
        .iter()
        .find_map(|space| snapshot.find_endpoint(space, name))
        .unwrap()
        .identity
        .epoch
}

fn three_pods() -> Cluster {
    cluster(vec![
        pod("a", "web", "10.0.0.2 fd00::2", &[("app", "web"), ("hash", "x1")]),
        pod("a", "db", "10.0.0.3", &[("app", "db"), ("hash", "x2")]),
        pod(
            "b",
            "client",
            "10.0.0.4 fd00::4",
            &[("app", "client"), ("hash", "x3")],
        ),
    ])
}

#[test]
fn an_empty_cluster_is_open() {
    let snapshot = open(&Cluster::default());
    assert!(allows(&snapshot, "1.2.3.4", "::1", 80));
    assert_eq!(snapshot.sizes().rows, 0);
}

#[test]
fn both_families_are_one_pod() {
    let mut cluster = three_pods();
    cluster.insert(policy(
        "p",
        having("app", "web"),
        vec![from(vec![pods_with("app", "client")])],
    ));
    let snapshot = open(&cluster);
    assert!(allows(&snapshot, "10.0.0.4", "10.0.0.2", 80));
    assert!(allows(&snapshot, "fd00::4", "fd00::2", 80));
    assert!(!allows(&snapshot, "10.0.0.3", "10.0.0.2", 80));
    assert!(!allows(&snapshot, "fd00::9", "fd00::2", 80));
    let web = |address: &str| snapshot.identify(address.parse::<IpAddr>().unwrap().into());
    assert_eq!(web("10.0.0.2"), web("fd00::2"));
}

#[test]
fn templates_have_names_and_no_block() {
    let mut cluster = three_pods();
    let mut template = pod("a", "web-template", "", &[("app", "web")]);
    template.template_of = Some("Deployment".to_owned());
    cluster.insert(Object::Pod(template));
    let everything = ringwall_policy::Peer::Block {
        cidr: "0.0.0.0/0".parse().unwrap(),
        except: Vec::new(),
    };
    cluster.insert(policy("p", having("app", "db"), vec![from(vec![everything])]));
    cluster.insert(policy("q", having("app", "web"), Vec::new()));
    let snapshot = open(&cluster);
    let template = snapshot.find_endpoint("a", "web-template").unwrap();
    let db = snapshot.find_endpoint("a", "db").unwrap();
    let l4 = L4::Port {
        protocol: 6,
        port: 80,
        source: 0,
    };
    assert!(template.template && !db.template);
    let judge = |src: &_, dst: &_| {
        snapshot
            .judge_ends(src, dst, false, l4, NodeExemption::Trusted)
            .ingress
    };
    assert_eq!(
        judge(&template.identity, &db.identity).effect,
        Effect::Isolated,
        "no address, no block"
    );
    assert_eq!(
        judge(&db.identity, &template.identity).effect,
        Effect::Isolated,
        "selected like a pod"
    );
    let web = snapshot.identify("10.0.0.2".parse::<IpAddr>().unwrap().into());
    assert_eq!(judge(&web, &db.identity).effect, Effect::Allow);
}

#[test]
fn labels_that_no_selector_asks_for_split_nothing() {
    let mut pods = Vec::new();
    for number in 0..200 {
        let hash = number.to_string();
        pods.push(pod(
            "a",
            &format!("p{number}"),
            &format!("10.0.0.{number}"),
            &[("app", "web"), ("hash", &hash)],
        ));
    }
    let mut cluster = cluster(pods);
    cluster.insert(policy(
        "p",
        having("app", "web"),
        vec![from(vec![pods_with("app", "web")])],
    ));
    let stats = image(&cluster).stats;
    assert_eq!((stats.endpoints, stats.cohorts, stats.rows), (200, 1, 1));
    assert_eq!(stats.classes, 2, "web and everyone else");
}

#[test]
fn named_ports_are_the_destinations_own() {
    let mut cluster = three_pods();
    let http = |number| NamedPort {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
        number,
    };
    for (name, number) in [("web", 8080), ("db", 5432)] {
        let mut pod = (*cluster.pods[&key("a", name)]).clone();
        pod.named_ports = vec![http(number), http(1)];
        cluster.insert(Object::Pod(pod));
    }
    let named = || Rule {
        peers: None,
        ports: Some(vec![PortMatch::Named {
            protocol: Protocol::Tcp,
            name: "http".to_owned(),
        }]),
    };
    cluster.insert(policy("p", Selector::default(), vec![named()]));
    let snapshot = open(&cluster);
    for (address, port) in [("10.0.0.2", 8080), ("10.0.0.3", 5432)] {
        for tried in [8080, 5432, 1, 0] {
            assert_eq!(
                allows(&snapshot, "8.8.8.8", address, tried),
                tried == port,
                "{address} {tried}"
            );
        }
    }
    // Egress: the peer's names count; outside there are none.
    let mut egress = cluster.clone();
    egress.policies.clear();
    egress.insert(Object::NetworkPolicy(NetworkPolicy {
        key: key("b", "p"),
        uid: String::new(),
        subjects: Selector::default(),
        ingress: None,
        egress: Some(vec![named()]),
        types_written: false,
        answer: None,
        faults: Vec::new(),
    }));
    let snapshot = open(&egress);
    assert!(allows(&snapshot, "10.0.0.4", "10.0.0.2", 8080));
    assert!(!allows(&snapshot, "10.0.0.4", "10.0.0.2", 5432));
    assert!(allows(&snapshot, "10.0.0.4", "10.0.0.3", 5432));
    assert!(!allows(&snapshot, "10.0.0.4", "8.8.8.8", 8080));
}

#[test]
fn epochs_move_with_what_decides() {
    let mut cluster = three_pods();
    cluster.insert(policy(
        "p",
        having("app", "web"),
        vec![from(vec![pods_with("app", "client")])],
    ));
    let before = open(&cluster);
    let changed = |next: &Cluster| -> Vec<&str> {
        let after = open(next);
        let names = ["web", "db", "client"].into_iter();
        names
            .filter(|name| epoch(&before, name) != epoch(&after, name))
            .collect()
    };
    assert_eq!(changed(&cluster), [""; 0]);

    let mut next = cluster.clone();
    next.insert(policy("q", having("app", "web"), Vec::new()));
    assert_eq!(changed(&next), ["web"], "another policy selects it");

    let mut next = cluster.clone();
    next.insert(policy(
        "p",
        having("app", "web"),
        vec![from(vec![pods_with("app", "db")])],
    ));
    assert_eq!(changed(&next), ["web"], "its policy says something else");

    let mut next = cluster.clone();
    next.insert(Object::Pod(pod(
        "b",
        "client",
        "10.0.0.4 fd00::4",
        &[("app", "db"), ("hash", "x3")],
    )));
    assert_eq!(changed(&next), ["client"], "a label that selectors see");

    let mut next = cluster.clone();
    next.insert(Object::Pod(pod(
        "b",
        "client",
        "10.0.0.4 fd00::4",
        &[("app", "client"), ("hash", "new")],
    )));
    assert_eq!(changed(&next), [""; 0], "a label that none sees");

    let mut next = cluster.clone();
    let mut again = pod(
        "b",
        "client",
        "10.0.0.4 fd00::4",
        &[("app", "client"), ("hash", "x3")],
    );
    again.uid = "another".to_owned();
    next.insert(Object::Pod(again));
    assert_eq!(changed(&next), ["client"], "another incarnation");

    let mut next = cluster.clone();
    next.insert(Object::Pod(pod("b", "late", "10.0.0.9", &[("app", "late")])));
    assert_eq!(changed(&next), [""; 0], "a pod elsewhere");

    let mut next = cluster.clone();
    next.pods.remove(&key("a", "web"));
    let after = open(&next);
    assert_eq!(epoch(&after, "db"), epoch(&before, "db"));
    assert_eq!(
        epoch(&after, "client"),
        epoch(&before, "client"),
        "who it may reach is not its own"
    );

    let other_key = Snapshot::open(
        &compile(&cluster, Generation(1), &EpochKey([1; 32]))
            .unwrap()
            .bytes,
    )
    .unwrap();
    assert_ne!(epoch(&other_key, "web"), epoch(&before, "web"));
    assert_eq!(
        other_key.hash(),
        before.hash(),
        "the key has no part in what is meant"
    );
}

#[test]
fn hash_is_of_what_is_meant() {
    let mut cluster = three_pods();
    cluster.insert(policy(
        "p",
        having("app", "web"),
        vec![from(vec![pods_with("app", "client")])],
    ));
    let hash = image(&cluster).hash;
    let later = compile(&cluster, Generation(99), &EpochKey::OFFLINE).unwrap();
    assert_eq!(later.hash, hash, "the generation has no part in it");

    let mut same = cluster.clone();
    same.insert(policy(
        "nobody",
        having("app", "nobody"),
        vec![from(vec![pods_with("hash", "x1")])],
    ));
    assert_eq!(image(&same).hash, hash, "a policy that selects no pod");
    same.settings.pod_cidrs = vec!["10.0.0.0/25".parse().unwrap(), "10.0.0.128/25".parse().unwrap()];
    assert_eq!(image(&same).hash, hash, "networks that are pod networks anyway");

    let mut other = cluster.clone();
    other.insert(policy(
        "p2",
        having("app", "web"),
        vec![from(vec![pods_with("app", "client")])],
    ));
    assert_ne!(image(&other).hash, hash, "another policy isolates too");
    let mut other = cluster.clone();
    other.settings.allow_unknown = true;
    assert_ne!(image(&other).hash, hash);
    let mut other = cluster.clone();
    other.settings.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    assert_ne!(image(&other).hash, hash);
}

#[test]
fn over_budget_names_the_heaviest() {
    // Selectors that cut across each other: pod n has label kI iff bit I of n is set, and every policy asks for one
    // bit, so that no two pods look alike; `heavy` has a rule for each.
    let bits = |number: u32| {
        (0..9)
            .filter(move |bit| number >> bit & 1 == 1)
            .map(|bit| format!("k{bit}"))
    };
    let mut pods = Vec::new();
    for number in 0..512 {
        let labels: Vec<String> = bits(number).collect();
        let labels: Vec<(&str, &str)> = labels.iter().map(|label| (label.as_str(), "")).collect();
        pods.push(pod(
            "a",
            &format!("p{number}"),
            &format!("10.1.{}.{}", number / 256, number % 256),
            &labels,
        ));
    }
    let mut cluster = cluster(pods);
    let port = |port| {
        Some(vec![PortMatch::Range {
            protocol: Protocol::Tcp,
            lo: port,
            hi: port,
        }])
    };
    for bit in 0..9 {
        let rule = Rule {
            peers: Some(vec![pods_with(&format!("k{bit}"), "")]),
            ports: port(80 + bit),
        };
        cluster.insert(policy(
            &format!("light{bit}"),
            having(&format!("k{bit}"), ""),
            vec![rule],
        ));
    }
    let rules = (0..9).map(|bit| Rule {
        peers: Some(vec![pods_with(&format!("k{bit}"), "")]),
        ports: port(100 + bit),
    });
    cluster.insert(policy("heavy", Selector::default(), rules.collect()));

    let fits = image(&cluster);
    assert!(
        fits.stats.classes >= 512 && fits.stats.rows >= 512,
        "{:?}",
        fits.stats
    );
    let budget = Budget { bytes: 600 << 10 };
    let error = compile_within(&cluster, Generation(1), &EpochKey::OFFLINE, &budget).unwrap_err();
    let CompileError::OverBudget { needed, heaviest, .. } = &error else {
        panic!("{error}")
    };
    assert!(*needed > budget.bytes);
    assert_eq!(
        heaviest.first().map(|(name, _)| name.as_str()),
        Some("a/heavy"),
        "{error}"
    );
    assert!(heaviest.iter().map(|(_, share)| share).sum::<f64>() <= 1.001);
    assert!(error.to_string().contains("a/heavy ("), "{error}");
    // What fits its budget to the byte is built.
    let exact = Budget {
        bytes: fits.stats.bytes,
    };
    assert!(compile_within(&cluster, Generation(1), &EpochKey::OFFLINE, &exact).is_ok());
}

/// Pods and policies whose selectors cut across each other: pod n has label kI iff bit I of n is set, every policy
/// selects and admits by one bit, on a port of its own.
fn independent(bits: u16, policies: std::ops::Range<u16>) -> Cluster {
    let mut pods = Vec::new();
    for number in 0..1_u32 << bits {
        let labels: Vec<String> = (0..bits)
            .filter(|bit| number >> bit & 1 == 1)
            .map(|bit| format!("k{bit}"))
            .collect();
        let labels: Vec<(&str, &str)> = labels.iter().map(|label| (label.as_str(), "")).collect();
        let address = format!("10.1.{}.{}", number / 256, number % 256);
        pods.push(pod("a", &format!("p{number}"), &address, &labels));
    }
    let mut cluster = cluster(pods);
    for bit in policies {
        cluster.insert(crossing(bit));
    }
    cluster
}

fn crossing(bit: u16) -> Object {
    let key = format!("k{bit}");
    let rule = Rule {
        peers: Some(vec![pods_with(&key, "")]),
        ports: Some(vec![PortMatch::Range {
            protocol: Protocol::Tcp,
            lo: 80 + bit,
            hi: 80 + bit,
        }]),
    };
    policy(&format!("bit{bit}"), having(&key, ""), vec![rule])
}

#[test]
fn independent_selectors_are_refused_before_memory_is_spent() {
    // Each further policy doubles rows and classes: what is needed grows fourfold, what is spent does not.
    let budget = Budget { bytes: 400 << 10 };
    let fits = independent(10, 0..3);
    let mut compiler = Compiler::new(EpochKey::OFFLINE, budget);
    let first = compiler.update(&fits, Generation(1)).unwrap();
    assert!(first.stats.bytes < budget.bytes);
    let error = compiler
        .update(&independent(10, 0..10), Generation(2))
        .unwrap_err();
    let CompileError::OverBudget { needed, heaviest, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        (budget.bytes..budget.bytes * 5 / 4).contains(needed),
        "noticed at {needed} bytes"
    );
    assert_eq!(heaviest.len(), 5, "{error}");
    // What came before is compiled as if nothing had been; so are changes to it.
    let again = compiler.update(&fits, Generation(3)).unwrap();
    assert_eq!(again.hash, first.hash);
    let mut next = fits.clone();
    next.pods.remove(&key("a", "p7"));
    assert!(compiler.update(&next, Generation(4)).unwrap().incremental);
}

#[test]
fn a_budget_holds_for_changes_too() {
    // One policy after the other, each of words that are known: the compiler follows until it is too much.
    let known = |mut cluster: Cluster| {
        let words: Vec<_> = (0..12)
            .map(|bit| pods_with(&format!("k{bit}"), "never"))
            .collect();
        cluster.insert(policy("words", Selector::default(), vec![from(words)]));
        cluster
    };
    let mut cluster = known(independent(8, 0..1));
    let budget = Budget {
        bytes: image(&cluster).stats.bytes * 2,
    };
    let mut compiler = Compiler::new(EpochKey::OFFLINE, budget);
    let mut last = compiler.update(&cluster, Generation(1)).unwrap();
    let (mut refused, mut incremental) = (None, 0);
    for bit in 1..8 {
        cluster.insert(crossing(bit));
        match compiler.update(&cluster, Generation(u64::from(bit) + 1)) {
            Ok(compiled) => last = compiled,
            Err(error) => {
                refused = Some((bit, error));
                break;
            }
        }
        // Where what was left behind is too much, it is swept out.
        incremental += u32::from(last.incremental);
        assert!(last.stats.bytes <= budget.bytes);
    }
    let (bit, error) = refused.expect("256 classes by 256 rows are too much");
    assert!(matches!(error, CompileError::OverBudget { .. }), "{error}");
    assert!(incremental > 1);
    cluster.policies.remove(&key("a", &format!("bit{bit}")));
    assert_eq!(
        compiler.update(&cluster, Generation(99)).unwrap().hash,
        last.hash,
        "the one before stands"
    );
}

#[test]
fn what_came_and_went_is_swept_out() {
    let mut cluster = three_pods();
    let everyone = from(vec![pods_with("app", "client")]);
    cluster.insert(policy("p", having("app", "web"), vec![everyone]));
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let mut in_full = 0;
    for number in 0..700 {
        let label = format!("v{number}");
        cluster.insert(Object::Pod(pod("a", "changing", "10.0.0.9", &[("app", &label)])));
        let compiled = compiler.update(&cluster, Generation(number + 1)).unwrap();
        in_full += u32::from(!compiled.incremental);
        assert_eq!(compiled.stats.cohorts, 4);
    }
    assert!(
        (2..10).contains(&in_full),
        "700 cohorts of one pod each: {in_full} times in full"
    );
}

#[test]
fn blocks_that_cut_across_each_other_are_counted_before_memory_is_spent() {
    // Every block is everything but one address: n ranges, each in n - 1 sets.
    let blocks = (0..400_u32).map(|number| ringwall_policy::Peer::Block {
        cidr: "0.0.0.0/0".parse().unwrap(),
        except: vec![
            format!("20.0.{}.{}/32", number / 256, number % 256)
                .parse()
                .unwrap(),
        ],
    });
    let mut cluster = three_pods();
    cluster.insert(policy("odd", Selector::default(), vec![from(blocks.collect())]));
    let budget = Budget { bytes: 100 << 10 };
    let error = compile_within(&cluster, Generation(1), &EpochKey::OFFLINE, &budget).unwrap_err();
    assert!(error.to_string().contains("a/odd (100 %)"), "{error}");
    assert!(compile(&cluster, Generation(1), &EpochKey::OFFLINE).is_ok());
}

#[test]
fn lookups_do_not_grow_with_policies() {
    let mut worst = Vec::new();
    for policies in [1, 10, 100] {
        let mut cluster = three_pods();
        for number in 0..policies {
            let rule = from(vec![pods_with("app", &format!("client{number}"))]);
            cluster.insert(policy(&format!("p{number}"), having("app", "web"), vec![rule]));
        }
        worst.push(open(&cluster).sizes().worst_judge);
    }
    assert_eq!(worst, [worst[0]; 3]);
}

/// A rule for everyone but some is for classes that come later, too, on pages that were not there.
#[test]
fn classes_that_come_are_among_everyone_else() {
    let kinds = 100;
    let kind = |number: usize| pods_with("kind", &number.to_string());
    let not_first = Conditions {
        peer: vec![Condition {
            negated: true,
            any: vec![kind(0)],
        }],
        ..Conditions::default()
    };
    let rule = TieredRule {
        continues: false,
        action: Action::Allow,
        peers: None,
        ports: None,
        conditions: not_first,
    };
    let mut cluster = cluster(vec![pod("a", "db", "10.0.0.1", &[("role", "db")])]);
    cluster.insert(Object::Tiered(TieredPolicy {
        subjects: vec![PodSelection {
            namespaces: Selector::default(),
            pods: having("role", "db"),
        }],
        ingress: Some(vec![rule]),
        ..TieredPolicy::new(PolicyKind::GlobalNetworkPolicy, "p", DEFAULT_TIER, Order::LAST)
    }));
    // Tells each kind from the others.
    let each = (0..kinds).map(kind).collect();
    cluster.insert(policy("many", having("role", "nobody"), vec![from(each)]));
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    compiler.update(&cluster, Generation(1)).unwrap();
    for number in 0..kinds {
        let address = format!("10.0.0.{}", number + 2);
        let labels = [("kind", &*number.to_string())];
        cluster.insert(Object::Pod(pod("a", &format!("k{number}"), &address, &labels)));
    }
    let compiled = compiler.update(&cluster, Generation(2)).unwrap();
    assert!(compiled.incremental && compiled.stats.classes > kinds as u32);
    let snapshot = Snapshot::from_image(&compiled.image);
    for number in 0..kinds {
        let from = format!("10.0.0.{}", number + 2);
        assert_eq!(
            allows(&snapshot, &from, "10.0.0.1", 80),
            number != 0,
            "kind {number}"
        );
    }
    assert_eq!(compiled.hash, image(&cluster).hash);
}

#[test]
fn the_first_row_has_a_column_for_every_class_that_came_before_it() {
    let mut cluster = cluster(Vec::new());
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    compiler.update(&cluster, Generation(1)).unwrap();
    // More classes than one page of a row has.
    let block = |number: u32, name: &str| {
        let peer = ringwall_policy::Peer::Block {
            cidr: format!("192.0.2.{number}/32").parse().unwrap(),
            except: Vec::new(),
        };
        policy(
            &format!("{name}-{number}"),
            Selector::default(),
            vec![from(vec![peer])],
        )
    };
    for number in 0..100 {
        cluster.insert(block(number, "allow"));
        let compiled = compiler
            .update(&cluster, Generation(u64::from(number) + 2))
            .unwrap();
        assert!(compiled.incremental, "without pods, policy {number}");
    }
    cluster.insert(Object::Pod(pod("a", "web", "10.0.0.2", &[("app", "web")])));
    let compiled = compiler.update(&cluster, Generation(200)).unwrap();
    assert!(compiled.incremental);
    let snapshot = Snapshot::from_image(&compiled.image);
    for number in 0..100 {
        let from = format!("192.0.2.{number}");
        assert!(allows(&snapshot, &from, "10.0.0.2", 80), "{from}");
    }
    assert!(!allows(&snapshot, "192.0.2.100", "10.0.0.2", 80));
}

#[test]
fn a_label_key_of_namespaces_that_comes_and_goes_leaves_nothing_behind() {
    let mut cluster = three_pods();
    cluster.insert(Object::Namespace(Namespace {
        name: "b".to_owned(),
        labels: [("tenant".to_owned(), "blue".to_owned())].into(),
        terminating: false,
    }));
    let everyone = policy(
        "base",
        Selector::default(),
        vec![from(vec![pods_with("app", "web")])],
    );
    cluster.insert(everyone);
    let tenant = |value: &str| {
        let peer = ringwall_policy::Peer::Pods {
            namespaces: Some(having("tenant", value)),
            pods: Selector::default(),
        };
        policy("tenant", Selector::default(), vec![from(vec![peer])])
    };
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let mut generation = 0;
    let mut take = |cluster: &Cluster| {
        generation += 1;
        let compiled = compiler.update(cluster, Generation(generation)).unwrap();
        let (full, now) = (open(cluster), Snapshot::from_image(&compiled.image));
        assert_eq!(compiled.hash, full.hash());
        for name in ["web", "db", "client"] {
            assert_eq!(epoch(&now, name), epoch(&full, name), "{name}");
        }
        (compiled, now)
    };
    take(&cluster);
    let mut sizes = Vec::new();
    for round in 0..6 {
        // Of one value that b has, and of one that it gets while no selector asks for the key.
        let value = ["blue", "green"][round / 3];
        cluster.insert(Object::Namespace(Namespace {
            name: "b".to_owned(),
            labels: [("tenant".to_owned(), value.to_owned())].into(),
            terminating: false,
        }));
        take(&cluster);
        for asked in ["blue", "green"] {
            let asked_for = tenant(asked);
            let reference = asked_for.reference().unwrap();
            cluster.insert(asked_for);
            let (compiled, now) = take(&cluster);
            assert!(compiled.incremental);
            assert_eq!(allows(&now, "10.0.0.4", "10.0.0.3", 80), asked == value);
            cluster.remove(&reference);
            let (_, now) = take(&cluster);
            assert!(!allows(&now, "10.0.0.4", "10.0.0.3", 80));
            sizes.push(compiled.stats.classes);
        }
    }
    // Once both values were asked for in each state, what comes was there before.
    assert_eq!(sizes[2..6].iter().collect::<BTreeSet<_>>().len(), 1, "{sizes:?}");
    assert_eq!(sizes[8..].iter().collect::<BTreeSet<_>>().len(), 1, "{sizes:?}");
}

/// From 1,000 pods on, another thread finds replicas and hashes.
#[test]
fn many_pods_compile_to_what_few_and_then_more_compile_to() {
    let numbered = |number: u16| {
        let app = if number % 10 < 8 { "web" } else { "client" };
        let address = format!("10.0.{}.{}", number / 250, number % 250 + 1);
        Pod {
            // Between replicas.
            finished: number % 10 == 3,
            host_network: number % 10 == 5,
            node: Some(format!("n{}", number % 7)),
            ..pod("a", &format!("p{number:04}"), &address, &[("app", app)])
        }
    };
    let with = |pods: u16| {
        let mut cluster = cluster((0..pods).map(numbered).collect());
        let rule = from(vec![pods_with("app", "client")]);
        cluster.insert(policy("p", having("app", "web"), vec![rule]));
        cluster
    };
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let mut last = compiler.update(&with(990), Generation(1)).unwrap();
    for pods in [1040, 1090, 1140, 1200] {
        last = compiler.update(&with(pods), Generation(u64::from(pods))).unwrap();
        assert!(last.incremental);
    }
    let full = image(&with(1200));
    assert_eq!(full.hash, last.hash);
    // With those of the host network and of the two nodes.
    assert_eq!((full.stats.endpoints, full.stats.hosts), (960, 1082));
    assert_eq!((last.stats.endpoints, last.stats.hosts), (960, 1082));
}
