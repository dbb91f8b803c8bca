// The index of the largest element of each row, of equal ones the lowest: a workgroup for each row.

struct Params {
  cols: u32,
  stride: u32,
  code: u32,
  pad0: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> fault: atomic<u32>;

const THREADS = 256u;
var<workgroup> values: array<f32, THREADS>;
var<workgroup> indices: array<u32, THREADS>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  var best = -3.4028235e38;
  var index = 0xffffffffu;
  for (var i = t; i < p.cols; i += THREADS) {
    let value = x[group.x * p.stride + i];
    report(is_bad(value), p.code);
    if (value > best || index == 0xffffffffu) {
      best = value;
      index = i;
    }
  }
  values[t] = best;
  indices[t] = index;
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    if (t < width) {
      let other = values[t + width];
      let is_better = other > values[t] || (other == values[t] && indices[t + width] < indices[t]);
      if (is_better) {
        values[t] = other;
        indices[t] = indices[t + width];
      }
    }
    workgroupBarrier();
  }
  if (t == 0u) {
    chosen[group.x] = indices[0];
  }
}
