//! Float products, checked within rounding: eight secret ±1 vectors in f64 against the bound of [`super::bound`], and a
//! few random 4 × 4 tiles computed again. NaN, infinities and overflow are judged by class.

use super::bound::{self, DEVIATIONS, Rounding};
use super::{CheckReport, Mismatch, by_rows, secret};
use crate::dtype::for_dtype;
use crate::kernel::skinny::{Lane, Reading, VECTORS, skinny};
use crate::{DType, Element, Pool, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};

/// The side of a recomputed tile.
const TILE: usize = 4;
/// Tiles computed again, at most; fewer for small results, so that tiles cost about a hundredth of the product.
const MOST_TILES: usize = 4;
const ELEMENTS_PER_TILE: usize = 1 << 18;
/// Elements computed again because they are not finite, at most, per row and per check.
const MOST_IN_ROW: usize = 16;
const MOST_IN_CHECK: usize = 512;
/// f64 operands beyond 2^±100 are scaled, so that squares and products of norms stay in range.
const SAFE_EXPONENT: i32 = 100;

pub(super) struct FloatProbe {
    seed: [u8; 32],
    /// x, `[n]` lanes of ±1; 0 for the columns in `bad`.
    x: Vec<Lane>,
    /// B·x, `[k]` lanes, scaled by 2^−exponent.
    bx: Vec<Lane>,
    /// ‖B‖_F over the other columns, scaled by 2^−exponent.
    norm: f64,
    exponent: i32,
    /// Columns of B with NaN or infinities, in order.
    bad: Vec<usize>,
    /// A counter, so that each check samples other rows.
    checks: AtomicU64,
}

/// One row's sums over the vectors and of its squares.
#[derive(Clone, Copy, Default)]
struct RowSums {
    lanes: Lane,
    squares: f64,
}

/// 2^e as two factors that stay in range. Beyond 2^±2000 an f64 product has no digits left to scale.
fn power(e: i32) -> (f64, f64) {
    let half = (e / 2).clamp(-1000, 1000);
    (2f64.powi(half), 2f64.powi((e - e / 2).clamp(-1000, 1000)))
}

/// The exponent of the largest finite magnitude in an f64 tensor's row; 0 for other types and where no scaling is
/// needed.
fn row_exponent(t: &Tensor, row: usize) -> i32 {
    let Ok(view) = t.view::<f64>() else { return 0 };
    let largest = view.row(row).iter().filter(|v| v.is_finite()).fold(0.0f64, |max, v| max.max(v.abs()));
    let e = if largest == 0.0 { 0 } else { largest.log2() as i32 };
    if e.abs() > SAFE_EXPONENT { e } else { 0 }
}

/// The [`row_exponent`] of every row, computed only where the rows' `squares` are extreme; `None` where all are 0.
fn exponents(t: &Tensor, rows: &[RowSums]) -> Option<Vec<i32>> {
    if t.dtype() != DType::F64 {
        return None;
    }
    let usual = 1e-60..1e60;
    if rows.iter().all(|row| usual.contains(&row.squares)) {
        return None;
    }
    let exponents: Vec<i32> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| match usual.contains(&row.squares) {
            true => 0,
            false => row_exponent(t, index),
        })
        .collect();
    exponents.iter().any(|e| *e != 0).then_some(exponents)
}

/// `t·v` and the rows' squares.
fn times(t: &Tensor, v: &[Lane], reading: Reading<'_>, pool: &Pool) -> Vec<RowSums> {
    let mut out = vec![RowSums::default(); t.rows()];
    by_rows(pool, t.rows(), t.cols(), &mut out, &|rows, out| {
        // Small pieces, so that the sums stay on the stack.
        const PIECE: usize = 64;
        for (piece, row) in out.chunks_mut(PIECE).zip(rows.step_by(PIECE)) {
            let (mut lanes, mut squares) = ([[0.0; VECTORS]; PIECE], [0.0; PIECE]);
            let count = piece.len();
            skinny(pool.isa(), t, row..row + count, v, reading, &mut lanes[..count], &mut squares[..count]);
            for (i, out) in piece.iter_mut().enumerate() {
                *out = RowSums { lanes: lanes[i], squares: squares[i] };
            }
        }
    });
    out
}

/// Row `row` of `t` as f64.
fn row_values(t: &Tensor, row: usize) -> Vec<f64> {
    for_dtype!(t.dtype(), T => match t.view::<T>() {
        Ok(view) => view.row(row).iter().map(|v| Element::to_f64(*v)).collect(),
        Err(_) => Vec::new(),
    })
}

