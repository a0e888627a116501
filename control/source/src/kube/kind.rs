//! What is watched: a line for each kind.

use std::fmt;

use ringwall_messages::ObjectProblem;
use ringwall_policy::{Fault, ObjectKey, PolicyKind};

/// Group of the policies for a whole cluster. Whatever else is in it is policy, too.
pub(super) const POLICY_GROUP: &str = "policy.networking.k8s.io";

/// The API of a kind of the core.
macro_rules! core {
    ($version:literal, $plural:literal) => {
        &[Api {
            group: "",
            version: $version,
            plural: $plural,
        }]
    };
}

/// The APIs of a kind of Calico: its own, and that in which it stores its objects. Where both are served they have the same
/// objects (TIERS 96.6).
macro_rules! calico {
    ($plural:literal) => {
        &[
            Api {
                group: "projectcalico.org",
                version: "v3",
                plural: $plural,
            },
            Api {
                group: "crd.projectcalico.org",
                version: "v1",
                plural: $plural,
            },
        ]
    };
}

/// Every kind. A kind that more than one group may serve has them in order of preference: the first that is served is
/// watched.
static KINDS: &[Line] = &[
    Line {
        name: "Namespace",
        objects: Objects::Namespaces,
        wanted: Wanted::Always,
        namespaced: false,
        apis: core!("v1", "namespaces"),
    },
    Line {
        name: "Node",
        objects: Objects::Nodes,
        wanted: Wanted::Always,
        namespaced: false,
        apis: core!("v1", "nodes"),
    },
    Line {
        name: "Pod",
        objects: Objects::Pods,
        wanted: Wanted::Always,
        namespaced: true,
        apis: core!("v1", "pods"),
    },
    Line {
        name: "NetworkPolicy",
        objects: Objects::NetworkPolicies,
        wanted: Wanted::Always,
        namespaced: true,
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
    Line {
        name: "NetworkPolicy",
        namespaced: true,
        ..Line::tiered(PolicyKind::CalicoNetworkPolicy, calico!("networkpolicies"))
    },
    Line::tiered(PolicyKind::GlobalNetworkPolicy, calico!("globalnetworkpolicies")),
    Line {
        objects: Objects::Tiers,
        ..Line::calico("Tier", false, calico!("tiers"))
    },
    Line::calico("NetworkSet", true, calico!("networksets")),
    Line::calico("GlobalNetworkSet", false, calico!("globalnetworksets")),
    Line::calico("HostEndpoint", false, calico!("hostendpoints")),
    Line::calico("Profile", false, calico!("profiles")),
    Line {
        objects: Objects::Staged,
        ..Line::calico("StagedNetworkPolicy", true, calico!("stagednetworkpolicies"))
    },
    Line {
        objects: Objects::Staged,
        ..Line::calico(
            "StagedGlobalNetworkPolicy",
            false,
            calico!("stagedglobalnetworkpolicies"),
        )
    },
    Line {
        objects: Objects::Staged,
        ..Line::calico(
            "StagedKubernetesNetworkPolicy",
            true,
            calico!("stagedkubernetesnetworkpolicies"),
        )
    },
    Line::asked_for("ServiceAccount", core!("v1", "serviceaccounts")),
    Line::asked_for("Service", core!("v1", "services")),
    Line::asked_for(
        "EndpointSlice",
        &[Api {
            group: "discovery.k8s.io",
            version: "v1",
            plural: "endpointslices",
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
    Tiers,
    /// Nothing by themselves: policies speak of them.
    SpokenOf,
    /// Policies of which nothing is enforced.
    Staged,
}

/// When a kind is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Always: policy without it means nothing.
    Always,
    /// Wherever the API server serves it.
    WhereServed,
    /// While a policy speaks of its objects, or somebody asks for them. Every API server serves it.
    WhileAskedFor,
}

#[derive(Debug)]
struct Line {
    /// As objects name it.
    name: &'static str,
    objects: Objects,
    wanted: Wanted,
    namespaced: bool,
    apis: &'static [Api],
}

impl Line {
    const fn tiered(kind: PolicyKind, apis: &'static [Api]) -> Self {
        Self {
            name: kind.name(),
            objects: Objects::Tiered(kind),
            wanted: Wanted::WhereServed,
            namespaced: false,
            apis,
        }
    }

    const fn calico(name: &'static str, namespaced: bool, apis: &'static [Api]) -> Self {
        Self {
            name,
            objects: Objects::SpokenOf,
            wanted: Wanted::WhereServed,
            namespaced,
            apis,
        }
    }

    const fn asked_for(name: &'static str, apis: &'static [Api]) -> Self {
        Self {
            name,
            objects: Objects::SpokenOf,
            wanted: Wanted::WhileAskedFor,
            namespaced: true,
            apis,
        }
    }
}

/// A kind that is watched: its place among [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kind(usize);

impl Kind {
    pub(super) const NAMESPACE: Self = Self(0);
    pub(super) const NODE: Self = Self(1);
    pub(super) const POD: Self = Self(2);
    pub(super) const NETWORK_POLICY: Self = Self(3);
    #[cfg(test)]
    pub(super) const CALICO_NETWORK_POLICY: Self = Self(7);
    pub(super) const NETWORK_SET: Self = Self(10);
    pub(super) const GLOBAL_NETWORK_SET: Self = Self(11);
    pub(super) const HOST_ENDPOINT: Self = Self(12);
    pub(super) const SERVICE_ACCOUNT: Self = Self(17);
    pub(super) const SERVICE: Self = Self(18);
    pub(super) const ENDPOINT_SLICE: Self = Self(19);

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
        Self::all().filter(|kind| kind.line().wanted == Wanted::WhereServed)
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

    /// As messages name it: with its group where another group has a kind of this name.
    pub(super) const fn shown(self) -> &'static str {
        match self.objects() {
            Objects::Tiered(kind) => kind.name(),
            _ => self.name(),
        }
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
    pub(super) fn required(self) -> bool {
        self.line().wanted == Wanted::Always
    }

    /// Whether it is watched only while a policy speaks of its objects.
    pub(super) fn asked_for(self) -> bool {
        self.line().wanted == Wanted::WhileAskedFor
    }

    /// Whether its objects are Services or their endpoints, which people ask for as well as policies.
    pub(super) const fn is_of_services(self) -> bool {
        self.0 == Self::SERVICE.0 || self.0 == Self::ENDPOINT_SLICE.0
    }

    /// What its objects are to the state.
    pub(super) const fn objects(self) -> Objects {
        self.line().objects
    }

    /// Whether its objects are in namespaces.
    pub(super) const fn namespaced(self) -> bool {
        self.line().namespaced
    }

    /// As it stands among kinds that are not evaluated: `kind.group`.
    pub(super) fn label(self) -> String {
        match self.api().group {
            "" => self.name().to_owned(),
            group => format!("{}.{group}", self.name()),
        }
    }

    /// Whether its objects are network sets.
    pub(super) const fn is_of_sets(self) -> bool {
        self.0 == Self::NETWORK_SET.0 || self.0 == Self::GLOBAL_NETWORK_SET.0
    }

    /// Whether its objects are policies, tiers, network sets or host endpoints, of which the last good version outlives this
    /// process.
    pub(super) const fn is_kept(self) -> bool {
        let of_policy = matches!(
            self.objects(),
            Objects::NetworkPolicies | Objects::Tiered(_) | Objects::Tiers
        );
        of_policy || self.is_of_sets() || self.0 == Self::HOST_ENDPOINT.0
    }

    /// Whether a verdict may depend on an object of it, so that it is incomplete where the kind cannot be read.
    pub(super) const fn decides(self) -> bool {
        !matches!(self.objects(), Objects::Staged)
    }

    /// Whether an API shows its objects by tier: Calico's own shows those of the tiers that there are, and that the account may
    /// read, when a list or watch begins, and no others as long as it lasts (`EnsureTierSelector`, Calico 3.30 on).
    pub(super) fn is_shown_by_tier(self, api: &Api) -> bool {
        let of_policies = matches!(self.objects(), Objects::Tiered(_) | Objects::Staged);
        of_policies && api.group == "projectcalico.org"
    }

    /// Whether its objects keep a good version where the API server has one that cannot be read, which is an alarm (72.5).
    pub(super) const fn keeps_good(self) -> bool {
        matches!(
            self.objects(),
            Objects::Tiered(_) | Objects::Tiers | Objects::SpokenOf
        )
    }

    /// Whether its policies, or what they speak of, stay in force while the namespace that they were deleted with has pods
    /// (SEMANTICS 54).
    pub(super) const fn outlasts_deletion(self) -> bool {
        match self.objects() {
            Objects::NetworkPolicies => true,
            Objects::Tiered(_) => self.namespaced(),
            _ => self.is_of_sets() && self.namespaced(),
        }
    }
}

/// Names an object of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reference {
    pub(super) kind: Kind,
    /// The namespace is empty where the kind has none.
    pub(super) key: ObjectKey,
}

impl Reference {
    pub(super) const fn new(kind: Kind, key: ObjectKey) -> Self {
        Self { kind, key }
    }

    /// `namespace/name`, or the name alone.
    pub(super) fn name(&self) -> String {
        match self.key.namespace.as_str() {
            "" => self.key.name.clone(),
            _ => self.key.to_string(),
        }
    }

    /// Something that is wrong with it.
    pub(super) fn problem(&self, fault: &Fault) -> ObjectProblem {
        ObjectProblem {
            kind: self.kind.shown().to_owned(),
            object: self.name(),
            path: fault.path.clone(),
            message: fault.message.clone(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.shown(), self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{decode::decode_served, document};

    #[test]
    fn every_kind_is_found_by_its_number_and_its_name() {
        for (kind, name, required) in [
            (Kind::NAMESPACE, "Namespace", true),
            (Kind::NODE, "Node", true),
            (Kind::POD, "Pod", true),
            (Kind::NETWORK_POLICY, "NetworkPolicy", true),
            (
                Kind::CALICO_NETWORK_POLICY,
                "NetworkPolicy.projectcalico.org",
                false,
            ),
            (Kind::NETWORK_SET, "NetworkSet", false),
            (Kind::GLOBAL_NETWORK_SET, "GlobalNetworkSet", false),
            (Kind::HOST_ENDPOINT, "HostEndpoint", false),
            (Kind::SERVICE_ACCOUNT, "ServiceAccount", false),
            (Kind::SERVICE, "Service", false),
            (Kind::ENDPOINT_SLICE, "EndpointSlice", false),
        ] {
            assert_eq!((kind.shown(), kind.required()), (name, required));
        }
        for kind in Kind::all() {
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
    fn every_kind_of_policy_is_watched() {
        for kind in PolicyKind::TIERED {
            let watched = Kind::all().filter(|it| it.objects() == Objects::Tiered(kind));
            assert_eq!(watched.count(), 1, "{}", kind.name());
        }
    }

    #[test]
    fn every_version_that_is_watched_is_one_that_is_decoded() {
        for kind in Kind::discovered() {
            for api in kind.apis() {
                let object = json!({
                    "apiVersion": api.api_version(), "kind": kind.name(), "metadata": {"name": "default", "namespace": "a"},
                    "spec": {"unknown": 1},
                });
                match decode_served(&object) {
                    Err(error) => assert!(error.fault.path.starts_with("spec"), "{error}"),
                    // They are in force by no means, or known by their names.
                    Ok(decoded) => {
                        let staged = matches!(kind.objects(), Objects::Staged);
                        assert!(
                            staged && !decoded[0].faults.is_empty() || kind.name() == "Profile",
                            "{decoded:?}"
                        );
                    }
                }
            }
        }
        for kind in Kind::all().filter(|kind| kind.asked_for()) {
            let object = json!({
                "apiVersion": kind.api().api_version(), "kind": kind.name(),
                "metadata": {"name": "x", "namespace": "a", "labels": {"kubernetes.io/service-name": "x"}},
                "spec": {"selector": {"a": "b"}},
            });
            assert!(
                decode_served(&object).unwrap()[0].input.is_some(),
                "{}",
                kind.name()
            );
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
        // And nothing that is not read: the rest is for Calico's API, and to see whether other kinds are there.
        let watched = |group: &str, plural: &str| {
            Kind::all()
                .flat_map(Kind::apis)
                .any(|api| (api.group, api.plural) == (group, plural))
        };
        let words = |rule: &Value, field: &str| -> Vec<String> {
            let words = rule[field].as_array().unwrap().iter();
            words.map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        for rule in &rules {
            let verbs = words(rule, "verbs");
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    let wanted = watched(&group, &resource) && verbs == ["list", "watch"]
                        || group == "projectcalico.org" && resource == "tiers" && verbs == ["get"]
                        || group == "projectcalico.org"
                            && resource
                                .strip_prefix("tier.")
                                .is_some_and(|kind| watched(&group, kind))
                            && verbs == ["list", "watch"]
                        || resource == "*" && verbs == ["list"];
                    assert!(wanted, "{verbs:?} {resource} of `{group}`");
                }
            }
        }
    }
}
