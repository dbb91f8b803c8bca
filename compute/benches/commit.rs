//! The cost of commitments: the leaf of a position, which two neighbouring stages compute for every token between them, and
//! the root over a session, which every stage computes twice at the session's end. `cargo bench -p pangea-compute --bench commit`; a token of
//! SmolLM2 takes milliseconds, see `pangea bench llm`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pangea_compute::commit::merkle::row_leaf;
use pangea_compute::commit::{Leaf, merkle_root};

fn commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit/leaf");
    for width in [576, 4096] {
        let row: Vec<f32> = (0..width).map(|i| i as f32 * 0.37 - 100.0).collect();
        group.throughput(Throughput::Bytes(4 * width as u64));
        group.bench_function(width.to_string(), |bencher| bencher.iter(|| row_leaf(black_box(7), black_box(&row))));
    }
    group.finish();
    let mut group = criterion.benchmark_group("commit/root");
    for positions in [100, 1000, 8000] {
        let leaves: Vec<Leaf> = (0..positions).map(|position| row_leaf(position, &[position as f32])).collect();
        group.bench_function(positions.to_string(), |bencher| bencher.iter(|| merkle_root(black_box(&leaves))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200)).measurement_time(std::time::Duration::from_millis(800));
    targets = commit
}
criterion_main!(benches);
