//! Packets of several buffers: judged by their first, forwarded or dropped whole.

use super::*;
use crate::{
    forward::{Neighbour, Route},
    wire::{Packet, Parsed, checksum, parse},
};

/// What one buffer of a jumbo frame holds, as AF_XDP in copy mode cuts them.
const PIECE: usize = 1920;
/// The memory pool of these tests has buffers of 2,048 bytes.
const MTU: u16 = 9000;

/// A wire for jumbo frames.
fn jumbo_wire(partial_checksums: bool) -> Bed {
    let mut bed = Bed::wire();
    let mut builder = ForwardingBuilder::new();
    for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
        let mut end = port(id, PortKind::Wire { peer }, Side::Any);
        (end.mtu, end.partial_checksums) = (MTU, partial_checksums);
        builder.port(end);
    }
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

impl Bed {
    /// Sends a packet of several buffers into a port: how many bytes each of the first has. The last has what is left.
    fn on_pieces(&mut self, id: PortId, frame: &[u8], cuts: &[usize]) -> Vec<(PortId, Vec<u8>)> {
        let (mut pieces, mut left) = (Vec::new(), frame);
        for cut in cuts {
            let (piece, rest) = left.split_at(*cut);
            pieces.push(piece);
            left = rest;
        }
        pieces.push(left);
        assert!(self.workers[0].io().inject_pieces(usize::from(id.0), &pieces));
        self.run()
    }

    fn crosses_in_pieces(&mut self, id: PortId, frame: &[u8], cuts: &[usize]) -> bool {
        let sent = self.on_pieces(id, frame, cuts);
        if sent.is_empty() {
            return false;
        }
        let peer = if id == INSIDE { OUTSIDE } else { INSIDE };
        assert!(sent == [(peer, frame.to_vec())], "unchanged, {cuts:?}");
        true
    }

    fn drops_pieces(&mut self, id: PortId, frame: &[u8], cuts: &[usize], reason: DropReason) {
        self.drops_one(reason, |bed| bed.on_pieces(id, frame, cuts));
    }
}

/// As the kernel cuts a frame.
fn cuts(length: usize) -> Vec<usize> {
    vec![PIECE; (length - 1) / PIECE]
}

fn read(frame: &[u8]) -> Packet {
    match parse(frame) {
        Parsed::Subject(packet) => packet,
        other => panic!("{other:?}"),
    }
}

#[test]
fn packets_of_every_length_around_a_buffers_cross_whole() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(false);
        let template = from_to(CLIENT[family], OUTSIDER[family]);
        let headers = template.udp(1, 2, b"").len();
        let largest = usize::from(MTU) + 14;
        let mut bytes = 0;
        let mut lengths = vec![headers, largest - 1, largest];
        lengths.extend((1..=4).flat_map(|nth| [nth * PIECE - 1, nth * PIECE, nth * PIECE + 1]));
        for length in &lengths {
            let frame = template.udp(1, 2, &payload(length - headers));
            assert!(
                bed.crosses_in_pieces(INSIDE, &frame, &cuts(*length)),
                "{length} bytes"
            );
            bytes += *length as u64;
        }
        // One packet each, of all its bytes.
        let counters = &bed.stats.port(0, INSIDE).unwrap();
        assert_eq!(
            (counters.rx_frames.get(), counters.rx_bytes.get()),
            (lengths.len() as u64, bytes)
        );
        assert_eq!(bed.stats.port(0, OUTSIDE).unwrap().tx_bytes.get(), bytes);
        let flow = &bed.flows()[0];
        assert_eq!(flow.packets[0], lengths.len() as u64);
    }
}

#[test]
fn pieces_of_any_size_are_one_packet_if_the_headers_are_in_the_first() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(true);
        let template = from_to(CLIENT[family], WEB[family]);
        let segment = template.tcp(1, 80, SYN, &payload(300));
        let headers = template.tcp(1, 80, SYN, b"").len();
        for first in 1..segment.len() {
            if first < headers {
                bed.drops_pieces(INSIDE, &segment, &[first], DropReason::HeadersSplit);
            } else {
                assert!(bed.crosses_in_pieces(INSIDE, &segment, &[first]), "{first}");
            }
        }
        // The most buffers that there can be, of one byte each.
        let mut ones = vec![headers];
        ones.extend([1; 16]);
        assert!(bed.crosses_in_pieces(INSIDE, &segment, &ones));
        let mut ones = vec![1];
        ones.extend([1; 16]);
        bed.drops_pieces(INSIDE, &segment, &ones, DropReason::HeadersSplit);
    }
}

