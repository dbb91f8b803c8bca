//! Language models of a node: requests, streamed answers, cancelling.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::new_client;
use pangea_schema::model_capnp::{self, generation, generation_request, model, model_status, summary, token_sink};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::connection::Connection;
use crate::exception::from_exception;
use crate::text::{string, strings};
use crate::{Error, ErrorKind, Result};

/// Pieces that may wait for a slow reader before the node waits, too.
const PIECES: usize = 16;

/// A model that a node serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelStatus {
    /// Name of the model in requests.
    pub name: String,
    /// `absent` (to be fetched at the first request), `loading`, `ready` or `failed`.
    pub state: String,
    /// Why the model failed or is still absent; otherwise empty.
    pub why: String,
    /// Architecture as GGUF names it. This field and those that follow are set for ready models only.
    pub architecture: String,
    /// Number of layers.
    pub layers: u32,
    /// Largest number of tokens of prompt and answer together.
    pub context: u64,
    /// Number of tokens of the vocabulary.
    pub vocabulary: u64,
    /// Bytes of the weights in memory.
    pub memory_bytes: u64,
    /// Generations that are running.
    pub running: u32,
    /// Generations that wait in the queue.
    pub waiting: u32,
}

impl ModelStatus {
    /// Reads the wire form.
    pub fn from_wire(wire: model_status::Reader<'_>) -> capnp::Result<ModelStatus> {
        Ok(ModelStatus {
            name: string(wire.get_name()?)?,
            state: string(wire.get_state()?)?,
            why: string(wire.get_why()?)?,
            architecture: string(wire.get_architecture()?)?,
            layers: wire.get_layers(),
            context: wire.get_context(),
            vocabulary: wire.get_vocabulary(),
            memory_bytes: wire.get_memory_bytes(),
            running: wire.get_running(),
            waiting: wire.get_waiting(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: model_status::Builder<'_>) {
        wire.set_name(&self.name);
        wire.set_state(&self.state);
        wire.set_why(&self.why);
        wire.set_architecture(&self.architecture);
        wire.set_layers(self.layers);
        wire.set_context(self.context);
        wire.set_vocabulary(self.vocabulary);
        wire.set_memory_bytes(self.memory_bytes);
        wire.set_running(self.running);
        wire.set_waiting(self.waiting);
    }
}

/// The prompt of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text to continue.
    Text(String),
    /// A conversation: roles (`system`, `user`, `assistant`) and texts.
    Messages(Vec<(String, String)>),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// How tokens are chosen. Equal requests give equal answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub typical_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Number of last tokens that the penalties apply to; `None`: all.
    pub repetition_window: Option<u32>,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// Tokens and the addends of their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            repetition_window: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    fn from_wire(wire: model_capnp::sampling::Reader<'_>) -> capnp::Result<Sampling> {
        Ok(Sampling {
            temperature: wire.get_temperature(),
            top_k: wire.get_top_k(),
            top_p: wire.get_top_p(),
            min_p: wire.get_min_p(),
            typical_p: wire.get_typical_p(),
            repetition_penalty: wire.get_repetition_penalty(),
            repetition_window: Some(wire.get_repetition_window()).filter(|window| *window > 0),
            presence_penalty: wire.get_presence_penalty(),
            frequency_penalty: wire.get_frequency_penalty(),
            logit_bias: wire.get_logit_bias()?.iter().map(|bias| (bias.get_token(), bias.get_bias())).collect(),
            seed: wire.get_seed(),
        })
    }

    fn to_wire(&self, mut wire: model_capnp::sampling::Builder<'_>) {
        wire.set_temperature(self.temperature);
        wire.set_top_k(self.top_k);
        wire.set_top_p(self.top_p);
        wire.set_min_p(self.min_p);
        wire.set_typical_p(self.typical_p);
        wire.set_repetition_penalty(self.repetition_penalty);
        wire.set_repetition_window(self.repetition_window.unwrap_or(0));
        wire.set_presence_penalty(self.presence_penalty);
        wire.set_frequency_penalty(self.frequency_penalty);
        wire.set_seed(self.seed);
        let mut biases = wire.init_logit_bias(self.logit_bias.len() as u32);
        for (at, (token, bias)) in self.logit_bias.iter().enumerate() {
            let mut wire = biases.reborrow().get(at as u32);
            wire.set_token(*token);
            wire.set_bias(*bias);
        }
    }
}

/// A request to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// The prompt.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Largest number of tokens of the answer; `None`: until the model ends the answer or the context is full.
    pub max_tokens: Option<u64>,
    /// Stop strings: the answer ends before the first of them.
    pub stop: Vec<String>,
    /// JSON Schema of the answer, `{}` for any object.
    pub json_schema: Option<String>,
}

