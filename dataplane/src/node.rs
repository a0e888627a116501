//! The node role: what the programs in the kernel and the workers of one node share.
//!
//! The kernel judges the packets of known flows by a cache in memory that both map. A packet of an unknown flow goes to a
//! worker with a header in front of it, is judged as any other, and comes back with its origin; the worker's decision goes
//! into the cache.
//!
//! * [`ask`] the header in front of such a packet, and the answer.
//! * [`cache`] the layout of the flow cache, and its writer.
//! * [`epochs`] which cached decisions end with a snapshot. [`renewal`] which of these go on.
//! * [`owners`] which pods had an address before.
//! * [`queues`] how far workers have got with what is asked.
//!
//! Integers are in native byte order unless said otherwise. The same layouts are in `bpf/src/c/node.h`.

pub mod ask;
pub mod cache;
pub mod epochs;
pub mod owners;
pub mod queues;
pub mod renewal;

use std::sync::Arc;

use ask::Nonce;
use cache::FlowCache;
use owners::AddressOwners;
use queues::AskQueues;

/// What the workers of a node need besides the dataplane's other configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Stands in every header that the kernel writes, and in every answer.
    pub nonce: Nonce,
    /// Where decisions go.
    pub cache: Arc<FlowCache>,
    /// Who had the addresses of this node's pods.
    pub owners: Arc<AddressOwners>,
    /// Where they say what they have dealt with.
    pub queues: Arc<AskQueues>,
}
