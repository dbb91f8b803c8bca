//! One model of the catalogue: its source, its state, and how its engine is made. The catalogue decides which names a node
//! lists.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::ModelFile;
use pangea_compute::{Cancel, Digest};
use pangea_control::Time;
use pangea_control::generation::PromptPace;
use pangea_control::placement::pool_facts;
use pangea_control::pool::{full_name, is_full_name};
use tokio::sync::watch;

use crate::blob::{self, FileStamp, Wanted};
use crate::engine_metrics::EngineMetrics;
use crate::model_text::{ModelText, Prompt};
use crate::pool::{ModelAdvert, ModelSize};
use crate::serve::engine::{Engine, ModelFacts};
use crate::serve::model_digest::ModelDigest;
use crate::serve::pooled::{LocalModel, Pooled};
use crate::serve::request::{Event, Request};
use crate::{clock, compute_error, host, models};

use super::{Node, ServedModel};

/// Pause before a first answer is tried again; doubled with each further failure.
const RETRY: Duration = Duration::from_secs(1);

/// Upper bound of that pause.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Times that a file is loaded again because it has changed before it was hashed: a file that is being written changes for long.
const RELOADS_MAX: usize = 3;

/// Consecutive first answers of a model that failed.
#[derive(Debug, Default)]
struct FailedAnswers {
    count: u32,
    /// Error of the last one, if this node alone computed it.
    local: Option<String>,
}

impl FailedAnswers {
    /// Records a failure; returns the pause before the next try, or `None` if this node's own failure is confirmed.
    fn next(&mut self, why: &str, is_local: bool) -> Option<Duration> {
        let local = is_local.then(|| why.to_owned());
        let confirmed = local.is_some() && local == self.local;
        self.local = local;
        let pause = RETRY.saturating_mul(1 << self.count.min(16)).min(RETRY_MAX);
        self.count = self.count.saturating_add(1);
        (!confirmed).then_some(pause)
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    /// Name under which this node serves the model.
    pub(super) name: String,
    /// Name given by the nodes that serve it; several models may have the same one.
    pub(super) called: String,
    pub(super) source: Source,
    /// Digest of the model, once known.
    pub(super) digest: Arc<OnceLock<Digest>>,
    /// The file that answers before it is hashed.
    unhashed: Mutex<Option<Unhashed>>,
    /// Whether somebody dropped the model here before its digest was known.
    pub(super) dropped: AtomicBool,
    /// Whether a thread hashes the file.
    hashing: AtomicBool,
    /// Times that the file was loaded again because it had changed before it was hashed.
    reloads: AtomicUsize,
    pub(super) metrics: Arc<EngineMetrics>,
    /// Whether the tokenizer and template could not be fetched when they were needed last.
    pub(super) text_failed: AtomicBool,
    /// How long first tokens took lately at nodes that answered requests as a whole.
    pub(super) pace: Arc<Mutex<PromptPace>>,
    /// Consecutive first answers that failed, the last of them by this node alone.
    failed: Mutex<FailedAnswers>,
    pub(super) state: watch::Sender<State>,
}

/// A file that was new to the node when its layers were loaded.
#[derive(Clone, Debug)]
struct Unhashed {
    /// Path of the file.
    path: PathBuf,
    /// The file's stamp before anything of it was read.
    stamp: FileStamp,
    /// What its layers are loaded under.
    stand_in: Digest,
    /// Sizes of its model.
    size: ModelSize,
}

#[derive(Debug)]
pub(super) enum Source {
    /// A name in the models folder, or a path.
    File { model: String, folder: PathBuf },
    /// A whole copy that was fetched from other nodes.
    Copy(Digest),
    /// A model that other nodes serve.
    Pool(Digest),
}

impl Source {
    /// Digest of a model that other nodes serve.
    pub(super) fn pooled(&self) -> Option<Digest> {
        match self {
            Source::File { .. } | Source::Copy(_) => None,
            Source::Pool(digest) => Some(*digest),
        }
    }
}

pub(super) enum State {
    /// The model is not on this node; the first request downloads it.
    Absent {
        why: Option<Error>,
    },
    Loading,
    Ready(Engine),
    /// No node of the pool can hold it at present; a change of the pool may help.
    Unplaced {
        engine: Engine,
        why: Error,
    },
    /// Its first answer failed; requests may succeed, and it is tried again.
    Unproven {
        engine: Engine,
        why: Error,
        retry_at: Time,
    },
    Failed(Error),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            State::Absent { .. } => "absent",
            State::Loading => "loading",
            State::Ready(_) => "ready",
            State::Unplaced { .. } => "unplaced",
            State::Unproven { .. } => "unproven",
            State::Failed(_) => "failed",
        }
    }
}

