// y[row, out] = Σ x[row, k] · W[out, k] for many rows: a workgroup computes 64 rows of 64 outputs. Sixteen k at a time, the rows of
// x and the outputs' weights go into workgroup memory; a thread computes eight rows of four outputs from it.
//
// EXPERTS: 1 where W is of many experts, outputs after outputs, and the rows of a tile are slots of one expert, as group_slots.wgsl
// put them together.

// Tiles and slots of experts.
@group(0) @binding(4) var<storage, read> groups: array<u32>;

const TILE = 64u;
// Vectors from a row of a tile to the next: one more than it has, so that eight threads read from eight banks.
const STRIDE = 5u;
var<workgroup> x_tile: array<vec4<f32>, TILE * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE * STRIDE>;

// The slot of a row of a tile.
fn slot_of(tile: u32, row: u32) -> u32 {
  return groups[4u * p.tiles + groups[4u * tile + 1u] + row];
}

@compute @workgroup_size(128)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let out0 = spread(group, workgroups) * TILE;
  let row0 = p.row_at + group.y * TILE;
  var row_end = p.rows;
  var w_first = 0u;
  var bias_at = p.y_at;
  if (EXPERTS == 1u) {
    let expert = groups[4u * group.y];
    let count = groups[4u * group.y + 2u];
    if (count == 0u || expert < p.expert || expert >= p.expert + p.experts) {
      return;
    }
    row_end = row0 + count;
    w_first = (expert - p.expert) * p.outs;
    bias_at = expert * p.outs;
  }
  // What this thread loads: two vectors of one output, four of two rows.
  let line = t >> 1u;
  let quad = (t & 1u) * 2u;
  let w_row = (w_first + min(out0 + line, p.outs - 1u)) * p.blocks;
  let own_row = min(row0 + line, row_end - 1u);
  var x_row = own_row * p.x_stride;
  if (EXPERTS == 1u) {
    x_row = slot_of(group.y, own_row - row0) / p.shared_by * p.x_stride;
  }
  let to = line * STRIDE + quad;
  // What it computes: rows 8 · down …, outputs across, across + 16, ….
  let across = t & 15u;
  let down = t >> 4u;
#for r 8
  var y$r = vec4<f32>(0.0);
#end
  for (var half = 0u; half < p.blocks * 2u; half++) {
    let octet = load(w_row + (half >> 1u), (half & 1u) * 2u + (t & 1u));
    w_tile[to] = octet.low * octet.scale + octet.shift;
    w_tile[to + 1u] = octet.high * octet.scale + octet.shift;
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
    if (row < row_end) {
      var y_row = row * p.y_stride;
      if (EXPERTS == 1u) {
        y_row = slot_of(group.y, row - row0) * p.y_stride;
      }
#for o 4
      {
        let out = out0 + across + $ou * 16u;
        if (out < p.outs) {
          let at = y_row + p.y_at + out;
          var total = y$r[$ou];
          if ((p.flags & 1u) != 0u) {
            total += bias[bias_at + out];
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
