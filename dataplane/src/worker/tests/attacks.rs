//! What somebody may try from outside, from a pod or from another node, in memory; `tests/tests/attacks.rs` tries the same
//! with real packets.

use super::*;
use crate::{
    dataplane::StationReport,
    flow::memory::SEGMENTS,
    forward::{Hop, Neighbour, NetworkPlace, Route},
    wire::{Parsed, subject::NotSubject},
};

/// A wire whose ends say whose addresses are there.
fn sided() -> Bed {
    with_sides(Side::Inside, Side::Outside)
}

fn with_sides(inside: Side, outside: Side) -> Bed {
    let mut bed = Bed::wire();
    let mut builder = wire();
    builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, inside));
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, outside));
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

const POD: PortId = PortId(0);
pub(super) const LEFT: PortId = PortId(1);
const RIGHT: PortId = PortId(2);
const HOST: PortId = PortId(3);
const OWN: [&str; 2] = ["172.16.0.9", "fd16::9"];
const ROUTER_MAC: [u8; 6] = [6, 0, 0, 0, 0, 3];

/// A router with a pod, two uplinks and the host; the world is behind the left uplink, or behind both.
pub(super) fn router(both: bool) -> ForwardingBuilder {
    let mut builder = ForwardingBuilder::new();
    builder.port(port(POD, PortKind::Pod, Side::Pods));
    builder.port(port(LEFT, PortKind::Uplink, Side::Any));
    builder.port(port(RIGHT, PortKind::Uplink, Side::Any));
    builder.port(port(HOST, PortKind::Host, Side::Any));
    builder.host(HOST, [6, 0, 0, 0, 0, 4]);
    for family in [0, 1] {
        let longest = [32, 128][family];
        let gateway = addr(["172.16.0.1", "fd16::1"][family]);
        builder.route(addr(WEB[family]), longest, Route::connected(POD));
        builder.route(addr(BOX[family]), longest, Route::connected(POD));
        builder.route(addr(OWN[family]), longest, Route::Local);
        builder.neighbour(POD, addr(WEB[family]), Neighbour::Reachable([6; 6]));
        builder.neighbour(POD, addr(BOX[family]), Neighbour::Reachable([6; 6]));
        let hop = |port| Hop {
            port,
            gateway: Some(gateway),
            weight: 1,
        };
        let world = if both {
            Route::Multipath([hop(LEFT), hop(RIGHT)].into())
        } else {
            Route::Hop(hop(LEFT))
        };
        builder.route(addr(["0.0.0.0", "::"][family]), 0, world);
        for port in [LEFT, RIGHT] {
            builder.neighbour(port, gateway, Neighbour::Reachable(ROUTER_MAC));
        }
    }
    builder
}

