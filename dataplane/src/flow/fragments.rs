//! Fragmented datagrams: a later fragment gets the verdict of its first fragment, or drops (SEMANTICS 62).
//!
//! Per shard, fixed in number; nothing is held back or put together. A datagram whose parts overlap is cut from then
//! on (RFC 5722): who puts them together could see ports that nobody judged.

use arrayvec::ArrayVec;

use crate::{
    addr::Addr, classify::Generation, port::PortId, time::Nanos, verdict::DropReason, wire::FlowKey,
    wire::Fragment,
};

/// Datagrams looked at for one fragment.
const WAYS: usize = 8;
/// Of those, as many may have one source, and as many may have come in by one port.
const MAX_PER_SOURCE: usize = WAYS / 2;
const MAX_PER_PORT: usize = WAYS * 3 / 4;
/// Gaps in what was seen of one datagram: more are not followed.
const MAX_RANGES: usize = 6;

/// Under what a first fragment passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DatagramVerdict {
    /// The snapshot; 0 where none was asked (failsafe).
    pub(crate) generation: Generation,
    /// Of source and destination.
    pub(crate) epochs: [u64; 2],
}

#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: FlowKey,
    id: u32,
    /// Where its first fragment came in.
    port: PortId,
    expires: Nanos,
    /// None from the moment on that its parts contradict each other.
    verdict: Option<DatagramVerdict>,
    /// Begins and ends of what was seen, in bytes of the datagram; empty ones are unused.
    seen: [(u16, u16); MAX_RANGES],
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
    /// The first one: judge it, and [`Fragments::track`] its datagram where it is forwarded.
    Judge,
    /// A later one of a datagram whose first fragment passed so.
    Inherit(DatagramVerdict),
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

    /// The places where a datagram can be.
    fn set_of(&mut self, hash: u64) -> &mut [Option<Datagram>] {
        let set = (hash as usize % (self.datagrams.len() / WAYS)) * WAYS;
        &mut self.datagrams[set..set + WAYS]
    }

    /// What is known of a fragment's datagram. `key` without ports, `hash` of key and identification. What contradicts
    /// the datagram ends it at once; nothing else is changed but the note of what was seen of it.
    pub(crate) fn admit(
        &mut self,
        key: &FlowKey,
        hash: u64,
        fragment: &Fragment,
        port: PortId,
        now: Nanos,
    ) -> Admission {
        let known =
            self.set_of(hash).iter_mut().flatten().find(|datagram| {
                datagram.key == *key && datagram.id == fragment.id && datagram.expires >= now
            });
        let Some(datagram) = known else {
            return if fragment.offset == 0 {
                Admission::Judge
            } else {
                Admission::Drop(DropReason::FragmentUnknown)
            };
        };
        // From elsewhere it is no part of this datagram, whatever it says.
        if datagram.port != port {
            return Admission::Drop(DropReason::FragmentUnknown);
        }
        // A second first fragment could have ports that nobody judged, even where it adds no byte.
        if datagram.verdict.is_none()
            || fragment.offset == 0
            || !add_range(&mut datagram.seen, range(fragment))
        {
            datagram.verdict = None;
            return Admission::Drop(DropReason::FragmentInvalid);
        }
        datagram
            .verdict
            .map_or(Admission::Drop(DropReason::FragmentInvalid), Admission::Inherit)
    }

    /// Follows the datagram of a first fragment that is forwarded. Where there is no room, one of the same source gives
    /// way to it that has all of its share, else one that came in by the same port, else the one that ends first.
    pub(crate) fn track(
        &mut self,
        key: &FlowKey,
        hash: u64,
        fragment: &Fragment,
        port: PortId,
        passed: DatagramVerdict,
        now: Nanos,
    ) {
        let until = now.after(self.timeout);
        let ways = self.set_of(hash);
        let end = |place: &Option<Datagram>| {
            place
                .as_ref()
                .filter(|datagram| datagram.expires >= now)
                .map_or(Nanos(0), |datagram| datagram.expires)
        };
        let of = |may: &dyn Fn(&Datagram) -> bool, share: usize| {
            let like = |place: &&(usize, &Option<Datagram>)| {
                let (_, place) = place;
                end(place) != Nanos(0) && place.as_ref().is_some_and(may)
            };
            let own: ArrayVec<(usize, &Option<Datagram>), WAYS> =
                ways.iter().enumerate().filter(|place| like(&place)).collect();
            (own.len() >= share)
                .then(|| {
                    own.iter()
                        .min_by_key(|(_, place)| end(place))
                        .map(|(index, _)| *index)
                })
                .flatten()
        };
        let source = source(key.src);
        let index = of(&|other| self::source(other.key.src) == source, MAX_PER_SOURCE)
            .or_else(|| of(&|other| other.port == port, MAX_PER_PORT))
            .or_else(|| (0..WAYS).min_by_key(|index| ways.get(*index).map_or(Nanos(u64::MAX), end)));
        let Some(place) = index.and_then(|index| self.set_of(hash).get_mut(index)) else {
            return;
        };
        let mut seen = [(0, 0); MAX_RANGES];
        seen[0] = range(fragment);
        *place = Some(Datagram {
            key: *key,
            id: fragment.id,
            port,
            expires: until,
            verdict: Some(passed),
            seen,
        });
    }
}

/// Who may be one: an address, or a network of 64 bits, all of which one may have.
fn source(addr: Addr) -> u128 {
    if addr.is_v4() {
        addr.to_u128()
    } else {
        addr.to_u128() >> 64
    }
}

/// Begin and end of a part, in bytes of the datagram.
fn range(fragment: &Fragment) -> (u16, u16) {
    (fragment.offset, fragment.offset.saturating_add(fragment.length))
}

/// Adds a range to those seen; answers false where it meets one of them, or there is no room to remember it.
fn add_range(seen: &mut [(u16, u16); MAX_RANGES], (begin, end): (u16, u16)) -> bool {
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
