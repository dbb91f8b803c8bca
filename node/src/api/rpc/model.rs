//! The `Model` and `Generation` capabilities: an engine's answers as Cap'n Proto messages. This
//! file chooses no tokens and loads nothing.

use std::rc::Rc;

use capnp_rpc::new_client;
use pangea_client::exception::{from_exception, to_exception};
use pangea_client::{Error, ErrorKind, GenerationRequest, GenerationSummary, ModelStatus, Piece, Prompt, Result};
use pangea_compute::chat::Message;
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_control::jobs::{Api, Owner};
use pangea_schema::model_capnp::{generation, model, token_sink};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span};

use super::account::{Account, JobSeat};
use super::backend::Backend;
use super::slot::{Slot, slot};
use crate::serve::{self, Engine, Event, Generation, ServedModel, role};
use crate::traces::{self, entrance};

/// State behind a `Model` capability.
pub(super) struct ModelObject<B: Backend> {
    account: Rc<Account<B>>,
    engine: Engine,
    /// Cancelled when the node drains; new answers are refused from then on.
    draining: CancellationToken,
}

impl<B: Backend> ModelObject<B> {
    pub(super) fn new(account: Rc<Account<B>>, engine: Engine, draining: CancellationToken) -> ModelObject<B> {
        ModelObject { account, engine, draining }
    }
}

/// Converts the status of a served model to the client's type.
pub(super) fn status(model: ServedModel) -> ModelStatus {
    let facts = model.facts.as_ref();
    ModelStatus {
        name: model.name,
        state: model.state.to_owned(),
        why: model.why.unwrap_or_default(),
        architecture: facts.map_or_else(String::new, |facts| facts.architecture.to_owned()),
        layers: facts.map_or(0, |facts| facts.layers as u32),
        context: facts.map_or(0, |facts| facts.context as u64),
        vocabulary: facts.map_or(0, |facts| facts.vocabulary as u64),
        memory_bytes: facts.map_or(0, |facts| facts.memory_bytes),
        running: model.running as u32,
        waiting: model.waiting as u32,
    }
}

impl<B: Backend> model::Server for ModelObject<B> {
    async fn generate(
        self: Rc<Self>,
        params: model::GenerateParams,
        mut results: model::GenerateResults,
    ) -> capnp::Result<()> {
        if self.draining.is_cancelled() {
            let message = "this node is shutting down and starts no more answers";
            return Err(to_exception(&Error::new(ErrorKind::Unavailable, message)));
        }
        let params = params.get()?;
        let asked = GenerationRequest::from_wire(params.get_request()?)?;
        let sink = params.get_sink()?;
        let span = entrance!("rpc", otel.kind = "server", rpc.system.name = "capnproto", rpc.method = "generate");
        let begun = async {
            let seat = self.account.job()?;
            let answer = self.engine.generate(request(asked)?).await?;
            Ok::<_, Error>((seat, answer))
        };
        let (seat, answer) = begun.instrument(span.clone()).await.map_err(|error| to_exception(&error))?;
        results.get().set_generation(new_client(GenerationObject::start(
            self.account.clone(),
            seat,
            answer,
            sink,
            span,
        )));
        Ok(())
    }

    async fn status(self: Rc<Self>, _: model::StatusParams, mut results: model::StatusResults) -> capnp::Result<()> {
        let facts = self.engine.model().clone();
        let (running, waiting) = self.engine.load_now();
        let served = ServedModel {
            name: facts.name.clone(),
            digest: None,
            state: "ready",
            why: None,
            facts: Some(facts),
            running,
            waiting,
        };
        status(served).to_wire(results.get().init_status());
        Ok(())
    }
}

/// Converts a client's request to the engine's type.
fn request(asked: GenerationRequest) -> Result<serve::Request> {
    let format = match asked.json_schema.as_deref().map(serde_json::from_str::<serde_json::Value>) {
        None => AnswerFormat::Text,
        Some(Ok(serde_json::Value::Object(schema))) if schema.is_empty() => AnswerFormat::JsonObject,
        Some(Ok(schema)) => AnswerFormat::JsonSchema(schema.to_string()),
        Some(Err(error)) => {
            return Err(Error::new(ErrorKind::InvalidInput, format!("the JSON Schema is not JSON: {error}")));
        }
    };
    let prompt = match asked.prompt {
        Prompt::Text(text) => serve::Prompt::Text(text),
        Prompt::Tokens(tokens) => serve::Prompt::Tokens(tokens),
        Prompt::Messages(messages) => {
            let messages = messages.into_iter().enumerate();
            let messages = messages.map(|(at, (said_by, content))| Ok(Message::new(role(at, &said_by)?, content)));
            serve::Prompt::chat(messages.collect::<Result<_>>()?)
        }
    };
    let sampling = asked.sampling;
    let request = serve::Request {
        sampling: Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k as usize,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repetition_penalty: sampling.repetition_penalty,
            repetition_window: sampling.repetition_window.map(|window| window as usize),
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias,
            seed: sampling.seed,
            logprobs: None,
        },
        max_tokens: asked.max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
        stop: asked.stop,
        format,
        owner: Owner::of(Api::Rpc),
        ..serve::Request::new(prompt)
    };
    request.check()?;
    Ok(request)
}

