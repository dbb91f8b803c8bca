//! Two nodes, or a node and a stock libp2p peer, over real sockets on loopback: connecting, admission, duplicates,
//! files, leaving. Every wait is for an event, with a bound that only a failure reaches.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{Direction, FoundBy, NetConfig, NetError, NetEvent, Network, Transport, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::Receiver;

/// Timeout of each wait; reached only on failure.
const BOUND: Duration = Duration::from_secs(30);

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const ECHO: StreamProtocol = StreamProtocol::new("/test/echo/1");

struct Node {
    network: Network,
    events: Receiver<NetEvent>,
}

impl Node {
    fn start(change: impl FnOnce(&mut NetConfig)) -> Self {
        Self::try_start(change).unwrap()
    }

    fn try_start(change: impl FnOnce(&mut NetConfig)) -> Result<Self, NetError> {
        let mut config = NetConfig::new(Keypair::generate_ed25519());
        config.listen = vec![TCP.parse().unwrap(), QUIC.parse().unwrap()];
        change(&mut config);
        let (network, events) = start(config)?;
        Ok(Self { network, events })
    }

    fn id(&self) -> PeerId {
        self.network.local_peer_id()
    }

    /// Waits for the first event that `want` accepts, and drops the others.
    async fn next<T>(&mut self, want: impl Fn(&NetEvent) -> Option<T>) -> T {
        tokio::time::timeout(BOUND, async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(wanted) = want(&event) {
                    return wanted;
                }
            }
        })
        .await
        .expect("the event comes")
    }

    async fn address(&mut self, transport: Transport) -> Multiaddr {
        let is_wanted = |address: &Multiaddr| {
            address.iter().any(|part| matches!(part, Protocol::QuicV1)) == (transport == Transport::Quic)
        };
        if let Some(address) = self.network.listen_addresses().await.into_iter().find(is_wanted) {
            return address;
        }
        self.next(|event| match event {
            NetEvent::Listening(address) if is_wanted(address) => Some(address.clone()),
            _ => None,
        })
        .await
    }

    async fn up(&mut self) -> (PeerId, Transport, Direction, FoundBy) {
        self.next(|event| match event {
            NetEvent::PeerUp { peer, transport, direction, found_by, .. } => {
                Some((*peer, *transport, *direction, *found_by))
            }
            _ => None,
        })
        .await
    }

    async fn down(&mut self) -> (PeerId, String) {
        self.next(|event| match event {
            NetEvent::PeerDown { peer, why, .. } => Some((*peer, why.clone())),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> (Option<PeerId>, String) {
        self.next(|event| match event {
            NetEvent::Refused { peer, why } => Some((*peer, why.clone())),
            _ => None,
        })
        .await
    }

    async fn connect(&self, address: Multiaddr) -> Result<PeerId, NetError> {
        self.network.connect(address, BOUND).await
    }

    /// Sends back every byte that arrives on an echo stream.
    fn echo(&self) {
        let mut incoming = self.network.streams().accept(ECHO).unwrap();
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = futures::io::copy(&mut read, &mut write).await;
                    let _ = write.close().await;
                });
            }
        });
    }
}

/// Puts a node into the pool with this key, or into an open one.
fn belong(config: &mut NetConfig, key: Option<PoolKey>) {
    if let Some(key) = key {
        let identity = &config.identity;
        config.membership = Membership::holder(identity, &key, Role::Member, "node", Stored::default()).unwrap();
    }
}

fn key(byte: u8) -> Option<PoolKey> {
    Some(PoolKey::from_bytes(&[byte; 32]))
}

/// Bytes in which any change of the order shows.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Sends `sent` over an echo stream and compares what comes back.
async fn echo_through(mut control: libp2p_stream::Control, peer: PeerId, sent: Vec<u8>) {
    let stream = tokio::time::timeout(BOUND, control.open_stream(peer, ECHO)).await.unwrap().unwrap();
    let (mut read, mut write) = stream.split();
    let expected = sent.clone();
    let writing = async move {
        write.write_all(&sent).await.unwrap();
        write.close().await.unwrap();
    };
    let reading = async move {
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        assert!(received == expected, "{} of {} bytes, or others", received.len(), expected.len());
    };
    tokio::time::timeout(BOUND, futures::future::join(writing, reading)).await.unwrap();
}

