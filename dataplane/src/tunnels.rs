//! Which packets are tunnels: they contain another packet with another source.

use std::num::NonZeroU32;

use crate::{
    classify::{IdentityKind, Snapshot},
    wire::{
        self, FlowKey, Packet, Parsed, Transport, protocol,
        tunnel::{MAX_TUNNELS, Tunnel, TunnelKind},
    },
};

/// What happens to tunnels between nodes that cannot be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpaqueAction {
    /// They drop as `tunnel-opaque`.
    Drop,
    /// They are judged by their outer addresses, that is, pass.
    Allow,
}

/// What the administrator says about tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnels {
    /// Whether pods may send tunnels, and any source may send tunnels to nodes, if policy allows it.
    pub allowed: bool,
    /// UDP ports where nodes decapsulate. Those without a kind are opaque.
    pub ports: Vec<u16>,
    /// Which kind of tunnel is at a UDP port.
    pub kinds: Vec<(u16, TunnelKind)>,
    /// Whether IP in IP is looked into.
    pub ip_in_ip: bool,
    /// Whether GRE is looked into.
    pub gre: bool,
    /// What happens to tunnels between nodes that cannot be looked into.
    pub opaque: OpaqueAction,
    /// The networks (VNIs) that there are, and the address space of each (None: the port's). Empty: every network, in the
    /// port's.
    pub networks: Vec<(u32, Option<NonZeroU32>)>,
}

impl Default for Tunnels {
    fn default() -> Self {
        use TunnelKind::{FlannelUdp, Geneve, Vxlan};
        Self {
            allowed: false,
            // Flannel's udp, VXLAN, Geneve, VXLAN as Linux numbered it.
            ports: vec![8285, 4789, 6081, 8472],
            kinds: vec![(8285, FlannelUdp), (4789, Vxlan), (6081, Geneve), (8472, Vxlan)],
            ip_in_ip: true,
            gre: true,
            opaque: OpaqueAction::Drop,
            networks: Vec::new(),
        }
    }
}

/// A packet that contains another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encapsulation {
    /// In a form that is looked into.
    Open(TunnelKind),
    /// Encrypted, or in a form that is not looked into.
    Opaque,
}

impl Tunnels {
    /// IPv4 and IPv6 in IP, GRE, EtherIP, L2TP, MPLS in IP.
    const PROTOCOLS: [u8; 6] = [4, 41, 47, 97, 115, 137];
    /// ESP, AH, the minimal encapsulation of RFC 2004, IPIP of KA9Q, IPComp; headers that were not walked to the end.
    const OPAQUE_PROTOCOLS: [u8; 6] = [50, 51, 55, 94, 108, protocol::UNKNOWN];
    /// L2TP, IPsec, VXLAN-GPE, FoU as kube-router has it, GUE, MPLS, WireGuard as Flannel and Calico have it.
    pub const OPAQUE_PORTS: [u16; 8] = [1701, 4500, 4790, 5555, 6080, 6635, 51820, 51821];

    /// Whether a source port shows an opaque tunnel: L2TP and IPsec, whose other end may be behind NAT.
    #[inline(always)]
    fn is_opaque_source(port: u16) -> bool {
        matches!(port, 1701 | 4500)
    }

    /// Whether behind more IPv6 headers than were walked may be one that is not allowed: its receiver walks on.
    #[inline]
    pub(crate) fn may_hide_in(&self, key: &FlowKey) -> bool {
        !self.allowed && key.protocol == protocol::UNKNOWN
    }

    /// Whether a packet with this key is one that is not allowed as such.
    #[inline]
    pub(crate) fn matches(&self, key: &FlowKey) -> bool {
        !self.allowed && self.include(key.protocol, key.dst_port)
    }

    /// Whether a protocol and its destination port are those of a tunnel.
    #[inline]
    pub fn include(&self, protocol: u8, dst_port: u16) -> bool {
        match protocol {
            protocol::TCP => false,
            protocol::UDP => self.ports.contains(&dst_port),
            other => Self::PROTOCOLS.contains(&other),
        }
    }

    /// What a packet between nodes contains, by its protocol and ports; None for one that is no tunnel. Of later fragments
    /// of UDP it says nothing.
    pub(crate) fn encapsulation(&self, protocol: u8, src_port: u16, dst_port: u16) -> Option<Encapsulation> {
        use Encapsulation::{Opaque, Open};
        match protocol {
            protocol::UDP => match self.kinds.iter().find(|(port, _)| *port == dst_port) {
                Some((_, kind)) => Some(Open(*kind)),
                None => {
                    let opaque = self.ports.contains(&dst_port)
                        || Self::OPAQUE_PORTS.contains(&dst_port)
                        || Self::is_opaque_source(src_port);
                    opaque.then_some(Opaque)
                }
            },
            4 | 41 if self.ip_in_ip => Some(Open(TunnelKind::IpInIp)),
            47 if self.gre => Some(Open(TunnelKind::Gre)),
            other if Self::PROTOCOLS.contains(&other) || Self::OPAQUE_PROTOCOLS.contains(&other) => {
                Some(Opaque)
            }
            _ => None,
        }
    }

    /// The same of a packet.
    #[inline]
    pub(crate) fn encapsulation_of(&self, packet: &Packet) -> Option<Encapsulation> {
        let (src, dst) = match packet.transport {
            Transport::Udp { src, dst } => (src, dst),
            _ => (0, 0),
        };
        self.encapsulation(packet.protocol, src, dst)
    }

    /// Whether packets between nodes of a protocol, and of these UDP ports, are looked into.
    pub fn opens(&self, protocol: u8, src_port: u16, dst_port: u16) -> bool {
        matches!(
            self.encapsulation(protocol, src_port, dst_port),
            Some(Encapsulation::Open(_))
        )
    }

