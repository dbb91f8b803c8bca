//! Model files in this node's models folder that nobody named with `--model`: where the pool serves the very same model, its layers
//! come from that file, and nothing is fetched or stored a second time. Files of other models are never offered to anyone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use pangea_compute::Digest;
use pangea_compute::model::ModelFile;
use pangea_control::pool::served::MODELS_MAX;

use super::Loader;
use crate::models;
use crate::pool::ModelSize;

impl Loader {
    /// Sets the models folder; only the first call counts.
    pub fn look_for_files_in(&self, folder: &Path) {
        let _ = self.0.own_files.set(folder.to_owned());
    }

    /// Whether the whole file of a model of the pool is on this node: a fetched copy, or the user's own file, which is used and
    /// offered from now on. Blocks while a file that looks like it is hashed for the first time.
    pub fn has_file(&self, model: Digest, name: &str) -> bool {
        if self.blobs().have(&model).is_some_and(|here| here.is_whole()) {
            return true;
        }
        let view = self.view();
        let size = {
            let view = view.borrow();
            let mut known = view.everyone().flat_map(|advert| &advert.models);
            known.find(|known| known.digest == model).map(|known| known.size)
        };
        let (Some(folder), Some(size)) = (self.0.own_files.get(), size) else { return false };
        let Some(path) = self.own_file(folder, model, &size) else { return false };
        if let Err(error) = self.blobs().offer(&path) {
            tracing::warn!(event = "own_file_unused", model = name, %error, "cannot use {}: {error}", path.display());
            return false;
        }
        let file = path.display();
        tracing::info!(event = "own_file", model = name, %file, "Model {name}: using the file {file} of this node");
        self.advertise(model, name);
        true
    }

    /// Like [`Loader::has_file`], before layers are loaded; remembers that the file was there.
    pub fn finds_on_disk(&self, model: Digest, name: &str) -> bool {
        let found = self.has_file(model, name);
        let mut on_disk = self.0.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        if found && (on_disk.len() < MODELS_MAX || on_disk.contains(&model)) {
            on_disk.insert(model);
        }
        found
    }

    /// The models whose whole file was on this node's disk before their layers were loaded.
    pub fn found_on_disk(&self) -> BTreeSet<Digest> {
        self.0.on_disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn own_file(&self, folder: &Path, model: Digest, size: &ModelSize) -> Option<PathBuf> {
        let looks_like_it = |path: &PathBuf| {
            ModelFile::open(path).is_ok_and(|file| {
                let config = file.config();
                (config.layers, config.hidden_size) == (size.layers as usize, size.hidden_size as usize)
            })
        };
        let mut files = models::installed(folder).into_iter().map(|(_, path)| path).filter(looks_like_it);
        files.find(|path| self.blobs().digest_of(path).is_ok_and(|digest| digest == model))
    }
}
