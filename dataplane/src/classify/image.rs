//! Images: the tables of a snapshot with what describes them, as a whole or as a delta to the image before.

use std::sync::{Arc, OnceLock};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    Generation,
    layout::{
        BucketV4, BucketV6, DELTA_MAGIC, DeltaHeader, EndpointRecord, FLAG_ALLOW_UNKNOWN, Header,
        IdentityRecord, ImageMeta, IntervalRecord, LAYOUT_VERSION, MAGIC, NameSlot, PageRecord, PatchRecord,
        Pattern, PolicyRecord, PortMapRecord, ProvenanceRecord, RowRecord, SECTION_ALIGN, SECTIONS,
        SectionEntry, StringRecord, TrieNode,
    },
    table::{CHUNK_BYTES, Section, Table},
};

/// Why bytes are not a snapshot, or not a delta that can be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Too short, or a length that contradicts the header.
    #[error("the snapshot image is cut short or has trailing bytes: {actual} bytes, header says {expected}")]
    Length {
        /// Bytes given.
        actual: u64,
        /// Bytes that the header names, or the smallest image.
        expected: u64,
    },
    /// Other magic.
    #[error("this is not a snapshot image (wrong magic)")]
    Magic,
    /// Written by another version of ringwall.
    #[error(
        "snapshot image has layout {found}, this build reads {LAYOUT_VERSION}: run the same version of ringwall on both sides"
    )]
    Version {
        /// The image's layout.
        found: u32,
    },
    /// Damaged on the way.
    #[error("snapshot image is damaged (checksum differs): have it published again")]
    Checksum,
    /// A delta to another image than the one at hand.
    #[error(
        "the delta changes generation {wanted}, and this is {found} or another image of that number: publish the whole image"
    )]
    Base {
        /// Generation that the delta changes.
        wanted: u64,
        /// Generation at hand.
        found: u64,
    },
    /// A table that contradicts itself or another one.
    #[error("snapshot image is invalid: {table} {index}: {problem}")]
    Table {
        /// Which table.
        table: &'static str,
        /// Index of the record in it.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

pub(super) fn table_error(table: &'static str, index: usize, problem: &'static str) -> ImageError {
    ImageError::Table {
        table,
        index,
        problem,
    }
}

/// The tables of a snapshot.
#[derive(Clone, Default)]
pub(super) struct Tables {
    pub identities: Table<IdentityRecord>,
    pub hosts_v4: Table<BucketV4>,
    pub hosts_v6: Table<BucketV6>,
    pub trie_v4: Table<TrieNode>,
    pub trie_v6: Table<TrieNode>,
    pub row_pages: Table<PageRecord>,
    pub patterns: Table<Pattern>,
    pub palettes: Table<u32>,
    pub port_maps: Table<PortMapRecord>,
    pub intervals: Table<IntervalRecord>,
    /// By row, from row 1.
    pub rows: Table<RowRecord>,
    pub provenance: Table<ProvenanceRecord>,
    pub policies: Table<PolicyRecord>,
    pub policy_lists: Table<u32>,
    pub endpoints: Table<EndpointRecord>,
    pub names: Table<NameSlot>,
    pub nodes: Table<u32>,
    pub strings: Table<StringRecord>,
    /// Bytes of the strings; none of them crosses the end of a chunk.
    pub text: Table<u8>,
}

impl Tables {
    /// In order of [`super::layout::Section`].
    pub(super) fn sections(&self) -> [&dyn Section; SECTIONS] {
        [
            &self.identities,
            &self.hosts_v4,
            &self.hosts_v6,
            &self.trie_v4,
            &self.trie_v6,
            &self.row_pages,
            &self.patterns,
            &self.palettes,
            &self.port_maps,
            &self.intervals,
            &self.rows,
            &self.provenance,
            &self.policies,
            &self.policy_lists,
            &self.endpoints,
            &self.names,
            &self.nodes,
            &self.strings,
            &self.text,
        ]
    }

    fn sections_mut(&mut self) -> [&mut dyn Section; SECTIONS] {
        [
            &mut self.identities,
            &mut self.hosts_v4,
            &mut self.hosts_v6,
            &mut self.trie_v4,
            &mut self.trie_v6,
            &mut self.row_pages,
            &mut self.patterns,
            &mut self.palettes,
            &mut self.port_maps,
            &mut self.intervals,
            &mut self.rows,
            &mut self.provenance,
            &mut self.policies,
            &mut self.policy_lists,
            &mut self.endpoints,
            &mut self.names,
            &mut self.nodes,
            &mut self.strings,
            &mut self.text,
        ]
    }
}

/// Sum over all chunks of a hash of each and its place: what two images with the same tables have in common, however
/// they came to be, and what a delta is checked by against the whole. It guards against damage, not against whoever can
/// publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ContentSum(pub [u64; 4]);

impl ContentSum {
    pub(super) fn of(section: usize, chunk: usize, hash: &[u8; 32]) -> Self {
        let mut place = [0; 48];
        let (number, rest) = place.split_at_mut(8);
        number.copy_from_slice(&(section as u64).to_le_bytes());
        let (number, rest) = rest.split_at_mut(8);
        number.copy_from_slice(&(chunk as u64).to_le_bytes());
        rest.copy_from_slice(hash);
        let hash = *blake3::hash(&place).as_bytes();
        let (lanes, _) = hash.as_chunks::<8>();
        let mut sum = [0; 4];
        for (lane, bytes) in sum.iter_mut().zip(lanes) {
            *lane = u64::from_le_bytes(*bytes);
        }
        Self(sum)
    }

    fn of_chunk(number: usize, section: &dyn Section, chunk: usize) -> Self {
        section
            .hash(chunk)
            .map_or(Self::default(), |hash| Self::of(number, chunk, &hash))
    }

    pub(super) fn add(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(other);
        }
    }

    fn subtract(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(other);
        }
    }
}

