//! Drives fetches on the network thread: sockets here, disk and hashing on blocking threads, decisions in
//! [`pangea_control::blob`]. One fetch per model runs at a time; others wait for it and then find its parts present.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::gguf::Gguf;
use pangea_compute::model::{Manifest, Wanted};
use pangea_compute::{Cancel, Digest};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking, spawn_local};
use tracing::Span;

use super::blob_store::BlobStore;
use super::limits::{ASKED_AHEAD, DOWNLOAD_MEMORY_TIMEOUT, EVENTS, FETCHES, LIARS, PROVIDERS, TICK};
use super::parts::{PartId, part_bytes, parts_of};
use super::provider::{self, Buffer, Received};
use super::stored::Stored;
use crate::clock;
use crate::devices::{Devices, Kind, Lease};
use crate::net::Network;
use crate::peers::Peers;
use crate::supervise::Supervisor;
use crate::traces::{self, entrance};
use crate::wire::TraceParent;
use pangea_control::blob::fetch::{Action, Event, Fetch, Outcome, ProviderId, max_buffers};
use pangea_units::LayerRange;

/// A request of the handle.
pub(super) struct Request {
    pub(super) model: Digest,
    pub(super) wanted: Wanted,
    /// Name of the model for log lines, if known.
    pub(super) name: Option<Arc<str>>,
    pub(super) providers: Vec<PeerId>,
    pub(super) cancel: Cancel,
    /// Present bytes and total bytes.
    pub(super) so_far: watch::Sender<(u64, u64)>,
    pub(super) answer: oneshot::Sender<Result<PathBuf>>,
}

/// State that all fetches share.
pub(super) struct Fetcher {
    blob_store: Arc<BlobStore>,
    network: Option<Network>,
    peers: Peers,
    devices: Devices,
    /// Peers that sent wrong bytes.
    liars: RefCell<HashSet<PeerId>>,
    under_way: RefCell<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    places: Semaphore,
}

impl Fetcher {
    /// Serves `requests` on the current `LocalSet` until the channel closes.
    pub(super) fn start(
        blob_store: Arc<BlobStore>,
        network: Option<Network>,
        peers: Peers,
        devices: Devices,
        mut requests: mpsc::Receiver<Request>,
        supervisor: &Supervisor,
    ) {
        let fetcher = Rc::new(Fetcher {
            blob_store,
            network,
            peers,
            devices,
            liars: RefCell::default(),
            under_way: RefCell::default(),
            places: Semaphore::new(FETCHES),
        });
        supervisor.task("blob fetches", async move {
            while let Some(request) = requests.recv().await {
                let fetcher = Rc::clone(&fetcher);
                spawn_local(async move {
                    let Request { model, wanted, name, providers, cancel, so_far, mut answer } = request;
                    let result = tokio::select! {
                        result = fetcher.run(model, wanted, name, providers, &so_far) => result,
                        () = unwanted(&cancel, &mut answer) => {
                            Err(Error::new(ErrorKind::Cancelled, "fetching the model was cancelled"))
                        }
                    };
                    // The requester may have gone.
                    let _ = answer.send(result);
                });
            }
            // All handles are dropped: the node ends, or never had a model.
            std::future::pending::<()>().await;
        });
    }

