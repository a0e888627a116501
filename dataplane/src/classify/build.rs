//! Writing images: what the compiler, and tests that need a small snapshot, put tables together with.
//!
//! ```
//! # use ringwall_dataplane::{addr::Addr, classify::*};
//! // Pod 10.0.0.1 accepts TCP 80 from everyone, by rule 0 of policy default/web.
//! let mut image = ImageBuilder::new(Generation(1));
//! let web = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
//! let rule = image.rule(web, 0);
//! let map = image.port_map(PortDecision::DENY, &[PortRange::allow(6, 80, 80, rule)]);
//! let isolating = image.isolating(&[web]);
//! let row = image.row(isolating, &[map]); // one peer class: 0
//! let group = image.group(row, 0);
//! ```

use super::{
    Generation, Identity,
    layout::{Decision, NONE},
};
use crate::addr::Addr;

/// Why an image could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Writing is not written yet.
    #[error("snapshot images cannot be written yet")]
    Unfinished,
}

/// A decision and the rule behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortDecision {
    /// What is decided.
    pub decision: Decision,
    /// The rule that decides, from [`ImageBuilder::rule`]; [`NONE`] where none does: deny then means isolated,
    /// allow means open.
    pub provenance: u32,
}

impl PortDecision {
    /// No rule matches and the pod is isolated.
    pub const DENY: Self = Self {
        decision: Decision::DENY,
        provenance: NONE,
    };
    /// No rule matches and the pod is not isolated.
    pub const OPEN: Self = Self {
        decision: Decision::ALLOW,
        provenance: NONE,
    };

    /// Allowed by a rule.
    pub const fn allow(rule: u32) -> Self {
        Self {
            decision: Decision::ALLOW,
            provenance: rule,
        }
    }
}

/// Ports `lo..=hi` of a protocol and their decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// IP protocol: 6, 17 or 132.
    pub protocol: u8,
    /// First port.
    pub lo: u16,
    /// Last port.
    pub hi: u16,
    /// The decision.
    pub then: PortDecision,
}

impl PortRange {
    /// Ports that a rule allows.
    pub const fn allow(protocol: u8, lo: u16, hi: u16, rule: u32) -> Self {
        Self {
            protocol,
            lo,
            hi,
            then: PortDecision::allow(rule),
        }
    }
}

/// Collects tables and writes them as an image.
#[derive(Debug)]
pub struct ImageBuilder {
    _generation: Generation,
}

impl ImageBuilder {
    /// An empty image: every address is external, class 0.
    pub fn new(generation: Generation) -> Self {
        Self {
            _generation: generation,
        }
    }
    /// Whether traffic of unknown endpoints is allowed.
    pub fn allow_unknown(&mut self, _allow: bool) {}
    /// Adds an identity and answers its index.
    pub fn identity(&mut self, _identity: Identity) -> u32 {
        0
    }
    /// Says whose a host address is. The last word on an address counts.
    pub fn host(&mut self, _addr: Addr, _identity: u32) {}
    /// Says whose the addresses of a prefix are that no [`Self::host`] and no longer prefix names. `length` counts
    /// from the first bit of the family's address: 0..=32 for IPv4, 0..=128 for IPv6.
    pub fn prefix(&mut self, _addr: Addr, _length: u8, _identity: u32) {}
    /// Adds a policy's name and answers its index.
    pub fn policy(&mut self, _tier: &str, _kind: &str, _namespace: &str, _name: &str) -> u32 {
        0
    }
    /// Provenance of a rule of a policy.
    pub fn rule(&mut self, _policy: u32, _rule: u32) -> u32 {
        0
    }
    /// Provenance of a set of isolating policies, given in order of their names.
    pub fn isolating(&mut self, _policies: &[u32]) -> u32 {
        0
    }
    /// Adds a port map: what holds for ports in no range and for packets without ports (`otherwise`), then ranges that
    /// do not overlap.
    pub fn port_map(&mut self, _otherwise: PortDecision, _ranges: &[PortRange]) -> u32 {
        0
    }
    /// Adds a row: port maps by peer class. Rows shorter than the widest go on with their last cell.
    pub fn row(&mut self, _isolating: u32, _cells: &[u32]) -> u32 {
        0
    }
    /// Adds a group: rows of [`Self::row`], 0 for a direction that is open.
    pub fn group(&mut self, _ingress: u32, _egress: u32) -> u32 {
        0
    }
    /// Names an endpoint; numbers are given in order of the calls, which must be sorted by namespace and name.
    /// `identity` is who it is apart from any address.
    pub fn endpoint(&mut self, _namespace: &str, _name: &str, _template: bool, _identity: u32) -> u32 {
        0
    }
    /// Names a node and answers its number.
    pub fn node(&mut self, _name: &str) -> u32 {
        0
    }
    /// Writes the image. `content` is the canonical hash; tests may give zeros.
    pub fn finish(self, _content: [u8; 32]) -> Result<Vec<u8>, BuildError> {
        Err(BuildError::Unfinished)
    }
}
