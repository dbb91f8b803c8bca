//! Token buckets: so many at once, so many per second after that. The caller says what a token is.

use std::time::Duration;

use crate::Time;

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Times per second in the long run.
    pub per_second: f64,
    /// Times at once after a pause.
    pub burst: f64,
}

/// A bucket that starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    rate: Rate,
    /// What was in the bucket at `at`.
    tokens: f64,
    at: Time,
}

impl TokenBucket {
    /// A bucket of `rate.burst` tokens, refilled with `rate.per_second` tokens per second.
    pub(crate) fn full(rate: Rate, now: Time) -> TokenBucket {
        TokenBucket { rate, tokens: rate.burst, at: now }
    }

    /// What is in the bucket now.
    pub(crate) fn tokens(&self, now: Time) -> f64 {
        (self.tokens + now.since(self.at).as_secs_f64() * self.rate.per_second).min(self.rate.burst)
    }

    /// Whether the bucket is as it was at first.
    pub(crate) fn is_full(&self, now: Time) -> bool {
        self.tokens(now) >= self.rate.burst
    }

    /// Takes `count` tokens.
    ///
    /// # Errors
    /// The time after which there are as many, if there are fewer now; then none is taken.
    pub(crate) fn take(&mut self, count: u32, now: Time) -> Result<(), Duration> {
        (self.tokens, self.at) = (self.tokens(now), self.at.max(now));
        let left = self.tokens - f64::from(count);
        if left < 0.0 {
            return Err(Duration::from_secs_f64(-left / self.rate.per_second));
        }
        self.tokens = left;
        Ok(())
    }

    /// Takes `count` tokens, also those that are not there yet: what is taken next waits longer.
    pub(crate) fn overdraw(&mut self, count: u32, now: Time) {
        (self.tokens, self.at) = (self.tokens(now) - f64::from(count), self.at.max(now));
    }

    /// Gives back `count` tokens.
    pub(crate) fn put_back(&mut self, count: u32) {
        self.tokens = self.rate.burst.min(self.tokens + f64::from(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_size_at_once_and_its_rate_after_that() {
        let mut bucket = TokenBucket::full(Rate { per_second: 2.0, burst: 3.0 }, Time::ZERO);
        let mut taken = |now, tries| (0..tries).filter(|_| bucket.take(1, now).is_ok()).count();
        assert_eq!(taken(Time::ZERO, 10), 3);
        assert_eq!(taken(Time::from_millis(499), 10), 0);
        assert_eq!(taken(Time::from_millis(500), 10), 1);
        assert_eq!(taken(Time::from_secs(100), 10), 3, "never more than its size");
        let later = Time::from_secs(1000);
        assert!(bucket.take(4, later).is_err() && bucket.take(3, later).is_ok(), "all or none");
    }

    #[test]
    fn tokens_that_come_back_are_there_again_and_never_more_than_the_bucket_holds() {
        let mut bucket = TokenBucket::full(Rate { per_second: 1.0, burst: 3.0 }, Time::ZERO);
        bucket.take(3, Time::ZERO).unwrap();
        bucket.put_back(2);
        assert_eq!(bucket.tokens(Time::ZERO), 2.0);
        bucket.put_back(2);
        assert_eq!(bucket.tokens(Time::ZERO), 3.0);
    }
}
