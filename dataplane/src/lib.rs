//! The packet plane of ringwall. Pure: no I/O, no clock, no log; time, randomness and packets are arguments.
//!
//! The packet's path, in order of the modules that it crosses, is [`worker`].
#![allow(unexpected_cfgs)] // `cfg(loom)`, set by hand to check the model of `rcu`

/// One address type for both families.
pub mod addr;
/// The snapshot: who an address is and what may pass.
pub mod classify;
/// Traffic that passes before any policy.
pub mod failsafe;
/// Flow tables, connection states, fragments.
pub mod flow;
/// Wire and routed forwarding.
pub mod forward;
/// Packet buffers with one owner each.
pub mod frame;
/// Where packets come from and go to.
pub mod io;
/// Putting the plane together.
pub mod plane;
/// Interfaces.
pub mod port;
/// Publication to workers that never wait.
pub mod rcu;
/// What workers count.
pub mod stats;
/// Time, as an argument.
pub mod time;
/// What becomes of a packet, and why.
pub mod verdict;
/// Headers.
pub mod wire;
/// A packet's whole life.
pub mod worker;
