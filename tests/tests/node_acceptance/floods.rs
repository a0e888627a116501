//! Pods that flood what they may not reach; what others begin beside them, and what they have begun themselves before, goes on.

use std::{
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};
use ringwall_testbed::{
    appliance::{Appliance, PATIENCE},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, EXTERNAL, EXTERNAL_V6, Member, Plan, Role},
    world::{World, wait_for_answer},
};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::{BOTH, Listener, denied, outcome, start};

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);
/// New flows per second of the pod beside it.
const RATE: u32 = 300;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(1300);
/// What of the flood would be heard if it came through.
const HEARD: [u16; 3] = [2000, 30_000, 60_000];

/// What a flood is of. Each packet begins a flow that is denied.
#[derive(Clone, Copy, Debug)]
enum Flood {
    Datagrams,
    /// Datagrams in three fragments.
    Fragments,
    /// Datagrams that leave the pod as one and are cut up on the way.
    Segments,
    /// ICMP, each with another identifier.
    Echoes,
}

/// Flows begun at a rate for a while, by both families in turn: how many, and how many of them were answered.
fn new_flows(from: &Member, to: &Member) -> [u32; 2] {
    from.ns
        .run(|| {
            let begin = Instant::now();
            let (mut begun, mut answered) = (0, 0);
            let mut waiting: Vec<(UdpSocket, Instant)> = Vec::new();
            while begin.elapsed() < FLOOD || !waiting.is_empty() {
                let due = begin.elapsed().min(FLOOD).as_secs_f64() * f64::from(RATE);
                while f64::from(begun) < due {
                    let address = to.address(begun % 2 == 1);
                    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    socket.connect((address, 53)).unwrap();
                    // A full queue is the kernel's way to say that it was lost.
                    let _ = socket.send(b"new");
                    waiting.push((socket, Instant::now()));
                    begun += 1;
                }
                waiting.retain(|(socket, since)| {
                    let is_answered = socket.recv(&mut [0; 512]).is_ok();
                    answered += u32::from(is_answered);
                    !is_answered && since.elapsed() < ANSWER
                });
                thread::sleep(Duration::from_millis(1));
            }
            [begun, answered]
        })
        .unwrap()
}

/// Floods the external client by both families until told to stop; how many packets the pod's kernel took.
fn flood(from: &Member, of: Flood, stop: &AtomicBool) -> u64 {
    let go_on = || !stop.load(Ordering::Relaxed);
    let datagrams = |bytes: &[u8]| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        if matches!(of, Flood::Segments) {
            setsockopt(&socket, sockopt::UdpGsoSegment, &64).unwrap();
        }
        (1024..=u16::MAX)
            .cycle()
            .take_while(|_| go_on())
            .flat_map(|port| [EXTERNAL.to_ipv6_mapped(), EXTERNAL_V6].map(|to| SocketAddr::from((to, port))))
            .filter(|to| socket.send_to(bytes, to).is_ok())
            .count() as u64
    };
    let echoes = || {
        let of_family = |domain, protocol, request: u8, to: SocketAddr| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
            move |identifier: u16| {
                let [high, low] = identifier.to_be_bytes();
                // Of IPv6 the kernel makes the sum; of IPv4 it is that of a request without anything behind it.
                let sum = (!(0x0800_u32 + u32::from(identifier)) & 0xffff) as u16;
                let [sum_high, sum_low] = if request == 8 { sum.to_be_bytes() } else { [0; 2] };
                let message = [request, 0, sum_high, sum_low, high, low, 0, 0];
                socket.send_to(&message, &to.into()).is_ok()
            }
        };
        let v4 = of_family(Domain::IPV4, Protocol::ICMPV4, 8, (EXTERNAL, 0).into());
        let v6 = of_family(Domain::IPV6, Protocol::ICMPV6, 128, (EXTERNAL_V6, 0).into());
        (0..0xf000_u16)
            .cycle()
            .take_while(|_| go_on())
            .map(|identifier| u64::from(v4(identifier)) + u64::from(v6(identifier)))
            .sum()
    };
    from.ns
        .run(|| match of {
            Flood::Datagrams => datagrams(b"flood"),
            Flood::Fragments => datagrams(&[0; 3000]),
            Flood::Segments => datagrams(&[0; 64 * 40]),
            Flood::Echoes => echoes(),
        })
        .unwrap()
}

/// A pod that answers, one beside the floods, and pods that flood and may reach nothing but the first.
struct Scene {
    bed: Bed,
    firewall: Appliance,
}

impl Scene {
    fn new(role: Role, flooders: &[&str]) -> Self {
        let pods = ["shop/web", "shop/client"].iter().chain(flooders);
        let bed = Bed::new(role, &pods.map(|name| Plan::new(name)).collect::<Vec<_>>(), 1).unwrap();
        let mut world = World::of(&bed);
        for flooder in flooders {
            let app = flooder.split('/').next_back().unwrap();
            world.policy(
                "shop",
                app,
                json!({
                    "podSelector": {"matchLabels": {"app": app}},
                    "policyTypes": ["Egress"],
                    "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
                }),
            );
        }
        let firewall = start(&bed, &world);
        Self { bed, firewall }
    }

