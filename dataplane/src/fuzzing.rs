//! What the fuzz targets need and nothing else does: the short way of the parser, and checksums that hold over bytes that
//! no compiler would have written. Without them no mutation would get past a sum.

use crate::{
    flow::{
        entry::ENTRY_BYTES,
        hash::Seed,
        memory::{self, SEGMENTS},
        table,
    },
    verdict::DropReason,
    wire::{self, Packet, Parsed, tunnel::TunnelKind},
};

pub use crate::classify::forged::{delta_between, seal, sections};

/// What the short way through the headers says; None where it leaves a frame to [`wire::parse`].
pub fn parse_common(frame: &[u8]) -> Option<Packet> {
    wire::parse_common(frame).filter(|_| frame.len() <= u16::MAX.into())
}

/// What is in a tunnel packet, if it is taken for one of a kind; or why nothing is.
pub fn decapsulate(frame: &[u8], carrier: &Packet, kind: TunnelKind) -> Result<Parsed, DropReason> {
    wire::tunnel::decapsulate(frame, carrier, kind).map(|(inside, _)| inside)
}

/// Bytes of one entry of the flow memory.
pub const FLOW_ENTRY: usize = ENTRY_BYTES;

/// Entries of each of the memory's segments, where it has as few as can be.
pub const FLOWS_PER_SEGMENT: usize = 16;

/// Flow memory as a predecessor leaves it: `entries` by segment and place in it, all others free. Of the segments that
/// have one, all places count as used.
pub fn flow_memory(seed: u64, entries: &[(u8, u8, [u8; FLOW_ENTRY])]) -> Vec<u8> {
    let mut reached = vec![0; SEGMENTS];
    for (segment, ..) in entries {
        reached[usize::from(*segment)] = FLOWS_PER_SEGMENT as u32;
    }
    let mut memory = memory::image(seed, FLOWS_PER_SEGMENT, &[(reached, Vec::new())]);
    let header = memory.len();
    memory.resize(header + SEGMENTS * FLOWS_PER_SEGMENT * FLOW_ENTRY, 0);
    for (segment, place, entry) in entries {
        let place = usize::from(*place) % FLOWS_PER_SEGMENT;
        let at = header + (usize::from(*segment) * FLOWS_PER_SEGMENT + place) * FLOW_ENTRY;
        memory[at..at + FLOW_ENTRY].copy_from_slice(entry);
    }
    memory
}

/// Writes the check sum of an entry's key anew, so that the entry is believed.
pub fn seal_flow(seed: u64, entry: &mut [u8; FLOW_ENTRY]) {
    table::seal(&Seed::new(seed), entry);
}
