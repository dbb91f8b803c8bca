// The element i of a block of float weights.
fn element(b: u32, i: u32) -> u32 {
  return float_element(b * 32u + i);
}