impl GenerationRequest {
    /// An answer to `prompt`, with defaults for the rest.
    pub fn new(prompt: Prompt) -> GenerationRequest {
        GenerationRequest {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            json_schema: None,
        }
    }

    /// Reads the wire form.
    pub fn from_wire(wire: generation_request::Reader<'_>) -> capnp::Result<GenerationRequest> {
        use generation_request::prompt::Which;
        let prompt = match wire.get_prompt().which()? {
            Which::Text(text) => Prompt::Text(string(text?)?),
            Which::Messages(messages) => {
                let message = |wire: model_capnp::message::Reader<'_>| {
                    Ok::<_, capnp::Error>((string(wire.get_role()?)?, string(wire.get_content()?)?))
                };
                Prompt::Messages(messages?.iter().map(message).collect::<capnp::Result<_>>()?)
            }
            Which::Tokens(tokens) => Prompt::Tokens(tokens?.iter().collect()),
        };
        Ok(GenerationRequest {
            prompt,
            sampling: Sampling::from_wire(wire.get_sampling()?)?,
            max_tokens: Some(wire.get_max_tokens()).filter(|tokens| *tokens > 0),
            stop: strings(wire.get_stop()?)?,
            json_schema: Some(string(wire.get_json_schema()?)?).filter(|schema| !schema.is_empty()),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: generation_request::Builder<'_>) {
        wire.set_max_tokens(self.max_tokens.unwrap_or(0));
        wire.set_json_schema(self.json_schema.as_deref().unwrap_or_default());
        let mut stop = wire.reborrow().init_stop(self.stop.len() as u32);
        for (at, text) in self.stop.iter().enumerate() {
            stop.set(at as u32, text);
        }
        self.sampling.to_wire(wire.reborrow().init_sampling());
        let mut prompt = wire.init_prompt();
        match &self.prompt {
            Prompt::Text(text) => prompt.set_text(text),
            Prompt::Messages(messages) => {
                let mut list = prompt.init_messages(messages.len() as u32);
                for (at, (role, content)) in messages.iter().enumerate() {
                    let mut wire = list.reborrow().get(at as u32);
                    wire.set_role(role);
                    wire.set_content(content);
                }
            }
            Prompt::Tokens(tokens) => {
                let mut list = prompt.init_tokens(tokens.len() as u32);
                for (at, token) in tokens.iter().enumerate() {
                    list.set(at as u32, *token);
                }
            }
        }
    }
}

/// The next piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Whole characters; empty while the start of a character or of a stop string is held back.
    pub text: String,
    /// Token ids of this piece.
    pub tokens: Vec<u32>,
    /// `stop` or `length` in the last piece; `None` in all others.
    pub finish: Option<String>,
}

