//! Events on their way to one follower that may be slow. What is newest about a peer replaces what is older, so that a
//! follower that sleeps for an hour finds a list that is bounded by the peers there are, and nobody waits for it.

use std::collections::VecDeque;

use libp2p_identity::PeerId;

/// What an event means for the events that wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A peer is connected.
    Up(PeerId),
    /// A peer is not connected any more. A connection that the follower has not heard of yet is not told at all.
    Down(PeerId),
    /// News of a connected peer; replaces earlier news of the same topic.
    Latest(PeerId, Topic),
    /// An event that may be lost when the follower lags by more than [`MAX_PASSING`] of them.
    Passing,
}

/// What news is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The round-trip time.
    Rtt,
    /// Where the peer listens.
    Addresses,
}

/// Events that may be lost and wait at once: a message of each node of a large pool.
pub const MAX_PASSING: usize = 1024;

/// The waiting events of one follower, in order.
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
    /// Takes `event` in. Gives it back where there is no room for it, which happens to [`Kind::Passing`] alone.
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

    /// The event that the follower is to hear next.
    pub fn pop(&mut self) -> Option<E> {
        let (kind, event) = self.waiting.pop_front()?;
        if kind == Kind::Passing {
            self.passing -= 1;
        }
        Some(event)
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
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
    fn a_connection_that_broke_and_came_back_is_told_in_order_however_late() {
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
    fn news_replaces_older_news_of_its_topic_alone() {
        let (mut backlog, peer) = (Backlog::default(), peer(1));
        for rtt in 1..100 {
            backlog.push(Kind::Latest(peer, Topic::Rtt), rtt);
            backlog.push(Kind::Latest(peer, Topic::Addresses), -rtt);
        }
        assert_eq!([backlog.pop(), backlog.pop(), backlog.pop()], [Some(99), Some(-99), None]);
    }

    #[test]
    fn events_that_may_be_lost_are_given_back_at_the_bound_and_hold_up_nothing_else() {
        let mut backlog = Backlog::default();
        assert!((0..MAX_PASSING).all(|event| backlog.push(Kind::Passing, event).is_none()));
        assert_eq!(backlog.push(Kind::Passing, MAX_PASSING), Some(MAX_PASSING));
        assert_eq!(backlog.push(Kind::Up(peer(1)), 0), None);
        assert_eq!(backlog.pop(), Some(0));
        assert_eq!(backlog.push(Kind::Passing, MAX_PASSING), None);
    }

    proptest! {
        /// However slowly a follower reads: it hears of each connection's end before the next connection, ends with the peers
        /// that are connected, and never has more waiting than four events for each peer.
        #[test]
        fn a_slow_follower_ends_with_the_truth(steps in prop::collection::vec((0u64..5, 0u8..3), 0..300)) {
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
