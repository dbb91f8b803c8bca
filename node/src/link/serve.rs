//! The worker's side of a task stream: bytes in, bytes out. [`pangea_control::tasks`] decides which task is accepted,
//! starts and ends; this file receives operands, leases memory, hands work to the executor and sends replies.

mod replies;
mod served_task;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind};
use pangea_compute::{Cancel, Digest, Operation, Tensor, TensorBuf};
use pangea_control::tasks::{
    Action, Admission, Event, Intake, OperandStore, RESULT_MEMORY_TIMEOUT, Refusal, TaskQuotas, Terms,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::Span;

use self::replies::{Reply, reply, write_all};
use self::served_task::{ServedTask, TaskMetrics, TaskOutcome};
use super::limits::{HELLO_TIMEOUT, REPLY_QUEUE, STREAMS, STREAMS_PER_PEER, TASKS_PER_PEER};
use super::result_shares::{ResultShare, ResultShares};
use crate::clock;
use crate::devices::{Devices, Kind, Lease};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::places::{Place, Places};
use crate::traces::{self, child, entrance};
use crate::wire::{Header, Message, Shape, Task, TaskHello, TaskId, VERSION};
use crate::worker::executor::{Executor, Outcome, PackKey, Work};

/// State shared by all task streams that this node serves.
pub struct TaskService {
    /// Operands of every peer.
    pub store: OperandStore<PeerId, Tensor, Lease>,
    /// Tasks of every peer, over all its streams.
    quotas: TaskQuotas<PeerId>,
    /// Memory of every peer's results, over all its streams.
    result_shares: ResultShares,
    /// Computes tasks.
    pub executor: Executor,
    /// Memory for results.
    pub devices: Devices,
    /// Tasks completed since the start.
    pub tasks_done: u64,
    /// What is counted of tasks.
    metrics: TaskMetrics,
    /// Tensor bytes received as operands.
    pub bytes_received: u64,
    /// Tensor bytes sent as results.
    pub bytes_sent: u64,
    /// Places of the streams that are served.
    pub places: Places,
    /// The state of each of those streams.
    streams: Vec<Weak<RefCell<ServedStream>>>,
    /// Answers whether a peer may compute and be computed for.
    pub peers: Peers,
    /// Set while the node drains: new tasks are refused.
    pub draining: bool,
    /// This node's key, which signs results.
    pub keypair: Keypair,
}

impl TaskService {
    /// State without any peer; `observer` counts the tasks.
    pub fn new(
        devices: Devices,
        executor: Executor,
        peers: Peers,
        keypair: Keypair,
        observer: &Observer,
    ) -> TaskService {
        TaskService {
            store: OperandStore::new(devices.limit()),
            quotas: TaskQuotas::default(),
            result_shares: ResultShares::new(devices.limit()),
            executor,
            devices,
            tasks_done: 0,
            metrics: TaskMetrics::new(observer),
            bytes_received: 0,
            bytes_sent: 0,
            places: Places::new(STREAMS_PER_PEER, STREAMS),
            streams: Vec::new(),
            peers,
            draining: false,
            keypair,
        }
    }

    /// Why new tasks of this peer are refused; `None` if they are accepted.
    fn refusal(&self, peer: &PeerId) -> Option<Refusal> {
        match () {
            () if !self.peers.may_compute(peer) => Some(Refusal::Quarantined),
            () if self.draining => Some(Refusal::Draining),
            () => None,
        }
    }
}

/// Drops the operands that no task needs, and tells their owners: somebody asks for the memory.
pub fn give_way(served: &Rc<RefCell<TaskService>>) {
    let streams: Vec<_> = served.borrow().streams.iter().filter_map(Weak::upgrade).collect();
    let needed = |owner: PeerId, digest: &Digest| {
        streams.iter().map(|stream| stream.borrow()).any(|stream| stream.peer == owner && stream.intake.needs(digest))
    };
    for (owner, digest) in served.borrow_mut().store.give_way(needed) {
        for stream in streams.iter().map(|stream| stream.borrow()).filter(|stream| stream.peer == owner) {
            // An owner that is not told is asked for the operand when it names it.
            let _ = stream.replies.try_send(Reply::Message(Message::Evicted(digest)));
        }
    }
}

/// Serves `stream`, which has this `place`, until it ends; returns why it ended. Runs on the current `LocalSet`.
pub async fn serve<S>(stream: S, place: Place, hello: TaskHello, served: Rc<RefCell<TaskService>>) -> StreamError
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let peer = place.peer();
    let (replies, outbox) = mpsc::channel(REPLY_QUEUE);
    let (read, write) = stream.split();
    let state = Rc::new(RefCell::new(ServedStream {
        peer,
        served: Rc::clone(&served),
        replies,
        arriving: HashMap::new(),
        intake: Intake::new(TASKS_PER_PEER),
        accepted: HashMap::new(),
        deadlines: Rc::default(),
    }));
    {
        let streams = &mut served.borrow_mut().streams;
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Rc::downgrade(&state));
    }
    let why = tokio::select! {
        why = read_all(FrameReader::new(read), &state) => why,
        why = write_all(FrameWriter::new(write), outbox, hello, peer, &served) => why,
        never = keep_time(&state) => match never {},
    };
    // The end of a stream produces no messages.
    let _ = ServedStream::handle(&state, Event::Ended);
    drop(place);
    state.borrow_mut().end();
    why
}

