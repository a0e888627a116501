//! Traffic that passes before any policy, so that nobody is locked out of a node by one.

use crate::{addr::Addr, wire::Packet};

/// A prefix of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    addr: u128,
    mask: u128,
}

impl Prefix {
    /// `length` counts from the first bit of the family's address; longer ones count as the longest. Host bits are
    /// ignored.
    pub fn new(addr: Addr, length: u8) -> Self {
        let bits = if addr.is_v4() { 32 } else { 128 };
        let length = length.min(bits);
        let mask = match bits - length {
            128 => 0,
            shift => u128::MAX << shift,
        };
        Self {
            addr: addr.to_u128() & mask,
            // An IPv4 prefix never covers an IPv6 address, nor the other way round (`::/0` spares `::ffff:0:0/96`,
            // which the parser does not let through as IPv6).
            mask,
        }
    }

    /// Whether an address lies in it.
    #[inline]
    pub fn contains(&self, addr: Addr) -> bool {
        addr.to_u128() & self.mask == self.addr && (self.mask != 0 || !addr.is_v4())
    }
}

/// Traffic from one prefix to another passes, and so do the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailsafeRule {
    /// Who begins.
    pub from: Prefix,
    /// With whom.
    pub to: Prefix,
    /// IP protocol number; None is every protocol.
    pub protocol: Option<u8>,
    /// Ports at `to`, first and last; None is every port, and packets without ports too.
    pub ports: Option<(u16, u16)>,
}

impl FailsafeRule {
    #[inline]
    fn matches(&self, packet: &Packet) -> bool {
        let forth = self.from.contains(packet.src) && self.to.contains(packet.dst);
        let back = self.from.contains(packet.dst) && self.to.contains(packet.src);
        (forth && self.admits(packet, packet.dst_port())) || (back && self.admits(packet, packet.src_port()))
    }

    #[inline]
    fn admits(&self, packet: &Packet, port: Option<u16>) -> bool {
        self.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && self
                .ports
                .is_none_or(|(lo, hi)| port.is_some_and(|port| (lo..=hi).contains(&port)))
    }
}

/// The rules, few.
#[derive(Clone, Debug, Default)]
pub struct Failsafe(pub Vec<FailsafeRule>);

impl Failsafe {
    /// Whether a rule lets the packet through. An ICMP error passes where the packet that it quotes would.
    #[inline]
    pub fn admits(&self, packet: &Packet) -> bool {
        self.0.iter().any(|rule| rule.matches(packet))
    }
}
