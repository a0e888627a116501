//! Cohorts: pods of one namespace that no selector in the cluster can tell apart.
//!
//! Only labels whose key some selector names are looked at, so a label that differs from pod to pod (a template hash,
//! a pod name) splits nothing until a policy asks for it. Selectors are evaluated once per cohort; those that reach
//! over namespaces start from an index by label, so that a selector costs what it finds, not what there is.

use std::ops::Range;

use hashbrown::{HashMap, HashSet};

use super::ports::{NamedPort, NamedPorts};
use crate::{
    cluster::{Cluster, Labels, Operator, Pod, PortMatch, Protocol, Selector},
    model::{Model, NamespaceSet, Peer, PodSet, Rule},
};

/// A label whose key some selector names: numbers of key and value.
type Label = (u32, u32);

/// Every selector, name and port name that the policies of a cluster ask for.
#[derive(Default)]
struct Asked<'a> {
    pod_keys: HashMap<&'a str, u32>,
    namespace_keys: HashMap<&'a str, u32>,
    ingress_names: HashSet<(Protocol, &'a str)>,
    egress_names: HashSet<(Protocol, &'a str)>,
}

impl<'a> Asked<'a> {
    fn by(model: &Model<'a>) -> Self {
        let mut asked = Self::default();
        for policy in model.tiers.iter().flat_map(|tier| &tier.policies) {
            asked.set(&policy.subjects);
            for rule in policy.ingress.iter().flatten() {
                asked.rule(rule, true);
            }
            for rule in policy.egress.iter().flatten() {
                asked.rule(rule, false);
            }
        }
        asked
    }

    fn rule(&mut self, rule: &Rule<'a>, ingress: bool) {
        for peer in rule.peers.iter().flatten() {
            if let Peer::Pods(set) = peer {
                self.set(set);
            }
        }
        for port in rule.ports.unwrap_or_default() {
            if let PortMatch::Named { protocol, name } = port {
                let names = if ingress {
                    &mut self.ingress_names
                } else {
                    &mut self.egress_names
                };
                names.insert((*protocol, name));
            }
        }
    }

    fn set(&mut self, set: &PodSet<'a>) {
        keys(&mut self.pod_keys, set.pods);
        if let NamespaceSet::Matching(selector) = set.namespaces {
            keys(&mut self.namespace_keys, selector);
        }
    }
}

fn keys<'a>(known: &mut HashMap<&'a str, u32>, selector: &'a Selector) {
    for requirement in &selector.requirements {
        let next = known.len() as u32;
        known.entry(&requirement.key).or_insert(next);
    }
}

/// A namespace that pods live in.
pub(super) struct Space<'a> {
    pub name: &'a str,
    labels: Vec<Label>,
    /// Its cohorts.
    pub cohorts: Range<u32>,
}

/// Pods that look alike.
pub(super) struct Cohort<'a> {
    /// Index of its namespace.
    pub space: u32,
    labels: Vec<Label>,
    /// Named ports that ingress rules ask for.
    pub ingress_ports: u32,
    /// Named ports that egress rules ask for.
    pub egress_ports: u32,
    /// One of its pods.
    pub example: &'a Pod,
}

/// All cohorts of a cluster, and who is in which.
pub(super) struct Cohorts<'a> {
    /// By name.
    pub spaces: Vec<Space<'a>>,
    /// Grouped by namespace.
    pub cohorts: Vec<Cohort<'a>>,
    /// Pods that have a place in the policy: neither finished nor on the host network; in order of their keys. The
    /// second is the cohort; None where the namespace has not been seen.
    pub members: Vec<(&'a Pod, Option<u32>)>,
    /// Distinct lists of named ports; 0 is empty.
    pub port_lists: Vec<Vec<NamedPort<'a>>>,
    values: HashMap<&'a str, u32>,
    asked: Asked<'a>,
    by_label: HashMap<Label, Vec<u32>>,
}

