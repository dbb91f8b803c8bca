//! The side that sends a request and receives its answer: one stream, read by a task of its own. Dropping the [`Asking`] ends the
//! stream, which cancels the request at the other node. Nothing is tried twice here.

use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use libp2p::PeerId;
use pangea_client::ErrorKind;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::limits::{CHUNK_BYTES, PIECES, PROGRESS_TIMEOUT, REQUEST_TIMEOUT, SILENCE_TIMEOUT};
use super::message::{AnswerForm, Ask, Counted, Failure, TunnelMessage};
use super::{PROTOCOL, Tunnel};
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::opening;
use crate::wire::Header;

/// A part of what the other node says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It works.
    Working(Counted),
    /// The answer begins.
    Head(AnswerForm),
    /// More of the answer.
    Chunk(Bytes, Counted),
    /// The answer is complete.
    End(Counted),
    /// There is no answer, or no more of it; the message says who says so.
    Failed(Failure),
}

/// A request at another node.
#[derive(Debug)]
pub struct Asking {
    heard: mpsc::Receiver<Heard>,
    task: JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asking {
    /// The next part; nothing is to be read after [`Heard::End`] and [`Heard::Failed`].
    pub async fn next(&mut self) -> Heard {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The same, for who waits for several.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        let ended = || Heard::Failed(Failure::new(ErrorKind::Internal, "the task of a tunnelled request ended"));
        self.heard.poll_recv(context).map(|heard| heard.unwrap_or_else(ended))
    }
}

impl Tunnel {
    /// Sends a request to a connected peer, from within a tokio runtime.
    pub fn ask(&self, peer: PeerId, ask: Ask, body: Bytes) -> Asking {
        let (to, heard) = mpsc::channel(PIECES);
        let tunnel = self.clone();
        let task = tokio::spawn(async move {
            let outcome = match opening::open(tunnel.network.streams(), peer, PROTOCOL).await {
                Ok(stream) => converse(stream, peer, ask, &body, &to).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = outcome {
                let message = format!("the answer of node {peer} failed: {why}");
                // Nobody may wait for it any more.
                let _ = to.send(Heard::Failed(Failure::new(ErrorKind::Unavailable, message))).await;
            }
        });
        Asking { heard, task }
    }
}

/// Sends the request and passes on what is heard, until the answer has ended or nobody listens.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: PeerId,
    ask: Ask,
    body: &[u8],
    to: &mpsc::Sender<Heard>,
) -> Result<(), StreamError> {
    let (read, write) = stream.split();
    // Both halves stay open to the end: to the other node, a half that is closed is a client that is gone.
    let mut frames = FrameWriter::new(write);
    let mut sending = Box::pin(send(&mut frames, ask, body));
    let mut hearing = Box::pin(hear(FrameReader::new(read), peer, to));
    tokio::select! {
        // A node may refuse a request that is not whole yet.
        heard = &mut hearing => return heard,
        sent = &mut sending => sent?,
    }
    hearing.await
}

async fn send<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, TunnelMessage>,
    ask: Ask,
    body: &[u8],
) -> Result<(), StreamError> {
    let (first, rest) = body.split_at(ask.first_bytes().min(body.len()));
    frames.send(&TunnelMessage::Ask(ask), first).await?;
    for piece in rest.chunks(CHUNK_BYTES) {
        frames.send(&TunnelMessage::More, piece).await?;
    }
    frames.flush().await
}

