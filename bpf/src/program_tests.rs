//! Packets through the programs, in the kernel (PROG_TEST_RUN).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::{os::fd::AsFd, path::PathBuf};

use crate::{
    Counter, Failsafe, kernel,
    maps::{FLAG_FAIL_OPEN, FLAG_GUARD_REDIRECT, FLAG_JUDGE_ALL, FLAG_PEER_BY_SKB, PortConfig, PortSockets},
    port::{AttachMode, EgressGuard, FailMode, Loaded, PortRole, PortSpec, load},
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;
const TC_OK: u32 = 0;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;

const WIRE: u32 = 0;
const POD: u32 = 1;
const UPLINK: u32 = 2;
const HOST: u32 = 3;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const GUARD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 99];

/// Whether to go on: the tests need root. Without it they are skipped, or fail where that was asked for.
pub(crate) fn privileged() -> bool {
    if std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .any(|line| {
            line.strip_prefix("Uid:")
                .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
        })
    {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but not root"
    );
    println!("SKIPPED: needs root");
    false
}

fn ethernet(destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 7]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

fn ip4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    packet
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut header = source.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0; 16]);
    header
}

fn ip6(source: &str, destination: &str, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(source.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(destination.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

fn udp4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    ethernet(MAC, 0x0800, &ip4(source, destination, 17, &ports(1000, 2000)))
}

fn udp6(source: &str, destination: &str) -> Vec<u8> {
    ethernet(MAC, 0x86dd, &ip6(source, destination, 17, 64, &ports(1000, 2000)))
}

fn vlan(frame: &[u8], ethertype: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(ethertype.to_be_bytes());
    tagged.extend([0, 100]);
    tagged.extend(&frame[12..]);
    tagged
}

const POD_A: [u8; 4] = [10, 111, 1, 2];
const POD_B: [u8; 4] = [10, 111, 2, 2];
const NODE: [u8; 4] = [10, 10, 100, 1];
const OUTSIDE: [u8; 4] = [198, 51, 100, 7];

/// A port's programs, loaded, with the addresses of the constants above.
struct Bench {
    loaded: Loaded,
    config: PortConfig,
    sockets: PortSockets,
    socket: Option<std::os::fd::OwnedFd>,
    seen: crate::Counters,
}

impl Bench {
    fn new(role: u32, flags: u32) -> Self {
        let spec = PortSpec {
            name: "test".to_owned(),
            pins: PathBuf::new(),
            role: PortRole::Pod,
            fail_mode: FailMode::Closed,
            mode: AttachMode::Auto,
            guard: EgressGuard::Off,
            local_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            failsafe: Vec::new(),
            tunnel_ports: Vec::new(),
        };
        let loaded = load(&spec.name).expect("the verifier takes the programs");
        let pods = ["10.111.0.0/16".parse().unwrap(), "fd00:111::/48".parse().unwrap()];
        let local = [
            NODE.into(),
            "2001:db8::1".parse().unwrap(),
            "fe80::1".parse().unwrap(),
        ];
        let failsafe = [
            Failsafe {
                from: "10.111.9.0/24".parse().unwrap(),
                to: "10.10.100.0/24".parse().unwrap(),
                protocol: Some(6),
                ports: Some((6443, 6444)),
            },
            Failsafe {
                from: "fd00:111:0:9::/64".parse().unwrap(),
                to: "2001:db8::/32".parse().unwrap(),
                protocol: None,
                ports: None,
            },
        ];
        loaded.maps.set_pod_cidrs(&pods).unwrap();
        loaded.maps.set_local_addresses(&local).unwrap();
        loaded.maps.set_failsafe(&failsafe).unwrap();
        loaded.maps.set_peer(1, 1).unwrap();
        let sockets = PortSockets::new().unwrap();
        loaded.maps.set_sockets(1, &sockets).unwrap();
        let config = PortConfig {
            role,
            flags,
            ifindex: 1,
            peer_ifindex: 1,
            guard_ifindex: 1,
            guard_mac: GUARD_MAC,
            failsafe_count: failsafe.len() as u16,
            tunnel_ports: std::array::from_fn(|nth| [7000, 0, 7001].get(nth).copied().unwrap_or_default()),
            ..PortConfig::default()
        };
        loaded.maps.set_config(config).unwrap();
        Self {
            loaded,
            config,
            sockets,
            socket: None,
            seen: crate::Counters::default(),
        }
    }

    fn with_socket(mut self) -> Self {
        let socket = kernel::unbound_xsk().unwrap();
        self.sockets.set(0, socket.as_fd()).unwrap();
        self.socket = Some(socket);
        self
    }

    /// Runs a program and demands its verdict and that exactly the named counter moved.
    fn expect(
        &mut self,
        program: usize,
        what: &str,
        packet: &[u8],
        verdict: u32,
        counter: Option<Counter>,
    ) -> Vec<u8> {
        let (got, output) = kernel::test_run(self.loaded.programs[program].as_fd(), packet).unwrap();
        assert_eq!(got, verdict, "{what}: verdict");
        let now = self.loaded.maps.counters(1).unwrap();
        for (name, value) in now.iter() {
            let moved = value - self.seen.get(name);
            assert_eq!(
                moved,
                u64::from(counter == Some(name)),
                "{what}: counter {}",
                name.as_str()
            );
        }
        self.seen = now;
        output
    }

    fn xdp(&mut self, what: &str, packet: &[u8], verdict: u32, counter: Counter) {
        self.expect(0, what, packet, verdict, Some(counter));
    }
}

#[test]
fn routed_ports_tell_the_kernels_packets_from_the_sockets() {
    if !privileged() {
        return;
    }
    for role in [POD, UPLINK, HOST] {
        let mut port = Bench::new(role, 0).with_socket();
        port.xdp(
            "ARP",
            &ethernet(BROADCAST, 0x0806, &[0; 28]),
            PASS,
            Counter::KernelNeighbour,
        );
        let is_pod = role == POD;
        let judged = |to_kernel: Counter| match is_pod {
            true => (REDIRECT, Counter::Xsk),
            false => (PASS, to_kernel),
        };
        let (verdict, counter) = match is_pod {
            true => (DROP, Counter::KernelRefused),
            false => (PASS, Counter::KernelOther),
        };
        port.xdp(
            "LLDP",
            &ethernet([1, 0x80, 0xc2, 0, 0, 14], 0x88cc, &[0; 40]),
            verdict,
            counter,
        );
        for kind in 133..=137 {
            let asks = matches!(kind, 133 | 135 | 136);
            let (verdict, counter) = match (is_pod, kind) {
                (true, _) if asks => (PASS, Counter::KernelNeighbour),
                (true, _) => (REDIRECT, Counter::Xsk),
                (false, 137) => (DROP, Counter::KernelRefused),
                (false, _) => (PASS, Counter::KernelNeighbour),
            };
            let solicit = ip6("fd00:111::2", "2001:db8::1", 58, 255, &[kind, 0, 0, 0]);
            port.xdp("discovery", &ethernet(MAC, 0x86dd, &solicit), verdict, counter);
            for on_link in ["fe80::1", "fe80::7", "ff02::1:ff00:1"] {
                let solicit = ip6("fe80::2", on_link, 58, 255, &[kind, 0, 0, 0]);
                port.xdp(
                    "discovery on the link",
                    &ethernet(MAC, 0x86dd, &solicit),
                    verdict,
                    counter,
                );
            }
            // A kernel that routes IPv6 would send it on, and the guard sees no pod's address in it.
            let elsewhere = ip6("2001:db8:bad::1", "2001:db8::9", 58, 255, &[kind, 0, 0, 0]);
            let (verdict, counter) = judged(Counter::KernelNeighbour);
            port.xdp(
                "discovery of somebody else",
                &ethernet(MAC, 0x86dd, &elsewhere),
                verdict,
                counter,
            );
            let beyond = ip6("fe80::2", "ff0e::5", 58, 255, &[kind, 0, 0, 0]);
            if is_pod {
                port.xdp(
                    "discovery to a group that is not the link's",
                    &ethernet(MAC, 0x86dd, &beyond),
                    REDIRECT,
                    Counter::Xsk,
                );
            }
            let routed = ip6("fd00:111::2", "2001:db8::9", 58, 64, &[kind, 0, 0, 0]);
            port.xdp(
                "routed discovery is false",
                &ethernet(MAC, 0x86dd, &routed),
                REDIRECT,
                Counter::Xsk,
            );
        }
        let report = ip6("fe80::2", "ff02::16", 58, 1, &[143, 0, 0, 0]);
        let (verdict, counter) = judged(Counter::KernelNeighbour);
        port.xdp(
            "MLD",
            &ethernet([0x33, 0x33, 0, 0, 0, 0x16], 0x86dd, &report),
            verdict,
            counter,
        );
        let (verdict, counter) = match is_pod {
            true => (PASS, Counter::KernelNeighbour),
            false => (PASS, Counter::KernelMulticast),
        };
        let discover = ip4([0; 4], [255; 4], 17, &ports(68, 67));
        port.xdp("DHCP", &ethernet(BROADCAST, 0x0800, &discover), verdict, counter);
        let solicit = ip6("fe80::2", "ff02::1:2", 17, 1, &ports(546, 547));
        port.xdp(
            "DHCPv6",
            &ethernet([0x33, 0x33, 0, 1, 0, 2], 0x86dd, &solicit),
            verdict,
            counter,
        );
        // A service of the host that listens on any address hears these.
        for (what, packet) in [
            ("false DHCP", ip4(OUTSIDE, [255; 4], 17, &ports(68, 67))),
            ("broadcast", ip4([0; 4], [255; 4], 17, &ports(68, 7100))),
            ("all hosts", ip4(OUTSIDE, [224, 0, 0, 1], 17, &ports(1, 7100))),
        ] {
            let (verdict, counter) = judged(Counter::KernelMulticast);
            port.xdp(what, &ethernet(MAC, 0x0800, &packet), verdict, counter);
        }
        for group in ["ff02::1", "ff02::fb", "ff02::1:2"] {
            let packet = ip6("fe80::2", group, 17, 1, &ports(1, 7100));
            let (verdict, counter) = judged(Counter::KernelMulticast);
            port.xdp(group, &ethernet(MAC, 0x86dd, &packet), verdict, counter);
        }
        let mdns = ip4(POD_A, [224, 0, 0, 251], 17, &ports(5353, 5353));
        port.xdp(
            "a pod's mDNS",
            &ethernet([1, 0, 0x5e, 0, 0, 0xfb], 0x0800, &mdns),
            REDIRECT,
            Counter::Xsk,
        );
        if !is_pod {
            let redirect = ip4(OUTSIDE, NODE, 1, &[5, 0, 0, 0, 0, 0, 0, 0]);
            port.xdp(
                "an ICMP redirect",
                &ethernet(MAC, 0x0800, &redirect),
                DROP,
                Counter::KernelRefused,
            );
        }
        port.xdp("pod to pod", &udp4(POD_A, POD_B), REDIRECT, Counter::Xsk);
        port.xdp("pod to outside", &udp4(POD_A, OUTSIDE), REDIRECT, Counter::Xsk);
        port.xdp("outside to pod", &udp4(OUTSIDE, POD_A), REDIRECT, Counter::Xsk);
        port.xdp("pod to the host", &udp4(POD_A, NODE), REDIRECT, Counter::Xsk);
        port.xdp(
            "pod to the host",
            &udp6("fd00:111::2", "2001:db8::1"),
            REDIRECT,
            Counter::Xsk,
        );
        port.xdp(
            "pod to pod",
            &udp6("fd00:111::2", "fd00:111:0:1::2"),
            REDIRECT,
            Counter::Xsk,
        );
        port.xdp(
            "tagged",
            &vlan(&udp4(POD_A, POD_B), 0x8100),
            REDIRECT,
            Counter::Xsk,
        );
        port.xdp(
            "twice tagged",
            &vlan(&vlan(&udp4(POD_A, POD_B), 0x8100), 0x88a8),
            REDIRECT,
            Counter::Xsk,
        );
        let unicast_in_broadcast = ethernet(BROADCAST, 0x0800, &ip4(POD_A, NODE, 17, &ports(1, 2)));
        port.xdp(
            "a pod cannot reach the host by broadcast",
            &unicast_in_broadcast,
            REDIRECT,
            Counter::Xsk,
        );
        let mut bad = udp4(POD_A, POD_B);
        bad[14] = 0x43;
        port.xdp("malformed goes to be counted", &bad, REDIRECT, Counter::Xsk);
        port.xdp(
            "a header cut off",
            &udp4(POD_A, POD_B)[..30],
            REDIRECT,
            Counter::Xsk,
        );
    }
}

#[test]
fn only_pods_have_the_host_judged() {
    if !privileged() {
        return;
    }
    for role in [UPLINK, HOST] {
        let mut port = Bench::new(role, 0).with_socket();
        port.xdp(
            "outside to the host",
            &udp4(OUTSIDE, NODE),
            PASS,
            Counter::KernelLocal,
        );
        port.xdp(
            "outside to the host",
            &udp6("2001:db8:9::9", "2001:db8::1"),
            PASS,
            Counter::KernelLocal,
        );
        port.xdp(
            "to a link-local address",
            &udp6("fe80::9", "fe80::1"),
            PASS,
            Counter::KernelLinkLocal,
        );
        port.xdp(
            "tagged, to the host",
            &vlan(&udp4(OUTSIDE, NODE), 0x8100),
            PASS,
            Counter::KernelLocal,
        );
        let directed = ethernet(
            BROADCAST,
            0x0800,
            &ip4(OUTSIDE, [10, 10, 100, 255], 17, &ports(1, 2)),
        );
        port.xdp("directed broadcast", &directed, PASS, Counter::KernelMulticast);
        port.xdp(
            "transit",
            &udp4(OUTSIDE, [203, 0, 113, 1]),
            REDIRECT,
            Counter::Xsk,
        );
    }
    let mut port = Bench::new(POD, 0).with_socket();
    port.xdp(
        "a false source to the host",
        &udp4(OUTSIDE, NODE),
        REDIRECT,
        Counter::Xsk,
    );
    port.xdp(
        "to the gateway's link-local address",
        &udp6("fe80::9", "fe80::1"),
        REDIRECT,
        Counter::Xsk,
    );
}

#[test]
fn closed_drops_pod_traffic_and_nothing_else() {
    if !privileged() {
        return;
    }
    for role in [POD, UPLINK, HOST] {
        let mut port = Bench::new(role, 0);
        port.xdp("from a pod", &udp4(POD_A, OUTSIDE), DROP, Counter::FailDropped);
        port.xdp("to a pod", &udp4(OUTSIDE, POD_A), DROP, Counter::FailDropped);
        port.xdp(
            "from a pod",
            &udp6("fd00:111::2", "2001:db8::9"),
            DROP,
            Counter::FailDropped,
        );
        port.xdp(
            "to a pod",
            &udp6("2001:db8::9", "fd00:111::2"),
            DROP,
            Counter::FailDropped,
        );
        port.xdp(
            "tagged",
            &vlan(&udp4(POD_A, OUTSIDE), 0x8100),
            DROP,
            Counter::FailDropped,
        );
        port.xdp(
            "tagged by an old type",
            &vlan(&udp4(POD_A, OUTSIDE), 0x9100),
            DROP,
            Counter::FailDropped,
        );
        let (verdict, counter) = match role {
            POD => (DROP, Counter::FailDropped),
            _ => (PASS, Counter::FailPassed),
        };
        port.xdp(
            "transit, or a pod's with a false source",
            &udp4(OUTSIDE, [203, 0, 113, 1]),
            verdict,
            counter,
        );
        port.xdp(
            "ARP",
            &ethernet(BROADCAST, 0x0806, &[0; 28]),
            PASS,
            Counter::KernelNeighbour,
        );
        let tunnel = ethernet(MAC, 0x0800, &ip4(OUTSIDE, [203, 0, 113, 1], 4, &[0; 40]));
        port.xdp("a tunnel in transit", &tunnel, DROP, Counter::FailDropped);
        let mut bad = udp4(POD_A, POD_B);
        bad[14] = 0x43;
        port.xdp("malformed", &bad, DROP, Counter::FailMalformed);
        port.xdp(
            "three tags",
            &vlan(&vlan(&vlan(&udp4(POD_A, POD_B), 0x8100), 0x8100), 0x88a8),
            DROP,
            Counter::FailMalformed,
        );
    }
    let mut port = Bench::new(UPLINK, 0);
    port.xdp("to the host", &udp4(OUTSIDE, NODE), PASS, Counter::KernelLocal);
    // The host would answer to fe80::9, and the guard lets that out: a connection, both ways.
    let mut port = Bench::new(POD, 0);
    port.xdp(
        "a pod to the gateway's link-local address",
        &udp6("fe80::9", "fe80::1"),
        DROP,
        Counter::FailDropped,
    );
    port.xdp(
        "a pod with a false source to the host",
        &udp4(OUTSIDE, NODE),
        DROP,
        Counter::FailDropped,
    );
}

#[test]
fn open_passes_everything() {
    if !privileged() {
        return;
    }
    let mut port = Bench::new(UPLINK, FLAG_FAIL_OPEN);
    port.xdp("from a pod", &udp4(POD_A, OUTSIDE), PASS, Counter::FailPassed);
    let mut wire = Bench::new(WIRE, FLAG_JUDGE_ALL | FLAG_FAIL_OPEN);
    wire.xdp(
        "from a pod",
        &udp4(POD_A, OUTSIDE),
        REDIRECT,
        Counter::FailRedirected,
    );
    wire.xdp(
        "ARP",
        &ethernet(BROADCAST, 0x0806, &[0; 28]),
        REDIRECT,
        Counter::FailRedirected,
    );
    let mut wire = Bench::new(WIRE, FLAG_JUDGE_ALL | FLAG_FAIL_OPEN | FLAG_PEER_BY_SKB);
    wire.xdp("from a pod", &udp4(POD_A, OUTSIDE), PASS, Counter::FailRedirected);
}

/// Failsafe entries for every protocol are for the administrator's connections, not for what nodes' tunnels hold.
#[test]
fn failsafe_opens_no_tunnels_that_it_does_not_name() {
    if !privileged() {
        return;
    }
    let mut wire = Bench::new(WIRE, FLAG_JUDGE_ALL);
    let failsafe = |protocol, ports| Failsafe {
        from: "198.51.100.0/24".parse().unwrap(),
        to: "10.10.100.0/24".parse().unwrap(),
        protocol,
        ports,
    };
    let udp = |from: u16, to: u16| ethernet(MAC, 0x0800, &ip4(OUTSIDE, NODE, 17, &ports(from, to)));
    let tunnels = [
        ("VXLAN", udp(9, 8472)),
        ("a configured port", udp(9, 7000)),
        (
            "IP in IP",
            ethernet(MAC, 0x0800, &ip4(OUTSIDE, NODE, 4, &[0x45; 40])),
        ),
        ("ESP", ethernet(MAC, 0x0800, &ip4(OUTSIDE, NODE, 50, &[0; 40]))),
    ];
    wire.loaded
        .maps
        .set_failsafe(&[failsafe(None, None), failsafe(Some(6), None)])
        .unwrap();
    for (what, packet) in &tunnels {
        wire.xdp(what, packet, DROP, Counter::FailDropped);
    }
    wire.xdp("UDP", &udp(9, 53), REDIRECT, Counter::FailRedirected);
    wire.loaded
        .maps
        .set_failsafe(&[failsafe(Some(17), Some((7000, 8472))), failsafe(Some(50), None)])
        .unwrap();
    for ((what, packet), named) in tunnels.iter().zip([true, true, false, true]) {
        if named {
            wire.xdp(what, packet, REDIRECT, Counter::FailSafe);
        } else {
            wire.xdp(what, packet, DROP, Counter::FailDropped);
        }
    }
}

#[test]
fn failsafe_passes_both_ways_when_closed() {
    if !privileged() {
        return;
    }
    let tcp4 =
        |source, destination, ports: Vec<u8>| ethernet(MAC, 0x0800, &ip4(source, destination, 6, &ports));
    let agent = [10, 111, 9, 9];
    let server = [10, 10, 100, 77];
    let mut port = Bench::new(UPLINK, 0);
    port.xdp(
        "listed",
        &tcp4(agent, server, ports(40000, 6443)),
        PASS,
        Counter::FailSafe,
    );
    port.xdp(
        "its answer",
        &tcp4(server, agent, ports(6444, 40000)),
        PASS,
        Counter::FailSafe,
    );
    port.xdp(
        "another port",
        &tcp4(agent, server, ports(40000, 22)),
        DROP,
        Counter::FailDropped,
    );
    port.xdp(
        "the port at the wrong end",
        &tcp4(agent, server, ports(6443, 22)),
        DROP,
        Counter::FailDropped,
    );
    port.xdp(
        "another pod",
        &tcp4(POD_A, server, ports(40000, 6443)),
        DROP,
        Counter::FailDropped,
    );
    let udp = ethernet(MAC, 0x0800, &ip4(agent, server, 17, &ports(40000, 6443)));
    port.xdp("another protocol", &udp, DROP, Counter::FailDropped);
    let mut later_fragment = tcp4(agent, server, ports(40000, 6443));
    later_fragment[21] = 1;
    port.xdp("a later fragment", &later_fragment, DROP, Counter::FailDropped);
    port.xdp(
        "any protocol, IPv6",
        &udp6("fd00:111:0:9::1", "2001:db8::5"),
        PASS,
        Counter::FailSafe,
    );
    port.xdp(
        "IPv6 answer",
        &udp6("2001:db8::5", "fd00:111:0:9::1"),
        PASS,
        Counter::FailSafe,
    );
    port.xdp(
        "IPv6, not listed",
        &udp6("fd00:111:0:8::1", "2001:db8::5"),
        DROP,
        Counter::FailDropped,
    );
}

#[test]
fn a_wire_sends_everything_to_the_socket() {
    if !privileged() {
        return;
    }
    let mut wire = Bench::new(WIRE, FLAG_JUDGE_ALL).with_socket();
    for (what, packet) in [
        ("pod", udp4(POD_A, POD_B)),
        ("host", udp4(OUTSIDE, NODE)),
        ("ARP", ethernet(BROADCAST, 0x0806, &[0; 28])),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 14], 0x88cc, &[0; 40])),
    ] {
        wire.xdp(what, &packet, REDIRECT, Counter::Xsk);
    }
    let mut wire = Bench::new(WIRE, FLAG_JUDGE_ALL);
    wire.xdp("closed, pod", &udp4(POD_A, OUTSIDE), DROP, Counter::FailDropped);
    wire.xdp(
        "closed, no pod",
        &udp4(OUTSIDE, NODE),
        REDIRECT,
        Counter::FailRedirected,
    );
    wire.xdp(
        "closed, ARP",
        &ethernet(BROADCAST, 0x0806, &[0; 28]),
        REDIRECT,
        Counter::FailRedirected,
    );

    // What may hold a pod's packet, or is not understood, is not let through because nobody is there to judge it.
    let udp = |from: u16, to: u16| ip4(OUTSIDE, NODE, 17, &ports(from, to));
    let mut fragment = udp(1, 2);
    fragment[7] = 1;
    let mut closed = vec![
        ("PPPoE", ethernet(MAC, 0x8864, &[0; 40])),
        ("MPLS", ethernet(MAC, 0x8847, &[0; 40])),
        ("an odd tag", vlan(&udp4(OUTSIDE, NODE), 0x9200)),
        ("LLC", ethernet(MAC, 40, &[0xaa; 40])),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 14], 0x88cc, &[0; 40])),
        ("a later fragment of UDP", ethernet(MAC, 0x0800, &fragment)),
        ("VXLAN", ethernet(MAC, 0x0800, &udp(9, 4789))),
        ("VXLAN, as Linux has it", ethernet(MAC, 0x0800, &udp(9, 8472))),
        ("Geneve", ethernet(MAC, 0x0800, &udp(9, 6081))),
        ("Flannel's own", ethernet(MAC, 0x0800, &udp(8285, 8285))),
        ("FoU", ethernet(MAC, 0x0800, &udp(9, 5555))),
        ("a configured port", ethernet(MAC, 0x0800, &udp(9, 7000))),
        ("another", ethernet(MAC, 0x0800, &udp(9, 7001))),
        ("WireGuard", ethernet(MAC, 0x0800, &udp(51820, 9))),
        (
            "VXLAN, IPv6",
            ethernet(
                MAC,
                0x86dd,
                &ip6("2001:db8::5", "2001:db8::6", 17, 64, &ports(9, 4789)),
            ),
        ),
        (
            "an extension header",
            ethernet(
                MAC,
                0x86dd,
                &ip6("2001:db8::5", "2001:db8::6", 60, 64, &[41, 0, 0, 0, 0, 0, 0, 0]),
            ),
        ),
    ];
    for protocol in [4, 41, 47, 50, 51, 97, 115, 137] {
        closed.push((
            "a tunnel",
            ethernet(MAC, 0x0800, &ip4(OUTSIDE, NODE, protocol, &[0; 40])),
        ));
    }
    for (what, packet) in closed {
        wire.xdp(what, &packet, DROP, Counter::FailDropped);
    }
    for protocol in [1, 2, 6, 89, 112] {
        let packet = ethernet(MAC, 0x0800, &ip4(OUTSIDE, NODE, protocol, &[8; 40]));
        wire.xdp("nobody's pod", &packet, REDIRECT, Counter::FailRedirected);
    }

    let mut wire = Bench::new(WIRE, 0).with_socket();
    wire.xdp(
        "not all judged, no pod",
        &udp4(OUTSIDE, NODE),
        REDIRECT,
        Counter::WireBypass,
    );
    wire.xdp(
        "not all judged, ARP",
        &ethernet(BROADCAST, 0x0806, &[0; 28]),
        REDIRECT,
        Counter::WireBypass,
    );
    wire.xdp(
        "not all judged, pod",
        &udp4(POD_A, OUTSIDE),
        REDIRECT,
        Counter::Xsk,
    );
}

