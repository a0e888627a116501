#![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

use super::*;
use crate::{addr::Addr, node::epochs::RANGES_SLOT};

fn tuple(number: u16) -> Tuple {
    let [high, low] = number.to_be_bytes();
    Tuple::new(
        (Addr::v4([10, 0, high, low]), 40_000),
        (Addr::v4([10, 1, high, low]), 80),
    )
}

fn decision(number: u16) -> Decision {
    Decision {
        verdict: Ok(FlowId(1 + u64::from(number))),
        zone: 0,
        protocol: 6,
        flags: 0,
        original: tuple(number),
        reply: tuple(number).reversed(),
        slots: [7, 9, RANGES_SLOT],
        in_ifindex: 0,
    }
}

fn denial(number: u16) -> Decision {
    Decision {
        verdict: Err((DropReason::PolicyIngress, 5)),
        ..decision(number)
    }
}

fn hash(signature: u32, one: u32, other: u32) -> CacheHash {
    CacheHash {
        signature,
        buckets: [one, other],
    }
}

/// Where the kernel might have hashed a number to.
fn hash_of(number: u16) -> CacheHash {
    hash(
        0x8000_0000 | u32::from(number),
        u32::from(number) % 4,
        u32::from(number) / 4 % 4,
    )
}

const NOW: Nanos = Nanos::from_secs(1000);

impl FlowCache {
    fn finds(&self, hash: CacheHash, number: u16, now: Nanos) -> Option<(CacheIndex, EntryBody)> {
        self.find(hash, (0, 6), &tuple(number), &tuple(number).reversed(), now)
    }

    fn bump_one(&self, slot: u32) {
        let mut set = SlotSet::empty();
        set.insert(slot);
        self.bump(&set);
    }
}

#[test]
fn what_is_inserted_is_found_until_it_is_removed() {
    let cache = FlowCache::private(4).unwrap();
    let index = cache.insert(hash_of(5), &decision(5), NOW).unwrap();
    let (at, entry) = cache.finds(hash_of(5), 5, NOW).unwrap();
    assert_eq!((at, entry.action, entry.flow), (index, action::ALLOW, 6));
    assert_eq!(
        (entry.slots, entry.epochs, entry.expires),
        ([7, 9, RANGES_SLOT], [0; 3], 0)
    );
    assert_eq!(cache.used(), 1);
    // Neither another key with the same hash nor another answer of connection tracking.
    assert!(cache.finds(hash_of(5), 6, NOW).is_none());
    assert!(
        cache
            .find(hash_of(5), (1, 6), &tuple(5), &tuple(5).reversed(), NOW)
            .is_none()
    );
    assert!(
        cache
            .find(hash_of(5), (0, 17), &tuple(5), &tuple(5).reversed(), NOW)
            .is_none()
    );
    assert!(
        cache
            .find(hash_of(5), (0, 6), &tuple(5), &tuple(6), NOW)
            .is_none()
    );
    // Nor another flow's name.
    assert_eq!(cache.remove(index, FlowId(7)), None);
    assert!(cache.remove(index, FlowId(6)).is_some());
    assert!(cache.finds(hash_of(5), 5, NOW).is_none());
    assert_eq!((cache.remove(index, FlowId(6)), cache.used()), (None, 0));
}

#[test]
fn an_epoch_ends_what_depends_on_it() {
    let cache = FlowCache::private(4).unwrap();
    for slot in [7, 9, RANGES_SLOT] {
        cache.insert(hash_of(5), &decision(5), NOW).unwrap();
        assert!(cache.finds(hash_of(5), 5, NOW).is_some());
        cache.bump_one(slot);
        assert!(cache.finds(hash_of(5), 5, NOW).is_none(), "slot {slot}");
    }
    cache.insert(hash_of(5), &decision(5), NOW).unwrap();
    cache.bump_one(8);
    assert!(cache.finds(hash_of(5), 5, NOW).is_some());
    cache.bump(&SlotSet::all());
    assert!(cache.finds(hash_of(5), 5, NOW).is_none());
}

#[test]
fn a_denial_lasts_a_second() {
    let cache = FlowCache::private(4).unwrap();
    cache.insert(hash_of(5), &denial(5), NOW).unwrap();
    let (_, entry) = cache.finds(hash_of(5), 5, NOW).unwrap();
    assert_eq!(
        (entry.action, entry.reason, entry.provenance),
        (action::DENY, DropReason::PolicyIngress as u8, 5)
    );
    assert!(
        cache
            .finds(hash_of(5), 5, NOW.after(Nanos(999_999_999)))
            .is_some()
    );
    assert!(cache.finds(hash_of(5), 5, NOW.after(DENIAL_TIME)).is_none());
    // The same key, allowed: in the same place.
    cache.insert(hash_of(5), &decision(5), NOW).unwrap();
    assert_eq!(
        (cache.used(), cache.finds(hash_of(5), 5, NOW).unwrap().1.action),
        (1, action::ALLOW)
    );
}

