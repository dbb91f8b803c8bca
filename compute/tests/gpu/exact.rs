//! Kernels with the processor's bits: held to its kernels on every device that is certified, so here on the one that there is.

use super::gpu;
use pangea_compute::gguf::GgmlType;

#[test]
fn a_device_is_certified_with_every_weight_type() {
    let Some(gpu) = gpu("a_device_is_certified_with_every_weight_type") else { return };
    let certified = gpu.certify().unwrap();
    for ty in GgmlType::SUPPORTED {
        certified.certify_format(ty).unwrap();
    }
}
