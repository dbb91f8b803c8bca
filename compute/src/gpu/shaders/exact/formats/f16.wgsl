// Plane 0: 32 half floats.
fn float_element(i: u32) -> u32 {
  return from_half(sixteen_bits(0u, i));
}
