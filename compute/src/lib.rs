//! Tensors, CPU kernels and checks of Pangea: bytes and numbers in, numbers out.
//!
//! This crate owns what a matrix is ([`Tensor`]), how two of them are multiplied ([`matmul`]), how a product that
//! someone else computed is checked ([`ColumnProbe`]), and how matrices are read from and written to files. It never
//! knows about sockets, async, peers or HTTP.
//!
//! The map:
//!
//! | module | owns |
//! |---|---|
//! | [`dtype`] | element types, the output type of a product |
//! | [`buffer`], [`tensor`], [`tensor_buf`] | aligned memory; immutable rank-2 tensors; a tensor being written |
//! | [`pool`] | the compute threads, [`Cancel`] |
//! | [`product`] | `C = A·B`, whole or from operands packed once |
//! | `kernel` | instruction sets, packing, micro-kernels, [`Linear`]: where `unsafe` lives |
//! | [`check`] | is this product right? (DESIGN §6) |
//! | [`commit`] | what a stage of a model answers for, and its replay (DESIGN §6) |
//! | [`chat`] | chat templates: conversations to prompt text |
//! | [`sample`], [`draft`] | logits to tokens, grammars, stop strings; guesses of what comes next |
//! | [`npy`], [`mapped`], [`npy_writer`], [`csv`], [`json`] | file formats: pure parsers; mapped `.npy`; blockwise `.npy` writing; text |
//! | [`gguf`] | model files: metadata, the table of tensors, what a stored block means |
//! | [`tokenizer`] | text to tokens and back |
//! | [`probe`] | how fast is this machine? |
//! | [`model`] | language models: configuration, weights of a layer range, caches, the forward pass |

#[cfg(target_endian = "big")]
compile_error!("tensors are kept in little-endian byte order: big-endian machines are not supported");

pub mod buffer;
pub mod chat;
pub mod check;
pub mod commit;
pub mod csv;
pub mod draft;
pub mod dtype;
pub mod error;
pub mod gguf;
pub mod json;
mod kernel;
pub mod mapped;
pub mod model;
pub mod npy;
pub mod npy_writer;
pub mod pool;
pub mod probe;
pub mod product;
pub mod sample;
pub mod tensor;
pub mod tensor_buf;
pub mod tokenizer;

pub use buffer::Buffer;
pub use check::{CheckReport, ColumnProbe, Mismatch, detection_limit};
pub use dtype::{DType, Element};
pub use error::{Error, ErrorKind};
pub use kernel::isa::Isa;
pub use kernel::linear::Linear;
pub use mapped::NpyFile;
pub use npy::NpyHeader;
pub use npy_writer::NpyWriter;
pub use pool::{Cancel, Pool};
pub use product::{
    MAX_K_I8, PackedA, PackedB, ProductBytes, matmul, matmul_into, matmul_packed, matmul_packed_into, product_bytes,
    product_dtype,
};
pub use tensor::{Digest, Tensor};
pub use tensor_buf::TensorBuf;
