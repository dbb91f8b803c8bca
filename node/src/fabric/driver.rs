//! The one task that owns the fabric's state. It feeds the scheduler with what happens and does what
//! the scheduler says; every decision about placement is the scheduler's.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, DType, Digest, Tensor};
use tokio::sync::{mpsc, oneshot, watch};

use super::checker::{Check, CheckVerdict, Checked, Checker, PanelProbe};
use super::evidence::{self, Evidence};
use super::feeder::{self, Feed};
use super::handle::{Command, Fabric};
use super::job::{
    JobId, JobOutcome, JobReport, JobRequest, Place, Progress, Rejection, TaskCounts, Verification, VerifyPolicy,
    WorkerShare,
};
use super::peers::{OpenLink, Peer, PeerState, Peers};
use super::running::{JobData, RunningJob};
use super::status::{LinkProbe, NodeStatus};
use crate::link::coordinator::{self, Bulk, Link, LinkEvent};
use crate::link::limits::TASKS_PER_PEER;
use crate::link::serve::{self, Served};
use crate::net::{Follower, NetEvent, Network, peer_address};
use crate::wire::{PROTOCOL, TaskHello, VERSION};
use crate::worker::budget::Budget;
use crate::worker::executor::{Executor, Outcome, PackKey, Side, Speeds, Work};
use crate::worker::store::OperandStore;
use pangea_control::schedule::limits::IN_FLIGHT_MAX;
use pangea_control::schedule::{
    Action, Arithmetic, AttemptId, Event, FailureKind, JobSpec, LeaveReason, Measured, Operand, ProductShape,
    Progress as Step, Scheduler, Tile, TileGrid, Time, Transfer, Verdict, WorkerEstimate, WorkerId,
};

/// Link events that may wait: a burst of small messages from every peer.
const LINK_EVENTS: usize = 1024;

/// Internal notices that may wait: a few for each attempt in flight.
const NOTICES: usize = 4096;

/// Bytes of the first, automatic measurement of a link: short even on a slow one.
const FIRST_PROBE_BYTES: u64 = 2 << 20;

/// What a link is taken to do until it is measured: ordinary Ethernet.
const DEFAULT_BYTES_PER_S: f64 = 100e6;

/// What a round trip is taken to be until a ping has told.
const DEFAULT_RTT: Duration = Duration::from_millis(1);

/// Grids of tensors remembered, so that products with the same operand are cut alike and find what
/// peers hold already.
const GRIDS_MAX: usize = 256;

/// Streams that one peer may have open towards this node: one, and one that replaces it.
const SERVED_STREAMS_PER_PEER: usize = 2;

/// Rounds of a measurement that one request may ask for.
const ROUNDS_MAX: u32 = 1000;

/// Bytes of a small round trip.
const SMALL_BYTES: u64 = 16;

/// Until a probe is given up: the largest over a slow link.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Small round trips are cheap and noisy: at least so many.
const SMALL_ROUNDS_MIN: u32 = 51;

/// Until a connected peer has taken a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream that ended is opened again after this at first, then twice as long each time.
const REOPEN_FIRST: Duration = Duration::from_millis(100);

/// And at most this long; a stream that lasted longer was a good one.
const REOPEN_LATEST: Duration = Duration::from_secs(30);

/// Peers that are connecting are counted again this often.
const CONNECTING_TICK: Duration = Duration::from_millis(500);

/// How a node takes part.
pub struct Settings {
    /// This node's peer id.
    pub peer: PeerId,
    /// Its name for people.
    pub name: String,
    /// Compute threads.
    pub threads: usize,
    /// Memory for tensors.
    pub budget: Budget,
    /// Whether it takes tasks from peers.
    pub works: bool,
    /// Where evidence is kept; nowhere without.
    pub data_dir: Option<PathBuf>,
    /// Whether a pool key guards admission.
    pub pool_key: bool,
    /// Measured speeds of this node.
    pub speeds: Speeds,
}

/// What happened somewhere else on this node.
enum Notice {
    LocalDone { attempt: AttemptId, outcome: Outcome },
    Checked { attempt: AttemptId, checked: Checked },
    WholeChecked { job: JobId, checked: Checked },
    FeedFailed { attempt: AttemptId, error: Error },
    StreamOpened { peer: PeerId, stream: std::result::Result<libp2p::Stream, String> },
    LinkMeasured { peer: PeerId, generation: u64, bytes_per_s: f64 },
    Connected { result: Result<PeerId>, deadline: Instant, answer: oneshot::Sender<Result<String>> },
    ServeEnded { peer: PeerId, why: String },
    Incoming { peer: PeerId, stream: libp2p::Stream },
}

/// One attempt at one task.
struct Attempt {
    job: JobId,
    tile: Tile,
    worker: WorkerId,
    cancel: Cancel,
    result: Option<Tensor>,
    compute: Duration,
}

/// The driver. [`Driver::run`] it on the network thread's `LocalSet`.
pub struct Driver {
    settings: Settings,
    started: Instant,
    scheduler: Scheduler,
    executor: Executor,
    checker: Checker,
    network: Option<Network>,
    peers: Peers,
    jobs: HashMap<JobId, RunningJob>,
    /// Accepted and told to the scheduler, not yet planned.
    submitting: HashMap<JobId, Submitting>,
    /// Their products are whole and being checked once more.
    finishing: HashMap<JobId, (pangea_control::schedule::JobReport, Tensor)>,
    attempts: HashMap<AttemptId, Attempt>,
    served: Rc<RefCell<Served>>,
    served_streams: HashMap<PeerId, usize>,
    probes: Rc<RefCell<Probes>>,
    /// Calls of `connect` that wait for the peer's advert.
    waiting_for: Vec<(PeerId, Instant, oneshot::Sender<Result<String>>)>,
    /// How far apart the cuts of a tensor's storage were, as left or right operand.
    grids: VecDeque<((u64, Side), u64)>,
    /// Peer id and name of every worker there has been, for reports of jobs that outlive them.
    worker_names: HashMap<WorkerId, (String, String)>,
    next_worker: u64,
    next_generation: u64,
    connecting: usize,
    wake_at: Option<Time>,
    listening: watch::Sender<Vec<String>>,
    link_speeds: watch::Sender<BTreeMap<PeerId, f64>>,
    rpc: String,
    counters: Counters,
    draining: Option<(Instant, oneshot::Sender<()>)>,
    events: VecDeque<Event>,
    notices: mpsc::Sender<Notice>,
    link_events: mpsc::Sender<(PeerId, u64, LinkEvent)>,
}

