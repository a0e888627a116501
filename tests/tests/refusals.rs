//! What cannot work is said once, clearly, with status 2, and changes nothing.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{fs, time::Duration};

use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    preflight::runs_here,
    probe::Service,
    topology::{Bed, Plan, Role},
    world::{World, differences},
};
use serde_json::json;

const HTTP: Service = Service::Tcp(80);

fn bed() -> Bed {
    Bed::new(
        Role::Routed,
        &[Plan::new("shop/web"), Plan::new("shop/client")],
        1,
    )
    .unwrap()
}

/// Starts with a changed configuration and wants an end with status 2 that says all of `words`.
fn refused(bed: &Bed, from: &str, to: &str, words: &[&str]) {
    let world = World::of(bed);
    let good = bed.configuration(&Options::default());
    assert!(
        good.contains(from),
        "`{from}` is not in the configuration:\n{good}"
    );
    let config = bed.folder().join("wrong.yaml");
    fs::write(&config, good.replacen(from, to, 1)).unwrap();
    fs::write(
        bed.manifests().join("bed.yaml"),
        ringwall_testbed::manifests::file(&world.objects()),
    )
    .unwrap();
    let mut firewall = Appliance::launch_with(bed, &built_binary().unwrap(), &config).unwrap();
    let status = firewall.ended(Duration::from_secs(15)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let log = firewall.log();
    assert_eq!(status.and_then(|status| status.code()), Some(2), "{to}:\n{log}");
    for word in words {
        assert!(log.contains(word), "`{word}` is not in:\n{log}");
    }
    // Nothing was put on the devices.
    let mut links = std::process::Command::new("ip");
    links.args(["-d", "link"]);
    let links = bed.gateway.output(links).unwrap();
    assert!(
        !String::from_utf8_lossy(&links.stdout).contains("xdp"),
        "an XDP program is on a device after: {to}"
    );
}

#[test]
fn a_configuration_that_cannot_run_is_refused() {
    let Some(_alone) = runs_here("refusals") else {
        return;
    };
    let bed = bed();
    refused(
        &bed,
        "name: uplink,",
        "name: uplnik,",
        &["uplnik", "does not exist", "uplink"],
    );
    refused(
        &bed,
        "kind: uplink",
        "kind: upink",
        &["wrong.yaml", "did you mean `uplink`"],
    );
    refused(&bed, "cpus: auto, count: 1", "cpus: \"999\"", &["999", "CPU"]);
    refused(&bed, "failMode: closed", "failMode: open", &["failMode", "host"]);
    let manifests = format!("manifests: {}", bed.manifests().display());
    refused(
        &bed,
        &manifests,
        "kubeconfig: /nowhere/kubeconfig",
        &["/nowhere/kubeconfig"],
    );
    refused(
        &bed,
        &manifests,
        "manifests: /nowhere/at/all",
        &["/nowhere/at/all"],
    );
}

#[test]
fn broken_manifests_refuse_a_cold_start_and_never_take_the_good_ones_down() {
    let Some(_alone) = runs_here("broken manifests") else {
        return;
    };
    let bed = bed();
    fs::write(
        bed.manifests().join("broken.yaml"),
        "kind: NetworkPolicy\nmetadata: [\n",
    )
    .unwrap();
    refused(&bed, "mode: enforce", "mode: enforce", &["broken.yaml"]);
    fs::remove_file(bed.manifests().join("broken.yaml")).unwrap();

    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "nobody",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}),
    );
    let firewall = Appliance::start(
        &bed,
        &built_binary().unwrap(),
        &Options::default(),
        &world.objects(),
    )
    .unwrap();
    let denied = [
        ("shop/client", "shop/web", HTTP, false),
        ("shop/web", "shop/client", HTTP, true),
    ];
    assert_eq!(differences(&bed, &denied).unwrap(), [""; 0]);
    // The file that holds everything breaks: its last good objects stay.
    fs::write(
        bed.manifests().join("bed.yaml"),
        "kind: NetworkPolicy\nmetadata: [\n",
    )
    .unwrap();
    firewall
        .wait_until("the broken file is named", |status| {
            status.to_string().contains("bed.yaml")
        })
        .unwrap();
    assert_eq!(differences(&bed, &denied).unwrap(), [""; 0]);
    // A new file beside it counts at once.
    let mut more = World {
        namespaces: Default::default(),
        pods: Default::default(),
        policies: Vec::new(),
        nodes: Default::default(),
    };
    more.policy(
        "shop",
        "nobody-else",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    );
    let before = firewall.status().unwrap()["control"]["snapshot"]["compiled"].as_u64();
    fs::write(
        bed.manifests().join("more.yaml"),
        ringwall_testbed::manifests::file(&more.policies),
    )
    .unwrap();
    firewall
        .wait_until("the new policy is adopted", |status| {
            status["control"]["snapshot"]["compiled"].as_u64() > before
                && status["dataplane"]["workers"][0]["generation"]
                    == status["control"]["snapshot"]["generation"]
        })
        .unwrap();
    assert_eq!(
        differences(&bed, &[("shop/web", "shop/client", HTTP, false)]).unwrap(),
        [""; 0]
    );
}
