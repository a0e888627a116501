//! The compiled snapshot answers what the literal evaluator answers: verdicts and reasons, over random clusters whose
//! domains are so small that everything collides with everything.
//!
//! `CLUSTERS=5000 cargo test --release -p ringwall --test compile_vs_reference` looks longer; `SEED=N` looks at one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

mod compare;
mod events;
mod generate;
mod incremental;
mod mutate;
mod random;
mod readings;
mod tiers;

use std::collections::BTreeMap;

use compare::{Compiled, Outcomes, first_difference};
use generate::{cluster, flows};
use random::Random;

fn clusters(default: u64) -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        return seed..seed + 1;
    }
    let count = std::env::var("CLUSTERS").map(|count| count.parse().expect("CLUSTERS is a number"));
    0..count.unwrap_or(default)
}

#[test]
fn snapshots_answer_what_the_evaluator_answers() {
    let mut outcomes = Outcomes::default();
    for seed in clusters(250) {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let flows = flows(&cluster, &mut random, 3000);
        let compiled = Compiled::of(&cluster);
        if let Some(difference) = first_difference(&cluster, &compiled, &flows, &mut outcomes) {
            let (cluster, difference) = mutate::shrink(cluster, difference);
            panic!("seed {seed}: {difference}\nin the smallest cluster that shows it:\n{cluster:#?}");
        }
    }
    if std::env::var("SEED").is_err() {
        outcomes.assert_complete();
    }
}

#[test]
fn wrong_compilers_are_found() {
    // A compiler with a mistake is a right one that reads other objects: each of these must be seen.
    let mut missed = Vec::new();
    for (name, mistake) in mutate::MISTAKES {
        let found = (0..400).any(|seed| {
            let mut random = Random::new(seed);
            let cluster = cluster(&mut random);
            let mut misread = cluster.clone();
            mistake(&mut misread);
            if misread == cluster {
                return false;
            }
            let compiled = Compiled::of(&misread);
            let flows = flows(&cluster, &mut random, 500);
            first_difference(&cluster, &compiled, &flows, &mut Outcomes::default()).is_some()
        });
        if !found {
            missed.push(*name);
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn equal_states_give_equal_bytes_whatever_their_history() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let first = Compiled::of(&cluster);
        // The same objects, inserted in another order, with others that came and went.
        let shuffled = mutate::rebuilt(&cluster, &mut random);
        let second = Compiled::of(&shuffled);
        assert_eq!(first.image.bytes, second.image.bytes, "seed {seed}");
        assert_eq!(first.image.hash, second.image.hash, "seed {seed}");
    }
}

#[test]
fn hash_says_what_is_meant() {
    let mut hashes: BTreeMap<[u8; 32], u64> = BTreeMap::new();
    let (mut same, mut alike) = (0, 0);
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let first = Compiled::of(&cluster);
        assert_eq!(first.snapshot.hash(), first.image.hash);
        // Another way to say the same.
        let reworded = mutate::reworded(&cluster);
        assert_eq!(
            first.image.hash,
            Compiled::of(&reworded).image.hash,
            "seed {seed}"
        );
        // Nearly the same, and yet not.
        for (name, mistake) in mutate::MISTAKES {
            let mut misread = cluster.clone();
            mistake(&mut misread);
            let second = Compiled::of(&misread);
            if second.image.hash == first.image.hash {
                alike += 1;
                for flow in flows(&cluster, &mut random, 150) {
                    assert_eq!(
                        first.answer(&flow),
                        second.answer(&flow),
                        "seed {seed}, {name}: {flow:?}"
                    );
                }
            }
        }
        if let Some(other) = hashes.insert(first.image.hash, seed) {
            // Clusters without pods, say. Equal hashes: equal answers.
            same += 1;
            let second = Compiled::of(&generate::cluster(&mut Random::new(other)));
            for flow in flows(&cluster, &mut random, 500) {
                assert_eq!(
                    first.answer(&flow),
                    second.answer(&flow),
                    "seeds {seed} and {other}: {flow:?}"
                );
            }
        }
    }
    assert!(same < 20, "{same} of 200 clusters mean the same as another");
    let pairs = 200 * mutate::MISTAKES.len();
    assert!(
        alike > 0 && alike < pairs * 9 / 10,
        "{alike} of {pairs} have one hash"
    );
}

#[test]
fn epochs_change_with_decisions_and_with_nothing_else() {
    let mut changed = 0;
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let next = mutate::step(&cluster, &mut random);
        let (before, after) = (Compiled::of(&cluster), Compiled::of(&next));
        let flows = flows(&cluster, &mut random, 1500);
        changed += compare::decisions_that_changed(&before, &after, &flows, seed);
        // One aspect of everything changes: labels, port names, nodes, rules.
        for (_, change) in mutate::MISTAKES {
            let mut next = cluster.clone();
            change(&mut next);
            let after = Compiled::of(&next);
            changed += compare::decisions_that_changed(&before, &after, &flows[..200], seed);
        }
    }
    assert!(
        changed > 100,
        "only {changed} decisions changed: the test looks at too little"
    );
}

#[test]
fn epochs_of_others_stay() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let before = Compiled::of(&cluster);
        let (next, key) = mutate::with_another_pod(&cluster);
        let after = Compiled::of(&next);
        for name in cluster.pods.keys() {
            let find = |compiled: &Compiled| {
                let endpoint = compiled.snapshot.find_endpoint(&name.namespace, &name.name)?;
                Some(endpoint.identity.epoch)
            };
            assert_eq!(
                find(&before),
                find(&after),
                "seed {seed}: {name} changed because {key} came"
            );
        }
    }
}
