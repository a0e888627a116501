//! The policy model: an ordered list of tiers, each with ordered policies of ordered rules. Pure.
//!
//! A pod is decided by the tiers in order. A tier counts for a pod in a direction if one of its policies selects the pod and has
//! a part in that direction; then the first rule that matches decides, and what none matches is denied, or passed on, as the tier
//! says. What no tier decides is allowed (TIERS 79, 103).
//!
//! `networking.k8s.io/v1` is one tier: all of its rules allow, and what none of them allows is denied to the pods that its
//! policies select. Within the tier they stand at one order (TIERS 94), so that policies of other kinds can come before, between
//! and after them.
//!
//! The model borrows from the cluster's objects; building it costs little.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    Action, Cluster, DEFAULT_TIER, DenialAnswer, KUBE_ADMIN, KUBE_BASELINE, ObjectKey, Order, PolicyId,
    PolicyKind, PortMatch, Selector, TierDefault, TieredPolicy, TieredRule, Unplaced, unplaced::MARKED,
};

/// Every policy in force.
#[derive(Debug)]
pub struct Model<'a> {
    /// The tiers.
    pub tiers: Tiers,
    /// The policies, in any order: [`Policy::tier`] and [`Policy::rank`] are that in which they decide.
    pub policies: Vec<Policy<'a>>,
}

/// What a tier is, apart from its policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierFacts {
    /// Its position among the tiers.
    pub number: u32,
    /// Its name in reasons (TIERS 105).
    pub name: String,
    /// Whether it denies to a pod that one of its policies selects in a direction what none of their rules matches.
    pub isolates: bool,
}

/// The tiers of a cluster, in the order in which they decide (TIERS 79.2, 101).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers {
    by_name: BTreeMap<String, Arc<TierFacts>>,
    network_policies: Arc<TierFacts>,
    /// Whether policies of other kinds may stand between NetworkPolicies.
    mixed: bool,
}

impl Tiers {
    /// Those of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        let calico = cluster.has_calico();
        // Missing ones last, then by order and name.
        let mut all: BTreeMap<&str, (bool, Order, TierDefault)> = BTreeMap::new();
        for policy in cluster.tiered.values() {
            all.insert(&policy.tier, (true, Order::LAST, TierDefault::Deny));
        }
        let built_in = crate::Tier::built_in();
        for tier in cluster.tiers.values().map(|tier| &**tier).chain(&built_in) {
            all.insert(&tier.name, (false, tier.order, tier.default));
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by(|(name, one), (other_name, other)| {
            (one.0, one.1, name).cmp(&(other.0, other.1, other_name))
        });
        let facts = |((name, (_, _, default)), number): ((&str, (bool, Order, TierDefault)), u32)| {
            let facts = TierFacts {
                number,
                name: reason_name(name, calico).to_owned(),
                isolates: default == TierDefault::Deny,
            };
            (name.to_owned(), Arc::new(facts))
        };
        let by_name: BTreeMap<String, Arc<TierFacts>> = all.into_iter().zip(0..).map(facts).collect();
        let network_policies = by_name.get(DEFAULT_TIER).map(Arc::clone);
        Self {
            mixed: cluster.mixes_network_policies(),
            network_policies: network_policies.unwrap_or_else(|| {
                Arc::new(TierFacts {
                    number: u32::MAX,
                    name: DEFAULT_TIER.to_owned(),
                    isolates: true,
                })
            }),
            by_name,
        }
    }

    /// The tier of NetworkPolicies.
    pub fn network_policies(&self) -> &Arc<TierFacts> {
        &self.network_policies
    }

    /// A tier by name, of those that exist or that a policy names.
    pub fn named(&self, name: &str) -> &Arc<TierFacts> {
        self.by_name.get(name).unwrap_or(&self.network_policies)
    }

    /// The tiers, in the order in which they decide.
    pub fn in_order(&self) -> Vec<&Arc<TierFacts>> {
        let mut tiers: Vec<&Arc<TierFacts>> = self.by_name.values().collect();
        tiers.sort_by_key(|tier| tier.number);
        tiers
    }

    /// Where a NetworkPolicy stands.
    pub fn rank_of_network_policy(&self, key: &ObjectKey) -> Rank {
        let tie = match self.mixed {
            true => PolicyId::network_policy(key).tie(),
            // They all allow, so their order only says which of them is named.
            false => format!("{}\0{}", key.namespace, key.name),
        };
        Rank {
            order: Order::NETWORK_POLICY,
            tie,
        }
    }
}

/// What reasons call a tier: where nothing is Calico's, by what its policies are.
fn reason_name(name: &str, calico: bool) -> &str {
    match name {
        _ if calico => name,
        KUBE_ADMIN => "Admin",
        KUBE_BASELINE => "Baseline",
        DEFAULT_TIER => PolicyKind::NetworkPolicy.name(),
        _ => name,
    }
}

