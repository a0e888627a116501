//! A port's programs: attach, feed, detach.

use std::{
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use crate::{BpfError, Counters};

/// What to tell a user whose programs stay after a stop.
pub const DETACH_HINT: &str =
    "the programs stay attached so that the fail mode holds; `ringwall detach` removes them";

/// How the port takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// One end of a wire.
    Wire {
        /// Interface at the other end.
        peer: String,
        /// Every frame goes to the sockets; otherwise those without a pod address go straight to the peer.
        judge_all: bool,
    },
    /// Host side of a pod's veth: every IP unicast packet is judged, also those to the host's own addresses.
    Pod,
    /// Routed, leads to a network: packets to the host's own addresses that are not from a pod go to the kernel.
    Uplink,
    /// The judged (inner) end of the veth pair to the host's kernel.
    Host,
}

/// What happens to packets while no socket is registered for their queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// Packets to or from pods drop; others pass (routed: to the kernel, wire: to the peer).
    Closed,
    /// Everything passes.
    Open,
}

/// How to attach the XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Native, and generic where the driver has no XDP.
    Auto,
    /// Native or an error.
    Native,
    /// Generic.
    Generic,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the skb was made: slow.
    Generic,
}

/// What the tc egress guard does with what the kernel itself would send out of the port to or from a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressGuard {
    /// No guard (wires, the host port).
    Off,
    /// Hand it to the host port, so that it is judged.
    Redirect {
        /// The kernel's end of the host port's veth pair.
        outer: String,
        /// The judged end; its Ethernet address becomes the packet's destination.
        inner: String,
    },
    /// Drop it.
    Drop,
}

/// Traffic to or from pods that passes without a dataplane, too, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// Addresses of the client end.
    pub from: IpNet,
    /// Addresses of the server end, of the same family.
    pub to: IpNet,
    /// IP protocol number; None is any.
    pub protocol: Option<u8>,
    /// Server ports, both ends inclusive; None is any. Needs a protocol.
    pub ports: Option<(u16, u16)>,
}

/// A port to attach to, in the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Interface name.
    pub name: String,
    /// Directory of this installation on a BPF file system; the port's pins go to `PINS/NAME/`.
    pub pins: PathBuf,
    /// How the port takes part.
    pub role: PortRole,
    /// What holds without a socket.
    pub fail_mode: FailMode,
    /// How to attach.
    pub mode: AttachMode,
    /// What the kernel may send by itself.
    pub guard: EgressGuard,
    /// The host's own addresses (routed roles).
    pub local_addresses: Vec<IpAddr>,
    /// Where pods live.
    pub pod_cidrs: Vec<IpNet>,
    /// What passes in fail mode.
    pub failsafe: Vec<Failsafe>,
}

/// A port whose programs are attached. Dropping it leaves them attached and pinned.
#[derive(Debug)]
pub struct AttachedPort {
    spec: PortSpec,
}

/// Attaches the programs of a port and pins them, taking over what an earlier process left: the program stays attached
/// throughout, and is replaced atomically where it was built from another source.
///
/// # Errors
/// See [`BpfError`]. Nothing is left attached that was not attached before.
pub fn attach(spec: &PortSpec) -> Result<AttachedPort, BpfError> {
    Err(unfinished(&spec.name))
}

/// Takes the programs and pins of a port off. Fine where there are none.
///
/// # Errors
/// Where a pin or the tc filter could not be removed.
pub fn detach(pins: &Path, name: &str) -> Result<(), BpfError> {
    let _ = pins;
    Err(unfinished(name))
}

fn unfinished(name: &str) -> BpfError {
    BpfError::System {
        action: format!("attach to `{name}`"),
        source: std::io::ErrorKind::Unsupported.into(),
    }
}

impl AttachedPort {
    /// The interface.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The interface's index.
    pub fn ifindex(&self) -> u32 {
        0
    }

    /// How the XDP program is attached.
    pub fn mode(&self) -> XdpMode {
        XdpMode::Generic
    }

    /// Whether the programs of an earlier process were taken over.
    pub fn inherited(&self) -> bool {
        false
    }

    /// The kernel's id of the XDP program.
    pub fn program_id(&self) -> u32 {
        0
    }

    /// Replaces the host's own addresses.
    ///
    /// # Errors
    /// Too many addresses, or the kernel refuses.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        let _ = addresses;
        Err(unfinished(&self.spec.name))
    }

    /// Replaces the pod prefixes. New ones are added before old ones go.
    ///
    /// # Errors
    /// Too many prefixes, or the kernel refuses.
    pub fn set_pod_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), BpfError> {
        let _ = cidrs;
        Err(unfinished(&self.spec.name))
    }

    /// Replaces the failsafe list.
    ///
    /// # Errors
    /// Too many entries, or the kernel refuses.
    pub fn set_failsafe(&mut self, failsafe: &[Failsafe]) -> Result<(), BpfError> {
        let _ = failsafe;
        Err(unfinished(&self.spec.name))
    }

    /// Gives the packets of a receive queue to an AF_XDP socket bound to this port and queue.
    ///
    /// # Errors
    /// The queue is beyond the map, or the kernel refuses the socket.
    pub fn register_socket(&mut self, queue: u16, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let _ = (queue, socket);
        Err(unfinished(&self.spec.name))
    }

    /// Empties a queue's slot, so that the fail mode holds for it. Fine where it is empty.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unregister_socket(&mut self, queue: u16) -> Result<(), BpfError> {
        let _ = queue;
        Err(unfinished(&self.spec.name))
    }

    /// What the programs have counted since they were first attached.
    ///
    /// # Errors
    /// The kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        Err(unfinished(&self.spec.name))
    }

    /// Takes everything off.
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(self) -> Result<(), BpfError> {
        detach(&self.spec.pins, &self.spec.name)
    }
}
