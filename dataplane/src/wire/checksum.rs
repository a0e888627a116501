//! Internet checksums (RFC 1071): verify, update (RFC 1624), and complete partial ones.

use super::{Packet, protocol};
use crate::addr::Addr;

/// Ones' complement sum of 16-bit big-endian words, not folded; an odd last byte counts as the upper half of a word.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    let (quads, tail) = bytes.as_chunks::<4>();
    // The sum of native words is the sum of big-endian words with its bytes swapped (RFC 1071, 2(B)).
    let mut total: u64 = quads
        .iter()
        .map(|quad| u64::from(u32::from_ne_bytes(*quad)))
        .sum();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    total += u64::from(u32::from_ne_bytes(last));
    u64::from(u16::from_be_bytes(fold(total).to_ne_bytes()))
}

/// Folds a sum into 16 bits.
#[inline]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1), not folded.
#[inline]
pub fn pseudo_header(src: Addr, dst: Addr, protocol: u8, length: u16) -> u64 {
    let (src, dst) = (src.octets(), dst.octets());
    let words = |octets: &[u8; 16]| -> u64 {
        let (quads, _) = octets.as_chunks::<4>();
        quads
            .iter()
            .map(|quad| u64::from(u32::from_be_bytes(*quad)))
            .sum()
    };
    // An IPv4 address is held as ::ffff:a.b.c.d; its prefix adds 0xffff, which is zero in ones' complement.
    words(&src) + words(&dst) + u64::from(protocol) + u64::from(length)
}

/// The checksum after one 16-bit word that it covers changed (RFC 1624, equation 3). All in host order.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// Whether the checksum of an IPv4 header holds.
#[inline]
pub fn ipv4_header_is_valid(header: &[u8]) -> bool {
    fold(sum(header)) == 0xffff
}

/// Where the checksum field lies in the layer 4 header of protocols that can be offloaded.
#[inline]
fn field_offset(number: u8) -> Option<usize> {
    match number {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    }
}

/// Completes the layer 4 checksum of a packet from a veth or virtio port whose sender left it to the hardware: then the
/// field holds the folded pseudo-header sum and nothing else. Answers whether it did.
///
/// A packet whose checksum is right already is never changed: where its field happens to equal the pseudo-header's
/// sum, computing it again gives the same. UDP's zero (no checksum) stays. Fragments stay: their sender has summed
/// before cutting.
#[inline]
pub fn complete_partial(frame: &mut [u8], packet: &Packet) -> bool {
    if packet.fragment.is_some() {
        return false;
    }
    match packet.protocol {
        protocol::SCTP => return complete_sctp(frame, packet),
        protocol::GRE => return complete_gre(frame, packet),
        _ => {}
    }
    let Some(field) = field_offset(packet.protocol) else {
        return false;
    };
    let l4 = usize::from(packet.l4);
    let Some(segment) = frame.get_mut(l4..usize::from(packet.end)) else {
        return false;
    };
    let length = match packet.protocol {
        protocol::UDP => match segment.get(4..6) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => return false,
        },
        _ => packet.l4_length(),
    };
    let Some(segment) = segment.get_mut(..usize::from(length)) else {
        return false;
    };
    let Some(&[high, low]) = segment.get(field..field + 2) else {
        return false;
    };
    let pseudo = pseudo_header(packet.src, packet.dst, packet.protocol, length);
    if u16::from_be_bytes([high, low]) != fold(pseudo) {
        return false;
    }
    // The field still holds the pseudo-header's sum, so summing the segment as it is includes it.
    let mut checksum = !fold(sum(segment));
    if checksum == 0 && packet.protocol == protocol::UDP {
        checksum = 0xffff;
    }
    segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// What completes the checksum of a packet: bytes and where they belong in its first buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumPatch {
    at: usize,
    bytes: [u8; 4],
    length: usize,
}

impl ChecksumPatch {
    /// Writes it into the packet's first buffer.
    pub fn apply(&self, first: &mut [u8]) {
        if let Some(field) = first.get_mut(self.at..self.at + self.length) {
            field.copy_from_slice(&self.bytes[..self.length]);
        }
    }
}

