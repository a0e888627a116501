//! What rules of Calico can ask for beyond a selector and a port, on real packets.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    preflight::runs_here,
    probe::{Attempt, Outcome, Service, attempt_all},
    topology::{Bed, EXTERNAL, EXTERNAL_V6, Member, Plan, Role},
    world::World,
};
use serde_json::{Value, json};

const HTTP: Service = Service::Tcp(80);
const ALT: Service = Service::Tcp(8080);
const DNS: Service = Service::Udp(53);
const ECHO: Service = Service::Echo;

/// From, to, over IPv6, what, and whether it is answered.
type Wanted<'a> = (&'a str, &'a str, bool, Service, bool);

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A policy of `shop/web` for what comes in.
fn into_web(rules: Value) -> Value {
    object(
        "GlobalNetworkPolicy",
        "web",
        json!({"selector": "app == 'web'", "types": ["Ingress"], "ingress": rules}),
    )
}

/// One rule for each IP version, with the networks of that version.
fn by_version(rule: impl Fn(&str) -> Value, v4: &str, v6: &str) -> Value {
    json!([rule(v4), rule(v6)])
}

/// Attempts all at once; what is to be answered has a second chance, since a busy machine may be late.
fn expect(bed: &Bed, shape: &str, wanted: &[Wanted<'_>]) {
    let attempts: Vec<Attempt<'_>> = wanted
        .iter()
        .map(|(from, to, v6, service, _)| {
            let (from, to) = (bed.member(from).unwrap(), bed.member(to).unwrap());
            Attempt {
                from: &from.ns,
                source: Some(from.address(*v6)),
                to: to.address(*v6),
                service: *service,
            }
        })
        .collect();
    let outcomes = attempt_all(&attempts, Duration::from_millis(1300)).unwrap();
    for (((wanted, attempt), outcome), allow) in wanted
        .iter()
        .zip(&attempts)
        .zip(outcomes)
        .zip(wanted.iter().map(|it| it.4))
    {
        let outcome = match (&outcome, allow) {
            (Outcome::Silence, true) => attempt_all(std::slice::from_ref(attempt), Duration::from_secs(5))
                .unwrap()
                .remove(0),
            _ => outcome,
        };
        assert_eq!(outcome.answered(), allow, "{shape}: {wanted:?}: {outcome}");
        assert!(
            allow || outcome == Outcome::Silence,
            "{shape}: {wanted:?}: {outcome}"
        );
    }
}

/// The same over both versions of IP.
fn both<'a>(from: &'a str, to: &'a str, service: Service, allow: bool) -> [Wanted<'a>; 2] {
    [false, true].map(|v6| (from, to, v6, service, allow))
}

