// y[row] = Σ weight · result over the experts of the row, in ascending order of their indices.

struct Params {
  cols: u32,
  y_stride: u32,
  slots_stride: u32,
  // Experts of a row.
  per_row: u32,
  // 1: y is added to.
  flags: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
}
var<immediate> p: Params;
// [rows · per_row, slots_stride]
@group(0) @binding(0) var<storage, read> results: array<u32>;
@group(0) @binding(1) var<storage, read> chosen: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<storage, read_write> fault: atomic<u32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let col = group.x * 128u + t;
  if (col >= p.cols) {
    return;
  }
  var sum = 0u;
  for (var n = 0u; n < p.per_row; n++) {
    let slot = group.y * p.per_row + n;
    sum = fused(chosen[slot].y, results[slot * p.slots_stride + col], sum);
  }
  let at = group.y * p.y_stride + col;
  if ((p.flags & 1u) != 0u) {
    sum = plus(y[at], sum);
  }
  report(is_special(sum), p.code);
  y[at] = sum;
}
