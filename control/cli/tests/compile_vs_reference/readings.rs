//! Pods whose address is not known, where rules deny and pass: what passes surely passes wherever they will be, and what
//! does not pass possibly passes nowhere; and the compiled snapshots of both readings say what the evaluator says.

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_evaluate::{End, Identity, identify, judge, named};
use ringwall_policy::{Cluster, Pod, PodNetworks, Unplaced};

use crate::{
    clusters,
    compare::{Compiled, Outcomes, first_difference},
    generate::{self, Flow, FlowEnd, flows},
    random::Random,
};

/// Flows whose ends are addresses, or pods without any; manifests supply the Namespaces of those.
fn asked(cluster: &Cluster, random: &mut Random, count: usize) -> Vec<Flow> {
    let unplaced = |place: &FlowEnd| match place {
        FlowEnd::Address(_) => true,
        FlowEnd::Name(key) => {
            let has_namespace = cluster.namespaces.contains_key(&key.namespace);
            has_namespace && cluster.pods.get(key).is_some_and(|pod| pod.is_unplaced())
        }
    };
    let mut flows = flows(cluster, random, count);
    flows.retain(|flow| unplaced(&flow.src) && unplaced(&flow.dst));
    flows
}

/// Addresses that pods may be given: at the borders of every block that a policy names, and others.
fn addresses(cluster: &Cluster, random: &mut Random) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for peer in cluster.named_peers() {
        for (cidr, except) in cluster.blocks_of(peer) {
            for net in except.iter().chain([&cidr]) {
                all.extend([net.network(), net.broadcast()]);
            }
        }
    }
    let nodes = cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
    for net in nodes.chain(&cluster.settings.pod_cidrs) {
        all.extend([net.network(), net.broadcast()]);
    }
    all.extend((0..20).map(|_| generate::address(random)));
    let of_pods = Unplaced {
        networks: PodNetworks::of(cluster),
        possibly: true,
    };
    all.retain(|address| of_pods.may_be_in(&IpNet::from(*address), &[], true));
    all
}

#[test]
fn what_is_said_of_pods_without_addresses_holds_wherever_they_will_be() {
    let mut seen = [0; 3];
    let mut moved = 0;
    for seed in clusters(250) {
        let mut random = Random::new(seed ^ 0x71e8);
        let cluster = generate::with_tiers_unplaced(&mut random);
        let readings = cluster.readings();
        let [surely, possibly] = readings.unwrap_or([cluster.clone(), cluster.clone()]);
        let homes = addresses(&cluster, &mut random);
        for flow in asked(&cluster, &mut random, 300) {
            let service = flow.service();
            let in_reading = |reading| {
                let find = |place: &FlowEnd| match place {
                    FlowEnd::Address(address) => Some(identify(reading, *address)),
                    FlowEnd::Name(key) => named(reading, key),
                };
                Some(judge(reading, &find(&flow.src)?, &find(&flow.dst)?, service))
            };
            let (Some(sure), Some(possible)) = (in_reading(&surely), in_reading(&possibly)) else {
                continue;
            };
            for (sure, possible) in [
                (&sure.ingress, &possible.ingress),
                (&sure.egress, &possible.egress),
            ] {
                assert!(!sure.allow || possible.allow, "seed {seed}: {flow:?}");
            }
            seen[usize::from(sure.allow()) + usize::from(possible.allow())] += 1;
            if homes.is_empty() {
                continue;
            }
            for _ in 0..6 {
                let place = |place: &FlowEnd, random: &mut Random| -> Option<End<'_>> {
                    match place {
                        FlowEnd::Address(address) => Some(identify(&cluster, *address)),
                        FlowEnd::Name(key) => Some(End {
                            address: Some(*random.one(&homes)),
                            ..named(&cluster, key)?
                        }),
                    }
                };
                let src = place(&flow.src, &mut random).unwrap();
                let mut dst = place(&flow.dst, &mut random).unwrap();
                // A template stands for pods that are not each other; one pod has one address.
                let template = |pod: &Pod| pod.template_of.is_some();
                if flow.src == flow.dst && !matches!(dst.identity, Identity::Pod(pod) if template(pod)) {
                    dst = src;
                }
                let there = judge(&cluster, &src, &dst, service);
                for (sure, possible, there) in [
                    (&sure.ingress, &possible.ingress, &there.ingress),
                    (&sure.egress, &possible.egress, &there.egress),
                ] {
                    assert!(
                        (!sure.allow || there.allow) && (possible.allow || !there.allow),
                        "seed {seed}: {flow:?} with {:?} and {:?}: surely {sure:?}, possibly {possible:?}, there {there:?}\n{cluster:#?}",
                        src.address,
                        dst.address
                    );
                }
                moved += usize::from(there.allow() != sure.allow());
            }
        }
    }
    assert!(
        (seen.iter().all(|count| *count > 300) && moved > 300) || std::env::var("SEED").is_ok(),
        "asked too little: {seen:?}, {moved}"
    );
}

#[test]
fn snapshots_of_readings_answer_what_the_evaluator_answers() {
    let mut outcomes = Outcomes::default();
    let mut read = 0;
    for seed in clusters(250) {
        let mut random = Random::new(seed ^ 0x71e9);
        let cluster = generate::with_tiers_unplaced(&mut random);
        let flows = asked(&cluster, &mut random, 600);
        for reading in cluster.readings().into_iter().flatten() {
            read += 1;
            let compiled = Compiled::of(&reading.for_compiler());
            if let Some(difference) = first_difference(&reading, &compiled, &flows, &mut outcomes) {
                panic!("seed {seed}: {difference}\n{reading:#?}");
            }
        }
    }
    assert!(read > 200 || std::env::var("SEED").is_ok(), "{read} readings");
}
