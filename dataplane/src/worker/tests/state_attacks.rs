//! What somebody may try against what is remembered: numbers of connections, places in tables, owners of addresses.

use super::*;

/// A wire whose ends say whose addresses are there.
fn sided(config: DataplaneConfig) -> Bed {
    let mut bed = Bed::with(config, 4096);
    bed.publish(World::new(1));
    let mut builder = wire();
    builder.port(port(INSIDE, PortKind::Wire { peer: OUTSIDE }, Side::Inside));
    builder.port(port(OUTSIDE, PortKind::Wire { peer: INSIDE }, Side::Outside));
    bed.plane.forwarding.publish(builder.build());
    bed.settled()
}

fn states(bed: &mut Bed) -> Vec<&'static str> {
    bed.flows().iter().map(|flow| flow.state.name()).collect()
}

/// An open connection between the client and the outsider; numbers 1001 and 5001 come next.
fn open(bed: &mut Bed, family: usize) -> [Template; 2] {
    let (forth, back) = (
        from_to(CLIENT[family], OUTSIDER[family]),
        from_to(OUTSIDER[family], CLIENT[family]),
    );
    assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 80, SYN, [1000, 0], b"")));
    assert!(bed.crosses(OUTSIDE, &back.tcp_at(80, 7, SYN_ACK, [5000, 1001], b"")));
    assert!(bed.crosses(INSIDE, &forth.tcp_at(7, 80, ACK, [1001, 5001], b"")));
    assert_eq!(states(bed), ["tcp-established"]);
    [forth, back]
}

/// Data in a guessed place moves what counts as sent, and a reset lies within that.
#[test]
fn forged_data_does_not_make_room_for_a_forged_reset() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let [_, back] = open(&mut bed, family);
        for flags in [ACK, RST] {
            for guess in (0..=u32::MAX).step_by(1 << 16) {
                let (seq, data) = match flags {
                    ACK => (guess, &b"x"[..]),
                    _ => (guess.wrapping_add(1), &b""[..]),
                };
                let frame = back.tcp_at(80, 7, flags, [seq, 0x9000_0000], data);
                assert!(bed.crosses(OUTSIDE, &frame));
            }
        }
        assert_eq!(states(&mut bed), ["tcp-established"]);
        // What goes on is believed.
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(80, 7, ACK, [5001, 1001], b"x")));
        assert!(bed.crosses(OUTSIDE, &back.tcp_at(80, 7, RST, [5002, 0], b"")));
        assert_eq!(states(&mut bed), ["tcp-reset-reply"]);
    }
}

/// After a restart numbers are learnt anew, but not from anybody.
#[test]
fn a_restart_does_not_make_a_forged_reset_believable() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let [_, back] = open(&mut bed, family);
        let entries = crate::flow::memory::SEGMENTS * 16;
        let memory = FlowMemory::open(super::restart::left_by(&bed), entries, 99, bed.now).unwrap();
        let mut next = Bed::over(DataplaneConfig::default(), memory, bed.now);
        next.publish(World::new(1));
        next.plane.forwarding.publish(wire().build());
        assert!(next.crosses(OUTSIDE, &back.tcp_at(80, 7, ACK, [0x7000_0000, 7], b"x")));
        assert!(next.crosses(OUTSIDE, &back.tcp_at(80, 7, RST, [0x7000_0001, 0], b"")));
        assert_eq!(states(&mut next), ["tcp-established"]);
    }
}

/// A pod goes, another one gets its address: who talked to the first one is no party of the second.
#[test]
fn a_reused_address_does_not_inherit_the_flows_of_the_one_before() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let (forth, back) = (
            from_to(WEB[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], WEB[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.udp(53, 53, b"")));
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 53, b"")));
        bed.publish(World {
            web_epoch: 21 << 32,
            ..World::new(2)
        });
        bed.drops(OUTSIDE, &back.udp(53, 53, b""), DropReason::PolicyIngress);
        assert!(bed.crosses(INSIDE, &forth.udp(53, 53, b"")));
        assert!(bed.crosses(OUTSIDE, &back.udp(53, 53, b"")));
    }
}

