//! `exact/1` on small models: honest sessions always have the roots of their replay, whatever they ran on; a lie in any one
//! bit of what any stage gives never does, and the replay says which stage and position it was.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, row_leaf, token_leaf};
use pangea_compute::commit::{
    ClaimedOutput, Difference, Leaf, ModelSource, Replay, ReplayPace, ReplayedStage, Transcript, merkle_root, replay,
};
use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{Cache, ModelFile, ModelPart, PageBudget};
use pangea_compute::sample::{Choice, Sampling, choose};
use pangea_compute::{Cancel, Engine, Error, ErrorKind, Isa, Pool};
use pangea_units::SplitMix64;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tiny::{LAYERS, Tiny, VOCABULARY, WIDTH};

const ARCHITECTURES: [&str; 5] = ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3"];

fn tiny(architecture: &'static str, weights: GgmlType, seed: u64) -> ModelFile {
    ModelFile::from_bytes(tiny::gguf(Tiny { architecture, weights, seed })).unwrap()
}

fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

fn random_engine(random: &mut SplitMix64) -> Engine {
    let isas = available();
    Engine::from(Pool::with_isa(1 + random.index(3), isas[random.index(isas.len())]).unwrap())
}

fn at_once(cancel: &Cancel) -> ReplayPace<'_> {
    ReplayPace { chunk_rows: 256, cancel, between: Box::leak(Box::new(|_| {})) }
}

/// A single bit turned over in what a stage gives at a position.
#[derive(Clone, Copy, Debug)]
struct Lie {
    stage: usize,
    position: usize,
    /// Taken modulo the number of bits that are given there.
    bit: usize,
}

/// A model cut into stages, each on an engine of its own.
struct Line {
    stages: Vec<Stage>,
}

/// What came of a session.
struct Session {
    tokens: Vec<u32>,
    prompt_len: usize,
    chosen_from: usize,
    positions: usize,
    /// Of what each stage received and gave.
    received: Vec<Vec<Leaf>>,
    given: Vec<Vec<Leaf>>,
    /// Whether the lie was told before the session ended.
    lied: bool,
}

impl Line {
    fn load(file: &ModelFile, cuts: &[u32], mut engine: impl FnMut() -> Engine) -> Line {
        let stages = ranges(cuts)
            .into_iter()
            .map(|layers| {
                let engine = engine();
                let part = ModelPart::of_layers(file.config(), layers.start as usize..layers.end as usize);
                engine.load(file, part).unwrap()
            })
            .collect();
        Line { stages }
    }

