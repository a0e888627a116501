//! The state of a flow: one enumeration for all protocols and one total function.
//!
//! TCP follows segments' flags. Whether a reset or a FIN may be what it says is asked of `tcp` before it gets here; where
//! that is not known ([`FlowConfig::tcp_strict`](super::FlowConfig::tcp_strict) is off) a reset that was none does little
//! harm: traffic passes on while the entry lasts, and the next segment of the side that is said to have reset proves
//! that it did not.

use super::Timeouts;
use crate::{
    time::Nanos,
    wire::{Packet, TcpFlags, Transport},
};

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $timeout:ident, $list:ident;)+) => {
        /// State of an entry. "Original" is the direction of the packet that began the flow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum State {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl State {
            /// Every state, in order of its number, from 1.
            pub const ALL: &[State] = &[$(State::$variant,)+];

            /// The state with a number; None for none.
            #[inline]
            pub fn from_number(number: u8) -> Option<Self> {
                BY_NUMBER[usize::from(number)]
            }

            /// The name in JSON and text.
            pub const fn name(self) -> &'static str {
                match self { $(State::$variant => $name,)+ }
            }

            /// How long an entry in it lives after the last packet that refreshed it.
            #[inline]
            pub fn timeout(self, timeouts: &Timeouts) -> Nanos {
                match self { $(State::$variant => timeouts.$timeout,)+ }
            }

            /// The order of eviction when the table is full.
            #[inline]
            pub(crate) fn eviction_class(self) -> EvictionClass {
                match self { $(State::$variant => EvictionClass::$list,)+ }
            }
        }
    };
}

/// Which entries go first when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictionClass {
    /// Both ends have sent packets: evicted last, and only if idle.
    Open,
    /// Only one end has sent packets, or the initiator is unknown: limited in number, evicted after closed entries.
    HalfOpen,
    /// The flow is over: evicted first.
    Closed,
}

states! {
    /// SYN seen.
    TcpSyn = 1, "tcp-syn", tcp_syn, HalfOpen;
    /// SYN answered.
    TcpHandshake = 2, "tcp-handshake", tcp_handshake, Open;
    /// Handshake complete, or picked up.
    TcpEstablished = 3, "tcp-established", tcp_established, Open;
    /// Begun without SYN: it is not known who began, each direction is judged on its own.
    TcpMidstream = 4, "tcp-midstream", tcp_midstream, HalfOpen;
    /// The original side has sent FIN.
    TcpFinOriginal = 5, "tcp-fin-original", tcp_fin, Open;
    /// The reply side has sent FIN.
    TcpFinReply = 6, "tcp-fin-reply", tcp_fin, Open;
    /// Both have.
    TcpTimeWait = 7, "tcp-time-wait", tcp_time_wait, Closed;
    /// The original side has sent RST, as it seems.
    TcpResetOriginal = 8, "tcp-reset-original", tcp_reset, Closed;
    /// The reply side has sent RST, as it seems.
    TcpResetReply = 9, "tcp-reset-reply", tcp_reset, Closed;
    /// UDP, one direction seen.
    UdpNew = 10, "udp-new", udp_new, HalfOpen;
    /// UDP, answered: a question and its answer are over with that, so it may give way to others.
    UdpAnswered = 11, "udp-answered", udp_answered, Closed;
    /// UDP, and the original side has gone on after the answer.
    UdpEstablished = 12, "udp-established", udp_established, Open;
    /// SCTP, one direction seen.
    SctpNew = 13, "sctp-new", sctp_new, HalfOpen;
    /// SCTP, both seen.
    SctpEstablished = 14, "sctp-established", sctp_established, Open;
    /// SCTP after SHUTDOWN COMPLETE or ABORT.
    SctpClosed = 15, "sctp-closed", sctp_closed, Closed;
    /// Echo request seen.
    IcmpNew = 16, "icmp-new", icmp, HalfOpen;
    /// Echo answered.
    IcmpAnswered = 17, "icmp-answered", icmp, Closed;
    /// Another protocol, one direction seen.
    OtherNew = 18, "other-new", other, HalfOpen;
    /// Another protocol, both seen.
    OtherEstablished = 19, "other-established", other, Open;
    /// Revoked by policy. The entry allows nothing, but keeps a late packet of one end from beginning a flow that
    /// would let the other end in again.
    Revoked = 20, "revoked", revoked, HalfOpen;
}