async fn connects_and_carries(transport: Transport) {
    let (mut a, mut b) = (Node::start(|c| belong(c, key(1))), Node::start(|c| belong(c, key(1))));
    b.echo();
    let address = b.address(transport).await;
    assert_eq!(a.connect(address.clone()).await.unwrap(), b.id());
    assert_eq!(a.up().await, (b.id(), transport, Direction::Dialled, FoundBy::Manual));
    assert_eq!(b.up().await, (a.id(), transport, Direction::Accepted, FoundBy::Incoming));
    assert_eq!(a.connect(address).await.unwrap(), b.id(), "connected already");
    let payload = 8 << 20;
    echo_through(a.network.streams(), b.id(), pattern(payload)).await;
    let traffic = a.network.traffic(&b.id());
    assert!(traffic.sent_bytes >= payload as u64 && traffic.received_bytes >= payload as u64, "{traffic:?}");
    let b_id = b.id();
    let rtt = a.next(|event| match event {
        NetEvent::Rtt { peer, rtt } if *peer == b_id => Some(*rtt),
        _ => None,
    });
    assert!(rtt.await > Duration::ZERO);
    a.network.disconnect(b.id(), "enough").await;
    assert_eq!(a.down().await, (b.id(), "enough".to_owned()));
    assert_eq!(b.down().await.0, a.id());
}

#[tokio::test]
async fn nodes_connect_and_carry_streams_over_tcp() {
    connects_and_carries(Transport::Tcp).await;
}

#[tokio::test]
async fn nodes_connect_and_carry_streams_over_quic() {
    connects_and_carries(Transport::Quic).await;
}

/// A node with `dialer_key` dials a node with `acceptor_key`; returns the reason that each reports.
async fn refusal(transport: Transport, dialer_key: Option<PoolKey>, acceptor_key: Option<PoolKey>) -> (String, String) {
    let mut acceptor = Node::start(|c| belong(c, acceptor_key));
    let mut dialer = Node::start(|c| belong(c, dialer_key));
    let address = acceptor.address(transport).await;
    let Err(NetError::Refused { peer, why }) = dialer.connect(address).await else { panic!("connected") };
    assert_eq!(peer, acceptor.id());
    let (refused, acceptor_why) = acceptor.refused().await;
    assert_eq!(refused, Some(dialer.id()));
    let told = dialer
        .next(|event| match event {
            NetEvent::RefusedBy { why, .. } => Some(why.clone()),
            NetEvent::PeerUp { .. } => panic!("up"),
            _ => None,
        })
        .await;
    assert_eq!(told, why);
    assert!(acceptor.network.traffic(&dialer.id()).received_bytes == 0, "no connection came of it");
    (why, acceptor_why)
}

#[tokio::test]
async fn a_different_key_is_refused_with_the_reason_on_both_sides() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (dialer, acceptor) = refusal(transport, key(1), key(2)).await;
        assert!(dialer.contains("it belongs to another pool: join that one"), "{dialer}");
        assert_eq!(acceptor, "it belongs to another pool");
        let (dialer, acceptor) = refusal(transport, None, key(2)).await;
        assert!(dialer.contains("this node runs with --open"), "{dialer}");
        assert_eq!(acceptor, "it has no pool key");
        let (dialer, acceptor) = refusal(transport, key(1), None).await;
        assert!(dialer.contains("it runs with --open and this node does not"), "{dialer}");
        assert_eq!(acceptor, "it has a pool key and this node has none");
    }
}

#[tokio::test]
async fn nodes_without_keys_connect() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (a, mut b) = (Node::start(|_| {}), Node::start(|_| {}));
        b.echo();
        let address = b.address(transport).await;
        a.connect(address).await.unwrap();
        echo_through(a.network.streams(), b.id(), pattern(1000)).await;
    }
}

/// The port of a `/ip4/127.0.0.1/tcp/…` address.
fn tcp_port(address: &Multiaddr) -> u16 {
    address
        .iter()
        .find_map(|part| match part {
            Protocol::Tcp(port) => Some(port),
            _ => None,
        })
        .unwrap()
}

#[tokio::test]
async fn garbage_and_silent_connections_are_closed() {
    let mut node = Node::start(|c| belong(c, key(1)));
    let port = tcp_port(&node.address(Transport::Tcp).await);
    for sent in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b""] {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.write_all(sent).await.unwrap();
        let mut received = Vec::new();
        let end = tokio::time::timeout(BOUND, socket.read_to_end(&mut received)).await;
        // Closed, in order or not, and nothing but what every libp2p listener says first.
        let _closed_or_reset = end.expect("the node hangs up");
        assert!(received.len() <= 20, "{received:?}");
    }
    let other = Node::start(|c| belong(c, key(1)));
    other.connect(node.address(Transport::Tcp).await).await.unwrap();
}