/// The chunks of a section that a delta changed.
pub(super) type ChangedChunks = Vec<(usize, usize)>;

/// The tables of a snapshot at one generation: immutable, shares its chunks with its predecessors and successors; a clone
/// shares everything. Made by [`super::ImageBuilder::image`] and read by [`super::Snapshot`].
#[derive(Clone)]
pub struct Image {
    pub(super) parts: Arc<Parts>,
}

/// What an image is made of.
pub(super) struct Parts {
    pub(super) head: ImageMeta,
    pub(super) tables: Tables,
    /// Once somebody asked.
    sum: OnceLock<ContentSum>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("generation", &self.parts.head.generation)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Image {
    pub(super) fn new(head: ImageMeta, tables: Tables) -> Self {
        Self::with_sum(head, tables, OnceLock::new())
    }

    fn with_sum(head: ImageMeta, tables: Tables, sum: OnceLock<ContentSum>) -> Self {
        Self {
            parts: Arc::new(Parts { head, tables, sum }),
        }
    }

    /// Its generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        Generation(self.parts.head.generation)
    }

    /// Hash of its canonical content: equal for images that mean the same, whatever their generation.
    pub fn hash(&self) -> [u8; 32] {
        self.parts.head.content
    }

    /// Length of [`Self::to_bytes`].
    pub fn bytes(&self) -> u64 {
        let mut end = prefix_bytes();
        for section in self.parts.tables.sections() {
            end = end.next_multiple_of(SECTION_ALIGN) + section.records() * section.record_bytes();
        }
        end as u64
    }

