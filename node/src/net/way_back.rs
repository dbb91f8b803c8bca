//! `/pangea/wayback/1`: whether other nodes can open a connection to this one. A peer is asked over the connection that is there,
//! opens a TCP connection to each address that it is told, and says which of them answered. It sends nothing on them.
//!
//! A question is its number of addresses, a byte, and each address as its length, a byte, and the multiaddr's bytes; the answer is a
//! byte for each address, 1 where it was reached and 0 where not.
//!
//! Only members that may compute are answered, one question of each at a time, and no port below those of nodes is tried. What is left is
//! that a member learns whether such a port of a host near this node is open; the threat model names it.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};

use super::network::Network;
use crate::peers::Peers;
use crate::streams::opening;
use crate::streams::places::Places;
use crate::supervise::Supervisor;

const PROTOCOL: &str = "/pangea/wayback/1";

/// Addresses in one question: those of one host are few.
const MAX_ADDRESSES: usize = 8;

/// Time for an address to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Time for a question, its connections and its answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Questions that are answered at once, of one peer and of all.
const PER_PEER: usize = 1;
const IN_ALL: usize = 8;

/// The lowest port that is tried: nodes listen on no lower one, other services do.
const LOWEST_PORT: u16 = 1024;

/// Asks peers for the way back.
#[derive(Clone)]
pub struct WaysBack {
    network: Network,
}

impl WaysBack {
    /// Starts to answer peers, on the current `LocalSet`, until the network ends.
    ///
    /// # Errors
    /// `Internal` if the protocol has a handler already.
    pub fn start(network: Network, peers: Peers, supervisor: &Supervisor) -> Result<WaysBack> {
        let mut incoming = network
            .accept(StreamProtocol::new(PROTOCOL))
            .map_err(|error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}")))?;
        let places = Places::new(PER_PEER, IN_ALL);
        supervisor.task("ways back", async move {
            while let Some((peer, stream)) = incoming.next().await {
                let Some(place) = places.take(peer).filter(|_| peers.may_compute(&peer)) else { continue };
                tokio::task::spawn_local(async move {
                    let answered = tokio::time::timeout(TIMEOUT, answer(stream, reaches)).await;
                    tracing::debug!(event = "way_back_answered", %peer, answered = matches!(answered, Ok(Ok(()))));
                    drop(place);
                });
            }
        });
        Ok(WaysBack { network })
    }

    /// The addresses of this node that are asked for, and whether `peer` reached each.
    ///
    /// # Errors
    /// `Unavailable` if the peer cannot be asked or does not know the question; `DeadlineExceeded`.
    pub async fn ask(&self, peer: PeerId) -> Result<Vec<(Multiaddr, bool)>> {
        let addresses = asked_for(self.network.listen_addresses().await);
        let ask = async {
            let opened = opening::open(self.network.streams(), peer, PROTOCOL).await;
            let stream = opened.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
            let broken = |error: std::io::Error| Error::new(ErrorKind::Unavailable, error.to_string());
            question(stream, &addresses).await.map_err(broken)
        };
        let late = |_| Error::new(ErrorKind::DeadlineExceeded, "the peer did not answer in time");
        let reached = tokio::time::timeout(TIMEOUT, ask).await.map_err(late)??;
        Ok(addresses.into_iter().zip(reached).collect())
    }
}

/// Those of a node's addresses that a peer is asked for: over TCP, and reachable from other hosts where there is such a one.
fn asked_for(listening: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let mut addresses: Vec<(Multiaddr, SocketAddr)> = listening
        .into_iter()
        .filter_map(|address| {
            let socket = socket_of(&address)?;
            Some((address, socket))
        })
        .collect();
    if addresses.iter().any(|(_, socket)| !socket.ip().is_loopback()) {
        addresses.retain(|(_, socket)| !socket.ip().is_loopback());
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses.into_iter().map(|(address, _)| address).collect()
}

/// The socket of an address over TCP.
fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// Whether something answers at this address within the time.
async fn reaches(address: SocketAddr) -> bool {
    let connecting = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(CONNECT_TIMEOUT, connecting).await, Ok(Ok(_)))
}

