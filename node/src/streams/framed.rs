//! Messages and payloads on a byte stream, in each direction separately. Payloads are copied directly
//! between the stream and the caller's memory.

use std::io;
use std::marker::PhantomData;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::FRAME_TIMEOUT;
use crate::wire::{FrameHead, Header, Message, PREFIX_BYTES, WireError};

/// Payloads up to this size are sent in one write with their header; for larger ones a second write
/// is cheaper than a copy.
const COALESCE_BYTES: usize = 16 << 10;

/// Buffer size for reading skipped payloads.
const SKIP_BYTES: usize = 64 << 10;

/// Why a stream cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the stream between two frames.
    #[error("the peer closed the stream")]
    Closed,
    /// A frame made no progress.
    #[error("no progress for {} s", FRAME_TIMEOUT.as_secs())]
    Stalled,
    /// The peer violates the protocol's encoding.
    #[error("protocol violation: {0}")]
    Wire(#[from] WireError),
    /// A well-formed message at the wrong place.
    #[error("protocol violation: {0}")]
    Unexpected(String),
    /// The peer sent a goodbye with its reason.
    #[error("{0}")]
    Goodbye(String),
}

/// The sending half of a protocol whose messages are `M`.
#[derive(Debug)]
pub struct FrameWriter<W, M = Message> {
    stream: W,
    head: Vec<u8>,
    messages: PhantomData<fn(&M)>,
}

impl<W: AsyncWrite + Unpin, M: Header> FrameWriter<W, M> {
    /// Writes frames to `stream`.
    pub fn new(stream: W) -> FrameWriter<W, M> {
        FrameWriter { stream, head: Vec::new(), messages: PhantomData }
    }

    /// Sends `message` and `payload`. They may stay in buffers until [`FrameWriter::flush`].
    pub async fn send(&mut self, message: &M, payload: &[u8]) -> Result<(), StreamError> {
        self.head.clear();
        message.encode(payload.len(), &mut self.head)?;
        let together = payload.len() <= COALESCE_BYTES;
        if together {
            self.head.extend_from_slice(payload);
        }
        let write = async {
            self.stream.write_all(&self.head).await?;
            if !together {
                self.stream.write_all(payload).await?;
            }
            Ok(())
        };
        stalling(write).await
    }

    /// Flushes all buffers to the network.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        stalling(self.stream.flush()).await
    }

    /// Ends the sending half; what was sent still arrives.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        stalling(self.stream.close()).await
    }

    /// Sends half a frame and closes the stream, like a cut line. For `--fault drop` only.
    pub async fn cut(&mut self, message: &M, payload: &[u8]) -> Result<(), StreamError> {
        self.head.clear();
        message.encode(payload.len(), &mut self.head)?;
        self.head.extend_from_slice(&payload[..payload.len() / 2]);
        stalling(self.stream.write_all(&self.head)).await?;
        self.flush().await?;
        Err(StreamError::Closed)
    }
}

/// The receiving half of a protocol whose messages are `M`.
#[derive(Debug)]
pub struct FrameReader<R, M = Message> {
    stream: R,
    header: Vec<u8>,
    messages: PhantomData<fn() -> M>,
}

impl<R: AsyncRead + Unpin, M: Header> FrameReader<R, M> {
    /// Reads frames from `stream`.
    pub fn new(stream: R) -> FrameReader<R, M> {
        FrameReader { stream, header: Vec::new(), messages: PhantomData }
    }

    /// The next message and the length of its payload, which the caller must then read or skip.
    /// Waits without a timeout for the frame to start.
    pub async fn receive(&mut self) -> Result<(M, usize), StreamError> {
        let mut prefix = [0; PREFIX_BYTES];
        // Waiting for a frame to start is no stall; only a started frame must make progress.
        match self.stream.read(&mut prefix[..1]).await? {
            0 => return Err(StreamError::Closed),
            _ => stalling(self.stream.read_exact(&mut prefix[1..])).await?,
        }
        let head = FrameHead::parse(prefix, M::LIMITS)?;
        self.header.resize(head.header_len(), 0);
        stalling(self.stream.read_exact(&mut self.header)).await?;
        let message = M::decode(&self.header, head.payload_len())?;
        Ok((message, head.payload_len()))
    }

    /// Reads a whole payload into `to`.
    pub async fn payload(&mut self, to: &mut [u8]) -> Result<(), StreamError> {
        stalling(self.stream.read_exact(to)).await
    }

    /// Reads and discards a payload of `len` bytes.
    pub async fn skip(&mut self, len: usize) -> Result<(), StreamError> {
        let mut left = len;
        let mut buffer = vec![0; SKIP_BYTES.min(len)];
        while left > 0 {
            let piece = left.min(buffer.len());
            self.payload(&mut buffer[..piece]).await?;
            left -= piece;
        }
        Ok(())
    }
}

async fn stalling<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, StreamError> {
    match tokio::time::timeout(FRAME_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                StreamError::Io(io::Error::new(error.kind(), "the stream ended inside a frame"))
            }
            _ => StreamError::Io(error),
        }),
        Err(_) => Err(StreamError::Stalled),
    }
}
