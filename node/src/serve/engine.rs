//! The handle of a loaded model: what HTTP, the Cap'n Proto service and the commands ask for answers. It checks requests on
//! the caller's side and hands them to the engine's thread; cloning gives the same engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Pool;
use pangea_compute::draft::MAX_DRAFT;
use pangea_compute::model::{Cache, Model, ModelFile, PageBudget, Part};
use pangea_compute::sample::stop::StopMatcher;
use tokio::sync::{mpsc, oneshot};

use super::batch::{Batch, BatchLimits};
use super::metrics::EngineMetrics;
use super::request::{Event, MAX_CHOICES, Request};
use super::stepper::{Prepared, Stepper};
use super::text::ModelText;
use crate::compute_error;

/// How an engine is to run.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Compute threads.
    pub threads: usize,
    /// Bytes for the keys and values of all sessions, those kept for reuse included.
    pub session_bytes: u64,
    /// Answers generated at once.
    pub running: usize,
    /// Answers that wait beside those; more are refused.
    pub waiting: usize,
    /// How long one may wait.
    pub wait: Duration,
    /// Whether tokens are drafted. The answers are the same.
    pub drafts: Drafts,
}

/// When tokens are drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// Never.
    Off,
    /// While it pays, as measured.
    Paying,
    /// As if a pass took the same time whatever its rows: as many as can be, and the same in every run.
    Eager,
}

impl EngineSettings {
    /// For a node with so many threads and so many bytes for sessions.
    pub fn new(threads: usize, session_bytes: u64) -> EngineSettings {
        EngineSettings {
            threads,
            session_bytes,
            running: 8,
            waiting: 64,
            wait: Duration::from_secs(120),
            drafts: Drafts::Paying,
        }
    }
}

/// Rows of prompts in a step without answers: a quarter of a second at most on a slow machine.
const PROMPT_ROWS: usize = 256;

/// Rows of prompts beside running answers: these slow down while a prompt is read, and do not stand still.
const PROMPT_ROWS_BESIDE: usize = 128;

/// Caches of ended sequences that are kept: conversations that may go on. Pages bound them further.
const KEPT: usize = 64;

/// Events beside those of tokens: the prompt's, the last one, a failure.
const OTHER_EVENTS: usize = 4;

/// What a model is and takes.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// The name that requests give.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The architecture's name.
    pub architecture: &'static str,
    /// How many layers.
    pub layers: usize,
    /// The most tokens of one session, prompt and answer: the model's own, or what the memory for sessions holds.
    pub context: usize,
    /// How many tokens there are.
    pub vocabulary: usize,
    /// Memory of the weights.
    pub memory_bytes: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Memory for sessions.
    pub session_bytes: u64,
}

/// A request that was not taken in.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// When it can be tried again, where that helps.
    pub retry_after: Option<Duration>,
    /// Whether the prompt is longer than the model's context.
    pub context_exceeded: bool,
}

impl Refused {
    pub(super) fn overloaded(retry_after: Duration) -> Refused {
        let error = Error::new(ErrorKind::Overloaded, "the queue of this model is full; try again later");
        Refused { error, retry_after: Some(retry_after), context_exceeded: false }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused { error, retry_after: None, context_exceeded: false }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        refused.error
    }
}

/// How busy an engine is, for everyone to see.
#[derive(Debug, Default)]
pub(super) struct Load {
    running: AtomicUsize,
    waiting: AtomicUsize,
}

impl Load {
    pub(super) fn set(&self, running: usize, waiting: usize) {
        self.running.store(running, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }
}

/// A model that answers requests. Its thread ends when the last handle is gone and the last answer is complete.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    facts: ModelFacts,
    text: Arc<ModelText>,
    load: Arc<Load>,
    requests: SyncSender<Prepared>,
}

/// What the thread needs besides the model.
struct Started {
    facts: ModelFacts,
    text: Arc<ModelText>,
}

impl Engine {
    /// Loads a model on a thread of its own and returns when it can be asked. Blocks.
    ///
    /// # Errors
    /// `NotFound` for a file that is not there, `InvalidInput` for one that is no model this engine runs, `Overloaded` where
    /// memory does not suffice.
    pub fn load(name: &str, path: &Path, settings: EngineSettings) -> Result<Engine> {
        Engine::load_counting(name, path, settings, Arc::default())
    }

