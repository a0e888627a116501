//! Input: a frame. The XDP program and the tc guard see it, in the kernel (PROG_TEST_RUN), as ports of every role, and what
//! they do with it is held against what the dataplane's parser says about it. Needs root.
//!
//! What must hold: no packet that is subject to policy and touches a pod gets past the sockets, to the kernel or to a
//! wire's other end, whatever its headers look like; but for what a link needs to work. Without a socket it drops. Exactly
//! one counter moves, and frames are not touched.

use std::cell::RefCell;

use ringwall_bpf::{
    Counter,
    fuzzing::{LoadedPrograms, Outcome, Program, Role},
};
use ringwall_dataplane::{
    addr::Addr,
    failsafe::Prefix,
    wire::{Packet, Parsed, Transport, parse, protocol, subject::NotSubject},
};

use crate::{
    headers::{l3, with_valid_checksum},
    world::addr,
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_OK: u32 = 0;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;

const PODS: [(&str, u8); 2] = [("10.0.0.0", 16), ("fd00::", 48)];
const LOCAL: [&str; 4] = ["172.16.0.9", "10.9.0.1", "fd16::9", "fe80::1"];

/// The kernel's limits: an Ethernet header, and a page less what it needs itself.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=2048;

struct Benches {
    wire: LoadedPrograms,
    wire_all: LoadedPrograms,
    wire_alone: LoadedPrograms,
    pod: LoadedPrograms,
    pod_alone: LoadedPrograms,
    uplink: LoadedPrograms,
    host: LoadedPrograms,
}

thread_local! {
    static BENCHES: RefCell<Option<Benches>> = const { RefCell::new(None) };
}

/// Whether programs can be loaded: else every input passes.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}

impl Benches {
    fn load() -> Self {
        let pods: Vec<_> = PODS
            .iter()
            .map(|(at, length)| format!("{at}/{length}").parse().unwrap())
            .collect();
        let local: Vec<_> = LOCAL.iter().map(|at| at.parse().unwrap()).collect();
        let bench = |role, socket, judge_all| {
            LoadedPrograms::new(role, socket, judge_all, &pods, &local)
                .unwrap_or_else(|error| panic!("{error}"))
        };
        Self {
            wire: bench(Role::Wire, true, false),
            wire_all: bench(Role::Wire, true, true),
            wire_alone: bench(Role::Wire, false, false),
            pod: bench(Role::Pod, true, false),
            pod_alone: bench(Role::Pod, false, false),
            uplink: bench(Role::Uplink, true, false),
            host: bench(Role::Host, true, false),
        }
    }
}

/// Checks one frame.
pub fn run(frame: &[u8]) {
    if !is_possible() || !LENGTHS.contains(&frame.len()) {
        return;
    }
    BENCHES.with_borrow_mut(|benches| {
        let benches = benches.get_or_insert_with(Benches::load);
        check(benches, frame);
        if let Some(mended) = with_valid_checksum(frame) {
            check(benches, &mended);
        }
    });
}

fn is_pod(at: Addr) -> bool {
    PODS.iter()
        .any(|(prefix, length)| Prefix::new(addr(prefix), *length).contains(at))
}

fn is_local(at: Addr) -> bool {
    LOCAL.iter().any(|own| addr(own) == at)
}

/// A frame, and what the dataplane says about it.
struct ParsedFrame<'f> {
    frame: &'f [u8],
    parsed: Parsed,
    /// What is subject to policy.
    packet: Option<Packet>,
    touches_pod: bool,
}

fn check(benches: &mut Benches, frame: &[u8]) {
    let parsed = parse(frame);
    let packet = match parsed {
        Parsed::Subject(packet) => Some(packet),
        _ => None,
    };
    let seen = ParsedFrame {
        frame,
        parsed,
        packet,
        touches_pod: packet.is_some_and(|packet| is_pod(packet.src) || is_pod(packet.dst)),
    };
    seen.check_wires(benches);
    seen.check_pod(&mut benches.pod, true);
    seen.check_pod(&mut benches.pod_alone, false);
    seen.check_routed(&mut benches.uplink);
    seen.check_routed(&mut benches.host);
    seen.check_guards(benches);
}

