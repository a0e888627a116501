//! One worker, its policy and its packets.

use anyhow::{Context, bail, ensure};
use ringwall_dataplane::{
    dataplane::{Dataplane, DataplaneConfig},
    flow::{FlowConfig, FlowMemory},
    forward::{Forwarding, ForwardingBuilder, Neighbour, Route},
    io::BURST,
    port::{Port, PortId, PortKind, PortTag, ReversePath, Side},
    stats::StatsReader,
    time::Nanos,
    verdict::DropReason,
    wire::{TcpFlags, build::Template, subject::NotSubjectTable},
    worker::Worker,
};

use crate::{
    cluster::{self, CLOSED_PORT, Cluster, OPEN_PORT, PODS, Random},
    mix::Mix,
    source::{FlowEnds, FrameSource, Script},
};

const INSIDE: PortId = PortId(0);
const OUTSIDE: PortId = PortId(1);
/// Of the flow memory and of everything else that is random, so that two runs do the same.
pub(crate) const SEED: u64 = 7;
/// The least entries of a flow table.
pub(crate) const MIN_ENTRIES: usize = 1 << 16;
/// Time between two turns.
const TURN: u64 = 1_000;
/// Longer than any entry lives.
const AGE: Nanos = Nanos::from_secs(7 * 24 * 3600);
/// Payload that makes a frame of 60 bytes over IPv4 and UDP: 64 with the checksum that a NIC adds.
const PAYLOAD: [u8; 18] = [0; 18];

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The kind of packets.
    pub mix: Mix,
    /// How many flows they are of; of [`Mix::Denied`], how many pairs of pods.
    pub flows: usize,
    /// Whether they come in another order than that in which the flows began.
    pub shuffled: bool,
    /// Rules of the policy.
    pub rules: usize,
}

/// What came of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// Packets, or turns where there are no packets.
    pub packets: usize,
    /// What the clock counted.
    pub elapsed: u64,
}

/// Counters that show whether what is measured did happen.
#[derive(Clone, Copy, Debug)]
struct Counts {
    received: u64,
    forwarded: u64,
    hits: u64,
    misses: u64,
    stateless: u64,
    rejudged: u64,
    restamped: u64,
    denied: u64,
    dropped: u64,
}

impl Counts {
    fn read(stats: &StatsReader) -> Self {
        let sum = |read: fn(&ringwall_dataplane::stats::WorkerCounters) -> u64| stats.sum(read);
        Self {
            received: sum(|it| it.received.get()),
            forwarded: sum(|it| it.forwarded.get()),
            hits: sum(|it| it.flow_hits.get()),
            misses: sum(|it| it.flow_misses.get()),
            stateless: sum(|it| it.stateless.get()),
            rejudged: sum(|it| it.rejudged.get()),
            restamped: sum(|it| it.restamped.get()),
            denied: stats.drops(DropReason::PolicyEgress) + stats.drops(DropReason::PolicyIngress),
            dropped: sum(|it| it.drops.total()),
        }
    }
}

/// One worker with what it needs.
#[derive(Debug)]
pub struct Load {
    plan: Plan,
    cluster: Cluster,
    plane: Dataplane,
    worker: Worker<FrameSource>,
    now: Nanos,
}

