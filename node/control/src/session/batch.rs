//! Which sequences are computed in the next step, which wait, whose cache is kept, forked or given up: continuous
//! batching as a state machine. It handles events and answers with actions; it has no clock, computes nothing and holds
//! no cache, only token ids and lengths.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

mod pages;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use pages::{Kept, KeptCaches, common_prefix};

/// One sequence being generated: one choice of one request. Whoever makes them never uses a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What the batch may take, all at least 1.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Sequences computed at once. More of them share a pass over the weights, and each waits longer for it.
    pub running: usize,
    /// Sequences that wait; beyond it they are refused.
    pub waiting: usize,
    /// How long a sequence may wait for its first step.
    pub wait: Duration,
    /// Rows of one step where only prompts are computed: how long a newcomer waits at most for its turn.
    pub prompt_rows: usize,
    /// Rows of prompts in a step that running answers take part in: how much a long prompt may slow them down.
    pub prompt_rows_beside: usize,
    /// The longest draft, in tokens; 0 for none. Only an answer that runs alone is drafted: a wrong guess costs everyone.
    pub draft: usize,
    /// Tokens of one page of a cache.
    pub page_tokens: usize,
    /// Bytes of one page, for those who are told why there is none.
    pub page_bytes: u64,
    /// Pages of all caches together.
    pub pages: usize,
    /// Caches of ended sequences that are kept for what begins as they do.
    pub kept: usize,
    /// Steps that are under way at once, one in each stage: answers are spread over so many.
    pub groups: usize,
}

impl BatchLimits {
    /// The most tokens that one sequence can have, all pages being its own.
    pub fn longest(&self) -> usize {
        (self.pages * self.page_tokens).saturating_sub(self.draft)
    }

    fn pages_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request: sequences `first`, `first + 1`, … of the same prompt.
    Arrived {
        /// The number of the first.
        first: SequenceId,
        /// How many, at least 1.
        choices: usize,
        /// The prompt's token ids, at least one and fewer than [`BatchLimits::longest`].
        prompt: Vec<u32>,
        /// Whether every row of the prompt gives logits: then none of it may come from another's cache.
        scored: bool,
    },
    /// Nobody wants a sequence any more.
    Cancelled(SequenceId),
    /// A sequence cannot go on, and what its cache holds is not to be used.
    Failed(SequenceId),
    /// The next step may begin.
    Ready,
    /// Steps that were asked for are done for these sequences; others of the same step may still be under way.
    Stepped(Vec<Advance>),
    /// The step of these sequences could not be had for want of memory; every cache is as it was.
    Exhausted(Vec<SequenceId>),
}

/// How far a step brought one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Which.
    pub sequence: SequenceId,
    /// Tokens that its cache holds now.
    pub computed: usize,
    /// Tokens that were chosen, in order.
    pub chosen: Vec<u32>,
    /// Whether it has ended.
    pub ended: bool,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// There is no place for a request; try again after that long.
    Refuse {
        /// The first of its sequences.
        first: SequenceId,
        /// What the queue will need, as far as can be told.
        retry_after: Duration,
    },
    /// A sequence waited too long.
    Expire(SequenceId),
    /// A sequence needs more memory than there is.
    Fail {
        /// Which.
        sequence: SequenceId,
        /// Bytes of keys and values of the tokens that it has.
        needs: u64,
        /// Bytes for all caches together.
        limit: u64,
    },
    /// A sequence gets a cache.
    Start {
        /// Which.
        sequence: SequenceId,
        /// Where from.
        source: Source,
    },
    /// The cache of a sequence, running before or ended, goes.
    Drop(SequenceId),
    /// Compute these rows in one pass, then say [`Event::Stepped`].
    Step(Vec<Rows>),
}

/// Where the cache of a sequence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is empty.
    Empty,
    /// It shares the first tokens of another's.
    Fork {
        /// Whose cache, of a running or an ended sequence.
        from: SequenceId,
        /// How many tokens.
        tokens: usize,
    },
    /// It is that of an ended sequence, which goes on under another number.
    Take {
        /// Whose cache.
        from: SequenceId,
        /// How many of its tokens stay.
        tokens: usize,
    },
}

/// The part of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Which.
    pub sequence: SequenceId,
    /// Tokens that its cache holds: the position of the first row.
    pub start: usize,
    /// Tokens to compute.
    pub rows: usize,
    /// Whether they are its last ones, so that a token is chosen.
    pub choose: bool,
    /// How many drafted tokens may be computed behind them.
    pub draft: usize,
}

