//! Time that a thread has had of a CPU.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds that this thread has run: others' use of its CPU does not count, the kernel's work for it does.
pub fn thread_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
