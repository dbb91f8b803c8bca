//! Float products, checked within rounding: eight secret vectors in f64 against the bound of [`super::bound`], and a few
//! random 4 × 4 tiles computed again. Elements that are not finite are judged by class in `classes`, one by one in
//! `judge`.

use super::bound::{self, DEVIATIONS, Rounding};
use super::classes::{self, NotFinite};
use super::judge::{Dice, Judge, dot};
use super::{CheckReport, Mismatch, by_rows, row_values, secret};
use crate::dtype::for_dtype;
use crate::kernel::skinny::{Lane, Reading, VECTORS, column_squares, skinny};
use crate::{DType, Element, Pool, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};

/// The side of a recomputed tile.
const TILE: usize = 4;
/// Tiles computed again, at most; fewer for small results, so that tiles cost about a hundredth of the product.
const MOST_TILES: usize = 4;
const ELEMENTS_PER_TILE: usize = 1 << 18;
/// Elements of a row computed again because they are not finite, at most; a row with more is checked without the columns
/// of those elements.
const MOST_IN_ROW: usize = 16;
/// Elements computed again in one check because they, or others of their row and column, are not finite.
pub(super) const MOST_IN_CHECK: usize = 512;
/// f64 operands beyond 2^±100 are scaled, so that squares and products of norms stay in range.
const SAFE_EXPONENT: i32 = 100;
/// Exponents of column norms beyond which B and C are scaled as a whole, so that weights stay in range.
const SAFE_COLUMN_EXPONENT: i32 = 900;
/// Exponent of the largest weight of a column, with room for sums over all columns.
const WEIGHT_EXPONENT_MAX: i32 = 1000;

pub(super) struct FloatProbe {
    seed: [u8; 32],
    /// Most probes have one: see [`bound::column_floors`].
    screens: Vec<Screen>,
    /// B and C are scaled by 2^−exponent.
    exponent: i32,
    /// Columns of B with NaN or infinities.
    bad: Vec<NotFinite>,
    /// Columns of B without any other number than 0, in order: the product has zeros there.
    zero: Vec<usize>,
    /// A counter, so that each check samples other rows.
    checks: AtomicU64,
}

/// Columns of B that are checked together.
struct Screen {
    /// x, `[n]` lanes of ±weight; 0 for columns of other screens.
    x: Vec<Lane>,
    /// Weights of the columns, `[n]`: 1 / ‖b_j‖, or 0.
    weights: Vec<f64>,
    /// B·x, `[k]` lanes.
    bx: Vec<Lane>,
    /// The norm over the columns of weight times norm.
    norm: f64,
    /// ‖weights‖₂.
    weight_norm: f64,
}

/// Norm of a column: `norm · 2^exponent`.
#[derive(Clone, Copy)]
struct ColumnNorm {
    norm: f64,
    exponent: i32,
}

impl ColumnNorm {
    fn log2(self) -> i32 {
        self.exponent + self.norm.log2() as i32
    }

