// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: a half float.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let d = half_float(p.plane2, b);
  return five_bit_octet(nibbles(b, o), bits(p.plane1, b, o), d, -16.0 * d);
}