#[test]
fn the_guard_lets_the_kernel_reach_no_pod_unjudged() {
    if !privileged() {
        return;
    }
    const GUARD: usize = 1;
    let arp = ethernet(BROADCAST, 0x0806, &[0; 28]);
    let solicit = ethernet(
        MAC,
        0x86dd,
        &ip6("2001:db8::1", "fd00:111::2", 58, 255, &[135, 0, 0, 0]),
    );
    for socket in [false, true] {
        let mut port = Bench::new(UPLINK, FLAG_GUARD_REDIRECT);
        if socket {
            port = port.with_socket();
        }
        for (what, packet) in [
            ("to a pod", udp4(NODE, POD_A)),
            ("from a pod", udp4(POD_A, OUTSIDE)),
            ("to a pod", udp6("2001:db8::1", "fd00:111::2")),
            ("tagged", vlan(&udp4(NODE, POD_A), 0x8100)),
        ] {
            let sent = port.expect(GUARD, what, &packet, TC_REDIRECT, Some(Counter::GuardRedirected));
            assert_eq!(sent[..6], GUARD_MAC, "{what}: destination");
            assert_eq!(sent[6..], packet[6..], "{what}: the rest");
        }
        port.expect(GUARD, "ARP", &arp, TC_OK, None);
        port.expect(GUARD, "discovery", &solicit, TC_OK, None);
        port.expect(GUARD, "link-local", &udp6("fe80::1", "fe80::2"), TC_OK, None);
        port.expect(GUARD, "no pod", &udp4(NODE, OUTSIDE), TC_OK, None);

        // What the kernel forwards to a pod, whoever turned that on: NAT may have made it look like the host's own.
        for packet in [udp4(NODE, POD_A), udp6("2001:db8::1", "fd00:111::2")] {
            let guard = port.loaded.programs[GUARD].as_fd();
            assert_eq!(kernel::test_run_forwarded(guard, &packet, 7).unwrap(), TC_SHOT);
            assert_eq!(
                kernel::test_run_forwarded(guard, &packet, 0).unwrap(),
                TC_REDIRECT
            );
        }
        port.seen = port.loaded.maps.counters(1).unwrap();

        // On a pod's port, every address is a pod's.
        port.config.role = POD;
        port.loaded.maps.set_config(port.config).unwrap();
        port.expect(GUARD, "ARP", &arp, TC_OK, None);
        port.expect(GUARD, "discovery", &solicit, TC_OK, None);
        let offer = ethernet(BROADCAST, 0x0800, &ip4(NODE, [255; 4], 17, &ports(67, 68)));
        port.expect(GUARD, "DHCP", &offer, TC_OK, None);
        for (what, packet) in [
            ("a pod outside of all networks", udp4(NODE, OUTSIDE)),
            (
                "a pod outside of all networks",
                udp6("2001:db8::1", "2001:db8::9"),
            ),
            ("to a pod", udp4(NODE, POD_A)),
        ] {
            port.expect(GUARD, what, &packet, TC_REDIRECT, Some(Counter::GuardRedirected));
        }
        for (what, packet) in [
            ("link-local", udp6("fe80::1", "fe80::2")),
            ("all nodes", udp6("fe80::1", "ff02::1")),
            ("all hosts", udp4(NODE, [224, 0, 0, 1])),
            ("broadcast", udp4(NODE, [255; 4])),
            ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 14], 0x88cc, &[0; 40])),
        ] {
            port.expect(GUARD, what, &packet, TC_SHOT, Some(Counter::GuardDropped));
        }
        port.config.role = UPLINK;

        port.config.flags = 0;
        port.loaded.maps.set_config(port.config).unwrap();
        port.expect(
            GUARD,
            "no host port",
            &udp4(NODE, POD_A),
            TC_SHOT,
            Some(Counter::GuardDropped),
        );
    }
    let mut port = Bench::new(UPLINK, FLAG_GUARD_REDIRECT | FLAG_FAIL_OPEN);
    port.expect(
        GUARD,
        "open, dead",
        &udp4(NODE, POD_A),
        TC_OK,
        Some(Counter::GuardFailOpen),
    );
    let mut port = port.with_socket();
    port.expect(
        GUARD,
        "open, alive",
        &udp4(NODE, POD_A),
        TC_REDIRECT,
        Some(Counter::GuardRedirected),
    );
}

