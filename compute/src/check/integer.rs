//! Integer products, checked exactly: Freivalds over the field of 2⁶¹ − 1 elements with one secret random vector. A
//! wrong product passes with probability 1 / (2⁶¹ − 1).

use super::{CheckReport, Mismatch, by_rows, secret};
use crate::kernel::skinny::{Limbs, P61, skinny_exact};
use crate::{Pool, Tensor};

pub(super) struct IntegerProbe {
    /// x, `[n]`.
    x: Limbs,
    /// B·x, `[k]`.
    bx: Limbs,
}

impl IntegerProbe {
    pub(super) fn new(b: &Tensor, seed: &[u8; 32], pool: &Pool) -> IntegerProbe {
        let mut stream = secret(seed, "field");
        let mut draw = || loop {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            let value = u64::from_le_bytes(bytes) & P61;
            // All 61 bits set is p itself; drawing again makes every element equally likely.
            if value != P61 {
                return value;
            }
        };
        let x: Vec<u64> = (0..b.cols()).map(|_| draw()).collect();
        let x = Limbs::new(&x);
        let bx = times(b, &x, pool);
        IntegerProbe { x, bx: Limbs::new(&bx) }
    }

    pub(super) fn check(&self, a: &Tensor, c: &Tensor, pool: &Pool) -> Result<CheckReport, Mismatch> {
        let expected = times(a, &self.bx, pool);
        let got = times(c, &self.x, pool);
        let wrong = expected.iter().zip(&got).position(|(e, g)| e != g);
        if let Some(row) = wrong {
            return Err(Mismatch {
                row,
                col: None,
                residual: got[row].abs_diff(expected[row]) as f64,
                threshold: 0.0,
                what: format!("row {row} is not the exact integer product"),
            });
        }
        Ok(CheckReport {
            method: "freivalds-mod-p61",
            vectors: 1,
            elements_recomputed: 0,
            rows_sampled_only: 0,
            false_alarm: 0.0,
            detection_limit: 0.0,
        })
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.x.size_bytes() + self.bx.size_bytes()
    }
}

/// `t·x` in the field, `[t.rows()]`.
fn times(t: &Tensor, x: &Limbs, pool: &Pool) -> Vec<u64> {
    let mut out = vec![0; t.rows()];
    by_rows(pool, t.rows(), t.cols(), &mut out, &|rows, out| {
        skinny_exact(pool.isa(), t, rows, x, out);
    });
    out
}
