//! What is counted of the connections with peers, for `/metrics`. Connections and bytes are `peer_connections`', round trips the
//! directory's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libp2p::PeerId;
use pangea_control::net::Traffic;
use pangea_control::net::admission::Refusal;

use super::peer_connections::{PeerConnections, TrafficByPeer};
use crate::observe::Observer;
use crate::peers::Peers;

/// Label of the peers that are counted together.
const OTHERS: &str = "other";

/// Connections of this node that peers refused, by reason. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedByPeers(Arc<[AtomicU64; Refusal::ALL.len()]>);

impl RefusedByPeers {
    /// A peer refused a connection of this node.
    pub(super) fn count(&self, refusal: Refusal) {
        let of_reason = Refusal::ALL.iter().zip(self.0.iter()).find(|(reason, _)| **reason == refusal);
        if let Some((_, count)) = of_reason {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Vec<([(&'static str, &'static str); 1], u64)> {
        let counts = Refusal::ALL.iter().zip(self.0.iter());
        counts.map(|(reason, count)| ([("reason", reason.name())], count.load(Ordering::Relaxed))).collect()
    }
}

/// Registers what is counted of connections with `observer`.
pub(super) fn observe(connections: &PeerConnections, refused_by: &RefusedByPeers, peers: &Peers, observer: &Observer) {
    let (received, sent) = (connections.clone(), connections.clone());
    observer.count("network_received_bytes", "Bytes received from peers, over all connections", move || {
        received.total_traffic().received_bytes
    });
    observer.count("network_sent_bytes", "Bytes sent to peers, over all connections", move || {
        sent.total_traffic().sent_bytes
    });
    let (received, sent) = (connections.clone(), connections.clone());
    let help = "Bytes received from each connected peer, over its current connection";
    observer.counts("peer_received_bytes", help, move || {
        by_peer(received.traffic_by_peer(), |traffic| traffic.received_bytes)
    });
    let help = "Bytes sent to each connected peer, over its current connection";
    observer.counts("peer_sent_bytes", help, move || by_peer(sent.traffic_by_peer(), |traffic| traffic.sent_bytes));
    let (counted, peers) = (connections.clone(), peers.clone());
    observer.gauges("peer_rtt_seconds", "Round-trip time to each connected peer", move || {
        let counted = counted.counted_peers();
        peers.read(|directory| {
            let rtt = |peer: &PeerId| Some(directory.get(peer)?.rtt?.as_secs_f64());
            counted.iter().filter_map(|peer| Some(([("peer", peer.to_string())], rtt(peer)?))).collect()
        })
    });
    let refused_by = refused_by.clone();
    let help = "Connections of this node that peers refused, by reason";
    observer.counts("refused_by_peers", help, move || refused_by.read());
}

/// One number of each counted peer's traffic, and of the others' together.
fn by_peer(traffic: TrafficByPeer, number: impl Fn(Traffic) -> u64) -> Vec<([(&'static str, String); 1], u64)> {
    let TrafficByPeer { counted, others } = traffic;
    let counted = counted.into_iter().map(|(peer, traffic)| (peer.to_string(), traffic));
    counted.chain([(OTHERS.to_owned(), others)]).map(|(peer, traffic)| ([("peer", peer)], number(traffic))).collect()
}
