//! One stream to a peer that has parts of a model: sends questions and receives answers in the same order. Received
//! bytes are returned with the question that they answer; they are not verified here.

use std::collections::VecDeque;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::{PeerId, Stream};
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::model::Manifest;
use pangea_compute::model::manifest::MAX_MANIFEST_BYTES;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::PROTOCOL;
use super::limits::{ANSWER_TIMEOUT, MANIFEST_TIMEOUT};
use super::message::BlobMessage;
use super::parts::{PartId, PartSet, part_counts};
use crate::net::Network;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::opening;
use crate::wire::{Header, TraceParent};

/// Maximum bytes of a set of parts: the manifest has a hash of 32 bytes for every bit.
const MAX_SET_BYTES: usize = MAX_MANIFEST_BYTES / 32 / 8 + 1;

/// Opens a stream to `peer`.
pub(super) async fn open(network: &Network, peer: PeerId) -> Result<Stream> {
    let opened = opening::open(network.streams(), peer, PROTOCOL).await;
    opened.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))
}

/// Fetches the manifest of `model` and checks it against its digest.
///
/// # Errors
/// `VerificationFailed` if the digest differs; the peer's refusal; `Unavailable`.
pub(super) async fn manifest<S: AsyncRead + AsyncWrite + Unpin>(stream: S, model: Digest) -> Result<Manifest> {
    let (read, write) = stream.split();
    let (mut questions, mut answers) = (QuestionWriter(FrameWriter::new(write)), AnswerReader(FrameReader::new(read)));
    questions.ask(&BlobMessage::Manifest(model)).await?;
    let mut bytes = Vec::new();
    let whole = tokio::time::timeout(MANIFEST_TIMEOUT, answers.next(MAX_MANIFEST_BYTES, None, &mut bytes)).await;
    whole.unwrap_or_else(|_| {
        let why = format!("no manifest within {} s", MANIFEST_TIMEOUT.as_secs());
        Err(Error::new(ErrorKind::Unavailable, why))
    })?;
    let wrong = |why: String| Error::new(ErrorKind::VerificationFailed, why);
    if blake3::hash(&bytes).as_bytes() != model.as_bytes() {
        return Err(wrong("its manifest has another digest than the model".to_owned()));
    }
    Manifest::from_bytes(&bytes).map_err(|error| wrong(error.to_string()))
}

