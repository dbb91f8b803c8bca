// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: a half float.
const OFFSET = 16;
const HALVES = false;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return five_bit_codes(nibbles(b, o), bits(p.plane1, b, o));
}
fn scales(b: u32) -> Scales {
  return Scales(half_bits(p.plane2, b), 0u, no_halves(), no_halves());
}
