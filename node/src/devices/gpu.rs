//! The GPU that computes this node's layers, chosen once when the node starts. One that is lost is not used again before the node
//! is started again: what ended it may end it once more, and sessions go on on the processor.

use std::sync::{Arc, OnceLock};

use pangea_client::{DeviceStatus, Result};
use pangea_compute::engine::{GpuBits, SplitEngine, layers_that_fit};
use pangea_compute::gpu::{AdapterReport, CertifiedGpu, Gpu, adapters};
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Engine, Pool};
use pangea_units::ByteSize;

use super::Devices;
use super::choice::{BitsChoice, DeviceChoice};
use crate::compute_error;

/// The share of a GPU's own memory that this node takes, in sixteenths: screens and drivers need some.
const SIXTEENTHS: u64 = 14;

/// A GPU that computes layers.
pub struct NodeGpu {
    gpu: Arc<Gpu>,
    /// The same as it computes the processor's bits, if it is to and does.
    certified: Option<CertifiedGpu>,
    /// Accounts of the memory that layers on it lie in.
    memory: Devices,
    /// Whether that memory is this machine's, whose accounts count it too.
    shares_memory: bool,
    /// Why it is not used any more.
    failure: OnceLock<String>,
}

impl NodeGpu {
    /// The GPU of that choice; `None` for the processor, and where `auto` finds none. `max_memory`: bytes that its layers may take;
    /// `host_memory`: those that this node may take of the machine's memory.
    ///
    /// # Errors
    /// `InvalidInput` where no GPU is of that choice, with the reason of each; `Unavailable` where its driver refuses.
    pub(super) fn open(
        choice: &DeviceChoice,
        max_memory: Option<u64>,
        host_memory: u64,
        bits: BitsChoice,
    ) -> Result<Option<NodeGpu>> {
        let gpu = match choice.gpu().map(Gpu::open) {
            None => return Ok(None),
            Some(Ok(gpu)) => gpu,
            Some(Err(why)) if *choice == DeviceChoice::Auto => {
                tracing::info!(event = "no_gpu", %why, "No GPU computes layers: {why}");
                return Ok(None);
            }
            Some(Err(error)) => return Err(compute_error(error)),
        };
        let own = gpu.report().memory_bytes;
        let (there, usual) = own.map_or((host_memory, host_memory), |own| (own, own / 16 * SIXTEENTHS));
        let memory = Devices::new(max_memory.unwrap_or(usual).min(there), 0);
        let certified = if bits == BitsChoice::Exact { certified(&gpu) } else { None };
        Ok(Some(NodeGpu { gpu, certified, memory, shares_memory: own.is_none(), failure: OnceLock::new() }))
    }

    /// Whether its results have the processor's bits, for layers that it computes so.
    pub fn is_exact(&self) -> bool {
        self.certified.is_some()
    }

    /// What it is.
    pub fn report(&self) -> &AdapterReport {
        self.gpu.report()
    }

    /// Why it is not used any more.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Gives it up for good; returns whether it was used until now.
    pub(super) fn give_up(&self, why: &str) -> bool {
        let was_used = self.failure.set(why.to_owned()).is_ok();
        if was_used {
            let name = &self.report().name;
            tracing::warn!(
                event = "gpu_given_up",
                gpu = name,
                why,
                "{name} is not used any more: {why}; layers are computed by the processor until this node is started again"
            );
        }
        was_used
    }

    /// The GPU, as long as it is used.
    pub fn works(&self) -> Option<&Arc<Gpu>> {
        self.failure.get().is_none().then_some(&self.gpu)
    }

    /// Bytes of memory of its own that its layers may take.
    pub(super) fn own_bytes(&self) -> u64 {
        if self.shares_memory { 0 } else { self.memory.limit() }
    }

    /// The accounts that layers on it are leased from; `host`: those of this machine's memory.
    pub(super) fn accounts<'a>(&'a self, host: &'a Devices) -> Vec<&'a Devices> {
        if self.shares_memory { vec![&self.memory, host] } else { vec![&self.memory] }
    }

    /// The engine for a part of a model of which `room` bytes of the GPU's memory are free for weights and for sessions of
    /// `positions` positions together: all layers, the last ones that fit, or none.
    pub(super) fn engine(
        &self,
        file: &ModelFile,
        part: &ModelPart,
        pool: Arc<Pool>,
        positions: usize,
        room: u64,
    ) -> Engine {
        let Some(gpu) = self.works() else { return Engine::Cpu(pool) };
        let all = part.layers.len();
        let (name, model) = (&self.report().name, &file.config().name);
        let fitting = |gpu: &GpuBits| {
            gpu.certify(file, part)?;
            layers_that_fit(file, part, gpu, positions, room)
        };
        let exact = self.certified.clone().map(GpuBits::Exact).and_then(|gpu| match fitting(&gpu) {
            Ok(fit) => Some((gpu, fit)),
            Err(why) => {
                tracing::info!(event = "gpu_not_exact", gpu = name, model, %why, "{name} computes {model} with bits of its own: {why}");
                None
            }
        });
        let own = || {
            let gpu = GpuBits::Own(Arc::clone(gpu));
            fitting(&gpu).map(|fit| (gpu, fit))
        };
        let (gpu, fit) = match exact.map_or_else(own, Ok) {
            Ok(found) => found,
            Err(why) => {
                tracing::info!(event = "gpu_not_used", gpu = name, model, %why, "{name} does not compute {model}: {why}");
                return Engine::Cpu(pool);
            }
        };
        if fit < all {
            let room = ByteSize(room);
            tracing::info!(
                event = "gpu_too_small",
                gpu = name,
                model,
                layers = fit,
                "{name} computes {fit} of {all} layers of {model}: more do not fit its {room}"
            );
        }
        match fit {
            0 => Engine::Cpu(pool),
            fit if fit == all => gpu.engine(),
            device_layers => Engine::Split(SplitEngine { pool, gpu, device_layers }),
        }
    }

    /// All adapters of this machine, and what this node does with each.
    pub(super) fn show(&self) -> Vec<DeviceStatus> {
        let own = self.report();
        let all = adapters().into_iter().map(|adapter| match adapter == *own {
            true => DeviceStatus {
                used: self.failure().is_none(),
                why: self.failure().unwrap_or_default().to_owned(),
                memory_used_bytes: self.memory.held(),
                memory_limit_bytes: self.memory.limit(),
                ..shown(&adapter)
            },
            false => DeviceStatus {
                why: adapter.unused_because.clone().unwrap_or_else(|| format!("{} is used", own.name)),
                ..shown(&adapter)
            },
        });
        all.collect()
    }
}

/// The GPU as it computes the processor's bits; `None` where it does not, which is logged.
fn certified(gpu: &Arc<Gpu>) -> Option<CertifiedGpu> {
    match gpu.certify() {
        Ok(certified) => Some(certified),
        Err(why) => {
            let name = &gpu.report().name;
            tracing::warn!(event = "gpu_not_certified", gpu = name, %why, "{name} computes with bits of its own: {why}");
            None
        }
    }
}

/// An adapter as people and machines see it.
fn shown(adapter: &AdapterReport) -> DeviceStatus {
    DeviceStatus {
        name: adapter.name.clone(),
        kind: adapter.kind.to_string(),
        backend: adapter.backend.clone(),
        driver: adapter.driver.clone(),
        ..DeviceStatus::default()
    }
}
