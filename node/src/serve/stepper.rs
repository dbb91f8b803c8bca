//! The thread of an engine: it owns the model, its compute threads and every cache, does what the batch says and tells
//! the requests what came of it. It sleeps while there is nothing to do, and decides nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::{Cache, Input, Logits, Model, Output, PageBudget, Step};
use pangea_compute::sample::Sampling;
use pangea_compute::sample::grammar::Grammar;
use pangea_compute::sample::stop::StopMatcher;
use pangea_compute::{ErrorKind as ComputeErrorKind, Pool};
use tokio::sync::{mpsc, oneshot};

use super::batch::{Action, Advance, Batch, Event as BatchEvent, Rows, SequenceId, Source};
use super::engine::{Drafts, Load, Refused};
use super::metrics::EngineMetrics;
use super::request::{Event, Summary};
use super::sequence::Sequence;
use super::text::ModelText;
use crate::compute_error;

/// A request that only waits for its turn: everything about it has been checked.
pub(super) struct Prepared {
    pub(super) prompt: Vec<u32>,
    pub(super) choices: usize,
    pub(super) most: usize,
    pub(super) sampling: Sampling,
    pub(super) grammar: Option<Grammar>,
    pub(super) stops: StopMatcher,
    pub(super) prompt_logprobs: bool,
    pub(super) arrived: Instant,
    /// Room for all that can be said: the engine never waits for a reader.
    pub(super) events: mpsc::Sender<Result<Event>>,
    /// Whether there is a place in the queue.
    pub(super) accepted: oneshot::Sender<std::result::Result<(), Refused>>,
}

/// A request under way.
struct Asked {
    events: mpsc::Sender<Result<Event>>,
    sequences: Vec<SequenceId>,
    /// Answers that have not ended.
    open: usize,
    summary: Summary,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// Everything that the thread owns.
pub(super) struct Stepper {
    pub(super) model: Model,
    pub(super) pool: Pool,
    pub(super) budget: PageBudget,
    pub(super) text: Arc<ModelText>,
    pub(super) metrics: Arc<EngineMetrics>,
    pub(super) load: Arc<Load>,
    pub(super) batch: Batch,
    drafts: Drafts,
    state: State,
}

#[derive(Default)]
struct State {
    requests: HashMap<u64, Asked>,
    sequences: HashMap<SequenceId, Sequence>,
    /// Of sequences that run, and of those that ended and are kept.
    caches: HashMap<SequenceId, Cache>,
    next_sequence: u64,
}

impl Stepper {
    #[allow(clippy::too_many_arguments)] // What the thread owns, one by one.
    pub(super) fn new(
        model: Model,
        pool: Pool,
        budget: PageBudget,
        text: Arc<ModelText>,
        metrics: Arc<EngineMetrics>,
        load: Arc<Load>,
        batch: Batch,
        drafts: Drafts,
    ) -> Stepper {
        Stepper { model, pool, budget, text, metrics, load, batch, drafts, state: State::default() }
    }

    /// Serves until nobody can ask any more and all that was asked has been answered.
    pub(super) fn run(mut self, requests: Receiver<Prepared>) {
        let since = Instant::now();
        loop {
            if self.batch.is_idle() {
                match requests.recv() {
                    Ok(prepared) => self.arrived(prepared, since.elapsed()),
                    Err(_) => return,
                }
            }
            while let Ok(prepared) = requests.try_recv() {
                self.arrived(prepared, since.elapsed());
            }
            self.drop_unwanted(since.elapsed());
            let mut event = Some(BatchEvent::Ready);
            while let Some(happened) = event.take() {
                let actions = self.batch.handle(happened, since.elapsed());
                event = self.act(actions, since);
            }
            self.load.set(self.batch.running(), self.batch.waiting());
        }
    }