/// Memory for a part that is received.
pub(super) struct Buffer {
    /// The bytes of the part.
    pub(super) bytes: Vec<u8>,
    /// The buffer's place in the memory of the fetch.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// What a provider answered.
pub(super) enum Received {
    /// The parts that the peer has.
    Has(PartSet),
    /// The bytes of a part.
    Bytes(PartId, Buffer),
    /// The peer does not have the part.
    Lacks(PartId),
}

/// Asks for the set of parts that the peer has, then for each part that `asks` yields, until it closes. Buffers come from
/// `buffer`; `heard` receives the answers and may wait.
///
/// # Errors
/// Why the conversation ended early. `VerificationFailed` if the peer violates the protocol.
pub(super) async fn converse<S, B, H>(
    stream: S,
    model: Digest,
    manifest: &Manifest,
    trace: Option<TraceParent>,
    mut asks: mpsc::Receiver<PartId>,
    mut buffer: B,
    mut heard: H,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: AsyncFnMut() -> Buffer,
    H: AsyncFnMut(Received),
{
    let (read, write) = stream.split();
    let (mut questions, mut answers) = (QuestionWriter(FrameWriter::new(write)), AnswerReader(FrameReader::new(read)));
    questions.ask(&BlobMessage::Have(model)).await?;
    let mut set = Vec::new();
    answers.next(MAX_SET_BYTES, None, &mut set).await?;
    let Some(has) = PartSet::from_bytes(part_counts(manifest), &set) else {
        return Err(Error::new(ErrorKind::VerificationFailed, "its set of parts does not belong to this model"));
    };
    heard(Received::Has(has)).await;
    // Filled and emptied only here: at most as many as the fetch asks ahead.
    let asked = std::cell::RefCell::new(VecDeque::new());
    let waiting = tokio::sync::Notify::new();
    let asking = async {
        while let Some(part) = asks.recv().await {
            asked.borrow_mut().push_back(part);
            waiting.notify_one();
            questions.ask(&BlobMessage::Part { model, piece: part.piece, part: part.part, trace }).await?;
        }
        Ok(())
    };
    let hearing = async {
        loop {
            let Some(part) = asked.borrow().front().copied() else {
                tokio::select! {
                    // QuestionWriter first: an answer always follows its question.
                    biased;
                    () = waiting.notified() => continue,
                    // With no question open, only the end of the stream may come.
                    error = answers.unasked() => return Err(error),
                }
            };
            let mut buffer = buffer().await;
            let len = super::parts::part_bytes(manifest, part) as usize;
            let came = match answers.next(len, Some(len), &mut buffer.bytes).await {
                Ok(()) => Received::Bytes(part, buffer),
                Err(error) if error.kind() == ErrorKind::NotFound => Received::Lacks(part),
                Err(error) => return Err(error),
            };
            asked.borrow_mut().pop_front();
            heard(came).await;
        }
    };
    tokio::select! {
        ended = asking => ended,
        ended = hearing => ended,
    }
}

/// The sending half of a conversation.
struct QuestionWriter<W>(FrameWriter<W, BlobMessage>);

impl<W: AsyncWrite + Unpin> QuestionWriter<W> {
    async fn ask(&mut self, question: &BlobMessage) -> Result<()> {
        self.0.send(question, &[]).await.map_err(broken)?;
        self.0.flush().await.map_err(broken)
    }
}

/// The receiving half of a conversation.
struct AnswerReader<R>(FrameReader<R, BlobMessage>);

impl<R: AsyncRead + Unpin> AnswerReader<R> {
    /// Receives one answer of at most `max_bytes` bytes, or exactly `exactly`. Memory is allocated as bytes arrive.
    async fn next(&mut self, max_bytes: usize, exactly: Option<usize>, to: &mut Vec<u8>) -> Result<()> {
        let mut at = 0;
        loop {
            let received = tokio::time::timeout(ANSWER_TIMEOUT, self.0.receive()).await;
            let (message, len) = match received {
                Ok(received) => received.map_err(broken)?,
                Err(_) => {
                    let what = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(Error::new(ErrorKind::Unavailable, what));
                }
            };
            let total = match message {
                BlobMessage::Chunk { total, offset } if offset == at as u64 => total as usize,
                BlobMessage::Refusal { kind, message } if at == 0 => return Err(Error::new(kind, message)),
                other => return Err(violation(format!("`{}` instead of bytes {at}", other.name()))),
            };
            if total > max_bytes || exactly.is_some_and(|exactly| total != exactly) {
                return Err(violation(format!("an answer of {total} bytes")));
            }
            if to.len() < at + len {
                to.resize(at + len, 0);
            }
            self.0.payload(&mut to[at..at + len]).await.map_err(broken)?;
            at += len;
            if at == total {
                to.truncate(at);
                return Ok(());
            }
        }
    }

    /// Waits for the end of the stream; a message here violates the protocol.
    async fn unasked(&mut self) -> Error {
        match self.0.receive().await {
            Ok((BlobMessage::Refusal { kind, message }, _)) => Error::new(kind, message),
            Ok((message, _)) => violation(format!("`{}` without a question", message.name())),
            Err(error) => broken(error),
        }
    }
}

fn violation(what: String) -> Error {
    broken(StreamError::Unexpected(what))
}

fn broken(error: StreamError) -> Error {
    let kind = match error {
        StreamError::Wire(_) | StreamError::Unexpected(_) => ErrorKind::VerificationFailed,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string())
}