impl Entry {
    pub(super) fn new(name: &str, called: &str, source: Source, state: State) -> Entry {
        let digest = match &source {
            Source::Copy(digest) | Source::Pool(digest) => OnceLock::from(*digest),
            Source::File { .. } => OnceLock::new(),
        };
        let (name, called) = (name.to_owned(), called.to_owned());
        Entry {
            name,
            called,
            source,
            digest: Arc::new(digest),
            unhashed: Mutex::default(),
            dropped: AtomicBool::new(false),
            hashing: AtomicBool::new(false),
            reloads: AtomicUsize::new(0),
            metrics: Arc::default(),
            text_failed: AtomicBool::new(false),
            pace: Arc::default(),
            failed: Mutex::default(),
            state: watch::Sender::new(state),
        }
    }

    /// Whether this may be the model with this digest; a file that has not been read may be any.
    pub(super) fn may_be(&self, digest: &Digest) -> bool {
        self.digest.get().is_none_or(|known| known == digest)
    }

    pub(super) fn full_name(&self) -> Option<String> {
        self.digest.get().map(|digest| full_name(&self.called, digest))
    }

    /// Whether a request with this full name means this model.
    pub(super) fn is_called(&self, requested: &str) -> bool {
        self.digest.get().is_some_and(|digest| is_full_name(requested, &self.called, digest))
    }

