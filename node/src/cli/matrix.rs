//! The operands of a product: files or generated numbers of any size, read in pieces. Only requested parts
//! are read, and only a few pieces of a file stay in memory. Nothing is written.

use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pangea_client::{Error, ErrorKind, TensorInfo, TensorSource};
use pangea_compute::{DType, NpyFile, Tensor, TensorBuf};

use super::failure::{Exit, Failure};

/// Bytes of a piece: large enough for a disk, small compared with an operand.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes of a mapping that are touched before the file is mapped again, which releases the pages of the old mapping.
const TOUCHED_BYTES_MAX: usize = 4 << 20;

/// Bytes that touching one element of a mapping loads: the system maps the surrounding pages as well.
const AROUND_BYTES: usize = 64 << 10;

/// Formats of matrix files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// NumPy's format.
    Npy,
    /// Comma-separated text.
    Csv,
    /// A JSON list of rows.
    Json,
}

impl Format {
    /// The format by the extension of `path`.
    pub(super) fn of(path: &Path) -> Result<Format, Failure> {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("npy") => Ok(Format::Npy),
            Some("csv") => Ok(Format::Csv),
            Some("json") => Ok(Format::Json),
            _ => Err(Failure::usage(format!("{}: unknown file extension; use .npy, .csv or .json", path.display()))),
        }
    }
}

/// One operand, `[rows, cols]`.
pub(super) struct Operand {
    source: Source,
    rows: usize,
    cols: usize,
    /// Element type after conversion.
    dtype: DType,
}

enum Source {
    Mapped(Box<Mapped>),
    Memory(Tensor),
    Generated { seed: u64 },
}

struct Mapped {
    path: PathBuf,
    stamp: Stamp,
    open: Mutex<Open>,
}

/// A mapping, and how many of its bytes were touched.
struct Open {
    file: NpyFile,
    touched_bytes: usize,
}

/// Identity of a file: detects that a file was replaced or changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Operand {
    /// The matrix in a file, converted to `dtype` if one is given. A `.npy` file is only mapped; text is read.
    pub(super) fn file(path: &Path, dtype: Option<DType>) -> Result<Operand, Failure> {
        let format = Format::of(path)?;
        let operand = match format {
            Format::Npy => {
                let file = NpyFile::open(path).map_err(|error| input_failure(path, error))?;
                let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
                Operand {
                    rows: file.rows(),
                    cols: file.cols(),
                    dtype: dtype.unwrap_or(file.dtype()),
                    source: Source::Mapped(Box::new(Mapped {
                        path: path.to_owned(),
                        stamp: Stamp::from(&metadata),
                        open: Mutex::new(Open { file, touched_bytes: 0 }),
                    })),
                }
            }
            Format::Csv | Format::Json => {
                let text = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
                let tensor = match format {
                    Format::Csv => pangea_compute::csv::parse(&text),
                    _ => pangea_compute::json::parse(&text),
                };
                let converted = tensor.and_then(|t| pangea_compute::csv::convert(&t, dtype.unwrap_or(t.dtype())));
                let tensor = converted.map_err(|error| input_failure(path, error))?;
                Operand {
                    rows: tensor.rows(),
                    cols: tensor.cols(),
                    dtype: tensor.dtype(),
                    source: Source::Memory(tensor),
                }
            }
        };
        if operand.dtype == DType::I32 {
            return Err(Failure::usage(format!(
                "{}: int32 operands are not supported; use --dtype f64 (exact) or --dtype i8",
                path.display()
            )));
        }
        Ok(operand)
    }

    /// Pseudo-random numbers that depend only on `seed`.
    pub(super) fn generated(rows: usize, cols: usize, dtype: DType, seed: u64) -> Operand {
        Operand { source: Source::Generated { seed }, rows, cols, dtype }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all elements; saturates.
    pub(super) fn size_bytes(&self) -> u64 {
        (self.rows as u64).saturating_mul(self.cols as u64).saturating_mul(self.dtype.size_bytes() as u64)
    }

    /// A small block, copied into memory.
    fn piece(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor, Failure> {
        Ok(match &self.source {
            Source::Mapped(mapped) => mapped.piece(rows, cols, self.dtype)?,
            Source::Memory(tensor) => tensor.slice(rows, cols)?,
            Source::Generated { seed } => Tensor::generate_block(self.dtype, self.rows, self.cols, rows, cols, *seed)?,
        })
    }

    /// Rows of `width` columns in one piece.
    fn piece_rows(&self, width: usize) -> usize {
        (PIECE_BYTES / (width * self.dtype.size_bytes()).max(1)).max(1)
    }

    /// A block in memory of its own. Yields to other tasks between pieces.
    pub(super) async fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor, Failure> {
        let mut block = TensorBuf::new(self.dtype, rows.len(), cols.len())?;
        let step = self.piece_rows(cols.len());
        for start in rows.clone().step_by(step) {
            let end = rows.end.min(start + step);
            block.write_block(start - rows.start, 0, &self.piece(start..end, cols.clone())?)?;
            tokio::task::yield_now().await;
        }
        Ok(block.freeze())
    }

    /// The whole operand: a view of the file if possible.
    pub(super) async fn whole(&self) -> Result<Tensor, Failure> {
        match &self.source {
            Source::Memory(tensor) => Ok(tensor.clone()),
            Source::Mapped(mapped) if mapped.lock().file.dtype() == self.dtype => {
                mapped.lock().file.whole().map_err(|error| input_failure(&mapped.path, error))
            }
            _ => self.block(0..self.rows, 0..self.cols).await,
        }
    }

    /// A block as an upload; one piece at a time is in memory.
    pub(super) fn upload<'a>(
        &'a self,
        rows: Range<usize>,
        cols: Range<usize>,
        on_bytes: &'a mut dyn FnMut(u64),
    ) -> Upload<'a> {
        Upload { operand: self, rows, cols, piece: None, on_bytes }
    }
}

