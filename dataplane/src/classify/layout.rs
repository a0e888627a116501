//! How an image lies in memory: little-endian plain data, no pointers, so it can be copied, hashed and read anywhere.
//!
//! ```text
//! image: header | section table | sections, each at a multiple of 64 bytes
//! delta: header | lengths of the sections | patches | the patches' bytes
//! ```
//! Every field is a number in little-endian byte order; addresses are in network byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(target_endian = "big")]
compile_error!(
    "snapshot images are read in place as little-endian numbers: big-endian targets are not supported"
);

/// First eight bytes of a delta.
pub(super) const DELTA_MAGIC: [u8; 8] = *b"RWDELT\r\n";

/// First eight bytes of an image.
pub(super) const MAGIC: [u8; 8] = *b"RWSNAP\r\n";

/// Number of the layout that this build writes and reads; others are refused.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "neighbour") { 1009 } else { 9 };

/// No provenance, no node, no endpoint.
pub const NONE: u32 = u32::MAX;

/// Peer classes in one page of a row.
pub const CLASSES_PER_PAGE: usize = 64;

/// Sections start at multiples of this many bytes.
pub(super) const SECTION_ALIGN: usize = 64;

/// What describes an image apart from its tables; the same in an image and in a delta to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ImageMeta {
    /// The snapshot's generation.
    pub generation: u64,
    /// Chooses the hash functions of the host and name tables.
    pub seed: u64,
    /// Hash of the canonical content, by the compiler.
    pub content: [u8; 32],
    /// [`FLAG_ALLOW_UNKNOWN`]; other bits are refused.
    pub flags: u32,
    /// Peer classes: columns of a row.
    pub classes: u32,
    /// Rows are numbered from 1 to this; 0 is open.
    pub rows: u32,
    /// Tiles of rows that the row pages have room for; see [`page_slot`].
    pub row_tiles: u32,
}

/// What an image begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// Entries of the section table.
    pub sections: u32,
    /// Bytes of the whole image.
    pub length: u64,
    /// blake3 of header and section table, with this field zero.
    pub checksum: [u8; 32],
    /// Sum of the tables' chunks; see [`super::image::ContentSum`].
    pub sum: [u64; 4],
    /// The rest.
    pub head: ImageMeta,
}

/// What a delta begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeltaHeader {
    /// [`DELTA_MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// Lengths that follow.
    pub sections: u32,
    /// Bytes of the whole delta.
    pub length: u64,
    /// blake3 of the whole delta with this field zero.
    pub checksum: [u8; 32],
    /// Generation of the image that this changes.
    pub base: u64,
    /// That image's sum.
    pub base_sum: [u64; 4],
    /// The new image's sum.
    pub sum: [u64; 4],
    /// The new image's head.
    pub head: ImageMeta,
    /// Patches that follow the lengths.
    pub patches: u64,
}

/// Bytes of one chunk that differ. The bytes of all patches follow the last of them, in order, without gaps.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PatchRecord {
    /// [`Section`] as a number.
    pub section: u32,
    /// The chunk.
    pub chunk: u32,
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// Traffic of unknown endpoints is allowed.
pub(super) const FLAG_ALLOW_UNKNOWN: u32 = 1;

/// An entry of the section table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SectionEntry {
    /// Which section: [`Section`] as a number, equal to the entry's index.
    pub kind: u32,
    /// Bytes of a record.
    pub record: u32,
    /// First byte, from the beginning of the image.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The sections, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Section {
    Identities = 0,
    HostsV4,
    HostsV6,
    TrieV4,
    TrieV6,
    RowPages,
    Patterns,
    Palettes,
    PortMaps,
    Intervals,
    Rows,
    Provenance,
    Policies,
    PolicyLists,
    Endpoints,
    Names,
    Nodes,
    StringTable,
    Text,
}

pub(super) const SECTIONS: usize = Section::Text as usize + 1;

/// An [`super::Identity`] in 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IdentityRecord {
    /// [`super::IdentityKind`] as a number.
    pub kind: u32,
    pub endpoint: u32,
    pub node: u32,
    pub peer_class: u32,
    /// Row of what may come in; 0 is open.
    pub ingress: u32,
    /// Row of what may go out; 0 is open.
    pub egress: u32,
    pub epoch: u64,
}

/// What a row says besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RowRecord {
    /// Provenance of what no rule decides; [`NONE`] where that is open.
    pub isolating: u32,
    /// Of a row of what may go out: the row of what may go to the node that hosts the pod; 0 is everything.
    pub own_node: u32,
}

