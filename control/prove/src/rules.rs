//! The policies, taken apart: rules in the order that decides, and every distinct thing that a rule asks of a peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use ipnet::IpNet;
use ringwall_dataplane::classify::{DenialAnswer, PolicyName};
use ringwall_policy::{
    Action, Cluster, Labels, NetworkPolicy, Operator, Peer, PortMatch, Protocol, Selector, TieredPolicy,
    TieredRule,
};

use super::{
    matching::{matches, type_borders},
    policy::{Part, Policy, Tiers},
    ports::Denial,
    words::NewWords,
};

/// Whose policies decide: the destination's or the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The rules of a policy; None where it does not isolate in this direction.
    pub(super) fn rules(self, policy: &NetworkPolicy) -> Option<&[ringwall_policy::Rule]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }

    /// The rules of a policy whose rules decide in order.
    pub(super) fn ordered_rules(self, policy: &TieredPolicy) -> Option<&[TieredRule]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Whose port's name a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The pod's that the policy selects.
    Own,
    /// The peer's.
    Peer,
}

impl Whose {
    pub(super) const BOTH: [Self; 2] = [Self::Own, Self::Peer];
}

/// The protocol and name of an entry that has one.
fn named(entry: &PortMatch) -> Option<(Protocol, &str)> {
    match entry {
        PortMatch::Named { protocol, name } => Some((*protocol, name)),
        _ => None,
    }
}

/// A rule and where it stands.
#[derive(Debug)]
pub(super) struct Rule {
    /// Index of its policy.
    pub policy: u32,
    pub tier: u32,
    pub action: Action,
    pub direction: Direction,
    /// Where it stands in the policy's list of the direction.
    pub place: u32,
    /// The index of the object's rule that it is: alternatives of one rule have the same.
    pub index: u32,
    /// Pod terms that it names, ascending; None for everyone.
    pub peers: Option<Terms>,
    /// What the peer has to be besides.
    pub peer: Vec<Demand>,
    /// What the pod has to be that its policy selects.
    pub own: Vec<Demand>,
}

/// Protocols and ports of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports<'a> {
    /// One of these; None for all.
    pub some: Option<&'a [PortMatch]>,
    /// And none of these.
    pub not: &'a [PortMatch],
    /// From one of these source ports; None for all.
    pub from: Option<&'a [PortMatch]>,
    /// And from none of these.
    pub not_from: &'a [PortMatch],
}

impl<'a> Ports<'a> {
    /// Whether it is all of them.
    pub(super) fn is_all(self) -> bool {
        self.some.is_none() && self.not.is_empty() && self.from.is_none() && self.not_from.is_empty()
    }

    /// Every entry.
    pub(super) fn entries(self) -> impl Iterator<Item = &'a PortMatch> {
        self.some.into_iter().flatten().chain(self.not)
    }

    /// Every entry of source ports.
    pub(super) fn source_entries(self) -> impl Iterator<Item = &'a PortMatch> {
        self.from.into_iter().flatten().chain(self.not_from)
    }

    /// Protocols and names of one end's ports, in a rule of a direction: a port's name is the destination's, a source port's the
    /// source's.
    pub(super) fn names_of(
        self,
        whose: Whose,
        direction: Direction,
    ) -> impl Iterator<Item = (Protocol, &'a str)> {
        let (some, not) = match (whose, direction) {
            (Whose::Own, Direction::Ingress) | (Whose::Peer, Direction::Egress) => (self.some, self.not),
            (Whose::Peer, Direction::Ingress) | (Whose::Own, Direction::Egress) => (self.from, self.not_from),
        };
        some.into_iter().flatten().chain(not).filter_map(named)
    }
}

impl<'a> From<Part<'a>> for Ports<'a> {
    fn from(part: Part<'a>) -> Self {
        Self {
            some: part.ports,
            not: part.not_ports,
            from: part.source_ports,
            not_from: part.not_source_ports,
        }
    }
}

/// One of these, or none of them.
#[derive(Debug)]
pub(super) struct Demand {
    pub none: bool,
    pub of: Terms,
}

/// What a rule asks of a peer: any of these.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// Numbers of pod terms, ascending.
    pub pods: Vec<u32>,
    /// Numbers of blocks, ascending.
    pub blocks: Vec<u32>,
}

/// Pods by selectors, with the namespace that stands for "the policy's own".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PodTerm {
    namespaces: Namespaces,
    pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Namespaces {
    Own(String),
    Matching(Selector),
}

