//! The life of a packet.
//!
//! ```text
//! receive -> parse -> own shard, else hand over -> look up -> judge -> route -> commit -> transmit
//! ```
//! Flow state changes only when the packet is sure to be forwarded; a dropped packet leaves no trace.
//! [`Worker::run_once`] is one turn: a burst from every source. A turn uses one snapshot and one [`Forwarding`]
//! throughout.

mod answer;
mod ask;
mod commit;
mod judge;
mod route;
mod tunnel;

#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use crate::{
    addr::Addr,
    classify::{Generation, JudgedPacket, L4, Snapshot},
    dataplane::{Mode, ShardMap, Shared, WorkerSlot},
    flow::{
        FlowDump, FlowId,
        hash::{KeyHash, Seed},
        rate::EndpointLimiter,
        shard::Shard,
        table::{FlowTable, Hint},
    },
    forward::{Forwarding, hold_queue::HoldQueue},
    frame::Frame,
    io::{BURST, Burst, PacketIo},
    port::{Port, PortId, PortKind},
    prefetch::prefetch,
    stats::{DropSample, WorkerStats},
    time::Nanos,
    verdict::DropReason,
    wire::{self, FlowKey, Packet, Parsed, Transport, subject::NotSubject},
};
use judge::{Denial, FlowUpdate};
use route::OutputPath;
use tunnel::CarrierCache;

/// Every entry's timeout is checked about this often.
const SWEEP_PERIOD: Nanos = Nanos::from_secs(10);
/// The most entries checked in one turn.
const MAX_SWEPT_PER_TURN: u64 = 256;
/// The most half-open entries of a node that the kernel is asked about in one turn.
const MAX_HALF_OPEN_PER_TURN: usize = 16;
/// How often gauges are updated, but for the first turn without packets.
const GAUGE_INTERVAL: Nanos = Nanos::from_millis(50);
/// The most drops sampled in one turn.
const MAX_SAMPLES_PER_TURN: usize = 32;
/// The most entries scanned in one turn for a flow dump: a few microseconds.
const MAX_SCANNED_PER_TURN: usize = 1024;
/// A sample gets its id when it is stored.
const UNNAMED: FlowId = FlowId(0);

/// A frame on its way to the worker that owns its flow.
#[derive(Debug)]
pub(crate) struct Handover {
    frame: Frame,
    packet: Packet,
    hash: KeyHash,
}

/// What a turn did, for the loop around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnReport {
    /// Frames received or taken over; 0 means that the worker may sleep.
    pub frames: usize,
    /// Bit mask of the workers that frames were handed over to: wake those that sleep.
    pub handed_to: u64,
    /// Whether packets wait for a neighbour: if so, sleep only briefly.
    pub has_held: bool,
    /// Whether a worker has requested a neighbour or reported a station since [`Worker::take_requests_note`].
    pub has_requests: bool,
}

/// One worker: owns its ports' queues and its shards.
#[derive(Debug)]
pub struct Worker<Io> {
    io: Io,
    slot: WorkerSlot,
    holds: HoldQueue,
    housekeeping: Housekeeping,
    /// Parsed headers and disposition of each frame of a burst, by its index in the burst.
    metas: Box<[PacketMeta; BURST]>,
    carriers: CarrierCache,
}

/// When each kind of housekeeping was last done.
#[derive(Clone, Copy, Debug, Default)]
struct Housekeeping {
    last_sweep: Nanos,
    last_gauges: Nanos,
    /// There were frames since.
    are_gauges_old: bool,
    /// Sequence of the `Forwarding` that held packets were last retried with, and when.
    last_retry: (u64, Nanos),
}

/// One turn of a worker: its state, and the snapshot and forwarding table in force for the turn.
struct WorkerTurn<'a, Io> {
    io: &'a mut Io,
    index: usize,
    shared: &'a Shared,
    stats: &'a WorkerStats,
    table: &'a mut FlowTable,
    shards: &'a mut [Shard],
    icmp_passed: &'a mut EndpointLimiter,
    icmp_sent: &'a mut EndpointLimiter,
    denials_answered: &'a mut EndpointLimiter,
    seed: &'a Seed,
    shard_map: &'a ShardMap,
    hold_queue: &'a mut HoldQueue,
    carriers: &'a mut CarrierCache,
    snapshot: Option<&'a Snapshot>,
    forwarding: Option<&'a Forwarding>,
    now: Nanos,
    samples: usize,
    /// Queue and ticket of the last ask of the burst.
    asked: Option<(u32, u32)>,
    report: TurnReport,
}

