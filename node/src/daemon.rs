//! `pangea node`: one node from its configuration to its shutdown. The rooms do the node's work.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::devices::roomy_sessions_bytes;
use pangea_control::membership::{Role, Token};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::http;
use crate::api::rpc::{self, Limits, RunningNode};
use crate::api_keys::ApiKeys;
use crate::config::{ApiConfig, IdentityConfig, NodeConfig, PoolChoice, WorkConfig};
use crate::data_dir::{DataDir, NodeFile};
use crate::devices::Devices;
use crate::fabric::Fabric;
use crate::federation::Federation;
use crate::host;
use crate::jobs::Jobs;
use crate::membership::{Membership, PoolKey, Stored, handle};
use crate::net::identity as keys;
use crate::net::{self, NetConfig, addresses};
use crate::observe::Observer;
use crate::pipeline::{Draft, Pipeline};
use crate::placement;
use crate::pool::Members;
use crate::prompt;
use crate::runtime::{Parts, Runtime};
use crate::serve::{EngineSettings, NodeAuditHost, Served};
use crate::storage::State;
use crate::supervise::Supervisor;
use crate::traces::{SpanCounts, Traces};
use crate::trust::{Auditor, AuditorParts, ClaimReplay, ReceiptStore};

/// Time for running jobs to end after the first signal; a second signal ends the node at once.
const GRACE: Duration = Duration::from_secs(10);

/// Interval at which a `node.json` that could not be written is tried again: a full disk has room once somebody deletes something.
const NODE_FILE_RETRY: Duration = Duration::from_secs(2);