impl FloatProbe {
    pub(super) fn new(b: &Tensor, seed: &[u8; 32], pool: &Pool) -> FloatProbe {
        let mut bytes = vec![0u8; b.cols()];
        secret(seed, "signs").fill(&mut bytes);
        let mut x: Vec<Lane> =
            bytes.iter().map(|byte| std::array::from_fn(|r| if byte >> r & 1 == 1 { 1.0 } else { -1.0 })).collect();
        let mut reading = Reading::default();
        let mut rows = times(b, &x, reading, pool);
        // The row with the largest exponent decides; rows that need no scaling count as 0.
        let exponent = exponents(b, &rows).and_then(|e| e.into_iter().max()).unwrap_or(0);
        let scales = (exponent != 0).then(|| vec![power(-exponent); b.rows()]);
        if exponent != 0 {
            reading.scales = scales.as_deref();
            rows = times(b, &x, reading, pool);
        }
        let mut bad = Vec::new();
        if rows.iter().any(|r| !r.squares.is_finite()) {
            let mut is_bad = vec![false; b.cols()];
            for (row, _) in rows.iter().enumerate().filter(|(_, r)| !r.squares.is_finite()) {
                for (bad, v) in is_bad.iter_mut().zip(row_values(b, row)) {
                    *bad |= !v.is_finite();
                }
            }
            bad = (0..b.cols()).filter(|&j| is_bad[j]).collect();
            for &j in &bad {
                x[j] = [0.0; VECTORS];
            }
            reading.finite_only = true;
            rows = times(b, &x, reading, pool);
        }
        FloatProbe {
            seed: *seed,
            x,
            norm: rows.iter().map(|r| r.squares).sum::<f64>().sqrt(),
            bx: rows.into_iter().map(|r| r.lanes).collect(),
            exponent,
            bad,
            checks: AtomicU64::new(0),
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        (self.x.len() + self.bx.len()) * size_of::<Lane>()
    }

    pub(super) fn check(
        &self,
        out: DType,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        pool: &Pool,
    ) -> Result<CheckReport, Mismatch> {
        let (m, k, n) = (a.rows(), a.cols(), b.cols());
        let rounding = Rounding::of(out);
        let mut judge = Judge { a, b, c, rounding, recomputed: 0 };
        let mut rows_sampled_only = 0;
        let serial = self.checks.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice(secret(&self.seed, &format!("tiles {serial}")));

        let mut expected = times(a, &self.bx, Reading::default(), pool);
        let a_exponents = exponents(a, &expected);
        let a_scales: Option<Vec<(f64, f64)>> = a_exponents.as_ref().map(|e| e.iter().map(|e| power(-e)).collect());
        let scaled = a_scales.is_some() || self.exponent != 0;
        let c_exponent = |row: usize| self.exponent + a_exponents.as_ref().map_or(0, |e| e[row]);
        let c_scales: Option<Vec<(f64, f64)>> = scaled.then(|| (0..m).map(|row| power(-c_exponent(row))).collect());
        if a_scales.is_some() {
            let reading = Reading { finite_only: false, scales: a_scales.as_deref() };
            expected = times(a, &self.bx, reading, pool);
        }
        let got = times(c, &self.x, Reading { finite_only: !self.bad.is_empty(), scales: c_scales.as_deref() }, pool);

        let relative = DEVIATIONS * bound::relative(k, n, &rounding) * self.norm;
        let root_n = (n as f64).sqrt();
        let tiny = DEVIATIONS * root_n * ((k + 1) as f64 * rounding.tiny_sum + rounding.tiny_out);
        for row in 0..m {
            let (want, mut have) = (expected[row], got[row]);
            if !want.squares.is_finite() {
                // NaN or an infinity in this row of A: the linear check does not apply.
                rows_sampled_only += 1;
                judge.sample(row, &mut dice, 2)?;
                continue;
            }
            let scale = power(-c_exponent(row));
            let a_scale = a_scales.as_ref().map_or((1.0, 1.0), |s| s[row]);
            if !have.squares.is_finite() || !self.bad.is_empty() {
                match self.overflowed(row, &mut judge, &mut dice, scale, a_scale)? {
                    Some(corrected) => have = corrected,
                    None => {
                        rows_sampled_only += 1;
                        continue;
                    }
                }
            }
            let threshold = relative * want.squares.sqrt()
                + DEVIATIONS * rounding.out * have.squares.sqrt()
                + tiny * scale.0 * scale.1;
            for (want, have) in want.lanes.iter().zip(&have.lanes) {
                let residual = (have - want).abs();
                // A NaN residual exceeds any threshold.
                let within = residual <= threshold;
                if !within {
                    let unscale = power(c_exponent(row));
                    return Err(Mismatch {
                        row,
                        col: None,
                        residual: residual * unscale.0 * unscale.1,
                        threshold: threshold * unscale.0 * unscale.1,
                        what: format!("row {row} has a residual of {residual:.3e}; rounding allows {threshold:.3e}"),
                    });
                }
            }
        }
        if m > 0 && n > 0 {
            let tiles = (m * n / ELEMENTS_PER_TILE).clamp(1, MOST_TILES);
            for _ in 0..tiles {
                let (row, col) = (dice.below(m), dice.below(n));
                judge.tile(row..(row + TILE).min(m), col..(col + TILE).min(n))?;
            }
            // Columns of B with NaN or infinities, which the vectors leave out.
            for _ in 0..(4 * self.bad.len()).min(32) {
                let col = self.bad[dice.below(self.bad.len())];
                judge.element(dice.below(m), col)?;
            }
        }
        Ok(CheckReport {
            method: "freivalds-f64+tiles",
            vectors: VECTORS,
            elements_recomputed: judge.recomputed,
            rows_sampled_only,
            false_alarm: bound::false_alarm(m, VECTORS),
            detection_limit: bound::detection_limit(k, n, out),
        })
    }

    /// For a row of C that holds NaN or infinities although its row of A does not: judges those elements one by one,
    /// and puts the correct values in the row's sums. `None` where there are too many.
    fn overflowed(
        &self,
        row: usize,
        judge: &mut Judge<'_>,
        dice: &mut Dice,
        scale: (f64, f64),
        a_scale: (f64, f64),
    ) -> Result<Option<RowSums>, Mismatch> {
        let mut values = row_values(judge.c, row);
        let overflowed: Vec<usize> =
            (0..values.len()).filter(|j| !values[*j].is_finite() && self.bad.binary_search(j).is_err()).collect();
        if overflowed.len() > MOST_IN_ROW || judge.recomputed > MOST_IN_CHECK {
            for _ in 0..2 {
                judge.element(row, overflowed[dice.below(overflowed.len())])?;
            }
            judge.sample(row, dice, 2)?;
            return Ok(None);
        }
        for &j in &self.bad {
            values[j] = 0.0;
        }
        for value in &mut values {
            *value = *value * scale.0 * scale.1;
        }
        let b_scale = power(-self.exponent);
        let a: Vec<f64> = row_values(judge.a, row).iter().map(|a| a * a_scale.0 * a_scale.1).collect();
        for j in overflowed {
            judge.element(row, j)?;
            // Scaled before summing, so that this sum does not overflow too.
            let mut b = row_values(&judge.b.transposed(), j);
            b.iter_mut().for_each(|b| *b = *b * b_scale.0 * b_scale.1);
            values[j] = dot(&a, &b).0;
        }
        let mut sums = RowSums::default();
        for (value, x) in values.iter().zip(&self.x) {
            sums.squares += value * value;
            for (sum, x) in sums.lanes.iter_mut().zip(x) {
                *sum += value * x;
            }
        }
        Ok(Some(sums))
    }
}

/// A stream of secret random choices.
struct Dice(blake3::OutputReader);

impl Dice {
    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % limit.max(1) as u64) as usize
    }
}

/// Computes single elements again in f64 and judges them.
struct Judge<'a> {
    a: &'a Tensor,
    b: &'a Tensor,
    c: &'a Tensor,
    rounding: Rounding,
    recomputed: usize,
}

impl Judge<'_> {
    /// Judges `count` random elements of a row.
    fn sample(&mut self, row: usize, dice: &mut Dice, count: usize) -> Result<(), Mismatch> {
        // Rows beyond the budget are not sampled: a lie there could only replace an infinity by NaN.
        if self.recomputed > MOST_IN_CHECK || self.b.cols() == 0 {
            return Ok(());
        }
        for _ in 0..count {
            self.element(row, dice.below(self.b.cols()))?;
        }
        Ok(())
    }

    fn element(&mut self, row: usize, col: usize) -> Result<f64, Mismatch> {
        let a = row_values(self.a, row);
        let b = row_values(&self.b.transposed(), col);
        self.judge(row, col, &a, &b)
    }

    fn tile(&mut self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> Result<(), Mismatch> {
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
fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
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
