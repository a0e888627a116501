//! The walk over a frame's headers.

use etherparse::{
    Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
    err::{ipv4::HeaderSliceError as Ipv4Error, tcp::HeaderSliceError as TcpError},
};

use super::{Fragment, Packet, Parsed, Quoted, TcpFlags, Transport, checksum, protocol, subject::NotSubject};
use crate::{addr::Addr, verdict::DropReason};

/// IPv6 extension headers walked before giving up on layer 4 (SEMANTICS 63).
pub(super) const MAX_EXTENSIONS: usize = 8;

const ETHERNET: usize = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;

/// Why the walk ended early.
enum ParseStop {
    Drop(DropReason),
    NotSubject(NotSubject),
}

impl From<Result<Packet, ParseStop>> for Parsed {
    fn from(outcome: Result<Packet, ParseStop>) -> Self {
        match outcome {
            Ok(packet) => Self::Subject(packet),
            Err(ParseStop::NotSubject(kind)) => Self::NotSubject(kind),
            Err(ParseStop::Drop(reason)) => Self::Malformed(reason),
        }
    }
}

impl From<DropReason> for ParseStop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl From<NotSubject> for ParseStop {
    fn from(kind: NotSubject) -> Self {
        Self::NotSubject(kind)
    }
}

/// Reads the headers of a frame that begins with an Ethernet header.
#[inline]
pub fn parse(frame: &[u8]) -> Parsed {
    ethernet(frame, frame.len()).into()
}

/// Reads the headers of a frame of `length` bytes of which only the first are at hand. Headers that go on beyond them are
/// [`DropReason::HeadersSplit`].
pub(crate) fn parse_beginning(frame: &[u8], length: usize) -> Parsed {
    ethernet(frame, length).into()
}

/// Reads the headers of an IP packet that begins at `l3`, and ends with the `length` bytes of a frame: one without an Ethernet
/// header of its own. What it says about groups of stations is what the frame's says.
pub(super) fn ip(frame: &[u8], length: usize, l3: usize, v4: bool) -> Parsed {
    if v4 {
        ipv4(frame, length, l3, 0)
    } else {
        ipv6(frame, length, l3, 0)
    }
    .into()
}

/// Why a header cannot be read that is not there.
#[cold]
fn missing(frame: &[u8], length: usize) -> DropReason {
    if frame.len() < length {
        DropReason::HeadersSplit
    } else {
        DropReason::Truncated
    }
}

/// The same for what nearly all frames are: untagged, without options or extension headers, whole, TCP or UDP, in
/// order and between ordinary addresses. None says only that it is not that: ask [`parse`]. Small enough to be part of
/// the worker's loop, where what it reads stays in registers. `frame` is no longer than offsets in [`Packet`] can say, 16 bits.
#[inline(always)]
pub(crate) fn parse_common(frame: &[u8]) -> Option<Packet> {
    match *frame.get(12..15)? {
        [0x08, 0x00, 0x45] => common_v4(frame),
        [0x86, 0xdd, 0x60..=0x6f] => common_v6(frame),
        _ => None,
    }
}

#[inline(always)]
fn common_v4(frame: &[u8]) -> Option<Packet> {
    const L4: usize = ETHERNET + 20;
    let header: &[u8; L4 + 8] = frame.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let quad = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let flags = word(20);
    let end = ETHERNET + usize::from(word(16));
    let native = |at: usize| u64::from(u32::from_ne_bytes(quad(at)));
    let sum = native(14) + native(18) + native(22) + native(26) + native(30);
    let (src, dst) = (quad(26), quad(30));
    if flags & !0x4000 != 0
        || end < L4
        || end > frame.len()
        || checksum::fold(sum) != 0xffff
        || !are_ordinary_unicast(src, dst)
    {
        return None;
    }
    Some(Packet {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        vlan: 0,
        l3: ETHERNET as u16,
        l4: L4 as u16,
        end: end as u16,
        protocol: header[23],
        ttl: header[22],
        dont_fragment: flags != 0,
        transport: common_transport(frame.get(L4..end)?, header[23])?,
        fragment: None,
        tunnel: None,
    })
}