#[derive(Clone, Debug)]
struct Sequence {
    id: SequenceId,
    /// The prompt and what was chosen.
    tokens: Vec<u32>,
    /// Tokens that its cache holds; always fewer than there are.
    computed: usize,
    /// Rows of it, drafted ones included, in a step that is under way: it takes part in no other until that is done.
    under_way: usize,
    /// It waits until that one has computed the prompt that both have.
    leader: Option<SequenceId>,
    scored: bool,
    arrived: Time,
    started: Option<Time>,
}

impl Sequence {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it only needs its last token computed: it is answering.
    fn answers(&self) -> bool {
        self.pending() == 1
    }
}

/// The sequences of one model.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    waiting: VecDeque<Sequence>,
    /// In the order in which they started.
    running: Vec<Sequence>,
    kept: KeptCaches,
    /// How long a sequence runs, averaged over the last ones.
    run_time: Duration,
}

/// Of which the average of running times learns a part from each that ends: the last ten or so count.
const LEARNED_PART: f64 = 0.1;

/// What a client is told to wait at most.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// A common beginning shorter than this is computed again: forking costs about as much.
const MIN_SHARED: usize = 8;

/// Rows of a prompt that all give logits, each as long as the vocabulary: some tens of megabytes in a step.
const SCORED_ROWS: usize = 32;

/// The fewest rows of a prompt that are worth a place in a step.
const MIN_PROMPT_ROWS: usize = 16;

impl Batch {
    /// No sequences yet.
    pub fn new(limits: BatchLimits) -> Batch {
        Batch {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: KeptCaches::default(),
            run_time: Duration::from_secs(1),
        }
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Whether all that there is to do are answers: no prompt is computed, none waits.
    pub fn only_answers(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Sequence::answers)
    }

    /// From the next step on answers go in so many groups, at least 1.
    pub fn set_groups(&mut self, groups: usize) {
        self.limits.groups = groups.max(1);
    }

    /// How many sequences run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a step that is under way computes a sequence.
    pub fn is_under_way(&self, sequence: SequenceId) -> bool {
        self.running.iter().any(|running| running.id == sequence && running.under_way > 0)
    }

    /// Prompt and chosen tokens of a sequence that runs; empty for any other.
    pub fn tokens(&self, sequence: SequenceId) -> &[u32] {
        self.running.iter().find(|running| running.id == sequence).map_or(&[], |running| &running.tokens)
    }