    /// The whole image: self-contained and position-independent, for [`super::Snapshot::open`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let sections = self.parts.tables.sections();
        let mut end = prefix_bytes();
        let mut entries = Vec::with_capacity(SECTIONS);
        for (section, kind) in sections.iter().zip(0..) {
            let (offset, length) = (
                end.next_multiple_of(SECTION_ALIGN),
                section.records() * section.record_bytes(),
            );
            end = offset + length;
            entries.push(SectionEntry {
                kind,
                record: section.record_bytes() as u32,
                offset: offset as u64,
                length: length as u64,
            });
        }
        let mut header = Header {
            magic: MAGIC,
            version: LAYOUT_VERSION,
            sections: SECTIONS as u32,
            length: end as u64,
            checksum: [0; 32],
            sum: self.sum().0,
            head: self.parts.head,
        };
        header.checksum = checksum(&[header.as_bytes(), entries.as_bytes()]);
        let mut image = Vec::with_capacity(end);
        image.extend_from_slice(header.as_bytes());
        image.extend_from_slice(entries.as_bytes());
        for (section, entry) in sections.iter().zip(&entries) {
            image.resize(entry.offset as usize, 0);
            let mut left = entry.length as usize;
            for chunk in (0..section.chunks()).filter_map(|number| section.chunk(number)) {
                let used = left.min(chunk.len());
                image.extend_from_slice(chunk.get(..used).unwrap_or(chunk));
                left -= used;
            }
        }
        image
    }

    /// What turns `base` into this image, for [`super::Snapshot::apply`]. Costs what differs; long where much does:
    /// whoever sends it compares it with [`Self::bytes`].
    ///
    /// None where a table is shorter than it was: then only the whole image will do.
    pub fn delta_since(&self, base: &Self) -> Option<Vec<u8>> {
        let mut sum = base.sum();
        let mut patches: Vec<PatchRecord> = Vec::new();
        let mut bytes: Vec<u8> = Vec::new();
        let mut lengths = [0_u64; SECTIONS];
        let sections = self
            .parts
            .tables
            .sections()
            .into_iter()
            .zip(base.parts.tables.sections());
        for ((number, (new, old)), length) in sections.enumerate().zip(&mut lengths) {
            if new.records() < old.records() {
                return None;
            }
            *length = new.records() as u64;
            for chunk in 0..new.chunks() {
                let Some(content) = new.chunk(chunk) else {
                    continue;
                };
                let was = old.chunk(chunk);
                if was.is_some_and(|was| std::ptr::eq(was, content)) {
                    continue;
                }
                sum.subtract(ContentSum::of_chunk(number, old, chunk));
                sum.add(ContentSum::of_chunk(number, new, chunk));
                let used = section_bytes(new).saturating_sub(chunk * CHUNK_BYTES);
                for (from, to) in differences(was.unwrap_or(&ZEROS), content) {
                    let to = to.min(used);
                    patches.push(PatchRecord {
                        section: number as u32,
                        chunk: chunk as u32,
                        offset: from as u32,
                        length: (to - from) as u32,
                    });
                    bytes.extend_from_slice(content.get(from..to).unwrap_or_default());
                }
            }
        }
        let sum = *self.parts.sum.get_or_init(|| sum);
        let mut header = DeltaHeader {
            magic: DELTA_MAGIC,
            version: LAYOUT_VERSION,
            sections: SECTIONS as u32,
            length: (size_of::<DeltaHeader>()
                + size_of_val(&lengths)
                + size_of_val(patches.as_slice())
                + bytes.len()) as u64,
            checksum: [0; 32],
            base: base.parts.head.generation,
            base_sum: base.sum().0,
            sum: sum.0,
            head: self.parts.head,
            patches: patches.len() as u64,
        };
        let rest = [lengths.as_bytes(), patches.as_bytes(), &bytes];
        header.checksum = checksum(&[header.as_bytes(), rest[0], rest[1], rest[2]]);
        let mut delta = Vec::with_capacity(header.length as usize);
        delta.extend_from_slice(header.as_bytes());
        rest.iter().for_each(|part| delta.extend_from_slice(part));
        Some(delta)
    }

    /// Copies an image's bytes and checks that they are whole; what they say is not looked at.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let (header, entries) = read_prefix(bytes)?;
        let mut tables = Tables::default();
        let mut end = prefix_bytes() as u64;
        let mut sum = ContentSum::default();
        for ((index, section), entry) in tables.sections_mut().into_iter().enumerate().zip(&entries) {
            if entry.kind as usize != index || entry.record as usize != section.record_bytes() {
                return Err(table_error("section", index, "is not the one that belongs there"));
            }
            if entry.offset < end || !entry.offset.is_multiple_of(SECTION_ALIGN as u64) {
                return Err(table_error(
                    "section",
                    index,
                    "overlaps another or is not aligned",
                ));
            }
            let gap = bytes.get(end as usize..entry.offset as usize);
            if gap.is_none_or(|gap| gap.iter().any(|byte| *byte != 0)) {
                return Err(table_error(
                    "section",
                    index,
                    "leaves the image or follows bytes of no section",
                ));
            }
            end = entry
                .offset
                .checked_add(entry.length)
                .ok_or_else(|| table_error("section", index, "leaves the image"))?;
            let content = usize::try_from(entry.offset)
                .ok()
                .zip(usize::try_from(end).ok())
                .and_then(|(from, to)| bytes.get(from..to))
                .ok_or_else(|| table_error("section", index, "leaves the image"))?;
            if !content.len().is_multiple_of(section.record_bytes()) {
                return Err(table_error("section", index, "does not hold whole records"));
            }
            section.grow(content.len() / section.record_bytes());
            for (number, content) in content.chunks(CHUNK_BYTES).enumerate() {
                if let Some(chunk) = section
                    .chunk_mut(number)
                    .and_then(|chunk| chunk.get_mut(..content.len()))
                {
                    chunk.copy_from_slice(content);
                }
                sum.add(ContentSum::of_chunk(index, section, number));
            }
        }
        if end != header.length {
            return Err(ImageError::Length {
                actual: header.length,
                expected: end,
            });
        }
        if sum.0 != header.sum {
            return Err(ImageError::Checksum);
        }
        Ok(Self::with_sum(header.head, tables, OnceLock::from(sum)))
    }

    /// The image that a delta turns this one into, and the chunks that it changes, of every section. What they say is
    /// not looked at.
    pub(super) fn patched(&self, delta: &[u8]) -> Result<(Self, [ChangedChunks; SECTIONS]), ImageError> {
        let Delta {
            header,
            lengths,
            patches,
            mut bytes,
        } = Delta::read(delta)?;
        if header.base != self.parts.head.generation || header.base_sum != self.sum().0 {
            return Err(ImageError::Base {
                wanted: header.base,
                found: self.parts.head.generation,
            });
        }
        let mut tables = self.parts.tables.clone();
        let mut changed: [Vec<usize>; SECTIONS] = Default::default();
        let mut sections = tables.sections_mut();
        for (((index, section), length), changed) in
            sections.iter_mut().enumerate().zip(lengths).zip(&mut changed)
        {
            let (before, chunks) = (section.records(), section.chunks());
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length >= before && length.checked_mul(section.record_bytes()).is_some())
                .ok_or_else(|| table_error("section", index, "has a length out of bounds"))?;
            if length.saturating_mul(section.record_bytes()) > MAX_TABLE_BYTES {
                return Err(table_error("section", index, "has a length out of bounds"));
            }
            section.grow(length);
            // Records that are there from now on, changed or not, and all of the chunks that are new.
            if length > before && before > 0 {
                changed.extend(chunks.checked_sub(1));
            }
            changed.extend(chunks..section.chunks());
        }
        for patch in patches {
            let number = patch.chunk as usize;
            let (Some(section), Some(changed)) = (
                sections.get_mut(patch.section as usize),
                changed.get_mut(patch.section as usize),
            ) else {
                return Err(table_error("patch", number, "is of an unknown section"));
            };
            let (from, length) = (patch.offset as usize, patch.length as usize);
            let (content, rest) = bytes
                .split_at_checked(length)
                .ok_or_else(|| table_error("patch", number, "is cut short"))?;
            bytes = rest;
            // Past the length there is nothing but zeros.
            let end = number
                .saturating_mul(CHUNK_BYTES)
                .saturating_add(from.saturating_add(length));
            let inside = end <= section_bytes(*section);
            let place = section
                .chunk_mut(number)
                .and_then(|chunk| chunk.get_mut(from..from.checked_add(length)?));
            match place {
                Some(place) if inside => place.copy_from_slice(content),
                _ => return Err(table_error("patch", number, "leaves its section")),
            }
            changed.push(number);
        }
        if !bytes.is_empty() {
            return Err(table_error("delta", 0, "has bytes that belong to no patch"));
        }
        let mut sum = self.sum();
        let sections = tables.sections().into_iter().zip(self.parts.tables.sections());
        for ((index, (new, old)), changed) in sections.enumerate().zip(&mut changed) {
            changed.sort_unstable();
            changed.dedup();
            for chunk in changed.iter() {
                sum.subtract(ContentSum::of_chunk(index, old, *chunk));
                sum.add(ContentSum::of_chunk(index, new, *chunk));
            }
        }
        if sum.0 != header.sum {
            return Err(ImageError::Checksum);
        }
        let ranges = |(section, chunks): (&dyn Section, Vec<usize>)| {
            let per_chunk = CHUNK_BYTES / section.record_bytes();
            chunks
                .into_iter()
                .map(|chunk| {
                    (
                        chunk * per_chunk,
                        ((chunk + 1) * per_chunk).min(section.records()),
                    )
                })
                .collect()
        };
        let mut of_section = changed.into_iter();
        let changed = tables
            .sections()
            .map(|section| ranges((section, of_section.next().unwrap_or_default())));
        let image = Self::with_sum(header.head, tables, OnceLock::from(sum));
        Ok((image, changed))
    }

    /// Every record of every section.
    pub(super) fn all_records(&self) -> [ChangedChunks; SECTIONS] {
        self.parts
            .tables
            .sections()
            .map(|section| vec![(0, section.records())])
    }

    fn sum(&self) -> ContentSum {
        *self.parts.sum.get_or_init(|| {
            let mut sum = ContentSum::default();
            for (number, section) in self.parts.tables.sections().into_iter().enumerate() {
                for chunk in 0..section.chunks() {
                    sum.add(ContentSum::of_chunk(number, section, chunk));
                }
            }
            sum
        })
    }
}

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// No table is longer: a delta could else ask for memory without end.
const MAX_TABLE_BYTES: usize = 1 << 30;

