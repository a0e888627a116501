//! How long a difference takes, over synthetic clusters. Not a pass or fail.

use std::{sync::Arc, time::Instant};

use ringwall_analyse::refine::{Compiled, difference};
use ringwall_policy::{Cluster, NetworkPolicy, Object, ObjectKey, ObjectRef, Selector};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{Spec, Synthetic};

fn synthetic(policies: usize, pods: usize, namespaces: usize) -> Cluster {
    let synthetic = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
    let mut cluster = Cluster::default();
    for object in synthetic.objects() {
        for decoded in decode(&object).unwrap() {
            cluster.insert(decoded.object);
        }
    }
    cluster.supply_namespaces();
    cluster
}

fn policies(cluster: &Cluster) -> Vec<Arc<NetworkPolicy>> {
    cluster.policies.values().cloned().collect()
}

/// Ten policies gone, ten with other subjects.
fn some(cluster: &Cluster) -> Cluster {
    let mut edited = cluster.clone();
    for (index, policy) in policies(cluster).iter().enumerate().step_by(100) {
        edited.remove(&ObjectRef::NetworkPolicy(policy.key.clone()));
        if let Some(other) = policies(cluster).get(index + 50) {
            let mut other = (**other).clone();
            other.subjects = policy.subjects.clone();
            edited.insert(Object::NetworkPolicy(other));
        }
    }
    edited
}

/// Every namespace denies everything by default.
fn denying(cluster: &Cluster) -> Cluster {
    let mut edited = cluster.clone();
    let any = policies(cluster).remove(0);
    for namespace in cluster.namespaces.keys() {
        let mut policy = (*any).clone();
        policy.key = ObjectKey {
            namespace: namespace.clone(),
            name: "zz-deny".to_owned(),
        };
        policy.subjects = Selector::default();
        policy.ingress = Some(Vec::new());
        policy.egress = Some(Vec::new());
        edited.insert(Object::NetworkPolicy(policy));
    }
    edited
}

/// No policies at all.
fn open(cluster: &Cluster) -> Cluster {
    let mut edited = cluster.clone();
    for policy in policies(cluster) {
        edited.remove(&ObjectRef::NetworkPolicy(policy.key.clone()));
    }
    edited
}

#[test]
#[ignore = "figures: cargo test --release -p ringwall --no-default-features --test refine speed -- --ignored --nocapture"]
fn speed() {
    let cluster = synthetic(1_000, 10_000, 100);
    for (what, edit) in [
        ("nothing", Cluster::clone as fn(&Cluster) -> Cluster),
        ("20 policies", some),
        ("a default deny everywhere", denying),
        ("no policies", open),
    ] {
        let other = edit(&cluster);
        let mut times = Vec::new();
        let mut said = String::new();
        for _ in 0..5 {
            let begin = Instant::now();
            let (a, b) = (Compiled::of(&cluster).unwrap(), Compiled::of(&other).unwrap());
            let compiled = begin.elapsed();
            let found = difference(&a, &b).unwrap();
            times.push((begin.elapsed(), compiled));
            let names: usize = found.regions.iter().map(|it| it.src.len() + it.dst.len()).sum();
            said = format!(
                "{} ends, {} classes, {} regions, {names} names in them",
                found.ends.all.len(),
                found.ends.classes.len(),
                found.regions.len()
            );
        }
        times.sort();
        let (total, compiled) = times[times.len() / 2];
        println!(
            "{} policies, {} pods, {what} changed: {total:.0?} (of it {compiled:.0?} compiling), {:.0?} to {:.0?}; {said}",
            cluster.policies.len(),
            cluster.pods.len(),
            times[0].0,
            times[times.len() - 1].0
        );
    }
}
