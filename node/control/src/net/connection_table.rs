//! Decides which connections to peers live, from the moment the remote's peer id is authenticated to the end of the
//! connection: which of two connections to one peer is kept, and which peers are blocked. It sees no sockets:
//! connections are numbers, and the driver reports when each one starts and ends.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;

use super::Transport;
use super::admission::Refusal;

/// Identifies a connection, across all peers and forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionNumber(u64);

#[derive(Debug)]
struct Entry {
    number: ConnectionNumber,
    dialled_here: bool,
    transport: Transport,
    admitted: bool,
}

/// The connections of a node, admitted or being admitted.
#[derive(Debug)]
pub struct ConnectionTable {
    local: PeerId,
    next_number: u64,
    by_peer: BTreeMap<PeerId, Vec<Entry>>,
    blocked: BTreeSet<PeerId>,
    draining: bool,
}

/// Whether the first of two connections being admitted at once is kept: TCP before QUIC (2–4 times faster), then
/// the one that the node with the larger peer id dialled. Both sides decide the same.
fn is_kept((transport, dialer): (Transport, PeerId), (other_transport, other_dialer): (Transport, PeerId)) -> bool {
    match (transport, other_transport) {
        (Transport::Tcp, Transport::Quic) => true,
        (Transport::Quic, Transport::Tcp) => false,
        _ => dialer.to_bytes() > other_dialer.to_bytes(),
    }
}

impl ConnectionTable {
    /// The empty table of the node `local`.
    pub fn new(local: PeerId) -> ConnectionTable {
        ConnectionTable { local, next_number: 0, by_peer: BTreeMap::new(), blocked: BTreeSet::new(), draining: false }
    }

    /// Adds a connection that this node dialled. [`ConnectionTable::admit`] admits it later.
    ///
    /// # Errors
    /// [`Refusal::Duplicate`]: the peer is connected already, or this node is being admitted over another connection;
    /// [`Refusal::Blocked`].
    pub fn dialled(&mut self, peer: PeerId, transport: Transport) -> Result<ConnectionNumber, Refusal> {
        if self.is_blocked(&peer) {
            return Err(Refusal::Blocked);
        }
        let of_peer = self.by_peer.get(&peer).map_or(&[][..], Vec::as_slice);
        if of_peer.iter().any(|entry| entry.admitted || entry.dialled_here) {
            return Err(Refusal::Duplicate);
        }
        Ok(self.enter(peer, transport, true))
    }

    /// Adds a connection that `peer` dialled.
    pub fn accepted(&mut self, peer: PeerId, transport: Transport) -> ConnectionNumber {
        self.enter(peer, transport, false)
    }

    fn enter(&mut self, peer: PeerId, transport: Transport, dialled_here: bool) -> ConnectionNumber {
        let number = ConnectionNumber(self.next_number);
        self.next_number += 1;
        self.by_peer.entry(peer).or_default().push(Entry { number, dialled_here, transport, admitted: false });
        number
    }