    /// 2^`scale` / norm, within the range of weights.
    fn weight(self, scale: i32) -> f64 {
        let (p, q) = power(scale - self.exponent);
        let limit = 2f64.powi(WEIGHT_EXPONENT_MAX);
        (p / self.norm * q).clamp(1.0 / limit, limit)
    }
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

/// The norms of all columns; `None` for those with NaN or infinities.
fn column_norms(b: &Tensor, pool: &Pool) -> Vec<Option<ColumnNorm>> {
    /// Columns of one item: what a thread goes through at a time is as wide as a page.
    const STRIP: usize = 64;
    let n = b.cols();
    let mut strips = vec![[0.0; STRIP]; n.div_ceil(STRIP)];
    by_rows(pool, strips.len(), b.rows().saturating_mul(STRIP), &mut strips, &|range, strips| {
        let cols = range.start * STRIP..(range.end * STRIP).min(n);
        let count = cols.len();
        column_squares(pool.isa(), b, cols, &mut strips.as_flattened_mut()[..count]);
    });
    let usual = 1e-60..1e60;
    let columns = b.transposed();
    let norm = |(col, &squares): (usize, &f64)| {
        if b.dtype() != DType::F64 || usual.contains(&squares) {
            return squares.is_finite().then(|| ColumnNorm { norm: squares.sqrt(), exponent: 0 });
        }
        let values = row_values(&columns, col);
        if values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let exponent = row_exponent(&columns, col);
        let (p, q) = power(-exponent);
        Some(ColumnNorm { norm: values.iter().map(|v| (v * p * q).powi(2)).sum::<f64>().sqrt(), exponent })
    };
    strips.as_flattened()[..n].iter().enumerate().map(norm).collect()
}

/// The exponent that brings columns with norms of these exponents into range.
fn column_exponent(exponents: impl Iterator<Item = i32> + Clone) -> i32 {
    let (Some(least), Some(most)) = (exponents.clone().min(), exponents.max()) else { return 0 };
    if least >= -SAFE_COLUMN_EXPONENT && most <= SAFE_COLUMN_EXPONENT {
        return 0;
    }
    // Where the range is too narrow for all, the largest fit: their products must not overflow.
    (least + (most - least) / 2).max(most - SAFE_COLUMN_EXPONENT)
}

/// The norm of a vector whose squares may overflow.
fn long_norm(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    if largest == 0.0 { 0.0 } else { largest * values.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt() }
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

impl FloatProbe {
    pub(super) fn new(out: DType, b: &Tensor, seed: &[u8; 32], pool: &Pool) -> FloatProbe {
        let n = b.cols();
        let norms = column_norms(b, pool);
        let bad: Vec<NotFinite> = (0..n).filter(|&j| norms[j].is_none()).map(|j| NotFinite::column(b, j)).collect();
        let zero = (0..n).filter(|&j| norms[j].is_some_and(|column| column.norm == 0.0)).collect();
        let used = |j: usize| norms[j].filter(|column| column.norm > 0.0);
        let exponent = column_exponent((0..n).filter_map(used).map(ColumnNorm::log2));
        let scales = (exponent != 0).then(|| vec![power(-exponent); b.rows()]);
        let reading = Reading { finite_only: !bad.is_empty(), scales: scales.as_deref(), weights: None };
        let mut bytes = vec![0u8; n];
        secret(seed, "signs").fill(&mut bytes);
        let floors = bound::column_floors(out);
        let screen_of = |column: ColumnNorm| floors.iter().filter(|floor| column.log2() < **floor).count();
        let screens = (0..=floors.len()).filter_map(|screen| {
            let weights: Vec<f64> = (0..n)
                .map(|j| used(j).filter(|column| screen_of(*column) == screen).map_or(0.0, |c| c.weight(exponent)))
                .collect();
            // The first is there in any case: it finds out which rows of A are finite.
            if screen > 0 && weights.iter().all(|weight| *weight == 0.0) {
                return None;
            }
            let signed = |(byte, weight): (&u8, &f64)| -> Lane {
                std::array::from_fn(|r| if byte >> r & 1 == 1 { *weight } else { -weight })
            };
            let x: Vec<Lane> = bytes.iter().zip(&weights).map(signed).collect();
            let share = |j: usize| {
                let (p, q) = norms[j].map_or((0.0, 0.0), |column| power(column.exponent - exponent));
                weights[j] * p * norms[j].map_or(0.0, |column| column.norm) * q
            };
            Some(Screen {
                bx: times(b, &x, reading, pool).into_iter().map(|r| r.lanes).collect(),
                norm: (0..n).map(|j| share(j).powi(2)).sum::<f64>().sqrt(),
                weight_norm: long_norm(&weights),
                weights,
                x,
            })
        });
        FloatProbe { seed: *seed, screens: screens.collect(), exponent, bad, zero, checks: AtomicU64::new(0) }
    }

    pub(super) fn size_bytes(&self) -> usize {
        let lanes = |screen: &Screen| (screen.x.len() + screen.bx.len()) * size_of::<Lane>() + screen.weights.len() * 8;
        self.screens.iter().map(lanes).sum()
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
        let serial = self.checks.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice::new(secret(&self.seed, &format!("tiles {serial}")));
        let mut judge = Judge::new(a, b, c, Rounding::of(out));
        let mut rows = Rows::new(self, a, pool);
        let expected = rows.expected.take().unwrap_or_default();
        let is_finite = |row: usize| expected[row].squares.is_finite();
        self.zeros(c, &is_finite)?;
        let not_finite: Vec<usize> = (0..m).filter(|row| !is_finite(*row)).collect();
        let mut sampled_only = classes::check(&mut judge, &not_finite, &self.bad, &mut dice)?;

        // Rows of C with more elements that are not finite than are computed again.
        let mut crowded = Vec::new();
        for (index, screen) in self.screens.iter().enumerate() {
            let got = times(c, &screen.x, rows.reading(!self.bad.is_empty(), screen, out), pool);
            let later;
            let expected = if index == 0 {
                &expected
            } else {
                later = times(a, &screen.bx, rows.a_reading(), pool);
                &later
            };
            for row in (0..m).filter(|row| is_finite(*row)) {
                let mut have = got[row];
                if !have.squares.is_finite() || !self.bad.is_empty() {
                    if crowded.contains(&row) {
                        continue;
                    }
                    match self.overflowed(row, screen, &rows, &mut judge)? {
                        Some(corrected) => have = corrected,
                        None => {
                            crowded.push(row);
                            continue;
                        }
                    }
                }
                rows.compare(row, screen, &expected[row], &have, (k, n), &judge.rounding)?;
            }
        }
        if !crowded.is_empty() {
            sampled_only += self.without_columns(&crowded, &rows, &mut judge, &mut dice, out, pool)?;
        }
        if m > 0 && n > 0 {
            let tiles = (m * n / ELEMENTS_PER_TILE).clamp(1, MOST_TILES);
            for _ in 0..tiles {
                let (row, col) = (dice.below(m), dice.below(n));
                judge.tile(row..(row + TILE).min(m), col..(col + TILE).min(n))?;
            }
        }
        Ok(CheckReport {
            method: "freivalds-f64+tiles",
            vectors: VECTORS,
            elements_recomputed: judge.recomputed,
            rows_sampled_only: sampled_only,
            false_alarm: bound::false_alarm(m, VECTORS),
            detection_limit: bound::detection_limit(k, n, out),
        })
    }

    /// Checks that C is zero where B has nothing but zeros and the row of A is finite.
    fn zeros(&self, c: &Tensor, is_finite: &dyn Fn(usize) -> bool) -> Result<(), Mismatch> {
        if self.zero.is_empty() {
            return Ok(());
        }
        let wrong = for_dtype!(c.dtype(), T => c.view::<T>().ok().and_then(|view| {
            let mut rows = (0..c.rows()).filter(|row| is_finite(*row));
            rows.find_map(|row| {
                let col = self.zero.iter().find(|&&col| Element::to_f64(view[(row, col)]) != 0.0)?;
                Some((row, *col, Element::to_f64(view[(row, *col)])))
            })
        }));
        let Some((row, col, got)) = wrong else { return Ok(()) };
        Err(Mismatch {
            row,
            col: Some(col),
            residual: got.abs(),
            threshold: 0.0,
            what: format!("element ({row}, {col}) is {got:e}, not 0: the column of the right operand is all zeros"),
        })
    }

    /// For a row of C that holds NaN or infinities although its row of A does not: judges those elements one by one,
    /// and puts the correct values in the row's sums. `None` where there are too many.
    fn overflowed(
        &self,
        row: usize,
        screen: &Screen,
        rows: &Rows<'_>,
        judge: &mut Judge<'_>,
    ) -> Result<Option<RowSums>, Mismatch> {
        let mut values = row_values(judge.c, row);
        for column in &self.bad {
            values[column.index] = 0.0;
        }
        let overflowed: Vec<usize> = (0..values.len()).filter(|j| !values[*j].is_finite()).collect();
        if overflowed.len() > MOST_IN_ROW || (!overflowed.is_empty() && judge.recomputed > MOST_IN_CHECK) {
            return Ok(None);
        }
        let scale = power(-rows.exponent(row));
        for value in &mut values {
            *value = *value * scale.0 * scale.1;
        }
        let (a_scale, b_scale) = (rows.a_scale(row), power(-self.exponent));
        let a: Vec<f64> = row_values(judge.a, row).iter().map(|a| a * a_scale.0 * a_scale.1).collect();
        for j in overflowed {
            judge.element(row, j)?;
            // Scaled before summing, so that this sum does not overflow too.
            let mut b = row_values(&judge.b.transposed(), j);
            b.iter_mut().for_each(|b| *b = *b * b_scale.0 * b_scale.1);
            values[j] = dot(&a, &b).0;
        }
        let mut sums = RowSums::default();
        for ((value, x), weight) in values.iter().zip(&screen.x).zip(&screen.weights) {
            sums.squares += (value * weight).powi(2);
            for (sum, x) in sums.lanes.iter_mut().zip(x) {
                *sum += value * x;
            }
        }
        Ok(Some(sums))
    }

    /// Checks `crowded` rows of C without the columns in which one of them is not finite, then the elements of those
    /// columns: all of them, or as many as are computed again. Returns the number of rows where elements were left out.
    fn without_columns(
        &self,
        crowded: &[usize],
        rows: &Rows<'_>,
        judge: &mut Judge<'_>,
        dice: &mut Dice,
        out: DType,
        pool: &Pool,
    ) -> Result<usize, Mismatch> {
        let (a, b, c) = (judge.a, judge.b, judge.c);
        let mut left_out = vec![false; b.cols()];
        for &row in crowded {
            for (left_out, value) in left_out.iter_mut().zip(row_values(c, row)) {
                *left_out |= !value.is_finite();
            }
        }
        self.bad.iter().for_each(|column| left_out[column.index] = false);
        let b_scales = (self.exponent != 0).then(|| vec![power(-self.exponent); b.rows()]);
        let b_reading = Reading { finite_only: !self.bad.is_empty(), scales: b_scales.as_deref(), weights: None };
        for screen in &self.screens {
            let keep = |j: usize| f64::from(!left_out[j]);
            let x: Vec<Lane> = screen.x.iter().enumerate().map(|(j, x)| x.map(|x| x * keep(j))).collect();
            let weights = screen.weights.iter().enumerate().map(|(j, weight)| weight * keep(j)).collect();
            let bx = times(b, &x, b_reading, pool).into_iter().map(|r| r.lanes).collect();
            let rest = Screen { x, weights, bx, ..*screen };
            let expected = times(a, &rest.bx, rows.a_reading(), pool);
            let got = times(c, &rest.x, rows.reading(true, &rest, out), pool);
            for &row in crowded {
                rows.compare(row, &rest, &expected[row], &got[row], (a.cols(), b.cols()), &judge.rounding)?;
            }
        }
        let columns: Vec<usize> = (0..b.cols()).filter(|&j| left_out[j]).collect();
        let elements = crowded.len() * columns.len();
        if elements <= MOST_IN_CHECK {
            for &row in crowded {
                columns.iter().try_for_each(|&col| judge.element(row, col).map(drop))?;
            }
            return Ok(0);
        }
        for _ in 0..MOST_IN_CHECK {
            judge.element(crowded[dice.below(crowded.len())], columns[dice.below(columns.len())])?;
        }
        Ok(crowded.len())
    }
}

/// The rows of one check: what they should give, and how they are scaled.
struct Rows<'a> {
    probe: &'a FloatProbe,
    /// A·(B·x) of the first screen, and the squares of A's rows.
    expected: Option<Vec<RowSums>>,
    a_exponents: Option<Vec<i32>>,
    a_scales: Option<Vec<(f64, f64)>>,
    c_scales: Option<Vec<(f64, f64)>>,
}

impl<'a> Rows<'a> {
    fn new(probe: &'a FloatProbe, a: &Tensor, pool: &Pool) -> Rows<'a> {
        let first = &probe.screens[0].bx;
        let mut rows = Rows { probe, expected: None, a_exponents: None, a_scales: None, c_scales: None };
        let mut expected = times(a, first, Reading::default(), pool);
        rows.a_exponents = exponents(a, &expected);
        if let Some(exponents) = &rows.a_exponents {
            rows.a_scales = Some(exponents.iter().map(|e| power(-e)).collect());
            expected = times(a, first, rows.a_reading(), pool);
        }
        if rows.a_scales.is_some() || probe.exponent != 0 {
            rows.c_scales = Some((0..a.rows()).map(|row| power(-rows.exponent(row))).collect());
        }
        rows.expected = Some(expected);
        rows
    }

    /// A row of C is scaled by 2^−exponent.
    fn exponent(&self, row: usize) -> i32 {
        self.probe.exponent + self.a_exponents.as_ref().map_or(0, |e| e[row])
    }

    fn a_scale(&self, row: usize) -> (f64, f64) {
        self.a_scales.as_ref().map_or((1.0, 1.0), |s| s[row])
    }

    fn a_reading(&self) -> Reading<'_> {
        Reading { finite_only: false, scales: self.a_scales.as_deref(), weights: None }
    }

