//! What the objects say about each address and each pair: the checker's own derivation.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use hashbrown::{HashMap, HashSet};
use imbl::{ordmap::DiffItem, ordset::DiffItem as SetDiff};
use ipnet::IpNet;
use ringwall_policy::{AddressSet, Cluster, Labels, ObjectKey, Pod, Protocol, Settings};

use super::{
    address_ranges::{AddressRanges, Unowned},
    matching::Asked,
    policy::Policy,
    ports::{Decisions, Outcome, Passes, PortNames},
    rules::{Block, Demand, Direction, Rules, Selected, Terms, Whose},
    sets::Sets,
    words::{NewWords, PodWords},
};

/// Who an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A pod or template, by its slot.
    Pod(u32),
    /// A pod whose namespace has not been seen (SEMANTICS 54).
    Unseen(u32),
    /// A node, by the number of its name.
    Node(u32),
    /// No owner.
    Unowned(Unowned),
}

impl Owner {
    /// Whether only the settings say what may pass to and from it.
    pub(super) fn is_unknown(self) -> bool {
        matches!(self, Self::Unseen(_) | Self::Unowned(Unowned::PodNetwork))
    }
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub who: Owner,
    /// What rules can see of it as a peer.
    pub meaning: u32,
    /// What decides about it, by direction.
    pub subjects: [u32; 2],
    /// What decides about its packets to the node that hosts it.
    pub own_node: u32,
}

/// What decides about a pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub direction: Direction,
    /// Policies that select it, in the order that decides; empty: it is open.
    pub policies: Vec<u32>,
    /// Ingress: what it calls the ports that the rules ask for.
    pub names: u32,
    /// Rules of theirs that are not for it, because of what it is itself; ascending.
    pub not_for_it: Vec<u32>,
}

/// A subject, with its rules.
#[derive(Debug)]
struct Judged {
    subject: Subject,
    /// Its rules, in the order that decides.
    rules: Vec<u32>,
    /// Whether one of them asks what the subject is itself.
    asks_itself: bool,
    /// The list of none of them.
    none: u32,
}

/// What rules can see of an end as a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Meaning {
    /// The set of pod terms that match it.
    pub terms: u32,
    /// The set of blocks that hold it.
    pub blocks: u32,
    /// What it calls the ports that egress rules ask for.
    pub names: u32,
}

/// A pod in its slot.
#[derive(Debug)]
pub(super) struct PodSlot {
    pub pod: Arc<Pod>,
    /// What it shares with pods that no selector and no port name tells apart; None where its namespace is unseen.
    group: Option<u32>,
    /// The name of the node that it says hosts it.
    pub node: Option<u32>,
    /// Number of its words.
    words: u32,
}

/// What may be otherwise with other policies.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// By number of the group: whether what its pods match or what decides about them is otherwise.
    groups: Vec<bool>,
    /// Slots of pods that are of another group.
    slots: Vec<u32>,
    /// Blocks that cut the address space, which did not before.
    pub blocks: Vec<IpNet>,
}

impl PodSlot {
    /// Whether it has a place in the policy: addresses of its own, or a name alone.
    pub(super) fn is_endpoint(&self) -> bool {
        !self.pod.finished && !self.pod.host_network // 46, 50
    }
}

/// Pods that no selector and no port name tells apart.
#[derive(Debug)]
struct Group {
    /// One of them.
    example: Arc<Pod>,
    /// Number of its words.
    words: u32,
    terms: u32,
    names: u32,
    subjects: [u32; 2],
    own_node: u32,
}

/// What pods of a namespace can match, by the namespace alone.
#[derive(Clone, Debug, Default)]
struct OfNamespace {
    /// Pod terms, ascending.
    terms: Vec<u32>,
    /// Policies other than NetworkPolicies, in the order that decides.
    tiered: Vec<u32>,
}

/// Who says that an address is theirs.
#[derive(Debug, Default)]
struct Claims {
    /// Slots of live pods.
    pods: Vec<u32>,
    /// Nodes that list it.
    nodes: Vec<u32>,
    /// Nodes that live pods on the host network with it name.
    hosts: Vec<u32>,
}

/// What decides about a pod.
struct Deciding {
    /// By direction.
    subjects: [u32; 2],
    /// About its packets to the node that hosts it.
    own_node: u32,
}

/// No policy decides: subjects of ends that are no pods, by direction.
pub(super) const OPEN: [u32; 2] = [0, NO_POLICY_OUT];

/// Members of address sets that are taken over one by one; of more, the address space is cut from nothing.
const FEW_MEMBERS: usize = 64;

/// The one of what goes out.
pub(super) const NO_POLICY_OUT: u32 = 1;

