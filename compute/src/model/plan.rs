//! What a stage consists of, before any engine has it: for each layer the shapes, the types and the places in the file of its
//! weights. Only the file's header is read, and everything that it shows to be wrong is refused here, so that engines load
//! what fits together. Engines decide how weights lie in their memory.

use super::frequencies::Frequencies;
use super::{Experts, ModelConfig, ModelFile};
use crate::Error;
use crate::gguf::{GgmlType, Gguf, TensorView};
use crate::kernel::float::activation::all_finite;
use crate::kernel::page::{KINDS, kind_of};
use crate::kernel::state::DeltaShape;
use std::ops::Range;
use std::sync::Arc;

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

/// The plan of a stage. Its matrices in the order of their use: the embedding, those of the layers, the head's.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// The part of the model.
    pub part: ModelPart,
    /// `None` for a part without it, and where the embedding is the head's matrix.
    pub embedding: Option<MatrixPlan>,
    /// The layers of the part, in order.
    pub layers: Vec<LayerPlan>,
    /// For a part with the head.
    pub head: Option<HeadPlan>,
    /// Divisors of the rotary frequencies, where the file has such.
    divisors: Option<VectorPlan>,
}

/// A matrix in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixPlan {
    /// The tensor that it is, or that it is a part of.
    pub name: Arc<str>,
    /// The storage type of its elements.
    pub ty: GgmlType,
    /// Rows: elements of a product's result.
    pub rows: usize,
    /// Elements of a row: elements of a product's input. A whole number of blocks of the type.
    pub k: usize,
    /// Its bytes in the file, row after row.
    pub bytes: Range<u64>,
    /// Where the file's rotary pairs are (2i, 2i + 1) and the rows are to be reordered.
    pub pairs: Option<Pairs>,
}

/// A vector of floats in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorPlan {
    /// The tensor.
    pub name: String,
    /// Its number of elements.
    pub len: usize,
    /// Where its elements are to be reordered, as rows of the matrix that it belongs to.
    pub pairs: Option<Pairs>,
}

/// Rotary pairs (2i, 2i + 1) within each head, which become (i, i + half): all engines rotate the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// Elements of a head.
    pub head: usize,
    /// Elements of a head that are rotated.
    pub rotated: usize,
}

impl Pairs {
    /// The row of the file that becomes row `row`.
    pub fn source_row(self, row: usize) -> usize {
        let Pairs { head, rotated } = self;
        let (first, i) = (row / head * head, row % head);
        match i {
            i if i >= rotated => first + i,
            i if i < rotated / 2 => first + 2 * i,
            i => first + 2 * (i - rotated / 2) + 1,
        }
    }
}

/// One layer. Lengths: hidden size h, query heads q, key-value heads kv, intermediate size f.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// `[h]`
    pub attention_norm: VectorPlan,
    /// The block in which positions see each other.
    pub mixer: MixerPlan,
    /// `[h]`, on what the mixer adds to the residual.
    pub post_attention_norm: Option<VectorPlan>,
    /// `[h]`
    pub ffn_norm: VectorPlan,
    /// The feed-forward block.
    pub feed_forward: FeedForwardPlan,
    /// `[h]`, on what the feed-forward block adds to the residual.
    pub post_ffn_norm: Option<VectorPlan>,
}

/// The block of a layer in which positions see each other.
#[derive(Clone, Debug)]
pub enum MixerPlan {
    /// Attention.
    Attention(Box<AttentionPlan>),
    /// A gated delta net.
    Delta(Box<DeltaPlan>),
}

/// Attention, of one layer.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    /// `[q, h]`; with gates `[2q, h]`, each head's query before its gate.
    pub q: MatrixPlan,
    /// `[kv, h]`
    pub k: MatrixPlan,
    /// `[kv, h]`
    pub v: MatrixPlan,
    /// `[h, q]`
    pub o: MatrixPlan,
    /// `[q]`
    pub q_bias: Option<VectorPlan>,
    /// `[kv]`
    pub k_bias: Option<VectorPlan>,
    /// `[kv]`
    pub v_bias: Option<VectorPlan>,
    /// `[h]`
    pub o_bias: Option<VectorPlan>,
    /// `[head_dim]`, on each query head.
    pub q_norm: Option<VectorPlan>,
    /// `[head_dim]`, on each key head.
    pub k_norm: Option<VectorPlan>,
    /// `[heads]`: logits of positions that have no value, one more for each query head.
    pub sinks: Option<VectorPlan>,
    /// Positions that a row attends to, its own included; `usize::MAX` without a sliding window.
    pub sliding_window: usize,
    /// The layer's place in a page, which holds the layers of one kind: those with a sliding window, or those without.
    pub page_layer: usize,
}

