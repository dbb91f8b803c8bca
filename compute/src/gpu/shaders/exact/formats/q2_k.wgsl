// Plane 0: pairs of bits. Plane 1: of each half a byte, scale and minimum in its nibbles. Plane 2: scale and minimum of eight
// blocks, half floats.
const OFFSET = 0;
const HALVES = true;
const MINIMA = OF_HALVES;
fn codes(b: u32, o: u32) -> vec2<u32> {
  let x = pairs(0u, b, o);
  return vec2<u32>(x, x >> 2u) & vec2<u32>(0x03030303u);
}
fn scales(b: u32) -> Scales {
  let of_halves = sixteen_bits(p.plane1, b);
  let d = half_pair(word(p.plane2 + (b >> 3u)));
  let integers = vec4<i32>(vec4<u32>(of_halves, of_halves >> 4u, of_halves >> 8u, of_halves >> 12u) & vec4<u32>(15u));
  return Scales(d.x, d.y, integers.xz, integers.yw);
}
