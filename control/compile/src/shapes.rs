//! Which label keys and names of ports pods have, each combination once: so that a word which policies begin or cease to
//! ask for leads to the pods that have it, and a pod costs no more than a number.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use ringwall_policy::{Pod, Protocol};

use super::selectors::TermTurnover;

/// A combination.
#[derive(Debug)]
struct Shape {
    /// In order.
    keys: Vec<String>,
    /// In the pod's order.
    ports: Vec<(Protocol, String)>,
}

impl Shape {
    fn is_of(&self, pod: &Pod) -> bool {
        self.keys.len() == pod.labels.len()
            && self.ports.len() == pod.named_ports.len()
            && self.keys.iter().eq(pod.labels.keys())
            && self
                .ports
                .iter()
                .zip(&pod.named_ports)
                .all(|((protocol, name), port)| (*protocol, name) == (port.protocol, &port.name))
    }

    fn hash(&self, hasher: &DefaultHashBuilder) -> u64 {
        hash(
            hasher,
            self.keys.iter().map(String::as_str),
            self.ports.iter().map(|(_, name)| name.as_str()),
        )
    }
}

fn hash<'a>(
    hasher: &DefaultHashBuilder,
    keys: impl Iterator<Item = &'a str>,
    ports: impl Iterator<Item = &'a str>,
) -> u64 {
    let mut hasher = hasher.build_hasher();
    for word in keys.chain(ports) {
        hasher.write(word.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.finish()
}

/// All combinations that ever were.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    shapes: Vec<Shape>,
    known: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// That of the pod before, whose replica the next one often is.
    last: u32,
}

impl Shapes {
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// The number of a pod's combination.
    pub(super) fn of(&mut self, pod: &Pod) -> u32 {
        let is_of = |number: &u32| self.shapes.get(*number as usize).is_some_and(|it| it.is_of(pod));
        if is_of(&self.last) {
            return self.last;
        }
        let keys = pod.labels.keys().map(String::as_str);
        let ports = pod.named_ports.iter().map(|port| port.name.as_str());
        let hash = hash(&self.hasher, keys, ports);
        if let Some(known) = self.known.find(hash, is_of) {
            self.last = *known;
            return *known;
        }
        let number = self.shapes.len() as u32;
        let ports = pod.named_ports.iter();
        self.shapes.push(Shape {
            keys: pod.labels.keys().cloned().collect(),
            ports: ports.map(|port| (port.protocol, port.name.clone())).collect(),
        });
        let Self {
            shapes,
            known,
            hasher,
            ..
        } = self;
        known.insert_unique(hash, number, |number| {
            shapes.get(*number as usize).map_or(0, |shape| shape.hash(hasher))
        });
        self.last = number;
        number
    }

    /// By number, whether pods of the combination have any of these words.
    pub(super) fn with(&self, words: &TermTurnover) -> Vec<bool> {
        let has = |shape: &Shape| {
            shape.keys.iter().any(|key| words.pod_keys.contains(key))
                || shape.ports.iter().any(|port| words.ports.contains(port))
        };
        self.shapes.iter().map(has).collect()
    }
}