    async fn run(
        &self,
        model: Digest,
        wanted: Wanted,
        name: Option<Arc<str>>,
        providers: Vec<PeerId>,
        so_far: &watch::Sender<(u64, u64)>,
    ) -> Result<PathBuf> {
        let turn = self.turn(model);
        let _turn = turn.lock().await;
        let _place = self.places.acquire().await;
        let blob_store = Arc::clone(&self.blob_store);
        let stored = match blocking(move || Ok(blob_store.current(&model))).await? {
            Some(stored) => stored,
            None => {
                let manifest = Arc::new(self.manifest(model, &providers).await?);
                let blob_store = Arc::clone(&self.blob_store);
                blocking(move || blob_store.create(model, manifest)).await?
            }
        };
        stored.mark_used();
        let (stored, missing) = self.missing(stored, &wanted).await?;
        if let Some(name) = name {
            stored.call(name);
        }
        let total: u64 = parts_of(stored.manifest(), &wanted).map(|id| part_bytes(stored.manifest(), id)).sum();
        let left: u64 = missing.iter().map(|id| part_bytes(stored.manifest(), *id)).sum();
        so_far.send_replace((total - left, total));
        if missing.is_empty() {
            return Ok(stored.path().to_owned());
        }
        let span = entrance!("fetch", otel.kind = "client", pangea.model = %model, pangea.bytes = left as i64);
        let blob_store = Arc::clone(&self.blob_store);
        blocking(move || blob_store.make_room(left)).await?;
        let memory = Rc::new(self.memory(&stored, &missing, providers.len()).await?);
        // The header is fetched first: it must agree with the manifest before the rest is worth fetching.
        let (header, rest): (Vec<PartId>, Vec<PartId>) = missing.into_iter().partition(|id| id.piece == 0);
        let fetched_header = !header.is_empty();
        let mut transfer =
            Transfer { stored: &stored, what: what(&wanted), name: None, done: total - left, total, so_far, span };
        if fetched_header {
            self.fetch(header, &providers, &memory, &mut transfer).await?;
        }
        let file = Arc::clone(&stored);
        match blocking(move || judge(&file)).await {
            Ok(own) => transfer.name = Some(stored.name().cloned().unwrap_or_else(|| own.into())),
            Err(error) => {
                let blob_store = Arc::clone(&self.blob_store);
                blocking(move || {
                    blob_store.remove(&model);
                    Ok(())
                })
                .await?;
                return Err(error);
            }
        }
        if !rest.is_empty() {
            self.fetch(rest, &providers, &memory, &mut transfer).await?;
        }
        Ok(stored.path().to_owned())
    }

    /// The missing parts of `wanted`. A damaged file of the user's is replaced by a new copy.
    async fn missing(&self, stored: Arc<Stored>, wanted: &Wanted) -> Result<(Arc<Stored>, Vec<PartId>)> {
        let check = |stored: Arc<Stored>| {
            let wanted = wanted.clone();
            blocking(move || {
                let missing = stored.check(&wanted);
                Ok((stored, missing))
            })
        };
        let (stored, missing) = check(stored).await?;
        if missing.is_empty() || !stored.is_users() {
            return Ok((stored, missing));
        }
        let (blob_store, manifest) = (Arc::clone(&self.blob_store), Arc::clone(stored.manifest()));
        let model = stored.digest();
        let copy = blocking(move || blob_store.create(model, manifest)).await?;
        copy.mark_used();
        check(copy).await
    }

