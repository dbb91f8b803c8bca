//! The chains of stages that a request may use, and the trait of their sources. No session is
//! opened here.

use std::any::Any;
use std::sync::Arc;

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_control::generation::Exclusions;
use pangea_control::routing::Prefix;
use tokio::sync::watch;

use crate::pipeline::wire::StageAt;
use crate::pipeline::{ChainId, Pipeline};
use crate::pool::ServingAdvert;

/// A chain at which sessions can be opened.
#[derive(Clone)]
pub struct Route {
    /// Id of the chain.
    pub chain: ChainId,
    /// Its stages; sessions are opened at the first one.
    pub stages: Vec<StageAt>,
    /// What is dropped when the route is no longer used: a chain that stays loaded, or a place at a server.
    pub kept: Option<Arc<dyn Any + Send + Sync>>,
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
    /// The best current route for a prompt without the excluded nodes and placements.
    fn best(&self, exclusions: &Exclusions, prompt: &Prefix) -> Option<Route>;

    /// The route on which one node answers with all layers of its own, if it can and is not excluded.
    fn alone_at(&self, server: &PeerId, exclusions: &Exclusions, prompt: &Prefix) -> Option<Route>;

    /// The model's digest in the pool, and what this node says of it if it answers with all layers of its own; `None` if the
    /// model is in no pool.
    fn pooled_model(&self) -> Option<(Digest, Option<ServingAdvert>)>;

    /// The start of a prompt, as [`Routes::best`] compares it.
    fn prefix(&self, prompt: &[u32]) -> Prefix;

    /// Changes whenever the routes may have changed.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Notes that a request waits for a route.
    fn missed(&self);

    /// Why no route can exist while the pool does not change, if that is certain.
    fn unplaceable(&self) -> Option<String>;

    /// Prepares a chain on this node alone, if it can hold the model, because a request waits for it.
    fn request_local(&self);
}

/// The only chain of a model that this process computes alone.
pub struct SoleRoute {
    route: Route,
    pipeline: Pipeline,
    changed: watch::Sender<u64>,
}

impl SoleRoute {
    /// A source with only this route, whose stage is in `pipeline`.
    pub fn new(route: Route, pipeline: Pipeline) -> SoleRoute {
        SoleRoute { route, pipeline, changed: watch::Sender::new(0) }
    }

    fn is_there(&self) -> bool {
        self.pipeline.has(self.route.chain) && !self.pipeline.is_broken(self.route.chain)
    }
}

impl Routes for SoleRoute {
    fn prefix(&self, _: &[u32]) -> Prefix {
        Prefix::default()
    }

    fn best(&self, exclusions: &Exclusions, _: &Prefix) -> Option<Route> {
        let is_excluded = exclusions.peers.iter().any(|peer| self.route.uses(peer));
        (!is_excluded && self.is_there()).then(|| self.route.clone())
    }

    fn alone_at(&self, server: &PeerId, exclusions: &Exclusions, prompt: &Prefix) -> Option<Route> {
        self.best(exclusions, prompt).filter(|route| route.uses(server))
    }

    fn pooled_model(&self) -> Option<(Digest, Option<ServingAdvert>)> {
        None
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn missed(&self) {}

    fn unplaceable(&self) -> Option<String> {
        (!self.is_there()).then(|| "the model's layers failed; start this program again".to_owned())
    }

    fn request_local(&self) {}
}
