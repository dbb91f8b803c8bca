//! The layers in this node's memory, and the chains that use them: fetched and packed as the placer orders, shared by
//! the chains of consecutive placements, dropped when no chain needs them. No placement is decided here.

mod failed_devices;
mod leases;
mod own_files;
mod stage_loading;
mod unhashed;
mod unloading;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::draft::MAX_DRAFT;
use pangea_compute::engine::Stage;
use pangea_compute::model::{Cache, ModelFile, ModelPart, PageBudget};
use pangea_compute::{Cancel, Digest};
use tokio::sync::{Notify, mpsc, watch};

use super::draft::Draft;
use super::host::{Pipeline, StageSetup};
use super::wire::{ChainId, StageAt};
use crate::blob::{Blobs, model_size, position_bytes};
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Lease};
use crate::engine_metrics::EngineMetrics;
use crate::model_text::ModelText;
use crate::models::LoadedPart;
use crate::placement::Sessions;
use crate::pool::{ModelAdvert, Pool, ServingAdvert, StagePace, View};
use crate::{clock, compute_error};
use pangea_control::Time;
use pangea_control::devices::roomy_sessions_bytes;
use pangea_control::placement::{
    Placement, PublishedPlacements, StageReport, broken_elsewhere, pool_facts, room_positions,
};
use pangea_control::session::Drafts;
use pangea_control::session::batch::{BatchLimits, CacheBytes};
use pangea_control::session::chains::{ChainUse, Chains};
use pangea_control::session::whole_models::WholeModels;

use leases::Leased;

/// Rows of prompts in a step without answers: at most a quarter of a second on a slow machine.
const PROMPT_ROWS: usize = 256;

/// Rows of prompts beside running answers, which slow down while a prompt is read but do not stop.
const PROMPT_ROWS_BESIDE: usize = 128;

/// Rows of prompts per step if a chain has several stages: a prompt passes in pieces, so that all stages work at once.
/// Smaller pieces would fill the stages sooner but use each one's arithmetic less efficiently.
const PROMPT_ROWS_SPLIT: usize = 64;

/// Maximum caches of ended sequences that are kept for conversations that continue. Pages limit them further.
const KEPT: usize = 64;

/// Limits of a chain that do not depend on memory.
#[derive(Clone, Copy, Debug)]
pub struct ChainLimits {
    /// Answers generated at once in one stage.
    pub running: usize,
    /// Answers that may wait besides; further ones are refused.
    pub waiting: usize,
    /// Time that an answer may wait.
    pub wait: Duration,
    /// Time for which a model that nobody uses stays in memory; `None`: for ever.
    pub keep: Option<Duration>,
}

impl ChainLimits {
    /// The first stage's batch limits for layers with this much memory for sessions, in a chain of `stages` stages.
    pub fn batch(self, model: &Stage, session_bytes: u64, stages: usize, drafts: Drafts) -> BatchLimits {
        // The other stages of a chain have other layers: there, memory is reckoned in positions that every layer keeps.
        let [page, windowed_page] = match stages {
            0 | 1 => model.cache_shape().page_bytes_by_kind(),
            _ => [model.cache_shape().page_bytes(), 0],
        };
        let cache = CacheBytes {
            page_tokens: Cache::PAGE_POSITIONS,
            page,
            windowed_page,
            window: model.config().window().unwrap_or(usize::MAX),
            kept_behind: Cache::KEPT_BEHIND,
            states: model.cache_shape().sequence_bytes(),
        };
        let several = stages > 1;
        BatchLimits {
            running: self.running * stages,
            waiting: self.waiting,
            wait: self.wait,
            prompt_rows: if several { PROMPT_ROWS_SPLIT } else { PROMPT_ROWS },
            prompt_rows_beside: if several { PROMPT_ROWS_SPLIT } else { PROMPT_ROWS_BESIDE },
            draft: if drafts == Drafts::Off { 0 } else { MAX_DRAFT },
            cache,
            bytes: session_bytes,
            is_recurrent: model.config().is_recurrent(),
            kept: KEPT,
            groups: stages,
        }
    }
}

