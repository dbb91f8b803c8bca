//! What holds for the connections of every transport before the swarm sees them: incoming ones have a place among those in
//! their handshakes, dials end in time. It does not know what a handshake consists of.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use libp2p::core::multiaddr::{Multiaddr, Protocol};
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use pangea_control::net::callers::CallerLimits;

use super::doorway::{Caller, Doorway};

/// Connections in their handshakes. An honest handshake takes a few round trips; a node on a slow line keeps its place as
/// long as the same address does not open this many connections meanwhile.
const HANDSHAKES: CallerLimits = CallerLimits { total: 128, per_origin: 32, local: 0 };

/// Time from the start of a dial, with the lookup of its name, to an admitted connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A transport whose handshakes are limited.
pub(super) struct Admitting<T> {
    inner: T,
    doorway: Doorway,
}

impl<T> Admitting<T> {
    pub(super) fn new(inner: T) -> Admitting<T> {
        Admitting { inner, doorway: Doorway::new(HANDSHAKES) }
    }
}

/// The host at the other end.
fn host(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(address) => Some(address.into()),
        Protocol::Ip6(address) => Some(address.into()),
        _ => None,
    })
}

impl<T> Transport for Admitting<T>
where
    T: Transport<Error = io::Error> + Unpin,
    T::Output: 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, Result<T::Output, io::Error>>;
    type Dial = BoxFuture<'static, Result<T::Output, io::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let dial = self.inner.dial(address, options)?;
        Ok(Box::pin(async move {
            tokio::time::timeout(DIAL_TIMEOUT, dial).await.unwrap_or_else(|_| {
                let why = format!("no answer within {} s", DIAL_TIMEOUT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            })
        }))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let this = &mut *self;
        let doorway = &this.doorway;
        Pin::new(&mut this.inner).poll(cx).map(|event| {
            // The place is taken now, not once the handshake is first polled.
            let caller = match &event {
                TransportEvent::Incoming { send_back_addr, .. } => {
                    host(send_back_addr).and_then(|host| doorway.arrived(host))
                }
                _ => None,
            };
            event.map_upgrade(|upgrade| -> Self::ListenerUpgrade { Box::pin(admitted(upgrade, caller)) })
        })
    }
}

/// The outcome of a handshake that keeps its place to its end.
async fn admitted<O>(upgrade: impl Future<Output = io::Result<O>>, caller: Option<Caller>) -> io::Result<O> {
    let Some(caller) = caller else { return Err(io::Error::other("a connection without a host's address")) };
    let finished = caller.closing().run_until_cancelled(upgrade).await;
    finished.unwrap_or_else(|| Err(io::Error::other("gave its place to a newer connection")))
}
