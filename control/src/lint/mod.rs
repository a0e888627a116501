//! Lints: what a policy does that its author hardly wanted, each shown by a packet.
//!
//! A lint looks at the objects and says what it suspects: a [`draft::Draft`] with the packets that would show it. Then
//! the cluster is compiled once, with the pods that had to be imagined for packets to have ends, and the snapshot
//! answers. What no packet shows is not reported, unless it is a fact that needs none.

mod blocks;
mod cast;
mod dns;
mod draft;
mod finding;
mod portability;
mod redundant;
pub mod rules;
mod selecting;
mod selectors;
mod services;
mod silence;
mod structure;
mod subject;
#[cfg(test)]
mod tests;
mod unprotected;

use crate::{
    cli::judge::Judge,
    cluster::Cluster,
    source::folder::{Problem, Written},
};
use cast::Cast;
use subject::Subject;

pub use finding::{Finding, Place, Severity, Witness};
pub use silence::{BadId, Silence};

/// What the lints came to.
#[derive(Debug, Default)]
pub struct Linted {
    /// In order of file and place.
    pub findings: Vec<Finding>,
    /// How many findings a person has silenced.
    pub silenced: usize,
}

/// Runs every lint.
///
/// `problems` are those of reading: some lints begin with one and take its place (see [`takes_over`]).
///
/// # Errors
/// The policies do not compile.
pub fn run(
    cluster: &Cluster,
    written: &[Written],
    problems: &[Problem],
    silence: &Silence,
) -> Result<Linted, String> {
    let subject = Subject::new(cluster, written);
    let mut cast = Cast::new(cluster);
    let mut drafts = Vec::new();
    for lint in [
        structure::lint,
        dns::lint,
        selectors::lint,
        blocks::lint,
        services::lint,
        redundant::lint,
        unprotected::lint,
        portability::lint,
    ] {
        lint(&subject, &mut cast, &mut drafts);
    }
    blocks::odd(&subject, problems, &mut cast, &mut drafts);
    let judge = Judge::new(cast.staged()).map_err(|error| format!("{error:#}"))?;
    let findings = drafts
        .iter()
        .filter_map(|draft| draft.finding(&cast, &judge))
        .collect();
    Ok(silence.apply(findings, &subject))
}

/// Whether a lint tells of a problem of reading, and better.
pub fn takes_over(problem: &Problem) -> bool {
    structure::takes_over(problem) || blocks::takes_over(problem)
}
