//! Assembles the dataplane: what the workers share, and the publishing side.
//!
//! ```text
//! DataplaneConfig + FlowMemory -> Dataplane::new -> Dataplane (one unpinned thread) + WorkerSlots (one per worker)
//! WorkerSlot + PacketIo        -> Worker::new -> Worker::run_once, again and again, on its own core
//! ```

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use crate::{
    classify::{DenialAnswer, Generation, Snapshot},
    failsafe::Failsafe,
    flow::{
        FlowConfig, FlowDump, FlowMemory, RateLimit, SHARDS, rate::EndpointLimiter, shard::Shard,
        table::FlowTable,
    },
    forward::{Forwarding, ResolveRequest},
    node::NodeConfig,
    port::PortId,
    rcu,
    stats::{StatsReader, WorkerStats},
    time::Nanos,
    tunnels::{TunnelFilter, Tunnels},
    worker::Handover,
};

/// What a verdict means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Judge and count, but forward what can be forwarded.
    Audit,
    /// Drop what is not allowed.
    Enforce,
}

/// How the packet plane behaves; fixed for its life.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// What a verdict means.
    pub mode: Mode,
    /// Passes before any policy.
    pub failsafe: Failsafe,
    /// Whether pods on ports of kind `pod` have this machine for their node, whatever addresses it has (SEMANTICS 47).
    pub hosts_pods: bool,
    /// What counts as a tunnel.
    pub tunnels: Tunnels,
    /// Flow timeouts and limits.
    pub flow: FlowConfig,
    /// ICMP errors that the dataplane sends itself, to one endpoint.
    pub icmp_sent: RateLimit,
    /// What the sender of a packet gets that a policy denies which does not say itself. On a node, nothing.
    pub denial_answer: DenialAnswer,
    /// Such answers to one endpoint.
    pub denials_answered: RateLimit,
    /// Workers, at least 1 and at most 64.
    pub workers: usize,
    /// Ports may have numbers below this.
    pub ports: usize,
    /// Capacity of one worker's hand-over ring, in frames.
    pub handover: usize,
    /// Packets that one worker may hold for unresolved neighbours.
    pub held: usize,
    /// How long a packet is held for its neighbour.
    pub held_for: Nanos,
    /// Samples of drops that one worker keeps.
    pub samples: usize,
    /// On a node: what its workers share with the kernel.
    pub node: Option<NodeConfig>,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            failsafe: Failsafe::default(),
            hosts_pods: false,
            tunnels: Tunnels::default(),
            flow: FlowConfig::default(),
            icmp_sent: RateLimit {
                per_second: 10,
                burst: 10,
            },
            denial_answer: DenialAnswer::Drop,
            denials_answered: RateLimit {
                per_second: 50,
                burst: 50,
            },
            workers: 1,
            ports: 512,
            handover: 1024,
            held: 256,
            held_for: Nanos::from_secs(2),
            samples: 1024,
            node: None,
        }
    }
}

/// Why the dataplane cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneError {
    /// The number of workers.
    #[error("{0} workers: there must be at least 1 and at most 64")]
    Workers(usize),
}

/// What a worker learnt about a node's Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationReport {
    /// Where.
    pub port: PortId,
    /// The node's number in the snapshot of a generation.
    pub node: u32,
    /// That generation.
    pub generation: Generation,
    /// The Ethernet address that claims to be the node's; None if a packet dropped because none is known.
    pub claimed: Option<[u8; 6]>,
}

/// Long enough for neighbour probes.
pub(crate) type ShortFrame = ArrayVec<u8, 128>;

