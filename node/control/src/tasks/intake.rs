//! The tasks of one stream. A task waits until both operands are complete and match their digests, then until there is
//! memory for its result, and only then goes to the executor: a peer's claims cost neither memory nor time before they
//! are checked.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_units::{Digest, Error, ErrorKind};

use crate::Time;

/// Tasks that one peer may have at a worker, waiting or running.
pub const TASKS_PER_PEER: usize = 64;

/// Time that a task waits for the memory of its result. Earlier results are sent within seconds; otherwise the peer is
/// too slow for another one.
pub const RESULT_MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// The coordinator's number of a task.
pub type TaskId = u64;

/// A task as the peer requests it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Id of the task.
    pub task: TaskId,
    /// Digests of the left and the right operand.
    pub operands: [Digest; 2],
    /// Priority; higher runs first.
    pub priority: i8,
    /// Time from now after which the result is no longer wanted.
    pub deadline: Option<Duration>,
}

/// Why a worker refuses a task of a peer, whatever the task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node is draining.
    Draining,
    /// The peer is quarantined.
    Quarantined,
    /// The peer has as many tasks here as it may.
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// The peer sends tasks faster than it may.
    TooFast {
        /// When to try again.
        retry_after: Duration,
    },
    /// The peer has not taken its earlier results, which use up its share of the memory.
    ResultsUntaken {
        /// When to try again.
        retry_after: Duration,
    },
}

impl Refusal {
    fn error(self) -> Error {
        match self {
            Refusal::Draining => Error::new(ErrorKind::Unavailable, "this node is shutting down"),
            Refusal::Quarantined => {
                Error::new(ErrorKind::Unauthorized, "this node accepts no tasks from a quarantined peer")
            }
            Refusal::TooMany { .. } => {
                let why = format!("this worker already has {TASKS_PER_PEER} tasks of yours");
                Error::new(ErrorKind::Overloaded, why)
            }
            Refusal::TooFast { .. } => {
                let why = format!("this worker takes {} tasks of yours a second", super::TASKS_PER_S);
                Error::new(ErrorKind::Overloaded, why)
            }
            Refusal::ResultsUntaken { .. } => {
                let why = "your earlier results use up your share of this worker's memory; take them first";
                Error::new(ErrorKind::Overloaded, why)
            }
        }
    }

    fn retry_after(self) -> Option<Duration> {
        match self {
            Refusal::TooMany { retry_after }
            | Refusal::TooFast { retry_after }
            | Refusal::ResultsUntaken { retry_after } => Some(retry_after),
            Refusal::Draining | Refusal::Quarantined => None,
        }
    }
}

/// Highest priority of a peer's task: that of this node's ordinary jobs. A higher one would let any peer put
/// its work before everyone else's.
const PEER_PRIORITY_MAX: i8 = 0;

/// The priority that a peer's task gets on this node.
pub const fn peer_priority(asked: i8) -> i8 {
    if asked > PEER_PRIORITY_MAX { PEER_PRIORITY_MAX } else { asked }
}

/// Input of the intake.
#[derive(Clone, Debug)]
pub enum Event {
    /// A task arrived. `held` and `whole` say which of its operands are in the store, and which of those completely.
    Task {
        /// The task.
        terms: Terms,
        /// Whether each operand is in the store, complete or still arriving.
        held: [bool; 2],
        /// Whether each operand is complete.
        whole: [bool; 2],
        /// Why tasks of this peer are refused now; `None` if they are accepted.
        refusal: Option<Refusal>,
    },
    /// An operand starts to arrive, and memory for it is reserved.
    Admitted(Digest),
    /// An operand is complete and matches its digest.
    Whole(Digest),
    /// There is no memory for an operand, or its bytes do not match its digest.
    Refused(Digest, Error),
    /// The memory for a task's result is leased.
    Leased(TaskId),
    /// There is no memory for a task's result, or the task cannot be computed.
    Unleased(TaskId, Error),
    /// The peer did not take its earlier results in time to make room for a task's result.
    Untaken(TaskId, Refusal),
    /// The result of a task is no longer wanted.
    Cancel(TaskId),
    /// The executor has finished a task and sent its answer.
    Done(TaskId),
    /// Time has passed.
    Tick,
    /// The stream has ended.
    Ended,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Request these operands of a task from the peer: they are neither in the store nor arriving.
    AskFor(TaskId, Vec<Digest>),
    /// Lease memory for the result of a task whose operands are complete, and answer with [`Event::Leased`],
    /// [`Event::Unleased`] or [`Event::Untaken`].
    Lease(TaskId, [Digest; 2]),
    /// Compute a task, with this priority.
    Start(TaskId, i8),
    /// Answer a task that has not started with an error, and with the time after which the peer may try again where that
    /// is known, and release its memory.
    Fail(TaskId, Error, Option<Duration>),
    /// Remove a task that has not started, without an answer, and release its memory.
    Drop(TaskId),
    /// Stop a task that the executor has started.
    Stop(TaskId),
    /// Close the stream: the peer violated the protocol.
    Close(String),
}

