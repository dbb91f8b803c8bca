//! The stages of this node and the sessions that it coordinates, and the routing of their messages: messages to this
//! node itself never touch the network. `routing` is the way of a message that arrives; `stage_table` finds the stage of a chain.

mod routing;
mod stage_table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::draft::DraftModel;
use pangea_compute::engine;
use pangea_compute::model::PageBudget;
use tokio::sync::{mpsc, watch};

use stage_table::StageTable;

use super::limits::MAX_PAYLOAD_BYTES;
use super::links::Links;
use super::payload::Payload;
use super::running_pass::RunningPass;
use super::stage::{Stage, StageEvent};
use super::wire::{ChainId, Message, SessionId, StageAt};
use crate::clock;
use crate::devices::Lease;
use crate::engine_metrics::EngineMetrics;
use crate::fault::Fault;
use crate::model_text::ModelText;
use crate::observe::Observer;
use crate::pool::StagePace;
use crate::rows::RowOpener;
use crate::supervise::{Part, Supervisor};
use pangea_control::Time;
use pangea_control::session::Drafts;
use pangea_control::session::batch::BatchLimits;
use pangea_control::session::coordinated::CoordinatedSessions;
use pangea_control::session::gate::{Gate, MessageBytes};

/// Rows of the frames that a sender's share of a stage's queue is counted in: more than a first stage puts into one.
const FRAME_ROWS: u64 = 1024;

/// Bytes that a message takes in a queue beside its payload.
const MESSAGE_BYTES: u64 = 256;

/// The parts of a stage.
pub struct StageSetup {
    /// The chain.
    pub chain: ChainId,
    /// All stages of the chain.
    pub stages: Vec<StageAt>,
    /// Index of this stage.
    pub index: usize,
    /// Its layers on the engine that computes them; stages of several chains may share the weights.
    pub model: Arc<engine::Stage>,
    /// Memory for keys and values.
    pub budget: PageBudget,
    /// On the first stage, the limits of its batch.
    pub limits: Option<BatchLimits>,
    /// On the first stage, when tokens are drafted,
    pub drafts: Drafts,
    /// and the small model that drafts beside the text itself, if there is one.
    pub draft: Option<DraftModel>,
    /// On the last stage, the text side of the model.
    pub text: Option<Arc<ModelText>>,
    /// Name of the model, for the log and for metrics.
    pub name: String,
    /// Metrics of the model's engine.
    pub metrics: Arc<EngineMetrics>,
    /// Leases of the weights and of the sessions, held as long as the stage uses them.
    pub memory: Arc<[Lease]>,
}

/// An event for the coordinator of a session.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a peer that is gone is rare")]
pub enum SessionEvent {
    /// A message from a stage.
    Message {
        /// The stage's node.
        from: PeerId,
        /// The message.
        message: Message,
        /// Payload of the message.
        payload: Payload,
    },
    /// A peer can no longer be reached; the coordinator knows whether the session needs it.
    PeerGone {
        /// Id of the peer.
        peer: PeerId,
        /// Reason.
        why: String,
    },
}

/// Called when a message arrives for a chain without a stage on this node.
type OnUnknown = Box<dyn Fn(ChainId) + Send + Sync>;

/// The stages and sessions of a node; clones share them.
#[derive(Clone)]
pub struct Pipeline(Arc<Inner>);

struct Inner {
    local: PeerId,
    /// Signs the claims of stages on this node.
    keypair: Keypair,
    fault: OnceLock<Fault>,
    /// Whether a one-time fault has happened.
    faulted: AtomicBool,
    links: OnceLock<Links>,
    rows: OnceLock<RowOpener>,
    stages: Mutex<StageTable<StageHandle>>,
    /// The sessions that this node coordinates.
    sessions: Mutex<CoordinatedSessions<mpsc::Sender<SessionEvent>>>,
    on_unknown: OnceLock<OnUnknown>,
    /// Number of chains that have failed.
    breaks: watch::Sender<u64>,
    supervisor: Supervisor,
}

