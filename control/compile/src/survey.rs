//! What a full compile has to know of each pod and no policy changes: found by another thread while this one reads policies.

use std::{collections::BTreeSet, sync::mpsc, thread};

use ringwall_policy::{Cluster, Pod};

use super::content::{Content, Digest};

/// Pods for which another thread is worth its start.
pub(super) const MANY_PODS: usize = 1000;

/// Of all pods, in the order of [`Cluster::pods`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Survey {
    /// Of each pod: whether no selector and no rule can tell it from the last one before it that is live.
    pub replicas: Vec<bool>,
    /// Names of the nodes that there are or that a pod names, in ascending order.
    pub nodes: Vec<String>,
    /// Addresses of pods.
    pub v4: usize,
    pub v6: usize,
}

impl Survey {
    fn of(cluster: &Cluster) -> Self {
        let mut nodes: BTreeSet<&str> = cluster.nodes.keys().map(String::as_str).collect();
        let (mut replicas, mut v4, mut v6) = (Vec::with_capacity(cluster.pods.len()), 0, 0);
        let mut last: Option<&Pod> = None;
        for pod in cluster.pods.values() {
            replicas.push(last.is_some_and(|other| are_replicas(pod, other)));
            if is_live(pod) {
                last = Some(pod);
            }
            nodes.extend(pod.node.as_deref());
            let of_v4 = pod.addresses.iter().filter(|address| address.is_ipv4()).count();
            v4 += of_v4;
            v6 += pod.addresses.len() - of_v4;
        }
        Self {
            replicas,
            nodes: nodes.into_iter().map(str::to_owned).collect(),
            v4,
            v6,
        }
    }
}

/// A survey that may be under way.
#[derive(Debug)]
pub(super) struct Surveyor<'c> {
    cluster: &'c Cluster,
    /// The survey, then the hashes; None where no thread was started.
    thread: Option<(mpsc::Receiver<Survey>, thread::JoinHandle<Vec<PodHashes>>)>,
}

impl<'c> Surveyor<'c> {
    pub(super) fn start(cluster: &'c Cluster) -> Self {
        let start = || {
            let (sender, survey) = mpsc::channel();
            let pods = cluster.clone();
            let work = move || {
                // Where it is not waited for any more, the compile was refused.
                match sender.send(Survey::of(&pods)) {
                    Ok(()) => pods.pods.values().map(|pod| PodHashes::of(pod)).collect(),
                    Err(_) => Vec::new(),
                }
            };
            let thread = thread::Builder::new().name("rw-survey".to_owned()).spawn(work);
            Some((survey, thread.ok()?))
        };
        Self {
            cluster,
            thread: (cluster.pods.len() >= MANY_PODS).then(start).flatten(),
        }
    }

    /// The survey, and whoever hashes the pods.
    pub(super) fn survey(self) -> (Survey, Hashing) {
        let found = self
            .thread
            .and_then(|(survey, thread)| Some((survey.recv().ok()?, Hashing(Some(thread)))));
        found.unwrap_or_else(|| (Survey::of(self.cluster), Hashing(None)))
    }
}

/// Hashes of pods that are being found.
#[derive(Debug)]
pub(super) struct Hashing(Option<thread::JoinHandle<Vec<PodHashes>>>);

impl Hashing {
    /// Of all pods, or none: then each is found when it is needed.
    pub(super) fn finish(self) -> Vec<PodHashes> {
        self.0.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Whether a pod is one of its own in the policy.
pub(super) fn is_live(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}

/// Whether no selector and no rule can tell two pods apart.
fn are_replicas(one: &Pod, other: &Pod) -> bool {
    one.key.namespace == other.key.namespace
        && one.labels == other.labels
        && one.named_ports == other.named_ports
}

/// Hashes of a pod that depend on no policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodHashes {
    /// What the canonical hash has of it as an endpoint.
    pub endpoint: Content,
    pub incarnation: u64,
}

impl PodHashes {
    pub(super) fn of(pod: &Pod) -> Self {
        let mut digest = Digest::new("endpoint");
        digest.text(&pod.key.namespace);
        digest.text(&pod.key.name);
        digest.number(u64::from(pod.template_of.is_some()));
        digest.text(pod.node.as_deref().unwrap_or_default());
        Self {
            endpoint: digest.finish(),
            incarnation: incarnation_of(pod),
        }
    }
}

/// Without the key, so that flows do not end where an installation loses it.
pub(super) fn incarnation_of(pod: &Pod) -> u64 {
    let mut digest = Digest::new("incarnation");
    digest.text(&pod.uid);
    digest.text(&pod.key.namespace);
    digest.text(&pod.key.name);
    digest.number(pod.created.map_or(u64::MAX, i64::cast_unsigned));
    digest.short()
}