impl<Io: PacketIo> Worker<Io> {
    /// A worker that uses the state in `slot` and the queues of `io`.
    pub fn new(slot: WorkerSlot, io: Io) -> Self {
        let config = &slot.shared.config;
        let holds = HoldQueue::new(config.held, config.held_for);
        Self {
            io,
            slot,
            holds,
            housekeeping: Housekeeping::default(),
            metas: Box::new([PacketMeta::BLANK; BURST]),
            carriers: CarrierCache::default(),
        }
    }

    /// One turn: frames that other workers handed over, a burst from every source, a little housekeeping, the
    /// doorbells. `now` must not go back.
    pub fn run_once(&mut self, now: Nanos) -> TurnReport {
        let snapshot = self.slot.snapshots.adopt();
        let forwarding = self.slot.forwarding.adopt();
        let sequence = forwarding.map_or(0, |(sequence, _)| sequence);
        let counters = &self.slot.stats.counters;
        counters
            .generation
            .set(snapshot.map_or(0, |(_, snapshot)| snapshot.generation().0));
        counters.forwarding.set(sequence);
        counters.turns.add(1);
        self.carriers
            .renew(snapshot.map_or(0, |(sequence, _)| sequence), sequence);
        let mut turn = WorkerTurn {
            io: &mut self.io,
            index: self.slot.index,
            shared: &self.slot.shared,
            stats: &self.slot.stats,
            table: &mut self.slot.table,
            shards: &mut self.slot.shards,
            icmp_passed: &mut self.slot.icmp_passed,
            icmp_sent: &mut self.slot.icmp_sent,
            denials_answered: &mut self.slot.denials_answered,
            seed: &self.slot.seed,
            shard_map: &self.slot.shard_map,
            hold_queue: &mut self.holds,
            carriers: &mut self.carriers,
            snapshot: snapshot.map(|(_, snapshot)| snapshot),
            forwarding: forwarding.map(|(_, forwarding)| forwarding),
            now,
            samples: 0,
            asked: None,
            report: TurnReport::default(),
        };
        turn.take_over();
        let mut burst = Burst::new();
        for source in 0..turn.io.sources() {
            turn.io.receive(source, &mut burst);
            turn.process_burst(&mut burst, &mut self.metas);
        }
        turn.housekeeping(&mut self.housekeeping, sequence);
        turn.io.flush();
        turn.report
    }

    /// Whether frames from other workers or a dump request wait. Check right before sleeping.
    pub fn has_work(&self) -> bool {
        let shared = &self.slot.shared;
        !shared.handover[self.slot.index].is_empty() || !shared.dump_requests[self.slot.index].is_empty()
    }

    /// Whether requests or reports came since this was last asked, by any worker: whoever gets `true` tells the thread that
    /// takes them ([`crate::Dataplane::next_resolve`]).
    pub fn take_requests_note(&self) -> bool {
        self.slot.shared.has_requests.swap(false, Ordering::Acquire)
    }

    /// Marks the worker as sleeping, so publication does not wait for it. The next turn brings it back online.
    pub fn offline(&mut self) {
        self.slot.snapshots.offline();
        self.slot.forwarding.offline();
    }

    /// The flow of a key in either direction, one that policy has cut included, if this worker has it. Outside of turns: for
    /// replays, which name the flow of each packet.
    pub fn flow_id(&self, key: &FlowKey, now: Nanos) -> Option<FlowId> {
        let WorkerSlot { table, seed, .. } = &self.slot;
        let (index, _) = table.find(seed.key(key), key)?;
        (!table.is_expired(index, now)).then(|| table.entry(index).id(seed))
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.slot.index
    }

