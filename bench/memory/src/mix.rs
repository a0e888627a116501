//! The kinds of packets that are measured apart.

use std::{fmt, str::FromStr};

use anyhow::bail;

/// A kind of packets, and what the worker has to do about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mix {
    /// UDP over IPv4 on a wire, of flows that have an entry.
    Established,
    /// The same over IPv6.
    EstablishedV6,
    /// As `established`, between ports that route: with a next hop, a TTL and Ethernet addresses to rewrite.
    Routed,
    /// TCP segments of open connections, whose sequence numbers are followed.
    Tcp,
    /// Every packet begins a flow, which is allowed and gets an entry.
    NewFlows,
    /// Every packet is denied by policy.
    Denied,
    /// Every packet is the first of its flow since a snapshot that changed both of its ends.
    EpochChange,
    /// Every packet is the first of its flow since a snapshot that changed neither end.
    Restamp,
    /// Turns without a packet.
    EmptyTurn,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Established,
        Self::EstablishedV6,
        Self::Routed,
        Self::Tcp,
        Self::NewFlows,
        Self::Denied,
        Self::EpochChange,
        Self::Restamp,
        Self::EmptyTurn,
    ];

    /// Its name in tables and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::EstablishedV6 => "established-ipv6",
            Self::Routed => "routed",
            Self::Tcp => "tcp",
            Self::NewFlows => "new-flows",
            Self::Denied => "denied",
            Self::EpochChange => "epoch-change",
            Self::Restamp => "restamp",
            Self::EmptyTurn => "empty-turn",
        }
    }

    /// Whether its packets are IPv6.
    pub fn is_v6(self) -> bool {
        self == Self::EstablishedV6
    }

    /// Whether its flows have entries before it is measured.
    pub fn is_established(self) -> bool {
        !matches!(self, Self::NewFlows | Self::Denied | Self::EmptyTurn)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match Self::ALL.into_iter().find(|mix| mix.name() == text) {
            Some(mix) => Ok(mix),
            None => bail!(
                "no mix `{text}`; there are {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}
