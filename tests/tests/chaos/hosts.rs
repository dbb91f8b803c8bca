//! Four nodes, each on a host of its own behind a forwarder that can damage its bytes; one with a small disk, one within
//! a memory limit that the kernel enforces. Decides nothing about what goes wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pangea_client::blocking::Client;
use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::forwarder::{Forwarder, Quality};
use pangea_tests::memory_limit::MemoryLimit;
use pangea_tests::namespaces::{Namespace, Namespaces};
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::small_disk::SmallDisk;

/// Number of nodes.
pub(crate) const COUNT: usize = 4;

/// The node whose data directory is on a disk of its own, and the node within a memory limit.
pub(crate) const SMALL_DISK: usize = 2;
const LIMITED: usize = 3;

/// Nodes that have the model's file.
const OWNERS: usize = 2;

/// Room for the layers of a model of 98 MB, receipts and state.
const DISK_BYTES: u64 = 256 << 20;

/// What every node may use, and what the kernel allows the limited one: the program itself and the page cache's dirty part come on top.
const MAX_MEMORY: &str = "400M";
const LIMIT_BYTES: u64 = 650 << 20;

/// The port that other nodes know, which the forwarder has, and the node's own.
const KNOWN_PORT: u16 = 7777;
const NODE_PORT: u16 = 7700;

/// Addresses of the services within each host.
pub(crate) const RPC: &str = "127.0.0.1:8080";
pub(crate) const API: &str = "127.0.0.1:52415";

/// All hosts.
pub(crate) struct Hosts {
    hosts: Vec<Host>,
}

/// One host with its node.
pub(crate) struct Host {
    name: String,
    builder: NodeBuilder,
    node: Option<Node>,
    namespace: Namespace,
    lifetime: Lifetime,
    forwarder: Option<Forwarder>,
    disk: Option<SmallDisk>,
    limit: Option<MemoryLimit>,
    /// Lines of earlier processes that a test asks for.
    said_before: Vec<String>,
}

/// Counts the starts and ends of a node's process: odd while there is none.
#[derive(Clone)]
pub(crate) struct Lifetime(Arc<AtomicU64>);

impl Lifetime {
    /// The current count.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether one process has been there ever since `count` was read.
    pub(crate) fn unbroken_since(&self, count: u64) -> bool {
        count.is_multiple_of(2) && self.count() == count
    }

    fn advance(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Hosts {
    /// Starts all nodes.
    ///
    /// # Errors
    /// Why this machine has no small disk or no memory limit.
    pub(crate) fn start(cluster: &Cluster, network: &Namespaces, model: &Path) -> Result<Hosts, String> {
        let key = cluster.pool_key("pool.key", 0xc4);
        let peers: Vec<serde_json::Value> = network
            .hosts()
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let address = format!("/ip4/{}/tcp/{KNOWN_PORT}", host.address);
                serde_json::json!({"name": name(index), "address": address})
            })
            .collect();
        let mut hosts = Vec::new();
        for (index, namespace) in network.hosts().iter().enumerate() {
            let mut builder = cluster
                .node(&name(index))
                .in_namespace(namespace)
                .flag("--no-mdns")
                .listen(&format!("/ip4/127.0.0.1/tcp/{NODE_PORT}"))
                .rpc_addr(RPC)
                .api_addr(API)
                .pool_key(&key)
                .max_memory(MAX_MEMORY);
            if index < OWNERS {
                builder = builder.with("--model", model.to_str().unwrap()).flag("--split");
            }
            let data_dir = builder.data_dir();
            let disk = match index {
                SMALL_DISK => Some(SmallDisk::mount(&data_dir, DISK_BYTES)?),
                _ => {
                    std::fs::create_dir_all(&data_dir).unwrap();
                    None
                }
            };
            let others: Vec<_> =
                peers.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, peer)| peer).collect();
            std::fs::write(data_dir.join("peers.json"), serde_json::json!({"peers": others}).to_string()).unwrap();
            let limit = match index {
                LIMITED => Some(MemoryLimit::new("pangea-chaos", LIMIT_BYTES)?),
                _ => None,
            };
            let known = format!("0.0.0.0:{KNOWN_PORT}").parse().unwrap();
            let forwarder = namespace.within(|| Forwarder::at(known, NODE_PORT, Quality::default()));
            let mut host = Host {
                name: name(index),
                builder,
                node: None,
                namespace: namespace.clone(),
                lifetime: Lifetime(Arc::new(AtomicU64::new(1))),
                forwarder: Some(forwarder),
                disk,
                limit,
                said_before: Vec::new(),
            };
            host.start();
            hosts.push(host);
        }
        Ok(Hosts { hosts })
    }

    /// All hosts.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Host> {
        self.hosts.iter()
    }

    /// One host.
    pub(crate) fn host(&mut self, index: usize) -> &mut Host {
        &mut self.hosts[index]
    }

    /// Checks that no process ended by itself.
    pub(crate) fn nobody_ended(&self) {
        for host in &self.hosts {
            if let Some(node) = &host.node {
                assert!(!node.process.has_ended(), "{} ended by itself; its log is kept", host.name);
            }
        }
    }
}

