//! Numbers of ports: given out, kept back while flows name them, given out again. Pure.
//!
//! A flow remembers its ports by number. A number whose port is gone is given out again only when it has rested for
//! [`REST`], in which every packet that the port brought in has been dealt with, and no flow names it since.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use ringwall_dataplane::port::PortId;

/// How long a number rests at least.
pub const REST: Duration = Duration::from_secs(60);
/// Flows are asked about resting numbers when no more than this can be given out at once.
const LOW: usize = 64;

/// The numbers of a process. Time is since any beginning, the same for all calls.
#[derive(Debug)]
pub struct PortNumbers {
    /// The lowest that was never given out.
    next: u16,
    /// All are below.
    limit: u16,
    /// Of ports that are gone, and since when; oldest first.
    resting: VecDeque<(Duration, PortId)>,
    /// Rested, and named by no flow.
    free: VecDeque<PortId>,
}

impl PortNumbers {
    /// Numbers below `limit`, of which those below `used` are given out.
    pub fn new(used: usize, limit: usize) -> Self {
        let number = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        Self {
            next: number(used),
            limit: number(limit),
            resting: VecDeque::new(),
            free: VecDeque::new(),
        }
    }

    /// Gives a number out; none where every one is in use or rests.
    pub fn take(&mut self) -> Option<PortId> {
        // Those that were never given out first: the others rest the longer.
        if self.next < self.limit {
            self.next += 1;
            return Some(PortId(self.next - 1));
        }
        self.free.pop_front()
    }

    /// The port of a number is gone.
    pub fn retire(&mut self, id: PortId, now: Duration) {
        self.resting.push_back((now, id));
    }

    /// Whether it is time to ask which numbers flows name: few are left, and some have rested.
    pub fn is_low(&self, now: Duration) -> bool {
        let left = usize::from(self.limit.saturating_sub(self.next)) + self.free.len();
        left <= LOW && self.rested(now).next().is_some()
    }

    fn rested(&self, now: Duration) -> impl Iterator<Item = PortId> {
        self.resting
            .iter()
            .take_while(move |(since, _)| now.saturating_sub(*since) >= REST)
            .map(|(_, id)| *id)
    }

    /// Frees the rested numbers that are not among those that flows name. `asked` is when the question began: what was retired or
    /// rested since waits for the next one.
    pub fn release(&mut self, named: &BTreeSet<PortId>, asked: Duration) {
        let free: BTreeSet<PortId> = self.rested(asked).filter(|id| !named.contains(id)).collect();
        self.resting.retain(|(_, id)| !free.contains(id));
        self.free.extend(free);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sixty_five_thousand_pods_one_after_the_other_find_numbers_that_nothing_names() {
        // A pod each second lives for a minute; every seventh leaves a flow behind for five minutes.
        let mut numbers = PortNumbers::new(3, 3 + 1024);
        let mut live: VecDeque<(Duration, PortId)> = VecDeque::new();
        let mut flows: BTreeMap<PortId, Duration> = BTreeMap::new();
        let (mut now, mut asked) = (Duration::ZERO, 0);
        let mut given = BTreeSet::new();
        for pod in 0..65_000u32 {
            now += SECOND;
            while let Some((born, id)) = live.front().copied()
                && now - born >= 60 * SECOND
            {
                live.pop_front();
                numbers.retire(id, now);
            }
            flows.retain(|_, ends| *ends > now);
            if numbers.is_low(now) {
                asked += 1;
                numbers.release(&flows.keys().copied().collect(), now);
            }
            let id = numbers.take().unwrap();
            assert!(id.0 >= 3 && id.0 < 1027, "{id:?}");
            assert!(
                live.iter().all(|(_, other)| *other != id),
                "pod {pod}: {id:?} is in use"
            );
            assert!(
                !flows.contains_key(&id),
                "pod {pod}: a flow would be taken for the new port's"
            );
            live.push_back((now, id));
            given.insert(id);
            if pod % 7 == 0 {
                flows.insert(id, now + 360 * SECOND);
            }
        }
        assert_eq!(given.len(), 1024, "all are used");
        assert!(asked < 1000, "flows are asked seldom: {asked}");
    }

    #[test]
    fn a_number_rests_and_waits_for_its_flows() {
        let mut numbers = PortNumbers::new(0, 2);
        let (a, b) = (numbers.take().unwrap(), numbers.take().unwrap());
        assert_eq!((a, b, numbers.take()), (PortId(0), PortId(1), None));
        numbers.retire(a, SECOND);
        assert!(!numbers.is_low(30 * SECOND));
        numbers.release(&BTreeSet::new(), 30 * SECOND);
        assert_eq!(numbers.take(), None, "it has to rest");
        let later = SECOND + REST;
        assert!(numbers.is_low(later));
        numbers.release(&BTreeSet::from([a]), later);
        assert_eq!(numbers.take(), None, "a flow names it");
        numbers.retire(b, later);
        numbers.release(&BTreeSet::new(), later);
        assert_eq!(numbers.take(), Some(a));
        assert_eq!(numbers.take(), None, "the other one rests");
    }
}
