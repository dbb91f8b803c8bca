//! Who computes next on the cores that all pools of a node share. A state machine; it knows no thread and no core.
//!
//! * Whoever computes for an answer begins at once: every token that somebody reads waits for it. What began before goes on
//!   beside it until its next piece of work.
//! * Everybody else asks before each piece, and goes on while nothing more urgent computes.
//! * Nobody is starved: a class that has waited for [`Class::longest_wait`] computes for [`SLICE`] beside whatever is more
//!   urgent; the system shares the cores then.
//!
//! Turns are not exclusive on purpose. An answer's step takes a millisecond or two on a small model and more than a product's
//! piece on a large one: were either to wait for the other's end, the wait would cost more than the shared cores do.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// Time that a class computes once it has waited long enough: some pieces of a product, so that what they share stays in the
/// caches, and a few steps of an answer at most.
pub const SLICE: Duration = Duration::from_millis(5);

/// What is computed, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Steps of a model for answers that somebody reads.
    Answers,
    /// Products and their checks, and the packing of weights.
    Products,
    /// Replays of audited answers, and measurements of this node's speed.
    Background,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Answers, Class::Products, Class::Background];

    /// Time that a class waits at most while more urgent ones compute without a pause.
    pub const fn longest_wait(self) -> Duration {
        match self {
            Class::Answers => Duration::ZERO,
            // A quarter of the time is theirs at least.
            Class::Products => Duration::from_millis(15),
            // Nobody waits for the result.
            Class::Background => Duration::from_millis(95),
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Number of a request for the next piece of work; the driver never uses one twice.
pub type TurnId = u64;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Work of a class begins to compute.
    Begin(Class),
    /// Work of a class has ended.
    End(Class),
    /// A thread asks for the next piece of its work.
    Ask {
        /// Number of the request.
        turn: TurnId,
        /// The class of the work.
        class: Class,
    },
    /// Time has passed.
    Tick,
}

/// The answer to [`Event::Ask`]: each request gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The piece may be computed.
    Go(TurnId),
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    turn: TurnId,
    since: Time,
}

/// All work on the cores of a node.
#[derive(Debug, Default)]
pub struct Turns {
    computing: [usize; Class::ALL.len()],
    waiting: [VecDeque<Waiting>; Class::ALL.len()],
    /// Until when a class computes whatever else does.
    slices: [Time; Class::ALL.len()],
}

impl Turns {
    /// The most urgent class that computes now.
    pub fn most_urgent(&self) -> Option<Class> {
        Class::ALL.into_iter().find(|class| self.computing[class.index()] > 0)
    }

    /// When [`Event::Tick`] is due: somebody has waited long enough.
    pub fn wake_at(&self) -> Option<Time> {
        let due = |class: Class| Some(self.waiting[class.index()].front()?.since + class.longest_wait());
        Class::ALL.into_iter().filter_map(due).min()
    }

    /// Takes in what happened; returns the answers that come of it.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::Begin(class) => {
                self.computing[class.index()] += 1;
                return Vec::new();
            }
            Event::End(class) => {
                let computing = &mut self.computing[class.index()];
                *computing = computing.saturating_sub(1);
            }
            Event::Ask { turn, class } => self.waiting[class.index()].push_back(Waiting { turn, since: now }),
            Event::Tick => {}
        }
        self.serve(now)
    }

    /// Lets everybody go on who may.
    fn serve(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let most_urgent = self.most_urgent();
        for class in Class::ALL {
            let waiting = &mut self.waiting[class.index()];
            let Some(first) = waiting.front() else { continue };
            if most_urgent.is_some_and(|urgent| urgent < class) && self.slices[class.index()] <= now {
                if now.since(first.since) < class.longest_wait() {
                    continue;
                }
                self.slices[class.index()] = now + SLICE;
            }
            actions.extend(waiting.drain(..).map(|waiting| Action::Go(waiting.turn)));
        }
        actions
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
