//! Properties of the batch, one situation at a time; the simulated world (`tests/world`) has whole loads.

use super::*;

/// A page of 1 KiB for sixteen tokens.
const CACHE: CacheBytes =
    CacheBytes { page_tokens: 16, page: 1 << 10, windowed_page: 0, window: usize::MAX, kept_behind: 0, states: 0 };

fn limits() -> BatchLimits {
    BatchLimits {
        running: 4,
        waiting: 2,
        wait: Duration::from_secs(10),
        prompt_rows: 256,
        prompt_rows_beside: 64,
        draft: 0,
        cache: CACHE,
        bytes: 1000 << 10,
        is_recurrent: false,
        kept: 4,
        groups: 1,
    }
}

fn arrive(batch: &mut Batch, id: u64, prompt: Vec<u32>) -> Vec<Action> {
    batch.handle(Event::Arrived { first: SequenceId(id), choices: 1, prompt, scored: false }, Time::ZERO)
}

fn ready(batch: &mut Batch) -> (Vec<Action>, Vec<Rows>) {
    let mut actions = batch.handle(Event::Ready, Time::ZERO);
    match actions.pop() {
        Some(Action::Step(rows)) => (actions, rows),
        other => panic!("no step: {other:?}"),
    }
}

/// Computes every row; each sequence that chooses a token chooses `token`.
fn step(batch: &mut Batch, token: u32) -> Vec<Rows> {
    let (_, rows) = ready(batch);
    stepped(batch, &rows, token);
    rows
}

fn stepped(batch: &mut Batch, rows: &[Rows], token: u32) {
    let advance = |rows: &Rows| Advance {
        sequence: rows.sequence,
        computed: rows.start + rows.rows,
        chosen: if rows.choose { vec![token] } else { Vec::new() },
        ended: false,
    };
    batch.handle(Event::Stepped(rows.iter().map(advance).collect()), Time::ZERO);
}

fn end(batch: &mut Batch, id: u64) -> Vec<Action> {
    let computed = batch.tokens(SequenceId(id)).len() - 1;
    let advance = Advance { sequence: SequenceId(id), computed, chosen: Vec::new(), ended: true };
    batch.handle(Event::Stepped(vec![advance]), Time::ZERO)
}

#[test]
fn a_long_prompt_never_stalls_a_running_answer() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, vec![1; 4]);
    step(&mut batch, 9);
    arrive(&mut batch, 1, vec![2; 1000]);
    let mut steps = 0;
    while batch.tokens(SequenceId(1)).len() <= 1000 {
        let rows = step(&mut batch, 9);
        assert_eq!((rows[0].sequence, rows[0].rows, rows[0].choose), (SequenceId(0), 1, true));
        assert!(rows[1].rows <= 64);
        steps += 1;
    }
    assert_eq!((steps, batch.tokens(SequenceId(0)).len()), (1000usize.div_ceil(64), 4 + 1 + 16));
}

#[test]
fn requests_beyond_the_queue_are_refused_with_a_retry_delay() {
    let mut batch = Batch::new(limits());
    for id in 0..6 {
        assert_eq!(arrive(&mut batch, id, vec![1]), []);
    }
    let refused = arrive(&mut batch, 6, vec![1]);
    assert!(matches!(refused[..], [Action::Refuse { first: SequenceId(6), .. }]), "{refused:?}");
    assert_eq!(step(&mut batch, 1).len(), 4);
    end(&mut batch, 0);
    assert_eq!(arrive(&mut batch, 7, vec![1]), []);
}

#[test]
fn sequences_that_wait_too_long_expire_and_running_ones_do_not() {
    let mut batch = Batch::new(limits());
    for id in 0..5 {
        arrive(&mut batch, id, vec![1]);
    }
    step(&mut batch, 1);
    let actions = batch.handle(Event::Ready, Time::from_secs(11));
    assert_eq!(actions[0], Action::Expire(SequenceId(4)));
    assert_eq!((batch.running(), batch.waiting()), (4, 0));
}

#[test]
fn a_conversation_continues_from_its_own_cache() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, (0..40).collect());
    step(&mut batch, 99);
    step(&mut batch, 98);
    end(&mut batch, 0);
    // The same prefix with the answer, then a new question: only the question is computed.
    arrive(&mut batch, 1, (0..40).chain([99, 7, 7, 7]).collect());
    let (actions, rows) = ready(&mut batch);
    let source = Source::Take { from: SequenceId(0), tokens: 41 };
    assert_eq!(actions, [Action::Start { sequence: SequenceId(1), source }]);
    assert_eq!((rows[0].start, rows[0].rows), (41, 3));
}

