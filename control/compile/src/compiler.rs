//! The compiler that keeps what it compiled: one state after the other, at the cost of what changed between them.

use ringwall_dataplane::classify::{BuildError, Generation, Image};
use ringwall_policy::Cluster;

use super::{Budget, CompileError, CompileStats, EpochKey, state::State};

/// How many further seeds are tried where one has no room for some address.
const TRIES: u32 = 3;

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
    /// Of the hash tables; the usual one where None.
    seed: Option<u64>,
    budget: Budget,
    state: Option<State>,
}

impl Compiler {
    /// A compiler that has not seen a state yet.
    pub fn new(key: EpochKey, budget: Budget) -> Self {
        Self {
            key,
            seed: None,
            budget,
            state: None,
        }
    }

    /// As [`Self::new`], with hash tables that are seeded by a number that is unknown to whoever chooses addresses.
    pub fn seeded(key: EpochKey, budget: Budget, seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..Self::new(key, budget)
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
        let mut tries = 0..TRIES;
        loop {
            let full = State::full(cluster, self.key, self.seed, &self.budget);
            let compiled = full.and_then(|mut state| {
                let compiled = finish(&mut state, generation, &self.budget, false)?;
                Ok((state, compiled))
            });
            match (compiled, self.seed, tries.next()) {
                (Ok((state, compiled)), ..) => {
                    self.state = Some(state);
                    return Ok(compiled);
                }
                // Another seed may have room for them all.
                (Err(CompileError::Image(BuildError::Hosts { .. })), Some(seed), Some(_)) => {
                    self.seed = Some(seed.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                }
                (Err(error), ..) => return Err(error),
            }
        }
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
