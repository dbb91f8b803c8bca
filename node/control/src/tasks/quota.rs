//! How many tasks a peer may have here, and how fast it may send them, over all its streams together. Memory is not
//! counted here: operands have their quota in [`super::OperandStore`], results theirs in [`super::ResultQuotas`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::Refusal;
use super::intake::TASKS_PER_PEER;
use crate::Time;
use crate::token_bucket::{Rate, TokenBucket};

/// Tasks that a peer may send in a second, on the long run. A tile takes a millisecond or more, and a round trip on one
/// machine a third of that: an honest coordinator stays below.
pub const TASKS_PER_S: f64 = 4_000.0;

/// Tasks that a peer may send at once after a pause: two seconds' worth.
pub const TASKS_BURST: f64 = 2.0 * TASKS_PER_S;

const PACE: Rate = Rate { per_second: TASKS_PER_S, burst: TASKS_BURST };

/// Time after which a peer with all its tasks here is to try again: several tiles.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// The tasks of all peers.
#[derive(Debug)]
pub struct TaskQuotas<Peer> {
    peers: BTreeMap<Peer, Usage>,
}

#[derive(Debug, Clone, Copy)]
struct Usage {
    /// Tasks that have not ended.
    tasks: usize,
    /// Tasks that may be sent without delay.
    allowance: TokenBucket,
}

impl<Peer: Copy + Ord> Default for TaskQuotas<Peer> {
    fn default() -> Self {
        TaskQuotas { peers: BTreeMap::new() }
    }
}

impl<Peer: Copy + Ord> TaskQuotas<Peer> {
    /// Takes a task of a peer into account, until [`TaskQuotas::ended`].
    ///
    /// # Errors
    /// Why the task is refused, with the time to come again; then it does not count.
    pub fn begin(&mut self, peer: Peer, now: Time) -> Result<(), Refusal> {
        if !self.peers.contains_key(&peer) {
            // Whoever has nothing here and may send as much as anyone is as good as unknown.
            self.peers.retain(|_, usage| usage.tasks > 0 || !usage.allowance.is_full(now));
        }
        let full = || Usage { tasks: 0, allowance: TokenBucket::full(PACE, now) };
        let usage = self.peers.entry(peer).or_insert_with(full);
        usage.allowance.take(1, now).map_err(|retry_after| Refusal::TooFast { retry_after })?;
        if usage.tasks >= TASKS_PER_PEER {
            return Err(Refusal::TooMany { retry_after: BUSY_RETRY });
        }
        usage.tasks += 1;
        Ok(())
    }

    /// A task that was taken into account has ended.
    pub fn ended(&mut self, peer: Peer) {
        if let Some(usage) = self.peers.get_mut(&peer) {
            usage.tasks = usage.tasks.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_tasks_here_and_another_peer_as_many() {
        let mut quotas = TaskQuotas::default();
        for _ in 0..TASKS_PER_PEER {
            quotas.begin(1, Time::ZERO).unwrap();
        }
        assert_eq!(quotas.begin(1, Time::ZERO), Err(Refusal::TooMany { retry_after: BUSY_RETRY }));
        quotas.begin(2, Time::ZERO).unwrap();
        quotas.ended(1);
        quotas.begin(1, Time::ZERO).unwrap();
        assert!(quotas.begin(1, Time::ZERO).is_err());
    }

    #[test]
    fn a_peer_that_sends_too_fast_is_told_when_to_come_again() {
        let mut quotas = TaskQuotas::default();
        let mut send = |now| {
            let begun = quotas.begin(1, now);
            quotas.ended(1);
            begun
        };
        for _ in 0..TASKS_BURST as usize {
            send(Time::ZERO).unwrap();
        }
        let Err(Refusal::TooFast { retry_after }) = send(Time::ZERO) else { panic!("no limit") };
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_millis(1), "{retry_after:?}");
        let again = Time::ZERO + retry_after;
        send(again).unwrap();
        assert!(send(again).is_err());
        // A pause gives back a burst, and no more.
        let later = again + Duration::from_secs(3600);
        assert_eq!((0..2 * TASKS_BURST as usize).filter(|_| send(later).is_ok()).count(), TASKS_BURST as usize);
    }

    #[test]
    fn peers_that_are_gone_are_forgotten() {
        let mut quotas = TaskQuotas::default();
        for peer in 0..10_000u64 {
            quotas.begin(peer, Time::from_secs(peer)).unwrap();
            quotas.ended(peer);
        }
        assert!(quotas.peers.len() <= 2, "{}", quotas.peers.len());
    }

    #[test]
    fn another_peer_that_comes_makes_nobodys_tasks_and_haste_forgotten() {
        let mut quotas = TaskQuotas::default();
        for _ in 0..TASKS_PER_PEER {
            quotas.begin(1, Time::ZERO).unwrap();
        }
        let later = Time::from_secs(3600);
        quotas.begin(2, later).unwrap();
        assert_eq!(quotas.begin(1, later), Err(Refusal::TooMany { retry_after: BUSY_RETRY }));
        quotas.ended(2);
        for _ in 1..TASKS_BURST as usize {
            quotas.begin(2, later).unwrap();
            quotas.ended(2);
        }
        quotas.begin(3, later).unwrap();
        assert!(matches!(quotas.begin(2, later), Err(Refusal::TooFast { .. })));
    }
}
