//! `ringwall check`: manifests as strictly as an API server, lints, and proof that the compiled snapshot means what they say.
//!
//! Each question is a [`Part`]: a function that gives findings and what to say in the summary. To add one: a function
//! like [`prove`], a line in [`parts`].

mod intents;
mod report;
mod sarif;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use report::Report;
use ringwall_analyse::{
    lint,
    lint::{Finding, Linted, Severity, SourceLocation, SuppressionError, Suppressions, rules, rules::Rule},
};
use ringwall_dataplane::classify::Snapshot;
use ringwall_source::{
    folder,
    folder::{Loaded, ManifestObject, Problem, ProblemKind},
};

use super::{ClusterArgs, Output, progress::Progress, refuse_nothing, verify, write_whole};

/// Arguments of `ringwall check`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Reads every manifest as strictly as an API server does and says what it would
refuse, with file, line and field. Then looks for policies that probably do not
do what their author intended; each such finding shows a packet, the compiled
snapshot's decision about it, and the likely intention. Finally, proves that the
snapshot decides about every packet as the policies say: every address, every
pair of classes, every port. --snapshot proves that file instead. --intents also
checks assertions about who can reach whom.

Every finding has an id, such as RW102, and a page: --explain RW102. Ignore a
rule with --allow RW102, for one object with the annotation
`ringwall.io/allow-RW102: reason`, or permanently in a file for --decisions:

  allow:
    RW404: these namespaces are protected by their owners
  deny: [RW103]

Exit status: 0 if there are no errors (warnings and notes do not count), 1 on
errors, including a failed proof, and with --strict on warnings, 2 if the input
cannot be used. As JSON: one object per finding, then the summary.

Examples:
  ringwall check --manifests ./cluster
  ringwall check --manifests ./cluster --strict --sarif findings.sarif
  ringwall check --manifests ./cluster --snapshot policy.img
  ringwall check --manifests ./cluster --intents intents.yaml
  ringwall check --manifests ./cluster -o json | jq -r 'select(.severity==\"error\")'
  ringwall check --explain RW102")]
