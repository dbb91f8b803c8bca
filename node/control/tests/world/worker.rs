//! Workers of the world: the tasks of each stream go through the binary's own admission, operands into its own store, memory
//! from its own ledger. The executor takes its time, hangs, forgets, and sometimes lies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pangea_control::devices::Kind;
use pangea_control::schedule::AttemptId;
use pangea_control::tasks::{
    Action, Admission, Event, Intake, OperandStore, RESULT_MEMORY_TIMEOUT, Refusal, TASKS_PER_PEER, TaskId, Terms,
};
use pangea_units::{Digest, Error, ErrorKind};

use crate::checks::Broken;
use crate::deviations::{Answer, Deviation, FLOODED};
use crate::memory::{Lease, Waiter};
use crate::network::{Message, StreamNumber};
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// The least that a task takes.
const TASK_TAKES: Micros = 50;

/// Bytes per microsecond that an operand is hashed at.
const HASHED_PER_MICRO: u64 = 4_000;

/// Until the executor notices that nobody wants a task any more.
const CANCEL_TAKES: Micros = 1_000;

/// What travels on a task stream.
pub(crate) enum TaskMessage {
    /// An operand, whole.
    Operand { digest: Digest, bytes: u64 },
    /// A task, whose operands went before it.
    Task { terms: Terms, flops: f64, result_bytes: u64 },
    /// Nobody wants a task any more.
    Cancel(TaskId),
    /// No job needs an operand any more.
    Release(Digest),
    /// The worker says who it is.
    Hello,
    /// The worker has begun.
    Started(TaskId),
    /// The product of the tile.
    Result { task: TaskId, seconds: f64, bytes: u64, wrong: bool },
    /// The task ends without one.
    Failure { task: TaskId, error: Error },
    /// The worker lacks operands of a task.
    Missing { task: TaskId, digests: Vec<Digest> },
    /// The worker dropped an operand.
    Evicted(Digest),
}

/// What a node does for peers.
pub(crate) struct Served {
    /// Operands of every peer; what an operand is does not matter here.
    pub(crate) store: OperandStore<usize, (), Lease>,
    sessions: BTreeMap<StreamNumber, Session>,
}

/// One peer's stream.
struct Session {
    peer: usize,
    intake: Intake,
    /// What each task of the intake has here.
    accepted: BTreeMap<TaskId, Accepted>,
    /// Operands that are being hashed.
    arriving: BTreeSet<Digest>,
}

struct Accepted {
    operands: [Digest; 2],
    flops: f64,
    result_bytes: u64,
    lease: Option<Lease>,
}

impl Served {
    /// Nobody served yet.
    pub(crate) fn new(memory_bytes: u64) -> Served {
        Served { store: OperandStore::new(memory_bytes), sessions: BTreeMap::new() }
    }

    /// Streams of a peer that are served.
    pub(crate) fn streams_of(&self, peer: usize) -> usize {
        self.sessions.values().filter(|session| session.peer == peer).count()
    }
}

/// Whose work it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    /// This node's.
    Own(AttemptId),
    /// A peer's.
    Peer { stream: StreamNumber, task: TaskId },
}

/// A tile to compute.
struct Work {
    owner: Owner,
    priority: i32,
    flops: f64,
    result_bytes: u64,
    cancelled: bool,
    /// Memory for the result.
    lease: Option<Lease>,
}

/// What computes tiles, one after the other.
#[derive(Default)]
pub(crate) struct Executor {
    queue: VecDeque<Work>,
    running: Option<Work>,
    /// Which of its works runs.
    number: u64,
    /// Seconds that checks took from its threads.
    debt: Micros,
    /// Until when it computes nothing.
    hangs_until: Micros,
    /// How long the running work takes.
    takes: Micros,
}

impl Executor {
    /// A check used its threads.
    pub(crate) fn owes(&mut self, takes: Micros) {
        self.debt += takes;
    }
}

impl World {
    // Streams.

    /// A peer opened a stream.
    pub(crate) fn serve(&mut self, at: usize, peer: usize, stream: StreamNumber) {
        let intake = Intake::new(TASKS_PER_PEER);
        let session = Session { peer, intake, accepted: BTreeMap::new(), arriving: BTreeSet::new() };
        if let Some(run) = &mut self.nodes[at].run {
            run.served.sessions.insert(stream, session);
        }
    }

