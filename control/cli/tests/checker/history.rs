//! Clusters in motion: one state after the other, compiled by one compiler, proven by one checker.

use std::sync::Arc;

use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::{
    addr::Addr,
    classify::{Generation, L4, NodeExemption, Snapshot},
};
use ringwall_policy::{Action, Cluster, KUBE_ADMIN, KUBE_BASELINE, Object, TieredPolicy};
use ringwall_prove::{Checker, Difference};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{EventKind, Spec, Synthetic};

use crate::{generate, mutate, random::Random};

/// A pod, policy or namespace more, less, replaced or changed; seldom anything else. With policies of ordered kinds where
/// `tiers`.
fn event(cluster: &Cluster, tiers: bool, random: &mut Random) -> Cluster {
    let mut next = cluster.clone();
    let other = crate::some_cluster(tiers, random);
    let keys: Vec<_> = cluster.pods.keys().cloned().collect();
    match random.below(if tiers { 32 } else { 20 }) {
        26..=31 => generate::members_change(&mut next, random),
        20..=25 => tiered_event(&mut next, &other, random),
        0 => next = mutate::step(cluster, random),
        1 | 2 => {
            let policies: Vec<_> = other.policies.values().collect();
            if !policies.is_empty() {
                let policy: ringwall_policy::NetworkPolicy = (***random.one(&policies)).clone();
                next.insert(Object::NetworkPolicy(policy));
            }
        }
        3 => {
            let policies: Vec<_> = cluster.policies.keys().cloned().collect();
            if !policies.is_empty() {
                next.policies.remove(random.one(&policies));
            }
        }
        4 => {
            let namespaces: Vec<_> = other.namespaces.values().collect();
            let namespace: ringwall_policy::Namespace = (***random.one(&namespaces)).clone();
            if random.percent(25) {
                next.namespaces.remove(&namespace.name);
            } else {
                next.insert(Object::Namespace(namespace));
            }
        }
        5..=9 => {
            if !keys.is_empty() {
                next.pods.remove(random.one(&keys));
            }
        }
        _ => {
            let pods: Vec<_> = other.pods.values().collect();
            if !pods.is_empty() {
                let mut pod: ringwall_policy::Pod = (***random.one(&pods)).clone();
                pod.key.name = format!("p{}", random.below(20));
                next.insert(Object::Pod(pod));
            }
        }
    }
    next
}

/// A policy of an ordered kind more, less, replaced or changed.
fn tiered_event(next: &mut Cluster, other: &Cluster, random: &mut Random) {
    let others: Vec<TieredPolicy> = other.tiered.values().map(|policy| (**policy).clone()).collect();
    let own: Vec<TieredPolicy> = next.tiered.values().map(|policy| (**policy).clone()).collect();
    let mut put = |policy: TieredPolicy| drop(next.tiered.insert(policy.id.clone(), Arc::new(policy)));
    match random.below(7) {
        0 | 1 if !others.is_empty() => put(random.one(&others).clone()),
        _ if own.is_empty() => others.into_iter().for_each(put),
        2 => drop(next.tiered.remove(&random.one(&own).id)),
        3 => {
            // Two change places and nothing else.
            let (mut one, mut two) = (random.one(&own).clone(), random.one(&own).clone());
            std::mem::swap(&mut one.order, &mut two.order);
            if one.id != two.id {
                put(one);
                put(two);
            }
        }
        4 => {
            let mut policy = random.one(&own).clone();
            let tier = match policy.tier.as_str() {
                KUBE_ADMIN => KUBE_BASELINE,
                _ => KUBE_ADMIN,
            };
            policy.tier = tier.to_owned();
            put(policy);
        }
        5 => {
            let mut policy = random.one(&own).clone();
            let actions = [Action::Allow, Action::Deny, Action::Pass];
            for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
                rule.action = *random.one(&actions);
            }
            put(policy);
        }
        _ => {
            let mut policy = random.one(&own).clone();
            policy.ingress.as_mut().map(Vec::pop);
            policy.egress.iter_mut().for_each(|rules| rules.reverse());
            put(policy);
        }
    }
}

