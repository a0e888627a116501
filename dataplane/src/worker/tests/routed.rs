//! Ports of kind pod, uplink and host: routes, neighbours, rewriting, ICMP errors.

use super::*;
use crate::{
    forward::{Hop, Neighbour, ResolveRequest, Route},
    wire::{Packet, Parsed, checksum, parse, protocol},
};

const CLIENT_PORT: PortId = PortId(0);
const WEB_PORT: PortId = PortId(1);
const UPLINK: PortId = PortId(2);
const HOST: PortId = PortId(3);

const POD_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
const WEB_MAC: [u8; 6] = [6, 0, 0, 0, 0, 2];
const ROUTER_MAC: [u8; 6] = [6, 0, 0, 0, 0, 3];
const KERNEL_MAC: [u8; 6] = [6, 0, 0, 0, 0, 4];
const ROUTER: [&str; 2] = ["172.16.0.1", "fd16::1"];
/// The kernel's own address, and not a node of the snapshot.
const OWN: [&str; 2] = ["172.16.0.9", "fd16::9"];

/// A node: two pods, an uplink with a router, the host.
fn node() -> ForwardingBuilder {
    let mut builder = ForwardingBuilder::new();
    builder.port(port(CLIENT_PORT, PortKind::Pod, Side::Pods));
    builder.port(port(WEB_PORT, PortKind::Pod, Side::Pods));
    builder.port(port(UPLINK, PortKind::Uplink, Side::Any));
    builder.port(port(HOST, PortKind::Host, Side::Any));
    builder.host(HOST, KERNEL_MAC);
    for family in [0, 1] {
        let longest = if family == 0 { 32 } else { 128 };
        builder.route(addr(CLIENT[family]), longest, Route::connected(CLIENT_PORT));
        builder.route(addr(BOX[family]), longest, Route::connected(WEB_PORT));
        builder.route(addr(WEB[family]), longest, Route::connected(WEB_PORT));
        builder.route(addr(OWN[family]), longest, Route::Local);
        builder.route(addr(NODE[family]), longest, Route::Local);
        builder.route(
            addr(["0.0.0.0", "::"][family]),
            0,
            Route::via(UPLINK, addr(ROUTER[family])),
        );
        builder.neighbour(CLIENT_PORT, addr(CLIENT[family]), Neighbour::Reachable(POD_MAC));
        builder.neighbour(WEB_PORT, addr(WEB[family]), Neighbour::Reachable(WEB_MAC));
        builder.neighbour(UPLINK, addr(ROUTER[family]), Neighbour::Reachable(ROUTER_MAC));
        builder.icmp_source(addr(["169.254.1.1", "fd16::9"][family]));
    }
    builder
}

fn mac(id: PortId) -> [u8; 6] {
    [2, 0, 0, 0, 1, id.0 as u8]
}

