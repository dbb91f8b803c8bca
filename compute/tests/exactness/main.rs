//! The engine's bits: the same for every number of threads, instruction set, chunking of prompts, mix of sessions,
//! split into stages, truncation and replay; and pinned, so that no change of them goes unseen.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "../model_files/mod.rs"]
mod model_files;
mod tiny;

use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{Cache, Input, Logits, Model, ModelFile, ModelPart, Observed, PageBudget, Recorder, Step};
use pangea_compute::{Cancel, Error, ErrorKind, Isa, Pool};
use pangea_units::{Rewind, SplitMix64};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tiny::{LAYERS, Sizes, Tiny, VOCABULARY, WIDTH, WINDOW};

/// A model cut into stages, each with the pool that it runs on.
struct Stages {
    stages: Vec<(Model, Pool)>,
    budget: PageBudget,
}

impl Stages {
    /// `cuts` are the layers at which stages after the first begin.
    fn load(file: &ModelFile, cuts: &[usize], mut pool: impl FnMut(usize) -> Pool) -> Stages {
        let layers = file.config().layers;
        let starts: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).collect();
        let stages = starts
            .iter()
            .enumerate()
            .map(|(index, start)| {
                let end = starts.get(index + 1).copied().unwrap_or(layers);
                let pool = pool(index);
                let part = ModelPart { layers: *start..end, embedding: index == 0, head: index + 1 == starts.len() };
                (Model::load(file, part, &pool).unwrap(), pool)
            })
            .collect();
        Stages { stages, budget: PageBudget::new(1 << 30) }
    }

    fn session(&self) -> Session {
        Session {
            caches: self.stages.iter().map(|(model, _)| Cache::new(model, &self.budget)).collect(),
            recorder: Recorder::new(),
        }
    }

    /// The next tokens of several sessions as one batch through all stages; everything is recorded. Gives the logits of each
    /// session's last row.
    fn advance(&self, sessions: &mut [(&mut Session, &[u32])]) -> Vec<Vec<f32>> {
        let tokens: Vec<u32> = sessions.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        // Which session and position each row of the batch is.
        let places: Vec<(usize, usize)> = sessions
            .iter()
            .enumerate()
            .flat_map(|(index, (session, tokens))| {
                let from = session.caches[0].len();
                (0..tokens.len()).map(move |row| (index, from + row))
            })
            .collect();
        let mut activations = Vec::new();
        let mut last = Vec::new();
        for (stage, (model, pool)) in self.stages.iter().enumerate() {
            let width = model.config().hidden_size;
            let mut seen: Vec<(usize, usize, Vec<f32>)> = Vec::new();
            let mut observer = |observed: Observed<'_>| {
                for (row, x) in observed.activations.chunks_exact(width).enumerate() {
                    seen.push((observed.first_row + row, observed.layer, x.to_vec()));
                }
            };
            let mut steps: Vec<Step<'_>> = sessions
                .iter_mut()
                .map(|(session, tokens)| Step {
                    cache: &mut session.caches[stage],
                    rows: tokens.len(),
                    logits: Logits::All,
                })
                .collect();
            let input = if stage == 0 { Input::Tokens(&tokens) } else { Input::Activations(&activations) };
            let output = model.forward_observed(pool, &mut steps, input, Some(&mut observer)).unwrap();
            for (row, layer, x) in seen {
                let (session, position) = places[row];
                sessions[session].0.recorder.layer(position, layer, &x);
            }
            activations = output.activations().to_vec();
            if model.part().head {
                for (index, (session, tokens)) in sessions.iter_mut().enumerate() {
                    let vocabulary = model.config().vocabulary;
                    let logits = output.logits(index);
                    assert_eq!(logits.len(), tokens.len() * vocabulary);
                    let end = session.caches[0].len();
                    for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
                        session.recorder.logits(end - tokens.len() + row, logits);
                    }
                    last.push(logits[logits.len() - vocabulary..].to_vec());
                }
            }
        }
        last
    }
}

struct Session {
    caches: Vec<Cache>,
    recorder: Recorder,
}

impl Session {
    fn digest(&self) -> String {
        self.recorder.digest().to_string()
    }

    /// Goes back to `len`, or, where a stage's recurrent states go back to an earlier position, to that one on all stages.
    fn truncate(&mut self, len: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(len));
        let len = self.caches.iter().map(Cache::len).min().unwrap_or(0);
        self.caches.iter_mut().for_each(|cache| cache.truncate(len));
        assert!(self.caches.iter().all(|cache| cache.len() == len), "{:?}", self.caches);
    }
}

