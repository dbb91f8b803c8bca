//! The interface of the network to the rest of the node: how it is started, the handle, and the events. It holds no state:
//! every call is a message to the swarm's task.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use libp2p::gossipsub::MessageId;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::inbound::{AcceptedTwice, Inbound, IncomingStreams};
use super::metrics::{self, RefusedByPeers};
use super::peer_connections::PeerConnections;
use super::peers_file::PeersFileError;
use super::swarm;
use super::{FoundBy, Report, Traffic, TrafficRate, Transport, Unconnected};
use crate::membership::Membership;
use crate::observe::Observer;
use crate::peers::Peers;

/// Queued events: a burst of every peer of a large pool connecting at once.
const EVENTS: usize = 1024;

/// Queued commands; callers wait for their answers, so few suffice.
const COMMANDS: usize = 64;

/// Configuration of the network.
#[derive(Clone)]
pub struct NetConfig {
    /// Addresses to listen on: `/ip4/…/tcp/…` and `/ip4/…/udp/…/quic-v1`; port 0 picks a free one. Use `0.0.0.0` for
    /// mDNS to announce them.
    pub listen: Vec<Multiaddr>,
    /// This node's key pair; its public half is the peer id.
    pub identity: Keypair,
    /// This node's place in its pool. In an open pool, any node on the network can join.
    pub membership: Membership,
    /// Whether to announce this node and to discover others on the local network.
    pub mdns: bool,
    /// Addresses to connect to, and to reconnect to whenever the connection is lost.
    pub peers: Vec<Multiaddr>,
    /// A `peers.json`, which is read again when it changes.
    pub peers_file: Option<PathBuf>,
    /// Maximum connected peers.
    pub max_peers: u32,
    /// The gossip topic; `None` for no gossip.
    pub gossip: Option<GossipConfig>,
    /// Whether to connect to the nodes that are named or discovered; otherwise they are only known.
    pub dials: bool,
}

impl NetConfig {
    /// Default of `max_peers`: a lab's worth. Each costs about half a megabyte.
    pub const MAX_PEERS: u32 = 256;

    /// Listens nowhere, has no peers and an open pool.
    pub fn new(identity: Keypair) -> Self {
        Self {
            listen: Vec::new(),
            membership: Membership::open(&identity),
            identity,
            mdns: false,
            peers: Vec::new(),
            peers_file: None,
            max_peers: Self::MAX_PEERS,
            gossip: None,
            dials: true,
        }
    }
}

/// Which side opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This node dialled the peer.
    Dialled,
    /// The peer dialled this node.
    Accepted,
}

/// A message on the gossip topic, with a verified signature.
#[derive(Debug, Clone, PartialEq)]
pub struct Gossip {
    /// Peer that wrote and signed the message.
    pub source: PeerId,
    /// Content of the message.
    pub bytes: Vec<u8>,
    /// Identifies the message for [`Network::judge`].
    pub ticket: GossipTicket,
}

/// Identifies a gossip message until it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipTicket {
    pub(super) id: MessageId,
    pub(super) relayed_by: PeerId,
}

impl GossipTicket {
    /// The connected peer that passed the message on, which may be its source.
    pub fn forwarder(&self) -> PeerId {
        self.relayed_by
    }
}

/// Judgement of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GossipJudgement {
    /// Forward the message.
    Accept,
    /// Do not forward it: it is old or a duplicate.
    Ignore,
    /// Do not forward it: it violates the protocol.
    Reject,
}

/// Configuration of the gossip topic.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Name of the topic.
    pub topic: &'static str,
    /// Maximum bytes of a message.
    pub max_bytes: usize,
}

/// An event on the network.
#[derive(Debug, Clone, PartialEq)]
pub enum NetEvent {
    /// The node listens on this address, which ends in `/p2p/<its id>`.
    Listening(Multiaddr),
    /// mDNS announced a peer for the first time. Not yet connected.
    Discovered(PeerId),
    /// A peer is connected and admitted. Once until its [`NetEvent::PeerDown`].
    PeerUp {
        /// Id of the peer.
        peer: PeerId,
        /// Address of the peer (for an accepted connection its source address, which cannot be dialled).
        address: Multiaddr,
        /// Transport of the connection.
        transport: Transport,
        /// Which side opened the connection.
        direction: Direction,
        /// How the peer was found.
        found_by: FoundBy,
    },
    /// A connected peer reported its listen addresses.
    PeerAddressesChanged {
        /// Id of the peer.
        peer: PeerId,
        /// Addresses that the peer reports.
        addresses: Vec<Multiaddr>,
    },
    /// The last connection to a peer has ended.
    PeerDown {
        /// Id of the peer.
        peer: PeerId,
        /// Reason, for `Peer <peer id> is gone (<why>)`.
        why: String,
        /// Whether the peer was declared dead after seconds of silence; otherwise its connection ended.
        silent: bool,
    },
    /// A node of the pool, connected or not, published a gossip message. Must be judged with [`Network::judge`].
    Gossip(Gossip),
    /// A peer answered a ping; about once per second.
    Rtt {
        /// Id of the peer.
        peer: PeerId,
        /// Round-trip time.
        rtt: Duration,
    },
    /// This node refused a connection. Already logged; repeated only once in a while for the same peer and reason.
    Refused {
        /// Id of the peer, if it got as far as proving its identity.
        peer: Option<PeerId>,
        /// Reason of the refusal.
        why: String,
    },
    /// A peer refused this node's connection. Already logged; repeated only once in a while.
    RefusedBy {
        /// Id of the peer.
        peer: PeerId,
        /// Reason of the refusal, and what to do.
        why: String,
    },
    /// A connection failed because the other node belongs to another pool. As often as that happens.
    Stranger {
        /// Id of the node.
        peer: PeerId,
        /// Where it is.
        host: Option<IpAddr>,
    },
    /// The peers file is invalid; the last valid list stays in force. Already logged.
    PeersFileBroken {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong, with line and column.
        error: PeersFileError,
    },
    /// The peers file was read.
    PeersFileLoaded {
        /// Number of peers in the file.
        count: usize,
    },
}

