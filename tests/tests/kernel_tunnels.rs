//! Tunnels that the nodes' kernels make, of each kind that a gateway looks into, through a wire and a router.
//!
//! A kind whose devices the kernel lacks is skipped by name; with `REQUIRE_TUNNELS=1` that fails. `bench/lab/vm.py` runs this on kernels
//! that have all of them.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, built_binary},
    manifests::{Pod, labels},
    netns::Netns,
    preflight::runs_here,
    probe::{Attempt, Outcome, Service, attempt_all},
    serve::Servers,
    topology::{Bed, Plan, Role, node_addresses, pod_addresses},
    world::World,
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// How a kernel is told to make one kind of tunnel. `LOCAL` and `REMOTE` stand for the nodes' outer addresses.
struct Kind {
    name: &'static str,
    /// ringwall's word for it.
    word: &'static str,
    /// Whether the nodes' outer addresses are IPv6.
    outer_v6: bool,
    /// Families of the packets inside.
    inner_v6: &'static [bool],
    /// The end of `ip link add tunnel type`.
    device: &'static str,
    /// What the routes into it say besides, where the device takes its tunnel's ends from them.
    route: &'static str,
}

const BOTH: &[bool] = &[false, true];

/// A kind with both families inside.
const fn kind(name: &'static str, word: &'static str, outer_v6: bool, device: &'static str) -> Kind {
    Kind {
        name,
        word,
        outer_v6,
        inner_v6: BOTH,
        device,
        route: "",
    }
}

const KINDS: [Kind; 13] = [
    kind(
        "VXLAN",
        "vxlan",
        false,
        "vxlan id 1 local LOCAL remote REMOTE dstport 8472 nolearning",
    ),
    kind(
        "VXLAN over IPv6",
        "vxlan",
        true,
        "vxlan id 1 local LOCAL remote REMOTE dstport 4789 nolearning",
    ),
    kind(
        "Geneve",
        "geneve",
        false,
        "geneve id 1 remote REMOTE dstport 6081",
    ),
    kind(
        "Geneve over IPv6",
        "geneve",
        true,
        "geneve id 1 remote REMOTE dstport 6081",
    ),
    Kind {
        // An unassigned class with two words of data. It is not critical: the receiver may ignore it.
        route: "encap ip id 1 src LOCAL dst REMOTE ttl 64 geneve_opts 0102:42:0badcafe12345678",
        ..kind(
            "Geneve with an option",
            "geneve",
            false,
            "geneve external dstport 6081",
        )
    },
    Kind {
        inner_v6: &[false],
        ..kind("IPv4 in IPv4", "ipip", false, "ipip local LOCAL remote REMOTE")
    },
    Kind {
        inner_v6: &[true],
        ..kind("IPv6 in IPv4", "ipip", false, "sit local LOCAL remote REMOTE")
    },
    kind(
        "IPv4 and IPv6 in IPv6",
        "ipip",
        true,
        "ip6tnl mode any local LOCAL remote REMOTE encaplimit none",
    ),
    kind("GRE", "gre", false, "gre local LOCAL remote REMOTE"),
    kind(
        "GRE with key, checksum and sequence number",
        "gre",
        false,
        "gre local LOCAL remote REMOTE key 7 csum seq",
    ),
    kind(
        "GRE with Ethernet inside",
        "gre",
        false,
        "gretap local LOCAL remote REMOTE key 7",
    ),
    kind(
        "GRE over IPv6",
        "gre",
        true,
        "ip6gre local LOCAL remote REMOTE encaplimit none",
    ),
    kind(
        "GRE over IPv6 with Ethernet inside",
        "gre",
        true,
        "ip6gretap local LOCAL remote REMOTE csum encaplimit none",
    ),
];

/// A pod of one of the nodes.
struct Inner {
    name: &'static str,
    ns: Arc<Netns>,
    addresses: [IpAddr; 2],
    node: usize,
}

/// Two nodes, with the gateway between them, and their pods.
struct Overlay {
    bed: Bed,
    nodes: [Arc<Netns>; 2],
    /// The nodes' outer addresses by family.
    outer: [[IpAddr; 2]; 2],
    pods: Vec<Inner>,
    _servers: Vec<Servers>,
}

const NODES: [&str; 2] = ["node-in", "node-out"];
/// Each pod, and the node that it is on.
const PODS: [(&str, usize); 3] = [("shop/web", 0), ("shop/far", 1), ("shop/other", 1)];

impl Overlay {
    fn new(role: Role) -> Self {
        match role {
            Role::Wire => Self::across_a_wire(),
            _ => Self::across_a_router(),
        }
    }

