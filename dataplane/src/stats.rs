//! What each worker counts, and how others read it: numbers that only their worker writes (a plain load and store, no
//! locked instruction) and anybody reads at any time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crossbeam::{queue::ArrayQueue, utils::CachePadded};

use crate::{
    classify::{DirectionVerdict, Generation, L4},
    flow::FlowId,
    port::PortId,
    time::Nanos,
    verdict::DropReason,
    wire::{FlowKey, tunnel::TunnelKind},
};

const REASONS: usize = DropReason::ALL.len();

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; for the owning worker alone.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets a gauge; for the owning worker alone.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Numbers by drop reason.
#[derive(Debug)]
pub struct ByReason([Counter; REASONS]);

impl Default for ByReason {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

/// A counter for each kind of tunnel.
#[derive(Debug, Default)]
pub struct ByTunnel([Counter; TunnelKind::ALL.len()]);

impl ByTunnel {
    /// Counts one; for the owning worker alone.
    pub(crate) fn count(&self, kind: TunnelKind) {
        self.0[kind as usize].add(1);
    }

    /// The number for a kind.
    pub fn get(&self, kind: TunnelKind) -> u64 {
        self.0[kind as usize].get()
    }
}

impl ByReason {
    /// Counts one; for the owning worker alone.
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.0[reason as usize].add(1);
    }

    /// Counts some; for the owning worker alone.
    pub(crate) fn add(&self, reason: DropReason, count: u64) {
        self.0[reason as usize].add(count);
    }

    /// The number for a reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// All reasons together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// Of one port, as one worker saw it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Frames that the port took to send.
    pub tx_frames: Counter,
    /// Bytes that the port took to send.
    pub tx_bytes: Counter,
    /// Frames dropped that came in by it.
    pub drops: ByReason,
}

/// Of one worker. All but the gauges (named so) count from its start.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Frames received from ports.
    pub received: Counter,
    /// Frames that it made itself: ICMP errors. A held packet's copy is the packet that was received.
    pub generated: Counter,
    /// Frames that a port took to send, generated ones included.
    pub forwarded: Counter,
    /// Frames dropped.
    pub drops: ByReason,
    /// Packets that audit mode forwarded and enforcement would have dropped.
    pub audited: ByReason,
    /// Gauge: packets copied aside, waiting for a neighbour.
    pub held: Counter,
    /// Bursts that were not empty.
    pub bursts: Counter,
    /// Calls of `run_once`: grows as long as the worker lives.
    pub turns: Counter,
    /// Frames handed over to other workers.
    pub handed_over: Counter,
    /// Frames taken over from other workers.
    pub taken_over: Counter,
    /// Packets that were not subject to policy and crossed a wire.
    pub not_subject: Counter,
    /// Flows that a failsafe rule let begin; before the first snapshot, packets.
    pub failsafe: Counter,
    /// Packets let through by the entry of their flow.
    pub flow_hits: Counter,
    /// Packets without an entry.
    pub flow_misses: Counter,
    /// Entries whose endpoints were looked up again after a change of snapshot and had not changed.
    pub restamped: Counter,
    /// Entries judged again because an endpoint had changed, and still allowed.
    pub rejudged: Counter,
    /// Allowed packets that were forwarded without an entry.
    pub stateless: Counter,
    /// Partial layer 4 checksums completed.
    pub checksums_completed: Counter,
    /// Packets judged inside of a tunnel, by the innermost one.
    pub tunnelled: ByTunnel,
    /// Related ICMP errors let through.
    pub icmp_related: Counter,
    /// ICMP errors that the dataplane sent itself.
    pub icmp_sent: Counter,
    /// Denied packets whose sender got an answer.
    pub denials_answered: Counter,
    /// Denied packets whose sender would have got an answer, but had got too many.
    pub answers_limited: Counter,
    /// Drop samples not kept because too many came at once.
    pub samples_skipped: Counter,
    /// Gauge: generation of the snapshot adopted last; 0 for none.
    pub generation: Counter,
    /// Gauge: sequence of the `Forwarding` adopted last; 0 for none.
    pub forwarding: Counter,
    /// Flow tables of the worker's shards.
    pub flows: FlowCounters,
}

