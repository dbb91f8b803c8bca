//! The transports: TCP (Noise, admission, Yamux) and QUIC (admission on its first stream), each producing a connection
//! that the swarm may see. This file runs the admission frames over sockets; `admission` defines what they mean, and
//! `connection_table` decides which connection is kept.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent};
use libp2p::core::transport::{Boxed, Transport as _};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{PeerId, dns, noise, quic, tcp};
use multistream_select::{Version, dialer_select_proto, listener_select_proto};
use thiserror::Error;
use tokio::sync::mpsc;

use super::Transport;
use super::addresses::ip_of;
use super::admitting::Admitting;
use super::joining;
use super::peer_connections::{ConnectionMeter, PeerConnection, PeerConnections, TrackedMuxer};
use super::socket::Socket;
use super::yamux;
use crate::membership::Membership;
use pangea_control::membership::PoolId;
use pangea_control::net::admission::{
    Acceptor, AcceptorStep, Dialer, DialerStep, FRAME_BYTES, Frame, FrameError, MAGIC, Refusal, Shown,
};

/// Noise with admission: what two nodes of this release speak on TCP.
const ADMITTED_NOISE: &str = "/pangea/noise/1";

/// Noise alone: what stock libp2p peers speak. A node of a closed pool accepts it only to learn whom it refuses.
pub(super) const STOCK_NOISE: &str = "/noise";

/// Noise with the exchange of a node that wants to join the pool, in place of a connection.
pub(super) const JOIN_NOISE: &str = "/pangea/join/1";

/// Time from the first byte to an admitted connection. A silent stranger holds a socket no longer than this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a refused node to read its refusal before the connection is dropped.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Idle timeout of QUIC itself; `liveness` is faster.
const QUIC_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// QUIC's flow-control windows: 16 MiB fills 10 Gbit/s at 13 ms.
const QUIC_WINDOW_BYTES: u32 = 16 << 20;