    /// Whether its tokenizer and template are loaded.
    pub(super) fn has_text(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ready(_) | State::Unplaced { .. } | State::Unproven { .. })
    }

    /// Whether it is this node's, and no model of the pool takes its name.
    pub(super) fn is_own(&self) -> bool {
        self.source.pooled().is_none() && !self.yields()
    }

    /// Whether a model of the pool with this name is to be used instead: what this node was told to serve is not on it, and is nowhere
    /// where it could be downloaded.
    pub(super) fn yields(&self) -> bool {
        let is_nowhere = match &*self.state.borrow() {
            State::Absent { why: Some(why) } => why.kind() == ErrorKind::NotFound,
            _ => false,
        };
        is_nowhere && matches!(self.source, Source::File { .. }) && self.digest.get().is_none()
    }

    pub(super) fn counts(&self, metrics: &Arc<EngineMetrics>) -> bool {
        Arc::ptr_eq(&self.metrics, metrics)
    }

    /// Downloads the file if needed, loads the model and sends it a first request.
    pub(super) fn load(&self, node: &Node) -> State {
        let began = std::time::Instant::now();
        let engine = match &self.source {
            Source::File { model, folder } => match self.file(model, folder) {
                Ok(path) => self.local_engine(node, &path),
                // The next request tries again.
                Err(error) => return State::Absent { why: Some(error) },
            },
            Source::Copy(digest) => node.loader.whole_copy(*digest).and_then(|path| self.local_engine(node, &path)),
            Source::Pool(digest) => match self.pooled_engine(node, *digest) {
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
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = FailedAnswers::default();
                let millis = began.elapsed().as_millis() as u64;
                let bytes = engine.model().memory_bytes;
                tracing::info!(event = "model_ready", model = self.name, millis, bytes, "Serving model {}", self.name);
                State::Ready(engine)
            }
            // No node can compute it at present.
            Err(why) if engine.unplaceable().is_some() || !engine.has_route() => State::Unplaced { engine, why },
            Err(error) => self.unproven(engine, error),
        }
    }

    /// The state after a failed first answer: tried again, unless this node alone failed twice with the same error, which
    /// is no accident.
    fn unproven(&self, engine: Engine, why: Error) -> State {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pause) = failed.next(why.message(), engine.is_local()) else {
            let message = format!("two first answers failed on this node alone, the last one with: {}", why.message());
            return State::Failed(Error::new(why.kind(), message));
        };
        let seconds = pause.as_secs();
        tracing::warn!(
            event = "model_unproven",
            model = self.name,
            error = %why,
            "The first answer of model {} failed; the next try is in {seconds} s: {why}",
            self.name
        );
        State::Unproven { engine, why, retry_at: clock::now() + pause }
    }

    /// Makes the engine of a model whose file is on this node: announces it to the pool, and loads it unless it is to
    /// be split. A file that is new to the node is loaded before it is hashed, and announced once it is
    /// ([`Entry::announce_unhashed`]).
    pub(super) fn local_engine(&self, node: &Node, path: &Path) -> Result<Engine> {
        let about = |error: Error| {
            Error::new(error.kind(), format!("cannot load the model {}: {}", self.name, error.message()))
        };
        let loader = &node.loader;
        let alone = !node.split && node.pinned.is_none();
        let digest = match &self.source {
            Source::Copy(digest) => *digest,
            _ => match loader.blobs().offer_hashed(path)? {
                Some(offered) => offered.digest,
                None => {
                    if alone && let Some(engine) = self.unhashed_engine(node, path).map_err(about)? {
                        return Ok(engine);
                    }
                    loader.blobs().offer(path)?.digest
                }
            },
        };
        let file = ModelFile::open(path).map_err(compute_error).map_err(about)?;
        let size = blob::model_size(&file).map_err(about)?;
        loader.count(digest, Arc::clone(&self.metrics));
        // A second load of the same file sets the same digest.
        let _ = self.digest.set(digest);
        if alone {
            match loader.load_whole(digest, &self.name, path, Arc::clone(&self.metrics)) {
                Ok(_) => {}
                // The pool may have the memory that this node lacks.
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
        self.advertise(node, digest, size);
        self.engine(node, &file, ModelDigest::known(digest), Some(path.to_owned()))
    }

    /// Tells the pool that this node serves the model.
    fn advertise(&self, node: &Node, digest: Digest, size: ModelSize) {
        let advert = ModelAdvert {
            digest,
            name: self.name.clone(),
            served: true,
            whole: true,
            split: node.split,
            pinned: node.pinned.clone(),
            size,
        };
        node.loader.stays(digest);
        node.loader.pool().update_advert(|own| {
            own.models.retain(|known| known.digest != advert.digest);
            own.models.push(advert);
        });
    }

    /// Loads a file that is new to this node before it is hashed: its requests need no digest as long as this node alone answers
    /// them. `None` where the memory does not suffice; then other nodes have to compute it, and these need the digest.
    fn unhashed_engine(&self, node: &Node, path: &Path) -> Result<Option<Engine>> {
        let loader = &node.loader;
        let stamp = loader.blobs().stamp_of(path)?;
        let file = ModelFile::open(path).map_err(compute_error)?;
        let size = blob::model_size(&file)?;
        let layers = 0..size.layers;
        let (free, _) = loader.memory_for_models();
        let known = self.stand_in();
        if known.is_none() && size.weight_bytes(&layers).saturating_add(size.session_bytes(&layers)) > free {
            return Ok(None);
        }
        // A model whose first answer failed is loaded a second time, and its layers are those of the first.
        let stand_in = known.unwrap_or_else(|| loader.stand_in());
        if let Err(error) = loader.load_whole(stand_in, &self.name, path, Arc::clone(&self.metrics)) {
            loader.drop_stand_in(stand_in);
            *self.unhashed() = None;
            return if error.kind() == ErrorKind::Overloaded { Ok(None) } else { Err(error) };
        }
        self.unhashed().get_or_insert(Unhashed { path: path.to_owned(), stamp, stand_in, size });
        let digest = ModelDigest::later(&self.digest, stand_in);
        self.engine(node, &file, digest, Some(path.to_owned())).map(Some)
    }

    fn unhashed(&self) -> MutexGuard<'_, Option<Unhashed>> {
        self.unhashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file that has changed before it was hashed is to be loaded once more.
    pub(super) fn may_reload(&self) -> bool {
        self.reloads.fetch_add(1, Ordering::Relaxed) < RELOADS_MAX
    }

    /// What the layers are loaded under of a model whose file is not hashed yet.
    pub(super) fn stand_in(&self) -> Option<Digest> {
        self.unhashed().as_ref().map(|unhashed| unhashed.stand_in)
    }

    /// Hashes the file of a model that answers already, and tells the pool of the model if this node still lists it then. Blocks;
    /// gives way to all other threads.
    ///
    /// # Errors
    /// Errors of reading the file; `InvalidInput` if it changed since it was loaded: then the layers are of no file any more, and
    /// are given up.
    pub(super) fn announce_unhashed(&self, node: &Node, is_listed: impl Fn() -> bool) -> Result<()> {
        let Some(unhashed) = self.unhashed().clone() else { return Ok(()) };
        if self.hashing.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        if let Source::File { folder, .. } = &self.source {
            node.loader.pipeline().fault_before_hash(&folder.join("hash"));
        }
        let announced = self.hash(node, &unhashed, is_listed);
        if announced.is_err() {
            node.loader.retire(unhashed.stand_in);
        }
        *self.unhashed() = None;
        self.hashing.store(false, Ordering::Relaxed);
        announced
    }

    fn hash(&self, node: &Node, unhashed: &Unhashed, is_listed: impl Fn() -> bool) -> Result<()> {
        let Unhashed { path, stamp, stand_in, size } = unhashed;
        let began = std::time::Instant::now();
        let work = || {
            host::yield_to_others();
            node.loader.blobs().offer_used(path, stamp)
        };
        // A thread that gives way does so for good, and so do those that it starts.
        let hashed = std::thread::scope(|scope| scope.spawn(work).join());
        let died = |_| Error::new(ErrorKind::Internal, "hashing the model's file panicked");
        let digest = hashed.map_err(died)??.digest;
        let is_listed = is_listed();
        if is_listed {
            node.loader.set_digest(*stand_in, digest);
        }
        // From here on, requests look for the layers under the digest.
        let _ = self.digest.set(digest);
        if is_listed {
            self.advertise(node, digest, *size);
            let millis = began.elapsed().as_millis() as u64;
            tracing::info!(event = "model_hashed", model = self.name, %digest, millis, "Model {} is known to the pool now", self.name);
        }
        Ok(())
    }

    /// Makes the engine of a model that other nodes compute; its header is enough.
    pub(super) fn pooled_engine(&self, node: &Node, digest: Digest) -> Result<Engine> {
        let failed = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot fetch a model: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let loader = &node.loader;
        loader.has_file(digest, &self.name);
        let view = Arc::clone(&loader.view().borrow());
        let has = |node: &&Arc<crate::pool::Advert>| node.models.iter().any(|model| model.digest == digest);
        let holders = view.nodes.values().filter(has).map(|node| node.peer).collect();
        let cancel = Cancel::new();
        let mut progress = |_, _| {};
        let blobs = loader.blobs().called(&self.name);
        let path = runtime.block_on(blobs.fetch(digest, Wanted::header(), holders, &mut progress, &cancel))?;
        let file = ModelFile::open(&path).map_err(compute_error)?;
        self.engine(node, &file, ModelDigest::known(digest), None)
    }

    pub(super) fn engine(
        &self,
        node: &Node,
        file: &ModelFile,
        digest: ModelDigest,
        whole: Option<PathBuf>,
    ) -> Result<Engine> {
        let config = file.config();
        let (loader, settings) = (&node.loader, node.settings);
        let text = loader.text(digest.here()).map_or_else(|| ModelText::of(file).map(Arc::new), Ok)?;
        let size = blob::model_size(file)?;
        let least = size.session_bytes(&(0..size.layers));
        // Every chain has memory for the minimum.
        let session_bytes = settings.session_bytes.max(least);
        let longest = session_bytes / (blob::position_bytes(config) * config.layers as u64).max(1);
        let facts = ModelFacts {
            name: self.name.clone(),
            path: file.path().to_owned(),
            architecture: config.architecture.name(),
            layers: config.layers,
            context: config.context.min(usize::try_from(longest).unwrap_or(usize::MAX)),
            vocabulary: config.vocabulary,
            memory_bytes: loader.memory_bytes(digest.here()),
            file_bytes: file.gguf().size_bytes(),
            session_bytes,
        };
        if facts.context < 2 {
            let message = format!(
                "cannot load the model {}: {} bytes for sessions do not hold a single one; allow more",
                self.name, session_bytes
            );
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let local = LocalModel { name: self.name.clone(), file: whole, metrics: Arc::clone(&self.metrics) };
        let parts = (loader.clone(), node.dispatch.clone(), node.auditor.clone());
        let routes = Arc::new(Pooled::new(parts, digest, config.layers as u32, local));
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

    /// The model's file, downloaded if necessary.
    pub(super) fn file(&self, model: &str, folder: &Path) -> Result<PathBuf> {
        let mut logged = None;
        models::get(folder, model, &Cancel::new(), &mut |transfer| {
            let percent = transfer.done_bytes * 100 / transfer.total_bytes.max(1);
            // One log line per tenth.
            if logged.replace((transfer.phase, percent / 10)) != Some((transfer.phase, percent / 10)) {
                let (model, phase) = (&self.name, transfer.phase);
                tracing::info!(event = "model_transfer", model, phase, percent, "Model {model}: {phase}, {percent} %");
            }
        })
    }

    /// Why the pool cannot place the model, if its master published a refusal and no node computes it.
    pub(super) fn refusal(&self, node: Option<&Node>) -> Option<String> {
        let view = node?.loader.view();
        pool_facts::refusal(&view.borrow(), self.digest.get()?)
    }

    pub(super) fn show(&self, node: Option<&Node>) -> ServedModel {
        let state = self.state.borrow();
        let (facts, (running, waiting)) = match &*state {
            State::Ready(engine) | State::Unproven { engine, .. } => (Some(engine.model().clone()), engine.load_now()),
            _ => (None, (0, 0)),
        };
        let refusal = match &*state {
            State::Ready(engine) if engine.has_route() => None,
            // A model that is loading may be ready soon, so it has no reason.
            State::Loading | State::Failed(_) => None,
            State::Unproven { engine, .. } if engine.has_route() => None,
            _ => self.refusal(node),
        };
        let is_unloaded = || {
            let own = self.digest.get().filter(|_| self.source.pooled().is_none());
            own.is_some_and(|digest| node.is_some_and(|node| node.loader.is_unloaded(digest)))
        };
        let name = match &*state {
            _ if refusal.is_some() => "unplaced",
            State::Ready(_) if is_unloaded() => "unloaded",
            state => state.name(),
        };
        let why = refusal.or_else(|| match &*state {
            State::Failed(error)
            | State::Absent { why: Some(error) }
            | State::Unplaced { why: error, .. }
            | State::Unproven { why: error, .. } => Some(error.message().to_owned()),
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

/// Sends a short request and waits for its end. It leaves no job and no receipt.
pub(super) fn probe(engine: &Engine) -> Result<()> {
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
        Err(Error::new(ErrorKind::Internal, "the model's first answer ended without a summary"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_failure_of_this_node_alone_twice_disables_a_model() {
        let mut failed = FailedAnswers::default();
        let seconds = |pause: Option<Duration>| pause.map(|pause| pause.as_secs());
        // Of other nodes, whatever and however often.
        let pauses: Vec<_> = (0..10).map(|_| seconds(failed.next("a stage is gone", false))).collect();
        assert_eq!(pauses[..3], [Some(1), Some(2), Some(4)]);
        assert_eq!(pauses[9], Some(60));
        let mut failed = FailedAnswers::default();
        assert!(failed.next("a value is not finite", true).is_some());
        assert!(failed.next("memory does not suffice", true).is_some(), "another one");
        assert!(failed.next("a stage is gone", false).is_some());
        assert!(failed.next("memory does not suffice", true).is_some());
        assert_eq!(failed.next("memory does not suffice", true), None);
    }
}
