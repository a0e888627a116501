//! From the state of the cluster to a snapshot image. Pure and deterministic: equal states and keys give equal bytes.
//!
//! 1. [`cohorts`]: pods that no selector can tell apart; each selector is evaluated once per cohort.
//! 2. Policies to the rules of each cohort, and the sets of pods and [`blocks`] that those rules name.
//! 3. Peer classes: cohorts and address ranges that the same sets and blocks hold, numbered by namespace.
//! 4. [`rows`]: one per distinct list of policies, direction and named ports; [`ports`] decides each cell.
//! 5. [`owners`] of addresses become identities, with the epochs and [`content`] of all that decides about them.
#![forbid(unsafe_code)]

mod blocks;
mod canonical;
mod classes;
mod cohorts;
mod compiler;
mod content;
mod members;
mod owners;
mod policies;
mod ports;
mod rows;
mod selectors;
mod shapes;
mod state;
mod survey;
#[cfg(test)]
mod tests;
mod update;

use std::thread;

use ringwall_dataplane::classify::{BuildError, Generation, Image};
use ringwall_policy::Cluster;

pub use self::compiler::{Compiled, Compiler};
use self::state::State;

/// Key of the installation's epochs: 32 random bytes that stay with the installation, zero offline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EpochKey(pub [u8; 32]);

impl EpochKey {
    /// The key of the offline commands, whose epochs are never compared.
    pub const OFFLINE: Self = Self([0; 32]);
}

impl std::fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EpochKey(..)")
    }
}

/// What a snapshot may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of the image.
    pub bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 512 << 20 }
    }
}

/// A snapshot, ready to be published.
#[derive(Clone, Debug)]
pub struct CompiledImage {
    /// The image; read it with [`ringwall_dataplane::classify::Snapshot::from_image`].
    pub image: Image,
    /// The image as a whole; open it with [`ringwall_dataplane::classify::Snapshot::open`].
    pub bytes: Vec<u8>,
    /// Hash of the canonical content: equal for clusters whose snapshots mean the same, whatever the generation, the
    /// epoch key and the order in which the cluster came to be.
    pub hash: [u8; 32],
    /// Figures about it.
    pub stats: CompileStats,
}

/// Figures about a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileStats {
    /// Bytes of the image.
    pub bytes: u64,
    /// Pods and templates with a place in the policy.
    pub endpoints: u32,
    /// Addresses of pods and nodes.
    pub hosts: u32,
    /// Groups of pods that no selector tells apart.
    pub cohorts: u32,
    /// Policies that select a pod.
    pub policies: u32,
    /// Rules of those policies.
    pub rules: u32,
    /// Distinct peer selectors of those policies.
    pub selectors: u32,
    /// Distinct ipBlocks of those policies.
    pub blocks: u32,
    /// Peer classes.
    pub classes: u32,
    /// Rows.
    pub rows: u32,
    /// The most cache lines that the lookup of an address reads, when it was last compiled in full.
    pub worst_identify: u32,
    /// The most cache lines that a direction reads, when it was last compiled in full.
    pub worst_judge: u32,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompileError {
    /// It would be larger than its budget.
    #[error(
        "the snapshot would take at least {needed} bytes, its budget is {budget}; the heaviest policies are {}. Raise \
         the budget, or give those policies fewer distinct selectors and blocks",
        shares(heaviest)
    )]
    OverBudget {
        /// Bytes that it takes at least.
        needed: u64,
        /// Bytes that it may take.
        budget: u64,
        /// The heaviest policies and their share of what was counted, between 0 and 1; the heaviest first.
        heaviest: Vec<(String, f64)>,
    },
    /// The tables do not fit the image.
    #[error(transparent)]
    Image(#[from] BuildError),
}

fn shares(heaviest: &[(String, f64)]) -> String {
    let shares: Vec<String> = heaviest
        .iter()
        .map(|(policy, share)| format!("{policy} ({:.0} %)", share * 100.0))
        .collect();
    shares.join(", ")
}

/// Compiles the cluster's policies, within the default [`Budget`].
pub fn compile(
    cluster: &Cluster,
    generation: Generation,
    key: &EpochKey,
) -> Result<CompiledImage, CompileError> {
    compile_within(cluster, generation, key, &Budget::default())
}

/// Compiles the cluster's policies.
pub fn compile_within(
    cluster: &Cluster,
    generation: Generation,
    key: &EpochKey,
    budget: &Budget,
) -> Result<CompiledImage, CompileError> {
    let mut state = State::full(cluster, *key, None, budget)?;
    let (image, stats) = state.image(generation, budget)?;
    let compiled = CompiledImage {
        bytes: image.to_bytes(),
        hash: image.hash(),
        image,
        stats,
    };
    if cluster.pods.len() >= survey::MANY_PODS {
        // Freeing it takes a fifteenth of the time, for which the caller need not wait. Where no thread is to be had, it is freed
        // at once.
        let free = thread::Builder::new().name("rw-free".to_owned());
        let _ = free.spawn(move || drop(state));
    }
    Ok(compiled)
}
