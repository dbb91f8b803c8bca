//! The chains of stages that a request may use, and the trait of their sources. No session is
//! opened here.

use std::sync::Arc;

use libp2p::PeerId;
use pangea_control::generation::Exclusions;
use tokio::sync::watch;

use crate::pipeline::wire::StageAt;
use crate::pipeline::{ChainId, Pipeline};

/// A chain at which sessions can be opened.
#[derive(Clone)]
pub struct Route {
    /// Id of the chain.
    pub chain: ChainId,
    /// Its stages; sessions are opened at the first one.
    pub stages: Vec<StageAt>,
    /// Keeps a local chain loaded while it is used.
    pub kept: Option<Arc<KeptChain>>,
}

impl Route {
    /// Whether all stages are on this node.
    pub fn is_local(&self, local: PeerId) -> bool {
        self.stages.iter().all(|stage| stage.peer == local)
    }

    /// Whether a node computes one of its stages.
    pub fn uses(&self, peer: &PeerId) -> bool {
        self.stages.iter().any(|stage| stage.peer == *peer)
    }
}

/// Unloads a chain on this node when dropped.
pub struct KeptChain {
    /// Id of the chain.
    pub chain: ChainId,
    /// The pipeline that holds it.
    pub pipeline: Pipeline,
}

impl Drop for KeptChain {
    fn drop(&mut self) {
        self.pipeline.end(self.chain);
    }
}

/// The chains of a model.
pub trait Routes: Send + Sync {
    /// The best current route without the excluded nodes and placements.
    fn best(&self, exclusions: &Exclusions) -> Option<Route>;

    /// Changes whenever the routes may have changed.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Why no route can exist while the pool does not change, if that is certain.
    fn unplaceable(&self) -> Option<String>;

    /// Prepares a chain on this node alone, if it can hold the model, because a request waits for it.
    fn request_local(&self);
}

/// The only chain of a model that this process computes alone.
pub struct SoleRoute {
    route: Route,
    changed: watch::Sender<u64>,
}

impl SoleRoute {
    /// A source with only this route.
    pub fn new(route: Route) -> SoleRoute {
        SoleRoute { route, changed: watch::Sender::new(0) }
    }
}

impl Routes for SoleRoute {
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
