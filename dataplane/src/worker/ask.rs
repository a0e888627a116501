//! Packets that the kernel of a node asks about: judged as any other, by their true pair, and sent back to where they were
//! about to leave; the decision goes into the flow cache.
//!
//! ```text
//! header -> true pair -> own shard, else hand over -> look up -> judge the local ends -> commit -> cache -> answer
//! ```
//! What differs from other ports: the kernel has routed the packet and found out where its source may be; connection tracking
//! says who began. A worker sees few packets of a flow, so their sequence numbers tell it nothing.
#![allow(clippy::result_large_err)] // as in `judge`: nothing is allocated per packet

use crate::{
    addr::Addr,
    classify::{Identity, IdentityKind, Judgement, L4, NONE, NodeExemption, Snapshot},
    dataplane::Mode,
    flow::{
        entry::AllowedBy,
        fragments::{Admission, DatagramVerdict},
        hash::KeyHash,
        state::{self, Action, FlowDirection, FlowEvent, State},
    },
    frame::Frame,
    io::PacketIo,
    node::{
        ask::{Ask, HEADER_BYTES, LocalEnds, Tracking},
        cache::{self, CacheHash, Decision},
        epochs,
    },
    port::{Port, PortKind},
    verdict::DropReason,
    wire::{FlowKey, Packet, Parsed, Transport, protocol},
};

use super::{
    Disposition, PacketMeta, WorkerTurn,
    judge::{
        Denial, FlowMatch, FlowProgress, FlowStep, FlowUpdate, Lookup, NewFlow, Orientation, Revalidation,
        SequenceUpdate, epochs_of, longest_error, may_have_entry, stamp,
    },
};

/// A packet, its header, and the port that both came by.
struct Asked<'a> {
    ask: Ask,
    port: &'a Port,
    packet: &'a Packet,
    hash: KeyHash,
    zone: u32,
}

impl Asked<'_> {
    /// Of the packet, in its direction.
    fn key(&self) -> FlowKey {
        self.packet.key(self.zone)
    }

    /// The direction, as far as connection tracking knows it.
    fn tracked(&self) -> Option<FlowDirection> {
        match self.ask.tracking {
            Tracking::Tracked(direction) | Tracking::Related(direction) => Some(direction),
            Tracking::Untracked => None,
        }
    }

    /// The direction to judge: an untracked packet begins what it belongs to.
    fn direction(&self) -> FlowDirection {
        self.tracked().unwrap_or(FlowDirection::Original)
    }

    /// The ends that this node judges of a flow that the packet belongs to in a direction. An untracked packet's header
    /// speaks of the packet.
    fn ends_of(&self, direction: FlowDirection) -> LocalEnds {
        let LocalEnds { src, dst } = self.ask.local_ends();
        match (self.tracked(), direction) {
            (None, FlowDirection::Reply) => LocalEnds { src: dst, dst: src },
            _ => LocalEnds { src, dst },
        }
    }

    /// Whether the end that answers a tracked flow begins an association of SCTP there, which may be none of what was allowed.
    fn begins_backwards(&self) -> bool {
        self.tracked() == Some(FlowDirection::Reply) && FlowEvent::of(self.packet) == FlowEvent::Init
    }

    /// Whether a decision about this packet is one about its tuple. About the begin of an association it is so only where it
    /// is known which end may begin: answers to what that end began have the same tuple as what the other would begin.
    fn is_cacheable(&self) -> bool {
        let may_be_backwards =
            FlowEvent::of(self.packet) == FlowEvent::Init && self.tracked() != Some(FlowDirection::Original);
        self.ask.is_cacheable()
            && !may_be_backwards
            && !matches!(self.ask.tracking, Tracking::Related(_))
            && self.ask.agrees(self.packet)
            && self.packet.fragment.is_none()
    }

    /// What policies see of the packet that began, of which `key` is.
    fn policy_l4(&self, key: &FlowKey) -> L4 {
        let ported = matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        let echo = matches!(self.packet.transport, Transport::Echo { .. });
        match self.tracked() {
            Some(_) if ported && self.packet.transport != Transport::None || echo => key.policy_l4(false),
            _ => self.packet.policy_l4(),
        }
    }

    /// The state of a flow that this packet begins, or shows to have begun; None if it makes no entry.
    fn first_state(&self) -> Option<State> {
        let Some(direction) = self.tracked() else {
            return state::initial_state(self.packet);
        };
        let event = FlowEvent::of(self.packet);
        let began = match (self.packet.transport, event) {
            (Transport::Tcp { .. }, FlowEvent::Syn) => State::TcpSyn,
            (Transport::Tcp { .. }, FlowEvent::SynAck) => State::TcpSyn,
            (Transport::Tcp { .. }, FlowEvent::Ack | FlowEvent::Fin) => State::TcpEstablished,
            (Transport::Tcp { .. }, _) => return None,
            (Transport::Udp { .. }, _) => State::UdpNew,
            (Transport::Sctp { .. }, FlowEvent::Close) => return None,
            (Transport::Sctp { .. }, _) => State::SctpNew,
            (Transport::Echo { .. }, _) => State::IcmpNew,
            (Transport::Other, _) => State::OtherNew,
            _ => return None,
        };
        match state::next(began, direction, event) {
            (after, Action::Pass | Action::PassUnrefreshed) => Some(after),
            _ => Some(began),
        }
    }
}