    /// Its ports' queues, to be serviced between turns.
    pub fn io(&mut self) -> &mut Io {
        &mut self.io
    }
}

/// What to do with a frame. Small enough for a register: a larger one is written in parts and read as a whole, which waits until
/// the parts have left the store buffer.
#[derive(Clone, Copy, Debug)]
enum Disposition {
    /// Judge it: its flow is in one of this worker's shards.
    Own,
    /// The same, and it has several buffers.
    OwnChain,
    /// The same, and the kernel of a node asks about it.
    Asked,
    /// Hand it over to the worker that owns its shard.
    HandOver(u8),
    /// Its port is gone.
    NoPort,
    /// It drops whatever it is.
    Unusable(DropReason),
    NotSubject(NotSubject),
    /// The same, inside of a tunnel packet.
    NotSubjectInTunnel(NotSubject),
    Malformed(DropReason),
    /// A tunnel packet that drops whatever is inside.
    Refused(DropReason),
}

/// With fewer packets than this that seem to begin a flow, judging them as a batch costs more than it saves.
const MIN_BATCH: usize = 4;

/// Results of the passes over the burst, made before the packet is processed.
#[derive(Clone, Copy, Debug)]
struct Lookahead<'h> {
    /// Where its flow entry probably is.
    hint: Hint,
    /// The policy decision, in case it begins a flow.
    judged: Option<&'h JudgedPacket>,
    /// Whether it may be held until its next hop is resolved.
    may_wait: bool,
}

impl Lookahead<'_> {
    const NONE: Self = Self {
        hint: Hint::NONE,
        judged: None,
        may_wait: true,
    };
    /// For a packet that has been held already.
    const AFTER_HOLD: Self = Self {
        may_wait: false,
        ..Self::NONE
    };
}

/// What parsing found out about a frame. `packet` and `hash` are valid only if the disposition is `Own`, `OwnChain`, `Asked`,
/// `HandOver` or `Refused`, `hint` and `batch_index` only if it is `Own`; otherwise they are left over from an earlier frame.
#[derive(Clone, Copy, Debug)]
struct PacketMeta {
    packet: Packet,
    hash: KeyHash,
    hint: Hint,
    /// Index among the packets of the burst that were judged as a batch.
    judged: u8,
    disposition: Disposition,
}

/// `batch_index` of a packet that is not in the batch.
const NOT_IN_BATCH: u8 = u8::MAX;

impl PacketMeta {
    const BLANK: Self = Self {
        packet: Packet {
            src: Addr::v6([0; 16]),
            dst: Addr::v6([0; 16]),
            vlan: 0,
            l3: 0,
            l4: 0,
            end: 0,
            protocol: wire::protocol::UNKNOWN,
            ttl: 0,
            dont_fragment: false,
            transport: Transport::None,
            fragment: None,
            tunnel: None,
        },
        hash: KeyHash { pair: 0, directed: 0 },
        hint: Hint::NONE,
        judged: NOT_IN_BATCH,
        disposition: Disposition::NoPort,
    };
}

/// Reads the headers of a packet of several buffers, which lie in the first.
#[cold]
fn parse_chain(frame: &Frame, port: &Port) -> Result<Packet, Disposition> {
    /// What network cards and switches put behind a packet, at most. More would pass the next port's MTU unseen, which is
    /// compared with the packet.
    const MAX_TRAILER: usize = 32;
    if port.kind == PortKind::Ask || !fits_mtu(frame, port) {
        return Err(Disposition::Unusable(DropReason::ChainTooLong));
    }
    match wire::parse_beginning(frame.bytes(), frame.len()) {
        Parsed::Subject(packet) if frame.len() > usize::from(packet.end) + MAX_TRAILER => {
            Err(Disposition::Malformed(DropReason::Malformed))
        }
        Parsed::Subject(packet) => Ok(packet),
        Parsed::NotSubject(kind) => Err(Disposition::NotSubject(kind)),
        Parsed::Malformed(reason) => Err(Disposition::Malformed(reason)),
    }
}

