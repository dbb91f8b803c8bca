// y[row, out] = Σ x[row, k] · W[out, k] for many rows: a workgroup computes 64 rows of 64 outputs. Sixteen k at a time, the rows of
// x and the outputs' weights go into workgroup memory; a thread computes eight rows of four outputs from it.

struct Params {
  rows: u32,
  outs: u32,
  blocks: u32,
  x_stride: u32,
  y_stride: u32,
  y_at: u32,
  plane1: u32,
  plane2: u32,
  plane3: u32,
  flags: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
  pad3: u32,
  pad4: u32,
  pad5: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
// Not used: the two kernels of products are bound alike.
@group(0) @binding(4) var<storage, read> chosen: array<vec2<u32>>;

const TILE = 64u;
// Vectors from a row of a tile to the next: one more than it has, so that eight threads read from eight banks.
const STRIDE = 5u;
var<workgroup> x_tile: array<vec4<f32>, TILE * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE * STRIDE>;

@compute @workgroup_size(128)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let out0 = spread(group, groups) * TILE;
  let row0 = group.y * TILE;
  // What this thread loads: two vectors of one output, four of two rows.
  let line = t >> 1u;
  let quad = (t & 1u) * 2u;
  let w_row = min(out0 + line, p.outs - 1u) * p.blocks;
  let x_row = min(row0 + line, p.rows - 1u) * p.x_stride;
  let to = line * STRIDE + quad;
  // What it computes: rows 8 · down …, outputs across, across + 16, ….
  let across = t & 15u;
  let down = t >> 4u;
#for r 8
  var y$r = vec4<f32>(0.0);
#end
  for (var half = 0u; half < p.blocks * 2u; half++) {
    let raw = load(w_row + (half >> 1u));
    let h = half & 1u;
    let scale = raw.scale[h];
    let shift = raw.shift[h];
    w_tile[to] = codes(raw, h * 4u + quad) * scale + shift;
    w_tile[to + 1u] = codes(raw, h * 4u + quad + 1u) * scale + shift;
    x_tile[to] = x[x_row + half * 4u + quad];
    x_tile[to + 1u] = x[x_row + half * 4u + quad + 1u];
    workgroupBarrier();
#for q 4
    {
#for o 4
      let w$o = w_tile[(across + $ou * 16u) * STRIDE + $qu];
#end
#for r 8
      {
        let v = x_tile[(down * 8u + $ru) * STRIDE + $qu];
        y$r += vec4<f32>(dot(v, w0), dot(v, w1), dot(v, w2), dot(v, w3));
      }
#end
    }
#end
    workgroupBarrier();
  }
#for r 8
  {
    let row = row0 + down * 8u + $ru;
    if (row < p.rows) {
#for o 4
      {
        let out = out0 + across + $ou * 16u;
        if (out < p.outs) {
          let at = row * p.y_stride + p.y_at + out;
          var total = y$r[$ou];
          if ((p.flags & 1u) != 0u) {
            total += bias[p.y_at + out];
          }
          if ((p.flags & 2u) != 0u) {
            total += y[at];
          }
          y[at] = total;
        }
      }
#end
    }
  }
#end
}
