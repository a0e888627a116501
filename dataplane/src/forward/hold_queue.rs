//! Packets copied aside until their next hop's Ethernet address is known.
//!
//! Slots are few, and any sender can address neighbours that do not exist, so slots are limited per source and per
//! ingress port, and some are reserved for pods' ports. A sender at its limit evicts its own oldest packet. Packets
//! to a neighbour that did not answer are not held again for a while.

use super::ResolveRequest;
use crate::{
    addr::Addr,
    flow::{RateLimit, rate::TokenBucket},
    port::{Port, PortId, PortKind},
    time::Nanos,
};

/// Longest frame that is held.
const MAX_FRAME: usize = 4096;
/// The most packets held for one neighbour, and from one source.
const MAX_PER_NEIGHBOUR: usize = 3;
const MAX_PER_SOURCE: usize = 8;
/// How often the same neighbour is resolved.
const RESOLVE_INTERVAL: Nanos = Nanos::from_secs(1);
/// How long a neighbour that did not answer counts as unreachable, and how many are remembered.
const UNREACHABLE_FOR: Nanos = Nanos::from_secs(2);
const UNREACHABLE_SLOTS: usize = 1024;

/// A packet as it was received.
#[derive(Debug)]
pub(crate) struct HeldPacket {
    to: ResolveRequest,
    /// Where it came in.
    pub(crate) ingress: PortId,
    /// Whether its next hop is resolved; otherwise it was held too long.
    pub(crate) resolved: bool,
    from_pod: bool,
    src: Addr,
    since: Nanos,
    asked: Nanos,
    order: u64,
    length: usize,
    bytes: Box<[u8]>,
}

