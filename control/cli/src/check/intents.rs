//! The part of `check` that holds assertions against the compiled policies.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ringwall_analyse::{
    intents::{Assertion, Checker, CounterExample, Decision, Intents, Outcome},
    judge::{Fate, SAY_WHERE, word},
    lint::{Finding, Severity, SourceLocation, rules},
    refine,
    refine::{Compiled, RefineError, type_words},
    services::Directory,
};
use ringwall_policy::Cluster;
use ringwall_source::folder::Loaded;
use serde_json::{Value, json};

use super::Part;
use crate::count;

/// Answers the assertions of all files.
///
/// # Errors
/// A file cannot be read or understood, or the policies do not compile.
pub(super) fn part(files: &[PathBuf], loaded: &Loaded) -> anyhow::Result<Part> {
    let mut read = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read assertions from {}", file.display()))?;
        let mut intents = Intents::parse(&file.display().to_string(), &text)?;
        intents.find_services(&Directory::new(&loaded.cluster, &loaded.services));
        read.push(intents);
    }
    let readings = match loaded.cluster.readings() {
        Some(readings) => readings.to_vec(),
        None => vec![loaded.cluster.surely()],
    };
    let compiled: Vec<Compiled<'_>> = match readings.iter().map(Compiled::of).collect() {
        Ok(compiled) => compiled,
        // What does not compile is told by the proof.
        Err(RefineError::Compile(_)) => return Ok(Part::default()),
        Err(error) => return Err(error.into()),
    };
    let mut checker =
        Checker::new(&compiled, &read).context("there is no cluster to hold assertions against")?;
    let mut part = Part::default();
    let (mut all, mut failed) = (0, 0);
    for (file, intents) in files.iter().zip(&read) {
        for assertion in &intents.assertions {
            let outcome = checker.check(assertion)?;
            all += 1;
            part.lines.push(line(&loaded.cluster, file, assertion, &outcome));
            if let Some(finding) = finding(&loaded.cluster, file, assertion, &outcome) {
                failed += 1;
                part.findings.push(finding);
            }
        }
    }
    part.words = Some(match failed {
        0 => format!("{} of intent hold", count(all, "assertion")),
        failed => format!("{failed} of {} of intent fail", count(all, "assertion")),
    });
    part.fields = vec![("assertions", all.into()), ("assertions_failed", failed.into())];
    Ok(part)
}

/// One object per assertion.
fn line(cluster: &Cluster, file: &Path, assertion: &Assertion, outcome: &Outcome) -> Value {
    let mut line = json!({
        "intent": assertion.name,
        "file": file,
        "line": assertion.line,
        "ok": *outcome == Outcome::Holds,
    });
    match outcome {
        Outcome::Holds => {}
        Outcome::Vacuous { which } => line["vacuous"] = json!(which),
        Outcome::Fails(example) => {
            line["counterexample"] = json!({
                "src": example.from,
                "src_ip": example.from_address,
                "dst": example.to,
                "dst_ip": example.to_address,
                "protocol": example.service.name(),
                "dst_port": example.port.filter(|_| !example.service.has_types()),
                "verdict": fate(example).word(),
                "reasons": example.decisions.iter().map(|it| reason(cluster, it)).collect::<Vec<_>>(),
            });
            if let Some(source) = example.source_port {
                line["counterexample"]["src_port"] = source.into();
            }
            if let Some([kind, code]) = types(example) {
                line["counterexample"]["icmp_type"] = kind.into();
                line["counterexample"]["icmp_code"] = code.into();
            }
            line["more"] = example.more.into();
        }
    }
    line
}

/// Type and code of ICMP, where they decide.
fn types(example: &CounterExample) -> Option<[u8; 2]> {
    let of_type = example.port.filter(|_| example.service.has_types())?;
    Some(of_type.to_be_bytes())
}

fn fate(example: &CounterExample) -> Fate {
    Fate::of(example.allow, example.allow || example.depends)
}

