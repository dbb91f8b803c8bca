//! The chains of a model in the pool: the newest placement whose stages are ready and reachable, or this node alone.
//! Nothing is placed here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;
use pangea_client::Result;
use pangea_compute::Digest;
use tokio::sync::watch;

use super::dispatch::Dispatch;
use super::model_digest::ModelDigest;
use super::route::{Route, Routes};
use crate::blob::Wanted;
use crate::engine_metrics::EngineMetrics;
use crate::pipeline::ChainId;
use crate::pipeline::loader::Loader;
use crate::pipeline::wire::StageAt;
use crate::pool::{ServingAdvert, View};
use crate::trust::Auditor;
use pangea_control::devices::models_bytes;
use pangea_control::generation::Exclusions;
use pangea_control::placement::{ModelNeeds, missing_layers, newest_usable, pool_facts};
use pangea_control::pool::served::is_unloaded;
use pangea_control::routing::Prefix;
use pangea_units::LayerRange;

/// What this node needs to compute a model alone.
#[derive(Clone, Debug)]
pub(super) struct LocalModel {
    /// Name of the model in requests.
    pub(super) name: String,
    /// The user's own complete file of the model.
    pub(super) file: Option<PathBuf>,
    pub(super) metrics: Arc<EngineMetrics>,
}

/// The chains of one model.
pub(super) struct Pooled {
    loader: Loader,
    model: ModelDigest,
    layers: u32,
    local: LocalModel,
    dispatch: Dispatch,
    /// Knows which peers are suspects.
    auditor: Auditor,
    /// The model's needs, and the names of the nodes that served it last.
    last_served: Mutex<Option<(ModelNeeds, Vec<String>)>>,
    loading: Arc<AtomicBool>,
}

impl Pooled {
    /// The chains of a model.
    pub(super) fn new(
        (loader, dispatch, auditor): (Loader, Dispatch, Auditor),
        model: ModelDigest,
        layers: u32,
        local: LocalModel,
    ) -> Pooled {
        let (last_served, loading) = (Mutex::default(), Arc::default());
        Pooled { loader, dispatch, auditor, model, layers, local, last_served, loading }
    }

    fn model(&self) -> Digest {
        self.model.here()
    }

    /// The model's needs and the names of the nodes that serve it, or that served it last.
    fn served(&self, view: &View) -> Option<(ModelNeeds, Vec<String>)> {
        let mut last = self.last_served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(needs) = pool_facts::models(view).remove(&self.model()) {
            let name = |peer| view.advert(peer).map(|advert| advert.name.clone());
            let names = needs.served_by.iter().filter_map(name).collect();
            *last = Some((needs, names));
        }
        last.clone().or_else(|| Some((pool_facts::model(view, &self.model())?, Vec::new())))
    }

    fn placed(&self, exclusions: &Exclusions) -> Option<Route> {
        let view = Arc::clone(&self.loader.view().borrow());
        // Remembers the owner's name while it is present.
        self.served(&view);
        let pipeline = self.loader.pipeline();
        let without = (&exclusions.peers[..], &exclusions.epochs[..]);
        let (reaches, is_broken) =
            (|peer: &PeerId| pipeline.reaches(peer), |chain: &ChainId| pipeline.is_broken(*chain));
        let newest =
            newest_usable(&view, &self.model(), without, |peer| self.auditor.is_suspect(peer), reaches, is_broken)?;
        // A placement on this node alone uses the same chain as the local fallback.
        let alone = ChainId::alone(self.model());
        if newest.stages.len() == 1 && self.loader.is_local(&newest.stages[0].peer) && self.loader.pipeline().has(alone)
        {
            return self.alone(exclusions);
        }
        let chain = newest.chain();
        self.loader.start_pending(chain);
        let stages = newest.stages.into_iter().map(|stage| StageAt { peer: stage.peer, layers: stage.layers });
        Some(Route { chain, stages: stages.collect(), kept: None })
    }

