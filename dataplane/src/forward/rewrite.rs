//! Changing headers in place.

use crate::{
    addr::Addr,
    wire::{Packet, Transport, checksum, protocol},
};

/// Sets both addresses of the Ethernet header.
#[inline]
pub(crate) fn ethernet(frame: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    if let Some(header) = frame.first_chunk_mut::<12>() {
        header[..6].copy_from_slice(&dst);
        header[6..].copy_from_slice(&src);
    }
}

/// One hop less to live. The packet has more than one left.
#[inline]
pub(crate) fn decrement_ttl(frame: &mut [u8], packet: &Packet) {
    let Some(header) = frame.get_mut(usize::from(packet.l3)..) else {
        return;
    };
    if !packet.src.is_v4() {
        if let Some(hop_limit) = header.get_mut(7) {
            *hop_limit = hop_limit.saturating_sub(1);
        }
        return;
    }
    if let Some(&mut [ref mut ttl, protocol, ref mut high, ref mut low]) = header.get_mut(8..12) {
        let old = u16::from_be_bytes([*ttl, protocol]);
        *ttl = ttl.saturating_sub(1);
        let new = u16::from_be_bytes([*ttl, protocol]);
        let sum = checksum::update(u16::from_be_bytes([*high, *low]), old, new);
        [*high, *low] = sum.to_be_bytes();
    }
}

/// Gives a packet other ends, addresses with ports (of ICMP echo, the source's is the identifier), and the checksums that go with them. That
/// of SCTP, which covers the whole packet, stays. What does not lie in the frame stays.
pub(crate) fn ends(frame: &mut [u8], packet: &Packet, src: (Addr, u16), dst: (Addr, u16)) {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let v4 = packet.src.is_v4();
    let (source, width) = if v4 { (l3 + 12, 4) } else { (l3 + 8, 16) };
    let mut of_addresses = 0;
    for (begin, addr) in [(source, src.0), (source + width, dst.0)] {
        let octets = addr.octets();
        let (words, _) = octets[16 - width..].as_chunks::<2>();
        for (word, at) in words.iter().zip((begin..).step_by(2)) {
            of_addresses += put_word(frame, at, u16::from_be_bytes(*word));
        }
    }
    let of_ports = match packet.transport {
        Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Sctp { .. } => {
            put_word(frame, l4, src.1) + put_word(frame, l4 + 2, dst.1)
        }
        Transport::Echo { .. } => put_word(frame, l4 + 4, src.1),
        _ => 0,
    };
    if v4 {
        add_difference(frame, l3 + 10, of_addresses);
    }
    match packet.protocol {
        protocol::TCP => add_difference(frame, l4 + 16, of_addresses + of_ports),
        protocol::UDP if frame.get(l4 + 6..l4 + 8) != Some(&[0, 0]) => {
            add_difference(frame, l4 + 6, of_addresses + of_ports);
            if frame.get(l4 + 6..l4 + 8) == Some(&[0, 0]) {
                put_word(frame, l4 + 6, 0xffff); // zero would say that there is none (RFC 768)
            }
        }
        protocol::ICMP if v4 => add_difference(frame, l4 + 2, of_ports),
        protocol::ICMPV6 if !v4 => add_difference(frame, l4 + 2, of_addresses + of_ports),
        _ => {}
    }
}

/// Writes a word; what that adds to a sum that covers it (RFC 1624, equation 3).
fn put_word(frame: &mut [u8], at: usize, new: u16) -> u64 {
    let Some(word) = frame.get_mut(at..).and_then(<[u8]>::first_chunk_mut) else {
        return 0;
    };
    let old = u16::from_be_bytes(*word);
    *word = new.to_be_bytes();
    u64::from(!old) + u64::from(new)
}

fn add_difference(frame: &mut [u8], at: usize, difference: u64) {
    if let Some(field) = frame.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        let sum = u64::from(!u16::from_be_bytes(*field)) + difference;
        *field = (!checksum::fold(sum)).to_be_bytes();
    }
}