/// Layers in memory.
#[derive(Clone)]
pub struct LoadedLayers {
    /// Name of the model, for the log.
    name: Arc<str>,
    /// The layers.
    pub model: Arc<Stage>,
    /// Memory for their sessions.
    pub budget: PageBudget,
    /// The text side, if this stage chooses tokens.
    pub text: Option<Arc<ModelText>>,
    /// Metrics of the model's engine.
    pub metrics: Arc<EngineMetrics>,
    /// Bytes of the whole model, if the node's small model can draft for it.
    drafted_bytes: Option<u64>,
    /// Leases of the weights and of the sessions.
    memory: Arc<[Lease]>,
    /// The file that they were read from.
    path: Arc<Path>,
}

/// An order of the placer whose layers are loaded: later failures are reported for it.
struct Order {
    epoch: u64,
    reports: mpsc::Sender<StageReport>,
}

/// Digest of the model, first layer, end.
type Key = (Digest, u32, u32);

/// The layers and chains of a node; clones share them.
#[derive(Clone)]
pub struct Loader(Arc<Inner>);

struct Inner {
    pipeline: Pipeline,
    blobs: Blobs,
    /// Folder with the user's own model files.
    own_files: OnceLock<PathBuf>,
    /// Models whose whole file was on the disk before their layers were loaded.
    on_disk: Mutex<BTreeSet<Digest>>,
    pool: Pool,
    devices: Devices,
    limits: ChainLimits,
    drafts: Drafts,
    /// What drafts beside the texts themselves.
    draft: Option<Arc<Draft>>,
    loaded: Mutex<HashMap<Key, LoadedLayers>>,
    /// Stand-ins for the digests of models whose files are not hashed yet.
    unhashed: Mutex<BTreeSet<Digest>>,
    /// Metrics by model; for models that this node serves, those of its engine.
    metrics: Mutex<HashMap<Digest, Arc<EngineMetrics>>>,
    /// Layers that are packed now, each by one thread; others wait for it.
    packing: Mutex<HashMap<Key, Arc<Mutex<()>>>>,
    /// The placer's orders.
    orders: Mutex<HashMap<Key, Order>>,
    /// Orders in progress.
    loading: Mutex<HashMap<Key, Cancel>>,
    /// Chains of placements.
    chains: Mutex<Chains>,
    published: Mutex<PublishedPlacements>,
    /// When whole models leave memory.
    whole_models: Mutex<WholeModels>,
    /// Models for which requests here wait, with the time of the last one that asked.
    wanted: Mutex<BTreeMap<Digest, Time>>,
    changed: watch::Sender<u64>,
    /// Notified when layers are there again whose device had failed.
    reloaded: Notify,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loader of {}", self.0.pipeline.local())
    }
}

impl Loader {
    /// A loader without layers. `draft`: the small model that drafts on this node.
    pub fn new(
        pipeline: Pipeline,
        blobs: Blobs,
        pool: Pool,
        devices: Devices,
        limits: ChainLimits,
        draft: Option<Arc<Draft>>,
    ) -> Loader {
        Loader(Arc::new(Inner {
            pipeline,
            blobs,
            own_files: OnceLock::new(),
            on_disk: Mutex::default(),
            pool,
            devices,
            limits,
            drafts: Drafts::Paying,
            draft,
            loaded: Mutex::default(),
            unhashed: Mutex::default(),
            metrics: Mutex::default(),
            packing: Mutex::default(),
            orders: Mutex::default(),
            loading: Mutex::default(),
            chains: Mutex::default(),
            published: Mutex::default(),
            whole_models: Mutex::new(WholeModels::new(limits.keep)),
            wanted: Mutex::default(),
            changed: watch::Sender::new(0),
            reloaded: Notify::new(),
        }))
    }

    /// Changes whenever layers or chains are added or removed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Sets the metrics that count a model's layers on this node.
    pub fn count(&self, model: Digest, metrics: Arc<EngineMetrics>) {
        self.0.metrics.lock().unwrap_or_else(PoisonError::into_inner).insert(model, metrics);
    }

    /// Metrics of a model on this node.
    pub fn metrics(&self, model: Digest) -> Arc<EngineMetrics> {
        let mut metrics = self.0.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(metrics.entry(model).or_default())
    }

