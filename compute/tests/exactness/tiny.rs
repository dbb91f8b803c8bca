//! Small models with pseudo-random weights, written as GGUF files in memory: every architecture and weight type, without
//! anything to fetch.

use pangea_compute::gguf::GgmlType;
use pangea_units::SplitMix64;

/// What a tiny model is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiny {
    pub(crate) architecture: &'static str,
    pub(crate) weights: GgmlType,
    pub(crate) seed: u64,
}

pub(crate) const LAYERS: usize = 3;
pub(crate) const WIDTH: usize = 256;
pub(crate) const VOCABULARY: usize = 300;
/// Experts of a layer of a mixture, and those that compute a row.
pub(crate) const EXPERTS: usize = 8;
pub(crate) const USED_EXPERTS: usize = 3;
/// Of gated delta nets: heads of queries and keys, of values, the elements of one, and the positions that a convolution sees.
pub(crate) const KEY_HEADS: usize = 2;
pub(crate) const VALUE_HEADS: usize = 4;
pub(crate) const DELTA_HEAD: usize = 64;
pub(crate) const CONV_KERNEL: usize = 4;
/// Positions that a windowed layer sees: small, so that tests cross it often.
pub(crate) const WINDOW: usize = 24;

/// A model's sizes, in elements, positions and tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
}

pub(crate) const SIZES: Sizes = Sizes {
    layers: LAYERS,
    hidden: WIDTH,
    heads: 4,
    kv_heads: 2,
    head: 64,
    intermediate: 512,
    vocabulary: VOCABULARY,
    context: 512,
};

/// The model as a GGUF file.
pub(crate) fn gguf(tiny: Tiny) -> Vec<u8> {
    gguf_with(tiny, |_, _| {})
}

/// The model with other elements in its vectors and routers, and in its matrices where they are f32; `change` gets them with
/// their names.
pub(crate) fn gguf_with(tiny: Tiny, change: impl Fn(&str, &mut [f32])) -> Vec<u8> {
    gguf_changed(tiny, Changes { elements: &change, ..Changes::NONE })
}

/// What is changed of a model before it becomes a file.
#[derive(Clone, Copy)]
pub(crate) struct Changes<'a> {
    /// The elements of a vector or router, or of a matrix of f32.
    pub(crate) elements: &'a dyn Fn(&str, &mut [f32]),
    /// The value of an integer key; `None` leaves the key out.
    pub(crate) integer: &'a dyn Fn(&str, u32) -> Option<u32>,
    /// The value of a float key; `None` leaves the key out.
    pub(crate) float: &'a dyn Fn(&str, f32) -> Option<f32>,
    /// Anything of a tensor; false leaves the tensor out.
    pub(crate) tensor: &'a dyn Fn(&mut Tensor) -> bool,
}

impl Changes<'_> {
    pub(crate) const NONE: Changes<'static> = Changes {
        elements: &|_, _| {},
        integer: &|_, value| Some(value),
        float: &|_, value| Some(value),
        tensor: &|_| true,
    };
}

/// One tensor of a file; `shape` in the file's order.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) ty: GgmlType,
    pub(crate) bytes: Vec<u8>,
}

/// The model with changes.
pub(crate) fn gguf_changed(tiny: Tiny, changes: Changes<'_>) -> Vec<u8> {
    build(tiny, SIZES, changes)
}

/// A model of these sizes, changed as [`gguf_with`] does.
pub(crate) fn gguf_of(tiny: Tiny, sizes: Sizes, change: impl Fn(&str, &mut [f32])) -> Vec<u8> {
    build(tiny, sizes, Changes { elements: &change, ..Changes::NONE })
}

