//! The other nodes that take part in votes, as their adverts say, and what people are told of them: who joined, who left, who
//! was there a short while ago. Who votes on which request is decided in [`voters`](super::voters).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;

use crate::Time;
use crate::pool::{Advert, View};

/// Time after its last advert for which a node that left is listed.
pub const GONE_KEPT: Duration = Duration::from_secs(60);

/// Nodes that left and are listed at most: more than leave a pool within [`GONE_KEPT`] without somebody looking into it.
pub const GONE_MAX: usize = 64;

/// Where a node of the federation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// This node is connected to it.
    Connected,
    /// Its adverts arrive through other nodes only, so that it cannot be asked for samples.
    Relayed,
    /// It was there less than [`GONE_KEPT`] ago.
    Gone,
}

impl PeerState {
    /// The name on every surface.
    pub fn name(self) -> &'static str {
        match self {
            PeerState::Connected => "connected",
            PeerState::Relayed => "relayed",
            PeerState::Gone => "gone",
        }
    }
}

/// Another node that takes part in votes.
#[derive(Clone, Debug, PartialEq)]
pub struct FederationPeer {
    /// Its last advert.
    pub advert: Arc<Advert>,
    /// When that arrived.
    pub seen: Time,
    /// Where it is.
    pub state: PeerState,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A node takes part that did not before.
    Joined(Arc<Advert>),
    /// A node takes part no more.
    Left(Arc<Advert>),
}

/// The other nodes that take part in votes.
#[derive(Debug, Default)]
pub struct FederationPeers {
    peers: BTreeMap<PeerId, FederationPeer>,
}

impl FederationPeers {
    /// Takes the pool at one moment; returns what has changed, in the order of the peer ids.
    pub fn update(&mut self, view: &View, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        for (peer, known) in &mut self.peers {
            if known.state != PeerState::Gone && !view.nodes.get(peer).is_some_and(|advert| takes_part(advert)) {
                known.state = PeerState::Gone;
                changes.push(Change::Left(Arc::clone(&known.advert)));
            }
        }
        for (peer, advert) in view.nodes.iter().filter(|(_, advert)| takes_part(advert)) {
            let state = if view.connected.contains(peer) { PeerState::Connected } else { PeerState::Relayed };
            let before = self.peers.get(peer);
            let is_new = before.is_none_or(|before| !Arc::ptr_eq(&before.advert, advert));
            let seen = before.filter(|_| !is_new).map_or(now, |before| before.seen);
            if before.is_none_or(|before| before.state == PeerState::Gone) {
                changes.push(Change::Joined(Arc::clone(advert)));
            }
            self.peers.insert(*peer, FederationPeer { advert: Arc::clone(advert), seen, state });
        }
        self.forget(now);
        changes
    }

    /// Forgets nodes that left long ago, and of too many the longest gone.
    fn forget(&mut self, now: Time) {
        let is_gone = |known: &FederationPeer| known.state == PeerState::Gone;
        self.peers.retain(|_, known| !is_gone(known) || now.since(known.seen) < GONE_KEPT);
        let gone = self.peers.iter().filter(|(_, known)| is_gone(known));
        let mut order: Vec<(Time, PeerId)> = gone.map(|(peer, known)| (known.seen, *peer)).collect();
        order.sort_unstable();
        for (_, peer) in &order[..order.len().saturating_sub(GONE_MAX)] {
            self.peers.remove(peer);
        }
    }

    /// The nodes that take part, and those that left a short while ago, by peer id.
    pub fn list(&self) -> impl Iterator<Item = &FederationPeer> {
        self.peers.values()
    }

    /// Number of nodes that take part now.
    pub fn present(&self) -> usize {
        self.peers.values().filter(|known| known.state != PeerState::Gone).count()
    }
}