    /// Takes in what happened at `now` (since any fixed moment) and says what to do about it.
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
                let rows = self.plan_within_pages(&mut actions);
                if !rows.is_empty() {
                    for planned in &rows {
                        if let Some(running) = self.running.iter_mut().find(|running| running.id == planned.sequence) {
                            running.under_way = planned.rows + planned.draft;
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
                under_way: 0,
                leader: (choice > 0 && !scored).then_some(first),
                scored,
                arrived: now,
                started: None,
            });
        }
    }

    /// When those that wait now will have started, about.
    fn retry_after(&self) -> Duration {
        let turns = (self.waiting.len() + 1) as f64 / self.limits.running as f64;
        self.run_time.mul_f64(turns).clamp(Duration::from_secs(1), MAX_RETRY)
    }

    fn cancelled(&mut self, id: SequenceId, now: Time, actions: &mut Vec<Action>) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(at) = self.running.iter().position(|running| running.id == id) {
            let sequence = self.running.remove(at);
            if sequence.under_way > 0 {
                // Its cache grows still, by rows that nobody would count.
                actions.push(Action::Drop(sequence.id));
            } else {
                // What was computed serves whoever asks again.
                self.keep(sequence, now, actions);
            }
        }
    }

    fn failed(&mut self, id: SequenceId, actions: &mut Vec<Action>) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(at) = self.running.iter().position(|running| running.id == id) {
            self.running.remove(at);
            actions.push(Action::Drop(id));
        }
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

    /// Gives caches to those that wait, first come first served, while there is room for them.
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
                    self.kept.touch(from, now);
                    sequence.computed = tokens;
                }
                Source::Take { from, tokens } => {
                    self.kept.remove(from);
                    sequence.computed = tokens;
                }
            }
            sequence.started.get_or_insert(now);
            actions.push(Action::Start { sequence: sequence.id, source });
            self.running.push(sequence);
        }
    }

    fn waits_for_its_leader(&self, sequence: &Sequence) -> bool {
        let Some(leader) = sequence.leader else { return false };
        let waits = self.waiting.iter().any(|waiting| waiting.id == leader);
        let runs = self.running.iter().find(|running| running.id == leader);
        waits || runs.is_some_and(|leader| leader.computed + 1 < sequence.tokens.len())
    }

    /// Whether all tokens of a sequence, and one more page for every one that runs, fit beside the others'.
    fn has_room(&self, newcomer: &Sequence) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let whole = |sequence: &Sequence| self.limits.pages_of(sequence.tokens.len() + self.limits.draft) + 1;
        self.running.iter().map(whole).sum::<usize>() + whole(newcomer) <= self.limits.pages
    }

    /// The cache with the longest common beginning.
    fn source(&self, newcomer: &Sequence) -> Source {
        if newcomer.scored {
            return Source::Empty;
        }
        // At least one token is computed, so that there are logits.
        let most = newcomer.tokens.len() - 1;
        let shared = |tokens: &[u32]| common_prefix(tokens, &newcomer.tokens).min(most);
        let running =
            self.running.iter().map(|other| (shared(&other.tokens[..other.computed]), Reverse(other.id))).max();
        let kept = self.kept.iter().map(|kept| (shared(&kept.tokens), Reverse(kept.id), kept.tokens.len())).max();
        match (running, kept) {
            (Some((tokens, Reverse(from))), _)
                if tokens >= MIN_SHARED && kept.is_none_or(|(other, ..)| other < tokens) =>
            {
                Source::Fork { from, tokens }
            }
            (_, Some((tokens, Reverse(from), whole))) if tokens >= MIN_SHARED => {
                // What is hardly longer than what is shared has been overtaken by its continuation.
                let spare = self.limits.pages_of(whole) - self.limits.pages_of(tokens);
                if spare == 0 { Source::Take { from, tokens } } else { Source::Fork { from, tokens } }
            }
            _ => Source::Empty,
        }
    }

    /// The rows of the next step, once there are pages for all of them.
    fn plan_within_pages(&mut self, actions: &mut Vec<Action>) -> Vec<Rows> {
        loop {
            let mut rows = self.plan();
            let mut needed = self.pages_after(&rows);
            while needed + self.kept.pages(&self.limits) > self.limits.pages
                && let Some(oldest) = self.kept.remove_oldest()
            {
                actions.push(Action::Drop(oldest));
            }
            if needed > self.limits.pages {
                rows.iter_mut().for_each(|rows| rows.draft = 0);
                needed = self.pages_after(&rows);
            }
            if needed <= self.limits.pages {
                return rows;
            }
            if !self.preempt(actions) {
                // Memory comes back when a step that is under way is done.
                return Vec::new();
            }
        }
    }

    /// The last to start, of those that no step under way computes, gives its cache up, to compute it again when there is
    /// room: the same tokens come out. Whether there was one.
    fn preempt(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(last) = self.running.iter().rposition(|running| running.under_way == 0) else { return false };
        let mut sequence = self.running.remove(last);
        actions.push(Action::Drop(sequence.id));
        if self.running.is_empty() {
            // Nothing is left that could give way to it.
            let bytes = |pages: usize| self.limits.page_bytes.saturating_mul(pages as u64);
            let needs = bytes(self.limits.pages_of(sequence.tokens.len()));
            actions.push(Action::Fail { sequence: sequence.id, needs, limit: bytes(self.limits.pages) });
            return true;
        }
        sequence.computed = 0;
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

    fn pages_after(&self, rows: &[Rows]) -> usize {
        let of = |sequence: &Sequence| {
            let rows = rows.iter().find(|rows| rows.sequence == sequence.id);
            sequence.computed + sequence.under_way + rows.map_or(0, |rows| rows.rows + rows.draft)
        };
        self.running.iter().map(|sequence| self.limits.pages_of(of(sequence))).sum()
    }

    /// One row for each answer of a group, and prompts share what is left of the step.
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
        sequence.under_way = 0;
        sequence.tokens.extend(advance.chosen);
        sequence.computed = advance.computed.min(sequence.tokens.len());
        if !advance.ended {
            // A sequence that goes on has a token to compute.
            sequence.computed = sequence.computed.min(sequence.tokens.len() - 1);
            return;
        }
        let sequence = self.running.remove(at);
        if let Some(started) = sequence.started {
            let took = now.since(started);
            self.run_time = self.run_time.mul_f64(1.0 - LEARNED_PART) + took.mul_f64(LEARNED_PART);
        }
        self.keep(sequence, now, actions);
    }

    /// Keeps the cache of a sequence that has ended, in place of those that it continues.
    fn keep(&mut self, mut sequence: Sequence, now: Time, actions: &mut Vec<Action>) {
        sequence.tokens.truncate(sequence.computed);
        if sequence.tokens.len() < MIN_SHARED || self.limits.kept == 0 {
            actions.push(Action::Drop(sequence.id));
            return;
        }
        for shorter in self.kept.beginnings_of(&sequence.tokens) {
            self.kept.remove(shorter);
            actions.push(Action::Drop(shorter));
        }
        self.kept.push(Kept { id: sequence.id, tokens: sequence.tokens, used: now });
        while self.kept.len() > self.limits.kept
            && let Some(oldest) = self.kept.remove_oldest()
        {
            actions.push(Action::Drop(oldest));
        }
    }
}