/// Whether a proof failed for flows that would go on.
fn is_about_epochs<T>(proof: &Result<T, Box<Difference>>) -> bool {
    let would = "flows would go on";
    proof
        .as_ref()
        .is_err_and(|difference| difference.what.contains(would))
}

fn update(compiler: &mut Compiler, cluster: &Cluster, generation: u64) -> Arc<Snapshot> {
    let compiled = compiler
        .update(cluster, Generation(generation))
        .expect("the cluster compiles");
    Arc::new(Snapshot::from_image(&compiled.image))
}

#[test]
fn successors_are_proven_from_what_differs() {
    let (mut carried, mut with_policies, mut ordered, mut members, mut whole) = (0, 0, 0, 0, 0);
    for seed in crate::seeds(60) {
        let tiers = seed % 2 == 1;
        let mut random = Random::new(seed);
        let mut cluster = crate::some_cluster(tiers, &mut random);
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let mut checker = Checker::new();
        let mut last = Cluster::default();
        for generation in 1..25 {
            let snapshot = update(&mut compiler, &cluster, generation);
            let report = checker.changed(&cluster, &snapshot);
            let report =
                report.unwrap_or_else(|difference| panic!("seed {seed}, {generation}: {difference}"));
            let policies = |of: &Cluster| (of.policies.clone(), of.tiered.clone(), of.namespaces.clone());
            let same_policies = policies(&last) == policies(&cluster);
            ordered += u32::from(!report.whole && last.tiered != cluster.tiered);
            members += u32::from(!report.whole && last.address_sets != cluster.address_sets);
            match (report.whole, same_policies) {
                (true, _) => whole += 1,
                (false, true) => carried += 1,
                (false, false) => with_policies += 1,
            }
            last = cluster.clone();
            cluster = event(&cluster, tiers, &mut random);
        }
    }
    println!(
        "{carried} carried over, {with_policies} with other policies or namespaces, {ordered} of ordered kinds, {members} with other members, {whole} whole"
    );
    assert!(
        carried > 400 && with_policies > 100 && ordered > 40 && members > 60,
        "{carried} carried over, {with_policies} with other policies or namespaces, {whole} whole"
    );
}

/// A compiler that has compiled the state before correctly reads the next one wrongly: what a whole proof finds, the
/// proof of what changed finds too, whatever they share.
#[test]
fn successors_with_a_mistake_are_found() {
    let all: Vec<_> = crate::all_mistakes().collect();
    let (mut wrong, mut right, mut carried) = (0, 0, 0);
    for seed in crate::seeds(250) {
        let tiers = seed % 2 == 1;
        let mut random = Random::new(seed);
        let cluster = crate::some_cluster(tiers, &mut random);
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let mut checker = Checker::new();
        let first = update(&mut compiler, &cluster, 1);
        assert!(checker.changed(&cluster, &first).is_ok());
        let next = event(&cluster, tiers, &mut random);
        let mut misread = next.clone();
        if random.percent(50) {
            let (_, mistake) = random.one(&all);
            mistake(&mut misread);
        } else {
            // It missed the event, or heard of another one.
            misread = if random.percent(50) {
                cluster.clone()
            } else {
                event(&cluster, tiers, &mut random)
            };
        }
        let second = update(&mut compiler, &misread, 2);
        let whole = Checker::new().full(&next, &second);
        let changed = checker.changed(&next, &second);
        if is_about_epochs(&changed) {
            // A snapshot by itself is not wrong about them.
            continue;
        }
        assert_eq!(
            whole.is_ok(),
            changed.is_ok(),
            "seed {seed}: whole {whole:?}, changed {changed:?}"
        );
        match changed {
            Ok(report) => {
                right += 1;
                carried += u32::from(!report.whole);
            }
            Err(difference) => {
                wrong += 1;
                crate::confirm::confirm(&next, &difference);
                // Nothing is carried over from a refused snapshot.
                let again = update(&mut compiler, &next, 3);
                let report = checker.changed(&next, &again).expect("the right one is proven");
                assert!(report.whole);
            }
        }
    }
    assert!(
        wrong > 40 && right > 20 && carried > 10,
        "{wrong} wrong, {right} right, {carried} carried over"
    );
}

