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
    /// A gateway between networks, or a firewall on a node.
    pub kind: Kind,
    /// Name of this installation; `${VARIABLE}` takes it from the environment.
    pub name: String,
    /// Whether verdicts are enforced.
    #[serde(default)]
    pub mode: Mode,
    /// The machine's own access.
    pub management: Option<Management>,
    /// What is proven of a compiled policy before it is published.
    #[serde(default)]
    pub verify: Verification,
    /// The compiled policy.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// Networks of the cluster.
    pub cluster: Cluster,
    /// Where policy comes from.
    pub source: Source,
    /// The packet workers.
    #[serde(default)]
    pub workers: Workers,
    /// Interfaces that ringwall takes over.
    pub interfaces: Vec<Interface>,
    /// Pairs of interfaces of a transparent gateway; without them packets are routed.
    pub wires: Option<Vec<Wire>>,
    /// How a routed gateway or node takes routes.
    pub routing: Option<Routing>,
    /// What happens to pod traffic while no dataplane runs.
    pub fail_mode: Option<FailMode>,
    /// Traffic that passes before any policy.
    pub failsafe: Option<Failsafe>,
    /// What happens to node addresses that hide pods.
    pub masqueraded_sources: Option<String>,
    /// Tunnels.
    pub overlay: Option<Overlay>,
    /// What is asked of a source address besides policy.
    #[serde(default)]
    pub anti_spoofing: AntiSpoofing,
    /// Flow table.
    #[serde(default)]
    pub conntrack: Conntrack,
    /// Flow logs.
    pub logging: Option<Logging>,
    /// Metrics and health.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// How a node learns which interface is which pod's.
    pub endpoint_discovery: Option<String>,
    /// What happens to pod traffic of the kernel.
    pub kernel_path: Option<String>,
    /// What happens to a pod before it is in an adopted snapshot.
    pub pod_start: Option<String>,
    /// Packet memory.
    #[serde(default)]
    pub umem: Umem,
    /// The process that reads policies.
    #[serde(default)]
    pub control: Control,
    /// Sockets, flow table and lock; on a tmpfs. Default: `/run/ringwall/NAME`.
    pub runtime_dir: Option<PathBuf>,
    /// Last snapshot and epoch key. Default: `/var/lib/ringwall/NAME`.
    pub state_dir: Option<PathBuf>,
    /// Mount point of the BPF file system. Default: `/sys/fs/bpf`.
    pub bpffs: Option<PathBuf>,
}

/// The process that reads policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Control {
    /// Name or number of the user that it runs as, without capabilities; it has to be able to read the kubeconfig with what that
    /// names, or the folder of manifests. Default: the user `ringwall`, a number of its own where there is no such user, or the
    /// owner of a kubeconfig that names a program for credentials. Where that user cannot read them, it keeps the capability
    /// to read, behind Landlock.
    pub user: Option<User>,
}

/// A user of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum User {
    /// Number.
    Id(u32),
    /// Name.
    Name(String),
}

/// Versions of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only one yet.
    #[serde(rename = "ringwall.io/v1alpha1")]
    V1Alpha1,
}

/// What ringwall is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Kind {
    /// A box between networks.
    Gateway,
    /// A firewall on a Kubernetes node.
    Node,
}

/// What becomes of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Judge and count, forward all.
    Audit,
    /// Drop what policy denies.
    #[default]
    Enforce,
}

/// What is proven, in a word or in full.
#[derive(Clone, Copy, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Verification {
    /// With the usual deadline.
    Word(Verify),
    /// In full.
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

/// What is proven, and what happens where that takes long.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifyInFull {
    /// What is proven of a compiled policy before it is published. Default: changed.
    #[serde(default)]
    pub proof: Verify,
    /// How long a proof may take. Default: 30s.
    pub deadline: Option<Period>,
    /// What happens to a policy whose proof takes longer. Default: hold.
    #[serde(default)]
    pub on_deadline: OnDeadline,
}

/// What happens to a policy whose proof takes longer than its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDeadline {
    /// It waits for the proof; the policy before stays in force, with an alarm.
    #[default]
    Hold,
    /// It is published, with an alarm, and proven afterwards.
    Publish,
}

/// What is proven of a compiled policy before it is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Verify {
    /// All of it, each time.
    Full,
    /// All that a change can have touched; the whole, over and over, in the background.
    #[default]
    Changed,
    /// Nothing.
    Off,
}

