//! What the file says, word for word. Each struct refuses keys that it does not know.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::quantity::{Bytes, Period};

/// A ringwall configuration file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "ringwall configuration")]
pub struct Raw {
    /// Version of this format.
    pub api_version: ApiVersion,
    /// The role: a gateway between networks, or a firewall on a node.
    pub kind: Kind,
    /// Name of this installation; `${VARIABLE}` is read from the environment.
    pub name: String,
    /// Whether verdicts are enforced or only logged.
    #[serde(default)]
    pub mode: Mode,
    /// Management access to the machine.
    pub management: Option<Management>,
    /// How much of a compiled policy is proven before it is published.
    #[serde(default)]
    pub verify: Verification,
    /// Limits of the compiled policy.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// Networks of the cluster.
    pub cluster: Cluster,
    /// Where policy comes from.
    pub source: Source,
    /// The packet workers.
    #[serde(default)]
    pub workers: Workers,
    /// What carries packets. Default: `kernel` on a node, `afxdp` on a gateway. A gateway with an explicit `afxdp` is the node of the
    /// pods behind its interfaces of kind `pod`, whatever addresses it has: they may talk to it, and it to them.
    pub datapath: Option<Datapath>,
    /// Interfaces that a gateway attaches to. A node guards every interface of the machine, and lists none.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Interface pairs of a transparent (bump-in-the-wire) gateway. Without wires, packets are routed.
    pub wires: Option<Vec<Wire>>,
    /// How a routed gateway or node uses the kernel's routes.
    pub routing: Option<Routing>,
    /// What happens to pod traffic while no dataplane runs.
    pub fail_mode: Option<FailMode>,
    /// What the sender of a packet gets that policy denies.
    #[serde(default)]
    pub denied: Denied,
    /// Traffic that passes whatever policy says.
    pub failsafe: Option<Failsafe>,
    /// How node addresses that masquerade pods are treated.
    pub masqueraded_sources: Option<String>,
    /// Overlay tunnels.
    pub overlay: Option<Overlay>,
    /// How source addresses are checked.
    #[serde(default)]
    pub anti_spoofing: AntiSpoofing,
    /// Flow table.
    #[serde(default)]
    pub conntrack: Conntrack,
    /// Flow log.
    pub logging: Option<Logging>,
    /// Metrics and health.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// How a node learns which interface belongs to which pod.
    pub endpoint_discovery: Option<String>,
    /// What happens to pod traffic that the kernel forwards.
    pub kernel_path: Option<String>,
    /// What a new pod of a node waits for. Default: off.
    pub pod_start: Option<PodStart>,
    /// Whether a node loses the taint `ringwall.io/not-ready` once it is guarded. Takes an API server that lets control patch Nodes, and
    /// the node's name in the environment variable NODE_NAME of control. Default: false.
    pub untaint_node: Option<bool>,
    /// Packet memory.
    #[serde(default)]
    pub umem: Umem,
    /// The control process, which reads and compiles policy.
    #[serde(default)]
    pub control: Control,
    /// Sockets, flow table and lock; on a tmpfs. Default: `/run/ringwall/NAME`.
    pub runtime_dir: Option<PathBuf>,
    /// Last snapshot and epoch key. Default: `/var/lib/ringwall/NAME`.
    pub state_dir: Option<PathBuf>,
    /// Mount point of the BPF file system. Default: `/sys/fs/bpf`.
    pub bpffs: Option<PathBuf>,
}

/// The control process, which reads and compiles policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Control {
    /// User (name or number) that the control process runs as, without capabilities. It must be able to read the kubeconfig and
    /// the files that it names, or the folder of manifests. Default: the user `ringwall`; if there is none, an unused number; if
    /// the kubeconfig names a credential program, the owner of the kubeconfig. If the default user cannot read these files,
    /// the process keeps the capability to read files, confined by Landlock.
    pub user: Option<User>,
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum User {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// Versions of the configuration format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only version so far.
    #[serde(rename = "ringwall.io/v1alpha1")]
    V1Alpha1,
}

