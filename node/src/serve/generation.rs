//! A request under way: it opens its sessions, follows what their stages say, opens them anew where a stage is lost, and
//! tells its reader. What a message means is the session's to say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, token_leaves};
use pangea_compute::commit::{Leaf, merkle_root};
use pangea_compute::model::NUMERICS;
use pangea_compute::sample::stop::StopMatcher;
use pangea_compute::sample::{Choice, Sampling};
use tokio::sync::{mpsc, oneshot, watch};

use super::answer::{Answer, with_text};
use super::engine::{Refused, Shared};
use super::request::{Event, Summary, TokenLogprob};
use super::route::{Route, Without};
use super::session::{Outcome, Said, Session, State};
use crate::pipeline::SessionEvent;
use crate::pipeline::payload::Payload;
use crate::pipeline::wire::{Message, Open, SessionFormat, SessionId, StageAt, TokenOut};
use crate::trust::{
    Auditor, CommitChain, Expected, Receipt, ReceiptForm, ReceiptModel, ReceiptStage, Segment, Verdict, receipt,
    terms_digest,
};

/// How often sessions at other nodes are looked after.
const TICK: Duration = Duration::from_millis(250);

/// A request whose prompt is tokens and about which everything has been checked.
pub(super) struct Prepared {
    pub(super) id: String,
    pub(super) prompt: Vec<u32>,
    pub(super) choices: usize,
    pub(super) most: usize,
    pub(super) sampling: Sampling,
    pub(super) format: SessionFormat,
    pub(super) stops: StopMatcher,
    pub(super) prompt_logprobs: bool,
    pub(super) receipt: bool,
    pub(super) arrived: Instant,
}

/// An answer, or several, under way. Dropping it cancels them.
pub struct Generation {
    engine: Arc<Shared>,
    asked: Prepared,
    events: mpsc::Receiver<SessionEvent>,
    /// For sessions that are opened.
    sender: mpsc::Sender<SessionEvent>,
    routes: watch::Receiver<u64>,
    sessions: Vec<Session>,
    answers: Vec<Answer>,
    /// Where each session is; kept so that a chain lasts as long as it is used.
    used: Vec<Option<Route>>,
    prompt: Vec<TokenLogprob>,
    summary: Summary,
    started: Option<Instant>,
    first_token: Option<Instant>,
    ready: VecDeque<Result<Event>>,
    /// Of every session, who computed what of it.
    segments: Vec<Vec<Segment>>,
    /// Whether nothing is told before it has been audited.
    held: bool,
    /// The tokens of every session as they came, for the root that its last stage signs.
    given: Vec<Given>,
    /// Verdicts of audits that were waited for.
    audited: Vec<Verdict>,
    /// Audits that are waited for.
    audits: Vec<oneshot::Receiver<Result<Receipt>>>,
    over: bool,
}

/// Messages beside those with tokens, for every session: how it was taken, how it ended, peers that are gone.
const OTHER_EVENTS: usize = 64;

/// A model that is to be split is placed within this, or this node takes it alone.
const PLACED_WITHIN: Duration = Duration::from_secs(15);

/// What other nodes have a part in is not called begun before its first word, or this: until then it may be refused, and its
/// reader told when to come again.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// An answer that fails its audit so often is nobody's to give.
const MAX_RECOMPUTED: usize = 8;

