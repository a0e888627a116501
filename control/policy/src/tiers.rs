//! The policy model: an ordered list of tiers, each with ordered policies of ordered rules. Pure.
//!
//! `networking.k8s.io/v1` is one tier: its policies are additive (every rule allows, so their order only says which
//! rule is named) and isolating (what no rule allows is denied to the pods that it selects). Kinds whose rules deny or
//! pass get tiers of their own before and after it. What no tier decides is allowed.
//!
//! The model borrows from the cluster's objects; building it costs little.

use ipnet::IpNet;

use crate::{Cluster, ObjectKey, PortMatch, Selector};

/// Every policy in force.
#[derive(Debug)]
pub struct Model<'a> {
    /// In the order in which they decide.
    pub tiers: Vec<Tier<'a>>,
}

/// Policies that are decided together.
#[derive(Debug)]
pub struct Tier<'a> {
    /// What it is. Where it isolates, a pod that any of its policies selects in a direction is decided here: what no
    /// rule matches is denied.
    pub facts: TierFacts,
    /// In the order in which they decide; for additive tiers, by namespace and name.
    pub policies: Vec<Policy<'a>>,
}

/// What a tier is, apart from its policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierFacts {
    /// Its position among the tiers.
    pub number: u32,
    /// Its name in reasons.
    pub name: &'static str,
    /// Whether it isolates; see [`Tier`].
    pub isolates: bool,
}

/// The tier of `networking.k8s.io/v1`.
pub const NETWORK_POLICY_TIER: TierFacts = TierFacts {
    number: 0,
    name: NETWORK_POLICY,
    isolates: true,
};

/// One policy.
#[derive(Debug)]
pub struct Policy<'a> {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace and name.
    pub key: &'a ObjectKey,
    /// The pods that it selects.
    pub subjects: PodSet<'a>,
    /// Its ingress rules; None where it has no part in ingress.
    pub ingress: Option<Vec<Rule<'a>>>,
    /// Its egress rules; None where it has no part in egress.
    pub egress: Option<Vec<Rule<'a>>>,
}

/// Pods by namespace and label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodSet<'a> {
    /// Their namespaces.
    pub namespaces: NamespaceSet<'a>,
    /// Their labels.
    pub pods: &'a Selector,
}

/// Namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceSet<'a> {
    /// One, by name.
    Named(&'a str),
    /// By label.
    Matching(&'a Selector),
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
    /// The next tier decides.
    Pass,
    /// Later rules decide; meanwhile it is to be logged.
    Log,
}

/// One rule: ports AND peers.
#[derive(Clone, Debug)]
pub struct Rule<'a> {
    /// Its index in the policy's list for the direction.
    pub index: u32,
    /// What it does.
    pub action: Action,
    /// Who; None for everyone.
    pub peers: Option<Vec<Peer<'a>>>,
    /// Where to; None for every protocol and port.
    pub ports: Option<&'a [PortMatch]>,
}

/// One entry of a rule's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer<'a> {
    /// Pods.
    Pods(PodSet<'a>),
    /// Addresses, of pods too.
    Block {
        /// The block.
        cidr: IpNet,
        /// Parts of it that this peer does not match.
        except: &'a [IpNet],
    },
}

/// Tier and kind of `networking.k8s.io/v1` policies in reasons.
pub const NETWORK_POLICY: &str = "NetworkPolicy";

impl<'a> Model<'a> {
    /// The model of the cluster's policies.
    pub fn of(cluster: &'a Cluster) -> Self {
        Self {
            tiers: vec![Tier {
                facts: NETWORK_POLICY_TIER,
                policies: cluster
                    .policies
                    .values()
                    .map(|policy| network_policy(policy))
                    .collect(),
            }],
        }
    }
}

/// The model of one NetworkPolicy, of [`NETWORK_POLICY_TIER`].
pub fn network_policy(policy: &crate::NetworkPolicy) -> Policy<'_> {
    Policy {
        kind: NETWORK_POLICY,
        key: &policy.key,
        subjects: PodSet {
            namespaces: NamespaceSet::Named(&policy.key.namespace),
            pods: &policy.subjects,
        },
        ingress: rules(policy, policy.ingress.as_deref()),
        egress: rules(policy, policy.egress.as_deref()),
    }
}

fn rules<'a>(policy: &'a crate::NetworkPolicy, rules: Option<&'a [crate::Rule]>) -> Option<Vec<Rule<'a>>> {
    // An invalid policy isolates and allows nothing, whatever rules could be read.
    let rules = if policy.faults.is_empty() {
        rules?
    } else {
        rules.map(|_| &[] as &[_])?
    };
    let namespace = &policy.key.namespace;
    Some(
        rules
            .iter()
            .zip(0..)
            .map(|(rule, index)| self::rule(namespace, rule, index))
            .collect(),
    )
}

fn rule<'a>(namespace: &'a str, rule: &'a crate::Rule, index: u32) -> Rule<'a> {
    let peers = rule.peers.as_ref().map(|peers| {
        peers
            .iter()
            .map(|peer| match peer {
                crate::Peer::Pods { namespaces, pods } => Peer::Pods(PodSet {
                    namespaces: match namespaces {
                        Some(selector) => NamespaceSet::Matching(selector),
                        None => NamespaceSet::Named(namespace),
                    },
                    pods,
                }),
                crate::Peer::Block { cidr, except } => Peer::Block { cidr: *cidr, except },
            })
            .collect()
    });
    Rule {
        index,
        action: Action::Allow,
        peers,
        ports: rule.ports.as_deref(),
    }
}