/// Progress of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// These operands are not complete.
    Operands([bool; 2]),
    Memory,
    Executor,
}

#[derive(Clone, Copy, Debug)]
struct Accepted {
    terms: Terms,
    until: Option<Time>,
    stage: Stage,
}

/// The tasks of one stream.
#[derive(Debug)]
pub struct Intake {
    /// Maximum tasks of the peer at once.
    max_tasks: usize,
    tasks: BTreeMap<TaskId, Accepted>,
    /// Operands that were refused, and why: tasks that name them fail with that error.
    refused: BTreeMap<Digest, Error>,
}

impl Intake {
    /// An intake without tasks that accepts at most `max_tasks` at once.
    pub fn new(max_tasks: usize) -> Intake {
        Intake { max_tasks, tasks: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Whether a task that has not ended needs an operand, which must then stay in the store.
    pub fn needs(&self, digest: &Digest) -> bool {
        self.tasks.values().any(|accepted| accepted.terms.operands.contains(digest))
    }

    /// Time of the next [`Event::Tick`]: the first deadline.
    pub fn wake_at(&self) -> Option<Time> {
        self.tasks.values().filter_map(|accepted| accepted.until).min()
    }

    /// Processes an event; returns the actions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Task { terms, held, whole, refusal } => self.take(terms, held, whole, refusal, now, &mut actions),
            // An operand that was refused before has been accepted now.
            Event::Admitted(digest) => drop(self.refused.remove(&digest)),
            Event::Whole(digest) => self.whole(digest, &mut actions),
            Event::Refused(digest, error) => self.refuse(digest, error, &mut actions),
            Event::Leased(task) => {
                if let Some(accepted) = self.tasks.get_mut(&task).filter(|accepted| accepted.stage == Stage::Memory) {
                    accepted.stage = Stage::Executor;
                    actions.push(Action::Start(task, peer_priority(accepted.terms.priority)));
                }
            }
            Event::Unleased(task, error) => {
                if self.tasks.get(&task).is_some_and(|accepted| accepted.stage == Stage::Memory) {
                    self.fail(task, error, &mut actions);
                }
            }
            Event::Untaken(task, refusal) => {
                if self.tasks.get(&task).is_some_and(|accepted| accepted.stage == Stage::Memory) {
                    self.remove(task);
                    actions.push(Action::Fail(task, refusal.error(), refusal.retry_after()));
                }
            }
            Event::Cancel(task) => match self.tasks.get(&task).map(|accepted| accepted.stage) {
                Some(Stage::Executor) => actions.push(Action::Stop(task)),
                Some(_) => {
                    self.remove(task);
                    actions.push(Action::Drop(task));
                }
                None => {}
            },
            Event::Done(task) => self.remove(task),
            Event::Tick => self.expire(now, &mut actions),
            Event::Ended => {
                for (task, accepted) in std::mem::take(&mut self.tasks) {
                    let started = accepted.stage == Stage::Executor;
                    actions.push(if started { Action::Stop(task) } else { Action::Drop(task) });
                }
                self.refused.clear();
            }
        }
        actions
    }

