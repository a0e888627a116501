//! One object of the cluster, and how it enters and leaves the state.

use std::sync::Arc;

use imbl::{OrdMap, ordmap::DiffItem, ordset::DiffItem as SetDiff};

use super::{
    AddressSet, Cluster, Labels, Namespace, NetworkPolicy, Node, ObjectKey, Pod, PolicyId, Tier, TieredPolicy,
};

/// Label that every namespace carries (SEMANTICS 13).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// One object as decoded from a manifest or an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Namespace.
    Namespace(Namespace),
    /// A Node.
    Node(Node),
    /// A Pod, or the template of a workload.
    Pod(Pod),
    /// A NetworkPolicy; an invalid one isolates.
    NetworkPolicy(NetworkPolicy),
    /// A policy of a kind whose rules decide in order.
    Tiered(TieredPolicy),
    /// A tier.
    Tier(Tier),
    /// A policy of a kind that is not evaluated yet.
    Unevaluated {
        /// `kind.group`.
        kind: String,
    },
    /// An object that has no part in policy.
    Ignored {
        /// Its kind.
        kind: String,
    },
}

/// Names an object of the state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectRef {
    /// A Namespace, by name.
    Namespace(String),
    /// A Node, by name.
    Node(String),
    /// A Pod or workload template.
    Pod(ObjectKey),
    /// A NetworkPolicy.
    NetworkPolicy(ObjectKey),
    /// A policy of a kind whose rules decide in order.
    Tiered(PolicyId),
    /// A tier, by name.
    Tier(String),
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Pod(key) => write!(f, "Pod {key}"),
            Self::NetworkPolicy(key) => write!(f, "NetworkPolicy {key}"),
            Self::Tiered(id) => write!(f, "{} {id}", id.kind.name()),
            Self::Tier(name) => write!(f, "Tier {name}"),
        }
    }
}

impl Object {
    /// The name by which the state knows it; None for what the state does not hold as an object.
    pub fn reference(&self) -> Option<ObjectRef> {
        match self {
            Self::Namespace(namespace) => Some(ObjectRef::Namespace(namespace.name.clone())),
            Self::Node(node) => Some(ObjectRef::Node(node.name.clone())),
            Self::Pod(pod) => Some(ObjectRef::Pod(pod.key.clone())),
            Self::NetworkPolicy(policy) => Some(ObjectRef::NetworkPolicy(policy.key.clone())),
            Self::Tiered(policy) => Some(ObjectRef::Tiered(policy.id.clone())),
            Self::Tier(tier) => Some(ObjectRef::Tier(tier.name.clone())),
            Self::Unevaluated { .. } | Self::Ignored { .. } => None,
        }
    }
}

