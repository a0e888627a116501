//! ICMP errors that the dataplane sends itself (RFC 792, RFC 1812 4.3.2, RFC 4443).

use crate::{
    addr::Addr,
    wire::{Packet, Transport, checksum, protocol},
};

/// Why a packet is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No route, or one that says unreachable.
    NoRoute,
    /// A route that says prohibit.
    Prohibited,
    /// The neighbour does not answer.
    HostUnreachable,
    /// It does not fit and may not be fragmented.
    TooBig {
        /// What would fit: bytes from the IP header on.
        mtu: u16,
    },
    /// Its time to live or hop limit is used up.
    TtlExceeded,
}

/// Longest error, from the IP header on: RFC 1812 4.3.2.3, RFC 4443 2.4(c).
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;
/// Bytes of an ICMP error before the packet that it quotes.
const ICMP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TTL: u8 = 64;

impl Refusal {
    /// Type, code and the second word of the ICMPv4 header.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::TooBig { mtu } => (3, 4, u32::from(mtu)),
            Self::Prohibited => (3, 13, 0),
            Self::TtlExceeded => (11, 0, 0),
        }
    }

    /// The same for ICMPv6.
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (1, 0, 0),
            Self::Prohibited => (1, 1, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::TooBig { mtu } => (2, 0, u32::from(mtu)),
            Self::TtlExceeded => (3, 0, 0),
        }
    }
}

/// Whether an error may be sent about a packet: never about an ICMP error, and about a datagram only once, for its first
/// fragment. The parser has seen to it that both addresses are unicast.
pub(crate) fn may_answer(packet: &Packet) -> bool {
    !matches!(packet.transport, Transport::IcmpError { .. }) && !packet.is_later_fragment()
}

/// Writes an error about `packet`, whose frame holds `original` with its time to live as received, into `reply`: back
/// out of the port that it came by, to the Ethernet address that sent it, with the same VLAN tags. Answers how many bytes
/// it is, or None where `reply` is too short for it or `source` is of the other family.
pub(crate) fn write(
    reply: &mut [u8],
    original: &[u8],
    packet: &Packet,
    own_mac: [u8; 6],
    source: Addr,
    refusal: Refusal,
) -> Option<usize> {
    let v4 = packet.src.is_v4();
    if source.is_v4() != v4 {
        return None;
    }
    let (header, longest) = if v4 {
        (IPV4_HEADER, LONGEST_V4)
    } else {
        (IPV6_HEADER, LONGEST_V6)
    };
    let (l3, end) = (usize::from(packet.l3), usize::from(packet.end));
    let ethernet = original.get(..l3).filter(|bytes| bytes.len() >= 14)?;
    let quoted = original.get(l3..end)?;
    let quoted = &quoted[..quoted.len().min(longest - header - ICMP_HEADER)];
    let length = header + ICMP_HEADER + quoted.len();
    let reply = reply.get_mut(..l3 + length)?;
    reply[..l3].copy_from_slice(ethernet);
    reply.copy_within(6..12, 0);
    reply[6..12].copy_from_slice(&own_mac);
    let (ip, message) = reply[l3..].split_at_mut(header);

    let (kind, code, word) = if v4 { refusal.v4() } else { refusal.v6() };
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&word.to_be_bytes());
    message[8..].copy_from_slice(quoted);
    let mut total = checksum::sum(message);
    if v4 {
        write_ipv4(ip, length as u16, source, packet.src);
    } else {
        write_ipv6(ip, message.len() as u16, source, packet.src);
        total += checksum::pseudo_header(source, packet.src, protocol::ICMPV6, message.len() as u16);
    }
    message[2..4].copy_from_slice(&(!checksum::fold(total)).to_be_bytes());
    Some(l3 + length)
}

