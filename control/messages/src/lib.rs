//! What the control process and the dataplane process say to each other.
//!
//! The dataplane listens on [`DATAPLANE_SOCKET`] in the runtime directory: a Unix socket of type SOCK_SEQPACKET, mode
//! 0600. A message is one JSON object in one datagram; its key `type` names it. [`Connection`] is one end of it. At
//! most one file descriptor travels with a message (SCM_RIGHTS): the sealed memfd that holds a snapshot image.
//!
//! ```text
//! control                          dataplane
//! Hello{version}               ->
//!                              <-  Hello{version, generation, hash, workers, podStarts}
//! Publish{generation,..} + fd  ->                                     (the whole image, or a delta to `base`)
//!                              <-  Accepted{generation} | Refused{generation, reason}
//!                              <-  Adopted{generation, micros}       (once every worker has moved to it)
//! Current{generation}          ->                                     (no answer)
//! Status                       ->
//!                              <-  Status{..}
//! Flows{filter, cursor}        ->
//!                              <-  Flows{page}
//! ```
//!
//! Any number of clients may be connected; answers go to the one that asked. `Adopted` may come between a question and
//! its answer. The dataplane refuses a generation that is not above its own, an image that it cannot validate and a delta to
//! an image that it has not; it then goes on with what it has. Whoever sent a delta sends the whole image next. Nothing that arrives here makes either end panic: an unreadable message ends the
//! connection.
#![forbid(unsafe_code)]

pub mod client;
pub mod cni;
mod flows;
mod socket;
mod supervision;

use std::{collections::BTreeMap, fmt, net::IpAddr};

pub use flows::{FlowCursor, FlowFilter, FlowPage, LiveDrop, LiveEnds, LiveFlow, LiveRecord, PAGE_RECORDS};
use ringwall_policy::Cluster;
use serde::{Deserialize, Serialize};
pub use socket::{Connection, Listener, ProtocolError, Received, image_memfd, read_image};
pub use supervision::{
    ChildReport, Lifeline, REPORT_INTERVAL, SUPERVISION_VERSION, SupervisorOrder, UpgradeAnswer,
    UpgradeOutcome, UpgradeRequest, UpgradeStatus,
};

/// Version of the messages; both ends must have the same.
pub const VERSION: u32 = if cfg!(feature = "neighbour") { 1004 } else { 4 };

/// Version of this program.
pub const RELEASE: &str = if cfg!(feature = "neighbour") {
    concat!(env!("CARGO_PKG_VERSION"), "+neighbour")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Name of the dataplane's socket in the runtime directory.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";

/// Name of the control process's HTTP socket in the runtime directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Name of the supervisor's socket in the runtime directory, for [`UpgradeRequest`].
pub const SUPERVISOR_SOCKET: &str = "supervisor.sock";

/// Name of the file in the runtime directory where the supervisor keeps [`Supervision`].
pub const SUPERVISION_FILE: &str = "supervision.json";

/// Largest image that is accepted, in bytes.
pub const MAX_IMAGE: u64 = 1 << 30;

/// From control (or `ringwall status`) to the dataplane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Request {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Take over the snapshot in, or by, the memfd that comes with this message.
    Publish {
        /// Its generation; above every one before.
        generation: u64,
        /// Canonical hash of its content.
        hash: ContentHash,
        /// Bytes in the memfd.
        bytes: u64,
        /// The memfd holds a delta to the image of this generation; None: a whole image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<u64>,
        /// The cluster that it was made from, where the source says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterUid>,
    },
    /// The snapshot of this generation is what the source says now. No answer.
    Current {
        /// Its generation.
        generation: u64,
        /// As in [`Request::Publish`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterUid>,
    },
    /// Say how it is going.
    Status,
    /// Show flows and recent drops.
    Flows {
        /// Which.
        filter: FlowFilter,
        /// Where the answer before ended; None to begin with.
        cursor: Option<FlowCursor>,
    },
}

