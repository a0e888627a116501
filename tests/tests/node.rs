//! A node whose kernel forwards: packets are judged where they leave, by the pods at their true ends.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use ringwall_testbed::{
    appliance::{Appliance, Options, PATIENCE, Signal, built_binary},
    preflight::runs_here,
    probe::{Outcome, Service, attempt},
    topology::{Bed, Plan, Role},
    world::{World, differences, wait_for_answer},
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
const ALT: Service = Service::Tcp(8080);
const DNS: Service = Service::Udp(53);
const ECHO: Service = Service::Echo;
const BOTH: [Role; 2] = [Role::Node, Role::Bridge];

fn bed(role: Role) -> Bed {
    let plans = [
        Plan::new("shop/web").tcp(&[8080]),
        Plan::new("ops/probe"),
        Plan::new("shop/client"),
        Plan::new("ops/db"),
    ];
    Bed::new(role, &plans, 1).unwrap()
}

fn start(bed: &Bed, world: &World) -> Appliance {
    let options = Options {
        more: "conntrack: {maxEntries: 16384}\n".to_owned(), // less to make at each start
        ..Options::default()
    };
    Appliance::start(bed, &built_binary().unwrap(), &options, &world.objects()).unwrap()
}

fn expect(bed: &Bed, wanted: &[(&str, &str, Service, bool)]) {
    let different = differences(bed, wanted).unwrap();
    assert!(different.is_empty(), "{:?}: {}", bed.role, different.join("\n"));
}

fn only_from(label: &str, value: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {label: value}}}]}],
    })
}

