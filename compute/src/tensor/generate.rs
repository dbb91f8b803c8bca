//! Pseudo-random tensors, the same on every machine for the same seed: operands of demos, measurements and tests.

use super::{Tensor, TensorBuf, check_ranges};
use crate::{DType, Error};
use pangea_units::SplitMix64;
use std::ops::Range;

impl Tensor {
    /// A deterministic pseudo-random tensor: the same on every machine for the same arguments.
    ///
    /// Floats are uniform in [−1, 1), on a grid that every value of the type hits exactly; `i8` is uniform over all
    /// 256 values. Element (i, j) depends only on `seed` and `i · cols + j`, so that any block can be made alone
    /// ([`Tensor::generate_block`]).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn generate(dtype: DType, rows: usize, cols: usize, seed: u64) -> Result<Tensor, Error> {
        Tensor::generate_block(dtype, rows, cols, 0..rows, 0..cols, seed)
    }

    /// The block `rows` × `cols` of what [`Tensor::generate`] gives for a tensor of `rows_total` × `cols_total`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Invalid`] where the block lies outside.
    pub fn generate_block(
        dtype: DType,
        rows_total: usize,
        cols_total: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        seed: u64,
    ) -> Result<Tensor, Error> {
        check_ranges((rows_total, cols_total), &rows, &cols)?;
        let mut out = TensorBuf::new(dtype, rows.len(), cols.len())?;
        let key = SplitMix64::at(seed ^ 0x7061_6e67_6561_0001);
        macro_rules! fill {
            ($t:ty, $from:expr) => {
                if let Some(elements) = out.elements_mut::<$t>() {
                    let width = cols.len().max(1);
                    for (line, row) in elements.chunks_exact_mut(width).zip(rows) {
                        let first = (row as u64).wrapping_mul(cols_total as u64).wrapping_add(cols.start as u64);
                        for (to, step) in line.iter_mut().zip(0u64..) {
                            *to = $from(SplitMix64::at(key.wrapping_add(first.wrapping_add(step))));
                        }
                    }
                }
            };
        }
        match dtype {
            // 2^-10 and 2^-7 steps: representable exactly over the whole range.
            DType::F16 => fill!(half::f16, |h: u64| half::f16::from_f32((h as i64 >> 53) as f32 / 1024.0)),
            DType::Bf16 => fill!(half::bf16, |h: u64| half::bf16::from_f32((h as i64 >> 56) as f32 / 128.0)),
            DType::F32 => fill!(f32, |h: u64| (h as i64 >> 40) as f32 / 8_388_608.0),
            DType::F64 => fill!(f64, |h: u64| (h as i64 >> 11) as f64 / 4_503_599_627_370_496.0),
            DType::I8 => fill!(i8, |h: u64| (h >> 56) as i8),
            DType::I32 => fill!(i32, |h: u64| (h >> 32) as i32),
        }
        Ok(out.freeze())
    }
}
