// Plane 0: nibbles. Plane 1: a half float.
const OFFSET = 8;
const HALVES = false;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return nibble_codes(nibbles(b, o));
}
fn scales(b: u32) -> Scales {
  return Scales(half_bits(p.plane1, b), 0u, no_halves(), no_halves());
}
