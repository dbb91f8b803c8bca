//! Decides which sequences are computed in the next step, which wait, and whose cache is kept, forked or dropped: continuous
//! batching as a state machine. Events go in, actions come out; it has no clock, computes nothing and holds
//! no cache, only token ids and lengths.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use pangea_units::Rewind;

use crate::Time;

mod cache_bytes;
mod pages;
#[cfg(test)]
mod tests;

pub use cache_bytes::CacheBytes;
use pages::{Kept, KeptCaches, common_prefix};

/// Id of a sequence: one answer of one request. The caller never reuses an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Limits of the batch, all at least 1.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Sequences computed at once. More of them share a pass over the weights, and each waits longer for it.
    pub running: usize,
    /// Sequences that may wait; further ones are refused.
    pub waiting: usize,
    /// Time that a sequence may wait for its first step.
    pub wait: Duration,
    /// Rows of a step in which only prompts are computed; limits how long a newcomer waits for its turn.
    pub prompt_rows: usize,
    /// Rows of prompts in a step with running answers; limits how much a long prompt slows them down.
    pub prompt_rows_beside: usize,
    /// Maximum length of a draft in tokens; 0 for none. Only an answer that runs alone is drafted: a wrong guess slows
    /// all answers.
    pub draft: usize,
    /// What each cache takes.
    pub cache: CacheBytes,
    /// Bytes of all caches together.
    pub bytes: u64,
    /// Whether layers have a recurrent state, which goes back only to where it was kept.
    pub is_recurrent: bool,
    /// Caches of ended sequences that are kept for prompts with the same prefix.
    pub kept: usize,
    /// Steps in flight at once, one per stage: answers are spread over this many groups.
    pub groups: usize,
}

impl BatchLimits {
    /// Maximum tokens of one sequence that has all memory to itself.
    pub fn longest(&self) -> usize {
        self.cache.longest(self.bytes, self.step_rows()).saturating_sub(self.draft)
    }

    /// Positions that all memory holds where no layer gives any up.
    pub(super) fn whole_positions(&self) -> usize {
        let pages = self.bytes / self.cache.one_page().max(1);
        usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(self.cache.page_tokens)
    }

    /// Rows of one sequence in a step, at most.
    fn step_rows(&self) -> usize {
        self.prompt_rows.max(self.prompt_rows_beside).max(self.draft + 1)
    }

    /// How many of the first `tokens` tokens a cache can go back to: all, or those before which recurrent states were kept, or none.
    /// `deepest` is as for [`BatchLimits::can_go_back`].
    fn reach(&self, deepest: usize, rewind: &Rewind, tokens: usize) -> usize {
        let reached = if self.is_recurrent { rewind.reach(tokens) } else { tokens };
        if self.can_go_back(deepest, reached) { reached } else { 0 }
    }

    /// Whether a cache whose last steps began at `deepest` at most still has what rows from `tokens` on see: layers with a
    /// sliding window give up what is far behind.
    fn can_go_back(&self, deepest: usize, tokens: usize) -> bool {
        let CacheBytes { window, kept_behind, .. } = self.cache;
        deepest < window.saturating_add(kept_behind) || tokens.saturating_add(kept_behind) >= deepest
    }
}

/// Input of the batch.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request: sequences `first`, `first + 1`, … of the same prompt.
    Arrived {
        /// Id of the first sequence.
        first: SequenceId,
        /// Number of sequences, at least 1.
        choices: usize,
        /// Token ids of the prompt: at least one, fewer than [`BatchLimits::longest`].
        prompt: Vec<u32>,
        /// Whether every row of the prompt produces logits; then no part of it may come from another cache.
        scored: bool,
    },
    /// A sequence is no longer wanted.
    Cancelled(SequenceId),
    /// A sequence cannot continue, and its cache must not be reused.
    Failed(SequenceId),
    /// The next step may start.
    Ready,
    /// Steps have been computed for these sequences; others of the same step may still be in flight.
    Stepped(Vec<Advance>),
    /// The step of these sequences failed for lack of memory; every cache is unchanged.
    Exhausted(Vec<SequenceId>),
}

/// Result of a step for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The sequence.
    pub sequence: SequenceId,
    /// Tokens in its cache now.
    pub computed: usize,
    /// Tokens chosen by the step, in order.
    pub chosen: Vec<u32>,
    /// Whether the sequence has ended.
    pub ended: bool,
}