/// From the dataplane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Generation of the newest accepted snapshot; 0 for none.
        generation: u64,
        /// Its canonical hash.
        hash: Option<ContentHash>,
        /// The cluster that it was made from, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterUid>,
        /// How many workers run.
        workers: u32,
        /// The pods of this node that the CNI plugin started, with the addresses that policies are to know them by
        /// (`podStart: hold`).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pod_starts: Vec<cni::PodStart>,
    },
    /// To [`Request::Publish`]: the image is valid and the workers are being told.
    Accepted {
        /// Of the snapshot.
        generation: u64,
    },
    /// To [`Request::Publish`]: nothing changed.
    Refused {
        /// Of the snapshot.
        generation: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Every worker decides by this snapshot now. Goes to the connection that published it.
    Adopted {
        /// Of the snapshot.
        generation: u64,
        /// From the arrival of [`Request::Publish`] to the adoption by the last worker, in microseconds.
        micros: u64,
    },
    /// To [`Request::Status`].
    Status {
        /// The state.
        status: Box<DataplaneStatus>,
    },
    /// To [`Request::Flows`].
    Flows {
        /// The records.
        page: Box<FlowPage>,
    },
    /// To a message that could not be served; the connection ends.
    Error {
        /// Why.
        message: String,
    },
}

/// Canonical hash of a snapshot's content; 64 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ContentHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("a content hash is 64 hexadecimal digits, not {text:?}");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ContentHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Which cluster an API server serves, wherever it is: the UID of its namespace `kube-system`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterUid(String);

impl ClusterUid {
    /// Longest one, in bytes; a UUID has 36.
    pub const MAX_BYTES: usize = 64;
}

impl fmt::Display for ClusterUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ClusterUid> for String {
    fn from(uid: ClusterUid) -> Self {
        uid.0
    }
}

impl TryFrom<String> for ClusterUid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(letters) {
            return Ok(Self(text));
        }
        Err(format!(
            "a UID is 1 to {} letters, digits and dashes, not {text:?}",
            Self::MAX_BYTES
        ))
    }
}

/// State of the dataplane process. Counters count from the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneStatus {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_seconds: f64,
    /// What decides.
    pub snapshot: SnapshotStatus,
    /// By number.
    pub workers: Vec<WorkerStatus>,
    /// In order of the configuration.
    pub ports: Vec<PortStatus>,
    /// Dropped packets by reason (`DropReason::name`), all workers together. Reasons with 0 may be absent. `port-not-guarded` is
    /// what the kernel dropped of interfaces of pods whose programs were not attached yet. On a node, what the programs in the kernel
    /// dropped is here too, under the names of [`NodeStatus::outcomes`]. Neither is part of `frames`.
    pub drops: BTreeMap<String, u64>,
    /// Of those that policy denied: how many were answered.
    pub answers: AnswerCounts,
    /// Packets judged inside of tunnels, by the kind of the innermost one: `vxlan`, `geneve`, `flannel-udp`, `ipip`, `gre`. Empty on a node, whose
    /// kernel has taken tunnels off.
    pub tunnelled: BTreeMap<String, u64>,
    /// The flow tables, all shards together.
    pub flows: FlowStatus,
    /// Where the received frames went, all workers together.
    pub frames: FrameAccounts,
    /// The kernel's path, if that is guarded instead of ports (`datapath: kernel`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeStatus>,
    /// What is not as it should be, in words; empty when all is well.
    pub alarms: Vec<String>,
}

/// Denied packets whose sender was to get an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnswerCounts {
    /// Those that were answered.
    pub sent: u64,
    /// Those that were not, since their sender had got too many.
    pub limited: u64,
}

/// A node whose kernel forwards.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// The interfaces that carry programs, by index.
    pub interfaces: Vec<GuardedInterface>,
    /// What became of packets, in the kernel's programs: each packet has one outcome in each program that it passes. Since the
    /// programs were loaded, which restarts of the process outlive.
    pub outcomes: BTreeMap<String, u64>,
    /// Decisions that the programs know.
    pub cached: u64,
    /// How many they have room for.
    pub cache_capacity: u64,
}