/// Why a connection was not admitted.
#[derive(Debug, Error)]
pub(super) enum HandshakeError {
    /// This node refused the peer.
    #[error("refused {peer}: {}", refusal.of_the_other())]
    Refused { peer: PeerId, refusal: Refusal },
    /// The peer refused this node.
    #[error("{peer} refused this node: {}", refusal.of_this_node())]
    RefusedByPeer { peer: PeerId, refusal: Refusal },
    /// Another node answers at the address.
    #[error("the node there is {obtained}, not {expected}")]
    WrongPeer { expected: Box<PeerId>, obtained: Box<PeerId> },
    /// The peer asked to join the pool and was answered; there is no connection.
    #[error("{0} asked to join the pool")]
    AskedToJoin(PeerId),
    /// The address is this node's own.
    #[error("the address is this node's own")]
    Own,
    /// The handshake did not finish in time.
    #[error("no answer to the handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut { peer: Option<PeerId> },
    /// The other side speaks another protocol.
    #[error("it does not speak this protocol: {0}")]
    Negotiation(#[from] multistream_select::NegotiationError),
    /// The encryption failed.
    #[error("encryption: {0}")]
    Noise(#[from] noise::Error),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Wraps a [`HandshakeError`] as a source: libp2p's combinators show the source of what they wrap, not the error itself.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct HandshakeFailed(#[source] HandshakeError);

/// A refused connection, for the log and the events.
#[derive(Debug)]
pub(super) struct RefusedConnection {
    pub(super) peer: PeerId,
    pub(super) refusal: Refusal,
    /// `true` if the peer refused this node, `false` if this node refused the peer.
    pub(super) by_peer: bool,
    /// Whether the exchange timed out without a proof.
    pub(super) timed_out: bool,
    /// The host at the other end.
    pub(super) host: Option<IpAddr>,
}

/// State that every handshake needs.
#[derive(Clone)]
pub(super) struct HandshakeContext {
    pub(super) keypair: Keypair,
    pub(super) local: PeerId,
    pub(super) membership: Membership,
    pub(super) connections: PeerConnections,
    pub(super) windows: yamux::Windows,
    /// Bounded by its creator; refusals that do not fit are dropped.
    pub(super) refused: mpsc::Sender<RefusedConnection>,
}

/// TCP and QUIC with name resolution, producing admitted connections.
///
/// # Errors
/// If the Noise keys cannot be created.
pub(super) fn build(context: &HandshakeContext) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    match dns::tokio::Transport::system(by_address(context)?) {
        Ok(named) => Ok(Admitting::new(named.boxed()).boxed()),
        Err(error) => {
            tracing::warn!(event = "no_resolver", %error, "this host has no resolver configuration: peers are reached by address only");
            Ok(Admitting::new(by_address(context)?).boxed())
        }
    }
}

fn by_address(context: &HandshakeContext) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let noise = noise::Config::new(&context.keypair)?;
    let tcp_door = context.clone();
    let tcp =
        tcp::tokio::Transport::new(tcp::Config::new().nodelay(true)).and_then(move |stream, endpoint| async move {
            let meter = Arc::new(ConnectionMeter::default());
            let mut peer = None;
            let socket = Socket::new(stream, Arc::clone(&meter));
            let handshake = tcp_handshake(&tcp_door, noise, socket, &endpoint, meter, &mut peer);
            let result = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
            let host = ip_of(endpoint.get_remote_address());
            conclude(&tcp_door, result.unwrap_or(Err(HandshakeError::TimedOut { peer })), host)
        });

    let mut quic_config = quic::Config::new(&context.keypair);
    quic_config.max_idle_timeout = QUIC_IDLE_TIMEOUT.as_millis() as u32;
    quic_config.keep_alive_interval = QUIC_IDLE_TIMEOUT / 4;
    quic_config.handshake_timeout = HANDSHAKE_TIMEOUT;
    quic_config.max_stream_data = QUIC_WINDOW_BYTES;
    quic_config.max_connection_data = 2 * QUIC_WINDOW_BYTES;
    let quic_door = context.clone();
    let quic = quic::tokio::Transport::new(quic_config).and_then(move |(peer, connection), endpoint| async move {
        let result =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, quic_handshake(&quic_door, connection, peer, &endpoint)).await;
        let host = ip_of(endpoint.get_remote_address());
        conclude(&quic_door, result.unwrap_or(Err(HandshakeError::TimedOut { peer: Some(peer) })), host)
    });

    Ok(tcp.or_transport(quic).map(|either, _| either.into_inner()).boxed())
}

/// Reports refusals that the user should see.
fn conclude<T>(
    context: &HandshakeContext,
    result: Result<T, HandshakeError>,
    host: Option<IpAddr>,
) -> Result<T, HandshakeFailed> {
    let told = match &result {
        Err(
            HandshakeError::Refused { refusal: Refusal::Duplicate, .. }
            | HandshakeError::RefusedByPeer { refusal: Refusal::Duplicate, .. },
        ) => None,
        Err(HandshakeError::Refused { peer, refusal }) => Some((*peer, *refusal, false, false)),
        Err(HandshakeError::RefusedByPeer { peer, refusal }) => Some((*peer, *refusal, true, false)),
        Err(HandshakeError::TimedOut { peer: Some(peer) }) => Some((*peer, Refusal::Malformed, false, true)),
        _ => None,
    };
    if let Some((peer, refusal, by_peer, timed_out)) = told {
        let _ = context.refused.try_send(RefusedConnection { peer, refusal, by_peer, timed_out, host });
    }
    result.map_err(HandshakeFailed)
}

fn is_dialled_here(endpoint: &ConnectedPoint) -> bool {
    matches!(endpoint, ConnectedPoint::Dialer { role_override: Endpoint::Dialer, .. })
}

