// Plane 0: nibbles. Plane 1: fifth and sixth bits. Plane 2: of each half a signed byte, the scale. Plane 3: a half float for eight
// blocks.
const OFFSET = 32;
const HALVES = true;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  let upper = pairs(p.plane1, b, o);
  let upper_bits = (vec2<u32>(upper, upper >> 2u) & vec2<u32>(0x03030303u)) << vec2<u32>(4u);
  return nibble_codes(nibbles(b, o)) | upper_bits;
}
fn scales(b: u32) -> Scales {
  let of_halves = sixteen_bits(p.plane2, b);
  let halves = vec2<i32>(signed_integer(of_halves), signed_integer(of_halves >> 8u));
  return Scales(half_bits(p.plane3, b >> 3u), 0u, halves, no_halves());
}
