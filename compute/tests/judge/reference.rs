//! A naive forward pass in f64, one row after the other, written from the papers: no cache, no batches, no rounding of
//! activations. Switches are the tensors and keys that a file has. Sources, by what they describe:
//!
//! | what | source |
//! |---|---|
//! | layers, grouped queries | Vaswani et al. 2017; Ainslie et al. 2023; the reports of Llama 2 and 3, Qwen 2, Qwen 3, Gemma 3 |
//! | norms | Zhang & Sennrich 2019 |
//! | rotary embedding and its scaling | Su et al. 2021; Peng et al. 2023 (YaRN) with its authors' code |
//! | gated feed-forward blocks | Shazeer 2020; Hendrycks & Gimpel 2016 |
//! | routers of sigmoids, an expert for every row | DeepSeek-V3 report (2024) §2.1.2; GLM-4.5 report (2025) §2.1 |
//! | gpt-oss | its model card and the code published with it: biases, sinks, the clamped activation, a ramp of YaRN that is not rounded |
//! | gated delta nets, gated attention, an expert with a gate of its own | Yang et al. 2024 (eq. 10); the code published with Qwen3-Next and Qwen 3.5, with the order of heads in their files |
//! | mixtures of experts | Shazeer et al. 2017; Qwen 3 report: softmax over all experts, the chosen weights renormalised |

use super::weights::tensor;
use pangea_compute::gguf::Gguf;
use std::f64::consts::PI;

/// What a model gives for one row of a text.
pub(crate) struct Row {
    /// `[vocabulary]`
    pub(crate) logits: Vec<f64>,
    /// How clearly the routers chose, over all layers of this row: the least distance between the last chosen and the first
    /// other logit, in root mean squares of the router's logits; infinite without routers.
    pub(crate) margin: f64,
}

/// A matrix `[rows, k]`.
struct Matrix {
    elements: Vec<f64>,
    k: usize,
}

impl Matrix {
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        self.elements.chunks_exact(self.k).map(dot).collect()
    }
}

struct Layer {
    attention_norm: Vec<f64>,
    mixer: Mixer,
    post_attention_norm: Option<Vec<f64>>,
    ffn_norm: Vec<f64>,
    router: Option<Matrix>,
    router_bias: Option<Vec<f64>>,
    /// Added to sigmoids of the router's logits, for the choice alone; `None` for a softmax.
    correction: Option<Vec<f64>>,
    /// A block that computes every row.
    shared: Option<[Matrix; 3]>,
    /// A gate of that block.
    shared_gate: Option<Vec<f64>>,
    /// Gate, up, down: of each expert, or of the one block.
    blocks: Vec<[Matrix; 3]>,
    /// Of gate, up, down, of each expert.
    block_biases: Vec<[Vec<f64>; 3]>,
    post_ffn_norm: Option<Vec<f64>>,
}

enum Mixer {
    Attention(Attention),
    Delta(DeltaNet),
}

struct Attention {
    /// Where it has twice the rows that the output takes, each head's query is followed by its gate.
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    /// Of queries, keys, values and the output.
    biases: [Option<Vec<f64>>; 4],
    /// Of each query head.
    sinks: Option<Vec<f64>>,
    q_norm: Option<Vec<f64>>,
    k_norm: Option<Vec<f64>>,
    /// Positions that a row sees, its own included.
    window: usize,
}

struct DeltaNet {
    qkv: Matrix,
    gate: Matrix,
    /// One row for each value head.
    beta: Matrix,
    alpha: Matrix,
    /// `[channels, kernel]`
    convolution: Vec<f64>,
    dt: Vec<f64>,
    a: Vec<f64>,
    norm: Vec<f64>,
    out: Matrix,
    key_heads: usize,
    key_dim: usize,
    /// Of each value head.
    key_head_of: Vec<usize>,
}

