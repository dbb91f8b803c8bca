// Plane 0: pairs of bits. Plane 1: third bits. Plane 2: of each half a signed byte, the scale. Plane 3: a half float for eight
// blocks.
const OFFSET = 4;
const HALVES = true;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  let x = pairs(0u, b, o);
  let third = bits(p.plane1, b, o);
  let lower = vec2<u32>(x, x >> 2u) & vec2<u32>(0x03030303u);
  return lower | vec2<u32>(spread_bits(third) << 2u, spread_bits(third >> 4u) << 2u);
}
fn scales(b: u32) -> Scales {
  let of_halves = sixteen_bits(p.plane2, b);
  let halves = vec2<i32>(signed_integer(of_halves), signed_integer(of_halves >> 8u));
  return Scales(half_bits(p.plane3, b >> 3u), 0u, halves, no_halves());
}