    /// The lock that lets one fetch per model run at a time.
    fn turn(&self, model: Digest) -> Rc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.borrow_mut();
        under_way.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = under_way.get(&model).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Rc::default();
        under_way.insert(model, Rc::downgrade(&turn));
        turn
    }

    /// The providers that have not sent wrong bytes.
    fn honest(&self, providers: &[PeerId]) -> Result<(&Network, Vec<PeerId>)> {
        let none = |why: &str| Err(Error::new(ErrorKind::Unavailable, format!("cannot fetch the model: {why}")));
        let Some(network) = &self.network else { return none("this node has no network") };
        let liars = self.liars.borrow();
        let is_honest = |peer: &PeerId| !liars.contains(peer) && self.peers.may_compute(peer);
        match askable(network.local_peer_id(), providers, is_honest) {
            Ok(honest) => Ok((network, honest)),
            Err(why) => none(why),
        }
    }

    fn lied(&self, peer: PeerId, model: Digest, why: &str) {
        let mut liars = self.liars.borrow_mut();
        if liars.len() < LIARS {
            liars.insert(peer);
        }
        tracing::warn!(
            event = "blob_lie", %peer, %model, why,
            "Peer {peer} sent wrong bytes of model {model} ({why}) and is not asked again"
        );
    }

    /// The model's manifest, from the first provider that sends the right one.
    async fn manifest(&self, model: Digest, providers: &[PeerId]) -> Result<Manifest> {
        let (network, providers) = self.honest(providers)?;
        let ask = |peer: PeerId| async move {
            let asked = async { provider::manifest(provider::open(network, peer).await?, model).await };
            (peer, asked.await)
        };
        let mut to_ask = providers.into_iter();
        let mut asked: FuturesUnordered<_> = to_ask.by_ref().take(PROVIDERS).map(ask).collect();
        let mut errors = Vec::new();
        while let Some((peer, answer)) = asked.next().await {
            match answer {
                Ok(manifest) => return Ok(manifest),
                Err(error) => {
                    if error.kind() == ErrorKind::VerificationFailed {
                        self.lied(peer, model, error.message());
                    }
                    errors.push((peer, error));
                }
            }
            asked.extend(to_ask.next().map(ask));
        }
        let all = |kind: ErrorKind| errors.iter().all(|(_, error)| error.kind() == kind);
        let kind = [ErrorKind::NotFound, ErrorKind::VerificationFailed].into_iter().find(|kind| all(*kind));
        let reasons: Vec<String> = errors.iter().map(|(peer, error)| format!("{peer}: {}", error.message())).collect();
        let what = format!("no peer has the manifest of model {model} ({})", reasons.join("; "));
        Err(Error::new(kind.unwrap_or(ErrorKind::Unavailable), what))
    }

    /// Leases memory for the parts that the fetch holds at once, or for a single one where there is less.
    async fn memory(&self, stored: &Stored, missing: &[PartId], providers: usize) -> Result<Memory> {
        let part = missing.iter().map(|id| part_bytes(stored.manifest(), *id)).max().unwrap_or(0).max(1);
        let most = part * max_buffers(missing.len(), providers) as u64;
        let leased = self.devices.lease_soon_up_to(Kind::Downloads, part, most, DOWNLOAD_MEMORY_TIMEOUT).await;
        let mut lease = leased.map_err(|error| {
            Error::new(
                error.kind(),
                format!("no memory for parts of the model {}: {}", stored.digest(), error.message()),
            )
        })?;
        let buffers = (lease.bytes() / part) as usize;
        lease.shrink(buffers as u64 * part);
        Ok(Memory { buffers, _lease: lease })
    }

    /// Fetches `parts` from `providers`.
    async fn fetch(
        &self,
        parts: Vec<PartId>,
        providers: &[PeerId],
        memory: &Rc<Memory>,
        transfer: &mut Transfer<'_>,
    ) -> Result<()> {
        let (network, providers) = self.honest(providers)?;
        let mut left: HashSet<PartId> = parts.iter().copied().collect();
        let names = providers.iter().map(PeerId::to_string).collect();
        let mut fetch = Fetch::new(parts, names, memory.buffers, clock::now());
        let (events, mut happened) = mpsc::channel(EVENTS);
        let shared = Rc::new(Shared {
            stored: Arc::clone(transfer.stored),
            places: Arc::new(Semaphore::new(memory.buffers)),
            spare: RefCell::default(),
            events,
            trace: traces::context(&transfer.span),
            _memory: Rc::clone(memory),
        });
        let mut streams =
            Streams { network, shared, providers: &providers, open: HashMap::new(), tasks: JoinSet::new(), opened: 0 };
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut actions = Vec::new();
        loop {
            let event = tokio::select! {
                Some((opened, event)) = happened.recv() => match event {
                    // Progress counts only after its stream was given up; other events are stale.
                    Event::Good { .. } | Event::Bad { .. } | Event::Failed(_) => event,
                    event if streams.is_open(opened) => event,
                    _ => continue,
                },
                _ = clock.tick() => Event::Tick,
            };
            match &event {
                Event::Good { part, .. } if left.remove(part) => transfer.came(*part),
                Event::Bad { provider, why } => self.lied(providers[*provider], transfer.stored.digest(), why),
                _ => {}
            }
            let outcome = fetch.handle(event, clock::now(), &mut actions);
            for action in actions.drain(..) {
                streams.act(action);
            }
            match outcome {
                Outcome::Going => {}
                Outcome::Done => return Ok(()),
                Outcome::Failed(error) => return Err(error),
            }
        }
    }
}

