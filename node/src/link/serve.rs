//! The worker's side of a task stream: operands and tasks in, results out.
//!
//! A task waits until both its operands are here, hashed and true to their digests, then goes to the
//! executor. Everything a peer claims is bounded before it costs memory or time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::PeerId;
use pangea_client::{Error, ErrorKind};
use pangea_compute::{Cancel, Digest, Tensor, TensorBuf};
use tokio::sync::{mpsc, oneshot};

use super::framed::{FrameReader, FrameWriter, LinkError};
use super::limits::{CHUNK_BYTES, HELLO_TIMEOUT, REPLY_QUEUE, TASKS_PER_PEER};
use crate::wire::{Header, Message, Operation, Shape, Task, TaskHello, TaskId, VERSION};
use crate::worker::executor::{Executor, Outcome, PackKey, Work};
use crate::worker::fault::Fault;
use crate::worker::store::{Admission, OperandStore};

/// A change of this node's load is told at most so often.
const LOAD_EVERY: Duration = Duration::from_millis(250);

/// Refused operands that are remembered; two for each task of an honest peer suffice.
const REFUSALS_MAX: usize = 2 * TASKS_PER_PEER;

/// What all links that this node serves share.
pub struct Served {
    /// Operands of every peer.
    pub store: OperandStore<PeerId>,
    /// Where tasks are computed.
    pub executor: Executor,
    /// Tasks done since the start.
    pub tasks_done: u64,
    /// Tensor bytes received as operands.
    pub bytes_received: u64,
    /// Tensor bytes sent as results.
    pub bytes_sent: u64,
    /// Streams of each peer that are being served.
    pub sessions: HashMap<PeerId, u32>,
    /// Set when the node drains: no new tasks.
    pub draining: bool,
}

/// Serves `stream` from `peer` until it ends; returns why. Runs on the current `LocalSet`.
pub async fn serve<S>(stream: S, peer: PeerId, advert: TaskHello, served: Rc<RefCell<Served>>) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    *served.borrow_mut().sessions.entry(peer).or_default() += 1;
    let (replies, outbox) = mpsc::channel(REPLY_QUEUE);
    let (read, write) = stream.split();
    let state = Rc::new(RefCell::new(Session {
        peer,
        served: Rc::clone(&served),
        replies,
        arriving: HashMap::new(),
        refused: HashMap::new(),
        tasks: HashMap::new(),
    }));
    let why = tokio::select! {
        why = read_all(FrameReader::new(read), &state) => why,
        why = write_all(FrameWriter::new(write), outbox, advert, peer, &served) => why,
    };
    state.borrow_mut().end();
    why
}

/// One peer's stream.
struct Session {
    peer: PeerId,
    served: Rc<RefCell<Served>>,
    replies: mpsc::Sender<Reply>,
    /// Operands being received or hashed.
    arriving: HashMap<Digest, Arriving>,
    /// Operands there was no room for, and why; tasks that name them fail with it.
    refused: HashMap<Digest, Error>,
    tasks: HashMap<TaskId, Waiting>,
}

struct Arriving {
    /// `None` once it is whole and being hashed.
    buffer: Option<TensorBuf>,
    received: u64,
}

struct Waiting {
    task: Task,
    cancel: Cancel,
    /// Its place among the replies, so that the executor never waits to hand over a result.
    place: Option<mpsc::OwnedPermit<Reply>>,
    /// Whether the executor has it.
    submitted: bool,
}

enum Reply {
    Message(Message),
    Result { task: TaskId, tensor: Tensor, compute: Duration, fault: Option<Fault> },
    Failure { task: TaskId, error: Error },
}

