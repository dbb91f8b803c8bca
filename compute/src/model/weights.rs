//! The weights of a model's part, packed for the kernels into one piece of memory in the order of their use. Only the
//! part's tensors are read; pages of the file that were read are released.

use crate::gguf::{GgmlType, Gguf, TensorView, dequantize};
use crate::kernel::float::activation::all_finite;
use crate::kernel::float::mixture::Gating;
use crate::kernel::page::PageShape;
use crate::kernel::quant::{Matrix, pack, packed_bytes, rows_of, tiles};
use crate::kernel::state::{DeltaShape, StateShape};
use crate::kernel::transformer::{
    AttentionWeights, DeltaWeights, DenseWeights, ExpertBiases, ExpertWeights, FeedForward, Head, KINDS, LayerWeights,
    Mixer, Workspace,
};
use crate::model::frequencies::Frequencies;
use crate::model::{Experts, ModelConfig, ModelFile};
use crate::{Buffer, Error, Pool};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A part of a model: layers `[start, end)` counted from 0, and whether the embedding before the first layer and the
/// head after the last belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPart {
    /// The layers.
    pub layers: Range<usize>,
    /// Whether the input is token ids; otherwise activations.
    pub embedding: bool,
    /// Whether the output is logits; otherwise activations.
    pub head: bool,
}

impl ModelPart {
    /// The whole model.
    pub fn whole(config: &ModelConfig) -> ModelPart {
        ModelPart { layers: 0..config.layers, embedding: true, head: true }
    }

    /// Layers `layers`, with the embedding where they include the first layer and with the head where they include the
    /// last.
    pub fn of_layers(config: &ModelConfig, layers: Range<usize>) -> ModelPart {
        ModelPart { embedding: layers.start == 0, head: layers.end == config.layers, layers }
    }
}

/// A part of a model, ready to run. Immutable; sessions keep their state in a [`Cache`](super::Cache).
pub struct Model {
    config: ModelConfig,
    part: ModelPart,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) embedding: Option<Matrix>,
    pub(crate) head: Option<Head>,
    /// Of each kind of layers.
    pub(crate) frequencies: [Frequencies; KINDS],
    memory_bytes: u64,
    /// Workspaces of finished forward passes, for reuse.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Memory in bytes that loading a part of a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBytes {
    /// The packed weights, which stay: [`Model::memory_bytes`] of the loaded part.
    pub weights: u64,
    /// Rows that are put in order beside them, until all weights are packed; 0 where none are.
    pub scratch: u64,
}

/// Workspaces kept: one forward pass runs while another waits.
const KEPT_WORKSPACES: usize = 2;

/// Packed bytes of a piece, about: what a thread packs before it gives the pages of the file back, so that few are in memory
/// beside what they became.
const PIECE_BYTES: usize = 1 << 20;

/// Alignment of packed matrices: a cache line.
const ALIGN: usize = 64;

