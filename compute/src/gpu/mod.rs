//! GPUs through `wgpu` (Vulkan, Metal, DirectX 12): adapters, memory, and the kernels of a transformer's layers and of matrix
//! products, written in WGSL. Models, sessions and who computes what are unknown here.
//!
//! There are two families of kernels. Those of [`Gpu::commands`] sum in f32 in an order of their own: results agree with the CPU's kernels
//! within rounding, not bit for bit. Those of exact commands do every operation of the CPU's kernels in its order, with floats in
//! integers, whose results no driver may change: they have the CPU's bits on a [`CertifiedGpu`].
//!
//! | file | owns |
//! |---|---|
//! | `adapter` | the adapters of this machine, and why one is not used |
//! | `memory` | how much memory an adapter has |
//! | `device` | an opened GPU, its loss, its compiled kernels |
//! | `buffer` | memory: allocation, upload |
//! | `commands` | recorded work, submissions, what is read back |
//! | `pipeline` | the sources of kernels, compilation |
//! | `planes` | how blocks of weights lie in memory |
//! | `matrix` | weights in chunks of rows |
//! | `rows` | activations |
//! | `certify` | whether a device's exact kernels give the CPU's bits |
//! | `ops` | the operations: checks of shapes, parameters, sizes of dispatches |
//! | `shaders` | the arithmetic; in `exact` that with the CPU's bits |

mod adapter;
mod buffer;
mod certify;
mod commands;
mod device;
mod matrix;
mod memory;
mod ops;
mod pipeline;
mod planes;
mod rows;

pub use adapter::{AdapterKind, AdapterReport, GpuChoice, adapters};
pub use buffer::GpuBuffer;
pub use certify::CertifiedGpu;
pub use commands::{Commands, ReadSlot, Readback};
pub use device::Gpu;
pub use matrix::GpuMatrix;
pub use ops::{
    AttentionShape, GPU_PAGE_POSITIONS, GpuActivation, GpuChosen, GpuGating, GpuPlaces, GpuSequence, QueryKeyValue,
    Rotation, Store,
};
pub use rows::GpuRows;

use crate::Error;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The result of a future that is ready at once, as `wgpu`'s are outside of browsers.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A dimension as kernels count.
fn dimension(count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::invalid("gpu", format!("{count} is too large for a kernel's index")))
}

/// Workgroups of a row that is broken into several where it is longer than a dispatch may be: `[x, z]`.
fn spread(groups: usize) -> Result<[u32; 2], Error> {
    const MAX: usize = 32_768;
    Ok([dimension(groups.min(MAX))?, dimension(groups.div_ceil(MAX))?])
}
