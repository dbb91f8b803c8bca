//! One model on this node's disk, whole or partial, and which of its parts are present. A partial copy is a sparse
//! file of the full size with its parts at their offsets, so that any reader of model files can read it. The user's own models
//! are read where they are, in one file or several.
//!
//! A part counts only after its hash was verified: it is written, then recorded. Parts recorded by an earlier run are
//! verified again before use.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::gguf::{Gguf, Located};
use pangea_compute::model::manifest::MAX_MANIFEST_BYTES;
use pangea_compute::model::{Manifest, Wanted};

use super::parts::{PartId, PartSet, part_counts, parts_of};
use crate::models::disk;
use crate::storage::whole_file;

const MODEL: &str = "model.gguf";
const MANIFEST: &str = "manifest";
const RECORD: &str = "have";

/// Bytes of a record's line: piece and part, `u32` little-endian each.
const RECORD_BYTES: usize = 8;

/// One model file.
#[derive(Debug)]
pub(super) struct Stored {
    digest: Digest,
    manifest: Arc<Manifest>,
    path: PathBuf,
    bytes: Bytes,
    present: Mutex<Present>,
    /// Whether this run has used the file; it is then not removed.
    used: AtomicBool,
    /// Name of the model in requests, once known.
    name: OnceLock<Arc<str>>,
}

/// Where the bytes of the model are.
#[derive(Debug)]
enum Bytes {
    /// A copy of this node's, whole or partial.
    Copy {
        file: File,
        /// Records the parts that are present.
        record: File,
    },
    /// All files of a model of the user's: one, or the parts that it is split into. Of parts, `joined` says where a range is; it is
    /// read from the file, because reading what is mapped kills the process where somebody truncates the file.
    Users { joined: Option<Gguf>, files: Vec<UsersFile> },
}

