//! What is fuzzed. Each target is a function of bytes that panics where something does not hold that must.
//!
//! * [`headers`] the packet parsers against each other; [`programs`] against the BPF programs. [`turn`] a worker's turns:
//!   flows, fragments, ICMP quotations, changes of the snapshot. [`flow_memory`] what a predecessor left. [`image`]
//!   snapshot images and deltas.
//! * [`manifests`], [`config`], [`messages`], [`capture`] what people and processes write.
//! * `world` the small cluster that packets of `turn` and `flow_memory` are of; `bed` workers over memory.
//!
//! `tests/corpora.rs` replays `corpus/` and `regressions/` on the stable toolchain; `libfuzzer/` has the fuzzers.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)] // a target says what does not hold by panicking

mod bed;
pub mod capture;
pub mod config;
pub mod flow_memory;
pub mod headers;
pub mod image;
pub mod manifests;
pub mod messages;
pub mod programs;
pub mod turn;
mod world;

/// Something that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of its fuzzer, of its folders in `corpus/` and `regressions/`.
    pub name: &'static str,
    /// Checks one input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "capture",
        run: capture::run,
    },
    Target {
        name: "config",
        run: config::run,
    },
    Target {
        name: "flow_memory",
        run: flow_memory::run,
    },
    Target {
        name: "headers",
        run: headers::run,
    },
    Target {
        name: "image",
        run: image::run,
    },
    Target {
        name: "manifests",
        run: manifests::run,
    },
    Target {
        name: "messages",
        run: messages::run,
    },
    Target {
        name: "programs",
        run: programs::run,
    },
    Target {
        name: "turn",
        run: turn::run,
    },
];
