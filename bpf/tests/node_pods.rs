//! What a node's programs let a pod send and receive beside its flows: nothing in another's name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;
mod node_rig;

use net::privileged;
use node_rig::{
    A_MAC, A4, A6, B_MAC, B4, B6, HOST_MAC, HOST4, HOST6, OUTSIDE_MAC, OUTSIDE4, OUTSIDE6, Rig, Shape,
    UPLINK4,
    ask::{Ask, Verdict},
    describe, mac,
    raw::{Packets, arp, ethernet, icmp4, icmp6, ip4, ip6, udp4, udp6},
    udp, wait_until,
};
use ringwall_bpf::node::{NodeCounters, Outcome, Program};

const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// The outcomes of a program that moved since, with their packets.
fn moved(before: &NodeCounters, now: &NodeCounters, program: Program) -> Vec<(Outcome, u64)> {
    Outcome::ALL
        .iter()
        .filter(|outcome| outcome.program() == program)
        .map(|&outcome| (outcome, now.get(outcome).packets - before.get(outcome).packets))
        .filter(|(_, packets)| *packets > 0)
        .collect()
}

/// Sends frames from a namespace and demands the outcome of each in one program, and that nobody else sees it where it drops.
struct Attacker<'a> {
    rig: &'a Rig,
    packets: Packets,
    program: Program,
    victims: Vec<(&'static str, Packets)>,
}

impl Attacker<'_> {
    fn expect(&self, what: &str, frame: &[u8], outcome: Outcome) {
        for (_, victim) in &self.victims {
            victim.received();
        }
        let before = self.rig.counters();
        self.packets.send(frame);
        self.rig.wait_for(outcome, before.get(outcome).packets);
        let moved = moved(&before, &self.rig.counters(), self.program);
        assert_eq!(moved, [(outcome, 1)], "{what}");
        if outcome.drops() {
            for (name, victim) in &self.victims {
                let seen = victim.received();
                assert!(
                    !seen.iter().any(|seen| seen.starts_with(&frame[..14])),
                    "{what}: {name} saw it"
                );
            }
        }
    }
}

/// A rig whose own chatter is over, and whose workers let nothing pass.
fn quiet(shape: Shape) -> Rig {
    let rig = Rig::new(shape, |_: &Ask| Verdict::DenyOnce);
    rig.hush();
    rig
}