fn families() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn pool(threads: usize, isa: Isa) -> Pool {
    Pool::with_isa(threads, isa).unwrap()
}

/// The whole text in one piece, by one thread of the best family.
fn reference(file: &ModelFile, tokens: &[u32]) -> String {
    let stages = Stages::load(file, &[], |_| pool(1, Isa::best()));
    let mut session = stages.session();
    stages.advance(&mut [(&mut session, tokens)]);
    session.digest()
}

fn text(seed: u64, len: usize) -> Vec<u32> {
    let mut random = SplitMix64::new(seed);
    (0..len).map(|_| random.index(VOCABULARY) as u32).collect()
}

const ARCHITECTURES: [&str; 10] =
    ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "glm4moe", "gpt-oss", "qwen35", "qwen35moe", "qwen3next"];
const TYPES: [GgmlType; GgmlType::SUPPORTED.len()] = GgmlType::SUPPORTED;

fn tiny(architecture: &'static str, weights: GgmlType) -> ModelFile {
    ModelFile::from_bytes(tiny::gguf(Tiny { architecture, weights, seed: 7 })).unwrap()
}

#[test]
fn every_architecture_and_weight_type_keeps_its_pinned_bits_on_every_family_and_thread_count() {
    let pinned: HashMap<&str, &str> =
        include_str!("tiny.digests").lines().filter_map(|line| line.split_once(' ')).collect();
    let tokens = text(1, 2 * WINDOW + 5);
    let mut found = String::new();
    for architecture in ARCHITECTURES {
        for ty in TYPES {
            let file = tiny(architecture, ty);
            let name = format!("{architecture}-{}", ty.name());
            let mut digests = Vec::new();
            for isa in families() {
                for threads in 1..=if ty == GgmlType::Q4_1 { 3 } else { 1 } {
                    let stages = Stages::load(&file, &[], |_| pool(threads, isa));
                    let mut session = stages.session();
                    stages.advance(&mut [(&mut session, &tokens)]);
                    digests.push((isa, threads, session.digest()));
                }
            }
            assert!(digests.iter().all(|(_, _, digest)| *digest == digests[0].2), "{name}: {digests:?}");
            found += &format!("{name} {}\n", digests[0].2);
        }
    }
    if std::env::var_os("PANGEA_PIN_DIGESTS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exactness/tiny.digests");
        std::fs::write(path, &found).unwrap();
        return;
    }
    for line in found.lines() {
        let (name, digest) = line.split_once(' ').unwrap();
        assert_eq!(
            pinned.get(name),
            Some(&digest),
            "{name}: the bits changed; where that is meant, raise NUMERICS and pin the digests again with PANGEA_PIN_DIGESTS=1"
        );
    }
}

#[test]
fn chunks_mixes_splits_truncations_replays_and_families_change_no_bit() {
    for (case, architecture) in (0..30u64).zip(ARCHITECTURES.into_iter().cycle()) {
        let mut random = SplitMix64::new(1_000 + case);
        let ty = TYPES[random.index(TYPES.len())];
        let file = tiny(architecture, ty);
        // Cut at random layers, each stage on threads and a family of its own.
        let mut cuts: Vec<usize> = (1..LAYERS).filter(|_| random.index(2) == 0).collect();
        cuts.sort_unstable();
        let available: Vec<Isa> = families().collect();
        let stages =
            Stages::load(&file, &cuts, |_| pool(1 + random.index(2), available[random.index(available.len())]));
        let texts: Vec<Vec<u32>> =
            (0..1 + random.index(8)).map(|s| text(case * 100 + s as u64, 2 + random.index(2 * WINDOW + 9))).collect();
        let mut sessions: Vec<Session> = texts.iter().map(|_| stages.session()).collect();
        // Until every text is through: some of the sessions, each with some of what it has left.
        while sessions.iter().zip(&texts).any(|(session, text)| session.caches[0].len() < text.len()) {
            let mut batch = Vec::new();
            for (session, text) in sessions.iter_mut().zip(&texts) {
                let held = session.caches[0].len();
                match random.index(8) {
                    0 if held > 0 => session.truncate(random.index(held + 1)),
                    1 => {}
                    _ if held < text.len() => {
                        let most = [1, 4, 100][random.index(3)];
                        let rows = 1 + random.index((text.len() - held).min(most));
                        batch.push((session, &text[held..held + rows]));
                    }
                    _ => {}
                }
            }
            if !batch.is_empty() {
                stages.advance(&mut batch);
            }
        }
        for (session, text) in sessions.iter().zip(&texts) {
            assert_eq!(session.digest(), reference(&file, text), "case {case}: {architecture} {}", ty.name());
        }
    }
}

