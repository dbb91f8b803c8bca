//! One peer's feeder: prepares the operands of its tasks (digests, row-major order) and sends them on
//! the link in the scheduler's order, a limited number of bytes ahead of the wire.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, Digest, Tensor};
use tokio::sync::mpsc;
use tracing::Span;

use super::running::JobData;
use crate::link::coordinator::{Bulk, TaskLink, TaskSpans};
use crate::traces::{self, child};
use crate::wire::{Shape, Task};
use pangea_control::schedule::{AttemptId, Operand, Tile};

/// Maximum queued starts for one peer; the scheduler keeps far fewer in flight.
const QUEUE: usize = 1024;

/// One task to send.
pub(crate) struct Feed {
    pub(crate) attempt: AttemptId,
    pub(crate) job: Rc<JobData>,
    pub(crate) tile: Tile,
    pub(crate) priority: i8,
    pub(crate) deadline: Option<std::time::Duration>,
    /// Set when the attempt is cancelled: what has not been sent by then is not sent.
    pub(crate) cancel: Cancel,
    /// Operands to send even if the peer should have them, because it reported that it lacks them. The task
    /// itself has been sent already.
    pub(crate) lacking: Option<Vec<Digest>>,
    /// The span of the attempt.
    pub(crate) span: Span,
}

/// Operands that a peer has, as far as this node knows.
pub(crate) type Resident = Rc<RefCell<HashSet<Digest>>>;

/// Starts a feeder on the current `LocalSet`; it ends when the sender is dropped. Failures are reported to `failed`.
pub(crate) fn start(
    peer: PeerId,
    link: Rc<TaskLink>,
    resident: Resident,
    failed: impl Fn(AttemptId, Error) + 'static,
) -> mpsc::Sender<Feed> {
    let (sender, mut feeds) = mpsc::channel::<Feed>(QUEUE);
    tokio::task::spawn_local(async move {
        while let Some(feed) = feeds.recv().await {
            let attempt = feed.attempt;
            if let Err(error) = feed_one(&link, &resident, feed).await {
                tracing::debug!(event = "feed_failed", %peer, attempt = attempt.0, %error);
                failed(attempt, error);
            }
        }
    });
    sender
}

async fn feed_one(link: &TaskLink, resident: &Resident, feed: Feed) -> Result<()> {
    let operands = [Operand::Band(feed.tile.band), Operand::Panel(feed.tile.panel)];
    let sending = child!(&feed.span, "send");
    let mut bytes = 0;
    let mut digests = Vec::with_capacity(2);
    for operand in operands {
        if feed.cancel.is_cancelled() {
            return Ok(());
        }
        let (digest, prepared) = address(&feed.job, operand).await?;
        digests.push(digest);
        let wanted = feed.lacking.as_ref().is_some_and(|lacking| lacking.contains(&digest));
        if resident.borrow().contains(&digest) && !wanted {
            continue;
        }
        let size = feed.job.grid.operand_bytes(operand);
        let room = link.room(size).await.map_err(|full| Error::new(ErrorKind::Unavailable, full.to_string()))?;
        let tensor = match prepared {
            Some(tensor) => tensor,
            None => row_major(feed.job.operand(operand)?).await?,
        };
        if feed.cancel.is_cancelled() {
            return Ok(());
        }
        resident.borrow_mut().insert(digest);
        feed.job.bytes_sent.set(feed.job.bytes_sent.get() + size);
        bytes += size;
        link.send(Bulk::Operand { digest, tensor, room: Some(room) })
            .map_err(|full| Error::new(ErrorKind::Unavailable, full.to_string()))?;
    }
    traces::set(&sending, "pangea.bytes", bytes as i64);
    // The link does not know tasks that were cancelled earlier, and would send them.
    if feed.lacking.is_some() || feed.cancel.is_cancelled() {
        return Ok(());
    }
    let task = Task {
        id: feed.attempt.0,
        priority: feed.priority,
        deadline: feed.deadline,
        operation: feed.job.operation,
        operands: [digests[0], digests[1]],
        trace: traces::context(&feed.span),
    };
    let (rows, cols) = feed.job.grid.place(feed.tile);
    let shape = Shape::new(feed.job.result.dtype, rows.end - rows.start, cols.end - cols.start)
        .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
    let spans = TaskSpans { task: feed.span, phase: sending };
    link.send_task(task, shape, spans).map_err(|full| Error::new(ErrorKind::Unavailable, full.to_string()))
}

/// The digest of an operand; with the tensor if hashing had to copy it anyway.
async fn address(job: &Rc<JobData>, operand: Operand) -> Result<(Digest, Option<Tensor>)> {
    let cell = job.digest_cell(operand);
    let copied = RefCell::new(None);
    let digest = cell
        .get_or_try_init(|| async {
            let part = job.operand(operand)?;
            if let Some(known) = part.known_digest() {
                return Ok(known);
            }
            let (digest, copy) = blocking(move || {
                let copy = if part.contiguous_bytes().is_some() { None } else { Some(part.to_contiguous()?) };
                // The digest is cached in the part, so that the next job with the same tensor need not hash.
                let digest = copy.as_ref().map_or_else(|| part.digest(), |copy| part.digest_from(copy));
                Ok((digest, copy))
            })
            .await?;
            copied.replace(copy);
            Ok::<_, Error>(digest)
        })
        .await?;
    Ok((*digest, copied.into_inner()))
}

/// The tensor with its bytes in row-major order, for the wire.
async fn row_major(part: Tensor) -> Result<Tensor> {
    if part.contiguous_bytes().is_some() {
        return Ok(part);
    }
    blocking(move || part.to_contiguous()).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, pangea_compute::Error> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(crate::compute_error),
        Err(_) => Err(Error::new(ErrorKind::Internal, "preparing an operand panicked")),
    }
}