fn build(tiny: Tiny, sizes: Sizes, changes: Changes<'_>) -> Vec<u8> {
    let mut random = SplitMix64::new(tiny.seed);
    let Sizes { layers, hidden, heads, kv_heads, head, intermediate: ff, vocabulary, context } = sizes;
    let gemma = tiny.architecture == "gemma3";
    let gpt_oss = tiny.architecture == "gpt-oss";
    let glm = tiny.architecture == "glm4moe";
    let delta = matches!(tiny.architecture, "qwen35" | "qwen35moe" | "qwen3next");
    let gated_mixture = delta && tiny.architecture != "qwen35";
    let mixture = tiny.architecture == "qwen3moe" || glm || gpt_oss || gated_mixture;
    // Of these blocks one predicts a further token; one layer is dense.
    let predicts = glm || tiny.architecture == "qwen35";
    let blocks = if predicts { layers + 1 } else { layers };
    let dense_layers = usize::from(glm);
    // The length of a block of most weight types, at least.
    let expert_ff = 256;
    let mut meta = Meta::default();
    meta.string("general.architecture", tiny.architecture);
    // So that llama.cpp reads the file, too.
    meta.string("tokenizer.ggml.model", "none");
    let key = |name: &str| format!("{}.{name}", tiny.architecture);
    for (name, value) in [
        ("block_count", blocks),
        ("context_length", context),
        ("embedding_length", hidden),
        ("feed_forward_length", ff),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head),
        ("attention.value_length", head),
        ("vocab_size", vocabulary),
    ] {
        meta.integer(&key(name), value as u32);
    }
    if mixture {
        for (name, value) in
            [("expert_count", EXPERTS), ("expert_used_count", USED_EXPERTS), ("expert_feed_forward_length", expert_ff)]
        {
            if let Some(value) = (changes.integer)(name, value as u32) {
                meta.integer(&key(name), value);
            }
        }
    }
    if glm {
        for (name, value) in [
            ("expert_shared_count", 1),
            ("expert_gating_func", 2),
            ("leading_dense_block_count", dense_layers),
            ("nextn_predict_layers", 1),
            ("rope.dimension_count", head / 2),
        ] {
            if let Some(value) = (changes.integer)(name, value as u32) {
                meta.integer(&key(name), value);
            }
        }
        meta.float(&key("expert_weights_scale"), 1.5);
        meta.bool(&key("expert_weights_norm"), true);
    }
    if delta {
        for (name, value) in [
            ("full_attention_interval", 3),
            ("ssm.conv_kernel", CONV_KERNEL),
            ("ssm.state_size", DELTA_HEAD),
            ("ssm.group_count", KEY_HEADS),
            ("ssm.time_step_rank", VALUE_HEADS),
            ("ssm.inner_size", VALUE_HEADS * DELTA_HEAD),
            ("rope.dimension_count", head / 4),
        ] {
            if let Some(value) = (changes.integer)(name, value as u32) {
                meta.integer(&key(name), value);
            }
        }
        if tiny.architecture != "qwen3next" {
            meta.integers(&key("rope.dimension_sections"), &[3, 3, head as i32 / 8 - 6, 0]);
        }
        if predicts && let Some(value) = (changes.integer)("nextn_predict_layers", 1) {
            meta.integer(&key("nextn_predict_layers"), value);
        }
        if gated_mixture && let Some(value) = (changes.integer)("expert_shared_feed_forward_length", expert_ff as u32) {
            meta.integer(&key("expert_shared_feed_forward_length"), value);
        }
    }
    meta.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    meta.float(&key("rope.freq_base"), 10_000.0);
    if gemma {
        meta.integer(&key("attention.sliding_window"), WINDOW as u32);
        meta.integer(&key("attention.sliding_window_pattern"), 2);
        for (name, value) in [("final_logit_softcapping", 30.0), ("attn_logit_softcapping", 50.0)] {
            if let Some(value) = (changes.float)(name, value) {
                meta.float(&key(name), value);
            }
        }
    }
    if gpt_oss && let Some(window) = (changes.integer)("attention.sliding_window", WINDOW as u32) {
        meta.integer(&key("attention.sliding_window"), window);
    }
    if tiny.architecture == "qwen3" || gpt_oss {
        meta.string(&key("rope.scaling.type"), "yarn");
        if let Some(factor) = (changes.float)("rope.scaling.factor", 4.0) {
            meta.float(&key("rope.scaling.factor"), factor);
        }
        meta.integer(&key("rope.scaling.original_context_length"), 128);
    }

    let mut tensors = Tensors { count: 0, table: Vec::new(), contents: Vec::new(), change: changes.tensor };
    let matrix = |tensors: &mut Tensors<'_>, random: &mut SplitMix64, name: &str, rows: usize, k: usize| {
        let mut bytes = weights(random, tiny.weights, rows * k);
        if tiny.weights == GgmlType::F32 {
            let mut elements: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            (changes.elements)(name, &mut elements);
            bytes = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
        }
        tensors.add(name, &[k, rows], tiny.weights, bytes);
    };
    let floats = |tensors: &mut Tensors<'_>, name: &str, shape: &[usize], mut elements: Vec<f32>| {
        (changes.elements)(name, &mut elements);
        let bytes = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
        tensors.add(name, shape, GgmlType::F32, bytes);
    };
    let vector = |tensors: &mut Tensors<'_>, random: &mut SplitMix64, name: &str, len: usize, around: f32| {
        floats(tensors, name, &[len], (0..len).map(|_| around + 0.1 * random.signed_unit()).collect());
    };
    let experts = |tensors: &mut Tensors<'_>, random: &mut SplitMix64, name: &str, rows: usize, k: usize| {
        let bytes = weights(random, tiny.weights, EXPERTS * rows * k);
        tensors.add(name, &[k, rows, EXPERTS], tiny.weights, bytes);
    };
    matrix(&mut tensors, &mut random, "token_embd.weight", vocabulary, hidden);
    for layer in 0..layers {
        let name = |rest: &str| format!("blk.{layer}.{rest}");
        vector(&mut tensors, &mut random, &name("attn_norm.weight"), hidden, 1.0);
        let ffn_norm = if gpt_oss || glm || delta { "post_attention_norm.weight" } else { "ffn_norm.weight" };
        vector(&mut tensors, &mut random, &name(ffn_norm), hidden, 1.0);
        let is_delta = delta && (layer + 1) % 3 != 0;
        if is_delta {
            let (keys, values) = (KEY_HEADS * DELTA_HEAD, VALUE_HEADS * DELTA_HEAD);
            let channels = 2 * keys + values;
            matrix(&mut tensors, &mut random, &name("attn_qkv.weight"), channels, hidden);
            matrix(&mut tensors, &mut random, &name("attn_gate.weight"), values, hidden);
            if tiny.architecture == "qwen3next" {
                matrix(&mut tensors, &mut random, &name("ssm_ba.weight"), 2 * VALUE_HEADS, hidden);
            } else {
                matrix(&mut tensors, &mut random, &name("ssm_beta.weight"), VALUE_HEADS, hidden);
                matrix(&mut tensors, &mut random, &name("ssm_alpha.weight"), VALUE_HEADS, hidden);
            }
            matrix(&mut tensors, &mut random, &name("ssm_out.weight"), hidden, values);
            let taps = (0..channels * CONV_KERNEL).map(|_| 0.5 * random.signed_unit()).collect();
            floats(&mut tensors, &name("ssm_conv1d.weight"), &[CONV_KERNEL, channels], taps);
            vector(&mut tensors, &mut random, &name("ssm_dt.bias"), VALUE_HEADS, -1.0);
            // From states that remember a few positions to some that remember hundreds.
            let rates =
                (0..VALUE_HEADS).map(|head| -0.02 * 4f32.powi(head as i32) * (1.0 + 0.2 * random.signed_unit()));
            floats(&mut tensors, &name("ssm_a"), &[VALUE_HEADS], rates.collect());
            vector(&mut tensors, &mut random, &name("ssm_norm.weight"), DELTA_HEAD, 1.0);
        } else {
            let gated = if delta { 2 } else { 1 };
            matrix(&mut tensors, &mut random, &name("attn_q.weight"), gated * heads * head, hidden);
            matrix(&mut tensors, &mut random, &name("attn_k.weight"), kv_heads * head, hidden);
            matrix(&mut tensors, &mut random, &name("attn_v.weight"), kv_heads * head, hidden);
            matrix(&mut tensors, &mut random, &name("attn_output.weight"), hidden, heads * head);
        }
        if mixture && layer >= dense_layers {
            let router = (0..EXPERTS * hidden).map(|_| 0.2 * random.signed_unit()).collect();
            floats(&mut tensors, &name("ffn_gate_inp.weight"), &[hidden, EXPERTS], router);
            experts(&mut tensors, &mut random, &name("ffn_gate_exps.weight"), expert_ff, hidden);
            experts(&mut tensors, &mut random, &name("ffn_up_exps.weight"), expert_ff, hidden);
            experts(&mut tensors, &mut random, &name("ffn_down_exps.weight"), hidden, expert_ff);
            if glm {
                vector(&mut tensors, &mut random, &name("exp_probs_b.bias"), EXPERTS, 0.0);
            }
            if gated_mixture {
                vector(&mut tensors, &mut random, &name("ffn_gate_inp_shexp.weight"), hidden, 0.0);
            }
            if glm || gated_mixture {
                matrix(&mut tensors, &mut random, &name("ffn_gate_shexp.weight"), expert_ff, hidden);
                matrix(&mut tensors, &mut random, &name("ffn_up_shexp.weight"), expert_ff, hidden);
                matrix(&mut tensors, &mut random, &name("ffn_down_shexp.weight"), hidden, expert_ff);
            }
        } else {
            matrix(&mut tensors, &mut random, &name("ffn_gate.weight"), ff, hidden);
            matrix(&mut tensors, &mut random, &name("ffn_up.weight"), ff, hidden);
            matrix(&mut tensors, &mut random, &name("ffn_down.weight"), hidden, ff);
        }
        if gpt_oss {
            for (bias, shape) in [
                ("ffn_gate_inp", &[EXPERTS][..]),
                ("ffn_gate_exps", &[expert_ff, EXPERTS]),
                ("ffn_up_exps", &[expert_ff, EXPERTS]),
                ("ffn_down_exps", &[hidden, EXPERTS]),
                ("attn_output", &[hidden]),
            ] {
                let elements = (0..shape.iter().product()).map(|_| 0.1 * random.signed_unit()).collect();
                floats(&mut tensors, &name(&format!("{bias}.bias")), shape, elements);
            }
            vector(&mut tensors, &mut random, &name("attn_sinks.weight"), heads, 0.5);
        }
        if tiny.architecture == "qwen2" || gpt_oss || glm {
            vector(&mut tensors, &mut random, &name("attn_q.bias"), heads * head, 0.0);
            vector(&mut tensors, &mut random, &name("attn_k.bias"), kv_heads * head, 0.0);
            vector(&mut tensors, &mut random, &name("attn_v.bias"), kv_heads * head, 0.0);
        }
        if tiny.architecture == "qwen3" || ((mixture || delta) && !gpt_oss && !is_delta) || gemma {
            vector(&mut tensors, &mut random, &name("attn_q_norm.weight"), head, 1.0);
            vector(&mut tensors, &mut random, &name("attn_k_norm.weight"), head, 1.0);
        }
        if gemma {
            vector(&mut tensors, &mut random, &name("post_attention_norm.weight"), hidden, 1.0);
            vector(&mut tensors, &mut random, &name("post_ffw_norm.weight"), hidden, 1.0);
        }
    }
    vector(&mut tensors, &mut random, "output_norm.weight", hidden, 1.0);
    if predicts {
        vector(&mut tensors, &mut random, &format!("blk.{layers}.nextn.enorm.weight"), hidden, 1.0);
        matrix(&mut tensors, &mut random, &format!("blk.{layers}.nextn.eh_proj.weight"), hidden, 2 * hidden);
    }
    if gpt_oss || glm {
        matrix(&mut tensors, &mut random, "output.weight", vocabulary, hidden);
    }
    if tiny.architecture == "llama" {
        matrix(&mut tensors, &mut random, "output.weight", vocabulary, hidden);
        vector(&mut tensors, &mut random, "rope_freqs.weight", head / 2, 2.0);
    }
    file(meta, tensors)
}