#[test]
fn a_long_context_whose_attention_threads_divide_by_positions_changes_no_bit() {
    // Two key-value heads for three threads, beyond the position from which heads are divided; in one architecture some
    // layers attend to a window alone.
    let sizes = Sizes {
        layers: 2,
        hidden: WIDTH,
        heads: 4,
        kv_heads: 2,
        head: 64,
        intermediate: 256,
        vocabulary: VOCABULARY,
        context: 2_048,
    };
    for architecture in ["llama", "gemma3"] {
        let of = Tiny { architecture, weights: GgmlType::Q8_0, seed: 7 };
        let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
        let tokens = text(6, 1_290);
        let whole = reference(&file, &tokens);
        for isa in families() {
            let stages = Stages::load(&file, &[], |_| pool(3, isa));
            let mut session = stages.session();
            for part in [
                &tokens[..1_278],
                &tokens[1_278..1_279],
                &tokens[1_279..1_282],
                &tokens[1_282..1_283],
                &tokens[1_283..],
            ] {
                stages.advance(&mut [(&mut session, part)]);
            }
            assert_eq!(session.digest(), whole, "{architecture} {isa:?}");
        }
    }
}

#[test]
fn forks_go_their_own_ways_and_share_what_came_before() {
    for architecture in ["gemma3", "qwen3moe", "glm4moe", "gpt-oss"] {
        let file = tiny(architecture, GgmlType::Q8_0);
        let stages = Stages::load(&file, &[], |_| pool(2, Isa::best()));
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
        let stages = Stages::load(&file, &[1 + random.index(LAYERS - 1)], |_| pool(1 + random.index(2), Isa::best()));
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
    let stages = Stages::load(&file, &[], |_| pool(1, Isa::best()));
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
        let stages = Stages::load(&file, &[1 + random.index(2)], |_| pool(1 + random.index(2), Isa::best()));
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
    let stages = Stages::load(&file, &[], |_| pool(2, Isa::best()));
    let (model, pool) = &stages.stages[0];
    let (past, rest) = (text(1, 320), text(2, 600));
    let mut session = stages.session();
    stages.advance(&mut [(&mut session, &past[..300])]);
    stages.advance(&mut [(&mut session, &past[300..])]);
    let used = stages.budget.used_bytes();
    let mut until = |cancel: &Cancel| {
        let mut steps = [Step { cache: &mut session.caches[0], rows: rest.len(), logits: Logits::None }];
        model.forward_until(pool, &mut steps, Input::Tokens(&rest), cancel).map(|_| ())
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
        model.forward_until(pool, &mut steps, Input::Tokens(&rest), &cancel).expect_err("a cancelled pass");
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
    let pool = pool(2, Isa::best());
    for layers in [0..1, 0..2, 2..3, 0..3] {
        let model = Model::load(&file, ModelPart::of_layers(file.config(), layers.clone()), &pool).unwrap();
        let tokens = text(5, 1_500);
        // Of steps of one pass and of several, and of single tokens, in exactly as much memory.
        for chunk in [256, 1_500] {
            let budget = PageBudget::new(Cache::bytes_for(&model, tokens.len() + 40));
            let mut cache = Cache::new(&model, &budget);
            let mut run = |tokens: &[u32]| {
                let activations = vec![0.1; tokens.len() * WIDTH];
                let input = match model.part().embedding {
                    true => Input::Tokens(tokens),
                    false => Input::Activations(&activations),
                };
                let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::None }];
                model.forward(&pool, &mut steps, input).unwrap();
            };
            tokens.chunks(chunk).for_each(&mut run);
            tokens[..40].chunks(1).for_each(&mut run);
            let pages = (tokens.len() as u64 + 40).div_ceil(Cache::PAGE_POSITIONS as u64) * Cache::page_bytes(&model);
            assert!(budget.used_bytes() <= pages + Cache::sequence_bytes(&model), "{layers:?}");
            let kinds = (Cache::page_bytes(&model) > 0, Cache::sequence_bytes(&model) > 0);
            assert_eq!(kinds, (layers.contains(&2), layers.contains(&0)));
        }
    }
    let config = file.config();
    assert_eq!((config.window(), config.is_recurrent()), (None, true));
    assert!(config.sequence_bytes() > 0);
    assert_eq!(config.session_position_bytes(1), config.sequence_bytes());
    assert_eq!(config.session_position_bytes(usize::MAX), config.position_bytes());
}