/// All that the objects say.
#[derive(Debug)]
pub(super) struct Expected {
    cluster: Cluster,
    pub rules: Rules,
    pub space: AddressRanges,
    pub term_sets: Sets,
    pub block_sets: Sets,
    /// How many pod terms there were before the policies were last replaced.
    terms_before: usize,
    /// How many blocks, likewise.
    blocks_before: usize,
    /// Names of ports that egress rules ask for since then.
    new_names: HashSet<(Protocol, String)>,
    pub decisions: Decisions,
    /// What pods of a namespace can match.
    of_namespaces: HashMap<String, Arc<OfNamespace>>,
    groups: Vec<Group>,
    /// By namespace.
    groups_of: HashMap<String, Vec<u32>>,
    group_numbers: HashMap<Vec<u8>, u32>,
    subjects: Vec<Judged>,
    subject_numbers: HashMap<Subject, u32>,
    /// By subject without regard to what it is itself, terms and blocks: the one that it is.
    subjects_at: HashMap<(u32, u32, u32), u32>,
    meanings: Vec<Meaning>,
    /// By rule that asks for several things at once: how many meanings were looked at, and those that it is for.
    asked_for: HashMap<u32, (usize, Vec<u32>)>,
    meaning_numbers: HashMap<Meaning, u32>,
    /// By set of terms, and of blocks: meanings that have it.
    with_terms: Vec<Vec<u32>>,
    with_blocks: Vec<Vec<u32>>,
    names: Vec<PortNames>,
    names_numbers: HashMap<PortNames, u32>,
    pods: Vec<Option<PodSlot>>,
    free: Vec<u32>,
    slots: HashMap<ObjectKey, u32>,
    words: PodWords,
    claims: HashMap<IpAddr, Claims>,
    node_names: Vec<String>,
    node_numbers: HashMap<String, u32>,
}

impl Expected {
    /// Everything but the pods, which [`Self::add`] takes one by one.
    pub(super) fn of(cluster: &Cluster) -> Self {
        let rules = Rules::of(cluster);
        let term_sets = Sets::new(rules.term_count());
        let mut block_sets = Sets::new(rules.blocks().len());
        let space = AddressRanges::of(cluster, rules.blocks(), &mut block_sets);
        let mut this = Self {
            cluster: cluster.clone(),
            rules,
            space,
            term_sets,
            block_sets,
            terms_before: usize::MAX,
            blocks_before: usize::MAX,
            new_names: HashSet::new(),
            decisions: Decisions::new(),
            of_namespaces: HashMap::new(),
            groups: Vec::new(),
            groups_of: HashMap::new(),
            group_numbers: HashMap::new(),
            subjects: Vec::new(),
            subject_numbers: HashMap::new(),
            subjects_at: HashMap::new(),
            meanings: Vec::new(),
            asked_for: HashMap::new(),
            meaning_numbers: HashMap::new(),
            with_terms: Vec::new(),
            with_blocks: Vec::new(),
            names: vec![Vec::new()],
            names_numbers: HashMap::from([(Vec::new(), 0)]),
            pods: Vec::new(),
            free: Vec::new(),
            slots: HashMap::new(),
            words: PodWords::default(),
            claims: HashMap::new(),
            node_names: Vec::new(),
            node_numbers: HashMap::new(),
        };
        for (direction, open) in Direction::BOTH.into_iter().zip(OPEN) {
            let number = this.subject(direction, Vec::new(), &[]);
            debug_assert_eq!(number, open);
        }
        for node in cluster.nodes.values() {
            let number = this.node_number(&node.name);
            for address in &node.addresses {
                let claims = this.claims.entry(*address).or_default();
                if !claims.nodes.contains(&number) {
                    claims.nodes.push(number);
                }
            }
        }
        this
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.cluster.settings
    }

    /// The state that this is a view of.
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Says that the pods that were added and removed since make this state.
    pub(super) fn follow(&mut self, cluster: &Cluster) {
        self.cluster = cluster.clone();
    }