pub(super) fn routed(builder: ForwardingBuilder) -> Bed {
    let mut bed = Bed::with(DataplaneConfig::default(), 1 << 14);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

/// To the Ethernet address of a port.
pub(super) fn into(id: PortId, src: &str, dst: &str) -> Template {
    let mut template = from_to(src, dst);
    template.eth_dst = [2, 0, 0, 0, 1, id.0 as u8];
    template
}

fn passes(bed: &mut Bed, port: PortId, frame: &[u8]) -> bool {
    !bed.on(0, port, frame).is_empty()
}

/// He sends what the pod might send him, and then the "answer".
#[test]
fn a_stranger_does_not_make_the_reply_flow_himself() {
    for family in [0, 1] {
        // Sides that accept everything, as an administrator may ask for.
        let mut bed = Bed::wire().settled();
        let (forged, real) = (
            from_to(WEB[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], WEB[family]),
        );
        assert!(bed.crosses(OUTSIDE, &forged.tcp(80, 5555, SYN, b"")));
        assert!(bed.crosses(OUTSIDE, &forged.udp(80, 5555, b"")));
        for flags in [SYN, SYN_ACK, ACK, RST] {
            bed.drops(
                OUTSIDE,
                &real.tcp(5555, 80, flags, b""),
                DropReason::PolicyIngress,
            );
        }
        bed.drops(OUTSIDE, &real.udp(5555, 80, b""), DropReason::PolicyIngress);
        // The pod's own packets make the flow theirs, and then its answers pass.
        assert!(bed.crosses(INSIDE, &forged.udp(80, 5555, b"")));
        assert!(bed.crosses(OUTSIDE, &real.udp(5555, 80, b"")));
        // A forged one takes nothing away from a flow in which both have spoken.
        bed.drops(OUTSIDE, &forged.udp(80, 5555, b""), DropReason::SpoofedSource);
        assert!(bed.crosses(OUTSIDE, &real.udp(5555, 80, b"")));

        let mut bed = sided();
        bed.drops(
            OUTSIDE,
            &forged.tcp(80, 5555, SYN, b""),
            DropReason::SpoofedSource,
        );

        let mut bed = routed(router(false));
        for port in [LEFT, RIGHT] {
            let forged = into(port, WEB[family], OUTSIDER[family]);
            bed.drops(port, &forged.tcp(80, 5555, SYN, b""), DropReason::SpoofedSource);
            bed.drops(port, &forged.udp(80, 5555, b""), DropReason::SpoofedSource);
        }
        let real = into(LEFT, OUTSIDER[family], WEB[family]);
        bed.drops(LEFT, &real.tcp(5555, 80, SYN, b""), DropReason::PolicyIngress);
        assert_eq!(bed.flows().len(), 0);
    }
}

#[test]
fn nothing_is_remembered_of_a_packet_that_is_not_forwarded() {
    for family in [0, 1] {
        let mut bed = routed(router(false));
        let out = into(POD, WEB[family], OUTSIDER[family]);
        let mut old = out.clone();
        old.ttl = 1;
        let big = out.udp(1, 53, &[0; 1800]);
        let mut fragment = old.clone();
        fragment.fragment = Some((1, 0, true));
        let first = fragment.ip(17, &[0, 1, 0, 53, 0, 64, 0, 0]);
        for frame in [old.tcp(1, 80, SYN, b""), old.udp(1, 53, b""), big, first] {
            assert!(bed.workers[0].io().inject(usize::from(POD.0), &frame));
        }
        let sent = bed.run();
        assert!(sent.iter().all(|(port, _)| *port == POD), "errors alone");
        // Its neighbour is not known yet.
        let mut unresolved = router(false);
        unresolved.route(addr(OUTSIDER[family]), [32, 128][family], Route::connected(LEFT));
        bed.plane.forwarding.publish(unresolved.build());
        assert!(!passes(&mut bed, POD, &out.udp(1, 53, b"")));
        assert_eq!(bed.count(|w| w.held.get()), 1);
        // An uplink that is gone.
        let mut without = router(false);
        without.route(
            addr(OUTSIDER[family]),
            [32, 128][family],
            Route::connected(PortId(7)),
        );
        bed.plane.forwarding.publish(without.build());
        bed.drops(POD, &out.udp(2, 53, b""), DropReason::PortUnavailable);
        assert_eq!(bed.flows().len(), 0);
        let later = {
            let mut later = out.clone();
            later.fragment = Some((1, 8, false));
            later.ip(17, &[0; 56])
        };
        bed.drops(POD, &later, DropReason::FragmentUnknown);
        for answer in [
            into(LEFT, OUTSIDER[family], WEB[family]).udp(53, 1, b""),
            into(LEFT, OUTSIDER[family], WEB[family]).tcp(80, 1, SYN_ACK, b""),
        ] {
            assert!(!passes(&mut bed, LEFT, &answer));
        }
    }
}

#[test]
fn a_reply_comes_from_where_the_original_went() {
    for family in [0, 1] {
        // By the other end of the wire.
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(WEB[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], WEB[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.udp(7, 53, b"")));
        bed.drops(INSIDE, &back.udp(53, 7, b""), DropReason::PolicyIngress);
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 7, b"")));
        // By the uplink of the route, or another member of its group.
        let (forth, back) = (into(POD, WEB[family], OUTSIDER[family]).udp(7, 53, b""), |port| {
            into(port, OUTSIDER[family], WEB[family]).udp(53, 7, b"")
        });
        let mut bed = routed(router(false));
        assert!(passes(&mut bed, POD, &forth));
        bed.drops(RIGHT, &back(RIGHT), DropReason::SpoofedSource);
        assert!(passes(&mut bed, LEFT, &back(LEFT)));
        let mut bed = routed(router(true));
        assert!(passes(&mut bed, POD, &forth));
        for port in [LEFT, RIGHT, LEFT] {
            assert!(passes(&mut bed, port, &back(port)));
        }
        // The route changes: the flow is judged anew as it was begun, and goes on by the new way alone.
        let mut moved = router(false);
        moved.route(
            addr(["0.0.0.0", "::"][family]),
            0,
            Route::via(RIGHT, addr(["172.16.0.1", "fd16::1"][family])),
        );
        bed.plane.forwarding.publish(moved.build());
        assert!(passes(&mut bed, POD, &forth));
        bed.drops(LEFT, &back(LEFT), DropReason::SpoofedSource);
        assert!(passes(&mut bed, RIGHT, &back(RIGHT)));
        assert_eq!(bed.flows().len(), 1);
    }
}

#[test]
fn a_syn_is_never_a_reply() {
    for family in [0, 1] {
        let mut bed = sided();
        let (forth, back) = (
            from_to(WEB[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], WEB[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.tcp(7, 80, SYN, b"")));
        bed.drops(OUTSIDE, &back.tcp(80, 7, SYN, b""), DropReason::PolicyIngress);
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 7, SYN_ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(7, 80, ACK, b"")));
        bed.drops(OUTSIDE, &back.tcp(80, 7, SYN, b""), DropReason::PolicyIngress);
        // Where both may begin, both may at once.
        let (forth, back) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.tcp(7, 80, SYN, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 7, SYN, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(7, 80, SYN_ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 7, ACK, b"")));
    }
}

#[test]
fn an_address_of_this_machine_or_of_its_pods_never_comes_from_elsewhere() {
    use crate::port::ReversePath::{Loose, Off};
    for family in [0, 1] {
        for reverse_path in [crate::port::ReversePath::Strict, Loose, Off] {
            let mut builder = router(false);
            for id in [LEFT, RIGHT] {
                let mut uplink = port(id, PortKind::Uplink, Side::Any);
                uplink.reverse_path = reverse_path;
                builder.port(uplink);
            }
            let mut bed = routed(builder);
            for src in [WEB[family], OWN[family]] {
                for id in [LEFT, RIGHT] {
                    let frame = into(id, src, OUTSIDER[family]).udp(1, 2, b"");
                    bed.drops(id, &frame, DropReason::SpoofedSource);
                }
            }
            // What other interfaces of this machine bring in: nothing but its own is believed.
            for src in [WEB[family], OUTSIDER[family], CLIENT[family], NODE[family]] {
                let frame = into(HOST, src, WEB[family]).udp(1, 53, b"");
                bed.drops(HOST, &frame, DropReason::SpoofedSource);
            }
            // An outsider by the uplink that no route leads back by.
            let frame = into(RIGHT, OUTSIDER[family], WEB[family]).tcp(1, 443, SYN, b"");
            assert_eq!(
                passes(&mut bed, RIGHT, &frame),
                reverse_path != crate::port::ReversePath::Strict
            );
        }
    }
}

