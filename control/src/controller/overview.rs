//! What is known of everything: for status, readiness and metrics.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{
    cluster::Cluster,
    metrics::Latencies,
    protocol::{
        CompiledStatus, ContentHash, ControlStatus, ObjectCounts, PublicationStatus, Status, Supervision,
    },
    publish::DataplaneInquiry,
    source::{
        feed::{Accept, Health, SourceState},
        problems::Problems,
    },
};

/// How long the dataplane may take to say how it is doing.
const PATIENCE: Duration = Duration::from_secs(2);

/// The loop is stuck when it has not turned for so long.
const STUCK: Duration = Duration::from_secs(30);

/// How long an alarm about vanished policies stays.
const REMEMBER_VANISHED: Duration = Duration::from_secs(15 * 60);

/// Fewer policies than this vanishing at once are nothing unusual.
const FEW_POLICIES: u64 = 4;

/// As many prefixes are named in one alarm.
const NAMED_PREFIXES: usize = 8;

/// The prefixes of nodes (`spec.podCIDRs`) that the configured prefixes do not hold, by node. The XDP programs and the
/// egress guard know the configured ones alone: what lies outside of them is no pod to them.
fn outside_pod_cidrs(cluster: &Cluster) -> Vec<(String, IpNet)> {
    // Halves that are configured hold the whole.
    let configured = IpNet::aggregate(&cluster.settings.pod_cidrs);
    let covered = |prefix: &IpNet| configured.iter().any(|known| known.contains(prefix));
    let mut outside: Vec<(String, IpNet)> = cluster
        .nodes
        .values()
        .flat_map(|node| node.pod_cidrs.iter().map(|prefix| (node.name.clone(), *prefix)))
        .filter(|(_, prefix)| !covered(prefix))
        .collect();
    outside.sort_unstable();
    outside
}

fn uncovered_alarm(uncovered: &[(String, IpNet)]) -> String {
    let mut named: Vec<String> = uncovered
        .iter()
        .take(NAMED_PREFIXES)
        .map(|(node, prefix)| format!("{prefix} of node {node}"))
        .collect();
    if uncovered.len() > NAMED_PREFIXES {
        named.push(format!("{} more", uncovered.len() - NAMED_PREFIXES));
    }
    format!(
        "spec.podCIDRs lie outside of cluster.podCIDRs, so that fail mode and egress guard do not hold for the pods there: {}; add them to cluster.podCIDRs and restart",
        named.join(", ")
    )
}

/// What is known of everything. Written by the loop, read by whoever asks.
#[derive(Debug)]
pub struct Overview {
    name: String,
    started: Instant,
    health: Arc<Health>,
    accept: Option<Accept>,
    inquiry: DataplaneInquiry,
    supervision: PathBuf,
    /// How long adoption may take.
    patience: Duration,
    latencies: Latencies,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    beat: Instant,
    source_ended: bool,
    objects: ObjectCounts,
    problems: Problems,
    incomplete: Vec<String>,
    vanished: Option<(Instant, String)>,
    /// Nodes whose pods the dataplane's programs do not take for pods, with the prefixes.
    uncovered: Vec<(String, IpNet)>,
    compiled: CompiledStatus,
    publication: PublicationStatus,
    line: Option<String>,
    /// Accepted and not adopted yet: generation, and since when.
    adopting: Option<(u64, Instant)>,
    ever_connected: bool,
    /// Whether the dataplane that is connected decides by a snapshot of this process.
    in_force: bool,
}

impl Inner {
    fn overdue(&self, patience: Duration) -> Option<String> {
        let (generation, since) = self.adopting?;
        let waiting = since.elapsed();
        (waiting > patience).then(|| {
            format!(
                "generation {generation} was accepted {} s ago and a worker has not adopted it",
                waiting.as_secs()
            )
        })
    }
}

