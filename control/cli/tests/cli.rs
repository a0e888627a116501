//! The offline commands as others script on them: exact output, exit status, messages.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod ran;

use std::{fs, path::Path};

use ran::{Ran, ringwall_reading as ringwall};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tempfile::TempDir;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
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
status: {podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: six, namespace: shop}
status: {podIPs: [{ip: 'fd00::3'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
status: {phase: Succeeded, podIP: 10.1.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: planned, namespace: shop, labels: {app: web}}
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
  ingress:
  - ports: [{port: 1, endPort: 9}]
  - from: [{podSelector: {matchLabels: {app: api}}}, {ipBlock: {cidr: 203.0.113.0/24}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backstop, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}
";

fn shop() -> TempDir {
    folder(&[("shop.yaml", SHOP)])
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn path(dir: &TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn query(dir: &TempDir, flows: &str) -> Ran {
    ringwall(
        &["query", "--manifests", path(dir), "--flows", "-", "-o", "json"],
        flows,
    )
}

#[test]
fn query_answers_each_flow_in_its_place() {
    let flows = r#"
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":5432}
{"dst_port":5432.0,"dst":"shop/db",  "src":"203.0.113.9","protocol":6,"src_port":1}

{"src":"shop/api","dst":"shop/db","protocol":"TCP","dst_port":5432}
{"src":"shop/planned","dst":"shop/db","protocol":"TCP","dst_port":9}
{"src":"shop/web","dst":"shop/web","protocol":"ICMP","icmp_type":8,"icmp_code":0}
{"src":"shop/web","dst":"fd00::2","protocol":"ICMPv6","icmp_type":128}
{"src":"192.168.0.1","dst":"shop/db","protocol":"UDP","dst_port":1}
{"src":"10.1.0.77","dst":"1.2.3.4","protocol":47}
{"src":"shop/db","dst":"shop/six","protocol":"SCTP","dst_port":0}
{"src":"::ffff:10.1.0.1","dst":"10.1.0.2","protocol":132,"dst_port":65535}
"#;
    let ran = query(&shop(), flows);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    insta::assert_snapshot!(ran.out);
}

#[test]
fn query_says_what_a_gateway_drops_although_policies_allow_it() {
    let dir = shop();
    let of = |src: &str, dst: &str, what: &str| {
        let ran = query(&dir, &format!("{{\"src\":\"{src}\",\"dst\":\"{dst}\",{what}}}\n"));
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        (answer["verdict"].clone(), answer["gateway_drop"].clone())
    };
    let dropped = ("allow".into(), "encapsulation".into());
    let passes = ("allow".into(), serde_json::Value::Null);
    for protocol in [4, 41, 47, 97, 115, 137] {
        let what = format!("\"protocol\":{protocol}");
        assert_eq!(of("shop/web", "1.2.3.4", &what), dropped, "{protocol}");
        assert_eq!(of("1.2.3.4", "shop/web", &what), passes, "{protocol}");
        assert_eq!(of("shop/web", "shop/web", &what), passes, "{protocol}");
    }
    for port in [4789, 6081, 8285, 8472] {
        let udp = format!("\"protocol\":\"UDP\",\"dst_port\":{port}");
        assert_eq!(of("shop/web", "1.2.3.4", &udp), dropped, "{port}");
        assert_eq!(
            of("shop/web", "1.2.3.4", &udp.replace("UDP", "TCP")),
            passes,
            "{port}"
        );
    }
    assert_eq!(of("shop/web", "1.2.3.4", "\"protocol\":50"), passes);
    let denied = of("shop/web", "shop/db", "\"protocol\":47");
    assert_eq!(
        denied,
        ("deny".into(), serde_json::Value::Null),
        "policies drop it already"
    );
    let human = ringwall(
        &["query", "--manifests", path(&dir), "--flows", "-"],
        "{\"src\":\"shop/web\",\"dst\":\"1.2.3.4\",\"protocol\":47}",
    );
    assert!(
        human.out.contains("a gateway drops it as encapsulation"),
        "{}",
        human.out
    );
}

#[test]
fn query_says_what_is_wrong_with_a_flow_and_goes_on() {
    let flows = r#"
{"src":"shop/nobody","dst":"shop/db","protocol":"TCP","dst_port":1}
{"src":"shop/done","dst":"shop/db","protocol":"TCP","dst_port":1}
{"src":"shop/web","dst":"shop/db","protocol":"TCP"}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":null}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":65536}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":"80"}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":80,"port":80}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":80,"dst_port":81}
{"src":"shop/web","dst":"shop/db","protocol":"tcp","dst_port":80}
{"src":"shop/web","dst":"shop/db","protocol":256,"dst_port":80}
{"src":"shop/web","dst":"shop/db","dst_port":80}
{"src":"shop/six","dst":"10.1.0.1","protocol":"ICMP"}
{"src":"10.1.0.1","dst":"fd00::1","protocol":"ICMP"}
{"src":"web","dst":"shop/db","protocol":"ICMP"}
{"src":"10.1.0.256","dst":"shop/db","protocol":"ICMP"}
{"dst":"shop/db","protocol":"ICMP"}
{"src":7,"dst":"shop/db","protocol":"ICMP"}
{"src":"/x","dst":"shop/db","protocol":"ICMP"}
{"src":"shop/web","dst":"shop/db","protocol":"ICMP","icmp_type":256}
[1]
"shop/web"
{"src":"shop/web"
"#;
    let ran = query(&shop(), flows);
    assert_eq!(ran.status, 2);
    for line in ran.out.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["error"]);
    }
    insta::assert_snapshot!(ran.out);
    // One bad flow does not keep the others from an answer.
    let mixed = query(
        &shop(),
        "{}\n{\"src\":\"shop/web\",\"dst\":\"shop/db\",\"protocol\":\"ICMP\"}\n",
    );
    assert_eq!((mixed.status, mixed.out.lines().count()), (2, 2));
    assert!(mixed.out.lines().nth(1).unwrap().contains(r#""verdict":"deny""#));
}

#[test]
fn a_pod_on_the_host_network_does_not_answer_for_who_has_its_address() {
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: shop}\n\
                spec: {hostNetwork: true}\nstatus: {podIP: 10.1.0.2}\n";
    let dir = folder(&[("shop.yaml", SHOP), ("agent.yaml", host)]);
    let ran = query(
        &dir,
        r#"{"src":"shop/agent","dst":"1.2.3.4","protocol":"TCP","dst_port":1}"#,
    );
    assert_eq!(ran.status, 2);
    assert_eq!(
        ran.lines()[0]["error"],
        "shop/agent: its address 10.1.0.2 belongs to shop/db now"
    );
}

#[test]
fn query_reads_an_array_and_a_file_too() {
    let dir = shop();
    let flow = r#"{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":9}"#;
    let lines = query(&dir, &format!("\u{feff}{flow}\r\n{flow}"));
    let array = query(&dir, &format!("\n [{flow},\n{flow}]"));
    assert_eq!((lines.status, lines.out.lines().count()), (0, 2));
    assert_eq!(array.out, lines.out);
    let file = folder(&[("flows.jsonl", &format!("{flow}\n\n{flow}\n"))]);
    let flows = file.path().join("flows.jsonl");
    let ran = ringwall(
        &[
            "query",
            "--manifests",
            path(&dir),
            "--flows",
            flows.to_str().unwrap(),
            "-o",
            "json",
        ],
        "",
    );
    assert_eq!(ran.out, lines.out);
    let human = ringwall(&["query", "--manifests", path(&dir), "--flows", "-"], flow);
    insta::assert_snapshot!(human.out, @"
    allow  shop/web (10.1.0.1) -> shop/db (10.1.0.2) 9/TCP
             egress  allow  no policy applies
             ingress allow  shop/db, rule 0
    ");
    let broken = query(&dir, "[{]");
    assert_eq!(broken.status, 2);
    assert!(broken.out.contains("not a JSON array"), "{}", broken.out);
    let gone = ringwall(
        &["query", "--manifests", path(&dir), "--flows", "/nonexistent"],
        "",
    );
    assert_eq!(gone.status, 2);
    assert!(
        gone.err.contains("cannot read flows from /nonexistent"),
        "{}",
        gone.err
    );
}

#[test]
fn invalid_policies_isolate_and_unknown_kinds_make_verdicts_incomplete() {
    let dir = folder(&[
        ("shop.yaml", SHOP),
        (
            "bad.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: web}}\n  ingress:\n  - from:\n    - podSelector: {}\n      ports: [{port: 80}]\n",
        ),
        (
            "cilium.yaml",
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: c}\n",
        ),
    ]);
    let ran = query(
        &dir,
        r#"{"src":"shop/db","dst":"shop/web","protocol":"TCP","dst_port":80}"#,
    );
    assert_eq!(ran.status, 0);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["ingress"], "deny");
    assert_eq!(answer["reasons"][1]["policy"], "shop/bad");
    assert_eq!(
        answer["incomplete"],
        serde_json::json!(["CiliumNetworkPolicy.cilium.io"])
    );
    assert!(
        ran.err
            .contains("bad.yaml:9: NetworkPolicy shop/bad: spec.ingress[0].from[0].ports: unknown field"),
        "{}",
        ran.err
    );

    let check = ringwall(&["check", "--manifests", path(&dir), "-o", "json"], "");
    assert_eq!(check.status, 1);
    let lines: Vec<Value> = check
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let bad = lines.iter().find(|line| line["id"] == "RW101").unwrap();
    assert_eq!(bad["path"], "spec.ingress[0].from[0].ports");
    assert_eq!(
        (&bad["line"], &bad["object"], &bad["severity"]),
        (&9.into(), &"NetworkPolicy shop/bad".into(), &"error".into())
    );
    assert!(lines.iter().any(|line| line["id"] == "RW003"));
    let summary = lines.last().unwrap();
    assert_eq!((&summary["ok"], &summary["errors"]), (&false.into(), &2.into()));
}

#[test]
fn a_folder_that_does_not_parse_is_refused_by_all_but_check() {
    let dir = folder(&[("shop.yaml", SHOP), ("broken.yaml", "kind: Pod\nmetadata: [\n")]);
    for args in [vec!["query", "--flows", "-"], vec!["matrix"]] {
        let ran = ringwall(&[args.as_slice(), &["--manifests", path(&dir)]].concat(), "");
        assert_eq!(ran.status, 2);
        assert!(ran.err.contains("broken.yaml:"), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
    let ran = ringwall(&["check", "--manifests", path(&dir)], "");
    assert_eq!(ran.status, 1);
    assert!(
        ran.out.contains("broken.yaml:") && ran.out.contains("failed: 1 error"),
        "{}",
        ran.out
    );
    for command in ["check", "matrix"] {
        let ran = ringwall(&[command, "--manifests", "/nonexistent/folder"], "");
        assert_eq!(ran.status, 2);
        assert!(ran.err.contains("cannot read /nonexistent/folder"), "{}", ran.err);
    }
}

#[test]
fn manifests_come_from_standard_input_too() {
    let flow = folder(&[(
        "flows",
        r#"{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":80}"#,
    )]);
    let flows = format!("{}/flows", path(&flow));
    let dir = shop();
    let of_folder = ringwall(&["query", "--manifests", path(&dir), "--flows", &flows], "");
    let of_stdin = ringwall(&["query", "--manifests", "-", "--flows", &flows], SHOP);
    assert_eq!((of_stdin.status, &of_stdin.out), (0, &of_folder.out));
    // As `kubectl get -o json` writes it, which a parser of YAML need not take.
    let json = "{\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\", \"metadata\": {\"name\": \"a\", \"namespace\": \"b\"}}";
    for arguments in [
        &["check", "--manifests", "-"][..],
        &["matrix", "--manifests", "-"],
        &["coverage", "--manifests", "-"],
        &["explain", "b/a", "b/a", "80/tcp", "--manifests", "-"],
        &["diff", "--from", "-", "--to", path(&dir)],
        &["diff", "--to", "-", "--from", path(&dir)],
    ] {
        let ran = ringwall(arguments, json);
        assert_eq!(ran.status, 0, "{arguments:?}: {} {}", ran.out, ran.err);
    }
    // Problems name it and the line.
    let broken = ringwall(&["check", "--manifests", "-"], "kind: Pod\n\n  a: [\n");
    assert_eq!(broken.status, 1);
    assert!(broken.out.contains("stdin:3"), "{}", broken.out);
    let empty = ringwall(&["check", "--manifests", "-"], "");
    assert_eq!(empty.status, 2);
    assert!(empty.err.contains("in standard input"), "{}", empty.err);
    for both in [
        &["query", "--manifests", "-", "--flows", "-"][..],
        &["diff", "--from", "-", "--to", "-"],
        &["diff", "--from", "-", "--to", path(&dir), "--flows", "-"],
    ] {
        let ran = ringwall(both, SHOP);
        assert_eq!(ran.status, 2, "{both:?}");
        assert!(ran.err.contains("cannot both be standard input"), "{}", ran.err);
    }
}

#[test]
fn check_names_every_broken_document_of_every_file() {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let dir = folder(&[
        (
            "a.yaml",
            &format!("{good}---\na: [\n--- # three\nkind: 7\n---\nb: {{\n---\n{good}"),
        ),
        (
            "b.yaml",
            "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Pod\n",
        ),
    ]);
    let ran = ringwall(&["check", "--manifests", path(&dir), "-o", "json"], "");
    assert_eq!(ran.status, 1);
    let places: Vec<(String, u64)> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|it| it["severity"] == "error")
        .map(|it| {
            let file = Path::new(it["file"].as_str().unwrap()).file_name().unwrap();
            (file.to_string_lossy().into_owned(), it["line"].as_u64().unwrap())
        })
        .collect();
    let place = |file: &str, line| (file.to_owned(), line);
    assert_eq!(
        places,
        [
            place("a.yaml", 5),
            place("a.yaml", 7),
            place("a.yaml", 9),
            place("b.yaml", 1),
            place("b.yaml", 4),
        ],
        "{}",
        ran.out
    );
}

#[test]
fn check_says_which_hidden_manifests_are_not_read() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
    let dir = folder(&[
        ("a.yaml", namespace),
        // As editors leave them: kubectl does not read these either.
        ("b.yaml~", "not: ["),
        ("#c.yaml#", "not: ["),
        (".d.yaml.swp", "not: ["),
        (".e.yaml", "something: else"),
    ]);
    let check = || ringwall(&["check", "--manifests", path(&dir)], "");
    let quiet = check();
    assert_eq!(quiet.status, 0, "{}", quiet.out);
    assert!(!quiet.out.contains("begins with a dot"), "{}", quiet.out);
    fs::write(dir.path().join(".np.yaml"), namespace).unwrap();
    for hidden in [".tests/deep", "..data", ".git"] {
        fs::create_dir_all(dir.path().join(hidden)).unwrap();
        fs::write(dir.path().join(hidden).join("np.yaml"), namespace).unwrap();
    }
    let ran = check();
    assert_eq!(ran.status, 0, "{}", ran.out);
    let notes: Vec<&str> = ran
        .out
        .lines()
        .filter(|line| line.contains("begins with a dot"))
        .collect();
    assert_eq!(notes.len(), 2, "{}", ran.out);
    assert!(
        ran.out.contains(".np.yaml") && ran.out.contains(".tests"),
        "{}",
        ran.out
    );
    assert!(
        notes
            .iter()
            .any(|line| line.contains("1 manifest in this folder")),
        "{notes:?}"
    );
}

#[test]
fn check_of_good_manifests_proves_and_passes() {
    let ran = ringwall(&["check", "--manifests", path(&shop())], "");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(
        ran.out
            .contains("; 1 file, 2 policies, 6 pods; the snapshot is proven: ")
            && ran.out.lines().last().unwrap().starts_with("ok: 0 errors, "),
        "{}",
        ran.out
    );
    // A warning is no error.
    let odd = folder(&[(
        "p.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  - from: [{ipBlock: {cidr: 010.0.0.1/8}}]\n",
    )]);
    let ran = ringwall(&["check", "--manifests", path(&odd)], "");
    assert_eq!(ran.status, 0);
    assert!(
        ran.out.contains("warning[RW302]: ") && ran.out.contains("spec.ingress[0].from[0].ipBlock.cidr"),
        "{}",
        ran.out
    );
}

#[test]
fn a_compiled_file_is_proven_and_a_corrupted_one_is_not() {
    let (dir, out) = (shop(), TempDir::new().unwrap());
    let file = out.path().join("policy.img");
    let file = file.to_str().unwrap();
    let manifests = ["--manifests", path(&dir)];
    let compile = [&["compile", "--out", file][..], &manifests].concat();
    let check = [&["check", "--snapshot", file, "-o", "json"][..], &manifests].concat();

    let ran = ringwall(&[&compile[..], &["-o", "json"]].concat(), "");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let stats: Value = serde_json::from_str(&ran.out).unwrap();
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(stats["bytes"], bytes.len());
    assert_eq!(stats["policies"], 2);
    assert_eq!(
        std::fs::read_dir(out.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    assert!(ringwall(&compile, "").out.contains("2 policies"));

    let ran = ringwall(&check, "");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    let summary: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(summary["ok"], true);
    assert!(summary["proof"]["questions"].as_u64().unwrap() > 50, "{summary}");

    // Of other manifests: a packet says so.
    let less = folder(&[(
        "p.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n",
    )]);
    let ran = ringwall(
        &[
            "check",
            "--snapshot",
            file,
            "--manifests",
            path(&less),
            "-o",
            "json",
        ],
        "",
    );
    assert_eq!(ran.status, 1, "{}", ran.out);
    let found: Value = serde_json::from_str(ran.out.lines().next().unwrap()).unwrap();
    assert_eq!(found["severity"], "error");
    assert!(
        found["message"]
            .as_str()
            .unwrap()
            .contains("does not mean what these manifests say"),
        "{found}"
    );

    // Of a policy that says another thing: it is named with its file, and a packet shows it.
    let other = folder(&[("shop.yaml", &SHOP.replace("endPort: 9", "endPort: 8"))]);
    let ran = ringwall(
        &[
            "check",
            "--snapshot",
            file,
            "--manifests",
            path(&other),
            "-o",
            "json",
        ],
        "",
    );
    assert_eq!(ran.status, 1, "{}", ran.out);
    let found: Value = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|found| found["severity"] == "error")
        .unwrap();
    let message = found["message"].as_str().unwrap();
    assert!(message.contains("port 9"), "{message}");
    assert!(found["file"].as_str().unwrap().ends_with("shop.yaml"), "{found}");
    assert_eq!(found["object"], "NetworkPolicy shop/backstop");

    // No image any more.
    for (at, what) in [
        (0, "magic"),
        (bytes.len() / 2, "damaged"),
        (bytes.len() - 1, "damaged"),
    ] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(file, &damaged).unwrap();
        let ran = ringwall(&check, "");
        assert_eq!((ran.status, ran.err.as_str()), (2, ""));
        assert!(ran.out.contains(file) && ran.out.contains(what), "{}", ran.out);
    }
    let ran = ringwall(
        &[
            "compile",
            "--out",
            "/nonexistent/policy.img",
            "--manifests",
            path(&dir),
        ],
        "",
    );
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.contains("cannot write /nonexistent/policy.img"),
        "{}",
        ran.err
    );
}

#[test]
fn matrix_shows_who_reaches_whom() {
    let dir = shop();
    let ran = ringwall(
        &["matrix", "--manifests", path(&dir), "--external", "203.0.113.9"],
        "",
    );
    assert_eq!(ran.status, 0);
    insta::assert_snapshot!(ran.out);
    let ran = ringwall(
        &[
            "matrix",
            "--manifests",
            path(&dir),
            "--port",
            "5432/TCP",
            "--port",
            "ICMP",
        ],
        "",
    );
    insta::assert_snapshot!(ran.out);
    let ran = ringwall(&["matrix", "--manifests", path(&dir), "-o", "json"], "");
    let cells: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let cell = |src: &str, dst: &str| {
        let cell = cells
            .iter()
            .find(|cell| cell["src"] == src && cell["dst"] == dst)
            .unwrap();
        (cell["verdict"].clone(), cell["allowed"].clone())
    };
    assert_eq!(
        cell("shop/web", "shop/db"),
        ("partial".into(), serde_json::json!(["1-9/TCP"]))
    );
    assert_eq!(
        cell("shop/api", "shop/db"),
        ("partial".into(), serde_json::json!(["1-9/TCP", "5432/TCP"]))
    );
    assert_eq!(
        cell("shop/db", "shop/web"),
        ("allow".into(), serde_json::json!(["all"]))
    );
}

#[test]
fn matrix_tells_pods_apart_that_a_block_of_one_family_does() {
    let pod = |namespace: &str, name: &str, addresses: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             status: {{podIPs: [{addresses}]}}\n---\n"
        )
    };
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: b}\nspec:\n  \
                  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 'fd00::1/128'}}]}]\n";
    let objects = [
        pod("a", "x", "{ip: 10.0.0.1}, {ip: 'fd00::1'}"),
        pod("a", "w", "{ip: 10.0.0.2}, {ip: 'fd00::2'}"),
        pod("b", "z", "{ip: 'fd00::9'}"),
        policy.to_owned(),
    ];
    let dir = folder(&[("all.yaml", &objects.concat())]);
    let lines = ringwall(&["matrix", "--manifests", path(&dir), "-o", "json"], "").lines();
    for (src, verdict) in [("a/x", "allow"), ("a/w", "deny")] {
        let of = |line: &&Value| line["src"] == src && line["dst"] == "b/z";
        assert_eq!(lines.iter().find(of).unwrap()["verdict"], verdict, "{src}");
    }
}

