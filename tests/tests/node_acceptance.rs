//! A node beside Services, several uplinks and names of ports, and the public truth tables, on real packets.
//!
//! Nothing here is silent for a while and so believed to be dropped: what must not arrive is counted where it drops.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, built_binary},
    manifests::{self, Labels},
    netns::Netns,
    preflight::runs_here,
    topology::{Bed, EXTERNAL_MORE, GATEWAY, Member, Plan, Role, pod_addresses},
    world::World,
};
use serde::Deserialize;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// Node ports whose backends are on another node.
#[path = "node_acceptance/remote_backends.rs"]
mod remote_backends;

/// Floods of first packets.
#[path = "node_acceptance/floods.rs"]
mod floods;

/// Random clusters and random translation.
#[path = "node_acceptance/random_clusters.rs"]
mod random_clusters;

const BOTH: [Role; 2] = [Role::Node, Role::Bridge];

fn start(bed: &Bed, world: &World) -> Appliance {
    let options = Options {
        more: "conntrack: {maxEntries: 16384}\n".to_owned(), // less to make at each start
        ..Options::default()
    };
    Appliance::start(bed, &built_binary().unwrap(), &options, &world.objects()).unwrap()
}

fn run(bed: &Bed, line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = bed.gateway.output(command).unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn outcome(firewall: &Appliance, name: &str) -> u64 {
    firewall.status().unwrap()["dataplane"]["node"]["outcomes"][name]
        .as_u64()
        .unwrap()
}

/// Packets that policy, or what came of it before, has dropped. Each is counted once.
fn denied(firewall: &Appliance) -> u64 {
    let status = firewall.status().unwrap();
    let drops = &status["dataplane"]["drops"];
    [
        "policy-ingress",
        "policy-egress",
        "exit-denied",
        "pod-denied",
        "exit-ask-limit",
        "pod-ask-limit",
        "exit-ask-queue",
        "pod-ask-queue",
    ]
    .iter()
    .map(|reason| drops[reason].as_u64().unwrap_or(0))
    .sum()
}

/// What a pod listens on.
struct Listener {
    datagrams: Vec<(u16, UdpSocket)>,
    streams: Vec<(u16, TcpListener)>,
}

impl Listener {
    fn new(member: &Member, ports: &[u16]) -> Self {
        member
            .ns
            .run(|| {
                let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                let datagrams = ports
                    .iter()
                    .map(|&port| (port, UdpSocket::bind(any(port)).unwrap()));
                let streams = ports
                    .iter()
                    .map(|&port| (port, TcpListener::bind(any(port)).unwrap()));
                let made = Self {
                    datagrams: datagrams.collect(),
                    streams: streams.collect(),
                };
                made.datagrams
                    .iter()
                    .for_each(|(_, socket)| socket.set_nonblocking(true).unwrap());
                made.streams
                    .iter()
                    .for_each(|(_, socket)| socket.set_nonblocking(true).unwrap());
                made
            })
            .unwrap()
    }

    /// Numbers of datagrams that have come, with their port.
    fn received(&self) -> Vec<(u32, u16)> {
        let mut all = Vec::new();
        for (port, socket) in &self.datagrams {
            let mut number = [0; 4];
            while socket.recv(&mut number).is_ok() {
                all.push((u32::from_be_bytes(number), *port));
            }
        }
        for (_, socket) in &self.streams {
            while socket.accept().is_ok() {}
        }
        all
    }
}

/// A datagram, or a connection, from one pod to an address.
struct Flow {
    from: usize,
    to: SocketAddr,
    is_tcp: bool,
    /// The pod that gets it, and the port there; None: no pod does.
    arrives: Option<(usize, u16)>,
}

/// Sends all at once and answers what came otherwise than wanted, when every one has arrived or has been dropped.
fn volley(bed: &Bed, firewall: &Appliance, listeners: &[Listener], flows: &[Flow]) -> Vec<String> {
    listeners.iter().for_each(|listener| drop(listener.received()));
    let before = denied(firewall);
    let mut connecting: Vec<(usize, Socket)> = Vec::new();
    let mut sockets = Vec::new();
    for (from, member) in bed.pods.iter().enumerate() {
        let own = flows.iter().enumerate().filter(|(_, flow)| flow.from == from);
        let made = member.ns.run(|| {
            own.map(|(number, flow)| {
                let kind = if flow.is_tcp { Type::STREAM } else { Type::DGRAM };
                let socket = Socket::new(Domain::for_address(flow.to), kind, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                match socket.connect(&flow.to.into()) {
                    Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
                        panic!("{}: {error}", flow.to)
                    }
                    _ => {}
                }
                if !flow.is_tcp {
                    socket.send(&(number as u32).to_be_bytes()).unwrap();
                }
                (number, flow.is_tcp, socket)
            })
            .collect::<Vec<_>>()
        });
        for (number, is_tcp, socket) in made.unwrap() {
            if is_tcp {
                connecting.push((number, socket));
            } else {
                sockets.push(socket);
            }
        }
    }
    let wanted: BTreeMap<u32, (usize, u16)> = flows
        .iter()
        .enumerate()
        .filter_map(|(number, flow)| Some((number as u32, flow.arrives?)))
        .collect();
    let refused = (flows.len() - wanted.len()) as u64;
    let mut arrived: BTreeMap<u32, (usize, u16)> = BTreeMap::new();
    let mut look = || {
        for (pod, listener) in listeners.iter().enumerate() {
            arrived.extend(
                listener
                    .received()
                    .into_iter()
                    .map(|(number, port)| (number, (pod, port))),
            );
        }
        for (number, socket) in &connecting {
            let is_open = socket.peer_addr().is_ok() && matches!(socket.take_error(), Ok(None));
            if is_open {
                // Who took it is shown by the datagrams.
                let flow = &flows[*number];
                arrived.insert(*number as u32, flow.arrives.unwrap_or((usize::MAX, 0)));
            }
        }
        arrived.clone()
    };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let so_far = look();
        if wanted.keys().all(|number| so_far.contains_key(number)) && denied(firewall) >= before + refused {
            break;
        }
        thread::sleep(Duration::from_millis(3));
    }
    let arrived = look();
    let numbers: BTreeSet<u32> = wanted.keys().chain(arrived.keys()).copied().collect();
    let different = numbers
        .into_iter()
        .filter(|number| wanted.get(number) != arrived.get(number));
    let mut words: Vec<String> = different
        .map(|number| {
            let flow = &flows[number as usize];
            let (wanted, got) = (wanted.get(&number), arrived.get(&number));
            format!(
                "{} -> {} {}: wanted {wanted:?}, got {got:?}",
                bed.pods[flow.from].name,
                flow.to,
                if flow.is_tcp { "TCP" } else { "UDP" },
            )
        })
        .collect();
    let dropped = denied(firewall) - before;
    if dropped < refused {
        words.push(format!("{dropped} dropped of {refused}"));
    }
    words
}

