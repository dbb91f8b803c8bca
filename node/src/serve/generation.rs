//! The driver of a request: opens sessions, receives their stages' messages, converts tokens to text, stores receipts
//! and counts. [`GenerationState`] makes every decision.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::NUMERICS;
use pangea_compute::sample::stop::StopMatcher;
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_control::Time;
use pangea_control::generation::{
    self, Action, ClaimsFault, Conclusion, GenerationState, NewTokens, Reply, ReportedTokens, Route as ChainRoute,
    Setup, SignedClaims,
};
use pangea_control::jobs::{Ending, JobKind, JobSpec, Owner};
use pangea_control::routing::Prefix;
use pangea_control::session::{EndReason, SessionId, TokenOut};
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::answer::{AnswerText, with_text};
use super::engine::{RequestRefused, Shared};
use super::metrics::{TokenTimes, count_answered};
use super::request::{Event, Prefill, Summary, TokenLogprob};
use super::request_log::RequestLog;
use super::signed_answer::{RequestFacts, Rules, SignedAnswer};
use super::spans::RequestSpans;
use crate::clock;
use crate::jobs::Ticket;
use crate::pipeline::SessionEvent;
use crate::pipeline::payload::Payload;
use crate::pipeline::wire::{Message, Open, StageAt};
use crate::trust::{Audited, Receipt};
use crate::wire::field::{printable, truncated};

/// Interval at which the request's state machine gets a tick while it waits for other nodes.
const TICK: Duration = Duration::from_millis(250);

/// Messages without tokens per session: acceptance, end, peers that are gone.
const OTHER_EVENTS: usize = 64;

/// Bytes of a peer's words that a person is shown: a sentence or two.
const SAID_BYTES_MAX: usize = 256;

/// A request after all checks, with its prompt as tokens.
pub(super) struct Prepared {
    pub(super) id: String,
    pub(super) prompt: Vec<u32>,
    pub(super) prefix: Prefix,
    pub(super) choices: usize,
    pub(super) max_new_tokens: usize,
    pub(super) sampling: Sampling,
    pub(super) format: AnswerFormat,
    /// Control tokens that the answer's text shows.
    pub(super) call_marks: Vec<u32>,
    pub(super) stops: StopMatcher,
    pub(super) prompt_logprobs: bool,
    pub(super) receipt: bool,
    pub(super) server: Option<PeerId>,
    pub(super) owner: Owner,
    pub(super) arrived: Time,
}

/// One request in progress, with one or several answers. Dropping it cancels them.
pub struct Generation {
    engine: Arc<Shared>,
    asked: Prepared,
    state: GenerationState,
    events: mpsc::Receiver<SessionEvent>,
    /// Sender for the events of opened sessions.
    sender: mpsc::Sender<SessionEvent>,
    routes: watch::Receiver<u64>,
    answers: Vec<AnswerText>,
    /// When the tokens of each answer came.
    times: Vec<TokenTimes>,
    signed: Vec<SignedAnswer>,
    /// The chain that each answer uses, kept alive while it is used.
    chains: Vec<Option<Arc<dyn Any + Send + Sync>>>,
    /// The chain of the route that was found last, until sessions are opened at it.
    found: Option<Arc<dyn Any + Send + Sync>>,
    /// Log-probabilities of the prompt received so far.
    prompt: Vec<TokenLogprob>,
    /// Receipts of the answers, by choice.
    receipts: Vec<Option<Receipt>>,
    /// Audits that the request waits for.
    audits: Vec<oneshot::Receiver<Result<Audited>>>,
    /// Events that the reader has not received yet.
    ready: VecDeque<Result<Event>>,
    refused: Option<RequestRefused>,
    log: RequestLog,
    spans: RequestSpans,
    /// The request's job.
    job: Ticket,
    /// Set when the job is cancelled from elsewhere.
    cancelled: CancellationToken,
    over: bool,
}

