//! Properties of the batch, one situation at a time; the simulated world (`tests/world`) has whole loads.

use super::*;

fn limits() -> BatchLimits {
    BatchLimits {
        running: 4,
        waiting: 2,
        wait: Duration::from_secs(10),
        prompt_rows: 256,
        prompt_rows_beside: 64,
        draft: 0,
        page_tokens: 16,
        page_bytes: 1 << 10,
        pages: 1000,
        window: usize::MAX,
        kept_behind: 0,
        is_recurrent: false,
        sequence_pages: 0,
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
    let mut batch = Batch::new(BatchLimits { window: 30, kept_behind: 20, ..limits() });
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
    let mut short = Batch::new(BatchLimits { window: 30, kept_behind: 20, ..limits() });
    arrive(&mut short, 0, (0..40).collect());
    for token in 100..110 {
        step(&mut short, token);
    }
    end(&mut short, 0);
    assert_eq!(source(&mut short, 1, told(10)), Source::Fork { from: SequenceId(0), tokens: 10 });
}

#[test]
fn a_fork_goes_back_no_further_than_what_it_was_made_from() {
    let mut batch = Batch::new(BatchLimits { window: 30, kept_behind: 20, ..limits() });
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
    let mut batch = Batch::new(BatchLimits { window: 30, kept_behind: 20, ..limits() });
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
fn the_states_of_a_sequence_take_pages_beside_its_tokens() {
    let mut batch = Batch::new(BatchLimits { pages: 13, sequence_pages: 5, is_recurrent: true, ..limits() });
    assert_eq!(batch.limits.longest(), 8 * 16);
    arrive(&mut batch, 0, vec![1; 20]);
    arrive(&mut batch, 1, vec![2; 20]);
    // Two pages and five of each, and one more to grow, are sixteen.
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
    let mut batch = Batch::new(BatchLimits { pages: 13, ..limits() });
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
