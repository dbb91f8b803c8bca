//! The worker's side of a node: computing tasks.
//!
//! * [`cost`]: an operation as the scheduler counts it.
//! * [`executor`]: the one thread that owns the compute pool, and its queue.
//! * `gpu_products`: products on the GPU.
//! * `liar`: injected faults, for tests.
//!
//! It knows peers only as keys and never touches a socket; `link` brings it work.

pub mod cost;
pub mod executor;
mod gpu_products;
mod liar;