// ---------------------------------------------------------------- truth tables

#[derive(Deserialize)]
struct Case {
    description: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<TestPod>,
    policies: Vec<Value>,
    columns: Vec<String>,
    combined: Vec<Table>,
}

#[derive(Deserialize)]
struct TestPod {
    namespace: String,
    name: String,
    labels: Labels,
}

#[derive(Deserialize)]
struct Table {
    port: u16,
    protocol: String,
    rows: BTreeMap<String, String>,
}

/// The truth tables, beside the workspace.
fn truth() -> Option<Vec<Case>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/cyclonus-truth.json.gz");
    if !path.exists() {
        println!("SKIPPED: {} is not there", path.display());
        return None;
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// The Service address of a pod.
fn vip(pod: usize, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x112, 0, 0, 0, 0, 1, pod as u16 + 10).into()
    } else {
        [10, 112, 1, pod as u8 + 10].into()
    }
}

impl Step {
    fn world(&self, bed: &Bed) -> World {
        let mut world = World::of(bed);
        world.namespaces.clone_from(&self.namespaces);
        for pod in &self.pods {
            let known = world
                .pods
                .get_mut(&format!("{}/{}", pod.namespace, pod.name))
                .unwrap();
            known.labels.clone_from(&pod.labels);
            known.ports = [80, 81]
                .into_iter()
                .flat_map(|port| [(port, "tcp", "TCP"), (port, "udp", "UDP")])
                .map(|(port, name, protocol)| (format!("serve-{port}-{name}"), port, protocol))
                .collect();
        }
        world.policies = self
            .policies
            .iter()
            .map(|policy| {
                // Some of the cases leave it to their client to say what this is.
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                       "metadata": policy["metadata"], "spec": policy["spec"]})
            })
            .collect();
        world
    }

    /// Every pair but a pod with itself, direct and by Service.
    fn flows(&self, bed: &Bed) -> Vec<Flow> {
        let index = |name: &str| bed.pods.iter().position(|pod| pod.name == name).unwrap();
        let mut flows = Vec::new();
        for table in self.combined.iter().filter(|table| table.protocol != "SCTP") {
            for (from, row) in &table.rows {
                for (to, verdict) in self.columns.iter().zip(row.chars()).filter(|(to, _)| *to != from) {
                    let (from, to) = (index(from), index(to));
                    let arrives = (verdict == '.').then_some((to, table.port));
                    let (v4, v6) = pod_addresses(to);
                    let is_tcp = table.protocol == "TCP";
                    for (address, port) in [
                        (v4.into(), table.port),
                        (v6.into(), table.port),
                        (vip(to, false), 8000 + table.port),
                        (vip(to, true), 8000 + table.port),
                    ] {
                        // Connections to one port are enough: they take a listener's whole queue.
                        if !is_tcp || table.port == 80 {
                            let to = SocketAddr::new(address, port);
                            flows.push(Flow {
                                from,
                                to,
                                is_tcp,
                                arrives,
                            });
                        }
                    }
                }
            }
        }
        flows
    }
}