/// The role of this instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Kind {
    /// Between networks, as a router or on a wire.
    Gateway,
    /// On a Kubernetes node.
    Node,
}

/// What carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Datapath {
    /// AF_XDP workers, from port to port.
    Afxdp,
    /// The kernel, on a node: its routes, bridges, NAT and tunnels stay as they are. Packets of pods are judged where they leave
    /// the machine or enter a pod: the first of each flow by an AF_XDP worker, later ones by a table in the kernel.
    Kernel,
}

/// What a new pod of a node waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PodStart {
    /// Nothing: ringwall finds its interface, and takes the first addresses that it sees there for the pod's.
    #[default]
    Off,
    /// Its interface being guarded, with the addresses that the CNI gave it: `ringwall cni install`.
    Attach,
    /// As `attach`, and its first process starts once every worker decides by a snapshot that has the pod with these addresses,
    /// so that none of its packets drop as those of an unknown endpoint.
    Hold,
}

/// What the sender of a packet gets that policy denies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Denied {
    /// The answer, where a policy does not choose its own with the annotation `ringwall.io/denied`. Default: drop.
    #[serde(default)]
    pub answer: DenialAnswer,
    /// The most answers per second to one sender, by one worker. Default: 50.
    pub rate: Option<u32>,
}

/// An answer to a denied packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DenialAnswer {
    /// None.
    #[default]
    Drop,
    /// What a host sends where nothing listens: a TCP reset, or an ICMP error.
    Reset,
    /// The ICMP error "administratively prohibited".
    Prohibited,
}

/// Whether verdicts are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Judge and count every packet, but forward denied ones too.
    Audit,
    /// Drop packets that policy denies.
    #[default]
    Enforce,
}

/// How much is proven: one word, or an object with a deadline.
#[derive(Clone, Copy, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Verification {
    /// One word: the default deadline applies.
    Word(Verify),
    /// With a deadline.
    Full(VerifyInFull),
}

impl Default for Verification {
    fn default() -> Self {
        Self::Word(Verify::default())
    }
}

// Not derived: an untagged enum would not say which words there are.
impl<'de> Deserialize<'de> for Verification {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Verification;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`full`, `changed`, `off`, or a map of `proof`, `deadline` and `onDeadline`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
                Verify::deserialize(word.into_deserializer()).map(Verification::Word)
            }

            // YAML takes an `off` without quotes for a boolean.
            fn visit_bool<E: de::Error>(self, word: bool) -> Result<Self::Value, E> {
                self.visit_str(if word { "on" } else { "off" })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                VerifyInFull::deserialize(MapAccessDeserializer::new(map)).map(Verification::Full)
            }
        }

        deserializer.deserialize_any(Words)
    }
}

/// How much is proven, and what happens if that takes too long.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifyInFull {
    /// What is proven of a compiled policy before it is published. Default: changed.
    #[serde(default)]
    pub proof: Verify,
    /// Time limit for a proof. Default: 30s.
    pub deadline: Option<Period>,
    /// What happens to a policy whose proof exceeds the deadline. Default: hold.
    #[serde(default)]
    pub on_deadline: OnDeadline,
}

/// What happens to a policy whose proof exceeds its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDeadline {
    /// The previous policy stays in force, with an alarm, until the proof ends.
    #[default]
    Hold,
    /// The policy is published, with an alarm, and the proof goes on.
    Publish,
}

/// How much of a compiled policy is proven before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Verify {
    /// The whole snapshot, for every change.
    Full,
    /// Everything that a change can affect; the whole snapshot repeatedly in the background.
    #[default]
    Changed,
    /// No proof.
    Off,
}

/// Limits of the compiled policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// Memory limit for one snapshot. State that needs more is refused with the heaviest policies named, and the previous
    /// snapshot stays in force. Default: 512MiB.
    pub budget: Option<Bytes>,
}

/// Management access to the machine.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Management {
    /// Interface that ringwall never attaches to.
    pub interface: String,
}

