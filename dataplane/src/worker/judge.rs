//! Whether a packet may pass: fragments, flow, spoofing, policy, flow update.

use arrayvec::ArrayVec;

use crate::{
    classify::{
        BATCH, Effect, FirstPacket, Generation, Identity, IdentityKind, Judged, Judgement, L4, NodeExemption,
        Snapshot,
    },
    flow::{
        entry::Stamp,
        fragments::{Admission, FirstVerdict},
        hash::KeyHash,
        state::{self, Action, Direction, Segment, State},
        table::{Hint, NoPlace},
    },
    io::{BURST, Burst, PacketIo},
    port::{Port, PortKind, Side},
    verdict::DropReason,
    wire::{FlowKey, Fragment, Packet, Quoted, Transport, protocol},
};

use super::{Ahead, Course, Head, TurnOf};

/// Why a packet does not pass, and the judgement behind it where there was one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denial {
    pub(super) reason: DropReason,
    pub(super) judgement: Option<Judgement>,
}

impl From<DropReason> for Denial {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            judgement: None,
        }
    }
}

impl From<Judgement> for Denial {
    /// Of a judgement that denies. The source's side is named first: it is asked first.
    fn from(judgement: Judgement) -> Self {
        let (direction, policy) = if judgement.egress.allow {
            (judgement.ingress, DropReason::PolicyIngress)
        } else {
            (judgement.egress, DropReason::PolicyEgress)
        };
        let reason = match direction.effect {
            Effect::Unknown => DropReason::UnknownEndpoint,
            Effect::Invalid => DropReason::SnapshotInvalid,
            _ => policy,
        };
        Self {
            reason,
            judgement: Some(judgement),
        }
    }
}

/// Under what a packet passes: what its later fragments are measured by.
struct Passed {
    generation: Generation,
    epochs: [u64; 2],
}

/// It passed without being asked about.
const UNASKED: Passed = Passed {
    generation: Generation(0),
    epochs: [0; 2],
};