#[test]
fn the_rolling_pass_sees_everything_in_steps() {
    let cluster = (0..)
        .map(|seed| generate::cluster(&mut Random::new(seed)))
        .find(|cluster| cluster.pods.len() >= 10 && cluster.policies.len() >= 5)
        .expect("a large one");
    let snapshot = crate::snapshot(&cluster);
    let mut checker = Checker::new();
    assert_eq!(
        checker.step(std::time::Duration::ZERO).unwrap(),
        ringwall_prove::Progress::Idle
    );
    let report = checker.full(&cluster, &snapshot).unwrap();
    let mut steps = 0;
    let rolled = loop {
        steps += 1;
        match checker.step(std::time::Duration::ZERO).unwrap() {
            ringwall_prove::Progress::Done(report) => break report,
            progress => assert_eq!(progress, ringwall_prove::Progress::Working),
        }
    };
    assert!(steps > 10, "{steps} steps");
    let counts =
        |report: ringwall_prove::Report| (report.classes, report.pairs, report.addresses, report.questions);
    assert_eq!(counts(rolled), counts(report));
    // A wrong snapshot is found there as well.
    let mut misread = cluster.clone();
    misread.pods.clear();
    checker.look_at(&cluster, &crate::snapshot(&misread));
    let found = (0..10_000).any(|_| checker.step(std::time::Duration::ZERO).is_err());
    assert!(found);
}

fn decoded(object: &serde_json::Value) -> Object {
    decode(object).expect("it decodes").remove(0).object
}

/// Larger clusters, whose tables grow, shrink and are hashed anew: a snapshot that is one event late or early is found
/// exactly when a whole proof finds it.
#[test]
fn late_and_early_snapshots_are_found() {
    let mut spec = Spec::sized(15, 60, 4);
    spec.dual_stack = true;
    spec.named = 0.4;
    spec.blocks = 0.4;
    spec.excepts = 0.7;
    spec.churn.namespace = 0.05;
    spec.churn.policy = 0.2;
    let mut synthetic = Synthetic::new(spec).expect("the sizes fit");
    let mut cluster = Cluster::default();
    for object in synthetic.objects() {
        cluster.insert(decoded(&object));
    }
    let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
    let mut snapshot = update(&mut compiler, &cluster, 1);
    let mut honest = Checker::new();
    honest.full(&cluster, &snapshot).expect("it is proven");
    let (mut found, mut carried, mut epochs) = (0, 0, 0);
    for generation in 2..32 {
        let event = synthetic.churn();
        let mut next = cluster.clone();
        let object = decoded(&event.object);
        if event.kind == EventKind::Deleted {
            next.remove(&object.reference().expect("it is an object"));
        } else {
            next.insert(object);
        }
        let successor = update(&mut compiler, &next, generation);
        let report = honest.changed(&next, &successor).expect("it is proven");
        carried += u32::from(!report.whole);
        for (objects, tables) in [(&next, &snapshot), (&cluster, &successor)] {
            let mut checker = Checker::new();
            checker.full(&cluster, &snapshot).expect("it is proven");
            let changed = checker.changed(objects, tables);
            let whole = Checker::new().full(objects, tables);
            if is_about_epochs(&changed) {
                epochs += 1;
                continue;
            }
            assert_eq!(
                changed.is_ok(),
                whole.is_ok(),
                "{generation}, {} {}: changed {changed:?}, whole {whole:?}",
                event.kind.word(),
                event.object["metadata"]["name"]
            );
            if let Err(difference) = changed {
                found += 1;
                crate::confirm::confirm(objects, &difference);
            }
        }
        (cluster, snapshot) = (next, successor);
    }
    assert!(
        found + epochs > 15 && found > 5 && carried > 15,
        "{found} found, {carried} carried over"
    );
}

