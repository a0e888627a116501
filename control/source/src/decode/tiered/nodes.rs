//! `nodes` peers (TIERS 73.6): the addresses of the Nodes with certain labels, as Nodes come, change and go.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use ringwall_policy::{AddressSet, Labels, Operator, Part, Requirement, Selector};
use serde_json::Value;

use super::super::{
    calico::readable_labels,
    field::{Fields, address as read_address},
};

/// A peer of an egress rule by labels of nodes.
pub(in super::super) struct NodesPeer {
    /// The rule's index.
    pub(in super::super) rule: usize,
    /// Where the peer stands, relative to the document.
    pub(in super::super) path: String,
    pub(in super::super) nodes: Selector,
}

/// The labels of a Node, and the addresses in its status: others that count as the node's (SEMANTICS 47) are none here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(in super::super) labels: Labels,
    addresses: Vec<IpAddr>,
}

impl Node {
    /// Reads what a Node is to rules that speak of nodes.
    pub(in super::super) fn of(root: &Fields) -> Self {
        let at = |field: &str, key: &str| root.get(field).and_then(|fields| fields.get(key));
        let entries = at("status", "addresses").and_then(Value::as_array);
        // Names stand there, too, and addresses may stand under any type (T24).
        let addresses = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| read_address(entry.get("address")?.as_str()?).map(|(address, _)| address));
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort();
        addresses.dedup();
        Self {
            labels: readable_labels(at("metadata", "labels")),
            addresses,
        }
    }
}

/// The Nodes of a source, each under a key of the source's.
#[derive(Clone, Debug)]
pub(in super::super) struct Nodes<K> {
    nodes: BTreeMap<K, Arc<Node>>,
    /// Whether some cannot be read.
    unreadable: bool,
}

impl<K> Default for Nodes<K> {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            unreadable: false,
        }
    }
}

impl<K: Ord> Nodes<K> {
    /// Takes what a node is now; whether it is the only one.
    pub(in super::super) fn insert(&mut self, key: K, node: Arc<Node>) -> bool {
        self.nodes.insert(key, node);
        self.nodes.len() == 1
    }

    /// Takes the end of a node; whether none is left.
    pub(in super::super) fn remove(&mut self, key: &K) -> bool {
        self.nodes.remove(key);
        self.nodes.is_empty()
    }

    /// Takes whether every node can be read; whether that is news.
    pub(in super::super) fn see_all(&mut self, readable: bool) -> bool {
        std::mem::replace(&mut self.unreadable, !readable) == readable
    }

    /// Whether it is known which addresses a rule about nodes is for. Where there is no Node at all, as in a folder without them, a
    /// Deny would miss them.
    pub(in super::super) fn are_known(&self) -> bool {
        !self.unreadable && !self.nodes.is_empty()
    }

    /// The addresses of the nodes that a selector selects.
    pub(in super::super) fn addresses(&self, selector: &Selector) -> AddressSet {
        let nodes = self.nodes.values().filter(|node| selects(selector, &node.labels));
        let addresses = nodes.flat_map(|node| &node.addresses);
        addresses.map(|address| IpNet::from(*address)).collect()
    }
}

/// A selector of nodes in words: different ones in different words.
pub(in super::super) fn in_words(selector: &Selector) -> String {
    let words = selector
        .requirements
        .iter()
        .map(|Requirement { key, operator }| match operator {
            Operator::In(values) => format!("{key} in {values:?}"),
            Operator::NotIn(values) => format!("{key} not in {values:?}"),
            Operator::Exists => format!("has({key})"),
            Operator::DoesNotExist => format!("!has({key})"),
            Operator::Like { part, text, negated } => format!("{key} {negated} {part:?} {text:?}"),
        });
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => "all()".to_owned(),
        false => words.join(" && "),
    }
}

/// Whether a selector selects what has these labels.
pub(in super::super) fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|it| {
        let value = labels.get(&it.key);
        match &it.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Like { part, text, negated } => {
                let like = |value: &String| match part {
                    Part::Anywhere => value.contains(text),
                    Part::Start => value.starts_with(text),
                    Part::End => value.ends_with(text),
                };
                value.is_some_and(like) != *negated
            }
        }
    })
}
