// The step of a product for 32 float weights, or as many as a row has left. A format defines `float_element`.

// The number of the block.
alias Weights = u32;

fn load(b: u32) -> Weights {
  return b;
}

fn multiply_add(weights: Weights, row: u32, b: u32, sum: u32) -> u32 {
  var total = sum;
  // Not beyond the row: a sum of −0 would become 0.
  for (var i = 0u; i < min(32u, p.k - b * 32u); i++) {
    let at = b * 32u + i;
    total = fused(float_element(weights * 32u + i), x[row * p.x_stride + at / 4u][at & 3u], total);
  }
  return total;
}
