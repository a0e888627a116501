//! How long an explanation takes in large clusters.

use std::time::Duration;

use ringwall_analyse::explain::{Explainer, Question};
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

/// `cargo test --release -p ringwall --no-default-features --test explain figures -- --ignored --nocapture`
#[test]
#[ignore = "figures, not a check"]
fn figures_of_explanations_in_large_clusters() {
    for (policies, pods, namespaces) in [(200, 1_000, 20), (1_000, 10_000, 100), (10_000, 100_000, 1_000)] {
        let synthetic = Synthetic::new(Spec::sized(policies, pods, namespaces)).unwrap();
        let mut cluster = Cluster::default();
        for object in synthetic.objects() {
            for decoded in decode(&object).unwrap() {
                cluster.insert(decoded.object);
            }
        }
        let explainer = Explainer::new(&cluster).unwrap();
        let keys: Vec<ObjectKey> = cluster.pods.keys().cloned().collect();
        let mut random = Random::new(1);
        let (mut times, mut changes, mut answered): (Vec<Duration>, usize, usize) = Default::default();
        while times.len() < 30 {
            // Half of the flows are within a namespace, where policies meet them.
            let src = random.below(keys.len());
            let dst = if random.percent(50) {
                (src + 1 + random.below(8)) % keys.len()
            } else {
                random.below(keys.len())
            };
            let question =
                Question::read(&keys[src].to_string(), &keys[dst].to_string(), "8080/TCP").unwrap();
            let began = spent();
            let Ok(explanation) = explainer.explain(&question) else {
                continue;
            };
            times.push(spent() - began);
            answered += usize::from(!explanation.changes.is_empty());
            changes += explanation.changes.len();
        }
        times.sort();
        println!(
            "{policies} policies, {} pods: median {:?}, worst {:?}; {answered} of 30 with changes, {changes} changes",
            cluster.pods.len(),
            times[15],
            times[29]
        );
    }
}
