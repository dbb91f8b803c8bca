//! A tensor being written, block by block or as raw bytes, then frozen into a [`Tensor`]. Its memory is not shared
//! before it is frozen.

use super::{Tensor, checked_bytes, copy_rows};
use crate::dtype::for_dtype;
use crate::{Buffer, DType, Element, Error};

/// Memory for a row-major tensor of `rows` × `cols`, zero until written.
#[derive(Debug)]
pub struct TensorBuf {
    dtype: DType,
    rows: usize,
    cols: usize,
    buffer: Buffer,
}

impl TensorBuf {
    /// A tensor of zeros to write into.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::TooLarge`].
    pub fn new(dtype: DType, rows: usize, cols: usize) -> Result<TensorBuf, Error> {
        let bytes = checked_bytes(dtype, rows, cols)?;
        Ok(TensorBuf { dtype, rows, cols, buffer: Buffer::zeroed(bytes)? })
    }

    /// A tensor of unspecified content, for callers that write every element before any is read: no time goes into
    /// zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::TooLarge`].
    pub fn unspecified(dtype: DType, rows: usize, cols: usize) -> Result<TensorBuf, Error> {
        let buffer = Buffer::unspecified(checked_bytes(dtype, rows, cols)?)?;
        Ok(TensorBuf { dtype, rows, cols, buffer })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The row-major little-endian bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    /// The row-major little-endian bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut_slice()
    }

    /// The elements, row-major: `[rows, cols]`. `None` where `T` is not the element type.
    pub fn elements_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        bytemuck::try_cast_slice_mut(self.buffer.as_mut_slice()).ok()
    }

    /// Copies `block` into this tensor, its element (0, 0) at (`row0`, `col0`).
    ///
    /// # Errors
    /// [`Error::Invalid`] where the block does not lie inside the tensor or has another type.
    pub fn write_block(&mut self, row0: usize, col0: usize, block: &Tensor) -> Result<(), Error> {
        self.check_block(row0, col0, block.dtype(), block.rows(), block.cols())?;
        let cols = self.cols;
        for_dtype!(self.dtype, T => {
            if let Some(out) = self.elements_mut::<T>() {
                copy_rows::<T>(block, out, row0 * cols + col0, cols);
            }
        });
        Ok(())
    }

    /// Fails unless a block of this shape and type lies inside at (`row0`, `col0`).
    pub(crate) fn check_block(
        &self,
        row0: usize,
        col0: usize,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<(), Error> {
        let inside = |from: usize, len: usize, limit: usize| from.checked_add(len).is_some_and(|end| end <= limit);
        if dtype != self.dtype || !inside(row0, rows, self.rows) || !inside(col0, cols, self.cols) {
            return Err(Error::invalid(
                "write block",
                format!(
                    "a {dtype} block of {rows} x {cols} at ({row0}, {col0}) does not fit into a {} tensor of {} x {}",
                    self.dtype, self.rows, self.cols
                ),
            ));
        }
        Ok(())
    }

    /// The finished tensor; nothing is copied.
    pub fn freeze(self) -> Tensor {
        Tensor::owned(self.dtype, self.rows, self.cols, self.buffer)
    }
}
