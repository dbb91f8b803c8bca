//! The handle of a loaded model: what HTTP, the Cap'n Proto service and the commands ask for answers. It checks requests on
//! the caller's side and hands them to the engine's thread; cloning gives the same engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::model::{Model, ModelFile, ModelPart, PageBudget};
use pangea_compute::sample::stop::StopMatcher;
use pangea_control::Time;
use pangea_control::generation::Exclusions;
use pangea_units::ByteSize;
use prometheus_client::encoding::DescriptorEncoder;

use super::generation::{Generation, Prepared};
use super::request::Request;
use super::route::{Alone, KeptChain, Route, Routes};
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};
use crate::engine_metrics::{self, EngineMetrics};
use crate::jobs::Jobs;
use crate::model_text::ModelText;
use crate::models::LoadedPart;
use crate::pipeline::wire::StageAt;
use crate::pipeline::{ChainId, ChainLimits, Drafts, Pipeline, StageSetup};
use crate::supervise::Supervisor;
use crate::trust::Auditor;
use crate::{clock, compute_error};

/// How an engine is to run.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
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

impl EngineSettings {
    /// For so many bytes of sessions.
    pub fn new(session_bytes: u64) -> EngineSettings {
        EngineSettings {
            session_bytes,
            running: 8,
            waiting: 64,
            wait: Duration::from_secs(120),
            drafts: Drafts::Paying,
        }
    }

    /// What a chain takes in.
    pub fn limits(&self) -> ChainLimits {
        ChainLimits { running: self.running, waiting: self.waiting, wait: self.wait }
    }
}

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

/// A model that answers requests. What computes it ends when the last handle is gone and the last answer is complete.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What every handle and every answer under way has.
pub(super) struct Shared {
    pub(super) facts: ModelFacts,
    pub(super) text: Arc<ModelText>,
    pub(super) metrics: Arc<EngineMetrics>,
    pub(super) pipeline: Pipeline,
    pub(super) routes: Arc<dyn Routes>,
    /// Keeps and checks receipts, where the node has other nodes to check.
    pub(super) auditor: Option<Auditor>,
    /// The jobs of this node.
    pub(super) jobs: Jobs,
}

impl Engine {
    /// Loads a model into this process and returns when it can be asked. Blocks.
    ///
    /// # Errors
    /// `NotFound` for a file that is not there, `InvalidInput` for one that is no model this engine runs, `Overloaded` where
    /// memory does not suffice.
    pub fn load(name: &str, path: &Path, devices: &Devices, settings: EngineSettings) -> Result<Engine> {
        let pipeline = Pipeline::new(Keypair::generate_ed25519(), Supervisor::default());
        let metrics = Arc::<EngineMetrics>::default();
        let about =
            |error: Error| Error::new(error.kind(), format!("the model {name} cannot be loaded: {}", error.message()));
        let file = ModelFile::open(path).map_err(compute_error).map_err(about)?;
        let pool = devices.pool(Purpose::Stage).map_err(about)?;
        let whole = ModelPart::whole(file.config());
        let needs = Model::load_bytes(&file, &whole, pool.threads()).map_err(compute_error).map_err(about)?;
        let weights = devices.lease(Kind::Weights, needs.weights).map_err(about)?;
        let sessions = devices.lease(Kind::Sessions, settings.session_bytes).map_err(about)?;
        let LoadedPart { model, text } = LoadedPart::load(&file, whole, &pool, devices).map_err(about)?;
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
                "the model {name} cannot be loaded: {} for sessions do not hold a single one; allow more",
                ByteSize(settings.session_bytes)
            );
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        // Two models of one process are told apart by their paths; what they hold is nobody else's business.
        let chain = ChainId { model: Digest(*blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes()), epoch: 0 };
        let stages = vec![StageAt { peer: pipeline.local(), layers: 0..config.layers as u32 }];
        pipeline.start(StageSetup {
            chain,
            stages: stages.clone(),
            index: 0,
            model: Arc::new(model),
            pool,
            budget: PageBudget::new(settings.session_bytes),
            limits: Some(limits),
            drafts: settings.drafts,
            text: Some(Arc::clone(&text)),
            metrics: Arc::clone(&metrics),
            memory: Arc::new([weights, sessions]),
        })?;
        let kept = Some(Arc::new(KeptChain { chain, pipeline: pipeline.clone() }));
        let routes = Arc::new(Alone::new(Route { chain, stages, kept }));
        Ok(Engine {
            shared: Arc::new(Shared { facts, text, metrics, pipeline, routes, auditor: None, jobs: Jobs::default() }),
        })
    }

    /// A model whose layers are somewhere in the pool.
    pub(super) fn pooled(
        facts: ModelFacts,
        text: Arc<ModelText>,
        metrics: Arc<EngineMetrics>,
        pipeline: Pipeline,
        routes: Arc<dyn Routes>,
        auditor: Auditor,
        jobs: Jobs,
    ) -> Engine {
        Engine { shared: Arc::new(Shared { facts, text, metrics, pipeline, routes, auditor: Some(auditor), jobs }) }
    }

    /// What the model is.
    pub fn model(&self) -> &ModelFacts {
        &self.shared.facts
    }

    /// Sequences that run and that wait, about now, where this node schedules them.
    pub fn load_now(&self) -> (usize, usize) {
        let route = self.shared.routes.best(&Exclusions::default());
        route.map_or((0, 0), |route| self.shared.pipeline.load(route.chain))
    }

    /// Writes what this engine counts.
    ///
    /// # Errors
    /// Those of `encoder`.
    pub fn encode_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        engine_metrics::encode(&[(self.shared.facts.name.clone(), Arc::clone(&self.shared.metrics))], encoder)
    }

    /// Whether a session could be opened now.
    pub fn has_route(&self) -> bool {
        self.shared.routes.best(&Exclusions::default()).is_some()
    }

    /// Why no node can hold the model as the pool is, where that is certain.
    pub fn unplaceable(&self) -> Option<String> {
        self.shared.routes.unplaceable()
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
        let arrived = clock::now();
        let shared = Arc::clone(&self.shared);
        // Templates, long texts and schemas take a while: not on the caller's own thread.
        let prepared = tokio::task::spawn_blocking(move || prepare(&shared, request, arrived)).await;
        let gone = |_| Error::new(ErrorKind::Internal, "the request could not be prepared");
        Generation::begin(Arc::clone(&self.shared), prepared.map_err(gone)??).await
    }
}

/// Everything that can be wrong with a request is found here.
fn prepare(shared: &Shared, request: Request, arrived: Time) -> std::result::Result<Prepared, Refused> {
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
        return Err(Refused { error, retry_after: None, context_exceeded: true });
    }
    // What is wrong with a schema is said before anybody has to wait for it.
    shared.text.grammar(&request.format)?;
    Ok(Prepared {
        id: request.id,
        choices: request.choices,
        max_new_tokens: request.max_tokens.unwrap_or(usize::MAX).min(context - prompt.len()),
        format: request.format,
        stops: StopMatcher::new(&request.stop).map_err(compute_error)?,
        prompt_logprobs: request.prompt_logprobs && request.sampling.logprobs.is_some(),
        receipt: request.receipt,
        owner: request.owner,
        sampling: request.sampling,
        arrived,
        prompt,
    })
}
