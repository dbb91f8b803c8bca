//! A node of the demo: a child process of the same binary with its own data directory. It is killed and waited for
//! when this value is dropped.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::failure::Failure;
use crate::data_dir::NodeFile;

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
    /// Starts a node named `name` with its data below `folder`, the pool key and a model.
    pub(super) async fn start(
        name: &str,
        folder: &Path,
        pool_key: &Path,
        threads: usize,
        model: Option<&Path>,
    ) -> Result<DemoNode, Failure> {
        let broken = |why: String| Failure::failed(format!("the node {name} did not start: {why}"));
        let binary = std::env::current_exe().map_err(|error| broken(error.to_string()))?;
        let data_dir = folder.join(name);
        let mut command = Command::new(binary);
        for (variable, _) in std::env::vars_os() {
            // The user's settings for other nodes must not apply to these.
            if variable.to_string_lossy().starts_with("PANGEA_") {
                command.env_remove(variable);
            }
        }
        command
            .args(["node", "--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--no-mdns", "--ephemeral"])
            .args(["--no-api", "--name", name, "--threads", &threads.to_string()])
            .arg("--data-dir")
            .arg(&data_dir)
            .arg("--pool-key")
            .arg(pool_key)
            .args(model.into_iter().flat_map(|model| [OsStr::new("--model"), model.as_os_str()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // The demo handles Ctrl-C: the nodes end with it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| broken(error.to_string()))?;
        let stderr = child.stderr.take();
        let mut guard = EndOnDrop(Some(child));
        let (lines, listening) = follow(stderr);
        let said = |lines: &Lines| {
            let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().map(|line| format!("\n  {line}")).collect::<String>()
        };
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
        Ok(DemoNode { child, name: name.to_owned(), peer: facts.peer, address, rpc: facts.rpc })
    }

    /// Kills the process without warning, like a power cut.
    pub(super) fn kill(&mut self) {
        end(&mut self.child);
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