#[derive(Debug)]
struct UsersFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Bytes {
    /// Reads a range of the model in one piece, as its manifest has it.
    fn read_exact_at(&self, to: &mut [u8], start: u64) -> std::io::Result<()> {
        let (joined, files) = match self {
            Bytes::Copy { file, .. } => return file.read_exact_at(to, start),
            Bytes::Users { joined: None, files } => return files[0].file.read_exact_at(to, start),
            Bytes::Users { joined: Some(joined), files } => (joined, files),
        };
        match joined.located(start..start + to.len() as u64) {
            Some(Located::Bytes(bytes)) => to.copy_from_slice(bytes),
            Some(Located::File { part, start }) => files[part].file.read_exact_at(to, start)?,
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Present {
    /// Parts that are present.
    parts: PartSet,
    /// Present parts whose hash this run has verified.
    checked: PartSet,
}

impl Stored {
    /// A whole model that was just hashed, in one file or in parts of which `path` is the first.
    pub(super) fn whole(path: &Path, digest: Digest, manifest: Arc<Manifest>) -> Result<Stored> {
        let open = |path: PathBuf| {
            let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (len, file) = opened.map_err(|error| reading(&path, &error))?;
            Ok(UsersFile { path, file, len })
        };
        let files = Gguf::part_paths(path).into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let joined = (files.len() > 1).then(|| Gguf::open(path)).transpose().map_err(crate::compute_error)?;
        let full = PartSet::full(part_counts(&manifest));
        let present = Mutex::new(Present { parts: full.clone(), checked: full });
        let used = AtomicBool::new(true);
        let (path, name) = (path.to_owned(), OnceLock::new());
        Ok(Stored { digest, manifest, path, bytes: Bytes::Users { joined, files }, present, used, name })
    }

    /// Creates an empty copy in `folder`, replacing what was there.
    pub(super) fn create(folder: &Path, digest: Digest, manifest: Arc<Manifest>) -> Result<Stored> {
        let create = || -> std::io::Result<()> {
            if folder.exists() {
                std::fs::remove_dir_all(folder)?;
            }
            std::fs::create_dir_all(folder)?;
            File::create(folder.join(MODEL))?.set_len(manifest.size_bytes())?;
            File::create(folder.join(RECORD))?;
            // The manifest is written last: a folder without one is no copy.
            whole_file::replace(&folder.join(MANIFEST), &manifest.to_bytes())
        };
        create().map_err(|error| disk::writing(folder, &error))?;
        Stored::open(folder, digest)
    }

    /// Opens the copy in `folder` with the parts that its record lists.
    ///
    /// # Errors
    /// `NotFound` if there is none, `InvalidInput` if it belongs to another model.
    pub(super) fn open(folder: &Path, digest: Digest) -> Result<Stored> {
        let path = folder.join(MODEL);
        let manifest = bounded_read(&folder.join(MANIFEST), MAX_MANIFEST_BYTES as u64)?;
        let manifest = Manifest::from_bytes(&manifest).map_err(crate::compute_error)?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| reading(&path, &error))?;
        let len = file.metadata().map_err(|error| reading(&path, &error))?.len();
        if manifest.digest() != digest || len != manifest.size_bytes() {
            let what = format!("{} is not a copy of model {digest}", folder.display());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let mut parts = PartSet::empty(part_counts(&manifest));
        let record = folder.join(RECORD);
        // One line per part, and some twice after a crash: a longer file is no record.
        let lines = bounded_read(&record, MAX_MANIFEST_BYTES as u64)?;
        for line in lines.as_chunks::<RECORD_BYTES>().0 {
            let [a, b, c, d, e, f, g, h] = *line;
            parts.insert(PartId { piece: u32::from_le_bytes([a, b, c, d]), part: u32::from_le_bytes([e, f, g, h]) });
        }
        let record = open_record(&record, lines.len())?;
        let checked = PartSet::empty(part_counts(&manifest));
        Ok(Stored {
            digest,
            manifest: Arc::new(manifest),
            path,
            bytes: Bytes::Copy { file, record },
            present: Mutex::new(Present { parts, checked }),
            used: AtomicBool::new(false),
            name: OnceLock::new(),
        })
    }

    /// Digest of the model.
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    /// Tensors and layers of the file.
    pub(super) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Sets the name of the model in requests; the first name is kept.
    pub(super) fn call(&self, name: Arc<str>) {
        self.name.get_or_init(|| name);
    }

    /// Name of the model in requests, if known.
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.name.get()
    }

    /// Path of the file, or of the first part.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The parts that are present.
    pub(super) fn parts(&self) -> PartSet {
        self.present().parts.clone()
    }

    /// Whether the file belongs to the user and is not a copy of this node's.
    pub(super) fn is_users(&self) -> bool {
        self.record().is_none()
    }

    /// Whether the file, or each part of it, still exists with the same size.
    pub(super) fn is_there(&self) -> bool {
        let has = |path: &Path, len: u64| std::fs::metadata(path).is_ok_and(|facts| facts.len() == len);
        match &self.bytes {
            Bytes::Copy { .. } => has(&self.path, self.manifest.size_bytes()),
            Bytes::Users { files, .. } => files.iter().all(|file| has(&file.path, file.len)),
        }
    }

    /// The record of a copy.
    fn record(&self) -> Option<&File> {
        match &self.bytes {
            Bytes::Copy { record, .. } => Some(record),
            Bytes::Users { .. } => None,
        }
    }

    /// Marks the copy as used by this run. The record's modification time holds the time of the last use.
    pub(super) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
        if let Some(record) = self.record() {
            // An error only affects the order in which copies are removed.
            let _ = record.set_modified(SystemTime::now());
        }
    }

    /// Time of the last use; `None` if this run uses the file or it is not a copy.
    pub(super) fn idle_since(&self) -> Option<SystemTime> {
        let record = self.record().filter(|_| !self.used.load(Ordering::Relaxed))?;
        record.metadata().and_then(|facts| facts.modified()).ok()
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a part into `to` and verifies its hash. A part that fails is no longer present.
    ///
    /// # Errors
    /// `NotFound` if the part is not present.
    pub(super) fn read(&self, id: PartId, to: &mut Vec<u8>) -> Result<()> {
        let missing = |why: &str| {
            let what = format!("part {} of piece {} of model {} {why}", id.part, id.piece, self.digest);
            Error::new(ErrorKind::NotFound, what)
        };
        let piece = self.manifest.pieces().get(id.piece as usize);
        let Some((piece, range)) = piece.and_then(|piece| Some((piece, piece.part_range(id.part)?))) else {
            return Err(missing("is none"));
        };
        if !self.present().parts.contains(id) {
            return Err(missing("is not on this node"));
        }
        to.resize((range.end - range.start) as usize, 0);
        let read = self.bytes.read_exact_at(to, range.start);
        if read.is_ok() && piece.is_part(id.part, to) {
            self.present().checked.insert(id);
            return Ok(());
        }
        let mut present = self.present();
        present.parts.remove(id);
        present.checked.remove(id);
        tracing::warn!(
            event = "part_damaged",
            model = %self.digest,
            file = %self.path.display(),
            piece = piece.name(),
            "{} was changed or is damaged; the affected part is fetched again",
            self.path.display()
        );
        Err(missing("is no longer on this node: the file changed"))
    }

    /// Verifies a part's hash and writes it to a copy.
    ///
    /// # Errors
    /// `VerificationFailed` if the hash differs, `Overloaded` if the disk is full.
    pub(super) fn write(&self, id: PartId, bytes: &[u8]) -> Result<()> {
        let piece = self.manifest.pieces().get(id.piece as usize);
        let range = piece.and_then(|piece| piece.part_range(id.part));
        let (Some(piece), Some(range), Bytes::Copy { file, record }) = (piece, range, &self.bytes) else {
            return Err(Error::new(ErrorKind::InvalidInput, format!("no part {} of piece {}", id.part, id.piece)));
        };
        if !piece.is_part(id.part, bytes) {
            let name = if piece.name().is_empty() { "the header" } else { piece.name() };
            let what = format!("part {} of {name} of model {} does not match its hash", id.part, self.digest);
            return Err(Error::new(ErrorKind::VerificationFailed, what));
        }
        if self.present().checked.contains(id) {
            return Ok(());
        }
        file.write_all_at(bytes, range.start).map_err(|error| disk::writing(&self.path, &error))?;
        let mut line = [0; RECORD_BYTES];
        line[..4].copy_from_slice(&id.piece.to_le_bytes());
        line[4..].copy_from_slice(&id.part.to_le_bytes());
        // One write at the end of the file, so that lines of several threads do not mix.
        (&mut &*record).write_all(&line).map_err(|error| disk::writing(&self.path, &error))?;
        let mut present = self.present();
        present.parts.insert(id);
        present.checked.insert(id);
        Ok(())
    }

    /// Verifies the `wanted` parts that an earlier run recorded, drops those that fail, and returns the missing parts.
    pub(super) fn check(&self, wanted: &Wanted) -> Vec<PartId> {
        let mut buffer = Vec::new();
        parts_of(&self.manifest, wanted)
            .filter(|id| {
                let (recorded, checked) = {
                    let present = self.present();
                    (present.parts.contains(*id), present.checked.contains(*id))
                };
                !(checked || recorded && self.read(*id, &mut buffer).is_ok())
            })
            .collect()
    }
}

/// Opens the record for appending; a line that a crash cut off is removed.
fn open_record(path: &Path, len: usize) -> Result<File> {
    let open = || -> std::io::Result<File> {
        let whole = len / RECORD_BYTES * RECORD_BYTES;
        if whole < len {
            OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
        }
        OpenOptions::new().append(true).open(path)
    };
    open().map_err(|error| disk::writing(path, &error))
}

/// Reads a whole file of at most `max_bytes` bytes.
pub(super) fn bounded_read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| reading(path, &error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is larger than such a file can be", path.display()),
        ));
    }
    Ok(bytes)
}