/// Networks of the cluster.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Pod networks.
    #[serde(rename = "podCIDRs")]
    #[schemars(with = "Vec<String>")]
    pub pod_cidrs: Vec<IpNet>,
    /// Node networks.
    #[serde(rename = "nodeCIDRs", default)]
    #[schemars(with = "Vec<String>")]
    pub node_cidrs: Vec<IpNet>,
    /// Service networks.
    #[serde(rename = "serviceCIDRs", default)]
    #[schemars(with = "Vec<String>")]
    pub service_cidrs: Vec<IpNet>,
    /// Traffic from and to addresses in a pod network that belong to no live pod.
    #[serde(default)]
    pub unknown_endpoints: UnknownEndpoints,
    /// Where networks are located: VLAN, wire or interfaces. Networks not listed may be anywhere that sides and routes allow.
    #[serde(default)]
    pub places: Vec<NetworkPlacement>,
}

/// The location of networks. Packets from their addresses drop as `spoofed-source` if they arrive anywhere else. Packets to
/// them drop as `misplaced-destination` on a wire that does not lead there, and as `route-refused` if a route leads elsewhere.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPlacement {
    /// Networks of pods, nodes or other hosts. No address may be in two places.
    #[schemars(with = "Vec<String>")]
    pub networks: Vec<IpNet>,
    /// Name of the wire that they are on, at either end. Default: any wire.
    pub wire: Option<String>,
    /// Names of the interfaces that lead to them, instead of `wire`; on a wire, the ends that they are behind.
    pub interfaces: Option<Vec<String>>,
    /// VLAN on a wire, 1 to 4094, or `untagged`; with two tags, the inner one. Default: any.
    pub vlan: Option<PlacementVlan>,
    /// Outer VLAN of two (IEEE 802.1ad), 1 to 4094. Default: no second tag.
    pub outer_vlan: Option<u16>,
}

/// A VLAN number, or untagged.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a VLAN number or `untagged`")]
pub enum PlacementVlan {
    /// VLAN number.
    Number(u16),
    /// `untagged`.
    Text(String),
}

/// How addresses in a pod network that belong to no pod are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownEndpoints {
    /// Their traffic is dropped.
    #[default]
    Deny,
    /// No policy applies to them.
    Allow,
}

/// Where policy comes from. Set exactly one of `kubeconfig`, `inCluster` and `manifests`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Path of a kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: its current context.
    pub context: Option<String>,
    /// Use the service account of the pod that ringwall runs in.
    pub in_cluster: Option<bool>,
    /// Path of a folder of manifests; a relative path starts at the configuration file's folder.
    pub manifests: Option<PathBuf>,
    /// Raise an alarm if nothing has come from the API server for this long. Default: 15m.
    pub stale_after: Option<Period>,
    /// About how often a full list from the API server is compared with the state built from watches; at least 5m. Default: 1h.
    pub full_list_every: Option<Period>,
    /// Every worker has to adopt a new state within this time; otherwise `/readyz` fails and an alarm is raised.
    /// Default: 30s.
    pub adopt_within: Option<Period>,
    /// At startup, ignore the last snapshot on disk if it was last known to be current longer ago than this. Default: any age.
    pub max_age: Option<Period>,
    /// Start even if no pod in the folder has an address; all pod traffic then counts as traffic of unknown endpoints.
    #[serde(default)]
    pub allow_no_pods: bool,
    /// Longest random delay before the first list.
    pub start_jitter: Option<Period>,
}

/// The packet workers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// CPUs to pin workers to: `auto`, a range such as `2-5,8`, or a list of numbers.
    pub cpus: Option<CpuSet>,
    /// Number of workers. Default: one per CPU listed; one for `auto`.
    pub count: Option<u16>,
    /// What a worker without packets does. Default: adaptive.
    #[serde(default)]
    pub idle_policy: IdlePolicy,
}

/// CPUs, as text or as a list.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`auto`, a CPU list such as `2-5,8`, or a list of CPU numbers"
)]
pub enum CpuSet {
    /// One CPU.
    Number(u16),
    /// CPU numbers.
    Numbers(Vec<u16>),
    /// `auto`, or the kernel's list format.
    Text(String),
}

