// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: scale and minimum, a byte each. Plane 3: scale and minimum of eight blocks, half
// floats.
const SHIFTED = true;
struct Raw { low: vec4<u32>, high: u32, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let of_block = sixteen_bits(p.plane2, b);
  let d = unpack2x16float(word(p.plane3 + (b >> 3u)));
  let scale = vec2<f32>(d.x * f32(of_block & 255u));
  return Raw(w[b], word(p.plane1 + b), scale, vec2<f32>(-d.y * f32(of_block >> 8u)));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(nibbles(raw.low, g) | (bits(raw.high, g) << 4u));
}
