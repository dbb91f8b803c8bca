//! The cost of choosing a token, by vocabulary and setting: `cargo bench -p pangea-compute --bench sample`.
//! Logits are distributed like those of a language model: a few high, most about 20 below.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pangea_compute::sample::{Sampling, choose};

fn logits(vocabulary: usize) -> Vec<f32> {
    let mut state = 1_u64;
    (0..vocabulary)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = ((state >> 40) as f32 + 1.0) / (1 << 24) as f32;
            -2.0 * uniform.ln() - 5.0
        })
        .collect()
}

fn settings() -> Vec<(&'static str, Sampling)> {
    let all = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    vec![
        ("greedy", Sampling::greedy()),
        ("default", Sampling::default()),
        ("temperature", all.clone()),
        ("top_p", Sampling { top_p: 0.9, ..all.clone() }),
        ("min_p", Sampling { min_p: 0.05, ..all.clone() }),
        ("typical", Sampling { typical_p: 0.9, ..all.clone() }),
        ("logprobs", Sampling { logprobs: Some(5), ..Sampling::greedy() }),
        ("penalties", Sampling { repetition_penalty: 1.1, frequency_penalty: 0.1, ..Sampling::default() }),
    ]
}

fn sample(criterion: &mut Criterion) {
    for vocabulary in [49_152, 262_144] {
        let logits = logits(vocabulary);
        let prompt: Vec<u32> = (0..1000).collect();
        let mut group = criterion.benchmark_group(format!("sample/{vocabulary}"));
        for (name, sampling) in settings() {
            group.bench_function(name, |bencher| {
                bencher.iter_batched_ref(
                    || logits.clone(),
                    |logits| choose(black_box(&sampling), &prompt, &[], logits, None),
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200)).measurement_time(std::time::Duration::from_millis(800));
    targets = sample
}
criterion_main!(benches);
