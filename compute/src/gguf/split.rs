//! Split models: one model in several files. They are read as the one file that they were cut from: its header is made here,
//! its tensors are ranges of the parts. That file is what everything else sees, so a model has one digest and one table of
//! tensors however it is stored.
//!
//! Every part is a GGUF file with tensors of its own; the first one has the model's metadata. `split.no` is a part's number from
//! 0, `split.count` the number of parts, `split.tensors.count` the number of tensors of all parts; names end with the number from
//! 1 and the count, `-00001-of-00003.gguf`.
//!
//! Source: llama.cpp's `gguf-split` and its loader of models.

use super::cursor::Cursor;
use super::metadata::{Metadata, Value};
use super::tensor_table::{Entry, alignment};
use super::{Gguf, Located, Source, header};
use crate::Error;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Keys that say how a model is split; the file that it was cut from has none of them.
const SPLIT_KEYS: &str = "split.";

/// Alignment of tensors, at most: the joined header is padded to it in memory.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What a part says of its place among the others.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    /// From 0.
    number: u64,
    parts: u64,
    /// Tensors of all parts.
    tensors: u64,
}

impl Place {
    /// `None` for a file that is whole: never split, or merged (which leaves a count of 0).
    fn of(metadata: &Metadata) -> Result<Option<Place>, Error> {
        let parts = metadata.get_u64("split.count")?.unwrap_or(0);
        if parts < 2 {
            return Ok(None);
        }
        let required = |key: &str| {
            metadata
                .get_u64(key)?
                .ok_or_else(|| wrong(format!("the file is one of {parts} parts of a split model, but has no {key}")))
        };
        Ok(Some(Place { number: required("split.no")?, parts, tensors: required("split.tensors.count")? }))
    }
}

/// A split model as one file.
pub(super) struct Joined {
    /// All bytes before the first tensor.
    header: Vec<u8>,
    parts: Vec<Source>,
    /// The tensors, ascending by their place.
    extents: Vec<Extent>,
    size: usize,
}

/// Where the bytes of a tensor are.
struct Extent {
    /// In the joined file.
    bytes: Range<usize>,
    part: usize,
    /// Offset in the part.
    start: usize,
}

impl Joined {
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// A range of the header or of one tensor.
    pub(super) fn slice(&self, range: Range<usize>) -> Option<&[u8]> {
        if range.end <= self.header.len() {
            return self.header.get(range);
        }
        let (extent, inside) = self.extent(range)?;
        self.parts[extent.part].beginning()[extent.start..][..extent.bytes.len()].get(inside)
    }

    /// The tensor that a range of the joined file lies in, and where in it.
    fn extent(&self, range: Range<usize>) -> Option<(&Extent, Range<usize>)> {
        let after = self.extents.partition_point(|extent| extent.bytes.start <= range.start);
        let extent = &self.extents[after.checked_sub(1)?];
        let is_inside = range.start <= range.end && range.end <= extent.bytes.end;
        let from = extent.bytes.start;
        is_inside.then(|| (extent, range.start - from..range.end - from))
    }

    /// See [`Gguf::located`].
    pub(super) fn located(&self, range: Range<usize>) -> Option<Located<'_>> {
        if range.end <= self.header.len() {
            return self.header.get(range).map(Located::Bytes);
        }
        let (extent, inside) = self.extent(range)?;
        match self.parts[extent.part].located(extent.start + inside.start..extent.start + inside.end)? {
            Located::File { start, .. } => Some(Located::File { part: extent.part, start }),
            bytes => Some(bytes),
        }
    }

    pub(super) fn release(&self, bytes: &[u8]) {
        self.parts.iter().for_each(|part| part.release(bytes));
    }

    pub(super) fn release_all(&self) {
        self.parts.iter().for_each(Source::release_all);
    }
}

/// What a file's name says of its place in a split model: `STEM-00002-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    stem: String,
    number: u64,
    parts: u64,
}

impl PartName {
    /// `None` for a name that no part of a split model has.
    pub fn parse(file_name: &str) -> Option<PartName> {
        let (rest, parts) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let count = |digits: &str| -> Option<u64> {
            let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        };
        let (number, parts) = (count(number)?.checked_sub(1)?, count(parts)?);
        (parts > 1 && number < parts && !stem.is_empty()).then(|| PartName { stem: stem.to_owned(), number, parts })
    }

