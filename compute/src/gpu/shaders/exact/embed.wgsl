// Rows of a matrix, chosen by tokens, times a factor: a workgroup for each token. Those that this chunk does not have are left.

struct Params {
  // The first row of the matrix in this chunk, and how many it has.
  first: u32,
  outs: u32,
  blocks: u32,
  cols: u32,
  y_stride: u32,
  scale: u32,
  plane1: u32,
  plane2: u32,
  plane3: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<storage, read_write> fault: atomic<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let token = tokens[group.x];
  if (token < p.first || token >= p.first + p.outs) {
    return;
  }
  for (var col = t; col < p.cols; col += 64u) {
    let value = times(element((token - p.first) * p.blocks + col / 32u, col & 31u), p.scale);
    report(is_special(value), p.code);
    y[group.x * p.y_stride + col] = value;
  }
}