/// The tier of the policies that decide.
fn tier(cluster: &Cluster, decision: &Decision) -> Option<String> {
    let policy = decision.reason.policies.first()?;
    refine::tier_of(cluster, policy).map(|tier| tier.name)
}

fn reason(cluster: &Cluster, decision: &Decision) -> Value {
    json!({
        "direction": decision.direction,
        "tier": tier(cluster, decision),
        "verdict": word(decision.reason.allow),
        "effect": decision.reason.word,
        "policies": decision.reason.policies,
        "rule": decision.reason.rule,
    })
}

fn finding(cluster: &Cluster, file: &Path, assertion: &Assertion, outcome: &Outcome) -> Option<Finding> {
    let (id, message) = match outcome {
        Outcome::Holds => return None,
        Outcome::Vacuous { which } => (
            rules::INTENT_VACUOUS.id,
            format!("vacuous: `{which}` matches nothing; correct it, or write mayBeEmpty: true"),
        ),
        Outcome::Fails(example) => (rules::INTENT_FAILED.id, words(cluster, example)),
    };
    Some(Finding {
        id,
        severity: Severity::Error,
        place: Some(SourceLocation {
            file: file.to_owned(),
            line: Some(assertion.line),
            column: None,
            length: None,
        }),
        object: Some(format!("{:?}", assertion.name)),
        path: None,
        message,
        witness: None,
        fix: None,
    })
}

fn words(cluster: &Cluster, example: &CounterExample) -> String {
    let end = |name: &str, address: Option<std::net::IpAddr>| match address {
        Some(address) if address.to_string() != name => format!("{name} ({address})"),
        _ => name.to_owned(),
    };
    let service = match example.port {
        Some(of_type) if example.service.has_types() => {
            format!("{}/{}", type_words((of_type, of_type)), example.service.name())
        }
        Some(port) => {
            let from = example
                .source_port
                .map_or(String::new(), |source| format!(" from port {source}"));
            format!("{port}/{}{from}", example.service.name())
        }
        None => "ICMP and its like".to_owned(),
    };
    let why: Vec<String> = example
        .decisions
        .iter()
        .map(|decision| {
            let reason = &decision.reason;
            // A NetworkPolicy's tier goes without saying.
            let tier = tier(cluster, decision).filter(|_| reason.policies.iter().any(|it| it.contains(' ')));
            let of_tier = tier
                .as_ref()
                .map_or_else(String::new, |tier| format!(" ({tier})"));
            let why = match (reason.policies.as_slice(), reason.rule) {
                ([policy], Some(rule)) if reason.word == "deny" => {
                    format!("denied by {policy}{of_tier}, rule {rule}")
                }
                ([policy], Some(rule)) => format!("{policy}{of_tier}, rule {rule}"),
                ([], _) => match reason.word {
                    "open" => "no policy applies".to_owned(),
                    "profile" => "no rule decides, so it is allowed by default".to_owned(),
                    "unknown" => "an address of the pod network that no known pod has".to_owned(),
                    other => other.to_owned(),
                },
                (policies, _) => match tier {
                    Some(tier) => format!(
                        "tier {tier} denies by default what {} {} not match",
                        policies.join(", "),
                        if policies.len() == 1 { "does" } else { "do" }
                    ),
                    None => format!("isolated by {}", policies.join(", ")),
                },
            };
            format!("{} {}: {why}", decision.direction, word(reason.allow))
        })
        .collect();
    let more = match example.more {
        0 => String::new(),
        1 => "; and 1 more pair".to_owned(),
        more => format!("; and {more} more pairs"),
    };
    format!(
        "does not hold: {} -> {} {service} is {} ({}){more}",
        end(&example.from, example.from_address),
        end(&example.to, example.to_address),
        match fate(example) {
            Fate::Allow => "allowed".to_owned(),
            Fate::Deny => "denied".to_owned(),
            Fate::Depends => format!(
                "not decided by the manifests: it passes if an ipBlock holds the address that a pod will have{SAY_WHERE}"
            ),
        },
        why.join("; "),
    )
}