/// State of one peer's stream.
struct ServedStream {
    peer: PeerId,
    served: Rc<RefCell<TaskService>>,
    replies: mpsc::Sender<Reply>,
    /// Operands being received or hashed.
    arriving: HashMap<Digest, Arriving>,
    intake: Intake,
    /// Resources of each task of the intake.
    accepted: HashMap<TaskId, Accepted>,
    /// Notified when a task with a deadline arrives.
    deadlines: Rc<Notify>,
}

struct Arriving {
    /// `None` once the operand is complete and being hashed.
    buffer: Option<TensorBuf>,
    received: u64,
}

struct Accepted {
    task: Task,
    cancel: Cancel,
    /// Reserved place in the reply queue, so that the executor never waits to hand over a result; `None` once the
    /// executor has it.
    place: Option<mpsc::OwnedPermit<Reply>>,
    /// Memory for the result.
    memory: Option<ResultMemory>,
    /// Whether the task takes a place in the quota of its peer.
    counts: bool,
    counted: Arc<ServedTask>,
    /// What this node does for the task.
    span: Span,
    /// The wait for its operands and for memory.
    preparing: Span,
}

/// Memory for a result, until the result is sent.
struct ResultMemory {
    _lease: Lease,
    _share: ResultShare,
}

async fn read_all<R: AsyncRead + Unpin>(mut frames: FrameReader<R>, state: &Rc<RefCell<ServedStream>>) -> StreamError {
    match read(&mut frames, state).await {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn read<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<ServedStream>>,
) -> Result<std::convert::Infallible, StreamError> {
    match tokio::time::timeout(HELLO_TIMEOUT, frames.receive()).await {
        Ok(first) => match first?.0 {
            Message::Hello(hello) if hello.version >= VERSION => {}
            Message::Hello(hello) => {
                return Err(StreamError::Unexpected(format!(
                    "the peer speaks version {}, this node {VERSION}",
                    hello.version
                )));
            }
            other => return Err(StreamError::Unexpected(format!("`{}` instead of a hello", other.name()))),
        },
        Err(_) => return Err(StreamError::Stalled),
    }
    let replies = state.borrow().replies.clone();
    loop {
        let (message, payload) = frames.receive().await?;
        match message {
            Message::Operand { digest, shape, offset } => {
                operand(frames, state, digest, shape, offset, payload).await?
            }
            Message::Task(task) => ServedStream::accept(state, task, &replies).await?,
            Message::UnknownTask(task) => {
                state.borrow().served.borrow().metrics.arrived().end(TaskOutcome::Refused);
                let why = "this node does not know the operation of the task; a later version may";
                let error = Error::new(ErrorKind::InvalidInput, why);
                reply(&replies, Reply::Failure { task, error, retry_after: None }).await?;
            }
            Message::Cancel(task) => drop(ServedStream::handle(state, Event::Cancel(task))?),
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
            Message::Goodbye(why) => return Err(StreamError::Goodbye(why)),
            other => return Err(StreamError::Unexpected(format!("`{}` from a coordinator", other.name()))),
        }
    }
}

/// Receives one piece of an operand. Pieces of one operand arrive in order.
async fn operand<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<ServedStream>>,
    digest: Digest,
    shape: Shape,
    offset: u64,
    payload: usize,
) -> Result<(), StreamError> {
    if offset == 0 && !state.borrow().arriving.contains_key(&digest) {
        let evicted = ServedStream::announce(state, digest, shape)?;
        let replies = state.borrow().replies.clone();
        for gone in evicted {
            reply(&replies, Reply::Message(Message::Evicted(gone))).await?;
        }
    }
    // The buffer is taken out while the payload is read, so that nothing stays borrowed across the await.
    let taken = match state.borrow_mut().arriving.get_mut(&digest) {
        Some(arriving) if arriving.buffer.is_some() => {
            if arriving.received != offset {
                return Err(StreamError::Unexpected(format!(
                    "a piece of an operand at {offset} instead of {}",
                    arriving.received
                )));
            }
            arriving.buffer.take()
        }
        _ => None,
    };
    let Some(mut buffer) = taken else { return frames.skip(payload).await };
    if (buffer.dtype(), buffer.rows(), buffer.cols()) != (shape.dtype(), shape.rows(), shape.cols()) {
        return Err(StreamError::Unexpected("an operand changed its shape during the transfer".to_owned()));
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

/// Checks that an operand matches its digest, on a blocking thread.
async fn hash(state: Rc<RefCell<ServedStream>>, digest: Digest, tensor: Tensor) {
    let hashed = tokio::task::spawn_blocking(move || (tensor.digest() == digest, tensor)).await;
    let (true_to_digest, tensor) = match hashed {
        Ok(hashed) => hashed,
        Err(_) => return,
    };
    let event = {
        let mut session = state.borrow_mut();
        session.arriving.remove(&digest);
        let peer = session.peer;
        let store = &mut session.served.borrow_mut().store;
        if true_to_digest {
            store.complete(peer, digest, tensor);
            Event::Whole(digest)
        } else {
            store.remove(peer, digest);
            let error = Error::new(ErrorKind::InvalidInput, format!("operand {digest} does not match its digest"));
            Event::Refused(digest, error)
        }
    };
    // Neither event produces a message to the peer.
    let _ = ServedStream::handle(&state, event);
}

/// Sends a tick to the intake when a deadline has passed.
async fn keep_time(state: &Rc<RefCell<ServedStream>>) -> std::convert::Infallible {
    let deadlines = Rc::clone(&state.borrow().deadlines);
    loop {
        let wake = state.borrow().intake.wake_at();
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(wake.unwrap_or(pangea_control::Time::ZERO))), if wake.is_some() => {
                // A tick produces no message to the peer.
                let _ = ServedStream::handle(state, Event::Tick);
            }
            () = deadlines.notified() => {}
        }
    }
}

