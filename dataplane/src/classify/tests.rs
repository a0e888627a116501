//! The read side against images that are right, damaged and malicious.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what failed by panicking

use std::collections::BTreeMap;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    forged::seal,
    image::checksum,
    layout::{Header, SECTIONS, SectionEntry},
    *,
};
use crate::addr::Addr;

mod deltas;
mod figures;
mod port_ranges;
mod ranges;

fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr {
    Addr::v4([a, b, c, d])
}

fn v6(last: u16) -> Addr {
    let [high, low] = last.to_be_bytes();
    Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
}

const fn somewhere(kind: IdentityKind, peer_class: u32) -> Identity {
    Identity {
        kind,
        endpoint: NONE,
        node: NONE,
        peer_class,
        ingress: 0,
        egress: 0,
        epoch: 1,
    }
}

fn tcp(port: u16) -> L4 {
    L4::Port {
        protocol: 6,
        port,
        source: 0,
    }
}

/// Two pods on node n1, `default/web` (isolated for ingress) and `default/any`; nodes n1 and n2; a pod network with
/// unknown addresses; a block that web accepts. Classes: 0 others, 1 the block, 70 `any`.
fn image() -> Vec<u8> {
    let mut image = ImageBuilder::new(Generation(5));
    let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
    let other = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web-too");
    let (pods, block) = (image.rule(policy, 0), image.rule(other, 3));
    let from_pods = image.port_map(
        PortDecision::DENY,
        &[
            PortRange::allow(6, 80, 80, pods),
            PortRange::allow(6, 8000, 8999, pods),
            PortRange::allow(17, 53, 53, block),
        ],
    );
    let from_block = image.port_map(PortDecision::allow(block), &[]);
    let mut cells = [ImageBuilder::ISOLATED; 71];
    cells[1] = from_block;
    cells[70] = from_pods;
    let isolating = image.isolating(&[policy, other]);
    let row = image.row(isolating, &cells);
    let closed = image.row(isolating, &[]);
    let pod = |endpoint, peer_class, (ingress, egress)| Identity {
        kind: IdentityKind::Pod,
        endpoint,
        node: 0,
        peer_class,
        ingress,
        egress,
        epoch: 2,
    };
    let any = image.identity(pod(0, 70, (0, 0)));
    let sealed = image.identity(pod(1, 0, (closed, closed)));
    let web = image.identity(pod(2, 0, (row, 0)));
    image.endpoint("default", "any", false, any);
    image.endpoint("default", "sealed", true, sealed);
    image.endpoint("default", "web", false, web);
    image.node("n1");
    image.node("n2");
    for node in 0..2 {
        let identity = image.identity(Identity {
            node,
            ..somewhere(IdentityKind::Node, 0)
        });
        image.host(v4(192, 168, 0, node as u8), identity);
    }
    image.host(v4(10, 0, 0, 1), any);
    image.host(v4(10, 0, 0, 2), web);
    image.host(v6(2), web);
    let unknown = image.identity(somewhere(IdentityKind::Unknown, 0));
    let service = image.identity(somewhere(IdentityKind::Service, 0));
    let block = image.identity(somewhere(IdentityKind::External, 1));
    image.prefix(v4(10, 0, 0, 0), 8, unknown);
    image.prefix(v4(10, 96, 0, 0), 12, service);
    image.prefix(v4(203, 0, 113, 128), 25, block);
    image.prefix(v6(0), 112, unknown);
    image.finish([9; 32]).unwrap()
}

fn judge(snapshot: &Snapshot, from: Addr, to: Addr, l4: L4) -> Judgement {
    judge_from(snapshot, from, to, l4, NodeExemption::Trusted)
}

fn judge_from(snapshot: &Snapshot, from: Addr, to: Addr, l4: L4, node: NodeExemption) -> Judgement {
    let (src, dst) = (snapshot.identify(from), snapshot.identify(to));
    snapshot.judge(&src, &dst, from, to, l4, node)
}

