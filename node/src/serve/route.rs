//! Where a model's layers are that a request may use: the stages of a chain, and whoever knows which chains there are. It
//! opens no session.

use std::sync::Arc;

use libp2p::PeerId;
use pangea_control::generation::Exclusions;
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

/// Which chains a model has.
pub trait Routes: Send + Sync {
    /// The best one now that does without the excluded nodes and placements.
    fn best(&self, exclusions: &Exclusions) -> Option<Route>;

    /// Changes whenever there may be another.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Why no route can be had while the pool is as it is, where that is certain.
    fn unplaceable(&self) -> Option<String>;

    /// Prepares a chain on this node alone, where it can hold the model: a request waits and would take it.
    fn request_local(&self);
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
    fn best(&self, exclusions: &Exclusions) -> Option<Route> {
        (!exclusions.peers.iter().any(|peer| self.route.uses(peer))).then(|| self.route.clone())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn unplaceable(&self) -> Option<String> {
        None
    }

    fn request_local(&self) {}
}
