//! What a user asks of the fabric (a job) and what came of it. Plain values: no I/O, no decisions.

use std::time::Duration;

use pangea_compute::Tensor;

pub use pangea_client::{
    JobReport, Place, Progress, Rejection, TaskCounts, Verification, VerifyPolicy, WorkerShare,
};

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

/// A finished job.
#[derive(Clone)]
pub struct JobOutcome {
    /// The whole, checked product `[m, n]`.
    pub product: Tensor,
    /// How it was had.
    pub report: JobReport,
}
