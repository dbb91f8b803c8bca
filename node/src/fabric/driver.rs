//! The task that owns the fabric's state. It feeds the scheduler with events and executes its
//! actions; the scheduler makes every decision about placement.

mod attempts;
mod connect;
mod delivery;
mod estimate;
mod links;
mod presence;
mod probes;
mod quarantine;
mod serving;
mod status;
mod submission;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, Tensor};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use self::estimate::rates;
use self::probes::Probes;
use super::checker::{Checked, Checker};
use super::handle::{Command, Fabric};
use super::job::{JobId, JobReply, JobRequest};
use super::metrics::Metrics;
use super::open_links::OpenLinks;
use super::running::RunningJob;
use super::unconnected;
use crate::clock;
use crate::devices::Devices;
use crate::evidence::Findings;
use crate::jobs::Jobs;
use crate::link::coordinator::LinkEvent;
use crate::link::serve::{TaskService, give_way};
use crate::net::{Follower, NetEvent, Network};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::streams::opening::OpeningError;
use crate::supervise::Supervisor;
use crate::trust::SignedProduct;
use crate::worker::executor::{Executor, Outcome, Side, Speeds};
use pangea_control::schedule::{Action, AttemptId, Event, Scheduler, Tile, Time, WorkerEstimate, WorkerId};

/// Maximum queued link events: a burst of small messages from every peer.
const LINK_EVENTS: usize = 1024;

/// Maximum queued internal notices: a few per attempt in flight.
const NOTICES: usize = 4096;

/// Interval at which connecting peers are counted again, and suspects, whose suspicion decays.
const CONNECTING_TICK: Duration = Duration::from_millis(500);

/// Configuration of the fabric.
pub struct FabricSettings {
    /// Peer id of this node.
    pub peer: PeerId,
    /// Key of this node, which signs results.
    pub keypair: Keypair,
    /// Name of this node for people.
    pub name: String,
    /// Memory and compute threads.
    pub devices: Devices,
    /// The directory of peers, which the driver updates.
    pub peers: Peers,
    /// Whether this node accepts tasks from peers.
    pub works: bool,
    /// Where lies that are found go.
    pub findings: Findings,
    /// Whether a pool key protects admission.
    pub pool_key: bool,
    /// Measured speeds of this node.
    pub speeds: Speeds,
    /// Supervises the parts that run by themselves.
    pub supervisor: Supervisor,
    /// Jobs of this node.
    pub jobs: Jobs,
    /// Registry of metrics.
    pub observer: Observer,
}

/// An event from another part of this node.
enum Notice {
    LocalDone { attempt: AttemptId, outcome: Outcome },
    Checked { attempt: AttemptId, checked: Checked },
    WholeChecked { job: JobId, storage: u64, checked: Checked },
    FeedFailed { attempt: AttemptId, error: Error },
    StreamOpened { peer: PeerId, stream: std::result::Result<libp2p::Stream, OpeningError> },
    LinkMeasured { peer: PeerId, generation: u64, bytes_per_s: f64, repeated: bool },
    Connected { result: Result<PeerId>, until: Time, answer: oneshot::Sender<Result<String>> },
    Incoming { peer: PeerId, stream: libp2p::Stream },
}

/// One attempt of one task.
struct Attempt {
    job: JobId,
    tile: Tile,
    worker: WorkerId,
    cancel: Cancel,
    result: Option<Tensor>,
    compute: Duration,
    /// What the worker signed about the result; not verified.
    signed: Option<SignedProduct>,
    span: Span,
    /// The span of its check, while it is checked.
    checking: Span,
}

/// The fabric's driver; [`FabricDriver::run`] must be called on the network thread's `LocalSet`.
pub struct FabricDriver {
    settings: FabricSettings,
    started: Instant,
    scheduler: Scheduler,
    executor: Executor,
    checker: Checker,
    network: Option<Network>,
    peers: Peers,
    links: OpenLinks,
    jobs: HashMap<JobId, RunningJob>,
    /// Jobs submitted to the scheduler but not planned yet.
    submitting: HashMap<JobId, Submitting>,
    /// Jobs whose complete results are being checked once more, with the spans of those checks.
    finishing: HashMap<JobId, (pangea_control::schedule::JobReport, Tensor, Span)>,
    attempts: HashMap<AttemptId, Attempt>,
    served: Rc<RefCell<TaskService>>,
    probes: Rc<RefCell<Probes>>,
    /// Calls of `connect` that wait for the peer's hello, by number.
    calls: HashMap<u64, oneshot::Sender<Result<String>>>,
    next_call: u64,
    /// Side of the last cut of a tensor's storage, as left or right operand.
    grids: VecDeque<((u64, Side), u64)>,
    /// Peer id and name of every earlier and current worker, for reports of jobs that outlive them.
    workers: HashMap<WorkerId, (PeerId, String)>,
    next_worker: u64,
    /// The suspects that the scheduler knows.
    suspects: BTreeSet<WorkerId>,
    next_generation: u64,
    wake_at: Option<Time>,
    listening: watch::Sender<Vec<String>>,
    rpc: String,
    counters: Counters,
    metrics: Metrics,
    draining: Option<(Instant, oneshot::Sender<()>)>,
    events: VecDeque<Event>,
    notices: mpsc::Sender<Notice>,
    link_events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
}

