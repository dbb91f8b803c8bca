//! Real `pangea` processes, each node with free ports and its own folder; the logs of a failed test are kept.
//! Tests drive the nodes as people and programs do: flags, files, signals, the service, log lines.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use pangea_client::blocking::Client;
use pangea_client::{NodeStatus, PeerStatus};
use rustix::process::Signal;

use crate::namespaces::Namespace;
use crate::process::{Keyboard, Process, TIMEOUT, eventually};
use crate::sockets::{Connection, connections};

/// Environment variable that names the binary under test; by default the `pangea` next to the test's binary.
pub const BINARY: &str = "PANGEA_BIN";

/// Environment variable that makes every node verbose, with any value.
pub const VERBOSE: &str = "PANGEA_TESTS_VERBOSE";

/// Tests that compare times hold this lock exclusively; all others share it.
static MACHINE: RwLock<()> = RwLock::new(());

/// Nodes of one test.
pub struct Cluster {
    folder: Rc<Folder>,
    /// The shared or exclusive lock of the machine.
    _turn: Turn,
}

/// A lock held for its lifetime; the value is never read.
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// The folder of a test, removed when the test has passed.
struct Folder {
    path: PathBuf,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and folders of this test are in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

impl Cluster {
    /// A cluster that runs beside those of other tests.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Cluster {
        // A poisoned lock protects no data: a failed test leaves nothing behind.
        let guard = MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        Cluster::with(Turn::Shared { _guard: guard })
    }

    /// A cluster with the machine to itself, for a test that compares times.
    pub fn alone() -> Cluster {
        let guard = MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        Cluster::with(Turn::Alone { _guard: guard })
    }

    fn with(turn: Turn) -> Cluster {
        let path = tempfile::Builder::new().prefix("pangea-test-").tempdir().unwrap().keep();
        Cluster { folder: Rc::new(Folder { path }), _turn: turn }
    }

    /// Nodes of these names. All but the first are started with `--peer` and the first's address, and are connected to it on
    /// return.
    pub fn pool(&self, names: &[&str]) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        for name in names {
            let builder = self.node(name);
            let node = match nodes.first() {
                Some(first) => builder.with("--peer", &first.address).start(),
                None => builder.start(),
            };
            if let Some(first) = nodes.first() {
                node.process.line(&format!("Connected to peer {}", first.peer));
            }
            nodes.push(node);
        }
        nodes
    }

    /// A folder for this test's files.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// A node to be started. Its folder and its log have the node's name.
    pub fn node(&self, name: &str) -> NodeBuilder {
        NodeBuilder {
            folder: Rc::clone(&self.folder),
            name: name.to_owned(),
            listen: "/ip4/127.0.0.1/tcp/0".to_owned(),
            rpc_addr: "127.0.0.1:0".to_owned(),
            api_addr: Some("127.0.0.1:0".to_owned()),
            namespace: None,
            mdns: false,
            open: true,
            arguments: Vec::new(),
        }
    }

    /// A file with a pool key.
    pub fn pool_key(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.folder.path.join(name);
        std::fs::write(&path, format!("{byte:02x}").repeat(32)).unwrap();
        path
    }

    /// Starts a command of the binary without waiting for its end.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_in(None, arguments)
    }

    /// Starts a command of the binary in a namespace, without waiting for its end.
    pub fn start_in(&self, namespace: Option<&Namespace>, arguments: &[&str]) -> Process {
        let mut command = command(namespace);
        command.args(arguments).env("PANGEA_HOME", self.folder.path.join("home")).current_dir(&self.folder.path);
        Process::start(arguments[0], command, &self.folder.path.join("commands.log"))
    }

    /// Runs a command of the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        output(&self.start(arguments))
    }
}

/// Exit code and output of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` where a signal ended the process.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// The JSON document on standard output.
    ///
    /// # Panics
    /// Where the command failed, or wrote anything but one JSON document.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Waits for the end of a process and returns its exit code and output.
pub fn output(process: &Process) -> Output {
    let status = process.wait();
    let said = |out| process.lines().into_iter().filter(|line| line.out == out).map(|line| line.text + "\n").collect();
    Output { code: status.code(), out: said(true), err: said(false) }
}

/// A node before it starts.
pub struct NodeBuilder {
    folder: Rc<Folder>,
    name: String,
    listen: String,
    rpc_addr: String,
    /// Address of the HTTP API; `None` for a free port of the host's private address.
    api_addr: Option<String>,
    namespace: Option<Namespace>,
    mdns: bool,
    open: bool,
    arguments: Vec<String>,
}

