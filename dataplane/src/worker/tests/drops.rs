//! Every drop reason can be reached, is counted under its own name and port, and can be explained.

use super::*;
use crate::{
    classify::Effect,
    failsafe::{Failsafe, FailsafeRule, Prefix},
    flow::FlowConfig,
    wire::subject::{NotSubject, NotSubjectTable},
};

#[test]
fn policy_spoofing_and_service_drops_are_explained() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let web = from_to(OUTSIDER[family], WEB[family]);
        bed.drops(OUTSIDE, &web.tcp(1, 81, SYN, b""), DropReason::PolicyIngress);
        let sample = bed.stats.next_sample().unwrap();
        assert_eq!(
            (sample.reason, sample.audit, sample.port),
            (DropReason::PolicyIngress, false, OUTSIDE)
        );
        assert_eq!(
            (sample.generation, sample.key.unwrap().dst_port),
            (Generation(1), 81)
        );
        let (ingress, egress) = (sample.ingress.unwrap(), sample.egress.unwrap());
        assert_eq!((ingress.effect, egress.effect), (Effect::Isolated, Effect::Open));
        assert!(
            bed.plane
                .snapshots
                .current()
                .unwrap()
                .provenance(ingress.provenance)
                .is_some()
        );

        bed.drops(
            INSIDE,
            &from_to(BOX[family], OUTSIDER[family]).udp(1, 2, b""),
            DropReason::PolicyEgress,
        );
        bed.drops(
            INSIDE,
            &from_to(CLIENT[family], UNOWNED[family]).udp(1, 2, b""),
            DropReason::UnknownEndpoint,
        );
        bed.drops(
            OUTSIDE,
            &from_to(UNOWNED[family], CLIENT[family]).udp(1, 2, b""),
            DropReason::UnknownEndpoint,
        );
        bed.drops(
            INSIDE,
            &from_to(CLIENT[family], SERVICE[family]).udp(1, 2, b""),
            DropReason::ServiceUnsupported,
        );
        assert_eq!(bed.stats.sum_port(OUTSIDE, |port| port.drops.total()), 2);

        bed.plane.forwarding.publish({
            let mut builder = wire();
            builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Inside));
            builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Outside));
            builder.build()
        });
        let client = from_to(CLIENT[family], OUTSIDER[family]);
        assert!(bed.crosses(INSIDE, &client.udp(1, 2, b"")));
        bed.drops(OUTSIDE, &client.udp(1, 3, b""), DropReason::SpoofedSource);
        // Nor into a flow that exists.
        bed.drops(OUTSIDE, &client.udp(1, 2, b""), DropReason::SpoofedSource);
        let outsider = from_to(OUTSIDER[family], CLIENT[family]);
        bed.drops(INSIDE, &outsider.udp(9, 9, b""), DropReason::SpoofedSource);
    }
}

#[test]
fn what_cannot_be_read_or_does_not_belong_is_dropped() {
    let mut bed = Bed::wire().settled();
    let udp = from_to(CLIENT[0], WEB[0]).udp(1, 53, b"x");
    bed.drops(INSIDE, &udp[..30], DropReason::Truncated);
    let mut broken = udp.clone();
    broken[24] ^= 1;
    bed.drops(INSIDE, &broken, DropReason::Malformed);
    bed.drops(
        INSIDE,
        &from_to("127.0.0.1", WEB[0]).udp(1, 53, b""),
        DropReason::MartianAddress,
    );
    bed.drops(PortId(5), &udp, DropReason::PortUnavailable);
    bed.plane.forwarding.publish({
        let mut builder = ForwardingBuilder::new();
        builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Any));
        builder.build()
    });
    bed.drops(INSIDE, &udp, DropReason::PortUnavailable);
    bed.plane.forwarding.publish({
        let mut builder = wire();
        let mut small = port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Any);
        small.mtu = 100;
        builder.port(small);
        builder.build()
    });
    bed.drops(
        INSIDE,
        &from_to(CLIENT[0], WEB[0]).udp(1, 53, &[0; 100]),
        DropReason::TooBig,
    );
    bed.workers[0].io().limit_room(0);
    bed.drops(INSIDE, &udp, DropReason::TxFull);
}

