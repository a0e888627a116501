//! Images and deltas whose sums hold, whatever they say: what only somebody who wants to be believed would write. For
//! tests and fuzz targets.
#![cfg_attr(not(feature = "fuzzing"), allow(dead_code, unreachable_pub))] // the targets' part of it

use zerocopy::{FromBytes, IntoBytes};

use super::{
    Image,
    image::{ContentSum, checksum},
    layout::{Header, SECTIONS, SectionEntry},
    table::CHUNK_BYTES,
};

/// Header and section table of an image; None where it is shorter.
fn prefix(image: &[u8]) -> Option<(Header, [SectionEntry; SECTIONS])> {
    let (header, rest) = Header::read_from_prefix(image).ok()?;
    let (entries, _) = <[SectionEntry; SECTIONS]>::read_from_prefix(rest).ok()?;
    Some((header, entries))
}

/// Writes an image's sum and checksum anew. False where it is too short to have any.
pub fn seal(image: &mut [u8]) -> bool {
    let Some((mut header, entries)) = prefix(image) else {
        return false;
    };
    let mut sum = ContentSum::default();
    for (number, entry) in entries.iter().enumerate() {
        let end = entry.offset.saturating_add(entry.length) as usize;
        let content = image.get(entry.offset as usize..end).unwrap_or_default();
        for (chunk, content) in content.chunks(CHUNK_BYTES).enumerate() {
            let mut whole = vec![0; CHUNK_BYTES];
            whole[..content.len()].copy_from_slice(content);
            sum.add(ContentSum::of(number, chunk, blake3::hash(&whole).as_bytes()));
        }
    }
    header.sum = sum.0;
    header.checksum = [0; 32];
    header.checksum = checksum(&[header.as_bytes(), entries.as_bytes()]);
    image[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    true
}

/// The first byte and the length of each section, as the image says, in order of their numbers; none of an image that is
/// too short.
pub fn sections(image: &[u8]) -> Vec<(u64, u64)> {
    prefix(image).map_or_else(Vec::new, |(_, entries)| {
        entries.iter().map(|entry| (entry.offset, entry.length)).collect()
    })
}

/// The delta from one image to another, neither of which needs to be valid; None where there is none.
pub fn delta_between(base: &[u8], image: &[u8]) -> Option<Vec<u8>> {
    Image::read(image).ok()?.delta_since(&Image::read(base).ok()?)
}
