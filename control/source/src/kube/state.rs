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
use ringwall_policy::{
    ACCOUNT_LABEL, Cluster, Fault, Object, ObjectKey, ObjectRef, Pod, PolicyId, Settings, TieredPolicy,
    policy_label,
    services::{ServiceObject, Services},
};

use super::kind::{Kind, Objects, Reference};
use crate::{
    decode::calico::{Input, governed_host, lower::World},
    problems::Problems,
    staged::Staged,
};

/// What policies were decoded from, as JSON texts. A clone costs a pointer.
pub(super) type PolicySources = OrdMap<Reference, Arc<str>>;

/// Every cluster has it from its beginning to its end, so its UID is the cluster's.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// An object as a watch delivered it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its name.
    pub(super) reference: Reference,
    /// `metadata.uid`.
    pub(super) uid: String,
    /// What it says; None where it could not be decoded.
    pub(super) object: Option<Object>,
    /// What the state needs of it besides.
    pub(super) input: Option<Arc<Input>>,
    /// What it says about Services.
    pub(super) service: Option<ServiceObject>,
    /// What is wrong or odd about it.
    pub(super) problems: Vec<ObjectProblem>,
    /// For a policy, tier, network set or host endpoint that can be read: what has to be kept to know it again after a restart.
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

/// An object that is not in the cluster as it was decoded: it follows others, or others follow it, or it decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    object: Object,
    input: Option<Arc<Input>>,
}

/// Names a policy that the API server no longer has; in order of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HeldPolicy {
    key: ObjectKey,
    kind: Kind,
}

impl HeldPolicy {
    fn of(reference: &Reference) -> Self {
        Self {
            key: reference.key.clone(),
            kind: reference.kind,
        }
    }

