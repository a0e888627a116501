//! What passes while no dataplane judges, and what passes before any policy.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use ringwall_testbed::{
    appliance::{Appliance, Options, Signal, built_binary},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Plan, Role},
    world::{World, differences},
};
use serde_json::json;

#[test]
fn failsafe_traffic_passes_policy_and_a_dead_dataplane_and_nothing_else_does() {
    let Some(_alone) = runs_here("failsafe") else {
        return;
    };
    let bed = Bed::new(
        Role::Wire,
        &[Plan::new("shop/web"), Plan::new("shop/far").outside()],
        1,
    )
    .unwrap();
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "deny-all",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let options = Options {
        fail_mode: "closed",
        more: "failsafe:\n  allow:\n    - {from: [192.0.2.10/32, \"2001:db8::10/128\"], to: podCIDRs, protocol: TCP, \
               ports: [80]}\n"
            .to_owned(),
        ..Options::default()
    };
    let mut firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let wanted = [
        ("external", "shop/web", Service::Tcp(80), true),
        // Another port, another protocol, the other direction, another client.
        ("external", "shop/web", Service::Udp(53), false),
        ("external", "shop/web", Service::Echo, false),
        ("shop/web", "external", Service::Tcp(80), false),
        ("shop/far", "shop/web", Service::Tcp(80), false),
    ];
    let judged = differences(&bed, &wanted).unwrap();
    assert!(judged.is_empty(), "under policy: {judged:#?}");

    // Both processes go with it; the programs stay.
    firewall.stop().unwrap();
    let alone = differences(&bed, &wanted).unwrap();
    assert!(alone.is_empty(), "without a dataplane: {alone:#?}");
}

/// Between pods as by policy, and between all once no dataplane judges.
fn opens(role: Role, plans: &[Plan]) {
    let bed = Bed::new(role, plans, 1).unwrap();
    if role == Role::Routed {
        // IPv6 is forwarded on an interface only where it is on all.
        bed.gateway.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    }
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "deny-all",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    );
    let options = Options {
        fail_mode: "open",
        host_port: false,
        ..Options::default()
    };
    let mut firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    let wanted = |open: bool| {
        [
            ("external", "shop/web", Service::Tcp(80), open),
            ("shop/far", "shop/web", Service::Udp(53), open),
            ("shop/web", "external", Service::Tcp(80), true),
        ]
    };
    let judged = differences(&bed, &wanted(false)).unwrap();
    assert!(judged.is_empty(), "{role:?} under policy: {judged:#?}");

    firewall.end(Signal::SIGKILL).unwrap();
    let alone = differences(&bed, &wanted(true)).unwrap();
    assert!(alone.is_empty(), "{role:?} without a dataplane: {alone:#?}");
}

#[test]
fn fail_mode_open_passes_everything_without_a_dataplane() {
    let Some(_alone) = runs_here("fail mode open") else {
        return;
    };
    opens(
        Role::Wire,
        &[Plan::new("shop/web"), Plan::new("shop/far").outside()],
    );
    opens(Role::Routed, &[Plan::new("shop/web"), Plan::new("shop/far")]);
}
