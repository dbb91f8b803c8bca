//! Products in the world: what is asked of a node becomes a job of its registry, the scheduler cuts it into tiles and says who
//! computes which, and this file keeps what the binary's driver keeps beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pangea_control::devices::Kind;
use pangea_control::jobs::{self, Api, Ending, JobKind, JobProgress, Owner};
use pangea_control::peers;
use pangea_control::schedule::{
    Action, Arithmetic, AttemptId, CheckOutcome, ElementwiseShape, Event, FailureKind, JobId, JobReport, JobSpec,
    Measured, Operand, Place, ProductShape, Scheduler, Tile, TileGrid, Transfer, WorkerId,
};
use pangea_control::tasks::Terms;
use pangea_control::trust;
use pangea_control::trust::accusations::EvidenceKind;
use pangea_units::Digest;

use crate::checks::Broken;
use crate::deviations::Deviation;
use crate::memory::Lease;
use crate::network::Message;
use crate::scenario::Micros;
use crate::task_links::TaskLink;
use crate::worker::TaskMessage;
use crate::world::{Happening, World};

/// Bytes of operands and result that a check goes through in a second: it is bound by memory, on the threads of the executor.
const CHECK_BYTES_PER_S: f64 = 10e9;

/// What the driver of a node's products keeps.
pub(crate) struct Products {
    /// Decides who computes what.
    pub(crate) scheduler: Scheduler,
    events: VecDeque<Event>,
    actions: Vec<Action>,
    running: BTreeMap<JobId, Running>,
    attempts: BTreeMap<AttemptId, Attempt>,
    /// The open link to each peer.
    pub(crate) links: BTreeMap<usize, TaskLink>,
    /// The peer that each worker is or was.
    pub(crate) workers: BTreeMap<WorkerId, usize>,
    /// The name of the next worker.
    pub(crate) next_worker: u64,
    /// The suspects that the scheduler knows.
    suspects: BTreeSet<WorkerId>,
    /// When the scheduler wants to be told the time.
    wake_at: Option<pangea_control::Time>,
}

struct Running {
    /// Which of the scenario's jobs.
    number: usize,
    spec: JobSpec,
    grid: Option<TileGrid>,
    accepted: u64,
    /// Memory of operands and product.
    _memory: Lease,
}

struct Attempt {
    job: JobId,
    tile: Tile,
    worker: WorkerId,
    /// Whether the result is here, and wrong.
    result: Option<bool>,
}

