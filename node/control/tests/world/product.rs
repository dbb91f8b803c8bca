//! Products in the world: the coordinator's scheduler with what its driver keeps beside it, and workers that take their time,
//! forget what was on a broken connection, and sometimes lie.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pangea_control::schedule::{
    Action, Arithmetic, AttemptId, CheckOutcome, ElementwiseShape, Event, FailureKind, JobId, JobSpec, LeaveReason,
    Measured, Operand, Place, ProductShape, Progress, Scheduler, Tile, TileGrid, Transfer, WorkerEstimate, WorkerId,
};

use crate::checks::Broken;
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// The least that a task takes.
const TASK_TAKES: Micros = 100;

/// Bytes per second of the world's links, as workers are said to have them.
const LINK_BYTES_PER_S: f64 = 100e6;

/// What the driver of a node's products keeps.
pub(crate) struct Products {
    scheduler: Scheduler,
    actions: Vec<Action>,
    jobs: BTreeMap<JobId, Running>,
    attempts: BTreeMap<AttemptId, Flying>,
    /// The worker that each connected peer is.
    workers: BTreeMap<usize, WorkerId>,
    /// The peer that each worker was.
    peers: BTreeMap<WorkerId, usize>,
    /// Operands that a worker was sent.
    resident: BTreeSet<(WorkerId, JobId, Operand)>,
    next_worker: u64,
    quarantined: BTreeSet<usize>,
    /// When the compute threads are free again.
    compute_free: Micros,
}

struct Running {
    /// Which of the scenario's jobs.
    number: usize,
    grid: Option<TileGrid>,
}

struct Flying {
    job: JobId,
    tile: Tile,
    sent: Transfer,
    finished: bool,
    wrong: bool,
}

/// A tile that a node computes, for itself or for a peer.
#[derive(Clone)]
pub(crate) struct Computing {
    /// Who asked.
    coordinator: usize,
    /// The coordinator's run.
    run: u64,
    attempt: AttemptId,
    takes: Micros,
    answer_bytes: u64,
    wrong: bool,
    /// The connection that it came on; none for the node's own.
    connection: Option<u64>,
}

/// What travels on the stream between a coordinator and a worker.
pub(crate) enum TaskMessage {
    /// The operands that were lacking, and the task.
    Task { run: u64, attempt: AttemptId, flops: f64, answer_bytes: u64 },
    /// The worker has begun.
    Started { run: u64, attempt: AttemptId },
    /// The product of the tile.
    Result { run: u64, attempt: AttemptId, seconds: f64, bytes: u64, wrong: bool },
}

impl Products {
    /// Nothing asked yet.
    pub(crate) fn new(scheduler: Scheduler) -> Products {
        Products {
            scheduler,
            actions: Vec::new(),
            jobs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            workers: BTreeMap::new(),
            peers: BTreeMap::new(),
            resident: BTreeSet::new(),
            next_worker: 1,
            quarantined: BTreeSet::new(),
            compute_free: 0,
        }
    }
}

impl World {
    /// The next job of the scenario is asked of its node; where that does not run, its program is told so at once.
    pub(crate) fn submit(&mut self, at: usize) -> Result<(), Broken> {
        let job = self.scenario.jobs[at].1.clone();
        let now = self.now;
        self.checks.submitted(now, at, job.node, self.nodes[job.node].run.is_some());
        let Some(run) = &mut self.nodes[job.node].run else { return Ok(()) };
        let [m, k, n] = job.shape;
        let [a_element_bytes, b_element_bytes, c_element_bytes] = [4; 3];
        let mut spec = if job.elementwise {
            let shape = ElementwiseShape { rows: m, cols: n, a_element_bytes, b_element_bytes, c_element_bytes };
            JobSpec::new(shape, Arithmetic::Elementwise)
        } else {
            let shape = ProductShape { m, k, n, a_element_bytes, b_element_bytes, c_element_bytes };
            JobSpec::new(shape, Arithmetic::F32)
        };
        spec.place = if job.remote { Place::Remote } else { Place::Auto };
        spec.redundancy = job.redundancy;
        spec.deadline = job.deadline.map(|within| run.time(now) + Duration::from_micros(within));
        let id = JobId(at as u64);
        run.products.jobs.insert(id, Running { number: at, grid: None });
        self.schedule(job.node, Event::JobSubmitted { job: id, spec })
    }

    /// Nobody waits for a job any more.
    pub(crate) fn cancel(&mut self, at: usize) -> Result<(), Broken> {
        let node = self.scenario.jobs[at].1.node;
        self.schedule(node, Event::JobCancelled { job: JobId(at as u64) })
    }

