//! Float kernels of the layer engine: elementary functions, norms, rotary embeddings, attention. Each is one body over
//! [`Simd`](super::simd::Simd) and gives the same bits on every processor; what a result depends on is stated beside it.
//! It knows nothing of weights' formats, models or threads.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod environment;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod rope;