/// The peer id in the dialled address, if any.
fn expected_peer(endpoint: &ConnectedPoint) -> Option<PeerId> {
    match endpoint.get_remote_address().iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Refuses a peer other than the dialled one, before any proof.
fn check_identity(
    context: &HandshakeContext,
    endpoint: &ConnectedPoint,
    obtained: PeerId,
) -> Result<(), HandshakeError> {
    if obtained == context.local {
        return Err(HandshakeError::Own);
    }
    match expected_peer(endpoint) {
        Some(expected) if expected != obtained => {
            Err(HandshakeError::WrongPeer { expected: Box::new(expected), obtained: Box::new(obtained) })
        }
        _ => Ok(()),
    }
}

async fn tcp_handshake(
    context: &HandshakeContext,
    noise: noise::Config,
    socket: Socket,
    endpoint: &ConnectedPoint,
    meter: Arc<ConnectionMeter>,
    authenticated: &mut Option<PeerId>,
) -> Result<(PeerId, StreamMuxerBox), HandshakeError> {
    let dialled_here = is_dialled_here(endpoint);
    // A node of an open pool also accepts stock peers; another one never lets the negotiation skip admission.
    let pool = context.membership.pool();
    let is_open = pool.is_none();
    let mut offered: Vec<&'static str> = vec![ADMITTED_NOISE, STOCK_NOISE, JOIN_NOISE];
    if dialled_here {
        offered.truncate(if is_open { 2 } else { 1 });
    }
    let (protocol, (peer, mut stream)) = if dialled_here {
        let (protocol, socket) = dialer_select_proto(socket, offered, Version::V1).await?;
        (protocol, noise.upgrade_outbound(socket, STOCK_NOISE).await?)
    } else {
        let (protocol, socket) = listener_select_proto(socket, offered).await?;
        (protocol, noise.upgrade_inbound(socket, STOCK_NOISE).await?)
    };
    *authenticated = Some(peer);
    check_identity(context, endpoint, peer)?;

    if protocol == JOIN_NOISE {
        joining::serve(&context.membership, &mut stream, peer, ip_of(endpoint.get_remote_address())).await?;
        return Err(HandshakeError::AskedToJoin(peer));
    }
    let stock = protocol == STOCK_NOISE;
    if stock && !is_open {
        return Err(HandshakeError::Refused { peer, refusal: Refusal::Malformed });
    }
    let connection = if dialled_here {
        let connection = open_dialled(context, peer, Transport::Tcp, &meter)?;
        if !stock {
            dial_admission(context, &mut stream, peer).await?;
        }
        admit(context, &connection, peer, pool)?;
        connection
    } else {
        let connection = context.connections.accepted(peer, Transport::Tcp, Arc::clone(&meter));
        if stock {
            admit(context, &connection, peer, pool)?;
        } else {
            accept_admission(context, &mut stream, peer, &connection, None).await?;
        }
        connection
    };

    let muxer = if dialled_here {
        let (_, stream) = dialer_select_proto(stream, [yamux::PROTOCOL], Version::V1Lazy).await?;
        yamux::Muxer::new(stream, true, &context.windows)
    } else {
        let (_, stream) = listener_select_proto(stream, [yamux::PROTOCOL]).await?;
        yamux::Muxer::new(stream, false, &context.windows)
    };
    Ok((peer, StreamMuxerBox::new(TrackedMuxer::new(muxer, meter, connection))))
}

fn open_dialled(
    context: &HandshakeContext,
    peer: PeerId,
    transport: Transport,
    meter: &Arc<ConnectionMeter>,
) -> Result<PeerConnection, HandshakeError> {
    context
        .connections
        .dialled(peer, transport, Arc::clone(meter))
        .map_err(|refusal| HandshakeError::Refused { peer, refusal })
}

fn admit(
    context: &HandshakeContext,
    connection: &PeerConnection,
    peer: PeerId,
    pool: Option<PoolId>,
) -> Result<(), HandshakeError> {
    may_connect(context, connection, peer, pool).map_err(|refusal| HandshakeError::Refused { peer, refusal })
}

/// Decides about a peer that has proved that it belongs to `pool`, the one of this node when the handshake began.
fn may_connect(
    context: &HandshakeContext,
    connection: &PeerConnection,
    peer: PeerId,
    pool: Option<PoolId>,
) -> Result<(), Refusal> {
    context.membership.let_in(peer, pool)?;
    connection.admit()
}

/// The dialling side of the exchange over `stream`.
async fn dial_admission<S: AsyncRead + AsyncWrite + Unpin>(
    context: &HandshakeContext,
    stream: &mut S,
    peer: PeerId,
) -> Result<(), HandshakeError> {
    let membership = &context.membership;
    let (mut dialer, hello) = Dialer::new(membership.credentials(), context.local, peer, rand::random());
    send(stream, &hello.into()).await?;
    loop {
        let mut bytes = [0; FRAME_BYTES];
        stream.read_exact(&mut bytes).await?;
        let refuse = |refusal| HandshakeError::Refused { peer, refusal };
        let frame = Frame::parse(&bytes).map_err(|error| refuse(error.into()))?;
        let shown = with_bytes(stream, frame).await?;
        match dialer.handle(&shown, |chain| membership.check(&peer, chain).map(drop)) {
            DialerStep::Send(shown) => send(stream, &shown).await?,
            DialerStep::Admitted => return Ok(()),
            DialerStep::Refuse(refusal) => return Err(refuse(refusal)),
            DialerStep::RefusedByAcceptor(refusal) => {
                return Err(HandshakeError::RefusedByPeer { peer, refusal });
            }
        }
    }
}

/// The accepting side of the exchange over `stream`; `start` bytes of its first frame may have been read already.
async fn accept_admission<S: AsyncRead + AsyncWrite + Unpin>(
    context: &HandshakeContext,
    stream: &mut S,
    peer: PeerId,
    connection: &PeerConnection,
    start: Option<[u8; MAGIC.len()]>,
) -> Result<(), HandshakeError> {
    let membership = &context.membership;
    let pool = membership.pool();
    let mut acceptor = Acceptor::new(membership.credentials(), context.local, peer, rand::random());
    let mut already_read = start.map_or(0, |start| start.len());
    let mut bytes = [0; FRAME_BYTES];
    bytes[..already_read].copy_from_slice(start.as_ref().map_or(&[], |start| start.as_slice()));
    let refusal = loop {
        // The magic is checked first: a stranger that sends less than a frame and waits is refused at once.
        if already_read < MAGIC.len() {
            stream.read_exact(&mut bytes[..MAGIC.len()]).await?;
        }
        if bytes[..MAGIC.len()] != MAGIC {
            break Refusal::from(FrameError::Magic);
        }
        stream.read_exact(&mut bytes[MAGIC.len()..]).await?;
        already_read = 0;
        let step = match Frame::parse(&bytes) {
            Ok(frame) => {
                let shown = with_bytes(stream, frame).await?;
                acceptor.handle(&shown, |chain| membership.check(&peer, chain).map(drop))
            }
            Err(error) => AcceptorStep::Refuse(error.into()),
        };
        match step {
            AcceptorStep::Send(shown) => send(stream, &shown).await?,
            AcceptorStep::Refuse(refusal) => break refusal,
            AcceptorStep::Proven(accept) => match may_connect(context, connection, peer, pool) {
                Ok(()) => return Ok(send(stream, &accept).await?),
                Err(refusal) => break refusal,
            },
        }
    };
    refuse(stream, refusal).await;
    Err(HandshakeError::Refused { peer, refusal })
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, shown: &Shown) -> io::Result<()> {
    stream.write_all(&[&shown.frame.encode(), shown.chain.as_slice()].concat()).await?;
    stream.flush().await
}

/// Reads the bytes that follow `frame`, of which there are few.
async fn with_bytes<S: AsyncRead + Unpin>(stream: &mut S, frame: Frame) -> io::Result<Shown> {
    let mut chain = vec![0; frame.bytes_after()];
    stream.read_exact(&mut chain).await?;
    Ok(Shown { frame, chain })
}

/// Sends the refusal and waits until the other side closes, so that closing does not overtake it.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, refusal: Refusal) {
    let farewell = async {
        send(stream, &Frame::Refuse(refusal).into()).await?;
        stream.close().await?;
        // Further bytes are read and discarded within the linger time.
        let mut rest = [0; 256];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSAL_LINGER, farewell).await;
}

