//! What routing changes in a packet: Ethernet addresses and the time to live.

use crate::wire::{Packet, checksum};

/// Offset of the time to live in an IPv4 header, of its checksum, and of the hop limit in an IPv6 header.
const IPV4_TTL: usize = 8;
const IPV4_CHECKSUM: usize = 10;
const IPV6_HOP_LIMIT: usize = 7;

/// Writes both Ethernet addresses. Frames that were parsed are longer than that.
#[inline]
pub(crate) fn ethernet(frame: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    if let Some(addresses) = frame.first_chunk_mut::<12>() {
        addresses[..6].copy_from_slice(&dst);
        addresses[6..].copy_from_slice(&src);
    }
}

/// Takes one from the time to live or hop limit, and keeps the IPv4 header checksum right. Answers false, changing
/// nothing, where none is left: the packet must not go on.
#[inline]
pub(crate) fn decrement_ttl(frame: &mut [u8], packet: &Packet) -> bool {
    if packet.ttl <= 1 {
        return false;
    }
    let Some(header) = frame.get_mut(usize::from(packet.l3)..) else {
        return false;
    };
    if !packet.src.is_v4() {
        let Some(limit) = header.get_mut(IPV6_HOP_LIMIT) else {
            return false;
        };
        *limit = packet.ttl - 1;
        return true;
    }
    let Some(header) = header.first_chunk_mut::<20>() else {
        return false;
    };
    // The checksum covers 16-bit words: TTL and protocol together.
    let old = u16::from_be_bytes([header[IPV4_TTL], header[IPV4_TTL + 1]]);
    let new = old - 0x100;
    let sum = u16::from_be_bytes([header[IPV4_CHECKSUM], header[IPV4_CHECKSUM + 1]]);
    header[IPV4_TTL..IPV4_CHECKSUM].copy_from_slice(&new.to_be_bytes());
    header[IPV4_CHECKSUM..12].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Parsed, parse};

    fn subject(frame: &[u8]) -> Packet {
        match parse(frame) {
            Parsed::Subject(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn ipv4(ttl: u8, id: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let mut header = [0_u8; 20];
        header[0] = 0x45;
        header[3] = 28;
        header[4..6].copy_from_slice(&id.to_be_bytes());
        header[8] = ttl;
        header[9] = 17;
        header[12..16].copy_from_slice(&[10, 0, 0, 1]);
        header[16..20].copy_from_slice(&[10, 0, 0, 2]);
        let sum = !checksum::fold(checksum::sum(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        frame
    }

    #[test]
    fn the_header_checksum_holds_after_every_decrement() {
        for id in [0, 1, 0x1234, 0xfffe, 0xffff] {
            let mut frame = ipv4(255, id);
            for left in (1..255).rev() {
                let packet = subject(&frame);
                assert!(decrement_ttl(&mut frame, &packet));
                assert_eq!(subject(&frame).ttl, left);
                assert!(checksum::ipv4_header_holds(&frame[14..34]), "{id} {left}");
            }
            let before = frame.clone();
            let packet = subject(&frame);
            assert!(!decrement_ttl(&mut frame, &packet));
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn the_hop_limit_is_taken_down_to_one() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 2]);
        for last in [1, 2] {
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame.extend([0, 1, 0, 2, 0, 8, 0x12, 0x34]);
        let packet = subject(&frame);
        assert!(decrement_ttl(&mut frame, &packet));
        let packet = subject(&frame);
        assert_eq!(packet.ttl, 1);
        assert!(!decrement_ttl(&mut frame, &packet));
        assert_eq!(subject(&frame).ttl, 1);
    }

    #[test]
    fn ethernet_addresses_are_written_and_nothing_else() {
        let mut frame = ipv4(9, 9);
        let before = frame.clone();
        ethernet(&mut frame, [1; 6], [2; 6]);
        assert_eq!(&frame[..12], &[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(frame[12..], before[12..]);
    }
}