    /// The bed's routers are the nodes.
    fn across_a_wire() -> Self {
        let plans = PODS.map(|(name, node)| match node {
            0 => Plan::new(name),
            _ => Plan::new(name).outside(),
        });
        let bed = Bed::new(Role::Wire, &plans, 1).unwrap();
        let pods = PODS.map(|(name, node)| {
            let member = bed.member(name).unwrap();
            Inner {
                name,
                ns: member.ns.clone(),
                addresses: [member.address(false), member.address(true)],
                node,
            }
        });
        Self {
            nodes: [bed.routers[0].clone(), bed.routers[1].clone()],
            outer: [
                ["198.51.100.1", "198.51.100.2"],
                ["2001:db8:1::1", "2001:db8:1::2"],
            ]
            .map(|ends| ends.map(|end| end.parse().unwrap())),
            pods: pods.into(),
            _servers: Vec::new(), // the bed has them
            bed,
        }
    }

    /// Nodes of two networks, with a veth to each of their pods.
    fn across_a_router() -> Self {
        let plans = NODES.map(|name| Plan::new(name).node());
        let bed = Bed::new(Role::Routed, &plans, 1).unwrap();
        let nodes = [bed.pods[0].ns.clone(), bed.pods[1].ns.clone()];
        for node in &nodes {
            node.sysctl("net/ipv4/ip_forward", "1").unwrap();
            node.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        }
        let mut pods = Vec::new();
        let mut servers = Vec::new();
        for (index, (name, node)) in PODS.into_iter().enumerate() {
            let (v4, v6) = pod_addresses(index);
            let ns = Arc::new(Netns::new(name).unwrap());
            let host = &nodes[node];
            host.ip(&[
                format!("link add pod{index} type veth peer name eth0 netns {}", ns.path()),
                format!("link set pod{index} up"),
                format!("address add 169.254.2.1/32 dev pod{index} scope link"),
                format!("address add fe80::1/64 dev pod{index} nodad"),
                format!("route add {v4}/32 dev pod{index} scope link"),
                format!("route add {v6}/128 dev pod{index}"),
            ])
            .unwrap();
            ns.ip(&[
                "link set eth0 up".to_owned(),
                format!("address add {v4}/32 dev eth0"),
                format!("address add {v6}/128 dev eth0 nodad"),
                "route add 169.254.2.1 dev eth0 scope link".to_owned(),
                "route add default via 169.254.2.1 dev eth0".to_owned(),
                "route add default via fe80::1 dev eth0".to_owned(),
            ])
            .unwrap();
            servers.push(Servers::start(&ns, name, &[80], &[53]).unwrap());
            let addresses = [v4.into(), v6.into()];
            pods.push(Inner {
                name,
                ns,
                addresses,
                node,
            });
        }
        let outer = [0, 1].map(node_addresses);
        Self {
            nodes,
            outer: [outer.map(|(v4, _)| v4.into()), outer.map(|(_, v6)| v6.into())],
            pods,
            _servers: servers,
            bed,
        }
    }

    fn pod(&self, name: &str) -> &Inner {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }

