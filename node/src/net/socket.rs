//! A TCP socket below the encryption: counts bytes, and reads in large pieces because the Noise layer above asks for 8
//! KiB at a time. The bytes themselves are not inspected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::tcp::tokio::TcpStream;

use super::peer_connections::ConnectionMeter;

/// Bytes requested from the kernel at once: two Noise messages. Larger buffers did not measure faster, and every
/// connection has one.
const READ_BUFFER_BYTES: usize = 128 << 10;

/// Time that the kernel keeps sending to a host that acknowledges nothing; longer than `liveness` takes to declare it dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A counted, read-buffered TCP socket.
pub(super) struct Socket {
    stream: TcpStream,
    meter: Arc<ConnectionMeter>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, meter: Arc<ConnectionMeter>) -> Self {
        // Both options are refinements that not every system has; the socket works without them.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream.0, UNACKNOWLEDGED.as_millis() as u32);
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream.0, true);
        Self { stream, meter, buffer: Vec::new(), start: 0, end: 0 }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.start == this.end {
            if this.buffer.is_empty() {
                this.buffer = vec![0; READ_BUFFER_BYTES];
            }
            let count = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.buffer))?;
            this.meter.received(count);
            (this.start, this.end) = (0, count);
        }
        let count = buf.len().min(this.end - this.start);
        buf[..count].copy_from_slice(&this.buffer[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.meter.sent(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}