impl<'a, Io: PacketIo> WorkerTurn<'a, Io> {
    /// Reads the header and the packet behind it into `meta`, and finds the worker that owns its shard.
    #[cold]
    pub(super) fn steer_ask(&mut self, frame: &Frame, port: &Port, meta: &mut PacketMeta) -> Disposition {
        let Some(node) = &self.shared.config.node else {
            return Disposition::Malformed(DropReason::PortUnavailable);
        };
        let ask = match Ask::read(frame.bytes(), node.nonce) {
            Ok(ask) => ask,
            Err(reason) => return Disposition::Malformed(reason),
        };
        self.asked = Some((ask.header().queue, ask.header().ticket));
        match ask.packet(frame.bytes()) {
            Parsed::Subject(packet) => meta.packet = packet,
            Parsed::NotSubject(kind) => return Disposition::NotSubject(kind),
            Parsed::Malformed(reason) => return Disposition::Malformed(reason),
        }
        meta.hash = self.seed.key(&meta.packet.owner_key(ask.zone(port.zone)));
        let owner = self.shard_map.owner(meta.hash.shard());
        if usize::from(owner) != self.index {
            return Disposition::HandOver(owner);
        }
        Disposition::Asked
    }

    /// Tells the kernel that the asks of a queue up to a ticket have been judged, or handed to the workers that judge them.
    #[cold]
    pub(super) fn take_asks(&self, queue: u32, ticket: u32) {
        if let Some(node) = &self.shared.config.node {
            node.queues.take(queue, ticket);
        }
    }

    /// A packet that the kernel asks about, of this worker's shards.
    #[cold]
    pub(super) fn process_ask(&mut self, mut frame: Frame, packet: &Packet, hash: KeyHash) {
        let Some(port) = self.port(frame.port()).filter(|port| port.kind == PortKind::Ask) else {
            self.discard(frame, DropReason::PortUnavailable);
            return;
        };
        let nonce = self.shared.config.node.as_ref().map(|node| node.nonce);
        let ask = nonce.and_then(|nonce| Ask::read(frame.bytes(), nonce).ok());
        let Some(ask) = ask else {
            self.drop_frame(frame, DropReason::Malformed); // it was read before
            return;
        };
        let zone = ask.zone(port.zone);
        let asked = Asked {
            ask,
            port,
            packet,
            hash,
            zone,
        };
        let lookup = self.look_up_ask(&asked);
        let of_earlier_pod = match (&lookup, self.snapshot) {
            (Lookup::Miss, Some(snapshot)) if self.may_answer_earlier_pod(snapshot, &asked) => Some(snapshot),
            _ => None,
        };
        let verdict = match of_earlier_pod {
            Some(snapshot) => self.judge_backwards(snapshot, &asked),
            None => self.judge_ask(&asked, lookup),
        };
        let (update, allowed) = match &verdict {
            Ok(update) => (update, true),
            Err(denial) => {
                if !self.record_denial(&frame, packet, port, denial) {
                    // The pod may begin a flow with the same tuple itself.
                    if of_earlier_pod.is_none() {
                        self.cache_denial(&asked, denial);
                    }
                    self.answer_asked_denial(&mut frame, &asked, denial);
                    self.discard(frame, denial.reason);
                    return;
                }
                (&denial.in_audit, false)
            }
        };
        match self.commit_ask(&asked, update) {
            Ok(Some(index)) => self.cache_flow(&asked, index, allowed),
            Ok(None) => {}
            Err(full) => {
                self.drop_packet(frame, packet, port, full);
                return;
            }
        }
        if !asked.ask.answer(&mut frame) {
            self.discard(frame, DropReason::Truncated);
            return;
        }
        self.send(port.id, frame);
    }

