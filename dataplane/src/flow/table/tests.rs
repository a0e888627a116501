#![allow(clippy::unwrap_used, clippy::panic)] // in tests a failed unwrap is the failure

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{
    addr::Addr,
    classify::Generation,
    flow::{entry::AllowedBy, memory::SEGMENTS},
};

const STAMP: DecisionStamp = DecisionStamp {
    generation: Generation(1),
    epochs: [1, 2],
    provenance: [3, 4],
    allowed_by: AllowedBy::Policy,
};
/// Accounts of two endpoints that have nothing but one flow, so that no quota is met.
fn charged(n: u32) -> [u32; 2] {
    [n * 2, n * 2 + 1].map(|end| end << 16 | end)
}

fn table(entries: usize) -> FlowTable {
    let entries: &'static mut [Entry] = Box::leak(vec![zeroed(); entries].into_boxed_slice());
    open(memory(entries, vec![0; 4]), &unlimited(), Nanos(0))
}

/// Half of the entries may be half-open; endpoints have no quotas.
fn unlimited() -> FlowConfig {
    FlowConfig {
        half_open_share: 128,
        endpoint_share: 255,
        endpoint_half_open_share: 255,
        ..FlowConfig::default()
    }
}

/// As many segments as there are numbers of what was used of each.
fn memory(entries: &'static mut [Entry], reached: Vec<u32>) -> TableMemory {
    TableMemory {
        segment_entries: entries.len() / reached.len(),
        entries,
        high_water: reached.leak(),
    }
}

fn open(memory: TableMemory, config: &FlowConfig, now: Nanos) -> FlowTable {
    let mut strays = Vec::new();
    let table = FlowTable::open(memory, |_| true, Seed::new(3), config, None, now, &mut strays);
    assert!(strays.is_empty());
    table
}

