//! The engine's bits: the same for every number of threads, instruction set, certified GPU, chunking of prompts, mix of sessions,
//! split into stages, truncation and replay; and pinned, so that no change of them goes unseen.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod cancel;
#[path = "../model_files/mod.rs"]
mod model_files;
mod refusals;
mod sessions;
#[path = "../skip/mod.rs"]
mod skip;
#[path = "../some_gpu/mod.rs"]
mod some_gpu;
mod tiny;

use pangea_compute::engine::{Bits, Input, Logits, Observed, Stage, Step};
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{Cache, ModelFile, ModelPart, NUMERICS, PageBudget, Recorder};
use pangea_compute::{Cancel, Engine, Error, ErrorKind, Isa, Pool};
use pangea_units::{Rewind, SplitMix64};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tiny::{LAYERS, Sizes, Tiny, VOCABULARY, WIDTH, WINDOW};

/// A model cut into stages, each on an engine of its own.
struct Stages {
    stages: Vec<Stage>,
    /// Of all stages on the processor.
    budget: PageBudget,
    /// Of each stage: the same, or one of a GPU's memory.
    budgets: Vec<PageBudget>,
}

impl Stages {
    /// `cuts` are the layers at which stages after the first begin.
    fn load(file: &ModelFile, cuts: &[usize], mut engine: impl FnMut(usize) -> Engine) -> Stages {
        let layers = file.config().layers;
        let starts: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).collect();
        let budget = PageBudget::new(1 << 30);
        let (stages, budgets) = starts
            .iter()
            .enumerate()
            .map(|(index, start)| {
                let end = starts.get(index + 1).copied().unwrap_or(layers);
                let engine = engine(index);
                let part = ModelPart { layers: *start..end, embedding: index == 0, head: index + 1 == starts.len() };
                let stage = engine.load(file, part).unwrap();
                let own = if let Engine::Cpu(_) = engine { budget.clone() } else { stage.page_budget(1 << 30) };
                (stage, own)
            })
            .unzip();
        Stages { stages, budget, budgets }
    }

    fn session(&self) -> Session {
        Session {
            caches: self.stages.iter().zip(&self.budgets).map(|(stage, budget)| stage.cache(budget)).collect(),
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
        for (stage, model) in self.stages.iter().enumerate() {
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
            let output = model.forward_observed(&mut steps, input, &mut observer).unwrap();
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

fn engine(threads: usize, isa: Isa) -> Engine {
    Engine::from(Pool::with_isa(threads, isa).unwrap())
}

/// The whole text in one piece, by one thread of the best family.
fn reference(file: &ModelFile, tokens: &[u32]) -> String {
    let stages = Stages::load(file, &[], |_| engine(1, Isa::best()));
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
fn the_same_weights_on_another_pool_give_the_same_bits() {
    let file =
        ModelFile::from_bytes(tiny::gguf(Tiny { architecture: "qwen3moe", weights: GgmlType::Q4K, seed: 3 })).unwrap();
    let one = Stages::load(&file, &[1], |_| engine(1, Isa::best()));
    let pools = families().map(|isa| Arc::new(Pool::with_isa(3, isa).unwrap()));
    let (mut session, tokens) = (one.session(), [3, 1, 4, 1, 5, 9, 2, 6]);
    one.advance(&mut [(&mut session, &tokens)]);
    for pool in pools {
        let stages = one.stages.iter().map(|stage| stage.with_pool(Arc::clone(&pool))).collect();
        let budget = PageBudget::new(1 << 30);
        let other = Stages { stages, budgets: vec![budget.clone(); 2], budget };
        assert!(other.stages[0].shares_weights(&one.stages[0]) && !other.stages[0].shares_weights(&one.stages[1]));
        assert_eq!((other.stages[0].threads(), other.stages[0].bits()), (3, Bits::Exact(NUMERICS)));
        let mut again = other.session();
        other.advance(&mut [(&mut again, &tokens)]);
        assert_eq!(again.digest(), session.digest(), "{:?}", pool);
        // A session goes on wherever its stages are computed.
        let caches = session.caches.iter().map(Cache::fork).collect();
        let mut next = Session { caches, recorder: session.recorder.clone() };
        other.advance(&mut [(&mut next, &[7])]);
        one.advance(&mut [(&mut again, &[7])]);
        assert_eq!(again.digest(), next.digest());
    }
    assert_eq!(Bits::Tolerance("canonical-grid/1").to_string(), "tolerance(canonical-grid/1)");
    assert_eq!(Bits::Exact(1).to_string(), "exact(1)");
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
                    let stages = Stages::load(&file, &[], |_| engine(threads, isa));
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

/// Architectures whose layers a GPU computes.
const ON_GPU: [&str; 7] = ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "glm4moe", "gpt-oss"];

/// An engine with the bits of the processor on the GPU of this machine.
fn exact_gpu(test: &str) -> Option<Engine> {
    some_gpu::gpu(test).map(|gpu| Engine::ExactGpu(gpu.certify().unwrap()))
}

#[test]
fn a_certified_gpu_keeps_the_pinned_bits_of_every_architecture_and_weight_type() {
    let Some(gpu) = exact_gpu("a_certified_gpu_keeps_the_pinned_bits_of_every_architecture_and_weight_type") else {
        return;
    };
    let pinned: HashMap<&str, &str> =
        include_str!("tiny.digests").lines().filter_map(|line| line.split_once(' ')).collect();
    let tokens = text(1, 2 * WINDOW + 5);
    for (at, architecture) in ON_GPU.into_iter().enumerate() {
        for (index, ty) in TYPES.into_iter().enumerate() {
            // All types in one architecture with dense layers and in one with experts; in the others some.
            if !["llama", "qwen3moe"].contains(&architecture) && index % ON_GPU.len() != at {
                continue;
            }
            let name = format!("{architecture}-{}", ty.name());
            let stages = Stages::load(&tiny(architecture, ty), &[], |_| gpu.clone());
            assert_eq!(stages.stages[0].bits(), Bits::Exact(NUMERICS));
            let mut session = stages.session();
            stages.advance(&mut [(&mut session, &tokens)]);
            assert_eq!(Some(&session.digest().as_str()), pinned.get(name.as_str()), "{name}");
        }
    }
}

#[test]
fn stages_on_a_certified_gpu_and_the_processor_in_any_chunks_change_no_bit() {
    let test = "stages_on_a_certified_gpu_and_the_processor_in_any_chunks_change_no_bit";
    let Some(gpu) = exact_gpu(test) else { return };
    for (case, architecture) in (0..).zip(ON_GPU) {
        let file = tiny(architecture, [GgmlType::Q4K, GgmlType::Q8_0][case % 2]);
        let tokens = text(case as u64, WINDOW + 20);
        let whole = reference(&file, &tokens);
        let engines = [gpu.clone(), engine(2, Isa::best())];
        let stages = Stages::load(&file, &[1], |stage| engines[(stage + case) % 2].clone());
        let (mut session, mut other) = (stages.session(), stages.session());
        stages.advance(&mut [(&mut session, &tokens[..9])]);
        stages.advance(&mut [(&mut other, &tokens[..2]), (&mut session, &tokens[9..])]);
        session.truncate(5);
        stages.advance(&mut [(&mut session, &tokens[5..6])]);
        stages.advance(&mut [(&mut session, &tokens[6..])]);
        assert_eq!(session.digest(), whole, "{architecture}");
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
            Stages::load(&file, &cuts, |_| engine(1 + random.index(2), available[random.index(available.len())]));
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
            let stages = Stages::load(&file, &[], |_| engine(3, isa));
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
                let stages = Stages::load(&file, &[], |_| engine(threads, isa));
                let mut session = stages.session();
                stages.advance(&mut [(&mut session, &tokens)]);
                digests.push(session.digest());
            }
        }
        // A token at a time after the first few, over three stages of different families.
        let available: Vec<Isa> = families().filter(|isa| *isa != Isa::Plain).collect();
        let isa = |stage: usize| available.get(stage % available.len().max(1)).copied().unwrap_or(Isa::Plain);
        let stages = Stages::load(&file, &[1, layers / 2], |stage| engine(1 + stage % 2, isa(stage)));
        let mut session = stages.session();
        stages.advance(&mut [(&mut session, &tokens[..5])]);
        for token in &tokens[5..] {
            stages.advance(&mut [(&mut session, &[*token])]);
        }
        digests.push(session.digest());
        if let Some(gpu) = exact_gpu("the_fetched_models_keep_their_pinned_bits_in_every_mode") {
            let stages = Stages::load(&file, &[], |_| gpu.clone());
            let mut session = stages.session();
            stages.advance(&mut [(&mut session, &tokens)]);
            digests.push(session.digest());
        }
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
    let stages = Stages::load(&file, &[], |_| engine(2, Isa::best()));
    let model = &stages.stages[0];
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
        let mut cache = model.cache(&stages.budget);
        let (mut next, mut answer) = (prompt, Vec::new());
        while answer.len() < 12 {
            let rows = next.len();
            let mut steps = [Step { cache: &mut cache, rows, logits: Logits::Last }];
            let output = model.forward(&mut steps, Input::Tokens(&next), &Cancel::new()).unwrap();
            let logits = output.logits(0);
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            answer.push(best);
            next = vec![best];
        }
        let answer = tokenizer.decode(&answer, false);
        assert!(answer.contains("Paris"), "after {filling} positions: {answer}");
    }
}