#[test]
fn an_image_says_what_was_put_in() {
    let snapshot = Snapshot::open(&image()).unwrap();
    assert_eq!(snapshot.generation(), Generation(5));
    assert_eq!(snapshot.hash(), [9; 32]);
    let kind = |addr| snapshot.identify(addr).kind;
    assert_eq!(kind(v4(10, 0, 0, 2)), IdentityKind::Pod);
    assert_eq!(kind(v6(2)), IdentityKind::Pod);
    assert_eq!(snapshot.identify(v6(2)), snapshot.identify(v4(10, 0, 0, 2)));
    assert_eq!(kind(v4(192, 168, 0, 1)), IdentityKind::Node);
    assert_eq!(kind(v4(192, 168, 0, 2)), IdentityKind::External);
    assert_eq!(kind(v4(10, 255, 255, 255)), IdentityKind::Unknown);
    assert_eq!(kind(v4(11, 0, 0, 0)), IdentityKind::External);
    assert_eq!(kind(v4(10, 96, 0, 0)), IdentityKind::Service);
    assert_eq!(kind(v4(10, 111, 255, 255)), IdentityKind::Service);
    assert_eq!(kind(v4(10, 112, 0, 0)), IdentityKind::Unknown);
    assert_eq!(kind(v6(3)), IdentityKind::Unknown);
    assert_eq!(kind(Addr::v6([0xfe; 16])), IdentityKind::External);
    for (last, class) in [(127, 0), (128, 1), (255, 1)] {
        assert_eq!(snapshot.identify(v4(203, 0, 113, last)).peer_class, class);
    }
    assert_eq!(snapshot.find_endpoint("default", "web").unwrap().number, 2);
    assert!(snapshot.find_endpoint("default", "sealed").unwrap().template);
    assert_eq!(snapshot.find_endpoint("default", "nobody"), None);
    assert_eq!(snapshot.node_name(1), Some("n2"));
    assert_eq!(snapshot.node_name(2), None);
    assert_eq!(snapshot.sizes().hosts, 5);
    assert_eq!(snapshot.sizes().rows, 2);
    assert_eq!(snapshot.sizes().classes, 71);
}

#[test]
fn judging_goes_by_its_steps() {
    let snapshot = Snapshot::open(&image()).unwrap();
    let (any, web, node, elsewhere) = (
        v4(10, 0, 0, 1),
        v4(10, 0, 0, 2),
        v4(192, 168, 0, 0),
        v4(8, 8, 8, 8),
    );
    let ingress = |from, l4| judge(&snapshot, from, web, l4).ingress;

    assert_eq!(ingress(web, tcp(1)).effect, Effect::SelfTraffic);
    assert_eq!(
        judge(&snapshot, web, v6(2), tcp(1)).ingress.effect,
        Effect::Isolated,
        "another address of its own"
    );

    assert_eq!(ingress(node, tcp(1)).effect, Effect::Node);
    assert_eq!(judge(&snapshot, web, node, tcp(1)).egress.effect, Effect::Node);
    assert_eq!(
        ingress(v4(192, 168, 0, 1), tcp(1)).effect,
        Effect::Isolated,
        "another node"
    );
    let spoofed = judge_from(&snapshot, node, web, tcp(1), NodeExemption::Untrusted);
    assert_eq!(
        (spoofed.ingress.effect, spoofed.egress.effect),
        (Effect::Isolated, Effect::Open)
    );

    for (port, allow) in [
        (0, false),
        (79, false),
        (80, true),
        (81, false),
        (7999, false),
        (8000, true),
        (8999, true),
        (9000, false),
        (65535, false),
    ] {
        assert_eq!(ingress(any, tcp(port)).allow, allow, "port {port}");
    }
    assert!(
        ingress(
            any,
            L4::Port {
                protocol: 17,
                port: 53,
                source: 0
            }
        )
        .allow
    );
    assert!(
        !ingress(
            any,
            L4::Port {
                protocol: 132,
                port: 80,
                source: 0
            }
        )
        .allow
    );
    assert!(!ingress(any, L4::NoPort { protocol: 6 }).allow);
    assert!(!ingress(any, L4::NoPort { protocol: 1 }).allow);
    let block = v4(203, 0, 113, 200);
    for l4 in [
        tcp(0),
        tcp(443),
        L4::NoPort { protocol: 1 },
        L4::Port {
            protocol: 47,
            port: 0,
            source: 0,
        },
    ] {
        assert_eq!(ingress(block, l4).effect, Effect::Allow);
    }
    assert_eq!(ingress(elsewhere, tcp(80)).effect, Effect::Isolated);

    let unknown = judge(&snapshot, v4(10, 0, 0, 9), any, tcp(80));
    assert_eq!(
        (unknown.egress.effect, unknown.egress.allow),
        (Effect::Unknown, false)
    );
    assert_eq!(
        (unknown.ingress.effect, unknown.ingress.allow),
        (Effect::Open, true)
    );
    let open = judge(&snapshot, any, elsewhere, tcp(80));
    assert_eq!(
        (open.egress.effect, open.ingress.effect),
        (Effect::Open, Effect::Open)
    );
}

