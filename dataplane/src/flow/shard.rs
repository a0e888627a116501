//! What the flows of one shard share besides the table.

use super::{FlowConfig, fragments::Fragments};

/// One shard of a worker.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) fragments: Fragments,
    /// A flow of this shard was revoked: from then on no connection is picked up in the middle, as it might be that
    /// flow.
    pub(crate) has_revoked: bool,
}

impl Shard {
    pub(crate) fn new(config: &FlowConfig) -> Self {
        Self {
            fragments: Fragments::new(config.fragmented, config.fragment_timeout),
            has_revoked: false,
        }
    }
}