/// The compiled policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// The most memory of one snapshot. A policy that needs more is refused, with the heaviest policies named, and the
    /// snapshot before stays in force. Default: 512MiB.
    pub budget: Option<Bytes>,
}

/// The machine's own access.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Management {
    /// Interface that is never taken over.
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
    /// Traffic of addresses in a pod network that no live pod has.
    #[serde(default)]
    pub unknown_endpoints: UnknownEndpoints,
    /// Where networks are: in which VLAN, on which wire, behind which interfaces. Networks that are not here may be
    /// wherever sides and routes let them.
    #[serde(default)]
    pub places: Vec<Place>,
}

/// Where networks are. Packets from their addresses drop as `spoofed-source` anywhere else; packets to them drop as
/// `misplaced-destination` on a wire that does not lead there, and as `route-refused` where a route leads elsewhere.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// Networks of pods, nodes or anybody else. No two places have an address in common.
    #[schemars(with = "Vec<String>")]
    pub networks: Vec<IpNet>,
    /// Name of the wire that they are on, at either end. Default: any wire.
    pub wire: Option<String>,
    /// Names of the interfaces that lead to them, instead of a wire: of a wire, the ends that they are behind.
    pub interfaces: Option<Vec<String>>,
    /// VLAN that they are in on a wire, 1 to 4094, or `untagged`; of two tags the inner one. Default: any.
    pub vlan: Option<PlaceVlan>,
    /// Outer VLAN of two (IEEE 802.1ad), 1 to 4094. Default: frames have no second tag.
    pub outer_vlan: Option<u16>,
}

/// A VLAN, or none.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a VLAN number or `untagged`")]
pub enum PlaceVlan {
    /// Its number.
    Number(u16),
    /// `untagged`.
    Text(String),
}

/// What happens to addresses in a pod network that nobody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownEndpoints {
    /// Dropped.
    #[default]
    Deny,
    /// Treated as open.
    Allow,
}

/// Where policy comes from: exactly one of `kubeconfig`, `inCluster` and `manifests`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it.
    pub context: Option<String>,
    /// The cluster that this runs in.
    pub in_cluster: Option<bool>,
    /// A folder of manifests; a relative path starts at the configuration file.
    pub manifests: Option<PathBuf>,
    /// Alarm after this long without word from the API server. Default: 15m.
    pub stale_after: Option<Period>,
    /// How often, about, a full list of the API server is compared with what its watches said; at least 5m. Default: 1h.
    pub full_list_every: Option<Period>,
    /// A state of the source has to be adopted by every worker within this time, else `/readyz` fails and an alarm is
    /// raised. Default: 30s.
    pub adopt_within: Option<Period>,
    /// At a start, a last snapshot that was last known to be current longer ago than this is not used. Default: any age.
    pub max_age: Option<Period>,
    /// Start with a folder in which no pod has an address: all traffic of pods is that of unknown endpoints then.
    #[serde(default)]
    pub allow_no_pods: bool,
    /// Longest random wait before the first list.
    pub start_jitter: Option<Period>,
}

/// The packet workers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// `auto`, or CPUs as `2-5,8` or a list of numbers.
    pub cpus: Option<CpuSet>,
    /// How many workers. Default: one per CPU; one for `auto`.
    pub count: Option<u16>,
    /// What a worker does that has nothing to do. Default: adaptive.
    #[serde(default)]
    pub idle_policy: IdlePolicy,
}

/// CPUs, in text or as a list.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`auto`, a CPU list such as `2-5,8`, or a list of CPU numbers"
)]
pub enum CpuSet {
    /// One number.
    Number(u16),
    /// Numbers.
    Numbers(Vec<u16>),
    /// `auto` or the kernel's notation.
    Text(String),
}

/// What an idle worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Spins: lowest latency, a whole core.
    BusyPoll,
    /// Spins a while, then sleeps until a packet comes.
    #[default]
    Adaptive,
}

