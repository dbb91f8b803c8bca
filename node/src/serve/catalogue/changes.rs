//! Models that are added and dropped while the node runs: `pangea load`, `pangea drop`, and what other nodes drop.
//! `pangea_control::pool::Drops` decides what is dropped; loading itself is the entry's.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::ModelFile;
use pangea_compute::{Cancel, Digest};
use pangea_control::Time;
use pangea_control::pool::{Drops, is_full_name};
use pangea_units::ByteSize;
use tokio::sync::oneshot;

use super::entry::{Entry, Source, State};
use super::{Node, Served, ServedModel};
use crate::blob::{self, Wanted};
use crate::compute_error;
use crate::models::{self, Found, Reference};
use crate::pool::{ModelSize, View};

/// Models that are fetched or read for `pangea load` at the same time: a person asks for a few.
const PREPARING_MAX: usize = 4;

/// A model that is on this node and may be loaded.
pub(super) struct Prepared {
    name: String,
    source: Source,
    digest: Digest,
}

/// A model of the pool that this node does not serve.
pub(super) struct Elsewhere {
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) size: ModelSize,
}

impl Served {
    /// Serves a model besides those that this node serves: from its disk, from other nodes' copies, or downloaded. Returns
    /// once the model is loaded.
    ///
    /// # Errors
    /// `Overloaded` with the sizes if this node's memory does not hold the model; `NotFound` for an unknown model;
    /// `InvalidInput` for an unsupported one and for a second model with the same name; `Unavailable` without a network and
    /// after `timeout`, in which case loading goes on; the errors of fetching it.
    pub async fn load_model(&self, model: &str, timeout: Duration) -> Result<ServedModel> {
        self.node()?;
        let name = models::name_of(model).to_owned();
        let own = self.find(&name).or_else(|| self.find(model)).filter(|entry| entry.source.pooled().is_none());
        let entry = match own {
            Some(entry) => {
                self.start_loading(&entry, |state| matches!(state, State::Absent { .. } | State::Failed(_)))?;
                entry
            }
            None => match tokio::time::timeout(timeout, self.prepare(model)?).await {
                Ok(prepared) => {
                    let gone =
                        |_| Error::new(ErrorKind::Internal, format!("loading the model {name} ended unexpectedly"));
                    self.add(prepared.map_err(gone)??)?
                }
                Err(_) => return Err(still_loading(&name)),
            },
        };
        let mut state = entry.state.subscribe();
        let settled = tokio::time::timeout(timeout, state.wait_for(|state| !matches!(state, State::Loading))).await;
        let why = match &*settled.map_err(|_| still_loading(&name))?.map_err(|_| still_loading(&name))? {
            State::Ready(_) => None,
            State::Absent { why } => Some(why.clone().unwrap_or_else(|| still_loading(&name))),
            State::Unplaced { why, .. } | State::Unproven { why, .. } | State::Failed(why) => Some(why.clone()),
            State::Loading => Some(still_loading(&name)),
        };
        match why {
            None => Ok(entry.show(self.0.node.get())),
            Some(why) => {
                self.remove(&entry);
                Err(why)
            }
        }
    }