    /// Nodes and pods; `shop/web` is open to one pod on TCP port 80.
    fn world(&self, welcome: &str) -> World {
        let mut world = World::of(&self.bed);
        world.namespaces.entry("shop".to_owned()).or_default();
        for pod in &self.pods {
            let name = pod.name.rsplit('/').next().unwrap();
            let object = Pod {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                labels: labels([("app", name)]),
                addresses: pod.addresses.to_vec(),
                node: NODES[pod.node].to_owned(),
                ports: Vec::new(),
            };
            world.pods.insert(pod.name.to_owned(), object);
        }
        for (own, name) in NODES.iter().enumerate() {
            let addresses = self.outer.map(|ends| ends[own]).to_vec();
            world.nodes.insert((*name).to_owned(), addresses);
        }
        let from = json!([{"podSelector": {"matchLabels": {"app": welcome}}}]);
        let ingress = json!([{"from": from, "ports": [{"protocol": "TCP", "port": 80}]}]);
        world.policy(
            "shop",
            "web",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress}),
        );
        world
    }

    /// The pods' packets between the nodes travel in a tunnel from now on. An error where the kernel has no such device.
    fn tunnel(&self, kind: &Kind) -> ringwall_testbed::Result<()> {
        for (own, node) in self.nodes.iter().enumerate() {
            if node
                .read("/proc/thread-self/net/dev")
                .unwrap()
                .contains("tunnel:")
            {
                node.ip(&["link del tunnel"]).unwrap();
            }
            let far = 1 - own;
            let ends = self.outer[usize::from(kind.outer_v6)];
            let fill = |text: &str| {
                text.replace("LOCAL", &ends[own].to_string())
                    .replace("REMOTE", &ends[far].to_string())
            };
            node.ip(&[format!("link add tunnel type {}", fill(kind.device))])?;
            let mut lines = vec![
                format!("address add 10.200.0.{}/24 dev tunnel", own + 1),
                format!("address add fd00:200::{}/64 dev tunnel nodad", own + 1),
                "link set tunnel up".to_owned(),
            ];
            if !kind.route.is_empty() {
                // Nothing says where a question for the neighbour's Ethernet address would go.
                lines.extend([
                    format!("link set tunnel address 02:00:00:00:02:0{}", own + 1),
                    format!(
                        "neigh add 10.200.0.{} lladdr 02:00:00:00:02:0{} dev tunnel",
                        far + 1,
                        far + 1
                    ),
                    format!(
                        "neigh add fd00:200::{} lladdr 02:00:00:00:02:0{} dev tunnel",
                        far + 1,
                        far + 1
                    ),
                ]);
            }
            for pod in self.pods.iter().filter(|pod| pod.node == far) {
                let route = fill(kind.route);
                for address in pod.addresses {
                    let (length, via) = match address {
                        IpAddr::V4(_) => (32, format!("10.200.0.{}", far + 1)),
                        IpAddr::V6(_) => (128, format!("fd00:200::{}", far + 1)),
                    };
                    lines.push(format!(
                        "route replace {address}/{length} {route} via {via} dev tunnel"
                    ));
                }
            }
            node.ip(&lines).unwrap();
        }
        Ok(())
    }

    /// Packets that came out of the tunnel at a node.
    fn unpacked(&self, node: usize) -> u64 {
        let devices = self.nodes[node].read("/proc/thread-self/net/dev").unwrap();
        let line = devices
            .lines()
            .find_map(|line| line.trim().strip_prefix("tunnel:"));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap()
            .parse()
            .unwrap()
    }

    /// What becomes of attempts that are made all at once.
    fn outcomes(&self, tries: &[(&str, &str, Service)], v6: bool, within: Duration) -> Vec<Outcome> {
        let attempts: Vec<Attempt<'_>> = tries
            .iter()
            .map(|(from, to, service)| Attempt {
                from: &self.pod(from).ns,
                source: Some(self.pod(from).addresses[usize::from(v6)]),
                to: self.pod(to).addresses[usize::from(v6)],
                service: *service,
            })
            .collect();
        attempt_all(&attempts, within).unwrap()
    }

    /// A connection from one pod to another's port 80 on which the server sends back what it gets.
    fn conversation(&self, from: &str, to: &str, v6: bool) -> Conversation {
        let source = self.pod(from).addresses[usize::from(v6)];
        let to = SocketAddr::new(self.pod(to).addresses[usize::from(v6)], 80);
        let opened = self.pod(from).ns.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok::<_, std::io::Error>(TcpStream::from(socket))
        });
        let mut stream = opened.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /echo HTTP/1.0\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        Conversation(stream)
    }
}

struct Conversation(TcpStream);

impl Conversation {
    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Whether a word comes back in time.
    fn says(&mut self, word: &[u8; 4], within: Duration) -> bool {
        let mut back = [0; 4];
        self.0.set_read_timeout(Some(within)).unwrap();
        self.0.write_all(word).is_ok() && self.0.read_exact(&mut back).is_ok() && back == *word
    }
}