#[test]
fn what_gives_way_is_what_costs_least() {
    let cache = FlowCache::private(2).unwrap();
    let both = |number: u16| hash(1 + u32::from(number), 0, 1);
    let later = |seconds| NOW.after(Nanos::from_secs(seconds));
    for number in 0..14 {
        let index = cache.insert(both(number), &decision(number), NOW).unwrap();
        cache.count(index, 0, 60, 0, later(100 + u64::from(number)));
    }
    let spread: Vec<usize> = (0..2)
        .map(|bucket| {
            cache.buckets[bucket]
                .0
                .iter()
                .filter(|way| way.load(Relaxed) != 0)
                .count()
        })
        .collect();
    assert_eq!(spread, [7, 7]);
    cache.insert(both(20), &denial(20), later(200)).unwrap();
    cache.insert(both(21), &denial(21), later(200)).unwrap();
    // A denial takes a denial's place, a flow too, and then that of what has been silent for the longest.
    cache.insert(both(22), &denial(22), later(200)).unwrap();
    assert!(cache.finds(both(20), 20, later(200)).is_none());
    for number in [30, 31] {
        cache.insert(both(number), &decision(number), later(200)).unwrap();
    }
    assert!(cache.finds(both(22), 22, later(200)).is_none());
    assert!((0..14).all(|number| cache.finds(both(number), number, later(200)).is_some()));
    assert_eq!(cache.insert(both(40), &denial(40), later(200)), None);
    cache.insert(both(41), &decision(41), later(300)).unwrap();
    assert!(cache.finds(both(0), 0, later(300)).is_none());
    assert!(cache.finds(both(1), 1, later(300)).is_some());
    // What does not hold any more goes before any that does.
    let stale = Decision {
        slots: [3, 9, RANGES_SLOT],
        ..decision(13)
    };
    cache.insert(both(13), &stale, later(300)).unwrap();
    cache.bump_one(3);
    cache.insert(both(42), &denial(42), later(300)).unwrap();
    assert!(cache.finds(both(1), 1, later(300)).is_some());
}

#[test]
fn a_signature_occurs_once_in_a_bucket() {
    let cache = FlowCache::private(2).unwrap();
    for number in 0..3 {
        cache.insert(hash(77, 0, 1), &decision(number), NOW).unwrap();
    }
    for bucket in cache.buckets.iter() {
        assert_eq!(bucket.0.iter().filter(|way| way.load(Relaxed) == 77).count(), 1);
    }
    assert!(cache.finds(hash(77, 0, 1), 2, NOW).is_some());
}

#[test]
fn usage_is_taken_once() {
    let cache = FlowCache::private(4).unwrap();
    let index = cache.insert(hash_of(5), &decision(5), NOW).unwrap();
    cache.count(index, 0, 60, 2, NOW.after(Nanos(5)));
    cache.count(index, 1, 1500, 0x12, NOW.after(Nanos(6)));
    cache.count(index, 1, 40, 1, NOW.after(Nanos(7)));
    let usage = cache.take_usage(index, FlowId(6)).unwrap();
    assert_eq!(
        usage,
        Usage {
            packets: [1, 2],
            bytes: [60, 1540],
            last_seen: NOW.after(Nanos(7)),
            tcp_flags: [2, 0x13],
        }
    );
    let usage = cache.take_usage(index, FlowId(6)).unwrap();
    assert_eq!(
        (usage.packets, usage.bytes, usage.tcp_flags),
        ([0; 2], [0; 2], [0; 2])
    );
    // The next flow of the place begins at nothing, one that is decided again goes on.
    cache.count(index, 0, 60, 2, NOW);
    cache.insert(hash_of(5), &decision(5), NOW).unwrap();
    assert_eq!(cache.take_usage(index, FlowId(6)).unwrap().packets, [1, 0]);
    cache.count(index, 0, 60, 2, NOW);
    let another = Decision {
        verdict: Ok(FlowId(99)),
        ..decision(5)
    };
    assert_eq!(cache.insert(hash_of(5), &another, NOW), Some(index));
    // What was not taken of the first is still there, once.
    assert_eq!(cache.take_usage(index, FlowId(6)).unwrap().packets, [1, 0]);
    assert_eq!(cache.take_usage(index, FlowId(6)), None);
    assert_eq!(cache.remove(index, FlowId(6)), None);
    assert_eq!(cache.take_usage(index, FlowId(99)).unwrap().packets, [0; 2]);
}

