//! States that are not in force, compiled at the cost of what sets them apart from one that was compiled before.

use std::sync::{Mutex, PoisonError};

use ringwall_compile::{Budget, CompileError, Compiler, EpochKey};
use ringwall_dataplane::classify::{Generation, Snapshot};
use ringwall_policy::Cluster;

/// Compiles hypothetical states. What it compiled last is kept, so only the first state is compiled in full; the tables of
/// its snapshots share what is equal in them, which makes their exact difference cheap, too.
///
/// It is not the compiler of the snapshots in force, whose tables would then have a history of states that never were.
#[derive(Debug)]
pub struct HypotheticalStates {
    compiler: Mutex<Compiler>,
}

impl Default for HypotheticalStates {
    fn default() -> Self {
        Self {
            compiler: Mutex::new(Compiler::new(EpochKey::OFFLINE, Budget::default())),
        }
    }
}

impl HypotheticalStates {
    /// The snapshot of a state, in its surer reading if it has two.
    ///
    /// # Errors
    /// The state does not compile.
    pub fn compile(&self, cluster: &Cluster) -> Result<Snapshot, CompileError> {
        // A panic leaves no state behind: the compiler takes its state out before it changes it.
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiler.update(&cluster.for_compiler(), Generation(1))?;
        Ok(Snapshot::from_image(&compiled.image))
    }
}
