// Plane 0: nibbles. Plane 1: a half float.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let d = half_float(p.plane1, b);
  return nibble_octet(nibbles(b, o), d, -8.0 * d);
}
