//! Time as the packet path knows it: a number that it is given once per burst.

use zerocopy::FromZeros;

/// Nanoseconds of a clock that never goes back and that a restarted process goes on with (CLOCK_MONOTONIC; a capture's
/// timestamps in a replay).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromZeros)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// How long `earlier` was ago; 0 where it lies ahead.
    #[inline]
    pub const fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// This time later.
    #[inline]
    pub const fn after(self, delay: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(delay.0))
    }
}