    /// Loads all layers of a model from its complete file and starts the chain of this node alone. Blocks; returns at
    /// once if they are loaded.
    ///
    /// # Errors
    /// `Overloaded` with the numbers if weights and sessions do not fit; errors of reading and packing.
    pub fn load_whole(&self, model: Digest, name: &str, path: &Path, metrics: Arc<EngineMetrics>) -> Result<ChainId> {
        let chain = ChainId::alone(model);
        self.stays(model);
        if self.0.pipeline.has(chain) {
            return Ok(chain);
        }
        let file = ModelFile::open(path).map_err(compute_error)?;
        let layers = 0..file.config().layers as u32;
        let most = roomy_sessions_bytes(self.0.devices.limit());
        let loaded = self.pack((model, name), &file, layers.start..layers.end, most, metrics, &Cancel::new())?;
        let stages = vec![StageAt { peer: self.0.pipeline.local(), layers }];
        self.start(chain, stages, 0, &loaded, loaded.budget.max_bytes())?;
        Ok(chain)
    }

    /// The fetched copy of a complete model, after all its parts were verified. Blocks.
    ///
    /// # Errors
    /// Errors of reading it; `Unavailable` if parts are missing.
    pub fn whole_copy(&self, model: Digest) -> Result<PathBuf> {
        let failed = |error| Error::new(ErrorKind::Internal, format!("cannot check a model's file: {error}"));
        let gone = || Error::new(ErrorKind::Unavailable, "the copy of the model was removed");
        let wanted = self.0.blobs.have(&model).ok_or_else(gone)?.manifest.whole();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(self.0.blobs.fetch(model, wanted, Vec::new(), &mut |_, _| {}, &Cancel::new()))
    }

