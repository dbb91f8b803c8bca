//! Tensors, CPU kernels and checks of Pangea: bytes and numbers in, numbers out.
//!
//! Matrices ([`Tensor`]) are multiplied ([`matmul`]), products of other nodes are checked ([`ColumnProbe`]), language models
//! run ([`model`]), their tokens are chosen ([`sample`]) and their work is committed to ([`commit`]). Sockets, async, peers
//! and HTTP are unknown here.
//!
//! The map, from the bottom up. A module uses modules of lower layers only (`tests/layers.rs` checks it):
//!
//! | layer | module | owns |
//! |---|---|---|
//! | 0 | [`error`] | the error type, its kinds |
//! | 1 | [`dtype`] | element types, the output type of a product |
//! | 1 | `isa` | [`Isa`]: the instruction sets of this processor |
//! | 1 | [`buffer`] | aligned memory |
//! | 1 | `mapping` | files mapped into memory |
//! | 1 | [`chat`] | chat templates: conversations to prompt text |
//! | 2 | [`tensor`] | immutable rank-2 tensors; a tensor being written |
//! | 2 | [`pool`] | the compute threads, [`Cancel`] |
//! | 2 | [`gguf`] | model files: metadata, the table of tensors, what a stored block means |
//! | 3 | `kernel` | packing, micro-kernels, [`Linear`], a transformer's layers: where `unsafe` lives |
//! | 3 | [`npy`], [`csv`] | matrices in files: NumPy's format, comma-separated text |
//! | 3 | [`tokenizer`] | text to tokens and back |
//! | 4 | [`gpu`] | GPUs: adapters, memory, the kernels of layers and products, held to `kernel` where they are to have its bits |
//! | 4 | [`product`] | `C = A·B`, whole or from operands packed once |
//! | 4 | [`json`] | matrices as JSON text |
//! | 4 | [`sample`] | logits to tokens, grammars, stop strings |
//! | 4 | [`model`] | language models: configuration, plans of layer ranges, caches |
//! | 5 | [`check`] | is this product right? (DESIGN §6) |
//! | 5 | [`engine`] | stages of models on the CPU or a GPU: weights in memory, the forward pass |
//! | 5 | [`probe`] | measured speed of this machine |
//! | 6 | [`draft`] | guesses of the next tokens, from the text so far or by a small model |
//! | 6 | [`commit`] | what a stage of a model commits to, and its replay (DESIGN §6) |
//! | 6 | [`perplexity`](mod@perplexity) | how well a model predicts a text |
//! | 6 | [`operation`] | what a node computes from two tensors: needs, result, cost, check |

#[cfg(target_endian = "big")]
compile_error!("tensors are kept in little-endian byte order: big-endian machines are not supported");

pub mod buffer;
pub mod chat;
pub mod check;
pub mod commit;
pub mod csv;
pub mod draft;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod gguf;
pub mod gpu;
mod isa;
pub mod json;
mod kernel;
mod mapping;
pub mod model;
pub mod npy;
pub mod operation;
pub mod perplexity;
pub mod pool;
pub mod probe;
pub mod product;
pub mod sample;
pub mod tensor;
pub mod tokenizer;

pub use buffer::Buffer;
pub use check::{CheckReport, ColumnProbe, Mismatch, detection_limit, likely_limit};
pub use dtype::{DType, Element};
pub use engine::{Bits, Engine, Stage};
pub use error::Error;
pub use isa::Isa;
pub use kernel::linear::Linear;
pub use npy::{NpyFile, NpyHeader, NpyWriter};
pub use operation::{Cut, Operation, ResultProbe, TensorShape};
pub use pangea_units::{Digest, ErrorKind};
pub use pool::{Cancel, Pool, SharedCores};
pub use product::{
    MAX_K_I8, PackedA, PackedB, ProductBytes, matmul, matmul_into, matmul_packed, matmul_packed_into, product_bytes,
};
pub use tensor::{Tensor, TensorBuf, TensorHasher};
