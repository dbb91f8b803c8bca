//! The worker's side of a task stream: bytes in, bytes out. Which task is taken, starts and ends is decided by
//! [`pangea_control::tasks`]; this file receives operands, leases memory, hands work to the executor and sends replies.

mod replies;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::PeerId;
use pangea_client::{Error, ErrorKind};
use pangea_compute::{Cancel, Digest, Tensor, TensorBuf};
use pangea_control::tasks::{Action, Event, Intake, Refusal, Terms};
use tokio::sync::{Notify, mpsc, oneshot};

use self::replies::{Reply, reply, write_all};
use super::limits::{HELLO_TIMEOUT, REPLY_QUEUE, TASKS_PER_PEER};
use crate::clock;
use crate::devices::{Devices, Kind, Lease};
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::wire::{Header, Message, Operation, Shape, Task, TaskHello, TaskId, VERSION};
use crate::worker::executor::{Executor, Outcome, PackKey, Work};
use crate::worker::store::{Admission, OperandStore};

/// How long a task waits for the memory of its result: results before it are sent within seconds, or the peer is too slow for
/// another one.
const RESULT_PATIENCE: Duration = Duration::from_secs(10);

/// What all links that this node serves share.
pub struct Served {
    /// Operands of every peer.
    pub store: OperandStore<PeerId>,
    /// Where tasks are computed.
    pub executor: Executor,
    /// Where memory for results comes from.
    pub devices: Devices,
    /// Tasks done since the start.
    pub tasks_done: u64,
    /// Tensor bytes received as operands.
    pub bytes_received: u64,
    /// Tensor bytes sent as results.
    pub bytes_sent: u64,
    /// Streams of each peer that are being served.
    pub sessions: HashMap<PeerId, u32>,
    /// Who may compute, and be computed for.
    pub peers: Peers,
    /// Set when the node drains: no new tasks.
    pub draining: bool,
}

impl Served {
    /// No peer served yet.
    pub fn new(devices: Devices, executor: Executor, peers: Peers) -> Served {
        Served {
            store: OperandStore::new(devices.clone()),
            executor,
            devices,
            tasks_done: 0,
            bytes_received: 0,
            bytes_sent: 0,
            sessions: HashMap::new(),
            peers,
            draining: false,
        }
    }

    /// Why no task of this peer is taken, if so.
    fn refusal(&self, peer: &PeerId) -> Option<Refusal> {
        match () {
            () if !self.peers.may_compute(peer) => Some(Refusal::Quarantined),
            () if self.draining => Some(Refusal::Draining),
            () => None,
        }
    }
}

/// Serves `stream` from `peer` until it ends; returns why. Runs on the current `LocalSet`.
pub async fn serve<S>(stream: S, peer: PeerId, advert: TaskHello, served: Rc<RefCell<Served>>) -> StreamError
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
        intake: Intake::new(TASKS_PER_PEER),
        accepted: HashMap::new(),
        deadlines: Rc::default(),
    }));
    let why = tokio::select! {
        why = read_all(FrameReader::new(read), &state) => why,
        why = write_all(FrameWriter::new(write), outbox, advert, peer, &served) => why,
        never = keep_time(&state) => match never {},
    };
    // No messages come of the end.
    let _ = Session::handle(&state, Event::Ended);
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
    intake: Intake,
    /// What each task of the intake has here.
    accepted: HashMap<TaskId, Accepted>,
    /// A task with a deadline came.
    deadlines: Rc<Notify>,
}

struct Arriving {
    /// `None` once it is whole and being hashed.
    buffer: Option<TensorBuf>,
    received: u64,
}

struct Accepted {
    task: Task,
    cancel: Cancel,
    /// Its place among the replies, so that the executor never waits to hand over a result; gone once the executor has the task.
    place: Option<mpsc::OwnedPermit<Reply>>,
    /// Memory for the result.
    lease: Option<Lease>,
}

