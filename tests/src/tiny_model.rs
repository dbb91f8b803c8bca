//! A model file small enough to be made in a test: a Llama, a Qwen 3 with a mixture of experts or a Qwen 3.5 with recurrent
//! states, of a few layers with pseudo-random weights and a tokenizer of single bytes. Its answers make no sense, but everything that runs a model runs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pangea_units::SplitMix64;

/// Alignment of tensors in bytes.
const ALIGNMENT: usize = 32;

const HEADS: usize = 4;

/// Tokens: every byte, and the two that begin and end a text.
const VOCABULARY: usize = 258;

/// Largest number of positions of a session.
pub const CONTEXT: usize = 512;

/// The contents of a file; tests of errors change them.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Architecture: `llama`, `qwen3moe`, `qwen35`, or an unknown one.
    pub architecture: String,
    /// Name of the model in the file.
    pub name: String,
    /// Seed of the weights.
    pub seed: u64,
    /// Number of layers.
    pub layers: usize,
    /// Elements of the activations; a multiple of 16.
    pub width: usize,
    /// Experts of each layer, of which [`USED_EXPERTS`] compute a row; 0 for a dense model.
    pub experts: usize,
}

/// The architecture with gated delta nets, of which every fourth layer is none.
const RECURRENT: &str = "qwen35";
const ATTENTION_INTERVAL: usize = 4;

/// Of a delta net: the positions that its convolution sees.
const CONV_KERNEL: usize = 4;

/// Experts that compute a row, of a mixture.
pub const USED_EXPERTS: usize = 2;

impl Default for TinyModel {
    fn default() -> TinyModel {
        let (architecture, name) = ("llama".to_owned(), "Tiny".to_owned());
        TinyModel { architecture, name, seed: 1, layers: 2, width: 64, experts: 0 }
    }
}

enum Value {
    U32(u32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Yes,
}

impl TinyModel {
    /// A Qwen 3 whose layers have this many experts.
    pub fn mixture(experts: usize) -> TinyModel {
        TinyModel { architecture: "qwen3moe".to_owned(), experts, ..TinyModel::default() }
    }

    /// A Qwen 3.5, three of whose four layers are gated delta nets.
    pub fn recurrent() -> TinyModel {
        TinyModel { architecture: RECURRENT.to_owned(), layers: 4, ..TinyModel::default() }
    }

    /// The bytes of the file.
    pub fn gguf(&self) -> Vec<u8> {
        let mut random = SplitMix64::new(self.seed);
        file(&self.metadata(), &self.tensors(), &mut random)
    }

    /// The same model as a split one: files of so many tensors each, the last one of the rest.
    pub fn parts(&self, tensors_of_parts: &[usize]) -> Vec<Vec<u8>> {
        let (mut metadata, all) = (self.metadata(), self.tensors());
        let (mut rest, mut random) = (&all[..], SplitMix64::new(self.seed));
        let count = tensors_of_parts.len() + 1;
        let sizes = tensors_of_parts.iter().copied().chain([usize::MAX]);
        let parts = sizes.enumerate().map(|(number, size)| {
            let (tensors, others) = rest.split_at(size.min(rest.len()));
            rest = others;
            metadata.insert("split.no".to_owned(), Value::U32(number as u32));
            metadata.insert("split.count".to_owned(), Value::U32(count as u32));
            metadata.insert("split.tensors.count".to_owned(), Value::U32(all.len() as u32));
            let part = file(&metadata, tensors, &mut random);
            // Only the first part describes the model.
            metadata.clear();
            part
        });
        parts.collect()
    }

    /// Writes [`TinyModel::parts`] under the names of a split model; returns the first path.
    ///
    /// # Panics
    /// Where the folder cannot be written.
    pub fn write_parts(&self, folder: &Path, stem: &str, tensors_of_parts: &[usize]) -> PathBuf {
        let parts = self.parts(tensors_of_parts);
        let path = |number: usize| folder.join(format!("{stem}-{:05}-of-{:05}.gguf", number + 1, parts.len()));
        parts.iter().enumerate().for_each(|(number, bytes)| std::fs::write(path(number), bytes).unwrap());
        path(0)
    }