/// Errors of the network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetError {
    /// The port of a listen address is in use.
    #[error(
        "port {port} is in use ({address}): is another node running? Stop it, or choose another port with --listen, for example --listen {free}"
    )]
    PortInUse {
        /// The port in use.
        port: u16,
        /// The requested address.
        address: Multiaddr,
        /// The same address with port 0, which picks a free one.
        free: Multiaddr,
    },
    /// The node cannot listen on an address.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The requested address.
        address: Multiaddr,
        /// Error of the system.
        why: String,
    },
    /// The transports could not be set up.
    #[error("cannot set up the network: {0}")]
    Setup(String),
    /// No node answers at an address.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// The dialled address.
        address: Multiaddr,
        /// Reason of the failure.
        why: String,
    },
    /// One of the two nodes refuses the connection.
    #[error("not connected to {peer}: {why}")]
    Refused {
        /// Id of the peer.
        peer: PeerId,
        /// Reason of the refusal, and what to do.
        why: String,
    },
    /// The address belongs to this node.
    #[error("{0} is this node's own address")]
    OwnAddress(Multiaddr),
    /// The time limit passed.
    #[error("{address} did not answer within {seconds} s")]
    TimedOut {
        /// The dialled address.
        address: Multiaddr,
        /// The time limit.
        seconds: u64,
    },
    /// The network was shut down.
    #[error("the network is shut down")]
    Stopped,
}

/// A command of the handle to the swarm's task.
pub(super) enum Command {
    Connect { address: Multiaddr, until: tokio::time::Instant, reply: oneshot::Sender<Result<PeerId, NetError>> },
    Disconnect { peer: PeerId, why: String, reply: oneshot::Sender<()> },
    Block { peer: PeerId, why: String },
    Allow { peer: PeerId },
    Publish { bytes: Vec<u8> },
    Judge { ticket: GossipTicket, judgement: GossipJudgement },
    Heard { report: Report, addresses: Vec<Multiaddr> },
    ListenAddresses { reply: oneshot::Sender<Vec<Multiaddr>> },
    Keep { addresses: Vec<Multiaddr> },
    Unconnected { reply: oneshot::Sender<Vec<Unconnected>> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// Handle of a running network. Clones share it; the network ends with [`Network::shutdown`], or with its last handle.
#[derive(Clone)]
pub struct Network {
    pub(super) local: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) streams: libp2p_stream::Control,
    pub(super) inbound: Inbound,
    pub(super) connections: PeerConnections,
    pub(super) refused_by: RefusedByPeers,
}

/// Binds the listen addresses and starts the swarm on the current tokio runtime (a current-thread one serves it best).
/// When it returns, ports are bound; the addresses follow as [`NetEvent::Listening`].
///
/// The events must be read: the swarm waits for a reader that lags by more than a thousand events.
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
    if config.membership.is_open() {
        tracing::warn!(
            event = "open_pool",
            "OPEN POOL: anyone on the network can join this node, give it work and read what it computes (start it without --open to keep strangers out)"
        );
    }
    let (event_sender, events) = mpsc::channel(EVENTS);
    let (commands, command_receiver) = mpsc::channel(COMMANDS);
    let connections = PeerConnections::new(local);
    let refused_by = RefusedByPeers::default();
    let driver = swarm::SwarmDriver::new(config, connections.clone(), refused_by.clone(), event_sender)?;
    let (streams, inbound) = (driver.streams(), driver.inbound());
    tokio::spawn(driver.run(command_receiver));
    Ok((Network { local, commands, streams, inbound, connections, refused_by }, events))
}

