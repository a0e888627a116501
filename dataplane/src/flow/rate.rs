//! A token bucket: so many per second, so many at once.

use super::RateLimit;
use crate::time::Nanos;

#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    limit: RateLimit,
    /// In billionths of a token.
    tokens: u64,
    filled: Nanos,
}

const TOKEN: u64 = 1_000_000_000;

impl TokenBucket {
    /// Full.
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            tokens: u64::from(limit.burst) * TOKEN,
            filled: Nanos(0),
        }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Nanos) -> bool {
        // One token per second is one billionth per nanosecond.
        let gained = now
            .since(self.filled)
            .0
            .saturating_mul(u64::from(self.limit.per_second));
        self.filled = self.filled.max(now);
        self.tokens = self
            .tokens
            .saturating_add(gained)
            .min(u64::from(self.limit.burst) * TOKEN);
        let there = self.tokens >= TOKEN;
        self.tokens -= if there { TOKEN } else { 0 };
        there
    }
}
