//! What is bent on task streams. A worker may refuse what it could compute, be late on purpose, answer what nobody asked; a
//! coordinator may ask for more than anybody can give.

use std::time::Duration;

use pangea_control::schedule::WorkerId;
use pangea_control::schedule::limits::SILENCE;
use pangea_control::tasks::{TASKS_PER_PEER, TaskId, Terms};
use pangea_units::{Digest, Error, ErrorKind};

use crate::checks::Broken;
use crate::deviations::Deviation;
use crate::network::{Message, StreamNumber};
use crate::scenario::{Micros, SECOND};
use crate::worker::TaskMessage;
use crate::world::{Happening, World};

/// Just under the silence after which a coordinator gives a task to another worker.
const STALL: Micros = (SILENCE.as_micros() - Duration::from_millis(100).as_micros()) as Micros;

/// How often a worker says that it has started, which is well within that silence.
const STARTED_AGAIN: Micros = 2 * SECOND;

/// From here on the numbers of tasks are those of a flood.
pub(crate) const FLOODED: TaskId = 1 << 62;

/// From here on the numbers of tasks are those that nobody asked for.
pub(crate) const UNASKED: TaskId = 1 << 61;

/// What a worker does with a task that it has computed.
pub(crate) enum Answer {
    /// Returns the tile.
    Tile {
        /// Whether the tile is wrong.
        wrong: bool,
        /// How long it waits before that.
        after: Micros,
    },
    /// Returns nothing.
    None,
}

/// An operand that no job has, for which no bytes are sent.
fn foreign(number: u64) -> Digest {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Digest(bytes)
}

impl World {
    /// Whether a worker refuses a task that it could compute; if so, it has answered.
    pub(crate) fn refuses_task(&mut self, at: usize, stream: StreamNumber, task: TaskId) -> bool {
        if !self.deviates(at, Deviation::RefusesTask) {
            return false;
        }
        let error = Error::new(ErrorKind::InvalidInput, "the operands do not fit together");
        self.send(at, stream, 0, Message::Task(TaskMessage::Failure { task, error }));
        true
    }

    /// How a worker answers a peer's task that it has computed.
    pub(crate) fn answer_to(&mut self, at: usize, stream: StreamNumber, task: TaskId) -> Answer {
        if self.nodes[at].spec.deviations.is_empty() {
            return Answer::Tile { wrong: false, after: 0 };
        }
        if self.deviates(at, Deviation::AnswersUnasked) {
            let unasked = TaskMessage::Result { task: UNASKED + task, seconds: 0.0, bytes: 0, wrong: true };
            self.send(at, stream, 0, Message::Task(unasked));
        }
        if self.deviates(at, Deviation::StartsTaskOnly) {
            self.start_again(at, stream, task);
            return Answer::None;
        }
        let after = if self.deviates(at, Deviation::StallsTask) { STALL } else { 0 };
        Answer::Tile { wrong: self.deviates(at, Deviation::WrongTile), after }
    }

    /// A tile of a worker was accepted: what it says of its speed may be disbelieved by now.
    pub(crate) fn notice_boast(&mut self, at: usize, worker: WorkerId) {
        let Some(run) = &self.nodes[at].run else { return };
        let Some(of) = run.products.workers.get(&worker).copied() else { return };
        let believed = run.products.scheduler.worker(worker).map(|report| report.flops_per_s[0]);
        let spec = &self.nodes[of].spec;
        if believed.is_some_and(|believed| believed < spec.flops_per_s * spec.claims * 100.0)
            && self.is_one_that(of, Deviation::Boasts)
        {
            self.checks.caught(Deviation::Boasts);
        }
    }

    fn start_again(&mut self, at: usize, stream: StreamNumber, task: TaskId) {
        let Some(run) = self.nodes[at].run.as_ref().map(|run| run.number) else { return };
        self.after(STARTED_AGAIN, Happening::StartedAgain { node: at, run, stream, task });
    }

    /// A worker says once more that it has started a task, which it will never answer.
    pub(crate) fn started_again(&mut self, at: usize, stream: StreamNumber, task: TaskId) {
        if self.network.stream(stream).is_some() && self.is_one_that(at, Deviation::StartsTaskOnly) {
            self.send(at, stream, 0, Message::Task(TaskMessage::Started(task)));
            self.start_again(at, stream, task);
        }
    }

    /// Once a second, a coordinator asks the workers that it has links to for more than they can give.
    pub(crate) fn flood(&mut self, at: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let ready = run.products.links.iter().filter(|(_, link)| link.worker.is_some());
        let links: Vec<(usize, StreamNumber)> = ready.map(|(peer, link)| (*peer, link.stream)).collect();
        for (peer, stream) in links {
            if !self.deviates(at, Deviation::FloodsTasks) {
                continue;
            }
            let operands = [foreign(0), foreign(1)];
            for digest in operands {
                self.send(at, stream, 1_000, Message::Task(TaskMessage::Operand { digest, bytes: 1_000 }));
            }
            for number in 0..TASKS_PER_PEER as u64 + 8 {
                let task = FLOODED + self.now * 1_000 + number;
                let terms = Terms { task, operands, priority: i8::MAX, deadline: None };
                let result_bytes = 2 * self.nodes[peer].spec.memory_bytes;
                self.send(at, stream, 0, Message::Task(TaskMessage::Task { terms, flops: 1e15, result_bytes }));
            }
        }
        Ok(())
    }
}
