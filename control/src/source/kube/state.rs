//! What the watches have said so far, put together. Pure: no I/O, no clock.
//!
//! The watches are not ordered among each other, so nothing here depends on the order in which their events arrive:
//! the same last word of every watch gives the same state.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use serde_json::Value;

use crate::{
    cluster::{Cluster, Object, ObjectKey, ObjectRef, Settings},
    protocol::{ObjectCounts, ObjectProblem},
};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Namespace.
    Namespace,
    /// Node.
    Node,
    /// Pod.
    Pod,
    /// NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub(super) const ALL: [Self; 4] = [Self::Namespace, Self::Node, Self::Pod, Self::NetworkPolicy];

    /// As objects name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// As objects name its API version.
    pub(super) const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    /// As RBAC rules and messages name it: `resource` or `resource.group`.
    pub(super) const fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::NetworkPolicy => "networkpolicies.networking.k8s.io",
        }
    }

    /// Path of the collection of all namespaces.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Node => "/api/v1/nodes",
            Self::Pod => "/api/v1/pods",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        }
    }

    const fn number(self) -> usize {
        match self {
            Self::Namespace => 0,
            Self::Node => 1,
            Self::Pod => 2,
            Self::NetworkPolicy => 3,
        }
    }

    fn of(reference: &ObjectRef) -> Self {
        match reference {
            ObjectRef::Namespace(_) => Self::Namespace,
            ObjectRef::Node(_) => Self::Node,
            ObjectRef::Pod(_) => Self::Pod,
            ObjectRef::NetworkPolicy(_) => Self::NetworkPolicy,
        }
    }
}

/// An object as a watch delivered it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its name.
    pub(super) reference: ObjectRef,
    /// `metadata.uid`.
    pub(super) uid: String,
    /// What it says; None where it could not be decoded.
    pub(super) object: Option<Object>,
    /// What is wrong or odd about it.
    pub(super) problems: Vec<ObjectProblem>,
    /// For a NetworkPolicy: what has to be kept to know it again after a restart.
    pub(super) source: Option<Value>,
}

/// What the API server says of a namespace when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NamespaceNow {
    /// It exists and is not being deleted.
    Live {
        /// `metadata.uid`.
        uid: String,
    },
    /// It is being deleted, or gone.
    Ending,
}

/// Why a policy that the API server no longer has is still in force.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hold {
    /// Whether its namespace is being deleted is not known yet.
    Asking {
        /// Whether the question was sent after the policy was gone.
        asked: bool,
    },
    /// Its namespace is being deleted: until that is gone with all its pods (SEMANTICS 54).
    Ending {
        /// `metadata.uid` of that namespace; empty where it was never seen.
        uid: String,
    },
}

/// The state of the cluster.
#[derive(Debug)]
pub(super) struct State {
    cluster: Cluster,
    synced: [bool; 4],
    namespace_uids: BTreeMap<String, String>,
    holds: BTreeMap<ObjectKey, Hold>,
    asking: BTreeSet<String>,
    problems: BTreeMap<ObjectRef, Vec<ObjectProblem>>,
    /// What the policies in `cluster` were decoded from.
    sources: BTreeMap<ObjectKey, Value>,
    /// Grows with every change of `sources`.
    revision: u64,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            cluster: Cluster {
                settings,
                ..Cluster::default()
            },
            synced: [false; 4],
            namespace_uids: BTreeMap::new(),
            holds: BTreeMap::new(),
            asking: BTreeSet::new(),
            problems: BTreeMap::new(),
            sources: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Policies that were in force when this process last ran. Those that the first list does not have are treated as
    /// deleted then: they hold where their namespace is ending.
    pub(super) fn remember(&mut self, policies: Vec<Item>) {
        for policy in policies {
            self.insert(policy);
        }
    }

    /// Grows with every change of [`Self::policy_sources`].
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// What the policies in force were decoded from, for [`Self::remember`].
    pub(super) fn policy_sources(&self) -> Vec<Value> {
        self.sources.values().cloned().collect()
    }

    /// The state; complete where [`Self::synced`].
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether every watch has delivered its list.
    pub(super) fn synced(&self) -> bool {
        self.synced.iter().all(|synced| *synced)
    }

    /// Policies that the API server no longer has and that stay in force (SEMANTICS 54).
    pub(super) fn held(&self) -> impl Iterator<Item = &ObjectKey> {
        self.holds.keys()
    }

