//! Open connections of a node: each one's bytes, the rate of each peer's, and the switch that cuts a connection off.
//! `pangea_control::net::connection_table` decides which of two connections to one peer lives, and who is blocked. This
//! file never reads or writes a socket.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use pangea_control::Time;
use pangea_control::net::admission::Refusal;
use pangea_control::net::connection_table::{ConnectionNumber, ConnectionTable};
use pangea_control::net::traffic_rates::TrafficRates;
use pangea_control::net::{Traffic, TrafficRate, Transport};

/// Peers whose bytes are counted separately: more than most pools have, and few enough that a large pool does not fill a database of
/// metrics. The bytes of further peers are counted together.
pub(super) const PEERS_COUNTED: usize = 64;

/// Byte counters of one connection, and the switch that cuts it off.
#[derive(Debug, Default)]
pub(super) struct ConnectionMeter {
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    cut: Mutex<Option<String>>,
    waker: AtomicWaker,
}

impl ConnectionMeter {
    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_to(&self, traffic: &mut Traffic) {
        traffic.received_bytes += self.received_bytes.load(Ordering::Relaxed);
        traffic.sent_bytes += self.sent_bytes.load(Ordering::Relaxed);
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
struct ConnectionsState {
    decisions: ConnectionTable,
    /// One meter per connection in `decisions`.
    meters: HashMap<ConnectionNumber, Arc<ConnectionMeter>>,
    /// Bytes per second of the admitted connections.
    rates: TrafficRates,
    /// Bytes of the connections that ended.
    ended: Traffic,
    /// Connected peers whose bytes are counted separately, up to [`PEERS_COUNTED`]: those that connected first.
    counted: BTreeSet<PeerId>,
    /// Bytes of the admitted connections to other peers that ended.
    others_ended: Traffic,
}

/// Bytes exchanged with the peers that are connected now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TrafficByPeer {
    /// Bytes exchanged with each peer that is counted separately, over its current connection.
    pub(super) counted: Vec<(PeerId, Traffic)>,
    /// Bytes exchanged with all other peers together, those that are gone included, so that the sum never falls.
    pub(super) others: Traffic,
}

/// All connections of a node. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct PeerConnections {
    table: Arc<Mutex<ConnectionsState>>,
}

/// One connection; dropping it removes it from the table.
#[derive(Debug)]
pub(super) struct PeerConnection {
    connections: PeerConnections,
    peer: PeerId,
    number: ConnectionNumber,
}

impl PeerConnections {
    pub(super) fn new(local: PeerId) -> Self {
        let table = ConnectionsState {
            decisions: ConnectionTable::new(local),
            meters: HashMap::new(),
            rates: TrafficRates::default(),
            ended: Traffic::default(),
            counted: BTreeSet::new(),
            others_ended: Traffic::default(),
        };
        Self { table: Arc::new(Mutex::new(table)) }
    }

    /// Adds a connection that this node dialled.
    ///
    /// # Errors
    /// Those of [`ConnectionTable::dialled`].
    pub(super) fn dialled(
        &self,
        peer: PeerId,
        transport: Transport,
        meter: Arc<ConnectionMeter>,
    ) -> Result<PeerConnection, Refusal> {
        let mut table = lock(&self.table);
        let number = table.decisions.dialled(peer, transport)?;
        table.meters.insert(number, meter);
        Ok(PeerConnection { connections: self.clone(), peer, number })
    }

    /// Adds a connection that `peer` dialled.
    pub(super) fn accepted(&self, peer: PeerId, transport: Transport, meter: Arc<ConnectionMeter>) -> PeerConnection {
        let mut table = lock(&self.table);
        let number = table.decisions.accepted(peer, transport);
        table.meters.insert(number, meter);
        PeerConnection { connections: self.clone(), peer, number }
    }

    /// Bytes exchanged with `peer` over its admitted connections.
    pub(super) fn traffic(&self, peer: &PeerId) -> Traffic {
        let table = lock(&self.table);
        let mut traffic = Traffic::default();
        for meter in table.decisions.admitted(peer).filter_map(|number| table.meters.get(&number)) {
            meter.add_to(&mut traffic);
        }
        traffic
    }

    /// Counts what passed over the admitted connections until `now`, for [`PeerConnections::rate`].
    pub(super) fn sample_rates(&self, now: Time) {
        let mut table = lock(&self.table);
        let ConnectionsState { decisions, meters, rates, .. } = &mut *table;
        let counted = decisions.all_admitted().filter_map(|(peer, number)| {
            let mut traffic = Traffic::default();
            meters.get(&number)?.add_to(&mut traffic);
            Some((*peer, traffic))
        });
        rates.sample(counted, now);
    }

