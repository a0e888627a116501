//! What the sender of a denied packet gets.

use super::*;
use crate::{
    flow::tcp::Segment,
    wire::{Packet, Parsed, Transport, checksum, parse, protocol},
};

/// A wire whose configuration answers so, and whose policy says this.
fn bed(configured: DenialAnswer, policy: Option<DenialAnswer>) -> Bed {
    let config = DataplaneConfig {
        denial_answer: configured,
        ..DataplaneConfig::default()
    };
    bed_of(config, policy, wire())
}

fn bed_of(config: DataplaneConfig, policy: Option<DenialAnswer>, ports: ForwardingBuilder) -> Bed {
    let mut bed = Bed::with(config, 1 << 12);
    let mut world = World::new(1);
    world.answer = policy;
    bed.publish(world);
    bed.plane.forwarding.publish(ports.build());
    bed.settled()
}

/// Sends a packet and answers the only frame that comes back by the same port, with its layer 4; its checksums are right.
fn answered(bed: &mut Bed, port: PortId, frame: &[u8]) -> (Vec<u8>, Packet, Vec<u8>) {
    let sent = bed.on(0, port, frame);
    let [(out, answer)] = &sent[..] else {
        panic!("{} answers", sent.len());
    };
    assert_eq!(*out, port);
    let Parsed::Subject(packet) = parse(answer) else {
        panic!("{answer:x?}");
    };
    let l4 = &answer[usize::from(packet.l4)..usize::from(packet.end)];
    let pseudo = match packet.protocol {
        protocol::ICMP => 0,
        other => checksum::pseudo_header(packet.src, packet.dst, other, l4.len() as u16),
    };
    assert_eq!(checksum::fold(pseudo + checksum::sum(l4)), 0xffff);
    if packet.src.is_v4() {
        let l3 = usize::from(packet.l3);
        assert!(checksum::ipv4_header_is_valid(&answer[l3..l3 + 20]));
    }
    (answer.clone(), packet, l4.to_vec())
}

fn silent(bed: &mut Bed, port: PortId, frame: &[u8], reason: DropReason) {
    bed.drops(port, frame, reason);
    assert_eq!(bed.count(|w| w.denials_answered.get()), 0);
}

#[test]
fn a_denied_segment_is_reset_by_its_destination() {
    for family in [0, 1] {
        let mut bed = bed(DenialAnswer::Reset, None);
        let mut template = from_to(OUTSIDER[family], WEB[family]);
        template.vlans = vec![7];
        let syn = template.tcp_at(40_000, 81, SYN, [1000, 0], b"early");
        let (frame, packet, _) = answered(&mut bed, OUTSIDE, &syn);
        assert_eq!((&frame[..6], &frame[6..12]), (&syn[6..12], &syn[..6]));
        assert_eq!(frame[12..18], syn[12..18], "the same VLAN");
        assert_eq!(
            (packet.src, packet.dst),
            (addr(WEB[family]), addr(OUTSIDER[family]))
        );
        let Transport::Tcp { src, dst, flags } = packet.transport else {
            panic!("{packet:?}");
        };
        assert_eq!((src, dst, flags.0), (81, 40_000, RST | ACK));
        let reset = Segment::of(&frame, &packet).unwrap();
        assert_eq!((reset.seq, reset.ack), (0, Some(1006)), "the SYN and five bytes");
        // In the middle of a connection the sender takes a reset at the number that it expects alone.
        let data = template.tcp_at(40_000, 81, ACK, [5000, 777], b"late");
        let (frame, packet, _) = answered(&mut bed, OUTSIDE, &data);
        let reset = Segment::of(&frame, &packet).unwrap();
        assert_eq!((reset.seq, reset.ack), (777, None));
        assert_eq!(
            bed.stats.drops(DropReason::PolicyIngress),
            2,
            "dropped all the same"
        );
        assert_eq!(bed.count(|w| w.denials_answered.get()), 2);
    }
}

