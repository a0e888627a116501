//! Whatever is changed in an image and changes an answer is found.

use std::{collections::BTreeMap, sync::Arc};

use ringwall_dataplane::classify::{
    DirectionVerdict, Identity, IdentityKind, NodeExemption, Provenance, Snapshot,
};
use ringwall_prove::Checker;

use crate::{
    forge::{Forged, SECTIONS},
    generate::{self, Flow, FlowEnd},
    random::Random,
};

pub(crate) fn identity(snapshot: &Snapshot, place: &FlowEnd) -> Option<(Identity, bool)> {
    match place {
        FlowEnd::Address(address) => Some((snapshot.identify((*address).into()), false)),
        FlowEnd::Name(key) => {
            let endpoint = snapshot.find_endpoint(&key.namespace, &key.name)?;
            Some((endpoint.identity, endpoint.template))
        }
    }
}

fn who(snapshot: &Snapshot, identity: &Identity) -> String {
    match identity.kind {
        IdentityKind::Pod => match snapshot.endpoint(identity.endpoint) {
            Some(endpoint) => format!("{}/{}", endpoint.namespace, endpoint.name),
            None => "a pod without a name".to_owned(),
        },
        IdentityKind::Node => format!("{:?}", snapshot.node_name(identity.node)),
        kind => format!("{kind:?}"),
    }
}

fn why(snapshot: &Snapshot, verdict: DirectionVerdict) -> String {
    let words = match snapshot.provenance(verdict.provenance) {
        None => String::new(),
        Some(Provenance::Rule { policy, rule }) => format!("{policy:?} {rule}"),
        Some(Provenance::Isolating(policies)) => format!("{policies:?}"),
    };
    format!("{} {:?} {words}", verdict.allow, verdict.effect)
}

/// All that a snapshot says about a flow, wherever it came from.
pub(crate) fn answer(snapshot: &Snapshot, flow: &Flow) -> String {
    let (Some((src, template)), Some((dst, _))) =
        (identity(snapshot, &flow.src), identity(snapshot, &flow.dst))
    else {
        return "unknown".to_owned();
    };
    let same = flow.src == flow.dst && !template;
    let l4 = flow.l4();
    let mut words = format!("{} {}", who(snapshot, &src), who(snapshot, &dst));
    for trust in [
        NodeExemption::Trusted,
        NodeExemption::Untrusted,
        NodeExemption::ThisNode,
    ] {
        let decided = snapshot.judge_ends(&src, &dst, same, l4, trust);
        words.push_str(&why(snapshot, decided.ingress));
        words.push_str(&why(snapshot, decided.egress));
    }
    words
}

/// Flows that can be: of one family.
pub(crate) fn flows(cluster: &ringwall_policy::Cluster, random: &mut Random, count: usize) -> Vec<Flow> {
    let mut flows = generate::flows(cluster, random, count);
    flows.retain(|flow| match (&flow.src, &flow.dst) {
        (FlowEnd::Address(src), FlowEnd::Address(dst)) => src.is_ipv4() == dst.is_ipv4(),
        _ => true,
    });
    flows
}

