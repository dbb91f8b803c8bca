//! Checks of products. Freivalds' check (1977): with a secret vector x, compare `C·x` with `A·(B·x)`, which costs a
//! pass over each matrix instead of a product. Wrong results are reported, never repaired; trust is the node's
//! decision.
//!
//! [`ColumnProbe`] is here; the rounding bound and its derivation are in [`bound`]; `float` and `integer` check the two
//! kinds of product; `classes` checks what is not finite, `judge` single elements; [`proof`] shows others that a result is
//! wrong.

pub mod bound;
mod classes;
mod float;
mod integer;
mod judge;
pub mod proof;

pub use bound::{detection_limit, likely_limit};

use crate::dtype::for_dtype;
use crate::{DType, Element, Error, Pool, Tensor};

/// A check that found no error.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    /// `freivalds-mod-p61` (exact) or `freivalds-f64+tiles` (within rounding).
    pub method: &'static str,
    /// The number of secret vectors.
    pub vectors: usize,
    /// The number of elements computed again.
    pub elements_recomputed: usize,
    /// Rows of which some elements that are not finite were only sampled: telling infinities from NaN, or computing
    /// what overflowed again, would have taken too long.
    pub rows_sampled_only: usize,
    /// Upper bound of the probability that an honest product of this shape is refused.
    pub false_alarm: f64,
    /// The smallest one-element error that is certain to be caught: see [`detection_limit`]. Zero where exact.
    pub detection_limit: f64,
}

/// A wrong result, and where it is wrong. Displays as a sentence.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the result is wrong: {what}")]
pub struct Mismatch {
    /// The first row found wrong.
    pub row: usize,
    /// The column, where a single element was computed again.
    pub col: Option<usize>,
    /// The difference: of a single element in units of C, of a row in those of the check's vectors (for integers: in the
    /// field).
    pub residual: f64,
    /// The largest difference that would be accepted.
    pub threshold: f64,
    /// The finding, for people.
    pub what: String,
}

/// The secret side of the check for one panel of B: made once, used for every tile of that panel.
///
/// The worker that computes the tile must never learn the seed.
pub struct ColumnProbe {
    out: DType,
    k: usize,
    n: usize,
    b_dtype: DType,
    kind: Kind,
}

enum Kind {
    Float(Box<float::FloatProbe>),
    Integer(Box<integer::IntegerProbe>),
}

impl ColumnProbe {
    /// Prepares checks of products with `b`, `[k, n]`, whose results have type `out`. `seed` must be secret and fresh.
    /// One pass over `b`.
    ///
    /// # Errors
    /// [`Error::Dtype`] where no product with `b` has type `out`.
    pub fn new(b: &Tensor, out: DType, seed: [u8; 32], pool: &Pool) -> Result<ColumnProbe, Error> {
        let possible = match out {
            DType::I8 => false,
            DType::I32 => b.dtype() == DType::I8,
            DType::F32 => b.dtype() != DType::F64 && b.dtype() != DType::I32,
            DType::F64 => b.dtype() != DType::I32,
            half => b.dtype() == half || b.dtype() == DType::I8,
        };
        if !possible {
            return Err(Error::Dtype {
                operation: "check",
                dtype: b.dtype().name().to_string(),
                hint: "no product with this operand has the given output type",
            });
        }
        let kind = if out == DType::I32 {
            Kind::Integer(Box::new(integer::IntegerProbe::new(b, &seed, pool)))
        } else {
            Kind::Float(Box::new(float::FloatProbe::new(out, b, &seed, pool)))
        };
        Ok(ColumnProbe { out, k: b.rows(), n: b.cols(), b_dtype: b.dtype(), kind })
    }

    /// Checks that `c`, `[m, n]`, is `a·b`: `a` is `[m, k]`, `b` is the panel that this probe was made for.
    ///
    /// # Errors
    /// [`Mismatch`] with the first wrong row.
    pub fn check(&self, a: &Tensor, b: &Tensor, c: &Tensor, pool: &Pool) -> Result<CheckReport, Mismatch> {
        let fits = a.cols() == self.k
            && b.shape() == (self.k, self.n)
            && b.dtype() == self.b_dtype
            && c.shape() == (a.rows(), self.n)
            && c.dtype() == self.out
            && DType::product(a.dtype(), b.dtype()).is_ok_and(|out| out == self.out);
        if !fits {
            return Err(Mismatch {
                row: 0,
                col: None,
                residual: f64::INFINITY,
                threshold: 0.0,
                what: format!(
                    "a {} result of {} x {} cannot be the {} product of {} {} x {} and {} {} x {}",
                    c.dtype(),
                    c.rows(),
                    c.cols(),
                    self.out,
                    a.dtype(),
                    a.rows(),
                    a.cols(),
                    b.dtype(),
                    b.rows(),
                    b.cols(),
                ),
            });
        }
        match &self.kind {
            Kind::Float(probe) => probe.check(self.out, a, b, c, pool),
            Kind::Integer(probe) => probe.check(a, c, pool),
        }
    }

    /// The memory it holds, in bytes.
    pub fn size_bytes(&self) -> usize {
        match &self.kind {
            Kind::Float(probe) => probe.size_bytes(),
            Kind::Integer(probe) => probe.size_bytes(),
        }
    }
}

impl std::fmt::Debug for ColumnProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        write!(f, "ColumnProbe({} {} x {})", self.out, self.k, self.n)
    }
}

/// Calls `work(rows, out)` for every piece of `out` (one item for each of `rows` rows) on the pool's threads.
fn by_rows<T: Send>(
    pool: &Pool,
    rows: usize,
    cols: usize,
    out: &mut [T],
    work: &(dyn Fn(std::ops::Range<usize>, &mut [T]) + Sync),
) {
    use std::sync::{Mutex, PoisonError};
    debug_assert_eq!(out.len(), rows);
    // A thread is woken for some 100 µs of work, and takes pieces of about 50 µs.
    const ELEMENTS_PER_THREAD: usize = 300_000;
    const ELEMENTS_PER_PIECE: usize = 150_000;
    let elements = rows.saturating_mul(cols);
    let width = pool.threads().min(elements / ELEMENTS_PER_THREAD).max(1);
    if width == 1 {
        work(0..rows, out);
        return;
    }
    let step = (ELEMENTS_PER_PIECE / cols.max(1)).max(8).next_multiple_of(8);
    let pieces = Mutex::new((0..rows).step_by(step).zip(out.chunks_mut(step)));
    pool.run(width, &|_| {
        loop {
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((row, piece)) = next else { return };
            pool.next_piece();
            work(row..row + piece.len(), piece);
        }
    });
}

/// Row `row` of `t` as f64.
fn row_values(t: &Tensor, row: usize) -> Vec<f64> {
    for_dtype!(t.dtype(), T => match t.view::<T>() {
        Ok(view) => view.row(row).iter().map(|v| Element::to_f64(*v)).collect(),
        Err(_) => Vec::new(),
    })
}

/// A stream of secret bytes: BLAKE3 keyed with the seed, one stream for every purpose.
fn secret(seed: &[u8; 32], purpose: &str) -> blake3::OutputReader {
    blake3::Hasher::new_keyed(seed).update(purpose.as_bytes()).finalize_xof()
}
