//! What computes the layers of a model: an engine has the weights of a stage in its own memory and form, and runs passes of
//! sessions through them. What a stage consists of is [`StagePlan`]'s, which positions a session
//! holds is [`Cache`]'s; both are the same for every engine.
//!
//! | file | owns |
//! |---|---|
//! | here | [`Engine`], [`Bits`], [`Stage`] |
//! | `forward` | what goes into a pass and comes out, checked and cut; caches are as before when anything fails |
//! | `embed` | embeddings of texts |
//! | `cpu` | the CPU: packed weights, the threads of a pool |
//! | `gpu` | a GPU: weights and pages in its memory, the kernels of a pass in order |
//! | `split` | the first layers on the CPU, the others on a GPU |
//!
//! Results of an exact engine have the same bits for any batch, chunking, number of threads, split and instruction set;
//! [`NUMERICS`] names the version of these bits.

mod cpu;
mod embed;
mod forward;
mod gpu;
mod split;

pub use embed::unit;
pub use forward::{Input, Logits, Observed, Output, Step};
pub use split::{GpuBits, SplitEngine, layers_that_fit};

use crate::gpu::{CertifiedGpu, Gpu};
use crate::model::cache::PageStore;
use crate::model::{Cache, CacheShape, ModelConfig, ModelFile, ModelPart, NUMERICS, PageBudget, StagePlan};
use crate::{Error, Pool};
use cpu::CpuStage;
use gpu::GpuStage;
use split::SplitStage;
use std::fmt;
use std::sync::Arc;

/// What computes layers.
#[derive(Clone, Debug)]
pub enum Engine {
    /// This processor, with the threads of a pool.
    Cpu(Arc<Pool>),
    /// A GPU, whose results agree with the processor's within rounding.
    Gpu(Arc<Gpu>),
    /// A GPU that computes the processor's bits, with floats in integers.
    ExactGpu(CertifiedGpu),
    /// The first layers of a part on this processor, the others on a GPU.
    Split(SplitEngine),
}

/// Which bits the results of an engine have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// The same as those of every engine with this version of the numerics: results are compared by hash.
    Exact(u32),
    /// Others, within what this profile allows: results are compared by value.
    Tolerance(&'static str),
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bits::Exact(numerics) => write!(f, "exact({numerics})"),
            Bits::Tolerance(profile) => write!(f, "tolerance({profile})"),
        }
    }
}

/// Memory in bytes that loading a stage takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadBytes {
    /// The weights in this machine's memory, which stay.
    pub weights: u64,
    /// The weights in a device's memory, which stay: [`Stage::device_bytes`].
    pub device: u64,
    /// What is in this machine's memory beside them until all are loaded.
    pub scratch: u64,
}

impl Engine {
    /// Which bits its results have.
    pub fn bits(&self) -> Bits {
        match self {
            Engine::Cpu(_) | Engine::ExactGpu(_) => Bits::Exact(NUMERICS),
            Engine::Gpu(_) => Bits::Tolerance(gpu::PROFILE),
            Engine::Split(split) => split.gpu.bits(),
        }
    }

    /// The number of this processor's threads that compute.
    pub fn threads(&self) -> usize {
        match self {
            Engine::Cpu(pool) => pool.threads(),
            Engine::Gpu(_) | Engine::ExactGpu(_) => 1,
            Engine::Split(split) => split.pool.threads(),
        }
    }

    /// The number of a part's layers that a device computes: its last ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a part that this engine cannot share between its devices.
    pub fn device_layers(&self, part: &ModelPart) -> Result<usize, Error> {
        match self {
            Engine::Cpu(_) => Ok(0),
            Engine::Gpu(_) | Engine::ExactGpu(_) => Ok(part.layers.len()),
            Engine::Split(split) => split.check(part),
        }
    }

    /// What sessions of a part take on this engine.
    ///
    /// # Errors
    /// As [`Engine::device_layers`].
    pub fn cache_shape(&self, config: &ModelConfig, part: &ModelPart) -> Result<CacheShape, Error> {
        Ok(CacheShape::split(config, part.layers.clone(), self.device_layers(part)?))
    }

    /// Loads `part` of a model.
    ///
    /// # Errors
    /// As [`StagePlan::of`]; [`Error::Invalid`] for weights that are not finite, and for layers that this engine does not compute;
    /// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub fn load(&self, file: &ModelFile, part: ModelPart) -> Result<Stage, Error> {
        let config = file.config().clone();
        let cache_shape = self.cache_shape(&config, &part)?;
        let loaded = match self {
            Engine::Cpu(pool) => Loaded::Cpu(CpuStage::load(file, &StagePlan::of(file, &part)?, Arc::clone(pool))?),
            Engine::Gpu(gpu) => Loaded::Gpu(Arc::new(GpuBits::Own(Arc::clone(gpu)).load(file, &part, &cache_shape)?)),
            Engine::ExactGpu(gpu) => {
                Loaded::Gpu(Arc::new(GpuBits::Exact(gpu.clone()).load(file, &part, &cache_shape)?))
            }
            Engine::Split(split) => Loaded::Split(split.load(file, &part, &cache_shape)?),
        };
        Ok(Stage { config, part, cache_shape, loaded })
    }

    /// What [`Engine::load`] needs for `part`. Reads the file's header only.
    ///
    /// # Errors
    /// As [`StagePlan::of`].
    pub fn load_bytes(&self, file: &ModelFile, part: &ModelPart) -> Result<LoadBytes, Error> {
        match self {
            Engine::Cpu(pool) => CpuStage::load_bytes(file, &StagePlan::of(file, part)?, pool.threads()),
            Engine::Gpu(gpu) => GpuBits::Own(Arc::clone(gpu)).load_bytes(file, part),
            Engine::ExactGpu(gpu) => GpuBits::Exact(gpu.clone()).load_bytes(file, part),
            Engine::Split(split) => split.load_bytes(file, part),
        }
    }
}

