//! A node beside a peer built only from stock libp2p (Noise, libp2p's own Yamux upgrade, QUIC): both can dial, large data
//! comes through both ways, and a node with a pool key refuses it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::upgrade::Version;
use libp2p::core::{Transport as _, muxing::StreamMuxerBox};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, identify, noise, ping, quic, tcp};
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{NetConfig, NetError, NetEvent, Network, start};
use tokio::sync::mpsc;

/// Timeout of each wait; reached only on failure.
const BOUND: Duration = Duration::from_secs(30);

const ECHO: StreamProtocol = StreamProtocol::new("/test/echo/1");

/// More than any window starts with, and no multiple of any frame.
const PAYLOAD_BYTES: usize = (24 << 20) + 12_345;

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
}

struct Stock {
    id: PeerId,
    address: Multiaddr,
    streams: libp2p_stream::Control,
    dial: mpsc::Sender<Multiaddr>,
    connected: mpsc::Receiver<PeerId>,
}

/// A stock peer, listening on `listen`.
async fn stock(listen: &str) -> Stock {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let over_tcp = tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&keypair).unwrap())
        .multiplex(libp2p_yamux::Config::default());
    let over_quic = quic::tokio::Transport::new(quic::Config::new(&keypair));
    let transport = over_tcp
        .or_transport(over_quic)
        .map(|either, _| match either {
            futures::future::Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
            futures::future::Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        })
        .boxed();
    let behaviour = Behaviour {
        identify: identify::Behaviour::new(identify::Config::new("/stock/1".into(), keypair.public())),
        ping: ping::Behaviour::default(),
        streams: libp2p_stream::Behaviour::new(),
    };
    let streams = behaviour.streams.new_control();
    let mut swarm = Swarm::new(
        transport,
        behaviour,
        id,
        libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(BOUND),
    );
    swarm.listen_on(listen.parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address.with(Protocol::P2p(id));
        }
    };
    let (dial, mut dials) = mpsc::channel::<Multiaddr>(1);
    let (connected_sender, connected) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(address) = dials.recv() => swarm.dial(address).unwrap(),
                event = swarm.select_next_some() => if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                    let _ = connected_sender.send(peer_id).await;
                },
            }
        }
    });
    Stock { id, address, streams, dial, connected }
}

fn node(pool_key: Option<PoolKey>) -> (Network, mpsc::Receiver<NetEvent>) {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap(), "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    if let Some(key) = pool_key {
        config.membership =
            Membership::holder(&config.identity, &key, Role::Member, "node", Stored::default()).unwrap();
    }
    start(config).unwrap()
}

/// The node's address on the transport of `like`.
async fn address_like(events: &mut mpsc::Receiver<NetEvent>, like: &Multiaddr) -> Multiaddr {
    let quic = |address: &Multiaddr| address.iter().any(|part| matches!(part, Protocol::QuicV1));
    loop {
        match tokio::time::timeout(BOUND, events.recv()).await.unwrap().unwrap() {
            NetEvent::Listening(address) if quic(&address) == quic(like) => return address,
            _ => {}
        }
    }
}

fn echo(mut control: libp2p_stream::Control) {
    let mut incoming = control.accept(ECHO).unwrap();
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

/// Sends the payload to `peer` and back over one stream.
async fn through(mut control: libp2p_stream::Control, peer: PeerId) {
    let sent: Vec<u8> =
        (0..PAYLOAD_BYTES as u64).map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let stream = tokio::time::timeout(BOUND, control.open_stream(peer, ECHO)).await.unwrap().unwrap();
    let (mut read, mut write) = stream.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.close().await.unwrap();
    };
    let mut received = Vec::new();
    let reading = read.read_to_end(&mut received);
    let (_, read) = tokio::time::timeout(BOUND, futures::future::join(writing, reading)).await.unwrap();
    read.unwrap();
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
}

async fn interoperates(listen: &str) {
    // The node dials.
    let stock_peer = stock(listen).await;
    let (network, mut events) = node(None);
    echo(stock_peer.streams.clone());
    echo(network.streams());
    let own = address_like(&mut events, &stock_peer.address).await;
    assert_eq!(network.connect(stock_peer.address.clone(), BOUND).await.unwrap(), stock_peer.id);
    through(network.streams(), stock_peer.id).await;
    through(stock_peer.streams.clone(), network.local_peer_id()).await;

    // Another stock peer dials the node.
    let mut other = stock(listen).await;
    echo(other.streams.clone());
    other.dial.send(own).await.unwrap();
    let connected = tokio::time::timeout(BOUND, other.connected.recv()).await.unwrap();
    assert_eq!(connected, Some(network.local_peer_id()));
    through(other.streams.clone(), network.local_peer_id()).await;
    through(network.streams(), other.id).await;
}

#[tokio::test]
async fn a_stock_peer_and_a_node_without_a_key_interoperate_over_tcp() {
    interoperates("/ip4/127.0.0.1/tcp/0").await;
}

#[tokio::test]
async fn a_stock_peer_and_a_node_without_a_key_interoperate_over_quic() {
    interoperates("/ip4/127.0.0.1/udp/0/quic-v1").await;
}

#[tokio::test]
async fn a_stock_peer_is_refused_by_a_node_with_a_key() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let stock_peer = stock(listen).await;
        let (network, mut events) = node(Some(PoolKey::from_bytes(&[1; 32])));
        let own = address_like(&mut events, &stock_peer.address).await;
        stock_peer.dial.send(own).await.unwrap();
        loop {
            match tokio::time::timeout(BOUND, events.recv()).await.unwrap().unwrap() {
                NetEvent::Refused { peer, why } => {
                    assert_eq!(peer, Some(stock_peer.id));
                    assert!(why.contains("admission"), "{why}");
                    break;
                }
                NetEvent::PeerUp { .. } => panic!("admitted"),
                _ => {}
            }
        }
        let dialled = network.connect(stock_peer.address.clone(), BOUND).await;
        assert!(matches!(dialled, Err(NetError::Unreachable { .. } | NetError::Refused { .. })), "{dialled:?}");
    }
}