    /// Answers a denied packet of a pod of this node, as [`Self::answer_denial`] does, straight to the pod's port: on the kernel's way
    /// back it would be a packet of a denied flow. Senders elsewhere get nothing. The frame is changed to what the pod sent.
    fn answer_asked_denial(&mut self, frame: &mut Frame, asked: &Asked<'_>, denial: &Denial) {
        // What is cacheable is a whole packet with all its headers.
        if !asked.ask.is_from_local_pod() || !asked.is_cacheable() {
            return;
        }
        let behind_header = frame.bytes().get(HEADER_BYTES..).unwrap_or_default();
        let Some(answer) = self.choose_answer(behind_header, asked.packet, denial) else {
            return;
        };
        let sent = asked.ask.untranslate(frame.bytes_mut(), asked.packet);
        let Some(mut out) = self.io.allocate() else {
            return;
        };
        let written = out.set_len(answer.length(&sent, frame.bytes()))
            && answer.write(out.bytes_mut(), frame.bytes(), &sent, sent.dst)
            && turn_around(out.bytes_mut())
            && asked.ask.answer_sender(&mut out);
        if !written {
            self.io.release(out);
            return;
        }
        out.set_port(asked.port.id);
        self.send_answer(asked.port.id, out);
    }

    fn look_up_ask(&mut self, asked: &Asked<'_>) -> Lookup {
        let packet = asked.packet;
        if let Some(fragment) = packet.fragment {
            let (key, datagram) = self.datagram(asked.port, packet, &fragment);
            let now = self.now;
            let fragments = &mut self.shard_mut(asked.hash).fragments;
            match fragments.admit(&key, datagram, &fragment, asked.port.id, now) {
                Admission::Judge => {}
                Admission::Inherit(passed) => return Lookup::LaterFragment(passed),
                Admission::Drop(reason) => return Lookup::BadFragment(reason),
            }
        }
        let key = match packet.transport {
            Transport::IcmpError { quoted: Some(_) } => packet.owner_key(asked.zone),
            Transport::IcmpError { .. } | Transport::Icmp { .. } | Transport::None => return Lookup::Miss,
            _ => asked.key(),
        };
        let (Some(snapshot), Some((index, direction))) = (self.snapshot, self.table.find(asked.hash, &key))
        else {
            return Lookup::Miss;
        };
        // The kernel has seen packets since.
        self.table.refresh(index, self.now);
        let Some(known) = self.revalidate(snapshot, asked.hash, index, direction) else {
            return Lookup::Miss;
        };
        match packet.transport {
            Transport::IcmpError { .. } => Lookup::Quoted(known),
            _ => Lookup::Hit(known),
        }
    }

    fn judge_ask(&self, asked: &Asked<'_>, lookup: Lookup) -> Result<FlowUpdate, Denial> {
        let packet = asked.packet;
        let Some(snapshot) = self.snapshot else {
            return match lookup {
                Lookup::BadFragment(reason) => Err(reason.into()),
                Lookup::LaterFragment(_) => Ok(FlowUpdate::Unchanged),
                _ if self.shared.config.failsafe.admits_without_state(packet) => Ok(FlowUpdate::Unchanged),
                _ => Err(DropReason::NoSnapshot.into()),
            };
        };
        if asked.begins_backwards() {
            return self.judge_backwards(snapshot, asked);
        }
        match lookup {
            Lookup::Hit(known) => {
                // A flow that connection tracking says to have begun at its other end is another one, and one of whose ends
                // has come to this node since is judged for that.
                let same = asked
                    .tracked()
                    .is_none_or(|direction| direction == known.direction);
                let ends = asked.ends_of(known.direction);
                let judged = self.table.entry(known.index).judged_ends();
                match same && judged.is_some_and(|judged| judged.cover(ends)) {
                    true => self.judge_asked_flow(snapshot, asked, known),
                    false => self.judge_asked_first(snapshot, asked, Some(known.index)),
                }
            }
            Lookup::Miss if matches!(packet.transport, Transport::IcmpError { .. }) => {
                Err(DropReason::IcmpUnrelated.into())
            }
            Lookup::Miss => {
                self.stats.counters.flow_misses.add(1);
                self.judge_asked_first(snapshot, asked, None)
            }
            Lookup::Quoted(known) => self.judge_asked_error(snapshot, asked, known),
            Lookup::LaterFragment(passed) => self.judge_asked_fragment(snapshot, asked, passed),
            Lookup::BadFragment(reason) => Err(reason.into()),
        }
    }

