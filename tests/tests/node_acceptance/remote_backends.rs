//! A node port whose backend is on another node, from both nodes: the first masquerades, so the other judges it as the first one.

use std::{fs, net::SocketAddr, process::Command};

use ringwall_testbed::{
    appliance::Appliance,
    netns::Netns,
    preflight::runs_here,
    topology::{Bed, EXTERNAL_MORE, Plan, Role},
    world::World,
};
use serde_json::json;

use super::{BOTH, Mirror, denied, outcome, start};

/// A pod of the other node, by family.
const REMOTE: [&str; 2] = ["10.111.200.5", "fd00:111:0:c8::5"];
/// The node of the bed, and the other one.
const NODES: [[&str; 2]; 2] = [["192.0.2.1", "2001:db8::1"], ["192.0.2.10", "2001:db8::10"]];
/// Somebody behind the other node.
const CLIENT: [&str; 2] = ["203.0.113.200", "2001:db8:77::77"];

/// Node port 30080 of a node leads to a backend, which sees the node.
fn node_port(bed: &Bed, node: &Netns, own: [&str; 2], backend: [&str; 2]) {
    let rules = format!(
        "table inet nodeport {{
            chain before {{ type nat hook prerouting priority dstnat;
                ip daddr {} tcp dport 30080 dnat ip to {}:8080
                ip6 daddr {} tcp dport 30080 dnat ip6 to [{}]:8080; }};
            chain after {{ type nat hook postrouting priority srcnat;
                meta l4proto tcp ct original proto-dst 30080 masquerade; }}; }}",
        own[0], backend[0], own[1], backend[1]
    );
    let file = bed.folder().join("nodeport.nft");
    fs::write(&file, rules).unwrap();
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(&file);
    let output = node.output(nft).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn bed(role: Role) -> Bed {
    let quiet = Plan {
        tcp: Vec::new(),
        udp: Vec::new(),
        ..Plan::new("shop/web")
    };
    Bed::new(role, &[quiet], 1).unwrap()
}

fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn a_node_port_whose_backend_is_on_another_node_passes_the_first_one() {
    let Some(_alone) = runs_here("a node port to another node's pod") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        for (remote, via) in REMOTE.iter().zip(NODES[1]) {
            bed.external
                .ns
                .ip(&[format!("address add {remote} dev lo")])
                .unwrap();
            bed.gateway
                .ip(&[format!("route add {remote} via {via}")])
                .unwrap();
        }
        Mirror::start(&bed.external, 8080);
        node_port(&bed, &bed.gateway, NODES[0], REMOTE);
        let mut world = World::of(&bed);
        let mut remote = world.pods["shop/web"].clone();
        remote.name = "remote".to_owned();
        remote.node = "node-b".to_owned();
        remote.addresses = REMOTE.map(|address| address.parse().unwrap()).to_vec();
        world.pods.insert("shop/remote".to_owned(), remote);
        // Its own node judges it.
        world.policy(
            "shop",
            "nothing",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        );
        let firewall = start(&bed, &world);
        let before = outcome(&firewall, "exit-no-pod");
        for (own, source) in NODES[0].iter().zip([Some(EXTERNAL_MORE[5].into()), None]) {
            let answer = Mirror::ask(&bed.external.ns, source, socket_address(own, 30080), 10, true);
            assert!(
                answer.starts_with(&format!("{own} sent 10")),
                "{role:?}: {own}: {answer}"
            );
        }
        assert!(outcome(&firewall, "exit-no-pod") > before, "{role:?}");
    }
}

/// Waits until something of a connection has been dropped by policy.
fn is_denied(firewall: &Appliance, client: &Netns, to: SocketAddr) {
    let before = denied(firewall);
    let socket = client.run(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        socket
    });
    let socket = socket.unwrap();
    firewall
        .wait_until("the connection is denied", |_| denied(firewall) > before)
        .unwrap();
    assert!(socket.peer_addr().is_err(), "{to}");
}

#[test]
fn a_node_port_of_another_node_is_judged_as_that_node() {
    let Some(_alone) = runs_here("a node port of another node") else {
        return;
    };
    for role in BOTH {
        let bed = bed(role);
        let client = Netns::new("client").unwrap();
        let other = &bed.external.ns;
        other.sysctl("net/ipv4/ip_forward", "1").unwrap();
        other.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        other
            .ip(&[
                format!("link add client type veth peer name eth0 netns {}", client.path()),
                "link set client up".to_owned(),
                "address add fe80::1/64 dev client nodad".to_owned(),
                format!("route add {} dev client", CLIENT[0]),
                format!("route add {} dev client", CLIENT[1]),
            ])
            .unwrap();
        client
            .ip(&[
                "link set eth0 up".to_owned(),
                format!("address add {}/32 dev eth0", CLIENT[0]),
                format!("address add {}/128 dev eth0 nodad", CLIENT[1]),
                "route add default dev eth0".to_owned(),
                "route add default via fe80::1 dev eth0".to_owned(),
            ])
            .unwrap();
        other.sysctl("net/ipv4/conf/client/proxy_arp", "1").unwrap();
        let web = bed.pods[0].address(false).to_string();
        let web_v6 = bed.pods[0].address(true).to_string();
        node_port(&bed, other, NODES[1], [&web, &web_v6]);
        Mirror::start(&bed.pods[0], 8080);
        let mut world = World::of(&bed);
        world.nodes.insert(
            "node-b".to_owned(),
            NODES[1].map(|address| address.parse().unwrap()).to_vec(),
        );
        let block = |addresses: [&str; 2]| {
            let blocks = [(addresses[0], 32), (addresses[1], 128)]
                .map(|(address, length)| json!({"ipBlock": {"cidr": format!("{address}/{length}")}}));
            json!({"podSelector": {}, "ingress": [{"from": blocks}]})
        };
        // The client's own address does not count, since the node hides it.
        world.policy("shop", "web", block(CLIENT));
        let firewall = start(&bed, &world);
        for own in NODES[1] {
            is_denied(&firewall, &client, socket_address(own, 30080));
        }
        world.policies.clear();
        world.policy("shop", "web", block(NODES[1]));
        world.apply(&firewall).unwrap();
        for own in NODES[1] {
            let answer = Mirror::ask(&client, None, socket_address(own, 30080), 10, true);
            assert!(
                answer.starts_with(&format!("{own} sent 10")),
                "{role:?}: {own}: {answer}"
            );
        }
    }
}
