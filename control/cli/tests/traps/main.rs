//! Each trap of `docs/semantics.md` (T1 to T76) at every level but that of real packets (`tests/tests/traps.rs`): one cluster and its
//! packets are asked of the reference evaluator, of the compiled snapshot and of a worker in memory; the snapshot is proven; and the
//! checker refuses a snapshot that decides one packet the other way. `tests/TRAPS.md` is the table of what that came to.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod orders;

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path, sync::Arc};

use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
    time::Nanos,
};
use ringwall_evaluate::{End, Identity, identify, judge};
use ringwall_policy::{
    Action, Cluster, Conditions, NAMESPACE_NAME_LABEL, Operator, Order, Peer, Pod, PodSelection, PolicyKind,
    Requirement, Selector, Settings, Tier, TierDefault, TieredPolicy, TieredRule,
};
use ringwall_prove::Checker;
use ringwall_replay::replay::{Replay, Verdict};
use ringwall_source::folder;
use ringwall_testbed::traps::{self, Case, Level, Packet};

/// The source port of packets that have one.
const SOURCE: u16 = 40_000;

fn cluster(case: &Case) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), case.manifests().join("\n---\n")).unwrap();
    let mut cluster = folder::load(dir.path(), &Settings::default()).unwrap().cluster;
    case.forget_namespaces(&mut cluster);
    cluster
}

fn compiled(cluster: &Cluster) -> Arc<Snapshot> {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    Arc::new(Snapshot::open(&image.bytes).unwrap())
}

fn ends<'c>(cluster: &'c Cluster, packet: &Packet) -> (End<'c>, End<'c>) {
    (
        identify(cluster, packet.src.address),
        identify(cluster, packet.dst.address),
    )
}

fn reference(cluster: &Cluster, packet: &Packet) -> bool {
    let (src, dst) = ends(cluster, packet);
    judge(cluster, &src, &dst, packet.service(SOURCE)).allow()
}

fn by_snapshot(snapshot: &Snapshot, packet: &Packet) -> bool {
    let [src, dst] = [packet.src, packet.dst].map(|end| snapshot.identify(Addr::from(end.address)));
    let port = packet.port.unwrap_or_default();
    let l4 = L4::of(packet.protocol, packet.port.is_some().then_some(port), SOURCE);
    let own = packet.src.address == packet.dst.address;
    let judged = snapshot.judge_ends(&src, &dst, own, l4, NodeExemption::Trusted);
    judged.ingress.allow && judged.egress.allow
}

fn by_worker(cluster: &Cluster, packet: &Packet) -> bool {
    let image = compile(cluster, Generation(1), &EpochKey::OFFLINE).unwrap();
    let snapshot = Snapshot::open(&image.bytes).unwrap();
    let mut replay = Replay::new(1, None, snapshot, Nanos(0)).unwrap();
    match replay
        .judge(&packet.frame(SOURCE), Some(Nanos(0)))
        .unwrap()
        .verdict
    {
        Verdict::Forward => true,
        Verdict::Drop(reason) => {
            let by_policy = matches!(
                reason.name(),
                "policy-ingress" | "policy-egress" | "unknown-endpoint"
            );
            assert!(by_policy, "{}: {}", packet.text, reason.name());
            false
        }
        Verdict::Pass(kind) => panic!("{}: passes as {}", packet.text, kind.name()),
    }
}

