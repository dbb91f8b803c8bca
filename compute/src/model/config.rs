//! A model's configuration as its GGUF file states it: architecture, sizes, norms, rotary embedding, sliding windows
//! and caps, parsed once into a type that cannot be wrong. Only metadata is read, no tensors.

use crate::Error;
use crate::gguf::Metadata;
use crate::kernel::float::activation::Activation;
use crate::kernel::float::norm::MAX_HEAD_DIM;
use crate::kernel::state::{DeltaShape, MAX_KERNEL, StateShape};
use crate::model::frequencies::{RopeScaling, Yarn};
use pangea_units::ByteSize;
use pangea_units::limits::MAX_LAYERS;

/// A family of models with the same layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2, Mistral.
    Llama,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: norms on queries and keys.
    Qwen3,
    /// Qwen 3 with a mixture of experts in every layer (Qwen3-30B-A3B, 235B-A22B).
    Qwen3Moe,
    /// Gemma 3: sliding windows, norms after as well as before, scaled embeddings.
    Gemma3,
    /// GLM-4.5 and 4.5-Air: a mixture of experts beside one that computes every row, after the first layers, which are dense;
    /// a router of sigmoids; a part of each head is rotated.
    Glm4Moe,
    /// gpt-oss 20b and 120b: a mixture of experts in every layer, biases everywhere, every second layer with a sliding window,
    /// attention sinks, a clamped activation.
    GptOss,
    /// Qwen 3.5 and 3.6, dense: most layers are gated delta nets, the others attend with a gate at their output.
    Qwen35,
    /// Qwen 3.5 and 3.6 with a mixture of experts beside one that computes every row, by a gate of its own.
    Qwen35Moe,
    /// Qwen3-Next: layers like those of Qwen 3.5's mixtures, with value heads in another order.
    Qwen3Next,
}

impl Architecture {
    /// All supported architectures.
    pub const ALL: [Architecture; 10] = [
        Architecture::Llama,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::Gemma3,
        Architecture::Glm4Moe,
        Architecture::GptOss,
        Architecture::Qwen35,
        Architecture::Qwen35Moe,
        Architecture::Qwen3Next,
    ];

    /// The name in GGUF files, which is also the prefix of the model's keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Gemma3 => "gemma3",
            Architecture::Glm4Moe => "glm4moe",
            Architecture::GptOss => "gpt-oss",
            Architecture::Qwen35 => "qwen35",
            Architecture::Qwen35Moe => "qwen35moe",
            Architecture::Qwen3Next => "qwen3next",
        }
    }

    fn from_name(name: &str) -> Result<Architecture, Error> {
        Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            let known = Architecture::ALL.map(Architecture::name).join(", ");
            Error::invalid("model", format!("architecture {name:?} is not supported; supported: {known}"))
        })
    }

    /// Whether the feed-forward blocks are mixtures of experts.
    fn has_experts(self) -> bool {
        matches!(
            self,
            Architecture::Qwen3Moe
                | Architecture::Glm4Moe
                | Architecture::GptOss
                | Architecture::Qwen35Moe
                | Architecture::Qwen3Next
        )
    }

    /// Whether most layers are gated delta nets; the others then attend with a gate.
    pub(crate) fn has_delta_nets(self) -> bool {
        matches!(self, Architecture::Qwen35 | Architecture::Qwen35Moe | Architecture::Qwen3Next)
    }

    /// Whether the expert that computes every row has a gate of its own.
    pub(crate) fn gates_shared_expert(self) -> bool {
        self.has_experts() && self.has_delta_nets()
    }

    /// Whether every matrix of a layer has a bias, router and experts included, and every query head a sink: then a file
    /// without them is damaged.
    pub(crate) fn has_all_biases(self) -> bool {
        self == Architecture::GptOss
    }

    /// The tensor of the norm before the feed-forward block. Some files name it after what it follows.
    pub(crate) fn ffn_norm(self) -> &'static str {
        match self {
            Architecture::Glm4Moe | Architecture::GptOss => "post_attention_norm.weight",
            _ if self.has_delta_nets() => "post_attention_norm.weight",
            _ => "ffn_norm.weight",
        }
    }

    /// Layers from one that attends to all positions to the next, where the file does not say; `None` without sliding windows.
    fn window_period(self) -> Option<usize> {
        match self {
            Architecture::Gemma3 => Some(6),
            Architecture::GptOss => Some(2),
            _ => None,
        }
    }

    /// Whether the file's rotary pairs are (2i, 2i + 1), not (i, i + half).
    pub(crate) fn interleaved_pairs(self) -> bool {
        self == Architecture::Llama
    }

    pub(crate) fn activation(self) -> Activation {
        match self {
            Architecture::Gemma3 => Activation::Gelu,
            Architecture::GptOss => Activation::Clamped,
            _ => Activation::Silu,
        }
    }
}

