//! Services as destinations of the offline commands: what people read, what programs read, and that a Service's verdict is that
//! of its endpoints asked one by one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod ran;

use std::fmt::Write as _;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use ran::{Ran, ringwall_reading as ringwall};
use serde_json::{Value, json};
use tempfile::TempDir;

const SHOP: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIP: 10.1.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.5}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: other}
spec: {nodeName: n2}
status: {podIP: 10.1.1.5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.8, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: shop}
spec: {type: ExternalName, externalName: db.example.com}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: cart}}}, {ipBlock: {cidr: 203.0.113.0/24}}]
    ports: [{port: 8080}]
";

fn folder(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), text).unwrap();
    dir
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn query(dir: &TempDir, flows: &str, output: &str) -> Ran {
    ringwall(
        &["query", "--manifests", path(dir), "--flows", "-", "-o", output],
        flows,
    )
}

/// The one answer to a flow.
fn asked(dir: &TempDir, flow: &Value) -> Value {
    let ran = query(dir, &flow.to_string(), "json");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    ran.lines().remove(0)
}

#[test]
fn query_answers_for_each_endpoint_and_for_all_of_them() {
    let dir = folder(SHOP);
    let flows = r#"
{"src":"shop/cart","dst":"svc:shop/web","protocol":"TCP","dst_port":"http"}
{"src":"shop/cart","dst":"10.96.0.7","protocol":"TCP","dst_port":81}
{"src":"shop/cart","dst":"svc:shop/empty","protocol":"TCP","dst_port":80}
{"src":"203.0.113.9","dst":"192.168.0.1","protocol":"TCP","dst_port":30080}
"#;
    let ran = query(&dir, flows, "human");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "\
partial  shop/cart (10.1.0.5) -> svc:shop/web 80/TCP
           Service shop/web, port http: 2 endpoints by its selector
  allow    shop/web-0 (10.1.0.1) 8080/TCP
           egress  allow  no policy applies
           ingress allow  shop/web, rule 0
  deny     shop/web-1 (10.1.1.1) 9090/TCP
           egress  allow  no policy applies
           ingress deny   isolated by shop/web
reject   shop/cart -> 10.96.0.7 81/TCP
           Service shop/web: kube-proxy rejects it: Service shop/web has no port 81/TCP; it has 80/TCP (http)
reject   shop/cart -> svc:shop/empty 80/TCP
           Service shop/empty: kube-proxy rejects it: Service shop/empty has no endpoint at this port
partial  203.0.113.9 -> 192.168.0.1 30080/TCP
           the NodePort of Service shop/web at node n1, port http: 2 endpoints by its selector
  allow    shop/web-0 (10.1.0.1) 8080/TCP
           egress  allow  no policy applies
           ingress allow  shop/web, rule 0
  deny     shop/web-1 (10.1.1.1) 9090/TCP, from node n1 (192.168.0.1)
           egress  allow  no policy applies
           ingress deny   isolated by shop/web
"
    );
}

