// C[m, n] = A[m, k] · B[k, n], row-major: a workgroup computes a tile of 128 × 128, a thread 8 × 8 of it in four quarters. Sixteen k at
// a time go into workgroup memory, those of A turned.

struct Params {
  m: u32,
  // Rows of B.
  k: u32,
  // Quads of a row of A, of B, of C.
  a_stride: u32,
  b_stride: u32,
  c_stride: u32,
  // The first tile of rows.
  tile: u32,
  pad0: u32,
  pad1: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> b: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<u32>>;

const TILE = 128u;
const DEEP = 16u;
const QUADS = TILE / 4u;
// [DEEP, QUADS]: of each k, the tile's rows of A, the tile's columns of B.
var<workgroup> a_tile: array<Vector, DEEP * QUADS>;
var<workgroup> b_tile: array<Vector, DEEP * QUADS>;

fn a_at(row: u32, quad: u32) -> Vector {
  if (row < p.m && quad < p.a_stride) {
    return a_quad(row * p.a_stride + quad);
  }
  return Vector();
}

fn b_at(row: u32, quad: u32) -> Vector {
  if (row < p.k && quad < p.b_stride) {
    return b_quad(row * p.b_stride + quad);
  }
  return Vector();
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row0 = (p.tile + group.y) * TILE;
  let quad0 = group.x * QUADS;
  let across = t & 15u;
  let down = t >> 4u;
#for r 8
  var low$r = Sum();
  var high$r = Sum();
#end
  for (var k = 0u; k < p.k; k += DEEP) {
    if (t < 128u) {
      // Four rows of A at four k, turned.
      let rows = t & 31u;
      let deep = t >> 5u;
#for r 4
      let line$r = a_at(row0 + rows * 4u + $ru, k / 4u + deep);
#end
#for i 4
      a_tile[(deep * 4u + $iu) * QUADS + rows] = Vector(line0[$i], line1[$i], line2[$i], line3[$i]);
#end
    }
#for i 2
    {
      let at = t + $iu * 256u;
      b_tile[at] = b_at(k + at / QUADS, quad0 + at % QUADS);
    }
#end
    workgroupBarrier();
    for (var i = 0u; i < DEEP; i++) {
      let up = a_tile[i * QUADS + down];
      let bottom = a_tile[i * QUADS + 16u + down];
      let left = b_tile[i * QUADS + across];
      let right = b_tile[i * QUADS + 16u + across];
#for r 4
      low$r = multiply_add(low$r, up[$r], left);
      high$r = multiply_add(high$r, up[$r], right);
#end
      low4 = multiply_add(low4, bottom.x, left);
      high4 = multiply_add(high4, bottom.x, right);
      low5 = multiply_add(low5, bottom.y, left);
      high5 = multiply_add(high5, bottom.y, right);
      low6 = multiply_add(low6, bottom.z, left);
      high6 = multiply_add(high6, bottom.z, right);
      low7 = multiply_add(low7, bottom.w, left);
      high7 = multiply_add(high7, bottom.w, right);
    }
    workgroupBarrier();
  }
#for r 8
  {
    let row = row0 + down * 4u + ($ru & 3u) + ($ru >> 2u) * 64u;
    if (row < p.m) {
      if (quad0 + across < p.c_stride) {
        c[row * p.c_stride + quad0 + across] = bitcast<vec4<u32>>(low$r);
      }
      if (quad0 + 16u + across < p.c_stride) {
        c[row * p.c_stride + quad0 + 16u + across] = bitcast<vec4<u32>>(high$r);
      }
    }
  }
#end
}