    /// Bytes per second that are exchanged with `peer` over its admitted connection, as of the last sample.
    pub(super) fn rate(&self, peer: &PeerId) -> TrafficRate {
        lock(&self.table).rates.of(peer)
    }

    /// Bytes exchanged over all connections that there were.
    pub(super) fn total_traffic(&self) -> Traffic {
        let table = lock(&self.table);
        let mut traffic = table.ended;
        table.meters.values().for_each(|meter| meter.add_to(&mut traffic));
        traffic
    }

    /// Bytes exchanged over admitted connections, by peer.
    pub(super) fn traffic_by_peer(&self) -> TrafficByPeer {
        let table = lock(&self.table);
        let mut traffic = TrafficByPeer { counted: Vec::new(), others: table.others_ended };
        for (peer, number) in table.decisions.all_admitted() {
            let Some(meter) = table.meters.get(&number) else { continue };
            if table.counted.contains(peer) {
                let mut of_peer = Traffic::default();
                meter.add_to(&mut of_peer);
                traffic.counted.push((*peer, of_peer));
            } else {
                meter.add_to(&mut traffic.others);
            }
        }
        traffic
    }

    /// The peers that are connected now and counted separately.
    pub(super) fn counted_peers(&self) -> BTreeSet<PeerId> {
        lock(&self.table).counted.clone()
    }

    /// Ends every connection to `peer` at once, without notifying it.
    pub(super) fn cut_off(&self, peer: &PeerId, why: &str) {
        let table = lock(&self.table);
        for meter in table.decisions.connections(peer).filter_map(|number| table.meters.get(&number)) {
            meter.cut_off(why);
        }
    }

    pub(super) fn block(&self, peer: PeerId) {
        lock(&self.table).decisions.block(peer);
    }

    pub(super) fn allow(&self, peer: &PeerId) {
        lock(&self.table).decisions.allow(peer);
    }

    pub(super) fn is_blocked(&self, peer: &PeerId) -> bool {
        lock(&self.table).decisions.is_blocked(peer)
    }

    /// Refuses all connections from now on.
    pub(super) fn drain(&self) {
        lock(&self.table).decisions.drain();
    }
}

impl PeerConnection {
    /// Decides about a connection whose peer has proved that it may connect; the accepting side asks before it
    /// confirms the admission.
    ///
    /// # Errors
    /// Those of [`ConnectionTable::admit`].
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        let mut table = lock(&self.connections.table);
        table.decisions.admit(self.peer, self.number)?;
        if table.counted.len() < PEERS_COUNTED {
            table.counted.insert(self.peer);
        }
        Ok(())
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        let mut table = lock(&self.connections.table);
        let table = &mut *table;
        // A peer has one admitted connection at most.
        let was_admitted = table.decisions.admitted(&self.peer).any(|number| number == self.number);
        let was_counted = was_admitted && table.counted.remove(&self.peer);
        table.decisions.ended(self.peer, self.number);
        if let Some(meter) = table.meters.remove(&self.number) {
            meter.add_to(&mut table.ended);
            if was_admitted && !was_counted {
                meter.add_to(&mut table.others_ended);
            }
        }
    }
}

/// A muxer that keeps its connection in the table while it lives, and fails once the connection is cut off.
pub(super) struct TrackedMuxer<M> {
    muxer: M,
    meter: Arc<ConnectionMeter>,
    _connection: PeerConnection,
}

impl<M> TrackedMuxer<M> {
    pub(super) fn new(muxer: M, meter: Arc<ConnectionMeter>, connection: PeerConnection) -> Self {
        Self { muxer, meter, _connection: connection }
    }
}

