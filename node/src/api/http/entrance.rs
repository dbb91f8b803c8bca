//! Requests to models that this node neither computes nor knows the text of: sent as a whole to a node that serves the model, over
//! `crate::tunnel`. This file carries out what `pangea_control::routing` decides: which node is asked, when another one is, whose
//! answer the client gets. Dropping a response cancels the request there.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::stream;
use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_control::Time;
use pangea_control::jobs::{Api, Ending, JobKind, JobSpec, Owner};
use pangea_control::routing::attempts::{Action, Event, GivenUp};
use pangea_control::routing::{Attempts, Prefix};
use pangea_control::session::StageAt;
use pangea_control::trust::Verdict;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::App;
use super::dialect::named_event;
use super::error::ApiError;
use super::fields::{Fields, whole};
use super::foreign_answer::{ForeignStream, OwnView};
use super::generation::client_of;
use super::key_holder::KeyHolder;
use super::limits::{READY_RETRY, STREAM_SILENCE};
use super::ollama::untagged;
use crate::clock;
use crate::jobs::Ticket;
use crate::observe::Observer;
use crate::serve::RemoteModel;
use crate::traces::{self, child, moment};
use crate::tunnel::asking::{Asking, Heard};
use crate::tunnel::limits::DOCUMENT_BYTES;
use crate::tunnel::{AnswerForm, Ask, AskRoute, Counted, Failure, Tunnel};

/// Interval at which the attempts of a request that nobody answers yet are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Bytes of a stream that are kept until its first token: the head of a conversation in any dialect.
const HELD_BYTES: usize = 1 << 20;

