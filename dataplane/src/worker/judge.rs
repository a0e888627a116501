//! Look up and verdict: which flow a packet belongs to, and whether it may pass. Nothing is remembered here; what a
//! packet changes is the answer, and is committed when it is known that the packet is forwarded.
#![allow(clippy::result_large_err)] // nothing is allocated for a packet, and what is large is not on the common way

use arrayvec::ArrayVec;

use crate::{
    addr::Addr,
    classify::{
        BATCH, Effect, FirstPacket, Identity, IdentityKind, JudgedPacket, Judgement, L4, NodeExemption,
        Snapshot, is_same_owner,
    },
    dataplane::{Mode, StationReport},
    flow::{
        entry::{AllowedBy, DecisionStamp, Entry},
        fragments::{Admission, DatagramVerdict},
        hash::KeyHash,
        sctp,
        state::{self, Action, FlowDirection, FlowEvent, State},
        table::Hint,
        tcp,
    },
    forward::Forwarding,
    io::{BURST, Burst, PacketIo},
    port::{Port, PortId, PortKind, Side},
    verdict::DropReason,
    wire::{self, FlowKey, Fragment, NeighbourClaim, Packet, Quoted, Transport, protocol},
};

use super::{Disposition, PacketMeta, WorkerTurn};

/// Longest ICMP errors (RFC 1812 4.3.2.3, RFC 4443 2.4 (c)).
const LONGEST_ERROR_V4: u16 = 576;
const LONGEST_ERROR_V6: u16 = 1280;

/// Why a packet does not pass, and the judgement behind it where there was one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denial {
    pub(super) reason: DropReason,
    pub(super) judgement: Option<Judgement>,
    /// What the packet changes where audit mode forwards it all the same.
    pub(super) in_audit: FlowUpdate,
}

impl From<DropReason> for Denial {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            judgement: None,
            in_audit: FlowUpdate::Unchanged,
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
            judgement: Some(judgement),
            ..reason.into()
        }
    }
}

/// What is known of a packet before it is judged.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lookup {
    /// Nothing: it may begin a flow.
    Miss,
    /// It is of a flow.
    Hit(FlowMatch),
    /// It is an ICMP error about a packet of a flow, whose direction this is.
    Quoted(FlowMatch),
    /// It is a later fragment of a datagram whose first passed.
    LaterFragment(DatagramVerdict),
    /// It is a fragment that has no first one, or contradicts others.
    BadFragment(DropReason),
}

/// The flow of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowMatch {
    pub(super) index: usize,
    pub(super) direction: FlowDirection,
    pub(super) revalidation: Revalidation,
}

/// What an entry needs so that it holds under the snapshot in force.
#[derive(Clone, Copy, Debug)]
pub(super) enum Revalidation {
    /// Nothing: it was found allowed under this very snapshot.
    Current,
    /// Its ends are what they were.
    Restamp,
    /// An end has changed; it was judged again.
    Rejudged(DecisionStamp),
}

/// What becomes of the flow state when a packet is forwarded.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlowUpdate {
    /// Nothing: the packet passes without an entry.
    Unchanged,
    /// The flow goes on as it was.
    Advance(FlowStep),
    /// The flow goes on, and something else about it changes, too.
    Update(FlowProgress),
    /// A flow begins.
    Create(NewFlow),
    /// An ICMP error about a flow passes.
    IcmpError {
        /// The flow.
        index: usize,
        /// Whose errors it counts among.
        account: u32,
    },
}

/// A packet of a flow, and the state after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowStep {
    pub(super) index: usize,
    pub(super) direction: FlowDirection,
    pub(super) state: State,
}

/// How a flow goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowProgress {
    pub(super) step: FlowStep,
    pub(super) revalidation: Revalidation,
    /// Whether its timeout begins anew.
    pub(super) refreshes: bool,
    /// Whether its ports are those by which this packet comes and goes from now on.
    pub(super) rebinds: bool,
    /// Where it is not known who began: what this packet shows.
    pub(super) orientation: Orientation,
    /// What its sequence numbers say about a TCP connection.
    pub(super) sequence: SequenceUpdate,
}

/// What the sequence numbers of a segment say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceUpdate {
    /// Where its end is now.
    Advance,
    /// Where its end begins: a SYN of a connection that is not open yet.
    Restart,
    /// Nothing: it is not believed.
    Ignore,
}

/// What a packet shows of a flow that was begun in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// Nothing new.
    Unchanged,
    /// The reply direction is allowed on its own.
    ReplyAllowed,
    /// The packet that the entry was made for began it.
    Oriented,
}

/// How a flow begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewFlow {
    /// Of the original direction.
    pub(super) key: FlowKey,
    /// Which direction the packet is of: the reply where a connection is picked up by an answer.
    pub(super) direction: FlowDirection,
    pub(super) state: State,
    pub(super) stamp: DecisionStamp,
    /// The accounts of the flow's source and destination.
    pub(super) accounts: [u32; 2],
    /// The entry in whose place it comes.
    pub(super) replaces: Option<usize>,
}

