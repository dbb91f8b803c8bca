// Queries and keys get their norm and are rotated to their positions (Su et al. 2021); keys and values go into the cache as f16, by
// the numerics of the CPU's kernels. A workgroup for each head of each row: the query heads, then the key heads, then the value heads.
//
// The cache: of each page, of each key-value head, keys [head_dim / 8][32 positions][8], then values [32 positions][head_dim],
// two halves in a word.

struct Params {
  heads: u32,
  kv_heads: u32,
  head_dim: u32,
  // Pairs of a head that are rotated.
  pairs: u32,
  // Words from a query head to the next; of a row of q, and of a row of k and v.
  q_head_stride: u32,
  q_stride: u32,
  k_stride: u32,
  v_stride: u32,
  q_scale: u32,
  epsilon: u32,
  // 1: query norm, 2: key norm, 4: pairs are (2i, 2i + 1) instead of (i, i + pairs).
  flags: u32,
  // Of queries; that of keys is one more, of values two.
  code: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> q: array<u32>;
@group(0) @binding(1) var<storage, read> k: array<u32>;
@group(0) @binding(2) var<storage, read> v: array<u32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;
// Of each row: cosines [pairs], sines [pairs].
@group(0) @binding(4) var<storage, read> angles: array<u32>;
// The norm of query heads [head_dim], of key heads [head_dim].
@group(0) @binding(5) var<storage, read> norms: array<u32>;
// Of each row: its position, the first entry of its session's pages, the page of its position.
@group(0) @binding(6) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;
const MAX_HEAD_DIM = 512u;
const PAGE = 32u;
// 2¹⁰⁰: of larger queries a score may be infinite, of which the soft cap makes a number.
const MAX_QUERY = 0x71800000u;
// 65520: the least that f16 rounds to infinity.
const TOO_LARGE = 0x477ff000u;

var<workgroup> head: array<u32, MAX_HEAD_DIM>;
var<workgroup> scale: u32;

// The element i of the head after its rotation, times a factor.
fn rotated(i: u32, row: u32, factor: u32) -> u32 {
  if (i >= 2u * p.pairs) {
    return times(head[i], factor);
  }
  var pair = i % p.pairs;
  var first = pair;
  var second = pair + p.pairs;
  var is_first = i < p.pairs;
  if ((p.flags & 4u) != 0u) {
    pair = i / 2u;
    first = 2u * pair;
    second = first + 1u;
    is_first = (i & 1u) == 0u;
  }
  let cosine = angles[row * 2u * p.pairs + pair];
  let sine = angles[row * 2u * p.pairs + p.pairs + pair];
  let a = head[first];
  let b = head[second];
  if (is_first) {
    return times(factor, fused(negative(b), sine, times(a, cosine)));
  }
  return times(factor, fused(b, cosine, times(a, sine)));
}

// Two elements as halves in a word.
fn halves(low: u32, high: u32, code: u32) -> u32 {
  report((low & MAGNITUDE) >= TOO_LARGE || (high & MAGNITUDE) >= TOO_LARGE, code);
  return half_of_bits(low) | (half_of_bits(high) << 16u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = group.y;
  let is_query = group.x < p.heads;
  let is_value = group.x >= p.heads + p.kv_heads;
  var kv_head = 0u;
  var origin = row * p.q_stride + group.x * p.q_head_stride;
  if (!is_query) {
    kv_head = (group.x - p.heads) % p.kv_heads;
    origin = row * select(p.k_stride, p.v_stride, is_value) + kv_head * p.head_dim;
  }
  for (var i = t; i < p.head_dim; i += THREADS) {
    if (is_query) {
      head[i] = q[origin + i];
    } else if (is_value) {
      head[i] = v[origin + i];
    } else {
      head[i] = k[origin + i];
    }
  }
  workgroupBarrier();
  let code = p.code + select(select(1u, 2u, is_value), 0u, is_query);
  let has_norm = !is_value && (p.flags & select(2u, 1u, is_query)) != 0u;
  if (t < 16u) {
    var sum = 0u;
    if (has_norm) {
      for (var i = t; i < p.head_dim; i += 16u) {
        sum = fused(head[i], head[i], sum);
      }
    }
    lanes[t] = sum;
  }
  fold_lanes(t);
  if (has_norm) {
    if (t == 0u) {
      let total = lanes[0];
      report(is_special(total), code);
      scale = quotient(ONE, root(plus(quotient(total, from_integer(i32(p.head_dim))), p.epsilon)));
    }
  }
  workgroupBarrier();
  if (has_norm) {
    let of_norm = select(p.head_dim, 0u, is_query);
    for (var i = t; i < p.head_dim; i += THREADS) {
      head[i] = times(times(head[i], scale), norms[of_norm + i]);
    }
  }
  workgroupBarrier();
  if (is_query) {
    for (var i = t; i < p.head_dim; i += THREADS) {
      let value = rotated(i, row, p.q_scale);
      report((value & MAGNITUDE) >= MAX_QUERY, code);
      q[origin + i] = value;
    }
    return;
  }
  let slot = places[row].x % PAGE;
  let words = p.head_dim / 2u;
  // Of a page and head: the keys' words, then the values'.
  let base = (places[row].z * p.kv_heads + kv_head) * 2u * PAGE * words;
  for (var i = t; i < words; i += THREADS) {
    if (is_value) {
      cache[base + PAGE * words + slot * words + i] = halves(head[2u * i], head[2u * i + 1u], code);
    } else {
      let word = halves(rotated(2u * i, row, ONE), rotated(2u * i + 1u, row, ONE), code);
      cache[base + ((i / 4u) * PAGE + slot) * 4u + i % 4u] = word;
    }
  }
}
