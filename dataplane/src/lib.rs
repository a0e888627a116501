//! The packet plane of ringwall. Pure: no I/O, no clock, no log; time, randomness and packets are arguments.
//!
//! * [`worker`] a packet's whole life, on one screen.
//! * [`wire`] headers. [`flow`] flow tables, connection states, fragments. [`classify`] the snapshot: who an address is
//!   and what may pass. [`failsafe`] what passes before any policy. [`forward`] wire and routed forwarding.
//! * [`rcu`] publication to workers that never wait. [`dataplane`] puts it all together. [`stats`] what workers count.
//! * [`io`] where packets come from and go to. [`frame`] packet buffers with one owner each.
//! * [`node`] what the kernel of a node and its workers share.
//! * `fuzzing` (a feature) what the fuzz targets need to get past checksums.
//! * [`tunnels`] which packets contain others.
//! * [`prefetch`] cache lines asked for ahead.
//! * [`addr`], [`port`], [`time`], [`verdict`] the words that all of these use.
#![allow(unexpected_cfgs)] // `cfg(loom)`, set by hand to check the model of `rcu`

pub mod addr;
pub mod classify;
pub mod dataplane;
pub mod failsafe;
pub mod flow;
pub mod forward;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod io;
pub mod node;
pub mod port;
pub mod prefetch;
pub mod rcu;
pub mod stats;
pub mod time;
pub mod tunnels;
pub mod verdict;
pub mod wire;
pub mod worker;