    /// Drops a model in the whole pool: no node serves it until somebody loads it again, or starts a node with it. Its
    /// running answers have as long to end as at a node that is stopped.
    ///
    /// # Errors
    /// Those of [`Served::not_found`]; `Unavailable` without a network; `InvalidInput` on a lite client, to which nobody
    /// listens.
    pub fn drop_model(&self, name: &str) -> Result<ServedModel> {
        let node = self.node()?;
        if !node.loader.view().borrow().own.works {
            let message = "a lite client cannot drop models of its pool; ask a node of the pool with --rpc";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let entry = self.find(name).ok_or_else(|| self.not_found(name))?;
        let shown = ServedModel { state: "dropped", why: None, ..entry.show(Some(node)) };
        let model = &entry.name;
        tracing::info!(
            event = "model_dropped",
            model,
            "Dropped model {model}: no node serves it until it is loaded again"
        );
        match entry.digest.get() {
            Some(digest) => self.drop_digest(node, *digest),
            // Whatever the digest turns out to be.
            None => entry.dropped.store(true, Ordering::Relaxed),
        }
        self.remove(&entry);
        Ok(shown)
    }

    /// Tells the pool that a model is dropped.
    pub(super) fn drop_digest(&self, node: &Node, digest: Digest) {
        self.drops().drop_model(digest);
        self.say_drops(node);
    }

    /// Learns which models other nodes dropped, and removes them here.
    pub(super) fn learn_drops(&self, view: &View, now: Time) {
        let own = self.entries();
        let own = own.iter().filter(|entry| entry.source.pooled().is_none());
        let own: BTreeSet<Digest> = own.filter_map(|entry| entry.digest.get().copied()).collect();
        let records = {
            let mut drops = self.drops();
            drops.update(view, &own, now);
            drops.records()
        };
        if let Some(node) = self.0.node.get().filter(|_| records != view.own.drops) {
            self.say_drops(node);
        }
        for entry in self.entries() {
            if entry.digest.get().is_some_and(|digest| self.is_dropped(digest)) {
                let model = &entry.name;
                tracing::info!(event = "model_dropped", model, "Dropped model {model}: it was dropped at another node");
                self.remove(&entry);
            }
        }
    }

    /// Whether a model is dropped.
    pub(super) fn is_dropped(&self, model: &Digest) -> bool {
        self.drops().is_dropped(model)
    }

    /// Ends what this node does for a model that its catalogue does not list any more.
    fn withdraw(&self, model: Digest) {
        let Some(node) = self.0.node.get() else { return };
        node.loader.retire(model);
        node.loader.pool().update_advert(|own| {
            for known in own.models.iter_mut().filter(|known| known.digest == model) {
                (known.served, known.split, known.pinned) = (false, false, None);
            }
        });
    }

    /// Whether a model is listed by this very entry.
    pub(super) fn lists(&self, entry: &Arc<Entry>) -> bool {
        self.entries().iter().any(|listed| Arc::ptr_eq(listed, entry))
    }

    fn remove(&self, entry: &Arc<Entry>) {
        self.0.entries.write().unwrap_or_else(PoisonError::into_inner).retain(|listed| !Arc::ptr_eq(listed, entry));
        self.withdraw_entry(entry);
    }

    /// Ends what this node does for a model that its catalogue does not list any more, whether its digest is known or not.
    pub(super) fn withdraw_entry(&self, entry: &Entry) {
        if let Some(digest) = entry.digest.get() {
            self.withdraw(*digest);
        }
        if let Some((node, stand_in)) = self.0.node.get().zip(entry.stand_in()) {
            node.loader.retire(stand_in);
        }
    }

    fn drops(&self) -> MutexGuard<'_, Drops> {
        self.0.drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Advertises what this node knows of dropped models.
    fn say_drops(&self, node: &Node) {
        let drops = Arc::clone(&self.0);
        node.loader.pool().update_advert(move |own| {
            own.drops = drops.drops.lock().unwrap_or_else(PoisonError::into_inner).records();
        });
    }

    pub(super) fn node(&self) -> Result<&Node> {
        let message = "this node has no network and serves no models";
        self.0.node.get().ok_or_else(|| Error::new(ErrorKind::Unavailable, message))
    }

    /// Finds a model, and brings it to this node, on a thread of its own.
    fn prepare(&self, model: &str) -> Result<oneshot::Receiver<Result<Prepared>>> {
        let node = self.node()?;
        let (tell, prepared) = oneshot::channel();
        {
            let mut preparing = self.0.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            if preparing.len() >= PREPARING_MAX {
                let message = format!("{PREPARING_MAX} models are being loaded already; try again later");
                return Err(Error::new(ErrorKind::Overloaded, message));
            }
            if !preparing.insert(model.to_owned()) {
                return Err(still_loading(model));
            }
        }
        let (served, named) = (self.clone(), model.to_owned());
        let done = {
            let (served, named) = (self.clone(), model.to_owned());
            move || {
                served.0.preparing.lock().unwrap_or_else(PoisonError::into_inner).remove(&named);
            }
        };
        let (panicked, failed) = (done.clone(), done.clone());
        let work = move || {
            let result = served.node().and_then(|node| served.bring(node, &named));
            done();
            // Whoever asked may be gone; what was fetched stays on the disk.
            let _ = tell.send(result);
        };
        let supervisor = node.loader.pipeline().supervisor();
        let thread = supervisor.owned_thread(&format!("preparing model {model}"), work, move |_| panicked());
        thread.map_err(|error| {
            failed();
            Error::new(ErrorKind::Internal, format!("cannot start a thread to load a model: {error}"))
        })?;
        Ok(prepared)
    }

    /// Finds a model and brings its whole file to this node, unless the memory does not suffice. Blocks.
    fn bring(&self, node: &Node, model: &str) -> Result<Prepared> {
        let folder = &self.0.folder;
        let located = models::locate(folder, model);
        if !matches!(located, Ok(Found::Local(_)))
            && let Some(elsewhere) = self.elsewhere(node, model)
        {
            return self.bring_from_pool(node, elsewhere);
        }
        let path = match located? {
            Found::Local(path) => path,
            Found::Fetchable(reference) => {
                if let Reference::Known(known) = &reference {
                    check_room(node, model, known.size_bytes, 0)?;
                }
                models::fetch(folder, &reference, &Cancel::new(), &mut |_| {})?
            }
        };
        let offered = node.loader.blobs().offer(&path)?;
        let file = ModelFile::open(&path).map_err(compute_error)?;
        check_size(node, model, &blob::model_size(&file)?)?;
        let name = models::name_of(model).to_owned();
        let source = Source::File { model: model.to_owned(), folder: folder.clone() };
        Ok(Prepared { name, source, digest: offered.digest })
    }

    /// A model that other nodes have, or of which this node has a copy.
    fn elsewhere(&self, node: &Node, model: &str) -> Option<Elsewhere> {
        let view = Arc::clone(&node.loader.view().borrow());
        let listed = self.find(model).and_then(|entry| entry.digest.get().copied());
        let all = view.everyone().flat_map(|advert| &advert.models);
        let is_meant = |known: &&crate::pool::ModelAdvert| match listed {
            Some(digest) => known.digest == digest,
            None => known.name == model || is_full_name(model, &known.name, &known.digest),
        };
        // Of several models with one name, the one that a node has as a whole.
        let found = all.filter(is_meant).max_by_key(|known| (known.whole, known.served, known.digest))?;
        Some(Elsewhere { name: found.name.clone(), digest: found.digest, size: found.size })
    }

    /// Fetches the whole file of a model from other nodes.
    pub(super) fn bring_from_pool(&self, node: &Node, elsewhere: Elsewhere) -> Result<Prepared> {
        let Elsewhere { name, digest, size } = elsewhere;
        check_size(node, &name, &size)?;
        let loader = &node.loader;
        if !loader.finds_on_disk(digest, &name) {
            let view = Arc::clone(&loader.view().borrow());
            let has = |advert: &&Arc<crate::pool::Advert>| advert.models.iter().any(|model| model.digest == digest);
            let holders: Vec<_> = view.nodes.values().filter(has).map(|advert| advert.peer).collect();
            let failed =
                |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot fetch a model: {error}"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let blobs = loader.blobs().called(&name);
            let fetch = |wanted: Wanted| {
                runtime.block_on(blobs.fetch(digest, wanted, holders.clone(), &mut |_, _| {}, &Cancel::new()))
            };
            fetch(Wanted::header())?;
            let gone = || Error::new(ErrorKind::Unavailable, format!("the copy of the model {name} was removed"));
            fetch(loader.blobs().have(&digest).ok_or_else(gone)?.manifest.whole())?;
        }
        Ok(Prepared { name, source: Source::Copy(digest), digest })
    }

    /// Lists a model that is on this node, and loads it.
    pub(super) fn add(&self, prepared: Prepared) -> Result<Arc<Entry>> {
        let Prepared { name, source, digest } = prepared;
        let node = self.node()?;
        self.drops().load_model(&digest);
        self.say_drops(node);
        let mut entry = Entry::new(&name, &name, source, State::Loading);
        let _ = entry.digest.set(digest);
        let entry = {
            let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = entries.iter().find(|known| known.is_own() && known.name == name) {
                if known.digest.get() == Some(&digest) {
                    return Ok(Arc::clone(known));
                }
                let message = format!("this node serves another model named {name}; drop it, or rename a file");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            // The engine of the pool's model is replaced by this node's; its counters go on.
            if let Some(pooled) = entries.iter().find(|known| known.source.pooled() == Some(digest)) {
                entry.metrics = Arc::clone(&pooled.metrics);
            }
            entries.retain(|known| known.source.pooled() != Some(digest) && !(known.name == name && known.yields()));
            let entry = Arc::new(entry);
            entries.push(Arc::clone(&entry));
            entry
        };
        self.load(&entry)?;
        Ok(entry)
    }
}

fn still_loading(name: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the model {name} is still loading; try again later"))
}

/// # Errors
/// `Overloaded` if the whole model does not fit into what is free of this node's memory for models.
fn check_size(node: &Node, name: &str, size: &ModelSize) -> Result<()> {
    // A node that splits its models, or has some of their layers, leaves the rest to others.
    if node.split || node.pinned.is_some() {
        return Ok(());
    }
    let layers = 0..size.layers;
    check_room(node, name, size.weight_bytes(&layers), size.session_bytes(&layers))
}

fn check_room(node: &Node, name: &str, weight_bytes: u64, session_bytes: u64) -> Result<()> {
    let (free, limit) = node.loader.memory_for_models();
    let needs = weight_bytes.saturating_add(session_bytes);
    if needs <= free {
        return Ok(());
    }
    let (weights, sessions) = (ByteSize(weight_bytes), ByteSize(session_bytes));
    let (needs, free, limit) = (ByteSize(needs), ByteSize(free), ByteSize(limit));
    let message = format!(
        "cannot load {name}: it needs {needs} ({weights} of weights, {sessions} for sessions), and {free} of the {limit} that \
         this node has for models are free; drop another model, or start the node with a larger --max-memory"
    );
    Err(Error::new(ErrorKind::Overloaded, message))
}
