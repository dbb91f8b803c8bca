//! `canonical-grid/1` on small models: whatever order processors and GPUs compute the stages of a session in, an honest one is within
//! every bound, and what no honest engine gives is found, with its stage and position.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod skip;
mod some_gpu;
#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::commit::grid::{self, logit_bound};
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, row_leaf};
use pangea_compute::commit::{
    Compared, Leaf, ModelSource, Profile, Replay, ReplayPace, ReplayedStage, Transcript, merkle_root, replay,
};
use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::sample::{Choice, Sampling, choose};
use pangea_compute::{Cancel, Engine, Pool};
use std::ops::Range;
use std::sync::Arc;
use tiny::{Tiny, VOCABULARY};

/// Models without experts: which experts compute a row may differ between honest engines.
const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

/// A model cut into stages, each on an engine of its own.
struct Line<'a> {
    file: &'a ModelFile,
    stages: Vec<Stage>,
}

/// What came of a session.
struct Session {
    tokens: Vec<u32>,
    prompt_len: usize,
    positions: usize,
    /// What each stage without the head gave: `[positions, hidden_size]`.
    rows: Vec<Vec<f32>>,
    choices: Vec<Choice>,
}

impl<'a> Line<'a> {
    fn load(file: &'a ModelFile, cuts: &[usize], engines: &[Engine]) -> Line<'a> {
        let ends = cuts.iter().copied().chain([file.config().layers]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let load = |(engine, (start, end)): (&Engine, (usize, usize))| {
            engine.load(file, ModelPart::of_layers(file.config(), start..end)).unwrap()
        };
        Line { file, stages: engines.iter().zip(starts.zip(ends)).map(load).collect() }
    }

    /// Reads a prompt and chooses `answer` tokens. `lie` changes what a stage gives at a position.
    fn run(&self, prompt: &[u32], answer: usize, sampling: &Sampling, lie: Option<Lie>) -> Session {
        let mut caches: Vec<_> = self.stages.iter().map(|stage| stage.cache(&stage.page_budget(256 << 20))).collect();
        let (mut tokens, width) = (prompt.to_vec(), self.file.config().hidden_size);
        let (mut rows, mut choices) = (vec![Vec::new(); self.stages.len() - 1], Vec::new());
        let mut done = 0;
        while choices.len() < answer {
            let new = done..tokens.len();
            let mut activations = Vec::new();
            for (index, (stage, cache)) in self.stages.iter().zip(&mut caches).enumerate() {
                let input =
                    if index == 0 { Input::Tokens(&tokens[new.clone()]) } else { Input::Activations(&activations) };
                let step = Step { cache, rows: new.len(), logits: Logits::Last };
                let mut output = stage.forward(&mut [step], input, &Cancel::new()).unwrap();
                let lie = lie.filter(|lie| lie.stage == index && new.contains(&lie.position));
                if stage.part().head {
                    let logits = output.logits(0).to_vec();
                    let mut choice =
                        choose(sampling, prompt, &tokens[prompt.len()..], output.logits_mut(0), None).unwrap();
                    if lie.is_some() {
                        // The least likely one.
                        let worst = (0..logits.len()).min_by(|a, b| logits[*a].total_cmp(&logits[*b]));
                        choice.token = worst.unwrap() as u32;
                    }
                    tokens.push(choice.token);
                    choices.push(choice);
                    break;
                }
                activations = output.into_activations();
                if let Some(lie) = lie {
                    activations[(lie.position - new.start) * width..][..width].rotate_left(width / 2);
                }
                rows[index].extend_from_slice(&activations);
            }
            done = new.end;
        }
        Session { positions: tokens.len() - 1, tokens, prompt_len: prompt.len(), rows, choices }
    }

    fn replay(&self, session: &Session, sampling: &Sampling) -> Replay {
        let engine = cpu();
        let mut load = |part: ModelPart| engine.load(self.file, part).map(Arc::new);
        let mut source = ModelSource { config: self.file.config(), at_once: 8, load: &mut load };
        let stages: Vec<ReplayedStage<'_>> =
            self.stages.iter().zip(0..).map(|(stage, index)| session.stage(stage, index)).collect();
        let transcript = Transcript {
            tokens: &session.tokens,
            prompt_len: session.prompt_len,
            positions: session.positions,
            chosen_from: session.prompt_len - 1,
            sampling,
            grammar: None,
            scored: false,
            told: if sampling.logprobs.is_some() { &session.choices } else { &[] },
        };
        let (cancel, mut between) = (Cancel::new(), |_| {});
        let mut pace = ReplayPace { chunk_rows: 64, cancel: &cancel, between: &mut between };
        replay(&mut source, &stages, transcript, &mut pace).unwrap()
    }
}

impl Session {
    fn stage(&self, stage: &Stage, index: usize) -> ReplayedStage<'_> {
        let Range { start, end } = stage.part().layers.clone();
        let profile = Profile::of(stage.bits()).unwrap();
        let opened = self.rows.get(index).filter(|_| profile == Profile::Grid).map(|rows| &**rows);
        ReplayedStage { layers: start as u32..end as u32, profile, opened }
    }

    /// The leaves of what the last stage gave.
    fn chosen(&self) -> Vec<Leaf> {
        let nothing = (0..self.prompt_len as u64 - 1).map(nothing_leaf);
        nothing
            .chain(self.choices.iter().zip(self.prompt_len as u64 - 1..).map(|(choice, at)| chosen_leaf(at, choice)))
            .collect()
    }

    fn root(&self, index: usize, width: usize) -> [u8; 32] {
        match self.rows.get(index) {
            Some(rows) => {
                merkle_root(&rows.chunks_exact(width).zip(0..).map(|(row, at)| row_leaf(at, row)).collect::<Vec<_>>())
            }
            None => merkle_root(&self.chosen()),
        }
    }
}

/// What a stage gives at a position is changed.
#[derive(Clone, Copy, Debug)]
struct Lie {
    stage: usize,
    position: usize,
}

fn cpu() -> Engine {
    Engine::from(Pool::new(2).unwrap())
}

/// Every order of processors and GPUs for three stages, with at least one GPU.
fn orders(gpu: &Engine) -> Vec<Vec<Engine>> {
    let of = |is_gpu: bool| if is_gpu { gpu.clone() } else { cpu() };
    (1..8).map(|bits| (0..3).map(|stage| of(bits >> stage & 1 == 1)).collect()).collect()
}

fn samplings() -> [Sampling; 3] {
    let drawn = Sampling { seed: 5, temperature: 1.2, repetition_penalty: 1.1, ..Sampling::default() };
    [Sampling::greedy(), drawn, Sampling { logprobs: Some(3), ..Sampling::greedy() }]
}

fn text(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|at| (at * at * 7 + at * 13 + seed * 31 + 5) % VOCABULARY as u32).collect()
}

