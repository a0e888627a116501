//! A node's programs in network namespaces, with real packets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;
mod node_rig;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use net::{Bpffs, privileged};
use node_rig::{
    A4, A6, B4, B6, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Rig, Shape, UPLINK4, UPLINK6,
    ask::{self, Ask, CACHEABLE, DST_LOCAL, Entry, MIDSTREAM, SRC_LOCAL, Verdict},
    attachments, connect, describe, echo, has_received,
    raw::echo_socket,
    tcp, udp,
};
use ringwall_bpf::node::{self, Node, NodeConfig, Note, Outcome, Program, TcAttachment};

const VIP4: &str = "10.96.0.10";
const VIP6: &str = "fd00:96::10";

/// What kube-proxy does: Services to backend B, masquerade of hairpins, of node ports and of what leaves the cluster.
const PROXY: &str = "
table ip nat {
    chain services {
        ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 80 dnat to 10.244.1.3:8080
        ip daddr 198.51.100.1 tcp dport 30080 dnat to 10.244.1.3:8080
    }
    chain in { type nat hook prerouting priority dstnat; jump services; }
    chain out { type nat hook output priority -100; jump services; }
    chain post {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.1.3 ip daddr 10.244.1.3 masquerade
        ip saddr 198.51.100.7 ip daddr 10.244.1.3 tcp dport 8080 masquerade
        ip saddr 10.244.0.0/16 oifname eth0 masquerade
    }
}
table ip6 nat {
    chain services {
        ip6 daddr fd00:96::10 meta l4proto { tcp, udp } th dport 80 dnat to [fd00:244:1::3]:8080
        ip6 daddr 2001:db8:1::1 tcp dport 30080 dnat to [fd00:244:1::3]:8080
    }
    chain in { type nat hook prerouting priority dstnat; jump services; }
    chain out { type nat hook output priority -100; jump services; }
    chain post {
        type nat hook postrouting priority srcnat;
        ip6 saddr fd00:244:1::3 ip6 daddr fd00:244:1::3 masquerade
        ip6 saddr 2001:db8:1::7 ip6 daddr fd00:244:1::3 tcp dport 8080 masquerade
        ip6 saddr fd00:244::/32 oifname eth0 masquerade
    }
}";

/// An address with a port.
fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}

fn pair(from: &str, to: &str) -> (IpAddr, IpAddr) {
    (from.parse().unwrap(), to.parse().unwrap())
}

#[test]
fn programs_load_and_a_successor_takes_them_over() {
    if !privileged() {
        return;
    }
    let bpffs = Bpffs::new();
    let first = Node::load(&bpffs.pins(), 1024, TcAttachment::of_kernel()).unwrap();
    assert!(!first.reused());
    first.set_config(&NodeConfig::default()).unwrap();
    let nonce = first.nonce();
    first.memory().bump(7);
    drop(first);
    let second = Node::load(&bpffs.pins(), 1024, TcAttachment::of_kernel()).unwrap();
    assert!(second.reused());
    assert_eq!((second.nonce(), second.memory().epoch(7)), (nonce, 1));
    drop(second);
    let larger = Node::load(&bpffs.pins(), 2048, TcAttachment::of_kernel()).unwrap();
    assert!(!larger.reused());
    assert_ne!(larger.nonce(), nonce);
    assert!(node::is_installed(&bpffs.pins()));
    node::detach(&bpffs.pins()).unwrap();
    assert!(!node::is_installed(&bpffs.pins()));
    assert_eq!(std::fs::read_dir(bpffs.pins()).unwrap().count(), 0);
}