    /// The name of the model, which all parts share: `STEM`.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The part's number, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The file names of all parts, in order.
    pub fn file_names(&self) -> impl Iterator<Item = String> {
        (0..self.parts).map(|number| format!("{}{}", self.stem, suffix(number, self.parts)))
    }
}

/// Opens a file, and with the first part of a split model all others.
pub(super) fn open(path: &Path) -> Result<Gguf, Error> {
    let first = Gguf::open_one(path)?;
    let Some(place) = Place::of(&first.metadata)? else { return Ok(first) };
    let paths = part_paths(path);
    if place.number != 0 {
        return Err(wrong(format!(
            "{} is part {} of {} of a split model; open its first part, whose name ends with \"{}\"",
            path.display(),
            place.number.saturating_add(1),
            place.parts,
            suffix(0, place.parts)
        )));
    }
    if paths.len() as u64 != place.parts {
        return Err(wrong(format!(
            "{} is the first of {} parts of a split model, but its name does not end with \"{}\", so the other parts cannot be \
             found; give all parts the names that they were published under",
            path.display(),
            place.parts,
            suffix(0, place.parts)
        )));
    }
    open_rest(first, &paths)
}

/// See [`Gguf::open_parts`].
pub(super) fn open_parts(paths: &[PathBuf]) -> Result<Gguf, Error> {
    let first = paths.first().ok_or_else(|| wrong("there are no parts".to_owned()))?;
    open_rest(Gguf::open_one(first)?, paths)
}

/// Opens the parts after the first one, and joins all.
fn open_rest(first: Gguf, paths: &[PathBuf]) -> Result<Gguf, Error> {
    let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = vec![first];
    for path in &paths[1..] {
        parts.push(Gguf::open_one(path).map_err(|error| match error {
            Error::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => Error::Io {
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    format!("a part of the split model {} is missing; put it beside the others", file_name(&paths[0])),
                ),
                path,
            },
            other => other,
        })?);
    }
    join(parts, |number| paths.get(number).map_or_else(String::new, |path| path.display().to_string()))
}

/// The end of the name of part `number`, from 0.
fn suffix(number: u64, parts: u64) -> String {
    format!("-{:05}-of-{parts:05}.gguf", number.saturating_add(1))
}

/// See [`Gguf::part_paths`].
pub(super) fn part_paths(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| PartName::parse(name.to_str()?));
    match name.filter(|name| name.number == 0) {
        Some(name) => name.file_names().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.to_owned()],
    }
}

/// Joins the parts of a split model, or takes a whole file as it is. `name` says what part `number`, from 0, is called in errors.
pub(super) fn join(mut parts: Vec<Gguf>, name: impl Fn(usize) -> String) -> Result<Gguf, Error> {
    let place = match parts.first() {
        Some(first) => Place::of(&first.metadata)?,
        None => return Err(wrong("there are no parts".to_owned())),
    };
    let Some(place) = place else {
        return match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Err(wrong(format!("{} is a whole model, not the first of several parts", name(0)))),
        };
    };
    if parts.len() as u64 != place.parts {
        return Err(wrong(format!(
            "the model is split into {} parts, of which {} are here; get all of them",
            place.parts,
            parts.len()
        )));
    }
    check(&parts, place, &name)?;
    let joined = Joined::of(parts)?;
    Gguf::parse(Source::Joined(joined))
}

