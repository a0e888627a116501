//! What new pods send before their ports are guarded, and what the machine sends to them.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test, and a bed that other tests use more of

mod run_bed;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
        setsockopt, socket, sockopt::BindToDevice,
    },
};
use ringwall_appliance::{
    kept_table,
    netfilter::{Family, Netfilter},
    quarantine,
};
use ringwall_dataplane::wire::build::Template;
use run_bed::*;

/// A port that only the ears listen to.
const EAR: u16 = 9;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;
const GATEWAY_V6: &str = "fd00:2::1";
const OUTSIDE_V6: &str = "fd00:2::9";

/// Pods may send nothing and get nothing.
const ISOLATE_ALL: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";

/// A gateway whose kernel would forward anything, with pods' ports that come later.
fn bed() -> Bed {
    let bed = Bed::new();
    bed.manifest("isolate", ISOLATE_ALL);
    bed.configure(&bed.config().replace("match: \"pod-*\"", "match: \"late*\""));
    let (gw, x) = (&bed.gateway.0, &bed.outside.0);
    sh(&format!(
        "ip netns exec {gw} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.default.forwarding=1 \
           net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.forwarding=1 \
           net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
         ip -n {gw} addr add {GATEWAY_V6}/64 dev up0 nodad
         ip -n {x} addr add {OUTSIDE_V6}/64 dev eth0 nodad
         ip -n {x} route add default via {GATEWAY_V6}"
    ));
    bed
}

/// Counts datagrams by what they say.
#[derive(Clone)]
struct Ear(Arc<UdpSocket>);

impl Ear {
    fn new(namespace: &Namespace) -> Self {
        let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), EAR); // both families
        let socket = namespace.inside(move || UdpSocket::bind(at)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(Arc::new(socket))
    }

    fn heard(&self) -> BTreeMap<String, u64> {
        let mut words = BTreeMap::new();
        let mut buffer = [0; 256];
        while let Ok(length) = self.0.recv(&mut buffer) {
            let word = String::from_utf8_lossy(&buffer[..length]).into_owned();
            *words.entry(word).or_default() += 1;
        }
        words
    }
}

fn link_address(interface: &str) -> LinkAddr {
    getifaddrs()
        .unwrap()
        .filter(|it| it.interface_name == interface)
        .find_map(|it| it.address?.as_link_addr().copied())
        .unwrap()
}

/// The pod's end of an interface that is to be a port, with frames as they are.
struct Tap {
    socket: OwnedFd,
    address: LinkAddr,
    frames: Vec<Vec<u8>>,
}

impl Tap {
    /// In the namespace of the thread.
    fn open(number: usize, far: [u8; 6]) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        let address = link_address(&format!("peer{number}"));
        bind(socket.as_raw_fd(), &address).unwrap();
        let pod = format!("10.1.{}.{}", 2 + number / 200, 1 + number % 200);
        let pod_v6 = format!("fd00:1::1:{number:x}");
        let frame = |from: &str, to: &str, word: &str| {
            let of = |text: &str| text.parse::<IpAddr>().unwrap().into();
            let mut template = Template::new(of(from), of(to));
            template.eth_src = address.addr().unwrap();
            if template.eth_dst[0] & 1 == 0 {
                template.eth_dst = far;
            }
            template.udp(1024, EAR, word.as_bytes())
        };
        let frames = vec![
            frame(&pod, OUTSIDE, "forward"),
            frame("198.51.100.1", OUTSIDE, "forward with a forged source"),
            frame("198.51.100.1", GATEWAY, "to the machine"),
            frame("198.51.100.1", "255.255.255.255", "to all"),
            frame(&pod_v6, OUTSIDE_V6, "IPv6 forward"),
            frame("2001:db8::1", OUTSIDE_V6, "IPv6 forward with a forged source"),
            frame("2001:db8::1", GATEWAY_V6, "IPv6 to the machine"),
        ];
        Self {
            socket,
            address,
            frames,
        }
    }

    /// How many were taken: none while the link is down.
    fn send_all(&self) -> u64 {
        let send = |frame: &Vec<u8>| {
            sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty()).is_ok()
        };
        self.frames.iter().filter(|frame| send(frame)).count() as u64
    }

    /// What came in that is neither ARP nor neighbour discovery.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 256];
        let mut heard = Vec::new();
        while let Ok((length, from)) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
            if from.is_some_and(|from| from.pkttype() == OUTGOING) {
                continue;
            }
            let frame = &buffer[..length];
            let discovery = frame[12..14] == [0x86, 0xdd]
                && frame[20] == 58
                && frame[21] == 255
                && matches!(frame[54], 133..=136);
            if frame[12..14] != [0x08, 0x06] && !discovery {
                heard.push(format!("{:02x?}", &frame[..length.min(80)]));
            }
        }
        heard
    }
}

