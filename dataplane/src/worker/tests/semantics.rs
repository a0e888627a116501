//! SEMANTICS 56 to 65, by number.

use super::*;

/// The client's connection to the web pod, up to established.
fn connect(bed: &mut Bed, family: usize) -> (Template, Template) {
    let forth = from_to(CLIENT[family], WEB[family]);
    let back = from_to(WEB[family], CLIENT[family]);
    assert!(bed.crosses(INSIDE, &forth.tcp(1000, 80, SYN, b"")));
    assert!(bed.crosses(OUTSIDE, &back.tcp(80, 1000, SYN_ACK, b"")));
    assert!(bed.crosses(INSIDE, &forth.tcp(1000, 80, ACK, b"")));
    (forth, back)
}

#[test]
fn semantics_56_replies_of_an_allowed_connection_are_allowed() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        // The box may send nothing, but for answers.
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        bed.drops(OUTSIDE, &back.tcp(22, 1000, SYN, b""), DropReason::PolicyEgress);
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, SYN, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1000, SYN_ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, ACK, b"hello")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1000, ACK, b"hello")));
        bed.drops(OUTSIDE, &back.tcp(22, 1001, ACK, b""), DropReason::PolicyEgress);
        assert!(bed.crosses(INSIDE, &forth.udp(1000, 9, b"")));
        assert!(bed.crosses(OUTSIDE, &back.udp(9, 1000, b"")));
        assert!(bed.crosses(INSIDE, &forth.echo(5, true)));
        assert!(bed.crosses(OUTSIDE, &back.echo(5, false)));
        bed.drops(OUTSIDE, &back.echo(6, false), DropReason::PolicyEgress);
        assert!(bed.crosses(INSIDE, &forth.ip(51, &[0; 20])));
        assert!(bed.crosses(OUTSIDE, &back.ip(51, &[0; 20])));
        bed.drops(OUTSIDE, &back.ip(50, &[0; 20]), DropReason::PolicyEgress);
    }
}

#[test]
fn rules_about_types_of_icmp_hold_for_each_message() {
    for (family, [timestamp, echo]) in [(0, [13, 8]), (1, [139, 128])] {
        let mut bed = Bed::wire().settled();
        bed.publish(World {
            echo_alone: true,
            ..World::new(2)
        });
        let forth = from_to(CLIENT[family], BOX[family]);
        let back = from_to(BOX[family], CLIENT[family]);
        let other = |bed: &mut Bed| {
            let ingress = DropReason::PolicyIngress;
            bed.drops(INSIDE, &forth.icmp(timestamp, 0, [0; 4], &[0; 12]), ingress);
            bed.drops(INSIDE, &forth.echo(0, false), ingress);
        };
        other(&mut bed);
        // The flow of an echo without identifier has the key of all that has none.
        assert!(bed.crosses(INSIDE, &forth.echo(0, true)));
        other(&mut bed);
        assert!(bed.crosses(OUTSIDE, &back.echo(0, false)));
        other(&mut bed);
        assert!(bed.crosses(INSIDE, &forth.echo(0, true)));
        bed.drops(
            OUTSIDE,
            &back.icmp(timestamp, 0, [0; 4], &[0; 12]),
            DropReason::PolicyEgress,
        );
        // Of another code it begins no flow, and is allowed by the same rule.
        assert!(bed.crosses(INSIDE, &forth.icmp(echo, 1, [0; 4], &[0; 12])));
        assert_eq!(bed.flows().len(), 1);
    }
}

