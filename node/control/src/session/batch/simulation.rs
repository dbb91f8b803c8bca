//! The batch with a simulated model: a sequence's next token is a hash of the tokens before it, and a cache is the list of
//! its tokens. Seeds drive arrivals, cancellations, drafts and exhaustion; every answer must equal the one computed alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pangea_units::SplitMix64;
use proptest::prelude::*;

use super::*;

/// The simulated model: the token that follows these tokens in this choice of a request.
fn follows(choice: u64, tokens: &[u32]) -> u32 {
    let hash = tokens.iter().fold(choice, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 20) as u32 % 50
}

struct Wanted {
    choice: u64,
    prompt: Vec<u32>,
    answer: usize,
}

#[derive(Default)]
struct World {
    wanted: BTreeMap<SequenceId, Wanted>,
    caches: BTreeMap<SequenceId, Vec<u32>>,
    answers: BTreeMap<SequenceId, Vec<u32>>,
    refused: BTreeSet<SequenceId>,
    gone: BTreeSet<SequenceId>,
    /// Chosen tokens in transit from the last stage to the first.
    under_way: VecDeque<Vec<Advance>>,
    steps: usize,
    computed_rows: usize,
}

impl World {
    fn alone(&self, sequence: SequenceId) -> Vec<u32> {
        let wanted = &self.wanted[&sequence];
        let mut tokens = wanted.prompt.clone();
        for _ in 0..wanted.answer {
            tokens.push(follows(wanted.choice, &tokens));
        }
        tokens.split_off(wanted.prompt.len())
    }

    /// Executes the batch's actions; returns the following event, if any.
    fn act(
        &mut self,
        batch: &Batch,
        limits: &BatchLimits,
        actions: Vec<Action>,
        random: &mut SplitMix64,
    ) -> Option<Event> {
        let mut next = None;
        for action in actions {
            match action {
                Action::Refuse { first, retry_after } => {
                    assert!(retry_after >= Duration::from_secs(1) && retry_after <= MAX_RETRY);
                    self.refused.insert(first);
                }
                Action::Expire(sequence) | Action::Fail { sequence, .. } => {
                    self.gone.insert(sequence);
                }
                Action::Start { sequence, source } => {
                    let cache = match source {
                        Source::Empty => Vec::new(),
                        Source::Fork { from, tokens } => self.caches[&from][..tokens].to_vec(),
                        Source::Take { from, tokens } => {
                            let mut cache = self.caches.remove(&from).expect("a cache that is taken exists");
                            cache.truncate(tokens);
                            cache
                        }
                    };
                    assert!(batch.tokens(sequence).starts_with(&cache), "a cache holds the sequence's own tokens");
                    assert!(self.caches.insert(sequence, cache).is_none());
                }
                Action::Drop(sequence) => assert!(self.caches.remove(&sequence).is_some(), "{sequence:?}"),
                Action::Step(rows) => next = Some(self.step(batch, limits, &rows, random)),
            }
        }
        let pages: usize = self.caches.values().map(|cache| limits.pages_of(cache.len())).sum();
        assert!(pages <= limits.pages, "{pages} pages");
        next
    }

    fn step(&mut self, batch: &Batch, limits: &BatchLimits, rows: &[Rows], random: &mut SplitMix64) -> Event {
        self.steps += 1;
        if random.index(40) == 0 {
            return Event::Exhausted(rows.iter().map(|rows| rows.sequence).collect());
        }
        let prompts = rows.iter().filter(|rows| batch.tokens(rows.sequence).len() - rows.start > 1);
        assert!(prompts.map(|rows| rows.rows).sum::<usize>() <= limits.prompt_rows);
        assert!(rows.iter().all(|drafted| drafted.draft == 0 || rows.len() == 1));
        let mut advances = Vec::new();
        for rows in rows {
            let wanted = &self.wanted[&rows.sequence];
            let cache = self.caches.get_mut(&rows.sequence).expect("a computed sequence has a cache");
            let mut tokens = batch.tokens(rows.sequence).to_vec();
            assert_eq!((cache.len(), rows.choose), (rows.start, rows.start + rows.rows == tokens.len()));
            assert!(rows.rows > 0 && rows.start + rows.rows <= tokens.len());
            cache.extend(&tokens[rows.start..][..rows.rows]);
            self.computed_rows += rows.rows;
            let mut chosen = Vec::new();
            let mut drafts_left = rows.draft;
            let ended = |tokens: &[u32]| tokens.len() == wanted.prompt.len() + wanted.answer;
            let mut choosing = rows.choose;
            while choosing {
                let token = follows(wanted.choice, &tokens);
                chosen.push(token);
                tokens.push(token);
                // A drafted token is right three times in four.
                choosing = !ended(&tokens) && drafts_left > 0 && random.index(4) > 0;
                if choosing {
                    drafts_left -= 1;
                    cache.push(token);
                }
            }
            let ended = ended(&tokens);
            if ended {
                self.answers.insert(rows.sequence, tokens[wanted.prompt.len()..].to_vec());
            }
            advances.push(Advance { sequence: rows.sequence, computed: cache.len(), chosen, ended });
        }
        if limits.groups == 1 {
            return Event::Stepped(advances);
        }
        // The first stage knows at once how far prompts are, and learns the chosen tokens later.
        let chose = |advance: &Advance| rows.iter().any(|rows| rows.sequence == advance.sequence && rows.choose);
        let (chose, known): (Vec<_>, Vec<_>) = advances.into_iter().partition(chose);
        self.under_way.push_back(chose);
        Event::Stepped(known)
    }
}

