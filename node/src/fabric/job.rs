//! What a user asks of the fabric (a job), how it goes on and what came of it.
//! Plain values: no I/O, no decisions.

use std::time::Duration;

use pangea_client::Result;
pub use pangea_client::{JobReport, Place, Progress, Rejection, TaskCounts, Verification, VerifyPolicy, WorkerShare};
use pangea_compute::{DType, Tensor};
use tokio::sync::{oneshot, watch};

/// Number of a job on the node that accepted it.
pub type JobId = u64;

/// A product `C[m, n] = A[m, k] · B[k, n]` to be computed by the fabric.
#[derive(Clone)]
pub struct JobRequest {
    /// Left operand, `[m, k]`.
    pub a: Tensor,
    /// Right operand, `[k, n]`.
    pub b: Tensor,
    /// Where its tasks may run.
    pub place: Place,
    /// How its results are checked.
    pub verify: VerifyPolicy,
    /// Higher goes first; 0 is ordinary.
    pub priority: i8,
    /// Time from submission after which the job fails with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// How many different workers compute each task; 1 is ordinary.
    pub redundancy: u8,
    /// How often a task may be tried again after failures before the local node takes it.
    pub max_retries: u8,
}

impl JobRequest {
    /// A product with the ordinary policies.
    pub fn product(a: Tensor, b: Tensor) -> JobRequest {
        JobRequest {
            a,
            b,
            place: Place::default(),
            verify: VerifyPolicy::default(),
            priority: 0,
            deadline: None,
            redundancy: 1,
            max_retries: 3,
        }
    }
}

/// A job under way. Dropping it cancels the work on every node.
pub struct Job {
    /// Its number on this node.
    pub id: JobId,
    /// Shape and dtype of the product, known before it is computed.
    pub output: (usize, usize, DType),
    /// The latest progress.
    pub progress: watch::Receiver<Progress>,
    /// Resolves once with the product or the failure.
    pub outcome: oneshot::Receiver<Result<JobOutcome>>,
    /// Cancels when dropped, see [`CancelOnDrop`].
    pub cancel: CancelOnDrop,
}

/// Tells the fabric to cancel a job when dropped; does nothing once the job has ended.
pub struct CancelOnDrop {
    pub(crate) job: JobId,
    pub(crate) cancelled: tokio::sync::mpsc::WeakSender<super::handle::Command>,
}

/// A finished job.
#[derive(Clone)]
pub struct JobOutcome {
    /// The whole, checked product `[m, n]`.
    pub product: Tensor,
    /// How it was had.
    pub report: JobReport,
}
