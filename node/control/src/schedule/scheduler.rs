//! The scheduler: events and the time go in, actions come out. A tile goes to a worker only if it is foretold to be
//! done there before the others would be through with the job without that worker.
//! Never reads a clock, never blocks, never sees a byte of a tensor.

use super::cost::Learned;
use super::help::{Help, Kind};
use super::job::{Answer, Held, Job};
use super::limits::{
    CHECK_BYTES_PER_S, CHECK_SHARE_MAX, CONNECT_WAIT, HEDGE_MARGIN, HEDGES_MAX, JOBS_CONSIDERED, OVERLOADS_LOCAL_MAX,
    OVERLOADS_MAX, REFUSALS_MAX, STRETCH,
};
use super::worker::{Flight, Prospect, Worker};
use super::{
    Accuracy, Action, Arithmetic, AttemptId, Event, FailureKind, JobId, JobReport, JobSpec, LeaveReason, Measured,
    Operand, Pace, Place, PlanError, Progress, Tile, TileGrid, Time, Transfer, Verdict, WorkerEstimate, WorkerId,
    WorkerShare,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is believed about one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerReport {
    /// Believed rates, indexed by [`Arithmetic`].
    pub flops_per_s: [f64; Arithmetic::COUNT],
    /// Believed bytes a second to it.
    pub send_bytes_per_s: f64,
    /// Believed bytes a second from it.
    pub receive_bytes_per_s: f64,
    /// How well predictions have held.
    pub accuracy: Accuracy,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Answers accepted so far.
    pub accepted: u64,
}

/// Decides for all jobs of this node which worker computes which tile when.
#[derive(Debug)]
pub struct Scheduler {
    workers: BTreeMap<WorkerId, Worker>,
    quarantined: BTreeSet<WorkerId>,
    /// Jobs that wait for peers to connect.
    waiting: Vec<Waiting>,
    /// In the order in which they are served.
    jobs: Vec<Job>,
    attempts: BTreeMap<AttemptId, Attempt>,
    next_attempt: u64,
    connecting: usize,
    /// What help was worth so far.
    help: Help,
    /// Seconds to check a byte of operands and answer.
    check_byte_s: Learned,
    /// The time of the first event: times inside are seconds since then.
    origin: Option<Time>,
    /// The wake-up that the driver was asked for last.
    wake_at: Option<f64>,
    /// Counts starts, so that operands can be ordered by last use.
    starts: u64,
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Waiting {
    job: JobId,
    spec: JobSpec,
    submitted: f64,
    until: f64,
}

#[derive(Debug)]
struct Attempt {
    job: JobId,
    tile: Tile,
    worker: WorkerId,
    /// Seconds of computing, once the answer is here and being checked.
    checking: Option<f64>,
}

/// How soon a worker would get through tiles of one job.
#[derive(Debug, Clone, Copy)]
struct Lane {
    free: f64,
    tile_s: f64,
}

/// A tile that a worker could take.
struct Candidate {
    tile: Tile,
    missing_bytes: u64,
    prospect: Prospect,
    /// When its checked answer would be there.
    done: f64,
}

impl Scheduler {
    /// A scheduler that knows this node only.
    pub fn new(local: WorkerEstimate) -> Self {
        Self {
            workers: BTreeMap::from([(WorkerId::LOCAL, Worker::new(WorkerId::LOCAL, &local, 0.0))]),
            quarantined: BTreeSet::new(),
            waiting: Vec::new(),
            jobs: Vec::new(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            connecting: 0,
            help: Help::default(),
            check_byte_s: Learned::new(1.0 / CHECK_BYTES_PER_S),
            origin: None,
            wake_at: None,
            starts: 0,
            lanes: Vec::new(),
        }
    }

    /// Takes in one event, at a time that never goes back, and pushes what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        let now = now.since(*self.origin.get_or_insert(now)).as_secs_f64();
        match event {
            Event::JobSubmitted { job, spec } => self.submit(job, spec, now, actions),
            Event::JobCancelled { job } => self.cancel_job(job, now, actions),
            Event::WorkerJoined { worker, estimate } => self.join(worker, &estimate, now, actions),
            Event::WorkerUpdated { worker, estimate } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.update(&estimate, now);
                }
            }
            Event::WorkerLeft { worker, why } => self.leave(worker, why, now, actions),
            Event::PeersConnecting { count } => self.connecting = count,
            Event::OperandsResident { worker, job, operands } => {
                operands.into_iter().for_each(|operand| self.hold(worker, job, operand));
            }
            Event::OperandsEvicted { worker, job, operands } => {
                operands.into_iter().for_each(|operand| self.drop_operand(worker, job, operand));
            }
            Event::AttemptProgress { attempt, progress } => {
                self.progress(attempt, progress, now);
                if progress == Progress::Moving {
                    return;
                }
            }
            Event::AttemptFinished { attempt, measured } => self.finish(attempt, &measured, now, actions),
            Event::AttemptFailed { attempt, kind } => {
                if self.attempts.get(&attempt).is_some_and(|attempt| attempt.checking.is_none()) {
                    self.fail(attempt, kind, now, actions);
                }
            }
            Event::AttemptChecked { attempt, verdict, seconds } => {
                self.checked(attempt, verdict, seconds, now, actions)
            }
            Event::Tick => self.wake_at = None,
        }
        self.expire(now, actions);
        self.dispatch(now, actions);
        self.ask_to_wake(now, actions);
    }

    /// How a job would be cut now. Submitted with these sides fixed, it will be cut so.
    ///
    /// # Errors
    /// [`PlanError`] if it cannot be cut.
    pub fn plan(&self, spec: &JobSpec) -> Result<TileGrid, PlanError> {
        let workers = self.workers.values().filter(|worker| match spec.place {
            Place::Auto => true,
            Place::Local => worker.id.is_local(),
            Place::Remote => !worker.id.is_local() || self.workers.len() == 1,
        });
        let estimates: Vec<WorkerEstimate> = workers.map(believed).collect();
        let local = self.workers.get(&WorkerId::LOCAL);
        let here = Pace {
            flops_per_s: local.map_or(f64::INFINITY, |local| local.model.flops_per_s(spec.arithmetic)),
            check_bytes_per_s: 1.0 / self.check_byte_s.value,
        };
        TileGrid::cut(spec.shape, spec.arithmetic, &estimates, here, spec.band_rows, spec.panel_columns)
    }

    /// What is believed about a worker; nothing if it is not there.
    pub fn worker(&self, worker: WorkerId) -> Option<WorkerReport> {
        let worker = self.workers.get(&worker)?;
        let believed = believed(worker);
        Some(WorkerReport {
            flops_per_s: believed.flops_per_s,
            send_bytes_per_s: believed.send_bytes_per_s,
            receive_bytes_per_s: believed.receive_bytes_per_s,
            accuracy: worker.model.accuracy(),
            in_flight: worker.flights.len(),
            accepted: worker.accepted,
        })
    }

    /// Jobs that have not ended.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        self.jobs.iter().map(|job| job.id).chain(self.waiting.iter().map(|waiting| waiting.job))
    }

    fn submit(&mut self, id: JobId, spec: JobSpec, now: f64, actions: &mut Vec<Action>) {
        debug_assert!(self.jobs().all(|job| job != id), "{id} is submitted twice");
        let until = now + CONNECT_WAIT.as_secs_f64();
        if spec.place == Place::Remote && self.connecting > 0 && self.workers.len() == 1 {
            self.waiting.push(Waiting { job: id, spec, submitted: now, until });
        } else {
            self.admit(Waiting { job: id, spec, submitted: now, until }, now, actions);
        }
    }

    fn admit(&mut self, waiting: Waiting, now: f64, actions: &mut Vec<Action>) {
        let Waiting { job: id, spec, submitted, until } = waiting;
        let grid = match self.plan(&spec) {
            Ok(grid) => grid,
            Err(error) => {
                let (kind, why, report) = (FailureKind::InvalidInput, error.to_string(), JobReport::default());
                actions.push(Action::JobFailed { job: id, kind, why, report });
                return;
            }
        };
        let mut job = Job::new(id, spec, grid, submitted);
        job.spec.redundancy = job.spec.redundancy.max(1);
        job.connect_until = until;
        if job.remaining == 0 {
            actions.push(Action::Plan { job: id, grid });
            actions.push(Action::JobFinished { job: id, report: job.report(now) });
            return;
        }
        let alone = self.workers.get(&WorkerId::LOCAL);
        let alone_s = alone.map_or(0.0, |local| local.model.compute_s(job.spec.arithmetic, grid.shape().flops()));
        job.rank = submitted + STRETCH * alone_s;
        self.workers.values_mut().for_each(|worker| worker.look_ahead(now));
        let resident = std::mem::take(&mut job.spec.resident);
        job.kind = Some(Kind::of(grid.shape().flops(), !resident.is_empty()));
        let after = |other: &Job| (-other.spec.priority, other.rank) <= (-job.spec.priority, job.rank);
        let at = self.jobs.partition_point(after);
        self.jobs.insert(at, job);
        resident.into_iter().for_each(|(worker, operand)| self.hold(worker, id, operand));
        let mut job = self.jobs.remove(at);
        let all = |_: &Worker| true;
        job.predicted_s = (self.rest_done(&job, job.pending.len(), all) - submitted).max(0.0);
        if !job.predicted_s.is_finite() {
            job.predicted_s = alone_s;
        }
        if !self.help_pays(&job, submitted) {
            self.forget_operands(&job);
            let spec = JobSpec { place: Place::Local, band_rows: None, panel_columns: None, ..job.spec };
            self.admit(Waiting { job: id, spec, submitted, until }, now, actions);
            return;
        }
        actions.push(Action::Plan { job: id, grid });
        self.jobs.insert(at, job);
    }

    /// Whether peers are to help with a job; not a question where it was said who is to compute it.
    fn help_pays(&mut self, job: &Job, submitted: f64) -> bool {
        let open = job.spec.place == Place::Auto && job.spec.redundancy == 1 && self.workers.len() > 1;
        let Some(kind) = job.kind.filter(|_| open) else { return true };
        let alone_s =
            (self.rest_done(job, job.pending.len(), |worker: &Worker| worker.id.is_local()) - submitted).max(0.0);
        self.help.pays(kind, job.predicted_s, alone_s)
    }

    fn cancel_job(&mut self, id: JobId, now: f64, actions: &mut Vec<Action>) {
        let why = "the job was cancelled";
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.job == id) {
            self.waiting.remove(at);
            let (kind, why, report) = (FailureKind::Cancelled, why.to_owned(), JobReport::default());
            actions.push(Action::JobFailed { job: id, kind, why, report });
        } else if self.jobs.iter().any(|job| job.id == id) {
            self.fail_job(id, FailureKind::Cancelled, why.to_owned(), now, actions);
        }
    }

    fn fail_job(&mut self, id: JobId, kind: FailureKind, why: String, now: f64, actions: &mut Vec<Action>) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
            return;
        };
        let mut job = self.jobs.remove(at);
        for record in std::mem::take(&mut job.records).into_values() {
            for (attempt, _) in record.active {
                self.drop_attempt(attempt, actions);
            }
            actions.extend(record.answers.iter().map(|answer| Action::Discard { attempt: answer.attempt }));
        }
        self.forget_operands(&job);
        let report = job.report(now);
        actions.push(Action::JobFailed { job: id, kind, why, report });
    }

    fn join(&mut self, id: WorkerId, estimate: &WorkerEstimate, now: f64, actions: &mut Vec<Action>) {
        if self.quarantined.contains(&id) {
            return;
        }
        if id.is_local() {
            if let Some(local) = self.workers.get_mut(&id) {
                local.update(estimate, now);
            }
            return;
        }
        self.leave(id, LeaveReason::Lost, now, actions);
        self.workers.insert(id, Worker::new(id, estimate, now));
    }

    fn leave(&mut self, id: WorkerId, why: LeaveReason, now: f64, actions: &mut Vec<Action>) {
        if id.is_local() {
            return;
        }
        if why == LeaveReason::Quarantined {
            self.quarantined.insert(id);
        }
        if let Some(worker) = self.workers.remove(&id) {
            self.jobs.iter_mut().for_each(|job| job.drop_holder(id));
            for flight in worker.flights {
                self.attempts.remove(&flight.attempt);
                actions.push(Action::Cancel { attempt: flight.attempt, worker: id });
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == flight.job) {
                    job.active -= 1;
                    if let Some(record) = job.records.get_mut(&flight.tile) {
                        record.active.retain(|&(attempt, _)| attempt != flight.attempt);
                        record.failures += 1;
                    }
                }
            }
            self.settle_all(now, actions);
        }
    }

    /// Looks again at every tile that is under way: what it waits for may be gone.
    fn settle_all(&mut self, now: f64, actions: &mut Vec<Action>) {
        let tiles: Vec<(JobId, Tile)> =
            (self.jobs.iter()).flat_map(|job| job.records.keys().map(move |&tile| (job.id, tile))).collect();
        tiles.into_iter().for_each(|(job, tile)| self.settle(job, tile, now, actions));
    }

    fn quarantine(&mut self, id: WorkerId, evidence: AttemptId, now: f64, actions: &mut Vec<Action>) {
        if self.quarantined.insert(id) {
            actions.push(Action::Quarantine { worker: id, attempt: evidence });
        }
        // Nothing else that it said counts, checked or not, unless it has been merged.
        let theirs = self.attempts.iter().filter(|(_, attempt)| attempt.worker == id && attempt.checking.is_some());
        let theirs: Vec<AttemptId> = theirs.map(|(&attempt, _)| attempt).collect();
        for attempt in theirs {
            if let Some(gone) = self.drop_attempt(attempt, actions)
                && let Some(job) = self.jobs.iter_mut().find(|job| job.id == gone.job)
            {
                job.active -= 1;
                if let Some(record) = job.records.get_mut(&gone.tile) {
                    record.active.retain(|&(active, _)| active != attempt);
                    record.failures += 1;
                }
            }
        }
        for record in self.jobs.iter_mut().flat_map(|job| job.records.values_mut()) {
            let gone = record.answers.iter().filter(|answer| answer.worker == id);
            actions.extend(gone.map(|answer| Action::Discard { attempt: answer.attempt }));
            record.answers.retain(|answer| answer.worker != id);
        }
        self.leave(id, LeaveReason::Quarantined, now, actions);
        self.settle_all(now, actions);
    }

    fn hold(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        if worker.is_local() {
            return;
        }
        let job = self.jobs.iter_mut().find(|other| other.id == job);
        if let (Some(job), Some(worker)) = (job, self.workers.get_mut(&worker)) {
            worker.resident_bytes += job.hold(worker.id, operand, self.starts);
        }
    }

    fn drop_operand(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        let job = self.jobs.iter_mut().find(|other| other.id == job);
        if let (Some(job), Some(worker)) = (job, self.workers.get_mut(&worker)) {
            worker.resident_bytes -= job.drop_operand(worker.id, operand);
        }
    }

    fn forget_operands(&mut self, job: &Job) {
        for (worker, Held { bytes, .. }) in &job.held {
            if let Some(worker) = self.workers.get_mut(worker) {
                worker.resident_bytes -= bytes;
            }
        }
    }

    fn progress(&mut self, id: AttemptId, progress: Progress, now: f64) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&attempt.worker) else {
            return;
        };
        if progress == Progress::Sent {
            worker.sent(id, now);
        }
        if let Some(flight) = worker.flights.iter_mut().find(|flight| flight.attempt == id) {
            flight.last_moved = now;
            if progress == Progress::Computing {
                flight.began = Some((now - worker.model.rtt_s / 2.0).max(flight.started));
            }
        }
    }

    fn finish(&mut self, id: AttemptId, measured: &Measured, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&attempt.worker) else {
            return;
        };
        let Some((flight, begin)) = worker.finish(id, now) else {
            return;
        };
        let elsewhere = flight.return_s + worker.model.overhead_s;
        let compute_s = measured.compute_seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let compute_s = compute_s.unwrap_or_else(|| (now - begin - elsewhere).max(0.0));
        worker.model.observe_compute(flight.arithmetic, flight.flops, compute_s);
        if let Some(sent) = measured.sent {
            worker.model.observe_send(sent);
        }
        if let Some(received) = measured.received {
            worker.model.observe_receive(received);
        }
        worker.model.observe_attempt(flight.predicted_done - flight.started, now - flight.started);
        attempt.checking = Some(compute_s);
        let trusted = attempt.worker.is_local();
        let alone = (self.jobs.iter()).any(|job| job.id == flight.job && job.spec.redundancy == 1);
        if trusted && alone {
            // What this node computed for itself needs no check; any number names its one answer.
            self.answer(id, 0, now, actions);
        } else {
            actions.push(Action::Check { attempt: id });
        }
    }

    fn checked(&mut self, id: AttemptId, verdict: Verdict, seconds: f64, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.checking.is_some()) else {
            return;
        };
        let (worker, tile) = (attempt.worker, attempt.tile);
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) {
            let bytes = check_bytes(job, tile);
            self.check_byte_s.observe_transfer(Transfer { bytes, seconds });
            job.tasks.wrong += u32::from(verdict == Verdict::Bad);
        }
        match verdict {
            Verdict::Good { answer } => self.answer(id, answer, now, actions),
            Verdict::Bad if !worker.is_local() => self.quarantine(worker, id, now, actions),
            Verdict::Bad | Verdict::Inconclusive => self.fail(id, FailureKind::VerificationFailed, now, actions),
        }
    }

    /// Keeps a good answer.
    fn answer(&mut self, id: AttemptId, answer: u64, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&attempt.worker) {
            worker.did_well();
        }
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) else {
            return;
        };
        job.active -= 1;
        let record = job.records.entry(attempt.tile).or_default();
        record.active.retain(|&(active, _)| active != id);
        let seconds = attempt.checking.unwrap_or(0.0);
        record.answers.push(Answer { attempt: id, worker: attempt.worker, answer, seconds });
        self.settle(attempt.job, attempt.tile, now, actions);
    }

    /// Ends an attempt that brought no good answer.
    fn fail(&mut self, id: AttemptId, kind: FailureKind, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        let local = attempt.worker.is_local();
        if attempt.checking.is_some() {
            actions.push(Action::Discard { attempt: id });
        }
        let mut given_up = false;
        if let Some(worker) = self.workers.get_mut(&attempt.worker) {
            worker.remove(id);
            match kind {
                FailureKind::Overloaded => worker.overloaded(now),
                FailureKind::Unauthorized => worker.refused(now),
                // The operand is sent again; that the answer could not be judged is nobody's fault.
                FailureKind::NotFound | FailureKind::VerificationFailed => {}
                _ => worker.failed(now),
            }
            given_up = worker.is_given_up();
        }
        if kind == FailureKind::NotFound {
            self.drop_operand(attempt.worker, attempt.job, Operand::Band(attempt.tile.band));
            self.drop_operand(attempt.worker, attempt.job, Operand::Panel(attempt.tile.panel));
        }
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) else {
            return;
        };
        job.active -= 1;
        let record = job.records.entry(attempt.tile).or_default();
        record.active.retain(|&(active, _)| active != id);
        let overloaded = kind == FailureKind::Overloaded;
        record.overloads += u32::from(overloaded);
        record.failures += u32::from(!overloaded);
        record.local_failures += u32::from(local && !overloaded);
        if !local && kind != FailureKind::NotFound && (!overloaded || record.overloads > OVERLOADS_MAX) {
            record.failed.push(attempt.worker);
        }
        let hopeless = kind == FailureKind::InvalidInput
            || record.local_failures > job.spec.max_retries
            || record.overloads > OVERLOADS_LOCAL_MAX;
        if local && hopeless {
            let why = match kind {
                FailureKind::InvalidInput => "this node cannot compute the job as asked",
                FailureKind::Overloaded => "this node has no room for the job; try again later or allow more memory",
                FailureKind::VerificationFailed => "no answer of this node stands up to its check",
                _ => "this node fails to compute a part of the job",
            };
            self.fail_job(attempt.job, kind, why.to_owned(), now, actions);
        } else {
            self.settle(attempt.job, attempt.tile, now, actions);
        }
        if given_up {
            self.settle_all(now, actions);
        }
    }

    /// Takes an attempt out of flight or out of its check; the tile's record is the caller's.
    fn drop_attempt(&mut self, id: AttemptId, actions: &mut Vec<Action>) -> Option<Attempt> {
        let attempt = self.attempts.remove(&id)?;
        if attempt.checking.is_some() {
            actions.push(Action::Discard { attempt: id });
        } else {
            if let Some(worker) = self.workers.get_mut(&attempt.worker) {
                worker.remove(id);
            }
            actions.push(Action::Cancel { attempt: id, worker: attempt.worker });
        }
        Some(attempt)
    }

    /// Accepts a tile if enough workers agree on it, or if nobody is left to ask; else says whether it waits for
    /// another start.
    fn settle(&mut self, id: JobId, tile: Tile, now: f64, actions: &mut Vec<Action>) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
            return;
        };
        let job = &mut self.jobs[at];
        let Some(record) = job.records.get(&tile) else {
            return;
        };
        let best = record.best();
        let agreeing = best.map_or(0, |(_, agreeing)| agreeing);
        let asked = record.active.len() as u32;
        let enough = agreeing >= job.spec.redundancy;
        if !enough && agreeing + asked < job.spec.redundancy {
            job.pending.insert(tile);
        } else {
            job.pending.remove(tile);
        }
        let mut live = self.workers.values().filter(|worker| worker.id.is_local() || !worker.is_given_up());
        let nobody_left = asked == 0 && !live.any(|worker| self.may_take(at, tile, worker.id, now));
        if let Some((answer, agreeing)) = best
            && (enough || nobody_left)
        {
            self.accept(at, tile, answer, agreeing, now, actions);
        }
    }

    fn accept(&mut self, at: usize, tile: Tile, best: Answer, agreeing: u32, now: f64, actions: &mut Vec<Action>) {
        let job = &mut self.jobs[at];
        let id = job.id;
        job.pending.remove(tile);
        let record = job.records.remove(&tile).unwrap_or_default();
        job.active -= record.active.len() as u32;
        job.remaining -= 1;
        let count = if best.worker.is_local() { &mut job.tasks.local } else { &mut job.tasks.remote };
        *count += 1;
        match job.shares.iter_mut().find(|share| share.worker == best.worker) {
            Some(share) => {
                share.tasks += 1;
                share.seconds += best.seconds;
            }
            None => job.shares.push(WorkerShare { worker: best.worker, tasks: 1, seconds: best.seconds }),
        }
        actions.push(Action::Accept { attempt: best.attempt, job: id, tile, worker: best.worker, agreeing });
        for (attempt, _) in record.active {
            self.drop_attempt(attempt, actions);
        }
        let others = record.answers.iter().filter(|answer| answer.attempt != best.attempt);
        actions.extend(others.map(|answer| Action::Discard { attempt: answer.attempt }));
        if self.jobs[at].remaining == 0 {
            let mut job = self.jobs.remove(at);
            debug_assert!(job.pending.is_empty() && job.active == 0 && job.records.is_empty());
            self.forget_operands(&job);
            let report = job.report(now);
            if let Some(kind) = job.kind.filter(|_| report.tasks.remote > 0 && job.spec.place == Place::Auto) {
                self.help.learn(kind, report.predicted_seconds, report.actual_seconds);
            }
            actions.push(Action::JobFinished { job: id, report });
        }
    }

    /// Whether a worker may have this tile at all, now or later.
    fn may_take(&self, at: usize, tile: Tile, worker: WorkerId, now: f64) -> bool {
        let job = &self.jobs[at];
        let record = job.records.get(&tile);
        let retries = record.map_or(0, |record| record.failures);
        let fit = |worker: WorkerId| {
            (worker.is_local() || retries <= job.spec.max_retries) && !record.is_some_and(|record| record.bars(worker))
        };
        let has_it =
            |peer: WorkerId| record.is_some_and(|record| record.active.iter().any(|&(_, active)| active == peer));
        let here = || {
            let mut peers = self.workers.values().filter(|worker| !worker.id.is_local());
            let can = peers.any(|peer| has_it(peer.id) || (fit(peer.id) && !peer.is_failing(now)));
            !can && (self.workers.len() > 1 || !self.has_peers(job, now))
        };
        fit(worker)
            && match job.spec.place {
                Place::Auto => true,
                Place::Local => worker.is_local(),
                Place::Remote => !worker.is_local() || here(),
            }
    }

    /// Whether a job that is to run on peers has some, or waits for some.
    fn has_peers(&self, job: &Job, now: f64) -> bool {
        let mut peers = self.workers.values().filter(|worker| !worker.id.is_local());
        peers.any(|peer| !peer.is_failing(now)) || (self.workers.len() == 1 && self.awaits_peers(job, now))
    }

    fn awaits_peers(&self, job: &Job, now: f64) -> bool {
        self.connecting > 0 && now < job.connect_until
    }

    /// What time ends: waits for peers, deadlines, silent attempts.
    fn expire(&mut self, now: f64, actions: &mut Vec<Action>) {
        while let Some(at) = self.waiting.iter().position(|waiting| {
            self.connecting == 0 || self.workers.len() > 1 || waiting.until <= now || self.overdue(&waiting.spec, now)
        }) {
            let waiting = self.waiting.remove(at);
            self.admit(waiting, now, actions);
        }
        while let Some(job) = self.jobs.iter().find(|job| self.overdue(&job.spec, now)) {
            let why = "the deadline passed before the job was done".to_owned();
            self.fail_job(job.id, FailureKind::DeadlineExceeded, why, now, actions);
        }
        let peers = self.workers.values().filter(|worker| !worker.id.is_local());
        let silent = peers.flat_map(|peer| &peer.flights).filter(|flight| flight.silent_at() <= now);
        let silent: Vec<AttemptId> = silent.map(|flight| flight.attempt).collect();
        for attempt in silent {
            if let Some(worker) = self.attempts.get(&attempt).map(|attempt| attempt.worker) {
                actions.push(Action::Cancel { attempt, worker });
                self.fail(attempt, FailureKind::Unavailable, now, actions);
            }
        }
    }

    fn overdue(&self, spec: &JobSpec, now: f64) -> bool {
        spec.deadline.is_some_and(|deadline| self.since_origin(deadline) <= now)
    }

    fn since_origin(&self, time: Time) -> f64 {
        time.since(self.origin.unwrap_or_default()).as_secs_f64()
    }

    /// Hands out tiles until no worker wants one.
    fn dispatch(&mut self, now: f64, actions: &mut Vec<Action>) {
        if self.jobs.is_empty() {
            return;
        }
        self.look_ahead(now);
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let hungry = self.hungry();
        let mut started = !hungry.is_empty();
        while started {
            started = false;
            for &worker in &workers {
                if self.workers.get(&worker).is_some_and(|worker| worker.has_room(now)) {
                    started |= self.give_one(worker, &hungry, now, actions);
                }
            }
        }
        // Of those that are left, the first; the others come when it has gone.
        for at in self.hungry().into_iter().take(REFUSALS_MAX) {
            if self.jobs[at].active == 0 {
                self.give_somebody(at, &workers, now, actions);
            }
        }
        for &worker in &workers {
            self.hedge(worker, now, actions);
        }
    }

    fn look_ahead(&mut self, now: f64) {
        self.jobs.iter_mut().for_each(|job| job.expected = now);
        for worker in self.workers.values_mut() {
            worker.look_ahead(now);
            for flight in &worker.flights {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == flight.job) {
                    job.expected = job.expected.max(flight.expected);
                }
            }
        }
    }

    /// The first jobs that have tiles waiting.
    fn hungry(&self) -> Vec<usize> {
        let jobs = self.jobs.iter().enumerate();
        jobs.filter(|(_, job)| !job.pending.is_empty()).map(|(at, _)| at).take(JOBS_CONSIDERED).collect()
    }

    /// Gives a worker the tile that suits it best, of the first job that gains from it.
    fn give_one(&mut self, worker: WorkerId, hungry: &[usize], now: f64, actions: &mut Vec<Action>) -> bool {
        let mut refused = 0;
        for &at in hungry {
            let local = worker.is_local();
            let barred = match self.jobs[at].spec.place {
                Place::Auto => false,
                Place::Local => !local,
                Place::Remote => local && self.has_peers(&self.jobs[at], now),
            };
            if let Some(candidate) = self.candidate(at, worker, false, now)
                && self.make_room(at, worker, &candidate, actions)
            {
                self.start(at, worker, &candidate, false, now, actions);
                return true;
            }
            refused += usize::from(!barred);
            if refused >= REFUSALS_MAX {
                break;
            }
        }
        false
    }

    /// Everybody leaves the job to somebody else: whoever would be done first gets a tile of it, once there is room.
    fn give_somebody(&mut self, at: usize, workers: &[WorkerId], now: f64, actions: &mut Vec<Action>) {
        let mut first: Option<(WorkerId, Candidate)> = None;
        for &worker in workers {
            if self.workers.get(&worker).is_some_and(|worker| worker.pause_until <= now)
                && let Some(candidate) = self.candidate(at, worker, true, now)
                && first.as_ref().is_none_or(|(_, first)| candidate.done < first.done)
            {
                first = Some((worker, candidate));
            }
        }
        if let Some((worker, candidate)) = first
            && self.workers.get(&worker).is_some_and(|worker| worker.has_room(now))
            && self.make_room(at, worker, &candidate, actions)
        {
            self.start(at, worker, &candidate, false, now, actions);
        }
    }

    /// The tile of a job that suits a worker best, if the worker should have one: always if `force`, else only if
    /// that does not end later than the job would without it.
    fn candidate(&mut self, at: usize, id: WorkerId, force: bool, now: f64) -> Option<Candidate> {
        let job = &self.jobs[at];
        let place = job.spec.place;
        if job.pending.is_empty() || (place == Place::Local && !id.is_local()) {
            return None;
        }
        let worker = self.workers.get(&id)?;
        let arithmetic = job.spec.arithmetic;
        let mut rest_done = f64::INFINITY;
        if !force && place != Place::Local && self.workers.len() > 1 {
            // Nothing is cheaper than a tile whose operands are there.
            let bytes = job.mean_answer_bytes as u64;
            let least = worker.prospect(arithmetic, job.mean_flops, 0, bytes);
            let operand_s = worker.model.send_s(job.mean_operand_bytes as u64);
            if !id.is_local() && worker.has_enough(now, &least, operand_s * job.missing_share(id).min(1.0)) {
                return None;
            }
            if !id.is_local() && place == Place::Auto && !self.is_worth_checking(job) {
                return None;
            }
            let others = |other: &Worker| other.id != id && (place == Place::Auto || !other.id.is_local());
            rest_done = rest_done_with(&mut self.lanes, self.workers.values(), job, job.pending.len(), others);
            let pending_before = |job: &Job| f64::from(job.pending.len()) * job.mean_flops;
            let before: f64 = self.jobs[..at].iter().map(pending_before).sum();
            if before > 0.0 {
                let rate = self.workers.values().filter(|other| others(other));
                rest_done += before / rate.map(|other| other.model.flops_per_s(arithmetic)).sum::<f64>().max(1.0);
            }
            rest_done = rest_done.max(job.expected);
            let plain = job.spec.redundancy == 1 && job.records.len() as u32 <= job.active;
            if plain && least.done >= rest_done {
                return None;
            }
        }
        let tile = self.choose(at, id, now)?;
        let job = &self.jobs[at];
        if let Some(record) = job.records.get(&tile)
            && !(record.failed.is_empty() && record.answers.is_empty() && record.active.is_empty())
        {
            // Not everybody can take this one off the worker's hands.
            let others = |other: &Worker| {
                other.id != id && (place == Place::Auto || !other.id.is_local()) && !record.bars(other.id)
            };
            rest_done = rest_done_with(&mut self.lanes, self.workers.values(), job, job.pending.len(), others);
        }
        let candidate = self.prospect(at, id, tile)?;
        (force || candidate.done < rest_done).then_some(candidate)
    }

    /// Whether checking an answer costs this node clearly less than computing it.
    fn is_worth_checking(&self, job: &Job) -> bool {
        let Some(local) = self.workers.get(&WorkerId::LOCAL) else {
            return true;
        };
        let bytes = 2.0 * job.mean_operand_bytes + job.mean_answer_bytes;
        let compute_s = local.model.compute_s(job.spec.arithmetic, job.mean_flops);
        bytes * self.check_byte_s.value < CHECK_SHARE_MAX * compute_s
    }

    fn choose(&self, at: usize, id: WorkerId, now: f64) -> Option<Tile> {
        let job = &self.jobs[at];
        if !id.is_local() {
            let retries = job.spec.max_retries;
            return job.choose_remote(id, |tile| {
                (job.records.get(&tile)).is_none_or(|record| !record.bars(id) && record.failures <= retries)
            });
        }
        if job.spec.place == Place::Remote && self.has_peers(job, now) {
            // Only what no peer can have.
            let mut tiles = job.records.keys().copied().filter(|&tile| job.pending.contains(tile));
            return tiles.find(|&tile| self.may_take(at, tile, id, now));
        }
        job.choose_local(|tile| job.records.get(&tile).is_none_or(|record| !record.bars(id)))
    }

    fn prospect(&self, at: usize, id: WorkerId, tile: Tile) -> Option<Candidate> {
        let job = &self.jobs[at];
        let worker = self.workers.get(&id)?;
        let missing_bytes = job.missing_bytes(tile, id);
        let answer_bytes = if id.is_local() { 0 } else { job.grid.tile_bytes(tile) };
        let flops = job.grid.tile_flops(tile);
        let prospect = worker.prospect(job.spec.arithmetic, flops, missing_bytes, answer_bytes);
        let check_s = if id.is_local() { 0.0 } else { check_bytes(job, tile) as f64 * self.check_byte_s.value };
        Some(Candidate { tile, missing_bytes, prospect, done: prospect.done + check_s })
    }

    /// Sees to it that the operands and the answer fit where they go, by giving up what was used longest ago.
    fn make_room(&mut self, at: usize, id: WorkerId, candidate: &Candidate, actions: &mut Vec<Action>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        if id.is_local() {
            return true;
        }
        let answer_bytes = self.jobs[at].grid.tile_bytes(candidate.tile);
        if !worker.may_carry(candidate.missing_bytes + answer_bytes) {
            return false;
        }
        let answers = answer_bytes.saturating_mul(worker.flights.len() as u64 + 1);
        let room = worker.memory_bytes.saturating_sub(answers).saturating_sub(candidate.missing_bytes);
        while worker.resident_bytes > room {
            let chosen = self.jobs[at].id;
            let coldest = self.jobs.iter().filter_map(|job| {
                let uses =
                    |tile: Tile, operand| operand == Operand::Band(tile.band) || operand == Operand::Panel(tile.panel);
                let needed = |operand| {
                    (job.id == chosen && uses(candidate.tile, operand))
                        || worker.flights.iter().any(|flight| flight.job == job.id && uses(flight.tile, operand))
                };
                job.coldest(id, needed).map(|(used, operand)| (used, job.id, operand))
            });
            // An idle worker gets the tile anyway: whether it fits, only the worker can say.
            let Some((_, job, operand)) = coldest.min() else {
                return worker.flights.is_empty();
            };
            if let Some(job) = self.jobs.iter_mut().find(|other| other.id == job) {
                worker.resident_bytes -= job.drop_operand(id, operand);
            }
            actions.push(Action::Release { worker: id, job, operand });
        }
        true
    }

    fn start(
        &mut self,
        at: usize,
        id: WorkerId,
        candidate: &Candidate,
        hedge: bool,
        now: f64,
        actions: &mut Vec<Action>,
    ) {
        debug_assert!(!self.quarantined.contains(&id), "{id} is quarantined");
        let (job, Some(worker)) = (&mut self.jobs[at], self.workers.get_mut(&id)) else {
            return;
        };
        debug_assert!(worker.has_room(now), "{id} has no room");
        let Candidate { tile, missing_bytes, prospect, done } = *candidate;
        let attempt = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        self.starts += 1;
        let answer_bytes = if id.is_local() { 0 } else { job.grid.tile_bytes(tile) };
        if !id.is_local() {
            for operand in [Operand::Band(tile.band), Operand::Panel(tile.panel)] {
                worker.resident_bytes += job.hold(id, operand, self.starts);
            }
        }
        let flight = Flight {
            attempt,
            job: job.id,
            tile,
            arithmetic: job.spec.arithmetic,
            flops: job.grid.tile_flops(tile),
            bytes: missing_bytes + answer_bytes,
            started: now,
            arrive: prospect.arrive,
            began: None,
            compute_s: prospect.compute_s,
            return_s: prospect.return_s,
            predicted_done: prospect.done,
            due: prospect.done,
            expected: prospect.done,
            last_moved: now,
        };
        worker.start(flight, &prospect);
        if id.is_local() {
            job.local_started(tile);
        }
        let record = job.records.entry(tile).or_default();
        debug_assert!(!record.bars(id), "{id} has had this tile");
        record.active.push((attempt, id));
        job.active += 1;
        job.expected = job.expected.max(done);
        job.tasks.hedged += u32::from(hedge);
        job.tasks.retried += u32::from(!hedge && record.failures + record.overloads > 0);
        let best = record.best().map_or(0, |(_, agreeing)| agreeing);
        if best + record.active.len() as u32 >= job.spec.redundancy {
            job.pending.remove(tile);
        }
        self.attempts.insert(attempt, Attempt { job: job.id, tile, worker: id, checking: None });
        actions.push(Action::Start { attempt, job: job.id, tile, worker: id, hedge });
    }

    /// Lets an idle worker copy the task that would be done last, if the copy is done sooner.
    fn hedge(&mut self, id: WorkerId, now: f64, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if !worker.flights.is_empty() || !worker.has_room(now) {
            return;
        }
        for at in 0..self.jobs.len() {
            let job = &self.jobs[at];
            if !job.pending.is_empty() || job.active == 0 {
                continue;
            }
            let copies = job.spec.redundancy as usize + HEDGES_MAX;
            let room = |tile: Tile| job.records.get(&tile).is_some_and(|record| record.active.len() < copies);
            let last = (self.workers.values().flat_map(|worker| &worker.flights))
                .filter(|flight| flight.job == job.id && room(flight.tile))
                .filter(|flight| self.may_take(at, flight.tile, id, now))
                .max_by(|x, y| x.expected.total_cmp(&y.expected).then(y.attempt.cmp(&x.attempt)));
            let Some((tile, expected)) = last.map(|flight| (flight.tile, flight.expected)) else {
                continue;
            };
            if let Some(candidate) = self.prospect(at, id, tile)
                && candidate.done + HEDGE_MARGIN * (candidate.done - now) < expected
                && self.make_room(at, id, &candidate, actions)
            {
                self.start(at, id, &candidate, true, now, actions);
                return;
            }
        }
    }

    /// When some of the workers would be through with so many tiles of a job, its operands sent and all.
    fn rest_done(&mut self, job: &Job, tiles: u32, among: impl Fn(&Worker) -> bool) -> f64 {
        let place = job.spec.place;
        let fits = |worker: &Worker| match place {
            Place::Auto => true,
            Place::Local => worker.id.is_local(),
            Place::Remote => !worker.id.is_local(),
        };
        rest_done_with(&mut self.lanes, self.workers.values(), job, tiles, |worker| fits(worker) && among(worker))
    }

    /// Asks for a wake-up when time alone will change something.
    fn ask_to_wake(&mut self, now: f64, actions: &mut Vec<Action>) {
        let mut next = f64::INFINITY;
        let mut at = |time: f64| next = next.min(time);
        for waiting in &self.waiting {
            at(waiting.until);
        }
        let waits = self.waiting.iter().map(|waiting| &waiting.spec);
        let deadlines = waits.chain(self.jobs.iter().map(|job| &job.spec)).filter_map(|spec| spec.deadline);
        deadlines.for_each(|deadline| at(self.since_origin(deadline)));
        let hungry = self.jobs.iter().any(|job| !job.pending.is_empty());
        for job in self.jobs.iter().filter(|job| !job.pending.is_empty() && self.awaits_peers(job, now)) {
            at(job.connect_until);
        }
        let company = self.workers.len() > 1;
        for worker in self.workers.values() {
            if worker.pause_until > now && (hungry || !self.attempts.is_empty()) {
                at(worker.pause_until);
            }
            if company && let Some(late) = worker.late_at(now) {
                at(late);
            }
            if !worker.id.is_local() {
                worker.flights.iter().for_each(|flight| at(flight.silent_at()));
            }
        }
        if next.is_finite() && self.wake_at.is_none_or(|asked| next < asked || asked <= now) {
            self.wake_at = Some(next);
            // Rounded up, so that the time has come when the tick does.
            let since_origin = Duration::from_secs_f64(next.max(now)) + Duration::from_micros(1);
            actions.push(Action::WakeAt(self.origin.unwrap_or_default() + since_origin));
        }
    }
}