impl Model {
    /// Reads, checks and packs the weights of `part` on all threads of the pool.
    ///
    /// # Errors
    /// [`Error::Invalid`] for layers that the model does not have, tensors that are missing, of another shape than the
    /// metadata says or with weights that are not finite; [`Error::Dtype`] for unsupported types;
    /// [`Error::OutOfMemory`].
    pub fn load(file: &ModelFile, part: ModelPart, pool: &Pool) -> Result<Model, Error> {
        let config = file.config().clone();
        let PlannedPart { plan, embedding, layers: planned, output } = PlannedPart::of(file, &part)?;
        let pairs = plan.pairs;
        let (width, query, kv) = (config.hidden_size, config.query_len(), config.kv_len());
        let memory_bytes = plan.bytes as u64;
        let matrices = plan.pack(pool)?;

        let vector = |name: &str, len: usize| vector(file.gguf(), name, len);
        let required = |name: &str, len: usize| {
            vector(name, len)?.ok_or_else(|| Error::invalid("model", format!("the file has no tensor {name:?}")))
        };
        let mut layers = Vec::new();
        let (mut of_kind, mut delta_layers) = ([0; KINDS], 0);
        for (planned, layer) in planned.into_iter().zip(part.layers.clone()) {
            let named = |name: &str| format!("blk.{layer}.{name}");
            let reordered = |bias: Option<Vec<f32>>| match (bias, pairs) {
                (Some(bias), Some((head, rotated))) => {
                    Some((0..bias.len()).map(|row| bias[source_row(row, head, rotated)]).collect())
                }
                (bias, _) => bias,
            };
            // What an architecture always has may not be missing.
            let biased = |name: &str, len: usize| match config.architecture.has_all_biases() {
                true => required(&named(name), len).map(Some),
                false => vector(&named(name), len),
            };
            let biases = match config.experts.filter(|_| config.architecture.has_all_biases()) {
                None => None,
                Some(experts) => {
                    let of_each = |name: &str, len: usize| required(&named(name), experts.count * len);
                    Some(ExpertBiases {
                        router: of_each("ffn_gate_inp.bias", 1)?,
                        gate: of_each("ffn_gate_exps.bias", config.intermediate_size)?,
                        up: of_each("ffn_up_exps.bias", config.intermediate_size)?,
                        down: of_each("ffn_down_exps.bias", width)?,
                    })
                }
            };
            let gating = match config.experts.filter(|experts| experts.sigmoid && layer >= experts.dense_layers) {
                None => Gating::Softmax,
                Some(experts) => Gating::Sigmoid {
                    correction: vector(&named("exp_probs_b.bias"), experts.count)?,
                    scale: experts.scale,
                },
            };
            let post_attention_norm = match config.architecture.ffn_norm() {
                // It is the other one's name.
                "post_attention_norm.weight" => None,
                _ => vector(&named("post_attention_norm.weight"), width)?,
            };
            let head_norm = |name: &str| match config.architecture.has_delta_nets() {
                true => required(&named(name), config.head_dim).map(Some),
                false => vector(&named(name), config.head_dim),
            };
            let mixer = match planned.mixer {
                PlannedMixer::Attention(planned) => {
                    let [q, k, v, o] = planned.map(|index| matrices[index].clone());
                    let mut weights = AttentionWeights {
                        q_bias: reordered(biased("attn_q.bias", query)?),
                        k_bias: reordered(biased("attn_k.bias", kv)?),
                        v_bias: biased("attn_v.bias", kv)?,
                        o_bias: biased("attn_output.bias", width)?,
                        q_norm: head_norm("attn_q_norm.weight")?,
                        k_norm: head_norm("attn_k_norm.weight")?,
                        sinks: config
                            .architecture
                            .has_all_biases()
                            .then(|| required(&named("attn_sinks.weight"), config.heads))
                            .transpose()?,
                        q,
                        k,
                        v,
                        o,
                        sliding_window: config.sliding_window[layer],
                        page_layer: 0,
                    };
                    weights.page_layer = of_kind[weights.kind()];
                    of_kind[weights.kind()] += 1;
                    Mixer::Attention(weights)
                }
                PlannedMixer::Delta { shape, inputs, output } => {
                    let weights = DeltaWeights {
                        inputs: matrices[inputs].to_vec(),
                        convolution: by_tap(
                            &required(&named("ssm_conv1d.weight"), shape.kernel * shape.channels())?,
                            shape,
                        ),
                        dt: required(&named("ssm_dt.bias"), shape.value_heads)?,
                        a: decay_rates(required(&named("ssm_a"), shape.value_heads)?, &named("ssm_a"))?,
                        norm: required(&named("ssm_norm.weight"), shape.value_dim)?,
                        output: matrices[output].clone(),
                        state_layer: delta_layers,
                    };
                    delta_layers += 1;
                    Mixer::Delta(weights)
                }
            };
            let shared_gate = match (&planned.feed_forward, config.architecture.gates_shared_expert()) {
                (PlannedFeedForward::Experts { .. }, true) => {
                    Some(required(&named("ffn_gate_inp_shexp.weight"), width)?)
                }
                _ => None,
            };
            layers.push(LayerWeights {
                attention_norm: required(&named("attn_norm.weight"), width)?,
                mixer,
                post_attention_norm,
                ffn_norm: required(&named(config.architecture.ffn_norm()), width)?,
                post_ffn_norm: vector(&named("post_ffw_norm.weight"), width)?,
                feed_forward: planned.feed_forward.load(&matrices, gating, shared_gate, biases),
            });
        }
        let head = match output {
            Some(index) => Some(Head { norm: required("output_norm.weight", width)?, output: matrices[index].clone() }),
            None => None,
        };
        let embedding = match embedding {
            Some(index) => Some(matrices[index].clone()),
            None if part.embedding => head.as_ref().map(|head| head.output.clone()),
            None => None,
        };
        let divisors = vector("rope_freqs.weight", config.rope_dim / 2)?;
        let everywhere = Frequencies::new(config.rope_dim, config.rope_base, config.rope_scaling, divisors.as_deref());
        let windowed = Frequencies::new(config.rope_dim, config.rope_base_sliding, config.rope_scaling_sliding, None);
        Ok(Model {
            config,
            part,
            layers,
            embedding,
            head,
            frequencies: [everywhere, windowed],
            memory_bytes,
            workspaces: Mutex::new(Vec::new()),
        })
    }

