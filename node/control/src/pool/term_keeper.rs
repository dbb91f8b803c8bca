//! Decides when a term is announced: once it is on disk, so that terms never go back across a restart, and never if the disk
//! refused it. The election continues meanwhile; a slow disk delays only the announcement.

use std::time::Duration;

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
}

/// The term that a node announces.
#[derive(Debug, Default)]
pub struct TermKeeper {
    /// Last decision of the election.
    decided: Option<Term>,
    /// The announced term.
    announced: Option<Term>,
    /// The term of this run that is on disk.
    on_disk: Option<Term>,
    storing: Option<Term>,
    retry_at: Option<Time>,
}

impl TermKeeper {
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
        self.retry_at = None;
        self.proceed()
    }

    /// The disk stored `term`, or failed to.
    pub fn stored(&mut self, term: Term, taken: bool, now: Time) -> Vec<Action> {
        self.storing = None;
        if taken {
            self.on_disk = Some(term);
        } else if self.decided == Some(term) {
            self.retry_at = Some(now + RETRY_INTERVAL);
        }
        self.proceed()
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
        let announceable = self.decided.is_none() || self.decided == self.on_disk;
        // The old term lasts while the new one is being stored, and no longer once the disk refused the new one.
        let next = if announceable || self.retry_at.is_some() {
            self.decided.filter(|_| announceable)
        } else {
            self.announced
        };
        if self.announced != next {
            self.announced = next;
            actions.push(Action::Announce(next));
        }
        if let Some(term) = self.decided.filter(|_| !announceable && self.storing.is_none() && self.retry_at.is_none())
        {
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

    fn term(counter: u64) -> Term {
        Term { counter, master: peer(counter) }
    }

    #[test]
    fn a_term_is_announced_once_it_is_on_disk() {
        let mut keeper = TermKeeper::default();
        assert_eq!(keeper.decided(Some(term(1))), [Action::Store(term(1))]);
        assert_eq!((keeper.announced(), keeper.tick(NOW)), (None, vec![]));
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Announce(Some(term(1)))]);
        assert_eq!(keeper.decided(None), [Action::Announce(None)]);
        assert_eq!(keeper.decided(Some(term(1))), [Action::Announce(Some(term(1)))], "the disk has it already");
    }

    #[test]
    fn a_term_that_the_disk_refuses_is_not_announced_and_retried() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.stored(term(1), false, NOW), []);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL - Duration::from_nanos(1)), []);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(1))]);
        assert_eq!(keeper.announced(), None);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Announce(Some(term(1)))]);
    }

    #[test]
    fn only_the_last_decision_during_a_slow_store_is_announced() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.decided(Some(term(2))), [], "one store at a time");
        assert_eq!(keeper.decided(Some(term(3))), []);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Store(term(3))]);
        assert_eq!(keeper.stored(term(3), true, NOW), [Action::Announce(Some(term(3)))]);
    }

    #[test]
    fn the_old_term_lasts_until_the_new_one_is_stored_or_refused() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        keeper.stored(term(1), true, NOW);
        assert_eq!(keeper.decided(Some(term(2))), [Action::Store(term(2))]);
        assert_eq!((keeper.announced(), keeper.counter(2)), (Some(term(1)), 1));
        assert_eq!(keeper.stored(term(2), false, NOW), [Action::Announce(None)]);
        assert_eq!((keeper.announced(), keeper.counter(9)), (None, 1));
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(2))]);
        assert_eq!(keeper.decided(None), []);
        assert_eq!(keeper.stored(term(2), true, NOW), [], "the decision has changed since");
        assert_eq!(keeper.counter(9), 9);
    }
}
