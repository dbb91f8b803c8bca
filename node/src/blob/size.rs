//! The sizes of a model that placement calculates with, from the model's file.

use pangea_compute::model::{Manifest, ModelConfig};
use pangea_control::placement::SESSION_POSITIONS;
use pangea_control::pool::ModelSize;

/// Sizes of the model in a file. Packed weights take as many bytes in memory as in the file.
pub fn model_size(manifest: &Manifest, config: &ModelConfig) -> ModelSize {
    let limited = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    ModelSize {
        layers: limited(config.layers as u64),
        hidden_size: limited(config.hidden_size as u64),
        context: limited(config.context as u64),
        layer_bytes: manifest.layer_bytes(config.layers),
        active_layer_bytes: manifest.active_layer_bytes(config.layers, config.experts),
        embedding_bytes: manifest.embedding_bytes(),
        head_bytes: manifest.head_bytes(),
        position_bytes: limited(position_bytes(config)),
    }
}

/// Bytes of one position of a session in one layer, where the session has the least number of positions that a placement makes
/// room for: then its recurrent states count most.
pub fn position_bytes(config: &ModelConfig) -> u64 {
    config.session_position_bytes(config.context.min(SESSION_POSITIONS as usize))
}