/// The content address of an operand of a job.
fn digest(number: usize, operand: Operand) -> Digest {
    let (side, index) = match operand {
        Operand::Band(index) => (1, index),
        Operand::Panel(index) => (2, index),
    };
    let mut bytes = [side; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes[8..12].copy_from_slice(&index.to_le_bytes());
    Digest(bytes)
}

/// The operand of a job with this content address.
fn operand_of(number: usize, of: &Digest) -> Option<Operand> {
    let bytes = of.as_bytes();
    let index = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
    let operand = if bytes[12] == 1 { Operand::Band(index) } else { Operand::Panel(index) };
    (digest(number, operand) == *of).then_some(operand)
}

impl Products {
    /// Nothing asked yet.
    pub(crate) fn new(scheduler: Scheduler) -> Products {
        Products {
            scheduler,
            events: VecDeque::new(),
            actions: Vec::new(),
            running: BTreeMap::new(),
            attempts: BTreeMap::new(),
            links: BTreeMap::new(),
            workers: BTreeMap::new(),
            next_worker: 1,
            suspects: BTreeSet::new(),
            wake_at: None,
        }
    }

    /// Who an attempt was given to.
    pub(crate) fn worker_of(&self, attempt: AttemptId) -> Option<WorkerId> {
        self.attempts.get(&attempt).map(|attempt| attempt.worker)
    }

    /// The worker that a peer is or was.
    pub(crate) fn worker_at(&self, peer: usize) -> Option<WorkerId> {
        self.workers.iter().find(|(_, of)| **of == peer).map(|(worker, _)| *worker)
    }

    /// Forgets the attempts of a worker that have no result.
    pub(crate) fn forget_unfinished(&mut self, worker: WorkerId) {
        self.attempts.retain(|_, attempt| attempt.worker != worker || attempt.result.is_some());
    }

    fn link_of(&mut self, worker: WorkerId) -> Option<(usize, &mut TaskLink)> {
        self.links.iter_mut().find(|(_, link)| link.worker == Some(worker)).map(|(peer, link)| (*peer, link))
    }
}

impl World {
    /// The next job of the scenario is asked of its node; where that does not run, its program is told so at once.
    pub(crate) fn submit(&mut self, at: usize) -> Result<(), Broken> {
        let asked = self.scenario.jobs[at].1.clone();
        let (now, node) = (self.now, asked.node);
        self.checks.submitted(now, at, node, self.nodes[node].run.is_some());
        let [m, k, n] = asked.shape;
        let bytes = if asked.elementwise { 12 * m * n } else { 4 * (m * k + k * n + m * n) };
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let deadline = asked.deadline.map(|within| time + Duration::from_micros(within));
        let subject = format!("{m}x{k}x{n} f32");
        let owner = Owner::of(Api::Rpc);
        let job = jobs::JobSpec { kind: JobKind::Operation("product"), subject, owner, deadline };
        let (id, event) = match run.jobs.submit(job, time) {
            Ok(submitted) => submitted,
            Err(error) => return self.checks.refused_job(now, at, error.kind()),
        };
        self.checks.job_event(now, node, &event)?;
        self.submitted.insert(at, id);
        let memory = match self.lease(node, Kind::Tensors, bytes)? {
            Ok(lease) => lease,
            Err(error) => {
                self.checks.refused_job(now, at, error.kind())?;
                return self.end_job(node, id, Ending::Failed { kind: error.kind(), message: error.to_string() });
            }
        };
        let [a_element_bytes, b_element_bytes, c_element_bytes] = [4; 3];
        let mut spec = if asked.elementwise {
            let shape = ElementwiseShape { rows: m, cols: n, a_element_bytes, b_element_bytes, c_element_bytes };
            JobSpec::new(shape, Arithmetic::Elementwise)
        } else {
            let shape = ProductShape { m, k, n, a_element_bytes, b_element_bytes, c_element_bytes };
            JobSpec::new(shape, Arithmetic::F32)
        };
        spec.place = match (asked.remote, asked.local) {
            (true, _) => Place::Remote,
            (false, true) => Place::Local,
            (false, false) => Place::Auto,
        };
        (spec.redundancy, spec.priority) = (asked.redundancy, asked.priority);
        (spec.max_retries, spec.deadline) = (asked.max_retries, deadline);
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let running = Running { number: at, spec: spec.clone(), grid: None, accepted: 0, _memory: memory };
        run.products.running.insert(id, running);
        self.schedule(node, Event::JobSubmitted { job: id, spec })
    }

    /// Nobody waits for a job any more.
    pub(crate) fn cancel(&mut self, at: usize) -> Result<(), Broken> {
        let node = self.scenario.jobs[at].1.node;
        match self.submitted.get(&at).copied() {
            Some(id) if self.checks.is_open(at) => self.tell_jobs(node, jobs::Event::Cancel(id)),
            _ => Ok(()),
        }
    }

    /// The work on a job is to end, whoever wants that.
    pub(crate) fn cancel_job(&mut self, node: usize, job: JobId) -> Result<(), Broken> {
        self.schedule(node, Event::JobCancelled { job })
    }

    /// The scheduler asked to be told the time.
    pub(crate) fn wake(&mut self, node: usize) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(self.now);
        if run.products.wake_at.take_if(|at| *at <= time).is_none() {
            return Ok(());
        }
        self.schedule(node, Event::Tick)
    }

    /// Tells the scheduler who is under suspicion, if that changed.
    pub(crate) fn follow_suspicions(&mut self, node: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[node].run else { return Ok(()) };
        let suspects = run.directory.suspects(run.time(self.now));
        let workers = run.products.workers.iter();
        let workers: BTreeSet<WorkerId> =
            workers.filter(|(_, of)| suspects.contains(&self.nodes[**of].peer)).map(|(worker, _)| *worker).collect();
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        if run.products.suspects == workers {
            return Ok(());
        }
        run.products.suspects.clone_from(&workers);
        self.schedule(node, Event::SuspectsChanged { workers })
    }

    /// Lets the scheduler decide on what happened, and does what it says, until nothing is left.
    pub(crate) fn schedule(&mut self, node: usize, event: Event) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        // What an action leads to at once is a new event, behind all actions of this one.
        let busy = !run.products.events.is_empty();
        run.products.events.push_back(event);
        if busy {
            return Ok(());
        }
        loop {
            let now = self.now;
            let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
            let time = run.time(now);
            let products = &mut run.products;
            let Some(event) = products.events.front().cloned() else { return Ok(()) };
            products.scheduler.handle(event, time, &mut products.actions);
            for action in std::mem::take(&mut products.actions) {
                self.perform(node, action)?;
            }
            if let Some(run) = &mut self.nodes[node].run {
                run.products.events.pop_front();
            }
        }
    }

    fn perform(&mut self, node: usize, action: Action) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let (number, time) = (run.number, run.time(now));
        let products = &mut run.products;
        match action {
            Action::Plan { job, grid } => {
                let Some(running) = products.running.get_mut(&job) else { return Ok(()) };
                self.checks.planned(now, running.number, grid)?;
                running.grid = Some(grid);
                return self.tell_jobs(node, jobs::Event::Started(job));
            }
            Action::Start { attempt, job, tile, worker, .. } => return self.begin(node, attempt, job, tile, worker),
            Action::Cancel { attempt, worker } => {
                products.attempts.remove(&attempt);
                if worker.is_local() {
                    self.cancel_here(node, attempt);
                } else if let Some((peer, link)) = products.link_of(worker) {
                    link.given_up.insert(attempt.0);
                    let stream = link.stream;
                    for late in [Deviation::StallsTask, Deviation::StartsTaskOnly] {
                        if self.is_one_that(peer, late) {
                            self.checks.caught(late);
                        }
                    }
                    self.send_first(node, stream, Message::Task(TaskMessage::Cancel(attempt.0)));
                }
            }
            Action::Discard { attempt } => {
                products.attempts.remove(&attempt);
            }
            Action::Check { attempt } => {
                let Some(checked) = products.attempts.get(&attempt) else { return Ok(()) };
                let grid = products.running.get(&checked.job).and_then(|running| running.grid);
                let bytes = grid.map_or(0, |grid| {
                    let operands = [Operand::Band(checked.tile.band), Operand::Panel(checked.tile.panel)];
                    operands.map(|operand| grid.operand_bytes(operand)).iter().sum::<u64>()
                        + grid.tile_bytes(checked.tile)
                });
                let takes = (bytes as f64 / CHECK_BYTES_PER_S * 1e6) as Micros;
                run.executor.owes(takes);
                self.after(takes, Happening::Checked { node, run: number, attempt, takes });
            }
            Action::Accept { attempt, job, tile, worker, .. } => {
                let taken = products.attempts.remove(&attempt);
                let sound = taken.filter(|attempt| (attempt.job, attempt.tile) == (job, tile));
                let wrong = sound.and_then(|attempt| attempt.result);
                let mut progress = JobProgress::default();
                let of = products.running.get_mut(&job).map(|running| {
                    running.accepted += 1;
                    let total = running.grid.map_or(0, |grid| u64::from(grid.tiles()));
                    progress = JobProgress { done: running.accepted, total };
                    running.number
                });
                self.checks.accepted(now, of, tile, wrong)?;
                self.notice_boast(node, worker);
                return self.tell_jobs(node, jobs::Event::Progress(job, progress));
            }
            Action::Revoke { job, tile, .. } => {
                let of = products.running.get_mut(&job).map(|running| {
                    running.accepted -= 1;
                    running.number
                });
                return self.checks.revoked(now, of, tile);
            }
            Action::Suspect { job, .. } => return self.tell_jobs(node, jobs::Event::Suspect(job)),
            Action::Release { worker, job, operand } => {
                let Some(of) = products.running.get(&job).map(|running| running.number) else { return Ok(()) };
                if let Some((_, link)) = products.link_of(worker) {
                    let stream = link.stream;
                    let release = TaskMessage::Release(digest(of, operand));
                    self.send_first(node, stream, Message::Task(release));
                }
            }
            Action::Quarantine { worker, .. } => {
                if let Some(peer) = products.workers.get(&worker).copied() {
                    self.checks.caught(Deviation::WrongTile);
                    return self.convict(node, peer, EvidenceKind::Product);
                }
            }
            Action::JobFinished { job, report } => {
                let ending = Ending::Done { verdict: Some(trust::Verdict::Unchecked) };
                return self.product_ended(node, job, None, ending, report);
            }
            Action::JobFailed { job, kind, why, report } => {
                let ending = match kind {
                    FailureKind::Cancelled => Ending::Cancelled,
                    kind => Ending::Failed { kind, message: why },
                };
                return self.product_ended(node, job, Some(kind), ending, report);
            }
            Action::WakeAt(at) => {
                products.wake_at = Some(at);
                let delay = at.since(time).as_micros() as Micros + 1;
                self.after(delay, Happening::Wake { node, run: number });
            }
        }
        Ok(())
    }

    fn product_ended(
        &mut self,
        node: usize,
        job: JobId,
        failure: Option<FailureKind>,
        ending: Ending,
        report: JobReport,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let running = run.products.running.remove(&job);
        let number = running.as_ref().map(|running| running.number);
        let tiles = running.as_ref().and_then(|running| running.grid).map_or(0, |grid| grid.tiles());
        if let (Some(kind), Some(running)) = (failure, &running) {
            let asked = &self.scenario.jobs[running.number].1;
            let meant = match kind {
                FailureKind::Cancelled => asked.cancelled_after.is_some() || run.draining,
                FailureKind::DeadlineExceeded => asked.deadline.is_some(),
                _ => asked.redundancy > 1 || running.spec.max_retries == 0,
            };
            if !meant {
                return Err(Broken::new(now, format!("{job} failed for no reason: {ending:?}")));
            }
        }
        self.checks.finished(now, number, failure.map_or(Ok(tiles), Err), report)?;
        self.end_job(node, job, ending)
    }

    fn begin(
        &mut self,
        node: usize,
        attempt: AttemptId,
        job: JobId,
        tile: Tile,
        worker: WorkerId,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let products = &mut run.products;
        let Some(running) = products.running.get(&job) else {
            return Err(Broken::new(now, "a task of a job that is not under way"));
        };
        let (Some(grid), of, priority) = (running.grid, running.number, running.spec.priority) else {
            return Err(Broken::new(now, "a task of a job that is not planned"));
        };
        let twins = products.attempts.values().filter(|other| (other.job, other.tile) == (job, tile));
        if twins.clone().any(|twin| twin.worker == worker) {
            return Err(Broken::new(now, "a worker is given a tile that it has"));
        }
        let peer = products.workers.get(&worker).copied();
        self.checks.tile_started(now, node, of, tile, peer, running.spec.place)?;
        products.attempts.insert(attempt, Attempt { job, tile, worker, result: None });
        let flops = grid.tile_flops(tile);
        if worker.is_local() {
            self.compute_here(node, attempt, priority, flops);
            return Ok(());
        }
        let deadline = running.spec.deadline.map(|deadline| deadline.since(time));
        let Some((_, link)) = products.link_of(worker) else {
            // The connection broke at this moment; the scheduler hears of it next.
            return self.attempt_failed(node, attempt, FailureKind::Unavailable);
        };
        let stream = link.stream;
        let operands = [Operand::Band(tile.band), Operand::Panel(tile.panel)];
        let lacking: Vec<Operand> =
            operands.into_iter().filter(|operand| link.resident.insert(digest(of, *operand))).collect();
        self.send_operands(node, stream, of, grid, &lacking);
        let operands = operands.map(|operand| digest(of, operand));
        let priority = priority.clamp(-128, 127) as i8;
        let terms = Terms { task: attempt.0, operands, priority, deadline };
        let task = TaskMessage::Task { terms, flops, result_bytes: grid.tile_bytes(tile) };
        self.send(node, stream, 0, Message::Task(task));
        Ok(())
    }

    fn send_operands(&mut self, node: usize, stream: u64, of: usize, grid: TileGrid, operands: &[Operand]) {
        for operand in operands {
            let bytes = grid.operand_bytes(*operand);
            let message = TaskMessage::Operand { digest: digest(of, *operand), bytes };
            let peer = self.network.stream(stream).map(|stream| stream.other_end(node));
            self.send(node, stream, bytes, Message::Task(message));
            self.checks.sent_operand(bytes);
            let Some(peer) = peer else { continue };
            let seconds = bytes as f64 / self.link(node, peer).bytes_per_s;
            if let Some(run) = &mut self.nodes[node].run
                && let Some(link) = run.products.links.get_mut(&peer)
            {
                link.sent = (link.sent.0 + bytes, link.sent.1 + seconds);
            }
        }
    }

    /// A worker lacks operands that it was thought to have: they are sent again, without the task.
    pub(crate) fn send_again(
        &mut self,
        node: usize,
        peer: usize,
        attempt: AttemptId,
        digests: Vec<Digest>,
    ) -> Result<(), Broken> {
        self.checks.counts.add("operands sent again");
        for gone in &digests {
            self.evicted(node, peer, *gone)?;
        }
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let products = &mut run.products;
        let Some(link) = products.links.get_mut(&peer) else { return Ok(()) };
        let Some(attempt) = products.attempts.get(&attempt).filter(|attempt| Some(attempt.worker) == link.worker)
        else {
            return Ok(());
        };
        let Some(running) = products.running.get(&attempt.job) else { return Ok(()) };
        let (of, stream) = (running.number, link.stream);
        let Some(grid) = running.grid else { return Ok(()) };
        let operands: Vec<Operand> = digests.iter().filter_map(|gone| operand_of(of, gone)).collect();
        link.resident.extend(digests);
        self.send_operands(node, stream, of, grid, &operands);
        Ok(())
    }

    /// A worker dropped an operand.
    pub(crate) fn evicted(&mut self, node: usize, peer: usize, gone: Digest) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let products = &mut run.products;
        let Some(link) = products.links.get_mut(&peer) else { return Ok(()) };
        link.resident.remove(&gone);
        let Some(worker) = link.worker else { return Ok(()) };
        let of = |(job, running): (&JobId, &Running)| Some((*job, operand_of(running.number, &gone)?));
        let lost: Vec<(JobId, Operand)> = products.running.iter().filter_map(of).collect();
        for (job, operand) in lost {
            self.schedule(node, Event::OperandsEvicted { worker, job, operands: vec![operand] })?;
        }
        Ok(())
    }

    /// An attempt ends without a result: nothing of it is kept.
    pub(crate) fn attempt_failed(&mut self, node: usize, attempt: AttemptId, kind: FailureKind) -> Result<(), Broken> {
        if let Some(run) = &mut self.nodes[node].run {
            run.products.attempts.remove(&attempt);
        }
        self.schedule(node, Event::AttemptFailed { attempt, kind, retry_after: None })
    }

    /// This node has computed a tile of its own.
    pub(crate) fn local_done(&mut self, node: usize, attempt: AttemptId, seconds: f64) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let Some(done) = run.products.attempts.get_mut(&attempt) else { return Ok(()) };
        done.result = Some(false);
        let measured = Measured { compute_seconds: Some(seconds), sent: None, received: None };
        self.schedule(node, Event::AttemptFinished { attempt, measured })
    }

    /// The result of a peer is here, and not checked.
    pub(crate) fn remote_done(
        &mut self,
        node: usize,
        of: usize,
        attempt: AttemptId,
        seconds: f64,
        bytes: u64,
        wrong: bool,
    ) -> Result<(), Broken> {
        let (receiving, peer) = (bytes as f64 / self.link(node, of).bytes_per_s, self.nodes[of].peer);
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let Some(done) = run.products.attempts.get_mut(&attempt) else { return Ok(()) };
        done.result = Some(wrong);
        let sent = run.products.links.get_mut(&of).map_or((0, 0.0), |link| std::mem::take(&mut link.sent));
        let transfer = |(bytes, seconds): (u64, f64)| (bytes > 0).then_some(Transfer { bytes, seconds });
        let (sent, received) = (transfer(sent), transfer((bytes, receiving)));
        if let Some(Transfer { bytes, seconds }) = sent {
            self.tell_peers(node, peers::Event::Sent { peer, bytes, seconds })?;
        }
        let measured = Measured { compute_seconds: Some(seconds), sent, received };
        self.schedule(node, Event::AttemptFinished { attempt, measured })
    }

    /// A tile was checked: what is wrong shows. Now and then nothing can be said, and honest results differ in their bits.
    pub(crate) fn checked(&mut self, node: usize, attempt: AttemptId, takes: Micros) -> Result<(), Broken> {
        let (inconclusive, differs) = (self.chance.one_in(1_000), self.chance.one_in(20));
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let Some(checked) = run.products.attempts.get(&attempt) else { return Ok(()) };
        let peer = run.products.workers.get(&checked.worker).copied();
        let verdict = match checked.result {
            Some(true) => CheckOutcome::Bad,
            Some(false) if inconclusive && peer.is_some() => CheckOutcome::Inconclusive,
            Some(false) => CheckOutcome::Good { answer: u64::from(differs) },
            None => CheckOutcome::Inconclusive,
        };
        if let (CheckOutcome::Good { .. }, Some(peer)) = (verdict, peer) {
            let peer = self.nodes[peer].peer;
            self.tell_peers(node, peers::Event::ResultPassed(peer))?;
        }
        self.schedule(node, Event::AttemptChecked { attempt, verdict, seconds: takes as f64 / 1e6 })
    }
}
