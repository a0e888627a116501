//! Compile, then prove: one state after the other, on a thread of its own.
//!
//! The compiler keeps what it compiled and the checker what it proved, each to go on at the cost of the next change.
//! After a panic or a difference neither is believed any more: both begin from nothing.

use std::{
    any::Any,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ringwall_compile::{Budget, CompileError, Compiled, Compiler, EpochKey};
use ringwall_config::Verify;
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::Cluster;
use ringwall_process::essential::Essential;
use ringwall_prove::{Checker, Difference, Progress, Report};
use ringwall_source::feed::SourceState;
use tokio::sync::mpsc as events;

/// Makes a snapshot of a state.
pub(super) trait Compile: Send {
    /// As [`Compiler::update`].
    fn update(&mut self, cluster: &Cluster, generation: Generation) -> Result<Compiled, CompileError>;
}

impl Compile for Compiler {
    fn update(&mut self, cluster: &Cluster, generation: Generation) -> Result<Compiled, CompileError> {
        Compiler::update(self, cluster, generation)
    }
}

/// Proves that a snapshot is what its state says.
pub(super) trait Prove: Send {
    /// As [`Checker::full`].
    fn full(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>>;
    /// As [`Checker::changed`].
    fn changed(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>>;
    /// As [`Checker::within`].
    fn within(
        &mut self,
        cluster: &Cluster,
        snapshot: &Arc<Snapshot>,
        full: bool,
        until: Instant,
    ) -> Result<Option<Report>, Box<Difference>>;
    /// As [`Checker::look_at`].
    fn look_at(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>);
    /// As [`Checker::step`].
    fn step(&mut self, budget: Duration) -> Result<Progress, Box<Difference>>;
}

impl Prove for Checker {
    fn full(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>> {
        Checker::full(self, cluster, snapshot)
    }

    fn changed(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) -> Result<Report, Box<Difference>> {
        Checker::changed(self, cluster, snapshot)
    }

    fn within(
        &mut self,
        cluster: &Cluster,
        snapshot: &Arc<Snapshot>,
        full: bool,
        until: Instant,
    ) -> Result<Option<Report>, Box<Difference>> {
        Checker::within(self, cluster, snapshot, full, until)
    }

    fn look_at(&mut self, cluster: &Cluster, snapshot: &Arc<Snapshot>) {
        Checker::look_at(self, cluster, snapshot);
    }

    fn step(&mut self, budget: Duration) -> Result<Progress, Box<Difference>> {
        Checker::step(self, budget)
    }
}

/// Makes compilers and checkers. A test puts others in their place.
#[derive(Clone)]
pub(super) struct StageFactory {
    pub(super) compiler: Arc<dyn Fn(EpochKey) -> Box<dyn Compile> + Send + Sync>,
    pub(super) checker: Arc<dyn Fn() -> Box<dyn Prove> + Send + Sync>,
}

impl StageFactory {
    /// Those of every installation; snapshots may take `budget`.
    pub(super) fn with_budget(budget: Budget) -> Self {
        Self {
            // Whoever chooses addresses of pods does not know where they lie.
            compiler: Arc::new(move |key| {
                let seed = RandomState::new().hash_one("hosts");
                Box::new(Compiler::seeded(key, budget, seed))
            }),
            checker: Arc::new(|| Box::new(Checker::new())),
        }
    }
}

/// What is to be made.
pub(super) struct Job {
    pub(super) state: Arc<SourceState>,
    pub(super) generation: u64,
    /// Whether to begin from nothing.
    pub(super) from_scratch: bool,
}

/// A snapshot that may be published.
pub(super) struct CompiledSnapshot {
    pub(super) compiled: Compiled,
    /// How long compiling took.
    pub(super) compile: Duration,
    /// The snapshot that was proven, how, and how long that took; None where nothing is to be proven.
    pub(super) proof: Option<Proof>,
    /// The snapshot, where its proof took too long: it is published nevertheless.
    pub(super) unproven: Option<Arc<Snapshot>>,
    /// What was wrong with the one that was made from the snapshot before; this one was compiled in full instead.
    pub(super) corrected: Option<Box<Difference>>,
}

/// A proof that was found.
pub(super) struct Proof {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) report: Report,
    pub(super) took: Duration,
}

/// What came of a proof that found nothing wrong.
enum ProofOutcome {
    Done(Proof),
    TooLong(Arc<Snapshot>),
}

/// Why nothing can be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It says something else than the objects.
    #[error("the compiled snapshot contradicts the policies and is not published; please report it: {0}")]
    Differs(Box<Difference>),
    /// The compiler or the checker panicked.
    #[error("the compiler or the checker failed: {0}; please report it")]
    Panicked(String),
}

/// What came of a [`Job`].
pub(super) struct Outcome {
    pub(super) state: Arc<SourceState>,
    pub(super) generation: u64,
    pub(super) made: Result<CompiledSnapshot, Failure>,
}

/// The thread. It ends with its last job when this is dropped.
pub(super) struct Pipeline {
    jobs: mpsc::Sender<Job>,
    outcomes: events::UnboundedReceiver<Outcome>,
}

impl Pipeline {
    pub(super) fn start(
        tools: StageFactory,
        key: EpochKey,
        verify: Verify,
        publish_after: Option<Duration>,
        essential: &Essential,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        // One for each job, and the loop has one job at a time.
        let (finished, outcomes) = events::unbounded_channel();
        essential.thread("rw-compile", move || {
            let mut stage = Stage::new(tools, key, verify, publish_after);
            for job in queue {
                let made = stage.run(&job);
                let outcome = Outcome {
                    state: job.state,
                    generation: job.generation,
                    made,
                };
                if finished.send(outcome).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, outcomes })
    }

    pub(super) fn begin(&self, job: Job) {
        // Where the thread has ended, that is reported.
        let _ = self.jobs.send(job);
    }

    /// What came of the job that was begun; for ever where none was.
    pub(super) async fn finished(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }
}

struct Stage {
    tools: StageFactory,
    key: EpochKey,
    verify: Verify,
    /// After so long a snapshot is published without its proof.
    publish_after: Option<Duration>,
    compiler: Box<dyn Compile>,
    checker: Box<dyn Prove>,
}

impl Stage {
    fn new(tools: StageFactory, key: EpochKey, verify: Verify, publish_after: Option<Duration>) -> Self {
        Self {
            compiler: (tools.compiler)(key),
            checker: (tools.checker)(),
            tools,
            key,
            verify,
            publish_after,
        }
    }

    fn begin_from_scratch(&mut self) {
        self.compiler = (self.tools.compiler)(self.key);
        self.checker = (self.tools.checker)();
    }

    fn run(&mut self, job: &Job) -> Result<CompiledSnapshot, Failure> {
        if job.from_scratch {
            self.begin_from_scratch();
        }
        // Whatever a panic leaves half done is thrown away.
        match catch_unwind(AssertUnwindSafe(|| self.make(job))) {
            Ok(made) => made,
            Err(panic) => {
                self.begin_from_scratch();
                Err(Failure::Panicked(panic_message(&*panic)))
            }
        }
    }

    fn make(&mut self, job: &Job) -> Result<CompiledSnapshot, Failure> {
        match self.attempt(job) {
            Err((Failure::Differs(difference), true)) => {
                // The step from the snapshot before was wrong; the whole way may be right.
                self.begin_from_scratch();
                match self.attempt(job) {
                    Ok(made) => Ok(CompiledSnapshot {
                        corrected: Some(difference),
                        ..made
                    }),
                    Err((failure, _)) => {
                        self.begin_from_scratch();
                        Err(failure)
                    }
                }
            }
            Err((failure, _)) => {
                if !matches!(failure, Failure::Compile(_)) {
                    self.begin_from_scratch();
                }
                Err(failure)
            }
            Ok(made) => Ok(made),
        }
    }

    /// Beside a failure: whether what failed was made from the snapshot before.
    fn attempt(&mut self, job: &Job) -> Result<CompiledSnapshot, (Failure, bool)> {
        let cluster = &job.state.cluster;
        let started = Instant::now();
        let compiled = self
            .compiler
            .update(cluster, Generation(job.generation))
            .map_err(|error| (error.into(), false))?;
        let compile = started.elapsed();
        let incremental = compiled.incremental;
        let (proof, unproven) = match self.prove(cluster, &compiled) {
            Ok(None) => (None, None),
            Ok(Some(ProofOutcome::Done(proof))) => (Some(proof), None),
            Ok(Some(ProofOutcome::TooLong(snapshot))) => (None, Some(snapshot)),
            Err(failure) => return Err((failure, incremental)),
        };
        Ok(CompiledSnapshot {
            compiled,
            compile,
            proof,
            unproven,
            corrected: None,
        })
    }

    fn prove(&mut self, cluster: &Cluster, compiled: &Compiled) -> Result<Option<ProofOutcome>, Failure> {
        if self.verify == Verify::Off {
            return Ok(None);
        }
        let started = Instant::now();
        let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
        let full = self.verify == Verify::Full;
        let report = match self.publish_after {
            Some(limit) => self.checker.within(cluster, &snapshot, full, started + limit),
            None if full => self.checker.full(cluster, &snapshot).map(Some),
            None => self.checker.changed(cluster, &snapshot).map(Some),
        };
        Ok(Some(match report.map_err(Failure::Differs)? {
            Some(report) => ProofOutcome::Done(Proof {
                snapshot,
                report,
                took: started.elapsed(),
            }),
            None => ProofOutcome::TooLong(snapshot),
        }))
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "it panicked".to_owned()
    }
}
