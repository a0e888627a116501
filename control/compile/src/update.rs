//! From one state to the next.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem, ordset::DiffItem as SetDiff};
use ipnet::IpNet;
use ringwall_policy::{
    AddressSet, Cluster, Namespace, Node, ObjectKey, Pod,
    tiers::{self, Policy, Tiers},
};

use super::{
    Budget,
    blocks::{BlockChanges, Span},
    cohorts::seen_of,
    policies::Named,
    selectors::TermTurnover,
    state::{State, most_members},
};

/// The most policies of one update: more are compiled in full.
const MOST_POLICIES: usize = 64;

/// So many pods may look different, however few there are.
const FEW_MEMBERS: usize = 256;

/// What is to be looked at again.
#[derive(Default)]
struct Again {
    members: Vec<u32>,
    addresses: Vec<IpAddr>,
}

/// What differs between two maps of policies: each before and after, in the model.
fn sides<'a, K: Ord, V: PartialEq>(
    last: &'a OrdMap<K, Arc<V>>,
    next: &'a OrdMap<K, Arc<V>>,
    model: impl Fn(&'a V) -> Policy<'a>,
) -> impl Iterator<Item = (Option<Policy<'a>>, Option<Policy<'a>>)> {
    last.diff(next).map(move |change| match change {
        DiffItem::Add(_, new) => (None, Some(model(new))),
        DiffItem::Remove(_, old) => (Some(model(old)), None),
        DiffItem::Update {
            old: (_, old),
            new: (_, new),
        } => (Some(model(old)), Some(model(new))),
    })
}

impl State {
    /// Takes up everything that is different in `next`. False where it has to be compiled in full: then this is of no
    /// more use. So it is when it went over the budget.
    pub(super) fn update(&mut self, next: &Cluster, budget: &Budget) -> bool {
        let last = std::mem::replace(&mut self.cluster, next.clone());
        // Where tiers have other places, so has every policy.
        if last.settings != next.settings || self.tiers != Tiers::of(next) {
            return false;
        }
        let mut again = Again::default();
        let networks = self.update_nodes(&last, &mut again);
        if !self.update_policies_and_namespaces(&last, &mut again) {
            return false;
        }
        let Some(spans) = self.update_blocks(&last, &networks, budget) else {
            return false;
        };
        let moved = self.cut_again(&spans);
        // Most hosts in other blocks are more work than a full compile.
        if moved.len() > self.hosts() / 2 + FEW_MEMBERS {
            return false;
        }
        again.addresses.extend(moved);
        self.update_pods(&last, &mut again);

        again.members.sort_unstable();
        again.members.dedup();
        for member in &again.members {
            self.attach(*member);
        }
        for member in &again.members {
            self.identify(*member);
            if self.within(budget).is_err() {
                return false;
            }
            if let Some(member) = self.members.get(*member) {
                again.addresses.extend(&member.pod.addresses);
            }
        }
        again.addresses.sort_unstable();
        again.addresses.dedup();
        for address in &again.addresses {
            self.resolve(*address);
        }
        let turned = self.policies.settle();
        self.classes
            .turned(&turned.sets, &turned.blocks, &self.policies, &self.vocabulary);
        if turned.blocks.is_empty() {
            spans.into_iter().for_each(|span| self.count_ranges(span));
        } else {
            // Neighbours may have become alike anywhere.
            for v4 in [true, false] {
                self.count_ranges(Span::family(v4));
            }
        }
        !self.is_mostly_waste()
    }

    /// Nodes are names and addresses. Answers the networks of pods that go and come with them.
    fn update_nodes(&mut self, last: &Cluster, again: &mut Again) -> Vec<(IpNet, bool)> {
        let next = self.cluster.nodes.clone();
        let mut networks = Vec::new();
        for change in last.nodes.diff(&next) {
            let (old, new) = match change {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => (Some(old), Some(new)),
            };
            let of = |node: Option<&Arc<Node>>| node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
            let differ = of(old) != of(new);
            for (node, comes) in [(old, false), (new, true)] {
                if let Some(node) = node {
                    self.owners.node(node, comes);
                    again.addresses.extend(&node.addresses);
                    let own = node.pod_cidrs.iter().filter(|_| differ);
                    networks.extend(own.map(|net| (*net, comes)));
                }
            }
        }
        networks
    }

