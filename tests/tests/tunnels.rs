//! A wire between two nodes whose kernels put their pods' packets into VXLAN.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use ringwall_testbed::{
    appliance::{Appliance, Options, Signal, built_binary},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Plan, Role},
    world::{World, differences},
};
use serde_json::json;

/// Outer addresses of the node inside and the one outside, by family of the underlay.
const NODES: [[&str; 2]; 2] = [
    ["198.51.100.1", "198.51.100.2"],
    ["2001:db8:1::1", "2001:db8:1::2"],
];

/// Pods' packets between the routers go into VXLAN from now on.
fn overlay(bed: &Bed, underlay: usize, port: u16, vni: u32) {
    for (own, router) in bed.routers.iter().enumerate() {
        let [local, remote] = [NODES[underlay][own], NODES[underlay][1 - own]];
        if router.read("/proc/thread-self/net/dev").unwrap().contains("vx0:") {
            router.ip(&["link del vx0"]).unwrap();
        }
        let mut lines = vec![
            format!(
                "link add vx0 type vxlan id {vni} local {local} remote {remote} dev wire dstport {port} nolearning"
            ),
            format!("address add 10.200.0.{}/24 dev vx0", own + 1),
            format!("address add fd00:200::{}/64 dev vx0 nodad", own + 1),
            "link set vx0 up".to_owned(),
        ];
        let beyond = bed.pods.iter().filter(|pod| pod.outside == (own == 0));
        for pod in beyond {
            lines.push(format!("route replace {}/32 via 10.200.0.{}", pod.v4, 2 - own));
            lines.push(format!("route replace {}/128 via fd00:200::{}", pod.v6, 2 - own));
        }
        router.ip(&lines).unwrap();
    }
}

/// Packets that came out of the VXLAN device of the node inside.
fn unpacked(bed: &Bed) -> u64 {
    let devices = bed.routers[0].read("/proc/thread-self/net/dev").unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("vx0:"));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)).unwrap();
    packets.parse().unwrap()
}

fn two_nodes(bed: &Bed) -> World {
    let mut world = World::of(bed);
    for member in &bed.pods {
        let pod = world.pods.get_mut(&member.name).unwrap();
        pod.node = ["node-in", "node-out"][usize::from(member.outside)].to_owned();
    }
    for (own, name) in ["node-in", "node-out"].iter().enumerate() {
        let addresses = NODES.map(|ends| ends[own].parse().unwrap());
        world.nodes.insert((*name).to_owned(), addresses.to_vec());
    }
    world.policy(
        "shop",
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "far"}}}], "ports": [{"protocol": "TCP", "port": 80}]}]}),
    );
    world
}

const PLANS: [(&str, bool); 3] = [("shop/web", false), ("shop/far", true), ("shop/other", true)];

fn bed() -> Bed {
    let plans = PLANS.map(|(name, outside)| {
        if outside {
            Plan::new(name).outside()
        } else {
            Plan::new(name)
        }
    });
    Bed::new(Role::Wire, &plans, 1).unwrap()
}

/// By policy, if `passes`; else nothing passes.
fn wanted(passes: bool) -> [(&'static str, &'static str, Service, bool); 6] {
    [
        ("shop/far", "shop/web", Service::Tcp(80), passes),
        ("shop/web", "shop/far", Service::Tcp(80), passes),
        ("shop/web", "shop/other", Service::Udp(53), passes),
        ("shop/far", "shop/web", Service::Udp(53), false),
        ("shop/other", "shop/web", Service::Tcp(80), false),
        ("shop/far", "shop/web", Service::Echo, false),
    ]
}

fn assert_nothing_differs(bed: &Bed, passes: bool, when: &str) {
    let differ = differences(bed, &wanted(passes)).unwrap();
    assert!(differ.is_empty(), "{when}: {differ:#?}");
}

fn dropped(firewall: &Appliance, reason: &str) {
    firewall
        .wait_until(&format!("drops as {reason}"), |status| {
            status["dataplane"]["drops"][reason].as_u64() > Some(0)
        })
        .unwrap();
}

#[test]
fn a_wire_judges_what_is_inside_of_the_kernels_vxlan() {
    let Some(_alone) = runs_here("tunnels") else {
        return;
    };
    let bed = bed();
    let mut world = two_nodes(&bed);
    // For all that nodes say to each other: it opens none of their tunnels.
    let failsafe = "failsafe:\n  allow:\n    - {from: [198.51.100.0/24], to: [198.51.100.0/24]}\n";
    let options = Options {
        fail_mode: "closed",
        more: format!("{failsafe}overlay: {{networks: [{{vni: 1}}, {{vni: 4096}}]}}\n"),
        ..Options::default()
    };
    let mut firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    assert_nothing_differs(&bed, true, "bare");
    let tunnelled = || firewall.status().unwrap()["dataplane"]["tunnelled"].clone();
    assert_eq!(tunnelled()["vxlan"], 0);
    for (underlay, port, vni) in [(0, 8472, 1), (1, 4789, 4096)] {
        overlay(&bed, underlay, port, vni);
        let before = unpacked(&bed);
        assert_nothing_differs(&bed, true, &format!("in VXLAN, {}", NODES[underlay][0]));
        assert!(unpacked(&bed) > before, "nothing was in a tunnel");
    }

    assert!(tunnelled()["vxlan"].as_u64() > Some(0), "{}", tunnelled());
    assert_eq!(tunnelled()["ipip"], 0);

    // An unknown network.
    overlay(&bed, 0, 8472, 7);
    assert_nothing_differs(&bed, false, "in another network");
    dropped(&firewall, "tunnel-network");
    overlay(&bed, 0, 8472, 1);

    // The pods are on the other node, and then one node is none.
    for pod in world.pods.values_mut() {
        pod.node = if pod.node == "node-in" {
            "node-out"
        } else {
            "node-in"
        }
        .to_owned();
    }
    world.apply(&firewall).unwrap();
    assert_nothing_differs(&bed, false, "of pods of another node");
    dropped(&firewall, "tunnel-spoofed");
    let mut world = two_nodes(&bed);
    world.nodes.remove("node-in");
    world.apply(&firewall).unwrap();
    assert_nothing_differs(&bed, false, "from who is no node");
    dropped(&firewall, "tunnel-source");
    two_nodes(&bed).apply(&firewall).unwrap();
    assert_nothing_differs(&bed, true, "from nodes again");

    // The programs stay, and let nothing through that is not judged.
    firewall.stop().unwrap();
    assert_nothing_differs(&bed, false, "closed, without a dataplane");
}

#[test]
fn an_open_wire_lets_tunnels_pass_without_a_dataplane() {
    let Some(_alone) = runs_here("tunnels, open") else {
        return;
    };
    let bed = bed();
    overlay(&bed, 0, 8472, 1);
    let options = Options {
        fail_mode: "open",
        ..Options::default()
    };
    let objects = two_nodes(&bed).objects();
    let mut firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &objects).unwrap();
    assert_nothing_differs(&bed, true, "judged");
    firewall.end(Signal::SIGKILL).unwrap();
    let all = wanted(true).map(|(from, to, service, _)| (from, to, service, true));
    let differ = differences(&bed, &all).unwrap();
    assert!(differ.is_empty(), "without a dataplane: {differ:#?}");
}
