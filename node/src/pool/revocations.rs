//! The task that spreads revocations among the members, and ends the connections of nodes that belong to the pool no longer. Each
//! member tells each other one what it knows when they connect, and at once when it learns of more. `membership` decides
//! which count.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::revocation::{MAX_BYTES, MAX_REVOCATIONS};

use crate::membership::Membership;
use crate::net::{Follower, IncomingStreams, NetEvent, Network};
use crate::streams::opening;

/// Protocol of revocations: all that a member knows, one after the other, to the end of the stream.
const PROTOCOL: &str = "/pangea/members/1";

/// Time for a peer's revocations to arrive.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the members of the pool before are disconnected.
const LEFT: &str = "this node has joined another pool";

/// Peers' revocations that are read at once; others wait in the network's own short queues.
const MAX_READING: usize = 8;

/// The driver; [`RevocationsDriver::run`] must be called on the network thread.
pub struct RevocationsDriver {
    membership: Membership,
    network: Network,
    events: Follower,
    incoming: IncomingStreams,
    connected: BTreeSet<PeerId>,
}

impl RevocationsDriver {
    /// The driver of a node's `membership` over `network`, whose events arrive through `events`.
    ///
    /// # Errors
    /// `Internal` if somebody accepts the protocol already.
    pub fn new(membership: Membership, network: Network, events: Follower) -> Result<RevocationsDriver> {
        let taken = |error: crate::net::AcceptedTwice| Error::new(ErrorKind::Internal, error.to_string());
        let incoming = network.accept(StreamProtocol::new(PROTOCOL)).map_err(taken)?;
        Ok(RevocationsDriver { membership, network, events, incoming, connected: BTreeSet::new() })
    }

    /// Runs until the network ends.
    pub async fn run(mut self) {
        let mut changes = self.membership.changes();
        let mut joined = changes.borrow_and_update().joined;
        let mut reading = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(NetEvent::PeerUp { peer, .. }) => {
                        self.connected.insert(peer);
                        if self.membership.is_left_behind(&peer) {
                            self.network.disconnect(peer, LEFT).await;
                        } else {
                            self.tell(peer, changes.borrow().revocations.clone());
                        }
                    }
                    Some(NetEvent::PeerDown { peer, .. }) => drop(self.connected.remove(&peer)),
                    Some(_) => {}
                    None => return,
                },
                // Never fails: the sender is in `self.membership`.
                Ok(()) = changes.changed() => {
                    let now = changes.borrow_and_update().clone();
                    if now.joined != joined {
                        joined = now.joined;
                        let membership = self.membership.clone();
                        self.disconnect(|peer| !membership.is_arriving(peer), LEFT).await;
                    }
                    let membership = self.membership.clone();
                    self.disconnect(|peer| membership.is_revoked(peer), "its certificate is revoked").await;
                    for peer in self.connected.iter().filter(|peer| !membership.is_revoked(peer)) {
                        self.tell(*peer, now.revocations.clone());
                    }
                }
                Some((peer, stream)) = self.incoming.next(), if reading.len() < MAX_READING => {
                    reading.spawn_local(listen(self.membership.clone(), peer, stream));
                }
                Some(_) = reading.join_next() => {}
            }
        }
    }

    async fn disconnect(&self, which: impl Fn(&PeerId) -> bool, why: &str) {
        for peer in self.connected.iter().filter(|peer| which(peer)) {
            self.network.disconnect(*peer, why).await;
        }
    }

    fn tell(&self, peer: PeerId, revocations: Vec<u8>) {
        if revocations.is_empty() {
            return;
        }
        let streams = self.network.streams();
        tokio::task::spawn_local(async move {
            let told = async {
                let mut stream = opening::open(streams, peer, PROTOCOL).await.map_err(|error| error.to_string())?;
                stream.write_all(&revocations).await.map_err(|error| error.to_string())?;
                stream.close().await.map_err(|error| error.to_string())
            };
            let result = tokio::time::timeout(TIMEOUT, told).await.unwrap_or_else(|_| Err("no progress".to_owned()));
            if let Err(why) = result {
                tracing::debug!(event = "revocations_not_told", %peer, why);
            }
        });
    }
}

/// Takes in what `peer` tells.
async fn listen(membership: Membership, peer: PeerId, stream: libp2p::Stream) {
    let mut bytes = Vec::new();
    let mut limited = stream.take((MAX_REVOCATIONS * MAX_BYTES) as u64);
    let read = tokio::time::timeout(TIMEOUT, limited.read_to_end(&mut bytes)).await;
    if !matches!(read, Ok(Ok(_))) {
        tracing::debug!(event = "revocations_not_heard", %peer);
        return;
    }
    let storing = tokio::task::spawn_blocking(move || membership.revocations_told(&bytes)).await;
    if let Ok(Err(error)) = storing {
        tracing::warn!(event = "revocations_not_stored", %error, "cannot store revocations: {error}; they are forgotten when this node ends");
    }
}