    fn reference(&self) -> Reference {
        Reference::new(self.kind, self.key.clone())
    }
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
    /// Objects whose present content cannot be read, and why not (72.5).
    unreadable: BTreeMap<Reference, String>,
    /// Of each kind: the objects that are not in the cluster as they are.
    parts: Vec<OrdMap<ObjectKey, Arc<Part>>>,
    /// What nodes are to rules that speak of them.
    nodes: OrdMap<String, Arc<Input>>,
    /// Nodes of which nothing is known that could be read.
    unread_nodes: BTreeSet<String>,
    /// What these come to together.
    world: World<Reference>,
    /// Policies that are staged.
    staged: Arc<Vec<Staged>>,
    /// The objects that have a policy of this name: more than one where Calico stored two under other names. The first counts.
    by_id: BTreeMap<PolicyId, BTreeSet<Reference>>,
    /// Objects that say something which is not evaluated at all, and what.
    odd: BTreeMap<Reference, String>,
    /// Host endpoints where policies decide about the host's own traffic.
    governed: BTreeSet<Reference>,
    /// Whether a policy or host endpoint has changed since these were looked for.
    look_for_governed: bool,
    /// Whether pods have the labels of their service accounts.
    described: bool,
    /// Service accounts that changed since pods were given their labels.
    changed_accounts: BTreeSet<ObjectKey>,
    /// What is wrong with objects by themselves, and with what they come to.
    own_problems: BTreeMap<Reference, Vec<ObjectProblem>>,
    found_problems: BTreeMap<Reference, Vec<ObjectProblem>>,
    namespace_uids: BTreeMap<String, String>,
    holds: BTreeMap<HeldPolicy, Hold>,
    asking: BTreeSet<String>,
    /// Namespaces with policies that are gone and have not been asked about yet.
    unasked: BTreeSet<String>,
    problems: Problems,
    /// What policies, tiers and network sets were decoded from, as JSON.
    sources: PolicySources,
    /// Grows with every change of `sources`.
    revision: u64,
    /// Services and their endpoints: no part of the cluster.
    services: Services,
    /// Whether somebody asks for them, whatever policies speak of.
    services_wanted: bool,
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
            parts: vec![OrdMap::new(); Kind::count()],
            nodes: OrdMap::new(),
            unread_nodes: BTreeSet::new(),
            world: World::default(),
            staged: Arc::default(),
            by_id: BTreeMap::new(),
            odd: BTreeMap::new(),
            governed: BTreeSet::new(),
            look_for_governed: false,
            described: false,
            changed_accounts: BTreeSet::new(),
            own_problems: BTreeMap::new(),
            found_problems: BTreeMap::new(),
            namespace_uids: BTreeMap::new(),
            holds: BTreeMap::new(),
            asking: BTreeSet::new(),
            unasked: BTreeSet::new(),
            problems: Problems::default(),
            sources: PolicySources::new(),
            revision: 0,
            services: Services::default(),
            services_wanted: false,
        }
    }

    /// Policies that were in force when this process last ran. Those that the first list does not have are treated as
    /// deleted then: they hold where their namespace is ending.
    pub(super) fn remember(&mut self, policies: Vec<Item>) {
        for policy in policies {
            self.insert(policy);
        }
        self.put_together();
        self.name_unevaluated();
    }

    /// Kinds of which there are objects.
    pub(super) fn held_kinds(&self) -> BTreeSet<Kind> {
        Kind::all().filter(|kind| self.count(*kind) > 0).collect()
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
        let unasked: Vec<Kind> = self
            .spoken_of()
            .filter(|(_, asked)| !asked)
            .map(|(kind, _)| kind)
            .collect();
        let waits = |kind: Kind| !self.settled[kind.number()] && !unasked.contains(&kind);
        self.unevaluated.is_some() && !Kind::all().any(waits)
    }

    /// The kinds that are watched only while somebody asks for their objects, and whether somebody does: a policy that speaks of
    /// them, or a person.
    pub(super) fn asked_for(&self) -> impl Iterator<Item = (Kind, bool)> {
        let wanted = |kind: Kind| kind.is_of_services() && self.services_wanted;
        self.spoken_of()
            .map(move |(kind, spoken_of)| (kind, spoken_of || wanted(kind)))
    }

    /// Whether somebody has asked for Services.
    pub(super) const fn wants_services(&self) -> bool {
        self.services_wanted
    }

    /// Has Services watched from now on.
    pub(super) fn want_services(&mut self) {
        self.services_wanted = true;
    }

    /// Services and their endpoints; None before somebody has asked for them and they are known.
    pub(super) fn services(&self) -> Option<&Services> {
        let known = |kind: Kind| self.settled[kind.number()];
        (self.services_wanted && known(Kind::SERVICE) && known(Kind::ENDPOINT_SLICE))
            .then_some(&self.services)
    }

    /// The same, of policies alone.
    fn spoken_of(&self) -> impl Iterator<Item = (Kind, bool)> {
        let services = self.world.speaks_of_services();
        [
            (Kind::SERVICE_ACCOUNT, self.world.asks_for_accounts()),
            (Kind::SERVICE, services),
            (Kind::ENDPOINT_SLICE, services),
        ]
        .into_iter()
    }

    /// Whether everything is listed that says how long a policy holds.
    fn synced(&self) -> bool {
        Kind::all()
            .filter(|kind| kind.required())
            .all(|kind| self.settled[kind.number()])
    }

    /// Policies that the API server no longer has and that stay in force (SEMANTICS 54).
    pub(super) fn held(&self) -> impl ExactSizeIterator<Item = &HeldPolicy> {
        self.holds.keys()
    }

    /// Those of them for which it is not known yet whether their namespace still exists.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = String> {
        let asking = |hold: &Hold| matches!(hold, Hold::Asking { .. });
        self.holds
            .iter()
            .filter(move |(_, hold)| asking(hold))
            .map(|(held, _)| policy_label(held.kind.shown(), &held.key.to_string()))
    }

    /// What the watches have said, as it is now.
    pub(super) fn watched(&self) -> Watched {
        Watched {
            cluster: self.cluster.clone(),
            parts: self.parts.clone(),
            nodes: self.nodes.clone(),
            held: self.holds.keys().cloned().collect(),
        }
    }

    /// Notes the version of what a watch has said: of a list, or of an event. It may be lower than before, where the
    /// server's data went back.
    pub(super) fn seen(&mut self, kind: Kind, version: &str) {
        self.versions[kind.number()] = version.parse().ok();
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
            counts[kind.number()] = self.count(kind) as u64;
        }
        counts
    }

    /// Objects whose present content cannot be read: why not, and whether an earlier version of it is in force.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = (&Reference, &str, bool)> {
        self.unreadable
            .iter()
            .map(|(reference, why)| (reference, why.as_str(), self.has(reference)))
    }

    /// Policies that are staged.
    pub(super) fn staged(&self) -> Arc<Vec<Staged>> {
        Arc::clone(&self.staged)
    }

    /// What is wrong with objects.
    pub(super) fn problems(&self) -> Problems {
        self.problems.clone()
    }

    /// Takes a complete list: what is not in it is gone. Answers whether the state changed.
    pub(super) fn listed(&mut self, kind: Kind, items: Vec<Item>) -> bool {
        let mut changed = self.settle(kind);
        let listed: BTreeSet<Reference> = items.iter().map(|item| item.reference.clone()).collect();
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
        let holding: BTreeSet<String> = self.holds.keys().map(|held| held.key.namespace.clone()).collect();
        for namespace in holding {
            changed |= self.release(&namespace);
        }
        changed |= self.put_together();
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
                match kind.asked_for() {
                    // Once a policy asks for it, its list has to come.
                    true => self.settled[kind.number()] = false,
                    false => changed |= self.settle(kind),
                }
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
        let of_services = [Kind::SERVICE, Kind::ENDPOINT_SLICE];
        let unread = of_services.iter().filter(|kind| self.unread.contains_key(kind));
        self.services.unread = unread.map(|kind| kind.api().resource()).collect();
        let unseen = |kind: &Kind| self.unread.contains_key(kind) && self.count(*kind) == 0;
        self.world.see_services(!of_services.iter().any(unseen));
        changed |= self.put_together();
        changed | self.name_unevaluated()
    }

    /// A kind holds nothing up any more. Answers whether it did.
    fn settle(&mut self, kind: Kind) -> bool {
        // Services that only a person's command asks for hold nothing up.
        let awaited = !kind.is_of_services() || self.world.speaks_of_services();
        !std::mem::replace(&mut self.settled[kind.number()], true) && awaited
    }

    /// Takes a new or changed object. Answers whether the state changed.
    pub(super) fn applied(&mut self, item: Item) -> bool {
        let reference = item.reference.clone();
        let changed = self.insert(item);
        self.after(&reference, changed)
    }

    /// Takes the end of an object. Answers whether the state changed.
    pub(super) fn deleted(&mut self, reference: &Reference) -> bool {
        let changed = self.remove(reference);
        self.after(reference, changed)
    }

    /// What follows from an object's change.
    fn after(&mut self, reference: &Reference, mut changed: bool) -> bool {
        if let Some(namespace) = namespace_of(reference) {
            changed |= self.release(namespace);
        }
        let together = self.put_together();
        let named = match together || reference.kind.keeps_good() {
            true => self.name_unevaluated(),
            false => false,
        };
        changed | together | named
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
        // Of what no policy speaks, no verdict depends.
        let silent = !self.world.speaks_of_services();
        let decides = self
            .unread
            .iter()
            .filter(|(kind, _)| kind.decides() && !(silent && kind.is_of_services()));
        kinds.extend(decides.map(|(_, name)| name.clone()));
        kinds.extend(self.odd.values().cloned());
        kinds.extend((!self.governed.is_empty()).then(|| governed_host().0));
        kinds.extend(
            self.cluster
                .tiered
                .values()
                .flat_map(|it| it.unevaluated.iter().cloned()),
        );
        let never_read = self.unreadable.keys().filter(|reference| !self.has(reference));
        kinds.extend(never_read.map(|reference| reference.kind.label()));
        let changed = self.cluster.unevaluated_kinds != kinds;
        self.cluster.unevaluated_kinds = kinds;
        changed
    }

    /// Whether there is a version of an object that can be read.
    fn has(&self, reference: &Reference) -> bool {
        self.parts[reference.kind.number()].contains_key(&reference.key)
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
            for (_, hold) in self.holds.range_mut(held_in(&namespace)) {
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
        let asked: Vec<HeldPolicy> = self
            .holds
            .range(held_in(namespace))
            .filter(|(_, hold)| **hold == Hold::Asking { asked: true })
            .map(|(held, _)| held.clone())
            .collect();
        let mut changed = false;
        for held in asked {
            if lives {
                changed |= self.let_go(&held);
            } else {
                self.holds.insert(held, Hold::Ending { uid: seen.clone() });
            }
        }
        changed |= self.release(namespace);
        changed |= self.put_together();
        changed | self.name_unevaluated()
    }

    fn references(&self, kind: Kind) -> Vec<Reference> {
        // Objects that never could be decoded are known by their problems alone.
        let faulty = self
            .problems
            .objects()
            .filter(|reference| reference.kind == kind)
            .cloned();
        references(&self.cluster, &self.parts, kind)
            .chain(faulty)
            .collect()
    }

    /// How many there are of a kind.
    fn count(&self, kind: Kind) -> usize {
        let parts = self.parts[kind.number()].len();
        match kind.objects() {
            Objects::Namespaces => self.cluster.namespaces.len(),
            Objects::Nodes => self.cluster.nodes.len(),
            Objects::Pods => self.cluster.pods.len(),
            Objects::NetworkPolicies => self.cluster.policies.len() + parts,
            Objects::Tiered(_) | Objects::Tiers | Objects::SpokenOf | Objects::Staged => parts,
        }
    }

    fn insert(&mut self, item: Item) -> bool {
        let Item {
            reference,
            uid,
            object,
            input,
            service,
            problems,
            source,
        } = item;
        self.note_service(&reference, service);
        let mut changed = false;
        match source {
            Some(source) if self.sources.get(&reference) != Some(&source) => {
                self.sources.insert(reference.clone(), source);
                self.revision += 1;
            }
            // What is there is not in force.
            None if object.is_some() => self.forget_source(&reference),
            _ => {}
        }
        if reference.kind.outlasts_deletion() {
            self.holds.remove(&HeldPolicy::of(&reference));
        }
        if reference.kind == Kind::NAMESPACE {
            let name = &reference.key.name;
            let before = self.namespace_uids.insert(name.clone(), uid);
            // Another cluster, be it one with the same objects.
            changed = name == CLUSTER_NAMESPACE && before.as_ref() != self.namespace_uids.get(name);
        }
        if reference.kind.keeps_good() {
            self.unreadable.remove(&reference);
            if object.is_none() {
                let why = problems.iter().map(why).collect::<Vec<_>>().join("; ");
                self.unreadable.insert(reference.clone(), why);
            }
        }
        if reference.kind == Kind::NODE {
            let known = object.is_some() || self.cluster.nodes.contains_key(&reference.key.name);
            match known {
                true => self.unread_nodes.remove(&reference.key.name),
                false => self.unread_nodes.insert(reference.key.name.clone()),
            };
            self.world.see_nodes(self.unread_nodes.is_empty());
        }
        self.own_problems.remove(&reference);
        if !problems.is_empty() {
            self.own_problems.insert(reference.clone(), problems);
        }
        changed |= self.tell(&reference);
        // Undecodable: the last good object stays.
        match object {
            Some(object) => changed | self.place(&reference, Part { object, input }),
            None => changed,
        }
    }

    /// Takes what an object says about Services now.
    fn note_service(&mut self, reference: &Reference, said: Option<ServiceObject>) {
        let Reference { kind, key } = reference;
        match (*kind, said) {
            (Kind::NODE, Some(ServiceObject::Zone { node, zone })) => {
                self.services.zones.insert(node, zone);
            }
            (Kind::NODE, _) => drop(self.services.zones.remove(&key.name)),
            (Kind::SERVICE, Some(ServiceObject::Service(service))) => {
                self.services.services.insert(key.clone(), service);
            }
            (Kind::SERVICE, _) => drop(self.services.services.remove(key)),
            (Kind::ENDPOINT_SLICE, Some(ServiceObject::Slice(slice))) => {
                self.services.slices.insert(key.clone(), slice);
            }
            (Kind::ENDPOINT_SLICE, _) => drop(self.services.slices.remove(key)),
            _ => {}
        }
    }

    /// Sets what is wrong with an object. Answers whether that is news.
    fn tell(&mut self, reference: &Reference) -> bool {
        let of = |problems: &BTreeMap<Reference, Vec<ObjectProblem>>| problems.get(reference).cloned();
        let mut problems = of(&self.own_problems).unwrap_or_default();
        problems.extend(of(&self.found_problems).unwrap_or_default());
        if let Some(other) = self.hidden_by(reference) {
            let message = format!(
                "has the name of a policy that is stored as {}, and that one is in force: delete one of them",
                other.key.name
            );
            let fault = Fault {
                path: "metadata".to_owned(),
                message,
            };
            problems.push(reference.problem(&fault));
        }
        self.problems.set(reference, problems)
    }

    /// The object whose policy has the same name and counts instead.
    fn hidden_by(&self, reference: &Reference) -> Option<&Reference> {
        let part = self.parts[reference.kind.number()].get(&reference.key)?;
        let Object::Tiered(policy) = &part.object else {
            return None;
        };
        let first = self.by_id.get(&policy.id)?.first()?;
        (first != reference).then_some(first)
    }

    /// Puts an object where it belongs. Answers whether the state changed: most events change nothing that matters
    /// here, such as heartbeats of nodes and conditions of pods.
    fn place(&mut self, reference: &Reference, mut part: Part) -> bool {
        if let Object::Pod(pod) = &mut part.object {
            self.world.describe(pod);
        }
        match &part.object {
            Object::Namespace(_) | Object::Node(_) | Object::Pod(_) => {
                let changed = !holds_equal(&self.cluster, &part.object);
                if changed {
                    self.cluster.insert(part.object);
                }
                let name = &reference.key.name;
                if changed && reference.kind == Kind::NAMESPACE {
                    self.world.namespace(name, &self.cluster.namespaces);
                }
                if reference.kind == Kind::NODE
                    && let Some(input) = part.input
                    && self.nodes.get(name) != Some(&input)
                {
                    self.nodes.insert(name.clone(), Arc::clone(&input));
                    self.world
                        .put(reference.clone(), input, None, &self.cluster.namespaces);
                }
                changed
            }
            Object::NetworkPolicy(_) => {
                let was_staged = self.drop_part(reference);
                let changed = !holds_equal(&self.cluster, &part.object);
                if changed {
                    self.cluster.insert(part.object);
                }
                was_staged | changed
            }
            Object::Tiered(_) | Object::Tier(_) | Object::Unevaluated { .. } | Object::Ignored { .. } => {
                let parts = &self.parts[reference.kind.number()];
                let before = parts.get(&reference.key);
                if before.is_some_and(|before| **before == part) {
                    return false;
                }
                // Its place in the order may be another's now, or it may have none.
                let same_policy = match (before.map(|before| &before.object), &part.object) {
                    (Some(Object::Tiered(before)), Object::Tiered(now)) => before.id == now.id,
                    (Some(Object::Tier(_)), Object::Tier(_)) => true,
                    _ => false,
                };
                if !same_policy {
                    self.drop_part(reference);
                }
                self.take_part(reference, part);
                // What policies make of these is found when they are put together.
                !reference.kind.is_of_services()
            }
        }
    }

    /// Takes an object that is not in the cluster as it is.
    fn take_part(&mut self, reference: &Reference, part: Part) {
        let policy = match &part.object {
            Object::Tiered(policy) => Some(policy),
            _ => None,
        };
        match &part.input {
            Some(input) => {
                let namespaces = &self.cluster.namespaces;
                self.world
                    .put(reference.clone(), Arc::clone(input), policy, namespaces);
                if let Input::Account(_) = &**input {
                    self.changed_accounts.insert(reference.key.clone());
                }
            }
            None => self.world.take(reference),
        }
        self.look_for_governed |= policy.is_some() || reference.kind == Kind::HOST_ENDPOINT;
        if let Object::Unevaluated { kind } = &part.object {
            self.odd.insert(reference.clone(), kind.clone());
        }
        let id = policy.map(|policy| policy.id.clone());
        if id.is_some() {
            // What follows other objects is found anew.
            self.found_problems.remove(reference);
        }
        match &part.object {
            Object::Tier(tier) => self.cluster.insert(Object::Tier(tier.clone())),
            // Nothing is enforced of it.
            _ if reference.kind == Kind::NETWORK_POLICY => drop(self.cluster.policies.remove(&reference.key)),
            _ => {}
        }
        self.parts[reference.kind.number()].insert(reference.key.clone(), Arc::new(part));
        if let Some(id) = id {
            self.by_id
                .entry(id.clone())
                .or_default()
                .insert(reference.clone());
            self.enforce(&id);
        }
    }

    /// Drops an object that is not in the cluster as it is. Answers whether it was there.
    fn drop_part(&mut self, reference: &Reference) -> bool {
        let Some(part) = self.parts[reference.kind.number()].remove(&reference.key) else {
            return false;
        };
        self.world.take(reference);
        self.odd.remove(reference);
        if self.found_problems.remove(reference).is_some() {
            self.tell(reference);
        }
        if reference.kind == Kind::SERVICE_ACCOUNT {
            self.changed_accounts.insert(reference.key.clone());
        }
        match &part.object {
            Object::Tiered(policy) => {
                self.look_for_governed = true;
                if let Some(references) = self.by_id.get_mut(&policy.id) {
                    references.remove(reference);
                }
                self.enforce(&policy.id);
            }
            Object::Tier(tier) => drop(self.cluster.tiers.remove(&tier.name)),
            _ => {
                self.look_for_governed |= reference.kind == Kind::HOST_ENDPOINT;
                // What was said of it has gone with it, and is said again if it comes again.
                self.governed.remove(reference);
            }
        }
        true
    }

    /// Puts the policy of a name into the cluster, or out of it; one that follows other objects when they are put together.
    fn enforce(&mut self, id: &PolicyId) {
        let references: Vec<Reference> = self.by_id.get(id).into_iter().flatten().cloned().collect();
        let Some(first) = references.first() else {
            self.by_id.remove(id);
            self.cluster.tiered.remove(id);
            return;
        };
        for reference in &references {
            self.tell(reference);
        }
        let part = self.parts[first.kind.number()].get(&first.key);
        if !self.world.completes(first)
            && let Some(Object::Tiered(policy)) = part.map(|part| &part.object)
            && !holds_policy(&self.cluster, policy)
        {
            self.cluster.insert(Object::Tiered(policy.clone()));
        }
    }

    /// Puts together what follows other objects. Answers whether the state changed.
    fn put_together(&mut self) -> bool {
        let mut changed = false;
        for completed in self.world.complete() {
            let found: Vec<ObjectProblem> = completed
                .unevaluated
                .iter()
                .map(|fault| completed.key.problem(fault))
                .collect();
            changed |= self.find(&completed.key, found);
            let first = self.by_id.get(&completed.policy.id).and_then(|it| it.first());
            if first == Some(&completed.key) && !holds_policy(&self.cluster, &completed.policy) {
                self.cluster.insert(Object::Tiered(completed.policy));
                changed = true;
            }
        }
        for (name, members) in self.world.take_address_sets() {
            changed |= self.cluster.set_addresses(&name, members.as_ref());
        }
        if let Some(staged) = self.world.newly_staged() {
            self.staged = Arc::new(staged);
            changed = true;
        }
        if std::mem::take(&mut self.look_for_governed) {
            let governed = self.world.governed();
            let before = std::mem::replace(&mut self.governed, governed.clone());
            for reference in before.symmetric_difference(&governed) {
                let (_, fault) = governed_host();
                let found = governed.contains(reference).then(|| reference.problem(&fault));
                changed |= self.find(reference, found.into_iter().collect());
            }
        }
        changed | self.describe_pods()
    }

    /// Notes what was found wrong with what an object comes to. Answers whether that is news.
    fn find(&mut self, reference: &Reference, found: Vec<ObjectProblem>) -> bool {
        let before = match found.is_empty() {
            true => self.found_problems.remove(reference),
            false => self.found_problems.insert(reference.clone(), found.clone()),
        };
        before.unwrap_or_default() != found && self.tell(reference)
    }

    /// Gives pods what their service accounts have, where that is another than before.
    fn describe_pods(&mut self) -> bool {
        let asked = self.world.asks_for_accounts();
        let accounts = std::mem::take(&mut self.changed_accounts);
        let all = std::mem::replace(&mut self.described, asked) != asked;
        let mut pods: Vec<Arc<Pod>> = Vec::new();
        if all {
            pods.extend(self.cluster.pods.values().cloned());
        } else if asked {
            for account in &accounts {
                let of_namespace = self.cluster.pods.range(keys_of(&account.namespace));
                let of_account = of_namespace.filter(|(_, pod)| pod.service_account == account.name);
                pods.extend(of_account.map(|(_, pod)| Arc::clone(pod)));
            }
        }
        let mut changed = false;
        for before in pods {
            let mut pod = Pod::clone(&before);
            self.world.describe(&mut pod);
            if pod != *before {
                self.cluster.insert(Object::Pod(pod));
                changed = true;
            }
        }
        changed
    }

    fn remove(&mut self, reference: &Reference) -> bool {
        self.note_service(reference, None);
        self.own_problems.remove(reference);
        let faulty = self.tell(reference);
        let staged = reference.kind == Kind::NETWORK_POLICY && self.drop_part(reference);
        if reference.kind.outlasts_deletion() && !staged {
            return self.policy_gone(reference) | faulty;
        }
        let name = &reference.key.name;
        if reference.kind == Kind::NAMESPACE {
            // Policies held for it keep its uid themselves.
            self.namespace_uids.remove(name);
        }
        self.unreadable.remove(reference);
        self.forget_source(reference);
        let gone = match reference.kind.objects() {
            Objects::Namespaces => {
                let gone = self.cluster.remove(&ObjectRef::Namespace(name.clone()));
                self.world.namespace(name, &self.cluster.namespaces);
                gone
            }
            Objects::Nodes => {
                self.nodes.remove(name);
                self.world.take(reference);
                self.unread_nodes.remove(name);
                self.world.see_nodes(self.unread_nodes.is_empty());
                self.cluster.remove(&ObjectRef::Node(name.clone()))
            }
            Objects::Pods => self.cluster.remove(&ObjectRef::Pod(reference.key.clone())),
            _ => self.drop_part(reference) && !reference.kind.is_of_services(),
        };
        gone | staged | faulty
    }

    /// Whether a policy is in force.
    fn enforces(&self, reference: &Reference) -> bool {
        match reference.kind.objects() {
            Objects::NetworkPolicies => self.cluster.policies.contains_key(&reference.key),
            _ => self.has(reference),
        }
    }

    /// A policy that is gone stays until it is known that its namespace lives; its deletion may be the beginning of
    /// the end of the namespace, and the watch of namespaces may be behind.
    fn policy_gone(&mut self, reference: &Reference) -> bool {
        let held = HeldPolicy::of(reference);
        if self.holds.contains_key(&held) {
            return false;
        }
        if !self.enforces(reference) {
            return self.unreadable.remove(reference).is_some();
        }
        let name = &reference.key.namespace;
        let namespace = self.cluster.namespaces.get(name);
        let hold = if self.synced() && namespace.is_none_or(|namespace| namespace.terminating) {
            Hold::Ending {
                uid: self.namespace_uids.get(name).cloned().unwrap_or_default(),
            }
        } else {
            self.unasked.insert(name.clone());
            Hold::Asking { asked: false }
        };
        self.holds.insert(held, hold);
        false
    }

    /// Lets go of a namespace's policies where that is gone with its pods, or has come again as another one.
    fn release(&mut self, namespace: &str) -> bool {
        if self.holds.is_empty() || !self.synced() {
            // A namespace or pod that is missing may only not have been listed yet.
            return false;
        }
        let done: Vec<HeldPolicy> = self
            .holds
            .range(held_in(namespace))
            .filter(|(_, hold)| match hold {
                Hold::Asking { .. } => false,
                Hold::Ending { uid } => match self.cluster.namespaces.get(namespace) {
                    None => !self.has_pods(namespace),
                    Some(now) => !now.terminating && self.namespace_uids.get(namespace) != Some(uid),
                },
            })
            .map(|(held, _)| held.clone())
            .collect();
        let mut changed = false;
        for held in done {
            changed |= self.let_go(&held);
        }
        changed
    }

    fn let_go(&mut self, held: &HeldPolicy) -> bool {
        self.holds.remove(held);
        let reference = held.reference();
        self.unreadable.remove(&reference);
        self.forget_source(&reference);
        match reference.kind {
            Kind::NETWORK_POLICY => self.cluster.policies.remove(&held.key).is_some(),
            _ => self.drop_part(&reference),
        }
    }

    fn forget_source(&mut self, reference: &Reference) {
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
    parts: Vec<OrdMap<ObjectKey, Arc<Part>>>,
    nodes: OrdMap<String, Arc<Input>>,
    /// Policies that are gone and stay in force.
    held: BTreeSet<HeldPolicy>,
}

impl Watched {
    /// Whether an object of a list is what a watch said it is. One that cannot be decoded may be anything.
    pub(super) fn has(&self, item: &Item) -> bool {
        let Item {
            reference,
            object,
            input,
            ..
        } = item;
        let Some(object) = object else { return true };
        let same = match object {
            Object::Node(node) => {
                holds_equal(&self.cluster, object) && self.nodes.get(&node.name) == input.as_ref()
            }
            Object::Namespace(_) | Object::Pod(_) | Object::NetworkPolicy(_) => {
                holds_equal(&self.cluster, object)
            }
            Object::Tiered(_) | Object::Tier(_) | Object::Unevaluated { .. } | Object::Ignored { .. } => {
                let part = self.parts[reference.kind.number()].get(&reference.key);
                part.is_some_and(|part| part.object == *object && part.input == *input)
            }
        };
        same && !self.held.contains(&HeldPolicy::of(reference))
    }

    /// Every object of a kind that a list should have.
    pub(super) fn references(&self, kind: Kind) -> impl Iterator<Item = Reference> {
        references(&self.cluster, &self.parts, kind)
            .filter(|reference| !self.held.contains(&HeldPolicy::of(reference)))
    }
}

/// What a state holds of a kind.
fn references<'a>(
    cluster: &'a Cluster,
    parts: &'a [OrdMap<ObjectKey, Arc<Part>>],
    kind: Kind,
) -> impl Iterator<Item = Reference> + 'a {
    let named = |name: &String| ObjectKey {
        namespace: String::new(),
        name: name.clone(),
    };
    let of_cluster: Box<dyn Iterator<Item = ObjectKey>> = match kind.objects() {
        Objects::Namespaces => Box::new(cluster.namespaces.keys().map(named)),
        Objects::Nodes => Box::new(cluster.nodes.keys().map(named)),
        Objects::Pods => Box::new(cluster.pods.keys().cloned()),
        Objects::NetworkPolicies => Box::new(cluster.policies.keys().cloned()),
        Objects::Tiered(_) | Objects::Tiers | Objects::SpokenOf | Objects::Staged => {
            Box::new(std::iter::empty())
        }
    };
    let parts = parts
        .get(kind.number())
        .into_iter()
        .flat_map(OrdMap::keys)
        .cloned();
    of_cluster.chain(parts).map(move |key| Reference::new(kind, key))
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
        Object::Pod(it) => cluster.pods.get(&it.key).is_some_and(|held| same_pod(held, it)),
        Object::NetworkPolicy(it) => cluster.policies.get(&it.key).is_some_and(|held| **held == *it),
        Object::Tiered(it) => holds_policy(cluster, it),
        Object::Tier(it) => cluster.tiers.get(&it.name).is_some_and(|held| **held == *it),
        Object::Unevaluated { .. } | Object::Ignored { .. } => true,
    }
}

