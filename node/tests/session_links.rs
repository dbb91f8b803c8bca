//! Links of the session protocol over real sockets on loopback: what is sent arrives in order, a break is told once, a link
//! comes back, and what a faulty peer does harms nobody. Every wait is for an event, with a bound that only a failure reaches.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::multihash::Multihash;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_node::net::{Followers, Interest, NetConfig, NetEvent, Network, start};
use pangea_node::peers::Peers;
use pangea_node::pipeline::limits::{MAX_HEADER_BYTES, QUEUE_BYTES, QUEUE_MESSAGES};
use pangea_node::pipeline::links::{Inbox, Links, Payload, links};
use pangea_node::pipeline::wire::{Frame, FrameRows, Message, PROTOCOL, SessionId};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// What only a failure takes.
const BOUND: Duration = Duration::from_secs(60);

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Arrivals that a test has not looked at yet.
const ARRIVALS: usize = 16_384;

#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a break is rare")]
enum Arrival {
    Message(PeerId, Message, Payload),
    Gone(PeerId),
}

struct Arrivals(mpsc::Sender<Arrival>);

/// Epoch of frames that no inbox here admits.
const REFUSED: u64 = 666;

impl Inbox for Arrivals {
    fn admits(&self, _: PeerId, message: &Message) -> bool {
        !matches!(message, Message::Frame(frame) if frame.epoch == REFUSED)
    }

    fn message(&self, from: PeerId, message: Message, payload: Payload) {
        self.0.try_send(Arrival::Message(from, message, payload)).unwrap();
    }

    fn peer_gone(&self, peer: PeerId, why: &str) {
        assert!(!why.is_empty());
        self.0.try_send(Arrival::Gone(peer)).unwrap();
    }
}

struct Node {
    network: Network,
    links: Links,
    arrivals: mpsc::Receiver<Arrival>,
    address: Multiaddr,
}

impl Node {
    async fn start() -> Node {
        Node::listening(TCP).await
    }

    async fn listening(address: &str) -> Node {
        let (network, events, address) = network(address).await;
        let mut followers = Followers::new(events);
        let net_events = followers.follow(Interest::Connections);
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let (links, driver) = links(network.clone(), net_events, Arc::new(Arrivals(sender)), Peers::default());
        tokio::task::spawn_local(driver.run());
        tokio::task::spawn_local(followers.run(Some(network.clone())));
        Node { network, links, arrivals, address }
    }

    fn id(&self) -> PeerId {
        self.network.local_peer_id()
    }

    async fn next(&mut self) -> Arrival {
        tokio::time::timeout(BOUND, self.arrivals.recv()).await.expect("something arrives").unwrap()
    }

    async fn until(&self, holds: impl Fn(&Links) -> bool) {
        let waiting = async {
            while !holds(&self.links) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, waiting).await.expect("links open and close");
    }

    /// Sends, and again where the queue was full.
    async fn send(&self, to: PeerId, message: Message, payload: Payload) {
        while let Err(error) = self.links.send(to, message.clone(), payload.clone()) {
            assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
            tokio::task::yield_now().await;
        }
    }
}

async fn network(address: &str) -> (Network, mpsc::Receiver<NetEvent>, Multiaddr) {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = vec![address.parse().unwrap()];
    let (network, mut events) = start(config).unwrap();
    let listening = async {
        loop {
            if let Some(NetEvent::Listening(address)) = events.recv().await {
                return address;
            }
        }
    };
    let address = tokio::time::timeout(BOUND, listening).await.unwrap();
    (network, events, address)
}

/// Connects two nodes and waits until both can send.
async fn connect(one: &Node, other: &Node) {
    one.network.connect(other.address.clone(), BOUND).await.unwrap();
    let (one_id, other_id) = (one.id(), other.id());
    one.until(|links| links.connected(&other_id)).await;
    other.until(|links| links.connected(&one_id)).await;
}

fn session(n: u64) -> SessionId {
    SessionId(u128::from(n).to_le_bytes())
}

