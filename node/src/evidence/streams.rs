//! Accusations and evidence on their way between two nodes. Disks are read and written on blocking threads, one megabyte at a
//! time. Nothing is judged here but lengths and hashes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_control::trust::accusations::EvidenceKind;
use tokio::sync::mpsc;

use super::PROTOCOL;
use super::accusation::SignedAccusation;
use super::bundle::{self, Hasher};
use super::folder::EvidenceFolder;
use super::message::{CHUNK_BYTES, EvidenceMessage, TOLD_MAX};
use crate::net::Network;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::opening;
use crate::wire::Header;

/// Time within which evidence must be here: the largest over a slow link.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// Time that an accepted stream may take from its opening to its message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Pieces of evidence between a disk and a stream.
const PIECES: usize = 2;

/// Where the evidence that this node gives to others is.
pub(super) type Given = Rc<RefCell<BTreeMap<Digest, (PathBuf, EvidenceKind)>>>;

/// Tells a peer accusations. Whether they arrive is not known; they are told again.
pub(super) async fn tell(network: Network, peer: PeerId, accusations: Vec<Vec<u8>>) {
    let told = async {
        let stream = opening::open(network.streams(), peer, PROTOCOL).await.map_err(|error| error.to_string())?;
        let mut frames = FrameWriter::new(stream);
        for accusations in accusations.chunks(TOLD_MAX) {
            let message = EvidenceMessage::Told(accusations.len() as u32);
            frames.send(&message, &accusations.concat()).await.map_err(|error| error.to_string())?;
        }
        frames.flush().await.map_err(|error| error.to_string())
    };
    if let Err(why) = told.await {
        tracing::debug!(event = "accusations_not_told", %peer, why);
    }
}

/// Reads what a peer opened a stream for: returns the accusations that it tells, or answers its question.
///
/// # Errors
/// Why the stream failed.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    given: &Given,
) -> std::result::Result<Vec<[u8; SignedAccusation::BYTES]>, StreamError> {
    let (read, write) = stream.split();
    let mut frames = FrameReader::new(read);
    let received = tokio::time::timeout(MESSAGE_TIMEOUT, frames.receive()).await;
    match received.map_err(|_| StreamError::Stalled)?? {
        (EvidenceMessage::Told(_), length) => {
            let mut bytes = vec![0; length];
            frames.payload(&mut bytes).await?;
            Ok(bytes.chunks_exact(SignedAccusation::BYTES).filter_map(|one| one.try_into().ok()).collect())
        }
        (EvidenceMessage::Wanted(evidence), _) => {
            let there = given.borrow().get(&evidence).cloned();
            give(FrameWriter::new(write), there).await?;
            Ok(Vec::new())
        }
        (other, _) => Err(StreamError::Unexpected(format!("`{}` opens a stream", other.name()))),
    }
}

/// Sends the evidence in a folder, or says that it is not here.
async fn give<W: AsyncWrite + Unpin>(
    mut frames: FrameWriter<W, EvidenceMessage>,
    there: Option<(PathBuf, EvidenceKind)>,
) -> std::result::Result<(), StreamError> {
    let refusal = |message: &str| EvidenceMessage::Refusal { kind: ErrorKind::NotFound, message: message.to_owned() };
    let Some((folder, kind)) = there else {
        frames.send(&refusal("this evidence is not on this node"), &[]).await?;
        return frames.flush().await;
    };
    let (pieces, mut arriving) = mpsc::channel(PIECES);
    let total = {
        let folder = folder.clone();
        let sized = tokio::task::spawn_blocking(move || bundle::size(&folder, kind)).await;
        match sized {
            Ok(Ok(total)) => total,
            _ => {
                frames.send(&refusal("this evidence is no longer on this node"), &[]).await?;
                return frames.flush().await;
            }
        }
    };
    let reading = tokio::task::spawn_blocking(move || {
        let mut to = PieceWriter { pieces, piece: Vec::with_capacity(CHUNK_BYTES) };
        bundle::write(&folder, kind, &mut to)?;
        to.flush()
    });
    let mut offset = 0;
    while let Some(piece) = arriving.recv().await {
        frames.send(&EvidenceMessage::Chunk { total, offset }, &piece).await?;
        offset += piece.len() as u64;
    }
    match reading.await {
        Ok(Ok(())) => frames.flush().await,
        _ => Err(StreamError::Closed),
    }
}