impl State {
    /// Whether both ends have sent packets and the flow is not over.
    pub(crate) fn is_answered(self) -> bool {
        use State::{Revoked, SctpClosed, TcpResetOriginal, TcpResetReply, TcpTimeWait};
        let over = matches!(
            self,
            TcpTimeWait | TcpResetOriginal | TcpResetReply | SctpClosed | Revoked
        );
        self.eviction_class() != EvictionClass::HalfOpen && !over
    }
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FlowDirection {
    /// As the packet that began it.
    Original = 0,
    /// Against it.
    Reply = 1,
}

impl FlowDirection {
    /// The other one.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// A packet as an event of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowEvent {
    /// TCP SYN alone.
    Syn,
    /// TCP SYN and ACK.
    SynAck,
    /// TCP ACK or data.
    Ack,
    /// TCP FIN.
    Fin,
    /// TCP RST.
    Rst,
    /// TCP flags that no segment has.
    InvalidFlags,
    /// SCTP INIT.
    Init,
    /// SCTP ABORT or SHUTDOWN COMPLETE.
    Close,
    /// ICMP echo reply.
    EchoReply,
    /// Anything else.
    Data,
}

impl FlowEvent {
    /// Every kind.
    pub const ALL: &[FlowEvent] = &[
        Self::Syn,
        Self::SynAck,
        Self::Ack,
        Self::Fin,
        Self::Rst,
        Self::InvalidFlags,
        Self::Init,
        Self::Close,
        Self::EchoReply,
        Self::Data,
    ];

    /// The event of a packet.
    #[inline]
    pub fn of(packet: &Packet) -> Self {
        match packet.transport {
            Transport::Tcp { flags, .. } => Self::of_tcp(flags),
            Transport::Sctp { chunk: 1, .. } => Self::Init,
            Transport::Sctp { chunk: 6 | 14, .. } => Self::Close,
            Transport::Echo { request: false, .. } => Self::EchoReply,
            _ => Self::Data,
        }
    }

    #[inline]
    fn of_tcp(flags: TcpFlags) -> Self {
        const KINDS: u8 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::ACK;
        const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
        const FIN_ACK: u8 = TcpFlags::FIN | TcpFlags::ACK;
        const RST_ACK: u8 = TcpFlags::RST | TcpFlags::ACK;
        match flags.0 & KINDS {
            TcpFlags::ACK => Self::Ack,
            TcpFlags::SYN => Self::Syn,
            SYN_ACK => Self::SynAck,
            FIN_ACK => Self::Fin,
            TcpFlags::RST | RST_ACK => Self::Rst,
            _ => Self::InvalidFlags, // nothing at all, FIN without ACK, SYN with FIN or RST, FIN with RST
        }
    }
}

/// What the worker does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It passes and refreshes the entry.
    Pass,
    /// It passes without refreshing the entry's timeout.
    PassUnrefreshed,
    /// The flow is over and this packet begins a new one: judge it as new.
    Reopen,
    /// Judge it as new. If it is allowed it passes, but answers to it are judged as new, too.
    JudgeAlone,
    /// It is invalid in this state: drop as `tcp-invalid`.
    Invalid,
}

/// The state with each number: one load, as no number is out of range.
static BY_NUMBER: [Option<State>; 256] = {
    let mut table = [None; 256];
    let mut at = 0;
    while at < State::ALL.len() {
        table[State::ALL[at] as usize] = Some(State::ALL[at]);
        at += 1;
    }
    table
};

/// [`rule`] for every case, by number of the state less one, direction and segment: looked up for every packet, where
/// following the rules would take as long as all the rest of its judgement.
static NEXT: [[[(State, Action); FlowEvent::ALL.len()]; 2]; State::ALL.len()] = {
    let mut table = [[[(State::Revoked, Action::Invalid); FlowEvent::ALL.len()]; 2]; State::ALL.len()];
    let mut state = 0;
    while state < State::ALL.len() {
        let mut number = 0;
        while number < FlowEvent::ALL.len() {
            let segment = FlowEvent::ALL[number];
            let [original, reply] = &mut table[state];
            original[segment as usize] = rule(State::ALL[state], FlowDirection::Original, segment);
            reply[segment as usize] = rule(State::ALL[state], FlowDirection::Reply, segment);
            number += 1;
        }
        state += 1;
    }
    table
};

/// The state after a packet, and what to do with it. Total: every state, direction and segment has an answer.
#[inline]
pub fn next(state: State, direction: FlowDirection, segment: FlowEvent) -> (State, Action) {
    NEXT[state as usize - 1][direction as usize][segment as usize]
}

