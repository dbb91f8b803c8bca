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
//!
//! Results of an exact engine have the same bits for any batch, chunking, number of threads, split and instruction set;
//! [`NUMERICS`] names the version of these bits.

mod cpu;
mod embed;
mod forward;

pub use embed::unit;
pub use forward::{Input, Logits, Observed, Output, Step};

use crate::model::{Cache, CacheShape, ModelConfig, ModelFile, ModelPart, NUMERICS, PageBudget, StagePlan};
use crate::{Error, Pool};
use cpu::CpuStage;
use std::fmt;
use std::sync::Arc;

/// What computes layers.
#[derive(Clone, Debug)]
pub enum Engine {
    /// This processor, with the threads of a pool.
    Cpu(Arc<Pool>),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBytes {
    /// The weights, which stay: [`Stage::memory_bytes`].
    pub weights: u64,
    /// What is in memory beside them until all are loaded.
    pub scratch: u64,
}

impl Engine {
    /// Which bits its results have.
    pub fn bits(&self) -> Bits {
        match self {
            Engine::Cpu(_) => Bits::Exact(NUMERICS),
        }
    }

    /// The number of threads that compute.
    pub fn threads(&self) -> usize {
        match self {
            Engine::Cpu(pool) => pool.threads(),
        }
    }

    /// Loads `part` of a model.
    ///
    /// # Errors
    /// As [`StagePlan::of`]; [`Error::Invalid`] for weights that are not finite; [`Error::OutOfMemory`].
    pub fn load(&self, file: &ModelFile, part: ModelPart) -> Result<Stage, Error> {
        let plan = StagePlan::of(file, &part)?;
        let loaded = match self {
            Engine::Cpu(pool) => Loaded::Cpu(CpuStage::load(file, &plan, Arc::clone(pool))?),
        };
        let config = file.config().clone();
        Ok(Stage { cache_shape: CacheShape::of(&config, part.layers.clone()), config, part, loaded })
    }

    /// What [`Engine::load`] needs for `part`. Reads the file's header only.
    ///
    /// # Errors
    /// As [`StagePlan::of`].
    pub fn load_bytes(&self, file: &ModelFile, part: &ModelPart) -> Result<LoadBytes, Error> {
        let plan = StagePlan::of(file, part)?;
        match self {
            Engine::Cpu(pool) => CpuStage::load_bytes(file, &plan, pool.threads()),
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
}

impl Stage {
    /// The same weights, computed with the threads of another pool.
    pub fn with_pool(&self, pool: Arc<Pool>) -> Stage {
        let loaded = match &self.loaded {
            Loaded::Cpu(stage) => Loaded::Cpu(stage.with_pool(pool)),
        };
        Stage { config: self.config.clone(), part: self.part.clone(), cache_shape: self.cache_shape, loaded }
    }

    /// Whether both are computed from the same weights in memory.
    pub fn shares_weights(&self, other: &Stage) -> bool {
        match (&self.loaded, &other.loaded) {
            (Loaded::Cpu(one), Loaded::Cpu(other)) => one.shares_weights(other),
        }
    }

    /// Which bits its results have.
    pub fn bits(&self) -> Bits {
        match &self.loaded {
            Loaded::Cpu(_) => Bits::Exact(NUMERICS),
        }
    }

    /// The number of threads that compute.
    pub fn threads(&self) -> usize {
        match &self.loaded {
            Loaded::Cpu(stage) => stage.threads(),
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

    /// Bytes of the weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        match &self.loaded {
            Loaded::Cpu(stage) => stage.memory_bytes(),
        }
    }

    /// What sessions take.
    pub fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    /// An empty cache for a session, whose memory is taken from the budget.
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
