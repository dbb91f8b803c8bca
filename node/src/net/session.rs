//! The sessions a node has, from the moment the remote's peer id is authenticated to the end of the connection:
//! the one place that decides which of two connections to the same peer lives, counts each connection's bytes,
//! and can cut a connection off. It never reads or writes a socket.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use pangea_control::net::{Traffic, Transport};

use super::admission::Refusal;

/// Bytes of one connection, and the switch that cuts it off.
#[derive(Debug, Default)]
pub(super) struct Meter {
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    cut: Mutex<Option<String>>,
    waker: AtomicWaker,
}

impl Meter {
    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn cut_off(&self, why: &str) {
        lock(&self.cut).get_or_insert_with(|| why.to_owned());
        self.waker.wake();
    }

    fn is_cut_off(&self, cx: &Context<'_>) -> Option<String> {
        self.waker.register(cx.waker());
        lock(&self.cut).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Entry {
    number: u64,
    dialled_here: bool,
    transport: Transport,
    admitted: bool,
    meter: Arc<Meter>,
}

#[derive(Debug, Default)]
struct Table {
    next_number: u64,
    by_peer: HashMap<PeerId, Vec<Entry>>,
    blocked: HashMap<PeerId, String>,
    draining: bool,
}

/// All sessions of a node. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    local: PeerId,
    table: Arc<Mutex<Table>>,
}

/// One session; dropping it takes it off the books.
#[derive(Debug)]
pub(super) struct Session {
    sessions: Sessions,
    peer: PeerId,
    number: u64,
}

/// Whether, of two connections being admitted at once, the first is kept: TCP before QUIC (2–4 times faster), then
/// the one that the node with the larger peer id dialled. Both sides come to the same answer.
fn is_kept((transport, dialer): (Transport, PeerId), (other_transport, other_dialer): (Transport, PeerId)) -> bool {
    match (transport, other_transport) {
        (Transport::Tcp, Transport::Quic) => true,
        (Transport::Quic, Transport::Tcp) => false,
        _ => dialer.to_bytes() > other_dialer.to_bytes(),
    }
}

impl Sessions {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, table: Arc::default() }
    }

    /// Opens the books for a session that this node dialled.
    ///
    /// # Errors
    /// [`Refusal::Duplicate`]: the peer is connected already, or this node is just being admitted over another session;
    /// [`Refusal::Blocked`].
    pub(super) fn dialled(&self, peer: PeerId, transport: Transport, meter: Arc<Meter>) -> Result<Session, Refusal> {
        let mut table = lock(&self.table);
        if table.blocked.contains_key(&peer) {
            return Err(Refusal::Blocked);
        }
        let of_peer = table.by_peer.get(&peer).map_or(&[][..], Vec::as_slice);
        if of_peer.iter().any(|entry| entry.admitted || entry.dialled_here) {
            return Err(Refusal::Duplicate);
        }
        Ok(self.open(&mut table, peer, transport, true, meter))
    }

    /// Opens the books for a session that `peer` dialled.
    pub(super) fn accepted(&self, peer: PeerId, transport: Transport, meter: Arc<Meter>) -> Session {
        let mut table = lock(&self.table);
        self.open(&mut table, peer, transport, false, meter)
    }

    fn open(
        &self,
        table: &mut Table,
        peer: PeerId,
        transport: Transport,
        dialled_here: bool,
        meter: Arc<Meter>,
    ) -> Session {
        let number = table.next_number;
        table.next_number += 1;
        table.by_peer.entry(peer).or_default().push(Entry { number, dialled_here, transport, admitted: false, meter });
        Session { sessions: self.clone(), peer, number }
    }

    /// Bytes exchanged with `peer` over its admitted connections.
    pub(super) fn traffic(&self, peer: &PeerId) -> Traffic {
        let table = lock(&self.table);
        let mut traffic = Traffic::default();
        for entry in table.by_peer.get(peer).into_iter().flatten().filter(|entry| entry.admitted) {
            traffic.received_bytes += entry.meter.received_bytes.load(Ordering::Relaxed);
            traffic.sent_bytes += entry.meter.sent_bytes.load(Ordering::Relaxed);
        }
        traffic
    }

    /// Ends every connection to `peer` at once, without a word to it.
    pub(super) fn cut_off(&self, peer: &PeerId, why: &str) {
        for entry in lock(&self.table).by_peer.get(peer).into_iter().flatten() {
            entry.meter.cut_off(why);
        }
    }

    pub(super) fn block(&self, peer: PeerId, why: &str) {
        lock(&self.table).blocked.insert(peer, why.to_owned());
    }

    pub(super) fn allow(&self, peer: &PeerId) {
        lock(&self.table).blocked.remove(peer);
    }

    pub(super) fn is_blocked(&self, peer: &PeerId) -> bool {
        lock(&self.table).blocked.contains_key(peer)
    }

    /// From now on nobody is admitted.
    pub(super) fn drain(&self) {
        lock(&self.table).draining = true;
    }
}

