//! Why a verdict is what it is: every effect that reasons can have occurs (`docs/semantics.md`, 105).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

mod ran;

fn pod(name: &str, address: Option<&str>) -> Value {
    let addresses: Vec<Value> = address.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": "n1"}, "status": {"podIPs": addresses}})
}

fn network_policy(app: &str, from: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": app, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"from": [from]}]}})
}

fn calico(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn to_port(action: &str, port: u16) -> Value {
    json!({"action": action, "protocol": "TCP", "destination": {"ports": [port]}})
}

/// `web` is in two tiers, `api` in one that passes what it does not match, `db` and `cache` have NetworkPolicies, `free` has none.
fn manifests() -> tempfile::TempDir {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.0.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
        pod("web", Some("10.0.0.1")),
        pod("api", Some("10.0.0.2")),
        pod("db", Some("10.0.0.3")),
        pod("cache", Some("10.0.0.4")),
        pod("free", Some("10.0.0.5")),
        pod("later", None),
        network_policy("db", json!({"podSelector": {"matchLabels": {"app": "web"}}})),
        network_policy("cache", json!({"ipBlock": {"cidr": "10.0.0.0/25"}})),
        calico("Tier", "ops", json!({"order": 1, "defaultAction": "Pass"})),
        calico(
            "GlobalNetworkPolicy",
            "ops",
            json!({"tier": "ops", "selector": "app in {'web', 'api'}", "types": ["Ingress"],
            "ingress": [to_port("Deny", 22), to_port("Pass", 443)]}),
        ),
        calico(
            "GlobalNetworkPolicy",
            "web",
            json!({"selector": "app == 'web'", "types": ["Ingress"], "ingress": [to_port("Allow", 80)]}),
        ),
        calico(
            "StagedGlobalNetworkPolicy",
            "close",
            json!({"tier": "ops", "order": 1, "selector": "app == 'api'",
            "types": ["Ingress"], "ingress": [to_port("Deny", 80)]}),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> = objects.iter().map(ToString::to_string).collect();
    std::fs::write(dir.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    dir
}

fn flow(src: &str, dst: &str, port: u16) -> String {
    json!({"src": src, "dst": dst, "protocol": "TCP", "dst_port": port}).to_string()
}

#[test]
fn every_effect_occurs() {
    let dir = manifests();
    // Source, destination, port, the verdict, and what the destination's reasons are.
    let wanted: BTreeMap<(&str, &str, u16), (&str, &[&str])> = [
        (("shop/free", "shop/web", 80), ("allow", &["allow"][..])),
        (("shop/free", "shop/web", 22), ("deny", &["deny"])),
        (
            ("shop/free", "shop/web", 443),
            ("deny", &["pass", "tier-default"]),
        ),
        (("shop/free", "shop/api", 443), ("allow", &["pass", "profile"])),
        (("shop/free", "shop/api", 81), ("allow", &["profile"])),
        (("shop/free", "shop/api", 80), ("allow", &["profile", "staged"])),
        (("shop/free", "shop/db", 80), ("deny", &["isolated"])),
        (("shop/later", "shop/cache", 80), ("depends", &["depends"])),
        (("shop/web", "shop/free", 80), ("allow", &["open"])),
        (("shop/web", "10.0.0.1", 22), ("allow", &["self"])),
        (("192.168.0.1", "shop/web", 22), ("allow", &["node"])),
        (("shop/free", "10.0.0.99", 80), ("deny", &["unknown"])),
    ]
    .into();
    let questions: Vec<String> = wanted
        .keys()
        .map(|(src, dst, port)| flow(src, dst, *port))
        .collect();
    let arguments = [
        "query",
        "--manifests",
        dir.path().to_str().unwrap(),
        "--flows",
        "-",
        "-o",
        "json",
    ];
    let ran = ran::ringwall_reading(&arguments, &questions.join("\n"));
    let mut seen = BTreeSet::new();
    for (answer, ((src, dst, port), (verdict, effects))) in ran.lines().iter().zip(&wanted) {
        let reasons = answer["reasons"].as_array().unwrap();
        let ingress = reasons.iter().filter(|reason| reason["direction"] == "ingress");
        let found: Vec<&str> = ingress.map(|reason| reason["effect"].as_str().unwrap()).collect();
        assert_eq!(
            (answer["verdict"].as_str().unwrap(), &*found),
            (*verdict, *effects),
            "{src} {dst} {port}: {answer}"
        );
        seen.extend(found.iter().map(|effect| (*effect).to_owned()));
    }
    let all = [
        "allow",
        "deny",
        "depends",
        "isolated",
        "node",
        "open",
        "pass",
        "profile",
        "self",
        "staged",
        "tier-default",
        "unknown",
    ];
    assert_eq!(seen, all.map(str::to_owned).into());

    // What passes and what is staged is named as well as what decides.
    let of = |question: (&str, &str, u16)| {
        let lines = ran.lines();
        lines[wanted.keys().position(|it| *it == question).unwrap()].clone()
    };
    let passed = of(("shop/free", "shop/web", 443));
    assert_eq!(
        passed["reasons"][1],
        json!({"direction": "ingress", "tier": "ops", "kind": "GlobalNetworkPolicy", "policy": "ops", "rule": 1, "effect": "pass"})
    );
    let staged = of(("shop/free", "shop/api", 80));
    assert_eq!(staged["pending"], "deny");
    assert_eq!(
        staged["reasons"][2],
        json!({"direction": "ingress", "tier": "ops", "kind": "StagedGlobalNetworkPolicy", "policy": "close", "rule": 0, "effect": "staged"})
    );

    // `explain` has the same reasons, but for what is staged.
    for ((src, dst, port), (_, effects)) in &wanted {
        let (manifests, port) = (dir.path().to_str().unwrap(), format!("{port}/TCP"));
        let ran = ran::ringwall(&["explain", "--manifests", manifests, src, dst, &port, "-o", "json"]);
        let lines = ran.lines();
        let reasons = lines[0]["reasons"].as_array().unwrap().iter();
        let ingress = reasons.filter(|reason| reason["direction"] == "ingress");
        let found: Vec<&str> = ingress.map(|reason| reason["effect"].as_str().unwrap()).collect();
        let wanted: Vec<&str> = effects
            .iter()
            .copied()
            .filter(|effect| *effect != "staged")
            .collect();
        assert_eq!(found, wanted, "{src} {dst} {port}");
    }
}

#[test]
fn people_read_what_passed_and_what_is_staged() {
    let dir = manifests();
    let questions = [
        flow("shop/free", "shop/web", 443),
        flow("shop/free", "shop/api", 80),
    ];
    let arguments = [
        "query",
        "--manifests",
        dir.path().to_str().unwrap(),
        "--flows",
        "-",
    ];
    let ran = ran::ringwall_reading(&arguments, &questions.join("\n"));
    for words in [
        "ingress deny   passed on by GlobalNetworkPolicy ops (ops), rule 1; GlobalNetworkPolicy web (default) selects it, no rule \
         matches, and its tier denies by default",
        "ingress allow  no rule decides, so it is allowed by default",
        "with staged policies enforced: deny (StagedGlobalNetworkPolicy close)",
    ] {
        assert!(ran.out.contains(words), "{}", ran.out);
    }
}
