//! The side that receives requests: on a thread of its own, as many of each peer as there are places for. What answers them is
//! given by the caller; a peer that ends its stream cancels its answer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Bytes;
use futures::stream::BoxStream;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, StreamExt};
use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::Tunnel;
use super::limits::{BODIES_PER_PEER, CHUNK_BYTES, PLACES, PLACES_PER_PEER, REQUEST_TIMEOUT, WORKING_INTERVAL};
use super::message::{AnswerForm, Ask, Counted, Failure, TunnelMessage};
use crate::net::IncomingStreams;
use crate::peers::Peers;
use crate::streams::framed::{FrameReader, FrameWriter, StreamError};
use crate::streams::places::Places;
use crate::supervise::Supervisor;
use crate::wire::Header;

/// Name of the thread and of its heartbeat.
const PART: &str = "tunnel";

/// Interval at which a draining node checks whether its answers have ended. Shutdown is rare.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Time for a peer to end a stream whose answer is complete or refused; it does so as soon as it has read that.
const LINGER: Duration = Duration::from_secs(2);

/// Delay after which a peer beyond its share may ask again: answers end within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Tokens that are computed for a request, counted while it is answered. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<[AtomicU32; 2]>);

impl Tally {
    /// Counts tokens of the prompt.
    pub fn add_prompt(&self, tokens: usize) {
        self.add(0, tokens);
    }

    /// Counts tokens of the answer.
    pub fn add_answer(&self, tokens: usize) {
        self.add(1, tokens);
    }

    /// What was counted.
    pub fn now(&self) -> Counted {
        let [prompt, answer] = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Counted { prompt_tokens: prompt, answer_tokens: answer }
    }

    fn add(&self, at: usize, tokens: usize) {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        // The closure never refuses.
        let _ =
            self.0[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_add(tokens)));
    }
}

/// An answer that has begun.
pub struct Answer {
    /// Form of its body.
    pub form: AnswerForm,
    /// Its body; dropping it cancels what computes it.
    pub body: BoxStream<'static, std::result::Result<Bytes, String>>,
}

/// A request of a peer, with its whole body.
#[derive(Clone, Debug)]
pub struct PeerRequest {
    /// The peer.
    pub peer: PeerId,
    /// What it asks.
    pub ask: Ask,
    /// The JSON body.
    pub body: Bytes,
    /// Where the answer's tokens are counted.
    pub tally: Tally,
}

/// The running answers to peers. Dropping it ends them without a grace period.
pub struct Answering {
    /// `None` while it runs; then the grace period.
    ending: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    /// Has the requests of peers answered by `answer`, whose future may be dropped at any time; `None` at a node that answers no
    /// peer.
    ///
    /// # Errors
    /// `Internal` if the thread cannot be started.
    pub fn start<F>(
        tunnel: &Tunnel,
        supervisor: &Supervisor,
        answer: impl Fn(PeerRequest) -> F + Send + 'static,
    ) -> Result<Option<Answering>>
    where
        F: Future<Output = std::result::Result<Answer, Failure>> + 'static,
    {
        let Some(incoming) = tunnel.take_incoming() else { return Ok(None) };
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Internal, format!("cannot start answering requests of peers: {error}"))
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let (ending, end) = watch::channel(None);
        let (peers, beating) = (tunnel.peers.clone(), supervisor.clone());
        let thread = supervisor
            .essential_thread(PART, move || {
                LocalSet::new().block_on(&runtime, async {
                    beating.beat(PART);
                    serve(incoming, peers, answer, end).await;
                });
                // A prompt that is still being tokenised must not delay the shutdown.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Some(Answering { ending, thread: Some(thread) }))
    }

    /// Takes no more requests, lets running answers end within `grace`, then cancels what is left. Returns when the thread has
    /// ended.
    pub async fn shutdown(mut self, grace: Duration) {
        self.ending.send_replace(Some(grace));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is logged already, and no state is left to save.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.ending.send_if_modified(|ending| ending.replace(Duration::ZERO).is_none());
    }
}

async fn serve<F>(
    mut incoming: IncomingStreams,
    peers: Peers,
    answer: impl Fn(PeerRequest) -> F + 'static,
    mut end: watch::Receiver<Option<Duration>>,
) where
    F: Future<Output = std::result::Result<Answer, Failure>> + 'static,
{
    let (places, bodies, answer) = (Places::new(PLACES_PER_PEER, PLACES), Bodies::default(), Rc::new(answer));
    loop {
        let (peer, stream) = tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => break,
            Some(next) = incoming.next() => next,
        };
        let place = places.take(peer);
        let refusal = match (&place, peers.may_compute(&peer)) {
            (_, false) => {
                Some(Failure::new(ErrorKind::Unauthorized, "this node takes no requests of a peer in quarantine"))
            }
            (None, _) => Some(full("this node answers its maximum of this peer's requests")),
            (Some(_), true) => None,
        };
        let (bodies, answer) = (bodies.clone(), Rc::clone(&answer));
        tokio::task::spawn_local(async move {
            let outcome = stream_of(stream, peer, refusal, &bodies, &*answer).await;
            let why = outcome.err().map_or_else(String::new, |error| error.to_string());
            tracing::debug!(event = "tunnel_ended", %peer, why);
            drop(place);
        });
    }
    // Peers that ask from now on ask another node.
    drop(incoming);
    let grace = end.borrow().unwrap_or_default();
    let idle = async {
        while !places.is_free() {
            tokio::time::sleep(IDLE_INTERVAL).await;
        }
    };
    if tokio::time::timeout(grace, idle).await.is_err() {
        tracing::warn!(event = "tunnels_cut_off", "answers to peers cut off");
    }
}

