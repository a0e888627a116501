//! A node whose workers are busy, silent or gone; devices of other kinds; what stays and what goes with a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking
#![allow(unsafe_code)] // the kernel's statistics of programs, a TUN device

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;
mod node_rig;

use std::{
    fs::File,
    io::{Read, Write},
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use libbpf_rs::{libbpf_sys, query::ProgInfoIter};
use net::{Namespace, privileged};
use node_rig::{
    A_MAC, A4, B4, HOST_MAC, LIMIT, OUTSIDE_MAC, OUTSIDE4, Rig, Shape, UPLINK4,
    ask::{Ask, HEADER, NO_LINK, SRC_LOCAL, Verdict},
    attachments, connect, describe, echo, has_received,
    raw::{Packets, ip4, udp4},
    tcp, udp, wait_until,
};
use ringwall_bpf::{
    FailMode,
    node::{self, AskLimit, Hook, Node, Outcome, Program, TcAttachment},
};

fn rig(judge: Verdict) -> Rig {
    rig_by(TcAttachment::of_kernel(), judge)
}

fn rig_by(attachment: TcAttachment, judge: Verdict) -> Rig {
    let rig = Rig::attached_by(attachment, Shape::Routed, move |_: &Ask| judge);
    rig.track();
    rig.hush();
    rig
}

/// Sends until an outcome is counted.
fn send_until(rig: &Rig, socket: &UdpSocket, to: &str, outcome: Outcome) {
    let before = rig.count(outcome);
    wait_until(
        || {
            socket.send_to(b"x", to).unwrap();
            rig.count(outcome) > before
        },
        || format!("{}: {}", outcome.as_str(), describe(&rig.counters())),
    );
}

#[test]
fn a_pod_asks_no_more_than_it_may() {
    if !privileged() {
        return;
    }
    let mut rig = rig(Verdict::DenyOnce);
    // Two connections that are established before, one of them by a Service's address.
    rig.nft(
        "table ip nat { chain in { type nat hook prerouting priority dstnat; \
         ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.3:8080; }; }",
    );
    rig.restart_workers(|ask: &Ask| match ask.original.dst_port() {
        80 => Verdict::Allow,
        _ => Verdict::DenyOnce,
    });
    let mut connections = [
        (format!("{B4}:80"), format!("{B4}:80")),
        ("10.96.0.10:80".to_owned(), format!("{B4}:8080")),
    ]
    .map(|(to, at)| connect(&rig.a, &to, &rig.b, &at).unwrap());
    rig.config.ask_limit = Some(LIMIT);
    rig.node.set_config(&rig.config).unwrap();
    let already = rig.count(Outcome::ExitAsked);
    let (a, b) = (udp(&rig.a, &format!("{A4}:0")), udp(&rig.b, &format!("{B4}:0")));
    for port in 1000..1100 {
        a.send_to(b"x", (B4, port)).unwrap();
    }
    wait_until(
        || {
            let all = [Outcome::ExitAsked, Outcome::ExitAskLimit, Outcome::PodAskLimit];
            all.map(|outcome| rig.count(outcome)).iter().sum::<u64>() == 100 + already
        },
        || describe(&rig.counters()),
    );
    // What is too much ends before conntrack sees it.
    assert!(
        rig.count(Outcome::PodAskLimit) > 60,
        "{}",
        describe(&rig.counters())
    );
    let tracked = rig
        .host
        .within(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap());
    let tracked = tracked
        .lines()
        .filter(|line| line.contains("src=10.244.1.2 "))
        .count();
    assert!((3..40).contains(&tracked), "{tracked}");
    let asked = rig.count(Outcome::ExitAsked) - already;
    assert!(
        (3..20).contains(&asked),
        "3 at once and one more each second: {asked}"
    );
    // What is established goes on, whatever else the pod sends.
    for turn in 0..20 {
        for port in 0..50 {
            a.send_to(b"x", (B4, 2000 + turn * 50 + port)).unwrap();
        }
        for (stream, served, _) in &mut connections {
            echo(stream, served, 10_000);
        }
    }
    let limited = rig.counters();
    let fate = [Outcome::ExitAsked, Outcome::ExitAskLimit, Outcome::PodAskLimit];
    let fate: u64 = fate.iter().map(|&outcome| limited.get(outcome).packets).sum();
    assert_eq!(fate, 1100 + already, "datagrams alone: {}", describe(&limited));
    // Another pod has tokens of its own.
    b.send_to(b"x", (A4, 1000)).unwrap();
    wait_until(
        || rig.asks().iter().any(|ask| ask.subject == rig.index("vb")),
        || format!("{:#?}", rig.asks()),
    );
    // Time brings more.
    send_until(&rig, &a, &format!("{B4}:2000"), Outcome::ExitAsked);
    rig.config.ask_limit = Some(AskLimit {
        per_second: 1000,
        burst: 1,
    });
    rig.node.set_config(&rig.config).unwrap();
    send_until(&rig, &a, &format!("{B4}:2001"), Outcome::ExitAsked);
}

#[test]
fn without_workers_the_fail_mode_holds_and_decisions_stand() {
    if !privileged() {
        return;
    }
    // One flow is remembered, the others are always new.
    let judge = |ask: &Ask| match ask.original.dst_port() {
        6000 => Verdict::Allow,
        _ => Verdict::AllowOnce,
    };
    let mut rig = Rig::new(Shape::Routed, judge);
    rig.track();
    rig.hush();
    let (a, b) = (
        udp(&rig.a, &format!("{A4}:5000")),
        udp(&rig.b, &format!("{B4}:6000")),
    );
    let to_b = format!("{B4}:6000");
    let stands = |rig: &Rig| {
        let (hits, asks) = (rig.count(Outcome::ExitHit), rig.asks().len());
        while has_received(&b) {}
        a.send_to(b"x", &to_b).unwrap();
        b.recv(&mut [0; 9]).unwrap();
        assert_eq!((rig.count(Outcome::ExitHit), rig.asks().len()), (hits + 1, asks));
    };
    a.send_to(b"x", &to_b).unwrap();
    b.recv(&mut [0; 9]).unwrap();
    stands(&rig);
    let (fresh, closed) = (udp(&rig.a, &format!("{A4}:0")), Outcome::ExitFailClosed);
    let other = udp(&rig.b, &format!("{B4}:6001"));
    let to_other = format!("{B4}:6001");

    // Silent, as one that is stopped.
    rig.answerer.as_ref().unwrap().fall_silent();
    let begun = std::time::Instant::now();
    let before = rig.asks().len();
    let mut port = 7000;
    wait_until(
        || {
            port += 1;
            fresh.send_to(b"x", (B4, port)).unwrap();
            rig.count(closed) > 0
        },
        || describe(&rig.counters()),
    );
    assert!(begun.elapsed().as_millis() >= 900 && rig.asks().len() > before);
    assert!(!has_received(&other));
    stands(&rig);
    rig.config.fail_mode = FailMode::Open;
    rig.node.set_config(&rig.config).unwrap();
    fresh.send_to(b"x", &to_other).unwrap();
    other.recv(&mut [0; 9]).unwrap();
    assert_eq!(rig.count(Outcome::ExitFailOpen), 1);

    // Gone: at once.
    rig.config.fail_mode = FailMode::Closed;
    rig.node.set_config(&rig.config).unwrap();
    rig.restart_workers(judge);
    fresh.send_to(b"x", &to_other).unwrap();
    other.recv(&mut [0; 9]).unwrap();
    drop(rig.answerer.take());
    let again = udp(&rig.a, &format!("{A4}:0"));
    send_until(&rig, &again, &to_other, closed);
    assert!(!has_received(&other));
    stands(&rig);

    // Not judging yet.
    rig.restart_workers(judge);
    rig.config.enforcing = false;
    rig.node.set_config(&rig.config).unwrap();
    let before = rig.count(closed);
    again.send_to(b"x", &to_other).unwrap();
    rig.wait_for(closed, before);
    rig.config.enforcing = true;
    rig.node.set_config(&rig.config).unwrap();
    again.send_to(b"x", &to_other).unwrap();
    other.recv(&mut [0; 9]).unwrap();
    assert_eq!(rig.count(Outcome::JudgeNoSocket), 0);
}

#[test]
fn a_denial_is_remembered_where_it_left_and_where_it_came_in() {
    if !privileged() {
        return;
    }
    let mut rig = rig(Verdict::Deny);
    rig.nft(
        "table ip nat { chain in { type nat hook prerouting priority dstnat; \
         ip daddr 10.96.0.10 udp dport 80 dnat to 10.244.1.3:6000; }; }",
    );
    let (a, b) = (
        udp(&rig.a, &format!("{A4}:5000")),
        udp(&rig.b, &format!("{B4}:6000")),
    );
    let to = format!("{B4}:6000");
    let once = |to: &str, outcome: Outcome| {
        let before = rig.count(outcome);
        a.send_to(b"x", to).unwrap();
        rig.wait_for(outcome, before);
    };
    once(&to, Outcome::JudgeAsked);
    wait_until(|| rig.asks().len() == 1, || "asked".to_owned());
    once(&to, Outcome::ExitDenied);
    once(&to, Outcome::PodDenied);
    assert_eq!(rig.asks().len(), 1);
    // Another port is another flow, and by a Service's address what comes of the translation is not known before.
    once(&format!("{B4}:6001"), Outcome::JudgeAsked);
    once("10.96.0.10:80", Outcome::JudgeAsked);
    wait_until(|| rig.asks().len() == 3, || "asked".to_owned());
    for _ in 0..3 {
        once("10.96.0.10:80", Outcome::ExitDenied);
    }
    // A bump ends a denial as well.
    let memory = rig.node.memory();
    memory.bump_all();
    once(&to, Outcome::JudgeAsked);
    assert!(!has_received(&b));

    // In audit it passes, counted all the same.
    wait_until(|| rig.asks().len() == 4, || "asked".to_owned());
    rig.config.audit = true;
    rig.node.set_config(&rig.config).unwrap();
    let before = rig.counters().get(Outcome::ExitDenied).audited;
    a.send_to(b"x", "10.244.1.3:6000").unwrap();
    b.recv(&mut [0; 9]).unwrap();
    assert_eq!(rig.counters().get(Outcome::ExitDenied).audited, before + 1);
}

#[test]
fn what_does_not_fit_the_way_to_the_workers_is_not_sent_there() {
    if !privileged() {
        return;
    }
    let mut rig = rig(Verdict::AllowOnce);
    rig.config.ask_mtu = 14 + 28 + 500;
    rig.node.set_config(&rig.config).unwrap();
    let (a, b) = (
        udp(&rig.a, &format!("{A4}:5000")),
        udp(&rig.b, &format!("{B4}:6000")),
    );
    let mut buffer = [0; 2000];
    a.send_to(&[1; 500], (B4, 6000)).unwrap();
    assert_eq!(b.recv(&mut buffer).unwrap(), 500);
    a.send_to(&[1; 501], (B4, 6000)).unwrap();
    rig.wait_for(Outcome::ExitAskFailed, 0);
    assert!(!has_received(&b));
    // In audit it goes on as it is.
    rig.config.audit = true;
    rig.node.set_config(&rig.config).unwrap();
    a.send_to(&[1; 501], (B4, 6000)).unwrap();
    assert_eq!(b.recv(&mut buffer).unwrap(), 501);
    assert_eq!(rig.counters().get(Outcome::ExitAskFailed).audited, 1);
    assert_eq!(rig.count(Outcome::JudgeAsked), 1);
}

#[test]
fn an_overlay_is_judged_inside() {
    if privileged() {
        attachments().into_iter().for_each(judge_inside_an_overlay);
    }
}

fn judge_inside_an_overlay(attachment: TcAttachment) {
    let rig = rig_by(attachment, Verdict::Allow);
    // The outside is the second node, with a pod that is one of its own addresses.
    let overlay = |namespace: &Namespace,
                   (own, peer): (&str, &str),
                   (mac, far_mac): (&str, &str),
                   (address, gateway, network): (&str, &str, &str)| {
        namespace.ip(&format!(
            "link add flannel.1 address {mac} type vxlan id 1 local {own} dstport 8472 nolearning"
        ));
        namespace.ip(&format!("addr add {address}/32 dev flannel.1"));
        namespace.ip("link set flannel.1 up");
        namespace.exec(&format!("bridge fdb append {far_mac} dev flannel.1 dst {peer}"));
        namespace.ip(&format!(
            "neigh replace {gateway} lladdr {far_mac} dev flannel.1 nud permanent"
        ));
        namespace.ip(&format!(
            "route replace {network} via {gateway} dev flannel.1 onlink"
        ));
    };
    let macs = ("02:00:00:00:0f:01", "02:00:00:00:0f:02");
    overlay(
        &rig.host,
        (UPLINK4, OUTSIDE4),
        macs,
        ("10.244.1.0", "10.244.2.0", "10.244.2.0/24"),
    );
    let (nets, macs) = (("10.244.2.0", "10.244.1.0", "10.244.1.0/24"), (macs.1, macs.0));
    overlay(&rig.outside, (OUTSIDE4, UPLINK4), macs, nets);
    rig.outside.ip("addr add 10.244.2.2/32 dev lo");
    rig.outside.ip("route del 10.244.0.0/16");
    rig.guard("flannel.1");

    let passed = rig.count(Outcome::ExitNoPod);
    tcp(&rig.a, "10.244.2.2:80", &rig.outside, "10.244.2.2:80")
        .unwrap_or_else(|error| panic!("{error}: {}", describe(&rig.counters())));
    let asks = rig.asks();
    assert_eq!(asks.iter().filter(|ask| !ask.is_syn()).count(), 0, "{asks:#?}");
    assert_eq!(
        asks[0].true_pair(),
        (A4.parse().unwrap(), "10.244.2.2".parse().unwrap())
    );
    assert_eq!(
        (asks[0].out_ifindex, asks[0].flags & 3),
        (rig.index("flannel.1"), SRC_LOCAL)
    );
    assert!(
        rig.count(Outcome::ExitNoPod) > passed + 3,
        "the outer packets are this host's"
    );
    // Inside the overlay nobody speaks for a pod of this node either.
    let before = rig.count(Outcome::NetSpoofedSource);
    rig.outside.ip("addr add 10.244.1.3/32 dev lo");
    udp(&rig.outside, &format!("{B4}:9"))
        .send_to(b"x", format!("{A4}:9"))
        .unwrap();
    rig.wait_for(Outcome::NetSpoofedSource, before);
}

/// The user's side of a TUN device.
fn tun(namespace: &Namespace, name: &str) -> File {
    namespace.within(|| {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: zeroes are valid for plain data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
        assert_eq!(answer, 0);
        file
    })
}

#[test]
fn a_device_without_link_header_is_asked_and_answered() {
    if privileged() {
        attachments()
            .into_iter()
            .for_each(ask_of_a_device_without_link_header);
    }
}

fn ask_of_a_device_without_link_header(attachment: TcAttachment) {
    let rig = rig_by(attachment, Verdict::Allow);
    let mut tun = tun(&rig.host, "tun0");
    rig.host.exec("sysctl -qw net.ipv6.conf.tun0.disable_ipv6=1");
    rig.host.ip("link set tun0 up");
    rig.host.ip("route add 10.244.3.0/24 dev tun0");
    rig.guard("tun0");
    let a = udp(&rig.a, &format!("{A4}:5000"));
    let mut packet = [0; 2000];
    for turn in 0..2 {
        a.send_to(b"payload", "10.244.3.9:6000").unwrap();
        let length = tun.read(&mut packet).unwrap();
        assert_eq!(
            (length, packet[0], &packet[28..length]),
            (35, 0x45, b"payload".as_slice()),
            "{turn}"
        );
    }
    let asks = rig.asks();
    assert_eq!(asks.len(), 1);
    assert_eq!((asks[0].ethertype, asks[0].flags & NO_LINK), (0x0800, NO_LINK));
    assert_eq!(
        (&asks[0].frame[..14], asks[0].frame[14]),
        (
            [0; 12]
                .iter()
                .chain(&[8, 0])
                .copied()
                .collect::<Vec<u8>>()
                .as_slice(),
            0x45
        )
    );
    assert_eq!(asks[0].frame.len(), 14 + 35);
    assert_eq!(
        (rig.count(Outcome::ExitHit), rig.count(Outcome::ExitReturned)),
        (1, 1)
    );
    let index = asks[0].buckets[0] * 8;
    let (packets, bytes, _) = node_rig::ask::usage(&rig.node.memory(), index);
    assert_eq!((packets[0], bytes[0]), (1, 35));
    // The other way: an answer, and a pod's address that does not belong there.
    tun.write_all(&ip4("10.244.3.9", A4, 17, &[], &udp4(6000, 5000, b"back")))
        .unwrap();
    assert_eq!(a.recv(&mut packet).unwrap(), 4);
    let before = rig.count(Outcome::NetSpoofedSource);
    tun.write_all(&ip4(B4, A4, 17, &[], &udp4(6000, 5000, b"back")))
        .unwrap();
    rig.wait_for(Outcome::NetSpoofedSource, before);
}

/// How often a program has run while the kernel counted that.
fn runs(id: u32) -> u64 {
    ProgInfoIter::default()
        .find(|program| program.id == id)
        .unwrap()
        .run_cnt
}

#[test]
fn every_packet_that_a_program_sees_moves_one_counter() {
    if !privileged() {
        return;
    }
    // SAFETY: no pointers; the answer is a new descriptor.
    let _stats =
        unsafe { OwnedFd::from_raw_fd(libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME)) };
    let mut occurred = Vec::new();
    for shape in [Shape::Bridge, Shape::Routed, Shape::BridgeUntracked] {
        let mut number = 0;
        let mut rig = Rig::new(shape, move |_: &Ask| {
            number += 1;
            match number % 4 {
                0 => Verdict::Allow,
                1 => Verdict::AllowOnce,
                2 => Verdict::Deny,
                _ => Verdict::DenyOnce,
            }
        });
        if shape != Shape::BridgeUntracked {
            rig.track();
        }
        rig.config.ask_limit = Some(AskLimit {
            per_second: 100,
            burst: 20,
        });
        rig.node.set_config(&rig.config).unwrap();
        let (a, b) = (
            udp(&rig.a, &format!("{A4}:5000")),
            udp(&rig.outside, &format!("{OUTSIDE4}:6000")),
        );
        let host = udp(&rig.host, "0.0.0.0:0");
        for port in 6000..6040 {
            for to in [B4, UPLINK4, OUTSIDE4, "10.96.0.99", "10.244.1.77"] {
                for size in [1, 1, 3000, 1] {
                    a.send_to(&vec![1; size], (to, port)).unwrap();
                }
            }
            b.send_to(b"x", (A4, port)).unwrap();
            host.send_to(b"x", (OUTSIDE4, port)).unwrap();
            // Let the workers answer now and then.
            let asked = rig.count(Outcome::JudgeAsked) as usize;
            wait_until(|| rig.asks().len() >= asked, || describe(&rig.counters()));
        }
        // A denial is remembered where the flow left, once the answer has come.
        wait_until(
            || {
                for port in 6000..6040 {
                    a.send_to(b"x", (OUTSIDE4, port)).unwrap();
                }
                rig.count(Outcome::PodDenied) > 0
            },
            || describe(&rig.counters()),
        );
        for hook in [Hook::FromPod, Hook::Exit, Hook::FromNet, Hook::Back, Hook::Judge] {
            let program = match hook {
                Hook::FromPod => Program::FromPod,
                Hook::Exit => Program::Exit,
                Hook::FromNet => Program::FromNet,
                Hook::Back => Program::Back,
                Hook::Judge => Program::Judge,
            };
            let id = rig.node.program_id(hook);
            // Packets are still on their way while the two are read one after the other.
            wait_until(
                || {
                    let seen = rig.counters().seen_by(program);
                    seen > 0 && seen == runs(id)
                },
                || {
                    format!(
                        "{shape:?} {hook:?}: {} runs, {}",
                        runs(id),
                        describe(&rig.counters())
                    )
                },
            );
        }
        let counters = rig.counters();
        occurred.extend(
            counters
                .iter()
                .filter(|(_, count)| count.packets > 0)
                .map(|(outcome, _)| outcome),
        );
    }
    for outcome in [
        Outcome::PodPassed,
        Outcome::PodLink,
        Outcome::PodDenied,
        Outcome::ExitHit,
        Outcome::ExitReturned,
        Outcome::ExitNoPod,
        Outcome::ExitOwnStack,
        Outcome::ExitLink,
        Outcome::ExitAsked,
        Outcome::ExitServiceUnresolved,
        Outcome::ExitDenied,
        Outcome::ExitAskLimit,
        Outcome::NetPassed,
        Outcome::BackReturned,
        Outcome::JudgeAsked,
    ] {
        assert!(occurred.contains(&outcome), "{} did not occur", outcome.as_str());
    }
}

