//! Who is believed, and what is never remembered.

use super::*;

/// SEMANTICS 47: pod and hosting node, where the node can be believed.
#[test]
fn the_hosting_node_reaches_its_pod_only_from_where_nodes_are() {
    for family in [0, 1] {
        let probe = from_to(NODE[family], WEB[family]).tcp(1000, 9999, SYN, b"");
        let mut bed = Bed::wire().settled();
        bed.drops(OUTSIDE, &probe, DropReason::PolicyIngress);
        let mut builder = wire();
        builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Nodes));
        bed.plane.forwarding.publish(builder.build());
        assert!(bed.crosses(OUTSIDE, &probe));
        // The other way it always holds, and when the pod has changed it still does.
        assert!(bed.crosses(INSIDE, &from_to(WEB[family], NODE[family]).tcp(1, 2, SYN, b"")));
        bed.publish(World {
            web_epoch: 21,
            ..World::new(2)
        });
        assert!(bed.crosses(
            OUTSIDE,
            &from_to(NODE[family], WEB[family]).tcp(1000, 9999, ACK, b"")
        ));
        assert_eq!(bed.count(|w| w.flows.revoked.get()), 0);
    }
}

/// SEMANTICS 53.
#[test]
fn an_unknown_address_is_never_remembered() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        bed.publish(World {
            allow_unknown: true,
            ..World::new(2)
        });
        assert!(bed.crosses(INSIDE, &from_to(CLIENT[family], UNOWNED[family]).udp(1, 2, b"")));
        assert!(bed.crosses(INSIDE, &from_to(UNOWNED[family], CLIENT[family]).udp(1, 2, b"")));
        assert_eq!(bed.flows().len(), 0);
        bed.publish(World::new(3));
        bed.drops(
            INSIDE,
            &from_to(CLIENT[family], UNOWNED[family]).udp(1, 2, b""),
            DropReason::UnknownEndpoint,
        );
    }
}

/// SEMANTICS 48 is for what a pod's own kernel says to itself: that never leaves it, so on a port it is made up.
#[test]
fn nothing_comes_from_where_it_goes() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let own = from_to(BOX[family], BOX[family]);
        for port in [INSIDE, OUTSIDE] {
            bed.drops(port, &own.echo(7, true), DropReason::SpoofedSource);
            bed.drops(port, &own.udp(9, 9, b""), DropReason::SpoofedSource);
            bed.drops(port, &own.tcp(9, 10, SYN, b""), DropReason::SpoofedSource);
        }
        assert_eq!(bed.flows().len(), 0);
    }
}

#[test]
fn address_spaces_and_vlans_do_not_meet() {
    let mut bed = Bed::wire().settled();
    let mut builder = wire();
    for (id, peer) in [(PortId(2), PortId(3)), (PortId(3), PortId(2))] {
        let mut other = port(id, PortKind::Wire { peer }, Side::Any);
        other.zone = 1;
        builder.port(other);
    }
    bed.plane.forwarding.publish(builder.build());
    let (forth, back) = (from_to(CLIENT[0], BOX[0]), from_to(BOX[0], CLIENT[0]));
    assert!(bed.crosses(INSIDE, &forth.udp(1, 2, b"")));
    bed.drops(PortId(3), &back.udp(2, 1, b""), DropReason::PolicyEgress);
    let mut tagged = back.clone();
    tagged.vlans = vec![5];
    bed.drops(OUTSIDE, &tagged.udp(2, 1, b""), DropReason::PolicyEgress);
    assert!(bed.crosses(OUTSIDE, &back.udp(2, 1, b"")));
}

#[test]
fn timeouts_are_swept_without_any_packet() {
    let mut bed = Bed::wire().settled();
    assert!(bed.crosses(INSIDE, &from_to(CLIENT[0], WEB[0]).udp(1, 53, b"")));
    assert_eq!(bed.count(|w| w.flows.used.get()), 1);
    for _ in 0..4000 {
        bed.wait(Nanos::from_millis(20));
        bed.workers[0].run_once(bed.now);
    }
    assert_eq!(
        (
            bed.count(|w| w.flows.used.get()),
            bed.count(|w| w.flows.expired.get())
        ),
        (0, 1)
    );
}

#[test]
fn flows_count_packets_and_bytes_by_direction() {
    let mut bed = Bed::wire().settled();
    let (forth, back) = (from_to(CLIENT[0], WEB[0]), from_to(WEB[0], CLIENT[0]));
    for _ in 0..3 {
        assert!(bed.crosses(INSIDE, &forth.udp(1, 53, b"12")));
    }
    assert!(bed.crosses(OUTSIDE, &back.udp(53, 1, b"1234")));
    let flow = bed.flows()[0];
    assert_eq!((flow.packets, flow.bytes), ([3, 1], [90, 32]));
    assert_eq!(flow.ports, [Some(INSIDE), Some(OUTSIDE)]);
    assert_eq!((flow.generation, flow.decided), (Generation(1), 1));
    assert!(
        bed.plane
            .snapshots
            .current()
            .unwrap()
            .provenance(flow.provenance[0])
            .is_some()
    );
}

#[test]
fn a_dump_goes_on_where_it_stopped() {
    let mut bed = Bed::wire().settled();
    for host in 0..50 {
        assert!(bed.crosses(
            INSIDE,
            &from_to(CLIENT[0], &format!("192.0.2.{host}")).udp(1, 53, b"")
        ));
    }
    let flows = bed.flows();
    let hosts: std::collections::BTreeSet<_> = flows.iter().map(|flow| flow.key.dst).collect();
    assert_eq!((flows.len(), hosts.len()), (50, 50));
}

#[test]
fn an_address_that_becomes_unknown_ends_its_flows() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        bed.publish(World {
            pod_cidrs: false,
            ..World::new(2)
        });
        let frame = from_to(CLIENT[family], UNOWNED[family]).udp(1, 2, b"");
        assert!(bed.crosses(INSIDE, &frame));
        bed.publish(World::new(3));
        bed.drops(INSIDE, &frame, DropReason::UnknownEndpoint);
        assert_eq!(bed.flows().len(), 0);
    }
}
