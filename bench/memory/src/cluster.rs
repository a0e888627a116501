//! The policy of the loads: pods that are all isolated in both directions, by as many rules as are asked for.

use anyhow::Context;
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, Identity, IdentityKind, ImageBuilder, NONE, PortDecision, PortRange, Snapshot},
    wire::protocol,
};

/// The port that every pod may send to at every pod, by UDP and TCP.
pub const OPEN_PORT: u16 = 53;
/// A port that no policy allows.
pub const CLOSED_PORT: u16 = 54;
/// Pods, numbered from 0; a power of two.
pub const PODS: u32 = 8_192;
/// Classes of peers that rules tell apart.
const CLASSES: u32 = 640;
/// Classes that one rule admits to ports of its own.
const CLASSES_PER_RULE: u32 = 16;
const RULES_PER_POLICY: usize = 10;
const IPV6_PREFIX: [u8; 12] = [0xfd, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0];

/// IPv4 address of a pod; its low 32 bits are those of the IPv6 address, too.
pub fn pod_v4(pod: u32) -> u32 {
    0x0a00_0000 + pod
}

/// An address of a pod from its low 32 bits.
pub fn addr(low: u32, v6: bool) -> Addr {
    if !v6 {
        return Addr::v4(low.to_be_bytes());
    }
    let mut octets = [0; 16];
    octets[..12].copy_from_slice(&IPV6_PREFIX);
    octets[12..].copy_from_slice(&low.to_be_bytes());
    Addr::v6(octets)
}

/// Numbers without an order, the same ones every time.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(limit)) as u32
    }
}

/// The tables of the cluster, which can change.
#[derive(Debug)]
pub struct Cluster {
    builder: ImageBuilder,
    pods: Vec<(u32, Identity)>,
    generation: u64,
}

impl Cluster {
    /// Policies of ten rules each. Every policy opens [`OPEN_PORT`] to all pods, and each of its rules ports of its own to
    /// 16 classes of pods; every pod is isolated in each direction by one policy drawn for it.
    pub fn new(rules: usize) -> Self {
        let mut builder = ImageBuilder::seeded(Generation(0), 7);
        let mut random = Random(7);
        builder.classes(CLASSES);
        let policies = (rules / RULES_PER_POLICY).max(1);
        let rows: Vec<u32> = (0..policies)
            .map(|number| {
                let policy = builder.policy(
                    "NetworkPolicy",
                    "NetworkPolicy",
                    "bench",
                    &format!("policy-{number}"),
                );
                let isolating = builder.isolating(&[policy]);
                let first = builder.rule(policy, 0);
                let open = [protocol::TCP, protocol::UDP]
                    .map(|protocol| PortRange::allow(protocol, OPEN_PORT, OPEN_PORT, first));
                let common = builder.port_map(PortDecision::DENY, &open);
                let row = builder.row(isolating, &vec![common; CLASSES as usize]);
                for rule in 1..rules.min(RULES_PER_POLICY) as u32 {
                    let rule = builder.rule(policy, rule);
                    let port = 1_000 + random.below(30_000) as u16;
                    let own = [
                        open[0],
                        PortRange::allow(protocol::TCP, port, port + 10, rule),
                        open[1],
                        PortRange::allow(protocol::UDP, port, port, rule),
                    ];
                    let map = builder.port_map(PortDecision::DENY, &own);
                    for _ in 0..CLASSES_PER_RULE {
                        builder.set_cell(row, random.below(CLASSES), map);
                    }
                }
                row
            })
            .collect();
        builder.expect_hosts(PODS as usize, PODS as usize);
        let row = |random: &mut Random| rows[random.below(rows.len() as u32) as usize];
        let pods = (0..PODS)
            .map(|pod| {
                let identity = Identity {
                    kind: IdentityKind::Pod,
                    endpoint: builder.next_endpoint(),
                    node: NONE,
                    peer_class: random.below(CLASSES),
                    ingress: row(&mut random),
                    egress: row(&mut random),
                    epoch: 1,
                };
                let index = builder.identity(identity);
                builder.endpoint("bench", &format!("pod-{pod}"), false, index);
                for v6 in [false, true] {
                    builder.host(addr(pod_v4(pod), v6), index);
                }
                (index, identity)
            })
            .collect();
        Self {
            builder,
            pods,
            generation: 0,
        }
    }

    /// The next generation: the same policy, and where `epochs` says so with new epochs of all pods, so that every flow
    /// has to be judged again.
    pub fn snapshot(&mut self, epochs: bool) -> anyhow::Result<Snapshot> {
        self.generation += 1;
        if epochs {
            for (index, identity) in &mut self.pods {
                identity.epoch += 1;
                self.builder.set_identity(*index, *identity);
            }
        }
        let image = self
            .builder
            .image(Generation(self.generation), [0; 32])
            .context("making the image of the cluster")?;
        Ok(Snapshot::from_image(&image))
    }
}
