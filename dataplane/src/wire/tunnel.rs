//! Tunnels: where the packet inside begins, and what it is.
//!
//! ```text
//! VXLAN    UDP, 8 bytes, Ethernet          Geneve   UDP, 8 bytes and options, Ethernet or IP
//! Flannel  UDP, IP                         GRE      4 to 16 bytes, Ethernet or IP          IP in IP
//! ```

use std::num::NonZeroU32;

use super::{Packet, Parsed, Transport, parse};
use crate::{addr::Addr, verdict::DropReason};

/// Tunnels within tunnels that are looked into.
pub const MAX_TUNNELS: usize = 2;

/// The form of a tunnel that is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TunnelKind {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
    /// Flannel's `udp` backend: an IP packet directly in UDP.
    FlannelUdp,
    /// IPv4 or IPv6 in either (RFC 2003, 2473, 4213).
    IpInIp,
    /// RFC 2784 and 2890.
    Gre,
}

impl TunnelKind {
    /// In the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Vxlan,
        Self::Geneve,
        Self::FlannelUdp,
        Self::IpInIp,
        Self::Gre,
    ];

    /// The name in JSON and text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::FlannelUdp => "flannel-udp",
            Self::IpInIp => "ipip",
            Self::Gre => "gre",
        }
    }
}

/// What a packet is in: the innermost tunnel around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its form.
    pub kind: TunnelKind,
    /// Begin of the IP header of the packet directly around this one, in bytes from the beginning of the frame.
    pub l3: u16,
    /// Bytes of the outermost IP packet: what has to fit through a port.
    pub outer_length: u16,
    /// Address space that its network id (VNI) belongs to; None for that of the port.
    pub zone: Option<NonZeroU32>,
}

/// What a tunnel header says is behind it, and where that begins.
enum Payload {
    Ethernet(usize),
    Ipv4(usize),
    Ipv6(usize),
}

const TYPE_ETHERNET: u16 = 0x6558;

/// What is in a tunnel packet, and its network id if its form has one. Offsets count from the beginning of `frame`, as the
/// carrier's do. The packet inside has the VLAN of the frame, and no tunnel yet.
#[inline]
pub(crate) fn decapsulate(
    frame: &[u8],
    carrier: &Packet,
    kind: TunnelKind,
) -> Result<(Parsed, Option<u32>), DropReason> {
    let l4 = usize::from(carrier.l4);
    let end = match carrier.transport {
        // Of what follows a datagram, its receiver sees nothing.
        Transport::Udp { .. } => l4 + usize::from(be16(frame, l4 + 4)?),
        _ => usize::from(carrier.end),
    };
    if end > usize::from(carrier.end) {
        return Err(DropReason::Truncated);
    }
    // Of a packet of several buffers, `frame` is the first.
    let (frame, is_split) = match frame.get(..end) {
        Some(frame) => (frame, false),
        None => (frame, true),
    };
    let (mut inside, network) = look_inside(frame, end, carrier, kind).map_err(|reason| match reason {
        DropReason::Truncated if is_split => DropReason::HeadersSplit,
        reason => reason,
    })?;
    if let Parsed::Subject(packet) = &mut inside {
        packet.vlan = carrier.vlan;
    }
    Ok((inside, network))
}

/// The same, of a tunnel packet that ends at `end`. Its headers are in `frame`.
#[inline]
fn look_inside(
    frame: &[u8],
    end: usize,
    carrier: &Packet,
    kind: TunnelKind,
) -> Result<(Parsed, Option<u32>), DropReason> {
    let l4 = usize::from(carrier.l4);
    let (payload, network) = match kind {
        TunnelKind::Vxlan => vxlan(frame, l4 + 8)?,
        TunnelKind::Geneve => geneve(frame, l4 + 8)?,
        TunnelKind::FlannelUdp => (ip(frame, l4 + 8)?, None),
        TunnelKind::IpInIp => (ip_in_ip(l4, carrier.protocol), None),
        TunnelKind::Gre => (gre(frame, l4)?, None),
    };
    let inside = match payload {
        Payload::Ethernet(at) => ethernet(frame, end, at)?,
        Payload::Ipv4(at) if at <= frame.len() => parse::ip(frame, end, at, true),
        Payload::Ipv6(at) if at <= frame.len() => parse::ip(frame, end, at, false),
        Payload::Ipv4(_) | Payload::Ipv6(_) => return Err(DropReason::Truncated),
    };
    Ok((inside, network))
}

