//! Random clusters and random translation: what arrives is what the literal evaluator says of the true pair.

use std::net::{IpAddr, SocketAddr};

use ringwall_evaluate::{Service, identify, judge};
use ringwall_policy::{Cluster, Settings};
use ringwall_source::folder;
use ringwall_testbed::{
    manifests::labels,
    preflight::runs_here,
    synthetic::random::Random,
    topology::{Bed, EXTERNAL_MORE, GATEWAY, GATEWAY_V6, POD_CIDR, POD_CIDR_V6, Plan, Role, pod_addresses},
    world::World,
};
use serde_json::{Value, json};

use super::{Flow, Listener, start, vip, volley};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Where pods and the external client listen.
const LISTENED: [u16; 3] = [80, 81, 8080];
const FRONTENDS: usize = 8;
const FLOWS: usize = 150;
const ROUNDS: usize = 6;

/// A Service's address and port of one family: where it leads, and whether the pod there sees the node instead of the client.
struct Translation {
    frontend: SocketAddr,
    pod: usize,
    backend: SocketAddr,
    masquerade: bool,
}

impl Translation {
    fn random(random: &mut Random, number: usize, pods: usize, v6: bool) -> Self {
        let pod = random.below(pods);
        Self {
            frontend: SocketAddr::new(vip(number, v6), 8000),
            pod,
            backend: SocketAddr::new(address(pod, v6), *random.pick(&LISTENED)),
            masquerade: random.chance(0.4),
        }
    }

    /// As rules of nft before and after routing.
    fn rules(&self) -> [String; 2] {
        let (family, node) = match self.frontend.ip() {
            IpAddr::V4(_) => ("ip", IpAddr::from(GATEWAY)),
            IpAddr::V6(_) => ("ip6", GATEWAY_V6.into()),
        };
        let (frontend, backend) = (self.frontend.ip(), self.backend);
        let before = format!(
            "{family} daddr {frontend} meta l4proto {{ tcp, udp }} th dport 8000 dnat {family} to {backend}\n"
        );
        // Without, a pod that calls itself would answer itself past the node.
        let whom = if self.masquerade {
            ""
        } else {
            &format!("{family} saddr {} ", backend.ip())
        };
        let after = format!("{whom}ct original {family} daddr {frontend} snat {family} to {node}\n");
        [before, after]
    }
}

fn address(pod: usize, v6: bool) -> IpAddr {
    let (four, six) = pod_addresses(pod);
    if v6 { six.into() } else { four.into() }
}

/// Rules that replace those of the round before.
fn table(translations: &[Translation]) -> String {
    let [before, after]: [String; 2] =
        [0, 1].map(|side| translations.iter().map(|one| one.rules()[side].clone()).collect());
    format!(
        "table inet proxy {{}}; delete table inet proxy; table inet proxy {{
            chain before {{ type nat hook prerouting priority dstnat;\n{before} }};
            chain after {{ type nat hook postrouting priority srcnat;\n{after} }}; }}"
    )
}

fn selector(random: &mut Random) -> Value {
    let value = *random.pick(&["1", "2"]);
    match random.below(6) {
        0 => json!({}),
        1 | 2 => json!({"matchLabels": {"team": value}}),
        3 => json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": [value]}]}),
        4 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
        _ => json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
    }
}

fn peer(random: &mut Random) -> Value {
    match random.below(5) {
        0 => json!({"podSelector": selector(random)}),
        1 => json!({"namespaceSelector": selector(random)}),
        2 => json!({"namespaceSelector": selector(random), "podSelector": selector(random)}),
        3 => {
            let v6 = random.chance(0.5);
            let excepted = address(random.below(9), v6);
            let (all, length) = if v6 { (POD_CIDR_V6, 128) } else { (POD_CIDR, 32) };
            json!({"ipBlock": {"cidr": all, "except": [format!("{excepted}/{length}")]}})
        }
        _ => {
            json!({"ipBlock": {"cidr": *random.pick(&["203.0.113.0/24", "192.0.2.0/24", "2001:db8::/64", "0.0.0.0/0", "::/0"])}})
        }
    }
}

fn rule(random: &mut Random, peers: &str) -> Value {
    let mut rule = json!({});
    if random.chance(0.8) {
        rule[peers] = (0..1 + random.below(2)).map(|_| peer(random)).collect();
    }
    if random.chance(0.6) {
        rule["ports"] = (0..1 + random.below(2))
            .map(|_| {
                let protocol = *random.pick(&["TCP", "UDP"]);
                match random.below(4) {
                    0 => json!({"protocol": protocol}),
                    1 => json!({"protocol": protocol, "port": 80, "endPort": 81}),
                    2 => json!({"protocol": protocol, "port": "web"}),
                    _ => json!({"protocol": protocol, "port": *random.pick(&LISTENED)}),
                }
            })
            .collect();
    }
    rule
}

