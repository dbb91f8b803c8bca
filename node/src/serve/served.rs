//! The models that a node serves, by name: which there are, how each stands, and its engine once that has answered a
//! first request. Loading happens on threads of its own; nothing waits for it but requests for that model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::model::ModelFile;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::engine::{Engine, EngineSettings, ModelFacts};
use super::metrics::EngineMetrics;
use super::request::{Event, Prompt, Request};
use crate::{compute_error, models};

/// The models of a node; none by default. Cloning gives the same ones.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Vec<Entry>>);

/// One of them, as it stands.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The name that requests give.
    pub name: String,
    /// `absent`, `loading`, `ready` or `failed`.
    pub state: &'static str,
    /// Why it failed, or why it is absent still.
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
    name: String,
    /// A name in the folder of models, or a path.
    model: String,
    folder: PathBuf,
    settings: EngineSettings,
    metrics: Arc<EngineMetrics>,
    state: watch::Sender<State>,
}

enum State {
    /// It is not here; the first request gets it.
    Absent {
        why: Option<Error>,
    },
    Loading,
    Ready(Engine),
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
            State::Failed(_) => "failed",
        }
    }
}

impl Served {
    /// Begins to load those of `models` (names in `folder`, or paths) that are here.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads to no file or to no model, and for two models of one name.
    pub fn start(models: &[String], folder: &Path, settings: EngineSettings) -> Result<Served> {
        let mut entries: Vec<Entry> = Vec::with_capacity(models.len());
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
            entries.push(Entry {
                name: name.to_owned(),
                model: model.clone(),
                folder: folder.to_owned(),
                settings,
                metrics: Arc::new(EngineMetrics::default()),
                state: watch::Sender::new(state),
            });
        }
        let served = Served(Arc::new(entries));
        for at in 0..served.0.len() {
            if matches!(*served.0[at].state.borrow(), State::Loading) {
                served.load(at)?;
            }
        }
        Ok(served)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.name.as_str())
    }

    /// All of them, as they stand.
    pub fn list(&self) -> Vec<ServedModel> {
        self.0.iter().map(Entry::show).collect()
    }

    /// Whether every model that is here has answered a request.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|entry| matches!(*entry.state.borrow(), State::Ready(_) | State::Absent { .. }))
    }

    /// Makes what a model's engine counts readable.
    pub fn register(&self, name: &str, registry: &mut Registry) {
        for entry in self.0.iter().filter(|entry| entry.name == name) {
            entry.metrics.register(registry);
        }
    }

    /// The engine of a model, once it is ready; gets and loads what is absent.
    ///
    /// # Errors
    /// `NotFound` for a model that is not served, `Unavailable` where it is not ready within `patience`, and whatever kept it
    /// from being loaded.
    pub async fn engine(&self, name: &str, patience: Duration) -> Result<Engine> {
        let found = self.0.iter().position(|entry| entry.name == name);
        let Some(at) = found else {
            return Err(Error::new(ErrorKind::NotFound, format!("the model {name} is not served here")));
        };
        let entry = &self.0[at];
        let wanted = entry.state.send_if_modified(|state| {
            let absent = matches!(state, State::Absent { .. });
            if absent {
                *state = State::Loading;
            }
            absent
        });
        if wanted {
            self.load(at)?;
        }
        let mut state = entry.state.subscribe();
        let settled = tokio::time::timeout(patience, state.wait_for(|state| !matches!(state, State::Loading))).await;
        let loading =
            || Error::new(ErrorKind::Unavailable, format!("the model {name} is still loading; try again soon"));
        let state = settled.map_err(|_| loading())?.map_err(|_| loading())?;
        match &*state {
            State::Ready(engine) => Ok(engine.clone()),
            State::Failed(error) | State::Absent { why: Some(error) } => {
                Err(Error::new(ErrorKind::Unavailable, error.message()))
            }
            State::Loading | State::Absent { why: None } => Err(loading()),
        }
    }

    /// Loads one, whose state says so already, on a thread of its own.
    fn load(&self, at: usize) -> Result<()> {
        let served = self.clone();
        let thread = std::thread::Builder::new().name("pangea-load".into()).spawn(move || {
            let entry = &served.0[at];
            let state = entry.load();
            if let State::Failed(error) | State::Absent { why: Some(error) } = &state {
                tracing::error!(event = "model_failed", model = entry.name, %error, "Model {} is not served", entry.name);
            }
            entry.state.send_replace(state);
        });
        thread.map(drop).map_err(|error| {
            let error = Error::new(ErrorKind::Internal, format!("cannot start a thread to load a model: {error}"));
            self.0[at].state.send_replace(State::Failed(error.clone()));
            error
        })
    }
}

impl Entry {
    /// Gets the file where it is not here, loads it and asks it something.
    fn load(&self) -> State {
        let began = std::time::Instant::now();
        let path = match self.file() {
            Ok(path) => path,
            // The next request may have better luck.
            Err(error) => return State::Absent { why: Some(error) },
        };
        let loaded = Engine::load_counting(&self.name, &path, self.settings, Arc::clone(&self.metrics));
        match loaded.and_then(|engine| probe(&engine).map(|()| engine)) {
            Ok(engine) => {
                let millis = began.elapsed().as_millis() as u64;
                let bytes = engine.model().memory_bytes;
                tracing::info!(event = "model_ready", model = self.name, millis, bytes, "Serving model {}", self.name);
                State::Ready(engine)
            }
            Err(error) => State::Failed(error),
        }
    }

    /// The model's file, fetched where it is not here.
    fn file(&self) -> Result<PathBuf> {
        let mut told = None;
        models::get(&self.folder, &self.model, &Cancel::new(), &mut |transfer| {
            let percent = transfer.done_bytes * 100 / transfer.total_bytes.max(1);
            // A line for every tenth.
            if told.replace((transfer.phase, percent / 10)) != Some((transfer.phase, percent / 10)) {
                let (model, phase) = (&self.name, transfer.phase);
                tracing::info!(event = "model_transfer", model, phase, percent, "Model {model}: {phase}, {percent} %");
            }
        })
    }

    fn show(&self) -> ServedModel {
        let state = self.state.borrow();
        let (facts, (running, waiting)) = match &*state {
            State::Ready(engine) => (Some(engine.model().clone()), engine.load_now()),
            _ => (None, (0, 0)),
        };
        let why = match &*state {
            State::Failed(error) | State::Absent { why: Some(error) } => Some(error.message().to_owned()),
            _ => None,
        };
        ServedModel { name: self.name.clone(), state: state.name(), why, facts, running, waiting }
    }
}

/// A short request, answered from one end to the other.
fn probe(engine: &Engine) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot probe the model: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    runtime.block_on(async {
        let request = Request { max_tokens: Some(2), ..Request::new(Prompt::Text("Hello".to_owned())) };
        let mut generation = engine.generate(request).await?;
        while let Some(event) = generation.next().await {
            if let Event::Done(_) = event? {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Internal, "the model's first answer broke off"))
    })
}
