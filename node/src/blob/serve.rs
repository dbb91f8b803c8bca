//! Answers peers' questions about the model files of this node. Disks are read and hashes checked on blocking threads;
//! the next answer is prepared while one is sent, where there is memory for two. A part is leased before it is read. A
//! stream is answered when it is its turn (`turns`); one that asks nothing for long is closed.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, StreamExt};
use libp2p::StreamProtocol;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use tokio::sync::mpsc;
use tracing::Span;

use super::PROTOCOL;
use super::blob_store::BlobStore;
use super::limits::{CHUNK_BYTES, IDLE_TIMEOUT, QUESTIONS, STREAMS, STREAMS_PER_PEER, UPLOAD_MEMORY_TIMEOUT};
use super::message::BlobMessage;
use super::parts::{PartId, part_bytes};
use super::stored::Stored;
use super::turns::{Turn, Turns};
use crate::devices::{Devices, Kind, Lease};
use crate::net::Network;
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::places::Places;
use crate::supervise::Supervisor;
use crate::traces::{self, entrance};

/// Answers the streams that peers open, on the current `LocalSet`, until the network ends.
///
/// # Errors
/// `Internal` if the protocol has a handler already.
pub(super) fn accept(
    network: &Network,
    blob_store: Arc<BlobStore>,
    peers: Peers,
    devices: Devices,
    supervisor: &Supervisor,
) -> Result<()> {
    let mut incoming = network
        .accept(StreamProtocol::new(PROTOCOL))
        .map_err(|error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}")))?;
    let places = Places::new(STREAMS_PER_PEER, STREAMS);
    let turns = Turns::new();
    supervisor.task("blob turns", turns.clone().run());
    supervisor.task("blob streams", async move {
        while let Some((peer, stream)) = incoming.next().await {
            if !peers.may_compute(&peer) {
                tracing::debug!(event = "blob_stream_refused", %peer, "the peer is quarantined");
                continue;
            }
            let place = places.take(peer);
            let (blob_store, devices) = (Arc::clone(&blob_store), devices.clone());
            let turn = turns.open(peer);
            tokio::task::spawn_local(async move {
                let why = match &place {
                    Some(_) => serve(stream, blob_store, devices, turn).await,
                    None => refuse(stream).await,
                };
                tracing::debug!(event = "blob_stream_ended", %peer, %why);
                drop(place);
            });
        }
    });
    Ok(())
}

/// Refuses a stream beyond the limit.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> StreamError {
    let (_read, write) = stream.split();
    let mut frames: FrameWriter<_, BlobMessage> = FrameWriter::new(write);
    let refusal = BlobMessage::Refusal {
        kind: ErrorKind::Overloaded,
        message: "this node sends model files to its maximum of peers; try again later".to_owned(),
    };
    let sent = async {
        frames.send(&refusal, &[]).await?;
        frames.flush().await
    };
    sent.await.err().unwrap_or(StreamError::Closed)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    blob_store: Arc<BlobStore>,
    devices: Devices,
    turn: Turn,
) -> StreamError {
    let (read, write) = stream.split();
    let (asked, questions) = mpsc::channel(QUESTIONS);
    let closed = turn.closed().clone();
    let source = Source { blob_store, memory: UploadMemory::new(devices, turn) };
    tokio::select! {
        why = read_questions(FrameReader::new(read), asked) => why,
        why = answer(FrameWriter::new(write), questions, source) => why,
        () = closed.cancelled() => StreamError::Goodbye("others that wait take more".to_owned()),
    }
}

async fn read_questions<R: AsyncRead + Unpin>(
    mut frames: FrameReader<R, BlobMessage>,
    asked: mpsc::Sender<BlobMessage>,
) -> StreamError {
    loop {
        match frames.receive().await {
            Ok((question, _)) => {
                if asked.send(question).await.is_err() {
                    return StreamError::Closed;
                }
            }
            Err(why) => return why,
        }
    }
}

/// The bytes that answer a question, or a refusal.
type AnswerBytes = std::result::Result<Sent, Error>;

/// The bytes that answer a question.
enum Sent {
    /// A manifest, or the set of parts on this node.
    Facts(Vec<u8>),
    /// A part of a model file, with the span of its way from the disk to the network.
    Part(Upload, Span),
}

/// A part of a model file in leased memory.
struct Upload {
    bytes: Vec<u8>,
    lease: Lease,
}

/// Source of the answers of one stream.
struct Source {
    blob_store: Arc<BlobStore>,
    memory: UploadMemory,
}

/// Memory of one stream. The buffer of a sent part is reused for the next part if that is requested already; a stream without
/// a question holds no memory.
struct UploadMemory {
    devices: Devices,
    turn: Turn,
    spare: RefCell<Option<Upload>>,
    /// Whether the stream waits for a question.
    idle: Cell<bool>,
}

impl UploadMemory {
    fn new(devices: Devices, turn: Turn) -> UploadMemory {
        UploadMemory { devices, turn, spare: RefCell::new(None), idle: Cell::new(true) }
    }