async fn read_all<R: AsyncRead + Unpin>(mut frames: FrameReader<R>, state: &Rc<RefCell<Session>>) -> StreamError {
    match read(&mut frames, state).await {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn read<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<Session>>,
) -> Result<std::convert::Infallible, StreamError> {
    match tokio::time::timeout(HELLO_TIMEOUT, frames.receive()).await {
        Ok(first) => match first?.0 {
            Message::Hello(advert) if advert.version >= VERSION => {}
            Message::Hello(advert) => {
                return Err(StreamError::Unexpected(format!(
                    "the peer speaks version {}, this node {VERSION}",
                    advert.version
                )));
            }
            other => return Err(StreamError::Unexpected(format!("`{}` where an advert belongs", other.name()))),
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
            Message::Task(task) => Session::accept(state, task, &replies).await?,
            Message::Cancel(task) => drop(Session::handle(state, Event::Cancel(task))?),
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

/// Receives one piece of an operand. Pieces of one operand come in order.
async fn operand<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    state: &Rc<RefCell<Session>>,
    digest: Digest,
    shape: Shape,
    offset: u64,
    payload: usize,
) -> Result<(), StreamError> {
    if offset == 0 && !state.borrow().arriving.contains_key(&digest) {
        let evicted = Session::announce(state, digest, shape)?;
        let replies = state.borrow().replies.clone();
        for gone in evicted {
            reply(&replies, Reply::Message(Message::Evicted(gone))).await?;
        }
    }
    // The buffer leaves the session while the payload is read, so that nothing is borrowed across the wait.
    let taken = match state.borrow_mut().arriving.get_mut(&digest) {
        Some(arriving) if arriving.buffer.is_some() => {
            if arriving.received != offset {
                return Err(StreamError::Unexpected(format!(
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
        return Err(StreamError::Unexpected("an operand changed its shape on the way".to_owned()));
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
            let error = Error::new(ErrorKind::InvalidInput, format!("operand {digest} is not what its digest says"));
            Event::Refused(digest, error)
        }
    };
    // Neither asks the peer for anything.
    let _ = Session::handle(&state, event);
}

/// Tells the intake when a deadline has passed.
async fn keep_time(state: &Rc<RefCell<Session>>) -> std::convert::Infallible {
    let deadlines = Rc::clone(&state.borrow().deadlines);
    loop {
        let wake = state.borrow().intake.wake_at();
        tokio::select! {
            () = tokio::time::sleep_until(clock::instant(wake.unwrap_or(pangea_control::Time::ZERO))), if wake.is_some() => {
                // Nothing is asked of the peer.
                let _ = Session::handle(state, Event::Tick);
            }
            () = deadlines.notified() => {}
        }
    }
}

impl Session {
    /// Makes room for an operand, or notes why there is none. Returns what had to go for it.
    fn announce(state: &Rc<RefCell<Session>>, digest: Digest, shape: Shape) -> Result<Vec<Digest>, StreamError> {
        let (event, evicted) = state.borrow_mut().admit(digest, shape);
        if let Some(event) = event {
            Session::handle(state, event)?;
        }
        Ok(evicted)
    }

    fn admit(&mut self, digest: Digest, shape: Shape) -> (Option<Event>, Vec<Digest>) {
        let store = &mut self.served.borrow_mut().store;
        let evicted = match store.admit(self.peer, digest, shape.size_bytes(), |digest| self.intake.needs(digest)) {
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

    /// Takes a task in: it fails, waits for operands, or starts.
    async fn accept(
        state: &Rc<RefCell<Session>>,
        task: Task,
        replies: &mpsc::Sender<Reply>,
    ) -> Result<(), StreamError> {
        let Ok(place) = replies.clone().reserve_owned().await else { return Err(StreamError::Closed) };
        let event = {
            let mut session = state.borrow_mut();
            let operands = operands(&task);
            let (held, whole, refusal) = {
                let mut served = session.served.borrow_mut();
                let held = operands.map(|digest| served.store.knows(session.peer, &digest));
                let whole = operands.map(|digest| served.store.get(session.peer, &digest).is_some());
                (held, whole, served.refusal(&session.peer))
            };
            if let std::collections::hash_map::Entry::Vacant(entry) = session.accepted.entry(task.id) {
                entry.insert(Accepted { task, cancel: Cancel::new(), place: Some(place), lease: None });
            }
            if task.deadline.is_some() {
                session.deadlines.notify_one();
            }
            let terms = Terms { task: task.id, operands, priority: task.priority, deadline: task.deadline };
            Event::Task { terms, held, whole, refusal }
        };
        for message in Session::handle(state, event)? {
            reply(replies, Reply::Message(message)).await?;
        }
        Ok(())
    }

    /// Lets the intake decide on what happened and does what it says; returns what is to be asked of the peer.
    fn handle(state: &Rc<RefCell<Session>>, event: Event) -> Result<Vec<Message>, StreamError> {
        let mut events = VecDeque::from([event]);
        let mut messages = Vec::new();
        while let Some(event) = events.pop_front() {
            if let Event::Done(task) = event {
                state.borrow_mut().accepted.remove(&task);
            }
            let actions = state.borrow_mut().intake.handle(event, clock::now());
            for action in actions {
                match action {
                    Action::AskFor(task, digests) => messages.push(Message::Missing { task, digests }),
                    Action::Lease(task, operands) => events.extend(Session::lease(state, task, operands)),
                    Action::Start(task, priority) => events.extend(Session::start(state, task, priority)),
                    Action::Fail(task, error) => state.borrow_mut().fail(task, error),
                    Action::Drop(task) => state.borrow_mut().forget(task),
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

    /// Leases memory for a task's result: at once where there is some, otherwise the intake hears of it later.
    fn lease(state: &Rc<RefCell<Session>>, task: TaskId, operands: [Digest; 2]) -> Option<Event> {
        let mut session = state.borrow_mut();
        let bytes = match session.result_bytes(operands) {
            Ok(bytes) => bytes,
            Err(error) => return Some(Event::Unleased(task, error)),
        };
        let devices = session.served.borrow().devices.clone();
        let accepted = session.accepted.get_mut(&task)?;
        if let Ok(lease) = devices.lease(Kind::Results, bytes) {
            accepted.lease = Some(lease);
            return Some(Event::Leased(task));
        }
        let cancel = accepted.cancel.clone();
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            let leased = devices.lease_soon(Kind::Results, bytes, RESULT_PATIENCE).await;
            // Another task may have the number by now.
            if cancel.is_cancelled() {
                return;
            }
            let event = match leased {
                Ok(lease) => {
                    if let Some(accepted) = state.borrow_mut().accepted.get_mut(&task) {
                        accepted.lease = Some(lease);
                    }
                    Event::Leased(task)
                }
                Err(error) => Event::Unleased(task, error),
            };
            // Neither asks the peer for anything.
            let _ = Session::handle(&state, event);
        });
        None
    }

    fn result_bytes(&self, operands: [Digest; 2]) -> Result<u64, Error> {
        let [a, b] = self.tensors(operands)?;
        let sizes = pangea_compute::product_bytes(a.shape(), b.shape(), a.dtype(), b.dtype());
        Ok(sizes.map_err(crate::compute_error)?.c)
    }

    /// Both operands, which are here.
    fn tensors(&self, operands: [Digest; 2]) -> Result<[Tensor; 2], Error> {
        let mut served = self.served.borrow_mut();
        let mut get = |digest| served.store.get(self.peer, &digest);
        let [a, b] = operands;
        let gone = || Error::new(ErrorKind::Unavailable, "an operand of the task is not here any more");
        Ok([get(a).ok_or_else(gone)?, get(b).ok_or_else(gone)?])
    }

    /// Hands a task to the executor.
    fn start(state: &Rc<RefCell<Session>>, id: TaskId, priority: i8) -> Option<Event> {
        let mut session = state.borrow_mut();
        let executor = session.served.borrow().executor.clone();
        let replies = session.replies.clone();
        let owner = session.peer;
        let keys = operands(&session.accepted.get(&id)?.task);
        let [a, b] = match session.tensors(keys) {
            Ok(tensors) => tensors,
            Err(error) => {
                session.fail(id, error);
                return Some(Event::Done(id));
            }
        };
        let accepted = session.accepted.get_mut(&id)?;
        let place = accepted.place.take()?;
        let memory = accepted.lease.take();
        let (ended, end) = oneshot::channel();
        let started = {
            let replies = replies.clone();
            Box::new(move || {
                // A lost notice costs a little accuracy of the coordinator's predictions, nothing else.
                let _ = replies.try_send(Reply::Message(Message::Started(id)));
            })
        };
        let done = Box::new(move |outcome: Outcome| {
            let (compute, fault) = (outcome.compute, outcome.fault);
            place.send(match outcome.result {
                Ok(tensor) => Reply::Result { task: id, tensor, compute, fault, memory },
                Err(error) => Reply::Failure { task: id, error },
            });
            let _ = ended.send(());
        });
        let work = Work {
            priority,
            a: (PackKey::Operand(keys[0]), a),
            b: (PackKey::Operand(keys[1]), b),
            keep_bytes: usize::MAX,
            cancel: accepted.cancel.clone(),
            owner: Some(owner),
            started: Some(started),
            done,
        };
        if let Err(error) = executor.submit(work) {
            // The place went with the work, so this answer goes the ordinary way.
            let _ = replies.try_send(Reply::Failure { task: id, error });
            return Some(Event::Done(id));
        }
        drop(session);
        let state = Rc::clone(state);
        tokio::task::spawn_local(async move {
            // An error means that the executor dropped the work: it is over as well.
            let _ = end.await;
            let _ = Session::handle(&state, Event::Done(id));
        });
        None
    }

    /// Answers a task that did not start.
    fn fail(&mut self, id: TaskId, error: Error) {
        if let Some(accepted) = self.accepted.remove(&id) {
            accepted.cancel.cancel();
            if let Some(place) = accepted.place {
                place.send(Reply::Failure { task: id, error });
            }
        }
    }

    /// Forgets a task that did not start.
    fn forget(&mut self, id: TaskId) {
        if let Some(accepted) = self.accepted.remove(&id) {
            accepted.cancel.cancel();
        }
    }

    /// The stream is over: nothing of this peer's stays.
    fn end(&mut self) {
        self.accepted.clear();
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
        if served.sessions.is_empty() {
            served.executor.forget_peers();
        }
    }
}

fn operands(task: &Task) -> [Digest; 2] {
    match task.operation {
        Operation::MatMul { a, b } => [a, b],
    }
}
