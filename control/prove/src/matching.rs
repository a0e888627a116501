//! The checker's own reading of selectors, blocks and ports.

use std::net::IpAddr;

use ipnet::IpNet;
use ringwall_policy::{Labels, Operator, Part, PortMatch, Protocol, Selector};

/// Whether a selector matches labels: all of its requirements hold (SEMANTICS 11).
pub(super) fn matches(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let holds = match (labels.get(&requirement.key), &requirement.operator) {
            (Some(value), Operator::In(values)) => values.contains(value),
            (Some(value), Operator::NotIn(values)) => !values.contains(value),
            (Some(_), Operator::Exists) | (None, Operator::NotIn(_) | Operator::DoesNotExist) => true, // 9
            (None, Operator::In(_) | Operator::Exists) | (Some(_), Operator::DoesNotExist) => false,
            (None, Operator::Like { negated, .. }) => *negated, // TIERS 97.2
            (Some(value), Operator::Like { part, text, negated }) => {
                let has = match part {
                    Part::Anywhere => value.matches(text.as_str()).next().is_some(),
                    Part::Start => value.strip_prefix(text.as_str()).is_some(),
                    Part::End => value.strip_suffix(text.as_str()).is_some(),
                };
                has != *negated
            }
        };
        if !holds {
            return false;
        }
    }
    true
}

/// An address as a number of its family, most significant byte first.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from_be_bytes(address.octets())),
        IpAddr::V6(address) => u128::from_be_bytes(address.octets()),
    }
}

/// The address of a number of a family.
pub(super) fn address(v4: bool, number: u128) -> IpAddr {
    if v4 {
        IpAddr::from((number as u32).to_be_bytes())
    } else {
        IpAddr::from(number.to_be_bytes())
    }
}

/// First and last address of a block, as numbers of its family.
pub(super) fn span(block: &IpNet) -> (u128, u128) {
    let bits = if matches!(block, IpNet::V4(_)) { 32 } else { 128 };
    let free = bits - u32::from(block.prefix_len());
    let hosts = match free {
        0 => 0,
        free => u128::MAX >> (128 - free),
    };
    let first = number(block.addr()) & !hosts; // 40
    (first, first | hosts)
}

/// Whether a number of the IPv6 family stands for an IPv4 address, so that no packet has it.
pub(super) fn is_mapped(number: u128) -> bool {
    number >> 32 == 0xffff
}

/// What is asked about a packet besides its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    /// A protocol that has ports, the port, and the source port.
    Port(Protocol, u16, u16),
    /// A protocol without ports by its number, or one whose port is not known.
    Portless(u8),
    /// ICMP or ICMPv6, with the type in the upper byte and the code in the lower.
    Icmp(u8, u16),
}

impl Asked {
    /// The source port, asked about as a port; None for what has none.
    pub(super) fn source(self) -> Option<Self> {
        match self {
            Self::Port(protocol, port, source) => Some(Self::Port(protocol, source, port)),
            Self::Portless(_) | Self::Icmp(..) => None,
        }
    }
}

/// Where a rule's port entry can change its mind within a protocol: the first ports of the two sides.
pub(super) fn borders(
    entry: &PortMatch,
    protocol: Protocol,
    named: &dyn Fn(Protocol, &str) -> Option<u16>,
    into: &mut Vec<u16>,
) {
    let (lo, hi) = match entry {
        PortMatch::Range { protocol: of, lo, hi } if *of == protocol => (*lo, *hi),
        PortMatch::Named { protocol: of, name } if *of == protocol => match named(*of, name) {
            Some(port) => (port, port),
            None => return,
        },
        _ => return,
    };
    into.push(lo);
    into.extend(hi.checked_add(1));
}

/// Where a rule's port entry can change its mind within ICMP or ICMPv6.
pub(super) fn type_borders(entry: &PortMatch, number: u8, into: &mut Vec<u16>) {
    if let PortMatch::Icmp { protocol, kind, code } = entry
        && *protocol == number
    {
        let first = u16::from(*kind) << 8 | u16::from(code.unwrap_or(0));
        let last = u16::from(*kind) << 8 | u16::from(code.unwrap_or(0xff));
        into.push(first);
        into.extend(last.checked_add(1));
    }
}

/// Whether a rule's port entry matches; `named` says what the end whose port it is calls a port.
pub(super) fn port_matches(
    entry: &PortMatch,
    asked: Asked,
    named: &dyn Fn(Protocol, &str) -> Option<u16>,
) -> bool {
    let (protocol, port) = match asked {
        Asked::Port(protocol, port, _) => (protocol, port),
        // 35
        Asked::Portless(number) => return *entry == PortMatch::IpProtocol(number),
        Asked::Icmp(number, of_type) => {
            return match entry {
                PortMatch::IpProtocol(named) => *named == number,
                PortMatch::Icmp { protocol, kind, code } => {
                    let [own_kind, own_code] = of_type.to_be_bytes();
                    (*protocol, *kind) == (number, own_kind) && [None, Some(own_code)].contains(code)
                }
                _ => false,
            };
        }
    };
    match entry {
        PortMatch::IpProtocol(_) | PortMatch::Icmp { .. } => false,
        PortMatch::All(of) => *of == protocol,
        PortMatch::Range { protocol: of, lo, hi } => *of == protocol && (*lo..=*hi).contains(&port),
        PortMatch::Named { protocol: of, name } => *of == protocol && named(*of, name) == Some(port), // 31, 32
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_span_what_they_hold() {
        let span = |text: &str| super::span(&text.parse().unwrap_or_else(|_| unreachable!("a block")));
        assert_eq!(span("0.0.0.0/0"), (0, u128::from(u32::MAX)));
        assert_eq!(span("10.0.0.5/8"), (0x0a00_0000, 0x0aff_ffff));
        assert_eq!(span("10.0.0.5/32"), (0x0a00_0005, 0x0a00_0005));
        assert_eq!(span("::/0"), (0, u128::MAX));
        assert_eq!(span("::1/128"), (1, 1));
    }
}
