//! What a user asks of the fabric (a job), how it goes on and what came of it.
//! Plain values: no I/O, no decisions.

use std::time::Duration;

use pangea_client::Result;
use pangea_compute::{DType, Tensor};
use serde::Serialize;
use tokio::sync::{oneshot, watch};

/// Number of a job on the node that accepted it.
pub type JobId = u64;

/// Where the tasks of a job may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Wherever the cost model says it finishes soonest.
    #[default]
    Auto,
    /// Here only.
    Local,
    /// Never here while an admitted peer can; here rather than fail.
    Remote,
}

/// How results are checked before they count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyPolicy {
    /// Every tile from a peer is checked as DESIGN §6 says.
    #[default]
    Standard,
    /// As `Standard`, and the whole product is checked once more at the end, local tiles included.
    Full,
}

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

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tasks whose results are accepted and merged.
    pub tasks_done: u32,
    /// Tasks in all; 0 until the job is planned.
    pub tasks_total: u32,
    /// Tensor bytes sent to peers for this job.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers for this job.
    pub bytes_received: u64,
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

/// How a finished job was had: what `pangea matmul --json` shows.
#[derive(Clone, Debug, Serialize)]
pub struct JobReport {
    /// `[m, k, n]`.
    pub shape: [usize; 3],
    /// Dtype of the product.
    pub dtype: String,
    /// From the operands being at the accepting node to the whole, checked product being there.
    pub seconds: f64,
    /// `2·m·k·n / seconds`, in 10⁹.
    pub gflops: f64,
    /// Counts of tasks.
    pub tasks: TaskCounts,
    /// Who computed what was accepted.
    pub workers: Vec<WorkerShare>,
    /// Tensor bytes sent to peers.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers.
    pub bytes_received: u64,
    /// What checked the product and what that gives.
    pub verification: Verification,
    /// `local`, `remote` or `mixed`.
    pub mode: String,
    /// Time that the plan predicted, for comparison with `seconds`.
    pub predicted_seconds: f64,
}

/// Counts of a job's tasks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TaskCounts {
    /// Tasks the job was cut into.
    pub total: u32,
    /// Accepted from peers.
    pub remote: u32,
    /// Computed here.
    pub local: u32,
    /// Started again after a failure or a failed check.
    pub retried: u32,
    /// Started a second time because the first was late.
    pub hedged: u32,
}

/// One worker's part in a job.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerShare {
    /// Peer id; the accepting node's own for local tasks.
    pub peer: String,
    /// Name the peer gives itself.
    pub name: String,
    /// Accepted tasks.
    pub tasks: u32,
    /// Compute time of those tasks, as the worker reports it.
    pub seconds: f64,
}

/// How a product was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Method, such as `freivalds-f64+tiles`; `none` where all is local and no check was asked for.
    pub method: String,
    /// `local`, `verified`, `tolerance-checked` or `unchecked`: that of the weakest part.
    pub verdict: String,
    /// Peers whose results failed a check in this job, and why.
    pub rejected: Vec<Rejection>,
    /// Time the checks took on the accepting node.
    pub seconds: f64,
}

/// A result that failed its check.
#[derive(Clone, Debug, Serialize)]
pub struct Rejection {
    /// The peer that sent it.
    pub peer: String,
    /// What did not fit, with the figures.
    pub why: String,
}
