//! What a node's programs cost: figures for `bench/figures/bpf.md`. Run with
//! `cargo test --release -p ringwall-bpf --test node_cost -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking
#![allow(unsafe_code)] // one call of libbpf that libbpf-rs does not wrap

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;
mod node_rig;

use std::{
    os::fd::{FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use libbpf_rs::{libbpf_sys, query::ProgInfoIter};
use net::privileged;
use node_rig::{
    A4, A6, B4, B6, Rig, Shape,
    ask::{Ask, Verdict},
    connect, describe, echo, udp,
};
use ringwall_bpf::node::{Hook, Outcome};

/// Runs and nanoseconds of the program with an id.
fn spent(id: u32) -> (u64, u64) {
    let program = ProgInfoIter::default().find(|program| program.id == id).unwrap();
    (program.run_cnt, program.run_time_ns)
}

/// Windows of a measurement. The quickest is the one that the rest of the machine has disturbed least.
const WINDOWS: usize = 40;

/// Nanoseconds of one run of each program while something is done, again and again.
fn measure(rig: &Rig, what: &str, mut work: impl FnMut()) {
    let names = ["exit", "from_pod"];
    let ids = [Hook::Exit, Hook::FromPod].map(|hook| rig.node.program_id(hook));
    let mut costs = [const { Vec::new() }; 2];
    for _ in 0..WINDOWS {
        let before = ids.map(spent);
        work();
        for ((id, before), costs) in ids.into_iter().zip(before).zip(&mut costs) {
            let (runs, nanoseconds) = spent(id);
            costs.push((nanoseconds - before.1) / (runs - before.0).max(1));
        }
    }
    for (name, costs) in names.iter().zip(&mut costs) {
        costs.sort_unstable();
        println!(
            "{what}: {name}: {} ns, median {} of {WINDOWS} windows",
            costs[0],
            costs[WINDOWS / 2]
        );
    }
}

#[test]
#[ignore = "takes figures"]
fn cost_of_a_hit() {
    if !privileged() {
        return;
    }
    // SAFETY: no pointers; the answer is a new descriptor.
    let _stats =
        unsafe { OwnedFd::from_raw_fd(libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME)) };
    for (shape, tracked) in [
        (Shape::Routed, true),
        (Shape::Bridge, true),
        (Shape::BridgeUntracked, false),
    ] {
        let rig = Rig::new(shape, |_: &Ask| Verdict::Allow);
        if tracked {
            rig.track();
        }
        for (a, b) in [(A4, B4), (A6, B6)] {
            let (from, to) = (
                udp(&rig.a, &format!("[{a}]:5000").replace("[10.244.1.2]", A4)),
                udp(&rig.b, &format!("[{b}]:6000").replace("[10.244.1.3]", B4)),
            );
            from.connect(to.local_addr().unwrap()).unwrap();
            from.send(b"first").unwrap();
            to.recv(&mut [0; 100]).unwrap();
            measure(&rig, &format!("{shape:?} {a} UDP"), || {
                let end = Instant::now() + Duration::from_millis(25);
                while Instant::now() < end {
                    for _ in 0..64 {
                        let _ = from.send(&[0; 18]);
                    }
                }
            });
            let at = format!("[{b}]:80").replace("[10.244.1.3]", B4);
            let (mut stream, mut served, _) = connect(&rig.a, &at, &rig.b, &at).unwrap();
            measure(&rig, &format!("{shape:?} {a} TCP in bulk"), || {
                echo(&mut stream, &mut served, 8 << 20)
            });
        }
        println!("{}", describe(&rig.counters()));
        assert!(rig.count(Outcome::ExitHit) > 1000);
    }
}
