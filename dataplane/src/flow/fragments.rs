//! Fragmented datagrams: a later fragment gets the verdict of its first fragment, or drops (SEMANTICS 62).
//!
//! A fixed number of datagrams per shard; fragments are neither queued nor reassembled. Once fragments of a datagram
//! overlap, the rest of it drops (RFC 5722): the receiver could reassemble ports that were never judged.

use arrayvec::ArrayVec;

use crate::{
    addr::Addr, classify::Generation, port::PortId, time::Nanos, verdict::DropReason, wire::FlowKey,
    wire::Fragment,
};

/// Associativity: slots searched for one fragment.
const WAYS: usize = 8;
/// Of those, how many may be of one source, and how many of one ingress port.
const MAX_PER_SOURCE: usize = WAYS / 2;
const MAX_PER_PORT: usize = WAYS * 3 / 4;
/// The most disjoint ranges tracked of one datagram.
const MAX_RANGES: usize = 6;

/// What a first fragment was allowed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DatagramVerdict {
    /// The snapshot; 0 if none was consulted (failsafe).
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
    /// None once its fragments contradict each other.
    verdict: Option<DatagramVerdict>,
    /// Ranges received so far, in bytes of the datagram; empty ones are unused.
    seen: [(u16, u16); MAX_RANGES],
}

/// The datagrams that a shard tracks.
#[derive(Debug)]
pub(crate) struct Fragments {
    datagrams: Box<[Option<Datagram>]>,
    timeout: Nanos,
}

/// What to do with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The first fragment: judge it, and [`Fragments::track`] its datagram if it is forwarded.
    Judge,
    /// A later fragment: it inherits the verdict of the first one.
    Inherit(DatagramVerdict),
    /// It contradicts other fragments, or its first fragment was not seen.
    Drop(DropReason),
}

impl Fragments {
    pub(crate) fn new(datagrams: usize, timeout: Nanos) -> Self {
        Self {
            datagrams: vec![None; datagrams.next_multiple_of(WAYS).max(WAYS)].into_boxed_slice(),
            timeout,
        }
    }

    /// The slots where a datagram can be.
    fn set_of(&mut self, hash: u64) -> &mut [Option<Datagram>] {
        let set = (hash as usize % (self.datagrams.len() / WAYS)) * WAYS;
        &mut self.datagrams[set..set + WAYS]
    }

    /// Looks up a fragment's datagram and records its range. `key` is without ports, `hash` covers key and
    /// identification. A fragment that contradicts the datagram ends it at once.
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
        // A fragment from another port is no part of this datagram.
        if datagram.port != port {
            return Admission::Drop(DropReason::FragmentUnknown);
        }
        // A second first fragment could have ports that were never judged, even if it adds no byte.
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

    /// Tracks the datagram of a first fragment that is forwarded. Without room it evicts a datagram of the same
    /// source if that is at its limit, else one of the same ingress port at its limit, else the one that expires
    /// first.
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

/// What counts as one source: an IPv4 address, or an IPv6 /64, which one host may own whole.
fn source(addr: Addr) -> u128 {
    if addr.is_v4() {
        addr.to_u128()
    } else {
        addr.to_u128() >> 64
    }
}

/// Begin and end of a fragment, in bytes of the datagram.
fn range(fragment: &Fragment) -> (u16, u16) {
    (fragment.offset, fragment.offset.saturating_add(fragment.length))
}

/// Adds a range to those received; returns false if it overlaps one of them, or there are too many.
fn add_range(seen: &mut [(u16, u16); MAX_RANGES], (begin, end): (u16, u16)) -> bool {
    if seen.iter().any(|(from, to)| begin < *to && *from < end) {
        return false;
    }
    // Adjacent ranges are merged, so fragments in order need one.
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