fn full(message: &str) -> Failure {
    Failure { retry_after: Some(RETRY_AFTER), ..Failure::new(ErrorKind::Overloaded, message) }
}

/// Bytes of the request bodies that are held, by peer. Clones share them.
#[derive(Clone, Debug, Default)]
struct Bodies(Rc<RefCell<HashMap<PeerId, usize>>>);

/// Room for one body; dropping it releases the room.
#[derive(Debug)]
struct BodyRoom {
    bodies: Bodies,
    peer: PeerId,
    bytes: usize,
}

impl Bodies {
    /// Room for a body of a peer; `None` if the peer's share is used up.
    fn take(&self, peer: PeerId, bytes: usize) -> Option<BodyRoom> {
        let mut held = self.0.borrow_mut();
        let of_peer = held.get(&peer).copied().unwrap_or_default();
        if of_peer + bytes > BODIES_PER_PEER {
            return None;
        }
        held.insert(peer, of_peer + bytes);
        Some(BodyRoom { bodies: self.clone(), peer, bytes })
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        let mut held = self.bodies.0.borrow_mut();
        if let Some(of_peer) = held.get_mut(&self.peer) {
            *of_peer -= self.bytes;
            if *of_peer == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

/// Serves one stream: receives its request, unless it is to be refused, and sends the answer.
async fn stream_of<S, F>(
    stream: S,
    peer: PeerId,
    refusal: Option<Failure>,
    bodies: &Bodies,
    answer: impl Fn(PeerRequest) -> F,
) -> std::result::Result<(), StreamError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = std::result::Result<Answer, Failure>>,
{
    let (read, write) = stream.split();
    let (mut asked, mut frames) = (FrameReader::new(read), FrameWriter::new(write));
    let answering = async {
        let (ask, body, room) = match refusal {
            Some(refusal) => return fail(&mut frames, refusal).await,
            None => {
                let received = tokio::time::timeout(REQUEST_TIMEOUT, receive(&mut asked, peer, bodies)).await;
                match received.map_err(|_| StreamError::Stalled)?? {
                    Ok(received) => received,
                    Err(refusal) => return fail(&mut frames, refusal).await,
                }
            }
        };
        let request = PeerRequest { peer, ask, body, tally: Tally::default() };
        let tally = request.tally.clone();
        let work = async {
            let begun = answer(request).await;
            drop(room);
            begun
        };
        tokio::select! {
            // Nothing but its end may come from the peer now.
            received = asked.receive() => match received {
                Ok((other, _)) => Err(StreamError::Unexpected(format!("`{}` after a request", other.name()))),
                Err(error) => Err(error),
            },
            sent = respond(&mut frames, work, &tally) => sent,
        }
    };
    answering.await?;
    frames.close().await?;
    // A stream that is dropped before the peer has read to its end may lose what is on its way.
    let _ = tokio::time::timeout(LINGER, asked.receive()).await;
    Ok(())
}

type Received = std::result::Result<(Ask, Bytes, BodyRoom), Failure>;

/// The whole request, or why it is refused before it is whole.
async fn receive<R: AsyncRead + Unpin>(
    asked: &mut FrameReader<R, TunnelMessage>,
    peer: PeerId,
    bodies: &Bodies,
) -> std::result::Result<Received, StreamError> {
    let unexpected = |message: TunnelMessage| StreamError::Unexpected(format!("`{}` in a request", message.name()));
    let (ask, first) = match asked.receive().await? {
        (TunnelMessage::Ask(ask), first) => (ask, first),
        (other, _) => return Err(unexpected(other)),
    };
    let total = ask.body_bytes as usize;
    let Some(room) = bodies.take(peer, total) else {
        return Ok(Err(full("this node holds its maximum of this peer's requests")));
    };
    // Memory is taken as bytes arrive.
    let mut body = vec![0; first];
    asked.payload(&mut body).await?;
    while body.len() < total {
        let length = match asked.receive().await? {
            (TunnelMessage::More, length) if body.len() + length <= total => length,
            (other, _) => return Err(unexpected(other)),
        };
        let at = body.len();
        body.resize(at + length, 0);
        asked.payload(&mut body[at..]).await?;
    }
    Ok(Ok((ask, body.into(), room)))
}

/// Sends the answer that `work` gives.
async fn respond<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, TunnelMessage>,
    work: impl Future<Output = std::result::Result<Answer, Failure>>,
    tally: &Tally,
) -> std::result::Result<(), StreamError> {
    let mut work = std::pin::pin!(work);
    let begun = loop {
        tokio::select! {
            begun = &mut work => break begun,
            () = tokio::time::sleep(WORKING_INTERVAL) => working(frames, tally).await?,
        }
    };
    let mut answer = match begun {
        Ok(answer) => answer,
        Err(failure) => return fail(frames, failure).await,
    };
    frames.send(&TunnelMessage::Head(answer.form), &[]).await?;
    loop {
        let piece = tokio::select! {
            piece = answer.body.next() => piece,
            () = tokio::time::sleep(WORKING_INTERVAL) => {
                working(frames, tally).await?;
                continue;
            }
        };
        match piece {
            Some(Ok(piece)) => {
                for piece in piece.chunks(CHUNK_BYTES) {
                    frames.send(&TunnelMessage::Chunk(tally.now()), piece).await?;
                }
                frames.flush().await?;
            }
            Some(Err(why)) => return fail(frames, Failure::new(ErrorKind::Internal, why)).await,
            None => break,
        }
    }
    frames.send(&TunnelMessage::End(tally.now()), &[]).await?;
    frames.flush().await
}

async fn working<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, TunnelMessage>,
    tally: &Tally,
) -> std::result::Result<(), StreamError> {
    frames.send(&TunnelMessage::Working(tally.now()), &[]).await?;
    frames.flush().await
}

async fn fail<W: AsyncWrite + Unpin>(
    frames: &mut FrameWriter<W, TunnelMessage>,
    failure: Failure,
) -> std::result::Result<(), StreamError> {
    frames.send(&TunnelMessage::Failure(failure), &[]).await?;
    frames.flush().await
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use pangea_compute::Digest;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;
    use crate::tunnel::AskRoute;
    use crate::tunnel::limits::BODY_BYTES;

    fn ask(body: &[u8]) -> TunnelMessage {
        let (route, model) = (AskRoute::Completions, Digest::from_bytes([1; 32]));
        TunnelMessage::Ask(Ask { route, model, body_bytes: body.len() as u32, trace: None })
    }

    /// Answers with the length of the body and counts its first byte as tokens.
    async fn length(request: PeerRequest) -> std::result::Result<Answer, Failure> {
        request.tally.add_answer(usize::from(request.body[0]));
        let piece = Ok(Bytes::from(request.body.len().to_string()));
        Ok(Answer { form: AnswerForm::Document, body: stream::iter([piece]).boxed() })
    }

    /// The messages that follow a request; the stream is held open until the last of them.
    async fn answers(body: &[u8], refusal: Option<Failure>, bodies: &Bodies) -> Vec<(TunnelMessage, Vec<u8>)> {
        let (near, far) = tokio::io::duplex(1 << 10);
        let answering = stream_of(far.compat(), PeerId::random(), refusal, bodies, length);
        let asking = async {
            let (read, write) = near.compat().split();
            let (mut frames, mut asked) =
                (FrameReader::<_, TunnelMessage>::new(read), FrameWriter::<_, TunnelMessage>::new(write));
            let sending = async {
                let (first, rest) = body.split_at(body.len().min(CHUNK_BYTES));
                // A node that refuses a request does not read it.
                let _ = asked.send(&ask(body), first).await;
                for piece in rest.chunks(CHUNK_BYTES) {
                    let _ = asked.send(&TunnelMessage::More, piece).await;
                }
                let _ = asked.flush().await;
                std::future::pending::<()>().await;
            };
            let hearing = async {
                let mut all = Vec::new();
                while let Ok((message, length)) = frames.receive().await {
                    let mut payload = vec![0; length];
                    frames.payload(&mut payload).await.unwrap();
                    all.push((message, payload));
                }
                all
            };
            tokio::select! { () = sending => Vec::new(), all = hearing => all }
        };
        futures::join!(answering, asking).1
    }

    #[tokio::test]
    async fn a_request_of_any_length_is_received_whole_and_answered() {
        let counted = Counted { prompt_tokens: 0, answer_tokens: 7 };
        for bytes in [1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let said = answers(&vec![7; bytes], None, &Bodies::default()).await;
            let expected = [
                (TunnelMessage::Head(AnswerForm::Document), Vec::new()),
                (TunnelMessage::Chunk(counted), bytes.to_string().into_bytes()),
                (TunnelMessage::End(counted), Vec::new()),
            ];
            assert_eq!(said, expected, "{bytes}");
        }
    }

    #[tokio::test]
    async fn a_refused_request_is_not_read() {
        let refusal = full("no place");
        let said = answers(&vec![1; 1 << 20], Some(refusal.clone()), &Bodies::default()).await;
        assert_eq!(said, [(TunnelMessage::Failure(refusal), Vec::new())]);
    }

    #[test]
    fn a_peers_bodies_have_a_share_which_is_released() {
        let (bodies, peer) = (Bodies::default(), PeerId::random());
        let first = bodies.take(peer, BODY_BYTES).unwrap();
        let _second = bodies.take(peer, BODY_BYTES).unwrap();
        assert!(bodies.take(peer, 1).is_none() && bodies.take(PeerId::random(), BODY_BYTES).is_some());
        drop(first);
        assert!(bodies.take(peer, BODY_BYTES).is_some());
    }

    #[tokio::test]
    async fn a_peer_that_ends_its_stream_cancels_its_answer() {
        struct Dropped(Rc<RefCell<bool>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                *self.0.borrow_mut() = true;
            }
        }
        let cancelled = Rc::new(RefCell::new(false));
        let (near, far) = tokio::io::duplex(1 << 16);
        let begun = tokio::sync::Notify::new();
        let never = |_| {
            let held = Dropped(Rc::clone(&cancelled));
            begun.notify_one();
            async move {
                std::future::pending::<()>().await;
                drop(held);
                Err(full("never"))
            }
        };
        let asking = async {
            let mut frames = FrameWriter::new(near.compat());
            frames.send(&ask(b"{}"), b"{}").await.unwrap();
            frames.flush().await.unwrap();
            // What was never begun needs no cancellation.
            begun.notified().await;
        };
        let bodies = Bodies::default();
        let answering = stream_of(far.compat(), PeerId::random(), None, &bodies, never);
        let (ended, ()) = futures::join!(answering, asking);
        assert!(ended.is_err() && *cancelled.borrow());
    }
}