    /// What [`Model::load`] needs for `part` on `threads` threads. Reads the file's header only.
    ///
    /// # Errors
    /// As [`Model::load`], as far as the header shows them.
    pub fn load_bytes(file: &ModelFile, part: &ModelPart, threads: usize) -> Result<LoadBytes, Error> {
        let plan = PlannedPart::of(file, part)?.plan;
        let row = plan.matrices.iter().filter(|planned| planned.pairs.is_some()).map(Planned::ordered_bytes).max();
        Ok(LoadBytes { weights: plan.bytes as u64, scratch: (row.unwrap_or(0) * threads.max(1)) as u64 })
    }

    /// Whether this part is the whole model.
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

    /// Bytes of the packed weights.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What states hold of this part's layers that have such.
    pub(crate) fn state_shape(&self) -> Option<StateShape> {
        let layers = self.layers.iter().filter(|layer| matches!(layer.mixer, Mixer::Delta(_))).count();
        self.config.delta.filter(|_| layers > 0).map(|shape| StateShape { layers, shape })
    }

    /// What pages hold of each kind of this part's layers.
    pub(crate) fn page_shapes(&self) -> [PageShape; KINDS] {
        let ModelConfig { kv_heads, head_dim, .. } = self.config;
        std::array::from_fn(|kind| PageShape { layers: self.of_kind(kind).count(), kv_heads, head_dim })
    }

    /// Positions that rows of each kind of this part's layers see, at most.
    pub(crate) fn windows(&self) -> [usize; KINDS] {
        std::array::from_fn(|kind| self.of_kind(kind).map(|layer| layer.sliding_window).max().unwrap_or(0))
    }

    fn of_kind(&self, kind: usize) -> impl Iterator<Item = &AttentionWeights> {
        let attention = self.layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(weights) => Some(weights),
            Mixer::Delta(_) => None,
        });
        attention.filter(move |layer| layer.kind() == kind)
    }

    pub(crate) fn workspace(&self) -> Workspace {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn keep_workspace(&self, workspace: Workspace) {
        let mut kept = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_WORKSPACES {
            kept.push(workspace);
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, layers {:?}, {} bytes)", self.config.name, self.part.layers, self.memory_bytes)
    }
}

/// The taps of every channel `[channels, kernel]` as `[kernel, channels]`.
fn by_tap(taps: &[f32], shape: DeltaShape) -> Vec<f32> {
    let of_tap = |tap: usize| (0..shape.channels()).map(move |channel| taps[channel * shape.kernel + tap]);
    (0..shape.kernel).flat_map(of_tap).collect()
}

/// Rates by which states decay, which may not grow.
fn decay_rates(rates: Vec<f32>, name: &str) -> Result<Vec<f32>, Error> {
    match rates.iter().find(|rate| **rate > 0.0) {
        None => Ok(rates),
        Some(rate) => Err(Error::invalid(
            "model",
            format!(
                "tensor {name:?} holds {rate}: a state would grow without end; the file is damaged or was converted wrongly"
            ),
        )),
    }
}