/// Pods that send all the time, from before their links are up.
struct Senders {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Tap>>,
}

impl Senders {
    /// Pairs whose far ends are still in the pods' namespace, as `far0` and so on.
    fn start(pods: &Namespace, numbers: std::ops::Range<usize>) -> Self {
        let mac = |number: usize| [2, 0, 0, 9, (number >> 8) as u8, number as u8];
        let mut script = String::new();
        for number in numbers.clone() {
            let mac = mac(number).map(|byte| format!("{byte:02x}")).join(":");
            script.push_str(&format!(
                "link add peer{number} up type veth peer name far{number} address {mac}\n"
            ));
        }
        sh(&format!("printf '{script}' | ip -n {} -batch -", pods.0));
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let taps = pods.inside(move || {
            numbers
                .map(|number| Tap::open(number, mac(number)))
                .collect::<Vec<_>>()
        });
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for tap in &taps {
                    count.fetch_add(tap.send_all(), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(20));
            }
            taps
        });
        Self { stop, sent, thread }
    }

    fn stop(self) -> Vec<Tap> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A process of the machine that sends to whoever is at the other end of an interface, as soon as there is one.
fn send_to_newcomers(gateway: &Namespace, names: Vec<String>, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    let path = gateway.path();
    std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .unwrap();
        let mut sent = 0;
        let mut waiting = names;
        let mut bound = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            waiting.retain(|name| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_broadcast(true).unwrap();
                let there = setsockopt(&socket, BindToDevice, &name.into()).is_ok();
                if there {
                    bound.push(socket);
                }
                !there
            });
            for socket in &bound {
                sent += u64::from(socket.send_to(b"from the machine", "255.255.255.255:10").is_ok());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        sent
    })
}

fn is_attached(bed: &Bed, name: &str) -> bool {
    let name = name.to_owned();
    bed.gateway.inside(move || {
        let no_pins = std::path::Path::new("/sys/fs/bpf/no-pins");
        ringwall_bpf::inspect(no_pins, &name).is_ok_and(|found| found.other_program.is_some())
    })
}

/// What got past: what was heard, and what was sent meanwhile.
struct Past {
    heard: BTreeMap<String, u64>,
    by_pods: Vec<String>,
    sent: u64,
    sent_by_machine: u64,
}

