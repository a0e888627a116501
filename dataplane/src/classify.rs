//! The snapshot: who an address is and what may pass between two of them.
//!
//! The compiler fills an [`ImageBuilder`] and changes it; each [`Image`] that it answers is immutable and shares what did
//! not change with the one before. It travels as a whole ([`Image::to_bytes`]) or as a delta ([`Image::delta_since`]). A
//! [`Snapshot`] is the read side: fully validated when opened or changed by a delta; no content makes a read leave it.

mod bucket;
mod build;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod forged;
mod image;
mod layout;
mod pods;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod validate;

use zerocopy::{Immutable, KnownLayout, TryFromBytes};

pub use build::{BuildError, ImageBuilder, Page, PortDecision, PortRange};
pub use image::{Image, ImageError};
pub use layout::{CLASSES_PER_PAGE, Decision, LAYOUT_VERSION, NONE};
pub use snapshot::{
    BATCH, CellPage, FirstPacket, JudgedPacket, RangeNodes, Sizes, Snapshot, SnapshotChanges,
};

/// Number of a snapshot; strictly increasing, 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum IdentityKind {
    /// A live pod's address.
    Pod = 0,
    /// A node's address.
    Node = 1,
    /// Outside of the cluster.
    External = 2,
    /// Inside a pod CIDR, but not of a known pod (SEMANTICS 53).
    Unknown = 3,
    /// Inside a Service CIDR.
    Service = 4,
}

/// Who an address is, in numbers of one snapshot. Lies in memory as it does in images, so that it is not put together anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Identity {
    /// What it is.
    pub kind: IdentityKind,
    /// Number of the pod (all its addresses share it); meaningless for others.
    pub endpoint: u32,
    /// Number of the node: itself, or the one that hosts the pod; `u32::MAX` for none.
    pub node: u32,
    /// Column in the rows of others.
    pub peer_class: u32,
    /// Row of what may come in to a pod; 0 is open.
    pub ingress: u32,
    /// Row of what may go out of a pod; 0 is open.
    pub egress: u32,
    /// Changes whenever a decision about this endpoint could change: hash of its incarnation, what selectors see of
    /// it, and the rules that apply to it. See [`epoch`].
    pub epoch: u64,
}

/// The bits of an epoch that identify its end. The highest eight are no part: flows add the kind there.
const OWNER_BITS: u64 = 0x00ff_ffff_0000_0000;

/// An epoch made of two hashes: of the identity of an end, and of everything else that decides about it. If the
/// second changes, its flows are judged again. If the first changes, they end: the new owner of the address is not
/// their party.
pub const fn epoch(who: u64, rest: u64) -> u64 {
    who & OWNER_BITS | rest & !OWNER_BITS
}

/// Whether two epochs are of the same end.
pub(crate) const fn is_same_owner(one: u64, other: u64) -> bool {
    (one ^ other) & OWNER_BITS == 0
}

/// What is known of the destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// A protocol with ports (TCP, UDP, SCTP) whose destination port could be read; or ICMP over IPv4 or ICMPv6 over IPv6
    /// whose type and code could be.
    Port {
        /// IP protocol number.
        protocol: u8,
        /// Destination port; of ICMP, what [`icmp`] makes of its type and code.
        port: u16,
        /// Source port; 0 of ICMP.
        source: u16,
    },
    /// A protocol without ports, or one whose header could not be reached (SEMANTICS 35, 63): matches only rules
    /// without ports.
    NoPort {
        /// IP protocol number; 255 where unknown.
        protocol: u8,
    },
}

/// Type and code of ICMP, where other protocols have their port: the type is the upper byte.
pub const fn icmp(kind: u8, code: u8) -> u16 {
    u16::from_be_bytes([kind, code])
}

impl L4 {
    /// Of an IP protocol number and the destination port (of ICMP, type and code), where the protocol has one and it could be
    /// read; the source port is `source`.
    #[inline]
    pub fn of(protocol: u8, port: Option<u16>, source: u16) -> Self {
        match port {
            Some(port) => Self::Port {
                protocol,
                port,
                source,
            },
            None => Self::NoPort { protocol },
        }
    }
}

/// Why a direction was decided as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Effect {
    /// A rule allows it.
    Allow = 0,
    /// Policies isolate the pod and no rule allows it.
    Isolated = 1,
    /// No policy isolates the pod in this direction, or the end is not a pod.
    Open = 2,
    /// A pod to its own address.
    SelfTraffic = 3,
    /// A pod and the node that hosts it.
    Node = 4,
    /// The end is an address without an owner.
    Unknown = 5,
    /// A rule denies it. Only ordered tiers have such rules; NetworkPolicy has none.
    Deny = 6,
    /// The numbers asked about are not of this snapshot: denied. Never seen while identities are used with the
    /// snapshot that gave them.
    Invalid = 7,
    /// Policies apply to the pod in this direction, but none decides and no tier denies by default: what comes after all
    /// tiers, the pod's profile, allows it (SEMANTICS 79.4).
    Profile = 8,
}