/// Nodes that come, go, get other addresses and networks: what is carried over is right, and a compiler that missed the event
/// is found exactly when a whole proof finds it.
#[test]
fn nodes_are_carried_over() {
    let (mut carried, mut whole_proofs, mut found) = (0, 0, 0);
    for seed in crate::seeds(60) {
        let mut random = Random::new(seed);
        let mut cluster = generate::cluster(&mut random);
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let mut checker = Checker::new();
        let mut snapshot = update(&mut compiler, &cluster, 1);
        checker.changed(&cluster, &snapshot).expect("it is proven");
        for generation in 2..12 {
            let next = node_event(&cluster, &mut random);
            // As if the compiler had not heard of it.
            let mut deaf = Checker::new();
            deaf.full(&cluster, &snapshot).expect("it is proven");
            let late = deaf.changed(&next, &snapshot);
            let whole = Checker::new().full(&next, &snapshot);
            if !is_about_epochs(&late) {
                assert_eq!(
                    late.is_ok(),
                    whole.is_ok(),
                    "seed {seed}, {generation}: changed {late:?}, whole {whole:?}"
                );
            }
            found += u32::from(late.is_err());

            cluster = next;
            snapshot = update(&mut compiler, &cluster, generation);
            let report = checker.changed(&cluster, &snapshot);
            let report =
                report.unwrap_or_else(|difference| panic!("seed {seed}, {generation}: {difference}"));
            if report.whole {
                whole_proofs += 1;
            } else {
                carried += 1;
            }
        }
    }
    println!("{carried} carried over, {whole_proofs} whole, {found} found");
    assert!(
        carried > 3 * whole_proofs && found > 50,
        "{carried} carried over, {whole_proofs} whole, {found} found"
    );
}

fn node_event(cluster: &Cluster, random: &mut Random) -> Cluster {
    let mut next = cluster.clone();
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    let mut node = match random.below(4) {
        0 if !names.is_empty() => {
            next.nodes.remove(random.one(&names));
            return next;
        }
        1 | 2 if !names.is_empty() => (*cluster.nodes[random.one(&names)]).clone(),
        _ => ringwall_policy::Node {
            name: format!("new-{}", random.below(5)),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
        },
    };
    // Addresses that others have, too: of pods, of other nodes, without an owner.
    let pods = cluster
        .pods
        .values()
        .flat_map(|pod| pod.addresses.iter().copied());
    let nodes = cluster
        .nodes
        .values()
        .flat_map(|node| node.addresses.iter().copied());
    let mut addresses: Vec<_> = pods.chain(nodes).collect();
    addresses.push(std::net::IpAddr::from([192, 0, 2, random.below(4) as u8]));
    node.addresses = (0..random.below(3)).map(|_| *random.one(&addresses)).collect();
    node.addresses.sort_unstable();
    node.addresses.dedup();
    let networks = ["10.0.0.0/24", "10.9.0.0/24", "192.0.2.0/30", "fd00:9::/64"];
    node.pod_cidrs = (0..random.below(3))
        .map(|_| random.one(&networks).parse().expect("a network"))
        .collect();
    next.insert(Object::Node(node));
    next
}

/// A compiler that changes what decides and leaves the epochs of pods as they were: flows that it revokes would go on. Found
/// by the proof of what differs, and by a whole one of tables that were laid out anew.
#[test]
fn epochs_that_stay_are_found() {
    let (mut wrong, mut found, mut carried, mut whole) = (0, [0, 0], 0, 0);
    for seed in crate::seeds(400) {
        let tiers = seed % 2 == 1;
        let mut random = Random::new(seed);
        let cluster = crate::some_cluster(tiers, &mut random);
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let first = update(&mut compiler, &cluster, 1);
        let next = revoking(&cluster, tiers, &mut random);
        let mut from_nothing = Compiler::new(EpochKey::OFFLINE, Budget::default());
        for (anew, compiler) in [&mut compiler, &mut from_nothing].into_iter().enumerate() {
            let second = update(compiler, &next, 2);
            let mut checker = Checker::new();
            checker.full(&cluster, &first).expect("it is proven");
            checker.changed(&next, &second).expect("its epochs are right");
            let forged = with_epochs_of(&first, &second, &next);
            let stale = stale_flow(&cluster, &[], &first, &forged);
            let mut checker = Checker::new();
            checker.full(&cluster, &first).expect("it is proven");
            let proof = checker.changed(&next, &forged);
            match &proof {
                Ok(report) => {
                    assert!(stale.is_none(), "seed {seed}: not found: {stale:?}");
                    whole += u32::from(report.whole);
                    carried += u32::from(!report.whole);
                }
                Err(difference) => {
                    assert!(is_about_epochs(&proof), "seed {seed}: {difference}");
                    found[anew] += 1;
                }
            }
            wrong += u32::from(stale.is_some());
        }
    }
    println!("{wrong} wrong, {found:?} found, {carried} carried over, {whole} whole");
    assert!(
        wrong > 60 && found[0] > 15 && found[1] > 30 && carried > 20 && whole > 100,
        "{wrong} wrong, {found:?} found, {carried} carried over, {whole} whole"
    );
}