/// Records of `ringwall flows`.
fn records(firewall: &Appliance, dropped: bool) -> Vec<Value> {
    let config = firewall.config.to_string_lossy();
    let mut arguments = vec![
        "flows", "--config", &config, "--policy", "shop/web", "--limit", "0", "-o", "json",
    ];
    if dropped {
        arguments.push("--dropped");
    }
    let output = firewall.ringwall(&arguments).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Waits for a record of the policy `shop/web` about packets of one pod to it that fits.
fn wait_for_record(
    firewall: &Appliance,
    what: &str,
    dropped: bool,
    from: &str,
    fits: impl Fn(&Value) -> bool,
) {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = records(firewall, dropped);
        let found = all.iter().any(|record| {
            record["src_pod"] == from
                && record["dst_pod"] == "shop/web"
                && record["reasons"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|it| it["policy"] == "shop/web")
                && fits(record)
        });
        if found {
            return;
        }
        assert!(Instant::now() < end, "{what}: no such record in {all:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const HTTP: Service = Service::Tcp(80);
const DNS: Service = Service::Udp(53);
/// What passes as long as `shop/far` is welcome, and what does not, with the port and protocol that its drop has.
const PASSES: [(&str, &str, Service); 3] = [
    ("shop/far", "shop/web", HTTP),
    ("shop/web", "shop/far", HTTP),
    ("shop/web", "shop/other", DNS),
];
const DROPS: [((&str, &str, Service), u64, u64); 2] = [
    (("shop/far", "shop/web", DNS), 17, 53),
    (("shop/other", "shop/web", HTTP), 6, 80),
];
/// How long what should not arrive gets. Its drop is waited for besides.
const SILENCE: Duration = Duration::from_millis(700);

fn judged_inside(overlay: &Overlay, firewall: &Appliance, kind: &Kind, v6: bool) {
    let what = format!("{:?}, {}, IPv6 inside: {v6}", overlay.bed.role, kind.name);
    let before = [0, 1].map(|node| overlay.unpacked(node));
    let tunnelled = || {
        firewall.status().unwrap()["dataplane"]["tunnelled"][kind.word]
            .as_u64()
            .unwrap()
    };
    let counted = tunnelled();
    let outcomes = overlay.outcomes(&PASSES, v6, PATIENCE / 3);
    assert!(
        outcomes.iter().all(Outcome::answered),
        "{what}: {outcomes:?}; drops {}",
        firewall.status().unwrap()["dataplane"]["drops"]
    );
    let outcomes = overlay.outcomes(&DROPS.map(|(it, ..)| it), v6, SILENCE);
    assert!(
        outcomes.iter().all(|it| *it == Outcome::Silence),
        "{what}: {outcomes:?}"
    );
    for ((from, ..), protocol, port) in DROPS {
        wait_for_record(firewall, &what, true, from, |drop| {
            drop["tunnel"] == kind.word
                && drop["protocol"] == protocol
                && drop["dst_port"] == port
                && drop["src"].as_str().unwrap().contains(':') == v6
        });
    }

    // A connection that is there when the policy changes.
    let mut cut = overlay.conversation("shop/far", "shop/web", v6);
    let mut stays = overlay.conversation("shop/web", "shop/far", v6);
    for one in [&mut cut, &mut stays] {
        assert!(
            one.says(b"one.", PATIENCE) && one.says(b"two.", PATIENCE),
            "{what}"
        );
    }
    wait_for_record(firewall, &what, false, "shop/far", |flow| {
        flow["src_port"] == cut.port() && flow["state"] == "tcp-established"
    });
    overlay.world("other").apply(firewall).unwrap();
    assert!(
        !cut.says(b"cut?", SILENCE),
        "{what}: the policy that denies it is in force"
    );
    wait_for_record(firewall, &what, true, "shop/far", |drop| {
        drop["src_port"] == cut.port() && drop["tunnel"] == kind.word
    });
    assert!(stays.says(b"stay", PATIENCE), "{what}");
    let welcome = overlay.outcomes(&[("shop/other", "shop/web", HTTP)], v6, PATIENCE / 3);
    assert!(welcome[0].answered(), "{what}: {welcome:?}");
    overlay.world("far").apply(firewall).unwrap();

    let after = [0, 1].map(|node| overlay.unpacked(node));
    assert!(
        after[0] > before[0] && after[1] > before[1],
        "{what}: {before:?} {after:?} packets in tunnels"
    );
    // Neighbours that are looked for are not packets that are judged.
    assert!(tunnelled() > counted, "{what}: {counted}");
}

fn every_kind(role: Role) {
    let overlay = Overlay::new(role);
    let objects = overlay.world("far").objects();
    let firewall = Appliance::start(
        &overlay.bed,
        &built_binary().unwrap(),
        &Options::default(),
        &objects,
    )
    .unwrap();
    let is_required = std::env::var("REQUIRE_TUNNELS").is_ok_and(|value| value == "1");
    let mut judged = Vec::new();
    for kind in &KINDS {
        if let Err(error) = overlay.tunnel(kind) {
            assert!(!is_required, "{} (REQUIRE_TUNNELS=1): {error}", kind.name);
            eprintln!("SKIPPED {}: {error}", kind.name);
            continue;
        }
        for v6 in kind.inner_v6 {
            judged_inside(&overlay, &firewall, kind, *v6);
        }
        judged.push(kind.name);
    }
    assert!(judged.contains(&"VXLAN"), "{role:?}: {judged:?}");
}

#[test]
fn a_wire_judges_what_is_inside_of_every_kernel_tunnel() {
    let Some(_alone) = runs_here("kernel tunnels across a wire") else {
        return;
    };
    every_kind(Role::Wire);
}

#[test]
fn a_router_judges_what_is_inside_of_every_kernel_tunnel() {
    let Some(_alone) = runs_here("kernel tunnels across a router") else {
        return;
    };
    every_kind(Role::Routed);
}
