//! The compiler that keeps its state answers what a full compile answers, whatever came before.

use std::{collections::BTreeMap, sync::Arc};

use ringwall_compile::{Budget, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, Image, Snapshot};
use ringwall_policy::{Cluster, Object, ObjectRef};

use crate::{
    compare::{Compiled, Outcomes, first_difference},
    events::event,
    generate::{self, Flow, flows},
    random::Random,
};

/// A compiler, and a reader that gets the changes alone.
pub(crate) struct Follower {
    compiler: Compiler,
    generation: u64,
    last: Option<(Image, Arc<Snapshot>)>,
}

impl Follower {
    pub(crate) fn new() -> Self {
        Self {
            compiler: Compiler::new(EpochKey::OFFLINE, Budget::default()),
            generation: 0,
            last: None,
        }
    }

    /// The compiled state, and whether it was made from the one before.
    pub(crate) fn update(&mut self, cluster: &Cluster) -> (Compiled, bool) {
        self.generation += 1;
        let compiled = self
            .compiler
            .update(cluster, Generation(self.generation))
            .expect("the cluster compiles");
        let incremental = compiled.incremental;
        let delta = self.last.as_ref().filter(|_| incremental);
        let delta = delta.and_then(|(image, snapshot)| Some((compiled.image.delta_since(image)?, snapshot)));
        let snapshot = match delta {
            Some((delta, before)) => before.apply(&delta).expect("the delta fits"),
            None => Snapshot::open(&compiled.image.to_bytes()).expect("the image opens"),
        };
        let snapshot = Arc::new(snapshot);
        self.last = Some((compiled.image.clone(), Arc::clone(&snapshot)));
        (Compiled::from_parts(compiled, snapshot), incremental)
    }
}

/// What differs between two compiled states of one cluster; None where nothing does.
pub(crate) fn difference(one: &Compiled, other: &Compiled, flows: &[Flow]) -> Option<String> {
    for flow in flows {
        let epochs = |compiled: &Compiled| {
            let (src, dst, _) = compiled.judge(flow)?;
            Some((src.epoch, dst.epoch, src.kind, dst.kind))
        };
        if one.answer(flow) != other.answer(flow) {
            return Some(format!(
                "{flow:?}: {:?}, in full {:?}",
                one.answer(flow),
                other.answer(flow)
            ));
        }
        if epochs(one) != epochs(other) {
            return Some(format!(
                "{flow:?}: epochs and kinds {:?}, in full {:?}",
                epochs(one),
                epochs(other)
            ));
        }
    }
    if one.image.hash != other.image.hash || one.snapshot.hash() != other.snapshot.hash() {
        return Some("another hash".to_owned());
    }
    let counts = |compiled: &Compiled| {
        let stats = compiled.image.stats;
        [
            stats.endpoints,
            stats.hosts,
            stats.cohorts,
            stats.policies,
            stats.rules,
            stats.selectors,
            stats.blocks,
        ]
    };
    (counts(one) != counts(other)).then(|| format!("{:?}, in full {:?}", counts(one), counts(other)))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    super::clusters(default)
}

#[test]
fn updates_answer_what_a_full_compile_answers() {
    let mut kinds: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
    let mut outcomes = Outcomes::default();
    for seed in seeds(120) {
        let random = &mut Random::new(seed ^ 0x17c0);
        let mut cluster = generate::cluster(random);
        let mut follower = Follower::new();
        follower.update(&cluster);
        let mut history = Vec::new();
        for step in 0..25 {
            // Mostly one event, sometimes what a debounce collects.
            let events = if random.percent(80) {
                1
            } else {
                1 + random.below(6)
            };
            let before = history.len();
            for _ in 0..events {
                history.push(event(&mut cluster, random));
            }
            let (compiled, incremental) = follower.update(&cluster);
            if events == 1 {
                kinds.entry(history[before]).or_default()[usize::from(incremental)] += 1;
            }
            let full = Compiled::of(&cluster);
            let flows = flows(&cluster, random, 120);
            if let Some(difference) = difference(&compiled, &full, &flows) {
                panic!("seed {seed}, step {step}: {difference}\nafter {history:?}\n{cluster:#?}");
            }
            if let Some(difference) = first_difference(&cluster, &compiled, &flows[..40], &mut outcomes) {
                panic!("seed {seed}, step {step}: {difference}\nafter {history:?}\n{cluster:#?}");
            }
        }
    }
    println!("kind of event: [in full, incremental]\n{kinds:#?}");
    if std::env::var("SEED").is_err() {
        for (kind, [full, incremental]) in kinds {
            if kind == "settings" {
                continue;
            }
            assert_eq!(full, 0, "{kind}: {incremental} times otherwise");
        }
    }
}

/// What leads from one cluster to another.
fn way(from: &Cluster, to: &Cluster) -> Vec<Result<Object, ObjectRef>> {
    let mut way = Vec::new();
    for (key, it) in &to.namespaces {
        if from.namespaces.get(key) != Some(it) {
            way.push(Ok(Object::Namespace((**it).clone())));
        }
    }
    for (key, it) in &to.nodes {
        if from.nodes.get(key) != Some(it) {
            way.push(Ok(Object::Node((**it).clone())));
        }
    }
    for (key, it) in &to.pods {
        if from.pods.get(key) != Some(it) {
            way.push(Ok(Object::Pod((**it).clone())));
        }
    }
    for (key, it) in &to.policies {
        if from.policies.get(key) != Some(it) {
            way.push(Ok(Object::NetworkPolicy((**it).clone())));
        }
    }
    let gone = |reference| way_back(to, reference);
    way.extend(
        from.namespaces
            .keys()
            .cloned()
            .map(ObjectRef::Namespace)
            .filter_map(gone),
    );
    way.extend(from.nodes.keys().cloned().map(ObjectRef::Node).filter_map(gone));
    way.extend(from.pods.keys().cloned().map(ObjectRef::Pod).filter_map(gone));
    way.extend(
        from.policies
            .keys()
            .cloned()
            .map(ObjectRef::NetworkPolicy)
            .filter_map(gone),
    );
    way
}

fn way_back(to: &Cluster, reference: ObjectRef) -> Option<Result<Object, ObjectRef>> {
    (!to.clone().remove(&reference)).then_some(Err(reference))
}

#[test]
fn every_order_of_events_leads_to_the_same() {
    for seed in seeds(40) {
        let random = &mut Random::new(seed ^ 0x0dde);
        let (from, mut to) = (generate::cluster(random), generate::cluster(random));
        to.settings = from.settings.clone();
        let mut way = way(&from, &to);
        let full = Compiled::of(&to);
        let flows = flows(&to, random, 150);
        for order in 0..4 {
            match order {
                0 => {}
                1 => way.reverse(),
                _ => random.shuffle(&mut way),
            }
            let mut cluster = from.clone();
            let mut follower = Follower::new();
            follower.update(&cluster);
            for step in &way {
                match step {
                    Ok(object) => cluster.insert(object.clone()),
                    Err(reference) => drop(cluster.remove(reference)),
                }
                if random.percent(70) {
                    follower.update(&cluster);
                }
            }
            assert_eq!(cluster, to, "the way leads there");
            let (last, _) = follower.update(&cluster);
            if let Some(difference) = difference(&last, &full, &flows) {
                panic!("seed {seed}, order {order}: {difference}\nafter {way:#?}");
            }
        }
    }
}
