//! Announcements on the local network: libp2p's mDNS, which keeps whatever anyone announces for as long as its lifetime
//! says, behind `pangea_control::net::announcements`, which decides what of it is believed. Nothing is dialled here.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::swarm::behaviour::{FromSwarm, NewListenAddr};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, ListenAddresses, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId, mdns};
use pangea_control::net::announcements::{Announcements, News};
use pangea_control::net::dial::MAX_DISCOVERED;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock;

/// Interval of queries; an announcement is valid for a few of them.
const QUERY_INTERVAL: Duration = Duration::from_secs(5);
const TTL: Duration = Duration::from_secs(30);

/// Interval at which lifetimes are checked.
const TICK: Duration = Duration::from_secs(1);

/// Announcements that libp2p's list may hold before it is started again: each new one is compared with all of them.
const MAX_RECORDS: usize = 4 * MAX_DISCOVERED;

/// libp2p's mDNS, with bounds.
pub(super) struct Mdns {
    inner: mdns::tokio::Behaviour,
    local: PeerId,
    announcements: Announcements,
    news: VecDeque<News>,
    listen_addresses: ListenAddresses,
    tick: Interval,
}

fn start(local: PeerId) -> io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { ttl: TTL, query_interval: QUERY_INTERVAL, enable_ipv6: false };
    mdns::tokio::Behaviour::new(config, local)
}

impl Mdns {
    /// Announces `local` and hears others.
    ///
    /// # Errors
    /// If the host's interfaces cannot be watched.
    pub(super) fn new(local: PeerId) -> io::Result<Mdns> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Mdns {
            inner: start(local)?,
            local,
            announcements: Announcements::new(clock::now()),
            news: VecDeque::new(),
            listen_addresses: ListenAddresses::default(),
            tick,
        })
    }

    /// Forgets what libp2p's list holds, so that every node that is still there is announced again.
    fn listen_again(&mut self) {
        match start(self.local) {
            Ok(mut fresh) => {
                for address in self.listen_addresses.iter() {
                    let known = NewListenAddr { listener_id: ListenerId::next(), addr: address };
                    fresh.on_swarm_event(FromSwarm::NewListenAddr(known));
                }
                self.inner = fresh;
            }
            Err(error) => tracing::warn!(event = "mdns_not_renewed", %error, "mDNS keeps its old list"),
        }
    }
}

impl NetworkBehaviour for Mdns {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = News;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        libp2p::core::util::unreachable(event)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.listen_addresses.on_swarm_event(&event);
        self.inner.on_swarm_event(event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(news));
            }
            if self.tick.poll_tick(cx).is_ready() {
                let now = clock::now();
                self.news.extend(self.announcements.tick(now));
                if self.announcements.renew(now) || self.inner.discovered_nodes().len() > MAX_RECORDS {
                    self.listen_again();
                }
                continue;
            }
            match self.inner.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(mdns::Event::Discovered(found))) => {
                    for (peer, address) in found {
                        self.news.extend(self.announcements.announced(peer, address, clock::now()));
                    }
                }
                Poll::Ready(ToSwarm::GenerateEvent(mdns::Event::Expired(gone))) => {
                    for (peer, address) in gone {
                        self.news.extend(self.announcements.withdrawn(peer, &address));
                    }
                }
                // Addresses for the rest of libp2p: whom to dial where is decided by `dial` alone.
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