#[tokio::test]
async fn both_dialling_at_once_keeps_one_connection() {
    for round in 0..12 {
        let (mut a, mut b) = (Node::start(|c| belong(c, key(1))), Node::start(|c| belong(c, key(1))));
        a.echo();
        b.echo();
        let (transport_a, transport_b) = match round % 3 {
            0 => (Transport::Tcp, Transport::Tcp),
            1 => (Transport::Tcp, Transport::Quic),
            _ => (Transport::Quic, Transport::Quic),
        };
        let (to_a, to_b) = (a.address(transport_a).await, b.address(transport_b).await);
        let (up_b, up_a) = tokio::join!(a.connect(to_b.clone()), b.connect(to_a.clone()));
        assert_eq!((up_b.unwrap(), up_a.unwrap()), (b.id(), a.id()), "round {round}");
        let (at_a, at_b) = (a.up().await, b.up().await);
        assert_eq!(at_a.1, at_b.1, "round {round}: one connection, seen from both ends");
        assert_ne!(at_a.2, at_b.2, "round {round}: one end dialled it");
        echo_through(a.network.streams(), b.id(), pattern(100_000)).await;
        echo_through(b.network.streams(), a.id(), pattern(100_000)).await;
        while let Ok(event) = a.events.try_recv() {
            assert!(!matches!(event, NetEvent::PeerDown { .. } | NetEvent::PeerUp { .. }), "round {round}: {event:?}");
        }
    }
}

#[tokio::test]
async fn a_named_peer_is_found_when_it_starts_later_and_again_when_it_restarts() {
    let identity = Keypair::generate_ed25519();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let mut a = Node::start(|c| c.peers = vec![address.clone()]);
    let later = |c: &mut NetConfig| {
        c.identity = identity.clone();
        c.listen = vec![address.clone()];
    };
    let b = Node::start(later);
    assert_eq!(a.up().await.0, b.id());
    b.network.shutdown().await;
    assert_eq!(a.down().await, (b.id(), "it closed the connection".to_owned()));
    let b = Node::start(later);
    assert_eq!(a.up().await.0, b.id());
}

#[tokio::test]
async fn a_quarantined_peer_is_cut_off_and_stays_out_until_allowed() {
    let (mut a, mut b) = (Node::start(|_| {}), Node::start(|_| {}));
    let to_a = a.address(Transport::Tcp).await;
    b.connect(to_a.clone()).await.unwrap();
    a.up().await;
    a.network.block(b.id(), "it lied").await;
    assert_eq!(a.down().await, (b.id(), "it lied".to_owned()));
    b.down().await;
    let Err(NetError::Refused { why, .. }) = b.connect(to_a.clone()).await else { panic!("in") };
    assert!(why.contains("quarantined"), "{why}");
    a.network.allow(b.id()).await;
    b.connect(to_a).await.unwrap();
}