#[test]
fn corruptions_that_change_an_answer_are_found() {
    let mut counts: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    for seed in crate::seeds(30) {
        let mut random = Random::new(seed);
        let cluster = crate::some_cluster(seed % 2 == 1, &mut random);
        let image = crate::Compiled::of(&cluster);
        let flows = flows(&cluster, &mut random, 2500);
        let right: Vec<String> = flows.iter().map(|flow| answer(&image.snapshot, flow)).collect();
        let original = Forged::of(&image.image.bytes);
        for round in 0..SECTIONS.len() * 4 {
            let section = round % SECTIONS.len();
            let mut forged = original.clone();
            if !forged.change(section, &mut random) {
                continue;
            }
            let bytes = forged.sealed();
            if bytes == image.image.bytes {
                continue;
            }
            let count = counts.entry(SECTIONS[section]).or_default();
            let Ok(snapshot) = Snapshot::open(&bytes) else {
                count[0] += 1;
                continue;
            };
            let snapshot = Arc::new(snapshot);
            let changed = flows
                .iter()
                .zip(&right)
                .find(|(flow, right)| answer(&snapshot, flow) != **right);
            let found = Checker::new().full(&cluster, &snapshot);
            match (changed, found) {
                (Some((flow, _)), Ok(_)) => panic!(
                    "seed {seed}, {}: not found: {flow:?} was {}, is {}",
                    SECTIONS[section],
                    answer(&image.snapshot, flow),
                    answer(&snapshot, flow)
                ),
                (Some(_), Err(difference)) => {
                    crate::confirm::confirm(&cluster, &difference);
                    count[1] += 1;
                }
                (None, _) => count[2] += 1,
            }
        }
    }
    let words = "refused, found, without an answer that any of the flows sees";
    println!("{words}: {counts:#?}");
    let found = counts.values().filter(|count| count[1] > 0).count();
    assert!(found >= 15, "{found} tables: {words}: {counts:#?}");
}

/// Flows of every pod to every node.
fn flows_to_nodes(cluster: &ringwall_policy::Cluster) -> Vec<Flow> {
    let nodes = cluster.nodes.values().flat_map(|node| &node.addresses);
    let nodes: Vec<_> = nodes.map(|address| FlowEnd::Address(*address)).collect();
    let mut flows = Vec::new();
    for pod in cluster.pods.values() {
        for dst in &nodes {
            for (protocol, port) in [
                (6, Some(0)),
                (6, Some(80)),
                (6, Some(8080)),
                (17, Some(53)),
                (1, None),
            ] {
                flows.push(Flow {
                    src: FlowEnd::Name(pod.key.clone()),
                    dst: dst.clone(),
                    protocol,
                    port,
                    source: 0,
                });
            }
        }
    }
    flows
}

/// What a pod may send to the node that hosts it is a row of its own: one that lets everything pass, or that NetworkPolicies
/// govern as well, is found where a packet shows it; by a proof of what differs, too.
#[test]
fn other_rows_for_the_own_node_are_found() {
    type Mistake = fn(u32, u32) -> u32;
    let mistakes: [(&str, Mistake); 2] = [
        ("everything passes to the own node", |_, _| 0),
        ("the own node is a peer like others", |row, _| row),
    ];
    let (mut found, mut proven) = ([0, 0], 0);
    // In the last of these, wrong cells that no packet shows come before that of the node.
    for seed in crate::seeds(150).chain([586]) {
        let mut random = Random::new(seed);
        let cluster = crate::some_cluster(true, &mut random);
        let image = crate::Compiled::of(&cluster);
        let flows = flows_to_nodes(&cluster);
        for ((name, mistake), found) in mistakes.iter().zip(&mut found) {
            let mut forged = Forged::of(&image.image.bytes);
            forged.own_nodes(mistake);
            let snapshot = Arc::new(Snapshot::open(&forged.sealed()).expect("the image opens"));
            let changed =
                (flows.iter()).find(|flow| answer(&snapshot, flow) != answer(&image.snapshot, flow));
            let mut follows = Checker::new();
            follows.full(&cluster, &image.snapshot).expect("it is proven");
            for proof in [
                Checker::new().full(&cluster, &snapshot),
                follows.changed(&cluster, &snapshot),
            ] {
                match proof {
                    Ok(_) => {
                        assert!(changed.is_none(), "seed {seed}, {name}: {changed:?}");
                        proven += 1;
                    }
                    Err(difference) => {
                        assert_ne!(difference.wanted, difference.got, "seed {seed}, {name}");
                        crate::confirm::confirm(&cluster, &difference);
                        *found += 1;
                    }
                }
            }
        }
    }
    assert!(
        found.iter().all(|found| *found > 30) && proven > 30,
        "{found:?} found, {proven} proven"
    );
}