#[test]
fn the_table_of_the_wire_decides_about_what_is_not_subject() {
    let mut bed = Bed::wire();
    let group = from_to(CLIENT[0], "239.1.1.1").udp(1, 2, b"");
    bed.drops(INSIDE, &group, DropReason::NotSubject);
    let mut builder = wire();
    let mut inside = port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Any);
    inside.not_subject = NotSubjectTable::WIRE.with(NotSubject::Multicast, true);
    builder.port(inside);
    bed.plane.forwarding.publish(builder.build());
    assert!(bed.crosses(INSIDE, &group));
    bed.drops(OUTSIDE, &group, DropReason::NotSubject);
}

#[test]
fn tcp_segments_that_no_state_admits_are_dropped() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        for flags in [0, SYN | TcpFlags::FIN, SYN | RST, TcpFlags::FIN] {
            bed.drops(INSIDE, &forth.tcp(1, 22, flags, b""), DropReason::TcpInvalid);
        }
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, SYN, b"")));
        bed.drops(INSIDE, &forth.tcp(1, 22, SYN_ACK, b""), DropReason::TcpInvalid);
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1, SYN_ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, ACK, b"")));
        // The answering side may not begin a connection under the cover of this one.
        bed.drops(OUTSIDE, &back.tcp(22, 1, SYN, b""), DropReason::PolicyEgress);
        // Nor after its end: then it is judged.
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, FIN_ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1, FIN_ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, ACK, b"")));
        bed.drops(OUTSIDE, &back.tcp(22, 1, SYN, b""), DropReason::PolicyEgress);
        assert!(bed.crosses(INSIDE, &forth.tcp(1, 22, SYN, b"")));
        assert_eq!(bed.flows()[0].state.name(), "tcp-syn");
        // A reset that was none.
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1, SYN_ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(22, 1, RST, [1, 0], b"")));
        assert_eq!(bed.flows()[0].state.name(), "tcp-reset-reply");
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(22, 1, ACK, [1, 0], b"")));
        assert_eq!(bed.flows()[0].state.name(), "tcp-established");
    }
}

#[test]
fn without_a_snapshot_nothing_passes_but_the_failsafe() {
    let rule = |from: &str, to: &str, protocol, ports| FailsafeRule {
        from: Prefix::new(addr(from), 24),
        to: Prefix::new(addr(to), 24),
        protocol,
        ports,
    };
    let config = DataplaneConfig {
        failsafe: Failsafe(vec![
            rule("192.0.2.0", "10.9.0.0", Some(6), Some((6443, 6443))),
            rule("10.0.0.0", "192.0.2.0", None, None),
        ]),
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 4096);
    bed.plane.forwarding.publish(wire().build());
    let api = from_to(OUTSIDER[0], NODE[0]);
    assert!(bed.crosses(OUTSIDE, &api.tcp(1, 6443, SYN, b"")));
    assert!(bed.crosses(INSIDE, &from_to(NODE[0], OUTSIDER[0]).tcp(6443, 1, SYN_ACK, b"")));
    assert_eq!(bed.count(|w| w.failsafe.get()), 2);
    bed.drops(OUTSIDE, &api.tcp(1, 6444, SYN, b""), DropReason::NoSnapshot);
    bed.drops(
        INSIDE,
        &from_to(CLIENT[1], OUTSIDER[1]).udp(1, 2, b""),
        DropReason::NoSnapshot,
    );
    // Before any policy, though the box may send nothing.
    bed.publish(World::new(1));
    let mut fragment = from_to(BOX[0], OUTSIDER[0]);
    assert!(bed.crosses(INSIDE, &fragment.udp(1, 2, b"")));
    assert!(bed.crosses(OUTSIDE, &from_to(OUTSIDER[0], BOX[0]).udp(2, 1, b"")));
    fragment.fragment = Some((1, 0, true));
    assert!(bed.crosses(INSIDE, &fragment.ip(17, &[0, 1, 0, 2, 0, 64, 0, 0])));
    fragment.fragment = Some((1, 8, false));
    assert!(bed.crosses(INSIDE, &fragment.ip(17, &[0; 56])));
    assert_eq!(bed.flows().len(), 1);
    let error =
        from_to(OUTSIDER[0], BOX[0]).icmp(3, 0, [0; 4], &from_to(BOX[0], OUTSIDER[0]).udp(1, 2, b"")[14..]);
    assert!(bed.crosses(OUTSIDE, &error));
}

