//! A log that cannot be written: the disk under it is full, or whoever read it has gone. The node goes on, and says later what is
//! missing.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use pangea_client::blocking::Client;
use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::small_disk::SmallDisk;

/// A node whose output goes where the test says; killed when dropped.
struct Logging {
    child: Child,
    rpc: String,
    address: String,
}

impl Logging {
    /// Starts a node with this standard error.
    fn start(builder: &NodeBuilder, stderr: Stdio) -> Logging {
        let child = builder.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let file = builder.data_dir().join("node.json");
        let mut facts = serde_json::Value::Null;
        eventually("the node listens", || {
            let read = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            facts = read.unwrap_or_default();
            facts["listening"][0].is_string()
        });
        let fact = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Logging { child, rpc: fact(&facts["rpc"]), address: fact(&facts["listening"][0]) }
    }

    /// Has the node log that a peer connected, and that it is gone.
    fn logs_a_visitor(&self, cluster: &Cluster, name: &str) {
        let visitor: Node = cluster.node(name).with("--peer", &self.address).start();
        let visits = || self.peers().iter().any(|(peer, state)| *peer == visitor.peer && state == "connected");
        eventually("the visitor is connected", visits);
        assert_eq!(visitor.terminate(), Some(0));
        eventually("the visitor is gone", || !visits());
    }

    /// Id and state of every peer of the node.
    fn peers(&self) -> Vec<(String, String)> {
        let peers = Client::connect(&self.rpc, TIMEOUT).unwrap().peers().unwrap();
        peers.into_iter().map(|peer| (peer.peer, peer.state)).collect()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_full_disk_under_the_log_ends_no_node_and_the_log_says_what_it_lacks() {
    let test = "a_full_disk_under_the_log_ends_no_node_and_the_log_says_what_it_lacks";
    if unless_root(test) {
        return;
    }
    let cluster = Cluster::new();
    let disk = match SmallDisk::mount(&cluster.folder().join("disk"), 1 << 20) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &format!("no small disk can be mounted: {why}")),
    };
    let log = disk.path().join("node.log");
    let appending = || File::options().append(true).create(true).open(&log).unwrap();
    let mut node = Logging::start(&cluster.node("one"), appending().into());
    disk.fill();
    // The log has the rest of its last block, however full the disk is.
    let mut rest = appending();
    while rest.write_all(b"\n").is_ok() {}
    node.logs_a_visitor(&cluster, "unseen");
    assert!(node.is_running());
    disk.clear();
    node.logs_a_visitor(&cluster, "seen");
    assert!(node.is_running());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains(" log lines could not be written and are lost"), "{text}");
    assert!(text.contains("is gone"), "{text}");
}

#[test]
fn a_reader_of_the_log_that_goes_ends_no_node() {
    let cluster = Cluster::new();
    let mut node = Logging::start(&cluster.node("one"), Stdio::piped());
    // As `pangea node 2>&1 | head -1` does.
    let mut line = String::new();
    BufReader::new(node.child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("Starting node"), "{line}");
    node.logs_a_visitor(&cluster, "unseen");
    assert!(node.is_running());
}
