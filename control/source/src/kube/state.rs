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
use ringwall_messages::{ClusterUid, ObjectProblem, ResourceVersions};
use ringwall_policy::{Cluster, Object, ObjectKey, ObjectRef, Settings};

use super::kind::{Kind, Objects};
use crate::problems::Problems;

/// What policies were decoded from, as JSON texts. A clone costs a pointer.
pub(super) type PolicySources = OrdMap<ObjectRef, Arc<str>>;

/// Every cluster has it from its beginning to its end, so its UID is the cluster's.
const CLUSTER_NAMESPACE: &str = "kube-system";

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
    /// For a policy that can be read: what has to be kept to know it again after a restart.
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

/// What is known of the objects of a kind that an API server may not serve, or not let us read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// They are listed and watched.
    Current,
    /// It is not served: there are none.
    Absent,
    /// The API server does not say whether it is served. What is known of them stays.
    Unknown,
    /// There may be some that cannot be read: under this name among the kinds that are not evaluated. What is known of
    /// them stays.
    Unread(String),
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
    /// Of each kind: whether its list has come, or it is known why none comes.
    settled: [bool; Kind::count()],
    /// Of each kind: the version of what its watch said last.
    versions: [Option<u64>; Kind::count()],
    /// Policy kinds that are not evaluated at all; None before they have been looked for.
    unevaluated: Option<BTreeSet<String>>,
    /// Kinds of which there may be objects that cannot be read, with their names among those that are not evaluated.
    unread: BTreeMap<Kind, String>,
    /// Policies whose present content cannot be read, and why not (72.5).
    unreadable: BTreeMap<ObjectRef, String>,
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
            settled: [false; Kind::count()],
            versions: [None; Kind::count()],
            unevaluated: None,
            unread: BTreeMap::new(),
            unreadable: BTreeMap::new(),
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
        self.name_unevaluated();
    }

    /// Kinds of which there are objects.
    pub(super) fn held_kinds(&self) -> BTreeSet<Kind> {
        Kind::all()
            .filter(|kind| count(&self.cluster, *kind) > 0)
            .collect()
    }

    /// Grows with every change of [`Self::policy_sources`].
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// What the policies in force were decoded from, for [`Self::remember`].
    pub(super) fn policy_sources(&self) -> PolicySources {
        self.sources.clone()
    }

    /// The state; to be acted upon where [`Self::complete`].
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether every watch has delivered its list, or it is known why it cannot, and what is not evaluated is known.
    pub(super) fn complete(&self) -> bool {
        self.unevaluated.is_some() && self.settled.iter().all(|settled| *settled)
    }

    /// Whether everything is listed that says how long a policy holds.
    fn synced(&self) -> bool {
        Kind::all()
            .filter(|kind| kind.required())
            .all(|kind| self.settled[kind.number()])
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
        self.versions[kind.number()] = version.parse().ok();
    }

    /// The same, of what an event is about.
    pub(super) fn seen_object(&mut self, reference: &ObjectRef, version: &str) {
        if let Some(kind) = Kind::of(reference) {
            self.seen(kind, version);
        }
    }

    /// The newest version of each kind that this state reflects.
    pub(super) fn versions(&self) -> ResourceVersions {
        let of = |kind: Kind| self.versions[kind.number()];
        ResourceVersions {
            namespaces: of(Kind::NAMESPACE),
            nodes: of(Kind::NODE),
            pods: of(Kind::POD),
            policies: of(Kind::NETWORK_POLICY),
            cluster_policies: Kind::all()
                .filter(|kind| matches!(kind.objects(), Objects::Tiered(_)))
                .filter_map(of)
                .max(),
        }
    }

    /// Which cluster this is; None where it has no `kube-system`.
    pub(super) fn cluster_uid(&self) -> Option<ClusterUid> {
        let uid = self.namespace_uids.get(CLUSTER_NAMESPACE)?;
        ClusterUid::try_from(uid.clone()).ok()
    }

    /// How many objects of each kind there are.
    pub(super) fn counts(&self) -> [u64; Kind::count()] {
        let mut counts = [0; Kind::count()];
        for kind in Kind::all() {
            counts[kind.number()] = count(&self.cluster, kind) as u64;
        }
        counts
    }

    /// Policies whose present content cannot be read: why not, and whether an earlier version of it is in force.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = (&ObjectRef, &str, bool)> {
        self.unreadable
            .iter()
            .map(|(reference, why)| (reference, why.as_str(), self.has(reference)))
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self) -> Problems {
        self.problems.clone()
    }

    /// Takes a complete list: what is not in it is gone. Answers whether the state changed.
    pub(super) fn listed(&mut self, kind: Kind, items: Vec<Item>) -> bool {
        let mut changed = self.settle(kind);
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
        changed | self.name_unevaluated()
    }

    /// Takes what is known of the objects of a kind. Answers whether the state changed.
    pub(super) fn read(&mut self, kind: Kind, reading: Reading) -> bool {
        let mut changed = false;
        match reading {
            Reading::Current => {
                self.unread.remove(&kind);
            }
            Reading::Absent => {
                changed |= self.settle(kind);
                self.unread.remove(&kind);
                self.versions[kind.number()] = None;
                for gone in self.references(kind) {
                    changed |= self.remove(&gone);
                }
            }
            Reading::Unknown => changed |= self.settle(kind),
            Reading::Unread(name) => {
                changed |= self.settle(kind);
                self.unread.insert(kind, name);
            }
        }
        changed | self.name_unevaluated()
    }

    /// A kind holds nothing up any more. Answers whether it did.
    fn settle(&mut self, kind: Kind) -> bool {
        !std::mem::replace(&mut self.settled[kind.number()], true)
    }

    /// Takes a new or changed object. Answers whether the state changed.
    pub(super) fn applied(&mut self, item: Item) -> bool {
        let namespace = namespace_of(&item.reference).map(str::to_owned);
        let ordered = is_ordered(&item.reference);
        let mut changed = self.insert(item);
        changed |= namespace.is_some_and(|namespace| self.release(&namespace));
        changed | (ordered && self.name_unevaluated())
    }

    /// Takes the end of an object. Answers whether the state changed.
    pub(super) fn deleted(&mut self, reference: &ObjectRef) -> bool {
        let mut changed = self.remove(reference);
        changed |= namespace_of(reference).is_some_and(|namespace| self.release(namespace));
        changed | (is_ordered(reference) && self.name_unevaluated())
    }

    /// Sets which policy kinds exist that are not evaluated at all. Answers whether the state changed.
    pub(super) fn set_unevaluated(&mut self, kinds: BTreeSet<String>) -> bool {
        let first = self.unevaluated.replace(kinds).is_none();
        first | self.name_unevaluated()
    }

    /// Puts together what is not evaluated: kinds, kinds that cannot be read, parts of policies, and policies of which no
    /// version could be read. Answers whether that is news.
    fn name_unevaluated(&mut self) -> bool {
        let mut kinds = self.unevaluated.clone().unwrap_or_default();
        kinds.extend(self.unread.values().cloned());
        kinds.extend(
            self.cluster
                .tiered
                .values()
                .flat_map(|it| it.unevaluated.iter().cloned()),
        );
        let never_read = self.unreadable.keys().filter(|reference| !self.has(reference));
        kinds.extend(never_read.filter_map(Kind::of).map(Kind::label));
        let changed = self.cluster.unevaluated_kinds != kinds;
        self.cluster.unevaluated_kinds = kinds;
        changed
    }

    fn has(&self, reference: &ObjectRef) -> bool {
        match reference {
            ObjectRef::Tiered(id) => self.cluster.tiered.contains_key(id),
            ObjectRef::Tier(name) => self.cluster.tiers.contains_key(name),
            _ => false,
        }
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
        references(&self.cluster, kind).chain(faulty).collect()
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
        if let Some(source) = source
            && self.sources.get(&reference) != Some(&source)
        {
            self.sources.insert(reference.clone(), source);
            self.revision += 1;
        }
        match &reference {
            ObjectRef::Namespace(name) => {
                let before = self.namespace_uids.insert(name.clone(), uid);
                // Another cluster, be it one with the same objects.
                changed = name == CLUSTER_NAMESPACE && before.as_ref() != self.namespace_uids.get(name);
            }
            ObjectRef::NetworkPolicy(key) => {
                self.holds.remove(key);
            }
            ObjectRef::Tiered(_) | ObjectRef::Tier(_) => {
                self.unreadable.remove(&reference);
                if object.is_none() {
                    let why = problems.iter().map(why).collect::<Vec<_>>().join("; ");
                    self.unreadable.insert(reference.clone(), why);
                }
            }
            ObjectRef::Node(_) | ObjectRef::Pod(_) => {}
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
        self.unreadable.remove(reference);
        self.forget_source(reference);
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
        self.forget_source(&ObjectRef::NetworkPolicy(key.clone()));
        self.cluster.policies.remove(key).is_some()
    }

    fn forget_source(&mut self, reference: &ObjectRef) {
        self.revision += u64::from(self.sources.remove(reference).is_some());
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
    pub(super) fn references(&self, kind: Kind) -> impl Iterator<Item = ObjectRef> {
        let held = |reference: &ObjectRef| matches!(reference, ObjectRef::NetworkPolicy(key) if self.held.contains(key));
        references(&self.cluster, kind).filter(move |reference| !held(reference))
    }
}

/// What a state holds of a kind.
fn references(cluster: &Cluster, kind: Kind) -> Box<dyn Iterator<Item = ObjectRef> + '_> {
    match kind.objects() {
        Objects::Namespaces => Box::new(cluster.namespaces.keys().cloned().map(ObjectRef::Namespace)),
        Objects::Nodes => Box::new(cluster.nodes.keys().cloned().map(ObjectRef::Node)),
        Objects::Pods => Box::new(cluster.pods.keys().cloned().map(ObjectRef::Pod)),
        Objects::NetworkPolicies => Box::new(cluster.policies.keys().cloned().map(ObjectRef::NetworkPolicy)),
        Objects::Tiered(kind) => {
            let of_kind = cluster.tiered.keys().filter(move |id| id.kind == kind);
            Box::new(of_kind.cloned().map(ObjectRef::Tiered))
        }
    }
}

/// How many a state holds of a kind.
fn count(cluster: &Cluster, kind: Kind) -> usize {
    match kind.objects() {
        Objects::Namespaces => cluster.namespaces.len(),
        Objects::Nodes => cluster.nodes.len(),
        Objects::Pods => cluster.pods.len(),
        Objects::NetworkPolicies => cluster.policies.len(),
        Objects::Tiered(kind) => cluster.tiered.keys().filter(|id| id.kind == kind).count(),
    }
}

/// Whether an object has a part in the order of policies.
fn is_ordered(reference: &ObjectRef) -> bool {
    matches!(reference, ObjectRef::Tiered(_) | ObjectRef::Tier(_))
}

/// What is wrong with an object, in a line.
fn why(problem: &ObjectProblem) -> String {
    match problem.path.as_str() {
        "" => problem.message.clone(),
        path => format!("{path}: {}", problem.message),
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