#[derive(Default)]
struct Counters {
    jobs_done: u64,
    jobs_failed: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

struct Submitting {
    request: JobRequest,
    submitted: Instant,
    progress: watch::Sender<Progress>,
    outcome: oneshot::Sender<Result<JobOutcome>>,
    dtype: DType,
}

/// Probes under way: when each was answered goes to whoever waits.
#[derive(Default)]
struct Probes {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Instant>>,
}

/// The receiving ends that [`Driver::run`] waits on.
pub struct Inlets {
    commands: mpsc::Receiver<Command>,
    notices: mpsc::Receiver<Notice>,
    link_events: mpsc::Receiver<(PeerId, u64, LinkEvent)>,
    net_events: Option<Follower>,
}

impl Driver {
    /// A fabric over `network`, or of this node alone. `rpc` is shown in the status.
    pub fn new(
        settings: Settings,
        executor: Executor,
        network: Option<(Network, Follower)>,
        rpc: String,
    ) -> Result<(Driver, Inlets, Fabric)> {
        let (command_sender, commands) = mpsc::channel(super::COMMANDS);
        let (notice_sender, notices) = mpsc::channel(NOTICES);
        let (link_sender, link_events) = mpsc::channel(LINK_EVENTS);
        let (network, net_events) = match network {
            Some((network, events)) => (Some(network), Some(events)),
            None => (None, None),
        };
        let limit = settings.budget.limit();
        let local = WorkerEstimate::local(rates(&settings.speeds), limit);
        let served = Served {
            // Half of the memory for peers, half for this node's own jobs; one peer may fill half of that.
            store: OperandStore::new(settings.budget.clone(), limit / 2, limit / 4),
            executor: executor.clone(),
            tasks_done: 0,
            bytes_received: 0,
            bytes_sent: 0,
            sessions: HashMap::new(),
            draining: false,
        };
        let (listening, addresses) = watch::channel(Vec::new());
        let (link_speeds, speeds_known) = watch::channel(BTreeMap::new());
        let fabric = Fabric::new(command_sender, settings.budget.clone(), addresses, speeds_known);
        let checker = Checker::start((settings.threads / 4).max(1))?;
        let mut peers = Peers::default();
        for (accused, why) in settings.data_dir.iter().flat_map(|folder| evidence::accused(folder)) {
            let known = peers.entry(accused, Instant::now());
            known.state = PeerState::Gone;
            known.quarantined = Some(why);
        }
        let driver = Driver {
            started: Instant::now(),
            scheduler: Scheduler::new(local),
            executor,
            checker,
            network,
            peers,
            jobs: HashMap::new(),
            submitting: HashMap::new(),
            finishing: HashMap::new(),
            attempts: HashMap::new(),
            served: Rc::new(RefCell::new(served)),
            served_streams: HashMap::new(),
            probes: Rc::default(),
            waiting_for: Vec::new(),
            grids: VecDeque::new(),
            worker_names: HashMap::new(),
            next_worker: 1,
            next_generation: 1,
            connecting: 0,
            wake_at: None,
            listening,
            link_speeds,
            rpc,
            counters: Counters::default(),
            draining: None,
            events: VecDeque::new(),
            notices: notice_sender,
            link_events: link_sender,
            settings,
        };
        Ok((driver, Inlets { commands, notices, link_events, net_events }, fabric))
    }

    /// Runs until every [`Fabric`] handle is gone.
    pub async fn run(mut self, mut inlets: Inlets) {
        self.accept_streams();
        let mut tick = tokio::time::interval(CONNECTING_TICK);
        loop {
            let wake = self.wake_at.map(|at| tokio::time::Instant::from_std(self.started + at.elapsed()));
            tokio::select! {
                biased;
                Some(notice) = inlets.notices.recv() => self.on_notice(notice),
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
                _ = tick.tick() => self.on_tick(),
            }
            self.decide();
        }
    }

    fn now(&self) -> Time {
        Time::since_epoch(self.started.elapsed())
    }

    /// Lets the scheduler decide on all that happened and does what it says, until nothing is left.
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