/// Whether a frame fits the MTU of a port, with its Ethernet header and two VLAN tags.
fn fits_mtu(frame: &Frame, port: &Port) -> bool {
    frame.len() <= usize::from(port.mtu) + 14 + 2 * 4
}

impl<'a, Io: PacketIo> WorkerTurn<'a, Io> {
    /// Processes a burst from one source in passes (headers, then index, then entries), so the cache misses of all
    /// its packets overlap.
    fn process_burst(&mut self, burst: &mut Burst, metas: &mut [PacketMeta; BURST]) {
        if burst.is_empty() {
            return;
        }
        self.stats.counters.bursts.add(1);
        self.stats.counters.received.add(burst.len() as u64);
        self.report.frames += burst.len();
        for frame in burst.iter() {
            prefetch(frame.bytes());
        }
        self.count_received(burst);
        for (frame, meta) in burst.iter().zip(metas.iter_mut()) {
            meta.disposition = self.parse_and_steer(frame, meta);
        }
        let mut unknown = 0;
        for meta in metas.iter_mut().take(burst.len()) {
            if matches!(meta.disposition, Disposition::Own) {
                meta.hint = self.table.prefetch_entry(meta.hash);
                meta.judged = NOT_IN_BATCH;
                unknown += usize::from(meta.hint == Hint::NONE);
            }
        }
        let judged = if unknown >= MIN_BATCH {
            self.judge_batch(burst, metas)
        } else {
            ArrayVec::new()
        };
        for (frame, meta) in burst.drain(..).zip(metas.iter()) {
            if matches!(meta.disposition, Disposition::Own) {
                let lookahead = Lookahead {
                    hint: meta.hint,
                    judged: judged.get(usize::from(meta.judged)),
                    may_wait: true,
                };
                self.process_packet(frame, &meta.packet, meta.hash, lookahead);
            } else {
                self.dispatch(frame, meta);
            }
        }
        if let Some((queue, ticket)) = self.asked.take() {
            self.take_asks(queue, ticket);
        }
    }

    /// Counts received frames per port; the frames of a burst nearly always share one.
    fn count_received(&self, burst: &Burst) {
        for run in burst.chunk_by(|one, next| one.port() == next.port()) {
            if let Some(counters) = self.stats.ports.get(usize::from(run[0].port().0)) {
                counters.rx_frames.add(run.len() as u64);
                counters
                    .rx_bytes
                    .add(run.iter().map(|frame| frame.len() as u64).sum());
            }
        }
    }

    /// Handles a frame that this worker does not judge.
    #[cold]
    fn dispatch(&mut self, mut frame: Frame, meta: &PacketMeta) {
        let Some(port) = self.port(frame.port()) else {
            self.drop_frame(frame, DropReason::PortUnavailable);
            return;
        };
        let PacketMeta { packet, hash, .. } = *meta;
        match meta.disposition {
            Disposition::Own => self.process_packet(frame, &packet, hash, Lookahead::NONE),
            Disposition::OwnChain => self.process_chain(frame, &packet, hash),
            Disposition::Asked => self.process_ask(frame, &packet, hash),
            Disposition::HandOver(owner) => {
                self.hand_over(usize::from(owner), Handover { frame, packet, hash });
            }
            Disposition::NoPort => self.drop_frame(frame, DropReason::PortUnavailable),
            Disposition::Unusable(reason) => self.drop_frame(frame, reason),
            Disposition::NotSubject(kind) => self.handle_not_subject(frame, port, kind),
            Disposition::NotSubjectInTunnel(kind) => {
                self.handle_not_subject_in_tunnel(frame, &packet, port, hash, kind)
            }
            Disposition::Malformed(reason) => self.handle_malformed(frame, port, reason),
            Disposition::Refused(reason) => {
                if frame.is_chain() {
                    self.complete_chain(&mut frame, &packet, port);
                }
                self.refuse_tunnel(frame, &packet, port, hash, reason);
            }
        }
    }

