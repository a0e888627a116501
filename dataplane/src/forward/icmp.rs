//! ICMP errors that the dataplane sends as a router (RFC 792, RFC 1191, RFC 1812 4.3, RFC 4443).

use crate::{
    addr::Addr,
    wire::{Packet, Transport, checksum, protocol},
};

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Larger than the next link takes; its MTU in bytes.
    TooBig(u16),
    /// No route.
    NoRoute,
    /// The next hop does not answer.
    HostUnreachable,
    /// A route or a policy prohibits it.
    Prohibited,
    /// Nothing listens at its port, as far as its sender is to know.
    PortUnreachable,
}

impl Problem {
    /// Type, code and the word behind the checksum.
    fn header(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::TooBig(mtu), true) => (3, 4, u32::from(mtu)),
            (Self::TooBig(mtu), false) => (2, 0, u32::from(mtu)),
            (Self::NoRoute, true) => (3, 0, 0),
            (Self::NoRoute, false) => (1, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::Prohibited, true) => (3, 13, 0),
            (Self::Prohibited, false) => (1, 1, 0),
        }
    }
}

/// Longest IPv4 error with all its headers (RFC 1812 4.3.2.3), and IPv6 (RFC 4443 2.4).
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// Whether an error may be sent about a packet at all: never about an error, of whatever type, nor a redirect (RFC 1122
/// 3.2.2, RFC 4443 2.4 (e)).
pub(crate) fn may_answer(packet: &Packet) -> bool {
    let is_error = match packet.transport {
        Transport::IcmpError { .. } => true,
        Transport::Icmp { kind: 4 | 5, .. } if packet.src.is_v4() => true,
        Transport::Icmp {
            kind: 0..128 | 137, ..
        } => !packet.src.is_v4(),
        _ => false,
    };
    !is_error && !packet.is_later_fragment()
}

/// Bytes of the frame that [`write()`] makes. As much is quoted as `original` holds of the packet: its first buffer.
pub(crate) fn length(packet: &Packet, original: &[u8]) -> usize {
    let (header, longest) = if packet.src.is_v4() {
        (20, LONGEST_V4)
    } else {
        (40, LONGEST_V6)
    };
    let l3 = usize::from(packet.l3);
    let at_hand = usize::from(packet.total_length()).min(original.len().saturating_sub(l3));
    l3 + longest.min(header + 8 + at_hand)
}

/// Writes an error about `packet`, which lies in `original`, from `source` into `out`, which is [`length`] bytes long.
/// Answers false where it does not fit. The Ethernet header is the packet's, VLAN tags included; its addresses are still to be
/// set.
pub(crate) fn write(
    out: &mut [u8],
    original: &[u8],
    packet: &Packet,
    source: Addr,
    problem: Problem,
) -> bool {
    let v4 = packet.src.is_v4();
    let ip_header = if v4 { 20 } else { 40 };
    let l3 = usize::from(packet.l3);
    let Some(quote) = out.len().checked_sub(l3 + ip_header + 8) else {
        return false;
    };
    let Some((link, quoted)) = original.get(..l3).zip(original.get(l3..l3 + quote)) else {
        return false;
    };
    let (kind, code, word) = problem.header(v4);
    let icmp_length = 8 + quote;
    out[..l3].copy_from_slice(link);
    let (ip, icmp) = out[l3..].split_at_mut(ip_header);
    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..8].copy_from_slice(&word.to_be_bytes());
    icmp[8..].copy_from_slice(quoted);
    let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    // Internetwork control precedence (RFC 1812 4.3.2.5).
    write_ip(ip, (source, packet.src), number, icmp_length, 0xc0);
    let pseudo = if v4 {
        0
    } else {
        checksum::pseudo_header(source, packet.src, number, icmp_length as u16)
    };
    let sum = !checksum::fold(pseudo + checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Writes the header of a packet that the dataplane sends: 20 bytes for IPv4 without options, not to be fragmented, or 40 for
/// IPv6. `ends` are its source and destination, `service` the type of service of IPv4.
pub(super) fn write_ip(ip: &mut [u8], ends: (Addr, Addr), number: u8, payload: usize, service: u8) {
    let (from, to) = (ends.0.octets(), ends.1.octets());
    ip.fill(0);
    if ends.0.is_v4() {
        ip[0] = 0x45;
        ip[1] = service;
        ip[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = number;
        ip[12..16].copy_from_slice(&from[12..]);
        ip[16..20].copy_from_slice(&to[12..]);
        let sum = !checksum::fold(checksum::sum(ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        ip[6] = number;
        ip[7] = 64;
        ip[8..24].copy_from_slice(&from);
        ip[24..40].copy_from_slice(&to);
    }
}