async fn quic_handshake(
    context: &HandshakeContext,
    mut carrier: quic::Connection,
    peer: PeerId,
    endpoint: &ConnectedPoint,
) -> Result<(PeerId, StreamMuxerBox), HandshakeError> {
    check_identity(context, endpoint, peer)?;
    let pool = context.membership.pool();
    let meter = Arc::new(ConnectionMeter::default());
    let (connection, first) = if is_dialled_here(endpoint) {
        let connection = open_dialled(context, peer, Transport::Quic, &meter)?;
        let mut stream = poll_fn(|cx| Pin::new(&mut carrier).poll_outbound(cx)).await.map_err(io::Error::other)?;
        match dial_admission(context, &mut stream, peer).await {
            // A stock peer drops the stream because it does not speak multistream-select.
            Err(HandshakeError::Io(_)) if pool.is_none() => {}
            result => result?,
        }
        let _ = stream.close().await;
        admit(context, &connection, peer, pool)?;
        (connection, None)
    } else {
        let connection = context.connections.accepted(peer, Transport::Quic, Arc::clone(&meter));
        let mut stream = poll_fn(|cx| Pin::new(&mut carrier).poll_inbound(cx)).await.map_err(io::Error::other)?;
        let mut start = [0; MAGIC.len()];
        stream.read_exact(&mut start).await?;
        if start == MAGIC || pool.is_some() {
            accept_admission(context, &mut stream, peer, &connection, Some(start)).await?;
            let _ = stream.close().await;
            (connection, None)
        } else {
            // The first stream of a stock peer is returned to it unchanged.
            admit(context, &connection, peer, pool)?;
            let stream = QuicStream { stream, replay: start, replayed: 0, meter: Arc::clone(&meter) };
            (connection, Some(stream))
        }
    };
    let muxer = QuicMuxer { connection: carrier, first, meter: Arc::clone(&meter) };
    Ok((peer, StreamMuxerBox::new(TrackedMuxer::new(muxer, meter, connection))))
}

