//! What the scheduler asks its driver to do, and the report that ends a job.
//! Never says how: streams, threads and bytes are the driver's.

use super::{AttemptId, FailureKind, JobId, Operand, Tile, TileGrid, Time, WorkerId};

/// What the driver is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// How a job is cut; comes once, before any of its other actions.
    Plan {
        /// Which job.
        job: JobId,
        /// Its bands and panels.
        grid: TileGrid,
    },
    /// Send what the worker lacks of the tile's band and panel, then the task. Starts for one worker are to be
    /// sent in the order given; the predictions count on it.
    Start {
        /// The new attempt.
        attempt: AttemptId,
        /// Of which job.
        job: JobId,
        /// Which tile.
        tile: Tile,
        /// On which worker.
        worker: WorkerId,
        /// A second copy of a task that runs elsewhere: the first good answer wins.
        hedge: bool,
    },
    /// Stop an attempt that has not finished or failed, and forget what came of it. No event about it is
    /// expected after this.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Where it runs.
        worker: WorkerId,
    },
    /// Check the answer of a finished attempt and say [`super::Event::AttemptChecked`].
    Check {
        /// Which.
        attempt: AttemptId,
    },
    /// Merge the answer of a finished attempt. Comes once for each tile.
    Accept {
        /// Which attempt.
        attempt: AttemptId,
        /// Of which job.
        job: JobId,
        /// Which tile.
        tile: Tile,
        /// Who computed it.
        worker: WorkerId,
        /// How many workers gave this answer.
        agreeing: u32,
    },
    /// Forget the answer of a finished attempt, and any check of it that is still under way.
    Discard {
        /// Which.
        attempt: AttemptId,
    },
    /// The scheduler no longer counts on this operand being at the worker: it may be dropped there. Sent so that
    /// the worker's memory keeps room for what comes next.
    Release {
        /// Which worker.
        worker: WorkerId,
        /// Of which job.
        job: JobId,
        /// What.
        operand: Operand,
    },
    /// The check of this attempt failed: keep the evidence, give the worker nothing more. Its other attempts are
    /// cancelled or discarded by actions that follow.
    Quarantine {
        /// Who.
        worker: WorkerId,
        /// The evidence.
        attempt: AttemptId,
    },
    /// Every tile has been accepted. Each job ends with exactly one of this and [`Action::JobFailed`].
    JobFinished {
        /// Which.
        job: JobId,
        /// What happened in it.
        report: JobReport,
    },
    /// The job ends without a product.
    JobFailed {
        /// Which.
        job: JobId,
        /// The kind of error.
        kind: FailureKind,
        /// One sentence for the user.
        why: String,
        /// What happened in it.
        report: JobReport,
    },
    /// Say [`super::Event::Tick`] at this time. Replaces the wake-up asked for before.
    WakeAt(Time),
}

/// What happened in a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobReport {
    /// Accepted tasks and extra attempts.
    pub tasks: TaskCounts,
    /// Seconds that the cost model predicted when the job was planned.
    pub predicted_seconds: f64,
    /// Seconds that passed.
    pub actual_seconds: f64,
    /// Who did what, in order of worker id.
    pub workers: Vec<WorkerShare>,
}

/// How many tasks, of which sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskCounts {
    /// Tiles of the job.
    pub total: u32,
    /// Accepted from peers.
    pub remote: u32,
    /// Accepted from this node.
    pub local: u32,
    /// Attempts started again after a failure.
    pub retried: u32,
    /// Second copies of tasks that were late, or that an idle worker could finish sooner.
    pub hedged: u32,
    /// Answers that failed their check.
    pub wrong: u32,
}

/// What one worker did in a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerShare {
    /// Who.
    pub worker: WorkerId,
    /// Accepted tasks.
    pub tasks: u32,
    /// Seconds of computing of accepted tasks, as reported.
    pub seconds: f64,
}
