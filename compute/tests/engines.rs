//! What holds for every engine, the processor and a GPU alike: however rows are cut into passes and sessions share pages, the same
//! rows come; what fails changes nothing. The processor's bits are equal, a GPU's results are within rounding.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod skip;
mod some_gpu;
#[allow(dead_code, reason = "made for tests that need more of it")]
#[path = "exactness/tiny.rs"]
mod tiny;

use pangea_compute::engine::{Bits, GpuBits, Input, Logits, SplitEngine, Stage, Step, layers_that_fit};
use pangea_compute::gguf::GgmlType;
use pangea_compute::gpu::{Gpu, GpuChoice};
use pangea_compute::model::{Cache, ModelFile, ModelPart};
use pangea_compute::{Cancel, Engine, Error, ErrorKind, Pool};
use tiny::{LAYERS, Tiny, VOCABULARY, WIDTH, WINDOW};

const ARCHITECTURES: [&str; 7] = ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "glm4moe", "gpt-oss"];

/// Largest difference of two rows of a GPU, as a share of the spread of their elements: sums of other lengths and orders.
const TOLERANCE: f32 = 2e-3;

/// The processor and, where there is one, a GPU, within tolerance and exact.
fn engines(test: &str) -> Vec<Engine> {
    let cpu = Engine::from(Pool::new(2).unwrap());
    let gpu = some_gpu::gpu(test);
    let exact = gpu.as_ref().map(|gpu| Engine::ExactGpu(gpu.certify().unwrap()));
    [cpu].into_iter().chain(gpu.map(Engine::Gpu)).chain(exact).collect()
}

/// These and both together, with one layer on the GPU.
fn engines_and_both(test: &str) -> Vec<Engine> {
    let engines = engines(test);
    let both = match &engines[..] {
        [Engine::Cpu(pool), Engine::Gpu(own), Engine::ExactGpu(exact)] => {
            let both = |gpu| Engine::Split(SplitEngine { pool: pool.clone(), gpu, device_layers: 1 });
            vec![both(GpuBits::Own(own.clone())), both(GpuBits::Exact(exact.clone()))]
        }
        _ => Vec::new(),
    };
    engines.into_iter().chain(both).collect()
}

fn file(architecture: &'static str, weights: GgmlType) -> ModelFile {
    ModelFile::from_bytes(tiny::gguf(Tiny { architecture, weights, seed: 9 })).unwrap()
}

fn text(len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| (at * at * 7 + at * 13 + 5) % VOCABULARY as u32).collect()
}

/// The logits of all rows of a session's next tokens.
fn rows(stage: &Stage, cache: &mut Cache, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let mut steps = [Step { cache, rows: tokens.len(), logits: Logits::All }];
    stage.forward(&mut steps, Input::Tokens(tokens), &Cancel::new()).map(|output| output.logits(0).to_vec())
}

/// Holds rows to others of the same engine.
fn same(engine: &Engine, name: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{name}");
    if matches!(engine.bits(), Bits::Exact(_)) {
        assert!(ours == expected, "{name}: other bits");
        return;
    }
    for (row, (ours, expected)) in ours.chunks(VOCABULARY).zip(expected.chunks(VOCABULARY)).enumerate() {
        let (low, high) = expected.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        let off = ours.iter().zip(expected).fold(0f32, |off, (ours, expected)| off.max((ours - expected).abs()));
        assert!(off <= TOLERANCE * (high - low), "{name}: row {row} is {off} off, of {low} to {high}");
    }
}

#[test]
fn passes_batches_forks_and_truncation_give_the_same_rows() {
    for engine in engines_and_both("passes_batches_forks_and_truncation_give_the_same_rows") {
        for architecture in ARCHITECTURES {
            let name = format!("{architecture} on {:?}", engine.bits());
            let file = file(architecture, GgmlType::Q8_0);
            let stage = engine.load(&file, ModelPart::whole(file.config())).unwrap();
            let budget = stage.page_budget(64 << 20);
            // Past the window of windowed layers, over several pages.
            let tokens = text(3 * WINDOW + 5);
            let mut at_once = stage.cache(&budget);
            let expected = rows(&stage, &mut at_once, &tokens).unwrap();
            let row = |position: usize| &expected[position * VOCABULARY..(position + 1) * VOCABULARY];

            let mut piecewise = stage.cache(&budget);
            let mut found = Vec::new();
            for piece in tokens.chunks(19) {
                found.extend(rows(&stage, &mut piecewise, piece).unwrap());
            }
            same(&engine, &format!("{name}, piece by piece"), &found, &expected);

            // Two sessions in one batch, of which one is a fork that begins to differ.
            let half = tokens.len() / 2;
            piecewise.truncate(half);
            assert_eq!(piecewise.len(), half, "{name}");
            let mut fork = piecewise.fork();
            let (rest, other) = (&tokens[half..], [1, 2, 3]);
            let mut steps = [
                Step { cache: &mut piecewise, rows: rest.len(), logits: Logits::Last },
                Step { cache: &mut fork, rows: other.len(), logits: Logits::All },
            ];
            let batch = [rest, &other].concat();
            let output = stage.forward(&mut steps, Input::Tokens(&batch), &Cancel::new()).unwrap();
            same(&engine, &format!("{name}, batched"), output.logits(0), row(tokens.len() - 1));
            let mut alone = stage.cache(&budget);
            let text = [&tokens[..half], &other].concat();
            let expected_fork = rows(&stage, &mut alone, &text).unwrap();
            same(&engine, &format!("{name}, a fork"), output.logits(1), &expected_fork[half * VOCABULARY..]);
            drop((at_once, piecewise, fork, alone));
            assert_eq!(budget.used_bytes(), 0, "{name}");
        }
    }
}