/// State behind a `Generation` capability.
struct GenerationObject<B: Backend> {
    account: Rc<Account<B>>,
    summary: Slot<GenerationSummary>,
    cancel: CancellationToken,
    /// Cancels the answer when its last holder drops it.
    _wanted: DropGuard,
}

impl<B: Backend> GenerationObject<B> {
    fn start(
        account: Rc<Account<B>>,
        seat: JobSeat<B>,
        answer: Generation,
        sink: token_sink::Client,
        span: Span,
    ) -> GenerationObject<B> {
        let (fill, summary) = slot();
        let cancel = CancellationToken::new();
        let cancelled = cancel.clone();
        tokio::task::spawn_local(async move {
            let outcome = tokio::select! {
                biased;
                () = cancelled.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the answer was cancelled")),
                outcome = pass_on(answer, &sink) => outcome,
            };
            drop(sink);
            // The place is released before the result is published, so that the caller can start the next request.
            drop(seat);
            if let Err(error) = &outcome {
                traces::failed(&span, error.kind());
            }
            traces::end(&span);
            fill.fill(outcome);
        });
        GenerationObject { account, summary, _wanted: cancel.clone().drop_guard(), cancel }
    }
}

/// Forwards an answer's pieces to `sink`, at the speed at which the client accepts them.
async fn pass_on(mut answer: Generation, sink: &token_sink::Client) -> Result<GenerationSummary> {
    while let Some(event) = answer.next().await {
        match event? {
            Event::Prefill(_) | Event::Prompt(_) => {}
            Event::Delta(delta) => {
                let finish = delta.finish.map(|finish| finish.name().to_owned());
                let piece = Piece { text: delta.text, tokens: delta.tokens, finish };
                let mut request = sink.append_request();
                piece.to_wire(request.get().init_piece());
                request.send().await.map_err(|exception| from_exception(&exception))?;
            }
            Event::Done(took) => {
                // Streaming calls return before they arrive; this one returns when all have arrived.
                return Ok(summary(took));
            }
        }
    }
    Err(Error::new(ErrorKind::Internal, "the answer ended without a summary"))
}

/// Converts the summary of an answer to the client's type.
fn summary(took: serve::Summary) -> GenerationSummary {
    GenerationSummary {
        prompt_tokens: took.prompt_tokens as u64,
        cached_tokens: took.cached_tokens as u64,
        answer_tokens: took.answer_tokens as u64,
        queued_s: took.queued.as_secs_f64(),
        prompt_s: took.prompt.as_secs_f64(),
        answer_s: took.answer.as_secs_f64(),
        verdict: took.verdict.name().to_owned(),
        stages: took.answer_stages(),
        failovers: took.failovers as u64,
        receipts: took.receipts,
    }
}

impl<B: Backend> generation::Server for GenerationObject<B> {
    async fn summary(
        self: Rc<Self>,
        _: generation::SummaryParams,
        mut results: generation::SummaryResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(|error| to_exception(&error))?;
        let summary = self.summary.wait().await.map_err(|error| to_exception(&error))?;
        summary.to_wire(results.get().init_summary());
        Ok(())
    }

    async fn cancel(self: Rc<Self>, _: generation::CancelParams, _: generation::CancelResults) -> capnp::Result<()> {
        self.cancel.cancel();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(messages: &[(&str, &str)]) -> GenerationRequest {
        let messages = messages.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned()));
        GenerationRequest::new(Prompt::Messages(messages.collect()))
    }

    #[test]
    fn a_conversation_is_checked_as_over_http() {
        let refused = |asked: GenerationRequest| {
            let error = request(asked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            error.message().to_owned()
        };
        assert_eq!(refused(asked(&[])), "messages: 0 messages; it must be 1 to 4096");
        assert!(refused(asked(&[("user", "hello"), ("king", "hello")])).starts_with("messages[1]: the role \"king\""));
        let mut biased = asked(&[("user", "hello")]);
        biased.sampling.logit_bias = vec![(7, -1000.0)];
        assert!(refused(biased).starts_with("logit_bias: the bias of token 7"));
        match request(asked(&[("developer", "Be brief."), ("user", "hello")])).map(|request| request.prompt) {
            Ok(serve::Prompt::Chat { messages, .. }) => assert_eq!(messages[0].role, "system"),
            other => panic!("{other:?}"),
        }
    }
}
