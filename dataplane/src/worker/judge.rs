//! Lookup and verdict: which flow a packet belongs to, and whether it may pass. Nothing here changes flow state for a
//! new flow: the result is a [`FlowUpdate`], which is committed once the packet is sure to be forwarded.
#![allow(clippy::result_large_err)] // nothing is allocated per packet, and the large variants are off the fast path

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

use super::{Disposition, PacketMeta, WorkerTurn, tunnel::outer_source};

/// Longest ICMP errors (RFC 1812 4.3.2.3, RFC 4443 2.4 (c)).
const LONGEST_ERROR_V4: u16 = 576;
const LONGEST_ERROR_V6: u16 = 1280;

/// Why a packet does not pass, and the policy decision behind it if there was one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denial {
    pub(super) reason: DropReason,
    pub(super) judgement: Option<Judgement>,
    /// What the packet changes if audit mode forwards it nevertheless.
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
    /// For a judgement that denies. Egress is reported first, as it is evaluated first.
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

/// What the flow table and the fragment table know about a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lookup {
    /// Nothing: the packet may begin a flow.
    Miss,
    /// The packet belongs to this flow.
    Hit(FlowMatch),
    /// The packet is an ICMP error that quotes a packet of this flow, in this direction.
    Quoted(FlowMatch),
    /// The packet is a later fragment of a datagram whose first fragment passed.
    LaterFragment(DatagramVerdict),
    /// The packet is a fragment without a first fragment, or contradicts other fragments.
    BadFragment(DropReason),
}

/// The flow that a packet belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowMatch {
    pub(super) index: usize,
    pub(super) direction: FlowDirection,
    pub(super) revalidation: Revalidation,
}

/// What an entry needs to stay valid under the snapshot in force.
#[derive(Clone, Copy, Debug)]
pub(super) enum Revalidation {
    /// Nothing: it was validated under this snapshot.
    Current,
    /// The new generation only: the epochs of its ends have not changed.
    Restamp,
    /// The new decision: the epoch of an end changed, and the flow was judged again.
    Rejudged(DecisionStamp),
}

/// How flow state changes if the packet is forwarded.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlowUpdate {
    /// Not at all: the packet passes without an entry.
    Unchanged,
    /// The state advances, nothing else changes (the fast path).
    Advance(FlowStep),
    /// The state advances and other properties of the entry change.
    Update(FlowProgress),
    /// A new entry is created.
    Create(NewFlow),
    /// An ICMP error related to a flow passes.
    IcmpError {
        /// The flow.
        index: usize,
        /// The quota account that the error is charged to.
        account: u32,
    },
    /// An ICMP error about a tunnel packet passes.
    TunnelError {
        /// The quota account that the error is charged to.
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

/// How an existing entry changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowProgress {
    pub(super) step: FlowStep,
    pub(super) revalidation: Revalidation,
    /// Whether the timeout is restarted.
    pub(super) refreshes: bool,
    /// Whether the flow is bound to the ports of this packet from now on.
    pub(super) rebinds: bool,
    /// What the packet shows about who began the flow, if that is not known.
    pub(super) orientation: Orientation,
    /// What to do with its TCP sequence numbers.
    pub(super) sequence: SequenceUpdate,
}

/// How the sequence numbers of a segment update the tracked window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceUpdate {
    /// They advance it.
    Advance,
    /// They restart it: the SYN of a connection that is not open yet.
    Restart,
    /// They are ignored: the segment may be forged.
    Ignore,
}

/// What a packet shows about the direction of a flow that was picked up in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// Nothing new.
    Unchanged,
    /// The reply direction is allowed on its own.
    ReplyAllowed,
    /// The packet that the entry was made for began it.
    Oriented,
}