#[test]
fn public_truth_tables_hold_on_real_packets_direct_and_by_service() {
    let Some(_alone) = runs_here("truth tables on a node") else {
        return;
    };
    let Some(cases) = truth() else {
        return;
    };
    // Peers of the cases' own addresses are not in this bed.
    let known: Vec<&Case> = cases
        .iter()
        .filter(|case| {
            case.steps
                .iter()
                .all(|step| !json!(step.policies).to_string().contains("ipBlock"))
        })
        .filter(|case| case.steps.iter().all(|step| step.pods.len() == 9))
        .collect();
    assert!(known.len() > 150, "{}", known.len());
    for (role, first) in BOTH.into_iter().zip([0, 9]) {
        let plans: Vec<Plan> = ["x", "y", "z"]
            .iter()
            .flat_map(|namespace| {
                ["a", "b", "c"].map(|name| Plan {
                    tcp: Vec::new(),
                    udp: Vec::new(),
                    ..Plan::new(&format!("{namespace}/{name}"))
                })
            })
            .collect();
        let bed = Bed::new(role, &plans, 1).unwrap();
        let mut rules = String::new();
        for pod in 0..plans.len() {
            let (v4, v6) = pod_addresses(pod);
            for port in [80, 81] {
                for (family, vip, to) in [
                    ("ip", vip(pod, false), v4.to_string()),
                    ("ip6", vip(pod, true), format!("[{v6}]")),
                ] {
                    rules += &format!(
                        "{family} daddr {vip} meta l4proto {{ tcp, udp }} th dport {} dnat {family} to {to}:{port}\n",
                        8000 + port
                    );
                }
            }
        }
        bed.translate(&format!(
            "table inet proxy {{ chain before {{ type nat hook prerouting priority dstnat;\n{rules} }}; }}"
        ))
        .unwrap();
        let listeners: Vec<Listener> = bed.pods.iter().map(|pod| Listener::new(pod, &[80, 81])).collect();
        let firewall = start(&bed, &World::of(&bed));
        let mut verdicts = [0, 0];
        for case in known.iter().skip(first).step_by(18) {
            for step in &case.steps {
                step.world(&bed).apply(&firewall).unwrap();
                let flows = step.flows(&bed);
                for flow in &flows {
                    verdicts[usize::from(flow.arrives.is_some())] += 1;
                }
                let different = volley(&bed, &firewall, &listeners, &flows);
                assert!(
                    different.is_empty(),
                    "{role:?}, {}: {} of {}\n{}",
                    case.description,
                    different.len(),
                    flows.len(),
                    different.join("\n")
                );
            }
        }
        println!("{role:?}: {} denied, {} allowed", verdicts[0], verdicts[1]);
        assert!(verdicts.iter().all(|count| *count > 500), "{verdicts:?}");
    }
}

// ---------------------------------------------------------------- Services

