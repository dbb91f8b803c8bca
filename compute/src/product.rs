//! `C = A·B`: checks shapes and types, chooses the kernel, and keeps operands packed for reuse over many tiles. Results
//! are checked in [`crate::check`]; where a product is computed is the node's decision.

use crate::kernel::blocked::{Passes, Target};
use crate::kernel::for_kernel;
use crate::tensor::checked_bytes;
use crate::{Buffer, Cancel, DType, Error, Isa, Pool, Tensor, TensorBuf};
use std::sync::Arc;

/// The longest `k` of an integer product: 128 · 128 · 131 071 < 2³¹, so no sum leaves i32.
pub const MAX_K_I8: usize = 131_071;
const _: () = assert!(128 * 128 * MAX_K_I8 as u64 <= i32::MAX as u64);

/// Sizes of the three matrices of a product, computed from shapes and types alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductBytes {
    /// Bytes of A.
    pub a: u64,
    /// Bytes of B.
    pub b: u64,
    /// Bytes of the result C.
    pub c: u64,
}

impl ProductBytes {
    /// Bytes of A, B and C together.
    pub fn total(self) -> u64 {
        self.a.saturating_add(self.b).saturating_add(self.c)
    }
}

/// The sizes of A, B and C for shapes `[rows, columns]`, so that a product that does not fit a memory limit can be
/// refused before anything is allocated.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Dtype`] as for [`matmul`]; [`Error::TooLarge`] for a matrix beyond the address space.
pub fn product_bytes(
    a: (usize, usize),
    b: (usize, usize),
    a_dtype: DType,
    b_dtype: DType,
) -> Result<ProductBytes, Error> {
    let out = check_operands(a, b, a_dtype, b_dtype)?;
    let bytes = |dtype, rows, cols| checked_bytes(dtype, rows, cols).map(|bytes| bytes as u64);
    Ok(ProductBytes { a: bytes(a_dtype, a.0, a.1)?, b: bytes(b_dtype, b.0, b.1)?, c: bytes(out, a.0, b.1)? })
}

/// The element type of a product of operands of these shapes and types.
pub(crate) fn check_operands(
    (m, ka): (usize, usize),
    (kb, n): (usize, usize),
    a: DType,
    b: DType,
) -> Result<DType, Error> {
    if ka != kb {
        return Err(Error::Shape {
            operation: "matmul",
            a: (m, ka),
            b: (kb, n),
            hint: "A must have as many columns as B has rows",
        });
    }
    let out = DType::product(a, b)?;
    if out == DType::I32 && ka > MAX_K_I8 {
        return Err(Error::Shape {
            operation: "matmul",
            a: (m, ka),
            b: (kb, n),
            hint: "an exact i8 product has at most 131071 columns in A; split k and add the parts in i64, or use f64",
        });
    }
    Ok(out)
}