/// What a worker without packets does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Spins: lowest latency, uses a whole core.
    BusyPoll,
    /// Spins for a while, then sleeps until a packet arrives.
    #[default]
    Adaptive,
}

/// An interface that ringwall attaches to.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: Option<String>,
    /// Pattern (`*`, `?`) for several interfaces, instead of `name`.
    #[serde(rename = "match")]
    pub pattern: Option<String>,
    /// Parent device of a VLAN interface.
    pub parent: Option<String>,
    /// VLAN number.
    pub vlan: Option<u16>,
    /// What it leads to. Default: `uplink`, unless the interface is one end of a wire.
    pub kind: Option<InterfaceKind>,
    /// Whose source addresses may arrive here. Required on a gateway. Default otherwise: `pods` on a `pod` port, `any` on a
    /// node's uplink and the `host` port.
    pub side: Option<Side>,
    /// Receive queues to use: a number, or `all` (the default).
    pub rx_queues: Option<QueueCount>,
    /// Native or generic XDP. Default: auto.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Zero-copy or copy. Default: prefer.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// MTU that the interface must have, in bytes.
    pub mtu: Option<u16>,
}

/// A number of queues, or all of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number of queues or `all`")]
pub enum QueueCount {
    /// This many queues.
    Number(u16),
    /// All queues: `all`.
    Text(String),
}

/// What an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InterfaceKind {
    /// The host's end of a pod's veth pair.
    Pod,
    /// A network with routers, nodes or other machines' pods.
    Uplink,
    /// The path to and from this host's kernel; created if it does not exist.
    Host,
}

/// Whose source addresses may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// Pods and nodes.
    Inside,
    /// Neither pods nor nodes.
    Outside,
    /// Any address.
    Any,
}

/// How source addresses are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AntiSpoofing {
    /// The source fits the interface's `side` and, on a router, the route back.
    #[default]
    Sides,
    /// In addition, packets of a pod or node must carry the Ethernet address of that node: on a router, that of the next hop to
    /// the pod; on a wire, that of the station which answers ARP or neighbour discovery for an address of the Node object.
    /// The wire must therefore be in the nodes' own network. If a node does not answer there, as behind a router, its packets
    /// and those of its pods drop as `neighbour-unresolved`, with an alarm.
    Strict,
    /// Allows `side: any` in mode `enforce`: any host there can then send with any pod's address.
    Off,
}

/// Where the route back to a source must lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ReversePath {
    /// Out of the interface that the packet arrived on, also as one of several equal routes.
    #[default]
    Strict,
    /// Out of any interface: a route must exist.
    Loose,
    /// No check.
    Off,
}

/// What happens on a wire to frames that no policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum L2Action {
    /// They cross the wire.
    Forward,
    /// They are dropped.
    Drop,
    /// They cross only from the end with `side: outside`.
    FromOutside,
    /// They cross only from the end with `side: inside`, `pods` or `nodes`.
    FromInside,
}

/// Frames that no policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum L2Protocol {
    /// ARP. Default: forward.
    Arp,
    /// IPv6 neighbour discovery, but for routers. Default: forward.
    Ndp,
    /// DHCP of clients. Default: forward.
    Dhcp,
    /// DHCP of servers. Default: from-outside.
    DhcpServer,
    /// IPv6 router advertisements and redirects. Default: from-outside.
    RouterAdvertisement,
    /// IPv4 group membership. Default: drop.
    Igmp,
    /// IPv6 multicast listener discovery. Default: forward.
    Mld,
    /// IP to groups. Default: drop.
    Multicast,
    /// Other IPv6 to link-local addresses, such as routing protocols use. Default: drop.
    LinkLocal,
    /// IPv4 to everyone. Default: drop.
    Broadcast,
    /// Link layer discovery. Default: drop.
    Lldp,
    /// Link aggregation. Default: forward.
    Lacp,
    /// Spanning tree. Default: forward.
    Stp,
    /// IEEE 802.3 frames with a length. Default: drop.
    Llc,
    /// PPP over Ethernet. Default: drop.
    Pppoe,
    /// Label switching. Default: drop.
    Mpls,
    /// Any other Ethernet type. Default: drop.
    Other,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// Generic XDP in the kernel: slower, works with every driver.
    Generic,
    /// Native if the driver supports it, otherwise generic.
    #[default]
    Auto,
}