/// A compromised pod of another node sends as a pod of this one's neighbour: its packets bear another node's address.
#[test]
fn a_pod_is_believed_only_from_its_node_where_that_is_asked() {
    for family in [0, 1] {
        let mut builder = router(false);
        let mut uplink = port(LEFT, PortKind::Uplink, Side::Inside);
        uplink.checks_source_mac = true;
        builder.port(uplink);
        let node = addr(["172.16.0.20", "fd16::20"][family]);
        builder.route(addr(CLIENT[family]), [32, 128][family], Route::via(LEFT, node));
        let mut bed = routed(builder.clone());
        let mut frame = into(LEFT, CLIENT[family], WEB[family]);
        // The node's Ethernet address is not known yet: the kernel is asked for it.
        bed.drops(LEFT, &frame.udp(1, 53, b""), DropReason::NeighbourUnresolved);
        assert_eq!(bed.plane.next_resolve().map(|asked| asked.addr), Some(node));
        builder.neighbour(LEFT, node, Neighbour::Reachable([6, 0, 0, 0, 0, 20]));
        bed.plane.forwarding.publish(builder.build());
        frame.eth_src = [6, 0, 0, 0, 0, 21];
        bed.drops(LEFT, &frame.udp(1, 53, b""), DropReason::SpoofedSource);
        frame.eth_src = [6, 0, 0, 0, 0, 20];
        assert!(passes(&mut bed, LEFT, &frame.udp(1, 53, b"")));
    }
}

#[test]
fn made_up_sources_are_not_resolved() {
    for family in [0, 1] {
        let mut builder = router(false);
        let mut uplink = port(LEFT, PortKind::Uplink, Side::Inside);
        uplink.checks_source_mac = true;
        builder.port(uplink);
        // Pods are directly on the link, as far as routes tell.
        for (who, asked) in [(CLIENT, true), (UNOWNED, false)] {
            let source = addr(who[family]);
            builder.route(source, [32, 128][family], Route::via(LEFT, source));
            let mut bed = routed(builder.clone());
            let frame = into(LEFT, who[family], WEB[family]);
            bed.drops(LEFT, &frame.udp(1, 53, b""), DropReason::NeighbourUnresolved);
            let looked_for = bed.plane.next_resolve().map(|asked| asked.addr);
            assert_eq!(looked_for, asked.then_some(source));
        }
    }
}

#[test]
fn an_icmp_error_is_no_way_out_of_a_pod() {
    for (family, unreachable) in [(0, 3), (1, 1)] {
        let mut bed = sided();
        // The outsider's own flow with somebody else, quoted by a pod that may send nothing.
        let theirs = from_to(OUTSIDER[family], CLIENT[family]).udp(7, 53, b"12345678");
        assert!(bed.crosses(OUTSIDE, &theirs));
        let error = |src: &str, quoted: &[u8]| {
            from_to(src, OUTSIDER[family]).icmp(unreachable, 0, [0; 4], &quoted[14..])
        };
        bed.drops(INSIDE, &error(BOX[family], &theirs), DropReason::IcmpUnrelated);
        bed.drops(
            INSIDE,
            &error(UNOWNED[family], &theirs),
            DropReason::IcmpUnrelated,
        );
        assert!(
            bed.crosses(INSIDE, &error(CLIENT[family], &theirs)),
            "it speaks for itself"
        );
        // Not from the side where the quoted packet came from.
        let beside = from_to(["192.0.2.99", "2001:db8::99"][family], OUTSIDER[family]);
        let beside = beside.icmp(unreachable, 0, [0; 4], &theirs[14..]);
        bed.drops(OUTSIDE, &beside, DropReason::IcmpUnrelated);
        // And not with a datagram behind the quotation.
        let longest = [576 - 20 - 8, 1280 - 40 - 8][family];
        for (length, passes) in [(longest, true), (longest + 1, false)] {
            let mut quoted = theirs.clone();
            quoted.resize(14 + length, 7);
            let frame = error(CLIENT[family], &quoted);
            if passes {
                assert!(bed.crosses(INSIDE, &frame));
            } else {
                bed.drops(INSIDE, &frame, DropReason::IcmpTooLong);
            }
        }
    }
}

#[test]
fn an_icmp_error_quotes_a_segment_that_was_sent() {
    for (family, too_big) in [(0, (3, 4)), (1, (2, 0))] {
        let mut bed = sided();
        let (forth, back) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 80, SYN, [1000, 0], b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(80, 7, SYN_ACK, [5000, 1001], b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 80, ACK, [1001, 5001], b"hello")));
        // A router behind the other end of the wire.
        let router = from_to(["198.51.100.1", "2001:db8:1::1"][family], CLIENT[family]);
        let error = |seq| {
            let quoted = forth.tcp_at(7, 80, ACK, [seq, 5001], b"hello");
            router.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &quoted[14..])
        };
        assert!(bed.crosses(OUTSIDE, &error(1001)));
        for guessed in [1007, 1 << 20, 0x8000_0000] {
            bed.drops(OUTSIDE, &error(guessed), DropReason::IcmpUnrelated);
        }
    }
}

/// Path MTU discovery and traceroute through networks on the inner side.
#[test]
fn routers_on_an_inner_side_may_send_errors() {
    for (family, kind) in [(0, 11), (1, 3)] {
        let mut bed = sided();
        let sent = from_to(OUTSIDER[family], CLIENT[family]).udp(7, 33434, b"12345678");
        assert!(bed.crosses(OUTSIDE, &sent));
        let router = from_to(["203.0.113.9", "2001:db8:9::9"][family], OUTSIDER[family]);
        assert!(bed.crosses(INSIDE, &router.icmp(kind, 0, [0; 4], &sent[14..])));
    }
}