#[test]
fn the_first_packet_is_asked_and_the_rest_hit() {
    if !privileged() {
        return;
    }
    let shapes = [Shape::Bridge, Shape::Routed, Shape::BridgeUntracked];
    let all = attachments()
        .into_iter()
        .flat_map(|attachment| shapes.map(|shape| (shape, attachment)));
    for (shape, attachment) in all {
        let rig = Rig::attached_by(attachment, shape, |_: &ask::Ask| Verdict::Allow);
        if shape != Shape::BridgeUntracked {
            rig.track();
        }
        for (from, to) in [(A4, format!("{B4}:80")), (A6, format!("[{B6}]:80"))] {
            let hits = rig.count(Outcome::ExitHit);
            let asks = asks_of(&rig, || {
                let peer = tcp(&rig.a, &to, &rig.b, &to)
                    .unwrap_or_else(|error| panic!("{shape:?} {to}: {error}: {}", describe(&rig.counters())));
                assert_eq!(peer.ip().to_string(), from);
            });
            // Without conntrack each direction is a flow of its own.
            let expected = if shape == Shape::BridgeUntracked { 2 } else { 1 };
            assert_eq!(asks.len(), expected, "{shape:?} {asks:#?}");
            let ask = &asks[0];
            assert_eq!(
                ask.true_pair(),
                (
                    from.parse().unwrap(),
                    to.parse::<std::net::SocketAddr>().unwrap().ip()
                )
            );
            assert_eq!((ask.original.dst_port(), ask.reply.src_port()), (80, 80));
            assert_eq!(ask.flags, ask::SRC_LOCAL | ask::DST_LOCAL | ask::CACHEABLE);
            assert_eq!(ask.conntrack, u8::from(shape != Shape::BridgeUntracked));
            assert_eq!(ask.out_ifindex, rig.index("vb"));
            assert_eq!(ask.subject, rig.index("va"));
            assert!(
                rig.count(Outcome::ExitHit) > hits + 4,
                "{}",
                describe(&rig.counters())
            );
        }
        let counters = rig.counters();
        assert_eq!(
            counters.seen_by(Program::Judge),
            counters.get(Outcome::ExitAsked).packets
        );
        assert_eq!(
            counters.get(Outcome::BackReturned),
            counters.get(Outcome::ExitReturned),
            "{}",
            describe(&counters)
        );
    }
}

/// The asks that something makes; a SYN that was sent again, because the machine is busy, counts once.
fn asks_of(rig: &Rig, work: impl FnOnce()) -> Vec<Ask> {
    let before = rig.asks().len();
    work();
    let mut asks: Vec<Ask> = Vec::new();
    for ask in rig.asks().split_off(before) {
        let again = |other: &Ask| other.is_syn() && other.original == ask.original;
        if !(ask.is_syn() && asks.iter().any(again)) {
            asks.push(ask);
        }
    }
    asks
}