#[test]
fn nonsense_is_refused() {
    assert!(matches!(FlowCache::private(0), Err(CacheError::Buckets { .. })));
    assert!(matches!(FlowCache::private(12), Err(CacheError::Buckets { .. })));
    let cache = FlowCache::private(4).unwrap();
    assert_eq!(cache.insert(hash(0, 1, 2), &decision(1), NOW), None);
    assert_eq!(cache.insert(hash(1, 1, 4), &decision(1), NOW), None);
    assert_eq!(cache.remove(CacheIndex(u32::MAX), FlowId(1)), None);
    assert_eq!(cache.take_usage(CacheIndex(32), FlowId(1)), None);
    assert_eq!(cache.epochs([0, 65_535, 65_536]), [0; 3]);
    let mut words = vec![0_u64; 100].into_boxed_slice();
    let begin = NonNull::new(words.as_mut_ptr().cast::<u8>()).unwrap();
    let map = MappedMemory { begin, bytes: 800 };
    let maps = CacheMaps {
        buckets: map,
        entries: map,
        usage: map,
        epochs: map,
    };
    // SAFETY: too short, so nothing is made of it.
    let made = unsafe { FlowCache::from_raw(&maps, 32) };
    assert!(matches!(
        made,
        Err(CacheError::TooShort {
            name: "flow_buckets",
            needed: 1024,
            have: 800
        })
    ));
}

/// A cache over mapped memory is the same one, and keeps what lies in it.
#[test]
fn mapped_memory_outlives_the_cache() {
    let map = |bytes: usize| {
        let words = Box::leak(vec![[0_u64; 8]; bytes / 64 + 1].into_boxed_slice());
        let begin = words.as_mut_ptr().cast::<u8>();
        let skip = begin.align_offset(64);
        MappedMemory {
            begin: NonNull::new(begin.wrapping_add(skip)).unwrap(),
            bytes,
        }
    };
    let maps = CacheMaps {
        buckets: map(4 * BUCKET_BYTES),
        entries: map(4 * WAYS * ENTRY_BYTES),
        usage: map(4 * WAYS * USAGE_BYTES),
        epochs: map(SLOTS * EPOCH_BYTES),
    };
    // SAFETY: leaked, aligned, and used by one cache after the other.
    let open = || unsafe { FlowCache::from_raw(&maps, 4) }.unwrap();
    let index = open().insert(hash_of(5), &decision(5), NOW).unwrap();
    let cache = open();
    assert_eq!(cache.finds(hash_of(5), 5, NOW).unwrap().0, index);
    cache.bump_one(7);
    assert!(open().finds(hash_of(5), 5, NOW).is_none());
}

/// A read that a write overtakes is a miss, as is one that overtakes a write.
#[test]
fn a_torn_read_is_a_miss() {
    let cell = EntryCell::new_zeroed();
    let body = |number: u16| EntryBody {
        flow: number.into(),
        original: tuple(number),
        ..EntryBody::new_zeroed()
    };
    cell.write(&body(1));
    let torn = cell.read_by(|cell| {
        let before = cell.peek();
        cell.write(&body(2));
        EntryBody {
            flow: before.flow,
            ..cell.peek()
        }
    });
    assert_eq!(torn, None);
    let mut midway = Some(body(0));
    cell.write_through(&body(3), |cell| midway = cell.read());
    assert_eq!(midway, None);
    let read = cell.read().unwrap();
    assert_eq!((read.flow, read.original), (3, tuple(3)));
    assert_eq!(read.version % 2, 0);
}

/// Sets a flag when it goes, by a panic, too.
struct OnEnd<'a>(&'a AtomicBool);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Writers overwrite two buckets while a reader looks as the kernel does: what it believes is always of one piece.
#[test]
fn no_reader_sees_halves_of_two_entries() {
    let cache = FlowCache::private(2).unwrap();
    // All of an entry follows from the number of its key.
    let decision = |number: u16| Decision {
        slots: [2 + u32::from(number), 1000 + u32::from(number), RANGES_SLOT],
        ..decision(number)
    };
    let same = hash(77, 0, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2_u16 {
            let (cache, done) = (&cache, &done);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Relaxed) {
                    number = (number + 1) % 100;
                    let key = writer * 100 + number;
                    let index = cache.insert(same, &decision(key), NOW);
                    if key.is_multiple_of(7) {
                        index.map(|index| cache.remove(index, FlowId(1 + u64::from(key))));
                    }
                }
            });
        }
        scope.spawn(|| {
            let _end = OnEnd(&done);
            let mut seen = 0;
            while seen < 20_000 {
                for entry in cache.entries.iter().filter_map(EntryCell::read) {
                    if entry.action == action::NONE {
                        continue;
                    }
                    let right = decision((entry.flow - 1) as u16);
                    assert_eq!(
                        (entry.original, entry.reply, entry.slots),
                        (right.original, right.reply, right.slots)
                    );
                    seen += 1;
                }
            }
        });
    });
}
