//! `/pangea/join/1` over TCP and Noise, both sides: frames with a deadline. What is answered is `membership`'s to say; the pool's
//! own protocols never run on such a connection.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::upgrade::OutboundConnectionUpgrade;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, noise};
use multistream_select::{Version, dialer_select_proto};
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::join::{Grant, JoinRefusal, MAX_MESSAGE_BYTES, PinSide, Reply, Request, pin_proof};
use pangea_control::membership::pending::{SixDigits, commitment};
use pangea_control::membership::{PoolId, Token};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::transport::{JOIN_NOISE, STOCK_NOISE};
use crate::membership::Membership;
use crate::membership::door::JoinSession;
use crate::membership::pake::Pake;

/// Time for a member to be connected to, and for each of its answers: it writes to its disk before it grants.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests of one connection: a PIN and a comparison take two.
const MAX_REQUESTS: usize = 4;

/// Answers the requests of `peer`, at `host`, until it closes the connection. The caller limits the time of all of it.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    membership: &Membership,
    stream: &mut S,
    peer: PeerId,
    host: Option<IpAddr>,
) -> io::Result<()> {
    let mut session = JoinSession::new(peer, host);
    for _ in 0..MAX_REQUESTS {
        let Some(bytes) = receive(stream).await? else { return Ok(()) };
        let reply = match Request::parse(&bytes) {
            Ok(request) => {
                let membership = membership.clone();
                // The answer is on disk before it is given.
                let answering = tokio::task::spawn_blocking(move || {
                    let reply = membership.answer(&mut session, request);
                    (session, reply)
                });
                let (back, reply) = answering.await.map_err(io::Error::other)?;
                session = back;
                reply
            }
            Err(_) => Reply::Refused(JoinRefusal::Malformed),
        };
        send(stream, &reply.encode()).await?;
    }
    Ok(())
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_le_bytes(), message].concat()).await?;
    stream.flush().await
}

/// The next message; `None` at the end of the stream.
async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = usize::from(u16::from_le_bytes(length));
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

/// Noise over TCP, after the protocol was agreed.
type Secured = noise::Output<multistream_select::Negotiated<tokio_util::compat::Compat<tokio::net::TcpStream>>>;

/// A connection to a member that may admit this node.
pub struct Doorstep {
    stream: Secured,
    address: Multiaddr,
    local: PeerId,
    member: PeerId,
}

/// A member that was asked to compare digits.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The member.
    pub member: PeerId,
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: PoolId,
    /// The digits on both screens.
    pub digits: SixDigits,
    /// Where it was asked.
    pub address: Multiaddr,
}

fn unavailable(address: &Multiaddr, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot ask the member at {address}: {why}"))
}

impl Doorstep {
    /// Connects to the node at `address` (over TCP), which must be `expected` if it is given.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers or it speaks another protocol, `VerificationFailed` if another node answers.
    pub async fn connect(membership: &Membership, address: &Multiaddr, expected: Option<PeerId>) -> Result<Doorstep> {
        let (stream, member) = tokio::time::timeout(ANSWER_TIMEOUT, connected(membership, address))
            .await
            .map_err(|_| unavailable(address, &"no answer in time"))?
            .map_err(|error| unavailable(address, &error))?;
        if let Some(expected) = expected.filter(|expected| *expected != member) {
            let message = format!("the node at {address} is {member}, not {expected}");
            return Err(Error::new(ErrorKind::VerificationFailed, message));
        }
        Ok(Doorstep { stream, address: address.clone(), local: membership.local(), member })
    }

    /// The node that answered.
    pub fn member(&self) -> PeerId {
        self.member
    }