/// The product `C[m, n] = A[m, k] · B[k, n]`, row-major, of type [`DType::product`]. Operands may be views with any
/// strides. k = 0 gives zeros; NaN and infinities propagate as in IEEE 754.
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::OutOfMemory`], [`Error::Cancelled`].
pub fn matmul(a: &Tensor, b: &Tensor, pool: &Pool, cancel: &Cancel) -> Result<Tensor, Error> {
    let out = check_operands(a.shape(), b.shape(), a.dtype(), b.dtype())?;
    let mut c = TensorBuf::unspecified(out, a.rows(), b.cols())?;
    matmul_into(a, b, &mut c, 0, 0, pool, cancel)?;
    Ok(c.freeze())
}

/// As [`matmul`], written directly to (`row0`, `col0`) of a larger tensor of the product's type. After an error the
/// content of that block is unspecified.
///
/// # Errors
/// As [`matmul`]; [`Error::Invalid`] where the block does not lie inside `out`.
pub fn matmul_into(
    a: &Tensor,
    b: &Tensor,
    out: &mut TensorBuf,
    row0: usize,
    col0: usize,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<(), Error> {
    let dtype = check_operands(a.shape(), b.shape(), a.dtype(), b.dtype())?;
    let Some(c) = target(out, dtype, (row0, col0), (a.rows(), b.cols()), a.cols())? else {
        return Ok(());
    };
    cancel.check()?;
    #[cfg(target_os = "macos")]
    if crate::kernel::accelerate::takes(a, b) {
        return crate::kernel::accelerate::multiply(a, b, &c, pool, cancel);
    }
    for_kernel!(pool.isa(), Compute::of(dtype), K => {
        blocked::multiply::<K>(a, b, &c, pool, cancel)
    })
}

/// The block of `out` that a product of `rows` × `cols` is written to. Where k is 0, writes zeros and returns `None`.
fn target(
    out: &mut TensorBuf,
    dtype: DType,
    (row0, col0): (usize, usize),
    (rows, cols): (usize, usize),
    k: usize,
) -> Result<Option<Target<'_>>, Error> {
    out.check_block(row0, col0, dtype, rows, cols)?;
    if rows == 0 || cols == 0 {
        return Ok(None);
    }
    if k == 0 {
        let (size, ld) = (dtype.size_bytes(), out.cols());
        for row in row0..row0 + rows {
            let from = (row * ld + col0) * size;
            out.bytes_mut()[from..from + cols * size].fill(0);
        }
        return Ok(None);
    }
    Target::new(out, row0, col0, rows, cols).map(Some)
}

#[derive(Clone, Debug)]
struct Packed {
    bytes: Arc<Buffer>,
    passes: Passes,
    /// Rows of A, or columns of B.
    lines: usize,
    k: usize,
    out: DType,
    pair: (DType, DType),
    isa: Isa,
}

impl Packed {
    fn new(t: &Tensor, is_a: bool, pair: (DType, DType), pool: &Pool, cancel: &Cancel) -> Result<Packed, Error> {
        let (lines, k) = if is_a { t.shape() } else { (t.cols(), t.rows()) };
        let out = check_operands((lines, k), (k, lines), pair.0, pair.1)?;
        let (bytes, passes) = for_kernel!(pool.isa(), Compute::of(out), K => {
            blocked::pack_whole::<K>(t, is_a, pool, cancel)?
        });
        Ok(Packed { bytes: Arc::new(bytes), passes, lines, k, out, pair, isa: pool.isa() })
    }
}

/// A band of A, `[m, k]`, packed once for products with many panels of B. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct PackedA(Packed);

/// A panel of B, `[k, n]`, packed once for products with many bands of A. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct PackedB(Packed);

impl PackedA {
    /// Packs `a` for products with operands of type `b_dtype`, on pools with this pool's instruction set.
    ///
    /// # Errors
    /// As [`matmul`].
    pub fn new(a: &Tensor, b_dtype: DType, pool: &Pool, cancel: &Cancel) -> Result<PackedA, Error> {
        Packed::new(a, true, (a.dtype(), b_dtype), pool, cancel).map(PackedA)
    }

    /// The rows of A.
    pub fn rows(&self) -> usize {
        self.0.lines
    }

    /// The memory it holds, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.bytes.len()
    }
}

impl PackedB {
    /// Packs `b` for products with operands of type `a_dtype`, on pools with this pool's instruction set.
    ///
    /// # Errors
    /// As [`matmul`].
    pub fn new(b: &Tensor, a_dtype: DType, pool: &Pool, cancel: &Cancel) -> Result<PackedB, Error> {
        Packed::new(b, false, (a_dtype, b.dtype()), pool, cancel).map(PackedB)
    }

    /// The columns of B.
    pub fn cols(&self) -> usize {
        self.0.lines
    }

    /// The memory it holds, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.bytes.len()
    }
}

/// As [`matmul`], from packed operands. The same bits as [`matmul`] for integers; for floats equal within rounding.
///
/// # Errors
/// As [`matmul`]; [`Error::Invalid`] where the two were packed for different types or instruction sets.
pub fn matmul_packed(a: &PackedA, b: &PackedB, pool: &Pool, cancel: &Cancel) -> Result<Tensor, Error> {
    let mut c = TensorBuf::unspecified(a.0.out, a.rows(), b.cols())?;
    matmul_packed_into(a, b, &mut c, 0, 0, pool, cancel)?;
    Ok(c.freeze())
}

/// As [`matmul_into`], from packed operands.
///
/// # Errors
/// As [`matmul_into`] and [`matmul_packed`].
pub fn matmul_packed_into(
    a: &PackedA,
    b: &PackedB,
    out: &mut TensorBuf,
    row0: usize,
    col0: usize,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (a, b) = (&a.0, &b.0);
    if a.pair != b.pair || a.isa != b.isa || a.isa != pool.isa() {
        return Err(Error::invalid(
            "matmul",
            "these operands were packed for different element types or instruction sets; pack both again",
        ));
    }
    check_operands((a.lines, a.k), (b.k, b.lines), a.pair.0, a.pair.1)?;
    let lines = (a.lines, b.lines);
    let Some(c) = target(out, a.out, (row0, col0), lines, a.k)? else {
        return Ok(());
    };
    cancel.check()?;
    let bytes = (a.bytes.as_slice(), b.bytes.as_slice());
    for_kernel!(pool.isa(), Compute::of(a.out), K => {
        blocked::multiply_packed::<K>(bytes.0, bytes.1, lines, a.passes, &c, pool, cancel)
    })
}
