//! The validated configuration.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

pub use crate::raw::{
    AntiSpoofing, DenialAnswer, FailMode, IdlePolicy, InterfaceKind, Kind, L2Action, L2Protocol, Midstream,
    Mode, OnDeadline, PodStart, ReversePath, Side, TcpTracking, UnknownEndpoints, User, Verify, XdpMode,
    ZeroCopy,
};
use crate::{cpus::CpuId, failsafe::FailsafeEntry};

/// Everything the appliance needs to know, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Gateway or node.
    pub kind: Kind,
    /// Whether pods on interfaces of kind `pod` have this machine for their node, whatever addresses it has.
    pub hosts_pods: bool,
    /// Name of this installation on the machine: in paths, pins and metrics. Letters, digits, `-`, `_`, `.`; at most
    /// 15 bytes where there is a `host` interface, since it names the kernel's end of that port.
    pub name: String,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// What is proven of a compiled policy before it is published.
    pub verify: Verify,
    /// How long that may take.
    pub verify_deadline: Duration,
    /// What happens to a policy whose proof takes longer.
    pub on_deadline: OnDeadline,
    /// Bytes that one snapshot may take.
    pub snapshot_budget: u64,
    /// Interface that ringwall never touches.
    pub management: Option<String>,
    /// Networks of the cluster.
    pub cluster: ClusterNetworks,
    /// Where policy comes from.
    pub source: Source,
    /// The packet workers.
    pub workers: Workers,
    /// Interfaces, in the order of the file.
    pub interfaces: Vec<Interface>,
    /// How packets are forwarded.
    pub role: Role,
    /// Where the route back to a source has to lead, on uplinks.
    pub reverse_path: ReversePath,
    /// What is asked of a source address.
    pub anti_spoofing: AntiSpoofing,
    /// What counts as a tunnel.
    pub tunnels: Tunnels,
    /// What happens to pod traffic while no dataplane runs (routed role; a wire has its own).
    pub fail_mode: FailMode,
    /// What the sender of a packet gets that policy denies; nothing on a node.
    pub denied: DenialAnswer,
    /// The most answers per second to one sender, by one worker.
    pub denied_rate: u32,
    /// What passes before any policy, in every mode and fail mode.
    pub failsafe: Vec<FailsafeEntry>,
    /// Flow table.
    pub conntrack: Conntrack,
    /// Packet memory.
    pub umem: Umem,
    /// What a new pod of a node waits for.
    pub pod_start: PodStart,
    /// Whether the node loses its taint once it is guarded.
    pub untaint_node: bool,
    /// HTTP listeners.
    pub telemetry: Telemetry,
    /// User that the control process runs as; chosen by what it has to read where None.
    pub control_user: Option<User>,
    /// Sockets, flow table, lock: on a tmpfs.
    pub runtime_dir: PathBuf,
    /// Last snapshot, record of what was changed on the machine; below it what the control process keeps.
    pub state_dir: PathBuf,
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
}

/// Networks of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Pod networks, besides those that nodes announce; host bits masked.
    pub pod_cidrs: Vec<IpNet>,
    /// Node networks.
    pub node_cidrs: Vec<IpNet>,
    /// Service networks.
    pub service_cidrs: Vec<IpNet>,
    /// What happens to addresses in a pod network that no live pod has.
    pub unknown_endpoints: UnknownEndpoints,
    /// Where networks are.
    pub places: Vec<NetworkPlacement>,
}

/// Where a network is; no two overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlacement {
    /// The network; host bits masked.
    pub network: IpNet,
    /// The interfaces that lead to it, all by name in [`Config::interfaces`]; None for any.
    pub interfaces: Option<Vec<String>>,
    /// Its VLAN on a wire; None for any.
    pub vlan: Option<VlanTags>,
}

/// The VLAN tags of a frame: 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanTags {
    /// None.
    Untagged,
    /// One.
    Single(u16),
    /// Two.
    Double {
        /// The first in the frame.
        outer: u16,
        /// The second.
        inner: u16,
    },
}

