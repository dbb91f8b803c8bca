//! A worker's side of a task stream against a coordinator that sends what the bytes say: each task is answered once or dropped for
//! a reason, only complete operands are computed with, nobody has more tasks or operands than one peer may, and the end of the
//! stream leaves nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pangea_control::Time;
use pangea_control::tasks::{Action, Admission, Event, Intake, OperandStore, Refusal, TASKS_PER_PEER, TaskId, Terms};
use pangea_units::{Digest, Error, ErrorKind};

use crate::bytes::Bytes;

/// Memory of the worker, in bytes; operands are as large as a sixteenth of it.
const MEMORY: u64 = 4096;

/// The peer.
const OWNER: u8 = 1;

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Taken,
    Leased,
    Started,
}

struct Run<'a> {
    bytes: Bytes<'a>,
    intake: Intake,
    store: OperandStore<u8, (), ()>,
    tasks: BTreeMap<TaskId, (Terms, Task)>,
    now: Time,
    is_closed: bool,
}

/// Plays a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut run = Run {
        bytes: Bytes::new(bytes),
        intake: Intake::new(TASKS_PER_PEER),
        store: OperandStore::new(MEMORY),
        tasks: BTreeMap::new(),
        now: Time::from_secs(1),
        is_closed: false,
    };
    while !run.bytes.is_empty() && !run.is_closed {
        run.event();
        run.check();
    }
    run.handle(Event::Ended);
    run.store.remove_owner(OWNER);
    assert!(run.tasks.values().all(|(_, task)| *task == Task::Started), "tasks are left: {:?}", run.tasks);
    assert!((0..=u8::MAX).all(|number| !run.intake.needs(&digest(number))), "an operand is needed after the end");
    assert_eq!((run.store.used(), run.intake.wake_at()), (0, None));
}

fn digest(number: u8) -> Digest {
    Digest([number; 32])
}

fn error() -> Error {
    Error::new(ErrorKind::Overloaded, "the run says so")
}

impl Run<'_> {
    fn event(&mut self) {
        match self.bytes.below(10) {
            0..=3 => self.task(),
            4 | 5 => self.operand(),
            6 => {
                let digest = digest(self.bytes.below(12) as u8);
                if self.store.knows(OWNER, &digest) {
                    self.store.complete(OWNER, digest, ());
                    self.handle(Event::Whole(digest));
                }
            }
            7 => {
                let task = self.bytes.below(80) as u64;
                self.handle(Event::Cancel(task));
            }
            8 => {
                // The executor is done with one that it has.
                let started = self.tasks.iter().filter(|(_, (_, task))| *task == Task::Started).map(|(id, _)| *id);
                let started: Vec<TaskId> = started.collect();
                if !started.is_empty() {
                    let task = started[self.bytes.below(started.len())];
                    self.tasks.remove(&task);
                    self.handle(Event::Done(task));
                }
            }
            _ => {
                self.now += Duration::from_millis(u64::from(self.bytes.byte()) * 20);
                if self.intake.wake_at().is_some_and(|at| at <= self.now) {
                    self.handle(Event::Tick);
                    assert!(self.intake.wake_at().is_none_or(|at| at > self.now), "a deadline that passed is left");
                }
            }
        }
    }

    fn task(&mut self) {
        let terms = Terms {
            task: self.bytes.below(80) as u64,
            operands: [0; 2].map(|_: u8| digest(self.bytes.below(12) as u8)),
            priority: self.bytes.byte() as i8,
            deadline: self.bytes.is_rare(60).then(|| Duration::from_millis(self.bytes.number().min(1 << 40))),
        };
        let refusal = match self.bytes.below(20) {
            0 => Some(Refusal::Draining),
            1 => Some(Refusal::Quarantined),
            _ => None,
        };
        let held = terms.operands.map(|digest| self.store.knows(OWNER, &digest));
        let whole = terms.operands.map(|digest| self.store.get(OWNER, &digest).is_some());
        let is_new = self.tasks.insert(terms.task, (terms, Task::Taken));
        if let Some(before) = is_new {
            // The intake must close the stream; the earlier one goes on until then.
            self.tasks.insert(terms.task, before);
        }
        self.handle(Event::Task { terms, held, whole, refusal });
        assert!(is_new.is_none() || self.is_closed, "a task was taken twice");
    }

    fn operand(&mut self) {
        let digest = digest(self.bytes.below(12) as u8);
        if self.store.knows(OWNER, &digest) {
            return;
        }
        let size = self.bytes.number().min(2 * MEMORY) * 4;
        let short = self.bytes.is_rare(20);
        let intake = &self.intake;
        let admitted = self.store.admit(
            OWNER,
            digest,
            size,
            |digest| intake.needs(digest),
            |_| if short { Err(error()) } else { Ok(()) },
        );
        match admitted {
            Ok(Admission::Known) => {}
            Ok(Admission::Receive { evicted }) => {
                assert!(evicted.iter().all(|gone| !self.intake.needs(gone)), "an operand that a task needs is evicted");
                self.handle(Event::Admitted(digest));
            }
            Err(error) => self.handle(Event::Refused(digest, error)),
        }
    }

    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.intake.handle(event, self.now) {
                events.extend(self.perform(action));
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::AskFor(task, digests) => {
                assert!(self.tasks.contains_key(&task) && !digests.is_empty());
                None
            }
            Action::Lease(task, operands) => {
                let (terms, state) = self.tasks.get_mut(&task)?;
                assert_eq!((terms.operands, *state), (operands, Task::Taken), "memory for a task that is not ready");
                *state = Task::Leased;
                let here = operands.iter().all(|digest| self.store.get(OWNER, digest).is_some());
                match here && !self.bytes.is_rare(20) {
                    true => Some(Event::Leased(task)),
                    false => Some(Event::Unleased(task, error())),
                }
            }
            Action::Start(task, priority) => {
                let (_, state) = self.tasks.get_mut(&task)?;
                assert!(*state == Task::Leased && priority <= 0, "{state:?} starts with priority {priority}");
                *state = Task::Started;
                None
            }
            Action::Fail(task, ..) | Action::Drop(task) => {
                let ended = self.tasks.remove(&task);
                assert!(ended.is_some_and(|(_, state)| state != Task::Started), "{task} ends twice, or while it runs");
                None
            }
            Action::Stop(task) => {
                assert!(self.tasks.get(&task).is_some_and(|(_, state)| *state == Task::Started), "{task} does not run");
                None
            }
            Action::Close(_) => {
                self.is_closed = true;
                None
            }
        }
    }

    fn check(&self) {
        assert!(self.tasks.len() <= TASKS_PER_PEER, "{} tasks", self.tasks.len());
        assert!(self.store.used() <= self.store.quota().max(MEMORY), "{} bytes of operands", self.store.used());
    }
}
