//! Headers: from the bytes of a frame to a small [`Packet`] view and the [`FlowKey`] of its flow. No copy, no
//! allocation; no bytes make it panic or read past the end.
//!
//! * `parse` the walk over the headers, with three outcomes: [`Parsed`].
//! * [`build`] writing packets, for tests and generators.
//! * [`neighbour_probe`] asks a station for its Ethernet address; what ARP and neighbour discovery claim is read, too.
//! * [`checksum`] internet checksums: verify, update, complete.
//! * [`tunnel`] what is inside of tunnels.
//! * [`subject`] what is not subject to policy and what becomes of it.

pub mod build;
pub mod checksum;
mod neighbour;
mod parse;
pub mod subject;
pub mod tunnel;

pub use neighbour::neighbour_probe;
pub(crate) use neighbour::{NeighbourClaim, neighbour_claim};
pub use parse::parse;
pub(crate) use parse::{parse_beginning, parse_common, quoted_sequence};

#[cfg(test)]
mod tests;

use crate::{
    addr::Addr,
    classify::{L4, icmp},
    verdict::DropReason,
};
use subject::NotSubject;
use tunnel::Tunnel;

/// IP protocol numbers (IANA) that the packet path knows.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Group membership for IPv4.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// The layer 4 header was not reached.
    pub const UNKNOWN: u8 = 255;
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet that is judged.
    Subject(Packet),
    /// Something that policies do not speak about.
    NotSubject(NotSubject),
    /// Contradictory, cut short, or with addresses that may not occur.
    Malformed(DropReason),
}

/// An IP packet in a frame. Offsets are bytes from the beginning of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// VLAN tags: the outer one in the upper half, the inner or only one in the lower; each 0x1000 + VLAN id, 0 where
    /// there is none.
    pub vlan: u32,
    /// Begin of the IP header.
    pub l3: u16,
    /// Begin of the layer 4 header; in a later fragment, of its payload.
    pub l4: u16,
    /// End of the IP packet; the frame may be padded beyond.
    pub end: u16,
    /// IP protocol of layer 4; [`protocol::UNKNOWN`] where the chain of IPv6 headers was not walked to its end.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Whether routers may not fragment it (always for IPv6).
    pub dont_fragment: bool,
    /// What layer 4 says.
    pub transport: Transport,
    /// Its place in a fragmented datagram; None for a whole one.
    pub fragment: Option<Fragment>,
    /// The tunnel that it is in. Then all of the above is about the packet inside, but `vlan`.
    pub tunnel: Option<Tunnel>,
}

/// Layer 4, as far as flows and policies need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// Its flags.
        flags: TcpFlags,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// An SCTP packet.
    Sctp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// Type of the first chunk; 255 where there is none.
        chunk: u8,
    },
    /// ICMP or ICMPv6 echo, of code 0: what has another is no question that anybody has to answer.
    Echo {
        /// Identifier.
        id: u16,
        /// Request or reply.
        request: bool,
    },
    /// An ICMP error (v4 types 3, 11, 12; v6 1 to 4) and the packet that it quotes; None where that cannot be read.
    IcmpError {
        /// The quoted packet.
        quoted: Option<Quoted>,
    },
    /// Any other ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// A protocol without ports, or whose ports are not known.
    Other,
    /// Not in this packet, or not reached: later fragments, and IPv6 header chains that are too long or hold an
    /// unknown header (SEMANTICS 63).
    None,
}

/// TCP flags: the low six bits of byte 13 of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Begin of a connection.
    pub const SYN: u8 = 0x02;
    /// End at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    /// Whether all of these flags are set.
    #[inline]
    pub fn has(self, flags: u8) -> bool {
        self.0 & flags == flags
    }
}

/// The packet that an ICMP error is about, as far as it is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its source: whom the error is for.
    pub src: Addr,
    /// Its destination.
    pub dst: Addr,
    /// Its IP protocol.
    pub protocol: u8,
    /// Its source port, or echo identifier; 0 where the protocol has none.
    pub src_port: u16,
    /// Its destination port, or echo identifier.
    pub dst_port: u16,
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification (16 bits in IPv4).
    pub id: u32,
    /// First byte of the part, counted from the begin of what was cut: layer 4, or for IPv6 the extension headers
    /// behind the fragment header.
    pub offset: u16,
    /// Bytes of the part.
    pub length: u16,
    /// Whether more follow.
    pub more: bool,
}

impl Packet {
    /// Bytes of the IP packet, header included.
    #[inline]
    pub fn total_length(&self) -> u16 {
        self.end - self.l3
    }

