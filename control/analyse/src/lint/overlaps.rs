//! Which policies can select a pod together, without a look at every pair.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
};

use ringwall_policy::{Operator, PodSelection, Selector};

use super::order::{Ordered, Ranked};

/// How many pairs of policies, or of rules, are looked at. Findings that would take more are not looked for.
const MOST_LOOKS: usize = 1_000_000;

/// For as many labels there are lists of the policies that ask for one of their values.
const MOST_LABELS: usize = 16;

/// A label that selectors ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Label<'o> {
    OfNamespace(&'o str),
    OfPod(&'o str),
}

/// The policies that ask for values of a label, and all others, by their place in the order.
#[derive(Default)]
struct Asking<'o> {
    by_value: HashMap<&'o str, Vec<usize>>,
    others: Vec<usize>,
}

/// The policies that are no NetworkPolicies, by what they ask of the pods that they select.
pub(super) struct Overlaps<'o, 'a> {
    ordered: &'o Ordered<'a>,
    asking: HashMap<Label<'o>, Asking<'o>>,
    looks_left: Cell<usize>,
}

impl<'o, 'a> Overlaps<'o, 'a> {
    pub(super) fn of(ordered: &'o Ordered<'a>) -> Self {
        let indexed = || {
            let policies = ordered.policies.iter().enumerate();
            policies.filter(|(_, policy)| !policy.is_network_policy())
        };
        let mut counts: HashMap<Label<'o>, usize> = HashMap::new();
        for (_, policy) in indexed() {
            for label in labels_of(policy) {
                *counts.entry(label).or_default() += 1;
            }
        }
        let mut labels: Vec<(usize, Label<'o>)> =
            counts.into_iter().map(|(label, count)| (count, label)).collect();
        labels.sort_unstable_by(|a, b| b.cmp(a));
        let mut asking: HashMap<Label<'o>, Asking<'o>> = HashMap::new();
        for (_, label) in labels.into_iter().take(MOST_LABELS) {
            let asking = asking.entry(label).or_default();
            for (index, policy) in indexed() {
                match values(policy, label) {
                    Some(values) => {
                        for value in values {
                            asking.by_value.entry(value).or_default().push(index);
                        }
                    }
                    None => asking.others.push(index),
                }
            }
        }
        Self {
            ordered,
            asking,
            looks_left: Cell::new(MOST_LOOKS),
        }
    }

    /// Whether as many more looks may be taken.
    pub(super) fn may_look(&self, times: usize) -> bool {
        let left = self.looks_left.get();
        self.looks_left.set(left.saturating_sub(times));
        left >= times
    }

    /// The policies before one, but for NetworkPolicies, that can select a pod that it selects; in order. None where too many
    /// would have to be looked at.
    pub(super) fn before(&self, index: usize) -> Option<Vec<&'o Ranked<'a>>> {
        let policy = self.ordered.policies.get(index)?;
        let shortest = labels_of(policy)
            .into_iter()
            .filter_map(|label| {
                let (asking, values) = (self.asking.get(&label)?, values(policy, label)?);
                let same = values.iter().filter_map(|value| asking.by_value.get(value));
                let lists: Vec<&Vec<usize>> = same.chain([&asking.others]).collect();
                Some((lists.iter().map(|list| list.len()).sum::<usize>(), lists))
            })
            .min_by_key(|(length, _)| *length);
        let mut candidates: Vec<usize> = match shortest {
            Some((_, lists)) => lists
                .into_iter()
                .flatten()
                .copied()
                .filter(|it| *it < index)
                .collect(),
            None => (0..index).collect(),
        };
        candidates.sort_unstable();
        candidates.dedup();
        if !self.may_look(candidates.len()) {
            return None;
        }
        let policies = candidates
            .into_iter()
            .filter_map(|it| self.ordered.policies.get(it));
        let overlapping =
            policies.filter(|it| !it.is_network_policy() && !it.is_apart_from(&policy.subjects));
        Some(overlapping.collect())
    }

    #[cfg(test)]
    pub(super) fn looks(&self) -> usize {
        MOST_LOOKS - self.looks_left.get()
    }
}

/// The labels of which every selection of a policy asks for a value.
fn labels_of<'o>(policy: &'o Ranked<'_>) -> BTreeSet<Label<'o>> {
    let of = |selection: &'o PodSelection| {
        let asked = |selector: &'o Selector| {
            let requirements = selector.requirements.iter();
            requirements.filter(|it| matches!(it.operator, Operator::In(_)))
        };
        let of_namespace = asked(&selection.namespaces).map(|it| Label::OfNamespace(&it.key));
        let of_pod = asked(&selection.pods).map(|it| Label::OfPod(&it.key));
        of_namespace.chain(of_pod).collect::<BTreeSet<_>>()
    };
    let labels = policy.subjects.iter().map(of);
    labels
        .reduce(|a, b| a.intersection(&b).copied().collect())
        .unwrap_or_default()
}

/// The values of a label that a policy asks for; None where a selection of it asks for none.
fn values<'o>(policy: &'o Ranked<'_>, label: Label<'o>) -> Option<BTreeSet<&'o str>> {
    let mut all = BTreeSet::new();
    for selection in &policy.subjects {
        let (selector, key) = match label {
            Label::OfNamespace(key) => (&selection.namespaces, key),
            Label::OfPod(key) => (&selection.pods, key),
        };
        all.extend(selector.requirements.iter().find_map(|it| match &it.operator {
            Operator::In(values) if it.key == key => Some(values.iter().map(String::as_str)),
            _ => None,
        })?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use ringwall_policy::{Action, Cluster, KUBE_ADMIN, Order, Requirement};

    use super::*;
    use crate::{
        lint::subject::Subject,
        tiers_bed::{insert, policy, rule},
    };

    const POLICIES: usize = 2800;

    /// Policies that each select pods with one of `values` values of a label; all pods where there is none.
    fn cluster(values: usize) -> Cluster {
        let mut cluster = Cluster::default();
        for number in 0..POLICIES {
            let mut it = policy(
                KUBE_ADMIN,
                &format!("p{number}"),
                &[rule(Action::Deny, None)],
                &[],
            );
            it.order = Order::of_priority((number % 1000) as u16);
            if values > 0 {
                it.subjects[0].pods.requirements = vec![Requirement {
                    key: "app".to_owned(),
                    operator: Operator::In([format!("a{}", number % values)].into()),
                }];
            }
            insert(&mut cluster, it);
        }
        cluster
    }

    fn looks(values: usize) -> (usize, usize) {
        let cluster = cluster(values);
        let services = ringwall_policy::services::Services::default();
        let subject = Subject::new(&cluster, &services, &[]);
        let ordered = Ordered::of(&subject);
        let overlaps = Overlaps::of(&ordered);
        let before = (0..POLICIES).filter_map(|index| overlaps.before(index));
        (before.map(|before| before.len()).sum(), overlaps.looks())
    }

    #[test]
    fn policies_that_ask_for_other_values_are_not_looked_at() {
        assert_eq!(looks(POLICIES), (0, 0));
        // 28 policies for each of 100 values: every pair of them.
        let pairs = 100 * (28 * 27 / 2);
        assert_eq!(looks(100), (pairs, pairs));
    }

    #[test]
    fn policies_that_all_overlap_are_looked_at_up_to_a_bound() {
        let (found, looks) = looks(0);
        assert_eq!(looks, MOST_LOOKS);
        assert!(found > MOST_LOOKS * 99 / 100, "{found}");
    }
}
