//! What Prometheus sees. Counters live where the work is done; they are read here when somebody scrapes.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::ConstCounter,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use ringwall_messages::{ControlStatus, DataplaneStatus, NodeStatus, ProofStatus, Status};

/// Content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long each step from an event to its adoption takes, in seconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From the first event of a state to the beginning of its compilation.
    pub settle: Histogram,
    /// The compilation.
    pub compile: Histogram,
    /// The proof before it is published.
    pub verify: Histogram,
    /// From the end of both to the dataplane's acceptance.
    pub accept: Histogram,
    /// From the acceptance to the adoption by the last worker.
    pub adopt: Histogram,
    /// From the first event to the adoption by the last worker.
    pub total: Histogram,
}

impl Default for Latencies {
    fn default() -> Self {
        // 100 microseconds to 52 seconds.
        let histogram = || Histogram::new(exponential_buckets(1e-4, 2.0, 20));
        Self {
            settle: histogram(),
            compile: histogram(),
            verify: histogram(),
            accept: histogram(),
            adopt: histogram(),
            total: histogram(),
        }
    }
}

impl Latencies {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from an event to its adoption by every worker, by step";
        let mut descriptor =
            encoder.encode_descriptor("publication_seconds", help, None, MetricType::Histogram)?;
        for (step, histogram) in [
            ("settle", &self.settle),
            ("compile", &self.compile),
            ("verify", &self.verify),
            ("accept", &self.accept),
            ("adopt", &self.adopt),
            ("total", &self.total),
        ] {
            histogram.encode(descriptor.encode_family(&[("step", step)])?)?;
        }
        Ok(())
    }
}

