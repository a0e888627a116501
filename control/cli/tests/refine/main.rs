//! A difference speaks of a packet if and only if two literal evaluators disagree about it: over random pairs of
//! clusters whose domains are so small that everything collides.
//!
//! `CLUSTERS=2000 cargo test --release -p ringwall --no-default-features --test refine` looks longer; `SEED=N` looks at
//! one pair.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

mod assertions;
#[path = "../compile_vs_reference/generate.rs"]
#[allow(dead_code, reason = "flows are the other test's")]
mod generate;
mod oracle;
#[path = "../compile_vs_reference/random.rs"]
#[allow(dead_code, reason = "shared with the other test")]
mod random;
mod speed;

use std::collections::BTreeMap;

use oracle::{Oracle, edit, far_apart, packets, rename};
use random::Random;
use ringwall_analyse::refine::{Compiled, Difference, Family, Pairs, Region, What, difference};
use ringwall_policy::Cluster;

fn seeds(default: u64) -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        return seed..seed + 1;
    }
    let count = std::env::var("CLUSTERS").map(|count| count.parse().expect("CLUSTERS is a number"));
    0..count.unwrap_or(default)
}

/// Two clusters: unrelated, far apart, or one edited.
fn pair(seed: u64) -> (Cluster, Cluster, Random) {
    let mut random = Random::new(seed);
    if random.percent(25) {
        let (a, b, _) = far_apart(&mut random);
        return (a, b, random);
    }
    let any = |random: &mut Random| match random.percent(50) {
        true => generate::with_tiers(random),
        false => generate::cluster(random),
    };
    let a = any(&mut random);
    let b = if random.percent(40) {
        any(&mut random)
    } else {
        edit(&a, &mut random)
    };
    let sources = &mut random.branch();
    if sources.percent(50) {
        let [a, b] = [a, b].map(|mut cluster| {
            generate::ask_for_source_ports(&mut cluster, sources);
            cluster
        });
        return (a, b, random);
    }
    (a, b, random)
}