fn bed_of(builder: ForwardingBuilder) -> Bed {
    let mut bed = Bed::with(DataplaneConfig::default(), 1 << 16);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

/// From one address to another, to the Ethernet address of a port.
fn into(id: PortId, src: &str, dst: &str) -> Template {
    let mut template = from_to(src, dst);
    template.eth_dst = mac(id);
    template
}

/// What should come out: the same packet, one hop older, between these Ethernet addresses.
fn hop(template: &Template, from: [u8; 6], to: [u8; 6], ttl: u8) -> Template {
    let mut template = template.clone();
    (template.eth_src, template.eth_dst, template.ttl) = (from, to, ttl);
    template
}

fn read(frame: &[u8]) -> Packet {
    match parse(frame) {
        Parsed::Subject(packet) => packet,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pods_reach_each_other_the_world_and_the_host() {
    for family in [0, 1] {
        let mut bed = bed_of(node());
        let ask = into(CLIENT_PORT, CLIENT[family], WEB[family]);
        let out = bed.on(0, CLIENT_PORT, &ask.tcp(1, 80, SYN, b""));
        let want = hop(&ask, mac(WEB_PORT), WEB_MAC, 63).tcp(1, 80, SYN, b"");
        assert_eq!(out, [(WEB_PORT, want)]);
        let answer = into(WEB_PORT, WEB[family], CLIENT[family]);
        let out = bed.on(0, WEB_PORT, &answer.tcp(80, 1, SYN_ACK, b""));
        let want = hop(&answer, mac(CLIENT_PORT), POD_MAC, 63).tcp(80, 1, SYN_ACK, b"");
        assert_eq!(out, [(CLIENT_PORT, want)]);
        let world = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]);
        let out = bed.on(0, CLIENT_PORT, &world.udp(1, 53, b"x"));
        assert_eq!(
            out,
            [(UPLINK, hop(&world, mac(UPLINK), ROUTER_MAC, 63).udp(1, 53, b"x"))]
        );
        // To the host it is no hop, however old the packet is.
        let mut own = into(CLIENT_PORT, CLIENT[family], OWN[family]);
        own.ttl = 1;
        let out = bed.on(0, CLIENT_PORT, &own.udp(1, 53, b"x"));
        assert_eq!(
            out,
            [(HOST, hop(&own, mac(HOST), KERNEL_MAC, 1).udp(1, 53, b"x"))]
        );
        // Nor from it; what the egress guard redirects is addressed to the pod.
        let mut reply = from_to(OWN[family], CLIENT[family]);
        (reply.eth_dst, reply.ttl) = (POD_MAC, 1);
        let out = bed.on(0, HOST, &reply.udp(53, 1, b"x"));
        assert_eq!(
            out,
            [(
                CLIENT_PORT,
                hop(&reply, mac(CLIENT_PORT), POD_MAC, 1).udp(53, 1, b"x")
            )]
        );
        // And judged like all else.
        let probe = from_to(OWN[family], WEB[family]).tcp(1, 80, SYN, b"");
        bed.drops(HOST, &probe, DropReason::PolicyIngress);
    }
}

#[test]
fn what_is_not_for_the_router_is_dropped() {
    let mut bed = bed_of(node());
    let mut stray = into(UPLINK, OUTSIDER[0], CLIENT[0]);
    stray.eth_dst = [2, 9, 9, 9, 9, 9];
    bed.drops(UPLINK, &stray.udp(1, 2, b""), DropReason::NotSubject);
    let mut group = into(CLIENT_PORT, CLIENT[0], OUTSIDER[0]);
    group.eth_dst = [255; 6];
    bed.drops(CLIENT_PORT, &group.udp(1, 2, b""), DropReason::NotSubject);
    let mut tagged = into(CLIENT_PORT, CLIENT[0], OUTSIDER[0]);
    tagged.vlans = vec![3];
    bed.drops(CLIENT_PORT, &tagged.udp(1, 2, b""), DropReason::NotSubject);
    let mut multicast = into(CLIENT_PORT, CLIENT[0], "239.1.1.1");
    multicast.eth_dst = [1, 0, 0x5e, 1, 1, 1];
    bed.drops(CLIENT_PORT, &multicast.udp(1, 2, b""), DropReason::NotSubject);
    let local = into(CLIENT_PORT, CLIENT[1], "fe80::1");
    bed.drops(CLIENT_PORT, &local.udp(1, 2, b""), DropReason::MartianAddress);
}

#[test]
fn a_source_must_route_back_to_its_port() {
    for family in [0, 1] {
        let mut bed = bed_of(node());
        for src in [
            WEB[family],
            OUTSIDER[family],
            NODE[family],
            UNOWNED[family],
            OWN[family],
        ] {
            let frame = into(CLIENT_PORT, src, OUTSIDER[family]).udp(1, 2, b"");
            bed.drops(CLIENT_PORT, &frame, DropReason::SpoofedSource);
        }
    }
}

#[test]
fn routes_may_refuse() {
    for (family, net) in [(0, "198.51.100.0"), (1, "2001:db8:1::")] {
        for (route, reason, kind) in [
            (Some(Route::Blackhole), DropReason::RouteRefused, None),
            (
                Some(Route::Unreachable),
                DropReason::RouteRefused,
                Some([[3, 0], [1, 0]][family]),
            ),
            (
                Some(Route::Prohibit),
                DropReason::RouteRefused,
                Some([[3, 13], [1, 1]][family]),
            ),
            (None, DropReason::NoRoute, Some([[3, 0], [1, 0]][family])),
            (
                Some(Route::connected(CLIENT_PORT)),
                DropReason::PortUnavailable,
                None,
            ),
            (
                Some(Route::connected(PortId(7))),
                DropReason::PortUnavailable,
                None,
            ),
        ] {
            let mut builder = node();
            match route {
                Some(route) => builder.route(addr(net), 24, route),
                None => {
                    builder = ForwardingBuilder::new();
                    builder.port(port(CLIENT_PORT, PortKind::Pod, Side::Pods));
                    builder.icmp_source(addr(OWN[family]));
                    builder.route(addr(CLIENT[family]), 128, Route::connected(CLIENT_PORT))
                }
            };
            let mut bed = bed_of(builder);
            let dst = if family == 0 {
                "198.51.100.7"
            } else {
                "2001:db8:1::7"
            };
            let frame = into(CLIENT_PORT, CLIENT[family], dst).udp(1, 2, b"hello");
            let sent = bed.on(0, CLIENT_PORT, &frame);
            assert_eq!(bed.stats.drops(reason), 1, "{}", reason.name());
            match kind {
                None => assert_eq!(sent, []),
                Some([kind, code]) => {
                    assert_eq!(sent.len(), 1);
                    let l4 = usize::from(read(&sent[0].1).l4);
                    assert_eq!(
                        (sent[0].0, &sent[0].1[l4..l4 + 2]),
                        (CLIENT_PORT, &[kind, code][..])
                    );
                }
            }
        }
    }
}

/// Checks an ICMP error: sums, addresses, quotation.
fn error(sent: &[(PortId, Vec<u8>)], to: PortId, about: &[u8], want: [u8; 2]) -> [u8; 4] {
    assert_eq!(sent.len(), 1);
    let (out, frame) = &sent[0];
    let (packet, cause) = (read(frame), read(about));
    assert_eq!((*out, packet.dst), (to, cause.src));
    assert_eq!((&frame[..6], &frame[6..12]), (&about[6..12], &mac(to)[..]));
    let icmp = &frame[usize::from(packet.l4)..usize::from(packet.end)];
    let pseudo = if packet.src.is_v4() {
        0
    } else {
        checksum::pseudo_header(packet.src, packet.dst, protocol::ICMPV6, packet.l4_length())
    };
    assert_eq!(checksum::fold(pseudo + checksum::sum(icmp)), 0xffff);
    assert_eq!(icmp[..2], want);
    assert!(about[14..].starts_with(&icmp[8..]), "the packet as it came");
    assert!(frame.len() <= 14 + if packet.src.is_v4() { 576 } else { 1280 });
    [icmp[4], icmp[5], icmp[6], icmp[7]]
}

#[test]
fn a_packet_too_old_or_too_big_is_answered() {
    for family in [0, 1] {
        let mut builder = node();
        let mut narrow = port(UPLINK, PortKind::Uplink, Side::Any);
        narrow.mtu = 1300;
        builder.port(narrow);
        let mut bed = bed_of(builder);
        let mut old = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]);
        for ttl in [0, 1] {
            old.ttl = ttl;
            let frame = old.udp(1, 2, b"hello");
            let sent = bed.on(0, CLIENT_PORT, &frame);
            error(&sent, CLIENT_PORT, &frame, [[11, 0], [3, 0]][family]);
        }
        assert_eq!(bed.stats.drops(DropReason::TtlExceeded), 2);
        let big = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]).udp(1, 2, &[7; 1400]);
        let sent = bed.on(0, CLIENT_PORT, &big);
        let word = error(&sent, CLIENT_PORT, &big, [[3, 4], [2, 0]][family]);
        assert_eq!(u32::from_be_bytes(word), 1300);
        assert_eq!(bed.stats.drops(DropReason::TooBig), 1);
        // Not about errors and later fragments; and not without end.
        let mut error = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]);
        let _ = bed.on(
            0,
            UPLINK,
            &into(UPLINK, OUTSIDER[family], CLIENT[family]).udp(5, 6, b"12345678"),
        );
        error.ttl = 1;
        let cause = from_to(OUTSIDER[family], CLIENT[family]).udp(5, 6, b"12345678");
        let frame = error.icmp(
            [3, 1][family],
            3 - family as u8 * 2 + family as u8,
            [0; 4],
            &cause[14..],
        );
        assert_eq!(bed.on(0, CLIENT_PORT, &frame), []);
        let answered = (0..20)
            .filter(|_| !bed.on(0, CLIENT_PORT, &big).is_empty())
            .count();
        assert_eq!(answered, 7, "of 10 in one go, 3 were used");
        assert_eq!(bed.count(|w| w.icmp_sent.get()), bed.count(|w| w.generated.get()));
    }
}

