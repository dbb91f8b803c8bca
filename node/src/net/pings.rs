//! Pings over each connection, which measure its round trip and show that the other end lives. The end that dialled pings often: each
//! end hears the other by that, one the pings, the other the answers. The end that was dialled pings rarely, to know the round trip.

use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, ping};

/// Interval of the pings of the end that dialled: half the silence after which `liveness` takes a peer for dead.
const OFTEN: Duration = Duration::from_secs(2);

/// Interval of the pings of the end that was dialled.
const RARELY: Duration = Duration::from_secs(10);

/// Timeout of a ping: long, because a link full of bulk delays it; `liveness` detects dead peers earlier.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The pings of all connections.
pub(super) struct Pings {
    /// Of connections that this node dialled.
    dialled: ping::Behaviour,
    /// Of connections that peers dialled.
    accepted: ping::Behaviour,
}

impl Default for Pings {
    fn default() -> Pings {
        let every = |interval| ping::Behaviour::new(ping::Config::new().with_interval(interval).with_timeout(TIMEOUT));
        Pings { dialled: every(OFTEN), accepted: every(RARELY) }
    }
}

impl NetworkBehaviour for Pings {
    type ConnectionHandler = THandler<ping::Behaviour>;
    type ToSwarm = ping::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.accepted.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dialled.handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.dialled.on_swarm_event(event);
        self.accepted.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        // What a handler measured is told in the same way, whichever end dialled.
        self.dialled.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.dialled.poll(context)
    }
}