/// Where a packet came in, as far as its flow is concerned.
enum Arrival {
    /// From there it belongs to the flow, which is bound to this port from now on.
    Rebind(Revalidation),
    /// Not where the flow's packets of its direction come from.
    Elsewhere,
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Finds what is known of a packet: the flow that it belongs to, or speaks about, or the datagram that it is a part
    /// of. An entry that has timed out goes; one that no longer holds under the snapshot in force is cut (SEMANTICS 58).
    #[inline(always)]
    pub(super) fn look_up(&mut self, port: &Port, packet: &Packet, hash: KeyHash, hint: Hint) -> Lookup {
        if let Some(fragment) = packet.fragment {
            match self.look_up_datagram(port, packet, hash, &fragment) {
                Admission::Judge => {}
                Admission::Inherit(passed) => return Lookup::LaterFragment(passed),
                Admission::Drop(reason) => return Lookup::BadFragment(reason),
            }
        }
        let Some(snapshot) = self.snapshot else {
            return Lookup::Miss;
        };
        // What layer 4 is behind a chain that was not walked to its end is not known: it is no answer to anything.
        if matches!(packet.transport, Transport::IcmpError { .. } | Transport::None) {
            return self.look_up_quoted_flow(snapshot, port, packet, hash);
        }
        // The key is made twice, so that for the hint it need not exist in memory.
        let found = self
            .table
            .find_hinted(&packet.key(port.zone), hint)
            .or_else(|| self.table.find(hash, &packet.key(port.zone)));
        match found {
            Some((index, direction)) => self
                .revalidate(snapshot, hash, index, direction)
                .map_or(Lookup::Miss, Lookup::Hit),
            None => Lookup::Miss,
        }
    }

    /// An entry, if it still stands for anything.
    #[inline(always)]
    fn revalidate(
        &mut self,
        snapshot: &Snapshot,
        hash: KeyHash,
        index: usize,
        direction: FlowDirection,
    ) -> Option<FlowMatch> {
        if self.table.is_expired(index, self.now) {
            self.table.remove(index);
            self.table.activity.expired += 1;
            return None;
        }
        let revalidation = if self.table.entry(index).generation() == snapshot.generation() {
            Revalidation::Current
        } else {
            self.revalidate_epochs(snapshot, hash, index)?
        };
        Some(FlowMatch {
            index,
            direction,
            revalidation,
        })
    }

    #[cold]
    fn look_up_quoted_flow(
        &mut self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
    ) -> Lookup {
        if !matches!(packet.transport, Transport::IcmpError { quoted: Some(_) }) {
            return Lookup::Miss;
        }
        let found = self.table.find(hash, &packet.owner_key(port.zone));
        found
            .and_then(|(index, direction)| self.revalidate(snapshot, hash, index, direction))
            .map_or(Lookup::Miss, Lookup::Quoted)
    }

    #[cold]
    fn look_up_datagram(
        &mut self,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        fragment: &Fragment,
    ) -> Admission {
        let (key, datagram) = self.datagram(port, packet, fragment);
        let now = self.now;
        let fragments = &mut self.shard_mut(hash).fragments;
        fragments.admit(&key, datagram, fragment, port.id, now)
    }

    /// The key of a fragment's datagram, and its hash.
    pub(super) fn datagram(&self, port: &Port, packet: &Packet, fragment: &Fragment) -> (FlowKey, u64) {
        let key = FlowKey {
            src_port: 0,
            dst_port: 0,
            // RFC 8200 4.5: what puts IPv6 together does not look at the protocol, which may differ by fragment.
            protocol: if packet.src.is_v4() { packet.protocol } else { 0 },
            ..packet.key(port.zone)
        };
        let datagram = self.seed.datagram(&key, fragment.id);
        (key, datagram)
    }

    /// Whether a flow is allowed under a newer snapshot too: for the same reasons if its endpoints are as they were,
    /// else judged again in its original direction. One that is not stays as [`State::Revoked`]. None where a revoked one
    /// would be allowed again: then there is nothing left to remember.
    #[cold]
    fn revalidate_epochs(
        &mut self,
        snapshot: &Snapshot,
        hash: KeyHash,
        index: usize,
    ) -> Option<Revalidation> {
        let entry = self.table.entry(index);
        let revoked = entry.state() == Some(State::Revoked);
        let (key, allowed_by) = (entry.key(), entry.allowed_by());
        let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
        let epochs = epochs_of(&src, &dst);
        if !is_same_owner(epochs[0], entry.epochs()[0]) || !is_same_owner(epochs[1], entry.epochs()[1]) {
            // An address has gone to somebody else, who has not talked to the other end.
            self.table.remove(index);
            self.stats.counters.flows.revoked.add(1);
            return None;
        }
        // What else it passes by may have gone, with an address or with a predecessor's configuration; and the entry of a
        // predecessor may say anything.
        let stands = match allowed_by {
            AllowedBy::Failsafe => self.shared.config.failsafe.admits(&key),
            AllowedBy::ThisNode => self.involves_this_node(&key),
            AllowedBy::Policy | AllowedBy::TrustedNode | AllowedBy::Audit(_) => true,
        };
        if !revoked && stands && entry.epochs() == epochs {
            return Some(Revalidation::Restamp);
        }
        let exemption = match allowed_by {
            AllowedBy::TrustedNode => NodeExemption::Trusted,
            AllowedBy::ThisNode if stands => NodeExemption::ThisNode,
            _ => NodeExemption::Untrusted,
        };
        let decided = if allowed_by == AllowedBy::Failsafe && stands {
            Ok(None)
        } else if !may_have_entry(&src) || !may_have_entry(&dst) {
            Err(DropReason::UnknownEndpoint.into())
        } else {
            self.decide(snapshot, &key, &src, &dst, exemption).map(Some)
        };
        match decided {
            Ok(_) if revoked => {
                self.table.remove(index);
                None
            }
            Ok(judgement) => {
                let allowed_by = match exemption {
                    _ if judgement.is_none() => AllowedBy::Failsafe,
                    NodeExemption::Trusted => AllowedBy::TrustedNode,
                    NodeExemption::ThisNode => AllowedBy::ThisNode,
                    NodeExemption::Untrusted => AllowedBy::Policy,
                };
                Some(Revalidation::Rejudged(stamp(
                    snapshot, &src, &dst, judgement, allowed_by,
                )))
            }
            Err(denial) if self.shared.config.mode == Mode::Audit => {
                let allowed_by = AllowedBy::Audit(denial.reason);
                Some(Revalidation::Rejudged(stamp(
                    snapshot,
                    &src,
                    &dst,
                    denial.judgement,
                    allowed_by,
                )))
            }
            Err(_) => {
                if !revoked {
                    self.table.set_state(index, State::Revoked, self.now);
                    self.shard_mut(hash).has_revoked = true;
                    self.stats.counters.flows.revoked.add(1);
                }
                // It is asked again under the next snapshot.
                self.table.entry_mut(index).restamp(snapshot.generation());
                Some(Revalidation::Current)
            }
        }
    }

