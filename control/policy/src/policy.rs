//! A `networking.k8s.io/v1` NetworkPolicy, defaulted and validated.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::ObjectKey;

/// A label key and its value.
pub type Label = (String, String);

/// A NetworkPolicy after defaulting (SEMANTICS 22, 26) and validation.
///
/// An invalid one is kept as what it still isolates: no rules, and `faults` that say why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty in manifests.
    pub uid: String,
    /// `spec.podSelector`, within the policy's own namespace.
    pub subjects: Selector,
    /// The ingress rules; None where policyTypes lacks Ingress, empty where nothing is allowed in.
    pub ingress: Option<Vec<Rule>>,
    /// The egress rules; None where policyTypes lacks Egress, empty where nothing is allowed out.
    pub egress: Option<Vec<Rule>>,
    /// Whether policyTypes was written; else the directions are those of defaulting (SEMANTICS 22). For people: what
    /// is in force is in `ingress` and `egress`.
    pub types_written: bool,
    /// What the sender of a packet gets that it denies; None where it leaves that to the configuration.
    pub answer: Option<DenialAnswer>,
    /// Why it is invalid; empty for a valid one. A policy with faults has no rules: it only isolates.
    pub faults: Vec<Fault>,
}

/// What the sender of a denied packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DenialAnswer {
    /// Nothing.
    Drop,
    /// An ICMP error: administratively prohibited.
    Prohibited,
    /// What it would get if nothing listened there: a TCP reset, or an ICMP error.
    Reset,
}

impl DenialAnswer {
    /// Every answer, by its word in annotations and configuration.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("drop", Self::Drop),
        ("prohibited", Self::Prohibited),
        ("reset", Self::Reset),
    ];
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// One ingress or egress rule: ports AND peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Who; None for everyone (absent or empty list, SEMANTICS 18).
    pub peers: Option<Vec<Peer>>,
    /// Where to; None for every port and protocol (absent or empty list, SEMANTICS 18).
    pub ports: Option<Vec<PortMatch>>,
}

/// One `from` or `to` entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Pods by selectors.
    Pods {
        /// Namespaces by label; None for the policy's own (SEMANTICS 6).
        namespaces: Option<Selector>,
        /// Pods by label; the empty selector where the manifest has none (SEMANTICS 5).
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// The block, host bits masked (SEMANTICS 40).
        cidr: IpNet,
        /// Parts of it that this peer does not match.
        except: Vec<IpNet>,
    },
    /// The addresses of a set, by its name among [`Cluster::address_sets`](super::Cluster::address_sets); none where
    /// there is no such set.
    Addresses(String),
}

/// A label selector: the conjunction of its requirements. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// matchLabels (as `In` with one value) and matchExpressions.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How the label's value is tested.
    pub operator: Operator,
}

/// How a label is tested (SEMANTICS 9).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// Present with one of the values.
    In(BTreeSet<String>),
    /// Absent, or present with none of the values.
    NotIn(BTreeSet<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present, and its value has a text in it (TIERS 97.1).
    Like {
        /// Where.
        part: Part,
        /// The text.
        text: String,
        /// Whether this is the contrary instead: absent, or a value without the text there.
        negated: bool,
    },
}

/// Where a label's value has a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Anywhere.
    Anywhere,
    /// At its start.
    Start,
    /// At its end.
    End,
}

impl Part {
    /// Whether a value has a text there.
    pub fn holds(self, value: &str, text: &str) -> bool {
        match self {
            Self::Anywhere => value.contains(text),
            Self::Start => value.starts_with(text),
            Self::End => value.ends_with(text),
        }
    }
}

/// A protocol that policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
}

impl Protocol {
    /// As manifests call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// One `ports` entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// Every port of a protocol, 0 included.
    All(Protocol),
    /// Ports `lo..=hi` of a protocol; `1 <= lo <= hi`.
    Range {
        /// The protocol.
        protocol: Protocol,
        /// First port.
        lo: u16,
        /// Last port.
        hi: u16,
    },
    /// What the pod calls `name` whose port it is: the destination (SEMANTICS 31), or the source of a source port (TIERS 99.7).
    Named {
        /// The protocol.
        protocol: Protocol,
        /// The port's name.
        name: String,
    },
    /// All of an IP protocol other than TCP, UDP and SCTP, by its number.
    IpProtocol(u8),
    /// ICMP or ICMPv6 of a type; packets whose type is not known do not match.
    Icmp {
        /// 1 or 58.
        protocol: u8,
        /// The type.
        kind: u8,
        /// The code; None for all of the type.
        code: Option<u8>,
    },
}
