//! The pool as it would be if this node served a model that is on its disk, for a preview of the placement. It loads nothing.

use std::path::Path;
use std::sync::Arc;

use pangea_client::Result;
use pangea_compute::Digest;
use pangea_compute::model::ModelFile;

use crate::blob::model_size;
use crate::compute_error;
use crate::models;
use crate::pool::{ModelAdvert, View};

/// `view` with the model `name` of `folder` among those that this node serves; `None` if it is not there. Blocks on the disk.
///
/// # Errors
/// `InvalidInput` for a file that is not a supported model.
pub fn view_with_file(view: &View, folder: &Path, name: &str) -> Result<Option<View>> {
    let Some(path) = models::find(folder, name) else { return Ok(None) };
    let file = ModelFile::open(&path).map_err(compute_error)?;
    let mut own = (*view.own).clone();
    own.models.push(ModelAdvert {
        // The weights are not read for a preview; no model has this digest.
        digest: Digest::from_bytes(*blake3::hash(path.to_string_lossy().as_bytes()).as_bytes()),
        name: name.to_owned(),
        served: true,
        whole: true,
        split: false,
        pinned: None,
        size: model_size(&file)?,
    });
    Ok(Some(View { own: Arc::new(own), ..view.clone() }))
}
