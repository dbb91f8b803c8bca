//! The bytes of one connection: counted in both directions, and no further requests are read from a client
//! that does not read its answers. This file knows nothing of messages.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite};

use super::account::Account;
use super::backend::Backend;
use super::limits::UNANSWERED_BYTES;

/// Both halves of a connection's stream.
pub(super) fn counted<B: Backend, R, W>(
    read_half: R,
    write_half: W,
    account: Rc<Account<B>>,
) -> (CountedRead<B, R>, CountedWrite<B, W>) {
    let answers = Rc::new(RefCell::new(Answers::default()));
    (
        CountedRead { inner: read_half, account: account.clone(), answers: answers.clone() },
        CountedWrite { inner: write_half, account, answers },
    )
}

/// Back-pressure of one connection: whether the client reads its answers.
#[derive(Default)]
struct Answers {
    /// The socket accepts no more bytes for now.
    blocked: bool,
    /// Bytes of requests read since the socket blocked.
    read_since: u64,
    /// Woken when the socket accepts bytes again.
    reader: Option<Waker>,
}

/// The reading half, which counts requests' bytes.
pub(super) struct CountedRead<B, R> {
    inner: R,
    account: Rc<Account<B>>,
    answers: Rc<RefCell<Answers>>,
}

impl<B: Backend, R: AsyncRead + Unpin> AsyncRead for CountedRead<B, R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut answers = this.answers.borrow_mut();
        if answers.blocked && answers.read_since > UNANSWERED_BYTES {
            answers.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let outcome = Pin::new(&mut this.inner).poll_read(context, buffer);
        if let Poll::Ready(Ok(length)) = &outcome {
            let length = *length as u64;
            answers.read_since += length;
            this.account.bytes_in.set(this.account.bytes_in.get() + length);
            this.account.totals().bytes_in.fetch_add(length, Ordering::Relaxed);
        }
        outcome
    }
}

/// The writing half, which counts answers' bytes.
pub(super) struct CountedWrite<B, W> {
    inner: W,
    account: Rc<Account<B>>,
    answers: Rc<RefCell<Answers>>,
}

impl<B, W> CountedWrite<B, W> {
    fn blocked(&self) {
        let mut answers = self.answers.borrow_mut();
        if !answers.blocked {
            answers.blocked = true;
            answers.read_since = 0;
        }
    }

    fn moved_on(&self) {
        let mut answers = self.answers.borrow_mut();
        answers.blocked = false;
        if let Some(reader) = answers.reader.take() {
            reader.wake();
        }
    }
}

impl<B: Backend, W: AsyncWrite + Unpin> AsyncWrite for CountedWrite<B, W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, buffer);
        match &outcome {
            Poll::Pending => self.blocked(),
            Poll::Ready(written) => {
                self.moved_on();
                let length = *written.as_ref().unwrap_or(&0) as u64;
                self.account.bytes_out.set(self.account.bytes_out.get() + length);
                self.account.totals().bytes_out.fetch_add(length, Ordering::Relaxed);
            }
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

impl<B, W> Drop for CountedWrite<B, W> {
    fn drop(&mut self) {
        // A waiting reader must see that the connection ends.
        self.moved_on();
    }
}
