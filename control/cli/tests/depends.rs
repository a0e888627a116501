//! What the offline commands say about workloads and ipBlocks: the address that a pod of a template will have is not in
//! the manifests, so an ipBlock that holds a part of the pod network leaves the verdict open, and nothing is proven by it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

mod ran;

use std::fs;

use ran::{Ran, ringwall, ringwall_reading};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORKLOADS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c}]}}}
";

/// A folder with two workloads and a policy of db with these peers.
fn shop(peers: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), WORKLOADS).unwrap();
    let policy = format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{peers}], ports: [{{port: 5432}}]}}]
"
    );
    fs::write(dir.path().join("b.yaml"), policy).unwrap();
    dir
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// Peers, pod networks, and what web may do at db.
const CASES: &[(&str, &[&str], &str)] = &[
    // All of the pod network.
    ("{ipBlock: {cidr: 0.0.0.0/0}}", &["10.0.0.0/8"], "allow"),
    ("{ipBlock: {cidr: 10.0.0.0/8}}", &["10.0.0.0/8"], "allow"),
    (
        "{ipBlock: {cidr: 10.0.0.0/9}}, {ipBlock: {cidr: 10.128.0.0/9}}",
        &["10.0.0.0/8"],
        "allow",
    ),
    (
        "{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}",
        &[],
        "allow",
    ),
    ("{ipBlock: {cidr: '::/0'}}", &["fd00::/48"], "allow"),
    // A part of it, or it is unknown.
    ("{ipBlock: {cidr: 10.1.0.0/16}}", &["10.0.0.0/8"], "depends"),
    (
        "{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}",
        &["10.0.0.0/8"],
        "depends",
    ),
    (
        "{ipBlock: {cidr: 10.0.0.0/8}}",
        &["10.0.0.0/8", "fd00::/48"],
        "depends",
    ),
    ("{ipBlock: {cidr: 0.0.0.0/0}}", &[], "depends"),
    ("{ipBlock: {cidr: 10.1.0.0/16}}", &[], "depends"),
    (
        "{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}",
        &[],
        "depends",
    ),
    // Nothing of it.
    ("{ipBlock: {cidr: 203.0.113.0/24}}", &["10.0.0.0/8"], "deny"),
    (
        "{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/7]}}",
        &["10.0.0.0/8"],
        "deny",
    ),
    ("{ipBlock: {cidr: '::/0'}}", &["10.0.0.0/8"], "deny"),
    // Selectors do not ask for addresses.
    (
        "{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.1.0.0/16}}",
        &[],
        "allow",
    ),
    ("{podSelector: {matchLabels: {app: cart}}}", &[], "deny"),
];