/// What a rule names by addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Block {
    /// An ipBlock.
    Cidr { cidr: IpNet, except: Vec<IpNet> },
    /// The address set of this name, whatever it holds.
    Set(String),
}

impl Block {
    /// Prefixes outside of which it holds nothing.
    pub(super) fn prefixes(&self, cluster: &Cluster) -> Vec<IpNet> {
        match self {
            Self::Cidr { cidr, .. } => vec![*cidr],
            Self::Set(name) => {
                let set = cluster.address_sets.get(name);
                set.map_or_else(Vec::new, |set| set.iter().copied().collect())
            }
        }
    }

    /// Parts of them that it does not hold.
    pub(super) fn holes(&self) -> &[IpNet] {
        match self {
            Self::Cidr { except, .. } => except,
            Self::Set(_) => &[],
        }
    }
}

/// A pod, as policies select it.
#[derive(Clone, Copy)]
pub(super) struct Selected<'a> {
    pub namespace: &'a str,
    pub namespace_labels: &'a Labels,
    pub labels: &'a Labels,
}

/// Selectors of namespaces, each once, with the pod terms that have them.
#[derive(Debug, Default)]
struct NamespaceSelectors {
    selectors: Vec<(Selector, Vec<u32>)>,
    numbers: HashMap<Selector, usize>,
    /// Those of which a namespace needs one of some values of a key, by key and value: each by one of its keys.
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    others: Vec<usize>,
}

impl NamespaceSelectors {
    fn add(&mut self, selector: &Selector, term: u32) {
        if let Some(number) = self.numbers.get(selector) {
            self.selectors[*number].1.push(term);
            return;
        }
        let number = self.selectors.len();
        self.numbers.insert(selector.clone(), number);
        self.selectors.push((selector.clone(), vec![term]));
        let needed = selector.requirements.iter().find_map(|requirement| {
            let Operator::In(values) = &requirement.operator else {
                return None;
            };
            Some((&requirement.key, values))
        });
        match needed {
            Some((key, values)) => {
                let of_key = self.by_label.entry_ref(key.as_str()).or_default();
                for value in values {
                    of_key.entry_ref(value.as_str()).or_default().push(number);
                }
            }
            None => self.others.push(number),
        }
    }

    /// Pod terms whose selector matches a namespace, in any order.
    fn terms_of(&self, labels: &Labels) -> impl Iterator<Item = u32> {
        let labelled = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(key.as_str())?.get(value.as_str()));
        let some = labelled.flatten().chain(&self.others);
        let some = some.map(|number| &self.selectors[*number]);
        let matching = some.filter(move |(selector, _)| matches(selector, labels));
        matching.flat_map(|(_, terms)| terms.iter().copied())
    }
}

/// So many pod terms are put to a namespace one by one.
const FEW_TERMS: usize = 16;

/// Every policy of a cluster.
#[derive(Debug, Default)]
pub(super) struct Rules {
    tiers: Tiers,
    /// Those that were replaced or deleted included: numbers are not given out twice.
    policies: Vec<Policy>,
    /// First rule of each policy, per direction.
    first: Vec<[u32; 2]>,
    rules: Vec<Rule>,
    /// NetworkPolicies in force, in the order that decides.
    of_namespace: HashMap<String, Vec<u32>>,
    /// Policies of other kinds in force, likewise.
    tiered: Vec<u32>,
    /// Lists of policies of one tier, each once.
    policy_lists: Vec<Vec<u32>>,
    policy_list_numbers: HashMap<Vec<u32>, u32>,
    terms: Vec<PodTerm>,
    term_numbers: HashMap<PodTerm, u32>,
    own_terms: HashMap<String, Vec<u32>>,
    other_terms: Vec<u32>,
    namespace_selectors: NamespaceSelectors,
    blocks: Vec<Block>,
    block_numbers: HashMap<Block, u32>,
    /// Keys of pod labels that some selector names.
    keys: BTreeSet<String>,
    /// Names of ports that rules ask for, of each end.
    port_names: [BTreeMap<String, BTreeSet<Protocol>>; 2],
    /// Those of them that are new since this was last asked.
    new_words: NewWords,
}

