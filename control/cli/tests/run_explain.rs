//! `ringwall flows` and `ringwall explain` against a running appliance: real packets, explained by their ids.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test, and a bed that other tests use more of

mod run_bed;

use run_bed::*;
use serde_json::Value;

/// Pod a may reach pod b on port 80, and no other end may reach it.
const ONLY_A: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-a, namespace: default}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: a}}}]
    ports: [{port: 80}]
";

/// Only a host outside may, in place of pod a.
const STAGED: &str = "apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata: {name: only-a, namespace: default}
spec:
  stagedAction: Set
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: OUTSIDE/32}}]
    ports: [{protocol: TCP, port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silent, namespace: default, annotations: {ringwall.io/mode: staged}}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
";

fn json(bed: &Bed, arguments: &[&str]) -> Vec<Value> {
    let output = bed.ask(&[arguments, &["-o", "json"]].concat());
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        bed.log()
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn words(bed: &Bed, arguments: &[&str]) -> String {
    let output = bed.ask(arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn id(record: &Value) -> &str {
    let id = record["id"].as_str().unwrap();
    assert!(
        id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    id
}

#[test]
fn an_allowed_flow_and_a_drop_are_explained_by_their_ids() {
    if !may_run("an_allowed_flow_and_a_drop_are_explained_by_their_ids") {
        return;
    }
    let mut bed = Bed::new();
    bed.manifest("np", ONLY_A);
    bed.start();
    serve(&bed.b, POD_B, 80);
    let mut open = connect(&bed.a, POD_B, 80).unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
    assert!(connect(&bed.outside, POD_B, 80).is_err(), "from outside");

    // The flow.
    let flows = json(
        &bed,
        &["flows", "--pod", "default/a", "--policy", "default/only-a"],
    );
    assert_eq!(flows.len(), 1, "{flows:?}");
    let flow = &flows[0];
    let named = ["kind", "src_pod", "dst_pod", "state"].map(|key| flow[key].as_str().unwrap());
    assert_eq!(named, ["flow", "default/a", "default/b", "tcp-established"]);
    assert_eq!(
        (flow["src"].as_str(), flow["dst_port"].as_u64()),
        (Some(POD_A), Some(80))
    );
    assert_eq!(flow["ports"], serde_json::json!(["pod-a", "pod-b"]));
    assert!(flow["packets"][0].as_u64() >= Some(2), "{flow}");
    assert_eq!(flow["decided"].as_u64(), Some(bed.generation()));
    let reasons = &flow["reasons"];
    assert_eq!(
        (&reasons[0]["effect"], &reasons[1]["policy"]),
        (&"open".into(), &"default/only-a".into())
    );
    assert_eq!(reasons[1]["rule"], 0);
    let flow_id = id(flow).to_owned();
    let explained = &json(&bed, &["explain", "--flow", &flow_id])[0];
    assert_eq!(explained["differs"], false, "{explained}");
    assert_eq!(explained["now"]["verdict"], "allow");
    assert_eq!(explained["now"]["reasons"], *reasons);
    assert_eq!(explained["now"]["generation"].as_u64(), Some(bed.generation()));
    let text = words(&bed, &["explain", "--flow", &flow_id]);
    for part in [
        "tcp-established",
        "decided the same",
        "rule 0 of default/only-a allows it",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    // The drop.
    let drops = json(&bed, &["flows", "--dropped", "--pod", POD_B, "--limit", "1"]);
    let drop = &drops[0];
    assert_eq!(
        (&drop["kind"], &drop["reason"]),
        (&"drop".into(), &"policy-ingress".into())
    );
    assert_eq!(
        (drop["src"].as_str(), drop["port"].as_str()),
        (Some(OUTSIDE), Some("up0"))
    );
    assert_eq!(drop["recorded"], true);
    let drop_id = id(drop).to_owned();
    let explained = &json(&bed, &["explain", "--flow", &drop_id])[0];
    assert_eq!(
        (&explained["differs"], &explained["now"]["verdict"]),
        (&false.into(), &"deny".into())
    );
    assert!(!explained["now"]["changes"].as_array().unwrap().is_empty());
    let text = words(&bed, &["explain", "--flow", &drop_id]);
    for part in [
        "policy-ingress: A pod is isolated",
        "isolated by default/only-a",
        "selectors match only pods",
        "Changes that would allow it",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    // A flow between two that are named, as the running state has it.
    let live = &json(&bed, &["explain", "default/b", "default/a", "53/UDP"])[0];
    assert_eq!(
        (&live["verdict"], &live["src"]["name"]),
        (&"allow".into(), &"default/b".into())
    );
    // A Service is its endpoints here, too.
    bed.manifest(
        "service",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {clusterIP: 10.96.0.7, selector: {app: a}, \
         ports: [{name: dns, port: 53, protocol: UDP, targetPort: 5353}]}\n",
    );
    let known = || bed.ask(&["explain", "default/b", "svc:default/web", "dns/UDP", "-o", "json"]);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !known().status.success() {
        assert!(
            std::time::Instant::now() < until,
            "{}",
            String::from_utf8_lossy(&known().stdout)
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let live = &json(&bed, &["explain", "default/b", "svc:default/web", "dns/UDP"])[0];
    assert_eq!(
        (&live["verdict"], &live["backends"][0]["dst_port"]),
        (&"allow".into(), &5353.into())
    );
    assert!(live["generation"].is_u64(), "{live}");
    let output = bed.ask(&["explain", "default/nobody", "default/a", "53/UDP"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no pod or workload is named default/nobody"));

    // The policy changes: what was recorded stays, what holds now is said to differ.
    let before = bed.generation();
    bed.manifest("np", ISOLATE_B);
    bed.wait_newer(before);
    let explained = &json(&bed, &["explain", "--flow", &flow_id])[0];
    assert_eq!(
        (&explained["differs"], &explained["now"]["verdict"]),
        (&true.into(), &"deny".into())
    );
    assert_eq!(explained["flow"]["reasons"], *reasons, "{explained}");
    open.set_read_timeout(Some(std::time::Duration::from_millis(500)))
        .unwrap();
    assert!(echo(&mut open).is_err(), "the flow is cut at its next packet");
    let gone = bed.ask(&["explain", "--flow", &flow_id]);
    assert_eq!(
        gone.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&gone.stdout)
    );
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no flow and no recent drop"));

    // Who does not exist is not one who does nothing.
    for wrong in ["nope/x", "default", "a"] {
        for format in [&["-o", "json"][..], &[]] {
            let answer = bed.ask(&[&["flows", "--pod", wrong], format].concat());
            assert_eq!(answer.status.code(), Some(2), "{wrong}");
            let said = String::from_utf8([answer.stdout, answer.stderr].concat()).unwrap();
            assert!(
                said.contains(&format!("{wrong} is neither an address nor a pod")),
                "{said}"
            );
        }
    }
    assert_eq!(
        words(&bed, &["flows", "--pod", "192.0.2.77"]),
        "No flows and no drops.\n"
    );

    // Names and reasons do not need control.
    let table = words(&bed, &["flows", "--limit", "3"]);
    assert!(
        table.starts_with("ID ") && table.contains("DROP policy-ingress"),
        "{table}"
    );
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    let nothing = bed.ask(&["flows"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is `ringwall run` running?"));
}

#[test]
fn flows_and_drops_say_what_staged_policies_would_do() {
    if !may_run("flows_and_drops_say_what_staged_policies_would_do") {
        return;
    }
    let mut bed = Bed::new();
    bed.manifest("np", ONLY_A);
    bed.start();
    serve(&bed.b, POD_B, 80);
    let _open = connect(&bed.a, POD_B, 80).unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
    assert!(connect(&bed.outside, POD_B, 80).is_err(), "from outside");
    let text = words(&bed, &["flows", "--staged"]);
    assert!(text.contains("No policy is staged."), "{text}");

    let before = bed.generation();
    bed.manifest("staged", &STAGED.replace("OUTSIDE", OUTSIDE));
    bed.wait_for("state with the staged policies", |bed| bed.generation() > before);
    assert!(connect(&bed.a, POD_B, 80).is_ok(), "nothing of it is enforced");
    assert!(
        connect(&bed.outside, POD_B, 80).is_err(),
        "nothing of it is enforced"
    );

    assert!(words(&bed, &["status"]).contains("; 2 staged and not enforced"));

    let all = json(&bed, &["flows", "--staged", "--pod", POD_B, "--limit", "0"]);
    let (records, staged): (Vec<&Value>, Vec<&Value>) = all
        .iter()
        .partition(|it| it["kind"] == "flow" || it["kind"] == "drop");
    let (flows, drops): (Vec<&Value>, Vec<&Value>) = records.iter().partition(|it| it["kind"] == "flow");
    assert!(!flows.is_empty() && !drops.is_empty(), "{all:?}");
    for flow in &flows {
        assert_eq!(
            (&flow["pending"]["verdict"], &flow["pending"]["differs"]),
            (&"deny".into(), &true.into())
        );
        let reasons = &flow["pending"]["reasons"];
        assert_eq!(
            (&reasons[0]["policy"], &reasons[0]["effect"]),
            (&"default/silent".into(), &"isolated".into())
        );
        assert_eq!(
            (&reasons[1]["policy"], &reasons[1]["effect"]),
            (&"default/only-a".into(), &"isolated".into())
        );
        assert_eq!(flow["reasons"][1]["rule"], 0, "what is enforced");
    }
    for drop in &drops {
        assert_eq!(
            (&drop["pending"]["verdict"], &drop["pending"]["differs"]),
            (&"allow".into(), &true.into())
        );
    }
    let effect = |name: &str| {
        staged.iter().find(|it| it["staged"] == name).unwrap()["flows"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(
        effect("default/silent"),
        flows.len() as u64,
        "the drops are of somebody else"
    );
    assert_eq!(effect("default/only-a"), records.len() as u64);

    let text = words(&bed, &["flows", "--staged", "--pod", POD_B, "--limit", "0"]);
    for part in [
        "STAGED",
        "deny: egress isolated by default/silent, ingress isolated by default/only-a",
        "allow: egress open, ingress default/only-a rule 0",
        "StagedKubernetesNetworkPolicy default/only-a (set): ",
        "NetworkPolicy default/silent (set): ",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    // Enforced, it is as was said.
    bed.manifest(
        "staged",
        &STAGED
            .replace("OUTSIDE", OUTSIDE)
            .replace("Staged", "")
            .replace("  stagedAction: Set\n", "")
            .replace(
                "projectcalico.org/v3\nkind: Kubernetes",
                "networking.k8s.io/v1\nkind: ",
            )
            .replace(", annotations: {ringwall.io/mode: staged}", ""),
    );
    bed.remove_manifest("np");
    bed.wait_for("connection from outside", |bed| {
        connect(&bed.outside, POD_B, 80).is_ok()
    });
    assert!(connect(&bed.a, POD_B, 80).is_err());
}
