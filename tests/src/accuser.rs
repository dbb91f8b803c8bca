//! A peer that is admitted like any other and accuses whomever it likes on `/pangea/evidence/1`: its signatures are real and
//! the evidence arrives when it is asked for; only what it says is not true.

use std::path::Path;

use futures::{AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::{PeerId, StreamProtocol};
use pangea_compute::{Digest, NpyWriter, Tensor};
use pangea_control::trust::accusations::{Accusation, EvidenceKind};
use pangea_node::evidence::PROTOCOL;
use pangea_node::evidence::accusation::SignedAccusation;
use pangea_node::evidence::message::{CHUNK_BYTES, EvidenceMessage};
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::streams::framed::{FrameReader, FrameWriter};
use pangea_node::trust::SignedProduct;
use tokio::runtime::Runtime;

use crate::process::TIMEOUT;

/// An accuser connected to a node.
pub struct Accuser {
    runtime: Runtime,
    network: Network,
    keypair: Keypair,
    node: PeerId,
}

impl Accuser {
    /// Connects to the node at `address`.
    pub fn connect(address: &str) -> Accuser {
        // A thread of its own: the connection lives on while the test waits for the node.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let keypair = identity::ephemeral();
        let (network, node) = runtime.block_on(async {
            let (network, mut events) = pangea_node::net::start(NetConfig::new(keypair.clone())).unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            let node = network.connect(address.parse().unwrap(), TIMEOUT).await.unwrap();
            (network, node)
        });
        Accuser { runtime, network, keypair, node }
    }

    /// Peer id of the accuser.
    pub fn peer(&self) -> String {
        self.network.local_peer_id().to_string()
    }

    /// Key of the accuser.
    pub fn keypair(&self) -> &Keypair {
        &self.keypair
    }

    /// Accuses a peer of a wrong product, with this statement and these operands and result as evidence, and gives the evidence
    /// to whoever asks.
    pub fn accuse(&self, accused: PeerId, statement: &SignedProduct, tensors: [&Tensor; 3]) {
        let bytes = bundle(statement, tensors);
        let evidence = Digest::from_bytes(*blake3::hash(&bytes).as_bytes());
        let accuser = self.network.local_peer_id();
        let (kind, evidence_bytes) = (EvidenceKind::Product, bytes.len() as u64);
        let accusation = Accusation { accuser, accused, kind, evidence, evidence_bytes };
        let signed = SignedAccusation::new(accusation, &self.keypair).unwrap();
        let mut asked = self.network.streams().accept(StreamProtocol::new(PROTOCOL)).unwrap();
        self.runtime.spawn(async move {
            while let Some((_, mut stream)) = asked.next().await {
                let question = FrameReader::<_, EvidenceMessage>::new(&mut stream).receive().await;
                if !matches!(question, Ok((EvidenceMessage::Wanted(wanted), _)) if wanted == evidence) {
                    continue;
                }
                let mut frames = FrameWriter::new(&mut stream);
                for (piece, offset) in bytes.chunks(CHUNK_BYTES).zip((0..).step_by(CHUNK_BYTES)) {
                    let chunk = EvidenceMessage::Chunk { total: bytes.len() as u64, offset };
                    frames.send(&chunk, piece).await.unwrap();
                }
                frames.flush().await.unwrap();
            }
        });
        let mut streams = self.network.streams();
        self.runtime.block_on(async {
            let mut stream = streams.open_stream(self.node, StreamProtocol::new(PROTOCOL)).await.unwrap();
            let mut frames = FrameWriter::new(&mut stream);
            frames.send(&EvidenceMessage::Told(1), &signed.to_bytes()).await.unwrap();
            frames.flush().await.unwrap();
            stream.close().await.unwrap();
        });
    }
}

/// Evidence about a product, as its protocol describes it.
fn bundle(statement: &SignedProduct, tensors: [&Tensor; 3]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let npy = |tensor: &Tensor| {
        let path = folder.path().join("tensor.npy");
        let mut file = NpyWriter::create(&path, tensor.dtype(), tensor.rows(), tensor.cols()).unwrap();
        file.write_block(0, 0, tensor).unwrap();
        file.finish().unwrap();
        read(&path)
    };
    let [a, b, c] = tensors.map(npy);
    let mut bytes = b"pge1\x01".to_vec();
    for file in [statement.to_bytes(), a, b, c] {
        bytes.extend((file.len() as u64).to_le_bytes());
        bytes.extend(file);
    }
    bytes
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
