//! The handle of a loaded model, which HTTP, the Cap'n Proto service and the commands use for answers. Requests are
//! checked on the caller's side and handed to the model's stages; clones share one engine.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::chat::answer::AnswerReader;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::sample::AnswerFormat;
use pangea_compute::sample::stop::StopMatcher;
use pangea_control::Time;
use pangea_control::generation::{Exclusions, PromptPace};
use pangea_control::routing::Prefix;
use pangea_units::ByteSize;
use prometheus_client::encoding::DescriptorEncoder;
use tracing::Span;

use super::embedding::EmbeddingQueue;
use super::generation::{Generation, Prepared};
use super::request::Request;
use super::route::{KeptChain, Route, Routes, SoleRoute};
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};
use crate::engine_metrics::{self, EngineMetrics};
use crate::jobs::Jobs;
use crate::model_text::{ModelText, Prompt};
use crate::models::{LoadedPart, catalogue};
use crate::pipeline::wire::StageAt;
use crate::pipeline::{ChainId, ChainLimits, Draft, Drafts, Pipeline, StageSetup};
use crate::pool::ServingAdvert;
use crate::supervise::Supervisor;
use crate::traces::child;
use crate::trust::Auditor;
use crate::{clock, compute_error};

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Bytes for the keys and values of all sessions, including caches kept for reuse.
    pub session_bytes: u64,
    /// Answers generated at once.
    pub running: usize,
    /// Answers that may wait besides; further ones are refused.
    pub waiting: usize,
    /// Time that an answer may wait.
    pub wait: Duration,
    /// When tokens are drafted; drafts never change the answers.
    pub drafts: Drafts,
    /// Time for which a model that nobody uses stays in memory; `None`: for ever.
    pub keep: Option<Duration>,
}

impl EngineSettings {
    /// Default settings with this many bytes for sessions.
    pub fn new(session_bytes: u64) -> EngineSettings {
        EngineSettings {
            session_bytes,
            running: 8,
            waiting: 64,
            wait: Duration::from_secs(120),
            drafts: Drafts::Paying,
            keep: None,
        }
    }

    /// Limits of the model's chain.
    pub fn limits(&self) -> ChainLimits {
        ChainLimits { running: self.running, waiting: self.waiting, wait: self.wait, keep: self.keep }
    }
}

/// Facts about a model.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Name of the model in requests.
    pub name: String,
    /// Path of the file.
    pub path: PathBuf,
    /// Name of the architecture.
    pub architecture: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Maximum tokens of one session, prompt and answer: the model's context, or what the memory for sessions holds.
    pub context: usize,
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Bytes of the weights in memory.
    pub memory_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes for sessions.
    pub session_bytes: u64,
}

/// A request that was refused.
#[derive(Clone, Debug)]
pub struct RequestRefused {
    /// Reason of the refusal.
    pub error: Error,
    /// Delay after which a retry may succeed, if any.
    pub retry_after: Option<Duration>,
    /// Whether the prompt is longer than the model's context.
    pub context_exceeded: bool,
}

impl From<Error> for RequestRefused {
    fn from(error: Error) -> RequestRefused {
        RequestRefused { error, retry_after: None, context_exceeded: false }
    }
}

impl From<RequestRefused> for Error {
    fn from(refused: RequestRefused) -> Error {
        refused.error
    }
}

/// A model that answers requests. It is unloaded when the last handle is dropped and the last answer is complete.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// State shared by all handles and answers in progress.
pub(super) struct Shared {
    pub(super) facts: ModelFacts,
    pub(super) text: Arc<ModelText>,
    pub(super) metrics: Arc<EngineMetrics>,
    pub(super) pipeline: Pipeline,
    pub(super) routes: Arc<dyn Routes>,
    /// Stores and audits receipts, if the node has a pool.
    pub(super) auditor: Option<Auditor>,
    /// Jobs of this node.
    pub(super) jobs: Jobs,
    /// How long first tokens took lately.
    prompt_pace: Mutex<PromptPace>,
    /// Who embeds now, and who waits.
    embeddings: EmbeddingQueue,
}

impl Shared {
    fn new(
        facts: ModelFacts,
        text: Arc<ModelText>,
        metrics: Arc<EngineMetrics>,
        pipeline: Pipeline,
        routes: Arc<dyn Routes>,
        auditor: Option<Auditor>,
        jobs: Jobs,
    ) -> Arc<Shared> {
        let (prompt_pace, embeddings) = (Mutex::default(), EmbeddingQueue::default());
        Arc::new(Shared { facts, text, metrics, pipeline, routes, auditor, jobs, prompt_pace, embeddings })
    }