    /// Adds a pod that is not there, and answers its slot.
    pub(super) fn add(&mut self, pod: &Arc<Pod>) -> u32 {
        let node = pod.node.as_deref().map(|name| self.node_number(name));
        let mut known = PodSlot {
            pod: Arc::clone(pod),
            group: None,
            node,
            words: self.words.number(pod),
        };
        if known.is_endpoint() {
            known.group = self.group(pod);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.pods.push(None);
                self.pods.len() as u32 - 1
            }
        };
        if !pod.finished {
            for address in &pod.addresses {
                let claims = self.claims.entry(*address).or_default();
                if !pod.host_network {
                    claims.pods.push(slot);
                } else if let Some(node) = node {
                    claims.hosts.push(node);
                }
            }
        }
        self.slots.insert(pod.key.clone(), slot);
        self.pods[slot as usize] = Some(known);
        slot
    }

    /// Takes a pod out; its slot is free then.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<(u32, Arc<Pod>)> {
        let slot = self.slots.remove(key)?;
        let known = self.pods[slot as usize].take()?;
        self.free.push(slot);
        if !known.pod.finished {
            for address in &known.pod.addresses {
                let Some(claims) = self.claims.get_mut(address) else {
                    continue;
                };
                let (list, entry) = match (known.pod.host_network, known.node) {
                    (false, _) => (&mut claims.pods, slot),
                    (true, Some(node)) => (&mut claims.hosts, node),
                    (true, None) => continue,
                };
                if let Some(at) = list.iter().position(|claim| *claim == entry) {
                    list.swap_remove(at);
                }
                if claims.pods.is_empty() && claims.nodes.is_empty() && claims.hosts.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        Some((slot, known.pod))
    }

    pub(super) fn pod(&self, slot: u32) -> Option<&PodSlot> {
        self.pods.get(slot as usize)?.as_ref()
    }

    pub(super) fn slot(&self, key: &ObjectKey) -> Option<u32> {
        self.slots.get(key).copied()
    }

    /// Number of the slots, free ones included.
    pub(super) fn slots(&self) -> u32 {
        self.pods.len() as u32
    }

    /// Every address that a pod or a node has, in no order.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.claims.keys().copied()
    }

    /// Whether a pod or a node has an address.
    pub(super) fn is_claimed(&self, address: IpAddr) -> bool {
        !matches!(self.who(address), Owner::Unowned(_))
    }

    /// Ports that a pod has names for.
    pub(super) fn named_ports(&self, place: super::number_relation::EndRef) -> Vec<(Protocol, u16)> {
        use super::number_relation::EndRef;
        let slot = match place {
            EndRef::Name(slot) => Some(slot),
            EndRef::Address(address) => match self.who(address) {
                Owner::Pod(slot) => Some(slot),
                Owner::Unseen(_) | Owner::Node(_) | Owner::Unowned(_) => None,
            },
        };
        let ports = slot
            .and_then(|slot| self.pod(slot))
            .map(|known| &known.pod.named_ports);
        ports
            .into_iter()
            .flatten()
            .map(|port| (port.protocol, port.number))
            .collect()
    }

    pub(super) fn node_name(&self, number: u32) -> &str {
        &self.node_names[number as usize]
    }

    pub(super) fn subject_of(&self, number: u32) -> &Subject {
        &self.subjects[number as usize].subject
    }

    /// Groups, subjects, meanings, policies and words of pods that ever were.
    pub(super) fn ever(&self) -> usize {
        let words = self.words.len();
        self.groups.len() + self.subjects.len() + self.meanings.len() + self.rules.policies_ever() + words
    }

    /// Who has an address.
    pub(super) fn who(&self, address: IpAddr) -> Owner {
        let place = || Owner::Unowned(self.space.find(address).place);
        let Some(claims) = self.claims.get(&address) else {
            return place();
        };
        if let Some(slot) = claims.pods.iter().copied().reduce(|a, b| self.newer(a, b)) {
            return self.who_is(slot);
        }
        let first = |nodes: &[u32]| nodes.iter().copied().min_by_key(|node| self.node_name(*node));
        match first(&claims.nodes).or_else(|| first(&claims.hosts)) {
            Some(node) => Owner::Node(node),
            None => place(),
        }
    }

    fn who_is(&self, slot: u32) -> Owner {
        match self.pod(slot).and_then(|known| known.group) {
            Some(_) => Owner::Pod(slot),
            None => Owner::Unseen(slot),
        }
    }

    /// Of two pods with one address the one that has it now (SEMANTICS 50, 54).
    fn newer(&self, a: u32, b: u32) -> u32 {
        let (Some(x), Some(y)) = (self.pod(a), self.pod(b)) else {
            return a;
        };
        // Where one is on its way out and the other is not, the address has been given to the other.
        match (x.pod.terminating, y.pod.terminating) {
            (true, false) => return b,
            (false, true) => return a,
            (true, true) | (false, false) => {}
        }
        let order = x.pod.created.cmp(&y.pod.created);
        let order = order.then_with(|| x.pod.uid.cmp(&y.pod.uid));
        match order.then_with(|| x.pod.key.cmp(&y.pod.key)) {
            Ordering::Less => b,
            Ordering::Equal | Ordering::Greater => a,
        }
    }

    /// An address as an end.
    pub(super) fn end(&mut self, address: IpAddr) -> End {
        let who = self.who(address);
        let blocks = self.space.find(address).blocks;
        self.end_of(who, blocks)
    }

    /// A pod or template by name, apart from any address: no block holds it.
    pub(super) fn nameless(&mut self, slot: u32) -> End {
        let who = self.who_is(slot);
        self.end_of(who, 0)
    }

    /// Somebody who is in these blocks.
    pub(super) fn end_of(&mut self, who: Owner, blocks: u32) -> End {
        let group = match who {
            Owner::Pod(slot) => self.pod(slot).and_then(|known| known.group),
            Owner::Unseen(_) | Owner::Node(_) | Owner::Unowned(_) => None,
        };
        let (terms, names, subjects, own_node) = match group {
            Some(number) => {
                let group = &self.groups[number as usize];
                (group.terms, group.names, group.subjects, group.own_node)
            }
            None => (0, 0, OPEN, NO_POLICY_OUT),
        };
        let meaning = self.meaning_number(Meaning { terms, blocks, names });
        let subjects = subjects.map(|subject| self.subject_at(subject, terms, blocks));
        let own_node = self.subject_at(own_node, terms, blocks);
        End {
            who,
            meaning,
            subjects,
            own_node,
        }
    }

    /// The subject that one is where these terms and blocks are its own: without rules that are for others.
    fn subject_at(&mut self, subject: u32, terms: u32, blocks: u32) -> u32 {
        let Judged {
            subject: known,
            rules,
            asks_itself,
            ..
        } = &self.subjects[subject as usize];
        if !asks_itself {
            return subject;
        }
        if let Some(number) = self.subjects_at.get(&(subject, terms, blocks)) {
            return *number;
        }
        let is_of_others = |rule: &&u32| {
            let demands = &self.rules.rule(**rule).own;
            !demands.iter().all(|demand| self.meets(demand, terms, blocks))
        };
        let mut not_for_it: Vec<u32> = rules.iter().filter(is_of_others).copied().collect();
        not_for_it.sort_unstable();
        let found = Subject {
            not_for_it,
            ..known.clone()
        };
        let number = self.subject_number(found);
        self.subjects_at.insert((subject, terms, blocks), number);
        number
    }

    /// Whether an end that these terms match and these blocks hold is what a rule asks for.
    fn meets(&self, demand: &Demand, terms: u32, blocks: u32) -> bool {
        let Terms {
            pods,
            blocks: some_blocks,
        } = &demand.of;
        let one = self.term_sets.meets(terms, pods) || self.block_sets.meets(blocks, some_blocks);
        one != demand.none
    }

    /// Whether a rule is for a peer that these terms match and these blocks hold.
    fn is_for(&self, rule: u32, terms: u32, blocks: u32) -> bool {
        let rule = self.rules.rule(rule);
        let named = rule.peers.as_ref().is_none_or(|peers| {
            self.term_sets.meets(terms, &peers.pods) || self.block_sets.meets(blocks, &peers.blocks)
        });
        named && rule.peer.iter().all(|demand| self.meets(demand, terms, blocks))
    }

    /// Number of what ends of a meaning call the ports that egress rules ask for.
    pub(super) fn names_of(&self, meaning: u32) -> u32 {
        self.meanings[meaning as usize].names
    }

    fn meaning_number(&mut self, meaning: Meaning) -> u32 {
        if let Some(number) = self.meaning_numbers.get(&meaning) {
            return *number;
        }
        let number = self.meanings.len() as u32;
        self.meanings.push(meaning);
        self.meaning_numbers.insert(meaning, number);
        self.with_terms.resize_with(self.term_sets.len(), Vec::new);
        self.with_terms[meaning.terms as usize].push(number);
        self.with_blocks.resize_with(self.block_sets.len(), Vec::new);
        self.with_blocks[meaning.blocks as usize].push(number);
        number
    }

    /// Takes over what a node is now; None: it is not there. The address space is to be [cut again](Self::cut_again) where
    /// its networks differ.
    pub(super) fn replace_node(&mut self, name: &str, before: &[IpAddr], after: &[IpAddr]) {
        let number = self.node_number(name);
        for address in before {
            let Some(claims) = self.claims.get_mut(address) else {
                continue;
            };
            claims.nodes.retain(|node| *node != number);
            if claims.pods.is_empty() && claims.nodes.is_empty() && claims.hosts.is_empty() {
                self.claims.remove(address);
            }
        }
        for address in after {
            let claims = self.claims.entry(*address).or_default();
            if !claims.nodes.contains(&number) {
                claims.nodes.push(number);
            }
        }
    }

    /// Says that from here on all pod terms that there are were there before.
    pub(super) fn terms_stay(&mut self) {
        self.terms_before = self.rules.term_count();
        self.blocks_before = self.rules.blocks().len();
        self.new_names.clear();
    }

    /// Cuts the address space at the networks of a state.
    pub(super) fn cut_again(&mut self, cluster: &Cluster) {
        self.space = AddressRanges::of(cluster, self.rules.blocks(), &mut self.block_sets);
    }

    /// Slots of pods that one of these nodes hosts.
    pub(super) fn hosted_by(&self, nodes: &std::collections::BTreeSet<u32>) -> Vec<u32> {
        let hosted = |known: &PodSlot| known.node.is_some_and(|node| nodes.contains(&node));
        let slots = self.pods.iter().zip(0..);
        slots
            .filter(|(known, _)| known.as_ref().is_some_and(hosted))
            .map(|(_, slot)| slot)
            .collect()
    }

    /// Whether a meaning is another's and no more than selectors and names of ports that came with the last policies. Of the
    /// blocks that hold an address, only address sets are looked at: the others never change.
    pub(super) fn only_gained(&self, old: u32, new: u32) -> bool {
        if old == new {
            return true;
        }
        let (old, new) = (self.meanings[old as usize], self.meanings[new as usize]);
        let terms = self.term_sets.members(old.terms).iter();
        let before = self.term_sets.members(new.terms).iter();
        let before = before.filter(|term| (**term as usize) < self.terms_before);
        let [was, is] = [old.names, new.names].map(|names| &self.names[names as usize]);
        let is_new = |port: &&(Protocol, String, u16)| {
            was.contains(port) || self.new_names.contains(&(port.0, port.1.clone()))
        };
        let was_there =
            |block: &&u32| (**block as usize) < self.blocks_before && self.rules.is_address_set(**block);
        let held_by = |blocks| self.block_sets.members(blocks).iter().filter(was_there);
        let same_sets = old.blocks == new.blocks || held_by(old.blocks).eq(held_by(new.blocks));
        same_sets
            && terms.eq(before)
            && was.iter().all(|port| is.contains(port))
            && is.iter().all(|port| is_new(&port))
    }

    /// Whether two subjects let the same pass between them and a peer, which may mean something else to the second.
    pub(super) fn pass_alike(&mut self, a: (u32, u32), b: (u32, u32)) -> bool {
        let [a, b] = [a, b].map(|(subject, meaning)| {
            if self.subject_of(subject).policies.is_empty() {
                return None;
            }
            let list = self.list_of(subject, meaning);
            Some(self.decide(subject, list, meaning))
        });
        a == b || self.passes(a) == self.passes(b)
    }

    /// What passes by a decision; None is that of a subject about which no policy decides.
    pub(super) fn passes(&self, decided: Option<u32>) -> Passes {
        decided.map_or_else(Passes::everything, |decided| {
            self.decisions.spans(decided).passes(&self.rules)
        })
    }

    fn node_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.node_numbers.get(name) {
            return *number;
        }
        let number = self.node_names.len() as u32;
        self.node_names.push(name.to_owned());
        self.node_numbers.insert(name.to_owned(), number);
        number
    }

    /// The group of a pod; None where its namespace has not been seen.
    fn group(&mut self, pod: &Arc<Pod>) -> Option<u32> {
        if !self.cluster.namespaces.contains_key(&pod.key.namespace) {
            return None;
        }
        let key = self.seen_of(pod);
        if let Some(number) = self.group_numbers.get(&key) {
            return Some(*number);
        }
        let names = self.port_names(pod, &|protocol, name| {
            self.rules.names_port(Whose::Peer, protocol, name)
        });
        let Deciding { subjects, own_node } = self.subjects_for(pod);
        let group = Group {
            example: Arc::clone(pod),
            words: self.words.number(pod),
            terms: self.terms_matching(pod),
            names: self.names_number(names),
            subjects,
            own_node,
        };
        let number = self.groups.len() as u32;
        self.groups.push(group);
        let namespace = pod.key.namespace.as_str();
        self.groups_of.entry_ref(namespace).or_default().push(number);
        self.group_numbers.insert(key, number);
        Some(number)
    }

    /// What pods of a namespace can match; nothing where the namespace has not been seen.
    fn of_namespace(&mut self, name: &str) -> Arc<OfNamespace> {
        if let Some(known) = self.of_namespaces.get(name) {
            return Arc::clone(known);
        }
        let found = match self.cluster.namespaces.get(name) {
            Some(namespace) => OfNamespace {
                terms: self.rules.terms_of_namespace(name, &namespace.labels, 0),
                tiered: self.rules.tiered_of_namespace(name, &namespace.labels),
            },
            None => OfNamespace::default(),
        };
        let found = Arc::new(found);
        self.of_namespaces.insert(name.to_owned(), Arc::clone(&found));
        found
    }

    /// The set of pod terms that match a pod.
    fn terms_matching(&mut self, pod: &Pod) -> u32 {
        let of_namespace = self.of_namespace(&pod.key.namespace);
        let terms = self.rules.matching_terms(&of_namespace.terms, &pod.labels);
        self.term_sets.number(terms)
    }

    fn subjects_for(&mut self, pod: &Pod) -> Deciding {
        let namespace = &pod.key.namespace;
        let of_namespace = self.of_namespace(namespace);
        let tiered = &of_namespace.tiered;
        let cluster = self.cluster.clone();
        let labels = cluster.namespaces.get(namespace).map(|found| &found.labels);
        let none = Labels::new();
        let of = Selected {
            namespace,
            namespace_labels: labels.unwrap_or(&none),
            labels: &pod.labels,
        };
        let subjects = Direction::BOTH.map(|direction| {
            let policies = self.rules.deciding(of, tiered, direction);
            let names = self.asked_names(pod, &policies, direction);
            self.subject(direction, policies, &names)
        });
        let to_node: Vec<u32> = self.rules.selecting(tiered, of, Direction::Egress).collect();
        let names = self.asked_names(pod, &to_node, Direction::Egress);
        Deciding {
            subjects,
            own_node: self.subject(Direction::Egress, to_node, &names),
        }
    }

    /// Sets what decides about a group's pods.
    fn decide_anew(&mut self, group: usize, pod: &Pod) {
        let Deciding { subjects, own_node } = self.subjects_for(pod);
        let group = &mut self.groups[group];
        (group.subjects, group.own_node) = (subjects, own_node);
    }

    /// Takes over policies: those that are gone or replaced, then those that are new.
    pub(super) fn replace_policies(
        &mut self,
        cluster: &Cluster,
        gone: &[Policy],
        new: &[Policy],
    ) -> Replaced {
        self.rules.take_new_words();
        let (terms, blocks) = (self.rules.term_count(), self.rules.blocks().len());
        (self.terms_before, self.blocks_before) = (terms, blocks);
        for policy in gone {
            self.rules.remove(policy);
        }
        for policy in new {
            self.rules.add(policy.clone());
        }
        self.term_sets.grow(self.rules.term_count());
        let (network, tiered): (Vec<&Policy>, Vec<&Policy>) =
            (gone.iter().chain(new)).partition(|policy| policy.is_network_policy());
        let new_terms = self.more_terms(terms as u32, !tiered.is_empty());
        let namespaces: HashSet<&str> = network.iter().map(|policy| policy.namespace()).collect();
        let known = self.groups.len();
        let new_words = self.rules.take_new_words();
        let slots = self.regroup(&new_words);
        self.new_names = new_words.peer_ports;
        let mut groups = vec![true; self.groups.len()];
        let concerned: Vec<u32> = match tiered.is_empty() {
            false => (0..known as u32).collect(),
            true => {
                let new_terms = new_terms.keys().map(String::as_str);
                let concerned: HashSet<&str> = new_terms.chain(namespaces.iter().copied()).collect();
                let groups = concerned.into_iter().filter_map(|name| self.groups_of.get(name));
                groups
                    .flatten()
                    .copied()
                    .filter(|group| (*group as usize) < known)
                    .collect()
            }
        };
        groups.iter_mut().take(known).for_each(|changed| *changed = false);
        for number in concerned {
            let number = number as usize;
            let pod = Arc::clone(&self.groups[number].example);
            let of = |group: &Group| (group.terms, group.subjects, group.own_node);
            let before = of(&self.groups[number]);
            if let Some(new) = new_terms.get(pod.key.namespace.as_str()) {
                let new = self.rules.matching_terms(new, &pod.labels);
                if !new.is_empty() {
                    let mut terms = self.term_sets.members(before.0).to_vec();
                    terms.extend(new);
                    self.groups[number].terms = self.term_sets.number(terms);
                }
            }
            let selected = |policy: &&Policy| {
                let labels = self.namespace_labels(&pod.key.namespace);
                labels.is_some_and(|labels| policy.selects(&pod.key.namespace, labels, &pod.labels))
            };
            if namespaces.contains(pod.key.namespace.as_str()) || tiered.iter().any(selected) {
                self.decide_anew(number, &pod);
            }
            groups[number] = before != of(&self.groups[number]);
        }
        let new_blocks = &self.rules.blocks()[blocks..];
        let cut_by: Vec<IpNet> = new_blocks.iter().flat_map(|it| it.prefixes(cluster)).collect();
        if !new_blocks.is_empty() {
            self.block_sets.grow(self.rules.blocks().len());
            self.cut_again(cluster);
        }
        Replaced {
            groups,
            slots,
            blocks: cut_by,
        }
    }

    /// Takes over what address sets hold now; answers the prefixes that came into one or left it. The address space is
    /// one of the state before, or already that of now.
    pub(super) fn replace_address_sets(&mut self, cluster: &Cluster, cut_already: bool) -> Vec<IpNet> {
        let mut changed: Vec<(u32, IpNet)> = Vec::new();
        let nothing = AddressSet::new();
        for item in self.cluster.address_sets.diff(&cluster.address_sets) {
            let (name, old, new) = match item {
                DiffItem::Add(name, new) => (name, &nothing, &**new),
                DiffItem::Remove(name, old) => (name, &**old, &nothing),
                DiffItem::Update { old, new } => (old.0, &**old.1, &**new.1),
            };
            let Some(number) = self.rules.address_set(name) else {
                continue;
            };
            for member in old.diff(new) {
                let (SetDiff::Add(net) | SetDiff::Remove(net)) = member;
                changed.push((number, *net));
            }
        }
        if changed.len() > FEW_MEMBERS && !cut_already {
            self.cut_again(cluster);
        } else if !cut_already {
            for (number, net) in &changed {
                let Block::Set(name) = &self.rules.blocks()[*number as usize] else {
                    continue;
                };
                let members = cluster.address_sets.get(name).map_or(&nothing, |set| set);
                self.space.change_set(*number, net, members, &mut self.block_sets);
            }
        }
        changed.into_iter().map(|(_, net)| net).collect()
    }

    /// Takes the terms from a number on, and tiered policies where they differ, into what is known of namespaces. Answers
    /// those of the terms that pods of a namespace can match.
    fn more_terms(&mut self, first: u32, tiered: bool) -> HashMap<String, Vec<u32>> {
        let mut found = HashMap::new();
        for (name, known) in &mut self.of_namespaces {
            let Some(namespace) = self.cluster.namespaces.get(name) else {
                continue;
            };
            let new = self.rules.terms_of_namespace(name, &namespace.labels, first);
            if new.is_empty() && !tiered {
                continue;
            }
            let known = Arc::make_mut(known);
            known.terms.extend(&new);
            if tiered {
                known.tiered = self.rules.tiered_of_namespace(name, &namespace.labels);
            }
            if !new.is_empty() {
                found.insert(name.clone(), new);
            }
        }
        found
    }

    /// Slots of pods that may be otherwise to rules or decided otherwise.
    pub(super) fn slots_of(&self, replaced: &Replaced) -> Vec<u32> {
        let of_group = |group: u32| replaced.groups.get(group as usize).is_some_and(|it| *it);
        let changed = |known: &Option<PodSlot>| {
            let group = known.as_ref().and_then(|known| known.group);
            group.is_some_and(of_group)
        };
        let slots = self.pods.iter().zip(0..).filter(|(known, _)| changed(known));
        let mut slots: Vec<u32> = match replaced.groups.is_empty() {
            true => Vec::new(),
            false => slots.map(|(_, slot)| slot).collect(),
        };
        slots.extend(&replaced.slots);
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.cluster
            .namespaces
            .get(name)
            .map(|namespace| &namespace.labels)
    }

    /// Groups the pods anew that have words which are asked for now; answers their slots.
    fn regroup(&mut self, words: &NewWords) -> Vec<u32> {
        if words.is_empty() {
            return Vec::new();
        }
        let having = self.words.having(words);
        let has = |known: &PodSlot| known.is_endpoint() && having[known.words as usize];
        let all = self.pods.iter().zip(0..);
        let slots: Vec<u32> = all
            .filter(|(known, _)| known.as_ref().is_some_and(has))
            .map(|(_, slot)| slot)
            .collect();
        for slot in &slots {
            let Some(known) = &self.pods[*slot as usize] else {
                continue;
            };
            let pod = Arc::clone(&known.pod);
            let group = self.group(&pod);
            if let Some(known) = &mut self.pods[*slot as usize] {
                known.group = group;
            }
        }
        self.set_examples(&having);
        slots
    }

    /// Sees to it that the example of a group is like the pods that are left in it: without these words.
    fn set_examples(&mut self, having: &[bool]) {
        let outdated = |group: &Group, key: &[u8]| {
            // Its own pods are the ones with the words, where they are asked for.
            having[group.words as usize] && self.seen_of(&group.example) != key
        };
        let numbers = self.group_numbers.iter();
        let outdated = numbers.filter(|(key, number)| outdated(&self.groups[**number as usize], key));
        let outdated: HashSet<u32> = outdated.map(|(_, number)| *number).collect();
        let mut left: HashMap<u32, (Arc<Pod>, u32)> = HashMap::new();
        for known in self.pods.iter().flatten() {
            if let Some(group) = known.group.filter(|group| outdated.contains(group)) {
                left.entry(group)
                    .or_insert_with(|| (Arc::clone(&known.pod), known.words));
            }
        }
        self.group_numbers
            .retain(|_, number| !outdated.contains(number) || left.contains_key(number));
        for (number, (example, words)) in left {
            let group = &mut self.groups[number as usize];
            (group.example, group.words) = (example, words);
        }
    }

    /// Takes over what namespaces are now, and answers the slots of the pods in those that are given.
    pub(super) fn replace_namespaces(&mut self, cluster: &Cluster, changed: &HashSet<String>) -> Vec<u32> {
        self.cluster.namespaces = cluster.namespaces.clone();
        for name in changed {
            self.of_namespaces.remove(name);
        }
        for number in 0..self.groups.len() {
            let pod = Arc::clone(&self.groups[number].example);
            if changed.contains(&pod.key.namespace) {
                self.groups[number].terms = self.terms_matching(&pod);
                self.decide_anew(number, &pod);
            }
        }
        let mut slots = Vec::new();
        for slot in 0..self.pods.len() {
            let Some(known) = &self.pods[slot] else { continue };
            if !changed.contains(&known.pod.key.namespace) {
                continue;
            }
            slots.push(slot as u32);
            if known.is_endpoint() {
                let pod = Arc::clone(&known.pod);
                let group = self.group(&pod);
                if let Some(known) = &mut self.pods[slot] {
                    known.group = group;
                }
            }
        }
        slots
    }

    /// All of a pod that any selector or port entry can see, as bytes.
    fn seen_of(&self, pod: &Pod) -> Vec<u8> {
        fn put(key: &mut Vec<u8>, text: &str) {
            key.extend((text.len() as u32).to_le_bytes());
            key.extend(text.as_bytes());
        }
        let mut key = Vec::with_capacity(128);
        put(&mut key, &pod.key.namespace);
        for (name, value) in &pod.labels {
            if self.rules.names_key(name) {
                put(&mut key, name);
                put(&mut key, value);
            }
        }
        key.push(0xff);
        for port in &pod.named_ports {
            let asked = Whose::BOTH.map(|of| self.rules.names_port(of, port.protocol, &port.name));
            if asked != [false; 2] {
                put(&mut key, &port.name);
                key.extend(asked.map(u8::from));
                key.push(port.protocol.number());
                key.extend(port.number.to_le_bytes());
            }
        }
        key
    }

    /// A pod's port names that are asked for; of equal ones the first counts (SEMANTICS 33).
    fn port_names(&self, pod: &Pod, asked: &dyn Fn(Protocol, &str) -> bool) -> PortNames {
        let mut seen = HashSet::new();
        let mut names: PortNames = pod
            .named_ports
            .iter()
            .filter(|port| {
                asked(port.protocol, &port.name) && seen.insert((port.protocol, port.name.as_str()))
            })
            .map(|port| (port.protocol, port.name.clone(), port.number))
            .collect();
        names.sort_unstable();
        names
    }

    /// A pod's port names that the rules of these policies ask for where they select it: of the destination in ingress, of the
    /// source in egress.
    fn asked_names(&self, pod: &Pod, policies: &[u32], direction: Direction) -> PortNames {
        let rules = self.rules.rules_of(policies, direction);
        let mut asked = HashSet::new();
        for rule in rules {
            let ports = self.rules.ports(rule);
            asked.extend(ports.names_of(Whose::Own, direction));
        }
        if asked.is_empty() {
            return Vec::new();
        }
        self.port_names(pod, &|protocol, name| asked.contains(&(protocol, name)))
    }

    fn names_number(&mut self, names: PortNames) -> u32 {
        if let Some(number) = self.names_numbers.get(&names) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(names.clone());
        self.names_numbers.insert(names, number);
        number
    }

    fn subject(
        &mut self,
        direction: Direction,
        policies: Vec<u32>,
        names: &[(Protocol, String, u16)],
    ) -> u32 {
        let subject = Subject {
            direction,
            names: self.names_number(names.to_vec()),
            policies,
            not_for_it: Vec::new(),
        };
        self.subject_number(subject)
    }

    fn subject_number(&mut self, subject: Subject) -> u32 {
        if let Some(number) = self.subject_numbers.get(&subject) {
            return *number;
        }
        let number = self.subjects.len() as u32;
        let denials = self.rules.denials(&subject.policies);
        let mut rules = self.rules.rules_of(&subject.policies, subject.direction);
        let asks_itself = rules.iter().any(|rule| !self.rules.rule(*rule).own.is_empty());
        rules.retain(|rule| subject.not_for_it.binary_search(rule).is_err());
        self.subjects.push(Judged {
            rules,
            asks_itself,
            none: self.decisions.none(denials),
            subject: subject.clone(),
        });
        self.subject_numbers.insert(subject, number);
        number
    }

    /// The list of a subject's rules that match a peer of this meaning, by asking each rule.
    pub(super) fn list_of(&mut self, subject: u32, meaning: u32) -> u32 {
        let Meaning { terms, blocks, .. } = self.meanings[meaning as usize];
        let Judged { rules, none, .. } = &self.subjects[subject as usize];
        let mut list = *none;
        for rule in rules {
            if self.is_for(*rule, terms, blocks) {
                list = self.decisions.and(list, *rule, &self.rules);
            }
        }
        list
    }

    /// What a subject decides about a peer for whom this list of its rules matches.
    pub(super) fn decide(&mut self, subject: u32, list: u32, meaning: u32) -> u32 {
        let Subject { direction, names, .. } = *self.subject_of(subject);
        // A port's name is the destination's, a source port's the source's (TIERS 99.7).
        let of_peer = self.meanings[meaning as usize].names;
        let (destination, source) = match direction {
            Direction::Ingress => (names, of_peer),
            Direction::Egress => (of_peer, names),
        };
        self.decisions
            .decide(list, [destination, source], &self.names, &self.rules)
    }

    /// Finds the meanings of rules of a subject that ask for several things at once: once for each rule and meaning.
    fn ask_for_several(&mut self, subject: u32) {
        let several = |rule: &&u32| !self.rules.rule(**rule).peer.is_empty();
        let rules = self.subjects[subject as usize].rules.iter();
        let rules: Vec<u32> = rules.filter(several).copied().collect();
        for rule in rules {
            let (seen, mut meanings) = self.asked_for.remove(&rule).unwrap_or_default();
            for (number, meaning) in self.meanings.iter().enumerate().skip(seen) {
                if self.is_for(rule, meaning.terms, meaning.blocks) {
                    meanings.push(number as u32);
                }
            }
            self.asked_for.insert(rule, (self.meanings.len(), meanings));
        }
    }

    /// Lists of a subject's rules that match, for all peers at once: `lists` has those of the meanings that some rule
    /// names; answers the list of all others.
    pub(super) fn lists_of(&mut self, subject: u32, lists: &mut Lists) -> u32 {
        lists.begin(self.meanings.len());
        self.ask_for_several(subject);
        let Judged { rules, none, .. } = &self.subjects[subject as usize];
        let mut others = *none;
        for rule in rules {
            let known = self.rules.rule(*rule);
            match &known.peers {
                _ if !known.peer.is_empty() => {
                    lists.rule += 1;
                    let meanings = self.asked_for.get(rule).map(|(_, meanings)| meanings);
                    for meaning in meanings.into_iter().flatten() {
                        if let Some(list) = lists.touch(*meaning, others) {
                            *list = self.decisions.and(*list, *rule, &self.rules);
                        }
                    }
                }
                None => {
                    for meaning in &lists.named {
                        let list = &mut lists.list[*meaning as usize];
                        *list = self.decisions.and(*list, *rule, &self.rules);
                    }
                    others = self.decisions.and(others, *rule, &self.rules);
                }
                Some(peers) => {
                    lists.rule += 1;
                    let of_terms = peers.pods.iter().flat_map(|term| self.term_sets.holding(*term));
                    let of_blocks = peers
                        .blocks
                        .iter()
                        .flat_map(|block| self.block_sets.holding(*block));
                    let by_terms = of_terms.filter_map(|set| self.with_terms.get(*set as usize));
                    let by_blocks = of_blocks.filter_map(|set| self.with_blocks.get(*set as usize));
                    for meaning in by_terms.chain(by_blocks).flatten() {
                        if let Some(list) = lists.touch(*meaning, others) {
                            *list = self.decisions.and(*list, *rule, &self.rules);
                        }
                    }
                }
            }
        }
        others
    }

    /// What comes of a packet between a subject and a peer.
    pub(super) fn outcome(&mut self, subject: u32, meaning: u32, asked: Asked) -> Outcome {
        if self.subject_of(subject).policies.is_empty() {
            return Outcome::Open;
        }
        let list = self.list_of(subject, meaning);
        let decided = self.decide(subject, list, meaning);
        self.decisions.spans(decided).outcome(asked)
    }
}

