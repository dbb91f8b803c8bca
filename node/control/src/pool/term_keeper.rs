//! Decides when a term is announced: once it is on disk, so that terms never go back across a restart. A term that this node
//! claims is never announced if the disk refused it; a term of another master is, because a node with a broken disk can still
//! follow. The election continues meanwhile; a slow disk delays only the announcement.

use std::time::Duration;

use libp2p_identity::PeerId;

use super::advert::Term;
use crate::Time;

/// Delay before a failed store is retried: a full disk may have room again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Store a term; the driver answers with [`TermKeeper::stored`]. One at a time.
    Store(Term),
    /// Announce this as the node's term.
    Announce(Option<Term>),
    /// Tell the election that the disk refused a term which this node claims
    /// ([`NotStored`](super::election::Event::NotStored)).
    GiveUp(Term),
}

/// The term that a node announces.
#[derive(Debug)]
pub struct TermKeeper {
    local: PeerId,
    /// Last decision of the election.
    decided: Option<Term>,
    /// The announced term.
    announced: Option<Term>,
    /// The term of this run that is on disk.
    on_disk: Option<Term>,
    /// The last decision, if the disk refused it.
    refused: Option<Term>,
    storing: Option<Term>,
    retry_at: Option<Time>,
}

impl TermKeeper {
    /// The keeper of node `local`, which announces no term yet.
    pub fn new(local: PeerId) -> TermKeeper {
        TermKeeper {
            local,
            decided: None,
            announced: None,
            on_disk: None,
            refused: None,
            storing: None,
            retry_at: None,
        }
    }

    /// The announced term.
    pub fn announced(&self) -> Option<Term> {
        self.announced
    }

    /// The highest counter that may be announced, given the highest `known` one: a term that is not announced yet is
    /// left out.
    pub fn counter(&self, known: u64) -> u64 {
        match self.decided.filter(|_| self.decided != self.announced) {
            Some(unannounced) => known.min(unannounced.counter.saturating_sub(1)),
            None => known,
        }
    }

    /// The election decided that the node lives under `term`, or under none.
    pub fn decided(&mut self, term: Option<Term>) -> Vec<Action> {
        self.decided = term;
        (self.refused, self.retry_at) = (None, None);
        self.proceed()
    }

    /// The disk stored `term`, or failed to.
    pub fn stored(&mut self, term: Term, taken: bool, now: Time) -> Vec<Action> {
        self.storing = None;
        let mut actions = Vec::new();
        if taken {
            self.on_disk = Some(term);
        } else if self.decided == Some(term) {
            self.refused = Some(term);
            self.retry_at = Some(now + RETRY_INTERVAL);
            actions.extend((term.master == self.local).then_some(Action::GiveUp(term)));
        }
        let next = self.proceed();
        [next, actions].concat()
    }

    /// Time passed.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        self.proceed()
    }

    fn proceed(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_stored = self.decided.is_none() || self.decided == self.on_disk;
        let is_refused = self.decided.is_some() && self.decided == self.refused;
        let follows = self.decided.is_some_and(|term| term.master != self.local);
        // The old term lasts while the new one is being stored.
        let next = if is_stored || (is_refused && follows) {
            self.decided
        } else if is_refused {
            None
        } else {
            self.announced
        };
        if self.announced != next {
            self.announced = next;
            actions.push(Action::Announce(next));
        }
        if let Some(term) = self.decided.filter(|_| !is_stored && self.storing.is_none() && self.retry_at.is_none()) {
            self.storing = Some(term);
            actions.push(Action::Store(term));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    const NOW: Time = Time::from_secs(10);

    /// No master of [`term`].
    const OWN: u64 = 100;

    fn term(counter: u64) -> Term {
        Term { counter, master: peer(counter) }
    }

    #[test]
    fn a_term_is_announced_once_it_is_on_disk() {
        let mut keeper = TermKeeper::new(peer(OWN));
        assert_eq!(keeper.decided(Some(term(1))), [Action::Store(term(1))]);
        assert_eq!((keeper.announced(), keeper.tick(NOW)), (None, vec![]));
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Announce(Some(term(1)))]);
        assert_eq!(keeper.decided(None), [Action::Announce(None)]);
        assert_eq!(keeper.decided(Some(term(1))), [Action::Announce(Some(term(1)))], "the disk has it already");
    }

    #[test]
    fn a_claim_that_the_disk_refuses_is_not_announced_and_given_up() {
        let mut keeper = TermKeeper::new(peer(1));
        assert_eq!(keeper.decided(Some(term(1))), [Action::Store(term(1))]);
        assert_eq!(keeper.stored(term(1), false, NOW), [Action::GiveUp(term(1))]);
        assert_eq!((keeper.announced(), keeper.counter(1)), (None, 0));
        assert_eq!(keeper.decided(None), [], "what the election answers");
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), []);
        // The election claims again later, and the disk has room.
        assert_eq!(keeper.decided(Some(term(1))), [Action::Store(term(1))]);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Announce(Some(term(1)))]);
    }

    #[test]
    fn another_masters_term_that_the_disk_refuses_is_followed_and_stored_later() {
        let mut keeper = TermKeeper::new(peer(OWN));
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.stored(term(1), false, NOW), [Action::Announce(Some(term(1)))]);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL - Duration::from_nanos(1)), []);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(1))]);
        assert_eq!(keeper.stored(term(1), true, NOW), []);
        assert_eq!(keeper.announced(), Some(term(1)));
    }

    #[test]
    fn only_the_last_decision_during_a_slow_store_is_announced() {
        let mut keeper = TermKeeper::new(peer(OWN));
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.decided(Some(term(2))), [], "one store at a time");
        assert_eq!(keeper.decided(Some(term(3))), []);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Store(term(3))]);
        assert_eq!(keeper.stored(term(3), true, NOW), [Action::Announce(Some(term(3)))]);
    }

    #[test]
    fn the_old_term_lasts_until_the_new_one_is_stored_or_refused() {
        let mut keeper = TermKeeper::new(peer(2));
        keeper.decided(Some(term(1)));
        keeper.stored(term(1), true, NOW);
        assert_eq!(keeper.decided(Some(term(2))), [Action::Store(term(2))]);
        assert_eq!((keeper.announced(), keeper.counter(2)), (Some(term(1)), 1));
        assert_eq!(keeper.stored(term(2), false, NOW), [Action::Announce(None), Action::GiveUp(term(2))]);
        assert_eq!((keeper.announced(), keeper.counter(9)), (None, 1));
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(2))]);
        assert_eq!(keeper.decided(None), []);
        assert_eq!(keeper.stored(term(2), true, NOW), [], "the decision has changed since");
        assert_eq!(keeper.counter(9), 9);
    }
}