    /// Asks policy about the packets of a burst that seem to begin a flow, all at once. What it says depends on the
    /// snapshot and the packet alone, so it holds for those too whose flow is there after all.
    #[cold]
    pub(super) fn judge_batch(
        &self,
        burst: &Burst,
        metas: &mut [PacketMeta; BURST],
    ) -> ArrayVec<JudgedPacket, BATCH> {
        let Some(snapshot) = self.snapshot else {
            return ArrayVec::new();
        };
        let mut packets: ArrayVec<FirstPacket, BATCH> = ArrayVec::new();
        let mut asked: ArrayVec<(&Port, u8), BATCH> = ArrayVec::new();
        for (frame, meta) in burst.iter().zip(metas).take(BATCH) {
            let packet = &meta.packet;
            let begins = matches!(meta.disposition, Disposition::Own)
                && meta.hint == Hint::NONE
                && packet.fragment.is_none()
                && !matches!(packet.transport, Transport::IcmpError { .. });
            if begins && let Some(port) = self.port(frame.port()) {
                meta.judged = packets.len() as u8;
                packets.push(FirstPacket {
                    src: packet.src,
                    dst: packet.dst,
                    l4: packet.policy_l4(),
                });
                asked.push((port, packet.protocol));
            }
        }
        snapshot.judge_many(&packets, |number, src, dst| {
            match (asked.get(number), packets.get(number)) {
                (Some((port, protocol)), Some(packet)) => {
                    self.node_exemption(port, (packet.src, packet.dst), *protocol, src, dst)
                }
                _ => NodeExemption::Untrusted,
            }
        })
    }

    /// Whether a packet may pass, and what that changes.
    #[inline(always)]
    pub(super) fn judge(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
        lookup: Lookup,
        judged: Option<&JudgedPacket>,
    ) -> Result<FlowUpdate, Denial> {
        let Some(snapshot) = self.snapshot else {
            return self.judge_without_snapshot(port, packet, lookup);
        };
        match lookup {
            Lookup::Hit(known) => self.judge_flow(snapshot, port, frame, packet, hash, known),
            Lookup::Miss if matches!(packet.transport, Transport::IcmpError { .. }) => {
                Err(DropReason::IcmpUnrelated.into())
            }
            Lookup::Miss => {
                self.stats.counters.flow_misses.add(1);
                self.judge_new(snapshot, port, frame, packet, hash, None, judged)
            }
            Lookup::Quoted(known) => self.judge_icmp_error(snapshot, port, frame, packet, known),
            Lookup::LaterFragment(passed) => self.judge_later_fragment(snapshot, port, frame, packet, passed),
            Lookup::BadFragment(reason) => Err(reason.into()),
        }
    }

    /// A later fragment is as its first (SEMANTICS 62), as long as the endpoints are what they were.
    #[cold]
    fn judge_later_fragment(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        passed: DatagramVerdict,
    ) -> Result<FlowUpdate, Denial> {
        let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
        self.check_source(port, frame, packet, &src)?;
        if passed.generation != snapshot.generation() && passed.epochs != epochs_of(&src, &dst) {
            return Err(DropReason::FragmentUnknown.into());
        }
        Ok(FlowUpdate::Unchanged)
    }

    /// Before the first snapshot nobody can be identified and nothing be remembered: failsafe rules let their packets and
    /// the answers to them pass, from where they can come.
    #[cold]
    fn judge_without_snapshot(
        &self,
        port: &Port,
        packet: &Packet,
        lookup: Lookup,
    ) -> Result<FlowUpdate, Denial> {
        let admitted = match lookup {
            Lookup::BadFragment(reason) => return Err(reason.into()),
            Lookup::LaterFragment(_) => true,
            _ => self.shared.config.failsafe.admits_without_state(packet),
        };
        if !admitted {
            return Err(DropReason::NoSnapshot.into());
        }
        self.check_addresses(port, packet)?;
        Ok(FlowUpdate::Unchanged)
    }

    /// A packet of a flow that has an entry. Nearly all need nothing but a look at its port and its state.
    #[inline(always)]
    fn judge_flow(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
        known: FlowMatch,
    ) -> Result<FlowUpdate, Denial> {
        let FlowMatch { index, direction, .. } = known;
        let entry = self.table.entry(index);
        let meaning = FlowEvent::of(packet);
        if matches!(known.revalidation, Revalidation::Current)
            && entry.is_bound(direction, port.id)
            && (entry.takes_fast_path()
                || entry.takes_fast_path_from(direction, source_mac(frame), !port.checks_source_mac))
            && matches!(meaning, FlowEvent::Ack | FlowEvent::Data)
            && let Some(before) = entry.state()
            && let (state, Action::Pass) = state::next(before, direction, meaning)
        {
            return Ok(FlowUpdate::Advance(FlowStep {
                index,
                direction,
                state,
            }));
        }
        self.judge_flow_slow_path(snapshot, port, frame, packet, hash, known)
    }

