//! The manifest of a model file: its header and tensors as pieces, each with the hashes of its parts, so that a node
//! can fetch the pieces it needs from nodes that it does not trust. The digest of a manifest names the model. Pure: an
//! open file is read; nothing is fetched, written or loaded.

use crate::gguf::Gguf;
use crate::model::part_bytes::Purpose;
use crate::{Digest, Error};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use pangea_units::limits::PART_BYTES;

/// Bytes of a manifest, at most: enough for a model of a terabyte with thousands of tensors.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;

/// Bytes of a file that a manifest describes, at most: above any known model, and far from overflow.
const MAX_FILE_BYTES: u64 = 1 << 44;

/// Bytes of a tensor's name, at most; ggml's own limit is 64.
const MAX_NAME_BYTES: usize = 256;

/// The first bytes of every manifest; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"pangeaM\x01";

const HASH_BYTES: usize = 32;

/// Bytes of a piece, at least: length of the name, offset and length of the piece, one hash.
const LEAST_PIECE_BYTES: usize = 2 + 8 + 8 + HASH_BYTES;

/// One piece of a model file: the header, or a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    name: String,
    offset: u64,
    len: u64,
    parts: Vec<Digest>,
}

impl Piece {
    /// The tensor's name; empty for the header.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Offset in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes, never zero.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The BLAKE3 hashes of the parts, in order; all parts but the last have [`PART_BYTES`].
    pub fn parts(&self) -> &[Digest] {
        &self.parts
    }

    /// The bytes of part `part` in the file; `None` where there is no such part.
    pub fn part_range(&self, part: u32) -> Option<Range<u64>> {
        self.parts.get(part as usize)?;
        let start = u64::from(part) * PART_BYTES;
        Some(self.offset + start..self.offset + self.len.min(start + PART_BYTES))
    }

    /// Whether `bytes` match the hash of part `part`.
    pub fn is_part(&self, part: u32, bytes: &[u8]) -> bool {
        self.parts.get(part as usize).is_some_and(|digest| blake3::hash(bytes).as_bytes() == digest.as_bytes())
    }
}

/// The pieces of a model that a node needs. Without layers, embedding and head: the header, which holds the tokenizer,
/// and the few tensors that belong to no layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The layers, from 0, end exclusive.
    pub layers: Range<u32>,
    /// Whether the embedding is needed: token ids come in.
    pub embedding: bool,
    /// Whether the head is needed: logits go out.
    pub head: bool,
}

impl Wanted {
    /// The header: configuration, tokenizer, chat template.
    pub fn header() -> Wanted {
        Wanted::default()
    }

    /// The pieces that an engine reads to load `part`.
    pub fn of_part(part: &super::ModelPart) -> Wanted {
        let layer = |layer: usize| u32::try_from(layer).unwrap_or(u32::MAX);
        Wanted { layers: layer(part.layers.start)..layer(part.layers.end), embedding: part.embedding, head: part.head }
    }
}

/// The pieces of a model file. Every value is consistent: the header comes first, pieces ascend, do not overlap and lie
/// in the file. Bytes between pieces (padding) belong to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    size_bytes: u64,
    pieces: Vec<Piece>,
}

impl Manifest {
    /// Hashes a whole file on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Dtype`] for a tensor of an unsupported type; [`Error::Invalid`] for a file or names beyond a manifest's
    /// limits.
    pub fn of(file: &Gguf, threads: usize) -> Result<Manifest, Error> {
        let mut places = Vec::new();
        for tensor in file.tensors() {
            let tensor = tensor?;
            places.push((file.range_of(&tensor), tensor.name.to_owned()));
        }
        places.sort_unstable_by_key(|(range, _)| range.start);
        let header = places.first().map_or(file.size_bytes(), |(range, _)| range.start);
        let places = std::iter::once((0..header, String::new())).chain(places);
        let mut pieces: Vec<Piece> = places
            .map(|(range, name)| {
                let len = range.end - range.start;
                let parts = vec![Digest::from_bytes([0; HASH_BYTES]); len.div_ceil(PART_BYTES) as usize];
                Piece { name, offset: range.start, len, parts }
            })
            .collect();
        hash(file, &mut pieces, threads);
        file.release_all();
        let manifest = Manifest { size_bytes: file.size_bytes(), pieces };
        manifest.check().map_err(|what| Error::invalid("manifest", what))?;
        match manifest.to_bytes().len() {
            len if len > MAX_MANIFEST_BYTES => Err(Error::invalid(
                "manifest",
                format!("{len} bytes for one model; at most {MAX_MANIFEST_BYTES} are allowed"),
            )),
            _ => Ok(manifest),
        }
    }

