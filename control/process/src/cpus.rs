//! Which CPUs are the workers', and that nothing else of ours runs on them.
//!
//! A worker that shares its CPU with another thread loses it for a scheduler's slice of some milliseconds, while packets wait.

use std::{io, sync::OnceLock};

use ringwall_config::{Config, Cpus};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Why the workers have no CPUs.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A CPU that the process may not use.
    #[error("workers.cpus: CPU {cpu} is not among the CPUs that this process may use ({allowed})")]
    NotAllowed {
        /// What the configuration says.
        cpu: u16,
        /// What there is.
        allowed: String,
    },
    /// More workers than CPUs.
    #[error("workers.count: {count} workers need as many CPUs, and there are {cpus} ({allowed})")]
    TooManyWorkers {
        /// Workers.
        count: usize,
        /// CPUs to place them on.
        cpus: usize,
        /// Which.
        allowed: String,
    },
    /// The kernel does not tell what it allows.
    #[error("cannot read the CPU mask of this process: {0}")]
    Mask(#[source] io::Error),
}

/// The CPUs that this process was started on, ascending: later calls give the same, whatever [`leave_to_workers`] did.
///
/// # Errors
/// The kernel does not tell.
pub fn allowed() -> Result<&'static [u16], CpuError> {
    static ALLOWED: OnceLock<Vec<u16>> = OnceLock::new();
    if let Some(allowed) = ALLOWED.get() {
        return Ok(allowed);
    }
    let mask = sched_getaffinity(None).map_err(|error| CpuError::Mask(error.into()))?;
    let cpus = (0..CpuSet::MAX_CPU)
        .filter(|cpu| mask.is_set(*cpu))
        .filter_map(|cpu| u16::try_from(cpu).ok())
        .collect();
    Ok(ALLOWED.get_or_init(|| cpus))
}

/// The workers' CPUs among those allowed, one each.
///
/// # Errors
/// A listed CPU is not allowed, or there are fewer than workers.
pub fn of_workers(config: &Config, allowed: &[u16]) -> Result<Vec<u16>, CpuError> {
    let count = config.workers.count.map(|count| usize::from(count.get()));
    let too_many = |count: usize, cpus: &[u16]| CpuError::TooManyWorkers {
        count,
        cpus: cpus.len(),
        allowed: list(cpus),
    };
    match &config.workers.cpus {
        Cpus::List(cpus) => {
            let cpus: Vec<u16> = cpus.iter().map(|cpu| cpu.0).collect();
            if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                return Err(CpuError::NotAllowed {
                    cpu: *cpu,
                    allowed: list(allowed),
                });
            }
            let count = count.unwrap_or(cpus.len());
            cpus.get(..count)
                .map(<[u16]>::to_vec)
                .ok_or_else(|| too_many(count, &cpus))
        }
        Cpus::Auto => {
            let count = count.unwrap_or(1);
            // From the end: interrupts and everything else gather on the first ones.
            let first = allowed.len().checked_sub(count);
            first
                .map(|first| allowed[first..].to_vec())
                .ok_or_else(|| too_many(count, allowed))
        }
    }
}

/// Keeps the calling thread, and those that it starts, off the workers' CPUs. Does nothing where the workers have all, or
/// where there are none for them, which whoever starts them reports.
pub fn leave_to_workers(config: &Config) {
    let Ok(allowed) = allowed() else { return };
    let Ok(workers) = of_workers(config, allowed) else {
        return;
    };
    let rest: Vec<u16> = allowed
        .iter()
        .filter(|cpu| !workers.contains(cpu))
        .copied()
        .collect();
    if rest.is_empty() {
        return;
    }
    let mut mask = CpuSet::new();
    rest.iter().for_each(|cpu| mask.set(usize::from(*cpu)));
    if let Err(error) = sched_setaffinity(None, &mask) {
        tracing::warn!(%error, "cannot keep other threads off the workers' CPUs");
    }
}

fn list(cpus: &[u16]) -> String {
    let cpus: Vec<String> = cpus.iter().map(u16::to_string).collect();
    cpus.join(",")
}
