//! The CPU as an engine: packed weights, and the threads that compute them. Its bits are the same on every processor.

mod load;

use super::LoadBytes;
use super::forward::{Input, Pass};
use crate::kernel::page::KINDS;
use crate::kernel::quant::Matrix;
use crate::kernel::transformer::{
    self, Batch, ChunkState, Head, LayerWeights, ModelShape, Results, RowSource, SequenceChunk, Workspace,
};
use crate::model::cache::{CacheRows, Page, StateRows};
use crate::model::frequencies::Frequencies;
use crate::model::{CacheShape, ModelConfig, ModelFile, StagePlan};
use crate::{Error, Isa, Pool};
use std::sync::{Arc, Mutex, PoisonError};

/// Workspaces kept: one forward pass runs while another waits.
const KEPT_WORKSPACES: usize = 2;

/// The packed weights of a stage. Immutable.
struct CpuWeights {
    layers: Vec<LayerWeights>,
    embedding: Option<Matrix>,
    head: Option<Head>,
    /// Of each kind of layers.
    frequencies: [Frequencies; KINDS],
    memory_bytes: u64,
}

/// A stage on the CPU.
pub(super) struct CpuStage {
    weights: Arc<CpuWeights>,
    pool: Arc<Pool>,
    /// Workspaces of finished passes, for reuse.
    workspaces: Mutex<Vec<Workspace>>,
}

impl CpuStage {
    /// Reads, checks and packs the weights of a plan of `file`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for weights that are not finite; [`Error::OutOfMemory`].
    pub(super) fn load(file: &ModelFile, plan: &StagePlan, pool: Arc<Pool>) -> Result<CpuStage, Error> {
        let weights = Arc::new(load::load(file, plan, &pool)?);
        Ok(CpuStage { weights, pool, workspaces: Mutex::default() })
    }

    /// What [`CpuStage::load`] needs on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more bytes than there can be.
    pub(super) fn load_bytes(file: &ModelFile, plan: &StagePlan, threads: usize) -> Result<LoadBytes, Error> {
        load::load_bytes(file, plan, threads)
    }

    /// The same weights, computed by another pool.
    pub(super) fn with_pool(&self, pool: Arc<Pool>) -> CpuStage {
        CpuStage { weights: Arc::clone(&self.weights), pool, workspaces: Mutex::default() }
    }

    pub(super) fn shares_weights(&self, other: &CpuStage) -> bool {
        Arc::ptr_eq(&self.weights, &other.weights)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.weights.memory_bytes
    }

    pub(super) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The weight of the norm before the head; `None` for a stage without the head.
    pub(super) fn head_norm(&self) -> Option<&[f32]> {
        self.weights.head.as_ref().map(|head| head.norm.as_slice())
    }

    /// The instruction set of its kernels.
    pub(super) fn isa(&self) -> Isa {
        self.pool.isa()
    }

    /// Computes a pass.
    ///
    /// # Errors
    /// As [`transformer::run`].
    pub(super) fn run(&self, config: &ModelConfig, cache: &CacheShape, pass: Pass<'_>) -> Result<(), Error> {
        let weights = &*self.weights;
        let chunks: Vec<SequenceChunk> = pass
            .sessions
            .into_iter()
            .map(|session| SequenceChunk {
                rows: session.rows,
                position: session.cache.position,
                pages: session.cache.pages.map(|pages| pages.into_iter().map(start_of).collect()),
                state: session.cache.state.map(state_of),
            })
            .collect();
        let batch = Batch {
            shape: shape(config),
            page_shapes: cache.pages,
            state_shape: cache.states,
            layers: &weights.layers,
            first_layer: pass.first_layer,
            head: weights.head.as_ref().filter(|_| pass.has_head),
            frequencies: [&weights.frequencies[0].radians, &weights.frequencies[1].radians],
            magnitudes: [weights.frequencies[0].magnitude, weights.frequencies[1].magnitude],
            source: match (pass.input, &weights.embedding) {
                (Input::Tokens(tokens), Some(embedding)) => RowSource::Tokens(tokens, embedding),
                (Input::Tokens(_), None) => RowSource::Activations(&[]),
                (Input::Activations(rows), _) => RowSource::Activations(rows),
            },
            chunks: &chunks,
            rows: pass.rows,
            logit_rows: pass.logit_rows,
            trace: pass.trace,
            cancel: pass.cancel,
        };
        let results = Results { logits: pass.logits, activations: pass.activations };
        let mut workspace = self.workspaces().pop().unwrap_or_default();
        transformer::run(&self.pool, batch, &mut workspace, results)?;
        let mut kept = self.workspaces();
        if kept.len() < KEPT_WORKSPACES {
            kept.push(workspace);
        }
        Ok(())
    }

    fn workspaces(&self) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a page begins, as a kernel takes it: those that a pass writes are written by its threads, each its own rows.
fn start_of(page: CacheRows<'_>) -> *mut u16 {
    match page {
        CacheRows::Evicted => std::ptr::null_mut(),
        CacheRows::Read(page) => page.bytes().as_ptr().cast_mut().cast(),
        CacheRows::Write(page) => page.bytes_mut().as_mut_ptr().cast(),
    }
}

fn state_of(state: StateRows<'_>) -> ChunkState {
    let read = |page: Option<&Page>| page.map_or(std::ptr::null(), |page| page.bytes().as_ptr().cast());
    let write = |page: &mut Page| page.bytes_mut().as_mut_ptr().cast();
    ChunkState {
        from: read(state.from),
        base: state.base,
        inputs: read(state.inputs),
        to: write(state.to),
        kept: state.kept.map(|kept| kept.map(|(position, page)| (position, write(page)))),
        inputs_from: state.inputs_from,
        inputs_to: write(state.inputs_to),
    }
}

fn shape(config: &ModelConfig) -> ModelShape {
    ModelShape {
        hidden_size: config.hidden_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        gates_attention: config.architecture.has_delta_nets(),
        delta: config.delta,
        intermediate_size: config.experts.map_or(config.intermediate_size, |experts| experts.dense_intermediate_size),
        vocabulary: config.vocabulary,
        rope_dim: config.rope_dim,
        epsilon: config.epsilon,
        attention_scale: config.attention_scale,
        attention_soft_cap: config.attention_soft_cap,
        logit_soft_cap: config.logit_soft_cap,
        embedding_scale: config.embedding_scale,
        activation: config.architecture.activation(),
    }
}
