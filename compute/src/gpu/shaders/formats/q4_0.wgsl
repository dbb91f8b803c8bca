// Plane 0: nibbles. Plane 1: a half float.
const SHIFTED = true;
struct Raw { low: vec4<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let d = half_float(p.plane1, b);
  return Raw(w[b], vec2<f32>(d), vec2<f32>(-8.0 * d));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(nibbles(raw.low, g));
}
