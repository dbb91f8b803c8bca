//! A GPU as an engine, with one of two arithmetics. Close: sums are in f32 in an order of the kernels' own, and activations are not rounded
//! to 8 bits, so results agree with the CPU's within rounding. Exact: every operation is the CPU's, in its order, with floats in
//! integers, so results are the CPU's bit for bit. Activations stay on the GPU from a stage's input to its output; a pass is one submission,
//! unless that would take too long.

mod load;
mod pages;

use super::forward::{Input, Pass, PassSession};
use super::{Bits, LoadBytes};
use crate::Error;
use crate::gpu::{
    AttentionShape, Commands, Gpu, GpuActivation, GpuBuffer, GpuChosen, GpuGating, GpuMatrix, GpuPlaces, GpuRows,
    GpuSequence, QueryKeyValue, ReadSlot, Rotation, Store,
};
use crate::kernel::float::activation::Activation;
use crate::kernel::float::rope;
use crate::kernel::page::{KINDS, kind_of};
use crate::kernel::transformer::{Fault, Step};
use crate::model::cache::{CacheRows, PageStore};
use crate::model::frequencies::Frequencies;
use crate::model::{CacheShape, ModelConfig, ModelFile, NUMERICS, StagePlan};
use pages::GpuPages;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The profile by which results of GPUs are compared with others.
pub(super) const PROFILE: &str = "canonical-grid/1";

/// How a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Within rounding of the CPU's results.
    Close,
    /// With the CPU's bits.
    Exact,
}

impl Arithmetic {
    /// Which bits it gives.
    pub(super) fn bits(self) -> Bits {
        match self {
            Arithmetic::Close => Bits::Tolerance(PROFILE),
            Arithmetic::Exact => Bits::Exact(NUMERICS),
        }
    }
}

/// Rows whose logits are computed together.
const LOGIT_ROWS: usize = 32;

/// Workspaces kept: one forward pass runs while another waits.
const KEPT_WORKSPACES: usize = 2;

/// The weights of a stage on a GPU. Immutable.
struct GpuWeights {
    layers: Vec<GpuLayer>,
    embedding: Option<Arc<GpuMatrix>>,
    head: Option<GpuHead>,
    /// Of each kind of layers.
    frequencies: [Frequencies; KINDS],
    memory_bytes: u64,
}

struct GpuLayer {
    attention_norm: GpuBuffer,
    attention: GpuAttention,
    post_attention_norm: Option<GpuBuffer>,
    ffn_norm: GpuBuffer,
    feed_forward: GpuFeedForward,
    post_ffn_norm: Option<GpuBuffer>,
}

struct GpuAttention {
    q: GpuMatrix,
    k: GpuMatrix,
    v: GpuMatrix,
    o: GpuMatrix,
    q_bias: Option<GpuBuffer>,
    k_bias: Option<GpuBuffer>,
    v_bias: Option<GpuBuffer>,
    o_bias: Option<GpuBuffer>,
    /// `[2, head_dim]`: of query heads, of key heads.
    norms: Option<GpuBuffer>,
    sinks: Option<GpuBuffer>,
    window: usize,
    /// The layer's place among those of its kind.
    page_layer: usize,
}

enum GpuFeedForward {
    Dense { gate: GpuMatrix, up: GpuMatrix, down: GpuMatrix },
    Experts(Box<GpuExperts>),
}

struct GpuExperts {
    used: usize,
    /// Experts that compute every row; they are the last ones.
    shared: usize,
    /// All experts.
    count: usize,
    router: GpuMatrix,
    correction: Option<GpuBuffer>,
    /// Factor of the weights where the scores are sigmoids.
    scale: Option<f32>,
    /// Of all experts, one after the other.
    gate: GpuMatrix,
    up: GpuMatrix,
    down: GpuMatrix,
    shared_gate: Option<GpuBuffer>,
    /// Router, gate, up, down.
    biases: Option<[GpuBuffer; 4]>,
}

struct GpuHead {
    norm: GpuBuffer,
    host_norm: Vec<f32>,
    output: Arc<GpuMatrix>,
}