    /// Takes over frames of this worker's flows that other workers received.
    fn take_over(&mut self) {
        // Asking is two loads; finding nothing to pop costs a memory fence.
        if self.shared.handover[self.index].is_empty() {
            return;
        }
        for _ in 0..BURST {
            let Some(Handover { frame, packet, hash }) = self.shared.handover[self.index].pop() else {
                break;
            };
            self.report.frames += 1;
            self.stats.counters.taken_over.add(1);
            match self.port(frame.port()) {
                Some(port) if port.kind == PortKind::Ask => self.process_ask(frame, &packet, hash),
                _ if frame.is_chain() => self.process_chain(frame, &packet, hash),
                _ => self.process_packet(frame, &packet, hash, Lookahead::NONE),
            }
        }
    }

    /// Parses a frame's headers into `meta`, finds the worker that owns its shard and prefetches its index buckets.
    #[inline]
    fn parse_and_steer(&mut self, frame: &Frame, meta: &mut PacketMeta) -> Disposition {
        let Some(port) = self.port(frame.port()) else {
            return Disposition::NoPort;
        };
        if frame.is_common()
            && let Some(packet) = wire::parse_common(frame.bytes())
        {
            meta.hash = self.seed.key(&packet.key(port.zone));
            meta.packet = packet;
        } else if frame.is_chain() {
            return self.steer_chain(frame, port, meta);
        } else {
            if port.kind == PortKind::Ask {
                return self.steer_ask(frame, port, meta);
            }
            match wire::parse(frame.bytes()) {
                Parsed::Subject(packet) => meta.packet = packet,
                Parsed::NotSubject(kind) => return Disposition::NotSubject(kind),
                Parsed::Malformed(reason) => return Disposition::Malformed(reason),
            }
            meta.hash = self.seed.key(&meta.packet.owner_key(port.zone));
        }
        self.steer_parsed(frame, port, meta)
    }

    /// The same for a packet of several buffers.
    #[cold]
    fn steer_chain(&mut self, frame: &Frame, port: &Port, meta: &mut PacketMeta) -> Disposition {
        meta.packet = match parse_chain(frame, port) {
            Ok(packet) => packet,
            Err(disposition) => return disposition,
        };
        meta.hash = self.seed.key(&meta.packet.owner_key(port.zone));
        match self.steer_parsed(frame, port, meta) {
            Disposition::Own => Disposition::OwnChain,
            other => other,
        }
    }

    /// Looks into tunnels and finds the worker that owns the shard of a packet whose headers are in `meta`.
    #[inline(always)]
    fn steer_parsed(&mut self, frame: &Frame, port: &Port, meta: &mut PacketMeta) -> Disposition {
        if !matches!(port.kind, PortKind::Wire { .. }) {
            if port.kind == PortKind::Ask {
                return self.steer_ask(frame, port, meta); // it only looked like a packet without a header
            }
            if !route::is_for_router(frame.bytes(), port) {
                return Disposition::NotSubject(NotSubject::NotOurs);
            }
        }
        if self.shared.tunnel_filter.may_be(&meta.packet)
            && let Some(other) = self.look_into_tunnel(frame.bytes(), port, meta)
        {
            return other;
        }
        let owner = self.shard_map.owner(meta.hash.shard());
        if usize::from(owner) != self.index {
            return Disposition::HandOver(owner);
        }
        self.table.prefetch_buckets(meta.hash);
        Disposition::Own
    }

    /// A packet of several buffers and of this worker's shards.
    #[cold]
    fn process_chain(&mut self, mut frame: Frame, packet: &Packet, hash: KeyHash) {
        if let Some(port) = self.port(frame.port()) {
            self.complete_chain(&mut frame, packet, port);
        }
        self.process_packet(frame, packet, hash, Lookahead::NONE);
    }

    /// A packet of this worker's shards: look up, judge, route, commit, transmit.
    #[inline]
    fn process_packet(&mut self, frame: Frame, packet: &Packet, hash: KeyHash, lookahead: Lookahead<'_>) {
        let Some(port) = self.port(frame.port()) else {
            self.discard(frame, DropReason::PortUnavailable);
            return;
        };
        let lookup = self.look_up(port, packet, hash, lookahead.hint);
        let verdict = self.judge(port, frame.bytes(), packet, hash, lookup, lookahead.judged);
        let update = match &verdict {
            Ok(update) => update,
            Err(denial) => {
                if !self.record_denial(&frame, packet, port, denial) {
                    self.answer_denial(&frame, packet, port, denial);
                    self.discard(frame, denial.reason);
                    return;
                }
                &denial.in_audit
            }
        };
        if packet.tunnel.is_some() {
            self.forward_carrier(frame, packet, port, hash, update, lookahead.may_wait);
        } else {
            self.forward(frame, [packet, packet], port, hash, update, lookahead.may_wait);
        }
    }

