//! The models that this node serves, by name: its own and those of its pool, their states, and their engines once each has
//! answered a first request. Loading happens on threads of its own and delays only requests for that
//! model.

mod assigning;
mod changes;
mod entry;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, ModelState, Result};
use pangea_compute::Digest;
use pangea_compute::model::ModelFile;
use tokio::sync::watch;

use super::dispatch::Dispatch;
use super::engine::{Engine, EngineSettings, ModelFacts};
use super::remote::RemoteModel;
use crate::engine_metrics::ModelMetrics;
use crate::jobs::Jobs;
use crate::models::Found;
use crate::pipeline::Loader;
use crate::pool::{ModelAdvert, View};
use crate::trust::Auditor;
use crate::{clock, compute_error, models};

use entry::{Entry, Source, State};
use pangea_control::Time;
use pangea_control::placement::assignment::Assignments;
use pangea_control::placement::{has_loaded_chain, pool_facts, preview, without_weights};
use pangea_control::pool::{Drops, NameChoices, NameChosen, ServedLately, full_name, served};
use pangea_control::routing::{ModelKnowledge, Way, has_numerics, way_of};

/// Interval at which models whose first answer failed are looked at.
const RETRY_TICK: Duration = Duration::from_secs(1);

/// The models of a node; empty by default. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: RwLock<Vec<Arc<Entry>>>,
    /// Folder with the model files of this node.
    folder: PathBuf,
    /// The models that names stand for.
    names: Mutex<NameChoices>,
    /// The models that other nodes served a short while ago.
    lately: Mutex<ServedLately>,
    /// The models that the pool dropped.
    drops: Mutex<Drops>,
    /// What the pool needs of a node that was started without models.
    assignments: Option<Mutex<Assignments>>,
    /// The models that are being fetched or read to be loaded.
    preparing: Mutex<BTreeSet<String>>,
    /// The parts needed to compute with other nodes, set once the node has a pool.
    node: OnceLock<Node>,
}

struct Node {
    loader: Loader,
    auditor: Auditor,
    jobs: Jobs,
    dispatch: Dispatch,
    settings: EngineSettings,
    split: bool,
    pinned: Option<Range<u32>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.loader.fmt(f)
    }
}

/// One model and its state.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Name of the model in requests.
    pub name: String,
    /// Digest of the model, once known.
    pub digest: Option<Digest>,
    /// `absent`, `loading`, `ready`, `unloaded`, `unproven`, `unplaced`, `failed` or `dropped`.
    pub state: &'static str,
    /// Why it failed, why no node can hold it, or why it is still absent.
    pub why: Option<String>,
    /// Facts about the model, once it is ready.
    pub facts: Option<ModelFacts>,
    /// Answers being generated.
    pub running: usize,
    /// Answers that wait.
    pub waiting: usize,
}