/// Two backends whose port has the same name and another number, node ports, addresses from outside.
const SERVICES: &str = "
table inet proxy {
    chain services {
        ip daddr 10.112.0.10 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.111.0.10:8080
        ip daddr 10.112.0.10 meta l4proto { tcp, udp } th dport 81 dnat ip to 10.111.0.11:9090
        ip daddr 10.112.0.10 meta l4proto { tcp, udp } th dport 82 dnat ip to 10.111.0.11:8080
        ip6 daddr fd00:112::10 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd00:111::a]:8080
        ip6 daddr fd00:112::10 meta l4proto { tcp, udp } th dport 81 dnat ip6 to [fd00:111::b]:9090
        ip6 daddr fd00:112::10 meta l4proto { tcp, udp } th dport 82 dnat ip6 to [fd00:111::b]:8080
    }
    chain before {
        type nat hook prerouting priority dstnat;
        jump services
        ip daddr { 192.0.2.1, 198.51.100.50, 198.51.100.51 } tcp dport 30080 dnat ip to 10.111.0.10:8080
        ip6 daddr 2001:db8::1 tcp dport 30080 dnat ip6 to [fd00:111::a]:8080
        ip daddr 192.0.2.1 tcp dport 30082 dnat ip to 10.111.0.10:8080
        ip6 daddr 2001:db8::1 tcp dport 30082 dnat ip6 to [fd00:111::a]:8080
    }
    chain own { type nat hook output priority -100; jump services; }
    chain after {
        type nat hook postrouting priority srcnat;
        iifname uplink meta l4proto tcp ct original proto-dst 30080 masquerade
        ip saddr 10.111.0.10 ip daddr 10.111.0.10 masquerade
        ip6 saddr fd00:111::a ip6 daddr fd00:111::a masquerade
        ip saddr 10.111.0.0/16 oifname uplink masquerade
        ip6 saddr fd00:111::/48 oifname uplink masquerade
    }
    chain refuse {
        type filter hook forward priority 0;
        ip daddr 10.112.0.77 reject
        ip6 daddr fd00:112::77 reject
    }
}
";

fn services_bed(role: Role) -> Bed {
    let quiet = |name: &str| Plan {
        tcp: Vec::new(),
        udp: Vec::new(),
        ..Plan::new(name)
    };
    let plans = [
        quiet("shop/web-1"),
        quiet("shop/web-2"),
        quiet("shop/client"),
        quiet("ops/probe"),
    ];
    let bed = Bed::new(role, &plans, 1).unwrap();
    bed.translate(SERVICES).unwrap();
    bed
}

#[test]
fn a_service_is_judged_by_each_backends_own_number_of_a_named_port() {
    let Some(_alone) = runs_here("named ports on a node") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        let listeners: Vec<Listener> = bed
            .pods
            .iter()
            .map(|pod| Listener::new(pod, &[8080, 9090]))
            .collect();
        let mut world = World::of(&bed);
        for (pod, number) in [("shop/web-1", 8080), ("shop/web-2", 9090)] {
            let pod = world.pods.get_mut(pod).unwrap();
            pod.labels = manifests::labels([("app", "web")]);
            pod.ports = vec![
                ("http".to_owned(), number, "TCP"),
                ("http-udp".to_owned(), number, "UDP"),
            ];
        }
        world.policy(
            "shop",
            "http",
            json!({"podSelector": {"matchLabels": {"app": "web"}},
                   "ingress": [{"ports": [{"port": "http"}, {"port": "http-udp", "protocol": "UDP"}]}]}),
        );
        let firewall = start(&bed, &world);
        let mut flows = Vec::new();
        for is_tcp in [false, true] {
            for (web, port, wanted) in [
                (0, 8080, true),
                (0, 9090, false),
                (1, 9090, true),
                (1, 8080, false),
            ] {
                for v6 in [false, true] {
                    let to = SocketAddr::new(bed.pods[web].address(v6), port);
                    let arrives = wanted.then_some((web, port));
                    flows.extend([2, 3].map(|from| Flow {
                        from,
                        to,
                        is_tcp,
                        arrives,
                    }));
                }
            }
            for address in ["10.112.0.10", "fd00:112::10"] {
                for (port, arrives) in [(80, Some((0, 8080))), (81, Some((1, 9090))), (82, None)] {
                    let to = SocketAddr::new(address.parse().unwrap(), port);
                    flows.extend([2, 3].map(|from| Flow {
                        from,
                        to,
                        is_tcp,
                        arrives,
                    }));
                }
            }
        }
        let different = volley(&bed, &firewall, &listeners, &flows);
        assert!(different.is_empty(), "{role:?}\n{}", different.join("\n"));

        // The names change places: whoever was let in is not any more.
        for (pod, number) in [("shop/web-1", 9090), ("shop/web-2", 8080)] {
            world.pods.get_mut(pod).unwrap().ports = vec![
                ("http".to_owned(), number, "TCP"),
                ("http-udp".to_owned(), number, "UDP"),
            ];
        }
        world.apply(&firewall).unwrap();
        for flow in &mut flows {
            let is_service = flow.to.port() < 100;
            flow.arrives = match (is_service, flow.to.port(), flow.arrives) {
                (true, 82, _) => Some((1, 8080)),
                (true, ..) => None,
                (_, port, None) => {
                    let pod = bed
                        .pods
                        .iter()
                        .position(|pod| [pod.address(false), pod.address(true)].contains(&flow.to.ip()));
                    Some((pod.unwrap(), port))
                }
                (.., Some(_)) => None,
            };
        }
        let different = volley(&bed, &firewall, &listeners, &flows);
        assert!(
            different.is_empty(),
            "{role:?}, changed\n{}",
            different.join("\n")
        );
    }
}

