//! The pool as one node sees it at one moment: a plain value that the rest of the node reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::advert::{Advert, LinkAdvert, Term};

/// What a node knows of its pool.
#[derive(Clone, Debug)]
pub struct View {
    /// This node.
    pub local: PeerId,
    /// The advert of this node.
    pub own: Arc<Advert>,
    /// The term that this node follows; `None` while no master is known.
    pub term: Option<Term>,
    /// The adverts of all other nodes of the pool.
    pub nodes: BTreeMap<PeerId, Arc<Advert>>,
    /// Peers that this node is connected to.
    pub connected: BTreeSet<PeerId>,
}

impl View {
    /// Whether this node is the master.
    pub fn is_master(&self) -> bool {
        self.master() == Some(self.local)
    }

    /// The master.
    pub fn master(&self) -> Option<PeerId> {
        self.term.map(|term| term.master)
    }

    /// The advert of `peer`, or of this node.
    pub fn advert(&self, peer: &PeerId) -> Option<&Arc<Advert>> {
        if *peer == self.local { Some(&self.own) } else { self.nodes.get(peer) }
    }

    /// The adverts of this node and of every other.
    pub fn everyone(&self) -> impl Iterator<Item = &Arc<Advert>> + Clone {
        std::iter::once(&self.own).chain(self.nodes.values())
    }

    /// Whether a model is dropped, as this node knows.
    pub fn is_dropped(&self, model: &Digest) -> bool {
        self.own.drops.iter().any(|record| record.model == *model && record.dropped)
    }

    /// The link between two nodes as `from` measured it. It counts only if both nodes advertise it: a node's
    /// own claim is not enough.
    pub fn link(&self, from: &PeerId, to: &PeerId) -> Option<&LinkAdvert> {
        let side = |one: &PeerId, other: &PeerId| self.advert(one)?.links.iter().find(|link| link.to == *other);
        side(to, from).and(side(from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{advert_of, link_to};
    use crate::test_peers::fresh_peer;

    #[test]
    fn a_link_counts_only_if_both_ends_advertise_it() {
        let (local, peer, liar) = (fresh_peer(), fresh_peer(), fresh_peer());
        let link = |to, bytes_per_s| LinkAdvert { bytes_per_s, ..link_to(to) };
        let node = |peer, links| Advert { links, ..advert_of(peer) };
        let view = View {
            local,
            own: Arc::new(node(local, vec![link(peer, 100.0)])),
            term: None,
            nodes: [node(peer, vec![link(local, 50.0)]), node(liar, vec![link(local, 9e9), link(peer, 9e9)])]
                .map(|advert| (advert.peer, Arc::new(advert)))
                .into(),
            connected: BTreeSet::from([peer]),
        };
        let speed = |from: &PeerId, to: &PeerId| view.link(from, to).map(|link| link.bytes_per_s);
        assert_eq!(speed(&local, &peer), Some(100.0));
        assert_eq!(speed(&peer, &local), Some(50.0));
        for honest in [local, peer] {
            assert_eq!((speed(&liar, &honest), speed(&honest, &liar)), (None, None), "only the liar advertises it");
        }
    }

    #[test]
    fn the_master_is_the_one_of_the_term_that_this_node_follows() {
        let [local, peer, unknown] = [fresh_peer(), fresh_peer(), fresh_peer()];
        let view = |master: Option<PeerId>| View {
            local,
            own: Arc::new(advert_of(local)),
            term: master.map(|master| Term { counter: 1, master }),
            nodes: BTreeMap::from([(peer, Arc::new(advert_of(peer)))]),
            connected: BTreeSet::new(),
        };
        let is = |master| (view(master).master(), view(master).is_master());
        assert_eq!([None, Some(local), Some(peer)].map(is), [(None, false), (Some(local), true), (Some(peer), false)]);
        let of = |peer: &PeerId| view(None).advert(peer).map(|advert| advert.peer);
        assert_eq!([local, peer, unknown].map(|peer| of(&peer)), [Some(local), Some(peer), None]);
        let everyone: Vec<PeerId> = view(None).everyone().map(|advert| advert.peer).collect();
        assert_eq!(everyone, [local, peer]);
    }
}
