//! Which label keys and port names pods have: to find those that policies can tell apart by a word that is new.

use hashbrown::{HashMap, HashSet};
use ringwall_policy::{Pod, Protocol};

/// Words that no policy used before.
#[derive(Debug, Default)]
pub(super) struct NewWords {
    pub keys: HashSet<String>,
    pub ports: HashSet<(Protocol, String)>,
    /// Those of the ports that rules ask for of peers.
    pub peer_ports: HashSet<(Protocol, String)>,
}

impl NewWords {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ports.is_empty()
    }

    /// Whether a pod has any of them.
    pub(super) fn are_of(&self, pod: &Pod) -> bool {
        pod.labels.keys().any(|key| self.keys.contains(key))
            || pod
                .named_ports
                .iter()
                .any(|port| self.ports.contains(&(port.protocol, port.name.clone())))
    }
}

/// The words of pods, by number: replicas have the same.
#[derive(Debug, Default)]
pub(super) struct PodWords {
    numbers: HashMap<Vec<u8>, u32>,
    /// By number, whatever of the words of a pod tells them from others.
    examples: Vec<Pod>,
}

impl PodWords {
    /// The number of a pod's words.
    pub(super) fn number(&mut self, pod: &Pod) -> u32 {
        let mut words = Vec::with_capacity(192);
        let mut put = |text: &str| {
            words.extend((text.len() as u32).to_le_bytes());
            words.extend(text.as_bytes());
        };
        pod.labels.keys().for_each(|key| put(key));
        for port in &pod.named_ports {
            put(&port.name);
            put(match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            });
        }
        words.extend((pod.labels.len() as u32).to_le_bytes());
        let next = self.examples.len() as u32;
        let number = *self.numbers.entry(words).or_insert(next);
        if number == next {
            self.examples.push(pod.clone());
        }
        number
    }

    /// By number, whether any of these is among the words.
    pub(super) fn having(&self, words: &NewWords) -> Vec<bool> {
        self.examples.iter().map(|pod| words.are_of(pod)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.examples.len()
    }
}