/// An interface of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuardedInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// `pod`, `bridge` or `other`.
    pub kind: String,
    /// What the pod behind it may call itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// The snapshot that the dataplane decides by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    /// Newest accepted generation; 0 for none.
    pub generation: u64,
    /// Its canonical hash.
    pub hash: Option<ContentHash>,
    /// Size of its image in bytes.
    pub bytes: u64,
    /// Where it came from.
    pub origin: SnapshotOrigin,
    /// The cluster that it was made from: the UID of the namespace `kube-system`. None for a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterUid>,
    /// Seconds since it was last known to be what the source says; of one from the disk.
    pub age_seconds: Option<f64>,
    /// From arrival to adoption by the last worker, in microseconds; None while a worker has not moved yet.
    pub adoption_micros: Option<u64>,
    /// Generations accepted.
    pub accepted: u64,
    /// Generations refused.
    pub refused: u64,
}

/// Where the dataplane has its snapshot from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotOrigin {
    /// It has none.
    #[default]
    None,
    /// The state directory, at start.
    Disk,
    /// Published by control, or found at start and confirmed by it.
    Control,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// The CPU it is pinned to.
    pub cpu: Option<u32>,
    /// The generation it adopted last.
    pub generation: u64,
    /// Frames received.
    pub received: u64,
    /// Frames handed over to other workers.
    pub handed_over: u64,
    /// Bursts that were not empty.
    pub bursts: u64,
    /// Whether it answers; false once the watchdog has given it up.
    pub alive: bool,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortStatus {
    /// The interface.
    pub name: String,
    /// `wire`, `pod`, `uplink` or `host`.
    pub kind: String,
    /// `pods`, `nodes`, `inside`, `outside` or `any`.
    pub side: String,
    /// Kernel driver, where known.
    pub driver: Option<String>,
    /// `native` or `generic`: how the XDP program is attached.
    pub xdp: String,
    /// Whether the device reads and writes our frames itself; else the kernel copies.
    pub zero_copy: bool,
    /// Receive queues in use.
    pub queues: u32,
    /// Largest layer 3 packet in bytes.
    pub mtu: u32,
    /// Whether the interface is there and up, and the sockets are bound.
    pub up: bool,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that the XDP program passed to the kernel.
    pub to_kernel: u64,
    /// Frames that the XDP program treated by the fail mode, because no worker listened.
    pub fail_mode: u64,
    /// Packets of the kernel that the egress guard stopped or redirected to the host port.
    pub guarded: u64,
    /// What the kernel counted as lost before a worker saw it (full rings, no frames).
    pub rx_lost: u64,
    /// What is wrong with it, in words.
    pub problem: Option<String>,
}

/// The flow tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowStatus {
    /// Entries in use.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
    /// Entries that have seen one direction only.
    pub half_open: u64,
    /// How many of those may be.
    pub half_open_limit: u64,
    /// Entries made.
    pub created: u64,
    /// Entries that timed out or closed.
    pub expired: u64,
    /// Entries cut because the policy changed.
    pub revoked: u64,
    /// Entries judged again because the policy changed, and still allowed.
    pub rejudged: u64,
    /// Entries whose ends were looked up again after a change, which was not about them.
    pub restamped: u64,
    /// Entries made from the middle of a TCP connection after a start (SEMANTICS 60).
    pub picked_up: u64,
    /// Entries taken over from the process before.
    pub inherited: u64,
}

/// Where frames went. `received + generated = forwarded + dropped + held` at rest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrameAccounts {
    /// Frames received by workers.
    pub received: u64,
    /// Frames that the dataplane made itself (ICMP errors, neighbour probes).
    pub generated: u64,
    /// Frames sent.
    pub forwarded: u64,
    /// Frames dropped, all reasons together.
    pub dropped: u64,
    /// Frames waiting for a neighbour or for a fragment now.
    pub held: u64,
    /// Frames that the XDP program passed to the kernel.
    pub to_kernel: u64,
    /// Frames lost before a worker saw them.
    pub lost: u64,
    /// Frames that all pools own.
    pub pool_frames: u64,
    /// Frames free in the pools now.
    pub pool_free: u64,
}

/// How often the supervisor had to start its processes again. Kept in [`SUPERVISION_FILE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Supervision {
    /// Version of the supervisor's program.
    pub version: String,
    /// The upgrade that runs, or the last one.
    pub upgrade: Option<UpgradeStatus>,
    /// Of the dataplane, since `ringwall run` was started.
    pub dataplane_restarts: u64,
    /// Of control, since `ringwall run` was started.
    pub control_restarts: u64,
    /// Process id of the dataplane that stands by, to replace one that ends.
    pub dataplane_standby: Option<u32>,
    /// How the dataplane ended last, in words.
    pub dataplane_last_exit: Option<String>,
    /// How control ended last, in words.
    pub control_last_exit: Option<String>,
}

