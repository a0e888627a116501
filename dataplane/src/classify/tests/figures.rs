//! How long a first packet's classification and a change of the tables take. Not tests: run with
//! `cargo test --release -p ringwall-dataplane figures -- --ignored --nocapture --test-threads 1`.

use std::time::Instant;

use super::*;
use crate::rcu;

/// Nanoseconds that this thread has had of a CPU: others' use of it does not count.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Numbers without an order.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most
    }
}

/// Pods 0.. with an IPv4 and an IPv6 address each; policies of ten rules each, one for ingress and one for egress rows,
/// every rule with ports of its own and 16 classes that it admits.
struct Tables {
    builder: ImageBuilder,
    identities: Vec<(u32, Identity)>,
}

fn pod_v4(pod: usize) -> Addr {
    v4(10, (pod >> 16) as u8, (pod >> 8) as u8, pod as u8)
}

fn pod_v6(pod: usize) -> Addr {
    let [a, b, c, d] = (pod as u32).to_be_bytes();
    Addr::v6([0xfd, 0, 0, 1, 0, 2, a, b, 0, 0, 0, 0, 0, 0, c, d])
}

impl Tables {
    fn new(rules: usize, pods: usize, classes: u32) -> Self {
        let mut builder = ImageBuilder::new(Generation(0));
        let mut random = Random(7);
        builder.classes(classes);
        let policies = (rules / 10).max(1);
        let mut rows = vec![0];
        for number in 0..policies {
            let policy = builder.policy(
                "NetworkPolicy",
                "NetworkPolicy",
                "space",
                &format!("policy-{number}"),
            );
            let isolating = builder.isolating(&[policy]);
            let row = builder.row(isolating, &[]);
            for rule in 0..rules.min(10) as u32 {
                let rule = builder.rule(policy, rule);
                let port = random.below(30_000) as u16;
                let ranges = [
                    PortRange::allow(6, port, port, rule),
                    PortRange::allow(6, port + 1000, port + 1010, rule),
                ];
                let map = builder.port_map(PortDecision::DENY, &ranges);
                for _ in 0..16 {
                    builder.set_cell(row, random.below(classes as usize) as u32, map);
                }
            }
            rows.push(row);
        }
        builder.expect_hosts(pods, pods);
        let node = builder.node("node");
        let identities = (0..pods)
            .map(|pod| {
                let is = Identity {
                    kind: IdentityKind::Pod,
                    endpoint: builder.next_endpoint(),
                    node,
                    peer_class: random.below(classes as usize) as u32,
                    ingress: rows[1 + random.below(policies)],
                    egress: rows[1 + random.below(policies)],
                    epoch: pod as u64,
                };
                let identity = builder.identity(is);
                builder.endpoint(
                    &format!("space-{}", pod % 1000),
                    &format!("pod-{pod}-5d8f7c9b4d-x2x4z"),
                    false,
                    identity,
                );
                builder.host(pod_v4(pod), identity);
                builder.host(pod_v6(pod), identity);
                (identity, is)
            })
            .collect();
        let unknown = builder.identity(somewhere(IdentityKind::Unknown, 0));
        builder.prefix(v4(10, 0, 0, 0), 8, unknown);
        for node in 0..64 {
            builder.prefix(pod_v6(node << 8), 120, unknown);
        }
        for block in 0..256 {
            let class = random.below(classes as usize) as u32;
            let identity = builder.identity(somewhere(IdentityKind::External, class));
            builder.prefix(v4(172, 16, block as u8, 0), 20 + (block % 8) as u8, identity);
            let mut addr = [
                0x20,
                0x01,
                0x0d,
                0xb8,
                0,
                block as u8,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            addr[7] = (block % 7) as u8;
            builder.prefix(Addr::v6(addr), 48 + (block % 3) as u8 * 8, identity);
        }
        Self { builder, identities }
    }

    fn snapshot(&mut self) -> Snapshot {
        let image = self.builder.image(Generation(1), [0; 32]).unwrap();
        Snapshot::open(&image.to_bytes()).unwrap()
    }
}

fn one_by_one(snapshot: &Snapshot, asked: &[FirstPacket]) -> usize {
    let mut allowed = 0;
    for FirstPacket { src, dst, l4 } in asked {
        let (from, to) = (snapshot.identify(*src), snapshot.identify(*dst));
        let judgement = snapshot.judge(&from, &to, *src, *dst, *l4, NodeExemption::Untrusted);
        allowed += usize::from(judgement.allow());
    }
    allowed
}

fn batched(snapshot: &Snapshot, asked: &[FirstPacket]) -> usize {
    let mut allowed = 0;
    for packets in asked.chunks(BATCH) {
        let judged = snapshot.judge_many(packets, |_, _, _| NodeExemption::Untrusted);
        allowed += judged.iter().filter(|judged| judged.judgement.allow()).count();
    }
    allowed
}

/// Best, median and worst of nine rounds, in nanoseconds per packet.
fn measure(
    name: &str,
    snapshot: &Snapshot,
    asked: &[FirstPacket],
    how: fn(&Snapshot, &[FirstPacket]) -> usize,
) {
    let mut taken = Vec::new();
    for _ in 0..9 {
        let start = cpu_nanos();
        let mut packets = 0;
        while packets < 1_000_000 {
            std::hint::black_box(how(snapshot, asked));
            packets += asked.len();
        }
        taken.push((cpu_nanos() - start) as f64 / packets as f64);
    }
    taken.sort_by(f64::total_cmp);
    println!(
        "{name}: {:.1} ns ({:.1} median, {:.1} worst)",
        taken[0], taken[4], taken[8]
    );
}

fn asks(count: usize, src: impl Fn(usize) -> Addr, dst: impl Fn(usize) -> Addr) -> Vec<FirstPacket> {
    let packet = |at: usize| FirstPacket {
        src: src(at),
        dst: dst(at),
        l4: tcp((at * 7919 % 31_000) as u16),
    };
    (0..count).map(packet).collect()
}

#[test]
#[ignore = "a measurement"]
fn classification_figures() {
    for rules in [10, 100, 1_000, 10_000, 100_000] {
        let mut tables = Tables::new(rules, 10_000, 640);
        let snapshot = tables.snapshot();
        println!("{rules} rules: {:?}", snapshot.sizes());
        // The same 512 pairs of pods, whatever else there is: what they need fits the second level's cache.
        let few = |pod: fn(usize) -> Addr| {
            asks(
                512,
                move |at| pod(at * 19 % 10_000),
                move |at| pod(at * 31 % 10_000),
            )
        };
        let all = asks(
            100_003,
            |at| pod_v4(at * 7 % 10_000),
            |at| pod_v4(at * 13 % 10_007 % 10_000),
        );
        let out = |at: usize| match at % 2 {
            0 => v4(172, 16, at as u8, 77),
            _ => v4(93, 184, at as u8, 34),
        };
        let out6 = |at: usize| {
            Addr::v6([
                0x20,
                0x01,
                0x0d,
                0xb8,
                0,
                at as u8,
                0,
                (at % 7) as u8,
                at as u8,
                0,
                0,
                0,
                0,
                0,
                0,
                1,
            ])
        };
        for (name, how) in [
            ("alone", one_by_one as fn(&Snapshot, &[FirstPacket]) -> usize),
            ("batched", batched),
        ] {
            measure(
                &format!("  {name}, 512 pairs, IPv4"),
                &snapshot,
                &few(pod_v4),
                how,
            );
            measure(
                &format!("  {name}, 512 pairs, IPv6"),
                &snapshot,
                &few(pod_v6),
                how,
            );
            measure(
                &format!("  {name}, 512 pairs, outside to pod, IPv4"),
                &snapshot,
                &asks(512, out, |at| pod_v4(at * 31 % 10_000)),
                how,
            );
            measure(
                &format!("  {name}, 512 pairs, outside to pod, IPv6"),
                &snapshot,
                &asks(512, out6, |at| pod_v6(at * 31 % 10_000)),
                how,
            );
            measure(&format!("  {name}, 100,003 pairs, IPv4"), &snapshot, &all, how);
        }
    }
}

/// What one changed pod costs, from the builder to the adoption by a reader, without sockets.
#[test]
#[ignore = "a measurement"]
fn change_figures() {
    for (pods, rules, classes) in [(10_000, 10_000, 640), (100_000, 100_000, 6_400)] {
        let mut tables = Tables::new(rules, pods, classes);
        let mut image = tables.builder.image(Generation(1), [0; 32]).unwrap();
        let start = cpu_nanos();
        let bytes = image.to_bytes();
        let whole = cpu_nanos() - start;
        let start = cpu_nanos();
        let mut snapshot = Snapshot::open(&bytes).unwrap();
        let open = cpu_nanos() - start;
        println!(
            "{pods} pods, {} MB: to bytes {} ms, open {} ms",
            bytes.len() >> 20,
            whole / 1_000_000,
            open / 1_000_000,
        );
        let (mut publisher, mut readers) = rcu::channel(1);
        publisher.publish(snapshot.clone());
        let mut random = Random(3);
        let mut stages: [Vec<f64>; 5] = Default::default();
        let mut lengths = Vec::new();
        for generation in 2..1002 {
            let pod = random.below(pods);
            let (identity, is) = tables.identities[pod];
            let mut began = Instant::now();
            let mut lap = |stage: usize| {
                stages[stage].push(began.elapsed().as_nanos() as f64 / 1000.0);
                began = Instant::now();
            };
            // It is another pod of its name: gone and come.
            let builder = &mut tables.builder;
            builder.remove_host(pod_v4(pod));
            builder.remove_host(pod_v6(pod));
            builder.free_endpoint(is.endpoint);
            builder.free_identity(identity);
            let is = Identity {
                endpoint: builder.next_endpoint(),
                epoch: generation,
                ..is
            };
            let identity = builder.identity(is);
            builder.endpoint("space", &format!("pod-{pod}-{generation}"), false, identity);
            builder.host(pod_v4(pod), identity);
            builder.host(pod_v6(pod), identity);
            tables.identities[pod] = (identity, is);
            let next = builder.image(Generation(generation), [0; 32]).unwrap();
            lap(0);
            let delta = next.delta_since(&image).unwrap();
            lap(1);
            lengths.push(delta.len());
            image = next;
            snapshot = snapshot.apply(&delta).unwrap();
            lap(2);
            publisher.publish(snapshot.clone());
            readers[0].adopt();
            lap(3);
            publisher.reclaim();
            lap(4);
        }
        lengths.sort_unstable();
        println!(
            "  delta: {} bytes, {} at most",
            lengths[lengths.len() / 2],
            lengths[lengths.len() - 1]
        );
        for (name, mut taken) in ["build", "delta", "apply", "publish and adopt", "free"]
            .into_iter()
            .zip(stages)
        {
            taken.sort_by(f64::total_cmp);
            println!(
                "  {name}: median {:.0} µs, p99 {:.0} µs",
                taken[taken.len() / 2],
                taken[taken.len() * 99 / 100]
            );
        }
    }
}
