// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: scale and minimum, half floats.
const OFFSET = 0;
const HALVES = false;
const MINIMA = ADDED;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return five_bit_codes(nibbles(b, o), bits(p.plane1, b, o));
}
fn scales(b: u32) -> Scales {
  let d = half_pair(word(p.plane2 + b));
  return Scales(d.x, d.y, no_halves(), no_halves());
}