#[test]
fn an_unresolved_neighbour_is_asked_for_and_waited_for() {
    for family in [0, 1] {
        let mut without = node();
        without.neighbour(UPLINK, addr(ROUTER[family]), Neighbour::Failed);
        let request = ResolveRequest {
            port: WEB_PORT,
            addr: addr(BOX[family]),
        };
        let mut bed = bed_of(node());
        // The box's neighbour entry is missing.
        let from_client = |n: u8| {
            let mut template = from_to(CLIENT[family], BOX[family]);
            template.eth_dst = mac(CLIENT_PORT);
            template.udp(n.into(), 2, &[n])
        };
        for n in 0..3 {
            assert_eq!(bed.on(0, CLIENT_PORT, &from_client(n)), []);
        }
        assert_eq!(bed.count(|w| w.held.get()), 3);
        assert!(bed.workers[0].take_requests_note(), "whoever resolves is told");
        assert!(!bed.workers[0].take_requests_note(), "once");
        assert_eq!(
            (bed.plane.next_resolve(), bed.plane.next_resolve()),
            (Some(request), None)
        );
        bed.drops(CLIENT_PORT, &from_client(3), DropReason::NeighbourUnresolved);
        // Found: they go, in order.
        let mut found = node();
        found.neighbour(WEB_PORT, addr(BOX[family]), Neighbour::Reachable(POD_MAC));
        bed.plane.forwarding.publish(found.build());
        let sent = bed.run();
        let template = hop(&from_to(CLIENT[family], BOX[family]), mac(WEB_PORT), POD_MAC, 63);
        let want: Vec<_> = (0..3)
            .map(|n: u8| (WEB_PORT, template.udp(n.into(), 2, &[n])))
            .collect();
        assert_eq!(sent, want);
        assert_eq!(bed.count(|w| w.held.get()), 0);
        // Not found in time.
        bed.plane.forwarding.publish(node().build());
        assert_eq!(bed.on(0, CLIENT_PORT, &from_client(9)), []);
        bed.wait(Nanos::from_secs(2));
        let sent = bed.run();
        assert_eq!(sent.len(), 1, "an ICMP error");
        assert_eq!(bed.stats.drops(DropReason::NeighbourUnresolved), 2);
        // Known not to be there.
        bed.plane.forwarding.publish(without.build());
        let world = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]).udp(1, 2, b"");
        let sent = bed.on(0, CLIENT_PORT, &world);
        error(&sent, CLIENT_PORT, &world, [[3, 1], [1, 3]][family]);
        assert_eq!(bed.stats.drops(DropReason::NeighbourUnresolved), 3);
        while bed
            .plane
            .next_resolve()
            .is_some_and(|asked| asked.addr != addr(ROUTER[family]))
        {}
        let _ = bed.on(0, CLIENT_PORT, &world);
        assert_eq!(
            bed.plane.next_resolve().map(|asked| asked.port),
            Some(UPLINK),
            "asked for again"
        );
        let explained: Vec<_> = std::iter::from_fn(|| bed.stats.next_sample()).collect();
        assert!(
            explained
                .iter()
                .any(|sample| sample.key.is_some_and(|key| key.dst == addr(OUTSIDER[family])))
        );
    }
}