#[inline(always)]
fn common_v6(frame: &[u8]) -> Option<Packet> {
    const L4: usize = ETHERNET + 40;
    let header: &[u8; L4] = frame.first_chunk()?;
    let (src, rest) = header[22..].split_first_chunk::<16>()?;
    let dst = rest.first_chunk::<16>()?;
    // No group, nothing link-local, and neither unspecified, loopback nor IPv4-mapped.
    let is_ordinary = |address: &[u8; 16]| address[0] < 0xfe && address[..8] != [0; 8];
    let end = L4 + usize::from(u16::from_be_bytes([header[18], header[19]]));
    if end > frame.len() || !is_ordinary(src) || !is_ordinary(dst) {
        return None;
    }
    Some(Packet {
        src: Addr::v6(*src),
        dst: Addr::v6(*dst),
        vlan: 0,
        l3: ETHERNET as u16,
        l4: L4 as u16,
        end: end as u16,
        protocol: header[20],
        ttl: header[21],
        dont_fragment: true,
        transport: common_transport(frame.get(L4..end)?, header[20])?,
        fragment: None,
        tunnel: None,
    })
}

/// TCP or UDP with a whole header.
#[inline(always)]
fn common_transport(l4: &[u8], protocol: u8) -> Option<Transport> {
    let header: &[u8; 8] = l4.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (src, dst) = (word(0), word(2));
    match protocol {
        protocol::UDP if (8..=l4.len()).contains(&usize::from(word(4))) => Some(Transport::Udp { src, dst }),
        protocol::TCP => {
            let tcp: &[u8; 20] = l4.first_chunk()?;
            let offset = usize::from(tcp[12] >> 4) * 4;
            (20..=l4.len()).contains(&offset).then_some(Transport::Tcp {
                src,
                dst,
                flags: TcpFlags(tcp[13] & 0x3f),
            })
        }
        _ => None,
    }
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

#[inline]
fn ethernet(frame: &[u8], length: usize) -> Result<Packet, ParseStop> {
    // Offsets in `Packet` are 16 bits wide; no Ethernet frame that a port can hold is longer.
    if length > usize::from(u16::MAX) {
        return Err(DropReason::Malformed.into());
    }
    let word = |at: usize| be16(frame, at).ok_or_else(|| missing(frame, length));
    let mut kind = word(12)?;
    let mut l3 = ETHERNET;
    let mut vlan = 0;
    while matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
        if vlan > 0xffff {
            return Err(DropReason::Malformed.into());
        }
        let tag = word(l3)?;
        vlan = vlan << 16 | 0x1000 | u32::from(tag & 0xfff);
        kind = word(l3 + 2)?;
        l3 += 4;
    }
    match kind {
        TYPE_IPV4 => ipv4(frame, length, l3, vlan),
        TYPE_IPV6 => ipv6(frame, length, l3, vlan),
        _ => Err(parse_not_ip(frame, length, kind, l3)),
    }
}

#[cold]
fn parse_not_ip(frame: &[u8], length: usize, kind: u16, l3: usize) -> ParseStop {
    if frame.len() < length {
        // The protocols below whose form is looked at are short, and all others have none.
        return match kind {
            0x0806 | 0x8035 => DropReason::Malformed.into(),
            0x88cc => NotSubject::Lldp.into(),
            0x8863 | 0x8864 => NotSubject::Pppoe.into(),
            0x8847 | 0x8848 => NotSubject::Mpls.into(),
            0..=1535 => NotSubject::Llc.into(),
            _ => NotSubject::OtherType.into(),
        };
    }
    match kind {
        0x0806 | 0x8035 if is_plain_arp(frame.get(l3..).unwrap_or_default()) => NotSubject::Arp.into(),
        0x0806 | 0x8035 => DropReason::Malformed.into(),
        0x88cc => NotSubject::Lldp.into(),
        0x8809 if is_slow_protocol(frame) => NotSubject::Lacp.into(),
        0x8863 | 0x8864 => NotSubject::Pppoe.into(),
        0x8847 | 0x8848 => NotSubject::Mpls.into(),
        0..=1535 if is_spanning_tree(frame, usize::from(kind), l3) => NotSubject::Stp.into(),
        0..=1535 => NotSubject::Llc.into(),
        _ => NotSubject::OtherType.into(),
    }
}