#[test]
fn stages_on_several_engines_give_the_rows_of_one() {
    let engines = engines("stages_on_several_engines_give_the_rows_of_one");
    let tokens = text(40);
    for architecture in ARCHITECTURES {
        let file = file(architecture, GgmlType::F16);
        let whole = engines[0].load(&file, ModelPart::whole(file.config())).unwrap();
        let expected = rows(&whole, &mut whole.cache(&whole.page_budget(64 << 20)), &tokens).unwrap();
        for first in &engines {
            for second in &engines {
                let load =
                    |engine: &Engine, layers| engine.load(&file, ModelPart::of_layers(file.config(), layers)).unwrap();
                let stages = [load(first, 0..1), load(second, 1..LAYERS)];
                let mut caches = stages.each_ref().map(|stage| stage.cache(&stage.page_budget(64 << 20)));
                let [one, two] = &mut caches;
                let mut steps = [Step { cache: one, rows: tokens.len(), logits: Logits::None }];
                let output = stages[0].forward(&mut steps, Input::Tokens(&tokens), &Cancel::new()).unwrap();
                assert_eq!(output.activations().len(), tokens.len() * WIDTH);
                let mut steps = [Step { cache: two, rows: tokens.len(), logits: Logits::All }];
                let input = Input::Activations(output.activations());
                let output = stages[1].forward(&mut steps, input, &Cancel::new()).unwrap();
                let name = format!("{architecture} on {} and {}", first.bits(), second.bits());
                let both = [first, second].into_iter().find(|engine| matches!(engine, Engine::Gpu(_)));
                same(both.unwrap_or(first), &name, output.logits(0), &expected);
            }
        }
    }
}

#[test]
fn what_fails_changes_nothing() {
    for engine in engines_and_both("what_fails_changes_nothing") {
        let file = file("gemma3", GgmlType::Q4K);
        let stage = engine.load(&file, ModelPart::whole(file.config())).unwrap();
        // Three pages of positions.
        let budget = stage.page_budget(3 * stage.cache_shape().page_bytes());
        let mut cache = stage.cache(&budget);
        let first = rows(&stage, &mut cache, &text(40)).unwrap();
        let error = rows(&stage, &mut cache, &text(60)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        let cancel = Cancel::new();
        cancel.cancel();
        let mut steps = [Step { cache: &mut cache, rows: 2, logits: Logits::Last }];
        let error = stage.forward(&mut steps, Input::Tokens(&[1, 2]), &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(cache.len(), 40);
        cache.truncate(20);
        let again = rows(&stage, &mut cache, &text(40)[20..]).unwrap();
        same(&engine, "after errors", &again, &first[20 * VOCABULARY..]);

        // The next layers refuse what is no number, by its name.
        let part = ModelPart::of_layers(file.config(), 1..LAYERS);
        let stage = engine.load(&file, part).unwrap();
        let mut cache = stage.cache(&stage.page_budget(1 << 20));
        let mut input = vec![0.5; WIDTH];
        input[7] = f32::NAN;
        let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::Last }];
        let error = stage.forward(&mut steps, Input::Activations(&input), &Cancel::new()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }), "{error}");
        assert!(error.to_string().contains("received for layer 1"), "{error}");
    }
}

#[test]
fn a_cache_of_another_device_is_refused() {
    let engines = engines("a_cache_of_another_device_is_refused");
    let [cpu, gpu, ..] = &engines[..] else { return };
    let file = file("llama", GgmlType::Q4_0);
    let [cpu, gpu] = [cpu, gpu].map(|engine| engine.load(&file, ModelPart::whole(file.config())).unwrap());
    for (stage, other) in [(&cpu, &gpu), (&gpu, &cpu)] {
        let error = rows(stage, &mut other.cache(&other.page_budget(1 << 20)), &[1]).unwrap_err();
        assert!(error.to_string().contains("another device"), "{error}");
    }
}