    /// Whether this node has the complete file, its own or a copy, and memory for all layers.
    fn fits_here(&self) -> bool {
        let has_copy = || self.loader.blobs().have(&self.model()).is_some_and(|here| here.is_whole());
        if self.local.file.is_none() && !has_copy() {
            return false;
        }
        let view = Arc::clone(&self.loader.view().borrow());
        let needs = self.served(&view).map(|(needs, _)| needs);
        needs.is_some_and(|needs| needs.stage_bytes(&(0..needs.size.layers)) <= models_bytes(view.own.memory_bytes))
    }

    /// The layers that no node has any more, as text.
    fn missing(&self, view: &View) -> Option<String> {
        if self.local.file.is_some() {
            return None;
        }
        let here = self.loader.blobs().have(&self.model());
        let is_here = |layer: u32| {
            let layer = Wanted { layers: layer..layer + 1, ..Wanted::default() };
            here.as_ref().is_some_and(|here| here.holds(&layer))
        };
        let missing = missing_layers(view, &self.model(), self.layers, is_here);
        if missing.is_empty() {
            return None;
        }
        let layers: Vec<String> = missing.iter().map(|layers| LayerRange::from(layers).to_string()).collect();
        let owners = self.served(view).map(|(_, owners)| owners).unwrap_or_default();
        let owners = if owners.is_empty() { "a node that is gone".to_owned() } else { owners.join(", ") };
        Some(format!(
            "layers {} of {name} are missing: {owners} had the file; start that node again, or another one with --model {name}",
            layers.join(", "),
            name = self.local.name
        ))
    }

    fn alone(&self, exclusions: &Exclusions) -> Option<Route> {
        let chain = ChainId::alone(self.model());
        let local = self.loader.pipeline().local();
        let pipeline = self.loader.pipeline();
        let here = pipeline.has(chain) && !pipeline.is_broken(chain) && !exclusions.peers.contains(&local);
        here.then(|| Route { chain, stages: vec![StageAt { peer: local, layers: 0..self.layers }], kept: None })
    }
}

impl Pooled {
    /// On a lite client, an owner that has unloaded the model: it refuses the session and loads the model. Other nodes tell the
    /// owners by their adverts, and a lite client has none.
    fn waking(&self, exclusions: &Exclusions) -> Option<Route> {
        let view = Arc::clone(&self.loader.view().borrow());
        if view.own.works || !is_unloaded(&view, &self.model()) {
            return None;
        }
        let may_wake = |peer: &PeerId| !exclusions.peers.contains(peer) && self.loader.pipeline().reaches(peer);
        let owner =
            view.nodes.values().find(|advert| advert.unloaded.contains(&self.model()) && may_wake(&advert.peer))?;
        let stages = vec![StageAt { peer: owner.peer, layers: 0..self.layers }];
        Some(Route { chain: ChainId::alone(self.model()), stages, kept: None })
    }

    /// The best node that answers with all layers of its own, if there is one that `may_take` requests.
    fn server(
        &self,
        placed: Option<&Route>,
        exclusions: &Exclusions,
        prompt: &Prefix,
        may_take: impl Fn(&PeerId) -> bool,
    ) -> Option<Route> {
        let model = self.model();
        let pipeline = self.loader.pipeline();
        let local = pipeline.local();
        let may_take = |peer: &PeerId| !exclusions.peers.contains(peer) && pipeline.reaches(peer) && may_take(peer);
        let said = ServingAdvert { model, places: 0, running: 0, waiting: 0, tokens_per_s: 0 };
        let placed = placed.filter(|route| route.stages.len() == 1 && route.chain.epoch > 0);
        let at = placed.map(|route| (route.stages[0].peer, said));
        let own = self.loader.serving(model).map(|said| (local, said));
        let view = Arc::clone(&self.loader.view().borrow());
        let answers_alone = own.is_some();
        let (server, sent) = self.dispatch.send(model, &view, [own, at], may_take, prompt)?;
        let serves = view.advert(&server).is_some_and(|advert| advert.serving.iter().any(|one| one.model == model));
        match placed {
            Some(route) if server == route.stages[0].peer && !serves && !(server == local && answers_alone) => {
                Some(Route { kept: Some(sent), ..route.clone() })
            }
            _ => {
                let chain = ChainId::alone(model);
                Some(Route { chain, stages: vec![StageAt { peer: server, layers: 0..self.layers }], kept: Some(sent) })
            }
        }
    }
}

