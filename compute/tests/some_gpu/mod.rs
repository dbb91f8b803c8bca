//! The GPU that tests run on.

use crate::skip::skip;
use pangea_compute::gpu::{Gpu, GpuChoice};
use std::sync::Arc;

/// A GPU, software where there is no other. Where there is none at all, says that `test` does not run on one.
///
/// # Panics
/// Where there is none and `PANGEA_TESTS_NO_SKIP` is set.
pub(crate) fn gpu(test: &str) -> Option<Arc<Gpu>> {
    Gpu::open(GpuChoice::BestOrSoftware).map_err(|why| skip(test, &why.to_string())).ok()
}