/// Pods come, all at once, sending, until `done`.
fn come(bed: &Bed, numbers: std::ops::Range<usize>, more: &str, done: impl Fn(&Bed) -> bool) -> Past {
    let pods = Namespace::new("p");
    let ears = [Ear::new(&bed.outside), Ear::new(&bed.gateway)];
    let senders = Senders::start(&pods, numbers.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let names = numbers.clone().map(|number| format!("late{number}")).collect();
    let machine = send_to_newcomers(&bed.gateway, names, Arc::clone(&stop));
    let gw = &bed.gateway.0;
    let script: String = numbers
        .map(|number| format!("link set far{number} netns {gw} name late{number} {more} up\n"))
        .collect();
    sh(&format!("printf '{script}' | ip -n {} -batch -", pods.0));
    bed.wait_for("guards", |bed| {
        done(bed) && senders.sent.load(Ordering::Relaxed) > 1000
    });
    stop.store(true, Ordering::Relaxed);
    let sent_by_machine = machine.join().unwrap();
    let sent = senders.sent.load(Ordering::Relaxed);
    let taps = senders.stop();
    let mut heard = BTreeMap::new();
    for ear in ears {
        for (word, count) in ear.heard() {
            *heard.entry(word).or_default() += count;
        }
    }
    Past {
        heard,
        by_pods: taps.iter().flat_map(Tap::heard).collect(),
        sent,
        sent_by_machine,
    }
}

impl Past {
    fn assert_nothing(&self, when: &str) {
        eprintln!("{when}: {} packets sent, past: {:?}", self.sent, self.heard);
        assert!(self.heard.is_empty(), "{when}: {:?}", self.heard);
        assert!(self.by_pods.is_empty(), "{when}: {:#?}", self.by_pods);
    }
}

fn nothing_gets_past(count: usize) {
    let mut bed = bed();
    bed.start();
    let past = come(&bed, 0..count, "", |bed| {
        (0..count).all(|number| is_attached(bed, &format!("late{number}")))
    });
    past.assert_nothing(&format!("{count} pods at once"));
    let dropped = dropped_of(&bed);
    eprintln!(
        "{count} pods at once: {dropped} packets were dropped as {}",
        quarantine::DROP_REASON
    );
    assert!(dropped > 0 && dropped <= past.sent + past.sent_by_machine);
    assert!(
        String::from_utf8_lossy(&bed.ask(&["status"]).stdout)
            .contains(&format!("{} {dropped}", quarantine::DROP_REASON)),
        "everybody can read it"
    );
    let table = kept_table::table_name(&bed.name);
    bed.gateway.inside(move || kept_table::remove(&table)).unwrap();
    bed.wait_for("table that is put back", is_held);
    assert_eq!(dropped_of(&bed), dropped, "what was counted stays");
}

/// Packets of interfaces that were not guarded yet.
fn dropped_of(bed: &Bed) -> u64 {
    bed.status()["dataplane"]["drops"][quarantine::DROP_REASON]
        .as_u64()
        .unwrap()
}

#[test]
fn what_new_pods_send_before_their_ports_are_guarded_is_dropped() {
    if may_run("what_new_pods_send_before_their_ports_are_guarded_is_dropped") {
        nothing_gets_past(12);
        nothing_gets_past(110);
    }
}

#[test]
fn what_new_pods_on_a_bridge_send_before_their_ports_are_guarded_is_dropped() {
    if !may_run("what_new_pods_on_a_bridge_send_before_their_ports_are_guarded_is_dropped") {
        return;
    }
    let mut bed = bed();
    let gw = &bed.gateway.0;
    let neighbour = Namespace::new("n");
    sh(&format!(
        "ip -n {gw} link add br0 up type bridge
         ip -n {gw} link add n0 up master br0 type veth peer name eth0 netns {}
         ip -n {} link set eth0 up",
        neighbour.0, neighbour.0
    ));
    bed.start();
    let beside = neighbour.inside(|| {
        let flags = SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        bind(socket.as_raw_fd(), &link_address("eth0")).unwrap();
        socket
    });
    // `ip` looks names up where it runs.
    let bridge = bed.gateway.inside(|| link_address("br0").ifindex());
    let past = come(&bed, 0..12, &format!("master if{bridge}"), |bed| {
        (0..12).all(|number| is_attached(bed, &format!("late{number}")))
    });
    past.assert_nothing("12 pods at once on a bridge");
    let mut buffer = [0; 256];
    while let Ok((length, _)) = recvfrom::<LinkAddr>(beside.as_raw_fd(), &mut buffer) {
        let frame = String::from_utf8_lossy(&buffer[..length]);
        for word in ["forward", "to the machine", "to all", "from the machine"] {
            assert!(!frame.contains(word), "beside them on the bridge: {frame}");
        }
    }
}

/// Whether the table is there, in both families.
fn is_held(bed: &Bed) -> bool {
    let table = kept_table::table_name(&bed.name);
    let families = [Family::Inet, Family::Bridge];
    bed.gateway.inside(move || {
        let netfilter = Netfilter::open().unwrap();
        // One after the other: the table may come between the two questions.
        families
            .iter()
            .all(|family| netfilter.has_table(*family, &table).unwrap())
    })
}

#[test]
fn pods_that_come_while_nothing_runs_are_held_until_something_does() {
    if !may_run("pods_that_come_while_nothing_runs_are_held_until_something_does") {
        return;
    }
    let mut bed = bed();
    bed.start();
    bed.kill_supervisor();
    assert!(is_held(&bed));
    come(&bed, 0..2, "", |_| true).assert_nothing("nothing runs");
    // Those are gone with their namespace, and their indices with them. The next ones wait for a start.
    let pods = Namespace::new("p");
    let senders = Senders::start(&pods, 2..4);
    for number in 2..4 {
        let gw = &bed.gateway.0;
        sh(&format!(
            "ip -n {} link set far{number} netns {gw} name late{number} up",
            pods.0
        ));
    }
    let ears = [Ear::new(&bed.outside), Ear::new(&bed.gateway)];
    bed.start();
    bed.wait_for("guards", |bed| {
        (2..4).all(|number| is_attached(bed, &format!("late{number}")))
    });
    drop(senders.stop());
    for ear in ears {
        assert_eq!(ear.heard(), BTreeMap::new());
    }
    assert_eq!(bed.stop(), Some(0));
    assert!(is_held(&bed), "a stop is no reason to let pods pass");
    assert!(bed.ask(&["detach"]).status.success());
    assert!(!is_held(&bed), "the machine is left as it was");
}

/// Whether the machine hears a neighbour on an interface, which is made if it is not there.
fn is_heard(bed: &Bed, namespace: &Namespace, interface: &str) -> bool {
    let gw = &bed.gateway.0;
    let there = namespace
        .command("ip")
        .args(["link", "show", "eth0"])
        .output()
        .unwrap();
    if !there.status.success() {
        sh(&format!(
            "ip -n {} link add eth0 up type veth peer name far
             ip -n {} addr add 203.0.113.2/24 dev eth0
             ip -n {} link set far netns {gw} name {interface} up
             ip -n {gw} addr add 203.0.113.1/24 dev {interface}",
            namespace.0, namespace.0, namespace.0
        ));
    }
    let ear = Ear::new(&bed.gateway);
    let socket = namespace.inside(|| UdpSocket::bind("203.0.113.2:0")).unwrap();
    for _ in 0..10 {
        let _ = socket.send_to(b"a neighbour", ("203.0.113.1", EAR));
        std::thread::sleep(Duration::from_millis(10));
        if !ear.heard().is_empty() {
            return true;
        }
    }
    false
}

#[test]
fn interfaces_that_are_no_ports_are_let_through_whatever_their_names_begin_with() {
    if !may_run("interfaces_that_are_no_ports_are_let_through_whatever_their_names_begin_with") {
        return;
    }
    let mut bed = bed();
    // What rules can say of a pattern is how it begins.
    bed.configure(&bed.config().replace("match: \"pod-*\"", "match: \"late*p\""));
    let early = Namespace::new("e");
    assert!(is_heard(&bed, &early, "late-early"));
    bed.start();
    assert!(is_heard(&bed, &early, "late-early"));
    drop(early);
    let late = Namespace::new("l");
    bed.wait_for("neighbour", |bed| is_heard(bed, &late, "late-late"));
    // An interface that is given the name of a pod's is one from then on, and none after it lost it.
    let gw = bed.gateway.0.clone();
    sh(&format!(
        "ip -n {gw} link set late-late down; ip -n {gw} link set late-late name late-p; ip -n {gw} link set late-p up"
    ));
    bed.wait_for("guard", |bed| is_attached(bed, "late-p"));
    assert!(!is_heard(&bed, &late, "late-p"));
}

#[test]
fn a_table_that_somebody_removes_is_put_back_with_an_alarm() {
    if !may_run("a_table_that_somebody_removes_is_put_back_with_an_alarm") {
        return;
    }
    let mut bed = bed();
    bed.start();
    let pods = Namespace::new("p");
    let guard = |bed: &Bed, number: usize| {
        sh(&format!(
            "ip -n {} link add late{number} up type veth peer name peer{number} netns {}",
            bed.gateway.0, pods.0
        ));
        bed.wait_for("guard", |bed| is_attached(bed, &format!("late{number}")));
    };
    guard(&bed, 90);
    let table = kept_table::table_name(&bed.name);
    bed.gateway.inside(move || kept_table::remove(&table)).unwrap();
    // It may be there again at once: the alarm says that it was not.
    bed.wait_for("alarm", |bed| {
        let alarms = bed.status()["dataplane"]["alarms"].to_string();
        alarms.contains("nf_tables") && alarms.contains("put back")
    });
    assert!(is_held(&bed));
    come(&bed, 0..4, "", |bed| {
        (0..4).all(|number| is_attached(bed, &format!("late{number}")))
    })
    .assert_nothing("the table is back");
}