    /// All streams of a peer are over.
    pub(crate) fn stop_serving(&mut self, at: usize, peer: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let of = |(stream, session): (&StreamNumber, &Session)| (session.peer == peer).then_some(*stream);
        let streams: Vec<StreamNumber> = run.served.sessions.iter().filter_map(of).collect();
        streams.into_iter().try_for_each(|stream| self.stop_serving_stream(at, stream))
    }

    /// A stream is over: nothing of it stays, and nothing of its peer's where it was the last.
    pub(crate) fn stop_serving_stream(&mut self, at: usize, stream: StreamNumber) -> Result<(), Broken> {
        let is_served =
            |world: &World| world.nodes[at].run.as_ref().is_some_and(|run| run.served.sessions.contains_key(&stream));
        if !is_served(self) {
            return Ok(());
        }
        self.intake(at, stream, Event::Ended)?;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(session) = run.served.sessions.remove(&stream) else { return Ok(()) };
        for digest in session.arriving {
            run.served.store.remove(session.peer, digest);
        }
        if run.served.streams_of(session.peer) == 0 {
            run.served.store.remove_owner(session.peer);
        }
        self.stop_waiting(at, |waiter| matches!(waiter, Waiter::Result { stream: of, .. } if *of == stream));
        Ok(())
    }

    // Messages.

    /// Something came from a coordinator.
    pub(crate) fn coordinator_says(
        &mut self,
        at: usize,
        stream: StreamNumber,
        message: TaskMessage,
    ) -> Result<(), Broken> {
        if let TaskMessage::Task { terms, .. } = &message
            && let Some(open) = self.network.stream(stream)
            && self.is_given_up(open.opener, at, terms.task)
        {
            return Ok(());
        }
        if let TaskMessage::Task { terms, .. } = &message
            && self.refuses_task(at, stream, terms.task)
        {
            return Ok(());
        }
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(session) = run.served.sessions.get_mut(&stream) else { return Ok(()) };
        match message {
            TaskMessage::Operand { digest, bytes } => self.operand(at, stream, digest, bytes),
            TaskMessage::Task { terms, flops, result_bytes } => {
                let (store, peer) = (&mut run.served.store, session.peer);
                let held = terms.operands.map(|digest| store.knows(peer, &digest));
                let whole = terms.operands.map(|digest| store.get(peer, &digest).is_some());
                let accepted = Accepted { operands: terms.operands, flops, result_bytes, lease: None };
                session.accepted.entry(terms.task).or_insert(accepted);
                let refusal = self.refusal(at, peer);
                self.checks.task_arrived(self.now, at, peer, stream, terms.task, refusal)?;
                self.intake(at, stream, Event::Task { terms, held, whole, refusal })
            }
            TaskMessage::Cancel(task) => self.intake(at, stream, Event::Cancel(task)),
            TaskMessage::Release(digest) => {
                run.served.store.release(session.peer, &digest);
                Ok(())
            }
            // These are for coordinators.
            _ => Ok(()),
        }
    }

    fn refusal(&self, at: usize, peer: usize) -> Option<Refusal> {
        let run = self.nodes[at].run.as_ref()?;
        match () {
            () if !run.directory.may_compute(&self.nodes[peer].peer) => Some(Refusal::Quarantined),
            () if run.draining => Some(Refusal::Draining),
            () => None,
        }
    }