    /// How C is read. The weighted squares matter only where the result was rounded once more.
    fn reading<'r>(&'r self, finite_only: bool, screen: &'r Screen, out: DType) -> Reading<'r> {
        let rounded = Rounding::of(out).out > 0.0;
        Reading { finite_only, scales: self.c_scales.as_deref(), weights: rounded.then_some(screen.weights.as_slice()) }
    }

    /// Whether what a row gives is what it should, within rounding. `sides`: k and n.
    fn compare(
        &self,
        row: usize,
        screen: &Screen,
        want: &RowSums,
        have: &RowSums,
        (k, n): (usize, usize),
        rounding: &Rounding,
    ) -> Result<(), Mismatch> {
        let scale = power(-self.exponent(row));
        // Scaled first: a small weight would leave nothing of so small a number.
        let tiny = (k + 1) as f64 * rounding.tiny_sum + rounding.tiny_out;
        let mut threshold = bound::relative(k, n, rounding) * screen.norm * want.squares.sqrt()
            + tiny * scale.0 * screen.weight_norm * scale.1;
        if rounding.out > 0.0 {
            threshold += rounding.out * have.squares.sqrt();
        }
        threshold *= DEVIATIONS;
        for (want, have) in want.lanes.iter().zip(&have.lanes) {
            let residual = (have - want).abs();
            // A NaN residual exceeds any threshold.
            let within = residual <= threshold;
            if !within {
                return Err(Mismatch {
                    row,
                    col: None,
                    residual,
                    threshold,
                    what: format!("row {row} has a residual of {residual:.3e}; rounding allows {threshold:.3e}"),
                });
            }
        }
        Ok(())
    }
}