/// A pod that NetworkPolicies isolate, and that another policy keeps from port 22 of its node.
#[test]
fn what_goes_to_the_own_node_has_a_row_of_its_own() {
    let mut image = ImageBuilder::new(Generation(1));
    let policy = image.policy("Admin", "ClusterNetworkPolicy", "", "no-ssh");
    let rule = image.rule(policy, 0);
    let deny = PortDecision {
        decision: Decision::DENY,
        provenance: rule,
    };
    let no_ssh = image.port_map(
        PortDecision::OPEN,
        &[PortRange {
            protocol: 6,
            lo: 22,
            hi: 22,
            then: deny,
        }],
    );
    let isolating = image.policy("NetworkPolicy", "NetworkPolicy", "default", "closed");
    let isolating = image.isolating(&[isolating]);
    let closed = image.row(isolating, &[]);
    let own_node = image.row(NONE, &[no_ssh]);
    image.set_own_node(closed, own_node);
    let pod = image.identity(Identity {
        endpoint: 0,
        node: 0,
        ingress: closed,
        egress: closed,
        ..somewhere(IdentityKind::Pod, 0)
    });
    image.endpoint("default", "web", false, pod);
    for node in 0..2 {
        image.node(["n1", "n2"][node as usize]);
        let identity = image.identity(Identity {
            node,
            ..somewhere(IdentityKind::Node, 0)
        });
        image.host(v4(192, 168, 0, node as u8), identity);
    }
    image.host(v4(10, 0, 0, 1), pod);
    let snapshot = Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap();
    let (pod, own, other, stranger) = (
        v4(10, 0, 0, 1),
        v4(192, 168, 0, 0),
        v4(192, 168, 0, 1),
        v4(203, 0, 113, 1),
    );
    for (from, to, port, node, ingress, egress) in [
        (pod, own, 22, NodeExemption::Trusted, Effect::Node, Effect::Deny),
        (pod, own, 80, NodeExemption::Trusted, Effect::Node, Effect::Node),
        (own, pod, 22, NodeExemption::Trusted, Effect::Node, Effect::Node),
        (
            pod,
            own,
            80,
            NodeExemption::Untrusted,
            Effect::Open,
            Effect::Isolated,
        ),
        (
            pod,
            other,
            80,
            NodeExemption::Trusted,
            Effect::Open,
            Effect::Isolated,
        ),
        // This machine by an address that no Node object has.
        (
            pod,
            stranger,
            22,
            NodeExemption::ThisNode,
            Effect::Node,
            Effect::Deny,
        ),
        (
            pod,
            stranger,
            80,
            NodeExemption::ThisNode,
            Effect::Node,
            Effect::Node,
        ),
        (
            stranger,
            pod,
            22,
            NodeExemption::ThisNode,
            Effect::Node,
            Effect::Node,
        ),
    ] {
        let judged = judge_from(&snapshot, from, to, tcp(port), node);
        let effects = (judged.ingress.effect, judged.egress.effect);
        assert_eq!(effects, (ingress, egress), "{from:?} -> {to:?}:{port} {node:?}");
        assert_eq!(judged.allow(), !matches!(egress, Effect::Deny | Effect::Isolated));
        let packet = FirstPacket {
            src: from,
            dst: to,
            l4: tcp(port),
        };
        let many = snapshot.judge_many(&[packet], |_, _, _| node);
        assert_eq!(many[0].judgement, judged);
    }
    let denied = judge(&snapshot, pod, own, tcp(22)).egress;
    let Some(Provenance::Rule { policy, rule: 0 }) = snapshot.provenance(denied.provenance) else {
        panic!("{:?}", snapshot.provenance(denied.provenance));
    };
    assert_eq!((policy.tier, policy.to_string()), ("Admin", "no-ssh".to_owned()));
}

#[test]
fn provenance_names_rules_and_sets() {
    let snapshot = Snapshot::open(&image()).unwrap();
    let name = |name| PolicyName {
        tier: "NetworkPolicy",
        kind: "NetworkPolicy",
        namespace: "default",
        name,
    };
    let verdict = judge(
        &snapshot,
        v4(10, 0, 0, 1),
        v4(10, 0, 0, 2),
        L4::Port {
            protocol: 17,
            port: 53,
            source: 0,
        },
    )
    .ingress;
    let rule = Provenance::Rule {
        policy: name("web-too"),
        rule: 3,
    };
    assert_eq!(snapshot.provenance(verdict.provenance), Some(rule));
    let verdict = judge(&snapshot, v4(8, 8, 8, 8), v4(10, 0, 0, 2), tcp(1)).ingress;
    let isolating = Provenance::Isolating(vec![name("web"), name("web-too")]);
    assert_eq!(snapshot.provenance(verdict.provenance), Some(isolating));
    assert_eq!(snapshot.provenance(NONE), None);
}