/// When these workers would be through with so many tiles of a job: each tile goes to whoever is done with it first.
fn rest_done_with<'a>(
    lanes: &mut Vec<Lane>,
    workers: impl Iterator<Item = &'a Worker>,
    job: &Job,
    tiles: u32,
    among: impl Fn(&Worker) -> bool,
) -> f64 {
    lanes.clear();
    lanes.extend(workers.filter(|worker| among(worker)).map(|worker| lane(worker, job)));
    if lanes.is_empty() {
        return f64::INFINITY;
    }
    let mut done = 0.0f64;
    if tiles as usize <= 4 * lanes.len() {
        for _ in 0..tiles {
            let ends = |lane: &Lane| lane.free + lane.tile_s;
            if let Some(first) = lanes.iter_mut().min_by(|x, y| ends(x).total_cmp(&ends(y))) {
                first.free += first.tile_s;
                done = done.max(first.free);
            }
        }
        return done;
    }
    // Many tiles: as if they could be divided, among those that are free before it ends.
    loop {
        let rate: f64 = lanes.iter().map(|lane| 1.0 / lane.tile_s).sum();
        let head_start: f64 = lanes.iter().map(|lane| lane.free / lane.tile_s).sum();
        done = (f64::from(tiles) + head_start) / rate;
        let before = lanes.len();
        lanes.retain(|lane| lane.free < done);
        if lanes.len() == before || lanes.is_empty() {
            return done;
        }
    }
}

