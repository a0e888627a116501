//! How long an explanation takes in large clusters.

use std::{sync::Arc, time::Duration};

use ringwall_analyse::{
    explain::{Explainer, Question},
    hypothetical::HypotheticalStates,
};
use ringwall_compile::{EpochKey, compile};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::{Cluster, ObjectKey};
use ringwall_source::decode::decode;
use ringwall_testbed::synthetic::{Spec, Synthetic};
use rustix::time::{ClockId, clock_gettime};

use crate::random::Random;

/// Processor time of this thread: other work on the machine does not count.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `cargo test --release -p ringwall --no-default-features --test explain figures -- --ignored --nocapture`; `SIZES` is a list of
/// policies/pods/namespaces. Each question is asked twice: of a state
/// that is compiled for it, as offline, and with what the question before it compiled, as of a running control.
#[test]
#[ignore = "figures, not a check"]
fn figures_of_explanations_in_large_clusters() {
    let sizes =
        std::env::var("SIZES").unwrap_or_else(|_| "200/1000/20 1000/10000/100 10000/100000/1000".to_owned());
    for size in sizes.split(' ') {
        let size: Vec<usize> = size.split('/').map(|part| part.parse().unwrap()).collect();
        let [policies, pods, namespaces] = size[..] else {
            panic!("policies/pods/namespaces")
        };
        let synthetic = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
        let mut cluster = Cluster::default();
        for object in synthetic.objects() {
            for decoded in decode(&object).unwrap() {
                cluster.insert(decoded.object);
            }
        }
        let image = compile(&cluster, Generation(1), &EpochKey::OFFLINE)
            .unwrap()
            .image;
        let kept = Arc::new(HypotheticalStates::default());
        let explainer = |states: Arc<_>| Explainer::over(&cluster, Snapshot::from_image(&image), states);
        let keys: Vec<ObjectKey> = cluster.pods.keys().cloned().collect();
        let mut random = Random::new(1);
        let (mut anew, mut after): (Vec<Duration>, Vec<Duration>) = Default::default();
        let (mut changes, mut answered) = (0, 0);
        while after.len() < 30 {
            // Half of the flows are within a namespace, where policies meet them.
            let src = random.below(keys.len());
            let dst = if random.percent(50) {
                (src + 1 + random.below(8)) % keys.len()
            } else {
                random.below(keys.len())
            };
            let question =
                Question::read(&keys[src].to_string(), &keys[dst].to_string(), "8080/TCP").unwrap();
            let timed = |states| {
                let began = spent();
                let explanation = explainer(states).explain(&question).ok();
                explanation.map(|explanation| (spent() - began, explanation))
            };
            let Some((time, explanation)) = timed(Arc::default()) else {
                continue;
            };
            anew.push(time);
            let (time, with_kept) = timed(Arc::clone(&kept)).unwrap();
            after.push(time);
            assert_eq!(with_kept, explanation);
            answered += usize::from(!explanation.changes.is_empty());
            changes += explanation.changes.len();
        }
        anew.sort();
        after.sort();
        println!(
            "{policies} policies, {} pods: each alone median {:?}, worst {:?}; one after the other {:?}, {:?}; {answered} of 30 \
             with changes, {changes} changes",
            cluster.pods.len(),
            anew[15],
            anew[29],
            after[15],
            after[29]
        );
    }
}