/// A QUIC connection that counts bytes, and returns the stream that admission has peeked into.
struct QuicMuxer {
    connection: quic::Connection,
    first: Option<QuicStream>,
    meter: Arc<ConnectionMeter>,
}

impl QuicMuxer {
    fn counted(&self, stream: quic::Stream) -> QuicStream {
        QuicStream { stream, replay: MAGIC, replayed: MAGIC.len(), meter: Arc::clone(&self.meter) }
    }
}

impl StreamMuxer for QuicMuxer {
    type Substream = QuicStream;
    type Error = quic::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<QuicStream, quic::Error>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Ok(first));
        }
        Pin::new(&mut this.connection).poll_inbound(cx).map_ok(|stream| this.counted(stream))
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<QuicStream, quic::Error>> {
        let this = self.get_mut();
        Pin::new(&mut this.connection).poll_outbound(cx).map_ok(|stream| this.counted(stream))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), quic::Error>> {
        Pin::new(&mut self.get_mut().connection).poll_close(cx)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, quic::Error>> {
        Pin::new(&mut self.get_mut().connection).poll(cx)
    }
}

/// A QUIC stream that counts bytes and first yields bytes that were read from it before.
struct QuicStream {
    stream: quic::Stream,
    replay: [u8; MAGIC.len()],
    replayed: usize,
    meter: Arc<ConnectionMeter>,
}

impl AsyncRead for QuicStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let rest = &this.replay[this.replayed..];
        if !rest.is_empty() {
            let count = rest.len().min(buf.len());
            buf[..count].copy_from_slice(&rest[..count]);
            this.replayed += count;
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf).map_ok(|count| {
            this.meter.received(count);
            count
        })
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        Pin::new(&mut this.stream).poll_write(cx, buf).map_ok(|count| {
            this.meter.sent(count);
            count
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}
