//! Weights on a GPU: a matrix in chunks of rows, each a buffer that a kernel can see at once.

use super::planes::{self, BLOCKS_AT_ONCE, PLANES};
use super::{Gpu, GpuBuffer, dimension};
use crate::Error;
use crate::gguf::GgmlType;
use std::ops::Range;
use std::sync::Arc;

/// A matrix `[rows, k]` of one storage type on a GPU.
pub struct GpuMatrix {
    ty: GgmlType,
    rows: usize,
    k: usize,
    chunks: Vec<Chunk>,
}

/// Some rows of a matrix.
pub(super) struct Chunk {
    /// The rows of the matrix.
    pub(super) rows: Range<usize>,
    pub(super) buffer: GpuBuffer,
    /// Where planes 1, 2 and 3 begin, in words.
    pub(super) planes: [u32; PLANES - 1],
}

/// Bytes of a file that are repacked at once.
const PIECE_BYTES: usize = 4 << 20;

impl GpuMatrix {
    /// Room for a matrix whose chunks begin at multiples of `unit` rows: 1, or the rows of an expert. It is zero, as bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for rows that are not whole blocks; [`Error::OutOfMemory`], also where `unit` rows are more than a
    /// kernel sees at once; [`Error::DeviceLost`].
    pub fn new(gpu: &Arc<Gpu>, ty: GgmlType, rows: usize, k: usize, unit: usize) -> Result<GpuMatrix, Error> {
        GpuMatrix::with_chunks_of(gpu, ty, rows, k, unit, gpu.max_binding_bytes())
    }

    /// As [`GpuMatrix::new`], with chunks of at most `chunk_bytes` bytes.
    ///
    /// # Errors
    /// As [`GpuMatrix::new`].
    pub fn with_chunks_of(
        gpu: &Arc<Gpu>,
        ty: GgmlType,
        rows: usize,
        k: usize,
        unit: usize,
        chunk_bytes: u64,
    ) -> Result<GpuMatrix, Error> {
        let (_, _) = (dimension(rows)?, dimension(k)?);
        if k == 0 || !k.is_multiple_of(ty.block_len()) || unit == 0 || !rows.is_multiple_of(unit) {
            return Err(Error::invalid(
                "gpu",
                format!(
                    "a matrix of {rows} x {k} in {ty} is not whole blocks of {} and units of {unit} rows",
                    ty.block_len()
                ),
            ));
        }
        let blocks = planes::blocks_of(k);
        let bytes_of = |rows: usize| planes::offsets(ty, rows * blocks)[PLANES] as u64;
        // Padding of the planes aside, bytes grow with the rows.
        let mut per_chunk = (chunk_bytes / bytes_of(unit).max(1)).max(1) as usize * unit;
        while per_chunk > unit && bytes_of(per_chunk) > chunk_bytes {
            per_chunk -= unit;
        }
        // What is written at once begins at a multiple of eight blocks.
        let aligned = unit * (BLOCKS_AT_ONCE / gcd(BLOCKS_AT_ONCE, unit * blocks));
        if per_chunk > aligned {
            per_chunk = per_chunk / aligned * aligned;
        }
        let mut chunks = Vec::new();
        for start in (0..rows).step_by(per_chunk) {
            let rows = start..rows.min(start + per_chunk);
            let offsets = planes::offsets(ty, rows.len() * blocks);
            let buffer = GpuBuffer::new(gpu, offsets[PLANES] as u64, "weights on the GPU")?;
            let planes = std::array::from_fn(|index| (offsets[index + 1] / 4) as u32);
            chunks.push(Chunk { rows, buffer, planes });
        }
        Ok(GpuMatrix { ty, rows, k, chunks })
    }

    /// With the rows of a file, `[rows, k]` as whole blocks.
    ///
    /// # Errors
    /// As [`GpuMatrix::new`] and [`GpuMatrix::write`].
    pub fn of_bytes(gpu: &Arc<Gpu>, ty: GgmlType, rows: usize, k: usize, bytes: &[u8]) -> Result<GpuMatrix, Error> {
        let matrix = GpuMatrix::new(gpu, ty, rows, k, 1)?;
        matrix.write(gpu, bytes)?;
        Ok(matrix)
    }

    /// Writes all rows, as a file stores them, piece by piece.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of bytes; [`Error::DeviceLost`].
    pub fn write(&self, gpu: &Gpu, bytes: &[u8]) -> Result<(), Error> {
        let row_bytes = self.k / self.ty.block_len() * self.ty.block_bytes();
        if bytes.len() != self.rows * row_bytes {
            return Err(Error::invalid(
                "gpu",
                format!("{} bytes are not a matrix of {} x {} in {}", bytes.len(), self.rows, self.k, self.ty),
            ));
        }
        self.write_rows(gpu, |row, bytes_of_row| {
            bytes_of_row.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
        })
    }

    /// Writes all rows: `append` appends the bytes of a row, as a file stores them, to a vector. So rows may come in another
    /// order than a file's.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it appends another number of bytes; [`Error::DeviceLost`].
    pub fn write_rows(&self, gpu: &Gpu, append: impl Fn(usize, &mut Vec<u8>)) -> Result<(), Error> {
        let row_bytes = self.k / self.ty.block_len() * self.ty.block_bytes();
        let blocks = planes::blocks_of(self.k);
        let at_once = (PIECE_BYTES / row_bytes).max(1).next_multiple_of(BLOCKS_AT_ONCE);
        let mut packed: [Vec<u8>; PLANES] = Default::default();
        let mut stored = Vec::new();
        for chunk in &self.chunks {
            let offsets = planes::offsets(self.ty, chunk.rows.len() * blocks);
            for first in chunk.rows.clone().step_by(at_once) {
                stored.clear();
                packed.iter_mut().for_each(Vec::clear);
                let rows = first..chunk.rows.end.min(first + at_once);
                rows.clone().for_each(|row| append(row, &mut stored));
                if stored.len() != rows.len() * row_bytes {
                    return Err(Error::invalid("gpu", format!("rows {rows:?} are not of {row_bytes} bytes each")));
                }
                planes::repack(self.ty, self.k, &stored, &mut packed);
                let before = (first - chunk.rows.start) * blocks / BLOCKS_AT_ONCE;
                for ((plane, packed), eight) in offsets.iter().zip(&packed).zip(planes::bytes_of_eight(self.ty)) {
                    chunk.buffer.write(gpu, (plane + before * eight) as u64, packed)?;
                }
                // Staging memory is freed once its copy is done.
                let submission = gpu.queue.submit([]);
                gpu.wait(Some(submission))?;
            }
        }
        Ok(())
    }

    /// The storage type.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// The number of rows: a product's outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of GPU memory.
    pub fn size_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.buffer.size_bytes()).sum()
    }

    /// Bytes of GPU memory that a matrix takes, about: chunks add some padding.
    pub fn bytes_for(ty: GgmlType, rows: usize, k: usize) -> u64 {
        planes::offsets(ty, rows * planes::blocks_of(k))[PLANES] as u64
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}

impl std::fmt::Debug for GpuMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuMatrix({} x {} {}, {} chunks)", self.rows, self.k, self.ty, self.chunks.len())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