/// The second snapshot, whose pods have the epochs that they had in the first one.
fn with_epochs_of(first: &Snapshot, second: &Snapshot, cluster: &Cluster) -> Arc<Snapshot> {
    with_epochs(second, &epochs_of_pods(first, second, cluster))
}

/// The epochs of pods in the second snapshot that they had in the first one.
fn epochs_of_pods(
    first: &Snapshot,
    second: &Snapshot,
    cluster: &Cluster,
) -> std::collections::HashMap<u64, u64> {
    let mut stay = std::collections::HashMap::new();
    for key in cluster.pods.keys() {
        let find = |snapshot: &Snapshot| {
            let found = snapshot.find_endpoint(&key.namespace, &key.name);
            found.map(|endpoint| endpoint.identity.epoch)
        };
        if let (Some(before), Some(after)) = (find(first), find(second)) {
            stay.insert(after, before);
        }
    }
    stay
}

fn with_epochs(snapshot: &Snapshot, stay: &std::collections::HashMap<u64, u64>) -> Arc<Snapshot> {
    let mut forged = crate::forge::Forged::of(&snapshot.image().to_bytes());
    forged.epochs(|epoch| stay.get(&epoch).copied());
    Arc::new(Snapshot::open(&forged.sealed()).expect("the image opens"))
}

/// Who leaves an address set or comes into one keeps its epoch, and so do all pods: flows that were judged by the members
/// before would go on. Found by the proof of what differs, and by a whole one.
#[test]
fn epochs_of_members_that_stay_are_found() {
    let (mut wrong, mut found, mut carried) = (0, 0, 0);
    for seed in crate::seeds(400) {
        let mut random = Random::new(seed ^ 0x5e75);
        let cluster = crate::some_cluster(true, &mut random);
        let mut next = cluster.clone();
        for _ in 0..1 + random.below(10) {
            generate::members_change(&mut next, &mut random);
        }
        let mut compiler = Compiler::new(EpochKey::OFFLINE, Budget::default());
        let first = update(&mut compiler, &cluster, 1);
        let second = update(&mut compiler, &next, 2);
        let addresses = addresses_of_sets(&cluster, &next);
        assert_eq!(
            stale_flow(&cluster, &addresses, &first, &second),
            None,
            "seed {seed}: a flow would go on"
        );
        let mut stay = epochs_of_pods(&first, &second, &next);
        for address in &addresses {
            let epoch = |snapshot: &Snapshot| snapshot.identify((*address).into()).epoch;
            stay.insert(epoch(&second), epoch(&first));
        }
        let forged = with_epochs(&second, &stay);
        let stale = stale_flow(&cluster, &addresses, &first, &forged);
        for whole in [false, true] {
            let mut checker = Checker::new();
            checker.full(&cluster, &first).expect("it is proven");
            let proof = match whole {
                false => checker.changed(&next, &forged),
                true => checker.full(&next, &forged),
            };
            match &proof {
                Ok(report) => {
                    assert!(
                        stale.is_none(),
                        "seed {seed}, whole {whole}: not found: {stale:?}"
                    );
                    carried += u32::from(!report.whole);
                }
                Err(difference) => {
                    assert!(is_about_epochs(&proof), "seed {seed}: {difference}");
                    found += 1;
                }
            }
        }
        wrong += u32::from(stale.is_some());
    }
    println!("{wrong} wrong, {found} found, {carried} carried over");
    assert!(
        wrong > 10 && found > 30 && carried > 100,
        "{wrong} wrong, {found} found, {carried} carried over"
    );
}

