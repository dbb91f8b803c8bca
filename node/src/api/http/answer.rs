//! Answers in OpenAI's format: one JSON document, or server-sent events. This file formats the engine's events and
//! generates nothing; dropping a response cancels its generation.

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll};
use serde_json::{Value, json};

use super::dialect::pangea;
use super::error::ApiError;
use super::generation::StreamOptions;
use super::key_holder::{KeyHolder, Metered};
use super::limits::STREAM_SILENCE;
use super::turn::{Call, Parts, TurnEnd, TurnPiece, refused};
use crate::serve::{Delta, Engine, Event, Prefill, Request, Summary, TokenLogprob, TokenText};

/// Endpoint that an answer belongs to.
pub(super) enum Endpoint {
    /// `/v1/chat/completions`.
    Chat {
        /// Whether at most one tool may be called.
        single_call: bool,
    },
    /// `/v1/completions`.
    Completion {
        /// The prompts, if they are repeated before the answers; empty otherwise.
        echoes: Vec<String>,
    },
}

/// Identity of one answer, repeated in each of its chunks.
pub(super) struct HttpAnswer {
    form: Endpoint,
    id: String,
    created_s: u64,
    model: String,
    stream_options: StreamOptions,
}

/// The engine's events, each with the index of its prompt.
type Events = SelectAll<BoxStream<'static, (usize, pangea_client::Result<Event>)>>;

impl HttpAnswer {
    /// An answer with a new id and no text yet.
    pub(super) fn new(engine: &Engine, form: Endpoint, stream_options: StreamOptions) -> HttpAnswer {
        let prefix = match form {
            Endpoint::Chat { .. } => "chatcmpl",
            Endpoint::Completion { .. } => "cmpl",
        };
        HttpAnswer {
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            created_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            model: engine.model().name.clone(),
            stream_options,
            form,
        }
    }

    /// Starts the generations and returns the response: at once for a stream, otherwise when the answer is complete.
    pub(super) async fn respond(
        self,
        engine: &Engine,
        holder: &KeyHolder,
        requests: Vec<Request>,
        stream: bool,
    ) -> Result<Response, ApiError> {
        let choices = requests.first().map_or(1, |request| request.choices);
        let reader = match (&self.form, requests.first()) {
            (Endpoint::Chat { single_call }, Some(request)) => engine.answer_reader(request, *single_call).await,
            _ => None,
        };
        let mut events = Events::new();
        let (prompts, mut prefilled) = (requests.len(), Vec::with_capacity(requests.len()));
        for (prompt, request) in requests.into_iter().enumerate() {
            let request = Request { id: self.id.clone(), ..request };
            let generation = holder.generate(engine, request).await.map_err(refused)?;
            prefilled.push(Prefill { computed: 0, total: generation.prompt_tokens() });
            let following = stream::unfold(generation, |mut generation: Metered| async {
                generation.next().await.map(|event| (event, generation))
            });
            events.push(following.map(move |event| (prompt, event)).boxed());
        }
        let mut collected = Collected::new(prompts, choices, Parts::new(reader));
        if stream {
            return Ok(self.stream(events, collected, prefilled));
        }
        while let Some((prompt, event)) = events.next().await {
            collected.take(prompt, event?);
        }
        Ok(Json(self.whole(collected)).into_response())
    }

    /// The complete answer as one JSON document.
    fn whole(&self, collected: Collected) -> Value {
        let choices: Vec<Value> = (0..collected.choices.len()).map(|index| self.choice(&collected, index)).collect();
        let object = match self.form {
            Endpoint::Chat { .. } => "chat.completion",
            Endpoint::Completion { .. } => "text_completion",
        };
        let mut answer = self.envelope(object, choices);
        answer["usage"] = usage(&collected.summary);
        self.close(&mut answer, &collected.summary);
        answer
    }

