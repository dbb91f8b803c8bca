//! `.npy` files as tensors over a mapping of the file. A block is a view of the mapping where byte order and alignment
//! allow, else a copy.

use super::header::{MAX_HEADER_BYTES, NpyHeader};
use crate::dtype::for_dtype;
use crate::mapping::Mapping;
use crate::tensor::copy_rows;
use crate::{DType, Element, Error, Tensor, TensorBuf};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// A matrix in a `.npy` file, mapped into memory: only blocks that are used are read from disk.
pub struct NpyFile {
    dtype: DType,
    big_endian: bool,
    rows: usize,
    cols: usize,
    /// In elements.
    strides: (usize, usize),
    /// `None` where there are no elements: an empty range cannot be mapped.
    mapping: Option<Mapping>,
}

impl NpyFile {
    /// Maps the file. Its header and its length are checked here.
    ///
    /// The file must not be truncated while it is in use: the system kills a process that reads a mapped page beyond
    /// the file's end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Parse`] for malformed or truncated files; [`Error::Dtype`]; [`Error::Invalid`] for other
    /// than two dimensions.
    pub fn open(path: impl AsRef<Path>) -> Result<NpyFile, Error> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::invalid("npy", format!("{} is not a regular file", path.display())));
        }
        let mut start = Vec::new();
        file.by_ref().take(12 + MAX_HEADER_BYTES as u64).read_to_end(&mut start).map_err(io)?;
        let (header, offset) = NpyHeader::parse(&start)?;
        let (rows, cols) = header.matrix_shape()?;
        let payload = header.payload_bytes()?;
        let have = metadata.len().saturating_sub(offset);
        if have < payload {
            return Err(Error::Parse {
                format: "npy",
                what: format!(
                    "{} is truncated: {rows} x {cols} {} take {payload} bytes after the header, the file has {have}",
                    path.display(),
                    header.dtype
                ),
                place: format!("at byte {}", metadata.len()),
            });
        }
        let mapping = match payload {
            0 => None,
            _ => Some(Mapping::of(&file, offset as usize).map_err(io)?),
        };
        Ok(NpyFile {
            dtype: header.dtype,
            big_endian: header.big_endian,
            rows,
            cols,
            strides: if header.fortran { (1, rows) } else { (cols, 1) },
            mapping,
        })
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

    /// The size of all elements in bytes.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size_bytes()
    }

    /// A block as a tensor: a view of the file, or a copy where bytes are swapped or not aligned.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the ranges lie outside; [`Error::OutOfMemory`].
    pub fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor, Error> {
        let Some(mapping) = &self.mapping else {
            return TensorBuf::new(self.dtype, self.rows, self.cols)?.freeze().slice(rows, cols);
        };
        let size = self.dtype.size_bytes();
        let aligned = (mapping.bytes().as_ptr() as usize).is_multiple_of(size);
        if aligned {
            let whole = Tensor::mapped(self.dtype, self.rows, self.cols, self.strides, mapping.clone())?;
            let block = whole.slice(rows, cols)?;
            return if self.big_endian { swapped(&block) } else { Ok(block) };
        }
        self.copied(mapping.bytes(), rows, cols)
    }

    /// The whole matrix, as [`NpyFile::block`].
    ///
    /// # Errors
    /// As [`NpyFile::block`].
    pub fn whole(&self) -> Result<Tensor, Error> {
        self.block(0..self.rows, 0..self.cols)
    }

    /// Copies a block whose elements are not aligned in the file, byte by byte.
    fn copied(&self, bytes: &[u8], rows: Range<usize>, cols: Range<usize>) -> Result<Tensor, Error> {
        let inside = |r: &Range<usize>, limit| r.start <= r.end && r.end <= limit;
        if !inside(&rows, self.rows) || !inside(&cols, self.cols) {
            return Err(Error::invalid(
                "npy",
                format!("rows {rows:?} and columns {cols:?} do not lie inside {} x {}", self.rows, self.cols),
            ));
        }
        let mut out = TensorBuf::new(self.dtype, rows.len(), cols.len())?;
        let size = self.dtype.size_bytes();
        let width = cols.len();
        for (line, row) in out.bytes_mut().chunks_exact_mut((width * size).max(1)).zip(rows) {
            for (to, col) in line.chunks_exact_mut(size).zip(cols.clone()) {
                let from = (row * self.strides.0 + col * self.strides.1) * size;
                to.copy_from_slice(&bytes[from..from + size]);
                if self.big_endian {
                    to.reverse();
                }
            }
        }
        Ok(out.freeze())
    }
}

/// A copy of `block` with every element's bytes reversed.
fn swapped(block: &Tensor) -> Result<Tensor, Error> {
    let mut out = TensorBuf::new(block.dtype(), block.rows(), block.cols())?;
    let cols = block.cols();
    for_dtype!(block.dtype(), T => {
        if let Some(elements) = out.elements_mut::<T>() {
            copy_rows::<T>(block, elements, 0, cols);
            for element in elements {
                *element = Element::swap_bytes(*element);
            }
        }
    });
    Ok(out.freeze())
}

impl std::fmt::Debug for NpyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NpyFile({} {} x {})", self.dtype, self.rows, self.cols)
    }
}
