//! How long a packet takes, in memory. Not a test: run with
//! `cargo test --release -p ringwall-dataplane figures -- --ignored --nocapture --test-threads 1`.

use super::*;
use crate::io::BURST;

/// Nanoseconds that this thread has had of a CPU: others' use of it does not count.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// A worker with a frame waiting for each of `count` flows from the client to others' addresses.
fn loaded(family: usize, count: usize) -> (Dataplane, Worker<MemoryIo>) {
    let pool = MemoryPool::new(count.max(64) + 64, 128);
    let memory = FlowMemory::private((count * 2).max(1 << 16), 7).unwrap();
    let (mut plane, slots) = Dataplane::new(DataplaneConfig::default(), memory, Nanos(0)).unwrap();
    plane.snapshots.publish(World::new(1).snapshot());
    plane.forwarding.publish(wire().build());
    let mut worker = Worker::new(slots.into_iter().next().unwrap(), MemoryIo::new(&pool, &[INSIDE]));
    for flow in 0..count {
        let dst = if family == 0 {
            format!("198.18.{}.{}", flow / 256 % 256, flow % 256)
        } else {
            format!("2001:db8::{:x}:{:x}", flow / 256 % 256, flow % 256)
        };
        let template = from_to(CLIENT[family], &dst);
        assert!(
            worker
                .io()
                .inject(0, &template.udp((flow / 65536) as u16 + 1, 53, b"0123456789"))
        );
    }
    (plane, worker)
}

/// Established flows, `count` of them, one frame each, round and round.
fn measure(name: &str, family: usize, count: usize) {
    let (plane, mut worker) = loaded(family, count);
    let mut taken = Vec::new();
    let mut now = 1u64;
    for _ in 0..7 {
        let start = cpu_nanos();
        let mut frames = 0;
        while frames < 2_000_000 {
            now += 1000;
            frames += worker.run_once(Nanos(now)).frames;
            worker.io().recirculate(0);
        }
        taken.push((cpu_nanos() - start) as f64 / frames as f64);
    }
    taken.sort_by(f64::total_cmp);
    let (best, median, worst) = (taken[0], taken[taken.len() / 2], taken[taken.len() - 1]);
    let stats = plane.stats();
    let drops = stats.sum(|w| w.drops.total());
    println!(
        "{name}: {best:.1} ns/packet at best, {median:.1} median, {worst:.1} at worst, {:.1} Mpps, {drops} drops",
        1000.0 / best
    );
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    measure("wire, IPv4, 1,000 flows", 0, 1_000);
    measure("wire, IPv6, 1,000 flows", 1, 1_000);

    measure("wire, IPv4, 60,000 flows", 0, 60_000);
    measure("wire, IPv4, 500,000 flows", 0, 500_000);
}