impl Cluster {
    /// Whether any object is Calico's: then tiers are called by its names.
    pub fn has_calico(&self) -> bool {
        // Kinds are in order, Calico's last.
        let last = self.tiered.get_max();
        !self.tiers.is_empty() || last.is_some_and(|(id, _)| id.kind.is_calico())
    }

    /// The ranges of source ports that rules ask for, first and last; of names, all that they are of some pod.
    pub fn source_ports(&self) -> impl Iterator<Item = (u16, u16)> {
        let rules = self.tiered.values().flat_map(|policy| policy.rules());
        let (mut ranges, mut names) = (BTreeSet::new(), BTreeSet::new());
        for port in rules.flat_map(|rule| rule.conditions.named_source_ports()) {
            match port {
                PortMatch::Range { lo, hi, .. } => drop(ranges.insert((*lo, *hi))),
                PortMatch::All(_) => drop(ranges.insert((0, u16::MAX))),
                PortMatch::Named { protocol, name } => drop(names.insert((*protocol, name.as_str()))),
                PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => {}
            }
        }
        if !names.is_empty() {
            let ports = self.pods.values().flat_map(|pod| &pod.named_ports);
            let asked = ports.filter(|port| names.contains(&(port.protocol, port.name.as_str())));
            ranges.extend(asked.map(|port| (port.number, port.number)));
        }
        ranges.into_iter()
    }

    /// Whether a policy of another kind stands at the order of NetworkPolicies in their tier.
    pub fn mixes_network_policies(&self) -> bool {
        let stands_there =
            |policy: &Arc<TieredPolicy>| policy.tier == DEFAULT_TIER && policy.order == Order::NETWORK_POLICY;
        self.tiered.values().any(stands_there)
    }
}

/// Where a policy stands among those of its tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank {
    /// The smaller first.
    pub order: Order,
    /// Then by these bytes.
    pub tie: String,
}

/// One policy.
#[derive(Debug)]
pub struct Policy<'a> {
    /// Its kind and name.
    pub id: PolicyId,
    /// The tier that it is of.
    pub tier: Arc<TierFacts>,
    /// Its order there.
    pub rank: Rank,
    /// What the sender of a packet gets that it denies, if it says so.
    pub answer: Option<DenialAnswer>,
    /// The pods that it selects: those of any of these.
    pub subjects: Vec<PodSet<'a>>,
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
    /// Its index in the object's list for the direction; alternatives of one rule have the same.
    pub index: u32,
    /// What it does.
    pub action: Action,
    /// Who; None for everyone.
    pub peers: Option<Vec<Peer<'a>>>,
    /// Where to; None for every protocol and port.
    pub ports: Option<&'a [PortMatch]>,
    /// What has to hold of the peer besides.
    pub of_peer: Vec<Condition<'a>>,
    /// What has to hold of the pod that the policy selects.
    pub of_own: Vec<Condition<'a>>,
    /// Protocols and ports that it does not match.
    pub not_ports: &'a [PortMatch],
    /// Source ports; None for all.
    pub source_ports: Option<&'a [PortMatch]>,
    /// Source ports that it does not match.
    pub not_source_ports: &'a [PortMatch],
}

impl<'a> Rule<'a> {
    /// Every peer that it names, those of its conditions among them.
    pub fn named_peers(&self) -> impl Iterator<Item = &Peer<'a>> {
        let conditions = self.of_peer.iter().chain(&self.of_own);
        let named = conditions.flat_map(|condition| &condition.any);
        self.peers.iter().flatten().chain(named)
    }

    /// Every protocol and port that it names, those that it does not match among them.
    pub fn named_ports(&self) -> impl Iterator<Item = &'a PortMatch> {
        self.ports.unwrap_or_default().iter().chain(self.not_ports)
    }

    /// Every source port that it names, those that it does not match among them.
    pub fn named_source_ports(&self) -> impl Iterator<Item = &'a PortMatch> {
        let some = self.source_ports.unwrap_or_default().iter();
        some.chain(self.not_source_ports)
    }
}

/// What one end of a flow has to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition<'a> {
    /// Whether it has to be none of these instead.
    pub negated: bool,
    /// One of these.
    pub any: Vec<Peer<'a>>,
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
    /// The addresses of a set of [`Cluster::address_sets`], by its name.
    Addresses(&'a str),
}

impl<'a> Model<'a> {
    /// The model of the cluster's policies. Where ipBlocks are read for pods without addresses, what rules of ordered kinds
    /// do to those is a rule of its own wherever it is not what the rule does.
    pub fn of(cluster: &'a Cluster) -> Self {
        let unplaced = cluster.unplaced.as_deref().map(|unplaced| (cluster, unplaced));
        let tiers = Tiers::of(cluster);
        let network_policies = cluster.policies.values();
        let tiered = cluster.tiered.values();
        let policies = network_policies
            .map(|policy| network_policy(policy, &tiers))
            .chain(tiered.map(|policy| tiered_policy_as_read(policy, &tiers, unplaced)))
            .collect();
        Self { tiers, policies }
    }
}

