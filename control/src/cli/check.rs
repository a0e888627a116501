//! `ringwall check`: manifests as strictly as an API server, lints, and proof that the compiled snapshot means what they say.
//!
//! Each question is a [`Part`]: a function that gives findings and what to say in the summary. To add one: a function
//! like [`prove`], a line in [`parts`].

mod report;
mod sample;

use std::{io, process::ExitCode};

use super::{ClusterArgs, Output, judge::Judge};
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
and field; then compiles the policies and compares the result with the
reference evaluator on a sample of flows between all endpoints.

Exit status: 0 without errors (there may be warnings), 1 with errors, 2 where
the folder cannot be read. As JSON: one object per problem, then the summary.

Examples:
  ringwall check --manifests ./cluster
  ringwall check --manifests ./cluster -o json | jq -r 'select(.severity==\"error\")'")]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How many flows to compare at most
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    sample: usize,
}

/// What one question of the check came to.
#[derive(Default)]
struct Part {
    /// What was found.
    findings: Vec<Finding>,
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
    Ok(vec![manifests(loaded), prove(args, loaded)])
}

/// What cannot be read, or only isolates.
fn manifests(loaded: &Loaded) -> Part {
    Part {
        findings: loaded.problems.iter().map(finding).collect(),
        ..Part::default()
    }
}

/// Compiles, and holds the snapshot against the reference.
fn prove(args: &CheckArgs, loaded: &Loaded) -> Part {
    let compared = match Judge::new(&loaded.cluster) {
        Ok(judge) => sample::compare(&loaded.cluster, &judge, args.sample),
        Err(error) => Err(format!("{error:#}")),
    };
    let flows = *compared.as_ref().unwrap_or(&0);
    Part {
        findings: compared.err().map(failed_proof).into_iter().collect(),
        words: Some(format!(
            "snapshot and reference agree on {}",
            report::count(flows, "flow")
        )),
        fields: vec![("compared_flows", flows.into())],
    }
}

/// The policies do not compile, or not to what they say.
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
