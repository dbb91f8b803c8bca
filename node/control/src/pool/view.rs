//! The pool as one node sees it at one moment: a plain value that the rest of the node reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use libp2p_identity::PeerId;

use super::advert::{Advert, LinkAdvert, Term};

/// What a node knows of its pool.
#[derive(Clone, Debug)]
pub struct View {
    /// This node.
    pub local: PeerId,
    /// The advert of this node.
    pub own: Arc<Advert>,
    /// The term that this node follows; none while no master is known.
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

    /// This node, then every other.
    pub fn everyone(&self) -> impl Iterator<Item = &Arc<Advert>> {
        std::iter::once(&self.own).chain(self.nodes.values())
    }

    /// The connection between two nodes, as `from` says or else as `to` does.
    pub fn link(&self, from: &PeerId, to: &PeerId) -> Option<&LinkAdvert> {
        let side = |one: &PeerId, other: &PeerId| self.advert(one)?.links.iter().find(|link| link.to == *other);
        side(from, to).or_else(|| side(to, from))
    }
}