#[test]
fn rules_that_ask_for_several_things_meet_real_packets() {
    let Some(_alone) = runs_here("shapes of rules") else {
        return;
    };
    let plans = [
        Plan::new("shop/web").tcp(&[8080]),
        Plan::new("shop/client"),
        Plan::new("shop/other"),
        Plan::new("ops/probe"),
    ];
    let bed = Bed::new(Role::Routed, &plans, 1).unwrap();
    let mut world = World::of(&bed);
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let host = |name: &str, v6: bool| match bed.member(name).unwrap().address(v6) {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    };
    let mut under = |shape: &str, policies: Vec<Value>, wanted: &[Wanted<'_>]| {
        world.policies = policies;
        world.apply(&firewall).unwrap();
        expect(&bed, shape, wanted);
    };
    let [client, client_v6] = [false, true].map(|v6| host("shop/client", v6));
    let [probe, probe_v6] = [false, true].map(|v6| host("ops/probe", v6));

    // An address has to be in a network and of a pod that is selected.
    let rule = |net: &str| json!({"action": "Allow", "source": {"nets": [net], "selector": "app in {'client', 'probe'}"}});
    let wide = into_web(by_version(rule, &client, &client_v6));
    let no_end =
        into_web(json!([{"action": "Allow", "source": {"nets": [client], "selector": "app == 'probe'"}}]));
    under(
        "nets beside a selector",
        vec![wide],
        &[
            both("shop/client", "shop/web", HTTP, true),
            both("ops/probe", "shop/web", HTTP, false),
        ]
        .concat(),
    );
    under(
        "nets beside a selector of others",
        vec![no_end],
        &[
            both("shop/client", "shop/web", HTTP, false),
            both("ops/probe", "shop/web", HTTP, false),
        ]
        .concat(),
    );
    under(
        "notSelector",
        vec![into_web(
            json!([{"action": "Allow", "source": {"notSelector": "app == 'probe'"}}]),
        )],
        &[
            both("shop/client", "shop/web", HTTP, true),
            both("external", "shop/web", HTTP, true),
            both("ops/probe", "shop/web", HTTP, false),
        ]
        .concat(),
    );
    let rule = |net: &str| json!({"action": "Allow", "source": {"notNets": [net]}});
    under(
        "notNets",
        vec![into_web(by_version(rule, &probe, &probe_v6))],
        &[
            both("shop/client", "shop/web", HTTP, true),
            both("external", "shop/web", HTTP, true),
            both("ops/probe", "shop/web", HTTP, false),
        ]
        .concat(),
    );
    under(
        "notPorts",
        vec![into_web(
            json!([{"action": "Allow", "protocol": "TCP", "destination": {"notPorts": [8080]}}]),
        )],
        &[
            both("shop/client", "shop/web", HTTP, true),
            both("shop/client", "shop/web", ALT, false),
            both("shop/client", "shop/web", DNS, false),
        ]
        .concat(),
    );
    for (protocol, v6) in [("ICMP", false), ("ICMPv6", true)] {
        under(
            protocol,
            vec![into_web(json!([{"action": "Allow", "protocol": protocol}]))],
            &[
                ("shop/client", "shop/web", v6, ECHO, true),
                ("shop/client", "shop/web", !v6, ECHO, false),
                ("shop/client", "shop/web", v6, HTTP, false),
            ],
        );
    }
    // The source of a rule of egress is the pod that the policy selects, the destination of one of ingress too.
    let out_of_shop = object(
        "GlobalNetworkPolicy",
        "shop",
        json!({"namespaceSelector": "projectcalico.org/name == 'shop'", "types": ["Egress"], "egress": [
            {"action": "Allow", "source": {"selector": "app == 'client'"}, "destination": {"selector": "app == 'web'"}}]}),
    );
    under(
        "source of egress",
        vec![out_of_shop],
        &[
            both("shop/client", "shop/web", HTTP, true),
            both("shop/other", "shop/web", HTTP, false),
            both("shop/client", "ops/probe", HTTP, false),
        ]
        .concat(),
    );
}