impl ParsedFrame<'_> {
    fn xdp(&self, bench: &mut LoadedPrograms) -> (u32, Counter) {
        let Outcome {
            verdict,
            counter,
            packet,
        } = bench
            .run(Program::Port, self.frame)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(packet, self.frame, "the program changed the frame");
        let counter = counter.unwrap_or_else(|| panic!("not exactly one counter moved: {:?}", self.parsed));
        (verdict, counter)
    }

    fn check_wires(&self, benches: &mut Benches) {
        let parsed = self.parsed;
        assert_eq!(self.xdp(&mut benches.wire_all), (XDP_REDIRECT, Counter::Xsk));
        let said = self.xdp(&mut benches.wire);
        match said {
            (XDP_REDIRECT, Counter::Xsk) => {
                assert!(
                    self.packet.is_none() || self.touches_pod,
                    "judged for nothing: {parsed:?}"
                );
            }
            (XDP_REDIRECT, Counter::WireBypass) => {
                assert!(!self.touches_pod, "past the sockets: {parsed:?}");
            }
            other => panic!("{other:?} of a wire: {parsed:?}"),
        }
        let alone = self.xdp(&mut benches.wire_alone);
        match alone {
            (XDP_DROP, Counter::FailDropped | Counter::FailMalformed) => {
                assert_eq!(
                    said.1,
                    Counter::Xsk,
                    "dropped, and past the sockets where there are some: {parsed:?}"
                );
            }
            (XDP_REDIRECT, Counter::WireBypass) => assert_eq!(said, alone),
            other => panic!("{other:?} of a wire without sockets: {parsed:?}"),
        }
    }

    /// What a pod tells about its link: neighbour discovery for somebody on it, and router solicitations.
    fn is_for_the_link(&self) -> bool {
        match self.parsed {
            Parsed::NotSubject(NotSubject::Arp | NotSubject::Ndp | NotSubject::Dhcp) => true,
            // What the kernel finds out itself.
            Parsed::Malformed(_) => true,
            // A wire would not let it cross, since it holds more than hosts say; the kernel knows what to make of it.
            Parsed::NotSubject(NotSubject::Multicast | NotSubject::LinkLocal) if self.asks() => true,
            // A wire would not let it cross with what follows the packet, or without a whole header in it; the kernel cuts
            // the one off and drops the other.
            Parsed::NotSubject(NotSubject::Multicast | NotSubject::Broadcast) if self.begins_like_dhcp() => {
                true
            }
            // The program reads a type that lies behind the end of the packet; the kernel cuts it off there.
            Parsed::NotSubject(_) => self.is_empty(),
            Parsed::Subject(packet) => {
                let [a, b, ..] = packet.dst.octets();
                let on_link = a == 0xfe && b & 0xc0 == 0x80 || is_local(packet.dst);
                matches!(self.discovery(), Some(133 | 135 | 136)) && on_link
            }
        }
    }

    /// Whether it is a solicitation or advertisement of a neighbour, or a solicitation of routers, whatever it holds.
    fn asks(&self) -> bool {
        l3(self.frame).is_some_and(|(kind, l3)| {
            kind == 0x86dd
                && self.frame.get(l3 + 6..l3 + 8) == Some(&[protocol::ICMPV6, 255])
                && matches!(self.frame.get(l3 + 40), Some(133 | 135 | 136))
        })
    }

    /// Whether addresses and ports are those of a DHCP client, wherever the packet ends.
    fn begins_like_dhcp(&self) -> bool {
        let Some((kind, l3)) = l3(self.frame) else {
            return false;
        };
        let at = |from: usize, length: usize| self.frame.get(l3 + from..l3 + from + length);
        let byte = |from| at(from, 1).and_then(|byte| byte.first().copied());
        let link_local = at(8, 2).is_some_and(|src| src[0] == 0xfe && src[1] & 0xc0 == 0x80);
        let servers = addr("ff02::1:2").octets();
        match kind {
            0x86dd => {
                byte(6) == Some(protocol::UDP)
                    && link_local
                    && at(24, 16) == Some(&servers)
                    && at(40, 4) == Some(&[2, 34, 2, 35])
            }
            _ => {
                let header = usize::from(byte(0).unwrap_or(0) & 15) * 4;
                let whole = at(6, 2).is_some_and(|fragment| fragment[0] & 0x3f == 0 && fragment[1] == 0);
                byte(9) == Some(protocol::UDP)
                    && whole
                    && at(12, 8) == Some(&[0, 0, 0, 0, 255, 255, 255, 255])
                    && at(header, 4) == Some(&[0, 68, 0, 67])
            }
        }
    }

    /// Whether it is an IPv6 packet that holds nothing.
    fn is_empty(&self) -> bool {
        l3(self.frame)
            .is_some_and(|(kind, l3)| kind == 0x86dd && self.frame.get(l3 + 4..l3 + 6) == Some(&[0, 0]))
    }

    /// The type of what is neighbour discovery, and was not routed here (RFC 4861 7.1).
    fn discovery(&self) -> Option<u8> {
        let packet = self.packet.filter(|packet| packet.ttl == 255)?;
        match packet.transport {
            Transport::Icmp {
                kind: kind @ 133..=137,
                ..
            } if packet.protocol == protocol::ICMPV6 => Some(kind),
            _ => None,
        }
    }

    fn check_pod(&self, bench: &mut LoadedPrograms, judged: bool) {
        let parsed = self.parsed;
        match self.xdp(bench) {
            (XDP_PASS, Counter::KernelNeighbour) => {
                assert!(self.is_for_the_link(), "from a pod to the kernel: {parsed:?}");
            }
            // What is for the link is heard so often and no more.
            (XDP_DROP, Counter::KernelRefused) => {
                assert!(
                    self.packet.is_none() || self.is_for_the_link(),
                    "refused: {parsed:?}"
                );
            }
            (XDP_REDIRECT, Counter::Xsk) if judged => {}
            (XDP_DROP, Counter::FailDropped | Counter::FailMalformed) if !judged => {}
            other => panic!("{other:?} of a pod's port: {parsed:?}"),
        }
    }

    fn check_routed(&self, bench: &mut LoadedPrograms) {
        let parsed = self.parsed;
        let said = self.xdp(bench);
        let Some(packet) = self.packet else {
            return; // the kernel makes of it what it likes, as on any other port
        };
        let octets = packet.dst.octets();
        let link_local = !packet.dst.is_v4() && octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
        let group = self.frame.first().is_some_and(|first| first & 1 == 1);
        let for_kernel = group || link_local || is_local(packet.dst);
        match said {
            (XDP_REDIRECT, Counter::Xsk) => {}
            (XDP_PASS, Counter::KernelNeighbour) => {
                assert!(self.discovery().is_some(), "past the sockets: {parsed:?}");
            }
            (XDP_PASS, Counter::KernelMulticast | Counter::KernelLinkLocal | Counter::KernelLocal) => {
                assert!(for_kernel && !is_pod(packet.src), "past the sockets: {parsed:?}");
            }
            (XDP_DROP, Counter::KernelRefused) => {
                let redirect = matches!(packet.transport, Transport::Icmp { kind: 5 | 137, .. });
                assert!(redirect, "refused: {parsed:?}");
            }
            other => panic!("{other:?} of a routed port: {parsed:?}"),
        }
    }

    fn check_guards(&self, benches: &mut Benches) {
        let parsed = self.parsed;
        for (bench, is_pod_port) in [(&mut benches.pod, true), (&mut benches.uplink, false)] {
            let said = match bench.run(Program::Guard, self.frame) {
                Ok(said) => said,
                // The kernel makes no packet of its own out of less than a header.
                Err(_) if self.frame.len() < 14 + 40 => continue,
                Err(error) => panic!("{error}"),
            };
            match said.verdict {
                TC_OK => {
                    let harmless = if is_pod_port {
                        self.packet.is_none() || self.discovery().is_some()
                    } else {
                        !self.touches_pod || self.discovery().is_some()
                    };
                    assert!(harmless, "past the guard: {parsed:?}");
                    assert_eq!(said.packet, self.frame);
                }
                TC_SHOT => assert_eq!(said.counter, Some(Counter::GuardDropped)),
                TC_REDIRECT => {
                    assert_eq!(said.counter, Some(Counter::GuardRedirected));
                    assert_eq!(said.packet[..6], [2, 0, 0, 0, 0, 99]);
                    assert_eq!(said.packet[6..], self.frame[6..]);
                }
                other => panic!("{other} of the guard: {parsed:?}"),
            }
        }
    }
}
