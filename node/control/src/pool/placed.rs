//! Placements: which node computes which layers. Plain values that the master publishes and every node reads.

use std::ops::Range;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::advert::Term;

/// The stages of one model, in the order in which activations travel.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The model's digest.
    pub model: Digest,
    /// Name of the model in requests.
    pub name: String,
    /// Version of this model's placement; every new one has a higher epoch.
    pub epoch: u64,
    /// The term of the master that decided. Placements of older terms are ignored.
    pub term: Term,
    /// The stages, with contiguous layers from the first to the last.
    pub stages: Vec<PlacedStage>,
}

/// A model that the pool cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRefusal {
    /// The model's digest.
    pub model: Digest,
    /// A sentence for people: what is missing, and what to do.
    pub why: String,
}

/// A node's layers in a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedStage {
    /// The node.
    pub peer: PeerId,
    /// Layers `[first, end)`, counted from 0. The first stage has the embedding, the last one the head.
    pub layers: Range<u32>,
}
