// Plane 0: 32 floats.
fn float_element(i: u32) -> u32 {
  return word(i);
}