#[derive(Default)]
struct Counters {
    bytes_sent: u64,
    bytes_received: u64,
}

struct Submitting {
    request: JobRequest,
    submitted: Instant,
    reply: JobReply,
    /// The span of the planning.
    planning: Span,
}

/// The receivers that [`FabricDriver::run`] reads.
pub struct Inlets {
    commands: mpsc::Receiver<Command>,
    notices: mpsc::Receiver<Notice>,
    link_events: mpsc::Receiver<(PeerId, u64, LinkEvent)>,
    net_events: Option<Follower>,
}

impl FabricDriver {
    /// A fabric over `network`, or on this node alone. `rpc` is shown in the status.
    pub fn new(
        settings: FabricSettings,
        executor: Executor,
        network: Option<(Network, Follower)>,
        rpc: String,
    ) -> Result<(FabricDriver, Inlets, Fabric)> {
        let (command_sender, commands) = mpsc::channel(super::COMMANDS);
        let (notice_sender, notices) = mpsc::channel(NOTICES);
        let (link_sender, link_events) = mpsc::channel(LINK_EVENTS);
        let (network, net_events) = match network {
            Some((network, events)) => (Some(network), Some(events)),
            None => (None, None),
        };
        let limit = settings.devices.limit();
        let local = WorkerEstimate::local(rates(&settings.speeds), limit);
        let keypair = settings.keypair.clone();
        let (devices, peers) = (settings.devices.clone(), settings.peers.clone());
        let served = TaskService::new(devices, executor.clone(), peers, keypair, &settings.observer);
        let (listening, addresses) = watch::channel(Vec::new());
        let jobs = settings.jobs.clone();
        let fabric = Fabric::new(command_sender, jobs, settings.devices.clone(), addresses, settings.peers.clone());
        let checker = Checker::start(&settings.devices, &settings.supervisor)?;
        let driver = FabricDriver {
            started: Instant::now(),
            scheduler: Scheduler::new(local),
            executor,
            checker,
            network,
            peers: settings.peers.clone(),
            links: OpenLinks::default(),
            jobs: HashMap::new(),
            submitting: HashMap::new(),
            finishing: HashMap::new(),
            attempts: HashMap::new(),
            served: Rc::new(RefCell::new(served)),
            probes: Rc::default(),
            calls: HashMap::new(),
            next_call: 0,
            grids: VecDeque::new(),
            workers: HashMap::new(),
            next_worker: 1,
            suspects: BTreeSet::new(),
            next_generation: 1,
            wake_at: None,
            listening,
            rpc,
            counters: Counters::default(),
            metrics: Metrics::new(&settings.observer),
            draining: None,
            events: VecDeque::new(),
            notices: notice_sender,
            link_events: link_sender,
            settings,
        };
        Ok((driver, Inlets { commands, notices, link_events, net_events }, fabric))
    }

