//! Puts the rooms of a node together on their threads: the network thread (swarm, streams, fabric, pool),
//! the executor and the checker. It starts and ends them and decides nothing.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::blob;
use crate::devices::Devices;
use crate::devices::threads::Purpose;
use crate::evidence::{EvidenceDriver, EvidenceFolder, EvidenceSettings, Findings};
use crate::fabric::{Fabric, FabricDriver, FabricSettings};
use crate::fault::Fault;
use crate::host::give_back_freed_memory;
use crate::jobs::Jobs;
use crate::net::way_back::WaysBack;
use crate::net::{self, Followers, GossipConfig, Interest, NetConfig, NetError, Network};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::pipeline::links::{self, LinksDriver};
use crate::pipeline::{ChainLimits, Draft, Loader, Pipeline};
use crate::placement;
use crate::pool::memory::Memory;
use crate::pool::revocations::RevocationsDriver;
use crate::pool::strangers::StrangersDriver;
use crate::pool::{Advert, Members, Pool, PoolDriver, PoolSettings, codec};
use crate::rows::{RowOpener, RowStore};
use crate::storage::State;
use crate::supervise::Supervisor;
use crate::tunnel::Tunnel;
use crate::worker::executor::{Executor, Speeds};

/// Dropped tensors are kept for reuse up to the node's memory divided by this,
const KEPT_SHARE: u64 = 32;

/// and at most this many bytes: a band or a panel and a few tiles, within what a job may use beside its operands and result.
const KEPT_BYTES: usize = 16 << 20;

/// The parts of a node.
pub struct Parts {
    /// The network; `None` for a fabric in this process only.
    pub net: Option<NetConfig>,
    /// Name for people.
    pub name: String,
    /// Memory and compute threads.
    pub devices: Devices,
    /// Folder in which evidence is stored.
    pub data_dir: Option<PathBuf>,
    /// Whether the node computes for others; a lite client does not.
    pub works: bool,
    /// Whether `--force-master` is set.
    pub force_master: bool,
    /// State that survives the process; `None` for an ephemeral node.
    pub state: Option<State>,
    /// The node's stages and sessions, which get their links here, the limits of a chain, and the small model that drafts.
    pub pipeline: Option<(Pipeline, ChainLimits, Option<Arc<Draft>>)>,
    /// Layers that `--layers` pins for models that others serve.
    pub pinned: Option<Range<u32>>,
    /// Address of the Cap'n Proto service, for the status.
    pub rpc: String,
    /// Injected fault, for tests.
    pub fault: Option<Fault>,
    /// Supervises the parts that run by themselves.
    pub supervisor: Supervisor,
    /// The jobs of this node.
    pub jobs: Jobs,
    /// Registry of metrics.
    pub observer: Observer,
}

/// A running node. Dropping it ends the node without a goodbye.
pub struct Runtime {
    fabric: Fabric,
    findings: Findings,
    peers: Peers,
    network: Option<Network>,
    pool: Option<Pool>,
    members: Option<Members>,
    loader: Option<Loader>,
    tunnel: Option<Tunnel>,
    ways_back: Option<WaysBack>,
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
    supervisor: Supervisor,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Parts that end from now on end as expected.
        self.supervisor.close();
    }
}

/// Handles that the network thread returns once it runs.
struct Handles {
    fabric: Fabric,
    findings: Findings,
    peers: Peers,
    network: Option<Network>,
    pool: Option<Pool>,
    members: Option<Members>,
    loader: Option<Loader>,
    tunnel: Option<Tunnel>,
    ways_back: Option<WaysBack>,
}

type Started = std::result::Result<Handles, Error>;

