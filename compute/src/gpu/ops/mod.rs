//! What a GPU computes: one method of [`Commands`](super::Commands) for each operation of a layer, and [`Gpu::matmul`](super::Gpu::matmul)
//! for matrix tasks. Each checks shapes; callers keep the order. Nothing here knows of models.

mod attention;
mod elementwise;
mod exact;
mod experts;
mod matmul;
mod product;

pub use attention::{AttentionShape, GPU_PAGE_POSITIONS, GpuPlaces, GpuSequence, QueryKeyValue, Rotation};
pub use elementwise::GpuActivation;
pub use experts::{GpuChosen, GpuGating};
pub use product::Store;

use crate::Error;

/// An error unless shapes fit.
fn fits(operation: &'static str, fit: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    if fit { Ok(()) } else { Err(Error::invalid(operation, format!("shapes do not fit: {}", what()))) }
}
