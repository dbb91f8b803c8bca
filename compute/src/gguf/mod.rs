//! GGUF files, versions 2 and 3, little-endian: header, metadata and the table of tensors are checked when a file is
//! opened, so that a view of a tensor is only a slice. The parts of a split model are read as one file. Files are never
//! written; models are in [`crate::model`].
//!
//! Source: the GGUF specification in ggml's `docs/gguf.md`.

pub(crate) mod codebooks;
mod cursor;
mod dequantize;
mod finite;
mod ggml_type;
mod metadata;
pub(crate) mod scales;
mod split;
mod tensor_table;

pub use dequantize::dequantize;
pub(crate) use finite::is_finite;
pub use ggml_type::GgmlType;
pub use metadata::{Metadata, Strings, Value, ValueType};
pub use split::PartName;

use crate::Error;
use crate::mapping::Mapping;
use cursor::{Cursor, bad};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tensor_table::{Entry, TensorTable};

const MAGIC: &[u8; 4] = b"GGUF";
/// Supported versions. Version 1 had 32-bit lengths and was written for a few days in August 2023.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;

enum Source {
    Mapped(Mapping),
    Owned(Vec<u8>),
    Joined(split::Joined),
}

impl Source {
    /// The first bytes, with the whole header.
    fn beginning(&self) -> &[u8] {
        match self {
            Source::Mapped(mapping) => mapping.bytes(),
            Source::Owned(bytes) => bytes,
            Source::Joined(joined) => joined.header(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Source::Joined(joined) => joined.size(),
            one => one.beginning().len(),
        }
    }

    fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        match self {
            Source::Joined(joined) => joined.slice(range),
            one => one.beginning().get(range),
        }
    }

    fn located(&self, range: Range<usize>) -> Option<Located<'_>> {
        match self {
            Source::Mapped(mapping) => {
                mapping.bytes().get(range.clone()).map(|_| Located::File { part: 0, start: range.start as u64 })
            }
            Source::Owned(bytes) => bytes.get(range).map(Located::Bytes),
            Source::Joined(joined) => joined.located(range),
        }
    }

    fn release(&self, bytes: &[u8]) {
        match self {
            Source::Mapped(mapping) => mapping.release(bytes),
            Source::Owned(_) => {}
            Source::Joined(joined) => joined.release(bytes),
        }
    }

    fn release_all(&self) {
        match self {
            Source::Joined(joined) => joined.release_all(),
            one => one.release(one.beginning()),
        }
    }
}

/// Where a range of a model's bytes is stored; see [`Gguf::located`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located<'a> {
    /// In memory: a model that was read from memory, and the header of a split model, which no file has.
    Bytes(&'a [u8]),
    /// In a file.
    File {
        /// Which one of [`Gguf::part_paths`], from 0.
        part: usize,
        /// Offset of the range's first byte in it.
        start: u64,
    },
}

/// A GGUF file, mapped or in memory, parsed and checked.
///
/// The parts of a split model are one `Gguf`: the file that they were cut from, with one header, offsets and a size of its own.
/// That file need not exist anywhere.
pub struct Gguf {
    source: Source,
    metadata: Metadata,
    table: TensorTable,
}

/// One tensor of a file: its description and its bytes, not copied.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// The storage type of its elements.
    pub ggml_type: GgmlType,
    /// The dimensions in ggml's order: `shape[0]` is contiguous (k), then rows. 1 to 4 dimensions, none zero.
    pub shape: Vec<u64>,
    /// Row after row, each of `shape[0]` elements as whole blocks.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// The length of a contiguous row, in elements.
    pub fn row_len(&self) -> usize {
        self.shape[0] as usize
    }

    /// The number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        self.shape[1..].iter().product::<u64>() as usize
    }

    /// The number of elements. It does not overflow, because the file holds all of them.
    pub fn elements(&self) -> usize {
        self.row_len() * self.rows()
    }

    /// All elements as f32, row after row, by [`dequantize()`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let len = self.elements();
        let mut out = Vec::new();
        out.try_reserve_exact(len)
            .map_err(|_| Error::OutOfMemory { bytes: len as u64 * 4, what: "a tensor of the model" })?;
        out.resize(len, 0.0);
        dequantize(self.ggml_type, self.bytes, &mut out)?;
        Ok(out)
    }
}