#[test]
fn a_shared_prefix_is_forked_and_kept_for_others() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, (0..100).collect());
    step(&mut batch, 1);
    end(&mut batch, 0);
    for id in [1, 2] {
        arrive(&mut batch, id, (0..50).chain([id as u32 + 500; 9]).collect());
    }
    let (actions, _) = ready(&mut batch);
    let start =
        |id| Action::Start { sequence: SequenceId(id), source: Source::Fork { from: SequenceId(0), tokens: 50 } };
    assert_eq!(actions, [start(1), start(2)]);
}

#[test]
fn a_prefix_whose_windowed_layers_were_evicted_is_computed_again() {
    let mut batch = Batch::new(BatchLimits { cache: CacheBytes { window: 30, kept_behind: 20, ..CACHE }, ..limits() });
    arrive(&mut batch, 0, (0..40).collect());
    step(&mut batch, 100);
    // One token a step: the last one begins at 99.
    for token in 101..=160 {
        step(&mut batch, token);
    }
    end(&mut batch, 0);
    let source = |batch: &mut Batch, id: u64, prompt: Vec<u32>| {
        arrive(batch, id, prompt);
        let (actions, _) = ready(batch);
        batch.handle(Event::Failed(SequenceId(id)), Time::ZERO);
        let [.., Action::Start { source, .. }] = actions[..] else { panic!("{actions:?}") };
        source
    };
    let told = |tokens: usize| (0..40).chain(100..161).take(tokens).chain([9]).collect::<Vec<u32>>();
    assert_eq!(source(&mut batch, 1, told(78)), Source::Empty, "21 positions before the last step");
    assert_eq!(source(&mut batch, 2, told(79)), Source::Fork { from: SequenceId(0), tokens: 79 });
    // A cache that is no longer than a window and what is kept behind it has lost nothing.
    let mut short = Batch::new(BatchLimits { cache: CacheBytes { window: 30, kept_behind: 20, ..CACHE }, ..limits() });
    arrive(&mut short, 0, (0..40).collect());
    for token in 100..110 {
        step(&mut short, token);
    }
    end(&mut short, 0);
    assert_eq!(source(&mut short, 1, told(10)), Source::Fork { from: SequenceId(0), tokens: 10 });
}

#[test]
fn a_fork_goes_back_no_further_than_what_it_was_made_from() {
    let mut batch = Batch::new(BatchLimits { cache: CacheBytes { window: 30, kept_behind: 20, ..CACHE }, ..limits() });
    arrive(&mut batch, 0, (0..40).collect());
    for token in 100..161 {
        step(&mut batch, token);
    }
    end(&mut batch, 0);
    // Its own first step begins at 79, but its pages are those of a cache that was at 99.
    arrive(&mut batch, 1, (0..40).chain(100..139).chain([9]).collect());
    step(&mut batch, 200);
    end(&mut batch, 1);
    arrive(&mut batch, 2, (0..40).chain(100..130).chain([9]).collect());
    let (actions, _) = ready(&mut batch);
    assert_eq!(actions, [Action::Start { sequence: SequenceId(2), source: Source::Empty }]);
}

#[test]
fn a_kept_beginning_stays_beside_a_longer_cache_that_cannot_go_back_to_it() {
    let mut batch = Batch::new(BatchLimits { cache: CacheBytes { window: 30, kept_behind: 20, ..CACHE }, ..limits() });
    arrive(&mut batch, 0, (0..40).collect());
    arrive(&mut batch, 1, (0..40).chain([7]).collect());
    step(&mut batch, 100);
    end(&mut batch, 0);
    for token in 100..190 {
        step(&mut batch, token);
    }
    assert_eq!(end(&mut batch, 1), [], "nothing is dropped");
    assert!(batch.keeps(SequenceId(0)) && batch.keeps(SequenceId(1)));
}

#[test]
fn a_recurrent_state_goes_back_to_where_it_was_kept_and_the_rest_is_computed_again() {
    let mut batch = Batch::new(BatchLimits { is_recurrent: true, ..limits() });
    arrive(&mut batch, 0, (0..600).collect());
    for token in 1_000..1_300 {
        step(&mut batch, token);
    }
    end(&mut batch, 0);
    // Steps began at 256, 512, 600, 601, … and the last one at 896: states are kept before 256, 512 and 768.
    let told = |tokens: usize| (0..600).chain(1_002..1_300).take(tokens).chain([9_999]).collect::<Vec<u32>>();
    let places = [(250, 0), (511, 256), (512, 512), (700, 512), (895, 768), (896, 896), (897, 897)];
    for (id, (shared, reached)) in (1..).zip(places) {
        arrive(&mut batch, id, told(shared));
        let (actions, rows) = ready(&mut batch);
        let from = SequenceId(0);
        let source = match reached {
            0 => Source::Empty,
            897 => Source::Take { from, tokens: 897 },
            tokens => Source::Fork { from, tokens },
        };
        assert_eq!(actions.last(), Some(&Action::Start { sequence: SequenceId(id), source }), "{shared} shared");
        assert_eq!(rows[0].start, reached);
        batch.handle(Event::Cancelled(SequenceId(id)), Time::ZERO);
    }
}

