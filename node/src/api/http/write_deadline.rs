//! A socket whose writes have a deadline: a client that does not take its answer is dropped, and the answer's work with it.
//! It does not know what is written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::limits::WRITE_STEP_BYTES;

/// A socket that fails once its client takes too little.
pub(super) struct WriteDeadline<S> {
    socket: S,
    /// Time in which a client takes [`WRITE_STEP_BYTES`].
    allowed: Duration,
    /// Runs while the socket accepts no more bytes.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Bytes written since the deadline was set.
    written: usize,
}

impl<S: AsyncWrite + Unpin> WriteDeadline<S> {
    /// No deadline until a write has to wait; then the client has the time `allowed` for each [`WRITE_STEP_BYTES`].
    pub(super) fn new(socket: S, allowed: Duration) -> WriteDeadline<S> {
        WriteDeadline { socket, allowed, blocked: None, written: 0 }
    }

    fn after(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.written += bytes;
                // The deadline lasts over small writes, so that a client cannot put it off byte by byte.
                if self.written >= WRITE_STEP_BYTES {
                    self.blocked = None;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let (written, allowed) = (&mut self.written, self.allowed);
                let deadline = self.blocked.get_or_insert_with(|| {
                    *written = 0;
                    Box::pin(sleep(allowed))
                });
                ready!(deadline.as_mut().poll(cx));
                Poll::Ready(Err(late(self.allowed)))
            }
        }
    }
}

fn late(allowed: Duration) -> io::Error {
    let why = format!("the client took less than {WRITE_STEP_BYTES} bytes in {} s", allowed.as_secs_f64());
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.after(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.after(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_or_reads_byte_by_byte_is_dropped_and_a_slow_one_is_not() {
        let allowed = Duration::from_millis(200);
        let (server, _silent) = tokio::io::duplex(1024);
        let mut socket = WriteDeadline::new(server, allowed);
        let error = socket.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (server, mut trickling) = tokio::io::duplex(1024);
        let mut socket = WriteDeadline::new(server, allowed);
        let reading = async {
            while trickling.read_u8().await.is_ok() {
                sleep(allowed / 10).await;
            }
        };
        let writing = async {
            let error = socket.write_all(&[0; 4096]).await.unwrap_err();
            drop(socket);
            error.kind()
        };
        assert_eq!(futures::join!(writing, reading).0, io::ErrorKind::TimedOut);

        let (server, mut slow) = tokio::io::duplex(WRITE_STEP_BYTES);
        let mut socket = WriteDeadline::new(server, allowed);
        let reading = async {
            let mut piece = vec![0; 2 * WRITE_STEP_BYTES];
            for _ in 0..10 {
                sleep(allowed / 4).await;
                slow.read_exact(&mut piece).await.unwrap();
            }
        };
        let all = vec![0; 20 * WRITE_STEP_BYTES];
        let (written, ()) = futures::join!(socket.write_all(&all), reading);
        written.unwrap();
    }
}