impl Effect {
    /// Its name in answers, flows and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Isolated => "isolated",
            Self::Open => "open",
            Self::SelfTraffic => "self",
            Self::Node => "node",
            Self::Unknown => "unknown",
            Self::Deny => "deny",
            Self::Invalid => "invalid",
            Self::Profile => "profile",
        }
    }
}

/// The decision of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectionVerdict {
    /// Whether the direction allows the packet.
    pub allow: bool,
    /// Why.
    pub effect: Effect,
    /// Index into the provenance table: the rule that allows, or the set of policies that isolate; `u32::MAX` for none.
    pub provenance: u32,
}

/// The decision about a packet that begins a flow: it passes where both directions allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Of the destination.
    pub ingress: DirectionVerdict,
    /// Of the source.
    pub egress: DirectionVerdict,
}

impl Judgement {
    /// Whether the packet passes.
    #[inline]
    pub fn allow(self) -> bool {
        self.ingress.allow && self.egress.allow
    }
}

/// Which row of a snapshot decides about an end in one direction. Cold: for those who ask about every packet at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// Everything passes.
    Open,
    /// The end is an address without an owner: nothing passes.
    Unknown,
    /// The end is not of this snapshot: nothing passes.
    Invalid,
    /// The cells of a row, by the row's number.
    Cells(u32),
}

/// What one cell decides about a span of ports by source port. Cold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpans {
    /// Protocol number.
    pub protocol: u8,
    /// The first port of the span.
    pub first: u16,
    /// From each source port on what is decided; the first is 0.
    pub spans: Vec<(u16, DirectionVerdict)>,
}

/// What one cell decides about every protocol and port. Cold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpans {
    /// For TCP, UDP and SCTP: protocol number, and from each port on what is decided; the first port is 0.
    pub protocols: [(u8, Vec<(u16, DirectionVerdict)>); 3],
    /// Of the protocols without ports, by number: from each on what is decided; empty where they are all decided alike,
    /// else the first is 0. Of ICMP and ICMPv6, what is decided where type and code are not known.
    pub others: Vec<(u8, DirectionVerdict)>,
    /// ICMP and ICMPv6, where types are told apart: protocol number, and from each type and code ([`icmp`]) on what is
    /// decided; the first is 0.
    pub by_type: Vec<(u8, Vec<(u16, DirectionVerdict)>)>,
    /// Spans of `protocols` where source ports are told apart; there, they have what is decided if it is not known.
    pub by_source: Vec<SourceSpans>,
    /// Where no port is known, and for every protocol where `others` is empty.
    pub portless: DirectionVerdict,
}

/// Where a packet that claims a node's address came from (SEMANTICS 47).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeExemption {
    /// By the host port or a port of side nodes, or towards a node: pod and its own node always pass.
    Trusted,
    /// Else: judged like any external address.
    Untrusted,
    /// Between a pod on a port of this machine and this machine itself, by whatever address of it: always passes.
    ThisNode,
}

/// Who decided: what [`DirectionVerdict::provenance`] points to. Cold: read for first packets and by people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance<'a> {
    /// The rule that matched first.
    Rule {
        /// The policy that holds the rule.
        policy: PolicyName<'a>,
        /// Index of the rule in the policy's list for the direction.
        rule: u32,
    },
    /// Every policy that isolates the pod in the direction, in order of namespace and name.
    Isolating(Vec<PolicyName<'a>>),
}

/// Name of a policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName<'a> {
    /// Tier, such as `NetworkPolicy`.
    pub tier: &'a str,
    /// Kind of the object, such as `NetworkPolicy`.
    pub kind: &'a str,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl std::fmt::Display for PolicyName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What the sender of a packet gets that policy denies, the least telling first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DenialAnswer {
    /// Nothing.
    #[default]
    Drop,
    /// An ICMP error that names the cause: administratively prohibited (RFC 1812 5.2.7.1, RFC 4443 3.1).
    Prohibited,
    /// What it would get if nothing listened there: a TCP reset, for UDP an ICMP port unreachable, else as
    /// [`Self::Prohibited`].
    Reset,
}

impl DenialAnswer {
    /// Its number in images.
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }

    /// The answer of a number in images.
    pub(crate) const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Drop),
            1 => Some(Self::Prohibited),
            2 => Some(Self::Reset),
            _ => None,
        }
    }

    /// As configuration and annotations write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Prohibited => "prohibited",
            Self::Reset => "reset",
        }
    }
}

/// A pod or workload template that the snapshot knows by name. Cold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Its number: [`Identity::endpoint`].
    pub number: u32,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Whether it is a workload template that stands for pods.
    pub template: bool,
    /// Who it is apart from any address: selectors see it, no ipBlock does. For templates and pods without address;
    /// use [`Snapshot::identify`] where there is an address.
    pub identity: Identity,
}