impl ServedStream {
    /// Makes room for an operand or records why there is none. Returns the operands that were evicted.
    fn announce(state: &Rc<RefCell<ServedStream>>, digest: Digest, shape: Shape) -> Result<Vec<Digest>, StreamError> {
        let (event, evicted) = state.borrow_mut().admit(digest, shape);
        if let Some(event) = event {
            ServedStream::handle(state, event)?;
        }
        Ok(evicted)
    }

    fn admit(&mut self, digest: Digest, shape: Shape) -> (Option<Event>, Vec<Digest>) {
        let TaskService { store, devices, peers, .. } = &mut *self.served.borrow_mut();
        if !peers.may_compute(&self.peer) {
            let why = "this node accepts no operands from a quarantined peer";
            return (Some(Event::Refused(digest, Error::new(ErrorKind::Unauthorized, why))), Vec::new());
        }
        let needed = |digest: &Digest| self.intake.needs(digest);
        let lease = |bytes| devices.lease(Kind::Operands, bytes);
        let evicted = match store.admit(self.peer, digest, shape.size_bytes(), needed, lease) {
            Ok(Admission::Known) => return (None, Vec::new()),
            Ok(Admission::Receive { evicted }) => evicted,
            Err(error) => return (Some(Event::Refused(digest, error)), Vec::new()),
        };
        match TensorBuf::unspecified(shape.dtype(), shape.rows(), shape.cols()) {
            Ok(buffer) => {
                self.arriving.insert(digest, Arriving { buffer: Some(buffer), received: 0 });
                (Some(Event::Admitted(digest)), evicted)
            }
            Err(error) => {
                store.remove(self.peer, digest);
                (Some(Event::Refused(digest, crate::compute_error(error))), evicted)
            }
        }
    }

