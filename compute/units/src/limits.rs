//! Limits that several crates keep to, each stated once.

/// Layers of a model. The largest models have about 130; a larger number is a typing error or an attack.
pub const MAX_LAYERS: u32 = 1024;

/// Stages of a chain. Every stage adds a network hop to every token.
pub const MAX_STAGES: usize = 64;

/// Size in bytes of a part of a model file: pieces are hashed, sent and checked in parts of this size, and only the last part of
/// a piece is shorter. A cut transfer loses at most one part, and a false part is refused after at most this many bytes.
pub const PART_BYTES: u64 = 4 << 20;