impl From<Pool> for Engine {
    /// This processor, with the threads of the pool.
    fn from(pool: Pool) -> Engine {
        Engine::Cpu(Arc::new(pool))
    }
}

/// A part of a model on an engine, ready to run. Immutable; sessions keep their state in a [`Cache`].
pub struct Stage {
    config: ModelConfig,
    part: ModelPart,
    cache_shape: CacheShape,
    loaded: Loaded,
}

/// The weights of a stage, as its engine has them.
enum Loaded {
    Cpu(CpuStage),
    Gpu(Arc<GpuStage>),
    Split(SplitStage),
}

impl Stage {
    /// The same weights; what this processor computes of them is computed with the threads of another pool.
    pub fn with_pool(&self, pool: Arc<Pool>) -> Stage {
        let loaded = match &self.loaded {
            Loaded::Cpu(stage) => Loaded::Cpu(stage.with_pool(pool)),
            Loaded::Gpu(stage) => Loaded::Gpu(Arc::clone(stage)),
            Loaded::Split(stage) => Loaded::Split(stage.with_pool(pool)),
        };
        Stage { config: self.config.clone(), part: self.part.clone(), cache_shape: self.cache_shape, loaded }
    }

    /// Whether both are computed from the same weights in memory.
    pub fn shares_weights(&self, other: &Stage) -> bool {
        match (&self.loaded, &other.loaded) {
            (Loaded::Cpu(one), Loaded::Cpu(other)) => one.shares_weights(other),
            (Loaded::Gpu(one), Loaded::Gpu(other)) => Arc::ptr_eq(one, other),
            (Loaded::Split(one), Loaded::Split(other)) => one.shares_weights(other),
            _ => false,
        }
    }

    /// Which bits its results have.
    pub fn bits(&self) -> Bits {
        match &self.loaded {
            Loaded::Cpu(_) => Bits::Exact(NUMERICS),
            Loaded::Gpu(stage) => stage.bits(),
            Loaded::Split(stage) => stage.gpu.bits(),
        }
    }

    /// The number of this processor's threads that compute.
    pub fn threads(&self) -> usize {
        match &self.loaded {
            Loaded::Cpu(stage) => stage.threads(),
            Loaded::Gpu(_) => 1,
            Loaded::Split(stage) => stage.cpu.threads(),
        }
    }

    /// Whether it is the whole model.
    pub fn is_whole(&self) -> bool {
        self.part == ModelPart::whole(&self.config)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The part of the model that is loaded.
    pub fn part(&self) -> &ModelPart {
        &self.part
    }

    /// Bytes of the weights in memory, a device's included.
    pub fn memory_bytes(&self) -> u64 {
        match &self.loaded {
            Loaded::Cpu(stage) => stage.memory_bytes(),
            Loaded::Gpu(stage) => stage.memory_bytes(),
            Loaded::Split(stage) => stage.cpu.memory_bytes() + stage.gpu.memory_bytes(),
        }
    }

    /// Those of them in a device's memory.
    pub fn device_bytes(&self) -> u64 {
        self.device().map_or(0, GpuStage::memory_bytes)
    }

    /// The number of its layers that a device computes: its last ones.
    pub fn device_layers(&self) -> usize {
        match &self.loaded {
            Loaded::Cpu(_) => 0,
            Loaded::Gpu(_) => self.part.layers.len(),
            Loaded::Split(stage) => stage.device_layers,
        }
    }

    /// Why its device cannot compute it any more: the device was lost, or its memory did not suffice for a pass. `None` where it
    /// can, and where there is none. Caches are of no use then; the weights are to be loaded again, on another engine.
    pub fn device_failure(&self) -> Option<String> {
        self.device().and_then(GpuStage::failure)
    }

    /// Ends its device, as a reset by its driver would: for tests of what comes after.
    pub fn lose_device(&self) {
        if let Some(stage) = self.device() {
            stage.lose();
        }
    }

    fn device(&self) -> Option<&GpuStage> {
        match &self.loaded {
            Loaded::Cpu(_) => None,
            Loaded::Gpu(stage) => Some(stage),
            Loaded::Split(stage) => Some(&stage.gpu),
        }
    }

    /// What sessions take.
    pub fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    /// A budget of `max_bytes` for sessions of this stage. Those of layers on a device lie in its memory:
    /// [`CacheShape::device_bytes_of`].
    pub fn page_budget(&self, max_bytes: u64) -> PageBudget {
        match self.store() {
            None => PageBudget::new(max_bytes),
            Some(store) => {
                PageBudget::with_store(max_bytes, self.cache_shape.device_bytes_of(max_bytes), Arc::clone(store))
            }
        }
    }

    /// Where the pages of its layers on a device lie.
    fn store(&self) -> Option<&Arc<dyn PageStore>> {
        self.device().map(GpuStage::store)
    }

    /// An empty cache for a session, whose memory is taken from the budget, one of [`Stage::page_budget`].
    pub fn cache(&self, budget: &PageBudget) -> Cache {
        Cache::new(self.cache_shape, budget)
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.memory_bytes();
        write!(f, "Stage({}, layers {:?}, {bytes} bytes, {})", self.config.name, self.part.layers, self.bits())
    }
}