/// Honest sessions on every mix of engines: every stage is found right, no row comes near its bound.
#[test]
fn honest_stages_on_any_mix_of_engines_are_within_their_bounds() {
    let test = "honest_stages_on_any_mix_of_engines_are_within_their_bounds";
    let Some(gpu) = some_gpu::gpu(test).map(Engine::Gpu) else { return };
    let (mut worst, mut sessions) = (0.0f64, 0);
    for (architecture, weights) in
        ARCHITECTURES.into_iter().zip([GgmlType::Q8_0, GgmlType::Q4_1, GgmlType::Q4K, GgmlType::F16])
    {
        let file = ModelFile::from_bytes(tiny::gguf(Tiny { architecture, weights, seed: 9 })).unwrap();
        for (order, engines) in orders(&gpu).into_iter().enumerate() {
            let line = Line::load(&file, &[1, 2], &engines);
            let sampling = &samplings()[order % 3];
            let session = line.run(&text(30, order as u32), 25, sampling, None);
            let again = line.replay(&session, sampling);
            let name = format!("{architecture}, {engines:?}");
            assert_eq!(again.recomputed, [true; 3], "{name}");
            for (index, stage) in line.stages.iter().enumerate() {
                assert_eq!(again.output(index), session.root(index, file.config().hidden_size), "{name}: {stage:?}");
                let compared = again.compared[index];
                assert_eq!(compared.is_some(), matches!(engines[index], Engine::Gpu(_)), "{name}: {stage:?}");
                assert_eq!(compared.and_then(|compared| compared.unclear()), None, "{name}: {compared:?}");
                if let Some(Compared::Rows(rows)) = compared {
                    worst = worst.max(rows.difference / rows.allowed);
                }
            }
            assert_eq!(again.first_wrong_token(&session.tokens), None, "{name}");
            assert_eq!(again.choices.len(), 25, "{name}");
            sessions += 1;
        }
    }
    assert!(
        sessions >= 20 && worst > 0.0 && worst < 0.5,
        "a row of {sessions} honest sessions took {worst} of its bound"
    );
}