#[test]
fn what_is_cut_short_is_told_from_what_is_split() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(false);
        let template = from_to(CLIENT[family], OUTSIDER[family]);
        let frame = template.udp(1, 2, &payload(4000));
        let short = &frame[..frame.len() - 1];
        bed.drops_pieces(INSIDE, short, &cuts(short.len()), DropReason::Truncated);
        // An extension header that reaches beyond the first buffer.
        if family == 1 {
            let mut deep = template.clone();
            deep.extensions = vec![(60, vec![0; 8 * 100 + 6])];
            let frame = deep.udp(1, 2, &payload(100));
            let headers = frame.len() - 100;
            for first in [60, 800, headers - 1] {
                bed.drops_pieces(INSIDE, &frame, &[first], DropReason::HeadersSplit);
            }
            assert!(bed.crosses_in_pieces(INSIDE, &frame, &[headers]));
        }
    }
}

#[test]
fn a_chain_longer_than_its_port_drops_and_so_does_what_is_behind_a_packet() {
    let mut bed = jumbo_wire(false);
    let template = from_to(CLIENT[0], OUTSIDER[0]);
    let headers = template.udp(1, 2, b"").len();
    let room = usize::from(MTU) + 22;
    for (length, reason) in [
        (room - 8, None), // as long as its MTU allows
        (room - 7, Some(DropReason::TooBig)),
        (room, Some(DropReason::TooBig)),
        (room + 1, Some(DropReason::ChainTooLong)),
        (PIECE * 17, Some(DropReason::ChainTooLong)),
    ] {
        let frame = template.udp(1, 2, &payload(length - headers));
        match reason {
            None => assert!(bed.crosses_in_pieces(INSIDE, &frame, &cuts(length))),
            Some(reason) => bed.drops_pieces(INSIDE, &frame, &cuts(length), reason),
        }
    }
    // A short packet with much behind it would cross to an end of a smaller MTU.
    let mut frame = template.udp(1, 2, b"short");
    let end = frame.len();
    frame.resize(end + 32, 0);
    assert!(bed.crosses_in_pieces(INSIDE, &frame, &[end]));
    frame.resize(end + 33, 0);
    bed.drops_pieces(INSIDE, &frame, &[end], DropReason::Malformed);
}

#[test]
fn denied_and_refused_chains_give_all_their_buffers_back() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(false);
        let frame = from_to(CLIENT[family], WEB[family]).tcp(1, 81, SYN, &payload(8900));
        bed.drops_pieces(INSIDE, &frame, &cuts(frame.len()), DropReason::PolicyIngress);
        let frame = from_to(UNOWNED[family], CLIENT[family]).udp(1, 53, &payload(8900));
        bed.drops_pieces(INSIDE, &frame, &cuts(frame.len()), DropReason::UnknownEndpoint);
        // The TX ring is full.
        bed.workers[0].io().limit_room(0);
        let frame = from_to(CLIENT[family], OUTSIDER[family]).udp(1, 53, &payload(8900));
        bed.drops_pieces(INSIDE, &frame, &cuts(frame.len()), DropReason::TxFull);
        bed.workers[0].io().limit_room(usize::MAX);
        assert!(bed.crosses_in_pieces(INSIDE, &frame, &cuts(frame.len())));
    }
}

/// With only the pseudo-header's sum in the checksum field, as a veth hands packets over.
fn partial(frame: &[u8], field: usize) -> Vec<u8> {
    let packet = read(frame);
    let mut frame = frame.to_vec();
    let at = usize::from(packet.l4) + field;
    let pseudo = checksum::pseudo_header(packet.src, packet.dst, packet.protocol, packet.l4_length());
    frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    frame
}

#[test]
fn partial_checksums_are_completed_over_all_buffers() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(true);
        let template = from_to(CLIENT[family], OUTSIDER[family]);
        for length in [1, 2, 1999, 2000, 8900] {
            let bytes = payload(length);
            for (whole, field) in [
                (template.tcp(1, 80, SYN, &bytes), 16),
                (template.udp(1, 53, &bytes), 6),
            ] {
                let headers = whole.len() - length;
                // Cuts at odd and even places, and single bytes.
                for cut in [
                    cuts(whole.len()),
                    vec![headers.max(whole.len().min(PIECE) - 1)],
                    [vec![headers], vec![1; (length - 1).min(5)]].concat(),
                ] {
                    let left = whole.len() - cut.iter().sum::<usize>();
                    if left == 0 || left > 2048 {
                        continue;
                    }
                    let sent = bed.on_pieces(INSIDE, &partial(&whole, field), &cut);
                    assert!(sent == [(OUTSIDE, whole.clone())], "{length} bytes, {cut:?}");
                    // A right checksum stays.
                    assert!(bed.crosses_in_pieces(INSIDE, &whole, &cut));
                }
            }
        }
        assert!(bed.count(|worker| worker.checksums_completed.get()) > 10);
        // SCTP's is a CRC over all of it.
        let mut l4 = [&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3][..], &payload(4001)].concat();
        let frame = template.ip(132, &l4);
        let crc = crc32c::crc32c(&l4);
        l4[8..12].copy_from_slice(&crc.to_le_bytes());
        let sent = bed.on_pieces(INSIDE, &frame, &[999, 1001, 2001]);
        assert!(sent == [(OUTSIDE, template.ip(132, &l4))]);
    }
}

