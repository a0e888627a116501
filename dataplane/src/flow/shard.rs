//! What the flows of one shard share besides the table: fragmented datagrams and limits.

use super::{FlowConfig, RateLimit, fragments::Fragments, rate::TokenBucket};

/// One shard of a worker.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) fragments: Fragments,
    /// A flow was cut here: from then on nothing is picked up in the middle, or the rest of that flow would be.
    pub(crate) has_revoked: bool,
    /// ICMP errors let through.
    pub(crate) icmp_passed: TokenBucket,
    /// ICMP errors sent.
    pub(crate) icmp_sent: TokenBucket,
}

impl Shard {
    pub(crate) fn new(config: &FlowConfig, icmp_sent: RateLimit) -> Self {
        Self {
            fragments: Fragments::new(config.fragmented, config.fragment_timeout),
            has_revoked: false,
            icmp_passed: TokenBucket::new(config.icmp_errors),
            icmp_sent: TokenBucket::new(icmp_sent),
        }
    }
}
