//! Streams that peers open, until the protocol's owner takes them: a short queue for each peer, emptied in turn, so that one
//! peer's streams never push out another's. What travels on a stream, and how many are served, is not known here.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, InboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour, Stream,
    StreamProtocol, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use thiserror::Error;

/// Streams of one protocol that one peer has opened and nobody has taken. The owner takes a stream within a turn of its thread; a
/// peer opens few of most protocols, and one for each request of the clients that ask it at the same moment.
const MAX_WAITING: usize = 64;

/// A protocol that has an owner already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the protocol is accepted already")]
pub struct AcceptedTwice;

/// The queues of all protocols. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbound {
    queues: Arc<Mutex<HashMap<StreamProtocol, Queue<Stream>>>>,
}

/// Streams of one protocol: those of the peer in front are taken first, then that peer goes to the back.
#[derive(Debug)]
struct Queue<S> {
    waiting: VecDeque<(PeerId, VecDeque<S>)>,
    owner: Option<Waker>,
}

impl<S> Default for Queue<S> {
    fn default() -> Self {
        Queue { waiting: VecDeque::new(), owner: None }
    }
}

impl<S> Queue<S> {
    /// Queues a stream of `peer`; returns it if the peer has too many.
    fn push(&mut self, peer: PeerId, stream: S) -> Option<S> {
        match self.waiting.iter_mut().find(|(of, _)| *of == peer) {
            Some((_, streams)) if streams.len() >= MAX_WAITING => return Some(stream),
            Some((_, streams)) => streams.push_back(stream),
            None => self.waiting.push_back((peer, VecDeque::from([stream]))),
        }
        if let Some(owner) = self.owner.take() {
            owner.wake();
        }
        None
    }

    fn pop(&mut self) -> Option<(PeerId, S)> {
        let (peer, mut streams) = self.waiting.pop_front()?;
        let stream = streams.pop_front()?;
        if !streams.is_empty() {
            self.waiting.push_back((peer, streams));
        }
        Some((peer, stream))
    }
}

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, HashMap<StreamProtocol, Queue<Stream>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caller the owner of `protocol`, which connections offer from then on.
    ///
    /// # Errors
    /// [`AcceptedTwice`].
    pub(super) fn accept(&self, protocol: StreamProtocol) -> Result<IncomingStreams, AcceptedTwice> {
        let mut queues = self.lock();
        if queues.contains_key(&protocol) {
            return Err(AcceptedTwice);
        }
        queues.insert(protocol.clone(), Queue::default());
        Ok(IncomingStreams { inbound: self.clone(), protocol })
    }

    fn opened(&self, peer: PeerId, stream: Stream, protocol: &StreamProtocol) {
        let mut queues = self.lock();
        let Some(queue) = queues.get_mut(protocol) else { return };
        if queue.push(peer, stream).is_some() {
            tracing::warn!(event = "stream_dropped", %peer, %protocol, "a peer opens streams faster than this node accepts them");
        }
    }
}

/// The streams of one protocol that peers open. Dropping it ends the protocol on this node.
#[derive(Debug)]
pub struct IncomingStreams {
    inbound: Inbound,
    protocol: StreamProtocol,
}

impl futures::Stream for IncomingStreams {
    type Item = (PeerId, Stream);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queues = self.inbound.lock();
        let Some(queue) = queues.get_mut(&self.protocol) else { return Poll::Ready(None) };
        match queue.pop() {
            Some(next) => Poll::Ready(Some(next)),
            None => {
                queue.owner = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for IncomingStreams {
    fn drop(&mut self) {
        self.inbound.lock().remove(&self.protocol);
    }
}

/// Offers the protocols that have an owner.
pub(super) struct Upgrade {
    protocols: Vec<StreamProtocol>,
}

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.protocols.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

/// The streams that one connection's peer opens.
pub(super) struct Handler {
    inbound: Inbound,
    peer: PeerId,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade { protocols: self.inbound.lock().keys().cloned().collect() }, ())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, DeniedUpgrade>) {
        if let ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
            protocol: (stream, protocol), ..
        }) = event
        {
            self.inbound.opened(self.peer, stream, &protocol);
        }
    }
}

/// The swarm's part: a handler for every connection.
#[derive(Default)]
pub(super) struct InboundBehaviour {
    inbound: Inbound,
}

impl InboundBehaviour {
    /// The queues.
    pub(super) fn inbound(&self) -> Inbound {
        self.inbound.clone()
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler { inbound: self.inbound.clone(), peer }
    }
}

impl NetworkBehaviour for InboundBehaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peers_streams_wait_for_their_turn_and_push_out_no_others() {
        let mut queue = Queue::default();
        let (greedy, other) = (PeerId::random(), PeerId::random());
        for number in 0..MAX_WAITING {
            assert_eq!(queue.push(greedy, number), None);
        }
        assert_eq!(queue.push(greedy, 99), Some(99));
        assert_eq!(queue.push(other, 100), None);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some((greedy, 0)), Some((other, 100)), Some((greedy, 1))]);
        assert_eq!(queue.push(greedy, 7), None);
    }
}
