//! What the flows of one shard share besides the table.

use super::{FlowConfig, fragments::Fragments};

/// One shard of a worker.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) fragments: Fragments,
    /// A flow was cut here: from then on nothing is picked up in the middle, or the rest of that flow would be.
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