/// The source row of row `row` of the packed matrix; rotated pairs (2i, 2i + 1) become (i, i + half).
fn source_row(row: usize, head: usize, rotated: usize) -> usize {
    let (first, i) = (row / head * head, row % head);
    match i {
        i if i >= rotated => first + i,
        i if i < rotated / 2 => first + 2 * i,
        i => first + 2 * (i - rotated / 2) + 1,
    }
}

/// The matrices of a part, as places in its plan.
struct PlannedPart<'a> {
    plan: Plan<'a>,
    embedding: Option<usize>,
    layers: Vec<PlannedLayer>,
    output: Option<usize>,
}

/// The matrices of a layer, as places in the plan.
struct PlannedLayer {
    mixer: PlannedMixer,
    feed_forward: PlannedFeedForward,
}

enum PlannedMixer {
    /// Query, key, value, output.
    Attention([usize; 4]),
    Delta {
        shape: DeltaShape,
        /// In the order of a projected row.
        inputs: Range<usize>,
        output: usize,
    },
}

enum PlannedFeedForward {
    /// Gate, up, down.
    Dense([usize; 3]),
    Experts {
        used: usize,
        router: usize,
        /// Gate, up, down: of each expert.
        matrices: [Range<usize>; 3],
    },
}

impl PlannedFeedForward {
    /// The packed matrices.
    fn load(
        self,
        packed: &[Matrix],
        gating: Gating,
        shared_gate: Option<Vec<f32>>,
        biases: Option<ExpertBiases>,
    ) -> FeedForward {
        match self {
            PlannedFeedForward::Dense(matrices) => {
                let [gate, up, down] = matrices.map(|index| packed[index].clone());
                FeedForward::Dense(DenseWeights { gate, up, down })
            }
            PlannedFeedForward::Experts { used, router, matrices } => {
                let [gate, up, down] = matrices.map(|of_each| packed[of_each].to_vec());
                let router = packed[router].clone();
                FeedForward::Experts(ExpertWeights { used, router, gating, gate, up, down, shared_gate, biases })
            }
        }
    }
}

impl PlannedPart<'_> {
    fn of<'a>(file: &'a ModelFile, part: &ModelPart) -> Result<PlannedPart<'a>, Error> {
        let config = file.config();
        if part.layers.start > part.layers.end || part.layers.end > config.layers {
            return Err(Error::invalid(
                "model",
                format!(
                    "layers {} to {} do not exist; the model has {} layers",
                    part.layers.start, part.layers.end, config.layers
                ),
            ));
        }
        // Rows of weights whose pairs are (2i, 2i + 1) are reordered, so that kernels always rotate pairs (i, i +
        // half).
        let pairs = config.architecture.interleaved_pairs().then_some((config.head_dim, config.rope_dim));
        let mut plan = Plan { file: file.gguf(), matrices: Vec::new(), bytes: 0, pairs };
        let (embedding, output) = ("token_embd.weight", "output.weight");
        let tied = file.gguf().tensor(output)?.is_none();
        let (width, ff) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_len(), config.kv_len());
        let embedding = (part.embedding && !(part.head && tied))
            .then(|| plan.matrix(embedding, config.vocabulary, width, None))
            .transpose()?;
        let mut layers = Vec::new();
        for layer in part.layers.clone() {
            let mixer = match config.delta.filter(|_| config.is_delta[layer]) {
                Some(shape) => plan.delta_net(layer, shape, width)?,
                None => {
                    let mut matrix =
                        |name: &str, rows, k, pairs| plan.matrix(&format!("blk.{layer}.{name}.weight"), rows, k, pairs);
                    // Each head's query is followed by its gate.
                    let gated = if config.architecture.has_delta_nets() { 2 * query } else { query };
                    PlannedMixer::Attention([
                        matrix("attn_q", gated, width, pairs)?,
                        matrix("attn_k", kv, width, pairs)?,
                        matrix("attn_v", kv, width, None)?,
                        matrix("attn_output", width, query, None)?,
                    ])
                }
            };
            let mut matrix = |name: &str, rows, k| plan.matrix(&format!("blk.{layer}.{name}.weight"), rows, k, None);
            let experts = config.experts.filter(|experts| layer >= experts.dense_layers);
            let ff = match (experts, config.experts) {
                (None, Some(experts)) => experts.dense_intermediate_size,
                _ => ff,
            };
            let feed_forward = match experts {
                None => PlannedFeedForward::Dense([
                    matrix("ffn_gate", ff, width)?,
                    matrix("ffn_up", ff, width)?,
                    matrix("ffn_down", width, ff)?,
                ]),
                Some(experts) => plan.experts(layer, experts, width, ff)?,
            };
            layers.push(PlannedLayer { mixer, feed_forward });
        }
        let output = part
            .head
            .then(|| plan.matrix(if tied { "token_embd.weight" } else { output }, config.vocabulary, width, None))
            .transpose()?;
        Ok(PlannedPart { plan, embedding, layers, output })
    }
}

