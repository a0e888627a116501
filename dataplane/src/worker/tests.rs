#![allow(clippy::unwrap_used, clippy::panic)] // in tests a failed unwrap is the failure

mod answers;
mod asked;
mod asked_streams;
mod attacks;
mod bursts;
mod chains;
mod drops;
mod figures;
mod names;
mod policy;
mod random;
mod restart;
mod routed;
mod semantics;
mod state_attacks;
mod tunnels;

use std::sync::Arc;

use crate::{
    addr::Addr,
    classify::{
        DenialAnswer, Generation, Identity, IdentityKind, ImageBuilder, NONE, PolicyName, PortDecision,
        PortRange, Snapshot, icmp,
    },
    dataplane::{Dataplane, DataplaneConfig, Mode},
    flow::{FlowDump, FlowMemory, FlowRecord},
    forward::ForwardingBuilder,
    io::memory::{MemoryIo, MemoryPool},
    port::{Port, PortId, PortKind, PortTag, ReversePath, Side},
    stats::StatsReader,
    time::Nanos,
    verdict::DropReason,
    wire::{TcpFlags, build::Template, subject::NotSubjectTable},
    worker::Worker,
};

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
const FIN_ACK: u8 = TcpFlags::FIN | TcpFlags::ACK;
const RST: u8 = TcpFlags::RST;

/// Ends of the wire: where pods are, and the rest of the world.
const INSIDE: PortId = PortId(0);
const OUTSIDE: PortId = PortId(1);

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

/// From one address to another.
fn from_to(src: &str, dst: &str) -> Template {
    Template::new(addr(src), addr(dst))
}

// Open in both directions.
const CLIENT: [&str; 2] = ["10.0.0.1", "fd00::1"];
/// Isolated for ingress: TCP 80, UDP 53 and SCTP 5000 from the client, and TCP 443 from everybody outside.
const WEB: [&str; 2] = ["10.0.0.2", "fd00::2"];
/// Isolated for egress, nothing allowed; for ingress, echo and everything else from the client.
const BOX: [&str; 2] = ["10.0.0.3", "fd00::3"];
const UNOWNED: [&str; 2] = ["10.0.0.99", "fd00::99"];
/// Hosts the web pod.
const NODE: [&str; 2] = ["10.9.0.1", "fd09::1"];
const OUTSIDER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
const SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];

/// What a snapshot of the small cluster above says.
#[derive(Clone, Copy)]
struct World {
    generation: u64,
    /// Whether the web pod lets the client in.
    web_allows: bool,
    /// Goes into the epoch of the web pod.
    web_epoch: u64,
    /// The box's epoch.
    box_epoch: u64,
    allow_unknown: bool,
    /// Whether the pods' prefixes are known; else what has no owner in them is external.
    pod_cidrs: bool,
    /// Whether the box takes echo requests alone.
    echo_alone: bool,
    /// What the policy answers to those whom it denies.
    answer: Option<DenialAnswer>,
}

impl World {
    fn new(generation: u64) -> Self {
        Self {
            generation,
            web_allows: true,
            web_epoch: 20,
            box_epoch: 30,
            allow_unknown: false,
            pod_cidrs: true,
            echo_alone: false,
            answer: None,
        }
    }