    fn take(
        &mut self,
        terms: Terms,
        held: [bool; 2],
        whole: [bool; 2],
        refusal: Option<Refusal>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let task = terms.task;
        if self.tasks.contains_key(&task) {
            actions.push(Action::Close(format!("task {task} was sent twice")));
            return;
        }
        if let Some(refusal) = refusal {
            actions.push(Action::Fail(task, refusal.error(), refusal.retry_after()));
            return;
        }
        if self.tasks.len() >= self.max_tasks {
            let why = format!("this worker already has {} tasks of yours", self.max_tasks);
            actions.push(Action::Fail(task, Error::new(ErrorKind::Overloaded, why), None));
            return;
        }
        if let Some(error) = terms.operands.iter().find_map(|digest| self.refused.get(digest)) {
            actions.push(Action::Fail(task, error.clone(), None));
            self.forget_refusals();
            return;
        }
        let until = terms.deadline.map(|left| now + left);
        let lacking = terms.operands.into_iter().zip(held).filter_map(|(digest, held)| (!held).then_some(digest));
        let mut lacking: Vec<Digest> = lacking.collect();
        lacking.dedup();
        if !lacking.is_empty() {
            actions.push(Action::AskFor(task, lacking));
        }
        let missing = whole.map(|whole| !whole);
        self.tasks.insert(task, Accepted { terms, until, stage: Stage::Operands(missing) });
        self.lease_ready(actions);
    }

    /// An operand is complete: tasks that waited for it proceed.
    fn whole(&mut self, digest: Digest, actions: &mut Vec<Action>) {
        for accepted in self.tasks.values_mut() {
            if let Stage::Operands(missing) = &mut accepted.stage {
                for (missing, operand) in missing.iter_mut().zip(accepted.terms.operands) {
                    *missing &= operand != digest;
                }
            }
        }
        self.lease_ready(actions);
    }

    fn lease_ready(&mut self, actions: &mut Vec<Action>) {
        for (task, accepted) in &mut self.tasks {
            if accepted.stage == Stage::Operands([false; 2]) {
                accepted.stage = Stage::Memory;
                actions.push(Action::Lease(*task, accepted.terms.operands));
            }
        }
    }

    /// An operand was refused: tasks that wait for it or name it later fail.
    fn refuse(&mut self, digest: Digest, error: Error, actions: &mut Vec<Action>) {
        let waits = |accepted: &Accepted| {
            let Stage::Operands(missing) = accepted.stage else { return false };
            accepted.terms.operands.into_iter().zip(missing).any(|(operand, missing)| missing && operand == digest)
        };
        let failed: Vec<TaskId> =
            self.tasks.iter().filter(|(_, accepted)| waits(accepted)).map(|(task, _)| *task).collect();
        // An honest peer names at most two operands per task.
        if self.refused.len() >= 2 * self.max_tasks {
            self.refused.clear();
        }
        self.refused.insert(digest, error.clone());
        for task in failed {
            self.fail(task, error.clone(), actions);
        }
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        let over: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, accepted)| accepted.until.is_some_and(|until| until <= now))
            .map(|(task, _)| *task)
            .collect();
        for task in over {
            let Some(accepted) = self.tasks.get_mut(&task) else { continue };
            if accepted.stage == Stage::Executor {
                // The stop is sent once; the executor reacts within milliseconds.
                accepted.until = None;
                actions.push(Action::Stop(task));
            } else {
                let why = "the task's deadline passed before it could start";
                self.fail(task, Error::new(ErrorKind::DeadlineExceeded, why), actions);
            }
        }
    }

    fn fail(&mut self, task: TaskId, error: Error, actions: &mut Vec<Action>) {
        self.remove(task);
        actions.push(Action::Fail(task, error, None));
    }

    fn remove(&mut self, task: TaskId) {
        self.tasks.remove(&task);
        self.forget_refusals();
    }

    /// Without tasks, refusals are dropped; the next announcement is decided by the memory free then.
    fn forget_refusals(&mut self) {
        if self.tasks.is_empty() {
            self.refused.clear();
        }
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