/// Matrices that are packed one after the other.
struct Plan<'a> {
    file: &'a Gguf,
    matrices: Vec<Planned<'a>>,
    bytes: usize,
    /// Elements of a head and rotated elements, where rows of queries and keys are reordered.
    pairs: Option<(usize, usize)>,
}

struct Planned<'a> {
    view: TensorView<'a>,
    rows: usize,
    k: usize,
    start: usize,
    /// Elements of a head and rotated elements, where rows are reordered.
    pairs: Option<(usize, usize)>,
}

impl Planned<'_> {
    /// Bytes of the rows of one tile in the file.
    fn ordered_bytes(&self) -> usize {
        self.view.bytes.len() / self.rows.max(1) * rows_of(&(0..1), self.rows).len()
    }
}

impl<'a> Plan<'a> {
    /// Adds the tensor to the plan; returns its index.
    fn matrix(&mut self, name: &str, rows: usize, k: usize, pairs: Option<(usize, usize)>) -> Result<usize, Error> {
        let view = self.file.require(name)?;
        if (view.row_len(), view.rows()) != (k, rows) {
            return Err(Error::invalid(
                "model",
                format!("tensor {name:?} is {} x {}, but the metadata says {rows} x {k}", view.rows(), view.row_len()),
            ));
        }
        self.add(view, rows, k, pairs)
    }