/// A stage on a GPU.
pub(super) struct GpuStage {
    gpu: Arc<Gpu>,
    arithmetic: Arithmetic,
    weights: GpuWeights,
    pages: Arc<GpuPages>,
    store: Arc<dyn PageStore>,
    /// Workspaces of finished passes, for reuse.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Buffers of a pass. Lengths: hidden size h, query heads q with their gates, key-value heads kv.
struct Workspace {
    /// Rows that they have room for.
    rows: usize,
    /// `[rows, h]`: residuals.
    x: GpuRows,
    /// `[rows, h]`
    normed: GpuRows,
    /// `[rows, h]`: the addend of the residual, where a norm comes before.
    delta: GpuRows,
    q: GpuRows,
    k: GpuRows,
    v: GpuRows,
    /// `[rows, q without gates]`
    attended: GpuRows,
    dense: Option<[GpuRows; 2]>,
    experts: Option<ExpertWorkspace>,
}

/// Buffers of mixtures of experts.
struct ExpertWorkspace {
    /// `[rows, experts]`
    logits: GpuRows,
    chosen: GpuChosen,
    /// `[slots, f]`
    gate: GpuRows,
    up: GpuRows,
    /// `[slots, h]`
    results: GpuRows,
}

impl GpuStage {
    /// Reads, checks and uploads the weights of a plan of `file`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for weights that are not finite, and for layers that the kernels do not compute;
    /// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub(super) fn load(
        file: &ModelFile,
        plan: &StagePlan,
        cache: &CacheShape,
        gpu: &Arc<Gpu>,
        arithmetic: Arithmetic,
    ) -> Result<GpuStage, Error> {
        let weights = load::load(file, plan, gpu, arithmetic)?;
        let pages = Arc::new(GpuPages::new(gpu, cache));
        let store = Arc::clone(&pages) as Arc<dyn PageStore>;
        Ok(GpuStage { gpu: Arc::clone(gpu), arithmetic, weights, pages, store, workspaces: Mutex::default() })
    }

    /// What [`GpuStage::load`] needs.
    ///
    /// # Errors
    /// As [`GpuStage::load`], as far as the plan shows them.
    pub(super) fn load_bytes(plan: &StagePlan, arithmetic: Arithmetic) -> Result<LoadBytes, Error> {
        load::load_bytes(plan, arithmetic)
    }

    /// Which bits its results have.
    pub(super) fn bits(&self) -> Bits {
        self.arithmetic.bits()
    }

    fn commands(&self) -> Commands {
        match self.arithmetic {
            Arithmetic::Close => self.gpu.commands(),
            Arithmetic::Exact => self.gpu.exact_commands(),
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.weights.memory_bytes
    }

    /// Why it cannot compute any more.
    pub(super) fn failure(&self) -> Option<String> {
        self.pages.failure().or_else(|| self.gpu.check().err().map(|error| error.to_string()))
    }

    /// Ends the device.
    pub(super) fn lose(&self) {
        self.gpu.lose();
    }

    /// Where the pages of its sessions lie.
    pub(super) fn store(&self) -> &Arc<dyn PageStore> {
        &self.store
    }

    /// The weight of the norm before the head; `None` for a stage without the head.
    pub(super) fn head_norm(&self) -> Option<&[f32]> {
        self.weights.head.as_ref().map(|head| head.host_norm.as_slice())
    }

    /// Computes a pass.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the first step that gives a value that is NaN, infinite or too large for the cache;
    /// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub(super) fn run(&self, config: &ModelConfig, pass: Pass<'_>) -> Result<(), Error> {
        self.pages.noted(self.run_in_workspace(config, pass))
    }

    fn run_in_workspace(&self, config: &ModelConfig, pass: Pass<'_>) -> Result<(), Error> {
        let mut workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = workspaces.iter().position(|workspace| workspace.rows >= pass.rows);
        let kept = kept.map(|at| workspaces.swap_remove(at));
        drop(workspaces);
        let workspace = match kept {
            Some(workspace) => workspace,
            None => self.workspace(config, pass.rows)?,
        };
        self.compute(config, pass, &workspace)?;
        let mut workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        workspaces.push(workspace);
        if workspaces.len() > KEPT_WORKSPACES {
            workspaces.sort_unstable_by_key(|workspace| workspace.rows);
            workspaces.remove(0);
        }
        Ok(())
    }

