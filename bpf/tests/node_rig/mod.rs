//! A node in network namespaces: two pods, a bridge or routed veths, an uplink, the ask pair, and a stand-in for the workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking
#![allow(dead_code, unreachable_pub)] // not every test uses everything

pub mod ask;
pub mod raw;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use ringwall_bpf::node::{
    Address, AskLimit, Count, Device, DeviceKind, Hook, Node, NodeConfig, NodeCounters, Outcome, Program,
    TcAttachment,
};

use self::ask::{Answerer, Ask, Judge};
use crate::net::{Bpffs, Namespace, run};

pub const BUCKETS: u32 = 1024;
pub const A4: &str = "10.244.1.2";
pub const B4: &str = "10.244.1.3";
pub const A6: &str = "fd00:244:1::2";
pub const B6: &str = "fd00:244:1::3";
pub const HOST4: &str = "10.244.1.1";
pub const HOST6: &str = "fd00:244:1::1";
pub const OUTSIDE4: &str = "198.51.100.7";
pub const OUTSIDE6: &str = "2001:db8:1::7";
pub const UPLINK4: &str = "198.51.100.1";
pub const UPLINK6: &str = "2001:db8:1::1";
pub const A_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const B_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// How pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Ports of a bridge, frames within it are tracked (br_netfilter).
    Bridge,
    /// Ports of a bridge, frames within it are not tracked.
    BridgeUntracked,
    /// A route for each pod.
    Routed,
}

pub struct Rig {
    pub shape: Shape,
    pub a: Namespace,
    pub b: Namespace,
    pub outside: Namespace,
    pub host: Namespace,
    pub worker: Namespace,
    pub node: Node,
    pub config: NodeConfig,
    pub answerer: Option<Answerer>,
    pub bpffs: Bpffs,
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn veth(far: &Namespace, far_name: &str, far_mac: [u8; 6], near: &Namespace, near_name: &str) {
    run(&format!(
        "ip link add {far_name} address {} netns {} type veth peer name {near_name} netns {}",
        mac_text(far_mac),
        far.name,
        near.name
    ));
    far.ip(&format!("link set {far_name} up"));
    near.ip(&format!("link set {near_name} up"));
}

/// How programs can be attached on this kernel.
pub fn attachments() -> Vec<TcAttachment> {
    let links = (TcAttachment::of_kernel() == TcAttachment::Link).then_some(TcAttachment::Link);
    links.into_iter().chain([TcAttachment::Filter]).collect()
}

impl Rig {
    /// A rig whose workers judge as told.
    pub fn new(shape: Shape, judge: impl Judge) -> Self {
        Self::attached_by(TcAttachment::of_kernel(), shape, judge)
    }