impl Overview {
    pub(super) fn new(
        name: String,
        health: Arc<Health>,
        accept: Option<Accept>,
        inquiry: DataplaneInquiry,
        supervision: PathBuf,
        patience: Duration,
    ) -> Self {
        let inner = Inner {
            beat: Instant::now(),
            source_ended: false,
            objects: ObjectCounts::default(),
            problems: Problems::default(),
            incomplete: Vec::new(),
            vanished: None,
            uncovered: Vec::new(),
            compiled: CompiledStatus::default(),
            publication: PublicationStatus::default(),
            line: None,
            adopting: None,
            ever_connected: false,
            in_force: false,
        };
        Self {
            name,
            started: Instant::now(),
            health,
            accept,
            inquiry,
            supervision,
            patience,
            latencies: Latencies::default(),
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

    pub(super) fn beat(&self) {
        self.inner().beat = Instant::now();
    }

    pub(super) fn source_ended(&self) {
        self.inner().source_ended = true;
    }

    pub(super) fn state(&self, state: &SourceState) {
        let mut inner = self.inner();
        let objects = ObjectCounts::of(&state.cluster);
        let (before, now) = (inner.objects.policies, objects.policies);
        if before >= FEW_POLICIES && now * 2 < before {
            let text = format!("{} of {before} policies vanished at once", before - now);
            tracing::warn!("{text}");
            inner.vanished = Some((Instant::now(), text));
        }
        let uncovered = outside_pod_cidrs(&state.cluster);
        for (node, prefix) in &uncovered {
            if !inner
                .uncovered
                .iter()
                .any(|(name, known)| (name, known) == (node, prefix))
            {
                tracing::warn!(
                    node,
                    %prefix,
                    "spec.podCIDRs of the node lies outside of cluster.podCIDRs: its pods are outside of fail mode and egress guard"
                );
            }
        }
        inner.uncovered = uncovered;
        inner.objects = objects;
        inner.problems.clone_from(&state.problems);
        inner.incomplete = state.cluster.unevaluated_kinds.iter().cloned().collect();
    }

    pub(super) fn compiled(&self, generation: u64, hash: ContentHash, bytes: u64, took: Duration) {
        let compiled = &mut self.inner().compiled;
        compiled.generation = generation;
        compiled.hash = Some(hash);
        compiled.bytes = bytes;
        compiled.compile_micros = took.as_micros() as u64;
        compiled.compiled += 1;
        compiled.error = None;
    }

    pub(super) fn not_compiled(&self, reason: String) {
        tracing::error!("the newest state cannot be compiled, the snapshot before stays in force: {reason}");
        let compiled = &mut self.inner().compiled;
        compiled.failed += 1;
        compiled.error = Some(reason);
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

    /// Why the loop does not turn; None where it does.
    pub fn stuck(&self) -> Option<String> {
        let since = self.inner().beat.elapsed();
        (since > STUCK).then(|| format!("the control loop has not turned for {} s", since.as_secs()))
    }

    /// Why the policy in force is not that of a synced source; empty where it is.
    pub fn not_ready(&self) -> Vec<String> {
        let source = self.health.status();
        let inner = self.inner();
        let mut reasons = Vec::new();
        if !source.synced {
            reasons.push(match &source.last_error {
                Some(error) => format!("the source is not synced: {error}"),
                None => "the source is not synced yet".to_owned(),
            });
        }
        if let Some(error) = &inner.compiled.error {
            reasons.push(format!("the newest state cannot be compiled: {error}"));
        }
        if let Some(error) = &inner.publication.refusal {
            reasons.push(format!("the dataplane refused the newest snapshot: {error}"));
        }
        reasons.extend(inner.overdue(self.patience));
        if !inner.publication.connected {
            reasons.push(match &inner.line {
                Some(error) => format!("the dataplane is not connected: {error}"),
                None => "the dataplane is not connected yet".to_owned(),
            });
        } else if !inner.in_force {
            reasons.push("no snapshot of the source has been adopted yet".to_owned());
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
        if inner.source_ended {
            alarms.push("the source has ended; restart `ringwall control`".to_owned());
        }
        if let Some(reason) = &source.held_back {
            alarms.push(format!("the source's newest state is held back: {reason}"));
        }
        if let Some((at, text)) = &inner.vanished
            && at.elapsed() < REMEMBER_VANISHED
        {
            alarms.push(text.clone());
        }
        if !inner.uncovered.is_empty() {
            alarms.push(uncovered_alarm(&inner.uncovered));
        }
        if let Some(error) = &inner.compiled.error {
            alarms.push(format!("the newest state cannot be compiled: {error}"));
        }
        if let Some(error) = &inner.publication.refusal {
            alarms.push(format!("the dataplane refused the newest snapshot: {error}"));
        }
        alarms.extend(inner.overdue(self.patience));
        if !inner.incomplete.is_empty() {
            alarms.push(format!(
                "policies of these kinds exist and are not evaluated: {}",
                inner.incomplete.join(", ")
            ));
        }
        alarms
    }

    /// Everything, the dataplane's part included.
    pub async fn status(&self) -> Status {
        let dataplane = self.inquiry.status(PATIENCE).await.ok();
        let supervision = std::fs::read(&self.supervision)
            .ok()
            .and_then(|text| serde_json::from_slice::<Supervision>(&text).ok());
        let not_ready = self.not_ready();
        let alarms = self.alarms();
        let inner = self.inner();
        let control = ControlStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            ready: not_ready.is_empty(),
            not_ready,
            source: self.health.status(),
            objects: inner.objects.clone(),
            problems: inner.problems.iter().cloned().collect(),
            incomplete: inner.incomplete.clone(),
            snapshot: inner.compiled.clone(),
            publication: inner.publication.clone(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed step is a failed test

    use super::*;
    use crate::cluster::Node;

    fn outside(configured: &[&str], nodes: &[(&str, &[&str])]) -> Vec<String> {
        let parse = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<IpNet>>()
        };
        let mut cluster = Cluster::default();
        cluster.settings.pod_cidrs = parse(configured);
        for (name, prefixes) in nodes {
            let node = Node {
                name: (*name).to_owned(),
                addresses: Vec::new(),
                pod_cidrs: parse(prefixes),
            };
            cluster.nodes.insert(node.name.clone(), Arc::new(node));
        }
        outside_pod_cidrs(&cluster)
            .into_iter()
            .map(|(node, prefix)| format!("{node} {prefix}"))
            .collect()
    }

    #[test]
    fn only_prefixes_that_the_configuration_does_not_hold_are_outside() {
        let nodes: &[(&str, &[&str])] = &[
            ("b", &["10.9.0.0/24", "fd00:2::/64"]),
            ("a", &["10.1.1.0/24", "fd00:1::/64"]),
            ("c", &["10.0.0.0/15"]),
        ];
        assert_eq!(
            outside(&["10.1.0.0/16", "fd00:1::/48"], nodes),
            ["b 10.9.0.0/24", "b fd00:2::/64", "c 10.0.0.0/15"],
        );
        assert!(
            outside(&["10.0.0.0/9", "10.128.0.0/9", "fd00::/16"], nodes).is_empty(),
            "two halves hold the whole"
        );
    }

    #[test]
    fn the_alarm_names_node_and_prefix_and_stays_short() {
        let many: Vec<(String, IpNet)> = (0..20)
            .map(|n| (format!("n{n}"), format!("10.{n}.0.0/24").parse().unwrap()))
            .collect();
        let text = uncovered_alarm(&many);
        assert!(text.contains("10.3.0.0/24 of node n3"), "{text}");
        assert!(text.contains("12 more") && !text.contains("n15"), "{text}");
    }
}