#[test]
fn lies_of_any_stage_are_found_whatever_the_others_are() {
    let test = "lies_of_any_stage_are_found_whatever_the_others_are";
    let Some(gpu) = some_gpu::gpu(test).map(Engine::Gpu) else { return };
    let file =
        ModelFile::from_bytes(tiny::gguf(Tiny { architecture: "llama", weights: GgmlType::Q8_0, seed: 3 })).unwrap();
    let (sampling, width) = (Sampling::greedy(), file.config().hidden_size);
    for engines in orders(&gpu) {
        let line = Line::load(&file, &[1, 2], &engines);
        for (stage, position) in [(0, 4), (1, 25), (2, 24)] {
            let lie = Lie { stage, position };
            let session = line.run(&text(20, 1), 12, &sampling, Some(lie));
            let again = line.replay(&session, &sampling);
            let name = format!("{lie:?} on {engines:?}");
            let by_value = |stage: usize| matches!(engines[stage], Engine::Gpu(_));
            let is_right = |stage: usize| match again.compared[stage] {
                Some(compared) => compared.different().is_none(),
                None => again.output(stage) == session.root(stage, width),
            };
            assert!(!is_right(stage), "{name}");
            if by_value(stage) {
                assert_eq!(again.compared[stage].unwrap().different(), Some(position), "{name}");
            }
            // Stages before the liar are right, and so is one whose input is what the liar opened.
            assert!((0..stage).all(is_right), "{name}");
            if stage == 0 && by_value(0) {
                assert!(is_right(1), "{name}");
            }
        }
    }
}