/// What is counted of requests that other nodes answer.
pub(super) struct EntranceMetrics {
    requests: Family<Outcome, Counter>,
    attempts: Family<Reason, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl EntranceMetrics {
    /// Registers the metrics with `observer`.
    pub(super) fn new(observer: &Observer) -> EntranceMetrics {
        EntranceMetrics {
            requests: observer.counters(
                "tunnelled_requests",
                "Requests that other nodes answered whole, by outcome",
                ["done", "failed", "cancelled"].map(|outcome| Outcome { outcome }),
            ),
            attempts: observer.counters(
                "tunnel_attempts",
                "Nodes that such requests were sent to, by reason",
                ["first", "retry", "hedge"].map(|reason| Reason { reason }),
            ),
        }
    }

    fn ended(&self, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }

    fn sent(&self, reason: &'static str) {
        self.attempts.get_or_create(&Reason { reason }).inc();
    }
}

/// Middleware in front of the routes that ask a model: passes a request on to its handler, or has another node answer it.
pub(super) async fn enter(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = AskRoute::of_path(request.uri().path()).filter(|_| request.method() == Method::POST);
    let holder = request.extensions().get::<KeyHolder>().cloned();
    let (Some(route), Some(holder), Some(tunnel), true) = (route, holder, app.tunnel.clone(), app.served.may_tunnel())
    else {
        return next.run(request).await;
    };
    let (parts, body) = request.into_parts();
    let body = match whole(body).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let asked = match Asked::of(&app, &tunnel, route, &holder, &body).await {
        Ok(Some(asked)) => asked,
        Ok(None) => return next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(error) => return error.into_response(),
    };
    match asked.answer().await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

/// A request that another node is to answer.
struct Asked {
    app: App,
    tunnel: Tunnel,
    model: RemoteModel,
    ask: Ask,
    body: Bytes,
    prefix: Prefix,
    holder: KeyHolder,
    log: TunnelLog,
}

impl Asked {
    /// The request with this body, if it is to be answered elsewhere; what is wrong with it is found by whoever answers it.
    async fn of(
        app: &App,
        tunnel: &Tunnel,
        route: AskRoute,
        holder: &KeyHolder,
        body: &Bytes,
    ) -> Result<Option<Asked>, ApiError> {
        let Ok(fields) = Fields::of_body(body).await else { return Ok(None) };
        // Samples of a vote are compared here, which needs the model's text.
        let votes = match fields.peek("strategy") {
            Some(strategy) => *strategy != json!("none"),
            None => app.federation.is_some(),
        };
        if route == AskRoute::ChatCompletions && votes {
            return Ok(None);
        }
        let named = fields.peek("model").and_then(Value::as_str);
        let named = if route.path().starts_with("/api/") { named.map(untagged) } else { named };
        let Ok(name) = app.model_name(named, holder) else { return Ok(None) };
        let Some(model) = app.served.remote(&name) else { return Ok(None) };
        let text: String = PROMPT_FIELDS.iter().filter_map(|field| fields.peek(field)).map(Value::to_string).collect();
        let user = fields.peek("user").and_then(Value::as_str).map(client_of);
        let ask = Ask {
            route,
            model: model.digest,
            body_bytes: u32::try_from(body.len()).map_err(|_| ApiError::new(ErrorKind::InvalidInput, "too large"))?,
            trace: None,
        };
        let log = TunnelLog::new(app, &model.name, route, user)?;
        Ok(Some(Asked {
            app: app.clone(),
            tunnel: tunnel.clone(),
            prefix: model.prefix(text.as_bytes()),
            model,
            ask,
            body: body.clone(),
            holder: holder.clone(),
            log,
        }))
    }

    /// Asks one node after the other, or two at once, until one answers.
    async fn answer(self) -> Result<Response, ApiError> {
        let name = self.model.name.clone();
        let mut race = Race {
            attempts: Attempts::new(self.model.patience(&self.prefix)),
            at_work: BTreeMap::new(),
            failures: BTreeMap::new(),
            followed: None,
            ended: None,
            asked: self,
        };
        race.handle(Event::Begin);
        loop {
            if let Some(given_up) = race.ended {
                let error = race.error(given_up, &name);
                race.asked.log.failed(&error);
                return Err(error);
            }
            if let Some((server, how)) = race.ready() {
                match how {
                    Ready::Document => match race.document(server).await {
                        Some(response) => return Ok(response),
                        None => continue,
                    },
                    Ready::Stream(form) => return Ok(race.stream(server, form)),
                }
            }
            tokio::select! {
                (server, heard) = next_heard(&mut race.at_work) => race.heard(server, heard),
                () = race.asked.log.cancelled.cancelled() => {
                    let error = ApiError::new(ErrorKind::Cancelled, CANCELLED);
                    race.asked.log.failed(&error);
                    return Err(error);
                }
                () = tokio::time::sleep(TICK) => race.tick(),
            }
        }
    }
}

/// What a client reads when its job was cancelled.
const CANCELLED: &str = "the answer was cancelled by the node; it may be shutting down";

/// The fields that hold a prompt in some dialect, in an order in which one conversation's next turn begins like the turn before.
const PROMPT_FIELDS: [&str; 6] = ["tools", "system", "instructions", "messages", "prompt", "input"];

/// A request at one node.
struct Attempt {
    asking: Asking,
    /// Counts at the node until dropped.
    _place: Arc<dyn Any + Send + Sync>,
    since: Time,
    form: Option<AnswerForm>,
    /// What the client has not received yet.
    held: Vec<u8>,
    counted: Counted,
    complete: bool,
    /// From the request to its end at this node.
    span: Span,
}

/// The nodes that a request is at.
struct Race {
    asked: Asked,
    attempts: Attempts,
    at_work: BTreeMap<PeerId, Attempt>,
    failures: BTreeMap<PeerId, Failure>,
    followed: Option<PeerId>,
    ended: Option<GivenUp>,
}

/// What can be given to the client.
enum Ready {
    Document,
    Stream(AnswerForm),
}

impl Race {
    fn handle(&mut self, event: Event) {
        let mut actions = VecDeque::from(self.attempts.handle(event, clock::now()));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::FindServer => {
                    let found = self.send();
                    actions.extend(self.attempts.handle(found, clock::now()));
                }
                Action::Cancel(server) => drop(self.at_work.remove(&server)),
                Action::Follow(server) => self.followed = Some(server),
                Action::GiveUp(given_up) => self.ended = Some(given_up),
            }
        }
    }

