//! TCP resets in the name of the destination of a segment that policy denies (RFC 9293 3.5.2).

use crate::{
    addr::Addr,
    flow::tcp::Segment,
    wire::{Packet, TcpFlags, Transport, checksum, protocol},
};

use super::icmp;

const TCP_HEADER: usize = 20;

/// Whether a packet is a segment that may be answered with a reset: a whole one that is no reset itself.
pub(crate) fn may_answer(packet: &Packet) -> bool {
    let Transport::Tcp { flags, .. } = packet.transport else {
        return false;
    };
    !flags.has(TcpFlags::RST) && packet.fragment.is_none()
}

/// Bytes of the frame that [`write()`] makes.
pub(crate) fn length(packet: &Packet) -> usize {
    usize::from(packet.l3) + ip_header(packet.src) + TCP_HEADER
}

fn ip_header(of: Addr) -> usize {
    if of.is_v4() { 20 } else { 40 }
}

/// Writes the reset that answers `packet`, which lies in `original`, into `out`, which is [`length`] bytes long. Answers false
/// where that cannot be done. The Ethernet header is the packet's; its addresses are still to be set.
pub(crate) fn write(out: &mut [u8], original: &[u8], packet: &Packet) -> bool {
    let l3 = usize::from(packet.l3);
    let (Some(segment), Some(link)) = (Segment::of(original, packet), original.get(..l3)) else {
        return false;
    };
    let Transport::Tcp { src, dst, .. } = packet.transport else {
        return false;
    };
    if out.len() != length(packet) {
        return false;
    }
    out[..l3].copy_from_slice(link);
    let (ip, tcp) = out[l3..].split_at_mut(ip_header(packet.src));
    icmp::write_ip(ip, (packet.dst, packet.src), protocol::TCP, TCP_HEADER, 0);
    // As if the connection did not exist: at the number that the segment expects, or acknowledging the segment.
    let (seq, ack, flags) = match segment.ack {
        Some(expected) => (expected, 0, TcpFlags::RST),
        None => (0, segment.end, TcpFlags::RST | TcpFlags::ACK),
    };
    tcp.fill(0);
    tcp[..2].copy_from_slice(&dst.to_be_bytes());
    tcp[2..4].copy_from_slice(&src.to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (TCP_HEADER as u8 / 4) << 4;
    tcp[13] = flags;
    let pseudo = checksum::pseudo_header(packet.dst, packet.src, protocol::TCP, TCP_HEADER as u16);
    let sum = !checksum::fold(pseudo + checksum::sum(tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    true
}
