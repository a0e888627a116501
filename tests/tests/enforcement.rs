//! The running firewall: what policy says is what packets meet, while things change.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{net::IpAddr, time::Duration};

use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{Appliance, Options, Signal, built_binary},
    manifests::labels,
    preflight::runs_here,
    probe::{Outcome, Service, attempt},
    topology::{Bed, Plan, Role},
    world::{World, differences, wait_for_answer},
};
use serde_json::json;

const HTTP: Service = Service::Tcp(80);
const DNS: Service = Service::Udp(53);
const ECHO: Service = Service::Echo;

fn bed(role: Role, queues: u32) -> Bed {
    let plans = [
        Plan::new("shop/web").tcp(&[8080]),
        Plan::new("ops/probe").outside(),
        Plan::new("shop/client").outside(),
        Plan::new("ops/db"),
    ];
    Bed::new(role, &plans, queues).unwrap()
}

fn start(bed: &Bed, options: &Options, world: &World) -> Appliance {
    Appliance::start(bed, &built_binary().unwrap(), options, &world.objects()).unwrap()
}

fn expect(bed: &Bed, wanted: &[(&str, &str, Service, bool)]) {
    let different = differences(bed, wanted).unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn only_from(label: &str, value: &str) -> serde_json::Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {label: value}}}]}],
    })
}

#[test]
fn relabelling_pods_and_namespaces_changes_verdicts_at_once() {
    let Some(_alone) = runs_here("relabelling") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    let mut world = World::of(&bed);
    let firewall = start(&bed, &Options::default(), &world);
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("ops/probe", "shop/web", HTTP, true),
            ("external", "shop/web", HTTP, true),
        ],
    );

    world.policy("shop", "only-friends", only_from("friend", "yes"));
    world.apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("shop/client", "shop/web", ECHO, false),
            ("shop/client", "ops/db", HTTP, true),
        ],
    );

    world.label("shop/client", "friend", "yes").unwrap();
    world.apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("shop/client", "shop/web", DNS, true),
            ("ops/probe", "shop/web", HTTP, false),
        ],
    );

    world.label("shop/client", "friend", "no").unwrap();
    world.apply(&firewall).unwrap();
    expect(&bed, &[("shop/client", "shop/web", HTTP, false)]);

    world.policies.clear();
    world.policy(
        "shop",
        "only-trusted-namespaces",
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"trusted": "yes"}}}]}]}),
    );
    world.apply(&firewall).unwrap();
    expect(&bed, &[("ops/probe", "shop/web", HTTP, false)]);
    world
        .namespaces
        .insert("ops".into(), labels([("trusted", "yes")]));
    world.apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("ops/probe", "shop/web", HTTP, true),
            ("ops/probe", "shop/web", ECHO, true),
            ("shop/client", "shop/web", HTTP, false),
        ],
    );
    world.namespaces.insert("ops".into(), labels([]));
    world.apply(&firewall).unwrap();
    expect(&bed, &[("ops/probe", "shop/web", HTTP, false)]);
}

#[test]
fn a_reused_address_belongs_to_the_new_pod_and_a_vacant_one_is_unknown() {
    let Some(_alone) = runs_here("address reuse") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    let mut world = World::of(&bed);
    world.policy("shop", "only-clients", only_from("app", "client"));
    let firewall = start(&bed, &Options::default(), &world);
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("shop/client", "ops/db", HTTP, true),
        ],
    );

    let old = world.pods.remove("shop/client").unwrap();
    world.apply(&firewall).unwrap();
    // Inside a pod network, without an owner: unknown, denied whatever the policies say.
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("shop/client", "ops/db", HTTP, false),
            ("ops/probe", "shop/client", HTTP, false),
        ],
    );
    let drops = firewall.status().unwrap()["dataplane"]["drops"]["unknown-endpoint"]
        .as_u64()
        .unwrap();
    assert!(drops > 0, "not counted as unknown-endpoint");

    let mut new = old.clone();
    new.name = "intruder".to_owned();
    new.labels = labels([("app", "intruder")]);
    world.pods.insert("shop/intruder".to_owned(), new);
    world.apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("shop/client", "ops/db", HTTP, true),
        ],
    );
}

