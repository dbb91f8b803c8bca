//! Measures this machine: products, and the layers of language models. The results feed the cost models; this module
//! alone reads a clock.

use crate::gguf::GgmlType;
use crate::gpu::{AdapterKind, Gpu, GpuMatrix, GpuRows, Store};
use crate::{Cancel, DType, Error, Linear, Pool, Tensor, matmul};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Side of the measured matrices: large enough for full speed, small enough for a few milliseconds.
const SIDE: usize = 768;

/// The same for GPUs: the way there is long.
const GPU_SIDE: usize = 4096;

/// Speed of products of two `dtype` matrices on this pool, in GFLOP/s (a multiply-add counts as two operations). The
/// best run within about `budget_ms` milliseconds, of at least one.
///
/// # Errors
/// [`Error::Dtype`] for i32; [`Error::OutOfMemory`].
pub fn gflops(dtype: DType, pool: &Pool, budget_ms: u64) -> Result<f64, Error> {
    let a = Tensor::generate(dtype, SIDE, SIDE, 1)?;
    let b = Tensor::generate(dtype, SIDE, SIDE, 2)?;
    best_gflops(SIDE, budget_ms, || matmul(&a, &b, pool, &Cancel::new()))
}

/// Speed of products of two `dtype` matrices on a GPU, the way there and back included, in GFLOP/s: the best run within about
/// `budget_ms` milliseconds, of at least one after a first that compiles the kernels.
///
/// # Errors
/// [`Error::Dtype`] for types that [`Gpu::multiplies`] refuses; [`Error::OutOfMemory`], [`Error::DeviceLost`].
pub fn gpu_gflops(dtype: DType, gpu: &Arc<Gpu>, budget_ms: u64) -> Result<f64, Error> {
    let side = if gpu.report().kind == AdapterKind::Software { SIDE } else { GPU_SIDE };
    let a = Tensor::generate(dtype, side, side, 1)?;
    let b = Tensor::generate(dtype, side, side, 2)?;
    gpu.matmul(&a, &b, &Cancel::new())?;
    best_gflops(side, budget_ms, || gpu.matmul(&a, &b, &Cancel::new()))
}

/// The best speed of products of square matrices.
fn best_gflops(side: usize, budget_ms: u64, product: impl Fn() -> Result<Tensor, Error>) -> Result<f64, Error> {
    let (start, budget) = (Instant::now(), Duration::from_millis(budget_ms));
    let mut best = Duration::MAX;
    loop {
        let run = Instant::now();
        product()?;
        best = best.min(run.elapsed());
        if start.elapsed() >= budget {
            break;
        }
    }
    Ok(2.0 * (side as f64).powi(3) / best.as_secs_f64().max(1e-9) / 1e9)
}

/// Weight type that layers are measured with: a common one, 5 bits a weight.
const LAYER_TYPE: GgmlType = GgmlType::Q4_1;

/// `[rows, k]` of the matrix for decoding: 3.75 MiB packed, so that a node without a model stays small.
const DECODED: (usize, usize) = (2048, 3072);

/// `[rows, k]` of the matrix for prompts: small, so that slow machines finish in time.
const PROMPTED: (usize, usize) = (1024, 2048);

/// Rows of the measured prompt.
const PROMPT_ROWS: usize = 64;

/// The same for GPUs, which have larger caches and need larger matrices to be busy: 120 MiB, and 20 MiB with 256 rows.
const GPU_DECODED: (usize, usize) = (24_576, 8192);
const GPU_PROMPTED: (usize, usize) = (8192, 4096);
const GPU_PROMPT_ROWS: usize = 256;

/// Products of one submission to a GPU.
const GPU_PRODUCTS: usize = 8;

/// Measured rounds, whose median counts: one round that was disturbed or lucky does not.
const ROUNDS_MIN: usize = 5;

/// Measured speed of a machine on the layers of language models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerRates {
    /// Decoding: bytes of packed weights per second.
    pub weight_bytes_per_s: f64,
    /// Prompt processing: multiply-accumulates per second.
    pub macs_per_s: f64,
}

/// Measures this pool on layers: the medians of the rounds within about `budget_ms` milliseconds, half of them for each kind,
/// at least five rounds of each.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn layers(pool: &Pool, budget_ms: u64) -> Result<LayerRates, Error> {
    let budget = Duration::from_millis(budget_ms) / 2;
    let (decoding_s, read_bytes) = median_round(pool, DECODED, 1, budget)?;
    let (prompt_s, _) = median_round(pool, PROMPTED, PROMPT_ROWS, budget)?;
    let macs_per_s = (PROMPTED.0 * PROMPTED.1 * PROMPT_ROWS) as f64 / prompt_s;
    Ok(LayerRates { weight_bytes_per_s: plausible(read_bytes as f64 / decoding_s, macs_per_s), macs_per_s })
}