    /// Sends the request to the best node that was not tried.
    fn send(&mut self) -> Event {
        let Asked { app, tunnel, model, ask, body, prefix, log, .. } = &mut self.asked;
        let tried = self.attempts.tried();
        let may_take = |peer: &PeerId| !tried.contains(peer) && tunnel.may_ask(peer);
        let Some((server, place)) = model.send(prefix, may_take) else { return Event::NoServer };
        let reason = match (tried, self.at_work.is_empty()) {
            ([], _) => "first",
            (_, true) => "retry",
            (_, false) => "hedge",
        };
        app.tunnelled.sent(reason);
        let is_retry = !tried.is_empty() && self.at_work.is_empty();
        log.began(StageAt { peer: server, layers: 0..model.layers() }, is_retry);
        let span = child!(&log.span, "tunnel", otel.kind = "client", server.address = %server, pangea.reason = reason);
        let asking = tunnel.ask(server, Ask { trace: traces::context(&span), ..*ask }, body.clone());
        let attempt = Attempt {
            asking,
            _place: place,
            since: clock::now(),
            form: None,
            held: Vec::new(),
            counted: Counted::default(),
            complete: false,
            span,
        };
        self.at_work.insert(server, attempt);
        Event::Sent(server)
    }

    fn heard(&mut self, server: PeerId, heard: Heard) {
        let Some(attempt) = self.at_work.get_mut(&server) else { return };
        match heard {
            Heard::Working(counted) => attempt.counted = counted,
            Heard::Head(form) => attempt.form = Some(form),
            Heard::Chunk(piece, counted) => {
                attempt.counted = counted;
                let most = if attempt.form == Some(AnswerForm::Document) { DOCUMENT_BYTES } else { HELD_BYTES };
                if attempt.held.len() + piece.len() > most {
                    return self.failed(server, format!("it is larger than {} MiB", most >> 20));
                }
                attempt.held.extend_from_slice(&piece);
            }
            Heard::End(counted) => {
                attempt.counted = counted;
                attempt.complete = true;
            }
            Heard::Failed(failure) => return self.fail(server, failure),
        }
        if attempt.counted.answer_tokens > 0 || attempt.complete {
            self.begins(server);
        }
    }

    /// A node has begun to answer.
    fn begins(&mut self, server: PeerId) {
        if self.followed.is_none()
            && let Some(attempt) = self.at_work.get(&server)
        {
            self.asked.model.began(&self.asked.prefix, clock::now().since(attempt.since));
            moment!(&attempt.span, "answer begins");
        }
        self.handle(Event::Answers(server));
    }

    fn tick(&mut self) {
        self.handle(Event::Tick);
        // A client that waits for a stream hears of it, even if there is no token yet.
        let waits = |attempt: &Attempt| {
            let streams = attempt.form.is_some_and(|form| form != AnswerForm::Document);
            streams && clock::now().since(attempt.since) >= STREAM_SILENCE
        };
        if let Some(server) = self.at_work.iter().find(|(_, attempt)| waits(attempt)).map(|(server, _)| *server) {
            self.handle(Event::Answers(server));
        }
    }

    fn failed(&mut self, server: PeerId, why: String) {
        let message = format!("the answer of node {server} is no answer: {why}");
        self.fail(server, Failure::new(ErrorKind::Unavailable, message));
    }

