//! What the watches have said so far, put together. Pure: no I/O, no clock.
//!
//! The watches are not ordered among each other, so nothing here depends on the order in which their events arrive:
//! the same last word of every watch gives the same state.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use imbl::OrdMap;
use ringwall_messages::{ClusterUid, ObjectCounts, ObjectProblem, ResourceVersions};
use ringwall_policy::{Cluster, Object, ObjectKey, ObjectRef, Settings};

use crate::problems::Problems;

/// What policies were decoded from, as JSON texts. A clone costs a pointer.
pub(super) type PolicySources = OrdMap<ObjectKey, Arc<str>>;

/// Every cluster has it from its beginning to its end, so its UID is the cluster's.
const CLUSTER_NAMESPACE: &str = "kube-system";

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

    /// As the log names its watch.
    pub(super) const fn watch(self) -> &'static str {
        match self {
            Self::Namespace => "the watch of namespaces",
            Self::Node => "the watch of nodes",
            Self::Pod => "the watch of pods",
            Self::NetworkPolicy => "the watch of networkpolicies",
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

    pub(super) const fn number(self) -> usize {
        match self {
            Self::Namespace => 0,
            Self::Node => 1,
            Self::Pod => 2,
            Self::NetworkPolicy => 3,
        }
    }

    /// That of an object; None for one that is not watched.
    pub(super) fn of(reference: &ObjectRef) -> Option<Self> {
        match reference {
            ObjectRef::Namespace(_) => Some(Self::Namespace),
            ObjectRef::Node(_) => Some(Self::Node),
            ObjectRef::Pod(_) => Some(Self::Pod),
            ObjectRef::NetworkPolicy(_) => Some(Self::NetworkPolicy),
            ObjectRef::Tiered(_) | ObjectRef::Tier(_) => None,
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
    pub(super) source: Option<Arc<str>>,
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
    versions: ResourceVersions,
    namespace_uids: BTreeMap<String, String>,
    holds: BTreeMap<ObjectKey, Hold>,
    asking: BTreeSet<String>,
    /// Namespaces with policies that are gone and that nobody has asked about yet.
    unasked: BTreeSet<String>,
    problems: Problems,
    /// What the policies in `cluster` were decoded from, as JSON.
    sources: PolicySources,
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
            versions: ResourceVersions::default(),
            namespace_uids: BTreeMap::new(),
            holds: BTreeMap::new(),
            asking: BTreeSet::new(),
            unasked: BTreeSet::new(),
            problems: Problems::default(),
            sources: PolicySources::new(),
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
    pub(super) fn policy_sources(&self) -> PolicySources {
        self.sources.clone()
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
    pub(super) fn held(&self) -> impl ExactSizeIterator<Item = &ObjectKey> {
        self.holds.keys()
    }

    /// Those of them of which nobody has said yet whether their namespace lives.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &ObjectKey> {
        let asking = |hold: &Hold| matches!(hold, Hold::Asking { .. });
        self.holds
            .iter()
            .filter(move |(_, hold)| asking(hold))
            .map(|(key, _)| key)
    }

    /// What the watches have said, as it is now.
    pub(super) fn watched(&self) -> Watched {
        Watched {
            cluster: self.cluster.clone(),
            held: self.holds.keys().cloned().collect(),
        }
    }

    /// Notes the version of what a watch has said: of a list, or of an event. It may be lower than before, where the
    /// server's data went back.
    pub(super) fn seen(&mut self, kind: Kind, version: &str) {
        let versions = &mut self.versions;
        let of_kind = match kind {
            Kind::Namespace => &mut versions.namespaces,
            Kind::Node => &mut versions.nodes,
            Kind::Pod => &mut versions.pods,
            Kind::NetworkPolicy => &mut versions.policies,
        };
        *of_kind = version.parse().ok();
    }

    /// The same, of what an event is about.
    pub(super) fn seen_object(&mut self, reference: &ObjectRef, version: &str) {
        if let Some(kind) = Kind::of(reference) {
            self.seen(kind, version);
        }
    }

    /// The newest version of each kind that this state reflects.
    pub(super) fn versions(&self) -> ResourceVersions {
        self.versions
    }

    /// Which cluster this is; None where it has no `kube-system`.
    pub(super) fn cluster_uid(&self) -> Option<ClusterUid> {
        let uid = self.namespace_uids.get(CLUSTER_NAMESPACE)?;
        ClusterUid::try_from(uid.clone()).ok()
    }

    /// How many objects of each kind there are.
    pub(super) fn counts(&self) -> ObjectCounts {
        ObjectCounts::of(&self.cluster)
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self) -> Problems {
        self.problems.clone()
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
        let holding: BTreeSet<String> = self.holds.keys().map(|key| key.namespace.clone()).collect();
        for namespace in holding {
            changed |= self.release(&namespace);
        }
        changed
    }

    /// Takes a new or changed object. Answers whether the state changed.
    pub(super) fn applied(&mut self, item: Item) -> bool {
        let namespace = namespace_of(&item.reference).map(str::to_owned);
        let changed = self.insert(item);
        changed | namespace.is_some_and(|namespace| self.release(&namespace))
    }

    /// Takes the end of an object. Answers whether the state changed.
    pub(super) fn deleted(&mut self, reference: &ObjectRef) -> bool {
        let changed = self.remove(reference);
        changed | namespace_of(reference).is_some_and(|namespace| self.release(namespace))
    }

    /// Sets which policy kinds exist that are not evaluated. Answers whether the state changed.
    pub(super) fn set_unevaluated(&mut self, kinds: BTreeSet<String>) -> bool {
        let changed = self.cluster.unevaluated_kinds != kinds;
        self.cluster.unevaluated_kinds = kinds;
        changed
    }

    /// Namespaces that the API server must be asked about now; each must be answered by [`Self::answered`].
    pub(super) fn questions(&mut self) -> Vec<String> {
        if self.unasked.is_empty() || !self.synced() {
            return Vec::new();
        }
        let (wait, now) = std::mem::take(&mut self.unasked)
            .into_iter()
            .partition(|namespace| self.asking.contains(namespace));
        self.unasked = wait;
        let mut questions: Vec<String> = Vec::new();
        for namespace in now {
            let mut any = false;
            for (_, hold) in self.holds.range_mut(keys_of(&namespace)) {
                if *hold == (Hold::Asking { asked: false }) {
                    *hold = Hold::Asking { asked: true };
                    any = true;
                }
            }
            if any {
                self.asking.insert(namespace.clone());
                questions.push(namespace);
            }
        }
        questions
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
            .range(keys_of(namespace))
            .filter(|(_, hold)| **hold == Hold::Asking { asked: true })
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
        changed | self.release(namespace)
    }

    fn references(&self, kind: Kind) -> Vec<ObjectRef> {
        // Objects that never could be decoded are known by their problems alone.
        let faulty = self
            .problems
            .objects()
            .filter(|reference| Kind::of(reference) == Some(kind))
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
        let mut changed = false;
        match &reference {
            ObjectRef::Namespace(name) => {
                let before = self.namespace_uids.insert(name.clone(), uid);
                // Another cluster, be it one with the same objects.
                changed = name == CLUSTER_NAMESPACE && before.as_ref() != self.namespace_uids.get(name);
            }
            ObjectRef::NetworkPolicy(key) => {
                self.holds.remove(key);
                if let Some(source) = source
                    && self.sources.get(key) != Some(&source)
                {
                    self.sources.insert(key.clone(), source);
                    self.revision += 1;
                }
            }
            ObjectRef::Node(_) | ObjectRef::Pod(_) | ObjectRef::Tiered(_) | ObjectRef::Tier(_) => {}
        }
        changed |= self.problems.set(&reference, problems);
        // Undecodable: the last good object stays.
        if let Some(object) = object
            && !self.holds_equal(&object)
        {
            self.cluster.insert(object);
            changed = true;
        }
        changed
    }

    /// Most events change nothing that matters here: heartbeats of nodes, conditions of pods.
    fn holds_equal(&self, object: &Object) -> bool {
        holds_equal(&self.cluster, object)
    }

    fn remove(&mut self, reference: &ObjectRef) -> bool {
        let faulty = self.problems.remove(reference);
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
            self.unasked.insert(key.namespace.clone());
            Hold::Asking { asked: false }
        };
        self.holds.insert(key.clone(), hold);
        false
    }

    /// Lets go of a namespace's policies where that is gone with its pods, or has come again as another one.
    fn release(&mut self, namespace: &str) -> bool {
        if self.holds.is_empty() || !self.synced() {
            // A namespace or pod that is missing may only not have been listed yet.
            return false;
        }
        let done: Vec<ObjectKey> = self
            .holds
            .range(keys_of(namespace))
            .filter(|(_, hold)| match hold {
                Hold::Asking { .. } => false,
                Hold::Ending { uid } => match self.cluster.namespaces.get(namespace) {
                    None => !self.has_pods(namespace),
                    Some(now) => !now.terminating && self.namespace_uids.get(namespace) != Some(uid),
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
        self.cluster.pods.range(keys_of(namespace)).next().is_some()
    }
}

/// What the watches had said at some time.
#[derive(Debug)]
pub(super) struct Watched {
    cluster: Cluster,
    /// Policies that are gone and stay in force.
    held: BTreeSet<ObjectKey>,
}

impl Watched {
    /// Whether an object of a list is what a watch said it is. One that cannot be decoded may be anything.
    pub(super) fn has(&self, item: &Item) -> bool {
        let held = matches!(&item.reference, ObjectRef::NetworkPolicy(key) if self.held.contains(key));
        !held
            && item
                .object
                .as_ref()
                .is_none_or(|object| holds_equal(&self.cluster, object))
    }

    /// Every object of a kind that a list should have.
    pub(super) fn references(&self, kind: Kind) -> Box<dyn Iterator<Item = ObjectRef> + '_> {
        let cluster = &self.cluster;
        match kind {
            Kind::Namespace => Box::new(cluster.namespaces.keys().cloned().map(ObjectRef::Namespace)),
            Kind::Node => Box::new(cluster.nodes.keys().cloned().map(ObjectRef::Node)),
            Kind::Pod => Box::new(cluster.pods.keys().cloned().map(ObjectRef::Pod)),
            Kind::NetworkPolicy => Box::new(
                cluster
                    .policies
                    .keys()
                    .filter(|key| !self.held.contains(key))
                    .cloned()
                    .map(ObjectRef::NetworkPolicy),
            ),
        }
    }
}

/// Whether an object is in a state as it is.
fn holds_equal(cluster: &Cluster, object: &Object) -> bool {
    match object {
        Object::Namespace(it) => cluster.namespaces.get(&it.name).is_some_and(|held| **held == *it),
        Object::Node(it) => cluster.nodes.get(&it.name).is_some_and(|held| **held == *it),
        Object::Pod(it) => cluster.pods.get(&it.key).is_some_and(|held| **held == *it),
        Object::NetworkPolicy(it) => cluster.policies.get(&it.key).is_some_and(|held| **held == *it),
        Object::Tiered(it) => cluster.tiered.get(&it.id).is_some_and(|held| **held == *it),
        Object::Tier(it) => cluster.tiers.get(&it.name).is_some_and(|held| **held == *it),
        Object::Unevaluated { .. } | Object::Ignored { .. } => true,
    }
}

/// The namespace in which an object's change can end what is held: a Namespace's own, that of what is in it.
fn namespace_of(reference: &ObjectRef) -> Option<&str> {
    match reference {
        ObjectRef::Namespace(name) => Some(name),
        ObjectRef::Pod(key) | ObjectRef::NetworkPolicy(key) => Some(&key.namespace),
        ObjectRef::Tiered(id) => Some(id.namespace.as_str()).filter(|namespace| !namespace.is_empty()),
        ObjectRef::Node(_) | ObjectRef::Tier(_) => None,
    }
}

/// Every key of a namespace.
fn keys_of(namespace: &str) -> (Bound<ObjectKey>, Bound<ObjectKey>) {
    let first = |namespace: String| ObjectKey {
        namespace,
        name: String::new(),
    };
    // No name is empty, and no text lies between a name and the same with a NUL behind it.
    let next = format!("{namespace}\0");
    (
        Bound::Included(first(namespace.to_owned())),
        Bound::Excluded(first(next)),
    )
}