/// Blocks of random codes with scales that keep activations in bounds.
fn weights(random: &mut SplitMix64, ty: GgmlType, elements: usize) -> Vec<u8> {
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let scale = |random: &mut SplitMix64, largest: f32| half((0.6 + 0.3 * random.signed_unit()) * 0.1 / largest);
    let mut bytes = Vec::new();
    for _ in 0..elements / ty.block_len() {
        let start = bytes.len();
        match ty {
            GgmlType::F32 => bytes.extend((0.1 * random.signed_unit()).to_le_bytes()),
            GgmlType::F16 => bytes.extend(half(0.1 * random.signed_unit())),
            GgmlType::BF16 => bytes.extend(half::bf16::from_f32(0.1 * random.signed_unit()).to_le_bytes()),
            _ => bytes.resize_with(start + ty.block_bytes(), || random.bits() as u8),
        }
        let block = &mut bytes[start..];
        let mut put = |at: usize, x: [u8; 2]| block[at..at + 2].copy_from_slice(&x);
        match ty {
            GgmlType::Q4_0 => put(0, scale(random, 8.0)),
            GgmlType::Q5_0 => put(0, scale(random, 16.0)),
            GgmlType::Q8_0 => put(0, scale(random, 127.0)),
            GgmlType::Q4_1 => {
                put(0, scale(random, 8.0));
                put(2, half(-0.09 + 0.01 * random.signed_unit()));
            }
            GgmlType::Q5_1 => {
                put(0, scale(random, 16.0));
                put(2, half(-0.09 + 0.01 * random.signed_unit()));
            }
            GgmlType::Q4K => {
                put(0, scale(random, 8.0 * 32.0));
                put(2, scale(random, 32.0));
            }
            GgmlType::Q5K => {
                put(0, scale(random, 16.0 * 32.0));
                put(2, scale(random, 32.0));
            }
            GgmlType::IQ4NL => put(0, scale(random, 127.0)),
            GgmlType::IQ4XS => put(0, scale(random, 127.0 * 32.0)),
            // 2⁻⁷ and 2⁻⁶; the largest value is 6.
            GgmlType::MXFP4 => block[0] = 120 + random.index(2) as u8,
            GgmlType::Q2K => {
                put(80, scale(random, 1.5 * 8.0));
                put(82, scale(random, 8.0));
            }
            GgmlType::Q3K => put(108, scale(random, 4.0 * 32.0)),
            GgmlType::Q6K => put(208, scale(random, 32.0 * 64.0)),
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
        }
    }
    bytes
}