#[tokio::test]
async fn a_changed_peers_file_is_used_and_an_invalid_one_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers.json");
    std::fs::write(&path, r#"{"peers": []}"#).unwrap();
    let mut a = Node::start(|c| c.peers_file = Some(path.clone()));
    let loaded = |event: &NetEvent| match event {
        NetEvent::PeersFileLoaded { count } => Some(*count),
        _ => None,
    };
    assert_eq!(a.next(loaded).await, 0);
    let mut b = Node::start(|_| {});
    let address = b.address(Transport::Tcp).await;
    std::fs::write(&path, format!(r#"{{"peers": [{{"name": "b", "address": "{address}"}}]}}"#)).unwrap();
    assert_eq!(a.up().await, (b.id(), Transport::Tcp, Direction::Dialled, FoundBy::Manual));
    std::fs::write(&path, "{\"peers\": [\n  {\"address\": 7}\n]}").unwrap();
    let broken = a
        .next(|event| match event {
            NetEvent::PeersFileBroken { error, .. } => Some(error.to_string()),
            _ => None,
        })
        .await;
    assert!(broken.starts_with("line 2, column"), "{broken}");
    // The last valid list is in use: b is found again.
    b.network.disconnect(a.id(), "test").await;
    a.down().await;
    assert_eq!(a.up().await.0, b.id());
}

#[tokio::test]
async fn a_port_in_use_is_an_error_with_advice() {
    let mut a = Node::start(|_| {});
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut taken = a.address(transport).await;
        taken.pop();
        let Err(error) = Node::try_start(|c| c.listen = vec![taken.clone()]) else { panic!("bound twice") };
        let NetError::PortInUse { port, .. } = &error else { panic!("{error:?}") };
        assert!(taken.to_string().contains(&port.to_string()));
        assert!(error.to_string().contains("--listen"), "{error}");
    }
    let Err(error) = Node::try_start(|c| c.listen = vec!["/ip4/127.0.0.1/tcp/0/ws".parse().unwrap()]) else {
        panic!("listens")
    };
    assert!(matches!(error, NetError::Listen { .. }), "{error:?}");
}

#[tokio::test]
async fn every_peer_sees_a_node_leave_and_its_handle_ends() {
    let (mut a, mut b, mut c) = (Node::start(|_| {}), Node::start(|_| {}), Node::start(|_| {}));
    b.connect(a.address(Transport::Tcp).await).await.unwrap();
    c.connect(a.address(Transport::Quic).await).await.unwrap();
    a.up().await;
    a.up().await;
    tokio::time::timeout(BOUND, a.network.shutdown()).await.unwrap();
    assert_eq!(b.down().await.0, a.id());
    assert_eq!(c.down().await.0, a.id());
    assert!(matches!(a.connect(TCP.parse().unwrap()).await, Err(NetError::Stopped)));
}

#[tokio::test]
async fn sockets_that_say_nothing_keep_no_member_out() {
    let mut a = Node::start(|c| belong(c, key(1)));
    let address = a.address(Transport::Tcp).await;
    let port = address.iter().find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None }).unwrap();
    // More than there are places for, from one address, and opened again as soon as one is closed.
    let silent = tokio::spawn(async move {
        let hold = || async {
            loop {
                let Ok(mut socket) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return };
                let _ = socket.read(&mut [0]).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        futures::future::join_all((0..200).map(|_| hold())).await;
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let b = Node::start(|c| belong(c, key(1)));
        let to = a.address(transport).await;
        assert_eq!(b.connect(to).await.unwrap(), a.id());
        assert_eq!(a.up().await.0, b.id());
    }
    silent.abort();
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_dial_that_hangs_ends() {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    // A host that answers nothing: the queue of a listener that accepts nobody is full, so that the kernel drops what comes.
    let hole = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let any: std::net::SocketAddrV4 = "127.0.0.1:0".parse().unwrap();
    bind(&hole, &any).unwrap();
    listen(&hole, 0).unwrap();
    let at = std::net::SocketAddr::try_from(getsockname(&hole).unwrap()).unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(socket)) =
        tokio::time::timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(at)).await
    {
        filling.push(socket);
    }
    let a = Node::start(|_| {});
    let address = format!("/ip4/127.0.0.1/tcp/{}", at.port()).parse().unwrap();
    let Err(NetError::Unreachable { why, .. }) = a.connect(address).await else { panic!("it does not end") };
    assert_eq!(why, "no answer within 10 s");
}

#[tokio::test]
async fn a_failed_connection_names_the_cause() {
    let mut a = Node::start(|_| {});
    let own = a.address(Transport::Tcp).await;
    assert!(matches!(a.connect(own.clone()).await, Err(NetError::OwnAddress(_))));
    let mut unnamed = own.clone();
    unnamed.pop();
    let unnamed_own = a.connect(unnamed.clone()).await;
    assert!(matches!(unnamed_own, Err(NetError::OwnAddress(_))), "{unnamed_own:?}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let Err(NetError::Unreachable { why, .. }) = a.connect(nobody).await else { panic!("somebody") };
    assert!(why.contains("refused"), "{why}");
    let b = Node::start(|_| {});
    let wrong = unnamed.with(Protocol::P2p(PeerId::random()));
    let Err(NetError::Unreachable { why, .. }) = b.connect(wrong).await else { panic!("anybody") };
    assert!(why.contains(&a.id().to_string()), "{why}");
}

#[tokio::test]
async fn a_peer_that_stops_silently_is_removed_within_seconds() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut a = Node::start(|_| {});
        let address = a.address(transport).await;
        // The peer's only thread runs until it is told to stop, and then stands still as under SIGSTOP: its sockets
        // stay open.
        let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut b = Node::start(|c| c.listen.clear());
                b.connect(address).await.unwrap();
                let mut stopped = std::pin::pin!(stopped);
                loop {
                    tokio::select! {
                        _ = &mut stopped => break,
                        _ = b.events.recv() => {}
                    }
                }
                let _ = released.recv();
            });
        });
        let (peer, ..) = a.up().await;
        a.next(|event| matches!(event, NetEvent::Rtt { .. }).then_some(())).await;
        stop.send(()).unwrap();
        let (gone, why) = a.down().await;
        assert_eq!(gone, peer);
        assert_eq!(why, "silent for 4 s");
        release.send(()).unwrap();
        thread.join().unwrap();
    }
}
