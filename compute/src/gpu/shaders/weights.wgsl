// What products with a matrix of weights have in common.

struct Params {
  rows: u32,
  // Outputs of this chunk, blocks of a row of W.
  outs: u32,
  blocks: u32,
  // Vectors of a row of x; floats of a row of y; the column of y where this chunk begins.
  x_stride: u32,
  y_stride: u32,
  y_at: u32,
  plane1: u32,
  plane2: u32,
  plane3: u32,
  // 1: a bias is added. 2: y is added to.
  flags: u32,
  // Of experts: the first one of this chunk, how many it has; slots that share a row of x; tiles that there is room for.
  expert: u32,
  experts: u32,
  shared_by: u32,
  tiles: u32,
  // Without experts, the first row of this dispatch.
  row_at: u32,
  pad: u32,
}
var<immediate> p: Params;
// The chunk of W in planes.
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
// [rows, x_stride]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// [all outputs]
@group(0) @binding(2) var<storage, read> bias: array<f32>;
// [rows, y_stride]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
