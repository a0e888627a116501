//! Pods of this node that are about to start (`podStart: hold`): their addresses are the CNI's before the API server has them.
//!
//! The kubelet reports a pod's addresses once it runs, and the pod runs once policies have its addresses. So what the CNI plugin
//! says about a pod takes the place of what its status says, until the API server says something new about it: from then on
//! that counts, whatever it is.
//!
//! The dataplane keeps who has started where. It hears of each pod before control does, and says it with each connection, so a
//! process that is started anew knows them before it compiles anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ringwall_messages::cni::{PodEnds, PodStart};
use ringwall_policy::{Cluster, ObjectKey, Pod};
use ringwall_source::feed::SourceState;
use tokio::sync::Notify;

/// As many are remembered: a multiple of what a node holds. Only root says so, but a runtime may forget to end them.
const MAX_STARTS: usize = 4096;

/// Pods that are about to start, and those that have.
#[derive(Debug, Default)]
pub(super) struct PodStarts {
    by_container: Mutex<BTreeMap<String, Start>>,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Start {
    pod: ObjectKey,
    uid: Option<String>,
    addresses: BTreeSet<IpAddr>,
    /// What its status said when the pod was first seen: nothing, or the addresses of a sandbox before this one. None before that.
    before: Option<BTreeSet<IpAddr>>,
    /// What its status says since it has changed.
    reported: Option<BTreeSet<IpAddr>>,
}

impl Start {
    fn is_of(&self, pod: &Pod) -> bool {
        let same = |uid: &String| pod.uid.is_empty() || *uid == pod.uid;
        self.uid.as_ref().is_none_or(same) && !pod.host_network && !pod.finished
    }

    /// Takes what the state says of it; whether the addresses of the CNI take its place.
    fn see(&mut self, pod: &Pod) -> bool {
        let said: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
        let before = self.before.get_or_insert_with(|| said.clone());
        if !said.is_empty() && (said == self.addresses || said != *before) {
            if said != self.addresses && self.reported.as_ref() != Some(&said) {
                tracing::warn!(
                    pod = %self.pod, ?said, cni = ?self.addresses,
                    "the API server says other addresses of a pod of this node than its CNI"
                );
            }
            self.reported = Some(said);
        }
        self.reported.is_none()
    }
}

impl PodStarts {
    fn starts(&self) -> MutexGuard<'_, BTreeMap<String, Start>> {
        // Each entry is replaced as a whole.
        self.by_container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a pod is about to start. The error says why that cannot be.
    pub(super) fn begin(&self, start: PodStart) -> Result<(), String> {
        let key = key(&start.pod).ok_or_else(|| format!("`{}` is not namespace/name", start.pod))?;
        let mut starts = self.starts();
        if let Some(known) = starts.get(&start.container)
            && (&known.pod, &known.uid, &known.addresses) == (&key, &start.uid, &start.addresses)
        {
            return Ok(());
        }
        if starts.len() >= MAX_STARTS && !starts.contains_key(&start.container) {
            return Err(format!(
                "{MAX_STARTS} containers are known, and none of them has ended"
            ));
        }
        // One sandbox at a time: a runtime that tries again does so under another id. And an address is one pod's: whose end was
        // not said has ended.
        starts.retain(|_, other| other.pod != key && other.addresses.is_disjoint(&start.addresses));
        let PodStart {
            container,
            uid,
            addresses,
            ..
        } = start;
        let start = Start {
            pod: key,
            uid,
            addresses,
            before: None,
            reported: None,
        };
        starts.insert(container, start);
        drop(starts);
        self.changed.notify_one();
        Ok(())
    }

    /// Forgets containers that have ended.
    pub(super) fn end(&self, ends: &PodEnds) {
        let mut starts = self.starts();
        let before = starts.len();
        match ends {
            PodEnds::Ended(container) => drop(starts.remove(container)),
            PodEnds::AllBut(containers) => starts.retain(|container, _| containers.contains(container)),
        }
        if starts.len() != before {
            self.changed.notify_one();
        }
    }

    /// Takes the word of the dataplane, or of the process that is to be followed: these containers there are, and no others.
    pub(super) fn restore(&self, known: Vec<PodStart>) {
        let containers = known.iter().map(|start| start.container.clone()).collect();
        self.end(&PodEnds::AllBut(containers));
        for start in known {
            if let Err(reason) = self.begin(start) {
                tracing::warn!(
                    reason,
                    "a pod that has started is an unknown endpoint until the API server has its addresses"
                );
            }
        }
    }

