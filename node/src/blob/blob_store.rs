//! The model files of this node, whole and partial, by digest: what peers may fetch and what this node itself uses.
//! This file transfers no bytes; when the disk needs room, it removes the partial copies that were unused the longest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_client::Result;
use pangea_compute::Digest;
use pangea_compute::model::Manifest;

use super::parts::set_bytes;
use super::stored::Stored;
use crate::models::disk;

/// Every model file of this node.
#[derive(Debug)]
pub(super) struct BlobStore {
    folder: PathBuf,
    stored: Mutex<HashMap<Digest, Arc<Stored>>>,
}

impl BlobStore {
    /// Opens the copies in `folder`; anything else there is ignored.
    pub(super) fn open(folder: PathBuf) -> BlobStore {
        let mut stored = HashMap::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some(digest) = entry.file_name().to_str().and_then(digest_of) else { continue };
            match Stored::open(&entry.path(), digest) {
                Ok(copy) => drop(stored.insert(digest, Arc::new(copy))),
                Err(error) => tracing::warn!(event = "copy_ignored", folder = %entry.path().display(), %error),
            }
        }
        BlobStore { folder, stored: Mutex::new(stored) }
    }

    fn stored(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Stored>>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a model, if there is one.
    pub(super) fn get(&self, model: &Digest) -> Option<Arc<Stored>> {
        self.stored().get(model).cloned()
    }

    /// Every file.
    pub(super) fn all(&self) -> Vec<Arc<Stored>> {
        self.stored().values().cloned().collect()
    }

    /// Adds a file. A whole file replaces a partial copy, which is removed unless this run has used it.
    pub(super) fn insert(&self, file: Arc<Stored>) {
        let model = file.digest();
        let is_users = file.is_users();
        let before = self.stored().insert(model, file);
        if is_users && before.is_some_and(|before| before.idle_since().is_some()) {
            self.remove_folder(&model);
        }
    }

    /// The file of a model, if it still exists on disk; a file that the user removed is dropped from the store.
    pub(super) fn current(&self, model: &Digest) -> Option<Arc<Stored>> {
        let found = self.get(model)?;
        if found.is_there() {
            return Some(found);
        }
        self.stored().remove(model);
        if !found.is_users() {
            return None;
        }
        let copy = Arc::new(Stored::open(&self.copy_folder(model), *model).ok()?);
        self.insert(Arc::clone(&copy));
        Some(copy)
    }

    /// Creates an empty copy of a model.
    pub(super) fn create(&self, model: Digest, manifest: Arc<Manifest>) -> Result<Arc<Stored>> {
        let copy = Arc::new(Stored::create(&self.copy_folder(&model), model, manifest)?);
        self.insert(Arc::clone(&copy));
        Ok(copy)
    }

    /// Removes a copy from the store and from the disk.
    pub(super) fn remove(&self, model: &Digest) {
        self.stored().remove(model);
        self.remove_folder(model);
    }

    fn remove_folder(&self, model: &Digest) {
        let folder = self.copy_folder(model);
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(event = "copy_not_removed", folder = %folder.display(), %error);
        }
    }

    fn copy_folder(&self, model: &Digest) -> PathBuf {
        self.folder.join(model.to_string())
    }

    /// Ensures that `bytes` more fit on the disk: removes copies that this run has not used, those unused the longest first.
    ///
    /// # Errors
    /// `Overloaded` if removing all of them is not enough; nothing is removed then.
    pub(super) fn make_room(&self, bytes: u64) -> Result<()> {
        let folder = if self.folder.is_dir() { &self.folder } else { self.folder.parent().unwrap_or(Path::new(".")) };
        self.make_room_where(bytes, |bytes| disk::need(folder, bytes))
    }

    /// Implements [`BlobStore::make_room`]; `need` checks whether that many bytes fit now.
    fn make_room_where(&self, bytes: u64, need: impl Fn(u64) -> Result<()>) -> Result<()> {
        let mut idle: Vec<_> = self.all().into_iter().filter_map(|copy| Some((copy.idle_since()?, copy))).collect();
        idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        let idle_bytes: u64 = idle.iter().map(|(_, copy)| set_bytes(&copy.parts(), copy.manifest())).sum();
        let mut idle: Vec<Digest> = idle.into_iter().map(|(_, copy)| copy.digest()).collect();
        // Nothing is removed if removing all unused copies would not be enough.
        need(bytes.saturating_sub(idle_bytes))?;
        loop {
            match (need(bytes), idle.pop()) {
                (Ok(()), _) => return Ok(()),
                (Err(_), Some(model)) => {
                    tracing::info!(event = "copy_dropped", %model, "Removing the unused copy of model {model} to free disk space");
                    self.remove(&model);
                }
                (Err(error), None) => return Err(error),
            }
        }
    }
}