#[test]
fn translated_connections_are_judged_by_their_true_pair() {
    if !privileged() {
        return;
    }
    let shapes = [Shape::Bridge, Shape::Routed];
    let all = attachments()
        .into_iter()
        .flat_map(|attachment| shapes.map(|shape| (shape, attachment)));
    for (shape, attachment) in all {
        let rig = Rig::attached_by(attachment, shape, |_: &Ask| Verdict::Allow);
        rig.nft(PROXY);
        let both = SRC_LOCAL | DST_LOCAL | CACHEABLE;
        for (vip, a, b, outside, uplink, host) in [
            (VIP4, A4, B4, OUTSIDE4, UPLINK4, HOST4),
            (VIP6, A6, B6, OUTSIDE6, UPLINK6, HOST6),
        ] {
            // A Service's address, from another pod and from the backend itself.
            let asks = asks_of(&rig, || {
                assert_eq!(
                    tcp(&rig.a, &at(vip, 80), &rig.b, &at(b, 8080)).unwrap().ip(),
                    pair(a, b).0
                );
            });
            assert_eq!(asks.len(), 1, "{asks:#?}");
            assert_eq!((asks[0].true_pair(), asks[0].flags), (pair(a, b), both));
            assert_eq!(
                (asks[0].original.dst(), asks[0].original.dst_port()),
                (pair(vip, vip).0, 80)
            );
            assert_eq!(
                (asks[0].reply.src_port(), asks[0].out_ifindex),
                (8080, rig.index("vb"))
            );
            let asks = asks_of(&rig, || {
                let seen = tcp(&rig.b, &at(vip, 80), &rig.b, &at(b, 8080)).unwrap().ip();
                assert_ne!(seen, pair(b, b).0, "masqueraded");
            });
            assert_eq!(asks.len(), 1, "{asks:#?}");
            assert_eq!((asks[0].true_pair(), asks[0].flags), (pair(b, b), both));

            // Out of the cluster, masqueraded.
            let asks = asks_of(&rig, || {
                assert_eq!(
                    tcp(&rig.a, &at(outside, 81), &rig.outside, &at(outside, 81))
                        .unwrap()
                        .ip(),
                    pair(uplink, b).0
                );
            });
            assert_eq!(asks.len(), 1, "{asks:#?}");
            assert_eq!(
                (asks[0].true_pair(), asks[0].flags),
                (pair(a, outside), SRC_LOCAL | CACHEABLE)
            );
            assert_eq!(
                (asks[0].reply.dst(), asks[0].out_ifindex),
                (pair(uplink, b).0, rig.index("eth0"))
            );

            // A node port: the client is another than the backend sees.
            let asks = asks_of(&rig, || {
                let seen = tcp(&rig.outside, &at(uplink, 30080), &rig.b, &at(b, 8080))
                    .unwrap()
                    .ip();
                assert_ne!(seen, pair(outside, b).0, "masqueraded");
            });
            assert_eq!(asks.len(), 1, "{asks:#?}");
            assert_eq!(
                (asks[0].true_pair(), asks[0].flags),
                (pair(outside, b), DST_LOCAL | CACHEABLE)
            );

            // This host's own, direct and by Service, and what a pod asks of it: nobody is asked.
            let own = rig.count(Outcome::ExitOwnStack);
            let asks = asks_of(&rig, || {
                tcp(&rig.host, &at(b, 8080), &rig.b, &at(b, 8080)).unwrap();
                tcp(&rig.host, &at(vip, 80), &rig.b, &at(b, 8080)).unwrap();
                tcp(&rig.b, &at(uplink, 82), &rig.host, &at(uplink, 82)).unwrap();
                if shape == Shape::Bridge {
                    tcp(&rig.b, &at(host, 82), &rig.host, &at(host, 82)).unwrap();
                }
            });
            assert_eq!(asks.len(), 0, "{asks:#?}");
            assert!(rig.count(Outcome::ExitOwnStack) > own + 6);
        }
        assert_eq!(rig.counters().note(Note::CtMismatch).packets, 0);

        // A Service address that nobody translates does not leave.
        for address in ["10.96.0.99", "fd00:96::99"] {
            let before = rig.count(Outcome::ExitServiceUnresolved);
            let any = if address.contains(':') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            rig.a.udp(any).send_to(&[1], at(address, 80)).unwrap();
            rig.wait_for(Outcome::ExitServiceUnresolved, before);
        }
    }
}

