//! Putting the packet plane together: what the workers share, and what the publishing side keeps.
//!
//! ```text
//! PlaneConfig + FlowMemory -> Plane::new -> Plane (one unpinned thread) + Seats (one per worker)
//! Seat + PacketIo          -> Worker::new -> Worker::run_once, again and again, on its own core
//! ```

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::{
    classify::Snapshot,
    failsafe::Failsafe,
    flow::{FlowConfig, FlowDump, FlowMemory, RateLimit, SHARDS},
    forward::{Forwarding, ResolveRequest},
    rcu,
    stats::{StatsReader, WorkerStats},
    time::Nanos,
    wire::subject::NotSubjectTable,
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
pub struct PlaneConfig {
    /// What a verdict means.
    pub mode: Mode,
    /// Passes before any policy.
    pub failsafe: Failsafe,
    /// What becomes of frames that are not subject to policy, on wires.
    pub wire_not_subject: NotSubjectTable,
    /// Flow timeouts and limits.
    pub flow: FlowConfig,
    /// ICMP errors that the dataplane sends itself, per shard.
    pub icmp_sent: RateLimit,
    /// Workers, at least 1 and at most 64.
    pub workers: usize,
    /// Ports may have numbers below this.
    pub ports: usize,
    /// Frames that may wait for one worker to take them over.
    pub handover: usize,
    /// Packets that one worker may hold aside for unresolved neighbours.
    pub held: usize,
    /// How long a packet waits for its neighbour.
    pub held_for: Nanos,
    /// Samples of drops that one worker keeps.
    pub samples: usize,
}

impl Default for PlaneConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            failsafe: Failsafe::default(),
            wire_not_subject: NotSubjectTable::WIRE,
            flow: FlowConfig::default(),
            icmp_sent: RateLimit {
                per_second: 10,
                burst: 10,
            },
            workers: 1,
            ports: 512,
            handover: 1024,
            held: 64,
            held_for: Nanos::from_secs(2),
            samples: 1024,
        }
    }
}

/// Why the packet plane cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// The number of workers.
    #[error("{0} workers: there must be at least 1 and at most 64")]
    Workers(usize),
}

/// What workers share: written once.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: PlaneConfig,
    /// By worker: frames of flows that it owns, received by others.
    pub(crate) handover: Box<[ArrayQueue<Handover>]>,
    pub(crate) resolve: ArrayQueue<ResolveRequest>,
    /// By worker: questions and answers about flows.
    pub(crate) asked: Box<[ArrayQueue<FlowDump>]>,
    pub(crate) answered: Box<[ArrayQueue<FlowDump>]>,
    /// End of the time in which connections are picked up in the middle.
    pub(crate) pickup_until: Nanos,
}

/// The publishing side: kept by one thread that is no worker.
#[derive(Debug)]
pub struct Plane {
    /// Publishes snapshots. Call [`rcu::Publisher::reclaim`] now and then.
    pub snapshots: rcu::Publisher<Snapshot>,
    /// Publishes ports, routes and neighbours.
    pub forwarding: rcu::Publisher<Forwarding>,
    stats: StatsReader,
    shared: Arc<Shared>,
}

/// What one worker is made of; becomes a [`crate::worker::Worker`] with its `PacketIo`.
#[derive(Debug)]
pub struct Seat {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: rcu::Subscriber<Snapshot>,
    pub(crate) forwarding: rcu::Subscriber<Forwarding>,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) shards: Vec<crate::flow::table::Shard>,
    pub(crate) seed: crate::flow::hash::Seed,
    pub(crate) owners: Owners,
}

/// Which worker owns a shard, and where it has it: looked up, since a division would take as long as a hash.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    owner: [u8; SHARDS],
    place: [u8; SHARDS],
}

impl Owners {
    fn new(workers: usize) -> Self {
        Self {
            owner: std::array::from_fn(|shard| (shard % workers) as u8),
            place: std::array::from_fn(|shard| (shard / workers) as u8),
        }
    }

    /// The worker.
    #[inline]
    pub(crate) fn owner(&self, shard: u8) -> usize {
        usize::from(self.owner[usize::from(shard)])
    }

    /// Index among the worker's shards.
    #[inline]
    pub(crate) fn place(&self, shard: u8) -> usize {
        usize::from(self.place[usize::from(shard)])
    }
}

impl Plane {
    /// Puts the plane together: itself and one seat per worker, in order of their numbers. `now` is on the clock that
    /// the workers will be given. Allocates all that workers will ever need.
    pub fn new(config: PlaneConfig, memory: FlowMemory, now: Nanos) -> Result<(Self, Vec<Seat>), PlaneError> {
        let workers = config.workers;
        if !(1..=64).contains(&workers) {
            return Err(PlaneError::Workers(workers));
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
            resolve: ArrayQueue::new(256),
            asked: queues(4),
            answered: queues(8),
            pickup_until: if inherited {
                Nanos(0)
            } else {
                now.after(config.flow.pickup_window)
            },
            config,
        });
        let mut seats: Vec<Seat> = snapshot_readers
            .into_iter()
            .zip(forwarding_readers)
            .enumerate()
            .map(|(index, (snapshots, forwarding))| Seat {
                index,
                shared: Arc::clone(&shared),
                snapshots,
                forwarding,
                stats: Arc::clone(&stats[index]),
                shards: Vec::with_capacity(SHARDS.div_ceil(workers)),
                seed,
                owners: Owners::new(workers),
            })
            .collect();
        for (number, shard) in memory
            .into_shards(&shared.config.flow, shared.config.icmp_sent)
            .into_iter()
            .enumerate()
        {
            seats[number % workers].shards.push(shard);
        }
        let plane = Self {
            snapshots,
            forwarding,
            stats: StatsReader { workers: stats },
            shared,
        };
        Ok((plane, seats))
    }

    /// Reads every worker's numbers.
    pub fn stats(&self) -> StatsReader {
        self.stats.clone()
    }

    /// The next neighbour that a worker needs and does not know. The same one may be asked for again, about once a
    /// second, until a published `Forwarding` has it.
    pub fn next_resolve(&self) -> Option<ResolveRequest> {
        self.shared.resolve.pop()
    }

    /// Whether frames wait for a worker to take them over: look before putting it to sleep.
    pub fn has_handover(&self, worker: usize) -> bool {
        self.shared
            .handover
            .get(worker)
            .is_some_and(|queue| !queue.is_empty())
    }

    /// Asks a worker for its flows; it answers within a turn (wake it if it sleeps). Gives the question back where four
    /// wait already or there is no such worker.
    pub fn ask_flows(&self, worker: usize, dump: FlowDump) -> Result<(), FlowDump> {
        match self.shared.asked.get(worker) {
            Some(queue) => queue.push(dump),
            None => Err(dump),
        }
    }

    /// A worker's answer, if there is one.
    pub fn next_flows(&self, worker: usize) -> Option<FlowDump> {
        self.shared.answered.get(worker)?.pop()
    }
}
