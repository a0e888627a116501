//! The words of explanations where policies of the Admin and Baseline tiers have a part.

use std::sync::Arc;

use ringwall_analyse::explain::{
    Explainer, Question,
    render::{Style, render},
    report::Explanation,
};
use ringwall_policy::{
    Action, Cluster, Conditions, DEFAULT_TIER, KUBE_ADMIN, KUBE_BASELINE, NetworkPolicy, Object, ObjectKey,
    Order, Peer, Pod, PolicyKind, PortMatch, Protocol, Selector, Tier, TierDefault, TieredPolicy, TieredRule,
};

fn key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// Pods `web` (10.0.0.1) and `db` (10.0.0.2) of namespace `shop`, and `late`, without an address.
fn shop() -> Cluster {
    let mut cluster = Cluster::default();
    for (name, address) in [
        ("web", Some("10.0.0.1")),
        ("db", Some("10.0.0.2")),
        ("late", None),
    ] {
        cluster.insert(Object::Pod(Pod {
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: address.iter().map(|it| it.parse().unwrap()).collect(),
            ..Pod::new(key(name))
        }));
    }
    cluster.settings.pod_cidrs = vec!["10.0.0.0/16".parse().unwrap()];
    cluster.supply_namespaces();
    cluster
}

fn rule(action: Action, peers: Option<Vec<Peer>>, port: Option<u16>) -> TieredRule {
    let ports = port.map(|port| {
        vec![PortMatch::Range {
            protocol: Protocol::Tcp,
            lo: port,
            hi: port,
        }]
    });
    TieredRule {
        continues: false,
        action,
        peers,
        ports,
        conditions: Conditions::NONE,
    }
}

fn with(mut cluster: Cluster, tier: &str, name: &str, ingress: &[TieredRule]) -> Cluster {
    let policy = TieredPolicy {
        ingress: (!ingress.is_empty()).then(|| ingress.to_vec()),
        ..TieredPolicy::new(
            PolicyKind::ClusterNetworkPolicy,
            name,
            tier,
            Order::of_priority(5),
        )
    };
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    cluster
}

/// A NetworkPolicy that closes `db`.
fn closed(mut cluster: Cluster) -> Cluster {
    cluster.insert(Object::NetworkPolicy(NetworkPolicy {
        key: key("closed"),
        uid: String::new(),
        subjects: Selector::default(),
        ingress: Some(Vec::new()),
        egress: None,
        types_written: true,
        answer: None,
        faults: Vec::new(),
    }));
    cluster
}