impl Generation {
    /// Opens a request's sessions and waits until they are taken in.
    ///
    /// # Errors
    /// [`Refused`]: as the first stage says.
    pub(super) async fn begin(engine: Arc<Shared>, asked: Prepared) -> std::result::Result<Generation, Refused> {
        // Every token may come in a message of its own, and once more from a second route.
        let room = asked.most.saturating_add(asked.prompt.len()).saturating_mul(2).saturating_mul(asked.choices);
        let (sender, events) = mpsc::channel((room + OTHER_EVENTS).min(tokio::sync::Semaphore::MAX_PERMITS));
        let mut generation = Generation {
            routes: engine.routes.changed(),
            sessions: (0..asked.choices)
                .map(|choice| Session::new(choice, asked.prompt.clone(), asked.arrived.elapsed()))
                .collect(),
            answers: (0..asked.choices)
                .map(|choice| Answer::new(choice, asked.stops.clone(), asked.sampling.logprobs.is_some()))
                .collect(),
            used: vec![None; asked.choices],
            prompt: Vec::new(),
            summary: Summary { prompt_tokens: asked.prompt.len(), ..Summary::default() },
            started: None,
            first_token: None,
            ready: VecDeque::new(),
            segments: vec![Vec::new(); asked.choices],
            held: false,
            given: (0..asked.choices).map(|_| Given::default()).collect(),
            audited: Vec::new(),
            audits: Vec::new(),
            over: false,
            engine,
            asked,
            events,
            sender,
        };
        generation.route();
        while generation.may_be_refused() {
            if let Some(refused) = generation.turn().await {
                generation.over = true;
                return Err(refused);
            }
            if let Some(Err(error)) = generation.ready.iter().find(|event| event.is_err()) {
                let error = error.clone();
                generation.over = true;
                return Err(error.into());
            }
        }
        generation.engine.metrics.requests.inc();
        Ok(generation)
    }

    /// Whether it is not known yet that this will be answered: not all of it is taken in, or other nodes have a part in it and
    /// one of them may still find that it has no memory for it.
    fn may_be_refused(&self) -> bool {
        let taken =
            |session: &Session| matches!(session.state, State::Running { .. } | State::Signing { .. } | State::Over);
        let local = self.engine.pipeline.local();
        let alone = self.used.iter().flatten().all(|route| route.is_local(local));
        let awaited =
            !alone && self.first_token.is_none() && self.started.is_some_and(|started| started.elapsed() < FIRST_WORD);
        awaited || !self.sessions.iter().all(taken)
    }

