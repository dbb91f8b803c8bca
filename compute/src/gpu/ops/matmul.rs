//! Products of two matrices of a task, `C = A·B`, in blocks that fit the device's buffers.

use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::{Gpu, GpuBuffer, dimension};
use crate::tensor::TensorBuf;
use crate::{Cancel, DType, Error, Tensor};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Arc;

const OPERATION: &str = "matmul on the GPU";

/// Rows, and columns, of a workgroup.
const TILE: usize = 128;

/// Multiply-adds of one dispatch, about: as long as a submission may take.
const MAX_DISPATCH: u64 = 1 << 33;

/// Multiply-adds after which a cancelled product ends, about.
const MAX_BLOCK: u64 = 1 << 36;

/// How elements lie on the GPU: in quads, of which each is four of these.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    Bf16,
    /// Words of four i8 of consecutive k.
    I8,
}

impl Kind {
    fn of(dtype: DType) -> Option<Kind> {
        match dtype {
            DType::F32 => Some(Kind::F32),
            DType::F16 => Some(Kind::F16),
            DType::Bf16 => Some(Kind::Bf16),
            DType::I8 => Some(Kind::I8),
            DType::F64 | DType::I32 => None,
        }
    }

    /// Bytes of a quad.
    fn quad_bytes(self) -> usize {
        if matches!(self, Kind::F32 | Kind::I8) { 16 } else { 8 }
    }

    /// The number that the kernel knows it by.
    fn number(self) -> u32 {
        match self {
            Kind::F32 | Kind::I8 => 0,
            Kind::F16 => 1,
            Kind::Bf16 => 2,
        }
    }
}

impl Gpu {
    /// Whether [`Gpu::matmul`] takes operands of these types.
    pub fn multiplies(a: DType, b: DType) -> bool {
        match (Kind::of(a), Kind::of(b)) {
            (Some(a), Some(b)) => (a == Kind::I8) == (b == Kind::I8),
            _ => false,
        }
    }

    /// Bytes of the GPU's memory that [`Gpu::matmul`] takes, at most, for operands of these shapes and types.
    pub fn matmul_bytes((m, k): (usize, usize), (_, n): (usize, usize), types: [DType; 2]) -> u64 {
        let [a, b] = types.map(|dtype| dtype.size_bytes() as u64);
        let quads = |len: usize| len.next_multiple_of(4) as u64;
        a * m as u64 * quads(k) + b * quads(k) * quads(n) + 4 * m as u64 * quads(n)
    }

    /// The product `C[m, n] = A[m, k] · B[k, n]` of type [`DType::product`]: floats of up to 32 bits with sums in f32, rounded once to
    /// the result's type; i8 exactly.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Dtype`] for types that [`Gpu::multiplies`] refuses; [`Error::OutOfMemory`];
    /// [`Error::Cancelled`]; [`Error::DeviceLost`].
    pub fn matmul(self: &Arc<Self>, a: &Tensor, b: &Tensor, cancel: &Cancel) -> Result<Tensor, Error> {
        let ((m, k), (_, n)) = (a.shape(), b.shape());
        let wrong = |hint| Error::Shape { operation: OPERATION, a: a.shape(), b: b.shape(), hint };
        if k != b.rows() {
            return Err(wrong("A must have as many columns as B has rows"));
        }
        let out = DType::product(a.dtype(), b.dtype())?;
        let (Some(a_kind), Some(b_kind), true) =
            (Kind::of(a.dtype()), Kind::of(b.dtype()), Gpu::multiplies(a.dtype(), b.dtype()))
        else {
            return Err(Error::Dtype {
                operation: OPERATION,
                dtype: format!("{} with {}", a.dtype(), b.dtype()),
                hint: "compute it on the processor",
            });
        };
        if a_kind == Kind::I8 && 128 * 128 * k as u64 > i32::MAX as u64 {
            return Err(wrong("an exact i8 product has at most 131071 columns in A; split k and add the parts in i64"));
        }
        let mut c = TensorBuf::new(out, m, n)?;
        if m == 0 || n == 0 || k == 0 {
            return Ok(c.freeze());
        }
        let deep = if a_kind == Kind::I8 { k.div_ceil(4) } else { k };
        let (rows_at_once, cols_at_once) = self.block(m, n, deep, a_kind, b_kind)?;
        for cols in pieces(n, cols_at_once) {
            let quads = cols.len().div_ceil(4);
            let of_b = packed_b(&b.slice(0..k, cols.clone())?.to_contiguous()?, b_kind)?;
            let of_b = GpuBuffer::of_bytes(self, &of_b, "a right operand on the GPU")?;
            for rows in pieces(m, rows_at_once) {
                cancel.check()?;
                let (of_a, a_stride) = packed_a(&a.slice(rows.clone(), 0..k)?.to_contiguous()?, a_kind)?;
                let of_a = GpuBuffer::of_bytes(self, &of_a, "a left operand on the GPU")?;
                let of_c = GpuBuffer::new(self, 16 * (rows.len() * quads) as u64, "a product on the GPU")?;
                let mut commands = self.commands();
                let tiles = rows.len().div_ceil(TILE);
                let work_of_tile = (TILE * k * cols.len()) as u64;
                let tiles_at_once = (MAX_DISPATCH / work_of_tile.max(1)).max(1) as usize;
                for band in pieces(tiles, tiles_at_once) {
                    let shader = if a_kind == Kind::I8 { Shader::IntegerMatmul } else { Shader::Matmul };
                    commands.dispatch(&Dispatch {
                        kernel: KernelId { shader, format: None, constants: [a_kind.number(), b_kind.number(), 0] },
                        buffers: &[&of_a, &of_b, &of_c],
                        parameters: &[
                            dimension(rows.len())?,
                            dimension(deep)?,
                            dimension(a_stride)?,
                            dimension(quads)?,
                            dimension(quads)?,
                            dimension(band.start)?,
                            0,
                            0,
                        ],
                        workgroups: [dimension(cols.len().div_ceil(TILE))?, dimension(band.len())?, 1],
                        work: work_of_tile * band.len() as u64,
                    })?;
                }
                let slot = commands.read(&of_c, 0..4 * (rows.len() * quads) as u64)?;
                let words: Vec<u32> = commands.finish()?.get(slot);
                store(&words, 4 * quads, rows, cols.clone(), &mut c);
            }
        }
        Ok(c.freeze())
    }