    fn judge_asked_fragment(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        passed: DatagramVerdict,
    ) -> Result<FlowUpdate, Denial> {
        let [src, dst] = [asked.packet.src, asked.packet.dst].map(|addr| snapshot.identify(addr));
        if passed.generation != snapshot.generation() && passed.epochs != epochs_of(&src, &dst) {
            return Err(DropReason::FragmentUnknown.into());
        }
        Ok(FlowUpdate::Unchanged)
    }

    /// Judges the ends that are this node's.
    pub(super) fn decide_ends(
        &self,
        snapshot: &Snapshot,
        key: &FlowKey,
        l4: L4,
        [src, dst]: [&Identity; 2],
        ends: LocalEnds,
    ) -> Result<Judgement, Denial> {
        let judgement = snapshot.judge(src, dst, key.src, key.dst, l4, NodeExemption::Untrusted);
        self.check_judgement(key, src, dst, ends.restrict(judgement))
    }

    fn judge_asked_flow(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        known: FlowMatch,
    ) -> Result<FlowUpdate, Denial> {
        let FlowMatch {
            index,
            direction,
            revalidation,
        } = known;
        let entry = self.table.entry(index);
        let event = FlowEvent::of(asked.packet);
        let Some(before) = entry.state() else {
            return Err(DropReason::SnapshotInvalid.into()); // `find` returns entries in use only
        };
        let (state, action) = state::next(before, direction, event);
        let is_tracked = asked.tracked().is_some();
        let (state, refreshes) = match action {
            Action::Pass => (state, true),
            Action::PassUnrefreshed => (state, false),
            Action::Invalid if !is_tracked || event == FlowEvent::InvalidFlags => {
                return Err(DropReason::TcpInvalid.into());
            }
            // Connection tracking follows every segment, and lets none pass that does not fit.
            Action::Invalid => (before, true),
            Action::Reopen => return self.judge_asked_first(snapshot, asked, Some(index)),
            Action::JudgeAlone if is_tracked && before != State::Revoked => (before, true),
            Action::JudgeAlone => {
                self.judge_asked_alone(snapshot, asked)?;
                return Ok(FlowUpdate::Unchanged);
            }
        };
        let mut progress = FlowProgress {
            step: FlowStep {
                index,
                direction,
                state,
            },
            revalidation,
            refreshes,
            rebinds: false,
            orientation: Orientation::Unchanged,
            sequence: SequenceUpdate::Ignore,
        };
        let would_drop = match revalidation {
            Revalidation::Rejudged(stamp) => match stamp.allowed_by {
                AllowedBy::Audit(reason) => Some(reason),
                _ => None,
            },
            Revalidation::Current | Revalidation::Restamp => entry.would_drop(),
        };
        if let Some(reason) = would_drop {
            return Err(Denial {
                in_audit: FlowUpdate::Update(progress),
                ..reason.into()
            });
        }
        if !entry.allows(direction) {
            // Untracked, and begun in the middle: each direction by itself.
            self.judge_asked_alone(snapshot, asked)?;
            progress.orientation = Orientation::ReplyAllowed;
        }
        Ok(FlowUpdate::Update(progress))
    }

    /// Judges a packet in its own direction, whatever flow it belongs to.
    fn judge_asked_alone(&self, snapshot: &Snapshot, asked: &Asked<'_>) -> Result<Judgement, Denial> {
        let key = match asked.direction() {
            FlowDirection::Original => asked.key(),
            FlowDirection::Reply => asked.key().reversed(),
        };
        let [src, dst] = [key.src, key.dst].map(|addr| snapshot.identify(addr));
        let l4 = asked.policy_l4(&key);
        self.decide_ends(snapshot, &key, l4, [&src, &dst], asked.ask.local_ends())
    }