#[test]
fn a_lost_gpu_is_an_error_that_another_engine_makes_up_for() {
    let test = "a_lost_gpu_is_an_error_that_another_engine_makes_up_for";
    if engines(test).len() < 2 {
        return;
    }
    let gpu = Gpu::open_alone(GpuChoice::BestOrSoftware).unwrap();
    let file = file("qwen3", GgmlType::Q4K);
    let stage = Engine::Gpu(gpu.clone()).load(&file, ModelPart::whole(file.config())).unwrap();
    let mut cache = stage.cache(&stage.page_budget(16 << 20));
    let tokens = text(33);
    rows(&stage, &mut cache, &tokens).unwrap();
    gpu.lose();
    let error = rows(&stage, &mut cache, &[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    assert_eq!(cache.len(), tokens.len());
    drop(cache);
    let cpu = Engine::from(Pool::new(1).unwrap()).load(&file, ModelPart::whole(file.config())).unwrap();
    rows(&cpu, &mut cpu.cache(&cpu.page_budget(16 << 20)), &tokens).unwrap();
}

#[test]
fn what_a_gpu_does_not_compute_is_said_before_it_is_loaded() {
    let engines = engines("what_a_gpu_does_not_compute_is_said_before_it_is_loaded");
    for gpu in &engines[1..] {
        let file = file("qwen35", GgmlType::Q8_0);
        let part = ModelPart::whole(file.config());
        for error in [gpu.load_bytes(&file, &part).unwrap_err(), gpu.load(&file, part.clone()).unwrap_err()] {
            assert!(error.to_string().contains("gated delta nets are not computed on a GPU"), "{error}");
        }
    }
    let [_, close, exact] = &engines[..] else { return };
    // A layer with attention among delta nets; the gate of its shared expert is computed in f64 on the processor.
    let file = file("qwen3next", GgmlType::Q8_0);
    let part = ModelPart::of_layers(file.config(), 2..3);
    close.load_bytes(&file, &part).unwrap();
    for error in [exact.load_bytes(&file, &part).unwrap_err(), exact.load(&file, part.clone()).unwrap_err()] {
        assert!(error.to_string().contains("gates of experts that compute every row"), "{error}");
    }
}

#[test]
fn the_last_layers_that_fit_a_gpu_are_known_before_they_are_loaded() {
    let test = "the_last_layers_that_fit_a_gpu_are_known_before_they_are_loaded";
    let engines = engines(test);
    let [Engine::Cpu(pool), engine @ Engine::Gpu(gpu), ..] = &engines[..] else { return };
    let file = file("gemma3", GgmlType::Q4K);
    let whole = ModelPart::whole(file.config());
    let gpu = GpuBits::Own(gpu.clone());
    let fit = |positions, room| layers_that_fit(&file, &whole, &gpu, positions, room).unwrap();
    let all = engine.load_bytes(&file, &whole).unwrap().device;
    assert_eq!((fit(0, all), fit(0, all - 1), fit(0, 0)), (LAYERS, LAYERS - 1, 0));
    // Sessions take their part.
    let page = engine.cache_shape(file.config(), &whole).unwrap().page_bytes();
    assert_eq!((fit(1, all + page), fit(1, all + page - 1)), (LAYERS, LAYERS - 1));

    // What both have is what was reckoned, and sessions lie in both memories.
    let split = Engine::Split(SplitEngine { pool: pool.clone(), gpu: gpu.clone(), device_layers: LAYERS - 1 });
    let needs = split.load_bytes(&file, &whole).unwrap();
    let stage = split.load(&file, whole.clone()).unwrap();
    assert_eq!(stage.device_layers(), LAYERS - 1);
    // Vectors of floats are small and not reckoned.
    assert!(stage.device_bytes() >= needs.device && stage.device_bytes() <= needs.device + (1 << 20));
    let shape = stage.cache_shape();
    let on_device = shape.device_bytes_of(shape.page_bytes());
    assert!(0 < on_device && on_device < shape.page_bytes(), "{on_device} of {}", shape.page_bytes());
    for layers in [0, LAYERS] {
        let split = SplitEngine { pool: pool.clone(), gpu: gpu.clone(), device_layers: layers };
        let error = Engine::Split(split).load(&file, whole.clone()).unwrap_err();
        assert!(error.to_string().contains("leave nothing to split"), "{error}");
    }
}

#[test]
fn layers_that_a_gpu_does_not_compute_stay_on_the_processor() {
    let engines = engines("layers_that_a_gpu_does_not_compute_stay_on_the_processor");
    let [cpu @ Engine::Cpu(pool), Engine::Gpu(gpu), ..] = &engines[..] else { return };
    let file = file("qwen35", GgmlType::F16);
    let whole = ModelPart::whole(file.config());
    let gpu = GpuBits::Own(gpu.clone());
    let fit = layers_that_fit(&file, &whole, &gpu, 64, u64::MAX).unwrap();
    assert!((1..LAYERS).contains(&fit), "{fit}");
    let split = Engine::Split(SplitEngine { pool: pool.clone(), gpu: gpu.clone(), device_layers: fit });
    let (stage, exact) = (split.load(&file, whole.clone()).unwrap(), cpu.load(&file, whole).unwrap());
    let tokens = text(30);
    let mut cache = stage.cache(&stage.page_budget(64 << 20));
    let ours = rows(&stage, &mut cache, &tokens).unwrap();
    same(
        &split,
        "a recurrent model",
        &ours,
        &rows(&exact, &mut exact.cache(&exact.page_budget(64 << 20)), &tokens).unwrap(),
    );
}