#[test]
fn identities_of_another_snapshot_are_denied() {
    let snapshot = Snapshot::open(&image()).unwrap();
    let web = snapshot.identify(v4(10, 0, 0, 2));
    let stranger = Identity {
        peer_class: 71,
        ..somewhere(IdentityKind::External, 0)
    };
    let verdict = snapshot
        .judge_ends(&stranger, &web, false, tcp(80), NodeExemption::Trusted)
        .ingress;
    assert_eq!((verdict.allow, verdict.effect), (false, Effect::Invalid));
    let rowless = Identity { ingress: 99, ..web };
    let verdict = snapshot
        .judge_ends(&web, &rowless, false, tcp(80), NodeExemption::Trusted)
        .ingress;
    assert_eq!((verdict.allow, verdict.effect), (false, Effect::Invalid));
}

#[test]
fn many_at_once_are_judged_as_one_by_one() {
    let snapshot = Snapshot::open(&image()).unwrap();
    let addresses = [
        v4(10, 0, 0, 1),
        v4(10, 0, 0, 2),
        v4(10, 0, 0, 9),
        v4(192, 168, 0, 0),
        v4(203, 0, 113, 200),
        v4(8, 8, 8, 8),
        v6(2),
        v6(3),
        v4(10, 96, 0, 1),
        // As the counts of a bucket look that is compared whole, and as an empty slot does.
        v4(0, 1, 0, 1),
        v4(0, 1, 0, 2),
        v4(0, 0, 0, 0),
    ];
    let mut packets = Vec::new();
    for src in addresses {
        for dst in addresses {
            for l4 in [tcp(0), tcp(80), tcp(8500), L4::NoPort { protocol: 1 }] {
                packets.push(FirstPacket { src, dst, l4 });
            }
        }
    }
    let mut effects = BTreeMap::new();
    for node in [NodeExemption::Trusted, NodeExemption::Untrusted] {
        for packets in packets.chunks(61) {
            let judged = snapshot.judge_many(packets, |number, src, _| {
                assert_eq!(*src, snapshot.identify(packets[number].src));
                node
            });
            assert_eq!(judged.len(), packets.len());
            for (packet, judged) in packets.iter().zip(judged) {
                let alone = judge_from(&snapshot, packet.src, packet.dst, packet.l4, node);
                assert_eq!(judged.judgement, alone, "{packet:?}");
                assert_eq!(judged.dst, snapshot.identify(packet.dst));
                *effects.entry(alone.ingress.effect).or_insert(0) += 1;
            }
        }
    }
    assert!(effects.len() >= 6, "{effects:?}");
    assert_eq!(
        snapshot
            .judge_many(&packets, |_, _, _| NodeExemption::Trusted)
            .len(),
        BATCH
    );
}

#[test]
fn every_damaged_byte_is_noticed() {
    let image = image();
    // All of the header and section table; of the sections, which are long, a sample.
    let sample = || (0..600).chain((600..image.len()).step_by(61));
    for at in sample() {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        assert!(Snapshot::open(&damaged).is_err(), "byte {at}");
    }
    for length in sample() {
        assert!(Snapshot::open(&image[..length]).is_err(), "cut to {length} bytes");
    }
    let mut longer = image.clone();
    longer.push(0);
    assert!(Snapshot::open(&longer).is_err());
}

/// As somebody who wants to be believed would write it.
fn sealed(mut image: Vec<u8>) -> Vec<u8> {
    assert!(seal(&mut image));
    image
}

/// Asks everything of a snapshot; answers how often it said allow.
fn exercise(snapshot: &Snapshot) -> usize {
    let mut addresses: Vec<Addr> = (0..=255).step_by(5).map(|last| v4(10, 0, 0, last)).collect();
    addresses.extend((0..=255).step_by(15).map(|first| v4(first, 168, 0, 0)));
    addresses.extend([
        v4(10, 0, 0, 2),
        v4(203, 0, 113, 200),
        v4(10, 96, 0, 1),
        v6(2),
        v6(3),
        Addr::v6([0xff; 16]),
    ]);
    let mut allowed = 0;
    for src in &addresses {
        for dst in &addresses {
            for l4 in [
                tcp(0),
                tcp(80),
                L4::Port {
                    protocol: 132,
                    port: 65535,
                    source: 0,
                },
                L4::NoPort { protocol: 1 },
            ] {
                let judgement = judge_from(snapshot, *src, *dst, l4, NodeExemption::Trusted);
                allowed += usize::from(judgement.allow());
                snapshot.provenance(judgement.ingress.provenance);
                snapshot.provenance(judgement.egress.provenance);
            }
        }
        let identity = snapshot.identify(*src);
        snapshot.endpoint(identity.endpoint);
        snapshot.node_name(identity.node);
    }
    snapshot.find_endpoint("default", "web");
    allowed
}

