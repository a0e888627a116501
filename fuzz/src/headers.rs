//! Input: a frame, as it comes from a port. It is read as it is, and with the sum of its IPv4 header made right, which no
//! mutation would.
//!
//! What must hold: both ways of the parser say the same; offsets stay in the frame; what lies behind the packet changes
//! nothing; the packet that an ICMP error quotes is read as it would be read on its own; etherparse's own walk over all
//! headers, which is not ours, finds the same addresses, tags, protocol and ports.

use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use ringwall_dataplane::{
    addr::Addr,
    fuzzing::{decapsulate, parse_common},
    wire::{Packet, Parsed, Transport, checksum, parse, protocol, tunnel::TunnelKind},
};

/// Checks one frame.
pub fn run(frame: &[u8]) {
    check(frame);
    if let Some(mended) = with_valid_checksum(frame) {
        check(&mended);
    }
}

/// Where the IP header begins, behind up to two tags.
pub(crate) fn l3(frame: &[u8]) -> Option<(u16, usize)> {
    let kind = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let mut at = 12;
    while at < 20 && matches!(kind(at)?, 0x8100 | 0x88a8 | 0x9100) {
        at += 4;
    }
    Some((kind(at)?, at + 2))
}

/// The frame with a right sum of its IPv4 header; None where it has none or it was right.
pub(crate) fn with_valid_checksum(frame: &[u8]) -> Option<Vec<u8>> {
    let (kind, l3) = l3(frame)?;
    if kind != 0x0800 {
        return None;
    }
    let length = usize::from(frame.get(l3)? & 15) * 4;
    let header = frame.get(l3..l3 + length.max(20))?;
    if checksum::ipv4_header_is_valid(header) {
        return None;
    }
    let mut mended = frame.to_vec();
    mended[l3 + 10..l3 + 12].fill(0);
    let sum = !checksum::fold(checksum::sum(&mended[l3..l3 + header.len()]));
    mended[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    Some(mended)
}

fn check(frame: &[u8]) {
    let parsed = parse(frame);
    if let Some(common) = parse_common(frame) {
        assert_eq!(Parsed::Subject(common), parsed, "the short way and the long one");
    }
    let Parsed::Subject(packet) = parsed else {
        return;
    };
    check_view(frame, &packet);
    check_quotation(frame, &packet);
    check_against_etherparse(frame, &packet);
    check_completion(frame, &packet);
    check_inside(frame, &packet);
}

/// Whatever a packet is taken for, what is inside lies inside, and is what it would be on its own.
fn check_inside(frame: &[u8], packet: &Packet) {
    use TunnelKind::{FlannelUdp, Geneve, Gre, IpInIp, Vxlan};
    let kinds: &[TunnelKind] = match packet.transport {
        Transport::Udp { .. } if packet.fragment.is_none() => &[Vxlan, Geneve, FlannelUdp],
        Transport::Other if packet.fragment.is_none() => &[Gre, IpInIp],
        _ => return,
    };
    for kind in kinds {
        let Ok(Parsed::Subject(inside)) = decapsulate(frame, packet, *kind) else {
            continue;
        };
        assert!(packet.l4 < inside.l3 || *kind == IpInIp && packet.l4 == inside.l3);
        assert!(inside.l3 <= inside.l4 && inside.l4 <= inside.end && inside.end <= packet.end);
        assert_eq!((inside.vlan, inside.tunnel), (packet.vlan, None));
        let (l3, end) = (usize::from(inside.l3), usize::from(inside.end));
        let ethertype: [u8; 2] = if inside.src.is_v4() { [8, 0] } else { [0x86, 0xdd] };
        // To a station, and to a group of them: the frame's own address is not known of each kind.
        let alone = [2_u8, 3].map(|station| {
            let ethernet = [&[station, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ethertype].concat();
            parse(&[&ethernet, &frame[l3..end]].concat())
        });
        let shifted = |at: u16| at - inside.l3 + 14;
        let bare = Packet {
            l3: 14,
            l4: shifted(inside.l4),
            end: shifted(inside.end),
            vlan: 0,
            ..inside
        };
        assert!(
            alone.contains(&Parsed::Subject(bare)),
            "{kind:?}: {inside:?}, alone {alone:?}"
        );
    }
}

fn check_view(frame: &[u8], packet: &Packet) {
    assert!(packet.l3 <= packet.l4 && packet.l4 <= packet.end && usize::from(packet.end) <= frame.len());
    assert_eq!(packet.src.is_v4(), packet.dst.is_v4(), "one family");
    let padded = [&frame[..usize::from(packet.end)], &[0xa5; 7]].concat();
    assert_eq!(
        parse(&padded),
        Parsed::Subject(*packet),
        "padding is no part of it"
    );
    let key = packet.key(3);
    assert_eq!(key.reversed().reversed(), key);
    assert_eq!(
        packet.is_later_fragment(),
        packet.fragment.is_some_and(|part| part.offset > 0)
    );
    if packet.is_later_fragment() {
        assert_eq!(packet.transport, Transport::None, "a later fragment has no ports");
    }
    if let Some(part) = packet.fragment {
        assert!(part.more || part.offset > 0, "a whole datagram is no fragment");
        assert!(usize::from(part.offset) + usize::from(part.length) <= usize::from(u16::MAX));
    }
}

/// What a router or host would quote is a packet like any other: read on its own, it has the same key.
fn check_quotation(frame: &[u8], packet: &Packet) {
    let Transport::IcmpError { quoted: Some(quoted) } = packet.transport else {
        return;
    };
    let bytes = &frame[usize::from(packet.l4) + 8..usize::from(packet.end)];
    let kind: [u8; 2] = if packet.src.is_v4() { [8, 0] } else { [0x86, 0xdd] };
    // To a station, and a group of them: which it was is not quoted.
    for station in [2, 3] {
        let alone = [&[station, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &kind, bytes].concat();
        let alone = with_valid_checksum(&alone).unwrap_or(alone);
        let Parsed::Subject(cause) = parse(&alone) else {
            continue; // cut short, as quotations are, or one that never crosses
        };
        if matches!(cause.transport, Transport::None) {
            continue; // its ports are in another fragment, or behind more headers than are walked
        }
        let key = cause.key(0);
        assert_eq!(
            (
                quoted.src,
                quoted.dst,
                quoted.protocol,
                quoted.src_port,
                quoted.dst_port
            ),
            (key.src, key.dst, key.protocol, key.src_port, key.dst_port),
            "the quotation of a packet and the packet"
        );
    }
}

fn check_against_etherparse(frame: &[u8], packet: &Packet) {
    let Ok(theirs) = SlicedPacket::from_ethernet(&frame[..usize::from(packet.end)]) else {
        return; // it is stricter about headers behind those that decide
    };
    let mut vlan = 0_u32;
    for tag in &theirs.link_exts {
        match tag {
            LinkExtSlice::Vlan(tag) => vlan = vlan << 16 | 0x1000 | u32::from(tag.vlan_identifier().value()),
            _ => return, // MACsec: no IP to us
        }
    }
    assert_eq!(vlan, packet.vlan, "tags");
    let (src, dst, payload) = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => (
            Addr::v4(ip.header().source()),
            Addr::v4(ip.header().destination()),
            ip.payload(),
        ),
        Some(NetSlice::Ipv6(ip)) => (
            Addr::v6(ip.header().source()),
            Addr::v6(ip.header().destination()),
            ip.payload(),
        ),
        _ => panic!("{packet:?} is no IP to etherparse"),
    };
    assert_eq!((src, dst), (packet.src, packet.dst), "addresses");
    // Where the walks end at different headers, by design: authentication headers are a protocol of their own to us, and so
    // are mobility, HIP and shim6; and there is a limit to how many are walked.
    let stopped = matches!(packet.protocol, 51 | 135 | 139 | 140 | protocol::UNKNOWN);
    if stopped && payload.ip_number.0 != packet.protocol {
        return;
    }
    assert_eq!(
        payload.fragmented,
        packet.fragment.is_some(),
        "{packet:?} to etherparse"
    );
    if packet.is_later_fragment() {
        return; // it takes what is inside for further headers
    }
    assert_eq!(payload.ip_number.0, packet.protocol, "{packet:?} to etherparse");
    let ports = match &theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => return,
    };
    assert_eq!(packet.src_port().zip(packet.dst_port()), ports, "ports");
}

/// A partial sum is completed to a right one, and nothing else is touched.
fn check_completion(frame: &[u8], packet: &Packet) {
    let mut completed = frame.to_vec();
    let changed = checksum::complete_partial(&mut completed, packet);
    if !changed {
        return;
    }
    let (from, to) = match packet.protocol {
        protocol::TCP => (16, 18),
        protocol::UDP => (6, 8),
        _ => (8, 12),
    };
    let l4 = usize::from(packet.l4);
    completed[l4 + from..l4 + to].copy_from_slice(&frame[l4 + from..l4 + to]);
    assert_eq!(completed, frame, "more than the sum was changed");
}
