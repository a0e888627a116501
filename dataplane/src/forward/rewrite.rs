//! Changing headers in place.

use crate::wire::{Packet, checksum};

/// Sets both addresses of the Ethernet header.
#[inline]
pub(crate) fn ethernet(frame: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    if let Some(header) = frame.first_chunk_mut::<12>() {
        header[..6].copy_from_slice(&dst);
        header[6..].copy_from_slice(&src);
    }
}

/// One hop less to live. The packet has more than one left.
#[inline]
pub(crate) fn decrement_ttl(frame: &mut [u8], packet: &Packet) {
    let Some(header) = frame.get_mut(usize::from(packet.l3)..) else {
        return;
    };
    if !packet.src.is_v4() {
        if let Some(hop_limit) = header.get_mut(7) {
            *hop_limit = hop_limit.saturating_sub(1);
        }
        return;
    }
    if let Some(&mut [ref mut ttl, protocol, ref mut high, ref mut low]) = header.get_mut(8..12) {
        let old = u16::from_be_bytes([*ttl, protocol]);
        *ttl = ttl.saturating_sub(1);
        let new = u16::from_be_bytes([*ttl, protocol]);
        let sum = checksum::update(u16::from_be_bytes([*high, *low]), old, new);
        [*high, *low] = sum.to_be_bytes();
    }
}
