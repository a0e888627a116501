//! Ports: the interfaces that the dataplane receives from and sends to.

use crate::wire::subject::NotSubjectTable;

/// The largest MTU of a port: what switches carry as jumbo frames. The largest that is tested.
pub const MAX_MTU: u32 = 9216;

/// Index of a port in the table of the running configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// A queue of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u16);

/// Tells interfaces of a wire apart across restarts, after which their ports may have other numbers: a hash of the kernel's
/// name. Two that have the same one are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortTag(u32);

impl PortTag {
    /// Of a port that bears this name.
    pub fn from_name(name: &str) -> Self {
        // FNV-1a: names are given by the configuration, so no attacker can choose a collision.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Self(hash.max(1))
    }

    /// As it is kept in an entry; 0 is none.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// One end of a wire: what comes in leaves by `peer`, unchanged.
    Wire {
        /// The other end.
        peer: PortId,
    },
    /// The host side of one pod's veth.
    Pod,
    /// A network with routers, nodes or remote pods on it.
    Uplink,
    /// The judged end of the veth pair that leads to the kernel of this host.
    Host,
    /// The far end of the pair by which the kernel of a node asks about packets: each frame begins with an
    /// [`AskHeader`](crate::node::ask::AskHeader), and goes back by the same port.
    Ask,
}

/// Whose source addresses may come in by a port; others drop as `spoofed-source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Pods only.
    Pods,
    /// Nodes only.
    Nodes,
    /// The cluster: pods and nodes.
    Inside,
    /// Neither pods nor nodes.
    Outside,
    /// Everything.
    Any,
    /// Everything, and a node's address is the node's: for replays, where none is forged.
    Unguarded,
}

/// Where the route back to a source has to lead on an uplink (RFC 3704). A pod's port is always strict, and the address of
/// this machine, or of a pod behind a port of its own, never comes in elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversePath {
    /// Out of the port that the packet came in by, or of one of several hops.
    Strict,
    /// Anywhere.
    Loose,
    /// Nothing is asked.
    Off,
}

/// A port of the running configuration, as the packet path needs it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its index in the table.
    pub id: PortId,
    /// The kernel's name, for counters and messages.
    pub name: String,
    /// Of its name.
    pub tag: PortTag,
    /// What it leads to.
    pub kind: PortKind,
    /// Whose source addresses it accepts.
    pub side: Side,
    /// Its own Ethernet address; the source of what is routed out of it.
    pub mac: [u8; 6],
    /// Largest layer 3 packet it sends, in bytes.
    pub mtu: u16,
    /// Separates overlapping address spaces; part of the flow key.
    pub zone: u32,
    /// Where the route back to a source has to lead, on an uplink.
    pub reverse_path: ReversePath,
    /// Whether a pod's packets must bear an Ethernet address: on an uplink that of the next hop to the pod, on a wire that of
    /// its node, and a node's packets likewise.
    pub checks_source_mac: bool,
    /// Which frames without a policy cross the wire that it is an end of.
    pub not_subject: NotSubjectTable,
    /// Whether packets on it may carry partial checksums (veth, virtio): see `wire::checksum`.
    pub partial_checksums: bool,
}