impl Gguf {
    /// Maps the file and checks everything but the tensors' elements, which are not read. The first part of a split model
    /// opens all of them: the others lie beside it under their names, those of [`Gguf::part_paths`].
    ///
    /// The files must not be truncated while they are in use: the system kills a process that reads a mapped page beyond
    /// a file's end.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for what is not a regular file, for a part that is not the first, and where the parts
    /// are missing, swapped or of different models; otherwise as [`Gguf::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        split::open(path.as_ref())
    }

    /// The files that [`Gguf::open`] reads for `path`, by names alone: all parts in order where it has the name of a split
    /// model's first part (`NAME-00001-of-00003.gguf`), else itself.
    pub fn part_paths(path: &Path) -> Vec<PathBuf> {
        split::part_paths(path)
    }

    /// Opens the files of one model in order, whatever their names: all parts of a split model, or one whole file.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn open_parts(paths: &[PathBuf]) -> Result<Gguf, Error> {
        split::open_parts(paths)
    }

    /// Maps one file, whole or a part.
    fn open_one(path: &Path) -> Result<Gguf, Error> {
        let source = match Mapping::open(path, "gguf")? {
            Some(mapping) => Source::Mapped(mapping),
            None => Source::Owned(Vec::new()),
        };
        Gguf::parse(source).map_err(|e| match e {
            Error::Parse { format, what, place } => {
                Error::Parse { format, what, place: format!("{}, {place}", path.display()) }
            }
            other => other,
        })
    }

    /// Parses a GGUF file in memory, with the same checks. The file must be whole, not a part of a split model.
    ///
    /// # Errors
    /// [`Error::Parse`], with the byte, for anything but a complete GGUF file: wrong magic, version or byte order,
    /// truncation, lengths and offsets outside the file, duplicate names and keys, overlapping tensors. Nothing is
    /// allocated for a length before its bytes are known to be there. A tensor of an unsupported type is an error only
    /// when it is used.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, Error> {
        Gguf::from_parts(vec![bytes])
    }

    /// Parses all parts of a split model in memory, the first one first, or one whole file.
    ///
    /// # Errors
    /// As [`Gguf::from_bytes`]; [`Error::Invalid`] as for [`Gguf::open`].
    pub fn from_parts(parts: Vec<Vec<u8>>) -> Result<Gguf, Error> {
        let parts = parts.into_iter().map(|bytes| Gguf::parse(Source::Owned(bytes))).collect::<Result<_, _>>()?;
        split::join(parts, |number| format!("part {}", number + 1))
    }

    fn parse(source: Source) -> Result<Gguf, Error> {
        let mut cursor = Cursor::of_beginning(source.beginning(), source.size());
        let (tensors, pairs) = header(&mut cursor)?;
        let metadata = Metadata::parse(&mut cursor, pairs)?;
        let table = TensorTable::parse(&mut cursor, tensors, &metadata)?;
        Ok(Gguf { source, metadata, table })
    }

    /// The key-value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor of that name; `None` where the file has none.
    ///
    /// # Errors
    /// [`Error::Dtype`] where its type is not supported.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, Error> {
        self.table.find(name).map(|entry| self.view(entry)).transpose()
    }

    /// The tensor of that name, which must exist.
    ///
    /// # Errors
    /// As [`Gguf::tensor`]; [`Error::Invalid`] where the file has none.
    pub fn require(&self, name: &str) -> Result<TensorView<'_>, Error> {
        self.tensor(name)?.ok_or_else(|| {
            Error::invalid(
                "gguf",
                format!("the file has no tensor {name:?}: the file is incomplete or names the wrong architecture"),
            )
        })
    }

    /// All tensors in the file's order, those of unsupported types as errors.
    pub fn tensors(&self) -> impl Iterator<Item = Result<TensorView<'_>, Error>> {
        self.table.entries().iter().map(|entry| self.view(entry))
    }

    /// The names of all tensors, in the file's order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.table.entries().iter().map(|entry| entry.name.as_str())
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Result<TensorView<'a>, Error> {
        Ok(TensorView {
            name: &entry.name,
            ggml_type: GgmlType::supported(entry.type_id, &entry.name)?,
            shape: entry.shape.clone(),
            // The table's ranges lie in the file, as was checked.
            bytes: self.source.slice(entry.bytes.clone()).unwrap_or_default(),
        })
    }

    /// The bytes at `range` of the file; of a split model where the range lies before the first tensor or in one tensor, as
    /// every piece of a [`Manifest`](crate::model::Manifest) does. `None` for other ranges.
    pub fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.source.slice(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    /// Where the bytes of such a range, as of [`Gguf::slice`], are stored: for readers that map nothing, which a file that is
    /// truncated meanwhile does not kill.
    pub fn located(&self, range: Range<u64>) -> Option<Located<'_>> {
        self.source.located(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    /// The bytes of a tensor in the file.
    pub fn range_of(&self, tensor: &TensorView<'_>) -> Range<u64> {
        self.table.find(tensor.name).map_or(0..0, |entry| entry.bytes.start as u64..entry.bytes.end as u64)
    }

    /// The size of the whole file.
    pub fn size_bytes(&self) -> u64 {
        self.source.size() as u64
    }

    /// [`Gguf::release`] for the whole file.
    pub fn release_all(&self) {
        self.source.release_all();
    }

    /// Tells the system that these bytes, part of a [`TensorView`], will not be read again soon: mapped pages that lie
    /// wholly inside stop counting as this process's memory. Reading them again is correct, only slower. Does nothing
    /// for bytes outside this file's mapping.
    pub fn release(&self, bytes: &[u8]) {
        self.source.release(bytes);
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({} tensors, {} bytes)", self.table.entries().len(), self.size_bytes())
    }
}

/// The counts of tensors and of metadata pairs.
fn header(cursor: &mut Cursor<'_>) -> Result<(u64, u64), Error> {
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        let hint = match magic {
            b"ggml" | b"lmgg" | b"ggmf" | b"fmgg" | b"ggjt" | b"tjgg" | b"ggla" | b"algg" => {
                "a file of a format from before GGUF; convert it, or fetch the model as GGUF"
            }
            b"FUGG" => "a GGUF file with its bytes swapped; fetch it again",
            _ => "not a GGUF file; check that the download is complete and the right file",
        };
        return Err(bad(
            0,
            format!("the file begins with {:?}, not \"GGUF\": {hint}", magic.escape_ascii().to_string()),
        ));
    }
    let version = cursor.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(bad(4, "big-endian files are not supported; fetch or convert a little-endian one"));
    }
    if !VERSIONS.contains(&version) {
        return Err(bad(
            4,
            format!(
                "GGUF version {version} is not supported, only 2 and 3; convert the model again with a current tool"
            ),
        ));
    }
    Ok((cursor.u64("the number of tensors")?, cursor.u64("the number of metadata pairs")?))
}
