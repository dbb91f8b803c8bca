// Which experts compute a row, and with what weights, by the numerics of the CPU's kernel (kernel/float/mixture.rs): a workgroup for
// each row. Chosen experts are in ascending order; those that compute every row follow, and count whole.

struct Params {
  experts: u32,
  used: u32,
  // Experts that compute every row.
  shared_experts: u32,
  logits_stride: u32,
  // Of x.
  cols: u32,
  x_stride: u32,
  // 1: scores are sigmoids, 2: they have a correction.
  flags: u32,
  scale: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> correction: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(3) var<storage, read> shared_gate: array<u32>;
// [rows, used + shared_experts]: expert, bits of its weight
@group(0) @binding(4) var<storage, read_write> chosen: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;
const MAX_EXPERTS = 1024u;
const MAX_USED = 64u;
// Below the scores of all numbers.
const TAKEN = -2147483647;
const LEAST_SUM = 0x1e3ce508u; // 10⁻²⁰

// Of each expert: its score, as integers are ordered; what its weight is made of.
var<workgroup> scores: array<i32, MAX_EXPERTS>;
var<workgroup> bases: array<u32, MAX_EXPERTS>;
var<workgroup> best: array<u32, THREADS>;
var<workgroup> picks: array<u32, MAX_USED>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = group.x;
  let is_sigmoid = (p.flags & 1u) != 0u;
  for (var i = t; i < p.experts; i += THREADS) {
    let logit = logits[row * p.logits_stride + i];
    report(is_special(logit), p.code);
    var base = logit;
    var score = logit;
    if (is_sigmoid) {
      base = quotient(ONE, one_and_exponential(minus(0u, logit)));
      score = base;
      if ((p.flags & 2u) != 0u) {
        score = plus(base, correction[i]);
      }
    }
    scores[i] = ordered(score);
    bases[i] = base;
  }
  workgroupBarrier();
  for (var n = 0u; n < p.used; n++) {
    // The best of each thread's experts, of equal ones the first.
    var own = min(t, p.experts - 1u);
    for (var i = t; i < p.experts; i += THREADS) {
      if (scores[i] > scores[own]) {
        own = i;
      }
    }
    best[t] = own;
    workgroupBarrier();
    if (t == 0u) {
      var index = best[0];
      for (var i = 1u; i < THREADS; i++) {
        let other = best[i];
        if (scores[other] > scores[index] || (scores[other] == scores[index] && other < index)) {
          index = other;
        }
      }
      picks[n] = index;
      scores[index] = TAKEN;
    }
    workgroupBarrier();
  }
  if (t != 0u) {
    return;
  }
  // The first one has the largest score.
  let largest = bases[picks[0]];
  for (var n = 1u; n < p.used; n++) {
    let expert = picks[n];
    var at = n;
    while (at > 0u && picks[at - 1u] > expert) {
      picks[at] = picks[at - 1u];
      at -= 1u;
    }
    picks[at] = expert;
  }
  let to = row * (p.used + p.shared_experts);
  var total = 0u;
  for (var n = 0u; n < p.used; n++) {
    let expert = picks[n];
    if (!is_sigmoid) {
      bases[expert] = exponential(minus(bases[expert], largest));
    }
    total = plus(total, bases[expert]);
  }
  if (is_sigmoid) {
    total = plus(total, LEAST_SUM);
  }
  for (var n = 0u; n < p.used; n++) {
    let expert = picks[n];
    var weight = quotient(bases[expert], total);
    if (is_sigmoid) {
      weight = times(weight, p.scale);
    }
    report(is_special(weight), p.code);
    chosen[to + n] = vec2<u32>(expert, weight);
  }
  for (var n = 0u; n < p.shared_experts; n++) {
    chosen[to + p.used + n] = vec2<u32>(p.experts + n, ONE);
  }
}