impl Runtime {
    /// Starts the threads. When it returns, the libp2p ports are bound.
    pub fn start(parts: Parts) -> Result<Runtime> {
        let share = usize::try_from(parts.devices.limit() / KEPT_SHARE).unwrap_or(usize::MAX);
        pangea_compute::buffer::keep_dropped(share.min(KEPT_BYTES));
        let (executor, speeds) = Executor::start(&parts.devices, parts.fault, &parts.supervisor)?;
        let (started_sender, started) = std::sync::mpsc::sync_channel::<Started>(1);
        let (stop, stopped) = oneshot::channel();
        let supervisor = parts.supervisor.clone();
        let thread = supervisor
            .essential_thread("network", move || {
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let error =
                            Error::new(ErrorKind::Internal, format!("cannot start the network thread: {error}"));
                        let _ = started_sender.send(Err(error));
                        return;
                    }
                };
                LocalSet::new().block_on(&runtime, run(parts, executor, speeds, started_sender, stopped));
            })
            .map_err(|error| Error::new(ErrorKind::Internal, format!("cannot start the network thread: {error}")))?;
        let ended = || Error::new(ErrorKind::Internal, "the network thread ended while it started");
        let Handles { fabric, findings, peers, network, pool, members, loader, tunnel, ways_back } =
            started.recv().map_err(|_| ended())??;
        Ok(Runtime {
            fabric,
            findings,
            peers,
            network,
            pool,
            members,
            loader,
            tunnel,
            ways_back,
            thread: Some(thread),
            stop: Some(stop),
            supervisor,
        })
    }

    /// Handle of the fabric.
    pub fn fabric(&self) -> Fabric {
        self.fabric.clone()
    }

    /// Where lies that are found go.
    pub fn findings(&self) -> Findings {
        self.findings.clone()
    }

    /// Handle on the directory of peers.
    pub fn peers(&self) -> Peers {
        self.peers.clone()
    }

    /// Handle of the pool; `None` without a network.
    pub fn pool(&self) -> Option<Pool> {
        self.pool.clone()
    }

    /// Handle on belonging; `None` without a network.
    pub fn members(&self) -> Option<Members> {
        self.members.clone()
    }

    /// Loader of the node's layers; `None` without a network.
    pub fn loader(&self) -> Option<Loader> {
        self.loader.clone()
    }

    /// Asks peers for the way back; `None` without a network.
    pub fn ways_back(&self) -> Option<WaysBack> {
        self.ways_back.clone()
    }

    /// The tunnels of whole requests; `None` without a network.
    pub fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel.clone()
    }

    /// Accepts no more work, lets running work end within `grace`, says goodbye to every peer and ends the threads.
    pub async fn shutdown(mut self, grace: Duration) {
        // An error means that the fabric has ended already.
        let _ = self.fabric.drain(grace).await;
        self.supervisor.close();
        if let Some(network) = &self.network {
            network.shutdown().await;
        }
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

async fn run(
    parts: Parts,
    executor: Executor,
    speeds: Speeds,
    started: std::sync::mpsc::SyncSender<Started>,
    stopped: oneshot::Receiver<()>,
) {
    let supervisor = parts.supervisor.clone();
    match build(parts, executor, speeds) {
        Ok(Built { driver, inlets, fabric, findings, peers, accusing, pooled, staged, followers }) => {
            let network = pooled.as_ref().map(|pooled| pooled.network.clone());
            let pool = pooled.as_ref().map(|pooled| pooled.pool.clone());
            let members = pooled.as_ref().map(|pooled| pooled.members.clone());
            let loader = staged.as_ref().map(|staged| staged.loader.clone());
            let tunnel = pooled.as_ref().map(|pooled| pooled.tunnel.clone());
            let ways_back = pooled.as_ref().map(|pooled| pooled.ways_back.clone());
            let network_handle = network.clone();
            let handles =
                Handles { fabric, findings, peers, network: network_handle, pool, members, loader, tunnel, ways_back };
            let _ = started.send(Ok(handles));
            drop(started);
            if let Some(Staged { loader, links, placing, sessions }) = staged {
                supervisor.task("session streams", links.run());
                supervisor.task("placement", placing.run());
                supervisor.task("chains", loader.run(sessions));
            }
            if let Some(accusing) = accusing {
                supervisor.task("evidence", accusing.run());
            }
            if let Some(Pooled { pooling, revoking, meeting, .. }) = pooled {
                supervisor.task("pool", pooling.run());
                supervisor.task("revocations", revoking.run());
                supervisor.task("strangers", meeting.run());
            }
            if let Some(followers) = followers {
                // The swarm's events end with the swarm.
                supervisor.task("swarm", followers.run(network));
            }
            supervisor.task("freed memory", give_back_freed_memory());
            supervisor.task("fabric", driver.run(inlets));
            supervisor.beat("network");
            // An error means that the runtime was dropped, which ends the node as well.
            let _ = stopped.await;
        }
        Err(error) => {
            // The caller gets the error; the end of this thread is expected.
            supervisor.close();
            let _ = started.send(Err(error));
        }
    }
}

/// The parts on the network thread and their handles.
struct Built {
    driver: FabricDriver,
    inlets: crate::fabric::driver::Inlets,
    fabric: Fabric,
    findings: Findings,
    peers: Peers,
    accusing: Option<EvidenceDriver>,
    pooled: Option<Pooled>,
    staged: Option<Staged>,
    followers: Option<Followers>,
}

/// The parts that make this node one of a pool.
struct Pooled {
    network: Network,
    pool: Pool,
    members: Members,
    pooling: PoolDriver,
    revoking: RevocationsDriver,
    meeting: StrangersDriver,
    tunnel: Tunnel,
    ways_back: WaysBack,
}

/// The parts that compute layers of models together with other nodes.
struct Staged {
    loader: Loader,
    links: LinksDriver,
    placing: placement::PlacementDriver,
    sessions: placement::Sessions,
}

fn build(parts: Parts, executor: Executor, speeds: Speeds) -> Result<Built> {
    let membership = parts.net.as_ref().map(|net| net.membership.clone());
    let keypair = parts.net.as_ref().map_or_else(net::identity::ephemeral, |net| net.identity.clone());
    let peer = keypair.public().to_peer_id();
    let memory = Memory::new(parts.state);
    // Without it the node listens like one that starts for the first time.
    let stored_term = memory.term().unwrap_or_else(|error| {
        tracing::warn!(event = "term_unread", %error, "cannot read the last master's term: {error}");
        None
    });
    let draft = parts.pipeline.as_ref().and_then(|(.., draft)| draft.as_ref());
    let drafting_bytes = draft.map_or(0, |draft| draft.memory_bytes());
    let own = Advert {
        incarnation: memory.next_incarnation(),
        name: parts.name.clone(),
        force_master: parts.force_master,
        works: parts.works,
        numerics: pangea_compute::model::NUMERICS,
        software: if parts.fault == Some(Fault::OldVersion) { "0.0.1" } else { env!("CARGO_PKG_VERSION") }.to_owned(),
        device: parts.devices.called(executor.isa()),
        bits: parts.devices.bits(),
        threads: u16::try_from(parts.devices.threads(Purpose::Products)).unwrap_or(u16::MAX),
        memory_bytes: parts.devices.offered_bytes().saturating_sub(drafting_bytes),
        f32_flops_per_s: speeds.f32_flops_per_s,
        ..Advert::new(peer)
    };
    let gossip = GossipConfig { topic: codec::TOPIC, max_bytes: codec::MAX_ADVERT_BYTES };
    let network = parts
        .net
        .map(|config| net::start(NetConfig { gossip: Some(gossip), ..config }))
        .transpose()
        .map_err(|error| net_start_error(&error))?;
    let folder = parts.data_dir.clone();
    let peers = Peers::default();
    let kept = folder.as_deref().map(|folder| EvidenceFolder::new(folder).load()).unwrap_or_default();
    kept.iter().for_each(|kept| peers.remember_convicted(kept.peer, &kept.why));
    peers.observe(&parts.observer);
    let (findings, inlet) = Findings::new(peers.clone());
    let settings = FabricSettings {
        peer,
        keypair: keypair.clone(),
        name: parts.name,
        peers: peers.clone(),
        devices: parts.devices.clone(),
        works: parts.works,
        findings: findings.clone(),
        pool_key: membership.as_ref().is_some_and(|membership| !membership.is_open()),
        speeds,
        supervisor: parts.supervisor.clone(),
        jobs: parts.jobs,
        observer: parts.observer.clone(),
    };
    let Some(((network, events), membership)) = network.zip(membership) else {
        let (driver, inlets, fabric) = FabricDriver::new(settings, executor, None, parts.rpc)?;
        return Ok(Built {
            driver,
            inlets,
            fabric,
            findings,
            peers,
            accusing: None,
            pooled: None,
            staged: None,
            followers: None,
        });
    };
    network.observe(&peers, &parts.observer);
    let tunnel = Tunnel::new(network.clone(), peers.clone(), parts.works)?;
    let ways_back = WaysBack::start(network.clone(), peers.clone(), &parts.supervisor)?;
    let mut followers = Followers::new(events);
    let for_fabric = followers.follow(Interest::NoGossip);
    let (driver, inlets, fabric) =
        FabricDriver::new(settings, executor, Some((network.clone(), for_fabric)), parts.rpc)?;
    let observer = parts.observer.clone();
    let revoking =
        RevocationsDriver::new(membership.clone(), network.clone(), followers.follow(Interest::Connections))?;
    let settings =
        PoolSettings { own, membership: membership.clone(), memory, stored_term, peers: peers.clone(), observer };
    let (pooling, pool) = PoolDriver::new(settings, network.clone(), followers.follow(Interest::All));
    let accusing = match &folder {
        Some(folder) => {
            let settings = EvidenceSettings {
                keypair,
                membership: membership.clone(),
                peers: peers.clone(),
                pool: pool.clone(),
                devices: parts.devices.clone(),
                folder: EvidenceFolder::new(folder),
                kept,
                observer: parts.observer.clone(),
            };
            let events = followers.follow(Interest::Connections);
            Some(EvidenceDriver::new(settings, inlet, network.clone(), events)?)
        }
        None => None,
    };
    let staged = match (parts.pipeline, folder) {
        (Some((pipeline, limits, draft)), Some(folder)) => {
            let blobs = blob::start(&folder.join("blobs"), &parts.devices, Some(&network), &peers, &parts.supervisor)?;
            let (links, driver) = links::links(
                network.clone(),
                followers.follow(Interest::Connections),
                Arc::new(pipeline.clone()),
                peers.clone(),
            );
            pipeline.attach(links);
            let store = RowStore::new(parts.devices.clone());
            pipeline.open_with(RowOpener::start(peer, store, network.clone(), peers.clone(), &parts.supervisor)?);
            let loader = Loader::new(pipeline.clone(), blobs, pool.clone(), parts.devices, limits, draft);
            let pending = loader.clone();
            pipeline.on_unknown(move |chain| pending.start_pending(chain));
            let (placing, sessions) = placement::PlacementDriver::new(
                pool.clone(),
                peers.clone(),
                Arc::new(loader.clone()),
                parts.pinned,
                &parts.observer,
            );
            Some(Staged { loader, links: driver, placing, sessions })
        }
        _ => None,
    };
    let members = Members::new(membership.clone(), network.clone(), pool.clone());
    let meeting = StrangersDriver::new(membership, members.clone(), followers.follow(Interest::Strangers));
    let pooled = Some(Pooled { network, pool, members, pooling, revoking, meeting, tunnel, ways_back });
    let followers = Some(followers);
    Ok(Built { driver, inlets, fabric, findings, peers, accusing, pooled, staged, followers })
}

fn net_start_error(error: &NetError) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}
