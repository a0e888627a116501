//! Classes that a policy makes: pods gain what no rule named before, and with that other cells in rows that are as they were. The
//! proof of the successor compares those cells.

use std::{collections::BTreeSet, sync::Arc};

use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, IdentityKind, Snapshot};
use ringwall_policy::{Cluster, Object};
use ringwall_prove::Checker;
use ringwall_source::decode::decode;
use serde_json::json;

use crate::{
    corruption::{answer, flows, identity},
    forge::{Forged, SECTIONS},
    generate::Flow,
    random::Random,
};

/// A cluster in which half of the pods have a label that no rule names, and the policy that names it.
fn before_and_after(tiers: bool, random: &mut Random) -> (Cluster, Cluster) {
    let mut cluster = crate::some_cluster(tiers, random);
    let pods: Vec<_> = cluster.pods.values().cloned().collect();
    for pod in pods {
        if random.percent(50) {
            let mut pod = (*pod).clone();
            pod.labels.insert("fresh".to_owned(), "yes".to_owned());
            cluster.insert(Object::Pod(pod));
        }
    }
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "fresh", "namespace": random.one(&["a", "b", "c"])},
        "spec": {"podSelector": {"matchLabels": {"fresh": "never"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"fresh": "yes"}}}]}]}});
    let decoded = decode(&policy).expect("it decodes").remove(0);
    let mut after = cluster.clone();
    after.insert(decoded.object);
    (cluster, after)
}

/// Whether an old row decides about a class that is new.
fn is_about_new_class(before: &Snapshot, after: &Snapshot, flow: &Flow) -> bool {
    let of = |snapshot: &Snapshot| Some((identity(snapshot, &flow.src)?.0, identity(snapshot, &flow.dst)?.0));
    let (Some(old), Some(new)) = (of(before), of(after)) else {
        return false;
    };
    let is_new = |old: u32, new: u32| old != new && new >= before.sizes().classes;
    new.1.kind == IdentityKind::Pod
        && old.1.ingress == new.1.ingress
        && new.1.ingress != 0
        && is_new(old.0.peer_class, new.0.peer_class)
}

#[test]
fn wrong_cells_of_classes_that_a_policy_makes_are_found() {
    let (mut classes, mut found, mut without_columns) = (0, 0, 0);
    let cells: Vec<usize> = ["row pages", "patterns", "palettes"]
        .into_iter()
        .map(|name| SECTIONS.iter().position(|it| *it == name).expect("a section"))
        .collect();
    for seed in crate::seeds(60) {
        let mut random = Random::new(seed);
        let (cluster, next) = before_and_after(seed % 2 == 1, &mut random);
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let mut update = |cluster: &Cluster, generation| {
            let compiled = compiler
                .update(cluster, Generation(generation))
                .expect("it compiles");
            Arc::new(Snapshot::from_image(&compiled.image))
        };
        let (before, after) = (update(&cluster, 1), update(&next, 2));
        let proven = || {
            let mut checker = Checker::new();
            checker
                .full(&cluster, &before)
                .unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            checker
        };
        let report = proven()
            .changed(&next, &after)
            .unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        if report.whole {
            continue;
        }
        let flows: Vec<Flow> = flows(&next, &mut random, 1500)
            .into_iter()
            .filter(|flow| is_about_new_class(&before, &after, flow))
            .collect();
        classes += usize::from(!flows.is_empty());
        let right: Vec<String> = flows.iter().map(|flow| answer(&after, flow)).collect();
        let original = Forged::of(&after.image().to_bytes());
        // Rows that did not get the columns of the new classes: nothing of theirs differs from before.
        let mut stale = original.clone();
        stale.take(cells[0], &Forged::of(&before.image().to_bytes()));
        let mut tried = BTreeSet::new();
        for round in 0..60 {
            let mut forged = original.clone();
            if round == 0 {
                forged = stale.clone();
            } else if !forged.change(cells[round % cells.len()], &mut random) {
                continue;
            }
            let bytes = forged.sealed();
            if !tried.insert(bytes.clone()) {
                continue;
            }
            let Ok(wrong) = Snapshot::open(&bytes) else {
                continue;
            };
            let changed = flows
                .iter()
                .zip(&right)
                .find(|(flow, right)| answer(&wrong, flow) != **right);
            let Some((flow, right)) = changed else { continue };
            assert!(
                proven().changed(&next, &Arc::new(wrong)).is_err(),
                "seed {seed}: not found: {flow:?} is not {right}"
            );
            found += 1;
            without_columns += usize::from(round == 0);
        }
    }
    assert!(
        classes > 5 && found > 50 && without_columns > 5,
        "{classes} clusters with new classes, {found} wrong cells, {without_columns} times no columns"
    );
}
