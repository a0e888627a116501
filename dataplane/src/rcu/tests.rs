#![allow(clippy::unwrap_used)] // a test that unwraps nothing has failed, which is what it is for

#[cfg(not(loom))]
mod plain {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::super::channel;

    struct Counted(Arc<AtomicUsize>, u32);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_version_is_freed_only_after_every_online_subscriber_has_moved_on() {
        let freed = Arc::new(AtomicUsize::new(0));
        let (mut publisher, mut readers) = channel(2);
        let mut second = readers.pop().unwrap();
        let mut first = readers.pop().unwrap();
        assert!(first.adopt().is_none());
        assert_eq!(publisher.publish(Counted(Arc::clone(&freed), 1)), 1);
        assert_eq!(first.adopt().map(|(n, v)| (n, v.1)), Some((1, 1)));
        assert_eq!(second.adopt().map(|(n, v)| (n, v.1)), Some((1, 1)));
        assert!(publisher.all_adopted(1));
        publisher.publish(Counted(Arc::clone(&freed), 2));
        assert!(!publisher.all_adopted(2));
        first.adopt();
        assert_eq!((publisher.reclaim(), freed.load(Ordering::SeqCst)), (1, 0));
        assert_eq!((publisher.adopted(0), publisher.adopted(1)), (Some(2), Some(1)));
        second.offline();
        assert!(publisher.all_adopted(2));
        assert_eq!(publisher.adopted(1), None);
        assert_eq!((publisher.reclaim(), freed.load(Ordering::SeqCst)), (0, 1));
        assert_eq!(second.adopt().map(|(n, v)| (n, v.1)), Some((2, 2)));
        publisher.publish(Counted(Arc::clone(&freed), 3));
        drop(publisher);
        assert_eq!(
            freed.load(Ordering::SeqCst),
            1,
            "still readable without a publisher"
        );
        assert_eq!(first.adopt().map(|(n, v)| (n, v.1)), Some((3, 3)));
        drop((first, second));
        assert_eq!(freed.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn readers_on_other_threads_see_whole_versions_in_order() {
        let (mut publisher, readers) = channel(3);
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        std::thread::scope(|scope| {
            for mut reader in readers {
                scope.spawn(move || {
                    let mut last = 0;
                    let mut bursts = 0u64;
                    while last < rounds {
                        if let Some((sequence, value)) = reader.adopt() {
                            let (a, b): &(u64, Box<u64>) = value;
                            assert_eq!((*a, **b), (sequence, sequence * 3));
                            assert!(sequence >= last);
                            last = sequence;
                        }
                        bursts += 1;
                        if bursts.is_multiple_of(7) {
                            reader.offline();
                        }
                        if cfg!(miri) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for round in 1..=rounds {
                publisher.publish((round, Box::new(round * 3)));
            }
        });
        assert_eq!(publisher.reclaim(), 0);
    }
}

#[cfg(loom)]
mod model {
    use loom::{cell::UnsafeCell, thread};

    use super::super::channel;

    /// Loom reports a race when it is read while, or after, it is dropped.
    struct Watched(UnsafeCell<u64>);
    // SAFETY: loom checks every access.
    unsafe impl Sync for Watched {}
    impl Watched {
        fn new(value: u64) -> Self {
            Self(UnsafeCell::new(value))
        }
        fn read(&self) -> u64 {
            // SAFETY: loom checks that no write runs beside it.
            self.0.with(|value| unsafe { *value })
        }
    }
    impl Drop for Watched {
        fn drop(&mut self) {
            // SAFETY: loom checks that no read runs beside it.
            self.0.with_mut(|value| unsafe { *value = u64::MAX });
        }
    }

    #[test]
    fn nothing_is_freed_under_a_reader() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel(1);
            let mut reader = readers.pop().unwrap();
            publisher.publish(Watched::new(1));
            let worker = thread::spawn(move || {
                for _ in 0..2 {
                    let (sequence, value) = reader.adopt().unwrap();
                    assert_eq!(value.read(), sequence);
                }
            });
            publisher.publish(Watched::new(2));
            publisher.reclaim();
            worker.join().unwrap();
        });
    }

    #[test]
    fn a_reader_that_sleeps_and_wakes_is_safe() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel(1);
            let mut reader = readers.pop().unwrap();
            publisher.publish(Watched::new(1));
            let worker = thread::spawn(move || {
                let (sequence, value) = reader.adopt().unwrap();
                assert_eq!(value.read(), sequence);
                reader.offline();
                let (sequence, value) = reader.adopt().unwrap();
                assert_eq!(value.read(), sequence);
            });
            publisher.publish(Watched::new(2));
            worker.join().unwrap();
        });
    }

    #[test]
    fn adoption_by_all_means_that_the_old_one_has_no_readers() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel(2);
            let mut second = readers.pop().unwrap();
            let mut first = readers.pop().unwrap();
            publisher.publish(Watched::new(1));
            let a = thread::spawn(move || first.adopt().map(|(_, value)| value.read()));
            let b = thread::spawn(move || second.adopt().map(|(_, value)| value.read()));
            publisher.publish(Watched::new(2));
            assert!(a.join().unwrap().is_some());
            assert!(b.join().unwrap().is_some());
            assert!(publisher.all_adopted(2));
            assert_eq!(publisher.reclaim(), 0);
        });
    }
}