#[test]
fn nothing_is_concluded_from_rows_that_were_not_opened() {
    let test = "nothing_is_concluded_from_rows_that_were_not_opened";
    let Some(gpu) = some_gpu::gpu(test).map(Engine::Gpu) else { return };
    let file =
        ModelFile::from_bytes(tiny::gguf(Tiny { architecture: "llama", weights: GgmlType::Q8_0, seed: 3 })).unwrap();
    let line = Line::load(&file, &[1, 2], &[gpu.clone(), gpu, cpu()]);
    let sampling = Sampling::greedy();
    let mut session = line.run(&text(20, 1), 12, &sampling, None);
    let first = std::mem::take(&mut session.rows[0]);
    let (cancel, mut between, engine) = (Cancel::new(), |_| {}, cpu());
    let mut pace = ReplayPace { chunk_rows: 64, cancel: &cancel, between: &mut between };
    let mut load = |part: ModelPart| engine.load(&file, part).map(Arc::new);
    let mut source = ModelSource { config: file.config(), at_once: 1, load: &mut load };
    let grid = |layers: Range<u32>, opened| ReplayedStage { layers, profile: Profile::Grid, opened };
    let transcript = Transcript {
        tokens: &session.tokens,
        prompt_len: 20,
        positions: session.positions,
        chosen_from: 19,
        sampling: &sampling,
        grammar: None,
        scored: false,
        told: &[],
    };
    let mut again = |stages: [ReplayedStage<'_>; 3]| replay(&mut source, &stages, transcript, &mut pace);
    // The first stage did not open its rows: of it and the second one nothing is known, of the third everything.
    let found = again([grid(0..1, None), grid(1..2, Some(&session.rows[1])), ReplayedStage::exact(2..3)]).unwrap();
    assert_eq!(found.recomputed, [false, false, true]);
    assert_eq!(found.first_wrong_token(&session.tokens), None);
    let found = again([grid(0..1, Some(&first)), grid(1..2, None), ReplayedStage::exact(2..3)]).unwrap();
    assert_eq!((found.recomputed, found.choices.len()), (vec![true, false, false], 0));
    let short = again([grid(0..1, Some(&first[1..])), grid(1..2, None), ReplayedStage::exact(2..3)]);
    assert!(short.unwrap_err().to_string().contains("other rows"));
}

/// The margins on a real model, as `cargo test --release --test tolerance -- --ignored --nocapture` prints them.
#[test]
#[ignore = "a measurement on models of PANGEA_TEST_MODELS"]
fn how_near_honest_engines_come_to_their_bounds() {
    let Some(gpu) = some_gpu::gpu("how_near_honest_engines_come_to_their_bounds").map(Engine::Gpu) else { return };
    let models = std::path::PathBuf::from(std::env::var("PANGEA_TEST_MODELS").unwrap());
    for name in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let file = ModelFile::open(models.join(name)).unwrap();
        let (layers, width) = (file.config().layers, file.config().hidden_size);
        let tokens: Vec<u32> = (0..96u32).map(|at| if at == 0 { 1 } else { 400 + (at * at * 37) % 9000 }).collect();
        for cut in [1, layers / 3, layers - 1] {
            let stages = [0..cut, cut..layers];
            let rows = |engine: &Engine| {
                let stage = engine.load(&file, ModelPart::of_layers(file.config(), stages[0].clone())).unwrap();
                let mut cache = stage.cache(&stage.page_budget(256 << 20));
                let step = Step { cache: &mut cache, rows: tokens.len(), logits: Logits::None };
                stage.forward(&mut [step], Input::Tokens(&tokens), &Cancel::new()).unwrap().into_activations()
            };
            let (ours, theirs) = (rows(&cpu()), rows(&gpu));
            let compared = grid::compare_rows(&ours, &theirs, width, cut);
            let logits = |engine: &Engine| {
                let stage = engine.load(&file, ModelPart::of_layers(file.config(), stages[1].clone())).unwrap();
                let mut cache = stage.cache(&stage.page_budget(256 << 20));
                let step = Step { cache: &mut cache, rows: tokens.len(), logits: Logits::All };
                let output = stage.forward(&mut [step], Input::Activations(&ours), &Cancel::new()).unwrap();
                output.logits(0).to_vec()
            };
            let (mine, other) = (logits(&cpu()), logits(&gpu));
            let vocabulary = file.config().vocabulary;
            let (mut share, mut widest) = (0.0f64, 0.0f64);
            for (a, b) in mine.chunks(vocabulary).zip(other.chunks(vocabulary)) {
                let bound = logit_bound(a, layers - cut, false);
                let mean = a.iter().zip(b).map(|(x, y)| f64::from(x - y)).sum::<f64>() / vocabulary as f64;
                let off = a.iter().zip(b).map(|(x, y)| (f64::from(x - y) - mean).abs()).fold(0.0, f64::max);
                (share, widest) = (share.max(off / bound), widest.max(bound));
            }
            println!(
                "{name}: rows of layers 0..{cut} differ by {:.2} deviations of {} accepted; one logit of layers {cut}..{layers} by \
                 {share:.2} of its bound, which is {widest:.2} at most",
                compared.difference, compared.allowed
            );
            assert!(compared.unclear.is_none() && share < 1.0);
        }
    }
}