/// A server that says whom it sees, and how much it got.
struct Mirror;

impl Mirror {
    fn start(member: &Member, port: u16) {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (streams, datagrams) = member
            .ns
            .run(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()))
            .unwrap();
        // They end with the test's process.
        thread::spawn(move || {
            for stream in streams.incoming().map_while(Result::ok) {
                thread::spawn(move || Self::answer(stream));
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 9000];
            while let Ok((count, from)) = datagrams.recv_from(&mut bytes) {
                let mut answer = format!("{} sent {count}", from.ip().to_canonical()).into_bytes();
                answer.resize(count.max(answer.len()), b' ');
                let _ = datagrams.send_to(&answer, from);
            }
        });
    }

    fn answer(mut stream: TcpStream) -> io::Result<()> {
        let from = stream.peer_addr()?.ip().to_canonical();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        stream.write_all(format!("{from} sent {}", bytes.len()).as_bytes())?;
        stream.write_all(&vec![b' '; bytes.len()])
    }

    /// What comes back for so many bytes, and how many.
    fn ask(from: &Netns, source: Option<IpAddr>, to: SocketAddr, bytes: usize, is_tcp: bool) -> String {
        let exchange = || -> io::Result<String> {
            let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::for_address(to), kind, None)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            if let Some(source) = source {
                socket.bind(&SocketAddr::new(source, 0).into())?;
            }
            socket.connect_timeout(&to.into(), PATIENCE)?;
            let mut back = Vec::new();
            if is_tcp {
                let mut stream = TcpStream::from(socket);
                stream.write_all(&vec![b'x'; bytes])?;
                stream.shutdown(std::net::Shutdown::Write)?;
                stream.read_to_end(&mut back)?;
            } else {
                socket.send(&vec![b'x'; bytes])?;
                back.resize(9000, 0);
                let count = (&socket).read(&mut back)?;
                back.truncate(count);
            }
            let words = String::from_utf8_lossy(&back);
            Ok(format!("{}, {} back", words.trim_end(), back.len()))
        };
        from.run(|| exchange().unwrap_or_else(|error| format!("{:?}", error.kind())))
            .unwrap()
    }
}

#[test]
fn services_answer_as_without_ringwall_to_the_byte() {
    let Some(_alone) = runs_here("Services with and without ringwall") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        Mirror::start(&bed.pods[0], 8080);
        Mirror::start(&bed.pods[1], 9090);
        Mirror::start(&bed.external, 7000);
        let ask_all = || {
            let (client, web, external) = (&bed.pods[2], &bed.pods[0], &bed.external);
            let address = |text: &str| -> IpAddr { text.parse().unwrap() };
            let mut answers = Vec::new();
            for (vip, empty, node, outside, closed) in [
                (
                    "10.112.0.10",
                    "10.112.0.77",
                    "192.0.2.1",
                    "192.0.2.10",
                    "10.111.0.13",
                ),
                (
                    "fd00:112::10",
                    "fd00:112::77",
                    "2001:db8::1",
                    "2001:db8::10",
                    "fd00:111::d",
                ),
            ] {
                let at = |text: &str, port| SocketAddr::new(address(text), port);
                for (bytes, is_tcp) in [
                    (10, false),
                    (1400, false),
                    (3000, false),
                    (0, true),
                    (300_000, true),
                ] {
                    for (what, from, to) in [
                        ("Service", client, at(vip, 80)),
                        ("Service, other backend", client, at(vip, 81)),
                        ("itself", web, at(vip, 80)),
                        ("out", client, at(outside, 7000)),
                    ] {
                        let answer = Mirror::ask(&from.ns, None, to, bytes, is_tcp);
                        answers.push(format!("{what} {to} {bytes} {is_tcp}: {answer}"));
                    }
                    if is_tcp {
                        for port in [30080, 30082] {
                            let answer = Mirror::ask(&external.ns, None, at(node, port), bytes, true);
                            answers.push(format!("node port {port} {node} {bytes}: {answer}"));
                        }
                    }
                }
                let refused = [
                    ("without backends", at(empty, 80), true),
                    ("closed", at(closed, 9), true),
                    ("closed", at(closed, 9), false),
                ];
                for (what, to, is_tcp) in refused {
                    let answer = Mirror::ask(&client.ns, None, to, 5, is_tcp);
                    answers.push(format!("{what} {to} {is_tcp}: {answer}"));
                }
            }
            answers
        };
        let without = ask_all();
        let answered = without.iter().filter(|answer| answer.ends_with("back")).count();
        assert!(answered >= 48, "{answered}: {without:#?}");
        let firewall = start(&bed, &World::of(&bed));
        assert_eq!(ask_all(), without, "{role:?}");
        assert!(outcome(&firewall, "exit-asked") > 0);
    }
}