    fn workspace(&self, config: &ModelConfig, rows: usize) -> Result<Workspace, Error> {
        // One row is the most common pass, and any number of others are about as dear.
        let rows = if rows == 1 { 1 } else { rows.next_power_of_two().max(16) };
        let gpu = &self.gpu;
        let new = |rows: usize, cols: usize| GpuRows::new(gpu, rows, cols, "activations on the GPU");
        let hidden = config.hidden_size;
        let dense = self.weights.layers.iter().find_map(|layer| match &layer.feed_forward {
            GpuFeedForward::Dense { gate, .. } => Some(gate.rows()),
            GpuFeedForward::Experts(_) => None,
        });
        let experts = self.weights.layers.iter().find_map(|layer| match &layer.feed_forward {
            GpuFeedForward::Dense { .. } => None,
            GpuFeedForward::Experts(experts) => Some(experts),
        });
        let experts = experts.map(|experts| {
            let slots = rows * (experts.used + experts.shared);
            let f = experts.gate.rows() / experts.count;
            Ok::<_, Error>(ExpertWorkspace {
                logits: new(rows, experts.router.rows())?,
                chosen: GpuChosen::new(gpu, rows, experts.router.rows(), experts.used, experts.shared)?,
                gate: new(slots, f)?,
                up: new(slots, f)?,
                results: new(slots, hidden)?,
            })
        });
        let query = self.attention_shape(config, usize::MAX).query_cols();
        Ok(Workspace {
            rows,
            x: new(rows, hidden)?,
            normed: new(rows, hidden)?,
            delta: new(rows, hidden)?,
            q: new(rows, query)?,
            k: new(rows, config.kv_len())?,
            v: new(rows, config.kv_len())?,
            attended: new(rows, config.query_len())?,
            dense: dense.map(|f| Ok::<_, Error>([new(rows, f)?, new(rows, f)?])).transpose()?,
            experts: experts.transpose()?,
        })
    }