impl<'a> Cohorts<'a> {
    pub(super) fn of(cluster: &'a Cluster, model: &Model<'a>) -> Self {
        let mut this = Self {
            spaces: Vec::new(),
            cohorts: Vec::new(),
            members: Vec::with_capacity(cluster.pods.len()),
            port_lists: vec![Vec::new()],
            values: HashMap::new(),
            asked: Asked::by(model),
            by_label: HashMap::new(),
        };
        let mut port_lists = HashMap::from([(Vec::new(), 0)]);
        // Within one namespace: pods are in order of their keys, so each namespace is seen once.
        let mut known: HashMap<(Vec<Label>, u32, u32), u32> = HashMap::new();
        let mut labels = Vec::new();
        for pod in cluster.pods.values() {
            if pod.finished || pod.host_network {
                continue;
            }
            // Pods come by namespace: most are in the one before's.
            if this
                .spaces
                .last()
                .is_none_or(|space| space.name != pod.key.namespace)
            {
                let Some(namespace) = cluster.namespaces.get(&pod.key.namespace) else {
                    this.members.push((pod, None));
                    continue;
                };
                known.clear();
                let first = this.cohorts.len() as u32;
                let labels = project(&namespace.labels, &this.asked.namespace_keys, &mut this.values);
                this.spaces.push(Space {
                    name: &namespace.name,
                    labels,
                    cohorts: first..first,
                });
            }
            labels.clear();
            project_into(&pod.labels, &this.asked.pod_keys, &mut this.values, &mut labels);
            let ingress_ports = ports(
                pod,
                &this.asked.ingress_names,
                &mut this.port_lists,
                &mut port_lists,
            );
            let egress_ports = ports(
                pod,
                &this.asked.egress_names,
                &mut this.port_lists,
                &mut port_lists,
            );
            let key = (std::mem::take(&mut labels), ingress_ports, egress_ports);
            let cohort = match known.get(&key) {
                Some(cohort) => {
                    labels = key.0;
                    *cohort
                }
                None => {
                    let cohort = this.cohorts.len() as u32;
                    for label in &key.0 {
                        this.by_label.entry(*label).or_default().push(cohort);
                    }
                    this.cohorts.push(Cohort {
                        space: this.spaces.len() as u32 - 1,
                        labels: key.0.clone(),
                        ingress_ports,
                        egress_ports,
                        example: pod,
                    });
                    if let Some(space) = this.spaces.last_mut() {
                        space.cohorts.end = cohort + 1;
                    }
                    known.insert(key, cohort);
                    cohort
                }
            };
            this.members.push((pod, Some(cohort)));
        }
        this
    }

    /// Named ports of a list.
    pub(super) fn ports(&self, list: u32) -> &NamedPorts<'a> {
        self.port_lists
            .get(list as usize)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The labels that selectors can see of a namespace, in order of their keys.
    pub(super) fn seen_of_namespace<'b>(
        &'b self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'b {
        seen(labels, &self.asked.namespace_keys)
    }

    /// The labels that selectors can see of a pod, in order of their keys.
    pub(super) fn seen_of_pod<'b>(
        &'b self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'b {
        seen(labels, &self.asked.pod_keys)
    }

    /// The cohorts that a set of pods holds, in ascending order.
    pub(super) fn select(&self, set: &PodSet<'_>) -> Vec<u32> {
        let pods = self.requirements(set.pods, &self.asked.pod_keys);
        let matches = |cohort: &u32| {
            let cohort = self.cohorts.get(*cohort as usize);
            cohort.is_some_and(|cohort| pods.iter().all(|requirement| requirement.holds(&cohort.labels)))
        };
        let selector = match set.namespaces {
            NamespaceSet::Named(name) => {
                let space = self.spaces.binary_search_by(|space| space.name.cmp(name)).ok();
                let space = space.and_then(|space| self.spaces.get(space));
                let own = space.map(|space| space.cohorts.clone()).unwrap_or_default();
                return own.filter(matches).collect();
            }
            NamespaceSet::Matching(selector) => selector,
        };
        let namespaces = self.requirements(selector, &self.asked.namespace_keys);
        let chosen: Vec<bool> = self
            .spaces
            .iter()
            .map(|space| {
                namespaces
                    .iter()
                    .all(|requirement| requirement.holds(&space.labels))
            })
            .collect();
        // The requirement that fewest cohorts can meet says where to look.
        let fewest = pods
            .iter()
            .filter_map(|requirement| self.candidates(requirement))
            .min_by_key(Vec::len);
        if let Some(candidates) = fewest {
            let in_namespace = |cohort: &u32| {
                let cohort = self.cohorts.get(*cohort as usize);
                cohort.is_some_and(|cohort| chosen.get(cohort.space as usize) == Some(&true))
            };
            return candidates
                .into_iter()
                .filter(|it| in_namespace(it) && matches(it))
                .collect();
        }
        let spaces = self.spaces.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
        spaces
            .flat_map(|(space, _)| space.cohorts.clone())
            .filter(matches)
            .collect()
    }

