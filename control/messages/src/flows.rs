//! Flows and drops of the running dataplane, as they are asked for and shown.

use std::net::IpAddr;

use ringwall_policy::Decider;
use serde::{Deserialize, Serialize};

/// Most records of one answer; more come with the next question.
pub const PAGE_RECORDS: usize = 1000;

/// Which flows and drops are asked for; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFilter {
    /// With this id.
    pub id: Option<String>,
    /// With this end: `namespace/pod` or an address.
    pub pod: Option<String>,
    /// Decided by this policy: `namespace/name`.
    pub policy: Option<String>,
    /// Drops alone.
    pub dropped: bool,
}

/// Where the next question goes on: worker, entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCursor {
    /// Number of the worker.
    pub worker: usize,
    /// Place in its flow table.
    pub entry: usize,
}

/// Part of an answer: drops come first, newest first; then flows in the order in which they lie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowPage {
    /// About [`PAGE`] records at most.
    pub records: Vec<LiveRecord>,
    /// Where to go on; None at the end.
    pub next: Option<FlowCursor>,
    /// The filter names a pod that the policy in force does not know. What it did before may still be shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown_pod: bool,
}

/// A flow of the table, or a packet that was dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LiveRecord {
    /// A flow that has an entry.
    Flow(LiveFlow),
    /// A dropped packet; in audit mode, one that would have been.
    Drop(LiveDrop),
}

/// What the two have in common.
impl LiveRecord {
    /// Its id.
    pub fn id(&self) -> &str {
        match self {
            Self::Flow(flow) => &flow.id,
            Self::Drop(drop) => &drop.id,
        }
    }

    /// Whose packets; None where the headers could not be read.
    pub fn ends(&self) -> Option<&LiveEnds> {
        match self {
            Self::Flow(flow) => Some(&flow.ends),
            Self::Drop(drop) => drop.ends.as_ref(),
        }
    }

    /// Who decided, when it was decided.
    pub fn reasons(&self) -> &[Decider] {
        match self {
            Self::Flow(flow) => &flow.reasons,
            Self::Drop(drop) => &drop.reasons,
        }
    }
}

/// Who talks to whom. Pods' names are those of the snapshot that decided, where that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveEnds {
    /// Source address; of a flow, who began it, if that is known.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// `namespace/name` of the source, where it is a pod.
    pub src_pod: Option<String>,
    /// `namespace/name` of the destination, where it is a pod.
    pub dst_pod: Option<String>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, or echo identifier; None for a protocol without.
    pub src_port: Option<u16>,
    /// Destination port, or echo identifier; None for a protocol without.
    pub dst_port: Option<u16>,
    /// Type of ICMP; of a flow, that of the packet that began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Code of ICMP, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
}

/// A flow that has an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveFlow {
    /// Names it for its life: 16 hexadecimal digits.
    pub id: String,
    /// Who talks to whom.
    #[serde(flatten)]
    pub ends: LiveEnds,
    /// On a node, the address that its client used, such as a Service's, where the kernel has translated it into the
    /// destination; absent elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<IpAddr>,
    /// The port that goes with it; absent for a protocol without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend_port: Option<u16>,
    /// State, such as `tcp-established`.
    pub state: String,
    /// Whether it is known who began.
    pub oriented: bool,
    /// In audit mode, why enforcement would drop it; absent where it is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_drop: Option<String>,
    /// Seconds since its first packet.
    pub age_seconds: f64,
    /// Seconds since its last packet.
    pub idle_seconds: f64,
    /// The interfaces that its packets come in by, in its direction and against it.
    pub ports: [Option<String>; 2],
    /// Packets in its direction and against it.
    pub packets: [u64; 2],
    /// Bytes in its direction and against it.
    pub bytes: [u64; 2],
    /// Generation of the snapshot under which it was last found allowed; 0: not since the dataplane began.
    pub generation: u64,
    /// Generation of the snapshot that decided, where that is still there; else None, and `reasons` are those of a
    /// snapshot after it, under which the decision stands.
    pub decided: Option<u64>,
    /// Who decided.
    pub reasons: Vec<Decider>,
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveDrop {
    /// Names it: 16 hexadecimal digits.
    pub id: String,
    /// Whose packet; None where its headers could not be read.
    #[serde(flatten)]
    pub ends: Option<LiveEnds>,
    /// Why it was dropped, as in the counters.
    pub reason: String,
    /// Whether it was forwarded all the same, because the mode is audit.
    pub audit: bool,
    /// Seconds since then.
    pub age_seconds: f64,
    /// The interface that it came in by.
    pub port: Option<String>,
    /// Bytes of the frame.
    pub length: u32,
    /// The form of tunnel that the packet was in, such as `vxlan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Generation of the snapshot in force; 0 for none.
    pub generation: u64,
    /// Whether names could be taken from that snapshot; else from the newest, or there are none.
    pub recorded: bool,
    /// Who decided, where policies did.
    pub reasons: Vec<Decider>,
}