    /// A peer is connected: a worker joins where it works and has told no lie.
    pub(crate) fn join(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let spec = &self.nodes[of].spec;
        let (works, flops_per_s, memory_bytes) = (spec.works, spec.flops_per_s, spec.memory_bytes);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let products = &mut run.products;
        if !works || products.quarantined.contains(&of) {
            return Ok(());
        }
        let worker = WorkerId(products.next_worker);
        products.next_worker += 1;
        products.workers.insert(of, worker);
        products.peers.insert(worker, of);
        let estimate =
            WorkerEstimate::remote([flops_per_s; Arithmetic::COUNT], LINK_BYTES_PER_S, 400e-6, memory_bytes / 4);
        self.schedule(at, Event::WorkerJoined { worker, estimate })
    }

    /// A peer is not connected any more.
    pub(crate) fn leave(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(worker) = run.products.workers.remove(&of) else { return Ok(()) };
        run.products.resident.retain(|(holder, ..)| *holder != worker);
        self.schedule(at, Event::WorkerLeft { worker, why: LeaveReason::Lost })
    }

    /// The scheduler asked to be told the time.
    pub(crate) fn wake(&mut self, node: usize) -> Result<(), Broken> {
        self.schedule(node, Event::Tick)
    }

    fn schedule(&mut self, node: usize, event: Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let products = &mut run.products;
        products.scheduler.handle(event, time, &mut products.actions);
        // What an action leads to at once is a new event, behind all actions of this one.
        let mut follow = Vec::new();
        for action in std::mem::take(&mut products.actions) {
            follow.extend(self.perform(node, action)?);
        }
        follow.into_iter().try_for_each(|event| self.schedule(node, event))
    }

