//! What sessions keep: forks, pages that windows leave behind, recurrent states and where they go back to.

use super::cancel::cancelled_at;
use super::*;

#[test]
fn forks_go_their_own_ways_and_share_what_came_before() {
    for architecture in ["gemma3", "qwen3moe", "glm4moe", "gpt-oss"] {
        let file = tiny(architecture, GgmlType::Q8_0);
        let stages = Stages::load(&file, &[], |_| engine(2, Isa::best()));
        let (past, left, right) = (text(1, 40), text(2, 30), text(3, 30));
        let mut first = stages.session();
        stages.advance(&mut [(&mut first, &past)]);
        let mut second =
            Session { caches: first.caches.iter().map(Cache::fork).collect(), recorder: first.recorder.clone() };
        let before = stages.budget.used_bytes();
        stages.advance(&mut [(&mut first, &left), (&mut second, &right)]);
        // One page is shared still, one was copied, one is new on either side.
        assert_eq!(stages.budget.used_bytes(), before / 2 * 5);
        assert_eq!(first.digest(), reference(&file, &[past.clone(), left].concat()), "{architecture}");
        assert_eq!(second.digest(), reference(&file, &[past, right].concat()), "{architecture}");
        drop((first, second));
        assert_eq!(stages.budget.used_bytes(), 0);
    }
}

/// The reference computes all rows in one pass, in which nothing is evicted.
#[test]
fn evicted_pages_of_windowed_layers_change_no_bit_and_leave_memory() {
    for case in 0..6u64 {
        let mut random = SplitMix64::new(2_000 + case);
        let file = tiny("gemma3", TYPES[random.index(TYPES.len())]);
        let stages = Stages::load(&file, &[1 + random.index(LAYERS - 1)], |_| engine(1 + random.index(2), Isa::best()));
        let text = text(case, 500);
        let mut session = stages.session();
        // Where the pages of windowed layers reach back to, at the latest.
        let mut deepest = 0;
        let (mut went_back, mut lost_all) = (0, 0);
        while session.caches[0].len() < text.len() {
            let held = session.caches[0].len();
            if went_back < 6 && held > 300 && random.index(6) == 0 {
                let to = random.index(held);
                session.truncate(to);
                let can = deepest < WINDOW + Cache::KEPT_BEHIND || to + Cache::KEPT_BEHIND >= deepest;
                let left: Vec<usize> = session.caches.iter().map(Cache::len).collect();
                assert!(!can || left.iter().all(|left| *left == to), "back to {to} of {held}: {left:?}");
                went_back += 1;
                if left.iter().any(|left| *left != to) {
                    session.truncate(0);
                    (deepest, lost_all) = (0, lost_all + 1);
                }
                continue;
            }
            let most = [1, 8, 60][random.index(3)];
            let rows = (1 + random.index(most)).min(text.len() - held);
            deepest = deepest.max(held);
            stages.advance(&mut [(&mut session, &text[held..held + rows])]);
        }
        assert_eq!(
            session.digest(),
            reference(&file, &text),
            "case {case}: {went_back} times back, {lost_all} to nothing"
        );
        // Each kind of layers has pages of its own: all of the one, few of the other.
        let page = 2 * 2 * 64 * 2 * Cache::PAGE_POSITIONS as u64;
        let windowed = file.config().window().map_or(0, |_| 2);
        let kept = (WINDOW + Cache::KEPT_BEHIND + 60) as u64 / Cache::PAGE_POSITIONS as u64 + 2;
        let most = page * (16 * (LAYERS as u64 - windowed) + kept * windowed);
        assert!(stages.budget.used_bytes() <= most, "{} of {most} bytes", stages.budget.used_bytes());
    }
}

#[test]
fn a_fork_keeps_what_the_other_session_evicts() {
    let file = tiny("gemma3", GgmlType::Q8_0);
    let stages = Stages::load(&file, &[], |_| engine(1, Isa::best()));
    let (past, rest) = (text(1, 100), text(2, 380));
    let mut first = stages.session();
    stages.advance(&mut [(&mut first, &past)]);
    let mut second =
        Session { caches: first.caches.iter().map(Cache::fork).collect(), recorder: first.recorder.clone() };
    for piece in rest.chunks(7) {
        stages.advance(&mut [(&mut first, piece)]);
    }
    first.caches[0].truncate(50);
    assert_eq!(first.caches[0].len(), 0, "too far back");
    stages.advance(&mut [(&mut second, &rest[..30])]);
    assert_eq!(second.digest(), reference(&file, &[&past, &rest[..30]].concat()));
    drop((first, second));
    assert_eq!(stages.budget.used_bytes(), 0);
}