impl Cluster {
    /// Adds or replaces an object. An unevaluated kind, or part of a policy, is only ever added: whoever can see the
    /// last object of a kind go sets `unevaluated_kinds` itself.
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(it) => drop(self.namespaces.insert(it.name.clone(), Arc::new(it))),
            Object::Node(it) => drop(self.nodes.insert(it.name.clone(), Arc::new(it))),
            Object::Pod(it) => drop(self.pods.insert(it.key.clone(), Arc::new(it))),
            Object::NetworkPolicy(it) => drop(self.policies.insert(it.key.clone(), Arc::new(it))),
            Object::Tiered(it) => {
                self.unevaluated_kinds.extend(it.unevaluated.iter().cloned());
                self.tiered.insert(it.id.clone(), Arc::new(it));
            }
            Object::Tier(it) => drop(self.tiers.insert(it.name.clone(), Arc::new(it))),
            Object::Unevaluated { kind } => drop(self.unevaluated_kinds.insert(kind)),
            Object::Ignored { .. } => {}
        }
    }

    /// Removes an object; false where it was not there.
    pub fn remove(&mut self, reference: &ObjectRef) -> bool {
        match reference {
            ObjectRef::Namespace(name) => self.namespaces.remove(name).is_some(),
            ObjectRef::Node(name) => self.nodes.remove(name).is_some(),
            ObjectRef::Pod(key) => self.pods.remove(key).is_some(),
            ObjectRef::NetworkPolicy(key) => self.policies.remove(key).is_some(),
            ObjectRef::Tiered(id) => self.tiered.remove(id).is_some(),
            ObjectRef::Tier(name) => self.tiers.remove(name).is_some(),
        }
    }

    /// The state `other`, made from this one: whatever is equal in both is shared with this one, so that what follows
    /// costs as much as differs. For sources that put every state together anew.
    #[must_use]
    pub fn turned_into(&self, other: Self) -> Self {
        Self {
            namespaces: turned_into(&self.namespaces, &other.namespaces),
            nodes: turned_into(&self.nodes, &other.nodes),
            pods: turned_into(&self.pods, &other.pods),
            policies: turned_into(&self.policies, &other.policies),
            tiered: turned_into(&self.tiered, &other.tiered),
            tiers: turned_into(&self.tiers, &other.tiers),
            address_sets: self.sets_turned_into(&other),
            ..other
        }
    }

    fn sets_turned_into(&self, other: &Self) -> OrdMap<String, Arc<AddressSet>> {
        let mut out = self.address_sets.clone();
        for change in self.address_sets.diff(&other.address_sets) {
            match change {
                DiffItem::Add(name, set) => drop(out.insert(name.clone(), Arc::clone(set))),
                DiffItem::Update { old, new } => {
                    out.insert(new.0.clone(), addresses_turned_into(old.1, new.1));
                }
                DiffItem::Remove(name, _) => drop(out.remove(name)),
            }
        }
        out
    }

    /// Adds the namespaces that pods and policies name and no manifest describes: manifests rarely hold their
    /// Namespace objects (SEMANTICS 13). Never used for an API server, where an unseen namespace means an unknown pod
    /// (SEMANTICS 54).
    pub fn supply_namespaces(&mut self) {
        let named: Vec<String> = self
            .pods
            .keys()
            .chain(self.policies.keys())
            .map(|key| key.namespace.clone())
            .collect();
        for name in named {
            if !self.namespaces.contains_key(&name) {
                self.insert(supplied(name));
            }
        }
    }

    /// Adds one namespace that no manifest describes, or takes it out where no pod and no policy is in it any more.
    pub fn supply_namespace(&mut self, name: &str) {
        let first = ObjectKey {
            namespace: name.to_owned(),
            name: String::new(),
        };
        let pod = self.pods.range(first.clone()..).next().map(|(key, _)| key);
        let policy = self.policies.range(first..).next().map(|(key, _)| key);
        if pod.into_iter().chain(policy).any(|key| key.namespace == name) {
            self.insert(supplied(name.to_owned()));
        } else {
            self.namespaces.remove(name);
        }
    }
}

/// A namespace without an object of its own: without labels of its own.
fn supplied(name: String) -> Object {
    let labels = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.clone())]);
    Object::Namespace(Namespace {
        name,
        labels,
        terminating: false,
    })
}

/// These members, sharing with the ones before all that is in both.
pub(crate) fn addresses_turned_into(before: &Arc<AddressSet>, members: &AddressSet) -> Arc<AddressSet> {
    let mut out = AddressSet::clone(before);
    let mut changed = false;
    for change in before.diff(members) {
        changed = true;
        match change {
            SetDiff::Add(net) => drop(out.insert(*net)),
            SetDiff::Remove(net) => drop(out.remove(net)),
        }
    }
    match changed {
        true => Arc::new(out),
        false => Arc::clone(before),
    }
}

fn turned_into<K: Ord + Clone, V: PartialEq>(
    old: &OrdMap<K, Arc<V>>,
    new: &OrdMap<K, Arc<V>>,
) -> OrdMap<K, Arc<V>> {
    let mut out = old.clone();
    for change in old.diff(new) {
        match change {
            DiffItem::Add(key, value)
            | DiffItem::Update {
                new: (key, value), ..
            } => drop(out.insert(key.clone(), Arc::clone(value))),
            DiffItem::Remove(key, _) => drop(out.remove(key)),
        }
    }
    out
}
