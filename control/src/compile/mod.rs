//! From the state of the cluster to a snapshot image. Pure and deterministic.

use ringwall_dataplane::classify::Generation;

use crate::cluster::Cluster;

/// Key of the installation's epochs: 32 random bytes that stay with the installation, zero offline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EpochKey(pub [u8; 32]);

impl EpochKey {
    /// The key of the offline commands, whose epochs nobody compares.
    pub const OFFLINE: Self = Self([0; 32]);
}

impl std::fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EpochKey(..)")
    }
}

/// A snapshot, ready to be published.
#[derive(Clone, Debug)]
pub struct CompiledImage {
    /// The image; open it with [`ringwall_dataplane::classify::Snapshot::open`].
    pub bytes: Vec<u8>,
    /// Hash of the canonical content: equal for clusters whose snapshots mean the same, whatever the generation.
    pub hash: [u8; 32],
    /// Figures about it.
    pub stats: CompileStats,
}

/// Figures about a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileStats {
    /// Bytes of the image.
    pub bytes: u64,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The compiler is not written yet.
    #[error("the compiler is not written yet")]
    Unfinished,
}

/// Compiles the cluster's policies.
pub fn compile(
    _cluster: &Cluster,
    _generation: Generation,
    _key: &EpochKey,
) -> Result<CompiledImage, CompileError> {
    Err(CompileError::Unfinished)
}
