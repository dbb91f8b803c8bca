//! The scheduler's input: jobs, workers that join and leave, progress of attempts.
//! No tensor bytes, addresses or error text.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Arithmetic, AttemptId, FailureKind, JobId, JobShape, Operand, Time, Transfer, WorkerEstimate, WorkerId};

/// Where a job may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Wherever the cost model predicts the earliest end.
    #[default]
    Auto,
    /// Only on this node.
    Local,
    /// On peers if any can; the job waits a little for peers that are connecting, and falls back to
    /// this node rather than fail.
    Remote,
}

/// A job as it is submitted: C from A and B.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Sizes of A, B and C, and which parts of them belong together.
    pub shape: JobShape,
    /// Kind of arithmetic, which selects the workers' rates.
    pub arithmetic: Arithmetic,
    /// Where the job may run.
    pub place: Place,
    /// Number of different workers that must agree on each tile, at least 1; limited by the number of workers.
    pub redundancy: u32,
    /// Larger runs first.
    pub priority: i32,
    /// Time at which the job fails with [`FailureKind::DeadlineExceeded`].
    pub deadline: Option<Time>,
    /// Retries of one tile on peers before only this node may compute it, and on this node before
    /// the job fails.
    pub max_retries: u32,
    /// Rows of a band, if A has been cut before and its bands are to be reused.
    pub band_rows: Option<u64>,
    /// Columns of a panel, if B has been cut before and its panels are to be reused.
    pub panel_columns: Option<u64>,
    /// Operands that are already at a worker. Their indices are those of the grid with `band_rows` and
    /// `panel_columns`, or of [`super::Scheduler::plan`].
    pub resident: Vec<(WorkerId, Operand)>,
}

impl JobSpec {
    /// A job with the default policy: placed by the cost model, one answer per tile, three retries.
    pub fn new(shape: impl Into<JobShape>, arithmetic: Arithmetic) -> Self {
        Self {
            shape: shape.into(),
            arithmetic,
            place: Place::Auto,
            redundancy: 1,
            priority: 0,
            deadline: None,
            max_retries: 3,
            band_rows: None,
            panel_columns: None,
            resident: Vec::new(),
        }
    }
}

/// Why a worker left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveReason {
    /// The worker said goodbye.
    Left,
    /// The connection was lost.
    Lost,
    /// The worker was silent for too long.
    Silent,
    /// The worker was convicted of a lie: it cannot rejoin, and what it computed for running jobs is computed again.
    Quarantined,
}

/// Progress of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All operands that it needed were handed to the connection.
    Sent,
    /// The worker says that it has started to compute it. Only the first such message of an attempt counts: repeating
    /// it is no progress.
    Computing,
    /// A block of the answer or another sign of life arrived.
    Moving,
}

/// Measurements of an attempt. Unknown values are `None` and are not learned from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    /// Compute seconds, as the worker reports them.
    pub compute_seconds: Option<f64>,
    /// Transfer of operands to the worker.
    pub sent: Option<Transfer>,
    /// Transfer of the answer from the worker.
    pub received: Option<Transfer>,
}

/// Result of checking an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The answer is right. `answer` identifies the set of answers that the driver considers equal (by bits, or within
    /// tolerance); it matters only if redundancy is greater than 1.
    Good {
        /// Equal for equal answers of one tile.
        answer: u64,
    },
    /// The answer is wrong: the worker is quarantined.
    Bad,
    /// The check could not be done: the task is redone elsewhere, and nobody is blamed.
    Inconclusive,
}

/// Input of the scheduler. Events about unknown workers, jobs or attempts
/// are ignored: they may cross actions on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new job.
    JobSubmitted {
        /// Id of the job, never reused.
        job: JobId,
        /// The job.
        spec: JobSpec,
    },
    /// The job is no longer wanted.
    JobCancelled {
        /// The job.
        job: JobId,
    },
    /// A peer is admitted and ready for tasks.
    WorkerJoined {
        /// Id of the worker.
        worker: WorkerId,
        /// Its advertised speed, and the known properties of the link.
        estimate: WorkerEstimate,
    },
    /// A new estimate of a worker, this node included. Observed rates are kept.
    WorkerUpdated {
        /// The worker.
        worker: WorkerId,
        /// The new estimate.
        estimate: WorkerEstimate,
    },
    /// A worker is gone, with its operands and attempts.
    WorkerLeft {
        /// The worker.
        worker: WorkerId,
        /// Reason.
        why: LeaveReason,
    },
    /// The peers under suspicion changed. A suspect gets only what no other peer can compute.
    SuspectsChanged {
        /// All suspects.
        workers: BTreeSet<WorkerId>,
    },
    /// The number of connecting peers changed: a job that wants peers waits a little for them.
    PeersConnecting {
        /// Number of connecting peers.
        count: usize,
    },
    /// A worker has these operands of a job.
    OperandsResident {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The operands.
        operands: Vec<Operand>,
    },
    /// A worker no longer has these operands of a job.
    OperandsEvicted {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: JobId,
        /// The operands.
        operands: Vec<Operand>,
    },
    /// An attempt has made progress. Optional, but it improves predictions and keeps long attempts from counting as
    /// silent.
    AttemptProgress {
        /// The attempt.
        attempt: AttemptId,
        /// Its progress.
        progress: Progress,
    },
    /// The complete answer has arrived on this node.
    AttemptFinished {
        /// The attempt.
        attempt: AttemptId,
        /// Measurements of the attempt.
        measured: Measured,
    },
    /// The attempt has failed.
    AttemptFailed {
        /// The attempt.
        attempt: AttemptId,
        /// Kind of the failure.
        kind: FailureKind,
        /// Time after which an overloaded worker asks to be tried again, if it says so.
        retry_after: Option<Duration>,
    },
    /// The check requested by [`super::Action::Check`] is done.
    AttemptChecked {
        /// The attempt.
        attempt: AttemptId,
        /// Result of the check.
        verdict: CheckOutcome,
        /// Seconds that the check took.
        seconds: f64,
    },
    /// The time of the last [`super::Action::WakeAt`] has come.
    Tick,
}