impl Mapped {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn piece(&self, rows: Range<usize>, cols: Range<usize>, dtype: DType) -> Result<Tensor, Failure> {
        let about = |error| input_failure(&self.path, error);
        let mut open = self.lock();
        if open.touched_bytes > TOUCHED_BYTES_MAX {
            self.reopen(&mut open)?;
        }
        let view = open.file.block(rows, cols).map_err(about)?;
        // Lines of the file that the block crosses: its rows, or its columns in Fortran order.
        let lines = if view.transposed().is_contiguous() { view.cols() } else { view.rows() };
        open.touched_bytes += view.size_bytes().max(lines * AROUND_BYTES);
        let mut copy = TensorBuf::new(view.dtype(), view.rows(), view.cols())?;
        copy.write_block(0, 0, &view)?;
        pangea_compute::csv::convert(&copy.freeze(), dtype).map_err(about)
    }

    /// Maps the file again, which releases the pages of the old mapping.
    fn reopen(&self, open: &mut Open) -> Result<(), Failure> {
        let file = NpyFile::open(&self.path).map_err(|error| input_failure(&self.path, error))?;
        let metadata = std::fs::metadata(&self.path).map_err(|error| unreadable(&self.path, &error))?;
        if Stamp::from(&metadata) != self.stamp {
            return Err(Failure::failed(format!("{} was changed while it was being read", self.path.display())));
        }
        *open = Open { file, touched_bytes: 0 };
        Ok(())
    }
}

/// A block of an operand on its way to a node.
pub(super) struct Upload<'a> {
    operand: &'a Operand,
    rows: Range<usize>,
    cols: Range<usize>,
    /// The current piece and the byte of the block at which it starts.
    piece: Option<(u64, Tensor)>,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl TensorSource for Upload<'_> {
    fn info(&self) -> TensorInfo {
        TensorInfo { dtype: wire_dtype(self.operand.dtype), rows: self.rows.len() as u64, cols: self.cols.len() as u64 }
    }

    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> pangea_client::Result<()> {
        let row_bytes = (self.cols.len() * self.operand.dtype.size_bytes()) as u64;
        let mut filled = 0;
        while filled < chunk.len() {
            let at = offset + filled as u64;
            let (start, piece) = match self.piece.take() {
                Some((start, piece)) if (start..start + piece.size_bytes() as u64).contains(&at) => (start, piece),
                _ => self.load(at / row_bytes, row_bytes)?,
            };
            let within = at - start;
            let length = (chunk.len() - filled).min((piece.size_bytes() as u64 - within) as usize);
            piece.read_bytes(within, &mut chunk[filled..filled + length]);
            filled += length;
            self.piece = Some((start, piece));
        }
        (self.on_bytes)(offset + chunk.len() as u64);
        Ok(())
    }
}

impl Upload<'_> {
    /// Loads the piece that starts at this row of the block; returns its first byte as well.
    fn load(&self, row: u64, row_bytes: u64) -> pangea_client::Result<(u64, Tensor)> {
        let first = self.rows.start + row as usize;
        let end = self.rows.end.min(first + self.operand.piece_rows(self.cols.len()));
        let piece = self.operand.piece(first..end, self.cols.clone()).map_err(|failure| {
            let kind = if failure.exit == Exit::Usage { ErrorKind::InvalidInput } else { ErrorKind::Internal };
            Error::new(kind, failure.message)
        })?;
        Ok((row * row_bytes, piece))
    }
}

/// Converts a dtype to the client's type.
pub(super) fn wire_dtype(dtype: DType) -> pangea_client::DType {
    match dtype {
        DType::F16 => pangea_client::DType::F16,
        DType::Bf16 => pangea_client::DType::Bf16,
        DType::F32 => pangea_client::DType::F32,
        DType::F64 => pangea_client::DType::F64,
        DType::I8 => pangea_client::DType::I8,
        DType::I32 => pangea_client::DType::I32,
    }
}

/// An error about a file that the user named counts as bad input.
fn input_failure(path: &Path, error: pangea_compute::Error) -> Failure {
    match &error {
        pangea_compute::Error::Io { source, .. } => unreadable(path, source),
        pangea_compute::Error::OutOfMemory { .. } | pangea_compute::Error::TooLarge { .. } => error.into(),
        _ => {
            let text = error.to_string();
            let shown = path.display().to_string();
            Failure::usage(if text.contains(&shown) { text } else { format!("{shown}: {text}") })
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let why = match error.kind() {
        std::io::ErrorKind::NotFound => "the file does not exist; check the path".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    Failure::usage(format!("cannot read {}: {why}", path.display()))
}
