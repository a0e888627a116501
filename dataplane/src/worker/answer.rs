//! What the sender of a denied packet gets, where configuration or policy asks for more than silence.

use crate::{
    addr::Addr,
    classify::DenialAnswer,
    forward::{
        icmp::{self, Problem},
        reset,
    },
    frame::Frame,
    io::PacketIo,
    port::{Port, PortId, PortKind},
    verdict::DropReason,
    wire::{Packet, Transport},
};

use super::{WorkerTurn, judge::Denial, route::reply};

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Reset,
    Icmp(Problem),
}

impl Answer {
    /// Bytes of the frame that [`Self::write`] makes of `original`.
    pub(super) fn length(self, packet: &Packet, original: &[u8]) -> usize {
        match self {
            Self::Reset => reset::length(packet),
            Self::Icmp(_) => icmp::length(packet, original),
        }
    }

    /// Writes the answer to `packet`, which lies in `original`, into `out`; of ICMP, from `source`. Answers false where that cannot be
    /// done. What precedes the IP header is the packet's.
    pub(super) fn write(self, out: &mut [u8], original: &[u8], packet: &Packet, source: Addr) -> bool {
        match self {
            Self::Reset => reset::write(out, original, packet),
            Self::Icmp(problem) => icmp::write(out, original, packet, source, problem),
        }
    }
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Answers a packet that policy denies, if policy or configuration asks for that.
    #[cold]
    pub(super) fn answer_denial(&mut self, frame: &Frame, packet: &Packet, port: &Port, denial: &Denial) {
        if let Some(answer) = self.choose_answer(frame.bytes(), packet, denial)
            && let Some(answer) = self.write_answer(frame.bytes(), packet, port, answer)
        {
            self.send_answer(port.id, answer);
        }
    }

    /// The answer to a packet that policy denies, taken from what its sender may get; None if neither policy nor configuration asks for
    /// one. Packets that are dropped for another reason, forged sources above all, get none, nor do broadcasts, multicasts, resets and
    /// ICMP errors. `frame` begins with the Ethernet header.
    pub(super) fn choose_answer(&mut self, frame: &[u8], packet: &Packet, denial: &Denial) -> Option<Answer> {
        let (snapshot, judgement) = (self.snapshot?, denial.judgement?);
        let direction = match denial.reason {
            DropReason::PolicyEgress => judgement.egress,
            DropReason::PolicyIngress => judgement.ingress,
            _ => return None,
        };
        let wanted = snapshot.denial_answer(direction.provenance, self.shared.config.denial_answer);
        let answer = answer(wanted, packet).filter(|_| !is_to_group(frame, packet))?;
        // A stranger has as many IPv6 addresses as it likes, and one account.
        let account = self.account(packet.src, &snapshot.identify(packet.src));
        if !self.denials_answered.bucket(account).take(self.now) {
            self.stats.counters.answers_limited.add(1);
            return None;
        }
        Some(answer)
    }

    pub(super) fn send_answer(&mut self, port: PortId, answer: Frame) {
        self.stats.counters.generated.add(1);
        self.stats.counters.denials_answered.add(1);
        self.send(port, answer);
    }

    /// The answer, addressed to whoever sent the frame. None if no frame is free.
    fn write_answer(
        &mut self,
        original: &[u8],
        packet: &Packet,
        port: &Port,
        answer: Answer,
    ) -> Option<Frame> {
        let forwarding = self.forwarding?;
        let is_wire = matches!(port.kind, PortKind::Wire { .. });
        let as_router = !is_wire && matches!(answer, Answer::Icmp(Problem::Prohibited));
        let router = forwarding
            .icmp_source(port.id, packet.src.is_v4())
            .filter(|_| as_router);
        let source = router.unwrap_or(packet.dst);
        reply(
            self.io,
            forwarding,
            original,
            port,
            answer.length(packet, original),
            |out| answer.write(out, original, packet, source),
        )
    }
}

/// What answers a packet; None where nothing may. What is in a tunnel gets none: it would have to be put into one that leads back.
fn answer(wanted: DenialAnswer, packet: &Packet) -> Option<Answer> {
    if packet.tunnel.is_some() {
        return None;
    }
    let icmp = |problem| icmp::may_answer(packet).then_some(Answer::Icmp(problem));
    match (wanted, packet.transport) {
        (DenialAnswer::Drop, _) => None,
        (DenialAnswer::Reset, Transport::Tcp { .. }) => reset::may_answer(packet).then_some(Answer::Reset),
        (DenialAnswer::Reset, Transport::Udp { .. }) => icmp(Problem::PortUnreachable),
        (DenialAnswer::Reset | DenialAnswer::Prohibited, _) => icmp(Problem::Prohibited),
    }
}

/// Whether a packet was for more than one receiver.
fn is_to_group(frame: &[u8], packet: &Packet) -> bool {
    let group_station = frame.first().is_none_or(|first| first & 1 != 0);
    let octets = packet.dst.octets();
    let group = match packet.dst.to_v4() {
        Some(_) => octets[12] >= 0xe0, // multicast, reserved, limited broadcast
        None => octets[0] == 0xff,
    };
    group_station || group
}