    /// The packed layers, packed now if necessary. Their sessions get up to `session_bytes`, and at least the minimum of
    /// placement.
    fn pack(
        &self,
        (model, name): (Digest, &str),
        file: &ModelFile,
        layers: Range<u32>,
        session_bytes: u64,
        metrics: Arc<EngineMetrics>,
        cancel: &Cancel,
    ) -> Result<LoadedLayers> {
        let key = (model, layers.start, layers.end);
        let packing = Arc::clone(self.packing().entry(key).or_default());
        let _packing = packing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = self.loaded().get(&key) {
            return Ok(loaded.clone());
        }
        let part = ModelPart::of_layers(file.config(), layers.start as usize..layers.end as usize);
        let least = model_size(file)?.session_bytes(&layers);
        let sessions = least..session_bytes.max(least);
        let engine = self.0.devices.engine_for(file, &part, sessions.clone())?;
        let Leased { leases, session_bytes } = self.lease(model, file, &part, &engine, sessions)?;
        let LoadedPart { model: packed, text } = LoadedPart::load(file, part, &engine, &self.0.devices)?;
        let loaded = LoadedLayers {
            name: name.into(),
            budget: packed.page_budget(session_bytes),
            model: Arc::new(packed),
            text: text.map(Arc::new),
            metrics,
            drafted_bytes: self.drafted_bytes(name, file),
            memory: leases.into(),
            path: file.path().into(),
        };
        let mut all = self.loaded();
        // Unloaded before there was anything to unload: nobody would ever give these layers up.
        if cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the layers are not wanted any more"));
        }
        all.insert(key, loaded.clone());
        Ok(loaded)
    }

    /// Bytes of the whole model of `file`, if this node's small model can draft for it.
    fn drafted_bytes(&self, name: &str, file: &ModelFile) -> Option<u64> {
        let draft = self.0.draft.as_ref()?;
        let by = draft.name();
        match draft.check(file) {
            Ok(()) => {
                tracing::info!(event = "drafting", model = name, by, "Model {name}: drafted by {by}");
                Some(file.gguf().size_bytes())
            }
            Err(error) => {
                tracing::warn!(event = "not_drafted", model = name, by, %error, "Model {name}: {by} cannot draft for it: {error}");
                None
            }
        }
    }

    /// Ends the chain of this node alone if no session uses it: its layers are to be loaded as part of another
    /// chain, and there is no memory for both.
    fn end_idle_whole(&self, model: Digest) {
        let chain = ChainId::alone(model);
        if !self.0.pipeline.has(chain) || self.0.pipeline.sessions_in(chain) > 0 {
            return;
        }
        self.0.pipeline.end(chain);
        let wholes: Vec<Key> = self.loaded().keys().filter(|key| key.0 == model).copied().collect();
        for key in wholes.iter().filter(|key| self.is_whole(key)) {
            self.loaded().remove(key);
        }
    }

    /// Starts this node's stage of a chain. `session_bytes`: memory for as many positions as every stage of the chain has.
    fn start(
        &self,
        chain: ChainId,
        stages: Vec<StageAt>,
        index: usize,
        loaded: &LoadedLayers,
        session_bytes: u64,
    ) -> Result<()> {
        let inner = &self.0;
        let count = stages.len();
        let first = index == 0;
        let pool = Arc::new(inner.devices.pool(Purpose::Stage)?);
        let drafting = inner.draft.as_ref().zip(loaded.drafted_bytes).filter(|_| first);
        inner.pipeline.start(StageSetup {
            chain,
            index,
            limits: first.then(|| inner.limits.batch(&loaded.model, session_bytes, count, inner.drafts)),
            drafts: inner.drafts,
            draft: drafting.map(|(draft, of_bytes)| draft.on(&pool, of_bytes)).transpose()?,
            text: (index + 1 == count).then(|| loaded.text.clone()).flatten(),
            model: Arc::new(loaded.model.with_pool(pool)),
            budget: loaded.budget.clone(),
            name: loaded.name.to_string(),
            metrics: Arc::clone(&loaded.metrics),
            memory: Arc::clone(&loaded.memory),
            stages,
        })?;
        inner.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Advertises this node's parts of a model that others serve.
    fn advertise(&self, model: Digest, name: &str) {
        let view = self.view();
        let size = {
            let view = view.borrow();
            let mut known = view.everyone().flat_map(|advert| &advert.models);
            known.find(|known| known.digest == model).map(|known| known.size)
        };
        let (Some(size), Some(here)) = (size, self.0.blobs.have(&model)) else { return };
        let advert = ModelAdvert {
            digest: model,
            name: name.to_owned(),
            served: false,
            whole: here.is_whole(),
            split: false,
            pinned: None,
            size,
        };
        self.0.pool.update_advert(|own| match own.models.iter_mut().find(|known| known.digest == model) {
            Some(known) => known.whole |= advert.whole,
            None => own.models.push(advert),
        });
    }

    fn is_whole(&self, key: &Key) -> bool {
        self.loaded().get(key).is_some_and(|loaded| loaded.model.part().layers.len() == loaded.model.config().layers)
    }

    /// Number of sessions of the chains with these layers.
    pub fn sessions(&self, model: Digest, layers: &Range<u32>) -> usize {
        let Some(loaded) = self.loaded().get(&(model, layers.start, layers.end)).cloned() else { return 0 };
        let chains = self.chains().of(&model);
        chains
            .into_iter()
            .filter(|chain| self.0.pipeline.uses(*chain, &loaded.model))
            .map(|chain| self.0.pipeline.sessions_in(chain))
            .sum()
    }

    /// Epoch of the newest known chain with these layers that has failed on this node.
    fn broken(&self, model: Digest, layers: &Range<u32>) -> Option<u64> {
        let loaded = self.loaded().get(&(model, layers.start, layers.end)).cloned()?;
        let chains = self.chains().of(&model);
        let pipeline = &self.0.pipeline;
        let broken = |chain: &ChainId| pipeline.broke_here(*chain) && pipeline.uses(*chain, &loaded.model);
        chains.into_iter().filter(broken).map(|chain| chain.epoch).max()
    }

    /// How fast the newest chain with these layers is, among them the one of this node alone.
    fn pace(&self, model: Digest, layers: &Range<u32>) -> Option<StagePace> {
        let loaded = self.loaded().get(&(model, layers.start, layers.end)).cloned()?;
        let mut chains = self.chains().of(&model);
        chains.push(ChainId::alone(model));
        let pipeline = &self.0.pipeline;
        let of_layers = chains.into_iter().filter(|chain| pipeline.uses(*chain, &loaded.model));
        of_layers.filter_map(|chain| pipeline.pace(chain)).max_by_key(|pace| pace.epoch)
    }

    /// What this node says of a model that it answers with all layers of its own; `None` if it does not.
    pub fn serving(&self, model: Digest) -> Option<ServingAdvert> {
        let (pipeline, chain) = (&self.0.pipeline, ChainId::alone(model));
        if !pipeline.has(chain) || pipeline.is_broken(chain) {
            return None;
        }
        let (running, waiting) = pipeline.load(chain);
        let step = pipeline.pace(chain).map(|pace| pace.step).filter(|step| !step.is_zero());
        let tokens_per_s = step.map_or(0.0, |step| (1.0 / step.as_secs_f64()).clamp(1.0, u16::MAX.into()));
        Some(ServingAdvert {
            model,
            places: u8::try_from(self.0.limits.running).unwrap_or(u8::MAX),
            running: u16::try_from(running).unwrap_or(u16::MAX),
            waiting: u16::try_from(waiting).unwrap_or(u16::MAX),
            tokens_per_s: tokens_per_s.round() as u16,
        })
    }

    /// Advertises the models that this node answers alone: at once if others are added or end, and their load with the next
    /// advert.
    fn advertise_serving(&self) {
        let mut models: Vec<Digest> = self.hashed().into_iter().map(|key| key.0).collect();
        models.sort_unstable();
        models.dedup();
        let serving: Vec<ServingAdvert> = models.into_iter().filter_map(|model| self.serving(model)).collect();
        let of = |serving: &[ServingAdvert]| serving.iter().map(|one| one.model).collect::<Vec<_>>();
        let before = of(&self.view().borrow().own.serving);
        match before == of(&serving) {
            true => self.0.pool.note_in_advert(|own| own.serving = serving),
            false => self.0.pool.update_advert(|own| own.serving = serving),
        }
    }

    /// Starts this node's stages of the placements that are ready, and ends those of placements replaced long ago.
    pub fn follow(&self, view: &View) {
        let Some(placements) = pool_facts::placements(view) else { return };
        self.published().observe(&placements, clock::now());
        for placement in &placements {
            if let Err(error) = self.join(view, placement) {
                tracing::warn!(event = "stage_not_started", %error, "cannot start a stage: {error}");
            }
        }
        let pipeline = &self.0.pipeline;
        let chains = self.chains().all();
        for chain in chains.into_iter().filter(|chain| !pipeline.is_broken(*chain)) {
            // A failure between other nodes is known only from their adverts.
            if let Some(peer) = broken_elsewhere(view, &chain, &pipeline.peers(chain)) {
                pipeline.break_off(chain, peer);
            }
        }
        let state = |chain: &ChainId| ChainUse {
            named: placements.iter().any(|other| other.model == chain.model && other.epoch == chain.epoch),
            placed: placements.iter().any(|other| other.model == chain.model),
            broken: pipeline.is_broken(*chain),
            sessions: pipeline.sessions_in(*chain),
        };
        let ended = self.chains().sweep(clock::now(), state);
        for chain in ended {
            self.0.pipeline.end(chain);
        }
    }

    /// Starts this node's stage of a placement, once its layers are loaded.
    fn join(&self, view: &View, placement: &Placement) -> Result<()> {
        let local = self.0.pipeline.local();
        let chain = placement.chain();
        let Some(index) = placement.stages.iter().position(|stage| stage.peer == local) else { return Ok(()) };
        if self.0.pipeline.has(chain) || self.chains().contains(&chain) {
            return Ok(());
        }
        let layers = &placement.stages[index].layers;
        let Some(loaded) = self.loaded().get(&(placement.model, layers.start, layers.end)).cloned() else {
            return Ok(());
        };
        if loaded.model.device_failure().is_some() {
            return Ok(());
        }
        // The first stage admits what the stage with the least memory can hold, so it needs the adverts of all.
        let room = room_positions(view, placement);
        // All links must be open: a chain that starts without them would fail at once.
        let linked = placement.stages.iter().all(|stage| self.0.pipeline.reaches(&stage.peer));
        if index == 0 && (room.is_none() || !linked) {
            return Ok(());
        }
        let own = (layers.end - layers.start) as u64 * position_bytes(loaded.model.config());
        let session_bytes = room.unwrap_or(0).saturating_mul(own).min(loaded.budget.max_bytes());
        let stages =
            placement.stages.iter().map(|stage| StageAt { peer: stage.peer, layers: stage.layers.clone() }).collect();
        self.start(chain, stages, index, &loaded, session_bytes)?;
        self.chains().insert(chain);
        Ok(())
    }

    /// Restarts the stages of this node alone that failed, and whose layers are loaded, still or again.
    fn restart_alone(&self) {
        let local = self.0.pipeline.local();
        let broken = |key: &Key| self.0.pipeline.is_broken(ChainId::alone(key.0));
        let usable = |(key, loaded): &(&Key, &LoadedLayers)| broken(key) && loaded.model.device_failure().is_none();
        let whole: Vec<_> = self.loaded().iter().filter(usable).map(|(k, l)| (*k, l.clone())).collect();
        for (key, loaded) in whole.into_iter().filter(|(key, _)| self.is_whole(key)) {
            let stages = vec![StageAt { peer: local, layers: key.1..key.2 }];
            let session_bytes = loaded.budget.max_bytes();
            if let Err(error) = self.start(ChainId::alone(key.0), stages, 0, &loaded, session_bytes) {
                tracing::warn!(event = "stage_not_started", %error, "cannot restart a stage: {error}");
            }
        }
    }

    /// Follows the view of the pool until it ends.
    pub async fn run(self, sessions: Sessions) {
        let mut view = self.view();
        let mut breaks = self.0.pipeline.breaks();
        let (mut told, mut told_broken, mut told_paces) = (HashMap::new(), HashMap::new(), HashMap::new());
        loop {
            breaks.mark_unchanged();
            self.restart_alone();
            let now = Arc::clone(&view.borrow_and_update());
            self.follow(&now);
            self.unload_unused(&now, &pool_facts::placements(&now).unwrap_or_default());
            self.advertise_serving();
            self.0.changed.send_modify(|version| *version += 1);
            for key in self.hashed() {
                let (model, layers) = (key.0, key.1..key.2);
                let open = self.sessions(model, &layers);
                if told.insert(key, open) != Some(open) {
                    sessions.changed_in_task(model, layers.clone(), open).await;
                }
                if let Some(epoch) = self.broken(model, &layers)
                    && told_broken.insert(key, epoch) != Some(epoch)
                {
                    sessions.broke_in_task(model, layers.clone(), epoch).await;
                }
                if let Some(pace) = self.pace(model, &layers)
                    && told_paces.get(&key).is_none_or(|told| pace.differs(told))
                {
                    told_paces.insert(key, pace);
                    sessions.paced_in_task(model, layers, pace).await;
                }
            }
            // Last, because what was told above is told of layers that are there.
            self.replace_failed();
            tokio::select! {
                changed = view.changed() => if changed.is_err() {
                    return;
                },
                // The pipeline outlives this task.
                _ = breaks.changed() => {}
                () = self.0.reloaded.notified() => {}
            }
        }
    }

    /// Starts the stage of a chain that is requested before this node has followed the view that names it, or while a new
    /// master has not published its placement yet.
    pub fn start_pending(&self, chain: ChainId) {
        let view = Arc::clone(&self.view().borrow());
        if chain == ChainId::alone(chain.model) && view.own.unloaded.contains(&chain.model) {
            self.want(chain.model);
        }
        self.follow(&view);
        let placement = self.published().of(&chain);
        if let Some(Err(error)) = placement.map(|placement| self.join(&view, &placement)) {
            tracing::warn!(event = "stage_not_started", %error, "cannot start a stage: {error}");
        }
    }

    /// Bytes of all loaded layers of a model.
    pub fn memory_bytes(&self, model: Digest) -> u64 {
        self.loaded().iter().filter(|(key, _)| key.0 == model).map(|(_, loaded)| loaded.model.memory_bytes()).sum()
    }

    /// The text side of a model, if layers with the head are in memory: their stage has it already, and a large vocabulary takes
    /// tens of megabytes.
    pub fn text(&self, model: Digest) -> Option<Arc<ModelText>> {
        self.loaded().iter().filter(|(key, _)| key.0 == model).find_map(|(_, loaded)| loaded.text.clone())
    }

    /// This node's pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        &self.0.pipeline
    }

    /// This node's pool.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// This node's pieces of model files.
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// The view of the pool.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.pool.view()
    }

    /// Whether a peer is this node.
    pub fn is_local(&self, peer: &PeerId) -> bool {
        *peer == self.0.pipeline.local()
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<Key, LoadedLayers>> {
        self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unhashed(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.0.unhashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole_models(&self) -> MutexGuard<'_, WholeModels> {
        self.0.whole_models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<Digest, Time>> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn packing(&self) -> MutexGuard<'_, HashMap<Key, Arc<Mutex<()>>>> {
        self.0.packing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, HashMap<Key, Order>> {
        self.0.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loading(&self) -> MutexGuard<'_, HashMap<Key, Cancel>> {
        self.0.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> MutexGuard<'_, PublishedPlacements> {
        self.0.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chains(&self) -> MutexGuard<'_, Chains> {
        self.0.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
