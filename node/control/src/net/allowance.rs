//! Decides whether the holder of an API key may ask once more: so many requests and so many of a model's tokens per minute. What
//! an answer costs is known only while it is given, so that a holder may overdraw once and then waits.

use std::time::Duration;

use crate::Time;
use crate::token_bucket::{Rate, TokenBucket};

const MINUTE_S: f64 = 60.0;

/// What the holder of a key may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests per minute; `None` without a limit.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers per minute; `None` without a limit.
    pub tokens_per_minute: Option<u32>,
}

/// What the holder of a key has left.
#[derive(Clone, Debug)]
pub struct Allowance {
    requests: Option<TokenBucket>,
    tokens: Option<TokenBucket>,
}

impl Allowance {
    /// All of what `limits` allow in one minute.
    pub fn full(limits: KeyLimits, now: Time) -> Allowance {
        let bucket = |limit: u32| {
            TokenBucket::full(Rate { per_second: f64::from(limit) / MINUTE_S, burst: f64::from(limit) }, now)
        };
        Allowance { requests: limits.requests_per_minute.map(bucket), tokens: limits.tokens_per_minute.map(bucket) }
    }

    /// A request. One that is refused costs nothing.
    ///
    /// # Errors
    /// The time after which the holder may ask again.
    pub fn ask(&mut self, now: Time) -> Result<(), Duration> {
        if let Some(tokens) = &mut self.tokens {
            tokens.take(1, now)?;
            tokens.put_back(1);
        }
        self.requests.as_mut().map_or(Ok(()), |requests| requests.take(1, now))
    }

    /// Tokens that were computed for the holder.
    pub fn spend(&mut self, count: u32, now: Time) {
        if let Some(tokens) = &mut self.tokens {
            tokens.overdraw(count, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn requests_and_tokens_each_refill_within_a_minute() {
        let limits = KeyLimits { requests_per_minute: Some(2), tokens_per_minute: Some(60) };
        let mut allowance = Allowance::full(limits, at(0));
        assert_eq!((allowance.ask(at(0)), allowance.ask(at(0))), (Ok(()), Ok(())));
        assert_eq!(allowance.ask(at(0)), Err(Duration::from_secs(30)));
        assert_eq!(allowance.ask(at(30)), Ok(()));
        // An answer may cost more than is left; the next request waits until the debt is paid and one token is there.
        allowance.spend(90, at(60));
        assert_eq!(allowance.ask(at(60)), Err(Duration::from_secs(31)));
        assert_eq!(allowance.ask(at(91)), Ok(()));
        assert_eq!(allowance.ask(at(91)), Ok(()), "what was refused cost no request");
    }

    #[test]
    fn a_key_without_limits_is_never_refused() {
        let mut allowance = Allowance::full(KeyLimits::default(), at(0));
        allowance.spend(u32::MAX, at(0));
        assert!((0..1000).all(|_| allowance.ask(at(0)).is_ok()));
    }
}
