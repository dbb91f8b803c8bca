//! Which device computes a model's layers, as people name it.

use std::str::FromStr;
use std::sync::Arc;

use pangea_client::Result;
use pangea_compute::gpu::{Gpu, GpuChoice};
use pangea_compute::{Engine, Pool};

use crate::compute_error;

/// A device by its name: `auto`, `cpu`, `gpu` or `gpu:NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best GPU that is not software, else the processor.
    Auto,
    /// The processor.
    #[default]
    Cpu,
    /// The best GPU that is not software, or the first one whose name contains this, software too.
    Gpu(Option<String>),
}

/// Which bits a GPU is to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum BitsChoice {
    /// Those of the processor, where the GPU is certified to
    #[default]
    Exact,
    /// Its own, which count within a tolerance
    Own,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<DeviceChoice, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(DeviceChoice::Auto),
            None if text == "cpu" => Ok(DeviceChoice::Cpu),
            None if text == "gpu" => Ok(DeviceChoice::Gpu(None)),
            Some(("gpu", name)) if !name.trim().is_empty() => Ok(DeviceChoice::Gpu(Some(name.trim().to_owned()))),
            _ => Err("a device is auto, cpu, gpu, or gpu: and a part of the GPU's name".to_owned()),
        }
    }
}

impl DeviceChoice {
    /// The engine of this device; what the processor computes is computed by `pool`.
    ///
    /// # Errors
    /// `InvalidInput` where no GPU is of that choice, with the names of those that there are, or why each is not used;
    /// `Unavailable` where its driver refuses.
    pub fn engine(&self, pool: Arc<Pool>) -> Result<Engine> {
        match (self.gpu().map(Gpu::open), self) {
            (Some(Ok(gpu)), _) => Ok(Engine::Gpu(gpu)),
            (None, _) | (Some(Err(_)), DeviceChoice::Auto) => Ok(Engine::Cpu(pool)),
            (Some(Err(error)), _) => Err(compute_error(error)),
        }
    }

    /// The GPU that is meant; `None` for the processor.
    pub(super) fn gpu(&self) -> Option<GpuChoice<'_>> {
        match self {
            DeviceChoice::Cpu => None,
            DeviceChoice::Auto | DeviceChoice::Gpu(None) => Some(GpuChoice::Best),
            DeviceChoice::Gpu(Some(name)) => Some(GpuChoice::Named(name)),
        }
    }
}

/// The name of the device that an engine computes on, for people and machines: `cpu`, or the GPU's name.
pub fn name_of(engine: &Engine) -> String {
    match engine {
        Engine::Cpu(_) => "cpu".to_owned(),
        Engine::Gpu(gpu) => gpu.report().name.clone(),
        Engine::ExactGpu(certified) => certified.gpu().report().name.clone(),
        Engine::Split(split) => format!("{} and cpu", split.gpu.gpu().report().name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_names_of_the_manual_and_no_others() {
        let named = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(named("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(named("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(named("gpu"), Ok(DeviceChoice::Gpu(None)));
        assert_eq!(named("gpu:RTX 4090"), Ok(DeviceChoice::Gpu(Some("RTX 4090".to_owned()))));
        for wrong in ["", "GPU", "gpu:", "gpu: ", "cpu:0", "cuda", "auto:x"] {
            let error = named(wrong).unwrap_err();
            assert!(error.contains("auto, cpu, gpu"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_what_is() {
        let pool = Arc::new(Pool::new(1).unwrap());
        let error = DeviceChoice::Gpu(Some("No Such Card".to_owned())).engine(pool.clone()).unwrap_err();
        assert_eq!(error.kind(), pangea_client::ErrorKind::InvalidInput);
        assert!(error.message().contains("No Such Card"), "{}", error.message());
        assert_eq!(name_of(&DeviceChoice::Cpu.engine(pool).unwrap()), "cpu");
    }
}
