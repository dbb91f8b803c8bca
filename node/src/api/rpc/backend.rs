//! The interface that the Cap'n Proto service uses to reach the rest of the node, without behaviour of its own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use pangea_client::{
    Error, ErrorKind, JobStatus, LinkProbe, ModelPlan, NodeStatus, PeerStatus, Progress, Result, Topology, WayBack,
};
use tokio::sync::{oneshot, watch};

use crate::devices::Lease;
use crate::fabric::Fabric;
use crate::fabric::job::{CancelOnDrop, JobOutcome, JobRequest};
use crate::jobs::Jobs;
use crate::net::way_back::WaysBack;
use crate::placement;
use crate::pool::{Members, Pool, said};

/// Peers that are asked for the way back: one of each network is enough, and a pool may be large.
const MAX_ASKED: usize = 4;

/// The node behind the service. Cheap to clone; calls return at once or await the node's parts.
pub trait Backend: Clone + Send + 'static {
    /// Part of the node's memory, given back when dropped.
    type Lease: 'static;

    /// Cancels a job when dropped; has no effect once the job has ended.
    type CancelOnDrop: 'static;

    /// Accepts a job or refuses it at once; never waits. The caller has leased the product's
    /// memory already.
    fn submit(&self, request: JobRequest) -> Result<RunningJob<Self::CancelOnDrop>>;

    /// Leases `bytes` of memory or refuses with `Overloaded`.
    fn lease(&self, bytes: u64) -> Result<Self::Lease>;

    /// Status of every peer that this node knows.
    fn peers(&self) -> impl Future<Output = Result<Vec<PeerStatus>>>;

    /// Status of this node.
    fn status(&self) -> impl Future<Output = Result<NodeStatus>>;

    /// Connects to `address` (a multiaddr) and returns the peer id once both sides have admitted each other.
    fn connect(&self, address: &str, timeout: Duration) -> impl Future<Output = Result<String>>;

    /// Measures the link to `peer`: `rounds` messages of `message_bytes` and as many small round
    /// trips.
    fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> impl Future<Output = Result<LinkProbe>>;

    /// Jobs of this node, latest first.
    fn jobs(&self) -> Vec<JobStatus>;

    /// The pool as this node sees it.
    fn topology(&self) -> Topology;

    /// Where a model would be placed, and where it is placed now.
    fn plan_model(&self, model: &str) -> Result<ModelPlan>;

    /// Who belongs to the pool; `None` without a network.
    fn members(&self) -> Option<Members>;

    /// What a few connected peers say of the way back to this node; those that cannot be asked are left out.
    fn ways_back(&self) -> impl Future<Output = Result<Vec<WayBack>>>;

    /// Round-trip time to a connected peer over the existing connection.
    fn check_peer(&self, peer: &str, timeout: Duration) -> impl Future<Output = Result<Duration>>;
}

/// A running node: its fabric, its jobs and its pool.
#[derive(Clone)]
pub struct RunningNode {
    /// Schedules and computes products.
    pub fabric: Fabric,
    /// The pool; `None` without a network.
    pub pool: Option<Pool>,
    /// Who belongs to the pool; `None` without a network.
    pub members: Option<Members>,
    /// Asks peers for the way back; `None` without a network.
    pub ways_back: Option<WaysBack>,
    /// The jobs of this node.
    pub jobs: Jobs,
    /// Address of the HTTP API; empty if it is disabled.
    pub api: String,
}

/// A job that the backend has accepted.
pub struct RunningJob<C> {
    /// The latest progress.
    pub progress: watch::Receiver<Progress>,
    /// Resolves once with the product or the failure.
    pub outcome: oneshot::Receiver<Result<JobOutcome>>,
    /// Cancels the job when the caller drops it.
    pub cancel: C,
}

impl Backend for RunningNode {
    type Lease = Lease;
    type CancelOnDrop = CancelOnDrop;

    fn submit(&self, request: JobRequest) -> Result<RunningJob<CancelOnDrop>> {
        let job = self.fabric.submit(request)?;
        Ok(RunningJob { progress: job.progress, outcome: job.outcome, cancel: job.cancel })
    }

    fn lease(&self, bytes: u64) -> Result<Lease> {
        self.fabric.lease(bytes)
    }

    async fn peers(&self) -> Result<Vec<PeerStatus>> {
        let peers = self.fabric.peers().await?;
        Ok(match &self.pool {
            Some(pool) => said::of_peers(peers, &pool.view().borrow()),
            None => peers,
        })
    }

    async fn status(&self) -> Result<NodeStatus> {
        let status = NodeStatus { api: self.api.clone(), ..self.fabric.status().await? };
        Ok(match &self.pool {
            Some(pool) => said::of_node(status, &pool.view().borrow()),
            None => status,
        })
    }

    async fn connect(&self, address: &str, timeout: Duration) -> Result<String> {
        self.fabric.connect(address, timeout).await
    }

    async fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> Result<LinkProbe> {
        self.fabric.probe_link(peer, message_bytes, rounds).await
    }

    fn members(&self) -> Option<Members> {
        self.members.clone()
    }

    fn jobs(&self) -> Vec<JobStatus> {
        self.jobs.list()
    }

    fn topology(&self) -> Topology {
        self.pool.as_ref().map(Pool::topology).unwrap_or_default()
    }

    fn plan_model(&self, model: &str) -> Result<ModelPlan> {
        let no_pool = || Error::new(ErrorKind::Unavailable, "this node runs without a network and belongs to no pool");
        let view = Arc::clone(&self.pool.as_ref().ok_or_else(no_pool)?.view().borrow());
        pangea_control::placement::preview(&view, model).map(placement::plan_report)
    }

    async fn ways_back(&self) -> Result<Vec<WayBack>> {
        let Some(ways_back) = &self.ways_back else { return Ok(Vec::new()) };
        let connected = self.peers().await?.into_iter().filter(|peer| peer.state == "connected").take(MAX_ASKED);
        let asked = connected.filter_map(|status| status.peer.parse().ok().map(|peer: PeerId| (peer, status)));
        let asked = asked.map(|(peer, status)| async move {
            let said = ways_back.ask(peer).await.ok()?;
            let of_address = move |(address, reached): (Multiaddr, bool)| WayBack {
                peer: status.peer.clone(),
                name: status.name.clone(),
                address: address.to_string(),
                reached,
            };
            Some(said.into_iter().map(of_address))
        });
        Ok(futures::future::join_all(asked).await.into_iter().flatten().flatten().collect())
    }

    async fn check_peer(&self, peer: &str, timeout: Duration) -> Result<Duration> {
        self.fabric.check_peer(peer, timeout).await
    }
}