    fn snapshot(self) -> Snapshot {
        let mut image = ImageBuilder::new(Generation(self.generation));
        image.allow_unknown(self.allow_unknown);
        image.node("node");
        let name = PolicyName {
            tier: "NetworkPolicy",
            kind: "NetworkPolicy",
            namespace: "default",
            name: "web",
        };
        let policy = image.policy_that_answers(name, self.answer);
        let rule = image.rule(policy, 0);
        let isolating = image.isolating(&[policy]);
        let deny = image.port_map(PortDecision::DENY, &[]);
        let all = image.port_map(PortDecision::allow(rule), &[]);
        let web_client = image.port_map(
            PortDecision::DENY,
            &[
                PortRange::allow(6, 80, 80, rule),
                PortRange::allow(17, 53, 53, rule),
                PortRange::allow(132, 5000, 5000, rule),
            ],
        );
        let web_client = if self.web_allows { web_client } else { deny };
        let web_outside = image.port_map(PortDecision::DENY, &[PortRange::allow(6, 443, 443, rule)]);
        // Peer classes: 0 everybody else, 1 the client, 2 other pods.
        let web_row = image.row(isolating, &[web_outside, web_client, deny]);
        let request = |image: &mut ImageBuilder, protocol, kind| PortRange {
            protocol,
            lo: 0,
            hi: u16::MAX,
            then: image.nested_port_map(
                PortDecision::DENY,
                &[PortRange::allow(6, icmp(kind, 0), icmp(kind, u8::MAX), rule)],
            ),
        };
        let echo = [request(&mut image, 1, 8), request(&mut image, 58, 128)];
        let echo = image.port_map(PortDecision::DENY, &echo);
        let box_in = image.row(isolating, &[deny, if self.echo_alone { echo } else { all }, deny]);
        let box_out = image.row(isolating, &[deny, deny, deny]);
        let web_rows = (web_row, 0);
        let box_rows = (box_in, box_out);
        let end = |kind, endpoint, node, peer_class, (ingress, egress), epoch| Identity {
            kind,
            endpoint,
            node,
            peer_class,
            ingress,
            egress,
            epoch,
        };
        use IdentityKind::{Node, Pod, Service, Unknown};
        for (who, name, identity) in [
            (BOX, "box", end(Pod, 0, NONE, 2, box_rows, self.box_epoch)),
            (CLIENT, "client", end(Pod, 1, NONE, 1, (0, 0), 10)),
            (WEB, "web", end(Pod, 2, 0, 2, web_rows, self.web_epoch)),
            (NODE, "", end(Node, NONE, 0, 0, (0, 0), 40)),
        ] {
            let identity = image.identity(identity);
            if !name.is_empty() {
                image.endpoint("default", name, false, identity);
            }
            for text in who {
                image.host(addr(text), identity);
            }
        }
        let unknown = image.identity(end(Unknown, NONE, NONE, 0, (0, 0), 0));
        if self.pod_cidrs {
            image.prefix(addr("10.0.0.0"), 16, unknown);
            image.prefix(addr("fd00::"), 48, unknown);
        }
        let service = image.identity(end(Service, NONE, NONE, 0, (0, 0), 60));
        image.prefix(addr("10.96.0.0"), 16, service);
        image.prefix(addr("fd96::"), 48, service);
        Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap()
    }
}

fn port(id: PortId, kind: PortKind, side: Side) -> Port {
    Port {
        id,
        name: format!("p{}", id.0),
        tag: PortTag::from_name(&format!("p{}", id.0)),
        kind,
        side,
        mac: [2, 0, 0, 0, 1, id.0 as u8],
        mtu: 1500,
        zone: 0,
        reverse_path: ReversePath::Strict,
        checks_source_mac: false,
        not_subject: NotSubjectTable::WIRE,
        partial_checksums: false,
    }
}

/// A wire between pods and the world.
fn wire() -> ForwardingBuilder {
    let mut builder = ForwardingBuilder::new();
    builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Any));
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Any));
    builder
}

/// Workers over memory. Every port is a source of every worker.
struct Bed {
    plane: Dataplane,
    stats: StatsReader,
    workers: Vec<Worker<MemoryIo>>,
    pool: Arc<MemoryPool>,
    now: Nanos,
}

impl Bed {
    /// A wire in enforcement, the world in force.
    fn wire() -> Self {
        let mut bed = Self::with(DataplaneConfig::default(), 4096);
        bed.plane.snapshots.publish(World::new(1).snapshot());
        bed.plane.forwarding.publish(wire().build());
        bed
    }

    /// Nothing published yet.
    fn with(config: DataplaneConfig, entries: usize) -> Self {
        Self::over(
            config,
            FlowMemory::private(entries, 7).unwrap(),
            Nanos::from_secs(1000),
        )
    }