    pub(super) fn embeddings(&self) -> &EmbeddingQueue {
        &self.embeddings
    }

    pub(super) fn prompt_pace(&self) -> MutexGuard<'_, PromptPace> {
        self.prompt_pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Loads a model into this process and returns when it is ready; `draft` drafts for it. Blocks.
    ///
    /// # Errors
    /// `NotFound` for a missing file, `InvalidInput` for an unsupported one and for a draft of another vocabulary, `Overloaded` if
    /// memory does not suffice.
    pub fn load(
        name: &str,
        path: &Path,
        devices: &Devices,
        settings: EngineSettings,
        draft: Option<&Draft>,
    ) -> Result<Engine> {
        let pipeline = Pipeline::new(Keypair::generate_ed25519(), Supervisor::default());
        let metrics = Arc::<EngineMetrics>::default();
        let about =
            |error: Error| Error::new(error.kind(), format!("cannot load the model {name}: {}", error.message()));
        let file = ModelFile::open(path).map_err(compute_error).map_err(about)?;
        let pool = Arc::new(devices.pool(Purpose::Stage).map_err(about)?);
        let engine = pangea_compute::Engine::Cpu(Arc::clone(&pool));
        let whole = ModelPart::whole(file.config());
        let needs = engine.load_bytes(&file, &whole).map_err(compute_error).map_err(about)?;
        let weights = devices.lease(Kind::Weights, needs.weights).map_err(about)?;
        let sessions = devices.lease(Kind::Sessions, settings.session_bytes).map_err(about)?;
        let LoadedPart { model, text } = LoadedPart::load(&file, whole, &engine, devices).map_err(about)?;
        let no_text = || Error::new(ErrorKind::Internal, "a whole model was loaded without its tokenizer");
        let text = Arc::new(text.ok_or_else(no_text).map_err(about)?);
        let limits = settings.limits().batch(&model, settings.session_bytes, 1, settings.drafts);
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
                "cannot load the model {name}: {} for sessions do not hold a single one; allow more",
                ByteSize(settings.session_bytes)
            );
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        // Two models of one process are distinguished by their paths; no other node sees this digest.
        let chain = ChainId::alone(Digest(*blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes()));
        let stages = vec![StageAt { peer: pipeline.local(), layers: 0..config.layers as u32 }];
        draft.map(|draft| draft.check(&file)).transpose()?;
        let draft = draft.map(|draft| draft.on(&pool, file.gguf().size_bytes())).transpose()?;
        let budget = model.page_budget(settings.session_bytes);
        pipeline.start(StageSetup {
            chain,
            stages: stages.clone(),
            index: 0,
            model: Arc::new(model),
            budget,
            limits: Some(limits),
            drafts: settings.drafts,
            draft,
            text: Some(Arc::clone(&text)),
            name: name.to_owned(),
            metrics: Arc::clone(&metrics),
            memory: Arc::from([weights, sessions]),
        })?;
        let kept: Option<Arc<dyn Any + Send + Sync>> = Some(Arc::new(KeptChain { chain, pipeline: pipeline.clone() }));
        let routes = Arc::new(SoleRoute::new(Route { chain, stages, kept }, pipeline.clone()));
        Ok(Engine { shared: Shared::new(facts, text, metrics, pipeline, routes, None, Jobs::default()) })
    }

    /// A model whose layers are distributed over the pool.
    pub(super) fn pooled(
        facts: ModelFacts,
        text: Arc<ModelText>,
        metrics: Arc<EngineMetrics>,
        pipeline: Pipeline,
        routes: Arc<dyn Routes>,
        auditor: Auditor,
        jobs: Jobs,
    ) -> Engine {
        Engine { shared: Shared::new(facts, text, metrics, pipeline, routes, Some(auditor), jobs) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Facts about the model.
    pub fn model(&self) -> &ModelFacts {
        &self.shared.facts
    }

    /// Approximate numbers of running and waiting sequences, if this node schedules them.
    pub fn load_now(&self) -> (usize, usize) {
        let route = self.shared.routes.best(&Exclusions::default(), &Prefix::default());
        route.map_or((0, 0), |route| self.shared.pipeline.load(route.chain))
    }

    /// Writes the metrics of this engine.
    ///
    /// # Errors
    /// Those of `encoder`.
    pub fn encode_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        engine_metrics::encode(&[(self.shared.facts.name.clone(), Arc::clone(&self.shared.metrics))], encoder)
    }

    /// Whether a session can be opened now.
    pub fn has_route(&self) -> bool {
        self.shared.routes.best(&Exclusions::default(), &Prefix::default()).is_some()
    }

    /// Whether this node alone computes the model now.
    pub fn is_local(&self) -> bool {
        let local = self.shared.pipeline.local();
        self.shared.routes.best(&Exclusions::default(), &Prefix::default()).is_some_and(|route| route.is_local(local))
    }

    /// The model's digest in the pool, and what this node says of it if it answers with all layers of its own; `None` if the
    /// model is in no pool.
    pub fn pooled_model(&self) -> Option<(Digest, Option<ServingAdvert>)> {
        self.shared.routes.pooled_model()
    }

    /// Why no node can hold the model while the pool does not change, if that is certain.
    pub fn unplaceable(&self) -> Option<String> {
        self.shared.routes.unplaceable()
    }

    /// The text of token ids, including special tokens.
    pub fn text_of(&self, tokens: &[u32]) -> String {
        self.shared.text.tokenizer.decode(tokens, true)
    }

    /// The number of tokens of a prompt.
    ///
    /// # Errors
    /// [`RequestRefused`] for a prompt that the model's template refuses.
    pub async fn count_tokens(&self, prompt: Prompt) -> std::result::Result<usize, RequestRefused> {
        let text = Arc::clone(&self.shared.text);
        let tokens = tokio::task::spawn_blocking(move || text.tokens(&prompt)).await;
        let gone = |_| Error::new(ErrorKind::Internal, "cannot count the tokens of the prompt");
        Ok(tokens.map_err(gone)??.len())
    }

    /// What finds reasoning and calls of tools in an answer to `request`; `None` for a prompt that is no conversation. `single`: at
    /// most one call.
    pub async fn answer_reader(&self, request: &Request, single: bool) -> Option<AnswerReader> {
        let text = Arc::clone(&self.shared.text);
        let prompt = request.prompt.clone();
        // An answer that must match a format is that from its first character.
        let is_free = matches!(request.format, AnswerFormat::Text);
        // Whether the template opens the reasoning shows when it is run, which takes a while.
        tokio::task::spawn_blocking(move || text.answer_reader(&prompt, single, is_free)).await.unwrap_or_default()
    }

    /// Queues a request. Dropping the returned generation cancels it.
    ///
    /// # Errors
    /// [`RequestRefused`]: `InvalidInput` for an invalid request, `Overloaded` if the queue is full.
    pub async fn generate(&self, request: Request) -> std::result::Result<Generation, RequestRefused> {
        let arrived = clock::now();
        let shared = Arc::clone(&self.shared);
        let preparing = child!(&Span::current(), "prepare");
        // Templates, long texts and schemas take a while, so they are processed on a blocking thread.
        let prepared = tokio::task::spawn_blocking(move || prepare(&shared, request, arrived)).await;
        drop(preparing);
        let gone = |_| Error::new(ErrorKind::Internal, "cannot prepare the request");
        Generation::begin(Arc::clone(&self.shared), prepared.map_err(gone)??).await
    }
}