    /// Whether what the packet answers may be of a pod that had an end's address before. No entry knows it, and connection tracking
    /// knows addresses alone.
    fn may_answer_earlier_pod(&self, snapshot: &Snapshot, asked: &Asked<'_>) -> bool {
        let Some(node) = &self.shared.config.node else {
            return false;
        };
        let (original, local) = (asked.key().reversed(), asked.ask.local_ends());
        let had_another = |addr| node.owners.had_another(addr, snapshot.identify(addr).epoch);
        asked.ask.tracking == Tracking::Tracked(FlowDirection::Reply)
            && (local.src && had_another(original.src) || local.dst && had_another(original.dst))
    }

    /// Judges a packet in its own direction although connection tracking takes it for an answer: it begins an association, or
    /// answers an earlier pod. It makes no entry.
    fn judge_backwards(&self, snapshot: &Snapshot, asked: &Asked<'_>) -> Result<FlowUpdate, Denial> {
        let key = asked.key();
        if !self.shared.config.failsafe.admits(&key) {
            let LocalEnds { src, dst } = asked.ask.local_ends();
            let ends = LocalEnds { src: dst, dst: src };
            let [src, dst] = [key.src, key.dst].map(|addr| snapshot.identify(addr));
            self.decide_ends(snapshot, &key, key.policy_l4(false), [&src, &dst], ends)?;
        }
        Ok(FlowUpdate::Unchanged)
    }

    /// A packet without an entry, or one that begins a flow that replaces the entry `replaces`. An answer is judged as what
    /// it answers.
    fn judge_asked_first(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        replaces: Option<usize>,
    ) -> Result<FlowUpdate, Denial> {
        if FlowEvent::of(asked.packet) == FlowEvent::InvalidFlags {
            return Err(DropReason::TcpInvalid.into());
        }
        let direction = asked.direction();
        let key = match direction {
            FlowDirection::Original => asked.key(),
            FlowDirection::Reply => asked.key().reversed(),
        };
        let [src, dst] = [key.src, key.dst].map(|addr| snapshot.identify(addr));
        let begins = asked
            .first_state()
            .filter(|_| may_have_entry(&src) && may_have_entry(&dst));
        let begin = |state, judgement: Option<Judgement>, allowed_by| {
            FlowUpdate::Create(NewFlow {
                key,
                direction,
                state,
                stamp: stamp(snapshot, &src, &dst, judgement, allowed_by),
                accounts: [self.account(key.src, &src), self.account(key.dst, &dst)],
                replaces,
            })
        };
        if asked.packet.transport != Transport::None && self.shared.config.failsafe.admits(&key) {
            return Ok(match begins {
                Some(State::TcpMidstream) => begin(State::TcpEstablished, None, AllowedBy::Failsafe),
                Some(state) => begin(state, None, AllowedBy::Failsafe),
                None => FlowUpdate::Unchanged,
            });
        }
        let l4 = asked.policy_l4(&key);
        match self.decide_ends(snapshot, &key, l4, [&src, &dst], asked.ask.local_ends()) {
            Ok(judgement) => Ok(begins.map_or(FlowUpdate::Unchanged, |state| {
                begin(state, Some(judgement), AllowedBy::Policy)
            })),
            Err(denial) => {
                let in_audit = match begins {
                    Some(state) if self.shared.config.mode == Mode::Audit => {
                        begin(state, denial.judgement, AllowedBy::Audit(denial.reason))
                    }
                    _ => FlowUpdate::Unchanged,
                };
                Err(Denial { in_audit, ..denial })
            }
        }
    }