#[test]
fn a_tunnel_is_no_way_out_of_a_pod() {
    for family in [0, 1] {
        let tunnel = DropReason::Encapsulation;
        let mut bed = with_sides(Side::Inside, Side::Any);
        // Also of one that may send everything, to its own node too.
        for dst in [OUTSIDER[family], NODE[family]] {
            let out = from_to(WEB[family], dst);
            for protocol in [4, 41, 47, 97, 115, 137] {
                bed.drops(INSIDE, &out.ip(protocol, &[0x45; 60]), tunnel);
            }
            for overlay in [4789, 8472, 6081, 8285] {
                bed.drops(INSIDE, &out.udp(40_000, overlay, &[0; 60]), tunnel);
            }
        }
        // The first fragment says it for all.
        let mut fragment = from_to(WEB[family], NODE[family]);
        fragment.fragment = Some((1, 0, true));
        bed.drops(INSIDE, &fragment.ip(47, &[0; 64]), tunnel);
        fragment.fragment = Some((1, 64, false));
        bed.drops(INSIDE, &fragment.ip(47, &[0; 64]), DropReason::FragmentUnknown);
        // What a node says to its pods and they to it is no tunnel, and tunnels are not what the exemption is for.
        assert!(bed.crosses(INSIDE, &from_to(WEB[family], NODE[family]).udp(1, 9, b"")));
        // From outside, tunnels to a node come from nodes alone.
        let outsider = from_to(OUTSIDER[family], NODE[family]);
        bed.drops(
            OUTSIDE,
            &outsider.udp(40_000, 8472, &[0; 60]),
            DropReason::TunnelSource,
        );
        bed.drops(OUTSIDE, &outsider.ip(4, &[0x45; 60]), DropReason::TunnelSource);
        bed.drops(OUTSIDE, &outsider.ip(97, &[0; 60]), tunnel);
        let inside = from_to(NODE[family], OUTSIDER[family]).udp(7, 9, b"");
        let from_node = from_to(NODE[family], OUTSIDER[family]);
        assert!(bed.crosses(INSIDE, &from_node.vxlan(8472, 1, &inside)));

        let mut config = DataplaneConfig::default();
        config.tunnels.allowed = true;
        let mut bed = Bed::with(config, 4096);
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(wire().build());
        assert!(bed.crosses(INSIDE, &from_to(WEB[family], OUTSIDER[family]).ip(47, &[0; 20])));
    }
}

#[test]
fn a_forged_reset_or_fin_ends_nothing() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        let hour = Nanos::from_secs(3600);
        assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 22, SYN, [1000, 0], b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(22, 7, SYN_ACK, [5000, 1001], b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 22, ACK, [1001, 5001], b"")));
        for guessed in [0, 1000, 1002, 70_000, 1 << 31] {
            for flags in [RST, RST | ACK, FIN_ACK] {
                assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 22, flags, [guessed, 5001], b"")));
                assert!(bed.crosses(
                    OUTSIDE,
                    &back.tcp_at(22, 7, flags, [guessed.wrapping_add(4000), 1001], b"")
                ));
            }
        }
        assert_eq!(bed.flows()[0].state.name(), "tcp-established");
        bed.wait(hour);
        // The box may send nothing but answers.
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(22, 7, ACK, [5001, 1001], b"data")));
        // The real end of it.
        assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 22, FIN_ACK, [1001, 5005], b"")));
        assert_eq!(bed.flows()[0].state.name(), "tcp-fin-original");
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(22, 7, RST, [5005, 0], b"")));
        assert_eq!(bed.flows()[0].state.name(), "tcp-reset-reply");
    }
}

/// A late answer, or one that is asked for again and again, does not open the way back.
#[test]
fn a_revoked_flow_stays_revoked() {
    for family in [0, 1] {
        for keep_alive_first in [false, true] {
            let mut bed = Bed::wire().settled();
            let (forth, back) = (
                from_to(CLIENT[family], WEB[family]),
                from_to(WEB[family], CLIENT[family]),
            );
            assert!(bed.crosses(INSIDE, &forth.udp(7, 53, b"")));
            assert!(bed.crosses(OUTSIDE, &back.udp(53, 7, b"")));
            assert!(bed.crosses(INSIDE, &forth.udp(7, 53, b"")));
            bed.publish(World {
                web_allows: false,
                web_epoch: 21,
                ..World::new(2)
            });
            for _ in 0..5 {
                if keep_alive_first {
                    // The web pod may send to everybody: it passes, and begins nothing.
                    assert!(bed.crosses(OUTSIDE, &back.udp(53, 7, b"")));
                }
                bed.drops(INSIDE, &forth.udp(7, 53, b""), DropReason::PolicyIngress);
                if !keep_alive_first {
                    assert!(bed.crosses(OUTSIDE, &back.udp(53, 7, b"")));
                    bed.drops(INSIDE, &forth.udp(7, 53, b""), DropReason::PolicyIngress);
                }
                bed.wait(Nanos::from_secs(100));
            }
            assert_eq!(bed.count(|w| w.flows.revoked.get()), 1);
            assert_eq!(bed.flows().len(), 0);
            // After a silence a datagram of the web pod is its own.
            bed.wait(Nanos::from_secs(200));
            assert!(bed.crosses(OUTSIDE, &back.udp(53, 7, b"")));
            assert!(bed.crosses(INSIDE, &forth.udp(7, 53, b"")));
        }
    }
}

