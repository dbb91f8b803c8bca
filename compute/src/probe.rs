//! How fast is this machine at products? A short measurement for the cost model.
//! It is the one place here that reads a clock, and it judges nothing.

use crate::{Cancel, DType, Error, Pool, Tensor, matmul};
use std::time::{Duration, Instant};

/// The side of the matrices measured: large enough to reach full speed, small enough for a few milliseconds.
const SIDE: usize = 768;

/// Multiply-adds per second, counted as two operations each, in units of 10⁹, of products of two `dtype` matrices on
/// this pool. The best run within about `budget_ms` milliseconds; one run at least.
///
/// # Errors
/// [`Error::Dtype`] for i32; [`Error::OutOfMemory`].
pub fn gflops(dtype: DType, pool: &Pool, budget_ms: u64) -> Result<f64, Error> {
    let a = Tensor::generate(dtype, SIDE, SIDE, 1)?;
    let b = Tensor::generate(dtype, SIDE, SIDE, 2)?;
    let cancel = Cancel::new();
    let start = Instant::now();
    let budget = Duration::from_millis(budget_ms);
    let mut best = Duration::MAX;
    loop {
        let run = Instant::now();
        matmul(&a, &b, pool, &cancel)?;
        best = best.min(run.elapsed());
        if start.elapsed() >= budget {
            break;
        }
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best.as_secs_f64().max(1e-9) / 1e9)
}
