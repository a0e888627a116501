//! Fragmented datagrams: a later fragment gets the verdict of its first fragment, or drops (SEMANTICS 62).
//!
//! Per shard, fixed in number; nothing is held back or put together. A datagram whose parts overlap is cut from then
//! on (RFC 5722): who puts them together could see ports that nobody judged.

use crate::{classify::Generation, time::Nanos, verdict::DropReason, wire::FlowKey, wire::Fragment};

/// Datagrams looked at for one fragment.
const WAYS: usize = 8;
/// Gaps in what was seen of one datagram: more are not followed.
const RANGES: usize = 6;

/// What the first fragment got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstVerdict {
    /// It passed, under a snapshot and with endpoints as they were.
    Passed {
        /// The snapshot; 0 where none was asked (failsafe).
        generation: Generation,
        /// Of source and destination.
        epochs: [u64; 2],
    },
    /// It was dropped.
    Dropped(DropReason),
}

#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: FlowKey,
    id: u32,
    until: Nanos,
    /// Until the first fragment has been decided.
    verdict: Option<FirstVerdict>,
    /// Begins and ends of what was seen, in bytes of the datagram; empty ones are unused.
    seen: [(u16, u16); RANGES],
}

/// The datagrams that a shard follows.
#[derive(Debug)]
pub(crate) struct Fragments {
    datagrams: Box<[Option<Datagram>]>,
    timeout: Nanos,
}

/// What to do with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The first one: judge it, then tell [`Fragments::decided`] with this place.
    Judge(usize),
    /// A later one of a datagram whose first fragment was decided so.
    As(usize, FirstVerdict),
    /// It contradicts what was seen, or nothing was seen.
    Drop(DropReason),
}

impl Fragments {
    pub(crate) fn new(datagrams: usize, timeout: Nanos) -> Self {
        Self {
            datagrams: vec![None; datagrams.next_multiple_of(WAYS).max(WAYS)].into_boxed_slice(),
            timeout,
        }
    }

    /// Takes note of a fragment. `key` without ports, `hash` of key and identification.
    pub(crate) fn admit(&mut self, key: &FlowKey, hash: u64, fragment: &Fragment, now: Nanos) -> Admission {
        let set = (hash as usize % (self.datagrams.len() / WAYS)) * WAYS;
        let range = (fragment.offset, fragment.offset.saturating_add(fragment.length));
        let ways = &mut self.datagrams[set..set + WAYS];
        let known = ways.iter().position(|way| {
            way.as_ref().is_some_and(|datagram| {
                datagram.key == *key && datagram.id == fragment.id && datagram.until >= now
            })
        });
        if let Some((way, datagram)) = known.and_then(|way| Some((way, ways[way].as_mut()?))) {
            // A second first fragment could have ports that nobody judged, even where it adds no byte.
            if fragment.offset == 0 || !note(&mut datagram.seen, range) {
                datagram.verdict = Some(FirstVerdict::Dropped(DropReason::FragmentInvalid));
                return Admission::Drop(DropReason::FragmentInvalid);
            }
            return match datagram.verdict {
                Some(verdict) => Admission::As(set + way, verdict),
                None => Admission::Drop(DropReason::FragmentUnknown),
            };
        }
        if fragment.offset != 0 {
            return Admission::Drop(DropReason::FragmentUnknown);
        }
        // An unused or outlived place, else the one that ends first.
        let Some((way, place)) = ways
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, place)| place.as_ref().map_or(Nanos(0), |datagram| datagram.until))
        else {
            return Admission::Drop(DropReason::FragmentUnknown);
        };
        let mut seen = [(0, 0); RANGES];
        seen[0] = range;
        *place = Some(Datagram {
            key: *key,
            id: fragment.id,
            until: now.after(self.timeout),
            verdict: None,
            seen,
        });
        Admission::Judge(set + way)
    }

    /// Remembers what a first fragment got.
    pub(crate) fn decided(&mut self, place: usize, verdict: FirstVerdict) {
        if let Some(Some(datagram)) = self.datagrams.get_mut(place) {
            datagram.verdict = Some(verdict);
        }
    }
}

/// Adds a range to those seen; answers false where it meets one of them, or there is no room to remember it.
fn note(seen: &mut [(u16, u16); RANGES], (begin, end): (u16, u16)) -> bool {
    if seen.iter().any(|(from, to)| begin < *to && *from < end) {
        return false;
    }
    // What touches is one range: fragments in order are always one.
    let before = seen.iter().position(|(from, to)| from < to && *to == begin);
    let behind = seen.iter().position(|(from, to)| from < to && *from == end);
    match (before, behind) {
        (Some(before), Some(behind)) => {
            seen[before].1 = seen[behind].1;
            seen[behind] = (0, 0);
        }
        (Some(before), None) => seen[before].1 = end,
        (None, Some(behind)) => seen[behind].0 = begin,
        (None, None) => match seen.iter_mut().find(|(from, to)| from >= to) {
            Some(unused) => *unused = (begin, end),
            None => return false,
        },
    }
    true
}