#[test]
fn established_flows_outlive_the_process_and_a_successor_goes_on() {
    if privileged() {
        attachments().into_iter().for_each(succeed);
    }
}

fn succeed(attachment: TcAttachment) {
    let mut rig = rig_by(attachment, Verdict::Allow);
    let (mut stream, mut served, _) =
        connect(&rig.a, &format!("{B4}:80"), &rig.b, &format!("{B4}:80")).unwrap();
    echo(&mut stream, &mut served, 1000);
    let ids = Hook::ALL.map(|hook| rig.node.program_id(hook));

    // Everything that a process holds is closed: another takes its place later.
    drop(rig.answerer.take());
    let pins = rig.bpffs.pins();
    let other = net::Bpffs::new();
    let stand_in = Node::load(&other.pins(), 1, attachment).unwrap();
    drop(std::mem::replace(&mut rig.node, stand_in));
    echo(&mut stream, &mut served, 1 << 20);
    let fresh = udp(&rig.a, &format!("{A4}:0"));
    let b = udp(&rig.b, &format!("{B4}:6000"));

    rig.node = Node::load(&pins, node_rig::BUCKETS, attachment).unwrap();
    assert!(rig.node.reused());
    send_until(&rig, &fresh, &format!("{B4}:6000"), Outcome::ExitFailClosed);
    let asked = rig.count(Outcome::ExitAsked);
    assert!(!has_received(&b), "nobody judges");
    rig.fill();
    rig.attach();
    assert_eq!(Hook::ALL.map(|hook| rig.node.program_id(hook)), ids);
    rig.restart_workers(|_: &Ask| Verdict::Allow);
    echo(&mut stream, &mut served, 1 << 20);
    assert_eq!(rig.count(Outcome::ExitAsked), asked, "the cache went on");
    fresh.send_to(b"x", b.local_addr().unwrap()).unwrap();
    b.recv(&mut [0; 9]).unwrap();

    // Another build, as far as the pins tell: its programs take the places of the others one by one, and ask again.
    drop(rig.answerer.take());
    std::fs::remove_file(pins.join("node-programs-and-maps/node_config")).unwrap();
    rig.node = Node::load(&pins, node_rig::BUCKETS, attachment).unwrap();
    assert!(!rig.node.reused());
    assert!(rig.is_attached(rig.index("va"), Hook::Exit), "the predecessor's");
    rig.fill();
    rig.restart_workers(|_: &Ask| Verdict::Allow);
    rig.attach();
    let now = Hook::ALL.map(|hook| rig.node.program_id(hook));
    assert!(now.iter().zip(ids).all(|(now, before)| *now != before));
    wait_until(
        || !ProgInfoIter::default().any(|program| ids.contains(&program.id)),
        || "the predecessor's programs are still somewhere".to_owned(),
    );
    echo(&mut stream, &mut served, 1 << 20);
    assert!(!rig.asks().is_empty());

    // Nothing stays.
    let indices: Vec<u32> = ["va", "vb", "eth0", "ask0"].map(|name| rig.index(name)).to_vec();
    assert_eq!(rig.node.pinned_devices().into_iter().collect::<Vec<_>>(), {
        let mut indices = indices.clone();
        indices.sort_unstable();
        indices
    });
    rig.host.within(|| node::detach(&pins)).unwrap();
    assert!(!node::is_installed(&pins));
    assert_eq!(std::fs::read_dir(&pins).unwrap().count(), 0);
    for index in indices {
        assert!(Hook::ALL.iter().all(|&hook| !rig.is_attached(index, hook)));
    }
    assert!(!rig.worker.ip("link show ask1").contains("prog/xdp"));
    for device in ["va", "vb", "eth0", "ask0"] {
        assert!(
            !rig.host
                .exec(&format!("tc qdisc show dev {device}"))
                .contains("clsact")
        );
    }
    drop(rig.answerer.take());
    drop(std::mem::replace(
        &mut rig.node,
        Node::load(&other.pins(), 1, attachment).unwrap(),
    ));
    wait_until(
        || !ProgInfoIter::default().any(|program| now.contains(&program.id)),
        || "a program is still somewhere".to_owned(),
    );
    echo(&mut stream, &mut served, 1 << 20);
}

