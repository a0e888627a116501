//! Content hashes: what things mean, whatever their numbers are.
//!
//! Every string and list is preceded by its length, every variant by a number, so that different contents give
//! different bytes.

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{
    Action, Operator, PortMatch, Selector,
    tiers::{NamespaceSet, PodSet, Rule},
};
use smallvec::SmallVec;

use super::{blocks::Block, ports::NamedPort};

/// A content hash.
pub(super) type Content = [u8; 32];

/// Collects content.
///
/// In memory until the end: most contents are short, and hashing one of them in one go costs a fraction of setting up
/// an incremental hasher.
pub(super) struct Digest<'k> {
    key: Option<&'k [u8; 32]>,
    bytes: SmallVec<[u8; 256]>, // few contents are longer
}

impl<'k> Digest<'k> {
    /// `of` names the kind of thing, so that no two kinds share hashes.
    pub(super) fn new(of: &str) -> Self {
        Self::with_key(None, of)
    }

    pub(super) fn keyed(key: &'k [u8; 32], of: &str) -> Self {
        Self::with_key(Some(key), of)
    }

    fn with_key(key: Option<&'k [u8; 32]>, of: &str) -> Self {
        let mut digest = Self {
            key,
            bytes: SmallVec::new(),
        };
        digest.text(of);
        digest
    }

    pub(super) fn finish(&self) -> Content {
        let hash = match self.key {
            None => blake3::hash(&self.bytes),
            Some(key) => blake3::keyed_hash(key, &self.bytes),
        };
        *hash.as_bytes()
    }

