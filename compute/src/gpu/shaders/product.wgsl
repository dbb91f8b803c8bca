// y[row, out] = Σ x[row, k] · W[out, k], for up to ROWS rows at a time: the weights are read once for them. 32 threads share four
// outputs; thread t sums the octets t, t + 32, … of a row of W, so that threads side by side read side by side, and the 32 sums are
// added in order.
//
// ROWS: rows of a workgroup. EXPERTS: 1 where W is of many experts, outputs after outputs, and a row, which is a slot, has one
// of them; then ROWS is 1.

// [slots]: expert, bits of its weight
@group(0) @binding(4) var<storage, read> chosen: array<vec2<u32>>;

const LANES = 32u;
// Outputs of a thread, and of a workgroup.
const OUTS = 4u;
const ALL_OUTS = 8u;
// From the sums of an output and row to the next: one more than there are, so that threads read from different banks.
const STRIDE = LANES + 1u;

// [ALL_OUTS, ROWS, STRIDE]
var<workgroup> sums: array<f32, ALL_OUTS * ROWS * STRIDE>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let lane = t & 31u;
  let part = t >> 5u;
  let out0 = spread(group, groups) * ALL_OUTS + part * OUTS;
  let row0 = group.y * ROWS;
  var w_row = 0u;
  var x_row = row0;
  var bias_at = p.y_at;
  if (EXPERTS == 1u) {
    let expert = chosen[row0].x;
    if (expert < p.expert || expert >= p.expert + p.experts) {
      return;
    }
    w_row = (expert - p.expert) * p.outs;
    x_row = row0 / p.shared_by;
    bias_at = expert * p.outs;
  }
  // What lies outside is computed from what lies inside, and left out at the end.
#for o 4
  let w$o = (w_row + min(out0 + $ou, p.outs - 1u)) * p.blocks;
#end
#for r ROWS
  let x$r = min(x_row + $ru, p.rows - 1u) * p.x_stride;
#for o 4
  var y$o_$r = 0.0;
#end
#end
  for (var u = lane; u < p.blocks * 4u; u += LANES) {
#for o 4
    let octet$o = load(w$o + (u >> 2u), u & 3u);
#end
#for r ROWS
    {
      let low = x[x$r + u * 2u];
      let high = x[x$r + u * 2u + 1u];
      var sum = 0.0;
      if (SHIFTED) {
        let both = low + high;
        sum = both.x + both.y + both.z + both.w;
      }
#for o 4
      y$o_$r += octet$o.scale * (dot(octet$o.low, low) + dot(octet$o.high, high));
      if (SHIFTED) {
        y$o_$r += octet$o.shift * sum;
      }
#end
    }
#end
  }
#for o 4
#for r ROWS
  sums[((part * OUTS + $ou) * ROWS + $ru) * STRIDE + lane] = y$o_$r;
#end
#end
  workgroupBarrier();
  for (var i = t; i < ALL_OUTS * ROWS; i += 64u) {
    let out = spread(group, groups) * ALL_OUTS + i / ROWS;
    let row = row0 + i % ROWS;
    if (out >= p.outs || row >= p.rows) {
      continue;
    }
    var total = 0.0;
    for (var j = 0u; j < LANES; j++) {
      total += sums[i * STRIDE + j];
    }
    if ((p.flags & 1u) != 0u) {
      total += bias[bias_at + out];
    }
    let at = row * p.y_stride + p.y_at + out;
    if ((p.flags & 2u) != 0u) {
      total += y[at];
    }
    y[at] = total;
  }
}