const fn rule(state: State, direction: FlowDirection, segment: FlowEvent) -> (State, Action) {
    use Action::{Invalid, JudgeAlone, Pass, PassUnrefreshed, Reopen};
    use FlowDirection::{Original, Reply};
    use FlowEvent::{Ack, Close, EchoReply, Fin, Init, InvalidFlags, Rst, Syn, SynAck};
    use State::{
        IcmpAnswered, IcmpNew, OtherEstablished, OtherNew, Revoked, SctpClosed, SctpEstablished, SctpNew,
        TcpEstablished, TcpFinOriginal, TcpFinReply, TcpHandshake, TcpMidstream, TcpResetOriginal,
        TcpResetReply, TcpSyn, TcpTimeWait, UdpAnswered, UdpEstablished, UdpNew,
    };

    let reset = match direction {
        Original => TcpResetOriginal,
        Reply => TcpResetReply,
    };
    match (state, direction, segment) {
        (
            TcpSyn | TcpHandshake | TcpEstablished | TcpMidstream | TcpFinOriginal | TcpFinReply
            | TcpTimeWait | TcpResetOriginal | TcpResetReply,
            _,
            InvalidFlags,
        ) => (state, Invalid),

        // Cut by policy. Only what proves that an end begins anew ends that.
        (Revoked, _, InvalidFlags) => (Revoked, Invalid),
        (Revoked, _, Syn | Init) => (Revoked, Reopen),
        (Revoked, _, _) => (Revoked, JudgeAlone),

        // Opening (RFC 9293 3.5). A SYN is never an answer: where both open at once, both have to be allowed.
        (TcpSyn, Original, Syn) => (TcpSyn, Pass),
        (TcpSyn, Original, SynAck) => (TcpSyn, Invalid),
        (TcpSyn, Reply, Syn) => (TcpHandshake, JudgeAlone),
        (TcpSyn, Reply, SynAck) => (TcpHandshake, Pass),
        (TcpHandshake, Reply, Syn) => (TcpHandshake, JudgeAlone),
        (TcpHandshake, _, Syn | SynAck) => (TcpHandshake, Pass),
        (TcpHandshake, Original, Ack) => (TcpEstablished, Pass),
        // The answer to an old half of a connection: it keeps neither from opening.
        (TcpSyn | TcpHandshake, _, Ack) => (state, Pass),
        (TcpSyn | TcpHandshake, Original, Fin) => (TcpFinOriginal, Pass),
        (TcpSyn | TcpHandshake, Reply, Fin) => (TcpFinReply, Pass),

        // Open. A SYN of the original side is answered by a challenge (RFC 5961 4); one of the other side begins
        // a connection that has not been judged.
        (TcpEstablished | TcpFinOriginal | TcpFinReply, Original, Syn | SynAck) => (state, Pass),
        (TcpEstablished | TcpFinOriginal | TcpFinReply, Reply, Syn) => (state, JudgeAlone),
        (TcpEstablished | TcpFinOriginal | TcpFinReply, Reply, SynAck) => (state, Pass),
        (TcpEstablished | TcpFinOriginal | TcpFinReply, _, Ack) => (state, Pass),

        // Begun in the middle: a SYN shows who begins.
        (TcpMidstream, _, Syn) => (TcpMidstream, Reopen),
        (TcpMidstream, _, SynAck | Ack | Fin) => (TcpMidstream, Pass),
        (TcpMidstream, _, Rst) => (TcpMidstream, PassUnrefreshed),

        // Closing.
        (TcpEstablished | TcpFinOriginal, Original, Fin) => (TcpFinOriginal, Pass),
        (TcpEstablished | TcpFinReply, Reply, Fin) => (TcpFinReply, Pass),
        (TcpFinReply, Original, Fin) | (TcpFinOriginal, Reply, Fin) => (TcpTimeWait, Pass),
        (TcpTimeWait, _, Ack | Fin) => (TcpTimeWait, PassUnrefreshed),
        (TcpTimeWait, _, SynAck) => (TcpTimeWait, Invalid),
        (TcpTimeWait | TcpResetOriginal | TcpResetReply, _, Syn) => (state, Reopen),

        // Reset, if it was one.
        (TcpTimeWait, _, Rst) => (TcpTimeWait, PassUnrefreshed),
        (TcpResetOriginal | TcpResetReply, _, Rst | SynAck) => (state, PassUnrefreshed),
        (TcpResetOriginal, Original, Ack | Fin) | (TcpResetReply, Reply, Ack | Fin) => (TcpEstablished, Pass),
        (TcpResetOriginal, Reply, Ack | Fin) | (TcpResetReply, Original, Ack | Fin) => {
            (state, PassUnrefreshed)
        }
        (_, _, Rst) => (reset, Pass),

        // SCTP (RFC 9260 4).
        (SctpClosed, _, Init) => (SctpClosed, Reopen),
        (SctpNew | SctpEstablished | SctpClosed, _, Close) => (SctpClosed, Pass),
        (SctpClosed, _, _) => (SctpClosed, PassUnrefreshed),
        // As a SYN: where both begin at once, both have to be allowed.
        (SctpNew | SctpEstablished, Reply, Init) => (state, JudgeAlone),
        (SctpNew, Reply, _) => (SctpEstablished, Pass),

        // The others: a packet each way.
        (UdpNew, Reply, _) => (UdpAnswered, Pass),
        (UdpAnswered, Original, _) => (UdpEstablished, Pass),
        // Only an echo reply answers: a request of the other side, or another message with the same key, is a new one.
        (IcmpNew | IcmpAnswered, Reply, EchoReply) => (IcmpAnswered, Pass),
        (IcmpNew | IcmpAnswered, Reply, _) => (state, Reopen),
        // Who asked does not answer: this is no packet of the flow.
        (IcmpNew | IcmpAnswered, Original, EchoReply) => (state, Reopen),
        (OtherNew, Reply, _) => (OtherEstablished, Pass),
        (
            SctpNew | SctpEstablished | UdpNew | UdpAnswered | UdpEstablished | IcmpNew | IcmpAnswered
            | OtherNew | OtherEstablished,
            _,
            _,
        ) => (state, Pass),

        // Segments of other protocols do not come to a TCP entry: its key has the protocol.
        (
            TcpSyn | TcpHandshake | TcpEstablished | TcpMidstream | TcpFinOriginal | TcpFinReply
            | TcpTimeWait | TcpResetOriginal | TcpResetReply,
            _,
            _,
        ) => (state, Invalid),
    }
}