impl<M> StreamMuxer for TrackedMuxer<M>
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

    #[test]
    fn traffic_counts_admitted_connections_only() {
        let (local, peer) = (PeerId::random(), PeerId::random());
        let connections = PeerConnections::new(local);
        let bytes: Arc<ConnectionMeter> = Arc::default();
        bytes.received(10);
        let connection = connections.accepted(peer, Transport::Tcp, Arc::clone(&bytes));
        assert_eq!(connections.traffic(&peer), Traffic::default());
        connection.admit().unwrap();
        bytes.sent(3);
        assert_eq!(connections.traffic(&peer), Traffic { received_bytes: 10, sent_bytes: 3 });
        drop(connection);
        assert_eq!(connections.traffic(&peer), Traffic::default());
        assert!(lock(&connections.table).meters.is_empty());
    }

    #[test]
    fn rates_are_those_of_admitted_connections() {
        let connections = PeerConnections::new(PeerId::random());
        let (peer, stranger) = (PeerId::random(), PeerId::random());
        let meters: [Arc<ConnectionMeter>; 2] = Default::default();
        let admitted = connections.accepted(peer, Transport::Tcp, Arc::clone(&meters[0]));
        admitted.admit().unwrap();
        let _stranger = connections.accepted(stranger, Transport::Tcp, Arc::clone(&meters[1]));
        for second in 0..3 {
            connections.sample_rates(Time::from_secs(second));
            meters.iter().for_each(|meter| meter.sent(100));
            meters.iter().for_each(|meter| meter.received(10));
        }
        assert_eq!(connections.rate(&peer), TrafficRate { received_bytes_per_s: 10.0, sent_bytes_per_s: 100.0 });
        assert_eq!(connections.rate(&stranger), TrafficRate::default());
        drop(admitted);
        connections.sample_rates(Time::from_secs(3));
        assert_eq!(connections.rate(&peer), TrafficRate::default());
    }

    /// An admitted connection to a new peer, over which this many bytes were received.
    fn connected(connections: &PeerConnections, received: usize) -> (PeerId, PeerConnection) {
        let (peer, meter): (_, Arc<ConnectionMeter>) = (PeerId::random(), Arc::default());
        meter.received(received);
        let connection = connections.accepted(peer, Transport::Tcp, meter);
        connection.admit().unwrap();
        (peer, connection)
    }

    #[test]
    fn peers_beyond_the_limit_are_counted_together_and_their_sum_never_falls() {
        let connections = PeerConnections::new(PeerId::random());
        let received = |received_bytes| Traffic { received_bytes, sent_bytes: 0 };
        let mut counted: Vec<_> = (0..PEERS_COUNTED).map(|_| connected(&connections, 1)).collect();
        let (_, first_other) = connected(&connections, 10);
        let (_, _second_other) = connected(&connections, 100);
        let traffic = connections.traffic_by_peer();
        assert_eq!((traffic.counted.len(), traffic.others), (PEERS_COUNTED, received(110)));
        assert!(traffic.counted.iter().all(|(_, of_peer)| *of_peer == received(1)));
        drop(first_other);
        assert_eq!(connections.traffic_by_peer().others, received(110));
        // The place of a peer that is gone goes to the next one that connects; its bytes are nobody else's.
        let (gone, connection) = counted.remove(0);
        drop(connection);
        let (next, _connection) = connected(&connections, 7);
        let traffic = connections.traffic_by_peer();
        assert_eq!((traffic.counted.len(), traffic.others), (PEERS_COUNTED, received(110)));
        assert!(traffic.counted.contains(&(next, received(7))));
        assert!(traffic.counted.iter().all(|(peer, _)| *peer != gone));
    }

    #[test]
    fn a_connection_that_is_not_admitted_is_no_peers() {
        let connections = PeerConnections::new(PeerId::random());
        let (peer, _connection) = connected(&connections, 5);
        let stranger = connections.accepted(PeerId::random(), Transport::Tcp, Arc::default());
        let duplicate = connections.accepted(peer, Transport::Tcp, Arc::default());
        assert!(duplicate.admit().is_err());
        drop((stranger, duplicate));
        let traffic = connections.traffic_by_peer();
        assert_eq!(traffic.counted, [(peer, Traffic { received_bytes: 5, sent_bytes: 0 })]);
        assert_eq!(traffic.others, Traffic::default());
    }

    #[test]
    fn total_traffic_keeps_the_bytes_of_connections_that_ended() {
        let connections = PeerConnections::new(PeerId::random());
        let meters: [Arc<ConnectionMeter>; 2] = Default::default();
        let [first, second] = meters.each_ref().map(|meter| {
            meter.received(10);
            meter.sent(3);
            connections.accepted(PeerId::random(), Transport::Tcp, Arc::clone(meter))
        });
        let both = Traffic { received_bytes: 20, sent_bytes: 6 };
        assert_eq!(connections.total_traffic(), both);
        drop(first);
        assert_eq!(connections.total_traffic(), both);
        drop(second);
        assert_eq!(connections.total_traffic(), both);
    }
}