async fn read_all<R: AsyncRead + Unpin>(mut frames: FrameReader<R>, state: &Rc<RefCell<Session>>) -> LinkError {
    match read(&mut frames, state).await {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn read<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<Session>>,
) -> Result<std::convert::Infallible, LinkError> {
    match tokio::time::timeout(HELLO_TIMEOUT, frames.receive()).await {
        Ok(first) => match first?.0 {
            Message::Hello(advert) if advert.version >= VERSION => {}
            Message::Hello(advert) => {
                return Err(LinkError::Unexpected(format!(
                    "the peer speaks version {}, this node {VERSION}",
                    advert.version
                )));
            }
            other => return Err(LinkError::Unexpected(format!("`{}` where an advert belongs", other.name()))),
        },
        Err(_) => return Err(LinkError::Stalled),
    }
    let replies = state.borrow().replies.clone();
    loop {
        let (message, payload) = frames.receive().await?;
        match message {
            Message::Operand { digest, shape, offset } => {
                operand(frames, state, digest, shape, offset, payload).await?
            }
            Message::Task(task) => Session::accept(state, task, &replies).await?,
            Message::Cancel(task) => state.borrow_mut().cancel(task),
            Message::Release(digest) => {
                let session = state.borrow();
                session.served.borrow_mut().store.release(session.peer, &digest);
            }
            Message::Probe { nonce, last, .. } => {
                frames.skip(payload).await?;
                if last {
                    reply(&replies, Reply::Message(Message::Probed(nonce))).await?;
                }
            }
            Message::Goodbye(why) => return Err(LinkError::Goodbye(why)),
            other => return Err(LinkError::Unexpected(format!("`{}` from a coordinator", other.name()))),
        }
    }
}

/// Receives one piece of an operand. Pieces of one operand come in order.
async fn operand<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<Session>>,
    digest: Digest,
    shape: Shape,
    offset: u64,
    payload: usize,
) -> Result<(), LinkError> {
    if offset == 0 && !state.borrow().arriving.contains_key(&digest) {
        let evicted = state.borrow_mut().announce(digest, shape);
        let replies = state.borrow().replies.clone();
        for gone in evicted {
            reply(&replies, Reply::Message(Message::Evicted(gone))).await?;
        }
    }
    // The buffer leaves the session while the payload is read, so that nothing is borrowed across the wait.
    let taken = match state.borrow_mut().arriving.get_mut(&digest) {
        Some(arriving) if arriving.buffer.is_some() => {
            if arriving.received != offset {
                return Err(LinkError::Unexpected(format!(
                    "a piece of an operand at {offset}, not {}",
                    arriving.received
                )));
            }
            arriving.buffer.take()
        }
        _ => None,
    };
    let Some(mut buffer) = taken else { return frames.skip(payload).await };
    if (buffer.dtype(), buffer.rows(), buffer.cols()) != (shape.dtype(), shape.rows(), shape.cols()) {
        return Err(LinkError::Unexpected("an operand changed its shape on the way".to_owned()));
    }
    let begin = offset as usize;
    frames.payload(&mut buffer.bytes_mut()[begin..begin + payload]).await?;
    let received = offset + payload as u64;
    let mut session = state.borrow_mut();
    session.served.borrow_mut().bytes_received += payload as u64;
    let Some(arriving) = session.arriving.get_mut(&digest) else { return Ok(()) };
    arriving.received = received;
    if received < shape.size_bytes() {
        arriving.buffer = Some(buffer);
    } else {
        tokio::task::spawn_local(hash(Rc::clone(state), digest, buffer.freeze()));
    }
    Ok(())
}

/// Checks that an operand is what its digest says, away from the network thread.
async fn hash(state: Rc<RefCell<Session>>, digest: Digest, tensor: Tensor) {
    let hashed = tokio::task::spawn_blocking(move || (tensor.digest() == digest, tensor)).await;
    let (true_to_digest, tensor) = match hashed {
        Ok(hashed) => hashed,
        Err(_) => return,
    };
    let mut session = state.borrow_mut();
    session.arriving.remove(&digest);
    let peer = session.peer;
    if true_to_digest {
        session.served.borrow_mut().store.complete(peer, digest, tensor);
    } else {
        session.served.borrow_mut().store.remove(peer, digest);
        let error = Error::new(ErrorKind::InvalidInput, format!("operand {digest} is not what its digest says"));
        session.refuse(digest, error);
    }
    drop(session);
    Session::start_ready(&state);
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut frames: FrameWriter<W>,
    mut outbox: mpsc::Receiver<Reply>,
    advert: TaskHello,
    peer: PeerId,
    served: &Rc<RefCell<Served>>,
) -> LinkError {
    match write(&mut frames, &mut outbox, advert, peer, served).await {
        Ok(()) => LinkError::Closed,
        Err(why) => why,
    }
}

async fn write<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W>,
    outbox: &mut mpsc::Receiver<Reply>,
    advert: TaskHello,
    peer: PeerId,
    served: &Rc<RefCell<Served>>,
) -> Result<(), LinkError> {
    frames.send(&Message::Hello(advert), &[]).await?;
    frames.flush().await?;
    let mut load = Load { peer, told: Duration::ZERO, tick: tokio::time::interval(LOAD_EVERY) };
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
            Reply::Failure { task, error } => {
                let message = Message::Failure { task, kind: error.kind(), message: error.message().to_owned() };
                frames.send(&message, &[]).await?;
            }
            Reply::Result { fault: Some(Fault::Hang), .. } => {}
            Reply::Result { task, tensor, compute, fault } => {
                send_result(frames, task, &tensor, compute, fault).await?;
                let mut served = served.borrow_mut();
                served.bytes_sent += tensor.size_bytes() as u64;
                served.tasks_done += 1;
            }
        }
        if outbox.is_empty() {
            frames.flush().await?;
        }
    }
}