async fn question<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    addresses: &[Multiaddr],
) -> std::io::Result<Vec<bool>> {
    let mut bytes = vec![addresses.len() as u8];
    for address in addresses {
        let address = address.to_vec();
        // Addresses of sockets and the peer id behind them take far less than 256 bytes.
        bytes.push(address.len() as u8);
        bytes.extend(address);
    }
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut answer = vec![0; addresses.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer.into_iter().map(|reached| reached == 1).collect())
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = bool>>(
    mut stream: S,
    reaches: impl Fn(SocketAddr) -> F,
) -> std::io::Result<()> {
    let mut count = [0];
    stream.read_exact(&mut count).await?;
    let count = usize::from(count[0]);
    if count > MAX_ADDRESSES {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{count} addresses")));
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let mut length = [0];
        stream.read_exact(&mut length).await?;
        let mut bytes = vec![0; usize::from(length[0])];
        stream.read_exact(&mut bytes).await?;
        let address = Multiaddr::try_from(bytes).ok().and_then(|address| socket_of(&address));
        addresses.push(address.filter(|address| address.port() >= LOWEST_PORT && !address.ip().is_unspecified()));
    }
    let reaches = &reaches;
    let tried = addresses.into_iter().map(|address| async move {
        match address {
            Some(address) => u8::from(reaches(address).await),
            None => 0,
        }
    });
    let said = futures::future::join_all(tried).await;
    stream.write_all(&said).await?;
    stream.close().await
}

#[cfg(test)]
mod tests {
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// What a peer says that reaches port 7777 only, and the bytes of the question.
    async fn said(asked: &[Multiaddr]) -> std::io::Result<Vec<bool>> {
        let (asking, answering) = tokio::io::duplex(1 << 12);
        let reaches = |address: SocketAddr| std::future::ready(address.port() == 7777);
        let (said, answered) = tokio::join!(question(asking.compat(), asked), answer(answering.compat(), reaches));
        answered.and(said)
    }

    #[tokio::test]
    async fn a_peer_says_which_addresses_it_reaches() {
        let asked = addresses(&["/ip4/10.0.0.1/tcp/7777", "/ip6/fd00::1/tcp/7778", "/ip4/10.0.0.1/udp/7777/quic-v1"]);
        assert_eq!(said(&asked).await.unwrap(), [true, false, false]);
        // No service below the ports of nodes, and no address that is this host whatever it says.
        let others = addresses(&["/ip4/10.0.0.1/tcp/22", "/ip4/0.0.0.0/tcp/7777"]);
        assert_eq!(said(&others).await.unwrap(), [false, false]);
        assert!(said(&[]).await.unwrap().is_empty());
        let many = vec![asked[0].clone(); MAX_ADDRESSES + 1];
        assert!(said(&many).await.is_err());
    }

    #[tokio::test]
    async fn the_bytes_of_a_question_are_pinned_and_others_are_refused() {
        let (asking, mut answering) = tokio::io::duplex(1 << 12);
        let asked = addresses(&["/ip4/192.168.1.20/tcp/7777"]);
        let read = async {
            let mut bytes = [0; 10];
            tokio::io::AsyncReadExt::read_exact(&mut answering, &mut bytes).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut answering, &[1]).await.unwrap();
            bytes
        };
        let (said, bytes) = tokio::join!(question(asking.compat(), &asked), read);
        assert_eq!((said.unwrap(), bytes), (vec![true], [1, 8, 4, 192, 168, 1, 20, 6, 30, 97]));
        for wrong in [&[9][..], &[1, 3, 1, 2], &[2, 0]] {
            let (mut asking, answering) = tokio::io::duplex(1 << 12);
            tokio::io::AsyncWriteExt::write_all(&mut asking, wrong).await.unwrap();
            tokio::io::AsyncWriteExt::shutdown(&mut asking).await.unwrap();
            assert!(answer(answering.compat(), |_| std::future::ready(true)).await.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn loopback_is_asked_for_only_where_there_is_nothing_else() {
        let listening = ["/ip4/127.0.0.1/tcp/7777", "/ip4/192.168.1.2/tcp/7777", "/ip4/192.168.1.2/udp/7777/quic-v1"];
        assert_eq!(asked_for(addresses(&listening)), addresses(&listening[1..2]));
        assert_eq!(asked_for(addresses(&listening[..1])), addresses(&listening[..1]));
        assert!(asked_for(Vec::new()).is_empty());
    }
}
