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
use ringwall_bpf::node::Outcome;

/// Runs and nanoseconds of a program, of the newest that has the name.
fn spent(name: &str) -> (u64, u64) {
    let program = ProgInfoIter::default()
        .filter(|program| program.name.to_str() == Ok(name))
        .max_by_key(|program| program.id)
        .unwrap();
    (program.run_cnt, program.run_time_ns)
}

/// Nanoseconds of one run of each program while something is done.
fn measure(what: &str, work: impl FnOnce()) {
    let names = ["node_exit", "node_from_pod"];
    let before = names.map(spent);
    work();
    for (name, before) in names.iter().zip(before) {
        let (runs, nanoseconds) = spent(name);
        let (runs, nanoseconds) = (runs - before.0, nanoseconds - before.1);
        println!(
            "{what}: {name}: {runs} runs, {} ns each",
            nanoseconds / runs.max(1)
        );
    }
}

#[test]
#[ignore = "takes figures"]
fn cost_of_a_hit() {
    if !privileged() {
        return;
    }
    for program in
        ProgInfoIter::default().filter(|program| program.name.to_string_lossy().starts_with("node_"))
    {
        println!("left over: {} {}", program.id, program.name.to_string_lossy());
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
            measure(&format!("{shape:?} {a} UDP"), || {
                let end = Instant::now() + Duration::from_secs(1);
                while Instant::now() < end {
                    for _ in 0..64 {
                        let _ = from.send(&[0; 18]);
                    }
                }
            });
            let at = format!("[{b}]:80").replace("[10.244.1.3]", B4);
            let (mut stream, mut served, _) = connect(&rig.a, &at, &rig.b, &at).unwrap();
            measure(&format!("{shape:?} {a} TCP in bulk"), || {
                echo(&mut stream, &mut served, 256 << 20)
            });
        }
        println!("{}", describe(&rig.counters()));
        assert!(rig.count(Outcome::ExitHit) > 1000);
    }
}