/// A gated delta net, of one layer.
#[derive(Clone, Debug)]
pub struct DeltaPlan {
    pub(crate) shape: DeltaShape,
    /// Together `[projected, h]`, in the order of a projected row.
    pub inputs: Vec<MatrixPlan>,
    /// `[channels, kernel]`
    pub convolution: VectorPlan,
    /// `[value heads]`: added to alpha.
    pub dt: VectorPlan,
    /// `[value heads]`: the rate of decay, at most 0.
    pub a: VectorPlan,
    /// `[value_dim]`, on each value head's result.
    pub norm: VectorPlan,
    /// `[h, value]`
    pub output: MatrixPlan,
    /// The layer's place among the states of its part.
    pub state_layer: usize,
}

/// A layer's feed-forward block.
#[derive(Clone, Debug)]
pub enum FeedForwardPlan {
    /// One block for every row.
    Dense(Box<DensePlan>),
    /// A mixture of experts.
    Experts(Box<ExpertsPlan>),
}

/// A feed-forward block of one part.
#[derive(Clone, Debug)]
pub struct DensePlan {
    /// `[f, h]`
    pub gate: MatrixPlan,
    /// `[f, h]`
    pub up: MatrixPlan,
    /// `[h, f]`
    pub down: MatrixPlan,
}

/// The experts of a layer. Those beyond the router's rows compute every row.
#[derive(Clone, Debug)]
pub struct ExpertsPlan {
    /// Experts that the router chooses for a row.
    pub used: usize,
    /// `[experts that it chooses from, h]`, not quantised.
    pub router: MatrixPlan,
    /// How the router's logits become weights.
    pub gating: GatingPlan,
    /// Of each expert `[f, h]`.
    pub gate: Vec<MatrixPlan>,
    /// Of each expert `[f, h]`.
    pub up: Vec<MatrixPlan>,
    /// Of each expert `[h, f]`.
    pub down: Vec<MatrixPlan>,
    /// `[h]`: the gate of those that compute every row; without one they count whole.
    pub shared_gate: Option<VectorPlan>,
    /// Biases of `[experts]`, `[experts, f]`, `[experts, f]` and `[experts, h]`: router, gate, up, down.
    pub biases: Option<[VectorPlan; 4]>,
}

/// How the logits of a router become weights.
#[derive(Clone, Debug)]
pub enum GatingPlan {
    /// A softmax over the chosen ones.
    Softmax,
    /// Sigmoids.
    Sigmoid {
        /// `[experts]`: added for the choice alone.
        correction: Option<VectorPlan>,
        /// Factor of the weights.
        scale: f32,
    },
}

/// What comes after the last layer.
#[derive(Clone, Debug)]
pub struct HeadPlan {
    /// `[h]`
    pub norm: VectorPlan,
    /// `[vocabulary, h]`
    pub output: MatrixPlan,
}

impl VectorPlan {
    /// Its elements, in the order of [`VectorPlan::pairs`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where one of them is not finite; [`Error::OutOfMemory`].
    pub fn read(&self, file: &Gguf) -> Result<Vec<f32>, Error> {
        let values = file.require(&self.name)?.to_f32()?;
        if !all_finite(&values) {
            return Err(Error::invalid("model", format!("tensor {:?} holds numbers that are not finite", self.name)));
        }
        Ok(match self.pairs {
            Some(pairs) => (0..values.len()).map(|row| values[pairs.source_row(row)]).collect(),
            None => values,
        })
    }
}

impl DeltaPlan {
    /// `[kernel, channels]`: the taps of the convolution, the oldest position first.
    ///
    /// # Errors
    /// As [`VectorPlan::read`].
    pub fn taps(&self, file: &Gguf) -> Result<Vec<f32>, Error> {
        let taps = self.convolution.read(file)?;
        let of_tap = |tap: usize| (0..self.shape.channels()).map(move |channel| channel * self.shape.kernel + tap);
        Ok((0..self.shape.kernel).flat_map(of_tap).map(|at| taps[at]).collect())
    }

    /// `[value heads]`: rates by which states decay.
    ///
    /// # Errors
    /// As [`VectorPlan::read`]; [`Error::Invalid`] where a state would grow.
    pub fn decay_rates(&self, file: &Gguf) -> Result<Vec<f32>, Error> {
        let rates = self.a.read(file)?;
        match rates.iter().find(|rate| **rate > 0.0) {
            None => Ok(rates),
            Some(rate) => Err(Error::invalid(
                "model",
                format!(
                    "tensor {:?} holds {rate}: a state would grow without end; the file is damaged or was converted wrongly",
                    self.a.name
                ),
            )),
        }
    }
}

