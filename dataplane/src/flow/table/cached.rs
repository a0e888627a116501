//! Flows whose packets the kernel lets through by the flow cache: what it has counted comes back into their entries, and
//! their decisions leave the cache with them.

use super::{EVICTION_SCAN, FlowTable, NONE};
use crate::{
    flow::state::{self, Action, EvictionClass, FlowDirection, FlowEvent, State},
    node::cache::{CacheIndex, Usage},
    time::Nanos,
    wire::{TcpFlags, protocol},
};

/// Half-open entries are asked about as soon as an answer may have come, and then this often.
const HALF_OPEN_PERIOD: Nanos = Nanos::from_millis(100);

const DIRECTIONS: [FlowDirection; 2] = [FlowDirection::Original, FlowDirection::Reply];

impl FlowTable {
    /// Whether entries may be of flows that the kernel asks about.
    #[inline]
    pub(crate) fn is_of_node(&self) -> bool {
        self.cache.is_some()
    }

    /// Says where a flow's decision lies in the cache; what it had there before goes.
    pub(crate) fn set_cached(&mut self, index: usize, direction: FlowDirection, place: CacheIndex) {
        let before = self.entries[index].cached(direction);
        if before.is_some() && before != Some(place) {
            self.remove_cached_one(index, direction);
        }
        self.entries[index].set_cached(direction, Some(place));
    }

    /// Brings an entry up to date with what the kernel has counted of its flow: packets, bytes, when it was last seen, its
    /// state. Answers whether there was anything to ask.
    #[inline]
    pub(crate) fn refresh(&mut self, index: usize, now: Nanos) -> bool {
        if !self.is_of_node() || !self.entries[index].is_cached() || self.entries[index].state().is_none() {
            return false;
        }
        self.take_usage(index, now);
        true
    }

    #[cold]
    fn take_usage(&mut self, index: usize, now: Nanos) {
        let flow = self.entries[index].id(&self.seed);
        for direction in DIRECTIONS {
            let Some(place) = self.entries[index].cached(direction) else {
                continue;
            };
            let usage = self
                .cache
                .as_ref()
                .and_then(|cache| cache.take_usage(place, flow));
            match usage {
                Some(usage) => self.add_usage(index, direction, &usage, now),
                // Another flow has its place by now: the next packet asks.
                None => self.entries[index].set_cached(direction, None),
            }
        }
    }

    /// Takes the decisions of a flow out of the cache.
    #[cold]
    pub(crate) fn remove_cached(&mut self, index: usize) {
        for direction in DIRECTIONS {
            self.remove_cached_one(index, direction);
        }
    }

    fn remove_cached_one(&mut self, index: usize, direction: FlowDirection) {
        let Some(place) = self.entries[index].cached(direction) else {
            return;
        };
        let flow = self.entries[index].id(&self.seed);
        let usage = self.cache.as_ref().and_then(|cache| cache.remove(place, flow));
        if let Some(usage) = usage {
            self.count_usage(index, direction, &usage);
        }
        self.entries[index].set_cached(direction, None);
    }

    /// The directions of a tuple, as directions of the flow.
    fn flow_direction(tuple: FlowDirection, way: FlowDirection) -> FlowDirection {
        match tuple {
            FlowDirection::Original => way,
            FlowDirection::Reply => way.reversed(),
        }
    }

    fn count_usage(&mut self, index: usize, tuple: FlowDirection, usage: &Usage) {
        let entry = &mut self.entries[index];
        for way in DIRECTIONS {
            let number = way as usize;
            let direction = Self::flow_direction(tuple, way);
            entry.add_counts(direction, usage.packets[number], usage.bytes[number]);
        }
        if let Some(reason) = entry.would_drop() {
            self.activity.audited[reason as usize] += usage.packets.iter().sum::<u64>();
        }
    }

    fn add_usage(&mut self, index: usize, tuple: FlowDirection, usage: &Usage, now: Nanos) {
        if usage.packets == [0; 2] {
            return;
        }
        self.count_usage(index, tuple, usage);
        let entry = &self.entries[index];
        let Some(before) = entry.state() else { return };
        let mut sent = [false; 2];
        let mut flags = [0; 2];
        for way in DIRECTIONS {
            let direction = Self::flow_direction(tuple, way) as usize;
            sent[direction] = usage.packets[way as usize] != 0;
            flags[direction] = usage.tcp_flags[way as usize];
        }
        let (state, refreshes) = state_after(before, entry.key().protocol, sent, flags);
        self.set_state(index, state, now);
        let entry = &mut self.entries[index];
        if refreshes {
            entry.touch(usage.last_seen.min(now).max(entry.last_seen()));
        }
    }

    /// Asks about the next few half-open entries, so that connections that the kernel has seen being answered are not taken
    /// for ones without an answer.
    pub(crate) fn refresh_half_open(&mut self, budget: usize, now: Nanos) {
        if !self.is_of_node() {
            return;
        }
        if self.next_half_open == NONE {
            if now.since(self.asked_half_open) < HALF_OPEN_PERIOD {
                return;
            }
            self.asked_half_open = now;
            self.next_half_open = self.half_open.oldest;
        }
        for _ in 0..budget {
            let Some(link) = self.links.get(self.next_half_open as usize) else {
                return;
            };
            let at = std::mem::replace(&mut self.next_half_open, link.next);
            self.refresh(at as usize, now);
        }
    }