    /// Passes a new task to the intake.
    async fn accept(
        state: &Rc<RefCell<ServedStream>>,
        task: Task,
        replies: &mpsc::Sender<Reply>,
    ) -> Result<(), StreamError> {
        let Ok(place) = replies.clone().reserve_owned().await else { return Err(StreamError::Closed) };
        let event = {
            let mut session = state.borrow_mut();
            let operands = task.operands;
            let is_new = !session.accepted.contains_key(&task.id);
            let (held, whole, refusal, metrics) = {
                let mut served = session.served.borrow_mut();
                let held = operands.map(|digest| served.store.knows(session.peer, &digest));
                let whole = operands.map(|digest| served.store.get(session.peer, &digest).is_some());
                let refusal = served.refusal(&session.peer);
                // A task sent twice ends the stream.
                let over = || is_new.then(|| served.quotas.begin(session.peer, clock::now()).err()).flatten();
                (held, whole, refusal.or_else(over), served.metrics.clone())
            };
            if is_new {
                let (counts, counted) = (refusal.is_none(), metrics.arrived());
                let span = traces::following(task.trace, || {
                    let (peer, operation) = (session.peer, task.operation.result_name());
                    entrance!("work", otel.kind = "server", client.address = %peer, pangea.operation = operation)
                });
                let accepted = Accepted {
                    task,
                    cancel: Cancel::new(),
                    place: Some(place),
                    memory: None,
                    counts,
                    counted,
                    preparing: child!(&span, "operands"),
                    span,
                };
                session.accepted.insert(task.id, accepted);
            }
            if task.deadline.is_some() {
                session.deadlines.notify_one();
            }
            let terms = Terms { task: task.id, operands, priority: task.priority, deadline: task.deadline };
            Event::Task { terms, held, whole, refusal }
        };
        for message in ServedStream::handle(state, event)? {
            reply(replies, Reply::Message(message)).await?;
        }
        Ok(())
    }

