//! Flows: who talks with whom, in which state, and by which decision.
//!
//! Flows are spread over [`SHARDS`] shards by the zone and the unordered pair of addresses, so that both directions,
//! fragments and ICMP errors of a flow meet in one. A worker owns whole shards and one table for all their flows: while
//! that has room, results do not depend on the number of workers.
//!
//! * [`memory`] the entries as plain old data in memory that may outlive the process.
//! * `entry` one entry. `state` the state machine. `table` a shard: index, expiry, eviction.
//! * `tcp` sequence numbers, `sctp` tags. `quota` how much of the table each endpoint holds. `shard` what only one pair of addresses
//!   shares. `fragments` which verdict the first fragment got. `hash` seeded hashing.

pub(crate) mod entry;
pub(crate) mod fragments;
pub(crate) mod hash;
pub mod memory;
pub(crate) mod quota;
pub(crate) mod rate;
pub(crate) mod sctp;
pub(crate) mod shard;
pub mod state;
pub(crate) mod table;
pub(crate) mod tcp;

pub use memory::{FlowMemory, FlowMemoryError, LAYOUT_VERSION};

use crate::{
    addr::Addr, classify::Generation, port::PortId, time::Nanos, verdict::DropReason, wire::FlowKey,
};

/// Shards of the flow state, whatever the number of workers.
pub const SHARDS: usize = 256;

/// How long entries live and how many there may be of each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// How long an entry in a state lives after its last packet.
    pub timeouts: Timeouts,
    /// Share of the entries that may be half-open, in 1/256.
    pub half_open_share: u8,
    /// Share of the entries that one endpoint may have begun, in 1/256; 256 is no limit.
    pub endpoint_share: u16,
    /// Share of the half-open entries that may be of one endpoint, in 1/256.
    pub endpoint_half_open_share: u16,
    /// An open flow gives way to another endpoint's new one only after this long without a packet.
    pub idle_grace: Nanos,
    /// A half-open entry is not thrown out for a new one before this age.
    pub half_open_grace: Nanos,
    /// How long after a start without inherited flows connections are picked up in the middle (SEMANTICS 60).
    pub pickup_window: Nanos,
    /// Whether an answer alone is picked up, too: what it answers may never have been said.
    pub pickup_answers: bool,
    /// Whether resets and FINs are believed only where sequence numbers show that an end may have sent them.
    pub tcp_strict: bool,
    /// Whether packets may pass while no dataplane runs (the fail mode is open).
    pub unseen: bool,
    /// Fragmented datagrams that a shard follows at once.
    pub fragmented: usize,
    /// How long the later fragments of a datagram may take.
    pub fragment_timeout: Nanos,
    /// ICMP errors let through for one endpoint: how many per second, and at once.
    pub icmp_errors: RateLimit,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            half_open_share: 64,
            endpoint_share: 64,
            endpoint_half_open_share: 64,
            idle_grace: Nanos::from_secs(1),
            half_open_grace: Nanos::from_millis(100),
            pickup_window: Nanos::from_secs(120),
            pickup_answers: false,
            tcp_strict: true,
            unseen: false,
            fragmented: 64,
            fragment_timeout: Nanos::from_secs(10),
            icmp_errors: RateLimit {
                per_second: 100,
                burst: 100,
            },
        }
    }
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Refill.
    pub per_second: u32,
    /// Size of the bucket.
    pub burst: u32,
}

