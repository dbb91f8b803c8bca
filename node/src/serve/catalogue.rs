//! The models that can be asked for at this node, by name: those it was told to serve and those that its pool has, how each
//! stands, and its engine once that has answered a first request. Loading happens on threads of its own; nothing waits for
//! it but requests for that model.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, ModelState, Result};
use pangea_compute::model::ModelFile;
use pangea_compute::{Cancel, Digest};
use pangea_control::placement::pool_facts;
use tokio::sync::watch;

use super::engine::{Engine, EngineSettings, ModelFacts};
use super::metrics::{EngineMetrics, ModelMetrics};
use super::pooled::{LocalModel, Pooled};
use super::request::{Event, Prompt, Request};
use super::text::ModelText;
use crate::blob::{self, Wanted};
use crate::jobs::Jobs;
use crate::pipeline::Loader;
use crate::pool::{ModelAdvert, View};
use crate::trust::Auditor;
use crate::{compute_error, models};

/// The models of a node; none by default. Cloning gives the same ones.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: RwLock<Vec<Arc<Entry>>>,
    /// What is needed to compute with others, from the moment the node has a pool.
    node: OnceLock<Node>,
}

struct Node {
    loader: Loader,
    auditor: Auditor,
    jobs: Jobs,
    settings: EngineSettings,
    split: bool,
    pinned: Option<Range<u32>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.loader.fmt(f)
    }
}

/// One of them, as it stands.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The name that requests give.
    pub name: String,
    /// Content address of the model, once it is known.
    pub digest: Option<Digest>,
    /// `absent`, `loading`, `ready`, `unplaced` or `failed`.
    pub state: &'static str,
    /// Why it failed, why no node can hold it, or why it is absent still.
    pub why: Option<String>,
    /// What it is, once it is ready.
    pub facts: Option<ModelFacts>,
    /// Answers being generated.
    pub running: usize,
    /// Answers that wait.
    pub waiting: usize,
}

#[derive(Debug)]
struct Entry {
    /// What the model is served as.
    name: String,
    /// What whoever serves it calls it; more than one may be called so.
    called: String,
    source: Source,
    /// Content address of the model, once it is known.
    digest: OnceLock<Digest>,
    metrics: Arc<EngineMetrics>,
    state: watch::Sender<State>,
}

#[derive(Debug)]
enum Source {
    /// A name in the folder of models, or a path.
    File { model: String, folder: PathBuf },
    /// Another node serves it.
    Pool(Digest),
}

impl Source {
    /// The model, where other nodes serve it.
    fn pooled(&self) -> Option<Digest> {
        match self {
            Source::File { .. } => None,
            Source::Pool(digest) => Some(*digest),
        }
    }
}

enum State {
    /// It is not here; the first request gets it.
    Absent {
        why: Option<Error>,
    },
    Loading,
    Ready(Engine),
    /// No node of the pool can hold it as things are, this one included; a change of the pool may help.
    Unplaced {
        engine: Engine,
        why: Error,
    },
    Failed(Error),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::Absent { .. } => "absent",
            State::Loading => "loading",
            State::Ready(_) => "ready",
            State::Unplaced { .. } => "unplaced",
            State::Failed(_) => "failed",
        }
    }
}

