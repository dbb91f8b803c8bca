//! The coordinator's side of a task stream: sends operands and tasks, receives results.
//!
//! What happens is reported as [`LinkEvent`]s; the fabric decides what to do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_compute::{Digest, Tensor, TensorBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Span;

use super::limits::{AHEAD_BYTES, BULK_QUEUE, CHUNK_BYTES, CONTROL_QUEUE, HELLO_TIMEOUT};
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::traces::child;
use crate::wire::{Header, Message, ResultSignature, Shape, Task, TaskHello, TaskId, VERSION};

/// Messages that are sent in order, one after another.
#[derive(Debug)]
pub enum Bulk {
    /// A complete operand.
    Operand {
        /// Content address of the operand.
        digest: Digest,
        /// The operand, row-major.
        tensor: Tensor,
        /// Permit for the operand's queued bytes; released once it is sent.
        room: Option<OwnedSemaphorePermit>,
    },
    /// A task, sent after its operands. Skipped if it was cancelled meanwhile.
    Task(Task),
    /// Bytes that measure the link.
    Probe {
        /// Returned in [`LinkEvent::Probed`].
        nonce: u64,
        /// Number of payload bytes.
        bytes: u64,
    },
}

/// What happened on a task stream.
#[derive(Debug)]
pub enum LinkEvent {
    /// Both sides have sent their hello.
    Opened(TaskHello),
    /// An operand was sent.
    Sent {
        /// Payload bytes.
        bytes: u64,
        /// Time from its first to its last byte.
        took: Duration,
    },
    /// A task started to compute.
    Started(TaskId),
    /// A complete result arrived; it is not yet checked.
    Result {
        /// The task that it belongs to.
        task: TaskId,
        /// The result.
        tensor: Tensor,
        /// Compute time, as the worker reports it.
        compute: Duration,
        /// Time from the result's first to its last byte.
        receiving: Duration,
        /// The worker's signature, not verified.
        signed: Option<ResultSignature>,
    },
    /// A task failed on the worker.
    Failure {
        /// The task that failed.
        task: TaskId,
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
        /// When the worker, which is overloaded, asks to be tried again.
        retry_after: Option<Duration>,
    },
    /// The worker lacks operands of a task.
    Missing {
        /// The task that waits.
        task: TaskId,
        /// The missing operands.
        digests: Vec<Digest>,
    },
    /// The worker removed an operand from its store.
    Evicted(Digest),
    /// The worker reported its queue.
    Load {
        /// Predicted time until a task sent now would start.
        queued: Duration,
    },
    /// A probe arrived completely.
    Probed(u64),
    /// The stream has ended.
    Closed(StreamError),
}

/// Handle of an open task stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct TaskLink {
    bulk: mpsc::Sender<Bulk>,
    control: mpsc::Sender<Message>,
    expected: Rc<RefCell<HashMap<TaskId, Expected>>>,
    /// Limits the bytes of queued operands, in units of [`CHUNK_BYTES`].
    room: Arc<Semaphore>,
}

/// The spans of a task under way.
#[derive(Debug)]
pub struct TaskSpans {
    /// The attempt.
    pub task: Span,
    /// The sending of its operands and of itself, then the wait for its result.
    pub phase: Span,
}

/// A task whose result has not arrived.
#[derive(Debug)]
struct Expected {
    shape: Shape,
    spans: TaskSpans,
}

/// A queue of the stream is full. The limits prevent this for an honest peer that keeps up.
#[derive(Debug, thiserror::Error)]
#[error("the task stream cannot keep up: a queue is full")]
pub struct LinkFull;

impl TaskLink {
    /// Waits until an operand of `bytes` bytes may be queued.
    pub async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, LinkFull> {
        let chunks = bytes.div_ceil(CHUNK_BYTES as u64).clamp(1, (AHEAD_BYTES / CHUNK_BYTES) as u64) as u32;
        Arc::clone(&self.room).acquire_many_owned(chunks).await.map_err(|_| LinkFull)
    }

    /// Queues a message that is sent in order.
    pub fn send(&self, bulk: Bulk) -> Result<(), LinkFull> {
        self.bulk.try_send(bulk).map_err(|_| LinkFull)
    }

    /// Queues a task whose result has this shape.
    pub fn send_task(&self, task: Task, result: Shape, spans: TaskSpans) -> Result<(), LinkFull> {
        self.expected.borrow_mut().insert(task.id, Expected { shape: result, spans });
        self.send(Bulk::Task(task))
    }

    /// Cancels a task, sent or not.
    pub fn cancel(&self, task: TaskId) -> Result<(), LinkFull> {
        self.expected.borrow_mut().remove(&task);
        self.control(Message::Cancel(task))
    }

    /// Tells the worker that no job needs an operand any more.
    pub fn release(&self, digest: Digest) -> Result<(), LinkFull> {
        self.control(Message::Release(digest))
    }