    /// How many objects of each kind there are.
    pub(super) fn counts(&self) -> ObjectCounts {
        ObjectCounts::of(&self.cluster)
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self) -> Vec<ObjectProblem> {
        self.problems.values().flatten().cloned().collect()
    }

    /// Takes a complete list: what is not in it is gone. Answers whether the state changed.
    pub(super) fn listed(&mut self, kind: Kind, items: Vec<Item>) -> bool {
        let mut changed = !self.synced[kind.number()];
        self.synced[kind.number()] = true;
        let listed: BTreeSet<ObjectRef> = items.iter().map(|item| item.reference.clone()).collect();
        for gone in self
            .references(kind)
            .into_iter()
            .filter(|reference| !listed.contains(reference))
        {
            changed |= self.remove(&gone);
        }
        for item in items {
            changed |= self.insert(item);
        }
        changed | self.release()
    }

    /// Takes a new or changed object. Answers whether the state changed.
    pub(super) fn applied(&mut self, item: Item) -> bool {
        let changed = self.insert(item);
        changed | self.release()
    }

    /// Takes the end of an object. Answers whether the state changed.
    pub(super) fn deleted(&mut self, reference: &ObjectRef) -> bool {
        let changed = self.remove(reference);
        changed | self.release()
    }

    /// Sets which policy kinds exist that are not evaluated. Answers whether the state changed.
    pub(super) fn set_unevaluated(&mut self, kinds: BTreeSet<String>) -> bool {
        let changed = self.cluster.unevaluated_kinds != kinds;
        self.cluster.unevaluated_kinds = kinds;
        changed
    }

    /// Namespaces that the API server must be asked about now; each must be answered by [`Self::answered`].
    pub(super) fn questions(&mut self) -> Vec<String> {
        let mut new = BTreeSet::new();
        if !self.synced() {
            return Vec::new();
        }
        for (key, hold) in &mut self.holds {
            if *hold == (Hold::Asking { asked: false }) && !self.asking.contains(&key.namespace) {
                *hold = Hold::Asking { asked: true };
                new.insert(key.namespace.clone());
            }
        }
        self.asking.extend(new.iter().cloned());
        new.into_iter().collect()
    }

    /// Takes the answer about a namespace. Answers whether the state changed.
    ///
    /// A policy whose namespace lives was deleted by somebody, and goes. The answer is newer than the deletions that
    /// it was asked for; those that came in the meantime are asked for again.
    pub(super) fn answered(&mut self, namespace: &str, now: &NamespaceNow) -> bool {
        self.asking.remove(namespace);
        let seen = self.namespace_uids.get(namespace).cloned().unwrap_or_default();
        // Another uid: the namespace whose policies we hold ended, and came again.
        let lives = matches!(now, NamespaceNow::Live { uid } if seen.is_empty() || *uid == seen);
        let asked: Vec<ObjectKey> = self
            .holds
            .iter()
            .filter(|(key, hold)| key.namespace == namespace && **hold == Hold::Asking { asked: true })
            .map(|(key, _)| key.clone())
            .collect();
        let mut changed = false;
        for key in asked {
            if lives {
                changed |= self.let_go(&key);
            } else {
                self.holds.insert(key, Hold::Ending { uid: seen.clone() });
            }
        }
        changed | self.release()
    }

    fn references(&self, kind: Kind) -> Vec<ObjectRef> {
        // Objects that never could be decoded are known by their problems alone.
        let faulty = self
            .problems
            .keys()
            .filter(|reference| Kind::of(reference) == kind)
            .cloned();
        match kind {
            Kind::Namespace => self
                .cluster
                .namespaces
                .keys()
                .cloned()
                .map(ObjectRef::Namespace)
                .chain(faulty)
                .collect(),
            Kind::Node => self
                .cluster
                .nodes
                .keys()
                .cloned()
                .map(ObjectRef::Node)
                .chain(faulty)
                .collect(),
            Kind::Pod => self
                .cluster
                .pods
                .keys()
                .cloned()
                .map(ObjectRef::Pod)
                .chain(faulty)
                .collect(),
            Kind::NetworkPolicy => self
                .cluster
                .policies
                .keys()
                .cloned()
                .map(ObjectRef::NetworkPolicy)
                .chain(faulty)
                .collect(),
        }
    }

