//! The scheduler: events and the time go in, actions come out. A tile goes to a worker only if it is predicted to be
//! done there before the other workers would finish the job without that worker.
//! It never reads a clock, never blocks, and never sees a byte of a tensor.

mod attempts;
mod deadlines;
mod dispatch;
mod forecast;
mod jobs;
mod settle;
mod workers;

use self::forecast::believed;
use super::cost::Learned;
use super::job::Job;
use super::limits::CHECK_BYTES_PER_S;
use super::offload_history::OffloadHistory;
use super::worker::{Prospect, Worker};
use super::{
    Accuracy, Action, Arithmetic, AttemptId, Event, FailureKind, JobId, JobSpec, Pace, Place, PlanError, Progress,
    Tile, TileGrid, Time, WorkerEstimate, WorkerId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Current estimates about one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerReport {
    /// Estimated rates, indexed by [`Arithmetic`].
    pub flops_per_s: [f64; Arithmetic::COUNT],
    /// Estimated bytes per second to the worker.
    pub send_bytes_per_s: f64,
    /// Estimated bytes per second from the worker.
    pub receive_bytes_per_s: f64,
    /// Accuracy of predictions.
    pub accuracy: Accuracy,
    /// Number of attempts in flight.
    pub in_flight: usize,
    /// Number of accepted answers.
    pub accepted: u64,
}

/// Decides for all jobs of this node which worker computes which tile when.
#[derive(Debug)]
pub struct Scheduler {
    workers: BTreeMap<WorkerId, Worker>,
    quarantined: BTreeSet<WorkerId>,
    /// Workers that are used last.
    suspects: BTreeSet<WorkerId>,
    /// Jobs that wait for peers to connect.
    waiting: Vec<Waiting>,
    /// Jobs in the order in which they are served.
    jobs: Vec<Job>,
    /// Peers whose answers are in the jobs that ended last, the latest at the end.
    delivered: VecDeque<(JobId, Vec<WorkerId>)>,
    attempts: BTreeMap<AttemptId, Attempt>,
    next_attempt: u64,
    connecting: usize,
    offload_history: OffloadHistory,
    /// Seconds to check one byte of operands and answer.
    check_byte_s: Learned,
    /// Time of the first event; times inside are seconds since then.
    origin: Option<Time>,
    /// The last wake-up requested from the driver.
    wake_at: Option<f64>,
    /// Number of starts, to order operands by last use.
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
    /// Compute seconds, once the answer has arrived and is being checked.
    checking: Option<f64>,
}

/// A worker's predicted speed on tiles of one job.
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
    /// Predicted time of its checked answer.
    done: f64,
}

impl Scheduler {
    /// A scheduler with only this node as a worker.
    pub fn new(local: WorkerEstimate) -> Self {
        Self {
            workers: BTreeMap::from([(WorkerId::LOCAL, Worker::new(WorkerId::LOCAL, &local, 0.0))]),
            quarantined: BTreeSet::new(),
            suspects: BTreeSet::new(),
            waiting: Vec::new(),
            jobs: Vec::new(),
            delivered: VecDeque::new(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            connecting: 0,
            offload_history: OffloadHistory::default(),
            check_byte_s: Learned::new(1.0 / CHECK_BYTES_PER_S),
            origin: None,
            wake_at: None,
            starts: 0,
            lanes: Vec::new(),
        }
    }

    /// Processes an event, at a time that never goes back, and appends the actions in order.
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
            Event::SuspectsChanged { workers } => self.suspects = workers,
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
            Event::AttemptFailed { attempt, kind, retry_after } => {
                let failed = self.attempts.get(&attempt).filter(|attempt| attempt.checking.is_none());
                if let Some(worker) = failed.map(|attempt| attempt.worker) {
                    self.fail(attempt, kind, now, actions);
                    if let Some(worker) = self.workers.get_mut(&worker)
                        && let Some(retry_after) = retry_after.filter(|_| kind == FailureKind::Overloaded)
                    {
                        worker.asked_to_wait(retry_after, now);
                    }
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

    /// How a job would be cut now. A job submitted with these sides fixed is cut the same way.
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

    /// Current estimates about a worker; `None` if it is unknown.
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
}