/// The cluster in which what passes between the ends of a packet is the other way round, before all other policies.
fn mutated(cluster: &Cluster, packet: &Packet) -> Cluster {
    let mut cluster = cluster.clone();
    let first = Tier {
        name: "first".to_owned(),
        order: Order::new(-1.0).unwrap(),
        default: TierDefault::Pass,
    };
    let (src, dst) = ends(&cluster, packet);
    let pod = |end: &End<'_>| match end.identity {
        Identity::Pod(pod) => Some(pod.clone()),
        _ => None,
    };
    let (src, dst) = (pod(&src), pod(&dst));
    let rule = |other: IpAddr| {
        vec![TieredRule {
            continues: false,
            action: if packet.allowed {
                Action::Deny
            } else {
                Action::Allow
            },
            peers: Some(vec![Peer::Block {
                cidr: other.into(),
                except: Vec::new(),
            }]),
            ports: None,
            conditions: Conditions::NONE,
        }]
    };
    let policy = |name: &str, pod: Pod, ingress, egress| TieredPolicy {
        subjects: vec![PodSelection {
            namespaces: having([(NAMESPACE_NAME_LABEL, pod.key.namespace.as_str())]),
            pods: having(
                pod.labels
                    .iter()
                    .map(|(key, value)| (key.as_str(), value.as_str())),
            ),
        }],
        ingress,
        egress,
        ..TieredPolicy::new(PolicyKind::GlobalNetworkPolicy, name, &first.name, Order::LAST)
    };
    let policies = [
        dst.map(|pod| policy("into", pod, Some(rule(packet.src.address)), None)),
        src.map(|pod| policy("out-of", pod, None, Some(rule(packet.dst.address)))),
    ];
    for policy in policies.into_iter().flatten() {
        cluster.tiered.insert(policy.id.clone(), Arc::new(policy));
    }
    cluster.tiers.insert(first.name.clone(), Arc::new(first));
    cluster
}

fn having<'l>(labels: impl IntoIterator<Item = (&'l str, &'l str)>) -> Selector {
    let requirement = |(key, value): (&str, &str)| Requirement {
        key: key.to_owned(),
        operator: Operator::In([value.to_owned()].into()),
    };
    Selector {
        requirements: labels.into_iter().map(requirement).collect(),
    }
}

/// Of a trap, what its packets were asked of.
#[derive(Default)]
struct Levels {
    packets: usize,
    mutations: usize,
    by_workers: usize,
}

fn levels(name: &str, cases: &[Case]) -> Levels {
    let mut levels = Levels::default();
    for case in cases {
        assert!(!case.packets.is_empty(), "{name} has a cluster without packets");
        let cluster = cluster(case);
        let snapshot = compiled(&cluster);
        let proven = Checker::new().full(&cluster, &snapshot);
        assert!(proven.is_ok(), "{name} is not proven: {:?}", proven.err());
        for packet in &case.packets {
            let what = format!("{name}: {}", packet.text);
            levels.packets += 1;
            assert_eq!(
                reference(&cluster, packet),
                packet.allowed,
                "{what}, by the evaluator"
            );
            assert_eq!(by_snapshot(&snapshot, packet), packet.allowed, "{what}, compiled");
            if !packet.unseen {
                assert_eq!(by_worker(&cluster, packet), packet.allowed, "{what}, by a worker");
                levels.by_workers += 1;
            }
            // Exemptions and addresses that are not known are no matter of policies.
            let wrong = mutated(&cluster, packet);
            if reference(&wrong, packet) == packet.allowed {
                continue;
            }
            let wrong = compiled(&wrong);
            assert_ne!(by_snapshot(&wrong, packet), packet.allowed, "{what}, mutated");
            let refused = Checker::new().full(&cluster, &wrong);
            assert!(
                refused.is_err(),
                "{what}: the checker passes over a wrong snapshot"
            );
            levels.mutations += 1;
        }
    }
    levels
}

/// The columns of `tests/TRAPS.md` that these levels came to. `UPDATE=1` writes them.
#[test]
fn every_trap_is_held_at_every_level() {
    let mut counts = BTreeMap::new();
    for (number, cases) in traps::cases().unwrap() {
        let held = levels(&format!("T{number}"), &cases);
        assert!(held.mutations > 0, "T{number}: no wrong snapshot was tried");
        counts.insert((number, Level::Proven), held.packets);
        counts.insert((number, Level::Refused), held.mutations);
        counts.insert((number, Level::Worker), held.by_workers);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    traps::hold_table(&root, &[Level::Proven, Level::Refused, Level::Worker], &counts).unwrap();
}