fn explain(cluster: &Cluster, src: &str) -> (Explanation, String) {
    let question = Question::read(src, "shop/db", "80/TCP").unwrap();
    let explanation = Explainer::new(cluster).unwrap().explain(&question).unwrap();
    // Lines are broken anywhere.
    let text = render(&explanation, Style::PLAIN);
    (explanation, text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

use Action::{Allow, Deny, Pass};

#[test]
fn a_rule_that_denies_is_named_and_no_edit_of_other_policies_is_proposed() {
    let rules = [rule(Pass, None, Some(443)), rule(Deny, None, None)];
    let cluster = with(closed(shop()), KUBE_ADMIN, "guard", &rules);
    let (explanation, text) = explain(&cluster, "shop/web");
    assert_eq!(
        explanation.ingress.why,
        "rule 1 of ClusterNetworkPolicy guard (Admin) denies it"
    );
    assert_eq!(explanation.ingress.effect, "deny");
    assert!(explanation.changes.is_empty());
    says(
        &text,
        &[
            "ClusterNetworkPolicy guard (Admin, priority 5) selects it: its subject is every pod",
            "rule 0 (pass) fails at its ports",
            "rule 1 (deny) matches: this is the one that decides",
            "No change of a NetworkPolicy or label would allow it: it is rule 1 of ClusterNetworkPolicy guard (Admin) that \
             denies its ingress: change that policy.",
        ],
    );
    let json = serde_json::to_value(&explanation).unwrap();
    let policies = json["ingress"]["policies"].as_array().unwrap();
    assert_eq!(policies[0]["tier"], "Admin");
    assert_eq!(policies[0]["priority"], 5);
    assert_eq!(policies[0]["rules"][1]["action"], "deny");
    assert!(
        policies[1].get("tier").is_none(),
        "a NetworkPolicy looks as ever: {json}"
    );
    assert_eq!(json["reasons"][1]["tier"], "Admin");
    assert_eq!(json["reasons"][1]["effect"], "deny");
}

#[test]
fn a_rule_that_passes_is_told_before_what_decides() {
    let cluster = with(closed(shop()), KUBE_ADMIN, "handover", &[rule(Pass, None, None)]);
    let cluster = with(cluster, KUBE_BASELINE, "last", &[rule(Allow, None, None)]);
    let (explanation, text) = explain(&cluster, "shop/web");
    assert_eq!(
        explanation.ingress.why,
        "rule 0 of ClusterNetworkPolicy handover (Admin) passes it on to NetworkPolicies, and shop/closed isolates shop/db \
         for ingress, and no rule of it matches"
    );
    says(
        &text,
        &[
            "rule 0 (pass) matches: the next tier decides",
            "rule 0 (allow) would match, but the decision has been made",
        ],
    );
    // A NetworkPolicy can do something about it.
    assert!(!explanation.changes.is_empty());
}

#[test]
fn what_matches_too_late_is_told_apart() {
    let cluster = with(shop(), KUBE_ADMIN, "first", &[rule(Allow, None, None)]);
    let cluster = with(cluster, KUBE_BASELINE, "last", &[rule(Deny, None, None)]);
    let (explanation, text) = explain(&cluster, "shop/web");
    assert_eq!(
        explanation.ingress.why,
        "rule 0 of ClusterNetworkPolicy first (Admin) allows it"
    );
    says(
        &text,
        &["rule 0 (deny) would match, but the decision has been made"],
    );
}

/// NetworkPolicies do not govern what a pod sends to the node that hosts it; the other tiers do.
#[test]
fn the_own_node_is_reached_unless_another_tier_denies_it() {
    let mut cluster = closed(shop());
    cluster.insert(Object::Node(ringwall_policy::Node {
        name: "n1".to_owned(),
        addresses: vec!["192.168.0.1".parse().unwrap()],
        pod_cidrs: Vec::new(),
    }));
    let pod = Pod {
        node: Some("n1".to_owned()),
        ..Pod::clone(&cluster.pods[&key("web")])
    };
    cluster.insert(Object::Pod(pod));
    let ask = |cluster: &Cluster| {
        let question = Question::read("shop/web", "192.168.0.1", "22/TCP").unwrap();
        Explainer::new(cluster).unwrap().explain(&question).unwrap()
    };
    assert!(ask(&cluster).exemption.is_some());
    let egress = [rule(Deny, None, Some(22))];
    let made = with(shop(), KUBE_ADMIN, "ssh", &[]);
    let mut policy = TieredPolicy::clone(made.tiered.values().next().unwrap());
    policy.egress = Some(egress.to_vec());
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy.clone()));
    let denied = ask(&cluster);
    assert_eq!(denied.exemption, None);
    assert_eq!(
        denied.egress.why,
        "rule 0 of ClusterNetworkPolicy ssh (Admin) denies it"
    );
    assert_eq!(denied.ingress.effect, "node");
    policy.egress = Some(vec![rule(Pass, None, None)]);
    cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    let passed = ask(&cluster);
    assert_eq!(passed.egress.effect, "node");
    assert_eq!(
        passed.egress.why,
        "rule 0 of ClusterNetworkPolicy ssh (Admin) passes it on to NetworkPolicies, and NetworkPolicies do not govern what \
         a pod sends to the node that hosts it"
    );
    let why = passed.no_change.unwrap();
    assert!(
        why.starts_with("NetworkPolicies do not govern what a pod sends to the node that hosts it"),
        "{why}"
    );
}

#[test]
fn what_a_denied_block_leaves_open_depends_on_the_address() {
    let block = Peer::Block {
        cidr: "10.0.0.0/24".parse().unwrap(),
        except: Vec::new(),
    };
    let cluster = with(
        shop(),
        KUBE_BASELINE,
        "net",
        &[rule(Deny, Some(vec![block]), None)],
    );
    let (explanation, text) = explain(&cluster, "shop/late");
    assert_eq!(explanation.depends_on, ["shop/late"]);
    says(
        &text,
        &[
            "it depends on the address that shop/late will have",
            "rule 0 of ClusterNetworkPolicy net (Baseline) denies it",
        ],
    );
    let ingress = explanation.reasons.iter().find(|it| it.direction == "ingress");
    let ingress = ingress.unwrap();
    assert_eq!(
        (ingress.effect.as_str(), ingress.tier.as_deref(), ingress.rule),
        ("depends", Some("Baseline"), Some(0))
    );
}

/// A rule that passes before NetworkPolicies are asked leaves the decision to the profile: none of them can deny what it matches.
#[test]
fn a_rule_that_passes_beyond_network_policies_is_named() {
    let handed = with(shop(), DEFAULT_TIER, "beyond", &[rule(Pass, None, None)]);
    let (explanation, _) = explain(&handed, "shop/web");
    assert_eq!(explanation.ingress.effect, "profile");
    // A policy of the source's can still deny it.
    assert!(!explanation.changes.is_empty());
    let (explanation, _) = explain(&handed, "203.0.113.9");
    assert_eq!(
        explanation.no_change.as_deref(),
        Some(
            "it is rule 0 of ClusterNetworkPolicy beyond (NetworkPolicy) that passes its ingress on beyond NetworkPolicies: change that policy"
        )
    );
}

/// Changes are tried under the tiers of the state: one that passes by default does not deny what its policies say nothing about.
#[test]
fn changes_are_tried_under_the_tiers_of_the_state() {
    let mut cluster = with(shop(), "app", "silent", &[rule(Allow, None, Some(443))]);
    cluster.tiers.insert(
        "app".to_owned(),
        Arc::new(Tier {
            name: "app".to_owned(),
            order: Order::of_priority(500),
            default: TierDefault::Pass,
        }),
    );
    let (explanation, _) = explain(&cluster, "203.0.113.9");
    assert_eq!(explanation.ingress.effect, "profile");
    assert!(!explanation.changes.is_empty(), "{:?}", explanation.no_change);
}