#[test]
fn fragments_of_jumbo_frames_follow_their_first() {
    for family in [0, 1] {
        let mut bed = jumbo_wire(true);
        let mut template = from_to(CLIENT[family], WEB[family]);
        let whole = template.udp(1, 53, &payload(17_000));
        let l4 = &whole[usize::from(read(&whole).l4)..];
        for (port, passes) in [(53, true), (54, false)] {
            let mut l4 = l4.to_vec();
            l4[2..4].copy_from_slice(&u16::to_be_bytes(port));
            let id = u32::from(port);
            template.fragment = Some((id, 0, true));
            let first = template.ip(17, &l4[..8800]);
            template.fragment = Some((id, 8800, false));
            let last = template.ip(17, &l4[8800..]);
            assert_eq!(
                bed.crosses_in_pieces(INSIDE, &first, &cuts(first.len())),
                passes,
                "{port}"
            );
            assert_eq!(bed.crosses_in_pieces(INSIDE, &last, &cuts(last.len())), passes);
        }
    }
}

#[test]
fn frames_that_no_policy_speaks_about_cross_only_if_they_fit() {
    let mut bed = Bed::wire().settled();
    let mut frame = from_to(CLIENT[0], "224.0.0.251").udp(5353, 5353, &payload(4000));
    for (far_mtu, table, drop) in [
        (MTU, NotSubjectTable::ALL, None),
        (1500, NotSubjectTable::ALL, Some(DropReason::TooBig)),
        (MTU, NotSubjectTable::WIRE, Some(DropReason::NotSubject)),
    ] {
        let mut builder = ForwardingBuilder::new();
        for (id, peer, mtu) in [(INSIDE, OUTSIDE, MTU), (OUTSIDE, INSIDE, far_mtu)] {
            let mut end = port(id, PortKind::Wire { peer }, Side::Any);
            (end.mtu, end.not_subject) = (mtu, table);
            builder.port(end);
        }
        bed.plane.forwarding.publish(builder.build());
        match drop {
            None => assert!(bed.crosses_in_pieces(INSIDE, &frame, &cuts(frame.len()))),
            Some(reason) => bed.drops_pieces(INSIDE, &frame, &cuts(frame.len()), reason),
        }
    }
    // ARP has no room for more, and neither has a frame of another kind if nobody may send it.
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    bed.drops_pieces(INSIDE, &frame, &cuts(frame.len()), DropReason::Malformed);
}

#[test]
fn several_workers_hand_chains_over_whole() {
    let config = DataplaneConfig {
        workers: 4,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 1 << 12);
    bed.publish(World::new(1));
    let mut builder = ForwardingBuilder::new();
    for (id, peer) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
        let mut end = port(id, PortKind::Wire { peer }, Side::Any);
        end.mtu = MTU;
        builder.port(end);
    }
    bed.plane.forwarding.publish(builder.build());
    let mut bed = bed.settled();
    for last in 1..40 {
        let frame = from_to(CLIENT[0], &format!("192.0.2.{last}")).udp(1, 2, &payload(8000 + last));
        assert!(bed.crosses_in_pieces(INSIDE, &frame, &cuts(frame.len())));
    }
    assert!(bed.count(|worker| worker.handed_over.get()) > 10);
}

const POD_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
const ROUTER_MAC: [u8; 6] = [6, 0, 0, 0, 0, 3];
const POD_PORT: PortId = PortId(0);
const UPLINK: PortId = PortId(2);