    fn attention_shape(&self, config: &ModelConfig, window: usize) -> AttentionShape {
        AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            has_gates: config.architecture.has_delta_nets(),
            window,
            soft_cap: config.attention_soft_cap,
        }
    }

    fn compute(&self, config: &ModelConfig, pass: Pass<'_>, workspace: &Workspace) -> Result<(), Error> {
        let (gpu, rows) = (&self.gpu, pass.rows);
        let pages = pass.sessions.iter().map(places_of).collect::<Result<Vec<_>, Error>>()?;
        // Attention of one window has the same places in all layers.
        let mut windows: BTreeMap<usize, GpuPlaces> = BTreeMap::new();
        for layer in &self.weights.layers {
            let window = layer.attention.window;
            if windows.contains_key(&window) {
                continue;
            }
            let sequences = pass.sessions.iter().zip(&pages).map(|(session, pages)| GpuSequence {
                rows: session.rows.clone(),
                position: session.cache.position,
                pages: &pages[kind_of(window)],
            });
            let sequences: Vec<_> = sequences.collect();
            windows.insert(window, GpuPlaces::new(gpu, self.attention_shape(config, window), &sequences)?);
        }
        let angles = self.angles(config, &pass.sessions)?;
        let caches: [Vec<GpuBuffer>; KINDS] = std::array::from_fn(|kind| self.pages.buffers(kind));

        let mut commands = self.commands();
        match (pass.input, &self.weights.embedding) {
            (Input::Tokens(tokens), Some(embedding)) => {
                let tokens = GpuBuffer::of(gpu, tokens, "tokens on the GPU")?;
                let code = code(0, Step::Embeddings);
                commands.embed(embedding, &tokens, rows, config.embedding_scale, &workspace.x, code)?;
            }
            (Input::Activations(values), _) => {
                if !values.iter().all(|value| value.is_finite()) {
                    return Err(Step::ReceivedActivations.error(pass.first_layer, Fault::NotFinite));
                }
                workspace.x.write(gpu, 0, values)?;
            }
            (Input::Tokens(_), None) => {}
        }
        let trace = match &pass.trace {
            Some(_) => {
                let all = self.weights.layers.len().max(1) * rows;
                Some(GpuRows::new(gpu, all, config.hidden_size, "observed activations on the GPU")?)
            }
            None => None,
        };
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let kind = kind_of(layer.attention.window);
            let Some((places, cache)) =
                windows.get(&layer.attention.window).zip(caches[kind].get(layer.attention.page_layer))
            else {
                return Err(Error::invalid("gpu", "a layer has no pages"));
            };
            self.attention(config, &mut commands, workspace, index, places, &angles[kind], cache)?;
            self.feed_forward(config, &mut commands, workspace, index, rows)?;
            if let Some(trace) = &trace {
                commands.copy_rows(&workspace.x, 0, trace, index * rows, rows)?;
            }
        }
        let traced = trace.as_ref().map(|trace| trace.read(&mut commands, 0..trace.rows())).transpose()?;
        let mut logits = Vec::new();
        let given = match self.weights.head.as_ref().filter(|_| pass.has_head) {
            None => Some(workspace.x.read(&mut commands, 0..rows)?),
            Some(head) => {
                for wanted in pass.logit_rows.chunks(LOGIT_ROWS) {
                    logits.push(self.logits(config, &mut commands, workspace, head, wanted)?);
                }
                None
            }
        };
        let readback = commands.finish()?;
        check(readback.fault, pass.first_layer)?;
        if let Some(slot) = given {
            pass.activations.copy_from_slice(&workspace.x.elements(&readback, slot));
        }
        for ((logits, slot), to) in logits.iter().zip(pass.logits.chunks_mut(LOGIT_ROWS * config.vocabulary)) {
            to.copy_from_slice(&logits.elements(&readback, *slot));
        }
        if let (Some(to), Some(trace), Some(slot)) = (pass.trace, &trace, traced) {
            to.copy_from_slice(&trace.elements(&readback, slot));
        }
        Ok(())
    }

    /// The logits of these rows of a pass, at most [`LOGIT_ROWS`], and where they are read.
    fn logits(
        &self,
        config: &ModelConfig,
        commands: &mut Commands,
        workspace: &Workspace,
        head: &GpuHead,
        wanted: &[usize],
    ) -> Result<(GpuRows, ReadSlot), Error> {
        let (count, after) = (wanted.len(), self.weights.layers.len());
        let new = |cols: usize| GpuRows::new(&self.gpu, count, cols, "logits on the GPU");
        let (last, normed) = (new(config.hidden_size)?, new(config.hidden_size)?);
        let logits = new(config.vocabulary)?;
        for (to, row) in wanted.iter().enumerate() {
            commands.copy_rows(&workspace.x, *row, &last, to, 1)?;
        }
        let step = code(after, Step::OutputNorm);
        commands.rms_norm(&last, &head.norm, config.epsilon, &normed, count, false, step)?;
        commands.quantize(&normed, count, step)?;
        commands.product(&head.output, &normed, &logits, count, Store::default())?;
        let step = code(after, Step::Logits);
        match config.logit_soft_cap {
            Some(cap) => commands.soft_cap(&logits, cap, count, step)?,
            None => commands.scale(&logits, 1.0, count, step)?,
        }
        let slot = logits.read(commands, 0..count)?;
        Ok((logits, slot))
    }

    /// Of each kind of layers, the cosines and sines of every row's position, by the CPU's own functions.
    fn angles(&self, config: &ModelConfig, sessions: &[PassSession<'_>]) -> Result<[GpuBuffer; KINDS], Error> {
        let pairs = config.rope_dim / 2;
        let of_kind = |kind: usize| {
            let frequencies = &self.weights.frequencies[kind];
            let mut angles = Vec::new();
            for session in sessions {
                for position in session.cache.position..session.cache.position + session.rows.len() {
                    let at = angles.len();
                    angles.resize(at + 2 * pairs, 0.0f32);
                    let (cos, sin) = angles[at..].split_at_mut(pairs);
                    rope::angles(position, &frequencies.radians, frequencies.magnitude, cos, sin);
                }
            }
            GpuBuffer::of(&self.gpu, &angles, "angles on the GPU")
        };
        Ok([of_kind(0)?, of_kind(1)?])
    }

    // The places, angles and cache are those of the layer's kind.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        config: &ModelConfig,
        commands: &mut Commands,
        workspace: &Workspace,
        index: usize,
        places: &GpuPlaces,
        angles: &GpuBuffer,
        cache: &GpuBuffer,
    ) -> Result<(), Error> {
        let (layer, rows) = (&self.weights.layers[index], places.rows());
        let Workspace { x, normed, delta, q, k, v, attended, .. } = workspace;
        let weights = &layer.attention;
        let step = code(index, Step::AttentionNorm);
        commands.rms_norm(x, &layer.attention_norm, config.epsilon, normed, rows, false, step)?;
        commands.quantize(normed, rows, step)?;
        for (matrix, bias, to) in
            [(&weights.q, &weights.q_bias, q), (&weights.k, &weights.k_bias, k), (&weights.v, &weights.v_bias, v)]
        {
            commands.product(matrix, normed, to, rows, Store { bias: bias.as_ref(), ..Store::default() })?;
        }
        let rotation = Rotation {
            angles,
            pairs: config.rope_dim / 2,
            // Rows of matrices were reordered.
            interleaved: false,
            norms: weights.norms.as_ref(),
            epsilon: config.epsilon,
            query_scale: config.attention_scale,
        };
        commands.rope_and_cache(places, QueryKeyValue { q, k, v }, rotation, cache, code(index, Step::Queries))?;
        let step = code(index, Step::Attention);
        commands.attend(places, q, cache, weights.sinks.as_ref(), attended, step)?;
        commands.quantize(attended, rows, step)?;
        let bias = weights.o_bias.as_ref();
        let step = code(index, Step::AttentionOutput);
        match &layer.post_attention_norm {
            None => commands.product(&weights.o, attended, x, rows, Store { bias, add: true, code: step }),
            Some(norm) => {
                commands.product(&weights.o, attended, delta, rows, Store { bias, ..Store::default() })?;
                commands.rms_norm(delta, norm, config.epsilon, x, rows, true, step)
            }
        }
    }

    fn feed_forward(
        &self,
        config: &ModelConfig,
        commands: &mut Commands,
        workspace: &Workspace,
        index: usize,
        rows: usize,
    ) -> Result<(), Error> {
        let layer = &self.weights.layers[index];
        let Workspace { x, normed, delta, .. } = workspace;
        let activation = match config.architecture.activation() {
            Activation::Silu => GpuActivation::Silu,
            Activation::Gelu => GpuActivation::Gelu,
            Activation::Clamped => GpuActivation::Clamped,
        };
        let step = code(index, Step::FfnNorm);
        commands.rms_norm(x, &layer.ffn_norm, config.epsilon, normed, rows, false, step)?;
        commands.quantize(normed, rows, step)?;
        let (gated, output) = (code(index, Step::Gated), code(index, Step::FfnOutput));
        // Without a norm after it, the result is added to the residual at once.
        let (to, add) = if layer.post_ffn_norm.is_none() { (x, true) } else { (delta, false) };
        match (&layer.feed_forward, &workspace.dense, &workspace.experts) {
            (GpuFeedForward::Dense { gate, up, down }, Some([gates, ups]), _) => {
                commands.product(gate, normed, gates, rows, Store::default())?;
                commands.product(up, normed, ups, rows, Store::default())?;
                commands.activate(activation, gates, ups, rows, gated)?;
                commands.quantize(gates, rows, gated)?;
                commands.product(down, gates, to, rows, Store { bias: None, add, code: output })?;
            }
            (GpuFeedForward::Experts(experts), _, Some(own)) => {
                let ExpertWorkspace { logits, chosen, gate, up, results } = own;
                let bias = |of: usize| experts.biases.as_ref().map(|biases| &biases[of]);
                commands.product(&experts.router, normed, logits, rows, Store { bias: bias(0), ..Store::default() })?;
                let gating = match experts.scale {
                    None => GpuGating::Softmax,
                    Some(scale) => GpuGating::Sigmoid { correction: experts.correction.as_ref(), scale },
                };
                let shared = experts.shared_gate.as_ref();
                commands.route(gating, logits, normed, shared, chosen, rows, code(index, Step::Router))?;
                commands.expert_product(&experts.gate, chosen, normed, true, gate, rows, bias(1))?;
                commands.expert_product(&experts.up, chosen, normed, true, up, rows, bias(2))?;
                let slots = rows * chosen.per_row();
                commands.activate(activation, gate, up, slots, gated)?;
                commands.quantize(gate, slots, gated)?;
                commands.expert_product(&experts.down, chosen, gate, false, results, rows, bias(3))?;
                commands.expert_sum(results, chosen, to, rows, add, output)?;
            }
            _ => return Err(Error::invalid("gpu", "a layer has no buffers")),
        }
        match &layer.post_ffn_norm {
            None => Ok(()),
            Some(norm) => commands.rms_norm(delta, norm, config.epsilon, x, rows, true, output),
        }
    }
}

