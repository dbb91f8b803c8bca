// Plane 0: nibbles that choose a value, twice what it is. Plane 1: the upper half of a float, half the scale.
const SHIFTED = false;
struct Raw { low: vec4<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  return Raw(w[b], vec2<f32>(bitcast<f32>(sixteen_bits(p.plane1, b) << 16u)), vec2<f32>(0.0));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return book_quad(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(raw.low, g));
}
