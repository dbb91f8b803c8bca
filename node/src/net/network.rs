//! What the rest of the node sees of the network: how it is started, the handle, and the events. It holds no state of its own:
//! every call is a message to the swarm's task.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use libp2p::gossipsub::MessageId;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::peer_connections::PeerConnections;
use super::peers_file::PeersFileError;
use super::pool_key::PoolKey;
use super::swarm;
use super::{FoundBy, Traffic, Transport};

/// Events that wait for the reader: a burst of every peer of a large pool coming up at once.
const EVENTS: usize = 1024;

/// Commands that wait for the swarm: callers wait for their answers, so a few are many.
const COMMANDS: usize = 64;

/// How the network is set up.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Addresses to listen on: `/ip4/…/tcp/…` and `/ip4/…/udp/…/quic-v1`; port 0 picks a free one. `0.0.0.0` for mDNS to announce them.
    pub listen: Vec<Multiaddr>,
    /// This node's key pair; its public half is the peer id.
    pub identity: Keypair,
    /// The pool's key. Without one, anyone on the network can join.
    pub pool_key: Option<PoolKey>,
    /// Whether to announce this node and to look for others on the local network.
    pub mdns: bool,
    /// Addresses to connect to, and to connect to again whenever that is lost.
    pub peers: Vec<Multiaddr>,
    /// A `peers.json`, read again when it changes.
    pub peers_file: Option<PathBuf>,
    /// Connected peers at most.
    pub max_peers: u32,
    /// The topic that nodes gossip on; none for no gossip.
    pub gossip: Option<GossipConfig>,
}

impl NetConfig {
    /// Peers of one node by default: a lab's worth. Each costs about half a megabyte.
    pub const MAX_PEERS: u32 = 256;

    /// Listens nowhere, knows nobody, has no key.
    pub fn new(identity: Keypair) -> Self {
        Self {
            listen: Vec::new(),
            identity,
            pool_key: None,
            mdns: false,
            peers: Vec::new(),
            peers_file: None,
            max_peers: Self::MAX_PEERS,
            gossip: None,
        }
    }
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This node dialled.
    Dialled,
    /// The peer dialled.
    Accepted,
}

/// A message on the gossip topic, its signature checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Gossip {
    /// Who wrote and signed it.
    pub source: PeerId,
    /// What it says.
    pub bytes: Vec<u8>,
    /// Names it when it is judged.
    pub ticket: GossipTicket,
}

/// Names a gossip message until it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipTicket {
    pub(super) id: MessageId,
    pub(super) relayed_by: PeerId,
}

/// What becomes of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on to others.
    Accept,
    /// Not passed on: no news.
    Ignore,
    /// Not passed on: nobody who keeps to the protocol would have.
    Reject,
}

/// The gossip topic of a network.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Its name.
    pub topic: &'static str,
    /// Bytes of a message at most.
    pub max_bytes: usize,
}

/// What happens on the network.
#[derive(Debug, Clone, PartialEq)]
pub enum NetEvent {
    /// The node listens on this address, which ends in `/p2p/<its id>`.
    Listening(Multiaddr),
    /// mDNS announced a peer for the first time. Not yet connected.
    Discovered(PeerId),
    /// A peer is connected and admitted. Once until its [`NetEvent::PeerDown`].
    PeerUp {
        /// Who.
        peer: PeerId,
        /// Where it is (of an accepted connection: where it came from, which nobody can dial).
        address: Multiaddr,
        /// What carries the connection.
        transport: Transport,
        /// Who opened it.
        direction: Direction,
        /// How it was found.
        found_by: FoundBy,
    },
    /// A connected peer said where it listens.
    PeerAddressesChanged {
        /// Who.
        peer: PeerId,
        /// Where, by its own account.
        addresses: Vec<Multiaddr>,
    },
    /// The last connection to a peer is gone.
    PeerDown {
        /// Who.
        peer: PeerId,
        /// Why, for `Peer <peer id> is gone (<why>)`.
        why: String,
        /// Whether it was found dead after seconds of silence, rather than that the connection ended.
        silent: bool,
    },
    /// A node of the pool, connected or not, said something on the gossip topic. Waits for its [`Network::judge`].
    Gossip(Gossip),
    /// A peer answered a ping; about one a second.
    Rtt {
        /// Who.
        peer: PeerId,
        /// The round trip.
        rtt: Duration,
    },
    /// Somebody was not let in. Already logged, and told about once in a while only for the same peer and reason.
    Refused {
        /// Who, if it got as far as showing its identity.
        peer: Option<PeerId>,
        /// Why.
        why: String,
    },
    /// A peer did not let this node in. Already logged, and told about once in a while only.
    RefusedBy {
        /// Who.
        peer: PeerId,
        /// Why, and what to do.
        why: String,
    },
    /// The peers file is broken; the list that was good last stays in force. Already logged.
    PeersFileBroken {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        error: PeersFileError,
    },
    /// The peers file was read.
    PeersFileLoaded {
        /// How many peers it holds.
        count: usize,
    },
}

