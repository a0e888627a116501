//! Pinning of threads.

use crate::XskError;

/// Pins the calling thread to a CPU and reads the mask back.
///
/// # Errors
/// The CPU does not exist or is not in the process's cpuset.
pub fn pin_to(cpu: usize) -> Result<(), XskError> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Ok(());
    }
    Err(XskError::Config(format!("cannot pin a worker to CPU {cpu}")))
}