impl DeltaNet {
    /// What it adds to each row.
    fn rows(&self, normed: &[Vec<f64>], epsilon: f64) -> Vec<Vec<f64>> {
        let (value_heads, value_dim) = (self.a.len(), self.norm.len());
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let inputs: Vec<Vec<f64>> = normed.iter().map(|x| self.qkv.times(x)).collect();
        let kernel = self.convolution.len() / inputs[0].len();
        let unit = |x: &[f64]| {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            x.iter().map(|x| x / length).collect::<Vec<f64>>()
        };
        let mut states = vec![vec![vec![0.0; value_dim]; self.key_dim]; value_heads];
        let row = |(position, x): (usize, &Vec<f64>)| {
            let channel = |channel: usize| {
                let taps = &self.convolution[channel * kernel..(channel + 1) * kernel];
                let tap = |(tap, w): (usize, &f64)| {
                    (position + tap + 1).checked_sub(kernel).map_or(0.0, |at| w * inputs[at][channel])
                };
                silu(taps.iter().enumerate().map(tap).sum())
            };
            let convolved: Vec<f64> = (0..inputs[0].len()).map(channel).collect();
            let (queries, rest) = convolved.split_at(self.key_heads * self.key_dim);
            let (keys, values) = rest.split_at(self.key_heads * self.key_dim);
            let (betas, alphas, gates) = (self.beta.times(x), self.alpha.times(x), self.gate.times(x));
            let mut all = Vec::new();
            for (head, state) in states.iter_mut().enumerate() {
                let of_key = self.key_head_of[head] * self.key_dim..(self.key_head_of[head] + 1) * self.key_dim;
                let query: Vec<f64> =
                    unit(&queries[of_key.clone()]).iter().map(|q| q / (self.key_dim as f64).sqrt()).collect();
                let key = unit(&keys[of_key]);
                let value = &values[head * value_dim..(head + 1) * value_dim];
                let beta = 1.0 / (1.0 + (-betas[head]).exp());
                let decay = (self.a[head] * (alphas[head] + self.dt[head]).exp().ln_1p()).exp();
                state.iter_mut().flatten().for_each(|s| *s *= decay);
                let mut result = vec![0.0; value_dim];
                for (j, (result, value)) in result.iter_mut().zip(value).enumerate() {
                    let remembered: f64 = state.iter().zip(&key).map(|(row, k)| row[j] * k).sum();
                    for ((row, k), q) in state.iter_mut().zip(&key).zip(&query) {
                        row[j] += k * beta * (value - remembered);
                        *result += row[j] * q;
                    }
                }
                let mean = result.iter().map(|x| x * x).sum::<f64>() / value_dim as f64;
                let gates = &gates[head * value_dim..(head + 1) * value_dim];
                let normed = result.iter().zip(&self.norm).map(|(x, w)| x / (mean + epsilon).sqrt() * w);
                all.extend(normed.zip(gates).map(|(x, gate)| x * silu(*gate)));
            }
            self.out.times(&all)
        };
        normed.iter().enumerate().map(row).collect()
    }
}

/// A model in f64.
pub(crate) struct Reference {
    layers: Vec<Layer>,
    embedding: Matrix,
    output_norm: Vec<f64>,
    output: Option<Matrix>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f64,
    used_experts: usize,
    expert_scale: f64,
    /// Radians per position of each rotated pair, and the factor of cosine and sine.
    frequencies: (Vec<f64>, f64),
    /// Whether the rotated pairs are neighbours.
    neighbours: bool,
    gemma: bool,
    gpt_oss: bool,
    attention_cap: Option<f64>,
    logit_cap: Option<f64>,
}