/// NAT that conntrack does not know: what is left of a pod's packet is judged by its own addresses, and without any of a pod's it
/// leaves for nowhere.
#[test]
fn translation_without_conntrack_hides_no_sender() {
    if !privileged() {
        return;
    }
    for shape in [Shape::Bridge, Shape::Routed] {
        let rig = Rig::new(shape, |_: &Ask| Verdict::Allow);
        rig.nft(&format!(
            "table ip stateless {{
                chain in {{
                    type filter hook prerouting priority -350;
                    ip daddr 203.0.113.9 ip daddr set {B4}
                }}
                chain out {{
                    type filter hook postrouting priority 350;
                    udp dport 6001 ip saddr {A4} ip saddr set {UPLINK4}
                }}
            }}
            table ip6 stateless {{
                chain in {{
                    type filter hook prerouting priority -350;
                    ip6 daddr 2001:db8:9::9 ip6 daddr set {B6}
                }}
                chain out {{
                    type filter hook postrouting priority 350;
                    udp dport 6001 ip6 saddr {A6} ip6 saddr set {UPLINK6}
                }}
            }}"
        ));
        rig.track();
        for (a, b, from, to, frontend) in [
            (A4, B4, "0.0.0.0:5000", OUTSIDE4, "203.0.113.9"),
            (A6, B6, "[::]:5000", OUTSIDE6, "2001:db8:9::9"),
        ] {
            let socket = udp(&rig.a, from);
            // The source is another one where the packet leaves.
            let sink = udp(&rig.outside, &at(to, 6001));
            let (mismatch, spoofed) = (
                rig.counters().note(Note::CtMismatch).packets,
                rig.count(Outcome::ExitSpoofedSource),
            );
            socket.send_to(b"hidden", at(to, 6001)).unwrap();
            rig.wait_for(Outcome::ExitSpoofedSource, spoofed);
            assert_eq!(rig.counters().note(Note::CtMismatch).packets, mismatch + 1);
            assert!(rig.asks().iter().all(|ask| ask.true_pair() != pair(a, to)));
            assert!(!has_received(&sink));

            // The destination is another one than the pod's own, and conntrack has seen neither.
            let backend = udp(&rig.b, &at(b, 6002));
            let asks = asks_of(&rig, || {
                socket.send_to(b"in front", at(frontend, 6002)).unwrap();
                backend.recv(&mut [0; 20]).unwrap();
            });
            assert_eq!(asks[0].true_pair(), pair(a, b), "{shape:?}");
        }
    }
}

/// The first packet waits in the bridge for the neighbour, with its translation half done.
#[test]
fn bridged_dnat_with_a_neighbour_that_is_not_known_yet() {
    if !privileged() {
        return;
    }
    let rig = Rig::new(Shape::Bridge, |_: &Ask| Verdict::Allow);
    rig.nft(PROXY);
    for (vip, a, b) in [(VIP4, A4, B4), (VIP6, A6, B6)] {
        for namespace in [&rig.a, &rig.b, &rig.host] {
            namespace.ip("neigh flush all");
        }
        let asks = asks_of(&rig, || {
            let seen = tcp(&rig.a, &at(vip, 80), &rig.b, &at(b, 8080)).unwrap();
            assert_eq!(seen.ip(), pair(a, b).0);
        });
        assert_eq!(asks.len(), 1, "{asks:#?}");
        assert_eq!(
            (asks[0].true_pair(), asks[0].out_ifindex),
            (pair(a, b), rig.index("vb"))
        );
        assert!(!rig.node.is_attached(rig.index("cni0"), node::Hook::Exit));
    }
}

/// A flow of datagrams from A to B, at which a cached decision can be tried.
struct Datagrams {
    rig: Rig,
    a: UdpSocket,
    b: UdpSocket,
    ask: Ask,
}

impl Datagrams {
    fn new(family: (&str, &str)) -> Self {
        let rig = Rig::new(Shape::Routed, |_: &Ask| Verdict::Allow);
        rig.track();
        let (a, b) = (udp(&rig.a, &at(family.0, 5000)), udp(&rig.b, &at(family.1, 6000)));
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        a.send(&[1; 10]).unwrap();
        b.recv(&mut [0; 100]).unwrap();
        let ask = rig.asks()[0].clone();
        Self { rig, a, b, ask }
    }

    /// Whether a datagram is asked.
    fn is_asked(&self) -> bool {
        let asks = asks_of(&self.rig, || {
            self.a.send(&[1; 10]).unwrap();
            self.b.recv(&mut [0; 100]).unwrap();
        });
        assert!(asks.len() <= 1);
        assert_eq!(
            asks.iter()
                .map(|ask| &ask.original)
                .find(|tuple| **tuple != self.ask.original),
            None
        );
        asks.len() == 1
    }

    /// The entry that the stand-in writes.
    fn entry(&self) -> Entry {
        Entry::new(&self.ask, 1, &self.rig.node.memory())
    }

    fn clear(&self) {
        for bucket in self.ask.buckets {
            for way in 0..8 {
                let mut entry = self.entry();
                entry.action = 0;
                entry.index = bucket * 8 + way;
                entry.write(&self.rig.node.memory(), 0);
            }
        }
    }
}

