//! What a command talks to: the node that answers at `--rpc`, or a fabric of this process alone. It knows how to get
//! there and nothing of what is asked.

use std::time::Duration;

use pangea_client::{Client, DEFAULT_ADDRESS, ErrorKind};

use super::args::{OutputArgs, RpcArgs};
use super::failure::{Exit, Failure};
use crate::runtime::{Parts, Runtime};

/// How long a node may take to answer the first call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl RpcArgs {
    /// The address to talk to.
    pub(super) fn address(&self) -> &str {
        self.rpc.as_deref().unwrap_or(DEFAULT_ADDRESS)
    }

    /// The node that was named, or the one at the default address.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] where none answers.
    pub(super) async fn node(&self) -> Result<Client, Failure> {
        Client::connect(self.address(), CONNECT_TIMEOUT).await.map_err(|error| match error.kind() {
            ErrorKind::Unavailable => Failure::new(Exit::Unreachable, error.message()),
            _ => error.into(),
        })
    }

    /// As [`RpcArgs::node`]; `None` where no node was named and none is there.
    ///
    /// # Errors
    /// As [`RpcArgs::node`] where one was named.
    pub(super) async fn node_if_there(&self) -> Result<Option<Client>, Failure> {
        match self.node().await {
            Err(failure) if failure.exit == Exit::Unreachable && self.rpc.is_none() => Ok(None),
            result => result.map(Some),
        }
    }
}

/// A fabric of this process alone, on `threads` threads and with `max_memory` bytes for tensors.
///
/// # Errors
/// Where threads cannot be had.
pub(super) async fn local_fabric(threads: usize, max_memory: u64) -> Result<Runtime, Failure> {
    let parts = Parts {
        net: None,
        name: crate::config::host::name(),
        threads,
        max_memory,
        data_dir: None,
        works: true,
        force_master: false,
        state: None,
        pipeline: None,
        pinned: None,
        rpc: String::new(),
        fault: None,
    };
    let started = tokio::task::spawn_blocking(move || Runtime::start(parts)).await;
    let started = started.map_err(|error| Failure::failed(format!("the local fabric did not start: {error}")))?;
    Ok(started?)
}

/// Says something that is not a result, on standard error.
pub(super) fn note(output: &OutputArgs, text: impl std::fmt::Display) {
    if !output.quiet {
        eprintln!("{text}");
    }
}
