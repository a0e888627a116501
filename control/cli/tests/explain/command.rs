//! The command as others script on it.

use serde_json::Value;
use tempfile::TempDir;

use crate::ran::{Ran, ringwall};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
---
apiVersion: v1
kind: Namespace
metadata: {name: office, labels: {team: blue}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: n1
  containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}, creationTimestamp: '2024-05-01T00:00:00Z'}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}
status: {podIPs: [{ip: 10.1.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
status: {phase: Succeeded, podIP: 10.1.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: shop}
spec: {nodeName: n1, hostNetwork: true}
status: {podIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: desk, namespace: office, labels: {app: desk}}
status: {podIPs: [{ip: 10.1.0.3}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec: {template: {metadata: {labels: {app: api}}, spec: {}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - ports: [{port: 1, endPort: 9}]
  - from:
    - podSelector: {matchLabels: {app: api}}
    - namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [green, red]}]}
      podSelector: {matchExpressions: [{key: trusted, operator: Exists}]}
    - ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.0/28]}
    ports: [{port: 5432}, {port: sql}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backstop, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [db, web]}]}
  egress: [{to: [{podSelector: {}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: wrong, namespace: office}
spec:
  podSelector: {}
  ingress: [{from: [{podSelektor: {}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: ccnp}
spec: {}
";

fn shop() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    dir
}

fn explain(dir: &TempDir, args: &[&str]) -> Ran {
    let path = dir.path().to_str().unwrap();
    ringwall(&[&["explain", "--manifests", path], args].concat())
}

#[test]
fn a_person_can_read_why() {
    let dir = shop();
    for (name, from, to, service) in [
        ("denied", "shop/web", "shop/db", "5432/TCP"),
        ("allowed", "shop/api", "shop/db", "5432/tcp"),
        ("invalid", "203.0.113.9", "office/desk", "ICMP"),
        ("unknown", "10.1.0.9", "10.1.0.2", "80/UDP"),
        ("node", "192.168.0.1", "shop/web", "80/TCP"),
        ("both_deny", "shop/web", "office/desk", "ip/47"),
    ] {
        let ran = explain(&dir, &[from, to, service]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        insta::assert_snapshot!(format!("words_{name}"), ran.out);
    }
}

#[test]
fn a_program_can_read_why() {
    let ran = explain(&shop(), &["shop/web", "shop/db", "5432/TCP", "-o", "json"]);
    assert_eq!((ran.status, ran.out.lines().count()), (0, 1), "{}", ran.err);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap());
}

#[test]
fn what_cannot_be_explained_is_status_2() {
    let dir = shop();
    for (args, what) in [
        (
            ["shop/nobody", "shop/db", "1/TCP"],
            "no pod or workload is named shop/nobody",
        ),
        (
            ["shop/wbe", "shop/db", "1/TCP"],
            "is named shop/wbe; did you mean shop/web?",
        ),
        (["shop/done", "shop/db", "1/TCP"], "has finished"),
        (["shop/old", "shop/web", "1/TCP"], "belongs to shop/db now"),
        (["shop/web", "shop/db", "80"], "write 80/TCP or ip/80"),
        (["shop/web", "shop/db", "TCP"], "lacks the port"),
        (["shop/web", "shop/db", "300/ICMP"], "is not a type of ICMP"),
        (
            ["web", "shop/db", "80/TCP"],
            "neither an address nor namespace/pod",
        ),
    ] {
        let ran = explain(&dir, &args);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{args:?}");
        assert!(ran.err.contains(what), "{args:?}: {}", ran.err);
    }
    for (args, what) in [
        (vec!["explain", "a/b", "c/d", "1/TCP"], "--manifests"),
        (vec!["explain", "--manifests", "."], "<FROM>"),
        (vec!["explain", "--flow", "0123456789abcdef"], "--config"),
        (
            vec!["explain", "--config", "x", "--flow", "12"],
            "16 hexadecimal digits",
        ),
        (
            vec!["explain", "--config", "/nonexistent", "a/b", "c/d", "1/TCP"],
            "/nonexistent",
        ),
        (vec!["flows"], "--config"),
        (vec!["flows", "--config", "/nonexistent"], "/nonexistent"),
    ] {
        let ran = ringwall(&args);
        assert_eq!(ran.status, 2, "{args:?}");
        assert!(ran.err.contains(what), "{args:?}: {}", ran.err);
    }
    for command in ["explain", "flows"] {
        let help = ringwall(&[command, "--help"]);
        assert!(help.out.contains("Examples:"), "{}", help.out);
    }
}

#[test]
fn the_last_egress_rule_is_what_isolates_where_no_types_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let pods = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
status: {podIP: 10.1.0.1}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  egress: [{ports: [{port: 80}]}, {to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]
";
    std::fs::write(dir.path().join("shop.yaml"), pods).unwrap();
    let ran = explain(&dir, &["shop/web", "192.0.2.1", "80/TCP", "-o", "json"]);
    let answer = &ran.lines()[0];
    assert_eq!(answer["verdict"], "allow");
    let changes = answer["changes"].as_array().unwrap();
    assert!(!changes.is_empty());
    for change in changes {
        let removed = |edit: &&Value| edit["action"] == "remove-rule";
        let removed = change["edits"].as_array().unwrap().iter().filter(removed);
        assert!(removed.count() < 2, "opens egress: {change}");
    }
}

#[test]
fn a_change_says_where_the_label_stands() {
    let dir = tempfile::tempdir().unwrap();
    let objects = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: report, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: report}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {example.com/role: x}}}]}]
";
    std::fs::write(dir.path().join("shop.yaml"), objects).unwrap();
    let ran = explain(&dir, &["shop/report", "shop/db", "80/TCP", "-o", "json"]);
    let path = r#"spec.jobTemplate.spec.template.metadata.labels["example.com/role"]"#;
    let edits = ran.lines()[0]["changes"].to_string();
    assert!(edits.contains(&Value::from(path).to_string()), "{edits}");
}

/// A label under a workload's own selector cannot be taken away, and a database that no policy selects is open.
#[test]
fn no_change_takes_a_workload_out_of_its_policies() {
    let dir = tempfile::tempdir().unwrap();
    let objects = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c}]}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
";
    std::fs::write(dir.path().join("shop.yaml"), objects).unwrap();
    let ran = explain(&dir, &["203.0.113.9", "shop/db", "5432/TCP", "-o", "json"]);
    let changes = ran.lines()[0]["changes"].as_array().unwrap().clone();
    assert!(!changes.is_empty());
    for edit in changes
        .iter()
        .flat_map(|change| change["edits"].as_array().unwrap())
    {
        let action = edit["action"].as_str().unwrap();
        assert!(
            !["set-label", "remove-label", "remove-policy"].contains(&action),
            "{edit}"
        );
        assert!(
            edit["yaml"].as_str().unwrap().contains("203.0.113.9/32"),
            "{edit}"
        );
    }
    let text = explain(&dir, &["203.0.113.9", "shop/db", "5432/TCP"]).out;
    assert!(text.contains("- ipBlock:\n"), "{text}");
}