    /// Goes through `tokens` in chunks of `chunk()`, then chooses until there are `positions` rows. An error is that of the
    /// stage that found what it received to be impossible.
    fn run(
        &self,
        mut tokens: Vec<u32>,
        prompt_len: usize,
        positions: usize,
        sampling: &Sampling,
        mut chunk: impl FnMut() -> usize,
        lie: Option<Lie>,
    ) -> Result<Session, pangea_compute::Error> {
        let budget = PageBudget::new(1 << 30);
        let mut caches: Vec<Cache> = self.stages.iter().map(|stage| stage.cache(&budget)).collect();
        let chosen_from = tokens.len() - 1;
        let count = self.stages.len();
        let (mut received, mut given) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        let (mut done, mut lied) = (0, false);
        while done < positions {
            let rows = done..(done + chunk()).min(tokens.len()).min(positions);
            received[0].extend(rows.clone().map(|row| token_leaf(row as u64, tokens[row])));
            let mut activations: Vec<f32> = Vec::new();
            for (stage, model) in self.stages.iter().enumerate() {
                if stage > 0 {
                    let leaves = activations.chunks_exact(WIDTH).zip(rows.start as u64..);
                    received[stage].extend(leaves.map(|(row, position)| row_leaf(position, row)));
                }
                let input =
                    if stage == 0 { Input::Tokens(&tokens[rows.clone()]) } else { Input::Activations(&activations) };
                let logits = if rows.end > chosen_from { Logits::Last } else { Logits::None };
                let step = Step { cache: &mut caches[stage], rows: rows.len(), logits };
                let mut output = model.forward(&mut [step], input, &Cancel::new())?;
                let lie = lie.filter(|lie| lie.stage == stage && rows.contains(&lie.position));
                if stage + 1 < count {
                    activations = output.activations().to_vec();
                    if let Some(lie) = lie {
                        let (element, bit) = (lie.bit / 32 % WIDTH, lie.bit % 32);
                        let value = &mut activations[(lie.position - rows.start) * WIDTH + element];
                        *value = f32::from_bits(value.to_bits() ^ 1 << bit);
                        lied = true;
                    }
                    let leaves = activations.chunks_exact(WIDTH).zip(rows.start as u64..);
                    given[stage].extend(leaves.map(|(row, position)| row_leaf(position, row)));
                    continue;
                }
                for row in rows.clone() {
                    if row < chosen_from {
                        given[stage].push(nothing_leaf(row as u64));
                        continue;
                    }
                    let (prompt, answer) = tokens.split_at(prompt_len);
                    let mut choice = choose(sampling, prompt, answer, output.logits_mut(0), None)?;
                    if let Some(lie) = lie.filter(|lie| lie.position == row) {
                        twist(&mut choice, lie.bit);
                        lied = true;
                    }
                    given[stage].push(chosen_leaf(row as u64, &choice));
                    tokens.push(choice.token);
                }
            }
            done = rows.end;
        }
        Ok(Session { tokens, prompt_len, chosen_from, positions, received, given, lied })
    }
}

/// One bit of a choice.
fn twist(choice: &mut Choice, bit: usize) {
    let mut values: Vec<&mut u32> = vec![&mut choice.token];
    let mut floats: Vec<&mut f32> = Vec::new();
    floats.extend(choice.logprob.as_mut());
    for (token, logprob) in &mut choice.top {
        values.push(token);
        floats.push(logprob);
    }
    let at = bit / 32 % (values.len() + floats.len());
    match at.checked_sub(values.len()) {
        None => *values[at] ^= 1 << (bit % 32),
        Some(at) => *floats[at] = f32::from_bits(floats[at].to_bits() ^ 1 << (bit % 32)),
    }
}

fn ranges(cuts: &[u32]) -> Vec<Range<u32>> {
    let starts: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).collect();
    let ends = starts[1..].iter().copied().chain([LAYERS as u32]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

fn random_cuts(random: &mut SplitMix64) -> Vec<u32> {
    (1..LAYERS as u32).filter(|_| random.index(3) > 0).collect()
}

fn random_sampling(random: &mut SplitMix64) -> Sampling {
    let seed = random.bits();
    match random.index(3) {
        0 => Sampling::greedy(),
        1 => Sampling { seed, temperature: 1.5, repetition_penalty: 1.2, ..Sampling::default() },
        _ => Sampling { seed, presence_penalty: 0.5, logprobs: Some(random.index(4)), ..Sampling::default() },
    }
}

fn text(random: &mut SplitMix64, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.index(VOCABULARY) as u32).collect()
}

impl Session {
    fn transcript<'a>(&'a self, sampling: &'a Sampling) -> Transcript<'a> {
        Transcript {
            tokens: &self.tokens,
            prompt_len: self.prompt_len,
            positions: self.positions,
            chosen_from: self.chosen_from,
            sampling,
            grammar: None,
            scored: false,
            told: &[],
        }
    }

    fn opened(&self) -> Vec<ClaimedOutput<'_>> {
        self.given.iter().map(|leaves| ClaimedOutput { root: merkle_root(leaves), leaves: Some(leaves) }).collect()
    }
}

/// The parts of a model, each loaded when it is first needed, `at_once` layers at most.
struct Parts<'a> {
    file: &'a ModelFile,
    engine: Engine,
    at_once: usize,
    loaded: HashMap<Range<usize>, Arc<Stage>>,
}