/// Checks a request completely and prepares it.
fn prepare(shared: &Shared, mut request: Request, arrived: Time) -> std::result::Result<Prepared, RequestRefused> {
    let known = catalogue::known(&shared.facts.name).map(|known| known.sampling).unwrap_or_default();
    shared.text.recommended.or(known).fill(&mut request.sampling, request.open_terms);
    request.check().map_err(Error::from)?;
    request.sampling.check(shared.facts.vocabulary).map_err(compute_error)?;
    let prompt = shared.text.tokens(&request.prompt)?;
    let context = shared.facts.context;
    if prompt.len() >= context {
        let message = format!(
            "the prompt has {} tokens, and prompt and answer must fit the context of {context}; shorten it",
            prompt.len()
        );
        let error = Error::new(ErrorKind::InvalidInput, message);
        return Err(RequestRefused { error, retry_after: None, context_exceeded: true });
    }
    let format = shared.text.call_format(&request.prompt).unwrap_or(request.format);
    // An invalid schema is reported before the request waits.
    shared.text.grammar(&format)?;
    Ok(Prepared {
        id: request.id,
        choices: request.choices,
        max_new_tokens: request.max_tokens.unwrap_or(usize::MAX).min(context - prompt.len()),
        format,
        call_marks: shared.text.answer_marks(&request.prompt),
        stops: StopMatcher::new(&request.stop).map_err(compute_error)?,
        prompt_logprobs: request.prompt_logprobs && request.sampling.logprobs.is_some(),
        receipt: request.receipt,
        server: request.server,
        owner: request.owner,
        sampling: request.sampling,
        arrived,
        prefix: shared.routes.prefix(&prompt),
        prompt,
    })
}