    // What happens.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Submit { job, request, submitted, progress, outcome } => {
                if self.draining.is_some() || self.served.borrow().draining {
                    let _ = outcome.send(Err(Error::new(ErrorKind::Unavailable, "this node is shutting down")));
                    return;
                }
                self.submit(job, request, submitted, progress, outcome);
            }
            Command::Cancel(job) => {
                self.events.push_back(Event::JobCancelled { job: pangea_control::schedule::JobId(job) })
            }
            Command::Peers(answer) => {
                let in_flight =
                    |worker| self.attempts.values().filter(|attempt| attempt.worker == worker).count() as u32;
                let _ = answer.send(self.peers.statuses(in_flight));
            }
            Command::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Command::Connect { address, timeout, answer } => self.connect(&address, timeout, answer),
            Command::ProbeLink { peer, message_bytes, rounds, answer } => {
                self.probe_link(&peer, message_bytes, rounds, answer)
            }
            Command::CheckPeer { peer, timeout, answer } => self.check_peer(&peer, timeout, answer),
            Command::Quarantine { peer, why } => self.keep_out(peer, why),
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
            Notice::WholeChecked { job, checked } => self.whole_checked(job, checked),
            Notice::FeedFailed { attempt, error } => {
                let kind = error.kind();
                self.events.push_back(Event::AttemptFailed { attempt, kind });
            }
            Notice::StreamOpened { peer, stream } => self.stream_opened(peer, stream),
            Notice::LinkMeasured { peer, generation, bytes_per_s } => {
                if let Some(known) = self.peers.get_mut(&peer)
                    && known.link.as_ref().is_some_and(|link| link.generation == generation)
                {
                    known.bytes_per_s = bytes_per_s;
                    self.link_speeds.send_modify(|speeds| {
                        speeds.insert(peer, bytes_per_s);
                    });
                    self.update_worker(peer);
                }
            }
            Notice::Connected { result, deadline, answer } => self.connected(result, deadline, answer),
            Notice::ServeEnded { peer, why } => {
                tracing::debug!(event = "serve_ended", %peer, why);
                if let Some(streams) = self.served_streams.get_mut(&peer) {
                    *streams -= 1;
                }
                self.served_streams.retain(|_, streams| *streams > 0);
            }
            Notice::Incoming { peer, stream } => self.serve(peer, stream),
        }
    }

    fn on_net_event(&mut self, event: NetEvent) {
        let now = Instant::now();
        match event {
            NetEvent::Listening(address) => self.listening.send_modify(|addresses| addresses.push(address.to_string())),
            NetEvent::Discovered(peer) => {
                tracing::info!(event = "discovered", %peer, "mDNS discovered a new peer: {peer}");
                let known = self.peers.entry(peer, now);
                if known.link.is_none() {
                    known.enter(PeerState::Connecting, now);
                }
            }
            NetEvent::PeerUp { peer, address, transport, found_by, .. } => {
                let known = self.peers.entry(peer, now);
                known.enter(PeerState::Connecting, now);
                known.addresses = vec![address.to_string()];
                known.transport = transport.to_string();
                known.found_by = found_by.to_string();
                known.gone.clear();
                known.reopened = 0;
                self.open_stream(peer, Duration::ZERO);
            }
            NetEvent::PeerAddressesChanged { peer, addresses } => {
                if !addresses.is_empty()
                    && let Some(known) = self.peers.get_mut(&peer)
                {
                    known.addresses = addresses.iter().map(Multiaddr::to_string).collect();
                }
            }
            NetEvent::PeerDown { peer, why, .. } => {
                self.close_link(peer, LeaveReason::Lost);
                let known = self.peers.entry(peer, now);
                known.enter(PeerState::Gone, now);
                known.gone.clone_from(&why);
                self.link_speeds.send_if_modified(|speeds| speeds.remove(&peer).is_some());
                tracing::info!(event = "peer_gone", %peer, "Peer {peer} is gone ({why})");
            }
            NetEvent::Rtt { peer, rtt } => {
                let known = self.peers.entry(peer, now);
                let first = known.rtt.is_none();
                // The least of a few: a busy moment is no property of the link.
                known.rtt = Some(known.rtt.map_or(rtt, |before| rtt.min(before.mul_f64(1.05))));
                if first {
                    self.update_worker(peer);
                }
            }
            NetEvent::Refused { .. }
            | NetEvent::RefusedBy { .. }
            | NetEvent::Gossip(_)
            | NetEvent::PeersFileBroken { .. }
            | NetEvent::PeersFileLoaded { .. } => {}
        }
        self.count_connecting();
    }

    fn on_link_event(&mut self, peer: PeerId, generation: u64, event: LinkEvent) {
        let current = |peers: &Peers| {
            peers.get(&peer).and_then(|known| known.link.as_ref()).is_some_and(|link| link.generation == generation)
        };
        if !current(&self.peers) {
            return;
        }
        match event {
            LinkEvent::Opened(advert) => self.link_opened(peer, advert),
            LinkEvent::Sent { bytes, took } => {
                self.counters.bytes_sent += bytes;
                if let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) {
                    link.sent.0 += bytes;
                    link.sent.1 += took;
                }
            }
            LinkEvent::Started(task) => {
                self.events.push_back(Event::AttemptProgress { attempt: AttemptId(task), progress: Step::Computing });
            }
            LinkEvent::Result { task, tensor, compute, receiving } => {
                self.remote_done(peer, AttemptId(task), tensor, compute, receiving)
            }
            LinkEvent::Failure { task, kind, message } => {
                tracing::debug!(event = "task_failed", %peer, task, %kind, message);
                self.events.push_back(Event::AttemptFailed { attempt: AttemptId(task), kind });
            }
            LinkEvent::Missing { task, digests } => self.send_again(peer, AttemptId(task), digests),
            LinkEvent::Evicted(digest) => self.evicted(peer, digest),
            LinkEvent::Load { queued } => {
                if let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) {
                    link.busy = queued;
                }
                self.update_worker(peer);
            }
            LinkEvent::Probed(nonce) => {
                if let Some(waiting) = self.probes.borrow_mut().waiting.remove(&nonce) {
                    let _ = waiting.send(Instant::now());
                }
            }
            LinkEvent::Closed(why) => {
                tracing::debug!(event = "link_closed", %peer, %why);
                self.close_link(peer, LeaveReason::Lost);
                self.reopen(peer);
            }
        }
    }

    fn on_tick(&mut self) {
        self.count_connecting();
        let now = Instant::now();
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting_for).into_iter().partition(|(_, until, _)| *until <= now);
        self.waiting_for = waiting;
        for (peer, _, answer) in late {
            let why = format!("{peer} is connected but does not answer as a Pangea node");
            let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, why)));
        }
    }

    fn count_connecting(&mut self) {
        let count = self.peers.connecting(Instant::now());
        if count != self.connecting {
            self.connecting = count;
            self.events.push_back(Event::PeersConnecting { count });
        }
    }

    // Jobs.

    fn submit(
        &mut self,
        job: JobId,
        request: JobRequest,
        submitted: Instant,
        progress: watch::Sender<Progress>,
        outcome: oneshot::Sender<Result<JobOutcome>>,
    ) {
        let dtype = match pangea_compute::product_dtype(&request.a, &request.b) {
            Ok(dtype) => dtype,
            Err(error) => {
                let _ = outcome.send(Err(crate::compute_error(error)));
                return;
            }
        };
        let spec = self.spec(&request, dtype);
        self.submitting.insert(job, Submitting { request, submitted, progress, outcome, dtype });
        self.events.push_back(Event::JobSubmitted { job: pangea_control::schedule::JobId(job), spec });
    }

    /// What the scheduler is told of a job, with what peers hold of its operands already.
    fn spec(&self, request: &JobRequest, dtype: DType) -> JobSpec {
        let (a, b) = (&request.a, &request.b);
        let shape = ProductShape {
            m: a.rows() as u64,
            k: a.cols() as u64,
            n: b.cols() as u64,
            a_element_bytes: a.dtype().size_bytes() as u64,
            b_element_bytes: b.dtype().size_bytes() as u64,
            c_element_bytes: dtype.size_bytes() as u64,
        };
        let mut spec = JobSpec::new(shape, arithmetic(a.dtype(), b.dtype()));
        spec.place = match request.place {
            Place::Auto => pangea_control::schedule::Place::Auto,
            Place::Local => pangea_control::schedule::Place::Local,
            Place::Remote => pangea_control::schedule::Place::Remote,
        };
        spec.redundancy = u32::from(request.redundancy);
        spec.priority = i32::from(request.priority);
        spec.max_retries = u32::from(request.max_retries);
        spec.deadline = request.deadline.map(|within| self.now() + within);
        spec.band_rows = self.side_of(a, Side::Left);
        spec.panel_columns = self.side_of(b, Side::Right);
        if spec.band_rows.is_some() || spec.panel_columns.is_some() {
            self.note_resident(&mut spec, request, dtype);
        }
        spec
    }

    fn note_resident(&self, spec: &mut JobSpec, request: &JobRequest, dtype: DType) {
        let Ok(grid) = self.scheduler.plan(spec) else { return };
        spec.band_rows = Some(grid.band_rows());
        spec.panel_columns = Some(grid.panel_columns());
        let data = JobData::new(request.a.clone(), request.b.clone(), dtype, grid);
        let operands = (0..data.grid.bands()).map(Operand::Band).chain((0..data.grid.panels()).map(Operand::Panel));
        for operand in operands {
            let Some(digest) = data.operand(operand).ok().and_then(|part| part.known_digest()) else { continue };
            for (_, peer) in self.peers.iter() {
                if let Some(OpenLink { worker: Some(worker), resident, .. }) = &peer.link
                    && resident.borrow().contains(&digest)
                {
                    spec.resident.push((*worker, operand));
                }
            }
        }
    }

    /// How far apart the cuts of this operand were the last time.
    fn side_of(&self, tensor: &Tensor, side: Side) -> Option<u64> {
        let key = (tensor.storage_id(), side);
        self.grids.iter().find(|(of, _)| *of == key).map(|(_, size)| *size)
    }

    fn remember_side(&mut self, tensor: &Tensor, side: Side, size: u64) {
        let key = (tensor.storage_id(), side);
        self.grids.retain(|(of, _)| *of != key);
        if self.grids.len() >= GRIDS_MAX {
            self.grids.pop_front();
        }
        self.grids.push_back((key, size));
    }

    fn planned(&mut self, job: JobId, grid: TileGrid) {
        let Some(Submitting { request, submitted, progress, outcome, dtype }) = self.submitting.remove(&job) else {
            return;
        };
        let data = JobData::new(request.a.clone(), request.b.clone(), dtype, grid);
        match RunningJob::new(data, request, submitted, progress) {
            Ok(mut running) => {
                running.outcome = Some(outcome);
                running.show_progress();
                self.jobs.insert(job, running);
            }
            Err(error) => {
                self.counters.jobs_failed += 1;
                let _ = outcome.send(Err(error));
                self.events.push_back(Event::JobCancelled { job: pangea_control::schedule::JobId(job) });
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Plan { job, grid } => self.planned(job.0, grid),
            Action::Start { attempt, job, tile, worker, hedge } => {
                tracing::debug!(
                    event = "start",
                    attempt = attempt.0,
                    job = job.0,
                    band = tile.band,
                    panel = tile.panel,
                    worker = worker.0,
                    hedge
                );
                if let Err(error) = self.start(attempt, job.0, tile, worker) {
                    tracing::debug!(event = "start_failed", attempt = attempt.0, %error);
                    self.events.push_back(Event::AttemptFailed { attempt, kind: error.kind() });
                }
            }
            Action::Cancel { attempt, worker } => {
                if let Some(attempt) = self.attempts.remove(&attempt) {
                    attempt.cancel.cancel();
                }
                if let Some((_, link)) = self.peers.link_of(worker) {
                    // A link that cannot take even this is about to close, which cancels everything.
                    let _ = link.link.cancel(attempt.0);
                }
            }
            Action::Check { attempt } => self.check(attempt),
            Action::Accept { attempt, job, tile, worker, .. } => self.accept(attempt, job.0, tile, worker),
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

    fn start(&mut self, attempt: AttemptId, job: JobId, tile: Tile, worker: WorkerId) -> Result<()> {
        let cancel = Cancel::new();
        let Some(running) = self.jobs.get(&job) else {
            return Err(Error::new(ErrorKind::Cancelled, "the job has ended"));
        };
        let under_way = Attempt { job, tile, worker, cancel: cancel.clone(), result: None, compute: Duration::ZERO };
        self.attempts.insert(attempt, under_way);
        let priority = running.request.priority;
        if !worker.is_local() {
            let deadline = running.request.deadline.map(|within| within.saturating_sub(running.submitted.elapsed()));
            let feed = Feed { attempt, job: Rc::clone(&running.data), tile, priority, deadline, cancel, lacking: None };
            let (_, link) =
                self.peers.link_of(worker).ok_or_else(|| Error::new(ErrorKind::Unavailable, "the peer is gone"))?;
            return link
                .feeder
                .try_send(feed)
                .map_err(|_| Error::new(ErrorKind::Overloaded, "too many tasks wait for this peer"));
        }
        let key =
            |side, index| if running.data.is_one_tile() { PackKey::Once } else { PackKey::Local { job, side, index } };
        let notices = self.notices.clone();
        let work = Work {
            priority,
            owner: None,
            a: (key(Side::Left, tile.band), running.data.operand(Operand::Band(tile.band))?),
            b: (key(Side::Right, tile.panel), running.data.operand(Operand::Panel(tile.panel))?),
            keep_bytes: usize::try_from(running.data.grid.group_bytes()).unwrap_or(usize::MAX),
            cancel,
            started: None,
            done: Box::new(move |outcome| {
                // The driver never waits for the executor, so this cannot block for good.
                let _ = notices.blocking_send(Notice::LocalDone { attempt, outcome });
            }),
        };
        self.executor.submit(work)
    }

    fn local_done(&mut self, attempt: AttemptId, outcome: Outcome) {
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        match outcome.result {
            Ok(tensor) => {
                under_way.result = Some(tensor);
                under_way.compute = outcome.compute;
                let measured =
                    Measured { compute_seconds: Some(outcome.compute.as_secs_f64()), sent: None, received: None };
                self.events.push_back(Event::AttemptFinished { attempt, measured });
            }
            Err(error) => {
                tracing::debug!(event = "local_task_failed", attempt = attempt.0, %error);
                self.attempts.remove(&attempt);
                self.events.push_back(Event::AttemptFailed { attempt, kind: error.kind() });
            }
        }
    }

    fn remote_done(
        &mut self,
        peer: PeerId,
        attempt: AttemptId,
        tensor: Tensor,
        compute: Duration,
        receiving: Duration,
    ) {
        let bytes = tensor.size_bytes() as u64;
        self.counters.bytes_received += bytes;
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        under_way.result = Some(tensor);
        under_way.compute = compute;
        if let Some(running) = self.jobs.get_mut(&under_way.job) {
            running.bytes_received += bytes;
        }
        let sent =
            self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()).map(|link| std::mem::take(&mut link.sent));
        let transfer = |(bytes, took): (u64, Duration)| {
            (bytes > 0 && !took.is_zero()).then_some(Transfer { bytes, seconds: took.as_secs_f64() })
        };
        let measured = Measured {
            compute_seconds: Some(compute.as_secs_f64()),
            sent: sent.and_then(transfer),
            received: transfer((bytes, receiving)),
        };
        if let (Some(sent), Some(known)) = (measured.sent, self.peers.get_mut(&peer)) {
            let rate = sent.bytes as f64 / sent.seconds;
            known.bytes_per_s += 0.2 * (rate - known.bytes_per_s);
        }
        self.events.push_back(Event::AttemptFinished { attempt, measured });
    }

    fn check(&mut self, attempt: AttemptId) {
        let inconclusive = Event::AttemptChecked { attempt, verdict: Verdict::Inconclusive, seconds: 0.0 };
        let Some(Attempt { job, tile, result: Some(c), .. }) = self.attempts.get(&attempt) else {
            self.events.push_back(inconclusive);
            return;
        };
        let Some(running) = self.jobs.get(job) else {
            self.events.push_back(inconclusive);
            return;
        };
        let data = &running.data;
        let operands =
            data.operand(Operand::Band(tile.band)).and_then(|a| Ok((a, data.operand(Operand::Panel(tile.panel))?)));
        let notices = self.notices.clone();
        let submitted = operands.and_then(|(a, b)| {
            self.checker.submit(Check {
                a,
                b,
                c: c.clone(),
                dtype: data.dtype,
                probe: data.probe(tile.panel),
                done: Box::new(move |checked| {
                    let _ = notices.blocking_send(Notice::Checked { attempt, checked });
                }),
            })
        });
        if let Err(error) = submitted {
            tracing::warn!(event = "check_failed", attempt = attempt.0, %error);
            self.events.push_back(inconclusive);
        }
    }

    fn checked(&mut self, attempt: AttemptId, checked: Checked) {
        let Some(under_way) = self.attempts.get(&attempt) else { return };
        let worker = under_way.worker;
        let peer = self.peers.link_of(worker).map(|(peer, _)| peer);
        if let Some(running) = self.jobs.get_mut(&under_way.job) {
            running.check_seconds += checked.took.as_secs_f64();
            match &checked.verdict {
                CheckVerdict::Good(method) => running.method = method,
                CheckVerdict::Bad(why) => {
                    let peer = peer.map_or_else(String::new, |peer| peer.to_string());
                    running.rejected.push(Rejection { peer, why: why.clone() });
                }
                CheckVerdict::Failed(_) => {}
            }
        }
        let verdict = match checked.verdict {
            CheckVerdict::Good(_) => {
                if let Some(known) = peer.and_then(|peer| self.peers.get_mut(&peer)) {
                    known.tasks_checked += 1;
                }
                Verdict::Good { answer: self.answer_of(attempt) }
            }
            CheckVerdict::Bad(_) => Verdict::Bad,
            CheckVerdict::Failed(why) => {
                tracing::warn!(event = "check_failed", attempt = attempt.0, why);
                Verdict::Inconclusive
            }
        };
        self.events.push_back(Event::AttemptChecked { attempt, verdict, seconds: checked.took.as_secs_f64() });
    }

    /// Equal for answers that count as the same: by bits for integers; floats that pass their check agree
    /// within the same tolerance.
    fn answer_of(&self, attempt: AttemptId) -> u64 {
        let Some(under_way) = self.attempts.get(&attempt) else { return 0 };
        let redundant = self.jobs.get(&under_way.job).is_some_and(|running| running.request.redundancy > 1);
        match &under_way.result {
            Some(tensor) if redundant && !tensor.dtype().is_float() => {
                let mut word = [0; 8];
                word.copy_from_slice(&tensor.digest().as_bytes()[..8]);
                u64::from_le_bytes(word)
            }
            _ => 0,
        }
    }

    fn accept(&mut self, attempt: AttemptId, job: JobId, tile: Tile, worker: WorkerId) {
        let Some(Attempt { result: Some(part), .. }) = self.attempts.remove(&attempt) else { return };
        if let Some(running) = self.jobs.get_mut(&job) {
            running.merge(tile, part);
            running.show_progress();
        }
        tracing::trace!(event = "accepted", attempt = attempt.0, job, worker = worker.0);
    }

    /// The worker lacks operands that it was thought to have.
    fn send_again(&mut self, peer: PeerId, attempt: AttemptId, digests: Vec<Digest>) {
        for digest in &digests {
            self.evicted(peer, *digest);
        }
        let Some(under_way) = self.attempts.get(&attempt) else { return };
        let Some(running) = self.jobs.get(&under_way.job) else { return };
        let feed = Feed {
            attempt,
            job: Rc::clone(&running.data),
            tile: under_way.tile,
            priority: running.request.priority,
            deadline: None,
            cancel: under_way.cancel.clone(),
            lacking: Some(digests),
        };
        let Some(link) = self.peers.get(&peer).and_then(|known| known.link.as_ref()) else { return };
        if link.feeder.try_send(feed).is_err() {
            self.events.push_back(Event::AttemptFailed { attempt, kind: FailureKind::Overloaded });
        }
    }

    fn evicted(&mut self, peer: PeerId, digest: Digest) {
        let Some(link) = self.peers.get(&peer).and_then(|known| known.link.as_ref()) else { return };
        link.resident.borrow_mut().remove(&digest);
        let Some(worker) = link.worker else { return };
        for (job, running) in &self.jobs {
            let operands = running.data.operands_of(&digest);
            if !operands.is_empty() {
                self.events.push_back(Event::OperandsEvicted {
                    worker,
                    job: pangea_control::schedule::JobId(*job),
                    operands,
                });
            }
        }
    }

    fn release(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        let Some(digest) = self.jobs.get(&job).and_then(|running| running.data.digest_cell(operand).get().copied())
        else {
            return;
        };
        if let Some((_, link)) = self.peers.link_of(worker) {
            // Advice only: the worker drops what is oldest by itself.
            let _ = link.link.release(digest);
        }
    }

    fn quarantine(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some((peer, _)) = self.peers.link_of(worker) else { return };
        let evidence = self.attempts.get(&attempt).and_then(|under_way| {
            let running = self.jobs.get(&under_way.job)?;
            let data = &running.data;
            Some(Evidence {
                peer: peer.to_string(),
                job: under_way.job,
                attempt: attempt.0,
                why: running.rejected.last().map_or_else(String::new, |rejection| rejection.why.clone()),
                a: data.operand(Operand::Band(under_way.tile.band)).ok()?,
                b: data.operand(Operand::Panel(under_way.tile.panel)).ok()?,
                c: under_way.result.clone()?,
            })
        });
        let why =
            evidence.as_ref().map_or_else(|| "a result failed its check".to_owned(), |evidence| evidence.why.clone());
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: a result of its failed the check ({why})");
        if let Some(known) = self.peers.get_mut(&peer) {
            known.quarantined = Some(why);
        }
        if let (Some(evidence), Some(data_dir)) = (evidence, self.settings.data_dir.clone()) {
            tokio::task::spawn_blocking(move || match evidence.keep(&data_dir) {
                Ok(folder) => tracing::info!(event = "evidence_kept", folder = %folder.display()),
                Err(error) => {
                    tracing::warn!(event = "evidence_lost", %error, "the evidence could not be written: {error}")
                }
            });
        }
    }

    /// A peer that was found to lie elsewhere than in tasks.
    fn keep_out(&mut self, peer: PeerId, why: String) {
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: {why}");
        self.peers.entry(peer, Instant::now()).quarantined = Some(why.clone());
        if let Some(network) = self.network.clone() {
            tokio::task::spawn_local(async move { network.block(peer, &format!("quarantined: {why}")).await });
        }
    }

    fn finished(&mut self, job: JobId, report: pangea_control::schedule::JobReport) {
        let Some(running) = self.jobs.get_mut(&job) else { return };
        let Some(product) = running.product() else {
            self.failed(job, FailureKind::Internal, "the product is not whole".to_owned(), &report);
            return;
        };
        if running.request.verify == VerifyPolicy::Standard {
            self.deliver(job, &report, product);
            return;
        }
        let notices = self.notices.clone();
        let submitted = self.checker.submit(Check {
            a: running.request.a.clone(),
            b: running.request.b.clone(),
            c: product.clone(),
            dtype: running.data.dtype,
            probe: std::sync::Arc::new(PanelProbe::default()),
            done: Box::new(move |checked| {
                let _ = notices.blocking_send(Notice::WholeChecked { job, checked });
            }),
        });
        match submitted {
            Ok(()) => {
                self.finishing.insert(job, (report, product));
            }
            Err(error) => self.failed(job, FailureKind::Overloaded, error.to_string(), &report),
        }
    }

    fn whole_checked(&mut self, job: JobId, checked: Checked) {
        let Some((report, product)) = self.finishing.remove(&job) else { return };
        let Some(running) = self.jobs.get_mut(&job) else { return };
        running.check_seconds += checked.took.as_secs_f64();
        match checked.verdict {
            CheckVerdict::Good(method) => {
                running.method = method;
                self.deliver(job, &report, product);
            }
            CheckVerdict::Bad(why) => self.failed(
                job,
                FailureKind::VerificationFailed,
                format!("the whole product failed its check: {why}"),
                &report,
            ),
            CheckVerdict::Failed(why) => {
                self.failed(job, FailureKind::Internal, format!("the check could not be done: {why}"), &report)
            }
        }
    }

    fn deliver(&mut self, job: JobId, report: &pangea_control::schedule::JobReport, product: Tensor) {
        let Some(mut running) = self.jobs.remove(&job) else { return };
        self.executor.forget(job);
        let seconds = running.submitted.elapsed().as_secs_f64();
        self.counters.jobs_done += 1;
        if report.tasks.remote > 0 {
            // Peers hold these bands and panels: the next product with one of them is cut alike.
            let grid = &running.data.grid;
            self.remember_side(&running.data.a, Side::Left, grid.band_rows());
            self.remember_side(&running.data.b, Side::Right, grid.panel_columns());
        }
        let report = self.report(&running, report, seconds);
        tracing::debug!(event = "job_done", job, seconds, predicted = report.predicted_seconds, mode = report.mode);
        if let Some(outcome) = running.outcome.take() {
            let _ = outcome.send(Ok(JobOutcome { product, report }));
        }
    }

    fn failed(&mut self, job: JobId, kind: FailureKind, why: String, report: &pangea_control::schedule::JobReport) {
        self.finishing.remove(&job);
        self.executor.forget(job);
        let outcome = match (self.submitting.remove(&job), self.jobs.remove(&job)) {
            (Some(submitting), _) => Some(submitting.outcome),
            (None, Some(mut running)) => running.outcome.take(),
            (None, None) => return,
        };
        tracing::debug!(event = "job_failed", job, ?kind, why, seconds = report.actual_seconds);
        self.counters.jobs_failed += 1;
        if let Some(outcome) = outcome {
            let _ = outcome.send(Err(Error::new(kind, why)));
        }
    }

    fn report(&self, running: &RunningJob, report: &pangea_control::schedule::JobReport, seconds: f64) -> JobReport {
        let (a, b) = (&running.request.a, &running.request.b);
        let shape = [a.rows(), a.cols(), b.cols()];
        let flops = 2.0 * shape.iter().map(|side| *side as f64).product::<f64>();
        let tasks = TaskCounts {
            total: report.tasks.total,
            remote: report.tasks.remote,
            local: report.tasks.local,
            retried: report.tasks.retried,
            hedged: report.tasks.hedged,
        };
        let mode = match (tasks.remote, tasks.local) {
            (0, _) => "local",
            (_, 0) => "remote",
            _ => "mixed",
        };
        let verdict = match (tasks.remote, running.data.dtype.is_float()) {
            (0, _) => "local",
            (_, true) => "tolerance-checked",
            (_, false) => "verified",
        };
        JobReport {
            shape,
            dtype: running.data.dtype.name().to_owned(),
            seconds,
            gflops: if seconds > 0.0 { flops / seconds / 1e9 } else { 0.0 },
            tasks,
            workers: report.workers.iter().map(|share| self.share(share)).collect(),
            bytes_sent: running.data.bytes_sent.get(),
            bytes_received: running.bytes_received,
            verification: Verification {
                method: running.method.to_owned(),
                verdict: verdict.to_owned(),
                rejected: running.rejected.clone(),
                seconds: running.check_seconds,
            },
            mode: mode.to_owned(),
            predicted_seconds: report.predicted_seconds,
        }
    }

    fn share(&self, share: &pangea_control::schedule::WorkerShare) -> WorkerShare {
        let (peer, name) = if share.worker.is_local() {
            (self.settings.peer.to_string(), self.settings.name.clone())
        } else {
            self.worker_names.get(&share.worker).cloned().unwrap_or_default()
        };
        WorkerShare { peer, name, tasks: share.tasks, seconds: share.seconds }
    }

    // Peers.

    /// Serves the task streams that peers open.
    fn accept_streams(&mut self) {
        let Some(network) = &self.network else { return };
        let mut incoming = match network.streams().accept(StreamProtocol::new(PROTOCOL)) {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::error!(event = "accept_failed", %error);
                return;
            }
        };
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            // Streams that arrive while nobody waits are dropped, so nothing else happens in this loop.
            while let Some((peer, stream)) = incoming.next().await {
                if notices.try_send(Notice::Incoming { peer, stream }).is_err() {
                    tracing::warn!(event = "stream_dropped", %peer, "too busy to take a stream");
                }
            }
        });
    }

    fn serve(&mut self, peer: PeerId, stream: libp2p::Stream) {
        let streams = self.served_streams.entry(peer).or_default();
        if *streams >= SERVED_STREAMS_PER_PEER {
            tracing::debug!(event = "stream_refused", %peer);
            return;
        }
        *streams += 1;
        let advert = self.advert();
        let served = Rc::clone(&self.served);
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            let why = serve::serve(stream, peer, advert, served).await;
            let _ = notices.send(Notice::ServeEnded { peer, why: why.to_string() }).await;
        });
    }

    fn open_stream(&self, peer: PeerId, after: Duration) {
        let Some(network) = &self.network else { return };
        let mut control = network.streams();
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            let opening = control.open_stream(peer, StreamProtocol::new(PROTOCOL));
            let stream = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(opened) => opened.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no stream within {} s", OPEN_TIMEOUT.as_secs())),
            };
            let _ = notices.send(Notice::StreamOpened { peer, stream }).await;
        });
    }

    /// Opens a new stream where the connection outlived the old one: later and later, if they keep ending.
    fn reopen(&mut self, peer: PeerId) {
        if self.served.borrow().draining {
            return;
        }
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.state != PeerState::Gone) else { return };
        let lasted = known.since.elapsed();
        known.enter(PeerState::Connecting, Instant::now());
        known.reopened = if lasted > REOPEN_LATEST { 0 } else { known.reopened.saturating_add(1) };
        let after = REOPEN_FIRST.saturating_mul(1 << known.reopened.min(16)).min(REOPEN_LATEST);
        self.open_stream(peer, after);
    }

    fn stream_opened(&mut self, peer: PeerId, stream: std::result::Result<libp2p::Stream, String>) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(why) => {
                tracing::debug!(event = "open_failed", %peer, why);
                let (waiting, others) =
                    std::mem::take(&mut self.waiting_for).into_iter().partition(|(of, ..)| *of == peer);
                self.waiting_for = others;
                let waiting: Vec<_> = waiting;
                for (_, _, answer) in waiting {
                    let why = format!("{peer} is connected but offers no {PROTOCOL}: {why}");
                    let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, why)));
                }
                return;
            }
        };
        if !self.peers.get(&peer).is_some_and(|known| known.state != PeerState::Gone && known.link.is_none()) {
            return;
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        let link = Rc::new(coordinator::open(stream, peer, generation, self.advert(), self.link_events.clone()));
        let resident = Rc::new(RefCell::new(HashSet::new()));
        let notices = self.notices.clone();
        let feeder = feeder::start(peer, Rc::clone(&link), Rc::clone(&resident), move |attempt, error| {
            // A lost notice leaves the attempt to the detector of silent workers.
            let _ = notices.try_send(Notice::FeedFailed { attempt, error });
        });
        if let Some(known) = self.peers.get_mut(&peer) {
            known.link = Some(OpenLink {
                generation,
                link,
                worker: None,
                resident,
                feeder,
                sent: (0, Duration::ZERO),
                busy: Duration::ZERO,
            });
        }
    }

    fn link_opened(&mut self, peer: PeerId, advert: TaskHello) {
        let now = Instant::now();
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(link) = known.link.as_mut() else { return };
        let works = advert.works && known.quarantined.is_none();
        let measured = measure(Rc::clone(&link.link), Rc::clone(&self.probes), FIRST_PROBE_BYTES);
        let (notices, generation) = (self.notices.clone(), link.generation);
        self.worker_names.insert(worker, (peer.to_string(), advert.name.clone()));
        link.worker = works.then_some(worker);
        known.advert = Some(advert);
        known.enter(PeerState::Connected, now);
        tracing::info!(event = "connected", %peer, name = known.name(), "Connected to peer {peer}");
        tokio::task::spawn_local(async move {
            // The first small one warms the path up; what counts is the second.
            if let Some((took, bytes)) = measured.await
                && !took.is_zero()
            {
                let bytes_per_s = bytes as f64 / took.as_secs_f64();
                let _ = notices.send(Notice::LinkMeasured { peer, generation, bytes_per_s }).await;
            }
        });
        if works && let Some(estimate) = self.estimate(&peer) {
            self.events.push_back(Event::WorkerJoined { worker, estimate });
        }
        let (answered, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting_for).into_iter().partition(|(of, ..)| *of == peer);
        self.waiting_for = waiting;
        for (_, _, answer) in answered {
            let _ = answer.send(Ok(peer.to_string()));
        }
        self.count_connecting();
    }

    fn close_link(&mut self, peer: PeerId, why: LeaveReason) {
        let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.take()) else { return };
        if let Some(worker) = link.worker {
            self.attempts.retain(|_, attempt| attempt.worker != worker || attempt.result.is_some());
            self.events.push_back(Event::WorkerLeft { worker, why });
        }
    }

    fn update_worker(&mut self, peer: PeerId) {
        let worker = self.peers.get(&peer).and_then(|known| known.link.as_ref()).and_then(|link| link.worker);
        if let (Some(worker), Some(estimate)) = (worker, self.estimate(&peer)) {
            self.events.push_back(Event::WorkerUpdated { worker, estimate });
        }
    }

    fn estimate(&self, peer: &PeerId) -> Option<WorkerEstimate> {
        let known = self.peers.get(peer)?;
        let advert = known.advert.as_ref()?;
        let speeds = Speeds {
            f32_flops_per_s: advert.f32_flops_per_s,
            f64_flops_per_s: advert.f64_flops_per_s,
            i8_flops_per_s: advert.i8_flops_per_s,
        };
        let bytes_per_s = if known.bytes_per_s > 0.0 { known.bytes_per_s } else { DEFAULT_BYTES_PER_S };
        let rtt = known.rtt.unwrap_or(DEFAULT_RTT).as_secs_f64();
        let mut estimate = WorkerEstimate::remote(rates(&speeds), bytes_per_s, rtt, advert.store_bytes);
        estimate.max_in_flight = usize::from(advert.tasks_max).clamp(1, IN_FLIGHT_MAX);
        estimate.busy_s = known.link.as_ref().map_or(0.0, |link| link.busy.as_secs_f64());
        Some(estimate)
    }

    fn advert(&self) -> TaskHello {
        let speeds = &self.settings.speeds;
        TaskHello {
            version: VERSION,
            name: self.settings.name.clone(),
            software: concat!("pangea ", env!("CARGO_PKG_VERSION")).to_owned(),
            threads: u16::try_from(self.settings.threads).unwrap_or(u16::MAX),
            f32_flops_per_s: speeds.f32_flops_per_s,
            f64_flops_per_s: speeds.f64_flops_per_s,
            i8_flops_per_s: speeds.i8_flops_per_s,
            store_bytes: self.served.borrow().store.quota(),
            tasks_max: TASKS_PER_PEER as u16,
            isa: self.executor.isa().to_owned(),
            works: self.settings.works,
        }
    }

    fn connect(&mut self, address: &str, timeout: Duration, answer: oneshot::Sender<Result<String>>) {
        let Some(network) = self.network.clone() else {
            let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, "this node has no network")));
            return;
        };
        let address = match peer_address::parse(address) {
            Ok(address) => address,
            Err(error) => {
                let _ = answer.send(Err(Error::new(ErrorKind::InvalidInput, error.to_string())));
                return;
            }
        };
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            let deadline = Instant::now() + timeout;
            let result = network.connect(address, timeout).await.map_err(net_error);
            let _ = notices.send(Notice::Connected { result, deadline, answer }).await;
        });
    }

    fn connected(&mut self, result: Result<PeerId>, deadline: Instant, answer: oneshot::Sender<Result<String>>) {
        match result {
            Err(error) => {
                let _ = answer.send(Err(error));
            }
            Ok(peer) if self.peers.get(&peer).is_some_and(|known| known.state == PeerState::Connected) => {
                let _ = answer.send(Ok(peer.to_string()));
            }
            // Admitted; its advert is still to come.
            Ok(peer) => self.waiting_for.push((peer, deadline, answer)),
        }
    }

    /// The open link to a peer by its id or name; where `peer` is empty, to any that is connected.
    fn link_to(&self, peer: &str) -> Result<(PeerId, &Peer, Rc<Link>)> {
        let found = self.peers.iter().find(|(id, known)| {
            known.link.is_some()
                && (id.to_string() == peer
                    || known.name() == peer
                    || (peer.is_empty() && known.state == PeerState::Connected))
        });
        let open = found.and_then(|(id, known)| Some((*id, known, Rc::clone(&known.link.as_ref()?.link))));
        open.ok_or_else(|| {
            let why = format!("no connected peer is called '{peer}'; `pangea peers` lists them");
            Error::new(ErrorKind::NotFound, why)
        })
    }

    fn check_peer(&self, peer: &str, timeout: Duration, answer: oneshot::Sender<Result<Duration>>) {
        let (id, link) = match self.link_to(peer) {
            Ok((id, known, link)) => (format!("{} ({id})", known.name()), link),
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let probes = Rc::clone(&self.probes);
        tokio::task::spawn_local(async move {
            let round_trip = probe_within(&link, &probes, SMALL_BYTES, timeout).await;
            let _ = answer.send(round_trip.ok_or_else(|| {
                let why = format!("{id} did not answer within {} ms", timeout.as_millis());
                Error::new(ErrorKind::DeadlineExceeded, why)
            }));
        });
    }

    fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32, answer: oneshot::Sender<Result<LinkProbe>>) {
        let (id, transport, link) = match self.link_to(peer) {
            Ok((id, known, link)) => (id, known.transport.clone(), link),
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let probes = Rc::clone(&self.probes);
        tokio::task::spawn_local(async move {
            let measured = measure_rounds(link, probes, message_bytes, rounds).await;
            let _ = answer.send(match measured {
                Some((bytes_per_s, round_trip)) => Ok(LinkProbe {
                    peer: id.to_string(),
                    transport,
                    message_bytes,
                    bytes_per_s,
                    round_trip_us: round_trip.as_secs_f64() * 1e6,
                }),
                None => Err(Error::new(ErrorKind::Unavailable, format!("{id} went away during the measurement"))),
            });
        });
    }

    fn say_goodbye(&mut self) {
        for (_, peer) in self.peers.iter_mut() {
            if let Some(link) = &peer.link {
                // A full link is told nothing; its peer sees the stream end.
                let _ = link.link.goodbye("the node is shutting down");
            }
        }
    }

    fn status(&self) -> NodeStatus {
        let served = self.served.borrow();
        NodeStatus {
            peer: self.settings.peer.to_string(),
            name: self.settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            listening: self.listening.borrow().clone(),
            rpc: self.rpc.clone(),
            pool_key: self.settings.pool_key,
            threads: u32::try_from(self.settings.threads).unwrap_or(u32::MAX),
            gflops: self.settings.speeds.f32_flops_per_s / 1e9,
            isa: self.executor.isa().to_owned(),
            memory_used_bytes: self.settings.budget.used(),
            memory_limit_bytes: self.settings.budget.limit(),
            peers: self.peers.connected() as u32,
            jobs_running: (self.jobs.len() + self.submitting.len()) as u32,
            jobs_done: self.counters.jobs_done,
            jobs_failed: self.counters.jobs_failed,
            tasks_served: served.tasks_done,
            bytes_sent: self.counters.bytes_sent + served.bytes_sent,
            bytes_received: self.counters.bytes_received + served.bytes_received,
        }
    }
}