    /// Adds the matrices of a gated delta net.
    fn delta_net(&mut self, layer: usize, shape: DeltaShape, width: usize) -> Result<PlannedMixer, Error> {
        let named = |name: &str| format!("blk.{layer}.{name}.weight");
        if self.file.tensor(&named("attn_qkv"))?.is_none() && self.file.tensor(&named("ssm_in"))?.is_some() {
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {:?} is of an older form of these files, in which queries, keys and values are mixed: \
                     get a file that was converted later",
                    named("ssm_in")
                ),
            ));
        }
        let (heads, channels) = (shape.value_heads, shape.channels());
        let start = self.matrix(&named("attn_qkv"), channels, width, None)?;
        if shape.tiled {
            self.matrix(&named("ssm_beta"), heads, width, None)?;
            self.matrix(&named("ssm_alpha"), heads, width, None)?;
        } else {
            self.matrix(&named("ssm_ba"), 2 * heads, width, None)?;
        }
        let end = self.matrix(&named("attn_gate"), shape.value_len(), width, None)? + 1;
        let output = self.matrix(&named("ssm_out"), width, shape.value_len(), None)?;
        Ok(PlannedMixer::Delta { shape, inputs: start..end, output })
    }

    /// Adds the router and the experts of a layer; `ff`: elements inside one expert.
    fn experts(
        &mut self,
        layer: usize,
        experts: Experts,
        width: usize,
        ff: usize,
    ) -> Result<PlannedFeedForward, Error> {
        let named = |name: &str| format!("blk.{layer}.{name}.weight");
        let router = self.matrix(&named("ffn_gate_inp"), experts.count, width, None)?;
        let ty = self.matrices[router].view.ggml_type;
        if !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {:?} is {}: a router must be F32, F16 or BF16, or rounding would choose the experts",
                    named("ffn_gate_inp"),
                    ty.name()
                ),
            ));
        }
        // Those that compute every row follow those that are chosen.
        let mut of_each = |which: &str, rows: usize, k: usize| -> Result<Range<usize>, Error> {
            let chosen = self.matrix_of_each(&named(&format!("ffn_{which}_exps")), experts.count, rows, k)?;
            for _ in 0..experts.shared {
                self.matrix(&named(&format!("ffn_{which}_shexp")), rows, k, None)?;
            }
            Ok(chosen.start..self.matrices.len())
        };
        let matrices = [of_each("gate", ff, width)?, of_each("up", ff, width)?, of_each("down", width, ff)?];
        Ok(PlannedFeedForward::Experts { used: experts.used, router, matrices })
    }

    /// Adds a tensor `[experts, rows, k]` as one matrix of each expert; returns their indices.
    fn matrix_of_each(&mut self, name: &str, experts: usize, rows: usize, k: usize) -> Result<Range<usize>, Error> {
        let view = self.file.require(name)?;
        if view.shape != [k as u64, rows as u64, experts as u64] {
            let shape: Vec<String> = view.shape.iter().rev().map(u64::to_string).collect();
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {name:?} is {}, but the metadata says {experts} experts of {rows} x {k}",
                    shape.join(" x ")
                ),
            ));
        }
        let first = self.matrices.len();
        for bytes in view.bytes.chunks_exact(view.bytes.len() / experts) {
            self.add(TensorView { bytes, ..view.clone() }, rows, k, None)?;
        }
        Ok(first..self.matrices.len())
    }

    /// Adds `rows` rows of `k` elements to the plan; returns the index of their matrix.
    fn add(
        &mut self,
        view: TensorView<'a>,
        rows: usize,
        k: usize,
        pairs: Option<(usize, usize)>,
    ) -> Result<usize, Error> {
        let name = view.name;
        let end = packed_bytes(view.ggml_type, rows, k)
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGN))
            .and_then(|bytes| bytes.checked_add(self.bytes));
        let Some(end) = end else {
            return Err(Error::invalid(
                "model",
                format!("tensor {name:?}: rows of {k} are not whole blocks of {}", view.ggml_type.name()),
            ));
        };
        self.matrices.push(Planned { view, rows, k, start: self.bytes, pairs });
        self.bytes = end;
        Ok(self.matrices.len() - 1)
    }

    /// Packs all matrices of the plan.
    fn pack(self, pool: &Pool) -> Result<Vec<Matrix>, Error> {
        let mut arena = Buffer::zeroed(self.bytes)?;
        let bad = Mutex::new(None);
        // Each thread packs the share of every matrix that it will later multiply by, so its pages are near that
        // thread.
        let mut shares: Vec<Vec<Mutex<Share<'_>>>> = (0..pool.threads()).map(|_| Vec::new()).collect();
        let mut rest = arena.as_mut_slice();
        let mut at = 0;
        for planned in &self.matrices {
            rest = rest.split_at_mut(planned.start - at).1;
            at = planned.start;
            let (all, tile_bytes) =
                (tiles(planned.rows), packed_bytes(planned.view.ggml_type, 1, planned.k).unwrap_or(0));
            for (worker, shares) in shares.iter_mut().enumerate() {
                let tiles = all * worker / pool.threads()..all * (worker + 1) / pool.threads();
                let (to, beyond) = rest.split_at_mut(tiles.len() * tile_bytes);
                (rest, at) = (beyond, at + to.len());
                let step = (PIECE_BYTES / tile_bytes.max(1)).max(1);
                for (first, to) in tiles.clone().step_by(step).zip(to.chunks_mut((step * tile_bytes).max(1))) {
                    let tiles = first..tiles.end.min(first + step);
                    shares.push(Mutex::new(Share { planned, tiles, to }));
                }
            }
        }
        pool.together(&|worker| {
            for share in &shares[worker.index] {
                let share = &mut *share.lock().unwrap_or_else(PoisonError::into_inner);
                let packed = share.pack();
                // Packed weights need not stay in memory twice. Pages that are still read for other tiles are loaded again.
                self.file.release(share.source());
                if !packed {
                    *bad.lock().unwrap_or_else(PoisonError::into_inner) = Some(share.planned.view.name.to_owned());
                }
            }
        });
        drop(shares);
        // Releases the pages between two threads' shares, and the metadata's.
        self.file.release_all();
        if let Some(name) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(Error::invalid(
                "model",
                format!("tensor {name:?} holds numbers that are not finite: the file is damaged; fetch it again"),
            ));
        }
        let arena = Arc::new(arena);
        self.matrices.iter().map(|m| Matrix::new(m.view.ggml_type, m.rows, m.k, Arc::clone(&arena), m.start)).collect()
    }
}