/// Whether a node votes: it says so, and computes for others.
pub fn takes_part(advert: &Advert) -> bool {
    advert.votes && advert.works
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pool::advert_of;
    use crate::test_peers::peer;

    fn voting(number: u64) -> Advert {
        Advert { votes: true, name: format!("node {number}"), ..advert_of(peer(number)) }
    }

    fn view(nodes: Vec<Advert>, connected: &[u64]) -> View {
        View {
            local: peer(1),
            own: Arc::new(advert_of(peer(1))),
            term: None,
            nodes: nodes.into_iter().map(|advert| (advert.peer, Arc::new(advert))).collect(),
            connected: connected.iter().map(|number| peer(*number)).collect::<BTreeSet<_>>(),
        }
    }

    fn seconds(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    /// `+` and the names of nodes that joined, `-` and those of nodes that left.
    fn told(changes: &[Change]) -> Vec<String> {
        let mut told: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Joined(advert) => format!("+{}", advert.name),
                Change::Left(advert) => format!("-{}", advert.name),
            })
            .collect();
        told.sort_unstable();
        told
    }

    fn listed(peers: &FederationPeers) -> Vec<(String, PeerState, Time)> {
        let mut listed: Vec<_> = peers.list().map(|peer| (peer.advert.name.clone(), peer.state, peer.seen)).collect();
        listed.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        listed
    }

    #[test]
    fn a_node_is_told_of_once_when_it_joins_and_once_when_it_leaves() {
        let mut peers = FederationPeers::default();
        let silent = Advert { votes: false, ..voting(3) };
        let client = Advert { works: false, ..voting(4) };
        let all = view(vec![voting(2), silent.clone(), client, voting(5)], &[2, 3, 4]);
        assert_eq!(told(&peers.update(&all, seconds(1))), ["+node 2", "+node 5"]);
        assert!(peers.update(&all, seconds(2)).is_empty());
        let named = |name: &str| name.to_owned();
        assert_eq!(
            listed(&peers),
            [(named("node 2"), PeerState::Connected, seconds(1)), (named("node 5"), PeerState::Relayed, seconds(1))]
        );
        assert_eq!(peers.present(), 2);
        // A newer advert is seen; a node that votes no more has left like one that is gone.
        let later = view(vec![Advert { sequence: 2, ..voting(2) }, Advert { votes: false, ..voting(5) }], &[2]);
        assert_eq!(told(&peers.update(&later, seconds(3))), ["-node 5"]);
        assert_eq!(
            listed(&peers),
            [(named("node 2"), PeerState::Connected, seconds(3)), (named("node 5"), PeerState::Gone, seconds(1))]
        );
        assert_eq!(peers.present(), 1);
        let back = view(vec![voting(2), voting(5)], &[2, 5]);
        assert_eq!(told(&peers.update(&back, seconds(4))), ["+node 5"]);
        assert_eq!(told(&peers.update(&view(Vec::new(), &[]), seconds(5))), ["-node 2", "-node 5"]);
        assert_eq!(peers.present(), 0);
        peers.update(&view(Vec::new(), &[]), seconds(4) + GONE_KEPT - Duration::from_millis(1));
        assert_eq!(listed(&peers).len(), 2);
        peers.update(&view(Vec::new(), &[]), seconds(4) + GONE_KEPT);
        assert_eq!(listed(&peers).len(), 0);
    }

    #[test]
    fn nodes_that_left_are_bounded_and_the_longest_gone_are_forgotten() {
        let mut peers = FederationPeers::default();
        for number in 0..100 {
            peers.update(&view(vec![voting(number)], &[]), Time::ZERO + Duration::from_millis(number));
        }
        let last = view(vec![], &[]);
        peers.update(&last, seconds(1));
        let listed = listed(&peers);
        assert_eq!(listed.len(), GONE_MAX);
        assert!(listed.iter().all(|(.., seen)| *seen >= Time::ZERO + Duration::from_millis(100 - GONE_MAX as u64)));
    }
}
