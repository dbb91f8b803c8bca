//! The table of tensors: names, shapes, types, and the place of each tensor's bytes in the file; all bytes lie inside
//! the file and none belong to two tensors.

use super::cursor::{Cursor, bad};
use super::ggml_type::{block_of, type_name};
use super::metadata::Metadata;
use crate::Error;
use std::collections::HashMap;
use std::ops::Range;

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;
/// Bytes of an entry, at least: a name's length, number of dimensions, one dimension, type and offset.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 8 + 4 + 8;
/// Alignment where `general.alignment` is missing.
const DEFAULT_ALIGNMENT: u64 = 32;

pub(super) struct Entry {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) type_id: u32,
    /// The bytes in the file; empty where the size of a block is unknown.
    pub(super) bytes: Range<usize>,
}

pub(super) struct TensorTable {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl TensorTable {
    pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64, metadata: &Metadata) -> Result<TensorTable, Error> {
        let alignment = alignment(metadata)?;
        let count = cursor.count(count, LEAST_ENTRY_BYTES, "tensors")?;
        let mut table = TensorTable { entries: Vec::with_capacity(count), by_name: HashMap::with_capacity(count) };
        // Where each entry is, and its offset into the data: tensors are placed once the table's end is known.
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let at = cursor.offset();
            let (entry, offset) = entry(cursor)?;
            if table.by_name.insert(entry.name.clone(), table.entries.len()).is_some() {
                return Err(bad(at, format!("a second tensor named {:?}: the file is corrupt", entry.name)));
            }
            table.entries.push(entry);
            found.push((at, offset));
        }
        let start = (cursor.offset() as u64).checked_next_multiple_of(alignment);
        for (entry, (at, offset)) in table.entries.iter_mut().zip(found) {
            entry.bytes = place(entry, at, start, offset, alignment, cursor.size())?;
        }
        table.refuse_overlaps()?;
        Ok(table)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&index| &self.entries[index])
    }

    /// Overlapping tensors would let a small file claim any amount of memory.
    fn refuse_overlaps(&self) -> Result<(), Error> {
        let mut sorted: Vec<&Entry> = self.entries.iter().filter(|entry| !entry.bytes.is_empty()).collect();
        sorted.sort_unstable_by_key(|entry| entry.bytes.start);
        for pair in sorted.windows(2) {
            if pair[1].bytes.start < pair[0].bytes.end {
                return Err(bad(
                    pair[1].bytes.start,
                    format!("the tensors {:?} and {:?} overlap: the file is corrupt", pair[0].name, pair[1].name),
                ));
            }
        }
        Ok(())
    }
}

/// The alignment of tensors, a power of two.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let alignment = metadata.get_u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > u64::from(u32::MAX) {
        return Err(Error::Parse {
            format: "gguf",
            what: format!("the alignment {alignment} is not a power of two below 2^32: the file is corrupt"),
            place: "metadata general.alignment".to_owned(),
        });
    }
    Ok(alignment)
}

/// One entry, and the offset of its bytes from the start of the data.
fn entry(cursor: &mut Cursor<'_>) -> Result<(Entry, u64), Error> {
    let name = cursor.string("a tensor's name")?.to_owned();
    let at = cursor.offset();
    let dimensions = cursor.u32("a tensor's number of dimensions")?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(bad(at, format!("tensor {name:?} has {dimensions} dimensions, not 1 to 4: the file is corrupt")));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let at = cursor.offset();
        let dimension = cursor.u64("a tensor's dimension")?;
        if dimension == 0 {
            return Err(bad(at, format!("tensor {name:?} has a dimension of zero: the file is corrupt")));
        }
        shape.push(dimension);
    }
    let type_id = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;
    Ok((Entry { name, shape, type_id, bytes: 0..0 }, offset))
}

/// The place of a tensor's bytes in the file.
fn place(
    entry: &Entry,
    at: usize,
    start: Option<u64>,
    offset: u64,
    alignment: u64,
    size: usize,
) -> Result<Range<usize>, Error> {
    let name = &entry.name;
    if !offset.is_multiple_of(alignment) {
        return Err(bad(
            at,
            format!(
                "tensor {name:?} is at offset {offset}, not a multiple of the alignment {alignment}: the file is corrupt"
            ),
        ));
    }
    let begin = start.and_then(|start| start.checked_add(offset));
    let len = match block_of(entry.type_id) {
        None => Some(0),
        Some((block_len, block_bytes)) => {
            if !entry.shape[0].is_multiple_of(block_len) {
                return Err(bad(
                    at,
                    format!(
                        "tensor {name:?} has rows of {} elements, not a whole number of {} blocks of {block_len}: the file is corrupt",
                        entry.shape[0],
                        type_name(entry.type_id)
                    ),
                ));
            }
            // The number of elements must not overflow either.
            let elements = entry.shape.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension));
            elements.and_then(|elements| (elements / block_len).checked_mul(block_bytes))
        }
    };
    let end = begin.zip(len).and_then(|(begin, len)| begin.checked_add(len)).filter(|&end| end <= size as u64);
    let Some(((begin, len), end)) = begin.zip(len).zip(end) else {
        return Err(bad(
            at,
            format!(
                "tensor {name:?} of {:?} {} at data offset {offset} reaches past the file's {size} bytes: \
                 the file is truncated or corrupt; fetch it again",
                entry.shape,
                type_name(entry.type_id)
            ),
        ));
    };
    Ok(if len == 0 { 0..0 } else { begin as usize..end as usize })
}