    /// A packet that is not of an open flow, from where its packets come, under the snapshot that allowed it.
    #[inline(never)]
    fn judge_flow_slow_path(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
        known: FlowMatch,
    ) -> Result<FlowUpdate, Denial> {
        let FlowMatch {
            index,
            direction,
            mut revalidation,
        } = known;
        let entry = self.table.entry(index);
        let is_from_there = !port.checks_source_mac
            || !matches!(port.kind, PortKind::Wire { .. })
            || source_mac(frame).is_some_and(|station| entry.is_from_mac(direction, station));
        let bound = entry.is_bound(direction, port.id)
            && is_from_there
            && !matches!(revalidation, Revalidation::Rejudged(_));
        if !bound {
            match self.check_arrival_port(snapshot, port, frame, packet, known)? {
                Arrival::Rebind(renewed) => revalidation = renewed,
                Arrival::Elsewhere => {
                    return self.judge_off_path(snapshot, port, frame, packet, hash, index);
                }
            }
        }
        let Some(before) = entry.state() else {
            return Err(DropReason::SnapshotInvalid.into()); // `find` gives entries in use only
        };
        let meaning = FlowEvent::of(packet);
        let (mut state, mut action) = state::next(before, direction, meaning);
        let mut sequence = match meaning {
            FlowEvent::Syn | FlowEvent::SynAck if matches!(before, State::TcpSyn | State::TcpHandshake) => {
                SequenceUpdate::Restart
            }
            _ => SequenceUpdate::Advance,
        };
        if matches!(meaning, FlowEvent::Rst | FlowEvent::Fin | FlowEvent::Close)
            && !self.accepts_close(index, direction, before, meaning, frame, packet)
        {
            sequence = SequenceUpdate::Ignore;
            (state, action) = match meaning {
                FlowEvent::Fin => state::next(before, direction, FlowEvent::Ack),
                _ => (before, Action::PassUnrefreshed),
            };
        }
        let mut progress = FlowProgress {
            step: FlowStep {
                index,
                direction,
                state,
            },
            revalidation,
            refreshes: action != Action::PassUnrefreshed,
            rebinds: !bound,
            orientation: Orientation::Unchanged,
            sequence,
        };
        match action {
            Action::Pass | Action::PassUnrefreshed => {}
            Action::Invalid => return Err(DropReason::TcpInvalid.into()),
            Action::Reopen => {
                return self.judge_new(snapshot, port, frame, packet, hash, Some(index), None);
            }
            Action::JudgeAlone => {
                self.decide_packet(snapshot, port, packet)?;
                return Ok(FlowUpdate::Update(progress));
            }
        }
        if !entry.takes_fast_path() {
            self.judge_midstream_or_audited(snapshot, port, packet, hash, &mut progress)?;
        }
        Ok(FlowUpdate::Update(progress))
    }

    /// Whether a reset, a FIN or an end of SCTP is one that its end may have sent.
    #[cold]
    fn accepts_close(
        &self,
        index: usize,
        direction: FlowDirection,
        before: State,
        meaning: FlowEvent,
        frame: &[u8],
        packet: &Packet,
    ) -> bool {
        if !self.shared.config.flow.tcp_strict {
            return true;
        }
        let windows = self.table.entry(index).windows();
        if meaning == FlowEvent::Close {
            return sctp::accepts_close(windows, direction, frame, packet);
        }
        let Some(segment) = tcp::Segment::of(frame, packet) else {
            return false;
        };
        match meaning {
            FlowEvent::Rst => windows.accepts_reset(direction, &segment, before),
            _ => windows.accepts_fin(direction, &segment),
        }
    }

    /// A flow of which it is not known who began, or that passes only because the mode is audit.
    #[cold]
    fn judge_midstream_or_audited(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        progress: &mut FlowProgress,
    ) -> Result<(), Denial> {
        let entry = self.table.entry(progress.step.index);
        let would_drop = match progress.revalidation {
            Revalidation::Rejudged(stamp) => match stamp.allowed_by {
                AllowedBy::Audit(reason) => Some(reason),
                _ => None,
            },
            Revalidation::Current | Revalidation::Restamp => entry.would_drop(),
        };
        if let Some(reason) = would_drop {
            return Err(Denial {
                in_audit: FlowUpdate::Update(*progress),
                ..reason.into()
            });
        }
        let direction = progress.step.direction;
        let covered = entry.allows(direction)
            && (direction == FlowDirection::Original || !progress.rebinds || entry.is_oriented());
        if covered {
            return Ok(());
        }
        // The direction against the first packet is judged on its own, too; while connections are picked up, it passes
        // as an answer (SEMANTICS 60).
        match self.decide_packet(snapshot, port, packet) {
            Ok(_) => progress.orientation = Orientation::ReplyAllowed,
            Err(denial) => {
                if self.now > self.shared.pickup_until || self.shard(hash).has_revoked {
                    return Err(denial);
                }
                progress.orientation = Orientation::Oriented;
                progress.step.state = State::TcpEstablished;
            }
        }
        Ok(())
    }