    /// Cuts the address ranges by the blocks that policies began to name and no more by those that they ceased to name, by
    /// what address sets hold, and by networks of pods. None where there are too many.
    fn update_blocks(
        &mut self,
        last: &Cluster,
        networks: &[(IpNet, bool)],
        budget: &Budget,
    ) -> Option<Vec<Span>> {
        let touched = self.policies.take_touched_blocks();
        let policies = &self.policies;
        let (before, now) = (&last.address_sets, &self.cluster.address_sets);
        let mut changes = BlockChanges::default();
        for number in touched {
            let named = policies.named_blocks.get(number as usize);
            let block = policies.blocks.get(number as usize);
            if let Some((named, block)) = named.zip(block)
                && named.is_named() != self.blocks.is_placed(number)
            {
                let comes = named.is_named();
                changes.block(number, block, comes, if comes { now } else { before });
            }
        }
        let nothing = AddressSet::new();
        for change in before.diff(now) {
            let (name, old, new) = match change {
                DiffItem::Add(name, new) => (name, &nothing, &**new),
                DiffItem::Remove(name, old) => (name, &**old, &nothing),
                DiffItem::Update {
                    old: (name, old),
                    new: (_, new),
                } => (name, &**old, &**new),
            };
            // One that begins or ceases to be named is taken as a whole.
            let is_named = |number: &u32| {
                let named = policies.named_blocks.get(*number as usize);
                named.is_some_and(Named::is_named) && self.blocks.is_placed(*number)
            };
            if let Some(number) = policies.address_set(name).filter(is_named) {
                for member in old.diff(new) {
                    match member {
                        SetDiff::Add(net) => changes.member(number, *net, true),
                        SetDiff::Remove(net) => changes.member(number, *net, false),
                    }
                }
            }
        }
        self.blocks.change(&changes, networks, most_members(budget))
    }

    fn update_policies_and_namespaces(&mut self, last: &Cluster, again: &mut Again) -> bool {
        let (next, next_tiered) = (self.cluster.policies.clone(), self.cluster.tiered.clone());
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let tiers = self.tiers.clone();
        let changes = sides(&last.policies, &next, |policy| {
            tiers::network_policy(policy, &tiers)
        });
        let tiered = sides(&last.tiered, &next_tiered, |policy| {
            tiers::tiered_policy(policy, &tiers)
        });
        for (before, after) in changes.chain(tiered) {
            old.extend(before);
            new.extend(after);
            if old.len() + new.len() > MOST_POLICIES {
                return false;
            }
        }
        // What is asked for before and after does not turn.
        let mut words = TermTurnover::default();
        new.iter()
            .for_each(|policy| self.vocabulary.learn(policy, &mut words));
        old.iter()
            .for_each(|policy| self.vocabulary.forget(policy, &mut words));
        self.update_namespaces(last, again);
        if !self.look_again(&words, again) {
            return false;
        }
        self.relabel_namespaces(&words, again);
        let mut touched = Vec::new();
        for policy in &old {
            if let Some(slot) = self.policies.remove(&policy.id) {
                touched.push(slot);
            }
        }
        for policy in &new {
            let (slot, sets) = self.policies.add(policy, &mut self.vocabulary, &mut self.tables);
            touched.push(slot);
            for set in sets {
                self.cut_by(set, again);
            }
        }
        self.select_again(&touched, again);
        true
    }

    /// Pods that have such a word look different. False where most of them do, which is more work than a full compile.
    fn look_again(&mut self, words: &TermTurnover, again: &mut Again) -> bool {
        if !words.of_pods() {
            return true;
        }
        let shapes = self.shapes.with(words);
        let has = |shape: u32| shapes.get(shape as usize).is_some_and(|has| *has);
        let members = self.members.iter().filter(|(_, member)| has(member.shape));
        let members: Vec<u32> = members.map(|(number, _)| number).collect();
        if members.len() > self.members.len() / 2 + FEW_MEMBERS {
            return false;
        }
        for member in &members {
            self.detach(*member);
        }
        again.members.extend(members);
        true
    }

    /// A set of pods that no rule named before: cohorts in it look different from now on.
    fn cut_by(&mut self, set: u32, again: &mut Again) {
        let Some(matcher) = self.policies.sets.get(set as usize).map(|set| &set.matcher) else {
            return;
        };
        let held: Vec<u32> = self.cohorts.held_by(matcher);
        let mut by_list: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
        for cohort in held {
            if let Some(list) = self.cohorts.get(cohort).map(|cohort| cohort.list) {
                by_list.entry(list).or_default().push(cohort);
            }
        }
        for (list, cohorts) in by_list {
            let count = cohorts.len() as u32;
            if self
                .classes
                .widen(list, set, count, &mut self.policies, &self.vocabulary)
            {
                continue;
            }
            let mut sets = self.classes.sets(list).to_vec();
            sets.push(set); // it is new, so above all others
            for cohort in cohorts {
                self.classes.leave_list(list);
                let list = self.classes.list(sets.clone());
                if let Some(cohort) = self.cohorts.cohorts.get_mut(cohort as usize) {
                    cohort.list = list;
                    again.members.extend(&cohort.members);
                }
            }
        }
    }