/// How the states of a text's positions become one embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean: also for files that do not say, which were not made for embeddings.
    #[default]
    Mean,
    /// The state of the first position.
    First,
    /// The state of the last position.
    Last,
}

/// Limits on the sizes that a file may state: far above any known model, low enough that no product of two overflows.
const MAX_HIDDEN_SIZE: u64 = 1 << 20;
const MAX_VOCABULARY: u64 = 1 << 24;
const MAX_CONTEXT: u64 = 1 << 22;

/// Experts of a layer, at most: twice those of the known models with the most (512). It bounds the router's logits and the
/// slots of a pass, whatever a file claims.
const MAX_EXPERTS: u64 = 1 << 10;

/// The experts of a layer whose feed-forward block is a mixture (Shazeer et al. 2017).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts of a layer from which the router chooses.
    pub count: usize,
    /// Experts that it chooses for one position; at least 1, at most [`Experts::count`].
    pub used: usize,
    /// Experts of a layer that compute every position; 0 or 1.
    pub shared: usize,
    /// Layers at the beginning that are dense.
    pub dense_layers: usize,
    /// Elements inside the feed-forward block of those.
    pub dense_intermediate_size: usize,
    /// Whether the router's scores are sigmoids, not a softmax.
    pub sigmoid: bool,
    /// Factor of the chosen experts' weights, where the scores are sigmoids.
    pub scale: f32,
}

/// Bytes of the recurrent state of one layer and session, at most: five times that of the largest known model.
const MAX_STATE_BYTES: usize = 16 << 20;

/// A model's sizes and settings. Sizes are in elements.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The architecture.
    pub architecture: Architecture,
    /// The model's name for people; the architecture's name where the file has none.
    pub name: String,
    /// The number of layers (blocks).
    pub layers: usize,
    /// Elements of the activations of one position.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; the number of query heads is a multiple.
    pub kv_heads: usize,
    /// Elements of one head's vectors.
    pub head_dim: usize,
    /// Elements inside a feed-forward block; inside one expert, where there are experts.
    pub intermediate_size: usize,
    /// The experts of every layer; `None` for a dense model.
    pub experts: Option<Experts>,
    /// The number of tokens.
    pub vocabulary: usize,
    /// Positions of one session, at most.
    pub context: usize,
    pub(crate) epsilon: f32,
    /// Elements of a head that are rotated.
    pub(crate) rope_dim: usize,
    pub(crate) rope_base: f64,
    pub(crate) rope_scaling: RopeScaling,
    /// RoPE base of layers with a sliding window.
    pub(crate) rope_base_sliding: f64,
    /// How the frequencies of those layers are scaled.
    pub(crate) rope_scaling_sliding: RopeScaling,
    /// Per layer, the positions that a row attends to, its own included; `usize::MAX` without a sliding window.
    pub(crate) sliding_window: Vec<usize>,
    /// The gated delta nets, where layers are such.
    pub(crate) delta: Option<DeltaShape>,
    /// Per layer, whether it is a gated delta net, not attention.
    pub(crate) is_delta: Vec<bool>,
    pub(crate) attention_scale: f32,
    pub(crate) attention_soft_cap: Option<f32>,
    pub(crate) logit_soft_cap: Option<f32>,
    pub(crate) embedding_scale: f32,
    /// How embeddings are pooled.
    pub pooling: Pooling,
}