#[test]
fn policies_hold_between_pods_of_one_node_and_to_the_outside() {
    let Some(_alone) = runs_here("policies on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        let mut world = World::of(&bed);
        let firewall = start(&bed, &world);
        expect(
            &bed,
            &[
                ("shop/client", "shop/web", HTTP, true),
                ("ops/probe", "shop/web", DNS, true),
                ("shop/client", "shop/web", ECHO, true),
                ("external", "shop/web", HTTP, true),
                ("shop/web", "external", HTTP, true),
            ],
        );

        world.policy("shop", "only-friends", only_from("friend", "yes"));
        world.policy(
            "ops",
            "only-web",
            json!({"podSelector": {}, "policyTypes": ["Egress"],
                   "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}]}),
        );
        world.apply(&firewall).unwrap();
        expect(
            &bed,
            &[
                ("shop/client", "shop/web", HTTP, false),
                ("shop/client", "shop/web", ECHO, false),
                ("external", "shop/web", HTTP, false),
                ("shop/web", "external", HTTP, true),
                ("shop/client", "ops/db", HTTP, true),
                ("ops/db", "external", HTTP, false),
                ("ops/probe", "shop/web", HTTP, false),
            ],
        );

        world.label("shop/client", "friend", "yes").unwrap();
        world.apply(&firewall).unwrap();
        expect(
            &bed,
            &[
                ("shop/client", "shop/web", HTTP, true),
                ("shop/client", "shop/web", DNS, true),
                ("shop/client", "shop/web", ALT, true),
            ],
        );
        world.label("shop/client", "friend", "no").unwrap();
        world.apply(&firewall).unwrap();
        expect(&bed, &[("shop/client", "shop/web", HTTP, false)]);
    }
}

const WITHIN: Duration = Duration::from_millis(400);

/// Packets with an outcome in the programs in the kernel.
fn outcome(firewall: &Appliance, name: &str) -> u64 {
    firewall.status().unwrap()["dataplane"]["node"]["outcomes"][name]
        .as_u64()
        .unwrap()
}

/// What a pod, or the external client, meets at an address.
fn tries(bed: &Bed, from: &str, to: &str, service: Service) -> Outcome {
    let to: IpAddr = to.parse().unwrap();
    let from = bed.member(from).unwrap();
    from.ns.run(|| attempt(None, to, service, WITHIN)).unwrap()
}

const SERVICES: &str = "
table inet proxy {
    chain before {
        type nat hook prerouting priority dstnat;
        ip daddr 10.112.0.10 tcp dport 80 dnat ip to 10.111.0.10:8080
        ip daddr 10.112.0.10 udp dport 53 dnat ip to 10.111.0.10:53
        ip daddr 10.112.0.11 tcp dport 80 dnat ip to 10.111.0.13:80
        ip6 daddr fd00:112::10 tcp dport 80 dnat ip6 to [fd00:111::a]:8080
        ip6 daddr fd00:112::11 tcp dport 80 dnat ip6 to [fd00:111::d]:80
        iifname uplink ip daddr 192.0.2.1 tcp dport 30080 dnat ip to 10.111.0.10:8080
        iifname uplink ip daddr 192.0.2.1 tcp dport 30081 dnat ip to 10.111.0.13:80
    }
    chain after {
        type nat hook postrouting priority srcnat;
        iifname uplink ct status dnat masquerade
        ip saddr 10.111.0.10 ip daddr 10.111.0.10 masquerade
        ip6 saddr fd00:111::a ip6 daddr fd00:111::a masquerade
        ip saddr 10.111.0.0/16 oifname uplink masquerade
        ip6 saddr fd00:111::/48 oifname uplink masquerade
    }
}
";

#[test]
fn services_are_judged_by_the_backend_and_its_port_and_by_the_client_before_masquerade() {
    let Some(_alone) = runs_here("Services on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        bed.translate(SERVICES).unwrap();
        let mut world = World::of(&bed);
        world.policy(
            "shop",
            "client-to-web",
            json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
                   "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 8080}]}]}),
        );
        // Behind its node port, web takes only the external client from outside; db takes nothing.
        world.policy(
            "shop",
            "to-web",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                   "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.10/32"}},
                                         {"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
        );
        world.policy(
            "ops",
            "nobody-to-db",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": []}),
        );
        let firewall = start(&bed, &world);
        let answer = |from: &str, to: &str, service: Service, wanted: bool| {
            let met = tries(&bed, from, to, service);
            assert_eq!(
                met.answered(),
                wanted,
                "{role:?}: {from} -> {to} {service}: {met:?}"
            );
        };
        for (web, db) in [("10.112.0.10", "10.112.0.11"), ("fd00:112::10", "fd00:112::11")] {
            answer("shop/client", web, HTTP, true);
            answer("shop/client", db, HTTP, false);
            answer("ops/probe", web, HTTP, false);
            // To itself by its Service, whoever translates both ways, and whatever policies say.
            answer("shop/web", web, HTTP, true);
        }
        // Not the port that the policy names.
        answer("shop/client", "10.112.0.10", DNS, false);
        // The node's address stands for the client, and is not the node.
        answer("external", "192.0.2.1", Service::Tcp(30080), true);
        answer("external", "192.0.2.1", Service::Tcp(30081), false);
        answer("shop/web", "192.0.2.10", HTTP, true);
        answer("shop/client", "192.0.2.10", HTTP, false);
        // This one is not translated: it would leave by the default route.
        bed.gateway
            .ip(&["route add 10.112.0.0/16 via 192.0.2.10"])
            .unwrap();
        let unresolved = outcome(&firewall, "exit-service-unresolved");
        answer("ops/db", "10.112.0.99", HTTP, false);
        assert!(
            outcome(&firewall, "exit-service-unresolved") > unresolved,
            "{role:?}"
        );
    }
}

/// A connection on which a server sends back what it gets.
struct Conversation(TcpStream);

impl Conversation {
    fn open(bed: &Bed, from: &str, to: &str, port: u16) -> Self {
        let server = bed.member(to).unwrap();
        let address = server.v4;
        let listener = server
            .ns
            .run(|| TcpListener::bind(("0.0.0.0", port)))
            .unwrap()
            .unwrap();
        std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut bytes = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        });
        let client = bed.member(from).unwrap();
        let to = SocketAddr::new(address.into(), port);
        let stream = client
            .ns
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap()
            .unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap(); // a busy machine takes its time
        Self(stream)
    }

    /// Whether something comes back.
    fn says(&mut self, word: &[u8; 4]) -> bool {
        let mut back = [0; 4];
        self.0.write_all(word).is_ok() && self.0.read_exact(&mut back).is_ok() && back == *word
    }
}