/// The least Ethernet frame, with two VLAN tags.
const MIN_FRAME: usize = 60 + 8;

/// Whether a frame holds more than its packet, which ends there, and what the least frame is padded with.
fn has_trailing_bytes(length: usize, end: usize) -> bool {
    length > end.max(MIN_FRAME)
}

/// Whether a frame is of link aggregation (IEEE 802.3 57): to its group, which bridges keep, and no longer than any is.
fn is_slow_protocol(frame: &[u8]) -> bool {
    const LONGEST: usize = 128 + 8;
    frame.starts_with(&[0x01, 0x80, 0xc2, 0, 0, 2]) && frame.len() <= LONGEST
}

/// Whether a frame is of spanning tree (IEEE 802.1Q 14): to the group of bridges, of their LLC, and as long as its kind
/// is. Bridges that have it switched off forward it from anybody.
fn is_spanning_tree(frame: &[u8], length: usize, l3: usize) -> bool {
    let Some(body) = frame.get(l3..l3 + length) else {
        return false;
    };
    let &[0x42, 0x42, 3, 0, 0, version, ..] = body else {
        return false;
    };
    // With up to 64 instances from version 3 on.
    let longest = if version < 3 { 36 } else { 102 + 16 * 64 };
    frame.starts_with(&[0x01, 0x80, 0xc2, 0, 0, 0])
        && length <= 3 + longest
        && !has_trailing_bytes(frame.len(), l3 + length)
}

/// Whether an ARP packet has the one form that it has for IPv4 over Ethernet, and no more behind it than a frame of the
/// least length is padded with: else it could carry anything past policy.
fn is_plain_arp(packet: &[u8]) -> bool {
    /// The least Ethernet frame without its header and check sum, and one VLAN tag.
    const LONGEST: usize = 46 + 4;
    packet.starts_with(&[0, 1, 8, 0, 6, 4]) && (28..=LONGEST).contains(&packet.len())
}

#[inline]
fn ipv4(frame: &[u8], length: usize, l3: usize, vlan: u32) -> Result<Packet, ParseStop> {
    let header = Ipv4HeaderSlice::from_slice(&frame[l3..]).map_err(|error| match error {
        Ipv4Error::Len(_) => missing(frame, length),
        Ipv4Error::Content(_) => DropReason::Malformed,
    })?;
    let header_length = header.slice().len();
    let total = usize::from(header.total_len());
    if total < header_length {
        return Err(DropReason::Malformed.into());
    }
    if l3 + total > length {
        return Err(DropReason::Truncated.into());
    }
    if !checksum::ipv4_header_is_valid(header.slice()) {
        return Err(DropReason::Malformed.into());
    }
    if is_source_routed(header.slice().get(20..).unwrap_or_default()) {
        return Err(DropReason::SourceRouted.into());
    }
    let fragment = header.is_fragmenting_payload().then(|| Fragment {
        id: u32::from(header.identification()),
        offset: header.fragments_offset().value() * 8,
        length: (total - header_length) as u16,
        more: header.more_fragments(),
    });
    let mut packet = Packet {
        src: Addr::v4(header.source()),
        dst: Addr::v4(header.destination()),
        vlan,
        l3: l3 as u16,
        l4: (l3 + header_length) as u16,
        end: (l3 + total) as u16,
        protocol: header.protocol().0,
        ttl: header.ttl(),
        dont_fragment: header.dont_fragment(),
        transport: Transport::None,
        fragment,
        tunnel: None,
    };
    ipv4_addresses(frame, length, &packet, header.source(), header.destination())?;
    layer4(frame, &mut packet)?;
    Ok(packet)
}

/// Whether IPv4 options hold a loose or strict source route (RFC 791 3.1), or what a receiver might take for one behind
/// an option that cannot be read.
fn is_source_routed(mut options: &[u8]) -> bool {
    loop {
        match *options {
            [] | [0, ..] => return false,
            [1, ref rest @ ..] => options = rest,
            [131 | 137, ..] => return true,
            [_, length, ..] if length >= 2 && usize::from(length) <= options.len() => {
                options = options.get(usize::from(length)..).unwrap_or_default();
            }
            _ => return true,
        }
    }
}