fn section_bytes(section: &dyn Section) -> usize {
    section.records() * section.record_bytes()
}

const fn prefix_bytes() -> usize {
    size_of::<Header>() + SECTIONS * size_of::<SectionEntry>()
}

/// blake3 of a header whose checksum field is zero, and what belongs to it.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Bytes from where to where two chunks differ, in words of 8 bytes.
fn differences(old: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    const WORD: usize = 8;
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    // Lines first: most are the same, and compared faster.
    for (line, (old, new)) in old.chunks(256).zip(new.chunks(256)).enumerate() {
        if old == new {
            continue;
        }
        for (word, (old, new)) in old.chunks(WORD).zip(new.chunks(WORD)).enumerate() {
            if old == new {
                continue;
            }
            let from = line * 256 + word * WORD;
            match ranges.last_mut() {
                // A patch of its own costs more than the words between.
                Some((_, to)) if from - *to <= size_of::<PatchRecord>() => *to = from + WORD,
                _ => ranges.push((from, from + WORD)),
            }
        }
    }
    ranges
}

fn read_prefix(bytes: &[u8]) -> Result<(Header, Vec<SectionEntry>), ImageError> {
    let too_short = || ImageError::Length {
        actual: bytes.len() as u64,
        expected: prefix_bytes() as u64,
    };
    let (mut header, rest) = Header::read_from_prefix(bytes).map_err(|_| too_short())?;
    if header.magic != MAGIC {
        return Err(ImageError::Magic);
    }
    if header.version != LAYOUT_VERSION {
        return Err(ImageError::Version {
            found: header.version,
        });
    }
    if header.length != bytes.len() as u64 {
        return Err(ImageError::Length {
            actual: bytes.len() as u64,
            expected: header.length,
        });
    }
    if header.sections as usize != SECTIONS {
        return Err(table_error("header", 0, "has another number of sections"));
    }
    let entries: Vec<SectionEntry> = records(rest, SECTIONS).ok_or_else(too_short)?.0;
    let claimed = std::mem::take(&mut header.checksum);
    if checksum(&[header.as_bytes(), entries.as_bytes()]) != claimed {
        return Err(ImageError::Checksum);
    }
    Ok((header, entries))
}

