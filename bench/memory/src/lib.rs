//! What a packet costs a worker when packets come from memory and go to memory: no socket, no kernel, no clock.
//!
//! * [`mix`] the kinds of packets that are told apart. [`cluster`] the policy that they are judged by.
//! * [`source`] where the worker's packets come from. [`load`] workers, policy and packets together.
//! * [`stages`] and [`instructions`] the gate on instructions per packet and stage, under callgrind.

pub mod cluster;
pub mod instructions;
pub mod load;
pub mod mix;
pub mod source;
pub mod stages;