    /// The containers that there are, in order of their ids.
    pub(super) fn known(&self) -> Vec<PodStart> {
        let starts = self.starts();
        let known = starts.iter().map(|(container, start)| PodStart {
            container: container.clone(),
            pod: format!("{}/{}", start.pod.namespace, start.pod.name),
            uid: start.uid.clone(),
            addresses: start.addresses.clone(),
        });
        known.collect()
    }

    /// Until something was noted or forgotten.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A state of the source, with the addresses that the CNI gave.
    pub(super) fn complete(&self, state: Arc<SourceState>) -> Arc<SourceState> {
        let mut starts = self.starts();
        let mut cluster: Option<Cluster> = None;
        starts.retain(|_, start| match state.cluster.pods.get(&start.pod) {
            Some(pod) if start.is_of(pod) => {
                if start.see(pod) {
                    let pod = Pod {
                        addresses: start.addresses.iter().copied().collect(),
                        ..Pod::clone(pod)
                    };
                    let cluster = cluster.get_or_insert_with(|| state.cluster.clone());
                    cluster.pods.insert(start.pod.clone(), Arc::new(pod));
                }
                true
            }
            // Not there yet, or there no more; then the plugin says so again while it waits.
            _ => start.before.is_none(),
        });
        match cluster {
            None => state,
            Some(cluster) => Arc::new(SourceState {
                cluster,
                ..SourceState::clone(&state)
            }),
        }
    }

