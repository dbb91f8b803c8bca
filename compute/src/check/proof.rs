//! Whether a result is wrong beyond any rounding: what convicts its worker in front of nodes that never worked with it. Stricter
//! than a check, which may refuse an honest product once in a great while: here an element is computed again and differs by
//! more than any order of summation explains, whatever the operands are.

use super::bound::Rounding;
use super::judge::Judge;
use super::{ColumnProbe, Mismatch, row_values};
use crate::{Cancel, Error, Pool, Tensor, matmul};

/// Outcome of looking for a proof.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    /// The result is wrong; this is shown by arithmetic alone.
    Wrong(Mismatch),
    /// A check finds nothing wrong.
    Passes,
    /// A check refuses the result, but every element that differs most is within what rounding can explain.
    Unclear,
}

/// Looks for a proof that `c` is not `a·b`. `seed` must be fresh. Costs a product.
///
/// # Errors
/// [`Error::Dtype`] or [`Error::Shape`] where there is no such product; [`Error::OutOfMemory`], [`Error::Cancelled`].
pub fn product(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    seed: [u8; 32],
    pool: &Pool,
    cancel: &Cancel,
) -> Result<Proof, Error> {
    let probe = ColumnProbe::new(b, c.dtype(), seed, pool)?;
    let mismatch = match probe.check(a, b, c, pool) {
        Ok(_) => return Ok(Proof::Passes),
        Err(mismatch) => mismatch,
    };
    // A result of another shape is wrong whatever is in it, integers are exact, and a single element was computed again with a bound that holds for any order of summation.
    if c.shape() != (a.rows(), b.cols()) || !c.dtype().is_float() || mismatch.col.is_some() {
        return Ok(Proof::Wrong(mismatch));
    }
    let again = matmul(a, b, pool, cancel)?;
    let norms = column_norms(b);
    for row in 0..c.rows() {
        let Some(col) = most_different(&row_values(c, row), &row_values(&again, row), &norms) else { continue };
        if let Err(mismatch) = Judge::new(a, b, c, Rounding::of(c.dtype())).element(row, col) {
            return Ok(Proof::Wrong(mismatch));
        }
    }
    Ok(Proof::Unclear)
}

/// The column in which two rows differ most, measured against the column's norm: rounding is in proportion to it.
fn most_different(ours: &[f64], theirs: &[f64], norms: &[f64]) -> Option<usize> {
    let difference = |col: usize| (ours[col] - theirs[col]).abs() / norms[col].max(f64::MIN_POSITIVE);
    (0..ours.len())
        .filter(|col| ours[*col].is_finite() && theirs[*col].is_finite())
        .max_by(|one, other| difference(*one).total_cmp(&difference(*other)))
}

fn column_norms(b: &Tensor) -> Vec<f64> {
    let mut squares = vec![0.0; b.cols()];
    for row in 0..b.rows() {
        for (sum, value) in squares.iter_mut().zip(row_values(b, row)) {
            *sum += value * value;
        }
    }
    squares.into_iter().map(f64::sqrt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, TensorBuf};

    fn changed(c: &Tensor, row: usize, col: usize, by: f64) -> Tensor {
        let mut lie = TensorBuf::new(c.dtype(), c.rows(), c.cols()).unwrap();
        lie.write_block(0, 0, c).unwrap();
        let size = c.dtype().size_bytes();
        let at = (row * c.cols() + col) * size;
        let value = c.get(row, col).unwrap() + by;
        let bytes = match c.dtype() {
            DType::F32 => (value as f32).to_le_bytes().to_vec(),
            DType::I32 => (value as i32).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        lie.bytes_mut()[at..at + size].copy_from_slice(&bytes);
        lie.freeze()
    }

    fn prove(a: &Tensor, b: &Tensor, c: &Tensor) -> Proof {
        product(a, b, c, [7; 32], &Pool::new(1).unwrap(), &Cancel::new()).unwrap()
    }

    #[test]
    fn a_wrong_element_is_proven_and_a_right_product_passes() {
        let pool = Pool::new(1).unwrap();
        for (dtype, by) in [(DType::F32, 1.0), (DType::F64, 1e-6), (DType::I8, 1.0)] {
            let a = Tensor::generate(dtype, 40, 120, 1).unwrap();
            let b = Tensor::generate(dtype, 120, 50, 2).unwrap();
            let c = matmul(&a, &b, &pool, &Cancel::new()).unwrap();
            assert_eq!(prove(&a, &b, &c), Proof::Passes, "{dtype}");
            let proof = prove(&a, &b, &changed(&c, 17, 31, by));
            let Proof::Wrong(mismatch) = proof else { panic!("{dtype}: {proof:?}") };
            assert_eq!(mismatch.row, 17);
        }
    }

    /// An accuser chooses the operands: rows that cancel almost completely make honest rounding look large.
    #[test]
    fn an_honest_product_of_operands_made_to_look_wrong_is_never_proven_wrong() {
        let pool = Pool::new(1).unwrap();
        for scale in [1.0f32, 1e18, 1e-30, 3e37] {
            let (m, k, n) = (8, 64, 8);
            let mut a = TensorBuf::new(DType::F32, m, k).unwrap();
            for (at, bytes) in a.bytes_mut().chunks_exact_mut(4).enumerate() {
                let sign = if at % 2 == 0 { 1.0 } else { -1.0 };
                let value: f32 = sign * scale * (1.0 + (at % 7) as f32 * 1e-7);
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            let a = a.freeze();
            let b = Tensor::generate(DType::F32, k, n, 3).unwrap();
            let c = matmul(&a, &b, &pool, &Cancel::new()).unwrap();
            assert!(!matches!(prove(&a, &b, &c), Proof::Wrong(_)), "{scale}");
        }
    }
}