#[test]
fn from_outside_the_client_is_judged_whatever_address_it_used() {
    let Some(_alone) = runs_here("node ports and external addresses") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        Mirror::start(&bed.pods[0], 8080);
        // Addresses of a load balancer, and an external one, that are routed to the node.
        bed.gateway.ip(&["address add 198.51.100.51/32 dev lo"]).unwrap();
        let mut world = World::of(&bed);
        world.policy(
            "shop",
            "one-client",
            json!({"podSelector": {"matchLabels": {"app": "web-1"}},
                   "ingress": [{"from": [{"ipBlock": {"cidr": format!("{}/32", EXTERNAL_MORE[5])}},
                                         {"ipBlock": {"cidr": "2001:db8::10/128"}}]}]}),
        );
        world.policies.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"type": "NodePort", "clusterIP": "10.112.0.10", "clusterIPs": ["10.112.0.10"],
                     "externalIPs": ["198.51.100.50"], "selector": {"app": "web-1"},
                     "ports": [{"port": 30080, "targetPort": 8080, "nodePort": 30080, "protocol": "TCP"}]},
        }));
        let firewall = start(&bed, &world);
        let node = GATEWAY.to_string();
        for (frontend, port) in [
            (node.as_str(), 30080), // as its cluster policy is: the node's address stands for the client
            ("198.51.100.50", 30080),
            ("198.51.100.51", 30080),
            (node.as_str(), 30082), // as its local policy, or a host port, is: the client is seen
        ] {
            let to = SocketAddr::new(frontend.parse().unwrap(), port);
            let answer = Mirror::ask(&bed.external.ns, Some(EXTERNAL_MORE[5].into()), to, 10, true);
            let seen: &str = if port == 30080 {
                "sent 10"
            } else {
                "203.0.113.10 sent 10"
            };
            assert!(answer.contains(seen), "{role:?}: {to}: {answer}");
            // From another address of the same client: counted where it drops.
            let before = denied(&firewall);
            let other = EXTERNAL_MORE[4];
            let sent = bed.external.ns.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(other.into(), 0).into()).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&to.into());
                socket
            });
            let sent = sent.unwrap();
            firewall
                .wait_until("the connection is denied", |_| denied(&firewall) > before)
                .unwrap();
            assert!(sent.peer_addr().is_err(), "{role:?}: {to}");
        }
        // Flows have the name of the Service that the client used, and what this node decided alone.
        let config = firewall.config.to_string_lossy().into_owned();
        let said = firewall
            .ringwall(&["flows", "--config", &config, "-o", "json"])
            .unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let flows: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for (address, name) in [(node.as_str(), "shop/web"), ("198.51.100.50", "shop/web")] {
            let flow = flows
                .iter()
                .find(|flow| flow["frontend"] == address && flow["frontend_port"] == 30080)
                .unwrap_or_else(|| panic!("no flow by {address} in {said}"));
            assert_eq!(flow["frontend_service"], name, "{role:?}: {flow}");
            let directions: Vec<&Value> = flow["reasons"]
                .as_array()
                .unwrap()
                .iter()
                .map(|reason| &reason["direction"])
                .collect();
            assert_eq!(directions, ["ingress"], "{role:?}: {flow}");
        }
        // The policy's other family stands for itself.
        let six = SocketAddr::new("2001:db8::1".parse().unwrap(), 30082);
        let answer = Mirror::ask(&bed.external.ns, None, six, 10, true);
        assert!(answer.starts_with("2001:db8::10 sent 10"), "{role:?}: {answer}");
    }
}

