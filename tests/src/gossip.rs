//! A peer that is admitted like any other and writes gossip by hand: it forges authors, says what it likes under its own name,
//! and replays what it heard. It has its own encoding of gossipsub's messages, because the library signs with one key only.

use std::sync::{Arc, Mutex};

use futures::{AsyncRead, AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::{PeerId, StreamProtocol};
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::pool::{Advert, codec};
use tokio::runtime::Runtime;

use crate::process::TIMEOUT;

/// A version of gossipsub that nodes speak.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");

/// What a signature of a message begins with.
const SIGNED: &[u8] = b"libp2p-pubsub:";

/// A message of gossipsub, signed by its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawMessage(Vec<u8>);

impl RawMessage {
    /// A message of this author with this content. `number` tells messages of one author apart.
    pub fn sign(author: &Keypair, content: &[u8], number: u64) -> RawMessage {
        let mut bytes = Vec::new();
        field(1, &author.public().to_peer_id().to_bytes(), &mut bytes);
        field(2, content, &mut bytes);
        field(3, &number.to_be_bytes(), &mut bytes);
        field(4, codec::TOPIC.as_bytes(), &mut bytes);
        let signature = author.sign(&[SIGNED, &bytes].concat()).unwrap();
        field(5, &signature, &mut bytes);
        RawMessage(bytes)
    }

    /// The author, as the message says.
    pub fn author(&self) -> Option<PeerId> {
        self.field(1).and_then(|bytes| PeerId::from_bytes(&bytes).ok())
    }

    /// The advert in it.
    pub fn advert(&self) -> Option<Advert> {
        self.field(2).and_then(|bytes| codec::decode(&bytes).ok())
    }

    fn field(&self, wanted: u64) -> Option<Vec<u8>> {
        fields(&self.0).into_iter().find(|(number, _)| *number == wanted).map(|(_, bytes)| bytes)
    }
}

/// A gossiping stranger, connected to a node.
pub struct Gossiper {
    runtime: Runtime,
    network: Network,
    node: PeerId,
    stream: libp2p::Stream,
    heard: Arc<Mutex<Vec<RawMessage>>>,
    /// Its own key.
    pub key: Keypair,
}

impl Gossiper {
    /// Connects to the node at `address`, in a pool with this key or in an open one.
    pub fn connect(address: &str, pool_key: Option<&PoolKey>) -> Gossiper {
        Gossiper::connect_and(address, pool_key, |_| {})
    }

    /// The same; `accept` is called before the connection, on a runtime that lives as long as the gossiper.
    pub fn connect_and(address: &str, pool_key: Option<&PoolKey>, accept: impl FnOnce(&Network)) -> Gossiper {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (key, heard) = (identity::ephemeral(), Arc::<Mutex<Vec<RawMessage>>>::default());
        let mut config = NetConfig::new(key.clone());
        if let Some(pool_key) = pool_key {
            config.membership =
                Membership::holder(&key, pool_key, Role::Member, "gossiper", Stored::default()).unwrap();
        }
        let (network, node, stream) = runtime.block_on(async {
            let (network, mut events) = pangea_node::net::start(config).unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            accept(&network);
            let mut incoming = network.streams().accept(PROTOCOL).unwrap();
            let hears = Arc::clone(&heard);
            tokio::spawn(async move {
                while let Some((_, stream)) = incoming.next().await {
                    tokio::spawn(listen(stream, Arc::clone(&hears)));
                }
            });
            let node = network.connect(address.parse().unwrap(), TIMEOUT).await.unwrap();
            let mut stream = network.streams().open_stream(node, PROTOCOL).await.unwrap();
            // Subscribed, so that the node sends its own adverts.
            let (mut subscription, mut rpc) = (vec![0x08, 1], Vec::new());
            field(2, codec::TOPIC.as_bytes(), &mut subscription);
            field(1, &subscription, &mut rpc);
            send(&mut stream, &rpc).await;
            (network, node, stream)
        });
        Gossiper { runtime, network, node, stream, heard, key }
    }

    /// Peer id of the stranger.
    pub fn peer(&self) -> PeerId {
        self.network.local_peer_id()
    }

    /// Sends these bytes to the node on a stream of another protocol; returns what the node says until it ends the stream.
    pub fn exchange(&self, protocol: &'static str, bytes: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let mut stream =
                self.network.streams().open_stream(self.node, StreamProtocol::new(protocol)).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.flush().await.unwrap();
            let mut said = Vec::new();
            // Reset or closed: ended either way.
            let _ =
                tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut said)).await.expect("the node ends the stream");
            said
        })
    }

    /// All messages of the pool that it heard so far.
    pub fn heard(&self) -> Vec<RawMessage> {
        self.heard.lock().unwrap().clone()
    }

    /// Sends a message, whoever wrote it.
    pub fn forward(&mut self, message: &RawMessage) {
        let mut rpc = Vec::new();
        field(2, &message.0, &mut rpc);
        self.runtime.block_on(send(&mut self.stream, &rpc));
    }

    /// Publishes an advert as this author.
    pub fn publish(&mut self, author: &Keypair, advert: &Advert) {
        let bytes = codec::encode(advert).unwrap();
        self.forward(&RawMessage::sign(author, &bytes, advert.sequence));
    }
}

/// Sends one frame; ignores that the node has closed the stream.
async fn send(stream: &mut libp2p::Stream, rpc: &[u8]) {
    let mut bytes = Vec::new();
    varint(rpc.len() as u64, &mut bytes);
    bytes.extend_from_slice(rpc);
    if stream.write_all(&bytes).await.is_ok() {
        let _ = stream.flush().await;
    }
}

/// Reads frames until the stream ends.
async fn listen(mut stream: libp2p::Stream, heard: Arc<Mutex<Vec<RawMessage>>>) {
    while let Some(rpc) = frame(&mut stream).await {
        let messages = fields(&rpc).into_iter().filter(|(number, _)| *number == 2);
        heard.lock().unwrap().extend(messages.map(|(_, bytes)| RawMessage(bytes)));
    }
}

async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

// Protocol buffers, as far as they are needed: fields of bytes.

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(number << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        shift += 7;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
}

/// The fields of bytes in a message, with their numbers; numbers are skipped.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while let Some(tag) = read_varint(&mut bytes) {
        let Some(value) = read_varint(&mut bytes) else { break };
        if tag & 7 != 2 {
            continue;
        }
        let Some((content, rest)) = usize::try_from(value).ok().and_then(|length| bytes.split_at_checked(length))
        else {
            break;
        };
        fields.push((tag >> 3, content.to_vec()));
        bytes = rest;
    }
    fields
}