impl Generation {
    /// Opens a request's sessions and waits until they are accepted.
    ///
    /// # Errors
    /// [`RequestRefused`] as the first stage reports it.
    pub(super) async fn begin(engine: Arc<Shared>, asked: Prepared) -> std::result::Result<Generation, RequestRefused> {
        // Each token may arrive in a message of its own, and once more over a second route.
        let room = asked.max_new_tokens.saturating_add(asked.prompt.len()).saturating_mul(2);
        let room = room.saturating_mul(asked.choices).saturating_add(OTHER_EVENTS);
        let (sender, events) = mpsc::channel(room.min(tokio::sync::Semaphore::MAX_PERMITS));
        let auditor = engine.auditor.as_ref().filter(|_| asked.receipt);
        let setup = Setup {
            local: engine.pipeline.local(),
            prompt: asked.prompt.clone(),
            choices: asked.choices,
            max_new_tokens: asked.max_new_tokens,
            grammar: asked.format != AnswerFormat::Text,
            prompt_logprobs: asked.prompt_logprobs,
            patience: engine.prompt_pace().patience(asked.prompt.len()),
            audit: auditor.map(|auditor| auditor.policy()),
            one_server: asked.server.is_some(),
            arrived: asked.arrived,
        };
        let cancelled = CancellationToken::new();
        let cancel = cancelled.clone();
        let spec = JobSpec {
            kind: JobKind::Generation,
            subject: engine.facts.name.clone(),
            owner: asked.owner.clone(),
            deadline: None,
        };
        let job = engine.jobs.submit(spec, move |_| cancel.cancel())?;
        let spans = RequestSpans::new(&engine.facts.name, asked.prompt.len(), asked.max_new_tokens, asked.choices);
        let mut generation = Generation {
            state: GenerationState::new(setup),
            routes: engine.routes.changed(),
            answers: Vec::new(),
            times: Vec::new(),
            signed: Vec::new(),
            chains: vec![None; asked.choices],
            found: None,
            prompt: Vec::new(),
            receipts: vec![None; asked.choices],
            audits: Vec::new(),
            ready: VecDeque::new(),
            refused: None,
            log: RequestLog::default(),
            spans,
            job,
            cancelled,
            over: false,
            engine,
            asked,
            events,
            sender,
        };
        generation.begin_text();
        generation.handle(generation::Event::Start);
        while !generation.has_ended() && generation.state.may_be_refused(clock::now()) {
            generation.turn().await;
        }
        if let Some(refused) = generation.refused.take() {
            generation.over = true;
            generation.log.failed(&generation.engine.facts.name, 0, &refused.error);
            generation.spans.failed(&refused.error);
            generation.job.fail(&refused.error);
            return Err(refused);
        }
        if let Some(Err(error)) = generation.ready.iter().find(|event| event.is_err()) {
            let error = error.clone();
            generation.fail(&error);
            return Err(error.into());
        }
        generation.engine.metrics.requests.inc();
        Ok(generation)
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.asked.prompt.len()
    }

    /// Whether the outcome of the request is known.
    fn has_ended(&self) -> bool {
        self.state.is_over() || self.ready.iter().any(Result::is_err)
    }