    /// As [`Self::new`], with programs that are attached in a way.
    pub fn attached_by(attachment: TcAttachment, shape: Shape, judge: impl Judge) -> Self {
        let names = ["a", "b", "out", "host", "work"].map(Namespace::new);
        let [a, b, outside, host, worker] = names;
        for namespace in [&a, &b, &outside, &host] {
            namespace.exec("sysctl -qw net.ipv6.conf.all.accept_dad=0");
            namespace.exec("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        }
        host.exec("sysctl -qw net.ipv4.ip_forward=1");
        host.exec("sysctl -qw net.ipv6.conf.all.forwarding=1");
        host.exec("sysctl -qw net.ipv4.conf.all.rp_filter=0");
        host.exec("sysctl -qw net.ipv4.conf.default.rp_filter=0");

        veth(&a, "e0", A_MAC, &host, "va");
        veth(&b, "e0", B_MAC, &host, "vb");
        veth(&outside, "e0", OUTSIDE_MAC, &host, "eth0");
        host.ip(&format!("addr add {UPLINK4}/24 dev eth0"));
        host.ip(&format!("addr add {UPLINK6}/64 dev eth0 nodad"));
        outside.ip(&format!("addr add {OUTSIDE4}/24 dev e0"));
        outside.ip(&format!("addr add {OUTSIDE6}/64 dev e0 nodad"));
        host.ip(&format!("route add default via {OUTSIDE4}"));
        host.ip(&format!("-6 route add default via {OUTSIDE6}"));
        outside.ip(&format!("route add 10.244.0.0/16 via {UPLINK4}"));
        outside.ip(&format!("route add fd00:244::/32 via {UPLINK6}"));
        match shape {
            Shape::Bridge | Shape::BridgeUntracked => bridge(&host, &[&a, &b], shape == Shape::Bridge),
            Shape::Routed => routed(&host, &[(&a, "va", A4, A6), (&b, "vb", B4, B6)]),
        }
        for (pod, four, six) in [(&a, A4, A6), (&b, B4, B6)] {
            let bits = if shape == Shape::Routed {
                (32, 128)
            } else {
                (24, 64)
            };
            pod.ip(&format!("addr add {four}/{} dev e0", bits.0));
            pod.ip(&format!("addr add {six}/{} dev e0 nodad", bits.1));
            let gateway = if shape == Shape::Routed {
                ("169.254.1.1", "fe80::1")
            } else {
                (HOST4, HOST6)
            };
            pod.ip(&format!("route add default via {} dev e0 onlink", gateway.0));
            pod.ip(&format!("-6 route add default via {} dev e0", gateway.1));
        }
        ask_pair(&host, &worker);

        let bpffs = Bpffs::new();
        let node = Node::load(&bpffs.pins(), BUCKETS, attachment).unwrap();
        let ask_ifindex = index(&host, "ask0");
        let config = NodeConfig {
            ask_ifindex,
            ask_mtu: 3000 + 14 - 120,
            enforcing: true,
            overlay_ports: vec![4789, 8472],
            ..NodeConfig::default()
        };
        let mut rig = Self {
            shape,
            a,
            b,
            outside,
            host,
            worker,
            node,
            config,
            answerer: None,
            bpffs,
        };
        rig.fill();
        rig.attach();
        rig.restart_workers(judge);
        rig
    }

    /// Tells the programs what is here.
    pub fn fill(&self) {
        self.node.set_config(&self.config).unwrap();
        let mut addresses = BTreeMap::new();
        for (port, pod) in [("va", [A4, A6]), ("vb", [B4, B6])] {
            for address in pod {
                let whose = Address::Pod {
                    port: self.index(port),
                };
                addresses.insert(address.parse().unwrap(), whose);
            }
        }
        for address in [HOST4, HOST6, UPLINK4, UPLINK6, "169.254.1.1", "127.0.0.1"] {
            addresses.insert(address.parse::<IpAddr>().unwrap(), Address::Host);
        }
        self.node.set_addresses(&addresses).unwrap();
        self.node
            .set_service_cidrs(&["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()])
            .unwrap();
    }

    pub fn device(&self, name: &str) -> Device {
        let bridge = (self.shape != Shape::Routed).then(|| self.index("cni0"));
        let kind = match name {
            "va" => DeviceKind::Pod { mac: A_MAC, bridge },
            "vb" => DeviceKind::Pod { mac: B_MAC, bridge },
            "ask0" => DeviceKind::Ask,
            "cni0" => DeviceKind::Bridge { pods_alone: true },
            _ => DeviceKind::Other,
        };
        let (address_v4, address_v6) = match name {
            "va" => (A4.parse().ok(), A6.parse().ok()),
            // One whose addresses the programs look up.
            _ => (None, None),
        };
        Device {
            no_link: name.starts_with("tun"),
            address_v4,
            address_v6,
            ..Device::new(kind)
        }
    }

    pub fn guard(&self, name: &str) {
        let (index, device) = (self.index(name), self.device(name));
        self.host.within(|| self.node.guard(index, &device).unwrap());
    }

    /// Whether a program of the rig's node is attached to a device of the host.
    pub fn is_attached(&self, ifindex: u32, hook: Hook) -> bool {
        self.host.within(|| self.node.is_attached(ifindex, hook))
    }

    /// Takes the programs off a device of the host and forgets it.
    pub fn release(&self, ifindex: u32) {
        self.host.within(|| self.node.release(ifindex)).unwrap();
    }

    /// Attaches every program, as the appliance would.
    pub fn attach(&self) {
        for name in ["ask0", "va", "vb", "eth0"] {
            self.guard(name);
        }
        if self.shape != Shape::Routed {
            self.guard("cni0");
        }
        let index = index(&self.worker, "ask1");
        self.worker
            .within(|| self.node.attach(index, Hook::Judge).unwrap());
    }

    /// Stops the workers, if there are any, and starts others.
    pub fn restart_workers(&mut self, judge: impl Judge) {
        drop(self.answerer.take());
        let answerer = Answerer::start(&self.worker, self.node.memory(), self.node.nonce(), judge);
        self.node.register_socket(0, answerer.as_fd()).unwrap();
        self.answerer = Some(answerer);
    }

    /// Makes everybody know their neighbours, and be still otherwise.
    pub fn hush(&self) {
        let on_bridge = self.shape != Shape::Routed;
        for (pod, port, address, own) in [(&self.a, "va", A4, A_MAC), (&self.b, "vb", B4, B_MAC)] {
            let (gateway, mac) = if on_bridge {
                (HOST4, HOST_MAC)
            } else {
                ("169.254.1.1", mac(&self.host, port))
            };
            knows(pod, "e0", gateway, mac);
            knows(&self.host, if on_bridge { "cni0" } else { port }, address, own);
        }
        if on_bridge {
            knows(&self.a, "e0", B4, B_MAC);
            knows(&self.b, "e0", A4, A_MAC);
        }
        knows(&self.outside, "e0", UPLINK4, mac(&self.host, "eth0"));
        knows(&self.host, "eth0", OUTSIDE4, OUTSIDE_MAC);
        for pod in [&self.a, &self.b, &self.outside] {
            pod.exec("sysctl -qw net.ipv6.conf.e0.disable_ipv6=1");
        }
        self.host.exec("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
    }

    pub fn index(&self, name: &str) -> u32 {
        index(&self.host, name)
    }

    pub fn counters(&self) -> NodeCounters {
        self.node.counters().unwrap()
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counters().get(outcome).packets
    }

    /// Asks so far.
    pub fn asks(&self) -> Vec<Ask> {
        self.answerer.as_ref().map(Answerer::asks).unwrap_or_default()
    }

    /// Waits until an outcome was counted more than before.
    pub fn wait_for(&self, outcome: Outcome, before: u64) {
        wait_until(
            || self.count(outcome) > before,
            || format!("{}: {}", outcome.as_str(), describe(&self.counters())),
        );
    }

    /// Loads nft rules into the host.
    pub fn nft(&self, rules: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        self.host.exec(&format!("nft -f {}", file.path().display()));
    }

    /// Makes the kernel track connections in the host.
    pub fn track(&self) {
        self.nft(
            "table inet track {
                chain in { type filter hook prerouting priority 0; ct state new counter; }
                chain out { type filter hook output priority 0; ct state new counter; }
            }",
        );
    }
}

/// What was counted, in words.
pub fn describe(counters: &NodeCounters) -> String {
    let counted = counters.iter().filter(|(_, count)| *count != Count::default());
    counted
        .map(|(outcome, count)| format!("{} {}", outcome.as_str(), count.packets))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Waits for an event.
pub fn wait_until(mut event: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !event() {
        assert!(Instant::now() < deadline, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn index(namespace: &Namespace, name: &str) -> u32 {
    let text = namespace.ip(&format!("-o link show {name}"));
    text.split(':').next().unwrap().parse().unwrap()
}

fn knows(namespace: &Namespace, interface: &str, address: &str, mac: [u8; 6]) {
    let mac = mac_text(mac);
    namespace.ip(&format!(
        "neigh replace {address} lladdr {mac} dev {interface} nud permanent"
    ));
}

/// The Ethernet address of an interface.
pub fn mac(namespace: &Namespace, name: &str) -> [u8; 6] {
    let text = namespace.ip(&format!("link show {name}"));
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    let bytes = words.nth(1).unwrap().split(':');
    let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn bridge(host: &Namespace, _pods: &[&Namespace], tracked: bool) {
    host.ip(&format!(
        "link add cni0 address {} type bridge mcast_snooping 0",
        mac_text(HOST_MAC)
    ));
    host.ip("link set cni0 up");
    for port in ["va", "vb"] {
        host.ip(&format!("link set {port} master cni0"));
        host.exec(&format!("bridge link set dev {port} hairpin on"));
    }
    host.ip(&format!("addr add {HOST4}/24 dev cni0"));
    host.ip(&format!("addr add {HOST6}/64 dev cni0 nodad"));
    for family in ["iptables", "ip6tables"] {
        let value = u8::from(tracked);
        host.exec(&format!("sysctl -qw net.bridge.bridge-nf-call-{family}={value}"));
    }
}

fn routed(host: &Namespace, pods: &[(&Namespace, &str, &str, &str)]) {
    for (_, port, four, six) in pods {
        host.ip(&format!("addr add 169.254.1.1/32 dev {port}"));
        host.ip(&format!("route add {four}/32 dev {port}"));
        host.ip(&format!("-6 route add {six}/128 dev {port}"));
        host.ip(&format!("addr add fe80::1/64 dev {port} nodad"));
    }
}

fn ask_pair(host: &Namespace, worker: &Namespace) {
    run(&format!(
        "ip link add ask0 mtu 3000 netns {} type veth peer name ask1 mtu 3000 netns {}",
        host.name, worker.name
    ));
    for (namespace, end) in [(host, "ask0"), (worker, "ask1")] {
        namespace.exec(&format!("sysctl -qw net.ipv6.conf.{end}.disable_ipv6=1"));
        namespace.ip(&format!("link set {end} arp off up"));
    }
    host.exec("ethtool -K ask0 tx off");
}

/// A TCP connection from one namespace to another: an echo of some bytes. `to` is where the client connects, `at` where the server
/// listens. Answers whom the server saw.
pub fn tcp(client: &Namespace, to: &str, server: &Namespace, at: &str) -> std::io::Result<SocketAddr> {
    let (mut stream, mut served, peer) = connect(client, to, server, at)?;
    echo(&mut stream, &mut served, 4096);
    Ok(peer)
}

/// Both ends of a connection.
pub fn connect(
    client: &Namespace,
    to: &str,
    server: &Namespace,
    at: &str,
) -> std::io::Result<(TcpStream, TcpStream, SocketAddr)> {
    let listener = server.within(|| bound(|| TcpListener::bind(at)));
    let to: SocketAddr = to.parse().unwrap();
    let stream = client.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let (served, peer) = listener.accept()?;
    for end in [&stream, &served] {
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        end.set_nodelay(true).unwrap();
    }
    Ok((stream, served, peer))
}

/// Binds a socket. A process that another test is about to start has the descriptors of this one for a moment, closed ones, too, so an
/// address may be in use for longer than its socket is there.
fn bound<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done.unwrap(),
        }
    }
}

/// Sends bytes there and back.
pub fn echo(stream: &mut TcpStream, served: &mut TcpStream, bytes: usize) {
    let data = vec![7; bytes];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; bytes];
            served.read_exact(&mut buffer).unwrap();
            served.write_all(&buffer).unwrap();
        });
        stream.write_all(&data).unwrap();
        let mut buffer = vec![0; bytes];
        stream.read_exact(&mut buffer).unwrap();
        assert!(buffer == data);
    });
}

/// A UDP socket, which waits long.
pub fn udp(namespace: &Namespace, at: &str) -> UdpSocket {
    let socket = namespace.within(|| bound(|| UdpSocket::bind(at)));
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Whether something has arrived.
pub fn has_received(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let received = socket.recv(&mut [0; 2048]).is_ok();
    socket.set_nonblocking(false).unwrap();
    received
}

pub const LIMIT: AskLimit = AskLimit {
    per_second: 1,
    burst: 3,
};

/// Every packet that a program saw moved one of its counters; what came in by pods' ports, for example.
pub fn seen(counters: &NodeCounters, program: Program) -> u64 {
    counters.seen_by(program)
}
