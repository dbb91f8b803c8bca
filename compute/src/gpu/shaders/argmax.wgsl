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
  gather_best(t);
  if (t == 0u) {
    chosen[group.x] = indices[0];
  }
}
