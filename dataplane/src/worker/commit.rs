//! Commit: what is remembered of a packet that is forwarded, and of no other.

use crate::{
    classify::Generation,
    flow::{entry::Ground, fragments::Passed, hash::KeyHash, sctp, state::Direction, table::NoPlace, tcp},
    io::PacketIo,
    port::{Port, PortId, PortKind, PortTag},
    verdict::DropReason,
    wire::{Fragment, Packet, Transport},
};

use super::{
    TurnOf,
    judge::station,
    judge::{Beginning, Change, Numbers, Orientation, Progress, Renewal, Step, epochs_of},
};

impl<Io: PacketIo> TurnOf<'_, Io> {
    /// Brings the flow of a packet up to date that leaves by `out`. Fails where the packet begins a flow that needs an
    /// entry and there is no place for one.
    #[inline(always)]
    pub(super) fn commit(
        &mut self,
        change: &Change,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
        hash: KeyHash,
    ) -> Result<(), DropReason> {
        match change {
            Change::Pass(step) => {
                self.go_on(*step, out, true);
                self.count(*step, frame, packet, Numbers::GoOn);
            }
            Change::GoOn(progress) => self.go_on_further(progress, port, out, frame, packet),
            Change::Begin(beginning) => self.begin(beginning, port, out, frame, packet)?,
            Change::Nothing => self.pass_without_entry(),
            Change::Related { index, account } => self.pass_error(*index, *account),
        }
        if let Some(fragment) = packet.fragment {
            self.follow(port, packet, hash, &fragment);
        }
        Ok(())
    }

    #[inline(never)]
    fn go_on_further(
        &mut self,
        progress: &Progress,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
    ) {
        if progress.binds || !matches!(progress.renewal, Renewal::Current) {
            self.renew_entry(progress, port, out, frame);
        }
        self.go_on(progress.step, out, progress.refreshes);
        if progress.orientation != Orientation::Unchanged {
            self.orient(progress);
        }
        self.count(progress.step, frame, packet, progress.numbers);
    }

    #[inline(always)]
    fn go_on(&mut self, step: Step, out: PortId, refreshes: bool) {
        let now = self.now;
        self.table.set_state(step.index, step.state, now);
        let entry = self.table.entry_mut(step.index);
        if refreshes {
            entry.touch(now);
        }
        if step.direction == Direction::Original && !entry.is_bound(Direction::Reply, out) {
            self.leaves_elsewhere(step.index, out);
        }
    }

    #[inline(always)]
    fn count(&mut self, step: Step, frame: &[u8], packet: &Packet, numbers: Numbers) {
        let entry = self.table.entry_mut(step.index);
        entry.count(step.direction, packet.total_length());
        match packet.transport {
            Transport::Tcp { .. } if numbers != Numbers::Ignored => {
                if let Some(segment) = tcp::Segment::of(frame, packet) {
                    let anew = numbers == Numbers::Begin;
                    entry.windows_mut().observe(step.direction, &segment, anew);
                }
            }
            Transport::Sctp { .. } => sctp::observe(entry.windows_mut(), step.direction, frame, packet),
            _ => {}
        }
        self.stats.counters.flow_hits.add(1);
    }

    /// The original leaves by another port than before: its route has changed, so replies come by another one. Not where
    /// they come by another of several ways that the route has.
    #[cold]
    fn leaves_elsewhere(&mut self, index: usize, out: PortId) {
        let entry = self.table.entry(index);
        let dst = entry.key().dst;
        let still_leads_there = entry
            .port(Direction::Reply)
            .and_then(|bound| self.port(bound))
            .zip(self.forwarding)
            .is_some_and(|(bound, forwarding)| forwarding.leads_to(dst, bound));
        if !still_leads_there {
            self.table.entry_mut(index).bind(Direction::Reply, out);
        }
    }

    #[cold]
    fn renew_entry(&mut self, progress: &Progress, port: &Port, out: PortId, frame: &[u8]) {
        let generation = self.generation();
        let binds_stations = self.binds_stations(port, out);
        let came_by = self.came_by(progress.step.direction, port, out);
        let entry = self.table.entry_mut(progress.step.index);
        match progress.renewal {
            Renewal::Current => {}
            Renewal::Restamp => {
                entry.restamp(generation);
                self.stats.counters.restamped.add(1);
            }
            Renewal::Rejudged(stamp) => {
                entry.rejudged(&stamp);
                self.stats.counters.rejudged.add(1);
            }
        }
        if !progress.binds {
            return;
        }
        entry.bind(progress.step.direction, port.id);
        // A reply does not tell by which port the original came on a router: that may be another way.
        if progress.step.direction == Direction::Original || matches!(port.kind, PortKind::Wire { .. }) {
            entry.bind(progress.step.direction.flipped(), out);
        }
        if let Some(tag) = came_by {
            entry.set_came_by(tag);
        }
        if binds_stations {
            entry.bind_station(progress.step.direction, station(frame));
        }
    }

    /// By which end of a wire packets of the original direction come in, of a packet that crosses it.
    fn came_by(&self, direction: Direction, port: &Port, out: PortId) -> Option<PortTag> {
        if !matches!(port.kind, PortKind::Wire { .. }) {
            return None;
        }
        match direction {
            Direction::Original => Some(port.tag),
            Direction::Reply => self.port(out).map(|out| out.tag),
        }
    }

    /// Whether packets of a flow across a wire have to bear an Ethernet address, in either direction.
    fn binds_stations(&self, port: &Port, out: PortId) -> bool {
        matches!(port.kind, PortKind::Wire { .. })
            && (port.binds_sources || self.port(out).is_some_and(|out| out.binds_sources))
    }

    #[cold]
    fn orient(&mut self, progress: &Progress) {
        let entry = self.table.entry_mut(progress.step.index);
        match progress.orientation {
            Orientation::Unchanged => {}
            Orientation::ReplyAllowed => entry.cover_reply(),
            Orientation::Oriented => {
                entry.orient();
                self.stats.counters.flows.picked_up.add(1);
            }
        }
    }

    #[inline(never)]
    fn begin(
        &mut self,
        beginning: &Beginning,
        port: &Port,
        out: PortId,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<(), DropReason> {
        let now = self.now;
        let binds_stations = self.binds_stations(port, out);
        let came_by = self.came_by(beginning.direction, port, out);
        if let Some(old) = beginning.replaces {
            self.table.remove(old);
        }
        let Beginning {
            key,
            state,
            charged,
            stamp,
            direction,
            ..
        } = beginning;
        match self.table.insert(key, *state, *charged, stamp, now) {
            Ok(index) => {
                let entry = self.table.entry_mut(index);
                entry.bind(*direction, port.id);
                if *direction == Direction::Original || matches!(port.kind, PortKind::Wire { .. }) {
                    entry.bind(direction.flipped(), out);
                }
                if let Some(tag) = came_by {
                    entry.set_came_by(tag);
                }
                if binds_stations {
                    entry.bind_station(*direction, station(frame));
                }
                entry.count(*direction, packet.total_length());
                if let Some(segment) = tcp::Segment::of(frame, packet) {
                    entry.windows_mut().observe(*direction, &segment, true);
                }
                sctp::observe(entry.windows_mut(), *direction, frame, packet);
                if *direction == Direction::Reply {
                    self.stats.counters.flows.picked_up.add(1);
                }
                if stamp.ground == Ground::Failsafe {
                    self.stats.counters.failsafe.add(1);
                }
                Ok(())
            }
            Err(_) if self.can_do_without(port, beginning) => {
                self.stats.counters.stateless.add(1);
                Ok(())
            }
            Err(NoPlace::Full) => Err(DropReason::FlowTableFull),
            Err(NoPlace::HalfOpen) => Err(DropReason::HalfOpenLimit),
            Err(NoPlace::Quota) => Err(DropReason::EndpointQuota),
        }
    }

    #[cold]
    fn pass_without_entry(&mut self) {
        let counters = &self.stats.counters;
        match self.snapshot {
            Some(_) => counters.stateless.add(1),
            None => counters.failsafe.add(1),
        }
    }

    #[cold]
    fn pass_error(&mut self, index: usize, account: u32) {
        let now = self.now;
        let _ = self.icmp_passed.of(account).take(now); // it was looked whether there is one
        self.table.entry_mut(index).count_error(now);
        self.stats.counters.icmp_related.add(1);
    }

    /// Remembers under what a first fragment passed, for the later ones.
    #[cold]
    fn follow(&mut self, port: &Port, packet: &Packet, hash: KeyHash, fragment: &Fragment) {
        if fragment.offset != 0 {
            return;
        }
        let passed = match self.snapshot {
            None => Passed {
                generation: Generation(0),
                epochs: [0; 2],
            },
            Some(snapshot) => Passed {
                generation: snapshot.generation(),
                epochs: epochs_of(&snapshot.identify(packet.src), &snapshot.identify(packet.dst)),
            },
        };
        let (key, datagram) = self.datagram(port, packet, fragment);
        let now = self.now;
        let fragments = &mut self.shard(hash).fragments;
        fragments.follow(&key, datagram, fragment, port.id, passed, now);
    }
}
