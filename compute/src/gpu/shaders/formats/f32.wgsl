// Plane 0: 32 floats.
const SHIFTED = false;
struct Raw { at: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  return Raw(b * 8u, vec2<f32>(1.0), vec2<f32>(0.0));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return bitcast<vec4<f32>>(w[raw.at + g]);
}