#[test]
fn choices_of_a_recurrent_model_share_all_but_the_last_token_of_their_prompt() {
    let mut batch = Batch::new(BatchLimits { is_recurrent: true, ..limits() });
    let arrived = Event::Arrived { first: SequenceId(0), choices: 2, prompt: vec![5; 300], scored: false };
    batch.handle(arrived, Time::ZERO);
    step(&mut batch, 1);
    step(&mut batch, 1);
    let (actions, _) = ready(&mut batch);
    let source = Source::Fork { from: SequenceId(0), tokens: 299 };
    assert_eq!(actions, [Action::Start { sequence: SequenceId(1), source }]);
}

#[test]
fn the_states_of_a_sequence_take_memory_beside_its_tokens() {
    let cache = CacheBytes { states: 5 << 10, ..CACHE };
    let mut batch = Batch::new(BatchLimits { bytes: 13 << 10, cache, is_recurrent: true, ..limits() });
    assert_eq!(batch.limits.longest(), 8 * 16);
    arrive(&mut batch, 0, vec![1; 20]);
    arrive(&mut batch, 1, vec![2; 20]);
    // Two pages and states as large as five, of each, and one more page to grow, are sixteen.
    assert_eq!(step(&mut batch, 7).len(), 1);
    assert_eq!(batch.waiting(), 1);
}

#[test]
fn choices_of_one_request_share_its_prompt() {
    let mut batch = Batch::new(limits());
    let arrived = Event::Arrived { first: SequenceId(0), choices: 3, prompt: vec![5; 300], scored: false };
    batch.handle(arrived, Time::ZERO);
    assert_eq!(step(&mut batch, 1).len(), 1);
    assert_eq!(step(&mut batch, 1).len(), 1);
    let (actions, rows) = ready(&mut batch);
    let start =
        |id| Action::Start { sequence: SequenceId(id), source: Source::Fork { from: SequenceId(0), tokens: 299 } };
    assert_eq!(actions, [start(1), start(2)]);
    assert!(rows.iter().all(|rows| rows.rows == 1 && rows.choose), "{rows:?}");
}

#[test]
fn kept_caches_are_dropped_before_a_running_sequence_is_preempted() {
    let mut batch = Batch::new(BatchLimits { bytes: 13 << 10, ..limits() });
    arrive(&mut batch, 0, vec![1; 100]);
    step(&mut batch, 3);
    end(&mut batch, 0);
    arrive(&mut batch, 1, vec![2; 100]);
    let (actions, rows) = ready(&mut batch);
    assert!(actions.contains(&Action::Drop(SequenceId(0))), "{actions:?}");
    stepped(&mut batch, &rows, 4);
    arrive(&mut batch, 2, vec![3; 60]);
    // The newcomer starts as soon as it fits, and is preempted when the other one grows.
    let mut preempted = false;
    for _ in 0..80 {
        let (actions, rows) = ready(&mut batch);
        preempted |= actions.contains(&Action::Drop(SequenceId(2)));
        assert!(!actions.contains(&Action::Drop(SequenceId(1))));
        stepped(&mut batch, &rows, 4);
    }
    assert!(preempted);
    assert_eq!((batch.running(), batch.waiting()), (1, 1));
}

#[test]
fn a_sequence_that_alone_exhausts_memory_fails() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, vec![1; 10]);
    ready(&mut batch);
    let actions = batch.handle(Event::Exhausted(vec![SequenceId(0)]), Time::ZERO);
    // Its ten tokens are one page, of a thousand.
    let failed = Action::Fail { sequence: SequenceId(0), needs: 1 << 10, limit: 1000 << 10 };
    assert_eq!(actions, [Action::Drop(SequenceId(0)), failed]);
    assert!(batch.is_idle());
}

