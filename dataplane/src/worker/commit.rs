//! Commit: updates flow state for packets that are forwarded, and only for those.

use crate::{
    classify::Generation,
    flow::{
        entry::AllowedBy, fragments::DatagramVerdict, hash::KeyHash, sctp, state::FlowDirection,
        table::InsertError, tcp,
    },
    io::PacketIo,
    port::{Port, PortId, PortKind, PortTag},
    verdict::DropReason,
    wire::{Fragment, Packet, Transport},
};

use super::{
    WorkerTurn,
    judge::source_mac,
    judge::{
        FlowProgress, FlowStep, FlowUpdate, NewFlow, Orientation, Revalidation, SequenceUpdate, epochs_of,
    },
};

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Updates the flow of a packet that leaves by `out`. Fails if the packet begins a flow that needs an entry and
    /// the table has no room.
    #[inline(always)]
    pub(super) fn commit(
        &mut self,
        update: &FlowUpdate,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
    ) -> Result<(), DropReason> {
        match update {
            FlowUpdate::Advance(step) => {
                self.advance(*step, out, true);
                self.count(*step, frame, packet, SequenceUpdate::Advance);
            }
            FlowUpdate::Update(progress) => self.update_flow(progress, port, out, frame, packet),
            FlowUpdate::Create(new_flow) => self.create_flow(new_flow, port, out, frame, packet)?,
            FlowUpdate::Unchanged => self.count_stateless(),
            FlowUpdate::IcmpError { index, account } => self.count_icmp_error(*index, *account),
            FlowUpdate::TunnelError { account } => self.count_tunnel_error(*account),
        }
        if let Some(fragment) = packet.fragment {
            self.track_datagram(port, packet, hash, &fragment);
        }
        Ok(())
    }

    #[inline(never)]
    fn update_flow(
        &mut self,
        progress: &FlowProgress,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
    ) {
        if progress.rebinds || !matches!(progress.revalidation, Revalidation::Current) {
            self.refresh_decision(progress, port, out, frame);
        }
        self.advance(progress.step, out, progress.refreshes);
        if progress.orientation != Orientation::Unchanged {
            self.orient(progress);
        }
        self.count(progress.step, frame, packet, progress.sequence);
    }

    #[inline(always)]
    fn advance(&mut self, step: FlowStep, out: PortId, refreshes: bool) {
        let now = self.now;
        self.table.set_state(step.index, step.state, now);
        let entry = self.table.entry_mut(step.index);
        if refreshes {
            entry.touch(now);
        }
        if step.direction == FlowDirection::Original && !entry.is_bound(FlowDirection::Reply, out) {
            self.rebind_reply_port(step.index, out);
        }
    }

    #[inline(always)]
    fn count(&mut self, step: FlowStep, frame: &[u8], packet: &Packet, sequence: SequenceUpdate) {
        let entry = self.table.entry_mut(step.index);
        entry.count(step.direction, packet.total_length());
        match packet.transport {
            Transport::Tcp { .. } if sequence != SequenceUpdate::Ignore => {
                if let Some(segment) = tcp::Segment::of(frame, packet) {
                    let anew = sequence == SequenceUpdate::Restart;
                    entry.windows_mut().observe(step.direction, &segment, anew);
                }
            }
            Transport::Sctp { .. } => sctp::observe(entry.windows_mut(), step.direction, frame, packet),
            _ => {}
        }
        self.stats.counters.flow_hits.add(1);
    }

    /// The original leaves by another port than before: its route has changed, so rebind the port where replies
    /// arrive, unless that port is another hop of the same multipath route.
    #[cold]
    fn rebind_reply_port(&mut self, index: usize, out: PortId) {
        let entry = self.table.entry(index);
        let dst = entry.key().dst;
        let still_leads_there = entry
            .port(FlowDirection::Reply)
            .and_then(|bound| self.port(bound))
            .zip(self.forwarding)
            .is_some_and(|(bound, forwarding)| forwarding.leads_to(dst, bound));
        if !still_leads_there {
            self.table.entry_mut(index).bind(FlowDirection::Reply, out);
        }
    }

    #[cold]
    fn refresh_decision(&mut self, progress: &FlowProgress, port: &Port, out: PortId, frame: &[u8]) {
        let generation = self.generation();
        let binds_stations = self.binds_macs(port, out);
        let original_port_tag = self.original_port_tag(progress.step.direction, port, out);
        let entry = self.table.entry_mut(progress.step.index);
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
        if !progress.rebinds {
            return;
        }
        entry.bind(progress.step.direction, port.id);
        // On a router, a reply does not show by which port the original arrived: routing may be asymmetric.
        if progress.step.direction == FlowDirection::Original || matches!(port.kind, PortKind::Wire { .. }) {
            entry.bind(progress.step.direction.reversed(), out);
        }
        if let Some(tag) = original_port_tag {
            entry.set_original_port_tag(tag);
        }
        if binds_stations {
            entry.bind_mac(progress.step.direction, source_mac(frame));
        }
    }

    /// The tag of the wire's end where packets of the original direction arrive.
    fn original_port_tag(&self, direction: FlowDirection, port: &Port, out: PortId) -> Option<PortTag> {
        if !matches!(port.kind, PortKind::Wire { .. }) {
            return None;
        }
        match direction {
            FlowDirection::Original => Some(port.tag),
            FlowDirection::Reply => self.port(out).map(|out| out.tag),
        }
    }

    /// Whether a flow across a wire is bound to source Ethernet addresses in either direction.
    fn binds_macs(&self, port: &Port, out: PortId) -> bool {
        matches!(port.kind, PortKind::Wire { .. })
            && (port.checks_source_mac || self.port(out).is_some_and(|out| out.checks_source_mac))
    }

    #[cold]
    fn orient(&mut self, progress: &FlowProgress) {
        let entry = self.table.entry_mut(progress.step.index);
        match progress.orientation {
            Orientation::Unchanged => {}
            Orientation::ReplyAllowed => entry.allow_reply(),
            Orientation::Oriented => {
                entry.orient();
                self.stats.counters.flows.picked_up.add(1);
            }
        }
    }

    #[inline(never)]
    fn create_flow(
        &mut self,
        new_flow: &NewFlow,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<(), DropReason> {
        let now = self.now;
        let binds_stations = self.binds_macs(port, out);
        let original_port_tag = self.original_port_tag(new_flow.direction, port, out);
        if let Some(old) = new_flow.replaces {
            self.table.remove(old);
        }
        let NewFlow {
            key,
            state,
            accounts,
            stamp,
            direction,
            ..
        } = new_flow;
        match self.table.insert(key, *state, *accounts, stamp, now) {
            Ok(index) => {
                let entry = self.table.entry_mut(index);
                entry.bind(*direction, port.id);
                if *direction == FlowDirection::Original || matches!(port.kind, PortKind::Wire { .. }) {
                    entry.bind(direction.reversed(), out);
                }
                if let Some(tag) = original_port_tag {
                    entry.set_original_port_tag(tag);
                }
                if binds_stations {
                    entry.bind_mac(*direction, source_mac(frame));
                }
                entry.count(*direction, packet.total_length());
                if let Some(segment) = tcp::Segment::of(frame, packet) {
                    entry.windows_mut().observe(*direction, &segment, true);
                }
                sctp::observe(entry.windows_mut(), *direction, frame, packet);
                if *direction == FlowDirection::Reply {
                    self.stats.counters.flows.picked_up.add(1);
                }
                if stamp.allowed_by == AllowedBy::Failsafe {
                    self.stats.counters.failsafe.add(1);
                }
                Ok(())
            }
            Err(_) if self.can_pass_without_entry(port, new_flow) => {
                self.stats.counters.stateless.add(1);
                Ok(())
            }
            Err(full) => Err(drop_reason(full)),
        }
    }

    #[cold]
    pub(super) fn count_stateless(&mut self) {
        let counters = &self.stats.counters;
        match self.snapshot {
            Some(_) => counters.stateless.add(1),
            None => counters.failsafe.add(1),
        }
    }

    #[cold]
    pub(super) fn count_icmp_error(&mut self, index: usize, account: u32) {
        let now = self.now;
        let _ = self.icmp_passed.bucket(account).take(now); // `has_token` was checked by judge
        self.table.entry_mut(index).count_icmp_error(now);
        self.stats.counters.icmp_related.add(1);
    }

    #[cold]
    fn count_tunnel_error(&mut self, account: u32) {
        let now = self.now;
        let _ = self.icmp_passed.bucket(account).take(now); // `has` was checked by judge
        self.stats.counters.icmp_related.add(1);
    }

    /// Remembers the verdict of a first fragment for the later ones.
    #[cold]
    pub(super) fn track_datagram(
        &mut self,
        port: &Port,
        packet: &Packet,
        hash: KeyHash,
        fragment: &Fragment,
    ) {
        if fragment.offset != 0 {
            return;
        }
        let passed = match self.snapshot {
            None => DatagramVerdict {
                generation: Generation(0),
                epochs: [0; 2],
            },
            Some(snapshot) => DatagramVerdict {
                generation: snapshot.generation(),
                epochs: epochs_of(&snapshot.identify(packet.src), &snapshot.identify(packet.dst)),
            },
        };
        let (key, datagram) = self.datagram(port, packet, fragment);
        let now = self.now;
        let fragments = &mut self.shard_mut(hash).fragments;
        fragments.track(&key, datagram, fragment, port.id, passed, now);
    }
}

/// Why a packet drops whose flow the table has no room for.
pub(super) fn drop_reason(full: InsertError) -> DropReason {
    match full {
        InsertError::Full => DropReason::FlowTableFull,
        InsertError::HalfOpen => DropReason::HalfOpenLimit,
        InsertError::Quota => DropReason::EndpointQuota,
    }
}