impl Piece {
    /// Reads the wire form.
    pub fn from_wire(wire: model_capnp::piece::Reader<'_>) -> capnp::Result<Piece> {
        Ok(Piece {
            text: string(wire.get_text()?)?,
            tokens: wire.get_tokens()?.iter().collect(),
            finish: Some(string(wire.get_finish()?)?).filter(|finish| !finish.is_empty()),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: model_capnp::piece::Builder<'_>) {
        wire.set_text(&self.text);
        wire.set_finish(self.finish.as_deref().unwrap_or_default());
        let mut tokens = wire.init_tokens(self.tokens.len() as u32);
        for (at, token) in self.tokens.iter().enumerate() {
            tokens.set(at as u32, *token);
        }
    }
}

/// Counts and times of an answer, its verdict, and the nodes that computed it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Prompt tokens whose keys and values an earlier request had computed.
    pub cached_tokens: u64,
    /// Tokens of the answer.
    pub answer_tokens: u64,
    /// Seconds from arrival to the first step.
    pub queued_s: f64,
    /// Seconds from the first step to the first token.
    pub prompt_s: f64,
    /// Seconds from the first token to the last.
    pub answer_s: f64,
    /// Verdict of the answer: `local`, `verified`, `audited`, `tolerance-checked` or `unchecked`.
    pub verdict: String,
    /// Nodes and their layers at the end of the answer.
    pub stages: Vec<AnswerStage>,
    /// Failovers during the answer.
    pub failovers: u64,
    /// Ids of the receipts that the node keeps for the answer.
    pub receipts: Vec<String>,
}

/// A node's part in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerStage {
    /// Peer id.
    pub peer: String,
    /// Layers of the stage, `[first, end)`, from 0.
    pub layers: [u32; 2],
}