/// What the coordinator was last told of this node's load.
struct Load {
    peer: PeerId,
    told: Duration,
    tick: tokio::time::Interval,
}

impl Load {
    /// Waits until the load has changed by more than a half.
    async fn news(&mut self, served: &Rc<RefCell<Served>>) -> Message {
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

async fn send_result<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W>,
    task: TaskId,
    tensor: &Tensor,
    compute: Duration,
    fault: Option<Fault>,
) -> Result<(), LinkError> {
    let shape = Shape::new(tensor.dtype(), tensor.rows() as u64, tensor.cols() as u64)?;
    let compute_nanos = u64::try_from(compute.as_nanos()).unwrap_or(u64::MAX);
    let Some(bytes) = tensor.contiguous_bytes() else {
        return Err(LinkError::Unexpected("a product that is not row-major".to_owned()));
    };
    let message = |offset| Message::Result { task, shape, offset, compute_nanos };
    if fault == Some(Fault::Drop) {
        return frames.cut(&message(0), &bytes[..bytes.len().min(CHUNK_BYTES)]).await;
    }
    if bytes.is_empty() {
        return frames.send(&message(0), &[]).await;
    }
    for (i, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
        frames.send(&message((i * CHUNK_BYTES) as u64), piece).await?;
    }
    Ok(())
}

impl Session {
    /// Makes room for an operand, or notes why there is none. Returns what had to go for it.
    fn announce(&mut self, digest: Digest, shape: Shape) -> Vec<Digest> {
        let needed = |digest: &Digest| self.tasks.values().any(|waiting| operands(&waiting.task).contains(digest));
        let admitted = self.served.borrow_mut().store.admit(self.peer, digest, shape.size_bytes(), needed);
        let evicted = match admitted {
            Ok(Admission::Known) => return Vec::new(),
            Ok(Admission::Receive { evicted }) => evicted,
            Err(error) => {
                self.refuse(digest, error);
                return Vec::new();
            }
        };
        self.refused.remove(&digest);
        match TensorBuf::unspecified(shape.dtype(), shape.rows(), shape.cols()) {
            Ok(buffer) => {
                self.arriving.insert(digest, Arriving { buffer: Some(buffer), received: 0 });
            }
            Err(error) => {
                self.served.borrow_mut().store.remove(self.peer, digest);
                self.refuse(digest, crate::compute_error(error));
            }
        }
        evicted
    }

    /// Notes why tasks that name this operand will fail.
    fn refuse(&mut self, digest: Digest, error: Error) {
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.clear();
        }
        self.refused.insert(digest, error);
    }

    /// Takes a task in: it fails, waits for operands, or starts.
    async fn accept(state: &Rc<RefCell<Session>>, task: Task, replies: &mpsc::Sender<Reply>) -> Result<(), LinkError> {
        let refusal = {
            let session = state.borrow();
            if session.tasks.contains_key(&task.id) {
                return Err(LinkError::Unexpected(format!("task {} is sent twice", task.id)));
            }
            session.refusal()
        };
        if let Some(error) = refusal {
            return reply(replies, Reply::Failure { task: task.id, error }).await;
        }
        let place = match replies.clone().reserve_owned().await {
            Ok(place) => place,
            Err(_) => return Err(LinkError::Closed),
        };
        let lacking = state.borrow_mut().wait(task, place);
        if !lacking.is_empty() {
            reply(replies, Reply::Message(Message::Missing { task: task.id, digests: lacking })).await?;
        }
        Session::start_ready(state);
        Ok(())
    }

    /// Why no further task is taken now.
    fn refusal(&self) -> Option<Error> {
        let served = self.served.borrow();
        if served.draining {
            return Some(Error::new(ErrorKind::Unavailable, "this node is shutting down"));
        }
        (self.tasks.len() >= TASKS_PER_PEER)
            .then(|| Error::new(ErrorKind::Overloaded, format!("{TASKS_PER_PEER} of your tasks are here already")))
    }

    /// Notes a task; returns those of its operands that are neither here nor on their way.
    fn wait(&mut self, task: Task, place: mpsc::OwnedPermit<Reply>) -> Vec<Digest> {
        let served = self.served.borrow();
        let mut lacking: Vec<Digest> = operands(&task)
            .into_iter()
            .filter(|digest| !served.store.knows(self.peer, digest) && !self.refused.contains_key(digest))
            .collect();
        lacking.dedup();
        let waiting = Waiting { task, cancel: Cancel::new(), place: Some(place), submitted: false };
        self.tasks.insert(task.id, waiting);
        lacking
    }

