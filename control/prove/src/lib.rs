//! Proves that a compiled snapshot answers on every packet what the objects say.
//!
//! Shares no code with the model, the compiler or the writing side of images: it has its own matching of selectors,
//! blocks and ports, and its own derivation of who owns an address.
#![forbid(unsafe_code)]

mod address_ranges;
mod columns;
mod expected;
mod incremental;
mod matching;
mod number_relation;
mod policy;
mod ports;
mod proof;
mod report;
mod rules;
mod sets;
#[cfg(test)]
mod tests;
mod witness;
mod words;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringwall_dataplane::classify::Snapshot;
use ringwall_policy::Cluster;

use self::proof::Proof;
pub use self::report::{Answer, Difference, Report};

/// Proves snapshots, one after the other.
#[derive(Debug, Default)]
pub struct Checker {
    /// The last proof, from which the next one carries over.
    last: Option<Box<Proof>>,
    /// What the next pass in the background is about.
    target: Option<(Cluster, Arc<Snapshot>)>,
    /// The pass under way.
    rolling: Option<Box<Proof>>,
}

/// How far the rolling pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has been proven yet that could be looked at again.
    Idle,
    /// There is more to do.
    Working,
    /// A pass over everything has ended; the next step begins a new one.
    Done(Report),
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Proves all of the snapshot; and where one was proven before, that whoever is another or may do something else has
    /// another epoch.
    ///
    /// # Errors
    /// A packet about which it is wrong. The checker then forgets what it knew, so that the next proof is a whole one.
    pub fn full(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>> {
        let before = self.last.take();
        let mut proof = Box::new(Proof::new(cluster, snapshot));
        while !proof.advance(None)? {}
        if let Some(mut before) = before {
            proof.epochs_since(&mut before, None)?;
        }
        Ok(self.keep(proof, cluster, snapshot))
    }

    /// What the next proof begins with.
    fn keep(&mut self, proof: Box<Proof>, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Report {
        let report = proof.report;
        self.last = Some(proof);
        self.look_at(cluster, snapshot);
        report
    }

    /// Proves what can differ from the snapshot that was proven last, and carries over the rest; all of it where none
    /// was.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn changed(
        &mut self,
        cluster: &Cluster,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Report, Box<Difference>> {
        let Some(mut proof) = self.last.take() else {
            return self.full(cluster, snapshot);
        };
        match proof.follow(cluster, snapshot) {
            None => {
                self.last = Some(proof);
                self.full(cluster, snapshot)
            }
            Some(proven) => {
                proven?;
                Ok(self.keep(proof, cluster, snapshot))
            }
        }
    }

    /// As [`Self::changed`], or [`Self::full`] where `full`, but not beyond a time: None where a whole proof is not done by
    /// then. The next one then begins from nothing.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn within(
        &mut self,
        cluster: &Cluster,
        snapshot: &Arc<Snapshot>,
        full: bool,
        until: Instant,
    ) -> Result<Option<Report>, Box<Difference>> {
        let mut before = self.last.take();
        if !full && let Some(mut proof) = before.take() {
            match proof.follow(cluster, snapshot) {
                Some(proven) => {
                    proven?;
                    return Ok(Some(self.keep(proof, cluster, snapshot)));
                }
                None => before = Some(proof),
            }
        }
        let mut proof = Box::new(Proof::new(cluster, snapshot));
        if !proof.advance(Some(until))? {
            return Ok(None);
        }
        if let Some(mut before) = before
            && !proof.epochs_since(&mut before, Some(until))?
        {
            return Ok(None);
        }
        Ok(Some(self.keep(proof, cluster, snapshot)))
    }

    /// Sets what [`Self::step`] proves from its next pass on, without a proof now: for a checker that works in the
    /// background alone. A pass under way ends with what it began with.
    pub fn look_at(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) {
        self.target = Some((cluster.clone(), Arc::clone(snapshot)));
    }

    /// What the pass under way has come to; None between two passes.
    pub fn so_far(&self) -> Option<Report> {
        self.rolling.as_ref().map(|proof| proof.report)
    }

    /// Goes on with a whole proof of a snapshot that was proven not long ago, from nothing that is carried over, for
    /// about `budget`. For the background: a difference says that a proof before was wrong.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn step(&mut self, budget: Duration) -> Result<Progress, Box<Difference>> {
        let mut proof = match (self.rolling.take(), &self.target) {
            (Some(proof), _) => proof,
            (None, Some((cluster, snapshot))) => Box::new(Proof::new(cluster, snapshot)),
            (None, None) => return Ok(Progress::Idle),
        };
        if proof.advance(Some(Instant::now() + budget))? {
            return Ok(Progress::Done(proof.report));
        }
        self.rolling = Some(proof);
        Ok(Progress::Working)
    }
}