#[test]
fn a_change_of_policy_cuts_the_flows_that_it_denies_and_no_others() {
    let Some(_alone) = runs_here("revocation on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        let mut world = World::of(&bed);
        let firewall = start(&bed, &world);
        let mut cut = Conversation::open(&bed, "shop/client", "shop/web", 7001);
        let mut stays = Conversation::open(&bed, "ops/probe", "ops/db", 7002);
        for one in [&mut cut, &mut stays] {
            assert!(one.says(b"one.") && one.says(b"two."), "{role:?}");
        }
        assert!(
            outcome(&firewall, "exit-hit") > 0,
            "{role:?}: the kernel decides nothing"
        );
        world.policy("shop", "only-friends", only_from("friend", "yes"));
        world.apply(&firewall).unwrap();
        assert!(!cut.says(b"cut?"), "{role:?}");
        assert!(stays.says(b"stay"), "{role:?}");
        world.label("shop/client", "friend", "yes").unwrap();
        world.apply(&firewall).unwrap();
        let end = Instant::now() + PATIENCE;
        let mut bytes = [0; 4];
        // What was sent meanwhile is sent again.
        while cut.0.read_exact(&mut bytes).is_err() {
            assert!(
                Instant::now() < end,
                "{role:?}: allowed again, and nothing passes"
            );
        }
    }
}

#[test]
fn a_dataplane_that_dies_or_hangs_leaves_known_flows_and_lets_nothing_new_pass() {
    let Some(_alone) = runs_here("a dead dataplane of a node") else {
        return;
    };
    let bed = bed(Role::Bridge);
    let world = World::of(&bed);
    let mut firewall = start(&bed, &world);
    let mut known = Conversation::open(&bed, "shop/client", "shop/web", 7001);
    assert!(known.says(b"one.") && known.says(b"two."));

    // Stopped: it says nothing, and is not replaced within a second.
    let pid = firewall.signal("dataplane", Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(1200)); // the programs wait a second for the workers
    assert!(known.says(b"hang"));
    let db = bed.member("ops/db").unwrap().v4.to_string();
    assert!(!tries(&bed, "ops/probe", &db, HTTP).answered());
    nix_kill(pid.as_raw(), Signal::SIGCONT);
    let address = bed.member("ops/db").unwrap().v4.into();
    wait_for_answer(&bed, "ops/probe", address, HTTP, PATIENCE).unwrap();
    assert!(known.says(b"cont"));

    firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    for _ in 0..50 {
        assert!(known.says(b"kill"));
    }
    wait_for_answer(&bed, "ops/probe", address, DNS, PATIENCE).unwrap();
    assert!(known.says(b"back"));

    // Ended in order: the programs stay, and hold the fail mode.
    assert!(firewall.stop().unwrap().success());
    assert!(known.says(b"away"));
    assert!(
        !tries(
            &bed,
            "ops/db",
            &bed.member("ops/probe").unwrap().v4.to_string(),
            HTTP
        )
        .answered()
    );
}

