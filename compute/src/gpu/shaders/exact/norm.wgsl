// y = x / √(mean(x²) + epsilon) · weight (Zhang & Sennrich 2019), a workgroup for each row.

struct Params {
  cols: u32,
  x_stride: u32,
  y_stride: u32,
  epsilon: u32,
  // 1: y is added to.
  flags: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<storage, read_write> fault: atomic<u32>;

const THREADS = 64u;
var<workgroup> scale: u32;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let origin = group.x * p.x_stride;
  if (t < 16u) {
    var sum = 0u;
    for (var i = t; i < p.cols; i += 16u) {
      sum = fused(x[origin + i], x[origin + i], sum);
    }
    lanes[t] = sum;
  }
  fold_lanes(t);
  if (t == 0u) {
    let total = lanes[0];
    // An infinite sum would make zeros of numbers.
    report(is_special(total), p.code);
    scale = quotient(ONE, root(plus(quotient(total, from_integer(i32(p.cols))), p.epsilon)));
  }
  workgroupBarrier();
  let to = group.x * p.y_stride;
  for (var i = t; i < p.cols; i += THREADS) {
    var value = times(times(x[origin + i], scale), weight[i]);
    if ((p.flags & 1u) != 0u) {
      value = plus(y[to + i], value);
    }
    report(is_special(value), p.code);
    y[to + i] = value;
  }
}