    /// The next event; `None` after [`Event::Done`] or a failure.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        while !self.over {
            let held = self.state.is_held();
            let is_no_text = |event: &Result<Event>| matches!(event, Err(_) | Ok(Event::Prefill(_)));
            let given = if held { self.ready.iter().position(is_no_text) } else { Some(0) };
            if let Some(event) = given.and_then(|at| self.ready.remove(at)) {
                match &event {
                    Ok(Event::Done(summary)) => {
                        count_answered(&self.engine.metrics, summary);
                        self.log.done(&self.engine.facts.name, summary);
                        self.spans.done(summary);
                        self.job.end(Ending::Done { verdict: Some(summary.verdict) });
                        self.end();
                    }
                    Err(error) => self.fail(error),
                    Ok(_) => {}
                }
                return Some(event);
            }
            self.turn().await;
            if let Some(refused) = self.refused.take() {
                self.ready.push_back(Err(refused.error));
            }
        }
        None
    }

    /// Waits for the next input and processes it.
    async fn turn(&mut self) {
        let unrouted = self.state.is_unrouted();
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => self.cancel(),
            audited = next_audit(&mut self.audits), if !self.audits.is_empty() => self.audited(audited),
            // The channel never closes, because this value holds a sender.
            event = self.events.recv() => match event {
                Some(SessionEvent::Message { from, message, payload }) => self.message(from, message, &payload),
                Some(SessionEvent::PeerGone { peer, why }) => self.handle(generation::Event::PeerGone { peer, why }),
                None => {}
            },
            changed = self.routes.changed(), if unrouted => {
                if changed.is_ok() {
                    self.handle(generation::Event::RoutesChanged);
                }
            }
            () = tokio::time::sleep(TICK), if self.state.needs_ticks() => {
                let unplaceable = if unrouted { self.engine.routes.unplaceable() } else { None };
                self.handle(generation::Event::Tick { unplaceable });
            }
        }
    }

    fn message(&mut self, from: PeerId, message: Message, payload: &Payload) {
        self.spans.heard(&message);
        let stranger = (from != self.engine.pipeline.local()).then_some(&from);
        if let Some((session, reply)) = reply(stranger, message, payload) {
            self.handle(generation::Event::Reply { from, session, reply });
        }
    }

    /// Processes the end of an audit that the request waits for.
    fn audited(&mut self, audited: Result<Audited>) {
        let (verdict, wrong) = match audited {
            Ok(Audited { receipt, wrong }) => (Ok(receipt.verdict), wrong),
            Err(error) => (Err(error.message().to_owned()), Vec::new()),
        };
        self.handle(generation::Event::Audited { verdict, wrong });
    }

    /// Passes an event to the state machine and executes all resulting actions.
    fn handle(&mut self, event: generation::Event) {
        let mut actions = VecDeque::from(self.state.handle(event, clock::now()));
        while let Some(action) = actions.pop_front() {
            if let Some(event) = self.perform(action) {
                actions.extend(self.state.handle(event, clock::now()));
            }
        }
    }

    /// Executes one action; returns the resulting event, if it is immediate.
    fn perform(&mut self, action: Action) -> Option<generation::Event> {
        match action {
            Action::FindRoute { choices, exclusions } => {
                self.spans.routing();
                let (routes, prompt) = (&self.engine.routes, &self.asked.prefix);
                let route = match &self.asked.server {
                    Some(server) => routes.alone_at(server, &exclusions, prompt),
                    None => routes.best(&exclusions, prompt),
                };
                let Some(route) = route else {
                    routes.missed();
                    return Some(generation::Event::NoRoute);
                };
                self.found = route.kept;
                let (chain, stages) = (route.chain, route.stages);
                return Some(generation::Event::RouteFound { choices, id: SessionId(rand::random()), chain, stages });
            }
            Action::RequestLocal => self.engine.routes.request_local(),
            Action::Open { choices, id, route, from_prompt } => {
                self.chains[choices.clone()].fill(self.found.take());
                let opened = self.open(choices.clone(), id, route, from_prompt);
                return opened.err().map(|why| generation::Event::OpenFailed { choices, why });
            }
            Action::Forget { session } => {
                self.spans.over(session);
                self.engine.pipeline.remove_session(&session);
            }
            Action::Close { chain, session, first_stage, commit } => {
                // A first stage that is gone needs no message; its missing signature is noticed by the timeout.
                let close = Message::Close { chain, session, commit };
                let _ = self.engine.pipeline.send(first_stage, close, Payload::empty());
            }
            Action::NewTokens { choice, new } => return self.text(choice, new),
            Action::FailOver { choice, session, why } => {
                tracing::warn!(event = "session_failover", %session, why, "session failing over: {why}");
                self.engine.metrics.failovers.inc();
                self.spans.failing_over(session);
                self.chains[choice] = None;
                self.lost(choice, &why);
            }
            Action::CheckClaims { choice, segment, claims } => {
                let fault = self.check_claims(choice, segment, &claims);
                return Some(generation::Event::ClaimsChecked { choice, segment, fault });
            }
            Action::KeepReceipt { choice } => {
                self.keep_receipt(choice);
                let random = SysRng.try_next_u64().ok();
                let stages = self.state.segments(choice).iter().flat_map(|segment| &segment.stages);
                let auditor = self.engine.auditor.as_ref();
                let suspect = auditor.is_some_and(|auditor| stages.into_iter().any(|at| auditor.is_suspect(&at.peer)));
                return Some(generation::Event::ReceiptKept { choice, random, suspect });
            }
            Action::Audit { choice, awaited } => {
                if let (Some(auditor), Some(receipt)) = (&self.engine.auditor, &self.receipts[choice]) {
                    let suspect = receipt.segments.last().is_some_and(|last| last.ended.is_some());
                    let audit = auditor.audit(receipt.clone(), awaited, suspect, self.spans.audit(awaited));
                    if awaited {
                        self.audits.push(audit);
                    }
                }
            }
            Action::Suspect { peer, reason } => {
                if let Some(auditor) = &self.engine.auditor {
                    auditor.suspect(peer, reason);
                }
            }
            Action::Recompute => {
                tracing::warn!(event = "answer_recomputed", "an answer failed its audit and is recomputed");
                self.engine.metrics.failovers.inc();
                self.lost(0, "the answer failed its audit");
                self.audits.clear();
                self.ready.clear();
                self.begin_text();
            }
            Action::Refuse { error, retry_after } => {
                self.refused = Some(RequestRefused { error, retry_after, context_exceeded: false });
            }
            Action::Fail(error) => self.ready.push_back(Err(error)),
            Action::Done(conclusion) => {
                if conclusion.failovers == 0 {
                    self.engine.prompt_pace().observe(self.asked.prompt.len(), conclusion.prompt);
                }
                self.ready.push_back(Ok(Event::Done(self.summary(conclusion))));
            }
        }
        None
    }

    /// Resets every answer's text to its start.
    fn begin_text(&mut self) {
        let asked = &self.asked;
        let logprobs = asked.sampling.logprobs.is_some();
        let answer = |choice| AnswerText::new(choice, asked.stops.clone(), asked.call_marks.clone(), logprobs);
        self.answers = (0..asked.choices).map(answer).collect();
        self.times = vec![TokenTimes::default(); asked.choices];
        self.signed = (0..asked.choices).map(|_| SignedAnswer::default()).collect();
        self.receipts.fill(None);
        self.chains.fill(None);
        self.prompt.clear();
    }

    /// Opens sessions at a first stage; the error says why it cannot be reached.
    fn open(
        &mut self,
        choices: std::ops::Range<usize>,
        id: SessionId,
        route: ChainRoute,
        from_prompt: bool,
    ) -> std::result::Result<(), String> {
        let auditor = self.engine.auditor.as_ref();
        let profile = |at: &StageAt| auditor.map(|auditor| (at.peer, auditor.profile(&at.peer)));
        let profiles: Vec<_> = route.stages.iter().filter_map(profile).collect();
        for (index, choice) in choices.clone().enumerate() {
            self.engine.pipeline.add_session(id.choice(index as u16), &route.stages, self.sender.clone());
            self.signed[choice].computed_from(route.chain.model, &profiles);
        }
        // A probe leaves no trace.
        if self.asked.receipt {
            let (name, local) = (&self.engine.facts.name, self.engine.pipeline.local());
            self.log.began(id, &self.asked.id, name, &route.stages, local);
        }
        let scores = self.asked.prompt_logprobs && from_prompt && choices.start == 0;
        if scores {
            self.prompt.clear();
            self.signed[0].score_prompt();
        }
        self.job.routed(&route.stages);
        let trace = self.spans.opening(id, choices.len() as u16, &route.stages, self.engine.pipeline.local());
        let session = self.state.answer(choices.start);
        let first_stage = route.stages[0].peer;
        let open = Open {
            session: id,
            coordinator: self.engine.pipeline.local(),
            model: route.chain.model,
            epoch: route.chain.epoch,
            numerics: NUMERICS,
            stages: route.stages,
            choices: choices.len() as u16,
            sequence: None,
            prompt_len: session.prompt_len() as u32,
            max_new_tokens: u32::try_from(self.asked.max_new_tokens).unwrap_or(u32::MAX),
            sampling: self.asked.sampling.of_choice(choices.start as u16),
            format: self.asked.format.clone(),
            prompt_logprobs: scores,
            trace,
            tokens: session.tokens().to_vec(),
        };
        let sent = self.engine.pipeline.send(first_stage, Message::Open(Box::new(open)), Payload::empty());
        sent.map_err(|error| error.message().to_owned())
    }

    /// Tells whoever follows the job or its trace that an answer has lost its stages.
    fn lost(&mut self, choice: usize, why: &str) {
        let stages = self.state.segments(choice).last().map_or(&[][..], |segment| &segment.stages);
        self.job.lost(stages, why);
        self.spans.lost(stages, why);
    }

    /// Converts new tokens of an answer to text.
    fn text(&mut self, choice: usize, new: NewTokens) -> Option<generation::Event> {
        if choice == 0 && new.computed > 0 {
            self.prefilled(new.computed);
        }
        let text = &self.engine.text;
        if self.asked.prompt_logprobs && choice == 0 && !new.prompt.is_empty() {
            self.prompt.extend(new.prompt.iter().map(|out| with_text(text, out)));
            self.signed[choice].emit_prompt(&new.prompt);
        }
        if new.tokens.is_empty() && new.ended.is_none() {
            return None;
        }
        // A chain that is lost before the answer's first token has scored nothing: the next one scores the prompt.
        if choice == 0 && !self.prompt.is_empty() && self.prompt.len() == self.asked.prompt.len() {
            self.ready.push_back(Ok(Event::Prompt(std::mem::take(&mut self.prompt))));
        }
        self.times[choice].came(&self.engine.metrics, new.tokens.len(), clock::now());
        self.signed[choice].emit(&new.tokens);
        let counts = self.state.tokens();
        if counts.answer == new.tokens.len() {
            self.job.started();
        }
        let asked = (self.asked.max_new_tokens as u64).saturating_mul(self.asked.choices as u64);
        self.job.progress(counts.answer as u64, asked);
        // Only a token that ends answers is a reason to stop.
        let stops = |out: &TokenOut| text.tokenizer.is_end_of_generation(out.token);
        let wrong_end = new.ended == Some(EndReason::Stop) && !new.tokens.last().is_some_and(stops);
        let ended = new.ended.filter(|_| !wrong_end);
        match self.answers[choice].add_tokens(text, &new.tokens, ended) {
            Ok(delta) if wrong_end && delta.finish.is_none() => {
                self.ready.push_back(Ok(Event::Delta(delta)));
                Some(generation::Event::EndedWrongly { choice })
            }
            Ok(delta) => {
                let finished = delta.finish.is_some();
                self.ready.push_back(Ok(Event::Delta(delta)));
                finished.then_some(generation::Event::AnswerComplete { choice })
            }
            Err(error) => {
                self.ready.push_back(Err(error));
                None
            }
        }
    }

    /// Notes how many of the tokens that precede the next one are computed, for the answers of the request together.
    fn prefilled(&mut self, computed: usize) {
        let prefill = Prefill { computed, total: self.state.answer(0).tokens().len() };
        self.job.started();
        self.job.prompt(prefill.computed as u64, prefill.total as u64);
        // A reader that is slower needs only the latest.
        match self.ready.back_mut() {
            Some(Ok(Event::Prefill(last))) => *last = prefill,
            _ => self.ready.push_back(Ok(Event::Prefill(prefill))),
        }
    }

    fn rules(&self, choice: usize) -> Rules<'_> {
        Rules { sampling: self.asked.sampling.of_choice(choice as u16), format: &self.asked.format }
    }

    /// Checks and countersigns the stages' signed claims of an answer; returns what is wrong with them, if anything.
    fn check_claims(&mut self, choice: usize, segment: usize, claims: &SignedClaims) -> Option<ClaimsFault> {
        let segment = self.state.segments(choice).get(segment)?;
        let mut signed = std::mem::take(&mut self.signed[choice]);
        let keypair = self.engine.pipeline.keypair();
        let gathered = signed.check(self.state.answer(choice), segment, &self.rules(choice), claims, keypair);
        let session = segment.session;
        self.signed[choice] = signed;
        if let Some(auditor) = &self.engine.auditor {
            gathered.contradictions.iter().for_each(|[first, second]| auditor.contradicted(first, second));
        }
        let fault = gathered.fault?;
        let why = &fault.why;
        tracing::warn!(event = "commitment_refused", %session, why, "the stages' signed claims do not cover their answer: {why}");
        Some(fault)
    }

    /// Stores the receipt of an answer that other nodes helped to compute.
    fn keep_receipt(&mut self, choice: usize) {
        let model = &self.engine.facts;
        let file = model.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let facts = RequestFacts {
            request: &self.asked.id,
            coordinator: self.engine.pipeline.local(),
            model_name: &model.name,
            model_file: file,
        };
        let session = self.state.answer(choice);
        let receipt = self.signed[choice].receipt(session, self.state.segments(choice), &self.rules(choice), facts);
        if let (Some(auditor), Some(receipt)) = (&self.engine.auditor, &receipt) {
            auditor.keep(receipt.clone());
        }
        self.receipts[choice] = receipt;
    }

    fn summary(&self, conclusion: Conclusion) -> Summary {
        Summary {
            prompt_tokens: self.asked.prompt.len(),
            cached_tokens: conclusion.tokens.cached,
            answer_tokens: conclusion.tokens.answer,
            drafted_tokens: conclusion.tokens.drafted,
            accepted_tokens: conclusion.tokens.accepted,
            queued: conclusion.queued,
            prompt: conclusion.prompt,
            answer: conclusion.answer,
            stages: conclusion.stages,
            failovers: conclusion.failovers,
            verdict: conclusion.verdict,
            receipts: self.receipts.iter().flatten().map(|receipt| receipt.id.clone()).collect(),
        }
    }

    /// Processes a cancellation from elsewhere.
    fn cancel(&mut self) {
        self.ready.clear();
        let why = "the answer was cancelled by the node; it may be shutting down";
        self.ready.push_back(Err(Error::new(ErrorKind::Cancelled, why)));
    }

    /// Fails the request; counted here once, whatever found the failure.
    fn fail(&mut self, error: &Error) {
        match error.kind() {
            ErrorKind::Cancelled => self.engine.metrics.cancelled.inc(),
            _ => self.engine.metrics.failed.inc(),
        };
        self.log.failed(&self.engine.facts.name, self.state.tokens().answer, error);
        self.spans.failed(error);
        self.job.fail(error);
        self.end();
    }

    /// Ends the request and closes its open sessions.
    fn end(&mut self) {
        self.over = true;
        self.ready.clear();
        self.handle(generation::Event::Cancelled);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.over {
            self.engine.metrics.cancelled.inc();
            let gone = Error::new(ErrorKind::Cancelled, "nobody waits for it any more");
            self.log.failed(&self.engine.facts.name, self.state.tokens().answer, &gone);
            self.spans.failed(&gone);
            self.end();
        }
    }
}