fn nix_kill(pid: i32, signal: Signal) {
    let output = Command::new("kill")
        .arg(format!("-{}", signal as i32))
        .arg(pid.to_string())
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn detach_leaves_nothing_and_traffic_goes_on() {
    let Some(_alone) = runs_here("detach of a node") else {
        return;
    };
    let bed = bed(Role::Bridge);
    let state = |bed: &Bed| {
        [
            "ip link",
            "nft list ruleset",
            "tc qdisc show",
            "ip rule",
            "ip route show table all",
        ]
        .map(|line| {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().unwrap());
            command.args(words);
            let output = bed.gateway.output(command).unwrap();
            assert!(output.status.success(), "{line}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    let before = state(&bed);
    let mut world = World::of(&bed);
    world.policy("shop", "deny", json!({"podSelector": {}, "ingress": []}));
    let mut firewall = start(&bed, &world);
    assert_ne!(state(&bed), before, "the test would show nothing");
    expect(&bed, &[("shop/client", "shop/web", HTTP, false)]);
    assert!(firewall.stop().unwrap().success());
    let config = firewall.config.to_string_lossy().into_owned();
    let output = firewall.ringwall(&["detach", "--config", &config]).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (before, after) in before.iter().zip(state(&bed)) {
        assert_eq!(*before, after);
    }
    expect(&bed, &[("shop/client", "shop/web", HTTP, true)]);
}

#[test]
fn a_pod_sends_from_its_own_addresses_alone_and_a_new_device_is_no_way_around() {
    let Some(_alone) = runs_here("spoofing on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        let mut world = World::of(&bed);
        // Whoever is believed to be the client gets through.
        world.policy("shop", "only-clients", only_from("app", "client"));
        let firewall = start(&bed, &world);
        let client = bed.member("shop/client").unwrap().v4;
        let (probe, web) = (bed.member("ops/probe").unwrap(), bed.member("shop/web").unwrap());
        probe
            .ns
            .ip(&[format!("address add {client}/32 dev eth0")])
            .unwrap();
        let to = web.v4.into();
        // So that no ARP is needed, whose sender would give it away before.
        assert!(!tries(&bed, "ops/probe", &web.v4.to_string(), HTTP).answered());
        let met = probe
            .ns
            .run(|| attempt(Some(client.into()), to, HTTP, WITHIN))
            .unwrap();
        assert!(!met.answered(), "{role:?}");
        assert!(outcome(&firewall, "pod-spoofed-source") > 0, "{role:?}");
        expect(&bed, &[("shop/client", "shop/web", HTTP, true)]);

        // A way from the outside that was not there at the start.
        bed.gateway
            .ip(&[
                format!(
                    "link add late type veth peer name eth1 netns {}",
                    bed.external.ns.path()
                ),
                "address add 198.51.100.1/24 dev late".to_owned(),
                "link set late up".to_owned(),
            ])
            .unwrap();
        bed.external
            .ns
            .ip(&[
                "address add 198.51.100.2/24 dev eth1".to_owned(),
                "link set eth1 up".to_owned(),
                format!("route add {}/32 via 198.51.100.1 dev eth1", web.v4),
            ])
            .unwrap();
        for _ in 0..5 {
            let met = bed
                .external
                .ns
                .run(|| attempt(Some("198.51.100.2".parse().unwrap()), to, HTTP, WITHIN))
                .unwrap();
            assert!(!met.answered(), "{role:?}");
        }
        firewall
            .wait_until("the new device is guarded", |status| {
                let interfaces = status["dataplane"]["node"]["interfaces"].as_array();
                interfaces.is_some_and(|all| all.iter().any(|interface| interface["name"] == "late"))
            })
            .unwrap();
    }
}

#[test]
fn the_node_reaches_its_own_pods_from_every_address_whatever_policies_say() {
    let Some(_alone) = runs_here("probes of a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        bed.gateway.ip(&["address add 203.0.113.77/32 dev lo"]).unwrap();
        let mut world = World::of(&bed);
        for namespace in ["shop", "ops"] {
            world.policy(
                namespace,
                "deny",
                json!({"podSelector": {}, "ingress": [], "policyTypes": ["Ingress", "Egress"]}),
            );
        }
        let _firewall = start(&bed, &world);
        let web = bed.member("shop/web").unwrap();
        for source in [None, Some("192.0.2.1"), Some("203.0.113.77")] {
            let source = source.map(|source| source.parse().unwrap());
            let met = bed
                .gateway
                .run(|| attempt(source, web.v4.into(), HTTP, WITHIN))
                .unwrap();
            assert!(met.answered(), "{role:?}: from {source:?}: {met:?}");
        }
        let met = bed
            .gateway
            .run(|| attempt(None, web.v6.into(), HTTP, WITHIN))
            .unwrap();
        assert!(met.answered(), "{role:?}: {met:?}");
        expect(
            &bed,
            &[
                ("external", "shop/web", HTTP, false),
                ("shop/client", "shop/web", HTTP, false),
            ],
        );
    }
}

#[test]
fn pods_on_one_bridge_are_isolated_whether_their_frames_pass_netfilter_or_not() {
    let Some(_alone) = runs_here("bridge netfilter") else {
        return;
    };
    let bed = bed(Role::Bridge);
    for family in ["ip", "ip6"] {
        bed.gateway
            .sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "0")
            .unwrap();
    }
    let mut world = World::of(&bed);
    world.policy("shop", "only-friends", only_from("friend", "yes"));
    world.label("ops/probe", "friend", "yes").unwrap();
    world.label("shop/client", "friend", "yes").unwrap();
    let firewall = start(&bed, &world);
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("shop/client", "shop/web", ECHO, true),
            ("ops/db", "shop/web", HTTP, false),
            ("ops/db", "shop/web", DNS, false),
        ],
    );
    assert!(outcome(&firewall, "exit-hit") > 0);
}

#[test]
fn running_connections_outlive_the_installation() {
    let Some(_alone) = runs_here("installation on a busy node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        // As on a node of Kubernetes, connections are tracked before ringwall comes.
        bed.translate(SERVICES).unwrap();
        let mut all: Vec<Conversation> = (0..20)
            .map(|number| {
                let (from, to) = [("shop/client", "shop/web"), ("ops/db", "ops/probe")][number % 2];
                Conversation::open(&bed, from, to, 7100 + number as u16)
            })
            .collect();
        assert!(all.iter_mut().all(|one| one.says(b"one.")), "{role:?}: the rig");
        let mut world = World::of(&bed);
        // Whoever began decides: the answers alone would not be allowed.
        world.policy(
            "shop",
            "client-out",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": []}),
        );
        let _firewall = start(&bed, &world);
        for (number, one) in all.iter_mut().enumerate() {
            assert!(one.says(b"two."), "{role:?}: connection {number}");
        }
    }
}

#[test]
fn what_somebody_removes_is_put_back_and_said() {
    let Some(_alone) = runs_here("meddling with a node") else {
        return;
    };
    let bed = bed(Role::Bridge);
    let mut world = World::of(&bed);
    world.policy("shop", "only-friends", only_from("friend", "yes"));
    let firewall = start(&bed, &world);
    let run = |line: &str| {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        bed.gateway.output(command).unwrap()
    };
    assert!(run("nft flush ruleset").status.success());
    // Where the kernel has tcx there is none, and the programs are not in its reach.
    let put_back = if run("tc qdisc del dev pod0 clsact").status.success() {
        "programs of pod0 were taken off; put back"
    } else {
        "table of nf_tables"
    };
    let status = firewall
        .wait_until("the table is said to be put back", |status| {
            status["dataplane"]["alarms"].as_array().is_some_and(|alarms| {
                alarms
                    .iter()
                    .any(|alarm| alarm.as_str().is_some_and(|said| said.contains(put_back)))
            })
        })
        .unwrap();
    assert!(status["dataplane"]["node"].is_object());
    let listed = run("nft list tables");
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("ringwall-"),
        "{listed:?}"
    );
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("shop/client", "ops/db", HTTP, true),
        ],
    );
}

