//! The tasks of one stream. A task waits until both operands are here and true to their digests, then until there is memory for
//! its result, and only then goes to the executor: what a peer claims costs neither memory nor time before it is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_units::{Digest, Error, ErrorKind};

use crate::Time;

/// The coordinator's number of a task.
pub type TaskId = u64;

/// What a peer asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The task.
    pub task: TaskId,
    /// Its operands, left and right.
    pub operands: [Digest; 2],
    /// Higher goes first.
    pub priority: i8,
    /// Time from now after which nobody wants the result.
    pub deadline: Option<Duration>,
}

/// Why a worker takes no task of a peer, whatever the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node drains.
    Draining,
    /// The peer was proven to lie.
    Quarantined,
}

impl Refusal {
    fn error(self) -> Error {
        match self {
            Refusal::Draining => Error::new(ErrorKind::Unavailable, "this node is shutting down"),
            Refusal::Quarantined => {
                Error::new(ErrorKind::Unauthorized, "this node takes no tasks from a peer that was proven to lie")
            }
        }
    }
}

/// The highest priority that a peer's task may have: that of this node's ordinary jobs. A higher one would let any peer put
/// its work before everybody else's.
const PEER_PRIORITY_MAX: i8 = 0;

/// The priority that a peer's task gets here.
pub const fn peer_priority(asked: i8) -> i8 {
    if asked > PEER_PRIORITY_MAX { PEER_PRIORITY_MAX } else { asked }
}

/// What happens on a stream.
#[derive(Clone, Debug)]
pub enum Event {
    /// A task arrived. `held` and `whole` say which of its operands are in the store, and which of those completely.
    Task {
        /// What is asked.
        terms: Terms,
        /// Whether each operand is here or on its way.
        held: [bool; 2],
        /// Whether each operand is here completely.
        whole: [bool; 2],
        /// Why no task of this peer is taken, if so.
        refusal: Option<Refusal>,
    },
    /// An operand begins to arrive and there is room for it.
    Admitted(Digest),
    /// An operand is here completely and is what its digest says.
    Whole(Digest),
    /// There is no room for an operand, or its bytes are not what its digest says.
    Refused(Digest, Error),
    /// The memory for a task's result is leased.
    Leased(TaskId),
    /// There is no memory for a task's result, or the task cannot be computed.
    Unleased(TaskId, Error),
    /// Nobody wants the task any more.
    Cancel(TaskId),
    /// The executor is done with a task and has answered it.
    Done(TaskId),
    /// Time has passed.
    Tick,
    /// The stream is over.
    Ended,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The peer must send these operands of a task: they are neither here nor on their way.
    AskFor(TaskId, Vec<Digest>),
    /// Lease memory for the result of a task whose operands are here, and say [`Event::Leased`] or [`Event::Unleased`].
    Lease(TaskId, [Digest; 2]),
    /// Compute a task, with this priority.
    Start(TaskId, i8),
    /// Answer a task, which has not started, with an error. Its memory is free again.
    Fail(TaskId, Error),
    /// Forget a task that has not started; nobody waits for an answer. Its memory is free again.
    Drop(TaskId),
    /// Stop a task that the executor has.
    Stop(TaskId),
    /// The peer broke the protocol.
    Close(String),
}

/// Where a task is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// These operands are not here completely.
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
    /// Tasks that one peer may have here at once.
    most_tasks: usize,
    tasks: BTreeMap<TaskId, Accepted>,
    /// Operands that cannot be had, and why: tasks that name them fail with it.
    refused: BTreeMap<Digest, Error>,
}

impl Intake {
    /// No tasks yet; at most `most_tasks` at once.
    pub fn new(most_tasks: usize) -> Intake {
        Intake { most_tasks, tasks: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Whether a task that has not ended needs an operand: it must stay in the store.
    pub fn needs(&self, digest: &Digest) -> bool {
        self.tasks.values().any(|accepted| accepted.terms.operands.contains(digest))
    }

    /// When [`Event::Tick`] is due: the first deadline.
    pub fn wake_at(&self) -> Option<Time> {
        self.tasks.values().filter_map(|accepted| accepted.until).min()
    }

    /// Takes in what happened; returns what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Task { terms, held, whole, refusal } => self.take(terms, held, whole, refusal, now, &mut actions),
            // The same operand is judged by what is known of it now.
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
            actions.push(Action::Close(format!("task {task} is sent twice")));
            return;
        }
        if let Some(refusal) = refusal {
            actions.push(Action::Fail(task, refusal.error()));
            return;
        }
        if self.tasks.len() >= self.most_tasks {
            let why = format!("{} of your tasks are here already", self.most_tasks);
            actions.push(Action::Fail(task, Error::new(ErrorKind::Overloaded, why)));
            return;
        }
        if let Some(error) = terms.operands.iter().find_map(|digest| self.refused.get(digest)) {
            actions.push(Action::Fail(task, error.clone()));
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

    /// An operand is here: tasks that waited for it go on.
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

    /// An operand cannot be had: tasks that wait for it fail, and those that name it later.
    fn refuse(&mut self, digest: Digest, error: Error, actions: &mut Vec<Action>) {
        let waits = |accepted: &Accepted| {
            let Stage::Operands(missing) = accepted.stage else { return false };
            accepted.terms.operands.into_iter().zip(missing).any(|(operand, missing)| missing && operand == digest)
        };
        let failed: Vec<TaskId> =
            self.tasks.iter().filter(|(_, accepted)| waits(accepted)).map(|(task, _)| *task).collect();
        // Two operands for each task of an honest peer.
        if self.refused.len() >= 2 * self.most_tasks {
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
                // Told once; the executor notices within milliseconds.
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
        actions.push(Action::Fail(task, error));
    }

    fn remove(&mut self, task: TaskId) {
        self.tasks.remove(&task);
        self.forget_refusals();
    }

    /// Refusals matter only to tasks that name them; without tasks the next announcement is judged by what is free then.
    fn forget_refusals(&mut self) {
        if self.tasks.is_empty() {
            self.refused.clear();
        }
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
