//! What the sender of a denied packet gets, where configuration or policy asks for more than silence.

use crate::{
    classify::DenialAnswer,
    forward::{
        icmp::{self, Problem},
        reset,
    },
    frame::Frame,
    io::PacketIo,
    port::{Port, PortKind},
    verdict::DropReason,
    wire::{Packet, Transport},
};

use super::{WorkerTurn, judge::Denial, route::reply};

/// One answer.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Reset,
    Icmp(Problem),
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Answers a packet that policy denies, if policy or configuration asks for that. Packets that are dropped for another reason,
    /// forged sources above all, get no answer, nor do broadcasts, multicasts, resets and ICMP errors.
    #[cold]
    pub(super) fn answer_denial(&mut self, frame: &Frame, packet: &Packet, port: &Port, denial: &Denial) {
        let (Some(snapshot), Some(judgement)) = (self.snapshot, denial.judgement) else {
            return;
        };
        let direction = match denial.reason {
            DropReason::PolicyEgress => judgement.egress,
            DropReason::PolicyIngress => judgement.ingress,
            _ => return,
        };
        let wanted = snapshot.denial_answer(direction.provenance, self.shared.config.denial_answer);
        let Some(answer) = answer(wanted, packet).filter(|_| !is_to_group(frame.bytes(), packet)) else {
            return;
        };
        // A stranger has as many IPv6 addresses as it likes, and one account.
        let account = self.account(packet.src, &snapshot.identify(packet.src));
        if !self.denials_answered.bucket(account).take(self.now) {
            self.stats.counters.answers_limited.add(1);
            return;
        }
        if let Some(answer) = self.write_answer(frame.bytes(), packet, port, answer) {
            self.stats.counters.generated.add(1);
            self.stats.counters.denials_answered.add(1);
            self.send(port.id, answer);
        }
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
        match answer {
            Answer::Reset => reply(
                self.io,
                forwarding,
                original,
                port,
                reset::length(packet),
                |out| reset::write(out, original, packet),
            ),
            Answer::Icmp(problem) => {
                let is_wire = matches!(port.kind, PortKind::Wire { .. });
                let router = forwarding
                    .icmp_source(port.id, packet.src.is_v4())
                    .filter(|_| !is_wire && problem == Problem::Prohibited);
                let source = router.unwrap_or(packet.dst);
                reply(self.io, forwarding, original, port, icmp::length(packet), |out| {
                    icmp::write(out, original, packet, source, problem)
                })
            }
        }
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
