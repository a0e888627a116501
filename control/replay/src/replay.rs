//! What the dataplane's own worker decides about each packet of a capture.
//!
//! One packet is one turn, at the packet's time on the capture's clock, which never goes backwards. So a packet's answer
//! depends on the packets before it alone, and on nothing that the machine does.
//!
//! The workers are on one port, a wire whose both ends it is: a capture does not say from which side a packet came, so a reply
//! is believed from wherever it comes, any source may be anywhere, and a node's address is the node's.
//!
//! Neither the answers nor the names of flows depend on the number of workers: the table of each has room for all flows
//! of the capture (up to a million, with more than eight workers fewer), and the limits that a worker would keep for
//! itself are off.

use ringwall_dataplane::{
    classify::{DirectionVerdict, Generation, Snapshot},
    dataplane::{Dataplane, DataplaneConfig, DataplaneError},
    flow::{FlowConfig, FlowId, FlowMemory, FlowMemoryError, RateLimit},
    forward::ForwardingBuilder,
    io::memory::{MemoryIo, MemoryPool},
    port::{Port, PortId, PortKind, PortTag, ReversePath, Side},
    stats::StatsReader,
    time::Nanos,
    tunnels::Tunnels,
    verdict::DropReason,
    wire::{
        self, FlowKey, Packet, Parsed, Transport,
        subject::{NotSubject, NotSubjectTable},
        tunnel::TunnelKind,
    },
    worker::Worker,
};

/// Flows at once that a worker's table has room for at most, and all tables together.
const MOST_FLOWS: u64 = 1 << 20;
const MOST_FLOWS_OF_ALL: u64 = 8 << 20;

/// Bytes of a packet's least record in a capture, with a network header: there are no more flows than that allows.
const LEAST_RECORD: u64 = 32;

const PORT: PortId = PortId(0);

/// The parser reads nothing that is longer, and calls it malformed.
const LONGEST_FRAME: usize = 1 << 16;

/// One at a time; a worker needs none for itself.
const FRAMES: usize = 4;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Policy allows it.
    Forward,
    /// No policy speaks about it, and it crosses a wire.
    Pass(NotSubject),
    /// It is dropped.
    Drop(DropReason),
}

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass(_) => "pass",
            Self::Drop(_) => "drop",
        }
    }

    /// Why: the reason of a drop, the kind of what passes without a policy.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Forward => None,
            Self::Pass(kind) => Some(kind.name()),
            Self::Drop(reason) => Some(reason.name()),
        }
    }
}

/// The answer about a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// What became of it.
    pub verdict: Verdict,
    /// The flow that it belongs to, if there is one.
    pub flow: Option<FlowId>,
    /// The snapshot that decided.
    pub generation: Generation,
    /// Whose packet it is, where its headers could be read.
    pub key: Option<FlowKey>,
    /// Who denied it, where a policy did: egress and ingress.
    pub denied: Option<[DirectionVerdict; 2]>,
    /// The tunnel that it is in, if that was looked into: then all else is about the packet inside.
    pub tunnel: Option<TunnelKind>,
}