impl Load {
    /// A worker that is ready: policy and routes adopted, and the flows of mixes that need them open.
    ///
    /// # Errors
    /// The plan makes no sense, or its flows could not be opened.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        ensure!(plan.flows > 0 && plan.rules > 0, "a load needs flows and rules");
        let mut cluster = Cluster::new(plan.rules);
        let config = DataplaneConfig {
            flow: FlowConfig {
                // Every flow of `new-flows` is half-open; the share is not what is measured.
                half_open_share: u8::MAX,
                ..FlowConfig::default()
            },
            ..DataplaneConfig::default()
        };
        let memory = FlowMemory::private((plan.flows * 2).max(MIN_ENTRIES), SEED)?;
        let (mut plane, slots) = Dataplane::new(config, memory, Nanos(0))?;
        plane.snapshots.publish(cluster.snapshot(false)?);
        plane.forwarding.publish(forwarding(plan.mix));
        let slot = slots.into_iter().next().context("no worker")?;
        let mut source = FrameSource::new()?;
        source.flows = flows(plan);
        let mut load = Self {
            plan,
            cluster,
            plane,
            worker: Worker::new(slot, source),
            // After the time in which connections are picked up in the middle.
            now: Nanos::from_secs(1000),
        };
        if plan.mix.is_established() {
            load.open_flows()?;
        }
        if plan.shuffled {
            shuffle(&mut load.worker.io().flows);
        }
        Ok(load)
    }

    /// Measures at least so many packets, or turns where there are none; `clock` is read around what is measured and
    /// nothing else.
    ///
    /// # Errors
    /// The packets did not fare as their mix says: then nothing was measured.
    pub fn round(
        &mut self,
        packets: usize,
        clock: impl Fn() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Round> {
        let mix = self.plan.mix;
        let mut round = Round::default();
        while round.packets < packets {
            let left = packets - round.packets;
            let count = match mix {
                Mix::EmptyTurn => 0,
                Mix::NewFlows | Mix::EpochChange | Mix::Restamp => self.plan.flows,
                _ => left,
            };
            match mix {
                Mix::NewFlows => self.forget_flows()?,
                Mix::EpochChange | Mix::Restamp => self.change_snapshot(mix == Mix::EpochChange)?,
                _ => {}
            }
            if count > 0 {
                self.worker.io().play(script(mix, INSIDE, TcpFlags::ACK), count)?;
            }
            let before = Counts::read(&self.plane.stats());
            let turns = if count == 0 { left } else { count.div_ceil(BURST) };
            let start = clock()?;
            self.measured(turns);
            round.elapsed += clock()? - start;
            round.packets += if count == 0 { turns } else { count };
            self.check(&before, count as u64)?;
        }
        Ok(round)
    }

    /// Turns and nothing else. Out of line: what it calls is what is counted as instructions.
    #[inline(never)]
    pub fn measured(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    #[inline]
    fn turn(&mut self) {
        self.now = self.now.after(Nanos(TURN));
        self.worker.run_once(self.now);
    }

    fn check(&mut self, before: &Counts, packets: u64) -> anyhow::Result<()> {
        let after = Counts::read(&self.plane.stats());
        let mix = self.plan.mix;
        let grown = |read: fn(&Counts) -> u64| read(&after) - read(before);
        let passed = grown(|it| it.forwarded) == packets && grown(|it| it.dropped) == 0;
        let fared = match mix {
            Mix::Established | Mix::EstablishedV6 | Mix::Routed | Mix::Tcp => {
                passed && grown(|it| it.hits) == packets && grown(|it| it.restamped + it.rejudged) == 0
            }
            Mix::NewFlows => passed && grown(|it| it.misses) == packets && grown(|it| it.stateless) == 0,
            Mix::Denied => grown(|it| it.denied) == packets,
            Mix::EpochChange => passed && grown(|it| it.rejudged) == packets,
            Mix::Restamp => passed && grown(|it| it.restamped) == packets,
            Mix::EmptyTurn => packets == 0,
        };
        if !fared || grown(|it| it.received) != packets {
            bail!("{mix}: {packets} packets did not fare as they should: {before:?} became {after:?}");
        }
        Ok(())
    }

    /// Opens all flows, in order: packets both ways, until their state stays.
    fn open_flows(&mut self) -> anyhow::Result<()> {
        let mix = self.plan.mix;
        let count = self.plan.flows;
        const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
        let steps = [
            (INSIDE, TcpFlags::SYN),
            (OUTSIDE, SYN_ACK),
            (INSIDE, TcpFlags::ACK),
            (OUTSIDE, TcpFlags::ACK),
            (INSIDE, TcpFlags::ACK),
        ];
        for (from, flags) in steps {
            self.worker.io().play(script(mix, from, flags), count)?;
            while self.worker.io().left() > 0 {
                self.turn();
            }
        }
        let counts = Counts::read(&self.plane.stats());
        let [packets, flows] = [count * steps.len(), count].map(|n| n as u64);
        if counts.forwarded != packets || counts.misses != flows || counts.stateless != 0 {
            bail!("{count} flows could not be opened: {counts:?}");
        }
        Ok(())
    }

    /// Ages all entries and lets them be swept.
    fn forget_flows(&mut self) -> anyhow::Result<()> {
        self.now = self.now.after(AGE);
        let stats = self.plane.stats();
        for _ in 0..self.plan.flows.max(MIN_ENTRIES) {
            // Not by 1 us: the sweep is spread over seconds.
            self.now = self.now.after(Nanos::from_millis(10));
            self.worker.run_once(self.now);
            if stats.sum(|it| it.flows.used.get()) == 0 {
                return Ok(());
            }
        }
        bail!("flows of an earlier round are left")
    }

    fn change_snapshot(&mut self, epochs: bool) -> anyhow::Result<()> {
        self.plane.snapshots.publish(self.cluster.snapshot(epochs)?);
        self.turn(); // adopted
        self.plane.snapshots.reclaim();
        Ok(())
    }
}

pub(crate) fn shuffle(flows: &mut [FlowEnds]) {
    let mut random = Random(SEED);
    for at in (1..flows.len()).rev() {
        flows.swap(at, random.below(at as u32 + 1) as usize);
    }
}

/// Flows from the first half of the pods to the second half, evenly.
pub(crate) fn flows(plan: Plan) -> Vec<FlowEnds> {
    let dst_port = if plan.mix == Mix::Denied {
        CLOSED_PORT
    } else {
        OPEN_PORT
    };
    const HALF: u32 = PODS / 2;
    (0..plan.flows as u32)
        .map(|flow| {
            let (src, lap) = (flow % HALF, flow / HALF);
            let dst = HALF + (src * 7919 + lap * 1_299_709) % HALF;
            FlowEnds {
                src: cluster::pod_v4(src),
                dst: cluster::pod_v4(dst),
                src_port: 1024 + lap as u16,
                dst_port,
            }
        })
        .collect()
}

/// Packets that come in by a port.
pub(crate) fn script(mix: Mix, from: PortId, tcp_flags: u8) -> Script {
    let [src, dst] = [0, 1].map(|pod| cluster::addr(cluster::pod_v4(pod), mix.is_v6()));
    let mut template = Template::new(src, dst);
    (template.eth_src, template.eth_dst) = (station(1 - from.0), mac(from));
    Script {
        template: if mix == Mix::Tcp {
            template.tcp_at(0, 0, tcp_flags, [1, 1], &[])
        } else {
            template.udp(0, 0, &PAYLOAD)
        },
        port: from,
        reversed: from == OUTSIDE,
    }
}

fn mac(port: PortId) -> [u8; 6] {
    [2, 0, 0, 0, 1, port.0 as u8]
}

/// Who is behind a port.
fn station(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 2, port as u8]
}

/// A wire, or two uplinks of a router, with one half of the pods behind each.
pub(crate) fn forwarding(mix: Mix) -> Forwarding {
    let mut builder = ForwardingBuilder::new();
    let router = |port: PortId| cluster::addr(0xac10_0000 + u32::from(port.0), false);
    for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
        let kind = if mix == Mix::Routed {
            PortKind::Uplink
        } else {
            PortKind::Wire { peer }
        };
        let name = format!("p{}", id.0);
        builder.port(Port {
            id,
            tag: PortTag::from_name(&name),
            name,
            kind,
            side: Side::Any,
            mac: mac(id),
            mtu: 1500,
            zone: 0,
            reverse_path: ReversePath::Off,
            checks_source_mac: false,
            not_subject: NotSubjectTable::WIRE,
            partial_checksums: false,
        });
        builder.neighbour(id, router(id), Neighbour::Reachable(station(id.0)));
    }
    // The halves of the pods.
    for (first, port) in [(0, INSIDE), (PODS / 2, OUTSIDE)] {
        let length = u32::BITS - (PODS / 2).trailing_zeros();
        let prefix = cluster::addr(cluster::pod_v4(first), false);
        builder.route(prefix, length as u8, Route::via(port, router(port)));
    }
    builder.build()
}
