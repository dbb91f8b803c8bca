// What every thread of a workgroup found, its value and its index, becomes the best of all in thread 0: the largest, of equal ones
// that of the lowest index.

fn gather_best(t: u32) {
  workgroupBarrier();
  for (var width = THREADS / 2u; width > 0u; width /= 2u) {
    if (t < width) {
      let other = values[t + width];
      if (other > values[t] || (other == values[t] && indices[t + width] < indices[t])) {
        values[t] = other;
        indices[t] = indices[t + width];
      }
    }
    workgroupBarrier();
  }
}
