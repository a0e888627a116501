//! `ringwall check --intents` as others script on it: the examples hold, each kind of failure is shown, and a file that is
//! wrong says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

mod ran;

use std::{
    fs,
    path::{Path, PathBuf},
};

use ran::{Ran, ringwall};
use ringwall_analyse::intents::{Intents, raw};
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

/// A folder with the demo's cluster and a recipe of it.
fn recipe(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let demo = root().join("config/demo");
    fs::copy(demo.join("cluster.yaml"), dir.path().join("0.yaml")).unwrap();
    let mut found = false;
    for entry in fs::read_dir(demo.join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_str().unwrap().ends_with(name) {
            continue;
        }
        found = true;
        for file in ["cluster.yaml", "policy.yaml"] {
            if path.join(file).exists() {
                fs::copy(path.join(file), dir.path().join(format!("1-{file}"))).unwrap();
            }
        }
    }
    assert!(found, "no recipe {name}");
    dir
}

fn check(manifests: &Path, intents: &Path, more: &[&str]) -> Ran {
    let [manifests, intents] = [manifests, intents].map(|path| path.to_str().unwrap());
    ringwall(&[&["check", "--manifests", manifests, "--intents", intents], more].concat())
}

/// Lines about assertions.
fn lines(ran: &Ran) -> Vec<Value> {
    let all = ran.lines().into_iter();
    all.filter(|line| line.get("intent").is_some()).collect()
}

fn file(dir: &TempDir, assertions: &str) -> PathBuf {
    let path = dir.path().join("intents.txt"); // not a manifest
    let text = format!("apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n{assertions}");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_examples_hold_for_the_clusters_they_are_about() {
    let examples = root().join("config/examples/intents");
    let known = [
        ("three-tier.yaml", "three-tier-application", 5),
        ("egress-dns-only.yaml", "allow-egress-dns-only", 2),
    ];
    for (example, name, count) in known {
        let dir = recipe(name);
        let ran = check(dir.path(), &examples.join(example), &["-o", "json"]);
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
        let lines = lines(&ran);
        assert_eq!(lines.len(), count, "{}", ran.out);
        assert!(lines.iter().all(|line| line["ok"] == true), "{}", ran.out);
        // Without the policies they do not.
        fs::remove_file(dir.path().join("1-policy.yaml")).unwrap();
        let ran = check(dir.path(), &examples.join(example), &[]);
        assert_eq!(ran.status, 1, "{}", ran.out);
    }
    assert_eq!(fs::read_dir(examples).unwrap().count(), known.len());
}

#[test]
fn a_failing_assertion_shows_a_packet() {
    let dir = recipe("three-tier-application");
    let intents = file(
        &dir,
        "
  - name: nobody but the backend reaches the database
    only:
      from: [{pod: default/frontend}]
      to: [{pod: default/database}]
      ports: [5432/TCP]
  - name: the world cannot reach the frontend
    deny: {from: [{outside: true}], to: [{pod: default/frontend}]}
  - name: nobody is meant
    deny: {from: [{namespace: nowhere}], to: [{any: true}]}
  - name: the database is alone
    deny: {from: [{any: true}], to: [{pod: default/database}], ports: [5000-5431/TCP, 5433-6000/TCP, UDP, SCTP, other]}
",
    );
    let ran = check(dir.path(), &intents, &["-o", "json"]);
    assert_eq!(ran.status, 1);
    let lines = lines(&ran);
    let [only, deny, vacuous, holds] = lines.as_slice() else {
        panic!("{}", ran.out);
    };
    // The frontend may not, which is the first thing asserted of it.
    let example = &only["counterexample"];
    assert_eq!(
        (
            &example["src"],
            &example["dst"],
            &example["dst_port"],
            &example["verdict"]
        ),
        (
            &json!("default/frontend"),
            &json!("default/database"),
            &json!(5432),
            &json!("deny")
        )
    );
    assert_eq!(
        example["reasons"],
        json!([
            {"direction": "egress", "tier": "NetworkPolicy", "verdict": "deny", "effect": "isolated", "policies": ["default/frontend-policy"], "rule": null},
            {"direction": "ingress", "tier": "NetworkPolicy", "verdict": "deny", "effect": "isolated", "policies": ["default/database-policy"], "rule": null},
        ])
    );
    assert_eq!(only["more"], 1, "the backend, which is not meant to");
    assert_eq!(only["line"], 5);
    let example = &deny["counterexample"];
    assert_eq!(
        (
            &example["src"],
            &example["dst_port"],
            &example["verdict"],
            &example["reasons"][1]["rule"]
        ),
        (&json!("0.0.0.0"), &json!(80), &json!("allow"), &json!(0))
    );
    assert_eq!(
        (&vacuous["ok"], &vacuous["vacuous"]),
        (&json!(false), &json!("from"))
    );
    assert_eq!(holds["ok"], true, "{holds}");

    let human = check(dir.path(), &intents, &[]);
    for words in [
        "\"nobody but the backend reaches the database\": does not hold: default/frontend -> default/database 5432/TCP is denied \
         (egress deny: isolated by default/frontend-policy; ingress deny: isolated by default/database-policy); and 1 more pair",
        "0.0.0.0 -> default/frontend 80/TCP is allowed (egress allow: no policy applies; ingress allow: \
         default/frontend-policy, rule 0)",
        "\"nobody is meant\": vacuous: `from` matches nothing",
        "3 of 4 assertions of intent fail",
    ] {
        assert!(human.out.contains(words), "{words}\n{}", human.out);
    }
}

#[test]
fn a_pod_and_its_node_and_itself_are_no_matter_of_policy() {
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("cluster.yaml"),
        "
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop}, spec: {nodeName: n1}, status: {podIP: 10.1.0.1}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, spec: {podSelector: {}, policyTypes: [Ingress]}}
",
    )
    .unwrap();
    let intents = file(
        &dir,
        "
  - name: nobody reaches it
    deny: {from: [{any: true}], to: [{pod: shop/db}]}
  - name: nodes reach it
    allow: {from: [{nodes: true}], to: [{pod: shop/db}]}
",
    );
    let ran = check(dir.path(), &intents, &["-o", "json"]);
    let lines = lines(&ran);
    assert_eq!(lines[0]["ok"], true, "{}", ran.out);
    assert_eq!(lines[1]["counterexample"]["src"], "192.168.0.2", "{}", ran.out);
    assert_eq!(lines[1]["more"], 0, "{}", ran.out);
}