    fn arrived(&mut self, prepared: Prepared, now: Duration) {
        let first = SequenceId(self.state.next_sequence);
        self.state.next_sequence += prepared.choices as u64;
        let scored = prepared.prompt_logprobs;
        let event = BatchEvent::Arrived { first, choices: prepared.choices, prompt: prepared.prompt.clone(), scored };
        for action in self.batch.handle(event, now) {
            if let Action::Refuse { retry_after, .. } = action {
                self.metrics.refused.inc();
                // Whoever asked may be gone.
                let _ = prepared.accepted.send(Err(Refused::overloaded(retry_after)));
                return;
            }
        }
        self.metrics.requests.inc();
        let mut asked = Asked {
            events: prepared.events,
            sequences: Vec::with_capacity(prepared.choices),
            open: prepared.choices,
            summary: Summary { prompt_tokens: prepared.prompt.len(), ..Summary::default() },
            arrived: prepared.arrived,
            started: None,
            first_token: None,
        };
        for choice in 0..prepared.choices {
            let id = SequenceId(first.0 + choice as u64);
            let seed = prepared.sampling.seed.wrapping_add(choice as u64);
            let sequence = Sequence::new(
                first.0,
                choice,
                prepared.prompt.clone(),
                prepared.most,
                Sampling { seed, ..prepared.sampling.clone() },
                prepared.grammar.clone(),
                prepared.stops.clone(),
                prepared.prompt_logprobs && choice == 0,
            );
            self.state.sequences.insert(id, sequence);
            asked.sequences.push(id);
        }
        self.state.requests.insert(first.0, asked);
        self.load.set(self.batch.running(), self.batch.waiting());
        // Whoever asked may be gone; that shows in a moment.
        let _ = prepared.accepted.send(Ok(()));
    }

    /// Ends what nobody listens to any more.
    fn drop_unwanted(&mut self, now: Duration) {
        let unwanted: Vec<u64> =
            self.state.requests.iter().filter(|(_, asked)| asked.events.is_closed()).map(|(&id, _)| id).collect();
        for request in unwanted {
            self.metrics.cancelled.inc();
            self.end_request(request, now);
        }
    }

    /// Ends every answer of a request that is still open.
    fn end_request(&mut self, request: u64, now: Duration) {
        let Some(asked) = self.state.requests.remove(&request) else { return };
        for id in asked.sequences {
            if self.state.sequences.remove(&id).is_some() {
                for action in self.batch.handle(BatchEvent::Cancelled(id), now) {
                    self.drop_cache(&action);
                }
            }
        }
    }

    fn drop_cache(&mut self, action: &Action) {
        if let Action::Drop(id) = action {
            self.state.caches.remove(id);
        }
    }

    /// Does what the batch says; what happened then, if anything did.
    fn act(&mut self, actions: Vec<Action>, since: Instant) -> Option<BatchEvent> {
        let mut failed = Vec::new();
        let mut step = None;
        for action in actions {
            match action {
                // Only arrivals are refused, and those are answered where they arrive.
                Action::Refuse { .. } => {}
                Action::Expire(id) => failed.push((id, "the request waited too long for its turn; try again later")),
                Action::Fail(id) => {
                    let why = "there is not enough memory for this request; shorten it, or give the node more memory";
                    failed.push((id, why));
                }
                Action::Start { sequence, source } => self.start(sequence, source),
                Action::Drop(id) => {
                    if self.state.sequences.contains_key(&id) {
                        self.metrics.preempted.inc();
                    }
                    self.state.caches.remove(&id);
                }
                Action::Step(rows) => step = Some(rows),
            }
        }
        // With them their siblings end: no cache may go before all that were to start have theirs.
        for (id, why) in failed {
            self.fail(id, Error::new(ErrorKind::Overloaded, why), since.elapsed());
        }
        let mut rows = step?;
        rows.retain(|rows| self.state.sequences.contains_key(&rows.sequence));
        if rows.is_empty() { None } else { Some(self.step(&rows, since)) }
    }