    /// What comes next; `None` after [`Event::Done`] or a failure.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        while !self.over || !self.ready.is_empty() {
            let told = if self.held { self.ready.iter().position(Result::is_err) } else { Some(0) };
            if let Some(event) = told.and_then(|at| self.ready.remove(at)) {
                if matches!(event, Err(_) | Ok(Event::Done(_))) {
                    self.over = true;
                    self.ready.clear();
                    self.close_all();
                }
                return Some(event);
            }
            if let Some(refused) = self.turn().await {
                self.ready.push_back(Err(refused.error));
            }
        }
        None
    }

    /// Waits for something to happen and does what follows.
    async fn turn(&mut self) -> Option<Refused> {
        let local = self.engine.pipeline.local();
        let watched = self.sessions.iter().zip(&self.used).any(|(session, route)| {
            session.state != State::Over && route.as_ref().is_none_or(|route| !route.is_local(local))
        });
        let routeless = self.sessions.iter().any(|session| session.state == State::Routeless);
        tokio::select! {
            biased;
            audited = next_audit(&mut self.audits), if !self.audits.is_empty() => {
                self.audited(audited);
                None
            }
            event = self.events.recv() => match event? {
                SessionEvent::Message { from, message, payload } => self.message(from, message, &payload),
                SessionEvent::PeerGone { peer, why } => {
                    for at in 0..self.sessions.len() {
                        let outcome = self.sessions[at].peer_gone(peer, &why, self.asked.arrived.elapsed());
                        self.follow(at, outcome);
                    }
                    self.route();
                    None
                }
            },
            changed = self.routes.changed(), if routeless => {
                if changed.is_ok() {
                    self.route();
                }
                None
            }
            () = tokio::time::sleep(TICK), if watched => {
                let hopeless = if routeless { self.engine.routes.hopeless() } else { None };
                for at in 0..self.sessions.len() {
                    self.sessions[at].hopeless(hopeless.clone(), self.asked.arrived.elapsed());
                    let outcome = self.sessions[at].tick(local, self.asked.arrived.elapsed());
                    self.follow(at, outcome);
                }
                self.route();
                None
            }
        }
    }

    fn message(&mut self, from: PeerId, message: Message, payload: &Payload) -> Option<Refused> {
        let session = session_of(&message)?;
        let (now, local) = (self.asked.arrived.elapsed(), self.engine.pipeline.local());
        // The first stage takes all answers of a request in, or none.
        let together = matches!(message, Message::Accepted { .. } | Message::Refused { .. });
        let at = self.sessions.iter().position(|known| known.id() == Some(session))?;
        let mut refused = None;
        if together && at == 0 && self.sessions[0].failovers == 0 {
            for at in 0..self.sessions.len() {
                let outcome = self.sessions[at].handle(from, message.clone(), local, now);
                refused = self.follow(at, outcome).or(refused);
            }
        } else {
            if matches!(message, Message::Commit { .. }) {
                // The last stage's word; the same message of an earlier one is for a stage on this node.
                let last = self.used[at].as_ref().and_then(|route| route.stages.last());
                if last.is_none_or(|last| last.peer != from)
                    || !matches!(self.sessions[at].state, State::Signing { .. })
                {
                    return None;
                }
                self.take_claims(at, session, payload);
            }
            let outcome = self.sessions[at].handle(from, message, local, now);
            refused = self.follow(at, outcome);
        }
        self.route();
        refused
    }

    /// What the stages of a session signed, checked and countersigned.
    fn take_claims(&mut self, at: usize, session: SessionId, payload: &Payload) {
        let tokens = &self.sessions[at].tokens;
        let Some(segment) = self.segments[at].last_mut() else { return };
        let (Some(stages), Ok(mut chain)) = (segment.expected_stages(), CommitChain::decode(payload.as_bytes())) else {
            segment.ended = Some("what its stages signed cannot be read".to_owned());
            return;
        };
        let positions = tokens.len() - 1;
        let sampling = self.asked.sampling.of_choice(self.sessions[at].choice as u16);
        let form = receipt_form(&self.asked.format);
        let chosen_from = segment.chosen_from as usize;
        let expected = Expected {
            session: session.0,
            epoch: segment.epoch,
            model: self.used[at].as_ref().map_or(Digest::from_bytes([0; 32]), |route| route.chain.model),
            numerics: NUMERICS,
            stages: &stages,
            positions: positions as u64,
            chosen_from: segment.chosen_from,
            sampling: terms_digest(self.sessions[at].prompt_len as u64, &sampling, &form),
            input: merkle_root(&token_leaves(&tokens[..positions])),
            output: merkle_root(&self.given[at].leaves(positions, chosen_from)),
        };
        if let Err(fault) = chain.close(&expected, self.engine.pipeline.keypair()) {
            tracing::warn!(event = "commitment_refused", %session, %fault, "What was signed for an answer does not fit it: {fault}");
            segment.ended = Some(fault.message().to_owned());
            return;
        }
        segment.claims = chain.links;
    }

    fn follow(&mut self, at: usize, outcome: Outcome) -> Option<Refused> {
        match outcome {
            Outcome::Nothing | Outcome::Accepted => {}
            Outcome::Signed { signed } => {
                if let Some(id) = self.segments[at].last().map(|segment| SessionId(segment.session)) {
                    self.engine.pipeline.forget(&id);
                }
                if !signed && let Some(segment) = self.segments[at].last_mut() {
                    segment.ended = Some("its stages did not sign".to_owned());
                }
                self.conclude();
            }
            Outcome::Refused { error, retry_after } => {
                self.forget(at);
                self.sessions[at].over();
                return Some(Refused { error, retry_after, context_exceeded: false });
            }
            Outcome::Said(said) => self.said(at, said),
            Outcome::Lost { closed, why } => {
                tracing::warn!(event = "session_moves", session = %closed, why, "An answer goes on elsewhere: {why}");
                self.summary.failovers += 1;
                self.engine.metrics.failovers.inc();
                if let Some(segment) = self.segments[at].last_mut() {
                    segment.ended = Some(why);
                }
                self.engine.pipeline.forget(&closed);
                if let Some(route) = self.used[at].take() {
                    let close = Message::Close { session: closed, commit: None };
                    // A first stage that is gone needs no word.
                    let _ = self.engine.pipeline.send(route.stages[0].peer, close, Payload::empty());
                }
            }
            Outcome::Failed(error) => {
                self.engine.metrics.failed.inc();
                self.ready.push_back(Err(error));
            }
        }
        None
    }

    /// Finds routes for the sessions that have none, and opens them there.
    fn route(&mut self) {
        // At first all of a request's answers go together: they share its prompt.
        let fresh = self.sessions.iter().all(|session| session.failovers == 0 && session.state == State::Routeless);
        if fresh {
            match self.engine.routes.best(&Without::default()) {
                Some(route) => self.open(0, self.sessions.len(), &route),
                None if self.asked.arrived.elapsed() > PLACED_WITHIN => self.engine.routes.wish_local(),
                None => {}
            }
            return;
        }
        let now = self.asked.arrived.elapsed();
        for at in 0..self.sessions.len() {
            if !self.sessions[at].wants_route(now) {
                continue;
            }
            match self.engine.routes.best(&self.sessions[at].without(now)) {
                Some(route) => self.open(at, 1, &route),
                None => self.engine.routes.wish_local(),
            }
        }
    }

    /// Opens `count` sessions from `first` on along a route.
    fn open(&mut self, first: usize, count: usize, route: &Route) {
        let id = SessionId(rand::random());
        let now = self.asked.arrived.elapsed();
        let peers: Vec<_> = route.stages.iter().map(|stage| stage.peer).collect();
        let local = self.engine.pipeline.local();
        for index in 0..count {
            let (at, id) = (first + index, id.choice(index as u16));
            self.engine.pipeline.hear(id, self.sender.clone());
            self.sessions[at].opened(id, route.chain.epoch, peers.clone(), now);
            self.used[at] = Some(route.clone());
            self.summary.used(&route.stages);
            let audits_all = self.engine.auditor.as_ref().is_some_and(Auditor::audits_all);
            self.held |= audits_all && self.asked.receipt && !route.is_local(local);
            let stage = |stage: &StageAt| ReceiptStage {
                peer: stage.peer.to_string(),
                layers: [stage.layers.start, stage.layers.end],
            };
            self.segments[at].push(Segment {
                session: id.0,
                epoch: route.chain.epoch,
                chosen_from: self.sessions[at].tokens.len() as u64 - 1,
                stages: route.stages.iter().map(stage).collect(),
                claims: Vec::new(),
                ended: None,
            });
        }
        let session = &self.sessions[first];
        let open = Open {
            session: id,
            coordinator: local,
            model: route.chain.model,
            epoch: route.chain.epoch,
            numerics: NUMERICS,
            stages: route.stages.clone(),
            choices: count as u16,
            sequence: None,
            prompt_len: session.prompt_len as u32,
            most: u32::try_from(self.asked.most).unwrap_or(u32::MAX),
            sampling: self.asked.sampling.of_choice(session.choice as u16),
            format: self.asked.format.clone(),
            prompt_logprobs: self.asked.prompt_logprobs && session.failovers == 0,
            tokens: session.tokens.clone(),
        };
        self.started.get_or_insert_with(Instant::now);
        let sent = self.engine.pipeline.send(peers[0], Message::Open(Box::new(open)), Payload::empty());
        if let Err(error) = sent {
            for at in first..first + count {
                let outcome = self.sessions[at].peer_gone(peers[0], error.message(), now);
                self.follow(at, outcome);
            }
        }
    }

    /// More of an answer.
    fn said(&mut self, at: usize, said: Said) {
        let text = &self.engine.text;
        self.summary.drafted_tokens += said.drafted;
        self.summary.accepted_tokens += said.accepted;
        self.summary.answer_tokens += said.tokens.len();
        if at == 0 && said.cached > 0 && self.first_token.is_none() {
            self.summary.cached_tokens = said.cached.min(self.summary.prompt_tokens);
        }
        if self.asked.prompt_logprobs && at == 0 && !said.prompt.is_empty() {
            self.prompt.extend(said.prompt.iter().map(|out| with_text(text, out)));
            if self.prompt.len() == self.summary.prompt_tokens {
                self.ready.push_back(Ok(Event::Prompt(std::mem::take(&mut self.prompt))));
            }
        }
        if said.tokens.is_empty() && said.ended.is_none() {
            return;
        }
        self.first_token.get_or_insert_with(Instant::now);
        self.sessions.iter_mut().for_each(|session| session.begun = true);
        self.given[at].tokens.extend_from_slice(&said.tokens);
        match self.answers[at].say(text, &said.tokens, said.ended) {
            Ok(delta) => {
                let finished = delta.finish.is_some();
                self.ready.push_back(Ok(Event::Delta(delta)));
                if finished {
                    self.finished(at);
                }
            }
            Err(error) => self.ready.push_back(Err(error)),
        }
    }

    /// An answer is complete. Stages on other nodes sign what they did.
    fn finished(&mut self, at: usize) {
        // What others had no part in needs no signature, nor does what leaves no receipt.
        let signs = self.asked.receipt && !self.is_alone(at);
        match (self.sessions[at].id(), &self.used[at]) {
            (Some(session), Some(route)) if signs => {
                let positions = u32::try_from(self.sessions[at].tokens.len() - 1).unwrap_or(u32::MAX);
                let close = Message::Close { session, commit: Some(positions) };
                // A first stage that is gone signs nothing, which shows in time.
                let _ = self.engine.pipeline.send(route.stages[0].peer, close, Payload::empty());
                self.sessions[at].signing(self.asked.arrived.elapsed());
            }
            _ => {
                self.forget(at);
                self.sessions[at].over();
            }
        }
        self.conclude();
    }

    /// Once all answers are complete and signed, the request is; audits that were drawn may have to be waited for.
    fn conclude(&mut self) {
        if self.sessions.iter().any(|session| session.state != State::Over) || self.over {
            return;
        }
        let started = self.started.unwrap_or(self.asked.arrived);
        let first = self.first_token.unwrap_or(started);
        self.summary.queued = started.duration_since(self.asked.arrived);
        self.summary.prompt = first.duration_since(started);
        self.summary.answer = first.elapsed();
        self.summary.verdict = Verdict::Local;
        for at in 0..self.sessions.len() {
            let Some(receipt) = self.receipt(at) else { continue };
            self.summary.verdict = self.summary.verdict.max(receipt.verdict);
            let Some(auditor) = self.engine.auditor.as_ref().filter(|_| self.asked.receipt) else { continue };
            self.summary.receipts.push(receipt.id.clone());
            auditor.keep(receipt.clone());
            let claims = receipt.segments.last().map(|segment| segment.claims.clone()).unwrap_or_default();
            if auditor.policy().choose(&CommitChain { links: claims }) {
                let result = auditor.audit(receipt);
                if self.held {
                    self.audits.push(result);
                }
            }
        }
        if self.audits.is_empty() {
            self.done();
        }
    }

    fn done(&mut self) {
        self.engine.metrics.answered(&self.summary);
        self.held = false;
        self.ready.push_back(Ok(Event::Done(self.summary.clone())));
    }

    /// Whether no other node ever had a part in an answer.
    fn is_alone(&self, at: usize) -> bool {
        let local = self.engine.pipeline.local().to_string();
        self.segments[at].iter().all(|segment| segment.stages.iter().all(|stage| stage.peer == local))
    }

    /// What is kept of an answer that other nodes had a part in.
    fn receipt(&self, at: usize) -> Option<Receipt> {
        if self.is_alone(at) {
            return None;
        }
        let local = self.engine.pipeline.local();
        let session = &self.sessions[at];
        let (prompt, answer) = session.tokens.split_at(session.prompt_len);
        let model = self.used[at].as_ref()?.chain.model;
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Some(Receipt {
            version: receipt::VERSION,
            id: Receipt::new_id(),
            request: self.asked.id.clone(),
            unix_ms,
            coordinator: local.to_string(),
            model: ReceiptModel {
                name: self.engine.facts.name.clone(),
                digest: model,
                file: self
                    .engine
                    .facts
                    .path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            },
            numerics: NUMERICS,
            prompt_tokens: prompt.to_vec(),
            answer_tokens: answer.to_vec(),
            sampling: (&self.asked.sampling.of_choice(session.choice as u16)).into(),
            form: receipt_form(&self.asked.format),
            segments: self.segments[at].clone(),
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        })
    }

    /// An audit that was waited for is done. Where a stage lied, the answers are computed once more without it.
    fn audited(&mut self, audited: Result<Receipt>) {
        let liars: Vec<PeerId> = match &audited {
            Ok(receipt) => {
                let failed = receipt.audits.iter().filter(|audit| !audit.holds);
                failed
                    .filter_map(|audit| receipt.segments.get(audit.segment)?.stages.get(audit.stage)?.peer.parse().ok())
                    .collect()
            }
            Err(_) => Vec::new(),
        };
        if !liars.is_empty() && self.summary.failovers < MAX_RECOMPUTED {
            self.begin_again(&liars);
            return;
        }
        if let Ok(receipt) = &audited {
            self.audited.push(receipt.verdict);
        }
        if self.audits.is_empty() {
            let all = self.audited.len() == self.summary.receipts.len();
            self.summary.verdict = match self.audited.iter().max() {
                Some(worst) if all => *worst,
                _ => Verdict::Unchecked,
            };
            self.done();
        }
    }

    /// Everything once more, without some nodes.
    fn begin_again(&mut self, without: &[PeerId]) {
        tracing::warn!(event = "answer_recomputed", "An answer failed its audit and is computed again");
        self.summary.failovers += 1;
        self.engine.metrics.failovers.inc();
        (self.summary.answer_tokens, self.summary.drafted_tokens, self.summary.accepted_tokens) = (0, 0, 0);
        self.summary.receipts.clear();
        self.audits.clear();
        self.audited.clear();
        self.ready.clear();
        self.prompt.clear();
        for at in 0..self.sessions.len() {
            let mut session = Session::new(at, self.asked.prompt.clone(), self.asked.arrived.elapsed());
            session.failovers = 1;
            // Its reader has been told to wait.
            session.begun = true;
            session.avoided.clone_from(&self.sessions[at].avoided);
            session.avoided.extend_from_slice(without);
            self.sessions[at] = session;
            self.answers[at] = Answer::new(at, self.asked.stops.clone(), self.asked.sampling.logprobs.is_some());
            self.segments[at].clear();
            self.given[at] = Given::default();
            self.used[at] = None;
        }
        self.route();
    }

    /// Ends a session at its stages.
    fn forget(&mut self, at: usize) {
        let Some(session) = self.sessions[at].id() else { return };
        self.engine.pipeline.forget(&session);
        if let Some(route) = &self.used[at] {
            let close = Message::Close { session, commit: None };
            // A first stage that is gone needs no word.
            let _ = self.engine.pipeline.send(route.stages[0].peer, close, Payload::empty());
        }
    }

    fn close_all(&mut self) {
        for at in 0..self.sessions.len() {
            self.forget(at);
            self.sessions[at].over();
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.over {
            self.engine.metrics.cancelled.inc();
        }
        self.close_all();
    }
}