    /// Hands every task whose operands are here to the executor, and ends those whose operands never will be.
    fn start_ready(state: &Rc<RefCell<Session>>) {
        let waiting: Vec<(TaskId, Task)> = {
            let session = state.borrow();
            let mut waiting: Vec<_> =
                session.tasks.values().filter(|w| !w.submitted).map(|w| (w.task.id, w.task)).collect();
            waiting.sort_unstable_by_key(|(id, _)| *id);
            waiting
        };
        for (id, task) in waiting {
            let [a, b] = operands(&task);
            let refused = {
                let session = state.borrow();
                session.refused.get(&a).or_else(|| session.refused.get(&b)).cloned()
            };
            if let Some(error) = refused {
                state.borrow_mut().fail(id, error);
                continue;
            }
            let here = {
                let session = state.borrow();
                let mut served = session.served.borrow_mut();
                served.store.get(session.peer, &a).zip(served.store.get(session.peer, &b))
            };
            if let Some((tensor_a, tensor_b)) = here {
                Session::submit(state, id, (PackKey::Operand(a), tensor_a), (PackKey::Operand(b), tensor_b));
            }
        }
    }

    fn submit(state: &Rc<RefCell<Session>>, id: TaskId, a: (PackKey, Tensor), b: (PackKey, Tensor)) {
        let mut session = state.borrow_mut();
        let executor = session.served.borrow().executor.clone();
        let replies = session.replies.clone();
        let Some(waiting) = session.tasks.get_mut(&id) else { return };
        let Some(place) = waiting.place.take() else { return };
        waiting.submitted = true;
        let (ended, end) = oneshot::channel();
        let started = Box::new(move || {
            // A lost notice costs a little accuracy of the coordinator's predictions, nothing else.
            let _ = replies.try_send(Reply::Message(Message::Started(id)));
        });
        let done = Box::new(move |outcome: Outcome| {
            let reply = match outcome.result {
                Ok(tensor) => Reply::Result { task: id, tensor, compute: outcome.compute, fault: outcome.fault },
                Err(error) => Reply::Failure { task: id, error },
            };
            place.send(reply);
            let _ = ended.send(());
        });
        let priority = waiting.task.priority;
        let deadline = waiting.task.deadline;
        let cancel = waiting.cancel.clone();
        let keep_bytes = usize::MAX;
        let work = Work {
            priority,
            a,
            b,
            keep_bytes,
            cancel: cancel.clone(),
            owner: Some(session.peer),
            started: Some(started),
            done,
        };
        if let Err(error) = executor.submit(work) {
            // The place went with the work, so this answer goes the ordinary way.
            let _ = session.replies.try_send(Reply::Failure { task: id, error });
            session.tasks.remove(&id);
            return;
        }
        drop(session);
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            let expire = async {
                match deadline {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
                cancel.cancel();
                std::future::pending::<()>().await
            };
            tokio::select! {
                // An error means that the executor dropped the work: it is over as well.
                _ = end => {}
                () = expire => {}
            }
            state.borrow_mut().tasks.remove(&id);
        });
    }

    /// Ends a task that never started.
    fn fail(&mut self, id: TaskId, error: Error) {
        if let Some(Waiting { place: Some(place), .. }) = self.tasks.remove(&id) {
            place.send(Reply::Failure { task: id, error });
        }
        self.forget_refusals();
    }

    /// Nobody wants the task any more. A running one notices within milliseconds.
    fn cancel(&mut self, id: TaskId) {
        match self.tasks.get(&id) {
            Some(waiting) if waiting.submitted => waiting.cancel.cancel(),
            Some(_) => {
                self.tasks.remove(&id);
                self.forget_refusals();
            }
            None => {}
        }
    }

    /// Refusals matter only to tasks that name them; without tasks the next announcement is judged afresh.
    fn forget_refusals(&mut self) {
        if self.tasks.is_empty() {
            self.refused.clear();
        }
    }

    /// The stream is over: nothing of this peer's goes on or stays.
    fn end(&mut self) {
        for waiting in self.tasks.values() {
            waiting.cancel.cancel();
        }
        self.tasks.clear();
        let mut served = self.served.borrow_mut();
        for (digest, _) in self.arriving.drain() {
            served.store.remove(self.peer, digest);
        }
        // A newer stream of the same peer may be at work already: what is here whole is of use to it.
        let sessions = served.sessions.entry(self.peer).or_default();
        *sessions = sessions.saturating_sub(1);
        if *sessions == 0 {
            served.sessions.remove(&self.peer);
            served.store.remove_owner(self.peer);
        }
    }
}

fn operands(task: &Task) -> [Digest; 2] {
    match task.operation {
        Operation::MatMul { a, b } => [a, b],
    }
}

async fn reply(replies: &mpsc::Sender<Reply>, reply: Reply) -> Result<(), LinkError> {
    replies.send(reply).await.map_err(|_| LinkError::Closed)
}