#[test]
fn pod_networks_come_from_flags_and_configuration() {
    let dir = shop();
    let flow = r#"{"src":"10.9.0.1","dst":"shop/web","protocol":"ICMP"}"#;
    let verdict = |more: &[&str]| {
        let args = [
            &["query", "--manifests", path(&dir), "--flows", "-", "-o", "json"],
            more,
        ]
        .concat();
        let ran = ringwall(&args, flow);
        assert_eq!(ran.status, 0, "{}", ran.err);
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        (answer["verdict"].clone(), answer["reasons"][0]["effect"].clone())
    };
    assert_eq!(verdict(&[]), ("allow".into(), "open".into()));
    assert_eq!(
        verdict(&["--pod-cidr", "10.9.0.0/16"]),
        ("deny".into(), "unknown".into())
    );
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    if example.exists() {
        for entry in fs::read_dir(example).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|it| it == "yaml") {
                verdict(&["--config", file.to_str().unwrap()]);
            }
        }
    }
    let ran = ringwall(
        &[
            "matrix",
            "--manifests",
            path(&dir),
            "--config",
            "/nonexistent.yaml",
        ],
        "",
    );
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("/nonexistent.yaml"), "{}", ran.err);
}

#[test]
fn bad_usage_is_status_2_and_says_what() {
    for (args, what) in [
        (vec!["query", "--flows", "-"], "--manifests"),
        (vec!["query", "--manifests", "."], "--flows"),
        (vec!["query", "--manifest", ".", "--flows", "-"], "--manifest"),
        (vec!["matrix", "--manifests", ".", "--port", "80"], "--port"),
        (vec!["matrix", "--manifests", ".", "--port", "300/ICMP"], "--port"),
        (
            vec!["matrix", "--manifests", ".", "--port", "99999/TCP"],
            "--port",
        ),
        (
            vec!["matrix", "--manifests", ".", "--pod-cidr", "10.0.0.0/40"],
            "--pod-cidr",
        ),
        (vec!["check", "--manifests", ".", "-o", "xml"], "xml"),
        (vec!["frobnicate"], "frobnicate"),
    ] {
        let ran = ringwall(&args, "");
        assert_eq!(ran.status, 2, "{args:?}");
        assert!(ran.err.contains(what), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    }
    assert_eq!(ringwall(&[], "").status, 2);
    assert_eq!(ringwall(&["--help"], "").status, 0);
    for command in ["query", "matrix", "check"] {
        let help = ringwall(&[command, "--help"], "");
        assert_eq!(help.status, 0);
        assert!(help.out.contains("Examples:"), "{command}");
    }
}

#[test]
fn what_is_written_is_whole_and_what_is_no_file_stays() {
    let (dir, out) = (shop(), tempfile::tempdir().unwrap());
    let compile = |to: &Path| {
        let args = [
            "compile",
            "--manifests",
            path(&dir),
            "--out",
            to.to_str().unwrap(),
        ];
        ringwall(&args, "").status
    };
    let (file, link, pipe) = (
        out.path().join("policy.img"),
        out.path().join("link"),
        out.path().join("pipe"),
    );
    fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(compile(&link), 0);
    assert!(link.is_symlink() && fs::metadata(&file).unwrap().len() > 3);
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    assert_eq!(compile(&pipe), 0);
    assert_eq!(reader.join().unwrap(), fs::read(&file).unwrap());
    let manifest = out.path().join("manifest");
    fs::create_dir(&manifest).unwrap();
    fs::rename(&pipe, manifest.join("pipe.yaml")).unwrap();
    let ran = ringwall(&["check", "--manifests", manifest.to_str().unwrap()], "");
    assert!(
        ran.status == 1 && ran.out.contains("neither a file nor a folder"),
        "{}",
        ran.out
    );
    fs::rename(manifest.join("pipe.yaml"), &pipe).unwrap();
    fs::remove_dir(&manifest).unwrap();
    assert!(!pipe.is_file());
    assert_eq!(compile(Path::new("-")), 2);
    assert_eq!(
        fs::read_dir(out.path()).unwrap().count(),
        3,
        "nothing is left beside"
    );
}

#[test]
fn output_without_a_reader_is_status_2_without_a_panic() {
    let dir = shop();
    let flow = r#"{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":9}"#;
    let flows = folder(&[("flows.jsonl", &format!("{flow}\n").repeat(2_000))]);
    let flows = flows.path().join("flows.jsonl");
    let query = |output: &str, out: std::process::Stdio| {
        std::process::Command::new(env!("CARGO_BIN_EXE_ringwall"))
            .args(["query", "--manifests", path(&dir), "-o", output, "--flows"])
            .arg(&flows)
            .stdout(out)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    for output in ["json", "human"] {
        // As `| head` does.
        let mut child = query(output, std::process::Stdio::piped());
        drop(child.stdout.take());
        let ran = child.wait_with_output().unwrap();
        assert_eq!((ran.status.code(), ran.stderr.as_slice()), (Some(2), &b""[..]));
        let full = fs::File::create("/dev/full").unwrap();
        let ran = query(output, full.into()).wait_with_output().unwrap();
        assert_eq!(ran.status.code(), Some(2));
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(said, "ringwall: No space left on device (os error 28)\n");
    }
}

/// An invalid policy isolates whom it selects, and a pod on its node's network is selected by no policy: every answer says so.
#[test]
fn answers_say_what_is_invalid_and_what_is_not_shown() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: use_x, namespace: shop}\nspec: \
                  {podSelector: {matchLabels: {app: db}}}\n";
    let agent =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: shop}\nspec: {hostNetwork: true}\n";
    let dir = folder(&[("a.yaml", SHOP), ("b.yaml", policy), ("c.yaml", agent)]);
    let flows = [
        ("shop/web", "shop/db", true),
        ("shop/web", "shop/planned", false),
        ("10.1.0.2", "shop/web", true),
    ];
    for (src, dst, marked) in flows {
        let flow = serde_json::json!({"src": src, "dst": dst, "protocol": "TCP", "dst_port": 80});
        let answer = query(&dir, &flow.to_string()).lines().remove(0);
        let invalid = answer.get("invalid").cloned();
        assert_eq!(
            invalid,
            marked.then(|| serde_json::json!(["shop/use_x"])),
            "{answer}"
        );
    }
    let ran = ringwall(&["matrix", "--manifests", path(&dir), "-o", "json"], "");
    let mut lines = ran.lines();
    assert_eq!(
        lines.pop().unwrap(),
        serde_json::json!({"host_network": ["shop/agent"]})
    );
    for line in lines {
        let db = line["src"] == "shop/db" || line["dst"] == "shop/db";
        assert_eq!(line.get("invalid").is_some(), db, "{line}");
    }
    let ran = ringwall(&["matrix", "--manifests", path(&dir)], "");
    assert!(
        ran.out.contains("shop/db !") && ran.out.contains("Invalid: shop/use_x"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("1 pod is on its node's network"), "{}", ran.out);
    let image = dir.path().join("image");
    let compile = [
        "compile",
        "--manifests",
        path(&dir),
        "--out",
        image.to_str().unwrap(),
    ];
    assert!(ringwall(&compile, "").out.contains("Invalid: shop/use_x"));
    let json = ringwall(&[compile.as_slice(), &["-o", "json"]].concat(), "")
        .lines()
        .remove(0);
    assert_eq!(json["invalid"], serde_json::json!(["shop/use_x"]));
    let ran = ringwall(&["diff", "--from", path(&dir), "--to", path(&dir)], "");
    assert!(
        ran.out.contains("Invalid: shop/use_x") && ran.out.contains("1 pod on the network"),
        "{}",
        ran.out
    );
    // What is left out is not proven.
    let ran = ringwall(&["check", "--manifests", path(&dir)], "");
    assert!(
        !ran.out.contains("proven") && ran.out.contains("apart from the findings"),
        "{}",
        ran.out
    );
    // Pods that no policy applies to exist all the same.
    let alone = folder(&[("c.yaml", agent)]);
    let ran = ringwall(&["matrix", "--manifests", path(&alone)], "");
    assert!(
        ran.out
            .contains("No pods and no workloads that policies apply to."),
        "{}",
        ran.out
    );
}