impl Routes for Pooled {
    fn prefix(&self, prompt: &[u32]) -> Prefix {
        self.dispatch.prefix(prompt)
    }

    fn best(&self, exclusions: &Exclusions, prompt: &Prefix) -> Option<Route> {
        let placed = self.placed(exclusions);
        let is_suspect = |at: &StageAt| self.auditor.is_suspect(&at.peer);
        // A chain of several nodes was placed because it is faster than any node alone, or because a person asked for it.
        if placed.as_ref().is_none_or(|placed| placed.stages.len() == 1 || placed.stages.iter().any(is_suspect))
            && let Some(server) =
                self.server(placed.as_ref(), exclusions, prompt, |peer| !self.auditor.is_suspect(peer))
        {
            return Some(server);
        }
        match placed.as_ref().is_none_or(|placed| placed.stages.iter().any(is_suspect)) {
            // A model that is to be split is loaded here completely only after a request for it.
            true => self.alone(exclusions).or(placed).or_else(|| self.waking(exclusions)),
            false => placed,
        }
    }

    fn alone_at(&self, server: &PeerId, exclusions: &Exclusions, prompt: &Prefix) -> Option<Route> {
        self.server(None, exclusions, prompt, |peer| peer == server)
    }

    fn pooled_model(&self) -> Option<(Digest, Option<ServingAdvert>)> {
        let model = self.model.in_pool()?;
        Some((model, self.loader.serving(model)))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.loader.changed()
    }

    fn missed(&self) {
        if is_unloaded(&self.loader.view().borrow(), &self.model()) {
            self.loader.want(self.model());
        }
    }

    fn unplaceable(&self) -> Option<String> {
        let view = Arc::clone(&self.loader.view().borrow());
        if view.is_dropped(&self.model()) {
            let name = &self.local.name;
            return Some(format!("the model {name} was dropped; load it again with: pangea load {name}"));
        }
        if let Some(why) = self.missing(&view) {
            return Some(why);
        }
        let why = pool_facts::refusal(&view, &self.model())?;
        (!self.fits_here()).then_some(why)
    }

    fn request_local(&self) {
        if self.loader.pipeline().has(ChainId::alone(self.model())) || !self.fits_here() {
            return;
        }
        if self.loader.view().borrow().is_dropped(&self.model()) {
            return;
        }
        if self.loading.swap(true, Ordering::Relaxed) {
            return;
        }
        let (loader, local, model, loading) =
            (self.loader.clone(), self.local.clone(), self.model(), Arc::clone(&self.loading));
        let load = move || {
            if let Err(error) = load_here(&loader, model, &local) {
                tracing::warn!(event = "fallback_failed", %error, "cannot load the model on this node alone: {error}");
            }
            loading.store(false, Ordering::Relaxed);
        };
        // If no thread can be started, the next tick retries.
        let again = Arc::clone(&self.loading);
        let name = format!("loading model {}", self.model());
        let panicked = move |_: &str| again.store(false, Ordering::Relaxed);
        if self.loader.pipeline().supervisor().owned_thread(&name, load, panicked).is_err() {
            self.loading.store(false, Ordering::Relaxed);
        }
    }
}

/// Loads all layers from the user's file, or from the local copy after its parts were verified.
fn load_here(loader: &Loader, model: Digest, local: &LocalModel) -> Result<()> {
    let path = match &local.file {
        Some(path) => path.clone(),
        None => loader.whole_copy(model)?,
    };
    loader.load_whole(model, &local.name, &path, Arc::clone(&local.metrics)).map(drop)
}