/// Waits for the next audit that ends and removes it from the list.
async fn next_audit(audits: &mut Vec<oneshot::Receiver<Result<Audited>>>) -> Result<Audited> {
    let gone = |_| Err(Error::new(ErrorKind::Internal, "the auditor ended"));
    let Some(first) = audits.first_mut() else { return std::future::pending().await };
    let result = first.await.unwrap_or_else(gone);
    audits.remove(0);
    result
}

/// Converts a stage's message about a session to the state machine's type; `None` for other messages. `from`: the stage's node,
/// `None` for this one.
fn reply(from: Option<&PeerId>, message: Message, payload: &Payload) -> Option<(SessionId, Reply)> {
    match message {
        Message::Accepted { session } => Some((session, Reply::Accepted)),
        Message::Refused { session, kind, message, retry_after_ms } => {
            let retry_after = retry_after_ms.map(|millis| Duration::from_millis(u64::from(millis)));
            Some((session, Reply::Refused { kind, message: said_by(from, message), retry_after }))
        }
        Message::Failed { session, kind, message, .. } => {
            Some((session, Reply::Failed { kind, message: said_by(from, message) }))
        }
        Message::Commit { session, .. } => Some((session, Reply::Committed { claims: payload.as_bytes().to_vec() })),
        Message::Tokens(tokens) => {
            let reported = ReportedTokens {
                position: tokens.position,
                tokens: tokens.tokens,
                ended: tokens.ended,
                prompt: tokens.prompt,
                drafted: tokens.drafted,
                accepted: tokens.accepted,
                cached: tokens.cached,
                computed: tokens.computed,
            };
            Some((tokens.session, Reply::Tokens(reported)))
        }
        _ => None,
    }
}

/// A peer's words with their author, for people: in one line and short, because the author may be anyone. This node's own
/// words are unchanged.
fn said_by(peer: Option<&PeerId>, words: String) -> String {
    let Some(peer) = peer else { return words };
    let words = printable(truncated(&words, SAID_BYTES_MAX).to_owned());
    format!("node {peer} says: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_are_short_in_one_line_and_with_their_author() {
        let peer = PeerId::random();
        let said = said_by(Some(&peer), format!("\u{1b}[2Jfine\nINFO all is well{}", "x".repeat(5000)));
        assert!(said.starts_with(&format!("node {peer} says: [2JfineINFO all is wellxxx")), "{said}");
        assert!(said.len() < 400 && !said.contains(char::is_control), "{said}");
        assert_eq!(said_by(None, "a\nb".to_owned()), "a\nb");
    }
}
