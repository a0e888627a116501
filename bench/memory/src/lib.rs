//! What a packet costs a worker when packets come from memory and go to memory: no socket, no kernel, no clock.
//!
//! * [`mix`] the kinds of packets that are told apart. [`cluster`] the policy that they are judged by.
//! * [`source`] where the worker's packets come from. [`load`] workers, policy and packets together.
//! * [`control`] a loop that only finds packets in a table. [`pair`] two workers. [`clock`] a thread's own time.
//! * [`stages`] and [`instructions`] the gate on instructions per packet and stage, under callgrind. [`sampling`] the time of each
//!   stage, under a timer.

pub mod clock;
pub mod cluster;
pub mod control;
pub mod instructions;
pub mod load;
pub mod mix;
pub mod pair;
pub mod sampling;
pub mod source;
pub mod stages;
