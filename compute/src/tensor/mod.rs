//! Immutable rank-2 tensors: shared storage, element strides, views without copies, canonical bytes and digests.
//!
//! | file | owns |
//! |---|---|
//! | here | [`Tensor`] |
//! | `buf` | a tensor being written |
//! | `generate` | pseudo-random tensors |
//! | `hasher` | the digest of bytes that come in pieces |

mod buf;
mod generate;
mod hasher;

pub use buf::TensorBuf;
pub use hasher::TensorHasher;

use pangea_units::Digest;

use crate::dtype::for_dtype;
use crate::mapping::Mapping;
use crate::{Buffer, DType, Element, Error};
use ndarray::{Array2, ArrayView2, ShapeBuilder};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A matrix of `rows` × `cols` elements. Cloning is cheap: the storage is shared.
///
/// Every element lies inside the storage and is aligned to its size; every constructor guarantees this.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Index of element (0, 0), in elements.
    offset: usize,
    /// Elements from one row to the next.
    row_stride: usize,
    /// Elements from one column to the next.
    col_stride: usize,
}

/// Bytes that tensors share, and the digests of those parts that were hashed.
struct Storage {
    memory: Memory,
    /// Unique among all storages of this process.
    id: u64,
    digests: Mutex<HashMap<Layout, Digest>>,
}

enum Memory {
    Owned(Buffer),
    Mapped(Mapping),
}

/// The part of a storage that a tensor shows, and its element type: what a digest depends on besides the bytes.
type Layout = (DType, [usize; 5]);

/// Digests remembered per storage, at most: more than one product has bands and panels.
const DIGESTS_MAX: usize = 4096;

impl Storage {
    fn new(memory: Memory) -> Arc<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Storage { memory, id: NEXT.fetch_add(1, Ordering::Relaxed), digests: Mutex::default() })
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Owned(buffer) => buffer.as_slice(),
            Memory::Mapped(mapping) => mapping.bytes(),
        }
    }

    fn digests(&self) -> MutexGuard<'_, HashMap<Layout, Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The size of a tensor in bytes.
///
/// # Errors
/// [`Error::TooLarge`] where the address space cannot hold that size.
pub(crate) fn checked_bytes(dtype: DType, rows: usize, cols: usize) -> Result<usize, Error> {
    rows.checked_mul(cols)
        .and_then(|n| n.checked_mul(dtype.size_bytes()))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or(Error::TooLarge { dtype: dtype.name(), rows, cols })
}

impl Tensor {
    /// A row-major tensor over `buffer`, whose bytes are little-endian elements.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the buffer's length is not exactly `rows · cols · size`.
    pub fn from_buffer(dtype: DType, rows: usize, cols: usize, buffer: Buffer) -> Result<Tensor, Error> {
        let bytes = checked_bytes(dtype, rows, cols)?;
        if buffer.len() != bytes {
            return Err(Error::invalid(
                "tensor",
                format!("{rows} x {cols} {dtype} takes {bytes} bytes, not {}", buffer.len()),
            ));
        }
        Ok(Tensor::owned(dtype, rows, cols, buffer))
    }

