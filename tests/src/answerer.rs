//! A peer that is admitted like any other, says that it serves a model, and answers whole requests by hand: it dies, is silent,
//! refuses, or says what it likes. All that it receives is kept.

use std::sync::{Arc, Mutex};

use futures::{AsyncReadExt, StreamExt};
use libp2p::{PeerId, Stream, StreamProtocol};
use pangea_compute::Digest;
use pangea_node::pool::{Advert, ModelAdvert, ModelSize, ServingAdvert};
use pangea_node::streams::framed::FrameWriter;
use pangea_node::tunnel::{Ask, Failure, PROTOCOL, TunnelMessage};
use pangea_node::wire::{FrameHead, Header, PREFIX_BYTES};

use crate::gossip::Gossiper;

/// What the peer does with a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// It ends the stream.
    Dies,
    /// It says nothing.
    IsSilent,
    /// It refuses the request.
    Refuses(Failure),
    /// It sends these messages with their payloads.
    Says(Vec<(TunnelMessage, Vec<u8>)>),
}

/// A peer that serves one model.
pub struct Answerer {
    gossiper: Gossiper,
    model: ModelAdvert,
    sequence: u64,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Answerer {
    /// Connects to the node at `address` in an open pool and serves a model of this name and digest.
    pub fn connect(address: &str, name: &str, digest: Digest, behaviour: Behaviour) -> Answerer {
        let received = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let keeps = Arc::clone(&received);
        let gossiper = Gossiper::connect_and(address, None, move |network| {
            let mut incoming = network.accept(StreamProtocol::new(PROTOCOL)).unwrap();
            tokio::spawn(async move {
                while let Some((_, stream)) = incoming.next().await {
                    tokio::spawn(answer(stream, behaviour.clone(), Arc::clone(&keeps)));
                }
            });
        });
        let size = ModelSize { layers: 2, hidden_size: 64, context: 512, layer_bytes: 1 << 16, ..ModelSize::default() };
        let name = name.to_owned();
        let model = ModelAdvert { digest, name, served: true, whole: true, split: false, pinned: None, size };
        let mut answerer = Answerer { gossiper, model, sequence: 0, received };
        answerer.publish();
        answerer
    }

    /// Peer id.
    pub fn peer(&self) -> PeerId {
        self.gossiper.peer()
    }

    /// Publishes its advert again: it is the fastest of all servers.
    pub fn publish(&mut self) {
        self.sequence += 1;
        let (places, running, waiting, tokens_per_s) = (8, 0, 0, u16::MAX);
        let model = self.model.digest;
        let advert = Advert {
            incarnation: 1 << 42,
            sequence: self.sequence,
            name: "answerer".to_owned(),
            memory_bytes: 1 << 30,
            numerics: pangea_compute::model::NUMERICS,
            models: vec![self.model.clone()],
            serving: vec![ServingAdvert { model, places, running, waiting, tokens_per_s }],
            ..Advert::new(self.peer())
        };
        let key = self.gossiper.key.clone();
        self.gossiper.publish(&key, &advert);
    }

    /// Asks the node as a peer that has a client of its own; returns the node's messages.
    pub fn asks(&self, ask: Ask, body: &[u8]) -> Vec<TunnelMessage> {
        let mut request = Vec::new();
        TunnelMessage::Ask(ask).encode(body.len(), &mut request).unwrap();
        request.extend_from_slice(body);
        let said = self.gossiper.exchange(PROTOCOL, &request);
        let (mut rest, mut messages) = (&said[..], Vec::new());
        while let Some((prefix, after)) = rest.split_first_chunk::<PREFIX_BYTES>() {
            let head = FrameHead::parse(*prefix, TunnelMessage::LIMITS).unwrap();
            let (header, after) = after.split_at(head.header_len());
            messages.push(TunnelMessage::decode(header, head.payload_len()).unwrap());
            rest = &after[head.payload_len()..];
        }
        messages
    }

    /// The bytes of the requests that it received, one entry for each.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().unwrap().clone()
    }
}

async fn answer(stream: Stream, behaviour: Behaviour, received: Arc<Mutex<Vec<Vec<u8>>>>) {
    let (mut read, write) = stream.split();
    let mut request = Vec::new();
    let mut prefix = [0; PREFIX_BYTES];
    if read.read_exact(&mut prefix).await.is_err() {
        return;
    }
    let head = FrameHead::parse(prefix, TunnelMessage::LIMITS).unwrap();
    request.extend_from_slice(&prefix);
    request.resize(PREFIX_BYTES + head.header_len() + head.payload_len(), 0);
    read.read_exact(&mut request[PREFIX_BYTES..]).await.unwrap();
    received.lock().unwrap().push(request);
    let messages = match behaviour {
        Behaviour::Dies => return,
        Behaviour::IsSilent => Vec::new(),
        Behaviour::Refuses(failure) => vec![(TunnelMessage::Failure(failure), Vec::new())],
        Behaviour::Says(messages) => messages,
    };
    let mut frames = FrameWriter::new(write);
    for (message, payload) in &messages {
        if frames.send(message, payload).await.is_err() {
            return;
        }
    }
    // The other node ends the stream once it has heard enough.
    if frames.flush().await.is_ok() {
        let _ = read.read_to_end(&mut Vec::new()).await;
    }
}
