//! How long proofs take, over synthetic clusters. Not a pass or fail:
//!
//! `cargo test --release -p ringwall --no-default-features --test checker_speed -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a measurement says what failed by panicking

use std::sync::Arc;

use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::{Cluster, Object};
use ringwall_prove::{Checker, Report};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{EventKind, Spec, Synthetic};
use serde_json::Value;

fn decoded(object: &Value) -> Object {
    decode(object).expect("it decodes").remove(0).object
}

/// CPU time of this thread: the machine may have other things to do.
fn cpu_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

fn percentile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn measure(policies: usize, pods: usize, namespaces: usize, events: usize) {
    let mut synthetic = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
    let mut cluster = Cluster::default();
    for object in synthetic.objects() {
        cluster.insert(decoded(&object));
    }
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let compiled = compiler.update(&cluster, Generation(1)).unwrap();
    let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
    let mut checker = Checker::new();
    let mut whole = Vec::new();
    let mut report = Report::default();
    for _ in 0..3 {
        let begun = cpu_micros();
        report = checker.full(&cluster, &snapshot).unwrap();
        whole.push((cpu_micros() - begun) / 1000);
    }
    println!("{policies} policies, {pods} pods: full {whole:?} ms, {report:?}");
    let (mut partial, mut wholes, mut compiles) = (Vec::new(), Vec::new(), Vec::new());
    let mut others = Vec::new();
    let mut slowest = Report::default();
    for generation in 2..events as u64 + 2 {
        let event = synthetic.churn();
        let object = decoded(&event.object);
        if event.kind == EventKind::Deleted {
            cluster.remove(&object.reference().unwrap());
        } else {
            cluster.insert(object);
        }
        let begun = cpu_micros();
        let compiled = compiler.update(&cluster, Generation(generation)).unwrap();
        compiles.push(cpu_micros() - begun);
        let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
        let begun = cpu_micros();
        let report = checker.changed(&cluster, &snapshot).unwrap();
        let micros = cpu_micros() - begun;
        if report.whole {
            wholes.push(micros);
            println!("  whole after {} {}", event.kind.word(), event.object["kind"]);
        } else {
            if micros > slowest.micros {
                slowest = Report { micros, ..report };
            }
            let of_pod = event.object["kind"] == "Pod";
            if of_pod { &mut partial } else { &mut others }.push(micros);
        }
    }
    for (what, mut times) in [
        ("compile", compiles),
        ("changed, a pod", partial),
        ("changed, anything else", others),
        ("changed, all of it", wholes),
    ] {
        times.sort_unstable();
        if !times.is_empty() {
            println!(
                "  {what}: {} times, median {} us, p90 {}, p99 {}, worst {}",
                times.len(),
                percentile(&times, 0.5),
                percentile(&times, 0.9),
                percentile(&times, 0.99),
                times[times.len() - 1]
            );
        }
    }
    println!("  slowest: {slowest:?}");
}

#[test]
#[ignore = "a measurement"]
fn how_long_proofs_take() {
    measure(1_000, 10_000, 100, 1_000);
}

#[test]
#[ignore = "a measurement"]
fn how_long_proofs_of_much_take() {
    measure(10_000, 100_000, 1_000, 1_000);
}