/// Every pod has labels anew, and there are other policies.
fn world(random: &mut Random, bed: &Bed) -> World {
    let mut world = World::of(bed);
    let labelled = |random: &mut Random| {
        let mut all = labels([("team", *random.pick(&["1", "2"]))]);
        if random.chance(0.5) {
            all.insert("tier".to_owned(), "front".to_owned());
        }
        all
    };
    for of_namespace in world.namespaces.values_mut() {
        *of_namespace = labelled(random);
    }
    for pod in world.pods.values_mut() {
        pod.labels = labelled(random);
        // One name, and other numbers in other pods.
        let number = *random.pick(&LISTENED);
        pod.ports = vec![("web".to_owned(), number, *random.pick(&["TCP", "UDP"]))];
    }
    for number in 0..1 + random.below(5) {
        let mut spec = json!({"podSelector": selector(random), "policyTypes": []});
        for (way, list, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
            if random.chance(0.6) {
                spec["policyTypes"].as_array_mut().unwrap().push(json!(way));
                spec[list] = (0..random.below(3)).map(|_| rule(random, peers)).collect();
            }
        }
        // None would stand for ingress.
        if spec["policyTypes"] == json!([]) {
            spec["policyTypes"] = json!(["Egress"]);
        }
        let namespace = *random.pick(&NAMESPACES);
        world.policy(namespace, &format!("p{number}"), spec);
    }
    world
}

/// What the evaluator says of the true pair, as the node judges it: of an external end nothing.
fn allows(cluster: &Cluster, from: IpAddr, to: SocketAddr, is_tcp: bool) -> bool {
    let service = Service {
        protocol: if is_tcp { 6 } else { 17 },
        port: Some(to.port()),
        source_port: None,
    };
    judge(
        cluster,
        &identify(cluster, from),
        &identify(cluster, to.ip()),
        service,
    )
    .allow()
}

fn flows(random: &mut Random, cluster: &Cluster, pods: usize, translations: &[Translation]) -> Vec<Flow> {
    let mut flows = Vec::new();
    while flows.len() < FLOWS {
        let (from, v6) = (random.below(pods), random.chance(0.5));
        let is_tcp = random.chance(0.3);
        // A pod is nobody's client at its own address: such packets do not leave it.
        let (to, pod, backend) = match random.below(4) {
            0 => {
                let pod = random.below(pods);
                let to = SocketAddr::new(address(pod, v6), *random.pick(&LISTENED));
                (to, pod, to)
            }
            1 => {
                let outside: IpAddr = if v6 {
                    "2001:db8::10".parse().unwrap()
                } else {
                    EXTERNAL_MORE[5].into()
                };
                let to = SocketAddr::new(outside, *random.pick(&LISTENED[1..]));
                (to, pods, to)
            }
            _ => {
                let one = random.pick(translations);
                (one.frontend, one.pod, one.backend)
            }
        };
        if to.ip() == address(from, to.is_ipv6()) {
            continue;
        }
        let source = address(from, to.is_ipv6());
        let arrives = allows(cluster, source, backend, is_tcp).then_some((pod, backend.port()));
        flows.push(Flow {
            from,
            to,
            is_tcp,
            arrives,
        });
    }
    flows
}

#[test]
fn what_passes_random_policies_and_translation_is_what_the_reference_allows_of_the_true_pair() {
    let Some(_alone) = runs_here("random clusters on a node") else {
        return;
    };
    let seed = std::env::var("SEED").map_or(43, |text| text.parse().unwrap());
    let settings = Settings {
        pod_cidrs: [POD_CIDR, POD_CIDR_V6]
            .map(|network| network.parse().unwrap())
            .to_vec(),
        ..Settings::default()
    };
    for (role, seed) in [Role::Node, Role::Bridge].into_iter().zip(seed..) {
        let mut random = Random::new(seed);
        let plans: Vec<Plan> = NAMESPACES
            .iter()
            .flat_map(|namespace| {
                NAMES.map(|name| Plan {
                    tcp: Vec::new(),
                    udp: Vec::new(),
                    ..Plan::new(&format!("{namespace}/{name}"))
                })
            })
            .collect();
        let bed = Bed::new(role, &plans, 1).unwrap();
        let members = bed.pods.iter().map(|pod| (pod, &LISTENED[..]));
        // The bed's own server is at the external client's port 80.
        let listeners: Vec<Listener> = members
            .chain([(&bed.external, &LISTENED[1..])])
            .map(|(member, ports)| Listener::new(member, ports))
            .collect();
        let firewall = start(&bed, &World::of(&bed));
        let mut verdicts = [[0; 2]; 2];
        for round in 0..ROUNDS {
            let translations: Vec<Translation> = [false, true]
                .into_iter()
                .flat_map(|v6| (0..FRONTENDS).map(move |number| (number, v6)))
                .map(|(number, v6)| Translation::random(&mut random, number, plans.len(), v6))
                .collect();
            bed.translate(&table(&translations)).unwrap();
            world(&mut random, &bed).apply(&firewall).unwrap();
            let cluster = folder::load(&bed.manifests(), &settings).unwrap().cluster;
            let flows = flows(&mut random, &cluster, plans.len(), &translations);
            for flow in &flows {
                let is_translated = flow.to.port() == 8000;
                verdicts[usize::from(is_translated)][usize::from(flow.arrives.is_some())] += 1;
            }
            let different = volley(&bed, &firewall, &listeners, &flows);
            assert!(
                different.is_empty(),
                "{role:?}, SEED={seed}, round {round}: {} of {}\n{}",
                different.len(),
                flows.len(),
                different.join("\n")
            );
        }
        println!(
            "{role:?}, SEED={seed}: denied and allowed, direct {:?}, translated {:?}",
            verdicts[0], verdicts[1]
        );
        assert!(verdicts.iter().flatten().all(|count| *count > 10), "{verdicts:?}");
    }
}