    /// Decides about a connection whose peer has proved that it may connect; the accepting side asks before it
    /// confirms the admission.
    ///
    /// # Errors
    /// [`Refusal::Blocked`], [`Refusal::Full`] (the node is shutting down) or [`Refusal::Duplicate`]: another connection
    /// with this peer exists, or is being admitted and takes precedence.
    pub fn admit(&mut self, peer: PeerId, number: ConnectionNumber) -> Result<(), Refusal> {
        if self.is_blocked(&peer) {
            return Err(Refusal::Blocked);
        }
        if self.draining {
            return Err(Refusal::Full);
        }
        let local = self.local;
        let of_peer = self.by_peer.entry(peer).or_default();
        let Some(mine) = of_peer.iter().position(|entry| entry.number == number) else {
            return Err(Refusal::Malformed);
        };
        let side = |entry: &Entry| (entry.transport, if entry.dialled_here { local } else { peer });
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

    /// Removes a connection that ended, admitted or not.
    pub fn ended(&mut self, peer: PeerId, number: ConnectionNumber) {
        if let Some(of_peer) = self.by_peer.get_mut(&peer) {
            of_peer.retain(|entry| entry.number != number);
            if of_peer.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// The admitted connections to `peer`.
    pub fn admitted(&self, peer: &PeerId) -> impl Iterator<Item = ConnectionNumber> {
        self.by_peer.get(peer).into_iter().flatten().filter(|entry| entry.admitted).map(|entry| entry.number)
    }

    /// Every admitted connection, with its peer.
    pub fn all_admitted(&self) -> impl Iterator<Item = (&PeerId, ConnectionNumber)> {
        let admitted = |entry: &&Entry| entry.admitted;
        self.by_peer
            .iter()
            .flat_map(move |(peer, of_peer)| of_peer.iter().filter(admitted).map(move |entry| (peer, entry.number)))
    }

    /// All connections to `peer`, including those being admitted.
    pub fn connections(&self, peer: &PeerId) -> impl Iterator<Item = ConnectionNumber> {
        self.by_peer.get(peer).into_iter().flatten().map(|entry| entry.number)
    }

    /// Refuses `peer` from now on, until [`ConnectionTable::allow`].
    pub fn block(&mut self, peer: PeerId) {
        self.blocked.insert(peer);
    }

    /// Ends the refusal of `peer`.
    pub fn allow(&mut self, peer: &PeerId) {
        self.blocked.remove(peer);
    }

    /// Whether `peer` is refused.
    pub fn is_blocked(&self, peer: &PeerId) -> bool {
        self.blocked.contains(peer)
    }

    /// Refuses all connections from now on.
    pub fn drain(&mut self) {
        self.draining = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::fresh_peer;

    fn two_peers() -> (PeerId, PeerId) {
        let (a, b) = (fresh_peer(), fresh_peer());
        if a.to_bytes() < b.to_bytes() { (a, b) } else { (b, a) }
    }

    /// Both nodes dial at once; each acceptor decides with both connections in its table.
    fn kept_when_both_dial(small_dials: Transport, large_dials: Transport) -> (bool, bool) {
        let (small, large) = two_peers();
        let (mut at_small, mut at_large) = (ConnectionTable::new(small), ConnectionTable::new(large));
        at_small.dialled(large, small_dials).unwrap();
        at_large.dialled(small, large_dials).unwrap();
        let incoming = at_small.accepted(large, large_dials);
        let small_decides = at_small.admit(large, incoming);
        let incoming = at_large.accepted(small, small_dials);
        let large_decides = at_large.admit(small, incoming);
        (large_decides.is_ok(), small_decides.is_ok())
    }

    #[test]
    fn exactly_one_of_two_simultaneous_dials_is_kept_preferably_tcp() {
        use Transport::{Quic, Tcp};
        assert_eq!(kept_when_both_dial(Tcp, Tcp), (false, true));
        assert_eq!(kept_when_both_dial(Quic, Quic), (false, true));
        assert_eq!(kept_when_both_dial(Tcp, Quic), (true, false));
        assert_eq!(kept_when_both_dial(Quic, Tcp), (false, true));
    }

    #[test]
    fn the_first_connection_wins_over_any_later_one() {
        let (small, large) = two_peers();
        let mut table = ConnectionTable::new(small);
        let first = table.accepted(large, Transport::Quic);
        table.admit(large, first).unwrap();
        let later = table.accepted(large, Transport::Tcp);
        assert_eq!(table.admit(large, later), Err(Refusal::Duplicate));
        table.ended(large, later);
        assert_eq!(table.dialled(large, Transport::Tcp), Err(Refusal::Duplicate));
        table.ended(large, first);
        let second = table.dialled(large, Transport::Tcp).unwrap();
        assert_eq!(table.dialled(large, Transport::Tcp), Err(Refusal::Duplicate));
        table.admit(large, second).unwrap();
        assert_eq!(table.admitted(&large).collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn blocked_peers_are_not_admitted_until_allowed() {
        let (small, large) = two_peers();
        let mut table = ConnectionTable::new(small);
        table.block(large);
        let incoming = table.accepted(large, Transport::Tcp);
        assert_eq!(table.admit(large, incoming), Err(Refusal::Blocked));
        assert_eq!(table.dialled(large, Transport::Tcp), Err(Refusal::Blocked));
        table.allow(&large);
        table.admit(large, incoming).unwrap();
    }

    #[test]
    fn a_draining_node_admits_nobody_and_an_ended_connection_is_not_admitted() {
        let (small, large) = two_peers();
        let mut table = ConnectionTable::new(small);
        let incoming = table.accepted(large, Transport::Tcp);
        table.ended(large, incoming);
        assert_eq!(table.admit(large, incoming), Err(Refusal::Malformed));
        table.drain();
        let incoming = table.accepted(large, Transport::Tcp);
        assert_eq!(table.admit(large, incoming), Err(Refusal::Full));
        assert_eq!((table.admitted(&large).count(), table.connections(&large).count()), (0, 1));
    }
}
