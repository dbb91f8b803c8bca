//! Products and their checks in operations per second: `cargo bench -p pangea-compute`.
//! Throughput is counted in multiply-adds times two, so criterion's "Gelem/s" reads as GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pangea_compute::{Cancel, ColumnProbe, DType, PackedA, PackedB, Pool, Tensor, matmul, matmul_packed};
use std::hint::black_box;
use std::time::Duration;

const TYPES: [DType; 5] = [DType::F32, DType::F64, DType::F16, DType::Bf16, DType::I8];

/// n × n products: `product/<dtype>/<threads>/<n>`.
fn products(criterion: &mut Criterion) {
    let cancel = Cancel::new();
    for dtype in TYPES {
        for threads in [1, 2] {
            let Ok(pool) = Pool::new(threads) else { return };
            let mut group = criterion.benchmark_group(format!("product/{dtype}/{threads}"));
            group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
            for n in [64usize, 256, 1024, 2048, 4096] {
                let (Ok(a), Ok(b)) = (Tensor::generate(dtype, n, n, 1), Tensor::generate(dtype, n, n, 2)) else {
                    return;
                };
                group.throughput(Throughput::Elements(2 * (n as u64).pow(3)));
                group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
                    bencher.iter(|| black_box(matmul(&a, &b, &pool, &cancel).is_ok()));
                });
            }
        }
    }
}

/// Tiles as a worker computes and a coordinator checks them, k = 4096: `tile/<dtype>/<side>/{product,packed,check}`,
/// all counted in the product's operations, so product ÷ check is the relative cost of verification.
fn tiles(criterion: &mut Criterion) {
    let cancel = Cancel::new();
    let k = 4096;
    for dtype in [DType::F32, DType::I8] {
        let Ok(pool) = Pool::new(1) else { return };
        for side in [512usize, 1024, 4096] {
            let (Ok(a), Ok(b)) = (Tensor::generate(dtype, side, k, 1), Tensor::generate(dtype, k, side, 2)) else {
                return;
            };
            let (Ok(pa), Ok(pb), Ok(c)) = (
                PackedA::new(&a, dtype, &pool, &cancel),
                PackedB::new(&b, dtype, &pool, &cancel),
                matmul(&a, &b, &pool, &cancel),
            ) else {
                return;
            };
            let Ok(probe) = ColumnProbe::new(&b, c.dtype(), [7; 32], &pool) else {
                return;
            };
            let mut group = criterion.benchmark_group(format!("tile/{dtype}/{side}"));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(2))
                .throughput(Throughput::Elements(2 * (side * side * k) as u64));
            group.bench_function("product", |bencher| {
                bencher.iter(|| black_box(matmul(&a, &b, &pool, &cancel).is_ok()));
            });
            group.bench_function("packed", |bencher| {
                bencher.iter(|| black_box(matmul_packed(&pa, &pb, &pool, &cancel).is_ok()));
            });
            group.bench_function("probe", |bencher| {
                bencher.iter(|| black_box(ColumnProbe::new(&b, c.dtype(), [7; 32], &pool).is_ok()));
            });
            group.bench_function("check", |bencher| {
                bencher.iter(|| black_box(probe.check(&a, &b, &c, &pool).is_ok()));
            });
        }
    }
}

criterion_group!(benches, products, tiles);
criterion_main!(benches);
