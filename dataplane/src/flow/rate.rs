//! A token bucket: so many per second, so many at once.

use super::RateLimit;
use crate::time::Nanos;

/// A rate limit per endpoint. Endpoints share buckets by a secret hash.
#[derive(Debug)]
pub(crate) struct EndpointLimiter(Box<[TokenBucket]>);

/// Number of buckets, a power of two.
const BUCKETS: usize = 1024;

impl EndpointLimiter {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self(vec![TokenBucket::new(limit); BUCKETS].into_boxed_slice())
    }

    /// The bucket of an account.
    pub(crate) fn bucket(&mut self, account: u32) -> &mut TokenBucket {
        &mut self.0[account as usize % BUCKETS]
    }

    /// Whether the bucket of an account has a token.
    pub(crate) fn has(&self, account: u32, now: Nanos) -> bool {
        self.0[account as usize % BUCKETS].has(now)
    }
}

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

    /// Billionths of a token that there are now.
    fn level(&self, now: Nanos) -> u64 {
        // One token per second is one billionth per nanosecond.
        let gained = now
            .since(self.filled)
            .0
            .saturating_mul(u64::from(self.limit.per_second));
        self.tokens
            .saturating_add(gained)
            .min(u64::from(self.limit.burst) * TOKEN)
    }

    /// Whether there is a token to take.
    pub(crate) fn has(&self, now: Nanos) -> bool {
        self.level(now) >= TOKEN
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Nanos) -> bool {
        self.tokens = self.level(now);
        self.filled = self.filled.max(now);
        let there = self.tokens >= TOKEN;
        self.tokens -= if there { TOKEN } else { 0 };
        there
    }
}
