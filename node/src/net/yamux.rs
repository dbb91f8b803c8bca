//! The `/yamux/1.0.0` upgrade: the `yamux` crate with frames as large as one Noise message, and windows bounded
//! per connection. On the wire it equals the stock upgrade of libp2p; only sizes differ, which the stock upgrade does
//! not let one set. This file knows nothing of what the streams carry.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use yamux::{Config, Connection, ConnectionError, Mode};

/// Name of the protocol in the negotiation.
pub(super) const PROTOCOL: &str = "/yamux/1.0.0";

/// Plaintext bytes of one libp2p Noise message (65535 minus the 1024 reserved for keys).
const NOISE_MESSAGE_BYTES: usize = 65_535 - 1_024;

/// Bytes of a Yamux frame header.
const HEADER_BYTES: usize = 12;

/// Body of a data frame: header and body fill one Noise message, so that no frame costs a second, tiny one.
const FRAME_BODY_BYTES: usize = NOISE_MESSAGE_BYTES - HEADER_BYTES;

/// Maximum streams on one connection: a peer needs a handful (task streams, ping, identify); this limits a hostile one.
const MAX_STREAMS: usize = 64;

/// Bytes that a peer can always make this node buffer on one connection, over all streams: each stream's first window.
const MIN_WINDOW_BYTES: usize = MAX_STREAMS * yamux::DEFAULT_CREDIT as usize;

/// Most bytes that a peer can make this node buffer on one connection. Windows grow with bandwidth times round trip:
/// 10 Gbit/s at 100 ms needs 125 MB.
const MAX_WINDOW_BYTES: usize = 256 << 20;

/// Bytes beyond [`MIN_WINDOW_BYTES`] that all connections share. The first few can be as fast as their line; a hundred of
/// them cannot fill this host's memory.
const SHARED_WINDOW_BYTES: usize = 1 << 30;

/// A connection takes at most this part of what is left.
const SHARE: usize = 4;

const _: () = assert!(MAX_WINDOW_BYTES >= MIN_WINDOW_BYTES);

/// The receive windows of all of a node's connections. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    left: Arc<AtomicUsize>,
}

/// One connection's window; dropping it gives its shared part back.
#[derive(Debug)]
struct Window {
    windows: Windows,
    shared_bytes: usize,
}

impl Windows {
    pub(super) fn new() -> Windows {
        Windows { left: Arc::new(AtomicUsize::new(SHARED_WINDOW_BYTES)) }
    }

    /// The window of a new connection.
    fn open(&self) -> Window {
        let share = |left: usize| (left / SHARE).min(MAX_WINDOW_BYTES - MIN_WINDOW_BYTES);
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - share(left)));
        // The update is never refused.
        let shared_bytes = before.map_or(0, share);
        Window { windows: self.clone(), shared_bytes }
    }
}

impl Window {
    fn bytes(&self) -> usize {
        MIN_WINDOW_BYTES + self.shared_bytes
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.windows.left.fetch_add(self.shared_bytes, Ordering::Relaxed);
    }
}

/// Inbound streams that are not accepted yet: as many as a peer may open without acknowledgement.
const MAX_INBOUND_BUFFERED: usize = MAX_STREAMS;

/// Bytes passed between Yamux and Noise at once: both copy their input, and data still in the first-level cache
/// is copied fastest. Measured with `copying`'s setting: 4 or 16 KiB 1.3 GB/s, whole frames 1.2; without it 0.7 each.
const PIECE_BYTES: usize = 16 << 10;

/// A socket that reads and writes at most [`PIECE_BYTES`] at once.
struct Pieces<C>(C);

impl<C: AsyncRead + Unpin> AsyncRead for Pieces<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let most = buf.len().min(PIECE_BYTES);
        Pin::new(&mut self.0).poll_read(cx, &mut buf[..most])
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Pieces<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(PIECE_BYTES)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// The streams of one connection.
pub(super) struct Muxer<C> {
    connection: Connection<Pieces<C>>,
    inbound: VecDeque<yamux::Stream>,
    inbound_waker: Option<Waker>,
    _window: Window,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Streams over `socket`; the dialler is the client.
    pub(super) fn new(socket: C, dialled_here: bool, windows: &Windows) -> Self {
        let window = windows.open();
        let mut config = Config::default();
        config.set_max_num_streams(MAX_STREAMS);
        config.set_max_connection_receive_window(Some(window.bytes()));
        config.set_split_send_size(FRAME_BODY_BYTES);
        let mode = if dialled_here { Mode::Client } else { Mode::Server };
        Self {
            connection: Connection::new(Pieces(socket), config, mode),
            inbound: VecDeque::new(),
            inbound_waker: None,
            _window: window,
        }
    }

    /// Drives the connection until a stream is opened by the peer. Nothing on the connection moves unless this is polled.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<yamux::Stream>> {
        match ready!(self.connection.poll_next_inbound(cx)) {
            Some(Ok(stream)) => Poll::Ready(Ok(stream)),
            Some(Err(error)) => Poll::Ready(Err(into_io(error))),
            None => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn into_io(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        ConnectionError::Closed => io::ErrorKind::UnexpectedEof.into(),
        other => io::Error::other(other),
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(result) = self.poll_connection(cx) {
            return Poll::Ready(result);
        }
        self.inbound_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Self::Substream>> {
        self.connection.poll_new_outbound(cx).map_err(into_io)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.poll_close(cx).map_err(into_io)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let stream = ready!(self.poll_connection(cx))?;
        if self.inbound.len() < MAX_INBOUND_BUFFERED {
            self.inbound.push_back(stream);
            if let Some(waker) = self.inbound_waker.take() {
                waker.wake();
            }
        } else {
            tracing::warn!(event = "stream_dropped", "a peer opens streams faster than this node accepts them");
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_connections_get_large_windows_and_all_together_stay_within_the_budget() {
        let windows = Windows::new();
        let open: Vec<Window> = (0..256).map(|_| windows.open()).collect();
        assert!(open[0].bytes() >= 250 << 20 && open[3].bytes() >= 100 << 20);
        assert!(open.iter().all(|window| window.bytes() >= MIN_WINDOW_BYTES));
        let sum: usize = open.iter().map(Window::bytes).sum();
        assert!(sum <= SHARED_WINDOW_BYTES + 256 * MIN_WINDOW_BYTES, "{sum}");
        drop(open);
        assert_eq!(windows.left.load(Ordering::Relaxed), SHARED_WINDOW_BYTES);
    }
}