/// Whether the device receives directly into the workers' memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ZeroCopy {
    /// Required: ringwall does not start without it.
    Require,
    /// Used if the device supports it.
    #[default]
    Prefer,
    /// Never used: packets are copied.
    Off,
}

/// What happens to pod traffic while no dataplane runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailMode {
    /// It is dropped.
    #[default]
    Closed,
    /// It passes: to the other end of a wire, or routed by the kernel.
    Open,
}

/// A wire: a pair of interfaces, bridged transparently.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wire {
    /// Its name.
    pub name: String,
    /// Its two ends.
    pub interfaces: Vec<String>,
    /// VLANs whose packets are judged.
    pub vlans: Option<String>,
    /// Whether a link that goes down at one end is taken down at the other.
    pub link_state_propagation: Option<bool>,
    /// What happens to frames that no policy covers; each kind has a default.
    #[serde(default)]
    pub l2_protocols: BTreeMap<L2Protocol, L2Action>,
    /// What happens to pod traffic while no dataplane runs.
    pub fail_mode: Option<FailMode>,
}

/// How the kernel's routes are used.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Routing {
    /// Kernel routing tables to use.
    pub kernel_tables: Option<Vec<String>>,
    /// How one of several equal next hops is chosen.
    pub ecmp: Option<String>,
    /// Where the route back to a source has to lead. Default: strict.
    #[serde(default)]
    pub reverse_path: ReversePath,
    /// Protocols that are left to the kernel.
    pub control_protocols: Option<Vec<String>>,
    /// ICMP errors that ringwall sends.
    pub icmp_errors: Option<IcmpErrors>,
}

/// ICMP errors that ringwall sends.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IcmpErrors {
    /// Rate limit, for example `1000/s`.
    pub rate_limit: Option<String>,
}

/// Traffic that passes whatever policy says.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failsafe {
    /// What passes.
    #[serde(default)]
    pub allow: Vec<FailsafeRule>,
    /// How long a new configuration waits for confirmation before it is reverted.
    pub confirm_timeout: Option<Period>,
}

/// One kind of traffic that passes whatever policy says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailsafeRule {
    /// Sources.
    pub from: Networks,
    /// Destinations.
    pub to: Networks,
    /// TCP, UDP or SCTP. Default: every protocol.
    pub protocol: Option<String>,
    /// Destination ports. Default: every port.
    pub ports: Option<Vec<u16>>,
}

/// Networks: the name of a list in `cluster`, or the networks themselves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`nodeCIDRs`, `podCIDRs`, `serviceCIDRs` or a list of networks"
)]
pub enum Networks {
    /// Name of a list in `cluster`.
    Named(String),
    /// Networks.
    Listed(#[schemars(with = "Vec<String>")] Vec<IpNet>),
}

/// Overlay tunnels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Overlay {
    /// Whether policy decides about tunnel packets sent by pods, and about those sent to nodes by hosts that are not nodes. What
    /// is inside of these is not inspected. Default: drop.
    #[serde(default)]
    pub from_pods: TunnelAction,
    /// UDP ports where nodes unpack tunnels. Those in none of the lists below cannot be inspected. Default: 4789, 6081, 8285,
    /// 8472, and the ports of the lists below.
    pub ports: Option<Vec<u16>>,
    /// UDP ports of VXLAN. Default: 4789 and 8472, unless `ports` leaves them out.
    pub vxlan_ports: Option<Vec<u16>>,
    /// UDP ports of Geneve. Default: 6081, unless `ports` leaves it out.
    pub geneve_ports: Option<Vec<u16>>,
    /// UDP ports of Flannel's `udp` backend. Default: 8285, unless `ports` leaves it out.
    pub flannel_ports: Option<Vec<u16>>,
    /// Whether IP in IP between nodes is inspected, IPv4 and IPv6 in either. Default: true.
    pub ipip: Option<bool>,
    /// Whether GRE between nodes is inspected. Default: true.
    pub gre: Option<bool>,
    /// What happens to tunnels between nodes that cannot be inspected: WireGuard, IPsec, L2TP and other encapsulations, ports
    /// without a kind. Default: deny.
    #[serde(default)]
    pub opaque: OpaqueTunnels,
    /// The networks (VNI) of VXLAN and Geneve between nodes. Packets of others drop. Default: any.
    pub networks: Option<Vec<OverlayNetwork>>,
}