#[test]
fn an_address_that_another_pod_gets_has_none_of_the_old_ones_flows() {
    let Some(_alone) = runs_here("address reuse on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        let mut world = World::of(&bed);
        world.policy("shop", "only-clients", only_from("app", "client"));
        let firewall = start(&bed, &world);
        let mut old = Conversation::open(&bed, "shop/client", "shop/web", 7001);
        assert!(old.says(b"one."));
        let gone = world.pods.remove("shop/client").unwrap();
        let mut new = gone.clone();
        new.name = "intruder".to_owned();
        new.labels = ringwall_testbed::manifests::labels([("app", "intruder")]);
        world.pods.insert("shop/intruder".to_owned(), new);
        world.apply(&firewall).unwrap();
        assert!(!old.says(b"two."), "{role:?}");
        expect(
            &bed,
            &[
                ("shop/client", "shop/web", HTTP, false),
                ("shop/client", "ops/db", HTTP, true),
            ],
        );
    }
}

/// Joins the node to another one by VXLAN, as flannel does; the other one has a pod, which is an address of its own here.
const REMOTE_POD: &str = "10.111.200.5";

fn overlay(bed: &Bed) {
    let join =
        |ns: &ringwall_testbed::netns::Netns, local: &str, remote: &str, own: &str, peer: &str, dev: &str| {
            ns.ip(&[
            format!(
                "link add flannel.1 mtu 1450 type vxlan id 1 local {local} dev {dev} dstport 8472 nolearning"
            ),
            format!("link set flannel.1 address 02:00:00:00:00:0{own} up"),
            format!("address add 10.111.20{own}.0/32 dev flannel.1"),
            format!(
                "neighbour add 10.111.20{peer}.0 lladdr 02:00:00:00:00:0{peer} dev flannel.1 nud permanent"
            ),
        ])
        .unwrap();
            let mut bridge = Command::new("bridge");
            let entry = format!("fdb add 02:00:00:00:00:0{peer} dev flannel.1 dst {remote}");
            bridge.args(entry.split(' '));
            assert!(ns.output(bridge).unwrap().status.success());
        };
    join(&bed.gateway, "192.0.2.1", "192.0.2.10", "1", "0", "uplink");
    join(&bed.external.ns, "192.0.2.10", "192.0.2.1", "0", "1", "eth0");
    bed.gateway
        .ip(&["route add 10.111.200.0/24 via 10.111.200.0 dev flannel.1 onlink"])
        .unwrap();
    bed.external
        .ns
        .ip(&[
            format!("address add {REMOTE_POD}/32 dev lo"),
            format!("route add 10.111.0.0/24 via 10.111.201.0 dev flannel.1 onlink src {REMOTE_POD}"),
        ])
        .unwrap();
}

