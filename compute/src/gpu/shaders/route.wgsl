// Which experts compute a row, and with what weights (Shazeer et al. 2017, §2.1; DeepSeek-V3 report, §2.1.2): a workgroup for each
// row. Of equal scores the expert of the lower index is chosen. Chosen experts are in ascending order; those that compute every
// row follow.

struct Params {
  experts: u32,
  used: u32,
  // Experts that compute every row.
  shared_experts: u32,
  logits_stride: u32,
  // Of x.
  cols: u32,
  x_stride: u32,
  // 1: scores are sigmoids, 2: they have a correction, 4: the shared experts have a gate.
  flags: u32,
  scale: f32,
  code: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> correction: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
// [rows, used + shared_experts]: expert, bits of its weight
@group(0) @binding(4) var<storage, read_write> chosen: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;
const MAX_EXPERTS = 1024u;
const MAX_USED = 64u;
const NONE = -3.4e38;

var<workgroup> scores: array<f32, MAX_EXPERTS>;
var<workgroup> values: array<f32, THREADS>;
var<workgroup> indices: array<u32, THREADS>;
var<workgroup> picks: array<u32, MAX_USED>;

fn sigmoid(x: f32) -> f32 {
  return 1.0 / (1.0 + exp(min(-x, 87.0)));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = group.x;
  let is_sigmoid = (p.flags & 1u) != 0u;
  for (var i = t; i < p.experts; i += THREADS) {
    let logit = logits[row * p.logits_stride + i];
    report(is_bad(logit), p.code);
    var score = logit;
    if (is_sigmoid) {
      score = sigmoid(logit);
      if ((p.flags & 2u) != 0u) {
        score += correction[i];
      }
    }
    scores[i] = score;
  }
  // The dot product of the shared experts' gate.
  var sum = 0.0;
  if ((p.flags & 4u) != 0u) {
    for (var i = t; i < p.cols; i += THREADS) {
      sum += x[row * p.x_stride + i] * shared_gate[i];
    }
  }
  values[t] = sum;
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    if (t < width) {
      values[t] += values[t + width];
    }
    workgroupBarrier();
  }
  let shared_logit = values[0];
  workgroupBarrier();
  for (var n = 0u; n < p.used; n++) {
    var best = NONE;
    var index = p.experts - 1u;
    for (var i = t; i < p.experts; i += THREADS) {
      if (scores[i] > best) {
        best = scores[i];
        index = i;
      }
    }
    values[t] = best;
    indices[t] = index;
    gather_best(t);
    if (t == 0u) {
      picks[n] = indices[0];
      scores[indices[0]] = NONE;
    }
    workgroupBarrier();
  }
  if (t != 0u) {
    return;
  }
  for (var n = 1u; n < p.used; n++) {
    let expert = picks[n];
    var at = n;
    while (at > 0u && picks[at - 1u] > expert) {
      picks[at] = picks[at - 1u];
      at -= 1u;
    }
    picks[at] = expert;
  }
  let origin = row * p.logits_stride;
  let to = row * (p.used + p.shared_experts);
  var largest = NONE;
  for (var n = 0u; n < p.used; n++) {
    largest = max(largest, logits[origin + picks[n]]);
  }
  var total = select(0.0, 1e-20, is_sigmoid);
  for (var n = 0u; n < p.used; n++) {
    let logit = logits[origin + picks[n]];
    let weight = select(exp(logit - largest), sigmoid(logit), is_sigmoid);
    total += weight;
    values[n] = weight;
  }
  for (var n = 0u; n < p.used; n++) {
    let weight = values[n] / total * select(1.0, p.scale, is_sigmoid);
    report(is_bad(weight), p.code);
    chosen[to + n] = vec2<u32>(picks[n], bitcast<u32>(weight));
  }
  var shared_weight = 1.0;
  if ((p.flags & 4u) != 0u) {
    report(is_bad(shared_logit), p.code);
    shared_weight = sigmoid(shared_logit);
  }
  for (var n = 0u; n < p.shared_experts; n++) {
    chosen[to + p.used + n] = vec2<u32>(p.experts + n, bitcast<u32>(shared_weight));
  }
}
