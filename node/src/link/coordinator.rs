//! The coordinator's side of a task stream: operands and tasks out, results in.
//!
//! It reports what happens as [`LinkEvent`]s; what to do about it is the fabric's to decide.

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

use super::limits::{AHEAD_BYTES, BULK_QUEUE, CHUNK_BYTES, CONTROL_QUEUE, HELLO_TIMEOUT};
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::wire::{Header, Message, Shape, Task, TaskHello, TaskId, VERSION};

/// What is sent in order, one after another.
#[derive(Debug)]
pub enum Bulk {
    /// A whole operand.
    Operand {
        /// Its content address.
        digest: Digest,
        /// The operand, row-major.
        tensor: Tensor,
        /// Its share of what may wait for the wire; given back once it is sent.
        room: Option<OwnedSemaphorePermit>,
    },
    /// A task; its operands went before it. Skipped if it was given up meanwhile.
    Task(Task),
    /// So many bytes to measure the link with.
    Probe {
        /// Comes back in [`LinkEvent::Probed`].
        nonce: u64,
        /// How many.
        bytes: u64,
    },
}

/// What happened on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Both sides have said who they are.
    Opened(TaskHello),
    /// An operand left: its bytes, and the time that took.
    Sent {
        /// Payload bytes.
        bytes: u64,
        /// From the first to the last.
        took: Duration,
    },
    /// A task started to compute.
    Started(TaskId),
    /// A result is here, whole and not yet checked.
    Result {
        /// Whose.
        task: TaskId,
        /// The tensor.
        tensor: Tensor,
        /// Time it computed, as the worker says.
        compute: Duration,
        /// From the first to the last byte.
        receiving: Duration,
    },
    /// A task failed at the worker.
    Failure {
        /// Which.
        task: TaskId,
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
    },
    /// The worker lacks operands of a task.
    Missing {
        /// Which task.
        task: TaskId,
        /// Which operands.
        digests: Vec<Digest>,
    },
    /// The worker dropped an operand.
    Evicted(Digest),
    /// The worker's queue.
    Load {
        /// Time until a task sent now would start.
        queued: Duration,
    },
    /// A probe arrived whole.
    Probed(u64),
    /// The stream is over.
    Closed(StreamError),
}

/// Handle of an open link. Dropping it ends the stream.
#[derive(Debug)]
pub struct Link {
    bulk: mpsc::Sender<Bulk>,
    control: mpsc::Sender<Message>,
    expected: Rc<RefCell<HashMap<TaskId, Shape>>>,
    /// Bytes of operands that may still be queued, in units of [`CHUNK_BYTES`].
    room: Arc<Semaphore>,
}

/// A queue of the link is full, which its limits rule out for an honest peer that keeps up.
#[derive(Debug, thiserror::Error)]
#[error("the link cannot keep up: a queue is full")]
pub struct LinkFull;

impl Link {
    /// Waits until an operand of so many bytes may be queued.
    pub async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, LinkFull> {
        let chunks = bytes.div_ceil(CHUNK_BYTES as u64).clamp(1, (AHEAD_BYTES / CHUNK_BYTES) as u64) as u32;
        Arc::clone(&self.room).acquire_many_owned(chunks).await.map_err(|_| LinkFull)
    }

    /// Queues what is to go in order.
    pub fn send(&self, bulk: Bulk) -> Result<(), LinkFull> {
        self.bulk.try_send(bulk).map_err(|_| LinkFull)
    }

    /// Queues a task, whose result will have this shape.
    pub fn send_task(&self, task: Task, result: Shape) -> Result<(), LinkFull> {
        self.expected.borrow_mut().insert(task.id, result);
        self.send(Bulk::Task(task))
    }

    /// Gives a task up, sent or not.
    pub fn cancel(&self, task: TaskId) -> Result<(), LinkFull> {
        self.expected.borrow_mut().remove(&task);
        self.control(Message::Cancel(task))
    }

    /// Says that no job needs an operand any more.
    pub fn release(&self, digest: Digest) -> Result<(), LinkFull> {
        self.control(Message::Release(digest))
    }

    /// Says why this side goes.
    pub fn goodbye(&self, why: &str) -> Result<(), LinkFull> {
        self.control(Message::Goodbye(why.to_owned()))
    }

    fn control(&self, message: Message) -> Result<(), LinkFull> {
        self.control.try_send(message).map_err(|_| LinkFull)
    }
}