fn holds_policy(cluster: &Cluster, policy: &TieredPolicy) -> bool {
    cluster
        .tiered
        .get(&policy.id)
        .is_some_and(|held| **held == *policy)
}

/// Whether a pod is the one that is held, which may have labels of its service account besides.
fn same_pod(held: &Pod, pod: &Pod) -> bool {
    let of_account = |pod: &Pod| pod.labels.keys().any(|key| key.starts_with(ACCOUNT_LABEL));
    if of_account(held) == of_account(pod) {
        return held == pod;
    }
    let mut held = held.clone();
    held.labels.retain(|key, _| !key.starts_with(ACCOUNT_LABEL));
    held == *pod
}

/// The namespace in which an object's change can end what is held: a Namespace's own, that of what is in it.
fn namespace_of(reference: &Reference) -> Option<&str> {
    let namespace = match reference.kind {
        Kind::NAMESPACE => &reference.key.name,
        _ => &reference.key.namespace,
    };
    Some(namespace.as_str()).filter(|namespace| !namespace.is_empty())
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

/// Every policy of a namespace that may be held.
fn held_in(namespace: &str) -> (Bound<HeldPolicy>, Bound<HeldPolicy>) {
    let (first, next) = keys_of(namespace);
    let held = |key| HeldPolicy {
        key,
        kind: Kind::NAMESPACE,
    };
    (first.map(held), next.map(held))
}