    fn fail(&mut self, server: PeerId, failure: Failure) {
        tracing::info!(event = "tunnel_failed", %server, why = failure.message, "a node did not answer a request: {}", failure.message);
        if let Some(failed) = self.at_work.remove(&server) {
            traces::failed(&failed.span, failure.kind);
        }
        if self.followed == Some(server) {
            self.followed = None;
        }
        let (kind, retry_after) = (failure.kind, failure.retry_after);
        self.failures.insert(server, failure);
        self.handle(Event::Failed { server, kind, retry_after });
    }

    /// The node whose answer can be given to the client now.
    fn ready(&self) -> Option<(PeerId, Ready)> {
        let server = self.followed?;
        let attempt = self.at_work.get(&server)?;
        match attempt.form? {
            AnswerForm::Document => attempt.complete.then_some((server, Ready::Document)),
            form => Some((server, Ready::Stream(form))),
        }
    }

    fn own_view(&self, server: PeerId) -> OwnView {
        let failovers = self.attempts.tried().iter().filter(|tried| **tried != server).count();
        OwnView { peer: server.to_string(), layers: self.asked.model.layers(), failovers }
    }

    /// The response with a whole answer; `None` if it is none, so that another node is asked.
    async fn document(&mut self, server: PeerId) -> Option<Response> {
        let attempt = self.at_work.get_mut(&server)?;
        let (bytes, counted) = (std::mem::take(&mut attempt.held), attempt.counted);
        match self.own_view(server).document(bytes, completes(self.asked.ask.route)).await {
            Ok(document) => {
                self.handle(Event::Given);
                self.asked.log.counted(&self.asked.holder, counted);
                self.asked.log.done(counted);
                Some(of_form(AnswerForm::Document, Body::from(document)))
            }
            Err(why) => {
                self.failed(server, why);
                None
            }
        }
    }

    /// The response with a streamed answer, from what has arrived of it.
    fn stream(mut self, server: PeerId, form: AnswerForm) -> Response {
        self.handle(Event::Given);
        let lines = ForeignStream::new(self.own_view(server), form);
        let attempt = self.at_work.remove(&server);
        let Asked { ask, holder, log, .. } = self.asked;
        let stream = Forwarded { attempt, lines, form, route: ask.route, server, holder, log };
        let frames = stream::unfold(stream, |mut stream| async {
            let frames = stream.next().await?;
            Some((Ok::<_, Infallible>(frames), stream))
        });
        of_form(form, Body::from_stream(frames))
    }

    fn error(&mut self, given_up: GivenUp, model: &str) -> ApiError {
        match given_up {
            GivenUp::AsSaid(server) => match self.failures.remove(&server) {
                Some(failure) => failure.into(),
                None => ApiError::new(ErrorKind::Unavailable, format!("node {server} does not answer")),
            },
            GivenUp::Full { retry_after } => {
                let message = format!("every node that serves the model {model} is full; try again later");
                let error = ApiError::new(ErrorKind::Overloaded, message);
                match retry_after {
                    Some(after) => error.retry_after(after),
                    None => error,
                }
            }
            GivenUp::NoServer => {
                let message = format!("no node that serves the model {model} can be reached now; try again later");
                ApiError::new(ErrorKind::Unavailable, message).retry_after(READY_RETRY)
            }
        }
    }
}