#[test]
fn semantics_57_related_icmp_errors() {
    for (family, unreachable) in [(0, 3), (1, 1)] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = connect(&mut bed, family);
        let sent = forth.tcp(1000, 80, ACK, b"12345678");
        let answer = back.tcp(80, 1000, ACK, b"12345678");
        let router = from_to(OUTSIDER[family], CLIENT[family]);
        assert!(bed.crosses(OUTSIDE, &router.icmp(unreachable, 0, [0; 4], &sent[14..])));
        // To the other end about the other direction.
        let router = from_to(OUTSIDER[family], WEB[family]);
        assert!(bed.crosses(INSIDE, &router.icmp(unreachable, 0, [0; 4], &answer[14..])));
        assert_eq!(bed.count(|w| w.icmp_related.get()), 2);
        // To who did not send what it quotes; about no flow; about nothing legible.
        let unrelated = DropReason::IcmpUnrelated;
        bed.drops(
            INSIDE,
            &router.icmp(unreachable, 0, [0; 4], &sent[14..]),
            unrelated,
        );
        let other = forth.tcp(1001, 80, ACK, b"12345678");
        let router = from_to(OUTSIDER[family], CLIENT[family]);
        bed.drops(
            OUTSIDE,
            &router.icmp(unreachable, 0, [0; 4], &other[14..]),
            unrelated,
        );
        bed.drops(OUTSIDE, &router.icmp(unreachable, 0, [0; 4], b"?"), unrelated);
        // About a flow that policy has cut.
        bed.publish(World {
            web_allows: false,
            web_epoch: 21,
            ..World::new(2)
        });
        bed.drops(
            OUTSIDE,
            &router.icmp(unreachable, 0, [0; 4], &sent[14..]),
            unrelated,
        );
    }
    // And no faster than the limit: of one flow, and of all together.
    let mut bed = Bed::wire().settled();
    let (forth, _) = connect(&mut bed, 0);
    let error =
        from_to(OUTSIDER[0], CLIENT[0]).icmp(3, 1, [0; 4], &forth.tcp(1000, 80, ACK, b"12345678")[14..]);
    for _ in 0..10 {
        assert!(bed.crosses(OUTSIDE, &error));
    }
    bed.drops(OUTSIDE, &error, DropReason::IcmpRateLimited);
    bed.wait(Nanos::from_millis(200));
    assert!(bed.crosses(OUTSIDE, &error));
    let mut passed = 0;
    for client in 2000..2020 {
        let sent = forth.udp(client, 53, b"12345678");
        assert!(bed.crosses(INSIDE, &sent));
        let error = from_to(OUTSIDER[0], CLIENT[0]).icmp(3, 1, [0; 4], &sent[14..]);
        passed += (0..10).filter(|_| !bed.on(0, OUTSIDE, &error).is_empty()).count();
    }
    assert_eq!(passed, 99, "of 100 in one go, one was used");
}

#[test]
fn semantics_58_a_changed_policy_is_applied_at_the_next_packet() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = connect(&mut bed, family);
        // A snapshot that means the same: nothing is judged again.
        bed.publish(World::new(2));
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 1000, ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 80, ACK, b"")));
        assert_eq!(
            (bed.count(|w| w.restamped.get()), bed.count(|w| w.rejudged.get())),
            (1, 0)
        );
        // The web pod has changed, the answer has not.
        bed.publish(World {
            web_epoch: 21,
            ..World::new(3)
        });
        assert!(bed.crosses(OUTSIDE, &back.tcp(80, 1000, ACK, b"")));
        assert_eq!(
            (bed.count(|w| w.restamped.get()), bed.count(|w| w.rejudged.get())),
            (1, 1)
        );
        // Now it has. The reply, coming first, is a new packet of its own: the client is open, so it passes as such.
        bed.publish(World {
            web_epoch: 22,
            web_allows: false,
            ..World::new(4)
        });
        bed.drops(INSIDE, &forth.tcp(1000, 80, ACK, b"x"), DropReason::PolicyIngress);
        assert_eq!(bed.count(|w| w.flows.revoked.get()), 1);
        assert_eq!(bed.flows().len(), 0);
        // And permitted again.
        bed.publish(World {
            web_epoch: 23,
            ..World::new(5)
        });
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 80, ACK, b"x")));
    }
}

#[test]
fn semantics_59_a_udp_flow_lasts_as_long_as_its_timeout() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.udp(1000, 53, b"")));
        bed.wait(Nanos::from_secs(29));
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 1000, b"")));
        bed.wait(Nanos::from_secs(30));
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 1000, b"")));
        assert!(bed.crosses(INSIDE, &forth.udp(1000, 53, b"")));
        bed.wait(Nanos::from_secs(180));
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 1000, b"")));
        bed.wait(Nanos::from_secs(181));
        bed.drops(OUTSIDE, &back.udp(53, 1000, b""), DropReason::PolicyEgress);
    }
}

