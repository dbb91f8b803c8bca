//! The kernels of GPUs against plain references in f64 or integers, on the GPU of this machine or on Debian's software device
//! (`mesa-vulkan-drivers`).
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

mod attention;
mod device;
mod elementwise;
mod exact;
mod experts;
mod matmul;
mod product;
#[path = "../skip/mod.rs"]
mod skip;
#[path = "../some_gpu/mod.rs"]
mod some_gpu;

use pangea_compute::gguf::{GgmlType, dequantize};
use pangea_units::SplitMix64;
use some_gpu::gpu;

fn floats(random: &mut SplitMix64, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.signed_unit()).collect()
}

/// Random weights as a file stores them, `[rows, k]`, and what they are.
fn weights(random: &mut SplitMix64, ty: GgmlType, rows: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let blocks = rows * k / ty.block_len();
    let mut bytes = Vec::new();
    for _ in 0..blocks {
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.bits() as u8).collect();
        let mut set =
            |at: usize, value: f32| block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        let (scale, min) = (0.01 * random.signed_unit(), 0.01 * random.signed_unit());
        match ty {
            GgmlType::F32 => block.copy_from_slice(&random.signed_unit().to_le_bytes()),
            GgmlType::F16 => set(0, random.signed_unit()),
            GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.signed_unit()).to_le_bytes()),
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4NL | GgmlType::IQ4XS => set(0, scale),
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => {
                set(0, scale);
                set(2, min);
            }
            GgmlType::MXFP4 => block[0] = 115 + random.index(10) as u8,
            GgmlType::Q2K => {
                set(80, scale);
                set(82, min);
            }
            GgmlType::Q3K => set(108, scale),
            GgmlType::Q6K => set(208, scale),
        }
        bytes.extend(block);
    }
    let mut values = vec![0.0; rows * k];
    dequantize(ty, &bytes, &mut values).unwrap();
    (bytes, values)
}

/// `x · Wᵀ` in f64, `[rows, outs]`, and the sizes of its addends, for bounds.
fn reference(x: &[f32], w: &[f32], k: usize) -> Vec<(f64, f64)> {
    let mut results = Vec::new();
    for x in x.chunks_exact(k) {
        for w in w.chunks_exact(k) {
            // A format's offset and its codes are summed apart, so what counts is the range of a row.
            let range = w.iter().fold(0.0f32, |range, w| range.max(w.abs()));
            let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let size: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x.abs()) * f64::from(w.abs() + range)).sum();
            results.push((dot, size));
        }
    }
    results
}

/// Every value within `bound` of the size of what it is summed of.
fn assert_close(what: &str, got: &[f32], want: &[(f64, f64)], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, (want, size))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= bound * size + 1e-30, "{what}: {got} at {at}, not {want}; off by {error}, sizes {size}");
    }
}