    fn choice(&self, collected: &Collected, index: usize) -> Value {
        let choice = &collected.choices[index];
        match &self.form {
            Endpoint::Chat { .. } => {
                let calls: Vec<Value> = choice.parts.calls().map(|call| function_call(call, &call.arguments)).collect();
                let text = choice.parts.text();
                let mut message = json!({"role": "assistant", "content": text, "refusal": null});
                if !choice.parts.reasoning().is_empty() {
                    message["reasoning_content"] = json!(choice.parts.reasoning());
                }
                if !calls.is_empty() {
                    if text.is_empty() {
                        message["content"] = Value::Null;
                    }
                    message["tool_calls"] = Value::Array(calls);
                }
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": chat_logprobs(&choice.logprobs),
                    "finish_reason": finish_reason(choice.parts.end()),
                })
            }
            Endpoint::Completion { echoes } => {
                let prompt = index / collected.choices_per_prompt;
                let echo = echoes.get(prompt).map_or("", String::as_str);
                let echoed = &collected.prompts[prompt];
                let logprobs: Vec<&TokenLogprob> = echoed.iter().chain(&choice.logprobs).collect();
                json!({
                    "index": index,
                    "text": format!("{echo}{}", choice.parts.text()),
                    "logprobs": completion_logprobs(&logprobs, 0),
                    "finish_reason": finish_reason(choice.parts.end()),
                })
            }
        }
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created_s, "model": self.model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    /// Adds the fields that only the last chunk has: timings and the `pangea` object.
    fn close(&self, piece: &mut Value, summary: &Summary) {
        piece["pangea"] = pangea(summary);
        piece["timings"] = json!({
            "queued_s": summary.queued.as_secs_f64(),
            "prompt_s": summary.prompt.as_secs_f64(),
            "prompt_tokens_per_s": summary.prompt_tokens_per_s(),
            "answer_s": summary.answer.as_secs_f64(),
            "answer_tokens_per_s": summary.answer_tokens_per_s(),
            "drafted_tokens": summary.drafted_tokens,
            "accepted_tokens": summary.accepted_tokens,
        });
    }

    /// A response of server-sent events.
    fn stream(self, events: Events, collected: Collected, prefilled: Vec<Prefill>) -> Response {
        let prefill = self.stream_options.include_prefill.then(|| {
            let mut piece = self.piece(Vec::new());
            let tokens: usize = prefilled.iter().map(|prefill| prefill.total).sum();
            piece["prefill"] = json!({"tokens": tokens, "computed": 0});
            frame(&piece)
        });
        let begun = vec![false; collected.choices.len()];
        let state = Streaming { answer: self, events, collected, begun, prefilled, held: None, over: false };
        let frames = stream::unfold(state, |mut state| async {
            let frames = state.next().await?;
            Some((Ok::<_, Infallible>(frames), state))
        });
        let frames = stream::iter(prefill.map(Ok)).chain(frames);
        let mut response = Body::from_stream(frames).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// One streamed chunk of the answer.
    fn chunk(&self, collected: &Collected, index: usize, delta: &Delta, pieces: &[TurnPiece], first: bool) -> Value {
        let finish = finish_reason(delta.finish.and_then(|_| collected.choices[index].parts.end()));
        let text: String = pieces.iter().filter_map(text_of).collect();
        let reasoning: String = pieces.iter().filter_map(reasoning_of).collect();
        let choice = match &self.form {
            Endpoint::Chat { .. } => {
                let mut said = json!({});
                if first {
                    said["role"] = json!("assistant");
                }
                if first || !text.is_empty() {
                    said["content"] = json!(text);
                }
                if !reasoning.is_empty() {
                    said["reasoning_content"] = json!(reasoning);
                }
                let calls = call_deltas(pieces, collected.choices[index].parts.calls().count());
                if !calls.is_empty() {
                    said["tool_calls"] = Value::Array(calls);
                }
                json!({
                    "index": index, "delta": said, "logprobs": chat_logprobs(&delta.logprobs), "finish_reason": finish,
                })
            }
            Endpoint::Completion { echoes } => {
                let prompt = index / collected.choices_per_prompt;
                let echo = if first { echoes.get(prompt).map_or("", String::as_str) } else { "" };
                let echoed = if first { &collected.prompts[prompt][..] } else { &[] };
                let logprobs: Vec<&TokenLogprob> = echoed.iter().chain(&delta.logprobs).collect();
                json!({
                    "index": index, "text": format!("{echo}{text}"),
                    "logprobs": completion_logprobs(&logprobs, collected.choices[index].offset),
                    "finish_reason": finish,
                })
            }
        };
        self.piece(vec![choice])
    }

    fn piece(&self, choices: Vec<Value>) -> Value {
        let object = match self.form {
            Endpoint::Chat { .. } => "chat.completion.chunk",
            Endpoint::Completion { .. } => "text_completion",
        };
        let mut piece = self.envelope(object, choices);
        if self.stream_options.include_usage {
            piece["usage"] = Value::Null;
        }
        piece
    }
}

/// OpenAI's word for why an answer ended; null while it has not.
fn finish_reason(end: Option<TurnEnd>) -> Value {
    match end {
        None => Value::Null,
        Some(TurnEnd::Stop) => json!("stop"),
        Some(TurnEnd::Length) => json!("length"),
        Some(TurnEnd::Calls) => json!("tool_calls"),
    }
}