#[test]
fn what_cannot_be_computed_is_an_error_that_changes_nothing() {
    let file = tiny("llama", GgmlType::Q4_0);
    let pool = pool(2, Isa::best());
    let model = Model::load(&file, ModelPart::whole(file.config()), &pool).unwrap();
    let budget = PageBudget::new(Cache::bytes_for(&model, 128));
    let mut cache = Cache::new(&model, &budget);
    let forward = |cache: &mut Cache, tokens: &[u32]| {
        let mut steps = [Step { cache, rows: tokens.len(), logits: Logits::Last }];
        model.forward(&pool, &mut steps, Input::Tokens(tokens)).map(|_| ())
    };
    forward(&mut cache, &text(1, 100)).unwrap();
    let cases: [(&[u32], &str); 4] = [
        (&[], "at least one token"),
        (&[VOCABULARY as u32], "not in the vocabulary"),
        (&[1; 600], "context of 512"),
        (&[1; 60], "session memory is full"),
    ];
    for (tokens, why) in cases {
        let error = forward(&mut cache, tokens).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!((cache.len(), budget.used_bytes()), (100, budget.max_bytes()), "{why}");
    }
    forward(&mut cache, &text(2, 28)).unwrap();
    let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::Last }];
    assert!(model.forward(&pool, &mut steps, Input::Activations(&[0.0; 256])).is_err());

    let part = ModelPart { layers: 1..3, embedding: false, head: false };
    let stage = Model::load(&file, part, &pool).unwrap();
    let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::Last }];
    assert!(stage.forward(&pool, &mut steps, Input::Activations(&[0.0; 256])).is_err(), "a cache of other layers");
    let budget = PageBudget::new(1 << 20);
    let mut cache = Cache::new(&stage, &budget);
    let mut run = |x: &[f32]| {
        let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::None }];
        stage.forward(&pool, &mut steps, Input::Activations(x)).map(|output| output.activations().to_vec())
    };
    assert!(run(&[f32::NAN; 256]).unwrap_err().to_string().contains("not finite"));
    assert!(run(&[1.0; 255]).is_err());
    assert_eq!(run(&[1.0; 256]).unwrap().len(), 256);
}

/// Finite weights so large that a branch of a layer overflows: quantised, capped or normalised, what is not finite became a
/// number, another one on each instruction set.
#[test]
fn what_is_not_finite_inside_a_branch_is_an_error_on_every_family() {
    let run = |file: &ModelFile, isa: Isa, threads: usize, rows: usize| {
        let pool = pool(threads, isa);
        let model = Model::load(file, ModelPart::whole(file.config()), &pool).unwrap();
        let mut cache = Cache::new(&model, &PageBudget::new(1 << 20));
        let tokens = text(1, rows);
        let mut steps = [Step { cache: &mut cache, rows, logits: Logits::Last }];
        let output = model.forward(&pool, &mut steps, Input::Tokens(&tokens));
        output.map(|mut output| output.logits_mut(0).iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>())
    };
    // Whole vectors, or one element of them, with which no number need overflow; then the families agree on the logits.
    let vectors: [(&str, &str, f32); 15] = [
        ("llama", "blk.1.ffn_norm.weight", 3e38),
        ("llama", "blk.1.attn_norm.weight", 3e38),
        ("llama", "blk.1.ffn_norm.weight", 1e30),
        ("llama", "output_norm.weight", 3e38),
        ("qwen2", "blk.1.attn_q.bias", 3e38),
        ("qwen3", "blk.1.attn_q_norm.weight", 3e38),
        ("qwen3moe", "blk.1.ffn_gate_inp.weight", 3e38),
        ("qwen3moe", "blk.1.ffn_norm.weight", 1e30),
        ("gemma3", "blk.1.attn_q_norm.weight", 1e37),
        ("gemma3", "blk.1.ffn_norm.weight", 1e25),
        ("gemma3", "blk.1.post_ffw_norm.weight", 1e25),
        ("qwen35", "blk.1.attn_norm.weight", 3e38),
        ("qwen35", "blk.0.ssm_conv1d.weight", 3e38),
        ("qwen35", "blk.0.ssm_norm.weight", 3e38),
        ("qwen35moe", "blk.2.ffn_gate_inp_shexp.weight", 3e38),
    ];
    for (architecture, name, value) in vectors {
        for whole in [true, false] {
            let tiny = Tiny { architecture, weights: GgmlType::Q8_0, seed: 7 };
            let bytes = tiny::gguf_with(tiny, |of, elements| {
                let many = if whole { elements.len() } else { 1 };
                if of == name {
                    elements[..many].fill(value);
                }
            });
            let file = ModelFile::from_bytes(bytes).unwrap();
            let mut said = [None, None];
            for isa in families() {
                for (threads, rows) in [(1, 1), (2, 1), (2, 9)] {
                    let why = format!("{name} of {value:e}, whole: {whole}, {isa:?}, {threads} threads, {rows} rows");
                    let result = run(&file, isa, threads, rows).map_err(|error| error.to_string());
                    let is_known = |error: &String| {
                        ["not finite", "exceed half precision", "exceed 2^100"].iter().any(|why| error.contains(why))
                    };
                    assert!(result.as_ref().err().is_none_or(is_known), "{why}: {result:?}");
                    assert!(!whole || result.is_err(), "{why}");
                    let said = said[usize::from(rows > 1)].get_or_insert_with(|| result.clone());
                    assert_eq!(*said, result, "{why}");
                }
            }
        }
    }
}

