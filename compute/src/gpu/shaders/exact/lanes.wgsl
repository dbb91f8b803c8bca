// Sums over sixteen lanes, as the CPU's kernels add them: a lane has the elements i, i + 16, …, and halves are added onto halves.

var<workgroup> lanes: array<u32, 16>;

// lanes[0] = the sum of the lanes; for all threads of a workgroup together.
fn fold_lanes(t: u32) {
  workgroupBarrier();
  for (var half = 8u; half > 0u; half >>= 1u) {
    if (t < half) {
      lanes[t] = plus(lanes[t], lanes[t + half]);
    }
    workgroupBarrier();
  }
}