/// As [`complete_partial`] for a packet of several buffers: what to write into the first, which holds the headers. `rest` are
/// the bytes of the others. None where the checksum is not partial.
#[cold]
pub fn partial_of_chain<'a>(
    first: &'a [u8],
    rest: impl Iterator<Item = &'a [u8]>,
    packet: &Packet,
) -> Option<ChecksumPatch> {
    if packet.fragment.is_some() {
        return None;
    }
    let segment = packet.l4_bytes(first);
    let length = match packet.protocol {
        protocol::UDP => u16::from_be_bytes(*segment.get(4..)?.first_chunk()?),
        _ => packet.l4_length(),
    };
    if length > packet.l4_length() {
        return None;
    }
    let mut left = usize::from(length);
    let pieces = std::iter::once(segment).chain(rest).map_while(|piece| {
        let piece = piece.get(..left.min(piece.len()))?;
        left -= piece.len();
        (!piece.is_empty()).then_some(piece)
    });
    let l4 = usize::from(packet.l4);
    if packet.protocol == protocol::SCTP {
        if segment.get(8..12)? != [0; 4] {
            return None;
        }
        let crc = pieces.fold(0, crc32c::crc32c_append);
        return (crc != 0).then_some(ChecksumPatch {
            at: l4 + 8,
            bytes: crc.to_le_bytes(),
            length: 4,
        });
    }
    let (field, partial) = match packet.protocol {
        protocol::GRE if lacks_gre_checksum(segment) => (GRE_CHECKSUM, 0),
        other => (
            field_offset(other)?,
            fold(pseudo_header(packet.src, packet.dst, other, length)),
        ),
    };
    if u16::from_be_bytes(*segment.get(field..)?.first_chunk()?) != partial {
        return None;
    }
    let (mut total, mut is_odd) = (0, false);
    for piece in pieces {
        // What begins at an odd place has the halves of its words the other way round (RFC 1071, 2(B)).
        let sum = fold(sum(piece));
        total += u64::from(if is_odd { sum.swap_bytes() } else { sum });
        is_odd ^= piece.len() % 2 == 1;
    }
    let mut checksum = !fold(total);
    if checksum == 0 && packet.protocol == protocol::UDP {
        checksum = 0xffff;
    }
    let [high, low] = checksum.to_be_bytes();
    Some(ChecksumPatch {
        at: l4 + field,
        bytes: [high, low, 0, 0],
        length: 2,
    })
}

/// Where the checksum lies in a GRE header that has one.
const GRE_CHECKSUM: usize = 4;

/// Whether a GRE header has a checksum that is zero (RFC 2784 2.1). No pseudo-header is summed (2.3), so that is what a sender leaves
/// to the device; where it is the right one, computing it again gives zero again.
fn lacks_gre_checksum(segment: &[u8]) -> bool {
    matches!(segment, [flags, _, _, _, 0, 0, ..] if flags & 0x80 != 0)
}

/// GRE's checksum is over its header and all that is behind (RFC 2784 2.3).
#[cold]
fn complete_gre(frame: &mut [u8], packet: &Packet) -> bool {
    let range = usize::from(packet.l4)..usize::from(packet.end);
    let Some(segment) = frame.get_mut(range).filter(|segment| lacks_gre_checksum(segment)) else {
        return false;
    };
    let checksum = !fold(sum(segment));
    segment[GRE_CHECKSUM..GRE_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    checksum != 0
}

/// SCTP has a CRC32c instead of a sum (RFC 9260 6.8, appendix A), and a sender that leaves it to the device leaves zero in
/// its field. Where that is the right one, computing it again gives zero again.
#[cold]
fn complete_sctp(frame: &mut [u8], packet: &Packet) -> bool {
    let range = usize::from(packet.l4)..usize::from(packet.end);
    let Some(segment) = frame.get_mut(range) else {
        return false;
    };
    if segment.get(8..12) != Some(&[0; 4]) {
        return false;
    }
    let crc = crc32c::crc32c(segment);
    segment[8..12].copy_from_slice(&crc.to_le_bytes());
    crc != 0
}