impl Served {
    /// The catalogue of `models` (names in `folder`, or paths); local ones are loaded once the node
    /// [joins](Served::join) its pool. A name that stands for nothing on this machine may be one of the pool's.
    ///
    /// # Errors
    /// `InvalidInput` for a path without a valid model, for a name that no model can have or that several have, and for two
    /// models with one name.
    pub fn new(models: &[String], folder: &Path) -> Result<Served> {
        let mut entries: Vec<Arc<Entry>> = Vec::with_capacity(models.len());
        for model in models {
            let name = models::name_of(model);
            if entries.iter().any(|other| other.name == name) {
                let message = format!("two models are named {name}; serve one of them, or rename a file");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            let state = match models::locate(folder, model) {
                Ok(Found::Local(path)) => {
                    // An invalid header is reported before anything starts.
                    ModelFile::open(&path).map_err(compute_error)?;
                    State::Loading
                }
                Ok(Found::Fetchable(_)) => State::Absent { why: None },
                Err(error) if error.kind() == ErrorKind::NotFound && !models::is_path(model) => {
                    State::Absent { why: Some(error) }
                }
                Err(error) => return Err(Error::new(ErrorKind::InvalidInput, error.message())),
            };
            let source = Source::File { model: model.clone(), folder: folder.to_owned() };
            entries.push(Arc::new(Entry::new(name, name, source, state)));
        }
        let assignments = models.is_empty().then(Mutex::default);
        let (entries, folder) = (RwLock::new(entries), folder.to_owned());
        Ok(Served(Arc::new(Inner { entries, folder, assignments, ..Inner::default() })))
    }

    /// Records that this node was told of peers, whose models it does not know yet.
    pub fn expect_peers(&self) {
        self.0.lately.lock().unwrap_or_else(PoisonError::into_inner).expect_peers();
    }

    /// Loads the local models and adds those of the pool.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be started.
    pub fn join(
        &self,
        loader: Loader,
        auditor: Auditor,
        jobs: Jobs,
        settings: EngineSettings,
        split: bool,
        pinned: Option<Range<u32>>,
    ) -> Result<()> {
        if loader.view().borrow().own.works {
            loader.look_for_files_in(&self.0.folder);
        }
        // A node joins one pool, once.
        let dispatch = Dispatch::default();
        let _ = self.0.node.set(Node { loader, auditor, jobs, dispatch, settings, split, pinned });
        for entry in self.entries() {
            if matches!(*entry.state.borrow(), State::Loading) {
                self.load(&entry)?;
            } else {
                self.tell_absent(&entry);
            }
        }
        Ok(())
    }

    /// Says of a model that is not on this node, where it may come from.
    fn tell_absent(&self, entry: &Entry) {
        let state = entry.state.borrow();
        let State::Absent { why } = &*state else { return };
        let (model, folder) = (&entry.name, self.0.folder.display());
        match why {
            Some(why) => tracing::warn!(
                event = "model_absent",
                model,
                "Model {model} is not on this node: {why}. `pangea models list` shows what is here, and `pangea models pull NAME` \
                 downloads. {model} can be asked for as soon as a node of the pool serves it"
            ),
            None => tracing::info!(
                event = "model_absent",
                model,
                "Model {model} is not in {folder}: the first request downloads it, or `pangea models pull {model}`"
            ),
        }
    }

    /// Follows the models of the pool, until the view ends.
    pub async fn follow(self, mut view: watch::Receiver<Arc<View>>) {
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            self.update(&now, clock::now());
            self.load_wanted(&now);
            self.assign(&now, clock::now());
            self.retry();
            // A model whose first answer failed is due at some time, whatever the pool does.
            if let Ok(Err(_)) = tokio::time::timeout(RETRY_TICK, view.changed()).await {
                return;
            }
        }
    }

    /// Adds the models that other nodes serve, and removes those that no node serves any more, unless all their layers are
    /// loaded. Two digests under one name are two models: [`NameChoices`] says which has the name, and any other is named
    /// `name@` plus the start of its digest.
    fn update(&self, view: &View, now: Time) {
        self.learn_drops(view, now);
        self.0.lately.lock().unwrap_or_else(PoisonError::into_inner).update(view, now);
        let counted = served::served(view);
        let mut served: Vec<&ModelAdvert> =
            view.nodes.values().flat_map(|node| &node.models).filter(|model| model.served).collect();
        served.retain(|model| counted.contains_key(&model.digest) && !self.is_dropped(&model.digest));
        served.sort_by(|one, other| (&one.name, one.digest).cmp(&(&other.name, other.digest)));
        served.dedup_by(|one, other| (&one.name, one.digest) == (&other.name, other.digest));
        let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
        let own = entries.iter().filter(|entry| entry.is_own());
        let own: Vec<_> = own.map(|entry| (entry.called.clone(), entry.digest.get().copied())).collect();
        let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        for NameChosen { name, digest, reason, others } in names.update(view, &own, now) {
            let others = others.join(", ");
            tracing::warn!(
                event = "model_name_shared",
                model = name,
                %digest,
                others,
                "Several different models are named {name}: it stands for {} ({reason}), and other models are {others}",
                full_name(&name, &digest)
            );
        }
        entries.retain(|entry| match &entry.source {
            Source::File { .. } | Source::Copy(_) => true,
            Source::Pool(digest) => {
                let stays = served.iter().any(|model| model.digest == *digest)
                    || self.has_whole_copy(digest)
                    || has_loaded_chain(view, digest);
                stays && entry.name == names.listed(&entry.called, digest)
            }
        });
        for digest in entries.iter().filter_map(|entry| entry.source.pooled()) {
            let own = view.own.models.iter().any(|own| own.digest == digest && !own.served);
            if own && !served.iter().any(|model| model.digest == digest) {
                self.adopt(digest);
            }
        }
        for model in served {
            let known =
                |entry: &Arc<Entry>| entry.called == model.name && entry.may_be(&model.digest) && !entry.yields();
            if !entries.iter().any(known) {
                let name = names.listed(&model.name, &model.digest);
                let source = Source::Pool(model.digest);
                let mut entry = Entry::new(&name, &model.name, source, State::Absent { why: None });
                // Uses the counters of this node's own stage, which continue if the model disappears and returns; counters
                // that another name uses already are not registered twice.
                let stage = self.0.node.get().map(|node| node.loader.metrics(model.digest));
                if let Some(metrics) = stage.filter(|stage| !entries.iter().any(|other| other.counts(stage))) {
                    entry.metrics = metrics;
                }
                self.look_for_file(model.digest, &name);
                entries.push(Arc::new(entry));
            }
        }
    }