fn connection(from: &Member, to: IpAddr) -> TcpStream {
    let address = SocketAddr::new(to, 80);
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let stream = from.ns.run(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

#[test]
fn a_network_set_that_loses_an_address_cuts_its_flows() {
    let Some(_alone) = runs_here("network sets") else {
        return;
    };
    let bed = Bed::new(Role::Routed, &[Plan::new("shop/web")], 1).unwrap();
    let mut world = World::of(&bed);
    let set = |nets: &[String]| {
        let mut set = object("GlobalNetworkSet", "friends", json!({"nets": nets}));
        set["metadata"]["labels"] = json!({"friend": "yes"});
        set
    };
    let (v4, v6) = (format!("{EXTERNAL}/32"), format!("{EXTERNAL_V6}/128"));
    let allow = into_web(json!([{"action": "Allow", "source": {"selector": "friend == 'yes'"}}]));
    world.policies = vec![allow.clone(), set(&[v4.clone(), v6])];
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let (external, web) = (bed.member("external").unwrap(), bed.member("shop/web").unwrap());
    let mut stays = connection(external, web.v4.into());
    let mut goes = connection(external, web.v6.into());
    world.policies = vec![allow, set(&[v4])];
    world.apply(&firewall).unwrap();
    // The server answers a request on a connection that it has had all along.
    stays.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stays.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/"), "{text}");
    goes.set_read_timeout(Some(Duration::from_millis(1300))).unwrap();
    goes.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(
        goes.read(&mut [0; 16]).is_err(),
        "a packet passed after its address had left the set"
    );
    assert_eq!(firewall.status().unwrap()["dataplane"]["flows"]["revoked"], 1);
}

/// Whether the server's port 53 answers from what a socket is bound to.
fn is_answered(socket: &UdpSocket) -> bool {
    // A busy machine may be late, and one datagram may be lost.
    (0..3).any(|_| {
        socket.send(b"question").unwrap();
        socket.recv(&mut [0; 64]).is_ok()
    })
}

#[test]
fn rules_that_ask_for_source_ports_meet_real_packets() {
    let Some(_alone) = runs_here("source ports") else {
        return;
    };
    let plans = [Plan::new("shop/web"), Plan::new("shop/client")];
    let bed = Bed::new(Role::Routed, &plans, 1).unwrap();
    let mut world = World::of(&bed);
    // No connection begins at the server, so its answers pass as answers alone, whatever their source port is.
    let from_ports = |source: Value| {
        let rule =
            json!({"action": "Allow", "protocol": "UDP", "source": source, "destination": {"ports": [53]}});
        vec![object(
            "GlobalNetworkPolicy",
            "web",
            json!({"selector": "app == 'web'", "types": ["Ingress", "Egress"], "ingress": [rule]}),
        )]
    };
    world.policies = from_ports(json!({"ports": ["40001:40002"], "notPorts": [40002]}));
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let (client, web) = (
        bed.member("shop/client").unwrap(),
        bed.member("shop/web").unwrap(),
    );
    for v6 in [false, true] {
        let bound = |port: u16| {
            let open = || {
                let socket = UdpSocket::bind((client.address(v6), port))?;
                socket.connect((web.address(v6), 53))?;
                socket.set_read_timeout(Some(Duration::from_millis(700)))?;
                Ok::<_, std::io::Error>(socket)
            };
            client.ns.run(open).unwrap().unwrap()
        };
        let sockets = [40001, 40002, 40003, 1025].map(bound);
        let answered = sockets.each_ref().map(is_answered);
        assert_eq!(answered, [true, false, false, false], "IPv6: {v6}");

        // Flows are judged again by the port that they came from.
        world.policies = from_ports(json!({"notPorts": ["1:40001"]}));
        world.apply(&firewall).unwrap();
        assert_eq!(
            sockets.each_ref().map(is_answered),
            [false, true, true, false],
            "IPv6: {v6}"
        );
        if v6 {
            continue;
        }
        // A name is that of the pod that the packet is from.
        let named = |world: &mut World, ports: &[(&str, u16)]| {
            let ports = ports
                .iter()
                .map(|(name, number)| ((*name).to_owned(), *number, "UDP"));
            world.pods.get_mut("shop/client").unwrap().ports = ports.collect();
        };
        world.policies = from_ports(json!({"ports": ["ask", "gone", 1025], "notPorts": ["never"]}));
        named(&mut world, &[("ask", 40002), ("never", 1025)]);
        world.apply(&firewall).unwrap();
        assert_eq!(sockets.each_ref().map(is_answered), [false, true, false, false]);
        // The policies stay as they are, and the pod calls another port so.
        named(&mut world, &[("ask", 40003)]);
        world.apply(&firewall).unwrap();
        assert_eq!(sockets.each_ref().map(is_answered), [false, false, true, true]);
        world.policies = from_ports(json!({"ports": ["40001:40002"], "notPorts": [40002]}));
        world.apply(&firewall).unwrap();
    }
}
