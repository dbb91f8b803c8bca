//! Limits that several crates keep to, each stated once.

/// Layers of a model. The largest models have about 130; a larger number is a typing error or an attack.
pub const MAX_LAYERS: u32 = 1024;

/// Stages of a chain. Every stage adds a network hop to every token.
pub const MAX_STAGES: usize = 64;