#[test]
fn other_protocols_get_icmp_errors() {
    for family in [0, 1] {
        let unreachable = [[3, 3], [1, 4]][family];
        let prohibited = [[3, 13], [1, 1]][family];
        let to_web = from_to(OUTSIDER[family], WEB[family]);
        let from_box = from_to(BOX[family], OUTSIDER[family]);
        for (answer, port, frame, want) in [
            (
                DenialAnswer::Reset,
                OUTSIDE,
                to_web.udp(1, 2, b"question"),
                unreachable,
            ),
            (DenialAnswer::Reset, OUTSIDE, to_web.echo(9, true), prohibited),
            (DenialAnswer::Reset, OUTSIDE, to_web.sctp(1, 2, 1), prohibited),
            (
                DenialAnswer::Prohibited,
                OUTSIDE,
                to_web.udp(1, 2, b"question"),
                prohibited,
            ),
            (
                DenialAnswer::Prohibited,
                OUTSIDE,
                to_web.tcp(1, 81, SYN, b""),
                prohibited,
            ),
            (
                DenialAnswer::Prohibited,
                INSIDE,
                from_box.tcp(1, 81, SYN, b""),
                prohibited,
            ),
        ] {
            let mut bed = bed(answer, None);
            let (_, packet, icmp) = answered(&mut bed, port, &frame);
            let Parsed::Subject(denied) = parse(&frame) else {
                panic!("{frame:x?}");
            };
            assert_eq!((packet.src, packet.dst), (denied.dst, denied.src));
            assert_eq!(icmp[..2], want);
            assert_eq!(icmp[8..], frame[14..], "quotes the packet");
        }
    }
}

#[test]
fn a_router_prohibits_in_its_own_name() {
    for family in [0, 1] {
        let config = DataplaneConfig {
            denial_answer: DenialAnswer::Prohibited,
            ..DataplaneConfig::default()
        };
        let own = addr(["169.254.1.1", "fd16::9"][family]);
        let mut ports = ForwardingBuilder::new();
        ports.port(port(INSIDE, PortKind::Pod, Side::Pods));
        let longest = if family == 0 { 32 } else { 128 };
        ports.route(
            addr(BOX[family]),
            longest,
            crate::forward::Route::connected(INSIDE),
        );
        ports.icmp_source(own);
        let mut bed = bed_of(config, None, ports);
        let mut template = from_to(BOX[family], OUTSIDER[family]);
        template.eth_dst = [2, 0, 0, 0, 1, INSIDE.0 as u8];
        let (frame, packet, _) = answered(&mut bed, INSIDE, &template.udp(1, 2, b""));
        assert_eq!((packet.src, packet.dst), (own, addr(BOX[family])));
        assert_eq!(
            (&frame[..6], &frame[6..12]),
            (&template.eth_src[..], &template.eth_dst[..])
        );
    }
}

#[test]
fn a_policy_says_more_or_less_than_the_configuration() {
    let syn = from_to(OUTSIDER[0], WEB[0]).tcp(1, 81, SYN, b"");
    let mut quiet = bed(DenialAnswer::Reset, Some(DenialAnswer::Drop));
    silent(&mut quiet, OUTSIDE, &syn, DropReason::PolicyIngress);
    let mut frank = bed(DenialAnswer::Drop, Some(DenialAnswer::Prohibited));
    let (.., icmp) = answered(&mut frank, OUTSIDE, &syn);
    assert_eq!(icmp[..2], [3, 13]);
    let mut default = bed(DenialAnswer::Drop, None);
    silent(&mut default, OUTSIDE, &syn, DropReason::PolicyIngress);
}

#[test]
fn of_several_isolating_policies_the_least_telling_answer_counts() {
    use DenialAnswer::{Drop, Prohibited, Reset};
    let mut image = ImageBuilder::new(Generation(1));
    let mut policy = |name, answer| {
        let name = PolicyName {
            tier: "NetworkPolicy",
            kind: "NetworkPolicy",
            namespace: "default",
            name,
        };
        image.policy_that_answers(name, answer)
    };
    let [frank, plain, open] =
        [("a", Some(Reset)), ("b", None), ("c", Some(Prohibited))].map(|(n, a)| policy(n, a));
    let sets = [&[frank][..], &[frank, open], &[frank, plain], &[plain]].map(|set| image.isolating(set));
    let rule = image.rule(open, 3);
    let snapshot = Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap();
    for (otherwise, want) in [
        (Drop, [Reset, Prohibited, Drop, Drop]),
        (Reset, [Reset, Prohibited, Reset, Reset]),
    ] {
        let have = sets.map(|set| snapshot.denial_answer(set, otherwise));
        assert_eq!(have, want, "{otherwise:?}");
        assert_eq!(snapshot.denial_answer(rule, otherwise), Prohibited);
    }
    assert_eq!(snapshot.denial_answer(NONE, Reset), Drop, "no policy decided");
}