/// A network of VXLAN or Geneve.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverlayNetwork {
    /// Its identifier, 0 to 16777215.
    pub vni: u32,
    /// Its address space: flows of one do not answer those of another. Default: 0, that of packets without tunnels.
    #[serde(default)]
    pub zone: u32,
}

/// What happens to tunnels that cannot be inspected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OpaqueTunnels {
    /// They are dropped.
    #[default]
    Deny,
    /// They pass, like anything else between nodes.
    Allow,
    /// They pass, with an alarm.
    Alarm,
}

/// What happens to tunnel packets from pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TunnelAction {
    /// They are dropped.
    #[default]
    Drop,
    /// Policy decides.
    Allow,
}

/// Flow table.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conntrack {
    /// Maximum number of flows. Default: 262144.
    pub max_entries: Option<u32>,
    /// How TCP connections whose beginning was not seen are treated.
    #[serde(default)]
    pub tcp_midstream: Midstream,
    /// Which resets and FINs end a flow.
    #[serde(default)]
    pub tcp: TcpTracking,
    /// How long `pickup` lasts after a start without inherited flows. Default: 120s.
    pub pickup_window: Option<Period>,
    /// How long an idle flow is kept.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// How TCP connections whose beginning was not seen are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Midstream {
    /// Judged as new. For a while after a start without inherited flows, answers to allowed segments also pass.
    #[default]
    Pickup,
    /// As `pickup`; during that time, a segment also passes if it could be an answer on an allowed connection that was not seen.
    /// A pod that may only accept connections can then send to anyone.
    PickupAnswers,
    /// Always judged as new.
    Strict,
}

/// Which resets and FINs end a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TcpTracking {
    /// Those with a sequence number inside the window, as an end of the connection would send.
    #[default]
    Strict,
    /// All, for gateways that see only one direction of connections.
    Loose,
}

/// How long an idle flow is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// TCP until both ends have sent. Default: 30s.
    pub tcp_opening: Option<Period>,
    /// Established TCP. Default: 12h.
    pub tcp_established: Option<Period>,
    /// TCP after FIN or RST. Default: 60s.
    pub tcp_closing: Option<Period>,
    /// UDP without an answer. Default: 30s.
    pub udp_new: Option<Period>,
    /// UDP with an answer. Default: 120s.
    pub udp_answered: Option<Period>,
    /// ICMP echo. Default: 30s.
    pub icmp: Option<Period>,
    /// SCTP. Default: 1h.
    pub sctp: Option<Period>,
    /// Everything else. Default: 5m.
    pub other: Option<Period>,
}

/// Flow log.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logging {
    /// File to write to.
    pub file: Option<PathBuf>,
    /// Share of denied flows to log: `all`, `none` or a fraction such as `1/1000`.
    pub denied: Option<String>,
    /// Share of allowed flows to log, likewise.
    pub allowed: Option<String>,
    /// Address of an IPFIX collector.
    pub ipfix: Option<String>,
}

/// Metrics and health.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Telemetry {
    /// Listen address of `/metrics`; `:9469` listens on every address. Default: 127.0.0.1:9469.
    pub metrics_listen: Option<String>,
    /// Listen address of `/livez` and `/readyz`. Default: the same as `metricsListen`.
    pub health_listen: Option<String>,
}

/// Packet memory.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Umem {
    /// Frames per queue of a `pod` port.
    pub frames_per_pod_port: Option<u32>,
    /// Memory limit for all UMEMs together.
    pub total: Option<Bytes>,
}
