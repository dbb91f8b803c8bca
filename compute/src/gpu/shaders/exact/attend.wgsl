// Scaled dot-product attention over the cache (Vaswani et al. 2017) in two passes, in the order of the CPU's kernel
// (kernel/float/attention): a workgroup for each head of each row. A score is one chain over the head's elements; the sum of
// exponentials runs over sixteen lanes; values are summed in chains of 256 positions, which are added in order.

struct Params {
  heads: u32,
  kv_heads: u32,
  head_dim: u32,
  q_head_stride: u32,
  q_stride: u32,
  out_stride: u32,
  // Positions that a row attends to, its own the last.
  window: u32,
  soft_cap: u32,
  // The first row of this dispatch; words of the scores of a head of a row.
  first_row: u32,
  score_stride: u32,
  // 1: sinks, 2: gates, which follow each query head.
  flags: u32,
  code: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<u32>;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> places: array<vec4<u32>>;
// Of each session, the pages of its positions 0 – 31, 32 – 63, ….
@group(0) @binding(3) var<storage, read> pages: array<u32>;
@group(0) @binding(4) var<storage, read> sinks: array<u32>;
// [rows of the dispatch, heads, score_stride]: scores, then exponentials, from the first position's block of sixteen on.
@group(0) @binding(5) var<storage, read_write> scores: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<u32>;
@group(0) @binding(7) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;
const MAX_HEAD_DIM = 512u;
const PAGE = 32u;
const CHAIN = 256u;
const NONE = 0xff800000u; // −∞

var<workgroup> query: array<u32, MAX_HEAD_DIM>;
// Bits of each thread's largest score.
var<workgroup> best: array<u32, THREADS>;
var<workgroup> inverse: u32;

// The larger one, of numbers and infinities.
fn larger(a: u32, b: u32) -> u32 {
  return select(a, b, ordered(b) > ordered(a));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let head = group.x;
  let row = p.first_row + group.y;
  let kv_head = head / (p.heads / p.kv_heads);
  let position = places[row].x;
  let first_page = places[row].y;
  let first = select(0u, position + 1u - p.window, position >= p.window);
  let start = first / 16u * 16u;
  let own = (group.y * p.heads + head) * p.score_stride;
  let page_vectors = PAGE * p.head_dim / 8u;
  let origin = row * p.q_stride + head * p.q_head_stride;
  for (var i = t; i < p.head_dim; i += THREADS) {
    query[i] = q[origin + i];
  }
  workgroupBarrier();
  var most = NONE;
  for (var at = first + t; at <= position; at += THREADS) {
    let keys = (pages[first_page + at / PAGE] * p.kv_heads + kv_head) * 2u * page_vectors + at % PAGE;
    var score = 0u;
    for (var d = 0u; d < p.head_dim; d += 8u) {
      let words = cache[keys + d / 8u * PAGE];
      for (var i = 0u; i < 8u; i++) {
        score = fused(query[d + i], from_half((words[i / 2u] >> ((i & 1u) * 16u)) & 0xffffu), score);
      }
    }
    if (p.soft_cap != 0u) {
      score = soft_cap(score, p.soft_cap);
    }
    most = larger(most, score);
    scores[own + at - start] = score;
  }
  best[t] = most;
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width >>= 1u) {
    if (t < width) {
      best[t] = larger(best[t], best[t + width]);
    }
    workgroupBarrier();
  }
  var largest = best[0];
  let has_sink = (p.flags & 1u) != 0u;
  if (has_sink) {
    largest = larger(largest, sinks[head]);
  }
  for (var at = first + t; at <= position; at += THREADS) {
    scores[own + at - start] = exponential(minus(scores[own + at - start], largest));
  }
  storageBarrier();
  workgroupBarrier();
  if (t < 16u) {
    var sum = 0u;
    for (var at = start + t; at <= position; at += 16u) {
      if (at >= first) {
        sum = plus(sum, scores[own + at - start]);
      }
    }
    lanes[t] = sum;
  }
  fold_lanes(t);
  if (t == 0u) {
    var total = lanes[0];
    if (has_sink) {
      total = plus(total, exponential(minus(sinks[head], largest)));
    }
    inverse = quotient(ONE, total);
  }
  workgroupBarrier();
  for (var i = t; i < p.head_dim; i += THREADS) {
    var total = 0u;
    var at = first;
    while (at <= position) {
      let end = min((at / CHAIN + 1u) * CHAIN, position + 1u);
      var sum = 0u;
      for (; at < end; at++) {
        let page = (pages[first_page + at / PAGE] * p.kv_heads + kv_head) * 2u + 1u;
        let word = (page * PAGE + at % PAGE) * (p.head_dim / 2u) + i / 2u;
        let value = from_half((cache[word >> 2u][word & 3u] >> ((i & 1u) * 16u)) & 0xffffu);
        sum = fused(scores[own + at - start], value, sum);
      }
      total = plus(total, sum);
    }
    var value = times(total, inverse);
    if ((p.flags & 2u) != 0u) {
      let gate = q[origin + p.head_dim + i];
      report(is_special(gate), p.code);
      value = quotient(value, one_and_exponential(minus(0u, gate)));
    }
    report(is_special(value), p.code);
    out[row * p.out_stride + head * p.head_dim + i] = value;
  }
}
