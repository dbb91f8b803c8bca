//! Manifests of whole models, cached on disk under path, size and modification time of their files, so that a file is hashed
//! only once. The cache is trusted as long as these match; readers of a file's parts verify them anyway.
//!
//! A file that is new here can be used before it is hashed: its [`FileStamp`] of before it was read says afterwards whether what was
//! hashed is what was used.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::gguf::Gguf;
use pangea_compute::model::Manifest;
use pangea_compute::model::manifest::MAX_MANIFEST_BYTES;

use super::stored::{bounded_read, reading};
use crate::storage::whole_file;

/// What tells whether the files of a model were changed: BLAKE3 of each file's size, and seconds and nanoseconds of its modification
/// time: `u64`, `i64`, `i64`, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp([u8; STAMP_BYTES]);

const STAMP_BYTES: usize = HASH_BYTES;

/// BLAKE3 of everything before it, at the end of an entry.
const HASH_BYTES: usize = 32;

/// A folder of manifests.
#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
}

impl Index {
    /// An index in `folder`.
    pub(super) fn new(folder: PathBuf) -> Index {
        Index { folder }
    }

    /// The manifest of a file and its digest, if the index has a valid entry.
    ///
    /// # Errors
    /// Errors of finding the file.
    pub(super) fn known(&self, path: &Path) -> Result<Option<(Digest, Manifest)>> {
        let path = absolute(path)?;
        let known = read_kept(&self.entry_of(&path), &stamp(&path)?);
        Ok(known.map(|manifest| (manifest.digest(), manifest)))
    }