#[test]
fn tables_that_contradict_each_other_are_refused() {
    // Every 4-byte word of every section, made so large that it points nowhere.
    let image = image();
    let header = Header::read_from_prefix(&image).unwrap().0;
    let entries = <[SectionEntry]>::ref_from_bytes(
        &image[size_of::<Header>()..size_of::<Header>() + SECTIONS * size_of::<SectionEntry>()],
    );
    let entries = entries.unwrap().to_vec();
    assert_eq!(header.sections as usize, SECTIONS);
    let mut refused: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, entry) in entries.iter().enumerate() {
        // Tries are long and repeat themselves.
        let step = if entry.length > 2048 { 124 } else { 4 };
        for at in (entry.offset..entry.offset + entry.length).step_by(step) {
            let at = at as usize;
            let mut forged = image.clone();
            let end = forged.len().min(at + 4);
            forged[at..end].copy_from_slice(&0x7fff_fff0_u32.as_bytes()[..end - at]);
            match Snapshot::open(&sealed(forged)) {
                Err(_) => *refused.entry(number).or_default() += 1,
                Ok(snapshot) => {
                    exercise(&snapshot);
                }
            }
        }
    }
    for number in 0..SECTIONS {
        assert!(
            refused.contains_key(&number),
            "no forged word of section {number} was refused"
        );
    }
}

#[test]
fn loops_in_tries_are_refused() {
    let image = image();
    let at = size_of::<Header>() + layout::Section::TrieV4 as usize * size_of::<SectionEntry>();
    let entry = SectionEntry::read_from_prefix(&image[at..]).unwrap().0;
    let mut forged = image.clone();
    let second = entry.offset as usize + 1024;
    forged[second..second + 4].copy_from_slice(layout::TRIE_CHILD.as_bytes()); // a child that is the root
    let error = Snapshot::open(&sealed(forged)).unwrap_err();
    assert!(error.to_string().contains("does not come after it"), "{error}");
}

#[test]
fn many_hosts_are_found_within_the_bounded_search() {
    let mut image = ImageBuilder::new(Generation(1));
    image.node("n");
    let hosts: Vec<u32> = (0..5000).map(|number| number * 257 % 65_521).collect();
    for number in &hosts {
        let identity = image.identity(Identity {
            node: 0,
            epoch: u64::from(*number),
            ..somewhere(IdentityKind::Node, 0)
        });
        let [_, b, c, d] = number.to_be_bytes();
        image.host(v4(10, b, c, d), identity);
        image.host(v6(*number as u16), identity);
    }
    let snapshot = Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap();
    for number in 0..65_521_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        for addr in [v4(10, b, c, d), v6(number as u16)] {
            let identity = snapshot.identify(addr);
            assert_eq!(
                identity.kind == IdentityKind::Node,
                hosts.contains(&number),
                "{addr}"
            );
            if identity.kind == IdentityKind::Node {
                assert_eq!(identity.epoch, u64::from(number));
            }
        }
    }
    assert_eq!(snapshot.sizes().hosts, 10_000);
}

/// A row all of whose cells decide the same; `provenance` chooses from a set of policies and a policy.
fn deny_all(
    image: &mut ImageBuilder,
    decision: Decision,
    provenance: impl FnOnce(u32, u32, &mut ImageBuilder) -> u32,
) {
    let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "closed");
    let isolating = image.isolating(&[policy]);
    let provenance = provenance(isolating, policy, image);
    let whole = image.port_map(PortDecision { decision, provenance }, &[]);
    image.row(isolating, &[whole]);
}

#[test]
fn a_later_tier_denies_by_default_with_its_own_policies() {
    let mut image = ImageBuilder::new(Generation(1));
    let first = image.policy("Admin", "ClusterNetworkPolicy", "", "first");
    let later = image.policy("NetworkPolicy", "NetworkPolicy", "default", "later");
    let (of_row, of_cell) = (image.isolating(&[first]), image.isolating(&[later]));
    let by_default = PortDecision {
        decision: Decision::DENY_BY_DEFAULT,
        provenance: of_cell,
    };
    let ports = image.port_map(
        PortDecision::DENY,
        &[PortRange {
            protocol: 6,
            lo: 80,
            hi: 80,
            then: by_default,
        }],
    );
    let whole = image.port_map(by_default, &[]);
    let rows = [image.row(of_row, &[ports]), image.row(of_row, &[whole])];
    let mut ends = Vec::new();
    for (row, number) in rows.into_iter().zip(0..) {
        let identity = image.identity(Identity {
            endpoint: number,
            ingress: row,
            ..somewhere(IdentityKind::Pod, 0)
        });
        image.endpoint("default", &format!("pod-{number}"), false, identity);
        ends.push(v4(10, 0, 0, number as u8));
        image.host(v4(10, 0, 0, number as u8), identity);
    }
    let snapshot = Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap();
    let denied = |to: usize, port: u16| {
        let verdict = judge(&snapshot, v4(192, 0, 2, 1), ends[to], tcp(port)).ingress;
        assert!(!verdict.allow);
        assert_eq!(verdict.effect, Effect::Isolated);
        verdict.provenance
    };
    assert_eq!(
        [denied(0, 79), denied(0, 80), denied(1, 79)],
        [of_row, of_cell, of_cell]
    );
}