/// A rule lets a connection begin, and what answers it. It says nothing about who else sends from that port.
#[test]
fn a_failsafe_rule_is_no_way_out_by_its_source_port() {
    let config = || DataplaneConfig {
        failsafe: Failsafe(vec![FailsafeRule {
            from: Prefix::new(addr("192.0.2.0"), 24),
            to: Prefix::new(addr("10.0.0.0"), 16),
            protocol: Some(6),
            ports: Some((22, 22)),
        }]),
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config(), 4096);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish({
        let mut builder = wire();
        builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Inside));
        builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Outside));
        builder.build()
    });
    let (manage, back) = (from_to(OUTSIDER[0], BOX[0]), from_to(BOX[0], OUTSIDER[0]));
    for flags in [SYN, SYN_ACK, ACK] {
        bed.drops(INSIDE, &back.tcp(22, 443, flags, b""), DropReason::PolicyEgress);
    }
    assert!(bed.crosses(OUTSIDE, &manage.tcp(443, 22, SYN, b"")));
    assert!(bed.crosses(INSIDE, &back.tcp(22, 443, SYN_ACK, b"")));
    bed.drops(INSIDE, &back.tcp(22, 444, SYN_ACK, b""), DropReason::PolicyEgress);
    // Who sends as somebody of the other side does not begin either.
    let forged = from_to(OUTSIDER[0], BOX[0]).tcp(5, 22, SYN, b"");
    bed.drops(INSIDE, &forged, DropReason::SpoofedSource);
    // It goes on under the next snapshot, and from the middle.
    bed.publish(World {
        web_epoch: 21,
        ..World::new(2)
    });
    assert!(bed.crosses(INSIDE, &back.tcp(22, 443, ACK, b"")));
    assert!(bed.crosses(OUTSIDE, &manage.tcp(445, 22, ACK, b"")));
    assert!(bed.crosses(INSIDE, &back.tcp(22, 445, ACK, b"")));
}

/// The least table there is, 4,096 places, of which so many in 256 may be half-open. Endpoints have no quotas.
fn small(half_open_share: u8) -> Bed {
    let config = DataplaneConfig {
        flow: FlowConfig {
            half_open_share,
            endpoint_share: 256,
            endpoint_half_open_share: 256,
            ..FlowConfig::default()
        },
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, PLACES);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    bed.settled()
}

const PLACES: usize = 4096;