impl Reference {
    pub(crate) fn new(file: &Gguf) -> Reference {
        let metadata = file.metadata();
        let architecture = metadata.get_str("general.architecture").unwrap().unwrap().to_owned();
        let gemma = architecture == "gemma3";
        let gpt_oss = architecture == "gpt-oss";
        // The norm before the feed-forward block has the name of what it follows.
        let delta = architecture == "qwen3next" || architecture.starts_with("qwen35");
        let names_after = gpt_oss || delta || architecture == "glm4moe";
        let integer = |name: &str| metadata.get_u64(&format!("{architecture}.{name}")).unwrap().map(|n| n as usize);
        let float = |name: &str| metadata.get_f64(&format!("{architecture}.{name}")).unwrap();
        let hidden = integer("embedding_length").unwrap();
        let head_dim = integer("attention.key_length").unwrap();
        let matrix = |name: &str, k: usize| tensor(file, name).map(|elements| Matrix { elements, k });
        let layers = (0..integer("block_count").unwrap() - integer("nextn_predict_layers").unwrap_or(0))
            .map(|layer| {
                let vector = |name: &str| tensor(file, &format!("blk.{layer}.{name}"));
                let of = |name: &str| {
                    vector(&format!("{name}.weight")).map(|elements| {
                        let k = file.require(&format!("blk.{layer}.{name}.weight")).unwrap().row_len();
                        Matrix { elements, k }
                    })
                };
                let router = of("ffn_gate_inp");
                let blocks = match &router {
                    None => vec![["ffn_gate", "ffn_up", "ffn_down"].map(|name| of(name).unwrap())],
                    Some(router) => {
                        let count = router.elements.len() / router.k;
                        let split = |name: &str| -> Vec<Matrix> {
                            let all = of(name).unwrap();
                            let each = all.elements.chunks_exact(all.elements.len() / count);
                            each.map(|elements| Matrix { elements: elements.to_vec(), k: all.k }).collect()
                        };
                        let (gates, ups, downs) =
                            (split("ffn_gate_exps"), split("ffn_up_exps"), split("ffn_down_exps"));
                        gates.into_iter().zip(ups).zip(downs).map(|((gate, up), down)| [gate, up, down]).collect()
                    }
                };
                let block_biases = match vector("ffn_gate_exps.bias") {
                    None => Vec::new(),
                    Some(gates) => {
                        let split = |all: Vec<f64>| -> Vec<Vec<f64>> {
                            all.chunks_exact(all.len() / blocks.len()).map(<[f64]>::to_vec).collect()
                        };
                        let ups = split(vector("ffn_up_exps.bias").unwrap());
                        let downs = split(vector("ffn_down_exps.bias").unwrap());
                        split(gates)
                            .into_iter()
                            .zip(ups)
                            .zip(downs)
                            .map(|((gate, up), down)| [gate, up, down])
                            .collect()
                    }
                };
                // The first of two layers sees a window.
                let windowed = gpt_oss && layer % 2 == 0;
                let windowed =
                    windowed || gemma && (layer + 1) % integer("attention.sliding_window_pattern").unwrap() != 0;
                let mixer = match of("attn_qkv") {
                    None => Mixer::Attention(Attention {
                        q: of("attn_q").unwrap(),
                        k: of("attn_k").unwrap(),
                        v: of("attn_v").unwrap(),
                        o: of("attn_output").unwrap(),
                        biases: ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"].map(vector),
                        sinks: vector("attn_sinks.weight"),
                        q_norm: vector("attn_q_norm.weight"),
                        k_norm: vector("attn_k_norm.weight"),
                        window: if windowed { integer("attention.sliding_window").unwrap() } else { usize::MAX },
                    }),
                    Some(qkv) => {
                        let (key_heads, heads) =
                            (integer("ssm.group_count").unwrap(), integer("ssm.time_step_rank").unwrap());
                        let group = heads / key_heads;
                        // Qwen3-Next has betas and alphas of the heads of one key head together; the files of Qwen 3.5 have the
                        // first value head of every key head first.
                        let (beta, alpha, key_head_of) = match of("ssm_ba") {
                            Some(both) => {
                                let rows: Vec<Vec<f64>> =
                                    both.elements.chunks_exact(hidden).map(<[f64]>::to_vec).collect();
                                let of_each = |from: usize| Matrix {
                                    elements: (0..heads)
                                        .flat_map(|head| rows[head / group * 2 * group + from + head % group].clone())
                                        .collect(),
                                    k: hidden,
                                };
                                (of_each(0), of_each(group), (0..heads).map(|head| head / group).collect())
                            }
                            None => {
                                let key_head_of = (0..heads).map(|head| head % key_heads).collect();
                                (of("ssm_beta").unwrap(), of("ssm_alpha").unwrap(), key_head_of)
                            }
                        };
                        Mixer::Delta(DeltaNet {
                            qkv,
                            gate: of("attn_gate").unwrap(),
                            beta,
                            alpha,
                            convolution: vector("ssm_conv1d.weight").unwrap(),
                            dt: vector("ssm_dt.bias").unwrap(),
                            a: vector("ssm_a").unwrap(),
                            norm: vector("ssm_norm.weight").unwrap(),
                            out: of("ssm_out").unwrap(),
                            key_heads,
                            key_dim: integer("ssm.state_size").unwrap(),
                            key_head_of,
                        })
                    }
                };
                Layer {
                    attention_norm: vector("attn_norm.weight").unwrap(),
                    mixer,
                    post_attention_norm: vector("post_attention_norm.weight").filter(|_| !names_after),
                    ffn_norm: vector(if names_after { "post_attention_norm.weight" } else { "ffn_norm.weight" })
                        .unwrap(),
                    router,
                    router_bias: vector("ffn_gate_inp.bias"),
                    correction: vector("exp_probs_b.bias"),
                    shared: of("ffn_gate_shexp")
                        .map(|gate| [gate, of("ffn_up_shexp").unwrap(), of("ffn_down_shexp").unwrap()]),
                    shared_gate: vector("ffn_gate_inp_shexp.weight"),
                    blocks,
                    block_biases,
                    post_ffn_norm: vector("post_ffw_norm.weight"),
                }
            })
            .collect();
        let base = float("rope.freq_base").unwrap();
        let rotated = integer("rope.dimension_count").unwrap_or(head_dim);
        let plain: Vec<f64> = (0..rotated / 2).map(|i| base.powf(-2.0 * i as f64 / rotated as f64)).collect();
        let frequencies = match float("rope.scaling.factor") {
            Some(factor) => {
                let context = integer("rope.scaling.original_context_length").unwrap() as f64;
                yarn(&plain, base, factor, context, !gpt_oss)
            }
            None => match tensor(file, "rope_freqs.weight") {
                Some(divisors) => (plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect(), 1.0),
                None => (plain, 1.0),
            },
        };
        Reference {
            layers,
            embedding: matrix("token_embd.weight", hidden).unwrap(),
            output_norm: tensor(file, "output_norm.weight").unwrap(),
            output: matrix("output.weight", hidden),
            heads: integer("attention.head_count").unwrap(),
            kv_heads: integer("attention.head_count_kv").unwrap(),
            head_dim,
            epsilon: float("attention.layer_norm_rms_epsilon").unwrap(),
            used_experts: integer("expert_used_count").unwrap_or(0),
            expert_scale: float("expert_weights_scale").unwrap_or(1.0),
            frequencies,
            neighbours: architecture == "llama",
            gemma,
            gpt_oss,
            attention_cap: float("attn_logit_softcapping"),
            logit_cap: float("final_logit_softcapping"),
        }
    }

