//! The node that a command uses: the named one, the local one, or a fabric in this process. This file connects; it
//! knows nothing of the calls.

use std::net::SocketAddr;
use std::time::Duration;

use pangea_client::{Client, DEFAULT_ADDRESS, ErrorKind, UNIX_PREFIX};

use super::args::{DataDirArgs, OutputArgs, RpcArgs};
use super::failure::{Exit, Failure};
use crate::config;
use crate::data_dir::NodeFile;
use crate::devices::Devices;
use crate::jobs::Jobs;
use crate::observe::Observer;
use crate::runtime::{Parts, Runtime};
use crate::supervise::Supervisor;

/// Timeout of a node's answer to the first call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl RpcArgs {
    /// Addresses to try, in order: only `--rpc` if given; otherwise the socket and the address of the node that runs with the
    /// data directory, then the default address.
    fn addresses(&self) -> Vec<String> {
        if let Some(named) = &self.rpc {
            return vec![named.clone()];
        }
        let running = self.data_dir.running_node();
        let socket =
            running.as_ref().and_then(|node| Some(format!("{UNIX_PREFIX}{}", node.socket.as_ref()?.display())));
        let port = running.map(|node| from_this_host(&node.rpc));
        let default = Some(DEFAULT_ADDRESS.to_owned()).filter(|default| port.as_ref() != Some(default));
        socket.into_iter().chain(port).chain(default).collect()
    }

    /// The address to show if no node was found.
    pub(super) fn address(&self) -> String {
        self.addresses().into_iter().next().unwrap_or_default()
    }

    /// Connects to the named node, the one that runs with the data directory, or the one at the default address.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if none answers.
    pub(super) async fn node(&self) -> Result<Client, Failure> {
        let key = std::env::var("PANGEA_API_KEY").ok().filter(|key| !key.is_empty());
        let mut failure = None;
        for address in self.addresses() {
            match Client::connect_with_key(&address, key.as_deref(), CONNECT_TIMEOUT).await {
                Ok(client) => return Ok(client),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    failure.get_or_insert_with(|| Failure::new(Exit::Unreachable, error.message()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(failure.unwrap_or_else(|| Failure::new(Exit::Unreachable, "no node was found")))
    }

    /// Like [`RpcArgs::node`]; `None` if no node was named and none is running.
    ///
    /// # Errors
    /// Those of [`RpcArgs::node`], if a node was named.
    pub(super) async fn node_if_there(&self) -> Result<Option<Client>, Failure> {
        match self.node().await {
            Err(failure) if failure.exit == Exit::Unreachable && self.rpc.is_none() => Ok(None),
            result => result.map(Some),
        }
    }
}

impl DataDirArgs {
    /// The `node.json` of the node that runs with this data directory.
    pub(super) fn running_node(&self) -> Option<NodeFile> {
        NodeFile::of_running(&config::data_dir(self.data_dir.clone()).ok()?)
    }
}

/// Converts a listen address to one that this host can connect to.
pub(super) fn from_this_host(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(v4)) if v4.ip().is_unspecified() => format!("127.0.0.1:{}", v4.port()),
        Ok(SocketAddr::V6(v6)) if v6.ip().is_unspecified() => format!("[::1]:{}", v6.port()),
        _ => address.to_owned(),
    }
}

/// A fabric in this process with `threads` threads and `max_memory` bytes for tensors.
///
/// # Errors
/// If threads cannot be started.
pub(super) async fn local_fabric(threads: usize, max_memory: u64) -> Result<Runtime, Failure> {
    let parts = Parts {
        net: None,
        name: crate::host::name(),
        devices: Devices::new(max_memory, threads),
        data_dir: None,
        works: true,
        force_master: false,
        state: None,
        pipeline: None,
        pinned: None,
        rpc: String::new(),
        fault: None,
        supervisor: Supervisor::default(),
        jobs: Jobs::default(),
        observer: Observer::default(),
    };
    let started = tokio::task::spawn_blocking(move || Runtime::start(parts)).await;
    let started = started.map_err(|error| Failure::failed(format!("cannot start the local fabric: {error}")))?;
    Ok(started?)
}

/// Prints a note that is not a result to standard error.
pub(super) fn note(output: &OutputArgs, text: impl std::fmt::Display) {
    if !output.quiet {
        eprintln!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_node(folder: &std::path::Path, pid: u32, rpc: &str) -> RpcArgs {
        let node = serde_json::json!({"pid": pid, "peer": "p", "listening": [], "rpc": rpc});
        std::fs::write(folder.join("node.json"), node.to_string()).unwrap();
        RpcArgs { rpc: None, data_dir: DataDirArgs { data_dir: Some(folder.to_owned()) } }
    }

    #[test]
    fn the_data_directorys_running_node_is_used_whatever_its_port() {
        let folder = tempfile::tempdir().unwrap();
        let args = with_node(folder.path(), std::process::id(), "0.0.0.0:8181");
        assert_eq!(args.addresses(), ["127.0.0.1:8181", DEFAULT_ADDRESS]);
        let args = with_node(folder.path(), std::process::id(), DEFAULT_ADDRESS);
        assert_eq!(args.addresses(), [DEFAULT_ADDRESS]);
        let node = serde_json::json!({"pid": std::process::id(), "peer": "p", "listening": [], "rpc": DEFAULT_ADDRESS, "socket": "/s/rpc.sock"});
        std::fs::write(folder.path().join("node.json"), node.to_string()).unwrap();
        assert_eq!(args.addresses(), ["unix:/s/rpc.sock", DEFAULT_ADDRESS]);
        let named = RpcArgs { rpc: Some("mac2:1".to_owned()), ..args };
        assert_eq!(named.addresses(), ["mac2:1"], "only the named node is used");
    }

    #[test]
    fn a_killed_node_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(with_node(folder.path(), 0, "127.0.0.1:8181").addresses(), [DEFAULT_ADDRESS]);
    }

    #[tokio::test]
    async fn a_stale_node_json_falls_back_to_the_default_address() {
        let folder = tempfile::tempdir().unwrap();
        let args = with_node(folder.path(), std::process::id(), "127.0.0.1:1");
        // If a node runs on the default address of the machine that tests, it is found.
        match args.node_if_there().await {
            Ok(None) | Ok(Some(_)) => {}
            Err(failure) => panic!("{failure}"),
        }
    }
}