#[test]
fn a_device_that_comes_again_is_guarded_again() {
    if privileged() {
        attachments().into_iter().for_each(guard_again);
    }
}

fn guard_again(attachment: TcAttachment) {
    let rig = rig_by(attachment, Verdict::Allow);
    let index = rig.index("vb");
    rig.host.ip("link del vb");
    assert!(!rig.is_attached(index, Hook::Exit), "it went with the device");
    assert!(rig.node.pinned_devices().contains(&index));
    rig.release(index);
    assert!(!rig.node.pinned_devices().contains(&index) && !rig.node.devices().unwrap().contains(&index));
    net::run(&format!(
        "ip -n {} link add vb index {index} type veth peer name e0 netns {}",
        rig.host.name, rig.b.name
    ));
    rig.guard("vb");
    assert!(rig.is_attached(index, Hook::Exit) && rig.is_attached(index, Hook::FromPod));
    // Not guarded again, but with the pin of the one before: its index is the same, and it is none of ours.
    rig.host.ip("link del vb");
    net::run(&format!(
        "ip -n {} link add vb index {index} type veth peer name e0 netns {}",
        rig.host.name, rig.b.name
    ));
    assert!(!rig.is_attached(index, Hook::Exit));
    rig.guard("vb");
    assert!(rig.is_attached(index, Hook::Exit));
}