/// Interval of asking a member that does not answer to admit this node.
const JOIN_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a node until SIGINT or SIGTERM, drains it and returns. Its spans go where `traces` says.
///
/// # Errors
/// `InvalidInput` if the data directory or an address cannot be used, `Unavailable` if a
/// port is in use.
pub fn run(config: NodeConfig, traces: Option<Traces>) -> Result<()> {
    let NodeConfig { network, service, work, federation, identity, log, traces: _ } = config;
    host::raise_open_files();
    let data_dir = DataDir::claim(&identity.data_dir, identity.ephemeral)?;
    let keypair = if identity.ephemeral {
        keys::ephemeral()
    } else {
        keys::load_or_create(&identity.data_dir.join("node.key"))
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?
    };
    let state = (!identity.ephemeral).then(|| State::open(&identity.data_dir));
    let role = if work.works { Role::Member } else { Role::Client };
    let (membership, known) = belong(&network.pool, role, &keypair, &identity, state.as_ref(), network.join.is_some())?;
    let works = work.works && !is_client(&membership, network.join.as_ref());
    if work.works && !works {
        may_be_client(&work)?;
        tracing::info!(
            event = "client",
            "This node is a lite client, as its certificate or invitation says: it uses the pool and computes for nobody"
        );
    }
    let listener = bind_or_free(service.rpc_addr, service.rpc_is_asked_for, |address| rpc::bind(&address.to_string()))?;
    let (socket, local) = local_socket(&data_dir);
    let rpc_addr = listener.local_addr().map_err(internal)?.to_string();
    let bind_api = |api: &ApiConfig| bind_or_free(api.address, api.is_asked_for, http::bind);
    let api_listener = service.api.as_ref().map(bind_api).transpose()?;
    let ollama = service.api.as_ref().and_then(|api| api.ollama).map(http::bind_ollama).transpose()?;
    let api_addr = api_listener.as_ref().map(std::net::TcpListener::local_addr).transpose().map_err(internal)?;
    let banner = Banner { membership: membership.clone(), models: work.models.clone() };
    let devices = Devices::with_device(work.max_memory, work.threads, &work.device, work.gpu_bits, work.gpu_memory)?;
    let sessions =
        EngineSettings { keep: work.keep_loaded, ..EngineSettings::new(roomy_sessions_bytes(work.max_memory)) };
    let models = identity.data_dir.join("models");
    let draft = work.draft.as_deref().map(|model| Draft::load(model, &models, &devices)).transpose()?.map(Arc::new);
    let receipts = ReceiptStore::new(&identity.data_dir);
    let keys = ApiKeys::of(&identity.data_dir);
    let peer = keypair.public().to_peer_id();
    let observer = Observer::default();
    let spans = SpanCounts::new(&observer);
    let traces = traces.map(|traces| traces.started(&peer.to_string(), spans));
    let supervisor = Supervisor::with_fault(work.fault, &observer);
    let pipeline = Pipeline::new(keypair.clone(), supervisor.clone());
    pipeline.observe(&observer);
    if let Some(fault) = work.fault {
        pipeline.set_fault(fault);
    }
    let jobs = Jobs::new(&observer);
    devices.observe(&observer);
    observe_build(&observer);
    let served = Served::new(&work.models, &models)?;
    let peers = [network.peers, known].concat();
    if !peers.is_empty() || network.peers_file.is_file() {
        served.expect_peers();
    }
    tracing::info!(event = "starting", %peer, "Starting node {peer}");
    let net = NetConfig {
        listen: if network.listen_is_asked_for { network.listen } else { net::with_free_ports(&network.listen) },
        membership,
        mdns: network.mdns,
        peers,
        peers_file: Some(network.peers_file),
        ..NetConfig::new(keypair)
    };
    let runtime = Runtime::start(Parts {
        net: Some(net),
        name: identity.name,
        devices: devices.clone(),
        data_dir: Some(identity.data_dir),
        works,
        force_master: work.force_master,
        state,
        pipeline: Some((pipeline, sessions.limits(), draft)),
        pinned: work.layers.clone(),
        rpc: rpc_addr.clone(),
        fault: work.fault,
        supervisor: supervisor.clone(),
        jobs: jobs.clone(),
        observer: observer.clone(),
    })?;
    let mut watching = None;
    let mut auditing = None;
    if let Some(loader) = runtime.loader() {
        watching = Some(loader.view());
        let host = NodeAuditHost {
            blobs: loader.blobs().clone(),
            pipeline: loader.pipeline().clone(),
            findings: runtime.findings(),
            fabric: runtime.fabric(),
            view: loader.view(),
        };
        runtime.findings().check_stages_with(Box::new(ClaimReplay::new(host.clone(), devices.clone())));
        let auditor = Auditor::start(AuditorParts {
            policy: work.audit,
            store: receipts.clone(),
            host: Arc::new(host),
            devices: devices.clone(),
            supervisor: supervisor.clone(),
            observer: observer.clone(),
        })?;
        auditing = Some(auditor.clone());
        served.join(loader, auditor, jobs.clone(), sessions, work.split, work.layers)?;
    }
    let federation = federation.map(|votes| Federation::new(votes.strategy, peer, runtime.pool(), runtime.peers()));
    let voting = federation.clone();
    let seen = served.clone();
    if let Some(pool) = runtime.pool().filter(|_| works) {
        placement::measure_speed(pool, devices, &supervisor);
    }
    let behind = RunningNode {
        fabric: runtime.fabric(),
        pool: runtime.pool(),
        members: runtime.members(),
        ways_back: runtime.ways_back(),
        jobs: jobs.clone(),
        api: api_addr.map_or_else(String::new, |address| address.to_string()),
    };
    let rpc_key = service.rpc_key.as_ref().map(|key| key.as_str().to_owned());
    let ports = rpc::Ports { tcp: listener, local, key: rpc_key };
    let programs = rpc::serve(ports, behind, served.clone(), Limits::default(), &supervisor)?;
    let supervising = supervisor.clone();
    let settings = service.api.as_ref();
    let node = http::Node {
        fabric: runtime.fabric(),
        pool: runtime.pool(),
        members: runtime.members(),
        tunnel: runtime.tunnel(),
        served,
        models,
        receipts,
        auditor: auditing,
        jobs: jobs.clone(),
        federation,
        key: settings.and_then(|api| api.key.as_ref()).map(|key| key.as_str().to_owned()),
        keys,
        cors: settings.map(|api| api.cors.clone()).unwrap_or_default(),
        client_rate: settings.and_then(|api| api.client_rate).map(http::client_rate),
        observer,
        supervisor: supervising,
    };
    let api = http::serve(api_listener.map(|api| http::Ports { api, ollama }), node)?;
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    let ended = waiting.block_on(async {
        let mut signals = Signals::new().map_err(internal)?;
        let facts = NodeFile {
            pid: std::process::id(),
            peer: peer.to_string(),
            listening: Vec::new(),
            reachable: None,
            rpc: rpc_addr,
            api: api_addr.map(|address| address.to_string()),
            socket,
        };
        let following = async {
            let models = async {
                if let Some(view) = watching {
                    seen.follow(view).await;
                }
            };
            let votes = async {
                if let Some(voting) = voting {
                    voting.follow().await;
                }
            };
            tokio::join!(models, votes);
            // The view ended with a part of the node; the supervisor reports why.
            std::future::pending::<()>().await;
        };
        let joining = async {
            if let Some((members, token)) = runtime.members().zip(network.join) {
                join(&members, &token).await?;
            }
            std::future::pending::<Result<()>>().await
        };
        let asking = async {
            match runtime.members().filter(|_| prompt::is_possible(&log)) {
                Some(members) => prompt::run(&members).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = joining => result?,
            never = asking => match never {},
            never = announce(runtime.fabric(), facts, &data_dir, banner) => match never {},
            () = following => {}
            why = supervisor.fatal() => return Err(Error::new(ErrorKind::Internal, format!("{why}; the node ends"))),
            () = signals.next() => {}
        }
        supervisor.close();
        tracing::info!(event = "stopping", "Stopping; running work has {} s to end", GRACE.as_secs());
        tokio::select! {
            () = async {
                tokio::join!(jobs.drain(GRACE), programs.shutdown(GRACE), api.shutdown(GRACE));
                runtime.shutdown(GRACE).await;
            } => {}
            () = signals.next() => tracing::warn!(event = "stopped_at_once", "Stopped at once"),
        }
        Ok(())
    });
    if let Some(traces) = traces {
        traces.shutdown();
    }
    ended
}

/// Binds the address of a service. Where nobody asked for its port and another process has it, a free one does as well.
///
/// # Errors
/// Those of `bind`.
fn bind_or_free<T>(address: SocketAddr, is_asked_for: bool, bind: impl Fn(SocketAddr) -> Result<T>) -> Result<T> {
    let error = match bind(address) {
        Err(error) if !is_asked_for && error.kind() == ErrorKind::Unavailable => error,
        result => return result,
    };
    let bound = bind(SocketAddr::new(address.ip(), 0)).map_err(|_| error)?;
    let port = address.port();
    tracing::info!(event = "port_taken", port, "Port {port} is in use; using a free one instead");
    Ok(bound)
}

/// This node's place in its pool, and where members are.
fn belong(
    pool: &PoolChoice,
    role: Role,
    keypair: &Keypair,
    identity: &IdentityConfig,
    state: Option<&State>,
    rejoins: bool,
) -> Result<(Membership, Vec<Multiaddr>)> {
    let data_dir = (!identity.ephemeral).then_some(identity.data_dir.as_path());
    let (name, stored) = (&identity.name, Stored::new(state.cloned(), data_dir));
    match (pool, data_dir) {
        (PoolChoice::Open, _) => Ok((Membership::open(keypair), Vec::new())),
        (PoolChoice::Own, Some(data_dir)) => handle::own_or_joined(keypair, role, data_dir, name, stored, rejoins),
        (PoolChoice::Own, None) => {
            let own = PoolKey::ephemeral();
            Ok((Membership::holder(keypair, &own, role, name, stored)?, Vec::new()))
        }
        (PoolChoice::Key(key), _) => Ok((Membership::holder(keypair, key, role, name, stored)?, Vec::new())),
    }
}

/// Whether the node is a client in its pool, or in the one that it is about to join.
fn is_client(membership: &Membership, token: Option<&Token>) -> bool {
    let joins = token.filter(|token| membership.pool() != Some(token.pool));
    joins.map(|token| token.role).or_else(|| membership.role()) == Some(Role::Client)
}

/// Whether a node that works as `work` says may be a client.
///
/// # Errors
/// `InvalidInput` if it is to serve something, with what to do.
fn may_be_client(work: &WorkConfig) -> Result<()> {
    let serves = !work.models.is_empty() || work.layers.is_some() || work.force_master;
    let message = "this node may only be a client in its pool, and a client serves nothing: leave out --model, --layers and \
                   --force-master, or have it invited as a member";
    if serves { Err(Error::new(ErrorKind::InvalidInput, message)) } else { Ok(()) }
}

/// Joins the pool of `--join`: asks until a member answers.
///
/// # Errors
/// Why the member does not admit this node.
async fn join(members: &Members, token: &Token) -> Result<()> {
    let mut is_first = true;
    loop {
        match members.join_with_token(token).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Unavailable || error.kind() == ErrorKind::Overloaded => {
                if std::mem::take(&mut is_first) {
                    tracing::warn!(event = "join_waits", %error, "cannot join yet: {error}; this node goes on asking");
                }
                tokio::time::sleep(JOIN_INTERVAL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The Cap'n Proto service's socket in the data directory. A node that cannot have it works without: its port is there.
fn local_socket(data_dir: &DataDir) -> (Option<PathBuf>, Option<UnixListener>) {
    let Some(path) = data_dir.socket() else { return (None, None) };
    match rpc::bind_local(&path) {
        Ok(listener) => (Some(path), Some(listener)),
        Err(error) => {
            let shown = path.display();
            tracing::warn!(event = "no_local_socket", %error, "cannot offer {shown} ({error}); use --rpc ADDR instead");
            (None, None)
        }
    }
}

/// Publishes the version of this build as labels of a constant gauge, as Prometheus' own exporters do, and when the node started.
fn observe_build(observer: &Observer) {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    observer.gauge("start_time_seconds", "Start of the node, in seconds since 1970", move || started);
    let numerics = pangea_compute::model::NUMERICS.to_string();
    observer.gauges("build_info", "Version of this node and of its numerics", move || {
        let labels = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("numerics", numerics.clone())];
        vec![(labels, 1.0)]
    });
}

/// Logs each address once `node.json` contains it. Where that cannot be written, the node works without until it can.
async fn announce(fabric: Fabric, mut facts: NodeFile, data_dir: &DataDir, banner: Banner) -> Infallible {
    let (mut unwritten, mut banner) = (false, Some(banner));
    let mut listening = fabric.listening();
    loop {
        let now = listening.borrow_and_update().clone();
        let fresh = now.get(facts.listening.len()..).unwrap_or_default().to_vec();
        facts.listening = now;
        let parsed: Vec<Multiaddr> = facts.listening.iter().filter_map(|address| address.parse().ok()).collect();
        facts.reachable = addresses::reachable(&parsed, &addresses::interfaces()).map(|address| address.to_string());
        if !fresh.is_empty() || unwritten {
            let written = data_dir.write(&facts);
            match &written {
                Err(error) if !unwritten => {
                    let rpc = &facts.rpc;
                    tracing::warn!(
                        event = "node_file_not_written",
                        %error,
                        "{error}; until that works, commands find this node only with --rpc {rpc}"
                    );
                }
                Ok(()) if unwritten => {
                    tracing::info!(event = "node_file_written", "Wrote node.json; commands find this node again");
                }
                _ => {}
            }
            unwritten = written.is_err();
        }
        for address in fresh {
            tracing::info!(event = "listening", address, "Listening on {address}");
        }
        if !facts.listening.is_empty()
            && let Some(banner) = banner.take()
        {
            banner.log(&facts);
        }
        tokio::select! {
            changed = listening.changed() => if changed.is_err() {
                // The fabric has ended; the supervisor reports why.
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep(NODE_FILE_RETRY), if unwritten => {}
        }
    }
}

/// What a person wants to know once the node listens: where to use it, and how to add the next machine.
struct Banner {
    membership: Membership,
    models: Vec<String>,
}

impl Banner {
    fn log(&self, facts: &NodeFile) {
        let models = if self.models.is_empty() { "none of its own".to_owned() } else { self.models.join(", ") };
        match &facts.api {
            Some(api) => tracing::info!(
                event = "ready",
                api,
                models,
                "Console at http://{api}/, API at http://{api}/v1; models: {models}"
            ),
            None => tracing::info!(event = "ready", models, "No HTTP API (--no-api); models: {models}"),
        }
        let overview = self.membership.overview();
        // An open pool has said so already.
        let Some(pool) = overview.pool else { return };
        if self.membership.may_admit().is_err() {
            return tracing::info!(event = "pool", %pool, "Pool {pool}, as a client");
        }
        let members = overview.members.iter().filter(|member| !member.revoked).count() + 1;
        let size = if members == 1 { "this node alone".to_owned() } else { format!("{members} members known") };
        tracing::info!(
            event = "pool", %pool, members,
            "Pool {pool}: {size}. To add a machine, run `pangea node` on it and `pangea invite` here; `pangea members list` shows who waits"
        );
    }
}

/// The signals SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn internal(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}