/// The entry for a new flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewFlow {
    /// Of the original direction.
    pub(super) key: FlowKey,
    /// The direction of the packet: `Reply` if the connection is picked up from an answer.
    pub(super) direction: FlowDirection,
    pub(super) state: State,
    pub(super) stamp: DecisionStamp,
    /// Quota accounts of source and destination.
    pub(super) accounts: [u32; 2],
    /// The entry that it replaces.
    pub(super) replaces: Option<usize>,
}

/// Whether a packet arrived where its flow's packets may arrive.
enum Arrival {
    /// It may arrive here; the flow is bound to this port from now on.
    Rebind(Revalidation),
    /// Packets of this direction do not come from here.
    Elsewhere,
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Looks up a packet: the flow that it belongs to or quotes, or the datagram that it is a fragment of. An expired
    /// entry is removed; one that is not allowed by the snapshot in force is revoked (SEMANTICS 58).
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
        // If the chain of extension headers was not walked to its end, layer 4 is unknown and the packet belongs to
        // no flow. Nor does ICMP but echo, whose key may be that of one.
        if matches!(
            packet.transport,
            Transport::IcmpError { .. } | Transport::Icmp { .. } | Transport::None
        ) {
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

    /// An entry, unless it has expired or does not hold under this snapshot.
    #[inline(always)]
    pub(super) fn revalidate(
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
            // RFC 8200 4.5: IPv6 reassembly ignores the protocol, which may differ between fragments.
            protocol: if packet.src.is_v4() { packet.protocol } else { 0 },
            ..packet.key(port.zone)
        };
        let datagram = self.seed.datagram(&key, fragment.id);
        (key, datagram)
    }

