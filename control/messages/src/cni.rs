//! What the CNI plugin says to the dataplane of its node, one line of JSON and one line back, and to control, as JSON over HTTP.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Name of the socket in the runtime directory. Only root connects.
pub const CNI_SOCKET: &str = "cni.sock";
/// Longest line on it, in bytes.
pub const LONGEST_CNI_LINE: u64 = 64 << 10;

/// Where control takes a [`PodStart`], and answers with a [`PodStartAnswer`].
pub const POD_STARTS: &str = "/v1/pods/starts";
/// Where control takes [`PodEnds`].
pub const POD_ENDS: &str = "/v1/pods/ends";

/// A question of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command", content = "about")]
pub enum CniRequest {
    /// A pod's interface was made: guard it, and answer when that is done.
    Add(Attachment),
    /// Is it still guarded?
    Check(Attachment),
    /// The interfaces of a container are about to go.
    Delete {
        /// The container's id.
        container: String,
    },
    /// Can pods be guarded now?
    Status,
    /// The runtime has these containers, and no others.
    Collect {
        /// Their ids.
        containers: BTreeSet<String>,
    },
}

/// A pod's interface, as the plugins before made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The container's id.
    pub container: String,
    /// `namespace/name` of the pod, if the runtime says.
    pub pod: Option<String>,
    /// Its UID, if the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Interfaces on the host that were made for it.
    pub host_interfaces: Vec<String>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer", content = "reason")]
pub enum CniReply {
    /// It is so.
    Done,
    /// It is so, and pods start when control's snapshot has them (`podStart: hold`).
    AwaitSnapshot,
    /// It is not, and why.
    Refused(String),
}

/// A pod that is about to start, with the addresses that it has from the CNI. The API server learns them from the kubelet, and
/// the kubelet only once the pod runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodStart {
    /// The container's id.
    pub container: String,
    /// `namespace/name`.
    pub pod: String,
    /// Its UID, if the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// Whether every worker decides by a snapshot that has the pod with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStartAnswer {
    /// Whether it does.
    pub known: bool,
    /// Why not, in words; empty if it does.
    #[serde(default)]
    pub reason: String,
}

/// Containers that are no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodEnds {
    /// This one.
    Ended(String),
    /// All but these.
    AllBut(BTreeSet<String>),
}
