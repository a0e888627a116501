//! The policy model: an ordered list of tiers, each with ordered policies of ordered rules. Pure.
//!
//! `networking.k8s.io/v1` is one tier: its policies are additive (every rule allows, so their order only says which
//! rule is named) and isolating (what no rule allows is denied to the pods that it selects). Kinds whose rules deny or
//! pass ([`TieredPolicy`]) have tiers of their own before and after it. What no tier decides is allowed.
//!
//! The model borrows from the cluster's objects; building it costs little.

use ipnet::IpNet;

use crate::{
    Action, Cluster, ClusterTier, PolicyId, PolicyKind, PortMatch, Selector, TieredPolicy, TieredRule,
    Unplaced, unplaced::MARKED,
};

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
    /// In any order: [`Policy::rank`] is that in which they decide.
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

/// The tier before NetworkPolicies.
pub const ADMIN_TIER: TierFacts = TierFacts {
    number: 0,
    name: ClusterTier::Admin.name(),
    isolates: false,
};

/// The tier of `networking.k8s.io/v1`.
pub const NETWORK_POLICY_TIER: TierFacts = TierFacts {
    number: 1,
    name: PolicyKind::NetworkPolicy.name(),
    isolates: true,
};

/// The tier after NetworkPolicies.
pub const BASELINE_TIER: TierFacts = TierFacts {
    number: 2,
    name: ClusterTier::Baseline.name(),
    isolates: false,
};

/// Where a policy stands among those of its tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank {
    /// The smaller first.
    pub priority: u16,
    /// Then by these bytes.
    pub tie: String,
}

/// One policy.
#[derive(Debug)]
pub struct Policy<'a> {
    /// Its kind and name.
    pub id: PolicyId,
    /// The tier that it is of.
    pub tier: &'static TierFacts,
    /// Its order there.
    pub rank: Rank,
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

impl<'a> Model<'a> {
    /// The model of the cluster's policies. Where ipBlocks are read for pods without addresses, what rules of ordered kinds
    /// do to those is a rule of its own wherever it is not what the rule does.
    pub fn of(cluster: &'a Cluster) -> Self {
        let unplaced = cluster.unplaced.as_deref();
        let tiered = |tier: ClusterTier| {
            let policies = cluster.tiered.values().filter(move |policy| policy.tier == tier);
            policies
                .map(|policy| tiered_policy_as_read(policy, unplaced))
                .collect()
        };
        let network_policies = cluster.policies.values().map(|policy| network_policy(policy));
        Self {
            tiers: vec![
                Tier {
                    facts: ADMIN_TIER,
                    policies: tiered(ClusterTier::Admin),
                },
                Tier {
                    facts: NETWORK_POLICY_TIER,
                    policies: network_policies.collect(),
                },
                Tier {
                    facts: BASELINE_TIER,
                    policies: tiered(ClusterTier::Baseline),
                },
            ],
        }
    }
}

/// The model of one NetworkPolicy, of [`NETWORK_POLICY_TIER`]. Only names depend on its rank: by namespace, then by name.
pub fn network_policy(policy: &crate::NetworkPolicy) -> Policy<'_> {
    Policy {
        id: PolicyId::network_policy(&policy.key),
        tier: &NETWORK_POLICY_TIER,
        rank: Rank {
            priority: 0,
            tie: format!("{}\0{}", policy.key.namespace, policy.key.name),
        },
        subjects: PodSet {
            namespaces: NamespaceSet::Named(&policy.key.namespace),
            pods: &policy.subjects,
        },
        ingress: rules(policy, policy.ingress.as_deref()),
        egress: rules(policy, policy.egress.as_deref()),
    }
}

/// The model of one policy of [`ADMIN_TIER`] or [`BASELINE_TIER`].
pub fn tiered_policy(policy: &TieredPolicy) -> Policy<'_> {
    tiered_policy_as_read(policy, None)
}

fn tiered_policy_as_read<'a>(policy: &'a TieredPolicy, unplaced: Option<&Unplaced>) -> Policy<'a> {
    Policy {
        id: policy.id.clone(),
        tier: match policy.tier {
            ClusterTier::Admin => &ADMIN_TIER,
            ClusterTier::Baseline => &BASELINE_TIER,
        },
        rank: Rank {
            priority: policy.priority,
            tie: policy.tie(),
        },
        subjects: PodSet {
            namespaces: NamespaceSet::Matching(&policy.namespaces),
            pods: &policy.pods,
        },
        ingress: tiered_rules(&policy.ingress, unplaced),
        egress: tiered_rules(&policy.egress, unplaced),
    }
}

/// Without rules a policy has no part in a direction (TIERS 71).
fn tiered_rules<'a>(rules: &'a [TieredRule], unplaced: Option<&Unplaced>) -> Option<Vec<Rule<'a>>> {
    let mut out = Vec::with_capacity(rules.len());
    for (rule, index) in rules.iter().zip(0..) {
        // Peers of a cluster-wide policy name their namespaces by selector: there is no "own".
        let mut peers: Option<Vec<Peer<'_>>> = rule
            .peers
            .as_ref()
            .map(|peers| peers.iter().map(|it| peer("", it)).collect());
        let by_blocks = rule
            .peers
            .as_ref()
            .zip(unplaced)
            .and_then(|(peers, unplaced)| unplaced.action(rule.action, peers));
        let other = by_blocks.filter(|action| *action != rule.action);
        if by_blocks == Some(rule.action) {
            peers.iter_mut().for_each(|peers| peers.push(marked()));
        }
        let with = |action, peers| Rule {
            index,
            action,
            peers,
            ports: rule.ports.as_deref(),
        };
        out.push(with(rule.action, peers));
        out.extend(other.map(|action| with(action, Some(vec![marked()]))));
    }
    Some(out).filter(|rules| !rules.is_empty())
}

/// The pods without addresses, as [`Cluster::for_compiler`] marks them.
fn marked() -> Peer<'static> {
    static EVERYWHERE: Selector = Selector {
        requirements: Vec::new(),
    };
    Peer::Pods(PodSet {
        namespaces: NamespaceSet::Matching(&EVERYWHERE),
        pods: &MARKED,
    })
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
    let peers = rule.peers.as_ref();
    Rule {
        index,
        action: Action::Allow,
        peers: peers.map(|peers| peers.iter().map(|it| peer(namespace, it)).collect()),
        ports: rule.ports.as_deref(),
    }
}

fn peer<'a>(own: &'a str, peer: &'a crate::Peer) -> Peer<'a> {
    match peer {
        crate::Peer::Pods { namespaces, pods } => Peer::Pods(PodSet {
            namespaces: match namespaces {
                Some(selector) => NamespaceSet::Matching(selector),
                None => NamespaceSet::Named(own),
            },
            pods,
        }),
        crate::Peer::Block { cidr, except } => Peer::Block { cidr: *cidr, except },
    }
}
