//! What is watched: a line for each kind.

use ringwall_policy::{ObjectKey, ObjectRef, PolicyId, PolicyKind};

/// Group of the policies for a whole cluster. Whatever else is in it is policy, too.
pub(super) const POLICY_GROUP: &str = "policy.networking.k8s.io";

/// Every kind. A kind that more than one group may serve has them in order of preference: the first that is served is
/// watched.
static KINDS: &[Line] = &[
    Line {
        name: "Namespace",
        objects: Objects::Namespaces,
        required: true,
        apis: &[Api {
            group: "",
            version: "v1",
            plural: "namespaces",
        }],
    },
    Line {
        name: "Node",
        objects: Objects::Nodes,
        required: true,
        apis: &[Api {
            group: "",
            version: "v1",
            plural: "nodes",
        }],
    },
    Line {
        name: "Pod",
        objects: Objects::Pods,
        required: true,
        apis: &[Api {
            group: "",
            version: "v1",
            plural: "pods",
        }],
    },
    Line {
        name: "NetworkPolicy",
        objects: Objects::NetworkPolicies,
        required: true,
        apis: &[Api {
            group: "networking.k8s.io",
            version: "v1",
            plural: "networkpolicies",
        }],
    },
    Line::tiered(
        PolicyKind::ClusterNetworkPolicy,
        &[Api {
            group: POLICY_GROUP,
            version: "v1alpha2",
            plural: "clusternetworkpolicies",
        }],
    ),
    Line::tiered(
        PolicyKind::AdminNetworkPolicy,
        &[Api {
            group: POLICY_GROUP,
            version: "v1alpha1",
            plural: "adminnetworkpolicies",
        }],
    ),
    Line::tiered(
        PolicyKind::BaselineAdminNetworkPolicy,
        &[Api {
            group: POLICY_GROUP,
            version: "v1alpha1",
            plural: "baselineadminnetworkpolicies",
        }],
    ),
];

/// A version of a group that serves a kind, and is understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Api {
    /// Empty for the core.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    /// Name of the collection.
    pub(super) plural: &'static str,
}

impl Api {
    /// As objects name it.
    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As RBAC rules and messages name the collection: `resource` or `resource.group`.
    pub(super) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Path of the collection of all namespaces.
    pub(super) fn path(&self) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.plural)
    }
}

/// What the objects of a kind are to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objects {
    Namespaces,
    Nodes,
    Pods,
    NetworkPolicies,
    Tiered(PolicyKind),
}

#[derive(Debug)]
struct Line {
    name: &'static str,
    objects: Objects,
    /// Whether policy without it means nothing.
    required: bool,
    apis: &'static [Api],
}

impl Line {
    const fn tiered(kind: PolicyKind, apis: &'static [Api]) -> Self {
        Self {
            name: kind.name(),
            objects: Objects::Tiered(kind),
            required: false,
            apis,
        }
    }
}

/// A kind that is watched: its place among [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind(usize);

impl Kind {
    pub(super) const NAMESPACE: Self = Self(0);
    pub(super) const NODE: Self = Self(1);
    pub(super) const POD: Self = Self(2);
    pub(super) const NETWORK_POLICY: Self = Self(3);

    /// How many there are.
    pub(super) const fn count() -> usize {
        KINDS.len()
    }

    /// Every kind, in the order of their numbers.
    pub(super) fn all() -> impl ExactSizeIterator<Item = Self> {
        (0..KINDS.len()).map(Self)
    }

    /// Those that an API server may not serve, of which discovery says where they are.
    pub(super) fn discovered() -> impl Iterator<Item = Self> {
        Self::all().filter(|kind| !kind.always_served())
    }

    /// That of an object.
    pub(super) fn of(reference: &ObjectRef) -> Option<Self> {
        let objects = match reference {
            ObjectRef::Namespace(_) => Objects::Namespaces,
            ObjectRef::Node(_) => Objects::Nodes,
            ObjectRef::Pod(_) => Objects::Pods,
            ObjectRef::NetworkPolicy(_) => Objects::NetworkPolicies,
            ObjectRef::Tiered(id) => Objects::Tiered(id.kind),
            // Of no kind that is watched.
            ObjectRef::Tier(_) => return None,
        };
        Self::all().find(|kind| kind.objects() == objects)
    }

    /// That of objects which name themselves so, and the API that serves them.
    pub(super) fn named(name: &str, api_version: &str) -> Option<(Self, &'static Api)> {
        let mut all = Self::all()
            .filter(|kind| kind.name() == name)
            .flat_map(|kind| kind.apis().iter().map(move |api| (kind, api)));
        all.find(|(_, api)| api.api_version() == api_version)
    }