    /// Tells a request that it failed, and ends it.
    fn fail(&mut self, id: SequenceId, error: Error, now: Duration) {
        let Some(sequence) = self.state.sequences.get(&id) else { return };
        let request = sequence.request;
        if let Some(asked) = self.state.requests.get(&request) {
            // Room was made for it; without a reader it is of no use.
            let _ = asked.events.try_send(Err(error));
        }
        self.metrics.failed.inc();
        self.end_request(request, now);
    }

    fn start(&mut self, id: SequenceId, source: Source) {
        let caches = &mut self.state.caches;
        let (cache, shared) = match source {
            Source::Empty => (None, 0),
            Source::Fork { from, tokens } => (caches.get(&from).map(Cache::fork), tokens),
            Source::Take { from, tokens } => (caches.remove(&from), tokens),
        };
        let mut cache = cache.unwrap_or_else(|| Cache::new(&self.model, &self.budget));
        cache.truncate(shared);
        caches.insert(id, cache);
        let Some(sequence) = self.state.sequences.get(&id) else { return };
        let (request, choice) = (sequence.request, sequence.choice);
        if let Some(asked) = self.state.requests.get_mut(&request) {
            asked.started.get_or_insert_with(Instant::now);
            if choice == 0 && asked.first_token.is_none() {
                asked.summary.cached_tokens = shared.min(asked.summary.prompt_tokens);
            }
        }
    }

    /// Computes the rows in one pass; where it fails for one of them, each on its own.
    fn step(&mut self, rows: &[Rows], since: Instant) -> BatchEvent {
        let began = Instant::now();
        match self.forward(rows) {
            Ok(output) => BatchEvent::Stepped(self.told(rows, output, began, since)),
            Err(error) if error.kind() == ComputeErrorKind::Overloaded => {
                tracing::debug!(event = "engine_memory", %error, "sessions give way");
                BatchEvent::Exhausted
            }
            Err(error) if rows.len() == 1 => {
                tracing::warn!(event = "engine_step_failed", %error, "a step failed");
                let id = rows[0].sequence;
                self.broken(id, compute_error(error), since);
                BatchEvent::Stepped(Vec::new())
            }
            Err(_) => {
                // One of them is at fault, and the others must not suffer for it.
                let mut advances = Vec::new();
                for rows in rows {
                    if let BatchEvent::Stepped(one) = self.step(std::slice::from_ref(rows), since) {
                        advances.extend(one);
                    }
                }
                BatchEvent::Stepped(advances)
            }
        }
    }

    /// A sequence whose cache is not to be used again.
    fn broken(&mut self, id: SequenceId, error: Error, since: Instant) {
        for action in self.batch.handle(BatchEvent::Failed(id), since.elapsed()) {
            self.drop_cache(&action);
        }
        self.fail(id, error, since.elapsed());
    }

    fn forward(&mut self, rows: &[Rows]) -> std::result::Result<Output, pangea_compute::Error> {
        let State { sequences, caches, .. } = &mut self.state;
        let mut tokens: Vec<u32> = Vec::new();
        let mut taken = Vec::with_capacity(rows.len());
        for rows in rows {
            let (Some(sequence), Some(cache)) = (sequences.get_mut(&rows.sequence), caches.remove(&rows.sequence))
            else {
                continue;
            };
            tokens.extend_from_slice(&sequence.tokens[rows.start..][..rows.rows]);
            tokens.extend_from_slice(sequence.draft(rows.draft));
            let logits = match rows.choose {
                _ if sequence.wants_all_logits() || sequence.drafted() > 0 => Logits::All,
                true => Logits::Last,
                false => Logits::None,
            };
            taken.push((rows.sequence, cache, rows.rows + sequence.drafted(), logits));
        }
        let mut steps: Vec<Step<'_>> =
            taken.iter_mut().map(|(_, cache, rows, logits)| Step { cache, rows: *rows, logits: *logits }).collect();
        let result = self.model.forward(&self.pool, &mut steps, Input::Tokens(&tokens));
        caches.extend(taken.into_iter().map(|(id, cache, ..)| (id, cache)));
        self.metrics.steps.inc();
        result
    }

