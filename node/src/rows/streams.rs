//! Rows on their way between two nodes. Whether they are those that were signed is not checked here, only their number.

use std::ops::Range;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::session::SessionId;

use super::PROTOCOL;
use super::message::{CHUNK_BYTES, RowsMessage};
use super::store::{RowStore, SignedRows};
use crate::net::Network;
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::opening;
use crate::streams::places::Places;
use crate::supervise::Supervisor;
use crate::wire::Header;

/// Streams that one peer may have open towards this node: its audits run one by one, beside one that a request waits for.
const STREAMS_PER_PEER: usize = 4;

/// Streams of all peers together.
const STREAMS: usize = 32;

/// Time that an accepted stream may take from its opening to its question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens the rows of stages, on this node and on others.
#[derive(Clone)]
pub struct RowOpener {
    local: PeerId,
    store: RowStore,
    network: Network,
}

impl RowOpener {
    /// The opener of node `local`, which also answers the questions of peers, on the current `LocalSet`, until the network ends.
    ///
    /// # Errors
    /// `Internal` if the protocol has a handler already.
    pub fn start(
        local: PeerId,
        store: RowStore,
        network: Network,
        peers: Peers,
        supervisor: &Supervisor,
    ) -> Result<RowOpener> {
        let mut incoming = network
            .accept(StreamProtocol::new(PROTOCOL))
            .map_err(|error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}")))?;
        let (places, answers) = (Places::new(STREAMS_PER_PEER, STREAMS), store.clone());
        supervisor.task("rows", async move {
            while let Some((peer, stream)) = incoming.next().await {
                let Some(place) = places.take(peer).filter(|_| peers.may_compute(&peer)) else { continue };
                let store = answers.clone();
                tokio::task::spawn_local(async move {
                    let why = serve(stream, peer, &store).await.err().map_or_else(String::new, |why| why.to_string());
                    tracing::debug!(event = "rows_stream_ended", %peer, why);
                    drop(place);
                });
            }
        });
        Ok(RowOpener { local, store, network })
    }

    /// Where this node's own stages keep their rows.
    pub fn store(&self) -> &RowStore {
        &self.store
    }

    /// The rows that a stage on `peer` gave in a session of this node, `values` numbers.
    ///
    /// # Errors
    /// The peer's refusal; `NotFound` for rows that are not kept on this node; `Unavailable` if the peer cannot be asked;
    /// `VerificationFailed` for another number of rows; `DeadlineExceeded`.
    pub async fn open(
        &self,
        peer: PeerId,
        session: SessionId,
        layers: Range<u32>,
        values: usize,
        within: Duration,
    ) -> Result<Vec<f32>> {
        let other = || Error::new(ErrorKind::VerificationFailed, "other rows than the session has");
        if peer == self.local {
            let kept = self.store.get(session, &layers, &self.local).ok_or_else(not_kept)?;
            return Some(kept.values()).filter(|rows| rows.len() == values).ok_or_else(other);
        }
        let late = |_| Error::new(ErrorKind::DeadlineExceeded, "the rows did not arrive in time");
        let question = RowsMessage::Wanted { session, layers };
        tokio::time::timeout(within, ask(&self.network, peer, &question, values)).await.map_err(late)?
    }
}

fn not_kept() -> Error {
    Error::new(ErrorKind::NotFound, "the rows of this session are not kept on this node")
}

async fn ask(network: &Network, peer: PeerId, question: &RowsMessage, values: usize) -> Result<Vec<f32>> {
    let opened = opening::open(network.streams(), peer, PROTOCOL).await;
    let stream = opened.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
    receive(stream, question, values).await
}

