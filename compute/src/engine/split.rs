//! Both as one engine, for layers that do not fit a GPU's memory: the first ones and the embedding on this processor, the last ones,
//! and the head with its large product, on the GPU. Activations pass once from one to the other.

use super::cpu::CpuStage;
use super::forward::{Input, Pass, PassSession};
use super::gpu::{Arithmetic, GpuStage};
use super::{Bits, Engine, LoadBytes};
use crate::gpu::{CertifiedGpu, Gpu};
use crate::kernel::page::PAGE_POSITIONS;
use crate::model::cache::SessionRows;
use crate::model::{CacheShape, ModelConfig, ModelFile, ModelPart, StagePlan};
use crate::{Error, Pool};
use std::sync::Arc;

/// A GPU, and which bits it computes.
#[derive(Clone, Debug)]
pub enum GpuBits {
    /// Its own, within rounding of the processor's.
    Own(Arc<Gpu>),
    /// The processor's.
    Exact(CertifiedGpu),
}

impl GpuBits {
    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        match self {
            GpuBits::Own(gpu) => gpu,
            GpuBits::Exact(certified) => certified.gpu(),
        }
    }

    /// The device alone as an engine.
    pub fn engine(&self) -> Engine {
        match self {
            GpuBits::Own(gpu) => Engine::Gpu(Arc::clone(gpu)),
            GpuBits::Exact(certified) => Engine::ExactGpu(certified.clone()),
        }
    }

    /// Holds what reads the weight types of a part to the processor, where its bits are to be the processor's.
    ///
    /// # Errors
    /// As [`StagePlan::of`]; [`Error::Invalid`] where a result has other bits; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub fn certify(&self, file: &ModelFile, part: &ModelPart) -> Result<(), Error> {
        let GpuBits::Exact(certified) = self else { return Ok(()) };
        StagePlan::of(file, part)?.matrices().try_for_each(|plan| certified.certify_format(plan.ty))
    }

    pub(super) fn load(&self, file: &ModelFile, part: &ModelPart, cache: &CacheShape) -> Result<GpuStage, Error> {
        self.certify(file, part)?;
        GpuStage::load(file, &StagePlan::of(file, part)?, cache, self.gpu(), self.arithmetic())
    }

    pub(super) fn load_bytes(&self, file: &ModelFile, part: &ModelPart) -> Result<LoadBytes, Error> {
        GpuStage::load_bytes(&StagePlan::of(file, part)?, self.arithmetic())
    }

    pub(super) fn bits(&self) -> Bits {
        self.arithmetic().bits()
    }

    fn arithmetic(&self) -> Arithmetic {
        match self {
            GpuBits::Own(_) => Arithmetic::Close,
            GpuBits::Exact(_) => Arithmetic::Exact,
        }
    }
}

/// A processor and a GPU that share a part's layers.
#[derive(Clone, Debug)]
pub struct SplitEngine {
    /// Computes the first layers.
    pub pool: Arc<Pool>,
    /// Computes the last ones.
    pub gpu: GpuBits,
    /// The number of layers on the GPU: at least one, and not all of the part.
    pub device_layers: usize,
}

/// The number of the last layers of `part` that fit `room` bytes of a GPU's memory, with sessions of `positions` positions together.
/// Reads the file's header only.
///
/// # Errors
/// As [`StagePlan::of`]; [`Error::Invalid`] where the GPU's kernels do not compute the last layer.
pub fn layers_that_fit(
    file: &ModelFile,
    part: &ModelPart,
    gpu: &GpuBits,
    positions: usize,
    room: u64,
) -> Result<usize, Error> {
    let pages = positions.div_ceil(PAGE_POSITIONS) as u64;
    let needs = |layers: usize| {
        let part = last(part, layers);
        let page = CacheShape::of(file.config(), part.layers.clone()).page_bytes();
        gpu.load_bytes(file, &part).map(|needs| needs.device.saturating_add(pages.saturating_mul(page)))
    };
    // The last layer says whether there are kernels at all; an earlier one of another kind ends what fits.
    needs(1.min(part.layers.len()))?;
    let fits = |layers: usize| needs(layers).is_ok_and(|bytes| bytes <= room);
    let (mut most, mut too_many) = (0, part.layers.len() + 1);
    while too_many - most > 1 {
        let middle = most.midpoint(too_many);
        if fits(middle) { most = middle } else { too_many = middle }
    }
    Ok(most)
}

/// The last `layers` layers of a part; the embedding belongs to all of them.
fn last(part: &ModelPart, layers: usize) -> ModelPart {
    let start = part.layers.end - layers.min(part.layers.len());
    ModelPart {
        layers: start..part.layers.end,
        embedding: part.embedding && start == part.layers.start,
        head: part.head,
    }
}