impl<Io: PacketIo> TurnOf<'_, Io> {
    /// Decides about a packet of this worker's shards and brings its flow up to date.
    #[inline]
    pub(super) fn judge(
        &mut self,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        ahead: Ahead<'_>,
    ) -> Result<(), Denial> {
        match packet.fragment {
            None => self.judge_whole(port, packet, hash, ahead).map(|_| ()),
            Some(fragment) => self.judge_fragment(port, packet, hash, &fragment),
        }
    }

    /// Asks policy about the packets of a burst that seem to begin a flow, all at once. What it says depends on the
    /// snapshot and the packet alone, so it holds for those too whose flow is there after all.
    #[cold]
    pub(super) fn foresee(&self, burst: &Burst, heads: &mut [Head; BURST]) -> ArrayVec<Judged, BATCH> {
        let Some(snapshot) = self.snapshot else {
            return ArrayVec::new();
        };
        let mut packets: ArrayVec<FirstPacket, BATCH> = ArrayVec::new();
        let mut ports: ArrayVec<&Port, BATCH> = ArrayVec::new();
        for (frame, head) in burst.iter().zip(heads).take(BATCH) {
            let packet = &head.packet;
            let begins = matches!(head.course, Course::Own)
                && head.hint == Hint::NONE
                && packet.fragment.is_none()
                && !matches!(packet.transport, Transport::IcmpError { .. });
            if begins && let Some(port) = self.port(frame.port()) {
                head.judged = packets.len() as u8;
                packets.push(FirstPacket {
                    src: packet.src,
                    dst: packet.dst,
                    l4: packet.l4_seen(),
                });
                ports.push(port);
            }
        }
        snapshot.judge_many(&packets, |number, src, dst| {
            let port = ports.get(number);
            port.map_or(NodeExemption::Untrusted, |port| exemption(port, src, dst))
        })
    }

    /// A later fragment is as its first (SEMANTICS 62), as long as the endpoints are what they were.
    #[cold]
    fn judge_fragment(
        &mut self,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        fragment: &Fragment,
    ) -> Result<(), Denial> {
        let key = FlowKey {
            src_port: 0,
            dst_port: 0,
            // RFC 8200 4.5: what puts IPv6 together does not look at the protocol, which may differ by fragment.
            protocol: if packet.src.is_v4() { packet.protocol } else { 0 },
            ..packet.key(port.zone)
        };
        let datagram = self.seed.datagram(&key, fragment.id);
        let now = self.now;
        match self.shard(hash).fragments.admit(&key, datagram, fragment, now) {
            Admission::Drop(reason) => Err(reason.into()),
            Admission::As(_, FirstVerdict::Dropped(reason)) => Err(reason.into()),
            Admission::As(place, FirstVerdict::Passed { generation, epochs }) => {
                if generation == Generation(0) {
                    return Ok(());
                }
                let snapshot = self.snapshot.ok_or(DropReason::NoSnapshot)?;
                let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
                self.check_source(port, packet, &src)?;
                if generation != snapshot.generation() && epochs != epochs_of(&src, &dst) {
                    let gone = FirstVerdict::Dropped(DropReason::FragmentUnknown);
                    self.shard(hash).fragments.decided(place, gone);
                    return Err(DropReason::FragmentUnknown.into());
                }
                Ok(())
            }
            Admission::Judge(place) => {
                let judged = self.judge_whole(port, packet, hash, Ahead::NOTHING);
                let verdict = match &judged {
                    Ok(passed) => FirstVerdict::Passed {
                        generation: passed.generation,
                        epochs: passed.epochs,
                    },
                    Err(denial) => FirstVerdict::Dropped(denial.reason),
                };
                self.shard(hash).fragments.decided(place, verdict);
                judged.map(|_| ())
            }
        }
    }

    /// Anything but a later fragment.
    #[inline]
    fn judge_whole(
        &mut self,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        ahead: Ahead<'_>,
    ) -> Result<Passed, Denial> {
        let Some(snapshot) = self.snapshot else {
            return self.judge_by_failsafe(packet, DropReason::NoSnapshot);
        };
        if let Transport::IcmpError { quoted } = packet.transport {
            return self.judge_related(snapshot, port, packet, quoted, hash);
        }
        // What layer 4 is behind a chain that was not walked to its end is not known: it is no answer to anything.
        if packet.transport == Transport::None {
            return self.judge_new(snapshot, port, packet, hash, None, None);
        }
        // The key is made twice, so that for the hint it need not exist in memory.
        let shard = self.shard(hash);
        let found = shard
            .find_hinted(&packet.key(port.zone), ahead.hint)
            .or_else(|| shard.find(hash, &packet.key(port.zone)));
        match found.filter(|(index, _)| self.live(snapshot, hash, *index)) {
            Some((index, direction)) => self.judge_known(snapshot, port, packet, hash, index, direction),
            None => {
                self.stats.counters.flow_misses.add(1);
                self.judge_new(snapshot, port, packet, hash, None, ahead.judged)
            }
        }
    }

    fn judge_by_failsafe(&self, packet: &Packet, otherwise: DropReason) -> Result<Passed, Denial> {
        if self.shared.config.failsafe.admits(packet) {
            self.stats.counters.failsafe.add(1);
            return Ok(UNASKED);
        }
        Err(otherwise.into())
    }

    /// Whether an entry has not timed out and still holds under the snapshot in force (SEMANTICS 58); else it goes.
    #[inline]
    fn live(&mut self, snapshot: &Snapshot, hash: KeyHash, index: usize) -> bool {
        let now = self.now;
        let shard = self.shard(hash);
        if shard.is_expired(index, now) {
            shard.remove(index);
            shard.deeds.expired += 1;
            return false;
        }
        if shard.entry(index).generation() != snapshot.generation()
            && !self.holds_still(snapshot, hash, index)
        {
            let shard = self.shard(hash);
            shard.remove(index);
            shard.has_revoked = true;
            self.stats.counters.flows.revoked.add(1);
            return false;
        }
        true
    }

    /// Whether a flow is allowed under a newer snapshot too: for the same reasons if its endpoints are as they were,
    /// else judged again in its original direction.
    #[cold]
    fn holds_still(&mut self, snapshot: &Snapshot, hash: KeyHash, index: usize) -> bool {
        let entry = self.shard(hash).entry(index);
        let (key, epochs, trusted) = (entry.key(), entry.epochs(), entry.is_trusted());
        let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
        if epochs == epochs_of(&src, &dst) {
            self.shard(hash).entry_mut(index).restamp(snapshot.generation());
            self.stats.counters.restamped.add(1);
            return true;
        }
        if !is_known(&src) || !is_known(&dst) || dst.kind == IdentityKind::Service {
            return false;
        }
        let exemption = if trusted {
            NodeExemption::Trusted
        } else {
            NodeExemption::Untrusted
        };
        let judgement = snapshot.judge(&src, &dst, key.src, key.dst, l4(&key), exemption);
        if judgement.allow() {
            let stamp = stamp(snapshot, &src, &dst, &judgement);
            self.shard(hash).entry_mut(index).rejudged(&stamp);
            self.stats.counters.rejudged.add(1);
        }
        judgement.allow()
    }

    /// A packet of a flow that has an entry.
    #[inline]
    fn judge_known(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        index: usize,
        direction: Direction,
    ) -> Result<Passed, Denial> {
        let now = self.now;
        if self.shard(hash).entry(index).port(direction) != Some(port.id) {
            self.arrives_elsewhere(snapshot, port, packet, hash, index, direction)?;
        }
        let entry = self.shard(hash).entry(index);
        let Some(before) = entry.state() else {
            return Err(DropReason::SnapshotInvalid.into()); // `find` gives entries in use only
        };
        let (mut after, action) = state::next(before, direction, Segment::of(packet));
        match action {
            Action::Invalid => return Err(DropReason::TcpInvalid.into()),
            Action::Renew => return self.judge_new(snapshot, port, packet, hash, Some(index), None),
            Action::Pass | Action::PassUnrefreshed => {}
        }
        if !entry.covers(direction) {
            after = self.judge_unoriented(snapshot, port, packet, hash, index, after)?;
        }
        let shard = self.shard(hash);
        shard.set_state(index, after, now);
        let entry = shard.entry_mut(index);
        if action == Action::Pass {
            entry.touch(now);
        }
        entry.count(direction, packet.total_length());
        let mut epochs = entry.epochs();
        if direction == Direction::Reply {
            epochs.reverse(); // of this packet's source and destination
        }
        self.stats.counters.flow_hits.add(1);
        Ok(Passed {
            generation: snapshot.generation(),
            epochs,
        })
    }

    /// A packet of a flow that comes in by another port than those before it: its source must belong there. Where a
    /// node's address was believed because of the port, it is not because of the flow (SEMANTICS 47).
    #[cold]
    fn arrives_elsewhere(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        index: usize,
        direction: Direction,
    ) -> Result<(), Denial> {
        let src = snapshot.identify(packet.src);
        self.check_source(port, packet, &src)?;
        if direction == Direction::Original && self.shard(hash).entry(index).is_trusted() {
            let dst = snapshot.identify(packet.dst);
            let judgement = judge(snapshot, port, packet, &src, &dst);
            if !judgement.allow() {
                return Err(judgement.into());
            }
        }
        self.shard(hash).entry_mut(index).set_port(direction, port.id);
        Ok(())
    }

    /// The other direction of a flow that was begun in the middle: judged on its own; while connections are picked up,
    /// it passes as an answer too, and it is known from then on who began (SEMANTICS 60). Answers the state.
    #[cold]
    fn judge_unoriented(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        index: usize,
        after: State,
    ) -> Result<State, Denial> {
        let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
        let judgement = judge(snapshot, port, packet, &src, &dst);
        if judgement.allow() {
            self.shard(hash).entry_mut(index).cover_reply();
            return Ok(after);
        }
        if self.now > self.shared.pickup_until || self.shard(hash).has_revoked {
            return Err(judgement.into());
        }
        self.shard(hash).entry_mut(index).orient();
        self.stats.counters.flows.picked_up.add(1);
        Ok(State::TcpEstablished)
    }

    /// A packet without an entry, or one that begins a flow anew in the place of the entry given.
    #[inline(never)]
    fn judge_new(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        replaces: Option<usize>,
        judged: Option<&Judged>,
    ) -> Result<Passed, Denial> {
        if self.shared.config.failsafe.admits(packet) {
            self.stats.counters.failsafe.add(1);
            return Ok(UNASKED);
        }
        let (src, dst) = match judged {
            Some(judged) => (judged.src, judged.dst),
            None => (snapshot.identify(packet.src), snapshot.identify(packet.dst)),
        };
        self.check_source(port, packet, &src)?;
        if dst.kind == IdentityKind::Service {
            return Err(DropReason::ServiceUnsupported.into());
        }
        if Segment::of(packet) == Segment::Bad {
            return Err(DropReason::TcpInvalid.into());
        }
        let passed = Passed {
            generation: snapshot.generation(),
            epochs: epochs_of(&src, &dst),
        };
        let judgement = judged.map_or_else(
            || judge(snapshot, port, packet, &src, &dst),
            |judged| judged.judgement,
        );
        let begins = state::begin(packet).filter(|_| is_known(&src) && is_known(&dst));
        if !judgement.allow() {
            if begins == Some(State::TcpMidstream) && self.pick_up(snapshot, port, packet, hash, &src, &dst) {
                return Ok(passed);
            }
            return Err(judgement.into());
        }
        let Some(state) = begins else {
            self.stats.counters.stateless.add(1);
            return Ok(passed);
        };
        let key = packet.key(port.zone);
        let trusted = exemption(port, &src, &dst) == NodeExemption::Trusted;
        let stamp = stamp(snapshot, &src, &dst, &judgement);
        let now = self.now;
        let shard = self.shard(hash);
        if let Some(old) = replaces {
            shard.remove(old);
        }
        match shard.insert(&key, state, &stamp, trusted, now) {
            Ok(index) => {
                let entry = shard.entry_mut(index);
                entry.set_port(Direction::Original, port.id);
                entry.count(Direction::Original, packet.total_length());
                Ok(passed)
            }
            // It can do without an entry where its answers are allowed on their own.
            Err(full) => {
                let back = judge_reverse(snapshot, port, packet, &src, &dst);
                if state == State::TcpMidstream || back.allow() {
                    self.stats.counters.stateless.add(1);
                    return Ok(passed);
                }
                Err(match full {
                    NoPlace::Full => DropReason::FlowTableFull,
                    NoPlace::HalfOpen => DropReason::HalfOpenLimit,
                }
                .into())
            }
        }
    }

    /// In the time after a start without inherited flows: takes a segment from the middle of a connection for an
    /// answer, if the connection would be allowed the other way round (SEMANTICS 60).
    #[cold]
    fn pick_up(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        src: &Identity,
        dst: &Identity,
    ) -> bool {
        if self.now > self.shared.pickup_until || self.shard(hash).has_revoked {
            return false;
        }
        let back = judge_reverse(snapshot, port, packet, src, dst);
        if !back.allow() {
            return false;
        }
        let key = packet.key(port.zone).reversed();
        let trusted = exemption(port, dst, src) == NodeExemption::Trusted;
        let stamp = stamp(snapshot, dst, src, &back);
        let now = self.now;
        let shard = self.shard(hash);
        let Ok(index) = shard.insert(&key, State::TcpEstablished, &stamp, trusted, now) else {
            return false;
        };
        let entry = shard.entry_mut(index);
        entry.set_port(Direction::Reply, port.id);
        entry.count(Direction::Reply, packet.total_length());
        self.stats.counters.flows.picked_up.add(1);
        true
    }

    /// An ICMP error passes if it quotes a packet of a live flow and goes to who sent that (SEMANTICS 57).
    #[cold]
    fn judge_related(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        quoted: Option<Quoted>,
        hash: KeyHash,
    ) -> Result<Passed, Denial> {
        let unrelated = DropReason::IcmpUnrelated;
        if quoted.is_none_or(|quoted| quoted.src != packet.dst) {
            return Err(unrelated.into());
        }
        let key = packet.owner_key(port.zone);
        let found = self.shard(hash).find(hash, &key);
        let Some((index, direction)) = found.filter(|(index, _)| self.live(snapshot, hash, *index)) else {
            return self.judge_by_failsafe(packet, unrelated);
        };
        if !self.shard(hash).entry(index).covers(direction) {
            return Err(unrelated.into());
        }
        let src = snapshot.identify(packet.src);
        self.check_source(port, packet, &src)?;
        let now = self.now;
        if !self.shard(hash).icmp_passed.take(now) {
            return Err(DropReason::IcmpRateLimited.into());
        }
        self.stats.counters.icmp_related.add(1);
        Ok(Passed {
            generation: snapshot.generation(),
            epochs: epochs_of(&src, &snapshot.identify(packet.dst)),
        })
    }

    /// Whether a source address may come in by the port: by its side, and on a pod's port by the route back to it.
    #[inline]
    fn check_source(&self, port: &Port, packet: &Packet, src: &Identity) -> Result<(), Denial> {
        use IdentityKind::{External, Node, Pod, Service, Unknown};
        let fits = match port.side {
            Side::Any => true,
            Side::Pods => matches!(src.kind, Pod | Unknown),
            Side::Nodes => matches!(src.kind, Node),
            Side::Inside => matches!(src.kind, Pod | Unknown | Node),
            Side::Outside => matches!(src.kind, External | Service),
        };
        let strict = port.kind == PortKind::Pod;
        let back = !strict
            || self
                .forwarding
                .is_some_and(|forwarding| forwarding.reverse_path(packet.src, port.id));
        if fits && back {
            Ok(())
        } else {
            Err(DropReason::SpoofedSource.into())
        }
    }
}