    async fn ask(&mut self, request: &Request) -> Result<Reply> {
        let exchange = async {
            send(&mut self.stream, &request.encode()).await?;
            let bytes = receive(&mut self.stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Reply::parse(&bytes).map_err(io::Error::other)
        };
        let reply = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        let reply = reply.map_err(|_| unavailable(&self.address, &"no answer in time"))?;
        match reply.map_err(|error| unavailable(&self.address, &error))? {
            Reply::Refused(why) => Err(refused(why)),
            reply => Ok(reply),
        }
    }

    fn unexpected(&self) -> Error {
        unavailable(&self.address, &"it gave an answer to another question; run the same release on both")
    }

    /// Shows the secret of a token.
    ///
    /// # Errors
    /// Why the member does not admit this node.
    pub async fn with_token(mut self, name: &str, token: &Token) -> Result<Grant> {
        match self.ask(&Request::Token { name: name.to_owned(), secret: token.secret }).await? {
            Reply::Granted(grant) if grant.pool == token.pool => Ok(grant),
            _ => Err(self.unexpected()),
        }
    }

    /// Proves to know the PIN, and has the member prove it too.
    ///
    /// # Errors
    /// Why the member does not admit this node.
    pub async fn with_pin(mut self, name: &str, pin: &str) -> Result<Grant> {
        let pake = Pake::begin(PinSide::Joiner, pin, &self.local, &self.member);
        let Reply::Pin(message) = self.ask(&Request::Pin { name: name.to_owned(), message: pake.message() }).await?
        else {
            return Err(self.unexpected());
        };
        let key = pake.finish(&message).ok_or_else(|| self.unexpected())?;
        let proof = *pin_proof(&key, PinSide::Joiner).as_bytes();
        match self.ask(&Request::PinProof(proof)).await? {
            // blake3::Hash compares in constant time.
            Reply::Granted(grant) if pin_proof(&key, PinSide::Member) == grant.proof => Ok(grant),
            _ => Err(self.unexpected()),
        }
    }

    /// Asks to be admitted by people who compare digits.
    ///
    /// # Errors
    /// Why the member does not take this node in.
    pub async fn compare(mut self, name: &str) -> Result<Compared> {
        let nonce: [u8; 32] = rand::random();
        let commitment = commitment(&self.local, &self.member, &nonce);
        let Reply::Nonce { pool, name, nonce: members } =
            self.ask(&Request::Compare { name: name.to_owned(), commitment }).await?
        else {
            return Err(self.unexpected());
        };
        match self.ask(&Request::Reveal(nonce)).await? {
            Reply::Waiting => {
                let digits = SixDigits::of(&pool, &self.local, &self.member, &nonce, &members);
                Ok(Compared { member: self.member, name, pool, digits, address: self.address })
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Asks what has become of this node; `None` if nobody has accepted it yet.
    ///
    /// # Errors
    /// Why the member does not admit this node.
    pub async fn poll(mut self) -> Result<Option<Grant>> {
        match self.ask(&Request::Poll).await? {
            Reply::Waiting => Ok(None),
            Reply::Granted(grant) => Ok(Some(grant)),
            _ => Err(self.unexpected()),
        }
    }
}

impl Doorstep {
    /// Introduces this node, which answers on the TCP port `port` (0 if it does not), to one of another pool; returns that one's
    /// name.
    ///
    /// # Errors
    /// Why that node wants to know nobody.
    pub async fn introduce(mut self, name: &str, port: u16) -> Result<String> {
        match self.ask(&Request::Introduce { name: name.to_owned(), port }).await? {
            Reply::Introduced { name } => Ok(name),
            _ => Err(self.unexpected()),
        }
    }

    /// Offers to admit the node, which is to compare digits with this member at its TCP port `port`.
    ///
    /// # Errors
    /// Why it follows no offer.
    pub async fn offer(mut self, name: &str, port: u16) -> Result<()> {
        match self.ask(&Request::Offer { name: name.to_owned(), port }).await? {
            Reply::Waiting => Ok(()),
            _ => Err(self.unexpected()),
        }
    }
}

fn refused(why: JoinRefusal) -> Error {
    let kind = match why {
        JoinRefusal::Full => ErrorKind::Overloaded,
        JoinRefusal::NoPin => ErrorKind::NotFound,
        JoinRefusal::Open => ErrorKind::InvalidInput,
        JoinRefusal::Malformed | JoinRefusal::Internal => ErrorKind::Unavailable,
        _ => ErrorKind::Unauthorized,
    };
    Error::new(kind, format!("the member does not admit this node: {why}"))
}

async fn connected(membership: &Membership, address: &Multiaddr) -> io::Result<(Secured, PeerId)> {
    let (host, port) = host_and_port(address).ok_or_else(|| io::Error::other("a node is joined over TCP"))?;
    let socket = tokio::net::TcpStream::connect((host.as_str(), port)).await?;
    socket.set_nodelay(true)?;
    let selected = dialer_select_proto(socket.compat(), [JOIN_NOISE], Version::V1).await;
    let (_, socket) =
        selected.map_err(|_| io::Error::other("it does not speak the join protocol; run the same release on both"))?;
    let noise = noise::Config::new(membership.keypair()).map_err(io::Error::other)?;
    let (member, stream) = noise.upgrade_outbound(socket, STOCK_NOISE).await.map_err(io::Error::other)?;
    Ok((stream, member))
}

/// Host and port of a TCP address.
fn host_and_port(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => ip.to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port)),
        _ => None,
    }
}

/// Whether a node can be joined at `address`.
pub fn is_joinable(address: &Multiaddr) -> bool {
    host_and_port(address).is_some()
}
