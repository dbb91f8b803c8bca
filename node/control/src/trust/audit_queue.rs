//! The answers that wait for their audit, and how much of the time an audit gets. Audits that a request waits for come first,
//! then those of suspects, then drawn ones; each has a deadline, and whatever is not audited by then is returned as such. Nothing
//! is recomputed here.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// Time within which an answer is audited. Receipts of later answers need the place, and a lie found later helps nobody.
pub const AUDIT_DEADLINE: Duration = Duration::from_secs(600);

/// Answers that wait for an audit at most: an idle node audits some hundred short answers within the deadline.
pub const WAITING_MAX: usize = 256;

/// While the node has sessions, an audit that nobody waits for rests this many times as long as its last piece took, so that it
/// gets a tenth of the time whatever the sessions do. What it takes of the cores is bounded further by their turns.
const REST_PER_WORK: u32 = 9;

/// Longest rest between two pieces: a piece that waited for the disk or the cores says little about the next one.
const REST_MAX: Duration = Duration::from_secs(5);

/// How urgent an audit is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A request waits for it.
    Awaited,
    /// Signatures are missing, or a stage is on a suspect.
    Suspect,
    /// It was drawn.
    Drawn,
}

#[derive(Debug)]
struct Waiting<T> {
    urgency: Urgency,
    deadline: Time,
    item: T,
}

/// Why an answer was not audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// Too many other audits wait.
    Crowded,
    /// It was not audited within [`AUDIT_DEADLINE`].
    Late,
}

/// The answers that wait for their audit.
#[derive(Debug)]
pub struct AuditQueue<T> {
    waiting: VecDeque<Waiting<T>>,
}

impl<T> Default for AuditQueue<T> {
    fn default() -> AuditQueue<T> {
        AuditQueue { waiting: VecDeque::new() }
    }
}

impl<T> AuditQueue<T> {
    /// Adds an answer; returns the one that has no place, if there is one: the youngest of the least urgent.
    pub fn push(&mut self, item: T, urgency: Urgency, now: Time) -> Option<T> {
        let at = self.waiting.partition_point(|other| other.urgency <= urgency);
        self.waiting.insert(at, Waiting { urgency, deadline: now + AUDIT_DEADLINE, item });
        if self.waiting.len() > WAITING_MAX { self.waiting.pop_back().map(|waiting| waiting.item) } else { None }
    }

    /// Takes the next answer to audit, with its deadline.
    pub fn pop(&mut self) -> Option<(T, Time)> {
        self.waiting.pop_front().map(|waiting| (waiting.item, waiting.deadline))
    }

    /// Takes the answers whose deadline has passed.
    pub fn take_late(&mut self, now: Time) -> Vec<T> {
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|one| one.deadline <= now);
        self.waiting = waiting;
        late.into_iter().map(|waiting: Waiting<T>| waiting.item).collect()
    }

    /// Number of answers that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no answer waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// What an audit does before its next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Compute the piece.
    Go,
    /// Ask again after this time.
    Rest(Duration),
    /// End the audit: its deadline has passed.
    Stop,
}

/// The pace of one audit.
#[derive(Clone, Copy, Debug)]
pub struct AuditPace {
    urgency: Urgency,
    deadline: Time,
    /// When the last piece began, and when it ended.
    piece: Option<(Time, Time)>,
}

impl AuditPace {
    /// The pace of an audit that begins now.
    pub fn new(urgency: Urgency, deadline: Time) -> AuditPace {
        AuditPace { urgency, deadline, piece: None }
    }

    /// When the audit ends, done or not.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// A piece began at `began` and has ended.
    pub fn worked(&mut self, began: Time, now: Time) {
        self.piece = Some((began, now));
    }