/// Where policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Folder or API server.
    pub kind: SourceKind,
    /// Alarm after this long without word from the API server.
    pub stale_after: Duration,
    /// A full list of the API server is compared with what its watches said about this often.
    pub full_list_every: Duration,
    /// Alarm, and not ready, where a state is not adopted within this time.
    pub adopt_within: Duration,
    /// The last snapshot is not used at a start where it was current longer ago; any age where None.
    pub max_age: Option<Duration>,
    /// Whether to start with a folder in which no pod has an address.
    pub allow_no_pods: bool,
}

/// Kinds of policy source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A folder of manifests, watched.
    Manifests {
        /// The folder.
        dir: PathBuf,
    },
    /// The API server of a kubeconfig.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Its context; the current one where None.
        context: Option<String>,
    },
    /// The API server of the cluster that this process runs in.
    InCluster,
}

impl SourceKind {
    /// Takes what the command line names, a folder of manifests or a kubeconfig, where it names something.
    pub fn replace_by(&mut self, manifests: Option<&Path>, kubeconfig: Option<&Path>) {
        if let Some(dir) = manifests {
            *self = Self::Manifests { dir: dir.to_owned() };
        }
        if let Some(file) = kubeconfig {
            *self = Self::Kubeconfig {
                file: file.to_owned(),
                context: None,
            };
        }
    }
}

/// The packet workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Where they run.
    pub cpus: Cpus,
    /// How many; one per CPU of an explicit list where None, one for `auto`.
    pub count: Option<NonZeroU16>,
    /// What a worker does that has nothing to do.
    pub idle: IdlePolicy,
}

/// Where workers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// CPUs of the process's affinity mask.
    Auto,
    /// These, ascending, without doubles, not empty.
    List(Vec<CpuId>),
}

/// An interface, or every interface whose name matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Which.
    pub select: InterfaceSelect,
    /// What it leads to; None for the ends of a wire.
    pub kind: Option<InterfaceKind>,
    /// Whose source addresses may come in.
    pub side: Side,
    /// Receive queues taken.
    pub rx_queues: RxQueues,
    /// Native or generic XDP.
    pub xdp_mode: XdpMode,
    /// Zero-copy or copy.
    pub zero_copy: ZeroCopy,
    /// MTU to expect, in bytes; the device's own where None.
    pub mtu: Option<u16>,
}

/// Which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceSelect {
    /// The one of this name.
    Name(String),
    /// Every one whose name matches this pattern (`*`, `?`), now or later.
    Match(String),
}

/// How many receive queues are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxQueues {
    /// All that the device has.
    All,
    /// Queues `0..n`.
    Count(NonZeroU16),
}

/// How packets are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pairs of interfaces; what comes in by one leaves by the other.
    Wire(Vec<Wire>),
    /// By the kernel's routes and neighbours.
    Routed,
    /// Not by ringwall: the kernel forwards, and asks about the first packet of each flow.
    KernelPath,
}

/// What counts as a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnels {
    /// Whether policy decides about those of pods.
    pub allowed: bool,
    /// UDP ports where nodes unpack them, sorted.
    pub ports: Vec<u16>,
    /// Which kind there is at a UDP port; the others cannot be looked into.
    pub kinds: Vec<(u16, UdpTunnel)>,
    /// Whether IP in IP is looked into.
    pub ip_in_ip: bool,
    /// Whether GRE is looked into.
    pub gre: bool,
    /// Whether what cannot be looked into passes between nodes.
    pub opaque_allowed: bool,
    /// The networks of VXLAN and Geneve that there are; empty: any.
    pub networks: Vec<OverlayNetwork>,
}

/// Tunnels in UDP that are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpTunnel {
    /// VXLAN.
    Vxlan,
    /// Geneve.
    Geneve,
    /// An IP packet directly in UDP, as Flannel's `udp` backend sends it.
    Flannel,
}

/// A network of VXLAN or Geneve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// Its identifier, below 2^24.
    pub vni: u32,
    /// Its address space; 0 is that of packets without tunnels.
    pub zone: u32,
}