/// Addresses in prefixes that are in an address set of one state alone.
fn addresses_of_sets(before: &Cluster, after: &Cluster) -> Vec<std::net::IpAddr> {
    let nets = |one: &Cluster, other: &Cluster| {
        let all = one.address_sets.iter().flat_map(|(name, set)| {
            let there = other.address_sets.get(name).cloned().unwrap_or_default();
            let only = set.iter().filter(move |net| !there.contains(*net));
            only.copied().collect::<Vec<_>>()
        });
        all.collect::<Vec<_>>()
    };
    let nets = nets(before, after).into_iter().chain(nets(after, before));
    let ends = nets.flat_map(|net| [net.network(), net.broadcast()]);
    // The packet path has no IPv6 addresses that stand for IPv4 ones.
    ends.filter(|address| address.to_canonical() == *address)
        .collect()
}

/// A policy less, of any kind, or a pod with the labels of another one; seldom anything else.
fn revoking(cluster: &Cluster, tiers: bool, random: &mut Random) -> Cluster {
    let mut next = cluster.clone();
    let (policies, tiered, pods): (Vec<_>, Vec<_>, Vec<_>) = (
        cluster.policies.keys().cloned().collect(),
        cluster.tiered.keys().cloned().collect(),
        cluster.pods.values().cloned().collect(),
    );
    match random.below(if tiers { 6 } else { 4 }) {
        4 | 5 if !tiered.is_empty() => drop(next.tiered.remove(random.one(&tiered))),
        0 | 1 if !policies.is_empty() => drop(next.policies.remove(random.one(&policies))),
        2 if !pods.is_empty() => {
            let mut pod = (**random.one(&pods)).clone();
            pod.labels = random.one(&pods).labels.clone();
            next.insert(Object::Pod(pod));
        }
        _ => return event(cluster, tiers, random),
    }
    next
}

/// Two addresses whose epochs stay and between whom something else passes.
fn stale_flow(
    cluster: &Cluster,
    more: &[std::net::IpAddr],
    before: &Snapshot,
    after: &Snapshot,
) -> Option<(std::net::IpAddr, std::net::IpAddr)> {
    let pods = cluster
        .pods
        .values()
        .flat_map(|pod| pod.addresses.iter().copied());
    let mut addresses: Vec<_> = pods.chain(more.iter().copied()).collect();
    addresses.extend([
        std::net::IpAddr::from([192, 0, 2, 7]),
        std::net::IpAddr::from([10, 200, 0, 1]),
    ]);
    let services = [
        L4::Port {
            protocol: 6,
            port: 80,
            source: 0,
        },
        L4::Port {
            protocol: 6,
            port: 443,
            source: 0,
        },
        L4::Port {
            protocol: 17,
            port: 53,
            source: 0,
        },
        L4::NoPort { protocol: 47 },
    ];
    let passes = |snapshot: &Snapshot, src, dst, l4| {
        let (src, dst): (Addr, Addr) = (std::net::IpAddr::into(src), std::net::IpAddr::into(dst));
        let (a, b) = (snapshot.identify(src), snapshot.identify(dst));
        let decided = snapshot.judge_ends(&a, &b, false, l4, NodeExemption::Untrusted);
        (a.epoch, b.epoch, decided.ingress.allow && decided.egress.allow)
    };
    for src in &addresses {
        for dst in addresses
            .iter()
            .filter(|dst| *dst != src && dst.is_ipv4() == src.is_ipv4())
        {
            for l4 in services {
                let (old, new) = (passes(before, *src, *dst, l4), passes(after, *src, *dst, l4));
                if (old.0, old.1) == (new.0, new.1) && old.2 != new.2 {
                    return Some((*src, *dst));
                }
            }
        }
    }
    None
}