fn with_difference<T>(a: &Cluster, b: &Cluster, then: impl FnOnce(&Difference<'_>) -> T) -> T {
    let (a, b) = (
        Compiled::of(a).expect("compiles"),
        Compiled::of(b).expect("compiles"),
    );
    then(&difference(&a, &b).expect("the snapshots hold"))
}

#[test]
fn a_packet_is_covered_if_and_only_if_the_evaluators_disagree() {
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds(45) {
        let (a, b, mut random) = pair(seed);
        with_difference(&a, &b, |found| {
            let oracle = Oracle::new(&a, &b);
            oracle.assert_ends(found, seed);
            for packet in packets(found, &a, &b, &mut random, 2500) {
                let covering: Vec<&Region> = found
                    .regions
                    .iter()
                    .filter(|region| packet.is_covered(region, &found.ends))
                    .collect();
                let wanted = oracle.judge(&packet, &found.ends);
                let said = || format!("seed {seed}: {}: {covering:#?}", packet.words(&found.ends));
                match (&wanted.change, covering.as_slice()) {
                    (None, []) => {}
                    (Some((from, policies)), [region]) => {
                        assert_eq!(region.from, *from, "{}", said());
                        assert!(region.policies.iter().map(|it| &**it).eq(policies), "{}", said());
                    }
                    (wanted, _) => panic!("wanted {wanted:?}, {}", said()),
                }
                for what in wanted.seen {
                    *outcomes.entry(what).or_default() += 1;
                }
                if covering.iter().any(|region| region.family.is_some()) {
                    *outcomes.entry("one family").or_default() += 1;
                }
            }
        });
    }
    if std::env::var("SEED").is_err() {
        for what in [
            "changes",
            "same",
            "closed",
            "opened",
            "self",
            "node on one side",
            "node on both",
            "IPv6",
            "IPv4",
            "address to pod",
            "pod to address",
            "address to address",
            "template",
            "without address",
            "portless",
            "type of ICMP",
            "port 0",
            "one family",
            "not from port 53",
        ] {
            assert!(
                outcomes.get(what).is_some_and(|count| *count >= 3),
                "{what} never came: {outcomes:#?}"
            );
        }
    }
}

#[test]
fn regions_are_disjoint_maximal_in_ports_and_in_order() {
    let mut regions = 0;
    for seed in seeds(80) {
        let (a, b, _) = pair(seed);
        with_difference(&a, &b, |found| {
            regions += found.regions.len();
            for region in &found.regions {
                assert!(!region.src.is_empty() && !region.dst.is_empty() && !region.ports.is_empty());
                assert!(region.src.is_sorted() && region.dst.is_sorted(), "seed {seed}");
                let apart = |pair: &[(u16, u16)]| u32::from(pair[0].1) + 1 < u32::from(pair[1].0);
                assert!(region.ports.windows(2).all(apart), "seed {seed}: {region:?}");
                assert!(region.sources.windows(2).all(apart), "seed {seed}: {region:?}");
                let real = |src: u32| region.dst.iter().any(|dst| !found.ends.is_itself(src, *dst));
                assert!(
                    region.src.iter().any(|src| real(*src)),
                    "seed {seed}: says nothing: {region:?}"
                );
            }
            for (index, one) in found.regions.iter().enumerate() {
                for other in found.regions.iter().skip(index + 1) {
                    // One pair, one protocol and one reason: one list of ports from each source port.
                    let meet = |family: Family| {
                        [one, other]
                            .iter()
                            .all(|region| region.family.is_none_or(|own| own == family))
                    };
                    let same_pairs = one.src.iter().any(|src| {
                        other.src.binary_search(src).is_ok()
                            && one.dst.iter().any(|dst| {
                                other.dst.binary_search(dst).is_ok() && !found.ends.is_itself(*src, *dst)
                            })
                    });
                    if !same_pairs || one.service != other.service || !Family::BOTH.into_iter().any(meet) {
                        continue;
                    }
                    let overlap = |one: &[(u16, u16)], other: &[(u16, u16)]| {
                        one.iter().any(|a| other.iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
                    };
                    let from_same = overlap(&one.sources, &other.sources);
                    assert!(
                        one.from != other.from
                            || one.policies != other.policies
                            || one.family != other.family
                            || one.ports != other.ports && !from_same,
                        "seed {seed}: ports are not joined: {one:?} {other:?}"
                    );
                    assert!(
                        !(from_same && overlap(&one.ports, &other.ports)),
                        "seed {seed}: {one:?} {other:?}"
                    );
                }
            }
            // Same destinations, same change: one line.
            let key = |region: &Region| {
                (
                    region.dst.to_vec(),
                    region.family,
                    region.service,
                    region.ports.clone(),
                    region.sources.clone(),
                    region.from,
                    region.policies.clone(),
                )
            };
            let distinct: std::collections::BTreeSet<_> = found.regions.iter().map(key).collect();
            assert_eq!(distinct.len(), found.regions.len(), "seed {seed}");
        });
    }
    assert!(
        regions > 500 || std::env::var("SEED").is_ok(),
        "only {regions} regions"
    );
}

/// What a region says but for its ends.
fn change(region: &Region) -> impl Ord + use<> {
    let Region {
        ports,
        sources,
        policies,
        ..
    } = region.clone();
    (
        region.service,
        region.family,
        region.from,
        ports,
        sources,
        policies,
    )
}

#[test]
fn regions_are_as_large_as_the_order_of_merging_allows() {
    let mut joined = 0;
    for seed in seeds(80) {
        let (a, b, _) = pair(seed);
        with_difference(&a, &b, |found| {
            let place = |region: &Region| (region.src.clone(), region.dst.clone(), change(region));
            for pair in found.regions.windows(2) {
                assert!(place(&pair[0]) < place(&pair[1]), "seed {seed}: {pair:#?}");
            }
            // Destinations before sources: a source has all that it has of one change in one region.
            let mut sources = std::collections::BTreeSet::new();
            for region in &found.regions {
                joined += usize::from(region.src.len() > 1 && region.dst.len() > 1);
                for src in &*region.src {
                    assert!(sources.insert((*src, change(region))), "seed {seed}: {region:?}");
                }
            }
        });
    }
    assert!(
        joined > 150 || std::env::var("SEED").is_ok(),
        "only {joined} regions"
    );
}

#[test]
fn totals_are_what_counting_every_pair_finds() {
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds(60) {
        let (a, b, what) = far_apart(&mut Random::new(seed));
        with_difference(&a, &b, |found| {
            let mut pairs: BTreeMap<(u32, u32), [bool; 2]> = BTreeMap::new();
            for region in &found.regions {
                let dst = |src: &u32| region.dst.iter().map(|dst| (*src, *dst)).collect::<Vec<_>>();
                for (src, dst) in region.src.iter().flat_map(dst) {
                    if !found.ends.is_itself(src, dst) {
                        pairs.entry((src, dst)).or_default()[usize::from(!region.from)] = true;
                    }
                }
            }
            let namespace = |end: u32| match &found.ends.all[end as usize].what {
                What::Endpoint(key) => Some(key.namespace.as_str()),
                What::Range { .. } => None,
            };
            let mut wanted: BTreeMap<[Option<&str>; 2], Pairs> = BTreeMap::new();
            for ((src, dst), [closed, opened]) in pairs {
                let sums = wanted.entry([namespace(src), namespace(dst)]).or_default();
                sums.closed += u64::from(closed);
                sums.opened += u64::from(opened);
                *outcomes.entry(what).or_default() += 1;
            }
            let got: BTreeMap<_, _> = found.totals.pairs().collect();
            assert_eq!(got, wanted, "seed {seed}: {what}");
        });
    }
    for what in ["no policies", "other labels", "empty", "other places"] {
        let came = outcomes.get(what).is_some_and(|count| *count > 30);
        assert!(
            came || std::env::var("SEED").is_ok(),
            "{what} never came: {outcomes:?}"
        );
    }
}

/// Regions in words, in order of the words.
fn spoken(found: &Difference<'_>, flip: bool) -> Vec<String> {
    let end = |ends: &[u32]| {
        let names: Vec<String> = found.ends.names(ends).map(ToString::to_string).collect();
        let mut words = names;
        words.sort();
        words.extend(found.ends.networks(ends).iter().map(ToString::to_string));
        words.join(" ")
    };
    let mut lines: Vec<String> = found
        .regions
        .iter()
        .map(|region| {
            format!(
                "{} -> {} {:?} {:?} {:?} {:?} {} {:?}",
                end(&region.src),
                end(&region.dst),
                region.family,
                region.service,
                region.ports,
                region.sources,
                region.from != flip,
                region.policies
            )
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn nothing_changes_between_a_cluster_and_itself_and_back_is_the_mirror() {
    let mut changes = 0;
    for seed in seeds(80) {
        let (a, b, _) = pair(seed);
        with_difference(&a, &a.clone(), |found| {
            assert_eq!(found.regions, [], "seed {seed}");
            assert_eq!(found.one_sided, [], "seed {seed}");
        });
        let there = with_difference(&a, &b, |found| spoken(found, false));
        let back = with_difference(&b, &a, |found| spoken(found, true));
        changes += there.len();
        assert_eq!(there, back, "seed {seed}");
    }
    assert!(
        changes > 500 || std::env::var("SEED").is_ok(),
        "only {changes} changes"
    );
}

#[test]
fn names_and_the_order_in_which_objects_came_do_not_matter() {
    let mut changes = 0;
    for seed in seeds(80) {
        let (a, b, mut random) = pair(seed);
        let found = with_difference(&a, &b, |found| spoken(found, false));
        changes += found.len();
        let (c, d) = (rename(&a, &mut random), rename(&b, &mut random));
        let again = with_difference(&c, &d, |found| spoken(found, false));
        let back: Vec<String> = {
            let mut lines: Vec<String> = again.iter().map(|line| oracle::renamed_line(line)).collect();
            lines.sort();
            lines
        };
        assert_eq!(found, back, "seed {seed}");
    }
    assert!(
        changes > 500 || std::env::var("SEED").is_ok(),
        "only {changes} changes"
    );
}