    /// Size of the whole file in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The pieces in the file's order; the first is the header.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The model's identity among nodes: BLAKE3 of [`Manifest::to_bytes`].
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(*blake3::hash(&self.to_bytes()).as_bytes())
    }

    /// The canonical bytes: `pangeaM` and the version 1; file size (u64), number of pieces (u32); per piece length of
    /// the name (u16), name, offset (u64), length (u64), the hashes of its parts. Little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.size_bytes.to_le_bytes());
        out.extend((self.pieces.len() as u32).to_le_bytes());
        for piece in &self.pieces {
            out.extend((piece.name.len() as u16).to_le_bytes());
            out.extend(piece.name.as_bytes());
            out.extend(piece.offset.to_le_bytes());
            out.extend(piece.len.to_le_bytes());
            piece.parts.iter().for_each(|digest| out.extend(digest.as_bytes()));
        }
        out
    }

    /// Parses untrusted bytes of the form [`Manifest::to_bytes`]. Nothing is allocated for a count before the bytes are
    /// known to be there.
    ///
    /// # Errors
    /// [`Error::Parse`] for anything but the canonical bytes of a consistent manifest.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest, Error> {
        let mut reader = Reader { bytes, at: 0 };
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(reader.bad(format!("{} bytes; at most {MAX_MANIFEST_BYTES} are allowed", bytes.len())));
        }
        if reader.array::<8>()? != MAGIC {
            return Err(Reader { bytes, at: 0 }.bad("not a manifest, or a newer version of the format"));
        }
        let size_bytes = reader.u64()?;
        let count = u32::from_le_bytes(reader.array()?) as usize;
        if count > reader.left() / LEAST_PIECE_BYTES {
            return Err(reader.bad(format!("{count} pieces do not fit in the remaining bytes")));
        }
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            pieces.push(reader.piece()?);
        }
        if reader.left() != 0 {
            return Err(reader.bad(format!("{} bytes after the last piece", reader.left())));
        }
        let manifest = Manifest { size_bytes, pieces };
        manifest.check().map_err(|what| reader.bad(what))?;
        Ok(manifest)
    }

    /// The conditions on every manifest.
    fn check(&self) -> Result<(), String> {
        if self.size_bytes > MAX_FILE_BYTES {
            return Err(format!("a file of {} bytes; at most {MAX_FILE_BYTES} are allowed", self.size_bytes));
        }
        if !self.pieces.first().is_some_and(|header| header.name.is_empty() && header.offset == 0) {
            return Err("the first piece is not the file's header".to_owned());
        }
        let mut end = 0;
        let mut names = std::collections::HashSet::new();
        for piece in &self.pieces {
            let name = &piece.name;
            if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                return Err(format!("a name of {} bytes, or with control characters", name.len()));
            }
            if !names.insert(name) {
                return Err(format!("a second piece named {name:?}"));
            }
            if piece.offset < end || piece.len == 0 {
                return Err(format!("the piece {name:?} is empty or overlaps the one before it"));
            }
            end = match piece.offset.checked_add(piece.len) {
                Some(end) if end <= self.size_bytes => end,
                _ => return Err(format!("the piece {name:?} ends after the end of the file")),
            };
        }
        Ok(())
    }

    /// Whether the file's own table of tensors agrees with the manifest. A header that matches its hash can still
    /// belong to another file than the tensors beside it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the difference; [`Error::Dtype`] for unsupported types.
    pub fn check_file(&self, file: &Gguf) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::invalid("manifest", what));
        if file.size_bytes() != self.size_bytes {
            return wrong(format!("the file has {} bytes, not {}", file.size_bytes(), self.size_bytes));
        }
        let pieces: BTreeMap<&str, &Piece> = self.pieces.iter().map(|piece| (piece.name(), piece)).collect();
        let mut tensors = 0;
        for tensor in file.tensors() {
            let tensor = tensor?;
            let range = file.range_of(&tensor);
            tensors += 1;
            match pieces.get(tensor.name) {
                Some(piece) if piece.offset == range.start && piece.offset + piece.len == range.end => {}
                _ => return wrong(format!("the tensor {:?} is not where the manifest says", tensor.name)),
            }
        }
        match tensors + 1 == self.pieces.len() {
            true => Ok(()),
            false => wrong(format!("the file has {tensors} tensors, the manifest {}", self.pieces.len() - 1)),
        }
    }

    /// The indices of the pieces in `wanted`, ascending; always with the header and tensors of no layer.
    pub fn select(&self, wanted: &Wanted) -> Vec<usize> {
        let tied = self.is_tied();
        let selected = |piece: &Piece| match Purpose::of(&piece.name) {
            Purpose::Layer(layer) => wanted.layers.contains(&layer),
            Purpose::Embedding => wanted.embedding || (wanted.head && tied),
            Purpose::Head => wanted.head,
            Purpose::Everywhere => true,
        };
        (0..self.pieces.len()).filter(|&index| selected(&self.pieces[index])).collect()
    }

    /// The whole model.
    pub fn whole(&self) -> Wanted {
        Wanted { layers: 0..self.layers(), embedding: true, head: true }
    }

    /// The number of layers.
    pub fn layers(&self) -> u32 {
        let layer = |piece: &Piece| match Purpose::of(&piece.name) {
            Purpose::Layer(layer) => Some(layer.saturating_add(1)),
            _ => None,
        };
        self.pieces.iter().filter_map(layer).max().unwrap_or(0)
    }

    /// Whether the head is the embedding.
    fn is_tied(&self) -> bool {
        !self.pieces.iter().any(|piece| piece.name == "output.weight")
    }
}

