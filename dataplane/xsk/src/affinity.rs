//! Pinning of threads.

use core_affinity::CoreId;

use crate::XskError;

/// Pins the calling thread to a CPU and reads the mask back.
///
/// # Errors
/// The CPU does not exist or is not in the process's cpuset.
pub fn pin_to(cpu: usize) -> Result<(), XskError> {
    let set = core_affinity::set_for_current(CoreId { id: cpu });
    let now: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|core| core.id)
        .collect();
    if set && now == [cpu] {
        return Ok(());
    }
    Err(XskError::Config(format!(
        "cannot pin a worker to CPU {cpu}: it does not exist or the process may not use it (it may use {now:?})"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

    use super::*;

    #[test]
    fn pins_to_cpus_that_exist() {
        std::thread::spawn(|| {
            let cpu = core_affinity::get_core_ids().unwrap()[0].id;
            pin_to(cpu).unwrap();
            let error = pin_to(1023).unwrap_err().to_string();
            assert!(error.contains("1023"), "{error}");
        })
        .join()
        .unwrap();
    }
}
