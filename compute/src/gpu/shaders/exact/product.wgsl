// y[row, out] = Σ x[row, k] · W[out, k] by the numerics of the CPU's products (kernel/quant): a thread computes an output of up to ROWS
// rows, block after block in order of k, or element after element where W holds floats.
//
// ROWS: rows of a workgroup. EXPERTS: 1 where W is of many experts, outputs after outputs, and a row, which is a slot, has one
// of them; then ROWS is 1.

const OUTS = 64u;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let out = spread(group, groups) * OUTS + t;
  let row0 = p.row_at + group.y * ROWS;
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
  if (out >= p.outs) {
    return;
  }
  let count = min(ROWS, p.rows - row0);
  var sums = array<u32, ROWS>();
  let origin = (w_row + out) * p.blocks;
  for (var b = 0u; b < p.blocks; b++) {
    let weights = load(origin + b);
    for (var r = 0u; r < count; r++) {
      sums[r] = multiply_add(weights, x_row + r, b, sums[r]);
    }
  }
  for (var r = 0u; r < count; r++) {
    let at = (row0 + r) * p.y_stride + p.y_at + out;
    var total = sums[r];
    if ((p.flags & 1u) != 0u) {
      total = plus(total, bias[bias_at + out]);
    }
    if ((p.flags & 2u) != 0u) {
      total = plus(y[at], total);
      report(is_special(total), p.code);
    }
    y[at] = total;
  }
}
