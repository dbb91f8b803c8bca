//! Elements of a product that cannot be finite, because a row of A or a column of B is not: each must be NaN, or the
//! infinity that its terms give. Rounding is not looked at here.
//!
//! A term with a NaN, or zero times an infinity, makes an element NaN, and so do two infinities of different signs. Other
//! infinities make it infinite; only where finite terms overflow besides may it be NaN, too.

use super::float::MOST_IN_CHECK;
use super::judge::{Dice, Judge};
use super::{Mismatch, row_values};
use crate::Tensor;

/// Terms that are looked at for one element that is checked by the vectors: as much work as such an element is.
const TERMS_PER_ELEMENT: usize = 8;
/// Terms that are looked at in any case.
const TERMS_MIN: usize = 1 << 20;

/// A line of a matrix that is not finite.
pub(super) struct NotFinite {
    /// Index of the line.
    pub(super) index: usize,
    has_nan: bool,
    /// The infinities: position and value.
    infinities: Vec<(usize, f64)>,
}

impl NotFinite {
    fn new(index: usize, values: &[f64]) -> NotFinite {
        let infinities = values.iter().copied().enumerate().filter(|(_, value)| value.is_infinite());
        NotFinite { index, has_nan: values.iter().any(|value| value.is_nan()), infinities: infinities.collect() }
    }

    /// Column `col` of `b`.
    pub(super) fn column(b: &Tensor, col: usize) -> NotFinite {
        NotFinite::new(col, &row_values(&b.transposed(), col))
    }

    /// Terms to look at for one element of the line.
    fn terms(&self) -> usize {
        if self.has_nan { 0 } else { self.infinities.len() }
    }
}

/// What the terms that are not finite make of an element.
#[derive(Clone, Copy, Default)]
struct Terms {
    nan: bool,
    above: bool,
    below: bool,
}

impl Terms {
    fn add(&mut self, product: f64) {
        self.nan |= product.is_nan();
        self.above |= product == f64::INFINITY;
        self.below |= product == f64::NEG_INFINITY;
    }

    /// The element without overflow of the other terms.
    fn value(self) -> f64 {
        match self {
            Terms { nan: false, above: true, below: false } => f64::INFINITY,
            Terms { nan: false, above: false, below: true } => f64::NEG_INFINITY,
            _ => f64::NAN,
        }
    }
}

/// Checks every element in `rows`, the rows of A that are not finite, and in the `columns` of B that are not. Returns the
/// number of rows where some infinities were not told from NaN, because that would take longer than the product.
pub(super) fn check(
    judge: &mut Judge<'_>,
    rows: &[usize],
    columns: &[NotFinite],
    dice: &mut Dice,
) -> Result<usize, Mismatch> {
    if rows.is_empty() && columns.is_empty() {
        return Ok(0);
    }
    let (a, b, c) = (judge.a, judge.b, judge.c);
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let elements = m.saturating_mul(k).saturating_add(k.saturating_mul(n)).saturating_add(m.saturating_mul(n));
    let mut budget = elements.saturating_mul(TERMS_PER_ELEMENT).max(TERMS_MIN);
    let mut sampled_only = 0;
    let every_row: Vec<usize> = (0..m).collect();
    let column_terms: usize = columns.iter().map(NotFinite::terms).sum();
    for &row in if columns.is_empty() { rows } else { &every_row } {
        let values = row_values(a, row);
        let line = NotFinite::new(row, &values);
        let is_finite = !line.has_nan && line.infinities.is_empty();
        let work = line.terms().saturating_mul(n).saturating_add(column_terms);
        let got = row_values(c, row);
        let judged: Vec<usize> =
            if is_finite { columns.iter().map(|column| column.index).collect() } else { (0..n).collect() };
        if let Some(col) = judged.iter().find(|&&col| got[col].is_finite()) {
            return Err(wrong(row, *col, got[*col], "not finite"));
        }
        if work > budget {
            sampled_only += 1;
            for _ in 0..2 {
                judge.element(row, judged[dice.below(judged.len())])?;
            }
            continue;
        }
        budget -= work;
        let mut terms = vec![Terms { nan: line.has_nan, ..Terms::default() }; n];
        if !line.has_nan {
            for &(position, value) in &line.infinities {
                for (terms, b) in terms.iter_mut().zip(row_values(b, position)) {
                    terms.add(value * b);
                }
            }
            for column in columns {
                let terms = &mut terms[column.index];
                terms.nan |= column.has_nan;
                if !column.has_nan {
                    column.infinities.iter().for_each(|&(position, value)| terms.add(values[position] * value));
                }
            }
        }
        let mut is_sampled = false;
        for col in judged {
            let (got, want) = (got[col], terms[col].value());
            if got == want || (got.is_nan() && want.is_nan()) {
                continue;
            }
            if !got.is_nan() {
                return Err(wrong(row, col, got, if want.is_nan() { "NaN" } else { "the other infinity" }));
            }
            // NaN instead of an infinity: honest only where the finite terms overflow to the other side.
            if judge.recomputed > MOST_IN_CHECK {
                is_sampled = true;
            } else {
                judge.element(row, col)?;
            }
        }
        sampled_only += usize::from(is_sampled);
    }
    Ok(sampled_only)
}

fn wrong(row: usize, col: usize, got: f64, want: &str) -> Mismatch {
    Mismatch {
        row,
        col: Some(col),
        residual: f64::INFINITY,
        threshold: 0.0,
        what: format!("element ({row}, {col}) is {got:e}; its operands make it {want}"),
    }
}
