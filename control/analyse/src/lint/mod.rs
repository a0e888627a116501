//! Lints: what a policy does that its author probably did not intend, each shown by a packet.
//!
//! A lint looks at the objects and says what it suspects: a [`draft::Draft`] with the packets that would show it. Then
//! the cluster is compiled once, with the pods that had to be imagined for packets to have ends, and the snapshot
//! answers. What no packet shows is not reported, unless it is a fact that needs none.

mod blocks;
mod dns;
mod draft;
mod finding;
mod order;
mod overlaps;
mod portability;
mod redundant;
pub mod rules;
mod selecting;
mod selectors;
mod services;
mod structure;
mod subject;
mod suppressions;
#[cfg(test)]
mod tests;
mod tiers;
mod ties;
mod unknown;
mod unprotected;
mod witnesses;

use std::collections::BTreeSet;

pub use finding::{Finding, Severity, SourceLocation, Witness};
use ringwall_policy::{Cluster, services::Services};
use ringwall_source::folder::{ManifestObject, Problem};
use subject::Subject;
pub use suppressions::{SuppressionError, Suppressions};
use witnesses::Witnesses;

use crate::judge::Judge;

/// What the lints came to.
#[derive(Debug, Default)]
pub struct Linted {
    /// In order of file and place.
    pub findings: Vec<Finding>,
    /// How many findings a person has silenced.
    pub silenced: usize,
    /// Severity, object and path of what was found instead of an equally bad problem of reading, silenced or not: the lint
    /// says more about it.
    pub instead_of: BTreeSet<(Severity, String, String)>,
}

/// Runs every lint.
///
/// `problems` are those of reading: some lints begin with one and take its place.
///
/// # Errors
/// The policies do not compile.
pub fn run(
    cluster: &Cluster,
    services: &Services,
    written: &[ManifestObject],
    problems: &[Problem],
    silence: &Suppressions,
) -> Result<Linted, String> {
    let subject = Subject::new(cluster, services, written);
    let mut witnesses = Witnesses::new(cluster);
    let mut drafts = Vec::new();
    for lint in [
        structure::lint,
        dns::lint,
        selectors::lint,
        blocks::lint,
        services::lint,
        redundant::lint,
        unprotected::lint,
        ties::lint,
        tiers::lint,
        unknown::lint,
        portability::lint,
    ] {
        lint(&subject, &mut witnesses, &mut drafts);
    }
    blocks::odd(&subject, problems, &mut witnesses, &mut drafts);
    let judge = Judge::new(witnesses.with_synthetic()).map_err(|error| format!("{error:#}"))?;
    let mut findings: Vec<Finding> = drafts
        .iter()
        .filter_map(|draft| draft.finding(&witnesses, &judge))
        .collect();
    let of_reading = [rules::MIS_INDENTED_PORTS, rules::ODD_BLOCK, rules::HTTP_RULE].map(|rule| rule.id);
    let instead = |finding: &Finding| {
        let severity = match finding.id {
            // What is no more than odd to a reader is an error to a lint.
            id if id == rules::NULL_LABEL.id => Severity::Warning,
            id if of_reading.contains(&id) => finding.severity,
            _ => return None,
        };
        Some((severity, finding.object.clone()?, finding.path.clone()?))
    };
    let instead_of = findings.iter().filter_map(instead).collect();
    findings.extend(suppressions::without_reason(&subject));
    let mut linted = silence.apply(findings, &subject);
    linted.instead_of = instead_of;
    Ok(linted)
}

/// What a person has left of findings that no lint made.
pub fn silenced(
    cluster: &Cluster,
    written: &[ManifestObject],
    findings: Vec<Finding>,
    silence: &Suppressions,
) -> Linted {
    silence.apply(findings, &Subject::new(cluster, &Services::default(), written))
}
