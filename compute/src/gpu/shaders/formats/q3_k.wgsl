// Plane 0: pairs of bits. Plane 1: third bits. Plane 2: of each half a signed byte, the scale. Plane 3: a half float for eight
// blocks.
const SHIFTED = true;
struct Raw { low: vec2<u32>, high: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let of_halves = sixteen_bits(p.plane2, b);
  let scale = half_float(p.plane3, b >> 3u) * vec2<f32>(signed_byte(of_halves), signed_byte(of_halves >> 8u));
  return Raw(vec2<u32>(word(b * 2u), word(b * 2u + 1u)), word(p.plane1 + b), scale, -4.0 * scale);
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(pairs(raw.low, g) | (bits(raw.high, g) << 2u));
}