/// Measures a GPU on layers, in the same way. Products are submitted several at a time, as those of a pass are.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::DeviceLost`].
pub fn gpu_layers(gpu: &Arc<Gpu>, budget_ms: u64) -> Result<LayerRates, Error> {
    let budget = Duration::from_millis(budget_ms) / 2;
    let ((decoded, at_once), (prompted, rows)) = match gpu.report().kind {
        AdapterKind::Software => ((DECODED, 1), (PROMPTED, PROMPT_ROWS)),
        _ => ((GPU_DECODED, GPU_PRODUCTS), (GPU_PROMPTED, GPU_PROMPT_ROWS)),
    };
    let (decoding_s, read_bytes) = median_gpu_round(gpu, decoded, 1, at_once, budget)?;
    let (prompt_s, _) = median_gpu_round(gpu, prompted, rows, at_once, budget)?;
    let macs_per_s = (prompted.0 * prompted.1 * rows * at_once) as f64 / prompt_s;
    Ok(LayerRates { weight_bytes_per_s: plausible(read_bytes as f64 / decoding_s, macs_per_s), macs_per_s })
}

/// Median of the seconds in which `at_once` products are done, and the bytes of weights that they read.
fn median_gpu_round(
    gpu: &Arc<Gpu>,
    (rows, k): (usize, usize),
    n: usize,
    at_once: usize,
    budget: Duration,
) -> Result<(f64, u64), Error> {
    let matrix = GpuMatrix::of_bytes(gpu, LAYER_TYPE, rows, k, &weights(rows, k))?;
    let x = GpuRows::of(gpu, k, &activations(n, k), "measured activations")?;
    let y = GpuRows::new(gpu, n, rows, "measured results")?;
    let median = median_of(budget, || {
        let begin = Instant::now();
        let mut commands = gpu.commands();
        for _ in 0..at_once {
            commands.product(&matrix, &x, &y, n, Store::default())?;
        }
        y.read(&mut commands, 0..1)?;
        commands.finish()?;
        Ok(begin.elapsed())
    })?;
    Ok((median, matrix.size_bytes() * at_once as u64))
}

/// A decoding speed that is possible: with one row, no machine multiplies faster than with many.
fn plausible(weight_bytes_per_s: f64, macs_per_s: f64) -> f64 {
    let bytes_per_mac = LAYER_TYPE.block_bytes() as f64 / LAYER_TYPE.block_len() as f64;
    weight_bytes_per_s.min(macs_per_s * bytes_per_mac)
}

/// Median of the seconds in which a matrix is multiplied with `n` rows of activations, and the matrix's packed bytes. Every round reads the weights from memory: in a cache, they would be read several times as fast
/// as a model's.
fn median_round(pool: &Pool, (rows, k): (usize, usize), n: usize, budget: Duration) -> Result<(f64, usize), Error> {
    let linear = Linear::new(pool, LAYER_TYPE, rows, k, &weights(rows, k))?;
    let x = activations(n, k);
    let mut out = vec![0.0; n * rows];
    let median = median_of(budget, || {
        linear.leave_caches();
        let begin = Instant::now();
        linear.apply(pool, &x, &mut out)?;
        Ok(begin.elapsed())
    })?;
    Ok((median, linear.size_bytes()))
}

/// Weights of the measured type.
fn weights(rows: usize, k: usize) -> Vec<u8> {
    // Scale and offset are small numbers; the codes can be any bits.
    let mut block = [0x5a_u8; 20];
    block[..4].copy_from_slice(&[0, 0x14, 0, 0x94]);
    assert_eq!(block.len(), LAYER_TYPE.block_bytes(), "a block of {LAYER_TYPE}");
    block.repeat(rows * k / LAYER_TYPE.block_len())
}

fn activations(n: usize, k: usize) -> Vec<f32> {
    (0..n * k).map(|i| (i % 17) as f32 - 8.0).collect()
}

/// Median of a round's seconds, after a first one that does not count: it wakes threads, raises the clock and compiles kernels.
fn median_of(budget: Duration, mut round: impl FnMut() -> Result<Duration, Error>) -> Result<f64, Error> {
    round()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < ROUNDS_MIN || start.elapsed() < budget {
        times.push(round()?);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_a_speed_on_any_number_of_threads() {
        for threads in [1, 2] {
            let rates = layers(&Pool::new(threads).unwrap(), 10).unwrap();
            // Any machine reads more than a megabyte and computes more than a million a second.
            assert!(rates.weight_bytes_per_s > 1e6 && rates.weight_bytes_per_s.is_finite(), "{rates:?}");
            assert!(rates.macs_per_s > 1e6 && rates.macs_per_s.is_finite(), "{rates:?}");
            println!("{threads} threads: {rates:?}");
        }
    }

    #[test]
    fn a_gpu_has_a_speed_too() {
        // What such a test needs is installed by the test command; `tests/gpu.rs` says where there is none.
        let Ok(gpu) = Gpu::open(crate::gpu::GpuChoice::BestOrSoftware) else { return };
        let rates = gpu_layers(&gpu, 10).unwrap();
        assert!(rates.weight_bytes_per_s > 1e5 && rates.macs_per_s > 1e5 && rates.macs_per_s.is_finite(), "{rates:?}");
        println!("{gpu:?}: {rates:?}");
    }

    #[test]
    fn no_decoding_speed_is_beyond_what_the_machine_multiplies() {
        // Five bits per weight.
        assert_eq!(plausible(30e9, 100e9), 30e9);
        assert_eq!(plausible(123e9, 100e9), 62.5e9);
    }
}