/// Whether the parts belong together. Only what a part repeats of the first one shows that it is another model's.
fn check(parts: &[Gguf], place: Place, name: &impl Fn(usize) -> String) -> Result<(), Error> {
    let mut tensors = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        let expected = Place { number: number as u64, ..place };
        let here = format!("{}, which should be part {} of {}", name(number), number + 1, place.parts);
        match Place::of(&part.metadata)? {
            None => return Err(wrong(format!("{here}, is not a part of a split model; fetch the right file"))),
            Some(said) if said.parts != place.parts || said.tensors != place.tensors => {
                return Err(wrong(format!(
                    "{here}, is of another model: it says {} parts with {} tensors, and the first part {} with {}; fetch parts of \
                     one model",
                    said.parts, said.tensors, place.parts, place.tensors
                )));
            }
            Some(said) if said != expected => {
                return Err(wrong(format!(
                    "{here}, is part {}: the parts were swapped or renamed; give them their own names again",
                    said.number.saturating_add(1)
                )));
            }
            Some(_) => {}
        }
        let first = &parts[0].metadata;
        let repeated = part.metadata.iter().filter(|(key, _)| !key.starts_with(SPLIT_KEYS));
        for (key, value) in repeated {
            if first.get(key).is_some_and(|first| first != value) {
                return Err(wrong(format!(
                    "{here}, is of another model: its {key} is not that of the first part; fetch parts of one model"
                )));
            }
        }
        for entry in part.table.entries() {
            if let Some(other) = tensors.insert(entry.name.as_str(), number) {
                return Err(wrong(format!(
                    "the tensor {:?} is in {} and in {}: they are not parts of one model; fetch parts of one model",
                    entry.name,
                    name(other),
                    name(number)
                )));
            }
        }
    }
    if tensors.len() as u64 != place.tensors {
        return Err(wrong(format!(
            "the {} parts have {} tensors, but the model has {}: a part is of another model; fetch parts of one model",
            place.parts,
            tensors.len(),
            place.tensors
        )));
    }
    Ok(())
}

impl Joined {
    /// Lays out the tensors one after the other, as if one file had been written.
    fn of(parts: Vec<Gguf>) -> Result<Joined, Error> {
        let first = &parts[0];
        let alignment = alignment(&first.metadata)?;
        if alignment > MAX_ALIGNMENT {
            return Err(wrong(format!(
                "an alignment of {alignment} bytes; at most {MAX_ALIGNMENT} is supported in parts"
            )));
        }
        let entries =
            || parts.iter().enumerate().flat_map(|(part, gguf)| gguf.table.entries().iter().map(move |e| (part, e)));
        let bytes = first.source.beginning();
        let (pairs, metadata) = without_split_keys(bytes)?;
        // Magic and version are those of the first part.
        let mut header = bytes[..8].to_vec();
        header.extend((entries().count() as u64).to_le_bytes());
        header.extend(pairs.to_le_bytes());
        header.extend(metadata);
        let mut offset = 0;
        let mut extents = Vec::new();
        for (part, entry) in entries() {
            describe(entry, offset, &mut header);
            // The parts are mapped or in memory, and so are fewer bytes than a u64 counts.
            let end = offset + entry.bytes.len() as u64;
            extents.push(Extent { bytes: offset as usize..end as usize, part, start: entry.bytes.start });
            offset = end.next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let start = header.len();
        for extent in &mut extents {
            extent.bytes = extent.bytes.start + start..extent.bytes.end + start;
        }
        let size = start + offset as usize;
        let parts = parts.into_iter().map(|part| part.source).collect();
        Ok(Joined { header, parts, extents, size })
    }
}

/// The number and bytes of the metadata pairs of a file without those of the split.
fn without_split_keys(file: &[u8]) -> Result<(u64, Vec<u8>), Error> {
    let mut cursor = Cursor::new(file);
    let (_, pairs) = header(&mut cursor)?;
    let (mut kept, mut bytes) = (0, Vec::new());
    for _ in 0..pairs {
        let at = cursor.offset();
        let key = cursor.string("a metadata key")?;
        Value::parse(&mut cursor, key)?;
        if !key.starts_with(SPLIT_KEYS) {
            kept += 1;
            bytes.extend_from_slice(&file[at..cursor.offset()]);
        }
    }
    Ok((kept, bytes))
}

/// The entry of a tensor in the table.
fn describe(entry: &Entry, offset: u64, table: &mut Vec<u8>) {
    table.extend((entry.name.len() as u64).to_le_bytes());
    table.extend(entry.name.as_bytes());
    table.extend((entry.shape.len() as u32).to_le_bytes());
    entry.shape.iter().for_each(|dimension| table.extend(dimension.to_le_bytes()));
    table.extend(entry.type_id.to_le_bytes());
    table.extend(offset.to_le_bytes());
}

fn wrong(what: String) -> Error {
    Error::invalid("gguf", what)
}
