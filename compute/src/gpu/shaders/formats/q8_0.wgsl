// Plane 0: signed bytes. Plane 1: a half float.
const SHIFTED = false;
struct Raw { at: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  return Raw(b * 2u, vec2<f32>(half_float(p.plane1, b)), vec2<f32>(0.0));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return signed_quad(w[raw.at + (g >> 2u)][g & 3u]);
}
