//! Replies of a worker on a task stream: results, failures, short messages, and its load from time to time. Nothing is
//! decided here.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::AsyncWrite;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::Error;
use pangea_compute::{Digest, Tensor, TensorHasher};
use tokio::sync::mpsc;
use tracing::Span;

use super::served_task::{ServedTask, TaskOutcome};
use super::{ResultMemory, TaskService};
use crate::clock;
use crate::fault::Fault;
use crate::link::limits::CHUNK_BYTES;
use crate::streams::framed::{FrameWriter, StreamError};
use crate::trust::{ProductClaim, SignedProduct};
use crate::wire::{Message, ResultSignature, Shape, Task, TaskHello, TaskId};

/// Minimum interval between two load messages.
const LOAD_EVERY: Duration = Duration::from_millis(500);

/// A reply to the coordinator.
#[expect(clippy::large_enum_variant, reason = "most replies are results")]
pub(super) enum Reply {
    Message(Message),
    Result {
        task: Task,
        tensor: Tensor,
        compute: Duration,
        fault: Option<Fault>,
        memory: Option<ResultMemory>,
        counted: Arc<ServedTask>,
        /// The span of the reply, until it is sent.
        span: Span,
    },
    /// With the time after which the coordinator may try again, where that is known.
    Failure {
        task: TaskId,
        error: Error,
        retry_after: Option<Duration>,
    },
}

/// Queues a reply.
pub(super) async fn reply(replies: &mpsc::Sender<Reply>, reply: Reply) -> Result<(), StreamError> {
    replies.send(reply).await.map_err(|_| StreamError::Closed)
}

/// Writes replies until the stream ends; returns why it ended.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(
    mut frames: FrameWriter<W>,
    mut outbox: mpsc::Receiver<Reply>,
    hello: TaskHello,
    peer: PeerId,
    served: &Rc<RefCell<TaskService>>,
) -> StreamError {
    match write(&mut frames, &mut outbox, hello, peer, served).await {
        Ok(()) => StreamError::Closed,
        Err(why) => why,
    }
}

async fn write<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W>,
    outbox: &mut mpsc::Receiver<Reply>,
    hello: TaskHello,
    peer: PeerId,
    served: &Rc<RefCell<TaskService>>,
) -> Result<(), StreamError> {
    frames.send(&Message::Hello(hello), &[]).await?;
    frames.flush().await?;
    let mut load = Load { peer, told: Duration::ZERO, tick: clock::ticks(LOAD_EVERY) };
    loop {
        let reply = tokio::select! {
            biased;
            reply = outbox.recv() => match reply {
                Some(reply) => reply,
                None => return Ok(()),
            },
            news = load.news(served) => Reply::Message(news),
        };
        match reply {
            Reply::Message(message) => frames.send(&message, &[]).await?,
            Reply::Failure { task, error, retry_after } => {
                let (kind, message) = (error.kind(), error.message().to_owned());
                let message = Message::Failure { task, kind, message, retry_after };
                frames.send(&message, &[]).await?;
            }
            Reply::Result { fault: Some(Fault::Hang), .. } => {}
            Reply::Result { task, tensor, compute, fault, memory, counted, span } => {
                // Held until the result is sent.
                let _held = (memory, span);
                let keypair = served.borrow().keypair.clone();
                send_result(frames, &task, &tensor, compute, fault, &keypair).await?;
                let mut served = served.borrow_mut();
                served.bytes_sent += tensor.size_bytes() as u64;
                served.tasks_done += 1;
                counted.end(TaskOutcome::Done);
            }
        }
        if outbox.is_empty() {
            frames.flush().await?;
        }
    }
}

/// The load that was last reported to the coordinator.
struct Load {
    peer: PeerId,
    told: Duration,
    tick: tokio::time::Interval,
}

impl Load {
    /// Waits until the load differs from the reported one by more than a half.
    async fn news(&mut self, served: &Rc<RefCell<TaskService>>) -> Message {
        loop {
            self.tick.tick().await;
            let queued = served.borrow().executor.backlog_without(self.peer);
            if queued.abs_diff(self.told) > self.told.max(queued) / 2 {
                self.told = queued;
                return Message::Load { queued_nanos: u64::try_from(queued.as_nanos()).unwrap_or(u64::MAX) };
            }
        }
    }
}

/// Sends a result in pieces. The last one carries the signature: the bytes are hashed while they are sent, so that they are
/// read from memory once.
async fn send_result<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W>,
    task: &Task,
    tensor: &Tensor,
    compute: Duration,
    fault: Option<Fault>,
    keypair: &Keypair,
) -> Result<(), StreamError> {
    let shape = Shape::new(tensor.dtype(), tensor.rows() as u64, tensor.cols() as u64)?;
    let compute_nanos = u64::try_from(compute.as_nanos()).unwrap_or(u64::MAX);
    let Some(bytes) = tensor.contiguous_bytes() else {
        return Err(StreamError::Unexpected("a result that is not row-major".to_owned()));
    };
    let message = |offset, signed| Message::Result { task: task.id, shape, offset, compute_nanos, signed };
    if fault == Some(Fault::Drop) {
        return frames.cut(&message(0, None), &bytes[..bytes.len().min(CHUNK_BYTES)]).await;
    }
    let mut hasher = TensorHasher::new(tensor.dtype(), tensor.rows(), tensor.cols());
    // An empty result is one empty piece.
    let starts = (0..bytes.len().max(1)).step_by(CHUNK_BYTES);
    for start in starts {
        let piece = &bytes[start..bytes.len().min(start + CHUNK_BYTES)];
        hasher.update(piece);
        let is_last = start + piece.len() == bytes.len();
        let signed = if is_last { sign(task, hasher.finish(), keypair)? } else { None };
        frames.send(&message(start as u64, signed), piece).await?;
    }
    Ok(())
}

/// This node's signature of a task's result.
fn sign(task: &Task, digest: Digest, keypair: &Keypair) -> Result<Option<ResultSignature>, StreamError> {
    let claim = ProductClaim { operation: task.operation, operands: task.operands, result: digest };
    let signed = SignedProduct::new(claim, keypair).map_err(|error| StreamError::Unexpected(error.to_string()))?;
    Ok(Some(ResultSignature { digest, signature: signed.signature.bytes() }))
}