impl Parts<'_> {
    fn of(file: &ModelFile, engine: Engine, at_once: usize) -> Parts<'_> {
        Parts { file, engine, at_once, loaded: HashMap::new() }
    }

    fn replay(
        &mut self,
        layers: &[Range<u32>],
        transcript: Transcript<'_>,
        pace: &mut ReplayPace<'_>,
    ) -> Result<Replay, Error> {
        let Parts { file, engine, at_once, loaded } = self;
        let mut load = |part: ModelPart| {
            assert!(part.layers.len() <= *at_once);
            if let Some(model) = loaded.get(&part.layers) {
                return Ok(Arc::clone(model));
            }
            let model = Arc::new(engine.load(file, part.clone())?);
            loaded.insert(part.layers, Arc::clone(&model));
            Ok(model)
        };
        let mut source = ModelSource { config: file.config(), at_once: *at_once, load: &mut load };
        let stages: Vec<_> = layers.iter().cloned().map(ReplayedStage::exact).collect();
        replay(&mut source, &stages, transcript, pace)
    }
}

/// Ten thousand honest rows: no root ever differs from that of the replay.
#[test]
fn honest_sessions_have_the_roots_of_their_replay_on_any_mix_of_machines() {
    let (mut rows, mut case) = (0, 0u64);
    while rows < 10_000 {
        let mut random = SplitMix64::new(5_000 + case);
        let weights = GgmlType::SUPPORTED[random.index(GgmlType::SUPPORTED.len())];
        let file = tiny(ARCHITECTURES[case as usize % ARCHITECTURES.len()], weights, case);
        let cuts = random_cuts(&mut random);
        let line = Line::load(&file, &cuts, || random_engine(&mut random));
        let sampling = random_sampling(&mut random);
        let prompt_len = 1 + random.index(90);
        // After a failover a session begins with some of its answer.
        let length = prompt_len + random.index(30);
        let tokens = text(&mut random, length);
        let positions = length + random.index(100);
        let most = [1, 7, 200][random.index(3)];
        let session = line.run(tokens, prompt_len, positions, &sampling, || 1 + random.index(most), None).unwrap();
        let mut parts = Parts::of(&file, random_engine(&mut random), 1 + random.index(LAYERS));
        let cancel = Cancel::new();
        let mut pace = ReplayPace { chunk_rows: 1 + random.index(300), ..at_once(&cancel) };
        let again = parts.replay(&ranges(&cuts), session.transcript(&sampling), &mut pace).unwrap();
        assert_eq!(again.first_difference(&session.opened()), None, "case {case}");
        assert_eq!(again.outputs, session.given, "case {case}");
        for (stage, received) in session.received.iter().enumerate() {
            assert_eq!(again.predecessor(stage), merkle_root(received), "case {case}");
        }
        let own = |wrong: &(usize, u32)| wrong.0 >= session.chosen_from;
        assert_eq!(again.first_wrong_token(&session.tokens).filter(own), None, "case {case}");
        rows += positions;
        case += 1;
    }
}