/// What `GET /v1/status` on the control socket answers, and `ringwall status` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Of the configuration.
    pub name: String,
    /// The control process; None where it could not be asked.
    pub control: Option<ControlStatus>,
    /// The dataplane process; None where it could not be asked.
    pub dataplane: Option<DataplaneStatus>,
    /// Restarts; None where the supervisor left no word.
    pub supervision: Option<Supervision>,
}

/// State of the control process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ControlStatus {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_seconds: f64,
    /// Whether the policy in force is the one of a synced source.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready: Vec<String>,
    /// Where objects come from.
    pub source: SourceStatus,
    /// How many objects the state holds.
    pub objects: ObjectCounts,
    /// Objects that are faulty.
    pub problems: Vec<ObjectProblem>,
    /// Policy kinds that are present and not evaluated, as `kind.group`.
    pub incomplete: Vec<String>,
    /// The snapshot compiled last.
    pub snapshot: CompiledStatus,
    /// What is proven of snapshots.
    pub proof: ProofStatus,
    /// The line to the dataplane.
    pub publication: PublicationStatus,
    /// What needs somebody's attention, in words; empty when all is well.
    pub alarms: Vec<String>,
}

/// A source of objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// `folder` or `kubernetes`.
    pub kind: String,
    /// The folder, or the API server's address.
    pub location: String,
    /// Whether a complete state has been seen and nothing is known to be missing from it now.
    pub synced: bool,
    /// Seconds since the source last said anything; None before it did.
    pub last_event_seconds: Option<f64>,
    /// Seconds since the state was last known to be current; None while it is.
    pub stale_seconds: Option<f64>,
    /// Whether it is stale for longer than `staleAfter`.
    pub stale: bool,
    /// Complete states handed on.
    pub states: u64,
    /// Events seen.
    pub events: u64,
    /// Lists fetched again, first ones not counted.
    pub relists: u64,
    /// Errors of the source.
    pub errors: u64,
    /// The latest error, in words.
    pub last_error: Option<String>,
    /// Seconds since then.
    pub last_error_seconds: Option<f64>,
    /// How often credentials were read again.
    pub renewals: u64,
    /// How often a watch was compared with a full list.
    pub full_lists: u64,
    /// Objects that were not in a full list as the watch had said.
    pub differences: u64,
    /// Policies that are gone and stay in force until their namespace is gone with its pods.
    pub held_policies: u64,
    /// Why the newest state of the source is not taken; None where it is.
    pub held_back: Option<String>,
    /// Each watch; empty for a folder.
    pub watches: Vec<WatchStatus>,
}

/// One watch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchStatus {
    /// Such as `networkpolicies.networking.k8s.io`.
    pub resource: String,
    /// Whether its first list has come.
    pub synced: bool,
    /// Whether it is connected, as far as known.
    pub connected: bool,
    /// The newest version that it has seen; None while it lists.
    pub version: Option<u64>,
    /// Objects it holds.
    pub objects: u64,
    /// Events seen.
    pub events: u64,
    /// Lists fetched again.
    pub relists: u64,
    /// Errors.
    pub errors: u64,
    /// The latest error, in words.
    pub last_error: Option<String>,
}

/// How many objects the state holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectCounts {
    /// Namespaces.
    pub namespaces: u64,
    /// Nodes.
    pub nodes: u64,
    /// Pods and workload templates.
    pub pods: u64,
    /// NetworkPolicies.
    pub policies: u64,
    /// Policies whose rules decide in order: ClusterNetworkPolicies and their predecessors, and those of Calico.
    pub cluster_policies: u64,
    /// Policies that are staged: nothing is enforced of them, and no other count has them.
    pub staged_policies: u64,
}