#[test]
fn pods_of_another_node_are_judged_inside_the_overlay() {
    let Some(_alone) = runs_here("an overlay") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        overlay(&bed);
        let remote: IpAddr = REMOTE_POD.parse().unwrap();
        let from_remote = |to: &str| {
            let to = bed.member(to).unwrap().v4.into();
            let met = bed
                .external
                .ns
                .run(|| attempt(Some(remote), to, HTTP, WITHIN))
                .unwrap();
            met.answered()
        };
        assert!(from_remote("shop/web"), "{role:?}: the rig without ringwall");
        let mut world = World::of(&bed);
        let mut pod = world.pods["shop/client"].clone();
        pod.name = "remote".to_owned();
        pod.labels = ringwall_testbed::manifests::labels([("app", "remote")]);
        pod.addresses = vec![remote];
        pod.node = "node-b".to_owned();
        world.pods.insert("shop/remote".to_owned(), pod);
        world.policy("shop", "only-remote", only_from("app", "remote"));
        world.policy(
            "ops",
            "nowhere",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": []}),
        );
        let firewall = start(&bed, &world);
        assert!(from_remote("shop/web"), "{role:?}");
        let to_remote = |from: &str| tries(&bed, from, REMOTE_POD, HTTP).answered();
        assert!(to_remote("shop/client") && !to_remote("ops/db"), "{role:?}");
        world.policies.remove(0);
        world.policy("shop", "only-client", only_from("app", "client"));
        world.apply(&firewall).unwrap();
        assert!(!from_remote("shop/web"), "{role:?}");
        expect(&bed, &[("shop/client", "shop/web", HTTP, true)]);

        // Who can send to the overlay's port sends inside it what he likes; not from a pod of this node.
        let client = bed.member("shop/client").unwrap().v4;
        bed.external
            .ns
            .ip(&[format!("address add {client}/32 dev lo")])
            .unwrap();
        let web = bed.member("shop/web").unwrap().v4.into();
        let met = bed
            .external
            .ns
            .run(|| attempt(Some(client.into()), web, HTTP, WITHIN))
            .unwrap();
        assert!(!met.answered(), "{role:?}");
        assert!(outcome(&firewall, "net-spoofed-source") > 0, "{role:?}");
    }
}