/// An interface that ringwall takes over.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: Option<String>,
    /// A pattern of names (`*`, `?`), instead of a name.
    #[serde(rename = "match")]
    pub pattern: Option<String>,
    /// The interface that a VLAN interface is made of.
    pub parent: Option<String>,
    /// VLAN number.
    pub vlan: Option<u16>,
    /// What it leads to; `uplink` where absent and the interface is no end of a wire.
    pub kind: Option<InterfaceKind>,
    /// Whose source addresses may come in. Pods on a `pod` port; any on a node's uplink and the `host` port; a gateway has to
    /// say it.
    pub side: Option<Side>,
    /// Receive queues taken: a number, or `all` (the default).
    pub rx_queues: Option<QueueCount>,
    /// Native or generic XDP. Default: auto.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Zero-copy or copy. Default: prefer.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// MTU to expect, in bytes.
    pub mtu: Option<u16>,
}

/// A number of queues, or all.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number of queues or `all`")]
pub enum QueueCount {
    /// This many.
    Number(u16),
    /// `all`.
    Text(String),
}

/// What an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InterfaceKind {
    /// The host's end of one pod's veth.
    Pod,
    /// A network with routers, nodes or pods elsewhere.
    Uplink,
    /// The way to and from the kernel of this host; made where it does not exist.
    Host,
}

/// Whose source addresses may come in.
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
    /// Everyone.
    Any,
}

/// What is asked of a source address besides policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AntiSpoofing {
    /// It fits the `side` of its interface and, on a router, the route back.
    #[default]
    Sides,
    /// A pod's packets also bear the Ethernet address of its node: on a router that of the next hop to the pod, on a wire that
    /// of the station which answers for an address of its Node object by ARP or neighbour discovery, and a node's packets
    /// likewise. A wire has to be in the network of the nodes for that: the packets of a node that says nothing there, as
    /// behind a router, and of its pods drop as `neighbour-unresolved`, with an alarm.
    Strict,
    /// Interfaces of `side: any` are accepted where verdicts are enforced: whoever is there can send as any pod.
    Off,
}

/// Where the route back to a source has to lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ReversePath {
    /// Out of the interface that the packet came in by, or by one of several ways there.
    #[default]
    Strict,
    /// Anywhere.
    Loose,
    /// Nothing is asked.
    Off,
}

/// What happens on a wire to frames that no policy speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum L2Action {
    /// They cross.
    Forward,
    /// They end.
    Drop,
    /// They cross from the end of `side: outside` to the other one.
    FromOutside,
    /// They cross from the end of `side: inside`, `pods` or `nodes` to the other one.
    FromInside,
}

/// Frames that no policy speaks about.
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
    /// By the driver.
    Native,
    /// By the kernel's general path: slow, works everywhere.
    Generic,
    /// Native, or generic where the driver cannot.
    #[default]
    Auto,
}

/// Whether packets are received into the workers' memory directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ZeroCopy {
    /// Refuse to start without.
    Require,
    /// Where the device can.
    #[default]
    Prefer,
    /// Copy.
    Off,
}

/// What happens to pod traffic while no dataplane runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailMode {
    /// It is dropped.
    #[default]
    Closed,
    /// It passes: a wire to its other end, routed by the kernel.
    Open,
}

/// A pair of interfaces.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wire {
    /// Its name.
    pub name: String,
    /// Its two ends.
    pub interfaces: Vec<String>,
    /// Which VLANs are judged.
    pub vlans: Option<String>,
    /// Whether one end going down takes the other down.
    pub link_state_propagation: Option<bool>,
    /// What happens to frames that no policy speaks about; each kind has a default.
    #[serde(default)]
    pub l2_protocols: BTreeMap<L2Protocol, L2Action>,
    /// What happens to pod traffic while no dataplane runs.
    pub fail_mode: Option<FailMode>,
}

/// How routes are taken from the kernel.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Routing {
    /// Routing tables that are mirrored.
    pub kernel_tables: Option<Vec<String>>,
    /// What one of several next hops is chosen by.
    pub ecmp: Option<String>,
    /// Where the route back to a source has to lead. Default: strict.
    #[serde(default)]
    pub reverse_path: ReversePath,
    /// Protocols that stay with the kernel.
    pub control_protocols: Option<Vec<String>>,
    /// ICMP errors that ringwall sends.
    pub icmp_errors: Option<IcmpErrors>,
}

/// ICMP errors that ringwall sends.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IcmpErrors {
    /// The most of them, such as `1000/s`.
    pub rate_limit: Option<String>,
}