#[test]
fn a_file_that_is_wrong_says_where() {
    let whole = |assertions: &str| {
        format!("apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n{assertions}")
    };
    let flows = |more: &str| {
        whole(&format!(
            "  - name: a\n    allow:\n      from: [{{any: true}}]\n      to: [{{any: true}}]\n{more}"
        ))
    };
    for (text, line, what) in [
        (flows("      port: [80/TCP]\n"), 8, "port"),
        (flows("      ports: [80]\n"), 4, "assertions[0].allow.ports[0]"),
        (flows("      ports: [300/ICMP]\n"), 4, "300/ICMP"),
        (flows("      ports: [90-80/TCP]\n"), 4, "90-80/TCP"),
        (flows("      ports: []\n"), 4, "leave it out"),
        (
            flows("    deny: {from: [], to: []}\n"),
            4,
            "exactly one of allow, deny and only",
        ),
        (whole("  - name: a\n"), 4, "exactly one of allow, deny and only"),
        (
            whole("  - {name: a, allow: {from: [], to: [{any: true}]}}\n"),
            4,
            "assertions[0].allow.from",
        ),
        (
            whole("  - {name: a, allow: {from: [{}], to: [{any: true}]}}\n"),
            4,
            "allow.from[0]",
        ),
        (
            whole("  - {name: a, allow: {from: [{any: false}], to: [{any: true}]}}\n"),
            4,
            "from[0].any",
        ),
        (
            whole("  - {name: a, allow: {from: [{any: true, pod: a/b}], to: [{any: true}]}}\n"),
            4,
            "exactly one of any",
        ),
        (
            whole("  - {name: a, allow: {from: [{pod: db}], to: [{any: true}]}}\n"),
            4,
            "namespace/name",
        ),
        (
            whole("  - {name: a, allow: {from: [{cidr: 10.0.0.1/8}], to: [{any: true}]}}\n"),
            4,
            "10.0.0.0/8",
        ),
        (
            whole(
                "  - {name: a, allow: {from: [{cidr: 10.0.0.0/8, except: [11.0.0.0/9]}], to: [{any: true}]}}\n",
            ),
            4,
            "not strictly inside",
        ),
        (
            whole("  - {name: a, only: {from: [{any: true}], to: [{any: true}], otherPorts: deny}}\n"),
            4,
            "there are no other ports",
        ),
        (
            whole(
                "  - {name: a, allow: {from: [{podSelector: {matchExpressions: [{key: k, operator: In}]}}], to: [{any: true}]}}\n",
            ),
            4,
            "need values",
        ),
        (
            whole(
                "  - {name: a, deny: {from: [{any: true}], to: [{any: true}]}}\n  - {name: a, deny: {from: [{any: true}], to: [{any: true}]}}\n",
            ),
            5,
            "two assertions",
        ),
        (
            "apiVersion: v1\nkind: Intents\nassertions: []\n".to_owned(),
            1,
            "v1",
        ),
    ] {
        let error = Intents::parse("f.yaml", &text).expect_err(&text).to_string();
        assert!(error.contains(what), "{error}\n{text}");
        let place = [format!("f.yaml:{line}:"), format!("line {line} ")];
        assert!(
            place.iter().any(|place| error.contains(place)),
            "{error}\nline {line} of\n{text}"
        );
    }
    let dir = TempDir::new().unwrap();
    let ran = check(dir.path(), Path::new("/nonexistent.yaml"), &["--allow-empty"]);
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("/nonexistent.yaml"), "{}", ran.err);
    let ran = check(dir.path(), &file(&dir, "  - name: a\n"), &["--allow-empty"]);
    assert_eq!(ran.status, 2, "{}", ran.out);
    assert!(ran.err.contains("intents.txt:4"), "{}", ran.err);
}

/// `config/intents.schema.json` is generated: `UPDATE_SCHEMA=1 cargo test -p ringwall --test intents` writes it.
#[test]
fn the_schema_is_up_to_date() {
    let file = root().join("config/intents.schema.json");
    let generated = serde_json::to_string_pretty(&schemars::schema_for!(raw::Intents)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&file, &generated).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap_or_default(),
        generated,
        "out of date: run UPDATE_SCHEMA=1 cargo test -p ringwall --test intents"
    );
}