#[test]
fn large_datagrams_through_a_service_pass_or_drop_as_a_whole() {
    let Some(_alone) = runs_here("fragments on a node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        bed.translate(SERVICES).unwrap();
        let mut world = World::of(&bed);
        world.policy("shop", "only-friends", only_from("friend", "yes"));
        world.label("shop/client", "friend", "yes").unwrap();
        let firewall = start(&bed, &world);
        let echoes = |from: &str| {
            let ns = &bed.member(from).unwrap().ns;
            ns.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect("10.112.0.10:53").unwrap();
                socket.set_read_timeout(Some(WITHIN)).unwrap();
                socket.send(&[7; 3000]).unwrap();
                let mut back = [0; 4000];
                socket.recv(&mut back).is_ok()
            })
            .unwrap()
        };
        assert!(echoes("shop/client"), "{role:?}");
        assert!(!echoes("ops/probe"), "{role:?}");
        assert!(outcome(&firewall, "exit-asked") > 0);
    }
}

#[test]
fn what_carries_packets_past_the_programs_later_is_an_alarm_while_it_is_there() {
    let Some(_alone) = runs_here("obstacles that come later") else {
        return;
    };
    let bed = bed(Role::Node);
    let firewall = start(&bed, &World::of(&bed));
    let wait = |what: &str, words: &str, wanted: bool| {
        let has_it = |status: &Value| {
            let alarms = status["dataplane"]["alarms"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            alarms.iter().any(|alarm| alarm.to_string().contains(words))
        };
        firewall
            .wait_until(what, |status| has_it(status) == wanted)
            .unwrap()
    };
    wait("nothing is wrong", "IPsec policies", false);
    let policy = "src 10.111.0.0/16 dst 203.0.113.0/24 dir out";
    bed.gateway
        .ip(&[format!(
            "xfrm policy add {policy} tmpl src 192.0.2.1 dst 192.0.2.10 proto esp mode tunnel"
        )])
        .unwrap();
    bed.gateway
        .ip(&["link add antrea-gw0 type veth peer name antrea-gw1"])
        .unwrap();
    wait("the policy is seen", "IPsec policies", true);
    wait("the engine is seen", "Antrea", true);
    // Who is not concerned goes on.
    expect(&bed, &[("shop/client", "shop/web", HTTP, true)]);
    bed.gateway.ip(&[format!("xfrm policy delete {policy}")]).unwrap();
    bed.gateway.ip(&["link delete antrea-gw0"]).unwrap();
    wait("the policy is gone", "IPsec policies", false);
    wait("the engine is gone", "Antrea", false);
}

#[test]
fn what_would_carry_packets_past_the_programs_is_refused_by_name() {
    let Some(_alone) = runs_here("obstacles of a node") else {
        return;
    };
    let bed = bed(Role::Node);
    let world = World::of(&bed);
    let refused = |wanted: &str| {
        let firewall = Appliance::launch(
            &bed,
            &built_binary().unwrap(),
            &Options::default(),
            &world.objects(),
        );
        let mut firewall = firewall.unwrap();
        let ended = firewall.ended(PATIENCE).unwrap().unwrap();
        assert_eq!(ended.code(), Some(2), "{}", firewall.log());
        assert!(firewall.log().contains(wanted), "{}", firewall.log());
        let links = bed.gateway.read("/proc/thread-self/net/dev").unwrap();
        assert!(!links.contains("rw-ask0"), "it changed something before");
    };
    bed.gateway
        .ip(&["link add cilium_host type veth peer name cilium_net"])
        .unwrap();
    refused("interface cilium_host: Cilium has a datapath and policies of its own");
    bed.gateway.ip(&["link del cilium_host"]).unwrap();

    bed.gateway
        .ip(&["xfrm policy add src 10.111.0.0/16 dst 192.0.2.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.10 proto esp mode tunnel"])
        .unwrap();
    refused("IPsec policies");
}