impl NodeBuilder {
    /// A flag with its value.
    pub fn with(mut self, flag: &str, value: impl AsRef<str>) -> NodeBuilder {
        self.arguments.extend([flag.to_owned(), value.as_ref().to_owned()]);
        self
    }

    /// A flag without a value.
    pub fn flag(mut self, flag: &str) -> NodeBuilder {
        self.arguments.push(flag.to_owned());
        self
    }

    /// Sets `--fault`: how the node lies or fails.
    pub fn fault(self, fault: &str) -> NodeBuilder {
        self.with("--fault", fault)
    }

    /// Sets `--pool-key`.
    pub fn pool_key(self, file: &Path) -> NodeBuilder {
        self.own_pool().with("--pool-key", file.to_str().unwrap())
    }

    /// Gives the node a pool of its own, or the one that it has joined, in place of an open pool.
    pub fn own_pool(mut self) -> NodeBuilder {
        self.open = false;
        self
    }

    /// Sets `--max-memory`.
    pub fn max_memory(self, size: &str) -> NodeBuilder {
        self.with("--max-memory", size)
    }

    /// Sets the listening address for peers; by default a free port of loopback.
    pub fn listen(mut self, address: &str) -> NodeBuilder {
        address.clone_into(&mut self.listen);
        self
    }

    /// Sets the address of the Cap'n Proto service; by default a free port of loopback.
    pub fn rpc_addr(mut self, address: &str) -> NodeBuilder {
        address.clone_into(&mut self.rpc_addr);
        self
    }

    /// Sets the address of the HTTP API; by default a free port of loopback.
    pub fn api_addr(mut self, address: &str) -> NodeBuilder {
        self.api_addr = Some(address.to_owned());
        self
    }

    /// Offers the HTTP API at a free port of the host's private address to whoever has `key`.
    pub fn bind_lan(mut self, key: &str) -> NodeBuilder {
        std::fs::create_dir_all(self.data_dir()).unwrap();
        std::fs::write(self.data_dir().join("config.toml"), format!("api-key = \"{key}\"\n")).unwrap();
        self.api_addr = None;
        self
    }

    /// Runs the node in a namespace, where it finds others by mDNS.
    pub fn in_namespace(mut self, namespace: &Namespace) -> NodeBuilder {
        self.namespace = Some(namespace.clone());
        "/ip4/0.0.0.0/tcp/0".clone_into(&mut self.listen);
        self.mdns = true;
        self
    }

    /// Data directory of the node.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// Starts the node without waiting until it listens.
    pub fn launch(&self) -> Process {
        Process::start(&self.name, self.command(), &self.folder.path.join(format!("{}.log", self.name)))
    }

    /// The command that starts the node.
    pub fn command(&self) -> Command {
        let mut command = command(self.namespace.as_ref());
        command.args(["node", "--name", &self.name, "--listen", &self.listen, "--rpc-addr", &self.rpc_addr]);
        if !self.arguments.iter().any(|argument| argument == "--threads") {
            command.args(["--threads", "1"]);
        }
        match &self.api_addr {
            Some(address) => command.args(["--api-addr", address]),
            None => command.args(["--bind", "lan", "--api-port", "0"]),
        };
        command.arg("--data-dir").arg(self.data_dir()).args(&self.arguments);
        if !self.mdns {
            command.arg("--no-mdns");
        }
        if self.open {
            command.arg("--open");
        }
        if std::env::var_os(VERBOSE).is_some() {
            command.arg("-v");
        }
        command
    }

    /// Starts the node and waits until it listens.
    pub fn start(&self) -> Node {
        let node = self.once_it_listens(self.launch());
        assert_eq!(self.facts()["pid"], node.process.pid());
        node
    }

    /// Starts the node on a terminal of its own, which `script` of util-linux makes, and waits until it listens. The process is that
    /// of `script`.
    pub fn start_on_terminal(&self) -> (Node, Keyboard) {
        let node = self.command();
        let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"));
        let words: Vec<String> = std::iter::once(node.get_program()).chain(node.get_args()).map(quoted).collect();
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--return", "--command", &words.join(" "), "/dev/null"]);
        for (name, _) in node.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        let log = self.folder.path.join(format!("{}.log", self.name));
        let (process, keyboard) = Process::with_keyboard(&self.name, command, &log);
        (self.once_it_listens(process), keyboard)
    }

