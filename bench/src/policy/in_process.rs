//! A dataplane inside this process: the real publication, plane and worker, on frames in memory instead of AF_XDP. So that
//! it can be asked, snapshot by snapshot, whether what an event said has arrived at the workers.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};

use ringwall_appliance::{
    last_snapshot::{LastSnapshot, SnapshotInputs},
    snapshot_server::{SnapshotServer, Sources, locked, serve},
    worker_thread::now,
};
use ringwall_dataplane::{
    addr::Addr,
    classify::{L4, NodeExemption, Snapshot},
    dataplane::{Dataplane, DataplaneConfig},
    flow::FlowMemory,
    forward::ForwardingBuilder,
    io::memory::{MemoryIo, MemoryPool},
    port::{Port, PortId, PortKind, PortTag, ReversePath, Side},
    stats::StatsReader,
    wire::{build::Template, subject::NotSubjectTable},
    worker::Worker,
};
use ringwall_messages::{DataplaneStatus, FlowPage};

/// How long the worker sleeps when it has nothing to do. A publication wakes it.
const IDLE: Duration = Duration::from_millis(20);
/// Between two bursts of established flows: a load, but not one that takes a whole CPU.
const BETWEEN_BURSTS: Duration = Duration::from_micros(200);
/// How many pairs of addresses are tried for a flow that is allowed.
const TRIES: usize = 1 << 20;

/// The dataplane. It ends when this is dropped.
pub(super) struct InProcess {
    plane: Arc<Mutex<Dataplane>>,
    stats: StatsReader,
    publication: Arc<SnapshotServer>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl InProcess {
    /// Listens at `folder/dataplane.sock` for a control process.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let memory = FlowMemory::private(1 << 18, 7)?;
        let (mut plane, slots) = Dataplane::new(DataplaneConfig::default(), memory, now())?;
        let mut wire = ForwardingBuilder::new();
        wire.port(port(0, 1)).port(port(1, 0));
        plane.forwarding.publish(wire.build());
        let stats = plane.stats();
        let plane = Arc::new(Mutex::new(plane));
        let sleeper: Arc<OnceLock<Thread>> = Arc::default();
        let publication = Arc::new(SnapshotServer::new(
            Arc::clone(&plane),
            LastSnapshot::new(folder.join("snapshot.img"), SnapshotInputs::default(), None),
            slots.len() as u32,
            {
                let sleeper = Arc::clone(&sleeper);
                move || {
                    if let Some(thread) = sleeper.get() {
                        thread.unpark();
                    }
                }
            },
        ));
        serve(
            &folder.join(ringwall_messages::DATAPLANE_SOCKET),
            Arc::clone(&publication),
            Sources {
                status: Arc::new(DataplaneStatus::default),
                flows: Arc::new(|_, _| FlowPage::default()),
                pod_starts: Arc::new(Vec::new),
            },
            &ringwall_process::essential::Essential::new().0,
        )?;
        let stop = Arc::new(AtomicBool::new(false));
        let frames: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let pool = MemoryPool::new(1 << 16, 128);
        let mut threads = Vec::new();
        for slot in slots {
            let worker = Worker::new(slot, MemoryIo::new(&pool, &[PortId(0), PortId(1)]));
            let (stop, frames) = (Arc::clone(&stop), Arc::clone(&frames));
            let thread = std::thread::Builder::new().name("worker".to_owned());
            threads.push(thread.spawn(move || work(worker, &stop, &frames))?);
        }
        if let Some(thread) = threads.first() {
            // Set once, here.
            let _ = sleeper.set(thread.thread().clone());
        }
        let writing = Arc::clone(&publication);
        threads.push(
            std::thread::Builder::new()
                .name("disk".to_owned())
                .spawn(move || writing.keep_on_disk())?,
        );
        Ok(Self {
            plane,
            stats,
            publication,
            frames,
            stop,
            threads,
        })
    }

    /// Looks what has arrived in the newest snapshot, where it has been adopted and is not the one `seen` last.
    pub(super) fn poll_adoptions(&self, arrivals: &mut AdoptionTracker, seen: &mut Option<u64>) {
        if let Some(sequence) = self.adopted().filter(|sequence| Some(*sequence) != *seen) {
            let at = Instant::now();
            self.with_snapshot(|snapshot| arrivals.look(snapshot, at));
            *seen = Some(sequence);
        }
    }

    /// What became of the packets of connections.
    pub(super) fn established(&self) -> Established {
        let stats = &self.stats;
        Established {
            packets: stats.sum(|it| it.received.get()),
            restamped: stats.sum(|it| it.restamped.get()),
            again: [
                stats.sum(|it| it.rejudged.get()),
                stats.sum(|it| it.flows.revoked.get()),
                stats.sum(|it| it.flows.created.get()),
            ],
        }
    }

    /// The number of the newest snapshot, if every worker decides by it; 0 before the first.
    pub(super) fn adopted(&self) -> Option<u64> {
        let plane = locked(&self.plane);
        let sequence = plane.snapshots.sequence();
        (plane.snapshots.current().is_none() || plane.snapshots.all_adopted(sequence)).then_some(sequence)
    }

    /// Asks the newest snapshot something; None before the first.
    fn with_snapshot<T>(&self, question: impl FnOnce(&Snapshot) -> T) -> Option<T> {
        locked(&self.plane).snapshots.current().map(question)
    }