    /// The first eight bytes as a number.
    pub(super) fn short(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.finish();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Seven bits at a time, the lowest first; all but the last byte have the highest bit. What is hashed for each pod
    /// then mostly fits one block of the hash.
    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn content(&mut self, content: &Content) {
        self.bytes.extend_from_slice(content);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8; 16]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn labels<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)>) {
        for (key, value) in labels {
            self.number(1);
            self.text(key);
            self.text(value);
        }
        self.number(0);
    }

    pub(super) fn named_ports(&mut self, ports: &[NamedPort]) {
        self.number(ports.len() as u64);
        for ((protocol, name), number) in ports {
            self.number(u64::from(protocol.number()));
            self.text(name);
            self.number(u64::from(*number));
        }
    }

    fn net(&mut self, net: &IpNet) {
        match net.addr() {
            IpAddr::V4(address) => self.number(u64::from(u32::from(address))),
            IpAddr::V6(address) => {
                self.number(u64::MAX);
                self.bytes(&address.octets());
            }
        }
        self.number(u64::from(net.prefix_len()));
    }

    /// Order and repetition of requirements do not matter.
    fn selector(&mut self, selector: &Selector) {
        let mut requirements: Vec<_> = selector.requirements.iter().collect();
        requirements.sort_unstable();
        requirements.dedup();
        self.number(requirements.len() as u64);
        for requirement in requirements {
            self.text(&requirement.key);
            let (number, values) = match &requirement.operator {
                Operator::In(values) => (0, Some(values)),
                Operator::NotIn(values) => (1, Some(values)),
                Operator::Exists => (2, None),
                Operator::DoesNotExist => (3, None),
                Operator::Like { part, text, negated } => {
                    self.number(4 + 2 * (*part as u64) + u64::from(*negated));
                    self.text(text);
                    continue;
                }
            };
            self.number(number);
            self.number(values.map_or(0, |values| values.len() as u64));
            for value in values.into_iter().flatten() {
                self.text(value);
            }
        }
    }

    fn pod_set(&mut self, set: &PodSet<'_>) {
        match set.namespaces {
            NamespaceSet::Named(name) => {
                self.number(0);
                self.text(name);
            }
            NamespaceSet::Matching(selector) => {
                self.number(1);
                self.selector(selector);
            }
        }
        self.selector(set.pods);
    }

    fn block(&mut self, cidr: &IpNet, except: &[IpNet]) {
        self.net(cidr);
        self.number(except.len() as u64);
        for except in except {
            self.net(except);
        }
    }

    /// Contents in any order, each once.
    pub(super) fn set(&mut self, mut contents: Vec<Content>) {
        contents.sort_unstable();
        contents.dedup();
        self.number(contents.len() as u64);
        for content in &contents {
            self.content(content);
        }
    }

    /// All that a rule says; `peers` are the contents of its peers. Order and repetition of peers and ports do not
    /// matter.
    /// `peers` and `conditions`, of the peer and of the pod itself, are what those of the rule are.
    pub(super) fn rule(
        &mut self,
        rule: &Rule<'_>,
        peers: Option<Vec<Content>>,
        conditions: [Vec<(bool, Vec<Content>)>; 2],
    ) {
        self.number(u64::from(rule.index));
        self.number(match rule.action {
            Action::Allow => 0,
            Action::Deny => 1,
            Action::Pass => 2,
            Action::Log => 3,
        });
        match peers {
            None => self.number(u64::MAX),
            Some(peers) => self.set(peers),
        }
        match rule.ports {
            None => self.number(u64::MAX),
            Some(ports) => self.ports(ports),
        }
        // No rule has such an index, with which the next one would begin.
        for (end, conditions) in (1..).zip(conditions) {
            for (negated, any) in conditions {
                self.number(u64::MAX - end);
                self.number(u64::from(negated));
                self.set(any);
            }
        }
        if !rule.not_ports.is_empty() {
            self.number(u64::MAX - 3);
            self.ports(rule.not_ports);
        }
        if let Some(ports) = rule.source_ports {
            self.number(u64::MAX - 4);
            self.ports(ports);
        }
        if !rule.not_source_ports.is_empty() {
            self.number(u64::MAX - 5);
            self.ports(rule.not_source_ports);
        }
    }

    fn ports(&mut self, ports: &[PortMatch]) {
        let mut ports: Vec<&PortMatch> = ports.iter().collect();
        ports.sort_unstable();
        ports.dedup();
        self.number(ports.len() as u64);
        for port in ports {
            self.port(port);
        }
    }

    fn port(&mut self, port: &PortMatch) {
        match port {
            PortMatch::All(protocol) => {
                self.number(0);
                self.number(u64::from(protocol.number()));
            }
            PortMatch::Range { protocol, lo, hi } => {
                self.number(1);
                self.number(u64::from(protocol.number()));
                self.number(u64::from(*lo) << 16 | u64::from(*hi));
            }
            PortMatch::Named { protocol, name } => {
                self.number(2);
                self.number(u64::from(protocol.number()));
                self.text(name);
            }
            PortMatch::IpProtocol(protocol) => {
                self.number(3);
                self.number(u64::from(*protocol));
            }
            PortMatch::Icmp { protocol, kind, code } => {
                self.number(4);
                self.number(u64::from(*protocol));
                self.number(u64::from(*kind));
                self.number(code.map_or(u64::MAX, u64::from));
            }
        }
    }
}

/// What a set of pods is.
pub(super) fn of_pod_set(set: &PodSet<'_>) -> Content {
    let mut digest = Digest::new("pods");
    digest.pod_set(set);
    digest.finish()
}

/// What a block is.
pub(super) fn of_block(block: &Block) -> Content {
    match block {
        Block::Cidr { cidr, except } => {
            let mut digest = Digest::new("block");
            digest.block(cidr, except);
            digest.finish()
        }
        // Who is in it is in the classes that it holds.
        Block::Set(name) => {
            let mut digest = Digest::new("address set");
            digest.text(name);
            digest.finish()
        }
    }
}

/// A set of contents, summed: the same in any order, and cheap to keep up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    pub(super) fn of(content: &Content) -> Self {
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(content.as_chunks::<8>().0) {
            *lane = u64::from_le_bytes(*bytes);
        }
        Self(lanes)
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(other);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(other);
        }
    }

    pub(super) fn digest(&self, digest: &mut Digest<'_>) {
        for lane in self.0 {
            digest.number(lane);
        }
    }
}