fn limits(random: &mut SplitMix64) -> BatchLimits {
    BatchLimits {
        running: 1 + random.index(8),
        waiting: 1 + random.index(12),
        wait: Duration::from_secs(1 << 40),
        prompt_rows: 16 + random.index(64),
        prompt_rows_beside: 16,
        draft: random.index(5),
        page_tokens: 1 + random.index(32),
        page_bytes: 1 << 10,
        pages: 40 + random.index(300),
        kept: random.index(6),
        groups: 1 + random.index(3),
    }
}

/// Runs a random load to its end.
fn run(seed: u64) -> (World, Batch) {
    let mut random = SplitMix64::new(seed);
    let mut limits = limits(&mut random);
    limits.pages = limits.pages.max(200usize.div_ceil(limits.page_tokens));
    let mut batch = Batch::new(limits);
    let mut world = World::default();
    let (mut next, mut arriving, mut now) = (0, 30 + random.index(40), Time::ZERO);
    let mut patience = 100_000;
    while arriving > 0 || !batch.is_idle() {
        patience -= 1;
        assert!(patience > 0, "the load does not end: {batch:?}");
        now += Duration::from_millis(5);
        let mut events = Vec::new();
        if arriving > 0 && (random.index(3) == 0 || batch.is_idle()) {
            arriving -= 1;
            let choices = 1 + random.index(3);
            // Prompts often have a common prefix.
            let shared = (0..random.index(90) as u32).map(|at| at % 7);
            let mut prompt: Vec<u32> =
                shared.chain((0..1 + random.index(30)).map(|_| random.index(50) as u32)).collect();
            // And some repeat an earlier prompt.
            if random.index(4) == 0 && next > 0 {
                prompt.clone_from(&world.wanted[&SequenceId(random.index(next as usize) as u64)].prompt);
            }
            let answer = 1 + random.index(60);
            for choice in 0..choices as u64 {
                let wanted = Wanted { choice, prompt: prompt.clone(), answer };
                world.wanted.insert(SequenceId(next + choice), wanted);
            }
            events.push(Event::Arrived { first: SequenceId(next), choices, prompt, scored: random.index(10) == 0 });
            next += choices as u64;
        }
        if random.index(25) == 0 && next > 0 {
            let sequence = SequenceId(random.index(next as usize) as u64);
            if !world.answers.contains_key(&sequence) {
                world.gone.insert(sequence);
                events.push(if random.index(2) == 0 { Event::Cancelled(sequence) } else { Event::Failed(sequence) });
            }
        }
        let full = world.under_way.len() > limits.groups;
        if (full || random.index(2) == 0)
            && let Some(advances) = world.under_way.pop_front()
        {
            events.push(Event::Stepped(advances));
        }
        if !full {
            events.push(Event::Ready);
        }
        for event in events {
            let mut event = Some(event);
            while let Some(happened) = event.take() {
                let actions = batch.handle(happened, now);
                event = world.act(&batch, &limits, actions, &mut random);
            }
        }
        assert!(
            batch.running() <= limits.running && batch.running() + batch.waiting() <= limits.running + limits.waiting
        );
    }
    (world, batch)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_equals_the_one_computed_alone_within_all_budgets(seed: u64) {
        let (world, _) = run(seed);
        let mut refused = false;
        for id in 0..world.wanted.len() as u64 {
            let id = SequenceId(id);
            // The choices of a refused request follow its first.
            refused = world.refused.contains(&id) || (refused && world.wanted[&id].choice > 0);
            match world.answers.get(&id) {
                Some(answer) => prop_assert_eq!(answer, &world.alone(id)),
                None => prop_assert!(refused || world.gone.contains(&id), "{:?} was forgotten", id),
            }
        }
    }

    #[test]
    fn the_same_load_takes_the_same_steps(seed in 0u64..50) {
        let (one, other) = (run(seed).0, run(seed).0);
        prop_assert_eq!((one.steps, one.computed_rows), (other.steps, other.computed_rows));
    }
}
