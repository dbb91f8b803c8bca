//! The chains that a model has in the pool: the newest placement whose stages are ready and can be reached, or this node alone.
//! It places nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pangea_compute::Digest;
use tokio::sync::watch;

use super::metrics::EngineMetrics;
use super::route::{Route, Routes};
use crate::pipeline::ChainId;
use crate::pipeline::loader::Loader;
use crate::pipeline::wire::StageAt;
use pangea_control::devices::models_bytes;
use pangea_control::generation::Exclusions;
use pangea_control::placement::pool_facts;

/// How a model can be computed here alone.
#[derive(Clone, Debug)]
pub(super) struct WholeFile {
    pub(super) path: PathBuf,
    pub(super) metrics: Arc<EngineMetrics>,
}

/// The chains of one model.
pub(super) struct Pooled {
    loader: Loader,
    model: Digest,
    layers: u32,
    whole: Option<WholeFile>,
    loading: Arc<AtomicBool>,
}

impl Pooled {
    /// Those of a model.
    pub(super) fn new(loader: Loader, model: Digest, layers: u32, whole: Option<WholeFile>) -> Pooled {
        Pooled { loader, model, layers, whole, loading: Arc::default() }
    }

    fn placed(&self, exclusions: &Exclusions) -> Option<Route> {
        let view = Arc::clone(&self.loader.view().borrow());
        let mut placements = pool_facts::placements(&view)?;
        placements.retain(|placement| {
            placement.model == self.model
                && pool_facts::is_ready(&view, placement)
                && placement
                    .stages
                    .iter()
                    .all(|stage| !exclusions.peers.contains(&stage.peer) && self.loader.pipeline().reaches(&stage.peer))
                && !exclusions.epochs.contains(&placement.epoch)
                // What broke here is not yet known to be broken elsewhere.
                && !self.loader.pipeline().is_broken(ChainId { model: self.model, epoch: placement.epoch })
        });
        let newest = placements.into_iter().max_by_key(|placement| placement.epoch)?;
        // Alone here, whoever decided it: one chain serves both.
        let alone = ChainId { model: self.model, epoch: 0 };
        if newest.stages.len() == 1 && self.loader.is_local(&newest.stages[0].peer) && self.loader.pipeline().has(alone)
        {
            return self.alone(exclusions);
        }
        self.loader.start_pending();
        let chain = ChainId { model: newest.model, epoch: newest.epoch };
        let stages = newest.stages.into_iter().map(|stage| StageAt { peer: stage.peer, layers: stage.layers });
        Some(Route { chain, stages: stages.collect(), kept: None })
    }

    /// The whole model, where this node's memory holds it.
    fn fits_here(&self) -> Option<&WholeFile> {
        let view = self.loader.view();
        let view = view.borrow();
        let needs = pool_facts::models(&view).remove(&self.model)?;
        let fits = needs.stage_bytes(&(0..needs.size.layers)) <= models_bytes(view.own.memory_bytes);
        self.whole.as_ref().filter(|_| fits)
    }

    fn alone(&self, exclusions: &Exclusions) -> Option<Route> {
        let chain = ChainId { model: self.model, epoch: 0 };
        let local = self.loader.pipeline().local();
        let pipeline = self.loader.pipeline();
        let here = pipeline.has(chain) && !pipeline.is_broken(chain) && !exclusions.peers.contains(&local);
        here.then(|| Route { chain, stages: vec![StageAt { peer: local, layers: 0..self.layers }], kept: None })
    }
}

impl Routes for Pooled {
    fn best(&self, exclusions: &Exclusions) -> Option<Route> {
        // A model that is to be split is here as a whole only once somebody requested it.
        self.placed(exclusions).or_else(|| self.alone(exclusions))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.loader.changed()
    }

    fn unplaceable(&self) -> Option<String> {
        let view = self.loader.view();
        let why = pool_facts::refusal(&view.borrow(), &self.model)?;
        self.fits_here().is_none().then_some(why)
    }

    fn request_local(&self) {
        let Some(whole) = self.fits_here().cloned() else { return };
        if self.loading.swap(true, Ordering::Relaxed) {
            return;
        }
        let (loader, model, loading) = (self.loader.clone(), self.model, Arc::clone(&self.loading));
        let load = move || {
            if let Err(error) = loader.load_whole(model, &whole.path, whole.metrics) {
                tracing::warn!(event = "fallback_failed", %error, "this node cannot take over alone: {error}");
            }
            loading.store(false, Ordering::Relaxed);
        };
        // Without a thread the next tick asks again.
        let again = Arc::clone(&self.loading);
        let name = format!("loading model {}", self.model);
        let panicked = move |_: &str| again.store(false, Ordering::Relaxed);
        if self.loader.pipeline().supervisor().owned_thread(&name, load, panicked).is_err() {
            self.loading.store(false, Ordering::Relaxed);
        }
    }
}