    fn insert(&mut self, item: Item) -> bool {
        let Item {
            reference,
            uid,
            object,
            problems,
            source,
        } = item;
        match &reference {
            ObjectRef::Namespace(name) => drop(self.namespace_uids.insert(name.clone(), uid)),
            ObjectRef::NetworkPolicy(key) => {
                self.holds.remove(key);
                if let Some(source) = source
                    && self.sources.get(key) != Some(&source)
                {
                    self.sources.insert(key.clone(), source);
                    self.revision += 1;
                }
            }
            ObjectRef::Node(_) | ObjectRef::Pod(_) => {}
        }
        let mut changed = if problems.is_empty() {
            self.problems.remove(&reference).is_some()
        } else {
            self.problems.insert(reference, problems.clone()) != Some(problems)
        };
        // Undecodable: the last good object stays.
        if let Some(object) = object
            && !self.holds_equal(&object)
        {
            self.cluster.insert(object);
            changed = true;
        }
        changed
    }

    /// Whether the object is in the state as it is. Most events change nothing that matters here: heartbeats of
    /// nodes, conditions of pods.
    fn holds_equal(&self, object: &Object) -> bool {
        match object {
            Object::Namespace(it) => self
                .cluster
                .namespaces
                .get(&it.name)
                .is_some_and(|held| **held == *it),
            Object::Node(it) => self.cluster.nodes.get(&it.name).is_some_and(|held| **held == *it),
            Object::Pod(it) => self.cluster.pods.get(&it.key).is_some_and(|held| **held == *it),
            Object::NetworkPolicy(it) => self
                .cluster
                .policies
                .get(&it.key)
                .is_some_and(|held| **held == *it),
            Object::Unevaluated { .. } | Object::Ignored { .. } => true,
        }
    }

    fn remove(&mut self, reference: &ObjectRef) -> bool {
        let faulty = self.problems.remove(reference).is_some();
        if let ObjectRef::NetworkPolicy(key) = reference {
            return self.policy_gone(key) | faulty;
        }
        if let ObjectRef::Namespace(name) = reference {
            // Policies held for it keep its uid themselves.
            self.namespace_uids.remove(name);
        }
        self.cluster.remove(reference) | faulty
    }

    /// A policy that is gone stays until it is known that its namespace lives; its deletion may be the beginning of
    /// the end of the namespace, and the watch of namespaces may be behind.
    fn policy_gone(&mut self, key: &ObjectKey) -> bool {
        if !self.cluster.policies.contains_key(key) || self.holds.contains_key(key) {
            return false;
        }
        let namespace = self.cluster.namespaces.get(&key.namespace);
        let hold = if self.synced() && namespace.is_none_or(|namespace| namespace.terminating) {
            Hold::Ending {
                uid: self
                    .namespace_uids
                    .get(&key.namespace)
                    .cloned()
                    .unwrap_or_default(),
            }
        } else {
            Hold::Asking { asked: false }
        };
        self.holds.insert(key.clone(), hold);
        false
    }

    /// Lets go of policies whose namespace is gone with its pods, or has come again as another one.
    fn release(&mut self) -> bool {
        if !self.synced() {
            // A namespace or pod that is missing may only not have been listed yet.
            return false;
        }
        let done: Vec<ObjectKey> = self
            .holds
            .iter()
            .filter(|(key, hold)| match hold {
                Hold::Asking { .. } => false,
                Hold::Ending { uid } => match self.cluster.namespaces.get(&key.namespace) {
                    None => !self.has_pods(&key.namespace),
                    Some(namespace) => {
                        !namespace.terminating && self.namespace_uids.get(&key.namespace) != Some(uid)
                    }
                },
            })
            .map(|(key, _)| key.clone())
            .collect();
        let mut changed = false;
        for key in done {
            changed |= self.let_go(&key);
        }
        changed
    }

    fn let_go(&mut self, key: &ObjectKey) -> bool {
        self.holds.remove(key);
        self.sources.remove(key);
        self.revision += 1;
        self.cluster.policies.remove(key).is_some()
    }

    fn has_pods(&self, namespace: &str) -> bool {
        let first = ObjectKey {
            namespace: namespace.to_owned(),
            name: String::new(),
        };
        self.cluster
            .pods
            .range((Bound::Included(first), Bound::Unbounded))
            .next()
            .is_some_and(|(key, _)| key.namespace == namespace)
    }
}

impl ObjectCounts {
    /// Counts a state.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            namespaces: cluster.namespaces.len() as u64,
            nodes: cluster.nodes.len() as u64,
            pods: cluster.pods.len() as u64,
            policies: cluster.policies.len() as u64,
        }
    }
}
