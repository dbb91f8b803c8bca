// Plane 0: nibbles. Plane 1: scale and minimum, half floats.
const SHIFTED = true;
struct Raw { low: vec4<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let d = unpack2x16float(word(p.plane1 + b));
  return Raw(w[b], d.xx, d.yy);
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(nibbles(raw.low, g));
}