    /// Tells the worker why this side closes the stream.
    pub fn goodbye(&self, why: &str) -> Result<(), LinkFull> {
        self.control(Message::Goodbye(why.to_owned()))
    }

    fn control(&self, message: Message) -> Result<(), LinkFull> {
        self.control.try_send(message).map_err(|_| LinkFull)
    }
}

/// Runs a task stream on the current `LocalSet`; events are sent to `events` with the peer's id and
/// `generation`, which distinguishes streams to the same peer. The last event is [`LinkEvent::Closed`].
pub fn open<S>(
    stream: S,
    peer: PeerId,
    generation: u64,
    hello: TaskHello,
    events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
) -> TaskLink
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (bulk, bulk_queue) = mpsc::channel(BULK_QUEUE);
    let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
    let expected = Rc::new(RefCell::new(HashMap::new()));
    let report = Report { peer, generation, events };
    let (read, write) = stream.split();
    let reader = Reader { frames: FrameReader::new(read), expected: Rc::clone(&expected), report: report.clone() };
    let writer = Writer {
        frames: FrameWriter::new(write),
        bulk: bulk_queue,
        control: control_queue,
        expected: Rc::clone(&expected),
        report: report.clone(),
    };
    tokio::task::spawn_local(async move {
        let why = tokio::select! {
            why = reader.run() => why,
            why = writer.run(hello) => why,
        };
        report.event(LinkEvent::Closed(why)).await;
    });
    TaskLink { bulk, control, expected, room: Arc::new(Semaphore::new(AHEAD_BYTES / CHUNK_BYTES)) }
}

#[derive(Clone)]
struct Report {
    peer: PeerId,
    generation: u64,
    events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
}

impl Report {
    async fn event(&self, event: LinkEvent) {
        // The receiver is gone only when the whole node is.
        let _ = self.events.send((self.peer, self.generation, event)).await;
    }
}

struct Reader<R> {
    frames: FrameReader<R>,
    expected: Rc<RefCell<HashMap<TaskId, Expected>>>,
    report: Report,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> StreamError {
        match self.read().await {
            Ok(never) => match never {},
            Err(why) => why,
        }
    }

    async fn read(&mut self) -> Result<std::convert::Infallible, StreamError> {
        let hello = match tokio::time::timeout(HELLO_TIMEOUT, self.frames.receive()).await {
            Ok(received) => received?.0,
            Err(_) => return Err(StreamError::Stalled),
        };
        match hello {
            Message::Hello(hello) if hello.version >= VERSION => self.report.event(LinkEvent::Opened(hello)).await,
            Message::Hello(hello) => {
                return Err(StreamError::Unexpected(format!(
                    "the peer speaks version {}, this node {VERSION}",
                    hello.version
                )));
            }
            Message::Goodbye(why) => return Err(StreamError::Goodbye(why)),
            other => return Err(StreamError::Unexpected(format!("`{}` instead of a hello", other.name()))),
        }
        let mut arriving: Option<Arriving> = None;
        loop {
            let (message, payload) = self.frames.receive().await?;
            match message {
                Message::Result { task, shape, offset, compute_nanos, signed } => {
                    let piece = Piece { task, shape, offset, payload, signed };
                    self.result(&mut arriving, piece, Duration::from_nanos(compute_nanos)).await?;
                }
                Message::Failure { task, kind, message, retry_after } => {
                    if self.expected.borrow_mut().remove(&task).is_some() {
                        self.report.event(LinkEvent::Failure { task, kind, message, retry_after }).await;
                    }
                }
                Message::Missing { task, digests } => self.report.event(LinkEvent::Missing { task, digests }).await,
                Message::Evicted(digest) => self.report.event(LinkEvent::Evicted(digest)).await,
                Message::Load { queued_nanos } => {
                    self.report.event(LinkEvent::Load { queued: Duration::from_nanos(queued_nanos) }).await;
                }
                Message::Started(task) => self.report.event(LinkEvent::Started(task)).await,
                Message::Probed(nonce) => self.report.event(LinkEvent::Probed(nonce)).await,
                Message::Goodbye(why) => return Err(StreamError::Goodbye(why)),
                other => return Err(StreamError::Unexpected(format!("`{}` from a worker", other.name()))),
            }
        }
    }