fn lane(worker: &Worker, job: &Job) -> Lane {
    let compute_s = worker.model.compute_s(job.spec.arithmetic, job.mean_flops);
    if worker.id.is_local() {
        return Lane { free: worker.backlog.computed.max(worker.pause_until), tile_s: compute_s.max(1e-9) };
    }
    let lacks = job.missing_share(worker.id);
    let operand_s = worker.model.send_s(job.mean_operand_bytes as u64);
    let return_s = worker.model.receive_s(job.mean_answer_bytes as u64);
    // A worker that has s bands and s panels needs one operand more for each s tiles.
    let side = f64::from(job.pending.len()).sqrt().max(1.0);
    let tile_s = compute_s.max(return_s).max(2.0 * lacks * operand_s / side).max(1e-9);
    let first_s = if lacks == 1.0 { 2.0 * operand_s } else { 0.0 };
    let free = worker.backlog.computed.max(worker.backlog.sent + first_s).max(worker.pause_until);
    Lane { free: free + worker.model.rtt_s + return_s, tile_s }
}

/// What a check goes through: both operands and the answer.
fn check_bytes(job: &Job, tile: Tile) -> u64 {
    let operands =
        job.grid.operand_bytes(Operand::Band(tile.band)) + job.grid.operand_bytes(Operand::Panel(tile.panel));
    operands + job.grid.tile_bytes(tile)
}

/// An estimate that says what has been learned.
fn believed(worker: &Worker) -> WorkerEstimate {
    let model = &worker.model;
    let rates = [Arithmetic::F32, Arithmetic::F64, Arithmetic::Half, Arithmetic::Int8];
    WorkerEstimate {
        flops_per_s: rates.map(|arithmetic| model.flops_per_s(arithmetic)),
        send_bytes_per_s: model.send_bytes_per_s(),
        receive_bytes_per_s: model.receive_bytes_per_s(),
        rtt_s: model.rtt_s,
        overhead_s: model.overhead_s,
        memory_bytes: worker.memory_bytes,
        max_in_flight: worker.max_in_flight,
        busy_s: 0.0,
    }
}
