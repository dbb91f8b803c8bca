// Scaled dot-product attention over the cache (Vaswani et al. 2017), with sums that are rescaled as the largest score grows (Milakov
// & Gimelshein 2018): of a tile of queries that share a key-value head, over one split of the positions. The results of all splits
// are put together by combine_attention.wgsl. A key that a query must not attend to has weight 0, and what no query of the tile
// attends to is not read.
//
// HEAD_DIM; QUERIES: of a tile; OWN: words of a head that a thread sums.

struct Params {
  heads: u32,
  kv_heads: u32,
  q_head_stride: u32,
  q_stride: u32,
  // Positions that a row attends to, its own the last.
  window: u32,
  splits: u32,
  // Positions of a split, a multiple of BLOCK.
  split: u32,
  soft_cap: f32,
  tiles: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> places: array<vec4<u32>>;
// Of each session, the pages of its positions 0 – 31, 32 – 63, ….
@group(0) @binding(3) var<storage, read> pages: array<u32>;
// Of each tile: the first row of its sequence, its first query and the number of its queries, counted as (row of the sequence) ·
// (query heads per key-value head) + (query head).
@group(0) @binding(4) var<storage, read> tiles: array<vec4<u32>>;
// [rows, heads, splits][HEAD_DIM + 2]: sums of values, the largest score, the sum of weights.
@group(0) @binding(5) var<storage, read_write> partial: array<f32>;

const THREADS = 128u;
const BLOCK = 128u;
const PAGE = 32u;
const WORDS = HEAD_DIM / 2u;
// Vectors of a page of keys, or of values, of a head.
const PAGE_VECTORS = PAGE * HEAD_DIM / 8u;
// Threads that sum the same words of values, of different positions.
const GROUPS = max(1u, THREADS / WORDS);
const REDUCERS = 16u;
const NONE = -3.0e38;

var<workgroup> queries: array<f32, QUERIES * HEAD_DIM>;
// [QUERIES, BLOCK]: scores, then weights; at the end, sums of the groups.
var<workgroup> weights: array<f32, max(QUERIES * BLOCK, 2u * THREADS)>;
var<workgroup> parts: array<f32, QUERIES * REDUCERS>;
var<workgroup> largest: array<f32, QUERIES>;
var<workgroup> factor: array<f32, QUERIES>;
var<workgroup> total: array<f32, QUERIES>;
var<workgroup> slots: array<u32, BLOCK / PAGE>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let kv_head = group.x;
  let tile = tiles[group.y];
  let count = tile.z;
  let shared_by = p.heads / p.kv_heads;
  // Rows and heads of the tile's queries; those beyond its count repeat the last one.
#for r QUERIES
  let index$r = tile.y + min($ru, count - 1u);
  let row$r = tile.x + index$r / shared_by;
  let head$r = kv_head * shared_by + index$r % shared_by;
  let position$r = places[row$r].x;
  let first$r = select(0u, position$r + 1u - p.window, position$r >= p.window);
#end
  let first_page = places[row0].y;
  for (var i = t; i < HEAD_DIM; i += THREADS) {
#for r QUERIES
    queries[$ru * HEAD_DIM + i] = q[row$r * p.q_stride + head$r * p.q_head_stride + i];
#end
  }
  if (t < QUERIES) {
    largest[t] = NONE;
    total[t] = 0.0;
  }
#for r QUERIES
#for o OWN
  var sum$r_$o = vec2<f32>(0.0);
#end
#end
  // Rows are in order, so the first one has the first position and the last one the last.
  var last = position0;
#for r QUERIES
  last = max(last, position$r);
#end
  // Splits are of the positions from the first block on that the first row attends to.
  let start = first0 / BLOCK * BLOCK + group.z * p.split;
  let end = min(start + p.split, last + 1u);
  let lane = t % WORDS;
  let part = t / WORDS;
  workgroupBarrier();
  for (var origin = start; origin < end; origin += BLOCK) {
    if (t < BLOCK / PAGE) {
      slots[t] = pages[first_page + min(origin / PAGE + t, last / PAGE)];
    }
    workgroupBarrier();
    // Scores of one position each.
    let position = origin + t;
#for r QUERIES
    var score$r = 0.0;
#end
    if (position >= first0 && position < end) {
      let keys = (slots[t / PAGE] * p.kv_heads + kv_head) * 2u * PAGE_VECTORS + t % PAGE;
      for (var d = 0u; d < HEAD_DIM / 8u; d++) {
        let words = cache[keys + d * PAGE];
        let k0 = unpack2x16float(words.x);
        let k1 = unpack2x16float(words.y);
        let k2 = unpack2x16float(words.z);
        let k3 = unpack2x16float(words.w);
#for r QUERIES
        {
          let at = $ru * HEAD_DIM + d * 8u;
          score$r += queries[at] * k0.x + queries[at + 1u] * k0.y + queries[at + 2u] * k1.x + queries[at + 3u] * k1.y
            + queries[at + 4u] * k2.x + queries[at + 5u] * k2.y + queries[at + 6u] * k3.x + queries[at + 7u] * k3.y;
        }
#end
      }
    }
#for r QUERIES
    if (p.soft_cap > 0.0) {
      score$r = p.soft_cap * tanh(clamp(score$r / p.soft_cap, -20.0, 20.0));
    }
    let is_seen$r = position >= first$r && position <= position$r && position < end;
    weights[$ru * BLOCK + t] = select(NONE, score$r, is_seen$r);
#end
    workgroupBarrier();
    if (t < QUERIES * REDUCERS) {
      let r = t / REDUCERS;
      var most = NONE;
      for (var i = t % REDUCERS; i < BLOCK; i += REDUCERS) {
        most = max(most, weights[r * BLOCK + i]);
      }
      parts[t] = most;
    }
    workgroupBarrier();
    if (t < QUERIES) {
      var most = largest[t];
      for (var i = 0u; i < REDUCERS; i++) {
        most = max(most, parts[t * REDUCERS + i]);
      }
      factor[t] = exp(largest[t] - most);
      largest[t] = most;
    }
    workgroupBarrier();
#for r QUERIES
    weights[$ru * BLOCK + t] = select(0.0, exp(score$r - largest[$ru]), is_seen$r);
#end
    workgroupBarrier();
    if (t < QUERIES * REDUCERS) {
      let r = t / REDUCERS;
      var sum = 0.0;
      for (var i = t % REDUCERS; i < BLOCK; i += REDUCERS) {
        sum += weights[r * BLOCK + i];
      }
      parts[t] = sum;
    }
    // Values, of the positions that some query attends to.
#for r QUERIES
    let factor$r = factor[$ru];
#for o OWN
    sum$r_$o *= factor$r;
#end
#end
    if (part < GROUPS) {
      let seen_from = select(0u, first0 - origin, first0 > origin);
      let seen_end = min(BLOCK, end - origin);
      for (var j = seen_from + part; j < seen_end; j += GROUPS) {
        let values = (((slots[j / PAGE] * p.kv_heads + kv_head) * 2u + 1u) * PAGE + j % PAGE) * WORDS;
#for o OWN
        {
          let at = values + lane + $ou * THREADS;
          if (WORDS % THREADS == 0u || lane + $ou * THREADS < WORDS) {
            let value = unpack2x16float(cache[at >> 2u][at & 3u]);
#for r QUERIES
            sum$r_$o += weights[$ru * BLOCK + j] * value;
#end
          }
        }
#end
      }
    }
    workgroupBarrier();
    if (t < QUERIES) {
      var sum = total[t] * factor[t];
      for (var i = 0u; i < REDUCERS; i++) {
        sum += parts[t * REDUCERS + i];
      }
      total[t] = sum;
    }
    workgroupBarrier();
  }
#for r QUERIES
  {
    let to = ((row$r * p.heads + head$r) * p.splits + group.z) * (HEAD_DIM + 2u);
    if (GROUPS > 1u) {
      workgroupBarrier();
      weights[2u * t] = sum$r_0.x;
      weights[2u * t + 1u] = sum$r_0.y;
      workgroupBarrier();
      if ($ru < count && t < WORDS) {
        var sum = vec2<f32>(0.0);
        for (var g = 0u; g < GROUPS; g++) {
          sum += vec2<f32>(weights[2u * (g * WORDS + t)], weights[2u * (g * WORDS + t) + 1u]);
        }
        partial[to + 2u * t] = sum.x;
        partial[to + 2u * t + 1u] = sum.y;
      }
    } else if ($ru < count) {
#for o OWN
      {
        let word = lane + $ou * THREADS;
        if (word < WORDS) {
          partial[to + 2u * word] = sum$r_$o.x;
          partial[to + 2u * word + 1u] = sum$r_$o.y;
        }
      }
#end
    }
    if ($ru < count && t == 0u) {
      partial[to + HEAD_DIM] = largest[$ru];
      partial[to + HEAD_DIM + 1u] = total[$ru];
    }
  }
#end
}
