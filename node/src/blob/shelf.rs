//! The model files of this node, whole and in part, by digest: what is offered to peers and found by this node. It moves no
//! bytes; of its copies it drops those that nobody has needed for longest, when room is needed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_client::Result;
use pangea_compute::Digest;
use pangea_compute::model::Manifest;

use super::stored::Stored;
use crate::models::disk;

/// All of them.
#[derive(Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    stored: Mutex<HashMap<Digest, Arc<Stored>>>,
}

impl Shelf {
    /// The copies in `folder`; what is no copy there is left alone.
    pub(super) fn open(folder: PathBuf) -> Shelf {
        let mut stored = HashMap::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some(digest) = entry.file_name().to_str().and_then(digest_of) else { continue };
            match Stored::open(&entry.path(), digest) {
                Ok(copy) => drop(stored.insert(digest, Arc::new(copy))),
                Err(error) => tracing::warn!(event = "copy_ignored", folder = %entry.path().display(), %error),
            }
        }
        Shelf { folder, stored: Mutex::new(stored) }
    }

    fn stored(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Stored>>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a model.
    pub(super) fn get(&self, model: &Digest) -> Option<Arc<Stored>> {
        self.stored().get(model).cloned()
    }

    /// All files.
    pub(super) fn all(&self) -> Vec<Arc<Stored>> {
        self.stored().values().cloned().collect()
    }

    /// Takes a whole file in; it is used in place of a copy.
    pub(super) fn insert(&self, file: Arc<Stored>) {
        self.stored().insert(file.digest(), file);
    }

    /// The file of a model that is still there; one that the user took away is forgotten.
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

    /// A new copy, with nothing in it.
    pub(super) fn create(&self, model: Digest, manifest: Arc<Manifest>) -> Result<Arc<Stored>> {
        let copy = Arc::new(Stored::create(&self.copy_folder(&model), model, manifest)?);
        self.insert(Arc::clone(&copy));
        Ok(copy)
    }

    /// Forgets a copy and removes it.
    pub(super) fn remove(&self, model: &Digest) {
        self.stored().remove(model);
        let folder = self.copy_folder(model);
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(event = "copy_not_removed", folder = %folder.display(), %error);
        }
    }

    fn copy_folder(&self, model: &Digest) -> PathBuf {
        self.folder.join(model.to_string())
    }

    /// Makes sure that `bytes` more fit on the disk; drops copies that this run has not needed, the longest unneeded first.
    ///
    /// # Errors
    /// `Overloaded` where they do not fit even so.
    pub(super) fn make_room(&self, bytes: u64) -> Result<()> {
        let mut idle: Vec<_> = self.all().into_iter().filter_map(|copy| Some((copy.idle_since()?, copy))).collect();
        idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        let idle_bytes: u64 = idle.iter().map(|(_, copy)| copy.parts().bytes(copy.manifest())).sum();
        let mut idle: Vec<Digest> = idle.into_iter().map(|(_, copy)| copy.digest()).collect();
        let folder = if self.folder.is_dir() { &self.folder } else { self.folder.parent().unwrap_or(Path::new(".")) };
        // Nothing goes where all of it would not be enough.
        disk::need(folder, bytes.saturating_sub(idle_bytes))?;
        loop {
            match (disk::need(folder, bytes), idle.pop()) {
                (Ok(()), _) => return Ok(()),
                (Err(_), Some(model)) => {
                    tracing::info!(event = "copy_dropped", %model, "Removing the unused copy of model {model} for room");
                    self.remove(&model);
                }
                (Err(error), None) => return Err(error),
            }
        }
    }
}

/// The digest that a folder's name is.
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
