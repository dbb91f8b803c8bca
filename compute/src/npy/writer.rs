//! Writing a `.npy` file block by block, under a temporary name until it is complete. An unfinished file is removed.

use super::header::NpyHeader;
use crate::{DType, Error, Tensor};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Memory, at most, for gathering rows that are not contiguous.
const GATHER_BYTES: usize = 1 << 20;

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A `.npy` file being written. Dropped before [`NpyWriter::finish`], it is removed.
#[derive(Debug)]
pub struct NpyWriter {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    dtype: DType,
    rows: usize,
    cols: usize,
    start: u64,
}

impl NpyWriter {
    /// Starts a row-major little-endian file of `rows` × `cols` beside `path`, under a temporary name. Blocks that are
    /// never written are zeros.
    ///
    /// # Errors
    /// [`Error::Dtype`] for `bf16`; [`Error::Io`]; [`Error::DiskFull`].
    pub fn create(path: impl AsRef<Path>, dtype: DType, rows: usize, cols: usize) -> Result<NpyWriter, Error> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        let header = NpyHeader { dtype, big_endian: false, fortran: false, shape: vec![rows as u64, cols as u64] };
        let start = header.to_bytes()?;
        let payload = header.payload_bytes()?;
        let name =
            path.file_name().ok_or_else(|| Error::invalid("npy", format!("{} is not a file name", path.display())))?;
        let folder = folder_of(path);
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The mode of an ordinary new file, before the umask.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(folder).map_err(io)?;
        file.write_all(&start).map_err(io)?;
        file.as_file().set_len(start.len() as u64 + payload).map_err(io)?;
        Ok(NpyWriter { file, path: path.to_path_buf(), dtype, rows, cols, start: start.len() as u64 })
    }

    /// Writes `block` into the file, its element (0, 0) at (`row0`, `col0`).
    ///
    /// # Errors
    /// [`Error::Invalid`] where the block does not lie inside the matrix or has another type; [`Error::Io`];
    /// [`Error::DiskFull`].
    pub fn write_block(&mut self, row0: usize, col0: usize, block: &Tensor) -> Result<(), Error> {
        let inside = |from: usize, len: usize, limit: usize| from.checked_add(len).is_some_and(|end| end <= limit);
        let (rows, cols) = block.shape();
        if block.dtype() != self.dtype || !inside(row0, rows, self.rows) || !inside(col0, cols, self.cols) {
            return Err(Error::invalid(
                "npy",
                format!(
                    "a {} block of {rows} x {cols} at ({row0}, {col0}) does not fit into a {} file of {} x {}",
                    block.dtype(),
                    self.dtype,
                    self.rows,
                    self.cols
                ),
            ));
        }
        if block.is_empty() {
            return Ok(());
        }
        let size = self.dtype.size_bytes();
        let at = |row: usize| self.start + ((row * self.cols + col0) * size) as u64;
        let width = cols * size;
        // Rows of full width are adjacent in the file and are written together.
        let per_write = if cols == self.cols { (GATHER_BYTES / width).max(1) } else { 1 };
        let mut gathered = vec![0u8; if block.contiguous_bytes().is_some() { 0 } else { per_write.min(rows) * width }];
        for row in (0..rows).step_by(per_write) {
            let bytes = row * width..(row + per_write.min(rows - row)) * width;
            let line = match block.contiguous_bytes() {
                Some(all) => &all[bytes],
                None => {
                    let line = &mut gathered[..bytes.len()];
                    block.read_bytes(bytes.start as u64, line);
                    line
                }
            };
            let written = self.file.seek(SeekFrom::Start(at(row0 + row)));
            written.and_then(|_| self.file.write_all(line)).map_err(|e| Error::io(&self.path, e))?;
        }
        Ok(())
    }

    /// Makes the file durable and renames it to its path, replacing any file there.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::DiskFull`]. The temporary file is removed.
    pub fn finish(self) -> Result<(), Error> {
        let path = self.path;
        let io = |e| Error::io(&path, e);
        self.file.as_file().sync_all().map_err(io)?;
        self.file.persist(&path).map_err(|e| io(e.error))?;
        // The new name survives a crash once the folder is synced.
        std::fs::File::open(folder_of(&path)).and_then(|folder| folder.sync_all()).map_err(io)
    }
}
