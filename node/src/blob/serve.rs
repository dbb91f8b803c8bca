//! Answers peers' questions about the model files of this node. Disks are read and hashes checked on blocking threads;
//! the next answer is prepared while one is sent.

use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, StreamExt};
use libp2p::StreamProtocol;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use tokio::sync::mpsc;

use super::PROTOCOL;
use super::blob_store::BlobStore;
use super::limits::{CHUNK_BYTES, QUESTIONS, STREAMS, STREAMS_PER_PEER};
use super::message::BlobMessage;
use super::parts::PartId;
use super::stored::Stored;
use crate::net::Network;
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::places::Places;
use crate::supervise::Supervisor;

/// Answers the streams that peers open, on the current `LocalSet`, until the network ends.
///
/// # Errors
/// `Internal` if the protocol has a handler already.
pub(super) fn accept(
    network: &Network,
    blob_store: Arc<BlobStore>,
    peers: Peers,
    supervisor: &Supervisor,
) -> Result<()> {
    let mut incoming = network
        .streams()
        .accept(StreamProtocol::new(PROTOCOL))
        .map_err(|error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}")))?;
    let places = Places::new(STREAMS_PER_PEER, STREAMS);
    supervisor.task("blob streams", async move {
        // Streams that arrive while this loop is busy are dropped, so it does nothing else.
        while let Some((peer, stream)) = incoming.next().await {
            if !peers.may_compute(&peer) {
                tracing::debug!(event = "blob_stream_refused", %peer, "the peer is quarantined");
                continue;
            }
            let place = places.take(peer);
            let blob_store = Arc::clone(&blob_store);
            tokio::task::spawn_local(async move {
                let why = match &place {
                    Some(_) => serve(stream, blob_store).await,
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

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, blob_store: Arc<BlobStore>) -> StreamError {
    let (read, write) = stream.split();
    let (asked, questions) = mpsc::channel(QUESTIONS);
    tokio::select! {
        why = read_questions(FrameReader::new(read), asked) => why,
        why = answer(FrameWriter::new(write), questions, blob_store) => why,
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
type AnswerBytes = std::result::Result<Vec<u8>, Error>;

async fn answer<W: AsyncWrite + Unpin>(
    mut frames: FrameWriter<W, BlobMessage>,
    mut questions: mpsc::Receiver<BlobMessage>,
    blob_store: Arc<BlobStore>,
) -> StreamError {
    let mut ready: Option<AnswerBytes> = None;
    // A stream's two buffers: this one and the one being prepared.
    let mut buffer = Vec::new();
    loop {
        let next = async {
            match questions.recv().await {
                Some(question) => Some(prepare(question, &blob_store, std::mem::take(&mut buffer)).await),
                None => None,
            }
        };
        let (sent, next) = match ready.take() {
            None => (Ok(None), next.await),
            Some(answer) => futures::future::join(send(&mut frames, answer), next).await,
        };
        match (sent, next) {
            (Err(why), _) | (_, Some(Err(why))) => return why,
            (Ok(_), None) => return StreamError::Closed,
            (Ok(spare), Some(Ok(answer))) => {
                buffer = spare.unwrap_or_default();
                ready = Some(answer);
            }
        }
    }
}

/// Sends an answer and returns its buffer.
async fn send<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, BlobMessage>,
    answer: AnswerBytes,
) -> std::result::Result<Option<Vec<u8>>, StreamError> {
    let spare = match answer {
        Ok(bytes) => {
            let total = bytes.len() as u64;
            for (chunk, at) in bytes.chunks(CHUNK_BYTES).zip((0u64..).step_by(CHUNK_BYTES)) {
                frames.send(&BlobMessage::Chunk { total, offset: at }, chunk).await?;
            }
            Some(bytes)
        }
        Err(error) => {
            let refusal = BlobMessage::Refusal { kind: error.kind(), message: error.message().to_owned() };
            frames.send(&refusal, &[]).await?;
            None
        }
    };
    frames.flush().await?;
    Ok(spare)
}

async fn prepare(
    question: BlobMessage,
    blob_store: &BlobStore,
    buffer: Vec<u8>,
) -> std::result::Result<AnswerBytes, StreamError> {
    match question {
        BlobMessage::Manifest(model) => Ok(find(blob_store, &model).map(|stored| stored.manifest().to_bytes())),
        BlobMessage::Have(model) => Ok(find(blob_store, &model).map(|stored| stored.parts().as_bytes().to_vec())),
        BlobMessage::Part { model, piece, part } => {
            let stored = match find(blob_store, &model) {
                Ok(stored) => stored,
                Err(error) => return Ok(Err(error)),
            };
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = buffer;
                stored.read(PartId { piece, part }, &mut buffer).map(|()| buffer)
            });
            Ok(read.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "reading it failed"))))
        }
        other => Err(StreamError::Unexpected(format!("`{}` instead of a question", crate::wire::Header::name(&other)))),
    }
}

fn find(blob_store: &BlobStore, model: &Digest) -> Result<Arc<Stored>> {
    let unknown = || Error::new(ErrorKind::NotFound, format!("no part of model {model} is on this node"));
    blob_store.get(model).ok_or_else(unknown)
}