    /// A packet of a flow that comes in by another port than those before it (or the first one since a start or a change
    /// of an endpoint). The original direction belongs to the flow from wherever its source can be, if it is allowed from
    /// there; a reply only from where the original went.
    #[cold]
    fn check_arrival_port(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        known: FlowMatch,
    ) -> Result<Arrival, Denial> {
        let src = snapshot.identify(packet.src);
        self.check_source(port, frame, packet, &src)?;
        let entry = self.table.entry(known.index);
        let rejudged = matches!(known.revalidation, Revalidation::Rejudged(_));
        let bound = |direction| entry.port(direction).filter(|_| !rejudged);
        let is_wire = matches!(port.kind, PortKind::Wire { .. });
        let replies_by = bound(FlowDirection::Reply).or_else(|| self.wire_reply_port(port, entry));
        let began = match known.direction {
            FlowDirection::Original => {
                let turned = is_wire && replies_by == Some(port.id);
                if turned && entry.state().is_some_and(State::is_answered) {
                    // Both ends have spoken, across the wire the other way round.
                    return Err(DropReason::SpoofedSource.into());
                }
                packet.key(port.zone)
            }
            FlowDirection::Reply => {
                let from_there = if is_wire {
                    replies_by.is_none_or(|by| by == port.id)
                } else {
                    self.forwarding
                        .is_some_and(|forwarding| forwarding.leads_to(packet.src, port))
                };
                if !from_there {
                    return Ok(Arrival::Elsewhere);
                }
                packet.key(port.zone).reversed()
            }
        };
        let revoked = entry.state() == Some(State::Revoked);
        let by = bound(known.direction);
        // On a wire, another station of the same port is where its source is: nothing else has changed.
        let same_port = is_wire && by == Some(port.id);
        if revoked || same_port || by.is_none() && known.direction == FlowDirection::Reply {
            return Ok(Arrival::Rebind(known.revalidation));
        }
        // Judged anew in the direction in which it was begun: by another way, a node may not be believed.
        let allowed_by = match known.revalidation {
            Revalidation::Rejudged(stamp) => stamp.allowed_by,
            Revalidation::Current | Revalidation::Restamp => entry.allowed_by(),
        };
        if matches!(allowed_by, AllowedBy::Failsafe | AllowedBy::Audit(_)) {
            return Ok(Arrival::Rebind(known.revalidation));
        }
        let (src, dst) = (snapshot.identify(began.src), snapshot.identify(began.dst));
        let exemption = match known.direction {
            FlowDirection::Original => {
                self.node_exemption(port, (began.src, began.dst), began.protocol, &src, &dst)
            }
            FlowDirection::Reply => match allowed_by {
                AllowedBy::TrustedNode => NodeExemption::Trusted,
                AllowedBy::ThisNode => NodeExemption::ThisNode,
                _ => NodeExemption::Untrusted,
            },
        };
        let judgement = self.decide(snapshot, &began, &src, &dst, exemption)?;
        let stamp = stamp(snapshot, &src, &dst, Some(judgement), exemption.into());
        Ok(Arrival::Rebind(Revalidation::Rejudged(stamp)))
    }

    /// By which end of a wire replies come, where the entry is not bound to ports: since a restart, or since it was judged
    /// again. None where nothing tells, as when the wire has other interfaces now.
    fn wire_reply_port(&self, port: &Port, entry: &Entry) -> Option<PortId> {
        let PortKind::Wire { peer } = port.kind else {
            return None;
        };
        let peer = self.port(peer)?;
        let original_port_tag = entry.original_port_tag()?;
        match (original_port_tag == port.tag, original_port_tag == peer.tag) {
            (true, false) => Some(peer.id),
            (false, true) => Some(port.id),
            _ => None,
        }
    }

    /// A packet with the addresses and ports of a flow, that comes from where none of its packets does: it is judged as
    /// new. It takes the flow's place only where nobody has answered in that.
    #[cold]
    fn judge_off_path(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
        index: usize,
    ) -> Result<FlowUpdate, Denial> {
        let state = self.table.entry(index).state();
        if state.is_some_and(|state| state.is_answered() || state == State::Revoked) {
            self.decide_packet(snapshot, port, packet)?;
            return Ok(FlowUpdate::Unchanged);
        }
        self.judge_new(snapshot, port, frame, packet, hash, Some(index), None)
    }

    /// A packet without an entry, or one that begins a flow anew in the place of the entry given.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)] // what is known of a packet by then
    fn judge_new(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
        replaces: Option<usize>,
        judged: Option<&JudgedPacket>,
    ) -> Result<FlowUpdate, Denial> {
        let (src, dst) = match judged {
            Some(judged) => (judged.src, judged.dst),
            None => (snapshot.identify(packet.src), snapshot.identify(packet.dst)),
        };
        self.check_source(port, frame, packet, &src)?;
        if FlowEvent::of(packet) == FlowEvent::InvalidFlags {
            return Err(DropReason::TcpInvalid.into());
        }
        let key = packet.key(port.zone);
        let exemption = self.node_exemption(port, (key.src, key.dst), key.protocol, &src, &dst);
        let begins = state::initial_state(packet).filter(|_| may_have_entry(&src) && may_have_entry(&dst));
        let begin = |state, judgement: Option<Judgement>, allowed_by| {
            FlowUpdate::Create(NewFlow {
                key,
                direction: FlowDirection::Original,
                state,
                stamp: stamp(snapshot, &src, &dst, judgement, allowed_by),
                accounts: [self.account(key.src, &src), self.account(key.dst, &dst)],
                replaces,
            })
        };
        if packet.transport != Transport::None && self.shared.config.failsafe.admits(&key) {
            // Whoever may begin a connection here may go on with it, so it is known who began.
            let state = match state::initial_state(packet) {
                Some(State::TcpMidstream) => State::TcpEstablished,
                Some(state) => state,
                None => return Ok(FlowUpdate::Unchanged),
            };
            return Ok(begin(state, None, AllowedBy::Failsafe));
        }
        let decided = match judged {
            Some(judged) => self.check_judgement(&key, &src, &dst, judged.judgement),
            None => self.decide(snapshot, &key, &src, &dst, exemption),
        };
        let judgement = match decided {
            Ok(judgement) => judgement,
            Err(denial) => {
                if begins == Some(State::TcpMidstream)
                    && let Some(update) = self.pick_up(snapshot, port, packet, hash, [&src, &dst])
                {
                    return Ok(update);
                }
                let in_audit = match begins {
                    Some(state) if self.shared.config.mode == Mode::Audit => {
                        begin(state, denial.judgement, AllowedBy::Audit(denial.reason))
                    }
                    _ => FlowUpdate::Unchanged,
                };
                return Err(Denial { in_audit, ..denial });
            }
        };
        match begins {
            Some(state) => Ok(begin(state, Some(judgement), exemption.into())),
            None => Ok(FlowUpdate::Unchanged),
        }
    }