    /// What the running node says of itself in `node.json`.
    fn facts(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.data_dir().join("node.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn once_it_listens(&self, process: Process) -> Node {
        process.line("Listening on ");
        let facts = self.facts();
        let fact = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Node {
            process,
            peer: fact(&facts["peer"]),
            address: fact(&facts["listening"][0]),
            rpc: fact(&facts["rpc"]),
            api: fact(&facts["api"]),
            data_dir: self.data_dir(),
            _folder: Rc::clone(&self.folder),
        }
    }
}

/// A command of the binary, in a namespace or not, without the settings for nodes of this process's environment.
fn command(namespace: Option<&Namespace>) -> Command {
    let mut command = match namespace {
        Some(namespace) => namespace.command(&binary()),
        None => Command::new(binary()),
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PANGEA_")) {
        command.env_remove(name);
    }
    command
}

/// The binary under test.
///
/// # Panics
/// Where the binary does not exist.
pub fn binary() -> PathBuf {
    let path = std::env::var_os(BINARY).map(PathBuf::from).unwrap_or_else(|| {
        // Tests are in target/PROFILE/deps, the binary is in target/PROFILE.
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("pangea")
    });
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    assert!(
        path.is_file(),
        "{} does not exist: run `cargo build{profile} --bin pangea` first, or name the binary with {BINARY}",
        path.display()
    );
    path
}

/// A running node.
pub struct Node {
    /// The process.
    pub process: Process,
    /// Peer id of the node.
    pub peer: String,
    /// Listening address, with the peer id.
    pub address: String,
    /// Address of the Cap'n Proto service.
    pub rpc: String,
    /// Address of the HTTP API.
    pub api: String,
    /// Data directory of the node.
    pub data_dir: PathBuf,
    _folder: Rc<Folder>,
}

impl Node {
    /// A new connection to the node's service.
    pub fn client(&self) -> Client {
        Client::connect(&self.rpc, TIMEOUT).unwrap()
    }

    /// Connects the node to another; both have logged the connection on return.
    pub fn connect(&self, other: &Node) {
        self.connect_by(other, &other.address);
    }

    /// Connects the node to another through `address`.
    pub fn connect_by(&self, other: &Node, address: &str) {
        assert_eq!(self.client().connect_peer(address, Some(TIMEOUT)).unwrap(), other.peer);
        self.process.line(&format!("Connected to peer {}", other.peer));
        other.process.line(&format!("Connected to peer {}", self.peer));
    }

    /// The folders of evidence that the node keeps against a peer. They are written after the verdict, under names that begin
    /// with a dot until they are whole; those are left out.
    pub fn evidence_against(&self, peer: &Node) -> Vec<PathBuf> {
        let Ok(folders) = std::fs::read_dir(self.data_dir.join("evidence")) else { return Vec::new() };
        let is_whole = |folder: &PathBuf| {
            let name = folder.file_name().unwrap().to_str().unwrap();
            !name.starts_with('.') && name.contains(&peer.peer)
        };
        folders.map(|folder| folder.unwrap().path()).filter(is_whole).collect()
    }

    /// Status of the node.
    pub fn status(&self) -> NodeStatus {
        self.client().status().unwrap()
    }

    /// Status of a peer as the node sees it.
    ///
    /// # Panics
    /// Where the node does not know the peer.
    pub fn status_of(&self, peer: &Node) -> PeerStatus {
        let peers = self.client().peers().unwrap();
        peers.into_iter().find(|status| status.peer == peer.peer).unwrap()
    }

    /// Waits until the node runs no job and holds no tensor.
    pub fn is_idle_again(&self) {
        let client = self.client();
        eventually("no job and no tensor is left", || {
            let status = client.status().unwrap();
            status.jobs_running == 0 && status.memory_used_bytes == 0
        });
    }

    /// The node's TCP connections to peers.
    pub fn connections(&self) -> BTreeSet<Connection> {
        let service = |address: &str| address.rsplit(':').next().unwrap().parse().unwrap();
        connections(self.process.pid(), &[service(&self.rpc), service(&self.api)])
    }

    /// The node's port for peers.
    pub fn port(&self) -> u16 {
        self.address.split('/').nth(4).unwrap().parse().unwrap()
    }

    /// SIGKILL.
    pub fn kill9(&self) {
        self.process.signal(Signal::KILL);
    }

    /// SIGSTOP: the connections stay open, and the node answers nothing.
    pub fn stop(&self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// SIGTERM; returns the exit code once the node has ended.
    pub fn terminate(&self) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.process.wait().code()
    }
}

/// An accepting node and workers connected to it.
pub struct Star {
    /// The accepting node.
    pub one: Node,
    /// The workers.
    pub workers: Vec<Node>,
}

impl Cluster {
    /// An accepting node named `one`, and `workers` connected to it.
    pub fn star(&self, workers: Vec<NodeBuilder>) -> Star {
        let one = self.node("one").start();
        let workers: Vec<Node> = workers.iter().map(NodeBuilder::start).collect();
        for worker in &workers {
            one.connect(worker);
        }
        Star { one, workers }
    }
}