/// A router: a pod port for jumbo frames, and an uplink of another MTU.
fn router(uplink_mtu: u16) -> Bed {
    let mut bed = Bed::with(DataplaneConfig::default(), 1 << 12);
    bed.publish(World::new(1));
    let mut builder = ForwardingBuilder::new();
    for (id, kind, side, mtu) in [
        (POD_PORT, PortKind::Pod, Side::Pods, MTU),
        (UPLINK, PortKind::Uplink, Side::Any, uplink_mtu),
    ] {
        let mut end = port(id, kind, side);
        end.mtu = mtu;
        builder.port(end);
    }
    for family in [0, 1] {
        let longest = if family == 0 { 32 } else { 128 };
        let gateway = addr(["172.16.0.1", "fd16::1"][family]);
        builder.route(addr(CLIENT[family]), longest, Route::connected(POD_PORT));
        builder.route(addr(["0.0.0.0", "::"][family]), 0, Route::via(UPLINK, gateway));
        builder.neighbour(POD_PORT, addr(CLIENT[family]), Neighbour::Reachable(POD_MAC));
        builder.neighbour(UPLINK, gateway, Neighbour::Reachable(ROUTER_MAC));
        builder.icmp_source(addr(["169.254.1.1", "fd16::9"][family]));
    }
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

#[test]
fn a_router_rewrites_the_first_buffer_alone() {
    for family in [0, 1] {
        let mut bed = router(MTU);
        let mut ask = from_to(CLIENT[family], OUTSIDER[family]);
        ask.eth_dst = [2, 0, 0, 0, 1, POD_PORT.0 as u8];
        let frame = ask.udp(1, 2, &payload(8900));
        let sent = bed.on_pieces(POD_PORT, &frame, &cuts(frame.len()));
        let mut routed = ask.clone();
        (routed.eth_src, routed.eth_dst) = ([2, 0, 0, 0, 1, UPLINK.0 as u8], ROUTER_MAC);
        routed.ttl = 63;
        assert!(sent == [(UPLINK, routed.udp(1, 2, &payload(8900)))]);
    }
}

#[test]
fn a_router_answers_a_chain_that_is_too_big_with_the_mtu() {
    for family in [0, 1] {
        let mut bed = router(1500);
        let mut ask = from_to(CLIENT[family], OUTSIDER[family]);
        ask.eth_dst = [2, 0, 0, 0, 1, POD_PORT.0 as u8];
        ask.dont_fragment = true;
        let frame = ask.tcp(1, 80, SYN, &payload(8900));
        let (l3, longest) = (14, [576, 1280][family]);
        for first in [PIECE, 200] {
            let sent = if first == PIECE {
                bed.on_pieces(POD_PORT, &frame, &cuts(frame.len()))
            } else {
                bed.on_pieces(
                    POD_PORT,
                    &frame,
                    &[&[first][..], &cuts(frame.len() - first)].concat(),
                )
            };
            let [(to, error)] = &sent[..] else {
                panic!("{sent:?}")
            };
            assert_eq!(*to, POD_PORT);
            let packet = read(error);
            assert_eq!(packet.dst, addr(CLIENT[family]));
            let icmp = &error[usize::from(packet.l4)..];
            let (kind, mtu) = ([[3, 4], [2, 0]][family], &icmp[4..8]);
            assert_eq!(icmp[..2], kind);
            assert_eq!(mtu, 1500u32.to_be_bytes());
            // As much is quoted as may be, and as the first buffer holds.
            let quoted = error.len() - usize::from(packet.l4) - 8;
            let header = [20, 40][family];
            assert_eq!(quoted, (longest - header - 8).min(first - l3));
            assert_eq!(&icmp[8..], &frame[l3..l3 + quoted]);
        }
        assert_eq!(bed.stats.drops(DropReason::TooBig), 2);
    }
}

#[test]
fn a_chain_does_not_wait_for_a_neighbour() {
    let mut bed = router(MTU);
    let mut builder = ForwardingBuilder::new();
    for (id, kind, side) in [
        (POD_PORT, PortKind::Pod, Side::Pods),
        (UPLINK, PortKind::Uplink, Side::Any),
    ] {
        let mut end = port(id, kind, side);
        end.mtu = MTU;
        builder.port(end);
    }
    builder.route(addr(CLIENT[0]), 32, Route::connected(POD_PORT));
    builder.route(addr("0.0.0.0"), 0, Route::via(UPLINK, addr("172.16.0.1")));
    bed.plane.forwarding.publish(builder.build());
    let mut ask = from_to(CLIENT[0], OUTSIDER[0]);
    ask.eth_dst = [2, 0, 0, 0, 1, POD_PORT.0 as u8];
    let frame = ask.udp(1, 2, &payload(8900));
    bed.drops_pieces(
        POD_PORT,
        &frame,
        &cuts(frame.len()),
        DropReason::NeighbourUnresolved,
    );
    assert_eq!(bed.count(|worker| worker.held.get()), 0);
    assert!(bed.plane.next_resolve().is_some(), "it is asked for");
}