/// The layers of a stage on this node, for passes besides those of its sessions.
#[derive(Clone)]
pub struct StageLayers {
    /// The layers.
    pub model: Arc<engine::Stage>,
    /// The stage's memory for keys and values.
    pub budget: PageBudget,
    /// Keeps the leases of weights and sessions.
    pub memory: Arc<[Lease]>,
}

struct StageHandle {
    /// Name of the model.
    name: String,
    events: SyncSender<StageEvent>,
    /// `None` where they are of no use any more.
    layers: Option<StageLayers>,
    /// Decides who may send what to the stage.
    gate: Gate,
    /// On the first stage, the pass that is computed now. Later stages finish what they were sent: sequences that continue
    /// another one's cache were decided on already.
    running: Option<RunningPass>,
    load: StageLoad,
    /// When the stage was started, or its load changed last.
    used_at: Time,
    broken: bool,
    /// Whether another stage reported the chain's failure before it failed here.
    broke_elsewhere: bool,
    /// The stage's thread.
    _part: Part,
}

/// Load of a stage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageLoad {
    /// Running sequences, if this stage schedules them.
    pub(super) running: usize,
    /// Waiting sequences, if this stage schedules them.
    pub(super) waiting: usize,
    /// Sessions of the stage.
    pub(super) sessions: usize,
    /// How fast the stage and the rest of its chain are, once measured.
    pub(super) pace: Option<StagePace>,
}

impl Pipeline {
    /// The pipeline of a node with this key pair, without links. `supervisor` supervises the stages' threads.
    pub fn new(keypair: Keypair, supervisor: Supervisor) -> Pipeline {
        Pipeline(Arc::new(Inner {
            local: keypair.public().to_peer_id(),
            keypair,
            fault: OnceLock::new(),
            faulted: AtomicBool::new(false),
            links: OnceLock::new(),
            rows: OnceLock::new(),
            stages: Mutex::default(),
            sessions: Mutex::default(),
            on_unknown: OnceLock::new(),
            breaks: watch::Sender::new(0),
            supervisor,
        }))
    }

    /// Sets the links to other nodes. Only the first call counts.
    pub fn attach(&self, links: Links) {
        let _ = self.0.links.set(links);
    }

    /// Sets where stages without exact bits keep their rows, and how those of other nodes are opened. Only the first call counts.
    pub fn open_with(&self, rows: RowOpener) {
        let _ = self.0.rows.set(rows);
    }

    /// Where rows are kept and how they are opened.
    pub fn rows(&self) -> Option<&RowOpener> {
        self.0.rows.get()
    }

    /// Sets the function that starts a chain for which a message arrives. Only the first call counts.
    pub fn on_unknown(&self, call: impl Fn(ChainId) + Send + Sync + 'static) {
        let _ = self.0.on_unknown.set(Box::new(call));
    }

    /// Peer id of this node.
    pub fn local(&self) -> PeerId {
        self.0.local
    }

    /// Key pair with which stages and coordinators on this node sign.
    pub fn keypair(&self) -> &Keypair {
        &self.0.keypair
    }

    /// Supervisor of this node's threads.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// Injects a fault into the stages of this node, for tests.
    pub fn set_fault(&self, fault: Fault) {
        let _ = self.0.fault.set(fault);
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.0.fault.get().copied()
    }