/// Passes what is written to it on in pieces.
struct PieceWriter {
    pieces: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(CHUNK_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..fits]);
        if self.piece.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(CHUNK_BYTES));
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Fetches evidence of exactly `size` bytes from a peer into a file, which the caller removes.
///
/// # Errors
/// Why it is not here. `VerificationFailed` for other bytes than those asked for.
pub(super) async fn fetch(
    network: Network,
    folder: EvidenceFolder,
    evidence: Digest,
    size: u64,
    from: PeerId,
) -> Result<PathBuf> {
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, receive(network, folder, evidence, size, from)).await;
    fetched.unwrap_or_else(|_| Err(Error::new(ErrorKind::DeadlineExceeded, "the evidence did not arrive in time")))
}

async fn receive(
    network: Network,
    folder: EvidenceFolder,
    evidence: Digest,
    size: u64,
    from: PeerId,
) -> Result<PathBuf> {
    let broken = |error: StreamError| Error::new(ErrorKind::Unavailable, error.to_string());
    let opened = opening::open(network.streams(), from, PROTOCOL).await;
    let mut stream = opened.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
    let mut question = FrameWriter::new(&mut stream);
    question.send(&EvidenceMessage::Wanted(evidence), &[]).await.map_err(broken)?;
    question.flush().await.map_err(broken)?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let writing = tokio::task::spawn_blocking(move || store(&folder, arriving, evidence, size));
    let mut frames: FrameReader<_, EvidenceMessage> = FrameReader::new(&mut stream);
    let mut at = 0;
    while at < size {
        let (message, length) = frames.receive().await.map_err(broken)?;
        match message {
            EvidenceMessage::Chunk { total, offset } if total == size && offset == at => {}
            EvidenceMessage::Refusal { kind, message } => return Err(Error::new(kind, message)),
            other => {
                let why = format!("`{}` instead of bytes {at} of {size}", other.name());
                return Err(Error::new(ErrorKind::VerificationFailed, why));
            }
        }
        let mut piece = vec![0; length];
        frames.payload(&mut piece).await.map_err(broken)?;
        at += length as u64;
        if pieces.send(piece).await.is_err() {
            // The writer says why it ended.
            break;
        }
    }
    drop(pieces);
    let _ = stream.close().await;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Error::new(ErrorKind::VerificationFailed, error.to_string()),
        _ => Error::new(ErrorKind::Internal, format!("cannot store evidence: {error}")),
    };
    writing.await.map_err(|_| Error::new(ErrorKind::Internal, "storing evidence panicked"))?.map_err(failed)
}

/// Writes arriving pieces into a file and checks their hash; removes the file if they are not what was asked for.
fn store(
    folder: &EvidenceFolder,
    mut arriving: mpsc::Receiver<Vec<u8>>,
    evidence: Digest,
    size: u64,
) -> io::Result<PathBuf> {
    let (path, mut file) = folder.arriving()?;
    let mut write = || {
        let mut hasher = Hasher::default();
        while let Some(piece) = arriving.blocking_recv() {
            hasher.write_all(&piece)?;
            file.write_all(&piece)?;
        }
        file.flush()?;
        let other = || io::Error::new(io::ErrorKind::InvalidData, "other bytes than those of the evidence");
        (hasher.finish() == (evidence, size)).then_some(()).ok_or_else(other)
    };
    match write() {
        Ok(()) => Ok(path),
        Err(error) => {
            // What cannot be removed is swept when the node starts again.
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}