impl Session {
    /// Decides about a session that is proven: the side that accepted it calls this before it says so.
    ///
    /// # Errors
    /// [`Refusal::Blocked`], [`Refusal::Full`] (the node is shutting down) or [`Refusal::Duplicate`]: another session
    /// with this peer is there, or is being admitted and is to be kept.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        let mut table = lock(&self.sessions.table);
        if table.blocked.contains_key(&self.peer) {
            return Err(Refusal::Blocked);
        }
        if table.draining {
            return Err(Refusal::Full);
        }
        let local = self.sessions.local;
        let of_peer = table.by_peer.entry(self.peer).or_default();
        let Some(mine) = of_peer.iter().position(|entry| entry.number == self.number) else {
            return Err(Refusal::Malformed);
        };
        let side = |entry: &Entry| (entry.transport, if entry.dialled_here { local } else { self.peer });
        let lost = of_peer.iter().enumerate().filter(|(index, _)| *index != mine).any(|(_, other)| {
            other.admitted
                || (!of_peer[mine].dialled_here && other.dialled_here && is_kept(side(other), side(&of_peer[mine])))
        });
        if lost {
            return Err(Refusal::Duplicate);
        }
        of_peer[mine].admitted = true;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = lock(&self.sessions.table);
        if let Some(of_peer) = table.by_peer.get_mut(&self.peer) {
            of_peer.retain(|entry| entry.number != self.number);
            if of_peer.is_empty() {
                table.by_peer.remove(&self.peer);
            }
        }
    }
}

/// A muxer that keeps its session on the books while it lives, and ends when the session is cut off.
pub(super) struct Guarded<M> {
    muxer: M,
    meter: Arc<Meter>,
    _session: Session,
}

impl<M> Guarded<M> {
    pub(super) fn new(muxer: M, meter: Arc<Meter>, session: Session) -> Self {
        Self { muxer, meter, _session: session }
    }
}

impl<M> StreamMuxer for Guarded<M>
where
    M: StreamMuxer + Unpin,
    M::Error: Send + Sync + 'static,
{
    type Substream = M::Substream;
    type Error = std::io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll_inbound(cx).map_err(std::io::Error::other)
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll_outbound(cx).map_err(std::io::Error::other)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let this = self.get_mut();
        if this.meter.is_cut_off(cx).is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.muxer).poll_close(cx).map_err(std::io::Error::other)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let this = self.get_mut();
        if let Some(why) = this.meter.is_cut_off(cx) {
            return Poll::Ready(Err(std::io::Error::other(why)));
        }
        Pin::new(&mut this.muxer).poll(cx).map_err(std::io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_peers() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        if a.to_bytes() < b.to_bytes() { (a, b) } else { (b, a) }
    }

    fn meter() -> Arc<Meter> {
        Arc::default()
    }

    /// Both dial at once; each acceptor decides with both sessions on its books.
    fn kept_when_both_dial(small_dials: Transport, large_dials: Transport) -> (bool, bool) {
        let (small, large) = two_peers();
        let (at_small, at_large) = (Sessions::new(small), Sessions::new(large));
        let _a = at_small.dialled(large, small_dials, meter()).unwrap();
        let _b = at_large.dialled(small, large_dials, meter()).unwrap();
        let small_decides = at_small.accepted(large, large_dials, meter()).admit();
        let large_decides = at_large.accepted(small, small_dials, meter()).admit();
        (large_decides.is_ok(), small_decides.is_ok())
    }

    #[test]
    fn of_two_simultaneous_dials_exactly_one_is_kept_and_tcp_is_preferred() {
        use Transport::{Quic, Tcp};
        assert_eq!(kept_when_both_dial(Tcp, Tcp), (false, true));
        assert_eq!(kept_when_both_dial(Quic, Quic), (false, true));
        assert_eq!(kept_when_both_dial(Tcp, Quic), (true, false));
        assert_eq!(kept_when_both_dial(Quic, Tcp), (false, true));
    }

    #[test]
    fn a_session_that_came_first_wins_over_any_later_one() {
        let (small, large) = two_peers();
        let sessions = Sessions::new(small);
        let first = sessions.accepted(large, Transport::Quic, meter());
        first.admit().unwrap();
        assert_eq!(sessions.accepted(large, Transport::Tcp, meter()).admit(), Err(Refusal::Duplicate));
        assert_eq!(sessions.dialled(large, Transport::Tcp, meter()).unwrap_err(), Refusal::Duplicate);
        drop(first);
        let second = sessions.dialled(large, Transport::Tcp, meter()).unwrap();
        assert_eq!(sessions.dialled(large, Transport::Tcp, meter()).unwrap_err(), Refusal::Duplicate);
        second.admit().unwrap();
    }

    #[test]
    fn blocked_peers_are_not_admitted_until_allowed() {
        let (small, large) = two_peers();
        let sessions = Sessions::new(small);
        sessions.block(large, "lied");
        assert_eq!(sessions.accepted(large, Transport::Tcp, meter()).admit(), Err(Refusal::Blocked));
        assert_eq!(sessions.dialled(large, Transport::Tcp, meter()).unwrap_err(), Refusal::Blocked);
        sessions.allow(&large);
        sessions.accepted(large, Transport::Tcp, meter()).admit().unwrap();
    }

    #[test]
    fn traffic_is_that_of_the_admitted_connections() {
        let (small, large) = two_peers();
        let sessions = Sessions::new(small);
        let bytes = meter();
        bytes.received(10);
        let session = sessions.accepted(large, Transport::Tcp, Arc::clone(&bytes));
        assert_eq!(sessions.traffic(&large), Traffic::default());
        session.admit().unwrap();
        bytes.sent(3);
        assert_eq!(sessions.traffic(&large), Traffic { received_bytes: 10, sent_bytes: 3 });
        drop(session);
        assert_eq!(sessions.traffic(&large), Traffic::default());
    }
}