/// How long an entry lives after the last packet that refreshed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP after a SYN, before an answer.
    pub tcp_syn: Nanos,
    /// TCP after the answer, before the handshake is complete.
    pub tcp_handshake: Nanos,
    /// TCP established.
    pub tcp_established: Nanos,
    /// TCP begun in the middle, each direction judged on its own.
    pub tcp_midstream: Nanos,
    /// TCP after the first FIN.
    pub tcp_fin: Nanos,
    /// TCP after both FINs.
    pub tcp_time_wait: Nanos,
    /// TCP after a reset.
    pub tcp_reset: Nanos,
    /// UDP before an answer.
    pub udp_new: Nanos,
    /// UDP answered.
    pub udp_answered: Nanos,
    /// UDP in use beyond an answer.
    pub udp_established: Nanos,
    /// SCTP before an answer.
    pub sctp_new: Nanos,
    /// SCTP answered.
    pub sctp_established: Nanos,
    /// SCTP after a shutdown or abort.
    pub sctp_closed: Nanos,
    /// ICMP echo.
    pub icmp: Nanos,
    /// Any other protocol.
    pub other: Nanos,
    /// A flow that policy has cut, after its ends fell silent.
    pub revoked: Nanos,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Nanos::from_secs;
        Self {
            tcp_syn: seconds(60),
            tcp_handshake: seconds(60),
            // RFC 5382 asks for at least 2 h 4 min.
            tcp_established: seconds(6 * 3600),
            tcp_midstream: seconds(300),
            tcp_fin: seconds(120),
            tcp_time_wait: seconds(120),
            tcp_reset: seconds(10),
            udp_new: seconds(30),
            udp_answered: seconds(30),
            // RFC 4787 asks for at least 2 min.
            udp_established: seconds(180),
            sctp_new: seconds(60),
            sctp_established: seconds(3600),
            sctp_closed: seconds(10),
            icmp: seconds(30),
            other: seconds(120),
            revoked: seconds(180),
        }
    }
}

/// Names one flow, or one dropped packet; 16 hexadecimal digits in text. A flow keeps it for its life, also across a
/// restart that inherits the flow table; a later flow of the same addresses and ports has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

impl std::fmt::Display for FlowId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for FlowId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `from_str_radix` would take a sign.
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|_| digits)
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a flow id: copy the 16 hexadecimal digits that `ringwall flows` shows"
                )
            })
    }
}

/// An entry as a reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Names it.
    pub id: FlowId,
    /// Its original direction: who began, if that is known.
    pub key: FlowKey,
    /// On a node: the address and port that its client used, where the kernel has translated them into the destination.
    pub frontend: Option<(Addr, u16)>,
    /// Its state.
    pub state: state::State,
    /// Whether it is known who began; else each direction is judged on its own (SEMANTICS 60).
    pub oriented: bool,
    /// Why enforcement would drop it, where audit mode lets it pass.
    pub would_drop: Option<DropReason>,
    /// The snapshot under which it was last found allowed.
    pub generation: Generation,
    /// The snapshot that decided, low 32 bits; [`Self::provenance`] are indices into that one.
    pub decided: u32,
    /// Who decided about the destination and about the source.
    pub provenance: [u32; 2],
    /// Where each direction comes in; None where that has not been seen since the start.
    pub ports: [Option<PortId>; 2],
    /// When the first packet came, to 67 ms; a flow that was begun anew by its own ends began then.
    pub began: Nanos,
    /// When the last packet came.
    pub last_seen: Nanos,
    /// Packets by direction, modulo 2^48.
    pub packets: [u64; 2],
    /// Bytes by direction, modulo 2^48.
    pub bytes: [u64; 2],
}

/// A question to a worker about its flows: send one by `Dataplane::ask_flows`, get it back filled. The asker brings the
/// memory, so that the worker allocates nothing.
#[derive(Debug)]
pub struct FlowDump {
    /// The entry to go on from. Begin with 0; what comes back is where the next one begins.
    pub cursor: usize,
    /// Filled up to its capacity; less where the worker has looked at as many places as one turn has time for.
    pub records: Vec<FlowRecord>,
    /// Whether nothing is left behind the cursor.
    pub done: bool,
}

impl FlowDump {
    /// Asks for up to `records` entries from the first on.
    pub fn new(records: usize) -> Self {
        Self {
            cursor: 0,
            records: Vec::with_capacity(records),
            done: false,
        }
    }
}
