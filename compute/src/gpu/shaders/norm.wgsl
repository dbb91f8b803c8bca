// y = x / √(mean(x²) + epsilon) · weight (Zhang & Sennrich 2019), a workgroup for each row.

struct Params {
  cols: u32,
  x_stride: u32,
  y_stride: u32,
  epsilon: f32,
  // 1: y is added to.
  flags: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> fault: atomic<u32>;

const THREADS = 256u;
var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let origin = group.x * p.x_stride;
  var sum = 0.0;
  for (var i = t; i < p.cols; i += THREADS) {
    let v = x[origin + i];
    sum += v * v;
  }
  sums[t] = sum;
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    if (t < width) {
      sums[t] += sums[t + width];
    }
    workgroupBarrier();
  }
  let total = sums[0];
  // An infinite sum would make zeros of numbers.
  report(t == 0u && is_bad(total), p.code);
  let scale = 1.0 / sqrt(total / f32(p.cols) + p.epsilon);
  let to = group.x * p.y_stride;
  for (var i = t; i < p.cols; i += THREADS) {
    var value = x[origin + i] * scale * weight[i];
    if ((p.flags & 1u) != 0u) {
      value += y[to + i];
    }
    report(is_bad(value), p.code);
    y[to + i] = value;
  }
}