/// `length` counts from the begin of the header.
fn write_ipv4(header: &mut [u8], length: u16, src: Addr, dst: Addr) {
    header.fill(0);
    header[0] = 0x45;
    // RFC 1812 4.3.2.5: internetwork control.
    header[1] = 0xc0;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[8] = TTL;
    header[9] = protocol::ICMP;
    header[12..16].copy_from_slice(&src.octets()[12..]);
    header[16..20].copy_from_slice(&dst.octets()[12..]);
    let sum = !checksum::fold(checksum::sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// `length` counts from the end of the header.
fn write_ipv6(header: &mut [u8], length: u16, src: Addr, dst: Addr) {
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = protocol::ICMPV6;
    header[7] = TTL;
    header[8..24].copy_from_slice(&src.octets());
    header[24..40].copy_from_slice(&dst.octets());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Parsed, Quoted, parse};

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn addr(text: &str) -> Addr {
        Addr::from(
            text.parse::<std::net::IpAddr>()
                .unwrap_or_else(|error| panic!("{text}: {error}")),
        )
    }

    /// A UDP datagram from port 1000 to 2000 with `payload` bytes, behind one VLAN tag.
    fn datagram(src: &str, dst: &str, payload: usize) -> Vec<u8> {
        let (src, dst) = (addr(src), addr(dst));
        let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7];
        let udp = 8 + payload;
        let mut ip = if src.is_v4() {
            frame.extend([8, 0]);
            let mut ip = vec![0; IPV4_HEADER];
            write_ipv4(&mut ip, (IPV4_HEADER + udp) as u16, src, dst);
            ip[9] = protocol::UDP;
            ip[10..12].fill(0);
            let sum = !checksum::fold(checksum::sum(&ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip
        } else {
            frame.extend([0x86, 0xdd]);
            let mut ip = vec![0; IPV6_HEADER];
            write_ipv6(&mut ip, udp as u16, src, dst);
            ip[6] = protocol::UDP;
            ip
        };
        frame.append(&mut ip);
        frame.extend([3, 232, 7, 208]);
        frame.extend((udp as u16).to_be_bytes());
        // Never zero in IPv6; nobody in this test verifies it.
        frame.extend([0x12, 0x34]);
        frame.resize(frame.len() + payload, 0x55);
        frame
    }

    fn subject(frame: &[u8]) -> Packet {
        match parse(frame) {
            Parsed::Subject(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_parses_quotes_its_packet_and_sums_up() {
        for (src, dst, own, longest) in [
            ("10.0.0.1", "10.9.9.9", "10.0.0.254", LONGEST_V4),
            ("fd00::1", "fd99::9", "fd00::fe", LONGEST_V6),
        ] {
            for (refusal, v4, v6) in [
                (Refusal::NoRoute, (3, 0), (1, 0)),
                (Refusal::Prohibited, (3, 13), (1, 1)),
                (Refusal::HostUnreachable, (3, 1), (1, 3)),
                (Refusal::TooBig { mtu: 1400 }, (3, 4), (2, 0)),
                (Refusal::TtlExceeded, (11, 0), (3, 0)),
            ] {
                for payload in [0, 100, 1500] {
                    let original = datagram(src, dst, payload);
                    let packet = subject(&original);
                    assert!(may_answer(&packet));
                    let mut reply = vec![0xaa; 2048];
                    let length = write(&mut reply, &original, &packet, OWN, addr(own), refusal)
                        .unwrap_or_else(|| panic!("{refusal:?} {payload}"));
                    let reply = &reply[..length];
                    assert_eq!(&reply[..12], &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
                    let error = subject(reply);
                    assert!(!may_answer(&error));
                    assert_eq!(
                        (error.src, error.dst, error.vlan),
                        (addr(own), addr(src), packet.vlan)
                    );
                    assert!(usize::from(error.total_length()) <= longest);
                    assert_eq!(
                        error.transport,
                        Transport::IcmpError {
                            quoted: Some(Quoted {
                                src: addr(src),
                                dst: addr(dst),
                                protocol: protocol::UDP,
                                src_port: 1000,
                                dst_port: 2000,
                            })
                        }
                    );
                    let message = &reply[usize::from(error.l4)..];
                    let kind = if packet.src.is_v4() { v4 } else { v6 };
                    assert_eq!((message[0], message[1]), kind);
                    if let Refusal::TooBig { mtu } = refusal {
                        assert_eq!(message[4..8], u32::from(mtu).to_be_bytes());
                    }
                    let mut total = checksum::sum(message);
                    if !packet.src.is_v4() {
                        let length = message.len() as u16;
                        total += checksum::pseudo_header(error.src, error.dst, protocol::ICMPV6, length);
                    }
                    assert_eq!(checksum::fold(total), 0xffff, "{refusal:?} {payload}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_where_it_does_not_fit() {
        let original = datagram("10.0.0.1", "10.9.9.9", 100);
        let packet = subject(&original);
        let refusal = Refusal::TtlExceeded;
        let mut short = vec![0; 100];
        assert_eq!(
            write(&mut short, &original, &packet, OWN, addr("10.0.0.2"), refusal),
            None
        );
        let mut reply = vec![0; 2048];
        assert_eq!(
            write(&mut reply, &original, &packet, OWN, addr("fd00::2"), refusal),
            None
        );
    }

    #[test]
    fn a_later_fragment_gets_no_error() {
        let mut packet = subject(&datagram("10.0.0.1", "10.9.9.9", 100));
        for (offset, expected) in [(0, true), (8, false)] {
            packet.fragment = Some(crate::wire::Fragment {
                id: 1,
                offset,
                length: 108,
                more: true,
            });
            assert_eq!(may_answer(&packet), expected, "{offset}");
        }
    }
}