    /// As [`Tensor::from_buffer`], for a buffer whose length is known to be right.
    pub(crate) fn owned(dtype: DType, rows: usize, cols: usize, buffer: Buffer) -> Tensor {
        debug_assert_eq!(buffer.len(), rows * cols * dtype.size_bytes());
        Tensor {
            storage: Storage::new(Memory::Owned(buffer)),
            dtype,
            rows,
            cols,
            offset: 0,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// A tensor over a mapped file. `strides` are in elements.
    pub(crate) fn mapped(
        dtype: DType,
        rows: usize,
        cols: usize,
        strides: (usize, usize),
        mapping: Mapping,
    ) -> Result<Tensor, Error> {
        let bytes = checked_bytes(dtype, rows, cols)?;
        let aligned = (mapping.bytes().as_ptr() as usize).is_multiple_of(dtype.size_bytes());
        if mapping.bytes().len() < bytes || !aligned {
            return Err(Error::invalid("tensor", "the mapping is too short or not aligned to its elements"));
        }
        Ok(Tensor {
            storage: Storage::new(Memory::Mapped(mapping)),
            dtype,
            rows,
            cols,
            offset: 0,
            row_stride: strides.0,
            col_stride: strides.1,
        })
    }

    /// A copy of `elements`, row-major: `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are not exactly `rows · cols` elements.
    pub fn from_slice<T: Element>(rows: usize, cols: usize, elements: &[T]) -> Result<Tensor, Error> {
        let bytes = bytemuck::cast_slice(elements);
        if checked_bytes(T::DTYPE, rows, cols)? != bytes.len() {
            return Err(Error::invalid("tensor", format!("{rows} x {cols} is not {} elements", elements.len())));
        }
        Tensor::from_buffer(T::DTYPE, rows, cols, Buffer::copy_of(bytes)?)
    }

    /// A copy of an `ndarray` view of any strides.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn from_array<T: Element>(array: ArrayView2<'_, T>) -> Result<Tensor, Error> {
        let (rows, cols) = array.dim();
        let mut out = TensorBuf::new(T::DTYPE, rows, cols)?;
        if let Some(elements) = out.elements_mut::<T>() {
            for (to, from) in elements.iter_mut().zip(array.iter()) {
                *to = *from;
            }
        }
        Ok(out.freeze())
    }

    /// A copy as an `ndarray` array in standard layout.
    ///
    /// # Errors
    /// [`Error::Dtype`] where `T` is not the element type.
    pub fn to_array<T: Element>(&self) -> Result<Array2<T>, Error> {
        Ok(self.view::<T>()?.to_owned())
    }

    /// The elements as an `ndarray` view, with this tensor's strides; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Dtype`] where `T` is not the element type.
    pub fn view<T: Element>(&self) -> Result<ArrayView2<'_, T>, Error> {
        let wrong = || Error::Dtype {
            operation: "view",
            dtype: self.dtype.name().to_string(),
            hint: "ask for the tensor's own element type",
        };
        let elements = self.elements::<T>().ok_or_else(wrong)?;
        let shape = (self.rows, self.cols);
        if self.is_empty() {
            return ArrayView2::from_shape(shape, &[]).map_err(|_| wrong());
        }
        let strides = (self.row_stride, self.col_stride);
        ArrayView2::from_shape(shape.strides(strides), elements).map_err(|_| wrong())
    }