/// A stage on both.
pub(super) struct SplitStage {
    pub(super) cpu: CpuStage,
    pub(super) gpu: Arc<GpuStage>,
    pub(super) device_layers: usize,
}

impl SplitEngine {
    /// The number of layers on the GPU.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one of both would have none.
    pub(super) fn check(&self, part: &ModelPart) -> Result<usize, Error> {
        match self.device_layers {
            layers if (1..part.layers.len()).contains(&layers) => Ok(layers),
            layers => Err(Error::invalid(
                "engine",
                format!("{layers} of {} layers on the GPU leave nothing to split", part.layers.len()),
            )),
        }
    }

    /// The parts on the processor and on the GPU.
    fn parts(&self, part: &ModelPart) -> Result<[ModelPart; 2], Error> {
        let on_gpu = last(part, self.check(part)?);
        let on_cpu = ModelPart { layers: part.layers.start..on_gpu.layers.start, head: false, ..part.clone() };
        Ok([on_cpu, on_gpu])
    }

    pub(super) fn load(&self, file: &ModelFile, part: &ModelPart, cache: &CacheShape) -> Result<SplitStage, Error> {
        let [on_cpu, on_gpu] = self.parts(part)?;
        let gpu = self.gpu.load(file, &on_gpu, cache)?;
        let cpu = CpuStage::load(file, &StagePlan::of(file, &on_cpu)?, Arc::clone(&self.pool))?;
        Ok(SplitStage { cpu, gpu: Arc::new(gpu), device_layers: self.device_layers })
    }

    pub(super) fn load_bytes(&self, file: &ModelFile, part: &ModelPart) -> Result<LoadBytes, Error> {
        let [on_cpu, on_gpu] = self.parts(part)?;
        let cpu = CpuStage::load_bytes(file, &StagePlan::of(file, &on_cpu)?, self.pool.threads())?;
        let gpu = self.gpu.load_bytes(file, &on_gpu)?;
        // One after the other.
        Ok(LoadBytes { weights: cpu.weights, device: gpu.device, scratch: cpu.scratch.max(gpu.scratch) })
    }
}

impl SplitStage {
    pub(super) fn with_pool(&self, pool: Arc<Pool>) -> SplitStage {
        SplitStage { cpu: self.cpu.with_pool(pool), gpu: Arc::clone(&self.gpu), device_layers: self.device_layers }
    }

    pub(super) fn shares_weights(&self, other: &SplitStage) -> bool {
        self.cpu.shares_weights(&other.cpu) && Arc::ptr_eq(&self.gpu, &other.gpu)
    }

    /// Computes a pass of `layers` layers.
    ///
    /// # Errors
    /// Those of both.
    pub(super) fn run(
        &self,
        config: &ModelConfig,
        cache: &CacheShape,
        layers: usize,
        pass: Pass<'_>,
    ) -> Result<(), Error> {
        let on_cpu = layers - self.device_layers;
        let mut between = Vec::new();
        super::forward::zeros(&mut between, pass.rows * config.hidden_size)?;
        let (mut first, mut then) = (Vec::new(), Vec::new());
        for PassSession { rows, cache: SessionRows { position, pages, device_pages, state } } in pass.sessions {
            let none = std::array::from_fn(|_| Vec::new());
            first.push(PassSession {
                rows: rows.clone(),
                cache: SessionRows { position, pages, device_pages: none, state },
            });
            let none = std::array::from_fn(|_| Vec::new());
            then.push(PassSession { rows, cache: SessionRows { position, pages: none, device_pages, state: None } });
        }
        let traces = pass.trace.map(|trace| trace.split_at_mut(on_cpu * pass.rows * config.hidden_size));
        let (first_trace, then_trace) = traces.unzip();
        let on_processor = Pass {
            input: pass.input,
            sessions: first,
            rows: pass.rows,
            first_layer: pass.first_layer,
            has_head: false,
            logit_rows: &[],
            trace: first_trace,
            cancel: pass.cancel,
            logits: &mut [],
            activations: &mut between,
        };
        self.cpu.run(config, cache, on_processor)?;
        let on_device = Pass {
            input: Input::Activations(&between),
            sessions: then,
            rows: pass.rows,
            first_layer: pass.first_layer + on_cpu,
            has_head: pass.has_head,
            logit_rows: pass.logit_rows,
            trace: then_trace,
            cancel: pass.cancel,
            logits: pass.logits,
            activations: pass.activations,
        };
        self.gpu.run(config, on_device)
    }
}