    fn perform(&mut self, node: usize, action: Action) -> Result<Option<Event>, Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(None) };
        let (number, started) = (run.number, run.started);
        let products = &mut run.products;
        match action {
            Action::Plan { job, grid } => {
                if let Some(running) = products.jobs.get_mut(&job) {
                    running.grid = Some(grid);
                }
            }
            Action::Start { attempt, job, tile, worker, .. } => return self.begin(node, attempt, job, tile, worker),
            Action::Cancel { attempt, .. } | Action::Discard { attempt } => {
                products.attempts.remove(&attempt);
            }
            Action::Check { attempt } => self.after(300, Happening::Checked { node, run: number, attempt }),
            Action::Accept { attempt, job, tile, .. } => {
                let flying = products.attempts.remove(&attempt);
                let sound = flying.filter(|flying| flying.finished && (flying.job, flying.tile) == (job, tile));
                let number = products.jobs.get(&job).map(|running| running.number);
                self.checks.accepted(now, number, tile, sound.map(|flying| flying.wrong))?;
            }
            Action::Release { worker, job, operand } => {
                products.resident.remove(&(worker, job, operand));
            }
            Action::Quarantine { worker, .. } => {
                if let Some(peer) = products.peers.get(&worker).copied() {
                    products.quarantined.insert(peer);
                    // The lie may have come over an earlier connection: the peer is another worker by now.
                    let other = products.workers.remove(&peer).filter(|other| *other != worker);
                    self.checks.quarantined(now, node, peer, self.scenario.nodes[peer].lies_one_in > 0)?;
                    return Ok(other.map(|worker| Event::WorkerLeft { worker, why: LeaveReason::Quarantined }));
                }
            }
            Action::JobFinished { job, .. } => {
                let running = products.jobs.remove(&job);
                let tiles = running.as_ref().and_then(|running| running.grid).map_or(0, |grid| grid.tiles());
                self.checks.finished(now, running.map(|running| running.number), Ok(tiles))?;
            }
            Action::JobFailed { job, kind, why, .. } => {
                let running = products.jobs.remove(&job);
                let asked = &self.scenario.jobs[job.0 as usize].1;
                let meant = match kind {
                    FailureKind::Cancelled => asked.cancelled_after.is_some(),
                    FailureKind::DeadlineExceeded => asked.deadline.is_some(),
                    _ => asked.redundancy > 1,
                };
                if !meant {
                    return Err(Broken::new(now, format!("job {} failed for no reason: {kind}: {why}", job.0)));
                }
                self.checks.finished(now, running.map(|running| running.number), Err(kind))?;
            }
            Action::WakeAt(at) => {
                let delay = (at.elapsed().as_micros() as Micros + started).saturating_sub(now) + 1;
                self.after(delay, Happening::Wake { node, run: number });
            }
        }
        Ok(None)
    }

    fn begin(
        &mut self,
        node: usize,
        attempt: AttemptId,
        job: JobId,
        tile: Tile,
        worker: WorkerId,
    ) -> Result<Option<Event>, Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(None) };
        let (number, products) = (run.number, &mut run.products);
        let Some(grid) = products.jobs.get(&job).and_then(|running| running.grid) else {
            return Err(Broken::new(now, "a task of a job that is not planned"));
        };
        if !grid.is_tile(tile) {
            return Err(Broken::new(now, "a task that is no part of its job"));
        }
        let (flops, answer_bytes) = (grid.tile_flops(tile), grid.tile_bytes(tile));
        let mut sent = Transfer { bytes: 0, seconds: 0.0 };
        let flying = |sent| Flying { job, tile, sent, finished: false, wrong: false };
        if worker.is_local() {
            products.attempts.insert(attempt, flying(sent));
            let (coordinator, run, connection) = (node, number, None);
            let takes = self.compute_takes(node, flops);
            let computing = Computing { coordinator, run, attempt, takes, answer_bytes, wrong: false, connection };
            self.compute(node, computing);
            return Ok(None);
        }
        let Some(peer) = products.peers.get(&worker).copied() else {
            return Err(Broken::new(now, "a task for a worker that never joined"));
        };
        for operand in [Operand::Band(tile.band), Operand::Panel(tile.panel)] {
            if products.resident.insert((worker, job, operand)) {
                sent.bytes += grid.operand_bytes(operand);
            }
        }
        sent.seconds = sent.bytes as f64 / LINK_BYTES_PER_S;
        products.attempts.insert(attempt, flying(sent));
        if products.workers.get(&peer) != Some(&worker) {
            // The connection broke at this moment, or the peer was quarantined; the scheduler hears of it next.
            return Ok(Some(Event::AttemptFailed { attempt, kind: FailureKind::Unavailable }));
        }
        self.send(node, peer, sent.bytes, TaskMessage::Task { run: number, attempt, flops, answer_bytes });
        Ok(None)
    }

    fn compute_takes(&self, node: usize, flops: f64) -> Micros {
        let node = &self.nodes[node];
        TASK_TAKES + (flops / node.spec.flops_per_s * 1e6) as Micros * node.slower
    }

    /// The compute threads take one tile after the other.
    fn compute(&mut self, node: usize, computing: Computing) {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return };
        let (number, takes) = (run.number, computing.takes);
        run.products.compute_free = run.products.compute_free.max(now) + takes;
        let delay = run.products.compute_free - now;
        self.after(delay, Happening::Computed { node, run: number, computing });
    }

    /// A node has computed a tile, for itself or for a peer.
    pub(crate) fn computed(&mut self, node: usize, computing: Computing) -> Result<(), Broken> {
        let Computing { coordinator, run, attempt, takes, answer_bytes, wrong, connection } = computing;
        let seconds = takes as f64 / 1e6;
        if coordinator != node {
            // The stream that the task came on may be gone, and another one there.
            if self.connection(node, coordinator) == connection {
                let result = TaskMessage::Result { run, attempt, seconds, bytes: answer_bytes, wrong };
                self.send(node, coordinator, answer_bytes, result);
            }
            return Ok(());
        }
        self.arrived(node, run, attempt, wrong, seconds, None)
    }

    /// Something came on the stream from a peer.
    pub(crate) fn receive(&mut self, from: usize, to: usize, message: TaskMessage) -> Result<(), Broken> {
        match message {
            TaskMessage::Task { run, attempt, flops, answer_bytes } => {
                let lies = self.scenario.nodes[to].lies_one_in;
                let wrong = lies > 0 && self.chance.one_in(lies);
                let connection = self.connection(from, to);
                let takes = self.compute_takes(to, flops);
                self.send(to, from, 0, TaskMessage::Started { run, attempt });
                let computing = Computing { coordinator: from, run, attempt, takes, answer_bytes, wrong, connection };
                self.compute(to, computing);
                Ok(())
            }
            TaskMessage::Started { run, attempt } => {
                let known = self.is_current(to, run);
                let event = Event::AttemptProgress { attempt, progress: Progress::Computing };
                if known { self.schedule(to, event) } else { Ok(()) }
            }
            TaskMessage::Result { run, attempt, seconds, bytes, wrong } => {
                let received = Transfer { bytes, seconds: bytes as f64 / LINK_BYTES_PER_S };
                self.arrived(to, run, attempt, wrong, seconds, Some(received))
            }
        }
    }

    fn arrived(
        &mut self,
        node: usize,
        run: u64,
        attempt: AttemptId,
        wrong: bool,
        seconds: f64,
        received: Option<Transfer>,
    ) -> Result<(), Broken> {
        if !self.is_current(node, run) {
            return Ok(());
        }
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        // An attempt that was cancelled is nothing any more.
        let Some(flying) = run.products.attempts.get_mut(&attempt) else { return Ok(()) };
        (flying.finished, flying.wrong) = (true, wrong);
        let sent = received.map(|_| flying.sent).filter(|sent| sent.bytes > 0);
        let measured = Measured { compute_seconds: Some(seconds), sent, received };
        self.schedule(node, Event::AttemptFinished { attempt, measured })
    }

    /// A tile was checked: what is wrong shows.
    pub(crate) fn checked(&mut self, node: usize, attempt: AttemptId) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let Some(flying) = run.products.attempts.get(&attempt) else { return Ok(()) };
        let verdict = if flying.wrong { CheckOutcome::Bad } else { CheckOutcome::Good { answer: 0 } };
        self.schedule(node, Event::AttemptChecked { attempt, verdict, seconds: 0.0003 })
    }
}