fn networks<'a>(args: &[&'a str], networks: &[&'a str]) -> Vec<&'a str> {
    let flags = networks.iter().flat_map(|network| ["--pod-cidr", network]);
    args.iter().copied().chain(flags).collect()
}

fn query(dir: &TempDir, pods: &[&str], flow: &Value) -> Value {
    let args = ["query", "--manifests", path(dir), "--flows", "-", "-o", "json"];
    let ran = ringwall_reading(&networks(&args, pods), &flow.to_string());
    ran.lines().remove(0)
}

#[test]
fn query_says_what_depends() {
    let flow = json!({"src": "shop/web", "dst": "shop/db", "protocol": "TCP", "dst_port": 5432});
    for (peers, pods, wanted) in CASES {
        let answer = query(&shop(peers), pods, &flow);
        assert_eq!(answer["verdict"], *wanted, "{peers} {pods:?}: {answer}");
        assert_eq!(answer["ingress"], *wanted, "{peers} {pods:?}: {answer}");
        assert_eq!(answer["egress"], "allow", "{peers} {pods:?}: {answer}");
        let depends = *wanted == "depends";
        let on = if depends { json!(["shop/web"]) } else { Value::Null };
        assert_eq!(
            answer.get("depends_on").cloned().unwrap_or_default(),
            on,
            "{answer}"
        );
        let effects: Vec<&Value> = answer["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["effect"])
            .collect();
        assert_eq!(effects.contains(&&json!("depends")), depends, "{answer}");
    }
    // Another port is denied wherever the pods are, and an address is an address.
    let dir = shop("{ipBlock: {cidr: 10.1.0.0/16}}");
    let other = json!({"src": "shop/web", "dst": "shop/db", "protocol": "TCP", "dst_port": 80});
    assert_eq!(query(&dir, &["10.0.0.0/8"], &other)["verdict"], "deny");
    let outside = json!({"src": "192.0.2.1", "dst": "shop/db", "protocol": "TCP", "dst_port": 5432});
    assert_eq!(query(&dir, &["10.0.0.0/8"], &outside)["verdict"], "deny");
    // For people, too.
    let args = ["query", "--manifests", path(&dir), "--flows", "-"];
    let ran = ringwall_reading(&args, &flow.to_string());
    assert!(
        ran.out.contains("depends on the address that shop/web will have"),
        "{}",
        ran.out
    );
}

#[test]
fn the_matrix_marks_what_depends() {
    for (peers, pods, wanted) in CASES {
        let dir = shop(peers);
        let args = [
            "matrix",
            "--manifests",
            path(&dir),
            "--port",
            "5432/TCP",
            "-o",
            "json",
        ];
        let lines = ringwall(&networks(&args, pods)).lines();
        let line = lines
            .iter()
            .find(|it| it["src"] == "shop/web" && it["dst"] == "shop/db")
            .unwrap();
        assert_eq!(line["verdict"], *wanted, "{peers} {pods:?}: {line}");
        let depends = if *wanted == "depends" {
            json!(["5432/TCP"])
        } else {
            Value::Null
        };
        assert_eq!(
            line.get("depends").cloned().unwrap_or_default(),
            depends,
            "{line}"
        );
        let table = ringwall(&networks(&["matrix", "--manifests", path(&dir)], pods)).out;
        let row = table.lines().find(|line| line.contains("shop/web")).unwrap();
        let mark = row.split_whitespace().nth(2).unwrap();
        let said = match table
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{mark} ")))
        {
            Some("5432/TCP?") => "depends",
            Some("5432/TCP") => "allow",
            _ if mark == "." => "deny",
            other => panic!("{other:?}: {table}"),
        };
        assert_eq!(said, *wanted, "{peers} {pods:?}: {table}");
        assert!(said != "depends" || table.contains("? depends on"), "{table}");
    }
}

#[test]
fn explain_says_what_depends_and_on_whose_address() {
    for (peers, pods, wanted) in CASES {
        let dir = shop(peers);
        let args = [
            "explain",
            "--manifests",
            path(&dir),
            "shop/web",
            "shop/db",
            "5432/TCP",
        ];
        let args = networks(&args, pods);
        let json = ringwall(&[args.as_slice(), &["-o", "json"]].concat());
        assert_eq!(json.status, 0, "{}", json.err);
        let answer = json.lines().remove(0);
        assert_eq!(answer["verdict"], *wanted, "{peers} {pods:?}: {answer}");
        let text = ringwall(&args).out;
        let said = text.contains("it depends on the address that shop/web will have");
        assert_eq!(said, *wanted == "depends", "{text}");
    }
}

/// An assertion that is proven is true wherever the pods are.
#[test]
fn no_assertion_is_proven_by_an_address_that_is_not_known() {
    for (peers, pods, wanted) in CASES {
        for claim in ["allow", "deny"] {
            let dir = shop(peers);
            let file = dir.path().join("intents.txt");
            let text = format!(
                "apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n- name: a\n  {claim}: {{from: [{{pod: shop/web}}], \
                 to: [{{pod: shop/db}}], ports: [5432/TCP]}}\n"
            );
            fs::write(&file, text).unwrap();
            let args = [
                "check",
                "--manifests",
                path(&dir),
                "--intents",
                file.to_str().unwrap(),
                "-o",
                "json",
            ];
            let ran = ringwall(&networks(&args, pods));
            let line = ran.lines().into_iter().find(|line| line.get("intent").is_some());
            let line = line.unwrap_or_else(|| panic!("{}{}", ran.out, ran.err));
            assert_eq!(line["ok"], *wanted == claim, "{peers} {pods:?} {claim}: {line}");
            assert_eq!(
                ran.status == 0,
                *wanted == claim,
                "{peers} {pods:?} {claim}: {}",
                ran.out
            );
            if *wanted == "depends" {
                assert_eq!(line["counterexample"]["verdict"], "depends", "{line}");
            }
        }
    }
}

/// A network means the pods that may come to be in it, too.
#[test]
fn what_is_denied_to_a_network_is_denied_to_pods_that_may_be_in_it() {
    let dir = shop("{podSelector: {matchLabels: {app: web}}}");
    let file = dir.path().join("intents.txt");
    let text = "apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n- name: a\n  \
                deny: {from: [{cidr: 10.1.0.0/16}], to: [{pod: shop/db}], ports: [5432/TCP]}\n";
    fs::write(&file, text).unwrap();
    let args = [
        "check",
        "--manifests",
        path(&dir),
        "--intents",
        file.to_str().unwrap(),
        "-o",
        "json",
    ];
    for (pods, holds) in [
        ("10.0.0.0/8", false),
        ("10.1.0.0/17", false),
        ("10.2.0.0/16", true),
    ] {
        let ran = ringwall(&networks(&args, &[pods]));
        assert_eq!(ran.status == 0, holds, "{pods}: {}", ran.out);
    }
}

fn diff(from: &str, to: &str, pods: &[&str]) -> Ran {
    let (from, to) = (shop(from), shop(to));
    let args = [
        "diff",
        "--from",
        path(&from),
        "--to",
        path(&to),
        "--exit-code",
        "-o",
        "json",
    ];
    ringwall(&networks(&args, pods))
}

/// From and to of the flow from web to db.
fn changed(ran: &Ran) -> Option<(Value, Value)> {
    let meant = |line: &&Value| {
        line["src"]["pods"]
            .as_array()
            .is_some_and(|pods| pods.contains(&json!("shop/web")))
            && line["dst"]["pods"]
                .as_array()
                .is_some_and(|pods| pods.contains(&json!("shop/db")))
    };
    let lines = ran.lines();
    let mut found = lines.iter().filter(meant);
    let line = found.next()?;
    assert!(found.next().is_none(), "one flow in two regions: {lines:?}");
    assert_eq!(line["ports"], json!([[5432, 5432]]), "{line}");
    Some((line["from"].clone(), line["to"].clone()))
}

#[test]
fn a_difference_has_three_verdicts() {
    for (one, pods, from) in CASES {
        for (other, _, _) in CASES {
            let to = CASES
                .iter()
                .find(|(peers, networks, _)| peers == other && networks == pods);
            let Some((.., to)) = to else { continue };
            let ran = diff(one, other, pods);
            let wanted =
                (from != to || (*from == "depends" && one != other)).then(|| (json!(from), json!(to)));
            assert_eq!(changed(&ran), wanted, "{one} -> {other} {pods:?}: {}", ran.out);
            let any = i32::from(!ran.lines().is_empty());
            assert_eq!(ran.status, any, "{}", ran.err);
        }
    }
}