#[test]
fn an_empty_folder_is_a_cluster_without_pods() {
    let Some(_alone) = runs_here("empty folder") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    let manifests = bed.manifests();
    let options = Options {
        source: Some(format!(
            "{{manifests: {}, allowNoPods: true}}",
            manifests.display()
        )),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &[]).unwrap();
    // Every pod address is unknown, so nothing passes; the gateway itself is no pod and reaches out.
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("external", "shop/web", HTTP, false),
        ],
    );
    let own = bed
        .gateway
        .run(|| attempt(None, bed.external.v4.into(), HTTP, Duration::from_secs(1)))
        .unwrap();
    assert!(own.answered(), "{own}");
    World::of(&bed).apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("external", "shop/web", HTTP, true),
        ],
    );
}

#[test]
fn there_is_no_way_around() {
    let Some(_alone) = runs_here("no way around") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "nobody",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let firewall = start(&bed, &Options::default(), &world);
    let host = |to: IpAddr, service| {
        bed.gateway
            .run(|| attempt(None, to, service, Duration::from_millis(1300)))
            .unwrap()
    };
    let (web, db) = (bed.member("shop/web").unwrap(), bed.member("ops/db").unwrap());
    for v6 in [false, true] {
        for service in [HTTP, DNS, ECHO] {
            // The host is no exception: neither pod is hosted by the gateway's node.
            assert_eq!(
                host(web.address(v6), service),
                Outcome::Silence,
                "host to an isolated pod, {service}, IPv6 {v6}"
            );
            let open = host(db.address(v6), service);
            assert!(
                open.answered(),
                "host to an open pod, {service}, IPv6 {v6}: {open}"
            );
        }
    }
    // With the dataplane dead, the kernel forwards nothing between any two ports either.
    firewall.signal_supervisor(Signal::SIGSTOP).unwrap();
    firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut pairs = Vec::new();
    let names: Vec<&str> = bed
        .pods
        .iter()
        .map(|pod| pod.name.as_str())
        .chain(["external"])
        .collect();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            pairs.extend([HTTP, DNS, ECHO].map(|service| (*from, *to, service, false)));
        }
    }
    assert_eq!(pairs.len(), 60);
    let different = differences(&bed, &pairs);
    let to_pod = host(db.v4.into(), HTTP);
    firewall.signal_supervisor(Signal::SIGCONT).unwrap();
    let different = different.unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(to_pod, Outcome::Silence, "the host reaches a pod unjudged");
    wait_for_answer(&bed, "external", db.v4.into(), HTTP, Duration::from_secs(15)).unwrap();
}

#[test]
fn a_kernel_that_forwards_gets_nothing_to_forward() {
    let Some(_alone) = runs_here("forwarding kernel") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    bed.forward_by_kernel().unwrap();
    let open = [
        ("shop/client", "shop/web", HTTP, true),
        ("external", "shop/web", HTTP, true),
    ];
    expect(&bed, &open);
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "nobody",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let firewall = start(&bed, &Options::default(), &world);
    let denied = [
        ("shop/client", "shop/web", HTTP, false),
        ("ops/probe", "shop/web", ECHO, false),
        ("external", "shop/web", DNS, false),
        ("shop/web", "external", HTTP, false),
        ("external", "ops/db", HTTP, true),
    ];
    expect(&bed, &denied);
    firewall.signal_supervisor(Signal::SIGSTOP).unwrap();
    firewall.signal("dataplane", Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let different = differences(
        &bed,
        &denied.map(|(from, to, service, _)| (from, to, service, false)),
    );
    firewall.signal_supervisor(Signal::SIGCONT).unwrap();
    assert_eq!(different.unwrap(), [""; 0], "while the dataplane is dead");
}

#[test]
fn audit_judges_and_forwards() {
    let Some(_alone) = runs_here("audit") else { return };
    let bed = bed(Role::Routed, 1);
    let mut world = World::of(&bed);
    world.policy(
        "shop",
        "nobody",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    let audit = Options {
        mode: "audit",
        ..Options::default()
    };
    let mut firewall = start(&bed, &audit, &world);
    let flows = |allow| {
        [
            ("shop/client", "shop/web", HTTP, allow),
            ("external", "shop/web", ECHO, allow),
            ("shop/web", "external", DNS, allow),
        ]
    };
    expect(&bed, &flows(true));
    firewall.stop().unwrap();
    drop(firewall);
    let _enforcing = start(&bed, &Options::default(), &world);
    expect(&bed, &flows(false));
}

#[test]
fn a_wire_judges_what_crosses_it() {
    let Some(_alone) = runs_here("wire") else { return };
    let bed = bed(Role::Wire, 1);
    let mut world = World::of(&bed);
    let options = Options {
        host_port: false,
        ..Options::default()
    };
    let firewall = start(&bed, &options, &world);
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("shop/client", "shop/web", DNS, true),
            ("shop/client", "shop/web", ECHO, true),
            ("external", "shop/web", HTTP, true),
            ("shop/web", "external", HTTP, true),
        ],
    );
    world.policy("shop", "only-clients", only_from("app", "client"));
    world.policy(
        "ops",
        "out-to-dns",
        json!({
            "podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}],
        }),
    );
    world.apply(&firewall).unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("ops/probe", "shop/web", HTTP, false),
            ("external", "shop/web", HTTP, false),
            ("external", "shop/web", ECHO, false),
            ("ops/db", "external", DNS, true),
            ("ops/db", "external", HTTP, false),
            ("ops/db", "ops/probe", ECHO, false),
            ("ops/probe", "ops/db", HTTP, true),
        ],
    );
}

