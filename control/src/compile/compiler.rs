//! The compiler that keeps what it compiled: one state after the other, at the cost of what changed between them.

use ringwall_dataplane::classify::{Generation, Image};

use super::{Budget, CompileError, CompileStats, EpochKey, state::State};
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
    state: Option<State>,
}

impl Compiler {
    /// A compiler that has not seen a state yet.
    pub fn new(key: EpochKey, budget: Budget) -> Self {
        Self {
            key,
            budget,
            state: None,
        }
    }

    /// Compiles `cluster`, in which anything may have changed since the call before. After an error the next call
    /// compiles in full.
    pub fn update(&mut self, cluster: &Cluster, generation: Generation) -> Result<Compiled, CompileError> {
        if let Some(mut state) = self.state.take()
            && state.update(cluster, &self.budget)
            && let Ok(compiled) = finish(&mut state, generation, &self.budget, true)
        {
            self.state = Some(state);
            return Ok(compiled);
        }
        let mut state = State::full(cluster, self.key, &self.budget)?;
        let compiled = finish(&mut state, generation, &self.budget, false)?;
        self.state = Some(state);
        Ok(compiled)
    }
}

fn finish(
    state: &mut State,
    generation: Generation,
    budget: &Budget,
    incremental: bool,
) -> Result<Compiled, CompileError> {
    let (image, stats) = state.image(generation, budget)?;
    Ok(Compiled {
        hash: image.hash(),
        image,
        stats,
        incremental,
    })
}
