//! What a driver tells the scheduler: jobs, workers coming and going, attempts getting on.
//! Never carries tensor bytes, addresses or error text.

use super::{Arithmetic, AttemptId, FailureKind, JobId, JobShape, Operand, Time, Transfer, WorkerEstimate, WorkerId};

/// Where a job may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Wherever the cost model says it is done soonest.
    #[default]
    Auto,
    /// Only on this node.
    Local,
    /// Never on this node while a peer can; waits a little for peers that are connecting, and falls back to
    /// this node rather than fail.
    Remote,
}

/// What a job asks for: C from A and B.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Sizes of A, B and C, and which parts of them go together.
    pub shape: JobShape,
    /// Which of a worker's rates applies.
    pub arithmetic: Arithmetic,
    /// Where it may run.
    pub place: Place,
    /// How many different workers must agree on each tile, at least 1. Counts no more workers than there are.
    pub redundancy: u32,
    /// Larger goes first.
    pub priority: i32,
    /// When the job fails with [`FailureKind::DeadlineExceeded`].
    pub deadline: Option<Time>,
    /// How often one tile is tried again on peers before only this node may take it, and on this node before
    /// the job fails.
    pub max_retries: u32,
    /// Rows of a band, where A has been cut before and its bands are to be used again.
    pub band_rows: Option<u64>,
    /// Columns of a panel, where B has been cut before and its panels are to be used again.
    pub panel_columns: Option<u64>,
    /// Operands that are already at a worker. Their indices are those of the grid that `band_rows` and
    /// `panel_columns` (or [`super::Scheduler::plan`]) give.
    pub resident: Vec<(WorkerId, Operand)>,
}

impl JobSpec {
    /// A job of the default policy: placed by the cost model, one answer for each tile, three retries.
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

/// Why a worker is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveReason {
    /// It said goodbye.
    Left,
    /// Its connection broke.
    Lost,
    /// It was silent for too long.
    Silent,
    /// The driver threw it out; it is not taken back.
    Quarantined,
}

/// How far an attempt has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All operands that it needed have been handed to the connection.
    Sent,
    /// The worker has begun to compute it.
    Computing,
    /// Something moved: a block of the answer came, or a sign of life.
    Moving,
}

/// What was measured while an attempt ran. Anything unknown stays `None` and teaches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    /// Seconds of computing, as the worker reports them.
    pub compute_seconds: Option<f64>,
    /// Operands to the worker.
    pub sent: Option<Transfer>,
    /// The answer from the worker.
    pub received: Option<Transfer>,
}

/// What the check of an answer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It is right. `answer` names the set of answers that the driver holds to be the same (by bits, or within
    /// tolerance); it matters only where redundancy is more than 1.
    Good {
        /// Equal for equal answers of one tile.
        answer: u64,
    },
    /// It is wrong: the worker is quarantined.
    Bad,
    /// Neither can be said: redone elsewhere, nobody is blamed.
    Inconclusive,
}

/// What a driver tells the scheduler. Events about workers, jobs or attempts that it does not know (any more)
/// are ignored: they cross actions on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new job.
    JobSubmitted {
        /// Its name, never used before.
        job: JobId,
        /// What it asks for.
        spec: JobSpec,
    },
    /// Nobody wants the job any more.
    JobCancelled {
        /// Which.
        job: JobId,
    },
    /// A peer is admitted and ready for tasks.
    WorkerJoined {
        /// Its name.
        worker: WorkerId,
        /// What it says about itself, and what is known about the link.
        estimate: WorkerEstimate,
    },
    /// News about a worker, this node included. Rates that have been observed since are kept.
    WorkerUpdated {
        /// Which.
        worker: WorkerId,
        /// The news.
        estimate: WorkerEstimate,
    },
    /// A worker is gone, and with it its operands and attempts.
    WorkerLeft {
        /// Which.
        worker: WorkerId,
        /// Why.
        why: LeaveReason,
    },
    /// How many peers are connecting now: a job that wants peers waits a little for them.
    PeersConnecting {
        /// How many.
        count: usize,
    },
    /// A worker has these operands of a job.
    OperandsResident {
        /// Which worker.
        worker: WorkerId,
        /// Which job.
        job: JobId,
        /// What it has.
        operands: Vec<Operand>,
    },
    /// A worker no longer has these operands of a job.
    OperandsEvicted {
        /// Which worker.
        worker: WorkerId,
        /// Which job.
        job: JobId,
        /// What it lost.
        operands: Vec<Operand>,
    },
    /// An attempt got on. Optional, but it makes predictions better and keeps long attempts from counting as
    /// silent.
    AttemptProgress {
        /// Which.
        attempt: AttemptId,
        /// How far.
        progress: Progress,
    },
    /// The whole answer is at this node.
    AttemptFinished {
        /// Which.
        attempt: AttemptId,
        /// What was measured on the way.
        measured: Measured,
    },
    /// No answer will come.
    AttemptFailed {
        /// Which.
        attempt: AttemptId,
        /// Why.
        kind: FailureKind,
    },
    /// The check that [`super::Action::Check`] asked for is done.
    AttemptChecked {
        /// Which.
        attempt: AttemptId,
        /// What it said.
        verdict: CheckOutcome,
        /// How long the check took.
        seconds: f64,
    },
    /// The time of the last [`super::Action::WakeAt`] has come.
    Tick,
}