    fn requirements(&self, selector: &Selector, keys: &HashMap<&str, u32>) -> Vec<Requirement> {
        let value = |value: &String| self.values.get(value.as_str()).copied();
        selector
            .requirements
            .iter()
            .map(|requirement| Requirement {
                // Keys of all selectors are known. One that is not would be on nothing.
                key: keys.get(requirement.key.as_str()).copied().unwrap_or(u32::MAX),
                test: match &requirement.operator {
                    Operator::In(values) => Test::In(values.iter().filter_map(value).collect()),
                    Operator::NotIn(values) => Test::NotIn(values.iter().filter_map(value).collect()),
                    Operator::Exists => Test::Exists,
                    Operator::DoesNotExist => Test::DoesNotExist,
                },
            })
            .collect()
    }

    /// The only cohorts that can meet a requirement, in ascending order; None where the index does not tell.
    fn candidates(&self, requirement: &Requirement) -> Option<Vec<u32>> {
        let Test::In(values) = &requirement.test else {
            return None;
        };
        let mut found: Vec<u32> = values
            .iter()
            .filter_map(|value| self.by_label.get(&(requirement.key, *value)))
            .flatten()
            .copied()
            .collect();
        found.sort_unstable();
        Some(found)
    }
}

struct Requirement {
    key: u32,
    test: Test,
}

/// How a label is tested, by numbers of values; values that no pod and no namespace has are left out.
enum Test {
    In(Vec<u32>),
    NotIn(Vec<u32>),
    Exists,
    DoesNotExist,
}

impl Requirement {
    fn holds(&self, labels: &[Label]) -> bool {
        let value = labels
            .iter()
            .find(|(key, _)| *key == self.key)
            .map(|(_, value)| value);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

fn seen<'a, 'b>(
    labels: &'a Labels,
    keys: &'b HashMap<&'a str, u32>,
) -> impl Iterator<Item = (&'a str, &'a str)> + 'b
where
    'a: 'b,
{
    let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    labels.filter(|(key, _)| keys.contains_key(key))
}

fn project<'a>(
    labels: &'a Labels,
    keys: &HashMap<&'a str, u32>,
    values: &mut HashMap<&'a str, u32>,
) -> Vec<Label> {
    let mut projected = Vec::new();
    project_into(labels, keys, values, &mut projected);
    projected
}

fn project_into<'a>(
    labels: &'a Labels,
    keys: &HashMap<&'a str, u32>,
    values: &mut HashMap<&'a str, u32>,
    to: &mut Vec<Label>,
) {
    for (key, value) in labels {
        if let Some(key) = keys.get(key.as_str()) {
            let next = values.len() as u32;
            to.push((*key, *values.entry(value).or_insert(next)));
        }
    }
}

/// The pod's numbers for port names that rules ask for, as an index of distinct lists.
fn ports<'a>(
    pod: &'a Pod,
    asked: &HashSet<(Protocol, &'a str)>,
    lists: &mut Vec<Vec<NamedPort<'a>>>,
    known: &mut HashMap<Vec<NamedPort<'a>>, u32>,
) -> u32 {
    if asked.is_empty() || pod.named_ports.is_empty() {
        return 0;
    }
    let mut list: Vec<NamedPort<'_>> = Vec::new();
    for port in &pod.named_ports {
        let name = (port.protocol, port.name.as_str());
        // Of the same name and protocol the first counts.
        if asked.contains(&name) && list.iter().all(|(listed, _)| *listed != name) {
            list.push((name, port.number));
        }
    }
    list.sort_unstable();
    *known.entry(list).or_insert_with_key(|list| {
        lists.push(list.clone());
        lists.len() as u32 - 1
    })
}