    /// Whether the packets of a flow can do without an entry: answers to them pass on their own.
    #[cold]
    pub(super) fn can_pass_without_entry(&self, port: &Port, new_flow: &NewFlow) -> bool {
        let Some(snapshot) = self.snapshot else {
            return false;
        };
        if new_flow.state == State::TcpMidstream
            || matches!(
                new_flow.stamp.allowed_by,
                AllowedBy::Failsafe | AllowedBy::Audit(_)
            )
        {
            return true;
        }
        let key = new_flow.key.reversed();
        let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
        let exemption = self.node_exemption(port, (key.src, key.dst), key.protocol, &src, &dst);
        self.decide(snapshot, &key, &src, &dst, exemption).is_ok()
    }

    /// Where that is configured, in the time after a start without inherited flows: takes a segment from the middle of a
    /// connection for an answer, if the connection would be allowed the other way round (SEMANTICS 60). Who knows that
    /// time can send segments to anybody in it, by a pod that may answer: so it is not the default.
    #[cold]
    fn pick_up(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        [src, dst]: [&Identity; 2],
    ) -> Option<FlowUpdate> {
        let may = self.shared.config.flow.pickup_answers
            && self.now <= self.shared.pickup_until
            && !self.shard(hash).has_revoked;
        if !may {
            return None;
        }
        let key = packet.key(port.zone).reversed();
        let exemption = self.node_exemption(port, (key.src, key.dst), key.protocol, dst, src);
        let judgement = self.decide(snapshot, &key, dst, src, exemption).ok()?;
        Some(FlowUpdate::Create(NewFlow {
            key,
            direction: FlowDirection::Reply,
            state: State::TcpEstablished,
            stamp: stamp(snapshot, dst, src, Some(judgement), exemption.into()),
            accounts: [self.account(key.src, dst), self.account(key.dst, src)],
            replaces: None,
        }))
    }

    /// An ICMP error passes if it quotes a packet of a live flow, goes to who sent that, and comes from where that went
    /// (SEMANTICS 57).
    #[cold]
    fn judge_icmp_error(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        known: FlowMatch,
    ) -> Result<FlowUpdate, Denial> {
        let unrelated = DropReason::IcmpUnrelated;
        let longest = if packet.src.is_v4() {
            LONGEST_ERROR_V4
        } else {
            LONGEST_ERROR_V6
        };
        if packet.total_length() > longest {
            return Err(DropReason::IcmpTooLong.into());
        }
        let Transport::IcmpError { quoted: Some(quoted) } = packet.transport else {
            return Err(unrelated.into());
        };
        let FlowMatch {
            index,
            direction,
            revalidation,
        } = known;
        let entry = self.table.entry(index);
        let audited = matches!(revalidation, Revalidation::Rejudged(stamp) if matches!(stamp.allowed_by, AllowedBy::Audit(_)));
        if quoted.src != packet.dst
            || audited
            || entry.state() == Some(State::Revoked)
            || !entry.allows(direction)
        {
            return Err(unrelated.into());
        }
        let from_there = match entry.port(direction.reversed()) {
            Some(bound) if bound == port.id => true,
            Some(_) if matches!(port.kind, PortKind::Wire { .. }) => false,
            None if matches!(port.kind, PortKind::Wire { .. }) => true,
            _ => self
                .forwarding
                .is_some_and(|forwarding| forwarding.leads_to(quoted.dst, port)),
        };
        if !from_there {
            return Err(unrelated.into());
        }
        let src = snapshot.identify(packet.src);
        self.check_error_source(port, frame, packet, &quoted, &src)?;
        if self.shared.config.flow.tcp_strict
            && quoted.protocol == protocol::TCP
            && !wire::quoted_sequence(frame, packet)
                .is_some_and(|seq| entry.windows().has_sent(direction, seq))
        {
            return Err(unrelated.into());
        }
        // Who is outside can say that it is anybody: what it sends counts for whom it is for.
        let account = match src.kind {
            IdentityKind::External => self.account(packet.dst, &snapshot.identify(packet.dst)),
            _ => self.account(packet.src, &src),
        };
        if !self.icmp_passed.has(account, self.now) || entry.icmp_errors_left(self.now) == 0 {
            return Err(DropReason::IcmpRateLimited.into());
        }
        Ok(FlowUpdate::IcmpError { index, account })
    }