#[test]
fn semantics_60_a_segment_from_the_middle_is_judged_as_new() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        // No answer without a beginning.
        bed.drops(OUTSIDE, &back.tcp(22, 1000, ACK, b""), DropReason::PolicyEgress);
        bed.drops(
            OUTSIDE,
            &back.tcp(22, 1000, SYN_ACK, b""),
            DropReason::PolicyEgress,
        );
        // Allowed on its own, but without exemption for answers.
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, ACK, b"")));
        bed.drops(OUTSIDE, &back.tcp(22, 1000, ACK, b""), DropReason::PolicyEgress);
        // Where both directions are allowed, both pass.
        let (forth, back) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1000, ACK, b"")));
        assert!(bed.flows().iter().all(|flow| !flow.oriented));
        assert_eq!(bed.count(|w| w.flows.picked_up.get()), 0);
        // A SYN shows who begins.
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, SYN, b"")));
        assert!(bed.flows().iter().any(|flow| flow.oriented));
    }
}

#[test]
fn semantics_60_connections_are_picked_up_for_a_while_after_a_start() {
    for family in [0, 1] {
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        // The answer comes first: what it answers may never have been said.
        let mut bed = Bed::wire();
        bed.drops(OUTSIDE, &back.tcp(22, 1000, ACK, b""), DropReason::PolicyEgress);
        // Where that is taken into the bargain.
        let mut config = DataplaneConfig::default();
        config.flow.pickup_answers = true;
        let mut bed = Bed::with(config, 4096);
        bed.publish(World::new(1));
        bed.plane.forwarding.publish(wire().build());
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1000, ACK, b"")));
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, ACK, b"")));
        assert_eq!(bed.count(|w| w.flows.picked_up.get()), 1);
        let flow = bed.flows()[0];
        assert_eq!((flow.key.src, flow.oriented), (addr(CLIENT[family]), true));
        // The question does.
        let mut bed = Bed::wire();
        assert!(bed.crosses(INSIDE, &forth.tcp(1000, 22, ACK, b"")));
        assert!(bed.crosses(OUTSIDE, &back.tcp(22, 1000, ACK, b"")));
        assert_eq!(bed.count(|w| w.flows.picked_up.get()), 1);
        assert!(bed.flows()[0].oriented);
        // A SYN is never an answer, nor is what is allowed in neither direction.
        bed.drops(OUTSIDE, &back.tcp(23, 1000, SYN, b""), DropReason::PolicyEgress);
        let never = from_to(BOX[family], OUTSIDER[family]);
        bed.drops(OUTSIDE, &never.tcp(22, 1000, ACK, b""), DropReason::PolicyEgress);
        // Later not.
        let mut bed = Bed::wire().settled();
        bed.drops(OUTSIDE, &back.tcp(22, 1000, ACK, b""), DropReason::PolicyEgress);
    }
}

#[test]
fn semantics_61_sctp_by_its_primary_addresses() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], WEB[family]),
            from_to(WEB[family], CLIENT[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.sctp(5001, 5000, 1)));
        assert!(bed.crosses(OUTSIDE, &back.sctp(5000, 5001, 2)));
        bed.drops(INSIDE, &forth.sctp(5001, 5002, 0), DropReason::PolicyIngress);
        bed.drops(
            INSIDE,
            &from_to(OUTSIDER[family], WEB[family]).sctp(5001, 5000, 0),
            DropReason::PolicyIngress,
        );
        assert_eq!(bed.flows()[0].state.name(), "sctp-established");
        assert!(bed.crosses(OUTSIDE, &back.sctp(5000, 5001, 6)));
        assert_eq!(bed.flows()[0].state.name(), "sctp-closed");
    }
}