async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    question: &RowsMessage,
    values: usize,
) -> Result<Vec<f32>> {
    let broken = |error: StreamError| Error::new(ErrorKind::Unavailable, error.to_string());
    let mut asking = FrameWriter::new(&mut stream);
    asking.send(question, &[]).await.map_err(broken)?;
    asking.flush().await.map_err(broken)?;
    let mut frames: FrameReader<_, RowsMessage> = FrameReader::new(&mut stream);
    let mut rows = vec![0.0f32; values];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut rows);
    let (size, mut at) = (bytes.len() as u64, 0u64);
    while at < size {
        let (message, length) = frames.receive().await.map_err(broken)?;
        match message {
            RowsMessage::Chunk { total, offset } if total == size && offset == at => {}
            RowsMessage::Refusal { kind, message } => return Err(Error::new(kind, message)),
            other => {
                let why = format!("`{}` instead of bytes {at} of {size}", other.name());
                return Err(Error::new(ErrorKind::VerificationFailed, why));
            }
        }
        // A chunk ends within what was announced.
        frames.payload(&mut bytes[at as usize..at as usize + length]).await.map_err(broken)?;
        at += length as u64;
    }
    let _ = stream.close().await;
    Ok(rows)
}

/// Answers the question of a stream.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    from: PeerId,
    store: &RowStore,
) -> std::result::Result<(), StreamError> {
    let (read, write) = stream.split();
    let mut frames = FrameReader::new(read);
    let received = tokio::time::timeout(QUESTION_TIMEOUT, frames.receive()).await;
    let (question, _) = received.map_err(|_| StreamError::Stalled)??;
    let RowsMessage::Wanted { session, layers } = question else {
        return Err(StreamError::Unexpected(format!("`{}` opens a stream", question.name())));
    };
    let mut frames = FrameWriter::new(write);
    match store.get(session, &layers, &from) {
        Some(kept) => give(&mut frames, &kept).await?,
        None => {
            let error = not_kept();
            let refusal = RowsMessage::Refusal { kind: error.kind(), message: error.message().to_owned() };
            frames.send(&refusal, &[]).await?;
        }
    }
    frames.flush().await
}

async fn give<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, RowsMessage>,
    kept: &SignedRows,
) -> std::result::Result<(), StreamError> {
    let (total, mut offset) = (kept.bytes(), 0);
    let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK_BYTES);
    let last = kept.rows.len().saturating_sub(1);
    for (position, row) in kept.rows.iter().enumerate() {
        chunk.extend_from_slice(bytemuck::cast_slice(row.values()));
        // A row is far smaller than a chunk.
        if chunk.len() + size_of_val(row.values()) > CHUNK_BYTES || position == last {
            frames.send(&RowsMessage::Chunk { total, offset }, &chunk).await?;
            offset += chunk.len() as u64;
            chunk.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Devices;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    const SESSION: SessionId = SessionId([3; 16]);

    /// What a coordinator receives that asks for so many values.
    async fn asked(store: &RowStore, from: PeerId, values: usize) -> Result<Vec<f32>> {
        let (asking, answering) = tokio::io::duplex(1 << 16);
        let question = RowsMessage::Wanted { session: SESSION, layers: 0..2 };
        let (received, _) =
            tokio::join!(receive(asking.compat(), &question, values), serve(answering.compat(), from, store));
        received
    }

    #[tokio::test]
    async fn rows_arrive_in_chunks_and_only_at_their_coordinator() {
        let store = RowStore::new(Devices::new(1 << 30, 1));
        let (coordinator, other) = (PeerId::random(), PeerId::random());
        // More than two chunks, none of whose ends is the end of a row.
        let (width, count) = (3001, 200);
        let value = |position: usize, at: usize| (position * width + at) as f32;
        let rows = (0..count).map(|position| {
            let row: Vec<f32> = (0..width).map(|at| value(position, at)).collect();
            store.keep(&row).unwrap()
        });
        let rows = rows.collect();
        store.signed(SignedRows { session: SESSION, layers: 0..2, coordinator, rows });
        let expected: Vec<f32> = (0..count * width).map(|at| at as f32).collect();
        assert_eq!(asked(&store, coordinator, count * width).await.unwrap(), expected);
        assert_eq!(asked(&store, other, count * width).await.unwrap_err().kind(), ErrorKind::NotFound);
        let other_size = asked(&store, coordinator, width).await.unwrap_err();
        assert_eq!(other_size.kind(), ErrorKind::VerificationFailed);
    }
}
