//! Each peer's share of the memory for results: held from before a result is computed until it is sent, on whichever thread
//! that happens. `pangea_control::tasks` decides how large a share is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use pangea_control::tasks::{Refusal, ResultQuotas};
use tokio::sync::Notify;

/// The shares of all peers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct ResultShares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quotas: Mutex<ResultQuotas<PeerId>>,
    /// Notified whenever a result has been sent.
    sent: Notify,
}

/// What one result takes of its peer's share, given back when dropped.
#[derive(Debug)]
pub(super) struct ResultShare {
    shares: ResultShares,
    peer: PeerId,
    bytes: u64,
}

impl ResultShares {
    /// The shares in a memory of `limit` bytes.
    pub(super) fn new(limit: u64) -> ResultShares {
        ResultShares(Arc::new(Inner { quotas: Mutex::new(ResultQuotas::new(limit)), sent: Notify::new() }))
    }

    /// Takes `bytes` of a peer's share.
    ///
    /// # Errors
    /// As [`ResultQuotas::take`].
    pub(super) fn take(&self, peer: PeerId, bytes: u64) -> Result<ResultShare, Refusal> {
        self.quotas().take(peer, bytes)?;
        Ok(ResultShare { shares: self.clone(), peer, bytes })
    }

    /// Takes `bytes` of a peer's share once earlier results are sent.
    ///
    /// # Errors
    /// As [`ResultQuotas::take`], after `timeout`.
    pub(super) async fn take_soon(&self, peer: PeerId, bytes: u64, timeout: Duration) -> Result<ResultShare, Refusal> {
        let until = tokio::time::Instant::now() + timeout;
        loop {
            // Registered before the attempt, so that no result is sent unnoticed between the two.
            let mut sent = std::pin::pin!(self.0.sent.notified());
            sent.as_mut().enable();
            let refusal = match self.take(peer, bytes) {
                Ok(share) => return Ok(share),
                Err(refusal) => refusal,
            };
            if tokio::time::timeout_at(until, sent).await.is_err() {
                return Err(refusal);
            }
        }
    }

    fn quotas(&self) -> MutexGuard<'_, ResultQuotas<PeerId>> {
        self.0.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ResultShare {
    fn drop(&mut self) {
        self.shares.quotas().sent(self.peer, self.bytes);
        self.shares.0.sent.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_result_waits_until_earlier_ones_of_its_peer_are_sent() {
        let shares = ResultShares::new(8_000);
        let (peer, other) = (PeerId::random(), PeerId::random());
        let first = shares.take(peer, 800).unwrap();
        let long = Duration::from_secs(60);
        let mut waiting = std::pin::pin!(shares.take_soon(peer, 800, long));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        shares.take_soon(other, 1_000, long).await.unwrap();
        assert!(futures::poll!(waiting.as_mut()).is_pending(), "what another peer's result gives back is not its own");
        // The executor's thread drops it.
        std::thread::spawn(move || drop(first)).join().unwrap();
        waiting.await.unwrap();
        assert!(shares.take_soon(peer, 1_001, Duration::ZERO).await.is_ok(), "the share is free again");
    }

    #[tokio::test]
    async fn a_peer_that_takes_no_result_is_refused_in_time() {
        let shares = ResultShares::new(8_000);
        let peer = PeerId::random();
        let _first = shares.take(peer, 1_000).unwrap();
        assert!(matches!(shares.take_soon(peer, 1, Duration::ZERO).await, Err(Refusal::ResultsUntaken { .. })));
    }
}