impl RowRecord {
    /// Of a row that is free.
    pub(super) const FREE: Self = Self {
        isolating: NONE,
        own_node: 0,
    };
}

/// Seven IPv4 hosts in one cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct BucketV4 {
    /// Addresses, first byte most significant.
    pub keys: [u32; 7],
    /// Occupied slots, from slot 0 on.
    pub used: u16,
    /// Buckets that a lookup that begins here may read, this one included; at least 1.
    pub reach: u16,
    /// Indices of identities plus 1; 0 in an empty slot. The last is of no slot: with it, these are as many numbers as
    /// the keys and what follows them.
    pub identities: [u32; 8],
}

/// Three IPv6 hosts in one cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct BucketV6 {
    /// Addresses in network byte order.
    pub keys: [[u8; 16]; 3],
    /// Indices of identities plus 1; 0 in an empty slot.
    pub identities: [u32; 3],
    /// Occupied slots, from slot 0 on.
    pub used: u16,
    /// Buckets that a lookup that begins here may read, this one included; at least 1.
    pub reach: u16,
}

/// The most buckets that a lookup reads.
pub(super) const MAX_REACH: u16 = 4;

/// A node of a stride-8 trie: by the address's next byte, an identity or, with [`TRIE_CHILD`], a node with a higher
/// index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct TrieNode {
    pub entries: [u32; 256],
}

/// The entry is the index of a node.
pub(super) const TRIE_CHILD: u32 = 1 << 31;

/// An entry of a palette with this bit holds the cell's decision itself, which is the same for every protocol and port: the
/// next bit says whether it allows, the one after that whether it is [`Decision::DENY_BY_DEFAULT`], the others say which rule decides
/// ([`NONE`] where all are set).
/// Without it, the entry is the index of a port map.
pub(super) const SAME_FOR_ALL: u32 = 1 << 31;
const ALLOWS_ALL: u32 = 1 << 30;
const DENIES_BY_DEFAULT: u32 = 1 << 29;
const RULE_BITS: u32 = 29;

/// Rules that decide whole cells have smaller indices: the highest bit is [`NONE`]'s.
pub(super) const MOST_RULES: u32 = 1 << (RULE_BITS - 1);

/// The palette entry of a decision for every protocol and port; `provenance` is [`NONE`] or below [`MOST_RULES`].
pub(super) const fn whole_cell(decision: Decision, provenance: u32) -> u32 {
    let decision = match decision {
        Decision::ALLOW => ALLOWS_ALL,
        Decision::DENY_BY_DEFAULT => DENIES_BY_DEFAULT,
        _ => 0,
    };
    SAME_FOR_ALL | decision | provenance & ((1 << RULE_BITS) - 1)
}

/// What such an entry decides, and the rule. Of the index of a port map, which is below 2^30: that nothing is allowed.
#[inline]
pub(super) const fn whole_cell_decision(entry: u32) -> (Decision, u32) {
    let (allows, by_default) = (entry & ALLOWS_ALL != 0, entry & DENIES_BY_DEFAULT != 0);
    (
        Decision(allows as u8 | (by_default as u8) << 1),
        ((entry << (32 - RULE_BITS)) as i32 >> (32 - RULE_BITS)) as u32,
    )
}

/// 64 cells of a row: `palette[pattern[class % 64]]` is the cell's port map, or its decision. Patterns come from selectors and are shared
/// by many rows; what a row does with them is its own, and short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PageRecord {
    /// Index of the pattern.
    pub pattern: u32,
    /// Index of the first entry of the palette.
    pub palette: u32,
}

/// Rows in a tile.
pub(super) const TILE_ROWS: usize = 256;

/// Pages in a tile: a tile is one chunk of the row pages.
pub(super) const TILE_PAGES: usize = 8;

/// Where a page of a row (counted from 0) lies among the row pages, of which there is room for `row_tiles` tiles of
/// rows.
///
/// In tiles, so that a further column costs about as many chunks as a further row; a tile page by page, so that a
/// column's pages lie together. Tiles of the same pages lie together, so that further pages go to the end.
#[inline]
pub(super) fn page_slot(row: usize, page: usize, row_tiles: u32) -> usize {
    let tile = page / TILE_PAGES * row_tiles as usize + row / TILE_ROWS;
    (tile * TILE_PAGES + page % TILE_PAGES) * TILE_ROWS + row % TILE_ROWS
}

