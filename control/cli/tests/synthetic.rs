//! The synthetic clusters of the benchmarks are valid: every object, and every object of every event, passes the strict
//! decoder without a fault or a note.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::{Cluster, Object};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{EventKind, Spec, Synthetic};
use serde_json::Value;

fn decoded(object: &Value) -> Object {
    let mut decoded = decode(object).unwrap_or_else(|error| panic!("{error:?}: {object}"));
    assert_eq!(decoded.len(), 1, "{object}");
    let decoded = decoded.remove(0);
    assert_eq!(decoded.notes, [], "{object}");
    if let Object::NetworkPolicy(policy) = &decoded.object {
        assert_eq!(policy.faults, [], "{object}");
    }
    decoded.object
}

/// Every corner of the generator on.
fn corners(policies: usize, pods: usize, namespaces: usize) -> Spec {
    let mut spec = Spec::sized(policies, pods, namespaces);
    spec.dual_stack = true;
    spec.full = true;
    spec.ranges = 0.4;
    spec.named = 0.4;
    spec.blocks = 0.4;
    spec.excepts = 0.7;
    spec.expressions = 0.5;
    spec.churn.namespace = 0.05;
    spec.churn.policy = 0.1;
    spec
}

#[test]
fn every_object_and_event_passes_the_strict_decoder() {
    let mut synthetic = Synthetic::new(corners(300, 600, 20)).unwrap();
    let mut cluster = Cluster::default();
    for object in synthetic.objects() {
        cluster.insert(decoded(&object));
    }
    for _ in 0..3_000 {
        let event = synthetic.churn();
        let object = decoded(&event.object);
        if event.kind == EventKind::Deleted {
            assert!(cluster.remove(&object.reference().unwrap()));
        } else {
            cluster.insert(object);
        }
    }
    let counts = synthetic.counts();
    assert_eq!(
        (cluster.pods.len(), cluster.policies.len(), cluster.nodes.len()),
        (counts.pods, counts.policies, counts.nodes)
    );
    // Policies select somebody, blocks matter, and it compiles.
    let compiled = compile(&cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    let snapshot = Snapshot::open(&compiled.bytes).unwrap();
    assert!(snapshot.sizes().rows > 10, "{:?}", snapshot.sizes());
}