    const fn line(self) -> &'static Line {
        &KINDS[self.0]
    }

    /// Its place among all of them.
    pub(super) const fn number(self) -> usize {
        self.0
    }

    /// As objects name it.
    pub(super) const fn name(self) -> &'static str {
        self.line().name
    }

    /// Who may serve it; the first is preferred.
    pub(super) const fn apis(self) -> &'static [Api] {
        self.line().apis
    }

    /// That of a kind which is always served.
    pub(super) const fn api(self) -> &'static Api {
        &self.line().apis[0]
    }

    /// Whether policy without it means nothing, so that it is waited for even where it may not be read.
    pub(super) const fn required(self) -> bool {
        self.line().required
    }

    /// Whether every API server serves it.
    pub(super) const fn always_served(self) -> bool {
        self.required() || self.api().group.is_empty()
    }

    /// What its objects are to the state.
    pub(super) const fn objects(self) -> Objects {
        self.line().objects
    }

    /// As it stands among kinds that are not evaluated: `kind.group`.
    pub(super) fn label(self) -> String {
        format!("{}.{}", self.name(), self.api().group)
    }

    /// Whether its objects are policies, of which the last good version outlives this process.
    pub(super) const fn is_kept(self) -> bool {
        matches!(self.objects(), Objects::NetworkPolicies | Objects::Tiered(_))
    }

    /// What names an object of it; None where a namespace is missing.
    pub(super) fn reference(self, namespace: Option<String>, name: String) -> Option<ObjectRef> {
        let key = |namespace: Option<String>, name| {
            let namespace = namespace?;
            Some(ObjectKey { namespace, name })
        };
        Some(match self.objects() {
            Objects::Namespaces => ObjectRef::Namespace(name),
            Objects::Nodes => ObjectRef::Node(name),
            Objects::Pods => ObjectRef::Pod(key(namespace, name)?),
            Objects::NetworkPolicies => ObjectRef::NetworkPolicy(key(namespace, name)?),
            Objects::Tiered(kind) => ObjectRef::Tiered(PolicyId {
                kind,
                namespace: namespace.unwrap_or_default(),
                name,
            }),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{decode::decode_served, document, kube::discovery::UNEVALUATED};

    #[test]
    fn every_kind_is_found_by_its_number_its_name_and_its_objects() {
        for (kind, name) in [
            (Kind::NAMESPACE, "Namespace"),
            (Kind::NODE, "Node"),
            (Kind::POD, "Pod"),
            (Kind::NETWORK_POLICY, "NetworkPolicy"),
        ] {
            assert_eq!(kind.name(), name);
            assert!(kind.required());
        }
        for kind in Kind::all() {
            let reference = kind.reference(Some("a".to_owned()), "x".to_owned()).unwrap();
            assert_eq!(Kind::of(&reference), Some(kind), "{}", kind.name());
            assert!(!kind.apis().is_empty() && (kind.required() <= (kind.apis().len() == 1)));
            for api in kind.apis() {
                assert_eq!(Kind::named(kind.name(), &api.api_version()), Some((kind, api)));
            }
        }
        assert_eq!(
            Kind::named("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
            None
        );
    }

    #[test]
    fn every_kind_of_policy_is_watched_or_looked_for() {
        for kind in PolicyKind::TIERED {
            let watched = Kind::all().any(|it| it.objects() == Objects::Tiered(kind));
            let (name, group) = kind.name().split_once('.').unwrap_or((kind.name(), ""));
            let looked_for = UNEVALUATED
                .iter()
                .any(|(of, it)| *it == name && (group.is_empty() || *of == group));
            assert!(watched || looked_for, "{}", kind.name());
        }
    }

    #[test]
    fn every_version_that_is_watched_is_one_that_is_decoded() {
        for kind in Kind::all().filter(|kind| matches!(kind.objects(), Objects::Tiered(_))) {
            for api in kind.apis() {
                let object = json!({
                    "apiVersion": api.api_version(), "kind": kind.name(), "metadata": {"name": "default"}, "spec": {},
                });
                let error = decode_served(&object).unwrap_err();
                assert!(error.fault.path.starts_with("spec"), "{error}");
            }
        }
    }

    #[test]
    fn the_cluster_role_allows_to_read_every_kind() {
        let text = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../config/deploy/rbac.yaml"
        ));
        let documents = document::parse(&text.unwrap(), false).unwrap();
        let rules: Vec<Value> = documents
            .iter()
            .map(document::Document::value)
            .filter(|it| it["kind"] == "ClusterRole")
            .flat_map(|role| role["rules"].as_array().unwrap().clone())
            .collect();
        for api in Kind::all().flat_map(Kind::apis) {
            for verb in ["list", "watch"] {
                let allowed = rules.iter().any(|rule| {
                    let has = |field: &str, wanted: &str| {
                        rule[field]
                            .as_array()
                            .unwrap()
                            .iter()
                            .any(|it| it == wanted || it == "*")
                    };
                    has("apiGroups", api.group) && has("resources", api.plural) && has("verbs", verb)
                });
                assert!(allowed, "{verb} {}", api.resource());
            }
        }
    }
}