    /// Rows and columns of the result that are computed at once.
    fn block(&self, m: usize, n: usize, deep: usize, a: Kind, b: Kind) -> Result<(usize, usize), Error> {
        let most = self.max_binding_bytes() as usize;
        let (a_row, b_quad) = (deep.div_ceil(4) * a.quad_bytes(), deep * b.quad_bytes());
        let cols = (most / b_quad * 4 / TILE * TILE).min(n);
        let by_work = (MAX_BLOCK / (deep * cols.max(1)) as u64).max(TILE as u64) as usize;
        let rows = (most / a_row).min(most / (16 * cols.div_ceil(4).max(1))).min(by_work) / TILE * TILE;
        if cols == 0 || rows == 0 {
            return Err(Error::invalid(
                OPERATION,
                format!("{TILE} rows of {deep} elements are more than a buffer of this GPU holds"),
            ));
        }
        Ok((rows.min(m), cols))
    }
}

/// `0..len` in pieces.
fn pieces(len: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(piece).map(move |start| start..len.min(start + piece))
}

fn bytes_of(tensor: &Tensor) -> Result<&[u8], Error> {
    tensor.contiguous_bytes().ok_or_else(|| Error::invalid(OPERATION, "a copy of an operand is not contiguous"))
}

/// The rows of A, padded to whole quads, and the quads of a row.
fn packed_a(a: &Tensor, kind: Kind) -> Result<(Vec<u8>, usize), Error> {
    let row_bytes = a.cols() * a.dtype().size_bytes();
    let quads = row_bytes.div_ceil(kind.quad_bytes());
    Ok((padded(bytes_of(a)?, row_bytes, quads * kind.quad_bytes(), a.rows())?, quads))
}

/// The rows of B, padded to whole quads; of i8, four rows in one.
fn packed_b(b: &Tensor, kind: Kind) -> Result<Vec<u8>, Error> {
    let bytes = bytes_of(b)?;
    let (rows, cols) = b.shape();
    let row_bytes = cols * b.dtype().size_bytes();
    if kind != Kind::I8 {
        return padded(bytes, row_bytes, cols.div_ceil(4) * kind.quad_bytes(), rows);
    }
    let stride = cols.div_ceil(4) * 16;
    let mut packed = zeros(rows.div_ceil(4) * stride)?;
    for (row, from) in bytes.chunks_exact(cols).enumerate() {
        let to = &mut packed[row / 4 * stride..][..stride];
        to.iter_mut().skip(row % 4).step_by(4).zip(from).for_each(|(to, from)| *to = *from);
    }
    Ok(packed)
}

fn padded(bytes: &[u8], row_bytes: usize, stride: usize, rows: usize) -> Result<Vec<u8>, Error> {
    let mut padded = zeros(rows * stride)?;
    for (to, from) in padded.chunks_exact_mut(stride).zip(bytes.chunks_exact(row_bytes)) {
        to[..row_bytes].copy_from_slice(from);
    }
    Ok(padded)
}

fn zeros(len: usize) -> Result<Vec<u8>, Error> {
    let mut zeros = Vec::new();
    zeros
        .try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { bytes: len as u64, what: "an operand on its way to the GPU" })?;
    zeros.resize(len, 0);
    Ok(zeros)
}

/// Writes a block of the result, `[rows, stride]` words, in the result's type.
fn store(words: &[u32], stride: usize, rows: Range<usize>, cols: Range<usize>, c: &mut TensorBuf) {
    let (dtype, width) = (c.dtype(), c.cols());
    let size = dtype.size_bytes();
    for (row, words) in rows.zip(words.chunks_exact(stride)) {
        let from = (row * width + cols.start) * size;
        let to = &mut c.bytes_mut()[from..from + cols.len() * size];
        for (to, word) in to.chunks_exact_mut(size).zip(words) {
            match dtype {
                DType::F16 => to.copy_from_slice(&f16::from_f32(f32::from_bits(*word)).to_le_bytes()),
                DType::Bf16 => to.copy_from_slice(&bf16::from_f32(f32::from_bits(*word)).to_le_bytes()),
                // The bits of a float or an integer.
                _ => to.copy_from_slice(&word.to_le_bytes()),
            }
        }
    }
}