async fn hear<R: AsyncRead + Unpin>(
    mut frames: FrameReader<R, TunnelMessage>,
    peer: PeerId,
    to: &mpsc::Sender<Heard>,
) -> Result<(), StreamError> {
    // Before the request is whole, the other node has nothing to say.
    let mut silence = REQUEST_TIMEOUT;
    let (mut begun, mut computed, mut progress) = (false, Counted::default(), Instant::now());
    loop {
        let received = tokio::time::timeout(silence, frames.receive()).await;
        let (message, length) = received.map_err(|_| StreamError::Stalled)??;
        silence = SILENCE_TIMEOUT;
        let moved = |counted: Counted| counted != computed;
        let heard = match message {
            TunnelMessage::Working(counted) => {
                if moved(counted) {
                    progress = Instant::now();
                    computed = counted;
                }
                if progress.elapsed() > PROGRESS_TIMEOUT {
                    return Err(StreamError::Goodbye(format!("no token for {} s", PROGRESS_TIMEOUT.as_secs())));
                }
                Heard::Working(counted)
            }
            TunnelMessage::Head(form) if !begun => {
                begun = true;
                Heard::Head(form)
            }
            TunnelMessage::Chunk(counted) if begun => {
                (progress, computed) = (Instant::now(), counted);
                let mut piece = vec![0; length];
                frames.payload(&mut piece).await?;
                Heard::Chunk(piece.into(), counted)
            }
            TunnelMessage::End(counted) if begun => Heard::End(counted),
            TunnelMessage::Failure(failure) => {
                let message = format!("node {peer} says: {}", failure.message);
                Heard::Failed(Failure { message, ..failure })
            }
            other => return Err(StreamError::Unexpected(format!("`{}` out of turn", other.name()))),
        };
        let is_last = matches!(heard, Heard::End(_) | Heard::Failed(_));
        if to.send(heard).await.is_err() || is_last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use pangea_compute::Digest;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;
    use crate::tunnel::AskRoute;

    const COUNTED: Counted = Counted { prompt_tokens: 3, answer_tokens: 1 };

    /// What is heard when the other node answers with these messages, and how the conversation ends.
    async fn heard(messages: &[(TunnelMessage, &[u8])]) -> (Vec<Heard>, Result<(), String>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (to, mut parts) = mpsc::channel(PIECES);
        let ask = Ask { route: AskRoute::Completions, model: Digest::from_bytes([1; 32]), body_bytes: 2, trace: None };
        let asking = async {
            let ended = converse(near.compat(), PeerId::random(), ask, b"{}", &to).await;
            drop(to);
            ended.map_err(|error| error.to_string())
        };
        let answering = async {
            let (read, write) = far.compat().split();
            let (mut frames, mut answer) =
                (FrameReader::<_, TunnelMessage>::new(read), FrameWriter::<_, TunnelMessage>::new(write));
            assert_eq!(frames.receive().await.unwrap(), (TunnelMessage::Ask(ask), 2));
            for (message, payload) in messages {
                answer.send(message, payload).await.unwrap();
            }
            answer.flush().await.unwrap();
            // The stream ends here.
        };
        let collecting = async {
            let mut all = Vec::new();
            while let Some(part) = parts.recv().await {
                all.push(part);
            }
            all
        };
        let (ended, (), all) = futures::join!(asking, answering, collecting);
        (all, ended)
    }

    #[tokio::test]
    async fn an_answer_is_heard_in_order_and_ends_the_conversation() {
        let (parts, ended) = heard(&[
            (TunnelMessage::Working(Counted::default()), b""),
            (TunnelMessage::Head(AnswerForm::Events), b""),
            (TunnelMessage::Chunk(COUNTED), b"data: 1\n\n"),
            (TunnelMessage::End(COUNTED), b""),
        ])
        .await;
        let expected = [
            Heard::Working(Counted::default()),
            Heard::Head(AnswerForm::Events),
            Heard::Chunk(Bytes::from_static(b"data: 1\n\n"), COUNTED),
            Heard::End(COUNTED),
        ];
        assert_eq!((parts, ended), (expected.to_vec(), Ok(())));
    }

    #[tokio::test]
    async fn what_comes_out_of_turn_and_an_answer_that_stops_are_failures() {
        let chunk = (TunnelMessage::Chunk(COUNTED), &b"x"[..]);
        let (parts, ended) = heard(std::slice::from_ref(&chunk)).await;
        assert!(parts.is_empty() && ended.unwrap_err().contains("`chunk` out of turn"));
        let head = (TunnelMessage::Head(AnswerForm::Document), &b""[..]);
        let (_, ended) = heard(&[head.clone(), head.clone()]).await;
        assert!(ended.unwrap_err().contains("`head` out of turn"));
        let (parts, ended) = heard(&[head, chunk]).await;
        assert_eq!((parts.len(), ended.is_err()), (2, true), "it was not complete");
    }

    #[tokio::test]
    async fn a_refusal_names_its_author() {
        let refusal = Failure::new(ErrorKind::Overloaded, "64 answers wait");
        let (parts, ended) = heard(&[(TunnelMessage::Failure(refusal), b"")]).await;
        assert_eq!(ended, Ok(()));
        let [Heard::Failed(failure)] = &parts[..] else { panic!("{parts:?}") };
        assert!(failure.message.starts_with("node ") && failure.message.ends_with(" says: 64 answers wait"));
        assert_eq!((failure.kind, failure.status), (ErrorKind::Overloaded, 429));
    }
}
