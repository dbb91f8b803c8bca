//! The engines against an independent judge: a naive f64 forward pass from the papers, over tiny random models of every
//! architecture and weight type. Pinned digests fix the CPU's bits, right or wrong; here they are held to be right. A GPU, software
//! where there is no other, is held to the same.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod llama_cpp;
#[path = "../model_files/mod.rs"]
mod model_files;
mod reference;
#[path = "../skip/mod.rs"]
mod skip;
#[path = "../some_gpu/mod.rs"]
mod some_gpu;
#[path = "../exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;
mod weights;

use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Cancel, Engine, Pool};
use pangea_units::SplitMix64;
use reference::{Reference, Row, softmax};
use tiny::{Tiny, VOCABULARY, WINDOW};

/// Relative error of a row's logits, at most, without rounding of activations. The judge rounds keys and values to half precision,
/// too, but one in a thousand of them to the other side, which is 2⁻¹¹ of it.
const FLOAT_ERROR: f64 = 5e-4;

/// The same with quantised weights, whose activations are rounded to 8 bits: a block of 32 has a step of its largest element
/// / 127, which is an error of about 0.5 % of a product; a dozen products in three layers add theirs in all directions.
const QUANTIZED_ERROR: f64 = 0.04;

/// The CPU.
fn cpu() -> Engine {
    Engine::from(Pool::new(2).unwrap())
}

/// Every row of a text by an engine, in chunks.
fn logits_of(model: &Stage, tokens: &[u32], chunk: usize) -> Vec<Vec<f64>> {
    let mut cache = model.cache(&model.page_budget(1 << 30));
    let mut rows = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::All }];
        let output = model.forward(&mut steps, Input::Tokens(tokens), &Cancel::new()).unwrap();
        let logits = output.logits(0).chunks_exact(VOCABULARY);
        rows.extend(logits.map(|row| row.iter().map(|logit| f64::from(*logit)).collect::<Vec<f64>>()));
    }
    rows
}