/// The state in which an allowed packet begins a flow; None where it makes no entry: what is no beginning (a reset, an
/// echo reply, ICMP but echo) or has no layer 4.
#[inline]
pub fn initial_state(packet: &Packet) -> Option<State> {
    match (packet.transport, FlowEvent::of(packet)) {
        (Transport::Tcp { .. }, FlowEvent::Syn) => Some(State::TcpSyn),
        (Transport::Tcp { .. }, FlowEvent::SynAck | FlowEvent::Ack | FlowEvent::Fin) => {
            Some(State::TcpMidstream)
        }
        (Transport::Tcp { .. }, _) => None,
        (Transport::Udp { .. }, _) => Some(State::UdpNew),
        (Transport::Sctp { .. }, FlowEvent::Close) => None,
        (Transport::Sctp { .. }, _) => Some(State::SctpNew),
        (Transport::Echo { request: true, .. }, _) => Some(State::IcmpNew),
        (Transport::Other, _) => Some(State::OtherNew),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// The whole table: every state, direction and segment. A change of it is read line by line before it is accepted.
    #[test]
    fn the_table() {
        let mut text = String::new();
        for state in State::ALL {
            for direction in [FlowDirection::Original, FlowDirection::Reply] {
                for segment in FlowEvent::ALL {
                    let (after, action) = next(*state, direction, *segment);
                    let line = format!("{} {direction:?} {segment:?}", state.name());
                    writeln!(text, "{line:40} -> {:20} {action:?}", after.name()).unwrap_or_default();
                }
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn numbers_are_dense_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (index, state) in State::ALL.iter().enumerate() {
            assert_eq!(*state as usize, index + 1);
            assert_eq!(State::from_number(index as u8 + 1), Some(*state));
            assert!(names.insert(state.name()));
        }
        assert_eq!((State::from_number(0), State::from_number(99)), (None, None));
    }

    /// No packet of the answering side makes an established connection forget who began it, but by ending it.
    #[test]
    fn a_reply_never_renews_an_open_flow() {
        for state in State::ALL {
            for segment in FlowEvent::ALL {
                let (_, action) = next(*state, FlowDirection::Reply, *segment);
                if action == Action::Reopen {
                    assert_ne!(
                        state.eviction_class(),
                        EvictionClass::Open,
                        "{} {segment:?}",
                        state.name()
                    );
                }
            }
        }
    }
}
