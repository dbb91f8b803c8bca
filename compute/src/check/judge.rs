//! Single elements of a product computed again in f64, and judged by the worst case of rounding, overflow and what is not
//! a number. Which elements are judged is decided elsewhere.

use super::bound::{self, Rounding};
use super::{Mismatch, row_values};
use crate::dtype::for_dtype;
use crate::{Element, Tensor};

/// A stream of secret random choices.
pub(super) struct Dice(blake3::OutputReader);

impl Dice {
    pub(super) fn new(secret: blake3::OutputReader) -> Dice {
        Dice(secret)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % limit.max(1) as u64) as usize
    }
}

/// Computes single elements again in f64 and judges them.
pub(super) struct Judge<'a> {
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    pub(super) c: &'a Tensor,
    pub(super) rounding: Rounding,
    /// Elements computed so far.
    pub(super) recomputed: usize,
}

impl<'a> Judge<'a> {
    pub(super) fn new(a: &'a Tensor, b: &'a Tensor, c: &'a Tensor, rounding: Rounding) -> Judge<'a> {
        Judge { a, b, c, rounding, recomputed: 0 }
    }

    pub(super) fn element(&mut self, row: usize, col: usize) -> Result<f64, Mismatch> {
        let a = row_values(self.a, row);
        let b = row_values(&self.b.transposed(), col);
        self.judge(row, col, &a, &b)
    }

    pub(super) fn tile(&mut self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> Result<(), Mismatch> {
        let k = self.a.cols();
        let b = self.b.transposed();
        // Rows of B are read once for all columns of the tile.
        let mut columns = vec![Vec::with_capacity(k); cols.len()];
        for_dtype!(b.dtype(), T => if let Ok(view) = b.view::<T>() {
            for step in 0..k {
                for (column, col) in columns.iter_mut().zip(cols.clone()) {
                    column.push(Element::to_f64(view[(col, step)]));
                }
            }
        });
        for row in rows {
            let a = row_values(self.a, row);
            for (col, b) in cols.clone().zip(&columns) {
                self.judge(row, col, &a, b)?;
            }
        }
        Ok(())
    }

    /// Whether C[row, col] can be `a·b`; returns `a·b` in f64.
    fn judge(&mut self, row: usize, col: usize, a: &[f64], b: &[f64]) -> Result<f64, Mismatch> {
        self.recomputed += 1;
        let Rounding { sum, out, tiny_sum, tiny_out, max_sum, max_out } = self.rounding;
        let got = self.c.get(row, col).unwrap_or(f64::NAN);
        let (want, mut magnitude) = dot(a, b);
        let mut operands_finite = true;
        if !magnitude.is_finite() {
            operands_finite = a.iter().chain(b).all(|v| v.is_finite());
            let terms = a.iter().zip(b).map(|(a, b)| (a * b).abs());
            let finite = a.iter().zip(b).map(|(a, b)| a.is_finite() && b.is_finite());
            magnitude = terms.zip(finite).filter(|(_, f)| *f).map(|(t, _)| t).sum();
        }
        // Partial sums can overflow even where the total does not: then an infinity or a NaN is honest.
        let may_overflow = magnitude >= max_sum * 0.999;
        let k = a.len();
        // Σ|a||b| bounds every partial sum, and never under- or overflows where the sum does not.
        let error = (bound::worst_growth(k) * (sum + 2f64.powi(-53))) * magnitude
            + out * want.abs()
            + (k + 1) as f64 * tiny_sum
            + tiny_out;
        let right = if got.is_finite() {
            operands_finite && ((got - want).abs() <= error || (may_overflow && !want.is_finite()))
        } else if !operands_finite {
            may_overflow || (want.is_nan() && got.is_nan()) || (want.is_infinite() && want == got)
        } else {
            // An infinity needs terms of its sign that reach the end of the range; a NaN needs terms of both signs.
            let side = |sign: f64| {
                let terms = a.iter().zip(b).map(|(a, b)| a * b * sign);
                terms.filter(|term| *term > 0.0).sum::<f64>() >= max_sum * 0.999
            };
            if got.is_nan() {
                may_overflow && side(1.0) && side(-1.0)
            } else {
                (may_overflow && side(got.signum())) || (want.abs() + error >= max_out && want.signum() == got.signum())
            }
        };
        if right {
            return Ok(want);
        }
        Err(Mismatch {
            row,
            col: Some(col),
            residual: (got - want).abs(),
            threshold: error,
            what: format!(
                "element ({row}, {col}) is {got:e}, not {want:e}; rounding allows a difference of {error:.3e}"
            ),
        })
    }
}

/// Σ a·b and Σ |a·b|, in eight lanes.
pub(super) fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (mut sums, mut sizes) = ([0.0; 8], [0.0; 8]);
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a8.remainder().iter().zip(b8.remainder());
    let (mut sum, mut size) = (0.0, 0.0);
    for (a, b) in rest {
        sum += a * b;
        size += (a * b).abs();
    }
    for (a, b) in a8.zip(b8) {
        for lane in 0..8 {
            let product = a[lane] * b[lane];
            sums[lane] += product;
            sizes[lane] += product.abs();
        }
    }
    (sum + sums.iter().sum::<f64>(), size + sizes.iter().sum::<f64>())
}
