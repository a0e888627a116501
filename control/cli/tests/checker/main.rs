//! The checker finds no difference in right snapshots and every difference in wrong ones.
//!
//! `CLUSTERS=5000 cargo test --release -p ringwall --no-default-features --test checker` looks longer; `SEED=N` looks at
//! one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

#[allow(dead_code)] // shared with another test, which uses more of it
#[path = "../compile_vs_reference/compare.rs"]
mod compare;
mod confirm;
mod corruption;
mod forge;
mod gained;
#[allow(dead_code)]
#[path = "../compile_vs_reference/generate.rs"]
mod generate;
mod history;
mod mistakes;
#[allow(dead_code)]
#[path = "../compile_vs_reference/mutate.rs"]
mod mutate;
#[allow(dead_code)]
#[path = "../compile_vs_reference/random.rs"]
mod random;

use std::sync::Arc;

use compare::{Compiled, Outcomes, first_difference};
use random::Random;
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::Cluster;
use ringwall_prove::{Checker, Difference, Report};

fn seeds(default: u64) -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        return seed..seed + 1;
    }
    let count = std::env::var("CLUSTERS").map(|count| count.parse().expect("CLUSTERS is a number"));
    0..count.unwrap_or(default)
}

fn snapshot(cluster: &Cluster) -> Arc<Snapshot> {
    let image = compile(cluster, Generation(7), &EpochKey::OFFLINE).expect("the cluster compiles");
    Arc::new(Snapshot::open(&image.bytes).expect("the image opens"))
}

fn check(cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>> {
    Checker::new().full(cluster, snapshot)
}

/// A random cluster, with policies of ordered kinds or with NetworkPolicies alone.
fn some_cluster(tiers: bool, random: &mut Random) -> Cluster {
    if tiers {
        generate::with_tiers(random)
    } else {
        generate::cluster(random)
    }
}

#[test]
fn right_snapshots_are_proven() {
    let mut sum = Report::default();
    for seed in seeds(600) {
        let cluster = some_cluster(seed % 2 == 1, &mut Random::new(seed));
        match check(&cluster, &snapshot(&cluster)) {
            Ok(report) => {
                assert!(report.whole && report.addresses > 0, "seed {seed}: {report:?}");
                sum.pairs += report.pairs;
                sum.questions += report.questions;
            }
            Err(difference) => panic!("seed {seed}: {difference}\n{cluster:#?}"),
        }
    }
    assert!(
        sum.pairs > 10_000 && sum.questions > 20_000,
        "asked too little: {sum:?}"
    );
}

fn all_mistakes() -> impl Iterator<Item = &'static mistakes::Mistaken> {
    mutate::MISTAKES
        .iter()
        .chain(mistakes::MISTAKES)
        .chain(mistakes::ORDERED)
}

/// A compiler with a mistake is a right one that reads other objects: what the evaluator sees on any of a few hundred
/// flows, the checker finds, and the packet that it names is decided as it says.
#[test]
fn wrong_compilers_are_found() {
    let mut missed = Vec::new();
    for (name, mistake) in all_mistakes() {
        let tiers = mistakes::ORDERED.iter().any(|(ordered, _)| name == ordered);
        let (mut seen, mut found, mut verdicts) = (0, 0, 0);
        for seed in seeds(400) {
            if seed >= 12 && found > 0 && (verdicts > 0 || name.starts_with("reasons")) {
                break;
            }
            let mut random = Random::new(seed);
            let cluster = some_cluster(tiers, &mut random);
            let mut misread = cluster.clone();
            mistake(&mut misread);
            let compiled = Compiled::of(&misread);
            let flows = generate::flows(&cluster, &mut random, 200);
            let visible = first_difference(&cluster, &compiled, &flows, &mut Outcomes::default());
            match check(&cluster, &compiled.snapshot) {
                Ok(_) => assert!(
                    visible.is_none(),
                    "seed {seed}, {name}: not found: {}",
                    visible.unwrap()
                ),
                Err(difference) => {
                    confirm::confirm(&cluster, &difference);
                    // Who an address is may differ where no policy sees it yet.
                    let shown = difference.wanted != difference.got;
                    assert!(
                        shown || difference.what.contains("the snapshot "),
                        "seed {seed}, {name}: {difference}"
                    );
                    found += 1;
                    verdicts += u32::from(difference.wanted.allow != difference.got.allow);
                }
            }
            seen += u32::from(visible.is_some());
        }
        if found == 0 || (verdicts == 0 && !name.starts_with("reasons")) {
            missed.push((*name, seen, found, verdicts));
        }
    }
    assert!(
        missed.is_empty(),
        "never found, or never with a verdict: {missed:?}"
    );
}

/// What the sender of a denied packet gets decides no packet, so no flow shows it: the checker compares it by itself.
#[test]
fn a_wrong_answer_to_denied_packets_is_found() {
    for tiers in [false, true] {
        let mut found = 0;
        for seed in 0..60 {
            let cluster = some_cluster(tiers, &mut Random::new(seed));
            let mut misread = cluster.clone();
            mistakes::answers(&mut misread);
            found += u32::from(check(&cluster, &snapshot(&misread)).is_err());
        }
        assert!(found > 30, "{found} of 60");
    }
}