    /// Passes an event to the intake and executes its actions; returns the messages to the peer.
    fn handle(state: &Rc<RefCell<ServedStream>>, event: Event) -> Result<Vec<Message>, StreamError> {
        let mut events = VecDeque::from([event]);
        let mut messages = Vec::new();
        while let Some(event) = events.pop_front() {
            if let Event::Done(task) = event {
                drop(state.borrow_mut().forget(task));
            }
            let actions = state.borrow_mut().intake.handle(event, clock::now());
            for action in actions {
                match action {
                    Action::AskFor(task, digests) => messages.push(Message::Missing { task, digests }),
                    Action::Lease(task, operands) => events.extend(ServedStream::lease(state, task, operands)),
                    Action::Start(task, priority) => events.extend(ServedStream::start(state, task, priority)),
                    Action::Fail(task, error, retry_after) => state.borrow_mut().fail(task, error, retry_after),
                    Action::Drop(task) => state.borrow_mut().remove(task),
                    Action::Stop(task) => {
                        if let Some(accepted) = state.borrow().accepted.get(&task) {
                            accepted.cancel.cancel();
                        }
                    }
                    Action::Close(why) => return Err(StreamError::Unexpected(why)),
                }
            }
        }
        Ok(messages)
    }

    /// Leases memory for a task's result, within its peer's share: at once if available, otherwise the intake gets an event
    /// later.
    fn lease(state: &Rc<RefCell<ServedStream>>, task: TaskId, operands: [Digest; 2]) -> Option<Event> {
        let mut session = state.borrow_mut();
        let operation = session.accepted.get(&task)?.task.operation;
        let bytes = match session.result_bytes(operation, operands) {
            Ok(bytes) => bytes,
            Err(error) => return Some(Event::Unleased(task, error)),
        };
        let (devices, shares) = {
            let served = session.served.borrow();
            (served.devices.clone(), served.result_shares.clone())
        };
        let peer = session.peer;
        let accepted = session.accepted.get_mut(&task)?;
        if let Ok(share) = shares.take(peer, bytes)
            && let Ok(lease) = devices.lease(Kind::Results, bytes)
        {
            accepted.memory = Some(ResultMemory { _lease: lease, _share: share });
            return Some(Event::Leased(task));
        }
        let cancel = accepted.cancel.clone();
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            let event = match shares.take_soon(peer, bytes, RESULT_MEMORY_TIMEOUT).await {
                Err(refusal) => Err(Event::Untaken(task, refusal)),
                Ok(share) => match devices.lease_soon(Kind::Results, bytes, RESULT_MEMORY_TIMEOUT).await {
                    Ok(lease) => Ok(ResultMemory { _lease: lease, _share: share }),
                    Err(error) => Err(Event::Unleased(task, error)),
                },
            };
            // Another task may have this id by now.
            if cancel.is_cancelled() {
                return;
            }
            let event = event.map_or_else(
                |event| event,
                |memory| {
                    if let Some(accepted) = state.borrow_mut().accepted.get_mut(&task) {
                        accepted.memory = Some(memory);
                    }
                    Event::Leased(task)
                },
            );
            // None of these events produces a message to the peer.
            let _ = ServedStream::handle(&state, event);
        });
        None
    }

    fn result_bytes(&self, operation: Operation, operands: [Digest; 2]) -> Result<u64, Error> {
        let [a, b] = self.tensors(operands)?;
        let result = operation.gives((&a).into(), (&b).into()).and_then(|result| result.size_bytes());
        result.map_err(crate::compute_error)
    }

    /// Both operands, which must be in the store.
    fn tensors(&self, operands: [Digest; 2]) -> Result<[Tensor; 2], Error> {
        let mut served = self.served.borrow_mut();
        let mut get = |digest| served.store.get(self.peer, &digest);
        let [a, b] = operands;
        let gone = || Error::new(ErrorKind::Unavailable, "an operand of the task was evicted");
        Ok([get(a).ok_or_else(gone)?, get(b).ok_or_else(gone)?])
    }

    /// Hands a task to the executor.
    fn start(state: &Rc<RefCell<ServedStream>>, id: TaskId, priority: i8) -> Option<Event> {
        let mut session = state.borrow_mut();
        let executor = session.served.borrow().executor.clone();
        let replies = session.replies.clone();
        let owner = session.peer;
        let task = session.accepted.get(&id)?.task;
        let Task { operation, operands: keys, .. } = task;
        let [a, b] = match session.tensors(keys) {
            Ok(tensors) => tensors,
            Err(error) => {
                session.fail(id, error, None);
                return Some(Event::Done(id));
            }
        };
        let accepted = session.accepted.get_mut(&id)?;
        let place = accepted.place.take()?;
        let memory = accepted.memory.take();
        accepted.preparing = Span::none();
        let span = accepted.span.clone();
        let of_reply = span.clone();
        let (ended, end) = oneshot::channel();
        let counted = Arc::clone(&accepted.counted);
        let started = {
            let (replies, counted) = (replies.clone(), Arc::clone(&counted));
            Box::new(move || {
                counted.started();
                // A lost notice only makes the coordinator's predictions less accurate.
                let _ = replies.try_send(Reply::Message(Message::Started(id)));
            })
        };
        let of_result = Arc::clone(&counted);
        let done = Box::new(move |outcome: Outcome| {
            let (compute, fault, counted) = (outcome.compute, outcome.fault, of_result);
            place.send(match outcome.result {
                Ok(tensor) => {
                    let span = child!(&of_reply, "reply");
                    Reply::Result { task, tensor, compute, fault, memory, counted, span }
                }
                Err(error) => {
                    counted.end(TaskOutcome::of_error(&error));
                    traces::failed(&of_reply, error.kind());
                    Reply::Failure { task: id, error, retry_after: None }
                }
            });
            let _ = ended.send(());
        });
        let work = Work {
            operation,
            priority,
            a: (PackKey::Operand(keys[0]), a),
            b: (PackKey::Operand(keys[1]), b),
            keep_bytes: usize::MAX,
            cancel: accepted.cancel.clone(),
            owner: Some(owner),
            span,
            started: Some(started),
            done,
        };
        if let Err(error) = executor.submit(work) {
            counted.end(TaskOutcome::Refused);
            // The reserved place went with the work, so this reply takes an ordinary one.
            let _ = replies.try_send(Reply::Failure { task: id, error, retry_after: None });
            return Some(Event::Done(id));
        }
        drop(session);
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            // An error means that the executor dropped the work: the task has ended as well.
            let _ = end.await;
            let _ = ServedStream::handle(&state, Event::Done(id));
        });
        None
    }

    /// Sends the failure of a task that did not start.
    fn fail(&mut self, id: TaskId, error: Error, retry_after: Option<std::time::Duration>) {
        if let Some(accepted) = self.forget(id) {
            accepted.cancel.cancel();
            accepted.counted.end(TaskOutcome::Refused);
            traces::failed(&accepted.span, error.kind());
            if let Some(place) = accepted.place {
                place.send(Reply::Failure { task: id, error, retry_after });
            }
        }
    }

    /// Removes a task that did not start.
    fn remove(&mut self, id: TaskId) {
        if let Some(accepted) = self.forget(id) {
            accepted.cancel.cancel();
        }
    }

    /// Drops the resources of a task that has ended, and its place in the peer's quota.
    fn forget(&mut self, id: TaskId) -> Option<Accepted> {
        let accepted = self.accepted.remove(&id)?;
        if accepted.counts {
            self.served.borrow_mut().quotas.ended(self.peer);
        }
        Some(accepted)
    }

    /// Releases everything of this peer when its stream ends.
    fn end(&mut self) {
        let open: Vec<TaskId> = self.accepted.keys().copied().collect();
        open.into_iter().for_each(|task| drop(self.forget(task)));
        let mut served = self.served.borrow_mut();
        for (digest, _) in self.arriving.drain() {
            served.store.remove(self.peer, digest);
        }
        // A newer stream of the same peer may be open already; complete operands are kept for it.
        if served.places.of(&self.peer) == 0 {
            served.store.remove_owner(self.peer);
        }
        if served.places.is_free() {
            served.executor.forget_peers();
        }
    }
}