/// The error of reading `path`.
pub(super) fn reading(path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one tensor of zeros in two parts, and its manifest.
    fn file() -> (Vec<u8>, Arc<Manifest>) {
        let elements = (5u64 << 20) / 4;
        let table = [&4u64.to_le_bytes()[..], b"lone", &1u32.to_le_bytes(), &elements.to_le_bytes(), &[0; 12]].concat();
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &0u64.to_le_bytes(), &table].concat();
        bytes.resize(bytes.len().next_multiple_of(32) + (5 << 20), 0);
        let manifest = Manifest::of(&Gguf::from_bytes(bytes.clone()).unwrap(), 1).unwrap();
        (bytes, Arc::new(manifest))
    }

    fn part<'b>(bytes: &'b [u8], manifest: &Manifest, id: PartId) -> &'b [u8] {
        let range = manifest.pieces()[id.piece as usize].part_range(id.part).unwrap();
        &bytes[range.start as usize..range.end as usize]
    }

    const HEADER: PartId = PartId { piece: 0, part: 0 };
    const LAST: PartId = PartId { piece: 1, part: 1 };

    #[test]
    fn only_parts_that_match_their_hash_are_stored_and_they_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, manifest) = file();
        let model = manifest.digest();
        let copy = Stored::create(folder.path(), model, Arc::clone(&manifest)).unwrap();
        let mut wrong = part(&bytes, &manifest, LAST).to_vec();
        wrong[1] = 1;
        assert_eq!(copy.write(LAST, &wrong).unwrap_err().kind(), ErrorKind::VerificationFailed);
        assert!(!copy.parts().contains(LAST));
        for id in [HEADER, LAST] {
            copy.write(id, part(&bytes, &manifest, id)).unwrap();
        }
        drop(copy);
        let copy = Stored::open(folder.path(), model).unwrap();
        assert_eq!(copy.check(&manifest.whole()), [PartId { piece: 1, part: 0 }]);
        assert_eq!(std::fs::metadata(copy.path()).unwrap().len(), bytes.len() as u64);
    }

    #[test]
    fn recorded_parts_are_verified_before_use() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, manifest) = file();
        let model = manifest.digest();
        let copy = Stored::create(folder.path(), model, Arc::clone(&manifest)).unwrap();
        copy.write(HEADER, part(&bytes, &manifest, HEADER)).unwrap();
        copy.write(LAST, part(&bytes, &manifest, LAST)).unwrap();
        drop(copy);
        // One part damaged on disk, one line for a part that does not exist, and one line that a crash cut off.
        let at = manifest.pieces()[1].part_range(1).unwrap().start;
        OpenOptions::new().write(true).open(folder.path().join(MODEL)).unwrap().write_all_at(&[9], at).unwrap();
        let mut record = OpenOptions::new().append(true).open(folder.path().join(RECORD)).unwrap();
        record.write_all(&[0xff; RECORD_BYTES + 3]).unwrap();
        let copy = Stored::open(folder.path(), model).unwrap();
        assert_eq!(copy.check(&manifest.whole()).len(), 2);
        // The part is valid after it is written again, and the record is well formed.
        copy.write(LAST, part(&bytes, &manifest, LAST)).unwrap();
        copy.write(PartId { piece: 1, part: 0 }, part(&bytes, &manifest, PartId { piece: 1, part: 0 })).unwrap();
        drop(copy);
        let copy = Stored::open(folder.path(), model).unwrap();
        assert!(copy.check(&manifest.whole()).is_empty() && copy.parts().is_full());
        assert_eq!(std::fs::read(copy.path()).unwrap(), bytes);
    }

    #[test]
    fn a_folder_of_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (_, manifest) = file();
        Stored::create(folder.path(), manifest.digest(), Arc::clone(&manifest)).unwrap();
        let other = Digest::from_bytes([1; 32]);
        assert_eq!(Stored::open(folder.path(), other).unwrap_err().kind(), ErrorKind::InvalidInput);
        std::fs::write(folder.path().join(MANIFEST), b"no manifest").unwrap();
        assert!(Stored::open(folder.path(), manifest.digest()).is_err());
    }
}