#[command(mut_arg("manifests", |it| it.required(false).required_unless_present("explain")))]
pub struct CheckArgs {
    // None with --explain alone.
    #[command(flatten)]
    cluster: Option<ClusterArgs>,
    /// Prove this snapshot, written by `ringwall compile`, instead of compiling the manifests
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// File of assertions about who can reach whom (docs/intents.md); may be repeated
    #[arg(long, value_name = "FILE")]
    intents: Vec<PathBuf>,
    /// Also fail on warnings
    #[arg(long)]
    strict: bool,
    /// Ignore this rule; may be repeated
    #[arg(long, value_name = "ID")]
    allow: Vec<String>,
    /// Treat this rule as an error; may be repeated
    #[arg(long, value_name = "ID")]
    deny: Vec<String>,
    /// File of rules to ignore (`allow`), each with a reason, and to treat as errors (`deny`)
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Also write the findings as SARIF 2.1.0; - writes only SARIF, to standard output
    #[arg(long, value_name = "FILE")]
    sarif: Option<PathBuf>,
    /// Print the page of a rule (`all`: the list of rules) and exit
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
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

/// What there is to check.
struct Input {
    loaded: Loaded,
    written: Vec<ManifestObject>,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<ExitCode> {
    if let Some(id) = &args.explain {
        return explain(id, output);
    }
    let silence = silence(args)?;
    let cluster = args
        .cluster
        .as_ref()
        .context("--manifests is missing: name the folder to check")?;
    let settings = cluster.settings()?;
    let (loaded, written) = {
        let _progress = Progress::new("reading manifests");
        folder::inspect(&cluster.manifests, &settings)?
    };
    // What cannot be read is reported as that.
    let has_errors = loaded
        .problems
        .iter()
        .any(|problem| problem.severity == folder::Severity::Error);
    refuse_nothing(&cluster.manifests, &loaded, cluster.allow_empty || has_errors)?;
    let input = Input { loaded, written };
    let progress = Progress::new("checking and proving");
    let report = Report::new(&input.loaded, parts(args, &input, &silence)?);
    drop(progress);
    match &args.sarif {
        Some(file) if file.as_os_str() == "-" => report.write_sarif(io::stdout().lock())?,
        Some(file) => {
            let mut sarif = Vec::new();
            report.write_sarif(&mut sarif)?;
            write_whole(file, &sarif)?;
            report.write(output, io::stdout().lock())?;
        }
        None => report.write(output, io::stdout().lock())?,
    }
    let fine = report.ok() && !(args.strict && report.number(Severity::Warning) > 0);
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Every part, in the order in which they are told.
///
/// # Errors
/// What the user gave cannot be used (status 2); what the manifests get wrong is a finding.
fn parts(args: &CheckArgs, input: &Input, silence: &Suppressions) -> anyhow::Result<Vec<Part>> {
    let linted = lint::run(
        &input.loaded.cluster,
        &input.loaded.services,
        &input.written,
        &input.loaded.problems,
        silence,
    );
    let read = manifests(input, linted.as_ref().ok(), silence);
    let silenced = read.silenced + linted.as_ref().map_or(0, |linted| linted.silenced);
    let mut parts = vec![
        Part {
            findings: read.findings,
            words: (silenced > 0).then(|| format!("{} silenced", super::count(silenced, "finding"))),
            fields: vec![("silenced", silenced.into())],
            ..Part::default()
        },
        lints(linted),
        prove(args, input)?,
    ];
    if !args.intents.is_empty() {
        parts.push(intents::part(&args.intents, &input.loaded)?);
    }
    Ok(parts)
}

/// What the user has decided about findings.
fn silence(args: &CheckArgs) -> anyhow::Result<Suppressions> {
    let text = args
        .decisions
        .as_ref()
        .map(|file| std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display())))
        .transpose()?;
    let silence = Suppressions::new(&args.allow, &args.deny, text.as_deref());
    match &args.decisions {
        Some(file) => silence.with_context(|| format!("in {} or the options", file.display())),
        None => Ok(silence?),
    }
}

/// Prints the page of a rule, or what rules there are.
fn explain(id: &str, output: Output) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let chosen: Vec<&Rule> = match id {
        "all" => rules::ALL.to_vec(),
        id => vec![rules::by_id(&id.to_uppercase()).ok_or_else(|| SuppressionError::Unknown(id.to_owned()))?],
    };
    for rule in &chosen {
        match output {
            Output::Json => writeln!(out, "{}", report::rule_object(rule))?,
            Output::Human if id == "all" => {
                writeln!(
                    out,
                    "{}  {:<8} {:<24} {}",
                    rule.id, rule.severity, rule.name, rule.summary
                )?;
            }
            Output::Human => write!(out, "{}", rule.page)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What cannot be read, or only isolates, but for what a lint says more about.
fn manifests(input: &Input, linted: Option<&Linted>, silence: &Suppressions) -> Linted {
    let Loaded {
        cluster, problems, ..
    } = &input.loaded;
    let findings = problems.iter().map(finding).filter(|finding| {
        let place = finding.object.clone().zip(finding.path.clone());
        !place.is_some_and(|(object, path)| {
            linted.is_some_and(|linted| linted.instead_of.contains(&(finding.severity, object, path)))
        })
    });
    lint::silenced(cluster, &input.written, findings.collect(), silence)
}

/// What probably does not do what its author intended.
fn lints(linted: Result<Linted, String>) -> Part {
    match linted {
        Ok(linted) => Part {
            findings: linted.findings,
            ..Part::default()
        },
        // The proof says why nothing compiles; the lints alone may also be too many pods imagined.
        Err(message) => Part {
            words: Some(format!("lints not run: {message}")),
            fields: vec![("lints_not_run", message.into())],
            ..Part::default()
        },
    }
}

/// Compiles, or reads a snapshot, and proves it.
///
/// # Errors
/// The file cannot be read or is no snapshot.
fn prove(args: &CheckArgs, input: &Input) -> anyhow::Result<Part> {
    let loaded = &input.loaded;
    let left_out = |problem: &Problem| problem.severity == folder::Severity::Error;
    let whole = !loaded.problems.iter().any(left_out);
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
                        findings: vec![failed_proof(ringwall_process::whole_message(&error))],
                        ..Part::default()
                    });
                }
            }
        }
    };
    Ok(match verify::prove(&loaded.cluster, snapshot) {
        Ok(report) => Part {
            words: Some(verify::words(&report, whole)),
            fields: verify::fields(&report),
            ..Part::default()
        },
        Err(difference) => Part {
            findings: vec![verify::finding(
                &difference,
                &input.written,
                args.snapshot.is_some(),
            )],
            ..Part::default()
        },
    })
}

/// The policies do not compile.
fn failed_proof(message: String) -> Finding {
    Finding {
        id: rules::NOT_PROVEN.id,
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
    let rule = match problem.kind {
        ProblemKind::Unreadable => rules::UNREADABLE,
        ProblemKind::Invalid => rules::INVALID,
        ProblemKind::Unevaluated => rules::UNEVALUATED_KIND,
        ProblemKind::Duplicate => rules::DUPLICATE_OBJECT,
        ProblemKind::Odd => rules::ODD_WRITING,
        ProblemKind::LabelType => rules::LABEL_TYPE,
    };
    let severity = match problem.severity {
        folder::Severity::Error => Severity::Error,
        folder::Severity::Warning => Severity::Warning,
    };
    Finding {
        id: rule.id,
        severity,
        place: Some(SourceLocation {
            file: problem.file.clone(),
            line: problem.line,
            column: problem.span.map(|(column, _)| column),
            length: problem.span.map(|(_, length)| length),
        }),
        object: problem.object.clone(),
        path: problem.path.clone(),
        message: problem.message.clone(),
        witness: None,
        fix: None,
    }
}