#[test]
fn an_entry_that_does_not_fit_is_none() {
    if !privileged() {
        return;
    }
    for family in [(A4, B4), (A6, B6)] {
        let flow = Datagrams::new(family);
        let memory = flow.rig.node.memory();
        let signature = flow.ask.signature;
        assert!(!flow.is_asked(), "{}", describe(&flow.rig.counters()));
        let fits = |name: &str, change: &dyn Fn(&mut Entry)| {
            flow.clear();
            let mut entry = flow.entry();
            change(&mut entry);
            entry.write(&memory, signature);
            let asked = flow.is_asked();
            println!("{name}: {}", if asked { "asked" } else { "hit" });
            !asked
        };
        assert!(fits("as the worker writes it", &|_| ()));
        assert!(fits("another way", &|entry| entry.index = flow.ask.buckets[0] * 8 + 7));
        assert!(fits("the other bucket", &|entry| entry.index =
            flow.ask.buckets[1] * 8 + 3));
        assert!(fits("not expired", &|entry| entry.expires =
            ask::now() + 60_000_000_000));
        assert!(fits("judged for the coming epoch", &|entry| entry.epochs[1] += 1));

        assert!(!fits("being written", &|entry| entry.version = 3));
        assert!(!fits("no action", &|entry| entry.action = 0));
        assert!(!fits("an action that is none", &|entry| entry.action = 3));
        assert!(!fits("another zone", &|entry| entry.zone = 9));
        assert!(!fits("another protocol", &|entry| entry.protocol = 6));
        assert!(!fits("expired", &|entry| entry.expires = ask::now() - 1_000_000_000));
        assert!(!fits("an epoch before", &|entry| {
            entry.epochs[0] = entry.epochs[0].wrapping_sub(1);
        }));
        assert!(!fits("two epochs ahead", &|entry| entry.epochs[1] += 2));
        assert!(!fits("the third epoch", &|entry| entry.epochs[2] = 7));
        assert!(!fits("a slot that is not there", &|entry| entry.slots[2] = 1 << 20));
        for byte in 0..36 {
            assert!(!fits("another original tuple", &|entry| entry.original.bytes[byte] ^= 1));
            assert!(!fits("another reply tuple", &|entry| entry.reply.bytes[byte] ^= 1));
        }
        flow.clear();
        flow.entry().write(&memory, signature ^ 1);
        assert!(flow.is_asked(), "another signature");

        // The first bucket has another flow with the same signature: the second is looked at.
        flow.clear();
        let mut other = flow.entry();
        other.original.bytes[33] ^= 1;
        other.write(&memory, signature);
        let mut entry = flow.entry();
        entry.index = flow.ask.buckets[1] * 8;
        entry.write(&memory, signature);
        assert!(!flow.is_asked());

        // A bump of one of its ends ends it, another's does not.
        flow.clear();
        flow.entry().write(&memory, signature);
        memory.bump(ask::slots(&flow.ask)[0] + 50);
        assert!(!flow.is_asked());
        for slot in [0, 1] {
            memory.bump(ask::slots(&flow.ask)[slot]);
            assert!(flow.is_asked(), "bumped slot {slot}");
            assert!(!flow.is_asked(), "asked once");
        }
        memory.bump_all();
        assert!(flow.is_asked() && !flow.is_asked());

        // The lease of a publisher that is gone.
        memory.set_lease(Some(ask::now() + 60_000_000_000));
        assert!(!flow.is_asked());
        memory.set_lease(Some(ask::now() - 1_000_000_000));
        let before = flow.rig.count(Outcome::ExitFailClosed);
        flow.a.send(&[1]).unwrap();
        flow.rig.wait_for(Outcome::ExitFailClosed, before);
        memory.set_lease(None);
        assert!(!flow.is_asked());
    }
}

