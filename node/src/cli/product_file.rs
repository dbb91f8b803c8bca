//! The file of a product, written under a temporary name and renamed when it is complete. Problems are detected
//! before anything is computed; a command that ends early leaves nothing behind.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, TensorDestination, TensorInfo};
use pangea_compute::{Buffer, DType, NpyWriter, Tensor, TensorBuf};

use super::failure::Failure;
use super::matrix::Format;
use crate::storage::whole_file;
use pangea_units::ByteSize;

/// Bytes of a product that are converted to text at a time.
const TEXT_PIECE_BYTES: usize = 1 << 20;

/// Bytes collected before they are written as whole rows.
const GATHER_BYTES: usize = 4 << 20;

/// A file being written.
pub(super) struct ProductFile {
    path: PathBuf,
    target: Target,
}

enum Target {
    Npy(NpyWriter),
    /// Text cannot be written in blocks: the product is collected and written at the end.
    Text {
        file: tempfile::NamedTempFile,
        format: Format,
        product: TensorBuf,
    },
}

/// A checked place for a product; nothing is created yet.
pub(super) struct Destination {
    path: PathBuf,
    format: Format,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl Destination {
    /// Checks that a `[rows, cols]` product can be written to `path`, which must be none of `inputs`.
    pub(super) fn check(
        path: &Path,
        dtype: DType,
        rows: usize,
        cols: usize,
        inputs: &[&Path],
    ) -> Result<Destination, Failure> {
        let format = Format::of(path)?;
        let shown = path.display();
        if path.is_dir() {
            return Err(Failure::usage(format!("{shown} is a folder; name a file in it")));
        }
        if let Some(input) = inputs.iter().find(|input| is_same_file(input, path)) {
            return Err(Failure::usage(format!(
                "{shown} is the operand {}: the product would replace it; write it to another file",
                input.display()
            )));
        }
        if format == Format::Npy && dtype == DType::Bf16 {
            return Err(Failure::usage(format!(
                "{shown}: .npy files cannot hold bf16; write .csv or .json, or multiply with --dtype f32"
            )));
        }
        let folder = folder_of(path);
        if !folder.is_dir() {
            return Err(Failure::usage(format!(
                "{shown}: the folder {} does not exist; create it first",
                folder.display()
            )));
        }
        if format == Format::Npy {
            needs_room(folder, rows as u64 * cols as u64 * dtype.size_bytes() as u64)?;
        }
        Ok(Destination { path: path.to_owned(), format, dtype, rows, cols })
    }

    /// Whether a product larger than memory can be written there.
    pub(super) fn takes_blocks(&self) -> bool {
        self.format == Format::Npy
    }

    /// Creates the file under a temporary name. For text this allocates memory for the whole product.
    pub(super) fn create(self) -> Result<ProductFile, Failure> {
        let Destination { path, format, dtype, rows, cols } = self;
        let target = match format {
            Format::Npy => Target::Npy(NpyWriter::create(&path, dtype, rows, cols).map_err(|error| match error {
                pangea_compute::Error::Io { source, .. } => unwritable(&path, &source),
                other => other.into(),
            })?),
            Format::Csv | Format::Json => Target::Text {
                file: temporary(&path).map_err(|error| unwritable(&path, &error))?,
                format,
                product: TensorBuf::new(dtype, rows, cols)?,
            },
        };
        Ok(ProductFile { path, target })
    }
}

impl ProductFile {
    /// Writes a block whose first element is at (`row0`, `col0`).
    pub(super) fn write_block(&mut self, row0: usize, col0: usize, block: &Tensor) -> Result<(), Failure> {
        match &mut self.target {
            Target::Npy(writer) => Ok(writer.write_block(row0, col0, block)?),
            Target::Text { product, .. } => Ok(product.write_block(row0, col0, block)?),
        }
    }

