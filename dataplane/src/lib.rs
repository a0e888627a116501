//! The packet plane of ringwall. Pure: no I/O, no clock, no log; time, randomness and packets are arguments.
//!
//! The packet's path, in order of the modules that it crosses, is [`worker`].

pub mod addr;
pub mod classify;
pub mod frame;
pub mod io;
pub mod port;
pub mod verdict;
