//! Activations on a GPU: rows of floats, each padded to whole blocks of weights.

use super::{Commands, Gpu, GpuBuffer, ReadSlot, Readback, planes};
use crate::Error;
use std::sync::{Arc, OnceLock};

/// A matrix of f32 on a GPU: `[rows, cols]` row-major, rows [`stride`](GpuRows::stride) apart. What lies between them is zero at
/// first, and no kernel writes it; so one may read whole blocks.
pub struct GpuRows {
    pub(super) buffer: GpuBuffer,
    rows: usize,
    cols: usize,
    /// The rows in 8 bits, once exact products have needed them: see `exact/quantize.wgsl`.
    quantized: OnceLock<GpuBuffer>,
}

/// Elements that a row's length is rounded up to: a block of weights.
const ALIGN: usize = 32;

/// Bytes of a block of 32 elements in 8 bits, with its scale and sums.
const QUANTIZED_BYTES: usize = 48;

impl GpuRows {
    /// Zeros.
    ///
    /// # Errors
    /// As [`GpuBuffer::new`]; [`Error::Invalid`] for dimensions of more than 32 bits.
    pub fn new(gpu: &Arc<Gpu>, rows: usize, cols: usize, what: &'static str) -> Result<GpuRows, Error> {
        let (_, _) = (super::dimension(rows)?, super::dimension(cols)?);
        let elements = (rows as u64).saturating_mul(cols.next_multiple_of(ALIGN) as u64);
        Ok(GpuRows {
            buffer: GpuBuffer::new(gpu, elements.saturating_mul(4), what)?,
            rows,
            cols,
            quantized: OnceLock::new(),
        })
    }

    /// With the elements `[rows, cols]`.
    ///
    /// # Errors
    /// As [`GpuRows::new`]; [`Error::Invalid`] for another number of elements.
    pub fn of(gpu: &Arc<Gpu>, cols: usize, elements: &[f32], what: &'static str) -> Result<GpuRows, Error> {
        let rows = GpuRows::new(gpu, elements.len() / cols.max(1), cols, what)?;
        rows.write(gpu, 0, elements)?;
        Ok(rows)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from a row to the next.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(ALIGN)
    }

    /// The memory.
    pub fn buffer(&self) -> &GpuBuffer {
        &self.buffer
    }

    /// Room for the rows in 8 bits.
    pub(super) fn quantized(&self, gpu: &Arc<Gpu>) -> Result<&GpuBuffer, Error> {
        if let Some(quantized) = self.quantized.get() {
            return Ok(quantized);
        }
        let bytes = (self.rows * planes::blocks_of(self.cols) * QUANTIZED_BYTES) as u64;
        let made = GpuBuffer::new(gpu, bytes, "activations in 8 bits on the GPU")?;
        Ok(self.quantized.get_or_init(|| made))
    }

    /// Writes whole rows, from row `first` on, before the next submission.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are not whole or do not lie inside; [`Error::DeviceLost`].
    pub fn write(&self, gpu: &Gpu, first: usize, elements: &[f32]) -> Result<(), Error> {
        let rows = elements.len() / self.cols.max(1);
        if rows * self.cols != elements.len() || first + rows > self.rows {
            return Err(Error::invalid(
                "gpu",
                format!("{} elements are not rows of {} from {first} on, of {}", elements.len(), self.cols, self.rows),
            ));
        }
        let at = 4 * (first * self.stride()) as u64;
        if self.cols == self.stride() {
            return self.buffer.write(gpu, at, bytemuck::cast_slice(elements));
        }
        let mut padded = vec![0.0f32; rows * self.stride()];
        for (to, from) in padded.chunks_exact_mut(self.stride()).zip(elements.chunks_exact(self.cols)) {
            to[..self.cols].copy_from_slice(from);
        }
        self.buffer.write(gpu, at, bytemuck::cast_slice(&padded))
    }

    /// Reads rows once the commands are done.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they do not lie inside.
    pub fn read(&self, commands: &mut Commands, rows: std::ops::Range<usize>) -> Result<ReadSlot, Error> {
        let at = |row: usize| (row * self.stride()) as u64;
        commands.read(&self.buffer, at(rows.start)..at(rows.end))
    }

    /// The elements of rows that were read, `[rows, cols]`.
    pub fn elements(&self, readback: &Readback, slot: ReadSlot) -> Vec<f32> {
        let padded: Vec<f32> = readback.get(slot);
        if self.cols == self.stride() {
            return padded;
        }
        padded.chunks_exact(self.stride()).flat_map(|row| &row[..self.cols]).copied().collect()
    }
}

impl std::fmt::Debug for GpuRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuRows({} x {})", self.rows, self.cols)
    }
}
