//! Links to peers on `/pangea/session/1`: a handle that sends from any thread, and the driver on the network thread that
//! owns the streams. Links deliver messages in order and report lost peers; they do not know what messages mean.
//!
//! A link consists of the stream that this node opened to a peer, on which it sends, and the one that the peer opened,
//! on which it receives. They start and end together (`link_state`), so that after a loss was reported no earlier message
//! arrives.

mod stream;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use libp2p::{PeerId, Stream, StreamProtocol};
use pangea_client::{Error, ErrorKind};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::limits::{QUEUE_BYTES, QUEUE_MESSAGES};
pub use super::payload::Payload;
use super::wire::{Message, PROTOCOL};
use crate::clock;
use crate::net::{Follower, IncomingStreams, NetEvent, Network};
use crate::peers::Peers;
use crate::wire::Header;
use pangea_control::session::link_state::{Action, Event, LinkStates, StreamId};

/// Receives messages. Called on the network thread (for messages to this node itself: on the sender's), and must return
/// at once.
pub trait Inbox: Send + Sync + 'static {
    /// Whether a message may come, asked before its payload is read. A message that may not is not delivered, and what its
    /// sender has to know is sent here.
    fn admits(&self, from: PeerId, message: &Message) -> bool;

    /// A message arrived; messages of one sender arrive in the order of sending.
    fn message(&self, from: PeerId, message: Message, payload: Payload);

    /// The link to a peer was lost; reported once per loss. Messages from and to the peer may be lost; no earlier
    /// message arrives later.
    fn peer_gone(&self, peer: PeerId, why: &str);
}

/// Sends messages to peers. Clones share the links; sending never waits.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    local: PeerId,
    inbox: Arc<dyn Inbox>,
    queues: RwLock<HashMap<PeerId, SendQueue>>,
}

/// The queue of an open stream.
#[derive(Clone)]
struct SendQueue {
    messages: mpsc::Sender<Vec<Queued>>,
    /// Bytes of payloads in the queue.
    bytes: Arc<AtomicUsize>,
}

/// A queued message.
struct Queued {
    message: Message,
    payload: Payload,
}

impl Links {
    /// Sends `message` with `payload` (the tokens of an opening are its payload; pass none). The message is queued when
    /// this returns; if it cannot arrive, [`Inbox::peer_gone`] follows. A message to this node itself is delivered
    /// before this returns.
    ///
    /// # Errors
    /// `InvalidInput` if the message is malformed, `Unavailable` without a link to the peer, `Overloaded`
    /// if its queue is full.
    pub fn send(&self, to: PeerId, message: Message, payload: Payload) -> Result<(), Error> {
        self.send_all(to, vec![(message, payload)])
    }

    /// Sends several messages in this order, all or none: the network thread wakes up once for them, and they share packets.
    ///
    /// # Errors
    /// Those of [`Links::send`], for the first invalid message.
    pub fn send_all(&self, to: PeerId, messages: Vec<(Message, Payload)>) -> Result<(), Error> {
        let mut queued = Vec::with_capacity(messages.len());
        for (message, payload) in messages {
            let payload = message.outgoing(payload);
            message.check_sendable(payload.len()).map_err(|error| {
                Error::new(ErrorKind::InvalidInput, format!("invalid `{}` message: {error}", message.name()))
            })?;
            queued.push(Queued { message, payload });
        }
        if to == self.shared.local {
            for Queued { message, payload } in queued {
                let (message, payload) = message.incoming(payload);
                self.shared.inbox.message(to, message, payload);
            }
            return Ok(());
        }
        let unavailable = || Error::new(ErrorKind::Unavailable, format!("there is no session stream to {to}"));
        let queue = self.shared.queue(&to).ok_or_else(unavailable)?;
        let len = queued.iter().map(|queued| queued.payload.len()).sum();
        let before = queue.bytes.fetch_add(len, Ordering::Relaxed);
        let sent = if before != 0 && before + len > QUEUE_BYTES {
            Err(overloaded(&to))
        } else {
            queue.messages.try_send(queued).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => overloaded(&to),
                mpsc::error::TrySendError::Closed(_) => unavailable(),
            })
        };
        if sent.is_err() {
            queue.bytes.fetch_sub(len, Ordering::Relaxed);
        }
        sent
    }

    /// Whether messages to `peer` can be sent: a stream to it is open. Always true for this node.
    pub fn connected(&self, peer: &PeerId) -> bool {
        *peer == self.shared.local || self.shared.queue(peer).is_some()
    }
}

fn overloaded(to: &PeerId) -> Error {
    Error::new(ErrorKind::Overloaded, format!("the send queue to {to} is full; try again later"))
}