#[inline]
fn is_martian_source(src: [u8; 4]) -> bool {
    src[0] == 0 || src[0] == 127 || src[0] >= 224 && (src[0] < 240 || src == [255; 4])
}

/// Whether nothing needs to be asked about two IPv4 addresses before policy.
#[inline(always)]
fn are_ordinary_unicast(src: [u8; 4], dst: [u8; 4]) -> bool {
    let group = (224..240).contains(&dst[0]);
    !is_martian_source(src) && !group && dst[0] != 0 && dst[0] != 127 && dst != [255; 4]
}

/// Addresses that may not occur, and destinations that no policy speaks about (RFC 1122 3.2.1.3, RFC 1812 5.3.7).
#[inline]
fn ipv4_addresses(
    frame: &[u8],
    length: usize,
    packet: &Packet,
    src: [u8; 4],
    dst: [u8; 4],
) -> Result<(), ParseStop> {
    if are_ordinary_unicast(src, dst) {
        return Ok(());
    }
    let martian_source = is_martian_source(src);
    let group = (224..240).contains(&dst[0]);
    let end = usize::from(packet.end);
    let dhcp = if packet.protocol == protocol::UDP
        && packet.fragment.is_none()
        && !has_trailing_bytes(length, end)
    {
        let l4 = packet.l4_bytes(frame);
        match (be16(l4, 0), be16(l4, 2)) {
            (Some(68), Some(67)) => Some(NotSubject::Dhcp),
            (Some(67), Some(67 | 68)) => Some(NotSubject::DhcpServer),
            _ => None,
        }
    } else {
        None
    };
    if martian_source && src != [0; 4] || dst[0] == 0 || dst[0] == 127 {
        return Err(DropReason::MartianAddress.into());
    }
    if !to_ethernet_group(frame) {
        return Err(DropReason::MartianAddress.into());
    }
    match (group, dst == [255; 4], dhcp) {
        (true, ..) if packet.protocol == protocol::IGMP => Err(NotSubject::Igmp.into()),
        (false, true, Some(kind)) => Err(kind.into()),
        _ if src == [0; 4] => Err(DropReason::MartianAddress.into()),
        (true, ..) => Err(NotSubject::Multicast.into()),
        _ => Err(NotSubject::Broadcast.into()),
    }
}

/// Whether the frame is for a group of stations. What is for a group of hosts and yet for one station would be a way
/// around policy to that station: it may not occur (RFC 1122 3.3.6).
#[inline]
fn to_ethernet_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}

#[inline]
fn ipv6(frame: &[u8], length: usize, l3: usize, vlan: u32) -> Result<Packet, ParseStop> {
    let bytes = &frame[l3..];
    if bytes.first().is_some_and(|first| first >> 4 != 6) {
        return Err(DropReason::Malformed.into());
    }
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| missing(frame, length))?;
    let end = l3 + 40 + usize::from(header.payload_length());
    if end > length {
        return Err(DropReason::Truncated.into());
    }
    let mut packet = Packet {
        src: Addr::v6(header.source()),
        dst: Addr::v6(header.destination()),
        vlan,
        l3: l3 as u16,
        l4: (l3 + 40) as u16,
        end: end as u16,
        protocol: header.next_header().0,
        ttl: header.hop_limit(),
        dont_fragment: true,
        transport: Transport::None,
        fragment: None,
        tunnel: None,
    };
    let reached = extensions(frame, &mut packet)?;
    ipv6_addresses(frame, length, &packet)?;
    if reached {
        layer4(frame, &mut packet)?;
    } else {
        packet.protocol = protocol::UNKNOWN;
    }
    Ok(packet)
}

