//! When a term may be told: once the disk has it, so that no term goes back over a restart, and never where the disk refused
//! it. The election goes on deciding meanwhile; a slow disk delays nothing but the telling.

use std::time::Duration;

use super::advert::Term;
use crate::Time;

/// Time between a store that failed and the next attempt: a full disk may have room again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Store a term; answered with [`TermKeeper::stored`]. One at a time.
    Store(Term),
    /// From now on this is the node's term.
    Tell(Option<Term>),
}

/// The term that a node may tell of.
#[derive(Debug, Default)]
pub struct TermKeeper {
    /// What the election decided last.
    decided: Option<Term>,
    /// What may be told.
    told: Option<Term>,
    /// On disk, of what was decided in this run.
    on_disk: Option<Term>,
    storing: Option<Term>,
    retry_at: Option<Time>,
}

impl TermKeeper {
    /// The term that may be told.
    pub fn told(&self) -> Option<Term> {
        self.told
    }

    /// The highest counter that may be told, of the highest one that is `known`: not that of a term which is not told.
    pub fn counter(&self, known: u64) -> u64 {
        match self.decided.filter(|_| self.decided != self.told) {
            Some(untold) => known.min(untold.counter.saturating_sub(1)),
            None => known,
        }
    }

    /// The election decided that the node lives under `term`, or under none.
    pub fn decided(&mut self, term: Option<Term>) -> Vec<Action> {
        self.decided = term;
        self.retry_at = None;
        self.proceed()
    }

    /// The disk has taken `term`, or not.
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
        let tellable = self.decided.is_none() || self.decided == self.on_disk;
        // The old term lasts while the new one is being stored, and no longer once the disk refused the new one.
        let next = if tellable || self.retry_at.is_some() { self.decided.filter(|_| tellable) } else { self.told };
        if self.told != next {
            self.told = next;
            actions.push(Action::Tell(next));
        }
        if let Some(term) = self.decided.filter(|_| !tellable && self.storing.is_none() && self.retry_at.is_none()) {
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
    fn a_term_is_told_once_the_disk_has_it() {
        let mut keeper = TermKeeper::default();
        assert_eq!(keeper.decided(Some(term(1))), [Action::Store(term(1))]);
        assert_eq!((keeper.told(), keeper.tick(NOW)), (None, vec![]));
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Tell(Some(term(1)))]);
        assert_eq!(keeper.decided(None), [Action::Tell(None)]);
        assert_eq!(keeper.decided(Some(term(1))), [Action::Tell(Some(term(1)))], "the disk has it already");
    }

    #[test]
    fn a_term_that_the_disk_refuses_is_not_told_and_tried_again() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.stored(term(1), false, NOW), []);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL - Duration::from_nanos(1)), []);
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(1))]);
        assert_eq!(keeper.told(), None);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Tell(Some(term(1)))]);
    }

    #[test]
    fn decisions_during_a_slow_store_are_stored_after_it_and_the_overtaken_one_is_never_told() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        assert_eq!(keeper.decided(Some(term(2))), [], "one store at a time");
        assert_eq!(keeper.decided(Some(term(3))), []);
        assert_eq!(keeper.stored(term(1), true, NOW), [Action::Store(term(3))]);
        assert_eq!(keeper.stored(term(3), true, NOW), [Action::Tell(Some(term(3)))]);
    }

    #[test]
    fn the_old_term_lasts_until_the_new_one_is_stored_or_refused() {
        let mut keeper = TermKeeper::default();
        keeper.decided(Some(term(1)));
        keeper.stored(term(1), true, NOW);
        assert_eq!(keeper.decided(Some(term(2))), [Action::Store(term(2))]);
        assert_eq!((keeper.told(), keeper.counter(2)), (Some(term(1)), 1));
        assert_eq!(keeper.stored(term(2), false, NOW), [Action::Tell(None)]);
        assert_eq!((keeper.told(), keeper.counter(9)), (None, 1));
        assert_eq!(keeper.tick(NOW + RETRY_INTERVAL), [Action::Store(term(2))]);
        assert_eq!(keeper.decided(None), []);
        assert_eq!(keeper.stored(term(2), true, NOW), [], "nobody lives under it any more");
        assert_eq!(keeper.counter(9), 9);
    }
}
