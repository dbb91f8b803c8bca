//! Queued events of one follower, which may be slow. The latest news about a peer replaces older news, so that the
//! queue of a follower that pauses for an hour is bounded by the number of peers, and nobody waits for it.

use std::collections::VecDeque;

use libp2p_identity::PeerId;

/// How an event affects the events that are queued already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A peer connected.
    Up(PeerId),
    /// A peer disconnected. A connection that the follower has not seen yet is removed from the queue instead.
    Down(PeerId),
    /// News of a connected peer; replaces queued news of the same topic.
    Latest(PeerId, Topic),
    /// An event that is dropped when the follower lags by more than [`MAX_PASSING`] of them.
    Passing,
}

/// Topic of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The round-trip time.
    Rtt,
    /// The peer's listen addresses.
    Addresses,
}

/// Maximum queued events that may be dropped: a message from each node of a large pool.
pub const MAX_PASSING: usize = 1024;

/// The queued events of one follower, in order.
#[derive(Debug)]
pub struct Backlog<E> {
    waiting: VecDeque<(Kind, E)>,
    passing: usize,
}

impl<E> Default for Backlog<E> {
    fn default() -> Self {
        Backlog { waiting: VecDeque::new(), passing: 0 }
    }
}

impl<E> Backlog<E> {
    /// Queues `event`. Returns it if there is no room, which happens only to [`Kind::Passing`].
    pub fn push(&mut self, kind: Kind, event: E) -> Option<E> {
        match kind {
            Kind::Down(peer) => {
                let unheard = self.waiting.iter().any(|(kind, _)| *kind == Kind::Up(peer));
                self.waiting.retain(|(kind, _)| !matches!(kind, Kind::Up(of) | Kind::Latest(of, _) if *of == peer));
                if unheard {
                    return None;
                }
            }
            Kind::Latest(..) => {
                if let Some(known) = self.waiting.iter_mut().find(|(known, _)| *known == kind) {
                    known.1 = event;
                    return None;
                }
            }
            Kind::Passing if self.passing >= MAX_PASSING => return Some(event),
            Kind::Passing => self.passing += 1,
            Kind::Up(_) => {}
        }
        self.waiting.push_back((kind, event));
        None
    }

    /// Removes the follower's next event.
    pub fn pop(&mut self) -> Option<E> {
        let (kind, event) = self.waiting.pop_front()?;
        if kind == Kind::Passing {
            self.passing -= 1;
        }
        Some(event)
    }

    /// Number of queued events.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no event is queued.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::peer;

    #[test]
    fn a_reconnection_is_reported_in_order_however_late() {
        let (mut backlog, peer) = (Backlog::default(), peer(1));
        for (kind, event) in
            [(Kind::Down(peer), "first down"), (Kind::Up(peer), "up"), (Kind::Down(peer), "second down")]
        {
            backlog.push(kind, event);
        }
        backlog.push(Kind::Up(peer), "up again");
        assert_eq!([backlog.pop(), backlog.pop(), backlog.pop()], [Some("first down"), Some("up again"), None]);
    }

    #[test]
    fn news_replaces_only_older_news_of_its_topic() {
        let (mut backlog, peer) = (Backlog::default(), peer(1));
        for rtt in 1..100 {
            backlog.push(Kind::Latest(peer, Topic::Rtt), rtt);
            backlog.push(Kind::Latest(peer, Topic::Addresses), -rtt);
        }
        assert_eq!([backlog.pop(), backlog.pop(), backlog.pop()], [Some(99), Some(-99), None]);
    }

    #[test]
    fn passing_events_are_returned_at_the_limit_and_delay_no_others() {
        let mut backlog = Backlog::default();
        assert!((0..MAX_PASSING).all(|event| backlog.push(Kind::Passing, event).is_none()));
        assert_eq!(backlog.push(Kind::Passing, MAX_PASSING), Some(MAX_PASSING));
        assert_eq!(backlog.push(Kind::Up(peer(1)), 0), None);
        assert_eq!(backlog.pop(), Some(0));
        assert_eq!(backlog.push(Kind::Passing, MAX_PASSING), None);
    }

    proptest! {
        /// However slowly a follower reads, it sees the end of each connection before the next connection, ends with
        /// the peers that are connected, and never has more than four queued events per peer.
        #[test]
        fn a_slow_follower_ends_with_the_current_state(steps in prop::collection::vec((0u64..5, 0u8..3), 0..300)) {
            let mut backlog = Backlog::default();
            let (mut connected, mut followed) = (BTreeSet::new(), BTreeMap::new());
            let mut hear = |event: (u64, u8)| match event {
                (number, 0) => prop_assert_eq_ok(followed.insert(number, ()).is_none()),
                (number, 1) => prop_assert_eq_ok(followed.remove(&number).is_some()),
                (number, _) => prop_assert_eq_ok(followed.contains_key(&number)),
            };
            for (number, step) in steps {
                match step {
                    0 if connected.insert(number) => drop(backlog.push(Kind::Up(peer(number)), (number, 0))),
                    0 => {
                        connected.remove(&number);
                        backlog.push(Kind::Down(peer(number)), (number, 1));
                    }
                    1 if connected.contains(&number) => {
                        backlog.push(Kind::Latest(peer(number), Topic::Rtt), (number, 2));
                    }
                    _ => if let Some(event) = backlog.pop() { hear(event)? },
                }
                prop_assert!(backlog.len() <= 5 * 4);
            }
            while let Some(event) = backlog.pop() {
                hear(event)?;
            }
            prop_assert_eq!(followed.into_keys().collect::<BTreeSet<_>>(), connected);
        }
    }

    fn prop_assert_eq_ok(holds: bool) -> Result<(), TestCaseError> {
        prop_assert!(holds);
        Ok(())
    }
}