#[test]
fn semantics_62_later_fragments_are_as_their_first() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        let mut template = from_to(CLIENT[family], WEB[family]);
        let part = |template: &mut Template, id: u32, offset: u16, more: bool, port: u16| {
            template.fragment = Some((id, offset, more));
            let mut l4 = vec![0; 32];
            l4[..8].copy_from_slice(&[3, 232, (port >> 8) as u8, port as u8, 0, 96, 0, 0]);
            template.ip(17, &l4)
        };
        // Before the first, after it, twice the same range, another datagram.
        bed.drops(
            INSIDE,
            &part(&mut template, 1, 32, true, 53),
            DropReason::FragmentUnknown,
        );
        assert!(bed.crosses(INSIDE, &part(&mut template, 1, 0, true, 53)));
        assert!(bed.crosses(INSIDE, &part(&mut template, 1, 64, false, 53)));
        assert!(bed.crosses(INSIDE, &part(&mut template, 1, 32, true, 53)));
        bed.drops(
            INSIDE,
            &part(&mut template, 2, 64, false, 53),
            DropReason::FragmentUnknown,
        );
        // Nothing is remembered of a first one that did not pass.
        bed.drops(
            INSIDE,
            &part(&mut template, 3, 0, true, 54),
            DropReason::PolicyIngress,
        );
        bed.drops(
            INSIDE,
            &part(&mut template, 3, 32, false, 53),
            DropReason::FragmentUnknown,
        );
        // An overlap ends the datagram.
        assert!(bed.crosses(INSIDE, &part(&mut template, 4, 0, true, 53)));
        bed.drops(
            INSIDE,
            &part(&mut template, 4, 8, true, 53),
            DropReason::FragmentInvalid,
        );
        bed.drops(
            INSIDE,
            &part(&mut template, 4, 32, true, 53),
            DropReason::FragmentInvalid,
        );
        // The policy changes in between; the datagram takes too long.
        assert!(bed.crosses(INSIDE, &part(&mut template, 5, 0, true, 53)));
        bed.publish(World::new(2));
        assert!(bed.crosses(INSIDE, &part(&mut template, 5, 32, true, 53)));
        bed.publish(World {
            web_epoch: 21,
            ..World::new(3)
        });
        bed.drops(
            INSIDE,
            &part(&mut template, 5, 64, true, 53),
            DropReason::FragmentUnknown,
        );
        assert!(bed.crosses(INSIDE, &part(&mut template, 6, 0, true, 53)));
        bed.wait(Nanos::from_secs(11));
        bed.drops(
            INSIDE,
            &part(&mut template, 6, 32, true, 53),
            DropReason::FragmentUnknown,
        );
    }
}

#[test]
fn semantics_63_a_chain_that_is_too_long_has_no_ports() {
    let mut bed = Bed::wire().settled();
    let mut template = from_to(CLIENT[1], WEB[1]);
    template.extensions = vec![(60, vec![0; 6]); 8];
    assert!(bed.crosses(INSIDE, &template.udp(1000, 53, b"")));
    template.extensions = vec![(60, vec![0; 6]); 9];
    bed.drops(INSIDE, &template.udp(1000, 53, b""), DropReason::PolicyIngress);
    // Where a rule without ports allows everything it passes, but never as a flow.
    let mut template = from_to(CLIENT[1], BOX[1]);
    template.extensions = vec![(60, vec![0; 6]); 9];
    let flows = bed.flows().len();
    assert!(bed.crosses(INSIDE, &template.udp(1000, 53, b"")));
    assert_eq!(bed.flows().len(), flows);
}

#[test]
fn semantics_64_options_do_not_hide_ports() {
    let mut bed = Bed::wire().settled();
    let mut template = from_to(CLIENT[0], WEB[0]);
    template.options = vec![1; 40];
    assert!(bed.crosses(INSIDE, &template.tcp(1000, 80, SYN, b"")));
    // The options would read as an allowed port, were they taken for the header.
    template.options = vec![0, 80, 0, 80];
    bed.drops(
        INSIDE,
        &template.tcp(1000, 81, SYN, b""),
        DropReason::PolicyIngress,
    );
}