/// A wrong path in a pipeline must not pass.
#[test]
fn nothing_is_no_answer_unless_it_is_allowed() {
    let empty = folder(&[("notes.txt", "")]);
    let others = folder(&[("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")]);
    let shop = shop();
    for (dir, says) in [(&empty, "no manifest"), (&others, "no pod, workload, namespace")] {
        let image = dir.path().join("image");
        let commands: [&[&str]; 8] = [
            &["check", "--manifests", path(dir)],
            &["matrix", "--manifests", path(dir)],
            &["coverage", "--manifests", path(dir)],
            &[
                "compile",
                "--manifests",
                path(dir),
                "--out",
                image.to_str().unwrap(),
            ],
            &["query", "--manifests", path(dir), "--flows", "-"],
            &[
                "explain",
                "--manifests",
                path(dir),
                "192.0.2.1",
                "192.0.2.2",
                "80/TCP",
            ],
            &["diff", "--from", path(dir), "--to", path(&shop)],
            &["diff", "--from", path(&shop), "--to", path(dir)],
        ];
        for command in commands {
            let ran = ringwall(command, "");
            assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{command:?}");
            assert!(
                ran.err.contains(says) && ran.err.contains("--allow-empty"),
                "{}",
                ran.err
            );
            let ran = ringwall(&[command, &["-o", "json"]].concat(), "");
            assert_eq!(ran.status, 2);
            assert!(
                ran.lines()[0]["error"].as_str().unwrap().contains(says),
                "{}",
                ran.out
            );
            let ran = ringwall(&[command, &["--allow-empty"]].concat(), "");
            assert_eq!(ran.status, 0, "{command:?}: {}", ran.err);
        }
    }
    let ran = ringwall(&["check", "--manifests", "/nowhere"], "");
    assert_eq!(ran.status, 2);
    assert_eq!(ran.err.matches("os error").count(), 1, "{}", ran.err);
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = ringwall(&["completions", shell], "");
        assert_eq!(ran.status, 0);
        assert!(ran.out.contains("manifests"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    assert_eq!(ringwall(&["man", pages.to_str().unwrap()], "").status, 0);
    for page in [
        "ringwall.1",
        "ringwall-query.1",
        "ringwall-matrix.1",
        "ringwall-check.1",
    ] {
        assert!(
            fs::read_to_string(pages.join(page)).unwrap().contains("ringwall"),
            "{page}"
        );
    }
    let ran = ringwall(&["man", "/proc/nowhere"], "");
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("/proc/nowhere"), "{}", ran.err);
}
