//! One digest of all that a forward pass computed: every layer's output and the logits, position by position. The
//! digest does not depend on how rows were batched, chunked or split over stages.

use crate::model::NUMERICS;
use pangea_units::Digest;
use std::collections::BTreeMap;

/// Position, then layer; `usize::MAX` for the logits.
type Place = (usize, usize);

/// Collects the outputs of one session.
#[derive(Clone, Debug, Default)]
pub struct Recorder(BTreeMap<Place, [u8; 32]>);

impl Recorder {
    /// A recorder without outputs.
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// Records the output of a layer for one position: `[hidden_size]`.
    pub fn layer(&mut self, position: usize, layer: usize, activations: &[f32]) {
        self.0.insert((position, layer), hash(activations));
    }

    /// Records the logits of one position: `[vocabulary]`.
    pub fn logits(&mut self, position: usize, logits: &[f32]) {
        self.0.insert((position, usize::MAX), hash(logits));
    }

    /// The digest of all recorded outputs and of the numerics version.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&NUMERICS.to_le_bytes());
        for ((position, layer), hash) in &self.0 {
            hasher.update(&(*position as u64).to_le_bytes());
            hasher.update(&(*layer as u64).to_le_bytes());
            hasher.update(hash);
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

fn hash(values: &[f32]) -> [u8; 32] {
    *blake3::hash(bytemuck::cast_slice(values)).as_bytes()
}