#[test]
fn a_full_table_keeps_its_established_flows_and_judges_new_ones() {
    for family in [0, 1] {
        let places = PLACES as u16;
        let mut bed = small(128);
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        for port in 0..places {
            assert!(bed.crosses(INSIDE, &forth.udp(port, 9, b"")));
            assert!(bed.crosses(OUTSIDE, &back.udp(9, port, b"")));
            assert!(bed.crosses(INSIDE, &forth.udp(port, 9, b"")));
        }
        // It could not be answered without an entry.
        bed.drops(INSIDE, &forth.udp(places, 9, b""), DropReason::FlowTableFull);
        // And what policy denies is denied.
        bed.drops(OUTSIDE, &back.udp(places, places, b""), DropReason::PolicyEgress);
        // What needs no entry passes.
        let (forth, other) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.udp(16, 9, b"")));
        assert!(bed.crosses(OUTSIDE, &other.udp(9, 16, b"")));
        assert_eq!(bed.count(|w| w.stateless.get()), 2);
        for port in 0..places {
            assert!(bed.crosses(OUTSIDE, &back.udp(9, port, b"")));
        }
        assert_eq!(bed.count(|w| w.flows.evicted.get()), 0);
        // What is over gives way: a question that was answered, a connection that was reset.
        let mut bed = small(128);
        let forth = from_to(CLIENT[family], BOX[family]);
        for port in 0..places + 100 {
            assert!(bed.crosses(INSIDE, &forth.udp(port, 53, b"")));
            assert!(bed.crosses(OUTSIDE, &back.udp(53, port, b"")));
        }
        let mut bed = small(128);
        for port in 0..places {
            assert!(bed.crosses(INSIDE, &forth.tcp(port, 22, SYN, b"")));
            let answer = if port == 9 {
                back.tcp_at(22, port, RST | ACK, [0, 1], b"")
            } else {
                back.tcp(22, port, SYN_ACK, b"")
            };
            assert!(bed.crosses(OUTSIDE, &answer));
        }
        assert!(bed.crosses(INSIDE, &forth.tcp(places, 22, SYN, b"")));
        assert_eq!(bed.count(|w| w.flows.evicted.get()), 1);
        assert!(bed.flows().iter().all(|flow| flow.key.src_port != 9));
        bed.drops(
            INSIDE,
            &forth.tcp(places + 1, 22, SYN, b""),
            DropReason::FlowTableFull,
        );
        bed.wait(Nanos::from_secs(1));
        assert!(
            bed.crosses(INSIDE, &forth.tcp(places + 1, 22, SYN, b"")),
            "the half-open one is old enough now"
        );
    }
}

#[test]
fn half_open_flows_are_limited_and_thrown_out_oldest_first() {
    for family in [0, 1] {
        let mut bed = small(1);
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        for port in 0..16 {
            assert!(bed.crosses(INSIDE, &forth.tcp(port, 22, SYN, b"")));
        }
        bed.drops(INSIDE, &forth.tcp(16, 22, SYN, b""), DropReason::HalfOpenLimit);
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 0, SYN_ACK, b"")));
        assert!(
            bed.crosses(INSIDE, &forth.tcp(16, 22, SYN, b"")),
            "one of them is answered"
        );
        bed.wait(Nanos::from_millis(100));
        assert!(
            bed.crosses(INSIDE, &forth.tcp(17, 22, SYN, b"")),
            "the oldest is old enough"
        );
        bed.drops(OUTSIDE, &back.tcp(22, 1, SYN_ACK, b""), DropReason::PolicyEgress);
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 2, SYN_ACK, b"")));
        assert_eq!(bed.count(|w| w.flows.half_open.get()), 15);
        assert_eq!(bed.count(|w| w.flows.half_open_limit.get()), 16);
    }
}

#[test]
fn an_endpoint_that_has_begun_its_share_of_flows_begins_no_more() {
    let mut config = DataplaneConfig::default();
    config.flow.endpoint_share = 1;
    let mut bed = Bed::with(config, PLACES);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    let (forth, back) = (from_to(CLIENT[0], BOX[0]), from_to(BOX[0], CLIENT[0]));
    for port in 0..16 {
        assert!(bed.crosses(INSIDE, &forth.udp(port, 9, b"")));
        assert!(bed.crosses(OUTSIDE, &back.udp(9, port, b"")));
    }
    bed.drops(INSIDE, &forth.udp(16, 9, b""), DropReason::EndpointQuota);
    assert!(bed.crosses(INSIDE, &from_to(OUTSIDER[0], WEB[0]).tcp(1, 443, SYN, b"")));
    // Its own longest idle one goes.
    bed.wait(Nanos::from_secs(2));
    assert!(bed.crosses(INSIDE, &forth.udp(16, 9, b"")));
}