    /// Every row of a text that begins with `tokens`.
    pub(crate) fn rows(&self, tokens: &[u32]) -> Vec<Row> {
        let hidden = self.embedding.k;
        let scale = if self.gemma { (hidden as f64).sqrt() } else { 1.0 };
        let embed = |token: &u32| {
            let row = &self.embedding.elements[*token as usize * hidden..][..hidden];
            row.iter().map(|x| x * scale).collect::<Vec<f64>>()
        };
        let mut states: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        let mut margins = vec![f64::INFINITY; tokens.len()];
        for layer in &self.layers {
            let normed: Vec<Vec<f64>> =
                states.iter().map(|x| self.normed(x.clone(), Some(&layer.attention_norm))).collect();
            let attended = match &layer.mixer {
                Mixer::Attention(attention) => self.attention(attention, &normed),
                Mixer::Delta(net) => net.rows(&normed, self.epsilon),
            };
            for ((x, attended), margin) in states.iter_mut().zip(attended).zip(&mut margins) {
                add(x, &self.normed(attended, layer.post_attention_norm.as_deref()));
                let inner = self.normed(x.clone(), Some(&layer.ffn_norm));
                let (y, chosen_by) = self.feed_forward(layer, &inner);
                *margin = margin.min(chosen_by);
                add(x, &self.normed(y, layer.post_ffn_norm.as_deref()));
            }
        }
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let row = |(x, margin): (Vec<f64>, f64)| {
            let logits = output.times(&self.normed(x, Some(&self.output_norm)));
            Row { logits: logits.into_iter().map(|logit| capped(logit, self.logit_cap)).collect(), margin }
        };
        states.into_iter().zip(margins).map(row).collect()
    }