impl ModelConfig {
    /// Reads and checks the metadata.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unsupported architecture (the message names the supported ones), for missing keys and
    /// for impossible sizes.
    pub fn from_metadata(metadata: &Metadata, vocabulary: u64) -> Result<ModelConfig, Error> {
        let name = metadata.get_str("general.architecture")?;
        let Some(name) = name else {
            return Err(Error::invalid(
                "model",
                "the file does not name its architecture (general.architecture is missing)",
            ));
        };
        let architecture = Architecture::from_name(name)?;
        let keys = Keys { metadata, prefix: architecture.name() };
        let experts = keys.experts(architecture)?;
        let blocks = keys.required("block_count", 1, MAX_LAYERS.into())?;
        // Blocks at the end that predict further tokens are no layers of the model.
        let layers = match keys.integer("nextn_predict_layers", 0, MAX_LAYERS.into())? {
            Some(predicting) if predicting >= blocks => {
                return Err(keys.wrong(format!("nextn_predict_layers is {predicting} of {blocks} blocks")));
            }
            predicting => blocks - predicting.unwrap_or(0),
        };
        let hidden_size = keys.required("embedding_length", 16, MAX_HIDDEN_SIZE)?;
        let heads = keys.required("attention.head_count", 1, 1 << 12)?;
        let kv_heads = keys.integer("attention.head_count_kv", 1, heads as u64)?.unwrap_or(heads);
        let head_dim = keys.integer("attention.key_length", 1, MAX_HEAD_DIM as u64)?.unwrap_or(hidden_size / heads);
        let value_dim = keys.integer("attention.value_length", 1, MAX_HEAD_DIM as u64)?.unwrap_or(head_dim);
        let rope_dim = keys.integer("rope.dimension_count", 2, head_dim as u64)?.unwrap_or(head_dim);
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.wrong(format!("{heads} query heads cannot share {kv_heads} key-value heads")));
        }
        if value_dim != head_dim || !head_dim.is_multiple_of(16) || head_dim > MAX_HEAD_DIM || rope_dim % 2 != 0 {
            return Err(keys.wrong(format!(
                "heads of {head_dim} (keys), {value_dim} (values), {rope_dim} (rotated) elements are not supported: \
                 keys and values must be alike and a multiple of 16, at most {MAX_HEAD_DIM}"
            )));
        }
        if !(1..=MAX_VOCABULARY).contains(&vocabulary) {
            return Err(keys.wrong(format!("a vocabulary of {vocabulary} tokens is not supported")));
        }
        if architecture.has_delta_nets() {
            keys.check_rope_sections(rope_dim)?;
        }
        let context = keys.required("context_length", 1, MAX_CONTEXT)?;
        let sliding_window = keys.sliding_windows(layers, architecture)?;
        let rope_base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let rope_scaling = keys.rope_scaling(context, architecture)?;
        // Gemma scales the layers that see everything only.
        let scaled = architecture == Architecture::GptOss;
        let (base_sliding, rope_scaling_sliding) =
            if scaled { (rope_base, rope_scaling) } else { (10_000.0, RopeScaling::Linear(1.0)) };
        let attention_scale = match (architecture, layers) {
            // The 27B model scales by `hidden_size / heads`, which is not its `head_dim`.
            (Architecture::Gemma3, 62) => 1.0 / ((hidden_size / heads) as f32).sqrt(),
            _ => 1.0 / (head_dim as f32).sqrt(),
        };
        Ok(ModelConfig {
            architecture,
            name: metadata.get_str("general.name")?.unwrap_or(architecture.name()).to_owned(),
            layers,
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: match experts {
                Some(_) => keys.required("expert_feed_forward_length", 1, MAX_HIDDEN_SIZE)?,
                None => keys.required("feed_forward_length", 1, MAX_HIDDEN_SIZE)?,
            },
            experts,
            vocabulary: vocabulary as usize,
            context,
            epsilon: keys.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
            rope_dim,
            rope_base,
            rope_scaling,
            rope_base_sliding: keys.positive("rope.freq_base_swa")?.unwrap_or(base_sliding),
            rope_scaling_sliding,
            sliding_window,
            delta: architecture.has_delta_nets().then(|| keys.delta(architecture)).transpose()?,
            is_delta: keys.delta_layers(architecture, layers)?,
            attention_scale: keys.positive("attention.scale")?.map_or(attention_scale, |scale| scale as f32),
            attention_soft_cap: keys.positive("attn_logit_softcapping")?.map(|cap| cap as f32),
            logit_soft_cap: keys.positive("final_logit_softcapping")?.map(|cap| cap as f32),
            pooling: match keys.integer("pooling_type", 0, 16)? {
                Some(2) => Pooling::First,
                Some(3) => Pooling::Last,
                _ => Pooling::Mean,
            },
            embedding_scale: if architecture == Architecture::Gemma3 { (hidden_size as f32).sqrt() } else { 1.0 },
        })
    }

    /// Positions that rows of layers with a sliding window see; `None` where no layer has one.
    pub fn window(&self) -> Option<usize> {
        self.sliding_window.iter().copied().filter(|window| *window != usize::MAX).max()
    }

    /// Bytes of keys and values of one position in one layer of a [`Cache`](super::Cache), for a layer that attends.
    pub fn position_bytes(&self) -> u64 {
        2 * (self.kv_len() * size_of::<half::f16>()) as u64
    }

    /// Bytes of a session in one layer that has a recurrent state, whatever its number of positions; 0 where no layer has one.
    pub fn sequence_bytes(&self) -> u64 {
        self.delta.map_or(0, |shape| super::cache::states::bytes(StateShape { layers: 1, shape }))
    }

    /// [`ModelConfig::sequence_bytes`] while a step of several passes is computed.
    pub(crate) fn most_sequence_bytes(&self) -> u64 {
        self.delta.map_or(0, |shape| super::cache::states::most_bytes(StateShape { layers: 1, shape }))
    }

    /// Bytes of one position of a session of `positions` positions, in the layer that takes most: of keys and values, or its share
    /// of the recurrent state.
    pub fn session_position_bytes(&self, positions: usize) -> u64 {
        let attends = self.is_delta.contains(&false);
        let state = self.sequence_bytes().div_ceil(positions.max(1) as u64);
        state.max(if attends { self.position_bytes() } else { 0 })
    }

    /// Whether a session has a recurrent state, which goes back only to where it was kept.
    pub fn is_recurrent(&self) -> bool {
        self.is_delta.contains(&true)
    }

    /// Length of all query heads together.
    pub(crate) fn query_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Length of all key (or value) heads together.
    pub(crate) fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The metadata keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
}