    /// Receives a piece of a result. Pieces arrive in order, results one after another.
    async fn result(
        &mut self,
        arriving: &mut Option<Arriving>,
        piece: Piece,
        compute: Duration,
    ) -> Result<(), StreamError> {
        let Piece { task, shape, offset, payload, signed } = piece;
        let Some(expected) = self.expected.borrow().get(&task).map(|expected| expected.shape) else {
            // The task was cancelled; the pieces of its result are discarded.
            *arriving = None;
            return self.frames.skip(payload).await;
        };
        if shape != expected {
            return Err(StreamError::Unexpected(format!("a result of shape {shape:?} instead of {expected:?}")));
        }
        if arriving.as_ref().is_none_or(|under_way| under_way.task != task) {
            *arriving = Some(Arriving::new(task, shape)?);
        }
        let Some(under_way) = arriving.as_mut() else { return Ok(()) };
        if offset != under_way.received {
            return Err(StreamError::Unexpected(format!(
                "a piece of a result at {offset} instead of {}",
                under_way.received
            )));
        }
        let begin = offset as usize;
        self.frames.payload(&mut under_way.buffer.bytes_mut()[begin..begin + payload]).await?;
        under_way.received += payload as u64;
        if under_way.received == shape.size_bytes()
            && let Some(whole) = arriving.take()
            && self.expected.borrow_mut().remove(&task).is_some()
        {
            let (tensor, receiving) = (whole.buffer.freeze(), whole.since.elapsed());
            let event = LinkEvent::Result { task, tensor, compute, receiving, signed };
            self.report.event(event).await;
        }
        Ok(())
    }
}

/// A piece of a result.
struct Piece {
    task: TaskId,
    shape: Shape,
    offset: u64,
    payload: usize,
    signed: Option<ResultSignature>,
}

/// A result whose pieces are arriving.
struct Arriving {
    task: TaskId,
    buffer: TensorBuf,
    received: u64,
    since: Instant,
}

impl Arriving {
    fn new(task: TaskId, shape: Shape) -> Result<Arriving, StreamError> {
        let buffer = TensorBuf::unspecified(shape.dtype(), shape.rows(), shape.cols())
            .map_err(|error| StreamError::Unexpected(format!("no memory for a result: {error}")))?;
        Ok(Arriving { task, buffer, received: 0, since: Instant::now() })
    }
}

struct Writer<W> {
    frames: FrameWriter<W>,
    bulk: mpsc::Receiver<Bulk>,
    control: mpsc::Receiver<Message>,
    expected: Rc<RefCell<HashMap<TaskId, Expected>>>,
    report: Report,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run(mut self, hello: TaskHello) -> StreamError {
        match self.write(hello).await {
            Ok(()) => StreamError::Closed,
            Err(why) => why,
        }
    }

    async fn write(&mut self, hello: TaskHello) -> Result<(), StreamError> {
        self.frames.send(&Message::Hello(hello), &[]).await?;
        self.frames.flush().await?;
        loop {
            tokio::select! {
                biased;
                message = self.control.recv() => match message {
                    Some(message) => self.frames.send(&message, &[]).await?,
                    None => return Ok(()),
                },
                bulk = self.bulk.recv() => match bulk {
                    Some(bulk) => self.bulk(bulk).await?,
                    None => return Ok(()),
                },
            }
            if self.control.is_empty() && self.bulk.is_empty() {
                self.frames.flush().await?;
            }
        }
    }

    async fn bulk(&mut self, bulk: Bulk) -> Result<(), StreamError> {
        match bulk {
            Bulk::Operand { digest, tensor, room: _room } => {
                let begin = Instant::now();
                let bytes = tensor.size_bytes() as u64;
                let shape = Shape::new(tensor.dtype(), tensor.rows() as u64, tensor.cols() as u64)?;
                let Some(all) = tensor.contiguous_bytes() else {
                    return Err(StreamError::Unexpected("an operand that is not row-major".to_owned()));
                };
                let mut offset = 0;
                loop {
                    let piece = CHUNK_BYTES.min(all.len() - offset);
                    let message = Message::Operand { digest, shape, offset: offset as u64 };
                    self.frames.send(&message, &all[offset..offset + piece]).await?;
                    offset += piece;
                    if offset == all.len() {
                        break;
                    }
                    self.urgent().await?;
                }
                self.report.event(LinkEvent::Sent { bytes, took: begin.elapsed() }).await;
            }
            Bulk::Task(task) => {
                if self.expected.borrow().contains_key(&task.id) {
                    self.frames.send(&Message::Task(task), &[]).await?;
                    if let Some(Expected { spans, .. }) = self.expected.borrow_mut().get_mut(&task.id) {
                        spans.phase = child!(&spans.task, "wait");
                    }
                }
            }
            Bulk::Probe { nonce, bytes } => self.probe(nonce, bytes).await?,
        }
        Ok(())
    }

    async fn probe(&mut self, nonce: u64, bytes: u64) -> Result<(), StreamError> {
        let payload = vec![0x5a; CHUNK_BYTES.min(bytes as usize)];
        let mut left = bytes;
        loop {
            let piece = left.min(payload.len() as u64);
            left -= piece;
            let message = Message::Probe { nonce, total: bytes, last: left == 0 };
            self.frames.send(&message, &payload[..piece as usize]).await?;
            if left == 0 {
                return Ok(());
            }
            self.urgent().await?;
        }
    }

    /// Sends queued short messages between two pieces of bulk.
    async fn urgent(&mut self) -> Result<(), StreamError> {
        while let Ok(message) = self.control.try_recv() {
            self.frames.send(&message, &[]).await?;
        }
        Ok(())
    }
}