#[test]
fn a_replaced_backend_of_a_datagram_service_is_judged_anew() {
    let Some(_alone) = runs_here("a replaced backend on a node") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        Mirror::start(&bed.pods[0], 8080);
        Mirror::start(&bed.pods[1], 9090);
        // An entry ends a second after its last packet, as kube-proxy ends it by hand.
        run(
            &bed,
            "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1 net.netfilter.nf_conntrack_udp_timeout_stream=1",
        );
        let mut world = World::of(&bed);
        world.policy(
            "shop",
            "not-from-clients",
            json!({"podSelector": {"matchLabels": {"app": "web-2"}},
                   "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web-1"}}}]}]}),
        );
        let firewall = start(&bed, &world);
        let client = &bed.pods[2];
        let socket = client
            .ns
            .run(|| UdpSocket::bind("0.0.0.0:5555").unwrap())
            .unwrap();
        socket.connect("10.112.0.10:80").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut back = [0; 100];
        socket.send(b"one").unwrap();
        socket.recv(&mut back).unwrap();
        let rules = SERVICES
            .replace(
                "th dport 80 dnat ip to 10.111.0.10:8080",
                "th dport 80 dnat ip to 10.111.0.11:9090",
            )
            .replace("table inet proxy {", "flush table inet proxy\ntable inet proxy {");
        bed.translate(&rules).unwrap();
        socket.set_nonblocking(true).unwrap();
        let before = denied(&firewall);
        let end = Instant::now() + PATIENCE;
        while denied(&firewall) == before {
            assert!(Instant::now() < end, "{role:?}: the new backend is never asked");
            // Longer apart than an entry lasts.
            thread::sleep(Duration::from_millis(1200));
            socket.send(b"two").unwrap();
        }
        while let Ok(count) = socket.recv(&mut back) {
            let said = String::from_utf8_lossy(&back[..count]).into_owned();
            assert!(said.contains("sent 3"), "{said}");
        }
        // It was the policy of the second backend that denied.
        world.policies.clear();
        world.apply(&firewall).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.send(b"three").unwrap();
        let count = socket.recv(&mut back).unwrap();
        assert!(String::from_utf8_lossy(&back[..count]).contains("sent 5"));
    }
}

#[test]
fn a_cache_of_names_on_the_node_answers_without_connection_tracking() {
    let Some(_alone) = runs_here("a name server of the node") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        bed.gateway.ip(&["address add 169.254.20.10/32 dev lo"]).unwrap();
        bed.translate(
            "table ip raw {
                chain in { type filter hook prerouting priority -300; ip daddr 169.254.20.10 notrack; }
                chain out { type filter hook output priority -300; ip saddr 169.254.20.10 notrack; }
            }",
        )
        .unwrap();
        let server = bed
            .gateway
            .run(|| UdpSocket::bind("169.254.20.10:53").unwrap())
            .unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((count, from)) = server.recv_from(&mut bytes) {
                let _ = server.send_to(&bytes[..count], from);
            }
        });
        let mut world = World::of(&bed);
        for namespace in ["shop", "ops"] {
            world.policy(
                namespace,
                "names-alone",
                json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                       "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}),
            );
        }
        let firewall = start(&bed, &world);
        let own = outcome(&firewall, "exit-own-stack");
        for pod in &bed.pods {
            let socket = pod.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect("169.254.20.10:53").unwrap();
            socket.send(b"who").unwrap();
            assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 3, "{role:?}: {}", pod.name);
        }
        assert!(outcome(&firewall, "exit-own-stack") >= own + 4);
    }
}

#[test]
fn what_leaves_by_a_second_uplink_is_judged_there() {
    let Some(_alone) = runs_here("two uplinks") else {
        return;
    };
    for role in BOTH {
        let bed = services_bed(role);
        Mirror::start(&bed.external, 7000);
        // As a cloud's CNI does it: who sends decides which interface it leaves by.
        bed.gateway
            .ip(&[
                format!(
                    "link add eth1 type veth peer name eth1 netns {}",
                    bed.external.ns.path()
                ),
                "link set eth1 up".to_owned(),
                "address add 198.18.0.1/24 dev eth1".to_owned(),
                "route add default via 198.18.0.2 dev eth1 table 101".to_owned(),
                "rule add from 10.111.0.12 lookup 101".to_owned(),
                "rule add from 10.111.0.13 lookup 101".to_owned(),
            ])
            .unwrap();
        bed.external
            .ns
            .ip(&[
                "link set eth1 up",
                "address add 198.18.0.2/24 dev eth1",
                "route add 10.111.0.0/24 via 198.18.0.1 dev eth1",
                "address add 203.0.113.200/32 dev lo",
            ])
            .unwrap();
        let mut world = World::of(&bed);
        world.policy(
            "shop",
            "one-place",
            json!({"podSelector": {}, "policyTypes": ["Egress"],
                   "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.200/32"}}]}]}),
        );
        let firewall = start(&bed, &world);
        let allowed: SocketAddr = "203.0.113.200:7000".parse().unwrap();
        let answer = Mirror::ask(&bed.pods[2].ns, None, allowed, 10, true);
        assert!(answer.starts_with("10.111.0.12 sent 10"), "{role:?}: {answer}");
        // Straight to the next hop, and to where nothing allows it; the first pod leaves by the other uplink.
        for (pod, to) in [
            (2, "198.18.0.2:7000"),
            (2, "203.0.113.10:7000"),
            (0, "203.0.113.10:7000"),
        ] {
            let before = denied(&firewall);
            let socket = bed.pods[pod]
                .ns
                .run(|| UdpSocket::bind("0.0.0.0:0").unwrap())
                .unwrap();
            socket.send_to(b"x", to.parse::<SocketAddr>().unwrap()).unwrap();
            firewall
                .wait_until("it is denied", |_| denied(&firewall) > before)
                .unwrap();
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0; 9]).is_err(), "{role:?}: {to}");
        }
        // A pod that no policy selects.
        let answer = Mirror::ask(
            &bed.pods[3].ns,
            None,
            "198.18.0.2:7000".parse().unwrap(),
            10,
            false,
        );
        assert!(answer.starts_with("10.111.0.13 sent 10"), "{role:?}: {answer}");
    }
}

