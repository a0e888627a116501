//! Images with something changed in one of their tables, and sealed again, as somebody who wants to be believed would.

use crate::random::Random;

const CHUNK_BYTES: usize = 16 * 1024;
const CHECKSUM: std::ops::Range<usize> = 24..56;
const SUM: usize = 56;
const ENTRY: usize = 24;

/// Names of the sections, in order.
pub(crate) const SECTIONS: [&str; 19] = [
    "identities",
    "IPv4 hosts",
    "IPv6 hosts",
    "IPv4 trie",
    "IPv6 trie",
    "row pages",
    "patterns",
    "palettes",
    "port maps",
    "intervals",
    "rows",
    "provenance",
    "policies",
    "policy lists",
    "endpoints",
    "names",
    "nodes",
    "strings",
    "text",
];

/// A section's bytes of a record, first byte and length.
#[derive(Clone, Copy, Debug)]
struct Section {
    record: usize,
    offset: usize,
    length: usize,
}

/// An image that can be changed.
#[derive(Clone)]
pub(crate) struct Forged {
    bytes: Vec<u8>,
    entries: usize,
    sections: Vec<Section>,
}

fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    let mut number = [0; 8];
    number[..size].copy_from_slice(&bytes[at..at + size]);
    usize::try_from(u64::from_le_bytes(number)).expect("it fits")
}

impl Forged {
    pub(crate) fn of(image: &[u8]) -> Self {
        let is_table =
            |at: &usize| (0..SECTIONS.len()).all(|index| number(image, at + index * ENTRY, 4) == index);
        let entries = (SUM..1024).step_by(8).find(is_table).expect("the section table");
        let sections = (0..SECTIONS.len()).map(|index| {
            let at = entries + index * ENTRY;
            Section {
                record: number(image, at + 4, 4),
                offset: number(image, at + 8, 8),
                length: number(image, at + 16, 8),
            }
        });
        Self {
            bytes: image.to_vec(),
            entries,
            sections: sections.collect(),
        }
    }

    /// Changes one field of one record of a section: to what another record has there, to a neighbouring number, or to
    /// anything. False where the section is empty.
    pub(crate) fn change(&mut self, section: usize, random: &mut Random) -> bool {
        let Section {
            record,
            offset,
            length,
        } = self.sections[section];
        if length == 0 {
            return false;
        }
        let records = length / record;
        // The first ones are in use in every table.
        let mut any = || {
            let bound = if random.percent(50) {
                records.min(8)
            } else {
                records
            };
            random.below(bound) * record
        };
        let (at, other) = (any(), any());
        let width = [1, 2, 4, 8].into_iter().filter(|width| *width <= record);
        let width = *random.one(&width.collect::<Vec<_>>());
        let field = random.below(record / width) * width;
        let (at, other) = (offset + at + field, offset + other + field);
        let mut value = self.bytes[other..other + width].to_vec();
        match random.below(8) {
            0..=2 => {}
            3 | 4 => value[0] = self.bytes[at].wrapping_add(1),
            5 => value[0] = self.bytes[at].wrapping_sub(1),
            6 => value[0] = random.below(4) as u8,
            _ => value[0] = random.below(256) as u8,
        }
        self.bytes[at..at + width].copy_from_slice(&value);
        true
    }

    /// Gives a section what another image has there, as far as both go.
    pub(crate) fn take(&mut self, section: usize, other: &Self) {
        let (own, theirs) = (self.sections[section], other.sections[section]);
        let length = own.length.min(theirs.length);
        let bytes = &other.bytes[theirs.offset..theirs.offset + length];
        self.bytes[own.offset..own.offset + length].copy_from_slice(bytes);
    }

    /// Gives identities other epochs.
    pub(crate) fn epochs(&mut self, other: impl Fn(u64) -> Option<u64>) {
        let Section {
            record,
            offset,
            length,
        } = self.sections[0];
        let records = self.bytes[offset..offset + length].chunks_mut(record);
        for epoch in records.filter_map(|record| record.last_chunk_mut::<8>()) {
            if let Some(other) = other(u64::from_le_bytes(*epoch)) {
                *epoch = other.to_le_bytes();
            }
        }
    }

    /// Gives rows other rows for the node that hosts a pod: what `other` makes of a row, by its number, and the one it has.
    pub(crate) fn own_nodes(&mut self, other: impl Fn(u32, u32) -> u32) {
        let at = SECTIONS
            .iter()
            .position(|name| *name == "rows")
            .expect("there are rows");
        let Section {
            record,
            offset,
            length,
        } = self.sections[at];
        let records = self.bytes[offset..offset + length].chunks_mut(record);
        for (own_node, row) in records.filter_map(|record| record.last_chunk_mut::<4>()).zip(1..) {
            *own_node = other(row, u32::from_le_bytes(*own_node)).to_le_bytes();
        }
    }

    /// The image, with sums that fit.
    pub(crate) fn sealed(mut self) -> Vec<u8> {
        let mut sum = [0_u64; 4];
        for (number, section) in self.sections.iter().enumerate() {
            let content = &self.bytes[section.offset..section.offset + section.length];
            for (chunk, content) in content.chunks(CHUNK_BYTES).enumerate() {
                let mut whole = vec![0; CHUNK_BYTES];
                whole[..content.len()].copy_from_slice(content);
                let mut place = Vec::new();
                place.extend((number as u64).to_le_bytes());
                place.extend((chunk as u64).to_le_bytes());
                place.extend(blake3::hash(&whole).as_bytes());
                let hash = *blake3::hash(&place).as_bytes();
                for (lane, bytes) in sum.iter_mut().zip(hash.chunks(8)) {
                    *lane = lane.wrapping_add(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
                }
            }
        }
        for (lane, number) in sum.iter().enumerate() {
            self.bytes[SUM + lane * 8..][..8].copy_from_slice(&number.to_le_bytes());
        }
        self.bytes[CHECKSUM].fill(0);
        let end = self.entries + SECTIONS.len() * ENTRY;
        let checksum = *blake3::hash(&self.bytes[..end]).as_bytes();
        self.bytes[CHECKSUM].copy_from_slice(&checksum);
        self.bytes
    }
}
