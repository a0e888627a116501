//! In this process, without a control process around: one changed pod compiled and proven, the whole proof, the difference
//! of two clusters, and first packets.

use std::{sync::Arc, time::Instant};

use anyhow::anyhow;
use ringwall_analyse::refine::{Compiled, difference::difference};
use ringwall_compile::{Budget, Compiler, EpochKey, compile};
use ringwall_dataplane::{
    addr::Addr,
    classify::{BATCH, FirstPacket, Generation, L4, NodeExemption, Snapshot},
};
use ringwall_policy::Cluster;
use ringwall_prove::Checker;
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{Churn, Event, EventKind, Spec, Synthetic};

use super::{
    Options, Size, cluster, policy_change,
    report::{Report, Target},
};
use crate::figures::Figures;

/// Pod events that are compiled and proven one after the other.
const EVENTS: usize = 1_000;
/// Changes of policies between the two clusters that are compared.
const POLICY_CHANGES: usize = 20;
/// Different first packets: what they need fits the second level's cache.
const PACKETS: usize = 512;
/// Questions in one round.
const ASKED: usize = 1_000_000;

/// Takes an event into a cluster.
fn take(cluster: &mut Cluster, event: &Event) -> anyhow::Result<()> {
    for decoded in decode(&event.object).map_err(|error| anyhow!("{error}: {}", event.object))? {
        match (event.kind, decoded.object.reference()) {
            (EventKind::Deleted, Some(reference)) => {
                cluster.remove(&reference);
            }
            _ => cluster.insert(decoded.object),
        }
    }
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The whole proof, then one changed pod at a time: compiled and proven.
pub(super) fn checker(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let mut synthetic = cluster::synthetic(size, false)?;
    let mut cluster = cluster::decoded(&synthetic)?;
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let compiled = compiler.update(&cluster, Generation(1))?;
    let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
    let wrong = |difference: Box<ringwall_prove::Difference>| anyhow!("the proof fails: {difference:?}");
    let mut checker = Checker::new();
    let mut whole = Vec::new();
    let mut said = String::new();
    // Of the large cluster once: it takes long.
    for _ in 0..if size == Size::Large { 1 } else { options.rounds } {
        let start = Instant::now();
        let proof = checker.full(&cluster, &snapshot).map_err(wrong)?;
        whole.push(millis(start));
        said = format!(
            "{} classes, {} pairs, {} questions",
            proof.classes, proof.pairs, proof.questions
        );
    }
    let words = size.words();
    let target = if size == Size::Medium {
        Target::Median(10_000.0)
    } else {
        Target::None
    };
    report.add(
        "checker",
        format!("full proof, {words}"),
        target,
        Figures::of(whole, "ms"),
        said,
    )?;

    let (mut compiling, mut proving, mut incremental) = (Vec::new(), Vec::new(), 0);
    for number in 0..EVENTS {
        take(&mut cluster, &synthetic.churn())?;
        let start = Instant::now();
        let compiled = compiler.update(&cluster, Generation(2 + number as u64))?;
        compiling.push(millis(start));
        incremental += usize::from(compiled.incremental);
        let snapshot = Arc::new(Snapshot::from_image(&compiled.image));
        let start = Instant::now();
        checker.changed(&cluster, &snapshot).map_err(wrong)?;
        proving.push(millis(start));
    }
    let note = format!("{incremental} of {EVENTS} from the snapshot before");
    report.add(
        "checker",
        format!("one pod event compiled, {words}"),
        Target::None,
        Figures::of(compiling, "ms"),
        note,
    )?;
    let what = format!("one pod event proven (changed), {words}");
    report.add(
        "checker",
        what,
        Target::Median(1.0),
        Figures::of(proving, "ms"),
        "",
    )
}

/// What two clusters that differ in some policies decide differently.
pub(super) fn diff(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let (policies, pods, namespaces) = size.counts();
    let mut spec = Spec::sized(policies, pods, namespaces);
    spec.churn = Churn {
        policy: 1.0,
        rollout: 0.0,
        job: 0.0,
        scale: 0.0,
        reschedule: 0.0,
        readiness: 0.0,
        relabel: 0.0,
        namespace: 0.0,
        node: 0.0,
        concurrent: 1,
    };
    let mut synthetic = Synthetic::new(spec)?;
    let before = cluster::decoded(&synthetic)?;
    let mut after = before.clone();
    for _ in 0..POLICY_CHANGES {
        take(&mut after, &synthetic.churn())?;
    }
    let (mut taken, mut regions) = (Vec::new(), 0);
    for _ in 0..options
        .rounds
        .min(if size == Size::Large { 1 } else { usize::MAX })
    {
        let start = Instant::now();
        let (from, to) = (Compiled::of(&before)?, Compiled::of(&after)?);
        regions = difference(&from, &to)?.regions.len();
        taken.push(millis(start));
    }
    let target = if size == Size::Medium {
        Target::Median(2_000.0)
    } else {
        Target::None
    };
    let what = format!(
        "diff after {POLICY_CHANGES} changes of policies, {}",
        size.words()
    );
    let note = format!("{regions} regions; both compiled, manifests not read");
    report.add("diff", what, target, Figures::of(taken, "ms"), note)
}

/// First packets of pods of one cluster under ever more policies.
pub(super) fn first_packet(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // Tiers are for everybody, so they make each packet read the cell of its sender's row, too. They are compared with
    // NetworkPolicies that do.
    for (policies, isolated, tiers) in [
        (5, false, 0),
        (50, false, 0),
        (500, false, 0),
        (5_000, false, 0),
        (5_000, true, 0),
        (5_000, false, 1),
        (5_000, false, 10),
        (50_000, false, 0),
    ] {
        let synthetic = Synthetic::new(Spec::sized(policies, 10_000, 100))?;
        let mut cluster = cluster::decoded(&synthetic)?;
        if isolated {
            policy_change::with_egress_policies(&mut cluster);
        }
        policy_change::with_tiers(&mut cluster, tiers, 10)?;
        let image = compile(&cluster, Generation(1), &EpochKey::OFFLINE)?;
        let snapshot = Snapshot::open(&image.bytes)?;
        let pods: Vec<Addr> = cluster
            .pods
            .values()
            .filter(|pod| !pod.host_network && !pod.finished)
            .filter_map(|pod| pod.addresses.first().copied().map(Addr::from))
            .collect();
        let packets: Vec<FirstPacket> = (0..PACKETS)
            .map(|number| {
                let from = number * 7919 % pods.len();
                let port = [80, 443, 8080, 9090, 5432][number % 5];
                FirstPacket {
                    src: pods[from],
                    // Half of them close by, in the order of namespaces.
                    dst: pods[(from + 1 + number % 2 * 4_001) % pods.len()],
                    l4: L4::Port {
                        protocol: 6,
                        port,
                        source: 0,
                    },
                }
            })
            .collect();
        let what = |how: &str| {
            format!(
                "first packet {how}, {} rules of {policies} policies{} and {tiers} tiers, 10000 pods",
                image.stats.rules,
                if isolated {
                    ", egress policies in each namespace,"
                } else {
                    ""
                }
            )
        };
        let note = format!(
            "{:.1} MB image, {PACKETS} packets in turn",
            image.bytes.len() as f64 / 1e6
        );
        for (how, bound, ask) in [
            ("alone", 40.0, alone as fn(&_, &_) -> usize),
            ("batched", 25.0, batched),
        ] {
            let rounds = (0..options.rounds.max(5))
                .map(|_| round(&snapshot, &packets, ask))
                .collect();
            report.add(
                "first-packet",
                what(how),
                Target::Median(bound),
                Figures::of(rounds, "ns"),
                note.clone(),
            )?;
        }
    }
    Ok(())
}

/// Nanoseconds for a packet.
fn round(snapshot: &Snapshot, packets: &[FirstPacket], ask: fn(&Snapshot, &[FirstPacket]) -> usize) -> f64 {
    let start = Instant::now();
    let mut asked = 0;
    while asked < ASKED {
        std::hint::black_box(ask(snapshot, packets));
        asked += packets.len();
    }
    start.elapsed().as_secs_f64() * 1e9 / asked as f64
}

fn alone(snapshot: &Snapshot, packets: &[FirstPacket]) -> usize {
    packets
        .iter()
        .filter(|it| {
            let (src, dst) = (snapshot.identify(it.src), snapshot.identify(it.dst));
            snapshot
                .judge(&src, &dst, it.src, it.dst, it.l4, NodeExemption::Untrusted)
                .allow()
        })
        .count()
}

fn batched(snapshot: &Snapshot, packets: &[FirstPacket]) -> usize {
    packets
        .chunks(BATCH)
        .map(|chunk| {
            let judged = snapshot.judge_many(chunk, |_, _, _| NodeExemption::Untrusted);
            judged.iter().filter(|it| it.judgement.allow()).count()
        })
        .sum()
}