    /// Whether the next piece may begin. `busy`: whether the node has sessions.
    pub fn next(&self, busy: bool, now: Time) -> Pace {
        if self.deadline <= now {
            return Pace::Stop;
        }
        let Some((began, ended)) = self.piece.filter(|_| busy && self.urgency != Urgency::Awaited) else {
            return Pace::Go;
        };
        let rest = (ended.since(began) * REST_PER_WORK).min(REST_MAX);
        match rest.checked_sub(now.since(ended)).filter(|left| !left.is_zero()) {
            Some(left) => Pace::Rest(left),
            None => Pace::Go,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn awaited_audits_come_first_then_those_of_suspects_then_drawn_ones_in_order() {
        let mut queue = AuditQueue::default();
        for (item, urgency) in [
            (1, Urgency::Drawn),
            (2, Urgency::Suspect),
            (3, Urgency::Drawn),
            (4, Urgency::Awaited),
            (5, Urgency::Suspect),
            (6, Urgency::Awaited),
        ] {
            assert_eq!(queue.push(item, urgency, at(0)), None);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(item, _)| item).collect();
        assert_eq!(order, [4, 6, 2, 5, 1, 3]);
    }

    #[test]
    fn drawn_audits_without_end_push_out_neither_suspects_nor_awaited_ones() {
        let mut queue = AuditQueue::default();
        for item in 0..WAITING_MAX {
            assert_eq!(queue.push(item, Urgency::Drawn, at(0)), None);
        }
        assert_eq!(queue.push(1000, Urgency::Drawn, at(0)), Some(1000), "the newcomer has no place");
        assert_eq!(queue.push(1001, Urgency::Suspect, at(0)), Some(WAITING_MAX - 1));
        assert_eq!(queue.push(1002, Urgency::Awaited, at(0)), Some(WAITING_MAX - 2));
        assert_eq!(queue.len(), WAITING_MAX);
        assert_eq!([queue.pop(), queue.pop()].map(|next| next.unwrap().0), [1002, 1001]);
    }

    #[test]
    fn an_answer_that_waited_until_its_deadline_is_not_audited() {
        let mut queue = AuditQueue::default();
        queue.push(1, Urgency::Drawn, at(0));
        queue.push(2, Urgency::Awaited, at(5));
        assert!(!queue.is_empty());
        let deadline = Time::since_epoch(AUDIT_DEADLINE);
        assert!(queue.take_late(Time::since_epoch(AUDIT_DEADLINE - Duration::from_millis(1))).is_empty());
        assert_eq!(queue.take_late(deadline), [1]);
        assert_eq!(queue.pop(), Some((2, at(5) + AUDIT_DEADLINE)));
        assert!(queue.is_empty());
    }

    /// Whatever the sessions of the node do, a drawn audit gets a tenth of the time, and ends at its deadline.
    #[test]
    fn a_busy_node_audits_all_the_same_with_a_share_of_its_time() {
        let deadline = Time::since_epoch(AUDIT_DEADLINE);
        let mut pace = AuditPace::new(Urgency::Drawn, deadline);
        assert_eq!(pace.deadline(), deadline);
        let (mut now, mut worked) = (Time::ZERO, Duration::ZERO);
        let piece = Duration::from_millis(40);
        loop {
            match pace.next(true, now) {
                Pace::Go => {
                    let began = now;
                    now += piece;
                    worked += piece;
                    pace.worked(began, now);
                }
                Pace::Rest(rest) => {
                    assert!(!rest.is_zero() && rest <= piece * REST_PER_WORK);
                    now += rest;
                }
                Pace::Stop => break,
            }
        }
        assert!(now >= deadline);
        assert!(worked > AUDIT_DEADLINE / 11 && worked < AUDIT_DEADLINE / 9, "{worked:?}");
    }

    #[test]
    fn an_awaited_audit_and_an_idle_node_never_rest() {
        for (urgency, busy) in [(Urgency::Awaited, true), (Urgency::Suspect, false), (Urgency::Drawn, false)] {
            let mut pace = AuditPace::new(urgency, at(1000));
            pace.worked(at(0), at(500));
            assert_eq!(pace.next(busy, at(500)), Pace::Go);
            assert_eq!(pace.next(busy, at(1000)), Pace::Stop);
        }
        let mut long = AuditPace::new(Urgency::Drawn, at(1_000_000));
        long.worked(at(0), at(100_000));
        assert_eq!(long.next(true, at(100_000)), Pace::Rest(REST_MAX));
    }
}
