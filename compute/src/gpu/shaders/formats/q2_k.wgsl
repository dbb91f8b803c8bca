// Plane 0: pairs of bits. Plane 1: of each half a byte, scale and minimum in its nibbles. Plane 2: scale and minimum of eight
// blocks, half floats.
const SHIFTED = true;
struct Raw { low: vec2<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let of_halves = sixteen_bits(p.plane1, b);
  let d = unpack2x16float(word(p.plane2 + (b >> 3u)));
  let scale = vec2<f32>(vec2<u32>(of_halves, of_halves >> 8u) & vec2<u32>(15u));
  let minimum = vec2<f32>(vec2<u32>(of_halves >> 4u, of_halves >> 12u) & vec2<u32>(15u));
  return Raw(vec2<u32>(word(b * 2u), word(b * 2u + 1u)), d.x * scale, -d.y * minimum);
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(pairs(raw.low, g));
}