    /// Forwards an allowed packet in a tunnel. Out of line, so that a bare packet does not pay for what may be around it.
    #[inline(never)]
    fn forward_carrier(
        &mut self,
        frame: Frame,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
        update: &FlowUpdate,
        may_wait: bool,
    ) {
        let carrier = tunnel::carrier_of(&frame, packet, port);
        let routed = carrier.as_ref().unwrap_or(packet);
        self.forward(frame, [packet, routed], port, hash, update, may_wait);
    }

    /// Forwards an allowed packet: route, commit, transmit. `routed` is the outermost packet around it, or itself.
    #[inline(always)]
    fn forward(
        &mut self,
        frame: Frame,
        [packet, routed]: [&Packet; 2],
        port: &Port,
        hash: KeyHash,
        update: &FlowUpdate,
        may_wait: bool,
    ) {
        let path = match self.route(routed, port, hash) {
            Ok(OutputPath::Wait(to)) if may_wait => {
                self.hold(frame, packet, port, to);
                return;
            }
            Ok(path) => path,
            Err(why) => {
                self.reject(frame, routed, port, why);
                return;
            }
        };
        if let Err(full) = self.commit(update, port, path.port(), frame.bytes(), packet, hash) {
            self.drop_packet(frame, packet, port, full);
            return;
        }
        self.transmit(frame, packet, routed, port, path);
    }

    /// Records a denial; returns whether the packet is forwarded nevertheless (audit mode).
    #[cold]
    fn record_denial(&mut self, frame: &Frame, packet: &Packet, port: &Port, denial: &Denial) -> bool {
        let audit = self.shared.config.mode == Mode::Audit;
        if audit {
            self.stats.counters.audited.count(denial.reason);
        }
        self.sample(DropSample {
            id: UNNAMED,
            at: self.now,
            reason: denial.reason,
            audit,
            port: port.id,
            length: frame.len() as u32,
            key: Some(packet.key(port.zone)),
            l4: packet.policy_l4(),
            generation: self.generation(),
            ingress: denial.judgement.map(|judgement| judgement.ingress),
            egress: denial.judgement.map(|judgement| judgement.egress),
            tunnel: packet.tunnel.map(|tunnel| tunnel.kind),
        });
        audit
    }

    /// A frame that is not subject to policy crosses a wire or is dropped.
    #[cold]
    fn handle_not_subject(&mut self, mut frame: Frame, port: &Port, kind: NotSubject) {
        let is_wire = matches!(port.kind, PortKind::Wire { .. });
        if is_wire && port.checks_source_mac && matches!(kind, NotSubject::Arp | NotSubject::Ndp) {
            let audit = self.shared.config.mode == Mode::Audit;
            if !self.observe_station(port, frame.bytes()) {
                if !audit {
                    return self.drop_frame(frame, DropReason::SpoofedSource);
                }
                self.stats.counters.audited.count(DropReason::SpoofedSource);
            }
            // A reply to one of our own probes.
            if frame.bytes().starts_with(&port.mac) {
                return self.drop_frame(frame, DropReason::NotSubject);
            }
        }
        match port.kind {
            PortKind::Wire { peer } if port.not_subject.crosses(kind) => {
                if !self.fits_port(&frame, peer) {
                    return self.drop_frame(frame, DropReason::TooBig);
                }
                self.complete_all_carriers(&mut frame, port); // it may be in a tunnel
                self.stats.counters.not_subject.add(1);
                self.send(peer, frame);
            }
            PortKind::Wire { .. } => self.drop_frame(frame, DropReason::NotSubject),
            // No router forwards it (RFC 4291 2.5.6).
            _ if kind == NotSubject::LinkLocal => self.drop_frame(frame, DropReason::MartianAddress),
            _ => self.drop_frame(frame, DropReason::NotSubject),
        }
    }