    /// Validates a flow under a newer snapshot: if the epochs of both ends are unchanged the decision stands,
    /// otherwise it is judged again in its original direction. A flow that is denied stays as [`State::Revoked`].
    /// None if a revoked flow would be allowed again: its entry is removed.
    #[cold]
    fn revalidate_epochs(
        &mut self,
        snapshot: &Snapshot,
        hash: KeyHash,
        index: usize,
    ) -> Option<Revalidation> {
        let entry = self.table.entry(index);
        let revoked = entry.state() == Some(State::Revoked);
        let (key, allowed_by, ends) = (entry.key(), entry.allowed_by(), entry.judged_ends());
        let (src, dst) = (snapshot.identify(key.src), snapshot.identify(key.dst));
        let epochs = epochs_of(&src, &dst);
        if !is_same_owner(epochs[0], entry.epochs()[0]) || !is_same_owner(epochs[1], entry.epochs()[1]) {
            // The address belongs to another endpoint now, which has not talked to the other end.
            self.table.remove(index);
            self.stats.counters.flows.revoked.add(1);
            return None;
        }
        // Failsafe rules and local addresses may have changed since, and an entry inherited from a predecessor may
        // claim anything.
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
            let l4 = key.policy_l4(false);
            match ends {
                Some(ends) => self.decide_ends(snapshot, &key, l4, [&src, &dst], ends),
                None => self.decide(snapshot, &key, l4, &src, &dst, exemption),
            }
            .map(Some)
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
                    self.table.remove_cached(index);
                    self.table.set_state(index, State::Revoked, self.now);
                    self.shard_mut(hash).has_revoked = true;
                    self.stats.counters.flows.revoked.add(1);
                }
                // It is judged again under the next snapshot.
                self.table.entry_mut(index).restamp(snapshot.generation());
                Some(Revalidation::Current)
            }
        }
    }

    /// Judges the packets of a burst that seem to begin a flow as one batch. The result depends on snapshot and
    /// packet alone, so it is also right for packets whose flow turns out to exist.
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
                self.judge_tunnel_error(snapshot, port, frame, packet)
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

    /// A later fragment gets the verdict of the first one (SEMANTICS 62) while the epochs of both ends are unchanged.
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

    /// Before the first snapshot no address can be identified and no entry created: packets that match a failsafe
    /// rule, and replies to them, pass if they arrive where their source can be.
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

    /// A packet of a flow that has an entry. Nearly all take the fast path: compare the port, advance the state.
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

    /// The slow path: another port, a new snapshot, or a segment that opens or closes.
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
            return Err(DropReason::SnapshotInvalid.into()); // `find` returns entries in use only
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

    /// Whether a RST, a FIN, or an SCTP ABORT or SHUTDOWN COMPLETE is in window, so the end that it claims to be from
    /// may have sent it.
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

    /// A flow that was picked up in the middle, or that passes only in audit mode.
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
        // The reply direction is judged on its own as well; in the pickup window it passes as an answer (SEMANTICS
        // 60).
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

    /// A packet that arrives by another port than the flow is bound to (or the first since a start or a change of an
    /// endpoint). Packets of the original direction may arrive wherever their source can be, if they are allowed from
    /// there; replies only where the original went.
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
                    // Both ends have sent packets across the wire in the opposite direction.
                    return Err(DropReason::SpoofedSource.into());
                }
                packet.key(port.zone)
            }
            FlowDirection::Reply => {
                let from_there = if is_wire {
                    replies_by.is_none_or(|by| by == port.id)
                } else {
                    let from = outer_source(frame, packet);
                    self.forwarding
                        .is_some_and(|forwarding| forwarding.leads_to(from, port))
                };
                if !from_there {
                    return Ok(Arrival::Elsewhere);
                }
                packet.key(port.zone).reversed()
            }
        };
        let revoked = entry.state() == Some(State::Revoked);
        let by = bound(known.direction);
        // On a wire, another station on the same port: nothing else has changed.
        let same_port = is_wire && by == Some(port.id);
        if revoked || same_port || by.is_none() && known.direction == FlowDirection::Reply {
            return Ok(Arrival::Rebind(known.revalidation));
        }
        // Judge it again in its original direction: on another path, a node's address may not be trusted.
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
        let judgement = self.decide(snapshot, &began, began.policy_l4(false), &src, &dst, exemption)?;
        let stamp = stamp(snapshot, &src, &dst, Some(judgement), exemption.into());
        Ok(Arrival::Rebind(Revalidation::Rejudged(stamp)))
    }

    /// The end of a wire where replies arrive, for an entry that is not bound to ports (since a restart, or since it
    /// was judged again). None if unknown, for example because the wire has other interfaces now.
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

    /// A packet with the key of a flow, but off its path: it is judged as new, and replaces the flow only if that has
    /// not been answered.
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

    /// A packet without an entry, or one that begins a flow that replaces the entry `replaces`.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)] // all that is known about the packet
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
            // A failsafe rule that lets a connection begin lets it continue, so the initiator is known.
            let state = match state::initial_state(packet) {
                Some(State::TcpMidstream) => State::TcpEstablished,
                Some(state) => state,
                None => return Ok(FlowUpdate::Unchanged),
            };
            return Ok(begin(state, None, AllowedBy::Failsafe));
        }
        let decided = match judged {
            Some(judged) => self.check_judgement(&key, &src, &dst, judged.judgement),
            None => self.decide(snapshot, &key, packet.policy_l4(), &src, &dst, exemption),
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

    /// Whether a flow can pass without an entry: its replies would be allowed on their own.
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
        let l4 = key.policy_l4(true);
        self.decide(snapshot, &key, l4, &src, &dst, exemption).is_ok()
    }

    /// If configured, and only in the pickup window after a start without inherited flows: takes a segment from the
    /// middle of a connection for a reply if the connection would be allowed in the opposite direction (SEMANTICS
    /// 60). Off by default, because an attacker that knows the window could send segments anywhere from a pod that
    /// only accepts connections.
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
        let l4 = key.policy_l4(false);
        let judgement = self.decide(snapshot, &key, l4, dst, src, exemption).ok()?;
        Some(FlowUpdate::Create(NewFlow {
            key,
            direction: FlowDirection::Reply,
            state: State::TcpEstablished,
            stamp: stamp(snapshot, dst, src, Some(judgement), exemption.into()),
            accounts: [self.account(key.src, dst), self.account(key.dst, src)],
            replaces: None,
        }))
    }

    /// An ICMP error passes if it quotes a packet of a live flow, goes to the sender of that packet, and arrives
    /// where that packet went (SEMANTICS 57).
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
        if packet.total_length() > longest_error(packet) {
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
            _ => {
                let towards = match packet.tunnel {
                    None => quoted.dst,
                    Some(_) => outer_source(frame, packet),
                };
                self.forwarding
                    .is_some_and(|forwarding| forwarding.leads_to(towards, port))
            }
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
        // An external source can forge its address, so its errors are charged to the receiver.
        let account = match src.kind {
            IdentityKind::External => self.account(packet.dst, &snapshot.identify(packet.dst)),
            _ => self.account(packet.src, &src),
        };
        if !self.icmp_passed.has(account, self.now) || entry.icmp_errors_left(self.now) == 0 {
            return Err(DropReason::IcmpRateLimited.into());
        }
        Ok(FlowUpdate::IcmpError { index, account })
    }

    /// Checks the source of an ICMP error: the quoted destination, or a router on the way to it. A router is no
    /// endpoint of the cluster and may have addresses routed elsewhere; a pod may send errors only for itself.
    pub(super) fn check_error_source(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        quoted: &Quoted,
        src: &Identity,
    ) -> Result<(), Denial> {
        match src.kind {
            IdentityKind::External if packet.tunnel.is_some() => self.check_source(port, frame, packet, src),
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

    /// Checks whether a source address may arrive at a port: the port's side, source and destination differ, reverse
    /// path, place, source Ethernet address.
    #[inline]
    pub(super) fn check_source(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        src: &Identity,
    ) -> Result<(), Denial> {
        use IdentityKind::{External, Node, Pod, Service, Unknown};
        if let Some(tunnel) = packet.tunnel {
            return self.check_tunnelled_source(frame, packet, tunnel, src);
        }
        let fits = match port.side {
            Side::Any | Side::Unguarded => true,
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

    /// The checks of source and destination that need no identity: they differ, reverse path, places.
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

    /// Checks that a pod's packet has the source Ethernet address of its node; on a router, of the next hop to the
    /// pod.
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
            // No node is known for an address that no pod has: leave it to policy.
            (PortKind::Wire { .. }, IdentityKind::Unknown) => Ok(()),
            (PortKind::Wire { .. }, _) => self.check_node_station(forwarding, port, station, src),
            (_, IdentityKind::Node) => Ok(()),
            _ => match forwarding.is_mac_of_next_hop(packet.src, port, station) {
                Ok(true) => Ok(()),
                Ok(false) => Err(DropReason::SpoofedSource),
                Err(unknown) => {
                    // The source has not been seen on its link yet: the kernel resolves it, and the next packet
                    // passes. Do not resolve sources that policy would drop anyway, or forged sources would each
                    // cause a probe.
                    let policy = self.snapshot;
                    if src.kind == IdentityKind::Pod || policy.is_some_and(|it| it.allow_unknown()) {
                        self.shared.request_resolve(unknown);
                    }
                    Err(DropReason::NeighbourUnresolved)
                }
            },
        }
    }

    /// The same on a wire, where nodes' Ethernet addresses are learnt from their own ARP and neighbour discovery.
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
                // The node is probed; the next packet passes.
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

    /// Reports the station that ARP or neighbour discovery claims for a node. Returns false if the claim contradicts
    /// a known station.
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
            self.shared.report_station(news);
            return true;
        }
        self.report_station(news);
        known.is_none()
    }

    /// Reports what any sender can cause, and leaves half of the queue to known stations: otherwise an attacker could
    /// crowd out their answers and take their place.
    fn report_station(&self, news: StationReport) {
        let queue = &self.shared.station_reports;
        if queue.len() < queue.capacity() / 2 {
            self.shared.report_station(news);
        }
    }

    /// Judges a packet as new, in its own direction.
    fn decide_packet(&self, snapshot: &Snapshot, port: &Port, packet: &Packet) -> Result<Judgement, Denial> {
        let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
        let key = packet.key(port.zone);
        let exemption = self.node_exemption(port, (key.src, key.dst), key.protocol, &src, &dst);
        self.decide(snapshot, &key, packet.policy_l4(), &src, &dst, exemption)
    }

    /// Judges a new flow by policy and by the dataplane's own rules. Returns only judgements that allow.
    fn decide(
        &self,
        snapshot: &Snapshot,
        key: &FlowKey,
        l4: L4,
        src: &Identity,
        dst: &Identity,
        node: NodeExemption,
    ) -> Result<Judgement, Denial> {
        let judgement = snapshot.judge(src, dst, key.src, key.dst, l4, node);
        self.check_judgement(key, src, dst, judgement)
    }

    /// Applies the dataplane's own rules (services, tunnels) to a judgement.
    pub(super) fn check_judgement(
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
        // The packet inside a tunnel has another source, which is not checked. Nodes may have tunnels among
        // themselves.
        let forbidden = matches!(src.kind, Pod | Unknown) || dst.kind == Node && src.kind != Node;
        let tunnels = &self.shared.config.tunnels;
        // Between pods, what follows too long a chain of headers matters only to the receiver.
        let hides = tunnels.may_hide_in(key) && dst.kind != Pod;
        if forbidden && (hides || tunnels.matches(key)) {
            return Err(Denial {
                judgement: Some(judgement),
                ..DropReason::Encapsulation.into()
            });
        }
        Ok(judgement)
    }

    /// Whether a node's address is trusted (SEMANTICS 47): the packet goes to a node, arrives where only nodes are,
    /// or is this machine's own. Tunnel protocols are not exempt.
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
        let from_node = src.kind == IdentityKind::Node
            && (port.kind == PortKind::Host || matches!(port.side, Side::Nodes | Side::Unguarded));
        if from_node || dst.kind == IdentityKind::Node {
            NodeExemption::Trusted
        } else {
            NodeExemption::Untrusted
        }
    }

    /// Whether one end of a flow is this machine, and it hosts pods.
    fn involves_this_node(&self, key: &FlowKey) -> bool {
        self.shared.config.hosts_pods
            && self
                .forwarding
                .is_some_and(|forwarding| forwarding.is_local(key.src) || forwarding.is_local(key.dst))
    }

    /// The quota account of an address that arrived at a port, if its identity is not known.
    pub(super) fn account_at_port(&self, addr: Addr, port: &Port) -> u32 {
        match port.kind {
            PortKind::Pod => self.seed.account(addr),
            _ => self.seed.outside_account(addr),
        }
    }

    /// The quota account of an endpoint.
    pub(super) fn account(&self, addr: Addr, identity: &Identity) -> u32 {
        match identity.kind {
            IdentityKind::External => self.seed.outside_account(addr),
            _ => self.seed.account(addr),
        }
    }
}

/// The longest ICMP error of a packet's family.
pub(super) fn longest_error(packet: &Packet) -> u16 {
    if packet.src.is_v4() {
        LONGEST_ERROR_V4
    } else {
        LONGEST_ERROR_V6
    }
}

/// The source Ethernet address of a frame.
#[inline]
pub(super) fn source_mac(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(6..12)?.try_into().ok()
}

/// The epochs of both ends, mixed with their kinds: an address without an endpoint may turn from external into
/// unknown, and nothing else about it changes.
pub(super) fn epochs_of(src: &Identity, dst: &Identity) -> [u64; 2] {
    [src, dst].map(|end| end.epoch.wrapping_add((end.kind as u64) << 56))
}

/// Whether flows of this end may have an entry (SEMANTICS 53).
pub(super) fn may_have_entry(identity: &Identity) -> bool {
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

pub(super) fn stamp(
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