fn name(index: usize) -> String {
    ["one", "two", "three", "four"][index].to_owned()
}

impl Host {
    /// Name of the node.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the node's services are reached.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The count of the node's starts and ends.
    pub(crate) fn lifetime(&self) -> &Lifetime {
        &self.lifetime
    }

    /// The running node.
    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    /// The link through which others reach this node.
    pub(crate) fn forwarder(&self) -> &Forwarder {
        self.forwarder.as_ref().unwrap()
    }

    /// The disk of the data directory.
    pub(crate) fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().unwrap()
    }

    /// Starts the node, and waits until it listens.
    pub(crate) fn start(&mut self) {
        let node = self.builder.start();
        if let Some(limit) = &self.limit {
            limit.hold(node.process.pid());
        }
        self.node = Some(node);
        self.lifetime.advance();
    }

    /// Ends the node with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.lifetime.advance();
        let node = self.node.take().unwrap();
        node.kill9();
        node.process.wait();
        self.remember(&node);
    }

    /// Ends the node with SIGTERM, which must end well.
    pub(crate) fn drain(&mut self) {
        self.lifetime.advance();
        let node = self.node.take().unwrap();
        assert_eq!(node.terminate(), Some(0), "{} did not end well", self.name);
        self.remember(&node);
    }

    fn remember(&mut self, node: &Node) {
        self.said_before.extend(node.process.lines().into_iter().map(|line| line.text));
    }

    /// Lines with `text` of all processes.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.said_before.iter().filter(|line| line.contains(text)).count() + self.node().process.count(text)
    }

    /// The number of nodes and the master, as this node sees them; `None` where it cannot be asked.
    pub(crate) fn pool(&self) -> Option<(usize, Option<String>)> {
        self.namespace.within(|| {
            let topology = Client::connect(RPC, TIMEOUT).ok()?.topology().ok()?;
            let master = topology.nodes.iter().find(|node| node.master).map(|node| node.peer.clone());
            Some((topology.nodes.len(), master))
        })
    }

    /// Waits until no job and no tensor of the load is left.
    pub(crate) fn is_idle_again(&self) {
        self.namespace.within(|| {
            let client = Client::connect(RPC, TIMEOUT).unwrap();
            eventually("no job is left", || client.status().unwrap().jobs_running == 0);
        });
    }

    /// Ends the node with SIGTERM; its exit code.
    pub(crate) fn terminate(&self) -> Option<i32> {
        self.lifetime.advance();
        self.node().terminate()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The process ends before its group, its disk and its network do.
        self.node = None;
        let forwarder = self.forwarder.take();
        self.namespace.within(|| drop(forwarder));
    }
}
