//! A node of the demo: a child process of the same binary with its own data directory. It is killed and waited for
//! when this value is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::demo_model::DemoModel;
use super::failure::Failure;
use crate::data_dir::NodeFile;
use crate::storage::whole_file;

/// Time for a node to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Lines of a node's log that are shown when it fails.
const LOG_LINES: usize = 8;

/// A running node.
pub(super) struct DemoNode {
    child: Child,
    pub(super) name: String,
    pub(super) peer: String,
    /// libp2p address for other nodes.
    pub(super) address: String,
    /// Address of its Cap'n Proto service.
    pub(super) rpc: String,
    /// Address of its HTTP API, if it has one.
    pub(super) api: Option<String>,
    pub(super) data_dir: PathBuf,
    was_killed: bool,
    log: Lines,
}

/// What a node has besides its place in the pool.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    /// The model whose layers it splits over the nodes.
    pub(super) model: Option<&'a DemoModel>,
    /// Whether it has the HTTP API, at the usual port if that is free.
    pub(super) console: bool,
}

type Lines = Arc<Mutex<VecDeque<String>>>;

/// Kills the child when dropped.
struct EndOnDrop(Option<Child>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl DemoNode {
    /// Starts a node named `name` with its data below `folder` and the pool key.
    pub(super) async fn start(
        name: &str,
        folder: &Path,
        pool_key: &Path,
        threads: usize,
        offer: Offer<'_>,
    ) -> Result<DemoNode, Failure> {
        let broken = |why: String| Failure::failed(format!("the node {name} did not start: {why}"));
        let binary = std::env::current_exe().map_err(|error| broken(error.to_string()))?;
        let data_dir = folder.join(name);
        if let Some(model) = offer.model {
            // The node sees all models of this machine, under their names.
            let linked = whole_file::private_folder(&data_dir)
                .and_then(|()| std::path::absolute(&model.folder))
                .and_then(|models| std::os::unix::fs::symlink(models, data_dir.join("models")));
            linked.map_err(|error| broken(format!("cannot link the models' folder: {error}")))?;
        }
        let mut command = Command::new(binary);
        for (variable, _) in std::env::vars_os() {
            // The user's settings for other nodes must not apply to these.
            if variable.to_string_lossy().starts_with("PANGEA_") {
                command.env_remove(variable);
            }
        }
        command
            .args(["node", "--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--no-mdns", "--ephemeral"])
            .args(["--name", name, "--threads", &threads.to_string()])
            .args((!offer.console).then_some("--no-api"))
            .arg("--data-dir")
            .arg(&data_dir)
            .arg("--pool-key")
            .arg(pool_key)
            // The node that has the model places it: nobody waits for an election.
            .args(offer.model.into_iter().flat_map(|model| ["--model", &model.name, "--split", "--force-master"]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // The demo handles Ctrl-C: the nodes end with it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| broken(error.to_string()))?;
        let stderr = child.stderr.take();
        let mut guard = EndOnDrop(Some(child));
        let (lines, listening) = follow(stderr);
        match tokio::time::timeout(START_TIMEOUT, listening).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(broken(format!("it exited at once{}", said(&lines)))),
            Err(_) => {
                return Err(broken(format!("it did not listen within {} s{}", START_TIMEOUT.as_secs(), said(&lines))));
            }
        }
        let facts =
            NodeFile::of_running(&data_dir).ok_or_else(|| broken("its node.json is missing or damaged".to_owned()))?;
        let address =
            facts.listening.into_iter().next().ok_or_else(|| broken("it listens on no address".to_owned()))?;
        let child = guard.0.take().ok_or_else(|| broken("its process is gone".to_owned()))?;
        let name = name.to_owned();
        let NodeFile { peer, rpc, api, .. } = facts;
        Ok(DemoNode { child, name, peer, address, rpc, api, data_dir, was_killed: false, log: lines })
    }

    /// Kills the process without warning, like a power cut.
    pub(super) fn kill(&mut self) {
        self.was_killed = true;
        end(&mut self.child);
    }

    /// Whether it was killed.
    pub(super) fn was_killed(&self) -> bool {
        self.was_killed
    }

    /// Its name and why it is gone, if it has ended by itself.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} has ended ({status}){}", self.name, said(&self.log)))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for DemoNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log, each on a line of its own.
fn said(lines: &Lines) -> String {
    let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

/// Kills a child and waits for it; one that has ended is left alone.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads a node's log so that the node never blocks on it: keeps the last lines and signals when the node listens.
fn follow(stderr: Option<ChildStderr>) -> (Lines, oneshot::Receiver<()>) {
    let lines = Lines::default();
    let (sender, listening) = oneshot::channel();
    let kept = Arc::clone(&lines);
    std::thread::spawn(move || {
        let mut sender = Some(sender);
        for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()).map_while(Result::ok) {
            if line.contains("Listening on ")
                && let Some(sender) = sender.take()
            {
                // The receiver is gone: the demo was stopped.
                let _ = sender.send(());
            }
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LOG_LINES {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    });
    (lines, listening)
}