/// A thousand lies of one bit: none goes unseen, and the replay names the stage and the position.
#[test]
fn no_lie_in_any_bit_of_any_stage_goes_unseen() {
    let (mut told, mut case, mut impossible) = (0, 0u64, 0);
    while told < 1000 {
        let mut random = SplitMix64::new(9_000 + case);
        let weights = [GgmlType::Q4_1, GgmlType::Q8_0, GgmlType::Q4K][random.index(3)];
        let file = tiny(ARCHITECTURES[case as usize % ARCHITECTURES.len()], weights, case);
        let cuts = random_cuts(&mut random);
        let line = Line::load(&file, &cuts, || Engine::from(Pool::with_isa(1, Isa::best()).unwrap()));
        let mut parts = Parts::of(&file, Engine::from(Pool::with_isa(1, Isa::best()).unwrap()), LAYERS);
        let sampling = random_sampling(&mut random);
        let length = 1 + random.index(8);
        let prompt = text(&mut random, length);
        let positions = prompt.len() + 8;
        for _ in 0..25 {
            let stage = random.index(line.stages.len());
            // The last stage gives nothing before the prompt's last position.
            let first = if stage + 1 == line.stages.len() { prompt.len() - 1 } else { 0 };
            let lie = Lie { stage, position: first + random.index(positions - first), bit: random.index(1 << 20) };
            let session = match line.run(prompt.clone(), prompt.len(), positions, &sampling, || 64, Some(lie)) {
                Ok(session) => session,
                // Not finite, or no token at all: seen at once.
                Err(_) => {
                    impossible += 1;
                    continue;
                }
            };
            assert!(session.lied);
            // A token that is none cannot have been followed by others.
            if session.tokens.iter().any(|token| *token as usize >= VOCABULARY) {
                impossible += 1;
                continue;
            }
            let cancel = Cancel::new();
            let transcript = session.transcript(&sampling);
            let again = parts.replay(&ranges(&cuts), transcript, &mut at_once(&cancel)).unwrap();
            let expected = Difference { stage: lie.stage, position: Some(lie.position) };
            assert_eq!(again.first_difference(&session.opened()), Some(expected), "case {case}: {lie:?}");
            // The roots alone say which stage; what it received was right.
            let closed: Vec<ClaimedOutput<'_>> =
                session.opened().iter().map(|g| ClaimedOutput { leaves: None, ..*g }).collect();
            assert_eq!(again.first_difference(&closed), Some(Difference { position: None, ..expected }));
            assert_eq!(again.predecessor(stage), merkle_root(&session.received[stage]));
            told += 1;
        }
        case += 1;
    }
    // Ids beyond the vocabulary, for the most part.
    assert!(impossible < told, "{impossible} ended early");
}

#[test]
fn tokens_without_a_signature_are_chosen_again_as_well() {
    let file = tiny("llama", GgmlType::Q8_0, 1);
    let mut parts = Parts::of(&file, Engine::from(Pool::new(1).unwrap()), LAYERS);
    let line = Line::load(&file, &[2], || Engine::from(Pool::new(1).unwrap()));
    let sampling = Sampling::greedy();
    let first = line.run(text(&mut SplitMix64::new(3), 10), 10, 20, &sampling, || 64, None).unwrap();
    // Another line goes on from position 15, where the one before had put in a token of its own.
    let mut begun = first.tokens[..16].to_vec();
    begun[12] = (begun[12] + 1) % VOCABULARY as u32;
    let second = line.run(begun, 10, 20, &sampling, || 64, None).unwrap();
    let cancel = Cancel::new();
    let again = parts.replay(&ranges(&[2]), second.transcript(&sampling), &mut at_once(&cancel)).unwrap();
    assert_eq!(again.first_difference(&second.opened()), None, "its own part is right");
    assert_eq!(again.first_wrong_token(&second.tokens), Some((11, first.tokens[12])));
    assert_eq!(again.choices.len(), 11);
}