fn zeroed() -> Entry {
    zerocopy::FromBytes::read_from_bytes(&[0; 192]).unwrap()
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
fn check_whole(table: &FlowTable) {
    assert!(table.next_unused <= table.entries.len());
    let used: Vec<usize> = (0..table.next_unused)
        .filter(|index| table.entries[*index].state().is_some())
        .collect();
    assert_eq!(used.len() + table.free.len(), table.next_unused);
    for index in &used {
        let key = table.entries[*index].key();
        assert_eq!(
            table.find(table.seed.key(&key), &key),
            Some((*index, FlowDirection::Original))
        );
        let back = key.reversed();
        if back != key {
            assert_eq!(
                table.find(table.seed.key(&back), &back),
                Some((*index, FlowDirection::Reply))
            );
        }
    }
    let slots = table
        .buckets
        .iter()
        .flat_map(|bucket| bucket.places)
        .filter(|place| *place != 0)
        .count();
    let keys: usize = used
        .iter()
        .map(|index| 1 + usize::from(table.entries[*index].key() != table.entries[*index].key().reversed()))
        .sum();
    assert_eq!(slots, keys);
    for (list, standing) in [
        (table.half_open, EvictionClass::HalfOpen),
        (table.closed, EvictionClass::Closed),
    ] {
        let mut at = list.oldest;
        let mut last = NONE;
        let mut length = 0;
        while at != NONE {
            assert_eq!(
                table.entries[at as usize].state().unwrap().eviction_class(),
                standing
            );
            assert_eq!(table.links[at as usize].prev, last);
            (last, at) = (at, table.links[at as usize].next);
            length += 1;
            assert!(length <= list.length);
        }
        assert_eq!((last, length), (list.newest, list.length));
        let all = used
            .iter()
            .filter(|index| table.entries[**index].state().unwrap().eviction_class() == standing);
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
    fn a_table_is_as_a_map(steps in proptest::collection::vec(step(), 1..200)) {
        let mut table = table(24);
        // By key in its original direction: state and when it was last seen.
        let mut model: HashMap<FlowKey, (State, Nanos)> = HashMap::new();
        let mut now = Nanos(1);
        for step in steps {
            match step {
                Step::Insert(n, state) => {
                    let (n, key, state) = (u32::from(n), key(n), State::from_number(state).unwrap());
                    if model.contains_key(&key) || model.contains_key(&key.reversed()) {
                        continue;
                    }
                    let before = table.activity.evicted;
                    let made = table.insert(&key, state, charged(n), &STAMP, now);
                    if table.activity.evicted > before {
                        // Whatever gave way was not kept.
                        let gone: Vec<_> = model
                            .keys()
                            .filter(|key| table.find(table.seed.key(key), key).is_none())
                            .copied()
                            .collect();
                        for key in gone {
                            let (state, _) = model.remove(&key).unwrap();
                            prop_assert_ne!(state.eviction_class(), EvictionClass::Open);
                        }
                    }
                    match made {
                        Ok(_) => {
                            model.insert(key, (state, now));
                        }
                        Err(InsertError::Full) => prop_assert_eq!(model.len(), 24),
                        Err(InsertError::HalfOpen) => prop_assert_eq!(table.half_open.length, 12),
                        Err(InsertError::Quota) => prop_assert!(false, "there is no quota"),
                    }
                }
                Step::Remove(n) => {
                    if let Some((index, _)) = table.find(table.seed.key(&key(n)), &key(n)) {
                        table.remove(index);
                        prop_assert!(model.remove(&key(n)).or(model.remove(&key(n).reversed())).is_some());
                    }
                }
                Step::State(n, state) => {
                    let state = State::from_number(state).unwrap();
                    if let Some((index, direction)) = table.find(table.seed.key(&key(n)), &key(n)) {
                        table.set_state(index, state, now);
                        table.entry_mut(index).touch(now);
                        let key = if direction == FlowDirection::Original { key(n) } else { key(n).reversed() };
                        model.insert(key, (state, now));
                    }
                }
                Step::Find(n) => {
                    let found = table.find(table.seed.key(&key(n)), &key(n));
                    let want = if model.contains_key(&key(n)) {
                        Some(FlowDirection::Original)
                    } else if model.contains_key(&key(n).reversed()) {
                        Some(FlowDirection::Reply)
                    } else {
                        None
                    };
                    prop_assert_eq!(found.map(|(_, direction)| direction), want);
                }
                Step::Wait(millis) => now = now.after(Nanos::from_millis(u64::from(millis))),
                Step::Sweep(budget) => {
                    table.sweep(budget.into(), now);
                    if budget >= 24 {
                        let timeouts = table.timeouts.clone();
                        model.retain(|_, (state, seen)| now.since(*seen) <= state.timeout(&timeouts));
                    } else {
                        model.retain(|key, _| table.find(table.seed.key(key), key).is_some());
                    }
                }
            }
            prop_assert_eq!(model.len(), table.next_unused - table.free.len());
        }
        check_whole(&table);
    }

    /// Whatever lies in the memory: it is opened, whole, and works.
    #[test]
    fn no_memory_content_breaks_a_shard(
        noise in proptest::collection::vec((0..16usize, 0..192usize, any::<u8>()), 0..40),
        copies in proptest::collection::vec((0..16usize, 0..16usize), 0..4),
        claimed in proptest::option::of(proptest::collection::vec(0..20u32, 4)),
    ) {
        let mut first = table(16);
        for n in 0..30 {
            if first.find(first.seed.key(&key(n)), &key(n)).is_none() {
                let state = State::from_number(n % 19 + 1).unwrap();
                let _ = first.insert(&key(n), state, charged(n.into()), &STAMP, Nanos(5));
            }
        }
        let (reached, mut bytes) = first.bytes();
        for (from, to) in copies {
            bytes.copy_within(from * 192..from * 192 + 192, to * 192);
        }
        for (entry, at, value) in noise {
            bytes[entry * 192 + at] = value;
        }
        let entries: Vec<Entry> = bytes
            .chunks_exact(192)
            .map(|entry| zerocopy::FromBytes::read_from_bytes(entry).unwrap())
            .collect();
        let memory = memory(entries.leak(), claimed.unwrap_or(reached));
        let mut second = open(memory, &FlowConfig::default(), Nanos(9));
        check_whole(&second);
        for n in 0..60 {
            if second.find(second.seed.key(&key(n)), &key(n)).is_none() {
                let _ = second.insert(&key(n), State::UdpEstablished, charged(n.into()), &STAMP, Nanos(9));
            }
        }
        second.sweep(16, Nanos(10));
        check_whole(&second);
    }
}

#[test]
fn buckets_hold_a_full_shard() {
    let mut table = table(4096);
    for n in 0..4096u32 {
        let [.., a, b] = n.to_be_bytes();
        let key = FlowKey {
            src: Addr::v4([10, 1, a, b]),
            src_port: n as u16,
            ..key(1)
        };
        table
            .insert(&key, State::UdpEstablished, charged(n), &STAMP, Nanos(1))
            .unwrap();
    }
    check_whole(&table);
    assert!(
        table
            .insert(&key(0), State::UdpEstablished, charged(0), &STAMP, Nanos(1))
            .is_err()
    );
}

fn flow(src: u8, dst: u8, port: u16) -> FlowKey {
    FlowKey {
        src: Addr::v4([10, 0, 1, src]),
        dst: Addr::v4([10, 0, 2, dst]),
        src_port: port,
        ..key(1)
    }
}

/// Begins a flow between two endpoints at a time.
fn begin(
    table: &mut FlowTable,
    src: u8,
    dst: u8,
    port: u16,
    state: State,
    now: Nanos,
) -> Result<usize, InsertError> {
    let ends = [u32::from(src), 256 + u32::from(dst)].map(|end| end << 16 | end);
    table.insert(&flow(src, dst, port), state, ends, &STAMP, now)
}

#[test]
fn what_one_endpoint_fills_gives_way_to_another() {
    let config = FlowConfig {
        endpoint_share: 255,
        ..unlimited()
    };
    let entries: &'static mut [Entry] = vec![zeroed(); 256].leak();
    let mut table = open(memory(entries, vec![0; 4]), &config, Nanos(0));
    let (begun, later) = (Nanos::from_secs(1), Nanos::from_secs(3));
    for port in 0..250 {
        begin(&mut table, 1, 1, port, State::TcpEstablished, begun).unwrap();
    }
    for port in 0..6 {
        begin(&mut table, 2, 2, port, State::TcpEstablished, begun).unwrap();
    }
    // Not while they are in use.
    assert_eq!(
        begin(&mut table, 3, 3, 0, State::TcpSyn, begun),
        Err(InsertError::Full)
    );
    // Nor for who holds all of it.
    assert_eq!(
        begin(&mut table, 1, 4, 0, State::TcpSyn, later),
        Err(InsertError::Full)
    );
    for port in 0..100 {
        begin(&mut table, 3, 3, port, State::TcpEstablished, later).unwrap();
    }
    let held_by_two = (0..6).filter(|port| {
        let key = flow(2, 2, *port);
        table.find(table.seed.key(&key), &key).is_some()
    });
    assert_eq!(held_by_two.count(), 6, "who holds little loses nothing");
    check_whole(&table);
}

#[test]
fn an_endpoint_may_begin_its_share_and_no_more() {
    let config = FlowConfig {
        endpoint_share: 64,
        ..unlimited()
    };
    let entries: &'static mut [Entry] = vec![zeroed(); 256].leak();
    let mut table = open(memory(entries, vec![0; 4]), &config, Nanos(0));
    let now = Nanos::from_secs(1);
    for port in 0..64 {
        begin(&mut table, 1, 1, port, State::TcpEstablished, now).unwrap();
    }
    assert_eq!(
        begin(&mut table, 1, 2, 64, State::TcpEstablished, now),
        Err(InsertError::Quota)
    );
    begin(&mut table, 2, 1, 0, State::TcpEstablished, now).unwrap();
    // Its own longest idle one goes.
    let later = Nanos::from_secs(3);
    begin(&mut table, 1, 2, 64, State::TcpEstablished, later).unwrap();
    check_whole(&table);
}

#[test]
fn a_flood_to_one_endpoint_leaves_the_others_room_for_half_open_flows() {
    let config = FlowConfig {
        half_open_share: 128,
        endpoint_half_open_share: 64,
        ..unlimited()
    };
    let entries: &'static mut [Entry] = vec![zeroed(); 1024].leak();
    let mut table = open(memory(entries, vec![0; 4]), &config, Nanos(0));
    let now = Nanos::from_secs(1);
    // From sources that are all made up.
    for source in 0..=255 {
        let _ = begin(&mut table, source, 1, 1, State::TcpSyn, now);
    }
    assert_eq!(table.half_open.length, 128, "a quarter of 512");
    assert_eq!(
        begin(&mut table, 1, 1, 2, State::TcpSyn, now),
        Err(InsertError::HalfOpen)
    );
    for port in 0..100 {
        begin(&mut table, 7, 2, port, State::TcpSyn, now).unwrap();
    }
    // After the grace the oldest of the flood gives way to the next of it, not the others'.
    let later = now.after(Nanos::from_millis(200));
    for source in 0..200 {
        begin(&mut table, source, 1, 3, State::TcpSyn, later).unwrap_or_default();
    }
    let others = (0..100).filter(|port| {
        let key = flow(7, 2, *port);
        table.find(table.seed.key(&key), &key).is_some()
    });
    assert_eq!(others.count(), 100);
    check_whole(&table);
}

#[test]
fn one_pair_of_addresses_has_all_the_room_of_an_endpoint() {
    let entries: &'static mut [Entry] = vec![zeroed(); 262_144].leak();
    let mut table = open(memory(entries, vec![0; 256]), &FlowConfig::default(), Nanos(0));
    for port in 0..60_000 {
        begin(&mut table, 1, 1, port, State::TcpEstablished, Nanos(1)).unwrap();
    }
}

/// Many outsiders, each with a few flows to one pod that answers them all, and none of them ever idle.
#[test]
fn flows_that_many_keep_busy_with_one_give_way_to_others() {
    let entries: &'static mut [Entry] = vec![zeroed(); 4096].leak();
    let mut table = open(memory(entries, vec![0; 256]), &FlowConfig::default(), Nanos(0));
    let account = |end: u32| end.wrapping_mul(0x9e37_79b1);
    let mut now = Nanos::from_secs(1);
    let flow_of = |source: u32, dst: u8| FlowKey {
        src: Addr::v4(source.to_be_bytes()),
        dst: Addr::v4([10, 0, 0, dst]),
        ..key(0)
    };
    let mut flood = 1 << 24;
    let mut lost = 0;
    for nth in 0..200_u32 {
        for _ in 0..100 {
            flood += 1;
            let ends = [account(flood), account(1)];
            let _ = table.insert(&flow_of(flood, 1), State::TcpEstablished, ends, &STAMP, now);
        }
        now = now.after(Nanos::from_millis(1));
        for index in 0..table.next_unused {
            if table.entry(index).key().dst == Addr::v4([10, 0, 0, 1]) {
                table.entry_mut(index).touch(now);
            }
        }
        let other = flow_of(nth, 2 + (nth % 50) as u8);
        let ends = [account(9000 + nth), account(100 + nth % 50)];
        let inserted = table.insert(&other, State::TcpEstablished, ends, &STAMP, now);
        lost += u32::from(inserted.is_err());
    }
    assert_eq!(lost, 0);
    check_whole(&table);
}

/// Another number of workers shares the memory out anew.
#[test]
fn flows_of_other_owners_move_to_their_tables() {
    let memory = FlowMemory::private(SEGMENTS * 16, 7).unwrap();
    let seed = memory.seed;
    let config = FlowConfig::default();
    let mut tables = memory.into_tables(2, &config, None);
    for n in 0..1000 {
        let key = flow(n as u8, (n >> 8) as u8, n);
        let owner = usize::from(seed.key(&key).shard()) % 2;
        let ends = charged(u32::from(n));
        tables[owner]
            .insert(&key, State::UdpEstablished, ends, &STAMP, Nanos(5))
            .unwrap();
    }
    for workers in [1, 2, 3, 7] {
        let left: Vec<_> = tables.iter().map(FlowTable::bytes).collect();
        let image = super::super::memory::image(7, 16, &left);
        let words: Vec<u64> = image
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        let bytes = words.leak().as_mut_bytes();
        let memory = FlowMemory::open(bytes, SEGMENTS * 16, 9, Nanos(6)).unwrap();
        tables = memory.into_tables(workers, &config, None);
        let inherited: u64 = tables.iter().map(|table| table.activity.inherited).sum();
        assert_eq!(inherited, 1000, "{workers} workers");
        tables.iter().for_each(check_whole);
        for n in 0..1000 {
            let key = flow(n as u8, (n >> 8) as u8, n);
            let hash = seed.key(&key);
            let owner = usize::from(hash.shard()) % workers;
            assert!(tables[owner].find(hash, &key).is_some());
        }
    }
}
