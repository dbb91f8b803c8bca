//! Token buckets: so many at once, so many per second after that. The caller says what a token is. Times are those since any
//! fixed moment, the same for all calls.

use std::time::Duration;

/// A bucket that starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    size: f64,
    per_s: f64,
    tokens: f64,
    filled: Duration,
}

impl TokenBucket {
    /// A bucket of `size` tokens, refilled with `per_s` tokens per second.
    pub(crate) fn new(size: u32, per_s: u32, now: Duration) -> TokenBucket {
        TokenBucket { size: f64::from(size), per_s: f64::from(per_s), tokens: f64::from(size), filled: now }
    }

    /// Takes `count` tokens, or none if there are fewer.
    pub(crate) fn take(&mut self, count: u32, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = self.size.min(self.tokens + elapsed * self.per_s);
        self.filled = self.filled.max(now);
        let taken = self.tokens >= f64::from(count);
        if taken {
            self.tokens -= f64::from(count);
        }
        taken
    }

    /// Gives back `count` tokens.
    pub(crate) fn put_back(&mut self, count: u32) {
        self.tokens = self.size.min(self.tokens + f64::from(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_size_at_once_and_its_rate_after_that() {
        let mut bucket = TokenBucket::new(3, 2, Duration::ZERO);
        let mut taken = |now, tries| (0..tries).filter(|_| bucket.take(1, now)).count();
        assert_eq!(taken(Duration::ZERO, 10), 3);
        assert_eq!(taken(Duration::from_millis(499), 10), 0);
        assert_eq!(taken(Duration::from_millis(500), 10), 1);
        assert_eq!(taken(Duration::from_secs(100), 10), 3, "never more than its size");
        assert!(!bucket.take(4, Duration::from_secs(1000)) && bucket.take(3, Duration::from_secs(1000)), "all or none");
    }
}