    /// Tries models again: unplaced ones that have a placement now, and those whose first answer failed some time ago.
    fn retry(&self) {
        for entry in self.entries() {
            let again = entry.state.send_if_modified(|state| {
                let again = match state {
                    State::Unplaced { engine, .. } => engine.has_route(),
                    State::Unproven { retry_at, .. } => clock::now() >= *retry_at,
                    _ => false,
                };
                if again {
                    *state = State::Loading;
                }
                again
            });
            if again && let Err(error) = self.load(&entry) {
                tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served", entry.name);
            }
        }
    }

    /// Whether this node has fetched the whole model, so that it stays served when other nodes leave.
    fn has_whole_copy(&self, model: &Digest) -> bool {
        let node = self.0.node.get();
        node.and_then(|node| node.loader.blobs().have(model)).is_some_and(|here| here.is_whole())
    }

    /// Looks for the user's own file of a model that other nodes serve, on a thread of its own.
    fn look_for_file(&self, model: Digest, name: &str) {
        let Some(loader) = self.0.node.get().map(|node| node.loader.clone()) else { return };
        let (supervisor, called) = (loader.pipeline().supervisor().clone(), name.to_owned());
        let look = move || {
            loader.has_file(model, &called);
        };
        // Without the thread the file is looked for when layers of the model are to be loaded.
        let _ = supervisor.owned_thread(&format!("looking for the file of {name}"), look, |_| {});
    }

    /// Serves a model from the local copy, because no other node serves it any more.
    fn adopt(&self, model: Digest) {
        let Some(node) = self.0.node.get() else { return };
        node.loader.pool().update_advert(|own| {
            if let Some(known) = own.models.iter_mut().find(|known| known.digest == model) {
                (known.served, known.whole) = (true, true);
            }
        });
    }

    /// The models that requests can name: one of the pool takes the place of this node's that [yields](Entry::yields).
    fn entries(&self) -> Vec<Arc<Entry>> {
        let all = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        let has_place = |entry: &&Arc<Entry>| {
            !entry.yields() || !all.iter().any(|other| other.called == entry.called && !other.yields())
        };
        all.iter().filter(has_place).cloned().collect()
    }

    /// Names of the models.
    pub fn names(&self) -> Vec<String> {
        self.entries().iter().map(|entry| entry.name.clone()).collect()
    }

    /// Answers of one model that this node generates at once.
    pub fn places(&self) -> usize {
        self.0.node.get().map_or(1, |node| node.settings.running)
    }

    /// Every model and its state.
    pub fn list(&self) -> Vec<ServedModel> {
        let node = self.0.node.get();
        self.entries().iter().map(|entry| entry.show(node)).collect()
    }