/// The source address of the packet whose IP header begins at `l3`.
pub(crate) fn source_at(frame: &[u8], l3: u16) -> Option<Addr> {
    let header = frame.get(usize::from(l3)..)?;
    match header.first()? >> 4 {
        4 => Some(Addr::v4(*header.get(12..)?.first_chunk()?)),
        _ => Some(Addr::v6(*header.get(8..)?.first_chunk()?)),
    }
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> Result<u16, DropReason> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err(DropReason::Truncated),
    }
}

/// An Ethernet frame within a frame, where it ends. VLAN tags inside belong to no CNI, and to no port.
#[inline]
fn ethernet(frame: &[u8], end: usize, at: usize) -> Result<Parsed, DropReason> {
    let inside = frame.get(at..).ok_or(DropReason::Truncated)?;
    let mut parsed = match parse::parse_common(inside) {
        Some(packet) => Parsed::Subject(packet),
        None => parse::parse_beginning(inside, end - at),
    };
    if let Parsed::Subject(packet) = &mut parsed {
        if packet.vlan != 0 {
            return Err(DropReason::TunnelMalformed);
        }
        // The frame around it is no longer than offsets can say.
        packet.l3 += at as u16;
        packet.l4 += at as u16;
        packet.end += at as u16;
    }
    Ok(parsed)
}

/// Flags, with the one for a network id and no version or form of VXLAN-GPE; remote checksums would have to be undone.
#[inline]
fn vxlan(frame: &[u8], at: usize) -> Result<(Payload, Option<u32>), DropReason> {
    let Some(&[flags, more, _, _, a, b, c, _]) = frame.get(at..at + 8) else {
        return Err(DropReason::Truncated);
    };
    if flags & 0x7f != 0x08 || more & 0x20 != 0 {
        return Err(DropReason::TunnelMalformed);
    }
    Ok((Payload::Ethernet(at + 8), Some(u32::from_be_bytes([0, a, b, c]))))
}

/// RFC 8926 3.4. Options are skipped, critical ones too: none changes what is inside.
#[inline]
fn geneve(frame: &[u8], at: usize) -> Result<(Payload, Option<u32>), DropReason> {
    let Some(&[version, _, high, low, a, b, c, _]) = frame.get(at..at + 8) else {
        return Err(DropReason::Truncated);
    };
    if version & 0xc0 != 0 {
        return Err(DropReason::TunnelMalformed);
    }
    let inside = at + 8 + 4 * usize::from(version & 0x3f);
    let payload = of_type(u16::from_be_bytes([high, low]), inside)?;
    Ok((payload, Some(u32::from_be_bytes([0, a, b, c]))))
}

/// Of version 0: check sum, key and sequence number may follow. The routing of RFC 1701 is gone.
fn gre(frame: &[u8], at: usize) -> Result<Payload, DropReason> {
    let (flags, kind) = (be16(frame, at)?, be16(frame, at + 2)?);
    if flags & 0x4fff != 0 {
        return Err(DropReason::TunnelMalformed);
    }
    let words = [0x8000, 0x2000, 0x1000]
        .iter()
        .filter(|flag| flags & **flag != 0)
        .count();
    of_type(kind, at + 4 + 4 * words)
}

fn of_type(kind: u16, at: usize) -> Result<Payload, DropReason> {
    match kind {
        TYPE_ETHERNET => Ok(Payload::Ethernet(at)),
        0x0800 => Ok(Payload::Ipv4(at)),
        0x86dd => Ok(Payload::Ipv6(at)),
        _ => Err(DropReason::TunnelMalformed),
    }
}

fn ip_in_ip(at: usize, protocol: u8) -> Payload {
    match protocol {
        4 => Payload::Ipv4(at),
        _ => Payload::Ipv6(at),
    }
}

fn ip(frame: &[u8], at: usize) -> Result<Payload, DropReason> {
    match frame.get(at).ok_or(DropReason::Truncated)? >> 4 {
        4 => Ok(Payload::Ipv4(at)),
        6 => Ok(Payload::Ipv6(at)),
        _ => Err(DropReason::TunnelMalformed),
    }
}