/// What the caller does next, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The queue is full; the client may retry after a delay.
    Refuse {
        /// The first of its sequences.
        first: SequenceId,
        /// Estimated time until the queue is empty.
        retry_after: Duration,
    },
    /// A sequence waited too long.
    Expire(SequenceId),
    /// A sequence needs more memory than there is.
    Fail {
        /// The sequence.
        sequence: SequenceId,
        /// Bytes of keys and values of its tokens.
        needs: u64,
        /// Bytes for all caches together.
        limit: u64,
    },
    /// Create a cache for a sequence.
    Start {
        /// The sequence.
        sequence: SequenceId,
        /// Origin of the cache's content.
        source: Source,
    },
    /// Drop the cache of a running or an ended sequence.
    Drop(SequenceId),
    /// Compute these rows in one pass, then report [`Event::Stepped`].
    Step(Vec<Rows>),
}

/// Origin of a sequence's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache is empty.
    Empty,
    /// The cache shares the first tokens of another one.
    Fork {
        /// Sequence whose cache is shared, running or ended.
        from: SequenceId,
        /// Number of shared tokens.
        tokens: usize,
    },
    /// The cache of an ended sequence is renamed.
    Take {
        /// Sequence whose cache is taken.
        from: SequenceId,
        /// Number of its tokens that stay.
        tokens: usize,
    },
}

/// Rows of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The sequence.
    pub sequence: SequenceId,
    /// Tokens in its cache: the position of the first row.
    pub start: usize,
    /// Number of tokens to compute.
    pub rows: usize,
    /// Whether these are its last tokens, so that one is chosen after them.
    pub choose: bool,
    /// Maximum number of drafted tokens computed after them.
    pub draft: usize,
}

#[derive(Clone, Debug)]
struct Sequence {
    id: SequenceId,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
    /// Tokens in its cache; always fewer than `tokens`.
    computed: usize,
    /// Where the latest of the steps began that its cache has seen, under whatever name.
    deepest: usize,
    /// Where its cache can go back to, as far as recurrent states count.
    rewind: Rewind,
    /// Its rows in a step in flight, drafted ones included; it joins no other step until that one is done.
    under_way: usize,
    /// A sequence with the same prompt, which it waits for.
    leader: Option<SequenceId>,
    scored: bool,
    /// The kept cache that its first positions were copied from.
    copied_from: Option<SequenceId>,
    arrived: Time,
    started: Option<Time>,
}

impl Sequence {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether only its last token remains to be computed: it is answering.
    fn answers(&self) -> bool {
        self.pending() == 1
    }
}

/// The sequences of one model.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    waiting: VecDeque<Sequence>,
    /// Running sequences, in the order of their start.
    running: Vec<Sequence>,
    kept: KeptCaches,
    /// Average running time of a sequence, over the last ones.
    run_time: Duration,
}

/// Weight of the newest sequence in the average running time: the last ten or so dominate.
const LEARNED_PART: f64 = 0.1;

/// Maximum retry delay that a client gets.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Shortest common prefix that is shared; shorter ones are recomputed, because forking costs about as much.
const MIN_SHARED: usize = 8;

/// Rows of a scored prompt per step. Each row's logits are as long as the vocabulary: some tens of megabytes in a step.
const SCORED_ROWS: usize = 32;

/// Minimum rows of a prompt in a step.
const MIN_PROMPT_ROWS: usize = 16;

impl Batch {
    /// A batch without sequences.
    pub fn new(limits: BatchLimits) -> Batch {
        Batch {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: KeptCaches::default(),
            run_time: Duration::from_secs(1),
        }
    }

