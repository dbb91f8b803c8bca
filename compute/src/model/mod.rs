//! Language models: a file's configuration, the weights of a range of its layers, the cached keys and values of sessions,
//! and the forward pass. A model is loaded as any contiguous range of layers, with or without embedding and head, so that
//! ranges can live on different nodes. It never samples and knows nothing of text.
//!
//! | file | owns |
//! |---|---|
//! | [`config`] | architectures, and what a file says of its model |
//! | [`file`](mod@file) | an opened model file |
//! | [`manifest`] | the pieces of a model file and their hashes |
//! | `weights` | a range of layers, packed for the kernels |
//! | [`cache`] | keys and values of a session, in pages within a budget |
//! | `frequencies` | rotary frequencies and their scaling |
//! | [`digest`] | one digest for all that a session computed |
//! | [`forward`] | batches of sessions through the layers |
//! | [`perplexity`](mod@perplexity) | how well a model foretells a text |
//!
//! The answer has the same bits for any batch, chunking, number of threads, split and instruction set; [`NUMERICS`] names
//! the version of these bits.

pub mod cache;
pub mod config;
pub mod digest;
pub mod file;
pub mod forward;
mod frequencies;
pub mod manifest;
pub mod perplexity;
mod weights;

pub use cache::{Cache, PageBudget};
pub use config::{Architecture, ModelConfig};
pub use digest::Recorder;
pub use file::ModelFile;
pub use forward::{Input, Logits, Observed, Output, Step};
pub use manifest::{Manifest, Piece, Wanted};
pub use perplexity::Perplexity;
pub use weights::{Model, ModelPart};

/// The version of the bits that the engine computes: it changes whenever any kernel, order of sums or rounding does. Only
/// nodes of one version compare what they computed.
pub const NUMERICS: u32 = 1;
