//! A peer that is admitted like any other and then sends arbitrary bytes on `/pangea/task/1`.
//! Transport and frames are those of a node; only the content is not.

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, StreamProtocol};
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::streams::framed::FrameReader;
use pangea_node::wire::{Header, Message, PROTOCOL, TaskHello, VERSION};
use tokio::runtime::Runtime;

use crate::process::TIMEOUT;

/// A stranger connected to a node.
pub struct Stranger {
    runtime: Runtime,
    network: Network,
    node: PeerId,
}

/// One stream towards the node.
pub struct RawStream<'s> {
    stranger: &'s Stranger,
    stream: libp2p::Stream,
}

impl Stranger {
    /// Connects to the node at `address`.
    pub fn connect(address: &str) -> Stranger {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (network, node) = runtime.block_on(async {
            let (network, mut events) = pangea_node::net::start(NetConfig::new(identity::ephemeral())).unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            let node = network.connect(address.parse().unwrap(), TIMEOUT).await.unwrap();
            (network, node)
        });
        Stranger { runtime, network, node }
    }

    /// Peer id of the stranger.
    pub fn peer(&self) -> String {
        self.network.local_peer_id().to_string()
    }

    /// A new task stream.
    pub fn stream(&self) -> RawStream<'_> {
        let mut streams = self.network.streams();
        let open = streams.open_stream(self.node, StreamProtocol::new(PROTOCOL));
        let stream = self.wait(async { open.await.unwrap() });
        RawStream { stranger: self, stream }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(TIMEOUT, work).await.expect("the node answers in some way") })
    }
}

impl RawStream<'_> {
    /// Sends raw bytes; ignores that the node has closed the stream.
    pub fn send(&mut self, bytes: &[u8]) {
        let stream = &mut self.stream;
        self.stranger.wait(async {
            if stream.write_all(bytes).await.is_ok() {
                let _ = stream.flush().await;
            }
        });
    }

    /// Sends a well-formed message.
    pub fn send_message(&mut self, message: &Message, payload: &[u8]) {
        let mut bytes = Vec::new();
        message.encode(payload.len(), &mut bytes).unwrap();
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// Reads until the node ends the stream; returns the number of bytes before the end.
    ///
    /// # Panics
    /// Where the stream does not end in time.
    pub fn is_ended(&mut self) -> usize {
        let stream = &mut self.stream;
        self.stranger.wait(async {
            let mut said = Vec::new();
            // Reset or closed: ended either way.
            let _ = stream.read_to_end(&mut said).await;
            said.len()
        })
    }

    /// Reads messages, skipping payloads, until `wanted` accepts one.
    ///
    /// # Panics
    /// Where the stream ends before such a message.
    pub fn next_message(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        let mut frames = FrameReader::new(&mut self.stream);
        self.stranger.wait(async {
            loop {
                let (message, payload) = frames.receive().await.unwrap();
                frames.skip(payload).await.unwrap();
                if wanted(&message) {
                    return message;
                }
            }
        })
    }
}

/// The first message of an honest node.
pub fn advert() -> TaskHello {
    TaskHello {
        version: VERSION,
        name: "stranger".to_owned(),
        software: "a test".to_owned(),
        threads: 1,
        f32_flops_per_s: 1e9,
        f64_flops_per_s: 1e9,
        i8_flops_per_s: 1e9,
        store_bytes: 1 << 20,
        tasks_max: 1,
        isa: "plain".to_owned(),
        works: false,
    }
}