#[test]
fn wrong_calls_are_refused() {
    let fails = |with: &dyn Fn(&mut ImageBuilder)| {
        let mut image = ImageBuilder::new(Generation(1));
        with(&mut image);
        match image.finish([0; 32]) {
            Ok(bytes) => Snapshot::open(&bytes)
                .map(drop)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
        .unwrap_err()
    };
    let overlap = [PortRange::allow(6, 1, 9, NONE), PortRange::allow(6, 9, 10, NONE)];
    for (message, with) in [
        (
            "longer than its address",
            &(|image: &mut ImageBuilder| image.prefix(v4(1, 2, 3, 4), 33, 0)) as &dyn Fn(&mut _),
        ),
        ("overlap", &|image: &mut ImageBuilder| {
            image.port_map(PortDecision::DENY, &overlap);
        }),
        ("overlap", &|image: &mut ImageBuilder| {
            image.port_map(PortDecision::DENY, &[PortRange::allow(47, 1, 1, NONE)]);
        }),
        ("does not exist", &|image: &mut ImageBuilder| {
            image.host(v4(1, 2, 3, 4), 7)
        }),
        ("does not exist", &|image: &mut ImageBuilder| {
            image.prefix(v4(1, 2, 3, 4), 30, 7)
        }),
        ("row that does not exist", &|image: &mut ImageBuilder| {
            image.identity(Identity {
                ingress: 1,
                ..somewhere(IdentityKind::External, 0)
            });
        }),
        ("a/b is there already", &|image: &mut ImageBuilder| {
            image.endpoint("a", "b", false, 0);
            image.endpoint("a", "b", false, 0);
        }),
        ("build does not know", &|image: &mut ImageBuilder| {
            let redirect = PortDecision {
                decision: Decision(Decision::REDIRECT),
                provenance: NONE,
            };
            image.port_map(redirect, &[]);
        }),
        ("of a rule that does not exist", &|image: &mut ImageBuilder| {
            deny_all(image, Decision::DENY_BY_DEFAULT, |_, policy, image| {
                image.rule(policy, 0)
            });
        }),
        ("of a rule that does not exist", &|image: &mut ImageBuilder| {
            deny_all(image, Decision::DENY, |set, _, _| set);
        }),
        ("of a rule that does not exist", &|image: &mut ImageBuilder| {
            deny_all(image, Decision::DENY_BY_DEFAULT, |_, _, _| NONE);
        }),
    ] {
        let error = fails(with);
        assert!(error.contains(message), "{error}: wanted {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes, with a checksum that fits: refused, or harmless to ask.
    #[test]
    fn forged_images_are_refused_or_harmless(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut forged = image();
        for (at, value) in &changes {
            let at = at.index(forged.len());
            forged[at] = *value;
        }
        if let Ok(snapshot) = Snapshot::open(&sealed(forged)) {
            exercise(&snapshot);
        }
    }

    #[test]
    fn longest_prefix_wins(prefixes in prop::collection::vec((any::<u32>(), 0..=32_u8), 0..40), extra in any::<u32>()) {
        let mut image = ImageBuilder::new(Generation(1));
        // Prefixes within 10.0.0.0/14, so that they nest.
        let squeeze = |addr: u32| 0x0a00_0000 | (addr & 0x0003_ffff);
        let mut expected: Vec<(u32, u8, u32)> = Vec::new();
        for ((addr, length), class) in prefixes.iter().zip(1..) {
            let identity = image.identity(somewhere(IdentityKind::External, class));
            image.prefix(Addr::v4(squeeze(*addr).to_be_bytes()), *length, identity);
            expected.push((squeeze(*addr), *length, class));
        }
        let snapshot = Snapshot::open(&image.finish([0; 32]).unwrap()).unwrap();
        let holds = |addr: u32, prefix: u32, length: u8| length == 0 || (addr ^ prefix) >> (32 - length) == 0;
        for base in prefixes.iter().map(|(addr, _)| squeeze(*addr)).chain([extra]) {
            for addr in [base, base.wrapping_add(1), base.wrapping_sub(1), base ^ 0x80] {
                let longest = expected.iter().filter(|(prefix, length, _)| holds(addr, *prefix, *length));
                // Of equal prefixes the last word counts.
                let class = longest.max_by_key(|(_, length, class)| (*length, *class)).map_or(0, |(_, _, class)| *class);
                prop_assert_eq!(snapshot.identify(Addr::v4(addr.to_be_bytes())).peer_class, class);
                // Nothing changes but at a border.
                let borders = snapshot.range_borders(true, 0, u128::from(u32::MAX)).unwrap();
                let above = borders.partition_point(|first| *first <= u128::from(addr));
                let first = (borders[above - 1] as u32).to_be_bytes();
                prop_assert_eq!(snapshot.identify(Addr::v4(first)).peer_class, class);
            }
        }
    }
}

/// A pod that takes echo requests of ICMP but not of code 3, nothing else of ICMP, and every other protocol without ports.
fn pinged(builder: &mut ImageBuilder) -> [u32; 2] {
    let policy = builder.policy("default", "NetworkPolicy", "default", "ping");
    let rules = [0, 1].map(|rule| builder.rule(policy, rule));
    let [types, rest] = rules;
    let by_type = builder.nested_port_map(
        PortDecision::DENY,
        &[
            PortRange::allow(6, icmp(8, 0), icmp(8, 2), types),
            PortRange::allow(6, icmp(8, 4), icmp(8, 255), types),
        ],
    );
    let icmp_alone = PortRange {
        protocol: 1,
        lo: 0,
        hi: u16::MAX,
        then: by_type,
    };
    let map = builder.port_map(PortDecision::allow(rest), &[icmp_alone]);
    let row = builder.row(NONE, &[map]);
    let pod = builder.identity(Identity {
        kind: IdentityKind::Pod,
        endpoint: 0,
        ingress: row,
        ..somewhere(IdentityKind::Pod, 0)
    });
    builder.endpoint("default", "pinged", false, pod);
    builder.host(v4(10, 0, 0, 1), pod);
    let outside = builder.identity(somewhere(IdentityKind::External, 0));
    builder.prefix(v4(0, 0, 0, 0), 0, outside);
    builder.release_port_map(map);
    rules
}

#[test]
fn port_maps_nest_for_types_of_icmp() {
    let mut builder = ImageBuilder::new(Generation(1));
    let [types, rest] = pinged(&mut builder);
    let snapshot = Snapshot::open(&builder.finish([0; 32]).unwrap()).unwrap();
    let (from, to) = (v4(192, 0, 2, 1), v4(10, 0, 0, 1));
    let decided = |l4| {
        let verdict = judge(&snapshot, from, to, l4).ingress;
        let many = snapshot.judge_many(
            &[FirstPacket {
                src: from,
                dst: to,
                l4,
            }],
            |_, _, _| NodeExemption::Trusted,
        );
        assert_eq!(many[0].judgement.ingress, verdict, "{l4:?}");
        (verdict.allow, verdict.provenance)
    };
    let of = |protocol, kind, code| L4::Port {
        protocol,
        port: icmp(kind, code),
        source: 0,
    };
    for (l4, wanted) in [
        (of(1, 8, 0), (true, types)),
        (of(1, 8, 2), (true, types)),
        (of(1, 8, 3), (false, NONE)),
        (of(1, 8, 255), (true, types)),
        (of(1, 7, 255), (false, NONE)),
        (of(1, 9, 0), (false, NONE)),
        (of(1, 0, 0), (false, NONE)),
        (of(1, 255, 255), (false, NONE)),
        (L4::NoPort { protocol: 1 }, (false, NONE)),
        (of(58, 8, 3), (true, rest)),
        (L4::NoPort { protocol: 47 }, (true, rest)),
        (tcp(80), (true, rest)),
    ] {
        assert_eq!(decided(l4), wanted, "{l4:?}");
    }
    let (row, _) = snapshot.rows_of(&snapshot.identify(to));
    let spans = snapshot.port_spans(row, snapshot.port_map_of(row, 0)).unwrap();
    let by_type: Vec<(u8, Vec<(u16, bool)>)> = spans
        .by_type
        .iter()
        .map(|(protocol, spans)| (*protocol, spans.iter().map(|(lo, it)| (*lo, it.allow)).collect()))
        .collect();
    let borders = [
        (0, false),
        (icmp(8, 0), true),
        (icmp(8, 3), false),
        (icmp(8, 4), true),
        (icmp(9, 0), false),
    ];
    assert_eq!(by_type, [(1, borders.to_vec())]);
    let others: Vec<(u8, bool)> = spans
        .others
        .iter()
        .map(|(number, it)| (*number, it.allow))
        .collect();
    assert_eq!(others, [(0, true), (1, false), (2, true)]);
}

#[test]
fn nested_port_maps_go_with_the_last_that_nests_them() {
    let mut builder = ImageBuilder::new(Generation(1));
    let policy = builder.policy("default", "NetworkPolicy", "default", "ping");
    let rule = builder.rule(policy, 0);
    let mut make = |kind| {
        let nested = builder.nested_port_map(
            PortDecision::DENY,
            &[PortRange::allow(6, icmp(kind, 0), icmp(kind, 255), rule)],
        );
        let range = PortRange {
            protocol: 1,
            lo: 0,
            hi: u16::MAX,
            then: nested,
        };
        (builder.port_map(PortDecision::DENY, &[range]), nested.provenance)
    };
    let (one, nested) = make(8);
    assert_eq!(make(8), (one, nested), "the same again");
    let (other, of_other) = make(13);
    assert_ne!((one, nested), (other, of_other));
    builder.release_port_map(one);
    let image = builder.image(Generation(1), [0; 32]).unwrap();
    let before = Snapshot::from_image(&image);
    builder.release_port_map(one);
    // Their places are free, and taken by others of the same shape: both maps look as before, and mean something else.
    let nested_again = builder.nested_port_map(
        PortDecision::DENY,
        &[PortRange::allow(6, icmp(9, 0), icmp(9, 255), rule)],
    );
    let range = PortRange {
        protocol: 1,
        lo: 0,
        hi: u16::MAX,
        then: nested_again,
    };
    let again = builder.port_map(PortDecision::DENY, &[range]);
    let image = builder.image(Generation(2), [1; 32]).unwrap();
    let after = Snapshot::from_image(&image);
    let changed = after.changes_since(&before).unwrap().port_maps;
    assert!(
        changed.contains(&again) && changed.contains(&nested_again.provenance),
        "{changed:?}"
    );
    assert!(
        !changed.contains(&other) && !changed.contains(&of_other),
        "{changed:?}"
    );
}

#[test]
fn port_maps_nest_for_source_ports() {
    let mut builder = ImageBuilder::new(Generation(1));
    let policy = builder.policy("default", "NetworkPolicy", "default", "dns");
    let rule = builder.rule(policy, 0);
    let answers = builder.nested_port_map(PortDecision::DENY, &[PortRange::allow(6, 53, 53, rule)]);
    let range = PortRange {
        protocol: 17,
        lo: 1024,
        hi: u16::MAX,
        then: answers,
    };
    let map = builder.port_map(PortDecision::DENY, &[range]);
    let row = builder.row(NONE, &[map]);
    let pod = builder.identity(Identity {
        kind: IdentityKind::Pod,
        endpoint: 0,
        ingress: row,
        ..somewhere(IdentityKind::Pod, 0)
    });
    builder.endpoint("default", "client", false, pod);
    builder.host(v4(10, 0, 0, 1), pod);
    let snapshot = Snapshot::open(&builder.finish([0; 32]).unwrap()).unwrap();
    let (from, to) = (v4(192, 0, 2, 1), v4(10, 0, 0, 1));
    for (protocol, source, port, passes) in [
        (17, 53, 1024, true),
        (17, 53, 65535, true),
        (17, 53, 1023, false),
        (17, 52, 1024, false),
        (17, 54, 1024, false),
        (17, 1024, 53, false),
        (6, 53, 1024, false),
    ] {
        let l4 = L4::Port {
            protocol,
            port,
            source,
        };
        let verdict = judge(&snapshot, from, to, l4).ingress;
        assert_eq!(verdict.allow, passes, "{l4:?}");
        let packet = FirstPacket {
            src: from,
            dst: to,
            l4,
        };
        let many = snapshot.judge_many(&[packet], |_, _, _| NodeExemption::Trusted);
        assert_eq!(many[0].judgement.ingress, verdict, "{l4:?}");
    }
    let (row, _) = snapshot.rows_of(&snapshot.identify(to));
    let spans = snapshot.port_spans(row, snapshot.port_map_of(row, 0)).unwrap();
    let [
        SourceSpans {
            protocol,
            first,
            spans,
        },
    ] = &spans.by_source[..]
    else {
        panic!("{spans:?}");
    };
    let spans: Vec<(u16, bool)> = spans.iter().map(|(lo, it)| (*lo, it.allow)).collect();
    assert_eq!((*protocol, *first), (17, 1024));
    assert_eq!(spans, [(0, false), (53, true), (54, false)]);
}
