//! Which refusals people are told of: the same one only once in a while, and only so many different ones, because strangers
//! are free to be many.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::admission::Refusal;
use crate::Time;

/// Time after which the same refusal of the same peer is told again.
pub const REPEAT: Duration = Duration::from_secs(60);

/// Refusals remembered at once; beyond it nothing is told until one is `REPEAT` old.
pub const MAX_REMEMBERED: usize = 256;

/// The refusals that were told lately.
#[derive(Debug, Default)]
pub struct RefusalLog {
    told: BTreeMap<(PeerId, Refusal, bool), Time>,
}

impl RefusalLog {
    /// Whether to tell that a connection with `peer` was refused, by the peer (`by_peer`) or by this node.
    pub fn is_news(&mut self, peer: PeerId, refusal: Refusal, by_peer: bool, now: Time) -> bool {
        if self.told.len() >= MAX_REMEMBERED {
            self.told.retain(|_, told| now.since(*told) < REPEAT);
        }
        let key = (peer, refusal, by_peer);
        let told_lately = self.told.get(&key).is_some_and(|told| now.since(*told) < REPEAT);
        if told_lately || self.told.len() >= MAX_REMEMBERED {
            return false;
        }
        self.told.insert(key, now);
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
    fn many_strangers_are_not_all_news_and_are_forgotten_after_a_minute() {
        let mut log = RefusalLog::default();
        let refused = |log: &mut RefusalLog, now| log.is_news(fresh_peer(), Refusal::KeyRequired, false, now);
        assert!((0..MAX_REMEMBERED).all(|_| refused(&mut log, Time::ZERO)));
        assert!(!refused(&mut log, Time::ZERO));
        assert!(refused(&mut log, Time::ZERO + REPEAT));
        assert_eq!(log.told.len(), 1);
    }
}
