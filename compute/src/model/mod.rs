//! Language models: a file's configuration, what a part of a model consists of, the cached keys and values of sessions. A
//! part is any contiguous range of layers, with or without embedding and head, so that parts can run on different nodes.
//! What computes them is an [`engine`](crate::engine); sampling and text are in other modules.
//!
//! | file | owns |
//! |---|---|
//! | [`config`] | architectures, and a model's configuration |
//! | [`file`](mod@file) | an opened model file |
//! | [`manifest`] | the pieces of a model file and their hashes |
//! | [`part_bytes`] | bytes of a file's layers, embedding and head |
//! | [`plan`] | what a stage consists of: shapes, types and places of its weights |
//! | [`cache`] | keys, values and recurrent states of a session, within a budget |
//! | `frequencies` | rotary frequencies and their scaling |
//! | [`digest`] | one digest of all that a session computed |

pub mod cache;
pub mod config;
pub mod digest;
pub mod file;
pub(crate) mod frequencies;
pub mod manifest;
pub mod part_bytes;
pub mod plan;

pub use cache::{Cache, CacheShape, PageBudget};
pub use config::{Architecture, Experts, ModelConfig, Pooling};
pub use digest::Recorder;
pub use file::ModelFile;
pub use manifest::{Manifest, Piece, Wanted};
pub use part_bytes::PartBytes;
pub use plan::{LayerPlan, ModelPart, StagePlan};

/// The version of the engine's bits. A change of any kernel, order of sums or rounding must increase this number. Only nodes
/// of one version compare their results.
pub const NUMERICS: u32 = 1;
