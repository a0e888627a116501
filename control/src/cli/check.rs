//! `ringwall check`: manifests as strictly as an API server, lints, and proof that the compiled snapshot means what they say.
//!
//! Each question is a [`Part`]: a function that gives findings and what to say in the summary. To add one: a function
//! like [`prove`], a line in [`parts`].

mod intents;
mod report;

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::Context;
use ringwall_dataplane::classify::Snapshot;

use super::{ClusterArgs, Output, verify};
use crate::{
    lint::{Finding, Place, Severity},
    source::folder::{self, Loaded, Problem},
};
use report::Report;

/// Arguments of `ringwall check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Reads every manifest, reports unknown fields, values that an API server
refuses and policies of kinds that are not evaluated yet, each with file, line
and field; then compiles the policies and proves that the snapshot decides
about every packet as the policies say: every address, every pair of classes,
every port. With --snapshot it proves that file instead. With --intents it
holds assertions about who can reach whom against them, exactly.

Exit status: 0 without errors (there may be warnings), 1 with errors (a packet
that is decided otherwise is one), 2 where the folder cannot be read or the
file is no snapshot. As JSON: one object per problem, then the summary.

Examples:
  ringwall check --manifests ./cluster
  ringwall check --manifests ./cluster --snapshot policy.img
  ringwall check --manifests ./cluster --intents intents.yaml
  ringwall check --manifests ./cluster -o json | jq -r 'select(.severity==\"error\")'")]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Snapshot to prove, from `ringwall compile`, instead of what the manifests compile to
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// File of assertions about who can reach whom (docs/intents.md); may be repeated
    #[arg(long, value_name = "FILE")]
    intents: Vec<PathBuf>,
}

/// What one question of the check came to.
#[derive(Default)]
struct Part {
    /// What was found.
    findings: Vec<Finding>,
    /// Objects of their own that come before the summary object.
    lines: Vec<serde_json::Value>,
    /// What the summary line says about it.
    words: Option<String>,
    /// What the summary object holds about it.
    fields: Vec<(&'static str, serde_json::Value)>,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<ExitCode> {
    let loaded = folder::inspect(&args.cluster.manifests, &args.cluster.settings()?)?;
    let report = Report::new(&loaded, parts(args, &loaded)?);
    report.write(output, io::stdout().lock())?;
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Every part, in the order in which they are told.
///
/// # Errors
/// What the user gave cannot be used (status 2); what the manifests get wrong is a finding.
fn parts(args: &CheckArgs, loaded: &Loaded) -> anyhow::Result<Vec<Part>> {
    let mut parts = vec![manifests(loaded), prove(args, loaded)?];
    if !args.intents.is_empty() {
        parts.push(intents::part(&args.intents, loaded)?);
    }
    Ok(parts)
}

/// What cannot be read, or only isolates.
fn manifests(loaded: &Loaded) -> Part {
    Part {
        findings: loaded.problems.iter().map(finding).collect(),
        ..Part::default()
    }
}

/// Compiles, or reads a snapshot, and proves it.
///
/// # Errors
/// The file cannot be read or is no snapshot.
fn prove(args: &CheckArgs, loaded: &Loaded) -> anyhow::Result<Part> {
    let snapshot = match &args.snapshot {
        Some(file) => verify::read(file)?,
        None => {
            let compiled = verify::compiled(&loaded.cluster).and_then(|image| {
                Snapshot::open(&image.bytes).context("the compiled snapshot does not validate")
            });
            match compiled {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    return Ok(Part {
                        findings: vec![failed_proof(format!("{error:#}"))],
                        ..Part::default()
                    });
                }
            }
        }
    };
    Ok(match verify::prove(&loaded.cluster, snapshot) {
        Ok(report) => Part {
            words: Some(verify::words(&report)),
            fields: verify::fields(&report),
            ..Part::default()
        },
        Err(difference) => Part {
            findings: vec![verify::finding(&difference)],
            ..Part::default()
        },
    })
}

/// The policies do not compile.
fn failed_proof(message: String) -> Finding {
    Finding {
        id: "RW009",
        severity: Severity::Error,
        place: None,
        object: None,
        path: None,
        message,
        witness: None,
        fix: None,
    }
}

fn finding(problem: &Problem) -> Finding {
    let (id, severity) = match problem.severity {
        folder::Severity::Error => ("RW001", Severity::Error),
        folder::Severity::Warning => ("RW002", Severity::Warning),
    };
    Finding {
        id,
        severity,
        place: Some(Place {
            file: problem.file.clone(),
            line: problem.line,
            column: None,
            length: None,
        }),
        object: problem.object.clone(),
        path: problem.path.clone(),
        message: problem.message.clone(),
        witness: None,
        fix: None,
    }
}