/// Runs a link over `stream` on the current `LocalSet`; events go to `events` with the peer's id and
/// `generation`, which tells links to the same peer apart. The last event is [`LinkEvent::Closed`].
pub fn open<S>(
    stream: S,
    peer: PeerId,
    generation: u64,
    advert: TaskHello,
    events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
) -> Link
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
            why = writer.run(advert) => why,
        };
        report.event(LinkEvent::Closed(why)).await;
    });
    Link { bulk, control, expected, room: Arc::new(Semaphore::new(AHEAD_BYTES / CHUNK_BYTES)) }
}

#[derive(Clone)]
struct Report {
    peer: PeerId,
    generation: u64,
    events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
}

impl Report {
    async fn event(&self, event: LinkEvent) {
        // The fabric is gone only when the whole node is.
        let _ = self.events.send((self.peer, self.generation, event)).await;
    }
}

struct Reader<R> {
    frames: FrameReader<R>,
    expected: Rc<RefCell<HashMap<TaskId, Shape>>>,
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
        let advert = match tokio::time::timeout(HELLO_TIMEOUT, self.frames.receive()).await {
            Ok(received) => received?.0,
            Err(_) => return Err(StreamError::Stalled),
        };
        match advert {
            Message::Hello(advert) if advert.version >= VERSION => self.report.event(LinkEvent::Opened(advert)).await,
            Message::Hello(advert) => {
                return Err(StreamError::Unexpected(format!(
                    "the peer speaks version {}, this node {VERSION}",
                    advert.version
                )));
            }
            Message::Goodbye(why) => return Err(StreamError::Goodbye(why)),
            other => return Err(StreamError::Unexpected(format!("`{}` where an advert belongs", other.name()))),
        }
        let mut arriving: Option<Arriving> = None;
        loop {
            let (message, payload) = self.frames.receive().await?;
            match message {
                Message::Result { task, shape, offset, compute_nanos } => {
                    let compute = Duration::from_nanos(compute_nanos);
                    self.result(&mut arriving, task, shape, offset, payload, compute).await?;
                }
                Message::Failure { task, kind, message } => {
                    if self.expected.borrow_mut().remove(&task).is_some() {
                        self.report.event(LinkEvent::Failure { task, kind, message }).await;
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

    /// Takes a piece of a result. Pieces come in order, results one after another.
    async fn result(
        &mut self,
        arriving: &mut Option<Arriving>,
        task: TaskId,
        shape: Shape,
        offset: u64,
        payload: usize,
        compute: Duration,
    ) -> Result<(), StreamError> {
        let Some(expected) = self.expected.borrow().get(&task).copied() else {
            // Given up meanwhile: what is under way of it is of no use.
            *arriving = None;
            return self.frames.skip(payload).await;
        };
        if shape != expected {
            return Err(StreamError::Unexpected(format!(
                "a result of shape {shape:?} where {expected:?} was asked for"
            )));
        }
        if arriving.as_ref().is_none_or(|under_way| under_way.task != task) {
            *arriving = Some(Arriving::begin(task, shape)?);
        }
        let Some(under_way) = arriving.as_mut() else { return Ok(()) };
        if offset != under_way.received {
            return Err(StreamError::Unexpected(format!(
                "a piece of a result at {offset}, not {}",
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
            let event =
                LinkEvent::Result { task, tensor: whole.buffer.freeze(), compute, receiving: whole.since.elapsed() };
            self.report.event(event).await;
        }
        Ok(())
    }
}

/// A result under way.
struct Arriving {
    task: TaskId,
    buffer: TensorBuf,
    received: u64,
    since: Instant,
}

impl Arriving {
    fn begin(task: TaskId, shape: Shape) -> Result<Arriving, StreamError> {
        let buffer = TensorBuf::unspecified(shape.dtype(), shape.rows(), shape.cols())
            .map_err(|error| StreamError::Unexpected(format!("no memory for a result: {error}")))?;
        Ok(Arriving { task, buffer, received: 0, since: Instant::now() })
    }
}

struct Writer<W> {
    frames: FrameWriter<W>,
    bulk: mpsc::Receiver<Bulk>,
    control: mpsc::Receiver<Message>,
    expected: Rc<RefCell<HashMap<TaskId, Shape>>>,
    report: Report,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run(mut self, advert: TaskHello) -> StreamError {
        match self.write(advert).await {
            Ok(()) => StreamError::Closed,
            Err(why) => why,
        }
    }

    async fn write(&mut self, advert: TaskHello) -> Result<(), StreamError> {
        self.frames.send(&Message::Hello(advert), &[]).await?;
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

    /// Lets short messages overtake between two pieces of bulk.
    async fn urgent(&mut self) -> Result<(), StreamError> {
        while let Ok(message) = self.control.try_recv() {
            self.frames.send(&message, &[]).await?;
        }
        Ok(())
    }
}