#[test]
fn query_in_json_has_a_verdict_for_each_endpoint() {
    let dir = folder(SHOP);
    let flow = json!({"src": "shop/cart", "dst": "svc:shop/web", "protocol": "TCP", "dst_port": 80});
    let answer = asked(&dir, &flow);
    for (key, value) in flow.as_object().unwrap() {
        assert_eq!(answer[key], *value, "the input's keys are repeated");
    }
    assert_eq!(
        answer["service"],
        json!({"name": "shop/web", "type": "NodePort", "frontend": "cluster-ip", "port": 80, "port_name": "http",
               "endpoints": "selector"})
    );
    let words = |key: &str| answer[key].clone();
    assert_eq!(
        (words("verdict"), words("egress"), words("ingress")),
        ("partial".into(), "allow".into(), "partial".into())
    );
    assert_eq!(
        (words("src_ip"), words("dst_ip")),
        ("10.1.0.5".into(), Value::Null)
    );
    let backends: Vec<Value> = answer["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| json!([it["pod"], it["node"], it["dst_ip"], it["dst_port"], it["verdict"]]))
        .collect();
    assert_eq!(
        backends,
        [
            json!(["shop/web-0", "n1", "10.1.0.1", 8080, "allow"]),
            json!(["shop/web-1", "n2", "10.1.1.1", 9090, "deny"]),
        ]
    );
    // The reasons of all endpoints, each once.
    let effects: Vec<&str> = answer["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| reason["effect"].as_str().unwrap())
        .collect();
    assert_eq!(effects, ["open", "allow", "isolated"]);
    // Whom an endpoint sees, and what a pod's own policies see.
    let flow = json!({"src": "shop/cart", "dst": "192.168.0.2", "protocol": "TCP", "dst_port": 30080});
    let answer = asked(&dir, &flow);
    assert_eq!(answer["service"]["node"], "n2");
    let first = &answer["backends"][0];
    assert_eq!(first["seen_as"], json!({"node": "n2", "src_ip": "192.168.0.2"}));
    assert_eq!(
        first["sent_to"],
        json!({"dst_ip": "192.168.0.2", "dst_port": 30080})
    );
    assert_eq!(first["src_ip"], "192.168.0.2");
    // Nowhere to go.
    let answer = asked(
        &dir,
        &json!({"src": "shop/cart", "dst": "svc:shop/empty", "protocol": "TCP", "dst_port": 80}),
    );
    assert_eq!(answer["verdict"], "reject");
    assert_eq!(
        (&answer["ingress"], &answer["backends"]),
        (&Value::Null, &json!([]))
    );
    assert!(
        answer["why"].as_str().unwrap().contains("no endpoint"),
        "{answer}"
    );
}

#[test]
fn what_is_no_service_is_an_error_that_says_what_to_write() {
    let dir = folder(SHOP);
    for (dst, port, wanted) in [
        (
            "svc:shop/wep",
            "80",
            "no Service is named shop/wep; did you mean svc:shop/web?",
        ),
        ("svc:shop/cart", "80", "no Service is named shop/cart"),
        ("svc:shop", "80", "write svc:namespace/name"),
        ("web.shop.svc.cluster.local", "80", "write svc:shop/web"),
        ("svc:shop/far", "80", "ExternalName"),
        ("svc:shop/web", "\"https\"", "has no port named \"https\""),
        ("shop/web-0", "\"http\"", "dst_port"),
        ("svc:shop/web", "null", "dst_port is missing"),
    ] {
        let flow =
            format!("{{\"src\":\"shop/cart\",\"dst\":\"{dst}\",\"protocol\":\"TCP\",\"dst_port\":{port}}}");
        let ran = query(&dir, &flow, "json");
        let error = ran.lines().remove(0)["error"].as_str().unwrap().to_owned();
        assert_eq!(ran.status, 2, "{dst}");
        assert!(error.contains(wanted), "{dst}: {error}");
    }
    let from = query(
        &dir,
        r#"{"src":"svc:shop/web","dst":"shop/cart","protocol":"TCP","dst_port":80}"#,
        "json",
    );
    assert_eq!(from.status, 2);
    assert!(
        from.out.contains("is a Service, which cannot be an end here"),
        "{}",
        from.out
    );
}

#[test]
fn explain_says_why_for_each_kind_of_endpoint() {
    let dir = folder(SHOP);
    let explain = |args: &[&str]| {
        let all = [&["explain", "--manifests", path(&dir)], args].concat();
        let ran = ringwall(&all, "");
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        ran
    };
    let text = explain(&["shop/cart", "svc:shop/web", "http/TCP"]).out;
    let head = "\
shop/cart -> svc:shop/web 80 (http): partial

Service shop/web, port http: 2 endpoints by its selector
  allow   shop/web-0 (10.1.0.1) 8080/TCP
  deny    shop/web-1 (10.1.1.1) 9090/TCP

=== shop/web-0 (10.1.0.1) 8080/TCP
shop/cart -> 10.1.0.1 8080/TCP: allow
";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("shop/cart -> 10.1.1.1 9090/TCP: DENY"), "{text}");
    // Endpoints that are decided alike are explained once.
    let lines = explain(&["other/stranger", "svc:shop/web", "80/TCP", "-o", "json"]).lines();
    let backends = lines[0]["backends"].as_array().unwrap();
    assert_eq!(lines[0]["verdict"], "deny");
    assert!(backends[0]["explanation"].is_object() && backends[1]["explanation"].is_null());
    assert_eq!(backends[1]["like"], backends[0]["summary"]);
    // A pod is explained as before, and a name needs a Service.
    let lines = explain(&["shop/cart", "shop/web-0", "8080/TCP", "-o", "json"]).lines();
    assert_eq!(
        (&lines[0]["verdict"], &lines[0]["service"]),
        (&"allow".into(), &"8080/TCP".into())
    );
    let named = ringwall(
        &[
            "explain",
            "--manifests",
            path(&dir),
            "shop/cart",
            "shop/web-0",
            "http/TCP",
        ],
        "",
    );
    assert_eq!(named.status, 2);
    assert!(named.err.contains("http is the name of a port"), "{}", named.err);
}

#[test]
fn matrix_shows_who_reaches_which_service() {
    let dir = folder(SHOP);
    let matrix = |args: &[&str]| {
        let all = [&["matrix", "--manifests", path(&dir), "--services"], args].concat();
        let ran = ringwall(&all, "");
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        ran
    };
    assert_eq!(
        matrix(&["--external", "203.0.113.9"]).out,
        "\
from \\ to            1 2
other/stranger       x .
shop/cart and 2 more x ~
203.0.113.9          x ~

1 svc:shop/empty 80/TCP
2 svc:shop/web 80/TCP (http)

+ every endpoint   ~ some endpoints   . none   x there is no endpoint   ? depends
"
    );
    let lines = matrix(&["--namespace", "shop", "--port", "80/TCP", "-o", "json"]).lines();
    let of = |src: &str, dst: &str| {
        let found = lines
            .iter()
            .find(|it| it["src"] == src && it["dst"] == dst)
            .unwrap();
        json!([
            found["verdict"],
            found["backends"],
            found["allowed"],
            found["port_name"]
        ])
    };
    assert_eq!(of("shop/cart", "svc:shop/web"), json!(["partial", 2, 1, "http"]));
    assert_eq!(of("shop/cart", "svc:shop/empty"), json!(["reject", 0, 0, null]));
    assert!(!lines.iter().any(|it| it["src"] == "other/stranger"));
}

#[test]
fn assertions_name_services_and_their_ports() {
    let dir = folder(SHOP);
    let intents = dir.path().join("intents.txt");
    let check = |assertion: &str| {
        let text = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Intents\nassertions:\n- name: it\n  {assertion}\n"
        );
        std::fs::write(&intents, text).unwrap();
        let ran = ringwall(
            &[
                "check",
                "--manifests",
                path(&dir),
                "--intents",
                intents.to_str().unwrap(),
                "-o",
                "json",
            ],
            "",
        );
        let line = ran.lines().into_iter().find(|it| it["intent"] == "it");
        line.unwrap_or_else(|| json!({"error": ran.err + &ran.out}))
    };
    let cart = "from: [{pod: shop/cart}], to: [{service: shop/web}]";
    // One endpoint listens where the policy does not allow it.
    let failed = check(&format!("allow: {{{cart}, ports: [80/TCP]}}"));
    assert_eq!(failed["ok"], false, "{failed}");
    let example = &failed["counterexample"];
    assert_eq!(
        (&example["dst"], &example["dst_port"]),
        (&"shop/web-1".into(), &9090.into())
    );
    assert_eq!(
        check(&format!("deny: {{{cart}}}"))["counterexample"]["dst_port"],
        8080
    );
    assert_eq!(
        check("deny: {from: [{namespace: other}], to: [{service: shop/web}]}")["ok"],
        true
    );
    // Its own port means nothing at the pods: 80 there is denied, and 8080 is no port of it.
    assert_eq!(
        check(&format!("allow: {{{cart}, ports: [8080/TCP]}}"))["vacuous"],
        "to"
    );
    assert_eq!(
        check("allow: {from: [{pod: shop/cart}], to: [{service: shop/wep}]}")["vacuous"],
        "to"
    );
    assert_eq!(
        check("allow: {from: [{pod: shop/cart}], to: [{service: shop/empty}]}")["vacuous"],
        "to"
    );
    let only = check("only: {from: [{pod: shop/cart}], to: [{service: shop/web}], ports: [80/TCP]}");
    assert_eq!(only["ok"], false);
    for (wrong, wanted) in [
        (
            "allow: {from: [{service: shop/web}], to: [{any: true}]}",
            "a Service sends nothing",
        ),
        (
            "only: {direction: egress, from: [{any: true}], to: [{service: shop/web}]}",
            "name the pods behind the Service",
        ),
        (
            "allow: {from: [{any: true}], to: [{service: web}]}",
            "is not namespace/name",
        ),
    ] {
        let error = check(wrong)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn diff_says_which_recorded_flows_to_services_change() {
    let from = folder(SHOP);
    let to = folder(&SHOP.replace("ports: [{port: 8080}]", "ports: [{port: 8080}, {port: 9090}]"));
    let flows = r#"
{"src":"shop/cart","dst":"svc:shop/web","protocol":"TCP","dst_port":"http"}
{"src":"shop/cart","dst":"10.96.0.7","protocol":"TCP","dst_port":80}
{"src":"other/stranger","dst":"svc:shop/web","protocol":"TCP","dst_port":80}
{"src":"shop/cart","dst":"shop/web-1","protocol":"TCP","dst_port":9090}
"#;
    let diff = |from: &TempDir, to: &TempDir, output: &str| {
        let args = [
            "diff",
            "--from",
            path(from),
            "--to",
            path(to),
            "--flows",
            "-",
            "-o",
            output,
        ];
        let ran = ringwall(&args, flows);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
        ran
    };
    assert_eq!(
        diff(&from, &to, "human").out,
        "\
+ partial -> allow    shop/cart -> 10.96.0.7 80/TCP  (1 flow)
+ deny  -> allow  shop/cart -> shop/web-1 9090/TCP  (1 flow; shop/web)
+ partial -> allow    shop/cart -> svc:shop/web http/TCP  (1 flow)
3 of 4 flows change: 0 closed, 3 opened; 0 unmatched, 0 not understood
"
    );
    let back = diff(&to, &from, "json").lines();
    let service = back.iter().find(|it| it["dst"] == "svc:shop/web").unwrap();
    assert_eq!(
        (&service["dst_port"], &service["from"], &service["to"]),
        (&"http".into(), &"allow".into(), &"partial".into())
    );
    // A Service that only one side has.
    let without = folder(&SHOP.replace(
        "name: web, namespace: shop}\nspec:\n  type: NodePort",
        "name: gone, namespace: shop}\nspec:\n  type: NodePort",
    ));
    let gone = diff(&from, &without, "json").lines();
    let service = gone
        .iter()
        .find(|it| it["dst"] == "svc:shop/web" && it["dst_port"] == "http")
        .unwrap();
    assert!(
        service["unmatched"]
            .as_str()
            .unwrap()
            .contains("no Service is named shop/web"),
        "{service}"
    );
}

/// Pods of few labels, ports, nodes; policies about them; Services in front, some with slices.
fn cluster(runner: &mut TestRunner) -> (String, usize) {
    let mut pick = |most: usize| (0..most).new_tree(runner).unwrap().current();
    let mut text = String::new();
    for node in 1..3 {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{node}}}\nspec: {{podCIDRs: [10.1.{node}.0/24]}}\nstatus: {{addresses: \
             [{{type: InternalIP, address: 192.168.0.{node}}}]}}\n"
        );
    }
    for pod in 0..6 {
        let (label, node, port) = (pick(2), 1 + pick(2), 8080 + pick(2));
        let second = if pick(2) == 0 {
            String::new()
        } else {
            format!(", {{ip: 'fd00::{pod}'}}")
        };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{pod}, namespace: a, labels: {{k: v{label}, n: p{pod}}}}}\nspec: {{nodeName: \
             n{node}, containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}\nstatus: {{podIPs: [{{ip: \
             10.1.{node}.{pod}}}{second}]}}\n"
        );
    }
    for policy in 0..1 + pick(3) {
        let (subject, peer, port) = (pick(6), pick(2), 8080 + pick(2));
        let (direction, peers) = if pick(3) == 0 {
            ("egress", "to")
        } else {
            ("ingress", "from")
        };
        let kind = if direction == "egress" {
            "Egress"
        } else {
            "Ingress"
        };
        let peer = match pick(3) {
            0 => "{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: 192.168.0.1/32}}".to_owned(),
            _ => format!("{{podSelector: {{matchLabels: {{k: v{peer}}}}}}}"),
        };
        let _ = write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: np{policy}, namespace: a}}\nspec: {{podSelector: \
             {{matchLabels: {{n: p{subject}}}}}, policyTypes: [{kind}], {direction}: [{{{peers}: [{peer}], ports: [{{port: {port}}}]}}]}}\n"
        );
    }
    let services = 4;
    for service in 0..services {
        let label = pick(2);
        let target = ["http", "8080", "8081"][pick(3)];
        let local = if pick(2) == 0 {
            ""
        } else {
            ", externalTrafficPolicy: Local"
        };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: a}}\nspec: {{type: NodePort, clusterIP: \
             10.96.0.{service}, selector: {{k: v{label}}}, ports: [{{name: w, port: 80, targetPort: {target}, nodePort: \
             3000{service}}}]{local}}}\n"
        );
        if pick(2) == 0 {
            let (one, other) = (pick(6), pick(2));
            let ready = if other == 0 { "false" } else { "true" };
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{service}-x, namespace: a, labels: \
                 {{kubernetes.io/service-name: s{service}}}}}\naddressType: IPv4\nports: [{{name: w, port: 8081}}]\nendpoints: \
                 [{{addresses: [10.1.1.{one}], nodeName: n1}}, {{addresses: [10.1.2.{one}], nodeName: n2, conditions: {{ready: {ready}}}}}]\n"
            );
        }
    }
    (text, services)
}