    /// Waits where the node is to hash files late, until `signal` exists.
    pub(crate) fn fault_before_hash(&self, signal: &Path) {
        while self.fault() == Some(Fault::LateHash) && !signal.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether this one-time fault happens now; true at most once.
    pub(super) fn fault_once(&self, fault: Fault) -> bool {
        self.fault() == Some(fault) && !self.0.faulted.swap(true, Ordering::Relaxed)
    }

    /// Whether messages can be sent to a peer; always true for this node.
    pub fn reaches(&self, peer: &PeerId) -> bool {
        *peer == self.0.local || self.0.links.get().is_some_and(|links| links.connected(peer))
    }

    /// Starts the thread of a stage. A broken stage of the same chain is replaced; one that works stays, with its sessions: two
    /// threads may find at once that the stage is not there yet.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be started.
    pub fn start(&self, setup: StageSetup) -> Result<()> {
        let chain = setup.chain;
        let mut stages = self.stages();
        if stages.get(&chain).is_some_and(|stage| !stage.broken) {
            return Ok(());
        }
        let layers = StageLayers {
            model: Arc::clone(&setup.model),
            budget: setup.budget.clone(),
            memory: Arc::clone(&setup.memory),
        };
        let config = setup.model.config();
        let largest = MessageBytes {
            frame: (FRAME_ROWS * (config.hidden_size * size_of::<f32>()) as u64).min(u64::from(MAX_PAYLOAD_BYTES)),
            opening: MESSAGE_BYTES + (config.context * size_of::<u32>()) as u64,
        };
        let gate = Gate::new(&setup.stages, setup.index, largest);
        let model_name = setup.name.clone();
        let (events, inbox) = sync_channel(gate.places());
        let running = (setup.index == 0).then(RunningPass::default);
        let stage = Stage::new(setup, self.clone(), running.clone());
        let name = format!("stage of model {}, epoch {}", chain.model, chain.epoch);
        // The stage itself notifies its sessions of the failure; the loader replaces it.
        let part = self.0.supervisor.owned_thread(&name, move || stage.run(inbox), |_| {}).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("cannot start a thread for a model's layers: {error}"))
        })?;
        let handle = StageHandle {
            name: model_name,
            events,
            layers: Some(layers),
            gate,
            running,
            load: StageLoad::default(),
            used_at: clock::now(),
            broken: false,
            broke_elsewhere: false,
            _part: part,
        };
        if let Some(replaced) = stages.insert(chain, handle) {
            let _ = replaced.events.try_send(StageEvent::End);
        }
        Ok(())
    }

    /// Ends a stage; its sessions fail over or fail.
    pub fn end(&self, chain: ChainId) {
        if let Some(stage) = self.stages().remove(&chain) {
            // Even with a full queue the stage ends, because its sender is dropped here.
            let _ = stage.events.try_send(StageEvent::End);
        }
    }

    /// Gives a chain of this node alone another id: its model got its digest. The sessions that it has go on, under the first id.
    /// Returns whether it did, which it does not if the other id is taken.
    pub fn rename(&self, chain: ChainId, to: ChainId) -> bool {
        self.stages().rename(chain, to)
    }

    /// The present id of a chain.
    pub(super) fn id_of(&self, chain: ChainId) -> ChainId {
        self.stages().id(chain)
    }

    /// Whether this node has a stage of the chain.
    pub fn has(&self, chain: ChainId) -> bool {
        self.stages().contains(&chain)
    }

    /// The whole model of a chain whose only stage is on this node.
    pub fn whole(&self, chain: ChainId) -> Option<StageLayers> {
        let layers = self.stages().get(&chain)?.layers.clone()?;
        layers.model.is_whole().then_some(layers)
    }

    /// Breaks the stages that have these layers, whose device failed; returns whether there were any that still worked.
    pub(super) fn fail(&self, model: &engine::Stage, why: &str) -> bool {
        let mut any = false;
        for stage in self.stages().values_mut().filter(|stage| !stage.broken) {
            if stage.layers.as_ref().is_some_and(|layers| layers.model.shares_weights(model)) {
                // With a full queue, the next view tries again.
                let _ = stage.events.try_send(StageEvent::DeviceFailed { why: why.to_owned() });
                any = true;
            }
        }
        any
    }

    /// Lets go of layers that no stage can compute any more: the broken stages that had them stay as they are, without their memory.
    pub(super) fn let_go(&self, model: &engine::Stage) {
        let mut stages = self.stages();
        let have = |stage: &&mut StageHandle| {
            stage.broken && stage.layers.as_ref().is_some_and(|layers| layers.model.shares_weights(model))
        };
        stages.values_mut().filter(have).for_each(|stage| stage.layers = None);
    }

    /// Running and waiting sequences of a chain whose first stage is on this node; zero otherwise.
    pub fn load(&self, chain: ChainId) -> (usize, usize) {
        self.stages().get(&chain).map_or((0, 0), |stage| (stage.load.running, stage.load.waiting))
    }

    /// Number of sessions of a stage.
    pub fn sessions_in(&self, chain: ChainId) -> usize {
        self.stages().get(&chain).map_or(0, |stage| stage.load.sessions)
    }

    /// How fast a stage and the rest of its chain are, once measured.
    pub fn pace(&self, chain: ChainId) -> Option<StagePace> {
        self.stages().get(&chain).and_then(|stage| stage.load.pace)
    }

    /// Sessions of this node's stages of a model, and when the last one was used; `None` without a stage.
    pub fn use_of(&self, model: &Digest) -> Option<(usize, Time)> {
        let stages = self.stages();
        let of_model = stages.iter().filter(|(chain, _)| chain.model == *model).map(|(_, stage)| stage);
        let used = of_model.map(|stage| (stage.load.sessions, stage.used_at));
        used.reduce(|(sessions, used_at), (others, later)| (sessions + others, used_at.max(later)))
    }

    /// Whether any stage on this node has a session.
    pub fn is_busy(&self) -> bool {
        self.stage_sessions() > 0
    }

    /// Shows the sessions of the stages here, and their memory, among the metrics.
    pub fn observe(&self, observer: &Observer) {
        let pipeline = self.clone();
        let help = "Sessions that stages of this node take part in";
        observer.gauge("stage_sessions", help, move || pipeline.stage_sessions() as f64);
        let pipeline = self.clone();
        let help = "Bytes of pages of keys and values in use, those kept for later prompts included";
        observer.gauges("session_pages_used_bytes", help, move || pipeline.pages(PageBudget::used_bytes));
        let pipeline = self.clone();
        let help = "Bytes of pages of keys and values that may be in use";
        observer.gauges("session_pages_limit_bytes", help, move || pipeline.pages(PageBudget::max_bytes));
    }

    /// A number of the budgets of pages of each model here.
    fn pages(&self, number: impl Fn(&PageBudget) -> u64) -> Vec<([(&'static str, String); 1], f64)> {
        let mut by_model: BTreeMap<String, f64> = BTreeMap::new();
        let mut counted: Vec<Arc<[Lease]>> = Vec::new();
        for stage in self.stages().values() {
            let Some(layers) = &stage.layers else { continue };
            // Stages with the same layers share the leases, and the budget with them.
            if !counted.iter().any(|memory| Arc::ptr_eq(memory, &layers.memory)) {
                counted.push(Arc::clone(&layers.memory));
                *by_model.entry(stage.name.clone()).or_default() += number(&layers.budget) as f64;
            }
        }
        by_model.into_iter().map(|(name, bytes)| ([("model", name)], bytes)).collect()
    }

    fn stage_sessions(&self) -> usize {
        self.stages().values().map(|stage| stage.load.sessions).sum()
    }

    /// Whether the stage of a chain uses exactly these layers.
    pub fn uses(&self, chain: ChainId, model: &engine::Stage) -> bool {
        let stages = self.stages();
        let layers = stages.get(&chain).and_then(|stage| stage.layers.as_ref());
        layers.is_some_and(|layers| layers.model.shares_weights(model))
    }

    /// Whether a chain has failed.
    pub fn is_broken(&self, chain: ChainId) -> bool {
        self.stages().get(&chain).is_some_and(|stage| stage.broken)
    }

    /// Whether a chain failed at this node's own stage. A node whose stage only heard of the failure is not to blame.
    pub fn broke_here(&self, chain: ChainId) -> bool {
        self.stages().get(&chain).is_some_and(|stage| stage.broken && !stage.broke_elsewhere)
    }

    /// Fails a chain, because the stage on another node has reported its failure.
    pub fn break_off(&self, chain: ChainId, peer: PeerId) {
        let why = "another stage reported that the chain failed".to_owned();
        if let Some(stage) = self.stages().get_mut(&chain).filter(|stage| !stage.broken) {
            stage.broke_elsewhere = true;
            // With a full queue, the next view tries again.
            let _ = stage.events.try_send(StageEvent::PeerGone { peer, why });
        }
    }

    /// The nodes of a chain that has a stage on this node.
    pub fn peers(&self, chain: ChainId) -> Vec<PeerId> {
        self.stages().get(&chain).map_or_else(Vec::new, |stage| stage.gate.stages().to_vec())
    }

    /// Changes whenever a chain fails on this node.
    pub fn breaks(&self) -> watch::Receiver<u64> {
        self.0.breaks.subscribe()
    }

    pub(super) fn set_load(&self, chain: ChainId, load: StageLoad) {
        if let Some(stage) = self.stages().get_mut(&chain) {
            let is_used = [stage.load, load].into_iter().any(|load| load.sessions + load.running + load.waiting > 0);
            if is_used {
                stage.used_at = clock::now();
            }
            stage.load = load;
        }
    }

    /// Delivers the events of a session at `stages` to `events` from now on, until [`Pipeline::remove_session`].
    pub fn add_session(&self, session: SessionId, stages: &[StageAt], events: mpsc::Sender<SessionEvent>) {
        let stages = stages.iter().map(|stage| stage.peer).collect();
        self.sessions().insert(session, stages, events);
    }

    /// Stops delivering a session's events.
    pub fn remove_session(&self, session: &SessionId) {
        self.sessions().remove(session);
    }

    /// Sends a message to a node, possibly this one.
    ///
    /// # Errors
    /// `Unavailable` without a connection, `Overloaded` if the queue is full.
    pub fn send(&self, to: PeerId, message: Message, payload: Payload) -> Result<()> {
        self.send_all(to, vec![(message, payload)])
    }

    /// Sends several messages at once, in this order.
    ///
    /// # Errors
    /// Those of [`Pipeline::send`]; no message is sent then.
    pub(super) fn send_all(&self, to: PeerId, messages: Vec<(Message, Payload)>) -> Result<()> {
        if to == self.0.local {
            for (message, payload) in messages {
                self.start_unknown(&message);
                self.deliver(to, message, payload);
            }
            return Ok(());
        }
        match self.0.links.get() {
            Some(links) => links.send_all(to, messages),
            None => Err(Error::new(ErrorKind::Unavailable, format!("this node has no connection to {to}"))),
        }
    }

    /// Records on the first stage of a chain that a session has ended and needs no closing.
    pub(super) fn session_over(&self, chain: ChainId, session: &SessionId) {
        if let Some(stage) = self.stages().get_mut(&chain) {
            stage.gate.over(session);
        }
    }

    pub(super) fn broken(&self, chain: ChainId, why: &str) {
        tracing::warn!(event = "chain_broken", model = %chain.model, epoch = chain.epoch, why, "pipeline failed: {why}");
        if let Some(stage) = self.stages().get_mut(&chain) {
            stage.broken = true;
            stage.gate.clear();
        }
        self.0.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// Returns the room that a message had in a stage's queue to its sender.
    pub(super) fn taken(&self, chain: ChainId, from: &PeerId, bytes: u64) {
        if let Some(stage) = self.stages().get_mut(&chain) {
            stage.gate.taken(from, bytes);
        }
    }

    fn stages(&self) -> MutexGuard<'_, StageTable<StageHandle>> {
        self.0.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, CoordinatedSessions<mpsc::Sender<SessionEvent>>> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline of {}", self.0.local)
    }
}
