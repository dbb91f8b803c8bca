// Plane 0: 32 half floats.
const SHIFTED = false;
struct Raw { at: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  return Raw(b * 4u, vec2<f32>(1.0), vec2<f32>(0.0));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  let words = w[raw.at + (g >> 1u)];
  let pair = select(words.xy, words.zw, (g & 1u) == 1u);
  return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