fn text_of(piece: &TurnPiece) -> Option<&str> {
    match piece {
        TurnPiece::Text(text) => Some(text),
        TurnPiece::Reasoning(_) | TurnPiece::Call(_) | TurnPiece::Arguments(_) => None,
    }
}

fn reasoning_of(piece: &TurnPiece) -> Option<&str> {
    match piece {
        TurnPiece::Reasoning(text) => Some(text),
        TurnPiece::Text(_) | TurnPiece::Call(_) | TurnPiece::Arguments(_) => None,
    }
}

fn function_call(call: &Call, arguments: &str) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

/// What is new of the calls, each with its index. `calls`: the number of calls with these pieces.
fn call_deltas(pieces: &[TurnPiece], calls: usize) -> Vec<Value> {
    let begun = pieces.iter().filter(|piece| matches!(piece, TurnPiece::Call(_))).count();
    let mut next = calls - begun;
    let mut deltas: Vec<Value> = Vec::new();
    for piece in pieces {
        match piece {
            TurnPiece::Reasoning(_) | TurnPiece::Text(_) => {}
            TurnPiece::Call(call) => {
                let mut delta = function_call(call, "");
                delta["index"] = json!(next);
                next += 1;
                deltas.push(delta);
            }
            TurnPiece::Arguments(text) => {
                let index = next.saturating_sub(1);
                let whole = match deltas.last() {
                    Some(last) if last["index"] == index => {
                        format!("{}{text}", last["function"]["arguments"].as_str().unwrap_or_default())
                    }
                    _ => {
                        deltas.push(json!({"index": index, "function": {}}));
                        text.clone()
                    }
                };
                if let Some(last) = deltas.last_mut() {
                    last["function"]["arguments"] = json!(whole);
                }
            }
        }
    }
    deltas
}

/// Text and log-probabilities received so far, by prompt and choice.
struct Collected {
    choices_per_prompt: usize,
    /// The prompts' own log-probabilities, if the request asked for them.
    prompts: Vec<Vec<TokenLogprob>>,
    choices: Vec<Choice>,
    summary: Summary,
}

#[derive(Clone, Default)]
struct Choice {
    parts: Parts,
    logprobs: Vec<TokenLogprob>,
    /// Characters of the tokens whose log-probabilities are collected.
    offset: usize,
}

impl Collected {
    /// `parts`: an answer without parts yet.
    fn new(prompts: usize, choices_per_prompt: usize, parts: Parts) -> Collected {
        let choice = Choice { parts, ..Choice::default() };
        Collected {
            choices_per_prompt,
            prompts: vec![Vec::new(); prompts],
            choices: vec![choice; prompts * choices_per_prompt],
            summary: Summary::default(),
        }
    }

    fn take(&mut self, prompt: usize, event: Event) {
        match event {
            Event::Prefill(_) => {}
            Event::Prompt(logprobs) => self.prompts[prompt] = logprobs,
            Event::Delta(delta) => {
                let choice = &mut self.choices[prompt * self.choices_per_prompt + delta.choice];
                drop(choice.parts.take(&delta));
                choice.logprobs.extend(delta.logprobs);
            }
            Event::Done(summary) => self.done(&summary),
        }
    }

    fn done(&mut self, summary: &Summary) {
        let sum = &mut self.summary;
        sum.prompt_tokens += summary.prompt_tokens;
        sum.cached_tokens += summary.cached_tokens;
        sum.answer_tokens += summary.answer_tokens;
        sum.drafted_tokens += summary.drafted_tokens;
        sum.accepted_tokens += summary.accepted_tokens;
        // Prompts run in parallel, so the longest wait counts.
        sum.queued = sum.queued.max(summary.queued);
        sum.prompt = sum.prompt.max(summary.prompt);
        sum.answer = sum.answer.max(summary.answer);
        sum.verdict = sum.verdict.max(summary.verdict);
        sum.failovers += summary.failovers;
        sum.receipts.extend_from_slice(&summary.receipts);
        sum.stages.clone_from(&summary.stages);
    }
}

struct Streaming {
    answer: HttpAnswer,
    events: Events,
    collected: Collected,
    begun: Vec<bool>,
    /// How far each prompt is.
    prefilled: Vec<Prefill>,
    /// The last chunk of a choice, kept back until it is known whether it ends the whole stream.
    held: Option<Value>,
    over: bool,
}

