//! Float kernels of the layer engine: elementary functions, norms, rotary embeddings, attention, gated
//! delta nets, mixtures of experts. Each is one body over [`Simd`](super::simd::Simd) with the same bits on every processor; its doc says what a result depends on.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod delta;
pub(crate) mod environment;
pub(crate) mod math;
pub(crate) mod mixture;
pub(crate) mod norm;
pub(crate) mod rope;