    /// The state of each model, and of each that went with the nodes that served it, in the client's type.
    pub fn states(&self) -> Vec<ModelState> {
        let listed = self.list().into_iter().map(|ServedModel { name, state, why, digest, .. }| ModelState {
            why: why.or_else(|| self.left_out(&digest?)).unwrap_or_default(),
            name,
            state: state.to_owned(),
        });
        listed.chain(self.away()).collect()
    }

    /// The models that other nodes served a short while ago, and that no node serves now.
    fn away(&self) -> Vec<ModelState> {
        let entries = self.entries();
        let lately = self.0.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let is_listed = |digest: &Digest| entries.iter().any(|entry| entry.digest.get() == Some(digest));
        let away = lately.away().filter(|(_, digest, _)| !is_listed(digest));
        away.map(|(name, digest, nodes)| ModelState {
            name: if entries.iter().any(|entry| entry.name == name) {
                full_name(name, digest)
            } else {
                name.to_owned()
            },
            state: "away".to_owned(),
            why: without_weights(name, nodes.iter().map(String::as_str)),
        })
        .collect()
    }

    /// Why this node has no layers of a model that the pool places, if it has none.
    fn left_out(&self, model: &Digest) -> Option<String> {
        let loader = &self.0.node.get()?.loader;
        let view = Arc::clone(&loader.view().borrow());
        let placements = pool_facts::placements(&view)?;
        let mut of_model = placements.iter().filter(|placement| placement.model == *model).peekable();
        of_model.peek()?;
        if of_model.any(|placement| placement.stages.iter().any(|stage| loader.is_local(&stage.peer))) {
            return None;
        }
        let name = full_name(&pool_facts::model(&view, model)?.name, model);
        let left_out = preview(&view, &name).ok()?.left_out;
        let (.., why) = left_out.into_iter().find(|(peer, ..)| loader.is_local(peer))?;
        Some(format!("no layers on this node: {why}"))
    }

    /// Whether every local model has answered a request, and every other one is placed in the pool.
    pub fn is_ready(&self) -> bool {
        self.list().iter().all(|model| matches!(model.state, "ready" | "unloaded" | "absent"))
    }

    /// Whether some request may have to be answered by another node as a whole: for the other models a look at their names is saved.
    pub fn may_tunnel(&self) -> bool {
        let Some(node) = self.0.node.get() else { return false };
        let view = Arc::clone(&node.loader.view().borrow());
        let is_foreign = view.nodes.values().any(|other| other.numerics != view.own.numerics);
        self.entries().iter().any(|entry| entry.source.pooled().is_some() && (is_foreign || !entry.has_text()))
    }

    /// A model by its name, if requests to it are to be answered by another node as a whole.
    pub fn remote(&self, name: &str) -> Option<RemoteModel> {
        let (node, entry) = (self.0.node.get()?, self.find(name)?);
        let digest = entry.source.pooled()?;
        let view = Arc::clone(&node.loader.view().borrow());
        let known = ModelKnowledge {
            has_text: entry.has_text(),
            fetches_text: view.own.works && !entry.text_failed.load(Ordering::Relaxed),
            has_numerics: has_numerics(&view, &digest),
            has_server: node.dispatch.has_whole(digest, &view),
        };
        if way_of(known) == Way::Session {
            return None;
        }
        Some(RemoteModel {
            name: entry.name.clone(),
            digest,
            view: node.loader.view(),
            dispatch: node.dispatch.clone(),
            auditor: node.auditor.clone(),
            pace: Arc::clone(&entry.pace),
        })
    }

    /// The name under which this node serves a model to its pool, if it does: it was asked to, or has all layers.
    pub fn serves(&self, model: &Digest) -> Option<String> {
        let view = Arc::clone(&self.0.node.get()?.loader.view().borrow());
        let own = &view.own;
        let is_served = own.serving.iter().any(|serving| serving.model == *model)
            || own.models.iter().any(|known| known.served && known.digest == *model);
        let entries = self.entries();
        let entry = entries.iter().find(|entry| is_served && entry.digest.get() == Some(model))?;
        Some(entry.name.clone())
    }