/// Some tiles of one matrix, and their destination.
struct Share<'a> {
    planned: &'a Planned<'a>,
    tiles: Range<usize>,
    to: &'a mut [u8],
}

impl Share<'_> {
    /// The rows of the tiles.
    fn rows(&self) -> Range<usize> {
        rows_of(&self.tiles, self.planned.rows)
    }

    /// The bytes of the rows.
    fn source(&self) -> &[u8] {
        let Planned { view, rows, .. } = self.planned;
        let (row_bytes, mine) = (view.bytes.len() / rows, self.rows());
        &view.bytes[mine.start * row_bytes..mine.end * row_bytes]
    }

    /// Packs the tiles; returns whether all their weights are finite. Rows that are reordered are so one tile at a time.
    fn pack(&mut self) -> bool {
        let Planned { view, rows, k, pairs, .. } = self.planned;
        let row_bytes = view.bytes.len() / rows;
        match pairs {
            None => pack(view.ggml_type, *rows, *k, view.bytes, self.tiles.clone(), self.to),
            Some((head, rotated)) => {
                let mut ordered = Vec::with_capacity(self.planned.ordered_bytes());
                let tile_bytes = packed_bytes(view.ggml_type, 1, *k).unwrap_or(0).max(1);
                for (tile, to) in self.tiles.clone().zip(self.to.chunks_exact_mut(tile_bytes)) {
                    let mine = rows_of(&(tile..tile + 1), *rows);
                    ordered.clear();
                    for row in mine.clone() {
                        let from = source_row(row, *head, *rotated) * row_bytes;
                        ordered.extend_from_slice(&view.bytes[from..from + row_bytes]);
                    }
                    pack(view.ggml_type, mine.len(), *k, &ordered, 0..1, to);
                }
            }
        }
        is_finite(view.ggml_type, self.source())
    }
}

/// Whether all elements, or all scales of blocks, are finite.
fn is_finite(ty: GgmlType, bytes: &[u8]) -> bool {
    let half = |at: &[u8]| u16::from_le_bytes([at[0], at[1]]) & 0x7c00 != 0x7c00;
    let mut blocks = bytes.chunks_exact(ty.block_bytes());
    match ty {
        GgmlType::F32 => blocks.all(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 != 0x7f80_0000),
        GgmlType::BF16 => blocks.all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 != 0x7f80),
        GgmlType::F16 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4NL | GgmlType::IQ4XS => {
            blocks.all(half)
        }
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => blocks.all(|b| half(b) && half(&b[2..])),
        // Below this exponent no element overflows.
        GgmlType::MXFP4 => blocks.all(|b| b[0] < 253 || elements_are_finite(ty, b)),
        GgmlType::Q2K => blocks.all(|b| half(&b[80..]) && half(&b[82..])),
        GgmlType::Q3K | GgmlType::Q6K => blocks.all(|b| half(&b[b.len() - 2..])),
    }
}

/// Whether the elements of a block are finite.
fn elements_are_finite(ty: GgmlType, block: &[u8]) -> bool {
    let mut elements = vec![0.0; ty.block_len()];
    dequantize(ty, block, &mut elements).is_ok() && all_finite(&elements)
}

/// A vector of floats, which stays unpacked.
fn vector(file: &Gguf, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
    let Some(view) = file.tensor(name)? else { return Ok(None) };
    if view.elements() != len {
        return Err(Error::invalid(
            "model",
            format!("tensor {name:?} has {} elements, but the metadata says {len}", view.elements()),
        ));
    }
    let values = view.to_f32()?;
    if !all_finite(&values) {
        return Err(Error::invalid("model", format!("tensor {name:?} holds numbers that are not finite")));
    }
    Ok(Some(values))
}