    /// Renames the complete file to its own name. Returns the name and the size in bytes.
    pub(super) async fn finish(self) -> Result<(PathBuf, u64), Failure> {
        let path = self.path;
        match self.target {
            Target::Npy(writer) => writer.finish()?,
            Target::Text { mut file, format, product } => {
                write_text(&mut file, format, &product.freeze(), &path).await?;
                // After the rename there is nothing left to remove under the temporary name.
                whole_file::finish(&file.into_temp_path(), &path).map_err(|error| unwritable(&path, &error))?;
            }
        }
        let size_bytes = std::fs::metadata(&path).map_err(|error| unwritable(&path, &error))?.len();
        Ok((path, size_bytes))
    }
}

async fn write_text(
    file: &mut tempfile::NamedTempFile,
    format: Format,
    product: &Tensor,
    path: &Path,
) -> Result<(), Failure> {
    let step = (TEXT_PIECE_BYTES / (product.cols() * product.dtype().size_bytes()).max(1)).max(1);
    let json = format == Format::Json;
    let mut write = |text: &str| file.write_all(text.as_bytes()).map_err(|error| unwritable(path, &error));
    if json {
        write("[")?;
    }
    for start in (0..product.rows()).step_by(step) {
        let rows = product.slice(start..product.rows().min(start + step), 0..product.cols())?;
        if json {
            let text =
                pangea_compute::json::write(&rows).map_err(|error| Failure::from(error).about(path.display()))?;
            // The rows of the piece without the enclosing brackets.
            let inner = text.trim_end().strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or("");
            write(if start > 0 { ",\n " } else { "" })?;
            write(inner)?;
        } else {
            write(&pangea_compute::csv::write(&rows))?;
        }
        tokio::task::yield_now().await;
    }
    if json { write("]\n") } else { Ok(()) }
}

/// Receives the rows of a product from a node and writes them as a block.
pub(super) struct Incoming<'a> {
    file: &'a mut ProductFile,
    dtype: DType,
    row0: usize,
    col0: usize,
    cols: usize,
    /// Bytes that are not written yet, starting with a whole row.
    gathered: Vec<u8>,
    received_bytes: u64,
    on_bytes: &'a mut dyn FnMut(u64),
}

impl<'a> Incoming<'a> {
    /// Writes the block of `cols` columns at (`row0`, `col0`).
    pub(super) fn new(
        file: &'a mut ProductFile,
        dtype: DType,
        (row0, col0): (usize, usize),
        cols: usize,
        on_bytes: &'a mut dyn FnMut(u64),
    ) -> Incoming<'a> {
        Incoming { file, dtype, row0, col0, cols, gathered: Vec::new(), received_bytes: 0, on_bytes }
    }

    /// Writes the whole rows collected so far.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let row_bytes = self.cols * self.dtype.size_bytes();
        let rows = self.gathered.len().checked_div(row_bytes).unwrap_or(0);
        if rows == 0 {
            return Ok(());
        }
        let whole = rows * row_bytes;
        let block = Tensor::from_buffer(self.dtype, rows, self.cols, Buffer::copy_of(&self.gathered[..whole])?)?;
        self.file.write_block(self.row0, self.col0, &block)?;
        self.row0 += rows;
        self.gathered.drain(..whole);
        Ok(())
    }
}

impl TensorDestination for Incoming<'_> {
    fn begin(&mut self, _: &TensorInfo) -> pangea_client::Result<()> {
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> pangea_client::Result<()> {
        self.gathered.extend_from_slice(chunk);
        self.received_bytes += chunk.len() as u64;
        (self.on_bytes)(self.received_bytes);
        if self.gathered.len() >= GATHER_BYTES {
            self.flush().map_err(|failure| Error::new(ErrorKind::Internal, failure.message))?;
        }
        Ok(())
    }
}

/// A temporary file beside `path`, with the permissions of an ordinary new file.
fn temporary(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Fails if the disk has less than `bytes` free. Passes if the file system reports no free space.
fn needs_room(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // Virtual file systems report no blocks.
    if free < bytes && disk.f_blocks > 0 {
        return Err(Failure::failed(format!(
            "the product needs {} on disk; {} free in {}: free space or choose another place",
            ByteSize(bytes),
            ByteSize(free),
            folder.display()
        )));
    }
    Ok(())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let shown = path.display();
    match error.kind() {
        PermissionDenied | ReadOnlyFilesystem => {
            Failure::usage(format!("cannot write {shown} there ({error}); choose another place"))
        }
        StorageFull | QuotaExceeded => {
            Failure::failed(format!("the disk is full: {shown} was not written, and no partial file was left behind"))
        }
        _ => Failure::failed(format!("cannot write {shown}: {error}")),
    }
}
