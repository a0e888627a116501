//! What the sender of a denied packet gets, where configuration or policy asks for more than silence.

use crate::{
    classify::DenialAnswer,
    forward::{
        icmp::{self, Problem},
        reset, rewrite,
    },
    frame::Frame,
    io::PacketIo,
    port::{Port, PortKind},
    verdict::DropReason,
    wire::{Packet, Transport},
};

use super::{WorkerTurn, judge::Denial};

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
        let link: [u8; 12] = *original.first_chunk()?;
        let (receiver, sender) = link.split_at(6);
        let (receiver, sender): ([u8; 6], [u8; 6]) = (receiver.try_into().ok()?, sender.try_into().ok()?);
        let forwarding = self.forwarding?;
        let is_wire = matches!(port.kind, PortKind::Wire { .. });
        let [to, from] = match forwarding.host() {
            // On a wire the frame comes from whom the packet was for, since the gateway has no address there.
            _ if is_wire => [sender, receiver],
            // Frames that the egress guard redirected have the Ethernet address of another port.
            Some((host, kernel_end)) if host == port.id => [kernel_end, port.mac],
            _ => [sender, port.mac],
        };
        let mut frame = self.io.allocate()?;
        let written = match answer {
            Answer::Reset => {
                frame.set_len(reset::length(packet)) && reset::write(frame.bytes_mut(), original, packet)
            }
            Answer::Icmp(problem) => {
                let router = forwarding
                    .icmp_source(port.id, packet.src.is_v4())
                    .filter(|_| !is_wire && problem == Problem::Prohibited);
                let source = router.unwrap_or(packet.dst);
                frame.set_len(icmp::length(packet))
                    && icmp::write(frame.bytes_mut(), original, packet, source, problem)
            }
        };
        if !written {
            self.io.release(frame);
            return None;
        }
        rewrite::ethernet(frame.bytes_mut(), to, from);
        frame.set_port(port.id);
        Some(frame)
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
