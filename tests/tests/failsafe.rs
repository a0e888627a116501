//! What passes before any policy, whoever judges.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
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
