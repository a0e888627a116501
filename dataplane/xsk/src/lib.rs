//! AF_XDP for ringwall: sockets on every queue of every port, one pool of frames, and [`XskIo`], a worker's
//! [`ringwall_dataplane::io::PacketIo`] on top of them. The only place with xsk-rs.
//!
//! * [`sockets`]: [`open`] the ports, with or without [`SpareMemory`]; [`Sockets`] is the control side: statistics, accounts, lost ports, re-opening.
//! * [`io`]: a worker's side.
//! * [`device`]: queues, MTU, offloads and addresses of an interface, by ioctl.
//! * [`preflight`]: what must hold before anything is opened.
//! * [`affinity`]: pin a thread and read it back.
//! * [`mapping`]: shared file memory for the flow table.

pub mod affinity;
mod chain;
pub mod close_order;
pub mod device;
pub mod error;
pub mod io;
pub mod mapping;
mod pool;
pub mod preflight;
mod queue;
pub mod sockets;
mod syscall;

pub use affinity::pin_to;
pub use close_order::close_early;
pub use error::XskError;
pub use io::{Waker, XskIo};
pub use mapping::map_shared;
pub use sockets::{
    Accounts, Config, MAX_SINGLE_MTU, PortConfig, QueueSocket, QueueStats, RingSizes, Sockets, SpareMemory,
    ZeroCopy, open, open_with, queues_for,
};