/// Rows of one pass and threads: every row on every thread, rows of their own, more rows than one group.
const SHAPES: [(usize, usize); 4] = [(1, 1), (1, 2), (9, 2), (9, 3)];

/// Weights so large, in one place each, that its results overflow or cancel to NaN there.
#[test]
fn the_error_names_the_step_and_layer_that_first_gave_no_finite_value() {
    let places: [(&str, &str, &str); 21] = [
        ("gemma3", "token_embd.weight", "the token embeddings"),
        ("llama", "blk.1.attn_norm.weight", "the attention norms of layer 1"),
        ("llama", "blk.1.attn_q.weight", "the queries of layer 1"),
        ("llama", "blk.2.attn_k.weight", "the keys of layer 2"),
        ("llama", "blk.1.attn_v.weight", "the values of layer 1"),
        ("qwen3", "blk.0.attn_q_norm.weight", "the queries of layer 0"),
        ("qwen3", "blk.1.attn_k_norm.weight", "the keys of layer 1"),
        ("llama", "blk.0.attn_output.weight", "the attention outputs of layer 0"),
        ("gemma3", "blk.1.post_attention_norm.weight", "the attention outputs of layer 1"),
        ("llama", "blk.1.ffn_norm.weight", "the feed-forward norms of layer 1"),
        ("llama", "blk.1.ffn_gate.weight", "the gated activations of layer 1"),
        ("gemma3", "blk.2.ffn_up.weight", "the gated activations of layer 2"),
        ("llama", "blk.2.ffn_down.weight", "the feed-forward outputs of layer 2"),
        ("llama", "output_norm.weight", "the output norms"),
        ("llama", "output.weight", "the logits"),
        ("qwen35", "blk.1.attn_qkv.weight", "the delta net's inputs of layer 1"),
        ("qwen35", "blk.0.ssm_alpha.weight", "the delta net's inputs of layer 0"),
        ("qwen3next", "blk.0.ssm_ba.weight", "the delta net's inputs of layer 0"),
        ("qwen35", "blk.0.attn_gate.weight", "the attention results of layer 0"),
        ("qwen35", "blk.1.ssm_out.weight", "the attention outputs of layer 1"),
        ("qwen35moe", "blk.0.ffn_gate_inp_shexp.weight", "the router values of layer 0"),
    ];
    for (architecture, name, step) in places {
        let tiny = Tiny { architecture, weights: GgmlType::F32, seed: 7 };
        let bytes = tiny::gguf_with(tiny, |of, elements| {
            if of == name {
                // Both signs: sums reach an infinity, or add both and are NaN.
                elements.iter_mut().enumerate().for_each(|(i, x)| *x = if i % 3 == 0 { -3e38 } else { 3e38 });
            }
        });
        let file = ModelFile::from_bytes(bytes).unwrap();
        for isa in families() {
            for (rows, threads) in SHAPES {
                let pool = pool(threads, isa);
                let model = Model::load(&file, ModelPart::whole(file.config()), &pool).unwrap();
                let mut cache = Cache::new(&model, &PageBudget::new(1 << 20));
                let tokens = text(1, rows);
                let mut steps = [Step { cache: &mut cache, rows, logits: Logits::All }];
                let error = model.forward(&pool, &mut steps, Input::Tokens(&tokens)).unwrap_err();
                let expected = format!("forward: {step} are not finite");
                assert!(error.to_string().starts_with(&expected), "{name}, {isa:?}, {threads} threads: {error}");
                assert_eq!((error.kind(), cache.len()), (ErrorKind::Internal, 0), "{name}");
            }
        }
    }
}