#[test]
fn an_init_is_never_a_reply() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let (forth, back) = (
            from_to(WEB[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], WEB[family]),
        );
        assert!(bed.crosses(INSIDE, &forth.sctp(5000, 5000, 1)));
        bed.drops(OUTSIDE, &back.sctp(5000, 5000, 1), DropReason::PolicyIngress);
        assert!(bed.crosses(OUTSIDE, &back.sctp(5000, 5000, 2)));
        bed.drops(OUTSIDE, &back.sctp(5000, 5000, 1), DropReason::PolicyIngress);
        assert!(bed.crosses(OUTSIDE, &back.sctp(5000, 5000, 0)));
    }
}

/// An SCTP packet with a verification tag and one chunk.
fn tagged(template: &Template, ports: [u16; 2], tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut l4 = vec![0; 12];
    l4[..2].copy_from_slice(&ports[0].to_be_bytes());
    l4[2..4].copy_from_slice(&ports[1].to_be_bytes());
    l4[4..8].copy_from_slice(&tag.to_be_bytes());
    l4.extend_from_slice(chunk);
    template.ip(132, &l4)
}

#[test]
fn a_forged_abort_ends_nothing() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let (forth, back) = (
            from_to(CLIENT[family], OUTSIDER[family]),
            from_to(OUTSIDER[family], CLIENT[family]),
        );
        let init = |kind: u8, tag: u8| [&[kind, 0, 0, 20, 0, 0, 0, tag][..], &[1; 12]].concat();
        assert!(bed.crosses(INSIDE, &tagged(&forth, [7, 9], 0, &init(1, 70))));
        assert!(bed.crosses(OUTSIDE, &tagged(&back, [9, 7], 70, &init(2, 90))));
        assert!(bed.crosses(INSIDE, &tagged(&forth, [7, 9], 90, &[10, 0, 0, 4])));
        assert!(bed.crosses(OUTSIDE, &tagged(&back, [9, 7], 70, &[11, 0, 0, 4])));
        for chunk in [&[6, 0, 0, 4][..], &[14, 0, 0, 4], &[6, 1, 0, 4]] {
            for tag in [0, 1, 71] {
                assert!(bed.crosses(OUTSIDE, &tagged(&back, [9, 7], tag, &[0, 3, 0, 4])));
                assert!(bed.crosses(OUTSIDE, &tagged(&back, [9, 7], tag, chunk)));
                assert!(bed.crosses(INSIDE, &tagged(&forth, [7, 9], tag, chunk)));
            }
        }
        assert_eq!(states(&mut bed), ["sctp-established"]);
        assert!(bed.crosses(OUTSIDE, &tagged(&back, [9, 7], 70, &[6, 0, 0, 4])));
        assert_eq!(states(&mut bed), ["sctp-closed"]);
    }
}

/// More headers than are walked: what is behind them cannot be told from a tunnel.
#[test]
fn headers_that_are_not_walked_hide_no_tunnel() {
    let mut bed = sided(DataplaneConfig::default());
    for dst in [OUTSIDER[1], NODE[1]] {
        let mut out = from_to(CLIENT[1], dst);
        out.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0]); 9];
        for frame in [
            out.ip(41, &[0x60; 60]),
            out.ip(4, &[0x45; 60]),
            out.udp(9, 8472, &[0; 60]),
        ] {
            bed.drops(INSIDE, &frame, DropReason::Encapsulation);
        }
        out.extensions.truncate(7);
        bed.drops(INSIDE, &out.ip(41, &[0x60; 60]), DropReason::Encapsulation);
    }
}

