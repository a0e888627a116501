//! What the CNI plugin says to the dataplane of its node: one line of JSON, and one line back.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Name of the socket in the runtime directory. Only root connects.
pub const CNI_SOCKET: &str = "cni.sock";
/// Longest line on it, in bytes.
pub const LONGEST_CNI_LINE: u64 = 64 << 10;

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
}

/// A pod's interface, as the plugins before made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The container's id.
    pub container: String,
    /// `namespace/name` of the pod, if the runtime says.
    pub pod: Option<String>,
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
    /// It is not, and why.
    Refused(String),
}