#[test]
fn two_workers_share_flows_whose_directions_arrive_at_different_queues() {
    let Some(_alone) = runs_here("two workers") else {
        return;
    };
    let bed = bed(Role::Routed, 2);
    // A worker has every other queue, ports counted through: with ports 0 and 2, queue 0 is one's and 1 the other's.
    // All that the client sends arrives at queue 0 of its port, all that the server sends at queue 1.
    for (pod, queue) in [("shop/client", 0), ("shop/web", 1)] {
        bed.member(pod).unwrap().ns.send_by_queue("eth0", queue).unwrap();
    }
    let mut world = World::of(&bed);
    world.policy("shop", "only-clients", only_from("app", "client"));
    let firewall = start(
        &bed,
        &Options {
            workers: 2,
            ..Options::default()
        },
        &world,
    );
    for _ in 0..5 {
        expect(
            &bed,
            &[
                ("shop/client", "shop/web", HTTP, true),
                ("shop/client", "shop/web", DNS, true),
                ("shop/client", "shop/web", ECHO, true),
                ("ops/probe", "shop/web", HTTP, false),
                ("shop/web", "shop/client", HTTP, true),
            ],
        );
    }
    let status = firewall.status().unwrap();
    let workers = status["dataplane"]["workers"].as_array().unwrap();
    let received: Vec<u64> = workers
        .iter()
        .map(|worker| worker["received"].as_u64().unwrap())
        .collect();
    let handed: u64 = workers
        .iter()
        .map(|worker| worker["handedOver"].as_u64().unwrap())
        .sum();
    assert_eq!(received.len(), 2);
    assert!(
        received.iter().all(|count| *count > 50),
        "the queues did not reach both workers: {received:?}"
    );
    assert!(handed > 0, "no flow met both workers: {received:?}");
}

#[test]
fn the_api_server_goes_away_and_comes_back() {
    let Some(_alone) = runs_here("API server") else {
        return;
    };
    let bed = bed(Role::Routed, 1);
    let mut world = World::of(&bed);
    let server = bed.gateway.run(ApiServer::start).unwrap().unwrap();
    let kubeconfig = bed.folder().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig("secret")).unwrap();
    for object in world.objects() {
        server.apply(object);
    }
    let options = Options {
        source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
        ..Options::default()
    };
    let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &[]).unwrap();
    expect(&bed, &[("shop/client", "shop/web", HTTP, true)]);
    let generation = |status: &serde_json::Value| {
        status["dataplane"]["workers"][0]["generation"]
            .as_u64()
            .unwrap_or(0)
    };

    world.policy("shop", "only-friends", only_from("friend", "yes"));
    let before = generation(&firewall.status().unwrap());
    server.apply(world.policies[0].clone());
    firewall
        .wait_until("the policy is adopted", |status| generation(status) > before)
        .unwrap();
    expect(&bed, &[("shop/client", "shop/web", HTTP, false)]);

    server.set_away(true);
    firewall
        .wait_until("it notices", |status| {
            !status["control"]["source"]["staleSeconds"].is_null()
        })
        .unwrap();
    // The last state keeps deciding.
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, false),
            ("shop/client", "ops/db", HTTP, true),
        ],
    );
    let before = generation(&firewall.status().unwrap());
    world.label("shop/client", "friend", "yes").unwrap();
    server.apply(world.pods["shop/client"].object());
    server.set_away(false);
    firewall
        .wait_until("what happened meanwhile is adopted", |status| {
            generation(status) > before
        })
        .unwrap();
    expect(
        &bed,
        &[
            ("shop/client", "shop/web", HTTP, true),
            ("ops/probe", "shop/web", HTTP, false),
        ],
    );
}
