//! Dependencies between the crates point one way: what may be used is written in `control/DESIGN.md`, and here.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Each crate of `control/` and what it may use of this workspace outside of its tests.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("policy", &[]),
    ("evaluate", &["policy"]),
    ("compile", &["dataplane", "policy"]),
    ("prove", &["dataplane", "policy"]),
    ("replay", &["dataplane"]),
    ("messages", &["policy"]),
    ("cni", &["messages"]),
    ("process", &["config", "messages"]),
    ("source", &["config", "messages", "policy", "process"]),
    (
        "analyse",
        &["compile", "dataplane", "evaluate", "policy", "source"],
    ),
    (
        "controller",
        &[
            "analyse",
            "compile",
            "config",
            "dataplane",
            "messages",
            "policy",
            "process",
            "prove",
            "source",
        ],
    ),
    (
        "appliance",
        &[
            "bpf",
            "config",
            "dataplane",
            "messages",
            "policy",
            "process",
            "xsk",
        ],
    ),
];

/// What each crate of the workspace uses of it, without `ringwall-`.
fn used() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let short = |name: &Value| Some(name.as_str()?.strip_prefix("ringwall-")?.to_owned());
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter_map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let outside_of_tests = dependencies.filter(|dependency| dependency["kind"] != "dev");
            Some((
                short(&package["name"])?,
                outside_of_tests
                    .filter_map(|dependency| short(&dependency["name"]))
                    .collect(),
            ))
        })
        .collect()
}

#[test]
fn crates_use_what_they_may_and_nothing_else() {
    let used = used();
    for (name, may_use) in MAY_USE {
        let may_use = may_use.iter().map(ToString::to_string).collect();
        assert_eq!(used[name], may_use, "ringwall-{name}");
    }
}

#[test]
fn every_crate_of_the_control_side_is_in_the_list() {
    let folders = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap();
    let crates: BTreeSet<String> = folders
        .map(|folder| folder.unwrap())
        .filter(|folder| folder.path().join("Cargo.toml").exists())
        .map(|folder| folder.file_name().into_string().unwrap())
        .filter(|name| name != "cli")
        .collect();
    let listed = MAY_USE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(crates, listed);
}

/// What a crate uses and what that uses, and so on.
fn reachable(used: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(name) = next.pop() {
        next.extend(
            used[&name]
                .iter()
                .filter(|name| reached.insert((*name).clone()))
                .cloned(),
        );
    }
    reached
}

#[test]
fn the_proof_and_the_evaluator_cannot_reach_the_compiler() {
    let used = used();
    let proof = reachable(&used, "prove");
    assert!(
        !proof.contains("compile") && !proof.contains("evaluate"),
        "{proof:?}"
    );
    let evaluator = reachable(&used, "evaluate");
    assert_eq!(evaluator, BTreeSet::from(["policy".to_owned()]));
}