/// What can go wrong on the network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetError {
    /// An address to listen on is taken.
    #[error(
        "port {port} is in use ({address}): is another node running? Stop it, or choose another port with --listen, for example --listen {free}"
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// The address asked for.
        address: Multiaddr,
        /// The same address with port 0, which picks a free one.
        free: Multiaddr,
    },
    /// An address to listen on cannot be used.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address asked for.
        address: Multiaddr,
        /// The system's answer.
        why: String,
    },
    /// The transports could not be set up.
    #[error("cannot set up the network: {0}")]
    Setup(String),
    /// Nobody answers at an address.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// The address dialled.
        address: Multiaddr,
        /// What happened.
        why: String,
    },
    /// This node or the other refuses to connect.
    #[error("not connected to {peer}: {why}")]
    Refused {
        /// The other.
        peer: PeerId,
        /// Why, and what to do.
        why: String,
    },
    /// The address is this node's own.
    #[error("{0} is this node's own address")]
    OwnAddress(Multiaddr),
    /// Not done in the time given.
    #[error("{address} did not answer within {seconds} s")]
    TimedOut {
        /// The address dialled.
        address: Multiaddr,
        /// The time given.
        seconds: u64,
    },
    /// The network was shut down.
    #[error("the network is shut down")]
    Stopped,
}

/// What the handle asks of the swarm's task.
pub(super) enum Command {
    Connect { address: Multiaddr, until: tokio::time::Instant, reply: oneshot::Sender<Result<PeerId, NetError>> },
    Disconnect { peer: PeerId, why: String, reply: oneshot::Sender<()> },
    Block { peer: PeerId, why: String },
    Allow { peer: PeerId },
    Publish { bytes: Vec<u8> },
    Judge { ticket: GossipTicket, verdict: Verdict },
    Heard { peer: PeerId, addresses: Vec<Multiaddr> },
    ListenAddresses { reply: oneshot::Sender<Vec<Multiaddr>> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// The handle on a running network. Clones share it; the network ends with [`Network::shutdown`], or with its last handle.
#[derive(Clone)]
pub struct Network {
    pub(super) local: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) streams: libp2p_stream::Control,
    pub(super) connections: PeerConnections,
}

/// Binds the listen addresses and starts the swarm on the current tokio runtime (a current-thread one serves it best).
/// When it returns, ports are bound; the addresses follow as [`NetEvent::Listening`].
///
/// The events must be read: the swarm waits for a reader that lags by more than a thousand.
///
/// # Errors
/// [`NetError::PortInUse`], [`NetError::Listen`], [`NetError::Setup`].
///
/// # Panics
/// Outside of a tokio runtime with I/O and time enabled.
pub fn start(config: NetConfig) -> Result<(Network, mpsc::Receiver<NetEvent>), NetError> {
    let local = config.identity.public().to_peer_id();
    for address in &config.listen {
        check_port_free(address)?;
    }
    if config.pool_key.is_none() {
        tracing::warn!(
            event = "no_pool_key",
            "no pool key: anyone on the network can join this node (use --pool-key FILE on every node to keep strangers out)"
        );
    }
    let (event_sender, events) = mpsc::channel(EVENTS);
    let (commands, command_receiver) = mpsc::channel(COMMANDS);
    let connections = PeerConnections::new(local);
    let driver = swarm::Driver::new(config, connections.clone(), event_sender)?;
    let streams = driver.streams();
    tokio::spawn(driver.run(command_receiver));
    Ok((Network { local, commands, streams, connections }, events))
}

/// A plain bind, let go at once. libp2p's TCP listeners share their ports (SO_REUSEPORT): a second node would silently
/// take half of the first one's connections.
fn check_port_free(address: &Multiaddr) -> Result<(), NetError> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let (port, bound) = match parts.next() {
        Some(Protocol::Tcp(port)) => (port, TcpListener::bind((ip, port)).map(drop)),
        Some(Protocol::Udp(port)) => (port, UdpSocket::bind((ip, port)).map(drop)),
        _ => return Ok(()),
    };
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => port_in_use(address, port),
        _ => NetError::Listen { address: address.clone(), why: error.to_string() },
    })
}

