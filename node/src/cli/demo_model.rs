//! The demo's language model: waits until its layers are split over the nodes, asks it a question, and checks the receipt of
//! the answer by computing the answer again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pangea_client::{
    AnswerStage, Client, ErrorKind, GenerationRequest, GenerationSummary, Model, PlannedChain, Prompt, Sampling,
};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, StoreArgs};
use super::demo_node::DemoNode;
use super::failure::{Exit, Failure};
use super::progress::Progress;
use super::receipts;
use crate::models;
use crate::trust::{Receipt, ReceiptStore};
use pangea_units::LayerRange;

/// Question to the model; even a small one knows the answer.
pub(super) const QUESTION: &str = "What is the capital of France?";

/// System message of the question.
const SYSTEM: &str = "You are a helpful assistant.";

/// Maximum tokens of the answer.
const MAX_ANSWER_TOKENS: u64 = 48;

/// Time for the layers to be ready on the nodes that are left: they are fetched again where the killed node had some.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the first node to write the receipt of its answer.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which the placement of the layers, or the receipt, is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A model on this machine's disk.
pub(super) struct DemoModel {
    /// Folder of all models.
    pub(super) folder: PathBuf,
    /// Name of the model in that folder.
    pub(super) name: String,
    path: PathBuf,
}

/// The question and the answer.
#[derive(Serialize)]
pub(super) struct AnswerLine {
    pub(super) model: String,
    /// The nodes that computed the answer, in the order of their layers.
    pub(super) stages: Vec<StageLine>,
    prompt: &'static str,
    pub(super) text: String,
    pub(super) tokens: u64,
    pub(super) failovers: u64,
    pub(super) verdict: String,
    pub(super) seconds: f64,
}

/// A node's part in the answer.
#[derive(Serialize)]
pub(super) struct StageLine {
    pub(super) name: String,
    /// Layers of the stage, `[first, end)`, from 0.
    layers: [u32; 2],
}

impl StageLine {
    fn of(stage: &AnswerStage, nodes: &[DemoNode]) -> StageLine {
        let name = nodes.iter().find(|node| node.peer == stage.peer).map_or(&stage.peer, |node| &node.name);
        StageLine { name: name.clone(), layers: stage.layers }
    }

    /// Number of its layers.
    pub(super) fn count(&self) -> u32 {
        self.layers[1].saturating_sub(self.layers[0])
    }
}

impl std::fmt::Display for StageLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (layers {})", self.name, LayerRange::from(self.layers))
    }
}

impl AnswerLine {
    /// Who answered, for people.
    pub(super) fn by(&self) -> String {
        let stages: Vec<String> = self.stages.iter().map(ToString::to_string).collect();
        stages.join(" and ")
    }
}

impl DemoModel {
    /// The smallest supported model on this machine's disk.
    pub(super) fn at_hand() -> Option<DemoModel> {
        let store = StoreArgs { data_dir: std::env::var_os("PANGEA_HOME").map(PathBuf::from) };
        let folder = super::models::folder(&store).ok()?;
        let mut entries = models::list(&folder).unwrap_or_default();
        entries.sort_by_key(|entry| entry.size_bytes);
        let entry = entries.into_iter().find(|entry| entry.describe().is_ok())?;
        Some(DemoModel { folder, name: entry.name, path: entry.path })
    }

    /// Asks the first of `nodes`, which `client` is connected to, once the layers are on the nodes that run.
    pub(super) async fn ask(&self, client: &Client, nodes: &[DemoNode]) -> Result<AnswerLine, Failure> {
        split(client, nodes).await;
        let began = Instant::now();
        let model = client.model("", None).await?;
        let name = model.status().await?.name;
        let (text, took) = answer(&model).await?;
        let seconds = began.elapsed().as_secs_f64();
        let mut verdict = took.verdict.clone();
        if let (Some(id), Some(node)) = (took.receipts.first(), nodes.first()) {
            let receipt = kept(&ReceiptStore::new(&node.data_dir), id).await?;
            let (path, threads) = (self.path.clone(), crate::host::cores());
            let quiet = OutputArgs { quiet: true, ..OutputArgs::default() };
            let progress = Progress::waiting(&quiet, JsonArgs::default(), "hashing");
            let replayed = tokio::task::spawn_blocking(move || receipts::replay(&receipt, &path, threads, &progress));
            let found = replayed.await.map_err(|error| Failure::failed(error.to_string()))??;
            if !found.holds {
                return Err(Failure::new(
                    Exit::Untrusted,
                    "the answer is wrong: its receipt does not hold, as computing it again here shows",
                ));
            }
            verdict = found.verdict.name().to_owned();
        }
        Ok(AnswerLine {
            model: name,
            stages: took.stages.iter().map(|stage| StageLine::of(stage, nodes)).collect(),
            prompt: QUESTION,
            text: text.trim().to_owned(),
            tokens: took.answer_tokens,
            failovers: took.failovers,
            verdict,
            seconds,
        })
    }
}

/// Waits until all layers are ready on nodes that run: on several of them, unless the model fits on one only. A model that is
/// not ready by then still answers, later or from one node.
async fn split(client: &Client, nodes: &[DemoNode]) {
    let is_running = |chain: &PlannedChain| {
        let runs = |peer: &str| nodes.iter().any(|node| node.peer == peer && !node.was_killed());
        chain.stages.iter().all(|stage| runs(&stage.peer))
    };
    let ready = async {
        loop {
            // A model that the pool does not know yet has no plan.
            if let Ok(plan) = client.plan_model("").await
                && let Some(current) = plan.current.filter(|current| plan.ready && is_running(current))
                && (current.stages.len() > 1 || plan.best.is_some_and(|best| best.stages.len() == 1))
            {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let _ = tokio::time::timeout(SPLIT_TIMEOUT, ready).await;
}

/// The receipt with this id. The node writes it while the end of the answer is on its way.
async fn kept(store: &ReceiptStore, id: &str) -> Result<Receipt, Failure> {
    let began = Instant::now();
    loop {
        match store.get(id) {
            Err(error) if error.kind() == ErrorKind::NotFound && began.elapsed() < RECEIPT_TIMEOUT => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            found => return Ok(found?),
        }
    }
}

async fn answer(model: &Model) -> Result<(String, GenerationSummary), Failure> {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut messages = vec![("system".to_owned(), SYSTEM.to_owned()), ("user".to_owned(), QUESTION.to_owned())];
    let mut text = String::new();
    loop {
        let request = GenerationRequest {
            sampling: sampling.clone(),
            max_tokens: Some(MAX_ANSWER_TOKENS),
            ..GenerationRequest::new(Prompt::Messages(messages.clone()))
        };
        let mut say = |piece: pangea_client::Piece| {
            text.push_str(&piece.text);
            Ok(())
        };
        match model.generate(&request, &mut say).await {
            // Some templates accept no system message.
            Err(error) if error.kind() == ErrorKind::InvalidInput && messages.len() > 1 => drop(messages.remove(0)),
            took => return Ok((text, took?)),
        }
    }
}