    /// An operand arrived: room is made for it, or it is dropped.
    fn operand(&mut self, at: usize, stream: StreamNumber, digest: Digest, bytes: u64) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let Some(session) = run.served.sessions.get(&stream) else { return Ok(()) };
        let peer = session.peer;
        if run.served.store.knows(peer, &digest) {
            return Ok(());
        }
        // The store may ask several times, after dropping something each time: the ledger must hear of that in between.
        let mut broken = Ok(());
        let Some(mut served) =
            self.nodes[at].run.as_mut().map(|run| std::mem::replace(&mut run.served, Served::new(0)))
        else {
            return Ok(());
        };
        let Served { store, sessions } = &mut served;
        let needed = |digest: &Digest| sessions.get(&stream).is_some_and(|session| session.intake.needs(digest));
        let admitted = store.admit(peer, digest, bytes, needed, |bytes| {
            self.lease(at, Kind::Operands, bytes).unwrap_or_else(|why| {
                broken = Err(why);
                Err(Error::new(ErrorKind::Internal, "broken"))
            })
        });
        if let Some(run) = &mut self.nodes[at].run {
            run.served = served;
        }
        broken?;
        match admitted {
            Ok(Admission::Known) => Ok(()),
            Ok(Admission::Receive { evicted }) => {
                let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                let number = run.number;
                if let Some(session) = run.served.sessions.get_mut(&stream) {
                    session.arriving.insert(digest);
                }
                for gone in evicted {
                    self.checks.counts.add("evictions");
                    self.send(at, stream, 0, Message::Task(TaskMessage::Evicted(gone)));
                }
                self.after(bytes / HASHED_PER_MICRO, Happening::Hashed { node: at, run: number, stream, digest });
                self.intake(at, stream, Event::Admitted(digest))
            }
            Err(error) => self.intake(at, stream, Event::Refused(digest, error)),
        }
    }

    /// An operand is known to be what its digest says.
    pub(crate) fn hashed(&mut self, at: usize, stream: StreamNumber, digest: Digest) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(session) = run.served.sessions.get_mut(&stream) else { return Ok(()) };
        session.arriving.remove(&digest);
        run.served.store.complete(session.peer, digest, ());
        self.intake(at, stream, Event::Whole(digest))
    }

    /// Somebody asks for memory: operands that no task needs go, and their owners are told.
    pub(crate) fn give_way(&mut self, at: usize) {
        let Some(run) = &mut self.nodes[at].run else { return };
        run.memory.is_short = false;
        let Served { store, sessions } = &mut run.served;
        let needed = |owner: usize, digest: &Digest| {
            sessions.values().any(|session| session.peer == owner && session.intake.needs(digest))
        };
        let gone = store.give_way(needed);
        let streams: Vec<(StreamNumber, usize)> =
            sessions.iter().map(|(stream, session)| (*stream, session.peer)).collect();
        for (owner, digest) in gone {
            self.checks.counts.add("operands that gave way");
            for (stream, _) in streams.iter().filter(|(_, peer)| *peer == owner) {
                self.send(at, *stream, 0, Message::Task(TaskMessage::Evicted(digest)));
            }
        }
    }

    /// Lets intakes hear of the time where something is due.
    pub(crate) fn intake_ticks(&mut self, at: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let time = run.time(self.now);
        let due = |(stream, session): (&StreamNumber, &Session)| {
            session.intake.wake_at().is_some_and(|at| at <= time).then_some(*stream)
        };
        let streams: Vec<StreamNumber> = run.served.sessions.iter().filter_map(due).collect();
        streams.into_iter().try_for_each(|stream| self.intake(at, stream, Event::Tick))
    }

    /// Lets the intake of a stream decide on what happened, and does what it says.
    fn intake(&mut self, at: usize, stream: StreamNumber, event: Event) -> Result<(), Broken> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now;
            let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
            let time = run.time(now);
            let Some(session) = run.served.sessions.get_mut(&stream) else { return Ok(()) };
            if let Event::Done(task) = event {
                session.accepted.remove(&task);
            }
            for action in session.intake.handle(event, time) {
                match action {
                    Action::AskFor(task, digests) => {
                        self.send(at, stream, 0, Message::Task(TaskMessage::Missing { task, digests }));
                    }
                    Action::Lease(task, operands) => events.extend(self.lease_result(at, stream, task, operands)?),
                    Action::Start(task, priority) => {
                        events.extend(self.start_task(at, stream, task, priority)?);
                    }
                    Action::Fail(task, error, _) => {
                        if task >= FLOODED {
                            self.checks.caught(Deviation::FloodsTasks);
                        }
                        self.forget_task(at, stream, task);
                        self.checks.task_answered(self.now, at, stream, task)?;
                        self.send(at, stream, 0, Message::Task(TaskMessage::Failure { task, error }));
                    }
                    Action::Drop(task) => {
                        self.forget_task(at, stream, task);
                        self.checks.task_dropped(at, stream, task);
                    }
                    Action::Stop(task) => self.stop_task(at, stream, task),
                    Action::Close(why) => {
                        return Err(Broken::new(self.now, format!("an honest stream is closed: {why}")));
                    }
                }
            }
        }
        Ok(())
    }

    fn forget_task(&mut self, at: usize, stream: StreamNumber, task: TaskId) {
        if let Some(run) = &mut self.nodes[at].run
            && let Some(session) = run.served.sessions.get_mut(&stream)
        {
            session.accepted.remove(&task);
        }
        let is_its = |waiter: &Waiter| matches!(waiter, Waiter::Result { stream: of, task: its } if (*of, *its) == (stream, task));
        self.stop_waiting(at, is_its);
    }

    fn lease_result(
        &mut self,
        at: usize,
        stream: StreamNumber,
        task: TaskId,
        operands: [Digest; 2],
    ) -> Result<Option<Event>, Broken> {
        if !self.has_operands(at, stream, operands) {
            return Ok(Some(Event::Unleased(task, gone())));
        }
        let Some(run) = &self.nodes[at].run else { return Ok(None) };
        let accepted = run.served.sessions.get(&stream).and_then(|session| session.accepted.get(&task));
        let Some(bytes) = accepted.map(|accepted| accepted.result_bytes) else { return Ok(None) };
        match self.lease(at, Kind::Results, bytes)? {
            Ok(lease) => Ok(Some(self.leased(at, stream, task, lease))),
            Err(_) => {
                let patience = RESULT_MEMORY_TIMEOUT.as_micros() as Micros;
                self.lease_soon(at, Kind::Results, bytes, patience, Waiter::Result { stream, task })?;
                Ok(None)
            }
        }
    }

    fn leased(&mut self, at: usize, stream: StreamNumber, task: TaskId, lease: Lease) -> Event {
        if let Some(run) = &mut self.nodes[at].run
            && let Some(session) = run.served.sessions.get_mut(&stream)
            && let Some(accepted) = session.accepted.get_mut(&task)
        {
            accepted.lease = Some(lease);
        }
        Event::Leased(task)
    }

    /// A task that waited for the memory of its result has it, or will not have it.
    pub(crate) fn result_leased(
        &mut self,
        at: usize,
        stream: StreamNumber,
        task: TaskId,
        leased: Result<Lease, Error>,
    ) -> Result<(), Broken> {
        let event = match leased {
            Ok(lease) => self.leased(at, stream, task, lease),
            Err(error) => Event::Unleased(task, error),
        };
        self.intake(at, stream, event)
    }

    fn has_operands(&mut self, at: usize, stream: StreamNumber, operands: [Digest; 2]) -> bool {
        let Some(run) = &mut self.nodes[at].run else { return false };
        let Some(peer) = run.served.sessions.get(&stream).map(|session| session.peer) else { return false };
        operands.iter().all(|digest| run.served.store.get(peer, digest).is_some())
    }

    fn start_task(
        &mut self,
        at: usize,
        stream: StreamNumber,
        task: TaskId,
        priority: i8,
    ) -> Result<Option<Event>, Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(None) };
        let Some(session) = run.served.sessions.get_mut(&stream) else { return Ok(None) };
        let Some(accepted) = session.accepted.get_mut(&task) else { return Ok(None) };
        let (operands, lease) = (accepted.operands, accepted.lease.take());
        let (flops, result_bytes) = (accepted.flops, accepted.result_bytes);
        self.checks.task_started(self.now, at, stream, task, lease.as_ref().map(Lease::bytes), result_bytes)?;
        if !self.has_operands(at, stream, operands) {
            self.forget_task(at, stream, task);
            self.checks.task_answered(self.now, at, stream, task)?;
            self.send(at, stream, 0, Message::Task(TaskMessage::Failure { task, error: gone() }));
            return Ok(Some(Event::Done(task)));
        }
        let owner = Owner::Peer { stream, task };
        let work = Work { owner, priority: i32::from(priority), flops, result_bytes, cancelled: false, lease };
        self.submit_work(at, work);
        Ok(None)
    }

    fn stop_task(&mut self, at: usize, stream: StreamNumber, task: TaskId) {
        let Some(run) = &mut self.nodes[at].run else { return };
        let number = run.number;
        let executor = &mut run.executor;
        let owner = Owner::Peer { stream, task };
        executor.queue.iter_mut().chain(&mut executor.running).filter(|work| work.owner == owner).for_each(|work| {
            work.cancelled = true;
        });
        let running = executor.running.as_ref().is_some_and(|work| work.owner == owner);
        let work = executor.number;
        if running {
            self.after(CANCEL_TAKES, Happening::Computed { node: at, run: number, work });
        }
    }

    // The executor.

    /// Computes a tile of this node's own.
    pub(crate) fn compute_here(&mut self, at: usize, attempt: AttemptId, priority: i32, flops: f64) {
        let work = Work { owner: Owner::Own(attempt), priority, flops, result_bytes: 0, cancelled: false, lease: None };
        self.submit_work(at, work);
    }

    /// Nobody wants a tile of this node's own any more.
    pub(crate) fn cancel_here(&mut self, at: usize, attempt: AttemptId) {
        let Some(run) = &mut self.nodes[at].run else { return };
        let executor = &mut run.executor;
        let owner = Owner::Own(attempt);
        executor.queue.retain(|work| work.owner != owner);
        let (number, work) = (run.number, executor.number);
        if let Some(running) = executor.running.as_mut().filter(|running| running.owner == owner) {
            running.cancelled = true;
            self.after(0, Happening::Computed { node: at, run: number, work });
        }
    }

    fn submit_work(&mut self, at: usize, work: Work) {
        if let Some(run) = &mut self.nodes[at].run {
            run.executor.queue.push_back(work);
            self.compute_next(at);
        }
    }

    fn compute_next(&mut self, at: usize) {
        let now = self.now;
        let (jitter, forgets) = (self.nodes[at].spec.jitter, self.nodes[at].spec.forgets_one_in);
        let jitter = if jitter > 0.0 { 1.0 + jitter * self.chance.unit() } else { 1.0 };
        let forgets = forgets > 0 && self.chance.one_in(forgets);
        let node = &mut self.nodes[at];
        let Some(run) = &mut node.run else { return };
        let executor = &mut run.executor;
        if executor.running.is_some() {
            return;
        }
        // The first of those with the highest priority.
        let best = executor.queue.iter().enumerate().max_by_key(|(at, work)| (work.priority, std::cmp::Reverse(*at)));
        let Some(work) = best.map(|(at, _)| at).and_then(|at| executor.queue.remove(at)) else { return };
        let compute = TASK_TAKES as f64 + work.flops / node.spec.flops_per_s * 1e6;
        executor.takes = (compute * node.slower as f64 * jitter).ceil() as Micros;
        executor.number += 1;
        let hangs = executor.hangs_until.saturating_sub(now);
        let takes = if work.cancelled { 0 } else { executor.takes + std::mem::take(&mut executor.debt) + hangs };
        let (number, of, owner) = (run.number, executor.number, work.owner);
        executor.running = Some(work);
        if let Owner::Peer { stream, task } = owner {
            if forgets {
                // The threads go on; the coordinator never hears of it.
                if let Some(work) = &mut executor.running {
                    work.flops = f64::NAN;
                }
            }
            self.send(at, stream, 0, Message::Task(TaskMessage::Started(task)));
        }
        self.after(takes, Happening::Computed { node: at, run: number, work: of });
    }

    /// The executor computes nothing for a while.
    pub(crate) fn hang(&mut self, at: usize, takes: Micros) {
        let until = self.now + takes;
        if let Some(run) = &mut self.nodes[at].run {
            run.executor.hangs_until = run.executor.hangs_until.max(until);
        }
    }

    /// The executor is done with a tile, or notices that nobody wants it.
    pub(crate) fn computed(&mut self, at: usize, number: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let (run_number, executor) = (run.number, &mut run.executor);
        let Some(running) = executor.running.as_ref().filter(|_| executor.number == number) else { return Ok(()) };
        let hangs = executor.hangs_until.saturating_sub(now);
        if hangs > 0 && !running.cancelled {
            self.after(hangs, Happening::Computed { node: at, run: run_number, work: number });
            return Ok(());
        }
        let Some(work) = executor.running.take() else { return Ok(()) };
        let seconds = executor.takes as f64 / 1e6;
        self.compute_next(at);
        let Work { owner, flops, result_bytes, cancelled, lease, .. } = work;
        match owner {
            Owner::Own(attempt) if !cancelled => self.local_done(at, attempt, seconds),
            Owner::Own(_) => Ok(()),
            Owner::Peer { stream, task } => {
                let bent = if cancelled || flops.is_nan() { Answer::None } else { self.answer_to(at, stream, task) };
                let (wrong, after) = match bent {
                    Answer::Tile { wrong, after } => (wrong, after),
                    Answer::None => (false, 0),
                };
                let silent = !cancelled && matches!(bent, Answer::None);
                let answer = if cancelled {
                    let error = Error::new(ErrorKind::Cancelled, "nobody wants the task any more");
                    TaskMessage::Failure { task, error }
                } else {
                    TaskMessage::Result { task, seconds, bytes: result_bytes, wrong }
                };
                let bytes = if cancelled { 0 } else { result_bytes };
                self.checks.task_answered(self.now, at, stream, task)?;
                let sent = match (silent, after) {
                    (true, _) => 0,
                    (false, 0) => self.send(at, stream, bytes, Message::Task(answer)),
                    (false, after) => {
                        let message = Message::Task(answer);
                        self.after(after, Happening::Says { node: at, run: run_number, stream, bytes, message });
                        after
                    }
                };
                if let Some(lease) = lease {
                    self.after(sent, Happening::Sent { lease });
                }
                self.intake(at, stream, Event::Done(task))
            }
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "an operand of the task is not here any more")
}