#[test]
fn a_replay_stops_when_told_to_and_refuses_what_cannot_be() {
    let file = tiny("llama", GgmlType::Q8_0, 1);
    let mut parts = Parts::of(&file, Engine::from(Pool::new(1).unwrap()), LAYERS);
    let tokens = text(&mut SplitMix64::new(3), 40);
    let sampling = Sampling::greedy();
    let transcript = Transcript {
        tokens: &tokens,
        prompt_len: 20,
        positions: 39,
        chosen_from: 19,
        sampling: &sampling,
        grammar: None,
        scored: false,
        told: &[],
    };
    let cancel = Cancel::new();
    let mut passes = Vec::new();
    let mut stop = |done| {
        passes.push(done);
        if done >= 16 {
            cancel.cancel();
        }
    };
    let mut pace = ReplayPace { chunk_rows: 8, cancel: &cancel, between: &mut stop };
    let error = parts.replay(&[0..1, 1..3], transcript, &mut pace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    // One of three layers, then the other two.
    assert_eq!(passes, [0, 2, 5, 8, 10, 13, 18]);

    let cancel = Cancel::new();
    let mut refused = |layers: &[(u32, u32)], transcript: Transcript<'_>| {
        let layers: Vec<Range<u32>> = layers.iter().map(|(start, end)| *start..*end).collect();
        let error = parts.replay(&layers, transcript, &mut at_once(&cancel)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    for layers in [&[(0, 2)][..], &[(0, 1), (2, 3)], &[(1, 3)], &[(0, 1), (1, 4)], &[]] {
        refused(layers, transcript);
    }
    for wrong in [
        Transcript { positions: 0, ..transcript },
        Transcript { positions: 41, ..transcript },
        Transcript { prompt_len: 0, ..transcript },
        Transcript { prompt_len: 41, ..transcript },
        Transcript { chosen_from: 40, ..transcript },
        Transcript { chosen_from: 18, ..transcript },
        Transcript { tokens: &[VOCABULARY as u32; 40], ..transcript },
    ] {
        refused(&[(0, 3)], wrong);
    }
}

/// A last stage could say of a prompt what it liked: no signature covered it.
#[test]
fn the_scores_of_a_prompt_are_part_of_what_the_last_stage_gives() {
    let file = tiny("llama", GgmlType::Q8_0, 1);
    let mut parts = Parts::of(&file, Engine::from(Pool::new(1).unwrap()), LAYERS);
    let tokens = text(&mut SplitMix64::new(3), 12);
    let sampling = Sampling { logprobs: Some(2), ..Sampling::greedy() };
    let (prompt_len, positions, chosen_from) = (10, 11, 9);
    let plain = Transcript {
        tokens: &tokens,
        prompt_len,
        positions,
        chosen_from,
        sampling: &sampling,
        grammar: None,
        scored: false,
        told: &[],
    };
    let cancel = Cancel::new();
    let mut replayed =
        |scored| parts.replay(&[0..1, 1..3], Transcript { scored, ..plain }, &mut at_once(&cancel)).unwrap();
    let (without, with) = (replayed(false), replayed(true));
    assert_eq!((&without.choices, without.scores.len(), with.scores.len()), (&with.choices, 0, 9));
    assert_eq!((&without.input, &without.outputs[0]), (&with.input, &with.outputs[0]));
    let told: Vec<u32> = with.scores.iter().map(|score| score.token).collect();
    assert_eq!(told, tokens[1..10], "each position scores the token that follows it");
    for (position, score) in with.scores.iter().enumerate() {
        assert!(score.logprob.is_some_and(|logprob| logprob <= 0.0) && score.top.len() == 2, "{score:?}");
        assert_eq!(with.outputs[1][position], chosen_leaf(position as u64, score));
        assert_eq!(without.outputs[1][position], nothing_leaf(position as u64));
    }
    assert_eq!(with.outputs[1][9..], without.outputs[1][9..], "the answer's tokens are as ever");
}

#[test]
fn leaves_that_do_not_make_the_root_are_not_believed() {
    let leaves: Vec<Leaf> = (0..4).map(|position| token_leaf(position, 1)).collect();
    let (choices, scores, recomputed) = (Vec::new(), Vec::new(), vec![true]);
    let (input, outputs) = (leaves.clone(), vec![leaves.clone()]);
    let replay = Replay { input, outputs, compared: vec![None], recomputed, choices, scores };
    let mut others = leaves.clone();
    others[2] = token_leaf(2, 9);
    let root = merkle_root(&others);
    let difference = |leaves| replay.first_difference(&[ClaimedOutput { root, leaves }]);
    assert_eq!(difference(Some(&others[..])), Some(Difference { stage: 0, position: Some(2) }));
    assert_eq!(difference(Some(&leaves[..])), Some(Difference { stage: 0, position: None }));
    let short = &leaves[..3];
    let cut = ClaimedOutput { root: merkle_root(short), leaves: Some(short) };
    assert_eq!(replay.first_difference(&[cut]), Some(Difference { stage: 0, position: Some(3) }));
}
