//! Decides which refusals are logged: the same one only once in a while, and only a limited number of different ones,
//! because any number of strangers may connect.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::admission::Refusal;
use crate::Time;

/// Time after which the same refusal of the same peer is logged again.
pub const REPEAT: Duration = Duration::from_secs(60);

/// Maximum refusals remembered; beyond it nothing is logged until one is `REPEAT` old.
pub const MAX_REMEMBERED: usize = 256;

/// Recently logged refusals.
#[derive(Debug, Default)]
pub struct RefusalLog {
    logged: BTreeMap<(PeerId, Refusal, bool), Time>,
}

impl RefusalLog {
    /// Whether to log that a connection with `peer` was refused, by the peer (`by_peer`) or by this node.
    pub fn is_news(&mut self, peer: PeerId, refusal: Refusal, by_peer: bool, now: Time) -> bool {
        if self.logged.len() >= MAX_REMEMBERED {
            self.logged.retain(|_, at| now.since(*at) < REPEAT);
        }
        let key = (peer, refusal, by_peer);
        let logged_lately = self.logged.get(&key).is_some_and(|at| now.since(*at) < REPEAT);
        if logged_lately || self.logged.len() >= MAX_REMEMBERED {
            return false;
        }
        self.logged.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::fresh_peer;

    #[test]
    fn the_same_refusal_is_news_once_a_minute_and_another_reason_at_once() {
        let (mut log, peer) = (RefusalLog::default(), fresh_peer());
        let just_before = Time::ZERO + REPEAT - Duration::from_nanos(1);
        assert!(log.is_news(peer, Refusal::WrongKey, false, Time::ZERO));
        assert!(!log.is_news(peer, Refusal::WrongKey, false, just_before));
        assert!(log.is_news(peer, Refusal::WrongKey, true, just_before));
        assert!(log.is_news(peer, Refusal::Full, false, just_before));
        assert!(log.is_news(peer, Refusal::WrongKey, false, Time::ZERO + REPEAT));
    }

    #[test]
    fn only_a_limited_number_of_strangers_is_logged_per_minute() {
        let mut log = RefusalLog::default();
        let refused = |log: &mut RefusalLog, now| log.is_news(fresh_peer(), Refusal::KeyRequired, false, now);
        assert!((0..MAX_REMEMBERED).all(|_| refused(&mut log, Time::ZERO)));
        assert!(!refused(&mut log, Time::ZERO));
        assert!(refused(&mut log, Time::ZERO + REPEAT));
        assert_eq!(log.logged.len(), 1);
    }
}
