//! The kernel side of ringwall: an XDP program on every port, a tc guard where the kernel could send to pods, and the
//! loader that attaches, updates and pins them.
//!
//! Everything here works in the network namespace of the calling thread and never reads `/sys/class/net`.
//!
//! * [`port`]: [`attach`] a port, feed its maps, [`detach`] it.
//! * [`counters`]: what the programs count.
//! * [`node`]: the programs of a node, which judge packets where they leave the kernel.

mod clsact;
pub mod counters;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "traffic")]
pub mod generator;
mod guard;
mod kernel;
mod log;
mod maps;
pub mod node;
#[cfg(feature = "traffic")]
pub mod peers;
pub mod port;
mod skeleton;

#[cfg(test)]
mod program_tests;

pub use counters::{Counter, Counters};
pub use error::BpfError;
pub use maps::{MAX_PORTS, MAX_PREFIXES};
pub use port::{
    AttachMode, AttachedPort, DETACH_HINT, DeviceXdp, EgressGuard, FailMode, Failsafe, PortRole, PortSpec,
    XdpMode, attach, detach, ensure_bpffs, inspect, is_attached, needs_bpffs, pinned_ports, prepare,
    unmount_empty,
};
