//! Whole products on one thread: what other engines' kernels are held to.
#![allow(unsafe_code)]

use super::{Input, Matrix, Quantized, Store, pack, packed_bytes, product};
use crate::gguf::GgmlType;
use crate::{Buffer, Error, Isa};
use std::sync::Arc;

/// `x · Wᵀ`, `[x.len() / k, rows]`, of weights `[rows, k]` as a file stores them.
///
/// # Errors
/// [`Error::Invalid`] for weights that are not whole blocks; [`Error::OutOfMemory`].
pub(crate) fn whole_product(
    ty: GgmlType,
    (rows, k): (usize, usize),
    weights: &[u8],
    x: &[f32],
) -> Result<Vec<f32>, Error> {
    let isa = Isa::best();
    let Some(bytes) = packed_bytes(ty, rows, k) else {
        return Err(Error::invalid("product", format!("{k} weights of {ty} are not whole blocks")));
    };
    let mut arena = Buffer::zeroed(bytes)?;
    pack(ty, rows, k, weights, 0..super::tiles(rows), arena.as_mut_slice());
    let matrix = Matrix::new(ty, rows, k, Arc::new(arena), 0)?;
    let count = x.len() / k;
    let mut quantized = Quantized::default();
    quantized.reshape(count, k)?;
    let mut out = vec![0.0; count * rows];
    // SAFETY: one thread; the best instruction set is available; `out` has all rows and columns.
    unsafe {
        for (row, x) in x.chunks_exact(k).enumerate() {
            quantized.quantize_row(isa, x, row);
        }
        let input = if matrix.takes_floats() { Input::Floats(x) } else { Input::Quantized(&quantized) };
        product(isa, &matrix, 0..matrix.tiles(), input, 0..count, out.as_mut_ptr(), rows, Store::Set);
    }
    Ok(out)
}
