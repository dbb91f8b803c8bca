//! Puts the rooms of a node together on their threads: the network thread (swarm, streams, fabric),
//! the executor and the checker. It starts and ends them and decides nothing.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::fabric::{Driver, Fabric, Settings};
use crate::net::{self, NetConfig, NetError, Network};
use crate::worker::budget::Budget;
use crate::worker::executor::Executor;
use crate::worker::fault::Fault;

/// Dropped tensors that are kept for the next take at most this part of a node's memory.
const KEPT_SHARE: u64 = 32;

/// And at most this much: a band or a panel and a few tiles, within what a job may use beside its operands and result.
const KEPT_BYTES: usize = 16 << 20;

/// What a node is made of.
pub struct Parts {
    /// The network; none for a fabric of this process alone.
    pub net: Option<NetConfig>,
    /// Name for people.
    pub name: String,
    /// Compute threads.
    pub threads: usize,
    /// Bytes of memory for tensors.
    pub max_memory: u64,
    /// Where evidence is kept.
    pub data_dir: Option<PathBuf>,
    /// Address of the Cap'n Proto service, for the status.
    pub rpc: String,
    /// How it lies or fails, for tests.
    pub fault: Option<Fault>,
}

/// A node under way. Dropping it ends it without a goodbye.
pub struct Runtime {
    fabric: Fabric,
    network: Option<Network>,
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

/// What the network thread hands back once it runs.
type Started = std::result::Result<(Fabric, Option<Network>), Error>;

impl Runtime {
    /// Starts the threads. When it returns, the libp2p ports are bound.
    pub fn start(parts: Parts) -> Result<Runtime> {
        let share = usize::try_from(parts.max_memory / KEPT_SHARE).unwrap_or(usize::MAX);
        pangea_compute::buffer::keep_dropped(share.min(KEPT_BYTES));
        let (executor, speeds) = Executor::start(parts.threads, parts.max_memory, parts.fault)?;
        let (started_sender, started) = std::sync::mpsc::sync_channel::<Started>(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
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
        let (fabric, network) = started.recv().map_err(|_| ended())??;
        Ok(Runtime { fabric, network, thread: Some(thread), stop: Some(stop) })
    }

    /// The fabric of this node.
    pub fn fabric(&self) -> Fabric {
        self.fabric.clone()
    }

    /// Takes no more work, lets what runs end within `grace`, says goodbye to every peer and ends the threads.
    pub async fn shutdown(mut self, grace: Duration) {
        // An error means that the fabric is gone already.
        let _ = self.fabric.drain(grace).await;
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
    speeds: crate::worker::executor::Speeds,
    started: std::sync::mpsc::SyncSender<Started>,
    stopped: oneshot::Receiver<()>,
) {
    match build(parts, executor, speeds) {
        Ok((driver, inlets, fabric, network)) => {
            let _ = started.send(Ok((fabric, network)));
            drop(started);
            tokio::select! {
                () = driver.run(inlets) => {}
                _ = stopped => {}
            }
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

type Built = (Driver, crate::fabric::driver::Inlets, Fabric, Option<Network>);

fn build(parts: Parts, executor: Executor, speeds: crate::worker::executor::Speeds) -> Result<Built> {
    let pool_key = parts.net.as_ref().is_some_and(|net| net.pool_key.is_some());
    let peer = match &parts.net {
        Some(net) => net.identity.public().to_peer_id(),
        None => net::identity::ephemeral().public().to_peer_id(),
    };
    let network = parts.net.map(net::start).transpose().map_err(|error| net_start_error(&error))?;
    let settings = Settings {
        peer,
        name: parts.name,
        threads: parts.threads,
        budget: Budget::new(parts.max_memory),
        works: true,
        data_dir: parts.data_dir,
        pool_key,
        speeds,
    };
    let handle = network.as_ref().map(|(network, _)| network.clone());
    let (driver, inlets, fabric) = Driver::new(settings, executor, network, parts.rpc)?;
    Ok((driver, inlets, fabric, handle))
}

fn net_start_error(error: &NetError) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}