#[test]
fn a_pod_that_may_send_nothing_does_not_pick_up_connections_that_never_were() {
    for family in [0, 1] {
        let mut bed = Bed::wire();
        let out = from_to(BOX[family], CLIENT[family]);
        for flags in [ACK, SYN_ACK, FIN_ACK] {
            bed.drops(
                INSIDE,
                &out.tcp(22, 7, flags, b"secret"),
                DropReason::PolicyEgress,
            );
        }
    }
}

/// A host whose kernel picks an address that the Node object does not have, and its pods.
#[test]
fn a_node_reaches_its_pods_by_all_its_addresses() {
    for family in [0, 1] {
        let config = DataplaneConfig {
            hosts_pods: true,
            ..DataplaneConfig::default()
        };
        let mut bed = Bed::with(config, 1 << 14);
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(router(false).build());
        let mut bed = bed.settled();
        assert!(passes(
            &mut bed,
            HOST,
            &into(HOST, OWN[family], BOX[family]).tcp(1, 9999, SYN, b"")
        ));
        assert!(passes(
            &mut bed,
            POD,
            &into(POD, BOX[family], OWN[family]).tcp(9999, 1, SYN_ACK, b"")
        ));
        assert!(passes(
            &mut bed,
            POD,
            &into(POD, BOX[family], OWN[family]).udp(9, 9, b"")
        ));
        // Not for what it would unpack, nor for anybody else.
        let tunnel = into(POD, BOX[family], OWN[family]);
        assert!(!passes(&mut bed, POD, &tunnel.ip(47, &[0; 20])));
        bed.drops(
            POD,
            &into(POD, BOX[family], OUTSIDER[family]).udp(9, 9, b""),
            DropReason::PolicyEgress,
        );
    }
}

/// Fragments of somebody else's datagram, thrown in from elsewhere.
#[test]
fn a_fragment_from_elsewhere_is_no_part_of_a_datagram() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let mut template = from_to(CLIENT[family], WEB[family]);
        let mut part = |id: u32, offset: u16, more: bool| {
            template.fragment = Some((id, offset, more));
            let mut l4 = vec![0; 32];
            l4[..8].copy_from_slice(&[3, 232, 0, 53, 0, 96, 0, 0]);
            template.ip(17, &l4)
        };
        assert!(bed.crosses(INSIDE, &part(1, 0, true)));
        bed.drops(OUTSIDE, &part(1, 32, true), DropReason::FragmentUnknown);
        bed.drops(OUTSIDE, &part(1, 8, true), DropReason::FragmentUnknown);
        assert!(bed.crosses(INSIDE, &part(1, 32, true)), "it has not been spoilt");
        // A flood of first fragments that are denied takes no place of others.
        assert!(bed.crosses(INSIDE, &part(2, 0, true)));
        let mut denied = from_to(OUTSIDER[family], WEB[family]);
        for id in 0..2000 {
            denied.fragment = Some((id, 0, true));
            let _ = bed.on(0, OUTSIDE, &denied.ip(17, &[0, 1, 0, 9, 0, 64, 0, 0]));
        }
        assert!(bed.crosses(INSIDE, &part(2, 32, false)));
    }
}

