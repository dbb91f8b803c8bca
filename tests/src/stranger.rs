//! A peer that is admitted like any other and then sends arbitrary bytes on `/pangea/task/1`, as a coordinator or as a worker.
//! Transport and frames are those of a node; only the content is not.

use futures::stream::BoxStream;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, StreamProtocol};
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::streams::framed::FrameReader;
use pangea_node::wire::{Header, Message, PROTOCOL, TaskHello, VERSION};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::process::TIMEOUT;

/// A stranger connected to a node.
pub struct Stranger {
    runtime: Runtime,
    network: Network,
    node: PeerId,
    /// The task streams that the node opens; none for a stranger that takes no tasks.
    incoming: Mutex<BoxStream<'static, (PeerId, libp2p::Stream)>>,
}

/// One stream towards the node.
pub struct RawStream<'s> {
    stranger: &'s Stranger,
    stream: libp2p::Stream,
}

impl Stranger {
    /// Connects to the node at `address`; takes no tasks.
    pub fn connect(address: &str) -> Stranger {
        Stranger::start(address, |_| futures::stream::pending().boxed())
    }

    /// Connects to the node at `address` as a worker: the node opens a task stream to it.
    pub fn worker(address: &str) -> Stranger {
        Stranger::start(address, |network| network.streams().accept(StreamProtocol::new(PROTOCOL)).unwrap().boxed())
    }

    fn start(address: &str, accept: impl FnOnce(&Network) -> BoxStream<'static, (PeerId, libp2p::Stream)>) -> Stranger {
        // A thread of its own: the connection lives on while the test waits for the node.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (network, node, incoming) = runtime.block_on(async {
            let (network, mut events) = pangea_node::net::start(NetConfig::new(identity::ephemeral())).unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            let incoming = accept(&network);
            let node = network.connect(address.parse().unwrap(), TIMEOUT).await.unwrap();
            (network, node, incoming)
        });
        Stranger { runtime, network, node, incoming: Mutex::new(incoming) }
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

    /// The next task stream that the node opens: the stranger is its worker there.
    pub fn accept(&self) -> RawStream<'_> {
        let (_, stream) = self.wait(async { self.incoming.lock().await.next().await.unwrap() });
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

    /// Ends the stream once all that was sent is on its way.
    pub fn close(mut self) {
        let stream = &mut self.stream;
        self.stranger.wait(async {
            let _ = stream.close().await;
        });
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

    /// Reads all messages until the node ends the stream, without their payloads.
    pub fn messages(&mut self) -> Vec<Message> {
        let mut frames = FrameReader::new(&mut self.stream);
        self.stranger.wait(async {
            let mut messages = Vec::new();
            while let Ok((message, payload)) = frames.receive().await {
                messages.push(message);
                if frames.skip(payload).await.is_err() {
                    break;
                }
            }
            messages
        })
    }

    /// Reads messages, skipping payloads, until `wanted` accepts one.
    ///
    /// # Panics
    /// Where the stream ends before such a message.
    pub fn next_message(&mut self, mut wanted: impl FnMut(&Message) -> bool) -> Message {
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