#[test]
fn bulk_keeps_its_large_segments_and_every_mtu_its_size() {
    let Some(_alone) = runs_here("bulk and MTU on a node") else {
        return;
    };
    for (role, mtu) in [(Role::Bridge, 1450), (Role::Node, 8951)] {
        let bed = services_bed(role);
        Mirror::start(&bed.pods[0], 8080);
        for pod in &bed.pods {
            bed.gateway
                .ip(&[format!("link set {} mtu {mtu}", pod.port)])
                .unwrap();
            pod.ns.ip(&[format!("link set eth0 mtu {mtu}")]).unwrap();
        }
        let firewall = start(&bed, &World::of(&bed));
        let (client, web) = (&bed.pods[2], &bed.pods[0]);
        let fragments = || {
            let text = bed.gateway.read("/proc/thread-self/net/snmp").unwrap();
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Ip: ")).collect();
            let names = lines[0].split(' ').zip(lines[1].split(' '));
            names
                .filter(|(name, _)| ["FragOKs", "FragFails", "FragCreates"].contains(name))
                .map(|(_, count)| count.parse::<u64>().unwrap())
                .sum::<u64>()
        };
        let before = (fragments(), outcome(&firewall, "exit-hit"));
        let bytes = 16 << 20;
        for to in [
            "10.112.0.10:80".parse().unwrap(),
            SocketAddr::new(web.v6.into(), 8080),
        ] {
            let answer = Mirror::ask(&client.ns, None, to, bytes, true);
            assert!(answer.contains(&format!("sent {bytes}")), "{role:?}: {answer}");
        }
        assert_eq!(fragments(), before.0, "{role:?}");
        // Twice 16 MB each way, in frames of 1,450 bytes 46,000 of them, of 8,951 bytes 7,500.
        let frames = (4 * bytes / mtu) as u64;
        let hits = outcome(&firewall, "exit-hit") - before.1;
        assert!(
            hits < frames * 2 / 3,
            "{role:?}: {hits} packets for {frames} frames"
        );

        // As large as it may be.
        let largest = mtu - 28;
        for (to, largest) in [(web.address(false), largest), (web.address(true), largest - 20)] {
            let to = SocketAddr::new(to, 8080);
            // The first packet of a flow has to fit the way to the workers.
            if mtu < 3000 {
                let answer = Mirror::ask(&client.ns, None, to, largest, false);
                assert!(
                    answer.contains(&format!("sent {largest}, {largest} back")),
                    "{answer}"
                );
            }
        }
        assert_eq!(fragments(), before.0, "{role:?}");
        // A byte more than the link of the one that it is for takes: the node says so, and ringwall lets it say that.
        bed.gateway
            .ip(&[format!("link set {} mtu 1400", web.port)])
            .unwrap();
        let to = SocketAddr::new(web.v6.into(), 8080);
        if role == Role::Node {
            let refused = client.ns.run(|| {
                let socket = UdpSocket::bind("[::]:0").unwrap();
                setsockopt(&socket, sockopt::Ipv6DontFrag, &true).unwrap();
                socket.connect(to).unwrap();
                let end = Instant::now() + PATIENCE;
                loop {
                    match socket.send(&[0; 1400]) {
                        Err(error) => break error.raw_os_error(),
                        Ok(_) if Instant::now() > end => break None,
                        Ok(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
            assert_eq!(refused.unwrap(), Some(nix::libc::EMSGSIZE), "{role:?}");
        }
    }
}