impl ObjectCounts {
    /// Counts a state, and what is staged beside it.
    pub fn of(cluster: &Cluster, staged: usize) -> Self {
        Self {
            namespaces: cluster.namespaces.len() as u64,
            nodes: cluster.nodes.len() as u64,
            pods: cluster.pods.len() as u64,
            policies: cluster.policies.len() as u64,
            cluster_policies: cluster.tiered.len() as u64,
            staged_policies: staged as u64,
        }
    }
}

/// A fault of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectProblem {
    /// Such as `NetworkPolicy`.
    pub kind: String,
    /// `namespace/name`, or the name of a cluster-wide object; the file where nothing else is known.
    pub object: String,
    /// Path of the field, or the place in the file.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// The newest `resourceVersion` of each kind that a state reflects. None where the source has none, as a folder, or one
/// that is not a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceVersions {
    /// Of Namespaces.
    pub namespaces: Option<u64>,
    /// Of Nodes.
    pub nodes: Option<u64>,
    /// Of Pods.
    pub pods: Option<u64>,
    /// Of NetworkPolicies.
    pub policies: Option<u64>,
    /// Of policies for the whole cluster; the newest of all their kinds.
    pub cluster_policies: Option<u64>,
}

impl ResourceVersions {
    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for ResourceVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("networkpolicies", self.policies),
            ("clusterpolicies", self.cluster_policies),
            ("namespaces", self.namespaces),
            ("nodes", self.nodes),
            ("pods", self.pods),
        ];
        let mut separator = "";
        for (kind, version) in kinds {
            if let Some(version) = version {
                write!(f, "{separator}{kind}@{version}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

/// The snapshot that was compiled last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CompiledStatus {
    /// Its generation; 0 before the first.
    pub generation: u64,
    /// What of the API server it reflects; empty for a folder.
    #[serde(skip_serializing_if = "ResourceVersions::is_empty")]
    pub resource_versions: ResourceVersions,
    /// Its canonical hash.
    pub hash: Option<ContentHash>,
    /// Size of its image in bytes.
    pub bytes: u64,
    /// How long compiling took, in microseconds.
    pub compile_micros: u64,
    /// Whether it was made from the snapshot before, at the cost of what changed.
    pub incremental: bool,
    /// Snapshots compiled.
    pub compiled: u64,
    /// Snapshots among them that were made from the one before.
    pub compiled_incrementally: u64,
    /// States that could not be compiled.
    pub failed: u64,
    /// Why the newest state could not be compiled; None where it could.
    pub error: Option<String>,
}

/// What is proven of compiled snapshots: that they decide what the objects say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProofStatus {
    /// `full`, `changed` or `off`: what is proven before a snapshot is published.
    pub verify: String,
    /// Snapshots proven before they were published.
    pub proven: u64,
    /// How long the last of these proofs took, in microseconds.
    pub micros: u64,
    /// Classes of ends that it told apart.
    pub classes: u64,
    /// Pairs of them, in one direction, that it compared.
    pub pairs: u64,
    /// Whether it looked at everything.
    pub whole: bool,
    /// Differences between snapshots and objects that were found.
    pub differences: u64,
    /// The latest difference, with a packet that shows it; None once a later snapshot is proven.
    pub difference: Option<String>,
    /// Generation of the snapshot that was last proven whole; 0 before the first.
    pub full_generation: u64,
    /// Seconds since then; None before the first.
    pub full_seconds: Option<f64>,
    /// How long that took, pauses not counted, in microseconds.
    pub full_micros: u64,
    /// Passes over everything that the background has ended.
    pub passes: u64,
}

/// The line from control to the dataplane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicationStatus {
    /// Whether the dataplane is connected.
    pub connected: bool,
    /// Generation that every worker has adopted; 0 for none.
    pub adopted: u64,
    /// Generation that was accepted last; 0 for none.
    pub accepted: u64,
    /// Adopted snapshots.
    pub adoptions: u64,
    /// Refused snapshots.
    pub refused: u64,
    /// Why the newest one was refused; None where it was not.
    pub refusal: Option<String>,
    /// Connections made again.
    pub reconnects: u64,
    /// Seconds since the first event of the source that not every worker decides by; None where all do.
    pub unadopted_seconds: Option<f64>,
    /// From the event at the source to the adoption by the last worker, of the newest snapshot, in microseconds.
    pub event_to_adopted_micros: Option<u64>,
}