#[test]
fn a_full_hand_over_ring_drops() {
    let config = DataplaneConfig {
        workers: 2,
        handover: 1,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 4096);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    // One of the two workers does not own the flow, and has room in its ring for one packet.
    let now = bed.now;
    let syn = from_to(CLIENT[0], WEB[0]).tcp(1, 80, SYN, b"");
    for worker in [0, 1] {
        for _ in 0..3 {
            assert!(bed.workers[worker].io().inject(0, &syn));
        }
    }
    let handed: Vec<u64> = bed
        .workers
        .iter_mut()
        .map(|worker| worker.run_once(now).handed_to)
        .collect();
    let owner = if handed[0] == 0 { 0 } else { 1 };
    assert_eq!((handed[owner], handed[1 - owner]), (0, 1 << owner));
    assert_eq!(bed.stats.drops(DropReason::HandoverFull), 2);
    // It has taken over already where its turn came after.
    assert_eq!(bed.workers[owner].has_work(), owner == 0);
    let sent = bed.run();
    assert_eq!(sent.len(), 4);
}

#[test]
fn audit_forwards_what_it_would_have_dropped() {
    let mut bed = Bed::with(
        DataplaneConfig {
            mode: Mode::Audit,
            ..DataplaneConfig::default()
        },
        4096,
    );
    bed.plane.forwarding.publish(wire().build());
    let denied = from_to(BOX[0], OUTSIDER[0]).udp(1, 2, b"");
    assert!(bed.crosses(INSIDE, &denied));
    bed.publish(World::new(1));
    assert!(bed.crosses(INSIDE, &denied));
    assert!(bed.crosses(INSIDE, &from_to(CLIENT[1], UNOWNED[1]).udp(1, 2, b"")));
    assert!(bed.crosses(INSIDE, &denied[..20]));
    for reason in [
        DropReason::NoSnapshot,
        DropReason::PolicyEgress,
        DropReason::UnknownEndpoint,
        DropReason::Truncated,
    ] {
        assert_eq!(bed.count(|w| w.audited.get(reason)), 1, "{}", reason.name());
    }
    assert_eq!(bed.count(|w| w.drops.total()), 0);
    assert!(bed.stats.next_sample().unwrap().audit);
}

/// Who begins, and what enforcement would have done: also where the answer alone would have been allowed.
#[test]
fn audit_keeps_denied_flows_as_they_were_begun() {
    let audit = || DataplaneConfig {
        mode: Mode::Audit,
        ..DataplaneConfig::default()
    };
    for family in [0, 1] {
        let mut bed = Bed::with(audit(), 4096).settled();
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(wire().build());
        // No pod may talk to the web pod's port 81, and the web pod may talk to everybody.
        let (forth, back) = (
            from_to(OUTSIDER[family], WEB[family]),
            from_to(WEB[family], OUTSIDER[family]),
        );
        assert!(bed.crosses(OUTSIDE, &forth.tcp(7, 81, SYN, b"")));
        assert!(bed.crosses(INSIDE, &back.tcp(81, 7, SYN_ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &forth.tcp(7, 81, ACK, b"")));
        let flows = bed.flows();
        assert_eq!(flows.len(), 1);
        assert_eq!(
            (flows[0].key.src, flows[0].oriented),
            (addr(OUTSIDER[family]), true)
        );
        assert_eq!(flows[0].would_drop, Some(DropReason::PolicyIngress));
        assert_eq!(flows[0].packets, [2, 1]);
        assert_eq!(bed.count(|w| w.audited.get(DropReason::PolicyIngress)), 3);
        // Allowed, denied and allowed again, as the policy goes.
        let allowed = from_to(CLIENT[family], WEB[family]);
        assert!(bed.crosses(INSIDE, &allowed.udp(8, 53, b"")));
        let would_drop = |bed: &mut Bed| {
            let flows = bed.flows();
            let flow = flows.iter().find(|flow| flow.key.src_port == 8);
            flow.and_then(|flow| flow.would_drop)
        };
        assert_eq!(would_drop(&mut bed), None);
        for (generation, web_allows, wanted) in [(2, false, Some(DropReason::PolicyIngress)), (3, true, None)]
        {
            bed.publish(World {
                web_allows,
                web_epoch: 20 + generation,
                ..World::new(generation)
            });
            assert!(bed.crosses(INSIDE, &allowed.udp(8, 53, b"")));
            assert_eq!(would_drop(&mut bed), wanted);
        }
        assert_eq!(bed.count(|w| w.flows.revoked.get()), 0);
    }
}
