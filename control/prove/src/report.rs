//! What a proof answers.

use serde::Serialize;

/// A snapshot answers what the objects say; how much was asked for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Equivalence classes of ends that the objects make: subjects (lists of policies and named ports) and peers (sets
    /// of selectors, blocks and named ports).
    pub classes: u64,
    /// Pairs of a subject and a peer, in one direction, whose cell was read and compared.
    pub pairs: u64,
    /// Addresses and borders of address ranges whose owner was compared.
    pub addresses: u64,
    /// Questions of verdict and reason that were put to the snapshot.
    pub questions: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// Whether everything was looked at, and nothing carried over from the snapshot before.
    pub whole: bool,
}

/// The snapshot contradicts the objects: a packet that shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Source: an address, or `namespace/name` of what has none.
    pub src: String,
    /// Destination, likewise.
    pub dst: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; of ICMP and ICMPv6 the type, times 256, and the code. None for a packet without either.
    pub port: Option<u16>,
    /// Source port, where the protocol has ports.
    #[serde(skip_serializing_if = "is_zero")]
    pub source_port: Option<u16>,
    /// What the objects say.
    pub wanted: Answer,
    /// What the snapshot says.
    pub got: Answer,
    /// What is wrong, in words: whose address it is, or which direction is decided otherwise.
    pub what: String,
    /// The policies that are named on either side, as `namespace/name`, those of ordered tiers with kind and tier;
    /// sorted.
    pub policies: Vec<String>,
}

/// Whether a source port says nothing: most rules ask for none, and then any does.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it")]
fn is_zero(port: &Option<u16>) -> bool {
    port.is_none_or(|port| port == 0)
}

/// A verdict and its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Whether the packet passes.
    pub allow: bool,
    /// Why the destination takes it or not.
    pub ingress: String,
    /// Why the source may send it or not.
    pub egress: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |allow| if allow { "allow" } else { "deny" };
        write!(f, "{} -> {} protocol {}", self.src, self.dst, self.protocol)?;
        match (self.protocol, self.port) {
            (1 | 58, Some(of_type)) => write!(f, " type {} code {}", of_type >> 8, of_type & 0xff)?,
            (_, Some(port)) => write!(f, " port {port}")?,
            (_, None) => {}
        }
        if let Some(source) = self.source_port.filter(|source| *source != 0) {
            write!(f, " from port {source}")?;
        }
        write!(
            f,
            ": {}; the objects say {} (ingress: {}; egress: {}), the snapshot says {} (ingress: {}; egress: {})",
            self.what,
            word(self.wanted.allow),
            self.wanted.ingress,
            self.wanted.egress,
            word(self.got.allow),
            self.got.ingress,
            self.got.egress
        )
    }
}

impl std::error::Error for Difference {}