    /// A malformed frame is dropped, except that it crosses a wire in audit mode.
    #[cold]
    fn handle_malformed(&mut self, frame: Frame, port: &Port, reason: DropReason) {
        match port.kind {
            PortKind::Wire { peer }
                if self.shared.config.mode == Mode::Audit && self.fits_port(&frame, peer) =>
            {
                self.stats.counters.audited.count(reason);
                self.send(peer, frame);
            }
            _ => self.drop_frame(frame, reason),
        }
    }

    /// Whether a frame that is no judged packet is no longer than a port carries. One of a single buffer is not measured.
    fn fits_port(&self, frame: &Frame, port: PortId) -> bool {
        !frame.is_chain() || self.port(port).is_some_and(|port| fits_mtu(frame, port))
    }

    /// Drops a frame that has no flow key.
    fn drop_frame(&mut self, frame: Frame, reason: DropReason) {
        self.sample(DropSample {
            id: UNNAMED,
            at: self.now,
            reason,
            audit: false,
            port: frame.port(),
            length: frame.len() as u32,
            key: None,
            l4: L4::NoPort {
                protocol: wire::protocol::UNKNOWN,
            },
            generation: self.generation(),
            ingress: None,
            egress: None,
            tunnel: None,
        });
        self.discard(frame, reason);
    }

    /// Drops a packet that policy allows but that cannot be forwarded.
    #[cold]
    fn drop_packet(&mut self, frame: Frame, packet: &Packet, port: &Port, reason: DropReason) {
        self.sample(DropSample {
            id: UNNAMED,
            at: self.now,
            reason,
            audit: false,
            port: port.id,
            length: frame.len() as u32,
            key: Some(packet.key(port.zone)),
            l4: packet.policy_l4(),
            generation: self.generation(),
            ingress: None,
            egress: None,
            tunnel: packet.tunnel.map(|tunnel| tunnel.kind),
        });
        self.discard(frame, reason);
    }

    fn hand_over(&mut self, owner: usize, handover: Handover) {
        match self.shared.handover[owner].push(handover) {
            Ok(()) => {
                self.report.handed_to |= 1 << owner;
                self.stats.counters.handed_over.add(1);
            }
            Err(handover) => self.drop_frame(handover.frame, DropReason::HandoverFull),
        }
    }

    /// Queues a frame for a port.
    #[inline]
    fn send(&mut self, to: PortId, frame: Frame) -> bool {
        let (from, length) = (frame.port(), frame.len() as u64);
        let sent = self.io.send(to, frame);
        if sent {
            self.stats.counters.forwarded.add(1);
            if let Some(counters) = self.stats.ports.get(usize::from(to.0)) {
                counters.tx_frames.add(1);
                counters.tx_bytes.add(length);
            }
        } else {
            self.count_drop(from, DropReason::TxFull);
        }
        sent
    }

    /// Counts a drop and releases the frame.
    fn discard(&mut self, frame: Frame, reason: DropReason) {
        self.count_drop(frame.port(), reason);
        self.io.release(frame);
    }

    fn count_drop(&self, port: PortId, reason: DropReason) {
        self.stats.counters.drops.count(reason);
        if let Some(counters) = self.stats.ports.get(usize::from(port.0)) {
            counters.drops.count(reason);
        }
    }

    /// Publishes a drop sample under a new id.
    fn sample(&mut self, mut sample: DropSample) {
        if self.samples == MAX_SAMPLES_PER_TURN {
            self.stats.counters.samples_skipped.add(1);
            return;
        }
        sample.id = FlowId(self.seed.drop_id(sample.key.as_ref(), sample.at, self.samples));
        self.samples += 1;
        self.stats.samples.force_push(sample);
    }