impl Keys<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid("model", format!("the file's {} metadata is not usable: {what}", self.prefix))
    }

    fn integer(&self, key: &str, least: u64, most: u64) -> Result<Option<usize>, Error> {
        let Some(value) = self.metadata.get_u64(&format!("{}.{key}", self.prefix))? else { return Ok(None) };
        if !(least..=most).contains(&value) {
            return Err(self.wrong(format!("{key} is {value}, outside {least} to {most}")));
        }
        Ok(Some(value as usize))
    }

    fn required(&self, key: &str, least: u64, most: u64) -> Result<usize, Error> {
        self.integer(key, least, most)?.ok_or_else(|| self.wrong(format!("{key} is missing")))
    }

    /// A positive, finite number; zero means "not set", as writers of these files use it.
    fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.metadata.get_f64(&format!("{}.{key}", self.prefix))? {
            None => Ok(None),
            Some(0.0) => Ok(None),
            Some(value) if value.is_finite() && value > 0.0 && value < 1e30 => Ok(Some(value)),
            Some(value) => Err(self.wrong(format!("{key} is {value}"))),
        }
    }

    /// The experts of every layer.
    fn experts(&self, architecture: Architecture) -> Result<Option<Experts>, Error> {
        if !architecture.has_experts() {
            return match self.integer("expert_count", 0, u64::MAX)? {
                None | Some(0) => Ok(None),
                Some(count) => Err(self.wrong(format!(
                    "expert_count is {count}, but mixtures of experts of this architecture are not supported; \
                     use a dense model or one of {}",
                    Architecture::ALL
                        .into_iter()
                        .filter(|a| a.has_experts())
                        .map(Architecture::name)
                        .collect::<Vec<_>>()
                        .join(", ")
                ))),
            };
        }
        let count = self.required("expert_count", 1, MAX_EXPERTS)?;
        let used = self.required("expert_used_count", 1, MAX_EXPERTS)?;
        if used > count {
            return Err(self.wrong(format!("expert_used_count is {used}, more than the {count} of expert_count")));
        }
        let shared = self.integer("expert_shared_count", 0, MAX_EXPERTS)?.unwrap_or(0);
        // The keys of these do not say that there is one.
        let shared = if architecture.gates_shared_expert() { shared.max(1) } else { shared };
        let most_shared = usize::from(architecture == Architecture::Glm4Moe || architecture.gates_shared_expert());
        if shared > most_shared {
            return Err(self.wrong(format!("expert_shared_count is {shared}: at most {most_shared} is supported here")));
        }
        // 1 is a softmax, 2 are sigmoids, in the numbering of these files.
        let sigmoid = architecture == Architecture::Glm4Moe;
        match self.integer("expert_gating_func", 0, u64::from(u32::MAX))? {
            None | Some(0) => {}
            Some(2) if sigmoid => {}
            Some(1) if !sigmoid => {}
            // gpt-oss's: a softmax over the chosen ones, which is the same.
            Some(3) if architecture == Architecture::GptOss => {}
            Some(other) => {
                return Err(self.wrong(format!("expert_gating_func is {other}, which is not supported here")));
            }
        }
        let scale = self.positive("expert_weights_scale")?.map_or(1.0, |scale| scale as f32);
        if !sigmoid && scale != 1.0 {
            return Err(self.wrong(format!("expert_weights_scale is {scale}: a scale is not supported here")));
        }
        if architecture.gates_shared_expert() {
            let own = self.required("expert_feed_forward_length", 1, MAX_HIDDEN_SIZE)?;
            let shared = self.integer("expert_shared_feed_forward_length", 1, MAX_HIDDEN_SIZE)?.unwrap_or(own);
            if shared != own {
                return Err(self.wrong(format!(
                    "expert_shared_feed_forward_length is {shared} and expert_feed_forward_length {own}: only alike are supported"
                )));
            }
        }
        let dense_layers = self.integer("leading_dense_block_count", 0, MAX_LAYERS.into())?.unwrap_or(0);
        if dense_layers > 0 && architecture != Architecture::Glm4Moe {
            return Err(
                self.wrong(format!("leading_dense_block_count is {dense_layers}: dense layers are not supported here"))
            );
        }
        let dense_intermediate_size = match dense_layers {
            0 => 0,
            _ => self.required("feed_forward_length", 1, MAX_HIDDEN_SIZE)?,
        };
        if self.metadata.get_bool(&format!("{}.expert_weights_norm", self.prefix))? == Some(false) {
            return Err(self.wrong("expert_weights_norm is false: weights that are not normalised are not supported"));
        }
        Ok(Some(Experts { count, used, shared, dense_layers, dense_intermediate_size, sigmoid, scale }))
    }

    /// The sizes of gated delta nets.
    fn delta(&self, architecture: Architecture) -> Result<DeltaShape, Error> {
        let key_dim = self.required("ssm.state_size", 16, MAX_HEAD_DIM as u64)?;
        let key_heads = self.required("ssm.group_count", 1, 1 << 12)?;
        let value_heads = self.required("ssm.time_step_rank", 1, 1 << 12)?;
        let inner = self.required("ssm.inner_size", 16, MAX_HIDDEN_SIZE)?;
        let kernel = self.required("ssm.conv_kernel", 1, MAX_KERNEL as u64)?;
        if !value_heads.is_multiple_of(key_heads) {
            return Err(self.wrong(format!(
                "ssm.time_step_rank is {value_heads}: so many value heads cannot share the {key_heads} key heads of ssm.group_count"
            )));
        }
        let value_dim = inner / value_heads;
        let fits = |dim: usize| dim.is_multiple_of(16) && (16..=MAX_HEAD_DIM).contains(&dim);
        if !inner.is_multiple_of(value_heads) || !fits(value_dim) || !fits(key_dim) {
            return Err(self.wrong(format!(
                "ssm.inner_size is {inner} for {value_heads} value heads and ssm.state_size is {key_dim}: heads of both must be \
                 a multiple of 16 elements, at most {MAX_HEAD_DIM}"
            )));
        }
        let tiled = architecture != Architecture::Qwen3Next;
        let shape = DeltaShape { key_heads, value_heads, key_dim, value_dim, kernel, tiled };
        if shape.state_len() * size_of::<f32>() > MAX_STATE_BYTES {
            return Err(self.wrong(format!(
                "{value_heads} states of {key_dim} x {value_dim} are more than {} for each layer",
                ByteSize(MAX_STATE_BYTES as u64)
            )));
        }
        Ok(shape)
    }

    /// Which layers are gated delta nets: all but the last of each interval, unless the file names them.
    fn delta_layers(&self, architecture: Architecture, layers: usize) -> Result<Vec<bool>, Error> {
        if !architecture.has_delta_nets() {
            return Ok(vec![false; layers]);
        }
        let key = "attention.recurrent_layers";
        let full = format!("{}.{key}", self.prefix);
        // Some writers have no bools in arrays.
        let named = match self.metadata.get_bools(&full) {
            Ok(named) => named,
            Err(_) => self.metadata.get_i32s(&full)?.map(|named| named.iter().map(|flag| *flag != 0).collect()),
        };
        if let Some(named) = named {
            // Blocks that predict further tokens may be named, too.
            return match named.get(..layers) {
                Some(named) => Ok(named.to_vec()),
                None => Err(self.wrong(format!("{key} has {} values for {layers} layers", named.len()))),
            };
        }
        let interval = self.integer("full_attention_interval", 1, MAX_LAYERS.into())?.unwrap_or(4);
        Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect())
    }

    /// Sections of rotated pairs, for positions of several dimensions: of text all dimensions are the same, so pairs rotate as
    /// without sections, provided that each belongs to one.
    fn check_rope_sections(&self, rope_dim: usize) -> Result<(), Error> {
        let Some(sections) = self.metadata.get_i32s(&format!("{}.rope.dimension_sections", self.prefix))? else {
            return Ok(());
        };
        let pairs: i64 = sections.iter().map(|pairs| i64::from(*pairs)).sum();
        if sections.iter().any(|pairs| *pairs < 0) || pairs != (rope_dim / 2) as i64 {
            return Err(self.wrong(format!(
                "rope.dimension_sections are {sections:?}, which are not the {} rotated pairs",
                rope_dim / 2
            )));
        }
        Ok(())
    }

    /// Sliding windows: one layer of a period attends to all positions, the last, unless the file gives another pattern.
    fn sliding_windows(&self, layers: usize, architecture: Architecture) -> Result<Vec<usize>, Error> {
        let mut windows = vec![usize::MAX; layers];
        let Some(period) = architecture.window_period() else { return Ok(windows) };
        let Some(window) = self.integer("attention.sliding_window", 0, MAX_CONTEXT)?.filter(|window| *window > 0)
        else {
            return Ok(windows);
        };
        let key = format!("{}.attention.sliding_window_pattern", self.prefix);
        let windowed: Vec<bool> = match self.metadata.get(&key) {
            None => (0..layers).map(|layer| layer % period < period - 1).collect(),
            Some(crate::gguf::Value::Numbers { .. }) => match self.metadata.get_bools(&key)? {
                Some(pattern) if pattern.len() == layers => pattern,
                _ => return Err(self.wrong("attention.sliding_window_pattern does not have one value per layer")),
            },
            Some(_) => {
                let period = self.required("attention.sliding_window_pattern", 1, MAX_LAYERS.into())?;
                (0..layers).map(|layer| period > 1 && layer % period < period - 1).collect()
            }
        };
        for (window_of, windowed) in windows.iter_mut().zip(windowed) {
            if windowed {
                *window_of = window;
            }
        }
        Ok(windows)
    }

    fn rope_scaling(&self, context: usize, architecture: Architecture) -> Result<RopeScaling, Error> {
        let factor = match self.positive("rope.scaling.factor")? {
            Some(factor) => factor,
            // The older name of the key.
            None => self.positive("rope.scale_linear")?.unwrap_or(1.0),
        };
        let kind = self.metadata.get_str(&format!("{}.rope.scaling.type", self.prefix))?.unwrap_or("linear");
        match kind {
            "none" => Ok(RopeScaling::Linear(1.0)),
            "linear" => Ok(RopeScaling::Linear(factor)),
            "yarn" => Ok(RopeScaling::Yarn(self.yarn(factor, context, architecture)?)),
            other => Err(self.wrong(format!("rope scaling {other:?} is not supported; supported: none, linear, yarn"))),
        }
    }
    /// The parameters of YaRN; 0 in a key that cannot be 0 means "not set", as does a negative extrapolation factor.
    fn yarn(&self, factor: f64, context: usize, architecture: Architecture) -> Result<Yarn, Error> {
        let original = self.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT)?.unwrap_or(context);
        let extrapolation_key = format!("{}.rope.scaling.yarn_ext_factor", self.prefix);
        let extrapolation = self.metadata.get_f64(&extrapolation_key)?.filter(|factor| *factor != -1.0);
        let yarn = Yarn {
            factor,
            original_context: original as f64,
            beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            extrapolation: extrapolation.unwrap_or(1.0),
            attention_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            own_attention_factor: self.positive("rope.scaling.yarn_attn_factor")?,
            // gpt-oss's own code does not round the ramp's ends.
            whole_pairs: architecture != Architecture::GptOss,
            log_multiplier: self.positive("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0),
        };
        if yarn.factor < 1.0 {
            return Err(self.wrong(format!("rope.scaling.factor is {factor}; YaRN extends a context, by 1 or more")));
        }
        if yarn.beta_fast <= yarn.beta_slow {
            return Err(self.wrong(format!(
                "rope.scaling.yarn_beta_fast is {} and yarn_beta_slow is {}; the first must be larger",
                yarn.beta_fast, yarn.beta_slow
            )));
        }
        if !(0.0..=1.0).contains(&yarn.extrapolation) {
            return Err(self.wrong(format!("yarn_ext_factor is {}, outside 0 to 1", yarn.extrapolation)));
        }
        if let Some(base) = self.positive("rope.freq_base")?.filter(|base| *base <= 1.0) {
            return Err(self.wrong(format!("rope.freq_base is {base}; YaRN needs one above 1")));
        }
        Ok(yarn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// The configuration of a small model whose file also says these floats.
    fn configured(floats: &[(&str, f32)]) -> Result<ModelConfig, Error> {
        let key = |name: &str| text(&format!("qwen3.{name}"));
        let mut pairs = vec![
            [text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text("qwen3")].concat(),
            [key("rope.scaling.type"), 8_u32.to_le_bytes().to_vec(), text("yarn")].concat(),
        ];
        for (name, value) in [
            ("block_count", 2_u32),
            ("context_length", 65_536),
            ("embedding_length", 64),
            ("feed_forward_length", 64),
            ("attention.head_count", 1),
            ("rope.scaling.original_context_length", 16_384),
        ] {
            pairs.push([key(name), 4_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
        }
        for (name, value) in floats {
            pairs.push([key(name), 6_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat());
        }
        let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &0_u64.to_le_bytes(), &(pairs.len() as u64).to_le_bytes()];
        let mut bytes = [head.concat(), pairs.concat()].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        ModelConfig::from_metadata(Gguf::from_bytes(bytes)?.metadata(), 100)
    }

    #[test]
    fn yarns_parameters_are_the_files_own() {
        let plain = Yarn {
            factor: 4.0,
            original_context: 16_384.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            extrapolation: 1.0,
            attention_factor: 1.0,
            own_attention_factor: None,
            whole_pairs: true,
            log_multiplier: 0.0,
        };
        let factor = ("rope.scaling.factor", 4.0);
        let cases: [(&[(&str, f32)], Yarn); 3] = [
            (&[factor], plain),
            // Not set, as writers spell it.
            (&[factor, ("rope.scaling.yarn_ext_factor", -1.0), ("rope.scaling.yarn_log_multiplier", 0.0)], plain),
            (
                &[
                    factor,
                    ("rope.scaling.yarn_beta_fast", 64.0),
                    ("rope.scaling.yarn_beta_slow", 2.0),
                    ("rope.scaling.yarn_ext_factor", 0.5),
                    ("rope.scaling.attn_factor", 0.75),
                    ("rope.scaling.yarn_attn_factor", 1.25),
                    ("rope.scaling.yarn_log_multiplier", 1.0),
                ],
                Yarn {
                    beta_fast: 64.0,
                    beta_slow: 2.0,
                    extrapolation: 0.5,
                    attention_factor: 0.75,
                    own_attention_factor: Some(1.25),
                    log_multiplier: 1.0,
                    ..plain
                },
            ),
        ];
        for (floats, yarn) in cases {
            assert_eq!(configured(floats).unwrap().rope_scaling, RopeScaling::Yarn(yarn), "{floats:?}");
        }
    }

    #[test]
    fn yarn_that_makes_no_sense_is_refused_by_its_key() {
        let cases: [(&str, f32); 12] = [
            ("rope.scaling.factor", 0.5),
            ("rope.scaling.factor", f32::NAN),
            ("rope.scaling.yarn_beta_fast", 1.0),
            ("rope.scaling.yarn_beta_fast", -32.0),
            ("rope.scaling.yarn_beta_slow", 32.0),
            ("rope.scaling.yarn_beta_slow", f32::INFINITY),
            ("rope.scaling.yarn_ext_factor", 1.5),
            ("rope.scaling.yarn_ext_factor", f32::NAN),
            ("rope.scaling.attn_factor", -1.0),
            ("rope.scaling.yarn_attn_factor", f32::NAN),
            ("rope.scaling.yarn_log_multiplier", -1.0),
            ("rope.freq_base", 1.0),
        ];
        for (key, value) in cases {
            let error = configured(&[(key, value)]).unwrap_err().to_string();
            let name = key.rsplit('.').next().unwrap_or(key);
            assert!(error.contains(name), "{key} of {value}: {error}");
        }
    }
}