    /// Policies came or went: which decide about the cohorts that they select or selected.
    fn select_again(&mut self, touched: &[u32], again: &mut Again) {
        let mut affected = Vec::new();
        for slot in touched {
            if let Some(slot) = self.policies.slots.get(*slot as usize) {
                for subjects in &slot.subjects {
                    affected.extend(self.cohorts.held_by(subjects));
                }
            }
        }
        affected.sort_unstable();
        affected.dedup();
        for index in affected {
            let (policies, _) = self.cohorts.policies_and_sets(index, &self.policies);
            let Some(cohort) = self.cohorts.cohorts.get_mut(index as usize) else {
                continue;
            };
            let before = std::mem::replace(&mut cohort.policies, policies);
            cohort.rows = None;
            if !cohort.members.is_empty() {
                self.policies.selects(&before, false);
                self.policies.selects(&cohort.policies, true);
                again.members.extend(&cohort.members);
            }
        }
    }

    /// A namespace that selectors see differently has other cohorts.
    fn update_namespaces(&mut self, last: &Cluster, again: &mut Again) {
        let next = self.cluster.namespaces.clone();
        for change in last.namespaces.diff(&next) {
            let (name, now) = match change {
                DiffItem::Add(name, new) => (name, Some(new)),
                DiffItem::Remove(name, _) => (name, None),
                DiffItem::Update { new: (name, new), .. } => (name, Some(new)),
            };
            if now.is_some() != last.namespaces.contains_key(name) || self.looks_different(name, now) {
                self.take_apart(last, name, again);
            }
        }
    }

    /// Namespaces with a key that policies began or ceased to name: no set that was there holds other pods, so that cohorts stay
    /// what they are, and their epochs do not.
    fn relabel_namespaces(&mut self, words: &TermTurnover, again: &mut Again) {
        if words.namespace_keys.is_empty() {
            return;
        }
        let next = self.cluster.namespaces.clone();
        for (name, namespace) in &next {
            if !namespace
                .labels
                .keys()
                .any(|key| words.namespace_keys.contains(key))
            {
                continue;
            }
            let labels = self.vocabulary.namespace_labels(&namespace.labels);
            let (cohorts, left) = self.cohorts.relabel(name, labels);
            left.into_iter().for_each(|list| self.classes.leave_list(list));
            for number in cohorts {
                let Some(cohort) = self.cohorts.cohorts.get_mut(number as usize) else {
                    continue;
                };
                let one = cohort.members.first().and_then(|one| self.members.get(*one));
                let Some(one) = one else { continue };
                cohort.seen = seen_of(&one.pod, namespace, cohort.peer_ports, &self.vocabulary);
                cohort.rows = None;
                again.members.extend(&cohort.members);
            }
        }
    }

    /// Whether selectors see a namespace of which there are cohorts in another way now.
    fn looks_different(&mut self, name: &str, now: Option<&Arc<Namespace>>) -> bool {
        let labels = now.map(|namespace| self.vocabulary.namespace_labels(&namespace.labels));
        let seen = self.cohorts.space_named(name).map(|space| &space.labels);
        seen.is_some() && seen != labels.as_ref()
    }

    /// Takes the pods of a namespace out of their cohorts, and the cohorts away.
    fn take_apart(&mut self, last: &Cluster, name: &str, again: &mut Again) {
        let first = ObjectKey {
            namespace: name.to_owned(),
            name: String::new(),
        };
        let pods = last.pods.range(first..);
        for (key, _) in pods.take_while(|(key, _)| key.namespace == *name) {
            if let Some(member) = self.members.find(key) {
                self.detach(member);
                again.members.push(member);
            }
        }
        for cohort in self.cohorts.forget_space(name) {
            if let Some(list) = self.cohorts.get(cohort).map(|cohort| cohort.list) {
                self.classes.leave_list(list);
            }
        }
    }

    fn update_pods(&mut self, last: &Cluster, again: &mut Again) {
        let next = self.cluster.pods.clone();
        for change in last.pods.diff(&next) {
            match change {
                DiffItem::Add(_, new) => self.pod_came(new, again),
                DiffItem::Remove(_, old) => self.pod_went(old, again),
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => self.pod_changed(old, new, again),
            }
        }
    }

    fn pod_came(&mut self, pod: &Arc<Pod>, again: &mut Again) {
        again.members.extend(self.admit(pod));
        again.addresses.extend(&pod.addresses);
    }

    fn pod_went(&mut self, pod: &Pod, again: &mut Again) {
        again.addresses.extend(&pod.addresses);
        if pod.host_network && !pod.finished {
            self.owners.hosted(pod, false);
        }
        if let Some(member) = self.members.find(&pod.key) {
            self.dismiss(member);
        }
    }

    fn pod_changed(&mut self, old: &Pod, new: &Arc<Pod>, again: &mut Again) {
        let number = match self.members.find(&old.key) {
            Some(number) if !new.finished && !new.host_network => number,
            _ => {
                self.pod_went(old, again);
                self.pod_came(new, again);
                return;
            }
        };
        again.addresses.extend(&old.addresses);
        self.detach(number);
        for address in &old.addresses {
            self.owners.release(*address, number);
        }
        for address in &new.addresses {
            self.owners.claim(*address, number);
        }
        if let Some(member) = self.members.get_mut(number) {
            member.pod = Arc::clone(new);
            member.shape = self.shapes.of(new);
        }
        again.members.push(number);
    }
}