#[test]
fn an_empty_pool_is_a_reason_of_its_own() {
    let mut bed = bed_of(node());
    let mut template = from_to(CLIENT[0], BOX[0]);
    template.eth_dst = mac(CLIENT_PORT);
    assert_eq!(bed.on(0, CLIENT_PORT, &template.udp(1, 2, b"")), []);
    let mut found = node();
    found.neighbour(WEB_PORT, addr(BOX[0]), Neighbour::Reachable(POD_MAC));
    bed.plane.forwarding.publish(found.build());
    // All frames are in a queue that is not emptied.
    let mut other = MemoryIo::new(&bed.pool, &[PortId(9)]);
    while other.inject(0, &[0; 64]) {}
    assert_eq!(bed.run(), []);
    assert_eq!(bed.stats.drops(DropReason::PoolEmpty), 1);
    let mut burst = crate::io::Burst::new();
    loop {
        use crate::io::PacketIo;
        other.receive(0, &mut burst);
        if burst.is_empty() {
            break;
        }
        for frame in burst.drain(..) {
            other.release(frame);
        }
    }
}

#[test]
fn several_hops_are_used_by_flow_and_by_weight() {
    let mut builder = node();
    let hop = |gateway: &str, weight| Hop {
        port: UPLINK,
        gateway: Some(addr(gateway)),
        weight,
    };
    builder.route(
        addr("192.0.2.0"),
        24,
        Route::Multipath([hop("172.16.0.1", 1), hop("172.16.0.2", 3)].into()),
    );
    builder.neighbour(
        UPLINK,
        addr("172.16.0.2"),
        Neighbour::Reachable([6, 0, 0, 0, 0, 9]),
    );
    let mut bed = bed_of(builder);
    let template = into(CLIENT_PORT, CLIENT[0], OUTSIDER[0]);
    let mut second = 0;
    for port in 0..400 {
        let frame = template.udp(port, 53, b"");
        let (first, again) = (bed.on(0, CLIENT_PORT, &frame), bed.on(0, CLIENT_PORT, &frame));
        assert_eq!(first[0].1, again[0].1);
        second += usize::from(first[0].1[5] == 9);
    }
    assert!(
        (240..360).contains(&second),
        "{second} of 400 by the hop of weight 3 of 4"
    );
    // All parts of a datagram by one.
    let mut parts = std::collections::BTreeSet::new();
    for offset in [0, 32, 64] {
        let mut template = template.clone();
        template.fragment = Some((1, offset, true));
        let mut l4 = [0; 32];
        l4[..8].copy_from_slice(&[0, 1, 0, 2, 0, 96, 0, 0]);
        parts.insert(bed.on(0, CLIENT_PORT, &template.ip(17, &l4))[0].1[5]);
    }
    assert_eq!(parts.len(), 1);
}

