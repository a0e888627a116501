//! Cohorts: pods of one namespace that no selector in the cluster can tell apart. What selects and holds them is found
//! once per cohort.

use hashbrown::HashMap;
use ringwall_policy::{Namespace, Pod};

use super::{
    content::{Content, Digest},
    policies::Policies,
    selectors::{Label, Matcher, Vocabulary},
};

/// A namespace that pods live in, as selectors see it.
#[derive(Debug)]
pub(super) struct Space {
    pub name: String,
    pub labels: Vec<Label>,
    cohorts: HashMap<(Vec<Label>, u32, u32), u32>,
    /// In order of their numbers.
    pub numbers: Vec<u32>,
}

/// Pods that look alike.
#[derive(Debug)]
pub(super) struct Cohort {
    /// Index of its namespace.
    pub space: u32,
    pub labels: Vec<Label>,
    /// Named ports that rules of policies that select its pods ask for.
    pub own_ports: u32,
    /// Named ports that rules ask for of peers.
    pub peer_ports: u32,
    /// What selectors see of its pods: for epochs.
    pub seen: Content,
    /// Index of the list of sets that hold it.
    pub list: u32,
    /// The policies that select it, in the order in which they decide.
    pub policies: Vec<u32>,
    /// What decides about it.
    /// None where that has to be found again.
    pub rows: Option<CohortRows>,
    /// Its pods, in any order.
    pub members: Vec<u32>,
}

/// The rows of a cohort.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CohortRows {
    /// Numbers of rows; 0 is open.
    pub ingress: u32,
    pub egress: u32,
    /// Its part among the [`super::canonical::MultisetSums`] of rows.
    pub part: u32,
    /// What selectors see of its pods and what the policies say: the part of the epoch that they share.
    pub epoch: Content,
}

/// Namespaces and cohorts.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    spaces: Vec<Space>,
    by_name: HashMap<String, u32>,
    pub cohorts: Vec<Cohort>,
    /// Cohorts with pods.
    pub live: u32,
    scratch: Vec<Label>,
}

impl Cohorts {
    pub(super) fn get(&self, cohort: u32) -> Option<&Cohort> {
        self.cohorts.get(cohort as usize)
    }

    pub(super) fn space(&self, space: u32) -> Option<&Space> {
        self.spaces.get(space as usize)
    }

    /// The namespace of a name, as it is now; None where none was taken up.
    pub(super) fn space_named(&self, name: &str) -> Option<&Space> {
        self.space(*self.by_name.get(name)?)
    }

