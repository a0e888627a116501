//! Traffic that passes before any policy, so no policy can lock administrators out of a node.

use crate::{
    addr::Addr,
    wire::{FlowKey, Packet, Transport, protocol},
};

/// A prefix of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    addr: u128,
    mask: u128,
    v4: bool,
}

impl Prefix {
    /// `length` counts from the first bit of the family's address; longer ones count as the longest. Host bits are
    /// ignored.
    pub fn new(addr: Addr, length: u8) -> Self {
        let v4 = addr.is_v4();
        let bits = if v4 { 32 } else { 128 };
        let mask = match bits - length.min(bits) {
            128 => 0,
            shift => u128::MAX << shift,
        };
        Self {
            addr: addr.to_u128() & mask,
            mask,
            v4,
        }
    }

    /// Whether an address lies in it; never one of the other family.
    #[inline]
    pub fn contains(&self, addr: Addr) -> bool {
        addr.is_v4() == self.v4 && addr.to_u128() & self.mask == self.addr
    }
}

/// Traffic from one prefix to another passes, and so do the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailsafeRule {
    /// Addresses of the client.
    pub from: Prefix,
    /// Addresses of the server.
    pub to: Prefix,
    /// IP protocol number; None is every protocol.
    pub protocol: Option<u8>,
    /// Ports at `to`, first and last; None is every port, and packets without ports too.
    pub ports: Option<(u16, u16)>,
}

impl FailsafeRule {
    /// Whether a packet with this key may begin.
    #[inline]
    fn admits(&self, key: &FlowKey) -> bool {
        let ported = matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        self.from.contains(key.src)
            && self.to.contains(key.dst)
            && self.protocol.is_none_or(|protocol| protocol == key.protocol)
            && self
                .ports
                .is_none_or(|(lo, hi)| ported && (lo..=hi).contains(&key.dst_port))
    }
}

/// The rules, few.
#[derive(Clone, Debug, Default)]
pub struct Failsafe(pub Vec<FailsafeRule>);

impl Failsafe {
    /// Whether a rule lets the flow of a key begin. What answers it passes by that flow.
    #[inline]
    pub fn admits(&self, key: &FlowKey) -> bool {
        self.0.iter().any(|rule| rule.admits(key))
    }

    /// Whether a rule lets a flow begin that names its protocol. Rules for every protocol are not meant for tunnels.
    pub(crate) fn names(&self, key: &FlowKey) -> bool {
        self.0
            .iter()
            .any(|rule| rule.protocol.is_some() && rule.admits(key))
    }

    /// Whether a rule lets a packet through that is no later fragment, or what it would answer: for as long as nothing
    /// else can be asked, since no snapshot has been adopted. An ICMP error passes where the packet that it quotes would,
    /// to the sender of that.
    pub fn admits_without_state(&self, packet: &Packet) -> bool {
        let key = match packet.transport {
            Transport::IcmpError { quoted: Some(quoted) } if quoted.src != packet.dst => return false,
            _ => packet.owner_key(0),
        };
        self.admits(&key) || self.admits(&key.reversed())
    }
}
