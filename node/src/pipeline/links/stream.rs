//! One stream of a link, in either direction; no other code reads or writes it. It delivers received messages and
//! writes queued ones; `link_state` decides what follows when it ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::Control;
use tokio::sync::mpsc;

use super::{Inbox, Queued};
use crate::pipeline::payload::Payload;
use crate::pipeline::wire::{Message, PROTOCOL};
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::opening::{self, OpeningError};

/// Sent by the accepting side once it has accepted a stream, and nothing else: a stream without it is not open.
const TAKEN: [u8; 1] = [1];

/// Opens a stream to a connected peer; returns once the peer has accepted it.
pub(super) async fn open(control: Control, peer: PeerId) -> Result<Stream, OpeningError> {
    opening::open_and(control, peer, PROTOCOL, |mut stream| async move {
        let mut said = [0];
        stream.read_exact(&mut said).await?;
        if said == TAKEN { Ok(stream) } else { Err(OpeningError::Unexpected) }
    })
    .await
}

/// Writes queued messages until the stream ends; returns why.
pub(super) async fn write_all<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    queue: &mut mpsc::Receiver<Vec<Queued>>,
    bytes: &AtomicUsize,
) -> StreamError {
    match write(stream, queue, bytes).await {
        Ok(()) => StreamError::Closed,
        Err(why) => why,
    }
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    queue: &mut mpsc::Receiver<Vec<Queued>>,
    bytes: &AtomicUsize,
) -> Result<(), StreamError> {
    let (mut read, write) = stream.split();
    let mut frames = FrameWriter::<_, Message>::new(write);
    let mut said = [0];
    // The other side sends nothing more; reading detects at once that it closes.
    let mut closing = read.read(&mut said);
    loop {
        let next = tokio::select! {
            biased;
            next = queue.recv() => next,
            read = &mut closing => return match read? {
                0 => Err(StreamError::Closed),
                _ => Err(StreamError::Unexpected("bytes received on a stream that only this side sends on".to_owned())),
            },
        };
        let Some(messages) = next else { return Ok(()) };
        for Queued { message, payload } in messages {
            frames.send(&message, payload.as_bytes()).await?;
            bytes.fetch_sub(payload.len(), Ordering::Relaxed);
        }
        if queue.is_empty() {
            frames.flush().await?;
        }
    }
}

/// Accepts the stream and delivers its messages until it ends; returns why.
pub(super) async fn read_all<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: PeerId,
    inbox: &dyn Inbox,
) -> StreamError {
    match read(stream, peer, inbox).await {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    peer: PeerId,
    inbox: &dyn Inbox,
) -> Result<std::convert::Infallible, StreamError> {
    stream.write_all(&TAKEN).await?;
    stream.flush().await?;
    let mut frames = FrameReader::<_, Message>::new(stream);
    loop {
        let (message, len) = frames.receive().await?;
        if !inbox.admits(peer, &message) {
            frames.skip(len).await?;
            continue;
        }
        // At most one payload per peer, of a checked length; its memory is touched as it arrives.
        let mut payload = Payload::zeroed(len);
        if len != 0 {
            frames.payload(payload.as_mut_bytes()).await?;
        }
        let (message, payload) = message.incoming(payload);
        inbox.message(peer, message, payload);
    }
}