    /// Asks about the oldest entries of an eviction list, until one is there that stays in it.
    pub(super) fn refresh_oldest(&mut self, class: EvictionClass, now: Nanos) {
        if !self.is_of_node() {
            return;
        }
        for _ in 0..EVICTION_SCAN {
            let list = match class {
                EvictionClass::HalfOpen => self.half_open,
                _ => self.closed,
            };
            if list.oldest == NONE || !self.refresh(list.oldest as usize, now) {
                return;
            }
            let state = self.entries[list.oldest as usize].state();
            if state.is_some_and(|state| state.eviction_class() == class) {
                return;
            }
        }
    }
}

/// The state of a flow after the kernel has seen packets of it, and whether they prolong its life. Their order is not known:
/// it is taken for the one in which a connection opens and closes.
fn state_after(before: State, protocol: u8, sent: [bool; 2], flags: [u8; 2]) -> (State, bool) {
    use FlowDirection::{Original, Reply};
    let has = |direction: FlowDirection, flag: u8| flags[direction as usize] & flag != 0;
    let mut state = before;
    let mut refreshes = false;
    let mut see = |direction, event| {
        let (next, action) = state::next(state, direction, event);
        match action {
            Action::Pass => (state, refreshes) = (next, true),
            Action::PassUnrefreshed => state = next,
            // Connection tracking has let a new connection take the place of one that was over.
            Action::Reopen if event == FlowEvent::Syn => (state, refreshes) = (State::TcpSyn, true),
            Action::Reopen | Action::JudgeAlone | Action::Invalid => {}
        }
    };
    if protocol != protocol::TCP {
        // An answer first: else a question and its answer would look like a conversation.
        let answer = match protocol {
            protocol::ICMP | protocol::ICMPV6 => FlowEvent::EchoReply,
            _ => FlowEvent::Data,
        };
        if sent[1] {
            see(Reply, answer);
        }
        if sent[0] {
            see(Original, FlowEvent::Data);
        }
        return (state, refreshes);
    }
    for (direction, flag, event) in [
        (Original, TcpFlags::SYN, FlowEvent::Syn),
        (Reply, TcpFlags::SYN, FlowEvent::SynAck),
        (Original, TcpFlags::ACK, FlowEvent::Ack),
        (Reply, TcpFlags::ACK, FlowEvent::Ack),
        (Original, TcpFlags::FIN, FlowEvent::Fin),
        (Reply, TcpFlags::FIN, FlowEvent::Fin),
        (Original, TcpFlags::RST, FlowEvent::Rst),
        (Reply, TcpFlags::RST, FlowEvent::Rst),
    ] {
        if has(direction, flag) {
            see(direction, event);
        }
    }
    (state, refreshes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = TcpFlags::SYN;
    const ACK: u8 = TcpFlags::ACK;
    const FIN: u8 = TcpFlags::FIN;
    const RST: u8 = TcpFlags::RST;

    #[track_caller]
    fn leads(before: State, flags: [u8; 2], after: State, refreshes: bool) {
        let sent = flags.map(|flags| flags != 0);
        assert_eq!(
            state_after(before, protocol::TCP, sent, flags),
            (after, refreshes)
        );
    }

    #[test]
    fn tcp_follows_the_flags_that_the_kernel_saw() {
        leads(State::TcpSyn, [0, 0], State::TcpSyn, false);
        leads(State::TcpSyn, [0, SYN | ACK], State::TcpHandshake, true);
        leads(State::TcpSyn, [ACK, SYN | ACK], State::TcpEstablished, true);
        leads(State::TcpEstablished, [ACK, ACK], State::TcpEstablished, true);
        leads(
            State::TcpEstablished,
            [ACK | FIN, ACK],
            State::TcpFinOriginal,
            true,
        );
        leads(State::TcpEstablished, [ACK, ACK | FIN], State::TcpFinReply, true);
        leads(
            State::TcpSyn,
            [ACK | FIN, SYN | ACK | FIN],
            State::TcpTimeWait,
            true,
        );
        leads(State::TcpTimeWait, [ACK, ACK], State::TcpTimeWait, false);
        leads(State::TcpSyn, [0, RST | ACK], State::TcpResetReply, true);
        // What goes on was not reset.
        leads(State::TcpResetReply, [0, ACK], State::TcpEstablished, true);
        // The same ports once more.
        leads(
            State::TcpTimeWait,
            [SYN | ACK, SYN | ACK],
            State::TcpEstablished,
            true,
        );
        leads(State::TcpMidstream, [ACK, ACK], State::TcpMidstream, true);
        leads(State::Revoked, [ACK, ACK], State::Revoked, false);
    }

    #[test]
    fn other_protocols_follow_who_has_sent() {
        let after = |before, protocol, sent| state_after(before, protocol, sent, [0; 2]).0;
        assert_eq!(
            after(State::UdpNew, protocol::UDP, [false, true]),
            State::UdpAnswered
        );
        assert_eq!(
            after(State::UdpNew, protocol::UDP, [true, true]),
            State::UdpEstablished
        );
        assert_eq!(after(State::UdpNew, protocol::UDP, [true, false]), State::UdpNew);
        assert_eq!(
            after(State::IcmpNew, protocol::ICMP, [true, true]),
            State::IcmpAnswered
        );
        assert_eq!(
            after(State::IcmpNew, protocol::ICMPV6, [false, true]),
            State::IcmpAnswered
        );
        assert_eq!(after(State::OtherNew, 47, [true, true]), State::OtherEstablished);
        assert_eq!(
            after(State::SctpNew, protocol::SCTP, [true, true]),
            State::SctpEstablished
        );
    }
}