    /// Lets so many connections (UDP, both directions) between these addresses pass again and again from now on: pairs that
    /// the newest snapshot allows. Answers how many it found.
    pub(super) fn establish(&self, addresses: &[IpAddr], wanted: usize) -> usize {
        let found = self
            .with_snapshot(|snapshot| pairs(snapshot, addresses, wanted))
            .unwrap_or_default();
        let mut frames = locked(&self.frames);
        for (number, (src, dst)) in found.iter().enumerate() {
            let client = 1024 + (number % 60_000) as u16;
            frames.push(Template::new((*src).into(), (*dst).into()).udp(client, 9000, b"request"));
            frames.push(Template::new((*dst).into(), (*src).into()).udp(9000, client, b"answer"));
        }
        found.len()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.publication.close();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Counts of the packets of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Established {
    /// Received.
    pub(super) packets: u64,
    /// Entries whose ends were looked up again and had not changed.
    pub(super) restamped: u64,
    /// Entries that were judged again, cut, and made.
    pub(super) again: [u64; 3],
}

/// Pairs of these addresses that a snapshot lets connect: as many as are wanted, or found.
pub(super) fn pairs(snapshot: &Snapshot, addresses: &[IpAddr], wanted: usize) -> Vec<(IpAddr, IpAddr)> {
    (0..TRIES)
        .map(|number| {
            let from = number.wrapping_mul(7919) % addresses.len();
            let to = (from + 1 + number % 911) % addresses.len();
            (addresses[from], addresses[to])
        })
        .filter(|(src, dst)| src != dst && allowed(snapshot, *src, *dst))
        .take(wanted)
        .collect()
}

fn port(id: u16, peer: u16) -> Port {
    Port {
        id: PortId(id),
        name: format!("memory{id}"),
        tag: PortTag::from_name(&format!("memory{id}")),
        kind: PortKind::Wire { peer: PortId(peer) },
        side: Side::Any,
        mac: [2, 0, 0, 0, 0, id as u8],
        mtu: 1500,
        zone: 0,
        reverse_path: ReversePath::Off,
        checks_source_mac: false,
        not_subject: NotSubjectTable::WIRE,
        partial_checksums: false,
    }
}

fn allowed(snapshot: &Snapshot, src: IpAddr, dst: IpAddr) -> bool {
    let (src, dst): (Addr, Addr) = (src.into(), dst.into());
    let l4 = L4::Port {
        protocol: 17,
        port: 9000,
        source: 0,
    };
    let ends = (snapshot.identify(src), snapshot.identify(dst));
    snapshot
        .judge(&ends.0, &ends.1, src, dst, l4, NodeExemption::Untrusted)
        .allow()
}

fn work(mut worker: Worker<MemoryIo>, stop: &AtomicBool, frames: &Mutex<Vec<Vec<u8>>>) {
    while !stop.load(Ordering::Relaxed) {
        for frame in locked(frames).drain(..) {
            worker.io().inject(0, &frame);
        }
        let busy = worker.run_once(now()).frames > 0;
        worker.io().recirculate(0);
        std::thread::park_timeout(if busy { BETWEEN_BURSTS } else { IDLE });
    }
}

/// What an event said about an address: who has it from then on, if anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExpectedOwner {
    pub(super) address: IpAddr,
    /// Namespace and name.
    pub(super) owner: Option<(String, String)>,
}

impl ExpectedOwner {
    fn holds(&self, snapshot: &Snapshot) -> bool {
        let endpoint = snapshot.endpoint(snapshot.identify(self.address.into()).endpoint);
        endpoint.map(|it| (it.namespace.to_owned(), it.name.to_owned())) == self.owner
    }
}

/// Waits for what events said to arrive at the workers.
#[derive(Debug, Default)]
pub(super) struct AdoptionTracker {
    waiting: VecDeque<(u64, Instant, ExpectedOwner)>,
    /// What was said of each address, with the event's number: a later word makes an earlier one unobservable.
    expected: HashMap<IpAddr, Vec<(u64, ExpectedOwner)>>,
    next: u64,
    /// Seconds from event to adoption.
    pub(super) lags: Vec<f64>,
}

impl AdoptionTracker {
    pub(super) fn said(&mut self, at: Instant, said: ExpectedOwner) {
        self.expected
            .entry(said.address)
            .or_default()
            .push((self.next, said.clone()));
        self.waiting.push_back((self.next, at, said));
        self.next += 1;
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What has waited longest.
    pub(super) fn oldest(&self) -> Option<&ExpectedOwner> {
        self.waiting.front().map(|(_, _, said)| said)
    }

    /// Looks which of the oldest have arrived in a snapshot that was adopted at `at`. Events arrive in order.
    pub(super) fn look(&mut self, snapshot: &Snapshot, at: Instant) {
        while let Some((number, since, said)) = self.waiting.front() {
            let words = self.expected.entry(said.address).or_default();
            let arrived = words
                .iter()
                .any(|(of, said)| of >= number && said.holds(snapshot));
            if !arrived {
                return;
            }
            let (number, address) = (*number, said.address);
            self.lags.push(at.saturating_duration_since(*since).as_secs_f64());
            words.retain(|(of, _)| *of > number);
            if words.is_empty() {
                self.expected.remove(&address);
            }
            self.waiting.pop_front();
        }
    }
}
