//! The handle of the fabric for the rest of the node: cheap to clone, usable from
//! any thread. It only sends commands; the driver on the network thread does the work.

use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cut, TensorShape};
use pangea_control::jobs::{JobKind, JobSpec};
use pangea_control::peers::SuspicionReason;
use tokio::sync::{mpsc, oneshot, watch};

use super::job::{CancelOnDrop, Job, JobId, JobReply, JobRequest, Progress, TileMap};
use super::spans;
use super::status::{LinkProbe, NodeStatus, PeerStatus};
use crate::clock;
use crate::devices::{Devices, Kind, Lease};
use crate::jobs::Jobs;
use crate::peers::Peers;

/// The fabric of this node.
#[derive(Clone)]
pub struct Fabric {
    commands: mpsc::Sender<Command>,
    jobs: Jobs,
    devices: Devices,
    listening: watch::Receiver<Vec<String>>,
    peers: Peers,
}

/// A command to the driver.
#[expect(clippy::large_enum_variant, reason = "most commands submit jobs")]
pub(crate) enum Command {
    Submit {
        job: JobId,
        request: JobRequest,
        submitted: Instant,
        reply: JobReply,
    },
    Cancel(JobId),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Status(oneshot::Sender<NodeStatus>),
    Connect {
        address: String,
        timeout: Duration,
        answer: oneshot::Sender<Result<String>>,
    },
    ProbeLink {
        peer: String,
        message_bytes: u64,
        rounds: u32,
        answer: oneshot::Sender<Result<LinkProbe>>,
    },
    CheckPeer {
        peer: String,
        timeout: Duration,
        answer: oneshot::Sender<Result<Duration>>,
    },
    /// Accept no more work; answered once all running work has ended or `within` has passed.
    Drain {
        within: Duration,
        answer: oneshot::Sender<()>,
    },
}

impl Fabric {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        jobs: Jobs,
        devices: Devices,
        listening: watch::Receiver<Vec<String>>,
        peers: Peers,
    ) -> Fabric {
        Fabric { commands, jobs, devices, listening, peers }
    }

    /// Accepts a job, or refuses it at once if shapes or dtypes do not fit. Never waits. The caller reserves memory for the
    /// result, which outlives the job.
    pub fn submit(&self, request: JobRequest) -> Result<Job> {
        let output = judge(&request)?;
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (tiles_sender, tiles) = watch::channel(TileMap::default());
        let (outcome_sender, outcome) = oneshot::channel();
        let commands = self.commands.downgrade();
        let ticket = self.jobs.submit(job_spec(&request, output), move |id| cancel(&commands, id.0))?;
        let id = ticket.id().0;
        let span = spans::product(&request, output, id);
        let reply = JobReply::new(ticket, progress_sender, tiles_sender, outcome_sender, span);
        self.send(Command::Submit { job: id, request, submitted: Instant::now(), reply })?;
        let cancel = CancelOnDrop { job: id, cancelled: self.commands.downgrade() };
        Ok(Job { id, output, progress, tiles, outcome, cancel })
    }

    /// Status of every peer that this node knows.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>> {
        self.ask(Command::Peers).await
    }

    /// Status of this node.
    pub async fn status(&self) -> Result<NodeStatus> {
        self.ask(Command::Status).await
    }

    /// Connects to `address` (a multiaddr); returns the peer id once both sides have admitted each other.
    pub async fn connect(&self, address: &str, timeout: Duration) -> Result<String> {
        self.ask(|answer| Command::Connect { address: address.to_owned(), timeout, answer }).await?
    }

    /// Measures the link to `peer`: `rounds` messages of `message_bytes`, and as many small round trips.
    pub async fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> Result<LinkProbe> {
        self.ask(|answer| Command::ProbeLink { peer: peer.to_owned(), message_bytes, rounds, answer }).await?
    }

    /// Round-trip time to a connected peer (by peer id or name) over the open stream.
    ///
    /// # Errors
    /// `NotFound` if no such peer is connected, `DeadlineExceeded` if it does not answer within `timeout`.
    pub async fn check_peer(&self, peer: &str, timeout: Duration) -> Result<Duration> {
        self.ask(|answer| Command::CheckPeer { peer: peer.to_owned(), timeout, answer }).await?
    }

    /// Lowers the trust of a peer for a while: it did something that a liar does and that proves nothing.
    pub fn suspect(&self, peer: PeerId, reason: SuspicionReason) {
        self.peers.suspect(peer, reason);
    }

    /// Whether a peer is to be used last and audited first.
    pub fn is_suspect(&self, peer: &PeerId) -> bool {
        self.peers.is_suspect(peer)
    }

    /// Accepts no more work; returns once all running work has ended, or after `within`.
    pub async fn drain(&self, within: Duration) -> Result<()> {
        self.ask(|answer| Command::Drain { within, answer }).await
    }

    /// The libp2p listen addresses of this node so far, each with its `/p2p/` part; the list grows.
    pub fn listening(&self) -> watch::Receiver<Vec<String>> {
        self.listening.clone()
    }

    /// Leases memory for a tensor of this node's own products.
    ///
    /// # Errors
    /// `Overloaded`, with the needed and the free bytes.
    pub fn lease(&self, bytes: u64) -> Result<Lease> {
        self.devices.lease(Kind::Tensors, bytes)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer))?;
        answered.await.map_err(|_| gone())
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(ErrorKind::Overloaded, "too many requests are queued on this node; try again later")
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        cancel(&self.cancelled, self.job);
    }
}

/// Checks that the operands fit; returns the shape of the result.
fn judge(request: &JobRequest) -> Result<TensorShape> {
    let output = request.result()?;
    if request.redundancy == 0 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "redundancy must be at least 1: it is the number of workers per task",
        ));
    }
    Ok(output)
}

fn cancel(commands: &mpsc::WeakSender<Command>, job: JobId) {
    if let Some(commands) = commands.upgrade() {
        // If the queue is full, the job ends by itself and its result is dropped.
        let _ = commands.try_send(Command::Cancel(job));
    }
}

/// Describes an operation for the registry of jobs.
fn job_spec(request: &JobRequest, TensorShape { dtype, rows, cols }: TensorShape) -> JobSpec {
    JobSpec {
        kind: JobKind::Operation(request.operation.result_name()),
        subject: match request.operation.cut() {
            Cut::Crossed => format!("{rows}x{}x{cols} {dtype}", request.a.cols()),
            Cut::Paired => format!("{rows}x{cols} {dtype}"),
        },
        owner: request.owner.clone(),
        deadline: request.deadline.map(|within| clock::now() + within),
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "this node is shutting down")
}
