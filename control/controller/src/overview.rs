//! What is known of everything: for status, readiness and metrics.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringwall_analyse::{
    coverage::{Coverage, FirewallPosition},
    explain::{Question, services::Explained},
};
use ringwall_config::Verify;
use ringwall_messages::{
    ClusterUid, CompiledStatus, ContentHash, ControlStatus, ObjectCounts, ProofStatus, PublicationStatus,
    ResourceVersions, Status, Supervision,
    cni::{PodStart, PodStartAnswer},
};
use ringwall_policy::{UNKNOWN_KINDS, services::Services};
use ringwall_prove::Report;
use ringwall_source::{
    feed::{Accept, Feed, Health, ServiceFeed, SourceState},
    problems::Problems,
};

use super::{
    active_policy::{ActivePolicy, AskError},
    pipeline::{CompiledSnapshot, Failure},
    pod_starts::{self, PodStarts},
    rolling_proof::ProofPass,
};
use crate::{
    dataplane_client::DataplaneInquiry,
    metrics::Latencies,
    staged::{AskedFlow, StagedAnswer},
};

/// How long the dataplane may take to say how it is doing.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The loop is stuck when it has not turned for so long.
pub(super) const STUCK: Duration = Duration::from_secs(30);

/// Control is stuck, too, where a state is compiled and proven for as many times as long as its adoption may take: more
/// than the largest cluster takes on a busy machine.
const HUNG: u32 = 4;

/// How long an alarm about something that is over stays.
const PAST_ALARM_SHOWN: Duration = Duration::from_secs(15 * 60);

/// Fewer policies than this vanishing at once are nothing unusual.
const FEW_POLICIES: u64 = 10;

/// Why control is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Names no object, no address and no place.
    pub brief: String,
    /// For root alone.
    pub detail: Option<String>,
}

impl Reason {
    fn new(brief: impl Into<String>) -> Self {
        Self {
            brief: brief.into(),
            detail: None,
        }
    }