    /// [`Engine::load`] that counts where others look already.
    pub(super) fn load_counting(
        name: &str,
        path: &Path,
        settings: EngineSettings,
        metrics: Arc<EngineMetrics>,
    ) -> Result<Engine> {
        let load = Arc::new(Load::default());
        // Whoever does not fit here would not fit the batch's queue either.
        let (requests, taken) = sync_channel(settings.running + settings.waiting);
        let (started_sender, started) = sync_channel::<Result<Started>>(1);
        let (name, path) = (name.to_owned(), path.to_owned());
        let thread = {
            let load = Arc::clone(&load);
            move || serve(&name, &path, settings, metrics, load, &started_sender, taken)
        };
        let failed =
            |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot start an engine: {error}"));
        std::thread::Builder::new().name("pangea-engine".into()).spawn(thread).map_err(failed)?;
        let ended = || Error::new(ErrorKind::Internal, "the engine ended while it loaded the model");
        let Started { facts, text } = started.recv().map_err(|_| ended())??;
        Ok(Engine { shared: Arc::new(Shared { facts, text, load, requests }) })
    }

    /// What the model is.
    pub fn model(&self) -> &ModelFacts {
        &self.shared.facts
    }

    /// Sequences that run and that wait, about now.
    pub fn load_now(&self) -> (usize, usize) {
        let load = &self.shared.load;
        (load.running.load(Ordering::Relaxed), load.waiting.load(Ordering::Relaxed))
    }

    /// The text that token ids stand for, special tokens included.
    pub fn text_of(&self, tokens: &[u32]) -> String {
        self.shared.text.tokenizer.decode(tokens, true)
    }

    /// Takes a request into the queue. Dropping what comes back cancels it.
    ///
    /// # Errors
    /// [`Refused`]: `InvalidInput` for what is wrong with the request, `Overloaded` where the queue is full.
    pub async fn generate(&self, request: Request) -> std::result::Result<Generation, Refused> {
        let arrived = Instant::now();
        let shared = Arc::clone(&self.shared);
        let (accepted, answer) = oneshot::channel();
        // Templates, long texts and schemas take a while: not on the caller's own thread.
        let prepared = tokio::task::spawn_blocking(move || prepare(&shared, request, arrived, accepted)).await;
        let gone = |_| Error::new(ErrorKind::Internal, "the request could not be prepared");
        let (prepared, events) = prepared.map_err(gone)??;
        let ended = || Error::new(ErrorKind::Unavailable, "the engine of this model has ended");
        self.shared.requests.try_send(prepared).map_err(|error| match error {
            TrySendError::Full(_) => Refused::overloaded(Duration::from_secs(1)),
            TrySendError::Disconnected(_) => ended().into(),
        })?;
        answer.await.map_err(|_| ended())??;
        Ok(Generation { events, over: false })
    }
}

/// Everything that can be wrong with a request is found here.
fn prepare(
    shared: &Shared,
    request: Request,
    arrived: Instant,
    accepted: oneshot::Sender<std::result::Result<(), Refused>>,
) -> std::result::Result<(Prepared, mpsc::Receiver<Result<Event>>), Refused> {
    if !(1..=MAX_CHOICES).contains(&request.choices) {
        let message = format!("{} answers are asked for; it must be 1 to {MAX_CHOICES}", request.choices);
        return Err(Error::new(ErrorKind::InvalidInput, message).into());
    }
    request.sampling.check(shared.facts.vocabulary).map_err(compute_error)?;
    let prompt = shared.text.tokens(&request.prompt)?;
    let context = shared.facts.context;
    if prompt.len() >= context {
        let message = format!(
            "the prompt has {} tokens, and prompt and answer must fit the context of {context}; shorten it",
            prompt.len()
        );
        let error = Error::new(ErrorKind::InvalidInput, message);
        return Err(Refused { error, retry_after: None, context_exceeded: true });
    }
    let most = request.max_tokens.unwrap_or(usize::MAX).min(context - prompt.len());
    let (events, receiver) = mpsc::channel(most.max(1) * request.choices + OTHER_EVENTS);
    let prepared = Prepared {
        choices: request.choices,
        most,
        grammar: shared.text.grammar(&request.format)?,
        stops: StopMatcher::new(&request.stop).map_err(compute_error)?,
        prompt_logprobs: request.prompt_logprobs && request.sampling.logprobs.is_some(),
        sampling: request.sampling,
        arrived,
        events,
        accepted,
        prompt,
    };
    Ok((prepared, receiver))
}

