//! The running appliance: `ringwall run` starts and supervises the control process and the dataplane process.
//!
//! * [`supervisor`] `ringwall run`: preflight, both children, restarts, signals.
//! * [`dataplane`] the hidden `ringwall dataplane`: ports, sockets, workers, publication, watchdog.
//! * [`status`] and [`detach`] the commands of the same name.

pub mod detach;
pub mod status;
pub mod supervisor;

pub mod dataplane;
pub mod fib;
pub mod netlink;