/// Packets between isolated pods, none of which may pass, so that each is judged: `pods` pods with a row each.
fn measure_denied(name: &str, pods: u32, at_once: usize) {
    let pool = MemoryPool::new(16_384, 128);
    let memory = FlowMemory::private(1 << 16, 7).unwrap();
    let (mut plane, slots) = Dataplane::new(DataplaneConfig::default(), memory, Nanos(0)).unwrap();
    let mut image = ImageBuilder::new(Generation(1));
    let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "none");
    for pod in 0..pods {
        let rule = image.rule(policy, pod);
        let map = image.port_map(
            PortDecision::DENY,
            &[PortRange::allow(6, pod as u16, pod as u16, rule)],
        );
        let row = image.row(NONE, &[map]);
        let identity = image.identity(Identity {
            kind: IdentityKind::Pod,
            endpoint: pod,
            node: NONE,
            peer_class: 0,
            ingress: row,
            egress: row,
            epoch: 1,
        });
        image.endpoint("default", &pod.to_string(), false, identity);
        let [_, b, c, d] = pod.to_be_bytes();
        image.host(Addr::v4([10, b, c, d]), identity);
    }
    plane
        .snapshots
        .publish(Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap());
    plane.forwarding.publish(wire().build());
    let mut worker = Worker::new(slots.into_iter().next().unwrap(), MemoryIo::new(&pool, &[INSIDE]));
    let pod = |number: u32| {
        let [_, b, c, d] = (number % pods).to_be_bytes();
        format!("10.{b}.{c}.{d}")
    };
    let frames: Vec<Vec<u8>> = (0..8192_u32)
        .map(|number| from_to(&pod(number * 7919), &pod(number * 104_729 + 1)).udp(1, 53, b"0123456789"))
        .collect();
    let mut taken = Vec::new();
    let (mut now, mut next) = (1_u64, 0);
    for _ in 0..7 {
        let (mut nanos, mut judged) = (0, 0);
        while judged < 500_000 {
            for _ in 0..4096 {
                assert!(worker.io().inject(0, &frames[next % frames.len()]));
                next += 1;
            }
            let start = cpu_nanos();
            for _ in 0..4096 / at_once {
                now += 1000;
                judged += worker.run_once(Nanos(now)).frames;
            }
            nanos += cpu_nanos() - start;
        }
        taken.push(nanos as f64 / judged as f64);
    }
    taken.sort_by(f64::total_cmp);
    let denied = plane.stats().sum(|w| w.drops.total());
    assert!(denied >= 500_000 * 7);
    println!(
        "{name}: {:.1} ns/packet at best, {:.1} median, {:.1} at worst",
        taken[0], taken[3], taken[6]
    );
}

#[test]
#[ignore = "a measurement"]
fn denied_figures() {
    measure_denied("denied, 64 pods", 64, BURST);
    measure_denied("denied, 20,000 pods", 20_000, BURST);
}

/// How long a successor takes to build its index anew over the flows that it finds.
#[test]
#[ignore = "a measurement"]
fn successor() {
    use crate::{
        flow::{
            entry::{AllowedBy, DecisionStamp},
            memory::{self, SEGMENTS},
            state::State,
        },
        wire::FlowKey,
    };
    const ENTRIES: usize = 262_144;
    let config = DataplaneConfig::default();
    let stamp = DecisionStamp {
        generation: Generation(1),
        epochs: [1, 2],
        provenance: [3, 4],
        allowed_by: AllowedBy::Policy,
    };
    for flows in [0_usize, 1_000, 60_000] {
        let memory = FlowMemory::private(ENTRIES, 7).unwrap();
        let mut tables = memory.into_tables(1, &config.flow, None);
        for flow in 0..flows {
            let [.., a, b, c] = flow.to_be_bytes();
            let key = FlowKey {
                src: Addr::v4([10, a, b, c]),
                dst: Addr::v4([10, 200, 0, 1]),
                zone: 0,
                vlan: 0,
                src_port: 7,
                dst_port: 8,
                protocol: 17,
            };
            let made = tables[0].insert(&key, State::UdpEstablished, [flow as u32; 2], &stamp, Nanos(2));
            made.unwrap();
        }
        let left: Vec<_> = tables.iter().map(|table| table.bytes()).collect();
        let image = memory::image(7, ENTRIES / SEGMENTS, &left);
        let words: Vec<u64> = image
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        let mut taken: Vec<f64> = (0..7)
            .map(|_| {
                let memory = zerocopy::IntoBytes::as_mut_bytes(words.clone().leak());
                let start = std::time::Instant::now();
                let memory = FlowMemory::open(memory, ENTRIES, 7, Nanos(3)).unwrap();
                let tables = memory.into_tables(1, &config.flow, None);
                let taken = start.elapsed().as_secs_f64() * 1e3;
                assert_eq!(
                    tables.iter().map(|table| table.activity.inherited).sum::<u64>(),
                    flows as u64
                );
                taken
            })
            .collect();
        taken.sort_by(f64::total_cmp);
        println!(
            "{flows} flows in {ENTRIES} places: {:.2} ms ({:.2} to {:.2})",
            taken[3], taken[0], taken[6]
        );
    }
}
