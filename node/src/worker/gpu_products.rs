//! Products on the GPU of this node, of the types that it was measured to multiply faster than the processor, and large enough to be
//! worth the way there. Whoever asked for them checks them like all others.

use pangea_compute::gpu::Gpu;
use pangea_compute::{Cancel, DType, ErrorKind, Tensor, probe};

use super::executor::Speeds;
use crate::devices::{Devices, Kind, Lease, NodeGpu};

/// Multiply-adds below which the way to the GPU and back takes longer than the product.
const WORTH_IT: u64 = 1 << 24;

/// Time of each measurement, in milliseconds.
const MEASURE_MS: u64 = 50;

/// Which products the GPU computes.
pub(super) struct GpuProducts {
    devices: Devices,
    floats: bool,
    integers: bool,
}

impl GpuProducts {
    /// Measures the GPU, if there is one, and raises the node's speeds to its where it `wins`: given the processor's speed and the
    /// GPU's, in operations per second.
    pub(super) fn measured(devices: &Devices, speeds: &mut Speeds, wins: impl Fn(f64, f64) -> bool) -> GpuProducts {
        let gpu = devices.gpu().and_then(NodeGpu::works);
        let measure = |dtype, speed: &mut f64| {
            let Some(gpu) = gpu else { return false };
            match probe::gpu_gflops(dtype, gpu, MEASURE_MS) {
                Ok(gflops) if wins(*speed, gflops * 1e9) => {
                    *speed = gflops * 1e9;
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    tracing::warn!(event = "gpu_not_measured", %error, "the GPU computes no {dtype} products: {error}");
                    false
                }
            }
        };
        let floats = measure(DType::F32, &mut speeds.f32_flops_per_s);
        let integers = measure(DType::I8, &mut speeds.i8_flops_per_s);
        GpuProducts { devices: devices.clone(), floats, integers }
    }

    /// The product, or why it has none; `None` where the processor is to compute it: for other types and small products, without
    /// memory, and once the GPU has failed.
    pub(super) fn product(
        &self,
        a: &Tensor,
        b: &Tensor,
        cancel: &Cancel,
    ) -> Option<Result<Tensor, pangea_compute::Error>> {
        let is_chosen = if a.dtype() == DType::I8 { self.integers } else { self.floats };
        let multiply_adds = a.rows() as u64 * a.cols() as u64 * b.cols() as u64;
        if !is_chosen || multiply_adds < WORTH_IT || !Gpu::multiplies(a.dtype(), b.dtype()) {
            return None;
        }
        let gpu = self.devices.gpu()?.works()?;
        let _leases = self.lease(Gpu::matmul_bytes(a.shape(), b.shape(), [a.dtype(), b.dtype()]))?;
        match gpu.matmul(a, b, cancel) {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded) => {
                tracing::warn!(event = "gpu_product_failed", %error, "the processor computes a product that the GPU did not: {error}");
                None
            }
            result => Some(result),
        }
    }

    /// Memory for the operands and the result on the GPU, if there is any.
    fn lease(&self, bytes: u64) -> Option<Vec<Lease>> {
        let accounts = self.devices.gpu_accounts();
        accounts.into_iter().map(|account| account.lease(Kind::Tensors, bytes).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::choice::{BitsChoice, DeviceChoice};

    /// The products of a node with a GPU, which wins always or never; `None` without a GPU.
    fn products(wins: bool) -> Option<GpuProducts> {
        // Tests of the GPU itself say where there is none.
        let adapter = pangea_compute::gpu::adapters().into_iter().find(|adapter| adapter.backend == "Vulkan")?;
        let devices =
            Devices::with_device(1 << 30, 1, &DeviceChoice::Gpu(Some(adapter.name)), BitsChoice::Own, None).ok()?;
        let mut speeds = Speeds { f32_flops_per_s: 1.0, f64_flops_per_s: 1.0, i8_flops_per_s: 1.0 };
        let products = GpuProducts::measured(&devices, &mut speeds, |_, gpu| {
            assert!(gpu > 0.0);
            wins
        });
        assert_eq!(speeds.f32_flops_per_s > 1.0, wins);
        assert_eq!(speeds.f64_flops_per_s, 1.0, "doubles stay on the processor");
        Some(products)
    }

    #[test]
    fn large_products_of_measured_types_pass_their_checks_and_others_stay_on_the_processor() {
        let (Some(gpu), Some(none)) = (products(true), products(false)) else { return };
        let pool = pangea_compute::Pool::new(1).unwrap();
        let operand = |dtype, seed| Tensor::generate(dtype, 288, 288, seed).unwrap();
        for dtype in [DType::F32, DType::F16, DType::Bf16, DType::I8] {
            let (a, b) = (operand(dtype, 1), operand(dtype, 2));
            let c = gpu.product(&a, &b, &Cancel::new()).unwrap().unwrap();
            let probe = pangea_compute::Operation::Matmul.probe(&b, c.dtype(), [7; 32], &pool).unwrap();
            probe.check(&a, &b, &c, &pool).unwrap();
            assert!(none.product(&a, &b, &Cancel::new()).is_none());
        }
        assert!(gpu.product(&operand(DType::F64, 1), &operand(DType::F64, 2), &Cancel::new()).is_none());
        let small = Tensor::generate(DType::F32, 16, 16, 1).unwrap();
        assert!(gpu.product(&small, &small, &Cancel::new()).is_none());
        assert_eq!(gpu.devices.held(), 0, "memory is given back");
        // Once the device is lost, the processor computes.
        let (a, b) = (operand(DType::F32, 1), operand(DType::F32, 2));
        assert!(gpu.devices.give_up_gpu("for a test"));
        assert!(gpu.product(&a, &b, &Cancel::new()).is_none());
    }
}
