//! Replays what the fuzzers have found worth keeping, and every input that once found something.
#![allow(clippy::panic, clippy::unwrap_used)] // in tests a failed unwrap is the failure

use std::{
    fs, panic,
    path::{Path, PathBuf},
};

use ringwall_fuzz::{TARGETS, programs};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The inputs of a target that are kept, in order of their names.
fn inputs(name: &str) -> Vec<PathBuf> {
    let mut inputs: Vec<PathBuf> = ["corpus", "regressions"]
        .iter()
        .filter_map(|folder| fs::read_dir(here(folder).join(name)).ok())
        .flat_map(|files| files.map(|file| file.unwrap().path()))
        .collect();
    inputs.sort();
    inputs
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = inputs(name);
    assert!(!inputs.is_empty(), "no corpus");
    for input in &inputs {
        let bytes = fs::read(input).unwrap();
        if let Err(why) = panic::catch_unwind(|| (target.run)(&bytes)) {
            eprintln!("the input: {}", input.display());
            panic::resume_unwind(why);
        }
    }
}

#[test]
fn capture() {
    replay("capture");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn flow_memory() {
    replay("flow_memory");
}

#[test]
fn headers() {
    replay("headers");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn manifests() {
    replay("manifests");
}

#[test]
fn messages() {
    replay("messages");
}

#[test]
fn programs() {
    if !programs::is_possible() {
        assert!(
            std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
            "REQUIRE_ROOT=1, but not root"
        );
        println!("SKIPPED: needs root");
        return;
    }
    replay("programs");
}

#[test]
fn turn() {
    replay("turn");
}

/// CI does not build the fuzzers: that would be a second build of everything.
#[test]
fn every_target_has_its_fuzzer_and_a_small_corpus() {
    let manifest = fs::read_to_string(here("libfuzzer/Cargo.toml")).unwrap();
    let tests = include_str!("corpora.rs");
    let mut total = 0;
    for target in TARGETS {
        let name = target.name;
        let fuzzer = fs::read_to_string(here(&format!("libfuzzer/src/{name}.rs"))).unwrap();
        assert!(
            fuzzer.contains(&format!("ringwall_fuzz::{name}::run(data)")),
            "{name}"
        );
        assert!(manifest.contains(&format!("path = \"src/{name}.rs\"")), "{name}");
        assert!(tests.contains(&format!("    replay(\"{name}\");")), "{name}");
        let inputs = inputs(name);
        assert!(inputs.len() >= 3, "{name} has {} inputs", inputs.len());
        total += inputs
            .iter()
            .map(|input| fs::metadata(input).unwrap().len())
            .sum::<u64>();
    }
    let fuzzers = fs::read_dir(here("libfuzzer/src")).unwrap().count();
    assert_eq!(fuzzers, TARGETS.len());
    assert!(total < 1 << 20, "{total} bytes are too much for a repository");
}
