//! Packets copied aside until their next hop's Ethernet address is known.

use super::ResolveRequest;
use crate::{
    flow::{RateLimit, rate::TokenBucket},
    port::PortId,
    time::Nanos,
};

/// Longest frame that is held.
const LONGEST: usize = 9216;
/// Packets held for one neighbour.
const PER_NEIGHBOUR: usize = 3;
/// How often the same neighbour is asked for.
const ASK_EVERY: Nanos = Nanos::from_secs(1);

/// A packet, ready to go but for its Ethernet addresses.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) to: ResolveRequest,
    /// Where it came in.
    pub(crate) ingress: PortId,
    since: Nanos,
    asked: Nanos,
    order: u64,
    length: usize,
    bytes: Box<[u8]>,
}

impl Held {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What became of a packet that was to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Held; `ask` whether the neighbour should be asked for now.
    Kept {
        /// Whether to ask.
        ask: bool,
    },
    /// No room, or too long. `ask` as above: others' packets must not keep a neighbour from ever becoming known.
    NoRoom {
        /// Whether to ask.
        ask: bool,
    },
}

/// The packets that one worker holds.
#[derive(Debug)]
pub(crate) struct Holds {
    /// The first `used` are.
    places: Vec<Held>,
    used: usize,
    order: u64,
    keep_for: Nanos,
    /// For neighbours that are known not to answer, and those that found no room.
    asks: TokenBucket,
}

impl Holds {
    pub(crate) fn new(places: usize, keep_for: Nanos) -> Self {
        let place = || Held {
            to: ResolveRequest {
                port: PortId(0),
                addr: crate::addr::Addr::v4([0; 4]),
            },
            ingress: PortId(0),
            since: Nanos(0),
            asked: Nanos(0),
            order: 0,
            length: 0,
            bytes: vec![0; LONGEST].into_boxed_slice(),
        };
        Self {
            places: (0..places).map(|_| place()).collect(),
            used: 0,
            order: 0,
            keep_for,
            asks: TokenBucket::new(RateLimit {
                per_second: 5,
                burst: 5,
            }),
        }
    }

    /// Whether to ask for a neighbour that did not answer: now and then.
    pub(crate) fn may_ask(&mut self, now: Nanos) -> bool {
        self.asks.take(now)
    }

    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Copies a frame aside.
    pub(crate) fn hold(&mut self, frame: &[u8], to: ResolveRequest, ingress: PortId, now: Nanos) -> Hold {
        let same = || self.places[..self.used].iter().filter(|held| held.to == to);
        let asked = same().map(|held| held.asked).max();
        if frame.len() > LONGEST || self.used == self.places.len() || same().count() >= PER_NEIGHBOUR {
            return Hold::NoRoom {
                ask: asked.is_none() && self.asks.take(now),
            };
        }
        let ask = asked.is_none_or(|asked| now.since(asked) >= ASK_EVERY);
        self.order += 1;
        let held = &mut self.places[self.used];
        self.used += 1;
        held.to = to;
        held.ingress = ingress;
        held.since = now;
        held.asked = if ask { now } else { asked.unwrap_or(now) };
        held.order = self.order;
        held.length = frame.len();
        held.bytes[..frame.len()].copy_from_slice(frame);
        Hold::Kept { ask }
    }

    /// The oldest packet that `ready` has an answer for, or whose time is over (None). It is gone with the next call
    /// of any method.
    pub(crate) fn next<T>(
        &mut self,
        now: Nanos,
        ready: impl Fn(&ResolveRequest) -> Option<T>,
    ) -> Option<(&Held, Option<T>)> {
        let (index, answer) = self.places[..self.used]
            .iter()
            .enumerate()
            .filter_map(|(index, held)| match ready(&held.to) {
                Some(answer) => Some((index, held.order, Some(answer))),
                None if now.since(held.since) >= self.keep_for => Some((index, held.order, None)),
                None => None,
            })
            .min_by_key(|(_, order, _)| *order)
            .map(|(index, _, answer)| (index, answer))?;
        self.used -= 1;
        self.places.swap(index, self.used);
        Some((&self.places[self.used], answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;

    #[test]
    fn a_full_hold_still_asks_for_other_neighbours_now_and_then() {
        let places = 8;
        let mut holds = Holds::new(places, Nanos::from_secs(2));
        let to = |last: u8| ResolveRequest {
            port: PortId(1),
            addr: Addr::v4([10, 0, 0, last]),
        };
        let now = Nanos::from_secs(1);
        for last in 0..places as u8 {
            assert_eq!(
                holds.hold(&[0; 60], to(last), PortId(0), now),
                Hold::Kept { ask: true }
            );
        }
        // One that waits already has been asked for.
        assert_eq!(
            holds.hold(&[0; 60], to(0), PortId(0), now),
            Hold::NoRoom { ask: false }
        );
        let asked = (100..200)
            .filter(|last| holds.hold(&[0; 60], to(*last), PortId(0), now) == Hold::NoRoom { ask: true })
            .count();
        assert_eq!(asked, 5);
        let later = Nanos::from_secs(2);
        assert_eq!(
            holds.hold(&[0; 60], to(200), PortId(0), later),
            Hold::NoRoom { ask: true }
        );
    }
}