/// Why a capture cannot be replayed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplayError {
    /// The number of workers.
    #[error(transparent)]
    Workers(#[from] DataplaneError),
    /// The flow table.
    #[error(transparent)]
    Flows(#[from] FlowMemoryError),
    /// Neither sent nor dropped.
    #[error("a worker neither forwarded nor dropped a packet; please report it with the packet")]
    Lost,
}

/// Workers over a capture.
#[derive(Debug)]
pub struct Replay {
    plane: Dataplane,
    stats: StatsReader,
    workers: Vec<Worker<MemoryIo>>,
    /// As the workers have them.
    tunnels: Tunnels,
    /// Receives the next packet.
    next: usize,
    now: Nanos,
}

impl Replay {
    /// So many workers, with the first snapshot in force, from a time on the capture's clock on. `bytes`: how long the
    /// capture is, if that is known.
    ///
    /// # Errors
    /// There cannot be so many workers.
    pub fn new(
        workers: usize,
        bytes: Option<u64>,
        snapshot: Snapshot,
        begin: Nanos,
    ) -> Result<Self, ReplayError> {
        let most = MOST_FLOWS.min(MOST_FLOWS_OF_ALL / (workers as u64).max(1));
        let flows = bytes.map_or(most, |bytes| (bytes / LEAST_RECORD).min(most));
        let entries = entries(flows as usize, workers);
        let config = DataplaneConfig {
            workers,
            ports: 1,
            held: 0,
            flow: FlowConfig {
                half_open_share: HALF_OPEN_SHARE,
                endpoint_share: 256,
                endpoint_half_open_share: 256,
                icmp_errors: RateLimit {
                    per_second: u32::MAX,
                    burst: u32::MAX,
                },
                ..FlowConfig::default()
            },
            ..DataplaneConfig::default()
        };
        let (mut plane, slots) = Dataplane::new(config, FlowMemory::private(entries, 0)?, begin)?;
        let mut forwarding = ForwardingBuilder::new();
        forwarding.port(port());
        plane.forwarding.publish(forwarding.build());
        plane.snapshots.publish(snapshot);
        let pool = MemoryPool::new(FRAMES, LONGEST_FRAME);
        Ok(Self {
            stats: plane.stats(),
            plane,
            workers: slots
                .into_iter()
                .map(|slot| Worker::new(slot, MemoryIo::new(&pool, &[PORT])))
                .collect(),
            tunnels: Tunnels::default(),
            next: 0,
            now: begin,
        })
    }

    /// Puts a snapshot in force, from the next packet on.
    pub fn publish(&mut self, snapshot: Snapshot) {
        // Between packets no worker reads the one before, so it is freed at once.
        self.workers.iter_mut().for_each(Worker::offline);
        self.plane.snapshots.publish(snapshot);
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.plane.snapshots.current()
    }

    /// The generation in force.
    pub fn generation(&self) -> Generation {
        self.snapshot().map_or(Generation(0), Snapshot::generation)
    }

    /// Flows that began so far.
    pub fn flows(&mut self) -> u64 {
        // A turn without packets brings the gauges up to date.
        for worker in &mut self.workers {
            worker.run_once(self.now);
        }
        self.stats.sum(|worker| worker.flows.created.get())
    }

    /// The time that a packet of this timestamp has.
    fn advance(&mut self, time: Option<Nanos>) {
        self.now = self.now.max(time.unwrap_or_default());
    }

    /// The answer about a packet of which less was captured than was on the wire. It reaches no worker.
    pub fn truncated(&mut self, time: Option<Nanos>) -> Answer {
        self.advance(time);
        Answer {
            verdict: Verdict::Drop(DropReason::Truncated),
            flow: None,
            generation: self.generation(),
            key: None,
            denied: None,
            tunnel: None,
        }
    }

    /// Lets a frame come in.
    ///
    /// # Errors
    /// A worker lost it, which is a defect.
    pub fn judge(&mut self, frame: &[u8], time: Option<Nanos>) -> Result<Answer, ReplayError> {
        self.advance(time);
        // What is longer than the parser reads is so as well without its end.
        let frame = frame.get(..LONGEST_FRAME).unwrap_or(frame);
        let receiver = self.next;
        self.next = (self.next + 1) % self.workers.len();
        if !self.workers[receiver].io().inject(0, frame) {
            return Err(ReplayError::Lost);
        }
        let mut waiting = 1_u64 << receiver;
        let mut sent = 0;
        while waiting != 0 {
            let index = waiting.trailing_zeros() as usize;
            let worker = &mut self.workers[index];
            waiting = waiting & (waiting - 1) | worker.run_once(self.now).handed_to;
            sent += worker.io().take_sent().len();
        }
        let dropped = self.stats.next_sample();
        let parsed = match self.snapshot() {
            Some(snapshot) => self.tunnels.innermost(snapshot, frame),
            None => wire::parse(frame),
        };
        let verdict = match (sent, dropped, parsed) {
            (1, None, Parsed::NotSubject(kind)) => Verdict::Pass(kind),
            (1, None, _) => Verdict::Forward,
            (0, Some(sample), _) => Verdict::Drop(sample.reason),
            _ => return Err(ReplayError::Lost),
        };
        let packet = match parsed {
            Parsed::Subject(packet) => Some(packet),
            Parsed::NotSubject(_) | Parsed::Malformed(_) => None,
        };
        Ok(Answer {
            verdict,
            flow: packet.and_then(|packet| self.flow_of(&packet)),
            generation: self.generation(),
            key: packet.map(|packet| packet.key(0)),
            denied: dropped.and_then(|sample| Some([sample.egress?, sample.ingress?])),
            tunnel: packet.and_then(|packet| packet.tunnel).map(|tunnel| tunnel.kind),
        })
    }

    /// The flow that a packet belongs to by its addresses and ports, or that an ICMP error is about.
    fn flow_of(&self, packet: &Packet) -> Option<FlowId> {
        let key = match packet.transport {
            // Of a later fragment, and behind too many headers, ports are not known.
            Transport::None | Transport::IcmpError { quoted: None } => return None,
            _ => packet.owner_key(0),
        };
        self.workers
            .iter()
            .find_map(|worker| worker.flow_id(&key, self.now))
    }
}

/// The most of a table that may be half-open, in 1/256.
const HALF_OPEN_SHARE: u8 = 255;

/// Entries for so many workers, each of whose tables has room for all flows, be they half-open. What is not used takes no
/// memory.
fn entries(flows: usize, workers: usize) -> usize {
    let table = (flows + 1) * 256 / usize::from(HALF_OPEN_SHARE) + 1;
    // A table is a whole number of the 256 segments.
    (table * SEGMENTS).div_ceil(SEGMENTS / workers.clamp(1, 64))
}

/// Parts of the flow memory that are never divided between workers.
const SEGMENTS: usize = 256;

/// Both ends of a wire: what comes in by it leaves by it, and what answers that comes in by it, too.
fn port() -> Port {
    Port {
        id: PORT,
        name: "capture".to_owned(),
        tag: PortTag::from_name("capture"),
        kind: PortKind::Wire { peer: PORT },
        side: Side::Unguarded,
        mac: [0; 6],
        mtu: u16::MAX,
        zone: 0,
        reverse_path: ReversePath::Off,
        checks_source_mac: false,
        not_subject: NotSubjectTable::WIRE,
        // A copy of the capture is to be the capture.
        partial_checksums: false,
    }
}