/// An answer, or several, under way. Dropping it cancels them.
pub struct Generation {
    events: mpsc::Receiver<Result<Event>>,
    over: bool,
}

impl Generation {
    /// What comes next; `None` after [`Event::Done`] or a failure.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        if self.over {
            return None;
        }
        let event = self
            .events
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "the engine ended in the middle of an answer")));
        self.over = matches!(event, Err(_) | Ok(Event::Done(_)));
        Some(event)
    }
}

/// The engine's thread: loads, says so, serves.
fn serve(
    name: &str,
    path: &Path,
    settings: EngineSettings,
    metrics: Arc<EngineMetrics>,
    load: Arc<Load>,
    started: &SyncSender<Result<Started>>,
    requests: Receiver<Prepared>,
) {
    match build(name, path, settings, metrics, load) {
        Ok((facts, stepper)) => {
            let text = Arc::clone(&stepper.text);
            // Whoever wanted it may be gone; then there are no requests either.
            let _ = started.send(Ok(Started { facts, text }));
            stepper.run(requests);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

fn build(
    name: &str,
    path: &Path,
    settings: EngineSettings,
    metrics: Arc<EngineMetrics>,
    load: Arc<Load>,
) -> Result<(ModelFacts, Stepper)> {
    let about = |error: pangea_compute::Error| {
        let error = compute_error(error);
        Error::new(error.kind(), format!("the model {name} cannot be loaded: {}", error.message()))
    };
    let file = ModelFile::open(path).map_err(about)?;
    // Tokenizer and weights have nothing to do with each other: both at once start sooner.
    let (text, loaded) = std::thread::scope(|scope| {
        let text = scope.spawn(|| ModelText::of(&file));
        let loaded = Pool::new(settings.threads).and_then(|pool| {
            let model = Model::load(&file, Part::whole(file.config()), &pool)?;
            Ok((pool, model))
        });
        (text.join(), loaded)
    });
    let broken = |_| Error::new(ErrorKind::Internal, format!("the tokenizer of the model {name} could not be read"));
    let text = Arc::new(text.map_err(broken)??);
    let (pool, model) = loaded.map_err(about)?;
    let limits = limits(&model, settings);
    let config = model.config();
    let facts = ModelFacts {
        name: name.to_owned(),
        path: path.to_owned(),
        architecture: config.architecture.name(),
        layers: config.layers,
        context: config.context.min(limits.longest()),
        vocabulary: config.vocabulary,
        memory_bytes: model.memory_bytes(),
        file_bytes: file.gguf().size_bytes(),
        session_bytes: settings.session_bytes,
    };
    if facts.context < 2 {
        let message = format!(
            "the model {name} cannot be loaded: {} bytes for sessions do not hold a single one; allow more",
            settings.session_bytes
        );
        return Err(Error::new(ErrorKind::Overloaded, message));
    }
    let budget = PageBudget::new(settings.session_bytes);
    Ok((facts, Stepper::new(model, pool, budget, text, metrics, load, Batch::new(limits), settings.drafts)))
}

fn limits(model: &Model, settings: EngineSettings) -> BatchLimits {
    let page_bytes = Cache::bytes_for(model, 1);
    let page_tokens = Cache::PAGE_POSITIONS;
    BatchLimits {
        running: settings.running,
        waiting: settings.waiting,
        wait: settings.wait,
        prompt_rows: PROMPT_ROWS,
        prompt_rows_beside: PROMPT_ROWS_BESIDE,
        draft: if settings.drafts == Drafts::Off { 0 } else { MAX_DRAFT },
        page_tokens,
        pages: usize::try_from(settings.session_bytes / page_bytes.max(1)).unwrap_or(usize::MAX / page_tokens),
        kept: KEPT,
    }
}