async fn next_event(events: &mut Option<Follower>) -> Option<NetEvent> {
    match events {
        Some(events) => events.recv().await,
        None => None,
    }
}

/// Sends `bytes` and waits until all arrived: the time from the first byte to the answer, less nothing.
async fn probe(link: &Link, probes: &RefCell<Probes>, bytes: u64) -> Option<Duration> {
    probe_within(link, probes, bytes, PROBE_TIMEOUT).await
}

async fn probe_within(link: &Link, probes: &RefCell<Probes>, bytes: u64, timeout: Duration) -> Option<Duration> {
    let (answer, answered) = oneshot::channel();
    let nonce = {
        let mut probes = probes.borrow_mut();
        probes.next += 1;
        let nonce = probes.next;
        probes.waiting.insert(nonce, answer);
        nonce
    };
    let begin = Instant::now();
    link.send(Bulk::Probe { nonce, bytes }).ok()?;
    let end = tokio::time::timeout(timeout, answered).await;
    // Of a peer that went away, nothing is left to wait for.
    probes.borrow_mut().waiting.remove(&nonce);
    Some(end.ok()?.ok()?.duration_since(begin))
}

/// The time that `bytes` take beyond a round trip.
async fn measure(link: Rc<Link>, probes: Rc<RefCell<Probes>>, bytes: u64) -> Option<(Duration, u64)> {
    probe(&link, &probes, SMALL_BYTES).await?;
    let round_trip = probe(&link, &probes, SMALL_BYTES).await?;
    let took = probe(&link, &probes, bytes).await?;
    Some((took.saturating_sub(round_trip).max(took / 8), bytes))
}