    /// Bytes of the IP packet that goes through ports: itself, or the outermost one around it.
    #[inline]
    pub fn outer_length(&self) -> u16 {
        match self.tunnel {
            None => self.total_length(),
            Some(tunnel) => tunnel.outer_length,
        }
    }

    /// The address space that it is in, if it came in by a port of a zone.
    #[inline]
    fn zone(&self, port_zone: u32) -> u32 {
        match self.tunnel {
            Some(Tunnel { zone: Some(zone), .. }) => zone.get(),
            _ => port_zone,
        }
    }

    /// Bytes from the layer 4 header to the end of the packet.
    #[inline]
    pub fn l4_length(&self) -> u16 {
        self.end - self.l4
    }

    /// The same bytes in a frame that holds the packet, or its beginning: as many as are there.
    #[inline]
    pub(crate) fn l4_bytes<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let end = usize::from(self.end).min(frame.len());
        frame.get(usize::from(self.l4)..end).unwrap_or_default()
    }

    /// Source port, where the protocol has ports.
    #[inline]
    pub fn src_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { src, .. } | Transport::Udp { src, .. } | Transport::Sctp { src, .. } => {
                Some(src)
            }
            _ => None,
        }
    }

    /// Destination port, where the protocol has ports.
    #[inline]
    pub fn dst_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { dst, .. } | Transport::Udp { dst, .. } | Transport::Sctp { dst, .. } => {
                Some(dst)
            }
            _ => None,
        }
    }

    /// What policies see of layer 4.
    #[inline]
    pub fn policy_l4(&self) -> L4 {
        let (port, source) = match self.transport {
            Transport::Tcp { src, dst, .. }
            | Transport::Udp { src, dst }
            | Transport::Sctp { src, dst, .. } => (Some(dst), src),
            Transport::Echo { request, .. } => (Some(echo_type(self.protocol, request)), 0),
            Transport::Icmp { kind, code } => (Some(icmp(kind, code)), 0),
            Transport::IcmpError { .. } | Transport::Other | Transport::None => (None, 0),
        };
        L4::of(self.protocol, port, source)
    }

    /// Whether it is a fragment other than the first.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }

    /// The key of its flow, in its own direction. ICMP echo has its identifier as both ports.
    #[inline]
    pub fn key(&self, zone: u32) -> FlowKey {
        let (src_port, dst_port) = match self.transport {
            Transport::Tcp { src, dst, .. }
            | Transport::Udp { src, dst }
            | Transport::Sctp { src, dst, .. } => (src, dst),
            Transport::Echo { id, .. } => (id, id),
            _ => (0, 0),
        };
        FlowKey {
            src: self.src,
            dst: self.dst,
            zone: self.zone(zone),
            vlan: self.vlan,
            src_port,
            dst_port,
            protocol: self.protocol,
        }
    }

    /// The key of the flow that decides the shard: its own, or for an ICMP error the quoted packet's.
    #[inline]
    pub fn owner_key(&self, zone: u32) -> FlowKey {
        match self.transport {
            Transport::IcmpError { quoted: Some(quoted) } => FlowKey {
                src: quoted.src,
                dst: quoted.dst,
                zone: self.zone(zone),
                vlan: self.vlan,
                src_port: quoted.src_port,
                dst_port: quoted.dst_port,
                protocol: quoted.protocol,
            },
            _ => self.key(zone),
        }
    }
}

/// Type and code of an echo request or reply, of ICMP or ICMPv6.
const fn echo_type(number: u8, request: bool) -> u16 {
    let kind = match (number == protocol::ICMPV6, request) {
        (false, true) => 8,
        (false, false) => 0,
        (true, true) => 128,
        (true, false) => 129,
    };
    icmp(kind, 0)
}

/// What names one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Address space: [`crate::port::Port::zone`].
    pub zone: u32,
    /// VLAN tags, as in [`Packet::vlan`].
    pub vlan: u32,
    /// Source port; echo identifier; 0.
    pub src_port: u16,
    /// Destination port; echo identifier; 0.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl FlowKey {
    /// What policies see of layer 4 in the packet that began a flow of this key, or `reply`: in what answers it. The only
    /// flows of ICMP are echo requests and their replies.
    #[inline]
    pub fn policy_l4(&self, reply: bool) -> L4 {
        let (port, source) = match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => (Some(self.dst_port), self.src_port),
            protocol::ICMP if self.src.is_v4() => (Some(echo_type(self.protocol, !reply)), 0),
            protocol::ICMPV6 if !self.src.is_v4() => (Some(echo_type(self.protocol, !reply)), 0),
            _ => (None, 0),
        };
        L4::of(self.protocol, port, source)
    }

    /// The other direction.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..*self
        }
    }
}