    fn metadata(&self) -> BTreeMap<String, Value> {
        let of_model = |key: &str| format!("{}.{key}", self.architecture);
        let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
        tokens.extend(["<begin>".to_owned(), "<end>".to_owned()]);
        let mut kinds = vec![1; VOCABULARY];
        kinds[256..].fill(3);
        let mut metadata: BTreeMap<String, Value> = [
            ("general.architecture".to_owned(), Value::Text(self.architecture.clone())),
            ("general.name".to_owned(), Value::Text(self.name.clone())),
            (of_model("block_count"), Value::U32(self.layers as u32)),
            (of_model("context_length"), Value::U32(CONTEXT as u32)),
            (of_model("embedding_length"), Value::U32(self.width as u32)),
            (of_model("feed_forward_length"), Value::U32(2 * self.width as u32)),
            (of_model("attention.head_count"), Value::U32(HEADS as u32)),
            (of_model("attention.head_count_kv"), Value::U32(HEADS as u32 / 2)),
            (of_model("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            ("tokenizer.ggml.model".to_owned(), Value::Text("gpt2".to_owned())),
            ("tokenizer.ggml.pre".to_owned(), Value::Text("smollm".to_owned())),
            ("tokenizer.ggml.tokens".to_owned(), Value::Texts(tokens)),
            ("tokenizer.ggml.token_type".to_owned(), Value::Integers(kinds)),
            ("tokenizer.ggml.merges".to_owned(), Value::Texts(Vec::new())),
            ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(256)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(257)),
            ("tokenizer.ggml.add_bos_token".to_owned(), Value::Yes),
        ]
        .into_iter()
        .collect();
        if self.experts > 0 {
            metadata.extend([
                (of_model("expert_count"), Value::U32(self.experts as u32)),
                (of_model("expert_used_count"), Value::U32(USED_EXPERTS as u32)),
                (of_model("expert_feed_forward_length"), Value::U32(self.width as u32)),
            ]);
        }
        if self.architecture == RECURRENT {
            let head = self.width / HEADS;
            metadata.extend(
                [
                    ("full_attention_interval", ATTENTION_INTERVAL),
                    ("ssm.conv_kernel", CONV_KERNEL),
                    ("ssm.state_size", head),
                    ("ssm.group_count", HEADS / 2),
                    ("ssm.time_step_rank", HEADS),
                    ("ssm.inner_size", self.width),
                ]
                .map(|(key, value)| (of_model(key), Value::U32(value as u32))),
            );
        }
        metadata
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.width;
        let mut tensors = vec![("token_embd.weight".to_owned(), vec![width, VOCABULARY])];
        for layer in 0..self.layers {
            let mixer = match self.architecture == RECURRENT {
                false => self.attention(),
                true if (layer + 1) % ATTENTION_INTERVAL == 0 => self.gated_attention(),
                true => self.delta_net(),
            };
            for (name, shape) in mixer.into_iter().chain(self.feed_forward()) {
                tensors.push((format!("blk.{layer}.{name}"), shape));
            }
        }
        tensors.push(("output_norm.weight".to_owned(), vec![width]));
        tensors
    }
}

/// The bytes of a file with these tensors, whose weights are the next of `random`.
fn file(metadata: &BTreeMap<String, Value>, tensors: &[(String, Vec<usize>)], random: &mut SplitMix64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0;
    for (name, shape) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|side| out.extend((*side as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes()); // F32
        out.extend((offset as u64).to_le_bytes());
        offset += (shape.iter().product::<usize>() * 4).next_multiple_of(ALIGNMENT);
    }
    for (name, shape) in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        for _ in 0..shape.iter().product() {
            let weight = match name {
                norm if norm.contains("norm") => 1.0,
                // States forget, some within a few positions, some within a hundred.
                rate if rate.ends_with("ssm_a") => 0.19 * random.signed_unit() - 0.2,
                _ => random.signed_unit() * 0.2,
            };
            out.extend(weight.to_le_bytes());
        }
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// The tensors of a layer, by their names in it.
type LayerTensors = Vec<(&'static str, Vec<usize>)>;

impl TinyModel {
    fn attention(&self) -> LayerTensors {
        let width = self.width;
        vec![
            ("attn_norm.weight", vec![width]),
            ("attn_q.weight", vec![width, width]),
            ("attn_k.weight", vec![width, width / 2]),
            ("attn_v.weight", vec![width, width / 2]),
            ("attn_output.weight", vec![width, width]),
            ("ffn_norm.weight", vec![width]),
        ]
    }

    fn gated_attention(&self) -> LayerTensors {
        let width = self.width;
        vec![
            ("attn_norm.weight", vec![width]),
            ("attn_q.weight", vec![width, 2 * width]),
            ("attn_k.weight", vec![width, width / 2]),
            ("attn_v.weight", vec![width, width / 2]),
            ("attn_output.weight", vec![width, width]),
            ("attn_q_norm.weight", vec![width / HEADS]),
            ("attn_k_norm.weight", vec![width / HEADS]),
            ("post_attention_norm.weight", vec![width]),
        ]
    }

    fn delta_net(&self) -> LayerTensors {
        let (width, channels) = (self.width, 2 * self.width);
        vec![
            ("attn_norm.weight", vec![width]),
            ("attn_qkv.weight", vec![width, channels]),
            ("attn_gate.weight", vec![width, width]),
            ("ssm_beta.weight", vec![width, HEADS]),
            ("ssm_alpha.weight", vec![width, HEADS]),
            ("ssm_conv1d.weight", vec![CONV_KERNEL, channels]),
            ("ssm_dt.bias", vec![HEADS]),
            ("ssm_a", vec![HEADS]),
            ("ssm_norm.weight", vec![width / HEADS]),
            ("ssm_out.weight", vec![width, width]),
            ("post_attention_norm.weight", vec![width]),
        ]
    }

    /// A feed-forward block, and what else an architecture with experts has in a layer.
    fn feed_forward(&self) -> LayerTensors {
        let (width, experts) = (self.width, self.experts);
        if experts == 0 {
            return vec![
                ("ffn_gate.weight", vec![width, 2 * width]),
                ("ffn_up.weight", vec![width, 2 * width]),
                ("ffn_down.weight", vec![2 * width, width]),
            ];
        }
        vec![
            ("attn_q_norm.weight", vec![width / HEADS]),
            ("attn_k_norm.weight", vec![width / HEADS]),
            ("ffn_gate_inp.weight", vec![width, experts]),
            ("ffn_gate_exps.weight", vec![width, width, experts]),
            ("ffn_up_exps.weight", vec![width, width, experts]),
            ("ffn_down_exps.weight", vec![width, width, experts]),
        ]
    }
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, element) = match self {
            Value::U32(_) => (4u32, None),
            Value::F32(_) => (6, None),
            Value::Yes => (7, None),
            Value::Text(_) => (8, None),
            Value::Texts(_) => (9, Some(8u32)),
            Value::Integers(_) => (9, Some(5)),
        };
        out.extend(kind.to_le_bytes());
        out.extend(element.into_iter().flat_map(u32::to_le_bytes));
        match self {
            Value::U32(value) => out.extend(value.to_le_bytes()),
            Value::F32(value) => out.extend(value.to_le_bytes()),
            Value::Yes => out.push(1),
            Value::Text(value) => text(out, value),
            Value::Texts(values) => {
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| text(out, value));
            }
            Value::Integers(values) => {
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The character that stands for a byte in byte-level BPE (GPT-2's table).
fn letter(byte: u8) -> char {
    let shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match shown(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|byte| !shown(*byte)).count() as u32;
            char::from_u32(256 + before).unwrap()
        }
    }
}