/// Medians over `rounds`: bytes per second of bulk messages, and the round trip of small ones.
async fn measure_rounds(
    link: Rc<Link>,
    probes: Rc<RefCell<Probes>>,
    bytes: u64,
    rounds: u32,
) -> Option<(f64, Duration)> {
    let rounds = rounds.clamp(1, ROUNDS_MAX);
    let mut rates = Vec::new();
    let mut trips = Vec::new();
    probe(&link, &probes, bytes.min(FIRST_PROBE_BYTES)).await?;
    for _ in 0..rounds {
        rates.push(bytes as f64 / probe(&link, &probes, bytes).await?.as_secs_f64().max(1e-9));
    }
    for _ in 0..rounds.max(SMALL_ROUNDS_MIN) {
        trips.push(probe(&link, &probes, SMALL_BYTES).await?);
    }
    rates.sort_by(f64::total_cmp);
    trips.sort();
    Some((rates[rates.len() / 2], trips[trips.len() / 2]))
}

fn rates(speeds: &Speeds) -> [f64; Arithmetic::COUNT] {
    let mut rates = [0.0; Arithmetic::COUNT];
    rates[Arithmetic::F32 as usize] = speeds.f32_flops_per_s;
    rates[Arithmetic::F64 as usize] = speeds.f64_flops_per_s;
    // Halves are widened while they are packed; the product itself is f32.
    rates[Arithmetic::Half as usize] = speeds.f32_flops_per_s;
    rates[Arithmetic::Int8 as usize] = speeds.i8_flops_per_s;
    rates
}

fn arithmetic(a: DType, b: DType) -> Arithmetic {
    match (a, b) {
        (DType::I8, DType::I8) => Arithmetic::Int8,
        (DType::F64, _) | (_, DType::F64) => Arithmetic::F64,
        (DType::F32, _) | (_, DType::F32) => Arithmetic::F32,
        _ => Arithmetic::Half,
    }
}

fn net_error(error: crate::net::NetError) -> Error {
    use crate::net::NetError;
    let kind = match &error {
        NetError::Refused { .. } => ErrorKind::Unauthorized,
        NetError::OwnAddress(_) => ErrorKind::InvalidInput,
        NetError::TimedOut { .. } => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string())
}