impl StagePlan {
    /// The plan of `part`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for layers that the model does not have, and for tensors that are missing or of another shape than the
    /// metadata says; [`Error::Dtype`] for unsupported types.
    pub fn of(file: &ModelFile, part: &ModelPart) -> Result<StagePlan, Error> {
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
        let tensors = Tensors { file: file.gguf(), prefix: String::new() };
        let width = config.hidden_size;
        let (embedding, output) = ("token_embd.weight", "output.weight");
        let is_tied = file.gguf().tensor(output)?.is_none();
        let embedding = (part.embedding && !(part.head && is_tied))
            .then(|| tensors.matrix(embedding, config.vocabulary, width, None))
            .transpose()?;
        let (mut of_kind, mut delta_layers) = ([0; KINDS], 0);
        let layers = part.layers.clone().map(|layer| LayerPlan::of(file, layer, &mut of_kind, &mut delta_layers));
        let layers = layers.collect::<Result<_, Error>>()?;
        let output = if is_tied { "token_embd.weight" } else { output };
        let head = part.head.then(|| {
            Ok::<_, Error>(HeadPlan {
                norm: tensors.vector("output_norm.weight", width)?,
                output: tensors.matrix(output, config.vocabulary, width, None)?,
            })
        });
        let divisors = tensors.optional("rope_freqs.weight", config.rope_dim / 2)?;
        Ok(StagePlan { part: part.clone(), embedding, layers, head: head.transpose()?, divisors })
    }

    /// All matrices, in the order of their use.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        let layers = self.layers.iter().flat_map(LayerPlan::matrices);
        self.embedding.iter().chain(layers).chain(self.head.iter().map(|head| &head.output))
    }

    /// Rotary frequencies of each kind of layers.
    ///
    /// # Errors
    /// As [`VectorPlan::read`].
    pub(crate) fn frequencies(&self, file: &ModelFile) -> Result<[Frequencies; KINDS], Error> {
        let config = file.config();
        let divisors = self.divisors.as_ref().map(|divisors| divisors.read(file.gguf())).transpose()?;
        let everywhere = Frequencies::new(config.rope_dim, config.rope_base, config.rope_scaling, divisors.as_deref());
        let windowed = Frequencies::new(config.rope_dim, config.rope_base_sliding, config.rope_scaling_sliding, None);
        Ok([everywhere, windowed])
    }
}

impl LayerPlan {
    /// Layer `layer` of the model; takes its place among the attention layers of its kind, or among the delta nets, of its part.
    fn of(
        file: &ModelFile,
        layer: usize,
        of_kind: &mut [usize; KINDS],
        delta_layers: &mut usize,
    ) -> Result<LayerPlan, Error> {
        let config = file.config();
        let (architecture, width) = (config.architecture, config.hidden_size);
        let tensors = Tensors { file: file.gguf(), prefix: format!("blk.{layer}.") };
        let mixer = match config.delta.filter(|_| config.is_delta[layer]) {
            Some(shape) => MixerPlan::Delta(Box::new(tensors.delta_net(shape, width, delta_layers)?)),
            None => {
                let window = config.sliding_window[layer];
                MixerPlan::Attention(Box::new(tensors.attention(config, window, of_kind)?))
            }
        };
        let post_attention_norm = match architecture.ffn_norm() {
            // It is the other one's name.
            "post_attention_norm.weight" => None,
            _ => tensors.optional("post_attention_norm.weight", width)?,
        };
        let feed_forward = match (config.experts, config.experts.filter(|experts| layer >= experts.dense_layers)) {
            (_, Some(experts)) => FeedForwardPlan::Experts(Box::new(tensors.experts(config, experts)?)),
            (experts, None) => {
                let f = experts.map_or(config.intermediate_size, |experts| experts.dense_intermediate_size);
                FeedForwardPlan::Dense(Box::new(DensePlan {
                    gate: tensors.matrix("ffn_gate.weight", f, width, None)?,
                    up: tensors.matrix("ffn_up.weight", f, width, None)?,
                    down: tensors.matrix("ffn_down.weight", width, f, None)?,
                }))
            }
        };
        Ok(LayerPlan {
            attention_norm: tensors.vector("attn_norm.weight", width)?,
            mixer,
            post_attention_norm,
            ffn_norm: tensors.vector(architecture.ffn_norm(), width)?,
            feed_forward,
            post_ffn_norm: tensors.optional("post_ffw_norm.weight", width)?,
        })
    }