/// Walks the extension headers (RFC 8200, 4) up to layer 4. Answers false where the chain is too long or holds a header
/// that cannot be walked.
#[inline]
fn extensions(frame: &[u8], packet: &mut Packet) -> Result<bool, ParseStop> {
    let mut kind = packet.protocol;
    for nth in 0..=MAX_EXTENSIONS {
        let cut_short = if packet.fragment.is_some() && usize::from(packet.end) <= frame.len() {
            DropReason::FragmentInvalid // RFC 7112: the first fragment holds the whole chain
        } else {
            missing(frame, packet.end.into())
        };
        let rest = packet.l4_bytes(frame);
        let length = match kind {
            0 if nth != 0 => return Err(DropReason::Malformed.into()), // only directly behind the IPv6 header
            // Mobility, HIP and shim6 headers (135, 139, 140) end the chain: who does not speak them takes them for layer
            // 4, and what policy allows behind them is not what such a receiver reads.
            0 | 43 | 60 => {
                let &[_, units, _, segments_left, ..] = rest else {
                    return Err(cut_short.into());
                };
                if kind == 43 && segments_left != 0 {
                    return Err(DropReason::SourceRouted.into()); // it goes on to another destination
                }
                8 + 8 * usize::from(units)
            }
            44 => {
                if packet.fragment.is_some() {
                    return Err(DropReason::Malformed.into());
                }
                let Some(&[_, _, high, low, a, b, c, d]) = rest.get(..8) else {
                    return Err(cut_short.into());
                };
                let word = u16::from_be_bytes([high, low]);
                let (offset, more) = (word & !7, word & 1 != 0);
                if offset != 0 || more {
                    // Else it is an atomic fragment (RFC 6946): a whole datagram.
                    packet.fragment = Some(Fragment {
                        id: u32::from_be_bytes([a, b, c, d]),
                        offset,
                        length: packet.l4_length() - 8,
                        more,
                    });
                }
                8
            }
            _ => {
                packet.protocol = kind;
                return Ok(true);
            }
        };
        if nth == MAX_EXTENSIONS {
            return Ok(false);
        }
        if rest.len() < length {
            return Err(cut_short.into());
        }
        kind = rest[0];
        packet.l4 += length as u16;
        if packet.is_later_fragment() {
            packet.protocol = kind;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a solicitation or advertisement of a neighbour says nothing but what everybody can see: whose address is at the
/// Ethernet address that it comes from. Such are the probes and answers of neighbours that use their global addresses.
fn is_bare_neighbour_discovery(frame: &[u8], packet: &Packet) -> bool {
    let bytes = frame.get(usize::from(packet.l4)..usize::from(packet.end));
    let Some((header, option)) = bytes.and_then(|bytes| bytes.split_at_checked(24)) else {
        return false;
    };
    let &[kind, code, _, _, flags, a, b, c, ref target @ ..] = header else {
        return false;
    };
    let (about, flags_allowed, own) = match kind {
        135 => (packet.dst, 0, 1),
        136 => (packet.src, 0xe0, 2),
        _ => return false,
    };
    let option_is_own = option.is_empty()
        || option.len() == 8 && option[..2] == [own, 1] && frame.get(6..12) == Some(&option[2..]);
    code == 0
        && flags & !flags_allowed == 0
        && [a, b, c] == [0; 3]
        && target == about.octets().as_slice()
        && option_is_own
}

/// Whether a solicitation of a router or neighbour, or an advertisement of a neighbour, holds nothing but what hosts say
/// in it: Ethernet addresses and nonces (RFC 4861 4, RFC 7527 4), each once.
fn is_plain_neighbour_discovery(frame: &[u8], packet: &Packet) -> bool {
    let bytes = frame.get(usize::from(packet.l4)..usize::from(packet.end));
    let fixed = |bytes: &[u8]| if bytes.first() == Some(&133) { 8 } else { 24 };
    let Some((_, options)) = bytes.and_then(|bytes| bytes.split_at_checked(fixed(bytes))) else {
        return false;
    };
    let plain = matches!(
        *options,
        [] | [1 | 2 | 14, 1, _, _, _, _, _, _]
            | [1 | 2, 1, _, _, _, _, _, _, 14, 1, _, _, _, _, _, _]
            | [14, 1, _, _, _, _, _, _, 1 | 2, 1, _, _, _, _, _, _]
    );
    plain && !has_trailing_bytes(frame.len(), usize::from(packet.end))
}

/// As for IPv4 (RFC 4291 2.5 and 2.7, RFC 4861 6 and 7, RFC 3810 5).
#[inline]
fn ipv6_addresses(frame: &[u8], length: usize, packet: &Packet) -> Result<(), ParseStop> {
    let (src, dst) = (packet.src.octets(), packet.dst.octets());
    let (from, to) = (packet.src.to_u128(), packet.dst.to_u128());
    if src[0] == 0xff || from == 1 || packet.src.is_v4() || to <= 1 || packet.dst.is_v4() {
        return Err(DropReason::MartianAddress.into());
    }
    let l4 = packet.l4_bytes(frame);
    let group = dst[0] == 0xff;
    let trailed = has_trailing_bytes(length, usize::from(packet.end));
    let link_local = |octets: &[u8; 16]| octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
    if packet.protocol == protocol::ICMPV6 && packet.fragment.is_none() {
        let kind = l4.first().copied();
        // Between other addresses it is judged like any ICMP, if it could carry anything from one end to the other.
        let on_link = group
            || link_local(&dst) && (link_local(&src) || from == 0)
            || is_bare_neighbour_discovery(frame, packet);
        match kind {
            Some(133..=137) if packet.ttl != 255 => return Err(DropReason::Malformed.into()),
            Some(134 | 137) => return Err(NotSubject::RouterAdvertisement.into()),
            // It is short, so it lies in the first bytes if it is plain.
            Some(133 | 135 | 136)
                if on_link && frame.len() == length && is_plain_neighbour_discovery(frame, packet) =>
            {
                return Err(NotSubject::Ndp.into());
            }
            Some(130..=132 | 143) if packet.ttl == 1 && group && !trailed => {
                return Err(NotSubject::Mld.into());
            }
            _ => {}
        }
    }
    if from == 0 {
        return Err(DropReason::MartianAddress.into());
    }
    let dhcp =
        if packet.protocol == protocol::UDP && packet.fragment.is_none() && link_local(&src) && !trailed {
            match (be16(l4, 0), be16(l4, 2)) {
                // All relay agents and servers (RFC 9915 7.1).
                (Some(546), Some(547))
                    if link_local(&dst) || to == 0xff02_0000_0000_0000_0000_0000_0001_0002 =>
                {
                    Some(NotSubject::Dhcp)
                }
                (Some(547), Some(546)) if link_local(&dst) => Some(NotSubject::DhcpServer),
                _ => None,
            }
        } else {
            None
        };
    match (group, dhcp) {
        (true, _) if !to_ethernet_group(frame) => Err(DropReason::MartianAddress.into()),
        (_, Some(kind)) => Err(kind.into()),
        (true, None) => Err(NotSubject::Multicast.into()),
        (false, None) if link_local(&dst) => Err(NotSubject::LinkLocal.into()),
        (false, None) => Ok(()),
    }
}

/// Reads the layer 4 header of a whole datagram or a first fragment.
#[inline]
fn layer4(frame: &[u8], packet: &mut Packet) -> Result<(), DropReason> {
    let bytes = packet.l4_bytes(frame);
    // How far the fragment reaches counts from layer 4 on, which for IPv6 may lie behind more extension headers.
    let cut_short = match &packet.fragment {
        Some(fragment) => {
            let too_far = usize::from(fragment.offset) + usize::from(fragment.length) > usize::from(u16::MAX);
            if fragment.length == 0 || too_far || fragment.more && !fragment.length.is_multiple_of(8) {
                return Err(DropReason::FragmentInvalid);
            }
            if fragment.offset != 0 {
                return Ok(());
            }
            DropReason::FragmentInvalid
        }
        None => DropReason::Truncated,
    };
    let cut_short = if usize::from(packet.end) > frame.len() {
        DropReason::HeadersSplit
    } else {
        cut_short
    };
    let v4 = packet.src.is_v4();
    packet.transport = match packet.protocol {
        protocol::TCP => {
            let header = TcpHeaderSlice::from_slice(bytes).map_err(|error| match error {
                TcpError::Len(_) => cut_short,
                TcpError::Content(_) => DropReason::Malformed,
            })?;
            Transport::Tcp {
                src: header.source_port(),
                dst: header.destination_port(),
                flags: TcpFlags(header.slice()[13] & 0x3f),
            }
        }
        protocol::UDP => {
            let header = UdpHeaderSlice::from_slice(bytes).map_err(|_| cut_short)?;
            let length = usize::from(header.length());
            if length < 8 {
                return Err(DropReason::Malformed);
            }
            if length > usize::from(packet.l4_length()) && packet.fragment.is_none() {
                return Err(DropReason::Truncated);
            }
            Transport::Udp {
                src: header.source_port(),
                dst: header.destination_port(),
            }
        }
        protocol::SCTP => match bytes {
            &[a, b, c, d, _, _, _, _, _, _, _, _, ref chunks @ ..] => Transport::Sctp {
                src: u16::from_be_bytes([a, b]),
                dst: u16::from_be_bytes([c, d]),
                chunk: chunks.first().copied().unwrap_or(255),
            },
            _ => return Err(cut_short),
        },
        protocol::ICMP if v4 => icmp(bytes, true, cut_short)?,
        protocol::ICMPV6 if !v4 => icmp(bytes, false, cut_short)?,
        _ => Transport::Other,
    };
    Ok(())
}

fn icmp(bytes: &[u8], v4: bool, cut_short: DropReason) -> Result<Transport, DropReason> {
    let &[kind, code, _, _, high, low, _, _, ref rest @ ..] = bytes else {
        return Err(cut_short);
    };
    let id = u16::from_be_bytes([high, low]);
    Ok(match (v4, kind, code) {
        (true, 8, 0) | (false, 128, 0) => Transport::Echo { id, request: true },
        (true, 0, 0) | (false, 129, 0) => Transport::Echo { id, request: false },
        (true, 3 | 11 | 12, _) | (false, 1..=4, _) => Transport::IcmpError {
            quoted: quoted(rest, v4),
        },
        _ => Transport::Icmp { kind, code },
    })
}

/// The packet that an ICMP error quotes: its IP header and at least eight bytes more (RFC 792, RFC 4443 2.4).
#[cold]
fn quoted(bytes: &[u8], v4: bool) -> Option<Quoted> {
    let (src, dst, number, l4) = if v4 {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        if header.fragments_offset().value() != 0 {
            return None; // no ports in it
        }
        let l4 = bytes.get(header.slice().len()..)?;
        (
            Addr::v4(header.source()),
            Addr::v4(header.destination()),
            header.protocol().0,
            l4,
        )
    } else {
        let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        let (src, dst) = (Addr::v6(header.source()), Addr::v6(header.destination()));
        if src.is_v4() || dst.is_v4() {
            return None;
        }
        let (number, l4) = quoted_extensions(header.next_header().0, bytes.get(40..)?)?;
        (src, dst, number, l4)
    };
    let (src_port, dst_port) = match number {
        protocol::TCP | protocol::UDP | protocol::SCTP => (be16(l4, 0)?, be16(l4, 2)?),
        // Of the other family either is a protocol without ports, as it is in a packet.
        protocol::ICMP | protocol::ICMPV6 if v4 == (number == protocol::ICMP) => {
            // Only echo of code 0 has flows, and nothing is said about errors (RFC 1122 3.2.2).
            if !matches!(
                (v4, *l4.first()?, *l4.get(1)?),
                (true, 0 | 8, 0) | (false, 128 | 129, 0)
            ) {
                return None;
            }
            let id = be16(l4, 4)?;
            (id, id)
        }
        _ => (0, 0),
    };
    Some(Quoted {
        src,
        dst,
        protocol: number,
        src_port,
        dst_port,
    })
}

/// The sequence number of the TCP segment that an ICMP error in `frame` quotes: with the eight bytes behind its IP header
/// that every error has.
#[cold]
pub(crate) fn quoted_sequence(frame: &[u8], packet: &Packet) -> Option<u32> {
    let bytes = packet.l4_bytes(frame).get(8..)?;
    let l4 = if packet.src.is_v4() {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        bytes.get(header.slice().len()..)?
    } else {
        let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        quoted_extensions(header.next_header().0, bytes.get(40..)?)?.1
    };
    Some(u32::from_be_bytes(*l4.get(4..)?.first_chunk()?))
}

fn quoted_extensions(mut kind: u8, mut rest: &[u8]) -> Option<(u8, &[u8])> {
    for _ in 0..MAX_EXTENSIONS {
        let length = match kind {
            0 | 43 | 60 => 8 + 8 * usize::from(*rest.get(1)?),
            44 if be16(rest, 2)? & !7 == 0 => 8,
            44 => return None,
            _ => return Some((kind, rest)),
        };
        kind = *rest.first()?;
        rest = rest.get(length..)?;
    }
    None
}