    /// Namespaces as they are now.
    pub(super) fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.spaces.iter().zip(0..).filter_map(|(space, number)| {
            let current = self.by_name.get(&space.name) == Some(&number);
            current.then_some(space)
        })
    }

    /// Forgets a namespace whose pods are gone, so that it is taken up anew. Answers its cohorts.
    pub(super) fn forget_space(&mut self, name: &str) -> Vec<u32> {
        let space = self.by_name.remove(name);
        let space = space.and_then(|space| self.spaces.get(space as usize));
        space.map(|space| space.numbers.clone()).unwrap_or_default()
    }

    /// The cohort of a pod in its namespace; the second says that it is new, and has neither list nor policies yet.
    pub(super) fn of(
        &mut self,
        pod: &Pod,
        namespace: &Namespace,
        vocabulary: &mut Vocabulary,
    ) -> (u32, bool) {
        let space = match self.by_name.get(&namespace.name) {
            Some(space) => *space,
            None => {
                let number = self.spaces.len() as u32;
                self.spaces.push(Space {
                    name: namespace.name.clone(),
                    labels: vocabulary.namespace_labels(&namespace.labels),
                    cohorts: HashMap::new(),
                    numbers: Vec::new(),
                });
                self.by_name.insert(namespace.name.clone(), number);
                number
            }
        };
        let mut labels = std::mem::take(&mut self.scratch);
        labels.clear();
        vocabulary.pod_labels_into(pod, &mut labels);
        let own_ports = vocabulary.ports_of(pod, false);
        let peer_ports = vocabulary.ports_of(pod, true);
        let key = (labels, own_ports, peer_ports);
        let next = self.cohorts.len() as u32;
        let Some(known) = self.spaces.get_mut(space as usize) else {
            return (next, false); // every number in `by_name` has its namespace
        };
        if let Some(cohort) = known.cohorts.get(&key) {
            let cohort = *cohort;
            self.scratch = key.0;
            return (cohort, false);
        }
        self.cohorts.push(Cohort {
            space,
            labels: key.0.clone(),
            own_ports,
            peer_ports,
            seen: seen_of(pod, namespace, peer_ports, vocabulary),
            list: 0,
            policies: Vec::new(),
            rows: None,
            members: Vec::new(),
        });
        known.numbers.push(next);
        known.cohorts.insert(key, next);
        (next, true)
    }

    /// Takes up the labels of a namespace as selectors see them now. Forgets its cohorts without pods; answers the others, and the
    /// lists of those.
    pub(super) fn relabel(&mut self, name: &str, labels: Vec<Label>) -> (Vec<u32>, Vec<u32>) {
        let space = self.by_name.get(name).copied();
        let Some(space) = space.and_then(|space| self.spaces.get_mut(space as usize)) else {
            return (Vec::new(), Vec::new());
        };
        space.labels = labels;
        let cohorts = &self.cohorts;
        let has_pods = |number: &u32| {
            let cohort = cohorts.get(*number as usize);
            cohort.is_some_and(|cohort| !cohort.members.is_empty())
        };
        space.cohorts.retain(|_, number| has_pods(number));
        let (kept, empty): (Vec<u32>, Vec<u32>) = space.numbers.iter().partition(|number| has_pods(number));
        space.numbers.clone_from(&kept);
        let lists = empty.iter().filter_map(|number| cohorts.get(*number as usize));
        let lists = lists.map(|cohort| cohort.list).collect();
        (kept, lists)
    }

    /// The cohorts whose pods a matcher holds, in ascending order, those without pods among them.
    pub(super) fn held_by(&self, matcher: &Matcher) -> Vec<u32> {
        let of_space = |space: &Space| {
            let numbers = space.numbers.iter().copied();
            let held = numbers.filter(|number| {
                let cohort = self.get(*number);
                cohort.is_some_and(|cohort| matcher.holds(&space.name, &space.labels, &cohort.labels))
            });
            held.collect::<Vec<u32>>()
        };
        match matcher.space() {
            Some(name) => self.space_named(name).map(of_space).unwrap_or_default(),
            None => {
                let mut held: Vec<u32> = self.spaces().flat_map(of_space).collect();
                held.sort_unstable();
                held
            }
        }
    }

    /// The policies that select a cohort, and the sets that hold it.
    pub(super) fn policies_and_sets(&self, cohort: u32, policies: &Policies) -> (Vec<u32>, Vec<u32>) {
        let Some(cohort) = self.get(cohort) else {
            return (Vec::new(), Vec::new());
        };
        let Some(space) = self.space(cohort.space) else {
            return (Vec::new(), Vec::new());
        };
        (
            policies.selecting(&space.name, &space.labels, &cohort.labels),
            policies.holding(&space.name, &space.labels, &cohort.labels),
        )
    }
}

/// What selectors see of a pod.
pub(super) fn seen_of(pod: &Pod, namespace: &Namespace, peer_ports: u32, vocabulary: &Vocabulary) -> Content {
    let mut seen = Digest::new("cohort");
    seen.text(&namespace.name);
    seen.labels(vocabulary.seen_of_namespace(&namespace.labels));
    seen.labels(vocabulary.seen_of_pod(&pod.labels));
    seen.content(&vocabulary.ports_content(peer_ports));
    seen.finish()
}