/// A delta's bytes, cut into its parts.
struct Delta<'a> {
    header: DeltaHeader,
    lengths: [u64; SECTIONS],
    patches: Vec<PatchRecord>,
    bytes: &'a [u8],
}

impl<'a> Delta<'a> {
    fn read(delta: &'a [u8]) -> Result<Self, ImageError> {
        let too_short = || ImageError::Length {
            actual: delta.len() as u64,
            expected: (size_of::<DeltaHeader>() + SECTIONS * size_of::<u64>()) as u64,
        };
        let (mut header, rest) = DeltaHeader::read_from_prefix(delta).map_err(|_| too_short())?;
        if header.magic != DELTA_MAGIC {
            return Err(ImageError::Magic);
        }
        if header.version != LAYOUT_VERSION {
            return Err(ImageError::Version {
                found: header.version,
            });
        }
        if header.length != delta.len() as u64 {
            return Err(ImageError::Length {
                actual: delta.len() as u64,
                expected: header.length,
            });
        }
        if header.sections as usize != SECTIONS {
            return Err(table_error("header", 0, "has another number of sections"));
        }
        let claimed = std::mem::take(&mut header.checksum);
        if checksum(&[header.as_bytes(), rest]) != claimed {
            return Err(ImageError::Checksum);
        }
        let (lengths, rest) = <[u64; SECTIONS]>::read_from_prefix(rest).map_err(|_| too_short())?;
        let count = usize::try_from(header.patches).map_err(|_| too_short())?;
        let (patches, bytes) = records(rest, count).ok_or_else(too_short)?;
        Ok(Self {
            header,
            lengths,
            patches,
            bytes,
        })
    }
}

/// So many records from the beginning of some bytes, and the bytes after them.
fn records<T: FromBytes + IntoBytes + Immutable + KnownLayout + Clone>(
    bytes: &[u8],
    count: usize,
) -> Option<(Vec<T>, &[u8])> {
    let (records, rest) = bytes.split_at_checked(count.checked_mul(size_of::<T>())?)?;
    let mut read = vec![T::new_zeroed(); count];
    read.as_mut_slice().as_mut_bytes().copy_from_slice(records);
    Some((read, rest))
}

/// Whether the flags hold nothing that this build does not know.
pub(super) fn knows_flags(head: &ImageMeta) -> bool {
    head.flags & !FLAG_ALLOW_UNKNOWN == 0
}
