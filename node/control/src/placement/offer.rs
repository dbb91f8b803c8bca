//! What a plan is made from: what a model takes, what nodes offer and how they are linked, as far as they say so. Plain
//! values; nothing here is trusted, and nothing decided.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use crate::pool::{LayerSpeed, ModelSize};

/// A model that some node serves, and what is asked for its placement.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelNeeds {
    /// Its digest.
    pub digest: Digest,
    /// The name that requests give.
    pub name: String,
    /// What it takes.
    pub size: ModelSize,
    /// Whether it is to be split even where one node would be faster.
    pub split: bool,
    /// Layers that a node is to have, and no others.
    pub pins: Vec<(PeerId, Range<u32>)>,
    /// Nodes at which requests arrive: one of them is the first stage where that costs nothing.
    pub served_by: BTreeSet<PeerId>,
    /// Nodes that have the whole file: nothing need travel to them.
    pub files: BTreeSet<PeerId>,
}

/// What a node gives.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeOffer {
    /// The node.
    pub peer: PeerId,
    /// Name for people.
    pub name: String,
    /// Memory that it has left for weights and sessions.
    pub memory_bytes: u64,
    /// How fast it computes layers.
    pub speed: LayerSpeed,
    /// The version of the bits that it computes: stages of one placement have the same.
    pub numerics: u32,
}

/// A connection between two nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpeed {
    /// Round trip; zero while it is not known.
    pub rtt: Duration,
    /// Bytes per second; 0 while it is not known.
    pub bytes_per_s: f64,
}

/// Sessions that a stage holds at least.
const SESSIONS: u64 = 3;

/// Positions of each, where the model has as many: a conversation of some length.
const SESSION_POSITIONS: u32 = 2048;

impl ModelSize {
    /// Bytes of keys and values that one layer needs at least.
    pub fn session_layer_bytes(&self) -> u64 {
        let positions = u64::from(self.context.clamp(1, SESSION_POSITIONS));
        SESSIONS.saturating_mul(positions).saturating_mul(self.position_bytes.into())
    }

    /// Bytes of the embedding and the head on a stage at these ends of the chain. A head that is the embedding, too, is
    /// needed at both.
    pub(super) fn ends_bytes(&self, first: bool, last: bool) -> u64 {
        let embedding = match (first, self.embedding_bytes) {
            (true, 0) if !last => self.head_bytes,
            (true, bytes) => bytes,
            (false, _) => 0,
        };
        embedding.saturating_add(if last { self.head_bytes } else { 0 })
    }

    /// Bytes of the weights of a stage.
    pub fn weight_bytes(&self, layers: &Range<u32>) -> u64 {
        let count = layers.end.saturating_sub(layers.start);
        let ends = self.ends_bytes(layers.start == 0, layers.end == self.layers);
        self.layer_bytes.saturating_mul(count.into()).saturating_add(ends)
    }

    /// Bytes of keys and values that a stage needs at least.
    pub fn session_bytes(&self, layers: &Range<u32>) -> u64 {
        self.session_layer_bytes().saturating_mul(layers.end.saturating_sub(layers.start).into())
    }

    /// All that a stage needs at least.
    pub fn stage_bytes(&self, layers: &Range<u32>) -> u64 {
        self.weight_bytes(layers).saturating_add(self.session_bytes(layers))
    }
}

impl ModelNeeds {
    /// As [`ModelSize::session_layer_bytes`].
    pub fn session_layer_bytes(&self) -> u64 {
        self.size.session_layer_bytes()
    }

    /// As [`ModelSize::ends_bytes`].
    pub(super) fn ends_bytes(&self, first: bool, last: bool) -> u64 {
        self.size.ends_bytes(first, last)
    }

    /// As [`ModelSize::weight_bytes`].
    pub fn weight_bytes(&self, layers: &Range<u32>) -> u64 {
        self.size.weight_bytes(layers)
    }

    /// As [`ModelSize::session_bytes`].
    pub fn session_bytes(&self, layers: &Range<u32>) -> u64 {
        self.size.session_bytes(layers)
    }

    /// As [`ModelSize::stage_bytes`].
    pub fn stage_bytes(&self, layers: &Range<u32>) -> u64 {
        self.size.stage_bytes(layers)
    }
}
