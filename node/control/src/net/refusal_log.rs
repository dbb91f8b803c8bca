//! Decides which refusals are logged: each once, and again with its count while it goes on. Any number of strangers may connect, so
//! that what is remembered and what is logged is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::admission::Refusal;
use crate::Time;
use crate::token_bucket::{Rate, TokenBucket};

/// Time after which a refusal that goes on is logged again, with how often it happened.
pub const REPEAT: Duration = Duration::from_secs(3600);

/// Maximum refusals remembered; the one that happened longest ago gives its place to another.
pub const MAX_REMEMBERED: usize = 256;

/// Lines of the log: a whole network at once, then one a minute.
const LINES: Rate = Rate { per_second: 1.0 / 60.0, burst: 64.0 };

/// One peer's refusal for one reason, by that peer or by this node.
type Key = (PeerId, Refusal, bool);

#[derive(Clone, Copy, Debug)]
struct Repeated {
    logged: Time,
    last: Time,
    /// Times that it happened since it was logged.
    unlogged: u64,
}

/// The refusals that happened lately.
#[derive(Debug)]
pub struct RefusalLog {
    known: BTreeMap<Key, Repeated>,
    lines: TokenBucket,
}

impl RefusalLog {
    /// Nothing has been refused yet.
    pub fn new(now: Time) -> RefusalLog {
        RefusalLog { known: BTreeMap::new(), lines: TokenBucket::full(LINES, now) }
    }

    /// A connection with `peer` was refused, by the peer (`by_peer`) or by this node. Returns how often that happened since it was
    /// logged last, itself included, if it is to be logged now.
    pub fn refused(&mut self, peer: PeerId, refusal: Refusal, by_peer: bool, now: Time) -> Option<u64> {
        let key = (peer, refusal, by_peer);
        if let Some(known) = self.known.get_mut(&key) {
            known.last = now;
            known.unlogged += 1;
            if now.since(known.logged) < REPEAT || self.lines.take(1, now).is_err() {
                return None;
            }
            known.logged = now;
            return Some(std::mem::take(&mut known.unlogged));
        }
        self.lines.take(1, now).ok()?;
        if self.known.len() >= MAX_REMEMBERED
            && let Some(oldest) = self.known.iter().min_by_key(|(_, known)| known.last).map(|(key, _)| *key)
        {
            self.known.remove(&oldest);
        }
        self.known.insert(key, Repeated { logged: now, last: now, unlogged: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::fresh_peer;

    #[test]
    fn a_refusal_that_goes_on_is_logged_once_and_then_counted() {
        let (mut log, peer) = (RefusalLog::new(Time::ZERO), fresh_peer());
        let mut refused = |refusal, by_peer, at| log.refused(peer, refusal, by_peer, at);
        assert_eq!(refused(Refusal::WrongKey, false, Time::ZERO), Some(1));
        let just_before = Time::ZERO + REPEAT - Duration::from_nanos(1);
        for _ in 0..118 {
            assert_eq!(refused(Refusal::WrongKey, false, just_before), None);
        }
        assert_eq!(refused(Refusal::WrongKey, true, just_before), Some(1), "the other side's");
        assert_eq!(refused(Refusal::Full, false, just_before), Some(1), "another reason");
        assert_eq!(refused(Refusal::WrongKey, false, Time::ZERO + REPEAT), Some(119));
        assert_eq!(refused(Refusal::WrongKey, false, Time::ZERO + REPEAT), None);
    }

    #[test]
    fn any_number_of_strangers_takes_a_limited_number_of_lines_and_entries() {
        let mut log = RefusalLog::new(Time::ZERO);
        let mut lines = 0;
        for second in 0..3600 {
            let at = Time::from_secs(second);
            lines += (0..10).filter(|_| log.refused(fresh_peer(), Refusal::WrongKey, false, at).is_some()).count();
        }
        let most = LINES.burst as usize + 60;
        assert!((most - 2..=most).contains(&lines), "{lines}");
        for _ in 0..2 * MAX_REMEMBERED {
            log.lines = TokenBucket::full(LINES, Time::ZERO);
            log.refused(fresh_peer(), Refusal::WrongKey, false, Time::from_secs(3600));
        }
        assert_eq!(log.known.len(), MAX_REMEMBERED);
    }
}