impl GenerationSummary {
    /// Reads the wire form.
    pub fn from_wire(wire: summary::Reader<'_>) -> capnp::Result<GenerationSummary> {
        let stages = wire.get_stages()?.iter().map(|stage| {
            Ok(AnswerStage { peer: string(stage.get_peer()?)?, layers: [stage.get_first(), stage.get_end()] })
        });
        Ok(GenerationSummary {
            prompt_tokens: wire.get_prompt_tokens(),
            cached_tokens: wire.get_cached_tokens(),
            answer_tokens: wire.get_answer_tokens(),
            queued_s: wire.get_queued_s(),
            prompt_s: wire.get_prompt_s(),
            answer_s: wire.get_answer_s(),
            verdict: string(wire.get_verdict()?)?,
            stages: stages.collect::<capnp::Result<_>>()?,
            failovers: wire.get_failovers(),
            receipts: strings(wire.get_receipts()?)?,
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: summary::Builder<'_>) {
        wire.set_prompt_tokens(self.prompt_tokens);
        wire.set_cached_tokens(self.cached_tokens);
        wire.set_answer_tokens(self.answer_tokens);
        wire.set_queued_s(self.queued_s);
        wire.set_prompt_s(self.prompt_s);
        wire.set_answer_s(self.answer_s);
        wire.set_verdict(&self.verdict);
        wire.set_failovers(self.failovers);
        let mut stages = wire.reborrow().init_stages(self.stages.len() as u32);
        for (at, stage) in self.stages.iter().enumerate() {
            let mut to = stages.reborrow().get(at as u32);
            to.set_peer(&stage.peer);
            to.set_first(stage.layers[0]);
            to.set_end(stage.layers[1]);
        }
        let mut receipts = wire.init_receipts(self.receipts.len() as u32);
        for (at, receipt) in self.receipts.iter().enumerate() {
            receipts.set(at as u32, receipt);
        }
    }
}

/// A loaded model of a node. Dropping this value does not unload the model.
#[derive(Clone)]
pub struct Model {
    capability: model::Client,
    /// Keeps the connection open for the life of this value.
    _connection: Rc<Connection>,
}

impl Model {
    pub(crate) fn new(capability: model::Client, connection: Rc<Connection>) -> Model {
        Model { capability, _connection: connection }
    }

    /// Generates an answer, passes its pieces to `on_piece` and returns its summary. Dropping the future, or an error from
    /// `on_piece`, cancels the generation.
    ///
    /// # Errors
    /// `InvalidInput` for a request that cannot be answered, `Overloaded` where the model's queue is full, the error that
    /// the generation fails with, and the error of `on_piece`.
    pub async fn generate(
        &self,
        asked: &GenerationRequest,
        on_piece: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<GenerationSummary> {
        let (pieces, mut arrived) = mpsc::channel(PIECES);
        let mut request = self.capability.generate_request();
        asked.to_wire(request.get().init_request());
        request.get().set_sink(new_client(Sink { pieces }));
        let response = request.send().promise.await.map_err(error)?;
        // Dropping the last clone of this capability cancels the generation.
        let generation: generation::Client =
            response.get().and_then(|results| results.get_generation()).map_err(error)?;
        drop(response);
        let mut call = pin!(generation.summary_request().send().promise);
        loop {
            tokio::select! {
                biased;
                Some(piece) = arrived.recv() => on_piece(piece)?,
                outcome = &mut call => {
                    // The node has let go of the sink: what has arrived is all there is.
                    while let Some(piece) = arrived.recv().await {
                        on_piece(piece)?;
                    }
                    let outcome = outcome.map_err(error)?;
                    let summary = outcome.get().and_then(|results| results.get_summary());
                    return summary.and_then(GenerationSummary::from_wire).map_err(error);
                }
            }
        }
    }

    /// State and load of the model.
    pub async fn status(&self) -> Result<ModelStatus> {
        let response = self.capability.status_request().send().promise.await.map_err(error)?;
        response.get().and_then(|results| ModelStatus::from_wire(results.get_status()?)).map_err(error)
    }
}

/// How long to wait for a model, in milliseconds on the wire: 0 is the node's default.
pub(crate) fn timeout_ms(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, crate::connection::milliseconds)
}

fn error(exception: capnp::Error) -> Error {
    from_exception(&exception)
}

/// Takes the pieces that the node sends.
struct Sink {
    pieces: mpsc::Sender<Piece>,
}

impl token_sink::Server for Sink {
    async fn append(self: Rc<Self>, params: token_sink::AppendParams) -> capnp::Result<()> {
        let piece = Piece::from_wire(params.get()?.get_piece()?)?;
        let gone = |_| {
            let error = Error::new(ErrorKind::Cancelled, "nobody reads this answer any more");
            crate::exception::to_exception(&error)
        };
        self.pieces.send(piece).await.map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let sampling =
            Sampling { temperature: 0.0, logit_bias: vec![(7, -1.5)], seed: u64::MAX, ..Sampling::default() };
        let messages = vec![("system".to_owned(), "Be short.".to_owned()), ("user".to_owned(), "Ωmega?".to_owned())];
        for request in [
            GenerationRequest::new(Prompt::Text("Hello".to_owned())),
            GenerationRequest {
                sampling,
                max_tokens: Some(5),
                stop: vec!["\n".to_owned(), "END".to_owned()],
                json_schema: Some("{}".to_owned()),
                ..GenerationRequest::new(Prompt::Messages(messages))
            },
            GenerationRequest {
                sampling: Sampling { repetition_window: Some(64), ..Sampling::default() },
                ..GenerationRequest::new(Prompt::Tokens(vec![1, u32::MAX]))
            },
        ] {
            let mut message = capnp::message::Builder::new_default();
            request.to_wire(message.init_root());
            let read = GenerationRequest::from_wire(message.get_root_as_reader().unwrap()).unwrap();
            assert_eq!(read, request);
        }
    }

    #[test]
    fn who_computed_an_answer_arrives_as_it_was_sent() {
        let summary = GenerationSummary {
            prompt_tokens: 7,
            answer_tokens: 3,
            answer_s: 0.5,
            verdict: "audited".to_owned(),
            stages: vec![
                AnswerStage { peer: "one".to_owned(), layers: [0, 16] },
                AnswerStage { peer: "other".to_owned(), layers: [16, 30] },
            ],
            failovers: 2,
            receipts: vec!["0123456789abcdef".to_owned()],
            ..GenerationSummary::default()
        };
        let mut message = capnp::message::Builder::new_default();
        summary.to_wire(message.init_root());
        assert_eq!(GenerationSummary::from_wire(message.get_root_as_reader().unwrap()).unwrap(), summary);
    }

    #[test]
    fn an_answer_of_a_node_that_says_nothing_of_it_is_unchecked() {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<summary::Builder<'_>>();
        let read = GenerationSummary::from_wire(message.get_root_as_reader().unwrap()).unwrap();
        assert_eq!(read, GenerationSummary { verdict: "unchecked".to_owned(), ..GenerationSummary::default() });
    }

    #[test]
    fn what_is_not_said_means_the_defaults() {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<generation_request::Builder<'_>>();
        let read = GenerationRequest::from_wire(message.get_root_as_reader().unwrap()).unwrap();
        assert_eq!(read, GenerationRequest::new(Prompt::Text(String::new())));
    }
}