/// One element of one row, in each place of a block of sixteen lanes and of thirty-two quantised elements.
#[test]
fn an_activation_that_is_not_finite_is_an_error_wherever_it_stands() {
    for ty in [GgmlType::Q4_0, GgmlType::Q6K, GgmlType::F16] {
        let file = tiny("qwen2", ty);
        for isa in families() {
            for (rows, threads) in SHAPES {
                let pool = pool(threads, isa);
                let part = ModelPart { layers: 1..LAYERS, embedding: false, head: false };
                let stage = Model::load(&file, part, &pool).unwrap();
                let mut cache = Cache::new(&stage, &PageBudget::new(1 << 20));
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in [0, 15, 16, 31, 32, WIDTH - 1] {
                        // The others are so small that they vanish beside any number.
                        let mut x = vec![1e-30; rows * WIDTH];
                        x[(rows - 1) * WIDTH + at] = bad;
                        let mut steps = [Step { cache: &mut cache, rows, logits: Logits::None }];
                        let error = stage.forward(&pool, &mut steps, Input::Activations(&x)).unwrap_err().to_string();
                        let expected = "forward: the activations received for layer 1 are not finite";
                        assert!(error.starts_with(expected), "{ty} {isa:?} {rows} rows, {bad} at {at}: {error}");
                        assert_eq!(cache.len(), 0);
                    }
                }
            }
        }
    }
}

/// A cancellation that comes at look number `at`, and the number of looks so far. A pass looks before each piece of its work.
fn cancelled_at(at: usize) -> (Cancel, Arc<AtomicUsize>) {
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    (Cancel::when(move || counted.fetch_add(1, Ordering::Relaxed) >= at), looks)
}

#[test]
fn a_cancelled_pass_computes_no_further_piece_and_changes_nothing() {
    for (threads, rows) in [(1, 1), (2, 1), (3, 9), (2, 300)] {
        let file = tiny("qwen3", GgmlType::Q4_0);
        let stages = Stages::load(&file, &[], |_| pool(threads, Isa::best()));
        let (model, pool) = &stages.stages[0];
        let (past, tokens) = (text(1, 40), text(2, rows));
        let mut session = stages.session();
        stages.advance(&mut [(&mut session, &past)]);
        let used = stages.budget.used_bytes();
        let mut until = |cancel: &Cancel| {
            let mut steps = [Step { cache: &mut session.caches[0], rows, logits: Logits::All }];
            model.forward_until(pool, &mut steps, Input::Tokens(&tokens), cancel).map(|_| ())
        };
        let (never, looks) = cancelled_at(usize::MAX);
        until(&never).unwrap();
        let pieces = looks.load(Ordering::Relaxed);
        // Queries, keys, values, attention, output, gate, up and down of every layer, and the head.
        assert!(pieces > LAYERS * 8, "{pieces} pieces");
        session.truncate(past.len());
        for at in (0..pieces).step_by((pieces / 40).max(1)) {
            let (cancel, looks) = cancelled_at(at);
            let mut steps = [Step { cache: &mut session.caches[0], rows, logits: Logits::All }];
            let result = model.forward_until(pool, &mut steps, Input::Tokens(&tokens), &cancel);
            let error = result.expect_err("a cancelled pass");
            assert!(matches!(error, Error::Cancelled) && error.kind() == ErrorKind::Cancelled, "{error}");
            // Each thread may look at the same time as the first one that sees it, and then computes nothing more.
            let after = looks.load(Ordering::Relaxed) - at;
            assert!(
                after <= threads,
                "{after} looks after the cancellation at piece {at} of {pieces}, {threads} threads"
            );
            assert_eq!((session.caches[0].len(), stages.budget.used_bytes()), (past.len(), used));
        }
        stages.advance(&mut [(&mut session, &tokens)]);
        assert_eq!(session.digest(), reference(&file, &[past, tokens].concat()), "{threads} threads, {rows} rows");
    }
}