    /// What a worker takes a frame for that it does not refuse: the packet in a tunnel between nodes, else the frame's own. For
    /// those who watch a worker.
    pub fn innermost(&self, snapshot: &Snapshot, frame: &[u8]) -> Parsed {
        use IdentityKind::{Node, Pod, Service, Unknown};
        let outermost = wire::parse(frame);
        let Parsed::Subject(mut packet) = outermost else {
            return outermost;
        };
        let outer_length = packet.total_length();
        for _ in 0..MAX_TUNNELS {
            let Some(Encapsulation::Open(kind)) = self.encapsulation_of(&packet) else {
                break;
            };
            let [src, dst] = [packet.src, packet.dst].map(|addr| snapshot.identify(addr).kind);
            if src != Node || matches!(dst, Pod | Unknown | Service) || packet.fragment.is_some() {
                break;
            }
            let tunnel = |network| {
                let zone = self.zone(network)?;
                Some(Tunnel {
                    kind,
                    l3: packet.l3,
                    outer_length,
                    zone,
                })
            };
            match wire::tunnel::decapsulate(frame, &packet, kind) {
                Ok((Parsed::Subject(inside), network)) => match tunnel(network) {
                    tunnel @ Some(_) => packet = Packet { tunnel, ..inside },
                    None => break,
                },
                Ok((not_subject @ Parsed::NotSubject(_), _)) => return not_subject,
                Ok((Parsed::Malformed(_), _)) | Err(_) => break,
            }
        }
        Parsed::Subject(packet)
    }

    /// The address space of a network; None if the administrator knows no such network.
    #[inline]
    pub(crate) fn zone(&self, network: Option<u32>) -> Option<Option<NonZeroU32>> {
        match network {
            Some(network) if !self.networks.is_empty() => self
                .networks
                .iter()
                .find(|(known, _)| *known == network)
                .map(|(_, zone)| *zone),
            _ => Some(None),
        }
    }
}

/// A quick look that says of nearly all packets that they are no tunnels: a bit for each remainder of a destination port.
#[derive(Debug)]
pub(crate) struct TunnelFilter {
    ports: [u64; Self::WORDS],
    protocols: [u64; 4],
}

impl TunnelFilter {
    const WORDS: usize = 16;

    pub(crate) fn new(tunnels: &Tunnels) -> Self {
        let mut filter = Self {
            ports: [0; Self::WORDS],
            protocols: [0; 4],
        };
        let kinds = tunnels.kinds.iter().map(|(port, _)| *port);
        for port in tunnels
            .ports
            .iter()
            .copied()
            .chain(kinds)
            .chain(Tunnels::OPAQUE_PORTS)
        {
            filter.ports[usize::from(port >> 6) % Self::WORDS] |= 1 << (port & 63);
        }
        for number in 0..=u8::MAX {
            if number != protocol::UDP && tunnels.encapsulation(number, 0, 0).is_some() {
                filter.protocols[usize::from(number >> 6)] |= 1 << (number & 63);
            }
        }
        filter
    }

    /// Whether a packet may be a tunnel; [`Tunnels::encapsulation_of`] knows.
    #[inline(always)]
    pub(crate) fn may_be(&self, packet: &Packet) -> bool {
        let has = |port: u16| self.ports[usize::from(port >> 6) % Self::WORDS] >> (port & 63) & 1 != 0;
        match packet.transport {
            Transport::Tcp { .. } => false,
            Transport::Udp { src, dst } => has(dst) || Tunnels::is_opaque_source(src),
            _ => self.protocols[usize::from(packet.protocol >> 6)] >> (packet.protocol & 63) & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)] // in tests it is the failure

    use super::*;
    use crate::{addr::Addr, wire::build::Template};

    #[test]
    fn the_quick_look_misses_no_tunnel() {
        let tunnels = Tunnels::default();
        let filter = TunnelFilter::new(&tunnels);
        let packet = |frame: &[u8]| match wire::parse(frame) {
            Parsed::Subject(packet) => packet,
            other => panic!("{other:?}"),
        };
        let template = Template::new(Addr::v4([10, 0, 0, 1]), Addr::v4([10, 0, 0, 2]));
        let mut tunnel_ports = Vec::new();
        let mut suspected = 0;
        for port in 1..=u16::MAX {
            for (src, dst) in [(port, 9), (9, port)] {
                let udp = packet(&template.udp(src, dst, b""));
                let tunnel = tunnels.encapsulation_of(&udp).is_some();
                assert!(!tunnel || filter.may_be(&udp), "{src} {dst}");
                suspected += usize::from(filter.may_be(&udp));
                if tunnel && dst == port {
                    tunnel_ports.push(port);
                }
            }
        }
        assert!(suspected < 4_000, "{suspected}");
        assert_eq!(
            tunnel_ports,
            [
                1701, 4500, 4789, 4790, 5555, 6080, 6081, 6635, 8285, 8472, 51820, 51821
            ]
        );
        let protocols: Vec<u8> = (0..=u8::MAX)
            .filter(|number| match wire::parse(&template.ip(*number, &[0x45; 40])) {
                Parsed::Subject(other) => {
                    let tunnel = tunnels.encapsulation_of(&other).is_some();
                    assert_eq!(filter.may_be(&other), tunnel, "{number}");
                    tunnel
                }
                _ => false, // what has ports is tried above
            })
            .collect();
        assert_eq!(protocols, [4, 41, 47, 50, 51, 55, 94, 97, 108, 115, 137, 255]);
    }
}