/// Row pages for so many rows and classes.
pub(super) fn page_slots(classes: u32, row_tiles: u32) -> usize {
    let pages = (classes as usize).div_ceil(CLASSES_PER_PAGE);
    pages.div_ceil(TILE_PAGES) * row_tiles as usize * (TILE_ROWS * TILE_PAGES)
}

/// Which of 64 consecutive peer classes a row treats alike: numbers from 0 on, in order of first occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Pattern {
    pub parts: [u8; CLASSES_PER_PAGE],
}

/// What is decided, as bits: never a bare yes or no, so that later actions need no new layout.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Decision(pub u8);

impl Decision {
    /// The packet may not pass.
    pub const DENY: Self = Self(0);
    /// The packet may pass.
    pub const ALLOW: Self = Self(1);
    /// The packet may not pass, by the default of a tier after the first that denies by default: in place of a rule, its policies are
    /// listed.
    pub const DENY_BY_DEFAULT: Self = Self(1 << 1);
    /// Log the packet. Reserved: refused by this build.
    pub const LOG: u8 = 1 << 2;
    /// Decided by a staged policy: count, do not enforce. Reserved: refused by this build.
    pub const STAGED: u8 = 1 << 3;
    /// Redirect the packet. Reserved: refused by this build.
    pub const REDIRECT: u8 = 1 << 4;
    /// Answer with a reset or an ICMP error. Reserved: refused by this build.
    pub const REJECT: u8 = 1 << 5;
    /// Of an interval alone: a nested port map decides, whose number stands in place of the provenance. Read as a decision, it
    /// denies.
    pub const NESTED: Self = Self(1 << 6);

    /// Whether the packet may pass.
    #[inline]
    pub const fn allows(self) -> bool {
        self.0 == Self::ALLOW.0
    }

    /// Whether this build carries out all that the bits say.
    pub(super) const fn is_known(self) -> bool {
        self.0 <= Self::DENY_BY_DEFAULT.0
    }
}

/// IP protocols that have ports, in the order in which a port map has them.
pub(super) const WITH_PORTS: [u8; 3] = [6, 17, 132];
/// Which list of a port map is of all other protocols.
pub(super) const OTHER_PROTOCOLS: usize = 3;

/// Port ranges that a port map holds itself.
pub(super) const INLINE_RANGES: usize = 4;

/// The decisions of one cell: a cache line, which alone decides wherever few ports of TCP are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct PortMapRecord {
    /// Intervals of TCP, UDP and SCTP: `starts[i]..starts[i + 1]` of the section. Those of the fourth are of all other protocols,
    /// by number in place of a port. A list covers every port, or has no interval where they are all decided as without a port.
    /// TCP's has none either where the ranges below say it all.
    ///
    /// An interval or range that is [`Decision::NESTED`] has the number of another port map, whose ports of TCP decide: by source
    /// port, for ICMP by type and code. Where those are not known, what it decides without a port does. Port maps nest once.
    pub starts: [u32; 5],
    /// Rule of each of the ranges below, then the rule that decides where no port is known, the protocol has none, or its port
    /// is in no range; [`NONE`] for no rule.
    pub provenances: [u32; INLINE_RANGES + 1],
    /// First and last ports of ranges of TCP, in ascending order; those that are not used come last, from 1 to 0.
    pub los: [u16; INLINE_RANGES],
    pub his: [u16; INLINE_RANGES],
    /// Decisions of the ranges, then that where there is no port.
    pub decisions: [Decision; INLINE_RANGES + 1],
    pub reserved: [u8; 3],
}

impl PortMapRecord {
    /// Of a port map that is free.
    pub(super) const FREE: Self = Self::of(Decision::DENY, NONE);

    /// Decides the same for every protocol and port.
    pub(super) const fn of(decision: Decision, provenance: u32) -> Self {
        Self {
            starts: [0; 5],
            provenances: [provenance; INLINE_RANGES + 1],
            los: [1; INLINE_RANGES],
            his: [0; INLINE_RANGES],
            decisions: [decision; INLINE_RANGES + 1],
            reserved: [0; 3],
        }
    }

    /// The decision where no port is known or the protocol has none, and its rule.
    #[inline]
    pub(super) fn portless(&self) -> (Decision, u32) {
        (self.decisions[INLINE_RANGES], self.provenances[INLINE_RANGES])
    }

