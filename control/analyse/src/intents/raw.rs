//! What a file of intents says, word for word. Each struct refuses keys that it does not know.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

/// A file of assertions about who can reach whom, checked by `ringwall check --intents`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "ringwall intents")]
pub struct Intents {
    /// Version of this format.
    pub api_version: ApiVersion,
    /// `Intents`.
    pub kind: Kind,
    /// The assertions; names are unique in a file.
    #[schemars(with = "Vec<Assertion>")]
    pub assertions: Vec<Spanned<Assertion>>,
}

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only one.
    #[serde(rename = "ringwall.io/v1alpha1")]
    V1Alpha1,
}

/// Kind of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Kind {
    /// The only one.
    Intents,
}

/// One assertion: exactly one of `allow`, `deny` and `only`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assertion {
    /// What is asserted, in words.
    pub name: String,
    /// Every source reaches every destination at every port.
    pub allow: Option<Flows>,
    /// No source reaches any destination at any port.
    pub deny: Option<Flows>,
    /// These reach those, and no other does.
    pub only: Option<Only>,
    /// Whether sources or destinations that match nothing are fine; else the assertion fails as vacuous.
    #[serde(default)]
    pub may_be_empty: bool,
}

/// Flows from each source to each destination.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flows {
    /// Sources: whatever any entry matches.
    pub from: Vec<Ends>,
    /// Destinations: whatever any entry matches.
    pub to: Vec<Ends>,
    /// Such as `5432/TCP`, `8000-8100/UDP`, `SCTP`, or `other` for all protocols without ports; everything where absent.
    pub ports: Option<Vec<String>>,
}

/// Flows that pass, and others that do not.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Only {
    /// Whose others are shut out: `ingress` (default): only `from` reaches `to`; `egress`: `from` reaches nothing
    /// but `to`.
    #[serde(default)]
    pub direction: Direction,
    /// Sources: whatever any entry matches.
    pub from: Vec<Ends>,
    /// Destinations: whatever any entry matches.
    pub to: Vec<Ends>,
    /// As in `allow`. About other ports nothing is said, unless `otherPorts` is `deny`.
    pub ports: Option<Vec<String>>,
    /// Ports that `ports` does not name.
    #[serde(default)]
    pub other_ports: OtherPorts,
}

/// Whose others are shut out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Other sources of the destinations.
    #[default]
    Ingress,
    /// Other destinations of the sources.
    Egress,
}

/// What is said about ports that are not named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OtherPorts {
    /// Nothing.
    #[default]
    Ignore,
    /// Nothing passes: to the destinations (ingress), from the sources (egress).
    Deny,
}

/// Some ends: one of `any`, `outside`, `nodes`, `pod`, `service`, `cidr`, or pods by `namespace`, `namespaceSelector` and
/// `podSelector`, which must all match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ends {
    /// `true`: every pod and every address there is.
    pub any: Option<bool>,
    /// `true`: every address outside of the cluster: of no pod, node, pod network or Service network.
    pub outside: Option<bool>,
    /// `true`: every address of a node.
    pub nodes: Option<bool>,
    /// A pod or workload, as `namespace/name`.
    pub pod: Option<String>,
    /// In `to`: the endpoints of a Service, as `namespace/name`. `ports` are those of the Service then.
    pub service: Option<String>,
    /// Addresses in a network (or one address), pods' included.
    pub cidr: Option<String>,
    /// Parts of `cidr` that are not meant.
    #[serde(default)]
    pub except: Vec<String>,
    /// Pods of the namespace with this name.
    pub namespace: Option<String>,
    /// Pods of namespaces with these labels.
    pub namespace_selector: Option<Selector>,
    /// Pods with these labels; of every namespace unless one of the others says which.
    pub pod_selector: Option<Selector>,
}

/// A label selector, as in a NetworkPolicy; empty: everything.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels and their values.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default)]
    pub match_expressions: Vec<Expression>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// How its value is tested.
    pub operator: Operator,
    /// For `In` and `NotIn`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Operator {
    /// Present with one of the values.
    In,
    /// Absent, or with another value.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}