/// What tells whether two ends are what they were. The kind counts too: an address without an endpoint may turn from
/// external into unknown, and nothing else about it changes.
fn epochs_of(src: &Identity, dst: &Identity) -> [u64; 2] {
    [src, dst].map(|end| end.epoch.wrapping_add((end.kind as u64) << 56))
}

/// Only these may have an entry (SEMANTICS 53).
fn is_known(identity: &Identity) -> bool {
    identity.kind != IdentityKind::Unknown
}

/// Whether a node's address can be believed (SEMANTICS 47): the packet goes to a node, or comes from where only
/// nodes are.
fn exemption(port: &Port, src: &Identity, dst: &Identity) -> NodeExemption {
    let from_node =
        src.kind == IdentityKind::Node && (port.kind == PortKind::Host || port.side == Side::Nodes);
    if from_node || dst.kind == IdentityKind::Node {
        NodeExemption::Trusted
    } else {
        NodeExemption::Untrusted
    }
}

fn judge(snapshot: &Snapshot, port: &Port, packet: &Packet, src: &Identity, dst: &Identity) -> Judgement {
    let node = exemption(port, src, dst);
    snapshot.judge(src, dst, packet.src, packet.dst, packet.l4_seen(), node)
}

/// The judgement of a flow of which the packet would be an answer.
fn judge_reverse(
    snapshot: &Snapshot,
    port: &Port,
    packet: &Packet,
    src: &Identity,
    dst: &Identity,
) -> Judgement {
    let key = packet.key(port.zone).reversed();
    snapshot.judge(dst, src, key.src, key.dst, l4(&key), exemption(port, dst, src))
}

/// What policies see of a key's layer 4.
fn l4(key: &FlowKey) -> L4 {
    match key.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => L4::Port {
            protocol: key.protocol,
            port: key.dst_port,
        },
        protocol => L4::NoPort { protocol },
    }
}

fn stamp(snapshot: &Snapshot, src: &Identity, dst: &Identity, judgement: &Judgement) -> Stamp {
    Stamp {
        generation: snapshot.generation(),
        epochs: epochs_of(src, dst),
        provenance: [judgement.ingress.provenance, judgement.egress.provenance],
    }
}