/// One pod's first fragments, all of them allowed.
#[test]
fn a_flood_of_fragments_takes_no_place_of_others() {
    for family in [0, 1] {
        let mut bed = sided(DataplaneConfig::default());
        let other = ["203.0.113.", "2001:db8:5::"][family];
        let part = |src: &str, dst: &str, id: u32, offset: u16, more: bool| {
            let mut template = from_to(src, dst);
            template.fragment = Some((id, offset, more));
            template.ip(17, &[3, 232, 0, 53, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        };
        for nth in 0..20 {
            assert!(bed.crosses(INSIDE, &part(CLIENT[family], OUTSIDER[family], nth, 0, true)));
            for id in 0..2000 {
                bed.wait(Nanos(1000));
                let dst = format!("{other}{}", 1 + id % 250);
                assert!(bed.crosses(INSIDE, &part(WEB[family], &dst, nth * 2000 + id, 0, true)));
            }
            assert!(
                bed.crosses(INSIDE, &part(CLIENT[family], OUTSIDER[family], nth, 16, false)),
                "{nth}"
            );
        }
    }
}

/// One pod makes many packets expire; another one still hears of the size that its path takes.
#[test]
fn errors_for_one_pod_are_not_used_up_by_another() {
    use super::attacks::{LEFT, into, routed, router};
    const POD: PortId = PortId(0);
    for family in [0, 1] {
        let mut builder = router(false);
        let mut uplink = port(LEFT, PortKind::Uplink, Side::Any);
        uplink.mtu = 1400;
        builder.port(uplink);
        builder.icmp_source(addr(["172.16.0.9", "fd16::9"][family]));
        builder.port(port(PortId(4), PortKind::Pod, Side::Pods));
        builder.route(
            addr(CLIENT[family]),
            [32, 128][family],
            crate::forward::Route::connected(PortId(4)),
        );
        let mut bed = routed(builder);
        bed.plane.forwarding.reclaim();
        let other = ["203.0.113.", "2001:db8:5::"][family];
        let mut answered = 0;
        for last in 1..=250 {
            for _ in 0..30 {
                let mut old = into(POD, WEB[family], &format!("{other}{last}"));
                old.ttl = 1;
                answered += bed.on(0, POD, &old.udp(1, 9, b"")).len();
            }
        }
        assert_eq!(answered, 10);
        let mut big = into(PortId(4), CLIENT[family], &format!("{other}7"));
        big.dont_fragment = true;
        assert_eq!(bed.on(0, PortId(4), &big.udp(1, 53, &[0; 1420])).len(), 1);
    }
}

/// One pod and its friends outside send errors about their flows; others' still pass.
#[test]
fn errors_of_one_pod_do_not_keep_back_those_for_another() {
    for (family, unreachable) in [(0, 3), (1, 1)] {
        let mut bed = sided(DataplaneConfig::default());
        let other = ["203.0.113.", "2001:db8:5::"][family];
        let mut passed = 0;
        for nth in 0..2500 {
            let friend = match family {
                0 => format!("203.0.{}.{}", nth / 250, 1 + nth % 250),
                _ => format!("{other}{nth:x}"),
            };
            let theirs = from_to(&friend, CLIENT[family]).udp(1, 53, b"12345678");
            let (answer, error) = (from_to(CLIENT[family], &friend), from_to(CLIENT[family], &friend));
            assert!(bed.crosses(OUTSIDE, &theirs));
            assert!(bed.crosses(INSIDE, &answer.udp(53, 1, b"")));
            for _ in 0..10 {
                let error = error.icmp(unreachable, 0, [0; 4], &theirs[14..]);
                passed += u32::from(bed.crosses(INSIDE, &error));
            }
        }
        assert_eq!(passed, 100);
        let asked = from_to(WEB[family], &format!("{other}9")).udp(7, 53, b"12345678");
        assert!(bed.crosses(INSIDE, &asked));
        let router = from_to(["198.51.100.1", "2001:db8:1::1"][family], WEB[family]);
        assert!(bed.crosses(OUTSIDE, &router.icmp(unreachable, 1, [0; 4], &asked[14..])));
    }
}
