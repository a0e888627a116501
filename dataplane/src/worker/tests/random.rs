//! Streams of random packets: the number of workers does not show, nothing is allocated, no frame is lost.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use proptest::prelude::*;

use super::*;

/// A packet of a small world, one out of few of each kind, so that flows meet.
#[derive(Clone, Copy, Debug)]
struct FlowStep {
    family: usize,
    src: usize,
    dst: usize,
    port: u16,
    kind: u8,
    flags: u8,
    from_outside: bool,
    wait: u16,
    publish: u8,
}

fn step() -> impl Strategy<Value = FlowStep> {
    (
        (0..2usize, 0..6usize, 0..6usize, 0..3u16, 0..9u8),
        (any::<u8>(), any::<bool>(), any::<u16>(), any::<u8>()),
    )
        .prop_map(
            |((family, src, dst, port, kind), (flags, from_outside, wait, publish))| FlowStep {
                family,
                src,
                dst,
                port,
                kind,
                flags,
                from_outside,
                wait,
                publish,
            },
        )
}

fn frame(step: &FlowStep) -> Vec<u8> {
    let who = [CLIENT, WEB, BOX, UNOWNED, NODE, OUTSIDER];
    let mut template = from_to(who[step.src][step.family], who[step.dst][step.family]);
    let (low, high) = (1000 + step.port, [80, 53, 443][usize::from(step.port)]);
    let (src, dst) = if step.from_outside {
        (high, low)
    } else {
        (low, high)
    };
    let tcp = [SYN, SYN_ACK, ACK, FIN_ACK, RST, ACK, ACK, 0];
    match step.kind {
        0..=2 => template.tcp(src, dst, tcp[usize::from(step.flags % 8)], b"x"),
        3 => template.udp(src, dst, b"x"),
        4 => template.sctp(5001, 5000, step.flags % 16),
        5 => template.echo(step.port, !step.from_outside),
        6 => {
            let cause =
                from_to(who[step.dst][step.family], who[step.src][step.family]).udp(low, high, b"12345678");
            template.icmp([3, 1][step.family], 0, [0; 4], &cause[14..])
        }
        7 => {
            let offset = u16::from(step.flags % 4) * 24;
            template.fragment = Some((u32::from(step.port), offset, step.flags & 4 != 0));
            let mut l4 = [0; 24];
            l4[..8].copy_from_slice(&[0, 1, 0, 53, 0, 24, 0, 0]);
            template.ip(17, &l4)
        }
        _ => template.ip(47, &[0; 8]),
    }
}

/// What came out after one step.
type Sent = Vec<(PortId, Vec<u8>)>;

/// What comes out, step by step, and how often each reason was named.
fn results(steps: &[FlowStep], workers: usize) -> (Vec<Sent>, Vec<u64>) {
    let config = DataplaneConfig {
        workers,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 4096);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    let mut generation = 1;
    let mut all = Vec::new();
    for (nth, step) in steps.iter().enumerate() {
        if step.publish < 12 {
            generation += 1;
            bed.publish(World {
                web_allows: step.publish % 2 == 0,
                web_epoch: 20 + u64::from(step.publish % 4),
                box_epoch: 30,
                allow_unknown: step.publish % 3 == 0,
                generation,
                pod_cidrs: true,
                echo_alone: step.publish % 5 == 0,
                answer: None,
            });
        }
        bed.wait(Nanos::from_millis(u64::from(step.wait) / 4));
        let port = if step.from_outside { OUTSIDE } else { INSIDE };
        all.push(bed.on(nth % workers, port, &frame(step)));
    }
    let drops = DropReason::ALL
        .iter()
        .map(|reason| bed.stats.drops(*reason))
        .collect();
    (all, drops)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_number_of_workers_does_not_show(steps in proptest::collection::vec(step(), 1..150)) {
        let one = results(&steps, 1);
        prop_assert_eq!(&one, &results(&steps, 2));
        prop_assert_eq!(&one, &results(&steps, 4));
    }
}

#[test]
fn random_streams_reach_every_kind_of_outcome() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut reasons = std::collections::BTreeSet::new();
    let mut crossed = 0;
    for _ in 0..20 {
        let steps = proptest::collection::vec(step(), 200)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let (sent, drops) = results(&steps, 2);
        crossed += sent.iter().filter(|sent| !sent.is_empty()).count();
        let named = DropReason::ALL.iter().zip(drops).filter(|(_, count)| *count > 0);
        reasons.extend(named.map(|(reason, _)| *reason));
    }
    assert!(crossed > 100);
    for reason in [
        DropReason::PolicyIngress,
        DropReason::PolicyEgress,
        DropReason::UnknownEndpoint,
        DropReason::FragmentUnknown,
        DropReason::IcmpUnrelated,
        DropReason::TcpInvalid,
    ] {
        assert!(reasons.contains(&reason), "{}", reason.name());
    }
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has allocated.
pub(super) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

struct Counting;

#[allow(unsafe_code)] // an allocator cannot be written without
// SAFETY: all is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn nothing_is_allocated_per_packet() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let config = DataplaneConfig {
        workers: 2,
        ..DataplaneConfig::default()
    };
    let mut bed = Bed::with(config, 4096);
    bed.publish(World::new(1));
    bed.plane.forwarding.publish(wire().build());
    let mut runner = TestRunner::deterministic();
    let steps = proptest::collection::vec(step(), 2000)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let mut spent = 0;
    let mut frames = 0;
    for (nth, step) in steps.iter().enumerate() {
        let port = if step.from_outside { 1 } else { 0 };
        assert!(bed.workers[nth % 2].io().inject(port, &frame(step)));
        if nth % 50 != 49 {
            continue;
        }
        bed.wait(Nanos::from_millis(1));
        // The queue of what was sent grows for the first time: make room before counting.
        for worker in &mut bed.workers {
            worker.io().reserve(512);
        }
        for worker in [0, 1, 0, 1] {
            let before = allocations();
            frames += bed.workers[worker].run_once(bed.now).frames;
            spent += allocations() - before;
        }
        for worker in &mut bed.workers {
            let _ = worker.io().take_sent();
        }
    }
    assert!(frames >= 2000);
    assert_eq!(spent, 0);
}