/// The time from a cancellation to the return of a pass of 256 rows through layers as large as those of an 8B model.
#[test]
#[ignore = "a measurement, of half a minute"]
fn a_pass_through_layers_of_8b_ends_within_50_ms_of_its_cancellation() {
    let sizes = Sizes {
        layers: 2,
        hidden: 4_096,
        heads: 32,
        kv_heads: 8,
        head: 128,
        intermediate: 14_336,
        vocabulary: VOCABULARY,
        context: 8_192,
    };
    let of = Tiny { architecture: "qwen2", weights: GgmlType::Q4_0, seed: 7 };
    let file = ModelFile::from_bytes(tiny::gguf_of(of, sizes, |_, _| {})).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let stages = Stages::load(&file, &[], |_| pool(threads, Isa::best()));
    let (model, pool) = &stages.stages[0];
    let tokens = text(1, 256);
    let run = |cancel: &Cancel| {
        let mut cache = Cache::new(model, &stages.budget);
        let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::Last }];
        model.forward_until(pool, &mut steps, Input::Tokens(&tokens), cancel).map(|_| ())
    };
    let began = Instant::now();
    run(&Cancel::new()).unwrap();
    let whole = began.elapsed();
    let mut delays: Vec<Duration> = (1..20)
        .map(|part| {
            let cancel = Cancel::new();
            std::thread::scope(|scope| {
                let pass = scope.spawn(|| {
                    assert!(run(&cancel).is_err());
                    Instant::now()
                });
                std::thread::sleep(whole * part / 25);
                let at = Instant::now();
                cancel.cancel();
                pass.join().unwrap().duration_since(at)
            })
        })
        .collect();
    delays.sort_unstable();
    eprintln!(
        "{threads} threads: the pass {whole:?}; after the cancellation {:?} (median), {:?}",
        delays[9], delays[18]
    );
    assert!(delays[18] < Duration::from_millis(50), "{delays:?}");
}