/// Spread of logits around their mean, as softmax sees them.
fn deviation(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = logits.clone().count() as f64;
    let mean = logits.clone().sum::<f64>() / count;
    (logits.map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// The relative error of a row.
fn relative_error(ours: &[f64], row: &Row) -> f64 {
    let spread = deviation(row.logits.iter().copied());
    deviation(ours.iter().zip(&row.logits).map(|(ours, theirs)| ours - theirs)) / spread
}

/// Holds a row to the reference; returns its relative error.
fn judge(name: &str, ours: &[f64], row: &Row, bound: f64) -> f64 {
    let spread = deviation(row.logits.iter().copied());
    let error = relative_error(ours, row);
    assert!(error <= bound, "{name}: a relative error of {error}");
    // Of two distributions whose logits differ by d, the divergence is half the variance of d to the first order.
    let divergence: f64 = softmax(ours)
        .iter()
        .zip(softmax(&row.logits))
        .map(|(ours, theirs)| if theirs > 0.0 { theirs * (theirs / ours).ln() } else { 0.0 })
        .sum();
    assert!(divergence <= (bound * spread).powi(2), "{name}: a divergence of {divergence} with a spread of {spread}");
    let best = |logits: &[f64]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let (chosen, expected) = (best(ours), best(&row.logits));
    // Another first token only where the error accounts for it: both are off by some deviations at most.
    let lead = row.logits[expected] - row.logits[chosen];
    assert!(lead <= 4.0 * bound * spread, "{name}: token {chosen} is {lead} behind {expected}");
    error
}

fn text(seed: u64, len: usize) -> Vec<u32> {
    let mut random = SplitMix64::new(seed);
    (0..len).map(|_| random.index(VOCABULARY) as u32).collect()
}

/// A tiny model. The convolutions of its delta nets are so large that SiLU leaves hardly anything below zero: queries and keys of
/// trained models do meet, too. A sum of almost nothing would be mostly rounding, and the norm after it would make it as large as
/// any.
fn file(architecture: &'static str, weights: GgmlType, seed: u64) -> ModelFile {
    let larger = |name: &str, elements: &mut [f32]| {
        if name.ends_with("ssm_conv1d.weight") {
            elements.iter_mut().for_each(|tap| *tap *= 6.0);
        }
    };
    ModelFile::from_bytes(tiny::gguf_with(Tiny { architecture, weights, seed }, larger)).unwrap()
}

/// What a delta net gives is a product of five that are rounded: query, key, value, beta and gate.
fn has_delta_nets(architecture: &str) -> bool {
    architecture == "qwen3next" || architecture.starts_with("qwen35")
}

/// The bound of a weight type on an engine: a GPU that is not exact does not round activations.
fn bound(engine: &Engine, ty: GgmlType) -> f64 {
    match engine {
        Engine::Gpu(_) => FLOAT_ERROR,
        Engine::Cpu(_) | Engine::ExactGpu(_) | Engine::Split(_) if ty.block_len() == 1 => FLOAT_ERROR,
        Engine::Cpu(_) | Engine::ExactGpu(_) | Engine::Split(_) => QUANTIZED_ERROR,
    }
}

const DENSE: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];
const MIXTURES: [&str; 3] = ["qwen3moe", "glm4moe", "gpt-oss"];

#[test]
fn dense_architectures_agree_with_the_papers_in_every_weight_type() {
    for architecture in DENSE.into_iter().chain(["qwen35"]) {
        GgmlType::SUPPORTED.into_iter().for_each(|weights| dense_agrees(&cpu(), architecture, weights));
    }
}

#[test]
fn dense_architectures_agree_with_the_papers_on_a_gpu() {
    let Some(gpu) = some_gpu::gpu("dense_architectures_agree_with_the_papers_on_a_gpu") else { return };
    let engine = Engine::Gpu(gpu);
    for architecture in DENSE {
        GgmlType::SUPPORTED.into_iter().for_each(|weights| dense_agrees(&engine, architecture, weights));
    }
}

fn dense_agrees(engine: &Engine, architecture: &'static str, weights: GgmlType) {
    // Past the window of windowed layers.
    let tokens = text(11, WINDOW + 6);
    let file = file(architecture, weights, 21);
    let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
    let expected = Reference::new(file.gguf()).rows(&tokens);
    let bound = bound(engine, weights) * if has_delta_nets(architecture) { 2.0 } else { 1.0 };
    let mut worst = 0f64;
    for (position, (ours, row)) in logits_of(&model, &tokens, 17).iter().zip(&expected).enumerate() {
        let name = format!("{architecture} {} at {position}", weights.name());
        worst = worst.max(judge(&name, ours, row, bound));
    }
    eprintln!("{architecture} {}: at most {worst:.2e} off", weights.name());
}

/// Where two experts are nearly equal, rounding decides which of them computes a row, so only rows are judged before which
/// every choice was clear: by more than the routers' logits can be off.
#[test]
fn mixtures_of_experts_agree_with_the_papers_in_every_weight_type() {
    for architecture in MIXTURES.into_iter().chain(["qwen35moe", "qwen3next"]) {
        GgmlType::SUPPORTED.into_iter().for_each(|weights| mixture_agrees(&cpu(), architecture, weights));
    }
}

#[test]
fn mixtures_of_experts_agree_with_the_papers_on_a_gpu() {
    let Some(gpu) = some_gpu::gpu("mixtures_of_experts_agree_with_the_papers_on_a_gpu") else { return };
    let engine = Engine::Gpu(gpu);
    for architecture in MIXTURES {
        GgmlType::SUPPORTED.into_iter().for_each(|weights| mixture_agrees(&engine, architecture, weights));
    }
}

fn mixture_agrees(engine: &Engine, architecture: &'static str, weights: GgmlType) {
    // gpt-oss multiplies by `1 + up`, so the error of a gate is passed on even where nothing is let through by `up`; the experts of
    // the small GLM count one and a half times.
    let clear_by = 2.0 * bound(engine, weights) * if architecture == "qwen3moe" { 1.0 } else { 1.5 };
    let bound = clear_by / 2.0 * if has_delta_nets(architecture) { 4.0 / 3.0 } else { 1.0 };
    // Where the roundings of a delta net's five factors meet, a choice changes that was clear by more than any other net is off by.
    let may_choose_otherwise = has_delta_nets(architecture) && weights.block_len() > 1;
    let (mut judged, mut worst, mut otherwise) = (0, 0f64, 0);
    // Some random models choose clearly, others hardly ever.
    for seed in 22..30 {
        if judged >= 20 {
            break;
        }
        let file = file(architecture, weights, seed);
        let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
        let reference = Reference::new(file.gguf());
        // A software GPU takes its time; what it is held to is so much closer that fewer rows are judged as sharply.
        let cases = if matches!(engine, Engine::Gpu(_)) { 8 } else { 40 };
        for case in 0..cases {
            let tokens = text(100 + case, 4);
            let expected = reference.rows(&tokens);
            let clear = expected.iter().take_while(|row| row.margin > clear_by).count();
            let ours = logits_of(&model, &tokens, 1 + case as usize % 4);
            for (position, (ours, row)) in ours.iter().zip(&expected).take(clear).enumerate() {
                if may_choose_otherwise && relative_error(ours, row) > bound {
                    otherwise += 1;
                    break;
                }
                let name = format!("{architecture} {} text {case} at {position}", weights.name());
                worst = worst.max(judge(&name, ours, row, bound));
                judged += 1;
            }
        }
    }
    eprintln!("{architecture} {}: {judged} rows, at most {worst:.2e} off", weights.name());
    assert!(judged >= 20, "{architecture} {}: only {judged} rows were clear", weights.name());
    assert!(
        otherwise * 8 <= judged,
        "{architecture} {}: {otherwise} rows beside {judged} are of other experts",
        weights.name()
    );
}