    fn port(&self, id: PortId) -> Option<&'a Port> {
        self.forwarding?.port(id)
    }

    fn generation(&self) -> Generation {
        self.snapshot.map_or(Generation(0), Snapshot::generation)
    }

    #[inline]
    fn shard_mut(&mut self, hash: KeyHash) -> &mut Shard {
        &mut self.shards[self.shard_map.local_index(hash.shard())]
    }

    fn shard(&self, hash: KeyHash) -> &Shard {
        &self.shards[self.shard_map.local_index(hash.shard())]
    }

    /// Work between packets: held packets, timeouts, gauges, flow dumps.
    fn housekeeping(&mut self, state: &mut Housekeeping, forwarding: u64) {
        let now = self.now;
        if self.hold_queue.len() > 0
            && (state.last_retry.0 != forwarding || now.since(state.last_retry.1) >= Nanos::from_millis(10))
        {
            state.last_retry = (forwarding, now);
            self.release_held();
        }
        self.report.has_held = self.hold_queue.len() > 0;
        self.report.has_requests = self.shared.has_requests.load(Ordering::Relaxed);
        self.sweep(state);
        self.table.refresh_half_open(MAX_HALF_OPEN_PER_TURN, now);
        let is_empty_turn = self.report.frames == 0;
        let is_due = now.since(state.last_gauges) >= GAUGE_INTERVAL;
        // A worker that has just become idle shows where it stands; later empty turns change little.
        if is_due || is_empty_turn && state.are_gauges_old {
            state.last_gauges = now;
            self.update_gauges();
        }
        state.are_gauges_old = !is_empty_turn;
        if is_due || is_empty_turn {
            self.send_requested_frames();
        }
        let dump_requests = &self.shared.dump_requests[self.index];
        if !dump_requests.is_empty()
            && let Some(dump) = dump_requests.pop()
        {
            self.answer_dump(dump);
        }
    }

    /// Sends frames that the control side requested, such as neighbour probes.
    fn send_requested_frames(&mut self) {
        if self.shared.frames_to_send.is_empty() {
            return; // asked first, as in `take_over`
        }
        while let Some((port, bytes)) = self.shared.frames_to_send.pop() {
            let Some(mut frame) = self.io.allocate() else {
                continue; // the requester tries again
            };
            if !frame.set_len(bytes.len()) {
                self.io.release(frame);
                continue;
            }
            frame.bytes_mut().copy_from_slice(&bytes);
            self.stats.counters.generated.add(1);
            frame.set_port(port);
            self.send(port, frame);
        }
    }

    fn sweep(&mut self, state: &mut Housekeeping) {
        let share = SWEEP_PERIOD.0 / (self.table.capacity() as u64).max(1);
        let due = (self.now.since(state.last_sweep).0 / share.max(1)).min(MAX_SWEPT_PER_TURN);
        // In batches, so most turns touch no entry.
        if due < MAX_SWEPT_PER_TURN / 8 {
            return;
        }
        state.last_sweep = self.now;
        self.table.sweep(due as usize, self.now);
    }

    fn update_gauges(&mut self) {
        let flows = &self.stats.counters.flows;
        let activity = std::mem::take(&mut self.table.activity);
        flows.created.add(activity.created);
        flows.expired.add(activity.expired);
        flows.evicted.add(activity.evicted);
        flows.inherited.add(activity.inherited);
        for (reason, packets) in DropReason::ALL.iter().zip(activity.audited) {
            if packets != 0 {
                self.stats.counters.audited.add(*reason, packets);
            }
        }
        let [used, capacity, half_open, half_open_limit] = self.table.occupancy();
        flows.used.set(used);
        flows.capacity.set(capacity);
        flows.half_open.set(half_open);
        flows.half_open_limit.set(half_open_limit);
        self.stats.counters.held.set(self.hold_queue.len() as u64);
    }

    fn answer_dump(&mut self, mut dump: FlowDump) {
        let mut looks = MAX_SCANNED_PER_TURN;
        match self
            .table
            .dump(dump.cursor, &mut looks, &mut dump.records, self.now)
        {
            Some(next) => dump.cursor = next,
            None => dump.done = true,
        }
        // The reply queue is longer than the request queue; a requester that never reads loses its own replies.
        let _ = self.shared.dump_replies[self.index].force_push(dump);
    }
}