    /// The manifest of a file and its digest; hashes the file on `threads` threads if the index has no valid entry. `since`: the
    /// file's stamp when it was read for something else that the manifest is to describe.
    ///
    /// # Errors
    /// Errors of opening the file; `InvalidInput` if it changed `since`, or changes while it is read.
    pub(super) fn manifest_of(
        &self,
        path: &Path,
        since: Option<&FileStamp>,
        threads: usize,
    ) -> Result<(Digest, Manifest)> {
        let path = absolute(path)?;
        let before = stamp(&path)?;
        let is_unchanged = |now: &FileStamp| match *now == before && since.is_none_or(|since| *since == before) {
            true => Ok(()),
            false => {
                let what = format!("{} changed while it was read; try again once it is whole", path.display());
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        };
        is_unchanged(&before)?;
        let entry = self.entry_of(&path);
        if let Some(manifest) = read_kept(&entry, &before) {
            return Ok((manifest.digest(), manifest));
        }
        let file = Gguf::open(&path).map_err(crate::compute_error)?;
        let manifest = Manifest::of(&file, threads).map_err(crate::compute_error)?;
        is_unchanged(&stamp(&path)?)?;
        if let Err(error) = self.keep(&entry, &before, &manifest) {
            tracing::warn!(event = "manifest_not_kept", file = %entry.display(), %error);
        }
        Ok((manifest.digest(), manifest))
    }

    /// The file with the manifest of the model at this absolute path.
    fn entry_of(&self, path: &Path) -> PathBuf {
        self.folder.join(blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex().as_str())
    }

    fn keep(&self, entry: &Path, stamp: &FileStamp, manifest: &Manifest) -> std::io::Result<()> {
        let mut bytes = stamp.0.to_vec();
        bytes.extend(manifest.to_bytes());
        bytes.extend(blake3::hash(&bytes).as_bytes());
        std::fs::create_dir_all(&self.folder)?;
        whole_file::replace(entry, &bytes)
    }
}

/// The stamp of the files of a model as they are now.
///
/// # Errors
/// Errors of finding the files.
pub(super) fn stamp_of(path: &Path) -> Result<FileStamp> {
    stamp(&absolute(path)?)
}

/// The cached entry, if it is intact and describes the file as it is now.
fn read_kept(kept: &Path, stamp: &FileStamp) -> Option<Manifest> {
    let bytes = bounded_read(kept, (STAMP_BYTES + MAX_MANIFEST_BYTES + HASH_BYTES) as u64).ok()?;
    let (content, hash) = bytes.split_last_chunk::<HASH_BYTES>()?;
    let (kept_stamp, manifest) = content.split_first_chunk::<STAMP_BYTES>()?;
    if *kept_stamp != stamp.0 || blake3::hash(content).as_bytes() != hash {
        return None;
    }
    Manifest::from_bytes(manifest).ok()
}

/// One path for one model, whatever links lead to it. Links to the parts of a split model are kept: their names say where
/// the other parts are.
fn absolute(path: &Path) -> Result<PathBuf> {
    let canonical = |path: &Path| path.canonicalize().map_err(|error| reading(path, &error));
    match (Gguf::part_paths(path).len(), path.parent(), path.file_name()) {
        (2.., Some(folder), Some(name)) => {
            let here = Path::new(".");
            Ok(canonical(if folder.as_os_str().is_empty() { here } else { folder })?.join(name))
        }
        _ => canonical(path),
    }
}

fn stamp(path: &Path) -> Result<FileStamp> {
    let mut stamp = blake3::Hasher::new();
    for path in Gguf::part_paths(path) {
        let facts = std::fs::metadata(&path).map_err(|error| reading(&path, &error))?;
        stamp.update(&facts.len().to_le_bytes()).update(&facts.mtime().to_le_bytes());
        stamp.update(&facts.mtime_nsec().to_le_bytes());
    }
    Ok(FileStamp(*stamp.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_a_model_are_one_model_and_links_to_parts_keep_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("blobs")).unwrap();
        let link = |name: &str| {
            let blob = folder.join("blobs").join(name.len().to_string());
            std::fs::write(&blob, name).unwrap();
            std::os::unix::fs::symlink(&blob, folder.join(name)).unwrap();
            (folder.join(name), blob)
        };
        let (whole, blob) = link("whole.gguf");
        assert_eq!(absolute(&whole).unwrap(), blob);
        let (first, _) = link("m-00001-of-00002.gguf");
        assert_eq!(absolute(&first).unwrap(), first);
        assert_eq!(absolute(&folder.join("blobs/../m-00001-of-00002.gguf")).unwrap(), first);
        assert_eq!(stamp(&first).unwrap_err().kind(), ErrorKind::NotFound, "the other part is missing");
        let second = folder.join("m-00002-of-00002.gguf");
        std::fs::write(&second, "a").unwrap();
        let before = stamp(&first).unwrap();
        std::fs::write(&second, "ab").unwrap();
        assert_ne!(stamp(&first).unwrap(), before, "any part counts");
    }
    /// A model without tensors.
    fn write_model(path: &Path, bytes: usize) {
        let mut model = [&b"GGUF"[..], &3u32.to_le_bytes(), &[0; 16]].concat();
        model.resize(bytes, 0);
        std::fs::write(path, model).unwrap();
    }

    #[test]
    fn a_file_that_changed_after_it_was_used_does_not_get_a_manifest_for_that_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let index = Index::new(folder.path().join("manifests"));
        write_model(&path, 1000);
        assert!(index.known(&path).unwrap().is_none(), "nobody has hashed it");
        let used = stamp_of(&path).unwrap();
        let (first, _) = index.manifest_of(&path, Some(&used), 1).unwrap();
        assert_eq!(index.known(&path).unwrap().map(|(digest, _)| digest), Some(first));
        write_model(&path, 1001);
        assert!(index.known(&path).unwrap().is_none(), "it is another file now");
        assert_eq!(index.manifest_of(&path, Some(&used), 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        // Not even once the new content is in the index.
        assert_ne!(index.manifest_of(&path, None, 1).unwrap().0, first);
        assert_eq!(index.manifest_of(&path, Some(&used), 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