#[test]
fn the_header_tells_what_loading_a_part_takes() {
    let pool = pool(3, Isa::best());
    // Its vocabulary is no whole number of tiles: packed, it is larger than in the file.
    for (architecture, ty) in
        [("llama", GgmlType::Q4_0), ("qwen2", GgmlType::Q6K), ("gemma3", GgmlType::F16), ("qwen3next", GgmlType::Q5_0)]
    {
        let file = tiny(architecture, ty);
        let config = file.config().clone();
        let whole = ModelPart::whole(&config);
        for part in [whole.clone(), ModelPart::of_layers(&config, 0..1), ModelPart::of_layers(&config, 1..LAYERS)] {
            let told = Model::load_bytes(&file, &part, pool.threads()).unwrap();
            let loaded = Model::load(&file, part, &pool).unwrap();
            assert_eq!(told.weights, loaded.memory_bytes(), "{architecture}");
            // Rows are put in order for the architecture whose pairs are neighbours: 16 rows on each thread.
            let row_bytes = (WIDTH / ty.block_len() * ty.block_bytes()) as u64;
            let ordered = if architecture == "llama" { 3 * 16 * row_bytes } else { 0 };
            assert_eq!(told.scratch, ordered, "{architecture}");
        }
        let beyond = ModelPart { layers: 0..LAYERS + 1, ..whole };
        assert_eq!(Model::load_bytes(&file, &beyond, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn damaged_weights_and_ranges_that_are_not_there_are_refused() {
    let pool = pool(1, Isa::best());
    for ty in TYPES {
        let mut bytes = tiny::gguf(Tiny { architecture: "qwen2", weights: ty, seed: 3 });
        let file = ModelFile::from_bytes(bytes.clone()).unwrap();
        let view = file.gguf().require("blk.1.ffn_up.weight").unwrap();
        let at = bytes.windows(64).position(|window| window == &view.bytes[..64]).unwrap();
        // Scales of blocks, or elements, become infinite or NaN.
        let end = at + ty.block_bytes();
        bytes[at..end].fill(0xff);
        let damaged = ModelFile::from_bytes(bytes).unwrap();
        let error = Model::load(&damaged, ModelPart::whole(damaged.config()), &pool).unwrap_err();
        assert!(error.to_string().contains("blk.1.ffn_up.weight"), "{}: {error}", ty.name());
        // Layers before and after it are none of its business.
        Model::load(&damaged, ModelPart { layers: 0..1, embedding: true, head: false }, &pool).unwrap();
        assert!(Model::load(&file, ModelPart { layers: 2..4, embedding: false, head: true }, &pool).is_err());
    }
}

#[test]
fn large_exponents_are_refused_only_where_an_element_overflows() {
    let pool = pool(1, Isa::best());
    let bytes = tiny::gguf(Tiny { architecture: "qwen2", weights: GgmlType::MXFP4, seed: 3 });
    let file = ModelFile::from_bytes(bytes.clone()).unwrap();
    let view = file.gguf().require("blk.1.ffn_up.weight").unwrap();
    let at = bytes.windows(64).position(|window| window == &view.bytes[..64]).unwrap();
    // 3, 4, 0.5 and 6 times powers of two; the largest float is a little less than 2¹²⁸.
    for (exponent, codes, fits) in [(253, 0x55, true), (253, 0xe6, false), (254, 0x11, true), (254, 0x70, false)] {
        let mut bytes = bytes.clone();
        bytes[at] = exponent;
        bytes[at + 1..at + 17].fill(codes);
        let file = ModelFile::from_bytes(bytes).unwrap();
        let loaded = Model::load(&file, ModelPart::whole(file.config()), &pool);
        assert_eq!(loaded.is_ok(), fits, "exponent {exponent}, codes {codes:x}");
    }
}

/// A model to be had by fetching, or `None` with a line that says so.
fn fetched(test: &str, name: &str) -> Option<ModelFile> {
    model_files::find(test, name).map(|path| ModelFile::open(path).unwrap())
}

const MODELS: [(&str, &str); 2] = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", include_str!("smollm2.digest")),
    ("gemma-3-270m-q4_k_m.gguf", include_str!("gemma3.digest")),
];

const PROMPT: &str = "The quick brown fox jumps over the lazy dog. In 1969, men first walked on the Moon;";

#[test]
fn the_fetched_models_keep_their_pinned_bits_in_every_mode() {
    for (name, pinned) in MODELS {
        let Some(file) = fetched("the_fetched_models_keep_their_pinned_bits_in_every_mode", name) else { continue };
        let tokens = file.tokenizer().unwrap().encode(PROMPT, true, false);
        let layers = file.config().layers;
        let mut digests = Vec::new();
        for isa in families() {
            for threads in if isa == Isa::Plain { 2..=2 } else { 1..=2 } {
                let stages = Stages::load(&file, &[], |_| pool(threads, isa));
                let mut session = stages.session();
                stages.advance(&mut [(&mut session, &tokens)]);
                digests.push(session.digest());
            }
        }
        // A token at a time after the first few, over three stages of different families.
        let available: Vec<Isa> = families().filter(|isa| *isa != Isa::Plain).collect();
        let isa = |stage: usize| available.get(stage % available.len().max(1)).copied().unwrap_or(Isa::Plain);
        let stages = Stages::load(&file, &[1, layers / 2], |stage| pool(1 + stage % 2, isa(stage)));
        let mut session = stages.session();
        stages.advance(&mut [(&mut session, &tokens[..5])]);
        for token in &tokens[5..] {
            stages.advance(&mut [(&mut session, &[*token])]);
        }
        digests.push(session.digest());
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{name}: {digests:?}");
        eprintln!("{name}: {}", digests[0]);
        assert_eq!(
            digests[0],
            pinned.trim(),
            "{name}: the bits changed; where that is meant, raise NUMERICS and pin the digests again"
        );
    }
}

#[test]
fn smollm2_knows_the_capital_of_france_far_into_its_context_too() {
    let test = "smollm2_knows_the_capital_of_france_far_into_its_context_too";
    let Some(file) = fetched(test, MODELS[0].0) else { return };
    let tokenizer = file.tokenizer().unwrap();
    let stages = Stages::load(&file, &[], |_| pool(2, Isa::best()));
    let (model, pool) = &stages.stages[0];
    for filling in [0, 4_500] {
        // Prose that says nothing of France, past 4,096 positions.
        let prose = "The river ran quietly between the hills, and nobody in the village spoke of the war any more. ";
        let mut prompt = tokenizer.encode(&prose.repeat(filling / 20 + usize::from(filling > 0)), true, false);
        prompt.truncate(filling);
        prompt.extend(tokenizer.encode(
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
            false,
            true,
        ));
        let mut cache = Cache::new(model, &stages.budget);
        let (mut next, mut answer) = (prompt, Vec::new());
        while answer.len() < 12 {
            let rows = next.len();
            let mut steps = [Step { cache: &mut cache, rows, logits: Logits::Last }];
            let output = model.forward(pool, &mut steps, Input::Tokens(&next)).unwrap();
            let logits = output.logits(0);
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            answer.push(best);
            next = vec![best];
        }
        let answer = tokenizer.decode(&answer, false);
        assert!(answer.contains("Paris"), "after {filling} positions: {answer}");
    }
}
