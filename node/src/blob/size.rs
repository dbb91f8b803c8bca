//! The sizes of a model that placement calculates with, from the model's file.

use pangea_client::Result;
use pangea_compute::model::{ModelConfig, ModelFile, PartBytes};
use pangea_control::placement::SESSION_POSITIONS;
use pangea_control::pool::ModelSize;

use crate::compute_error;

/// Sizes of the model in a file, of which the header is enough. Packed weights take as many bytes in memory as in the file.
///
/// # Errors
/// `InvalidInput` for a tensor of an unsupported type.
pub fn model_size(file: &ModelFile) -> Result<ModelSize> {
    let (bytes, config) = (PartBytes::of(file.gguf()).map_err(compute_error)?, file.config());
    let limited = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    Ok(ModelSize {
        layers: limited(config.layers as u64),
        hidden_size: limited(config.hidden_size as u64),
        context: limited(config.context as u64),
        layer_bytes: bytes.layer(config.layers),
        active_layer_bytes: bytes.active_layer(config.layers, config.experts),
        embedding_bytes: bytes.embedding(),
        head_bytes: bytes.head(),
        position_bytes: limited(position_bytes(config)),
    })
}

/// Bytes of one position of a session in one layer, where the session has the least number of positions that a placement makes
/// room for: then its recurrent states count most.
pub fn position_bytes(config: &ModelConfig) -> u64 {
    config.session_position_bytes(config.context.min(SESSION_POSITIONS as usize))
}
