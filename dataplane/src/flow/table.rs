//! A shard.
use super::{FlowConfig, entry::Entry, memory::FlowMemory};
/// A shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) entries: &'static mut [Entry],
}
impl FlowMemory {
    pub(crate) fn into_shards(self, _config: &FlowConfig) -> Vec<Shard> {
        self.shards.into_iter().map(|entries| Shard { entries }).collect()
    }
}