impl HeldPacket {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Result of [`HoldQueue::hold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HoldOutcome {
    /// Whether the packet is held; otherwise there is no room, or it is too long.
    pub(crate) held: bool,
    /// Whether to resolve the neighbour now. Also true without room, so a full queue cannot keep a neighbour from
    /// being resolved.
    pub(crate) resolve: bool,
    /// Ingress port of the packet that was evicted for it.
    pub(crate) evicted: Option<PortId>,
}

/// The packets that one worker holds, in a fixed number of slots.
#[derive(Debug)]
pub(crate) struct HoldQueue {
    /// The first `used` slots are occupied.
    places: Vec<HeldPacket>,
    used: usize,
    order: u64,
    timeout: Nanos,
    /// Neighbours that did not answer and until when they count as unreachable, indexed by hash.
    absent: Box<[Option<(ResolveRequest, Nanos)>]>,
    /// Limits resolution of neighbours that did not answer and of packets without room.
    asks: TokenBucket,
}

impl HoldQueue {
    pub(crate) fn new(places: usize, keep_for: Nanos) -> Self {
        let place = || HeldPacket {
            to: ResolveRequest {
                port: PortId(0),
                addr: Addr::v4([0; 4]),
            },
            ingress: PortId(0),
            resolved: false,
            from_pod: false,
            src: Addr::v4([0; 4]),
            since: Nanos(0),
            asked: Nanos(0),
            order: 0,
            length: 0,
            bytes: vec![0; MAX_FRAME].into_boxed_slice(),
        };
        Self {
            places: (0..places).map(|_| place()).collect(),
            used: 0,
            order: 0,
            timeout: keep_for,
            absent: vec![None; UNREACHABLE_SLOTS].into_boxed_slice(),
            asks: TokenBucket::new(RateLimit {
                per_second: 5,
                burst: 5,
            }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Whether to resolve a neighbour that did not answer before: now and then.
    pub(crate) fn may_resolve(&mut self, now: Nanos) -> bool {
        self.asks.take(now)
    }

    /// Whether a neighbour failed to answer recently.
    pub(crate) fn is_unreachable(&self, to: ResolveRequest, now: Nanos) -> bool {
        self.absent[unreachable_slot(to)].is_some_and(|(absent, until)| absent == to && until > now)
    }

    /// Holds a copy of a frame that arrived at `port` from `src`. One that is longer than its first buffer, `frame`, is not
    /// held: `length` is its own.
    pub(crate) fn hold(
        &mut self,
        (frame, length): (&[u8], usize),
        to: ResolveRequest,
        port: &Port,
        src: Addr,
        now: Nanos,
    ) -> HoldOutcome {
        let same = || self.places[..self.used].iter().filter(|held| held.to == to);
        let asked = same().map(|held| held.asked).max();
        let from_pod = port.kind == PortKind::Pod;
        let none = HoldOutcome {
            held: false,
            resolve: asked.is_none() && self.asks.has(now),
            evicted: None,
        };
        let gives_way = self.find_room(port.id, from_pod, src);
        if length > frame.len().min(MAX_FRAME)
            || same().count() >= MAX_PER_NEIGHBOUR
            || gives_way == Room::None
        {
            return HoldOutcome {
                resolve: none.resolve && self.asks.take(now),
                ..none
            };
        }
        let gave_way = match gives_way {
            Room::Evict(index) => {
                let ingress = self.places[index].ingress;
                self.used -= 1;
                self.places.swap(index, self.used);
                Some(ingress)
            }
            Room::Free | Room::None => None,
        };
        let ask = asked.is_none_or(|asked| now.since(asked) >= RESOLVE_INTERVAL);
        self.order += 1;
        let held = &mut self.places[self.used];
        self.used += 1;
        held.to = to;
        held.ingress = port.id;
        (held.from_pod, held.src) = (from_pod, src);
        held.since = now;
        held.asked = if ask { now } else { asked.unwrap_or(now) };
        held.order = self.order;
        held.length = frame.len();
        held.bytes[..frame.len()].copy_from_slice(frame);
        HoldOutcome {
            held: true,
            resolve: ask,
            evicted: gave_way,
        }
    }

    /// Finds a slot for a packet that arrived at `port` from `src`.
    fn find_room(&self, port: PortId, from_pod: bool, src: Addr) -> Room {
        let all = self.places.len();
        // A quarter is reserved for pods, and one port may use less than half.
        let most = if from_pod { all } else { all * 3 / 4 };
        let (mut of_source, mut of_port, mut of_kind) = (OldestOfKind::default(), OldestOfKind::default(), 0);
        for (index, held) in self.places[..self.used].iter().enumerate() {
            of_source.count(index, held, held.ingress == port && held.src == src);
            of_port.count(index, held, held.ingress == port);
            of_kind += usize::from(from_pod || !held.from_pod);
        }
        if of_source.count >= MAX_PER_SOURCE {
            of_source.room()
        } else if of_port.count >= (all * 3 / 8).max(1) || self.used == all || of_kind >= most {
            of_port.room()
        } else {
            Room::Free
        }
    }

    /// Removes the oldest packet whose neighbour `ready` has an answer for, or that was held too long. Its slot is
    /// reused by the next call of any method.
    pub(crate) fn next<T>(
        &mut self,
        now: Nanos,
        ready: impl Fn(&ResolveRequest) -> Option<T>,
    ) -> Option<&HeldPacket> {
        let (index, resolved) = self.places[..self.used]
            .iter()
            .enumerate()
            .filter_map(|(index, held)| match ready(&held.to) {
                Some(_) => Some((index, held.order, true)),
                None if now.since(held.since) >= self.timeout => Some((index, held.order, false)),
                None => None,
            })
            .min_by_key(|(_, order, _)| *order)
            .map(|(index, _, resolved)| (index, resolved))?;
        self.used -= 1;
        self.places.swap(index, self.used);
        let held = &mut self.places[self.used];
        held.resolved = resolved;
        if !resolved {
            self.absent[unreachable_slot(held.to)] = Some((held.to, now.after(UNREACHABLE_FOR)));
        }
        Some(&self.places[self.used])
    }
}

/// Slot of an unreachable neighbour.
fn unreachable_slot(to: ResolveRequest) -> usize {
    let addr = to.addr.to_u128();
    let folded = (addr >> 64) as u64 ^ addr as u64 ^ u64::from(to.port.0) << 48;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % UNREACHABLE_SLOTS
}

/// Where to put one more packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Free,
    Evict(usize),
    None,
}

/// How many packets of a kind are held, and the oldest of them.
#[derive(Clone, Copy, Debug, Default)]
struct OldestOfKind {
    count: usize,
    /// Its number, and its place in the order.
    oldest: Option<(usize, u64)>,
}

impl OldestOfKind {
    fn count(&mut self, index: usize, held: &HeldPacket, counts: bool) {
        if !counts {
            return;
        }
        self.count += 1;
        if self.oldest.is_none_or(|(_, order)| held.order < order) {
            self.oldest = Some((index, held.order));
        }
    }

    fn room(self) -> Room {
        self.oldest.map_or(Room::None, |(index, _)| Room::Evict(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        port::{PortTag, ReversePath, Side},
        wire::subject::NotSubjectTable,
    };

    fn port(id: u16, kind: PortKind) -> Port {
        Port {
            id: PortId(id),
            name: String::new(),
            tag: PortTag::from_name(""),
            kind,
            side: Side::Any,
            mac: [0; 6],
            mtu: 1500,
            zone: 0,
            reverse_path: ReversePath::Strict,
            checks_source_mac: false,
            not_subject: NotSubjectTable::ROUTED,
            partial_checksums: false,
        }
    }

    fn to(net: u8, last: u8) -> ResolveRequest {
        ResolveRequest {
            port: PortId(net.into()),
            addr: Addr::v4([10, 0, net, last]),
        }
    }

    fn source(last: u8) -> Addr {
        Addr::v4([192, 0, 2, last])
    }

    #[test]
    fn a_scan_gives_way_to_itself_and_takes_no_room_of_others() {
        let mut holds = HoldQueue::new(64, Nanos::from_secs(2));
        let (uplink, pod, other) = (
            port(1, PortKind::Uplink),
            port(2, PortKind::Pod),
            port(3, PortKind::Pod),
        );
        let now = Nanos::from_secs(1);
        // From sources that are all made up, and from one.
        for last in 0..200 {
            assert!(
                holds
                    .hold((&[0; 60], 60), to(7, last), &uplink, source(last), now)
                    .held
            );
            assert!(holds.hold((&[0; 60], 60), to(8, last), &pod, source(1), now).held);
        }
        let of = |holds: &HoldQueue, id: u16| {
            holds.places[..holds.used]
                .iter()
                .filter(|held| held.ingress == PortId(id))
                .count()
        };
        assert_eq!((of(&holds, 1), of(&holds, 2)), (24, MAX_PER_SOURCE));
        for last in 0..3 {
            let hold = holds.hold((&[0; 60], 60), to(9, last), &other, source(9), now);
            assert_eq!((hold.held, hold.resolve, hold.evicted), (true, true, None));
        }
    }

    #[test]
    fn a_neighbour_that_did_not_answer_is_absent_for_a_while() {
        let mut holds = HoldQueue::new(8, Nanos::from_secs(2));
        let uplink = port(1, PortKind::Uplink);
        let now = Nanos::from_secs(1);
        assert!(holds.hold((&[0; 60], 60), to(7, 7), &uplink, source(1), now).held);
        let late = now.after(Nanos::from_secs(2));
        assert!(
            holds
                .next(late, |_| None::<()>)
                .is_some_and(|held| !held.resolved)
        );
        assert!(holds.is_unreachable(to(7, 7), late) && !holds.is_unreachable(to(7, 8), late));
        assert!(!holds.is_unreachable(to(7, 7), late.after(Nanos::from_secs(2))));
    }

    #[test]
    fn a_neighbour_without_room_is_still_asked_for_now_and_then() {
        let mut holds = HoldQueue::new(0, Nanos::from_secs(2));
        let uplink = port(1, PortKind::Uplink);
        let asked = |holds: &mut HoldQueue, now| {
            (0..100)
                .filter(|last| {
                    holds
                        .hold((&[0; 60], 60), to(7, *last), &uplink, source(1), now)
                        .resolve
                })
                .count()
        };
        assert_eq!(asked(&mut holds, Nanos::from_secs(1)), 5);
        assert_eq!(asked(&mut holds, Nanos::from_secs(2)), 5);
    }
}
