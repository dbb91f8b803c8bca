//! Handle of the pool for the rest of the node: reads the view and changes this node's advert. Cheap to clone, usable
//! from any thread. The driver on the network thread does the work.

use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;
use pangea_client::Topology;
use pangea_control::net::TrafficRate;
use tokio::sync::{Notify, watch};

use super::{Advert, View, topology};
use crate::net::Network;

/// The pool as this node sees it.
#[derive(Clone)]
pub struct Pool {
    pub(super) local: PeerId,
    pub(super) own: Arc<Mutex<Advert>>,
    pub(super) said: Arc<Notify>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) network: Network,
}

impl Pool {
    /// The current master, if known.
    pub fn master(&self) -> Option<PeerId> {
        self.view().borrow().master()
    }

    /// This node's peer id.
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// The view of the pool; updated with every event.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The pool as a graph for people, with what passes over its links now.
    pub fn topology(&self) -> Topology {
        topology::of(&self.view.borrow(), |peer| self.traffic_rate(peer))
    }

    /// Bytes per second that this node exchanges with `peer` now.
    pub fn traffic_rate(&self, peer: &PeerId) -> TrafficRate {
        self.network.traffic_rate(peer)
    }

    /// Changes this node's advert. Changes are collected and published within a moment. Fields that the pool itself
    /// maintains (peer id and addresses, links, term) are overwritten.
    pub fn update_advert(&self, change: impl FnOnce(&mut Advert)) {
        self.note_in_advert(change);
        self.said.notify_one();
    }

    /// Like [`Pool::update_advert`], for values whose changes the pool looks at once a second.
    pub fn note_in_advert(&self, change: impl FnOnce(&mut Advert)) {
        change(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
