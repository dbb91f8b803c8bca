// Plane 0: nibbles that choose a value. Plane 1: a signed byte, the scale. Plane 2: a half float for eight blocks.
const SHIFTED = false;
struct Raw { low: vec4<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let scale = signed_byte(word(p.plane1 + (b >> 2u)) >> ((b & 3u) * 8u));
  return Raw(w[b], vec2<f32>(half_float(p.plane2, b >> 3u) * scale), vec2<f32>(0.0));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return book_quad(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(raw.low, g));
}