/// The next part that one of the nodes says; never ends without nodes.
async fn next_heard(at_work: &mut BTreeMap<PeerId, Attempt>) -> (PeerId, Heard) {
    std::future::poll_fn(|context| {
        for (server, attempt) in at_work.iter_mut().filter(|(_, attempt)| !attempt.complete) {
            if let Poll::Ready(heard) = attempt.asking.poll_next(context) {
                return Poll::Ready((*server, heard));
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether answers of a route have the extra object.
fn completes(route: AskRoute) -> bool {
    !matches!(route, AskRoute::Embeddings | AskRoute::CountTokens | AskRoute::OllamaEmbed | AskRoute::OllamaEmbeddings)
}

fn of_form(form: AnswerForm, body: Body) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    if form != AnswerForm::Document {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

/// A streamed answer on its way to the client.
struct Forwarded {
    /// `None` once the stream has ended.
    attempt: Option<Attempt>,
    lines: ForeignStream,
    form: AnswerForm,
    route: AskRoute,
    server: PeerId,
    holder: KeyHolder,
    log: TunnelLog,
}

impl Forwarded {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let attempt = self.attempt.as_mut()?;
            let held = std::mem::take(&mut attempt.held);
            let read = if held.is_empty() {
                let heard = if attempt.complete {
                    Heard::End(attempt.counted)
                } else {
                    tokio::select! {
                        biased;
                        () = self.log.cancelled.cancelled() => Heard::Failed(Failure::new(ErrorKind::Cancelled, CANCELLED)),
                        heard = attempt.asking.next() => heard,
                    }
                };
                match heard {
                    Heard::Working(counted) => {
                        self.log.counted(&self.holder, counted);
                        continue;
                    }
                    Heard::Chunk(piece, counted) => {
                        self.log.counted(&self.holder, counted);
                        self.lines.read(&piece)
                    }
                    Heard::End(counted) => match self.lines.end() {
                        Ok(()) => {
                            self.log.counted(&self.holder, counted);
                            self.log.done(counted);
                            self.attempt = None;
                            return None;
                        }
                        Err(why) => Err(why),
                    },
                    Heard::Failed(failure) => return Some(self.fail(failure)),
                    Heard::Head(_) => Err("it begins twice".to_owned()),
                }
            } else {
                self.log.counted(&self.holder, attempt.counted);
                self.lines.read(&held)
            };
            match read {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some(bytes.into()),
                Err(why) => {
                    let message = format!("the answer of node {} failed: {why}", self.server);
                    return Some(self.fail(Failure::new(ErrorKind::Unavailable, message)));
                }
            }
        }
    }

    /// Ends the stream as its dialect does when an answer fails.
    fn fail(&mut self, failure: Failure) -> Bytes {
        self.attempt = None;
        let error = ApiError::from(failure);
        self.log.failed(&error);
        let frame = match (self.form, self.route) {
            (AnswerForm::Lines | AnswerForm::Document, _) => format!("{}\n", error.ollama_body()),
            (_, AskRoute::Messages) => named_event("error", &error.anthropic_body()),
            (_, AskRoute::Responses) => {
                let (code, message) = (error.responses_code(), error.message());
                let number = self.lines.next_number();
                let event = json!({
                    "type": "error", "code": code, "message": message, "param": null, "sequence_number": number,
                });
                named_event("error", &event)
            }
            _ => format!("data: {}\n\n", error.body()),
        };
        frame.into()
    }
}

/// The job and the log lines of a request, and what it costs. Dropping it without an end means that the client is gone.
struct TunnelLog {
    app: App,
    model: String,
    /// Number of the request in this node's log.
    number: u32,
    job: Option<Ticket>,
    cancelled: CancellationToken,
    /// Where the request was sent to last.
    sent_to: Option<StageAt>,
    counted: Counted,
    first_token: Option<Time>,
    over: bool,
    span: Span,
}

impl TunnelLog {
    fn new(app: &App, model: &str, route: AskRoute, client: Option<String>) -> Result<TunnelLog, ApiError> {
        let cancelled = CancellationToken::new();
        let cancel = cancelled.clone();
        let spec = JobSpec {
            kind: JobKind::Generation,
            subject: model.to_owned(),
            owner: Owner { api: Api::Http, client },
            deadline: None,
        };
        let span = child!(
            &Span::current(),
            "generation",
            gen_ai.operation.name = "generate_content",
            gen_ai.provider.name = "pangea",
            gen_ai.request.model = model,
            http.route = route.path()
        );
        let submit = || app.jobs.submit(spec, move |_| cancel.cancel());
        Ok(TunnelLog {
            app: app.clone(),
            model: model.to_owned(),
            number: rand::random(),
            job: completes(route).then(submit).transpose()?,
            cancelled,
            sent_to: None,
            counted: Counted::default(),
            first_token: None,
            over: false,
            span,
        })
    }

    /// `is_retry`: no other node is at the request any more.
    fn began(&mut self, stage: StageAt, is_retry: bool) {
        let (number, model, server) = (self.number, &self.model, stage.peer);
        let before = self.sent_to.replace(stage.clone());
        if let Some(job) = &self.job {
            if let Some(before) = before.as_ref().filter(|_| is_retry) {
                job.lost(std::slice::from_ref(before), "the node did not answer the request");
            }
            job.routed(&[stage]);
        }
        let how = if before.is_some() { "goes on" } else { "started" };
        tracing::info!(
            event = "request_started",
            request = format!("{number:08x}"),
            model,
            %server,
            "Request {number:08x} {how}: {model}, whole on node {server}"
        );
    }

    /// Notes what was computed so far, at the holder's cost.
    fn counted(&mut self, holder: &KeyHolder, counted: Counted) {
        let more = |now: u32, before: u32| now.saturating_sub(before) as usize;
        holder.spend(more(counted.prompt_tokens, self.counted.prompt_tokens));
        holder.spend(more(counted.answer_tokens, self.counted.answer_tokens));
        if counted.answer_tokens > 0 && self.first_token.is_none() {
            self.first_token = Some(clock::now());
            if let Some(job) = &self.job {
                job.started();
            }
        }
        self.counted = counted;
        if let Some(job) = &self.job {
            job.progress(counted.answer_tokens.into(), 0);
        }
    }

    fn done(&mut self, counted: Counted) {
        self.over = true;
        self.app.tunnelled.ended("done");
        traces::set(&self.span, "gen_ai.usage.input_tokens", i64::from(counted.prompt_tokens));
        traces::set(&self.span, "gen_ai.usage.output_tokens", i64::from(counted.answer_tokens));
        traces::set(&self.span, "pangea.verdict", Verdict::Unchecked.name());
        if let Some(job) = &self.job {
            job.end(Ending::Done { verdict: Some(Verdict::Unchecked) });
        }
        let since = self.first_token.map_or(Duration::ZERO, |first| clock::now().since(first));
        let (number, model, tokens) = (self.number, &self.model, counted.answer_tokens);
        let tokens_per_s =
            if since.is_zero() { 0.0 } else { f64::from(tokens.saturating_sub(1)) / since.as_secs_f64() };
        tracing::info!(
            event = "request_ended",
            request = format!("{number:08x}"),
            model,
            tokens,
            tokens_per_s,
            verdict = Verdict::Unchecked.name(),
            "Request {number:08x} ended: {model}, {tokens} tokens, {tokens_per_s:.1} tokens/s, {}",
            Verdict::Unchecked.name()
        );
    }

    fn failed(&mut self, error: &ApiError) {
        let error = error.clone().into_error();
        self.fail(if error.kind() == ErrorKind::Cancelled { "cancelled" } else { "failed" }, &error);
    }

    fn fail(&mut self, outcome: &'static str, error: &pangea_client::Error) {
        self.over = true;
        self.app.tunnelled.ended(outcome);
        traces::failed(&self.span, error.kind());
        if let Some(job) = &self.job {
            job.fail(error);
        }
        let (number, model, tokens) = (self.number, &self.model, self.counted.answer_tokens);
        tracing::info!(
            event = "request_ended",
            request = format!("{number:08x}"),
            model,
            tokens,
            %error,
            "Request {number:08x} {outcome} after {tokens} tokens of {model}: {error}"
        );
    }
}

impl Drop for TunnelLog {
    fn drop(&mut self) {
        if !self.over {
            let gone = pangea_client::Error::new(ErrorKind::Cancelled, "nobody waits for it any more");
            self.fail("cancelled", &gone);
        }
    }
}
