//! `ringwall coverage` as a program.
#![allow(clippy::unwrap_used, clippy::panic)] // a test says what failed by panicking

mod ran;

use std::path::Path;

use ran::{Ran, ringwall};
use ringwall_testbed::synthetic::{POD_CIDRS, Spec, Synthetic};
use serde_json::Value;

fn coverage(args: &[&str]) -> Ran {
    ringwall(&[&["coverage"], args].concat())
}

fn config(folder: &Path, networks: &str) -> String {
    let file = folder.join("ringwall.yaml");
    let text = format!(
        "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: test\nmode: enforce\n\
         cluster: {{podCIDRs: [{networks}]}}\nsource: {{manifests: cluster}}\n\
         interfaces:\n- {{name: lan0, side: inside}}\n- {{name: lan1, side: outside}}\n\
         wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n"
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_gateway_says_what_it_cannot_see() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("cluster");
    let cluster = Synthetic::new(Spec::sized(40, 300, 8)).unwrap();
    cluster.write(&manifests).unwrap();
    let manifests = manifests.to_str().unwrap();
    let config = config(dir.path(), &POD_CIDRS.join(", "));
    let ran = coverage(&["--manifests", manifests, "--config", &config]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let total = ran.out.lines().find(|line| line.starts_with("TOTAL")).unwrap();
    assert_eq!(total.split_whitespace().nth(1), Some("300"), "{total}");
    for word in [
        "same-node (",
        "host-network (",
        "finished (",
        "kube-system",
        "Masqueraded",
        "more; -o json",
    ] {
        assert!(ran.out.contains(word), "no {word} in\n{}", ran.out);
    }

    // The table adds up to the objects.
    let ran = coverage(&["--manifests", manifests, "--config", &config, "-o", "json"]);
    let lines: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &'static str| lines.iter().filter(move |line| line["type"] == kind);
    let in_state = |state: &str| of("pod").filter(|pod| pod["state"] == state).count() as u64;
    let total = of("total").next().unwrap();
    for state in ["enforced", "partly", "not", "idle"] {
        assert_eq!(total[state].as_u64(), Some(in_state(state)), "{state}");
    }
    assert_eq!(
        (of("pod").count(), of("policy").count(), of("namespace").count()),
        (300, 40, 8)
    );
    assert_eq!(in_state("not"), 18, "six in a hundred are on the host network");

    let strict = |more: &[&str]| {
        coverage(&[&["--manifests", manifests, "--config", &config, "--strict"], more].concat()).status
    };
    assert_eq!(strict(&[]), 1);
    assert_eq!(strict(&["--accept", "host-network"]), 1);
    let all = [
        "--accept",
        "host-network",
        "--accept",
        "same-node",
        "--accept",
        "selects-unenforced",
    ];
    assert_eq!(strict(&all), 0);
}

#[test]
fn what_cannot_be_asked_is_status_2_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "10.0.0.0/16");
    let cases: [(&[&str], &str); 3] = [
        (&[], "--manifests"),
        (&["--config", &config], "is `ringwall run` running"),
        (
            &["--manifests", ".", "--strict", "--accept", "laziness"],
            "reasons are: host-network",
        ),
    ];
    for (args, what) in cases {
        let ran = coverage(args);
        assert_eq!(ran.status, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(what), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "");
    }
}
