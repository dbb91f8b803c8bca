//! A product in blocks that a node computes, of matrices that a program reads and writes piece by piece.

use std::ops::Range;

use super::{Block, BlockProgress, Plan, Shape, Side, multiply_blocks};
use crate::connection::Client;
use crate::dtype::DType;
use crate::job::MatmulOptions;
use crate::report::JobReport;
use crate::tensor::{Tensor, TensorDestination, TensorInfo, TensorSource};
use crate::{Error, ErrorKind, Result};

/// A matrix that is too large to hold, such as a memory-mapped file.
pub trait MatrixSource {
    /// What it is.
    fn info(&self) -> TensorInfo;

    /// Fills `bytes` with what lies in `row` from its byte `offset` on: row-major, little-endian,
    /// never beyond the row.
    fn read(&mut self, row: u64, offset: u64, bytes: &mut [u8]) -> Result<()>;
}

/// Where a result that is too large to hold goes, such as a file that is written as it comes.
pub trait MatrixDestination {
    /// Takes `bytes` of `row` from its byte `offset` on: row-major, little-endian, never beyond
    /// the row. Each byte comes once; blocks come in no particular order.
    fn write(&mut self, row: u64, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// Multiplies `a` by `b` on the node of `client`, block by block as `plan` says, and writes the product to `destination`.
/// Blocks are sent, computed and read at the same time. Dropping the future cancels all of it. The report adds up those of
/// the blocks; `None` where the product has no elements.
///
/// # Errors
/// What the node refuses, and what reading and writing the matrices fails with.
pub async fn multiply(
    client: &Client,
    plan: &Plan,
    options: &MatmulOptions,
    a: &mut dyn MatrixSource,
    b: &mut dyn MatrixSource,
    destination: &mut dyn MatrixDestination,
    on_progress: &mut dyn FnMut(BlockProgress),
) -> Result<Option<JobReport>> {
    let Shape { k, c, .. } = plan.shape();
    multiply_blocks(
        plan,
        options,
        async |side, lines| {
            let mut piece = match side {
                Side::A => Piece { matrix: &mut *a, rows: lines, cols: 0..k },
                Side::B => Piece { matrix: &mut *b, rows: 0..k, cols: lines },
            };
            client.upload(&mut piece).await
        },
        async |a: &Tensor, b: &Tensor, options| {
            let (job, product) = client.matmul(a, b, &options);
            let report = job.report().await?;
            Ok((product, report))
        },
        async |product: Tensor, block| {
            let mut window = Window { matrix: &mut *destination, block, dtype: c, taken: 0 };
            product.read_into(&mut window).await.map(drop)
        },
        on_progress,
    )
    .await
}

/// The runs of whole or partial rows that `length` bytes from byte `offset` of a row-major block
/// cover: (row of the block, byte within that row, bytes).
fn runs(row_bytes: u64, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64, usize)> {
    let (mut offset, mut left) = (offset, length);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let (row, within) = (offset / row_bytes, offset % row_bytes);
        let take = left.min(row_bytes - within);
        offset += take;
        left -= take;
        // At most a chunk, which fits any address space.
        Some((row, within, take as usize))
    })
}

/// A rectangle of a matrix as something to upload.
struct Piece<'a> {
    matrix: &'a mut dyn MatrixSource,
    rows: Range<u64>,
    cols: Range<u64>,
}

impl TensorSource for Piece<'_> {
    fn info(&self) -> TensorInfo {
        TensorInfo {
            dtype: self.matrix.info().dtype,
            rows: self.rows.end - self.rows.start,
            cols: self.cols.end - self.cols.start,
        }
    }

    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let size = self.matrix.info().dtype.size_bytes();
        let row_bytes = (self.cols.end - self.cols.start) * size;
        let mut rest = chunk;
        for (row, within, take) in runs(row_bytes, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(take);
            self.matrix.read(self.rows.start + row, self.cols.start * size + within, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// The place of a block in a matrix as something to read into.
struct Window<'a> {
    matrix: &'a mut dyn MatrixDestination,
    block: &'a Block,
    dtype: DType,
    taken: u64,
}

impl TensorDestination for Window<'_> {
    fn begin(&mut self, info: &TensorInfo) -> Result<()> {
        let Block { rows, cols } = self.block;
        let expected = TensorInfo { dtype: self.dtype, rows: rows.end - rows.start, cols: cols.end - cols.start };
        if *info != expected {
            let message = format!("a block of the product is {info:?} instead of {expected:?}");
            return Err(Error::new(ErrorKind::Internal, message));
        }
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let size = self.dtype.size_bytes();
        let row_bytes = (self.block.cols.end - self.block.cols.start) * size;
        let mut rest = chunk;
        for (row, within, take) in runs(row_bytes, self.taken, chunk.len() as u64) {
            let (now, later) = rest.split_at(take);
            self.matrix.write(self.block.rows.start + row, self.block.cols.start * size + within, now)?;
            rest = later;
        }
        self.taken += chunk.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_a_range_in_order(row_bytes in 1u64..50, offset in 0u64..500, length in 0u64..500) {
            let mut at = offset;
            for (row, within, take) in runs(row_bytes, offset, length) {
                prop_assert_eq!(row * row_bytes + within, at);
                prop_assert!(take > 0 && within + take as u64 <= row_bytes);
                at += take as u64;
            }
            prop_assert_eq!(at, offset + length);
        }
    }
}