#[test]
fn usage_counts_what_is_on_the_wire() {
    if !privileged() {
        return;
    }
    let rig = Rig::new(Shape::Routed, |_: &Ask| Verdict::Allow);
    rig.track();
    let (mut stream, mut served, _) = connect(&rig.a, &at(B4, 80), &rig.b, &at(B4, 80)).unwrap();
    let hits = rig.count(Outcome::ExitHit);
    let bytes = 4 << 20;
    echo(&mut stream, &mut served, bytes);
    let hits = rig.count(Outcome::ExitHit) - hits;
    let ask = &rig.asks()[0];
    let (packets, octets, flags) = ask::usage(&rig.node.memory(), ask.buckets[0] * 8);
    let segments = (bytes / 1448) as u64;
    for direction in 0..2 {
        assert!(
            packets[direction] >= segments,
            "{packets:?}, {segments} segments each way"
        );
        let headers = 52 * packets[direction]; // IP and TCP with timestamps
        let payload = octets[direction] - headers.min(octets[direction]);
        assert!(payload.abs_diff(bytes as u64) < 65_536, "{octets:?} {packets:?}");
        assert_eq!(flags[direction] & 0x10, 0x10, "ACK");
    }
    assert_eq!(
        flags[1] & 2,
        2,
        "SYN and ACK of the server; the client's SYN was asked"
    );
    assert!(
        hits < segments,
        "segments go as one: {hits} packets for {segments}"
    );
}

