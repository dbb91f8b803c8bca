// The results of all splits of attention, put together: a workgroup for each head of each row. A sink is a score without a key and
// a value (Xiao et al. 2023); a gate multiplies the result by its sigmoid.

struct Params {
  heads: u32,
  head_dim: u32,
  splits: u32,
  out_stride: u32,
  // 1: sinks, 2: gates, which follow each query head.
  flags: u32,
  q_stride: u32,
  code: u32,
  pad0: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> partial: array<f32>;
@group(0) @binding(1) var<storage, read> sinks: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let head = group.x;
  let row = group.y;
  let stride = p.head_dim + 2u;
  let origin = (row * p.heads + head) * p.splits * stride;
  let has_sink = (p.flags & 1u) != 0u;
  var largest = -3.0e38;
  if (has_sink) {
    largest = sinks[head];
  }
  for (var s = 0u; s < p.splits; s++) {
    // A split without positions has no largest score.
    if (partial[origin + s * stride + p.head_dim + 1u] > 0.0) {
      largest = max(largest, partial[origin + s * stride + p.head_dim]);
    }
  }
  var total = 0.0;
  if (has_sink) {
    total = exp(sinks[head] - largest);
  }
  for (var s = 0u; s < p.splits; s++) {
    let sum = partial[origin + s * stride + p.head_dim + 1u];
    if (sum > 0.0) {
      total += sum * exp(partial[origin + s * stride + p.head_dim] - largest);
    }
  }
  for (var i = t; i < p.head_dim; i += THREADS) {
    var value = 0.0;
    for (var s = 0u; s < p.splits; s++) {
      if (partial[origin + s * stride + p.head_dim + 1u] > 0.0) {
        value += partial[origin + s * stride + i] * exp(partial[origin + s * stride + p.head_dim] - largest);
      }
    }
    value /= total;
    if ((p.flags & 2u) != 0u) {
      let gate = q[row * p.q_stride + (2u * head + 1u) * p.head_dim + i];
      report(is_bad(gate), p.code);
      value /= 1.0 + exp(min(-gate, 87.0));
    }
    report(is_bad(value), p.code);
    out[row * p.out_stride + head * p.head_dim + i] = value;
  }
}
