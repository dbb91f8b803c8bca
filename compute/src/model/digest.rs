//! One digest for all that a forward pass computed: every layer's output and the logits, position by position, so that it is
//! the same however the rows were batched, chunked or split over stages. It computes nothing but hashes.

use crate::model::NUMERICS;
use pangea_units::Digest;
use std::collections::BTreeMap;

/// Where an output stands: position, then layer, the logits behind all layers.
type Place = (usize, usize);

/// Collects the outputs of one session.
#[derive(Clone, Debug, Default)]
pub struct Recorder(BTreeMap<Place, [u8; 32]>);

impl Recorder {
    /// Nothing recorded.
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// Takes in the output of a layer for one position: `[width]`.
    pub fn layer(&mut self, position: usize, layer: usize, activations: &[f32]) {
        self.0.insert((position, layer), hash(activations));
    }

    /// Takes in the logits of one position: `[vocabulary]`.
    pub fn logits(&mut self, position: usize, logits: &[f32]) {
        self.0.insert((position, usize::MAX), hash(logits));
    }

    /// The digest of all that was taken in, and of the version of the numerics.
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