    /// Has pods flood for a while; asserts that nothing of that comes through, and that the flows that the client begins meanwhile are
    /// answered, as is everything of a flow that each flooder has begun before.
    fn flooded(&self, floods: &[(usize, Flood)]) {
        let [web, client] = [0, 1].map(|index| &self.bed.pods[index]);
        let heard = Listener::new(&self.bed.external, &HEARD);
        let known: Vec<UdpSocket> = floods
            .iter()
            .map(|&(index, _)| established(&self.bed.pods[index], web))
            .collect();
        let (before, asked) = (denied(&self.firewall), outcome(&self.firewall, "exit-asked"));
        let tracked = connections(&self.bed);
        let stop = AtomicBool::new(false);
        let ([begun, answered], unanswered, sent) = thread::scope(|scope| {
            let flooding: Vec<_> = floods
                .iter()
                .map(|&(index, of)| {
                    let (pod, stop) = (&self.bed.pods[index], &stop);
                    scope.spawn(move || flood(pod, of, stop))
                })
                .collect();
            let going_on: Vec<_> = known
                .iter()
                .map(|socket| scope.spawn(|| unanswered(socket, &stop)))
                .collect();
            let counts = new_flows(client, web);
            stop.store(true, Ordering::Relaxed);
            let sent: Vec<u64> = flooding
                .into_iter()
                .map(|flooder| flooder.join().unwrap())
                .collect();
            let unanswered: u32 = going_on.into_iter().map(|flow| flow.join().unwrap()).sum();
            (counts, unanswered, sent)
        });
        assert_eq!(heard.received(), [], "{floods:?}");
        let status = self.firewall.status().unwrap();
        let drops = &status["dataplane"]["drops"];
        let refused: Vec<String> = [
            "pod-ask-queue",
            "exit-ask-queue",
            "pod-ask-limit",
            "exit-ask-limit",
        ]
        .into_iter()
        .map(|reason| format!("{reason} {}", drops[reason]))
        .collect();
        let asked = outcome(&self.firewall, "exit-asked") - asked;
        let tracked = connections(&self.bed).saturating_sub(tracked);
        println!(
            "{floods:?}: sent {sent:?}, asked {asked}, tracked {tracked}, denied {}, {}; {answered} of {begun} new flows beside it",
            denied(&self.firewall) - before,
            refused.join(", "),
        );
        for reason in ["ask-socket-full", "ask-pair-full"] {
            assert_eq!(drops[reason], 0, "{floods:?}: {reason}");
        }
        assert!(
            sent.iter().all(|&sent| sent > 10_000),
            "{floods:?}: {sent:?} are no flood"
        );
        assert!(
            answered * 100 >= begun * 99,
            "{floods:?}: {answered} of {begun} beside it"
        );
        // Until something has been refused, the kernel has the connections of some milliseconds.
        assert!(
            tracked <= asked + 10_000,
            "{floods:?}: {tracked} entries, {asked} asked"
        );
        assert_eq!(unanswered, 0, "{floods:?}: of what was known before");
    }
}

/// Entries of connection tracking on the node.
fn connections(bed: &Bed) -> u64 {
    let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    bed.gateway.run(read).unwrap().unwrap().trim().parse().unwrap()
}

/// A flow that has been answered.
fn established(from: &Member, to: &Member) -> UdpSocket {
    let socket = from
        .ns
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((to.address(false), 53)).unwrap();
            socket
        })
        .unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    socket.send(b"first").unwrap();
    socket.recv(&mut [0; 512]).unwrap();
    socket
}

/// How many requests of a known flow stay without an answer, one after the other, until told to stop.
fn unanswered(socket: &UdpSocket, stop: &AtomicBool) -> u32 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let is_answered = socket.send(b"more").is_ok() && socket.recv(&mut [0; 512]).is_ok();
        count += u32::from(!is_answered);
        thread::sleep(Duration::from_millis(10));
    }
    count
}

#[test]
fn a_denied_flood_of_one_pod_leaves_others_their_new_flows() {
    let Some(_alone) = runs_here("floods on a node") else {
        return;
    };
    for role in BOTH {
        let scene = Scene::new(role, &["shop/flooder"]);
        for of in [Flood::Datagrams, Flood::Fragments, Flood::Segments, Flood::Echoes] {
            scene.flooded(&[(2, of)]);
        }
    }
}

#[test]
fn floods_of_several_pods_leave_others_their_new_flows() {
    let Some(_alone) = runs_here("floods on a node") else {
        return;
    };
    let scene = Scene::new(Role::Node, &["shop/flooder", "shop/other"]);
    scene.flooded(&[(2, Flood::Datagrams), (3, Flood::Segments)]);
}

#[test]
fn a_dataplane_that_is_killed_in_a_flood_comes_back_beside_it() {
    let Some(_alone) = runs_here("floods on a node") else {
        return;
    };
    let scene = Scene::new(Role::Node, &["shop/flooder"]);
    let [web, client, flooder] = [0, 1, 2].map(|index| &scene.bed.pods[index]);
    let stop = AtomicBool::new(false);
    let [begun, answered] = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(flooder, Flood::Datagrams, &stop));
        thread::sleep(Duration::from_millis(500));
        scene.firewall.signal("dataplane", Signal::SIGKILL).unwrap();
        let back = wait_for_answer(
            &scene.bed,
            "shop/client",
            web.v4.into(),
            Service::Udp(53),
            PATIENCE,
        );
        let counts = back.map(|_| new_flows(client, web));
        stop.store(true, Ordering::Relaxed);
        assert!(flooding.join().unwrap() > 10_000);
        counts.unwrap()
    });
    assert!(answered * 100 >= begun * 99, "{answered} of {begun}");
}