    /// Who may send an error: the end that is quoted, or a router on the way to it. A router is no endpoint of the
    /// cluster, and may have addresses that lead elsewhere; a pod speaks for itself alone.
    fn check_error_source(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        quoted: &Quoted,
        src: &Identity,
    ) -> Result<(), Denial> {
        match src.kind {
            IdentityKind::External if packet.src != quoted.dst => {
                let own = port.kind == PortKind::Host;
                let claims_to_be_us = self
                    .forwarding
                    .is_some_and(|forwarding| forwarding.is_local(packet.src) != own);
                if claims_to_be_us && !matches!(port.kind, PortKind::Wire { .. })
                    || port.kind == PortKind::Pod
                {
                    return Err(DropReason::SpoofedSource.into());
                }
                self.forwarding
                    .map_or(Ok(()), |forwarding| forwarding.places().check(packet, port))?;
                Ok(())
            }
            IdentityKind::Pod | IdentityKind::Unknown | IdentityKind::Service if packet.src != quoted.dst => {
                Err(DropReason::IcmpUnrelated.into())
            }
            _ => self.check_source(port, frame, packet, src),
        }
    }

    /// Whether a source may come in by a port: not from itself, by its side, by the route back to it, and from the
    /// station that leads there.
    #[inline]
    fn check_source(&self, port: &Port, frame: &[u8], packet: &Packet, src: &Identity) -> Result<(), Denial> {
        use IdentityKind::{External, Node, Pod, Service, Unknown};
        let fits = match port.side {
            Side::Any => true,
            Side::Pods => matches!(src.kind, Pod | Unknown),
            Side::Nodes => matches!(src.kind, Node),
            Side::Inside => matches!(src.kind, Pod | Unknown | Node),
            Side::Outside => matches!(src.kind, External | Service),
        };
        if !fits {
            return Err(DropReason::SpoofedSource.into());
        }
        self.check_addresses(port, packet)?;
        if port.checks_source_mac && matches!(src.kind, Pod | Unknown | Node) {
            self.check_station(port, frame, packet, src)?;
        }
        Ok(())
    }

    /// What can be told about where a packet's ends are without knowing whose they are.
    #[inline]
    fn check_addresses(&self, port: &Port, packet: &Packet) -> Result<(), DropReason> {
        let Some(forwarding) = self.forwarding else {
            return Err(DropReason::SpoofedSource);
        };
        let is_wire = matches!(port.kind, PortKind::Wire { .. });
        if packet.src == packet.dst || !is_wire && !forwarding.passes_reverse_path(packet.src, port) {
            return Err(DropReason::SpoofedSource);
        }
        forwarding.places().check(packet, port)
    }

    /// Whether a pod's packet bears the Ethernet address of its node: on a router that of the next hop to the pod.
    #[cold]
    fn check_station(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        src: &Identity,
    ) -> Result<(), DropReason> {
        let (Some(forwarding), Some(station)) = (self.forwarding, source_mac(frame)) else {
            return Err(DropReason::SpoofedSource);
        };
        match (port.kind, src.kind) {
            // Which node an address is on that no pod has, nobody knows: policy decides about it.
            (PortKind::Wire { .. }, IdentityKind::Unknown) => Ok(()),
            (PortKind::Wire { .. }, _) => self.check_node_station(forwarding, port, station, src),
            (_, IdentityKind::Node) => Ok(()),
            _ => match forwarding.is_mac_of_next_hop(packet.src, port, station) {
                Ok(true) => Ok(()),
                Ok(false) => Err(DropReason::SpoofedSource),
                Err(unknown) => {
                    // Sources that have not been seen on their link yet: the kernel looks for them, the next packet passes. Not
                    // for what cannot pass: whoever makes up sources would have it look for each of them.
                    let policy = self.snapshot;
                    if src.kind == IdentityKind::Pod || policy.is_some_and(|it| it.allow_unknown()) {
                        let _ = self.shared.resolve_requests.push(unknown);
                    }
                    Err(DropReason::NeighbourUnresolved)
                }
            },
        }
    }

    /// The same on a wire, where nodes are known by what they say themselves.
    fn check_node_station(
        &self,
        forwarding: &Forwarding,
        port: &Port,
        station: [u8; 6],
        src: &Identity,
    ) -> Result<(), DropReason> {
        let Some(node) = self.snapshot.and_then(|snapshot| snapshot.node_name(src.node)) else {
            return Err(DropReason::SpoofedSource);
        };
        match forwarding.station(port.id, node) {
            Some(known) if known == station => Ok(()),
            Some(_) => Err(DropReason::SpoofedSource),
            None => {
                // It is asked for, the next packet passes.
                self.report_station(StationReport {
                    port: port.id,
                    node: src.node,
                    generation: self.generation(),
                    claimed: None,
                });
                Err(DropReason::NeighbourUnresolved)
            }
        }
    }

    /// Takes note of which station ARP or neighbour discovery says to be a node. Answers whether that can be: not where another
    /// one is.
    #[cold]
    pub(super) fn observe_station(&self, port: &Port, frame: &[u8]) -> bool {
        let (Some(snapshot), Some(forwarding)) = (self.snapshot, self.forwarding) else {
            return true;
        };
        let Some(NeighbourClaim { addr, station, vlan }) = wire::neighbour_claim(frame) else {
            return true;
        };
        let who = snapshot.identify(addr);
        let Some(node) = snapshot
            .node_name(who.node)
            .filter(|_| who.kind == IdentityKind::Node)
        else {
            return true;
        };
        let Some(station) = station.filter(|_| forwarding.places().may_be_at(addr, port.id, vlan)) else {
            return false;
        };
        let news = StationReport {
            port: port.id,
            node: who.node,
            generation: snapshot.generation(),
            claimed: Some(station),
        };
        let known = forwarding.station(port.id, node);
        if known == Some(station) {
            let _ = self.shared.station_reports.push(news); // where there is no room, it is asked again
            return true;
        }
        self.report_station(news);
        known.is_none()
    }