/// The peers to ask out of `providers`, each once, or why there is none. This node itself is left out, and its missing parts
/// are no fault of its own.
fn askable(
    local: PeerId,
    providers: &[PeerId],
    is_honest: impl Fn(&PeerId) -> bool,
) -> std::result::Result<Vec<PeerId>, &'static str> {
    let mut seen = HashSet::new();
    let others: Vec<PeerId> = providers.iter().copied().filter(|peer| *peer != local && seen.insert(*peer)).collect();
    if others.is_empty() {
        return Err("no other connected node has its file; restart the node that had it");
    }
    let honest: Vec<PeerId> = others.into_iter().filter(is_honest).collect();
    if honest.is_empty() {
        Err("the nodes that have its file are quarantined or have sent wrong bytes")
    } else {
        Ok(honest)
    }
}

/// Returns once the requester has gone or cancelled.
async fn unwanted(cancel: &Cancel, answer: &mut oneshot::Sender<Result<PathBuf>>) {
    let cancelled = async {
        let mut clock = tokio::time::interval(TICK);
        while !cancel.is_cancelled() {
            clock.tick().await;
        }
    };
    tokio::select! {
        () = cancelled => {}
        () = answer.closed() => {}
    }
}

/// Checks that a file whose header is present matches its manifest; returns the model's name.
fn judge(stored: &Stored) -> Result<String> {
    let judged = Gguf::open(stored.path()).and_then(|file| {
        stored.manifest().check_file(&file)?;
        Ok(file.metadata().get_str("general.name")?.unwrap_or("without a name").to_owned())
    });
    judged.map_err(|error| {
        let what = format!("the fetched parts of model {} are not a model file: {error}", stored.digest());
        Error::new(ErrorKind::VerificationFailed, what)
    })
}

/// Describes the wanted parts in a log line.
fn what(wanted: &Wanted) -> String {
    match &wanted.layers {
        layers if layers.is_empty() && !wanted.embedding && !wanted.head => "the header".to_owned(),
        layers if layers.is_empty() => "embedding and head".to_owned(),
        layers => format!("layers {}", LayerRange::from(layers)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let failed = |_| Error::new(ErrorKind::Internal, "work on a model file ended unexpectedly");
    spawn_blocking(work).await.map_err(failed)?
}

/// Progress of a fetch and its listener.
struct Transfer<'a> {
    stored: &'a Arc<Stored>,
    what: String,
    /// Name of the model, set once the header is present: the name it is served under, or the one in its file.
    name: Option<Arc<str>>,
    done: u64,
    total: u64,
    so_far: &'a watch::Sender<(u64, u64)>,
    span: Span,
}

impl Transfer<'_> {
    fn came(&mut self, part: PartId) {
        let tenth = |done: u64| done * 10 / self.total.max(1);
        let before = tenth(self.done);
        self.done += part_bytes(self.stored.manifest(), part);
        self.so_far.send_replace((self.done, self.total));
        if let Some(name) = self.name.as_ref().filter(|_| tenth(self.done) > before) {
            let (model, what, percent) = (self.stored.digest(), &self.what, self.done * 100 / self.total.max(1));
            tracing::info!(
                event = "model_fetch", %model, bytes = self.done, percent,
                "Model {name}: fetching {what}, {percent} %"
            );
        }
    }
}

/// Leased memory of one fetch.
struct Memory {
    /// Number of parts that it holds.
    buffers: usize,
    _lease: Lease,
}

/// One opened stream to a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opened {
    provider: ProviderId,
    /// Distinguishes this stream from earlier ones to the same provider.
    number: u64,
}

/// State that the conversations of one fetch share.
struct Shared {
    stored: Arc<Stored>,
    /// One permit per part in memory, from before it is received until it is written.
    places: Arc<Semaphore>,
    /// Buffers of parts that are written.
    spare: RefCell<Vec<Vec<u8>>>,
    events: mpsc::Sender<(Opened, Event)>,
    /// What its questions are a part of.
    trace: Option<TraceParent>,
    /// Kept until nothing of the fetch is being received or written any more.
    _memory: Rc<Memory>,
}

/// The streams of one fetch; dropping it closes them.
struct Streams<'a> {
    network: &'a Network,
    shared: Rc<Shared>,
    providers: &'a [PeerId],
    open: HashMap<ProviderId, (Opened, mpsc::Sender<PartId>, AbortHandle)>,
    tasks: JoinSet<()>,
    opened: u64,
}