/// [`NetError::PortInUse`] with the address that picks a free port.
fn port_in_use(address: &Multiaddr, port: u16) -> NetError {
    let free = address
        .iter()
        .map(|part| match part {
            Protocol::Tcp(_) => Protocol::Tcp(0),
            Protocol::Udp(_) => Protocol::Udp(0),
            other => other,
        })
        .collect();
    NetError::PortInUse { port, address: address.clone(), free }
}

impl Network {
    /// This node's peer id.
    pub fn local_peer_id(&self) -> PeerId {
        self.local
    }

    /// Opens and accepts streams by protocol name.
    ///
    /// Traps: `open_stream` to a peer that is not connected waits for it to be dialled; open only between its `PeerUp` and its
    /// `PeerDown`, with a timeout. `accept` gives a queue without room: a stream that comes while the acceptor is not
    /// waiting in `next()` is dropped, so accept in a task that does nothing but hand each stream on. `accept` must
    /// be called before the first connection, which else does not offer the protocol to its peer.
    /// Read and write a stream concurrently, each with a deadline on progress: two sides that both only write wait forever.
    pub fn streams(&self) -> libp2p_stream::Control {
        self.streams.clone()
    }

    /// Bytes exchanged with `peer` over the connection of now, since it was made. Cheap. Zero when not connected.
    pub fn traffic(&self, peer: &PeerId) -> Traffic {
        self.connections.traffic(peer)
    }

    /// Connects to the node at `address` once, whatever the dialling plan does. At once when it is connected.
    ///
    /// # Errors
    /// [`NetError::Unreachable`], [`NetError::Refused`], [`NetError::OwnAddress`], [`NetError::TimedOut`], [`NetError::Stopped`].
    pub async fn connect(&self, address: Multiaddr, timeout: Duration) -> Result<PeerId, NetError> {
        let until = tokio::time::Instant::now() + timeout;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.commands
                .send(Command::Connect { address: address.clone(), until, reply })
                .await
                .map_err(|_| NetError::Stopped)?;
            answer.await.map_err(|_| NetError::Stopped)?
        };
        match tokio::time::timeout_at(until, asked).await {
            Ok(result) => result,
            Err(_) => Err(NetError::TimedOut { address: address.clone(), seconds: timeout.as_secs() }),
        }
    }

    /// Ends the connections to `peer`; `why` goes into its `PeerDown`. Done when they are closed. A peer that the dialling
    /// plan leads to is dialled again, unless it is blocked.
    pub async fn disconnect(&self, peer: PeerId, why: &str) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Disconnect { peer, why: why.to_owned(), reply }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Quarantines `peer`: disconnects it and refuses it until [`Network::allow`].
    pub async fn block(&self, peer: PeerId, why: &str) {
        self.connections.block(peer);
        let _ = self.commands.send(Command::Block { peer, why: why.to_owned() }).await;
    }

    /// Ends the quarantine of `peer`.
    pub async fn allow(&self, peer: PeerId) {
        self.connections.allow(&peer);
        let _ = self.commands.send(Command::Allow { peer }).await;
    }

    /// Says `bytes` to everyone on the gossip topic. Nobody may be there to hear it.
    pub async fn publish(&self, bytes: Vec<u8>) {
        let _ = self.commands.send(Command::Publish { bytes }).await;
    }

    /// What becomes of a gossip message; each is to be judged once, soon.
    pub async fn judge(&self, ticket: GossipTicket, verdict: Verdict) {
        let _ = self.commands.send(Command::Judge { ticket, verdict }).await;
    }

    /// `peer` was heard of through others, and says that it listens at `addresses`: they are dialled while it is not connected.
    pub async fn heard_of(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let _ = self.commands.send(Command::Heard { peer, addresses }).await;
    }

    /// Where the node listens, each address ending in `/p2p/<its id>`.
    pub async fn listen_addresses(&self) -> Vec<Multiaddr> {
        let (reply, answer) = oneshot::channel();
        match self.commands.send(Command::ListenAddresses { reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Takes leave of every peer and ends the network. Done when all connections are closed, within about a second.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}
