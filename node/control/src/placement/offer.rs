//! Input of a plan: a model's needs, the nodes' offers and their links, as advertised. Plain
//! values, without decisions or checks.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use crate::pool::{LayerSpeed, ModelSize};

/// A model that some node serves, and the flags for its placement.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelNeeds {
    /// Digest of the model.
    pub digest: Digest,
    /// Name of the model in requests.
    pub name: String,
    /// Sizes of the model.
    pub size: ModelSize,
    /// Whether it is split even if one node would be faster (`--split`).
    pub split: bool,
    /// Whether nodes without the file may fetch their layers.
    pub fetched: bool,
    /// Layers pinned to nodes (`--layers`).
    pub pins: Vec<(PeerId, Range<u32>)>,
    /// Nodes at which requests arrive: one of them is the first stage if that costs nothing.
    pub served_by: BTreeSet<PeerId>,
    /// Nodes with the whole file, to which no weights have to be sent.
    pub files: BTreeSet<PeerId>,
}

/// A node's offer.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeOffer {
    /// The node.
    pub peer: PeerId,
    /// Name for people.
    pub name: String,
    /// Memory left for weights and sessions, in bytes.
    pub memory_bytes: u64,
    /// Speed of layers: as the node claims, or as its stages were measured.
    pub speed: LayerSpeed,
    /// Whether its stages of this model were measured: otherwise its speed is a guess.
    pub measured: bool,
    /// Version of the node's numerics: all stages of a placement have the same.
    pub numerics: u32,
    /// Seconds for which others waited for it per frame, beyond what its speed accounts for.
    pub delay_s: f64,
}

/// Speed of the link between two nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpeed {
    /// Round-trip time; zero while unknown.
    pub rtt: Duration,
    /// Bytes per second; 0 while unknown.
    pub bytes_per_s: f64,
}

/// Minimum number of sessions that a stage can hold.
const SESSIONS: u64 = 3;

/// Positions of a session that a placement makes room for, if the model has as many: a conversation of some length.
pub const SESSION_POSITIONS: u32 = 2048;

impl ModelSize {
    /// Minimum bytes of keys and values per layer.
    pub fn session_layer_bytes(&self) -> u64 {
        let positions = u64::from(self.context.clamp(1, SESSION_POSITIONS));
        SESSIONS.saturating_mul(positions).saturating_mul(self.position_bytes.into())
    }

    /// Bytes of embedding and head on a stage at these ends of the chain. A head that is also the embedding is
    /// needed at both ends.
    pub(super) fn ends_bytes(&self, first: bool, last: bool) -> u64 {
        let embedding = match (first, self.embedding_bytes) {
            (true, 0) if !last => self.head_bytes,
            (true, bytes) => bytes,
            (false, _) => 0,
        };
        embedding.saturating_add(if last { self.head_bytes } else { 0 })
    }

    /// Bytes of the weights of one layer that a position is computed with, at least 1. What nobody said, or cannot be, counts as
    /// the whole layer.
    pub(super) fn read_bytes(&self) -> u64 {
        let active = Some(self.active_layer_bytes).filter(|active| (1..self.layer_bytes).contains(active));
        active.unwrap_or(self.layer_bytes).max(1)
    }

    /// Bytes of the weights of a stage.
    pub fn weight_bytes(&self, layers: &Range<u32>) -> u64 {
        let count = layers.end.saturating_sub(layers.start);
        let ends = self.ends_bytes(layers.start == 0, layers.end == self.layers);
        self.layer_bytes.saturating_mul(count.into()).saturating_add(ends)
    }

    /// Minimum bytes of keys and values of a stage.
    pub fn session_bytes(&self, layers: &Range<u32>) -> u64 {
        self.session_layer_bytes().saturating_mul(layers.end.saturating_sub(layers.start).into())
    }

    /// Minimum bytes of a stage.
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