#[test]
fn a_pod_speaks_in_its_own_name_and_hides_nothing() {
    if !privileged() {
        return;
    }
    for shape in [Shape::Bridge, Shape::Routed] {
        let rig = quiet(shape);
        let attacker = Attacker {
            rig: &rig,
            packets: Packets::open(&rig.a, "e0"),
            program: Program::FromPod,
            victims: vec![
                ("b", Packets::open(&rig.b, "e0")),
                ("outside", Packets::open(&rig.outside, "e0")),
            ],
        };
        let gateway = mac(&rig.host, if shape == Shape::Routed { "va" } else { "cni0" });
        let to_b = if shape == Shape::Routed { gateway } else { B_MAC };
        let four = |packet: &[u8]| ethernet(to_b, A_MAC, 0x0800, packet);
        let six = |packet: &[u8]| ethernet(to_b, A_MAC, 0x86dd, packet);
        let datagram = udp4(1000, 2000, b"x");
        let good4 = ip4(A4, B4, 17, &[], &datagram);
        let datagram6 = udp6(A6, B6, 1000, 2000, b"x");
        let good6 = ip6(A6, B6, 17, 64, &datagram6);
        attacker.expect("its own", &four(&good4), Outcome::PodPassed);
        attacker.expect("its own", &six(&good6), Outcome::PodPassed);

        // MAC, tag, ethertype.
        attacker.expect(
            "B's MAC",
            &ethernet(to_b, B_MAC, 0x0800, &good4),
            Outcome::PodSpoofedMac,
        );
        let mut tagged = vec![0, 5];
        tagged.extend([8, 0]);
        tagged.extend(&good4);
        for tag in [0x8100, 0x88a8] {
            attacker.expect("a tag", &ethernet(to_b, A_MAC, tag, &tagged), Outcome::PodTagged);
        }
        for ethertype in [0x88b5, 0x8847, 0x0027, 0x88cc] {
            attacker.expect(
                "ethertype",
                &ethernet(to_b, A_MAC, ethertype, &[0; 50]),
                Outcome::PodEthertype,
            );
        }

        // Addresses.
        for from in [
            B4,
            HOST4,
            UPLINK4,
            OUTSIDE4,
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let packet = ip4(from, B4, 17, &[], &datagram);
            attacker.expect(from, &four(&packet), Outcome::PodSpoofedSource);
        }
        for from in [B6, HOST6, OUTSIDE6, "::1", "::", "fe80::a", "ff02::1"] {
            let packet = ip6(from, B6, 17, 64, &udp6(from, B6, 1000, 2000, b"x"));
            attacker.expect(from, &six(&packet), Outcome::PodSpoofedSource);
        }

        // An IPv4 address in the form that the maps have it in is not the IPv4 address.
        let mapped = "::ffff:10.244.1.2";
        for (from, to) in [(mapped, B6), (A6, mapped)] {
            let packet = ip6(from, to, 17, 64, &udp6(from, to, 1000, 2000, b"x"));
            attacker.expect("mapped", &six(&packet), Outcome::PodMalformed);
        }

        // ARP and neighbour discovery.
        let asks = |mac, sender, target| ethernet(BROADCAST, A_MAC, 0x0806, &arp(1, mac, sender, target));
        attacker.expect("ARP", &asks(A_MAC, A4, HOST4), Outcome::PodLink);
        attacker.expect("probe", &asks(A_MAC, "0.0.0.0", "10.244.1.99"), Outcome::PodLink);
        attacker.expect("ARP for B", &asks(A_MAC, B4, HOST4), Outcome::PodSpoofedArp);
        attacker.expect(
            "ARP for the gateway",
            &asks(A_MAC, HOST4, B4),
            Outcome::PodSpoofedArp,
        );
        attacker.expect(
            "ARP with B's MAC",
            &asks(B_MAC, A4, HOST4),
            Outcome::PodSpoofedArp,
        );
        let mut strange = arp(1, A_MAC, A4, HOST4);
        strange[4] = 8;
        attacker.expect(
            "ARP of another size",
            &ethernet(BROADCAST, A_MAC, 0x0806, &strange),
            Outcome::PodMalformed,
        );
        let discovery = |from: &str, to: &str, kind: u8, body: &[u8]| {
            ethernet(
                ALL_NODES,
                A_MAC,
                0x86dd,
                &ip6(from, to, 58, 255, &icmp6(from, to, kind, 0, body)),
            )
        };
        let body = |target: &str, option: &[u8]| {
            let mut body = vec![0x20, 0, 0, 0];
            body.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
            body.extend(option);
            body
        };
        let link = |kind: u8, mac: [u8; 6]| [&[kind, 1], mac.as_slice()].concat();
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        attacker.expect(
            "solicitation",
            &discovery(A6, HOST6, 135, &body(HOST6, &link(1, A_MAC))),
            Outcome::PodLink,
        );
        attacker.expect(
            "with a nonce",
            &discovery("::", "ff02::1:ff00:2", 135, &body(A6, &nonce)),
            Outcome::PodLink,
        );
        attacker.expect(
            "advertisement",
            &discovery(A6, "ff02::1", 136, &body(A6, &link(2, A_MAC))),
            Outcome::PodLink,
        );
        attacker.expect(
            "of its link",
            &discovery("fe80::a", "ff02::1", 136, &body("fe80::a", &link(2, A_MAC))),
            Outcome::PodLink,
        );
        for (what, frame) in [
            (
                "advertisement for B",
                discovery(A6, "ff02::1", 136, &body(B6, &link(2, A_MAC))),
            ),
            (
                "for the gateway",
                discovery(A6, "ff02::1", 136, &body(HOST6, &link(2, A_MAC))),
            ),
            (
                "for another's address of the link",
                discovery(A6, "ff02::1", 136, &body("fe80::b", &link(2, A_MAC))),
            ),
            (
                "with B's MAC",
                discovery(A6, "ff02::1", 136, &body(A6, &link(2, B_MAC))),
            ),
            (
                "with B's MAC in a solicitation",
                discovery(A6, HOST6, 135, &body(HOST6, &link(1, B_MAC))),
            ),
            (
                "with B's MAC behind",
                discovery(
                    A6,
                    HOST6,
                    135,
                    &body(HOST6, &[nonce.as_slice(), &link(1, B_MAC)].concat()),
                ),
            ),
        ] {
            attacker.expect(what, &frame, Outcome::PodSpoofedNeighbour);
        }
        attacker.expect(
            "an option without length",
            &discovery(A6, HOST6, 135, &body(HOST6, &[1, 0, 0, 0, 0, 0, 0, 0])),
            Outcome::PodSpoofedNeighbour,
        );
        attacker.expect(
            "more options than there are",
            &discovery(A6, HOST6, 135, &body(HOST6, &nonce.repeat(6))),
            Outcome::PodMalformed,
        );
        attacker.expect(
            "router advertisement",
            &discovery("fe80::a", "ff02::1", 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
            Outcome::PodRouter,
        );
        attacker.expect(
            "its redirect",
            &discovery(A6, B6, 137, &body(HOST6, &[])),
            Outcome::PodRouter,
        );
        attacker.expect(
            "redirect",
            &four(&ip4(A4, B4, 1, &[], &icmp4(5, 1, &[10, 0, 0, 9]))),
            Outcome::PodRouter,
        );
        // Under ever new addresses of the link, within limits.
        let before = rig.counters();
        for number in 0..100 {
            let claimed = format!("fe80::bad:{number:x}");
            attacker
                .packets
                .send(&discovery(&claimed, HOST6, 135, &body(HOST6, &link(1, A_MAC))));
        }
        rig.wait_for(
            Outcome::PodLinkLimit,
            before.get(Outcome::PodLinkLimit).packets + 49,
        );
        assert!(rig.count(Outcome::PodLink) < before.get(Outcome::PodLink).packets + 50);
        // Routed here, discovery is none: it needs an address of its own, and to go somewhere.
        let stale = ip6(
            A6,
            "ff02::1",
            58,
            64,
            &icmp6(A6, "ff02::1", 136, 0, &body(B6, &link(2, A_MAC))),
        );
        attacker.expect(
            "hop limit",
            &ethernet(ALL_NODES, A_MAC, 0x86dd, &stale),
            Outcome::PodGroup,
        );

        // What holds another packet.
        for protocol in [4, 41, 47, 97, 115, 137] {
            attacker.expect(
                "encapsulated",
                &four(&ip4(A4, B4, protocol, &[], &good4)),
                Outcome::PodEncapsulated,
            );
            attacker.expect(
                "encapsulated",
                &six(&ip6(A6, B6, protocol, 64, &good4)),
                Outcome::PodEncapsulated,
            );
        }
        for port in [4789, 8472] {
            attacker.expect(
                "VXLAN",
                &four(&ip4(A4, HOST4, 17, &[], &udp4(9, port, &[0; 60]))),
                Outcome::PodEncapsulated,
            );
        }
        // Behind extension headers, too; and a routing header is a source route.
        let behind = |header: u8, next: u8, payload: &[u8]| {
            [&[next, 0, 1, 4, 0, 0, 0, 0], payload]
                .concat()
                .pipe(|p| six(&ip6(A6, B6, header, 64, &p)))
        };
        attacker.expect(
            "behind hop-by-hop",
            &behind(0, 41, &good6),
            Outcome::PodEncapsulated,
        );
        attacker.expect(
            "behind destination options",
            &behind(60, 47, &good6),
            Outcome::PodEncapsulated,
        );
        attacker.expect(
            "routing header",
            &behind(43, 17, &datagram6),
            Outcome::PodSourceRoute,
        );
        let many = (0..12).fold(datagram6.clone(), |inner, depth| {
            [
                &[if depth == 0 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0],
                inner.as_slice(),
            ]
            .concat()
        });
        attacker.expect(
            "more headers than are looked at",
            &six(&ip6(A6, B6, 60, 64, &many)),
            Outcome::PodMalformed,
        );
        for option in [
            [131, 7, 4, 10, 0, 0, 9, 0],
            [137, 7, 4, 10, 0, 0, 9, 0],
            [1, 131, 7, 4, 10, 0, 0, 9],
            [7, 1, 0, 0, 0, 0, 0, 0],
        ] {
            attacker.expect(
                "source route",
                &four(&ip4(A4, B4, 17, &option, &datagram)),
                Outcome::PodSourceRoute,
            );
        }
        for option in [[1, 1, 1, 0], [148, 4, 0, 0]] {
            attacker.expect(
                "other options",
                &four(&ip4(A4, B4, 17, &option, &datagram)),
                Outcome::PodPassed,
            );
        }
        let mut short = good4.clone();
        short[0] = 0x43;
        attacker.expect("a header that is too short", &four(&short), Outcome::PodMalformed);

        // Groups: only what gets or keeps an address.
        for (to, mac) in [
            ("255.255.255.255", BROADCAST),
            ("224.0.0.251", [1, 0, 0x5e, 0, 0, 0xfb]),
            ("239.1.2.3", [1, 0, 0x5e, 1, 2, 3]),
        ] {
            attacker.expect(
                to,
                &ethernet(mac, A_MAC, 0x0800, &ip4(A4, to, 17, &[], &datagram)),
                Outcome::PodGroup,
            );
        }
        attacker.expect(
            "broadcast with one address",
            &ethernet(BROADCAST, A_MAC, 0x0800, &good4),
            Outcome::PodGroup,
        );
        attacker.expect(
            "multicast",
            &ethernet(
                ALL_NODES,
                A_MAC,
                0x86dd,
                &ip6(A6, "ff02::1", 17, 1, &udp6(A6, "ff02::1", 1, 2, b"x")),
            ),
            Outcome::PodGroup,
        );
        attacker.expect(
            "DHCP",
            &ethernet(
                BROADCAST,
                A_MAC,
                0x0800,
                &ip4("0.0.0.0", "255.255.255.255", 17, &[], &udp4(68, 67, &[0; 240])),
            ),
            Outcome::PodLink,
        );
        attacker.expect(
            "a DHCP server",
            &ethernet(
                BROADCAST,
                A_MAC,
                0x0800,
                &ip4(A4, "255.255.255.255", 17, &[], &udp4(67, 68, &[0; 240])),
            ),
            Outcome::PodGroup,
        );
        attacker.expect(
            "a listener's report",
            &ethernet(
                ALL_NODES,
                A_MAC,
                0x86dd,
                &ip6(
                    "fe80::a",
                    "ff02::16",
                    58,
                    1,
                    &icmp6("fe80::a", "ff02::16", 143, 0, &[0; 4]),
                ),
            ),
            Outcome::PodLink,
        );

        // In audit all of it passes, and is counted all the same.
        let mut config = rig.config.clone();
        config.audit = true;
        rig.node.set_config(&config).unwrap();
        let before = rig.counters();
        let spoofed = four(&ip4(OUTSIDE4, B4, 17, &[], &datagram));
        attacker.packets.send(&spoofed);
        rig.wait_for(
            Outcome::PodSpoofedSource,
            before.get(Outcome::PodSpoofedSource).packets,
        );
        let audited = rig.counters().get(Outcome::PodSpoofedSource).audited;
        assert_eq!(audited, before.get(Outcome::PodSpoofedSource).audited + 1);
    }
}

trait Pipe: Sized {
    fn pipe<T>(self, f: impl FnOnce(Self) -> T) -> T {
        f(self)
    }
}
impl<T> Pipe for T {}

#[test]
fn a_local_pods_address_comes_from_its_port_alone() {
    if !privileged() {
        return;
    }
    for shape in [Shape::Bridge, Shape::Routed] {
        let rig = quiet(shape);
        // From elsewhere, before conntrack sees it.
        rig.track();
        let uplink = mac(&rig.host, "eth0");
        let attacker = Attacker {
            rig: &rig,
            packets: Packets::open(&rig.outside, "e0"),
            program: Program::FromNet,
            victims: vec![
                ("a", Packets::open(&rig.a, "e0")),
                ("b", Packets::open(&rig.b, "e0")),
            ],
        };
        let datagram = udp4(1000, 2000, b"x");
        let four = |from, to| ethernet(uplink, OUTSIDE_MAC, 0x0800, &ip4(from, to, 17, &[], &datagram));
        attacker.expect("its own", &four(OUTSIDE4, OUTSIDE4), Outcome::NetPassed);
        attacker.expect("A's", &four(A4, B4), Outcome::NetSpoofedSource);
        attacker.expect("B's", &four(B4, A4), Outcome::NetSpoofedSource);
        let six = ip6(A6, B6, 17, 64, &udp6(A6, B6, 1, 2, b"x"));
        attacker.expect(
            "A's",
            &ethernet(uplink, OUTSIDE_MAC, 0x86dd, &six),
            Outcome::NetSpoofedSource,
        );
        let mut tagged = vec![0, 5, 8, 0];
        tagged.extend(ip4(A4, B4, 17, &[], &datagram));
        attacker.expect(
            "A's in a VLAN",
            &ethernet(uplink, OUTSIDE_MAC, 0x8100, &tagged),
            Outcome::NetSpoofedSource,
        );
        attacker.expect(
            "what cannot be read",
            &ethernet(uplink, OUTSIDE_MAC, 0x0800, &[0x45; 9]),
            Outcome::NetPassed,
        );
        let tracked = rig.host.exec("nft list table inet track");
        assert!(!tracked.contains(A4), "{tracked}");

        // By a device that has no such check, it ends where it would leave.
        rig.release(rig.index("eth0"));
        let before = rig.count(Outcome::ExitSpoofedSource);
        attacker.packets.send(&four(A4, B4));
        rig.wait_for(Outcome::ExitSpoofedSource, before);
        assert!(rig.asks().is_empty());
    }
}

#[test]
fn a_port_takes_what_is_to_its_pod() {
    if !privileged() {
        return;
    }
    let rig = quiet(Shape::Bridge);
    let attacker = Attacker {
        rig: &rig,
        packets: Packets::open(&rig.host, "va"),
        program: Program::Exit,
        victims: vec![("a", Packets::open(&rig.a, "e0"))],
    };
    let datagram = udp4(1000, 2000, b"x");
    let four = |to, from| ethernet(A_MAC, HOST_MAC, 0x0800, &ip4(from, to, 17, &[], &datagram));
    attacker.expect("of this host", &four(A4, HOST4), Outcome::ExitOwnStack);
    attacker.expect("to B", &four(B4, HOST4), Outcome::ExitNotItsAddress);
    attacker.expect(
        "to nobody",
        &four("10.244.1.9", HOST4),
        Outcome::ExitNotItsAddress,
    );
    attacker.expect(
        "to everybody",
        &ethernet(
            BROADCAST,
            HOST_MAC,
            0x0800,
            &ip4(HOST4, "255.255.255.255", 17, &[], &datagram),
        ),
        Outcome::ExitGroup,
    );
    attacker.expect("to a group", &four("224.0.0.251", HOST4), Outcome::ExitGroup);
    attacker.expect(
        "to its address at every station",
        &ethernet(BROADCAST, HOST_MAC, 0x0800, &ip4(HOST4, A4, 17, &[], &datagram)),
        Outcome::ExitGroup,
    );
    attacker.expect(
        "DHCP",
        &ethernet(
            BROADCAST,
            HOST_MAC,
            0x0800,
            &ip4(HOST4, "255.255.255.255", 17, &[], &udp4(67, 68, &[0; 240])),
        ),
        Outcome::ExitLink,
    );
    attacker.expect(
        "ARP",
        &ethernet(BROADCAST, HOST_MAC, 0x0806, &arp(1, HOST_MAC, HOST4, A4)),
        Outcome::ExitLink,
    );
    attacker.expect(
        "what cannot be read",
        &ethernet(A_MAC, HOST_MAC, 0x0800, &[0x45; 9]),
        Outcome::ExitMalformed,
    );
    let six = |from: &str, to: &str| {
        ethernet(
            A_MAC,
            HOST_MAC,
            0x86dd,
            &ip6(from, to, 17, 64, &udp6(from, to, 1, 2, b"x")),
        )
    };
    attacker.expect("of this host", &six(HOST6, A6), Outcome::ExitOwnStack);
    attacker.expect(
        "of this host on the link",
        &six("fe80::1", "fe80::a"),
        Outcome::ExitOwnStack,
    );
    attacker.expect("to B", &six(HOST6, B6), Outcome::ExitNotItsAddress);
    // A process of this host that speaks with B's address is judged as B (the stand-in denies).
    attacker.expect("with B's address", &four(A4, B4), Outcome::ExitAsked);
    attacker.expect(
        "with a stranger's address",
        &four(A4, OUTSIDE4),
        Outcome::ExitAsked,
    );
    // Counted before the worker has it.
    wait_until(|| !rig.asks().is_empty(), || "asked".to_owned());
    let ask = rig.asks().remove(0);
    assert_eq!(
        (ask.in_ifindex, ask.true_pair()),
        (0, (B4.parse().unwrap(), A4.parse().unwrap()))
    );

    // A bridge floods what it does not know; nobody but the owner of the address takes it.
    let flood = Attacker {
        rig: &rig,
        packets: Packets::open(&rig.b, "e0"),
        program: Program::FromPod,
        victims: vec![("a", Packets::open(&rig.a, "e0"))],
    };
    let before = rig.count(Outcome::ExitNotItsAddress);
    flood.expect(
        "to an unknown station",
        &ethernet(
            [2, 9, 9, 9, 9, 9],
            B_MAC,
            0x0800,
            &ip4(B4, OUTSIDE4, 17, &[], &datagram),
        ),
        Outcome::PodPassed,
    );
    rig.wait_for(Outcome::ExitNotItsAddress, before);

    // An ethertype of its own between two ports, past `from_pod` (a device that is no pod's port).
    rig.release(rig.index("vb"));
    let before = rig.count(Outcome::ExitEthertype);
    let unknown = ethernet(A_MAC, B_MAC, 0x88b5, &[0; 50]);
    flood.packets.send(&unknown);
    rig.wait_for(Outcome::ExitEthertype, before);
    // Neighbours may still ask for each other, so only this frame counts.
    let seen = flood.victims[0].1.received();
    assert!(
        !seen.iter().any(|seen| seen.starts_with(&unknown[..14])),
        "{}",
        describe(&rig.counters())
    );
}

#[test]
fn errors_from_a_pod_that_is_no_end_of_the_flow_end() {
    if !privileged() {
        return;
    }
    let rig = Rig::new(Shape::Routed, |_: &Ask| Verdict::Allow);
    rig.track();
    // A flow between A and the outside.
    let (a, outside) = (
        udp(&rig.a, &format!("{A4}:5000")),
        udp(&rig.outside, &format!("{OUTSIDE4}:6000")),
    );
    a.send_to(b"x", outside.local_addr().unwrap()).unwrap();
    outside.recv(&mut [0; 9]).unwrap();
    let quoted = ip4(A4, OUTSIDE4, 17, &[], &udp4(5000, 6000, b"x"));
    let error = |code: u8, more: usize| {
        let mut body = vec![0; 4];
        body.extend(&quoted);
        body.resize(body.len() + more, 0);
        icmp4(3, code, &body)
    };
    // From B, which has nothing to do with it.
    let b = Packets::open(&rig.b, "e0");
    let gateway = mac(&rig.host, "vb");
    let before = rig.count(Outcome::ExitRelatedForeign);
    b.send(&ethernet(
        gateway,
        B_MAC,
        0x0800,
        &ip4(B4, A4, 1, &[], &error(3, 0)),
    ));
    rig.wait_for(Outcome::ExitRelatedForeign, before);
    // From a router on the way; and with more than an error carries.
    let router = Packets::open(&rig.outside, "e0");
    let uplink = mac(&rig.host, "eth0");
    let from_router = |packet: &[u8]| ethernet(uplink, OUTSIDE_MAC, 0x0800, packet);
    let before = rig.count(Outcome::ExitRelated);
    router.send(&from_router(&ip4("198.51.100.99", A4, 1, &[], &error(1, 0))));
    rig.wait_for(Outcome::ExitRelated, before);
    let before = rig.count(Outcome::ExitRelatedTooLong);
    router.send(&from_router(&ip4("198.51.100.99", A4, 1, &[], &error(1, 600))));
    rig.wait_for(Outcome::ExitRelatedTooLong, before);
}
