//! The scheduler's actions for its driver, and the report that ends a job.
//! Streams, threads and bytes are the driver's.

use super::{AttemptId, FailureKind, JobId, Operand, Tile, TileGrid, Time, WorkerId};

/// What the driver does next, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The grid of a job; sent once, before any of its other actions.
    Plan {
        /// The job.
        job: JobId,
        /// Its bands and panels.
        grid: TileGrid,
    },
    /// Send the parts of the tile's band and panel that the worker lacks, then the task. Starts for one worker must be
    /// sent in the order given; the predictions rely on it.
    Start {
        /// The new attempt.
        attempt: AttemptId,
        /// The job.
        job: JobId,
        /// The tile.
        tile: Tile,
        /// The worker.
        worker: WorkerId,
        /// Why the attempt is started.
        reason: StartReason,
    },
    /// Stop an attempt that has not finished or failed, and discard its results. No event about it is
    /// expected afterwards.
    Cancel {
        /// The attempt.
        attempt: AttemptId,
        /// The worker that has it.
        worker: WorkerId,
    },
    /// Check the answer of a finished attempt and report [`super::Event::AttemptChecked`].
    Check {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Merge the answer of a finished attempt. Sent once per tile, and again after [`Action::Revoke`].
    Accept {
        /// The attempt.
        attempt: AttemptId,
        /// The job.
        job: JobId,
        /// The tile.
        tile: Tile,
        /// The worker that computed it.
        worker: WorkerId,
        /// Number of workers with this answer.
        agreeing: u32,
    },
    /// The merged answer of a convicted worker no longer counts: the tile is computed again, and its next
    /// [`Action::Accept`] overwrites what was merged.
    Revoke {
        /// The job.
        job: JobId,
        /// The tile.
        tile: Tile,
        /// The worker that had computed it.
        worker: WorkerId,
    },
    /// A job that has ended with answers of a worker that was convicted afterwards. Sent once per job and worker, for
    /// the jobs that ended last.
    Suspect {
        /// The job.
        job: JobId,
        /// The worker.
        worker: WorkerId,
    },
    /// Discard the answer of a finished attempt, and any check of it in progress.
    Discard {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The scheduler no longer counts on this operand being at the worker, which may drop it. Sent so that
    /// the worker's memory has room for the next operands.
    Release {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The operand.
        operand: Operand,
    },
    /// The check of this attempt failed: store the evidence, and give the worker no more work. Its other attempts are
    /// cancelled or discarded by the following actions.
    Quarantine {
        /// The worker.
        worker: WorkerId,
        /// The evidence.
        attempt: AttemptId,
    },
    /// Every tile has been accepted. Each job ends with exactly one of this and [`Action::JobFailed`].
    JobFinished {
        /// The job.
        job: JobId,
        /// Report of the job.
        report: JobReport,
    },
    /// The job ends without a product.
    JobFailed {
        /// The job.
        job: JobId,
        /// Kind of the error.
        kind: FailureKind,
        /// One sentence for the user.
        why: String,
        /// Report of the job.
        report: JobReport,
    },
    /// Send [`super::Event::Tick`] at this time. Replaces the previous wake-up.
    WakeAt(Time),
}

/// Why an attempt is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartReason {
    /// Nobody has computed the task yet.
    First,
    /// An earlier attempt failed, or its answer does not count any more.
    Retry,
    /// The task runs elsewhere and is late, or can be done sooner here: the first good answer wins.
    Hedge,
    /// Another worker computes the task as well, so that their answers are compared.
    Check,
}

impl StartReason {
    /// Every reason.
    pub const ALL: [StartReason; 4] = [StartReason::First, StartReason::Retry, StartReason::Hedge, StartReason::Check];

    /// Name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            StartReason::First => "first",
            StartReason::Retry => "retry",
            StartReason::Hedge => "hedge",
            StartReason::Check => "check",
        }
    }
}

/// Report of a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobReport {
    /// Counts of accepted tasks and extra attempts.
    pub tasks: TaskCounts,
    /// Seconds predicted when the job was planned.
    pub predicted_seconds: f64,
    /// Seconds that the job took.
    pub actual_seconds: f64,
    /// Shares of the workers, in the order of worker ids.
    pub workers: Vec<WorkerShare>,
}

/// Counts of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskCounts {
    /// Tiles of the job.
    pub total: u32,
    /// Tasks accepted from peers.
    pub remote: u32,
    /// Tasks accepted from this node.
    pub local: u32,
    /// Attempts restarted after a failure.
    pub retried: u32,
    /// Second copies of tasks that were late, or that an idle worker could finish sooner.
    pub hedged: u32,
    /// Answers that failed their check.
    pub wrong: u32,
}

/// A worker's share of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerShare {
    /// The worker.
    pub worker: WorkerId,
    /// Number of accepted tasks.
    pub tasks: u32,
    /// Reported compute seconds of accepted tasks.
    pub seconds: f64,
}