/// Parses a folder's name as a digest.
fn digest_of(name: &str) -> Option<Digest> {
    if name.len() != 64 || name.bytes().any(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&name[at..at + 2], 16).ok()?;
    }
    Some(Digest::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use pangea_client::{Error, ErrorKind};
    use pangea_compute::gguf::Gguf;

    use super::*;
    use crate::blob::parts::{PartId, PartSet, part_counts};

    /// A file without tensors and its manifest; other padding makes another model.
    fn model(padding: usize) -> (Vec<u8>, Arc<Manifest>) {
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &[0; 16]].concat();
        bytes.resize(1000 + padding, 0);
        let manifest = Manifest::of(&Gguf::from_bytes(bytes.clone()).unwrap(), 1).unwrap();
        (bytes, Arc::new(manifest))
    }

    /// Complete copies, most recently used first.
    fn blob_store(folder: &Path, copies: usize) -> (BlobStore, Vec<Digest>) {
        let blob_store = BlobStore::open(folder.to_owned());
        let models = (0..copies)
            .map(|index| {
                let (bytes, manifest) = model(index);
                let digest = manifest.digest();
                let copy = blob_store.create(digest, manifest).unwrap();
                copy.write(PartId { piece: 0, part: 0 }, &bytes).unwrap();
                let needed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - index as u64);
                let record = std::fs::File::options().append(true).open(blob_store.copy_folder(&digest).join("have"));
                record.unwrap().set_modified(needed).unwrap();
                digest
            })
            .collect();
        (BlobStore::open(blob_store.folder), models)
    }

    #[test]
    fn the_longest_unused_copies_are_removed_and_used_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (blob_store, models) = blob_store(folder.path(), 4);
        blob_store.get(&models[3]).unwrap().mark_used();
        let room = |bytes: u64| {
            let taken: u64 = blob_store.all().iter().map(|copy| set_bytes(&copy.parts(), copy.manifest())).sum();
            match bytes + taken <= 5000 {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::Overloaded, "full")),
            }
        };
        blob_store.make_room_where(500, room).unwrap();
        assert_eq!(blob_store.all().len(), 4);
        blob_store.make_room_where(1500, room).unwrap();
        assert!(blob_store.get(&models[2]).is_none() && blob_store.all().len() == 3);
        assert!(!blob_store.copy_folder(&models[2]).exists());
        assert!(blob_store.make_room_where(4500, room).is_err(), "the copy in use must not be removed");
        assert_eq!(blob_store.all().len(), 3, "nothing is removed if it is not enough");
        blob_store.make_room_where(3500, room).unwrap();
        assert_eq!(blob_store.all().iter().map(|copy| copy.digest()).collect::<Vec<_>>(), [models[3]]);
    }

    #[test]
    fn a_whole_file_replaces_an_unused_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (blob_store, models) = blob_store(&folder.path().join("blobs"), 1);
        let (bytes, manifest) = model(0);
        let path = folder.path().join("whole.gguf");
        std::fs::write(&path, bytes).unwrap();
        blob_store.insert(Arc::new(Stored::whole(&path, models[0], manifest).unwrap()));
        assert!(!blob_store.copy_folder(&models[0]).exists());
        assert_eq!(blob_store.current(&models[0]).unwrap().path(), path);
        std::fs::remove_file(&path).unwrap();
        assert!(blob_store.current(&models[0]).is_none());
    }

    #[test]
    fn other_files_in_the_folder_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (_, models) = blob_store(folder.path(), 1);
        let (cut, odd) = (folder.path().join("a".repeat(64)), folder.path().join("manifests"));
        std::fs::create_dir(&cut).unwrap();
        std::fs::create_dir(&odd).unwrap();
        let blob_store = BlobStore::open(folder.path().to_owned());
        assert_eq!(blob_store.all().iter().map(|copy| copy.digest()).collect::<Vec<_>>(), models);
        assert_eq!(blob_store.get(&models[0]).unwrap().parts(), PartSet::full(part_counts(&model(0).1)));
        assert!(cut.exists() && odd.exists());
    }
}