/// A pair of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Its name.
    pub name: String,
    /// Its ends; both are in [`Config::interfaces`].
    pub interfaces: [String; 2],
    /// What happens to frames that no policy speaks about; kinds that are not here have their default.
    pub l2_protocols: BTreeMap<L2Protocol, L2Action>,
    /// What happens to pod traffic while no dataplane runs.
    pub fail_mode: FailMode,
}

/// Flow table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Most flows at a time.
    pub max_entries: NonZeroU32,
    /// TCP without a seen beginning.
    pub tcp_midstream: Midstream,
    /// Which resets and FINs are believed.
    pub tcp: TcpTracking,
    /// How long after a start without inherited flows `pickup` lasts.
    pub pickup_window: Duration,
    /// How long a silent flow is kept.
    pub timeouts: Timeouts,
}

/// How long a silent flow is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before both sides have spoken.
    pub tcp_opening: Duration,
    /// TCP, open.
    pub tcp_established: Duration,
    /// TCP after FIN or RST.
    pub tcp_closing: Duration,
    /// UDP that has not been answered.
    pub udp_new: Duration,
    /// UDP that has been answered.
    pub udp_answered: Duration,
    /// ICMP and ICMPv6 echo.
    pub icmp: Duration,
    /// SCTP.
    pub sctp: Duration,
    /// Everything else.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(30),
            tcp_established: Duration::from_secs(12 * 3600),
            tcp_closing: Duration::from_secs(60),
            udp_new: Duration::from_secs(30),
            udp_answered: Duration::from_secs(120),
            icmp: Duration::from_secs(30),
            sctp: Duration::from_secs(3600),
            other: Duration::from_secs(300),
        }
    }
}

/// Packet memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Umem {
    /// Frames for each queue of a `pod` port; the dataplane's default where None.
    pub frames_per_pod_port: Option<NonZeroU32>,
    /// Bytes of all UMEMs together, as an upper limit.
    pub total: Option<u64>,
}

/// HTTP listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// `/metrics`.
    pub metrics_listen: SocketAddr,
    /// `/livez` and `/readyz`; with the metrics where None.
    pub health_listen: Option<SocketAddr>,
}

impl Config {
    /// Whether any interface is of kind `host`.
    pub fn has_host_port(&self) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.kind == Some(InterfaceKind::Host))
    }

    /// The socket that the dataplane listens on.
    pub fn dataplane_socket(&self) -> PathBuf {
        self.runtime_dir.join("dataplane.sock")
    }

    /// The socket that the control process serves its API on.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }

    /// The snapshot that the dataplane accepted last.
    pub fn snapshot_file(&self) -> PathBuf {
        self.state_dir.join("snapshot.img")
    }

    /// Where the BPF pins of a port are.
    pub fn pin_dir(&self, port: &str) -> PathBuf {
        self.bpffs.join("ringwall").join(&self.name).join(port)
    }

    /// The first interface entry that applies to a device: by name before by pattern.
    pub fn interface(&self, device: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| matches!(&interface.select, InterfaceSelect::Name(name) if name == device))
            .or_else(|| {
                self.interfaces
                    .iter()
                    .find(|interface| interface.select.matches(device))
            })
    }
}

impl InterfaceSelect {
    /// The name or the pattern, as written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(text) | Self::Match(text) => text,
        }
    }

    /// Whether a device of this name is meant.
    pub fn matches(&self, device: &str) -> bool {
        match self {
            Self::Name(name) => name == device,
            Self::Match(pattern) => glob(pattern.as_bytes(), device.as_bytes()),
        }
    }
}

/// `*` is any run of bytes, `?` any one byte.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        Some((b'?', rest)) => !text.is_empty() && glob(rest, &text[1..]),
        Some((byte, rest)) => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_shell_would() {
        for (pattern, device, expected) in [
            ("cali*", "cali0123", true),
            ("cali*", "cali", true),
            ("cali*", "xcali1", false),
            ("veth?", "veth1", true),
            ("veth?", "veth", false),
            ("*-pod-*", "a-pod-b", true),
        ] {
            assert_eq!(
                InterfaceSelect::Match(pattern.into()).matches(device),
                expected,
                "{pattern} {device}"
            );
        }
    }
}