#[test]
fn a_services_verdict_is_that_of_its_endpoints_asked_one_by_one() {
    let mut runner = TestRunner::new_with_rng(
        proptest::test_runner::Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
    );
    let mut verdicts = std::collections::BTreeMap::<String, usize>::new();
    let rounds = std::env::var("CLUSTERS")
        .ok()
        .and_then(|it| it.parse().ok())
        .unwrap_or(40);
    for round in 0..rounds {
        let (text, services) = cluster(&mut runner);
        let dir = folder(&text);
        let mut flows = String::new();
        for service in 0..services {
            for src in ["a/p0", "a/p1", "203.0.113.9", "192.168.0.1"] {
                for (dst, port) in [
                    (format!("svc:a/s{service}"), "\"w\"".to_owned()),
                    (format!("10.96.0.{service}"), "80".to_owned()),
                    ("192.168.0.2".to_owned(), format!("3000{service}")),
                ] {
                    let _ = writeln!(
                        flows,
                        "{{\"src\":\"{src}\",\"dst\":\"{dst}\",\"protocol\":\"TCP\",\"dst_port\":{port}}}"
                    );
                }
            }
        }
        let answers = query(&dir, &flows, "json").lines();
        // Each end asked by itself, as it is listed.
        let mut single = String::new();
        let legs = |answer: &Value| -> Vec<[Value; 2]> {
            let backends = answer["backends"].as_array().into_iter().flatten();
            backends
                .map(|backend| {
                    let sent = match backend.get("sent_to") {
                        Some(sent) => json!([answer["src"], sent["dst_ip"], sent["dst_port"]]),
                        None => json!([answer["src"], backend["dst_ip"], backend["dst_port"]]),
                    };
                    let seen = backend
                        .get("seen_as")
                        .map_or(&answer["src"], |seen| &seen["src_ip"]);
                    [sent, json!([seen, backend["dst_ip"], backend["dst_port"]])]
                })
                .collect()
        };
        for answer in &answers {
            assert!(answer.get("error").is_none(), "round {round}: {answer}");
            for leg in legs(answer).iter().flatten() {
                let flow = json!({"src": leg[0], "dst": leg[1], "protocol": "TCP", "dst_port": leg[2]});
                // A node's port would stand for the Service again: what a client's policies see of it is its egress alone.
                let _ = writeln!(
                    single,
                    "{}",
                    if leg[1] == "192.168.0.2" {
                        json!({"src": leg[0], "dst": "192.168.0.2", "protocol": "TCP", "dst_port": 1})
                    } else {
                        flow
                    }
                );
            }
        }
        let mut single = query(&dir, &single, "json").lines().into_iter();
        for answer in &answers {
            let mut seen = std::collections::BTreeSet::new();
            for (_, backend) in legs(answer)
                .iter()
                .zip(answer["backends"].as_array().into_iter().flatten())
            {
                let [sent, received] = [single.next().unwrap(), single.next().unwrap()];
                let allow = sent["egress"] == "allow" && received["ingress"] == "allow";
                let wanted = if allow { "allow" } else { "deny" };
                assert_eq!(backend["verdict"], wanted, "round {round}: {answer}\n{text}");
                seen.insert(wanted);
            }
            let wanted = match (seen.contains("allow"), seen.contains("deny")) {
                (true, true) => "partial",
                (true, false) => "allow",
                (false, true) => "deny",
                (false, false) => answer["verdict"]
                    .as_str()
                    .filter(|it| ["reject", "drop"].contains(it))
                    .unwrap(),
            };
            assert_eq!(answer["verdict"], wanted, "round {round}: {answer}\n{text}");
            *verdicts.entry(wanted.to_owned()).or_default() += 1;
        }
        assert!(single.next().is_none());
    }
    for verdict in ["allow", "partial", "deny", "reject", "drop"] {
        assert!(
            verdicts.get(verdict).is_some_and(|times| *times > 2),
            "{verdict}: {verdicts:?}"
        );
    }
}
