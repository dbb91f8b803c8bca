// What exact products with a matrix of weights have in common.

struct Params {
  rows: u32,
  // Outputs of this chunk, blocks of a row of W.
  outs: u32,
  blocks: u32,
  // Vectors of a row of x; words of a row of y; the column of y where this chunk begins.
  x_stride: u32,
  y_stride: u32,
  y_at: u32,
  plane1: u32,
  plane2: u32,
  plane3: u32,
  // 1: a bias is added. 2: y is added to.
  flags: u32,
  // Of experts: the first one of this chunk, how many it has; slots that share a row of x.
  expert: u32,
  experts: u32,
  shared_by: u32,
  // Elements of a row of W.
  k: u32,
  // Of sums with what is in y.
  code: u32,
  // The first row of this dispatch.
  row_at: u32,
}
var<immediate> p: Params;
// The chunk of W in planes.
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
// [rows, x_stride]
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
// [all outputs]
@group(0) @binding(2) var<storage, read> bias: array<u32>;
// [rows, y_stride]
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
// [slots]: expert, bits of its weight
@group(0) @binding(4) var<storage, read> chosen: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> fault: atomic<u32>;
