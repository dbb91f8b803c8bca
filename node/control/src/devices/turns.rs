//! Decides which work computes next on the cores that all pools of a node share. A state machine without threads and cores.
//!
//! * Work for an answer begins at once: a token that a user reads waits for it. Work that began before continues
//!   beside it until its next piece of work.
//! * All other work asks before each piece, and continues while nothing more urgent computes.
//! * No class is starved: a class that has waited for [`Class::longest_wait`] computes for [`SLICE`] beside more urgent
//!   work; the operating system shares the cores then.
//!
//! Turns are deliberately not exclusive. An answer's step takes a millisecond or two on a small model and more than a
//! product's piece on a large one: if either waited for the end of the other, the wait would cost more than sharing the
//! cores does.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// Time that a class computes after its longest wait: some pieces of a product, so that the data they share stays in the
/// caches, and at most a few steps of an answer.
pub const SLICE: Duration = Duration::from_millis(5);

/// Classes of work, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Steps of a model for answers to users.
    Answers,
    /// Products and their checks, and the packing of weights.
    Products,
    /// Replays of audited answers, and measurements of this node's speed.
    Background,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Answers, Class::Products, Class::Background];

    /// The longest time that a class waits while more urgent classes compute without a pause.
    pub const fn longest_wait(self) -> Duration {
        match self {
            Class::Answers => Duration::ZERO,
            // Products get at least a quarter of the time.
            Class::Products => Duration::from_millis(15),
            // No caller waits for the result.
            Class::Background => Duration::from_millis(95),
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Number of a request for the next piece of work; the driver never uses a number twice.
pub type TurnId = u64;

/// An event of the turns.
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
    /// Until when each class computes regardless of more urgent work.
    slices: [Time; Class::ALL.len()],
}

impl Turns {
    /// The most urgent class that computes now.
    pub fn most_urgent(&self) -> Option<Class> {
        Class::ALL.into_iter().find(|class| self.computing[class.index()] > 0)
    }

    /// When [`Event::Tick`] is due: the end of the first longest wait.
    pub fn wake_at(&self) -> Option<Time> {
        let due = |class: Class| Some(self.waiting[class.index()].front()?.since + class.longest_wait());
        Class::ALL.into_iter().filter_map(due).min()
    }

    /// Handles `event` and returns the requests that may continue.
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

    /// Grants every request that may continue.
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