/// Tokens as they came.
#[derive(Default)]
struct Given {
    tokens: Vec<TokenOut>,
}

impl Given {
    /// The leaves of what the last stage gave for the first `positions`, having chosen from `chosen_from` on.
    fn leaves(&self, positions: usize, chosen_from: usize) -> Vec<Leaf> {
        let chosen = positions - chosen_from;
        let own = &self.tokens[self.tokens.len().saturating_sub(chosen)..];
        let choice = |out: &TokenOut| Choice { token: out.token, logprob: out.logprob, top: out.top.clone() };
        (0..chosen_from as u64)
            .map(nothing_leaf)
            .chain(own.iter().zip(chosen_from as u64..).map(|(out, at)| chosen_leaf(at, &choice(out))))
            .collect()
    }
}

fn receipt_form(format: &SessionFormat) -> ReceiptForm {
    match format {
        SessionFormat::Text => ReceiptForm::Text,
        SessionFormat::JsonObject => ReceiptForm::JsonObject,
        SessionFormat::JsonSchema(schema) => ReceiptForm::JsonSchema { schema: schema.clone() },
    }
}

/// The next audit that is done; it is waited for no more then.
async fn next_audit(audits: &mut Vec<oneshot::Receiver<Result<Receipt>>>) -> Result<Receipt> {
    let gone = |_| Err(Error::new(ErrorKind::Internal, "the auditor ended"));
    let Some(first) = audits.first_mut() else { return std::future::pending().await };
    let result = first.await.unwrap_or_else(gone);
    audits.remove(0);
    result
}

fn session_of(message: &Message) -> Option<SessionId> {
    match message {
        Message::Accepted { session }
        | Message::Refused { session, .. }
        | Message::Failed { session, .. }
        | Message::Commit { session, .. } => Some(*session),
        Message::Tokens(tokens) => Some(tokens.session),
        _ => None,
    }
}

impl Summary {
    /// These stages had a part in it.
    fn used(&mut self, stages: &[StageAt]) {
        if self.stages != stages {
            self.stages = stages.to_vec();
        }
    }
}