/// These addresses, with free ports instead if the port of one of them is in use.
pub fn with_free_ports(listen: &[Multiaddr]) -> Vec<Multiaddr> {
    let taken = listen.iter().find_map(|address| match check_port_free(address) {
        Err(NetError::PortInUse { port, .. }) => Some(port),
        _ => None,
    });
    let Some(port) = taken else { return listen.to_vec() };
    tracing::info!(event = "port_taken", port, "Port {port} for peers is in use; using free ports instead");
    listen.iter().map(with_free_port).collect()
}

/// `address` with port 0, which picks a free one.
fn with_free_port(address: &Multiaddr) -> Multiaddr {
    let free = |part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(0),
        Protocol::Udp(_) => Protocol::Udp(0),
        other => other,
    };
    address.iter().map(free).collect()
}

/// Binds the port and releases it at once. libp2p's TCP listeners share their ports (SO_REUSEPORT): a second node would
/// silently take half of the first one's connections.
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

/// [`NetError::PortInUse`], with the address that picks a free port.
fn port_in_use(address: &Multiaddr, port: u16) -> NetError {
    NetError::PortInUse { port, address: address.clone(), free: with_free_port(address) }
}

impl Network {
    /// This node's peer id.
    pub fn local_peer_id(&self) -> PeerId {
        self.local
    }

    /// Controls opening and accepting streams by protocol name.
    ///
    /// Pitfalls: `open_stream` to a peer that is not connected waits for it to be dialled; open only between its
    /// `PeerUp` and its `PeerDown`, with a timeout. Accept streams with [`Network::accept`]: libp2p's own queue has one place
    /// for all peers.
    /// Read and write a stream concurrently, each with a deadline on progress: two sides that both only write wait forever.
    pub fn streams(&self) -> libp2p_stream::Control {
        self.streams.clone()
    }

    /// The streams of `protocol` that peers open, a few of each peer until they are taken. Must be called before the first
    /// connection, or the protocol is not offered to that peer.
    ///
    /// # Errors
    /// [`AcceptedTwice`].
    pub fn accept(&self, protocol: StreamProtocol) -> Result<IncomingStreams, AcceptedTwice> {
        self.inbound.accept(protocol)
    }

    /// Bytes exchanged with `peer` over its current connection. Cheap. Zero if not connected.
    pub fn traffic(&self, peer: &PeerId) -> Traffic {
        self.connections.traffic(peer)
    }

    /// Bytes per second that are exchanged with `peer` now, averaged over the last seconds. Cheap. Zero if not connected.
    pub fn traffic_rate(&self, peer: &PeerId) -> TrafficRate {
        self.connections.rate(peer)
    }

    /// Registers what is counted of connections with `observer`; `peers` knows the round trips.
    pub fn observe(&self, peers: &Peers, observer: &Observer) {
        metrics::observe(&self.connections, &self.refused_by, peers, observer);
    }

    /// Connects to the node at `address` once, independently of the dialling plan. Returns at once if it is connected.
    ///
    /// # Errors
    /// [`NetError::Unreachable`], [`NetError::Refused`], [`NetError::OwnAddress`], [`NetError::TimedOut`],
    /// [`NetError::Stopped`].
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

    /// Ends the connections to `peer`; `why` goes into its `PeerDown`. Returns when they are closed. A peer in the dialling
    /// plan is dialled again, unless it is blocked.
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

    /// Publishes `bytes` on the gossip topic. There may be no subscriber.
    pub async fn publish(&self, bytes: Vec<u8>) {
        let _ = self.commands.send(Command::Publish { bytes }).await;
    }

    /// Judges a gossip message; each must be judged once, soon.
    pub async fn judge(&self, ticket: GossipTicket, judgement: GossipJudgement) {
        let _ = self.commands.send(Command::Judge { ticket, judgement }).await;
    }

    /// A node that is not connected reports that it listens at `addresses`: they are dialled, as far as the dialling plan
    /// has a place for reports.
    pub async fn heard_of(&self, report: Report, addresses: Vec<Multiaddr>) {
        let _ = self.commands.send(Command::Heard { report, addresses }).await;
    }

    /// Stays connected to the nodes at `addresses`, as to those named when the network was started.
    pub async fn keep(&self, addresses: Vec<Multiaddr>) {
        let _ = self.commands.send(Command::Keep { addresses }).await;
    }

    /// Nodes that this one knows the addresses of and is not connected to: on the local network, and those that were named.
    pub async fn unconnected(&self) -> Vec<Unconnected> {
        let (reply, answer) = oneshot::channel();
        match self.commands.send(Command::Unconnected { reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Listen addresses of this node, each ending in `/p2p/<its id>`.
    pub async fn listen_addresses(&self) -> Vec<Multiaddr> {
        let (reply, answer) = oneshot::channel();
        match self.commands.send(Command::ListenAddresses { reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Disconnects every peer and ends the network. Returns when all connections are closed, within about a second.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}
