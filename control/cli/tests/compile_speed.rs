//! How long compiling, opening and asking take, over synthetic clusters. Not a pass or fail:
//!
//! `cargo test --release -p ringwall --no-default-features --test compile_speed -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a measurement says what failed by panicking

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use ringwall_compile::{Budget, Compiler, EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
};
use ringwall_policy::{
    Cluster, Labels, NAMESPACE_NAME_LABEL, NamedPort, Namespace, NetworkPolicy, Node, Object, ObjectKey,
    Operator, Peer, Pod, PortMatch, Protocol, Requirement, Rule, Selector,
};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{EventKind, Spec, Synthetic};

/// Choices from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

const APPS: usize = 8;

fn having(key: &str, value: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: key.to_owned(),
            operator: Operator::In(BTreeSet::from([value.to_owned()])),
        }],
    }
}

fn app(random: &mut Random) -> Selector {
    having("app", &format!("app{}", random.below(APPS)))
}

/// Namespaces of 8 applications with 5 labels, one of them a hash; policies with one or two rules each way: half of the
/// peers within the namespace, a fifth another namespace, a fifth across all, a tenth blocks.
fn synthetic(policies: usize, pods: usize, namespaces: usize) -> Cluster {
    let random = &mut Random(1);
    let mut cluster = Cluster::default();
    for number in 0..namespaces {
        let name = format!("ns{number}");
        let labels = [
            (NAMESPACE_NAME_LABEL, name.clone()),
            ("team", format!("t{}", number % 20)),
        ];
        cluster.insert(Object::Namespace(Namespace {
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            name,
            terminating: false,
        }));
    }
    let nodes = pods.div_ceil(100);
    let address = |node: usize, last: usize| Ipv4Addr::from(0x0a00_0000 + ((node as u32) << 8) + last as u32);
    for node in 0..nodes {
        cluster.insert(Object::Node(Node {
            name: format!("node{node}"),
            addresses: vec![Ipv4Addr::from(0xc0a8_0000 + node as u32).into()],
            pod_cidrs: vec![IpNet::new(address(node, 0).into(), 24).unwrap()],
        }));
    }
    for number in 0..pods {
        let app = random.below(APPS);
        let labels = [
            ("app", format!("app{app}")),
            ("tier", ["fe", "be", "db"][app % 3].to_owned()),
            ("version", format!("v{}", random.below(2))),
            ("pod-template-hash", format!("{:x}", random.below(1 << 30))),
        ];
        let mut labels: Labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
        if random.below(10) == 0 {
            labels.insert("canary".to_owned(), String::new());
        }
        let port = |name: &str, number| NamedPort {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            number,
        };
        let node = number % nodes;
        cluster.insert(Object::Pod(Pod {
            uid: format!("00000000-0000-0000-0000-{number:012}"),
            created: Some(number as i64),
            labels,
            addresses: vec![address(node, number / nodes + 2).into()],
            node: Some(format!("node{node}")),
            named_ports: vec![port("http", 8080), port("metrics", 9090 + app as u16)],
            ..Pod::new(ObjectKey {
                namespace: format!("ns{}", random.below(namespaces)),
                name: format!("app{app}-{number}"),
            })
        }));
    }
    for number in 0..policies {
        let whole = number < namespaces && random.below(2) == 0;
        let subjects = if whole { Selector::default() } else { app(random) };
        let ingress = Some(rules(random, namespaces));
        let egress = (random.below(2) == 0).then(|| {
            let dns = |protocol| PortMatch::Range {
                protocol,
                lo: 53,
                hi: 53,
            };
            let mut rules = rules(random, namespaces);
            rules.push(Rule {
                peers: Some(vec![Peer::Pods {
                    namespaces: Some(having(NAMESPACE_NAME_LABEL, "ns0")),
                    pods: having("app", "app0"),
                }]),
                ports: Some(vec![dns(Protocol::Udp), dns(Protocol::Tcp)]),
            });
            rules
        });
        cluster.insert(Object::NetworkPolicy(NetworkPolicy {
            key: ObjectKey {
                namespace: format!("ns{}", number % namespaces),
                name: format!("policy{number}"),
            },
            uid: String::new(),
            subjects,
            ingress,
            egress,
            types_written: false,
            answer: None,
            faults: Vec::new(),
        }));
    }
    cluster.settings.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    cluster
}