/// A session over stages some of which have recurrent states, beside the rule that says where it can go back to.
struct Followed {
    session: Session,
    rewind: Rewind,
    text: Vec<u32>,
    /// Positions that were recorded, those included that were given up since.
    recorded: usize,
}

impl Followed {
    fn advance(&mut self, stages: &Stages, tokens: &[u32]) {
        self.rewind.begin();
        stages.advance(&mut [(&mut self.session, tokens)]);
        self.rewind.advance(tokens.len());
        self.text.extend(tokens);
        self.recorded = self.recorded.max(self.text.len());
    }

    fn truncate(&mut self, len: usize) {
        let reached = self.rewind.truncate(len);
        self.session.truncate(len);
        assert_eq!(self.session.caches[0].len(), reached, "back to {len} of {}", self.text.len());
        self.text.truncate(reached);
    }

    fn fork(&self) -> Followed {
        let Session { caches, recorder } = &self.session;
        let session = Session { caches: caches.iter().map(Cache::fork).collect(), recorder: recorder.clone() };
        Followed { session, rewind: self.rewind.clone(), text: self.text.clone(), recorded: self.recorded }
    }
}

/// Steps of a token, of a draft, of prompts in one pass and in several; back by a few positions and by many.
#[test]
fn recurrent_states_go_back_to_where_they_were_kept_with_the_same_bits() {
    for (case, architecture) in (0..6u64).zip(["qwen35", "qwen35moe", "qwen3next"].into_iter().cycle()) {
        let mut random = SplitMix64::new(3_000 + case);
        let mut sizes = tiny::SIZES;
        sizes.context = 2_048;
        let of = Tiny { architecture, weights: TYPES[random.index(TYPES.len())], seed: 7 };
        let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
        // The first stage has recurrent states, the other has both kinds, or attention alone.
        let stages = Stages::load(&file, &[1 + random.index(2)], |_| engine(1 + random.index(2), Isa::best()));
        let mut of_case =
            Followed { session: stages.session(), rewind: Rewind::default(), text: Vec::new(), recorded: 0 };
        let mut forks: Vec<Followed> = Vec::new();
        let (mut went_back, mut exact) = (0, 0);
        while of_case.text.len() < 1_200 {
            let len = of_case.text.len();
            if len > 0 && went_back < 24 && random.index(3) == 0 {
                let by = [1, 15, 40, 700][random.index(4)];
                let to = len.saturating_sub(1 + random.index(by));
                if random.index(4) == 0 {
                    forks.push(of_case.fork());
                }
                of_case.truncate(to);
                went_back += 1;
                exact += usize::from(of_case.text.len() == to);
            }
            let rows = [1, 1, 16, 100, 300][random.index(5)];
            let tokens = text(random.bits(), 1 + random.index(rows));
            of_case.advance(&stages, &tokens);
        }
        assert!(went_back >= 5 && exact >= 2, "{went_back} times back, {exact} of them to the very position");
        assert_eq!(of_case.session.digest(), reference(&file, &of_case.text), "case {case}: {architecture}");
        for mut fork in forks {
            let len = fork.text.len();
            fork.truncate(len - random.index(len.min(30)));
            // Past all that was recorded before the fork.
            fork.advance(&stages, &text(random.bits(), fork.recorded + 3 - fork.text.len()));
            assert_eq!(fork.session.digest(), reference(&file, &fork.text), "case {case}: a fork, {architecture}");
        }
        drop(of_case);
        assert_eq!(stages.budget.used_bytes(), 0);
    }
}