    /// An ICMP error passes if the flow that it is about is allowed (SEMANTICS 57). An endpoint of the cluster sends errors
    /// about its own flows alone, under any address that connection tracking knows it by; a router about any.
    fn judge_asked_error(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        known: FlowMatch,
    ) -> Result<FlowUpdate, Denial> {
        let packet = asked.packet;
        let unrelated = Err(DropReason::IcmpUnrelated.into());
        if packet.total_length() > longest_error(packet) {
            return Err(DropReason::IcmpTooLong.into());
        }
        let Transport::IcmpError { quoted: Some(quoted) } = packet.transport else {
            return unrelated;
        };
        let entry = self.table.entry(known.index);
        let audited = matches!(known.revalidation, Revalidation::Rejudged(stamp) if matches!(stamp.allowed_by, AllowedBy::Audit(_)));
        if audited || entry.state() == Some(State::Revoked) || !entry.allows(known.direction) {
            return unrelated;
        }
        let header = asked.ask.header();
        let src = snapshot.identify(packet.src);
        let is_end = match asked.tracked() {
            Some(_) => [
                header.original.src,
                header.original.dst,
                header.reply.src,
                header.reply.dst,
            ]
            .contains(&packet.src.octets()),
            // Nothing was translated: it goes to the sender of what it quotes.
            None if quoted.src != packet.dst => return unrelated,
            None => packet.src == quoted.dst,
        };
        let may_be_router = matches!(src.kind, IdentityKind::External | IdentityKind::Node);
        if !is_end && !may_be_router {
            return unrelated;
        }
        let account = match src.kind {
            IdentityKind::External => self.account(packet.dst, &snapshot.identify(packet.dst)),
            _ => self.account(packet.src, &src),
        };
        if !self.icmp_passed.has(account, self.now) || entry.icmp_errors_left(self.now) == 0 {
            return Err(DropReason::IcmpRateLimited.into());
        }
        Ok(FlowUpdate::IcmpError {
            index: known.index,
            account,
        })
    }

    /// Updates the flow of a packet that passes; answers its entry, if the decision is one about the whole flow. Fails if the
    /// packet begins an untracked flow, whose answers would not pass without an entry, and the table has no room.
    fn commit_ask(&mut self, asked: &Asked<'_>, update: &FlowUpdate) -> Result<Option<usize>, DropReason> {
        let cached = match update {
            FlowUpdate::Update(progress) => {
                self.update_asked(asked, progress);
                Some(progress.step.index)
            }
            FlowUpdate::Create(new_flow) => self.create_asked(asked, new_flow)?,
            FlowUpdate::IcmpError { index, account } => {
                self.count_icmp_error(*index, *account);
                None
            }
            // The last is never about what a kernel asks: it has taken tunnels off.
            FlowUpdate::Unchanged | FlowUpdate::Advance(_) | FlowUpdate::TunnelError { .. } => {
                self.count_stateless();
                None
            }
        };
        if let Some(fragment) = asked.packet.fragment {
            self.track_datagram(asked.port, asked.packet, asked.hash, &fragment);
        }
        Ok(cached)
    }

    fn update_asked(&mut self, asked: &Asked<'_>, progress: &FlowProgress) {
        let (now, generation) = (self.now, self.generation());
        let FlowStep {
            index,
            direction,
            state,
        } = progress.step;
        let entry = self.table.entry_mut(index);
        match progress.revalidation {
            Revalidation::Current => {}
            Revalidation::Restamp => {
                entry.restamp(generation);
                self.stats.counters.restamped.add(1);
            }
            Revalidation::Rejudged(stamp) => {
                entry.rejudge(&stamp);
                self.stats.counters.rejudged.add(1);
            }
        }
        entry.bind(direction, asked.port.id);
        if progress.orientation == Orientation::ReplyAllowed {
            entry.allow_reply();
        }
        if asked.tracked().is_some() && entry.frontend() != asked.ask.frontend() {
            let ends = entry.judged_ends().unwrap_or(asked.ask.local_ends());
            entry.set_asked(ends, asked.ask.frontend());
        }
        entry.count(direction, asked.packet.total_length());
        if progress.refreshes {
            entry.touch(now);
        }
        self.table.set_state(index, state, now);
        self.stats.counters.flow_hits.add(1);
    }

    fn create_asked(&mut self, asked: &Asked<'_>, new_flow: &NewFlow) -> Result<Option<usize>, DropReason> {
        let NewFlow {
            key,
            direction,
            state,
            stamp,
            accounts,
            replaces,
        } = new_flow;
        if let Some(old) = replaces {
            self.table.remove(*old);
        }
        let now = self.now;
        match self.table.insert(key, *state, *accounts, stamp, now) {
            Ok(index) => {
                let entry = self.table.entry_mut(index);
                entry.set_asked(asked.ask.local_ends(), asked.ask.frontend());
                entry.bind(*direction, asked.port.id);
                entry.count(*direction, asked.packet.total_length());
                if stamp.allowed_by == AllowedBy::Failsafe {
                    self.stats.counters.failsafe.add(1);
                }
                Ok(Some(index))
            }
            Err(_) if self.passes_without_entry(asked, new_flow) => {
                self.stats.counters.stateless.add(1);
                Ok(None)
            }
            Err(full) => Err(super::commit::drop_reason(full)),
        }
    }

