//! What can go wrong while sockets are opened.

use std::{io, path::PathBuf};

/// An error of the socket layer. Each message says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The interface is not in this network namespace.
    #[error("interface `{0}` does not exist in this network namespace")]
    NoInterface(String),
    /// The kernel has no AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS): ringwall needs Linux 5.15 or newer with it"
    )]
    NoAfXdp,
    /// The caller lacks a capability.
    #[error("{action}: permission denied: the process needs {capability}")]
    Permission {
        /// What was tried.
        action: String,
        /// The missing capability or capabilities.
        capability: &'static str,
    },
    /// The UMEM does not fit into what may be locked.
    #[error(
        "cannot lock {bytes} bytes of packet memory ({source}): give the process CAP_IPC_LOCK or raise RLIMIT_MEMLOCK, or use fewer frames"
    )]
    Memory {
        /// Size of the UMEM.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pool has no frames left for another port.
    #[error(
        "no packet memory is left for interface `{interface}`: its queues need {needed} frames, and worker {worker} has {left} that no open port was promised; raise `umem.total` and restart ringwall"
    )]
    NoFrames {
        /// The interface.
        interface: String,
        /// The worker whose frames do not suffice.
        worker: usize,
        /// Frames that its queues would take.
        needed: u32,
        /// Frames that are left.
        left: u32,
    },
    /// Somebody else holds the queue.
    #[error(
        "queue {queue} of interface `{interface}` stayed busy for {waited_ms} ms: another AF_XDP socket is bound to it (`ss --xdp` shows whose)"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u16,
        /// How long it was tried.
        waited_ms: u64,
    },
    /// Zero-copy was required.
    #[error(
        "interface `{interface}`, queue {queue}: zero-copy is required but the device does not have it ({reason}): set `zeroCopy: prefer` or `off`"
    )]
    NoZeroCopy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u16,
        /// What the kernel said.
        reason: String,
    },
    /// Packets would not fit into packet memory.
    #[error(
        "interface `{interface}` has MTU {mtu}, at most {max} works: lower it (`ip link set dev {interface} mtu {max}`)"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The largest that works.
        max: u32,
    },
    /// Packets would need several frames, and packet memory was made for packets of one.
    #[error(
        "interface `{interface}` has MTU {mtu}, and packet memory was made for {max} at most: restart ringwall, or lower the MTU (`ip link set dev {interface} mtu {max}`)"
    )]
    MtuGrown {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The largest that works.
        max: u32,
    },
    /// Packets need several frames, and the kernel's sockets take one each.
    #[error(
        "interface `{interface}` has MTU {mtu}, whose packets need several frames, which this kernel's AF_XDP sockets do not have: use Linux 6.6 or newer, or lower the MTU (`ip link set dev {interface} mtu {max}`)"
    )]
    NoMultiBuffer {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The largest that works.
        max: u32,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
    /// A file that is mapped is in use or not ours.
    #[error("{path}: {problem}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A system call failed in another way.
    #[error("{action}: {source}")]
    System {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl XskError {
    /// Wraps an error of a system call, naming the capability where permission is missing.
    pub(crate) fn system(action: impl Into<String>, capability: &'static str, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { action, capability },
            _ => Self::System { action, source },
        }
    }
}
