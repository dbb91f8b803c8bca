//! Products of packed weights in the shapes of SmolLM2-135M: `cargo bench -p pangea-compute --bench llm`.
//! One row (decode) reads more weights than the last cache holds, in bytes per second; more rows (concurrent sessions,
//! prefill) count multiply-adds, so criterion's "Gelem/s" reads as GMAC/s. The quantisation of activations is included.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pangea_compute::gguf::GgmlType;
use pangea_compute::{Linear, Pool};
use std::hint::black_box;
use std::time::Duration;

/// Output and input features, and the weight types of models with this hidden size.
const SHAPES: [(usize, usize, GgmlType); 7] = [
    (576, 576, GgmlType::Q4_1),
    (192, 576, GgmlType::Q4_1),
    (1536, 576, GgmlType::Q4_1),
    (576, 1536, GgmlType::Q4_1),
    (1536, 576, GgmlType::Q4_0),
    (1536, 576, GgmlType::Q5_0),
    (49152, 576, GgmlType::Q8_0),
];

/// Bytes of weights of a decode pass: more than the caches of machines that run this benchmark.
const STREAM_BYTES: usize = 96 << 20;

/// `llm/<type> <rows>x<k>/<threads>/<n>`.
fn products(criterion: &mut Criterion) {
    for (rows, k, ty) in SHAPES {
        // Small numbers in every type: neither codes nor scales are extreme.
        let bytes: Vec<u8> = (0..rows * k / ty.block_len() * ty.block_bytes()).map(|i| (i * 7 % 32) as u8).collect();
        for threads in [1, 2] {
            let Ok(pool) = Pool::new(threads) else { return };
            let copies = STREAM_BYTES.div_ceil(bytes.len());
            let Ok(stack) = (0..copies).map(|_| Linear::new(&pool, ty, rows, k, &bytes)).collect::<Result<Vec<_>, _>>()
            else {
                return;
            };
            let mut group = criterion.benchmark_group(format!("llm/{ty} {rows}x{k}/{threads}"));
            group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
            for n in [1usize, 4, 16, 128] {
                let x: Vec<f32> = (0..n * k).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
                let mut out = vec![0.0; n * rows];
                let used = if n == 1 { &stack[..] } else { &stack[..1] };
                group.throughput(if n == 1 {
                    Throughput::Bytes(used.iter().map(|linear| linear.size_bytes() as u64).sum())
                } else {
                    Throughput::Elements((n * rows * k) as u64)
                });
                group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
                    bencher.iter(|| {
                        for linear in used {
                            black_box(linear.apply(&pool, &x, &mut out).is_ok());
                        }
                    });
                });
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
