//! Proving a snapshot on the command line: one that was just compiled, or one from a file.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use ringwall_analyse::{
    flow::Service,
    lint::{Finding, Severity, SourceLocation, Witness},
};
use ringwall_compile::{CompiledImage, EpochKey};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::Cluster;
use ringwall_prove::{Checker, Difference, Progress, Report};
use ringwall_source::folder::ManifestObject;
use serde_json::{Value, json};

use super::count;

/// How long a proof takes before somebody at a terminal is told that it goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often they are told.
const STEP: Duration = Duration::from_millis(250);

/// Compiles as every offline command does.
///
/// # Errors
/// The policies cannot be compiled.
pub(super) fn compiled(cluster: &Cluster) -> anyhow::Result<CompiledImage> {
    ringwall_compile::compile(cluster, Generation(1), &EpochKey::OFFLINE)
        .context("cannot compile the policies")
}

/// Reads a snapshot from its file.
///
/// # Errors
/// The file cannot be read or is no snapshot.
pub(super) fn read(file: &Path) -> anyhow::Result<Snapshot> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Snapshot::open(&bytes).with_context(|| {
        format!(
            "{} is no snapshot: write one with `ringwall compile --out FILE`",
            file.display()
        )
    })
}

/// Proves all of a snapshot. Somebody at a terminal is told how far it is.
///
/// # Errors
/// A packet about which it is wrong.
pub(super) fn prove(cluster: &Cluster, snapshot: Snapshot) -> Result<Report, Box<Difference>> {
    let snapshot = Arc::new(snapshot);
    let mut checker = Checker::new();
    checker.look_at(cluster, &snapshot);
    let begun = Instant::now();
    let mut printed = false;
    let report = loop {
        match checker.step(STEP) {
            Ok(Progress::Done(report)) => break Ok(report),
            Ok(Progress::Idle | Progress::Working) => {}
            Err(difference) => break Err(difference),
        }
        if begun.elapsed() > PATIENCE && std::io::stderr().is_terminal() {
            let so_far = checker.so_far().unwrap_or_default();
            let seconds = begun.elapsed().as_secs();
            let _ = write!(
                std::io::stderr(),
                "\rproving: {seconds} s, {} addresses, {} pairs ",
                so_far.addresses,
                so_far.pairs
            );
            printed = true;
        }
    };
    if printed {
        let _ = writeln!(std::io::stderr());
    }
    report
}

/// A proof in words. `whole`: of all that the manifests say; else of what is left of them.
pub(super) fn words(report: &Report, whole: bool) -> String {
    format!(
        "{}: {}, {}, {}, {} in {}",
        match whole {
            true => "the snapshot is proven",
            false => "the snapshot agrees with the manifests, apart from the findings above",
        },
        count(report.classes as usize, "class"),
        count(report.pairs as usize, "pair"),
        count(report.addresses as usize, "address"),
        count(report.questions as usize, "question"),
        duration(report.micros)
    )
}

fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A proof as fields of a summary.
pub(super) fn fields(report: &Report) -> Vec<(&'static str, Value)> {
    vec![(
        "proof",
        json!({
            "classes": report.classes,
            "pairs": report.pairs,
            "addresses": report.addresses,
            "questions": report.questions,
            "micros": report.micros,
        }),
    )]
}

/// A difference as something that was found, at the first policy that either side names. `given`: the snapshot is one of the
/// user's, and may be of other manifests.
pub(super) fn finding(difference: &Difference, written: &[ManifestObject], given: bool) -> Finding {
    // Those of ordered kinds are named with their kind.
    let policy = difference.policies.first().map(|policy| {
        let mut words = policy.split(' ');
        match (words.next(), words.next()) {
            (Some(kind), Some(name)) => format!("{kind} {name}"),
            _ => format!("NetworkPolicy {policy}"),
        }
    });
    let at = written
        .iter()
        .find(|object| Some(object.label()) == policy.as_deref());
    let place = at.map(|object| {
        let spot = object.spot("metadata.name");
        SourceLocation {
            file: object.file().to_owned(),
            line: spot.map(|(line, ..)| line),
            column: spot.map(|(_, column, _)| column),
            length: spot.map(|(.., length)| length),
        }
    });
    Finding {
        id: ringwall_analyse::lint::rules::NOT_PROVEN.id,
        severity: Severity::Error,
        place,
        object: policy,
        path: None,
        message: match given {
            true => format!(
                "the snapshot does not mean what these manifests say: {difference}; if it was made of them, and not of older \
                 ones, please report this"
            ),
            false => format!(
                "the compiled snapshot contradicts the policies: {difference}; do not enforce it, and please report this"
            ),
        },
        witness: Some(Witness {
            imagined: false,
            from: difference.src.clone(),
            to: difference.dst.clone(),
            service: Service {
                protocol: difference.protocol,
                port: difference.port,
                source_port: difference.source_port.filter(|source| *source != 0),
            }
            .to_string(),
            allowed: difference.got.allow,
            why: format!(
                "ingress: {}; egress: {}",
                difference.got.ingress, difference.got.egress
            ),
            wanted: format!(
                "{} (ingress: {}; egress: {})",
                ringwall_analyse::judge::word(difference.wanted.allow),
                difference.wanted.ingress,
                difference.wanted.egress
            ),
        }),
        fix: None,
    }
}