impl Streaming {
    /// The next bytes of the stream; `None` at its end.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let mut frames = String::new();
        while frames.is_empty() {
            match tokio::time::timeout(STREAM_SILENCE, self.events.next()).await {
                Err(_) => frames.push_str(": keep-alive\n\n"),
                Ok(Some((prompt, Ok(event)))) => self.event(prompt, event, &mut frames),
                Ok(Some((_, Err(error)))) => {
                    self.over = true;
                    frames.push_str(&frame(&ApiError::from(error).body()));
                }
                Ok(None) => {
                    self.over = true;
                    self.end(&mut frames);
                }
            }
        }
        Some(frames)
    }

    fn event(&mut self, prompt: usize, event: Event, frames: &mut String) {
        let delta = match event {
            Event::Delta(delta) => delta,
            Event::Prefill(prefill) => return self.prefill(prompt, prefill, frames),
            event => return self.collected.take(prompt, event),
        };
        let index = prompt * self.collected.choices_per_prompt + delta.choice;
        let first = !std::mem::replace(&mut self.begun[index], true);
        let pieces = self.collected.choices[index].parts.take(&delta);
        let quiet = pieces.is_empty() && delta.logprobs.is_empty() && delta.finish.is_none();
        if quiet && !first {
            return;
        }
        let chunk = self.answer.chunk(&self.collected, index, &delta, &pieces, first);
        let echoed = if first { self.collected.prompts[prompt].iter().map(width).sum() } else { 0 };
        self.collected.choices[index].offset += echoed + delta.logprobs.iter().map(width).sum::<usize>();
        if let Some(held) = self.held.take() {
            frames.push_str(&frame(&held));
        }
        if delta.finish.is_some() {
            self.held = Some(chunk);
        } else {
            frames.push_str(&frame(&chunk));
        }
    }

    /// Writes how many tokens of all prompts are computed, if that was asked for.
    fn prefill(&mut self, prompt: usize, prefill: Prefill, frames: &mut String) {
        self.prefilled[prompt] = prefill;
        if !self.answer.stream_options.include_prefill {
            return;
        }
        let sum = |of: fn(&Prefill) -> usize| self.prefilled.iter().map(of).sum::<usize>();
        let (computed, tokens) = (sum(|prefill| prefill.computed), sum(|prefill| prefill.total));
        let mut piece = self.answer.piece(Vec::new());
        piece["prefill"] = json!({"tokens": tokens, "computed": computed});
        frames.push_str(&frame(&piece));
    }

    fn end(&mut self, frames: &mut String) {
        let summary = self.collected.summary.clone();
        let mut last = self.held.take();
        if self.answer.stream_options.include_usage {
            frames.extend(last.take().map(|held| frame(&held)));
            let mut piece = self.answer.piece(Vec::new());
            piece["usage"] = usage(&summary);
            last = Some(piece);
        }
        if let Some(mut last) = last {
            self.answer.close(&mut last, &summary);
            frames.push_str(&frame(&last));
        }
        frames.push_str("data: [DONE]\n\n");
    }
}

fn frame(piece: &Value) -> String {
    format!("data: {piece}\n\n")
}

/// Answers of one fingerprint are the same bits.
pub(super) fn fingerprint() -> String {
    format!("pangea-numerics-{}", pangea_compute::model::NUMERICS)
}

/// The cost of a request as OpenAI writes it.
pub(super) fn usage(summary: &Summary) -> Value {
    json!({
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.answer_tokens,
        "total_tokens": summary.prompt_tokens + summary.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": summary.cached_tokens},
    })
}

fn chat_logprobs(logprobs: &[TokenLogprob]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let token =
        |token: &TokenText, logprob: f32| json!({"token": token.text(), "logprob": logprob, "bytes": token.bytes});
    let content: Vec<Value> = logprobs
        .iter()
        .map(|chosen| {
            let mut shown = token(&chosen.token, chosen.logprob.unwrap_or_default());
            shown["top_logprobs"] = chosen.top.iter().map(|(other, logprob)| token(other, *logprob)).collect();
            shown
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `offset`: characters before the first of these tokens.
fn completion_logprobs(logprobs: &[&TokenLogprob], offset: usize) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let offsets = logprobs.iter().scan(offset, |at, logprob| Some(std::mem::replace(at, *at + width(logprob))));
    let top = |logprob: &&TokenLogprob| match logprob.logprob {
        None => Value::Null,
        Some(_) => logprob.top.iter().map(|(token, logprob)| (token.text(), json!(logprob))).collect(),
    };
    json!({
        "tokens": logprobs.iter().map(|logprob| logprob.token.text()).collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|logprob| logprob.logprob).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets.collect::<Vec<_>>(),
    })
}

fn width(logprob: &TokenLogprob) -> usize {
    logprob.token.text().chars().count()
}