    /// Whether a flow can pass without an entry: connection tracking knows its answers for what they are, or they would be
    /// allowed on their own.
    fn passes_without_entry(&self, asked: &Asked<'_>, new_flow: &NewFlow) -> bool {
        let alone = matches!(
            new_flow.stamp.allowed_by,
            AllowedBy::Failsafe | AllowedBy::Audit(_)
        );
        if asked.tracked().is_some() || alone || new_flow.state == State::TcpMidstream {
            return true;
        }
        let Some(snapshot) = self.snapshot else {
            return false;
        };
        let key = new_flow.key.reversed();
        let [src, dst] = [key.src, key.dst].map(|addr| snapshot.identify(addr));
        let ends = asked.ends_of(FlowDirection::Reply);
        self.decide_ends(snapshot, &key, key.policy_l4(true), [&src, &dst], ends)
            .is_ok()
    }

    /// Writes the decision about a flow into the cache, so that the kernel lets its next packets through.
    fn cache_flow(&mut self, asked: &Asked<'_>, index: usize, allowed: bool) {
        let (true, Some(snapshot), Some(node)) =
            (asked.is_cacheable(), self.snapshot, &self.shared.config.node)
        else {
            return;
        };
        let entry = self.table.entry(index);
        if entry.state().is_none_or(|state| state == State::Revoked) {
            return;
        }
        let audited = if allowed { 0 } else { cache::flag::AUDITED };
        let decision = self.decision(snapshot, asked, Ok(entry.id(self.seed)), audited);
        // An untracked flow has a tuple of each direction.
        let tuple = match asked.tracked() {
            Some(_) => FlowDirection::Original,
            None if entry.key() == asked.key() => FlowDirection::Original,
            None => FlowDirection::Reply,
        };
        if let Some(place) = node.cache.insert(hash_of(&asked.ask), &decision, self.now) {
            self.table.set_cached(index, tuple, place);
        }
    }

    /// Writes what policy denies into the cache, so that a flood of it stays in the kernel. What depends on more than the
    /// tuple and the snapshot is judged each time.
    fn cache_denial(&mut self, asked: &Asked<'_>, denial: &Denial) {
        let by_policy = matches!(
            denial.reason,
            DropReason::PolicyIngress
                | DropReason::PolicyEgress
                | DropReason::UnknownEndpoint
                | DropReason::ServiceUnsupported
        );
        let (true, true, Some(snapshot), Some(node)) = (
            by_policy,
            asked.is_cacheable(),
            self.snapshot,
            &self.shared.config.node,
        ) else {
            return;
        };
        let provenance = denial.judgement.map_or(NONE, |judgement| {
            let Judgement { ingress, egress } = judgement;
            let denied_by = if egress.allow { ingress } else { egress };
            denied_by.provenance
        });
        let decision = self.decision(snapshot, asked, Err((denial.reason, provenance)), 0);
        let _ = node.cache.insert(hash_of(&asked.ask), &decision, self.now);
    }

    fn decision(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        verdict: Result<crate::flow::FlowId, (DropReason, u32)>,
        flags: u8,
    ) -> Decision {
        let header = asked.ask.header();
        let [src, dst] = [header.original.src, header.reply.src].map(Addr::v6);
        let (from, to) = (snapshot.identify(src), snapshot.identify(dst));
        let tracked = asked.tracked().map_or(0, |_| cache::flag::TRACKED);
        Decision {
            verdict,
            zone: header.zone,
            protocol: header.protocol,
            flags: flags | tracked | asked.ask.local_ends().flags(),
            original: header.original,
            reply: header.reply,
            slots: epochs::slots((&from, src), (&to, dst)),
            in_ifindex: match asked.direction() {
                FlowDirection::Original => header.in_ifindex,
                FlowDirection::Reply => 0,
            },
        }
    }
}

/// Exchanges the Ethernet addresses behind the header; false where there are none.
fn turn_around(frame: &mut [u8]) -> bool {
    let addresses = frame
        .get_mut(HEADER_BYTES..)
        .and_then(<[u8]>::first_chunk_mut::<12>);
    addresses.map(|addresses| addresses.rotate_left(6)).is_some()
}

fn hash_of(ask: &Ask) -> CacheHash {
    let header = ask.header();
    CacheHash {
        signature: header.signature,
        buckets: header.buckets,
    }
}