impl Rules {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let mut this = Self {
            tiers: Tiers::of(cluster),
            ..Self::default()
        };
        for policy in cluster.policies.values() {
            this.add(Policy::Network(Arc::clone(policy)));
        }
        for policy in cluster.tiered.values() {
            this.add(Policy::Tiered(Arc::clone(policy)));
        }
        this
    }

    /// Adds a policy that is not there.
    pub(super) fn add(&mut self, policy: Policy) {
        let number = self.policies.len() as u32;
        let place = self.tiers.place(&policy);
        let before = |other: &u32| self.tiers.place(&self.policies[*other as usize]) < place;
        let own = match policy {
            Policy::Network(_) => self.of_namespace.entry_ref(policy.namespace()).or_default(),
            Policy::Tiered(_) => &mut self.tiered,
        };
        own.insert(own.partition_point(before), number);
        for pods in policy.pods() {
            self.note_keys(pods);
        }
        let mut first = [0; 2];
        for (direction, first) in Direction::BOTH.into_iter().zip(&mut first) {
            *first = self.rules.len() as u32;
            let mut begun = 0_u32;
            for place in 0..policy.len(direction) {
                let Some(part) = policy.part(direction, place) else {
                    continue;
                };
                begun += u32::from(place == 0 || !part.continues);
                let peers = part.peers.map(|peers| self.terms(policy.namespace(), peers));
                let demands = part.demands.map(|demands| {
                    let each = demands.iter().map(|condition| Demand {
                        none: condition.negated,
                        of: self.terms(policy.namespace(), &condition.any),
                    });
                    each.collect::<Vec<Demand>>()
                });
                let [peer, own] = demands;
                for whose in Whose::BOTH {
                    for (protocol, name) in Ports::from(part).names_of(whose, direction) {
                        let names = &mut self.port_names[whose as usize];
                        if names.entry(name.to_owned()).or_default().insert(protocol) {
                            let port = (protocol, name.to_owned());
                            if whose == Whose::Peer {
                                self.new_words.peer_ports.insert(port.clone());
                            }
                            self.new_words.ports.insert(port);
                        }
                    }
                }
                self.rules.push(Rule {
                    policy: number,
                    tier: self.tiers.tier_of(&policy),
                    action: part.action,
                    direction,
                    place,
                    index: begun - 1,
                    peers,
                    peer,
                    own,
                });
            }
        }
        self.first.push(first);
        self.policies.push(policy);
    }

    /// Takes a policy out of force.
    pub(super) fn remove(&mut self, policy: &Policy) {
        let stays = |number: &u32| !self.policies[*number as usize].is(policy);
        match policy {
            Policy::Network(_) => {
                if let Some(own) = self.of_namespace.get_mut(policy.namespace()) {
                    own.retain(stays);
                }
            }
            Policy::Tiered(_) => self.tiered.retain(stays),
        }
    }

    /// Label keys and names of ports that were not asked for when this was last asked.
    pub(super) fn take_new_words(&mut self) -> NewWords {
        std::mem::take(&mut self.new_words)
    }

    /// Policies that ever were.
    pub(super) fn policies_ever(&self) -> usize {
        self.policies.len()
    }

    /// Takes the peers of a rule apart, of a policy in this namespace.
    fn terms(&mut self, own: &str, peers: &[Peer]) -> Terms {
        let mut terms = Terms::default();
        for peer in peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    self.note_keys(pods);
                    let term = PodTerm {
                        namespaces: match namespaces {
                            None => Namespaces::Own(own.to_owned()),
                            Some(selector) => Namespaces::Matching(selector.clone()),
                        },
                        pods: pods.clone(),
                    };
                    terms.pods.push(self.term(term));
                }
                Peer::Block { cidr, except } => {
                    let (cidr, except) = (*cidr, except.clone());
                    terms.blocks.push(self.block(Block::Cidr { cidr, except }));
                }
                Peer::Addresses(set) => terms.blocks.push(self.block(Block::Set(set.clone()))),
            }
        }
        for list in [&mut terms.pods, &mut terms.blocks] {
            list.sort_unstable();
            list.dedup();
        }
        terms
    }

    fn block(&mut self, block: Block) -> u32 {
        let next = self.blocks.len() as u32;
        let number = *self.block_numbers.entry(block.clone()).or_insert(next);
        if number == next {
            self.blocks.push(block);
        }
        number
    }

    /// The number of an address set that some rule named.
    pub(super) fn address_set(&self, name: &str) -> Option<u32> {
        self.block_numbers.get(&Block::Set(name.to_owned())).copied()
    }

    /// Whether a block is an address set, so that it can hold an address now and not then.
    pub(super) fn is_address_set(&self, block: u32) -> bool {
        matches!(self.blocks[block as usize], Block::Set(_))
    }

    fn term(&mut self, term: PodTerm) -> u32 {
        let next = self.terms.len() as u32;
        let number = *self.term_numbers.entry(term.clone()).or_insert(next);
        if number == next {
            match &term.namespaces {
                Namespaces::Own(namespace) => {
                    self.own_terms
                        .entry_ref(namespace.as_str())
                        .or_default()
                        .push(next);
                }
                Namespaces::Matching(selector) => {
                    self.other_terms.push(next);
                    self.namespace_selectors.add(selector, next);
                }
            }
            self.terms.push(term);
        }
        number
    }

    fn note_keys(&mut self, selector: &Selector) {
        for requirement in &selector.requirements {
            if !self.keys.contains(&requirement.key) {
                self.keys.insert(requirement.key.clone());
                self.new_words.keys.insert(requirement.key.clone());
            }
        }
    }

    /// Whether some selector of pods names this label key.
    pub(super) fn names_key(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Whether rules ask for a port of this name and protocol of an end.
    pub(super) fn names_port(&self, whose: Whose, protocol: Protocol, name: &str) -> bool {
        self.port_names[whose as usize]
            .get(name)
            .is_some_and(|protocols| protocols.contains(&protocol))
    }

    /// Pod terms from a number on that a pod of this namespace can match, by the namespace alone; ascending.
    pub(super) fn terms_of_namespace(&self, name: &str, labels: &Labels, first: u32) -> Vec<u32> {
        let own = self.own_terms.get(name).into_iter().flatten();
        let own = own.filter(|term| **term >= first);
        let mut terms: Vec<u32> = own.copied().collect();
        let others = &self.other_terms[self.other_terms.partition_point(|term| *term < first)..];
        if others.len() > FEW_TERMS {
            let others = self.namespace_selectors.terms_of(labels);
            terms.extend(others.filter(|term| *term >= first));
        } else {
            terms.extend(others.iter().filter(|term| {
                matches!(&self.terms[**term as usize].namespaces, Namespaces::Matching(selector) if matches(selector, labels))
            }));
        }
        terms.sort_unstable();
        terms
    }

    /// Which of these pod terms match a pod's labels.
    pub(super) fn matching_terms(&self, of_namespace: &[u32], labels: &Labels) -> Vec<u32> {
        let holds = |term: &&u32| matches(&self.terms[**term as usize].pods, labels);
        of_namespace.iter().filter(holds).copied().collect()
    }

    /// Policies of kinds other than NetworkPolicy that may select pods of this namespace, in the order that decides.
    pub(super) fn tiered_of_namespace(&self, name: &str, labels: &Labels) -> Vec<u32> {
        let selects = |number: &&u32| self.policies[**number as usize].selects_in(name, labels);
        self.tiered.iter().filter(selects).copied().collect()
    }

    /// Policies that select a pod and have a part in a direction, in the order that decides; `tiered` are those of its
    /// namespace.
    pub(super) fn deciding(&self, of: Selected<'_>, tiered: &[u32], direction: Direction) -> Vec<u32> {
        let own = self.of_namespace.get(of.namespace).map_or(&[][..], Vec::as_slice);
        let mut policies: Vec<u32> = self.selecting(own, of, direction).collect();
        let alone = policies.len();
        policies.extend(self.selecting(tiered, of, direction));
        if alone > 0 && policies.len() > alone {
            policies.sort_by_cached_key(|number| self.tiers.place(&self.policies[*number as usize]));
        }
        policies
    }

    /// Those of these policies that have a part in a direction and select a pod.
    pub(super) fn selecting(
        &self,
        policies: &[u32],
        of: Selected<'_>,
        direction: Direction,
    ) -> impl Iterator<Item = u32> {
        let selects = move |number: &u32| {
            let policy = &self.policies[*number as usize];
            policy.governs(direction) && policy.selects(of.namespace, of.namespace_labels, of.labels)
        };
        policies.iter().copied().filter(selects)
    }

    /// The tiers that deny what these policies, in order, say nothing about (TIERS 79.3).
    pub(super) fn denials(&mut self, policies: &[u32]) -> Vec<Denial> {
        let mut denials: Vec<Denial> = Vec::new();
        let mut rest = policies;
        while let Some(first) = rest.first() {
            let tier = self.tier_of(*first);
            let of_tier = rest.partition_point(|number| self.tier_of(*number) == tier);
            let (members, after) = rest.split_at(of_tier);
            rest = after;
            if self.tiers.denies(tier) {
                denials.push(Denial {
                    tier,
                    policies: (!denials.is_empty()).then(|| self.policy_list(members)),
                });
            }
        }
        denials
    }

    fn tier_of(&self, policy: u32) -> u32 {
        self.tiers.tier_of(&self.policies[policy as usize])
    }

    fn policy_list(&mut self, policies: &[u32]) -> u32 {
        let next = self.policy_lists.len() as u32;
        let number = *self
            .policy_list_numbers
            .entry_ref(policies)
            .or_insert_with(|| next);
        if number == next {
            self.policy_lists.push(policies.to_vec());
        }
        number
    }

    /// The policies of the tier that denied, of a subject with these: those of a list, else those of the first tier that
    /// denies by default.
    pub(super) fn denying<'a>(&'a self, list: Option<u32>, policies: &'a [u32]) -> &'a [u32] {
        if let Some(list) = list {
            return &self.policy_lists[list as usize];
        }
        let denies = |number: &u32| self.tiers.denies(self.tier_of(*number));
        let first = policies.iter().position(denies).unwrap_or(policies.len());
        let rest = &policies[first..];
        let tier = rest.first().map(|number| self.tier_of(*number));
        let end = rest.iter().position(|number| Some(self.tier_of(*number)) != tier);
        &rest[..end.unwrap_or(rest.len())]
    }

    /// How reasons name a policy.
    pub(super) fn named(&self, policy: u32) -> PolicyName<'_> {
        self.tiers.named(&self.policies[policy as usize])
    }

    /// What the sender of a packet gets that these policies deny: the least telling of what each says, `otherwise` where one says
    /// nothing.
    pub(super) fn answer(&self, policies: &[u32], otherwise: DenialAnswer) -> DenialAnswer {
        let answers = policies.iter().map(|policy| {
            let own = self.policies[*policy as usize].answer();
            own.map_or(otherwise, |answer| match answer {
                ringwall_policy::DenialAnswer::Drop => DenialAnswer::Drop,
                ringwall_policy::DenialAnswer::Prohibited => DenialAnswer::Prohibited,
                ringwall_policy::DenialAnswer::Reset => DenialAnswer::Reset,
            })
        });
        answers.min().unwrap_or(DenialAnswer::Drop)
    }

    /// Whether the tiers of a state are those that the policies were read with.
    pub(super) fn has_tiers_of(&self, cluster: &Cluster) -> bool {
        self.tiers == Tiers::of(cluster)
    }

    /// Rules of these policies, in order.
    pub(super) fn rules_of(&self, policies: &[u32], direction: Direction) -> Vec<u32> {
        let each = |policy: &u32| {
            let index = *policy as usize;
            let first = self.first[index][direction as usize];
            first..first + self.policies[index].len(direction)
        };
        policies.iter().flat_map(each).collect()
    }

    pub(super) fn rule(&self, number: u32) -> &Rule {
        &self.rules[number as usize]
    }

    /// What a rule says of ports.
    pub(super) fn ports(&self, number: u32) -> Ports<'_> {
        let rule = self.rule(number);
        let policy = &self.policies[rule.policy as usize];
        let part = policy.part(rule.direction, rule.place);
        let all = Ports {
            some: None,
            not: &[],
            from: None,
            not_from: &[],
        };
        part.map_or(all, Ports::from)
    }

    /// Every port at which some rule may change its mind, by number.
    pub(super) fn ports_named(&self) -> BTreeSet<(Protocol, u16)> {
        let mut found = BTreeSet::new();
        for entry in (0..self.rules.len()).flat_map(|rule| self.ports(rule as u32).entries()) {
            if let PortMatch::Range { protocol, lo, hi } = entry {
                found.insert((*protocol, *lo));
                found.extend(hi.checked_add(1).map(|above| (*protocol, above)));
            }
        }
        found
    }

    /// Every source port at which some rule may change its mind, by number.
    pub(super) fn source_ports_named(&self) -> BTreeSet<u16> {
        let entries = (0..self.rules.len()).flat_map(|rule| self.ports(rule as u32).source_entries());
        let borders = entries.filter_map(|entry| match entry {
            PortMatch::Range { lo, hi, .. } => Some([Some(*lo), hi.checked_add(1)]),
            _ => None,
        });
        borders.flatten().flatten().collect()
    }

    /// Every protocol, type and code of ICMP at which some rule may change its mind.
    pub(super) fn types_named(&self) -> BTreeSet<(u8, u16)> {
        let mut found = BTreeSet::new();
        for entry in (0..self.rules.len()).flat_map(|rule| self.ports(rule as u32).entries()) {
            if let PortMatch::Icmp { protocol, .. } = entry {
                let mut borders = Vec::new();
                type_borders(entry, *protocol, &mut borders);
                found.extend(borders.into_iter().map(|border| (*protocol, border)));
            }
        }
        found
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many pod terms there are.
    pub(super) fn term_count(&self) -> usize {
        self.terms.len()
    }
}