    /// The storage from element (0, 0) on. `None` where `T` is not the element type.
    ///
    /// Element (i, j) is at `i · row_stride + j · col_stride`, always inside the slice.
    pub(crate) fn elements<T: Element>(&self) -> Option<&[T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        if self.is_empty() {
            return Some(&[]);
        }
        let bytes = self.storage.bytes();
        let whole = bytes.len() / size_of::<T>() * size_of::<T>();
        let all: &[T] = bytemuck::try_cast_slice(&bytes[..whole]).ok()?;
        let last = self.offset + (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
        Some(&all[self.offset..=last])
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

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// The size of this tensor's elements in bytes; the storage behind a view may be larger.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size_bytes()
    }

    /// Elements from one row, and from one column, to the next.
    pub(crate) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.col_stride)
    }

    /// A view of some rows and columns; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the ranges lie outside.
    pub fn slice(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor, Error> {
        check_ranges(self.shape(), &rows, &cols)?;
        let mut view = self.clone();
        view.rows = rows.len();
        view.cols = cols.len();
        // An empty view may begin one past the end; its offset is never used.
        view.offset = self
            .offset
            .saturating_add(rows.start.saturating_mul(self.row_stride))
            .saturating_add(cols.start.saturating_mul(self.col_stride));
        Ok(view)
    }

    /// Rows and columns exchanged; nothing is copied.
    pub fn transposed(&self) -> Tensor {
        Tensor {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self.clone()
        }
    }

    /// Whether the elements lie row by row without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.is_empty()
            || ((self.col_stride == 1 || self.cols == 1) && (self.row_stride == self.cols || self.rows == 1))
    }

    /// The row-major little-endian bytes, where the elements lie in that order without gaps.
    pub fn contiguous_bytes(&self) -> Option<&[u8]> {
        if self.is_empty() {
            return Some(&[]);
        }
        if !self.is_contiguous() {
            return None;
        }
        let from = self.offset * self.dtype.size_bytes();
        Some(&self.storage.bytes()[from..from + self.size_bytes()])
    }

    /// A row-major tensor with the same elements: this one where it is row-major already, else a copy.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_contiguous(&self) -> Result<Tensor, Error> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let mut out = TensorBuf::unspecified(self.dtype, self.rows, self.cols)?;
        out.write_block(0, 0, self)?;
        Ok(out.freeze())
    }

    /// Fills `out` with the canonical bytes (row-major, little-endian, no gaps) from byte `offset` on, whatever the
    /// strides.
    ///
    /// # Panics
    /// Where `offset + out.len()` lies beyond [`Tensor::size_bytes`].
    pub fn read_bytes(&self, offset: u64, out: &mut [u8]) {
        let end = usize::try_from(offset).ok().and_then(|from| from.checked_add(out.len()));
        assert!(
            end.is_some_and(|end| end <= self.size_bytes()),
            "read_bytes: {} bytes at {offset} of a tensor of {} bytes",
            out.len(),
            self.size_bytes()
        );
        let offset = offset as usize;
        if let Some(bytes) = self.contiguous_bytes() {
            out.copy_from_slice(&bytes[offset..offset + out.len()]);
            return;
        }
        for_dtype!(self.dtype, T => {
            if let Some(elements) = self.elements::<T>() {
                self.read_strided::<T>(elements, offset, out);
            }
        });
    }

    /// [`Tensor::read_bytes`] for elements that are not in row-major order.
    fn read_strided<T: Element>(&self, elements: &[T], offset: usize, out: &mut [u8]) {
        let size = size_of::<T>();
        let mut offset = offset;
        let mut out = out;
        while !out.is_empty() {
            let index = offset / size;
            let (row, col) = (index / self.cols, index % self.cols);
            let within = offset % size;
            let start = row * self.row_stride + col * self.col_stride;
            if within != 0 || out.len() < size {
                // The range begins or ends inside an element.
                let element = bytemuck::bytes_of(&elements[start]);
                let take = (size - within).min(out.len());
                out[..take].copy_from_slice(&element[within..within + take]);
                out = &mut out[take..];
                offset += take;
                continue;
            }
            // Whole elements to the end of this row, or as far as `out` goes.
            let count = (self.cols - col).min(out.len() / size);
            let (now, rest) = out.split_at_mut(count * size);
            if self.col_stride == 1 {
                now.copy_from_slice(bytemuck::cast_slice(&elements[start..start + count]));
            } else {
                let line = elements[start..].iter().step_by(self.col_stride);
                for (to, from) in now.chunks_exact_mut(size).zip(line) {
                    to.copy_from_slice(bytemuck::bytes_of(from));
                }
            }
            out = rest;
            offset += count * size;
        }
    }

    /// BLAKE3 of a domain string, the element type, the shape and the canonical bytes. Computed once: all tensors that
    /// are the same part of the same storage share the result.
    pub fn digest(&self) -> Digest {
        if let Some(known) = self.known_digest() {
            return known;
        }
        let digest = self.hash();
        self.remember(digest);
        digest
    }

    /// The digest, if it was computed before.
    pub fn known_digest(&self) -> Option<Digest> {
        self.storage.digests().get(&self.layout()).copied()
    }

    /// The digest, computed from `copy`, which must hold the same elements. Hashing a contiguous copy is faster than
    /// hashing strided rows.
    pub fn digest_from(&self, copy: &Tensor) -> Digest {
        debug_assert_eq!((self.dtype, self.shape()), (copy.dtype, copy.shape()));
        let digest = copy.digest();
        self.remember(digest);
        digest
    }

    /// A number shared by exactly those tensors that have the same storage.
    pub fn storage_id(&self) -> u64 {
        self.storage.id
    }

    fn layout(&self) -> Layout {
        (self.dtype, [self.rows, self.cols, self.offset, self.row_stride, self.col_stride])
    }

    fn remember(&self, digest: Digest) {
        let mut digests = self.storage.digests();
        if digests.len() >= DIGESTS_MAX {
            digests.clear();
        }
        digests.insert(self.layout(), digest);
    }

    fn hash(&self) -> Digest {
        let mut hasher = TensorHasher::new(self.dtype, self.rows, self.cols);
        if let Some(bytes) = self.contiguous_bytes() {
            hasher.update(bytes);
        } else {
            let mut chunk = vec![0u8; (64 << 10).min(self.size_bytes())];
            let mut done = 0;
            while done < self.size_bytes() {
                let take = chunk.len().min(self.size_bytes() - done);
                self.read_bytes(done as u64, &mut chunk[..take]);
                hasher.update(&chunk[..take]);
                done += take;
            }
        }
        hasher.finish()
    }

    /// The element at (`row`, `col`) as f64, exactly. `None` outside.
    pub fn get(&self, row: usize, col: usize) -> Option<f64> {
        if row >= self.rows || col >= self.cols {
            return None;
        }
        let index = row * self.row_stride + col * self.col_stride;
        for_dtype!(self.dtype, T => self.elements::<T>().map(|e| e[index].to_f64()))
    }

    /// Whether no element is NaN or infinite.
    pub fn all_finite(&self) -> bool {
        if !self.dtype.is_float() {
            return true;
        }
        for_dtype!(self.dtype, T => match self.view::<T>() {
            Ok(view) => view.iter().all(|v| v.to_f64().is_finite()),
            Err(_) => true,
        })
    }
}