/// Traffic that passes before any policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failsafe {
    /// What passes.
    #[serde(default)]
    pub allow: Vec<FailsafeRule>,
    /// How long a new configuration waits for confirmation before it is taken back.
    pub confirm_timeout: Option<Period>,
}

/// One kind of traffic that passes before any policy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailsafeRule {
    /// From where.
    pub from: Networks,
    /// To where.
    pub to: Networks,
    /// TCP, UDP, SCTP.
    pub protocol: Option<String>,
    /// Destination ports.
    pub ports: Option<Vec<u16>>,
}

/// Networks, by the name of a list in `cluster` or written out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`nodeCIDRs`, `podCIDRs`, `serviceCIDRs` or a list of networks"
)]
pub enum Networks {
    /// A list in `cluster`.
    Named(String),
    /// Networks.
    Listed(#[schemars(with = "Vec<String>")] Vec<IpNet>),
}

/// Tunnels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Overlay {
    /// Whether pods may send into tunnels, and others than nodes into those of nodes, as far as policy allows. What is
    /// inside is not looked into. Default: drop.
    #[serde(default)]
    pub from_pods: TunnelAction,
    /// UDP ports where nodes unpack tunnels. Default: 4789, 6081, 8285, 8472.
    pub ports: Option<Vec<u16>>,
    /// UDP ports of VXLAN.
    pub vxlan_ports: Option<Vec<u16>>,
    /// Whether IP in IP is looked into.
    pub ipip: Option<bool>,
    /// What happens to tunnels that cannot be looked into.
    pub opaque: Option<String>,
}

/// What happens to tunnels of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TunnelAction {
    /// They drop.
    #[default]
    Drop,
    /// Policy decides.
    Allow,
}

/// Flow table.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conntrack {
    /// Most flows at a time. Default: 262144.
    pub max_entries: Option<u32>,
    /// TCP without a seen beginning.
    #[serde(default)]
    pub tcp_midstream: Midstream,
    /// Which resets and FINs are believed.
    #[serde(default)]
    pub tcp: TcpTracking,
    /// How long after a start without inherited flows `pickup` lasts. Default: 120s.
    pub pickup_window: Option<Period>,
    /// How long a silent flow is kept.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// What happens to TCP whose beginning was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Midstream {
    /// Judged as new. For a while after a start without inherited flows, what answers an allowed segment passes, too.
    #[default]
    Pickup,
    /// As `pickup`, and in that time a segment passes also if it would be an answer to an allowed connection that has not
    /// been seen: a pod that may only be talked to can then talk to everyone.
    PickupAnswers,
    /// Judged as new, always.
    Strict,
}

/// Which resets and FINs end a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TcpTracking {
    /// Those that their sequence numbers show to be of an end of the connection.
    #[default]
    Strict,
    /// All: where only one direction of connections comes by here.
    Loose,
}

/// How long a silent flow is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// TCP before both sides have spoken. Default: 30s.
    pub tcp_opening: Option<Period>,
    /// TCP, open. Default: 12h.
    pub tcp_established: Option<Period>,
    /// TCP after FIN or RST. Default: 60s.
    pub tcp_closing: Option<Period>,
    /// UDP that has not been answered. Default: 30s.
    pub udp_new: Option<Period>,
    /// UDP that has been answered. Default: 120s.
    pub udp_answered: Option<Period>,
    /// ICMP echo. Default: 30s.
    pub icmp: Option<Period>,
    /// SCTP. Default: 1h.
    pub sctp: Option<Period>,
    /// Everything else. Default: 5m.
    pub other: Option<Period>,
}

/// Flow logs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logging {
    /// File that they go to.
    pub file: Option<PathBuf>,
    /// Share of denied flows: `all`, `none` or a fraction such as `1/1000`.
    pub denied: Option<String>,
    /// Share of allowed flows.
    pub allowed: Option<String>,
    /// IPFIX collector.
    pub ipfix: Option<String>,
}

/// Metrics and health.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Telemetry {
    /// Address of `/metrics`; `:9469` is every address. Default: 127.0.0.1:9469.
    pub metrics_listen: Option<String>,
    /// Address of `/livez` and `/readyz`. Default: with the metrics.
    pub health_listen: Option<String>,
}

/// Packet memory.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Umem {
    /// Frames for each queue of a `pod` port.
    pub frames_per_pod_port: Option<u32>,
    /// The most memory of all UMEMs together.
    pub total: Option<Bytes>,
}