fn rules(random: &mut Random, namespaces: usize) -> Vec<Rule> {
    (0..1 + random.below(2))
        .map(|_| Rule {
            peers: (random.below(10) != 0).then(|| {
                (0..1 + random.below(3))
                    .map(|_| peer(random, namespaces))
                    .collect()
            }),
            ports: (random.below(4) != 0).then(|| (0..1 + random.below(2)).map(|_| port(random)).collect()),
        })
        .collect()
}

fn peer(random: &mut Random, namespaces: usize) -> Peer {
    let pods = |namespaces, pods| Peer::Pods { namespaces, pods };
    match random.below(10) {
        0..=4 => pods(None, app(random)),
        5 | 6 => {
            let name = format!("ns{}", random.below(namespaces));
            pods(Some(having(NAMESPACE_NAME_LABEL, &name)), Selector::default())
        }
        7 => pods(
            Some(having("team", &format!("t{}", random.below(20)))),
            having("tier", "fe"),
        ),
        8 => pods(Some(Selector::default()), having("app", "app1")),
        _ if random.below(3) == 0 => Peer::Block {
            cidr: "0.0.0.0/0".parse().unwrap(),
            except: vec!["10.0.0.0/8".parse().unwrap(), "192.168.0.0/16".parse().unwrap()],
        },
        _ => Peer::Block {
            cidr: IpNet::new(
                Ipv4Addr::new(100, random.below(256) as u8, random.below(256) as u8, 0).into(),
                24,
            )
            .unwrap(),
            except: Vec::new(),
        },
    }
}

fn port(random: &mut Random) -> PortMatch {
    let protocol = Protocol::Tcp;
    match random.below(5) {
        0 => PortMatch::Named {
            protocol,
            name: ["http", "metrics"][random.below(2)].to_owned(),
        },
        1 => {
            let lo = 30_000 + random.below(1000) as u16;
            PortMatch::Range {
                protocol,
                lo,
                hi: lo + 100,
            }
        }
        _ => {
            let port = [80, 443, 8080, 5432, 6379, 9090][random.below(6)];
            PortMatch::Range {
                protocol,
                lo: port,
                hi: port,
            }
        }
    }
}

/// Time that this thread had a processor: other programs are none of its business.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[0], times[times.len() - 1])
}