#[test]
fn what_may_not_be_answered_is_not() {
    for family in [0, 1] {
        for answer in [DenialAnswer::Reset, DenialAnswer::Prohibited] {
            let mut bed = bed(answer, None);
            let to_web = from_to(OUTSIDER[family], WEB[family]);
            if answer == DenialAnswer::Reset {
                // A reset, and a fragment, of which it cannot be said how much it acknowledges.
                silent(
                    &mut bed,
                    OUTSIDE,
                    &to_web.tcp(1, 81, RST, b""),
                    DropReason::PolicyIngress,
                );
                let mut first = to_web.clone();
                first.fragment = Some((1, 0, true));
                silent(
                    &mut bed,
                    OUTSIDE,
                    &first.tcp(1, 81, SYN, &[0; 44]),
                    DropReason::PolicyIngress,
                );
            }
            let mut later = to_web.clone();
            later.fragment = Some((2, 64, false));
            silent(
                &mut bed,
                OUTSIDE,
                &later.udp(1, 81, b"12345678"),
                DropReason::FragmentUnknown,
            );
            // Errors, redirects.
            let quoted = from_to(WEB[family], OUTSIDER[family]).udp(5, 6, b"12345678");
            let [kind, code] = [[3, 1], [1, 3]][family];
            let error = to_web.icmp(kind, code, [0; 4], &quoted[14..]);
            silent(&mut bed, OUTSIDE, &error, DropReason::IcmpUnrelated);
            if family == 0 {
                let redirect = to_web.icmp(5, 1, [0; 4], &quoted[14..]);
                silent(&mut bed, OUTSIDE, &redirect, DropReason::PolicyIngress);
            }
            // Groups, of hosts and of stations.
            let group = ["224.0.0.251", "ff02::fb"][family];
            let to_group = from_to(BOX[family], group).udp(1, 5353, b"");
            assert!(bed.on(0, INSIDE, &to_group).iter().all(|(out, _)| *out != INSIDE));
            let mut flooded = to_web.clone();
            flooded.eth_dst = [0xff; 6];
            silent(
                &mut bed,
                OUTSIDE,
                &flooded.udp(1, 2, b""),
                DropReason::PolicyIngress,
            );
            // An address without an owner.
            let unknown = from_to(UNOWNED[family], WEB[family]).udp(1, 2, b"");
            silent(&mut bed, OUTSIDE, &unknown, DropReason::UnknownEndpoint);
        }
    }
}

#[test]
fn a_forged_source_gets_no_answer() {
    let config = DataplaneConfig {
        denial_answer: DenialAnswer::Reset,
        ..DataplaneConfig::default()
    };
    let mut ports = ForwardingBuilder::new();
    ports.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Pods));
    ports.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Outside));
    let mut bed = bed_of(config, None, ports);
    for family in [0, 1] {
        let forged = from_to(CLIENT[family], WEB[family]).tcp(1, 81, SYN, b"");
        silent(&mut bed, OUTSIDE, &forged, DropReason::SpoofedSource);
        let forged = from_to(OUTSIDER[family], WEB[family]).tcp(1, 81, SYN, b"");
        silent(&mut bed, INSIDE, &forged, DropReason::SpoofedSource);
    }
}

#[test]
fn audit_mode_answers_nothing() {
    let config = DataplaneConfig {
        denial_answer: DenialAnswer::Reset,
        mode: Mode::Audit,
        ..DataplaneConfig::default()
    };
    let mut bed = bed_of(config, None, wire());
    assert!(bed.crosses(OUTSIDE, &from_to(OUTSIDER[0], WEB[0]).tcp(1, 81, SYN, b"")));
}

#[test]
fn answers_to_one_sender_are_limited() {
    let mut bed = bed(DenialAnswer::Reset, None);
    let syn = from_to(OUTSIDER[0], WEB[0]).tcp(1, 81, SYN, b"");
    let sent = (0..80).filter(|_| !bed.on(0, OUTSIDE, &syn).is_empty()).count();
    assert_eq!(sent, 50);
    assert_eq!(bed.count(|w| w.denials_answered.get()), 50);
    assert_eq!(bed.count(|w| w.answers_limited.get()), 30);
    // Another sender still gets one, and the first one again after a while.
    let other = from_to("198.51.100.9", WEB[0]).tcp(1, 81, SYN, b"");
    assert_eq!(bed.on(0, OUTSIDE, &other).len(), 1);
    bed.wait(Nanos::from_millis(100));
    assert_eq!(bed.on(0, OUTSIDE, &syn).len(), 1);
}

#[test]
fn a_stranger_gets_no_more_answers_by_changing_its_address() {
    let mut bed = bed(DenialAnswer::Reset, None);
    let sent = (1..=200)
        .filter(|host| {
            let forged = from_to(&format!("2001:db8::{host:x}"), WEB[1]);
            !bed.on(0, OUTSIDE, &forged.tcp(1, 81, SYN, b"")).is_empty()
        })
        .count();
    assert_eq!(sent, 50);
}