    /// The next question, once it is this stream's turn; `None` once the peer asks no more, or nothing for long.
    async fn next(&self, questions: &mut mpsc::Receiver<BlobMessage>) -> Option<BlobMessage> {
        let question = match questions.try_recv() {
            Ok(question) => Some(question),
            Err(_) => {
                self.idle.set(true);
                self.spare.take();
                tokio::time::timeout(IDLE_TIMEOUT, questions.recv()).await.ok().flatten()
            }
        };
        self.idle.set(false);
        if question.is_some() {
            self.turn.come().await;
        }
        question
    }

    /// Memory for a part of `bytes` bytes.
    ///
    /// # Errors
    /// `Overloaded` with the numbers if there is none within `UPLOAD_MEMORY_TIMEOUT`.
    async fn lease(&self, bytes: u64) -> Result<Upload> {
        if let Some(spare) = self.spare.take().filter(|spare| spare.lease.bytes() >= bytes) {
            return Ok(spare);
        }
        let lease = self
            .devices
            .lease_soon(Kind::Uploads, bytes, UPLOAD_MEMORY_TIMEOUT)
            .await
            .map_err(|error| Error::new(error.kind(), format!("no memory to send a part: {}", error.message())))?;
        Ok(Upload { bytes: Vec::new(), lease })
    }

    /// Keeps the buffer of a sent part for the next one, unless a request for upload memory waits, on whichever stream.
    fn give_back(&self, sent: Upload) {
        if !self.idle.get() && !self.devices.is_awaited(Kind::Uploads) {
            self.spare.replace(Some(sent));
        }
    }
}

async fn answer<W: AsyncWrite + Unpin>(
    mut frames: FrameWriter<W, BlobMessage>,
    mut questions: mpsc::Receiver<BlobMessage>,
    source: Source,
) -> StreamError {
    let mut ready: Option<AnswerBytes> = None;
    loop {
        let next = async {
            match source.memory.next(&mut questions).await {
                Some(question) => Some(source.prepare(question).await),
                None => None,
            }
        };
        let (sent, next) = match ready.take() {
            None => (Ok(()), next.await),
            Some(answer) => futures::future::join(send(&mut frames, answer, &source.memory), next).await,
        };
        match (sent, next) {
            (Err(why), _) | (_, Some(Err(why))) => return why,
            (Ok(()), None) => return StreamError::Closed,
            (Ok(()), Some(Ok(answer))) => ready = Some(answer),
        }
    }
}

/// Sends an answer and gives its buffer back to `memory`.
async fn send<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, BlobMessage>,
    answer: AnswerBytes,
    memory: &UploadMemory,
) -> std::result::Result<(), StreamError> {
    // The turn may have gone to another stream since the question came.
    memory.turn.come().await;
    match answer {
        Ok(sent) => {
            let bytes = match &sent {
                Sent::Facts(bytes) => bytes,
                Sent::Part(upload, _) => &upload.bytes,
            };
            let total = bytes.len() as u64;
            for (chunk, at) in bytes.chunks(CHUNK_BYTES).zip((0u64..).step_by(CHUNK_BYTES)) {
                frames.send(&BlobMessage::Chunk { total, offset: at }, chunk).await?;
                memory.turn.took(chunk.len() as u64);
            }
            if let Sent::Part(upload, span) = sent {
                drop(span);
                memory.give_back(upload);
            }
        }
        Err(error) => {
            let refusal = BlobMessage::Refusal { kind: error.kind(), message: error.message().to_owned() };
            frames.send(&refusal, &[]).await?;
        }
    }
    frames.flush().await?;
    memory.turn.answered(!memory.idle.get());
    Ok(())
}

impl Source {
    /// Prepares the answer to a question.
    ///
    /// # Errors
    /// `Unexpected` for a message that is no question.
    async fn prepare(&self, question: BlobMessage) -> std::result::Result<AnswerBytes, StreamError> {
        let facts =
            |model: &Digest, of: fn(&Stored) -> Vec<u8>| self.find(model).map(|stored| Sent::Facts(of(&stored)));
        match question {
            BlobMessage::Manifest(model) => Ok(facts(&model, |stored| stored.manifest().to_bytes())),
            BlobMessage::Have(model) => Ok(facts(&model, |stored| stored.parts().as_bytes().to_vec())),
            BlobMessage::Part { model, piece, part, trace } => {
                let span = traces::following(
                    trace,
                    || entrance!("part", otel.kind = "server", pangea.model = %model, pangea.piece = i64::from(piece)),
                );
                Ok(self.part(&model, PartId { piece, part }, span).await)
            }
            other => {
                Err(StreamError::Unexpected(format!("`{}` instead of a question", crate::wire::Header::name(&other))))
            }
        }
    }

    async fn part(&self, model: &Digest, id: PartId, span: Span) -> AnswerBytes {
        let stored = self.find(model)?;
        let mut upload = self.memory.lease(part_bytes(stored.manifest(), id)).await?;
        let read = tokio::task::spawn_blocking(move || stored.read(id, &mut upload.bytes).map(|()| upload));
        let failed = |_| Error::new(ErrorKind::Internal, "reading it failed");
        read.await.map_err(failed)?.map(|upload| Sent::Part(upload, span))
    }

    fn find(&self, model: &Digest) -> Result<Arc<Stored>> {
        let unknown = || Error::new(ErrorKind::NotFound, format!("no part of model {model} is on this node"));
        self.blob_store.get(model).ok_or_else(unknown)
    }
}