#[test]
fn header_and_rust_agree() {
    let header = include_str!("c/ringwall.h");
    let constant = |name: &str| -> u64 {
        let line = header
            .lines()
            .find(|line| line.split_whitespace().any(|word| word == name))
            .unwrap();
        let value = line.split_once(name).unwrap().1.trim_start_matches([' ', '=']);
        let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    for counter in Counter::ALL {
        let name = format!("RW_{}", counter.as_str().to_uppercase().replace('-', "_"));
        assert_eq!(constant(&name), counter as u64, "{name}");
    }
    assert_eq!(constant("RW_COUNTERS"), Counter::ALL.len() as u64);
    for (name, value) in [
        ("RW_WIRE", WIRE),
        ("RW_POD", POD),
        ("RW_UPLINK", UPLINK),
        ("RW_HOST", HOST),
    ] {
        assert_eq!(constant(name), u64::from(value), "{name}");
    }
    for (name, value) in [
        ("RW_FAIL_OPEN", FLAG_FAIL_OPEN),
        ("RW_JUDGE_ALL", FLAG_JUDGE_ALL),
        ("RW_PEER_BY_SKB", FLAG_PEER_BY_SKB),
        ("RW_GUARD_REDIRECT", FLAG_GUARD_REDIRECT),
    ] {
        assert_eq!(constant(name), u64::from(value), "{name}");
    }
    for (name, value) in [
        ("RW_MAX_QUEUES", crate::maps::MAX_QUEUES),
        ("RW_MAX_PORTS", crate::maps::MAX_PORTS),
        ("RW_MAX_LOCAL", crate::maps::MAX_LOCAL),
        ("RW_MAX_PREFIXES", crate::maps::MAX_PREFIXES),
        ("RW_MAX_FAILSAFE", crate::maps::MAX_FAILSAFE),
        ("RW_MAX_TUNNEL_PORTS", crate::maps::MAX_TUNNEL_PORTS),
    ] {
        assert_eq!(constant(name), value as u64, "{name}");
    }
}