    /// RMS norm; none without weights.
    fn normed(&self, x: Vec<f64>, weight: Option<&[f64]>) -> Vec<f64> {
        let Some(weight) = weight else { return x };
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + self.epsilon).sqrt() * w).collect()
    }

    /// What attention adds to each row.
    fn attention(&self, layer: &Attention, normed: &[Vec<f64>]) -> Vec<Vec<f64>> {
        // `[rows][heads][head_dim]`
        let heads = |w: &Matrix, bias: Option<&Vec<f64>>, norm: Option<&Vec<f64>>, rotated: bool| {
            let row = |(position, x): (usize, &Vec<f64>)| {
                let mut y = w.times(x);
                if let Some(bias) = bias {
                    add(&mut y, bias);
                }
                let head = |x: &[f64]| {
                    let x = self.normed(x.to_vec(), norm.map(Vec::as_slice));
                    if rotated { self.rotate(&x, position) } else { x }
                };
                y.chunks_exact(self.head_dim).map(head).collect::<Vec<Vec<f64>>>()
            };
            normed.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        let [q_bias, k_bias, v_bias, o_bias] = &layer.biases;
        // Queries, and the gates that follow each of them in one matrix.
        let width = self.heads * self.head_dim;
        let is_gated = layer.q.elements.len() / layer.q.k == 2 * width;
        let gate_of: Vec<Vec<f64>> = normed.iter().filter(|_| is_gated).map(|x| layer.q.times(x)).collect();
        let ungated = |w: &Matrix| {
            let rows: Vec<&[f64]> = w.elements.chunks_exact(w.k).collect();
            let head = |head: usize| rows[2 * head * self.head_dim..][..self.head_dim].concat();
            Matrix { elements: (0..self.heads).flat_map(head).collect(), k: w.k }
        };
        let apart = is_gated.then(|| ungated(&layer.q));
        let q = heads(apart.as_ref().unwrap_or(&layer.q), q_bias.as_ref(), layer.q_norm.as_ref(), true);
        let mut k = heads(&layer.k, k_bias.as_ref(), layer.k_norm.as_ref(), true);
        let mut v = heads(&layer.v, v_bias.as_ref(), None, false);
        // As every engine keeps them.
        for x in [&mut k, &mut v].into_iter().flatten().flatten().flatten() {
            *x = half::f16::from_f64(*x).to_f64();
        }
        let row = |position: usize| {
            let seen = (position + 1).saturating_sub(layer.window)..position + 1;
            let head = |head: usize| {
                let kv = head / (self.heads / self.kv_heads);
                let score = |at: usize| {
                    let dot: f64 = q[position][head].iter().zip(&k[at][kv]).map(|(q, k)| q * k).sum();
                    capped(dot / (self.head_dim as f64).sqrt(), self.attention_cap)
                };
                // A sink takes a part of the weight and has no value.
                let sink = layer.sinks.as_ref().map(|sinks| sinks[head]);
                let weights = softmax(&seen.clone().map(score).chain(sink).collect::<Vec<f64>>());
                let mut sum = vec![0.0; self.head_dim];
                for (weight, at) in weights.iter().zip(seen.clone()) {
                    sum.iter_mut().zip(&v[at][kv]).for_each(|(sum, v)| *sum += weight * v);
                }
                if is_gated {
                    let gates = &gate_of[position][(2 * head + 1) * self.head_dim..][..self.head_dim];
                    sum.iter_mut().zip(gates).for_each(|(sum, gate)| *sum /= 1.0 + (-gate).exp());
                }
                sum
            };
            let mut out = layer.o.times(&(0..self.heads).flat_map(head).collect::<Vec<f64>>());
            if let Some(bias) = o_bias {
                add(&mut out, bias);
            }
            out
        };
        (0..normed.len()).map(row).collect()
    }

    fn rotate(&self, x: &[f64], position: usize) -> Vec<f64> {
        let (frequencies, factor) = &self.frequencies;
        let mut out = x.to_vec();
        for (i, frequency) in frequencies.iter().enumerate() {
            let (a, b) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, i + frequencies.len()) };
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            out[a] = factor * (x[a] * cos - x[b] * sin);
            out[b] = factor * (x[a] * sin + x[b] * cos);
        }
        out
    }

    /// What the feed-forward block adds, and by what margin its experts were chosen.
    fn feed_forward(&self, layer: &Layer, x: &[f64]) -> (Vec<f64>, f64) {
        let Some(router) = &layer.router else { return (self.block(&layer.blocks[0], None, x), f64::INFINITY) };
        let mut logits = router.times(x);
        if let Some(bias) = &layer.router_bias {
            add(&mut logits, bias);
        }
        // What the weights are made of, and by what experts are chosen.
        let (weights, scores) = match &layer.correction {
            None => (softmax(&logits), logits.clone()),
            Some(correction) => {
                let sigmoids: Vec<f64> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
                let scores = sigmoids.iter().zip(correction).map(|(p, correction)| p + correction).collect();
                (sigmoids, scores)
            }
        };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let (chosen, others) = order.split_at(self.used_experts);
        let total: f64 = chosen.iter().map(|expert| weights[*expert]).sum();
        let mut sum = layer.shared.as_ref().map_or(vec![0.0; x.len()], |shared| self.block(shared, None, x));
        if let Some(gate) = &layer.shared_gate {
            let logit: f64 = gate.iter().zip(x).map(|(w, x)| w * x).sum();
            sum.iter_mut().for_each(|sum| *sum /= 1.0 + (-logit).exp());
        }
        for expert in chosen {
            let weight = weights[*expert] / total * self.expert_scale;
            let y = self.block(&layer.blocks[*expert], layer.block_biases.get(*expert), x);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
        }
        let rms = (logits.iter().map(|logit| logit * logit).sum::<f64>() / logits.len() as f64).sqrt();
        let margin = others.first().map_or(f64::INFINITY, |other| scores[chosen[chosen.len() - 1]] - scores[*other]);
        // A sigmoid moves by a quarter of its logit at most.
        let steepness = if layer.correction.is_some() { 0.25 } else { 1.0 };
        (sum, margin / (steepness * rms))
    }

    /// One gated block.
    fn block(&self, [gate, up, down]: &[Matrix; 3], biases: Option<&[Vec<f64>; 3]>, x: &[f64]) -> Vec<f64> {
        let product = |w: &Matrix, x: &[f64], which: usize| {
            let mut y = w.times(x);
            if let Some(biases) = biases {
                add(&mut y, &biases[which]);
            }
            y
        };
        let activation = |x: f64| match self.gemma {
            true => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
            false => x / (1.0 + (-x).exp()),
        };
        let gated = |(g, u): (f64, f64)| match self.gpt_oss {
            true => {
                let g = g.min(7.0);
                g / (1.0 + (-1.702 * g).exp()) * (u.clamp(-7.0, 7.0) + 1.0)
            }
            false => activation(g) * u,
        };
        let inner: Vec<f64> = product(gate, x, 0).into_iter().zip(product(up, x, 1)).map(gated).collect();
        product(down, &inner, 2)
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn capped(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// Probabilities of logits.
pub(crate) fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Frequencies by YaRN: pairs that turn more than 32 times within the original context stay, those that turn less than once
/// are stretched by `factor`, with a ramp over the pairs between them; cosine and sine are scaled by 0.1·ln(factor) + 1.
/// `rounded`: whether the ramp begins and ends at whole pairs.
fn yarn(plain: &[f64], base: f64, factor: f64, context: f64, rounded: bool) -> (Vec<f64>, f64) {
    let dim = 2.0 * plain.len() as f64;
    let pair = |turns: f64| dim * (context / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
    let round = |low: f64, high: f64| if rounded { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = round(pair(32.0), pair(1.0));
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let scaled = plain.iter().enumerate().map(|(i, frequency)| {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        frequency / factor * ramp + frequency * (1.0 - ramp)
    });
    (scaled.collect(), 0.1 * factor.ln() + 1.0)
}
