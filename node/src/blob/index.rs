//! Manifests of whole model files, cached on disk under path, size and modification time, so that a file is hashed only
//! once. The cache is trusted as long as these match; readers of a file's parts verify them anyway.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::gguf::Gguf;
use pangea_compute::model::Manifest;
use pangea_compute::model::manifest::MAX_MANIFEST_BYTES;

use super::stored::{bounded_read, reading};
use crate::storage::whole_file;

/// Size, and seconds and nanoseconds of the modification time: `u64`, `i64`, `i64`, little-endian.
const STAMP_BYTES: usize = 24;

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
        let path = path.canonicalize().map_err(|error| reading(path, &error))?;
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

fn stamp(path: &Path) -> Result<[u8; STAMP_BYTES]> {
    let facts: Metadata = std::fs::metadata(path).map_err(|error| reading(path, &error))?;
    let mut stamp = [0; STAMP_BYTES];
    stamp[..8].copy_from_slice(&facts.len().to_le_bytes());
    stamp[8..16].copy_from_slice(&facts.mtime().to_le_bytes());
    stamp[16..].copy_from_slice(&facts.mtime_nsec().to_le_bytes());
    Ok(stamp)
}
