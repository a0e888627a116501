//! What an explanation says: plain data, the stable JSON of `ringwall explain -o json`.

use std::net::IpAddr;

use ringwall_policy::{Decider, Labels};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The explanation of one flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who the source is.
    pub src: Party,
    /// Who the destination is.
    pub dst: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; None for a protocol without ports.
    pub port: Option<u16>,
    /// Source port, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Type of ICMP, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Code of ICMP, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Protocol and port in words, such as `80/TCP`.
    pub service: String,
    /// What the compiled snapshot says: it passes where both directions allow it.
    pub verdict: Word,
    /// The ends whose unknown address decides, as they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// What decides both directions before any policy; None where nothing does.
    pub exemption: Option<String>,
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
    /// Who decided, and which rules passed it on before, in the words and the order of `query`.
    pub reasons: Vec<Decider>,
    /// What else is worth knowing about this flow.
    pub notes: Vec<String>,
    /// Policy kinds that exist and are not evaluated, as `kind.group`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
    /// Changes after which the verdict would be the opposite, those that change the least besides first; at most three.
    pub changes: Vec<Change>,
    /// Why no change of a policy or label would do that; None where there are changes.
    pub no_change: Option<String>,
    /// Generation of the snapshot that answered; None offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// `allow`, `deny` or `depends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
    /// It depends on an address that is not known yet.
    Depends,
}

impl Word {
    /// Of whether it passes.
    pub fn of(allow: bool) -> Self {
        if allow { Self::Allow } else { Self::Deny }
    }

    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Self {
        Self::of(self == Self::Deny)
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Depends => "depends",
        })
    }
}

/// What an end of the flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartyKind {
    /// A live pod on the pod network.
    Pod,
    /// The template of a workload.
    Template,
    /// A node.
    Node,
    /// A pod on its node's network: the node, to policies.
    HostNetwork,
    /// Outside of the cluster.
    External,
    /// Inside a Service network.
    Service,
    /// An address of the pod network that no known pod or node has.
    Unknown,
}

/// One end of the flow, and how it is known who that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// As it was asked about.
    pub asked: String,
    /// What it is.
    pub kind: PartyKind,
    /// `namespace/name` of the pod, or the node's name; None where it has none.
    pub name: Option<String>,
    /// Its address; None for a pod or template without one.
    pub address: Option<IpAddr>,
    /// The node: itself, or the one that hosts the pod.
    pub node: Option<String>,
    /// The pod's labels.
    pub labels: Labels,
    /// The labels of the pod's namespace.
    pub namespace_labels: Labels,
    /// How it is known who it is.
    pub why: Vec<String>,
}

/// One direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// What it says.
    pub verdict: Word,
    /// `allow`, `deny`, `isolated`, `tier-default`, `profile`, `open`, `self`, `node`, `unknown` or `depends`, as in `query`.
    pub effect: String,
    /// Whose policies decide: the source's for egress, the destination's for ingress.
    pub subject: String,
    /// The decision in a sentence.
    pub why: String,
    /// Every policy of the subject's namespace, in order of name, between those of the Admin and of the Baseline tier in the
    /// order in which they decide; empty where the subject is no pod or an exemption decides.
    pub policies: Vec<PolicyTrace>,
}

/// What one policy has to do with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTrace {
    /// `namespace/name`, or the name of a cluster-wide one.
    pub policy: String,
    /// Kind of the object.
    pub kind: String,
    /// `Admin` or `Baseline`, or where anything is Calico's, the name of the tier; None for a NetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Its order in that tier, the smaller first; of Kubernetes' kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Its order in that tier, the smaller first, `none` last; of Calico's kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Whether its podSelector, or its subject, selects the subject.
    pub selects: bool,
    /// Why it selects it, or the first requirement that it fails at.
    pub selection: String,
    /// Whether it isolates the subject in this direction.
    pub isolates: bool,
    /// Which policyTypes say so, and whether they were written; None where it does not select the subject.
    pub isolation: Option<String>,
    /// Why it is invalid; empty for a valid one. An invalid NetworkPolicy isolates and allows nothing; of others, a rule that
    /// is not understood allows nothing, or denies everything if it was to deny or pass something.
    pub faults: Vec<FaultTrace>,
    /// Its rules of the direction: of a NetworkPolicy where it isolates, of others where it selects the subject.
    pub rules: Vec<RuleTrace>,
}

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultTrace {
    /// Path of the field.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Whether a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTrace {
    /// Its index in the policy's list of the direction.
    pub rule: usize,
    /// `allow`, `deny`, `pass` or `log`; None for a rule of a NetworkPolicy, which allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Whether it matches: ports AND peers AND conditions.
    pub matches: bool,
    /// Whether it is the one that decides, which `query` names: the first that matches.
    pub decides: bool,
    /// Whether it is the first of its tier that matches and passes the flow on to the next tier.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passes: bool,
    /// What it fails at first: `peers`, `ports` or `conditions`; None where it matches.
    pub failed_at: Option<String>,
    /// Its peers in order; None where it has none and every peer matches.
    pub peers: Option<Vec<EntryTrace>>,
    /// Its ports in order; None where it has none and everything matches.
    pub ports: Option<Vec<EntryTrace>>,
    /// What it asks for besides, all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<EntryTrace>,
}

/// Whether an entry of a rule's peers or ports matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryTrace {
    /// What it asks for.
    pub entry: String,
    /// Whether the flow has that.
    pub matches: bool,
    /// The condition that it fails at; None where it matches.
    pub why: Option<String>,
}

/// A change after which the verdict is the opposite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// How much is written or taken away: labels, selector requirements, peers, ports, rules.
    pub size: usize,
    /// What to do; all of it.
    pub edits: Vec<EditRecord>,
    /// What else would change.
    pub side_effects: SideEffects,
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EditRecord {
    /// `set-label`, `remove-label`, `add-peer`, `add-port`, `add-rule`, `add-except`, `add-policy`, `remove-peer`,
    /// `remove-port`, `remove-rule`, `remove-except` or `remove-policy`.
    pub action: String,
    /// `Kind name` or `Kind namespace/name`.
    pub object: String,
    /// Path of the field in the object.
    pub path: Option<String>,
    /// What is to be written there, as it stands in a manifest.
    pub value: Option<Value>,
    /// The step in a sentence.
    pub text: String,
    /// What is to be written, as YAML; the path is a comment in front of it where it is not a whole object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yaml: Option<String>,
}

/// Which other flows a change would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideEffects {
    /// Other pairs (source, destination) of the cluster's endpoints and the flow's ends for which some protocol and port
    /// changes.
    pub pairs: u64,
    /// Whether other protocols or ports between the same two ends change.
    pub other_ports: bool,
    /// Whether `pairs` is exact; always.
    pub exact: bool,
}
