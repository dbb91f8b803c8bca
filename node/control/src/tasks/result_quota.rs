//! How much memory the results of one peer's tasks may take here, over all its streams together, from before each is computed
//! until it is sent. The memory itself is leased elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Refusal;
use crate::devices::Kind;

/// The part of the memory for results that one peer may have: half, so that a peer that takes no results leaves the other half
/// to others.
const PEER_SHARE: u64 = 2;

/// Time after which a peer that took none of its results in time is to try again.
const UNTAKEN_RETRY: Duration = Duration::from_secs(1);

/// The results of all peers.
#[derive(Debug)]
pub struct ResultQuotas<Peer> {
    quota: u64,
    held: BTreeMap<Peer, u64>,
}

impl<Peer: Copy + Ord> ResultQuotas<Peer> {
    /// No results, in a memory of `limit` bytes.
    pub fn new(limit: u64) -> ResultQuotas<Peer> {
        ResultQuotas { quota: Kind::Results.most_bytes(limit) / PEER_SHARE, held: BTreeMap::new() }
    }

    /// Takes a result of `bytes` into account, until [`ResultQuotas::sent`]. A peer without results may have one of any size.
    ///
    /// # Errors
    /// Why the result must wait until earlier ones are sent; the refusal that the peer gets if they are not sent in time.
    pub fn take(&mut self, peer: Peer, bytes: u64) -> Result<(), Refusal> {
        let held = self.held.get(&peer).copied().unwrap_or(0);
        let total = held.saturating_add(bytes);
        if held > 0 && total > self.quota {
            return Err(Refusal::ResultsUntaken { retry_after: UNTAKEN_RETRY });
        }
        // A result without bytes has nothing to give back.
        if bytes > 0 {
            self.held.insert(peer, total);
        }
        Ok(())
    }

    /// A result that was taken into account has been sent, or will not be.
    pub fn sent(&mut self, peer: Peer, bytes: u64) {
        if let Some(held) = self.held.get_mut(&peer) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.held.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results may take 1,000 bytes, those of one peer 500.
    fn quotas() -> ResultQuotas<u8> {
        ResultQuotas::new(4_000)
    }

    const UNTAKEN: Result<(), Refusal> = Err(Refusal::ResultsUntaken { retry_after: UNTAKEN_RETRY });

    #[test]
    fn a_peer_that_takes_no_results_leaves_half_of_their_memory_to_others() {
        let mut quotas = quotas();
        for _ in 0..5 {
            assert_eq!(quotas.take(1, 100), Ok(()));
        }
        assert_eq!(quotas.take(1, 1), UNTAKEN);
        assert_eq!(quotas.take(2, 500), Ok(()), "another peer has its own share");
        quotas.sent(1, 100);
        assert_eq!(quotas.take(1, 101), UNTAKEN);
        assert_eq!(quotas.take(1, 100), Ok(()));
    }

    #[test]
    fn one_result_may_be_larger_than_a_share() {
        let mut quotas = quotas();
        assert_eq!(quotas.take(1, 900), Ok(()));
        assert_eq!(quotas.take(1, 1), UNTAKEN);
        quotas.sent(1, 900);
        assert_eq!(quotas.take(1, u64::MAX), Ok(()));
        assert_eq!(quotas.take(1, u64::MAX), UNTAKEN);
    }

    #[test]
    fn peers_without_results_are_forgotten() {
        let mut quotas = quotas();
        for peer in 0..=255 {
            assert_eq!((quotas.take(peer, 0), quotas.take(peer, 7)), (Ok(()), Ok(())));
            quotas.sent(peer, 7);
            quotas.sent(peer, 7);
            assert_eq!(quotas.take(peer, 0), Ok(()), "nothing is given back for it");
        }
        assert!(quotas.held.is_empty());
    }
}