/// What workers share: written once.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: DataplaneConfig,
    /// Says quickly of most packets that they are no tunnels.
    pub(crate) tunnel_filter: TunnelFilter,
    /// By worker: frames of flows that it owns, received by others.
    pub(crate) handover: Box<[ArrayQueue<Handover>]>,
    pub(crate) resolve_requests: ArrayQueue<ResolveRequest>,
    /// What workers learnt about nodes' Ethernet addresses.
    pub(crate) station_reports: ArrayQueue<StationReport>,
    /// Whether either got something since the loop around a worker last took note.
    pub(crate) has_requests: AtomicBool,
    /// Frames to send unchanged; the first worker that finds one sends it.
    pub(crate) frames_to_send: ArrayQueue<(PortId, ShortFrame)>,
    /// By worker: flow dump requests and replies.
    pub(crate) dump_requests: Box<[ArrayQueue<FlowDump>]>,
    pub(crate) dump_replies: Box<[ArrayQueue<FlowDump>]>,
    /// End of the pickup window.
    pub(crate) pickup_until: Nanos,
}

impl Shared {
    /// Has a neighbour resolved. Lost if the queue is full: the request is repeated.
    pub(crate) fn request_resolve(&self, request: ResolveRequest) {
        if self.resolve_requests.push(request).is_ok() {
            self.has_requests.store(true, Ordering::Release);
        }
    }

    /// Reports what was learnt about a node. Lost if the queue is full: the node is probed again.
    pub(crate) fn report_station(&self, report: StationReport) {
        if self.station_reports.push(report).is_ok() {
            self.has_requests.store(true, Ordering::Release);
        }
    }
}

/// The publishing side, used by one thread that is not a worker.
#[derive(Debug)]
pub struct Dataplane {
    /// Publishes snapshots. Call [`rcu::Publisher::reclaim`] now and then.
    pub snapshots: rcu::Publisher<Snapshot>,
    /// Publishes ports, routes and neighbours.
    pub forwarding: rcu::Publisher<Forwarding>,
    stats: StatsReader,
    shared: Arc<Shared>,
}

/// The state of one worker; with a `PacketIo` it becomes a [`crate::worker::Worker`].
#[derive(Debug)]
pub struct WorkerSlot {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: rcu::Subscriber<Snapshot>,
    pub(crate) forwarding: rcu::Subscriber<Forwarding>,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) table: FlowTable,
    pub(crate) shards: Vec<Shard>,
    /// Limits ICMP errors let through, per receiving or sending pod.
    pub(crate) icmp_passed: EndpointLimiter,
    /// Limits ICMP errors sent, per receiver.
    pub(crate) icmp_sent: EndpointLimiter,
    /// Limits answers to denied packets, per receiver.
    pub(crate) denials_answered: EndpointLimiter,
    pub(crate) seed: crate::flow::hash::Seed,
    pub(crate) shard_map: ShardMap,
}

/// Which worker owns each shard, and at which local index. A table, since a division would take as long as a hash.
#[derive(Clone, Debug)]
pub(crate) struct ShardMap {
    owner: [u8; SHARDS],
    place: [u8; SHARDS],
}

impl ShardMap {
    fn new(workers: usize) -> Self {
        Self {
            owner: std::array::from_fn(|shard| (shard % workers) as u8),
            place: std::array::from_fn(|shard| (shard / workers) as u8),
        }
    }

    /// The worker.
    #[inline]
    pub(crate) fn owner(&self, shard: u8) -> u8 {
        self.owner[usize::from(shard)]
    }

    /// Index among the worker's shards.
    #[inline]
    pub(crate) fn local_index(&self, shard: u8) -> usize {
        usize::from(self.place[usize::from(shard)])
    }
}