#[test]
fn semantics_65_neighbour_discovery_survives_isolation() {
    let mut bed = Bed::wire().settled();
    bed.publish(World {
        web_allows: false,
        ..World::new(2)
    });
    let mut solicit = from_to("fe80::1", "ff02::1:ff00:3");
    solicit.ttl = 255;
    assert!(bed.crosses(OUTSIDE, &solicit.icmp(135, 0, [0; 4], &[0; 16])));
    let arp = [&[255u8; 6][..], &[2; 6], &[8, 6, 0, 1, 8, 0, 6, 4], &[0; 40]].concat();
    assert!(bed.crosses(OUTSIDE, &arp));
    assert!(bed.crosses(INSIDE, &from_to("0.0.0.0", "255.255.255.255").udp(68, 67, b"")));
    assert_eq!(bed.count(|w| w.not_subject.get()), 3);
    // A unicast datagram between the same ports is judged.
    bed.drops(
        INSIDE,
        &from_to(BOX[0], OUTSIDER[0]).udp(68, 67, b""),
        DropReason::PolicyEgress,
    );
}

#[test]
fn semantics_56_only_an_echo_reply_answers_an_echo_request() {
    for (family, timestamp) in [(0, 13), (1, 139)] {
        let mut bed = Bed::wire().settled();
        let (forth, back) = (
            from_to(CLIENT[family], BOX[family]),
            from_to(BOX[family], CLIENT[family]),
        );
        for id in [0, 5] {
            assert!(bed.crosses(INSIDE, &forth.echo(id, true)));
            for _ in 0..2 {
                bed.drops(OUTSIDE, &back.echo(id, true), DropReason::PolicyEgress);
                // Messages without an identifier have the key of identifier 0.
                let other = back.icmp(timestamp, 0, [0; 4], &[0; 12]);
                bed.drops(OUTSIDE, &other, DropReason::PolicyEgress);
                assert!(bed.crosses(OUTSIDE, &back.echo(id, false)));
            }
        }
        // Where both may ask, both are answered, whoever asked first.
        let (forth, back) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        for _ in 0..2 {
            assert!(bed.crosses(INSIDE, &forth.echo(9, true)));
            assert!(bed.crosses(OUTSIDE, &back.echo(9, true)));
            assert!(bed.crosses(INSIDE, &forth.echo(9, false)));
            assert!(bed.crosses(OUTSIDE, &back.echo(9, false)));
        }
    }
}

#[test]
fn semantics_62_later_fragments_of_an_answer_pass_under_a_newer_snapshot_too() {
    for family in [0, 1] {
        let mut bed = Bed::wire().settled();
        assert!(bed.crosses(INSIDE, &from_to(CLIENT[family], BOX[family]).udp(53, 1000, b"")));
        let mut template = from_to(BOX[family], CLIENT[family]);
        let mut part = |offset: u16, more: bool| {
            template.fragment = Some((1, offset, more));
            let mut l4 = vec![0; 32];
            l4[..8].copy_from_slice(&[3, 232, 0, 53, 0, 96, 0, 0]);
            template.ip(17, &l4)
        };
        assert!(bed.crosses(OUTSIDE, &part(0, true)));
        bed.publish(World::new(2));
        assert!(bed.crosses(OUTSIDE, &part(32, true)));
        assert!(bed.crosses(OUTSIDE, &part(64, false)));
    }
}

#[test]
fn semantics_62_a_second_first_fragment_never_rides_on_the_verdict_of_an_empty_one() {
    let mut bed = Bed::wire().settled();
    let mut template = from_to(CLIENT[1], BOX[1]);
    // A chain so long that the fragment header is the last one looked at, and nothing behind it.
    template.extensions = vec![(60, vec![0; 6]); 8];
    template.fragment = Some((1, 0, true));
    assert!(bed.crosses(INSIDE, &template.ip(17, &[])));
    template.extensions.clear();
    let judged_alone = template.udp(1000, 53, &[0; 8]);
    bed.drops(INSIDE, &judged_alone, DropReason::FragmentInvalid);
}

#[test]
fn semantics_63_a_chain_that_is_too_long_is_no_answer() {
    let mut bed = Bed::wire().settled();
    // Protocol 255 is reserved; what hides behind the chain is a connection of its own.
    assert!(bed.crosses(INSIDE, &from_to(CLIENT[1], BOX[1]).ip(255, &[0; 20])));
    let mut template = from_to(BOX[1], CLIENT[1]);
    template.extensions = vec![(60, vec![0; 6]); 9];
    bed.drops(
        OUTSIDE,
        &template.tcp(1000, 22, SYN, b""),
        DropReason::PolicyEgress,
    );
}
