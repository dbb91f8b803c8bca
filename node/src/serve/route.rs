//! Where a model's layers are that a request may use: the stages of a chain, and whoever knows which chains there are. It
//! opens no session.

use std::sync::Arc;

use libp2p::PeerId;
use tokio::sync::watch;

use crate::pipeline::wire::StageAt;
use crate::pipeline::{ChainId, Pipeline};

/// A chain that a session can be opened at.
#[derive(Clone)]
pub struct Route {
    /// Which.
    pub chain: ChainId,
    /// Its stages; the first takes sessions in.
    pub stages: Vec<StageAt>,
    /// What is kept for as long as somebody may use it.
    pub kept: Option<Arc<KeptChain>>,
}

impl Route {
    /// Whether all of it is on this node.
    pub fn is_local(&self, local: PeerId) -> bool {
        self.stages.iter().all(|stage| stage.peer == local)
    }

    /// Whether a node computes part of it.
    pub fn uses(&self, peer: &PeerId) -> bool {
        self.stages.iter().any(|stage| stage.peer == *peer)
    }
}

/// Ends a chain on this node when nobody uses it any more.
pub struct KeptChain {
    /// Which.
    pub chain: ChainId,
    /// Whose.
    pub pipeline: Pipeline,
}

impl Drop for KeptChain {
    fn drop(&mut self) {
        self.pipeline.end(self.chain);
    }
}

/// What a route is to do without.
#[derive(Clone, Debug, Default)]
pub struct Without {
    /// Nodes that failed.
    pub peers: Vec<PeerId>,
    /// Placements whose chains did, though their nodes may be as good as any.
    pub epochs: Vec<u64>,
}

/// Which chains a model has.
pub trait Routes: Send + Sync {
    /// The best one now without these.
    fn best(&self, without: &Without) -> Option<Route>;

    /// Changes whenever there may be another.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Why there is no route and none will be while the pool is as it is, where that is certain.
    fn hopeless(&self) -> Option<String>;

    /// Somebody waits, and would take a chain on this node alone if it can have one.
    fn wish_local(&self);
}

/// The one chain of a model that this process computes alone.
pub struct Alone {
    route: Route,
    changed: watch::Sender<u64>,
}

impl Alone {
    /// This route and no other.
    pub fn new(route: Route) -> Alone {
        Alone { route, changed: watch::Sender::new(0) }
    }
}

impl Routes for Alone {
    fn best(&self, without: &Without) -> Option<Route> {
        (!without.peers.iter().any(|peer| self.route.uses(peer))).then(|| self.route.clone())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn hopeless(&self) -> Option<String> {
        None
    }

    fn wish_local(&self) {}
}