/// The text of a scrape, in the OpenMetrics format.
///
/// # Errors
/// The text cannot be written; not expected.
pub fn render(status: Status, latencies: &Latencies) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringwall");
    registry.register_collector(Box::new(Scrape {
        status,
        latencies: latencies.clone(),
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    status: Status,
    latencies: Latencies,
}

/// One metric, with its value for each set of labels; a single value where the set is empty.
type Series<'a, V> = Vec<(Vec<(&'static str, &'a str)>, V)>;

fn family<V, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    metric_type: MetricType,
    series: Series<'_, V>,
    metric: impl Fn(V) -> M,
) -> fmt::Result {
    let mut descriptor = encoder.encode_descriptor(name, help, None, metric_type)?;
    for (labels, value) in series {
        let metric = metric(value);
        if labels.is_empty() {
            return metric.encode(descriptor);
        }
        metric.encode(descriptor.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: (&str, &str), series: Series<'_, u64>) -> fmt::Result {
    family(encoder, name, MetricType::Counter, series, ConstCounter::new)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: (&str, &str), series: Series<'_, f64>) -> fmt::Result {
    family(encoder, name, MetricType::Gauge, series, ConstGauge::new)
}

fn yes(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

fn one<'a, V>(value: V) -> Series<'a, V> {
    vec![(Vec::new(), value)]
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.status;
        let e = &mut encoder;
        self.latencies.encode(e)?;
        gauge(
            e,
            ("build_info", "Version of the program"),
            vec![(vec![("version", ringwall_messages::RELEASE)], 1.0)],
        )?;
        if let Some(control) = &status.control {
            control_metrics(e, control)?;
        }
        gauge(
            e,
            ("dataplane_up", "1 if the dataplane answers"),
            one(yes(status.dataplane.is_some())),
        )?;
        if let Some(dataplane) = &status.dataplane {
            dataplane_metrics(e, dataplane)?;
        }
        if let Some(supervision) = &status.supervision {
            counter(
                e,
                ("process_restarts", "Restarts of the process"),
                vec![
                    (vec![("process", "control")], supervision.control_restarts),
                    (vec![("process", "dataplane")], supervision.dataplane_restarts),
                ],
            )?;
        }
        Ok(())
    }
}

fn control_metrics(e: &mut DescriptorEncoder<'_>, control: &ControlStatus) -> fmt::Result {
    let source = &control.source;
    let labels = || vec![("source", source.kind.as_str())];
    gauge(
        e,
        (
            "unadopted_seconds",
            "Age of the oldest source event that some worker has not adopted; 0 if none",
        ),
        one(control.publication.unadopted_seconds.unwrap_or(0.0)),
    )?;
    gauge(
        e,
        ("ready", "1 if the policy in force is that of a synced source"),
        one(yes(control.ready)),
    )?;
    gauge(e, ("alarms", "Active alarms"), one(control.alarms.len() as f64))?;
    gauge(
        e,
        ("source_synced", "1 if the source has delivered a complete state"),
        vec![(labels(), yes(source.synced))],
    )?;
    gauge(
        e,
        (
            "source_stale",
            "1 if the source has been unavailable for longer than staleAfter",
        ),
        vec![(labels(), yes(source.stale))],
    )?;
    gauge(
        e,
        (
            "source_stale_seconds",
            "How long the source has been unavailable; 0 while it is available",
        ),
        vec![(labels(), source.stale_seconds.unwrap_or(0.0))],
    )?;
    counter(
        e,
        ("source_events", "Events received from the source"),
        vec![(labels(), source.events)],
    )?;
    counter(
        e,
        ("source_states", "Complete states delivered by the source"),
        vec![(labels(), source.states)],
    )?;
    counter(
        e,
        ("source_errors", "Errors of the source"),
        vec![(labels(), source.errors)],
    )?;
    counter(
        e,
        ("source_renewals", "Reloads of the credentials"),
        vec![(labels(), source.renewals)],
    )?;
    counter(
        e,
        ("source_full_lists", "Comparisons of a watch with a full list"),
        vec![(labels(), source.full_lists)],
    )?;
    counter(
        e,
        (
            "source_differences",
            "Objects for which a full list contradicted the watch",
        ),
        vec![(labels(), source.differences)],
    )?;
    let watches = |value: fn(&ringwall_messages::WatchStatus) -> u64| -> Series<'_, u64> {
        source
            .watches
            .iter()
            .map(|it| (vec![("resource", it.resource.as_str())], value(it)))
            .collect()
    };
    counter(e, ("watch_events", "Events of a watch"), watches(|it| it.events))?;
    counter(
        e,
        ("watch_relists", "Full lists fetched again by a watch"),
        watches(|it| it.relists),
    )?;
    counter(e, ("watch_errors", "Errors of a watch"), watches(|it| it.errors))?;
    gauge(
        e,
        ("watch_connected", "1 if the watch is connected"),
        source
            .watches
            .iter()
            .map(|it| (vec![("resource", it.resource.as_str())], yes(it.connected)))
            .collect(),
    )?;
    gauge(
        e,
        (
            "policies_held",
            "Policies and network sets kept until the pods of their terminating namespace are gone",
        ),
        one(source.held_policies as f64),
    )?;
    gauge(
        e,
        ("objects", "Objects in the state"),
        vec![
            (vec![("kind", "Namespace")], control.objects.namespaces as f64),
            (vec![("kind", "Node")], control.objects.nodes as f64),
            (vec![("kind", "Pod")], control.objects.pods as f64),
            (vec![("kind", "NetworkPolicy")], control.objects.policies as f64),
            (
                vec![("kind", "ClusterNetworkPolicy")],
                control.objects.cluster_policies as f64,
            ),
        ],
    )?;
    gauge(
        e,
        ("staged_policies", "Staged policies, which are not enforced"),
        one(control.objects.staged_policies as f64),
    )?;
    gauge(
        e,
        ("object_problems", "Problems found in objects"),
        one(control.problems.len() as f64),
    )?;
    gauge(
        e,
        (
            "policy_kinds_unevaluated",
            "Policy kinds that are present but not evaluated",
        ),
        control
            .incomplete
            .iter()
            .map(|kind| (vec![("kind", kind.as_str())], 1.0))
            .collect(),
    )?;
    let snapshot = &control.snapshot;
    gauge(
        e,
        (
            "snapshot_compiled_generation",
            "Generation of the newest compiled snapshot",
        ),
        one(snapshot.generation as f64),
    )?;
    gauge(
        e,
        ("snapshot_bytes", "Size of the newest snapshot in bytes"),
        one(snapshot.bytes as f64),
    )?;
    counter(
        e,
        ("snapshots_compiled", "Snapshots compiled"),
        one(snapshot.compiled),
    )?;
    counter(
        e,
        (
            "snapshots_compiled_incrementally",
            "Snapshots compiled incrementally from the previous one",
        ),
        one(snapshot.compiled_incrementally),
    )?;
    counter(
        e,
        (
            "snapshots_failed",
            "States that failed to compile, or whose snapshot failed the proof",
        ),
        one(snapshot.failed),
    )?;
    proof_metrics(e, &control.proof)?;
    let publication = &control.publication;
    gauge(
        e,
        (
            "dataplane_connected",
            "1 if control is connected to the dataplane",
        ),
        one(yes(publication.connected)),
    )?;
    gauge(
        e,
        (
            "snapshot_adopted_generation",
            "Generation that every worker has adopted",
        ),
        one(publication.adopted as f64),
    )?;
    counter(
        e,
        ("snapshots_adopted", "Snapshots adopted by every worker"),
        one(publication.adoptions),
    )?;
    counter(
        e,
        ("snapshots_refused", "Snapshots that the dataplane refused"),
        one(publication.refused),
    )?;
    counter(
        e,
        ("dataplane_reconnects", "Reconnections to the dataplane"),
        one(publication.reconnects),
    )
}

fn proof_metrics(e: &mut DescriptorEncoder<'_>, proof: &ProofStatus) -> fmt::Result {
    counter(
        e,
        ("snapshots_proven", "Snapshots proven before publication"),
        one(proof.proven),
    )?;
    gauge(
        e,
        ("proof_classes", "Classes of ends in the last proof"),
        one(proof.classes as f64),
    )?;
    counter(
        e,
        (
            "proof_differences",
            "Differences found between snapshots and the objects they were made from",
        ),
        one(proof.differences),
    )?;
    counter(
        e,
        ("proof_passes", "Completed background proofs of a whole snapshot"),
        one(proof.passes),
    )?;
    let Some(seconds) = proof.full_seconds else {
        return Ok(());
    };
    gauge(
        e,
        (
            "proof_whole_age_seconds",
            "Time since a snapshot was last proven whole",
        ),
        one(seconds),
    )?;
    gauge(
        e,
        (
            "proof_whole_seconds",
            "Duration of the last whole proof, without pauses",
        ),
        one(proof.full_micros as f64 / 1e6),
    )?;
    gauge(
        e,
        (
            "proof_whole_generation",
            "Generation of the snapshot that was last proven whole",
        ),
        one(proof.full_generation as f64),
    )
}

fn dataplane_metrics(e: &mut DescriptorEncoder<'_>, dataplane: &DataplaneStatus) -> fmt::Result {
    gauge(
        e,
        ("dataplane_uptime_seconds", "Age of the dataplane process"),
        one(dataplane.uptime_seconds),
    )?;
    gauge(
        e,
        ("dataplane_generation", "Generation in force in the dataplane"),
        one(dataplane.snapshot.generation as f64),
    )?;
    gauge(
        e,
        ("dataplane_alarms", "Active alarms of the dataplane"),
        one(dataplane.alarms.len() as f64),
    )?;

    let numbers: Vec<String> = dataplane
        .workers
        .iter()
        .map(|worker| worker.id.to_string())
        .collect();
    let workers = || numbers.iter().zip(&dataplane.workers);
    let worker = |number| vec![("worker", number)];
    gauge(
        e,
        ("worker_generation", "Generation in force in the worker"),
        workers()
            .map(|(n, it)| (worker(n.as_str()), it.generation as f64))
            .collect(),
    )?;
    gauge(
        e,
        ("worker_alive", "1 if the worker answers"),
        workers()
            .map(|(n, it)| (worker(n.as_str()), yes(it.alive)))
            .collect(),
    )?;
    counter(
        e,
        ("worker_received_frames", "Frames received by the worker"),
        workers()
            .map(|(n, it)| (worker(n.as_str()), it.received))
            .collect(),
    )?;
    counter(
        e,
        ("worker_handed_over_frames", "Frames handed to another worker"),
        workers()
            .map(|(n, it)| (worker(n.as_str()), it.handed_over))
            .collect(),
    )?;
    counter(
        e,
        ("worker_bursts", "Non-empty bursts"),
        workers().map(|(n, it)| (worker(n.as_str()), it.bursts)).collect(),
    )?;

    let port = |name| vec![("port", name)];
    gauge(
        e,
        ("port_info", "How a port is attached"),
        dataplane
            .ports
            .iter()
            .map(|it| {
                let labels = vec![
                    ("port", it.name.as_str()),
                    ("kind", it.kind.as_str()),
                    ("side", it.side.as_str()),
                    ("xdp", it.xdp.as_str()),
                    ("copy", if it.zero_copy { "zero-copy" } else { "copy" }),
                ];
                (labels, 1.0)
            })
            .collect(),
    )?;
    gauge(
        e,
        ("port_up", "1 if the port works"),
        dataplane
            .ports
            .iter()
            .map(|it| (port(it.name.as_str()), yes(it.up)))
            .collect(),
    )?;
    type Count = fn(&ringwall_messages::PortStatus) -> u64;
    let counts: [(&str, &str, Count); 8] = [
        ("port_received_frames", "Frames received", |it| it.rx_frames),
        ("port_received_bytes", "Bytes received", |it| it.rx_bytes),
        ("port_sent_frames", "Frames sent", |it| it.tx_frames),
        ("port_sent_bytes", "Bytes sent", |it| it.tx_bytes),
        ("port_to_kernel_frames", "Frames passed to the kernel", |it| {
            it.to_kernel
        }),
        ("port_fail_mode_frames", "Frames handled by the fail mode", |it| {
            it.fail_mode
        }),
        (
            "port_guarded_packets",
            "Packets of the kernel stopped or redirected by the guard",
            |it| it.guarded,
        ),
        ("port_lost_frames", "Frames lost before a worker saw them", |it| {
            it.rx_lost
        }),
    ];
    for (name, help, count) in counts {
        let series = dataplane
            .ports
            .iter()
            .map(|it| (port(it.name.as_str()), count(it)))
            .collect();
        counter(e, (name, help), series)?;
    }

    counter(
        e,
        ("dropped_packets", "Packets dropped, by reason"),
        dataplane
            .drops
            .iter()
            .map(|(reason, count)| (vec![("reason", reason.as_str())], *count))
            .collect(),
    )?;

    let answers = dataplane.answers;
    counter(
        e,
        (
            "denied_packet_answers",
            "Answers to senders of denied packets, and those left out over the limit",
        ),
        vec![
            (vec![("outcome", "sent")], answers.sent),
            (vec![("outcome", "limited")], answers.limited),
        ],
    )?;

    counter(
        e,
        (
            "tunnelled_packets",
            "Packets judged inside of tunnels between nodes, by the innermost tunnel",
        ),
        dataplane
            .tunnelled
            .iter()
            .map(|(tunnel, count)| (vec![("tunnel", tunnel.as_str())], *count))
            .collect(),
    )?;

    let flows = &dataplane.flows;
    gauge(e, ("flows", "Flow entries in use"), one(flows.used as f64))?;
    gauge(
        e,
        ("flows_capacity", "Capacity of the flow table"),
        one(flows.capacity as f64),
    )?;
    gauge(
        e,
        (
            "flows_half_open",
            "Flow entries that have seen only one direction",
        ),
        one(flows.half_open as f64),
    )?;
    gauge(
        e,
        ("flows_half_open_limit", "Limit for half-open flow entries"),
        one(flows.half_open_limit as f64),
    )?;
    counter(e, ("flows_created", "Flow entries created"), one(flows.created))?;
    counter(e, ("flows_expired", "Flow entries expired"), one(flows.expired))?;
    counter(
        e,
        ("flows_revoked", "Flow entries cut by a policy change"),
        one(flows.revoked),
    )?;
    counter(
        e,
        (
            "flows_picked_up",
            "Flow entries created in the middle of a connection",
        ),
        one(flows.picked_up),
    )?;
    counter(
        e,
        (
            "flows_inherited",
            "Flow entries restored from the previous process",
        ),
        one(flows.inherited),
    )?;

    let frames = &dataplane.frames;
    counter(
        e,
        ("frames", "Frames by origin and destination"),
        vec![
            (vec![("account", "received")], frames.received),
            (vec![("account", "generated")], frames.generated),
            (vec![("account", "forwarded")], frames.forwarded),
            (vec![("account", "dropped")], frames.dropped),
            (vec![("account", "to-kernel")], frames.to_kernel),
            (vec![("account", "lost")], frames.lost),
        ],
    )?;
    gauge(
        e,
        ("frames_held", "Frames waiting for a next hop"),
        one(frames.held as f64),
    )?;
    gauge(
        e,
        ("pool_frames", "Frames in all pools"),
        one(frames.pool_frames as f64),
    )?;
    gauge(
        e,
        ("pool_free_frames", "Frames free in the pools"),
        one(frames.pool_free as f64),
    )?;
    match &dataplane.node {
        Some(node) => encode_node(e, node),
        None => Ok(()),
    }
}

/// What the programs in the kernel of a node did.
fn encode_node(e: &mut DescriptorEncoder<'_>, node: &NodeStatus) -> fmt::Result {
    counter(
        e,
        (
            "node_packets",
            "Packets seen by the programs in the kernel of a node, by program and what became of them",
        ),
        node.outcomes
            .iter()
            .map(|(outcome, count)| (vec![("outcome", outcome.as_str())], *count))
            .collect(),
    )?;
    gauge(
        e,
        (
            "node_cached_decisions",
            "Decisions about flows that the kernel knows",
        ),
        one(node.cached as f64),
    )?;
    gauge(
        e,
        (
            "node_cached_decisions_capacity",
            "How many decisions the kernel has room for",
        ),
        one(node.cache_capacity as f64),
    )?;
    let count = |kind: &str| {
        let of_kind = node.interfaces.iter().filter(|interface| interface.kind == kind);
        of_kind.count() as f64
    };
    gauge(
        e,
        ("node_interfaces", "Interfaces that carry programs, by kind"),
        ["pod", "bridge", "other"]
            .into_iter()
            .map(|kind| (vec![("kind", kind)], count(kind)))
            .collect(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use ringwall_messages::{PortStatus, SourceStatus, Supervision, WorkerStatus};

    use super::*;

    #[test]
    fn a_scrape_has_every_part_and_each_metric_once() {
        let mut dataplane = DataplaneStatus {
            workers: vec![WorkerStatus {
                id: 1,
                generation: 9,
                ..WorkerStatus::default()
            }],
            ports: vec![PortStatus {
                name: "veth\"0".to_owned(),
                rx_frames: 5,
                ..PortStatus::default()
            }],
            ..DataplaneStatus::default()
        };
        dataplane.drops.insert("policy-ingress".to_owned(), 3);
        dataplane.answers.limited = 2;
        dataplane.tunnelled.insert("vxlan".to_owned(), 8);
        dataplane.node = Some(NodeStatus {
            outcomes: [("exit-hit".to_owned(), 7)].into(),
            cached: 2,
            ..NodeStatus::default()
        });
        let status = Status {
            name: "test".to_owned(),
            control: Some(ControlStatus {
                ready: true,
                source: SourceStatus {
                    kind: "folder".to_owned(),
                    events: 4,
                    ..SourceStatus::default()
                },
                ..ControlStatus::default()
            }),
            dataplane: Some(dataplane),
            supervision: Some(Supervision {
                dataplane_restarts: 2,
                ..Supervision::default()
            }),
        };
        let latencies = Latencies::default();
        latencies.total.observe(0.02);
        let text = render(status, &latencies).unwrap();
        for line in [
            "ringwall_ready 1.0",
            "ringwall_source_events_total{source=\"folder\"} 4",
            "ringwall_worker_generation{worker=\"1\"} 9.0",
            "ringwall_port_received_frames_total{port=\"veth\\\"0\"} 5",
            "ringwall_dropped_packets_total{reason=\"policy-ingress\"} 3",
            "ringwall_denied_packet_answers_total{outcome=\"limited\"} 2",
            "ringwall_tunnelled_packets_total{tunnel=\"vxlan\"} 8",
            "ringwall_node_packets_total{outcome=\"exit-hit\"} 7",
            "ringwall_node_cached_decisions 2.0",
            "ringwall_node_interfaces{kind=\"pod\"} 0.0",
            "ringwall_process_restarts_total{process=\"dataplane\"} 2",
            "ringwall_publication_seconds_count{step=\"total\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
        let mut described = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert!(described.insert(line.to_owned()), "twice: {line}");
        }
    }

    #[test]
    fn a_dataplane_that_does_not_answer_is_visible() {
        let text = render(Status::default(), &Latencies::default()).unwrap();
        assert!(
            text.lines().any(|line| line == "ringwall_dataplane_up 0.0"),
            "{text}"
        );
        assert!(!text.contains("worker_generation"));
    }
}
