//! Clocks.

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds that this thread has run: others' use of its CPU does not count, the kernel's work for it does. Asked of the C
/// library, since valgrind has no vDSO for those who look for it themselves.
///
/// # Errors
/// The kernel has no such clock.
pub fn thread_nanos() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the thread's CPU time")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Nanoseconds of the clock that profilers stamp their looks with.
///
/// # Errors
/// The kernel has no such clock.
pub fn monotonic_nanos() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the monotonic clock")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