/// The `n`th message of a series, with a payload that follows from it.
fn numbered(n: u64, floats: usize) -> (Message, Payload) {
    let row = FrameRows { sequence: 1, start: 0, rows: 1, choose: false, all_logits: false, draft: Vec::new() };
    let frame = Frame {
        epoch: 1,
        model: Digest::from_bytes([7; 32]),
        number: n,
        first_stage: PeerId::from_multihash(Multihash::wrap(0, &[7; 36]).unwrap()).unwrap(),
        drops: Vec::new(),
        starts: Vec::new(),
        rows: if floats == 0 { Vec::new() } else { vec![row] },
    };
    (Message::Frame(frame), Payload::from_f32(vec![n as f32; floats]))
}

fn accepted(n: u64) -> Message {
    Message::Accepted { session: session(n) }
}

async fn in_local_set(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_each_of_three_nodes_sends_arrives_in_order_at_the_others() {
    in_local_set(async {
        for transport in [TCP, QUIC] {
            let mut nodes =
                [Node::listening(transport).await, Node::listening(transport).await, Node::listening(transport).await];
            connect(&nodes[0], &nodes[1]).await;
            connect(&nodes[1], &nodes[2]).await;
            connect(&nodes[2], &nodes[0]).await;
            const COUNT: u64 = 2000;
            let ids = [nodes[0].id(), nodes[1].id(), nodes[2].id()];
            for n in 0..COUNT {
                for (from, node) in nodes.iter().enumerate() {
                    let (message, payload) = numbered(n, (n as usize * 7) % 3000);
                    node.send(ids[(from + 1) % 3], message.clone(), payload.clone()).await;
                    node.send(ids[(from + 2) % 3], message, payload).await;
                }
            }
            for node in &mut nodes {
                let mut next = [0; 3];
                for _ in 0..2 * COUNT {
                    let Arrival::Message(from, message, payload) = node.next().await else { panic!("a break") };
                    let from = ids.iter().position(|id| *id == from).unwrap();
                    let (expected, values) = numbered(next[from], (next[from] as usize * 7) % 3000);
                    assert_eq!((message, payload), (expected, values));
                    next[from] += 1;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn large_payloads_go_both_ways_at_once_and_an_opening_brings_its_tokens() {
    in_local_set(async {
        let (mut a, mut b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        const FLOATS: usize = 2 << 20;
        let pieces = (QUEUE_BYTES / (FLOATS * 4)) as u64;
        for n in 0..pieces {
            let (message, payload) = numbered(n, FLOATS);
            a.links.send(b.id(), message.clone(), payload.clone()).unwrap();
            b.links.send(a.id(), message, payload).unwrap();
        }
        for n in 0..pieces {
            let (message, payload) = numbered(n, FLOATS);
            assert!(a.next().await == Arrival::Message(b.id(), message.clone(), payload.clone()));
            assert!(b.next().await == Arrival::Message(a.id(), message, payload));
        }
        let opening = opening(a.id(), (0..100_000).collect());
        a.links.send(b.id(), opening.clone(), Payload::empty()).unwrap();
        assert!(b.next().await == Arrival::Message(a.id(), opening.clone(), Payload::empty()));
        // To itself it is delivered before `send` returns, from any thread.
        let (links, id, own) = (a.links.clone(), a.id(), opening.clone());
        std::thread::spawn(move || links.send(id, own, Payload::empty()).unwrap()).join().unwrap();
        assert!(a.arrivals.try_recv().unwrap() == Arrival::Message(a.id(), opening, Payload::empty()));
    })
    .await;
}

fn opening(coordinator: PeerId, tokens: Vec<u32>) -> Message {
    use pangea_compute::Digest;
    use pangea_compute::sample::{AnswerFormat, Sampling};
    use pangea_node::pipeline::wire::{Open, StageAt};
    Message::Open(Box::new(Open {
        session: session(1),
        coordinator,
        model: Digest::from_bytes([1; 32]),
        epoch: 1,
        numerics: 1,
        stages: vec![StageAt { peer: coordinator, layers: 0..30 }],
        choices: 1,
        sequence: None,
        prompt_len: tokens.len() as u32,
        max_new_tokens: 10,
        sampling: Sampling::greedy(),
        format: AnswerFormat::Text,
        prompt_logprobs: false,
        trace: None,
        tokens,
    }))
}

#[tokio::test]
async fn a_lost_connection_is_told_once_and_the_link_comes_back_with_it() {
    in_local_set(async {
        let (mut a, mut b) = (Node::start().await, Node::start().await);
        let (id_a, id_b) = (a.id(), b.id());
        for n in 0..3 {
            connect(&a, &b).await;
            a.links.send(id_b, accepted(n), Payload::empty()).unwrap();
            b.links.send(id_a, accepted(n), Payload::empty()).unwrap();
            assert_eq!(a.next().await, Arrival::Message(id_b, accepted(n), Payload::empty()));
            assert_eq!(b.next().await, Arrival::Message(id_a, accepted(n), Payload::empty()));
            a.network.disconnect(id_b, "a test").await;
            assert_eq!(a.next().await, Arrival::Gone(id_b));
            assert_eq!(b.next().await, Arrival::Gone(id_a));
            assert!(!a.links.connected(&id_b) && !b.links.connected(&id_a));
            let refused = a.links.send(id_b, accepted(n), Payload::empty()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable);
        }
        assert!(a.arrivals.try_recv().is_err() && b.arrivals.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_message_that_no_stage_would_take_is_refused_where_it_is_sent() {
    in_local_set(async {
        let (a, mut b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        let (message, _) = numbered(1, 3);
        let refused = a.links.send(b.id(), message, Payload::empty()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        let refused = a.links.send(a.id(), opening(a.id(), vec![]), Payload::empty()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        a.links.send(b.id(), accepted(2), Payload::empty()).unwrap();
        assert_eq!(b.next().await, Arrival::Message(a.id(), accepted(2), Payload::empty()));
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_says_so_and_empties_again() {
    in_local_set(async {
        let (a, mut b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        // Nothing is awaited, so nothing is written meanwhile.
        for n in 0..QUEUE_MESSAGES as u64 {
            a.links.send(b.id(), accepted(n), Payload::empty()).unwrap();
        }
        let full = a.links.send(b.id(), accepted(0), Payload::empty()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Overloaded);
        for n in 0..QUEUE_MESSAGES as u64 {
            assert_eq!(b.next().await, Arrival::Message(a.id(), accepted(n), Payload::empty()));
        }
        const FLOATS: usize = 2 << 20;
        for n in 0..(QUEUE_BYTES / (FLOATS * 4)) as u64 {
            let (message, payload) = numbered(n, FLOATS);
            a.links.send(b.id(), message, payload).unwrap();
        }
        let (message, payload) = numbered(0, 1);
        let full = a.links.send(b.id(), message.clone(), payload.clone()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Overloaded);
        for _ in 0..QUEUE_BYTES / (FLOATS * 4) {
            b.next().await;
        }
        a.links.send(b.id(), message.clone(), payload.clone()).unwrap();
        assert_eq!(b.next().await, Arrival::Message(a.id(), message, payload));
    })
    .await;
}

#[tokio::test]
async fn a_message_that_the_inbox_does_not_admit_is_skipped_with_its_payload() {
    in_local_set(async {
        let (a, mut b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        for floats in [1, 100_000] {
            let (Message::Frame(frame), payload) = numbered(1, floats) else { unreachable!("it is a frame") };
            let refused = Message::Frame(Frame { epoch: REFUSED, ..frame });
            a.links.send(b.id(), refused, payload).unwrap();
            let (message, payload) = numbered(2, floats);
            a.links.send(b.id(), message.clone(), payload.clone()).unwrap();
            assert_eq!(b.next().await, Arrival::Message(a.id(), message, payload));
        }
    })
    .await;
}

/// A peer that speaks the protocol by hand.
struct Stranger {
    network: Network,
    incoming: mpsc::Receiver<Stream>,
}

impl Stranger {
    /// Connected to `node`.
    async fn of(node: &Node) -> Stranger {
        let (network, mut events, _) = network(TCP).await;
        let mut accepting = network.streams().accept(StreamProtocol::new(PROTOCOL)).unwrap();
        let (sender, incoming) = mpsc::channel(16);
        tokio::task::spawn_local(async move {
            while let Some((_, stream)) = accepting.next().await {
                sender.try_send(stream).unwrap();
            }
        });
        tokio::task::spawn_local(async move { while events.recv().await.is_some() {} });
        network.connect(node.address.clone(), BOUND).await.unwrap();
        Stranger { network, incoming }
    }

    /// The stream that the node opens.
    async fn accept(&mut self) -> Stream {
        tokio::time::timeout(BOUND, self.incoming.recv()).await.unwrap().unwrap()
    }

    /// A stream to the node, once it has taken it.
    async fn open(&self, to: PeerId) -> Stream {
        let opening = async {
            let mut stream = self.network.streams().open_stream(to, StreamProtocol::new(PROTOCOL)).await.unwrap();
            let mut taken = [0];
            stream.read_exact(&mut taken).await.unwrap();
            assert_eq!(taken, [1]);
            stream
        };
        tokio::time::timeout(BOUND, opening).await.unwrap()
    }
}

#[tokio::test]
async fn a_stream_that_says_something_else_is_closed_and_harms_nobody_else() {
    in_local_set(async {
        let (mut a, mut b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        let stranger = Stranger::of(&a).await;
        let id = stranger.network.local_peer_id();
        let endless_header = [(MAX_HEADER_BYTES + 8).to_le_bytes(), 0u32.to_le_bytes()].concat();
        let endless_payload = [8u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat();
        let garbage = [[8, 0, 0, 0, 0, 0, 0, 0], [0xff; 8]].concat();
        // A header of zeros is a message of no kind.
        let empty = [[16, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8]].concat();
        for bytes in [endless_header, endless_payload, garbage, empty, vec![0xff; 100_000]] {
            let mut stream = stranger.open(a.id()).await;
            // It may be closed before all of it is written.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut rest)).await.expect("it is closed");
            assert!(rest.is_empty());
            assert_eq!(a.next().await, Arrival::Gone(id));
            b.links.send(a.id(), accepted(1), Payload::empty()).unwrap();
            assert_eq!(a.next().await, Arrival::Message(b.id(), accepted(1), Payload::empty()));
        }
        a.links.send(b.id(), accepted(2), Payload::empty()).unwrap();
        assert_eq!(b.next().await, Arrival::Message(a.id(), accepted(2), Payload::empty()));
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_breaks_while_the_peer_stays_is_told_once_and_opened_again() {
    in_local_set(async {
        let mut a = Node::start().await;
        let mut stranger = Stranger::of(&a).await;
        let id = stranger.network.local_peer_id();
        // A stream that nobody takes is not open, and its end is no loss.
        drop(stranger.accept().await);
        for _ in 0..2 {
            let mut stream = stranger.accept().await;
            assert!(!a.links.connected(&id), "nobody has taken it yet");
            stream.write_all(&[1]).await.unwrap();
            stream.flush().await.unwrap();
            a.until(|links| links.connected(&id)).await;
            let sending = stranger.open(a.id()).await;
            drop((stream, sending));
            assert_eq!(a.next().await, Arrival::Gone(id));
            assert!(!a.links.connected(&id));
        }
        assert!(a.arrivals.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_reads_nothing_fills_its_own_queue_only() {
    in_local_set(async {
        let (mut a, b) = (Node::start().await, Node::start().await);
        connect(&a, &b).await;
        let mut stranger = Stranger::of(&a).await;
        let id = stranger.network.local_peer_id();
        let mut stream = stranger.accept().await;
        stream.write_all(&[1]).await.unwrap();
        stream.flush().await.unwrap();
        a.until(|links| links.connected(&id)).await;
        let (message, payload) = numbered(1, 1 << 20);
        // Windows and buffers on the way take some of it.
        let full = loop {
            if let Err(full) = a.links.send(id, message.clone(), payload.clone()) {
                break full;
            }
        };
        assert_eq!(full.kind(), ErrorKind::Overloaded);
        b.links.send(a.id(), message.clone(), payload.clone()).unwrap();
        assert!(a.next().await == Arrival::Message(b.id(), message.clone(), payload.clone()));
        assert_eq!(a.links.send(id, message, payload).unwrap_err().kind(), ErrorKind::Overloaded);
    })
    .await;
}
