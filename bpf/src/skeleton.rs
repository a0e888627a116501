//! The generated skeletons of the programs.
#![allow(
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used
)] // generated
#![allow(clippy::undocumented_unsafe_blocks, missing_docs, unreachable_pub)] // generated

include!(concat!(env!("OUT_DIR"), "/ringwall.skel.rs"));

/// Of a node's programs.
pub(crate) mod node {
    include!(concat!(env!("OUT_DIR"), "/node.skel.rs"));
}

/// Of what benchmarks load.
#[cfg(feature = "traffic")]
pub(crate) mod generator {
    include!(concat!(env!("OUT_DIR"), "/generator.skel.rs"));
}

/// Likewise.
#[cfg(feature = "traffic")]
pub(crate) mod peers {
    include!(concat!(env!("OUT_DIR"), "/peers.skel.rs"));
}