    /// Why the pod of a container is not in the state that decides now, as far as that can be said.
    pub(super) fn reason(&self, container: &str) -> String {
        match self.starts().get(container) {
            None => "the pod is gone from the source".to_owned(),
            Some(Start { before: None, .. }) => "the source has no such pod, or not with this UID".to_owned(),
            Some(Start {
                reported: Some(said),
                addresses,
                pod,
                ..
            }) if said != addresses => format!(
                "the API server says that {pod} has the addresses {}, and the CNI gave it {}",
                listed(said),
                listed(addresses)
            ),
            Some(_) => "its snapshot has not been adopted by every worker, or another pod has one of its addresses; see `ringwall status`".to_owned(),
        }
    }
}

/// From `namespace/name`.
pub(super) fn key(text: &str) -> Option<ObjectKey> {
    let (namespace, name) = text.split_once('/')?;
    let is_name = |part: &str| !part.is_empty() && !part.contains('/');
    (is_name(namespace) && is_name(name)).then(|| ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use std::time::Instant;

    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn start(container: &str, pod: &str, uid: Option<&str>, addresses: &[&str]) -> PodStart {
        PodStart {
            container: container.to_owned(),
            pod: pod.to_owned(),
            uid: uid.map(str::to_owned),
            addresses: ips(addresses),
        }
    }

    /// A source with at most one pod, `a/web`.
    fn of_source(pod: Option<(&str, &[&str])>) -> Arc<SourceState> {
        let mut cluster = Cluster::default();
        if let Some((uid, addresses)) = pod {
            let key = key("a/web").unwrap();
            let pod = Pod {
                uid: uid.to_owned(),
                addresses: ips(addresses).into_iter().collect(),
                ..Pod::new(key.clone())
            };
            cluster.pods.insert(key, Arc::new(pod));
        }
        Arc::new(SourceState {
            cluster,
            problems: ringwall_source::problems::Problems::default(),
            staged: Arc::default(),
            cluster_uid: None,
            versions: ringwall_messages::ResourceVersions::default(),
            began: Instant::now(),
        })
    }

    /// The addresses of `a/web` after one state of the source after the other; None where it is not there.
    fn seen(starts: &PodStarts, states: &[Option<(&str, &[&str])>]) -> Vec<Option<BTreeSet<IpAddr>>> {
        let states = states.iter().map(|state| starts.complete(of_source(*state)));
        let pods = states.map(|state| state.cluster.pods.get(&key("a/web").unwrap()).cloned());
        pods.map(|pod| Some(pod?.addresses.iter().copied().collect()))
            .collect()
    }

    #[test]
    fn the_cni_counts_until_the_api_server_says_something_new() {
        let starts = PodStarts::default();
        starts
            .begin(start("c1", "a/web", Some("u1"), &["10.1.0.5"]))
            .unwrap();
        let five = || Some(ips(&["10.1.0.5"]));
        assert_eq!(
            seen(
                &starts,
                &[
                    None,
                    Some(("u1", &[])),
                    Some(("u1", &[])),
                    Some(("u1", &["10.1.0.5"]))
                ]
            ),
            [None, five(), five(), five()]
        );
        // Whatever it says from then on counts.
        assert_eq!(
            seen(&starts, &[Some(("u1", &["10.1.0.9"])), Some(("u1", &[]))]),
            [Some(ips(&["10.1.0.9"])), Some(ips(&[]))]
        );
        let reason = starts.reason("c1");
        assert!(
            reason.contains("10.1.0.9") && reason.contains("10.1.0.5"),
            "{reason}"
        );
    }

    #[test]
    fn a_new_sandbox_of_a_pod_has_its_own_addresses_before_the_api_server_has_them() {
        let starts = PodStarts::default();
        let old: (&str, &[&str]) = ("u1", &["10.1.0.4"]);
        starts
            .begin(start("c2", "a/web", Some("u1"), &["10.1.0.5"]))
            .unwrap();
        let five = || Some(ips(&["10.1.0.5"]));
        assert_eq!(
            seen(&starts, &[Some(old), Some(old), Some(("u1", &["10.1.0.5"]))]),
            [five(), five(), five()]
        );
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_pod() {
        let starts = PodStarts::default();
        starts
            .begin(start("c2", "a/web", Some("u2"), &["10.1.0.5"]))
            .unwrap();
        assert_eq!(
            seen(&starts, &[Some(("u1", &["10.1.0.4"])), Some(("u2", &[]))]),
            [Some(ips(&["10.1.0.4"])), Some(ips(&["10.1.0.5"]))]
        );
    }

    #[test]
    fn what_ended_is_forgotten_and_only_that() {
        let pod: (&str, &[&str]) = ("u1", &[]);
        let starts = PodStarts::default();
        let again = || {
            starts
                .begin(start("c1", "a/web", Some("u1"), &["10.1.0.5"]))
                .unwrap()
        };
        for ends in [
            PodEnds::Ended("c1".to_owned()),
            PodEnds::AllBut(BTreeSet::from(["c7".to_owned()])),
        ] {
            again();
            starts.end(&PodEnds::Ended("c0".to_owned()));
            starts.end(&PodEnds::AllBut(BTreeSet::from(["c1".to_owned()])));
            assert_eq!(seen(&starts, &[Some(pod)]), [Some(ips(&["10.1.0.5"]))]);
            starts.end(&ends);
            assert_eq!(seen(&starts, &[Some(pod)]), [Some(ips(&[]))]);
        }
        // With its pod, too.
        again();
        assert_eq!(
            seen(&starts, &[Some(pod), None, Some(pod)]),
            [Some(ips(&["10.1.0.5"])), None, Some(ips(&[]))]
        );
    }

    #[test]
    fn the_dataplanes_word_takes_the_place_of_what_was_known() {
        let pod: (&str, &[&str]) = ("u1", &[]);
        let web = |container: &str| start(container, "a/web", Some("u1"), &["10.1.0.5"]);
        let other = start("c7", "a/other", None, &["10.1.0.7"]);
        let starts = PodStarts::default();
        // Known already, and the API server has said something else since: that stays.
        starts.begin(web("c1")).unwrap();
        assert_eq!(
            seen(&starts, &[Some(pod), Some(("u1", &["10.1.0.9"]))]),
            [Some(ips(&["10.1.0.5"])), Some(ips(&["10.1.0.9"]))]
        );
        starts.restore(vec![web("c1"), other.clone()]);
        assert_eq!(starts.known(), [web("c1"), other.clone()]);
        assert_eq!(
            seen(&starts, &[Some(("u1", &["10.1.0.9"]))]),
            [Some(ips(&["10.1.0.9"]))]
        );
        // Ended while nobody could say so.
        starts.restore(vec![other.clone()]);
        assert_eq!(starts.known(), [other]);
        assert_eq!(seen(&starts, &[Some(pod)]), [Some(ips(&[]))]);
        // One that is no pod keeps nobody away.
        starts.restore(vec![start("c8", "web", None, &["10.1.0.8"]), web("c2")]);
        assert_eq!(starts.known(), [web("c2")]);
        assert_eq!(seen(&starts, &[Some(pod)]), [Some(ips(&["10.1.0.5"]))]);
    }

    #[test]
    fn an_address_that_another_pod_gets_is_the_other_ones() {
        let starts = PodStarts::default();
        starts
            .begin(start("c1", "a/web", None, &["10.1.0.5", "fd00::5"]))
            .unwrap();
        let next = start("c2", "a/other", None, &["10.1.0.5", "fd00::6"]);
        starts.begin(next.clone()).unwrap();
        assert_eq!(starts.known(), [next]);
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for pod in ["web", "/web", "a/", "a/b/c", ""] {
            let starts = PodStarts::default();
            assert!(
                starts.begin(start("c1", pod, None, &["10.1.0.5"])).is_err(),
                "{pod}"
            );
        }
    }
}