#[test]
fn a_step_that_fails_in_its_last_pass_leaves_recurrent_states_as_they_were() {
    let mut sizes = tiny::SIZES;
    sizes.context = 2_048;
    let of = Tiny { architecture: "qwen35", weights: GgmlType::Q8_0, seed: 7 };
    let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
    let stages = Stages::load(&file, &[], |_| engine(2, Isa::best()));
    let model = &stages.stages[0];
    let (past, rest) = (text(1, 320), text(2, 600));
    let mut session = stages.session();
    stages.advance(&mut [(&mut session, &past[..300])]);
    stages.advance(&mut [(&mut session, &past[300..])]);
    let used = stages.budget.used_bytes();
    let mut until = |cancel: &Cancel| {
        let mut steps = [Step { cache: &mut session.caches[0], rows: rest.len(), logits: Logits::None }];
        model.forward(&mut steps, Input::Tokens(&rest), cancel).map(|_| ())
    };
    let (never, looks) = cancelled_at(usize::MAX);
    until(&never).unwrap();
    let pieces = looks.load(Ordering::Relaxed);
    drop(session);
    let mut session = stages.session();
    stages.advance(&mut [(&mut session, &past[..300])]);
    stages.advance(&mut [(&mut session, &past[300..])]);
    for at in [0, pieces / 2, pieces * 9 / 10] {
        let (cancel, _) = cancelled_at(at);
        let mut steps = [Step { cache: &mut session.caches[0], rows: rest.len(), logits: Logits::None }];
        model.forward(&mut steps, Input::Tokens(&rest), &cancel).expect_err("a cancelled pass");
        assert_eq!((session.caches[0].len(), stages.budget.used_bytes()), (past.len(), used));
    }
    // It still goes back to before its latest step's end, and to the state that was kept after the first one.
    let mut again = Session { caches: vec![session.caches[0].fork()], recorder: session.recorder.clone() };
    again.truncate(310);
    assert_eq!(again.caches[0].len(), 310);
    again.truncate(302);
    assert_eq!(again.caches[0].len(), 300);
    stages.advance(&mut [(&mut again, &past[300..])]);
    stages.advance(&mut [(&mut session, &rest), (&mut again, &rest)]);
    let whole = reference(&file, &[past, rest].concat());
    assert_eq!([session.digest(), again.digest()], [whole.clone(), whole]);
}

#[test]
fn the_memory_of_recurrent_sessions_is_what_they_were_said_to_take() {
    let mut sizes = tiny::SIZES;
    sizes.context = 4_096;
    let of = Tiny { architecture: "qwen35", weights: GgmlType::Q4_0, seed: 7 };
    let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
    let engine = engine(2, Isa::best());
    for layers in [0..1, 0..2, 2..3, 0..3] {
        let model = engine.load(&file, ModelPart::of_layers(file.config(), layers.clone())).unwrap();
        let tokens = text(5, 1_500);
        // Of steps of one pass and of several, and of single tokens, in exactly as much memory.
        for chunk in [256, 1_500] {
            let budget = PageBudget::new(model.cache_shape().bytes_for(tokens.len() + 40));
            let mut cache = model.cache(&budget);
            let mut run = |tokens: &[u32]| {
                let activations = vec![0.1; tokens.len() * WIDTH];
                let input = match model.part().embedding {
                    true => Input::Tokens(tokens),
                    false => Input::Activations(&activations),
                };
                let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::None }];
                model.forward(&mut steps, input, &Cancel::new()).unwrap();
            };
            tokens.chunks(chunk).for_each(&mut run);
            tokens[..40].chunks(1).for_each(&mut run);
            let pages =
                (tokens.len() as u64 + 40).div_ceil(Cache::PAGE_POSITIONS as u64) * model.cache_shape().page_bytes();
            assert!(budget.used_bytes() <= pages + model.cache_shape().sequence_bytes(), "{layers:?}");
            let kinds = (model.cache_shape().page_bytes() > 0, model.cache_shape().sequence_bytes() > 0);
            assert_eq!(kinds, (layers.contains(&2), layers.contains(&0)));
        }
    }
    let config = file.config();
    assert_eq!((config.window(), config.is_recurrent()), (None, true));
    assert!(config.sequence_bytes() > 0);
    assert_eq!(config.session_position_bytes(1), config.sequence_bytes());
    assert_eq!(config.session_position_bytes(usize::MAX), config.position_bytes());
}