#[test]
fn fragments_have_conntracks_tuple_and_make_no_entry() {
    if !privileged() {
        return;
    }
    for (shape, tracked) in [
        (Shape::Bridge, true),
        (Shape::Routed, true),
        (Shape::BridgeUntracked, false),
    ] {
        let rig = Rig::new(shape, |_: &Ask| Verdict::Allow);
        if tracked {
            rig.track();
        }
        for (a, b) in [(A4, B4), (A6, B6)] {
            let (sender, receiver) = (udp(&rig.a, &at(a, 5000)), udp(&rig.b, &at(b, 6000)));
            let large = vec![3; 3000];
            let mut buffer = [0; 4000];
            for _ in 0..2 {
                let asks = asks_of(&rig, || {
                    sender.send_to(&large, at(b, 6000)).unwrap();
                    assert_eq!(receiver.recv(&mut buffer).unwrap(), 3000);
                });
                assert_eq!(asks.len(), 3, "{shape:?}: never cached");
                for (place, ask) in asks.iter().enumerate() {
                    assert_eq!((ask.true_pair(), ask.flags), (pair(a, b), SRC_LOCAL | DST_LOCAL));
                    let known = tracked || place == 0;
                    let ports = (ask.original.src_port(), ask.reply.src_port());
                    assert_eq!(
                        ports,
                        if known { (5000, 6000) } else { (0, 0) },
                        "{shape:?} {place}"
                    );
                    assert_eq!((ask.conntrack, ask.protocol), (u8::from(tracked), 17));
                }
            }
            // With the decision of a whole datagram they need none of their own, where conntrack says what they are of.
            sender.send_to(&[1], at(b, 6000)).unwrap();
            receiver.recv(&mut buffer).unwrap();
            let asks = asks_of(&rig, || {
                sender.send_to(&large, at(b, 6000)).unwrap();
                assert_eq!(receiver.recv(&mut buffer).unwrap(), 3000);
            });
            assert_eq!(asks.len(), if tracked { 0 } else { 3 }, "{shape:?}");
        }
    }
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    if !privileged() {
        return;
    }
    for shape in [Shape::Bridge, Shape::Routed] {
        let rig = Rig::new(shape, |_: &Ask| Verdict::Allow);
        rig.nft(PROXY);
        for (a, b, vip) in [(A4, B4, VIP4), (A6, B6, VIP6)] {
            for to in [at(b, 9), at(vip, 80)] {
                let before = rig.count(Outcome::ExitRelated);
                let socket = udp(&rig.a, &at(a, 0));
                socket.connect(&to).unwrap();
                let asks = asks_of(&rig, || {
                    socket.send(&[1]).unwrap();
                    let error = socket.recv(&mut [0; 10]).unwrap_err();
                    assert_eq!(
                        error.kind(),
                        std::io::ErrorKind::ConnectionRefused,
                        "{shape:?} {to}"
                    );
                });
                assert_eq!(asks.len(), 1, "{asks:#?}");
                assert_eq!(rig.count(Outcome::ExitRelated), before + 1);

                // Revoked, the flow is asked again, and its error follows what comes of it.
                rig.node.memory().bump_all();
                let asks = asks_of(&rig, || {
                    socket.send(&[1]).unwrap();
                    assert!(socket.recv(&mut [0; 10]).is_err());
                });
                assert_eq!(asks[0].conntrack, 1);
                assert_eq!(asks.len(), 1, "the same tuple was asked, and its error hit");
            }
        }
    }
    // Flows that are never cached: their errors are asked as such.
    let rig = Rig::new(Shape::Routed, |_: &Ask| Verdict::AllowOnce);
    rig.nft(PROXY);
    for (a, b, vip) in [(A4, B4, VIP4), (A6, B6, VIP6)] {
        let socket = udp(&rig.a, &at(a, 0));
        socket.connect(at(vip, 80)).unwrap();
        let asks = asks_of(&rig, || {
            socket.send(&[1]).unwrap();
            assert!(socket.recv(&mut [0; 10]).is_err());
        });
        assert_eq!(asks.iter().map(|ask| ask.conntrack).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(asks[1].flags, SRC_LOCAL | DST_LOCAL, "not to be cached");
        assert_eq!((asks[1].true_pair(), asks[1].protocol), (pair(a, b), 17));
        assert_eq!(asks[1].original, asks[0].original);
        assert_eq!(asks[1].subject, rig.index("vb"), "who sends the error");
    }
}

#[test]
fn echoes_and_midstream_packets_say_what_they_are() {
    if !privileged() {
        return;
    }
    let rig = Rig::new(Shape::Routed, |_: &Ask| Verdict::Allow);
    rig.track();
    for (a, b, protocol, kind) in [(A4, B4, 1, [8, 0]), (A6, B6, 58, [128, 129])] {
        let asks = asks_of(&rig, || {
            let socket = echo_socket(&rig.a, b.contains(':'));
            for _ in 0..2 {
                socket
                    .send_to(&[kind[0] as u8, 0, 0, 0, 0, 0, 0, 1], at(b, 0))
                    .unwrap();
                assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 8);
            }
        });
        assert_eq!(asks.len(), 1, "{asks:#?}");
        assert_eq!((asks[0].protocol, asks[0].true_pair()), (protocol, pair(a, b)));
        let (original, reply) = (&asks[0].original, &asks[0].reply);
        assert_eq!(
            (original.dst_port(), reply.dst_port()),
            (kind[0] << 8, kind[1] << 8)
        );
        assert_eq!(original.src_port(), reply.src_port());
        assert!(asks[0].flags & CACHEABLE != 0);
    }
    // A connection whose entry is gone is asked in mid-stream, in either direction, as the connection that it is.
    let (mut stream, mut served, _) = connect(&rig.a, &at(B4, 80), &rig.b, &at(B4, 80)).unwrap();
    echo(&mut stream, &mut served, 10);
    let first = rig.asks().pop().unwrap();
    assert_eq!(first.flags & MIDSTREAM, 0);
    rig.node.memory().bump_all();
    let asks = asks_of(&rig, || echo(&mut served, &mut stream, 10));
    assert_eq!(asks.len(), 1);
    assert_eq!((asks[0].conntrack, asks[0].flags & MIDSTREAM), (2, MIDSTREAM));
    assert_eq!(
        (&asks[0].original, &asks[0].reply),
        (&first.original, &first.reply)
    );
    assert_eq!(
        (asks[0].signature, asks[0].buckets),
        (first.signature, first.buckets)
    );
    assert_eq!(
        (asks[0].out_ifindex, asks[0].subject),
        (rig.index("va"), rig.index("vb"))
    );
}
