#![allow(clippy::unwrap_used, clippy::panic)] // in tests a failed unwrap is the failure

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{addr::Addr, classify::Generation};

const STAMP: Stamp = Stamp {
    generation: Generation(1),
    epochs: [1, 2],
    provenance: [3, 4],
};

fn shard(entries: usize) -> Shard {
    let entries: &'static mut [Entry] = Box::leak(vec![zeroed(); entries].into_boxed_slice());
    let config = FlowConfig {
        half_open_share: 128,
        ..FlowConfig::default()
    };
    let reached = Box::leak(Box::new(0));
    let memory = ShardMemory { entries, reached };
    open(memory, &config, Nanos(0))
}

fn open(memory: ShardMemory, config: &FlowConfig, now: Nanos) -> Shard {
    let buckets = buckets(bucket_count(memory.entries.len()));
    Shard::open(memory, buckets, 0, Seed::new(3), config, config.icmp_errors, now)
}

fn zeroed() -> Entry {
    zerocopy::FromBytes::read_from_bytes(&[0; 128]).unwrap()
}

fn key(n: u8) -> FlowKey {
    FlowKey {
        src: Addr::v4([10, 0, 0, n % 3]),
        dst: Addr::v4([10, 0, 0, n % 5]),
        zone: u32::from(n % 2),
        vlan: 0,
        src_port: u16::from(n % 7),
        dst_port: u16::from(n % 4),
        protocol: 17,
    }
}

/// Index, lists and free places agree with the entries.
fn check_whole(shard: &Shard) {
    assert!(shard.fresh <= shard.entries.len());
    let used: Vec<usize> = (0..shard.fresh)
        .filter(|index| shard.entries[*index].state().is_some())
        .collect();
    assert_eq!(used.len() + shard.free.len(), shard.fresh);
    for index in &used {
        let key = shard.entries[*index].key();
        assert_eq!(
            shard.find(shard.seed.key(&key), &key),
            Some((*index, Direction::Original))
        );
        let back = key.reversed();
        if back != key {
            assert_eq!(
                shard.find(shard.seed.key(&back), &back),
                Some((*index, Direction::Reply))
            );
        }
    }
    let slots = shard
        .buckets
        .iter()
        .flat_map(|bucket| bucket.0)
        .filter(|slot| *slot as u32 != 0)
        .count();
    let keys: usize = used
        .iter()
        .map(|index| 1 + usize::from(shard.entries[*index].key() != shard.entries[*index].key().reversed()))
        .sum();
    assert_eq!(slots, keys);
    for (list, standing) in [
        (shard.half_open, Standing::HalfOpen),
        (shard.closed, Standing::Closed),
    ] {
        let mut at = list.oldest;
        let mut last = NONE;
        let mut length = 0;
        while at != NONE {
            assert_eq!(shard.entries[at as usize].state().unwrap().standing(), standing);
            assert_eq!(shard.links[at as usize].prev, last);
            (last, at) = (at, shard.links[at as usize].next);
            length += 1;
            assert!(length <= list.length);
        }
        assert_eq!((last, length), (list.newest, list.length));
        let all = used
            .iter()
            .filter(|index| shard.entries[**index].state().unwrap().standing() == standing);
        assert_eq!(all.count(), list.length);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u8, u8),
    Remove(u8),
    State(u8, u8),
    Find(u8),
    Wait(u16),
    Sweep(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), 1..20u8).prop_map(|(n, state)| Step::Insert(n, state)),
        1 => any::<u8>().prop_map(Step::Remove),
        2 => (any::<u8>(), 1..20u8).prop_map(|(n, state)| Step::State(n, state)),
        2 => any::<u8>().prop_map(Step::Find),
        1 => any::<u16>().prop_map(Step::Wait),
        1 => any::<u8>().prop_map(Step::Sweep),
    ]
}

