// Plane 0: 32 upper halves of floats.
fn float_element(i: u32) -> u32 {
  return sixteen_bits(0u, i) << 16u;
}
