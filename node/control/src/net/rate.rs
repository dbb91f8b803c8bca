//! Decides whether a client may make one more request: a bucket of tokens per client, which fills at a steady rate. It
//! does not know what a request is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
pub use crate::token_bucket::Rate;
use crate::token_bucket::TokenBucket;

/// Clients remembered at once; a bucket takes a hundred bytes. Beyond them, clients whose bucket is full again are
/// forgotten, then the one with the fullest bucket.
const MAX_CLIENTS: usize = 4096;

/// The buckets of all clients of one service. `C` says who a client is.
#[derive(Debug)]
pub struct RateLimiter<C> {
    rate: Rate,
    buckets: BTreeMap<C, TokenBucket>,
}

impl<C: Ord + Clone> RateLimiter<C> {
    /// Every client may make `rate`.
    pub fn new(rate: Rate) -> RateLimiter<C> {
        RateLimiter { rate, buckets: BTreeMap::new() }
    }

    /// A request of `client`.
    ///
    /// # Errors
    /// The time after which the client may ask again.
    pub fn ask(&mut self, client: &C, now: Time) -> Result<(), Duration> {
        if self.buckets.len() >= MAX_CLIENTS && !self.buckets.contains_key(client) {
            self.forget(now);
        }
        self.buckets.entry(client.clone()).or_insert_with(|| TokenBucket::full(self.rate, now)).take(1, now)
    }

    fn forget(&mut self, now: Time) {
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        if self.buckets.len() >= MAX_CLIENTS {
            let tokens = |bucket: &TokenBucket| bucket.tokens(now);
            let fullest = self.buckets.iter().max_by(|(_, a), (_, b)| tokens(a).total_cmp(&tokens(b)));
            let fullest = fullest.map(|(client, _)| client.clone());
            fullest.and_then(|client| self.buckets.remove(&client));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 2.0, burst: 3.0 };

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_client_beyond_its_rate_is_told_when_to_come_again_and_others_are_not_affected() {
        let mut limiter = RateLimiter::new(RATE);
        assert!((0..3).all(|_| limiter.ask(&1, at(0)).is_ok()));
        assert_eq!(limiter.ask(&1, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(limiter.ask(&2, at(0)), Ok(()));
        assert_eq!(limiter.ask(&1, at(499)).map_err(|wait| wait.as_millis()), Err(1));
        assert_eq!(limiter.ask(&1, at(500)), Ok(()));
        assert!(limiter.ask(&1, at(500)).is_err());
        assert!((0..3).all(|_| limiter.ask(&1, at(60_000)).is_ok()), "a pause gives a burst, and no more");
        assert!(limiter.ask(&1, at(60_000)).is_err());
    }

    #[test]
    fn the_number_of_remembered_clients_is_bounded_and_a_busy_one_is_not_forgotten() {
        let mut limiter = RateLimiter::new(RATE);
        for client in 0..MAX_CLIENTS {
            limiter.ask(&client, at(0)).unwrap();
        }
        while limiter.ask(&0, at(1)).is_ok() {}
        for client in MAX_CLIENTS..2 * MAX_CLIENTS {
            limiter.ask(&client, at(1)).unwrap();
        }
        assert_eq!(limiter.buckets.len(), MAX_CLIENTS);
        assert!(limiter.ask(&0, at(2)).is_err(), "new names give the client no new bucket");
    }
}