    /// The layer's matrices, in the order of their use.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        let mixer = match &self.mixer {
            MixerPlan::Attention(plan) => vec![&plan.q, &plan.k, &plan.v, &plan.o],
            MixerPlan::Delta(plan) => plan.inputs.iter().chain([&plan.output]).collect(),
        };
        let feed_forward = match &self.feed_forward {
            FeedForwardPlan::Dense(plan) => vec![&plan.gate, &plan.up, &plan.down],
            FeedForwardPlan::Experts(plan) => {
                [&plan.router].into_iter().chain(&plan.gate).chain(&plan.up).chain(&plan.down).collect()
            }
        };
        mixer.into_iter().chain(feed_forward)
    }
}

/// The tensors of a file whose names begin with a prefix.
struct Tensors<'a> {
    file: &'a Gguf,
    prefix: String,
}

impl Tensors<'_> {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A vector that may be missing.
    fn optional(&self, name: &str, len: usize) -> Result<Option<VectorPlan>, Error> {
        let name = self.named(name);
        let Some(view) = self.file.tensor(&name)? else { return Ok(None) };
        if view.elements() != len {
            return Err(Error::invalid(
                "model",
                format!("tensor {name:?} has {} elements, but the metadata says {len}", view.elements()),
            ));
        }
        Ok(Some(VectorPlan { name, len, pairs: None }))
    }

    fn vector(&self, name: &str, len: usize) -> Result<VectorPlan, Error> {
        self.optional(name, len)?
            .ok_or_else(|| Error::invalid("model", format!("the file has no tensor {:?}", self.named(name))))
    }

    /// A vector that is there wherever `is_required`.
    fn maybe(&self, is_required: bool, name: &str, len: usize) -> Result<Option<VectorPlan>, Error> {
        if is_required { self.vector(name, len).map(Some) } else { self.optional(name, len) }
    }

    fn matrix(&self, name: &str, rows: usize, k: usize, pairs: Option<Pairs>) -> Result<MatrixPlan, Error> {
        let name = self.named(name);
        let view = self.file.require(&name)?;
        if (view.row_len(), view.rows()) != (k, rows) {
            return Err(Error::invalid(
                "model",
                format!("tensor {name:?} is {} x {}, but the metadata says {rows} x {k}", view.rows(), view.row_len()),
            ));
        }
        matrix(name.into(), &view, rows, k, self.file.range_of(&view), pairs)
    }

    /// The matrices of a tensor `[experts, rows, k]`.
    fn matrix_of_each(&self, name: &str, experts: usize, rows: usize, k: usize) -> Result<Vec<MatrixPlan>, Error> {
        let name: Arc<str> = self.named(name).into();
        let view = self.file.require(&name)?;
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
        let bytes = self.file.range_of(&view);
        let len = (bytes.end - bytes.start) / experts as u64;
        let of_expert = |start: u64| matrix(Arc::clone(&name), &view, rows, k, start..start + len, None);
        (0..experts as u64).map(|expert| of_expert(bytes.start + expert * len)).collect()
    }

    fn attention(
        &self,
        config: &ModelConfig,
        window: usize,
        of_kind: &mut [usize; KINDS],
    ) -> Result<AttentionPlan, Error> {
        let (architecture, width, head) = (config.architecture, config.hidden_size, config.head_dim);
        let (query, kv) = (config.query_len(), config.kv_len());
        let pairs = architecture.interleaved_pairs().then_some(Pairs { head, rotated: config.rope_dim });
        // Each head's query is followed by its gate.
        let gated = if architecture.has_delta_nets() { 2 * query } else { query };
        let reordered = |bias: Option<VectorPlan>| bias.map(|bias| VectorPlan { pairs, ..bias });
        let (has_biases, has_norms) = (architecture.has_all_biases(), architecture.has_delta_nets());
        let bias = |name: &str, len: usize| self.maybe(has_biases, name, len);
        let place = &mut of_kind[kind_of(window)];
        *place += 1;
        Ok(AttentionPlan {
            q: self.matrix("attn_q.weight", gated, width, pairs)?,
            k: self.matrix("attn_k.weight", kv, width, pairs)?,
            v: self.matrix("attn_v.weight", kv, width, None)?,
            o: self.matrix("attn_output.weight", width, query, None)?,
            q_bias: reordered(bias("attn_q.bias", query)?),
            k_bias: reordered(bias("attn_k.bias", kv)?),
            v_bias: bias("attn_v.bias", kv)?,
            o_bias: bias("attn_output.bias", width)?,
            q_norm: self.maybe(has_norms, "attn_q_norm.weight", head)?,
            k_norm: self.maybe(has_norms, "attn_k_norm.weight", head)?,
            sinks: has_biases.then(|| self.vector("attn_sinks.weight", config.heads)).transpose()?,
            sliding_window: window,
            page_layer: *place - 1,
        })
    }

    fn delta_net(&self, shape: DeltaShape, width: usize, delta_layers: &mut usize) -> Result<DeltaPlan, Error> {
        let older = self.named("ssm_in.weight");
        if self.file.tensor(&self.named("attn_qkv.weight"))?.is_none() && self.file.tensor(&older)?.is_some() {
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {older:?} is of an older form of these files, in which queries, keys and values are mixed: \
                     get a file that was converted later"
                ),
            ));
        }
        let heads = shape.value_heads;
        let input = |name: &str, rows| self.matrix(name, rows, width, None);
        let mut inputs = vec![input("attn_qkv.weight", shape.channels())?];
        if shape.tiled {
            inputs.push(input("ssm_beta.weight", heads)?);
            inputs.push(input("ssm_alpha.weight", heads)?);
        } else {
            inputs.push(input("ssm_ba.weight", 2 * heads)?);
        }
        inputs.push(input("attn_gate.weight", shape.value_len())?);
        *delta_layers += 1;
        Ok(DeltaPlan {
            shape,
            inputs,
            convolution: self.vector("ssm_conv1d.weight", shape.kernel * shape.channels())?,
            dt: self.vector("ssm_dt.bias", heads)?,
            a: self.vector("ssm_a", heads)?,
            norm: self.vector("ssm_norm.weight", shape.value_dim)?,
            output: self.matrix("ssm_out.weight", width, shape.value_len(), None)?,
            state_layer: *delta_layers - 1,
        })
    }

    fn experts(&self, config: &ModelConfig, experts: Experts) -> Result<ExpertsPlan, Error> {
        let (architecture, width, f) = (config.architecture, config.hidden_size, config.intermediate_size);
        let router = self.matrix("ffn_gate_inp.weight", experts.count, width, None)?;
        if !matches!(router.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {:?} is {}: a router must be F32, F16 or BF16, or rounding would choose the experts",
                    router.name,
                    router.ty.name()
                ),
            ));
        }
        // Those that compute every row follow those that are chosen.
        let of_each = |which: &str, rows: usize, k: usize| -> Result<Vec<MatrixPlan>, Error> {
            let mut all = self.matrix_of_each(&format!("ffn_{which}_exps.weight"), experts.count, rows, k)?;
            for _ in 0..experts.shared {
                all.push(self.matrix(&format!("ffn_{which}_shexp.weight"), rows, k, None)?);
            }
            Ok(all)
        };
        let biases = architecture.has_all_biases().then(|| {
            let of_each = |name: &str, len: usize| self.vector(name, experts.count * len);
            Ok::<_, Error>([
                of_each("ffn_gate_inp.bias", 1)?,
                of_each("ffn_gate_exps.bias", f)?,
                of_each("ffn_up_exps.bias", f)?,
                of_each("ffn_down_exps.bias", width)?,
            ])
        });
        Ok(ExpertsPlan {
            used: experts.used,
            router,
            gating: match experts.sigmoid {
                false => GatingPlan::Softmax,
                true => GatingPlan::Sigmoid {
                    correction: self.optional("exp_probs_b.bias", experts.count)?,
                    scale: experts.scale,
                },
            },
            gate: of_each("gate", f, width)?,
            up: of_each("up", f, width)?,
            down: of_each("down", width, f)?,
            shared_gate: match architecture.gates_shared_expert() {
                true => Some(self.vector("ffn_gate_inp_shexp.weight", width)?),
                false => None,
            },
            biases: biases.transpose()?,
        })
    }
}

/// A matrix whose bytes are at `bytes` of the file, which lie in the tensor of `view`.
fn matrix(
    name: Arc<str>,
    view: &TensorView<'_>,
    rows: usize,
    k: usize,
    bytes: Range<u64>,
    pairs: Option<Pairs>,
) -> Result<MatrixPlan, Error> {
    let ty = view.ggml_type;
    if !k.is_multiple_of(ty.block_len()) {
        return Err(Error::invalid(
            "model",
            format!("tensor {name:?}: rows of {k} are not whole blocks of {}", ty.name()),
        ));
    }
    Ok(MatrixPlan { name, ty, rows, k, bytes, pairs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_pairs_become_halves() {
        let pairs = Pairs { head: 6, rotated: 4 };
        let order: Vec<usize> = (0..12).map(|row| pairs.source_row(row)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
    }
}