/// Copies `block` row by row into `out`, its element (0, 0) at `start`, rows `stride` apart.
pub(crate) fn copy_rows<T: Element>(block: &Tensor, out: &mut [T], start: usize, stride: usize) {
    let Some(elements) = block.elements::<T>() else {
        return;
    };
    let (rows, cols) = block.shape();
    if rows == 0 || cols == 0 {
        return;
    }
    let (row_stride, col_stride) = block.strides();
    if col_stride == 1 {
        for row in 0..rows {
            let from = &elements[row * row_stride..][..cols];
            out[start + row * stride..][..cols].copy_from_slice(from);
        }
        return;
    }
    // In squares, so that neither side touches a new cache line for every element.
    const SQUARE: usize = 32;
    for row0 in (0..rows).step_by(SQUARE) {
        for col0 in (0..cols).step_by(SQUARE) {
            for row in row0..(row0 + SQUARE).min(rows) {
                let width = SQUARE.min(cols - col0);
                let to = &mut out[start + row * stride + col0..][..width];
                let from = &elements[row * row_stride + col0 * col_stride..];
                for (to, from) in to.iter_mut().zip(from.iter().step_by(col_stride)) {
                    *to = *from;
                }
            }
        }
    }
}

fn check_ranges(shape: (usize, usize), rows: &Range<usize>, cols: &Range<usize>) -> Result<(), Error> {
    let inside = |range: &Range<usize>, limit| range.start <= range.end && range.end <= limit;
    if inside(rows, shape.0) && inside(cols, shape.1) {
        return Ok(());
    }
    Err(Error::invalid(
        "slice",
        format!("rows {rows:?} and columns {cols:?} do not lie inside {} x {}", shape.0, shape.1),
    ))
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {} x {})", self.dtype, self.rows, self.cols)
    }
}