    /// Chooses tokens from what a pass gave and tells the requests.
    fn told(&mut self, rows: &[Rows], mut output: Output, began: Instant, since: Instant) -> Vec<Advance> {
        let took = if self.drafts == Drafts::Eager { 1.0 } else { began.elapsed().as_secs_f64() };
        let mut advances = Vec::with_capacity(rows.len());
        let vocabulary = self.model.config().vocabulary;
        for (at, planned) in rows.iter().enumerate() {
            let id = planned.sequence;
            match self.advance(planned, vocabulary, output.logits_mut(at)) {
                Ok(advance) => {
                    if let Some(sequence) =
                        self.state.sequences.get_mut(&id).filter(|_| rows.len() == 1 && planned.rows == 1)
                    {
                        sequence.observe(advance.computed - planned.start - 1, took);
                    }
                    if advance.ended {
                        self.ended(id);
                    }
                    advances.push(advance);
                }
                Err(error) => self.broken(id, error, since),
            }
        }
        advances
    }

    fn advance(&mut self, rows: &Rows, vocabulary: usize, logits: &mut [f32]) -> Result<Advance> {
        let State { sequences, caches, requests, .. } = &mut self.state;
        let (id, mut computed) = (rows.sequence, rows.start + rows.rows);
        let mut advance = Advance { sequence: id, computed, chosen: Vec::new(), ended: false };
        let Some(sequence) = sequences.get_mut(&id) else { return Ok(advance) };
        let Some(asked) = requests.get_mut(&sequence.request) else { return Ok(advance) };
        let mut last = Vec::new();
        let logits = if sequence.wants_all_logits() {
            // Scoring overwrites the last row, which is still needed.
            last.extend_from_slice(&logits[logits.len() - vocabulary..]);
            sequence.score_prompt(&self.text, rows.start, vocabulary, logits)?;
            &mut last[..]
        } else {
            logits
        };
        if !rows.choose {
            return Ok(advance);
        }
        let taken = sequence.take(&self.text, vocabulary, logits)?;
        computed += taken.accepted;
        if let Some(cache) = caches.get_mut(&id) {
            cache.truncate(computed);
        }
        asked.first_token.get_or_insert_with(Instant::now);
        asked.summary.answer_tokens += taken.chosen.len();
        asked.summary.drafted_tokens += sequence.drafted();
        asked.summary.accepted_tokens += taken.accepted;
        if let Some(scored) = sequence.take_prompt_logprobs() {
            let _ = asked.events.try_send(Ok(Event::Prompt(scored)));
        }
        advance.computed = computed;
        advance.chosen = taken.chosen;
        advance.ended = taken.delta.finish.is_some();
        // Room was made for everything; without a reader it ends with the next step.
        let _ = asked.events.try_send(Ok(Event::Delta(taken.delta)));
        Ok(advance)
    }

    /// One answer has ended; with the last of them, its request.
    fn ended(&mut self, id: SequenceId) {
        let Some(sequence) = self.state.sequences.remove(&id) else { return };
        let Some(asked) = self.state.requests.get_mut(&sequence.request) else { return };
        asked.open -= 1;
        if asked.open > 0 {
            return;
        }
        let Some(asked) = self.state.requests.remove(&sequence.request) else { return };
        let started = asked.started.unwrap_or(asked.arrived);
        let first = asked.first_token.unwrap_or(started);
        let summary = Summary {
            queued: started.duration_since(asked.arrived),
            prompt: first.duration_since(started),
            answer: first.elapsed(),
            ..asked.summary
        };
        self.metrics.answered(&summary);
        let _ = asked.events.try_send(Ok(Event::Done(summary)));
    }
}