#[test]
fn answers_are_spread_over_one_step_per_stage() {
    let mut batch = Batch::new(BatchLimits { groups: 2, ..limits() });
    for id in 0..4 {
        arrive(&mut batch, id, vec![1]);
    }
    let (_, first) = ready(&mut batch);
    let (_, second) = ready(&mut batch);
    let ids = |rows: &[Rows]| rows.iter().map(|rows| rows.sequence.0).collect::<Vec<_>>();
    assert_eq!((ids(&first), ids(&second)), (vec![0, 1], vec![2, 3]));
    assert_eq!(batch.handle(Event::Ready, Time::ZERO), [], "a sequence in flight joins no other step");
    let advance = |rows: &Rows| Advance { sequence: rows.sequence, computed: 1, chosen: vec![7], ended: false };
    batch.handle(Event::Stepped(first.iter().map(advance).collect()), Time::ZERO);
    assert_eq!(ids(&ready(&mut batch).1), [0, 1]);
}

#[test]
fn the_next_piece_of_a_prompt_need_not_wait_for_the_last_stage() {
    let mut batch = Batch::new(BatchLimits { groups: 2, ..limits() });
    arrive(&mut batch, 0, vec![1; 600]);
    let mut starts = Vec::new();
    loop {
        let (_, rows) = ready(&mut batch);
        starts.push(rows[0].start);
        if rows[0].choose {
            break;
        }
        let computed = rows[0].start + rows[0].rows;
        let advance = Advance { sequence: SequenceId(0), computed, chosen: Vec::new(), ended: false };
        batch.handle(Event::Stepped(vec![advance]), Time::ZERO);
    }
    assert_eq!(starts, [0, 256, 512]);
    assert_eq!(batch.handle(Event::Ready, Time::ZERO), [], "the next token is not known yet");
}

#[test]
fn a_sequence_cancelled_during_a_step_is_not_kept() {
    let mut batch = Batch::new(BatchLimits { groups: 2, ..limits() });
    arrive(&mut batch, 0, vec![1; 20]);
    ready(&mut batch);
    assert_eq!(
        batch.handle(Event::Cancelled(SequenceId(0)), Time::ZERO),
        [Action::Drop(SequenceId(0))],
        "the step in flight still changes its cache"
    );
}

#[test]
fn a_kept_cache_is_given_up_where_a_sequence_that_continues_it_fails() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, (0..40).collect());
    step(&mut batch, 9);
    end(&mut batch, 0);
    arrive(&mut batch, 1, (0..30).chain([77; 10]).collect());
    let (actions, _) = ready(&mut batch);
    let start = Action::Start { sequence: SequenceId(1), source: Source::Fork { from: SequenceId(0), tokens: 30 } };
    assert_eq!(actions, [start]);
    let dropped = batch.handle(Event::Failed(SequenceId(1)), Time::ZERO);
    assert_eq!(dropped, [Action::Drop(SequenceId(1)), Action::Drop(SequenceId(0))]);
    arrive(&mut batch, 2, (0..30).chain([77; 10]).collect());
    let (actions, _) = ready(&mut batch);
    assert_eq!(actions, [Action::Start { sequence: SequenceId(2), source: Source::Empty }]);
}

#[test]
fn the_cache_of_a_cancelled_sequence_is_given_up_where_its_failure_is_reported_later() {
    let mut batch = Batch::new(limits());
    arrive(&mut batch, 0, (0..40).collect());
    step(&mut batch, 9);
    assert_eq!(batch.handle(Event::Cancelled(SequenceId(0)), Time::ZERO), [], "the cache is kept");
    assert!(batch.keeps(SequenceId(0)));
    assert_eq!(batch.handle(Event::Failed(SequenceId(0)), Time::ZERO), [Action::Drop(SequenceId(0))]);
    assert_eq!(batch.handle(Event::Failed(SequenceId(0)), Time::ZERO), []);
    assert!(!batch.keeps(SequenceId(0)));
}

/// Half the layers have a window of 64 positions; 64 more are kept behind it.
const WINDOWED: CacheBytes = CacheBytes { page: 1 << 9, windowed_page: 1 << 9, window: 64, kept_behind: 64, ..CACHE };

#[test]
fn what_windows_give_up_makes_room_for_longer_sequences() {
    // 1,600 tokens if every layer kept all: 100 pages. The windows have 42 at most, and leave 79 to the others.
    let bytes = 100 << 10;
    let limits = |cache| BatchLimits { bytes, cache, ..limits() };
    assert_eq!(limits(CACHE).longest(), 1600);
    let limits = limits(WINDOWED);
    assert_eq!(limits.longest(), (200 - 42) * 16);
    let mut batch = Batch::new(limits);
    let prompt: Vec<u32> = (0..2400).collect();
    arrive(&mut batch, 0, prompt.clone());
    step(&mut batch, 9);
    while batch.tokens(SequenceId(0)).len() == prompt.len() {
        step(&mut batch, 9);
    }
    // Beside a sequence of 800 tokens that has its whole prompt, there is room for another one.
    end(&mut batch, 0);
    for id in [1, 2] {
        arrive(&mut batch, id, (0..800).map(|token| token * 4 + id as u32).collect());
    }
    assert_eq!(step(&mut batch, 9).len(), 2);
}