impl Streams<'_> {
    fn is_open(&self, opened: Opened) -> bool {
        self.open.get(&opened.provider).is_some_and(|(current, ..)| *current == opened)
    }

    fn act(&mut self, action: Action) {
        // Ended conversations have reported their end already.
        while self.tasks.try_join_next().is_some() {}
        match action {
            Action::Open(provider) => {
                self.opened += 1;
                let opened = Opened { provider, number: self.opened };
                let (ask, asks) = mpsc::channel(ASKED_AHEAD);
                let (network, peer, shared) = (self.network.clone(), self.providers[provider], Rc::clone(&self.shared));
                let task = self.tasks.spawn_local(converse(network, peer, shared, opened, asks));
                self.open.insert(provider, (opened, ask, task));
            }
            Action::Ask(provider, part) => {
                if let Some((_, ask, _)) = self.open.get(&provider) {
                    // The queue holds everything that is asked ahead; a conversation that has ended reports it itself.
                    let _ = ask.try_send(part);
                }
            }
            Action::Close(provider) => {
                if let Some((_, _, task)) = self.open.remove(&provider) {
                    task.abort();
                }
            }
        }
    }
}

/// Runs one stream from opening to end and reports its events.
async fn converse(network: Network, peer: PeerId, shared: Rc<Shared>, opened: Opened, asks: mpsc::Receiver<PartId>) {
    let provider = opened.provider;
    let tell = async |event| drop(shared.events.send((opened, event)).await);
    // Ends when no received part is being written any more.
    let (writing, mut written) = mpsc::channel::<()>(1);
    let result = match provider::open(&network, peer).await {
        Err(error) => Err(error),
        Ok(stream) => {
            let buffer = async || {
                // The places are never closed; without one, nothing bounds what is received.
                let place = Arc::clone(&shared.places).acquire_owned().await.ok();
                Buffer { bytes: shared.spare.borrow_mut().pop().unwrap_or_default(), _place: place }
            };
            let (manifest, model) = (Arc::clone(shared.stored.manifest()), shared.stored.digest());
            provider::converse(stream, model, &manifest, shared.trace, asks, buffer, async |heard| match heard {
                Received::Has(has) => tell(Event::Opened { provider, has }).await,
                Received::Lacks(part) => tell(Event::Lacks { provider, part }).await,
                Received::Bytes(part, buffer) => {
                    let (shared, writing) = (Rc::clone(&shared), writing.clone());
                    spawn_local(async move {
                        let event = write(&shared, provider, part, buffer).await;
                        drop(writing);
                        let _ = shared.events.send((opened, event)).await;
                    });
                }
            })
            .await
        }
    };
    drop(writing);
    let _ = written.recv().await;
    match result {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::VerificationFailed => {
            tell(Event::Bad { provider, why: error.message().to_owned() }).await;
        }
        Err(error) => tell(Event::Lost { provider, error }).await,
    }
}

/// Checks and writes a part.
async fn write(shared: &Shared, provider: ProviderId, part: PartId, buffer: Buffer) -> Event {
    let stored = Arc::clone(&shared.stored);
    let written = spawn_blocking(move || (stored.write(part, &buffer.bytes), buffer));
    let result = match written.await {
        Ok((result, buffer)) => {
            shared.spare.borrow_mut().push(buffer.bytes);
            result
        }
        Err(_) => Err(Error::new(ErrorKind::Internal, "writing a part of a model ended unexpectedly")),
    };
    match result {
        Ok(()) => Event::Good { provider, part },
        Err(error) if error.kind() == ErrorKind::VerificationFailed => {
            Event::Bad { provider, why: error.message().to_owned() }
        }
        Err(error) => Event::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_provider_is_blamed_when_only_this_node_is_left() {
        let [local, other, liar] = [(); 3].map(|()| PeerId::random());
        let is_honest = |peer: &PeerId| *peer != liar;
        assert_eq!(askable(local, &[local, other, other, liar], is_honest), Ok(vec![other]));
        for holders in [&[][..], &[local]] {
            assert!(askable(local, holders, is_honest).unwrap_err().contains("no other connected node"));
        }
        assert!(askable(local, &[local, liar], is_honest).unwrap_err().contains("wrong bytes"));
    }
}
