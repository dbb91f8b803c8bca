//! A job of the fabric: its request, its progress and its outcome.
//! Plain values: no I/O, no decisions.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, Result};
pub use pangea_client::{JobReport, Place, Progress, Rejection, TaskCounts, Verification, VerifyPolicy, WorkerShare};
use pangea_compute::{Operation, Tensor, TensorShape};
use pangea_control::jobs::{Api, Ending, Owner};
use pangea_control::schedule::Tile;
use pangea_control::trust::Verdict;
use tokio::sync::{oneshot, watch};
use tracing::Span;

use super::spans;
use crate::jobs::Ticket;
use crate::traces;

/// Number of a job on the node that accepted it, from the registry of jobs.
pub type JobId = u64;

/// An operation on two tensors for the fabric.
#[derive(Clone)]
pub struct JobRequest {
    /// What to compute.
    pub operation: Operation,
    /// Left operand.
    pub a: Tensor,
    /// Right operand.
    pub b: Tensor,
    /// Where the tasks may run.
    pub place: Place,
    /// How results are checked.
    pub verify: VerifyPolicy,
    /// Higher runs first; the default is 0.
    pub priority: i8,
    /// Time from submission after which the job fails with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// Number of different workers that compute each task; the default is 1.
    pub redundancy: u8,
    /// Retries of a failed task on peers before this node computes it.
    pub max_retries: u8,
    /// Owner of the job.
    pub owner: Owner,
}

impl JobRequest {
    /// The product `C[m, n] = A[m, k] · B[k, n]` with the default policies.
    pub fn product(a: Tensor, b: Tensor) -> JobRequest {
        JobRequest {
            operation: Operation::Matmul,
            a,
            b,
            place: Place::default(),
            verify: VerifyPolicy::default(),
            priority: 0,
            deadline: None,
            redundancy: 1,
            max_retries: 3,
            owner: Owner::of(Api::Node),
        }
    }

    /// Shape of the result, or why the operands do not fit the operation.
    pub(crate) fn result(&self) -> Result<TensorShape> {
        self.operation.gives((&self.a).into(), (&self.b).into()).map_err(crate::compute_error)
    }
}

/// Where the tiles of a job's result were computed, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileMap {
    /// Ranges of rows into which the result is cut; 0 until the job is planned.
    pub bands: u32,
    /// Ranges of columns.
    pub panels: u32,
    /// The accepted tiles in their order, each with its worker; `None` is this node. A tile that had to be computed again is there
    /// again; a job that starts again begins with none.
    pub landed: Vec<(Tile, Option<PeerId>)>,
}

/// A running job. Dropping it cancels the work on every node.
pub struct Job {
    /// Number of the job on this node.
    pub id: JobId,
    /// Shape and dtype of the result, known before it is computed.
    pub output: TensorShape,
    /// The latest progress.
    pub progress: watch::Receiver<Progress>,
    /// The tiles that are done.
    pub tiles: watch::Receiver<TileMap>,
    /// Resolves once with the result or the failure.
    pub outcome: oneshot::Receiver<Result<JobOutcome>>,
    /// Cancels when dropped, see [`CancelOnDrop`].
    pub cancel: CancelOnDrop,
}

/// Cancels a job when dropped; has no effect once the job has ended.
pub struct CancelOnDrop {
    pub(crate) job: JobId,
    pub(crate) cancelled: tokio::sync::mpsc::WeakSender<super::handle::Command>,
}

/// A finished job.
#[derive(Clone)]
pub struct JobOutcome {
    /// The complete, checked result.
    pub result: Tensor,
    /// Report of the job.
    pub report: JobReport,
}

/// Receives the progress and the outcome of a job, for the requester and for the registry of jobs. Dropping it cancels
/// the job.
pub(crate) struct JobReply {
    ticket: Ticket,
    progress: watch::Sender<Progress>,
    tiles: watch::Sender<TileMap>,
    outcome: oneshot::Sender<Result<JobOutcome>>,
    span: Span,
}

impl JobReply {
    pub(crate) fn new(
        ticket: Ticket,
        progress: watch::Sender<Progress>,
        tiles: watch::Sender<TileMap>,
        outcome: oneshot::Sender<Result<JobOutcome>>,
        span: Span,
    ) -> JobReply {
        JobReply { ticket, progress, tiles, outcome, span }
    }

    /// The job's span.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The job is planned, and its tasks are being placed.
    pub(crate) fn started(&self, bands: u32, panels: u32) {
        self.ticket.started();
        self.tiles.send_replace(TileMap { bands, panels, landed: Vec::new() });
    }

    /// A tile is accepted; `None` is this node's.
    pub(crate) fn landed(&self, tile: Tile, worker: Option<PeerId>) {
        self.tiles.send_modify(|tiles| tiles.landed.push((tile, worker)));
    }

    /// The job has made progress.
    pub(crate) fn progress(&self, progress: Progress) {
        self.ticket.progress(u64::from(progress.tasks_done), u64::from(progress.tasks_total));
        self.progress.send_replace(progress);
    }

    /// The job is done. The requester may have gone.
    pub(crate) fn done(self, outcome: JobOutcome) {
        let verdict = Verdict::from_name(&outcome.report.verification.verdict).unwrap_or(Verdict::Unchecked);
        self.ticket.end(Ending::Done { verdict: Some(verdict) });
        spans::done(&self.span, &outcome.report);
        let _ = self.outcome.send(Ok(outcome));
    }

    /// The job has failed. The requester may have gone.
    pub(crate) fn failed(self, error: Error) {
        self.ticket.fail(&error);
        traces::failed(&self.span, error.kind());
        traces::end(&self.span);
        let _ = self.outcome.send(Err(error));
    }
}
