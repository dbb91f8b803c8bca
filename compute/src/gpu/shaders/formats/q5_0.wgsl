// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: a half float.
const SHIFTED = true;
struct Raw { low: vec4<u32>, high: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let d = half_float(p.plane2, b);
  return Raw(w[b], word(p.plane1 + b), vec2<f32>(d), vec2<f32>(-16.0 * d));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(nibbles(raw.low, g) | (bits(raw.high, g) << 4u));
}