    /// Reports what anybody may cause, and keeps room for the answers of stations that are known: who could crowd those out
    /// would take their place.
    fn report_station(&self, news: StationReport) {
        let queue = &self.shared.station_reports;
        if queue.len() < queue.capacity() / 2 {
            let _ = queue.push(news);
        }
    }

    /// Judges a packet as new, in its own direction.
    fn decide_packet(&self, snapshot: &Snapshot, port: &Port, packet: &Packet) -> Result<Judgement, Denial> {
        let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
        let key = packet.key(port.zone);
        let exemption = self.node_exemption(port, (key.src, key.dst), key.protocol, &src, &dst);
        self.decide(snapshot, &key, &src, &dst, exemption)
    }

    /// What policy says about a flow that begins, and what goes before it. Answers judgements that allow.
    fn decide(
        &self,
        snapshot: &Snapshot,
        key: &FlowKey,
        src: &Identity,
        dst: &Identity,
        node: NodeExemption,
    ) -> Result<Judgement, Denial> {
        let judgement = snapshot.judge(src, dst, key.src, key.dst, l4(key), node);
        self.check_judgement(key, src, dst, judgement)
    }

    /// As [`Self::decide`], where policy has been asked.
    fn check_judgement(
        &self,
        key: &FlowKey,
        src: &Identity,
        dst: &Identity,
        judgement: Judgement,
    ) -> Result<Judgement, Denial> {
        use IdentityKind::{Node, Pod, Service, Unknown};
        if dst.kind == Service {
            return Err(DropReason::ServiceUnsupported.into());
        }
        if !judgement.allow() {
            return Err(judgement.into());
        }
        // What is inside of a tunnel is another packet, of another source. Nodes have tunnels among themselves.
        let forbidden = matches!(src.kind, Pod | Unknown) || dst.kind == Node && src.kind != Node;
        let tunnels = &self.shared.config.tunnels;
        // Between pods too long a chain hides what its receiver alone would unpack.
        let hides = tunnels.may_hide_in(key) && dst.kind != Pod;
        if forbidden && (hides || tunnels.matches(key)) {
            return Err(Denial {
                judgement: Some(judgement),
                ..DropReason::Encapsulation.into()
            });
        }
        Ok(judgement)
    }

    /// Whether a node's address can be believed (SEMANTICS 47): the packet goes to a node, comes from where only nodes
    /// are, or is of this machine itself. It covers what nodes and pods say to each other, not what a node would unpack.
    fn node_exemption(
        &self,
        port: &Port,
        (from, to): (Addr, Addr),
        protocol: u8,
        src: &Identity,
        dst: &Identity,
    ) -> NodeExemption {
        use protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
        if !matches!(protocol, TCP | UDP | SCTP | ICMP | ICMPV6) {
            return NodeExemption::Untrusted;
        }
        if self.shared.config.hosts_pods
            && let Some(forwarding) = self.forwarding
        {
            let ours = match port.kind {
                PortKind::Host => forwarding.is_local(from) && forwarding.is_local_pod(to),
                PortKind::Pod => forwarding.is_local(to),
                _ => false,
            };
            if ours {
                return NodeExemption::ThisNode;
            }
        }
        let from_node =
            src.kind == IdentityKind::Node && (port.kind == PortKind::Host || port.side == Side::Nodes);
        if from_node || dst.kind == IdentityKind::Node {
            NodeExemption::Trusted
        } else {
            NodeExemption::Untrusted
        }
    }

    /// Whether an end of a flow is this machine itself, which hosts pods.
    fn involves_this_node(&self, key: &FlowKey) -> bool {
        self.shared.config.hosts_pods
            && self
                .forwarding
                .is_some_and(|forwarding| forwarding.is_local(key.src) || forwarding.is_local(key.dst))
    }

    /// In whose account stands what an address costs that came in by a port, where it is not known whose it is.
    pub(super) fn account_at_port(&self, addr: Addr, port: &Port) -> u32 {
        match port.kind {
            PortKind::Pod => self.seed.account(addr),
            _ => self.seed.outside_account(addr),
        }
    }

    /// In whose account a flow of an endpoint stands.
    fn account(&self, addr: Addr, identity: &Identity) -> u32 {
        match identity.kind {
            IdentityKind::External => self.seed.outside_account(addr),
            _ => self.seed.account(addr),
        }
    }
}

/// The Ethernet address that a frame comes from.
#[inline]
pub(super) fn source_mac(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(6..12)?.try_into().ok()
}

/// What tells whether two ends are what they were. The kind counts too: an address without an endpoint may turn from
/// external into unknown, and nothing else about it changes.
pub(super) fn epochs_of(src: &Identity, dst: &Identity) -> [u64; 2] {
    [src, dst].map(|end| end.epoch.wrapping_add((end.kind as u64) << 56))
}

/// Only these may have an entry (SEMANTICS 53).
fn may_have_entry(identity: &Identity) -> bool {
    identity.kind != IdentityKind::Unknown
}

impl From<NodeExemption> for AllowedBy {
    fn from(exemption: NodeExemption) -> Self {
        match exemption {
            NodeExemption::Untrusted => Self::Policy,
            NodeExemption::Trusted => Self::TrustedNode,
            NodeExemption::ThisNode => Self::ThisNode,
        }
    }
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

fn stamp(
    snapshot: &Snapshot,
    src: &Identity,
    dst: &Identity,
    judgement: Option<Judgement>,
    allowed_by: AllowedBy,
) -> DecisionStamp {
    DecisionStamp {
        generation: snapshot.generation(),
        epochs: epochs_of(src, dst),
        provenance: judgement.map_or([crate::classify::NONE; 2], |judgement| {
            [judgement.ingress.provenance, judgement.egress.provenance]
        }),
        allowed_by,
    }
}
