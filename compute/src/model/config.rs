//! A model's configuration as its GGUF file states it: architecture, sizes, norms, rotary embedding, sliding windows
//! and caps, parsed once into a type that cannot be wrong. Only metadata is read, no tensors.

use crate::Error;
use crate::gguf::Metadata;
use crate::kernel::float::activation::Activation;
use crate::kernel::float::norm::MAX_HEAD_DIM;
use crate::model::frequencies::{RopeScaling, Yarn};
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
    /// Gemma 3: sliding windows, norms after as well as before, scaled embeddings.
    Gemma3,
}

impl Architecture {
    /// All supported architectures.
    pub const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3, Architecture::Gemma3];

    /// The name in GGUF files, which is also the prefix of the model's keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma3 => "gemma3",
        }
    }

    fn from_name(name: &str) -> Result<Architecture, Error> {
        Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            let known = Architecture::ALL.map(Architecture::name).join(", ");
            Error::invalid("model", format!("architecture {name:?} is not supported; supported: {known}"))
        })
    }

    /// Whether the file's rotary pairs are (2i, 2i + 1), not (i, i + half).
    pub(crate) fn interleaved_pairs(self) -> bool {
        self == Architecture::Llama
    }

    pub(crate) fn activation(self) -> Activation {
        match self {
            Architecture::Gemma3 => Activation::Gelu,
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
    /// Elements inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// The number of tokens.
    pub vocabulary: usize,
    /// Positions of one session, at most.
    pub context: usize,
    pub(crate) epsilon: f32,
    /// Elements of a head that are rotated.
    pub(crate) rope_dim: usize,
    pub(crate) rope_base: f64,
    pub(crate) rope_scaling: RopeScaling,
    /// RoPE base of layers with a sliding window, unscaled.
    pub(crate) rope_base_sliding: f64,
    /// Per layer, the positions that a row attends to, its own included; `usize::MAX` without a sliding window.
    pub(crate) sliding_window: Vec<usize>,
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
        if keys.integer("expert_count", 0, 1 << 20)?.is_some_and(|experts| experts > 0) {
            return Err(Error::invalid("model", "mixture-of-experts models are not supported; use a dense model"));
        }
        let layers = keys.required("block_count", 1, MAX_LAYERS.into())?;
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
        let context = keys.required("context_length", 1, MAX_CONTEXT)?;
        let sliding_window = keys.sliding_windows(layers, architecture)?;
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
            intermediate_size: keys.required("feed_forward_length", 1, MAX_HIDDEN_SIZE)?,
            vocabulary: vocabulary as usize,
            context,
            epsilon: keys.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
            rope_dim,
            rope_base: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: keys.rope_scaling(context)?,
            rope_base_sliding: keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0),
            sliding_window,
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

    /// Bytes of keys and values of one position in one layer of a [`Cache`](super::Cache).
    pub fn position_bytes(&self) -> u64 {
        2 * (self.kv_len() * size_of::<half::f16>()) as u64
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

    /// Sliding windows of Gemma 3: every sixth layer attends to all positions, unless the file gives another pattern.
    fn sliding_windows(&self, layers: usize, architecture: Architecture) -> Result<Vec<usize>, Error> {
        let mut windows = vec![usize::MAX; layers];
        if architecture != Architecture::Gemma3 {
            return Ok(windows);
        }
        let Some(window) = self.integer("attention.sliding_window", 0, MAX_CONTEXT)?.filter(|window| *window > 0)
        else {
            return Ok(windows);
        };
        let key = format!("{}.attention.sliding_window_pattern", self.prefix);
        let windowed: Vec<bool> = match self.metadata.get(&key) {
            None => (0..layers).map(|layer| layer % 6 < 5).collect(),
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

    fn rope_scaling(&self, context: usize) -> Result<RopeScaling, Error> {
        let factor = match self.positive("rope.scaling.factor")? {
            Some(factor) => factor,
            // The older name of the key.
            None => self.positive("rope.scale_linear")?.unwrap_or(1.0),
        };
        let kind = self.metadata.get_str(&format!("{}.rope.scaling.type", self.prefix))?.unwrap_or("linear");
        match kind {
            "none" => Ok(RopeScaling::Linear(1.0)),
            "linear" => Ok(RopeScaling::Linear(factor)),
            "yarn" => Ok(RopeScaling::Yarn(Yarn {
                factor,
                original_context: self
                    .integer("rope.scaling.original_context_length", 1, MAX_CONTEXT)?
                    .unwrap_or(context) as f64,
                attention_factor: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            })),
            other => Err(self.wrong(format!("rope scaling {other:?} is not supported; supported: none, linear, yarn"))),
        }
    }
}