/// Computes the hashes of all parts.
fn hash(file: &Gguf, pieces: &mut [Piece], threads: usize) {
    let parts: Vec<Mutex<(&[u8], &mut Digest)>> = pieces
        .iter_mut()
        .flat_map(|piece| {
            // Pieces are the header and tensors of this file.
            let piece_bytes = file.slice(piece.offset..piece.offset + piece.len).unwrap_or_default();
            piece_bytes.chunks(PART_BYTES as usize).zip(&mut piece.parts).map(Mutex::new)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            *part.1 = Digest::from_bytes(*blake3::hash(part.0).as_bytes());
            file.release(part.0);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
}

/// A manifest being parsed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::Parse { format: "manifest", what: what.into(), place: format!("at byte {}", self.at) }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        if len > self.left() {
            return Err(self.bad(format!("the manifest is {} bytes too short", len - self.left())));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn piece(&mut self) -> Result<Piece, Error> {
        let len = u16::from_le_bytes(self.array()?) as usize;
        let name = std::str::from_utf8(self.take(len)?).map_err(|_| self.bad("a name is not UTF-8"))?.to_owned();
        let (offset, len) = (self.u64()?, self.u64()?);
        let parts = len.div_ceil(PART_BYTES);
        if parts > (self.left() / HASH_BYTES) as u64 {
            return Err(self.bad(format!("{parts} hashes of the piece {name:?} cannot be in what is left")));
        }
        let hashes = self.take(parts as usize * HASH_BYTES)?;
        let parts = hashes.as_chunks::<HASH_BYTES>().0.iter().map(|hash| Digest::from_bytes(*hash)).collect();
        Ok(Piece { name, offset, len, parts })
    }
}