#[test]
fn partial_checksums_of_veths_are_completed() {
    for family in [0, 1] {
        let mut builder = node();
        let mut veth = port(CLIENT_PORT, PortKind::Pod, Side::Pods);
        veth.partial_checksums = true;
        builder.port(veth);
        let mut bed = bed_of(builder);
        let template = into(CLIENT_PORT, CLIENT[family], WEB[family]);
        let right = template.tcp(1, 80, SYN, b"some payload");
        let packet = read(&right);
        let mut partial = right.clone();
        let field = usize::from(packet.l4) + 16;
        let pseudo = checksum::pseudo_header(packet.src, packet.dst, 6, packet.l4_length());
        partial[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        let want = hop(&template, mac(WEB_PORT), WEB_MAC, 63).tcp(1, 80, SYN, b"some payload");
        assert_eq!(bed.on(0, CLIENT_PORT, &partial), [(WEB_PORT, want)]);
        assert_eq!(bed.count(|w| w.checksums_completed.get()), 1);
        let _ = bed.on(0, CLIENT_PORT, &right);
        assert_eq!(bed.count(|w| w.checksums_completed.get()), 1);
    }
}

/// SEMANTICS 47: the flow was allowed because a node's address can be believed on the host's port.
#[test]
fn a_probes_flow_is_no_way_in_for_who_claims_the_nodes_address_elsewhere() {
    for family in [0, 1] {
        let mut bed = bed_of(node());
        let from = |id| into(id, NODE[family], WEB[family]);
        assert_eq!(bed.on(0, HOST, &from(HOST).tcp(1000, 9999, SYN, b"")).len(), 1);
        for flags in [SYN, ACK, RST] {
            let forged = from(UPLINK).tcp(1000, 9999, flags, b"");
            bed.drops(UPLINK, &forged, DropReason::SpoofedSource);
        }
        assert_eq!(bed.on(0, HOST, &from(HOST).tcp(1000, 9999, ACK, b"")).len(), 1);
        // Nor for an answer to what the pod says to its node.
        let back = into(WEB_PORT, WEB[family], NODE[family]);
        assert_eq!(bed.on(0, WEB_PORT, &back.tcp(1, 2, SYN, b"")).len(), 1);
        let forged = from(UPLINK).tcp(2, 1, SYN_ACK, b"");
        bed.drops(UPLINK, &forged, DropReason::SpoofedSource);
        assert_eq!(bed.on(0, HOST, &from(HOST).tcp(2, 1, SYN_ACK, b"")).len(), 1);
    }
}

#[test]
fn a_source_is_asked_for_its_port_again_when_its_flow_is_judged_again() {
    for family in [0, 1] {
        let mut bed = bed_of(node());
        let frame = into(CLIENT_PORT, CLIENT[family], WEB[family]).udp(1, 53, b"");
        assert_eq!(bed.on(0, CLIENT_PORT, &frame).len(), 1);
        // The address is another pod's now.
        let mut moved = node();
        let longest = [32, 128][family];
        moved.route(addr(CLIENT[family]), longest, Route::connected(HOST));
        bed.plane.forwarding.publish(moved.build());
        bed.publish(World {
            web_epoch: 21,
            ..World::new(2)
        });
        bed.drops(CLIENT_PORT, &frame, DropReason::SpoofedSource);
    }
}

/// RFC 1122 3.2.2, RFC 4443 2.4 (e).
#[test]
fn nothing_is_said_about_an_icmp_error_that_found_no_neighbour() {
    for (family, unreachable) in [(0, 3), (1, 1)] {
        let mut bed = bed_of(node());
        let asked = into(CLIENT_PORT, CLIENT[family], BOX[family]).udp(1, 2, b"12345678");
        let mut reached = node();
        reached.neighbour(WEB_PORT, addr(BOX[family]), Neighbour::Reachable(POD_MAC));
        bed.plane.forwarding.publish(reached.build());
        assert_eq!(bed.on(0, CLIENT_PORT, &asked).len(), 1);
        bed.plane.forwarding.publish(node().build());
        let answer = from_to(BOX[family], CLIENT[family]).udp(2, 1, b"12345678");
        let about =
            into(CLIENT_PORT, CLIENT[family], BOX[family]).icmp(unreachable, 0, [0; 4], &answer[14..]);
        assert_eq!(bed.on(0, CLIENT_PORT, &about), []);
        assert_eq!(bed.count(|w| w.held.get()), 1);
        bed.wait(Nanos::from_secs(2));
        assert_eq!(bed.run(), []);
        assert_eq!(bed.stats.drops(DropReason::NeighbourUnresolved), 1);
    }
}

/// Fuzzing found that types without a meaning yet were answered.
#[test]
fn no_error_is_sent_about_an_error_of_any_type() {
    for (family, kinds) in [(0, &[4, 5][..]), (1, &[5, 100, 127])] {
        let mut bed = bed_of(node());
        let mut old = into(CLIENT_PORT, CLIENT[family], OUTSIDER[family]);
        old.ttl = 1;
        for kind in kinds {
            assert_eq!(
                bed.on(0, CLIENT_PORT, &old.icmp(*kind, 0, [0; 4], b"")),
                [],
                "{kind}"
            );
        }
        let question = [13, 139][family];
        let answers = bed.on(0, CLIENT_PORT, &old.icmp(question, 0, [0; 4], b""));
        assert_eq!(answers.len(), 1, "a question is answered");
    }
}
