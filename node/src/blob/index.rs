//! Manifests of whole models, cached on disk under path, size and modification time of their files, so that a file is hashed
//! only once. The cache is trusted as long as these match; readers of a file's parts verify them anyway.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::gguf::Gguf;
use pangea_compute::model::Manifest;
use pangea_compute::model::manifest::MAX_MANIFEST_BYTES;

use super::stored::{bounded_read, reading};
use crate::storage::whole_file;

/// BLAKE3 of each file's size, and seconds and nanoseconds of its modification time: `u64`, `i64`, `i64`, little-endian.
const STAMP_BYTES: usize = HASH_BYTES;

/// BLAKE3 of everything before it, at the end of an entry.
const HASH_BYTES: usize = 32;

/// A folder of manifests.
#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
    threads: usize,
}

impl Index {
    /// An index in `folder` that hashes files on `threads` threads.
    pub(super) fn new(folder: PathBuf, threads: usize) -> Index {
        Index { folder, threads }
    }

    /// The manifest of a file and its digest; hashes the file if the index has no valid entry.
    ///
    /// # Errors
    /// Errors of opening the file; `InvalidInput` if it changes while it is read.
    pub(super) fn manifest_of(&self, path: &Path) -> Result<(Digest, Manifest)> {
        let path = absolute(path)?;
        let before = stamp(&path)?;
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        let kept = self.folder.join(name.as_str());
        if let Some(manifest) = read_kept(&kept, &before) {
            return Ok((manifest.digest(), manifest));
        }
        let file = Gguf::open(&path).map_err(crate::compute_error)?;
        let manifest = Manifest::of(&file, self.threads).map_err(crate::compute_error)?;
        if stamp(&path)? != before {
            let what = format!("{} changed while it was read; try again once it is whole", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        if let Err(error) = self.keep(&kept, &before, &manifest) {
            tracing::warn!(event = "manifest_not_kept", file = %kept.display(), %error);
        }
        Ok((manifest.digest(), manifest))
    }

    fn keep(&self, kept: &Path, stamp: &[u8; STAMP_BYTES], manifest: &Manifest) -> std::io::Result<()> {
        let mut bytes = stamp.to_vec();
        bytes.extend(manifest.to_bytes());
        bytes.extend(blake3::hash(&bytes).as_bytes());
        std::fs::create_dir_all(&self.folder)?;
        whole_file::replace(kept, &bytes)
    }
}

/// The cached entry, if it is intact and describes the file as it is now.
fn read_kept(kept: &Path, stamp: &[u8; STAMP_BYTES]) -> Option<Manifest> {
    let bytes = bounded_read(kept, (STAMP_BYTES + MAX_MANIFEST_BYTES + HASH_BYTES) as u64).ok()?;
    let (content, hash) = bytes.split_last_chunk::<HASH_BYTES>()?;
    let (kept_stamp, manifest) = content.split_first_chunk::<STAMP_BYTES>()?;
    if kept_stamp != stamp || blake3::hash(content).as_bytes() != hash {
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

fn stamp(path: &Path) -> Result<[u8; STAMP_BYTES]> {
    let mut stamp = blake3::Hasher::new();
    for path in Gguf::part_paths(path) {
        let facts = std::fs::metadata(&path).map_err(|error| reading(&path, &error))?;
        stamp.update(&facts.len().to_le_bytes()).update(&facts.mtime().to_le_bytes());
        stamp.update(&facts.mtime_nsec().to_le_bytes());
    }
    Ok(*stamp.finalize().as_bytes())
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
}