    fn detailed(brief: &str, detail: impl Into<String>) -> Self {
        Self {
            brief: brief.to_owned(),
            detail: Some(detail.into()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

/// How long things may take before somebody has to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// From the acceptance by the dataplane to the adoption by the last worker.
    pub(super) adoption: Duration,
    /// From the first event of a state to its adoption by every worker.
    pub(super) unadopted: Duration,
    /// A proof.
    pub(super) proof: Duration,
}

/// How far the newest state is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// First event of the oldest state that no later one has replaced in all workers.
    pub(super) unadopted: Option<Instant>,
    /// Since when a state is being compiled and proven.
    pub(super) compiling: Option<Instant>,
    /// What a state waits for.
    pub(super) waits_for: &'static str,
}

/// How long Services may take to be listed: the first question about one has them watched.
const SERVICES_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of everything. Written by the loop, read by whoever asks.
#[derive(Debug)]
pub struct Overview {
    name: String,
    started: Instant,
    health: Arc<Health>,
    services: ServiceFeed,
    accept: Option<Accept>,
    inquiry: DataplaneInquiry,
    supervision: PathBuf,
    limits: Limits,
    latencies: Latencies,
    active_policy: ActivePolicy,
    pod_starts: PodStarts,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    beat: Instant,
    turns: u64,
    progress: Progress,
    objects: ObjectCounts,
    problems: Problems,
    incomplete: Vec<String>,
    vanished: Option<(Instant, String)>,
    compiled: CompiledStatus,
    proof: ProofStatus,
    /// Generation that was published before its proof had ended.
    unproven: Option<u64>,
    /// Generation in force when `proof.difference` was found; a later one that is proven whole ends it.
    contradicted: u64,
    /// When a snapshot was last proven whole.
    proven_whole: Option<Instant>,
    /// What was wrong with a snapshot that was compiled in full instead.
    corrected: Option<(Instant, String)>,
    /// The source has become another cluster.
    replaced: Option<(Instant, String)>,
    publication: PublicationStatus,
    line: Option<String>,
    /// Accepted and not adopted yet: generation, and since when.
    adopting: Option<(u64, Instant)>,
    ever_connected: bool,
    /// Whether the dataplane that is connected decides by a snapshot of this process.
    in_force: bool,
}

impl Inner {
    fn proven_whole(&mut self, generation: u64, took: Duration) {
        self.unproven = self.unproven.filter(|unproven| *unproven > generation);
        self.proven_whole = Some(Instant::now());
        if generation > self.contradicted {
            self.proof.difference = None;
        }
        self.proof.full_generation = generation;
        self.proof.full_micros = took.as_micros() as u64;
    }

    /// What is wrong with the newest state or with the snapshot in force, as far as compiling and proving go.
    fn faults(&self) -> Option<Reason> {
        match (&self.compiled.error, &self.proof.difference) {
            (Some(error), _) => Some(Reason::detailed("the newest state cannot be published", error)),
            (None, Some(difference)) => Some(Reason::detailed(
                "the snapshot in force contradicts the policies; please report it",
                difference,
            )),
            (None, None) => None,
        }
    }

    /// Whether a state has waited for its adoption for too long.
    fn late(&self, limits: Limits) -> Option<Reason> {
        let waiting = self.progress.unadopted?.elapsed();
        (waiting > limits.unadopted).then(|| {
            Reason::new(format!(
                "the newest state of the source has not been adopted by every worker for {} s, longer than source.adoptWithin: it waits for {}",
                waiting.as_secs(),
                self.progress.waits_for
            ))
        })
    }

    fn overdue(&self, limits: Limits) -> Option<Reason> {
        let (generation, since) = self.adopting?;
        let waiting = since.elapsed();
        (waiting > limits.adoption).then(|| {
            Reason::new(format!(
                "generation {generation} was accepted {} s ago and a worker has not adopted it",
                waiting.as_secs()
            ))
        })
    }
}

impl Overview {
    pub(super) fn new(
        name: String,
        verify: Verify,
        feed: &mut Feed,
        inquiry: DataplaneInquiry,
        supervision: PathBuf,
        limits: Limits,
    ) -> Self {
        let inner = Inner {
            beat: Instant::now(),
            turns: 0,
            progress: Progress::default(),
            objects: ObjectCounts::default(),
            problems: Problems::default(),
            incomplete: Vec::new(),
            vanished: None,
            compiled: CompiledStatus::default(),
            proof: ProofStatus {
                verify: match verify {
                    Verify::Full => "full",
                    Verify::Changed => "changed",
                    Verify::Off => "off",
                }
                .to_owned(),
                ..ProofStatus::default()
            },
            unproven: None,
            contradicted: 0,
            proven_whole: None,
            corrected: None,
            replaced: None,
            publication: PublicationStatus::default(),
            line: None,
            adopting: None,
            ever_connected: false,
            in_force: false,
        };
        Self {
            name,
            started: Instant::now(),
            health: Arc::clone(&feed.health),
            services: feed.services.clone(),
            accept: feed.accept.take(),
            inquiry,
            supervision,
            limits,
            latencies: Latencies::default(),
            active_policy: ActivePolicy::default(),
            pod_starts: PodStarts::default(),
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Only figures and texts are in it: as good after a panic elsewhere as before.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long each step takes.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Pods that are about to start.
    pub(super) fn pod_starts(&self) -> &PodStarts {
        &self.pod_starts
    }

    /// Notes that a pod of this node is about to start; whether every worker decides by a snapshot that has it. The error says
    /// what is wrong with the question.
    pub(super) fn start_pod(&self, start: PodStart) -> Result<PodStartAnswer, String> {
        let key =
            pod_starts::key(&start.pod).ok_or_else(|| format!("`{}` is not namespace/name", start.pod))?;
        let container = start.container.clone();
        let (uid, addresses) = (start.uid.clone(), start.addresses.clone());
        self.pod_starts.begin(start)?;
        let known = self.active_policy.has_pod(&key, uid.as_deref(), &addresses);
        let reason = if known {
            String::new()
        } else {
            self.pod_starts.reason(&container)
        };
        Ok(PodStartAnswer { known, reason })
    }

    /// The state and the snapshot that decide now.
    pub(super) fn active_policy(&self) -> &ActivePolicy {
        &self.active_policy
    }

    /// Explains a flow under the state and the snapshot that decide now. Takes a while.
    ///
    /// # Errors
    /// There is none yet, an end is not known, or the state and the snapshot contradict each other.
    pub(crate) fn explain(
        &self,
        question: &Question,
        port_name: Option<&str>,
        services: &Services,
    ) -> Result<Explained, AskError> {
        self.active_policy.explain(question, port_name, services)
    }

    /// Whether an address is that of a Service, as far as the configuration says.
    pub(crate) fn is_of_services(&self, address: IpAddr) -> bool {
        self.active_policy.is_of_services(address)
    }

    /// The Services of the source, which are watched from the first question about them on; None where they do not come in time.
    pub(crate) async fn services(&self) -> Option<Arc<Services>> {
        self.services.get(SERVICES_PATIENCE).await
    }

    /// Says what would become of flows if what is staged were enforced. Takes a while.
    ///
    /// # Errors
    /// There is no policy yet, or what is staged cannot be compiled.
    pub(crate) fn staged(&self, flows: &[AskedFlow]) -> Result<StagedAnswer, AskError> {
        self.active_policy.staged(flows)
    }

    /// Says what of the state that decides now is enforced from a place. Takes a while.
    ///
    /// # Errors
    /// There is none yet.
    pub(crate) fn coverage(&self, place: &FirewallPosition) -> Result<Coverage, AskError> {
        self.active_policy.coverage(place)
    }

    pub(super) fn beat(&self, progress: Progress) {
        let mut inner = self.inner();
        inner.progress = progress;
        inner.beat = Instant::now();
        inner.turns += 1;
    }

    /// How often the loop has turned.
    pub(super) fn turns(&self) -> u64 {
        self.inner().turns
    }

    pub(super) fn state(&self, state: &SourceState) {
        let mut inner = self.inner();
        let objects = ObjectCounts::of(&state.cluster, state.staged.len());
        let of_all_kinds = |objects: &ObjectCounts| objects.policies + objects.cluster_policies;
        let (before, now) = (of_all_kinds(&inner.objects), of_all_kinds(&objects));
        if let Some(text) = vanished(before, now) {
            tracing::warn!("{text}");
            inner.vanished = Some((Instant::now(), text));
        }
        inner.objects = objects;
        inner.problems.clone_from(&state.problems);
        inner.incomplete = state.cluster.unevaluated_kinds.iter().cloned().collect();
    }

    pub(super) fn record_compiled(
        &self,
        generation: u64,
        versions: ResourceVersions,
        hash: ContentHash,
        made: &CompiledSnapshot,
    ) {
        let mut inner = self.inner();
        let compiled = &mut inner.compiled;
        compiled.generation = generation;
        compiled.resource_versions = versions;
        compiled.hash = Some(hash);
        compiled.bytes = made.compiled.stats.bytes;
        compiled.compile_micros = made.compile.as_micros() as u64;
        compiled.incremental = made.compiled.incremental;
        compiled.compiled += 1;
        compiled.compiled_incrementally += u64::from(made.compiled.incremental);
        compiled.error = None;
        if let Some(difference) = &made.corrected {
            let text = difference.to_string();
            tracing::error!(
                "an incrementally compiled snapshot failed its proof and was compiled in full instead: {text}"
            );
            inner.proof.differences += 1;
            inner.corrected = Some((Instant::now(), text));
        }
        if made.unproven.is_some() {
            tracing::warn!(
                generation,
                "published before it was proven, because the proof takes longer than verify.deadline"
            );
            inner.unproven = Some(generation);
        }
        if let Some(proof) = &made.proof {
            inner.unproven = None;
            inner.proof.proven += 1;
            inner.proof.micros = proof.took.as_micros() as u64;
            inner.proof.classes = proof.report.classes;
            inner.proof.pairs = proof.report.pairs;
            inner.proof.whole = proof.report.whole;
            inner.proof.difference = None;
            if proof.report.whole {
                inner.proven_whole(generation, proof.took);
            }
        }
    }

    pub(super) fn record_failure(&self, failure: &Failure) {
        let reason = failure.to_string();
        tracing::error!("cannot publish the newest state, the previous snapshot stays in force: {reason}");
        let mut inner = self.inner();
        if let Failure::Differs(difference) = failure {
            inner.proof.differences += 1;
            inner.proof.difference = Some(difference.to_string());
            inner.contradicted = inner.compiled.generation;
        }
        inner.compiled.failed += 1;
        inner.compiled.error = Some(reason);
    }

    /// A proof in the background has ended.
    pub(super) fn record_proof_pass(&self, pass: ProofPass) {
        let mut inner = self.inner();
        match pass.outcome {
            Ok(Report { classes, .. }) => {
                tracing::debug!(generation = pass.generation, classes, "proven whole");
                inner.proof.passes += 1;
                inner.proven_whole(pass.generation, pass.worked);
            }
            Err(reason) => {
                tracing::error!(
                    generation = pass.generation,
                    "a published snapshot failed its proof; compiling in full: {reason}"
                );
                inner.proof.differences += 1;
                inner.proof.difference = Some(reason);
                inner.contradicted = pass.generation;
            }
        }
    }

    /// The source is another cluster than the one that the policy in force was made from.
    pub(super) fn another_cluster(&self, place: &str, before: &ClusterUid, now: &ClusterUid) {
        let text = format!(
            "{place} is another cluster than before: its namespace kube-system has the UID {now}, and the policy in force was \
             made from one where that is {before}; the new cluster's policy replaces it. If the cluster was not rebuilt or moved, \
             check which server the kubeconfig names"
        );
        tracing::warn!("{text}");
        self.inner().replaced = Some((Instant::now(), text));
    }

    /// The dataplane is there with a snapshot; `ours` where it is the one published last.
    pub(super) fn connected(&self, generation: u64, ours: bool) {
        let mut inner = self.inner();
        inner.publication.connected = true;
        inner.publication.reconnects += u64::from(inner.ever_connected);
        inner.publication.accepted = generation;
        inner.publication.adopted = generation;
        inner.in_force = ours;
        inner.ever_connected = true;
        inner.line = None;
    }

    pub(super) fn disconnected(&self, reason: String) {
        let mut inner = self.inner();
        inner.publication.connected = false;
        inner.adopting = None;
        inner.line = Some(reason);
    }

    pub(super) fn accepted(&self, generation: u64) {
        let mut inner = self.inner();
        inner.publication.accepted = generation;
        inner.publication.refusal = None;
        // Where one before is overdue, that is what counts.
        inner.adopting.get_or_insert((generation, Instant::now()));
    }

    pub(super) fn refused(&self, reason: String) {
        let mut inner = self.inner();
        inner.publication.refused += 1;
        inner.publication.refusal = Some(reason);
    }

    pub(super) fn adopted(&self, generation: u64, total: Option<Duration>) {
        let mut inner = self.inner();
        inner.publication.adopted = generation;
        inner.publication.adoptions += 1;
        if inner.adopting.is_some_and(|(waiting, _)| waiting <= generation) {
            let accepted = inner.publication.accepted;
            inner.adopting = (accepted > generation).then(|| (accepted, Instant::now()));
        }
        if let Some(total) = total {
            inner.publication.event_to_adopted_micros = Some(total.as_micros() as u64);
        }
        inner.in_force = true;
    }

    /// Takes what the source holds back.
    ///
    /// # Errors
    /// It holds nothing back.
    pub fn accept(&self) -> Result<(), String> {
        match (&self.accept, self.health.holding_back()) {
            (Some(accept), Some(_)) => {
                accept.accept();
                Ok(())
            }
            _ => Err("the source holds nothing back".to_owned()),
        }
    }

    /// Why control is stuck; None where it is not. What waits for others is no reason: a new process would wait, too.
    pub fn stuck(&self) -> Option<String> {
        let inner = self.inner();
        let since = inner.beat.elapsed();
        if since > STUCK {
            return Some(format!(
                "the control loop has not turned for {} s",
                since.as_secs()
            ));
        }
        let compiling = inner.progress.compiling?.elapsed();
        (compiling > self.limits.unadopted * HUNG).then(|| {
            format!(
                "a state has been compiled and proven for {} s without an end",
                compiling.as_secs()
            )
        })
    }

    /// Why the policy in force is not that of a synced source; empty where it is.
    pub fn not_ready(&self) -> Vec<Reason> {
        let source = self.health.status();
        let inner = self.inner();
        let mut reasons = Vec::new();
        if !source.synced {
            reasons.push(match &source.last_error {
                Some(error) => Reason::detailed("the source is not synced", error),
                None => Reason::new("the source is not synced yet"),
            });
        }
        reasons.extend(inner.faults());
        if let Some(error) = &inner.publication.refusal {
            reasons.push(Reason::detailed(
                "the dataplane refused the newest snapshot",
                error,
            ));
        }
        reasons.extend(inner.overdue(self.limits));
        reasons.extend(inner.late(self.limits));
        if !inner.publication.connected {
            reasons.push(match &inner.line {
                Some(error) => Reason::detailed("the dataplane is not connected", error),
                None => Reason::new("the dataplane is not connected yet"),
            });
        } else if !inner.in_force {
            reasons.push(Reason::new("no snapshot of the source has been adopted yet"));
        }
        reasons
    }

    fn alarms(&self) -> Vec<String> {
        let source = self.health.status();
        let inner = self.inner();
        let mut alarms = Vec::new();
        if source.stale {
            alarms.push(format!(
                "the source has been away for {} s, longer than staleAfter",
                source.stale_seconds.unwrap_or(0.0) as u64
            ));
        }
        if let Some(reason) = &source.held_back {
            alarms.push(format!("the newest state of the source is held back: {reason}"));
        }
        if let Some((at, text)) = &inner.vanished
            && at.elapsed() < PAST_ALARM_SHOWN
        {
            alarms.push(text.clone());
        }
        if let Some((at, text)) = &inner.replaced
            && at.elapsed() < PAST_ALARM_SHOWN
        {
            alarms.push(text.clone());
        }
        alarms.extend(inner.faults().map(|reason| reason.to_string()));
        if let Some((at, text)) = &inner.corrected
            && at.elapsed() < PAST_ALARM_SHOWN
        {
            alarms.push(format!(
                "a snapshot made from the one before was wrong and was compiled in full instead; please report it: {text}"
            ));
        }
        if let Some(error) = &inner.publication.refusal {
            alarms.push(format!("the dataplane refused the newest snapshot: {error}"));
        }
        alarms.extend(inner.overdue(self.limits).map(|reason| reason.to_string()));
        alarms.extend(inner.late(self.limits).map(|reason| reason.to_string()));
        if let Some(generation) = inner.unproven {
            alarms.push(format!(
                "generation {generation} was published before it was proven, which takes longer than verify.deadline; it is being proven"
            ));
        }
        if let Some(since) = inner.progress.compiling
            && since.elapsed() > self.limits.proof
        {
            alarms.push(format!(
                "a state has been compiled and proven for {} s, longer than verify.deadline",
                since.elapsed().as_secs()
            ));
        }
        // Why the kinds are not known, or cannot be read, the source says itself.
        let kinds: Vec<&str> = inner
            .incomplete
            .iter()
            .map(String::as_str)
            .filter(|kind| *kind != UNKNOWN_KINDS && !self.health.explains(kind))
            .collect();
        if !kinds.is_empty() {
            alarms.push(format!(
                "policies of these kinds exist and are not evaluated: {}",
                kinds.join(", ")
            ));
        }
        alarms.extend(self.health.alarms());
        alarms
    }

    /// Everything, the dataplane's part included.
    pub async fn status(&self) -> Status {
        let dataplane = self.inquiry.status(STATUS_TIMEOUT).await.ok();
        let supervision = std::fs::read(&self.supervision)
            .ok()
            .and_then(|text| serde_json::from_slice::<Supervision>(&text).ok());
        let not_ready: Vec<String> = self.not_ready().iter().map(Reason::to_string).collect();
        let alarms = self.alarms();
        let inner = self.inner();
        let control = ControlStatus {
            version: ringwall_messages::RELEASE.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            ready: not_ready.is_empty(),
            not_ready,
            source: self.health.status(),
            objects: inner.objects.clone(),
            problems: inner.problems.iter().cloned().collect(),
            incomplete: inner.incomplete.clone(),
            snapshot: inner.compiled.clone(),
            proof: ProofStatus {
                full_seconds: inner.proven_whole.map(|at| at.elapsed().as_secs_f64()),
                ..inner.proof.clone()
            },
            publication: PublicationStatus {
                unadopted_seconds: inner
                    .progress
                    .unadopted
                    .map(|since| since.elapsed().as_secs_f64()),
                ..inner.publication.clone()
            },
            alarms,
        };
        Status {
            name: self.name.clone(),
            control: Some(control),
            dataplane,
            supervision,
        }
    }
}

/// Whether so many policies are gone at once that somebody should look.
fn vanished(before: u64, now: u64) -> Option<String> {
    (before >= FEW_POLICIES && now * 2 < before)
        .then(|| format!("{} of {before} policies vanished at once", before - now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed step is a failed test

    use super::*;

    #[test]
    fn a_few_policies_that_vanish_are_nothing_unusual() {
        assert_eq!(vanished(9, 0), None);
        assert_eq!(vanished(10, 5), None);
        assert_eq!(vanished(10, 4).unwrap(), "6 of 10 policies vanished at once");
    }
}