    /// Whether no sequence runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Whether only answers are computed: no prompt runs or waits.
    pub fn only_answers(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Sequence::answers)
    }

    /// Sets the number of groups of answers from the next step on, at least 1.
    pub fn set_groups(&mut self, groups: usize) {
        self.limits.groups = groups.max(1);
    }

    /// Number of running sequences.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of waiting sequences.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a step in flight computes the sequence.
    pub fn is_under_way(&self, sequence: SequenceId) -> bool {
        self.running.iter().any(|running| running.id == sequence && running.under_way > 0)
    }

    /// Prompt and chosen tokens of a running sequence; empty for any other.
    pub fn tokens(&self, sequence: SequenceId) -> &[u32] {
        self.running.iter().find(|running| running.id == sequence).map_or(&[], |running| &running.tokens)
    }

    /// Processes an event at `now` (since any fixed moment); returns the actions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Arrived { first, choices, prompt, scored } => {
                self.arrived(first, choices, prompt, scored, now, &mut actions);
            }
            Event::Cancelled(sequence) => self.cancelled(sequence, now, &mut actions),
            Event::Failed(sequence) => self.failed(sequence, &mut actions),
            Event::Ready => {
                self.expire(now, &mut actions);
                self.start_waiting(now, &mut actions);
                let rows = self.plan_within_memory(&mut actions);
                if !rows.is_empty() {
                    for planned in &rows {
                        if let Some(running) = self.running.iter_mut().find(|running| running.id == planned.sequence) {
                            running.under_way = planned.rows + planned.draft;
                            running.deepest = running.deepest.max(planned.start);
                            running.rewind.begin();
                            running.rewind.under_way(running.under_way);
                        }
                    }
                    actions.push(Action::Step(rows));
                }
            }
            Event::Stepped(advances) => {
                for advance in advances {
                    self.advance(advance, now, &mut actions);
                }
            }
            Event::Exhausted(step) => {
                self.running
                    .iter_mut()
                    .filter(|running| step.contains(&running.id))
                    .for_each(|running| running.under_way = 0);
                self.exhausted(&mut actions);
            }
        }
        actions
    }

    fn arrived(
        &mut self,
        first: SequenceId,
        choices: usize,
        prompt: Vec<u32>,
        scored: bool,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let places = self.limits.running + self.limits.waiting;
        if self.running.len() + self.waiting.len() + choices > places {
            actions.push(Action::Refuse { first, retry_after: self.retry_after() });
            return;
        }
        for choice in 0..choices as u64 {
            self.waiting.push_back(Sequence {
                id: SequenceId(first.0 + choice),
                tokens: prompt.clone(),
                computed: 0,
                deepest: 0,
                rewind: Rewind::default(),
                under_way: 0,
                leader: (choice > 0 && !scored).then_some(first),
                scored,
                copied_from: None,
                arrived: now,
                started: None,
            });
        }
    }

    /// Estimated time until all waiting sequences have started.
    fn retry_after(&self) -> Duration {
        let turns = (self.waiting.len() + 1) as f64 / self.limits.running as f64;
        self.run_time.mul_f64(turns).clamp(Duration::from_secs(1), MAX_RETRY)
    }

    fn cancelled(&mut self, id: SequenceId, now: Time, actions: &mut Vec<Action>) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(at) = self.running.iter().position(|running| running.id == id) {
            let sequence = self.running.remove(at);
            if sequence.under_way > 0 {
                // Rows in flight still change its cache, so the cache is not kept.
                actions.push(Action::Drop(sequence.id));
            } else {
                // The computed prefix may serve a repeated request.
                self.keep(sequence, now, actions);
            }
        }
    }

    fn failed(&mut self, id: SequenceId, actions: &mut Vec<Action>) {
        self.waiting.retain(|waiting| waiting.id != id);
        let copied_from = match self.running.iter().position(|running| running.id == id) {
            Some(at) => self.running.remove(at).copied_from,
            // The sequence was cancelled before its failure was reported.
            None => match self.kept.remove(id) {
                Some(kept) => kept.copied_from,
                None => return,
            },
        };
        actions.push(Action::Drop(id));
        // Another stage may not have what was copied: the next request would fail like this one.
        if let Some(from) = copied_from.and_then(|from| self.kept.remove(from)) {
            actions.push(Action::Drop(from.id));
        }
    }

    /// Whether the cache of an ended sequence is kept.
    pub fn keeps(&self, sequence: SequenceId) -> bool {
        self.kept.iter().any(|kept| kept.id == sequence)
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        let wait = self.limits.wait;
        self.waiting.retain(|waiting| {
            let late = waiting.started.is_none() && now.since(waiting.arrived) > wait;
            if late {
                actions.push(Action::Expire(waiting.id));
            }
            !late
        });
    }

    /// Starts waiting sequences in the order of arrival while there is room for them.
    fn start_waiting(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut at = 0;
        while at < self.waiting.len() && self.running.len() < self.limits.running {
            if self.waits_for_its_leader(&self.waiting[at]) {
                at += 1;
                continue;
            }
            if !self.has_room(&self.waiting[at]) {
                return;
            }
            let Some(mut sequence) = self.waiting.remove(at) else { return };
            let source = self.source(&sequence);
            match source {
                Source::Empty => {}
                Source::Fork { from, tokens } => {
                    (sequence.deepest, sequence.rewind) = self.past_of(from);
                    sequence.rewind.truncate(tokens);
                    self.kept.touch(from, now);
                    sequence.copied_from = Some(from);
                    sequence.computed = tokens;
                }
                Source::Take { from, tokens } => {
                    (sequence.deepest, sequence.rewind) = self.past_of(from);
                    sequence.rewind.truncate(tokens);
                    self.kept.remove(from);
                    sequence.computed = tokens;
                }
            }
            sequence.started.get_or_insert(now);
            actions.push(Action::Start { sequence: sequence.id, source });
            self.running.push(sequence);
        }
    }

    /// Where the latest step of a running or kept sequence's cache began, and where it can go back to.
    fn past_of(&self, id: SequenceId) -> (usize, Rewind) {
        let running = self.running.iter().find(|running| running.id == id);
        let running = running.map(|running| (running.deepest, running.rewind.clone()));
        let kept = || self.kept.iter().find(|kept| kept.id == id).map(|kept| (kept.deepest, kept.rewind.clone()));
        running.or_else(kept).unwrap_or_default()
    }

    fn waits_for_its_leader(&self, sequence: &Sequence) -> bool {
        let Some(leader) = sequence.leader else { return false };
        let waits = self.waiting.iter().any(|waiting| waiting.id == leader);
        let runs = self.running.iter().find(|running| running.id == leader);
        waits || runs.is_some_and(|leader| leader.computed + 1 < sequence.tokens.len())
    }

    /// Whether all tokens of a sequence, and one more page per running sequence, fit beside the others.
    fn has_room(&self, newcomer: &Sequence) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let (cache, rows) = (self.limits.cache, self.limits.step_rows());
        let whole = |sequence: &Sequence| {
            cache.at_most(sequence.tokens.len() + self.limits.draft, rows).saturating_add(cache.one_page())
        };
        self.running.iter().map(whole).fold(whole(newcomer), u64::saturating_add) <= self.limits.bytes
    }

    /// The cache with the longest common prefix.
    fn source(&self, newcomer: &Sequence) -> Source {
        if newcomer.scored {
            return Source::Empty;
        }
        // At least one token is computed, so that there are logits.
        let most = newcomer.tokens.len() - 1;
        let shared = |tokens: &[u32], deepest: usize, rewind: &Rewind| {
            self.limits.reach(deepest, rewind, common_prefix(tokens, &newcomer.tokens).min(most))
        };
        let of_running = |other: &Sequence| shared(&other.tokens[..other.computed], other.deepest, &other.rewind);
        let running = self.running.iter().map(|other| (of_running(other), Reverse(other.id))).max();
        let of_kept = |kept: &Kept| shared(&kept.tokens, kept.deepest, &kept.rewind);
        let kept = self.kept.iter().map(|kept| (of_kept(kept), Reverse(kept.id), kept.tokens.len())).max();
        match (running, kept) {
            (Some((tokens, Reverse(from))), _)
                if tokens >= MIN_SHARED && kept.is_none_or(|(other, ..)| other < tokens) =>
            {
                Source::Fork { from, tokens }
            }
            (_, Some((tokens, Reverse(from), whole))) if tokens >= MIN_SHARED => {
                // A cache hardly longer than the shared prefix is superseded by its continuation, so it is taken.
                let pages = |tokens: usize| tokens.div_ceil(self.limits.cache.page_tokens);
                if pages(whole) == pages(tokens) {
                    Source::Take { from, tokens }
                } else {
                    Source::Fork { from, tokens }
                }
            }
            _ => Source::Empty,
        }
    }

    /// The rows of the next step, once there is memory for all of them.
    fn plan_within_memory(&mut self, actions: &mut Vec<Action>) -> Vec<Rows> {
        loop {
            let mut rows = self.plan();
            let mut needed = self.bytes_after(&rows);
            while needed.saturating_add(self.kept.bytes(&self.limits.cache)) > self.limits.bytes
                && let Some(oldest) = self.kept.remove_oldest()
            {
                actions.push(Action::Drop(oldest));
            }
            if needed > self.limits.bytes {
                rows.iter_mut().for_each(|rows| rows.draft = 0);
                needed = self.bytes_after(&rows);
            }
            if needed <= self.limits.bytes {
                return rows;
            }
            if !self.preempt(actions) {
                // A step in flight releases memory when it is done.
                return Vec::new();
            }
        }
    }

    /// Preempts the sequence that started last among those not in flight: its cache is dropped and recomputed when there is
    /// room, with the same tokens. Returns whether there was one.
    fn preempt(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(last) = self.running.iter().rposition(|running| running.under_way == 0) else { return false };
        let mut sequence = self.running.remove(last);
        actions.push(Action::Drop(sequence.id));
        if self.running.is_empty() {
            // No other sequence can be preempted for it.
            let needs = self.limits.cache.of(sequence.tokens.len(), sequence.deepest);
            actions.push(Action::Fail { sequence: sequence.id, needs, limit: self.limits.bytes });
            return true;
        }
        (sequence.computed, sequence.deepest, sequence.rewind) = (0, 0, Rewind::default());
        self.waiting.push_front(sequence);
        true
    }

    fn exhausted(&mut self, actions: &mut Vec<Action>) {
        if self.kept.is_empty() {
            self.preempt(actions);
            return;
        }
        while let Some(oldest) = self.kept.remove_oldest() {
            actions.push(Action::Drop(oldest));
        }
    }

    /// The most bytes of running sequences' caches while these rows are computed: what a step gives up of its own sequence may come
    /// after what another one takes.
    fn bytes_after(&self, rows: &[Rows]) -> u64 {
        let of = |sequence: &Sequence| {
            let rows = rows.iter().find(|rows| rows.sequence == sequence.id);
            let tokens = sequence.computed + sequence.under_way + rows.map_or(0, |rows| rows.rows + rows.draft);
            self.limits.cache.of(tokens, sequence.deepest)
        };
        self.running.iter().map(of).fold(0, u64::saturating_add)
    }

    /// One row per answer of a group; prompts share the remaining rows of the step.
    fn plan(&self) -> Vec<Rows> {
        let answers = self.running.iter().filter(|sequence| sequence.answers()).count();
        let mut sharing = self.running.iter().filter(|sequence| !sequence.answers() && sequence.under_way == 0).count();
        let mut group = answers.div_ceil(self.limits.groups);
        let mut prompt_rows = if answers > 0 { self.limits.prompt_rows_beside } else { self.limits.prompt_rows };
        let draft = if self.running.len() == 1 { self.limits.draft } else { 0 };
        let mut planned = Vec::with_capacity(self.running.len());
        for sequence in self.running.iter().filter(|sequence| sequence.under_way == 0) {
            let pending = sequence.pending();
            let mut rows = Rows { sequence: sequence.id, start: sequence.computed, rows: 1, choose: true, draft: 0 };
            if sequence.answers() {
                if group == 0 {
                    continue;
                }
                group -= 1;
                rows.draft = draft;
            } else {
                let share = (prompt_rows / sharing.max(1)).max(MIN_PROMPT_ROWS).min(prompt_rows);
                sharing -= 1;
                rows.rows = pending.min(if sequence.scored { share.min(SCORED_ROWS) } else { share });
                rows.choose = rows.rows == pending;
                prompt_rows -= rows.rows;
            }
            if rows.rows > 0 {
                planned.push(rows);
            }
        }
        planned
    }

    fn advance(&mut self, advance: Advance, now: Time, actions: &mut Vec<Action>) {
        let Some(at) = self.running.iter().position(|running| running.id == advance.sequence) else { return };
        let sequence = &mut self.running[at];
        sequence.rewind.advance(std::mem::take(&mut sequence.under_way));
        sequence.tokens.extend(advance.chosen);
        sequence.computed = advance.computed.min(sequence.tokens.len());
        if !advance.ended {
            // A continuing sequence has at least one token to compute.
            sequence.computed = sequence.computed.min(sequence.tokens.len() - 1);
        }
        sequence.rewind.truncate(sequence.computed);
        if !advance.ended {
            return;
        }
        let sequence = self.running.remove(at);
        if let Some(started) = sequence.started {
            let took = now.since(started);
            self.run_time = self.run_time.mul_f64(1.0 - LEARNED_PART) + took.mul_f64(LEARNED_PART);
        }
        self.keep(sequence, now, actions);
    }

    /// Keeps the cache of an ended sequence, replacing caches that are prefixes of it and to which it can go back.
    fn keep(&mut self, mut sequence: Sequence, now: Time, actions: &mut Vec<Action>) {
        sequence.tokens.truncate(sequence.computed);
        if sequence.tokens.len() < MIN_SHARED || self.limits.kept == 0 {
            actions.push(Action::Drop(sequence.id));
            return;
        }
        for (shorter, len) in self.kept.beginnings_of(&sequence.tokens) {
            if self.limits.reach(sequence.deepest, &sequence.rewind, len) < len {
                continue;
            }
            self.kept.remove(shorter);
            actions.push(Action::Drop(shorter));
        }
        let Sequence { id, tokens, deepest, rewind, copied_from, .. } = sequence;
        self.kept.push(Kept { id, tokens, deepest, rewind, copied_from, used: now });
        while self.kept.len() > self.limits.kept
            && let Some(oldest) = self.kept.remove_oldest()
        {
            actions.push(Action::Drop(oldest));
        }
    }
}