impl Dataplane {
    /// Puts the plane together: itself and one slot per worker, in order of their numbers. `now` is on the clock that
    /// the workers will be given. Allocates all that workers will ever need.
    pub fn new(
        config: DataplaneConfig,
        memory: FlowMemory,
        now: Nanos,
    ) -> Result<(Self, Vec<WorkerSlot>), DataplaneError> {
        let workers = config.workers;
        if !(1..=64).contains(&workers) {
            return Err(DataplaneError::Workers(workers));
        }
        let (snapshots, snapshot_readers) = rcu::channel(workers);
        let (forwarding, forwarding_readers) = rcu::channel(workers);
        let stats: Arc<[Arc<WorkerStats>]> = (0..workers)
            .map(|_| Arc::new(WorkerStats::new(config.ports, config.samples)))
            .collect();
        let inherited = memory.is_inherited();
        let seed = memory.seed;
        let queues = |length: usize| (0..workers).map(|_| ArrayQueue::new(length.max(1))).collect();
        let shared = Arc::new(Shared {
            handover: (0..workers)
                .map(|_| ArrayQueue::new(config.handover.max(1)))
                .collect(),
            resolve_requests: ArrayQueue::new(256),
            station_reports: ArrayQueue::new(256),
            has_requests: AtomicBool::new(false),
            frames_to_send: ArrayQueue::new(256),
            dump_requests: queues(4),
            dump_replies: queues(8),
            pickup_until: if inherited {
                Nanos(0)
            } else {
                now.after(config.flow.pickup_window)
            },
            tunnel_filter: TunnelFilter::new(&config.tunnels),
            config,
        });
        let tables = memory.into_tables(
            workers,
            &shared.config.flow,
            shared.config.node.as_ref().map(|node| &node.cache),
        );
        let slots: Vec<WorkerSlot> = snapshot_readers
            .into_iter()
            .zip(forwarding_readers)
            .zip(tables)
            .enumerate()
            .map(|(index, ((snapshots, forwarding), table))| WorkerSlot {
                index,
                shards: (index..SHARDS)
                    .step_by(workers)
                    .map(|_| Shard::new(&shared.config.flow))
                    .collect(),
                icmp_passed: EndpointLimiter::new(shared.config.flow.icmp_errors),
                icmp_sent: EndpointLimiter::new(shared.config.icmp_sent),
                denials_answered: EndpointLimiter::new(shared.config.denials_answered),
                shared: Arc::clone(&shared),
                snapshots,
                forwarding,
                stats: Arc::clone(&stats[index]),
                table,
                seed,
                shard_map: ShardMap::new(workers),
            })
            .collect();
        let plane = Self {
            snapshots,
            forwarding,
            stats: StatsReader { workers: stats },
            shared,
        };
        Ok((plane, slots))
    }

    /// Reads every worker's numbers.
    pub fn stats(&self) -> StatsReader {
        self.stats.clone()
    }

    /// The next neighbour that a worker needs resolved. The same one is requested again about once a second until a
    /// published `Forwarding` has it.
    pub fn next_resolve(&self) -> Option<ResolveRequest> {
        self.shared.resolve_requests.pop()
    }

    /// The next station report from a worker. Reports are lost while the queue is full, and repeated.
    pub fn next_station_report(&self) -> Option<StationReport> {
        self.shared.station_reports.pop()
    }

    /// Sends a frame out of a port unchanged, within 50 ms; wake the workers if they sleep. Returns whether there was
    /// room; frames are at most 128 bytes long.
    pub fn send(&self, port: PortId, frame: &[u8]) -> bool {
        ShortFrame::try_from(frame).is_ok_and(|frame| self.shared.frames_to_send.push((port, frame)).is_ok())
    }

    /// Whether frames wait for a worker to take them over: look before putting it to sleep.
    pub fn has_handover(&self, worker: usize) -> bool {
        self.shared
            .handover
            .get(worker)
            .is_some_and(|queue| !queue.is_empty())
    }

    /// Requests a flow dump from a worker, which replies within a turn (wake it if it sleeps). Returns the request if
    /// four are waiting already or there is no such worker.
    pub fn request_flows(&self, worker: usize, dump: FlowDump) -> Result<(), FlowDump> {
        match self.shared.dump_requests.get(worker) {
            Some(queue) => queue.push(dump),
            None => Err(dump),
        }
    }

    /// A worker's reply, if there is one.
    pub fn next_flows(&self, worker: usize) -> Option<FlowDump> {
        self.shared.dump_replies.get(worker)?.pop()
    }
}