proptest! {
    #[test]
    fn a_shard_is_as_a_map(steps in proptest::collection::vec(step(), 1..200)) {
        let mut shard = shard(24);
        // By key in its original direction: state and when it was last seen.
        let mut model: HashMap<FlowKey, (State, Nanos)> = HashMap::new();
        let mut now = Nanos(1);
        for step in steps {
            match step {
                Step::Insert(n, state) => {
                    let (key, state) = (key(n), State::from_number(state).unwrap());
                    if model.contains_key(&key) || model.contains_key(&key.reversed()) {
                        continue;
                    }
                    let before = shard.deeds.evicted;
                    let made = shard.insert(&key, state, &STAMP, false, now);
                    if shard.deeds.evicted > before {
                        // Whatever gave way was not kept.
                        let gone: Vec<_> = model
                            .keys()
                            .filter(|key| shard.find(shard.seed.key(key), key).is_none())
                            .copied()
                            .collect();
                        for key in gone {
                            let (state, _) = model.remove(&key).unwrap();
                            prop_assert_ne!(state.standing(), Standing::Kept);
                        }
                    }
                    match made {
                        Ok(_) => {
                            model.insert(key, (state, now));
                        }
                        Err(NoPlace::Full) => prop_assert_eq!(model.len(), 24),
                        Err(NoPlace::HalfOpen) => prop_assert_eq!(shard.half_open.length, 12),
                    }
                }
                Step::Remove(n) => {
                    if let Some((index, _)) = shard.find(shard.seed.key(&key(n)), &key(n)) {
                        shard.remove(index);
                        prop_assert!(model.remove(&key(n)).or(model.remove(&key(n).reversed())).is_some());
                    }
                }
                Step::State(n, state) => {
                    let state = State::from_number(state).unwrap();
                    if let Some((index, direction)) = shard.find(shard.seed.key(&key(n)), &key(n)) {
                        shard.set_state(index, state, now);
                        shard.entry_mut(index).touch(now);
                        let key = if direction == Direction::Original { key(n) } else { key(n).reversed() };
                        model.insert(key, (state, now));
                    }
                }
                Step::Find(n) => {
                    let found = shard.find(shard.seed.key(&key(n)), &key(n));
                    let want = if model.contains_key(&key(n)) {
                        Some(Direction::Original)
                    } else if model.contains_key(&key(n).reversed()) {
                        Some(Direction::Reply)
                    } else {
                        None
                    };
                    prop_assert_eq!(found.map(|(_, direction)| direction), want);
                }
                Step::Wait(millis) => now = now.after(Nanos::from_millis(u64::from(millis))),
                Step::Sweep(budget) => {
                    shard.sweep(budget.into(), now);
                    if budget >= 24 {
                        let timeouts = shard.timeouts.clone();
                        model.retain(|_, (state, seen)| now.since(*seen) <= state.timeout(&timeouts));
                    } else {
                        model.retain(|key, _| shard.find(shard.seed.key(key), key).is_some());
                    }
                }
            }
            prop_assert_eq!(model.len(), shard.fresh - shard.free.len());
        }
        check_whole(&shard);
    }

    /// Whatever lies in the memory: it is opened, whole, and works.
    #[test]
    fn no_memory_content_breaks_a_shard(
        noise in proptest::collection::vec((0..16usize, 0..128usize, any::<u8>()), 0..40),
        copies in proptest::collection::vec((0..16usize, 0..16usize), 0..4),
        claimed in proptest::option::of(any::<u32>().prop_map(|n| n % 20)),
    ) {
        let mut first = shard(16);
        for n in 0..30 {
            if first.find(first.seed.key(&key(n)), &key(n)).is_none() {
                let state = State::from_number(n % 19 + 1).unwrap();
                let _ = first.insert(&key(n), state, &STAMP, false, Nanos(5));
            }
        }
        let (reached, mut bytes) = first.bytes();
        for (from, to) in copies {
            bytes.copy_within(from * 128..from * 128 + 128, to * 128);
        }
        for (entry, at, value) in noise {
            bytes[entry * 128 + at] = value;
        }
        let entries: Vec<Entry> = bytes
            .chunks_exact(128)
            .map(|entry| zerocopy::FromBytes::read_from_bytes(entry).unwrap())
            .collect();
        let config = FlowConfig::default();
        let entries = Box::leak(entries.into_boxed_slice());
        let reached = Box::leak(Box::new(claimed.unwrap_or(reached)));
        let memory = ShardMemory { entries, reached };
        let mut second = open(memory, &config, Nanos(9));
        check_whole(&second);
        for n in 0..60 {
            if second.find(second.seed.key(&key(n)), &key(n)).is_none() {
                let _ = second.insert(&key(n), State::UdpEstablished, &STAMP, false, Nanos(9));
            }
        }
        second.sweep(16, Nanos(10));
        check_whole(&second);
    }
}

#[test]
fn buckets_hold_a_full_shard() {
    let mut shard = shard(4096);
    for n in 0..4096u32 {
        let [.., a, b] = n.to_be_bytes();
        let key = FlowKey {
            src: Addr::v4([10, 1, a, b]),
            src_port: n as u16,
            ..key(1)
        };
        shard
            .insert(&key, State::UdpEstablished, &STAMP, false, Nanos(1))
            .unwrap();
    }
    check_whole(&shard);
    assert!(
        shard
            .insert(&key(0), State::UdpEstablished, &STAMP, false, Nanos(1))
            .is_err()
    );
}
