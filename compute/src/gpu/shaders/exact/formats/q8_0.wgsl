// Plane 0: signed bytes. Plane 1: a half float.
const OFFSET = 0;
const HALVES = false;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  let at = b * 8u + o * 2u;
  return vec2<u32>(word(at), word(at + 1u));
}
fn scales(b: u32) -> Scales {
  return Scales(half_bits(p.plane1, b), 0u, no_halves(), no_halves());
}
