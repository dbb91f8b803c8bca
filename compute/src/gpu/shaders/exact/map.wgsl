// Elementwise work on rows: OPERATION 0 adds y, 1 multiplies by a factor, 2 caps softly to a factor: factor · tanh(x / factor).

struct Params {
  cols: u32,
  x_stride: u32,
  y_stride: u32,
  factor: u32,
  code: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read> y: array<u32>;
@group(0) @binding(2) var<storage, read_write> fault: atomic<u32>;

@compute @workgroup_size(128)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let col = spread(group, groups) * 128u + t;
  if (col >= p.cols) {
    return;
  }
  let at = group.y * p.x_stride + col;
  let before = x[at];
  var value = before;
  if (OPERATION == 0u) {
    value = plus(value, y[group.y * p.y_stride + col]);
  } else if (OPERATION == 1u) {
    value = times(value, p.factor);
  } else {
    value = soft_cap(value, p.factor);
  }
  report(is_special(before) || is_special(value), p.code);
  x[at] = value;
}
