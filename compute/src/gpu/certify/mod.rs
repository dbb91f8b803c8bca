//! Whether a device's exact kernels give the CPU's bits. They touch no float of the device, so they do unless a compiler or a driver is
//! wrong; before a process relies on them, each is held to the CPU's own kernel on numbers that are the same every time: arithmetic on
//! its hard cases, then every kernel, and with the first matrix of a weight type the kernels that read it. That is evidence, not proof:
//! what a stage computes is held to commitments like any other stage's.
//!
//! | file | owns |
//! |---|---|
//! | here | certificates, the comparison |
//! | `operations` | arithmetic, conversions |
//! | `kernels` | kernels without a matrix of weights: norms, activations, attention, routing |
//! | `formats` | kernels that read weights |

mod formats;
mod kernels;
mod operations;

use super::Gpu;
use crate::Error;
use crate::gguf::GgmlType;
use std::fmt::Display;
use std::sync::{Arc, PoisonError};

/// What a device is held to at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Probe {
    /// All that reads no weights.
    Arithmetic,
    /// Products and embeddings of a weight type.
    Format(GgmlType),
}

/// A GPU that gave the CPU's bits for everything that it was held to.
#[derive(Clone, Debug)]
pub struct CertifiedGpu(Arc<Gpu>);

impl CertifiedGpu {
    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.0
    }

    /// Holds the kernels that read weights of this type to the CPU's; once for each device and type.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a result has other bits; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub fn certify_format(&self, ty: GgmlType) -> Result<(), Error> {
        self.0.probe(Probe::Format(ty))
    }
}

impl Gpu {
    /// Holds the kernels with the CPU's bits to the CPU's; once for each device. Those that read weights follow as types are loaded.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a result has other bits; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub fn certify(self: &Arc<Self>) -> Result<CertifiedGpu, Error> {
        self.probe(Probe::Arithmetic)?;
        Ok(CertifiedGpu(self.clone()))
    }

    fn probe(self: &Arc<Self>, probe: Probe) -> Result<(), Error> {
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let difference = match probed.get(&probe) {
            Some(difference) => difference.clone(),
            None => {
                let difference = match probe {
                    Probe::Arithmetic => [operations::probe(self)?, kernels::probe(self)?].into_iter().flatten().next(),
                    Probe::Format(ty) => formats::probe(self, ty)?,
                };
                probed.insert(probe, difference.clone());
                difference
            }
        };
        match difference {
            None => Ok(()),
            Some(difference) => Err(Error::invalid(
                "gpu",
                format!(
                    "{} does not compute the processor's bits: {difference}; use it as a GPU that is not exact",
                    self.report().name
                ),
            )),
        }
    }
}

/// The first of these numbers that differs from the CPU's, if any does. One NaN is as good as another.
fn first_difference(what: impl Display, ours: &[f32], expected: &[f32]) -> Option<String> {
    if ours.len() != expected.len() {
        return Some(format!("{what} gives {} numbers, not {}", ours.len(), expected.len()));
    }
    let same =
        |(ours, expected): (&f32, &f32)| ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan();
    let at = ours.iter().zip(expected).position(|pair| !same(pair))?;
    let (ours, expected) = (ours[at], expected[at]);
    Some(format!(
        "{what} gives {ours:e} ({:08x}) at {at}, not {expected:e} ({:08x})",
        ours.to_bits(),
        expected.to_bits()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuChoice;

    #[test]
    fn a_number_with_other_bits_is_a_difference_and_another_nan_is_none() {
        let other_nan = f32::from_bits(f32::NAN.to_bits() + 1);
        assert_eq!(first_difference("a sum", &[1.0, f32::NAN], &[1.0, other_nan]), None);
        let found = first_difference("a sum", &[1.0, 0.0], &[1.0, -0.0]).unwrap();
        assert!(found.starts_with("a sum gives 0e0 (00000000) at 1, not -0e0"), "{found}");
        assert!(first_difference("a sum", &[1.0], &[]).is_some());
    }

    #[test]
    fn a_device_that_differed_once_stays_without_certificate() {
        let Ok(gpu) = Gpu::open_alone(GpuChoice::BestOrSoftware) else { return };
        let difference = "a sum gives 1, not 2".to_owned();
        gpu.probed.lock().unwrap().insert(Probe::Arithmetic, Some(difference.clone()));
        let error = gpu.certify().unwrap_err().to_string();
        assert!(error.contains(&difference) && error.contains(&gpu.report().name), "{error}");
    }
}
