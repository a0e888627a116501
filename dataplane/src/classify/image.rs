//! Opening an image and reading from it.

use super::{
    DirectionVerdict, Effect, Endpoint, Generation, Identity, IdentityKind, Judgement, L4, NodeExemption,
    Provenance,
};
use crate::addr::Addr;

/// Why bytes are not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Reading is not written yet.
    #[error("snapshot images cannot be read yet")]
    Unfinished,
}

/// Sizes of a snapshot's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the image.
    pub bytes: u64,
}

/// An opened snapshot: owned, validated, immutable.
#[derive(Debug)]
pub struct Snapshot {
    never: std::convert::Infallible,
}

impl Snapshot {
    /// Copies an image, checks all of it and answers the snapshot.
    pub fn open(_bytes: &[u8]) -> Result<Self, ImageError> {
        Err(ImageError::Unfinished)
    }
    /// Its generation.
    pub fn generation(&self) -> Generation {
        match self.never {}
    }
    /// Hash of its canonical content: equal for snapshots that mean the same.
    pub fn hash(&self) -> [u8; 32] {
        match self.never {}
    }
    /// Sizes of its tables.
    pub fn sizes(&self) -> Sizes {
        match self.never {}
    }
    /// Who an address is.
    pub fn identify(&self, _addr: Addr) -> Identity {
        match self.never {}
    }
    /// Decides about a packet that begins a flow.
    pub fn judge(
        &self,
        src: &Identity,
        dst: &Identity,
        src_addr: Addr,
        dst_addr: Addr,
        l4: L4,
        node: NodeExemption,
    ) -> Judgement {
        self.judge_ends(src, dst, src_addr == dst_addr, l4, node)
    }
    /// As [`Self::judge`], for ends that may have no address: `same_address` says whether they have the same one.
    pub fn judge_ends(
        &self,
        _src: &Identity,
        _dst: &Identity,
        _same_address: bool,
        _l4: L4,
        _node: NodeExemption,
    ) -> Judgement {
        match self.never {}
    }
    /// Names behind a provenance index. Cold.
    pub fn provenance(&self, _index: u32) -> Option<Provenance<'_>> {
        match self.never {}
    }
    /// An endpoint by number. Cold.
    pub fn endpoint(&self, _number: u32) -> Option<Endpoint<'_>> {
        match self.never {}
    }
    /// An endpoint by name. Cold: a binary search over strings.
    pub fn find_endpoint(&self, _namespace: &str, _name: &str) -> Option<Endpoint<'_>> {
        match self.never {}
    }
    /// The name of a node by number. Cold.
    pub fn node_name(&self, _number: u32) -> Option<&str> {
        match self.never {}
    }
}