/// By meaning, the list of rules that match: memory that one subject after the other uses.
#[derive(Debug, Default)]
pub(super) struct Lists {
    list: Vec<u32>,
    /// The round in which the list was set, and the rule that was added last.
    touched: Vec<(u32, u32)>,
    named: Vec<u32>,
    round: u32,
    rule: u32,
}

impl Lists {
    fn begin(&mut self, meanings: usize) {
        self.list.resize(meanings, 0);
        self.touched.resize(meanings, (0, 0));
        self.named.clear();
        self.round += 1;
        self.rule = 0;
    }

    /// The list of a meaning that the rule at hand names, begun with the others' where no rule named it before; None
    /// where this rule has named it already.
    fn touch(&mut self, meaning: u32, others: u32) -> Option<&mut u32> {
        let at = meaning as usize;
        let (round, rule) = self.touched[at];
        if round != self.round {
            self.list[at] = others;
            self.named.push(meaning);
        } else if rule == self.rule {
            return None;
        }
        self.touched[at] = (self.round, self.rule);
        Some(&mut self.list[at])
    }

    /// Meanings that some rule names.
    pub(super) fn named(&self) -> &[u32] {
        &self.named
    }

    /// The list of a meaning.
    pub(super) fn get(&self, meaning: u32, others: u32) -> u32 {
        let at = meaning as usize;
        match self.touched.get(at) {
            Some((round, _)) if *round == self.round => self.list[at],
            _ => others,
        }
    }
}