    /// What the ranges in the record decide about a port of TCP, and where it is in none of them what holds without a port.
    #[inline]
    pub(super) fn inline_decision(&self, port: u16) -> (Decision, u32) {
        let mut found = INLINE_RANGES;
        for range in 0..INLINE_RANGES {
            if self.los[range] <= port && port <= self.his[range] {
                found = range;
            }
        }
        (self.decisions[found], self.provenances[found])
    }

    /// The ranges in the record: first and last port, decision and rule.
    pub(super) fn inline_ranges(&self) -> impl Iterator<Item = (u16, u16, Decision, u32)> + '_ {
        let ports = self.los.iter().zip(&self.his).filter(|(lo, hi)| lo <= hi);
        let decided = self.decisions.iter().zip(&self.provenances);
        let ranges = ports.zip(decided);
        ranges.map(|((lo, hi), (decision, provenance))| (*lo, *hi, *decision, *provenance))
    }
}

/// From port `lo` to the next interval's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IntervalRecord {
    pub lo: u16,
    pub decision: Decision,
    pub reserved: u8,
    /// Rule that decides; [`NONE`]: none does. Then deny means isolated, allow means open. Of [`Decision::NESTED`], the number of
    /// a port map.
    pub provenance: u32,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ProvenanceRecord {
    /// [`PROVENANCE_RULE`] or [`PROVENANCE_ISOLATING`].
    pub kind: u32,
    /// Rule: index of the policy. Isolating: first entry in the policy lists.
    pub first: u32,
    /// Rule: index of the rule. Isolating: number of entries.
    pub second: u32,
    pub reserved: u32,
}

pub(super) const PROVENANCE_RULE: u32 = 0;
pub(super) const PROVENANCE_ISOLATING: u32 = 1;

/// Names of a policy: indices of strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PolicyRecord {
    pub tier: u32,
    pub kind: u32,
    pub namespace: u32,
    pub name: u32,
    /// What senders of packets that it denies get: [`DenialAnswer::code`], or [`NO_ANSWER`] where the policy does not say.
    pub answer: u32,
    pub reserved: [u32; 3],
}

/// [`PolicyRecord::answer`] of a policy that leaves it to the configuration.
pub(super) const NO_ANSWER: u32 = u32::MAX;

/// A pod or template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct EndpointRecord {
    pub namespace: u32,
    pub name: u32,
    /// Index of its identity apart from any address.
    pub identity: u32,
    /// [`ENDPOINT_POD`], [`ENDPOINT_TEMPLATE`] or [`ENDPOINT_NONE`].
    pub state: u32,
}

pub(super) const ENDPOINT_POD: u32 = 0;
pub(super) const ENDPOINT_TEMPLATE: u32 = 1;
/// The number is free.
pub(super) const ENDPOINT_NONE: u32 = 2;

/// A place in the hash table of endpoints by name: the search for a name begins at its home and ends at an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NameSlot {
    /// Hash of the name: its home is `tag * slots >> 32`.
    pub tag: u32,
    /// The endpoint's number plus 1; 0 in an empty slot.
    pub endpoint: u32,
}

/// Hash of an endpoint's name.
pub(super) fn name_tag(namespace: &str, name: &str, seed: u64) -> u32 {
    // In one go: for short contents an incremental hasher costs more to set up than to run.
    let mut bytes = Vec::with_capacity(16 + namespace.len() + name.len());
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend_from_slice(&(namespace.len() as u64).to_le_bytes());
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.extend_from_slice(name.as_bytes());
    let [a, b, c, d, ..] = *blake3::hash(&bytes).as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Where the search for a name begins. `slots` below 2^32.
pub(super) fn name_home(tag: u32, slots: usize) -> usize {
    ((u64::from(tag) * slots as u64) >> 32) as usize
}

/// A string: bytes of the text section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct StringRecord {
    pub offset: u32,
    pub length: u32,
}

/// The bucket where the search for an IPv4 host begins. `buckets` below 2^32.
#[inline]
pub(super) fn hash_v4(key: u32, seed: u64, buckets: usize) -> usize {
    let hash = (u64::from(key) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (((hash >> 32) * buckets as u64) >> 32) as usize
}

/// The bucket where the search for an IPv6 host begins. `buckets` below 2^32.
#[inline]
pub(super) fn hash_v6(key: [u8; 16], seed: u64, buckets: usize) -> usize {
    let number = u128::from_be_bytes(key);
    let high = ((number >> 64) as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = (number as u64 ^ high.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let hash = (low ^ (low >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (((hash >> 32) * buckets as u64) >> 32) as usize
}