    /// Runs until the last [`Fabric`] handle is dropped.
    pub async fn run(mut self, mut inlets: Inlets) {
        self.accept_streams();
        let (mut excluded, devices) = (self.peers.excluded(), self.settings.devices.clone());
        self.follow_convictions();
        let mut tick = clock::ticks(CONNECTING_TICK);
        loop {
            let wake = self.wake_at.map(|at| tokio::time::Instant::from_std(self.started + at.elapsed()));
            tokio::select! {
                biased;
                Some(notice) = inlets.notices.recv() => self.on_notice(notice),
                // Never fails: the sender is in `self.peers`.
                Ok(()) = excluded.changed() => self.follow_convictions(),
                Some((peer, generation, event)) = inlets.link_events.recv() => self.on_link_event(peer, generation, event),
                command = inlets.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                Some(event) = next_event(&mut inlets.net_events) => self.on_net_event(event),
                () = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)), if wake.is_some() => {
                    self.wake_at = None;
                    self.events.push_back(Event::Tick);
                }
                () = devices.is_short() => give_way(&self.served),
                _ = tick.tick() => {
                    self.tell_peers(pangea_control::peers::Event::Tick);
                    self.follow_suspicions();
                }
            }
            self.decide();
        }
    }

    fn now(&self) -> Time {
        Time::since_epoch(self.started.elapsed())
    }

    /// Passes all pending events to the scheduler and executes its actions, until none is left.
    fn decide(&mut self) {
        let mut actions = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.scheduler.handle(event, self.now(), &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
        }
        if let Some((until, _)) = &self.draining {
            let idle = self.jobs.is_empty() && self.finishing.is_empty() && self.executor.is_idle();
            if (idle || *until <= Instant::now())
                && let Some((_, answer)) = self.draining.take()
            {
                self.say_goodbye();
                let _ = answer.send(());
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, request, submitted, reply } => {
                if self.draining.is_some() || self.served.borrow().draining {
                    reply.failed(Error::new(ErrorKind::Unavailable, "this node is shutting down"));
                    return;
                }
                self.submit(job, request, submitted, reply);
            }
            Command::Cancel(job) => {
                self.events.push_back(Event::JobCancelled { job: pangea_control::schedule::JobId(job) })
            }
            Command::Peers(answer) => {
                let in_flight =
                    |worker| self.attempts.values().filter(|attempt| attempt.worker == worker).count() as u32;
                let mut statuses = self.peers.read(|directory| self.links.statuses(directory, in_flight));
                let network = self.network.clone();
                // The network answers between its events.
                tokio::task::spawn_local(async move {
                    if let Some(network) = network {
                        unconnected::add(&mut statuses, network.unconnected().await);
                    }
                    let _ = answer.send(statuses);
                });
            }
            Command::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Command::Connect { address, timeout, answer } => self.connect(&address, timeout, answer),
            Command::ProbeLink { peer, message_bytes, rounds, answer } => {
                self.probe_link(&peer, message_bytes, rounds, answer)
            }
            Command::CheckPeer { peer, timeout, answer } => self.check_peer(&peer, timeout, answer),
            Command::Drain { within, answer } => {
                self.served.borrow_mut().draining = true;
                self.draining = Some((Instant::now() + within, answer));
            }
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::LocalDone { attempt, outcome } => self.local_done(attempt, outcome),
            Notice::Checked { attempt, checked } => self.checked(attempt, checked),
            Notice::WholeChecked { job, storage, checked } => self.whole_checked(job, storage, checked),
            Notice::FeedFailed { attempt, error } => {
                self.attempt_failed(attempt, error.kind());
            }
            Notice::StreamOpened { peer, stream } => self.stream_opened(peer, stream),
            Notice::LinkMeasured { peer, generation, bytes_per_s, repeated } => {
                if self.is_current(&peer, generation) {
                    self.tell_peers(pangea_control::peers::Event::LinkProbed { peer, bytes_per_s, repeated });
                }
            }
            Notice::Connected { result, until, answer } => self.connected(result, until, answer),
            Notice::Incoming { peer, stream } => self.serve(peer, stream),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Plan { job, grid } => self.planned(job.0, grid),
            Action::Start { attempt, job, tile, worker, reason } => {
                self.metrics.started(reason, worker);
                tracing::debug!(
                    event = "start",
                    attempt = attempt.0,
                    job = job.0,
                    band = tile.band,
                    panel = tile.panel,
                    worker = worker.0,
                    reason = reason.name()
                );
                if let Err(error) = self.start(attempt, job.0, tile, worker, reason) {
                    tracing::debug!(event = "start_failed", attempt = attempt.0, %error);
                    self.attempt_failed(attempt, error.kind());
                }
            }
            Action::Cancel { attempt, worker } => {
                if let Some(attempt) = self.attempts.remove(&attempt) {
                    attempt.cancel.cancel();
                }
                if let Some((_, link)) = self.links.of_worker(worker) {
                    // A link whose queue is full is about to close, which cancels everything.
                    let _ = link.link.cancel(attempt.0);
                }
            }
            Action::Check { attempt } => self.check(attempt),
            Action::Accept { attempt, job, tile, worker, .. } => self.accept(attempt, job.0, tile, worker),
            Action::Revoke { job, .. } => self.revoke(job.0),
            Action::Suspect { job, worker } => self.suspect(job.0, worker),
            Action::Discard { attempt } => {
                self.attempts.remove(&attempt);
            }
            Action::Release { worker, job, operand } => self.release(worker, job.0, operand),
            Action::Quarantine { worker, attempt } => self.quarantine(worker, attempt),
            Action::JobFinished { job, report } => self.finished(job.0, report),
            Action::JobFailed { job, kind, why, report } => self.failed(job.0, kind, why, &report),
            Action::WakeAt(at) => self.wake_at = Some(at),
        }
    }
}

async fn next_event(events: &mut Option<Follower>) -> Option<NetEvent> {
    match events {
        Some(events) => events.recv().await,
        None => None,
    }
}
