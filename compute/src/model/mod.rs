//! Language models: a file's configuration, the weights of a part, the cached keys and values of sessions, and the forward
//! pass. A part is any contiguous range of layers, with or without embedding and head, so that parts can run on different
//! nodes. Sampling and text are in other modules.
//!
//! | file | owns |
//! |---|---|
//! | [`config`] | architectures, and a model's configuration |
//! | [`file`](mod@file) | an opened model file |
//! | [`manifest`] | the pieces of a model file and their hashes |
//! | [`part_bytes`] | bytes of a file's layers, embedding and head |
//! | `weights` | the weights of a part, packed for the kernels |
//! | [`cache`] | keys and values of a session, in pages within a budget |
//! | `states` | recurrent states of a session, within the same budget |
//! | `frequencies` | rotary frequencies and their scaling |
//! | [`digest`] | one digest of all that a session computed |
//! | [`forward`] | batches of sessions through the layers |
//! | [`embed`] | embeddings of texts |
//! | [`perplexity`](mod@perplexity) | how well a model predicts a text |
//!
//! Results have the same bits for any batch, chunking, number of threads, split and instruction set; [`NUMERICS`] names
//! the version of these bits.

pub mod cache;
pub mod config;
pub mod digest;
pub mod embed;
pub mod file;
pub mod forward;
mod frequencies;
pub mod manifest;
pub mod part_bytes;
pub mod perplexity;
mod states;
mod weights;

pub use cache::{Cache, PageBudget};
pub use config::{Architecture, Experts, ModelConfig, Pooling};
pub use digest::Recorder;
pub use file::ModelFile;
pub use forward::{Input, Logits, Observed, Output, Step};
pub use manifest::{Manifest, Piece, Wanted};
pub use part_bytes::PartBytes;
pub use perplexity::Perplexity;
pub use weights::{LoadBytes, Model, ModelPart};

/// The version of the engine's bits. A change of any kernel, order of sums or rounding must increase this number. Only nodes
/// of one version compare their results.
pub const NUMERICS: u32 = 1;