/// Two wires, of which the first is a trunk; networks are in VLANs of it.
fn trunk(networks: &[(&str, u8, NetworkPlace)]) -> Bed {
    let mut bed = Bed::wire();
    let mut builder = wire();
    for (ends, id) in [([INSIDE, OUTSIDE], INSIDE), ([OUTSIDE, INSIDE], OUTSIDE)] {
        let side = if id == INSIDE { Side::Inside } else { Side::Outside };
        builder.port(port(id, PortKind::Wire { peer: ends[1] }, side));
    }
    builder.port(port(
        SECOND_INSIDE,
        PortKind::Wire { peer: SECOND_OUTSIDE },
        Side::Inside,
    ));
    builder.port(port(
        SECOND_OUTSIDE,
        PortKind::Wire { peer: SECOND_INSIDE },
        Side::Outside,
    ));
    for (prefix, length, place) in networks {
        builder.place(addr(prefix), *length, place.clone());
    }
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

const SECOND_INSIDE: PortId = PortId(2);
const SECOND_OUTSIDE: PortId = PortId(3);

/// A host of another VLAN, of another wire or of the other end of one sends as a pod, and to a pod.
#[test]
fn a_pod_of_one_vlan_is_not_claimed_or_reached_in_another() {
    let tags: [&[u16]; 8] = [
        &[],
        &[0],
        &[10],
        &[20],
        &[100, 10],
        &[10, 100],
        &[100, 20],
        &[10, 10],
    ];
    for (vlan, right) in [
        (0, &[0, 1][..]),
        (0x100a, &[2]),
        (0x1064_100a, &[4]),
        (0x100a_1064, &[5]),
    ] {
        for (family, whole) in [(0, 32), (1, 128)] {
            let place = NetworkPlace {
                ports: Some([INSIDE].into()),
                vlan: Some(vlan),
            };
            let [client, outsider] = [CLIENT, OUTSIDER].map(|who| who[family]);
            let mut bed = trunk(&[(client, whole, place)]);
            for (number, tags) in (0_u16..).zip(tags) {
                let tagged = |src, dst| {
                    let mut template = from_to(src, dst);
                    template.vlans = tags.to_vec();
                    template
                };
                let (forth, back) = (tagged(client, outsider), tagged(outsider, client));
                if right.contains(&usize::from(number)) {
                    assert!(
                        bed.crosses(INSIDE, &forth.udp(number, 53, b"")),
                        "{vlan:x} {tags:?}"
                    );
                    assert!(bed.crosses(OUTSIDE, &back.udp(53, number, b"")));
                    assert!(bed.crosses(OUTSIDE, &back.udp(54, number, b"")));
                } else {
                    for frame in [
                        forth.udp(number, 53, b""),
                        forth.tcp(number, 80, SYN, b""),
                        forth.tcp(number, 80, ACK, b""),
                        forth.ip(47, &[0; 8]),
                    ] {
                        bed.drops(INSIDE, &frame, DropReason::SpoofedSource);
                    }
                    for frame in [
                        back.udp(53, number, b""),
                        back.tcp(80, number, SYN, b""),
                        back.tcp(80, number, SYN_ACK, b""),
                    ] {
                        bed.drops(OUTSIDE, &frame, DropReason::MisplacedDestination);
                    }
                }
                // No other end is concerned.
                let other = tagged(BOX[family], outsider);
                bed.drops(INSIDE, &other.udp(number, 53, b""), DropReason::PolicyEgress);
                let web = tagged(WEB[family], outsider);
                assert!(bed.crosses(INSIDE, &web.udp(number, 53, b"")));
                // By the other wire.
                for (port, frame, reason) in [
                    (SECOND_INSIDE, &forth, DropReason::SpoofedSource),
                    (SECOND_OUTSIDE, &back, DropReason::MisplacedDestination),
                ] {
                    bed.drops(port, &frame.udp(number + 100, 53, b""), reason);
                }
            }
        }
    }
}

/// What says where networks are comes into force for flows that are there already, and for what goes with them.
#[test]
fn what_belongs_to_a_flow_is_in_its_place_too() {
    for (family, unreachable, whole) in [(0, 3, 32), (1, 1, 128)] {
        let place = |vlan| NetworkPlace {
            ports: Some([INSIDE, OUTSIDE].into()),
            vlan: Some(vlan),
        };
        let [client, outsider] = [CLIENT, OUTSIDER].map(|who| who[family]);
        let router = ["192.0.2.99", "2001:db8:9::99"][family];
        let mut bed = trunk(&[(client, whole, place(0x100a)), (router, whole, place(0x1014))]);
        let tagged = |src, dst, vlan| {
            let mut template = from_to(src, dst);
            template.vlans = vec![vlan];
            template
        };
        let theirs = tagged(client, outsider, 10).udp(7, 53, b"12345678");
        assert!(bed.crosses(INSIDE, &theirs));
        // An error of a router that is elsewhere.
        let error = |src| tagged(src, client, 10).icmp(unreachable, 0, [0; 4], &theirs[18..]);
        bed.drops(OUTSIDE, &error(router), DropReason::SpoofedSource);
        assert!(bed.crosses(OUTSIDE, &error(["192.0.2.98", "2001:db8:9::98"][family])));
        // Later fragments without their first.
        let mut part = tagged(client, outsider, 20);
        part.fragment = Some((1, 0, true));
        let mut l4 = [0; 64];
        l4[..8].copy_from_slice(&[3, 232, 0, 53, 0, 96, 0, 0]);
        bed.drops(INSIDE, &part.ip(17, &l4), DropReason::SpoofedSource);
        part.fragment = Some((1, 64, false));
        bed.drops(INSIDE, &part.ip(17, &[0; 64]), DropReason::FragmentUnknown);
        // In audit it is counted and goes on.
        let config = DataplaneConfig {
            mode: Mode::Audit,
            ..DataplaneConfig::default()
        };
        let mut audited = Bed::with(config, 4096);
        audited.publish(World::new(1));
        let mut builder = wire();
        builder.place(addr(client), whole, place(0x100a));
        audited.plane.forwarding.publish(builder.build());
        assert!(audited.crosses(INSIDE, &tagged(client, outsider, 20).udp(7, 53, b"")));
        let audit = audited
            .stats
            .sum(|worker| worker.audited.get(DropReason::SpoofedSource));
        assert_eq!(audit, 1);
    }
}

#[test]
fn a_router_believes_and_reaches_a_network_at_its_place_alone() {
    use crate::port::ReversePath::{Loose, Off, Strict};
    for (family, length) in [(0, 24), (1, 64)] {
        for reverse_path in [Strict, Loose, Off] {
            let mut builder = router(true);
            for id in [LEFT, RIGHT] {
                let mut uplink = port(id, PortKind::Uplink, Side::Any);
                uplink.reverse_path = reverse_path;
                builder.port(uplink);
            }
            let network = addr(["192.0.2.0", "2001:db8::"][family]);
            let place = NetworkPlace {
                ports: Some([RIGHT].into()),
                vlan: None,
            };
            builder.place(network, length, place);
            let mut bed = routed(builder);
            let ask = |port| into(port, OUTSIDER[family], WEB[family]).tcp(1, 443, SYN, b"");
            bed.drops(LEFT, &ask(LEFT), DropReason::SpoofedSource);
            assert!(passes(&mut bed, RIGHT, &ask(RIGHT)));
        }
    }
}

const NODE_MAC: [u8; 6] = [6, 0, 0, 0, 0, 0x41];
const OTHER_MAC: [u8; 6] = [6, 0, 0, 0, 0, 0x42];

/// A wire on whose inner end pods are believed from their nodes alone.
fn strict(mode: Mode) -> (Bed, ForwardingBuilder) {
    let config = DataplaneConfig {
        mode,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 4096);
    bed.publish(World::new(1));
    let mut builder = wire();
    let mut inside = port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Inside);
    inside.checks_source_mac = true;
    builder.port(inside);
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Outside));
    bed.plane.forwarding.publish(builder.clone().build());
    (bed.settled(), builder)
}