    fn over(config: DataplaneConfig, memory: FlowMemory, now: Nanos) -> Self {
        let pool = MemoryPool::new(512, 2048);
        let (plane, slots) = Dataplane::new(config, memory, now).unwrap();
        let ports: Vec<PortId> = (0..8).map(PortId).collect();
        let workers = slots
            .into_iter()
            .map(|slot| Worker::new(slot, MemoryIo::new(&pool, &ports)))
            .collect();
        Self {
            stats: plane.stats(),
            plane,
            workers,
            pool,
            now,
        }
    }

    /// Out of the time in which connections are picked up.
    fn settled(mut self) -> Self {
        self.wait(Nanos::from_secs(200));
        self
    }

    fn wait(&mut self, time: Nanos) {
        self.now = self.now.after(time);
    }

    fn publish(&mut self, world: World) {
        self.plane.snapshots.publish(world.snapshot());
    }

    /// Sends a packet into a port of a worker and answers what came out.
    fn on(&mut self, worker: usize, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        assert!(self.workers[worker].io().inject(usize::from(port.0), frame));
        self.run()
    }

    /// Turns until nothing moves.
    fn run(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let mut frames = 0;
            for worker in &mut self.workers {
                frames += worker.run_once(self.now).frames;
                sent.extend(worker.io().take_sent());
            }
            if frames == 0 {
                return sent;
            }
        }
    }

    /// Whether a packet crosses the wire, unchanged, and nothing else comes out.
    fn crosses(&mut self, port: PortId, frame: &[u8]) -> bool {
        let sent = self.on(0, port, frame);
        if sent.is_empty() {
            return false;
        }
        let peer = if port == INSIDE { OUTSIDE } else { INSIDE };
        assert_eq!(sent, [(peer, frame.to_vec())]);
        true
    }

    /// Asserts that a packet is dropped for a reason.
    fn drops(&mut self, port: PortId, frame: &[u8], reason: DropReason) {
        self.drops_one(reason, |bed| bed.on(0, port, frame));
    }

    /// Asserts that nothing is sent, and one packet dropped for a reason.
    fn drops_one(&mut self, reason: DropReason, send: impl FnOnce(&mut Self) -> Vec<(PortId, Vec<u8>)>) {
        let before = self.stats.drops(reason);
        let total = self.stats.sum(|worker| worker.drops.total());
        let sent = send(self);
        assert_eq!(sent, [], "want {}", reason.name());
        let after: Vec<_> = DropReason::ALL
            .iter()
            .filter(|reason| self.stats.drops(**reason) > 0)
            .collect();
        assert_eq!(
            self.stats.drops(reason),
            before + 1,
            "want {}, have {after:?}",
            reason.name()
        );
        assert_eq!(self.stats.sum(|worker| worker.drops.total()), total + 1);
    }

    fn flows(&mut self) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        for worker in 0..self.workers.len() {
            let mut dump = FlowDump::new(7);
            loop {
                assert!(self.plane.request_flows(worker, dump).is_ok());
                self.workers[worker].run_once(self.now);
                dump = self.plane.next_flows(worker).unwrap();
                records.append(&mut dump.records);
                dump.records.reserve_exact(7);
                if dump.done {
                    break;
                }
            }
        }
        records
    }

    fn count(&self, read: impl Fn(&crate::stats::WorkerCounters) -> u64) -> u64 {
        self.stats.sum(read)
    }
}

/// Every frame that was received or made is accounted for, and none is lost.
impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let _ = self.run();
        assert_eq!(self.pool.free(), self.pool.total(), "frames are lost");
        assert_eq!(self.pool.returned_twice(), 0);
        let count = |read: fn(&crate::stats::WorkerCounters) -> u64| self.stats.sum(read);
        assert_eq!(
            count(|w| w.received.get()) + count(|w| w.generated.get()),
            count(|w| w.forwarded.get()) + count(|w| w.drops.total()) + count(|w| w.held.get()),
        );
        assert_eq!(count(|w| w.handed_over.get()), count(|w| w.taken_over.get()));
    }
}