    /// Metrics of the engines of the models served now.
    pub(super) fn metrics(&self) -> Vec<ModelMetrics> {
        self.entries().iter().map(|entry| (entry.name.clone(), Arc::clone(&entry.metrics))).collect()
    }

    /// The model with this name, or with this full name.
    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        let entries = self.entries();
        let exact = entries.iter().find(|entry| entry.name == name);
        let full = || entries.iter().find(|entry| entry.is_called(name));
        exact.or_else(full).cloned()
    }

    /// A model by its name or its full name.
    pub fn one(&self, name: &str) -> Option<ServedModel> {
        self.find(name).map(|entry| entry.show(self.0.node.get()))
    }

    /// Why no model has this name: `Unavailable` if other nodes served it a short while ago, or may serve it without this
    /// node's having heard of it yet; `NotFound` otherwise.
    pub fn not_found(&self, name: &str) -> Error {
        let entries = self.entries();
        let others: Vec<String> =
            entries.iter().filter(|entry| entry.called == name).filter_map(|entry| entry.full_name()).collect();
        let lately = self.0.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, mut message) = match lately.nodes(name) {
            Some(nodes) => (ErrorKind::Unavailable, format!("{}, or try again later", without_weights(name, nodes))),
            None if !others.is_empty() => (ErrorKind::NotFound, format!("the model {name:?} is on no node any more")),
            None if lately.is_joining() => (
                ErrorKind::Unavailable,
                format!(
                    "this node does not know the models of its pool yet, and {name:?} may be one of them; try again later"
                ),
            ),
            None => (ErrorKind::NotFound, format!("this node does not serve the model {name:?}")),
        };
        if !others.is_empty() {
            let others = others.join(", ");
            message.push_str(&format!("; other models with the name are {others}: request one of them by that name"));
        }
        Error::new(kind, message)
    }

    /// Why a model has no plan, where `error` says that no node serves it: it may have gone with its nodes.
    pub fn not_planned(&self, name: &str, error: Error) -> Error {
        let not_found = || Some(self.not_found(name)).filter(|why| why.kind() == ErrorKind::Unavailable);
        (error.kind() == ErrorKind::NotFound && !name.is_empty()).then(not_found).flatten().unwrap_or(error)
    }

    /// The engine of a model, once it is ready; downloads and loads an absent model.
    ///
    /// # Errors
    /// As [`Served::not_found`], `Unavailable` if the model is not ready within `timeout`, and the error that prevented
    /// loading it.
    pub async fn engine(&self, name: &str, timeout: Duration) -> Result<Engine> {
        let Some(entry) = self.find(name) else {
            return Err(self.not_found(name));
        };
        let is_unloaded = self.is_unloaded(&entry);
        let waits =
            |state: &State| matches!(state, State::Absent { .. }) || (is_unloaded && matches!(state, State::Ready(_)));
        self.start_loading(&entry, waits)?;
        let mut state = entry.state.subscribe();
        let settled = tokio::time::timeout(timeout, state.wait_for(|state| !matches!(state, State::Loading))).await;
        let loading =
            || Error::new(ErrorKind::Unavailable, format!("the model {name} is still loading; try again later"));
        let state = settled.map_err(|_| loading())?.map_err(|_| loading())?;
        match &*state {
            // A request may succeed where the first one failed.
            State::Ready(engine) | State::Unproven { engine, .. } => Ok(engine.clone()),
            // The pool may have changed just now.
            State::Unplaced { engine, .. } if engine.has_route() => Ok(engine.clone()),
            State::Unplaced { engine, why } => {
                let why = engine.unplaceable().unwrap_or_else(|| why.message().to_owned());
                Err(Error::new(ErrorKind::Unavailable, why))
            }
            State::Failed(error) | State::Absent { why: Some(error) } => {
                Err(Error::new(ErrorKind::Unavailable, error.message()))
            }
            State::Loading | State::Absent { why: None } => Err(loading()),
        }
    }

    /// Whether this node serves a model and has unloaded it, because nobody used it.
    fn is_unloaded(&self, entry: &Entry) -> bool {
        let Some((node, digest)) = self.0.node.get().zip(entry.digest.get()) else { return false };
        entry.source.pooled().is_none() && node.loader.is_unloaded(digest)
    }

    /// Loads the unloaded models of this node for which requests at other nodes wait.
    fn load_wanted(&self, view: &View) {
        if view.own.unloaded.is_empty() {
            return;
        }
        let is_wanted = |model: &Digest| view.everyone().any(|advert| advert.wanted.contains(model));
        for entry in self.entries() {
            if entry.digest.get().is_some_and(is_wanted) && self.is_unloaded(&entry) {
                // Without a thread, the next view tries again.
                let _ = self.start_loading(&entry, |state| matches!(state, State::Ready(_)));
            }
        }
    }

    /// Loads a model whose state is one of these.
    fn start_loading(&self, entry: &Arc<Entry>, from: impl Fn(&State) -> bool) -> Result<()> {
        let wanted = entry.state.send_if_modified(|state| {
            let from = from(state);
            if from {
                *state = State::Loading;
            }
            from
        });
        if wanted { self.load(entry) } else { Ok(()) }
    }

    /// Tells the pool of a model that answers before its file is hashed, once it is. Blocks until then.
    fn announce_unhashed(&self, entry: &Arc<Entry>) {
        let Some(node) = self.0.node.get() else { return };
        if let Err(error) = entry.announce_unhashed(node, || self.lists(entry)) {
            if error.kind() == ErrorKind::InvalidInput && self.lists(entry) && entry.may_reload() {
                let model = &entry.name;
                tracing::warn!(event = "model_reloaded", model, %error, "Loading model {model} again: {error}");
                entry.state.send_replace(State::Loading);
                // Without a thread, the entry says so.
                let _ = self.load(entry);
                return;
            }
            tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served: {error}", entry.name);
            entry.state.send_replace(State::Failed(error));
        }
        // Dropped while it was hashed, unless somebody has loaded the same model again since.
        let Some(digest) = entry.digest.get().filter(|_| !self.lists(entry)) else { return };
        if !self.entries().iter().any(|listed| listed.digest.get() == Some(digest)) {
            if entry.dropped.load(Ordering::Relaxed) {
                self.drop_digest(node, *digest);
            }
            self.withdraw_entry(entry);
        }
    }

    /// Loads a model, whose state is `Loading` already, on a thread of its own.
    fn load(&self, entry: &Arc<Entry>) -> Result<()> {
        let (served, loaded, panicked) = (self.clone(), Arc::clone(entry), Arc::clone(entry));
        let supervisor = self.0.node.get().map(|node| node.loader.pipeline().supervisor().clone()).unwrap_or_default();
        let work = move || {
            let entry = loaded;
            let state = match served.0.node.get() {
                Some(node) => entry.load(node),
                None => State::Absent { why: None },
            };
            entry.text_failed.store(matches!(state, State::Absent { why: Some(_) }), Ordering::Relaxed);
            match &state {
                State::Failed(error) | State::Absent { why: Some(error) } => {
                    tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served", entry.name);
                }
                State::Unplaced { why: error, .. } => {
                    tracing::warn!(event = "model_unplaced", model = entry.name, %error, "cannot place model {}: {error}", entry.name);
                }
                // The model logs its failed first answers itself.
                State::Absent { why: None } | State::Loading | State::Ready(_) | State::Unproven { .. } => {}
            }
            entry.state.send_replace(state);
            // Dropped while it was loading.
            if !served.lists(&entry) {
                served.withdraw_entry(&entry);
            }
            served.announce_unhashed(&entry);
        };
        let on_panic = move |why: &str| {
            let error = Error::new(ErrorKind::Internal, format!("loading the model panicked: {why}"));
            panicked.state.send_replace(State::Failed(error));
        };
        let thread = supervisor.owned_thread(&format!("loading model {}", entry.name), work, on_panic);
        thread.map(drop).map_err(|error| {
            let error = Error::new(ErrorKind::Internal, format!("cannot start a thread to load a model: {error}"));
            entry.state.send_replace(State::Failed(error.clone()));
            error
        })
    }
}

#[cfg(test)]
mod tests;