/// The model of one NetworkPolicy.
pub fn network_policy<'a>(policy: &'a crate::NetworkPolicy, tiers: &Tiers) -> Policy<'a> {
    Policy {
        id: PolicyId::network_policy(&policy.key),
        tier: Arc::clone(tiers.network_policies()),
        rank: tiers.rank_of_network_policy(&policy.key),
        answer: policy.answer,
        subjects: vec![PodSet {
            namespaces: NamespaceSet::Named(&policy.key.namespace),
            pods: &policy.subjects,
        }],
        ingress: rules(policy, policy.ingress.as_deref()),
        egress: rules(policy, policy.egress.as_deref()),
    }
}

/// The model of one policy of an ordered kind.
pub fn tiered_policy<'a>(policy: &'a TieredPolicy, tiers: &Tiers) -> Policy<'a> {
    tiered_policy_as_read(policy, tiers, None)
}

/// How blocks are read for pods without addresses, and the state that has their address sets.
type Reading<'u> = (&'u Cluster, &'u Unplaced);

fn tiered_policy_as_read<'a>(
    policy: &'a TieredPolicy,
    tiers: &Tiers,
    unplaced: Option<Reading<'_>>,
) -> Policy<'a> {
    let rules = |rules: &'a Option<Vec<TieredRule>>| rules.as_deref().map(|it| tiered_rules(it, unplaced));
    Policy {
        id: policy.id.clone(),
        tier: Arc::clone(tiers.named(&policy.tier)),
        rank: Rank {
            order: policy.order,
            tie: policy.id.tie(),
        },
        answer: policy.answer,
        subjects: policy
            .subjects
            .iter()
            .map(|subjects| PodSet {
                namespaces: NamespaceSet::Matching(&subjects.namespaces),
                pods: &subjects.pods,
            })
            .collect(),
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
    }
}

/// Rules that log decide nothing, and are left out.
fn tiered_rules<'a>(rules: &'a [TieredRule], unplaced: Option<Reading<'_>>) -> Vec<Rule<'a>> {
    let mut out = Vec::with_capacity(rules.len());
    // What alternatives of one rule possibly pass on comes after what any of them surely does.
    let mut of_others: Vec<Rule<'a>> = Vec::new();
    let mut before = None;
    let deciding = TieredRule::numbered(rules).filter(|(_, rule)| rule.action != Action::Log);
    for (index, rule) in deciding {
        let own = (index, rule.action);
        if before.replace(own) != Some(own) {
            out.append(&mut of_others);
        }
        let index = index as u32;
        let read = |action, possibly| Rule {
            action,
            ..as_read(rule, index, unplaced, possibly)
        };
        let Some((_, unplaced)) = unplaced else {
            out.push(read(rule.action, false));
            continue;
        };
        match rule.action {
            Action::Pass => {
                let (surely, perhaps) = (read(Action::Pass, false), read(unplaced.may_pass(), true));
                let ends = |rule: &Rule<'a>| (rule.peers.clone(), rule.of_peer.clone(), rule.of_own.clone());
                let same = ends(&surely) == ends(&perhaps);
                out.push(surely);
                of_others.extend((!same).then_some(perhaps));
            }
            action => out.push(read(action, unplaced.reads_possibly(action))),
        }
    }
    out.append(&mut of_others);
    out
}

/// A rule where blocks match pods without addresses surely, or else possibly.
fn as_read<'a>(rule: &'a TieredRule, index: u32, unplaced: Option<Reading<'_>>, possibly: bool) -> Rule<'a> {
    // Peers of these policies name their namespaces by selector: there is no "own".
    let peers = |peers: &'a [crate::Peer], possibly| {
        let held = unplaced.is_some_and(|(cluster, unplaced)| unplaced.hold(cluster, peers, possibly));
        let named = peers.iter().map(|it| peer("", it));
        named.chain(held.then(marked)).collect::<Vec<Peer<'a>>>()
    };
    let conditions = |conditions: &'a [crate::Condition]| {
        let conditions = conditions.iter().map(|condition| Condition {
            negated: condition.negated,
            any: peers(&condition.any, possibly != condition.negated),
        });
        conditions.collect()
    };
    Rule {
        index,
        action: rule.action,
        peers: rule.peers.as_deref().map(|entries| peers(entries, possibly)),
        ports: rule.ports.as_deref(),
        of_peer: conditions(&rule.conditions.peer),
        of_own: conditions(&rule.conditions.own),
        not_ports: &rule.conditions.not_ports,
        source_ports: rule.conditions.source_ports.as_deref(),
        not_source_ports: &rule.conditions.not_source_ports,
    }
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
        of_peer: Vec::new(),
        of_own: Vec::new(),
        not_ports: &[],
        source_ports: None,
        not_source_ports: &[],
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
        crate::Peer::Addresses(set) => Peer::Addresses(set),
    }
}