#[test]
#[ignore = "a measurement, for release builds"]
fn figures() {
    for (policies, pods, namespaces, rounds) in [
        (200, 1_000, 20, 21),
        (1_000, 10_000, 100, 11),
        (10_000, 100_000, 1_000, 5),
    ] {
        let cluster = synthetic(policies, pods, namespaces);
        let (mut compiling, mut opening) = (Vec::new(), Vec::new());
        let mut last = None;
        for _ in 0..rounds {
            let start = processor_time();
            let image = compile(&cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
            compiling.push(processor_time() - start);
            let start = Instant::now();
            let snapshot = Snapshot::open(&image.bytes).unwrap();
            opening.push(start.elapsed());
            last = Some((image.stats, snapshot));
        }
        let (stats, snapshot) = last.unwrap();
        println!("{policies} policies, {pods} pods, {namespaces} namespaces");
        println!("  compile, median (least, most): {:?}", median(compiling));
        println!("  open:                          {:?}", median(opening));
        println!("  {stats:?}\n  {:?}", snapshot.sizes());

        let random = &mut Random(2);
        let addresses: Vec<Addr> = cluster.pods.values().map(|pod| pod.addresses[0].into()).collect();
        let flows: Vec<(Addr, Addr, u16)> = (0..1 << 16)
            .map(|_| {
                let outside = Addr::v4([100, random.below(256) as u8, random.below(256) as u8, 7]);
                let pod = addresses[random.below(addresses.len())];
                let dst = if random.below(4) == 0 { outside } else { pod };
                let port = [80, 443, 8080, 30_050, 9][random.below(5)];
                (addresses[random.below(addresses.len())], dst, port)
            })
            .collect();
        for (name, flows, rounds) in [
            ("65,536 flows", &flows[..], 20),
            ("256 flows", &flows[..256], 5000),
        ] {
            let mut times = Vec::new();
            for _ in 0..5 {
                let start = Instant::now();
                let mut allowed = 0_u64;
                for _ in 0..rounds / 5 {
                    for (from, to, port) in flows {
                        let (src, dst) = (snapshot.identify(*from), snapshot.identify(*to));
                        let l4 = L4::Port {
                            protocol: 6,
                            port: *port,
                            source: 0,
                        };
                        let judgement = snapshot.judge(&src, &dst, *from, *to, l4, NodeExemption::Trusted);
                        allowed += u64::from(judgement.allow());
                    }
                }
                assert!(allowed > 0);
                times.push(start.elapsed() / (rounds / 5) / flows.len() as u32);
            }
            println!("  both ends and verdict, {name} in turn: {:?}", median(times));
        }
    }
}

/// Times of one kind of change, in microseconds.
#[derive(Default)]
struct Times {
    update: Vec<u64>,
    delta: Vec<u64>,
    bytes: Vec<u64>,
    in_full: usize,
}

fn spread(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    format!("{} / {} / {} / {}", at(0.5), at(0.9), at(0.99), at(1.0))
}

/// What one event costs: the update and the delta that a dataplane gets. The churn of synthetic clusters, and a pod that
/// has labels of its own: a new cohort in a new class.
#[test]
#[ignore = "a measurement, for release builds"]
fn changes() {
    for (policies, pods, namespaces, events) in [(1_000, 10_000, 100, 4_000), (10_000, 100_000, 1_000, 4_000)]
    {
        let mut synthetic = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
        let mut cluster = Cluster::default();
        let decoded = |object: &serde_json::Value| decode(object).unwrap().remove(0).object;
        for object in synthetic.objects() {
            cluster.insert(decoded(&object));
        }
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let start = processor_time();
        let first = compiler.update(&cluster, Generation(1)).unwrap();
        println!("{policies} policies, {pods} pods, {namespaces} namespaces");
        println!("  in full {:?}, {:?}", processor_time() - start, first.stats);
        println!("  {:?}", Snapshot::from_image(&first.image).sizes());
        let mut last = first.image;
        let mut times: std::collections::BTreeMap<String, Times> = Default::default();
        let mut generation = 1;
        let mut update = |cluster: &Cluster, what: String| {
            generation += 1;
            let start = Instant::now();
            let compiled = compiler.update(cluster, Generation(generation)).unwrap();
            let took = start.elapsed().as_micros() as u64;
            let times = times.entry(what).or_default();
            if compiled.incremental {
                let start = Instant::now();
                let delta = compiled.image.delta_since(&last).map_or(0, |delta| delta.len());
                times.delta.push(start.elapsed().as_micros() as u64);
                times.bytes.push(delta as u64);
                times.update.push(took);
            } else {
                times.in_full += 1;
            }
            last = compiled.image;
        };
        for _ in 0..events {
            let event = synthetic.churn();
            let object = decoded(&event.object);
            if event.kind == EventKind::Deleted {
                cluster.remove(&object.reference().unwrap());
            } else {
                cluster.insert(object);
            }
            update(
                &cluster,
                format!("{} {}", event.object["kind"], event.kind.word()),
            );
        }
        let random = &mut Random(7);
        let keys: Vec<ObjectKey> = cluster.pods.keys().cloned().collect();
        let selected: Vec<(String, String)> = cluster
            .policies
            .values()
            .flat_map(|policy| &policy.subjects.requirements)
            .filter_map(|requirement| match &requirement.operator {
                Operator::In(values) => Some((requirement.key.clone(), values.first()?.clone())),
                _ => None,
            })
            .collect();
        for _ in 0..300 {
            let mut pod = (*cluster.pods[&keys[random.below(keys.len())]]).clone();
            // Labels that pods elsewhere have: sets, classes and rows that this namespace has not seen together.
            for _ in 0..2 {
                let (key, value) = selected[random.below(selected.len())].clone();
                pod.labels.insert(key, value);
            }
            cluster.insert(Object::Pod(pod));
            update(&cluster, "Pod with labels of another".to_owned());
        }
        println!("  microseconds: median / p90 / p99 / worst of update; of delta; bytes of delta");
        for (what, times) in times {
            let in_full = times.in_full;
            if times.update.is_empty() {
                println!("  {what}: {in_full} in full");
                continue;
            }
            println!(
                "  {what}: {} times, {in_full} in full: {}; {}; {}",
                times.update.len(),
                spread(times.update),
                spread(times.delta),
                spread(times.bytes)
            );
        }
    }
}