/// Of the flow tables of one worker's shards.
#[derive(Debug, Default)]
pub struct FlowCounters {
    /// Gauge: entries in use.
    pub used: Counter,
    /// Gauge: entries that fit.
    pub capacity: Counter,
    /// Gauge: entries that have seen one direction only.
    pub half_open: Counter,
    /// Gauge: how many of those may be.
    pub half_open_limit: Counter,
    /// Entries made.
    pub created: Counter,
    /// Entries that timed out.
    pub expired: Counter,
    /// Entries thrown out for new ones: half-open or closed, never established.
    pub evicted: Counter,
    /// Entries cut because the policy changed.
    pub revoked: Counter,
    /// Entries oriented from the middle of a TCP connection (SEMANTICS 60).
    pub picked_up: Counter,
    /// Entries taken over from the process before.
    pub inherited: Counter,
}

/// A dropped packet (or, in audit mode, one that would have been), with what explains it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropSample {
    /// Names it.
    pub id: FlowId,
    /// When.
    pub at: Nanos,
    /// Why.
    pub reason: DropReason,
    /// Whether it was forwarded all the same, because the mode is audit.
    pub audit: bool,
    /// The port that it came in on.
    pub port: PortId,
    /// Bytes of the frame.
    pub length: u32,
    /// Whose packet, where headers could be read.
    pub key: Option<FlowKey>,
    /// What policies see of its layer 4.
    pub l4: L4,
    /// The snapshot in force; 0 for none.
    pub generation: Generation,
    /// Decision about the destination, where one was made. Its provenance is an index into that snapshot.
    pub ingress: Option<DirectionVerdict>,
    /// Decision about the source.
    pub egress: Option<DirectionVerdict>,
    /// The tunnel that the packet was in.
    pub tunnel: Option<TunnelKind>,
}

/// What one worker shows to others.
#[derive(Debug)]
pub(crate) struct WorkerStats {
    pub(crate) counters: CachePadded<WorkerCounters>,
    pub(crate) ports: Box<[CachePadded<PortCounters>]>,
    pub(crate) samples: ArrayQueue<DropSample>,
}

impl WorkerStats {
    pub(crate) fn new(ports: usize, samples: usize) -> Self {
        Self {
            counters: CachePadded::default(),
            ports: (0..ports).map(|_| CachePadded::default()).collect(),
            samples: ArrayQueue::new(samples.max(1)),
        }
    }
}

/// Reads every worker's numbers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StatsReader {
    pub(crate) workers: Arc<[Arc<WorkerStats>]>,
}

impl StatsReader {
    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// One worker's numbers.
    pub fn worker(&self, worker: usize) -> Option<&WorkerCounters> {
        self.workers.get(worker).map(|stats| &*stats.counters)
    }

    /// One worker's numbers about one port.
    pub fn port(&self, worker: usize, port: PortId) -> Option<&PortCounters> {
        let ports = &self.workers.get(worker)?.ports;
        ports.get(usize::from(port.0)).map(|counters| &**counters)
    }

    /// A number summed over the workers.
    pub fn sum(&self, read: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers.iter().map(|stats| read(&stats.counters)).sum()
    }

    /// A number of a port summed over the workers.
    pub fn sum_port(&self, port: PortId, read: impl Fn(&PortCounters) -> u64) -> u64 {
        (0..self.workers())
            .filter_map(|worker| self.port(worker, port))
            .map(read)
            .sum()
    }

    /// Frames dropped for a reason, all workers together.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.sum(|worker| worker.drops.get(reason))
    }

    /// Takes the oldest sample of a drop that was not taken yet. Each worker keeps the newest few.
    pub fn next_sample(&self) -> Option<DropSample> {
        self.workers.iter().find_map(|stats| stats.samples.pop())
    }
}