/// The number by which kernels report a step of a layer, counted from the stage's first. Those of earlier steps are lower.
fn code(layer: usize, step: Step) -> u32 {
    (layer as u32) << 8 | step as u32
}

/// The error of the first step that reported one.
fn check(fault: Option<u32>, first_layer: usize) -> Result<(), Error> {
    let Some(code) = fault else { return Ok(()) };
    match Step::of((code & 0xff) as usize) {
        Some(step) => Err(step.error(first_layer + (code >> 8) as usize, Fault::NotFinite)),
        None => Err(Error::invalid("gpu", format!("an unknown step, {code}, gave no finite value"))),
    }
}

/// The places of a session's pages, of each kind of layers. Evicted ones, which are not read, have any.
fn places_of(session: &PassSession<'_>) -> Result<[Vec<u32>; KINDS], Error> {
    let place = |page: &CacheRows<'_>| match page {
        CacheRows::Evicted => Ok(0),
        CacheRows::Read(page) => page.place().ok_or_else(elsewhere),
        CacheRows::Write(page) => page.place().ok_or_else(elsewhere),
    };
    let of_kind = |kind: usize| session.cache.device_pages[kind].iter().map(place).collect::<Result<Vec<_>, Error>>();
    Ok([of_kind(0)?, of_kind(1)?])
}

fn elsewhere() -> Error {
    Error::invalid("gpu", "a session's cache is not in the GPU's memory")
}