/// The caches of a stage, as `compute` has them: a step first gives up what its own sequence does not see any more, then takes
/// pages, one sequence after the other.
#[derive(Default)]
struct Caches {
    /// Length and positions given up, by sequence.
    of: std::collections::BTreeMap<SequenceId, (usize, usize)>,
    most: u64,
}

impl Caches {
    fn bytes(&self) -> u64 {
        let of = |&(len, evicted): &(usize, usize)| {
            let pages = len.div_ceil(16) as u64;
            pages * WINDOWED.page + (pages - evicted as u64 / 16) * WINDOWED.windowed_page
        };
        self.of.values().map(of).sum()
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Start { sequence, source } => {
                let cache = match source {
                    Source::Empty => (0, 0),
                    Source::Fork { from, tokens } => (*tokens, self.of[from].1),
                    Source::Take { from, tokens } => (*tokens, self.of.remove(from).unwrap().1),
                };
                assert!(cache.1 <= (cache.0 + 1).saturating_sub(WINDOWED.window), "{source:?} went back too far");
                self.of.insert(*sequence, cache);
            }
            Action::Drop(sequence) => drop(self.of.remove(sequence)),
            Action::Step(rows) => {
                for rows in rows {
                    let (len, evicted) = self.of.get_mut(&rows.sequence).unwrap();
                    assert_eq!(*len, rows.start);
                    let seen_from = (*len + 1).saturating_sub(WINDOWED.window + WINDOWED.kept_behind);
                    *evicted = (*evicted).max(seen_from / 16 * 16);
                    *len = rows.start + rows.rows + rows.draft;
                    self.most = self.most.max(self.bytes());
                }
                // Drafted rows that were wrong are given back.
                rows.iter().for_each(|rows| self.of.get_mut(&rows.sequence).unwrap().0 = rows.start + rows.rows);
            }
            Action::Refuse { .. } | Action::Expire(_) | Action::Fail { .. } => {}
        }
    }
}

#[test]
fn caches_with_windows_never_take_more_memory_than_there_is() {
    let mut random = pangea_units::SplitMix64::new(7);
    let (mut below, mut preempted, mut ended) = (u64::MAX, 0, 0);
    for round in 0..60 {
        let bytes = (20 << 10) + random.below(60 << 10);
        let mut batch = Batch::new(BatchLimits { bytes, cache: WINDOWED, draft: 3, waiting: 8, ..limits() });
        let (mut caches, mut id) = (Caches::default(), 0);
        for _ in 0..400 {
            if random.below(8) == 0 {
                // Some begin like others, so that caches are forked and taken.
                let (len, of) = (1 + random.below(batch.limits.longest() as u64 - 1), random.below(3) as u32);
                let prompt = (0..len as u32).map(|token| token * 4 + of).collect();
                arrive(&mut batch, id, prompt).iter().for_each(|action| caches.act(action));
                id += 1;
            }
            let actions = batch.handle(Event::Ready, Time::ZERO);
            actions.iter().for_each(|action| caches.act(action));
            preempted += actions.iter().filter(|action| matches!(action, Action::Drop(_))).count();
            assert!(!actions.iter().any(|action| matches!(action, Action::Fail { .. })), "{actions:?}");
            let Some(Action::Step(rows)) = actions.last() else { continue };
            let advance = |rows: &Rows| {
                let computed = rows.start + rows.rows;
                let is_full = computed + 2 > batch.limits.longest();
                let ends = rows.choose && (is_full || random.below(100) == 0);
                ended += usize::from(ends);
                let chosen = if rows.choose && !ends { vec![random.below(900) as u32] } else { Vec::new() };
                Advance { sequence: rows.sequence, computed, chosen, ended: ends }
            };
            let advances: Vec<Advance> = rows.iter().map(advance).collect();
            batch.handle(Event::Stepped(advances), Time::ZERO).iter().for_each(|action| caches.act(action));
        }
        assert!(caches.most <= bytes, "round {round}: {} of {bytes}", caches.most);
        below = below.min(bytes - caches.most);
    }
    assert!(preempted > 100 && ended > 100, "{preempted} dropped, {ended} ended: the test shows little");
    assert!(below < 4 << 10, "the memory is never used: {below} bytes stay free");
}