#[derive(Default)]
struct Meta {
    count: u64,
    bytes: Vec<u8>,
}

impl Meta {
    fn key(&mut self, key: &str, ty: u32) {
        self.count += 1;
        text(&mut self.bytes, key);
        self.bytes.extend(ty.to_le_bytes());
    }
    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        text(&mut self.bytes, value);
    }
    fn integer(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }
    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(value.into());
    }
    fn integers(&mut self, key: &str, values: &[i32]) {
        self.key(key, 9);
        self.bytes.extend(5u32.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }
}

struct Tensors<'a> {
    count: u64,
    table: Vec<u8>,
    contents: Vec<u8>,
    change: &'a dyn Fn(&mut Tensor) -> bool,
}

impl Tensors<'_> {
    fn add(&mut self, name: &str, shape: &[usize], ty: GgmlType, bytes: Vec<u8>) {
        let mut tensor = Tensor { name: name.to_owned(), shape: shape.to_vec(), ty, bytes };
        if !(self.change)(&mut tensor) {
            return;
        }
        let Tensor { name, shape, ty, bytes } = tensor;
        self.count += 1;
        text(&mut self.table, &name);
        self.table.extend((shape.len() as u32).to_le_bytes());
        for dim in shape {
            self.table.extend((dim as u64).to_le_bytes());
        }
        self.table.extend(ty.id().to_le_bytes());
        self.table.extend((self.contents.len() as u64).to_le_bytes());
        self.contents.extend(bytes);
        self.contents.resize(self.contents.len().next_multiple_of(32), 0);
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn file(meta: Meta, tensors: Tensors<'_>) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(tensors.count.to_le_bytes());
    bytes.extend(meta.count.to_le_bytes());
    bytes.extend(meta.bytes);
    bytes.extend(tensors.table);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(tensors.contents);
    bytes
}