#[test]
fn frames_that_are_not_of_the_workers_or_for_them_end_at_the_ask_pair() {
    if !privileged() {
        return;
    }
    let rig = rig(Verdict::Allow);
    let nonce = rig.node.nonce();
    // Into `back`, as somebody in the workers' namespace would.
    let far = Packets::open(&rig.worker, "ask1");
    let outside = Packets::open(&rig.outside, "e0");
    let packet = ip4(A4, OUTSIDE4, 17, &[], &udp4(5000, 6000, b"forged"));
    let answer = |ifindex: u32, nonce: [u32; 2]| {
        let mut frame = [OUTSIDE_MAC, HOST_MAC].concat();
        frame.extend([8, 0]);
        for word in [ifindex, nonce[0], nonce[1], 0] {
            frame.extend(word.to_ne_bytes());
        }
        frame.extend(&packet);
        frame
    };
    let expect = |socket: &Packets, frame: &[u8], outcome: Outcome| {
        let before = rig.count(outcome);
        socket.send(frame);
        rig.wait_for(outcome, before);
    };
    let uplink = rig.index("eth0");
    for flipped in [
        [nonce[0] ^ 1, nonce[1]],
        [nonce[0], nonce[1] ^ 0x8000_0000],
        [0, 0],
    ] {
        expect(&far, &answer(uplink, flipped), Outcome::BackForged);
    }
    expect(&far, &answer(uplink, nonce)[..20], Outcome::BackMalformed);
    for ifindex in [0, 9999, rig.index("ask0")] {
        expect(&far, &answer(ifindex, nonce), Outcome::BackUnknownDevice);
    }
    outside.received();
    expect(&far, &answer(uplink, nonce), Outcome::BackReturned);
    wait_until(
        || outside.received().iter().any(|frame| frame[14..] == packet[..]),
        || describe(&rig.counters()),
    );

    // For the pod behind a port: by its own Ethernet address, whatever the frame says. Elsewhere nobody is meant by that.
    let mut for_pod = answer(rig.index("va"), nonce);
    for_pod[26..30].copy_from_slice(&32_u32.to_ne_bytes());
    for_pod[30..].copy_from_slice(&ip4(OUTSIDE4, A4, 17, &[], &udp4(6000, 5000, b"forged")));
    let pod = Packets::open(&rig.a, "e0");
    let _open = udp(&rig.a, &format!("{A4}:5000"));
    expect(&far, &for_pod, Outcome::BackReturned);
    wait_until(
        || {
            let received = pod.received();
            let to_pod = |frame: &&Vec<u8>| frame[..6] == A_MAC && frame[14..] == for_pod[30..];
            received.iter().any(|frame| to_pod(&frame))
        },
        || describe(&rig.counters()),
    );
    for_pod[14..18].copy_from_slice(&uplink.to_ne_bytes());
    expect(&far, &for_pod, Outcome::BackUnknownDevice);

    // Into `judge`, as somebody on the host would.
    let near = Packets::open(&rig.host, "ask0");
    let ask = |nonce: [u32; 2], version: u8| {
        let mut frame = vec![0; HEADER];
        frame[0..4].copy_from_slice(&uplink.to_ne_bytes());
        frame[4..8].copy_from_slice(&nonce[0].to_ne_bytes());
        frame[8..12].copy_from_slice(&nonce[1].to_ne_bytes());
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[35] = version;
        frame.extend(answer(0, nonce));
        frame
    };
    for flipped in [
        [nonce[0] ^ 1, nonce[1]],
        [nonce[0], nonce[1] ^ 0x8000_0000],
        [0, 0],
    ] {
        expect(&near, &ask(flipped, 2), Outcome::JudgeForged);
    }
    expect(&near, &ask(nonce, 1), Outcome::JudgeForged);
    expect(&near, &ask(nonce, 2)[..HEADER + 8], Outcome::JudgeForged);
    assert!(!rig.asks().iter().any(|ask| ask.out_ifindex == uplink));
}