impl Served {
    /// Those of `models` (names in `folder`, or paths); what is here is loaded once the node [joins](Served::join) its pool.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads to no file or to no model, and for two models of one name.
    pub fn new(models: &[String], folder: &Path) -> Result<Served> {
        let mut entries: Vec<Arc<Entry>> = Vec::with_capacity(models.len());
        for model in models {
            let name = models::name_of(model);
            if entries.iter().any(|other| other.name == name) {
                let message = format!("two models are called {name}; serve one of them, or rename a file");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            let state = match models::find(folder, model) {
                Some(path) => {
                    // What is wrong with the file's head is said before anything starts.
                    ModelFile::open(&path).map_err(compute_error)?;
                    State::Loading
                }
                None if models::is_path(model) => {
                    let error = models::resolve(folder, model).err();
                    let message = error.map_or_else(String::new, |error| error.message().to_owned());
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                None => State::Absent { why: None },
            };
            let source = Source::File { model: model.clone(), folder: folder.to_owned() };
            entries.push(Arc::new(Entry::new(name, name, source, state)));
        }
        Ok(Served(Arc::new(Inner { entries: RwLock::new(entries), node: OnceLock::new() })))
    }

    /// Loads what is here, and offers what the pool has.
    ///
    /// # Errors
    /// `Internal` where the system has no thread.
    pub fn join(
        &self,
        loader: Loader,
        auditor: Auditor,
        jobs: Jobs,
        settings: EngineSettings,
        split: bool,
        pinned: Option<Range<u32>>,
    ) -> Result<()> {
        // A node joins one pool, once.
        let _ = self.0.node.set(Node { loader, auditor, jobs, settings, split, pinned });
        for entry in self.entries() {
            if matches!(*entry.state.borrow(), State::Loading) {
                self.load(&entry)?;
            }
        }
        Ok(())
    }

    /// Follows what the pool serves, for as long as that changes.
    pub async fn follow(self, mut view: watch::Receiver<Arc<View>>) {
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            self.see(&now);
            self.retry_placed();
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Adds the models that other nodes serve, and forgets those that nobody serves any more. Two digests under one name are
    /// two models: the first that was seen has the name, any other has `name@` and the beginning of its digest.
    fn see(&self, view: &View) {
        let mut served: Vec<&ModelAdvert> =
            view.nodes.values().flat_map(|node| &node.models).filter(|model| model.served).collect();
        // Of models that are seen for the first time together, every node gives the same one the name.
        served.sort_by(|one, other| (&one.name, one.digest).cmp(&(&other.name, other.digest)));
        served.dedup_by(|one, other| (&one.name, one.digest) == (&other.name, other.digest));
        let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| match &entry.source {
            Source::File { .. } => true,
            Source::Pool(digest) => served.iter().any(|model| model.digest == *digest) || self.has_whole_copy(digest),
        });
        for digest in entries.iter().filter_map(|entry| entry.source.pooled()) {
            let own = view.own.models.iter().any(|own| own.digest == digest && !own.served);
            if own && !served.iter().any(|model| model.digest == digest) {
                self.adopt(digest);
            }
        }
        for model in served {
            let known = |entry: &Arc<Entry>| entry.called == model.name && entry.may_be(&model.digest);
            if !entries.iter().any(known) {
                let taken = entries.iter().any(|entry| entry.name == model.name);
                let name = if taken { full_name(&model.name, &model.digest) } else { model.name.clone() };
                if taken {
                    tracing::warn!(
                        event = "model_name_shared",
                        model = model.name,
                        digest = %model.digest,
                        "Two different models are called {}; this one is served as {name}",
                        model.name
                    );
                }
                let source = Source::Pool(model.digest);
                let mut entry = Entry::new(&name, &model.name, source, State::Absent { why: None });
                // With what this node's own stage of it counts, and on from there if the model goes and comes back; but
                // what is counted under another name already is not counted twice.
                let stage = self.0.node.get().map(|node| node.loader.metrics(model.digest));
                if let Some(metrics) = stage.filter(|stage| !entries.iter().any(|other| other.counts(stage))) {
                    entry.metrics = metrics;
                }
                entries.push(Arc::new(entry));
            }
        }
    }

    /// Asks the models again that had no place and have one now.
    fn retry_placed(&self) {
        for entry in self.entries() {
            let placed = entry.state.send_if_modified(|state| {
                let placed = matches!(state, State::Unplaced { engine, .. } if engine.has_route());
                if placed {
                    *state = State::Loading;
                }
                placed
            });
            if placed && let Err(error) = self.load(&entry) {
                tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served", entry.name);
            }
        }
    }

    /// Whether all of a model was fetched here, so that it stays served whoever leaves.
    fn has_whole_copy(&self, model: &Digest) -> bool {
        let node = self.0.node.get();
        node.and_then(|node| node.loader.blobs().have(model)).is_some_and(|here| here.is_whole())
    }

    /// Serves a model from the copy here, now that no other node serves it.
    fn adopt(&self, model: Digest) {
        let Some(node) = self.0.node.get() else { return };
        node.loader.pool().say(|own| {
            if let Some(known) = own.models.iter_mut().find(|known| known.digest == model) {
                (known.served, known.whole) = (true, true);
            }
        });
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.0.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.entries().iter().map(|entry| entry.name.clone()).collect()
    }

    /// All of them, as they stand.
    pub fn list(&self) -> Vec<ServedModel> {
        let node = self.0.node.get();
        self.entries().iter().map(|entry| entry.show(node)).collect()
    }

    /// The state of each, as programs read it.
    pub fn states(&self) -> Vec<ModelState> {
        let models = self.list().into_iter();
        models
            .map(|ServedModel { name, state, why, .. }| ModelState {
                name,
                state: state.to_owned(),
                why: why.unwrap_or_default(),
            })
            .collect()
    }

    /// Whether every model that is here has answered a request, and every other one has a place in the pool.
    pub fn is_ready(&self) -> bool {
        self.list().iter().all(|model| matches!(model.state, "ready" | "absent"))
    }

    /// What the engines of the models that are served now count.
    pub(super) fn metrics(&self) -> Vec<ModelMetrics> {
        self.entries().iter().map(|entry| (entry.name.clone(), Arc::clone(&entry.metrics))).collect()
    }

    /// The model of this name; of several models of one name, the one that has it, or any by its full name.
    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        let entries = self.entries();
        let exact = entries.iter().find(|entry| entry.name == name);
        let full = || entries.iter().find(|entry| entry.full_name().is_some_and(|full| full == name));
        // The one that had the name may be gone, and another of that name be left.
        let left = || entries.iter().find(|entry| entry.called == name);
        exact.or_else(full).or_else(left).cloned()
    }

    /// The engine of a model, once it is ready; gets and loads what is absent.
    ///
    /// # Errors
    /// `NotFound` for a model that is not served, `Unavailable` where it is not ready within `patience`, and whatever kept it
    /// from being loaded.
    pub async fn engine(&self, name: &str, patience: Duration) -> Result<Engine> {
        let Some(entry) = self.find(name) else {
            return Err(Error::new(ErrorKind::NotFound, format!("the model {name} is not served here")));
        };
        let wanted = entry.state.send_if_modified(|state| {
            let absent = matches!(state, State::Absent { .. });
            if absent {
                *state = State::Loading;
            }
            absent
        });
        if wanted {
            self.load(&entry)?;
        }
        let mut state = entry.state.subscribe();
        let settled = tokio::time::timeout(patience, state.wait_for(|state| !matches!(state, State::Loading))).await;
        let loading =
            || Error::new(ErrorKind::Unavailable, format!("the model {name} is still loading; try again soon"));
        let state = settled.map_err(|_| loading())?.map_err(|_| loading())?;
        match &*state {
            State::Ready(engine) => Ok(engine.clone()),
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

    /// Loads one, whose state says so already, on a thread of its own.
    fn load(&self, entry: &Arc<Entry>) -> Result<()> {
        let (served, loaded, panicked) = (self.clone(), Arc::clone(entry), Arc::clone(entry));
        let supervisor = self.0.node.get().map(|node| node.loader.pipeline().supervisor().clone()).unwrap_or_default();
        let work = move || {
            let entry = loaded;
            let state = match served.0.node.get() {
                Some(node) => entry.load(node),
                None => State::Absent { why: None },
            };
            match &state {
                State::Failed(error) | State::Absent { why: Some(error) } => {
                    tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served", entry.name);
                }
                State::Unplaced { why: error, .. } => {
                    tracing::warn!(event = "model_unplaced", model = entry.name, %error, "Model {} has no place: {error}", entry.name);
                }
                State::Absent { why: None } | State::Loading | State::Ready(_) => {}
            }
            entry.state.send_replace(state);
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

impl Entry {
    fn new(name: &str, called: &str, source: Source, state: State) -> Entry {
        let digest = match &source {
            Source::Pool(digest) => OnceLock::from(*digest),
            Source::File { .. } => OnceLock::new(),
        };
        let (name, called) = (name.to_owned(), called.to_owned());
        Entry { name, called, source, digest, metrics: Arc::default(), state: watch::Sender::new(state) }
    }

    /// Whether this can be the model with this digest; a file that has not been read can be any.
    fn may_be(&self, digest: &Digest) -> bool {
        self.digest.get().is_none_or(|known| known == digest)
    }

    fn full_name(&self) -> Option<String> {
        self.digest.get().map(|digest| full_name(&self.called, digest))
    }

    fn counts(&self, metrics: &Arc<EngineMetrics>) -> bool {
        Arc::ptr_eq(&self.metrics, metrics)
    }

    /// Gets what is needed of the file, loads it and asks it something.
    fn load(&self, node: &Node) -> State {
        let began = std::time::Instant::now();
        let engine = match &self.source {
            Source::File { model, folder } => match self.file(model, folder) {
                Ok(path) => self.here(node, &path),
                // The next request may have better luck.
                Err(error) => return State::Absent { why: Some(error) },
            },
            Source::Pool(digest) => match self.there(node, *digest) {
                Ok(engine) => return State::Ready(engine),
                Err(error) => return State::Absent { why: Some(error) },
            },
        };
        let engine = match engine {
            Ok(engine) => engine,
            Err(error) => return State::Failed(error),
        };
        match probe(&engine) {
            Ok(()) => {
                let millis = began.elapsed().as_millis() as u64;
                let bytes = engine.model().memory_bytes;
                tracing::info!(event = "model_ready", model = self.name, millis, bytes, "Serving model {}", self.name);
                State::Ready(engine)
            }
            // Nobody computes it as things are.
            Err(why) if engine.unplaceable().is_some() || !engine.has_route() => State::Unplaced { engine, why },
            Err(error) => State::Failed(error),
        }
    }

    /// A model whose file is here: the pool is told of it, and unless it is to be split it is loaded.
    fn here(&self, node: &Node, path: &Path) -> Result<Engine> {
        let about = |error: Error| {
            Error::new(error.kind(), format!("the model {} cannot be loaded: {}", self.name, error.message()))
        };
        let loader = &node.loader;
        let offered = loader.blobs().offer(path)?;
        let file = ModelFile::open(path).map_err(compute_error).map_err(about)?;
        let size = blob::model_size(&offered.manifest, file.config());
        loader.count(offered.digest, Arc::clone(&self.metrics));
        // A second load of the same file finds the same digest.
        let _ = self.digest.set(offered.digest);
        let alone = !node.split && node.pinned.is_none();
        if alone {
            match loader.load_whole(offered.digest, path, Arc::clone(&self.metrics)) {
                Ok(_) => {}
                // The pool together may have the memory that this node lacks.
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    let why = error.message();
                    tracing::info!(
                        event = "not_loaded_alone",
                        model = self.name,
                        why,
                        "Model {} does not fit this node alone: {why}",
                        self.name
                    );
                }
                Err(error) => return Err(about(error)),
            }
        }
        let advert = ModelAdvert {
            digest: offered.digest,
            name: self.name.clone(),
            served: true,
            whole: true,
            split: node.split,
            pinned: node.pinned.clone(),
            size,
        };
        loader.pool().say(|own| {
            own.models.retain(|known| known.digest != advert.digest);
            own.models.push(advert);
        });
        self.engine(node, &file, offered.digest, Some(path.to_owned()))
    }

    /// A model that other nodes compute: its header is enough to talk to them.
    fn there(&self, node: &Node, digest: Digest) -> Result<Engine> {
        let failed = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot fetch a model: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let loader = &node.loader;
        let view = Arc::clone(&loader.view().borrow());
        let has = |node: &&Arc<crate::pool::Advert>| node.models.iter().any(|model| model.digest == digest);
        let holders = view.nodes.values().filter(has).map(|node| node.peer).collect();
        let cancel = Cancel::new();
        let mut progress = |_, _| {};
        let blobs = loader.blobs().called(&self.name);
        let path = runtime.block_on(blobs.fetch(digest, Wanted::header(), holders, &mut progress, &cancel))?;
        let file = ModelFile::open(&path).map_err(compute_error)?;
        self.engine(node, &file, digest, None)
    }

    fn engine(&self, node: &Node, file: &ModelFile, digest: Digest, whole: Option<PathBuf>) -> Result<Engine> {
        let config = file.config();
        let text = Arc::new(ModelText::of(file)?);
        let (loader, settings) = (&node.loader, node.settings);
        let manifest = loader.blobs().have(&digest).map(|here| here.manifest);
        let least = manifest.map_or(0, |manifest| {
            let size = blob::model_size(&manifest, config);
            size.session_bytes(&(0..size.layers))
        });
        // Every chain has memory for the least.
        let session_bytes = settings.session_bytes.max(least);
        let longest = session_bytes / (config.position_bytes() * config.layers as u64).max(1);
        let facts = ModelFacts {
            name: self.name.clone(),
            path: file.path().to_owned(),
            architecture: config.architecture.name(),
            layers: config.layers,
            context: config.context.min(usize::try_from(longest).unwrap_or(usize::MAX)),
            vocabulary: config.vocabulary,
            memory_bytes: loader.memory_bytes(digest),
            file_bytes: file.gguf().size_bytes(),
            session_bytes,
        };
        if facts.context < 2 {
            let message = format!(
                "the model {} cannot be loaded: {} bytes for sessions do not hold a single one; allow more",
                self.name, session_bytes
            );
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let local = LocalModel { name: self.name.clone(), file: whole, metrics: Arc::clone(&self.metrics) };
        let routes = Arc::new(Pooled::new(loader.clone(), digest, config.layers as u32, local));
        let pipeline = loader.pipeline().clone();
        Ok(Engine::pooled(
            facts,
            text,
            Arc::clone(&self.metrics),
            pipeline,
            routes,
            node.auditor.clone(),
            node.jobs.clone(),
        ))
    }

    /// The model's file, fetched where it is not here.
    fn file(&self, model: &str, folder: &Path) -> Result<PathBuf> {
        let mut told = None;
        models::get(folder, model, &Cancel::new(), &mut |transfer| {
            let percent = transfer.done_bytes * 100 / transfer.total_bytes.max(1);
            // A line for every tenth.
            if told.replace((transfer.phase, percent / 10)) != Some((transfer.phase, percent / 10)) {
                let (model, phase) = (&self.name, transfer.phase);
                tracing::info!(event = "model_transfer", model, phase, percent, "Model {model}: {phase}, {percent} %");
            }
        })
    }

    /// Why the pool cannot place the model, where its master says so and nobody computes it.
    fn refusal(&self, node: Option<&Node>) -> Option<String> {
        let view = node?.loader.view();
        pool_facts::refusal(&view.borrow(), self.digest.get()?)
    }

    fn show(&self, node: Option<&Node>) -> ServedModel {
        let state = self.state.borrow();
        let (facts, (running, waiting)) = match &*state {
            State::Ready(engine) => (Some(engine.model().clone()), engine.load_now()),
            _ => (None, (0, 0)),
        };
        let refusal = match &*state {
            State::Ready(engine) if engine.has_route() => None,
            // What loads here may be here in a moment.
            State::Loading | State::Failed(_) => None,
            _ => self.refusal(node),
        };
        let name = if refusal.is_some() { "unplaced" } else { state.name() };
        let why = refusal.or_else(|| match &*state {
            State::Failed(error) | State::Absent { why: Some(error) } | State::Unplaced { why: error, .. } => {
                Some(error.message().to_owned())
            }
            State::Absent { why: None } | State::Loading | State::Ready(_) => None,
        });
        ServedModel {
            name: self.name.clone(),
            digest: self.digest.get().copied(),
            state: name,
            why,
            facts,
            running,
            waiting,
        }
    }
}

/// Hex digits of a digest that tell models of one name apart.
const DIGEST_CHARS: usize = 8;

/// The name of one of several models that are called the same.
fn full_name(name: &str, digest: &Digest) -> String {
    let mut digits = digest.to_string();
    digits.truncate(DIGEST_CHARS);
    format!("{name}@{digits}")
}

/// A short request, answered from one end to the other. Nobody asked for it: it leaves nothing behind.
fn probe(engine: &Engine) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot probe the model: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let hello = Request::new(Prompt::Text("Hello".to_owned()));
        let request = Request { max_tokens: Some(2), receipt: false, ..hello };
        let mut generation = engine.generate(request).await?;
        while let Some(event) = generation.next().await {
            if let Event::Done(_) = event? {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Internal, "the model's first answer broke off"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use libp2p::PeerId;

    use super::*;
    use crate::pool::{Advert, ModelSize, advert_of};

    /// A pool in which another node serves these models.
    fn pool(models: &[(&str, u8)]) -> View {
        let advert = |(name, byte): &(&str, u8)| ModelAdvert {
            digest: Digest::from_bytes([*byte; 32]),
            name: (*name).to_owned(),
            served: true,
            whole: true,
            split: false,
            pinned: None,
            size: ModelSize::default(),
        };
        let node = |models: Vec<ModelAdvert>| {
            let mut node = advert_of(PeerId::random());
            node.models = models;
            Arc::new(node)
        };
        let (own, other): (Arc<Advert>, Arc<Advert>) = (node(Vec::new()), node(models.iter().map(advert).collect()));
        let nodes = BTreeMap::from([(other.peer, other)]);
        View { local: own.peer, own, term: None, nodes, connected: BTreeSet::new() }
    }

    fn found(served: &Served, name: &str) -> Option<u8> {
        served.find(name).and_then(|entry| entry.digest.get().map(|digest| digest.as_bytes()[0]))
    }

    #[test]
    fn two_models_of_one_name_are_both_listed_and_both_reachable() {
        let served = Served::default();
        served.see(&pool(&[("tiny", 0xab), ("tiny", 0x12), ("tiny", 0xab), ("other", 7)]));
        assert_eq!(served.names(), ["other", "tiny", "tiny@abababab"]);
        assert_eq!((found(&served, "tiny"), found(&served, "tiny@abababab")), (Some(0x12), Some(0xab)));
        assert_eq!(found(&served, "tiny@12121212"), Some(0x12), "the first one by its full name, too");
        assert_eq!(found(&served, "tiny@33333333"), None);
    }

    #[test]
    fn a_model_keeps_its_name_whatever_comes_and_another_is_left_when_it_goes() {
        let served = Served::default();
        served.see(&pool(&[("tiny", 0xab)]));
        served.see(&pool(&[("tiny", 0x12), ("tiny", 0xab)]));
        assert_eq!((found(&served, "tiny"), found(&served, "tiny@12121212")), (Some(0xab), Some(0x12)));
        served.see(&pool(&[("tiny", 0x12)]));
        assert_eq!(served.names(), ["tiny@12121212"]);
        assert_eq!(found(&served, "tiny"), Some(0x12), "the name leads to the model that is left");
    }
}