/// A node says where it is: by ARP, or by an advertisement that names this Ethernet address.
fn node_says(family: usize, from: [u8; 6], named: [u8; 6]) -> Vec<u8> {
    let node = addr(NODE[family]);
    if family == 1 {
        let mut template = from_to(NODE[1], "ff02::1");
        (template.eth_src, template.ttl) = (from, 255);
        return template.icmp(
            136,
            0,
            [0x20, 0, 0, 0],
            &[&node.octets()[..], &[2, 1], &named].concat(),
        );
    }
    let mut frame = [&[255; 6][..], &from, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &named].concat();
    frame.extend(&node.octets()[12..]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 0, 99]);
    frame
}

fn by(station: [u8; 6], src: &str, dst: &str) -> Template {
    let mut template = from_to(src, dst);
    template.eth_src = station;
    template
}

/// The same on a wire, which hears of nodes' Ethernet addresses by what they say themselves.
#[test]
fn a_pod_is_believed_only_from_its_node_on_a_wire_where_that_is_asked() {
    for family in [0, 1] {
        let (mut bed, mut builder) = strict(Mode::Enforce);
        let [web, node, outsider] = [WEB, NODE, OUTSIDER].map(|who| who[family]);
        let news = |claimed| {
            Some(StationReport {
                port: INSIDE,
                node: 0,
                generation: Generation(1),
                claimed,
            })
        };
        // Before the node has said anything it is asked for, and no sender is believed.
        for station in [NODE_MAC, OTHER_MAC] {
            bed.drops(
                INSIDE,
                &by(station, web, outsider).udp(1, 53, b""),
                DropReason::NeighbourUnresolved,
            );
            assert_eq!(bed.plane.next_station_report(), news(None));
        }
        assert_eq!(bed.flows().len(), 0);
        // What it says crosses the wire, too.
        let says = node_says(family, NODE_MAC, NODE_MAC);
        assert!(bed.crosses(INSIDE, &says));
        assert_eq!(bed.plane.next_station_report(), news(Some(NODE_MAC)));
        builder.station(INSIDE, "node", NODE_MAC);
        bed.plane.forwarding.publish(builder.clone().build());
        let (own, forged) = (by(NODE_MAC, web, outsider), by(OTHER_MAC, web, outsider));
        let mut part = forged.clone();
        part.fragment = Some((1, 0, true));
        let mut l4 = [0; 64];
        l4[..8].copy_from_slice(&[3, 232, 0, 53, 0, 96, 0, 0]);
        for frame in [
            forged.udp(1, 53, b""),
            forged.tcp(1, 80, SYN, b""),
            forged.tcp(1, 80, ACK, b""),
            forged.echo(1, true),
            part.ip(17, &l4),
            by(OTHER_MAC, node, outsider).udp(1, 53, b""),
            // On no node at all.
            by(NODE_MAC, CLIENT[family], outsider).udp(1, 53, b""),
        ] {
            bed.drops(INSIDE, &frame, DropReason::SpoofedSource);
        }
        assert!(bed.crosses(INSIDE, &by(NODE_MAC, node, outsider).udp(1, 53, b"")));
        // A flow that the pod began, and one that somebody began with it.
        let back = from_to(outsider, web);
        assert!(bed.crosses(INSIDE, &own.udp(1, 53, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(7, 443, SYN, b"")));
        bed.drops(
            INSIDE,
            &forged.tcp(443, 7, SYN_ACK, b""),
            DropReason::SpoofedSource,
        );
        assert!(bed.crosses(INSIDE, &own.tcp(443, 7, SYN_ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(7, 443, ACK, b"")));
        for _ in 0..2 {
            for frame in [
                forged.udp(1, 53, b""),
                forged.tcp(443, 7, ACK, b"data"),
                forged.tcp(443, 7, RST, b""),
                forged.tcp(443, 7, FIN_ACK, b""),
            ] {
                bed.drops(INSIDE, &frame, DropReason::SpoofedSource);
            }
            assert!(bed.crosses(INSIDE, &own.udp(1, 53, b"")));
            assert!(bed.crosses(OUTSIDE, &back.udp(53, 1, b"")));
            assert!(bed.crosses(INSIDE, &own.tcp(443, 7, ACK, b"")));
            assert!(bed.crosses(OUTSIDE, &back.tcp(7, 443, ACK, b"")));
            // When the pod has changed, the same.
            bed.publish(World {
                web_epoch: 21,
                ..World::new(2)
            });
        }
        assert_eq!(bed.flows().len(), 3);
        // Flows go on when the node is at another station, and are then bound to that.
        builder.station(INSIDE, "node", OTHER_MAC);
        bed.plane.forwarding.publish(builder.build());
        assert!(bed.crosses(INSIDE, &forged.udp(1, 53, b"")));
        assert!(bed.crosses(INSIDE, &forged.tcp(443, 7, ACK, b"")));
        bed.drops(INSIDE, &own.udp(1, 53, b""), DropReason::SpoofedSource);
        bed.drops(INSIDE, &own.tcp(443, 7, ACK, b""), DropReason::SpoofedSource);
        assert_eq!(bed.flows().len(), 3);
    }
}

/// Another station says to be the node, or somebody says it of another station.
#[test]
fn a_second_station_is_not_the_node() {
    for family in [0, 1] {
        let (mut bed, mut builder) = strict(Mode::Enforce);
        let contradiction = node_says(family, OTHER_MAC, NODE_MAC);
        bed.drops(INSIDE, &contradiction, DropReason::SpoofedSource);
        assert_eq!(bed.plane.next_station_report(), None, "nothing is learnt of that");
        builder.station(INSIDE, "node", NODE_MAC);
        bed.plane.forwarding.publish(builder.build());
        bed.drops(
            INSIDE,
            &node_says(family, OTHER_MAC, OTHER_MAC),
            DropReason::SpoofedSource,
        );
        let heard = bed.plane.next_station_report().and_then(|news| news.claimed);
        assert_eq!(heard, Some(OTHER_MAC), "for the alarm");
        assert!(bed.crosses(INSIDE, &node_says(family, NODE_MAC, NODE_MAC)));
        let pod = by(NODE_MAC, WEB[family], OUTSIDER[family]).udp(1, 53, b"");
        assert!(bed.crosses(INSIDE, &pod));

        // Nor one in another VLAN than that of the node's network.
        let (mut bed, mut builder) = strict(Mode::Enforce);
        let place = NetworkPlace {
            ports: Some([INSIDE].into()),
            vlan: Some(0x100a),
        };
        builder.place(addr(NODE[family]), [32, 128][family], place);
        bed.plane.forwarding.publish(builder.build());
        let says = node_says(family, OTHER_MAC, OTHER_MAC);
        bed.drops(INSIDE, &says, DropReason::SpoofedSource);
        assert_eq!(bed.plane.next_station_report(), None);
        let mut tagged = says.clone();
        tagged.splice(12..12, [0x81, 0, 0, 10]);
        assert!(bed.crosses(INSIDE, &tagged));
        assert!(bed.plane.next_station_report().is_some());

        // Who says it often keeps no room from the answer of the one that is known.
        let (mut bed, mut builder) = strict(Mode::Enforce);
        builder.station(INSIDE, "node", NODE_MAC);
        bed.plane.forwarding.publish(builder.build());
        for _ in 0..1000 {
            bed.drops(INSIDE, &says, DropReason::SpoofedSource);
        }
        assert!(bed.crosses(INSIDE, &node_says(family, NODE_MAC, NODE_MAC)));
        let heard = std::iter::from_fn(|| bed.plane.next_station_report());
        assert_eq!(heard.last().and_then(|news| news.claimed), Some(NODE_MAC));

        let (mut bed, mut builder) = strict(Mode::Audit);
        builder.station(INSIDE, "node", NODE_MAC);
        bed.plane.forwarding.publish(builder.build());
        assert!(bed.crosses(INSIDE, &node_says(family, OTHER_MAC, OTHER_MAC)));
        assert!(bed.crosses(
            INSIDE,
            &by(OTHER_MAC, WEB[family], OUTSIDER[family]).udp(1, 53, b"")
        ));
        assert_eq!(bed.count(|w| w.audited.get(DropReason::SpoofedSource)), 2);
    }
}

#[test]
fn a_node_is_asked_by_a_question_whose_answer_goes_no_further() {
    for (family, kind) in [(0, NotSubject::Arp), (1, NotSubject::Ndp)] {
        let (mut bed, _) = strict(Mode::Enforce);
        let own = [2, 0, 0, 0, 1, 0];
        let question = crate::wire::neighbour_probe(addr(NODE[family]), own, 0);
        assert_eq!(crate::wire::parse(&question), Parsed::NotSubject(kind));
        assert!(bed.plane.send(INSIDE, &question));
        assert_eq!(bed.run(), [(INSIDE, question)]);
        if family == 0 {
            // Those to groups, as IPv6 has them, cross like any.
            let mut answer = node_says(family, NODE_MAC, NODE_MAC);
            answer[..6].copy_from_slice(&own);
            bed.drops(INSIDE, &answer, DropReason::NotSubject);
            let heard = bed.plane.next_station_report().and_then(|news| news.claimed);
            assert_eq!(heard, Some(NODE_MAC));
        }
    }
}

/// What a predecessor has bound is bound anew, by what nodes say to its successor.
#[test]
fn after_a_restart_flows_go_on_from_their_nodes_alone() {
    for family in [0, 1] {
        let memory = FlowMemory::private(SEGMENTS * 16, 7).unwrap();
        let mut bed = Bed::over(DataplaneConfig::default(), memory, Nanos::from_secs(1000));
        let (_, mut builder) = strict(Mode::Enforce);
        builder.station(INSIDE, "node", NODE_MAC);
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(builder.clone().build());
        let [own, forged] =
            [NODE_MAC, OTHER_MAC].map(|station| by(station, WEB[family], OUTSIDER[family]).udp(1, 53, b""));
        let back = from_to(OUTSIDER[family], WEB[family]).udp(53, 1, b"");
        assert!(bed.crosses(INSIDE, &own));
        assert!(bed.crosses(OUTSIDE, &back));
        let memory = FlowMemory::open(
            super::restart::left_by(&bed),
            SEGMENTS * 16,
            99,
            Nanos::from_secs(1010),
        );
        let mut bed = Bed::over(
            DataplaneConfig::default(),
            memory.unwrap(),
            Nanos::from_secs(1010),
        );
        bed.publish(World::new(1));
        let (_, mut silent) = strict(Mode::Enforce);
        bed.plane.forwarding.publish(silent.clone().build());
        assert_eq!(bed.flows().len(), 1);
        for frame in [&own, &forged] {
            bed.drops(INSIDE, frame, DropReason::NeighbourUnresolved);
        }
        assert!(
            bed.crosses(OUTSIDE, &back),
            "what is sent to the pod claims nothing"
        );
        silent.station(INSIDE, "node", NODE_MAC);
        bed.plane.forwarding.publish(silent.build());
        bed.drops(INSIDE, &forged, DropReason::SpoofedSource);
        assert!(bed.crosses(INSIDE, &own));
        bed.drops(INSIDE, &forged, DropReason::SpoofedSource);
        assert!(bed.crosses(OUTSIDE, &back));
        assert_eq!(bed.flows().len(), 1);
    }
}