impl Shared {
    fn queue(&self, peer: &PeerId) -> Option<SendQueue> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<PeerId, SendQueue>)) {
        change(&mut self.queues.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The links of `network`. Must be called once per network, before the first connection; the driver must be run.
pub fn links(network: Network, net_events: Follower, inbox: Arc<dyn Inbox>, peers: Peers) -> (Links, LinksDriver) {
    let local = network.local_peer_id();
    let shared = Arc::new(Shared { local, inbox, queues: RwLock::default() });
    let incoming = network.accept(StreamProtocol::new(PROTOCOL));
    if incoming.is_err() {
        tracing::error!(
            event = "links_twice",
            "the session protocol of this network has a handler already; its links stay closed"
        );
    }
    let core = Core {
        shared: Arc::clone(&shared),
        network,
        peers,
        link_states: LinkStates::default(),
        running: HashMap::new(),
    };
    (Links { shared }, LinksDriver { core: Rc::new(RefCell::new(core)), net_events, incoming: incoming.ok() })
}

/// Opens, accepts, reads and writes the streams, on the `LocalSet` of the network thread.
pub struct LinksDriver {
    core: Rc<RefCell<Core>>,
    net_events: Follower,
    incoming: Option<IncomingStreams>,
}

struct Core {
    shared: Arc<Shared>,
    network: Network,
    peers: Peers,
    link_states: LinkStates,
    running: HashMap<StreamId, OpenStream>,
}

/// A stream and its task.
struct OpenStream {
    task: AbortHandle,
    /// Queue of a stream that this node opened.
    queue: Option<SendQueue>,
}

impl LinksDriver {
    /// Runs until the network ends. Must run on a `LocalSet`.
    pub async fn run(self) {
        let LinksDriver { core, mut net_events, incoming } = self;
        let Some(mut incoming) = incoming else { return };
        loop {
            // Nothing here waits for anything else: a stream that arrives while nobody is in `next` is lost.
            tokio::select! {
                Some((peer, stream)) = incoming.next() => accept(&core, peer, stream),
                event = net_events.recv() => match event {
                    Some(NetEvent::PeerUp { peer, .. }) => handle(&core, peer, Event::Up),
                    Some(NetEvent::PeerDown { peer, why, .. }) => handle(&core, peer, Event::Down(why)),
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }
}

/// Reads a stream that a peer opened.
fn accept(core: &Rc<RefCell<Core>>, peer: PeerId, stream: Stream) {
    if !core.borrow().peers.may_compute(&peer) {
        tracing::debug!(event = "session_stream_refused", %peer, "the peer is quarantined");
        return;
    }
    let id = core.borrow_mut().link_states.number();
    handle(core, peer, Event::Accepted(id));
    let inbox = Arc::clone(&core.borrow().shared.inbox);
    let reading = Rc::clone(core);
    let task = tokio::task::spawn_local(async move {
        let why = stream::read_all(stream, peer, &*inbox).await;
        handle(&reading, peer, Event::Ended(id, why.to_string()));
    });
    core.borrow_mut().running.insert(id, OpenStream { task: task.abort_handle(), queue: None });
}

/// Opens a stream to a peer and writes its queued messages.
fn open(core: &Rc<RefCell<Core>>, peer: PeerId, id: StreamId, after: Duration) {
    let control = core.borrow().network.streams();
    let (sender, mut queued) = mpsc::channel(QUEUE_MESSAGES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue = SendQueue { messages: sender, bytes: Arc::clone(&bytes) };
    let writing = Rc::clone(core);
    let task = tokio::task::spawn_local(async move {
        tokio::time::sleep(after).await;
        let why = match stream::open(control, peer).await {
            Err(why) => why.to_string(),
            Ok(stream) => {
                handle(&writing, peer, Event::Opened(id));
                stream::write_all(stream, &mut queued, &bytes).await.to_string()
            }
        };
        handle(&writing, peer, Event::Ended(id, why));
    });
    core.borrow_mut().running.insert(id, OpenStream { task: task.abort_handle(), queue: Some(queue) });
}

/// Passes an event to the link's state machine and executes the actions.
fn handle(core: &Rc<RefCell<Core>>, peer: PeerId, event: Event) {
    tracing::debug!(event = "session_link", %peer, what = ?event);
    if let Event::Ended(id, _) = &event {
        core.borrow_mut().running.remove(id);
    }
    let actions = core.borrow_mut().link_states.handle(peer, event, clock::now());
    for action in actions {
        match action {
            Action::Open(id, after) => open(core, peer, id, after),
            Action::Route(id) => {
                let core = core.borrow();
                if let Some(queue) = core.running.get(&id).and_then(|running| running.queue.clone()) {
                    core.shared.change(|queues| drop(queues.insert(peer, queue)));
                }
            }
            Action::Drop(id) => {
                if let Some(running) = core.borrow_mut().running.remove(&id) {
                    running.task.abort();
                }
            }
            Action::Gone(why) => {
                let shared = Arc::clone(&core.borrow().shared);
                shared.change(|queues| drop(queues.remove(&peer)));
                shared.inbox.peer_gone(peer, &why);
            }
        }
    }
}
