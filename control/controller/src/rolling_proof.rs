//! The rolling proof: snapshots that were proven by what changed are proven whole, again and again, beside the work.
//!
//! A thread of its own at the lowest priority, with a checker of its own, so that nothing that is to be published
//! waits for it; it works for a short while and rests for longer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringwall_dataplane::classify::Snapshot;
use ringwall_policy::Cluster;
use ringwall_process::essential::Essential;
use ringwall_prove::{Progress, Report};
use tokio::sync::mpsc;

use super::pipeline::{Prove, StageFactory, panic_message};

/// How much of the machine the proof may have.
#[derive(Clone, Debug)]
pub struct ProofShare {
    /// It works for about so long.
    pub work: Duration,
    /// Then it rests for as many times that.
    pub rest: u32,
    /// And so long between two passes over everything.
    pub pause: Duration,
}

impl Default for ProofShare {
    fn default() -> Self {
        Self {
            work: Duration::from_millis(2),
            rest: 9,
            pause: Duration::from_secs(60),
        }
    }
}

/// What a pass came to.
#[derive(Debug)]
pub(super) struct ProofPass {
    /// Of the snapshot.
    pub(super) generation: u64,
    /// The proof; else what is wrong.
    pub(super) outcome: Result<Report, String>,
    /// Time of work in it.
    pub(super) worked: Duration,
}

/// The thread. It ends when this is dropped.
pub(super) struct RollingProof {
    jobs: Arc<JobSlot>,
}

/// Where the thread finds what to do.
#[derive(Default)]
struct JobSlot {
    order: Mutex<ProofJob>,
    news: Condvar,
}

#[derive(Default)]
struct ProofJob {
    newest: Option<ProofTarget>,
    ended: bool,
}

/// A snapshot and what it was made from.
struct ProofTarget {
    generation: u64,
    cluster: Cluster,
    snapshot: Arc<Snapshot>,
}

impl RollingProof {
    pub(super) fn start(
        tools: &StageFactory,
        share: ProofShare,
        essential: &Essential,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<ProofPass>)> {
        // One for each pass, and a pass takes a while.
        let (passes, received) = mpsc::unbounded_channel();
        let jobs = Arc::new(JobSlot::default());
        let worker = Worker {
            jobs: Arc::clone(&jobs),
            share,
            passes,
        };
        let make = Arc::clone(&tools.checker);
        essential.thread("rw-proof", move || {
            // Where that is not allowed, its share still is small.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            worker.run(&*make);
        })?;
        Ok((Self { jobs }, received))
    }

    /// Says which snapshot is the newest. A pass that is under way ends first.
    pub(super) fn set_newest(&self, generation: u64, cluster: &Cluster, snapshot: &Arc<Snapshot>) {
        self.jobs.lock().newest = Some(ProofTarget {
            generation,
            cluster: cluster.clone(),
            snapshot: Arc::clone(snapshot),
        });
        self.jobs.news.notify_one();
    }

    /// There is nothing newer to prove than what has been proven whole.
    pub(super) fn clear(&self) {
        self.jobs.lock().newest = None;
    }
}

impl Drop for RollingProof {
    fn drop(&mut self) {
        self.jobs.lock().ended = true;
        self.jobs.news.notify_one();
    }
}

impl JobSlot {
    fn lock(&self) -> MutexGuard<'_, ProofJob> {
        // Nothing in it can be half done.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next snapshot; None at the end.
    fn next(&self) -> Option<ProofTarget> {
        let mut order = self.lock();
        loop {
            if order.ended {
                return None;
            }
            if let Some(subject) = order.newest.take() {
                return Some(subject);
            }
            order = self.news.wait(order).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits; true at the end.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut order = self.lock();
        while !order.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.news.wait_timeout(order, left);
            order = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

struct Worker {
    jobs: Arc<JobSlot>,
    share: ProofShare,
    passes: mpsc::UnboundedSender<ProofPass>,
}

impl Worker {
    fn run(&self, make: &dyn Fn() -> Box<dyn Prove>) {
        while let Some(subject) = self.jobs.next() {
            let mut checker = make();
            let Some(pass) = self.pass(&mut *checker, &subject) else {
                return;
            };
            // What it learned may be as large as the cluster.
            drop((checker, subject));
            if self.passes.send(pass).is_err() || self.jobs.rest(self.share.pause) {
                return;
            }
        }
    }

    /// One pass over everything; None at the end.
    fn pass(&self, checker: &mut dyn Prove, subject: &ProofTarget) -> Option<ProofPass> {
        checker.look_at(&subject.cluster, &subject.snapshot);
        let mut worked = Duration::ZERO;
        loop {
            let began = Instant::now();
            let step = catch_unwind(AssertUnwindSafe(|| checker.step(self.share.work)));
            let took = began.elapsed();
            worked += took;
            let outcome = match step {
                Ok(Ok(Progress::Working)) => {
                    if self.jobs.rest(took * self.share.rest) {
                        return None;
                    }
                    continue;
                }
                Ok(Ok(Progress::Done(report))) => Ok(report),
                Ok(Ok(Progress::Idle)) => {
                    Err("the checker lost what it looked at; please report it".to_owned())
                }
                Ok(Err(difference)) => Err(difference.to_string()),
                Err(panic) => Err(format!(
                    "the checker failed: {}; please report it",
                    panic_message(&*panic)
                )),
            };
            return Some(ProofPass {
                generation: subject.generation,
                outcome,
                worked,
            });
        }
    }
}
